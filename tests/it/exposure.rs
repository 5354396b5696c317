//! What a device has had, out of the decision log; and the connections that a worse verdict closes.

use std::collections::BTreeMap;
use std::time::Duration;

use doorward::app::Stage;
use doorward::broker::{Body, Ready};
use doorward::model::{Answer, Ask, Clock as _, DeviceId, Failure, Reason, SecretValue, limits};
use doorward::wire::{Client, CloseCode, Credentials};
use serde_json::Value;

use super::forge::{run, until as soon};
use super::journey::program;
use super::line::House;
use super::machines::{Machine, PROFILES, activate, name, nothing, read, write};
use super::scene::{add_rows, register, until};

const ROWS: &str = "\
p, hard, spiffe://dev.doorward/app/*, secret/hard/*, read, hardened, -, -, allow
p, soft, spiffe://dev.doorward/app/*, secret/soft/*, read, managed, -, -, allow
p, puts, spiffe://dev.doorward/app/*, secret/puts/*, write, any, -, -, allow";

type Had = BTreeMap<(String, Option<u64>, String, String), u64>;

/// One page after the other, added up by hand. A page looks at `limit` records.
async fn had(operator: &Client, device: DeviceId, limit: u32, since: Option<i64>) -> Had {
    let (mut had, mut from, mut end) = (Had::new(), 0, None);
    loop {
        let ask = Ask::Exposure { device, from, limit, since };
        let (_, released) = operator.ask(ask, nothing()).await.unwrap();
        let Answer::Records { next, size, .. } = released.answer else { panic!("no records") };
        for line in std::str::from_utf8(released.body.expose()).unwrap().lines() {
            let item: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| item[key].as_str().unwrap().to_owned();
            let key = (text("name"), item["version"].as_u64(), text("how"), text("workload"));
            if item["withdrawn"] == true {
                let count = had.get_mut(&key).expect("what is withdrawn was told before");
                *count -= 1;
            } else {
                *had.entry(key).or_default() += item["count"].as_u64().unwrap();
            }
        }
        if next >= *end.get_or_insert(size) {
            had.retain(|_, count| *count > 0);
            return had;
        }
        assert!(next > from, "it goes on");
        from = next;
    }
}

fn one(
    name: &str,
    version: u64,
    path: &str,
    count: u64,
) -> ((String, Option<u64>, String, String), u64) {
    let workload = format!("spiffe://dev.doorward{path}");
    ((name.to_owned(), Some(version), "read".to_owned(), workload), count)
}

/// A body that comes once another policy is in force.
struct Late<'a>(&'a Client, &'a str);

impl Body for Late<'_> {
    async fn read(&mut self) -> Result<SecretValue, Failure> {
        activate(self.0, self.1, PROFILES).await;
        Ok(nothing())
    }
}

async fn get(client: &Client, what: &str) -> bool {
    client.ask(read(what), nothing()).await.is_ok()
}

#[test]
fn a_device_has_had_exactly_what_was_released_to_it() {
    run(async {
        let house = House::new().await;
        let operator = house.client().await;
        activate(&operator, ROWS, PROFILES).await;
        for to in ["hard/a", "hard/b", "soft/a", "soft/b", "other/a"] {
            write(&operator, to).await;
        }
        let (one_machine, other) =
            (Machine::enrol(&house, &operator).await, Machine::enrol(&house, &operator).await);
        one_machine.report().await.unwrap();
        other.report().await.unwrap();
        let connect = async |credentials: &Credentials| {
            Client::connect(credentials, house.clock()).await.unwrap()
        };
        let own = one_machine.workload(&operator, "/app/a").await;
        let a = connect(&own).await;
        let b = connect(&one_machine.workload(&operator, "/app/b").await).await;
        let c = connect(&other.workload(&operator, "/app/c").await).await;
        assert!(get(&a, "hard/a").await && get(&a, "hard/a").await && get(&a, "soft/a").await);
        write(&operator, "hard/a").await;
        assert!(get(&a, "hard/a").await && get(&b, "hard/a").await);
        assert!(get(&c, "hard/b").await && get(&c, "soft/b").await, "another device's");
        assert!(!get(&a, "other/a").await && !get(&b, "hard/none").await, "denied, and absent");
        // Decided, and then not released.
        let mut late =
            Late(&operator, "p, none, group:operators, secret/x/*, read, any, -, -, allow");
        let peer = house.peer(&own);
        let line = house.broker.line();
        let refused = line.answer(&peer, None, None, read("soft/b").into(), &mut late).await.1;
        assert_eq!(refused.unwrap_err().reason, Reason::NoAllow);
        activate(&operator, ROWS, PROFILES).await;
        // Whoever writes a value has it too.
        let wrote = Ask::Write { name: name("puts/a"), cas: None, labels: None, staged: false };
        b.ask(wrote, SecretValue::new(b"v".to_vec())).await.unwrap();

        let mut want: Had = [
            one("hard/a", 1, "/app/a", 2),
            one("hard/a", 2, "/app/a", 1),
            one("hard/a", 2, "/app/b", 1),
            one("soft/a", 1, "/app/a", 1),
        ]
        .into();
        let by = "spiffe://dev.doorward/app/b".to_owned();
        want.insert(("puts/a".to_owned(), None, "write".to_owned(), by), 1);
        let all = u32::try_from(limits::LOG_SCAN).unwrap();
        for limit in [all, 7, 1] {
            let seen = had(&operator, one_machine.id(), limit, None).await;
            assert_eq!(seen, want, "{limit} records a page");
        }
        let others: Had = [one("hard/b", 1, "/app/c", 1), one("soft/b", 1, "/app/c", 1)].into();
        assert_eq!(had(&operator, other.id(), all, None).await, others);
        assert!(had(&operator, DeviceId::of_key(b"nobody"), all, None).await.is_empty());
        // From a time on, found by halves and not by reading all.
        house.clock.advance(Duration::from_secs(1800));
        let since = house.clock.now().unix_s();
        one_machine.report().await.unwrap();
        let a = connect(&one_machine.workload(&operator, "/app/late").await).await;
        assert!(get(&a, "soft/a").await);
        for limit in [all, 1] {
            let late: Had = [one("soft/a", 1, "/app/late", 1)].into();
            assert_eq!(had(&operator, one_machine.id(), limit, Some(since)).await, late);
        }
        // It is an act of whoever may read the log, and stands there itself.
        let ask = || Ask::Exposure { device: other.id(), from: 0, limit: 1, since: None };
        let line = house.broker.line();
        let denied = line.answer(&peer, None, None, ask().into(), &mut Ready(None)).await.1;
        assert_eq!(denied.unwrap_err().reason, Reason::NoAllow);
        let told = super::machines::records(&operator).await;
        let acts: Vec<_> = told.iter().filter(|r| r["req"]["op"] == "exposure").collect();
        assert_eq!(acts.last().unwrap()["dec"]["verdict"], "deny");
        assert!(acts.iter().any(|r| r["dec"]["verdict"] == "allow"
            && r["req"]["detail"]["device"] == other.id().to_string()));
    });
}

#[test]
fn a_worse_verdict_closes_what_stood_on_the_better_one_and_nothing_else() {
    run(async {
        let house = House::new().await;
        let operator = house.client().await;
        activate(&operator, ROWS, PROFILES).await;
        write(&operator, "hard/a").await;
        write(&operator, "soft/a").await;
        let (worse, other) =
            (Machine::enrol(&house, &operator).await, Machine::enrol(&house, &operator).await);
        let mut clients = Vec::new();
        for (machine, path) in [(&worse, "/app/a"), (&worse, "/app/b"), (&other, "/app/c")] {
            machine.report().await.unwrap();
            let credentials = machine.workload(&operator, path).await;
            clients.push(Client::connect(&credentials, house.clock()).await.unwrap());
        }
        let [hard, soft, apart] = &clients[..] else { unreachable!() };
        assert!(
            get(hard, "hard/a").await && get(soft, "soft/a").await && get(apart, "hard/a").await
        );
        // Growing old is no change: nothing is closed by it, and evidence of the same is none either.
        house.clock.advance(Duration::from_secs(300));
        other.report().await.unwrap();
        worse.report().await.unwrap();
        assert!(get(hard, "hard/a").await && get(apart, "hard/a").await);
        worse.listens_anywhere(true);
        worse.report().await.unwrap();
        soon("the connection is closed", Duration::from_secs(10), || hard.is_closed()).await;
        assert!(hard.closed().await.contains(CloseCode::Posture.word()), "{}", hard.closed().await);
        assert!(get(soft, "soft/a").await, "it stands on nothing that was lost");
        assert!(get(apart, "hard/a").await, "another device");
        assert!(!worse.client.is_closed(), "and whoever reports goes on reporting");
        // Profiles that ask for more close as facts that got worse do.
        let strict = PROFILES.replace("eq = true", "eq = false");
        activate(&operator, ROWS, &strict).await;
        soon("both are closed", Duration::from_secs(10), || soft.is_closed() && apart.is_closed())
            .await;
        assert!(!operator.is_closed());
    });
}

#[test]
fn the_command_tells_it_also_after_a_restart() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    add_rows(
        &stage,
        "\n#@ owner=test\np, shop, spiffe://dev.doorward/*, secret/shop/**, read, any, -, -, allow\n",
    );
    stage.operator_must(&["put", "shop/a"], Some(b"value")).unwrap();
    stage.operator_must(&["put", "shop/b"], Some(b"value")).unwrap();
    stage.start_agent().unwrap();
    for app in ["web", "api"] {
        let program = stage.workload(app).unwrap();
        register(&stage, app, &program);
        let get = || stage.as_workload(&program, &["get", "shop/a"]).unwrap();
        until(Duration::from_secs(40), get, |ran| ran.code == 0);
    }
    let id = stage.device().unwrap()["id"].as_str().unwrap().to_owned();
    let exposure = |stage: &Stage, more: &[&str]| {
        let args = [&["device", "exposure", &id[..12]], more].concat();
        let ran = stage.operator_must(&args, None).unwrap();
        let lines = ran.stdout.lines();
        lines.map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let told = exposure(&stage, &[]);
    let had: Vec<_> =
        told.iter().map(|item| (item["name"].as_str(), item["version"].as_u64())).collect();
    assert_eq!(had, [(Some("shop/a"), Some(1)); 2], "{told:?}");
    assert_eq!(told[0]["workload"], "spiffe://dev.doorward/api");
    assert_eq!(told[1]["workload"], "spiffe://dev.doorward/web");
    assert!(told[0]["first"].as_str() <= told[0]["last"].as_str());
    assert_eq!(exposure(&stage, &["--since", "1h"]), told);
    assert!(exposure(&stage, &["--since", "2999-01-01T00:00:00Z"]).is_empty());
    let bad = stage.operator(&["device", "exposure", &id, "--since", "soon"], None).unwrap();
    assert_eq!(bad.code, 2, "{}", bad.stderr);
    stage.stop("broker");
    stage.start_broker().unwrap();
    assert_eq!(exposure(&stage, &[]), told, "out of the log, not out of memory");
}
