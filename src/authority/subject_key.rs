//! The one thing that is taken from an asker: a public key, as SubjectPublicKeyInfo (DER).
//!
//! DER has one form per key, so the outer bytes are compared with the three allowed forms instead
//! of being parsed: there is no length, tag or parameter to get wrong. P-256, P-384 and Ed25519
//! only; the point must lie on its curve.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rcgen::{PublicKeyData, SignatureAlgorithm};

use crate::model::Digest;

/// `SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING …` (RFC 5480 §2).
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The same with secp384r1.
const P384: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];
/// `SEQUENCE { SEQUENCE { id-Ed25519 }, BIT STRING …` (RFC 8410 §4).
const ED: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// y coordinates of the Ed25519 points of order 1, 2, 4 and 8, little endian, sign bit cleared:
/// under such a key anybody can make signatures.
const SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    [
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0,
    ],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0x7f,
    ],
];

/// Why a key gets no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubjectKeyError {
    /// Another algorithm, or another encoding than DER's one.
    #[error("the public key must be P-256, P-384 or Ed25519, as a DER SubjectPublicKeyInfo")]
    Form,
    /// Not a point of the curve.
    #[error("the public key is no point of its curve")]
    Point,
    /// A point under which anybody can sign.
    #[error("the public key is a weak one")]
    Weak,
}

/// A public key that may stand in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectKey {
    algorithm: &'static SignatureAlgorithm,
    point: Box<[u8]>,
    digest: Digest,
}

impl SubjectKey {
    /// Takes a SubjectPublicKeyInfo (DER). Total; allocates at most 97 bytes.
    ///
    /// # Errors
    /// The rule that the key breaks.
    pub fn parse(spki: &[u8]) -> Result<Self, SubjectKeyError> {
        let (algorithm, point) = if let Some(point) = tail(spki, P256, 65) {
            check_uncompressed(point)?;
            on_curve(&ECDSA_P256_SHA256_ASN1, point)?;
            (&PKCS_ECDSA_P256_SHA256, point)
        } else if let Some(point) = tail(spki, P384, 97) {
            check_uncompressed(point)?;
            on_curve(&ECDSA_P384_SHA384_ASN1, point)?;
            (&PKCS_ECDSA_P384_SHA384, point)
        } else if let Some(point) = tail(spki, ED, 32) {
            check_edwards(point)?;
            on_curve(&ED25519, point)?;
            (&PKCS_ED25519, point)
        } else {
            return Err(SubjectKeyError::Form);
        };
        Ok(Self { algorithm, point: point.into(), digest: Digest::of(spki) })
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

fn tail<'a>(spki: &'a [u8], head: &[u8], length: usize) -> Option<&'a [u8]> {
    spki.strip_prefix(head).filter(|point| point.len() == length)
}

fn on_curve(
    algorithm: &'static dyn VerificationAlgorithm,
    point: &[u8],
) -> Result<(), SubjectKeyError> {
    ParsedPublicKey::new(algorithm, point).map(drop).map_err(|_| SubjectKeyError::Point)
}

/// The library also takes the hybrid forms 6 and 7, which would give one key two encodings.
fn check_uncompressed(point: &[u8]) -> Result<(), SubjectKeyError> {
    if point.first() == Some(&4) { Ok(()) } else { Err(SubjectKeyError::Form) }
}

/// Refuses encodings of y ≥ 2^255 - 19 (one point would have two keys) and points of small order.
fn check_edwards(point: &[u8]) -> Result<(), SubjectKeyError> {
    let mut y: [u8; 32] = point.try_into().map_err(|_| SubjectKeyError::Form)?;
    let [first, middle @ .., last] = &mut y;
    *last &= 0x7f;
    if *last == 0x7f && middle.iter().all(|byte| *byte == 0xff) && *first >= 0xed {
        return Err(SubjectKeyError::Weak);
    }
    if SMALL_ORDER.contains(&y) { Err(SubjectKeyError::Weak) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spki(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        rcgen::KeyPair::generate_for(algorithm).unwrap().subject_public_key_info()
    }

    #[test]
    fn the_three_kinds_are_taken_and_written_back_bit_for_bit() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let der = spki(algorithm);
            let key = SubjectKey::parse(&der).unwrap();
            assert_eq!(key.subject_public_key_info(), der);
            assert_eq!(key.digest(), Digest::of(&der));
        }
    }

    #[test]
    fn every_other_kind_and_form_is_refused() {
        let good = spki(&PKCS_ECDSA_P256_SHA256);
        assert!(SubjectKey::parse(&good).is_ok());
        for (what, der) in [
            ("P-521", spki(&rcgen::PKCS_ECDSA_P521_SHA512)),
            ("RSA", spki(&rcgen::PKCS_RSA_SHA256)),
            ("nothing", Vec::new()),
            ("cut", good[..good.len() - 1].to_vec()),
            ("trailing byte", [good.as_slice(), &[0]].concat()),
            ("curve of another length", [P384, &good[P256.len()..]].concat()),
            ("a certificate request", vec![0x30; 400]),
        ] {
            assert_eq!(SubjectKey::parse(&der).unwrap_err(), SubjectKeyError::Form, "{what}");
        }
    }

    #[test]
    fn points_off_the_curve_and_hybrid_forms_are_refused() {
        let good = spki(&PKCS_ECDSA_P256_SHA256);
        let mut off = good.clone();
        *off.last_mut().unwrap() ^= 1;
        assert_eq!(SubjectKey::parse(&off).unwrap_err(), SubjectKeyError::Point);
        let mut hybrid = good.clone();
        hybrid[P256.len()] = 6 | (good.last().unwrap() & 1);
        assert_eq!(SubjectKey::parse(&hybrid).unwrap_err(), SubjectKeyError::Form);
        let infinity = [P256, &[0; 65]].concat();
        assert_eq!(SubjectKey::parse(&infinity).unwrap_err(), SubjectKeyError::Form);
        let zero = [P256, &[4], &[0; 64]].concat();
        assert_eq!(SubjectKey::parse(&zero).unwrap_err(), SubjectKeyError::Point);
    }

    #[test]
    fn weak_edwards_points_are_refused_with_either_sign() {
        for y in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut y = y;
                y[31] |= sign;
                let error = SubjectKey::parse(&[ED, &y].concat()).unwrap_err();
                assert_eq!(error, SubjectKeyError::Weak, "{y:02x?}");
            }
        }
        for first in 0xed..=0xff {
            let mut y = [0xff; 32];
            (y[0], y[31]) = (first, 0x7f);
            assert_eq!(SubjectKey::parse(&[ED, &y].concat()), Err(SubjectKeyError::Weak));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SubjectKey::parse(&bytes);
            for head in [P256, P384, ED] {
                let _ = SubjectKey::parse(&[head, bytes.as_slice()].concat());
            }
        }

        #[test]
        fn one_flipped_bit_of_the_frame_is_refused(at in 0usize..(26 * 8)) {
            let mut der = spki(&PKCS_ECDSA_P256_SHA256);
            der[at / 8] ^= 1 << (at % 8);
            prop_assert!(SubjectKey::parse(&der).is_err());
        }
    }
}
