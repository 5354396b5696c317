//! Certificates that nobody should accept, signed by the broker's real CA key; and a bare QUIC end
//! that shows them. What a thief of the key could not do is not tested here, but what a mistake in
//! issuing, in federation or in a verifier would let through.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use doorward::model::TrustDomain;
use doorward::vault::{KeyFile, RootKey};
use doorward::wire::{self, Credentials, Reply};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::KeyPair;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs::default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;

#[path = "../../src/identity/draft.rs"]
mod draft;
pub use draft::{
    ANY_PURPOSE, CLIENT_AUTH, CODE_SIGNING, DNS, Der, Draft, SERVER_AUTH, Signer, URI, tlv,
};

/// How long anything may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);

impl Draft {
    /// A leaf of this moment, with a serial number of its own.
    pub fn leaf(id: &str) -> Self {
        let mut serial = [1; 16];
        aws_lc_rs::rand::fill(&mut serial[1..]).unwrap();
        Self::leaf_at(id, OffsetDateTime::now_utc(), serial)
    }

    /// A signing certificate of a domain.
    pub fn authority(name: &str, domain: &str) -> Self {
        let leaf = Self::leaf("");
        let until = leaf.not_after;
        Self::authority_like(leaf, name, domain, until)
    }
}

impl Signer {
    /// The CA of a broker's directory, with the seal opened by its key file.
    pub fn of_broker(dir: &Path, root: &Der) -> Self {
        let seal = RootKey::open(dir, &KeyFile(dir.join("seal.key"))).unwrap();
        let sealed = std::fs::read(dir.join("ca.sealed")).unwrap();
        let pkcs8 = seal.unwrap("ca", &sealed).unwrap();
        let key = PrivateKeyDer::Pkcs8(pkcs8.expose().to_vec().into());
        let key = KeyPair::from_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let (_, read) = x509_parser::parse_x509_certificate(root).unwrap();
        let name = read.subject().iter_common_name().next().unwrap().as_str().unwrap();
        let params = Draft::authority(name, "unused").params();
        Self { key, params, certificate: root.clone() }
    }
}

/// The Doorward extension of a certificate of ours, as it stands in it.
pub fn extension_of(leaf: &Der) -> (Vec<u64>, bool, Vec<u8>) {
    let oid = doorward::identity::EXTENSION_OID.to_vec();
    let (_, read) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let text = oid.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
    let found = read.extensions().iter().find(|extension| extension.oid.to_id_string() == text);
    (oid, false, found.unwrap().value.to_vec())
}

/// One end of a connection, as wrong as a test wants it.
pub struct End {
    pub chain: Vec<Der>,
    pub key: Option<PrivateKeyDer<'static>>,
    pub alpn: Vec<Vec<u8>>,
    pub provider: CryptoProvider,
    pub resumption: Resumption,
}

impl End {
    pub fn of(chain: Vec<Der>, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Self { key: Some(key), ..Self::nobody(chain) }
    }

    pub fn with(credentials: &Credentials) -> Self {
        let key = Some(credentials.key.clone_key());
        Self { key, ..Self::nobody(credentials.chain.clone()) }
    }

    fn nobody(chain: Vec<Der>) -> Self {
        Self {
            chain,
            key: None,
            alpn: vec![wire::ALPN.to_vec()],
            provider: default_provider(),
            resumption: Resumption::disabled(),
        }
    }

    /// Without any certificate.
    pub fn anonymous() -> Self {
        Self::nobody(Vec::new())
    }

    pub fn config(self) -> quinn::ClientConfig {
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let mut tls = match self.key {
            // Not `with_client_auth_cert`: it would notice a key that does not fit.
            Some(key) => {
                let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
                let pair = rustls::sign::CertifiedKey::new(self.chain, signing);
                let pair = rustls::sign::SingleCertAndKey::from(pair);
                builder.with_client_cert_resolver(Arc::new(pair))
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = self.alpn;
        tls.resumption = self.resumption;
        tls.enable_early_data = true;
        let mut config =
            quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_secs(5)));
        config.transport_config(Arc::new(transport));
        config
    }

    /// Connects, and waits until the other side has looked at the certificate.
    pub async fn knock(self, address: SocketAddr) -> Result<Conversation, String> {
        Conversation::open(self.config(), address).await
    }
}

/// A connection that speaks in raw frames.
#[derive(Clone)]
pub struct Conversation {
    pub connection: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Conversation {
    pub async fn open(config: quinn::ClientConfig, address: SocketAddr) -> Result<Self, String> {
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let connecting = endpoint.connect_with(config, address, "doorward").unwrap();
        let opened = async {
            let connection = connecting.await.map_err(|error| error.to_string())?;
            // A client is done before its certificate was looked at; HANDSHAKE_DONE comes after.
            while connection.stats().frame_rx.handshake_done == 0 {
                tokio::select! {
                    closed = connection.closed() => return Err(closed.to_string()),
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
            Ok(connection)
        };
        let connection = tokio::time::timeout(PATIENCE, opened)
            .await
            .map_err(|_| "neither accepted nor refused in time".to_owned())??;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// Sends these bytes on a stream of their own and reads the one reply.
    pub async fn say(&self, bytes: &[u8]) -> Result<Reply, String> {
        let exchange = async {
            let (mut send, recv) =
                self.connection.open_bi().await.map_err(|error| error.to_string())?;
            // The broker may answer and stop reading before everything is sent.
            let _ = send.write_all(bytes).await;
            let _ = send.finish();
            reply(recv).await
        };
        tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| "no reply in time".to_owned())?
    }

    /// A whole request in JSON.
    pub async fn ask(&self, ask: &str) -> Result<Reply, String> {
        self.say(&request(ask, b"")).await
    }
}

/// Reads one reply to its end.
pub async fn reply(mut recv: quinn::RecvStream) -> Result<Reply, String> {
    let (reply, _) = wire::read_reply(&mut recv).await.map_err(|error| error.to_string())?;
    wire::read_end(&mut recv).await.map_err(|error| error.to_string())?;
    Ok(reply)
}

/// A frame with true lengths.
pub fn frame(head: &[u8], body: &[u8]) -> Vec<u8> {
    let lengths = [head.len(), body.len()].map(|n| u32::try_from(n).unwrap().to_be_bytes());
    [lengths.concat().as_slice(), head, body].concat()
}

/// The frame of a request whose ask is given as JSON.
pub fn request(ask: &str, body: &[u8]) -> Vec<u8> {
    frame(format!("{{\"ask\":{ask}}}").as_bytes(), body)
}

/// The refusal's stable reason code, or what came instead.
pub fn reason(reply: &Result<Reply, String>) -> String {
    match reply {
        Ok(Reply::Refusal(refusal)) => refusal.reason.code().to_owned(),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.clone(),
    }
}

/// Takes any server: what a client makes of its server is tested elsewhere.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _beside: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A runtime for one test.
pub fn run<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(future)
}

/// Waits until something holds; panics with `what` when it does not in time.
pub async fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let began = tokio::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < within, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The trust domain of stages.
pub fn domain() -> TrustDomain {
    TrustDomain::parse("dev.doorward").unwrap()
}

/// Where a stage's broker listens, as the operator's identity has it.
pub fn address_of(credentials: &Credentials) -> SocketAddr {
    credentials.broker.parse().unwrap()
}

/// An external program that a test needs; `false` (and a word) where it is missing.
pub fn has(program: &str, package: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|dir| dir.join(program).is_file()) {
        return true;
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "`{program}` is missing: install the Debian package `{package}`");
    eprintln!("SKIPPED: needs {program}");
    false
}
