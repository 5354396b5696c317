//! One certificate authority: a P-256 key and its certificate, a self-signed root or an intermediate
//! below a company's ([`super::upstream`]). Which of several signs is [`super::authorities`]' business.
//!
//! The key lives inside the cryptographic library from the moment it is opened; its PKCS#8 form is
//! in wiped memory only, and never in a library's plain vector. It signs nothing but what
//! [`super::issue`] builds, nothing outside the root's own life, and nothing while the clock is not
//! trusted.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::AuthorityError;
use super::subject_key::SubjectKey;
use super::upstream::Over;
use crate::model::limits::{BACKDATE, CA_TTL, ISSUE_CLOCK_STEP};
use crate::model::{Code, Digest, Failure, Moment, Reason, SecretValue, TrustDomain, rfc3339};

/// A P-256 key that signs, as rcgen wants it.
pub(super) struct P256Key(EcdsaKeyPair);

impl P256Key {
    /// A fresh key.
    pub(super) fn generate() -> Result<Self, AuthorityError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Self)
            .map_err(|_| AuthorityError::Crypto("making a key"))
    }

    fn open(pkcs8: &SecretValue) -> Result<Self, AuthorityError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.expose())
            .map(Self)
            .map_err(|_| AuthorityError::CaKey)
    }

    /// The PKCS#8 form, in wiped memory.
    pub(super) fn pkcs8(&self) -> Result<SecretValue, AuthorityError> {
        let document = self.0.to_pkcs8v1().map_err(|_| AuthorityError::Crypto("writing a key"))?;
        Ok(SecretValue::new(document.as_ref().to_vec()))
    }
}

impl PublicKeyData for P256Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for P256Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| rcgen::Error::RingUnspecified)?.as_ref().to_vec())
    }
}

/// Whether the clocks are right enough to sign by; shared by all authorities.
#[derive(Debug)]
pub(super) struct ClockTrust(Mutex<Moment>);

impl ClockTrust {
    /// Trusts the clocks as of this moment.
    pub(super) fn from(now: Moment) -> Arc<Self> {
        Arc::new(Self(Mutex::new(now)))
    }

    /// Takes this moment as the one that later ones are measured against.
    pub(super) fn trust(&self, now: Moment) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Whether wall and boot clock went the same way since.
    pub(super) fn holds(&self, now: Moment) -> bool {
        let trusted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wall = now.wall() - trusted.wall();
        let boot = time::Duration::try_from(now.since(trusted.boot())).unwrap_or_default();
        wall.saturating_sub(boot).unsigned_abs() <= ISSUE_CLOCK_STEP
    }
}

/// An authority's certificate, read and judged: what our own verifier takes for a root.
#[derive(Debug, Clone)]
pub(super) struct Root {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// SHA-256 of it: what the authority is called by.
    pub id: Digest,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub key: Digest,
    /// First second.
    pub not_before: OffsetDateTime,
    /// Last second.
    pub not_after: OffsetDateTime,
}

impl Root {
    /// Reads a stored certificate (DER, base64). It must be one that [`Ca::create`] writes for this
    /// domain, or, `below` a company's, [`super::intermediate`].
    pub(super) fn read(
        text: &str,
        domain: &TrustDomain,
        below: bool,
    ) -> Result<Self, AuthorityError> {
        let damaged = AuthorityError::CaDamaged;
        let der = STANDARD.decode(text).map_err(|_| damaged("not base64"))?;
        let (rest, root) = X509Certificate::from_der(&der).map_err(|_| damaged("not X.509"))?;
        if !rest.is_empty() {
            return Err(damaged("bytes after its end"));
        }
        let key = Digest::of(root.public_key().raw);
        check_root(&root, domain, &key, below)?;
        let (not_before, not_after) =
            (root.validity().not_before.to_datetime(), root.validity().not_after.to_datetime());
        Ok(Self { id: Digest::of(&der), key, not_before, not_after, der: der.into() })
    }
}

/// The opened authority: its root, and the key ready to sign.
pub(super) struct Ca {
    root: Root,
    over: Option<Over>,
    issuer: Issuer<'static, P256Key>,
    clock: Arc<ClockTrust>,
}

impl Ca {
    /// Makes a key and its root for a year; the root (DER, base64) and the key's PKCS#8 to seal.
    pub(super) fn create(
        domain: &TrustDomain,
        now: Moment,
    ) -> Result<(String, SecretValue), AuthorityError> {
        let key = P256Key::generate()?;
        let root = root_params(domain, &key, now)?
            .self_signed(&key)
            .map_err(|_| AuthorityError::Crypto("signing the root certificate"))?;
        Ok((STANDARD.encode(root.der()), key.pkcs8()?))
    }

    /// Opens a root with its key.
    pub(super) fn open(
        root: Root,
        pkcs8: &SecretValue,
        domain: &TrustDomain,
        clock: Arc<ClockTrust>,
        now: Moment,
    ) -> Result<Self, AuthorityError> {
        let key = P256Key::open(pkcs8)?;
        if root.key != Digest::of(&key.subject_public_key_info()) {
            return Err(AuthorityError::CaKey);
        }
        let mut params = root_params(domain, &key, now)?;
        // The identifier is put in as it is, instead of being hashed anew for each certificate.
        params.key_identifier_method = KeyIdMethod::PreSpecified(params.key_identifier(&key));
        Ok(Self { root, over: None, clock, issuer: Issuer::new(params, key) })
    }

    /// The same below a company's.
    pub(super) fn below(self, over: Option<Over>) -> Self {
        Self { over, ..self }
    }

    /// The name of the authority with this key. The key's digest is in it, so that the roots of two
    /// rotations are never taken for each other.
    pub(super) fn common_name(key: &Digest) -> String {
        format!("Doorward CA {}", key.to_string().get(..16).unwrap_or_default())
    }

    /// What leaves call its key by.
    pub(super) fn key_id(key: &P256Key) -> Vec<u8> {
        CertificateParams::default().key_identifier(key)
    }

    /// What is shown after a leaf, so that whoever has [`Self::published`] can check it: nothing for a
    /// root.
    pub(super) fn shown(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.over.iter().flat_map(|over| std::iter::once(&self.root.der).chain(&over.chain))
    }

    /// The roots that are published for it: itself, or the company's.
    pub(super) fn published(&self) -> &[CertificateDer<'static>] {
        match &self.over {
            Some(over) => &over.roots,
            None => std::slice::from_ref(&self.root.der),
        }
    }

    /// Who stands above it.
    pub(super) fn over(&self) -> Option<&Over> {
        self.over.as_ref()
    }

    /// SHA-256 of the root certificate.
    pub(super) fn id(&self) -> Digest {
        self.root.id
    }

    /// The root certificate.
    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.root.der
    }

    /// SHA-256 of the SubjectPublicKeyInfo of the signing key.
    pub(super) fn key(&self) -> Digest {
        self.root.key
    }

    /// The root's own life: first and last second.
    pub(super) fn life(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.root.not_before, self.root.not_after)
    }

    /// Whether anything may be signed at this moment.
    pub(super) fn ready(&self, now: Moment) -> Result<(), Failure> {
        if !self.clock.holds(now) || now.wall() < self.root.not_before {
            let hint =
                "the clocks disagree, so nothing is signed; set the time and restart the broker";
            let failure = Failure::new(Code::Unavailable, Reason::ClockStep);
            return Err(Failure { hint: Some(hint.into()), ..failure });
        }
        if now.wall() >= self.root.not_after {
            let hint = format!("the root certificate ended at {}", rfc3339(self.root.not_after));
            let failure = Failure::new(Code::Unavailable, Reason::IdentityExpired);
            return Err(Failure { hint: Some(hint), ..failure });
        }
        Ok(())
    }

    /// Signs what [`super::issue`] has built.
    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        key: &SubjectKey,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let signed = params.signed_by(key, &self.issuer);
        signed.map(Into::into).map_err(|_| AuthorityError::Crypto("signing a certificate"))
    }
}

/// 128 random bits after a 1: positive, never zero, 17 bytes (RFC 5280 §4.1.2.2 allows 20).
pub(super) fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut serial = [1; 17];
    if let Some((_, random)) = serial.split_first_mut() {
        aws_lc_rs::rand::fill(random).map_err(|_| AuthorityError::Crypto("making randomness"))?;
    }
    Ok(SerialNumber::from_slice(&serial))
}

fn root_params(
    domain: &TrustDomain,
    key: &P256Key,
    now: Moment,
) -> Result<CertificateParams, AuthorityError> {
    let wall = now.wall().replace_nanosecond(0).unwrap_or(now.wall());
    let id = format!("spiffe://{domain}");
    let spki = Digest::of(&key.subject_public_key_info());
    let mut params = CertificateParams::default();
    params.not_before = wall - BACKDATE;
    params.not_after = wall + CA_TTL;
    params.serial_number = Some(random_serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, Ca::common_name(&spki));
    params.subject_alt_names = vec![SanType::URI(
        id.try_into().map_err(|_| AuthorityError::Crypto("writing the trust domain"))?,
    )];
    // Leaves stand directly below.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// That a stored root is ours: whoever changed the row must not gain another name or domain.
fn check_root(
    root: &X509Certificate<'_>,
    domain: &TrustDomain,
    key: &Digest,
    below: bool,
) -> Result<(), AuthorityError> {
    let damaged = AuthorityError::CaDamaged;
    let names = root.subject_alternative_name().map_err(|_| damaged("its names are doubled"))?;
    let names = names.ok_or(damaged("it has no name"))?;
    match names.value.general_names.as_slice() {
        [x509_parser::extensions::GeneralName::URI(uri)] => {
            if *uri != format!("spiffe://{domain}") {
                return Err(AuthorityError::Domain(domain.clone()));
            }
        }
        _ => return Err(damaged("it has another name than its trust domain")),
    }
    let mut common = root.subject().iter_common_name().map(|name| name.as_str());
    if !matches!((common.next(), common.next()), (Some(Ok(name)), None) if name == Ca::common_name(key))
        || (root.subject().as_raw() == root.issuer().as_raw()) == below
        || root.subject().iter_attributes().count() != 1
    {
        return Err(damaged("its subject is another"));
    }
    if !root.is_ca() {
        return Err(damaged("it is no authority's"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Clock, ManualClock};
    use time::macros::datetime;

    fn domain() -> TrustDomain {
        TrustDomain::parse("corp.example").unwrap()
    }

    fn clock() -> ManualClock {
        ManualClock::at(datetime!(2026-11-23 12:00 UTC))
    }

    fn opened(
        certificate: &str,
        key: &SecretValue,
        domain: &str,
        now: Moment,
    ) -> Result<Ca, AuthorityError> {
        let domain = TrustDomain::parse(domain).unwrap();
        let root = Root::read(certificate, &domain, false)?;
        Ca::open(root, key, &domain, ClockTrust::from(now), now)
    }

    #[test]
    fn the_root_has_the_profile_of_a_spiffe_signing_certificate() {
        let now = clock().now();
        let (record, _) = Ca::create(&domain(), now).unwrap();
        let der = STANDARD.decode(&record).unwrap();
        let (_, root) = X509Certificate::from_der(&der).unwrap();
        let constraints = root.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = root.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
        assert!(!usage.value.digital_signature(), "it must not authenticate");
        let names = root.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(root.name_constraints().unwrap().is_none());
        assert_eq!(root.validity().not_before.to_datetime(), now.wall() - BACKDATE);
        assert_eq!(root.validity().not_after.to_datetime(), now.wall() + CA_TTL);
        assert_eq!(root.raw_serial().len(), 17);
        assert!(root.raw_serial()[0] < 0x80, "positive");
        assert_eq!(root.version().0, 2, "v3");
    }

    #[test]
    fn it_opens_with_its_own_key_and_domain_only() {
        let now = clock().now();
        let (record, key) = Ca::create(&domain(), now).unwrap();
        let ca = opened(&record, &key, "corp.example", now).unwrap();
        assert_eq!(STANDARD.encode(ca.root()), record);

        let (other, other_key) = Ca::create(&domain(), now).unwrap();
        assert_ne!(other, record);
        let open = |record: &str, key: &SecretValue, domain: &str| {
            opened(record, key, domain, now).err().unwrap()
        };
        assert!(matches!(open(&record, &other_key, "corp.example"), AuthorityError::CaKey));
        let garbage = SecretValue::new(vec![1, 2, 3]);
        assert!(matches!(open(&record, &garbage, "corp.example"), AuthorityError::CaKey));
        assert!(matches!(open(&record, &key, "else.example"), AuthorityError::Domain(_)));
        for text in ["", "!", "AAAA"] {
            assert!(matches!(open(text, &key, "corp.example"), AuthorityError::CaDamaged(_)));
        }
    }

    #[test]
    fn a_foreign_certificate_over_the_same_key_does_not_open() {
        let now = clock().now();
        let (record, pkcs8) = Ca::create(&domain(), now).unwrap();
        let open = |root: &str| opened(root, &pkcs8, "corp.example", now);
        assert!(open(&record).is_ok());
        let key = P256Key::open(&pkcs8).unwrap();
        let sign = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = root_params(&domain(), &key, now).unwrap();
            change(&mut params);
            let der = params.self_signed(&key).unwrap();
            STANDARD.encode(der.der())
        };
        assert!(open(&sign(&|_| {})).is_ok());
        for record in [
            sign(&|params| params.is_ca = IsCa::ExplicitNoCa),
            sign(&|params| params.subject_alt_names.clear()),
            sign(&|params| params.distinguished_name.push(DnType::CommonName, "Other CA")),
            sign(&|params| params.distinguished_name.push(DnType::OrganizationName, "Other")),
        ] {
            let error = open(&record).err().unwrap();
            assert!(matches!(error, AuthorityError::CaDamaged(_)), "{error}");
        }
    }

    #[test]
    fn nothing_is_signed_past_its_end_or_while_the_clock_is_wrong() {
        let clock = clock();
        let (record, key) = Ca::create(&domain(), clock.now()).unwrap();
        let ca = opened(&record, &key, "corp.example", clock.now()).unwrap();
        assert!(ca.ready(clock.now()).is_ok());

        let right = clock.now().wall();
        for wrong in [right + Duration::from_secs(301), right - Duration::from_secs(301)] {
            clock.set_wall(wrong);
            assert_eq!(ca.ready(clock.now()).unwrap_err().reason, Reason::ClockStep);
        }
        ca.clock.trust(clock.now());
        let failure = ca.ready(clock.now()).unwrap_err();
        assert_eq!(failure.reason, Reason::ClockStep, "before the root's own beginning");
        clock.set_wall(right + Duration::from_secs(299));
        ca.clock.trust(clock.now());
        assert!(ca.ready(clock.now()).is_ok());

        clock.advance(CA_TTL);
        assert_eq!(ca.ready(clock.now()).unwrap_err().reason, Reason::IdentityExpired);
    }

    #[test]
    fn serials_are_random_and_positive() {
        let serials: std::collections::HashSet<_> =
            (0..1000).map(|_| random_serial().unwrap().to_bytes()).collect();
        assert_eq!(serials.len(), 1000);
        assert!(serials.iter().all(|serial| serial.len() == 17 && serial[0] == 1));
    }
}
