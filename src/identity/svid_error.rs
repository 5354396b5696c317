//! Why a chain is refused: one variant for each rule, so that a test, a counter and an operator can
//! tell every refusal from every other.

use super::extension::ExtensionError;
use crate::model::SpiffeIdError;
use crate::model::limits::{CERTIFICATE_MAX, CHAIN_MAX};

/// Why a chain is not one that we accept. Sources: X509-SVID §2–§5, RFC 5280 §4 and §6, and the
/// bounds of `model::limits`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    // The chain as a whole.
    /// Nothing was shown.
    #[error("no certificate was shown")]
    NoCertificate,
    /// More certificates than a chain may have.
    #[error("the chain has {0} certificates; at most {CHAIN_MAX} are looked at")]
    ChainTooLong(usize),
    /// One certificate is too large.
    #[error("a certificate of the chain has {0} bytes; at most {CERTIFICATE_MAX} are looked at")]
    CertificateTooLarge(usize),

    // The form of any certificate of the chain.
    /// Not a certificate in DER.
    #[error("a certificate of the chain is not well-formed DER")]
    Malformed,
    /// Not an X.509 v3 certificate.
    #[error("a certificate of the chain is not of version 3")]
    Version,
    /// The same extension stands twice.
    #[error("an extension stands twice in a certificate of the chain")]
    DuplicateExtension,
    /// One of the extensions that the rules speak of can't be read.
    #[error("the extension {0} of a certificate of the chain can't be read")]
    MalformedExtension(&'static str),
    /// A critical extension that is not processed here.
    #[error("a certificate of the chain has a critical extension that is not known here")]
    UnknownCriticalExtension,

    // The leaf.
    /// Zero, negative, wrongly encoded or over 20 bytes.
    #[error("the leaf's serial number is not a positive integer of at most 20 bytes")]
    SerialNumber,
    /// No URI among the alternative names.
    #[error("the leaf has no URI name, so it names no SPIFFE ID")]
    NoUri,
    /// More than one URI.
    #[error("the leaf has {0} URI names; an SVID has exactly one")]
    SeveralUris(usize),
    /// The URI is not a canonical SPIFFE ID.
    #[error("the leaf's URI name is not a SPIFFE ID in canonical form")]
    SpiffeId(#[source] SpiffeIdError),
    /// The ID of a trust domain itself.
    #[error("the leaf's SPIFFE ID has no path; only signing authorities have such an ID")]
    NoPath,
    /// The subject is empty and the names are not critical.
    #[error("the leaf has an empty subject, and its alternative names are not critical")]
    NamesNotCritical,
    /// basicConstraints is missing.
    #[error("the leaf has no basicConstraints; an SVID says cA=false itself")]
    BasicConstraintsAbsent,
    /// A signing certificate was shown as a leaf.
    #[error("the leaf is a signing certificate (cA=true)")]
    LeafIsAuthority,
    /// keyUsage is missing.
    #[error("the leaf has no keyUsage")]
    KeyUsageAbsent,
    /// keyUsage is not critical.
    #[error("the leaf's keyUsage is not critical")]
    KeyUsageNotCritical,
    /// The key may not sign handshakes.
    #[error("the leaf's keyUsage lacks digitalSignature")]
    NoDigitalSignature,
    /// The key may sign certificates.
    #[error("the leaf's keyUsage holds keyCertSign")]
    LeafSignsCertificates,
    /// The key may sign revocation lists.
    #[error("the leaf's keyUsage holds cRLSign")]
    LeafSignsRevocations,
    /// Not for both ends of a connection.
    #[error("the leaf's extendedKeyUsage lacks serverAuth or clientAuth")]
    ExtendedKeyUsage,
    /// A key that is not on the allow-list.
    #[error("the leaf's key is none of P-256, P-384 and Ed25519")]
    KeyKind,
    /// Past its notAfter.
    #[error("the certificate has expired")]
    Expired,
    /// Before its notBefore.
    #[error("the certificate is not valid yet")]
    NotYet,

    // Whoever signed it.
    /// No bundle for the leaf's trust domain.
    #[error("the leaf's trust domain is not known here; federate with it first")]
    UnknownTrustDomain,
    /// An issuing certificate that is none.
    #[error("an issuing certificate of the chain does not say cA=true")]
    IssuerNotAuthority,
    /// Likewise, by its keyUsage.
    #[error("an issuing certificate of the chain lacks keyCertSign")]
    IssuerSignsNoCertificates,
    /// An authority's ID must be that of its trust domain.
    #[error("an issuing certificate of the chain has an URI name that is not its domain's ID")]
    IssuerName,
    /// An authority of another trust domain.
    #[error("an issuing certificate of the chain belongs to another trust domain")]
    IssuerDomain,
    /// Name constraints are not supported (a documented limit).
    #[error("name constraints in issuing certificates are not supported")]
    NameConstraints,
    /// An issuing certificate for other purposes.
    #[error("an issuing certificate of the chain is not for both serverAuth and clientAuth")]
    IssuerPurpose,
    /// An issuer has ended.
    #[error("an issuing certificate has expired")]
    IssuerExpired,
    /// An issuer has not begun.
    #[error("an issuing certificate is not valid yet")]
    IssuerNotYet,
    /// No path to a root of the leaf's own trust domain.
    #[error("no root of the leaf's trust domain stands behind the chain")]
    UnknownIssuer,
    /// A signature does not fit.
    #[error("a signature in the chain does not verify")]
    Signature,
    /// A signature of a kind that is not allowed.
    #[error("a signature in the chain is of an algorithm that is not allowed")]
    Algorithm,
    /// More intermediates than an issuer allows.
    #[error("the chain is longer than pathLenConstraint allows")]
    PathLength,
    /// Any other fault that RFC 5280 names.
    #[error("the chain is not a valid path of certificates")]
    Path,
    /// Signed by us, but with contents that we do not write.
    #[error("the certificate was issued here, but its device can't be read")]
    Extension(#[source] ExtensionError),

    // What a particular verifier demands on top.
    /// A server that is somebody else.
    #[error("the server's SPIFFE ID is not the one that was expected")]
    OtherServer,
    /// A server whose identity, device or certificate was revoked here.
    #[error("the server's identity was revoked")]
    Ended,
    /// The root of the token is not among the certificates.
    #[error("none of the certificates shown is the root that the token names")]
    RootDigest,
    /// An applicant shows one certificate.
    #[error("an applicant shows one self-signed certificate and no chain")]
    ApplicantChain,
    /// An applicant's certificate was signed by somebody else, or badly.
    #[error("the applicant's certificate is not signed with its own key")]
    NotSelfSigned,
}
