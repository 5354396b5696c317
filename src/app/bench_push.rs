//! `doorward bench push`: how fast a worse verdict closes what stood on the better one.
//!
//! The broker is a process of its own. Devices and workloads live in this one, each with a QUIC
//! connection and a socket of its own; each workload has read a secret under a profile. The time runs
//! from the moment at which the worse evidence is signed on the device, so that its way to the broker,
//! its verification and its record are in it, to the moment at which the client sees its connection
//! closed.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{FuturesUnordered, StreamExt as _, iter};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::bench::{at, lift_rates, round};
use super::stage::{DOMAIN, Stage};
use crate::agent::{DeviceKey, WorkloadKey};
use crate::authority::JoinToken;
use crate::model::limits::CONNECTIONS_PER_CALLER;
use crate::model::{
    Answer, Ask, Clock, DeviceClass, EntryDraft, SecretName, SecretValue, Selector, SystemClock,
    TrustDomain, WorkloadFacts,
};
use crate::posture::{EvidenceKey, FactName, FactValue, Facts};
use crate::wire::{self, Client, Credentials};

const SECRET: &str = "bench/value";
/// Handshakes under way at once.
const AT_ONCE: usize = 16;
/// Connections that are opened on one report: their profile has a minute.
const FRESH_FOR: usize = 500;
/// A connection that is not closed by then never is.
const LATEST: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Push {
    /// Connections of one device that one verdict closes.
    pub connections: usize,
    /// Devices with one connection each, whose verdicts get worse one after the other.
    pub changes: usize,
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// Measures both; `told` gets one JSON object a line.
///
/// # Errors
/// In words.
pub fn bench_push(push: Push, told: &dyn Fn(&Value)) -> Result<(), String> {
    super::process::raise_files();
    let mut stage = Stage::new(None)?;
    lift_rates(&mut stage)?;
    let policy = stage.broker_dir().join("policies/policy.csv");
    let mut rows = std::fs::read_to_string(&policy).map_err(words)?;
    rows.push_str(&format!(
        "\np, bench-reads, spiffe://{DOMAIN}/bench/*, secret/bench/**, read, hardened, -, -, allow\n"
    ));
    std::fs::write(&policy, rows).map_err(words)?;
    let dir = stage.broker_dir().join("policies").display().to_string();
    stage.operator_must(&["policy", "activate", &dir], None)?;
    stage.operator_must(&["put", SECRET], Some(b"value"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(words)?;
    runtime.block_on(async {
        let own = Credentials::load(&stage.operator_dir()).map_err(words)?;
        let operator = Client::connect(&own, clock()).await.map_err(words)?;
        told(&one_by_one(&operator, push.changes).await?);
        told(&all_at_once(&operator, push.connections).await?);
        operator.finish().await;
        Ok(())
    })
}

/// A device with its agent's connection.
struct Device {
    key: DeviceKey,
    client: Client,
    broker: String,
    session: EvidenceKey,
    seq: Cell<u64>,
}

fn class() -> Result<DeviceClass, String> {
    DeviceClass::parse("server").map_err(words)
}

fn certificates(texts: &[String]) -> Result<Vec<CertificateDer<'static>>, String> {
    texts.iter().map(|text| STANDARD.decode(text).map(Into::into).map_err(words)).collect()
}

impl Device {
    async fn enrol(operator: &Client) -> Result<Self, String> {
        let ask = Ask::TokenCreate { class: class()?, ttl_s: 3600 };
        let (_, made) = operator.ask(ask, SecretValue::empty()).await.map_err(words)?;
        let text = std::str::from_utf8(made.body.expose()).map_err(words)?;
        let token = JoinToken::parse(text).map_err(words)?;
        let key = DeviceKey::generate().map_err(words)?;
        let (chain, own) = key.self_signed().map_err(words)?;
        let (place, roots, secret) = (&token.enrolment, &[token.root], token.secret);
        let enrolled =
            wire::enroll(place, &token.domain, roots, chain, own, "bench", secret, clock());
        let enrolled = enrolled.await.map_err(words)?;
        let credentials = Credentials {
            domain: token.domain,
            broker: token.broker,
            chain: enrolled.chain,
            key: key.private(),
            bundle: enrolled.bundle,
        };
        let client = Client::connect(&credentials, clock()).await.map_err(words)?;
        let broker = credentials.broker.clone();
        let session = EvidenceKey::generate().map_err(words)?;
        Ok(Self { key, client, broker, session, seq: Cell::new(0) })
    }

    /// Reports; gives the moment at which the evidence was signed.
    async fn report(&self, listens: bool) -> Result<Instant, String> {
        let mut facts = Facts::default();
        let said = facts.state(FactName::NET_LISTEN_ANY, Ok(FactValue::Bool(listens)));
        said.map_err(words)?;
        self.seq.set(self.seq.get() + 1);
        let broker = format!("spiffe://{DOMAIN}/doorward/broker");
        let mut signed_at = Instant::now();
        let sign = |nonce: &[u8; 32], exporter: &[u8; 32]| {
            let endorse = |message: &[u8]| self.key.sign_asn1(message).unwrap_or_default();
            let (id, spki, now) = (self.key.id(), self.key.spki(), SystemClock.now());
            let (seq, boot) = (self.seq.get(), "0-a");
            let signed = self
                .session
                .sign(id, &broker, nonce, exporter, spki, &facts, boot, seq, now, endorse);
            signed_at = Instant::now();
            signed.0.to_vec()
        };
        self.client.report(facts.digest(), sign).await.map_err(words)?;
        Ok(signed_at)
    }

    /// A workload of this device with a fresh SVID.
    async fn workload(&self, operator: &Client, number: usize) -> Result<Credentials, String> {
        let domain = TrustDomain::parse(DOMAIN).map_err(words)?;
        let spiffe_id = domain.id(&format!("/bench/w{number}")).map_err(words)?;
        let (uid, path) = (4242, format!("/usr/bin/app{number}"));
        let entry = EntryDraft {
            spiffe_id: spiffe_id.clone(),
            class: class()?,
            device: Some(self.key.id()),
            selectors: vec![Selector::Uid(uid), Selector::Path(path.clone())],
            ttl_s: None,
            default: false,
            hint: None,
            jwt_alg: Default::default(),
            federates_with: Vec::new(),
        };
        let made = operator.ask(Ask::EntryCreate { entry }, SecretValue::empty()).await;
        let Answer::Entries { items, .. } = made.map_err(words)?.1.answer else {
            return Err("no entry".to_owned());
        };
        let entry = items.first().ok_or("no entry")?.id;
        let key = WorkloadKey::generate().map_err(words)?;
        #[rustfmt::skip]
        let workload = WorkloadFacts {
            pid: 1, start_ticks: 1, uid, gid: uid, path: Some(path), exe_sha256: None, unit: None,
            pod_uid: None, container_id: None, image_digest: None, pinned: true,
        };
        let public_key = STANDARD.encode(key.spki());
        let ask = Ask::Issue { entry, spiffe_id, public_key, workload, agent_held: true };
        let (_, given) = self.client.ask(ask, SecretValue::empty()).await.map_err(words)?;
        let Answer::Certificate { chain, bundle, .. } = given.answer else {
            return Err("no SVID".to_owned());
        };
        let (chain, bundle) = (certificates(&chain)?, certificates(&bundle)?);
        let (broker, key) = (self.broker.clone(), key.private());
        Ok(Credentials { domain, broker, chain, key, bundle })
    }
}

/// A connection on which the secret was released.
async fn reader(credentials: &Credentials) -> Result<Client, String> {
    let client = Client::connect(credentials, clock()).await.map_err(words)?;
    let name = SecretName::parse(SECRET).map_err(words)?;
    let ask = Ask::Read { name, version: None, have: None };
    client.ask(ask, SecretValue::empty()).await.map_err(words)?;
    Ok(client)
}

/// When the connection is seen to have been closed for this reason.
async fn closed(client: &Client) -> Result<Instant, String> {
    let why = tokio::time::timeout(LATEST, client.closed()).await;
    let why = why.map_err(|_| "a connection was not closed".to_owned())?;
    match why.contains("posture") {
        true => Ok(Instant::now()),
        false => Err(format!("a connection ended otherwise: {why}")),
    }
}

fn ms(nanos: f64) -> f64 {
    round(nanos / 1e3)
}

async fn one_by_one(operator: &Client, changes: usize) -> Result<Value, String> {
    let mut times = Vec::new();
    for number in 0..changes {
        let device = Device::enrol(operator).await?;
        device.report(false).await?;
        let own = device.workload(operator, number).await?;
        let client = reader(&own).await?;
        let (reported, ended) = tokio::join!(device.report(true), closed(&client));
        times.push(nanos(reported?, ended?));
        device.client.finish().await;
    }
    times.sort_unstable();
    Ok(json!({
        "shape": "posture_close", "changes": changes,
        "p50_ms": ms(at(&times, 0.5)), "p99_ms": ms(at(&times, 0.99)),
        "most_ms": ms(at(&times, 1.0)),
    }))
}

async fn all_at_once(operator: &Client, connections: usize) -> Result<Value, String> {
    let device = Device::enrol(operator).await?;
    let mut identities = Vec::new();
    for number in 0..connections.div_ceil(CONNECTIONS_PER_CALLER) {
        identities.push(device.workload(operator, 1_000_000 + number).await?);
    }
    let shares: Vec<&Credentials> =
        (0..connections).filter_map(|n| identities.get(n / CONNECTIONS_PER_CALLER)).collect();
    let mut clients = Vec::new();
    for some in shares.chunks(FRESH_FOR) {
        device.report(false).await?;
        let opened = iter(some.iter().copied()).map(reader).buffer_unordered(AT_ONCE);
        let opened: Vec<_> = opened.collect().await;
        clients.extend(opened.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    let mut ends: FuturesUnordered<_> = clients.iter().map(closed).collect();
    let ending = async {
        let mut all = Vec::new();
        while let Some(ended) = ends.next().await {
            all.push(ended?);
        }
        Ok::<_, String>(all)
    };
    let (reported, ended) = tokio::join!(device.report(true), ending);
    let (reported, ended) = (reported?, ended?);
    let mut times: Vec<u64> = ended.into_iter().map(|ended| nanos(reported, ended)).collect();
    times.sort_unstable();
    Ok(json!({
        "shape": "posture_close_all", "connections": times.len(),
        "first_ms": ms(at(&times, 0.0)), "p50_ms": ms(at(&times, 0.5)),
        "last_ms": ms(at(&times, 1.0)),
    }))
}

fn nanos(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}
