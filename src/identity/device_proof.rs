//! Proof of possession of a certificate that a device has already, from its owner's own authority.
//!
//! The applicant signs one statement with that certificate's key. It names the TLS connection on
//! which it is shown, the new device key, the trust domain and the certificate, and nothing that is
//! signed with the same key elsewhere looks like it: so nobody can show it a second time, for
//! another key, or at another broker. Bounds come first, then the form, then the one signature of
//! the statement, then the path, only under the roots that the method was given. Names in the
//! certificate are believed nowhere.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, Error, VerifiedPath};

use super::certificate::Certificate;
use super::key::KeyKind;
use super::svid_error::SvidError;
use super::verify::FEDERATED_ALGORITHMS;
use crate::model::limits::{CERTIFICATE_MAX, DEVICE_CHAIN_MAX, DEVICE_PROOF_MAX, ROOTS_MAX};
use crate::model::{Digest, Moment, TrustDomain, read_strict_json};

/// What a statement begins with, as the signatures of TLS 1.3 do (RFC 8446 §4.4.3), so that none of
/// those is one of these; then a context of our own and a zero byte.
const PADDING: [u8; 64] = [b' '; 64];
const CONTEXT: &[u8] = b"doorward enrolment, x509 possession 1\0";
/// Objects within objects in a body.
const DEPTH: usize = 3;

/// Why a body is no proof: one variant for each rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceProofError {
    /// More bytes than a proof may have.
    #[error("the proof has more than {DEVICE_PROOF_MAX} bytes")]
    TooLarge,
    /// Not the JSON object that is wanted.
    #[error("the proof is not an object with a chain and a signature in base64")]
    Form,
    /// None, or too many certificates.
    #[error("the chain has no certificate, or more than {DEVICE_CHAIN_MAX}")]
    ChainLength,
    /// A certificate can't be read, or is too large.
    #[error("a certificate of the chain can't be read, or has more than {CERTIFICATE_MAX} bytes")]
    Certificate,
    /// The certificate's key is of a kind that is not taken.
    #[error("the certificate's key is none of P-256, P-384, Ed25519 and RSA of 2048 to 8192 bits")]
    KeyKind,
    /// The statement is not signed with the certificate's key.
    #[error("the statement is not signed with the certificate's key for this connection and key")]
    Signature,
    /// The certificate signs others.
    #[error("the certificate is an authority's, not a device's")]
    Authority,
    /// It names a SPIFFE ID: whoever has an SVID, of whatever domain, is a workload and no machine.
    #[error("the certificate is an SVID, not a device's")]
    Svid,
    /// keyUsage without digitalSignature, or extendedKeyUsage without client authentication.
    #[error("the certificate is not one for client authentication")]
    Purpose,
    /// A date of the chain has not come.
    #[error("a certificate of the chain is not valid yet")]
    NotYet,
    /// A date of the chain has passed.
    #[error("a certificate of the chain has expired")]
    Expired,
    /// An issuer may not sign certificates, or not so deep.
    #[error("an issuer of the chain may not sign this certificate")]
    Issuer,
    /// No path to a root of the method.
    #[error("the chain ends at none of the roots")]
    UnknownIssuer,
    /// A signature of the chain does not hold, or is of a kind that is not taken.
    #[error("a signature of the chain does not hold, or its algorithm is not taken")]
    ChainSignature,
    /// Anything else that stands against the path.
    #[error("the chain breaks a rule of RFC 5280")]
    Path,
}

impl DeviceProofError {
    /// A stable word for the rule.
    pub fn word(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Form => "form",
            Self::ChainLength => "chain_length",
            Self::Certificate => "certificate",
            Self::KeyKind => "key_kind",
            Self::Signature => "signature",
            Self::Authority => "authority",
            Self::Svid => "svid",
            Self::Purpose => "purpose",
            Self::NotYet => "not_yet",
            Self::Expired => "expired",
            Self::Issuer => "issuer",
            Self::UnknownIssuer => "unknown_issuer",
            Self::ChainSignature => "chain_signature",
            Self::Path => "path",
        }
    }
}

/// What the applicant signs. `exporter` is the TLS exporter's value of the connection, `spki` the
/// new device key (DER), `certificate` the one that the device has.
pub fn device_statement(
    exporter: &[u8; 32],
    spki: &[u8],
    domain: &TrustDomain,
    certificate: &[u8],
) -> Vec<u8> {
    let mut statement = Vec::with_capacity(PADDING.len() + CONTEXT.len() + 4 * 32);
    statement.extend_from_slice(&PADDING);
    statement.extend_from_slice(CONTEXT);
    statement.extend_from_slice(exporter);
    for part in [spki, domain.as_str().as_bytes(), certificate] {
        statement.extend_from_slice(&Digest::of(part).0);
    }
    statement
}

/// A chain and the signature of the statement, as they stand in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProof {
    /// Leaf first; the root may be left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// In the form of X.509: ASN.1 for ECDSA, PSS with SHA-256 for RSA.
    pub signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inside {
    chain: Vec<String>,
    signature: String,
}

impl DeviceProof {
    /// Reads a body.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn read(body: &[u8]) -> Result<Self, DeviceProofError> {
        use DeviceProofError as E;
        if body.len() > DEVICE_PROOF_MAX {
            return Err(E::TooLarge);
        }
        let inside: Inside = read_strict_json(body, DEPTH).map_err(|_| E::Form)?;
        if !(1..=DEVICE_CHAIN_MAX).contains(&inside.chain.len()) {
            return Err(E::ChainLength);
        }
        let decode = |text: &String| STANDARD.decode(text).map_err(|_| E::Form);
        let mut chain = Vec::with_capacity(inside.chain.len());
        for text in &inside.chain {
            let der = decode(text)?;
            if der.is_empty() || der.len() > CERTIFICATE_MAX {
                return Err(E::Certificate);
            }
            chain.push(CertificateDer::from(der));
        }
        Ok(Self { chain, signature: decode(&inside.signature)? })
    }

    /// The body.
    pub fn body(&self) -> Vec<u8> {
        let chain = self.chain.iter().map(|der| STANDARD.encode(der)).collect();
        let inside = Inside { chain, signature: STANDARD.encode(&self.signature) };
        serde_json::to_vec(&inside).unwrap_or_default()
    }

    /// That the applicant holds the key of the first certificate, and showed so for this connection
    /// and device key.
    ///
    /// # Errors
    /// When the certificate can't be read, its key is not taken, or the signature does not hold.
    pub fn possessed(
        &self,
        exporter: &[u8; 32],
        spki: &[u8],
        domain: &TrustDomain,
    ) -> Result<Possessed<'_>, DeviceProofError> {
        use DeviceProofError as E;
        let (leaf, beside) = self.chain.split_first().ok_or(E::ChainLength)?;
        let read = Certificate::read(leaf).map_err(|_| E::Certificate)?;
        let statement = device_statement(exporter, spki, domain, leaf);
        EndEntityCert::try_from(leaf)
            .map_err(|_| E::Certificate)?
            .verify_signature(algorithm(read.spki), &statement, &self.signature)
            .map_err(|error| match error {
                Error::InvalidSignatureForPublicKey => E::Signature,
                _ => E::KeyKind,
            })?;
        Ok(Possessed { leaf, beside, read })
    }
}

/// One algorithm for each kind of key. What is no RSA key of 2048 to 8192 bits is refused by the last.
fn algorithm(spki: &[u8]) -> &'static dyn SignatureVerificationAlgorithm {
    match KeyKind::of(spki) {
        Some(KeyKind::P256) => algorithms::ECDSA_P256_SHA256,
        Some(KeyKind::P384) => algorithms::ECDSA_P384_SHA384,
        Some(KeyKind::Ed25519) => algorithms::ED25519,
        None => algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    }
}

/// A certificate whose key the applicant holds; whose it is, nobody has looked at yet.
#[derive(Debug)]
pub struct Possessed<'p> {
    leaf: &'p CertificateDer<'static>,
    beside: &'p [CertificateDer<'static>],
    read: Certificate<'p>,
}

impl Possessed<'_> {
    /// SHA-256 of the certificate.
    pub fn certificate(&self) -> Digest {
        Digest::of(self.leaf)
    }

    /// SHA-256 of its SubjectPublicKeyInfo.
    pub fn key(&self) -> Digest {
        Digest::of(self.read.spki)
    }
}

/// Why a file of roots is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceRootsError {
    /// None, or too many.
    #[error("it has no certificate, or more than {ROOTS_MAX}")]
    Count,
    /// One can't be read.
    #[error("its certificate {at} is not used: {source}")]
    Certificate {
        /// Which, from 1.
        at: usize,
        /// Why.
        source: SvidError,
    },
    /// One does not sign certificates.
    #[error("its certificate {0} is not an authority's")]
    NotAuthority(usize),
}

/// The roots under which device certificates are taken.
#[derive(Debug, Clone)]
pub struct DeviceRoots(Vec<Root>);

#[derive(Debug, Clone)]
struct Root {
    anchor: TrustAnchor<'static>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    key: Digest,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    path_length: Option<u8>,
}

impl DeviceRoots {
    /// Reads them. A root that has ended, or will begin, is taken here and judged at each proof.
    ///
    /// # Errors
    /// The first that can't be a root.
    pub fn read(certificates: &[CertificateDer<'_>]) -> Result<Self, DeviceRootsError> {
        if !(1..=ROOTS_MAX).contains(&certificates.len()) {
            return Err(DeviceRootsError::Count);
        }
        let mut roots = Vec::with_capacity(certificates.len());
        for (at, der) in certificates.iter().enumerate().map(|(at, der)| (at + 1, der)) {
            let broken = |source| DeviceRootsError::Certificate { at, source };
            let read = Certificate::read(der).map_err(broken)?;
            if !signs(&read) || !read.constraints.is_some_and(|it| it.authority) {
                return Err(DeviceRootsError::NotAuthority(at));
            }
            let anchor = webpki::anchor_from_trusted_cert(der);
            roots.push(Root {
                anchor: anchor.map_err(|_| broken(SvidError::Malformed))?.to_owned(),
                key: Digest::of(read.spki),
                not_before: read.not_before,
                not_after: read.not_after,
                path_length: read.constraints.and_then(|it| it.path_length),
            });
        }
        Ok(Self(roots))
    }

    /// SHA-256 of their SubjectPublicKeyInfos.
    pub fn keys(&self) -> impl Iterator<Item = &Digest> {
        self.0.iter().map(|root| &root.key)
    }

    /// That a certificate is a device's under one of these roots, now.
    ///
    /// # Errors
    /// The rule that the chain breaks.
    pub fn verify(&self, shown: &Possessed<'_>, now: Moment) -> Result<(), DeviceProofError> {
        use DeviceProofError as E;
        let leaf = &shown.read;
        if leaf.constraints.is_some_and(|it| it.authority) {
            return Err(E::Authority);
        }
        if leaf.alt_names.is_some_and(|names| names.spiffe) {
            return Err(E::Svid);
        }
        if leaf.key_usage.is_some_and(|usage| usage.cert_sign || !usage.digital_signature) {
            return Err(E::Purpose);
        }
        if leaf.purposes.is_some_and(|purposes| !purposes.client) {
            return Err(E::Purpose);
        }
        let mut subjects = Vec::with_capacity(shown.beside.len());
        for der in shown.beside {
            let issuer = Certificate::read(der).map_err(|_| E::Certificate)?;
            if !signs(&issuer) {
                return Err(E::Issuer);
            }
            // One way up at most: issuers of one name would have to be tried in every order.
            if subjects.contains(&issuer.subject) {
                return Err(E::Path);
            }
            subjects.push(issuer.subject);
        }
        self.climb(shown, now.wall())
    }

    fn climb(&self, shown: &Possessed<'_>, at: OffsetDateTime) -> Result<(), DeviceProofError> {
        let seconds = u64::try_from(at.unix_timestamp()).map_err(|_| DeviceProofError::NotYet)?;
        let is_living = |root: &&Root| root.not_before <= at && at <= root.not_after;
        let living: Vec<&Root> = self.0.iter().filter(is_living).collect();
        let anchors: Vec<_> = living.iter().map(|root| root.anchor.clone()).collect();
        let fits = |path: &VerifiedPath<'_>| {
            let depth = path.intermediate_certificates().count();
            let behind = living.iter().filter(|root| {
                root.anchor.subject == path.anchor().subject
                    && root.anchor.subject_public_key_info == path.anchor().subject_public_key_info
            });
            let fits = |root: &&Root| root.path_length.is_none_or(|most| depth <= most.into());
            match behind.copied().any(|root| fits(&root)) {
                true => Ok(()),
                false => Err(Error::PathLenConstraintViolated),
            }
        };
        EndEntityCert::try_from(shown.leaf)
            .map_err(|_| DeviceProofError::Certificate)?
            .verify_for_usage(
                FEDERATED_ALGORITHMS,
                &anchors,
                shown.beside,
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                webpki::KeyUsage::client_auth(),
                None,
                Some(&fits),
            )
            .map(drop)
            .map_err(rule)
    }
}

/// Whether keyUsage, where it is there, lets this certificate sign others; whether it is an
/// authority's at all, webpki sees.
fn signs(issuer: &Certificate<'_>) -> bool {
    issuer.key_usage.is_none_or(|usage| usage.cert_sign)
}

fn rule(error: Error) -> DeviceProofError {
    use DeviceProofError as E;
    match error {
        Error::UnknownIssuer => E::UnknownIssuer,
        Error::CertExpired { .. } => E::Expired,
        Error::CertNotValidYet { .. } => E::NotYet,
        Error::CaUsedAsEndEntity => E::Authority,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => E::Purpose,
        Error::EndEntityUsedAsCa
        | Error::PathLenConstraintViolated
        | Error::NameConstraintViolation => E::Issuer,
        Error::InvalidSignatureForPublicKey
        | Error::SignatureAlgorithmMismatch
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => E::ChainSignature,
        _ => E::Path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::draft::{CLIENT_AUTH, CODE_SIGNING, Der, SERVER_AUTH, URI};
    use crate::identity::vectors::{Authority, Draft, NOW, tlv};
    use proptest::prelude::*;
    use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm};
    use rustls::SignatureScheme;
    use rustls::pki_types::PrivateKeyDer;

    const EXPORTER: [u8; 32] = [7; 32];
    const SPKI: &[u8] = b"the new device key";

    fn moment() -> Moment {
        Moment::new(NOW, Duration::from_secs(1))
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("corp.example").unwrap()
    }

    fn owner() -> Authority {
        let draft = Draft::authority("device root", "fleet.example");
        Authority::root(&draft, &rcgen::PKCS_ECDSA_P384_SHA384)
    }

    fn device() -> Draft {
        let mut draft = Draft::leaf("urn:device:1");
        draft.subject = Some("laptop-1".to_owned());
        draft.purposes = Some(vec![CLIENT_AUTH]);
        draft
    }

    fn signature(key: &KeyPair, statement: &[u8]) -> Vec<u8> {
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
        let schemes = [
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
        ];
        key.choose_scheme(&schemes).unwrap().sign(statement).unwrap()
    }

    fn proof(key: &KeyPair, chain: Vec<Der>) -> DeviceProof {
        let statement = device_statement(&EXPORTER, SPKI, &domain(), &chain[0]);
        DeviceProof { signature: signature(key, &statement), chain }
    }

    fn judged(proof: &DeviceProof, roots: &[Der]) -> Result<(), DeviceProofError> {
        let shown = proof.possessed(&EXPORTER, SPKI, &domain())?;
        DeviceRoots::read(roots).unwrap().verify(&shown, moment())
    }

    /// The answer to a device certificate that differs in one point, under one root.
    fn answer(change: impl FnOnce(&mut Draft)) -> Result<(), DeviceProofError> {
        let (root, key, mut draft) = (owner(), KeyPair::generate().unwrap(), device());
        change(&mut draft);
        let proof = proof(&key, vec![draft.signed_by(&root, &key)]);
        judged(&proof, &[root.certificate])
    }

    #[test]
    fn each_kind_of_key_is_taken_and_the_proof_reads_back() {
        let root = owner();
        let algorithms: [&'static SignatureAlgorithm; 4] = [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ];
        for algorithm in algorithms {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let leaf = device().signed_by(&root, &key);
            let proof = proof(&key, vec![leaf.clone()]);
            assert_eq!(judged(&proof, std::slice::from_ref(&root.certificate)), Ok(()));
            let shown = proof.possessed(&EXPORTER, SPKI, &domain()).unwrap();
            assert_eq!(shown.certificate(), Digest::of(&leaf));
            assert_eq!(shown.key(), Digest::of(&key.subject_public_key_info()));
            assert_eq!(DeviceProof::read(&proof.body()).unwrap(), proof);
        }
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let leaf = device().signed_by(&root, &p521);
        let other = DeviceProof { chain: vec![leaf], signature: vec![0; 64] };
        assert_eq!(judged(&other, &[root.certificate]).unwrap_err(), DeviceProofError::KeyKind);
    }

    #[test]
    fn a_signature_counts_for_one_connection_one_key_one_domain_and_one_certificate() {
        let (root, key) = (owner(), KeyPair::generate().unwrap());
        let leaf = device().signed_by(&root, &key);
        let good = proof(&key, vec![leaf.clone()]);
        let shown = |proof: &DeviceProof, exporter: &[u8; 32], spki: &[u8], domain: &str| {
            let domain = TrustDomain::parse(domain).unwrap();
            proof.possessed(exporter, spki, &domain).map(drop)
        };
        assert_eq!(shown(&good, &EXPORTER, SPKI, "corp.example"), Ok(()), "control");
        let wrong = Err(DeviceProofError::Signature);
        assert_eq!(shown(&good, &[8; 32], SPKI, "corp.example"), wrong);
        assert_eq!(shown(&good, &EXPORTER, b"another key", "corp.example"), wrong);
        assert_eq!(shown(&good, &EXPORTER, SPKI, "other.example"), wrong);
        // Another certificate over the same key: the statement names the first.
        let renewed = DeviceProof { chain: vec![device().signed_by(&root, &key)], ..good.clone() };
        assert_ne!(renewed.chain[0], leaf);
        assert_eq!(shown(&renewed, &EXPORTER, SPKI, "corp.example"), wrong);
        let thief = proof(&KeyPair::generate().unwrap(), vec![leaf]);
        assert_eq!(shown(&thief, &EXPORTER, SPKI, "corp.example"), wrong, "without the key");
        let text = device_statement(&EXPORTER, SPKI, &domain(), b"");
        assert!(text.starts_with(&PADDING) && !text[64..].starts_with(b"TLS 1.3"));
        assert_eq!(text.len(), 64 + CONTEXT.len() + 4 * 32);
    }

    #[test]
    fn an_svid_of_whatever_domain_makes_nobody_a_device() {
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| (URI, name.as_bytes().to_vec())).collect();
            answer(move |draft: &mut Draft| draft.names = names)
        };
        let svid = Err(DeviceProofError::Svid);
        assert_eq!(
            named(&["spiffe://corp.example/doorward/agent/x"]),
            svid,
            "ours, revoked or not"
        );
        assert_eq!(named(&["spiffe://partner.example/w"]), svid);
        assert_eq!(named(&["spiffe://corp.example/w", "urn:device:1"]), svid);
        assert_eq!(named(&["SPIFFE://corp.example/w"]), svid);
        assert_eq!(named(&["urn:spiffe:1", "https://corp.example/spiffe:"]), Ok(()));
    }

    #[test]
    fn a_device_certificate_differs_from_others() {
        use DeviceProofError as E;
        let hour = time::Duration::hours(1);
        assert_eq!(answer(|_| {}), Ok(()), "control");
        assert_eq!(answer(|draft| draft.purposes = None), Ok(()), "no purposes at all");
        assert_eq!(answer(|draft| draft.usage = None), Ok(()), "no usage at all");
        assert_eq!(answer(|draft| draft.purposes = Some(vec![SERVER_AUTH])), Err(E::Purpose));
        assert_eq!(answer(|draft| draft.purposes = Some(vec![CODE_SIGNING])), Err(E::Purpose));
        let encipherment = Some((true, tlv(0x03, &[5, 0x20])));
        assert_eq!(answer(|draft| draft.usage = encipherment), Err(E::Purpose));
        let signs = Some((true, tlv(0x03, &[2, 0x84])));
        assert_eq!(answer(|draft| draft.usage = signs), Err(E::Purpose));
        let authority = Some(tlv(0x30, &tlv(0x01, &[0xff])));
        assert_eq!(answer(|draft| draft.constraints = authority), Err(E::Authority));
        assert_eq!(
            answer(|draft| (draft.not_before, draft.not_after) = (NOW - hour, NOW - hour / 2)),
            Err(E::Expired)
        );
        assert_eq!(answer(|draft| draft.not_before = NOW + hour / 2), Err(E::NotYet));
        let critical = (vec![1, 2, 3, 4], true, vec![5, 0]);
        assert_eq!(answer(|draft| draft.more.push(critical)), Err(E::Certificate));
    }

    #[test]
    fn a_chain_ends_at_a_living_root_of_the_method() {
        use DeviceProofError as E;
        let (root, stranger, key) = (owner(), owner(), KeyPair::generate().unwrap());
        let alone = |by: &Authority| proof(&key, vec![device().signed_by(by, &key)]);
        let roots = [root.certificate.clone()];
        assert_eq!(judged(&alone(&root), &roots), Ok(()), "control");
        assert!(judged(&alone(&stranger), &roots).is_err(), "the same name, another key");
        let own = proof(&key, vec![device().self_signed(&key)]);
        assert_eq!(judged(&own, &roots), Err(E::UnknownIssuer));
        let mut ended = Draft::authority("device root", "fleet.example");
        ended.not_after = NOW - time::Duration::seconds(1);
        let ended = Authority::root(&ended, &rcgen::PKCS_ECDSA_P256_SHA256);
        let under = judged(&alone(&ended), std::slice::from_ref(&ended.certificate));
        assert_eq!(under, Err(E::UnknownIssuer));

        let issuer = |name: &str| Draft::authority(name, "fleet.example");
        let mut links = vec![root.under(&issuer("issuer 0"))];
        for n in 1..5 {
            links.push(links[n - 1].under(&issuer(&format!("issuer {n}"))));
        }
        for count in 1..=5 {
            let mut chain = vec![device().signed_by(&links[count - 1], &key)];
            chain.extend(links[..count].iter().rev().map(|link| link.certificate.clone()));
            let proof = proof(&key, chain);
            match count {
                5 => assert_eq!(DeviceProof::read(&proof.body()), Err(E::ChainLength)),
                _ => {
                    assert!(DeviceProof::read(&proof.body()).is_ok());
                    assert_eq!(judged(&proof, &roots), Ok(()), "{count} issuers");
                }
            }
        }
        // A stranger who makes all issuers himself would choose how many ways there are to try.
        let same = [root.under(&issuer("same")), root.under(&issuer("same"))];
        let leaf = device().signed_by(&same[0], &key);
        let twice = same.iter().map(|link| link.certificate.clone());
        let chain = std::iter::once(leaf).chain(twice).collect();
        assert_eq!(judged(&proof(&key, chain), &roots), Err(E::Path));
        let judged_under = |draft: &Draft, want| {
            let link = root.under(draft);
            let chain = vec![device().signed_by(&link, &key), link.certificate];
            assert_eq!(judged(&proof(&key, chain), &roots), want);
        };
        judged_under(&issuer("good"), Ok(()));
        judged_under(
            &Draft { constraints: Some(tlv(0x30, &[])), ..issuer("none") },
            Err(E::Issuer),
        );
        let usage = Some((true, tlv(0x03, &[7, 0x80])));
        judged_under(&Draft { usage, ..issuer("signs nothing") }, Err(E::Issuer));
        let not_after = NOW - time::Duration::seconds(1);
        judged_under(&Draft { not_after, ..issuer("ended") }, Err(E::Expired));

        let mut shallow = issuer("shallow");
        shallow.constraints = Some(tlv(0x30, &[1, 1, 0xff, 2, 1, 0]));
        let shallow = Authority::root(&shallow, &rcgen::PKCS_ECDSA_P256_SHA256);
        let link = shallow.under(&issuer("too deep"));
        let deep = proof(&key, vec![device().signed_by(&link, &key), link.certificate]);
        let roots = [shallow.certificate.clone()];
        assert_eq!(judged(&alone(&shallow), &roots), Ok(()));
        assert_eq!(judged(&deep, &roots), Err(E::Issuer));
    }

    /// A key of which nobody has the private half, of any size.
    struct Modulus(Vec<u8>);

    impl PublicKeyData for Modulus {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }
        fn algorithm(&self) -> &'static SignatureAlgorithm {
            &rcgen::PKCS_RSA_SHA256
        }
    }

    #[test]
    fn a_weak_or_a_huge_rsa_key_costs_nothing_and_opens_nothing() {
        let root = owner();
        for octets in [128, 1025, 1536] {
            let modulus = [&[0][..], &vec![0xff; octets]].concat();
            let key = tlv(0x30, &[tlv(0x02, &modulus), tlv(0x02, &[1, 0, 1])].concat());
            let issuer = rcgen::Issuer::from_params(&root.params, &root.key);
            let leaf: Der = device().params().signed_by(&Modulus(key), &issuer).unwrap().into();
            let proof = DeviceProof { chain: vec![leaf], signature: vec![1; octets] };
            let error = judged(&proof, std::slice::from_ref(&root.certificate)).unwrap_err();
            let of_key = matches!(error, DeviceProofError::Signature | DeviceProofError::KeyKind);
            assert!(of_key, "{octets}: {error:?}");
        }
    }

    #[test]
    fn a_body_has_one_form() {
        use DeviceProofError as E;
        let (root, key) = (owner(), KeyPair::generate().unwrap());
        let good = proof(&key, vec![device().signed_by(&root, &key)]).body();
        assert!(DeviceProof::read(&good).is_ok(), "control");
        let text = String::from_utf8(good.clone()).unwrap();
        let long = format!("{}{}", text, " ".repeat(DEVICE_PROOF_MAX));
        let large = STANDARD.encode(vec![0x30; CERTIFICATE_MAX + 1]);
        for (bad, want) in [
            (long, E::TooLarge),
            (String::new(), E::Form),
            ("{}".into(), E::Form),
            ("[]".into(), E::Form),
            (text.replace("\"signature\"", "\"sig\""), E::Form),
            (text.replace("{\"chain\"", "{\"x\":1,\"chain\""), E::Form),
            (text.replace("{\"chain\"", "{\"chain\":[],\"chain\""), E::Form),
            (r#"{"chain":[],"signature":""}"#.into(), E::ChainLength),
            (r#"{"chain":[""],"signature":""}"#.into(), E::Certificate),
            (r#"{"chain":["!"],"signature":""}"#.into(), E::Form),
            (r#"{"chain":["AA=="],"signature":"!"}"#.into(), E::Form),
            (format!(r#"{{"chain":["{large}"],"signature":""}}"#), E::Certificate),
        ] {
            assert_eq!(DeviceProof::read(bad.as_bytes()).unwrap_err(), want, "{:.80}", bad);
        }
        for at in 0..good.len() {
            let _ = DeviceProof::read(&good[..at]).unwrap_err();
        }
    }

    #[test]
    fn roots_are_authorities_of_a_bounded_number() {
        let root = owner();
        let one = root.certificate.clone();
        assert!(DeviceRoots::read(std::slice::from_ref(&one)).is_ok());
        assert_eq!(DeviceRoots::read(&[]).unwrap_err(), DeviceRootsError::Count);
        let many = vec![one.clone(); ROOTS_MAX + 1];
        assert_eq!(DeviceRoots::read(&many).unwrap_err(), DeviceRootsError::Count);
        let leaf = device().signed_by(&root, &KeyPair::generate().unwrap());
        assert_eq!(
            DeviceRoots::read(&[one.clone(), leaf]).unwrap_err(),
            DeviceRootsError::NotAuthority(2)
        );
        let broken = DeviceRoots::read(&[one, vec![0x30].into()]).unwrap_err();
        assert!(broken.to_string().starts_with("its certificate 2 is not used"), "{broken}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            der in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0usize..400, with in any::<u8>(),
        ) {
            if let Ok(proof) = DeviceProof::read(&body) {
                let _ = proof.possessed(&EXPORTER, SPKI, &domain());
            }
            let made = DeviceProof { chain: vec![der.into()], signature: body };
            let read = DeviceProof::read(&made.body()).map(|proof| proof == made);
            prop_assert!(made.chain[0].is_empty() || read == Ok(true));
            prop_assert!(made.possessed(&EXPORTER, SPKI, &domain()).is_err());
            CHANGED.with(|good| {
                let mut leaf = good.chain[0].to_vec();
                let at = at % leaf.len();
                prop_assume!(leaf[at] != with);
                leaf[at] = with;
                let changed = DeviceProof { chain: vec![leaf.into()], ..good.clone() };
                prop_assert!(changed.possessed(&EXPORTER, SPKI, &domain()).is_err());
                Ok(())
            })?;
        }
    }

    thread_local! {
        static CHANGED: DeviceProof = {
            let key = KeyPair::generate().unwrap();
            proof(&key, vec![device().signed_by(&owner(), &key)])
        };
    }
}
