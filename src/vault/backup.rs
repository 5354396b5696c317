//! Backups: the data without keys, the keys without data, and the way back.
//!
//! A data backup is one consistent snapshot of the store, sealed under a key of the root key; its
//! header (kind, format, revision) is bound to it. It never holds a namespace key, so destroying
//! one destroys what it protects in every backup too. A backup of the keys goes to one recipient
//! (HPKE, RFC 9180: X25519, HKDF-SHA-256, AES-256-GCM). Neither opens without what the other
//! does not hold.
//!
//! A restore goes into an empty store only, and voids join tokens: one that was used after the
//! backup must not become usable again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use zeroize::Zeroizing;

use super::base::{Vault, namespaces};
use super::error::{BackupError, VaultError};
use super::keyring;
use super::parcel::{self, LENGTH};
use super::seal::RootKey;
use crate::model::{Code, Failure, Reason, SecretValue};
use crate::store::{Row, Store, Table, Txn, Write};

const DATA: &[u8; 8] = b"DWBACKUP";
const KEYS: &[u8; 8] = b"DWKEYBAK";
const FORMAT: u16 = 1;
const LABEL: &str = "backup-data";
/// An X25519 key, public or private, and an encapsulated one.
const KEY: usize = 32;
const HEADER: usize = 8 + 2 + 8;

fn seal_data(
    root: &RootKey,
    revision: u64,
    rows: Vec<(Table, Vec<u8>, Row)>,
) -> Result<SecretValue, BackupError> {
    let rows = rows.into_iter().filter(|(table, ..)| *table != Table::Tokens);
    let mut inside = Vec::new();
    for (table, key, row) in rows {
        for part in [table.as_str().as_bytes(), &key, &row.value] {
            parcel::put(&mut inside, part).ok_or(BackupError::TooLarge)?;
        }
    }
    let mut out = header(DATA, revision);
    let sealed = root.key_for(LABEL).seal(LABEL, &out, &inside);
    drop(inside);
    out.extend_from_slice(&sealed);
    Ok(SecretValue::new(out))
}

fn header(kind: &[u8; 8], revision: u64) -> Vec<u8> {
    [kind.as_slice(), &FORMAT.to_be_bytes(), &revision.to_be_bytes()].concat()
}

/// Takes a header off the front: it, its revision, and what follows.
fn split_header<'a>(
    bytes: &'a [u8],
    kind: &[u8; 8],
    word: &'static str,
) -> Result<(&'a [u8], u64, &'a [u8]), BackupError> {
    let wrong = || BackupError::Kind(word);
    let (header, inside) = bytes.split_at_checked(HEADER).ok_or_else(wrong)?;
    let (magic, rest) = header.split_first_chunk::<8>().ok_or_else(wrong)?;
    let (format, rest) = rest.split_first_chunk::<2>().ok_or_else(wrong)?;
    let revision = rest.first_chunk::<8>().ok_or_else(wrong)?;
    if magic != kind {
        return Err(wrong());
    }
    match u16::from_be_bytes(*format) {
        FORMAT => Ok((header, u64::from_be_bytes(*revision), inside)),
        newer if newer > FORMAT => Err(BackupError::Newer(newer)),
        _ => Err(wrong()),
    }
}

impl Vault {
    /// A backup of the sealed data: one consistent snapshot, without keys. Bounded by
    /// [`limits::SNAPSHOT_MAX`](crate::model::limits::SNAPSHOT_MAX).
    ///
    /// # Errors
    /// When the store does not answer or holds more.
    pub(super) async fn backup_data(&self) -> Result<SecretValue, VaultError> {
        let (revision, rows) = self.store.snapshot().await?;
        let root = Arc::clone(&self.root);
        // A quarter of a GiB is packed and sealed: not where requests are answered.
        let sealed = tokio::task::spawn_blocking(move || seal_data(&root, revision, rows));
        Ok(sealed.await.map_err(|_| VaultError::Stopping)??)
    }

    /// The one turn to make a backup; whoever has it keeps it beside the backup's bytes.
    ///
    /// # Errors
    /// When another backup is under way.
    pub(super) fn backup_turn(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.backups).try_acquire_owned().map_err(|_| Failure {
            code: Code::Unavailable,
            reason: Reason::Limited,
            hint: Some("another backup is being made or sent; ask again when it is done".into()),
        })
    }

    /// A backup of the keys for one recipient: the root key, every namespace's key file, and
    /// `extra` (what was sealed beside them, by name).
    ///
    /// # Errors
    /// When the recipient is no public key, or a key file can't be read.
    pub(super) async fn backup_keys(
        &self,
        recipient_b64: &str,
        extra: Vec<(String, SecretValue)>,
    ) -> Result<SecretValue, VaultError> {
        let recipient = recipient(recipient_b64)?;
        let mut files = Vec::new();
        for row in namespaces(self.store.as_ref(), &self.rows).await? {
            files.push(self.keyring.export(row.uuid)?);
        }
        let revision = self.store.revision().await?;
        let inside = pack_keys(&self.root, &files, &extra)?;
        let mut out = header(KEYS, revision);
        let (encapsulated, sealed) =
            SUITE.seal(&out, &[], &inside, &recipient).map_err(|_| BackupError::Recipient)?;
        out.extend_from_slice(&encapsulated.0);
        out.extend_from_slice(&sealed);
        Ok(SecretValue::new(out))
    }
}

impl Vault {
    /// The sealed files of other rooms, by their file names.
    pub(super) fn sealed_beside(&self) -> Result<Vec<(String, SecretValue)>, VaultError> {
        let mut all = Vec::new();
        for path in &self.beside {
            let bytes = std::fs::read(path)
                .map_err(|source| VaultError::Beside { path: path.clone(), source })?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.push((name, SecretValue::new(bytes)));
        }
        Ok(all)
    }
}

fn recipient(base64: &str) -> Result<HpkePublicKey, BackupError> {
    let bytes = BASE64.decode(base64.trim()).map_err(|_| BackupError::Recipient)?;
    if bytes.len() == KEY { Ok(HpkePublicKey(bytes)) } else { Err(BackupError::Recipient) }
}

type KeyFiles = [(String, Zeroizing<Vec<u8>>)];

fn pack_keys(
    root: &RootKey,
    files: &KeyFiles,
    extra: &[(String, SecretValue)],
) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let of = |name: &str, bytes: &[u8]| 3 * LENGTH + 1 + name.len() + bytes.len();
    let length = LENGTH
        + KEY
        + files.iter().map(|(name, bytes)| of(name, bytes)).sum::<usize>()
        + extra.iter().map(|(name, value)| of(name, value.expose())).sum::<usize>();
    // All the room from the start: a growing vector would leave keys behind.
    let mut out = Zeroizing::new(Vec::with_capacity(length));
    parcel::put(&mut out, root.bytes()).ok_or(BackupError::TooLarge)?;
    let files = files.iter().map(|(name, bytes)| (b"f", name, bytes.as_slice()));
    let extra = extra.iter().map(|(name, value)| (b"x", name, value.expose()));
    for (kind, name, bytes) in files.chain(extra) {
        for part in [kind.as_slice(), name.as_bytes(), bytes] {
            parcel::put(&mut out, part).ok_or(BackupError::TooLarge)?;
        }
    }
    Ok(out)
}

/// What a backup of the keys held.
pub struct RestoredKeys {
    /// The root key; [`RootKey::seal`] gives it a seal again.
    pub root: RootKey,
    /// What was sealed beside it, by name.
    pub extra: Vec<(String, SecretValue)>,
    /// The store's revision when the backup was made.
    pub revision: u64,
    files: Vec<(String, Zeroizing<Vec<u8>>)>,
}

impl std::fmt::Debug for RestoredKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RestoredKeys(…)")
    }
}

impl RestoredKeys {
    /// Writes the namespaces' key files into `keys_dir` (made when it is not there), over nothing.
    ///
    /// # Errors
    /// When a file is there already or can't be written.
    pub fn write_keyring(&self, keys_dir: &Path) -> Result<(), BackupError> {
        for (name, bytes) in &self.files {
            keyring::import(keys_dir, name, bytes)?;
        }
        Ok(())
    }
}

/// A new recipient: its public key (base64), to be given to `backup_keys`, and its private key
/// (base64), to be kept away from the broker.
///
/// # Errors
/// When no key can be made.
pub fn generate_recipient() -> Result<(String, SecretValue), BackupError> {
    let (public, private) = SUITE.generate_key_pair().map_err(|_| BackupError::PrivateKey)?;
    let mut text = Zeroizing::new(vec![0; 4 * KEY.div_ceil(3)]);
    let length = BASE64.encode_slice(private.secret_bytes(), &mut text);
    text.truncate(length.map_err(|_| BackupError::PrivateKey)?);
    Ok((BASE64.encode(&public.0), SecretValue::from(text)))
}

/// Opens a backup of the keys with the recipient's private key (base64, as
/// [`generate_recipient`] gave it).
///
/// # Errors
/// When it was made for another recipient, is damaged, or is of a later release.
pub fn restore_keys(bytes: &[u8], private_key: &SecretValue) -> Result<RestoredKeys, BackupError> {
    let (header, revision, rest) = split_header(bytes, KEYS, "backup of keys")?;
    let (encapsulated, sealed) = rest.split_at_checked(KEY).ok_or(BackupError::Sealed)?;
    let private = private_key.expose().trim_ascii();
    let mut key = vec![0; 2 * KEY];
    let length = BASE64.decode_slice(private, &mut key).map_err(|_| BackupError::PrivateKey)?;
    if length != KEY {
        return Err(BackupError::PrivateKey);
    }
    key.truncate(KEY);
    let private = HpkePrivateKey::from(key); // wiped when dropped
    let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
    let inside = SUITE
        .open(&encapsulated, header, &[], sealed, &private)
        .map(Zeroizing::new)
        .map_err(|_| BackupError::Sealed)?;
    unpack_keys(&inside, revision).ok_or(BackupError::Inside)
}

fn unpack_keys(mut inside: &[u8], revision: u64) -> Option<RestoredKeys> {
    let root = RootKey::from_bytes(parcel::take(&mut inside)?.try_into().ok()?);
    let (mut files, mut extra) = (Vec::new(), Vec::new());
    while !inside.is_empty() {
        let kind = parcel::take(&mut inside)?;
        let name = str::from_utf8(parcel::take(&mut inside)?).ok()?.to_owned();
        let bytes = Zeroizing::new(parcel::take(&mut inside)?.to_vec());
        match kind {
            b"f" => files.push((name, bytes)),
            b"x" => extra.push((name, SecretValue::from(bytes))),
            _ => return None,
        }
    }
    Some(RestoredKeys { root, extra, revision, files })
}

/// The store's revision at which a data backup was made, from its header, which is believed only
/// once [`restore_data`] has opened it. A new store begins there:
/// [`RedbStore::create_at`](crate::store::RedbStore::create_at).
///
/// # Errors
/// When it is no data backup, or one of a later release.
pub fn backup_revision(bytes: &[u8]) -> Result<u64, BackupError> {
    split_header(bytes, DATA, "data backup").map(|(_, revision, _)| revision)
}

/// Puts a data backup into an empty store, in one commit; join tokens stay behind. Gives the
/// revision at which the backup was made.
///
/// # Errors
/// When it does not open under this root key, the store holds something, or the commit fails;
/// nothing is then written.
pub async fn restore_data(
    bytes: &[u8],
    root: &RootKey,
    store: &dyn Store,
) -> Result<u64, BackupError> {
    let (header, revision, sealed) = split_header(bytes, DATA, "data backup")?;
    for table in Table::ALL {
        if !store.scan(*table, b"", None, 1).await?.is_empty() {
            return Err(BackupError::NotEmpty);
        }
    }
    let inside =
        root.key_for(LABEL).open(LABEL, header, sealed).map_err(|_| BackupError::Sealed)?;
    let writes = unpack_data(&inside).ok_or(BackupError::Inside)?;
    drop(inside);
    store.commit(Txn { writes, ..Txn::default() }).await?;
    Ok(revision)
}

fn unpack_data(mut inside: &[u8]) -> Option<Vec<Write>> {
    let mut writes = Vec::new();
    while !inside.is_empty() {
        let table = Table::parse(str::from_utf8(parcel::take(&mut inside)?).ok()?)?;
        let key = parcel::take(&mut inside)?.to_vec();
        let value = Some(parcel::take(&mut inside)?.to_vec());
        if table != Table::Tokens {
            writes.push(Write { table, key, value });
        }
    }
    Some(writes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::sample::*;
    use super::*;
    use crate::model::{Answer, Ask, Released};
    use crate::store::RedbStore;

    async fn filled() -> Sample {
        let it = Sample::on_disk().await;
        it.put(write("pay/x"), b"CANARY-one").await.unwrap();
        it.put(write("hr/y"), b"CANARY-two").await.unwrap();
        let row = |table, key: &[u8]| Write {
            table,
            key: key.to_vec(),
            value: Some(b"a row of another room".to_vec()),
        };
        let writes = vec![row(Table::Tokens, b"used up since"), row(Table::Entries, b"entry")];
        it.store.commit(Txn { writes, ..Txn::default() }).await.unwrap();
        it
    }

    fn holds(bytes: &[u8], what: &[u8]) -> bool {
        bytes.windows(what.len()).any(|window| window == what)
    }

    #[tokio::test]
    async fn both_backups_together_bring_everything_back() {
        let it = filled().await;
        let data = it.vault.backup_data().await.unwrap();
        let (public, private) = generate_recipient().unwrap();
        let extra = vec![("ca.key".to_owned(), SecretValue::new(b"sealed".to_vec()))];
        let keys = it.vault.backup_keys(&public, extra).await.unwrap();
        drop(it);

        let dir = Arc::new(tempfile::tempdir().unwrap());
        let restored = restore_keys(keys.expose(), &private).unwrap();
        restored.write_keyring(&dir.path().join("keys")).unwrap();
        assert_eq!(restored.extra.len(), 1);
        assert_eq!(restored.extra[0].0, "ca.key");
        assert_eq!(restored.extra[0].1.expose(), b"sealed");
        let revision = backup_revision(data.expose()).unwrap();
        assert_eq!(revision, restored.revision);
        let store = RedbStore::create_at(&dir.path().join("store"), revision).unwrap();
        let store = Arc::new(store);
        let back = restore_data(data.expose(), &restored.root, store.as_ref()).await.unwrap();
        assert_eq!(back, revision);
        assert!(store.revision().await.unwrap() > revision, "revisions never go back");
        let entry = store.get(Table::Entries, b"entry").await.unwrap().unwrap();
        assert_eq!(entry.value, b"a row of another room");
        assert_eq!(store.get(Table::Tokens, b"used up since").await.unwrap(), None);

        let it = Sample::over(store, dir).await;
        assert_eq!(it.value(read("pay/x")).await, Ok((1, b"CANARY-one".to_vec())));
        assert_eq!(it.value(read("hr/y")).await, Ok((1, b"CANARY-two".to_vec())));
        assert_eq!(it.put(write("pay/x"), b"next").await, Ok(2));
    }

    #[tokio::test]
    async fn one_backup_at_a_time_until_its_bytes_are_gone() {
        let it = filled().await;
        let first = it.ask(Ask::BackupData {}, b"").await.unwrap();
        let (recipient, _) = generate_recipient().unwrap();
        for second in [Ask::BackupData {}, Ask::BackupKeys { recipient }] {
            let failure = it.ask(second, b"").await.unwrap_err();
            assert_eq!(failure.code, Code::Unavailable);
            assert!(failure.hint.is_some_and(|hint| hint.contains("another backup")));
        }
        assert_eq!(it.value(read("pay/x")).await, Ok((1, b"CANARY-one".to_vec())));
        let Released { answer: Answer::File { .. }, body } = first else { panic!("no file") };
        assert!(it.ask(Ask::BackupData {}, b"").await.is_err(), "the bytes are still here");
        drop(body);
        assert!(it.ask(Ask::BackupData {}, b"").await.is_ok());
    }

    #[tokio::test]
    async fn neither_backup_shows_what_it_holds() {
        let it = filled().await;
        let data = it.vault.backup_data().await.unwrap();
        let (public, private) = generate_recipient().unwrap();
        let keys = it.vault.backup_keys(&public, Vec::new()).await.unwrap();
        for what in [b"CANARY".as_slice(), b"pay/x", b"another room", ROOT.as_slice()] {
            assert!(!holds(data.expose(), what) && !holds(keys.expose(), what));
        }
        // The data, opened: names and ciphertexts, no key of a namespace.
        let (header, _, sealed) = split_header(data.expose(), DATA, "").unwrap();
        let inside = root().key_for(LABEL).open(LABEL, header, sealed).unwrap();
        let opened = restore_keys(keys.expose(), &private).unwrap();
        assert!(holds(&inside, b"pay/x") && !holds(&inside, b"CANARY"));
        for (_, file) in &opened.files {
            assert!(!holds(&inside, &file[64..128]));
        }
        assert_eq!(opened.files.len(), 2);
    }

    #[tokio::test]
    async fn every_changed_byte_of_a_backup_is_refused_and_nothing_is_written() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"value").await.unwrap();
        let data = it.vault.backup_data().await.unwrap();
        let (public, private) = generate_recipient().unwrap();
        let keys = it.vault.backup_keys(&public, Vec::new()).await.unwrap();
        let store = RedbStore::over_bytes(&[], false).unwrap();
        let root = root();
        for at in 0..data.len() {
            let mut bad = data.expose().to_vec();
            bad[at] ^= 1;
            assert!(restore_data(&bad, &root, &store).await.is_err(), "byte {at}");
            assert!(restore_data(&data.expose()[..at], &root, &store).await.is_err());
        }
        assert_eq!(store.revision().await.unwrap(), 0);
        restore_data(data.expose(), &root, &store).await.unwrap();
        for at in 0..keys.len() {
            let mut bad = keys.expose().to_vec();
            bad[at] ^= 0x80;
            assert!(restore_keys(&bad, &private).is_err(), "byte {at}");
            assert!(restore_keys(&keys.expose()[..at], &private).is_err());
        }
        assert!(restore_keys(keys.expose(), &private).is_ok());
    }

    #[tokio::test]
    async fn a_backup_goes_to_its_recipient_only() {
        let it = filled().await;
        let (public, private) = generate_recipient().unwrap();
        let (_, other) = generate_recipient().unwrap();
        let keys = it.vault.backup_keys(&format!(" {public}\n"), Vec::new()).await.unwrap();
        assert!(restore_keys(keys.expose(), &private).is_ok());
        let refused = restore_keys(keys.expose(), &other).unwrap_err();
        assert!(matches!(refused, BackupError::Sealed), "{refused}");
        for bad in ["", "AAAA", "no base64!", &BASE64.encode([0; 32])] {
            let error = it.vault.backup_keys(bad, Vec::new()).await.unwrap_err();
            assert!(matches!(error, VaultError::Backup(BackupError::Recipient)), "{bad}: {error}");
        }
        for bad in ["", "AAAA", "no base64!"] {
            let bad = SecretValue::new(bad.as_bytes().to_vec());
            let error = restore_keys(keys.expose(), &bad).unwrap_err();
            assert!(matches!(error, BackupError::PrivateKey), "{error}");
        }
    }

    #[tokio::test]
    async fn kinds_and_formats_are_told_apart_by_name() {
        let it = filled().await;
        let data = it.vault.backup_data().await.unwrap();
        let (public, private) = generate_recipient().unwrap();
        let keys = it.vault.backup_keys(&public, Vec::new()).await.unwrap();
        let error = backup_revision(keys.expose()).unwrap_err();
        assert_eq!(error.to_string(), "this is no data backup");
        let error = restore_keys(data.expose(), &private).unwrap_err();
        assert_eq!(error.to_string(), "this is no backup of keys");
        let mut newer = data.expose().to_vec();
        newer[9] = 2;
        assert!(matches!(backup_revision(&newer), Err(BackupError::Newer(2))));
        assert!(matches!(backup_revision(b"DWBACKUP"), Err(BackupError::Kind(_))));
    }

    #[tokio::test]
    async fn a_restore_goes_into_an_empty_store_under_the_right_root_only() {
        let it = filled().await;
        let data = it.vault.backup_data().await.unwrap();
        let before = it.revision().await;
        let full = restore_data(data.expose(), &root(), it.store.as_ref()).await.unwrap_err();
        assert!(matches!(full, BackupError::NotEmpty), "{full}");
        assert_eq!(it.revision().await, before);
        let store = RedbStore::over_bytes(&[], false).unwrap();
        let foreign = RootKey::from_bytes(&[1; 32]);
        let error = restore_data(data.expose(), &foreign, &store).await.unwrap_err();
        assert!(matches!(error, BackupError::Sealed), "{error}");
        assert_eq!(store.revision().await.unwrap(), 0);
    }
}
