//! The life of the authorities on a real broker with a real agent: what a workload is told and when,
//! who trusts whom at each moment, what a drill leaves, and what a kill or a restored store can't
//! bring back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use doorward::app::Stage;
use doorward::model::{Ask, SecretValue, SystemClock};
use doorward::wire::{Client, ClientError, Credentials};
use futures_util::StreamExt as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Context};

use super::journey::program;
use super::scene::until;
use super::workload_api::{endpoint, entry, first_given, holds_together, runtime, soon, stage};

const MOST: Duration = Duration::from_secs(90);

pub fn ca(stage: &Stage, args: &[&str]) -> Value {
    let args: Vec<_> = std::iter::once("ca").chain(args.iter().copied()).collect();
    stage.operator_must(&args, None).unwrap().json()
}

/// The ids of the authorities in this state.
pub fn of(standing: &Value, state: &str) -> Vec<String> {
    let all = standing["authorities"].as_array().unwrap().iter();
    let of = all.filter(|it| it["state"] == state);
    of.map(|it| it["id"].as_str().unwrap().to_owned()).collect()
}

/// What does not hang on who is heard of: which authority stands how.
fn states(standing: &Value) -> Vec<(Value, Value)> {
    let all = standing["authorities"].as_array().unwrap().iter();
    all.map(|it| (it["id"].clone(), it["state"].clone())).collect()
}

pub fn acknowledged(stage: &Stage) {
    until(MOST, || ca(stage, &["show"]), |it| it["live"] == 1 && it["acknowledged"] == 1);
}

fn roots(context: &X509Context) -> Vec<Vec<u8>> {
    let domain = context.svids()[0].spiffe_id().trust_domain();
    let bundle = context.bundle_set().get(domain).unwrap();
    bundle.authorities().iter().map(|root| root.as_bytes().to_vec()).collect()
}

/// Whether whoever was given `context` takes an SVID with this leaf for one of the trust domain.
fn trusts(context: &X509Context, leaf: &[u8]) -> bool {
    let roots: Vec<CertificateDer<'_>> = roots(context).into_iter().map(Into::into).collect();
    let anchors: Vec<_> =
        roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
    let leaf = CertificateDer::from(leaf);
    let usage = webpki::KeyUsage::client_auth();
    let (leaf, now) = (webpki::EndEntityCert::try_from(&leaf).unwrap(), UnixTime::now());
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    leaf.verify_for_usage(algorithms, &anchors, &[], now, usage, None, None).is_ok()
}

fn issuer(leaf: &[u8]) -> Vec<u8> {
    x509_parser::parse_x509_certificate(leaf).unwrap().1.issuer().as_raw().to_vec()
}

fn leaf(context: &X509Context) -> Vec<u8> {
    context.svids()[0].leaf().as_bytes().to_vec()
}

type Contexts<'a> = &'a mut (
            dyn futures_util::Stream<Item = Result<X509Context, spiffe::WorkloadApiError>> + Unpin
        );

/// The next state that a workload is told and that is so. At every moment it holds together.
async fn next(stream: Contexts<'_>, so: impl Fn(&X509Context) -> bool) -> X509Context {
    let told = async {
        loop {
            let context = stream.next().await.unwrap().unwrap();
            holds_together(&context);
            if so(&context) {
                return context;
            }
        }
    };
    tokio::time::timeout(MOST, told).await.expect("nothing came in time")
}

/// Asks with what lies in a directory.
fn asks(credentials: &Credentials) -> Result<(), ClientError> {
    runtime().block_on(async {
        let client = Client::connect(credentials, Arc::new(SystemClock)).await?;
        client.ask(Ask::Whoami {}, SecretValue::empty()).await.map(|_| ())
    })
}

#[test]
fn a_workload_is_told_the_next_root_before_anything_is_signed_by_it() {
    let stage = stage();
    entry(&stage, "tester", &[]);
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&stage))).unwrap();
    runtime.block_on(first_given(&client));
    let mut stream = runtime.block_on(client.stream_x509_contexts()).unwrap();
    let first = runtime.block_on(soon(stream.next())).unwrap().unwrap();
    assert_eq!(roots(&first).len(), 1);
    let before = ca(&stage, &["show"]);
    let old = of(&before, "active").remove(0);

    // An agent that is told takes the roots over in milliseconds: this one is held still meanwhile.
    let agent = nix::unistd::Pid::from_raw(stage.pid("agent").unwrap().try_into().unwrap());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let prepared = ca(&stage, &["prepare"]);
    let new = of(&prepared, "prepared").remove(0);
    let refused = stage.operator(&["ca", "activate"], None).unwrap();
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGCONT).unwrap();
    let early = refused.code != 0;
    let published = runtime.block_on(next(&mut stream, |it| roots(it).len() == 2));
    assert_eq!(issuer(&leaf(&published)), issuer(&leaf(&first)), "nothing is signed by it yet");
    assert!(early, "activation did not wait for the agent: {}", refused.stdout);
    acknowledged(&stage);

    let active = ca(&stage, &["activate"]);
    assert_eq!((of(&active, "active"), of(&active, "old")), (vec![new.clone()], vec![old.clone()]));
    let second = runtime.block_on(soon(client.fetch_x509_context())).unwrap();
    holds_together(&second);
    assert_ne!(issuer(&leaf(&second)), issuer(&leaf(&first)), "signed by the next one");
    for (who, peer) in [(&published, &second), (&second, &published), (&second, &first)] {
        assert!(trusts(who, &leaf(peer)), "two workloads of the same moment");
    }
    assert!(!trusts(&first, &leaf(&second)), "the control: who was told nothing trusts it not");

    let agent = Credentials::load(&stage.dir().join("agent")).unwrap();
    assert_eq!(agent.bundle.len(), 2, "on disk before it was acknowledged");
    let early = stage.operator(&["ca", "revoke", &old], None).unwrap();
    assert_ne!(early.code, 0, "{}", early.stdout);
    ca(&stage, &["taint", &old[..12]]);
    let renewed =
        runtime.block_on(next(&mut stream, |it| issuer(&leaf(it)) == issuer(&leaf(&second))));
    assert_eq!(roots(&renewed).len(), 2, "a tainted one is trusted still");
    let zero = |it: &Value| {
        let all = it["authorities"].as_array().unwrap().iter();
        let old = all.filter(|it| it["state"] == "tainted").map(|it| it["agents"].clone());
        it["acknowledged"] == it["live"] && it["tainted"] == 0 && old.eq([Value::from(0)])
    };
    until(MOST, || ca(&stage, &["show"]), zero);
    ca(&stage, &["revoke", &old]);
    let ended = runtime.block_on(next(&mut stream, |it| roots(it).len() == 1));
    assert!(!trusts(&ended, &leaf(&first)) && trusts(&ended, &leaf(&renewed)));
}

#[test]
fn a_drill_ends_with_nobody_on_the_old_key() {
    let stage = stage();
    entry(&stage, "tester", &[]);
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&stage))).unwrap();
    let first = runtime.block_on(first_given(&client));
    let mut stream = runtime.block_on(client.stream_x509_contexts()).unwrap();
    runtime.block_on(soon(stream.next())).unwrap().unwrap();
    let mut stolen = Credentials::load(&stage.dir().join("agent")).unwrap();
    asks(&stolen).expect("the control: it counts");
    let open = runtime.block_on(Client::connect(&stolen, Arc::new(SystemClock))).unwrap();
    assert!(!open.is_closed());
    let old = of(&ca(&stage, &["show"]), "active").remove(0);

    let drill = stage.operator_must(&["ca", "rotate", "--drill", "--wait", "90"], None).unwrap();
    let lines = drill.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines: Vec<_> = lines.collect();
    let mut stages: Vec<_> = lines.iter().map(|it| it["stage"].as_str().unwrap()).collect();
    stages.dedup();
    let all = ["published", "told", "activated", "tainted", "renewing", "revoked"];
    assert_eq!(stages, all, "{}", drill.stdout);
    assert_eq!(lines.last().unwrap()["tainted"], 0);
    let why = runtime.block_on(soon(open.closed()));
    assert!(why.contains("revoked"), "a living connection ends with its authority: {why}");

    let shown = ca(&stage, &["show"]);
    assert_eq!(shown["authorities"].as_array().unwrap().len(), 1);
    assert_eq!(shown["authorities"][0]["agents"], 1);
    assert_eq!(shown["revoked"][0][0], old.as_str());
    let last = runtime.block_on(next(&mut stream, |it| roots(it).len() == 1));
    assert!(!trusts(&last, &leaf(&first)));
    until(
        MOST,
        || Credentials::load(&stage.dir().join("agent")).unwrap().bundle.len(),
        |it| *it == 1,
    );
    let kept = Credentials::load(&stage.dir().join("agent")).unwrap();
    asks(&kept).expect("the agent's own identity goes on");
    // Whoever has the old certificate and its key, and knows the new root, is refused.
    stolen.bundle = kept.bundle.clone();
    let refused = asks(&stolen).unwrap_err();
    assert!(refused.is_denied(), "{refused}");
    let fresh = runtime.block_on(soon(client.fetch_x509_context())).unwrap();
    holds_together(&fresh);
}

#[test]
fn an_agent_that_was_away_comes_over_by_the_root_that_it_knows() {
    let mut stage = stage();
    let dir = stage.dir().join("agent");
    stage.stop("agent");
    ca(&stage, &["prepare"]);
    ca(&stage, &["activate", "--force"]);
    let away = Credentials::load(&dir).unwrap();
    assert_eq!(away.bundle.len(), 1, "it knows the old root only");
    stage.start_agent().unwrap();
    until(MOST, || Credentials::load(&dir).unwrap().bundle.len(), |it| *it == 2);
    acknowledged(&stage);
    // The broker is restarted below it, and knows of no acknowledgement until it is told again.
    killed(&mut stage);
    acknowledged(&stage);
}

/// Kills the broker as hard as can be, and starts it again.
fn killed(stage: &mut Stage) {
    let pid = i32::try_from(stage.pid("broker").unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    stage.stop("broker");
    stage.start_broker().unwrap();
}

fn token(stage: &Stage, name: &str) -> String {
    let made = stage.operator_must(&["operator", "add", name], None).unwrap();
    made.json()["token"].as_str().unwrap().to_owned()
}

fn logs_in(stage: &Stage, token: &str, dir: &Path) -> i32 {
    let dir = dir.display().to_string();
    stage.run(&["login", "-", "--identity", &dir], Some(token.as_bytes())).unwrap().code
}

#[test]
fn a_kill_changes_no_state_and_a_restored_store_revives_nothing() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    let (ann, bob) = (token(&stage, "ann"), token(&stage, "bob"));
    let old = of(&ca(&stage, &["show"]), "active").remove(0);
    for step in [&["prepare"][..], &["activate", "--force"], &["taint", &old]] {
        let stands = ca(&stage, step);
        killed(&mut stage);
        assert_eq!(states(&ca(&stage, &["show"])), states(&stands), "{step:?}");
    }
    // A directory and a token that know the old root only are served until it is revoked.
    let dir = stage.dir().join("ann");
    assert_eq!(logs_in(&stage, &ann, &dir), 0);
    assert_eq!(Credentials::load(&dir).unwrap().bundle.len(), 2);

    stage.stop("broker");
    let (store, copy) = (stage.broker_dir().join("store.redb"), stage.dir().join("before.redb"));
    std::fs::copy(&store, &copy).unwrap();
    stage.start_broker().unwrap();
    let ended = ca(&stage, &["revoke", &old, "--force"]);
    assert_eq!(states(&ended).len(), 1);
    killed(&mut stage);
    assert_eq!(states(&ca(&stage, &["show"])), states(&ended));
    assert_ne!(logs_in(&stage, &bob, &stage.dir().join("bob")), 0, "its root is trusted no more");

    stage.stop("broker");
    std::fs::copy(&copy, &store).unwrap();
    stage.start_broker().unwrap();
    assert_eq!(states(&ca(&stage, &["show"])), states(&ended), "the log knows better");
}
