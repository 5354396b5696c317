//! `doorward bench identity`: SVIDs issued a second, and how fast a change of an entry reaches the one
//! agent that needs it, with a whole fleet connected to one broker.
//!
//! The broker is a process of its own. The fleet lives in this one: devices enrolled in the ordinary
//! way, each with a QUIC connection and a socket of its own, that read their list once and then wait for
//! changes, as agents do. They attest nothing and report nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use futures_util::stream::{StreamExt as _, iter};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::bench::{at, cpu_seconds, lift_rates, round};
use super::stage::{DOMAIN, Stage};
use super::supervise::Supervisor;
use crate::agent::{DeviceKey, WorkloadKey};
use crate::authority::JoinToken;
use crate::model::{
    Answer, Ask, Clock, DeviceClass, DeviceId, DutyChanges, Entry, EntryDraft, SecretValue,
    Selector, Since, SystemClock, TrustDomain, WorkloadFacts,
};
use crate::wire::{self, Client, Credentials};

/// Devices that enrol at once, and entries that are made at once.
const AT_ONCE: usize = 16;
/// Connections that have SVIDs issued, and requests in flight on each.
const ISSUING: (usize, usize) = (16, 4);
/// A change that has not come by then never does.
const LATEST: Duration = Duration::from_secs(30);
/// Whom the entries are for.
const UID: u32 = 4242;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Agents, each with a connection.
    pub agents: usize,
    /// Entries, dealt out to the agents.
    pub entries: usize,
    /// Entries made, and taken away again, one after the other.
    pub changes: usize,
    /// Length of one run of issuing, and how many; the median counts.
    pub run: Duration,
    /// See `run`.
    pub rounds: usize,
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
pub fn bench_identity(fleet: Fleet, told: &dyn Fn(&Value)) -> Result<(), String> {
    super::process::raise_files();
    let fleet = Fleet { agents: fleet.agents.max(1), ..fleet };
    let mut stage = Stage::new(None)?;
    lift_rates(&mut stage)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(words)?;
    let idle = rss_mib(stage.pid("broker")?)?;
    let (mut devices, mut entries) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let operator = operator(&stage).await?;
        devices = enrol(&operator, fleet.agents).await?;
        entries = fill(&operator, &devices, fleet.entries.max(fleet.agents)).await?;
        operator.finish().await;
        Ok::<_, String>(())
    })?;
    let filled = rss_mib(stage.pid("broker")?)?;
    stage.stop("broker");
    let began = Instant::now();
    stage.start_broker()?;
    let start_ms = began.elapsed().as_millis();
    told(&runtime.block_on(issue(&stage, fleet, &devices, &entries))?);
    let mut line = runtime.block_on(propagate(&stage, fleet, devices))?;
    if let Some(line) = line.as_object_mut() {
        line.insert("idle_rss_mib".to_owned(), json!(round(idle)));
        line.insert("entries_rss_mib".to_owned(), json!(round(filled)));
        line.insert("start_ms".to_owned(), json!(start_ms));
    }
    told(&line);
    Ok(())
}

async fn operator(stage: &Stage) -> Result<Client, String> {
    let own = Credentials::load(&stage.operator_dir()).map_err(words)?;
    Client::connect(&own, clock()).await.map_err(words)
}

/// One device of the fleet.
struct Device {
    id: DeviceId,
    credentials: Credentials,
}

fn class() -> Result<DeviceClass, String> {
    DeviceClass::parse("server").map_err(words)
}

async fn enrol(operator: &Client, count: usize) -> Result<Vec<Device>, String> {
    let one = async |_| {
        let ask = Ask::TokenCreate { class: class()?, ttl_s: 3600 };
        let (_, made) = operator.ask(ask, SecretValue::empty()).await.map_err(words)?;
        let text = std::str::from_utf8(made.body.expose()).map_err(words)?;
        let token = JoinToken::parse(text).map_err(words)?;
        let device = DeviceKey::generate().map_err(words)?;
        let (chain, key) = device.self_signed().map_err(words)?;
        let (place, roots, secret) = (&token.enrolment, &[token.root], token.secret);
        let enrolled =
            wire::enroll(place, &token.domain, roots, chain, key, "fleet", secret, clock());
        let enrolled = enrolled.await.map_err(words)?;
        let credentials = Credentials {
            domain: token.domain,
            broker: token.broker,
            chain: enrolled.chain,
            key: device.private(),
            bundle: enrolled.bundle,
        };
        Ok::<_, String>(Device { id: device.id(), credentials })
    };
    let all: Vec<_> = iter(0..count).map(one).buffer_unordered(AT_ONCE).collect().await;
    all.into_iter().collect()
}

fn draft(device: &Device, number: usize) -> Result<EntryDraft, String> {
    let domain = TrustDomain::parse(DOMAIN).map_err(words)?;
    let path = format!("/usr/bin/app{number}");
    Ok(EntryDraft {
        spiffe_id: domain.id(&format!("/fleet/w{number}")).map_err(words)?,
        class: class()?,
        device: Some(device.id),
        selectors: vec![Selector::Uid(UID), Selector::Path(path)],
        ttl_s: None,
        default: false,
        jwt_alg: Default::default(),
        federates_with: Vec::new(),
        hint: None,
    })
}

async fn create(operator: &Client, entry: EntryDraft) -> Result<Entry, String> {
    let ask = Ask::EntryCreate { entry };
    let (_, made) = operator.ask(ask, SecretValue::empty()).await.map_err(words)?;
    match made.answer {
        Answer::Entries { mut items, .. } if items.len() == 1 => Ok(items.remove(0)),
        _ => Err("the broker answered with something else than an entry".to_owned()),
    }
}

async fn fill(operator: &Client, devices: &[Device], count: usize) -> Result<Vec<Entry>, String> {
    let drafts = devices.iter().cycle().enumerate().map(|(n, device)| draft(device, n));
    let one = async |draft: Result<EntryDraft, String>| create(operator, draft?).await;
    let made = iter(drafts.take(count)).map(one).buffered(AT_ONCE);
    let all: Vec<_> = made.collect().await;
    all.into_iter().collect()
}

/// SVIDs by entries of several agents, each over a key of its own, recorded like all others.
async fn issue(
    stage: &Stage,
    fleet: Fleet,
    devices: &[Device],
    entries: &[Entry],
) -> Result<Value, String> {
    let pid = stage.pid("broker")?;
    let mut clients = Vec::new();
    // The entries are dealt out in the order of the devices.
    for (device, entry) in devices.iter().zip(entries).take(ISSUING.0) {
        let client = Client::connect(&device.credentials, clock()).await.map_err(words)?;
        client.ask(Ask::Whoami {}, SecretValue::empty()).await.map_err(words)?;
        clients.push((client, entry));
    }
    let mut runs = Vec::new();
    for _ in 0..fleet.rounds {
        let (began, cpu) = (Instant::now(), cpu_seconds(pid)?);
        let workers = clients.iter().flat_map(|it| std::iter::repeat_n(it, ISSUING.1));
        let all =
            join_all(workers.map(|(client, entry)| keep_issuing(client, entry, began, fleet)));
        let all: Result<Vec<_>, _> = all.await.into_iter().collect();
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu);
        let mut times: Vec<u64> = all?.into_iter().flatten().collect();
        times.sort_unstable();
        let count = f64::from(u32::try_from(times.len()).unwrap_or(u32::MAX).max(1));
        runs.push((count / took, cpu * 1e6 / count, at(&times, 0.5), at(&times, 0.99)));
    }
    for (client, _) in &clients {
        client.close();
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (rps, cpu_us, p50, p99) = runs.get(runs.len() / 2).copied().unwrap_or_default();
    let bare = bare_signing(fleet.run)?;
    Ok(json!({
        "shape": "svid_issue", "rps": rps.round(), "bare_rps": bare.round(),
        "ratio": round(rps / bare), "p50_us": p50.round(), "p99_us": p99.round(),
        "server_cpu_us": round(cpu_us), "bare_cpu_us": round(1e6 / bare),
    }))
}

async fn keep_issuing(
    client: &Client,
    entry: &Entry,
    began: Instant,
    fleet: Fleet,
) -> Result<Vec<u64>, String> {
    let mut times = Vec::new();
    while began.elapsed() < fleet.run {
        let key = WorkloadKey::generate().map_err(words)?;
        let path = entry.draft.selectors.iter().find_map(|selector| match selector {
            Selector::Path(path) => Some(path.clone()),
            _ => None,
        });
        #[rustfmt::skip]
        let workload = WorkloadFacts {
            pid: 1, start_ticks: 1, uid: UID, gid: UID, path, exe_sha256: None, unit: None,
            pod_uid: None, container_id: None, image_digest: None, pinned: true,
        };
        let (entry, spiffe_id) = (entry.id, entry.draft.spiffe_id.clone());
        let public_key = STANDARD.encode(key.spki());
        let ask = Ask::Issue { entry, spiffe_id, public_key, workload, agent_held: true };
        let start = Instant::now();
        let (_, released) = client.ask(ask, SecretValue::empty()).await.map_err(words)?;
        if !matches!(released.answer, Answer::Certificate { .. }) {
            return Err("the broker answered with something else than an SVID".to_owned());
        }
        times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(times)
}

/// Certificates a second of one core that does nothing else than build and sign them.
fn bare_signing(run: Duration) -> Result<f64, String> {
    let device = DeviceKey::generate().map_err(words)?;
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < run {
        device.self_signed().map_err(words)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

/// What an agent of the fleet heard.
struct Heard {
    agent: usize,
    at: Instant,
    /// Entries that are new, and that are gone; none of both when its list is read.
    items: usize,
    gone: usize,
}

/// Reads its list, and then waits for changes until the connection ends.
async fn follow(agent: usize, client: Client, heard: mpsc::Sender<Heard>) -> Result<(), String> {
    let (mut after, mut first) = (None, None);
    let (mut holds, mut since) = loop {
        let ask = Ask::Duties { after, holds: None, since: None };
        let (_, released) = client.ask(ask, SecretValue::empty()).await.map_err(words)?;
        let Answer::Entries { items, more, revision, bundle, start: Some(start), federated } =
            released.answer
        else {
            return Err("no list of entries".to_owned());
        };
        let since = Since { start, bundle, federated, wait: true };
        let begun = *first.get_or_insert((revision, since));
        after = items.last().map(|entry| entry.id);
        if !more {
            break begun;
        }
    };
    let tell = async |items, gone| {
        let _ = heard.send(Heard { agent, at: Instant::now(), items, gone }).await;
    };
    tell(0, 0).await;
    loop {
        let ask = Ask::Duties { after: None, holds: Some(holds), since: Some(since) };
        let (_, released) = client.ask(ask, SecretValue::empty()).await.map_err(words)?;
        let Answer::Changes(DutyChanges { items, gone, revision, bundle, resync: false, .. }) =
            released.answer
        else {
            return Err("no changes".to_owned());
        };
        if !items.is_empty() || !gone.is_empty() {
            tell(items.len(), gone.len()).await;
        }
        holds = revision;
        since.bundle = bundle;
    }
}

/// Makes and ends entries, one after the other, each for one agent of the whole fleet.
async fn propagate(stage: &Stage, fleet: Fleet, devices: Vec<Device>) -> Result<Value, String> {
    let pid = stage.pid("broker")?;
    let (supervisor, operator) = (Supervisor::default(), operator(stage).await?);
    let (spawn, (tell, mut heard)) = (supervisor.spawner(), mpsc::channel(1024));
    for (agent, device) in devices.iter().enumerate() {
        let client = Client::connect(&device.credentials, clock()).await.map_err(words)?;
        let following = follow(agent, client, tell.clone());
        spawn(
            "agent of the fleet",
            Box::pin(async move {
                if let Err(why) = following.await {
                    tracing::warn!(agent, why, "an agent of the fleet ended");
                }
            }),
        );
        next(&mut heard).await?;
    }
    let began = Instant::now();
    while stage.metric("doorward_waits") != Some(fleet.agents as f64) {
        if began.elapsed() > LATEST {
            return Err("not every agent of the fleet waits for changes".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pushes = || stage.metric("doorward_pushes_total").unwrap_or(0.0);
    let (before, first) = (pushes(), fleet.entries.max(fleet.agents));
    let (mut created, mut deleted, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..fleet.changes {
        let agent = change * 7919 % devices.len();
        let device = devices.get(agent).ok_or("no such agent")?;
        let (draft, start) = (draft(device, first + change)?, Instant::now());
        let (entry, came) = tokio::join!(create(&operator, draft), next(&mut heard));
        let (entry, came) = (entry?, came?);
        answered.push(nanos(start, Instant::now()));
        expect(&came, agent, (1, 0))?;
        created.push(nanos(start, came.at));
        let ask = Ask::EntryDelete { spiffe_id: entry.draft.spiffe_id, id: entry.id };
        let start = Instant::now();
        let (done, came) = tokio::join!(operator.ask(ask, SecretValue::empty()), next(&mut heard));
        done.map_err(words)?;
        let came = came?;
        expect(&came, agent, (0, 1))?;
        deleted.push(nanos(start, came.at));
    }
    let (woken, rss) = (pushes() - before, rss_mib(pid)?);
    let ms = |times: &mut Vec<u64>, part| {
        times.sort_unstable();
        round(at(times, part) / 1e3)
    };
    Ok(json!({
        "shape": "propagation", "agents": fleet.agents, "entries": first,
        "changes": 2 * fleet.changes, "woken": woken,
        "create_p50_ms": ms(&mut created, 0.5), "create_p99_ms": ms(&mut created, 0.99),
        "delete_p50_ms": ms(&mut deleted, 0.5), "delete_p99_ms": ms(&mut deleted, 0.99),
        "answered_p50_ms": ms(&mut answered, 0.5), "rss_mib": round(rss),
    }))
}

fn nanos(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

async fn next(heard: &mut mpsc::Receiver<Heard>) -> Result<Heard, String> {
    let came = tokio::time::timeout(LATEST, heard.recv()).await;
    came.ok().flatten().ok_or_else(|| "an agent of the fleet was told nothing".to_owned())
}

fn expect(came: &Heard, agent: usize, change: (usize, usize)) -> Result<(), String> {
    match came.agent == agent && (came.items, came.gone) == change {
        true => Ok(()),
        false => Err(format!("agent {} was told what agent {agent} should be", came.agent)),
    }
}

/// Resident memory of a process, in MiB.
fn rss_mib(pid: u32) -> Result<f64, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(words)?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("");
    let kib = kib.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
    kib.map(|kib| kib / 1024.0).ok_or_else(|| "no resident memory is told".to_owned())
}
