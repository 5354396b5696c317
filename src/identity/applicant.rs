//! The certificate of an applicant: a wrapping for one key, nothing more.
//!
//! It must be signed with the very key that it carries; its names and dates are looked at nowhere.
//! That the other end holds the key is proven by the handshake, never by this certificate.

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use webpki::EndEntityCert;
use webpki::aws_lc_rs as algorithms;

use super::certificate::Certificate;
use super::der::{self, Reader};
use super::key::KeyKind;
use super::svid_error::SvidError;
use super::verify::check_bounds;

/// The key of a self-signed certificate that stands alone, as SubjectPublicKeyInfo (DER).
///
/// # Errors
/// When there is more or less than one certificate, or it is not of an allowed form.
pub(super) fn key_of<'c>(chain: &'c [CertificateDer<'_>]) -> Result<&'c [u8], SvidError> {
    let (leaf, beside) = chain.split_first().ok_or(SvidError::NoCertificate)?;
    check_bounds(leaf, beside)?;
    if !beside.is_empty() {
        return Err(SvidError::ApplicantChain);
    }
    let read = Certificate::read(leaf)?;
    let kind = KeyKind::of(read.spki).ok_or(SvidError::KeyKind)?;
    if read.unknown_critical || read.name_constraints {
        return Err(SvidError::UnknownCriticalExtension);
    }
    if read.issuer != read.subject {
        return Err(SvidError::NotSelfSigned);
    }
    let (signed, signature) = signed_parts(leaf).ok_or(SvidError::Malformed)?;
    EndEntityCert::try_from(leaf)
        .map_err(|_| SvidError::Malformed)?
        .verify_signature(algorithm(kind), signed, signature)
        .map_err(|_| SvidError::NotSelfSigned)?;
    Ok(read.spki)
}

/// TBSCertificate as it was signed, and the signature (RFC 5280 §4.1).
fn signed_parts<'c>(certificate: &'c CertificateDer<'_>) -> Option<(&'c [u8], &'c [u8])> {
    let mut parts = Reader::new(der::sole(der::SEQUENCE, certificate.as_ref())?);
    let signed = parts.raw()?;
    parts.expect(der::SEQUENCE)?;
    match parts.expect(der::BIT_STRING)? {
        [0, signature @ ..] if parts.is_empty() => Some((signed, signature)),
        _ => None,
    }
}

/// One algorithm for each kind of key, the one that everybody uses with it.
fn algorithm(kind: KeyKind) -> &'static dyn SignatureVerificationAlgorithm {
    match kind {
        KeyKind::P256 => algorithms::ECDSA_P256_SHA256,
        KeyKind::P384 => algorithms::ECDSA_P384_SHA384,
        KeyKind::Ed25519 => algorithms::ED25519,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::vectors::{Authority, Draft, NOW, WORKLOAD, key};
    use crate::model::limits;
    use rcgen::{KeyPair, PublicKeyData};

    fn shown(draft: &Draft, key: &KeyPair) -> Vec<CertificateDer<'static>> {
        vec![draft.self_signed(key)]
    }

    #[test]
    fn a_self_signed_key_is_taken_whatever_stands_around_it() {
        let bare = {
            let mut params = rcgen::CertificateParams::default();
            params.not_after = NOW - time::Duration::days(3650);
            params
        };
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let spki = key.subject_public_key_info();
            assert_eq!(key_of(&shown(&Draft::leaf(WORKLOAD), &key)), Ok(spki.as_slice()));
            let certificate: CertificateDer<'static> = bare.self_signed(&key).unwrap().into();
            assert_eq!(key_of(&[certificate]), Ok(spki.as_slice()), "long ended, no extension");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let (key, draft) = (key(), Draft::leaf(WORKLOAD));
        let good = shown(&draft, &key);
        assert!(key_of(&good).is_ok(), "control");
        assert_eq!(key_of(&[]), Err(SvidError::NoCertificate));
        assert_eq!(key_of(&vec![good[0].clone(); 2]), Err(SvidError::ApplicantChain));
        assert_eq!(key_of(&vec![good[0].clone(); 5]), Err(SvidError::ChainTooLong(5)));
        for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            assert_eq!(key_of(&shown(&draft, &key)), Err(SvidError::KeyKind), "{algorithm:?}");
        }
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        let same_name = Authority::root(&draft, p256);
        let signed = draft.signed_by(&same_name, &key);
        assert_eq!(key_of(&[signed]), Err(SvidError::NotSelfSigned), "another key, same name");
        let other_name = Authority::root(&Draft::authority("a", "corp.example"), p256);
        let signed = draft.signed_by(&other_name, &key);
        assert_eq!(key_of(&[signed]), Err(SvidError::NotSelfSigned), "another name");
        let mut critical = draft.clone();
        critical.more.push((vec![1, 2, 3, 4], true, vec![5, 0]));
        let unknown = shown(&critical, &key);
        assert_eq!(key_of(&unknown), Err(SvidError::UnknownCriticalExtension));
        let mut large = draft;
        large.more.push((vec![1, 2, 3, 4], false, vec![0; limits::CERTIFICATE_MAX]));
        let large = shown(&large, &key);
        let size = large[0].len();
        assert_eq!(key_of(&large), Err(SvidError::CertificateTooLarge(size)));
        for at in [8, good[0].len() - 1] {
            let mut broken = good[0].to_vec();
            broken[at] ^= 1;
            assert!(key_of(&[broken.into()]).is_err(), "a flipped bit at {at}");
        }
    }
}
