//! An authority of ours below somebody else's: its certificate is signed by a key that a company
//! gives us, and published is the company's root.
//!
//! The company's key is read when an authority is prepared, signs that one certificate and is wiped;
//! it is never stored, and nothing else is ever signed with it. What comes out is judged as others
//! will judge it, from the published roots down, before it is kept: a leaf is signed with it and
//! shown to our verifier as if it were a stranger's. Doorward itself goes on trusting its own
//! authorities by name ([`super::issuers`]): whoever else stands below the company's root gives
//! nobody an identity here.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::PublicKeyData;
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroize;

use super::ca::{Ca, ClockTrust, P256Key, Root, random_serial};
use super::error::AuthorityError;
use super::intermediate::{Intermediate, certificate};
use super::issue::{Leaf, params};
use super::room::Authority;
use super::subject_key::SubjectKey;
use crate::identity::{Bundle, BundleDocument, Identity, SvidError, View};
use crate::model::limits::{
    BACKDATE, CERTIFICATE_MAX, LEAF_TTL_MAX, UPSTREAM_CHAIN_MAX, UPSTREAM_ROOTS_MAX,
};
use crate::model::{Digest, Moment, SecretValue, TrustDomain, rfc3339};

/// The AlgorithmIdentifiers of what a company's key may sign with; SHA-2 only.
const ALGORITHMS: [(SignatureScheme, &[u8]); 4] = [
    (
        SignatureScheme::ECDSA_NISTP384_SHA384,
        &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
    ),
    (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
    ),
    (
        SignatureScheme::RSA_PKCS1_SHA256,
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00],
    ),
    (SignatureScheme::ED25519, &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70]),
];

/// Why no authority can be made below the company's.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A file, as whoever read it says it.
    #[error("{0}")]
    File(String),
    /// No certificate, or too many.
    #[error(
        "`certificate` holds 1 to {} certificates: the one that `key` is of first, then those \
         between it and a root",
        UPSTREAM_CHAIN_MAX
    )]
    Chain,
    /// No root, or too many.
    #[error("`roots` holds 1 to {} certificates", UPSTREAM_ROOTS_MAX)]
    Roots,
    /// One is not X.509, or too large.
    #[error("{0} can't be read as a certificate, or is larger than {CERTIFICATE_MAX} bytes")]
    Certificate(&'static str),
    /// The key belongs to another certificate.
    #[error("`key` is not the key of the first certificate in `certificate`")]
    Key,
    /// A key that can't sign here.
    #[error(
        "`key` is of a kind that is not used: P-256, P-384, Ed25519 or RSA of 2048 to 8192 bits"
    )]
    KeyKind,
    /// The chain has ended or will.
    #[error("the certificate of the authority above ends at {0}: too soon to stand below it")]
    Ends(String),
    /// A published root breaks a rule.
    #[error("a certificate in `roots` is not used: {0}")]
    Root(SvidError),
    /// A published root can't stand in a bundle.
    #[error("a certificate in `roots` can't stand in a SPIFFE bundle")]
    Bundle,
    /// What stands below it would be refused.
    #[error("what such an authority signs would be refused by others: {0}")]
    Refused(SvidError),
    /// Our own fault.
    #[error(transparent)]
    Own(AuthorityError),
}

impl From<AuthorityError> for UpstreamError {
    fn from(error: AuthorityError) -> Self {
        Self::Own(error)
    }
}

/// What a company gives.
pub struct UpstreamFiles {
    /// Its certificate, then those between it and a root.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The first one's key.
    pub key: PrivateKeyDer<'static>,
    /// What is published.
    pub roots: Vec<CertificateDer<'static>>,
    /// Life of an authority below it, if nothing above ends before.
    pub life: Duration,
}

impl fmt::Debug for UpstreamFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamFiles(…)")
    }
}

impl Drop for UpstreamFiles {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Reads what the company gives, each time that an authority is prepared.
pub type ReadUpstream = Arc<dyn Fn() -> Result<UpstreamFiles, UpstreamError> + Send + Sync>;

impl Authority {
    /// The same, with authorities that stand below whoever this reads; none are made otherwise.
    #[must_use]
    pub fn with_upstream(mut self, upstream: Option<ReadUpstream>) -> Self {
        self.opening.upstream = upstream;
        self
    }
}

/// What stands above an authority: in its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Above {
    /// From whoever signed its certificate up to below the roots; DER, base64.
    pub chain: Vec<String>,
    /// What is published; DER, base64.
    pub roots: Vec<String>,
}

/// The same, read.
#[derive(Debug, Clone, Default)]
pub(super) struct Over {
    pub chain: Vec<CertificateDer<'static>>,
    pub roots: Vec<CertificateDer<'static>>,
}

impl Above {
    /// Reads it back.
    pub(super) fn read(&self) -> Result<Over, AuthorityError> {
        let damaged = || AuthorityError::CaDamaged("what stands above it can't be read");
        let bounds = (self.chain.len(), self.roots.len());
        if bounds.0 > UPSTREAM_CHAIN_MAX || !(1..=UPSTREAM_ROOTS_MAX).contains(&bounds.1) {
            return Err(damaged());
        }
        let all = |texts: &[String]| -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
            let one = |text: &String| {
                let der = STANDARD.decode(text).map_err(|_| damaged())?;
                key_of(&der).map(|_| der.into()).ok_or_else(damaged)
            };
            texts.iter().map(one).collect()
        };
        Ok(Over { chain: all(&self.chain)?, roots: all(&self.roots)? })
    }
}

impl Over {
    /// SHA-256 of each SubjectPublicKeyInfo in it.
    pub(super) fn keys(&self) -> impl Iterator<Item = Digest> {
        self.chain.iter().chain(&self.roots).filter_map(|der| key_of(der))
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo.
fn key_of(der: &[u8]) -> Option<Digest> {
    let (rest, read) = X509Certificate::from_der(der).ok()?;
    (rest.is_empty() && der.len() <= CERTIFICATE_MAX).then(|| Digest::of(read.public_key().raw))
}

/// A new authority below the company's.
pub(super) struct Made {
    /// Its certificate (DER, base64).
    pub certificate: String,
    /// Its key, PKCS #8.
    pub key: SecretValue,
    pub above: Above,
}

/// The company's authority, judged and ready to sign one certificate.
struct Upstream<'f> {
    files: &'f UpstreamFiles,
    /// From the signing one up, roots left out.
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn rustls::sign::SigningKey>,
    /// Of the signing one.
    subject: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_before: OffsetDateTime,
    /// The earliest in the chain.
    not_after: OffsetDateTime,
}

/// Makes an authority below the company's.
///
/// # Errors
/// What is wrong with what the company gives.
pub(super) fn made(
    files: &UpstreamFiles,
    domain: &TrustDomain,
    now: Moment,
) -> Result<Made, UpstreamError> {
    let upstream = Upstream::read(files)?;
    let key = P256Key::generate()?;
    let pkcs8 = key.pkcs8()?;
    let wall = now.wall().replace_nanosecond(0).unwrap_or(now.wall());
    let life = time::Duration::try_from(files.life).unwrap_or_default();
    let until = wall.checked_add(life).map_or(upstream.not_after, |at| at.min(upstream.not_after));
    let below = Below { upstream: &upstream, domain, key: &key, pkcs8: &pkcs8, now };
    let mut signed = below.sign(until)?;
    // A root may end before all below it: then so does ours.
    let ends = below.judge(&signed, until)?;
    if ends < until {
        signed = below.sign(ends)?;
        below.judge(&signed, ends)?;
    }
    let least = wall.checked_add(time::Duration::try_from(LEAF_TTL_MAX).unwrap_or_default());
    if least.is_none_or(|least| ends < least) {
        return Err(UpstreamError::Ends(rfc3339(ends)));
    }
    let text = |all: &[CertificateDer<'_>]| all.iter().map(|der| STANDARD.encode(der)).collect();
    Ok(Made {
        certificate: STANDARD.encode(&signed),
        key: pkcs8,
        above: Above { chain: text(&upstream.chain), roots: text(&files.roots) },
    })
}

impl<'f> Upstream<'f> {
    fn read(files: &'f UpstreamFiles) -> Result<Self, UpstreamError> {
        if !(1..=UPSTREAM_ROOTS_MAX).contains(&files.roots.len()) {
            return Err(UpstreamError::Roots);
        }
        if files.roots.iter().any(|root| key_of(root).is_none()) {
            return Err(UpstreamError::Certificate("a certificate in `roots`"));
        }
        // A whole chain, root included, is what many programs write.
        let is_between = |der: &&CertificateDer<'static>| !files.roots.contains(der);
        let chain: Vec<_> = files.certificates.iter().filter(is_between).cloned().collect();
        let signing = files.certificates.first().ok_or(UpstreamError::Chain)?;
        if chain.len() > UPSTREAM_CHAIN_MAX {
            return Err(UpstreamError::Chain);
        }
        let bad = || UpstreamError::Certificate("a certificate in `certificate`");
        let mut not_after = None;
        for der in &chain {
            key_of(der).ok_or_else(bad)?;
            let (_, read) = X509Certificate::from_der(der).map_err(|_| bad())?;
            let end = read.validity().not_after.to_datetime();
            not_after = Some(not_after.map_or(end, |least: OffsetDateTime| least.min(end)));
        }
        let (_, read) = X509Certificate::from_der(signing).map_err(|_| bad())?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&files.key)
            .map_err(|_| UpstreamError::KeyKind)?;
        let public = key.public_key().ok_or(UpstreamError::KeyKind)?;
        if public.as_ref() != read.public_key().raw {
            return Err(UpstreamError::Key);
        }
        let key_id = read.extensions().iter().find_map(|it| match it.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let own_end = read.validity().not_after.to_datetime();
        Ok(Self {
            files,
            key,
            subject: read.subject().as_raw().to_vec(),
            key_id,
            not_before: read.validity().not_before.to_datetime(),
            not_after: not_after.map_or(own_end, |least| least.min(own_end)),
            chain,
        })
    }
}

/// A new key below the company's authority.
struct Below<'a> {
    upstream: &'a Upstream<'a>,
    domain: &'a TrustDomain,
    key: &'a P256Key,
    pkcs8: &'a SecretValue,
    now: Moment,
}

impl Below<'_> {
    /// Its certificate, DER.
    fn sign(&self, until: OffsetDateTime) -> Result<Vec<u8>, UpstreamError> {
        let schemes = ALGORITHMS.map(|(scheme, _)| scheme);
        let signer = self.upstream.key.choose_scheme(&schemes).ok_or(UpstreamError::KeyKind)?;
        let (_, algorithm) = ALGORITHMS
            .iter()
            .find(|(scheme, _)| *scheme == signer.scheme())
            .ok_or(UpstreamError::KeyKind)?;
        let wall = self.now.wall().replace_nanosecond(0).unwrap_or(self.now.wall());
        let spki = self.key.subject_public_key_info();
        let serial = random_serial()?;
        let signed = Intermediate {
            serial: &serial.to_bytes(),
            issuer: &self.upstream.subject,
            issuer_key_id: self.upstream.key_id.as_deref(),
            algorithm,
            not_before: (wall - BACKDATE).max(self.upstream.not_before),
            not_after: until,
            common_name: &Ca::common_name(&Digest::of(&spki)),
            spki: &spki,
            key_id: &Ca::key_id(self.key),
            uri: &format!("spiffe://{}", self.domain),
        }
        .to_be_signed()?;
        let signature = signer
            .sign(&signed)
            .map_err(|_| AuthorityError::Crypto("signing with the company's key"))?;
        Ok(certificate(&signed, algorithm, &signature)?)
    }

    /// What others make of a leaf below it, and when it all ends.
    fn judge(&self, signed: &[u8], until: OffsetDateTime) -> Result<OffsetDateTime, UpstreamError> {
        let (domain, roots) = (self.domain, &self.upstream.files.roots);
        if until <= self.now.wall() {
            return Err(UpstreamError::Ends(rfc3339(until)));
        }
        let document =
            BundleDocument::new(domain.clone(), roots.clone(), Vec::new(), 1, LEAF_TTL_MAX);
        document.map_err(|_| UpstreamError::Bundle)?;
        let stranger = stranger(domain, roots)?;
        if let Some((_, fault)) = stranger.unusable_roots().into_iter().next() {
            return Err(UpstreamError::Root(fault));
        }
        let root = Root::read(&STANDARD.encode(signed), domain, true)?;
        let clock = ClockTrust::from(self.now);
        let ca = Ca::open(root, self.pkcs8, domain, clock, self.now)?;
        let leaf = self.leaf(&ca)?;
        let own: CertificateDer<'_> = signed.to_vec().into();
        let chain: Vec<_> =
            [leaf, own].into_iter().chain(self.upstream.chain.iter().cloned()).collect();
        let peer = stranger.peer(&chain, self.now).map_err(UpstreamError::Refused)?;
        let caller = stranger.recognise(&peer, self.now);
        caller.not_after().ok_or(UpstreamError::Refused(SvidError::Path))
    }

    /// A leaf that lives as long as it may; nobody is ever shown it.
    fn leaf(&self, ca: &Ca) -> Result<CertificateDer<'static>, UpstreamError> {
        let id = self.domain.id("/doorward/broker");
        let id = id.map_err(|_| AuthorityError::Crypto("naming a trial certificate"))?;
        let leaf = Leaf { id, extension: None, ttl: self.upstream.files.life };
        let key = P256Key::generate()?;
        let key = SubjectKey::parse(&key.subject_public_key_info());
        let key = key.map_err(|_| AuthorityError::Crypto("making a trial key"))?;
        let (first, last) = ca.life();
        let (params, _) = params(&leaf, first, last, self.now)?;
        Ok(ca.sign(&params, &key)?)
    }
}

/// A verifier that knows this domain by these roots only, and is of another one itself.
fn stranger(
    domain: &TrustDomain,
    roots: &[CertificateDer<'static>],
) -> Result<Identity, AuthorityError> {
    let other = if domain.as_str() == "a.invalid" { "b.invalid" } else { "a.invalid" };
    let other = TrustDomain::parse(other).map_err(|_| AuthorityError::Crypto("naming a domain"))?;
    let bundle = Bundle { roots: roots.to_vec() };
    Ok(Identity::new(View {
        trust_domain: other,
        bundles: Arc::new(HashMap::from([(domain.clone(), bundle)])),
        own_issuers: Arc::new(HashSet::new()),
        devices: Arc::default(),
        entries: Arc::default(),
        denied: Arc::default(),
    }))
}
