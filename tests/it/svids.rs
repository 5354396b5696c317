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

/// What the Workload API gives this process; asked for until it gives something.
async fn given(stage: &Stage) -> X509Context {
    let endpoint = format!("unix://{}", stage.workload_socket().display());
    let began = Instant::now();
    loop {
        let client = WorkloadApiClient::connect_to(&endpoint).await.unwrap();
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

/// What a fresh connection under these credentials is told.
async fn refused(credentials: &Credentials) -> Option<Reason> {
    let client = Client::connect(credentials, clock()).await.unwrap();
    match whoami(&client).await {
        Err(ClientError::Refused(refusal)) => Some(refusal.reason),
        Ok(()) => None,
        Err(other) => panic!("{other}"),
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
