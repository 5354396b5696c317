//! Keys that wrap keys, and the one way in which anything is sealed here.
//!
//! A wrap draws 32 random bytes and expands (HKDF-SHA-512, expand only: the wrapping key is uniform
//! and serves as the PRK; RFC 5869 §3.3) one 64-byte block from label and random bytes. Half of the
//! block is an AES-256-GCM key, half a commitment. The commitment stands beside the ciphertext and
//! is compared in constant time *before* anything is opened, because GCM alone does not commit to
//! its key. The GCM key seals exactly one message, so its nonce is fixed at zero; that is safe only
//! because no function here takes a nonce, nor a one-time key to seal with.
//!
//! Form: `format:1 ‖ random:32 ‖ commitment:32 ‖ ciphertext ‖ tag:16`. What is sealed is bound to
//! its place by the caller's associated data, a [`tuple()`].
//!
//! Failing randomness ends the process: there is no safe way on.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{hmac, rand};
use zeroize::Zeroizing;

use crate::model::WipedBytes;

const FORMAT: u8 = 1;
const RANDOM: usize = 32;
const COMMITMENT: usize = 32;
const TAG: usize = 16;
/// Bytes by which a wrap is longer than what it holds.
pub(super) const OVERHEAD: usize = 1 + RANDOM + COMMITMENT + TAG;

/// Why a wrap does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// Too short to be one.
    #[error("it is cut off")]
    Truncated,
    /// Written by a later release.
    #[error("it has format {0}; this release knows {FORMAT}")]
    Newer(u8),
    /// Sealed under another key or label.
    #[error("it was sealed under another key")]
    OtherKey,
    /// Right key, but the bytes or the place are not those that were sealed.
    #[error("it is not what was sealed, or not where it was sealed")]
    Altered,
}

/// A 256-bit key that wraps others, or that others are derived from. Wiped when dropped.
///
/// Held as an HMAC key whose two padded blocks are hashed already: the first block of HKDF-Expand
/// is `HMAC(PRK, info ‖ 1)`, and no more than one block is ever wanted.
pub(super) struct WrappingKey(Box<hmac::Key>);

struct OneTime {
    key: LessSafeKey,
    commitment: Zeroizing<[u8; COMMITMENT]>,
}

impl WrappingKey {
    /// A key from its bytes, which must be uniformly random.
    pub(super) fn new(bytes: &[u8; 32]) -> Self {
        Self(Box::new(hmac::Key::new(hmac::HMAC_SHA512, bytes)))
    }

    /// The first block of HKDF-Expand (RFC 5869 §2.3): `info` ends in the block's number, 1. It is
    /// no secret.
    fn expand(&self, info: &[&[u8]]) -> Zeroizing<[u8; 64]> {
        let mut block = Zeroizing::new([0; 64]);
        let message = info.concat();
        let signed = hmac::sign_to_buffer(&self.0, &message, block.as_mut_slice());
        signed.unwrap_or_else(|_| broken("key derivation"));
        block
    }

    /// The key under this one for another purpose; one label, one purpose.
    pub(super) fn derive(&self, label: &str) -> Zeroizing<[u8; 32]> {
        let block = self.expand(&[b"doorward/derive/1\0", label.as_bytes(), &[1]]);
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(&block[..32]);
        out
    }

    /// Seals `plain`. Two calls never give the same bytes.
    pub(super) fn seal(&self, label: &str, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let random = random::<RANDOM>();
        let once = self.one_time(label, &random);
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
        out.push(FORMAT);
        out.extend_from_slice(random.as_slice());
        out.extend_from_slice(once.commitment.as_slice());
        out.extend_from_slice(&seal_once(&once.key, aad, plain));
        out
    }

    /// Opens what [`WrappingKey::seal`] gave for the same label and associated data.
    ///
    /// # Errors
    /// One of [`WrapError`]; nothing of the plaintext is then left anywhere.
    pub(super) fn open(
        &self,
        label: &str,
        aad: &[u8],
        wrapped: &[u8],
    ) -> Result<WipedBytes, WrapError> {
        let (format, rest) = wrapped.split_first().ok_or(WrapError::Truncated)?;
        if *format > FORMAT {
            return Err(WrapError::Newer(*format));
        }
        if *format != FORMAT {
            return Err(WrapError::Altered);
        }
        let (random, rest) = rest.split_first_chunk::<RANDOM>().ok_or(WrapError::Truncated)?;
        let (found, sealed) = rest.split_first_chunk::<COMMITMENT>().ok_or(WrapError::Truncated)?;
        if sealed.len() < TAG {
            return Err(WrapError::Truncated);
        }
        let once = self.one_time(label, random);
        verify_slices_are_equal(found, once.commitment.as_slice())
            .map_err(|_| WrapError::OtherKey)?;
        open_once(&once.key, aad, WipedBytes::new(sealed.to_vec()))
    }

    fn one_time(&self, label: &str, random: &[u8; RANDOM]) -> OneTime {
        // The random bytes have a fixed length at the end, so label and random can't run together.
        let block = self.expand(&[b"doorward/wrap/1\0", label.as_bytes(), random, &[1]]);
        let (key, rest) = block.split_at(32);
        let mut commitment = Zeroizing::new([0; COMMITMENT]);
        commitment.copy_from_slice(rest);
        OneTime { key: gcm(key), commitment }
    }
}

/// A fresh data key with the one message that it seals. The key goes into a wrap and is used again
/// only to open.
pub(super) fn seal_under_fresh_key(aad: &[u8], plain: &[u8]) -> (Zeroizing<[u8; 32]>, Vec<u8>) {
    let key = random::<32>();
    let sealed = seal_once(&gcm(key.as_slice()), aad, plain);
    (key, sealed)
}

/// Opens what [`seal_under_fresh_key`] sealed, in place.
///
/// # Errors
/// [`WrapError`]; the buffer is then wiped.
pub(super) fn open_under(key: &[u8], aad: &[u8], sealed: Vec<u8>) -> Result<WipedBytes, WrapError> {
    let sealed = WipedBytes::new(sealed);
    if key.len() != 32 {
        return Err(WrapError::Altered);
    }
    open_once(&gcm(key), aad, sealed)
}

fn gcm(key: &[u8]) -> LessSafeKey {
    match UnboundKey::new(&AES_256_GCM, key) {
        Ok(key) => LessSafeKey::new(key),
        Err(_) => broken("an AES-256-GCM key"),
    }
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn seal_once(key: &LessSafeKey, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    // Room for the tag from the start: a growing vector would leave plaintext behind.
    let mut buffer = WipedBytes::new(Vec::with_capacity(plain.len() + TAG));
    buffer.extend_from_slice(plain);
    match key.seal_in_place_append_tag(zero_nonce(), Aad::from(aad), &mut *buffer) {
        Ok(()) => std::mem::take(&mut *buffer),
        Err(_) => broken("sealing"),
    }
}

fn open_once(
    key: &LessSafeKey,
    aad: &[u8],
    mut buffer: WipedBytes,
) -> Result<WipedBytes, WrapError> {
    let plain = key
        .open_in_place(zero_nonce(), Aad::from(aad), &mut buffer)
        .map_err(|_| WrapError::Altered)?;
    let length = plain.len();
    buffer.truncate(length);
    Ok(buffer)
}

/// Fresh random bytes.
pub(super) fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    if rand::fill(bytes.as_mut_slice()).is_err() {
        broken("the system's randomness");
    }
    bytes
}

/// Going on would mean a guessable key.
fn broken(what: &'static str) -> ! {
    tracing::error!(what, "cryptography failed; ending at once");
    std::process::abort()
}

/// Associated data: each part with its length before it, so that no two lists of parts give the
/// same bytes.
pub(super) fn tuple(parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len() + 8).sum();
    let mut out = Vec::with_capacity(length);
    for part in parts {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> WrappingKey {
        WrappingKey::new(&[byte; 32])
    }

    fn opened(key: &WrappingKey, label: &str, aad: &[u8], w: &[u8]) -> Result<Vec<u8>, WrapError> {
        key.open(label, aad, w).map(|plain| plain.to_vec())
    }

    #[test]
    fn one_block_is_what_hkdf_expand_gives() {
        use aws_lc_rs::hkdf;
        struct Long(usize);
        impl hkdf::KeyType for Long {
            fn len(&self) -> usize {
                self.0
            }
        }
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA512, &[7; 32]);
        let mut okm = [0; 64];
        let info = [b"doorward/wrap/1\0".as_slice(), b"dek", &[9; 32]];
        prk.expand(&info, Long(64)).unwrap().fill(&mut okm).unwrap();
        let once = key(7).one_time("dek", &[9; 32]);
        assert_eq!(once.commitment.as_slice(), &okm[32..]);
        let sealed = seal_once(&once.key, b"", b"x");
        assert!(open_under(&okm[..32], b"", sealed).is_ok());
        let mut derived = [0; 32];
        let info = [b"doorward/derive/1\0".as_slice(), b"label"];
        prk.expand(&info, Long(32)).unwrap().fill(&mut derived).unwrap();
        assert_eq!(*key(7).derive("label"), derived);
    }

    #[test]
    fn what_is_sealed_opens_and_never_repeats() {
        let one = key(1).seal("dek", b"place", b"plain");
        assert_eq!(opened(&key(1), "dek", b"place", &one).unwrap(), b"plain");
        assert_eq!(one.len(), 5 + OVERHEAD);
        assert_ne!(one, key(1).seal("dek", b"place", b"plain"));
        let empty = key(1).seal("dek", b"", b"");
        assert_eq!(opened(&key(1), "dek", b"", &empty).unwrap(), b"");
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let sealed = key(1).seal("dek", b"place", b"a plaintext of some length");
        assert!(opened(&key(1), "dek", b"place", &sealed).is_ok());
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut bad = sealed.clone();
                bad[at] ^= 1 << bit;
                let error = opened(&key(1), "dek", b"place", &bad).unwrap_err();
                match at {
                    0 => assert!(matches!(error, WrapError::Newer(_) | WrapError::Altered)),
                    1..65 => assert_eq!(error, WrapError::OtherKey, "byte {at}"),
                    _ => assert_eq!(error, WrapError::Altered, "byte {at}"),
                }
            }
        }
    }

    #[test]
    fn every_truncation_and_extension_is_found() {
        let sealed = key(1).seal("dek", b"place", b"plain");
        assert!(opened(&key(1), "dek", b"place", &sealed).is_ok());
        for length in 0..sealed.len() {
            assert!(opened(&key(1), "dek", b"place", &sealed[..length]).is_err(), "{length}");
        }
        let longer = [sealed.as_slice(), b"\0"].concat();
        assert_eq!(opened(&key(1), "dek", b"place", &longer), Err(WrapError::Altered));
    }

    #[test]
    fn key_label_and_place_are_bound() {
        let sealed = key(1).seal("dek", b"place", b"plain");
        assert!(opened(&key(1), "dek", b"place", &sealed).is_ok());
        assert_eq!(opened(&key(2), "dek", b"place", &sealed), Err(WrapError::OtherKey));
        assert_eq!(opened(&key(1), "nsk", b"place", &sealed), Err(WrapError::OtherKey));
        assert_eq!(opened(&key(1), "dek", b"elsewhere", &sealed), Err(WrapError::Altered));
        let newer = [&[2], &sealed[1..]].concat();
        assert_eq!(opened(&key(1), "dek", b"place", &newer), Err(WrapError::Newer(2)));
    }

    #[test]
    fn swapped_parts_of_two_wraps_never_open() {
        let (a, b) = (key(1).seal("l", b"p", b"first"), key(1).seal("l", b"p", b"other"));
        for cut in [1, 33, 65] {
            let mixed = [&a[..cut], &b[cut..]].concat();
            let result = opened(&key(1), "l", b"p", &mixed);
            assert!(cut == 1 || result.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn data_keys_are_fresh_and_open_only_their_message() {
        let (dek, sealed) = seal_under_fresh_key(b"place", b"value");
        let (other, _) = seal_under_fresh_key(b"place", b"value");
        assert_ne!(dek.as_slice(), other.as_slice());
        let open = |key: &[u8], aad: &[u8]| open_under(key, aad, sealed.clone());
        assert_eq!(open(dek.as_slice(), b"place").unwrap().as_slice(), b"value");
        assert!(open(other.as_slice(), b"place").is_err());
        assert!(open(dek.as_slice(), b"elsewhere").is_err());
        assert!(open(&dek[..31], b"place").is_err());
    }

    #[test]
    fn derived_keys_differ_by_label_and_are_stable() {
        assert_eq!(key(1).derive("a").as_slice(), key(1).derive("a").as_slice());
        assert_ne!(key(1).derive("a").as_slice(), key(1).derive("b").as_slice());
        assert_ne!(key(1).derive("a").as_slice(), key(2).derive("a").as_slice());
    }

    proptest! {
        #[test]
        fn tuples_are_unambiguous(
            a in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..4),
            b in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..4),
        ) {
            let parts = |list: &[Vec<u8>]| {
                tuple(&list.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            prop_assert_eq!(a == b, parts(&a) == parts(&b));
        }

        #[test]
        fn foreign_bytes_never_open(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(key(1).open("dek", b"place", &bytes).is_err());
        }
    }
}
