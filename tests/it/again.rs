//! Becoming somebody again: a fresh token in a directory that holds an identity already. The broker
//! gets a new device; what is in the directory goes only for the same operator, or when asked for.

use std::path::Path;

use doorward::app::{Ran, Stage};
use doorward::wire::Credentials;
use serde_json::Value;

use crate::journey::program;

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn operator_token(stage: &Stage, name: &str) -> String {
    let added = stage.operator_must(&["operator", "add", name], None).unwrap().json();
    added["token"].as_str().unwrap().to_owned()
}

fn device_token(stage: &Stage) -> String {
    let made = stage.operator_must(&["token", "create"], None).unwrap().json();
    made["token"].as_str().unwrap().to_owned()
}

/// The devices that the broker knows, revoked ones among them.
fn devices(stage: &Stage) -> Vec<Value> {
    let listed = stage.operator_must(&["device", "list"], None).unwrap();
    listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn whoami(stage: &Stage, dir: &str) -> Ran {
    stage.run(&["--identity", dir, "whoami"], None).unwrap()
}

/// The error, and all that is told beside it.
fn told(ran: &Ran) -> (String, String) {
    let fault = ran.fault();
    let word = |key: &str| fault[key].as_str().unwrap_or_default().to_owned();
    (word("error"), format!("{} {}", word("cause"), word("hint")))
}

#[test]
fn an_operator_logs_in_again_into_the_same_directory() {
    let stage = Stage::with_program(program(), None).unwrap();
    let dir = text(&stage.dir().join("second"));
    let login = |token: &str, more: &[&str]| {
        let args = [&["login", "-", "--identity", &dir], more].concat();
        stage.run(&args, Some(token.as_bytes())).unwrap()
    };
    let before = devices(&stage).len();
    assert_eq!(login(&operator_token(&stage, "second"), &[]).code, 0);
    let first = Credentials::load(Path::new(&dir)).unwrap();
    // The one in the directory has ended at the broker; that nobody has told it is no hindrance.
    stage.operator_must(&["operator", "remove", "second"], None).unwrap();
    assert_ne!(whoami(&stage, &dir).code, 0);
    assert_eq!(login(&operator_token(&stage, "second"), &[]).code, 0);
    let second = Credentials::load(Path::new(&dir)).unwrap();
    assert_ne!(first.chain, second.chain);
    assert_eq!(whoami(&stage, &dir).code, 0);
    assert_eq!(devices(&stage).len(), before + 2, "the first device is as it was, and revoked");

    let token = operator_token(&stage, "third");
    let refused = login(&token, &[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let (error, more) = told(&refused);
    assert!(error.contains("/doorward/operator/second, which counts until"), "{error}");
    assert!(more.contains("--replace"), "{more}");
    assert_eq!(whoami(&stage, &dir).code, 0, "the one before is still there");
    let replaced = login(&token, &["--replace"]);
    assert_eq!(replaced.code, 0, "the token was not spent: {replaced:?}");
    let id = "spiffe://dev.doorward/doorward/operator/third";
    assert_eq!(whoami(&stage, &dir).json()["spiffe_id"], id);
}

#[test]
fn a_wrong_token_leaves_the_identity_that_is_there() {
    let stage = Stage::with_program(program(), None).unwrap();
    let dir = text(&stage.operator_dir());
    let used = std::fs::read(stage.dir().join("operator.token")).unwrap();
    let before = std::fs::read(stage.operator_dir().join("key.pem")).unwrap();
    for more in [&[][..], &["--replace"]] {
        let args = [&["login", "-", "--identity", &dir], more].concat();
        let refused = stage.run(&args, Some(&used)).unwrap();
        assert_eq!(refused.code, 3, "{refused:?}");
    }
    assert_eq!(std::fs::read(stage.operator_dir().join("key.pem")).unwrap(), before);
    assert_eq!(whoami(&stage, &dir).code, 0);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4, "no draft stays behind");
}

#[test]
fn a_machine_joins_again_as_a_new_device_and_only_when_asked_to() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let first = stage.device().unwrap()["id"].clone();
    let dir = text(&stage.dir().join("agent"));
    let socket = text(&stage.socket());
    let join = |stage: &Stage, token: &str, more: &[&str]| {
        let args = [&["agent", "--dir", &dir, "join", "-", "--listen", &socket], more].concat();
        stage.run(&args, Some(token.as_bytes())).unwrap()
    };
    let token = device_token(&stage);
    let busy = join(&stage, &token, &["--replace"]);
    assert!(told(&busy).0.contains("in use by another agent"), "{busy:?}");
    stage.stop("agent");
    let held = join(&stage, &token, &[]);
    let (error, more) = told(&held);
    assert!(error.contains("/doorward/agent/"), "{error}");
    assert!(more.contains("comes back by itself") && more.contains("--replace"), "{more}");
    stage.start_agent().unwrap();
    assert_eq!(stage.device().unwrap()["id"], first);
    stage.stop("agent");

    let joined = join(&stage, &token, &["--replace"]);
    assert_eq!(joined.code, 0, "the token was not spent: {joined:?}");
    stage.operator_must(&["device", "revoke", first.as_str().unwrap()], None).unwrap();
    let known = devices(&stage).len();
    let again = join(&stage, &token, &["--replace"]);
    assert_eq!(again.code, 3, "now it is spent: {again:?}");
    assert_eq!(devices(&stage).len(), known, "and nobody was let in by it");
    let (error, more) = told(&again);
    assert!(!more.contains(&error), "each part says something new: {error} | {more}");

    let id = Credentials::load(Path::new(&dir)).unwrap().spiffe_id().unwrap();
    let living: Vec<_> = devices(&stage)
        .iter()
        .filter(|device| device["revoked"] == false && device["class"] == "server")
        .map(|device| device["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(living.len(), 1, "{living:?}");
    assert!(id.as_str().ends_with(&living[0]), "{id}");
    let login = ["login", "-", "--replace", "--identity", &dir];
    let token = operator_token(&stage, "second");
    let refused = stage.run(&login, Some(token.as_bytes())).unwrap();
    assert!(told(&refused).0.contains("is the state of an agent"), "{refused:?}");
}
