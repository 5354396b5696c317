//! A private key that is not here: a TPM holds it, and only a description of it lies in `key.pem`.
//!
//! The description has the form of PKCS #8 (RFC 5958) with an algorithm of our own, so that it goes
//! wherever a key goes and every other program says that it does not know it. Whoever speaks with
//! the TPM registers once how such keys are taken up; without that, as in a command that only looks
//! at a directory, nothing can be signed with it.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::SigningKey;

/// 2.25.1597143277.2: beside the extension of our SVIDs.
const ALGORITHM: &[u8] = &[0x06, 0x07, 0x69, 0x85, 0xf9, 0xc9, 0xf1, 0x6d, 0x02];
/// A description is short: two lengths in one or two bytes each.
const DESCRIPTION_MAX: usize = 4096;

/// What is known of a key that is held elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    /// The public key, as SubjectPublicKeyInfo (DER).
    pub spki: Vec<u8>,
    /// Where it is and how it is found there, for whoever takes it up.
    pub whereabouts: Vec<u8>,
}

/// Takes up a key for signing.
pub type Holder = fn(&HeldKey) -> Option<Arc<dyn SigningKey>>;

static HOLDER: OnceLock<Holder> = OnceLock::new();

/// Says how keys that are held elsewhere are taken up in this process. The first one counts.
pub fn take_up_held_keys(by: Holder) {
    let _ = HOLDER.set(by);
}

impl HeldKey {
    /// The description in a private key's place; `None` when it would be too long.
    pub fn der(&self) -> Option<PrivateKeyDer<'static>> {
        let length = u16::try_from(self.spki.len()).ok()?;
        let inner = [&length.to_be_bytes()[..], &self.spki, &self.whereabouts].concat();
        if inner.len() > DESCRIPTION_MAX {
            return None;
        }
        let algorithm = element(0x30, ALGORITHM)?;
        let parts = [element(0x02, &[0])?, algorithm, element(0x04, &inner)?].concat();
        Some(PrivateKeyDer::Pkcs8(element(0x30, &parts)?.into()))
    }

    /// What a private key describes; `None` for every key that is one.
    pub fn of(key: &PrivateKeyDer<'_>) -> Option<Self> {
        let PrivateKeyDer::Pkcs8(der) = key else { return None };
        let parts = content(0x30, der.secret_pkcs8_der()).filter(|(_, rest)| rest.is_empty())?.0;
        let (version, rest) = content(0x02, parts)?;
        let (algorithm, rest) = content(0x30, rest)?;
        let (inner, rest) = content(0x04, rest)?;
        if version != [0] || algorithm != ALGORITHM || !rest.is_empty() {
            return None;
        }
        let (length, inner) = inner.split_at_checked(2)?;
        let length = u16::from_be_bytes(length.try_into().ok()?);
        let (spki, whereabouts) = inner.split_at_checked(length.into())?;
        Some(Self { spki: spki.to_vec(), whereabouts: whereabouts.to_vec() })
    }
}

/// The signer of a private key, wherever it is.
///
/// # Errors
/// When it is of no kind that is used, or can't be taken up.
pub(super) fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    let Some(held) = HeldKey::of(key) else { return any_supported_type(key) };
    let taken = HOLDER.get().and_then(|holder| holder(&held));
    taken.ok_or_else(|| rustls::Error::General("the tpm that holds this key is not there".into()))
}

/// The public half of a private key, wherever it is.
pub(super) fn public_key(key: &PrivateKeyDer<'_>) -> Option<Vec<u8>> {
    match HeldKey::of(key) {
        Some(held) => Some(held.spki),
        None => any_supported_type(key).ok()?.public_key().map(|key| key.to_vec()),
    }
}

/// One element of DER.
fn element(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(content.len()).ok()?;
    let [high, low] = length.to_be_bytes();
    let head = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    Some([head.as_slice(), content].concat())
}

/// The content of an element that [`element`] wrote, and what follows it.
fn content(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match der {
        [found, 0x82, high, low, rest @ ..] if *found == tag => {
            (u16::from_be_bytes([*high, *low]), rest)
        }
        [found, 0x81, low, rest @ ..] if *found == tag => (u16::from(*low), rest),
        [found, low @ 0..=0x7f, rest @ ..] if *found == tag => (u16::from(*low), rest),
        _ => return None,
    };
    rest.split_at_checked(length.into())
}

impl fmt::Display for HeldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is held elsewhere")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_goes_where_a_key_goes_and_is_none() {
        for length in [0, 20, 200, 4000] {
            let held = HeldKey { spki: vec![3; 91], whereabouts: vec![7; length] };
            let der = held.der().unwrap();
            assert_eq!(HeldKey::of(&der), Some(held.clone()));
            assert!(any_supported_type(&der).is_err(), "no other program takes it for a key");
            assert!(signing_key(&der).is_err(), "nobody holds it here");
            assert_eq!(public_key(&der), Some(held.spki));
        }
        assert!(HeldKey { spki: vec![3; 91], whereabouts: vec![0; 5000] }.der().is_none());
        let real = rcgen::KeyPair::generate().unwrap();
        let real = PrivateKeyDer::Pkcs8(real.serialize_der().into());
        assert!(HeldKey::of(&real).is_none() && signing_key(&real).is_ok());
        let der = HeldKey { spki: vec![3; 91], whereabouts: vec![] }.der().unwrap();
        for end in 0..der.secret_der().len() {
            let cut = PrivateKeyDer::Pkcs8(der.secret_der()[..end].to_vec().into());
            assert!(HeldKey::of(&cut).is_none());
        }
        let (arc, id): (_, &[u8]) = (&ALGORITHM[..3], &ALGORITHM[3..8]);
        assert_eq!(arc, [6, 7, 2 * 40 + 25], "an object identifier below 2.25");
        let number = id.iter().fold(0_u64, |number, byte| number << 7 | u64::from(byte & 0x7f));
        assert_eq!((number, ALGORITHM[8]), (crate::identity::EXTENSION_OID[2], 2));
    }
}
