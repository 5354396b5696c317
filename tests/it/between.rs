//! I3: what changes between a decision and its release. A request whose body is late was decided and
//! recorded; then the policy changes, or the caller ends. It is judged anew or refused, and the log
//! says that the first decision released nothing.

use std::pin::Pin;
use std::time::Duration;

use doorward::app::{self, Stage};
use doorward::broker::Body;
use doorward::identity::Peer;
use doorward::model::{
    Answer, Ask, Clock as _, DeviceClass, Failure, Reason, RequestId, SecretName, SecretValue,
};
use doorward::policy::BundleFiles;
use doorward::wire::{Client, Credentials, Reply};
use serde_json::Value;

use super::forge::{Conversation, End, address_of, domain, reason, reply, request, run, until};
use super::granted::{of_op, records};
use super::journey::program;
use super::line::House;
use super::scene::add_rows;

const READS: &str =
    "\n#@ owner=test\np, between-reads, group:operators, secret/shop/**, read, any, -, -, allow\n";
const VALUE: &[u8] = b"canary-between";

type Change<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A body that comes after something has happened.
struct Late<'a> {
    change: Option<Change<'a>>,
    body: Option<SecretValue>,
}

impl Body for Late<'_> {
    async fn read(&mut self) -> Result<SecretValue, Failure> {
        if let Some(change) = self.change.take() {
            change.await;
        }
        Ok(self.body.take().unwrap_or_else(SecretValue::empty))
    }
}

/// Answers `ask`; `change` happens once it is decided.
async fn with_change(
    house: &House,
    peer: &Peer,
    (ask, body): (Ask, &[u8]),
    change: Change<'_>,
) -> (RequestId, Result<Vec<u8>, Reason>) {
    let body = Some(SecretValue::new(body.to_vec()));
    let mut late = Late { change: Some(change), body };
    let (id, outcome) = house.broker.line().answer(peer, None, None, ask.into(), &mut late).await;
    assert!(late.change.is_none(), "the body was not asked for");
    (id, outcome.map(|released| released.body.expose().to_vec()).map_err(|refusal| refusal.reason))
}

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

fn read() -> (Ask, &'static [u8]) {
    (Ask::Read { name: name("shop/a"), version: None, have: None }, b"")
}

fn write(to: &str) -> (Ask, &'static [u8]) {
    (Ask::Write { name: name(to), cas: None, labels: None, staged: false }, b"late")
}

/// The first policy with these rows in addition and without those that bear one of these words.
async fn activate(client: &Client, more: &str, without: &[&str]) {
    let mut files = BundleFiles::defaults(&domain());
    let text = files.files.get_mut("policy.csv").unwrap();
    text.push_str(more);
    let kept = text.lines().filter(|line| !without.iter().any(|word| line.contains(word)));
    *text = kept.map(|line| format!("{line}\n")).collect();
    files.files.retain(|name, _| !name.starts_with("tests/"));
    client.ask(Ask::PolicyActivate {}, SecretValue::new(files.to_json())).await.unwrap();
}

/// What the log has about one request, in order: verdicts of decisions, and kinds of the rest.
async fn told(client: &Client, request: RequestId) -> Vec<String> {
    let (mut told, mut from) = (Vec::new(), 0);
    loop {
        let ask = Ask::LogRead { from, limit: 10_000, holding: None };
        let (_, released) = client.ask(ask, SecretValue::empty()).await.unwrap();
        let Answer::Records { next, size, .. } = released.answer else { panic!("no records") };
        for line in std::str::from_utf8(released.body.expose()).unwrap().lines() {
            let record = &serde_json::from_str::<Value>(line).unwrap()["record"];
            if record["id"] == request.to_string() {
                let verdict = record["dec"]["verdict"].as_str();
                told.push(verdict.or(record["kind"].as_str()).unwrap().to_owned());
            }
        }
        if next >= size || next <= from {
            return told;
        }
        from = next;
    }
}

/// Logs another operator in.
async fn second(house: &House, client: &Client, name: &str) -> Credentials {
    let added = Ask::OperatorAdd { name: name.to_owned() };
    let (_, released) = client.ask(added, SecretValue::empty()).await.unwrap();
    let token = String::from_utf8(released.body.expose().to_vec()).unwrap();
    let home = house.dir.path().join(name);
    app::login(&token, &home, false, house.clock()).await.unwrap();
    Credentials::load(&home).unwrap()
}

#[test]
fn a_policy_that_changes_after_the_decision_decides_anew() {
    run(async {
        let house = House::new().await;
        let client = house.client().await;
        activate(&client, READS, &[]).await;
        let (ask, _) = write("shop/a");
        client.ask(ask, SecretValue::new(VALUE.to_vec())).await.unwrap();
        let you = house.peer(&house.operator);
        let nothing = || Box::pin(std::future::ready(()));

        // The controls: nothing changes; and a change that still allows it.
        let (id, outcome) = with_change(&house, &you, read(), nothing()).await;
        assert_eq!((outcome, told(&client, id).await), (Ok(VALUE.to_vec()), vec!["allow".into()]));
        let more =
            format!("{READS}p, more, group:operators, secret/x/**, read, any, -, -, allow\n");
        let change = Box::pin(activate(&client, &more, &[]));
        let (id, outcome) = with_change(&house, &you, read(), change).await;
        assert_eq!(outcome, Ok(VALUE.to_vec()));
        assert_eq!(told(&client, id).await, ["allow", "not_released", "allow"]);

        let change = Box::pin(activate(&client, "", &[]));
        let (id, outcome) = with_change(&house, &you, read(), change).await;
        assert_eq!(outcome, Err(Reason::NoAllow));
        assert_eq!(told(&client, id).await, ["allow", "not_released", "deny"]);

        let change = Box::pin(activate(&client, READS, &["ops-secret-write"]));
        let (id, outcome) = with_change(&house, &you, write("shop/late"), change).await;
        assert_eq!(outcome, Err(Reason::NoAllow));
        assert_eq!(told(&client, id).await, ["allow", "not_released", "deny"]);
        let ask = Ask::Read { name: name("shop/late"), version: None, have: None };
        let missing = client.ask(ask, SecretValue::empty()).await.unwrap_err().to_string();
        assert!(missing.contains("not_found") || missing.contains("not found"), "{missing}");
    });
}

#[test]
fn a_caller_that_ends_after_the_decision_gets_nothing() {
    run(async {
        let house = House::new().await;
        let client = house.client().await;
        activate(&client, READS, &[]).await;
        let (ask, _) = write("shop/a");
        client.ask(ask, SecretValue::new(VALUE.to_vec())).await.unwrap();
        let token = || (Ask::TokenCreate { class: DeviceClass::person(), ttl_s: 600 }, &b""[..]);
        for (n, asked) in [read(), write("shop/late"), token()].into_iter().enumerate() {
            let who = format!("second{n}");
            let peer = house.peer(&second(&house, &client, &who).await);
            // The control: who stays is answered.
            assert_eq!(house.ask_as(&peer, read().0).await, Ok(()));
            let change = Box::pin(async {
                let remove = Ask::OperatorRemove { name: who.clone() };
                client.ask(remove, SecretValue::empty()).await.unwrap();
            });
            let (id, outcome) = with_change(&house, &peer, asked, change).await;
            assert_eq!(outcome, Err(Reason::Changed), "{n}");
            assert_eq!(told(&client, id).await, ["allow", "not_released"], "{n}");
        }
        let ask = Ask::Versions { name: name("shop/late") };
        assert!(client.ask(ask, SecretValue::empty()).await.is_err(), "nothing was written");

        // And whose time is over meanwhile.
        let you = house.peer(&house.operator);
        let ends = Box::pin(async {
            house.clock.advance(Duration::from_secs(12 * 3600 + 60));
        });
        let before = house.clock.now();
        let (_, outcome) = with_change(&house, &you, read(), ends).await;
        assert!(house.clock.now().since(before.boot()) > Duration::from_secs(12 * 3600));
        assert_eq!(outcome, Err(Reason::Changed));
    });
}

/// A request of which everything is sent but its end.
async fn open(conversation: &Conversation, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = conversation.connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    (send, recv)
}

/// The same over the wire, with a broker's process.
#[test]
fn a_request_that_withholds_its_end_is_judged_by_the_policy_of_its_end() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    add_rows(&stage, READS);
    stage.operator_must(&["put", "shop/a"], Some(VALUE)).unwrap();
    let verdicts = |op: &str| -> Vec<String> {
        let records = records(&stage);
        let decided =
            of_op(&records, op).into_iter().map(|record| record["dec"]["verdict"].clone());
        decided.map(|verdict| verdict.as_str().unwrap().to_owned()).collect()
    };
    run(async {
        let conversation = End::with(&operator).knock(address_of(&operator)).await.unwrap();
        let reads = request(r#"{"read":{"name":"shop/a"}}"#, b"");
        // The control: what comes to its end is answered.
        let answered = conversation.say(&reads).await;
        assert!(matches!(answered, Ok(Reply::Answer { .. })), "{answered:?}");
        let writes = request(r#"{"write":{"name":"shop/late"}}"#, b"0123456789");
        let mut reading = open(&conversation, &reads).await;
        let mut writing = open(&conversation, &writes[..writes.len() - 1]).await;
        let decided = || verdicts("read").len() == 2 && verdicts("write").len() == 2;
        until("both are decided", Duration::from_secs(8), decided).await;

        let policies = stage.broker_dir().join("policies");
        let text = std::fs::read_to_string(policies.join("policy.csv")).unwrap();
        let kept = |line: &&str| {
            !["owner=test", "between-reads", "ops-secret-write"].iter().any(|w| line.contains(w))
        };
        let less: Vec<&str> = text.lines().filter(kept).collect();
        std::fs::write(policies.join("policy.csv"), less.join("\n") + "\n").unwrap();
        std::fs::remove_dir_all(policies.join("tests")).unwrap();
        let policies = policies.display().to_string();
        stage.operator_must(&["policy", "activate", &policies], None).unwrap();

        writing.0.write_all(&writes[writes.len() - 1..]).await.unwrap();
        for (send, recv) in [(&mut reading.0, reading.1), (&mut writing.0, writing.1)] {
            send.finish().unwrap();
            let reply = reply(recv).await;
            assert_eq!(reason(&reply), "D101", "{reply:?}");
        }
    });
    assert_eq!(verdicts("read"), ["allow", "allow", "deny"]);
    assert_eq!(verdicts("write"), ["allow", "allow", "deny"]);
    let all = records(&stage);
    let not_released = all.iter().filter(|record| record["kind"] == "not_released").count();
    assert_eq!(not_released, 2, "one for either first decision");
    let list = stage.operator_must(&["list", "shop"], None).unwrap().stdout;
    assert!(list.contains("shop/a") && !list.contains("shop/late"), "{list}");
}
