//! Who gets through the door: real QUIC handshakes against a real broker process, with certificates
//! that its own CA key signed and that it must refuse all the same.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use doorward::app::Stage;
use doorward::model::SystemClock;
use doorward::wire::{self, Client, ClientError, Credentials, Reply};
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::KeyPair;
use rustls::NamedGroup;
use rustls::client::Tls13ClientSessionValue;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::pki_types::{PrivateKeyDer, ServerName};

use super::forge::{
    ANY_PURPOSE, CLIENT_AUTH, CODE_SIGNING, Conversation, DNS, Der, Draft, End, SERVER_AUTH,
    Signer, URI, address_of, domain, extension_of, run, tlv, until,
};
use super::journey::program;

const OPERATOR: &str = "spiffe://dev.doorward/doorward/operator/you";
const WHOAMI: &str = r#"{"whoami":{}}"#;

/// A broker, its operator, and its CA key in the wrong hands.
struct Scene {
    stage: Stage,
    operator: Credentials,
    ca: Signer,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::with_program(program(), None).unwrap();
        let operator = Credentials::load(&stage.operator_dir()).unwrap();
        let ca = Signer::of_broker(&stage.broker_dir(), &operator.bundle[0]);
        Self { stage, operator, ca }
    }

    /// The operator's own leaf, made anew.
    fn leaf(&self) -> Draft {
        let mut draft = Draft::leaf(OPERATOR);
        draft.more.push(extension_of(&self.operator.chain[0]));
        draft
    }
}

/// A chain with the leaf's key, and a word for it.
type Case = (String, Vec<Der>, KeyPair);

struct Cases<'s> {
    scene: &'s Scene,
    all: Vec<Case>,
}

impl Cases<'_> {
    fn leaf(&mut self, name: &str, change: impl FnOnce(&mut Draft)) {
        let (key, mut draft) = (KeyPair::generate().unwrap(), self.scene.leaf());
        change(&mut draft);
        let leaf = draft.signed_by(&self.scene.ca, &key);
        self.all.push((name.to_owned(), vec![leaf], key));
    }

    fn under(&mut self, name: &str, draft: &Draft, by: &Signer, beside: &[&Signer]) {
        let key = KeyPair::generate().unwrap();
        let mut chain = vec![draft.signed_by(by, &key)];
        chain.extend(beside.iter().map(|signer| signer.certificate.clone()));
        self.all.push((name.to_owned(), chain, key));
    }
}

fn bad_leaves(cases: &mut Cases<'_>) {
    let hour = Duration::from_secs(3600);
    cases.leaf("expired a second ago", |d| d.not_after = d.not_before + Duration::from_secs(9));
    cases.leaf("expired an hour ago", |d| {
        (d.not_before, d.not_after) = (d.not_before - 2 * hour, d.not_before - hour);
    });
    cases.leaf("not yet valid", |d| d.not_before += hour);
    cases.leaf("valid from five seconds on", |d| d.not_before += Duration::from_secs(15));
    cases.leaf("cA=true", |d| d.constraints = Some(tlv(0x30, &tlv(0x01, &[0xff]))));
    cases.leaf("no basicConstraints", |d| d.constraints = None);
    cases.leaf("a leaf's path length", |d| d.constraints = Some(tlv(0x30, &[2, 1, 0])));
    cases.leaf("no keyUsage", |d| d.usage = None);
    cases.leaf("keyUsage that is not critical", |d| d.usage = Some((false, vec![3, 2, 7, 0x80])));
    for (name, bits) in [
        ("no digitalSignature", [3, 0x08]),
        ("keyUsage without a bit", [0, 0]),
        ("keyCertSign", [2, 0x84]),
        ("cRLSign", [1, 0x82]),
        ("keyCertSign and cRLSign", [1, 0x86]),
    ] {
        cases.leaf(name, |d| d.usage = Some((true, tlv(0x03, &bits))));
    }
    for (name, purposes) in [
        ("for servers only", vec![SERVER_AUTH]),
        ("for clients only", vec![CLIENT_AUTH]),
        ("for any purpose", vec![ANY_PURPOSE]),
        ("for any purpose and clients", vec![ANY_PURPOSE, CLIENT_AUTH]),
        ("for signing code", vec![CODE_SIGNING]),
        ("for nothing", vec![]),
    ] {
        cases.leaf(name, |d| d.purposes = Some(purposes));
    }
    cases.leaf("an unknown critical extension", |d| d.more.push((vec![1, 2, 3], true, vec![5, 0])));
    cases.leaf("our extension, critical", |d| d.more[0].1 = true);
    cases.leaf("our extension, of another form", |d| d.more[0].2 = tlv(0x0c, b"{}"));
    cases.leaf("our extension twice", |d| d.more.push(d.more[0].clone()));
    cases.leaf("keyUsage twice", |d| d.more.push((vec![2, 5, 29, 15], true, vec![3, 2, 7, 0x80])));
    cases.leaf("serial number zero", |d| d.serial = vec![0]);
    cases.leaf("a serial number of 21 bytes", |d| d.serial = vec![0x7f; 21]);
    cases.leaf("a leaf of 20 KiB", |d| d.more.push((vec![1, 2, 3], false, vec![5; 20 * 1024])));
}

fn bad_names(cases: &mut Cases<'_>) {
    cases.leaf("no names", |d| d.names.clear());
    cases.leaf("a DNS name only", |d| d.names = vec![(DNS, b"dev.doorward".to_vec())]);
    cases.leaf("two IDs", |d| d.names.push((URI, b"spiffe://dev.doorward/other".to_vec())));
    cases.leaf("one ID twice", |d| d.names.push(d.names[0].clone()));
    cases.leaf("a web address beside the ID", |d| d.names.push((URI, b"https://a.b".to_vec())));
    cases.leaf("an empty subject and plain names", |d| d.names_critical = false);
    for uri in [
        "spiffe://other.example/doorward/operator/you",
        "spiffe://dev.doorward",
        "spiffe://dev.doorward/",
        "spiffe://DEV.doorward/doorward/operator/you",
        "spiffe://dev.doorward:8443/doorward/operator/you",
        "spiffe://you@dev.doorward/doorward/operator/you",
        "spiffe://dev.doorward/doorward//operator/you",
        "spiffe://dev.doorward/x/../doorward/operator/you",
        "spiffe://dev.doorward/doorward/operator/%79ou",
        "spiffe://dev.doorward/doorward/operator/you?x",
        "spiffe://dev.doorward/doorward/operator/you#x",
        "spiffe://dev.doorward/doorward/operator/you\0",
        "SPIFFE://dev.doorward/doorward/operator/you",
        "https://dev.doorward/doorward/operator/you",
    ] {
        cases.leaf(&format!("the URI {uri:?}"), |d| d.names[0].1 = uri.as_bytes().to_vec());
    }
    cases.leaf("a URI of 4 KiB", |d| {
        d.names[0].1 = format!("spiffe://dev.doorward/{}", "a".repeat(4096)).into_bytes();
    });
}

fn bad_chains(cases: &mut Cases<'_>) {
    let (good, ca) = (cases.scene.leaf(), &cases.scene.ca);
    let key = KeyPair::generate().unwrap();
    cases.all.push(("self-signed".into(), vec![good.self_signed(&key)], key));
    for algorithm in [&rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = good.signed_by(ca, &key);
        cases.all.push((format!("a leaf key of {algorithm:?}"), vec![leaf], key));
    }
    let key = KeyPair::generate().unwrap();
    let mut leaf = good.signed_by(ca, &key).to_vec();
    *leaf.last_mut().unwrap() ^= 1;
    cases.all.push(("a flipped bit in the signature".into(), vec![leaf.into()], key));
    let stolen = cases.scene.operator.chain.clone();
    cases.all.push(("another's certificate".into(), stolen, KeyPair::generate().unwrap()));

    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let name = ca.params.distinguished_name.iter().find_map(|(_, value)| match value {
        rcgen::DnValue::Utf8String(text) => Some(text.clone()),
        _ => None,
    });
    let impostor = Signer::root(&Draft::authority(&name.unwrap(), "dev.doorward"), p256);
    cases.under("a root of the same name", &good, &impostor, &[]);
    cases.under("a root of the same name, shown", &good, &impostor, &[&impostor]);
    let stranger = Signer::root(&Draft::authority("stranger", "other.example"), p256);
    cases.under("a stranger's root", &good, &stranger, &[&stranger]);
    let below = ca.under(&Draft::authority("below", "dev.doorward"));
    cases.under("deeper than our root allows", &good, &below, &[&below]);
    let unsigning = ca.under(&Draft::leaf(OPERATOR));
    cases.under("signed by a leaf", &good, &unsigning, &[&unsigning]);
    let chain = vec![ca.certificate.clone()];
    let own = KeyPair::try_from(ca.key.serialize_der()).unwrap();
    cases.all.push(("the root as a leaf".into(), chain, own));
    let key = KeyPair::generate().unwrap();
    let mut chain = vec![good.signed_by(ca, &key)];
    chain.extend(vec![ca.certificate.clone(); 5]);
    cases.all.push(("six certificates".into(), chain, key));
}

#[test]
fn every_bad_svid_is_refused_and_the_good_one_is_not() {
    let scene = Scene::new();
    let address = address_of(&scene.operator);
    let mut cases = Cases { scene: &scene, all: Vec::new() };
    bad_leaves(&mut cases);
    bad_names(&mut cases);
    bad_chains(&mut cases);
    let cases = cases.all;
    assert!(cases.len() >= 40, "{}", cases.len());
    run(async {
        let good = || {
            let key = KeyPair::generate().unwrap();
            End::of(vec![scene.leaf().signed_by(&scene.ca, &key)], &key)
        };
        // The control: a forged leaf without a fault is the operator.
        let conversation = good().knock(address).await.unwrap();
        let reply = conversation.ask(WHOAMI).await.unwrap();
        assert!(matches!(&reply, Reply::Answer { .. }), "{reply:?}");
        assert!(format!("{reply:?}").contains(OPERATOR), "{reply:?}");
        let mut through = Vec::new();
        let count = cases.len();
        for (name, chain, key) in cases {
            match End::of(chain, &key).knock(address).await {
                Ok(conversation) => through.push((name, conversation.ask(WHOAMI).await)),
                Err(error) if error.contains("in time") => through.push((name, Err(error))),
                Err(_) => {}
            }
        }
        assert!(through.is_empty(), "accepted, or hanging: {through:#?}");
        assert!(good().knock(address).await.is_ok(), "the broker serves on");
        let refused = || scene.stage.metric("doorward_handshakes_refused_total");
        let all = || refused().is_some_and(|refused| refused >= count as f64);
        until("all refusals are counted", Duration::from_secs(5), all).await;
    });
}

#[test]
fn a_certificate_of_nobody_we_know_gets_in_and_nothing_out() {
    let scene = Scene::new();
    let address = address_of(&scene.operator);
    let mut epoch = scene.leaf();
    let text = String::from_utf8_lossy(&epoch.more[0].2).into_owned();
    let json = text.split_once('{').unwrap().1;
    let low = format!("{{{json}").replace("\"device_epoch\":1", "\"device_epoch\":0");
    epoch.more[0].2 = tlv(0x0c, low.as_bytes());
    let mut agent = scene.leaf();
    agent.names[0].1 = b"spiffe://dev.doorward/doorward/agent/00".to_vec();
    let mut workload = scene.leaf();
    workload.names[0].1 = b"spiffe://dev.doorward/shop/api".to_vec();
    let other = {
        let mut draft = scene.leaf();
        draft.names[0].1 = b"spiffe://dev.doorward/doorward/broker".to_vec();
        draft
    };
    run(async {
        for (name, draft, want) in [
            ("an operator without device", Draft::leaf(OPERATOR), "D303"),
            ("a workload without entry", workload, "D303"),
            ("an agent's ID on a person's device", agent, "D303"),
            ("the broker's own ID", other, "D303"),
            ("an epoch that has passed", epoch, "D302"),
        ] {
            let key = KeyPair::generate().unwrap();
            let end = End::of(vec![draft.signed_by(&scene.ca, &key)], &key);
            let conversation = end.knock(address).await.unwrap();
            let reply = conversation.ask(WHOAMI).await;
            assert_eq!(super::forge::reason(&reply), want, "{name}: {reply:?}");
            let closed = conversation.connection.closed();
            let closed = tokio::time::timeout(Duration::from_secs(3), closed).await;
            assert!(closed.is_ok(), "{name}: nobody stays who does not count");
        }
    });
}

#[test]
fn only_this_protocol_and_only_with_a_certificate() {
    let scene = Scene::new();
    let address = address_of(&scene.operator);
    run(async {
        let with = |alpn: &[&[u8]]| {
            let alpn = alpn.iter().map(|name| name.to_vec()).collect();
            End { alpn, ..End::with(&scene.operator) }
        };
        assert!(with(&[b"h3", wire::ALPN]).knock(address).await.is_ok(), "ours among others");
        assert!(with(&[]).knock(address).await.is_err(), "no protocol at all");
        for alpn in [b"h3", &b"doorward/2"[..], b"Doorward/1", b"doorward/1\0", wire::ALPN_ENROLL] {
            assert!(with(&[alpn]).knock(address).await.is_err(), "{alpn:?}");
        }
        let error = End::anonymous().knock(address).await.err().unwrap();
        assert!(error.contains("116") || error.contains("ertificate"), "{error}");
    });
    // No dependency has switched older versions on: there is nothing to negotiate down to.
    let versions: Vec<_> = rustls::ALL_VERSIONS.iter().map(|version| version.version).collect();
    assert_eq!(versions, [rustls::ProtocolVersion::TLSv1_3]);
}

/// Keeps tickets as a client would, and counts them.
#[derive(Debug, Default)]
struct Tickets {
    came: AtomicUsize,
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server: ServerName<'static>, _group: NamedGroup) {}
    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _server: ServerName<'static>, _value: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _server: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.came.fetch_add(1, Ordering::SeqCst);
        self.kept.lock().unwrap().push(value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept.lock().unwrap().pop()
    }
}

/// A server that shows this chain; `tickets` as rustls gives them by default.
fn server(
    chain: Vec<Der>,
    key: &KeyPair,
    tickets: usize,
    groups: Option<Groups>,
) -> quinn::Endpoint {
    let mut provider = default_provider();
    if let Some(groups) = groups {
        provider.kx_groups = groups;
    }
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![wire::ALPN.to_vec()];
    tls.send_tls13_tickets = tickets;
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap()
}

/// Answers one connection with one byte on its first stream, and waits for its end.
async fn serve_one(endpoint: &quinn::Endpoint) {
    let Some(incoming) = endpoint.accept().await else { return };
    let Ok(connection) = incoming.await else { return };
    if let Ok((mut send, _)) = connection.accept_bi().await {
        let _ = send.write_all(b"x").await;
        let _ = send.finish();
    }
    connection.closed().await;
}

#[test]
fn no_ticket_is_ever_given_and_every_connection_is_a_full_handshake() {
    let scene = Scene::new();
    let address = address_of(&scene.operator);
    run(async {
        let tickets = Arc::new(Tickets::default());
        let end = || {
            let resumption = Resumption::store(Arc::clone(&tickets) as Arc<_>);
            End { resumption, ..End::with(&scene.operator) }
        };
        // The control: from a server that gives tickets, they come.
        let key = KeyPair::generate().unwrap();
        let generous = server(vec![Draft::leaf("x").self_signed(&key)], &key, 2, None);
        let to = generous.local_addr().unwrap();
        let asking = async {
            let control = end().knock(to).await.unwrap();
            let (mut send, mut recv) = control.connection.open_bi().await.unwrap();
            send.finish().unwrap();
            recv.read_to_end(1).await.unwrap();
            let came = || tickets.came.load(Ordering::SeqCst) > 0;
            until("a ticket from the control", Duration::from_secs(5), came).await;
            control.connection.close(0u32.into(), b"");
        };
        tokio::join!(serve_one(&generous), asking);
        tickets.came.store(0, Ordering::SeqCst);
        tickets.kept.lock().unwrap().clear();

        // One configuration for all, so that a ticket of one would be used by the next.
        let config = end().config();
        for _ in 0..3 {
            let conversation = Conversation::open(config.clone(), address).await.unwrap();
            for _ in 0..3 {
                let reply = conversation.ask(WHOAMI).await.unwrap();
                assert!(matches!(reply, Reply::Answer { .. }), "{reply:?}");
            }
            conversation.connection.close(0u32.into(), b"");
        }
        assert_eq!(tickets.came.load(Ordering::SeqCst), 0);
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let connecting = endpoint.connect_with(config, address, "doorward").unwrap();
        assert!(connecting.into_0rtt().is_err(), "nothing to send early with");
    });
}

type Groups = Vec<&'static dyn SupportedKxGroup>;

/// A key exchange that counts how often it was the one.
#[derive(Debug)]
struct Watched {
    inner: &'static dyn SupportedKxGroup,
    done: Arc<AtomicUsize>,
}

impl Watched {
    /// Lives as long as the process, as rustls wants it.
    fn new(inner: &'static dyn SupportedKxGroup) -> &'static Self {
        Box::leak(Box::new(Self { inner, done: Arc::default() }))
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
}

impl SupportedKxGroup for Watched {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        let (inner, done) = (self.inner.start()?, Arc::clone(&self.done));
        Ok(Box::new(Exchange { inner, done }))
    }
    fn start_and_complete(
        &self,
        peer: &[u8],
    ) -> Result<rustls::crypto::CompletedKeyExchange, rustls::Error> {
        self.done.fetch_add(1, Ordering::SeqCst);
        self.inner.start_and_complete(peer)
    }
    fn name(&self) -> NamedGroup {
        self.inner.name()
    }
}

/// One exchange of a watched group.
struct Exchange {
    inner: Box<dyn ActiveKeyExchange>,
    done: Arc<AtomicUsize>,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, rustls::Error> {
        self.done.fetch_add(1, Ordering::SeqCst);
        self.inner.complete(peer)
    }
    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        self.inner.hybrid_component()
    }
    fn complete_hybrid_component(
        self: Box<Self>,
        peer: &[u8],
    ) -> Result<SharedSecret, rustls::Error> {
        self.inner.complete_hybrid_component(peer)
    }
    fn pub_key(&self) -> &[u8] {
        self.inner.pub_key()
    }
    fn group(&self) -> NamedGroup {
        self.inner.group()
    }
}

/// quinn tells nobody which group was negotiated; the exchange itself is asked.
#[test]
fn the_hybrid_exchange_is_the_default_and_a_classical_client_is_served() {
    let scene = Scene::new();
    let address = address_of(&scene.operator);
    run(async {
        let with = |groups: Groups| {
            let mut end = End::with(&scene.operator);
            end.provider.kx_groups = groups;
            end
        };
        let hybrid = Watched::new(kx_group::X25519MLKEM768);
        let classical = Watched::new(kx_group::X25519);
        with(vec![hybrid, classical]).knock(address).await.unwrap();
        assert_eq!((hybrid.done(), classical.done()), (1, 0));
        // Also of a client that offers it last: the broker asks for it.
        with(vec![classical, hybrid]).knock(address).await.unwrap();
        assert_eq!((hybrid.done(), classical.done()), (1, 1), "one round trip is not spent on it");
        for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::X25519MLKEM768] {
            let conversation = with(vec![group]).knock(address).await.unwrap();
            let reply = conversation.ask(WHOAMI).await.unwrap();
            assert!(matches!(reply, Reply::Answer { .. }), "{group:?}: {reply:?}");
        }
        for group in [kx_group::SECP384R1, kx_group::MLKEM768] {
            assert!(with(vec![group]).knock(address).await.is_err(), "{group:?}");
        }
        // Our own client, against a server that takes everything.
        let key = KeyPair::generate().unwrap();
        let leaf = Draft::leaf("spiffe://dev.doorward/doorward/broker").signed_by(&scene.ca, &key);
        let (hybrid, classical) =
            (Watched::new(kx_group::X25519MLKEM768), Watched::new(kx_group::X25519));
        let endpoint = server(vec![leaf], &key, 0, Some(vec![classical, hybrid]));
        let credentials = at(&scene.operator, &endpoint);
        let asking = async {
            let client = Client::connect(&credentials, Arc::new(SystemClock)).await.unwrap();
            client.close();
        };
        tokio::join!(take_one(&endpoint), asking);
        let offered = (hybrid.done(), classical.done());
        let endpoint = {
            let key = KeyPair::generate().unwrap();
            let leaf = Draft::leaf("spiffe://dev.doorward/doorward/broker");
            server(vec![leaf.signed_by(&scene.ca, &key)], &key, 0, Some(vec![hybrid, classical]))
        };
        let credentials = at(&scene.operator, &endpoint);
        let asking = async {
            let client = Client::connect(&credentials, Arc::new(SystemClock)).await.unwrap();
            client.close();
        };
        tokio::join!(take_one(&endpoint), asking);
        assert_eq!(hybrid.done(), offered.0 + 1, "our client offers the hybrid at once");
    });
}

/// The operator's identity, pointed at another server.
fn at(operator: &Credentials, endpoint: &quinn::Endpoint) -> Credentials {
    Credentials {
        domain: operator.domain.clone(),
        broker: endpoint.local_addr().unwrap().to_string(),
        chain: operator.chain.clone(),
        key: operator.key.clone_key(),
        bundle: operator.bundle.clone(),
    }
}

async fn take_one(endpoint: &quinn::Endpoint) {
    let Some(incoming) = endpoint.accept().await else { return };
    if let Ok(connection) = incoming.await {
        connection.closed().await;
    }
}

#[test]
fn a_client_refuses_whoever_is_not_its_broker() {
    let scene = Scene::new();
    let broker = "spiffe://dev.doorward/doorward/broker";
    let connect = async |chain: Vec<Der>, key: &KeyPair| {
        let endpoint = server(chain, key, 0, None);
        let credentials = at(&scene.operator, &endpoint);
        let asking = async {
            let client = Client::connect(&credentials, Arc::new(SystemClock)).await;
            client.map(|client| client.close())
        };
        let (_, outcome) = tokio::join!(take_one(&endpoint), asking);
        outcome
    };
    run(async {
        let key = KeyPair::generate().unwrap();
        let good = Draft::leaf(broker).signed_by(&scene.ca, &key);
        connect(vec![good], &key).await.unwrap();
        let mut cases: Vec<(&str, Vec<Der>)> = Vec::new();
        for id in [
            OPERATOR,
            "spiffe://dev.doorward/doorward/broker2",
            "spiffe://dev.doorward/doorward/broker/x",
            "spiffe://dev.doorward/shop/api",
            "spiffe://other.example/doorward/broker",
        ] {
            cases.push((id, vec![Draft::leaf(id).signed_by(&scene.ca, &key)]));
        }
        let mut ended = Draft::leaf(broker);
        ended.not_after = ended.not_before + Duration::from_secs(5);
        cases.push(("expired", vec![ended.signed_by(&scene.ca, &key)]));
        let mut named = Draft::leaf(broker);
        named.names = vec![(DNS, b"doorward".to_vec())];
        cases.push(("a DNS name", vec![named.signed_by(&scene.ca, &key)]));
        let mut clients = Draft::leaf(broker);
        clients.purposes = Some(vec![CLIENT_AUTH]);
        cases.push(("for clients only", vec![clients.signed_by(&scene.ca, &key)]));
        cases.push(("self-signed", vec![Draft::leaf(broker).self_signed(&key)]));
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        let other = Signer::root(&Draft::authority("other", domain().as_str()), p256);
        let leaf = Draft::leaf(broker).signed_by(&other, &key);
        cases.push(("another root", vec![leaf, other.certificate.clone()]));
        for (name, chain) in cases {
            let error = connect(chain, &key).await.unwrap_err();
            assert!(matches!(error, ClientError::Handshake { .. }), "{name}: {error}");
            assert!(!error.is_unavailable(), "{name}: trying again won't help");
        }
    });
}
