//! The only constructors of TLS configuration.
//!
//! TLS 1.3 only, post-quantum key exchange first, our own verifiers on both sides. No tickets, no
//! session storage, no 0-RTT, no data from a server before its client is verified: a resumed
//! session never reaches the verifier, so an ended identity would get in. The tests below hold each
//! of these; nothing outside this folder may build a rustls or quinn configuration.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::DistinguishedName;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use zeroize::Zeroize as _;

use super::credentials::Credentials;
use super::held;
use super::transport;
use crate::identity::{ApplicantVerifier, Identity, SvidVerifier, root_hint};
use crate::model::{Clock, Digest, SpiffeId, SpiffeIdError, TrustDomain};

/// ALPN of the main port.
pub const ALPN: &[u8] = b"doorward/1";
/// ALPN of the enrolment port.
pub const ALPN_ENROLL: &[u8] = b"doorward-enroll/1";
/// Label of the TLS exporter (RFC 8446 §7.5) that evidence is bound to; its context is the nonce.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-doorward-posture-1";
/// The label of what an applicant's proof of possession is bound to; its context is empty.
pub const EXPORTER_ENROLMENT: &[u8] = b"EXPORTER-doorward-enrolment-1";

/// Why a configuration can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The broker's SPIFFE ID can't be written in this trust domain.
    #[error("the trust domain is too long to name its broker")]
    BrokerId(#[source] SpiffeIdError),
    /// Certificate and key don't belong together, or can't be read.
    #[error("the certificate and its private key are not a pair that tls can use")]
    Pair(#[source] rustls::Error),
    /// The settings contradict each other.
    #[error("the tls settings are not usable")]
    Settings(#[source] rustls::Error),
    /// The cipher suite of QUIC's first packets is missing.
    #[error("the tls settings lack the cipher suite that quic begins with")]
    Suite(#[source] NoInitialCipherSuite),
}

/// The broker's own certificates over one key, each of another authority; swapped at renewal,
/// without a restart. Connections that stand keep the certificate that they began with.
pub struct ServerIdentity {
    current: ArcSwap<Vec<Shown>>,
}

/// One chain, and what a client says that knows its authority.
struct Shown {
    pair: Arc<CertifiedKey>,
    hint: Option<DistinguishedName>,
}

impl Shown {
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        // The authority stands next to the leaf, before who stands above it.
        let authority = chain.get(1).or(chain.first());
        let hint = authority.map(|root| root_hint(&Digest::of(root)));
        Ok(Self { pair: Arc::new(pair(chain, key)?), hint })
    }
}

impl ServerIdentity {
    /// Starts with this chain (leaf first) and its key, which is wiped after use.
    ///
    /// # Errors
    /// When the two are not a pair.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(vec![Shown::new(chain, key)?]) }))
    }

    /// Shows this chain from the next handshake on, and one of `others` (the authority after the leaf in
    /// each) to a client that names its authority and not that of the first.
    ///
    /// # Errors
    /// When the key is not that of all; what was shown before stays.
    pub fn swap(
        &self,
        chain: Vec<CertificateDer<'static>>,
        others: Vec<Vec<CertificateDer<'static>>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let mut all = Vec::with_capacity(others.len().saturating_add(1));
        for chain in std::iter::once(chain).chain(others) {
            all.push(Shown::new(chain, key.clone_key())?);
        }
        let mut key = key;
        key.zeroize();
        self.current.store(Arc::new(all));
        Ok(())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdentity(…)")
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = self.current.load();
        let named = hello.certificate_authorities().unwrap_or_default();
        let fits = |it: &&Shown| {
            it.hint
                .as_ref()
                .is_some_and(|hint| named.iter().any(|named| named.as_ref() == hint.as_ref()))
        };
        let shown = all.iter().find(fits).or_else(|| all.first())?;
        Some(Arc::clone(&shown.pair))
    }
}

/// Main port: mutual TLS with SVIDs.
///
/// # Errors
/// When the settings are not usable.
pub fn broker_server(
    own: Arc<ServerIdentity>,
    identity: Arc<Identity>,
    clock: Arc<dyn Clock>,
) -> Result<quinn::ServerConfig, TlsError> {
    let verifier = SvidVerifier::for_clients(identity, Arc::clone(&clock));
    let tls = server(own, verifier, ALPN, Arc::clone(&clock))?;
    let tls = QuicServerConfig::try_from(tls).map_err(TlsError::Suite)?;
    Ok(transport::serve(tls, transport::of_broker(), clock))
}

/// Enrolment port: self-signed client keys, tighter limits. `own` must hold the root in its chain,
/// because an applicant knows nothing but the root's digest.
///
/// # Errors
/// When the settings are not usable.
pub fn applicant_server(
    own: Arc<ServerIdentity>,
    clock: Arc<dyn Clock>,
) -> Result<quinn::ServerConfig, TlsError> {
    let verifier = ApplicantVerifier::for_applicants();
    let tls = server(own, verifier, ALPN_ENROLL, Arc::clone(&clock))?;
    let tls = QuicServerConfig::try_from(tls).map_err(TlsError::Suite)?;
    Ok(transport::serve(tls, transport::of_enrolment(), clock))
}

/// For a holder of an SVID; the broker must be exactly `spiffe://<domain>/doorward/broker`.
///
/// # Errors
/// When the credentials are not a pair of certificate and key.
pub fn client(
    credentials: &Credentials,
    clock: Arc<dyn Clock>,
) -> Result<quinn::ClientConfig, TlsError> {
    let (domain, roots) = (credentials.domain.clone(), credentials.bundle.clone());
    let expected = broker_id(&domain)?;
    let verifier = SvidVerifier::for_server_of(domain, roots, Arc::clone(&clock), expected);
    let own = pair(credentials.chain.clone(), credentials.key.clone_key())?;
    quic_client(client_tls(own, verifier, ALPN, clock)?)
}

/// For an applicant: `roots` are the digests of root certificates, any of which will do: the one
/// out of the token, or those that a device knew when it was here.
///
/// # Errors
/// When chain and key are not a pair.
pub fn applicant_client(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    domain: &TrustDomain,
    roots: Vec<Digest>,
    clock: Arc<dyn Clock>,
) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = ApplicantVerifier::for_broker(domain.clone(), roots, Arc::clone(&clock));
    quic_client(client_tls(pair(chain, key)?, verifier, ALPN_ENROLL, clock)?)
}

pub(super) fn server(
    own: Arc<ServerIdentity>,
    verifier: Arc<dyn ClientCertVerifier>,
    alpn: &[u8],
    clock: Arc<dyn Clock>,
) -> Result<rustls::ServerConfig, TlsError> {
    let time = Arc::new(TlsTime(clock));
    let mut tls = rustls::ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own);
    full_handshakes_only(&mut tls, alpn);
    Ok(tls)
}

pub(super) fn client_tls(
    own: CertifiedKey,
    verifier: Arc<dyn ServerCertVerifier>,
    alpn: &[u8],
    clock: Arc<dyn Clock>,
) -> Result<rustls::ClientConfig, TlsError> {
    let time = Arc::new(TlsTime(clock));
    let mut tls = rustls::ClientConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Settings)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    never_resumes(&mut tls, alpn);
    Ok(tls)
}

/// No tickets, no sessions, no early data, no keys in files: whoever comes shows everything anew.
pub(super) fn full_handshakes_only(tls: &mut rustls::ServerConfig, alpn: &[u8]) {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.send_tls13_tickets = 0;
    tls.max_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    tls.send_half_rtt_data = false;
    tls.key_log = Arc::new(rustls::NoKeyLog {});
    tls.enable_secret_extraction = false;
}

/// The same for a client; no server is named to it.
pub(super) fn never_resumes(tls: &mut rustls::ClientConfig, alpn: &[u8]) {
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    tls.enable_sni = false;
    tls.key_log = Arc::new(rustls::NoKeyLog {});
    tls.enable_secret_extraction = false;
}

pub(super) fn quic_client(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, TlsError> {
    let tls = QuicClientConfig::try_from(tls).map_err(TlsError::Suite)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config
        .transport_config(Arc::new(transport::of_client()))
        .token_store(Arc::new(quinn::NoneTokenStore));
    Ok(config)
}

/// aws-lc-rs with the post-quantum hybrid first; nothing below 128 bits, nothing of TLS 1.2.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    })
}

/// Chain and key, proven to belong together. The given copy of the key is wiped.
pub(super) fn pair(
    chain: Vec<CertificateDer<'static>>,
    mut key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    let signing = held::signing_key(&key);
    key.zeroize();
    let pair = CertifiedKey::new(chain, signing.map_err(TlsError::Pair)?);
    pair.keys_match().map_err(TlsError::Pair)?;
    Ok(pair)
}

fn broker_id(domain: &TrustDomain) -> Result<SpiffeId, TlsError> {
    domain.id("/doorward/broker").map_err(TlsError::BrokerId)
}

/// The one clock, as rustls asks for it.
pub(super) struct TlsTime(pub(super) Arc<dyn Clock>);

impl fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTime")
    }
}

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().unix_s()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ManualClock;
    use rustls::NamedGroup;
    use time::macros::datetime;

    fn clock() -> Arc<ManualClock> {
        Arc::new(ManualClock::at(datetime!(2026-11-23 00:00 UTC)))
    }

    fn self_signed() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let der = key.serialize_der();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(der.into()))
    }

    fn servers() -> [(rustls::ServerConfig, &'static [u8]); 2] {
        let (chain, key) = self_signed();
        let own = ServerIdentity::new(chain, key).unwrap();
        let verifier = ApplicantVerifier::for_applicants();
        [ALPN, ALPN_ENROLL].map(|alpn| {
            let tls = server(Arc::clone(&own), verifier.clone(), alpn, clock()).unwrap();
            (tls, alpn)
        })
    }

    fn a_client() -> rustls::ClientConfig {
        let (chain, key) = self_signed();
        let domain = TrustDomain::parse("corp.example").unwrap();
        let verifier = ApplicantVerifier::for_broker(domain, vec![Digest([0; 32])], clock());
        client_tls(pair(chain, key).unwrap(), verifier, ALPN, clock()).unwrap()
    }

    #[test]
    fn a_server_never_resumes_and_never_speaks_early() {
        for (tls, alpn) in servers() {
            assert_eq!(tls.send_tls13_tickets, 0);
            assert_eq!(tls.max_tls13_tickets, 0);
            assert!(!tls.session_storage.can_cache());
            assert!(!tls.session_storage.put(vec![1], vec![2]));
            assert!(!tls.ticketer.enabled());
            assert_eq!(tls.max_early_data_size, 0);
            assert!(!tls.send_half_rtt_data);
            assert!(!tls.enable_secret_extraction);
            assert!(!tls.key_log.will_log("CLIENT_TRAFFIC_SECRET_0"));
            assert_eq!(tls.alpn_protocols, [alpn]);
        }
    }

    #[test]
    fn a_client_never_resumes_and_names_no_host() {
        let tls = a_client();
        assert!(!tls.enable_early_data);
        assert!(!tls.enable_sni);
        assert!(!tls.key_log.will_log("CLIENT_TRAFFIC_SECRET_0"));
        assert_eq!(tls.alpn_protocols, [ALPN]);
        assert!(tls.client_auth_cert_resolver.has_certs());
        let resumption = format!("{:?}", tls.resumption);
        assert!(format!("{:?}", Resumption::default()).contains("ClientSessionMemoryCache"));
        assert!(resumption.contains("NoClientSessionStorage"), "{resumption}");
    }

    #[test]
    fn only_tls_1_3_with_the_post_quantum_group_first() {
        let provider = provider();
        let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
        let wanted = [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1];
        assert_eq!(groups, wanted);
        let tls13 = |suite: &rustls::SupportedCipherSuite| suite.tls13().is_some();
        assert!(provider.cipher_suites.iter().all(tls13));
        assert_eq!(
            format!("{:?}", a_client().crypto_provider().kx_groups.first()),
            format!("{:?}", provider.kx_groups.first())
        );
    }

    #[test]
    fn tls_reads_the_one_clock() {
        let clock = clock();
        let time = TlsTime(Arc::clone(&clock) as Arc<dyn Clock>);
        assert_eq!(time.current_time().unwrap().as_secs(), 1_795_392_000);
        clock.advance(Duration::from_secs(5));
        assert_eq!(time.current_time().unwrap().as_secs(), 1_795_392_005);
        clock.set_wall(datetime!(1969-12-31 00:00 UTC));
        assert!(time.current_time().is_none(), "before 1970 nothing is valid");
        for (tls, _) in servers() {
            assert_eq!(tls.time_provider.current_time().unwrap().as_secs(), 1_795_392_000);
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_and_changes_nothing() {
        let (chain, key) = self_signed();
        let (other_chain, other_key) = self_signed();
        let own = ServerIdentity::new(chain.clone(), key.clone_key()).unwrap();
        let shown = |own: &ServerIdentity| own.current.load()[0].pair.cert.clone();
        assert!(matches!(
            own.swap(chain.clone(), Vec::new(), other_key.clone_key()),
            Err(TlsError::Pair(_))
        ));
        assert!(matches!(own.swap(Vec::new(), Vec::new(), key), Err(TlsError::Pair(_))));
        assert_eq!(shown(&own), chain);
        own.swap(other_chain.clone(), Vec::new(), other_key).unwrap();
        assert_eq!(shown(&own), other_chain);
        assert_eq!(format!("{own:?}"), "ServerIdentity(…)");
    }
}
