//! rustls' view of this room: our own verifiers for clients, servers and applicants.
//!
//! Time comes from our [`Clock`], never from rustls. Signatures of handshakes are really checked,
//! and only those of TLS 1.3 over keys that may stand in a leaf; TLS 1.2 is refused. A verifier
//! that was made for one side refuses everything on the other.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use webpki::aws_lc_rs as algorithms;

use super::applicant;
use super::svid_error::SvidError;
use super::verify::check_bounds;
use super::view::{Bundle, Identity, View};
use crate::model::{Clock, Digest, SpiffeId, TrustDomain};

/// What may sign a handshake: the keys of [`super::KeyKind`], each with its own hash (RFC 8446
/// §4.2.3 binds curve and hash together).
static SCHEMES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[algorithms::ECDSA_P256_SHA256, algorithms::ECDSA_P384_SHA384, algorithms::ED25519],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[algorithms::ECDSA_P256_SHA256]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[algorithms::ECDSA_P384_SHA384]),
        (SignatureScheme::ED25519, &[algorithms::ED25519]),
    ],
};

/// The half of a verifier that proves possession of the leaf's key; the same everywhere.
macro_rules! tls13_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is refused; use TLS 1.3".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &SCHEMES)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            SCHEMES.supported_schemes()
        }
    };
}

/// Verifies X.509-SVIDs on both sides of a handshake. As a server's verifier for clients it takes
/// any SVID of a known trust domain; as a client's verifier for servers it demands one SPIFFE ID.
pub struct SvidVerifier {
    identity: Arc<Identity>,
    clock: Arc<dyn Clock>,
    side: Side,
    /// What a client tells a server of the roots that it knows.
    hints: Vec<DistinguishedName>,
}

/// Whose certificates are verified.
#[derive(Debug)]
enum Side {
    Clients,
    Server(SpiffeId),
}

impl SvidVerifier {
    /// For a server: any known trust domain's SVIDs; client certificates are mandatory.
    pub fn for_clients(identity: Arc<Identity>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { identity, clock, side: Side::Clients, hints: Vec::new() })
    }

    /// For a client: the server must be exactly `expected`; the DNS name is not looked at.
    pub fn for_server(
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        expected: SpiffeId,
    ) -> Arc<Self> {
        let hints = hints_of(&identity, expected.trust_domain());
        Arc::new(Self { identity, clock, side: Side::Server(expected), hints })
    }

    /// For the client of a bundle endpoint: as [`SvidVerifier::for_server`], with what `identity`
    /// knows of the endpoint's own trust domain. It tells a stranger's server nothing of our roots.
    pub fn for_endpoint(
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        expected: SpiffeId,
    ) -> Arc<Self> {
        Arc::new(Self { identity, clock, side: Side::Server(expected), hints: Vec::new() })
    }

    /// For a client that knows nothing but the roots of `domain`; else as
    /// [`SvidVerifier::for_server`]. An `expected` ID of another domain fits no server.
    pub fn for_server_of(
        domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        clock: Arc<dyn Clock>,
        expected: SpiffeId,
    ) -> Arc<Self> {
        let identity = Arc::new(Identity::new(only(domain, roots)));
        Self::for_server(identity, clock, expected)
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier").field("side", &self.side).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for SvidVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.side {
            Side::Clients => {
                self.identity
                    .verified(end_entity, intermediates, self.clock.now())
                    .map_err(refusal)?;
                Ok(ClientCertVerified::assertion())
            }
            Side::Server(_) => Err(other_side()),
        }
    }

    tls13_only!();
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Side::Server(expected) = &self.side else {
            return Err(other_side());
        };
        let now = self.clock.now();
        let svid =
            self.identity.verified_server(end_entity, intermediates, now).map_err(refusal)?;
        if svid.id() != expected {
            return Err(refusal(SvidError::OtherServer));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        (!self.hints.is_empty()).then_some(self.hints.as_slice())
    }

    tls13_only!();
}

/// The enrolment port's verifier. Server side: any self-signed P-256/P-384/Ed25519 key, proven by
/// the handshake. Client side: the chain must hold a root with an expected SHA-256 digest, which
/// is then used as the only bundle, and the leaf must be `/doorward/broker` of `domain`.
pub struct ApplicantVerifier(Enrolment);

enum Enrolment {
    Applicants,
    Broker {
        domain: TrustDomain,
        roots: Vec<Digest>,
        hints: Vec<DistinguishedName>,
        clock: Arc<dyn Clock>,
    },
}

impl ApplicantVerifier {
    /// For the broker's enrolment port. It knows no trust domain and gives no identity: what it
    /// lets in is a key.
    pub fn for_applicants() -> Arc<Self> {
        Arc::new(Self(Enrolment::Applicants))
    }

    /// For an applicant that knows the broker by its trust domain and by the SHA-256 of a root
    /// certificate (DER), out of its join token or of what it was given when it was here before.
    pub fn for_broker(domain: TrustDomain, roots: Vec<Digest>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let hints = roots.iter().map(root_hint).collect();
        Arc::new(Self(Enrolment::Broker { domain, roots, hints, clock }))
    }
}

impl fmt::Debug for ApplicantVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Enrolment::Applicants => f.write_str("ApplicantVerifier(applicants)"),
            Enrolment::Broker { domain, .. } => write!(f, "ApplicantVerifier(broker of {domain})"),
        }
    }
}

impl ClientCertVerifier for ApplicantVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let Enrolment::Applicants = &self.0 else {
            return Err(other_side());
        };
        check_bounds(end_entity, intermediates).map_err(refusal)?;
        if !intermediates.is_empty() {
            return Err(refusal(SvidError::ApplicantChain));
        }
        applicant::key_of(std::slice::from_ref(end_entity)).map_err(refusal)?;
        Ok(ClientCertVerified::assertion())
    }

    tls13_only!();
}

impl ServerCertVerifier for ApplicantVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Enrolment::Broker { domain, roots, clock, .. } = &self.0 else {
            return Err(other_side());
        };
        check_broker(domain, roots, clock.as_ref(), end_entity, intermediates).map_err(refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        match &self.0 {
            Enrolment::Broker { hints, .. } => Some(hints),
            Enrolment::Applicants => None,
        }
    }

    tls13_only!();
}

/// How a client names a root that it knows, in the ClientHello (RFC 8446 §4.2.4): a distinguished name
/// whose common name is the SHA-256 of the certificate, which is all that an applicant has of it. A
/// server that has certificates of several authorities shows the one that fits. It proves nothing.
pub fn root_hint(root: &Digest) -> DistinguishedName {
    const HEAD: [u8; 13] =
        [0x30, 0x4b, 0x31, 0x49, 0x30, 0x47, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x40];
    [HEAD.as_slice(), root.to_string().as_bytes()].concat().into()
}

/// The hints of the roots of one domain.
fn hints_of(identity: &Identity, domain: &TrustDomain) -> Vec<DistinguishedName> {
    let view = identity.view();
    let roots = view.bundles.get(domain).map(|bundle| bundle.roots.as_slice()).unwrap_or_default();
    roots.iter().map(|root| root_hint(&Digest::of(root))).collect()
}

/// The broker as an applicant knows it: by a root that its token names, and nothing else.
fn check_broker(
    domain: &TrustDomain,
    digests: &[Digest],
    clock: &dyn Clock,
    leaf: &CertificateDer<'_>,
    beside: &[CertificateDer<'_>],
) -> Result<(), SvidError> {
    check_bounds(leaf, beside)?;
    let is_meant = |shown: &&CertificateDer<'_>| {
        let shown = Digest::of(shown);
        digests.iter().any(|meant| verify_slices_are_equal(&shown.0, &meant.0).is_ok())
    };
    let root = beside.iter().find(is_meant).ok_or(SvidError::RootDigest)?;
    let identity = Identity::new(only(domain.clone(), vec![root.clone().into_owned()]));
    if let Some((_, fault)) = identity.unusable_roots().into_iter().next() {
        return Err(fault);
    }
    let svid = identity.verified(leaf, beside, clock.now())?;
    let expected = domain.id("/doorward/broker").map_err(SvidError::SpiffeId)?;
    if *svid.id() != expected {
        return Err(SvidError::OtherServer);
    }
    Ok(())
}

/// A view that knows one trust domain by its roots and nobody in it.
fn only(domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> View {
    View {
        bundles: Arc::new(HashMap::from([(domain.clone(), Bundle { roots })])),
        trust_domain: domain,
        own_issuers: Arc::new(HashSet::new()),
        devices: Arc::new(HashMap::new()),
        entries: Arc::new(HashMap::new()),
        denied: Arc::default(),
    }
}

/// A rule that was broken, in rustls' words where the peer may know, else as it is: the reason
/// stays in the error for our own counters.
fn refusal(error: SvidError) -> Error {
    let certificate = match error {
        SvidError::Expired => CertificateError::Expired,
        SvidError::NotYet => CertificateError::NotValidYet,
        SvidError::UnknownIssuer | SvidError::UnknownTrustDomain => CertificateError::UnknownIssuer,
        SvidError::OtherServer => CertificateError::NotValidForName,
        SvidError::Malformed => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    };
    Error::InvalidCertificate(certificate)
}

fn other_side() -> Error {
    Error::General("this verifier was made for the other end of a connection".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::vectors::{self, Authority, Draft, NOW, OWN, PARTNER, WORKLOAD, World};
    use crate::model::ManualClock;
    use rcgen::{KeyPair, SigningKey};
    use rustls::client::ResolvesClientCert;
    use rustls::crypto::aws_lc_rs::{default_provider, sign::any_supported_type};
    use rustls::internal::msgs::codec::{Codec, Reader};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

    const BROKER: &str = "spiffe://corp.example/doorward/broker";

    /// One end's certificates, shown whatever they are worth, and whether they fit the key or not.
    #[derive(Debug, Clone)]
    struct Shown(Arc<CertifiedKey>);

    impl Shown {
        fn new(chain: Vec<CertificateDer<'static>>, pkcs8: &[u8]) -> Self {
            let key = PrivateKeyDer::try_from(pkcs8.to_vec()).unwrap();
            Self(Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap())))
        }
    }

    impl ResolvesClientCert for Shown {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn has_certs(&self) -> bool {
            true
        }
    }

    impl ResolvesServerCert for Shown {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    /// A whole handshake in memory; the first error of either end.
    fn shake(
        client: Option<Shown>,
        of_server: Arc<dyn ServerCertVerifier>,
        server: Shown,
        of_client: Arc<dyn ClientCertVerifier>,
    ) -> Result<(), Error> {
        let provider = Arc::new(default_provider());
        let versions = &[&rustls::version::TLS13];
        let server_config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(of_client)
            .with_cert_resolver(Arc::new(server));
        let client_config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(of_server);
        let client_config = match client {
            Some(shown) => client_config.with_client_cert_resolver(Arc::new(shown)),
            None => client_config.with_no_client_auth(),
        };
        let name = ServerName::try_from("elsewhere.invalid").unwrap();
        let mut client = ClientConnection::new(Arc::new(client_config), name)?;
        let mut server = ServerConnection::new(Arc::new(server_config))?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking(), "neither end nor error");
        Ok(())
    }

    /// Takes any server; for tests of the other side.
    #[derive(Debug)]
    struct AnyServer;

    impl ServerCertVerifier for AnyServer {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        tls13_only!();
    }

    fn clock(at: time::OffsetDateTime) -> Arc<dyn Clock> {
        Arc::new(ManualClock::at(at))
    }

    fn broker(world: &World) -> Shown {
        let key = vectors::key();
        let leaf = Draft::leaf(BROKER).signed_by(&world.root, &key);
        Shown::new(vec![leaf, world.root.certificate.clone()], &key.serialize_der())
    }

    fn why(result: Result<(), Error>) -> Option<SvidError> {
        match result {
            Err(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) => {
                inner.downcast_ref::<SvidError>().cloned()
            }
            _ => None,
        }
    }

    #[test]
    fn every_vector_gets_its_answer_in_a_handshake() {
        let world = World::new();
        let identity = Arc::new(Identity::new(world.view()));
        let server = broker(&world);
        let wrong: Vec<String> = vectors::all(&world)
            .into_iter()
            .filter_map(|vector| {
                let shown = Shown::new(vector.chain, &vector.key);
                let verifier = SvidVerifier::for_clients(Arc::clone(&identity), clock(vector.at));
                let found = shake(Some(shown), Arc::new(AnyServer), server.clone(), verifier);
                let is_right = found.is_ok() == vector.want.is_ok();
                (!is_right).then(|| format!("{}: {found:?}", vector.name))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_client_must_show_a_certificate_and_hold_its_key() {
        let world = World::new();
        let identity = Arc::new(Identity::new(world.view()));
        let verifier = || SvidVerifier::for_clients(Arc::clone(&identity), clock(NOW));
        let (key, server) = (vectors::key(), broker(&world));
        let chain = vec![Draft::leaf(WORKLOAD).signed_by(&world.root, &key)];
        let good = Shown::new(chain.clone(), &key.serialize_der());
        shake(Some(good), Arc::new(AnyServer), server.clone(), verifier()).unwrap();
        let stolen = Shown::new(chain, &vectors::key().serialize_der());
        let found = shake(Some(stolen), Arc::new(AnyServer), server.clone(), verifier());
        let bad_signature = Error::InvalidCertificate(CertificateError::BadSignature);
        assert_eq!(found.unwrap_err(), bad_signature);
        let found = shake(None, Arc::new(AnyServer), server, verifier());
        assert_eq!(found.unwrap_err(), Error::NoCertificatesPresented);
    }

    #[test]
    fn a_server_must_be_the_one_that_is_meant() {
        let world = World::new();
        let identity = Arc::new(Identity::new(world.view()));
        let key = vectors::key();
        let leaf = Draft::leaf(WORKLOAD).signed_by(&world.root, &key);
        let client = Shown::new(vec![leaf], &key.serialize_der());
        let of_client = || SvidVerifier::for_clients(Arc::clone(&identity), clock(NOW));
        let meant = SpiffeId::parse(BROKER).unwrap();
        let own = TrustDomain::parse(OWN).unwrap();
        let shown = |id: &str, by: &Authority| {
            let key = vectors::key();
            Shown::new(vec![Draft::leaf(id).signed_by(by, &key)], &key.serialize_der())
        };
        let partner_broker = format!("spiffe://{PARTNER}/doorward/broker");
        let late = NOW + time::Duration::days(1);
        for (name, server, at, want) in [
            ("the broker", shown(BROKER, &world.root), NOW, Ok(())),
            (
                "a workload",
                shown(WORKLOAD, &world.root),
                NOW,
                Err(CertificateError::NotValidForName),
            ),
            ("its impostor", shown(BROKER, &world.impostor), NOW, Err(other(SvidError::Signature))),
            (
                "another domain's broker",
                shown(&partner_broker, &world.partner),
                NOW,
                Err(CertificateError::UnknownIssuer),
            ),
            ("an expired one", shown(BROKER, &world.root), late, Err(CertificateError::Expired)),
        ] {
            let roots = vec![world.root.certificate.clone()];
            let of = SvidVerifier::for_server_of(own.clone(), roots, clock(at), meant.clone());
            let found = shake(Some(client.clone()), of, server.clone(), of_client());
            let want = want.map_err(|error| format!("{:?}", Error::InvalidCertificate(error)));
            assert_eq!(found.map_err(|error| format!("{error:?}")), want, "{name}");
        }
        // With every bundle at hand, the other domain's broker still is not ours.
        let of = SvidVerifier::for_server(Arc::clone(&identity), clock(NOW), meant);
        let server = shown(&partner_broker, &world.partner);
        let found = shake(Some(client), of, server, of_client()).unwrap_err();
        assert_eq!(found, Error::InvalidCertificate(CertificateError::NotValidForName));
    }

    fn other(error: SvidError) -> CertificateError {
        CertificateError::Other(OtherError(Arc::new(error)))
    }

    #[test]
    fn a_verifier_of_one_side_refuses_the_other() {
        let world = World::new();
        let identity = Arc::new(Identity::new(world.view()));
        let meant = SpiffeId::parse(BROKER).unwrap();
        let of_clients = SvidVerifier::for_clients(Arc::clone(&identity), clock(NOW));
        let of_server = SvidVerifier::for_server(identity, clock(NOW), meant);
        let client = broker(&world);
        shake(Some(client.clone()), of_server.clone(), broker(&world), of_clients.clone()).unwrap();
        for (of_server, of_clients) in [
            (of_clients.clone() as Arc<dyn ServerCertVerifier>, of_clients.clone() as _),
            (of_server.clone() as _, of_server as Arc<dyn ClientCertVerifier>),
            (ApplicantVerifier::for_applicants() as _, of_clients as _),
        ] {
            let found = shake(Some(client.clone()), of_server, broker(&world), of_clients);
            assert_eq!(found.unwrap_err(), other_side());
        }
    }

    #[test]
    fn an_applicant_and_its_broker_know_each_other_by_key_and_root() {
        let world = World::new();
        let digest = Digest::of(&world.root.certificate);
        let own = TrustDomain::parse(OWN).unwrap();
        let of_broker = |digest, domain: &TrustDomain, at| {
            ApplicantVerifier::for_broker(domain.clone(), vec![digest], clock(at))
        };
        let key = vectors::key();
        let applicant =
            Shown::new(vec![Draft::leaf(WORKLOAD).self_signed(&key)], &key.serialize_der());
        let try_with = |verifier, server: Shown| {
            let of_clients = ApplicantVerifier::for_applicants();
            shake(Some(applicant.clone()), verifier, server, of_clients)
        };
        let good = || of_broker(digest, &own, NOW);
        try_with(good(), broker(&world)).unwrap();

        let key = vectors::key();
        let shown = |id: &str, by: &Authority, beside: &[&Authority]| {
            let leaf = Draft::leaf(id).signed_by(by, &key);
            let beside = beside.iter().map(|authority| authority.certificate.clone());
            Shown::new(std::iter::once(leaf).chain(beside).collect(), &key.serialize_der())
        };
        let (root, impostor) = (&world.root, &world.impostor);
        let found = try_with(good(), shown(BROKER, root, &[]));
        assert_eq!(why(found), Some(SvidError::RootDigest), "a chain without its root");
        let found = try_with(good(), shown(BROKER, impostor, &[impostor]));
        assert_eq!(why(found), Some(SvidError::RootDigest), "another root");
        let found = try_with(good(), shown(BROKER, impostor, &[root]));
        assert_eq!(why(found), Some(SvidError::Signature), "the root, but not behind the leaf");
        let found = try_with(good(), shown(BROKER, impostor, &[impostor, root]));
        assert_eq!(why(found), Some(SvidError::Signature), "the root among others");
        let found = try_with(good(), shown(WORKLOAD, root, &[root])).unwrap_err();
        assert_eq!(found, Error::InvalidCertificate(CertificateError::NotValidForName));
        let found = try_with(good(), shown(BROKER, root, &[root, root, root, root]));
        assert_eq!(why(found), Some(SvidError::ChainTooLong(5)));
        let late = of_broker(digest, &own, NOW + time::Duration::days(1));
        let found = try_with(late, broker(&world)).unwrap_err();
        assert_eq!(found, Error::InvalidCertificate(CertificateError::Expired));
        let partner = TrustDomain::parse(PARTNER).unwrap();
        let found = try_with(of_broker(digest, &partner, NOW), broker(&world));
        assert_eq!(why(found), Some(SvidError::IssuerDomain), "a root of another domain");
        let leaf = Draft::leaf(BROKER).signed_by(root, &key);
        let own_digest = of_broker(Digest::of(&leaf), &own, NOW);
        let twice = Shown::new(vec![leaf.clone(), leaf], &key.serialize_der());
        let found = try_with(own_digest, twice);
        assert_eq!(why(found), Some(SvidError::IssuerNotAuthority), "a leaf named as root");
    }

    #[test]
    fn an_applicant_holds_the_one_key_that_it_shows() {
        let world = World::new();
        let try_with = |shown| {
            let of_clients = ApplicantVerifier::for_applicants();
            shake(shown, Arc::new(AnyServer), broker(&world), of_clients)
        };
        let draft = Draft::leaf(WORKLOAD);
        let shown = |key: &KeyPair| Shown::new(vec![draft.self_signed(key)], &key.serialize_der());
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            try_with(Some(shown(&key))).unwrap_or_else(|error| panic!("{algorithm:?}: {error}"));
        }
        let key = vectors::key();
        let stolen = Shown::new(vec![draft.self_signed(&key)], &vectors::key().serialize_der());
        let bad_signature = Error::InvalidCertificate(CertificateError::BadSignature);
        assert_eq!(try_with(Some(stolen)).unwrap_err(), bad_signature);
        assert_eq!(try_with(None).unwrap_err(), Error::NoCertificatesPresented);
        let with_more = vec![draft.self_signed(&key), world.root.certificate.clone()];
        let with_more = Shown::new(with_more, &key.serialize_der());
        assert_eq!(why(try_with(Some(with_more))), Some(SvidError::ApplicantChain));
        let issued = Shown::new(vec![draft.signed_by(&world.root, &key)], &key.serialize_der());
        assert_eq!(why(try_with(Some(issued))), Some(SvidError::NotSelfSigned));
        let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        assert!(try_with(Some(shown(&rsa))).is_err(), "RSA");
    }

    fn signed(scheme: SignatureScheme, signature: &[u8]) -> DigitallySignedStruct {
        let mut bytes = u16::from(scheme).to_be_bytes().to_vec();
        bytes.extend(u16::try_from(signature.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(signature);
        DigitallySignedStruct::read(&mut Reader::init(&bytes)).unwrap()
    }

    #[test]
    fn handshake_signatures_are_checked_and_only_those_of_tls_1_3() {
        let key = vectors::key();
        let leaf = Draft::leaf(WORKLOAD).self_signed(&key);
        let message = b"the transcript";
        let signature = SigningKey::sign(&key, message).unwrap();
        let good = signed(SignatureScheme::ECDSA_NISTP256_SHA256, &signature);
        let applicants = ApplicantVerifier::for_applicants();
        let world = World::new();
        let svids = SvidVerifier::for_clients(Arc::new(Identity::new(world.view())), clock(NOW));
        let verifiers: [&dyn ClientCertVerifier; 2] = [&*applicants, &*svids];
        for verifier in verifiers {
            assert!(verifier.client_auth_mandatory() && verifier.root_hint_subjects().is_empty());
            assert!(verifier.verify_tls13_signature(message, &leaf, &good).is_ok(), "control");
            assert!(verifier.verify_tls13_signature(b"another", &leaf, &good).is_err());
            assert!(verifier.verify_tls12_signature(message, &leaf, &good).is_err());
            let mut broken = signature.clone();
            *broken.last_mut().unwrap() ^= 1;
            for bad in [
                signed(SignatureScheme::ECDSA_NISTP256_SHA256, &broken),
                signed(SignatureScheme::ECDSA_NISTP256_SHA256, &[]),
                signed(SignatureScheme::ECDSA_NISTP384_SHA384, &signature),
                signed(SignatureScheme::ED25519, &signature),
                signed(SignatureScheme::RSA_PSS_SHA256, &signature),
                signed(SignatureScheme::ECDSA_SHA1_Legacy, &signature),
            ] {
                let found = verifier.verify_tls13_signature(message, &leaf, &bad);
                assert!(found.is_err(), "{:?}", bad.scheme);
            }
        }
        assert_eq!(
            ClientCertVerifier::supported_verify_schemes(&*svids),
            [
                SignatureScheme::ECDSA_NISTP256_SHA256,
                SignatureScheme::ECDSA_NISTP384_SHA384,
                SignatureScheme::ED25519,
            ]
        );
    }
}
