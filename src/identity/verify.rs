//! Verification of one X.509-SVID chain: every MUST of X509-SVID, on top of RFC 5280 path building.
//!
//! Bounds come first, then the leaf's own rules, then those of its issuers, then signatures, and
//! only under the roots of the leaf's own trust domain. webpki builds the path; what it does not
//! look at (keyUsage, explicit cA=false, names, a root's own dates) is looked at here. Nothing of a
//! leaf but its ID and key is believed, save our own extension where one of our own issuing keys
//! signed it.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use time::OffsetDateTime;
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, VerifiedPath};

use super::certificate::Certificate;
use super::extension::SvidExtension;
use super::key::KeyKind;
use super::place::Place;
use super::svid_error::SvidError;
use super::trust::{Root, Roots, Trust, check_issuer};
use crate::model::limits::{CERTIFICATE_MAX, CHAIN_MAX};
use crate::model::{Digest, Moment, Serial, SpiffeId, TrustDomain};

/// Clocks of other organisations differ from ours by this; our own certificates are judged exactly,
/// because our authority back-dates them and nobody else's clock is involved.
const FEDERATED_SKEW: Duration = Duration::from_secs(60);

/// Signatures in chains of our own domain.
const OWN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
];

/// Signatures in chains of federated domains, whose authorities often have RSA keys.
pub(super) const FEDERATED_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// A chain that passed every rule when it was shown. Dates, roots and revocation are judged again
/// on each request.
#[derive(Debug, Clone)]
pub struct VerifiedSvid {
    pub(super) id: Arc<SpiffeId>,
    pub(super) place: Place,
    pub(super) serial: Serial,
    pub(super) certificate: Digest,
    pub(super) spki: Arc<[u8]>,
    pub(super) not_after: OffsetDateTime,
    pub(super) window: Window,
    /// SHA-256 of the SubjectPublicKeyInfo of whoever signed the leaf, and of the root.
    pub(super) issuer: Digest,
    pub(super) root: Digest,
    /// Present only when one of our own issuing keys signed the leaf.
    pub(super) extension: Option<SvidExtension>,
}

impl VerifiedSvid {
    /// Whether it is of another trust domain than ours.
    pub fn is_foreign(&self) -> bool {
        self.place == Place::Foreign
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// End of validity: the leaf's notAfter, or an issuer's if that comes first.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// The extension, when one of our own issuing keys signed the leaf.
    pub fn extension(&self) -> Option<&SvidExtension> {
        self.extension.as_ref()
    }

    /// The key as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The serial number.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// SHA-256 of the certificate.
    pub fn certificate(&self) -> Digest {
        self.certificate
    }
}

/// When a chain counts, both ends included, skew already in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) from: OffsetDateTime,
    pub(super) until: OffsetDateTime,
}

impl Window {
    fn of(leaf: &Certificate<'_>, skew: Duration) -> Self {
        let skew = time::Duration::try_from(skew).unwrap_or_default();
        Self {
            from: leaf.not_before.checked_sub(skew).unwrap_or(leaf.not_before),
            until: leaf.not_after.checked_add(skew).unwrap_or(leaf.not_after),
        }
    }

    /// # Errors
    /// On which side of the window `now` lies.
    fn check(self, now: OffsetDateTime) -> Result<(), SvidError> {
        match (now < self.from, now > self.until) {
            (true, _) => Err(SvidError::NotYet),
            (_, true) => Err(SvidError::Expired),
            _ => Ok(()),
        }
    }
}

/// Verifies a leaf with whatever was shown beside it, against the one bundle of its own domain.
///
/// # Errors
/// The first rule that the chain breaks.
pub(super) fn verify(
    trust: &Trust,
    leaf: &CertificateDer<'_>,
    beside: &[CertificateDer<'_>],
    now: Moment,
) -> Result<VerifiedSvid, SvidError> {
    check_bounds(leaf, beside)?;
    let read = Certificate::read(leaf)?;
    let (id, serial) = check_leaf(&read)?;
    let domain = id.trust_domain();
    let is_own = *domain == trust.view.trust_domain;
    let roots = trust.roots(domain).ok_or(SvidError::UnknownTrustDomain)?;
    let skew = if is_own { Duration::ZERO } else { FEDERATED_SKEW };
    let window = Window::of(&read, skew);
    window.check(now.wall())?;
    let issuers = read_issuers(beside, &id)?;
    let algorithms = if is_own { OWN_ALGORITHMS } else { FEDERATED_ALGORITHMS };
    let inside = now.wall().max(read.not_before).min(read.not_after);
    let path = climb(leaf, beside, &issuers, roots, algorithms, inside)?;
    path.check(now.wall())?;
    let is_ours = is_own && trust.view.own_issuers.contains(&path.issuer);
    let extension = match read.doorward.filter(|_| is_ours) {
        Some(der) => Some(SvidExtension::from_der(der).map_err(SvidError::Extension)?),
        None => None,
    };
    Ok(VerifiedSvid {
        place: if is_own { Place::of(&id) } else { Place::Foreign },
        id: Arc::new(id),
        serial,
        certificate: Digest::of(leaf),
        spki: read.spki.into(),
        not_after: read.not_after.min(path.until),
        window: Window { from: window.from.max(path.from), until: window.until.min(path.until) },
        issuer: path.issuer,
        root: path.root,
        extension,
    })
}

/// The trust domain that a leaf says it is of, whoever signed it.
pub(super) fn claimed_domain(leaf: &CertificateDer<'_>) -> Option<TrustDomain> {
    let (id, _) = check_leaf(&Certificate::read(leaf).ok()?).ok()?;
    Some(id.trust_domain().clone())
}

/// The bounds on what a stranger may show.
///
/// # Errors
/// Too many certificates, or one that is too large.
pub(super) fn check_bounds(
    leaf: &CertificateDer<'_>,
    beside: &[CertificateDer<'_>],
) -> Result<(), SvidError> {
    let count = beside.len().saturating_add(1);
    if count > CHAIN_MAX {
        return Err(SvidError::ChainTooLong(count));
    }
    let sizes = std::iter::once(leaf.len()).chain(beside.iter().map(|der| der.len()));
    match sizes.max().filter(|size| *size > CERTIFICATE_MAX) {
        Some(size) => Err(SvidError::CertificateTooLarge(size)),
        None => Ok(()),
    }
}

/// The rules for leaves (X509-SVID §2, §4, §5.2).
fn check_leaf(leaf: &Certificate<'_>) -> Result<(SpiffeId, Serial), SvidError> {
    let serial = leaf.serial.clone().ok_or(SvidError::SerialNumber)?;
    if leaf.unknown_critical || leaf.name_constraints {
        return Err(SvidError::UnknownCriticalExtension);
    }
    let names = leaf.alt_names.filter(|names| names.uris > 0).ok_or(SvidError::NoUri)?;
    if names.uris > 1 {
        return Err(SvidError::SeveralUris(names.uris));
    }
    if leaf.is_nameless() && !names.critical {
        return Err(SvidError::NamesNotCritical);
    }
    match leaf.constraints {
        None => return Err(SvidError::BasicConstraintsAbsent),
        Some(constraints) if constraints.authority => return Err(SvidError::LeafIsAuthority),
        Some(_) => {}
    }
    check_usage(leaf)?;
    if KeyKind::of(leaf.spki).is_none() {
        return Err(SvidError::KeyKind);
    }
    let text = std::str::from_utf8(names.uri).unwrap_or("");
    let id = SpiffeId::parse(text).map_err(SvidError::SpiffeId)?;
    if id.path().is_empty() {
        return Err(SvidError::NoPath);
    }
    Ok((id, serial))
}

fn check_usage(leaf: &Certificate<'_>) -> Result<(), SvidError> {
    let usage = leaf.key_usage.ok_or(SvidError::KeyUsageAbsent)?;
    if usage.cert_sign {
        return Err(SvidError::LeafSignsCertificates);
    }
    if usage.crl_sign {
        return Err(SvidError::LeafSignsRevocations);
    }
    if !usage.digital_signature {
        return Err(SvidError::NoDigitalSignature);
    }
    if !usage.critical {
        return Err(SvidError::KeyUsageNotCritical);
    }
    match leaf.purposes {
        Some(purposes) if !purposes.server || !purposes.client => Err(SvidError::ExtendedKeyUsage),
        _ => Ok(()),
    }
}

/// Whatever stands beside the leaf must be a signing certificate of its domain, used or not.
fn read_issuers<'c>(
    beside: &'c [CertificateDer<'_>],
    id: &SpiffeId,
) -> Result<Vec<Certificate<'c>>, SvidError> {
    let read = |der: &'c CertificateDer<'_>| {
        let issuer = Certificate::read(der)?;
        check_issuer(&issuer, id.trust_domain())?;
        Ok(issuer)
    };
    beside.iter().map(read).collect()
}

/// Who stands behind a leaf, and while all of them are valid.
struct Path {
    issuer: Digest,
    root: Digest,
    from: OffsetDateTime,
    until: OffsetDateTime,
}

impl Path {
    /// The issuers' dates are judged at the true time; only a leaf's are granted a skew.
    fn check(&self, now: OffsetDateTime) -> Result<(), SvidError> {
        match (now < self.from, now > self.until) {
            (true, _) => Err(SvidError::IssuerNotYet),
            (_, true) => Err(SvidError::IssuerExpired),
            _ => Ok(()),
        }
    }
}

/// Builds the path from leaf to root and checks every signature on it. `inside` is the moment of
/// judging, moved into the leaf's own dates if a skew was granted.
fn climb(
    leaf: &CertificateDer<'_>,
    beside: &[CertificateDer<'_>],
    issuers: &[Certificate<'_>],
    roots: &Roots,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    inside: OffsetDateTime,
) -> Result<Path, SvidError> {
    let seconds = u64::try_from(inside.unix_timestamp()).map_err(|_| SvidError::NotYet)?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let leaf = EndEntityCert::try_from(leaf).map_err(path_error)?;
    let is_rooted = |path: &VerifiedPath<'_>| live_root(roots, path, inside).map(|_| ());
    let path = leaf
        .verify_for_usage(
            algorithms,
            roots.anchors(),
            beside,
            at,
            webpki::KeyUsage::client_auth(),
            None,
            Some(&is_rooted),
        )
        .map_err(path_error)?;
    let root = live_root(roots, &path, inside).map_err(path_error)?;
    let mut found = Path {
        issuer: Digest::of(path.issuer_spki().as_ref()),
        root: root.key,
        from: root.not_before,
        until: root.not_after,
    };
    for step in path.intermediate_certificates() {
        let same = |(der, _): &(&CertificateDer<'_>, &Certificate<'_>)| **der == step.der();
        let (_, issuer) = beside.iter().zip(issuers).find(same).ok_or(SvidError::Path)?;
        found.from = found.from.max(issuer.not_before);
        found.until = found.until.min(issuer.not_after);
    }
    Ok(found)
}

/// The root behind a path, judged as RFC 5280 judges any issuer; webpki leaves anchors unjudged. Of
/// several certificates of one root key, the one that lasts longest counts.
fn live_root<'r>(
    roots: &'r Roots,
    path: &VerifiedPath<'_>,
    at: OffsetDateTime,
) -> Result<&'r Root, webpki::Error> {
    let depth = path.intermediate_certificates().count();
    let mut found: Result<&Root, _> = Err(webpki::Error::UnknownIssuer);
    for root in roots.behind(path.anchor()) {
        let judged = judge_root(root, depth, at);
        found = match (found, judged) {
            (Ok(one), Ok(other)) if one.not_after >= other.not_after => Ok(one),
            (Ok(one), Err(_)) => Ok(one),
            (_, other) => other,
        };
    }
    found
}

fn judge_root(root: &Root, depth: usize, at: OffsetDateTime) -> Result<&Root, webpki::Error> {
    let instant = |at: OffsetDateTime| {
        let seconds = u64::try_from(at.unix_timestamp()).unwrap_or(0);
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    };
    if at < root.not_before {
        let (time, not_before) = (instant(at), instant(root.not_before));
        return Err(webpki::Error::CertNotValidYet { time, not_before });
    }
    if at > root.not_after {
        let (time, not_after) = (instant(at), instant(root.not_after));
        return Err(webpki::Error::CertExpired { time, not_after });
    }
    if root.path_length.is_some_and(|most| depth > usize::from(most)) {
        return Err(webpki::Error::PathLenConstraintViolated);
    }
    Ok(root)
}

/// webpki's answer as a rule of ours. The leaf's dates and uses were judged before it was asked, so
/// dates and uses are an issuer's here.
fn path_error(error: webpki::Error) -> SvidError {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer => SvidError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => SvidError::Signature,
        E::CertExpired { .. } => SvidError::IssuerExpired,
        E::CertNotValidYet { .. } => SvidError::IssuerNotYet,
        E::EndEntityUsedAsCa => SvidError::IssuerNotAuthority,
        E::CaUsedAsEndEntity => SvidError::LeafIsAuthority,
        E::PathLenConstraintViolated => SvidError::PathLength,
        E::NameConstraintViolation => SvidError::NameConstraints,
        E::UnsupportedCriticalExtension => SvidError::UnknownCriticalExtension,
        E::UnsupportedCertVersion => SvidError::Version,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => SvidError::IssuerPurpose,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => SvidError::Algorithm,
        E::BadDer | E::BadDerTime | E::TrailingData(_) => SvidError::Malformed,
        _ => SvidError::Path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::vectors::{self, Vector, World};

    fn moment(at: OffsetDateTime) -> Moment {
        Moment::new(at, Duration::from_secs(1))
    }

    fn answer(trust: &Trust, vector: &Vector) -> Result<VerifiedSvid, SvidError> {
        let (leaf, beside) = vector.chain.split_first().unwrap();
        verify(trust, leaf, beside, moment(vector.at))
    }

    #[test]
    fn every_vector_gets_its_answer() {
        let world = World::new();
        let trust = Trust::new(world.view());
        let vectors = vectors::all(&world);
        let refused = vectors.iter().filter(|vector| vector.want.is_err()).count();
        assert!(refused >= 45, "only {refused} bad chains");
        let wrong: Vec<String> = vectors
            .iter()
            .map(|vector| (vector, answer(&trust, vector).map(|_| ())))
            .filter(|(vector, found)| *found != vector.want)
            .map(|(vector, found)| format!("{}: {found:?}, not {:?}", vector.name, vector.want))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
