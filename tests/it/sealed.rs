//! A broker that waits for its passphrase: what it answers meanwhile, who can open it and how, and
//! what whoever sends rubbish does to it.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::journey::program;
use super::scene::{outside, until};

/// Two keys of 600,000 rounds, without optimisation, on a busy machine.
const SOON: Duration = Duration::from_secs(30);
const RIGHT: &str = "correct-horse-battery";
const WRONG: &str = "tr0ub4dor-and-three";

/// A broker's directory with a passphrase as its seal, and the passphrases in files.
struct Place {
    root: tempfile::TempDir,
    listen: String,
    management: String,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs `doorward` to its end; `input` is its standard input.
fn doorward(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program())
        .args(args)
        .env_remove("DOORWARD_IDENTITY")
        .env_remove("DOORWARD_SOCKET")
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn must(args: &[&str], input: &str) -> Value {
    let out = doorward(args, input);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    said.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or(Value::Null)
}

impl Place {
    fn new() -> Self {
        let udp = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Self {
            root: tempfile::tempdir().unwrap(),
            listen: udp(),
            management: tcp.local_addr().unwrap().to_string(),
        };
        drop(tcp);
        #[rustfmt::skip]
        let args = [
            "init", &text(&place.dir()), "--trust-domain", "dev.doorward", "--listen", &place.listen,
            "--listen-enrolment", &udp(), "--management", &place.management, "--advertise",
            "127.0.0.1", "--operator", "ann", "--token-file", &text(&place.path("token")),
            "--seal", "passphrase", "--passphrase-file", "-",
        ];
        must(&args, RIGHT);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn dir(&self) -> PathBuf {
        self.path("broker")
    }

    fn socket(&self) -> PathBuf {
        self.dir().join("admin.sock")
    }

    /// A broker without a terminal, on its way.
    fn broker(&self, more: &[&str]) -> Running {
        let log = self.path("stderr");
        let errors = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(program())
            .args(["broker", &text(&self.dir()), "--json"])
            .args(more)
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        Running { child, log }
    }

    /// The same, once its socket waits.
    fn sealed(&self, more: &[&str]) -> Running {
        let mut broker = self.broker(more);
        let waits = || self.state().get("sealed").is_some();
        while !waits() {
            assert!(broker.child.try_wait().unwrap().is_none(), "{}", broker.said());
            std::thread::sleep(Duration::from_millis(10));
        }
        broker
    }

    /// What the raw protocol says of the seal.
    fn state(&self) -> Value {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else { return Value::Null };
        let said = talk(&mut stream, &frame(br#"{"seal":{}}"#, b""));
        serde_json::json!({ said["seal"]["state"].as_str().unwrap_or("?"): true })
    }

    fn probe(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.management).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        let code = page.split(' ').nth(1).unwrap().parse().unwrap();
        (code, page.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn unseal(&self, passphrase: &str) -> Output {
        doorward(&["unseal", &text(&self.dir()), "--passphrase-file", "-", "--json"], passphrase)
    }

    fn operator(&self, args: &[&str], input: &str) -> Value {
        let identity = text(&self.path("ann"));
        let all: Vec<&str> =
            ["--identity", &identity, "--json"].into_iter().chain(args.iter().copied()).collect();
        must(&all, input)
    }

    /// Records in the log, as they lie on the disk of a broker that does not run.
    fn records(&self) -> u64 {
        let verified = must(&["log", "verify", &text(&self.dir().join("log")), "--json"], "");
        let count = |key: &str| verified[key].as_u64().unwrap();
        count("size") + count("pending")
    }
}

struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn ended(&mut self) -> i32 {
        let ended = until(SOON, || self.child.try_wait().unwrap(), Option::is_some);
        ended.unwrap().code().unwrap_or(-1)
    }

    fn stop(&mut self) -> i32 {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.ended()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn frame(head: &[u8], body: &[u8]) -> Vec<u8> {
    let lengths = [head.len(), body.len()].map(|n| u32::try_from(n).unwrap().to_be_bytes());
    [lengths.concat().as_slice(), head, body].concat()
}

/// Sends bytes, ends the stream, and reads one reply's head; null when there is none.
fn talk(stream: &mut UnixStream, bytes: &[u8]) -> Value {
    stream.set_read_timeout(Some(SOON)).unwrap();
    // Whoever is refused in the middle may not be able to send the rest.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    reply.get(8..).and_then(|head| serde_json::from_slice(head).ok()).unwrap_or(Value::Null)
}

fn fault(out: &Output) -> Value {
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    said.lines().rev().find_map(|line| serde_json::from_str(line).ok()).expect(&said)
}

#[test]
fn it_waits_is_opened_by_the_right_passphrase_and_records_that_first() {
    let place = Place::new();
    let mut broker = place.sealed(&[]);
    assert_eq!(place.probe("/healthz"), (200, "sealed\n".to_owned()));
    assert_eq!(place.probe("/readyz"), (503, "sealed\n".to_owned()));
    assert!(place.probe("/metrics").1.contains("\ndoorward_sealed 1\n"));
    drop(UdpSocket::bind(&place.listen).expect("a UDP port is open under the seal"));
    let meta = std::fs::symlink_metadata(place.socket()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o7777, 0o600);

    let out = place.unseal(WRONG);
    assert_eq!((out.status.code(), &fault(&out)["error"]), (Some(1), &"wrong passphrase".into()));
    assert_eq!(place.probe("/readyz"), (503, "sealed\n".to_owned()));

    let out = place.unseal(RIGHT);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&told["opened"], &told["broker"]), (&true.into(), &place.listen.as_str().into()));
    // It answers by the time that it is told to: no look again and again.
    assert_eq!(place.probe("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(place.probe("/healthz"), (200, "ok\n".to_owned()));
    assert!(place.probe("/metrics").1.contains("\ndoorward_sealed 0\n"));
    let token = std::fs::read_to_string(place.path("token")).unwrap();
    place.operator(&["login", "-"], &token);
    place.operator(&["put", "shop/db/password"], "s3cret");
    let rule = "p, ann-reads, spiffe://dev.doorward/doorward/operator/ann, secret/shop/**, read, \
                any, -, -, allow\n";
    let policies = place.dir().join("policies");
    let rows = std::fs::read_to_string(policies.join("policy.csv")).unwrap() + rule;
    std::fs::write(policies.join("policy.csv"), rows).unwrap();
    place.operator(&["policy", "activate", &text(&policies)], "");
    let out = place.unseal(WRONG);
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &told["opened"]), (Some(0), &false.into()));
    assert_eq!(broker.stop(), 0, "{}", broker.said());
    assert!(!place.socket().exists());

    // The next start: nothing is written under the seal, and `unsealed` is the first thing after.
    let before = place.records();
    let mut broker = place.sealed(&[]);
    assert_eq!(place.records(), before);
    assert!(place.unseal(RIGHT).status.success());
    let first = place.operator(&["log", "show", &before.to_string()], "");
    let first = first.get("record").unwrap_or(&first);
    assert_eq!((&first["kind"], &first["seal"]), (&"unsealed".into(), &"passphrase".into()));
    let identity = text(&place.path("ann"));
    let read = doorward(&["--identity", &identity, "get", "shop/db/password"], "");
    assert_eq!(read.stdout, b"s3cret", "{}", String::from_utf8_lossy(&read.stderr));
    assert_eq!(broker.stop(), 0);
    let said = broker.said();
    let told = said.lines().find(|line| line.contains("the seal was not opened")).unwrap();
    let told: Value = serde_json::from_str(told).unwrap();
    assert_eq!(told["fields"]["why"], "wrong passphrase", "{told}");
    assert!(told["fields"]["pid"].is_u64() && told["fields"]["uid"].is_u64(), "{told}");
    for word in [RIGHT, WRONG, "s3cret"] {
        assert!(!said.contains(word), "{said}");
    }
}

#[test]
fn rubbish_is_bounded_and_holds_up_nobody_for_long() {
    let place = Place::new();
    let mut broker = place.sealed(&[]);
    let connect = || UnixStream::connect(place.socket()).unwrap();
    let head = br#"{"unseal":{}}"#;
    let refused = |bytes: &[u8], word: &str| {
        let said = talk(&mut connect(), bytes);
        let why = said["refused"]["why"].as_str().unwrap_or("");
        assert!(why.contains(word), "{word}: {said}");
        assert!(!said.to_string().contains(WRONG));
        assert_eq!(place.probe("/readyz"), (503, "sealed\n".to_owned()));
    };
    // The control: the same form is understood.
    let said = talk(&mut connect(), &frame(head, WRONG.as_bytes()));
    assert_eq!(said, serde_json::json!({ "wrong_passphrase": {} }));
    let whole = frame(head, WRONG.as_bytes());
    refused(&whole[..whole.len() - 1], "ended in the body");
    refused(&whole[..12], "ended in the head");
    refused(&whole[..3], "ended in the lengths");
    refused(&[&whole[..], b"x"].concat(), "follow");
    refused(&frame(head, &[b'x'; 4097]), "4096");
    let mut lies = whole.clone();
    lies[4..8].copy_from_slice(&[0xff; 4]);
    refused(&lies, "4096");
    refused(&[0xff; 64], "the limit here is 256");
    refused(&frame(br#"{"open":{}}"#, b""), "the head");
    let json = format!(r#"{{"unseal":{{"passphrase":"{WRONG}"}}}}"#);
    refused(&frame(json.as_bytes(), b""), "the head");
    refused(&frame(br#"{"seal":{}}"#, WRONG.as_bytes()), "the limit here is 0");
    refused(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the limit");
    let empty = talk(&mut connect(), &frame(head, b""));
    assert_eq!(empty["failed"]["error"], "the passphrase is empty");

    // As many as there are places say nothing. Whoever comes behind them waits, health does not,
    // and after the time for a head all is as before.
    let silent: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    let began = Instant::now();
    let (code, _) = place.probe("/healthz");
    assert!(code == 200 && began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(place.unseal(RIGHT).status.success());
    for mut stream in silent {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(String::from_utf8_lossy(&said).contains("in time"));
    }
    assert_eq!(broker.stop(), 0);
    assert!(!broker.said().contains(WRONG));
}

#[test]
fn of_many_at_once_each_is_answered_and_health_goes_on() {
    let place = Place::new();
    let _broker = place.sealed(&[]);
    let send = |word: &str| {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        talk(&mut stream, &frame(br#"{"unseal":{}}"#, word.as_bytes()))
    };
    std::thread::scope(|scope| {
        let wrong: Vec<_> = (0..4).map(|_| scope.spawn(|| send(WRONG))).collect();
        let right: Vec<_> = (0..4).map(|_| scope.spawn(|| send(RIGHT))).collect();
        assert_eq!(place.probe("/healthz").0, 200);
        let all = wrong.into_iter().map(|t| t.join().unwrap());
        // A wrong one that came after the right one is not tried any more.
        let tried = all.filter(|said| said.get("wrong_passphrase").is_none());
        assert!(tried.map(|said| said["seal"]["state"].clone()).all(|state| state != "sealed"));
        let said: Vec<Value> = right.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(said.iter().filter(|said| said.get("opened").is_some()).count(), 1, "{said:?}");
        assert!(said.iter().all(|s| s.get("opened").is_some() || s.get("seal").is_some()));
    });
    assert_eq!(place.probe("/readyz").0, 200);
}

#[test]
fn it_ends_when_told_to_and_what_a_killed_one_left_is_replaced() {
    let place = Place::new();
    let mut broker = place.sealed(&[]);
    let silent = UnixStream::connect(place.socket()).unwrap();
    assert_eq!(broker.stop(), 0, "{}", broker.said());
    drop(silent);
    assert!(!place.socket().exists());
    let out = place.unseal(RIGHT);
    assert_eq!(out.status.code(), Some(4), "{}", String::from_utf8_lossy(&out.stderr));

    let mut killed = place.sealed(&[]);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(place.socket().exists());
    assert_eq!(place.unseal(RIGHT).status.code(), Some(4));
    let mut broker = place.sealed(&[]);

    // A second one, whatever it brings, finds the directory taken; the first one goes on.
    let word = place.path("word");
    std::fs::write(&word, RIGHT).unwrap();
    for more in [&[][..], &["--passphrase-file", &text(&word)]] {
        let mut second = place.broker(more);
        let (code, said) = (second.ended(), second.said());
        assert!(code == 1 && said.contains("another broker runs here"), "{code} {said}");
    }
    assert!(place.unseal(RIGHT).status.success());
    assert_eq!(broker.stop(), 0);

    // What is no socket of ours is not touched.
    std::fs::write(place.path("precious"), "x").unwrap();
    std::os::unix::fs::symlink(place.path("precious"), place.socket()).unwrap();
    let mut broker = place.broker(&[]);
    assert_eq!(broker.ended(), 1);
    assert!(broker.said().contains("not a socket of this user"), "{}", broker.said());
    assert_eq!(std::fs::read(place.path("precious")).unwrap(), b"x");
}

#[test]
fn a_passphrase_at_hand_opens_at_the_start_unless_sealed_is_wanted() {
    let place = Place::new();
    let word = place.path("word");
    std::fs::write(&word, RIGHT).unwrap();
    let mut broker = place.broker(&["--passphrase-file", &text(&word)]);
    until(SOON, || TcpStream::connect(&place.management).is_ok(), |open| *open);
    until(SOON, || place.probe("/readyz").0, |code| *code == 200);
    assert!(!place.socket().exists());
    let out = place.unseal(RIGHT);
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &told["opened"]), (Some(0), &false.into()));
    assert_eq!(broker.stop(), 0);

    let credentials = place.path("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("doorward-passphrase"), RIGHT).unwrap();
    let started = |more: &[&str]| {
        Command::new(program())
            .args(["broker", &text(&place.dir())])
            .args(more)
            .env("CREDENTIALS_DIRECTORY", &credentials)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    for (more, code) in [(&[][..], 200), (&["--sealed"], 503)] {
        let mut broker = Running { child: started(more), log: place.path("stderr") };
        until(SOON, || TcpStream::connect(&place.management).is_ok(), |open| *open);
        until(SOON, || place.probe("/readyz"), |(is, said)| *is == code && said != "starting\n");
        assert_eq!(place.socket().exists(), code == 503);
        assert_eq!(broker.stop(), 0);
    }
}

#[test]
fn a_start_that_fails_after_the_seal_is_told_to_whoever_opened_it() {
    let place = Place::new();
    let mut broker = place.sealed(&[]);
    // Somebody takes the broker's port while it waits.
    let taken = UdpSocket::bind(&place.listen).unwrap();
    let out = place.unseal(RIGHT);
    let said = fault(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said["error"].as_str().unwrap().contains(&place.listen), "{said}");
    assert!(said["hint"].as_str().unwrap().contains("has ended"), "{said}");
    assert_eq!(broker.ended(), 1);
    assert!(!place.socket().exists());
    drop(taken);
    // The record of the start that failed stands in a log that is whole.
    assert!(place.records() > 0);
}

#[test]
fn another_user_is_refused_whatever_the_modes_are() {
    let Some(perl) = outside("perl", "perl-base") else { return };
    if !nix::unistd::geteuid().is_root() {
        return super::scene::missing("root, to become somebody else");
    }
    let place = Place::new();
    let mut broker = place.sealed(&[]);
    let loosen = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, mode) in
        [(place.root.path(), 0o711), (&place.dir(), 0o711), (&place.socket(), 0o666)]
    {
        loosen(path, mode);
    }
    let script = r#"
        $SIG{PIPE} = "IGNORE";
        socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, pack_sockaddr_un($ARGV[0])) or die $!;
        syswrite(S, pack("NN", 11, 0) . '{"seal":{}}');
        shutdown(S, 1);
        print while <S>;
    "#;
    let ask = |uid: u32| {
        let mut command = Command::new(&perl);
        command.args(["-MSocket", "-e", script]).arg(place.socket());
        let out = command.uid(uid).gid(uid).current_dir("/").output().unwrap();
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    };
    let said = ask(0);
    assert!(said.contains(r#"{"seal":{"state":"sealed"}}"#), "the control: {said}");
    let said = ask(65_534);
    assert!(said.contains("only root and the broker's own user"), "{said}");
    assert!(!said.contains("state"), "{said}");
    assert_eq!(place.probe("/readyz").0, 503);
    assert_eq!(broker.stop(), 0);
}

#[test]
fn a_passphrase_is_given_to_nobody_but_the_owner_of_the_directory() {
    if !nix::unistd::geteuid().is_root() {
        return super::scene::missing("root, to give a directory to somebody else");
    }
    let place = Place::new();
    // Somebody listens at the place of the socket, and the directory is not his.
    let listener = UnixListener::bind(place.socket()).unwrap();
    nix::unistd::chown(&place.dir(), Some(65_534.into()), None).unwrap();
    let answered = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got);
        got
    });
    let out = place.unseal(RIGHT);
    let got = answered.join().unwrap();
    // Root is believed: the owner of everything. So the control comes first.
    assert!(!got.is_empty() && out.status.code() == Some(1), "{got:?}");
    std::fs::set_permissions(place.dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let out = place.unseal(RIGHT);
    assert!(
        fault(&out)["error"].as_str().unwrap().contains("others can write"),
        "{:?}",
        fault(&out)
    );
}
