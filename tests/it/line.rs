//! The invariants of the line, held against time, revocation, full disks and failing ones.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorward::app::{
    self, BrokerConfig, BrokerStart, KeyFile, Layout, RunningBroker, Stage, Wishes,
};
use doorward::broker::Ready;
use doorward::identity::Peer;
use doorward::model::{Ask, Clock, ManualClock, Reason, SecretPrefix, SecretValue, SystemClock};
use doorward::policy::BundleFiles;
use doorward::wire::{Client, ClientError, CloseCode, Credentials};
use rcgen::KeyPair;
use serde_json::Value;

use super::forge::{Draft, End, Signer, address_of, domain, extension_of, has, reason, run, until};
use super::journey::program;

const WHOAMI: &str = r#"{"whoami":{}}"#;
/// I4: what ended is closed within a second; the rest is for a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_millis(2500);

/// A broker in this very process, with a clock that is moved by hand, and its operator.
pub struct House {
    pub broker: RunningBroker,
    pub clock: Arc<ManualClock>,
    pub operator: Credentials,
    pub dir: tempfile::TempDir,
}

impl House {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(SystemClock.now().wall()));
        let udp = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap()
        };
        let (listen, enrolment) = (udp(), udp());
        let config = BrokerConfig {
            trust_domain: domain(),
            listen,
            enrolment,
            management: "127.0.0.1:0".parse().unwrap(),
            advertise: listen.to_string(),
            advertise_enrolment: enrolment.to_string(),
            oidc_issuer: None,
            seal: app::SealConfig::KeyFile("seal.key".into()),
            caller_rate: 500,
            denial_rate: 20,
            threads: Some(2),
            methods: app::EnrolmentConfig::default(),
            federation: app::FederationConfig::default(),
            upstream: None,
        };
        let wishes = Wishes { config, operator: "you".to_owned() };
        let place = dir.path().join("broker");
        let timed = || Arc::clone(&clock) as Arc<dyn Clock>;
        let made = app::init(&place, &wishes, None, timed()).await.unwrap();
        let layout = Layout::new(&place);
        let provider = Box::new(KeyFile(layout.seal_key()));
        let start = BrokerStart { layout, config: wishes.config, provider, clock: timed() };
        let broker = start.start().await.unwrap();
        let home = dir.path().join("operator");
        let token = String::from_utf8(made.operator_token.expose().to_vec()).unwrap();
        app::login(&token, &home, false, timed()).await.unwrap();
        let operator = Credentials::load(&home).unwrap();
        Self { broker, clock, operator, dir }
    }

    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.operator, self.clock()).await.unwrap()
    }

    /// Asks as the operator, past every connection: no timer of a transport has a say in it.
    async fn ask(&self, ask: Ask) -> Result<(), Reason> {
        self.ask_as(&self.peer(&self.operator), ask).await
    }

    /// Who shows these, as the broker sees it.
    pub fn peer(&self, credentials: &Credentials) -> Peer {
        let parts = self.broker.line().parts();
        parts.identity.peer(&credentials.chain, parts.clock.now()).unwrap()
    }

    pub async fn ask_as(&self, peer: &Peer, ask: Ask) -> Result<(), Reason> {
        let (_, outcome) =
            self.broker.line().answer(peer, None, None, ask.into(), &mut Ready(None)).await;
        outcome.map(|_| ()).map_err(|refusal| refusal.reason)
    }
}

fn list() -> Ask {
    Ask::List { prefix: SecretPrefix::parse("shop").unwrap(), after: None, from: None }
}

fn refused(outcome: Result<impl Sized, ClientError>) -> Option<Reason> {
    match outcome {
        Err(ClientError::Refused(refusal)) => Some(refusal.reason),
        _ => None,
    }
}

#[test]
fn a_connection_that_outlives_its_certificate_is_denied_and_closed() {
    run(async {
        let house = House::new().await;
        let client = house.client().await;
        client.ask(Ask::Whoami {}, SecretValue::empty()).await.unwrap();
        let peer = house.peer(&house.operator);
        assert_eq!(house.ask_as(&peer, Ask::Whoami {}).await, Ok(()));
        // As after a long suspend: both clocks went on, no timer of this process did.
        house.clock.advance(Duration::from_secs(12 * 3600 + 60));
        assert_eq!(house.ask_as(&peer, Ask::Whoami {}).await, Err(Reason::IdentityExpired));
        let outcome = client.ask(Ask::Whoami {}, SecretValue::empty()).await;
        match outcome {
            Err(ClientError::Refused(refusal)) => {
                assert_eq!(refusal.reason, Reason::IdentityExpired);
            }
            Err(ClientError::Closed(CloseCode::Expired)) => {}
            other => panic!("{other:?}"),
        }
        until("the connection is closed", CLOSED_WITHIN, || client.is_closed()).await;
        assert!(client.closed().await.contains("expired"), "{}", client.closed().await);
        assert!(Client::connect(&house.operator, house.clock()).await.is_err(), "nor a new one");
    });
}

#[test]
fn a_short_certificate_ends_its_connection_by_itself() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    let ca = Signer::of_broker(&stage.broker_dir(), &operator.bundle[0]);
    run(async {
        let mut draft = Draft::leaf("spiffe://dev.doorward/doorward/operator/you");
        draft.more.push(extension_of(&operator.chain[0]));
        // Certificates count whole seconds.
        let ends = SystemClock.now().unix_s() + 4;
        draft.not_after = time::OffsetDateTime::from_unix_timestamp(ends).unwrap();
        let key = KeyPair::generate().unwrap();
        let end = End::of(vec![draft.signed_by(&ca, &key)], &key);
        let conversation = end.knock(address_of(&operator)).await.unwrap();
        let mut answers = 0;
        // It asks all the time: being busy keeps nobody alive.
        let last = loop {
            let before = SystemClock.now();
            let reply = conversation.ask(WHOAMI).await;
            match reason(&reply).as_str() {
                "D301" => assert!(SystemClock.now().wall() > draft.not_after, "too early"),
                text if text.starts_with("Answer") => {
                    assert!(before.wall() <= draft.not_after, "answered after its end");
                    answers += 1;
                }
                _ => break reply,
            }
            assert!(before.unix_s() < ends + 4, "still served: {reply:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(answers > 10, "{answers} answers before the end");
        let late = SystemClock.now().wall() - draft.not_after;
        assert!(late < time::Duration::try_from(CLOSED_WITHIN).unwrap(), "{late} {last:?}");
        let closed = conversation.connection.closed().await;
        assert!(closed.to_string().contains("expired"), "{closed}");
    });
}

#[test]
fn a_revoked_operator_is_denied_and_closed() {
    run(async {
        let house = House::new().await;
        let added = Ask::OperatorAdd { name: "second".to_owned() };
        let client = house.client().await;
        let (_, released) = client.ask(added, SecretValue::empty()).await.unwrap();
        let token = String::from_utf8(released.body.expose().to_vec()).unwrap();
        let home = house.dir.path().join("second");
        app::login(&token, &home, false, house.clock()).await.unwrap();
        let second = Credentials::load(&home).unwrap();
        let connection = Client::connect(&second, house.clock()).await.unwrap();
        connection.ask(list(), SecretValue::empty()).await.unwrap();
        let peer = house.peer(&second);
        assert_eq!(house.ask_as(&peer, list()).await, Ok(()));
        let remove = Ask::OperatorRemove { name: "second".to_owned() };
        client.ask(remove, SecretValue::empty()).await.unwrap();
        let acknowledged = Instant::now();
        let denied = house.ask_as(&peer, list()).await.unwrap_err();
        assert!(matches!(denied, Reason::Revoked | Reason::IdentityUnknown), "{denied:?}");
        until("the connection is closed", CLOSED_WITHIN, || connection.is_closed()).await;
        assert!(acknowledged.elapsed() < CLOSED_WITHIN);
        assert!(connection.closed().await.contains("revoked"), "{}", connection.closed().await);
        assert!(connection.ask(list(), SecretValue::empty()).await.is_err());
        assert!(!client.is_closed(), "whoever was not revoked stays");
        client.ask(list(), SecretValue::empty()).await.unwrap();
    });
}

#[test]
fn a_policy_that_changed_counts_from_the_next_request_on() {
    run(async {
        let house = House::new().await;
        let client = house.client().await;
        client.ask(list(), SecretValue::empty()).await.unwrap();
        let mut files = BundleFiles::defaults(&domain());
        let text = files.files.get_mut("policy.csv").unwrap();
        let without: Vec<&str> = text.lines().filter(|l| !l.contains("ops-secret-list")).collect();
        assert_eq!(without.len() + 1, text.lines().count());
        *text = format!("{}\n", without.join("\n"));
        files.files.retain(|name, _| !name.starts_with("tests/"));
        let body = SecretValue::new(files.to_json());
        client.ask(Ask::PolicyActivate {}, body).await.unwrap();
        let outcome = client.ask(list(), SecretValue::empty()).await;
        assert_eq!(refused(outcome), Some(Reason::NoAllow));
        client.ask(Ask::PolicyRollback {}, SecretValue::empty()).await.unwrap();
        client.ask(list(), SecretValue::empty()).await.unwrap();
        // A bundle with a fault changes nothing.
        let mut faulty = BundleFiles::defaults(&domain());
        faulty.files.get_mut("policy.csv").unwrap().push_str("p, x, y\n");
        let outcome = client.ask(Ask::PolicyActivate {}, SecretValue::new(faulty.to_json())).await;
        assert_eq!(refused(outcome), Some(Reason::Invalid));
        client.ask(list(), SecretValue::empty()).await.unwrap();
    });
}

#[test]
fn a_clock_that_is_set_back_revives_nobody_and_a_step_issues_nothing() {
    run(async {
        let house = House::new().await;
        assert_eq!(house.ask(list()).await, Ok(()));
        let peer = house.peer(&house.operator);
        let began = house.clock.now().wall();
        // Back by an hour: who lives is served, but nothing is signed until time has caught up.
        house.clock.set_wall(began - Duration::from_secs(3600));
        let issuing = || house.ask_as(&peer, Ask::Renew {});
        let mut last = Ok(());
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) && last.is_ok() {
            last = issuing().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(last, Err(Reason::ClockStep));
        assert_eq!(house.ask_as(&peer, list()).await, Ok(()));
        let second = Duration::from_secs(1);
        assert!(
            house.broker.line().parts().clock.now().wall() > began - second,
            "the broker's time never goes back"
        );
        // What has ended stays ended.
        house.clock.set_wall(began);
        house.clock.advance(Duration::from_secs(12 * 3600 + 60));
        assert_eq!(house.ask_as(&peer, list()).await, Err(Reason::IdentityExpired));
        house.clock.set_wall(began);
        assert_eq!(house.ask_as(&peer, list()).await, Err(Reason::IdentityExpired));
    });
}

/// A broker's process that nobody else looks after.
struct Process(Child);

impl Process {
    /// `doorward broker` on `dir`; with `before` in front of it.
    fn broker(before: &[&str], dir: &Path, more: &[&str]) -> Self {
        let program = program().display().to_string();
        let dir_text = dir.display().to_string();
        let ready = ready_file(dir).display().to_string();
        let _ = std::fs::remove_file(&ready);
        let mut words: Vec<&str> = before.to_vec();
        words.extend([program.as_str(), "broker", &dir_text, "--ready-file", &ready, "--json"]);
        words.extend(more);
        let errors = std::fs::File::create(dir.with_extension("stderr")).unwrap();
        let child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Its exit code, if it ends in time.
    fn ended(&mut self, within: Duration) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < within {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Under a tracer the broker is its child, and would live on alone.
        let id = self.0.id();
        let path = format!("/proc/{id}/task/{id}/children");
        for child in std::fs::read_to_string(path).unwrap_or_default().split_whitespace() {
            let pid = nix::unistd::Pid::from_raw(child.parse().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ready_file(dir: &Path) -> PathBuf {
    dir.with_extension("ready")
}

/// Starts a broker on `dir` that must not start: its exit code and all that it said.
fn start_fails(dir: &Path, more: &[&str]) -> Result<(i32, String), String> {
    let mut process = Process::broker(&[], dir, more);
    let began = Instant::now();
    let said = || std::fs::read_to_string(dir.with_extension("stderr")).unwrap_or_default();
    while began.elapsed() < Duration::from_secs(20) {
        if let Some(code) = process.ended(Duration::from_millis(20)) {
            return Ok((code, said()));
        }
        if ready_file(dir).exists() {
            return Err("it started".to_owned());
        }
    }
    Err(format!("it hangs:\n{}", said()))
}

/// A copy of a stopped broker's directory; holes stay holes.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status();
    assert!(copied.unwrap().success());
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found.sort();
    found
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

/// A stopped broker with some history, and an older state of the same.
struct Stopped {
    stage: Stage,
    old: PathBuf,
    now: PathBuf,
    root: tempfile::TempDir,
}

impl Stopped {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut stage = Stage::with_program(program(), Some(root.path().join("stage"))).unwrap();
        let put = |stage: &Stage, name: &str| {
            stage.operator_must(&["put", name], Some(b"canary-value")).unwrap();
        };
        put(&stage, "shop/a");
        let added = stage.operator_must(&["operator", "add", "second"], None).unwrap().json();
        let token = added["token"].as_str().unwrap().to_owned();
        let second = root.path().join("second").display().to_string();
        let login = ["login", "-", "--identity", second.as_str()];
        assert_eq!(stage.run(&login, Some(token.as_bytes())).unwrap().code, 0);
        stage.stop("broker");
        let (old, now) = (root.path().join("old"), root.path().join("now"));
        copy(&stage.broker_dir(), &old);
        stage.start_broker().unwrap();
        for n in 0..8 {
            put(&stage, &format!("shop/b{n}"));
        }
        stage.operator_must(&["operator", "remove", "second"], None).unwrap();
        stage.stop("broker");
        copy(&stage.broker_dir(), &now);
        Self { stage, old, now, root }
    }

    /// The directory, broken in one way; nothing of the one before is left.
    fn broken(&self, how: impl FnOnce(&Path)) -> PathBuf {
        let dir = self.root.path().join("broken");
        copy(&self.now, &dir);
        how(&dir);
        dir
    }
}

type Damage = (&'static str, &'static str, Box<dyn Fn(&Path)>);

fn damages(old: &Path) -> Vec<Damage> {
    let mut all: Vec<Damage> = Vec::new();
    let mut add = |name: &'static str, word: &'static str, how: Box<dyn Fn(&Path)>| {
        all.push((name, word, how));
    };
    add(
        "no store",
        "store.redb",
        Box::new(|d| std::fs::remove_file(d.join("store.redb")).unwrap()),
    );
    add("an empty store", "store", Box::new(|d| change(&d.join("store.redb"), Vec::clear)));
    add(
        "half a store",
        "store",
        Box::new(|d| {
            change(&d.join("store.redb"), |bytes| bytes.truncate(bytes.len() / 2));
        }),
    );
    add(
        "a store of nonsense",
        "store",
        Box::new(|d| {
            change(&d.join("store.redb"), |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 0x5a));
        }),
    );
    for file in ["ca.sealed", "log.sealed", "seal.json"] {
        let path = move |d: &Path| d.join(file);
        add(
            "a missing sealed key",
            file,
            Box::new(move |d| {
                std::fs::remove_file(path(d)).unwrap();
            }),
        );
        add(
            "a flipped sealed key",
            file,
            Box::new(move |d| {
                change(&path(d), |bytes| *bytes.last_mut().unwrap() ^= 1);
            }),
        );
        add(
            "a sealed key cut short",
            file,
            Box::new(move |d| {
                change(&path(d), |bytes| bytes.truncate(bytes.len() / 2));
            }),
        );
        add("an empty sealed key", file, Box::new(move |d| change(&path(d), Vec::clear)));
        add("a sealed key open to others", file, Box::new(move |d| loosen(&path(d), 0o644)));
    }
    add("another key file", "key file", Box::new(|d| change(&d.join("seal.key"), |b| b[0] ^= 1)));
    add("no key file", "seal.key", Box::new(|d| std::fs::remove_file(d.join("seal.key")).unwrap()));
    add(
        "a short key file",
        "seal.key",
        Box::new(|d| {
            change(&d.join("seal.key"), |b| b.truncate(31));
        }),
    );
    add("a key file open to others", "seal.key", Box::new(|d| loosen(&d.join("seal.key"), 0o644)));
    add(
        "a store open to others",
        "store.redb",
        Box::new(|d| {
            loosen(&d.join("store.redb"), 0o660);
        }),
    );
    add("keys open to others", "keys", Box::new(|d| loosen(&d.join("keys"), 0o755)));
    add(
        "a flipped checkpoint",
        "checkpoint",
        Box::new(|d| {
            change(&d.join("log/checkpoint"), |b| {
                let at = b.len() / 2;
                b[at] ^= 1;
            });
        }),
    );
    add("a flipped record", "wal/", Box::new(|d| flip(&first_segment(d), 4096 + 200)));
    add("a missing segment", "log", Box::new(|d| std::fs::remove_file(first_segment(d)).unwrap()));
    add(
        "a segment cut short",
        "wal/",
        Box::new(|d| {
            let file = std::fs::File::options().write(true).open(first_segment(d)).unwrap();
            file.set_len(4096).unwrap();
        }),
    );
    add("a flipped segment head", "wal/", Box::new(|d| flip(&first_segment(d), 3)));
    add(
        "a missing tile",
        "tile/",
        Box::new(|d| {
            std::fs::remove_dir_all(d.join("log/tile")).unwrap();
        }),
    );
    add(
        "a stranger among the segments",
        "wal/",
        Box::new(|d| {
            std::fs::write(d.join("log/wal/stranger"), b"x").unwrap();
        }),
    );
    add(
        "a faulty configuration",
        "broker.toml",
        Box::new(|d| {
            change(&d.join("broker.toml"), |b| b.extend(b"\nlisten = 7\n"));
        }),
    );
    let older = old.to_owned();
    add(
        "a log that was rolled back",
        "rolled back",
        Box::new(move |d| {
            copy(&older.join("log"), &d.join("log"));
        }),
    );
    all
}

fn loosen(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn first_segment(dir: &Path) -> PathBuf {
    let found = files(&dir.join("log/wal"));
    found.into_iter().next().unwrap()
}

#[test]
fn a_broker_on_a_damaged_directory_does_not_start_and_says_which_file() {
    let stopped = Stopped::new();
    let mut wrong = Vec::new();
    for (name, word, how) in damages(&stopped.old) {
        let dir = stopped.broken(how);
        match start_fails(&dir, &[]) {
            Ok((0, said)) => wrong.push(format!("{name} ({word}): exit 0\n{said}")),
            Ok((_, said)) if said.contains("panicked") => wrong.push(format!("{name}: {said}")),
            Ok((_, said)) if said.contains("canary-value") => wrong.push(format!("{name}: {said}")),
            Ok((_, said)) if said.contains(word) => {}
            Ok((code, said)) => wrong.push(format!("{name}: {code}, without `{word}`\n{said}")),
            Err(how) => wrong.push(format!("{name} ({word}): {how}")),
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
    // The control: undamaged, the very same copy starts.
    let dir = stopped.broken(|_| {});
    assert_eq!(start_fails(&dir, &[]), Err("it started".to_owned()));
}

#[test]
fn a_port_that_is_taken_is_named() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.stop("broker");
    let config = std::fs::read_to_string(stage.broker_dir().join("broker.toml")).unwrap();
    let config = BrokerConfig::parse("broker.toml", &config).unwrap();
    for address in [config.listen, config.enrolment] {
        let taken = UdpSocket::bind(address).unwrap();
        let (code, said) = start_fails(&stage.broker_dir(), &[]).unwrap();
        assert!(code != 0 && said.contains(&address.to_string()), "{code} {said}");
        drop(taken);
    }
    let taken = std::net::TcpListener::bind(config.management).unwrap();
    let (code, said) = start_fails(&stage.broker_dir(), &[]).unwrap();
    assert!(code != 0 && said.contains(&config.management.to_string()), "{code} {said}");
    drop(taken);
    stage.start_broker().unwrap();
    let (code, said) = start_fails(&stage.broker_dir(), &[]).unwrap();
    assert!(code != 0 && said.contains("another process"), "a second one: {code} {said}");
    stage.operator_must(&["whoami"], None).unwrap();
}

#[test]
fn a_wrong_passphrase_opens_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("broker");
    let word = |text: &str| {
        let path = root.path().join(text);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        loosen(&path, 0o600);
        path.display().to_string()
    };
    let (right, wrong) = (word("correct-horse"), word("battery-staple"));
    let token = root.path().join("token").display().to_string();
    let (listen, enrolment) = (free_port(), free_port());
    let made = Command::new(program())
        .args(["init", &dir.display().to_string(), "--trust-domain", "dev.doorward"])
        .args(["--listen", &listen, "--listen-enrolment", &enrolment])
        .args(["--management", "127.0.0.1:0", "--advertise", "127.0.0.1"])
        .args(["--seal", "passphrase", "--passphrase-file", &right, "--token-file", &token])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{said}");
    let (code, said) = start_fails(&dir, &["--passphrase-file", &wrong]).unwrap();
    assert!(code != 0 && said.contains("wrong passphrase"), "{code} {said}");
    assert!(!said.contains("battery-staple"), "{said}");
    let right = start_fails(&dir, &["--passphrase-file", &right]);
    assert_eq!(right, Err("it started".to_owned()));
}

/// A store from before a revocation must not bring the revoked one back.
#[test]
fn a_store_that_was_rolled_back_revives_nobody() {
    let mut stopped = Stopped::new();
    let second = stopped.root.path().join("second").display().to_string();
    let store = stopped.stage.broker_dir().join("store.redb");
    std::fs::copy(stopped.old.join("store.redb"), &store).unwrap();
    match stopped.stage.start_broker() {
        Ok(()) => {
            let ran = stopped.stage.run(&["--identity", &second, "list", "shop"], None).unwrap();
            assert_ne!(ran.code, 0, "revoked, and alive again: {ran:?}");
            stopped.stage.operator_must(&["list", "shop"], None).unwrap();
        }
        Err(said) => assert!(said.contains("store"), "{said}"),
    }
}

/// A tmpfs over a directory; taken away again on drop.
struct Small(PathBuf);

impl Small {
    fn over(dir: &Path, size: &str) -> Option<Self> {
        if !has("mount", "mount") {
            return None;
        }
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir).stderr(Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(dir.to_owned()));
        }
        assert!(!nix::unistd::geteuid().is_root() || std::env::var_os("CI").is_none());
        super::scene::missing("the right to mount a small disk");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A UDP address of loopback that nobody uses now.
fn free_port() -> String {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_full_log_disk_refuses_everything_and_goes_on_when_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let mut stage = Stage::with_program(program(), Some(root.path().to_owned())).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    stage.operator_must(&["put", "shop/a"], Some(b"one")).unwrap();
    stage.stop("broker");
    // A small disk, and a segment of which little is left.
    let (log, aside) = (stage.broker_dir().join("log"), root.path().join("aside"));
    copy(&log, &aside);
    let segment = files(&aside.join("wal")).into_iter().next().unwrap();
    std::fs::File::options().write(true).open(segment).unwrap().set_len(256 * 1024).unwrap();
    let Some(_small) = Small::over(&log, "4m") else { return };
    let copied = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&log).status();
    assert!(copied.unwrap().success());
    stage.start_broker().unwrap();
    stage.operator_must(&["list", "shop"], None).unwrap();
    let ballast = log.join("ballast");
    fill(&ballast);
    run(async {
        let client = Client::connect(&operator, Arc::new(SystemClock)).await.unwrap();
        // What was allocated before is used up first.
        let began = Instant::now();
        loop {
            let outcome = client.ask(list(), SecretValue::empty()).await;
            fill(&ballast);
            match outcome {
                Ok(_) => {}
                Err(ClientError::Refused(refusal)) if refusal.reason == Reason::Limited => {}
                Err(ClientError::Refused(refusal)) => {
                    assert_eq!(refusal.reason.code(), "D801", "{refusal}");
                    break;
                }
                Err(other) => panic!("{other}"),
            }
            assert!(began.elapsed() < Duration::from_secs(60), "the disk never filled up");
        }
        for _ in 0..20 {
            let outcome = client.ask(list(), SecretValue::empty()).await;
            assert_eq!(refused(outcome), Some(Reason::LogUnavailable));
        }
        let ran = stage.operator(&["put", "shop/b"], Some(b"lost")).unwrap();
        assert_eq!(ran.code, 4, "unavailable: {ran:?}");
        std::fs::remove_file(&ballast).unwrap();
        let began = Instant::now();
        while let Err(error) = client.ask(list(), SecretValue::empty()).await {
            assert!(began.elapsed() < Duration::from_secs(15), "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let list = stage.operator_must(&["list", "shop"], None).unwrap();
    assert!(list.stdout.contains("shop/a") && !list.stdout.contains("shop/b"), "{list:?}");
    stage.operator_must(&["put", "shop/c"], Some(b"two")).unwrap();
    stage.stop("broker");
    let ran = stage.run(&["log", "verify", &log.display().to_string()], None).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    stage.start_broker().unwrap();
    stage.operator_must(&["list", "shop"], None).unwrap();
}

/// Takes all the room there is.
fn fill(ballast: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::options().create(true).append(true).open(ballast).unwrap();
    while file.write_all(&[0x55; 4096]).is_ok() {}
}

/// A sync that fails is final: the process ends, and what was acknowledged is there afterwards.
#[test]
fn a_failed_sync_ends_the_broker_and_loses_nothing() {
    if !has("strace", "strace") {
        return;
    }
    for (call, file, when) in [
        ("fdatasync", "log/wal/00000000000000000000", 3),
        ("fdatasync", "log/wal/00000000000000000000", 9),
        ("pwrite64", "log/wal/00000000000000000000", 6),
        ("fdatasync", "store.redb", 6),
        ("pwrite64", "store.redb", 40),
    ] {
        let root = tempfile::tempdir().unwrap();
        let mut stage = Stage::with_program(program(), Some(root.path().to_owned())).unwrap();
        stage.operator_must(&["put", "shop/before"], Some(b"one")).unwrap();
        stage.stop("broker");
        let dir = stage.broker_dir();
        let inject = format!("inject={call}:error=EIO:when={when}+");
        let trace = root.path().join("trace").display().to_string();
        let (traced, path) = (format!("trace={call}"), dir.join(file).display().to_string());
        #[rustfmt::skip]
        let before = [
            "strace", "--seccomp-bpf", "-f", "-qq", "-o", &trace, "-P", &path, "-e", &traced, "-e", &inject,
        ];
        let mut process = Process::broker(&before, &dir, &[]);
        let began = Instant::now();
        let mut acknowledged = Vec::new();
        let code = loop {
            if let Some(code) = process.ended(Duration::from_millis(10)) {
                break code;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{call} {when}: it lives on");
            if ready_file(&dir).exists() {
                let name = format!("shop/n{}", acknowledged.len());
                let ran = stage.operator(&["put", &name], Some(b"two")).unwrap();
                match ran.code {
                    0 => acknowledged.push(name),
                    _ => assert!(!ran.stdout.contains("\"version\""), "{ran:?}"),
                }
            }
        };
        let said = std::fs::read_to_string(dir.with_extension("stderr")).unwrap();
        assert_ne!(code, 0, "{call} {when}: {said}");
        assert!(!said.contains("panicked"), "{call} {when}: {said}");
        drop(process);
        stage.start_broker().unwrap();
        let list = stage.operator_must(&["list", "shop"], None).unwrap().stdout;
        for name in acknowledged.iter().map(String::as_str).chain(["shop/before"]) {
            let held = list.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut names = held.filter_map(|line| line["name"].as_str().map(str::to_owned));
            assert!(names.any(|held| held == name), "{call} {when}: {name} was lost\n{list}");
        }
        stage.stop("broker");
        let log = dir.join("log").display().to_string();
        let ran = stage.run(&["log", "verify", &log], None).unwrap();
        assert_eq!(ran.code, 0, "{call} {when}: {ran:?}");
    }
}
