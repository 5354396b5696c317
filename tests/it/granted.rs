//! The log says what was granted and what came of it: whom an operator let in, which keys were taken,
//! which certificate was issued. And what a stranger may make it write is bounded.

use doorward::app::Stage;
use serde_json::Value;

use crate::journey::program;

/// The newest records.
pub fn records(stage: &Stage) -> Vec<Value> {
    let tail = stage.operator_must(&["log", "tail", "-n", "400"], None).unwrap();
    tail.stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|entry| entry["record"].clone())
        .collect()
}

/// The decisions of one operation.
pub fn of_op<'a>(records: &'a [Value], op: &str) -> Vec<&'a Value> {
    let called = |record: &Value| match &record["req"]["op"] {
        Value::Null => record["req"]["act"] == op,
        word => word == op,
    };
    records.iter().filter(|record| called(record)).collect()
}

/// The note of what one request did.
pub fn outcome<'a>(records: &'a [Value], request: &Value) -> &'a Value {
    let is_outcome = |record: &&Value| {
        record["kind"] == "identity" && record["id"] == *request && record["what"] != "epochs"
    };
    records.iter().find(is_outcome).unwrap_or_else(|| panic!("no note of {request}"))
}

#[test]
fn what_was_granted_and_what_came_of_it_stand_in_the_log() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    let added = stage.operator_must(&["operator", "add", "mallory"], None).unwrap().json();
    let dir = stage.dir().join("mallory").display().to_string();
    let token = added["token"].as_str().unwrap();
    let ran = stage.run(&["login", "-", "--identity", &dir], Some(token.as_bytes())).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    stage.start_agent().unwrap();
    let workload = stage.workload("api").unwrap();
    let uid = format!("uid:{}", nix::unistd::getuid());
    let path = format!("path:{}", workload.display());
    let args = ["entry", "create", "--id", "api", "--selector", &uid, "--selector", &path];
    stage.operator_must(&args, None).unwrap();
    let policies = stage.broker_dir().join("policies").display().to_string();
    let active = stage.operator_must(&["policy", "activate", &policies], None).unwrap().json();
    assert_eq!(stage.as_workload(&workload, &["whoami"]).unwrap().code, 0);

    let records = records(&stage);
    let whole: String = records.iter().map(Value::to_string).collect();
    let secret = token.strip_prefix("dw1.").unwrap();
    assert!(!whole.contains(secret), "no token stands in a record");

    let add = of_op(&records, "operator_add")[0];
    assert_eq!(add["req"]["detail"]["name"], "mallory");
    let made = outcome(&records, &add["id"]);
    assert_eq!((&made["what"], &made["detail"]["name"]), (&"token".into(), &"mallory".into()));
    let login = of_op(&records, "enroll")
        .into_iter()
        .find(|record| record["req"]["detail"]["token"] == made["detail"]["token"]);
    let login = login.expect("the enrolment names the token that let it in");
    let enrolled = outcome(&records, &login["id"]);
    assert_eq!(enrolled["what"], "enrolled");
    let id = "spiffe://dev.doorward/doorward/operator/mallory";
    assert_eq!(enrolled["detail"]["spiffe_id"], id);
    assert_eq!(enrolled["detail"]["device"].as_str().unwrap().len(), 64);

    let create = of_op(&records, "entry_create")[0];
    assert_eq!(create["req"]["detail"]["selectors"].as_str().unwrap().len(), 64);
    let entry = outcome(&records, &create["id"]);
    assert_eq!(entry["detail"]["selectors"], serde_json::json!([uid, path]));

    let issue = of_op(&records, "issue")[0];
    assert_eq!(issue["req"]["detail"]["entry"], entry["detail"]["id"]);
    assert_eq!(issue["req"]["detail"]["agent_held"], true);
    let issued = outcome(&records, &issue["id"]);
    let whoami = of_op(&records, "whoami").into_iter().next_back().unwrap();
    assert_eq!(whoami["sub"]["serial"], issued["detail"]["serial"], "who asks with it is found");

    let activate = of_op(&records, "policy_activate")[0];
    let policy = outcome(&records, &activate["id"]);
    assert_eq!(
        (&policy["detail"]["digest"], &policy["detail"]["serial"]),
        (&active["digest"], &active["serial"])
    );
    let own = records.iter().find(|record| record["what"] == "own").unwrap();
    assert!(!own["detail"]["serial"].as_str().unwrap().is_empty());
}

/// A stranger's wrong tokens are denied, so the bucket of denials bounds what they write.
#[test]
fn a_wrong_token_is_denied_and_leaves_one_record() {
    let stage = Stage::with_program(program(), None).unwrap();
    let added = stage.operator_must(&["operator", "add", "second"], None).unwrap().json();
    let token = added["token"].as_str().unwrap().to_owned();
    let dir = |name: &str| stage.dir().join(name).display().to_string();
    let login = |name: &str| {
        stage.run(&["login", "-", "--identity", &dir(name)], Some(token.as_bytes())).unwrap()
    };
    assert_eq!(login("first").code, 0);
    let tries = 30;
    let codes: Vec<_> = (0..tries).map(|n| login(&format!("try-{n}")).code).collect();
    assert!(codes.iter().all(|code| *code == 3 || *code == 1 || *code == 4), "{codes:?}");
    assert_eq!(codes[0], 3, "a spent token is denied");

    let records = records(&stage);
    let enrolments = of_op(&records, "enroll");
    let allowed = enrolments.iter().filter(|record| record["dec"]["verdict"] == "allow").count();
    assert_eq!(allowed, 2, "the first operator of this broker, and the second");
    let denied = enrolments.iter().filter(|record| record["dec"]["code"] == "D501").count();
    assert!((1..=tries).contains(&denied), "{denied}");
    assert!(!records.iter().any(|record| record["kind"] == "not_released"));
}

#[test]
fn a_tail_leaves_out_its_own_reading_and_nobody_elses() {
    let stage = Stage::with_program(program(), None).unwrap();
    for name in ["shop/a", "shop/b"] {
        stage.operator_must(&["put", name], Some(b"x")).unwrap();
    }
    let tail = |count: &str| -> Vec<String> {
        let tail = stage.operator_must(&["log", "tail", "-n", count], None).unwrap();
        let entries = tail.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries
            .map(|entry| entry["record"]["req"]["op"].as_str().unwrap_or("-").to_owned())
            .collect()
    };
    let first = tail("1");
    assert!(first.len() == 1 && first[0] != "log_read", "{first:?}");
    let second = tail("400");
    let reads = second.iter().filter(|op| *op == "log_read").count();
    assert_eq!(reads, 2, "those of the first one: {second:?}");
    assert_eq!(second.last().unwrap(), "log_read");
}
