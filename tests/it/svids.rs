//! Single SVIDs: revoked by their serial number, and by the end of the process that they were given
//! to. The workloads here ask the broker themselves, with what the Workload API gave them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorward::app::Stage;
use doorward::model::{Ask, Clock, Reason, SecretValue, SystemClock};
use doorward::wire::{Client, ClientError, Credentials};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Context};

use super::journey::program;
use super::scene::register;

/// For an agent to hear of an entry, and for a busy machine.
const MOST: Duration = Duration::from_secs(40);
/// I4: what was revoked is closed within a second; the rest is for a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_millis(2500);

/// Connections live on while this test waits for a command of the operator's.
fn run<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap().block_on(future)
}

fn me() -> std::path::PathBuf {
    std::fs::read_link("/proc/self/exe").unwrap()
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// A broker, an agent, and this test process as the workload `tester`.
fn stage() -> Stage {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    register(&stage, "tester", &me());
    stage
}

fn endpoint(stage: &Stage) -> String {
    format!("unix://{}", stage.workload_socket().display())
}

async fn given(stage: &Stage) -> X509Context {
    given_at(&endpoint(stage)).await
}

/// What the Workload API gives this process; asked for until it gives something.
async fn given_at(endpoint: &str) -> X509Context {
    let began = Instant::now();
    loop {
        let client = WorkloadApiClient::connect_to(endpoint).await.unwrap();
        match client.fetch_x509_context().await {
            Ok(context) => return context,
            Err(why) => assert!(began.elapsed() < MOST, "{why}"),
        }
    }
}

/// The SVID as a client of the broker shows it.
fn credentials(stage: &Stage, chain: Vec<Vec<u8>>, key: Vec<u8>) -> Credentials {
    let mut credentials = Credentials::load(&stage.operator_dir()).unwrap();
    credentials.chain = chain.into_iter().map(Into::into).collect();
    credentials.key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    credentials
}

fn credentials_of(stage: &Stage, context: &X509Context) -> Credentials {
    let svid = &context.svids()[0];
    let chain = svid.cert_chain().iter().map(|one| one.as_bytes().to_vec()).collect();
    credentials(stage, chain, svid.private_key().as_bytes().to_vec())
}

/// As people read it off a certificate: with colons.
fn serial_of(credentials: &Credentials) -> String {
    let (_, leaf) = x509_parser::parse_x509_certificate(&credentials.chain[0]).unwrap();
    leaf.raw_serial_as_string()
}

async fn whoami(client: &Client) -> Result<(), ClientError> {
    client.ask(Ask::Whoami {}, SecretValue::empty()).await.map(|_| ())
}

/// What a fresh connection under these credentials is told; one that a revocation closes before the
/// answer has come is made anew.
async fn refused(credentials: &Credentials) -> Option<Reason> {
    let began = Instant::now();
    loop {
        let told = match Client::connect(credentials, clock()).await {
            Ok(client) => whoami(&client).await,
            Err(closed) => Err(closed),
        };
        match told {
            Err(ClientError::Refused(refusal)) => return Some(refusal.reason),
            Ok(()) => return None,
            Err(ClientError::Closed(_)) if began.elapsed() < MOST => {}
            Err(other) => panic!("{other}"),
        }
    }
}

/// The records of the log that hold a text.
fn told(stage: &Stage, text: &str) -> Vec<Value> {
    let tail = stage.operator_must(&["log", "tail", "-n", "100", "--holding", text], None).unwrap();
    tail.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The log says that the SVID of this serial number is dead: the note that outlives every store.
fn is_noted(stage: &Stage, serial: &str) -> bool {
    let plain = serial.replace(':', "");
    told(stage, &plain).iter().any(|entry| {
        let svids = &entry["record"]["detail"]["svids"];
        entry["record"]["what"] == "epochs" && svids[0]["serial"] == plain.as_str()
    })
}

fn restarted(stage: &mut Stage, before: impl FnOnce(&Path)) {
    stage.stop("broker");
    before(&stage.broker_dir());
    stage.start_broker().unwrap();
}

#[test]
fn one_svid_is_revoked_by_its_serial_number_for_good() {
    let mut stage = stage();
    let (lost, kept) = run(async {
        let (lost, kept) = (given(&stage).await, given(&stage).await);
        (credentials_of(&stage, &lost), credentials_of(&stage, &kept))
    });
    let store = stage.broker_dir().join("store.redb");
    let older = stage.dir().join("older.redb");
    restarted(&mut stage, |dir| {
        std::fs::copy(dir.join("store.redb"), &older).unwrap();
    });
    let serial = serial_of(&lost);
    run(async {
        let connection = Client::connect(&lost, clock()).await.unwrap();
        let other = Client::connect(&kept, clock()).await.unwrap();
        whoami(&connection).await.unwrap();
        whoami(&other).await.unwrap();
        let said = stage.operator_must(&["identity", "revoke", "--serial", &serial], None).unwrap();
        assert!(said.json()["revision"].is_u64(), "{said:?}");
        super::forge::until("closed", CLOSED_WITHIN, || connection.is_closed()).await;
        let why = connection.closed().await;
        assert!(why.contains("revoked"), "{why}");
        assert_eq!(refused(&lost).await, Some(Reason::SvidRevoked));
        whoami(&other).await.unwrap();
        assert_eq!(refused(&kept).await, None, "the identity itself stands");
        assert!(given(&stage).await.svids()[0].spiffe_id().to_string().ends_with("/tester"));
    });
    assert!(is_noted(&stage, &serial), "{:?}", told(&stage, &serial.replace(':', "")));

    let wrong = ["identity", "revoke", "tester", "--serial", "not-hex"];
    assert_eq!(stage.operator(&wrong, None).unwrap().code, 2);
    let unknown = ["identity", "revoke", "--serial", "0102030405"];
    assert_eq!(stage.operator(&unknown, None).unwrap().code, 1);
    let nobody = ["identity", "revoke", "nobody", "--serial", &serial];
    assert_ne!(stage.operator(&nobody, None).unwrap().code, 0);

    restarted(&mut stage, |_| {});
    assert_eq!(run(refused(&lost)), Some(Reason::SvidRevoked), "a restart forgets nothing");
    restarted(&mut stage, |_| {
        std::fs::copy(&older, &store).unwrap();
    });
    assert_eq!(run(refused(&lost)), Some(Reason::SvidRevoked), "nor does an older store");
    assert_eq!(run(refused(&kept)), None);
}

const CHILD: &str = "DOORWARD_TEST_SVIDS_CHILD";

/// The other process of the tests below: asks the Workload API, writes down what it was given, as
/// no honest program would, and then ends or becomes another program, as it is told.
#[test]
fn child_that_is_given_an_svid() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let socket = std::env::var("SPIFFE_ENDPOINT_SOCKET").unwrap();
    let context = run(given_at(&socket));
    let svid = &context.svids()[0];
    let chain: Vec<_> = svid.cert_chain().iter().map(|one| hex::encode(one.as_bytes())).collect();
    let key = hex::encode(svid.private_key().as_bytes());
    let draft = Path::new(&path).with_extension("draft");
    std::fs::write(&draft, serde_json::json!({ "chain": chain, "key": key }).to_string()).unwrap();
    std::fs::rename(&draft, &path).unwrap();
    let mut told = String::new();
    std::io::stdin().read_line(&mut told).unwrap();
    if told.trim() == "become another" {
        use std::os::unix::process::CommandExt as _;
        panic!("{}", std::process::Command::new("sleep").arg("600").exec());
    }
}

/// Such a child, and what it was given.
struct Other(std::process::Child);

impl Other {
    fn start(stage: &Stage, name: &str) -> (Self, Credentials) {
        let path = stage.dir().join(name);
        let child = std::process::Command::new(me())
            .args(["--exact", "svids::child_that_is_given_an_svid"])
            .env(CHILD, &path)
            .env("SPIFFE_ENDPOINT_SOCKET", endpoint(stage))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let child = Self(child);
        let text = super::scene::until(MOST, || std::fs::read(&path).ok(), Option::is_some);
        let told: Value = serde_json::from_slice(&text.unwrap()).unwrap();
        let bytes = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();
        let chain = told["chain"].as_array().unwrap().iter().map(bytes).collect();
        (child, credentials(stage, chain, bytes(&told["key"])))
    }

    fn tell(&mut self, what: &str) {
        use std::io::Write as _;
        self.0.stdin.as_mut().unwrap().write_all(format!("{what}\n").as_bytes()).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_svid_of_a_process_that_ends_or_becomes_another_is_dead_wherever_its_key_went() {
    let stage = stage();
    run(async {
        let own = credentials_of(&stage, &given(&stage).await);
        for what in ["end", "become another"] {
            let (mut child, copied) = Other::start(&stage, what);
            let connection = Client::connect(&copied, clock()).await.unwrap();
            whoami(&connection).await.unwrap();
            child.tell(what);
            super::forge::until(what, CLOSED_WITHIN, || connection.is_closed()).await;
            let why = connection.closed().await;
            assert!(why.contains("revoked"), "{what}: {why}");
            assert_eq!(refused(&copied).await, Some(Reason::SvidRevoked), "{what}");
            assert!(is_noted(&stage, &serial_of(&copied)), "{what}");
        }
        assert_eq!(refused(&own).await, None, "whoever lives on stays");
    });
    let asked = told(&stage, "retract");
    let by_agent = |entry: &Value| {
        let record = &entry["record"];
        record["req"]["op"] == "retract"
            && record["dec"]["verdict"] == "allow"
            && record["sub"]["spiffe"].as_str().unwrap().contains("/doorward/agent/")
    };
    assert_eq!(asked.iter().filter(|entry| by_agent(entry)).count(), 2, "{asked:?}");
}

#[test]
fn what_ended_while_the_broker_was_away_is_retracted_when_it_is_back() {
    let mut stage = stage();
    let (mut child, copied) = Other::start(&stage, "child");
    assert_eq!(run(refused(&copied)), None, "the positive control");
    restarted(&mut stage, |_| {
        child.tell("end");
        child.0.wait().unwrap();
    });
    let look = || run(refused(&copied));
    super::scene::until(MOST, look, |told| *told == Some(Reason::SvidRevoked));
}

#[test]
fn a_revocation_names_the_agents_that_have_not_heard_of_it() {
    let stage = stage();
    let device = stage.device().unwrap()["id"].as_str().unwrap().to_owned();
    let told = stage.operator_must(&["identity", "revoke", "tester"], None).unwrap().json();
    assert_eq!(
        (&told["pending_count"], &told["pending"][0]["device"]),
        (&1.into(), &device.into())
    );
    let revision = told["revision"].as_u64().unwrap();
    // The agent asks for its entries by itself, and then says that it holds them.
    let holds = || stage.device().unwrap()["holds"].as_u64();
    super::scene::until(MOST, holds, |holds| holds.is_some_and(|holds| holds >= revision));
    let resumed = stage.operator_must(&["identity", "revoke", "tester", "--resume"], None).unwrap();
    assert!(resumed.json().get("pending").is_none(), "{resumed:?}");
}
