//! One version's value under its own data key, and that key under the namespace's.
//!
//! Both are bound to immutable ids: namespace, secret, version, and the key's epoch. A rename moves
//! nothing, and nothing that was sealed in one place opens in another.

use uuid::Uuid;

use super::wrap::{self, WrapError, WrappingKey, tuple};
use crate::model::{Digest, SecretValue, WipedBytes};

const MAGIC: &[u8] = b"doorward";
const FORMAT: &[u8] = &[1];
const LABEL: &str = "dek";

/// Where a version belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: Uuid,
    pub(super) secret: Uuid,
    pub(super) version: u64,
    /// The epoch of the namespace key.
    pub(super) epoch: u32,
}

impl Place {
    fn of_value(&self) -> Vec<u8> {
        tuple(&[
            MAGIC,
            FORMAT,
            self.namespace.as_bytes(),
            self.secret.as_bytes(),
            &self.version.to_be_bytes(),
        ])
    }

    /// Rewrapping under another epoch changes this, and never the value's place.
    fn of_key(&self) -> Vec<u8> {
        tuple(&[&self.of_value(), &self.epoch.to_be_bytes(), b"dek"])
    }
}

/// A sealed version.
pub(super) struct Envelope {
    /// The wrapped data key.
    pub(super) dek: Vec<u8>,
    /// The ciphertext.
    pub(super) sealed: Vec<u8>,
    /// SHA-256 of the ciphertext.
    pub(super) digest: Digest,
}

/// Seals a value under a fresh data key.
pub(super) fn seal(key: &WrappingKey, place: Place, plain: &[u8]) -> Envelope {
    let (dek, sealed) = wrap::seal_under_fresh_key(&place.of_value(), plain);
    let dek = key.seal(LABEL, &place.of_key(), dek.as_slice());
    Envelope { dek, digest: Digest::of(&sealed), sealed }
}

/// Opens a version; the ciphertext's buffer becomes the value's.
///
/// # Errors
/// When key, place or bytes are not those of the sealing.
pub(super) fn open(
    key: &WrappingKey,
    place: Place,
    dek: &[u8],
    sealed: Vec<u8>,
) -> Result<SecretValue, WrapError> {
    let dek: WipedBytes = key.open(LABEL, &place.of_key(), dek)?;
    wrap::open_under(&dek, &place.of_value(), sealed).map(SecretValue::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place =
        Place { namespace: Uuid::from_u128(1), secret: Uuid::from_u128(2), version: 3, epoch: 4 };

    #[test]
    fn a_value_opens_in_its_place_only() {
        let key = WrappingKey::new(&[1; 32]);
        let it = seal(&key, HERE, b"value");
        let open_at = |key, place| open(key, place, &it.dek, it.sealed.clone());
        assert_eq!(open_at(&key, HERE).unwrap().expose(), b"value");
        assert_eq!(it.digest, Digest::of(&it.sealed));
        for elsewhere in [
            Place { namespace: Uuid::from_u128(9), ..HERE },
            Place { secret: Uuid::from_u128(9), ..HERE },
            Place { version: 9, ..HERE },
            Place { epoch: 9, ..HERE },
        ] {
            assert!(open_at(&key, elsewhere).is_err(), "{elsewhere:?}");
        }
        assert!(open_at(&WrappingKey::new(&[2; 32]), HERE).is_err());
    }

    #[test]
    fn parts_of_two_envelopes_never_open_together() {
        let key = WrappingKey::new(&[1; 32]);
        let there = Place { version: 4, ..HERE };
        let (a, b) = (seal(&key, HERE, b"first"), seal(&key, there, b"other"));
        assert!(open(&key, HERE, &a.dek, a.sealed.clone()).is_ok());
        for place in [HERE, there] {
            assert!(open(&key, place, &a.dek, b.sealed.clone()).is_err());
            assert!(open(&key, place, &b.dek, a.sealed.clone()).is_err());
        }
        assert!(open(&key, HERE, &b.dek, b.sealed).is_err(), "another version's, moved here");
    }

    #[test]
    fn the_same_value_twice_shares_nothing() {
        let key = WrappingKey::new(&[1; 32]);
        let (a, b) = (seal(&key, HERE, b"value"), seal(&key, HERE, b"value"));
        assert_ne!(a.sealed, b.sealed);
        assert_ne!(a.digest, b.digest);
    }
}
