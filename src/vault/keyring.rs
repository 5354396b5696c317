//! The namespaces' keys: one file each in a directory of their own, never in the store, a
//! write-ahead log or a data backup, so that destroying a key destroys every copy of what it
//! protects.
//!
//! A file is pairs of slots, one pair an epoch, both slots of a pair alike. A slot is written in
//! place (`pwrite`, `fdatasync`), one copy after the other. One bad copy is reported and the other
//! used; two bad copies are refused by name, and other namespaces go on.
//!
//! Honest limit: writing in place overwrites only where the disk below does. Copy-on-write file
//! systems (btrfs, ZFS, overlays), snapshots, flash translation layers and cloud block storage may
//! keep the old bytes. Put this directory on a plain file system on a disk that is encrypted
//! itself.

use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;
use zeroize::Zeroizing;

use super::file::{self, FileError};
use super::seal::RootKey;
use super::slot::{self, Slot};
use super::wrap::{self, WrapError, WrappingKey, tuple};
use crate::model::limits::{KEY_EPOCHS_MAX, NAMESPACE_KEYS_CACHED};

const MAGIC: &[u8] = b"doorward";
const FORMAT: &[u8] = &[1];
const LABEL: &str = "nsk";
/// The epoch of a namespace's first key.
pub(super) const FIRST_EPOCH: u32 = 1;
/// Bytes of the largest file.
pub(super) const FILE_MAX: usize = KEY_EPOCHS_MAX * 2 * slot::SIZE;

/// Why a namespace's key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Both copies are bad.
    #[error("both copies of a key of namespace {0} are damaged; restore the keys from a backup")]
    Damaged(Uuid),
    /// The file has no such epoch.
    #[error("namespace {0} has no key of epoch {1}; restore the keys from a backup")]
    Absent(Uuid, u32),
    /// Written by a later release.
    #[error("the keys of namespace {0} have format {1}: use a newer release")]
    Newer(Uuid, u16),
    /// The key does not open under this root key.
    #[error("the key of namespace {0} does not open under this root key")]
    Sealed(Uuid, #[source] WrapError),
    /// A name that no key file has.
    #[error("{0:?} is no name of a key file")]
    Name(String),
    /// The file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Default)]
struct Cache {
    keys: HashMap<(Uuid, u32), Arc<WrappingKey>>,
    order: VecDeque<(Uuid, u32)>,
}

/// The directory of namespace keys, with those opened last.
pub(super) struct Keyring {
    dir: PathBuf,
    key: WrappingKey,
    cache: RwLock<Cache>,
}

fn place(namespace: Uuid, epoch: u32) -> Vec<u8> {
    tuple(&[MAGIC, FORMAT, namespace.as_bytes(), &epoch.to_be_bytes(), b"nsk"])
}

fn file_name(namespace: Uuid) -> String {
    format!("{namespace}.keys")
}

impl Keyring {
    /// The keyring in `dir`, which is made (mode 0700) when it is not there.
    ///
    /// # Errors
    /// When the directory is open to others or can't be made.
    pub(super) fn open(dir: &Path, root: &RootKey) -> Result<Self, KeyringError> {
        file::private_directory(dir)?;
        let key = root.key_for("namespace-keys");
        Ok(Self { dir: dir.to_owned(), key, cache: RwLock::default() })
    }

    /// Makes the first key of a new namespace; durable when it returns.
    ///
    /// # Errors
    /// When there is a file of that namespace already or it can't be written.
    pub(super) fn create(&self, namespace: Uuid) -> Result<(), KeyringError> {
        let key = wrap::random::<32>();
        let wrapped = self.key.seal(LABEL, &place(namespace, FIRST_EPOCH), key.as_slice());
        let slot = slot::encode(namespace, FIRST_EPOCH, &wrapped);
        let slot = slot.ok_or(KeyringError::Damaged(namespace))?;
        let path = self.path(namespace);
        file::create(&path, &[])?;
        self.write_pair(&path, 0, &slot)?;
        self.remember((namespace, FIRST_EPOCH), Arc::new(WrappingKey::new(&key)));
        Ok(())
    }

    /// Forgets a namespace that was never written down: its file protects nothing.
    pub(super) fn abandon(&self, namespace: Uuid) {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        cache.keys.retain(|(id, _), _| *id != namespace);
        cache.order.retain(|(id, _)| *id != namespace);
        let path = self.path(namespace);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "an unused key file was not removed");
        }
    }

    fn write_pair(&self, path: &Path, offset: u64, slot: &[u8]) -> Result<(), KeyringError> {
        let io = |error| FileError::Io(path.to_owned(), error);
        let file = file::open(path, true)?;
        let length = u64::try_from(slot.len()).unwrap_or(u64::MAX);
        for copy in 0..2 {
            file.write_all_at(slot, offset + copy * length).map_err(io)?;
            file.sync_data().map_err(io)?; // one copy is whole before the other is touched
        }
        Ok(())
    }

    /// The key of one epoch of a namespace.
    ///
    /// # Errors
    /// One of [`KeyringError`]; other namespaces are not touched by it.
    pub(super) fn key(
        &self,
        namespace: Uuid,
        epoch: u32,
    ) -> Result<Arc<WrappingKey>, KeyringError> {
        let at = (namespace, epoch);
        let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = cache.keys.get(&at) {
            return Ok(Arc::clone(key));
        }
        drop(cache);
        let key = Arc::new(self.load(namespace, epoch)?);
        self.remember(at, Arc::clone(&key));
        Ok(key)
    }

    fn remember(&self, at: (Uuid, u32), key: Arc<WrappingKey>) {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.keys.insert(at, key).is_some() {
            return;
        }
        cache.order.push_back(at);
        if cache.order.len() > NAMESPACE_KEYS_CACHED
            && let Some(oldest) = cache.order.pop_front()
        {
            cache.keys.remove(&oldest);
        }
    }

    fn load(&self, namespace: Uuid, epoch: u32) -> Result<WrappingKey, KeyringError> {
        let bytes = file::read(&self.path(namespace), FILE_MAX)?;
        let mut worst = KeyringError::Absent(namespace, epoch);
        for (number, pair) in bytes.chunks(2 * slot::SIZE).enumerate() {
            let (first, second) = pair.split_at(pair.len().min(slot::SIZE));
            let copies = [slot::decode(namespace, first), slot::decode(namespace, second)];
            let other = |slot: &Slot| matches!(slot, Slot::Live { epoch: e, .. } if *e != epoch);
            if copies.iter().any(other) || copies.iter().all(|slot| *slot == Slot::Empty) {
                continue;
            }
            let opened = copies.map(|slot| self.open_slot(namespace, epoch, slot));
            match opened {
                [Ok(key), Ok(_)] => return Ok(key),
                [Ok(key), Err(error)] | [Err(error), Ok(key)] => {
                    report(namespace, number, &error);
                    return Ok(key);
                }
                [Err(error), Err(_)] => worst = error,
            }
        }
        Err(worst)
    }

    fn open_slot(
        &self,
        namespace: Uuid,
        epoch: u32,
        slot: Slot,
    ) -> Result<WrappingKey, KeyringError> {
        let damaged = || KeyringError::Damaged(namespace);
        match slot {
            Slot::Live { wrapped, .. } => {
                let key = self
                    .key
                    .open(LABEL, &place(namespace, epoch), &wrapped)
                    .map_err(|error| KeyringError::Sealed(namespace, error))?;
                Ok(WrappingKey::new(key.as_slice().try_into().map_err(|_| damaged())?))
            }
            Slot::Newer(format) => Err(KeyringError::Newer(namespace, format)),
            Slot::Damaged | Slot::Empty => Err(damaged()),
        }
    }

    fn path(&self, namespace: Uuid) -> PathBuf {
        self.dir.join(file_name(namespace))
    }

    /// The bytes of one namespace's file, for a backup of the keys.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn export(
        &self,
        namespace: Uuid,
    ) -> Result<(String, Zeroizing<Vec<u8>>), KeyringError> {
        let bytes = file::read(&self.path(namespace), FILE_MAX)?;
        Ok((file_name(namespace), bytes))
    }
}

fn report(namespace: Uuid, pair: usize, error: &KeyringError) {
    let hint = "take a backup of the keys, then look at the disk";
    tracing::warn!(%namespace, pair, %error, hint, "one copy of a namespace key is bad");
}

/// Puts one exported file into a new keyring's directory, over nothing.
///
/// # Errors
/// When the name is none of ours, the bytes are too many, or a file is there already.
pub(super) fn import(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), KeyringError> {
    let id = name.strip_suffix(".keys").and_then(|id| Uuid::try_parse(id).ok());
    if id.map(file_name).as_deref() != Some(name) {
        return Err(KeyringError::Name(name.chars().take(64).collect()));
    }
    let path = dir.join(name);
    if bytes.len() > FILE_MAX {
        return Err(FileError::TooLarge(path, FILE_MAX).into());
    }
    file::private_directory(dir)?;
    Ok(file::create(&path, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(1);

    fn keyring(dir: &Path) -> Keyring {
        Keyring::open(&dir.join("keys"), &RootKey::from_bytes(&[7; 32])).unwrap()
    }

    /// What a key does, since its bytes can't be seen.
    fn proof(key: &WrappingKey) -> Vec<u8> {
        key.derive("proof").to_vec()
    }

    fn load(dir: &Path) -> Result<Vec<u8>, KeyringError> {
        keyring(dir).key(ID, 1).map(|key| proof(&key))
    }

    #[test]
    fn a_key_is_there_after_a_restart_and_differs_by_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        ring.create(ID).unwrap();
        ring.create(Uuid::from_u128(2)).unwrap();
        let key = proof(&ring.key(ID, 1).unwrap());
        assert_eq!(load(dir.path()).unwrap(), key);
        assert_ne!(proof(&ring.key(Uuid::from_u128(2), 1).unwrap()), key);
        assert!(matches!(ring.key(ID, 2), Err(KeyringError::Absent(_, 2))));
        assert!(matches!(ring.key(Uuid::from_u128(3), 1), Err(KeyringError::File(_))));
        assert!(ring.create(ID).is_err(), "never over a key");
    }

    #[test]
    fn one_bad_copy_is_survived_and_two_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        keyring(dir.path()).create(ID).unwrap();
        let path = keyring(dir.path()).path(ID);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 2 * slot::SIZE);
        let key = load(dir.path()).unwrap();
        for at in (0..2 * slot::SIZE).step_by(61) {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(load(dir.path()).unwrap(), key, "byte {at}");
            bad[(at + slot::SIZE) % (2 * slot::SIZE)] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let error = load(dir.path()).unwrap_err();
            assert!(matches!(error, KeyringError::Damaged(_)), "{error}");
            assert!(error.to_string().contains(&ID.to_string()));
        }
        for length in [0, 1, 4095] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(load(dir.path()).is_err(), "{length}");
        }
        for length in [4096, 4097, 8191] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(load(dir.path()).unwrap(), key, "{length}");
        }
    }

    #[test]
    fn a_key_opens_only_in_its_place_and_under_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        ring.create(ID).unwrap();
        let other = Uuid::from_u128(2);
        ring.create(other).unwrap();
        assert!(load(dir.path()).is_ok());
        std::fs::copy(ring.path(other), ring.path(ID)).unwrap();
        assert!(matches!(load(dir.path()), Err(KeyringError::Damaged(_))));

        let foreign = RootKey::from_bytes(&[8; 32]);
        let foreign = Keyring::open(&dir.path().join("keys"), &foreign).unwrap();
        assert!(matches!(foreign.key(other, 1), Err(KeyringError::Sealed(..))));
    }

    #[test]
    fn several_epochs_live_in_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        ring.create(ID).unwrap();
        let second = WrappingKey::new(&[9; 32]);
        let wrapped = ring.key.seal(LABEL, &place(ID, 2), &[9; 32]);
        let slot = slot::encode(ID, 2, &wrapped).unwrap();
        ring.write_pair(&ring.path(ID), 4 * 4096, &slot).unwrap();
        let again = keyring(dir.path());
        assert!(again.key(ID, 1).is_ok(), "beside an erased pair and a later epoch");
        assert_eq!(proof(&again.key(ID, 2).unwrap()), proof(&second));
        // An epoch's slot put under another epoch's number is not that epoch.
        let moved = slot::encode(ID, 1, &wrapped).unwrap();
        ring.write_pair(&ring.path(ID), 0, &moved).unwrap();
        assert!(matches!(keyring(dir.path()).key(ID, 1), Err(KeyringError::Sealed(..))));
    }

    #[test]
    fn the_cache_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let ring = keyring(dir.path());
        for n in 0..u128::try_from(NAMESPACE_KEYS_CACHED).unwrap() + 10 {
            let key = Arc::new(WrappingKey::new(&[1; 32]));
            ring.remember((Uuid::from_u128(n), 1), key.clone());
            ring.remember((Uuid::from_u128(n), 1), key);
        }
        let cache = ring.cache.read().unwrap();
        assert_eq!((cache.keys.len(), cache.order.len()), (1024, 1024));
        assert!(!cache.keys.contains_key(&(Uuid::from_u128(0), 1)), "the oldest goes first");
    }

    #[test]
    fn only_key_files_are_imported() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let good = file_name(ID);
        import(&keys, &good, b"x").unwrap();
        assert!(import(&keys, &good, b"x").is_err(), "never over a file");
        let upper = good.to_uppercase();
        for bad in ["../evil.keys", "x.keys", "", "/etc/passwd", upper.as_str()] {
            assert!(matches!(import(&keys, bad, b"x"), Err(KeyringError::Name(_))), "{bad}");
        }
        let other = file_name(Uuid::from_u128(2));
        assert!(import(&keys, &other, &vec![0; FILE_MAX + 1]).is_err());
    }
}
