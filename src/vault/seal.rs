//! The seal: the root key, wrapped by a passphrase or a key file, in `seal.json`.
//!
//! Everything else hangs on the root key. Its bytes are never written but wrapped, never shown, and
//! wiped when the process lets go of them. `seal.json` is public in itself: kind, salt, rounds, the
//! wrap, and a checksum that tells a damaged file from a wrong passphrase. It holds no secret that
//! its provider does not open, and it is written whole or not at all.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::file::{self, FileError};
use super::provider::{KeyProvider, PASSPHRASE, ROUNDS};
use super::wrap::{self, WrapError, WrappingKey, tuple};
use crate::model::limits::SEAL_FILE_MAX;
use crate::model::{Digest, SecretValue};

const MAGIC: &str = "doorward-seal";
const FORMAT: u32 = 1;
const NAME: &str = "seal.json";
const LABEL: &str = "root";

/// Why the seal stays closed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not the passphrase that it was sealed with.
    #[error("wrong passphrase")]
    WrongPassphrase,
    /// Not the key file that it was sealed with.
    #[error("this is not the key file that the seal was made with")]
    WrongKeyFile,
    /// No passphrase at all.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// A seal with a cost of guessing that is no cost, or one that never ends.
    #[error("the seal asks for {found} rounds; at least {least} are needed")]
    Rounds {
        /// In the file.
        found: u32,
        /// The least.
        least: u32,
    },
    /// The key file is no key file.
    #[error("{0} must hold exactly 32 bytes")]
    KeyFileSize(PathBuf),
    /// It was sealed by another kind of provider.
    #[error("the seal needs a {needed}, not a {given}")]
    Kind {
        /// What the file says.
        needed: String,
        /// What was brought.
        given: &'static str,
    },
    /// The file is not what was written.
    #[error("{0} is damaged: {1}; restore the keys from a backup")]
    Damaged(PathBuf, &'static str),
    /// Written by a later release.
    #[error("{path} has format {found}; this release knows {FORMAT}: use a newer release")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something that was sealed under the root key does not open.
    #[error("`{label}` does not open")]
    Blob {
        /// Its label.
        label: String,
        /// Why.
        #[source]
        source: WrapError,
    },
}

/// What every format of the file has.
#[derive(Deserialize)]
struct Head {
    magic: String,
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealFile {
    magic: String,
    format: u32,
    kind: String,
    salt: Digest,
    rounds: u32,
    wrapped: String,
    checksum: Digest,
}

impl SealFile {
    fn checksum(&self) -> Digest {
        Digest::of(&tuple(&[&self.place(), self.wrapped.as_bytes()]))
    }

    /// What the wrap of the root key is bound to.
    fn place(&self) -> Vec<u8> {
        tuple(&[
            self.magic.as_bytes(),
            &self.format.to_be_bytes(),
            self.kind.as_bytes(),
            &self.salt.0,
            &self.rounds.to_be_bytes(),
        ])
    }
}

/// The root key: 32 bytes that everything else hangs on, wiped when dropped.
pub struct RootKey {
    bytes: Box<Zeroizing<[u8; 32]>>,
    key: WrappingKey,
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(…)")
    }
}

impl RootKey {
    /// A fresh root key, sealed by `provider` into `dir/seal.json` (0600).
    ///
    /// # Errors
    /// When there is a seal already, the provider has no key, or the file can't be written.
    pub fn init(dir: &Path, provider: &dyn KeyProvider) -> Result<Self, SealError> {
        Self::init_with(dir, provider, rounds_of(provider))
    }

    fn init_with(dir: &Path, provider: &dyn KeyProvider, rounds: u32) -> Result<Self, SealError> {
        let path = dir.join(NAME);
        if std::fs::symlink_metadata(&path).is_ok() {
            return Err(FileError::Exists(path).into());
        }
        let root = Self::from_bytes(&wrap::random());
        root.seal_with(dir, provider, rounds)?;
        Ok(root)
    }

    /// For tests: a passphrase that is cheap to open.
    #[cfg(test)]
    pub(crate) fn init_cheaply(dir: &Path, provider: &dyn KeyProvider) -> Result<Self, SealError> {
        Self::init_with(dir, provider, 1_000)
    }

    /// Opens `dir/seal.json`.
    ///
    /// # Errors
    /// [`SealError::WrongPassphrase`] or [`SealError::WrongKeyFile`] for the wrong key,
    /// [`SealError::Damaged`] when the file is at fault.
    pub fn open(dir: &Path, provider: &dyn KeyProvider) -> Result<Self, SealError> {
        let (path, file) = read(dir)?;
        let given = provider.kind();
        if file.kind != given {
            return Err(SealError::Kind { needed: file.kind, given });
        }
        let damaged = |what| SealError::Damaged(path.clone(), what);
        let wrapped = BASE64.decode(&file.wrapped).map_err(|_| damaged("no base64"))?;
        let key = WrappingKey::new(&*provider.wrapping_key(&file.salt.0, file.rounds)?);
        let bytes = key.open(LABEL, &file.place(), &wrapped).map_err(|error| match error {
            WrapError::OtherKey if given == PASSPHRASE => SealError::WrongPassphrase,
            WrapError::OtherKey => SealError::WrongKeyFile,
            _ => damaged("the root key does not open"),
        })?;
        let bytes = bytes.as_slice().try_into().map_err(|_| damaged("the root key is cut"))?;
        Ok(Self::from_bytes(bytes))
    }

    /// Seals this root key anew into `dir/seal.json`, in place of what is there: another
    /// passphrase, another key file, or a restore.
    ///
    /// # Errors
    /// When the provider has no key or the file can't be written; the old seal is then untouched.
    pub fn seal(&self, dir: &Path, provider: &dyn KeyProvider) -> Result<(), SealError> {
        self.seal_with(dir, provider, rounds_of(provider))
    }

    fn seal_with(
        &self,
        dir: &Path,
        provider: &dyn KeyProvider,
        rounds: u32,
    ) -> Result<(), SealError> {
        let mut file = SealFile {
            magic: MAGIC.to_owned(),
            format: FORMAT,
            kind: provider.kind().to_owned(),
            salt: Digest(*wrap::random()),
            rounds,
            wrapped: String::new(),
            checksum: Digest([0; 32]),
        };
        let key = WrappingKey::new(&*provider.wrapping_key(&file.salt.0, rounds)?);
        file.wrapped = BASE64.encode(key.seal(LABEL, &file.place(), self.bytes.as_slice()));
        file.checksum = file.checksum();
        let path = dir.join(NAME);
        let text = serde_json::to_vec_pretty(&file)
            .map_err(|_| SealError::Damaged(path.clone(), "no JSON"))?;
        Ok(file::replace(&path, &text)?)
    }

    /// Which kind of provider sealed it (`passphrase`, `key-file`), without opening.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn kind_of(dir: &Path) -> Result<String, SealError> {
        read(dir).map(|(_, file)| file.kind)
    }

    /// Wraps a small secret (a signing key, a seed) under a key that belongs to this label only.
    pub fn wrap(&self, label: &str, plain: &[u8]) -> Vec<u8> {
        self.key_for(&format!("blob/{label}")).seal("blob", label.as_bytes(), plain)
    }

    /// Opens what [`RootKey::wrap`] gave for the same label.
    ///
    /// # Errors
    /// When it was wrapped under another label or root key, or was changed.
    pub fn unwrap(&self, label: &str, wrapped: &[u8]) -> Result<SecretValue, SealError> {
        self.key_for(&format!("blob/{label}"))
            .open("blob", label.as_bytes(), wrapped)
            .map(SecretValue::from)
            .map_err(|source| SealError::Blob { label: label.to_owned(), source })
    }

    pub(super) fn from_bytes(bytes: &[u8; 32]) -> Self {
        Self { bytes: Box::new(Zeroizing::new(*bytes)), key: WrappingKey::new(bytes) }
    }

    /// The bytes, for a backup of the keys only.
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The wrapping key under the root key for one purpose.
    pub(super) fn key_for(&self, purpose: &str) -> WrappingKey {
        WrappingKey::new(&self.key.derive(purpose))
    }

    /// The authentication key under the root key for one purpose.
    pub(super) fn mac_for(&self, purpose: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.key.derive(purpose).as_slice())
    }
}

fn rounds_of(provider: &dyn KeyProvider) -> u32 {
    if provider.kind() == PASSPHRASE { ROUNDS } else { 0 }
}

fn read(dir: &Path) -> Result<(PathBuf, SealFile), SealError> {
    let path = dir.join(NAME);
    let bytes = file::read(&path, SEAL_FILE_MAX)?;
    let damaged = |what| SealError::Damaged(path.clone(), what);
    let head: Head = serde_json::from_slice(&bytes).map_err(|_| damaged("no seal in JSON"))?;
    if head.magic != MAGIC {
        return Err(damaged("it says that it is something else"));
    }
    if head.format > FORMAT {
        return Err(SealError::Newer { path, found: head.format });
    }
    let file: SealFile = serde_json::from_slice(&bytes).map_err(|_| damaged("its fields"))?;
    if file.format != FORMAT || file.checksum != file.checksum() {
        return Err(damaged("its checksum"));
    }
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    use super::super::provider::{KeyFile, Passphrase};
    use super::*;

    fn phrase(text: &str) -> Passphrase {
        Passphrase(SecretValue::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::init_cheaply(dir.path(), &phrase("correct horse")).unwrap();
        let again = RootKey::open(dir.path(), &phrase("correct horse")).unwrap();
        assert_eq!(root.bytes(), again.bytes());
        assert_eq!(RootKey::kind_of(dir.path()).unwrap(), "passphrase");
        for wrong in ["correct horsf", "correct horse ", "Correct horse", "x"] {
            let error = RootKey::open(dir.path(), &phrase(wrong)).unwrap_err();
            assert!(matches!(error, SealError::WrongPassphrase), "{error}");
        }
        assert_eq!(SealError::WrongPassphrase.to_string(), "wrong passphrase");
    }

    #[test]
    fn a_key_file_opens_what_it_sealed_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyFile::create(&dir.path().join("key")).unwrap();
        let other = KeyFile::create(&dir.path().join("other")).unwrap();
        let root = RootKey::init(dir.path(), &key).unwrap();
        assert_eq!(RootKey::open(dir.path(), &key).unwrap().bytes(), root.bytes());
        assert_eq!(RootKey::kind_of(dir.path()).unwrap(), "key-file");
        let error = RootKey::open(dir.path(), &other).unwrap_err();
        assert!(matches!(error, SealError::WrongKeyFile), "{error}");
        let error = RootKey::open(dir.path(), &phrase("x")).unwrap_err();
        assert_eq!(error.to_string(), "the seal needs a key-file, not a passphrase");
    }

    #[test]
    fn a_seal_is_never_made_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::init_cheaply(dir.path(), &phrase("a")).unwrap();
        let error = RootKey::init_cheaply(dir.path(), &phrase("b")).unwrap_err();
        assert!(matches!(error, SealError::File(FileError::Exists(_))), "{error}");
        assert_eq!(RootKey::open(dir.path(), &phrase("a")).unwrap().bytes(), root.bytes());
    }

    #[test]
    fn a_new_seal_keeps_the_root_key_and_ends_the_old_way_in() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::init_cheaply(dir.path(), &phrase("old")).unwrap();
        let key = KeyFile::create(&dir.path().join("key")).unwrap();
        root.seal(dir.path(), &key).unwrap();
        assert_eq!(RootKey::open(dir.path(), &key).unwrap().bytes(), root.bytes());
        assert!(RootKey::open(dir.path(), &phrase("old")).is_err());
    }

    #[test]
    fn damage_is_told_from_a_wrong_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::init_cheaply(dir.path(), &phrase("right")).unwrap();
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in [0, 3, 7] {
                let mut bad = whole.clone();
                bad[at] ^= 1 << bit;
                std::fs::write(&path, &bad).unwrap();
                match RootKey::open(dir.path(), &phrase("right")) {
                    // White space and the case of a JSON escape may change without harm.
                    Ok(opened) => assert_eq!(opened.bytes(), root.bytes()),
                    Err(SealError::WrongPassphrase) => panic!("damage at {at} blamed on a person"),
                    Err(_) => {}
                }
            }
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = RootKey::open(dir.path(), &phrase("right")).unwrap_err();
            assert!(matches!(error, SealError::Damaged(..)), "{length}: {error}");
        }
        std::fs::write(&path, vec![b' '; SEAL_FILE_MAX + 1]).unwrap();
        let error = RootKey::open(dir.path(), &phrase("right")).unwrap_err();
        assert!(matches!(error, SealError::File(FileError::TooLarge(..))));
        std::fs::write(&path, &whole).unwrap();
        assert!(RootKey::open(dir.path(), &phrase("right")).is_ok());
    }

    #[test]
    fn a_newer_seal_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        RootKey::init_cheaply(dir.path(), &phrase("p")).unwrap();
        let text = r#"{"magic":"doorward-seal","format":2,"quantum":true}"#;
        std::fs::write(dir.path().join(NAME), text).unwrap();
        let error = RootKey::open(dir.path(), &phrase("p")).unwrap_err();
        assert!(matches!(error, SealError::Newer { found: 2, .. }), "{error}");
    }

    #[test]
    fn blobs_are_bound_to_label_and_root() {
        let root = RootKey::from_bytes(&[1; 32]);
        let blob = root.wrap("ca", b"signing key");
        assert_eq!(root.unwrap("ca", &blob).unwrap().expose(), b"signing key");
        assert!(root.unwrap("log", &blob).is_err());
        assert!(RootKey::from_bytes(&[2; 32]).unwrap("ca", &blob).is_err());
        let error = root.unwrap("ca", b"").unwrap_err();
        assert_eq!(error.to_string(), "`ca` does not open");
    }

    #[test]
    fn nothing_of_the_key_is_shown_or_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::init_cheaply(dir.path(), &phrase("p")).unwrap();
        assert_eq!(format!("{root:?}"), "RootKey(…)");
        let file = std::fs::read(dir.path().join(NAME)).unwrap();
        let (raw, text) = (root.bytes().to_vec(), hex::encode(root.bytes()));
        for form in [raw.clone(), text.into_bytes(), BASE64.encode(raw).into_bytes()] {
            assert!(!file.windows(form.len()).any(|window| window == form));
        }
    }
}
