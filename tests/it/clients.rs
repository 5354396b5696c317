//! Clients that others wrote, unmodified, against the Workload API of a real agent: Rust `spiffe` with
//! `spiffe-rustls`, Python `spiffe` (which stands on gRPC-core), go-spiffe; all of them across a rotation.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorward::app::Stage;
use rustls::pki_types::ServerName;
use spiffe::X509Source;
use spiffe_rustls::{authorizer, mtls_client};

use super::journey::program;
use super::scene::{missing, outside, until};

/// Twice the half life of what is issued here, and room.
const MOST: Duration = Duration::from_secs(80);

fn endpoint(stage: &Stage) -> String {
    format!("unix://{}", stage.workload_socket().display())
}

/// An entry with the shortest life, for every process that runs this program.
fn register(stage: &Stage, name: &str, program: &Path) {
    let uid = format!("uid:{}", nix::unistd::getuid());
    let path = format!("path:{}", program.display());
    #[rustfmt::skip]
    let args = ["entry", "create", "--id", name, "--ttl", "60", "--selector", &uid, "--selector", &path];
    stage.operator_must(&args, None).unwrap();
}

/// A child that is killed with the test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(stage: &Stage, program: &Path, args: &[&str]) -> Peer {
    let mut command = Command::new(program);
    command.args(args).env("SPIFFE_ENDPOINT_SOCKET", endpoint(stage));
    Peer(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
}

fn first_line(peer: &mut Peer) -> String {
    let mut line = String::new();
    BufReader::new(peer.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

#[test]
fn libraries_that_others_wrote_work_unmodified_across_a_rotation() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let go = go_client();
    let python = python_with_spiffe();
    for (name, program) in [("go", go.as_ref()), ("py", python.as_ref().map(|(_, real)| real))] {
        if let Some(program) = program {
            register(&stage, name, program);
        }
    }
    let mut watching = go.as_ref().map(|go| start(&stage, go, &["2"]));
    if let Some((python, _)) = &python {
        asks_with_python(&stage, python);
        tokens_in_python(&stage, python);
    }
    if let Some(go) = &go {
        tokens_in_go(&stage, go);
    }
    mutual_tls_goes_on(&stage);
    if let Some(go) = &mut watching {
        two_states_in_go(go);
    }
}

/// A client and a server with an identity each; handshakes without a pause until both have been given
/// another certificate. While `spiffe-rustls` 0.11 turns what it was given into its own form, it
/// refuses (its documentation says so): for some microseconds, on each side, once a rotation.
/// So each side may fail once, and the next handshake must not.
fn mutual_tls_goes_on(stage: &Stage) {
    let me = std::fs::read_link("/proc/self/exe").unwrap();
    let peer = program().with_file_name("examples").join("mtls_server");
    register(stage, "client", &me);
    register(stage, "server", &peer);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let _inside = runtime.enter(); // for the libraries' own tasks
    let source = X509Source::builder().endpoint(endpoint(stage)).build();
    let source = runtime.block_on(async { tokio::time::timeout(MOST, source).await });
    let source = source.expect("an identity in time").unwrap();
    let mine = || source.svid().unwrap().leaf().as_bytes().to_vec();
    let allowed = authorizer::exact(["spiffe://dev.doorward/server"]).unwrap();
    let config = Arc::new(mtls_client(source.clone()).authorize(allowed).build().unwrap());
    let mut server = start(stage, &peer, &["spiffe://dev.doorward/client"]);
    let port: u16 = first_line(&mut server).parse().unwrap();

    let (my_first, its_first) = (mine(), handshake(&config, port).unwrap());
    let (began, mut its_last) = (Instant::now(), its_first.clone());
    let (mut handshakes, mut failed) = (1_u32, Vec::new());
    while mine() == my_first || its_last == its_first {
        assert!(began.elapsed() < MOST, "no rotation in {handshakes} handshakes");
        its_last = handshake(&config, port)
            .or_else(|why| {
                failed.push((handshakes, began.elapsed(), why));
                assert!(failed.len() <= 2, "{failed:?}");
                handshake(&config, port)
            })
            .unwrap_or_else(|why| panic!("handshake {handshakes}: {why}; {failed:?}"));
        handshakes += 1;
    }
    assert!(handshakes > 100, "{handshakes} handshakes prove little");
}

/// The certificate that the server showed.
fn handshake(config: &Arc<rustls::ClientConfig>, port: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = ServerName::try_from("not-looked-at.invalid").unwrap();
    let mut tls = rustls::ClientConnection::new(config.clone(), name).unwrap();
    let mut said = Vec::new();
    // A refused client learns of it only when it reads.
    rustls::Stream::new(&mut tls, &mut stream).read_to_end(&mut said)?;
    assert_eq!(said, b"hello\n");
    Ok(tls.peer_certificates().unwrap()[0].to_vec())
}

/// Asks and prints.
const PYTHON: &str = r#"
from spiffe import WorkloadApiClient
with WorkloadApiClient() as client:
    svid = client.fetch_x509_svid()
    roots = client.fetch_x509_bundles()
    print(svid.spiffe_id, len(svid.cert_chain), len(roots.bundles))
"#;

/// A token, checked by the agent and by the library; nobody else's audience; and as somebody checks it
/// who knows no SPIFFE, by the keys of the broker's management port.
const TOKENS: &str = r#"
import sys, jwt
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient
with WorkloadApiClient() as client:
    token = client.fetch_jwt_svid(audience={"https://a.example"}).token
    keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(TrustDomain("dev.doorward"))
    offline = JwtSvid.parse_and_validate(token, keys, {"https://a.example"})
    online = client.validate_jwt_svid(token, "https://a.example")
    mine = client.fetch_jwt_svids(audience={"b"}, subject=SpiffeId("spiffe://dev.doorward/py"))
    refused = 0
    for wrong in (lambda: JwtSvid.parse_and_validate(token, keys, {"https://b.example"}),
                  lambda: client.validate_jwt_svid(token, "https://b.example"),
                  lambda: client.fetch_jwt_svid(audience={"a", "b"})):
        try:
            wrong()
        except Exception:
            refused += 1
    key = jwt.PyJWKClient(sys.argv[1]).get_signing_key_from_jwt(token)
    plain = jwt.decode(token, key.key, algorithms=["ES256"], audience="https://a.example")
    print(offline.spiffe_id, online.spiffe_id, plain["sub"], len(mine), refused)
"#;

/// A Python with the package `spiffe` (`$DOORWARD_SPIFFE_PYTHON`, else `python3`), and what it really is.
pub fn python_with_spiffe() -> Option<(PathBuf, PathBuf)> {
    let named = std::env::var_os("DOORWARD_SPIFFE_PYTHON").map(PathBuf::from);
    let python = named.or_else(|| outside("python3", "python3"))?;
    let ask = "import spiffe, os; print(os.readlink('/proc/self/exe'))";
    let asked = Command::new(&python).args(["-c", ask]).output();
    let Some(asked) = asked.ok().filter(|asked| asked.status.success()) else {
        missing("the Python package spiffe (python3 -m pip install spiffe==0.3.2)");
        return None;
    };
    let real = String::from_utf8(asked.stdout).unwrap();
    Some((python, real.trim().into()))
}

fn asks_with_python(stage: &Stage, python: &Path) {
    let run = || {
        let mut command = Command::new(python);
        command.args(["-c", PYTHON]).env("SPIFFE_ENDPOINT_SOCKET", endpoint(stage));
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (told, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    until(MOST, run, |(told, _)| told == "spiffe://dev.doorward/py 1 1");
}

fn tokens_in_python(stage: &Stage, python: &Path) {
    let mut command = Command::new(python);
    let keys = format!("http://127.0.0.1:{}/keys", stage.management());
    command.args(["-c", TOKENS, &keys]).env("SPIFFE_ENDPOINT_SOCKET", endpoint(stage));
    let output = command.output().unwrap();
    let me = "spiffe://dev.doorward/py";
    let (told, why) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(String::from_utf8_lossy(&told).trim(), format!("{me} {me} {me} 1 3"), "{why}");
}

/// The same in Go; the program ends with a failure if a check is otherwise.
fn tokens_in_go(stage: &Stage, go: &Path) {
    let run = || {
        let mut command = Command::new(go);
        command.arg("jwt").env("SPIFFE_ENDPOINT_SOCKET", endpoint(stage));
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (told, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let me = "spiffe://dev.doorward/go";
    until(MOST, run, |(told, _)| *told == format!("{me} {me} 2"));
}

/// The client written with go-spiffe, built, where there is Go.
fn go_client() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let go = if usual.exists() { usual } else { outside("go", "golang, 1.24 or later")? };
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-spiffe-client");
    let mut build = Command::new(go);
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/go"));
    build.args(["build", "-buildvcs=false", "-mod=readonly", "-o"]).arg(&built).arg(".");
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(built)
}

/// Two states with an identity and one trust domain each, of different certificates.
fn two_states_in_go(go: &mut Peer) {
    let mut told = String::new();
    go.0.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(go.0.wait().unwrap().success(), "{told}");
    let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split(' ').collect()).collect();
    let [first, second] = lines.as_slice() else { panic!("{told}") };
    assert_eq!(first[..2], ["spiffe://dev.doorward/go", "1"], "{told}");
    assert_eq!(first[..2], second[..2], "{told}");
    assert_ne!(first[2], second[2], "not rotated: {told}");
}
