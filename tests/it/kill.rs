//! kill -9 under a write load. What was acknowledged is there, with its value; every acknowledged
//! request stands in the log as allowed; the log verifies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use doorward::app::Stage;
use doorward::model::{
    Answer, Ask, Code, Released, RequestId, SecretName, SecretPrefix, SecretValue, SystemClock,
};
use doorward::wire::{Client, ClientError, Credentials};
use serde_json::Value;
use tokio::sync::watch;

use super::journey::program;
use super::scene::{add_rows, missing, outside, until};

/// Writers at the same time.
const WRITERS: usize = 4;
/// Versions of one name.
const VERSIONS: u64 = 8;
/// Rounds of load, kill, start.
const ROUNDS: usize = 12;

/// One write that the broker has acknowledged.
#[derive(Debug, Clone)]
struct Written {
    name: SecretName,
    version: u64,
    value: String,
    request: RequestId,
}

type Ledger = Arc<Mutex<Vec<Written>>>;

/// What the writers know of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Down,
    Over,
}

fn block_on<T>(task: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
}

fn connect(dir: &Path) -> impl Future<Output = Result<Client, ClientError>> {
    let credentials = Credentials::load(dir).unwrap();
    async move { Client::connect(&credentials, Arc::new(SystemClock)).await }
}

/// Writes numbered values until it is over, and keeps what was acknowledged.
async fn write(writer: usize, dir: &Path, mut state: watch::Receiver<State>, ledger: Ledger) {
    let mut number = 0;
    loop {
        if *state.wait_for(|state| *state != State::Down).await.unwrap() == State::Over {
            return;
        }
        let client = tokio::select! {
            client = connect(dir) => client,
            _ = state.wait_for(|state| *state != State::Up) => continue,
        };
        let Ok(client) = client else { continue };
        while *state.borrow() == State::Up {
            number += 1;
            let name = format!("load/w{writer}/n{}", number / VERSIONS);
            let name = SecretName::parse(&name).unwrap();
            let value = format!("value {number} of writer {writer}");
            let ask = Ask::Write { name: name.clone(), cas: None, labels: None, staged: false };
            let body = SecretValue::new(value.clone().into_bytes());
            let asking = client.ask(ask, body);
            tokio::pin!(asking);
            let outcome = tokio::select! {
                outcome = &mut asking => outcome,
                _ = state.wait_for(|state| *state != State::Up) => {
                    // What the dead broker has sent lies in our socket still, and it counts.
                    match tokio::time::timeout(Duration::from_millis(20), asking).await {
                        Ok(outcome) => outcome,
                        Err(_) => break,
                    }
                }
            };
            match outcome {
                Ok((request, Released { answer: Answer::Written { version, .. }, .. })) => {
                    ledger.lock().unwrap().push(Written { name, version, value, request });
                }
                Ok(other) => panic!("not an answer to a write: {other:?}"),
                Err(ClientError::Refused(refusal)) => {
                    // A sudden end may be told as such; a refused write is none.
                    let honest = matches!(refusal.code, Code::Unavailable | Code::Limited);
                    assert!(honest, "a write was refused: {refusal:?}");
                }
                Err(_) => break,
            }
        }
    }
}

/// A load that goes on until it is dropped.
struct Load {
    state: watch::Sender<State>,
    ledger: Ledger,
    writers: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(dir: &Path) -> Self {
        let (state, ledger) = (watch::Sender::new(State::Down), Ledger::default());
        let writers = (0..WRITERS)
            .map(|writer| {
                let (dir, state, ledger) = (dir.to_owned(), state.subscribe(), ledger.clone());
                std::thread::spawn(move || block_on(write(writer, &dir, state, ledger)))
            })
            .collect();
        Self { state, ledger, writers }
    }

    fn count(&self) -> usize {
        self.ledger.lock().unwrap().len()
    }

    fn end(mut self) -> Vec<Written> {
        self.state.send_replace(State::Over);
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer fell");
        }
        std::mem::take(&mut *self.ledger.lock().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.state.send_replace(State::Over);
    }
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Something between 20 and 300 ms.
fn moment() -> Duration {
    let mut bytes = [0; 2];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    Duration::from_millis(20 + u64::from(u16::from_ne_bytes(bytes)) % 281)
}

/// Asks until the rate of one caller allows it.
async fn ask(client: &Client, ask: Ask) -> (RequestId, Released) {
    loop {
        match client.ask(ask.clone(), SecretValue::empty()).await {
            Ok(answered) => return answered,
            Err(ClientError::Refused(refusal)) if refusal.code == Code::Limited => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{ask:?}: {error}"),
        }
    }
}

/// Active versions of all names under `load`.
async fn active(client: &Client) -> HashMap<SecretName, u64> {
    let (mut found, mut after) = (HashMap::new(), None);
    loop {
        let list = Ask::List { prefix: SecretPrefix::parse("load").unwrap(), after, from: None };
        let Answer::Names { items, more, .. } = ask(client, list).await.1.answer else {
            panic!("not a list");
        };
        after = items.last().map(|item| item.name.clone());
        found.extend(items.into_iter().filter_map(|item| Some((item.name, item.active?))));
        if !more {
            return found;
        }
    }
}

/// Every acknowledged version is there: no name serves one below it.
fn check_names(dir: &Path, ledger: &[Written]) {
    let found = block_on(async {
        let client = connect(dir).await.unwrap();
        let found = active(&client).await;
        client.finish().await;
        found
    });
    let mut newest: BTreeMap<&SecretName, u64> = BTreeMap::new();
    for written in ledger {
        let version = newest.entry(&written.name).or_default();
        *version = written.version.max(*version);
    }
    for (name, version) in newest {
        let active = found.get(name).copied();
        assert!(active >= Some(version), "{name} was acknowledged as {version}, is {active:?}");
    }
}

/// Every acknowledged value reads back, byte for byte.
async fn check_values(client: &Client, ledger: &[Written]) {
    for written in ledger {
        let read =
            Ask::Read { name: written.name.clone(), version: Some(written.version), have: None };
        let (_, released) = ask(client, read).await;
        assert_eq!(released.body.expose(), written.value.as_bytes(), "{written:?}");
    }
}

/// Every acknowledged request stands in the log as allowed, and nothing says that it was not
/// carried out.
async fn check_log(client: &Client, ledger: &[Written]) {
    let (mut allowed, mut not_released) = (HashSet::new(), HashSet::new());
    let mut from = 0;
    loop {
        let read = Ask::LogRead { from, limit: 10_000, holding: None };
        let (_, released) = ask(client, read).await;
        let Answer::Records { next, size, .. } = released.answer else { panic!("no records") };
        for line in std::str::from_utf8(released.body.expose()).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            let record = &entry["record"];
            let id = record["id"].as_str().unwrap_or_default().to_owned();
            if record["kind"] == "not_released" {
                not_released.insert(id);
            } else if record["kind"] == "decision" && record["dec"]["verdict"] == "allow" {
                allowed.insert(id);
            }
        }
        if next >= size || next <= from {
            break;
        }
        from = next;
    }
    for written in ledger {
        let id = written.request.to_string();
        assert!(allowed.contains(&id), "released and not logged: {written:?}");
        assert!(!not_released.contains(&id), "released and logged as not: {written:?}");
    }
}

/// Reads everything back, stops cleanly, verifies the log with its public key alone.
fn check_all(stage: &mut Stage, ledger: &[Written]) {
    let (dir, rows) = (
        stage.operator_dir(),
        "\n#@ owner=load\np, load-reads, group:operators, secret/load/**, read, any, -, -, allow\n",
    );
    add_rows(stage, rows);
    check_names(&dir, ledger);
    block_on(async {
        let client = connect(&dir).await.unwrap();
        check_values(&client, ledger).await;
        check_log(&client, ledger).await;
        client.finish().await;
    });
    stage.stop("broker");
    let key = std::fs::read_to_string(stage.broker_dir().join("log.vkey")).unwrap();
    let whole = doorward::decision_log::verify_dir(&stage.broker_dir().join("log"), key.trim());
    let whole = whole.unwrap();
    assert_eq!(whole.not_yet_signed, 0, "{whole:?}");
    assert!(whole.size > u64::try_from(ledger.len()).unwrap(), "{whole:?}");
}

/// Lets one caller ask as often as it likes from the next start on.
fn unlimited(stage: &Stage) {
    let file = stage.broker_dir().join("broker.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let more = text.replace("caller_rate = 500", "caller_rate = 100000");
    assert_ne!(text, more);
    std::fs::write(&file, more).unwrap();
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    unlimited(&stage);
    stage.stop("broker");
    stage.start_broker().unwrap();
    let load = Load::start(&stage.operator_dir());
    let mut told = Vec::new();
    for round in 0..ROUNDS {
        let before = load.count();
        load.state.send_replace(State::Up);
        until(Duration::from_secs(20), || load.count(), |count| *count > before);
        std::thread::sleep(moment()); // the moment of the kill, which is what is tried here
        kill(stage.pid("broker").unwrap());
        load.state.send_replace(State::Down);
        stage.stop("broker"); // takes the dead child away
        stage.start_broker().unwrap_or_else(|error| panic!("after kill {round}: {error}"));
        let ledger = load.ledger.lock().unwrap().clone();
        check_names(&stage.operator_dir(), &ledger);
        told.push(ledger.len() - before);
    }
    let ledger = load.end();
    eprintln!("acknowledged by round: {told:?}");
    check_all(&mut stage, &ledger);
}

/// A broker whose `fdatasync` number `when` of any thread kills it.
struct Traced(Child);

impl Traced {
    fn start(strace: &Path, stage: &Stage, ready: &Path, when: u32) -> Self {
        let child = Command::new(strace)
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"])
            .args(["-e", &format!("inject=fdatasync:signal=KILL:when={when}")])
            .arg(program())
            .arg("broker")
            .arg(stage.broker_dir())
            .arg("--ready-file")
            .arg(ready)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // A tracer that dies lets its processes go on, so they go first.
        let tracer = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            if let Ok(pid) = child.parse() {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn acknowledged_writes_survive_a_kill_at_each_sync() {
    let Some(strace) = outside("strace", "strace") else { return };
    let probe = Command::new(&strace).args(["-qq", "-o", "/dev/null", "true"]).status().unwrap();
    if !probe.success() {
        return missing("strace that may trace here (Debian package strace; CAP_SYS_PTRACE)");
    }
    let mut stage = Stage::with_program(program(), None).unwrap();
    unlimited(&stage);
    stage.stop("broker");
    let load = Load::start(&stage.operator_dir());
    let (mut before_ready, mut under_load) = (0, 0);
    for when in [1, 2, 3, 4, 5, 6, 8, 11, 15, 40] {
        let ready = stage.dir().join(format!("traced-{when}.ready"));
        let mut traced = Traced::start(&strace, &stage, &ready, when);
        let begun = until(
            Duration::from_secs(20),
            || (ready.exists(), traced.ended()),
            |(ready, ended)| *ready || *ended,
        );
        if begun.0 {
            load.state.send_replace(State::Up);
            until(Duration::from_secs(20), || traced.ended(), |ended| *ended);
            load.state.send_replace(State::Down);
            under_load += 1;
        } else {
            before_ready += 1;
        }
        drop(traced);
        let began = Instant::now();
        stage.start_broker().unwrap_or_else(|error| panic!("after sync {when}: {error}"));
        assert!(began.elapsed() < Duration::from_secs(20));
        let ledger = load.ledger.lock().unwrap().clone();
        check_names(&stage.operator_dir(), &ledger);
        stage.stop("broker");
    }
    eprintln!("killed before ready: {before_ready}, under load: {under_load}");
    assert!(under_load >= 2, "no kill came under load");
    let ledger = load.end();
    assert!(!ledger.is_empty(), "nothing was acknowledged");
    stage.start_broker().unwrap();
    check_all(&mut stage, &ledger);
}
