//! What opens the seal: a passphrase that a person types, or a file with a key.
//!
//! A passphrase means that a person must be there at each start. A key file means that whoever can
//! read that file can open everything; it belongs on another disk, or into the service manager's
//! credentials.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use aws_lc_rs::{hkdf, pbkdf2};
use zeroize::Zeroizing;

use super::file;
use super::seal::SealError;
use super::wrap;
use crate::model::SecretValue;

/// The kind of [`Passphrase`].
pub(super) const PASSPHRASE: &str = "passphrase";
/// The kind of [`KeyFile`].
pub(super) const KEY_FILE: &str = "key-file";

/// Rounds of PBKDF2 for a new seal: about 0.3 s on one core in 2026.
pub(super) const ROUNDS: u32 = 600_000;
/// Fewer rounds than this are refused, so that no file can ask for a cheap guess.
const ROUNDS_MIN: u32 = if cfg!(test) { 1_000 } else { ROUNDS };
/// More than this would only hang the start.
const ROUNDS_MAX: u32 = 100_000_000;

/// Wraps the root key.
pub trait KeyProvider: Send + Sync {
    /// The word that the seal's file keeps: which kind of provider can open it.
    fn kind(&self) -> &'static str;

    /// The wrapping key for this salt. `rounds` is the cost of guessing; it means something to
    /// passphrases only.
    ///
    /// # Errors
    /// When there is no usable key, and why.
    fn wrapping_key(&self, salt: &[u8; 32], rounds: u32) -> Result<Zeroizing<[u8; 32]>, SealError>;
}

/// A passphrase, stretched with PBKDF2-HMAC-SHA512 (RFC 8018).
pub struct Passphrase(pub SecretValue);

impl KeyProvider for Passphrase {
    fn kind(&self) -> &'static str {
        PASSPHRASE
    }

    fn wrapping_key(&self, salt: &[u8; 32], rounds: u32) -> Result<Zeroizing<[u8; 32]>, SealError> {
        if self.0.is_empty() {
            return Err(SealError::EmptyPassphrase);
        }
        if !(ROUNDS_MIN..=ROUNDS_MAX).contains(&rounds) {
            return Err(SealError::Rounds { found: rounds, least: ROUNDS_MIN });
        }
        let rounds = NonZeroU32::new(rounds).unwrap_or(NonZeroU32::MAX);
        let mut key = Zeroizing::new([0; 32]);
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA512;
        pbkdf2::derive(algorithm, rounds, salt, self.0.expose(), key.as_mut_slice());
        Ok(key)
    }
}

/// A file of exactly 32 random bytes that nobody else may read.
pub struct KeyFile(pub PathBuf);

impl KeyFile {
    /// Makes a new key file, mode 0600, over nothing.
    ///
    /// # Errors
    /// When something is there already or the system refuses.
    pub fn create(path: &Path) -> Result<Self, SealError> {
        file::create(path, wrap::random::<32>().as_slice())?;
        Ok(Self(path.to_owned()))
    }
}

impl KeyProvider for KeyFile {
    fn kind(&self) -> &'static str {
        KEY_FILE
    }

    fn wrapping_key(&self, salt: &[u8; 32], _: u32) -> Result<Zeroizing<[u8; 32]>, SealError> {
        let size = || SealError::KeyFileSize(self.0.clone());
        let bytes = match file::read(&self.0, 32) {
            Err(file::FileError::TooLarge(..)) => return Err(size()),
            other => other?,
        };
        let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| size())?;
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA512, salt).extract(bytes);
        let mut key = Zeroizing::new([0; 32]);
        prk.expand(&[b"doorward/key-file/1"], Half)
            .and_then(|okm| okm.fill(key.as_mut_slice()))
            .map_err(|_| size())?;
        Ok(key)
    }
}

struct Half;

impl hkdf::KeyType for Half {
    fn len(&self) -> usize {
        32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn phrase(text: &str) -> Passphrase {
        Passphrase(SecretValue::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_passphrase_is_stretched_with_its_salt_and_rounds() {
        let key = |text, salt, rounds| phrase(text).wrapping_key(&[salt; 32], rounds).unwrap();
        let first = key("correct horse", 1, 1_000);
        assert_eq!(first, key("correct horse", 1, 1_000));
        assert_ne!(first, key("correct horsf", 1, 1_000));
        assert_ne!(first, key("correct horse", 2, 1_000));
        assert_ne!(first, key("correct horse", 1, 1_001));
    }

    #[test]
    fn cheap_and_endless_stretching_are_refused() {
        assert!(phrase("x").wrapping_key(&[0; 32], 1_000).is_ok());
        for rounds in [0, 1, 999, 100_000_001, u32::MAX] {
            let error = phrase("x").wrapping_key(&[0; 32], rounds).unwrap_err();
            assert!(matches!(error, SealError::Rounds { .. }));
        }
        let error = phrase("").wrapping_key(&[0; 32], 1_000).unwrap_err();
        assert!(matches!(error, SealError::EmptyPassphrase));
    }

    #[test]
    fn a_key_file_has_one_size_and_one_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let provider = KeyFile::create(&path).unwrap();
        let key = provider.wrapping_key(&[1; 32], 0).unwrap();
        assert_eq!(key, provider.wrapping_key(&[1; 32], 7).unwrap());
        assert_ne!(key, provider.wrapping_key(&[2; 32], 0).unwrap());
        assert!(KeyFile::create(&path).is_err(), "never over another key");

        let bytes = std::fs::read(&path).unwrap();
        for wrong in [&bytes[..31], &[bytes.as_slice(), b"\n"].concat(), b""] {
            std::fs::write(&path, wrong).unwrap();
            let error = provider.wrapping_key(&[1; 32], 0).unwrap_err();
            assert!(matches!(error, SealError::KeyFileSize(_)), "{error}");
        }
        std::fs::write(&path, &bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = provider.wrapping_key(&[1; 32], 0).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(key, provider.wrapping_key(&[1; 32], 0).unwrap());
    }
}
