//! Step-up: evidence that is too old for what is asked is renewed by a live challenge of the device,
//! one for all who wait, and whoever does not answer is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use doorward::app::Stage;
use doorward::model::{Ask, Reason};
use doorward::wire::{Client, ClientError};
use futures_util::future::join_all;
use serde_json::Value;

use super::forge::run;
use super::journey::program;
use super::line::House;
use super::machines::{Machine, PROFILES, activate, files, nothing, read, records, write};
use super::scene::{add_rows, register, until};

const ROWS: &str = "p, fresh, spiffe://dev.doorward/app/*, secret/fresh/*, read, fresh5, -, -, allow\n\
                    p, usual, spiffe://dev.doorward/app/*, secret/usual/*, read, managed, -, -, allow";
const S: Duration = Duration::from_secs(1);

async fn house() -> (House, Client) {
    let house = House::new().await;
    let operator = house.client().await;
    activate(&operator, ROWS, PROFILES).await;
    write(&operator, "fresh/a").await;
    write(&operator, "usual/a").await;
    (house, operator)
}

/// A machine that has reported, with a workload's connection.
async fn machine(house: &House, operator: &Client, path: &str) -> (Arc<Machine>, Client) {
    let machine = Machine::enrol(house, operator).await;
    let label = machine.report().await.unwrap();
    assert_eq!(label, "|fresh5=t|hardened=t|managed=t|");
    let credentials = machine.workload(operator, path).await;
    let client = Client::connect(&credentials, house.clock()).await.unwrap();
    (Arc::new(machine), client)
}

/// Answers challenges as long as it lives, honestly; counts them.
fn answers(machine: &Arc<Machine>) -> (Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let (machine, count) = (Arc::clone(machine), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    let answering = tokio::spawn(async move {
        loop {
            machine.client.challenged().await;
            counted.fetch_add(1, Ordering::SeqCst);
            machine.report().await.unwrap();
        }
    });
    (count, answering)
}

async fn reason(client: &Client, what: &str) -> Result<(), Reason> {
    match client.ask(read(what), nothing()).await {
        Ok((_, released)) => {
            assert_eq!(released.body.expose(), what.as_bytes());
            Ok(())
        }
        Err(ClientError::Refused(refusal)) => Err(refusal.reason),
        Err(other) => panic!("{other}"),
    }
}

/// The decisions about a secret: allowed or not, the reason, and the age of the evidence.
async fn decisions(operator: &Client, of: &str) -> Vec<(bool, String, Value)> {
    let of = format!("secret/{of}");
    let all = records(operator).await;
    let decisions = all.iter().filter(|record| record["req"]["act"] == "read");
    decisions
        .filter(|record| record["req"]["obj"] == of.as_str())
        .map(|record| {
            let reason = record["dec"]["code"].as_str().unwrap().to_owned();
            (record["dec"]["verdict"] == "allow", reason, record["dev"]["age_ms"].clone())
        })
        .collect()
}

#[test]
fn a_hundred_requests_at_once_are_one_challenge() {
    run(async {
        let (house, operator) = house().await;
        let (machine, workload) = machine(&house, &operator, "/app/a").await;
        let (count, answering) = answers(&machine);
        house.clock.advance(4 * S);
        assert_eq!(reason(&workload, "fresh/a").await, Ok(()));
        assert_eq!(count.load(Ordering::SeqCst), 0, "young enough");
        house.clock.advance(2 * S);
        assert_eq!(reason(&workload, "usual/a").await, Ok(()));
        assert_eq!(count.load(Ordering::SeqCst), 0, "no rule for this names a profile so strict");
        let all = join_all((0..100).map(|_| reason(&workload, "fresh/a"))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        assert_eq!(count.load(Ordering::SeqCst), 1, "one challenge for a hundred");
        house.clock.advance(3 * S);
        assert_eq!(reason(&workload, "fresh/a").await, Ok(()));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let told = decisions(&operator, "fresh/a").await;
        assert_eq!(told.len(), 102);
        assert_eq!(told.first().unwrap().2, 4000);
        assert!(told[1..101].iter().all(|one| one.2 == 0), "the age that was used is recorded");
        assert_eq!(told.last().unwrap().2, 3000);
        assert_eq!(decisions(&operator, "usual/a").await[0].2, 6000);
        answering.abort();
    });
}

#[test]
fn a_dead_agent_is_unknown_and_holds_up_nobody_else() {
    run(async {
        let (house, operator) = house().await;
        let (dead, workload) = machine(&house, &operator, "/app/dead").await;
        let (other, neighbour) = machine(&house, &operator, "/app/other").await;
        let (count, answering) = answers(&other);
        house.clock.advance(6 * S);
        // The dead one takes the notice, and never reports.
        let began = Instant::now();
        let waiting = join_all((0..10).map(|_| reason(&workload, "fresh/a")));
        let quick = async {
            assert_eq!(reason(&neighbour, "fresh/a").await, Ok(()));
            began.elapsed()
        };
        let (refused, passed) = tokio::join!(waiting, quick);
        assert!(refused.iter().all(|one| *one == Err(Reason::PostureStale)), "{refused:?}");
        let took = began.elapsed();
        assert!(took >= 2 * S - S / 10, "they waited: {took:?}");
        assert!(passed < took, "the neighbour waited for a dead one: {passed:?} of {took:?}");
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let told = decisions(&operator, "fresh/a").await;
        let denied: Vec<_> = told.iter().filter(|one| !one.0).collect();
        assert_eq!(denied.len(), 10);
        assert!(denied.iter().all(|one| one.1 == "D202" && one.2 == 6000), "{denied:?}");
        // It rests: nobody waits for it a second time right away, and what needs less is served.
        let began = Instant::now();
        assert_eq!(reason(&workload, "fresh/a").await, Err(Reason::PostureStale));
        assert!(began.elapsed() < S * 3 / 2, "{:?}", began.elapsed());
        assert_eq!(reason(&workload, "usual/a").await, Ok(()));
        dead.report().await.unwrap();
        assert_eq!(reason(&workload, "fresh/a").await, Ok(()), "nothing stays behind");
        // Without a connection of its agent there is nobody to wait for.
        house.clock.advance(6 * S);
        dead.client.finish().await;
        let began = Instant::now();
        assert_eq!(reason(&workload, "fresh/a").await, Err(Reason::PostureStale));
        assert!(began.elapsed() < S * 3 / 2, "{:?}", began.elapsed());
        answering.abort();
    });
}

#[test]
fn a_lying_agent_and_one_that_got_worse_are_refused() {
    run(async {
        let (house, operator) = house().await;
        let (machine, workload) = machine(&house, &operator, "/app/a").await;
        house.clock.advance(6 * S);
        let lying = async {
            machine.client.challenged().await;
            let error = machine.lie().await.unwrap_err().to_string();
            assert!(error.contains("D503"), "{error}");
        };
        let (refused, ()) = tokio::join!(reason(&workload, "fresh/a"), lying);
        assert_eq!(
            refused,
            Err(Reason::PostureUnknown),
            "evidence that does not hold ends all trust"
        );
        house.clock.advance(4 * S);
        machine.listens_anywhere(true);
        let worse = async {
            machine.client.challenged().await;
            machine.report().await.unwrap()
        };
        let began = Instant::now();
        // The worse verdict closes the connections on which something went out under the better one;
        // this one has had nothing yet.
        let (refused, label) = tokio::join!(reason(&workload, "fresh/a"), worse);
        assert_eq!((refused, label.as_str()), (Err(Reason::PostureUnmet), "|managed=t|"));
        assert!(began.elapsed() < S * 3 / 2, "the truth needs no deadline");
    });
}

#[test]
fn a_device_that_never_reported_is_challenged_too() {
    run(async {
        let (house, operator) = house().await;
        let machine = Arc::new(Machine::enrol(&house, &operator).await);
        let credentials = machine.workload(&operator, "/app/a").await;
        let workload = Client::connect(&credentials, house.clock()).await.unwrap();
        let (count, answering) = answers(&machine);
        assert_eq!(reason(&workload, "usual/a").await, Ok(()));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        answering.abort();
    });
}

#[test]
fn no_deny_rule_stops_a_report() {
    run(async {
        let (house, operator) = house().await;
        let (machine, workload) = machine(&house, &operator, "/app/a").await;
        // Denials bite on what is unknown, and this would be met by every device that fell silent.
        let deny = "p, no-reports, spiffe://dev.doorward/**, device/**, *, fresh5, -, -, deny\n\
                    p, no-secrets, spiffe://dev.doorward/**, secret/**, *, fresh5, -, -, deny";
        activate(&operator, &format!("{ROWS}\n{deny}"), PROFILES).await;
        house.clock.advance(600 * S);
        machine.report().await.expect("a posture locks nobody out of reporting");
        assert_eq!(
            reason(&workload, "fresh/a").await,
            Err(Reason::DenyRow),
            "the rule is in force"
        );
        // And one that stops all agents whatever they show is no policy at all.
        let all = "p, nobody, group:agents, device/**, report, any, -, -, deny";
        let refused = operator.ask(Ask::PolicyActivate {}, files(all, PROFILES)).await.unwrap_err();
        assert!(refused.to_string().contains("D503"), "{refused}");
        machine.report().await.unwrap();
    });
}

#[test]
fn a_real_agent_answers_a_challenge() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    let posture = stage.broker_dir().join("policies/posture.toml");
    let mut text = std::fs::read_to_string(&posture).unwrap();
    text.push_str("\n[profile.fresh3]\nextends = \"managed\"\nmax_age = \"3s\"\n");
    std::fs::write(&posture, text).unwrap();
    let workload = stage.workload("shop").unwrap();
    add_rows(
        &stage,
        "\n#@ owner=test\np, f, spiffe://dev.doorward/shop, secret/shop/**, read, fresh3, -, -, allow\n",
    );
    stage.operator_must(&["put", "shop/a"], Some(b"value")).unwrap();
    stage.start_agent().unwrap();
    register(&stage, "shop", &workload);
    let get = || stage.as_workload(&workload, &["get", "shop/a"]).unwrap();
    until(40 * S, get, |ran| ran.code == 0);
    let age = || stage.device().unwrap()["evidence_age_ms"].as_u64().unwrap();
    until(40 * S, age, |age| *age > 3200);
    let before = stage.metric("doorward_step_ups_total").unwrap();
    let ran = until(40 * S, get, |ran| ran.code == 0);
    assert!(ran.stdout.contains("value"), "{}", ran.stdout);
    assert!(stage.metric("doorward_step_ups_total").unwrap() > before);
}
