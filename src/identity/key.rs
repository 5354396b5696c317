//! The keys that an identity may have. Each has exactly one DER form, so the form itself is
//! compared: no parameters to read, no second encoding to get wrong.

/// A kind of key that may stand in a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

/// SubjectPublicKeyInfo up to the point's first byte, 0x04: uncompressed (RFC 5480).
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// Likewise.
const P384: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04,
];
/// SubjectPublicKeyInfo up to the key (RFC 8410).
const ED25519: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl KeyKind {
    /// The kind of a SubjectPublicKeyInfo (DER); `None` for any key that is not allowed.
    ///
    /// Whether a point lies on its curve is not looked at: no signature verifies with one that
    /// does not.
    pub fn of(spki: &[u8]) -> Option<Self> {
        [(Self::P256, P256, 64), (Self::P384, P384, 96), (Self::Ed25519, ED25519, 32)]
            .into_iter()
            .find(|(_, prefix, rest)| {
                spki.strip_prefix(*prefix).is_some_and(|key| key.len() == *rest)
            })
            .map(|(kind, _, _)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PublicKeyData};

    fn spki(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        KeyPair::generate_for(algorithm).unwrap().subject_public_key_info()
    }

    #[test]
    fn allowed_keys_are_known_and_others_are_not() {
        assert_eq!(KeyKind::of(&spki(&rcgen::PKCS_ECDSA_P256_SHA256)), Some(KeyKind::P256));
        assert_eq!(KeyKind::of(&spki(&rcgen::PKCS_ECDSA_P384_SHA384)), Some(KeyKind::P384));
        assert_eq!(KeyKind::of(&spki(&rcgen::PKCS_ED25519)), Some(KeyKind::Ed25519));
        assert_eq!(KeyKind::of(&spki(&rcgen::PKCS_ECDSA_P521_SHA512)), None);
        assert_eq!(KeyKind::of(&spki(&rcgen::PKCS_RSA_SHA256)), None);
    }

    #[test]
    fn a_key_of_another_length_or_form_is_none() {
        let good = spki(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(KeyKind::of(&good), Some(KeyKind::P256), "control");
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(KeyKind::of(&longer), None);
        assert_eq!(KeyKind::of(good.get(..90).unwrap()), None);
        let mut compressed = good;
        compressed[26] = 0x02;
        assert_eq!(KeyKind::of(&compressed), None);
        assert_eq!(KeyKind::of(&[]), None);
    }
}
