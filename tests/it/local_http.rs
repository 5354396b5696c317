//! The agent's real socket, with raw HTTP/1.1 and with curl: what it gives, what it refuses, to
//! whom, and that a secret leaves no trace.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use doorward::app::Stage;
use serde_json::Value;

use super::journey::program;
use super::scene::{add_rows, outside, random_text, register, traces, until};

const REQUIRED: &str = "Doorward-Request: true\r\n";
const SECRET: &str = "/v1/secrets/shop/db/password";

/// One answer.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    /// A header's value; names are compared in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// A refusal of the expected form (RFC 9457).
    #[track_caller]
    fn refused(&self, status: u16, reason: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["reason"], reason, "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
    }
}

/// One connection to the agent.
struct Wire {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Wire {
    fn open(stage: &Stage) -> Self {
        let stream = UnixStream::connect(stage.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, unread: Vec::new() }
    }

    fn send(&mut self, text: &str) {
        // The agent may have answered and closed before it took everything.
        let _ = self.stream.write_all(text.as_bytes());
    }

    /// The next answer; `None` when the connection ends before one.
    fn take(&mut self, has_body: bool) -> Option<Got> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(got) = self.parse(has_body) {
                return Some(got);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(read) => self.unread.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn parse(&mut self, has_body: bool) -> Option<Got> {
        let end = self.unread.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.unread[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut got = Got { status, head, body: String::new() };
        let length = got.header("content-length").map_or(0, |text| text.parse().unwrap());
        let length: usize = if has_body && status != 304 { length } else { 0 };
        let body = self.unread.get(end..end + length)?;
        got.body = String::from_utf8(body.to_vec()).unwrap();
        self.unread.drain(..end + length);
        Some(got)
    }

    fn ask(&mut self, request: &str) -> Got {
        self.send(request);
        self.take(!request.starts_with("HEAD")).expect("an answer")
    }
}

fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

fn get(stage: &Stage, target: &str, headers: &str) -> Got {
    Wire::open(stage).ask(&request("GET", target, headers))
}

/// A broker and an agent; this very test process is the workload `tester`, which may read shop/**.
struct Scene {
    stage: Stage,
    secret: String,
}

impl Scene {
    fn new() -> Self {
        let mut stage = Stage::with_program(program(), None).unwrap();
        stage.start_agent().unwrap();
        let me = std::fs::read_link("/proc/self/exe").unwrap();
        register(&stage, "tester", &me);
        add_rows(
            &stage,
            "\n#@ owner=test\np, tester-reads, spiffe://dev.doorward/tester, secret/shop/**, \
             read, managed, -, -, allow\n",
        );
        let secret = random_text();
        stage.operator_must(&["put", "shop/db/password"], Some(secret.as_bytes())).unwrap();
        let scene = Self { stage, secret };
        // The agent learns of a new entry with its next look at its duties.
        until(
            Duration::from_secs(20),
            || get(&scene.stage, SECRET, REQUIRED),
            |got| got.status == 200 && got.body == scene.secret,
        );
        scene
    }

    /// Records of identities that were issued, and so of processes that were taken for somebody.
    fn issued(&self, id: &str) -> usize {
        let holding = format!("svid/{id}");
        let tail = ["log", "tail", "-n", "500", "--holding", &holding];
        let tail = self.stage.operator_must(&tail, None).unwrap();
        tail.stdout.lines().filter(|line| line.contains("\"act\":\"issue\"")).count()
    }
}

#[test]
fn what_the_socket_gives_and_refuses() {
    let scene = Scene::new();
    let stage = &scene.stage;
    reads(&scene);
    refusals(stage);
    bounds(stage);
    pipelined(&scene);
    identities(&scene);
    socket_in_its_place(stage);
    curl(&scene);
    no_trace(scene);
}

fn reads(scene: &Scene) {
    let mut wire = Wire::open(&scene.stage);
    let got = wire.ask(&request("GET", SECRET, REQUIRED));
    assert_eq!((got.status, got.body.as_str()), (200, scene.secret.as_str()), "{got:?}");
    assert_eq!(got.header("etag"), Some("\"v1\""), "{got:?}");
    assert_eq!(got.header("cache-control"), Some("no-store"), "{got:?}");
    assert_eq!(got.header("content-type"), Some("application/octet-stream"), "{got:?}");
    assert_eq!(got.header("x-content-type-options"), Some("nosniff"), "{got:?}");
    let id = got.header("doorward-request-id").expect("a request id").to_owned();

    let same = format!("{REQUIRED}If-None-Match: \"v1\"\r\n");
    let got = wire.ask(&request("GET", SECRET, &same));
    assert_eq!((got.status, got.body.as_str()), (304, ""), "{got:?}");
    assert_eq!(got.header("etag"), Some("\"v1\""), "{got:?}");
    let asked_again = got.header("doorward-request-id").expect("a 304 is a decision").to_owned();
    assert_ne!(id, asked_again);
    for request in [&id, &asked_again] {
        let why = scene.stage.operator_must(&["explain", request], None).unwrap().json();
        let text = why.to_string();
        assert!(text.contains("tester-reads") && text.contains("shop/db/password"), "{text}");
    }
    let other = format!("{REQUIRED}If-None-Match: \"v2\"\r\n");
    let got = wire.ask(&request("GET", SECRET, &other));
    assert_eq!((got.status, got.body.as_str()), (200, scene.secret.as_str()), "{got:?}");
    let got = wire.ask(&request("GET", &format!("{SECRET}?version=1"), REQUIRED));
    assert_eq!(got.status, 200, "{got:?}");
    // Who may not list is not told whether something is there.
    for target in ["/v1/secrets/shop/db/nothing", "/v1/secrets/other/db/password"] {
        let got = wire.ask(&request("GET", target, REQUIRED));
        assert_eq!((got.status, &got.json()["code"]), (403, &Value::from("denied")), "{got:?}");
    }
}

fn refusals(stage: &Stage) {
    for (target, headers, status, reason) in [
        (SECRET, "", 400, "header"),
        (SECRET, "Doorward-Request: false\r\n", 400, "header"),
        (SECRET, "Doorward-Request: true\r\nDoorward-Request: true\r\n", 400, "header"),
        ("/v1/secrets/shop/db/p%61ssword", REQUIRED, 400, "percent"),
        ("/v1/secrets/shop/db%2fpassword", REQUIRED, 400, "percent"),
        ("/v1/secrets/shop/%2e%2e/x", REQUIRED, 400, "percent"),
        ("/v1/secrets/shop/db/password?as=spiffe:%2F%2Fx", REQUIRED, 400, "percent"),
        ("/v1/secrets/shop/../shop/db/password", REQUIRED, 400, "name"),
        ("/v1/secrets/shop//db/password", REQUIRED, 400, "name"),
        ("/v1/secrets/", REQUIRED, 400, "name"),
        ("/v1/secrets/shop/db/password?verzion=1", REQUIRED, 400, "query"),
        ("/v1/secrets/shop/db/password?version=0", REQUIRED, 400, "query"),
        ("/v1/secrets/shop/db/password?version=1&version=1", REQUIRED, 400, "query"),
        ("/v1/identity?version=1", REQUIRED, 400, "query"),
        ("/v1", REQUIRED, 404, "no_such_path"),
        ("/metrics", REQUIRED, 404, "no_such_path"),
    ] {
        get(stage, target, headers).refused(status, reason);
    }
    for method in ["PUT", "POST", "DELETE", "PATCH", "OPTIONS"] {
        let got = Wire::open(stage).ask(&request(method, SECRET, REQUIRED));
        got.refused(405, "method");
        assert_eq!(got.header("allow"), Some("GET"), "{got:?}");
    }
    let got = Wire::open(stage).ask(&request("HEAD", SECRET, REQUIRED));
    assert_eq!((got.status, got.header("allow")), (405, Some("GET")), "{got:?}");
    let got = Wire::open(stage).ask(&request("GET", "/v1/secrets:batch", REQUIRED));
    got.refused(405, "method");
    assert_eq!(get(stage, "/v1/health", "").status, 200);
}

/// What is too long is refused, and the agent goes on.
fn bounds(stage: &Stage) {
    let headers = format!("{REQUIRED}X-Long: {}\r\n", "a".repeat(20 * 1024));
    get(stage, SECRET, &headers).refused(431, "head");
    let target = format!("/v1/secrets/shop/{}", "a".repeat(6 * 1024));
    get(stage, &target, REQUIRED).refused(431, "head");
    let many: String = (0..500).map(|n| format!("X-H{n}: 1\r\n")).collect();
    let got = get(stage, SECRET, &format!("{REQUIRED}{many}"));
    assert_eq!(got.status, 431, "{got:?}");
    // A head without an end is not gathered for ever: the connection ends, with or without a word.
    let mut wire = Wire::open(stage);
    wire.send(&format!("GET {SECRET} HTTP/1.1\r\nHost: localhost\r\n"));
    for _ in 0..64 {
        wire.send(&format!("X-Long: {}\r\n", "a".repeat(64 * 1024)));
    }
    if let Some(got) = wire.take(true) {
        assert_eq!(got.status, 431, "{got:?}");
        assert!(wire.take(true).is_none(), "the connection goes on");
    }
    for nonsense in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut wire = Wire::open(stage);
        wire.send(nonsense);
        if let Some(got) = wire.take(true) {
            assert!((400..=505).contains(&got.status), "{nonsense:?}: {got:?}");
        }
    }
    // Two readings of one request are none.
    let smuggled = format!(
        "POST /v1/secrets:batch HTTP/1.1\r\nHost: x\r\n{REQUIRED}Content-Length: 4\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
        request("GET", SECRET, REQUIRED)
    );
    let mut wire = Wire::open(stage);
    wire.send(&smuggled);
    while let Some(got) = wire.take(true) {
        assert_ne!(got.status, 200, "a request inside a request was served: {got:?}");
    }
    assert_eq!(get(stage, SECRET, REQUIRED).status, 200, "the positive control");
}

/// Requests that come at once are answered one after the other, each judged for itself.
fn pipelined(scene: &Scene) {
    let mut wire = Wire::open(&scene.stage);
    let parts = [
        request("GET", SECRET, REQUIRED),
        request("GET", "/v1/secrets/other/x", REQUIRED),
        request("GET", SECRET, &format!("{REQUIRED}If-None-Match: \"v1\"\r\n")),
        request("GET", SECRET, ""),
        request("GET", SECRET, REQUIRED),
    ];
    wire.send(&parts.concat());
    for want in [200, 403, 304, 400, 200] {
        let got = wire.take(true).expect("an answer to each");
        assert_eq!(got.status, want, "{got:?}");
        assert_eq!(got.status == 200, got.body == scene.secret, "{got:?}");
    }
}

/// Who the agent takes this process for, and that it may not be somebody else.
fn identities(scene: &Scene) {
    let stage = &scene.stage;
    let got = get(stage, "/v1/identity", REQUIRED);
    assert_eq!(got.status, 200, "{got:?}");
    let identity = got.json();
    assert_eq!(identity["spiffe_id"], "spiffe://dev.doorward/tester");
    assert_eq!(identity["class"], "server");
    assert_eq!(identity["pid"], std::process::id());
    assert_eq!(identity["device"], stage.device().unwrap()["id"]);

    let other = stage.workload("other").unwrap();
    register(stage, "other", &other);
    until(
        Duration::from_secs(20),
        || stage.as_workload(&other, &["whoami"]).unwrap(),
        |ran| ran.json()["spiffe_id"] == "spiffe://dev.doorward/other",
    );
    let before = scene.issued("other");
    assert!(before >= 1, "the positive control");
    let as_own = format!("{SECRET}?as=spiffe://dev.doorward/tester");
    assert_eq!(get(stage, &as_own, REQUIRED).status, 200);
    for id in ["other", "nobody", "doorward/operator/you"] {
        for target in [SECRET, "/v1/identity"] {
            let target = format!("{target}?as=spiffe://dev.doorward/{id}");
            get(stage, &target, REQUIRED).refused(403, "no_identity");
        }
    }
    get(stage, &format!("{SECRET}?as=spiffe://corp.example/tester"), REQUIRED)
        .refused(403, "no_identity");
    assert_eq!(scene.issued("other"), before, "no identity was issued for the asking");
}

fn socket_in_its_place(stage: &Stage) {
    let meta = std::fs::symlink_metadata(stage.socket()).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o666, "all may knock; the kernel says who");
    let dir = std::fs::metadata(stage.socket().parent().unwrap()).unwrap();
    assert_eq!(dir.permissions().mode() & 0o022, 0, "nobody else can put another socket there");
    for entry in std::fs::read_dir(stage.dir().join("agent")).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode & 0o077, 0, "{} is {mode:o}", entry.path().display());
    }
}

/// curl is a process of its own: nobody without an entry, somebody with one.
fn curl(scene: &Scene) {
    let Some(curl) = outside("curl", "curl") else { return };
    let stage = &scene.stage;
    let ask = |headers: &[&str]| {
        let mut command = Command::new(&curl);
        command.args(["-sS", "-i", "-m", "20", "--unix-socket"]).arg(stage.socket());
        for header in headers {
            command.args(["-H", header]);
        }
        let output = command.arg(format!("http://localhost{SECRET}")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = ask(&["Doorward-Request: true"]);
    assert!(text.starts_with("HTTP/1.1 403") && text.contains("no_identity"), "{text}");
    assert!(!text.contains(&scene.secret));
    assert_eq!(scene.issued("curl"), 0, "no identity for whom no entry fits");

    register(stage, "curl", &std::fs::canonicalize(&curl).unwrap());
    add_rows(
        stage,
        "\n#@ owner=test\np, curl-reads, spiffe://dev.doorward/curl, secret/shop/**, read, any, \
         -, -, allow\n",
    );
    let text = until(
        Duration::from_secs(20),
        || ask(&["Doorward-Request: true"]),
        |text| text.starts_with("HTTP/1.1 200"),
    );
    assert!(text.ends_with(&scene.secret), "{text}");
    let text = ask(&["Doorward-Request: true", "If-None-Match: \"v1\""]);
    assert!(text.starts_with("HTTP/1.1 304"), "{text}");
    let text = ask(&[]);
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    assert!(scene.issued("curl") >= 2, "each process has an identity of its own");
}

/// The secret stands in no file, no command line, no environment; neither while all runs nor after.
fn no_trace(scene: Scene) {
    let Scene { mut stage, secret } = scene;
    let pids = [stage.pid("broker").unwrap(), stage.pid("agent").unwrap()];
    let found = traces(stage.dir(), &pids, &[&secret]);
    assert!(found.is_empty(), "the secret stands in {found:?}");
    stage.stop("agent");
    assert!(!stage.socket().exists(), "the socket goes with the agent");
    stage.stop("broker");
    let found = traces(stage.dir(), &[], &[&secret]);
    assert!(found.is_empty(), "the secret stands in {found:?}");
}

/// A program that connects, asks once, and becomes a shell that asks on the same connection.
const CHANGES: &str = r#"
import os, socket, sys
path, asks = sys.argv[1], int(sys.argv[2])
request = b"GET /v1/secrets/shop/db/password HTTP/1.1\r\nHost: x\r\nDoorward-Request: true\r\n\r\n"
wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
wire.settimeout(20)
wire.connect(path)
for _ in range(asks):
    wire.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += wire.recv(4096)
    sys.stdout.write(answer.decode() + "\n----\n")
    sys.stdout.flush()
wire.setblocking(True)
os.dup2(wire.fileno(), 9, inheritable=True)
text = request.decode().replace("\r", "\\r").replace("\n", "\\n")
os.execv("/bin/sh", ["sh", "-c", "printf '%b' '" + text + "' >&9; dd bs=8192 count=1 status=none <&9"])
"#;

/// Runs the program above; what came before it became a shell, and what came after.
fn changing(stage: &Stage, python: &Path, asks: usize) -> (String, String) {
    let script = stage.dir().join("changes.py");
    std::fs::write(&script, CHANGES).unwrap();
    let mut child = Command::new(python)
        .arg("-I")
        .arg(&script)
        .arg(stage.socket())
        .arg(asks.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    // The shell reads until the agent ends the connection, or has said something.
    loop {
        let read = out.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..read]);
        let after = String::from_utf8_lossy(&text);
        let after = after.rsplit("----\n").next().unwrap_or_default();
        let answered = text.windows(5).filter(|five| five == b"----\n").count() == asks
            && after.contains("\r\n\r\n");
        if read == 0 || answered {
            break;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    let text = String::from_utf8(text).unwrap();
    match text.rsplit_once("----\n") {
        Some((before, after)) => (before.to_owned(), after.to_owned()),
        None => (String::new(), text),
    }
}

#[test]
fn a_process_that_becomes_another_program_is_nobody() {
    let Some(python) = outside("python3", "python3") else { return };
    let python: PathBuf = std::fs::canonicalize(python).unwrap();
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let secret = random_text();
    stage.operator_must(&["put", "shop/db/password"], Some(secret.as_bytes())).unwrap();
    add_rows(
        &stage,
        "\n#@ owner=test\np, py-reads, spiffe://dev.doorward/py, secret/shop/**, read, any, -, -, \
         allow\n",
    );
    let (before, after) = changing(&stage, &python, 1);
    assert!(before.contains("403") && before.contains("no_identity"), "{before} {after}");
    register(&stage, "py", &python);
    until(
        Duration::from_secs(20),
        || changing(&stage, &python, 1).0,
        |before| before.contains("200 OK") && before.contains(&secret),
    );
    // As python it was served; the shell that it became is not, on the same connection.
    for asks in [1, 3, 0] {
        let (before, after) = changing(&stage, &python, asks);
        assert_eq!(before.matches("200 OK").count(), asks, "{before}");
        assert!(!after.contains(&secret) && !after.contains("200 OK"), "asks {asks}: {after}");
        let refused = after.is_empty() || after.contains("HTTP/1.1 403");
        assert!(refused, "asks {asks}: {after}");
    }
}
