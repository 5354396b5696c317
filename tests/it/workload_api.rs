//! The SPIFFE Workload API of a real agent, judged by a library that others wrote and by frames made
//! by hand: what it gives to whom, when it gives it again, when it takes it back, and what hostile
//! clients can't do.

use std::process::{Command, Stdio};
use std::time::Duration;

use doorward::app::Stage;
use futures_util::StreamExt as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use spiffe::{WorkloadApiClient, X509Context, X509Source};

use super::http2::{Wire, call, frame, preface};
use super::journey::program;
use super::scene::{outside, register, until};

const MOST: Duration = Duration::from_secs(40);
const TESTER: &str = "spiffe://dev.doorward/tester";

/// A broker and an agent. This very test process is nobody until `tester` is registered.
pub fn stage() -> Stage {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    stage
}

pub fn endpoint(stage: &Stage) -> String {
    format!("unix://{}", stage.workload_socket().display())
}

fn me() -> std::path::PathBuf {
    std::fs::read_link("/proc/self/exe").unwrap()
}

/// An entry for this test process; its id.
pub fn entry(stage: &Stage, name: &str, more: &[&str]) -> String {
    let uid = format!("uid:{}", nix::unistd::getuid());
    let path = format!("path:{}", me().display());
    let mut args = vec!["entry", "create", "--id", name, "--selector", &uid, "--selector", &path];
    args.extend_from_slice(more);
    let made = stage.operator_must(&args, None).unwrap().json();
    made["id"].as_str().unwrap_or_else(|| panic!("no id: {made}")).to_owned()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// An answer that must come in time.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(MOST, what).await.expect("nothing came in time")
}

fn ids(context: &X509Context) -> Vec<String> {
    context.svids().iter().map(|svid| svid.spiffe_id().to_string()).collect()
}

/// Waits until this process is given something, by a client that asks again and again.
pub async fn first_given(client: &WorkloadApiClient) -> X509Context {
    let asking = async {
        loop {
            match client.fetch_x509_context().await {
                Ok(context) => return context,
                Err(spiffe::WorkloadApiError::NoIdentityIssued) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    soon(asking).await
}

/// The chain leads to the bundle that came with it, for this moment and for both sides of TLS, and
/// the key is the leaf's.
pub fn holds_together(context: &X509Context) {
    for svid in context.svids() {
        let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain()).unwrap();
        let roots: Vec<CertificateDer<'_>> =
            bundle.authorities().iter().map(|root| root.as_bytes().into()).collect();
        let anchors: Vec<_> =
            roots.iter().map(|root| webpki::anchor_from_trusted_cert(root).unwrap()).collect();
        let chain: Vec<CertificateDer<'_>> =
            svid.cert_chain().iter().map(|one| one.as_bytes().into()).collect();
        let leaf = webpki::EndEntityCert::try_from(&chain[0]).unwrap();
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &chain[1..],
                UnixTime::now(),
                usage,
                None,
                None,
            )
            .unwrap();
        }
        let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(key));
        let public = key.unwrap().public_key().unwrap().to_vec();
        let (_, read) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert_eq!(read.public_key().raw, public, "the key is another one's");
    }
}

fn serial(context: &X509Context) -> Vec<u8> {
    let leaf = context.svids()[0].leaf();
    let (_, read) = x509_parser::parse_x509_certificate(leaf.as_bytes()).unwrap();
    read.raw_serial().to_vec()
}

#[test]
fn a_library_is_given_everything_and_told_every_change() {
    let stage = stage();
    runtime().block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        let nobody = client.fetch_x509_context().await.unwrap_err();
        assert!(matches!(nobody, spiffe::WorkloadApiError::NoIdentityIssued), "{nobody}");
        assert!(client.fetch_x509_bundles().await.is_err(), "roots are for those with an identity");

        // A short life, so that its half can be waited for.
        entry(&stage, "tester", &["--ttl", "60"]);
        let first = first_given(&client).await;
        assert_eq!(ids(&first), [TESTER]);
        holds_together(&first);
        let again = client.fetch_x509_context().await.unwrap();
        assert_ne!(serial(&first), serial(&again));
        assert_ne!(
            first.svids()[0].private_key().as_bytes(),
            again.svids()[0].private_key().as_bytes(),
            "each stream has keys of its own"
        );
        let roots = client.fetch_x509_bundles().await.unwrap();
        assert_eq!(&roots, first.bundle_set().as_ref());

        let source = X509Source::builder().endpoint(endpoint(&stage)).build().await.unwrap();
        assert_eq!(source.svid().unwrap().spiffe_id().to_string(), TESTER);
        let mut stream = client.stream_x509_contexts().await.unwrap();
        let before = soon(stream.next()).await.unwrap().unwrap();

        let rotated = soon(stream.next()).await.unwrap().unwrap();
        assert_eq!(ids(&rotated), [TESTER]);
        assert_ne!(serial(&before), serial(&rotated), "rotated at half its life");
        holds_together(&rotated);

        changes(&stage, &mut stream, &source).await;
    });
}

type Contexts<'a> = &'a mut (
            dyn futures_util::Stream<Item = Result<X509Context, spiffe::WorkloadApiError>> + Unpin
        );

/// Entries that come and go, and a revocation, on streams that are open.
async fn changes(stage: &Stage, stream: Contexts<'_>, source: &X509Source) {
    let second = "spiffe://dev.doorward/second";
    let id = entry(stage, "second", &["--default"]);
    // What rotates meanwhile is told too.
    let both = soon(async {
        loop {
            let context = stream.next().await.unwrap().unwrap();
            if context.svids().len() == 2 {
                return context;
            }
        }
    });
    let both = both.await;
    assert_eq!(ids(&both), [second, TESTER], "the default one comes first");
    assert_eq!(both.default_svid().unwrap().spiffe_id().to_string(), second);
    holds_together(&both);

    stage.operator_must(&["entry", "delete", &id], None).unwrap();
    soon(async { while ids(&stream.next().await.unwrap().unwrap()) != [TESTER] {} }).await;
    assert!(source.is_healthy());

    stage.operator_must(&["identity", "revoke", "tester"], None).unwrap();
    let ended = soon(async {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                ended => return ended,
            }
        }
    })
    .await;
    let why = ended.expect("a status").unwrap_err();
    assert!(matches!(why, spiffe::WorkloadApiError::NoIdentityIssued), "{why}");
    soon(async {
        while source.svid().is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[test]
fn what_a_call_must_carry_and_what_is_not_served() {
    let stage = stage();
    runtime().block_on(async {
        let status = |path: &'static str, headers: &'static [(&'static str, &'static str)]| {
            let socket = stage.workload_socket();
            async move { soon(call(&socket, path, headers)).await }
        };
        const OK: &[(&str, &str)] = &[("workload.spiffe.io", "true")];
        const X509: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
        // Who asks as he must is nobody; whoever asks otherwise is told so before he is looked at.
        let (code, message) = status(X509, OK).await;
        assert_eq!(
            (code.as_str(), message.contains("no identity issued")),
            ("7", true),
            "{message}"
        );
        for headers in [
            &[][..],
            &[("workload.spiffe.io", "false")],
            &[("workload.spiffe.io", "TRUE")],
            &[("workload.spiffe.io", "true"), ("workload.spiffe.io", "true")],
        ] {
            let (code, message) = status(X509, headers).await;
            assert_eq!(code, "3", "{headers:?}: {message}");
        }
        for path in [
            "/SpiffeWorkloadAPI/FetchWITSVID",
            "/SpiffeWorkloadAPI/FetchWITBundles",
            "/SpiffeWorkloadAPI/Else",
        ] {
            let (code, message) = status(path, OK).await;
            assert_eq!(code, "12", "{path}: {message}");
        }
        // The JWT profile: whoever does not say what he wants is told so before he is looked at.
        for (path, wanted) in [
            ("/SpiffeWorkloadAPI/FetchJWTSVID", ("3", "audience must be specified")),
            ("/SpiffeWorkloadAPI/ValidateJWTSVID", ("3", "audience must be specified")),
            ("/SpiffeWorkloadAPI/FetchJWTBundles", ("7", "no identity issued")),
        ] {
            let (code, message) = status(path, OK).await;
            assert_eq!((code.as_str(), message.contains(wanted.1)), (wanted.0, true), "{message}");
            let (code, message) = status(path, &[]).await;
            assert_eq!(code, "3", "{path}: {message}");
            assert!(message.contains("security header"), "{path}: {message}");
        }
    });
}

#[test]
fn a_broker_that_is_gone_takes_nothing_back() {
    let mut stage = stage();
    entry(&stage, "tester", &[]);
    let runtime = runtime();
    let (client, mut stream) = runtime.block_on(async {
        let client = WorkloadApiClient::connect_to(endpoint(&stage)).await.unwrap();
        first_given(&client).await;
        let mut stream = client.stream_x509_contexts().await.unwrap();
        soon(stream.next()).await.unwrap().unwrap();
        (client, stream)
    });
    stage.stop("broker");
    runtime.block_on(async {
        let why = soon(async {
            loop {
                if let Err(why) = client.fetch_x509_context().await {
                    return why;
                }
            }
        })
        .await;
        assert!(!matches!(why, spiffe::WorkloadApiError::NoIdentityIssued), "{why}");
        assert!(why.to_string().contains("navailable"), "{why}");
        let silent = tokio::time::timeout(Duration::from_millis(500), stream.next()).await;
        assert!(silent.is_err(), "the open stream goes on: {silent:?}");
    });
    stage.stop("agent");
    runtime.block_on(async {
        let ended = soon(stream.next()).await;
        let why = ended.map(|told| told.unwrap_err().to_string());
        assert!(!why.as_ref().is_some_and(|why| why.contains("no identity")), "{why:?}");
    });
    assert!(!stage.workload_socket().exists(), "the socket goes with the agent");
}

/// gRPC-core sends the socket's path as `:authority`, which the HTTP/2 library takes for an attack.
#[test]
fn clients_on_grpc_core_are_served() {
    let stage = stage();
    entry(&stage, "tester", &[]);
    let path = stage.workload_socket();
    let odd = path.display().to_string().trim_start_matches('/').replace('/', "%2F");
    for authority in ["localhost", &odd, path.to_str().unwrap()] {
        until(
            MOST,
            || {
                let mut wire = Wire::open(&path);
                wire.send(&[preface(), super::http2::ask(1, Some(authority))].concat());
                wire.data_of(1)
            },
            |data| data.as_ref().is_some_and(|data| holds(data, TESTER)),
        );
        // And again on one connection, where the name and value come from the table.
        let mut wire = Wire::open(&path);
        wire.send(&[preface(), super::http2::ask(1, Some(authority))].concat());
        assert!(wire.data_of(1).is_some_and(|data| holds(&data, TESTER)), "{authority}");
        wire.send(&super::http2::ask(3, None));
        assert!(wire.data_of(3).is_some_and(|data| holds(&data, TESTER)), "{authority}");
    }
}

fn holds(data: &[u8], text: &str) -> bool {
    data.windows(text.len()).any(|part| part == text.as_bytes())
}

#[test]
fn hostile_clients_end_themselves_only() {
    let stage = stage();
    entry(&stage, "tester", &[]);
    let path = stage.workload_socket();
    let served = || {
        let mut wire = Wire::open(&path);
        wire.send(&[preface(), super::http2::ask(1, Some("localhost"))].concat());
        wire.data_of(1)
    };
    until(MOST, served, Option::is_some);
    // Two that begin and never go on; they are looked at last.
    let mut slow = Wire::open(&path);
    slow.send(&preface()[..10]);
    let mut half = Wire::open(&path);
    let whole = super::http2::ask(1, Some("localhost"));
    half.send(&[preface(), whole[..30].to_vec()].concat());

    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64], &[0xff; 20_000]] {
        let mut wire = Wire::open(&path);
        wire.send(garbage);
        assert!(wire.ends(), "{:?}", &garbage[..8]);
    }
    // Headers beyond the bound: the call or the connection is refused.
    let mut wire = Wire::open(&path);
    let mut block = super::http2::block(Some("localhost"));
    for _ in 0..40 {
        block.extend_from_slice(&[0x00, 1, b'x', 0x7f, 0x81, 0x02]);
        block.extend_from_slice(&[b'a'; 384]);
    }
    wire.send(&[preface(), frame(1, 4, 1, &block), frame(0, 1, 1, &[0; 5])].concat());
    assert_eq!(wire.data_of(1), None);
    // A request that is no message, is too large, or is several.
    for body in [&b"\0\0\0\0\x05"[..], &[0; 10], &[0x41; 8192], b""] {
        let mut wire = Wire::open(&path);
        let head = frame(1, 4, 1, &super::http2::block(Some("localhost")));
        wire.send(&[preface(), head, frame(0, 1, 1, body)].concat());
        assert_eq!(wire.data_of(1), None, "{body:?}");
    }
    // Ten thousand streams at once, and ten thousand that are reset at once.
    for reset in [false, true] {
        let mut wire = Wire::open(&path);
        wire.send(&preface());
        for n in 0..10_000_u32 {
            let stream = 2 * n + 1;
            wire.send(&frame(1, 4, stream, &super::http2::block(Some("localhost"))));
            if reset {
                wire.send(&frame(3, 0, stream, &8_u32.to_be_bytes()));
            }
        }
        drop(wire);
        until(MOST, served, Option::is_some);
    }
    let resident = resident_kib(stage.pid("agent").unwrap());
    assert!(resident < 64 * 1024, "the agent holds {resident} KiB");
    assert!(slow.ends() && half.ends(), "who never goes on is closed");
    until(MOST, served, Option::is_some);
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A program that opens a stream, and becomes a shell that goes on reading it.
const CHANGES: &str = r#"
import os, socket, sys
path, ask = sys.argv[1], bytes.fromhex(sys.argv[2])
wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
wire.settimeout(20)
wire.connect(path)
wire.sendall(ask)
seen = b""
while sys.argv[3].encode() not in seen:
    more = wire.recv(4096)
    if not more:
        sys.exit(3)
    seen += more
sys.stdout.write("given\n")
sys.stdout.flush()
wire.setblocking(True)
os.dup2(wire.fileno(), 9, inheritable=True)
os.execv("/bin/sh", ["sh", "-c", "exec dd bs=4096 count=1 status=none <&9"])
"#;

#[test]
fn the_stream_of_a_process_that_becomes_another_ends() {
    let Some(python) = outside("python3", "python3") else { return };
    let python = std::fs::canonicalize(python).unwrap();
    let stage = stage();
    register(&stage, "py", &python);
    let script = stage.dir().join("changes.py");
    std::fs::write(&script, CHANGES).unwrap();
    let ask = [preface(), super::http2::ask(1, Some("localhost"))].concat();
    let run = || {
        let output = Command::new(&python)
            .arg("-I")
            .arg(&script)
            .arg(stage.workload_socket())
            .arg(hex::encode(&ask))
            .arg("spiffe://dev.doorward/py")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        output.stdout
    };
    let out = until(MOST, run, |out| out.starts_with(b"given\n"));
    let after = &out[b"given\n".len()..];
    // The first that the shell reads is the end of the stream: a head with the flag of the end.
    assert!(after.len() > 9 && after[3] == 1 && after[4] & 1 == 1, "{after:?}");
    assert!(!holds(after, "spiffe://"), "{after:?}");
}

/// A program that lets nothing in, and becomes another once an answer has begun.
const LATE: &str = r#"
import os, socket, sys
wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
wire.settimeout(20)
wire.connect(sys.argv[1])
wire.sendall(bytes.fromhex(sys.argv[2]))
def take(size):
    got = b""
    while len(got) < size:
        more = wire.recv(size - len(got))
        if not more:
            sys.exit(3)
        got += more
    return got
kind, flags = 0, 0
while kind != 1:
    head = take(9)
    kind, flags = head[3], head[4]
    take(int.from_bytes(head[:3], "big"))
if flags & 1:
    sys.exit(3) # refused at once: the entry is not known yet
wire.setblocking(True)
os.dup2(wire.fileno(), 9, inheritable=True)
os.execv("/bin/sh", ["sh", "-c", "timeout 20 cat <&9 && echo closed"])
"#;

#[test]
fn a_message_that_waits_is_not_for_what_the_process_has_become() {
    let Some(python) = outside("python3", "python3") else { return };
    let python = std::fs::canonicalize(python).unwrap();
    let stage = stage();
    register(&stage, "py", &python);
    let script = stage.dir().join("late.py");
    std::fs::write(&script, LATE).unwrap();
    let closed = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]); // SETTINGS_INITIAL_WINDOW_SIZE 0
    let ask = [preface(), closed, super::http2::ask(1, Some("localhost"))].concat();
    let run = || {
        let mut command = Command::new(&python);
        command.arg("-I").arg(&script).arg(stage.workload_socket()).arg(hex::encode(&ask));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let out = until(MOST, run, |out| out.status.code() != Some(3));
    assert!(out.stdout.ends_with(b"closed\n"), "{out:?}");
    assert!(!holds(&out.stdout, "spiffe://"), "{out:?}");
}
