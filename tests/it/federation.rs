//! Federation, with real brokers of different trust domains and an issuer that is not ours: whose
//! workloads get in by whose keys, and what an endpoint can do to us.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use doorward::app::Stage;
use doorward::identity::BundleDocument;
use doorward::model::{Ask, SecretName, SecretValue, SystemClock, TrustDomain};
use doorward::wire::{Client, ClientError, Credentials, HttpsServer, TlsStream};
use futures_util::StreamExt as _;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use spiffe::{WorkloadApiClient, X509Context};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::forge::{Draft, End, PATIENCE, Signer, address_of, extension_of, run};
use super::journey::program;
use super::scene::{add_rows, until};
use super::workload_api::{endpoint, entry, first_given, runtime, soon};

const MOST: Duration = Duration::from_secs(60);
pub(super) const A: &str = "a.example";
pub(super) const B: &str = "b.example";
pub(super) const C: &str = "c.example";

/// A broker of a trust domain of its own. The stage first: its processes end before its directory.
pub(super) struct Domain {
    pub(super) stage: Stage,
    pub(super) operator: Credentials,
    pub(super) endpoint: u16,
    _dir: TempDir,
}

fn free_tcp() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Domain {
    /// Its bundle endpoint shows the broker's own SVID; `more` goes into the section.
    pub(super) fn new(name: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let udp = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let at = |name: &str| dir.path().join(name).display().to_string();
        #[rustfmt::skip]
        let init = Command::new(program()).args([
            "init", &at("broker"), "--trust-domain", name, "--listen", &udp(),
            "--listen-enrolment", &udp(), "--management", &format!("127.0.0.1:{}", free_tcp()),
            "--advertise", "127.0.0.1", "--operator", "you", "--token-file", &at("operator.token"),
        ]).output().unwrap();
        assert!(init.status.success(), "{init:?}");
        let endpoint = free_tcp();
        let file = dir.path().join("broker/broker.toml");
        let mut config = std::fs::read_to_string(&file).unwrap();
        config.push_str(&format!(
            "\n[federation]\nlisten = \"127.0.0.1:{endpoint}\"\nprofile = \"https_spiffe\"\n{more}"
        ));
        std::fs::write(&file, config).unwrap();
        let stage = Stage::with_program(program(), Some(dir.path().to_owned())).unwrap();
        let operator = Credentials::load(&stage.operator_dir()).unwrap();
        Self { stage, operator, endpoint, _dir: dir }
    }

    /// As the operator; gives the last line.
    pub(super) fn must(&self, args: &[&str], stdin: Option<&[u8]>) -> Value {
        self.stage.operator_must(args, stdin).unwrap().json()
    }

    /// What is wrong, in words.
    fn fails(&self, args: &[&str], stdin: Option<&[u8]>) -> String {
        let ran = self.stage.operator(args, stdin).unwrap();
        assert_ne!(ran.code, 0, "{args:?}: {}", ran.stdout);
        ran.fault().to_string()
    }

    pub(super) fn bundle(&self) -> Vec<u8> {
        self.stage.operator_must(&["federation", "bundle"], None).unwrap().stdout.into_bytes()
    }

    fn shown(&self, name: &str) -> Value {
        self.must(&["federation", "show", name], None)
    }

    /// Its first CA key.
    pub(super) fn signer(&self) -> Signer {
        Signer::of_broker(&self.stage.broker_dir(), &self.operator.bundle[0])
    }

    /// What a workload with this leaf asks this broker with.
    pub(super) fn visitor(&self, id: &str, by: &Signer) -> Credentials {
        let key = KeyPair::generate().unwrap();
        Credentials {
            domain: self.operator.domain.clone(),
            broker: self.operator.broker.clone(),
            chain: vec![Draft::leaf(id).signed_by(by, &key)],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            bundle: self.operator.bundle.clone(),
        }
    }
}

async fn connect(credentials: &Credentials) -> Result<Client, ClientError> {
    Client::connect(credentials, Arc::new(SystemClock)).await
}

pub(super) async fn read(client: &Client, name: &str) -> Result<Vec<u8>, ClientError> {
    let name = SecretName::parse(name).unwrap();
    let ask = Ask::Read { name, version: None, have: None };
    Ok(client.ask(ask, SecretValue::empty()).await?.1.body.expose().to_vec())
}

/// Connects anew, and reads.
async fn gets(credentials: &Credentials, name: &str) -> Result<Vec<u8>, ClientError> {
    read(&connect(credentials).await?, name).await
}

fn document(domain: &str, roots: &[&Signer], sequence: u64) -> Vec<u8> {
    let roots = roots.iter().map(|root| root.certificate.clone()).collect();
    let (domain, hint) = (TrustDomain::parse(domain).unwrap(), Duration::from_secs(300));
    BundleDocument::new(domain, roots, Vec::new(), sequence, hint).unwrap().to_json()
}

pub(super) fn root(domain: &str) -> Signer {
    Signer::root(&Draft::authority("root", domain), &rcgen::PKCS_ECDSA_P256_SHA256)
}

/// A secret of each domain's workloads, and a rule for each that names its whole ID.
pub(super) fn with_secrets(a: &Domain) {
    let mut rows = String::new();
    for (name, domain) in [("b", B), ("c", C)] {
        a.must(&["put", &format!("{name}/url")], Some(format!("for {name}").as_bytes()));
        rows.push_str(&format!(
            "p, {name}-url, spiffe://{domain}/ns/pay, secret/{name}/url, read, any, -, -, allow\n"
        ));
    }
    add_rows(&a.stage, &rows);
}

/// The web as a test has it: a CA, and what certificates it gave.
struct Web {
    ca: CertificateParams,
    key: KeyPair,
}

impl Web {
    fn new() -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "the web");
        Self { ca, key: KeyPair::generate().unwrap() }
    }

    fn roots(&self) -> String {
        self.ca.self_signed(&self.key).unwrap().pem()
    }

    fn server(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> HttpsServer {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        change(&mut params);
        let issuer = Issuer::from_params(&self.ca, &self.key);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let (leaf, key) = (leaf.pem(), key.serialize_pem());
        HttpsServer::web(leaf.as_bytes(), key.as_bytes(), Arc::new(SystemClock)).unwrap()
    }
}

/// What an endpoint does with a connection.
#[derive(Clone)]
enum Act {
    /// Says nothing at all.
    Silent,
    /// Says this before any handshake.
    Raw(&'static [u8]),
    /// Goes through the handshake, and says nothing.
    Shaken,
    /// Answers with these bytes, and closes.
    Says(Vec<u8>),
    /// Answers with these, without a goodbye.
    Breaks(Vec<u8>),
    /// Answers with these over and over.
    Floods(Vec<u8>, Vec<u8>),
    /// One byte now and then.
    Drips(Vec<u8>),
}

fn answered(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// An endpoint that does as it is told.
struct Hostile {
    address: SocketAddr,
    acts: Arc<Mutex<(Act, Arc<HttpsServer>)>>,
    _runtime: tokio::runtime::Runtime,
}

impl Hostile {
    fn new(server: HttpsServer, act: Act) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let acts = Arc::new(Mutex::new((act, Arc::new(server))));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, told) = (listener.local_addr().unwrap(), Arc::clone(&acts));
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (act, server) = told.lock().unwrap().clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(MOST, serve(tcp, act, server)).await;
                });
            }
        });
        Self { address, acts, _runtime: runtime }
    }

    fn act(&self, act: Act) {
        self.acts.lock().unwrap().0 = act;
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/bundle", self.address.port())
    }
}

async fn serve(mut tcp: TcpStream, act: Act, server: Arc<HttpsServer>) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    match act {
        Act::Silent => return std::future::pending().await,
        Act::Raw(bytes) => {
            tcp.write_all(bytes).await?;
            return std::future::pending().await;
        }
        _ => {}
    }
    let mut stream = TlsStream::shake(tcp, server.begin().unwrap()).await?;
    let request = stream.read().await?;
    assert!(request.starts_with(b"GET /bundle HTTP/1.1\r\nHost: 127.0.0.1:"));
    match act {
        Act::Says(bytes) => {
            stream.write_all(&bytes).await?;
            stream.finish().await
        }
        Act::Breaks(bytes) => stream.write_all(&bytes).await,
        Act::Floods(head, bytes) => {
            stream.write_all(&head).await?;
            loop {
                stream.write_all(&bytes).await?;
            }
        }
        Act::Drips(bytes) => {
            for byte in bytes.iter().cycle() {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        }
        _ => std::future::pending().await,
    }
}

#[test]
fn workloads_of_two_other_domains_get_their_secret_under_rules_of_their_own() {
    let (web, c) = (Web::new(), root(C));
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("web.pem");
    std::fs::write(&roots, web.roots()).unwrap();
    let mut a = Domain::new(A, &format!("web_roots = \"{}\"\n", roots.display()));
    let b = Domain::new(B, "");
    with_secrets(&a);
    let of_c = |sequence| Act::Says(answered(&document(C, &[&c], sequence)));
    let endpoint = Hostile::new(web.server("127.0.0.1", |_| {}), of_c(1));
    let by_b = b.signer();
    let from_b = a.visitor("spiffe://b.example/ns/pay", &by_b);
    let from_c = a.visitor("spiffe://c.example/ns/pay", &c);
    run(async {
        assert!(connect(&from_b).await.is_err() && connect(&from_c).await.is_err(), "strangers");
    });

    // B over https_spiffe, known by the bundle that its operator handed over.
    let url = format!("https://127.0.0.1:{}/", b.endpoint);
    #[rustfmt::skip]
    let add = [
        "federation", "add", B, "--url", &url, "--profile", "https_spiffe",
        "--endpoint-id", "spiffe://b.example/doorward/broker", "--bundle", "-",
    ];
    assert_eq!(a.must(&add, Some(&b.bundle()))["roots"], 1);
    until(MOST, || a.shown(B), |it| it["attempts"] != 0 && it["fault"].is_null());
    // C over https_web, known by its endpoint alone.
    let add = ["federation", "add", C, "--url", &endpoint.url(), "--profile", "https_web"];
    a.must(&add, None);
    until(MOST, || a.shown(C), |it| it["roots"] == 1);
    assert!(a.stage.metric("doorward_federated_domains") == Some(2.0));

    run(async {
        assert_eq!(gets(&from_b, "b/url").await.unwrap(), b"for b");
        assert_eq!(gets(&from_c, "c/url").await.unwrap(), b"for c");
        let client = connect(&from_b).await.unwrap();
        for other in ["c/url", "b/other"] {
            let refused = read(&client, other).await.unwrap_err();
            assert!(refused.is_denied(), "{refused}");
        }
        // Another path of the same domain, and the same path of another one.
        for (id, by) in [("spiffe://b.example/ns/web", &by_b), ("spiffe://c.example/ns/pay", &c)] {
            let refused = gets(&a.visitor(id, by), "b/url").await.unwrap_err();
            assert!(refused.is_denied(), "{id}: {refused}");
        }
    });
    // B publishes its next key before it signs; that is fetched, and counts up.
    let before = a.shown(B)["sequence"].as_u64().unwrap();
    b.must(&["ca", "prepare"], None);
    let now = a.must(&["federation", "refresh", B], None);
    assert_eq!(now["roots"], 2);
    assert!(now["sequence"].as_u64().unwrap() > before);

    // The endpoint goes, and the broker starts anew: the last good ones are in force.
    endpoint.act(Act::Raw(b"gone"));
    a.stage.stop("broker");
    a.stage.start_broker().unwrap();
    let shown = until(MOST, || a.shown(C), |it| it["fault"].is_string());
    assert_eq!(shown["roots"], 1);
    assert!(shown["age_s"].is_u64(), "{shown}");
    let (client_b, client_c) = run_open(&from_b, &from_c);

    // What a domain trusts no more, and what is not federated any more, is closed at once.
    let empty = String::from_utf8(document(C, &[], 2)).unwrap();
    endpoint.act(Act::Says(answered(empty.as_bytes())));
    assert_eq!(a.must(&["federation", "refresh", C], None)["roots"], 0);
    closed_soon(&client_c);
    a.must(&["federation", "remove", B], None);
    closed_soon(&client_b);
    run(async {
        assert!(connect(&from_b).await.is_err() && connect(&from_c).await.is_err());
    });
    let log = a.stage.operator_must(&["log", "tail", "-n", "200"], None).unwrap().stdout;
    for op in ["federation_add", "federation_take", "federation_remove"] {
        assert!(log.contains(op), "{op}");
    }
}

/// Connections that were used, on a runtime that goes on.
fn run_open(b: &Credentials, c: &Credentials) -> (Open, Open) {
    let open = |credentials: &Credentials, name: &str| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(connect(credentials)).unwrap();
        runtime.block_on(read(&client, name)).unwrap();
        Open { client, runtime }
    };
    (open(b, "b/url"), open(c, "c/url"))
}

struct Open {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

fn closed_soon(open: &Open) {
    let closed = async { tokio::time::timeout(PATIENCE, open.client.closed()).await };
    let why = open.runtime.block_on(closed).expect("it stays open");
    assert!(why.contains("revoked"), "{why}");
}

/// Each of three keys, signing for each of three names, with each of three chains beside it: only
/// who signs for its own domain, and shows nothing of another's, gets in.
#[test]
fn the_confusion_matrix_of_three_domains_has_its_diagonal_only() {
    let a = Domain::new(A, "");
    with_secrets(&a);
    let signers = [(A, a.signer()), (B, root(B)), (C, root(C))];
    for (name, signer) in &signers[1..] {
        let body = document(name, &[signer], 1);
        a.must(&["federation", "add", name, "--bundle", "-"], Some(&body));
    }
    let address = address_of(&a.operator);
    let mut cases: Vec<(String, bool, Draft, &Signer, Vec<super::forge::Der>)> = Vec::new();
    let draft = |name: &str| match name {
        A => {
            let mut draft = Draft::leaf("spiffe://a.example/doorward/operator/you");
            draft.more.push(extension_of(&a.operator.chain[0]));
            draft
        }
        name => Draft::leaf(&format!("spiffe://{name}/ns/pay")),
    };
    let below: Vec<Vec<Signer>> = signers
        .iter()
        .map(|(_, signer)| {
            let under = |name: &&str| signer.under(&Draft::authority("below", name));
            [A, B, C].iter().map(under).collect()
        })
        .collect();
    for (at, (by, signer)) in signers.iter().enumerate() {
        for claimed in [A, B, C] {
            let name = |beside: &str| format!("signed by {by} for {claimed}, beside it {beside}");
            let right = *by == claimed;
            cases.push((name("nothing"), right, draft(claimed), signer, Vec::new()));
            for (shown, other) in &signers {
                let chain = vec![other.certificate.clone()];
                let passes = right && *shown == claimed;
                cases.push((
                    name(&format!("the root of {shown}")),
                    passes,
                    draft(claimed),
                    signer,
                    chain,
                ));
            }
            for (below, of) in below[at].iter().zip([A, B, C]) {
                let chain = vec![below.certificate.clone()];
                // Our own root signs leaves only.
                let passes = right && of == claimed && *by != A;
                let name = name(&format!("and below {by}, a key for {of}"));
                cases.push((name, passes, draft(claimed), below, chain));
            }
        }
    }
    assert_eq!(cases.len(), 3 * 3 * (1 + 3 + 3));
    let (mut wrong, mut passed) = (Vec::new(), 0);
    run(async {
        for (name, passes, draft, by, beside) in cases {
            let key = KeyPair::generate().unwrap();
            let mut chain = vec![draft.signed_by(by, &key)];
            chain.extend(beside);
            let knocked = End::of(chain, &key).knock(address).await;
            passed += usize::from(knocked.is_ok());
            let told = match &knocked {
                Ok(conversation) => format!("{:?}", conversation.ask(r#"{"whoami":{}}"#).await),
                Err(error) => error.clone(),
            };
            let whole = told.contains("Answer") && told.contains("spiffe_id");
            if knocked.is_ok() != passes || whole != passes || told.contains("in time") {
                wrong.push(format!("{name}: {told}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(passed, 3 + 3 + 2);

    // A visitor is a workload and nothing else, whatever its path says and whoever is its device.
    run(async {
        let mut operator = Draft::leaf("spiffe://b.example/doorward/operator/you");
        operator.more.push(extension_of(&a.operator.chain[0]));
        let key = KeyPair::generate().unwrap();
        let end = End::of(vec![operator.signed_by(&signers[1].1, &key)], &key);
        let conversation = end.knock(address).await.unwrap();
        let told = format!("{:?}", conversation.ask(r#"{"whoami":{}}"#).await);
        assert!(told.contains("device: None"), "{told}");
        for ask in [
            r#"{"policy_read":{}}"#,
            r#"{"federation":{"list":{}}}"#,
            r#"{"federation":{"remove":{"trust_domain":"c.example","id":"0192a0b0-0000-7000-8000-000000000000"}}}"#,
            r#"{"device_list":{}}"#,
            r#"{"renew":{}}"#,
            r#"{"duties":{}}"#,
            r#"{"bundle":{}}"#,
            r#"{"read":{"name":"b/url"}}"#,
            r#"{"operator_add":{"name":"eve"}}"#,
        ] {
            let reply = conversation.ask(ask).await;
            let reason = super::forge::reason(&reply);
            assert!(reason.starts_with("D1"), "{ask}: {reason}");
        }
    });
}

/// Bundles that are no news, and what they must be answered with.
fn bad_answers(a: &Domain, b: &Signer, c: &Signer) -> Vec<(&'static str, Act, &'static str)> {
    let says = |body: &[u8]| Act::Says(answered(body));
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n").into_bytes();
    let large = vec![b' '; 64 * 1024];
    let other = root(C);
    vec![
        ("no TLS", Act::Raw(b"HTTP/1.1 200 OK\r\n\r\n{}"), "did not prove itself"),
        ("no HTTP", Act::Says(b"220 mail.example ESMTP\r\n".to_vec()), "no status line"),
        ("a page", says(b"<html></html>"), "not strict json"),
        ("half a document", says(b"{\"keys\":["), "not strict json"),
        ("no keys", says(b"{}"), "`keys` is missing"),
        ("keys twice", says(b"{\"keys\":[],\"keys\":[]}"), "not strict json"),
        ("keys of nobody", says(b"{\"keys\":[{\"kty\":\"x\"}]}"), "can be used"),
        ("an older sequence", says(&document(C, &[c], 4)), "older than 5"),
        ("an older one that revokes", says(&document(C, &[], 4)), "older than 5"),
        ("another of this sequence", says(&document(C, &[c, &other], 5)), "same sequence"),
        ("the keys of another domain", says(&document(C, &[b], 6)), "another trust domain"),
        ("our own keys", says(&a.bundle()), "our own trust domain"),
        (
            "100 MB, and says so",
            Act::Floods(head("Content-Length: 104857600"), large.clone()),
            "more than",
        ),
        (
            "100 MB in chunks",
            Act::Floods(
                head("Transfer-Encoding: chunked"),
                [b"10000\r\n", &large[..], b"\r\n"].concat(),
            ),
            "more than",
        ),
        ("100 MB without a word", Act::Floods(head("X: y"), large.clone()), "more than"),
        (
            "a head without end",
            Act::Floods(b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: y\r\n".repeat(1000)),
            "lines before the body",
        ),
        (
            "a redirect",
            Act::Says(b"HTTP/1.1 302 F\r\nLocation: http://c/\r\n\r\n".to_vec()),
            "redirects",
        ),
        (
            "an error",
            Act::Says(b"HTTP/1.1 500 E\r\nContent-Length: 0\r\n\r\n".to_vec()),
            "status 500",
        ),
        ("cut off", Act::Breaks(answered(&document(C, &[c], 9))[..200].to_vec()), "broke"),
    ]
}

#[test]
fn whatever_an_endpoint_does_the_last_good_bundle_stays_in_force() {
    let (web, b, c) = (Web::new(), root(B), root(C));
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("web.pem");
    std::fs::write(&roots, web.roots()).unwrap();
    let a = Domain::new(A, &format!("web_roots = \"{}\"\n", roots.display()));
    with_secrets(&a);
    let good = Act::Says(answered(&document(C, &[&c], 5)));
    let endpoint = Hostile::new(web.server("127.0.0.1", |_| {}), good.clone());
    a.must(&["federation", "add", C, "--url", &endpoint.url(), "--profile", "https_web"], None);
    until(MOST, || a.shown(C), |it| it["roots"] == 1);
    let visitor = a.visitor("spiffe://c.example/ns/pay", &c);
    let stands = |name: &str| {
        let shown = a.shown(C);
        assert_eq!(
            (&shown["roots"], &shown["sequence"]),
            (&1.into(), &5.into()),
            "{name}: {shown}"
        );
        assert!(shown["age_s"].is_u64(), "{name}: {shown}");
        run(async { assert_eq!(gets(&visitor, "c/url").await.unwrap(), b"for c", "{name}") });
    };
    stands("the control");
    for (name, act, want) in bad_answers(&a, &b, &c) {
        endpoint.act(act);
        let told = a.fails(&["federation", "refresh", C], None);
        assert!(told.contains(want) && told.contains("last good bundle"), "{name}: {told}");
        stands(name);
    }

    // Certificates that are not the endpoint's.
    endpoint.act(good);
    let past = |it: &mut CertificateParams| {
        it.not_before = rcgen::date_time_ymd(2020, 1, 1);
        it.not_after = rcgen::date_time_ymd(2021, 1, 1);
    };
    for (name, server) in [
        ("an expired certificate", web.server("127.0.0.1", past)),
        ("another host's certificate", web.server("other.example", |_| {})),
        ("a certificate of nobody", Web::new().server("127.0.0.1", |_| {})),
    ] {
        endpoint.acts.lock().unwrap().1 = Arc::new(server);
        let told = a.fails(&["federation", "refresh", C], None);
        assert!(told.contains("did not prove itself"), "{name}: {told}");
        stands(name);
    }
    let alarms = a.stage.operator_must(&["log", "tail", "-n", "400", "--holding", "alarm"], None);
    let alarms = alarms.unwrap().stdout;
    for word in ["older than 5", "same sequence", "more than", "redirects", "prove itself"] {
        assert!(alarms.contains(word), "no alarm says {word}: {alarms}");
    }
    assert!(a.stage.metric("doorward_federation_fetches_failed_total") >= Some(20.0));

    // Those that hang, each at another step: none holds up the others, nor longer than its bound.
    endpoint.acts.lock().unwrap().1 = Arc::new(web.server("127.0.0.1", |_| {}));
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec();
    let drips = |bytes: &[u8]| Act::Drips(bytes.to_vec());
    let hanging = [
        Act::Silent,
        Act::Shaken,
        drips(b"H"),
        drips(&head),
        drips(b"HTTP/1.1 200 OK\r\nx: y\r\n"),
    ];
    let hanging = hanging.map(|act| Hostile::new(web.server("127.0.0.1", |_| {}), act));
    let began = Instant::now();
    for (number, it) in hanging.iter().enumerate() {
        let name = format!("d{number}.example");
        a.must(&["federation", "add", &name, "--url", &it.url(), "--profile", "https_web"], None);
    }
    a.must(&["federation", "refresh", C], None);
    stands("beside those that hang");
    for number in 0..hanging.len() {
        let name = format!("d{number}.example");
        let shown = until(MOST, || a.shown(&name), |it| it["fault"].is_string());
        let fault = shown["fault"].as_str().unwrap();
        assert!(fault.contains("within 10 s") || fault.contains("http/1.1"), "{name}: {fault}");
        assert_eq!(shown["roots"], 0);
    }
    assert!(began.elapsed() < MOST, "they hung one after the other");
}

#[test]
fn an_endpoint_with_an_svid_is_the_one_that_was_named_and_no_other() {
    let (a, b) = (Domain::new(A, ""), Domain::new(B, ""));
    let (bundle, url) = (b.bundle(), format!("https://127.0.0.1:{}", b.endpoint));
    let add = |id: &str, body: &[u8]| {
        #[rustfmt::skip]
        let add = [
            "federation", "add", B, "--url", &url, "--profile", "https_spiffe",
            "--endpoint-id", id, "--bundle", "-",
        ];
        a.must(&add, Some(body));
        let shown = until(MOST, || a.shown(B), |it| it["attempts"] != 0);
        a.must(&["federation", "remove", B], None);
        shown
    };
    let broker = "spiffe://b.example/doorward/broker";
    assert!(add(broker, &bundle)["fault"].is_null(), "the control");
    let other = add("spiffe://b.example/doorward/other", &bundle);
    assert!(other["fault"].as_str().unwrap().contains("did not prove itself"), "{other}");
    // The right ID under a key that is not in the bundle, as somebody in between would show it.
    let between = add(broker, &document(B, &[&root(B)], 1));
    assert!(between["fault"].as_str().unwrap().contains("did not prove itself"), "{between}");

    // The endpoint itself: one path, one method, no certificate asked for.
    let web = a.fails(
        &["federation", "add", B, "--url", "http://b.example", "--profile", "https_web"],
        None,
    );
    assert!(web.contains("https://"), "{web}");
    let asks = |request: &str| {
        let identity = view_of(&b);
        let id = doorward::model::SpiffeId::parse(broker).unwrap();
        run(async {
            let client =
                doorward::wire::HttpsClient::spiffe(identity, id, Arc::new(SystemClock)).unwrap();
            let tcp = TcpStream::connect(("127.0.0.1", b.endpoint)).await.unwrap();
            let mut stream =
                TlsStream::shake(tcp, client.begin("x.example").unwrap()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut all = Vec::new();
            loop {
                match stream.read().await {
                    Ok(came) if came.is_empty() => break,
                    Ok(came) => all.extend(came),
                    Err(_) => break,
                }
            }
            String::from_utf8_lossy(&all).into_owned()
        })
    };
    let served = asks("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(served.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json"), "{served}");
    let body = served.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(body, String::from_utf8(bundle).unwrap().trim_end());
    assert!(body.contains("spiffe_refresh_hint") && body.contains("spiffe_sequence"));
    assert!(asks("GET /x HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(asks("POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(asks("PRI * HTTP/2.0\r\n\r\n").starts_with("HTTP/1.1 400"));
    let long = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(10_000));
    assert!(asks(&long).starts_with("HTTP/1.1 431"));
}

/// What a client of an endpoint knows of its domain.
fn view_of(domain: &Domain) -> Arc<doorward::identity::Identity> {
    let name = domain.operator.domain.clone();
    let roots = domain.operator.bundle.clone();
    let bundle = doorward::identity::Bundle { roots };
    Arc::new(doorward::identity::Identity::new(doorward::identity::View {
        trust_domain: name.clone(),
        bundles: Arc::new([(name, bundle)].into()),
        own_issuers: Arc::default(),
        devices: Arc::default(),
        entries: Arc::default(),
        denied: Arc::default(),
    }))
}

#[test]
fn a_key_that_is_new_is_fetched_when_somebody_shows_it() {
    let (web, old, new) = (Web::new(), root(C), root(C));
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("web.pem");
    std::fs::write(&roots, web.roots()).unwrap();
    let a = Domain::new(A, &format!("web_roots = \"{}\"\n", roots.display()));
    with_secrets(&a);
    let says = |roots: &[&Signer], sequence| Act::Says(answered(&document(C, roots, sequence)));
    let endpoint = Hostile::new(web.server("127.0.0.1", |_| {}), says(&[&old], 1));
    a.must(&["federation", "add", C, "--url", &endpoint.url(), "--profile", "https_web"], None);
    until(MOST, || a.shown(C), |it| it["roots"] == 1);
    endpoint.act(says(&[&old, &new], 2));
    let visitor = a.visitor("spiffe://c.example/ns/pay", &new);
    run(async { assert!(connect(&visitor).await.is_err(), "nobody knows it yet") });
    let gets = || run(async { gets(&visitor, "c/url").await.is_ok() });
    until(MOST, gets, |gets| *gets);
    assert_eq!(a.shown(C)["roots"], 2);
}

/// A workload of each domain, each by the Workload API of its own agent and a library of others; and
/// one of them at the other's broker.
#[test]
fn workloads_hear_of_each_others_domain_and_ask_each_others_broker() {
    let (mut a, mut b) = (Domain::new(A, ""), Domain::new(B, ""));
    with_secrets(&a);
    for domain in [&mut a, &mut b] {
        domain.stage.start_agent().unwrap();
    }
    let add = |to: &Domain, of: &Domain, name: &str| {
        let url = format!("https://127.0.0.1:{}/", of.endpoint);
        let id = format!("spiffe://{name}/doorward/broker");
        #[rustfmt::skip]
        let add = [
            "federation", "add", name, "--url", &url, "--profile", "https_spiffe",
            "--endpoint-id", &id, "--bundle", "-",
        ];
        to.must(&add, Some(&of.bundle()));
    };
    add(&a, &b, B);
    add(&b, &a, A);
    entry(&a.stage, "shop", &["--federates-with", B]);
    entry(&b.stage, "ns/pay", &["--federates-with", A, "--federates-with", "nobody.example"]);
    let runtime = runtime();
    let client = |domain: &Domain| {
        runtime.block_on(WorkloadApiClient::connect_to(endpoint(&domain.stage))).unwrap()
    };
    let (to_a, to_b) = (client(&a), client(&b));
    let known = |context: &X509Context, name: &str| {
        let domain = spiffe::TrustDomain::new(name).unwrap();
        let bundle = context.bundle_set().get(&domain);
        bundle.map(|it| it.authorities().iter().map(|root| root.as_bytes().to_vec()).collect())
    };
    let of = |domain: &Domain| {
        let roots = domain.operator.bundle.iter();
        Some(roots.map(|root| root.as_ref().to_vec()).collect::<Vec<_>>())
    };
    let next = |client: &WorkloadApiClient, name: &str, want: usize| {
        runtime.block_on(soon(async {
            let mut stream = loop {
                match client.stream_x509_contexts().await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            loop {
                let Some(told) = stream.next().await else { panic!("the stream ended") };
                let Ok(context) = told else { continue };
                let roots: Option<Vec<Vec<u8>>> = known(&context, name);
                if roots.map_or(0, |roots| roots.len()) == want {
                    return context;
                }
            }
        }))
    };
    runtime.block_on(first_given(&to_a));
    runtime.block_on(first_given(&to_b));
    let (in_a, in_b) = (next(&to_a, B, 1), next(&to_b, A, 1));
    assert_eq!((known(&in_a, A), known(&in_a, B)), (of(&a), of(&b)));
    assert_eq!((known(&in_b, A), known(&in_b, B)), (of(&a), of(&b)));
    assert_eq!(in_b.bundle_set().len(), 2, "nobody is made up");

    // With the SVID and the bundle that it was told of, a workload of B asks the broker of A.
    let svid = &in_b.svids()[0];
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://b.example/ns/pay");
    let chain = svid.cert_chain().iter().map(|one| one.as_bytes().to_vec().into());
    let key = svid.private_key().as_bytes().to_vec();
    let visitor = Credentials {
        domain: a.operator.domain.clone(),
        broker: a.operator.broker.clone(),
        chain: chain.collect(),
        key: PrivateKeyDer::Pkcs8(key.into()),
        bundle: known(&in_b, A).unwrap_or_default().into_iter().map(Into::into).collect(),
    };
    assert_eq!(run(gets(&visitor, "b/url")).unwrap(), b"for b");
    assert!(run(gets(&visitor, "c/url")).unwrap_err().is_denied());

    // Tokens too: each checks the other's by the keys that it was told, and nobody's by another's.
    let token = |client: &WorkloadApiClient| {
        runtime.block_on(soon(async {
            loop {
                match client.fetch_jwt_svid(["shop"], None).await {
                    Ok(token) => break token.token().to_owned(),
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                }
            }
        }))
    };
    let checked = |client: &WorkloadApiClient, audience: &str, token: &str| {
        runtime.block_on(client.validate_jwt_token(audience, token))
    };
    let (of_a, of_b) = (token(&to_a), token(&to_b));
    assert!(checked(&to_a, "shop", &of_b).is_ok() && checked(&to_b, "shop", &of_a).is_ok());
    assert!(checked(&to_a, "shop", &of_a).is_ok(), "its own as well");
    assert!(checked(&to_a, "other", &of_b).is_err(), "for another audience");
    let sets = runtime.block_on(to_a.fetch_jwt_bundles()).unwrap();
    for name in [A, B] {
        let domain = spiffe::TrustDomain::new(name).unwrap();
        assert!(sets.get(&domain).is_some(), "{name}");
    }

    // B's next key is told to A's workloads before it signs; a domain that is removed is taken back.
    b.must(&["ca", "prepare"], None);
    a.must(&["federation", "refresh", B], None);
    assert_eq!(known(&next(&to_a, B, 2), A), of(&a));
    a.must(&["federation", "remove", B], None);
    assert_eq!(known(&next(&to_a, B, 0), A), of(&a));
    assert!(checked(&to_a, "shop", &of_b).is_err(), "nobody knows its keys any more");
}
