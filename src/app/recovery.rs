//! What is done on a stopped broker's host: a new operator, and bringing a backup back.

use std::path::{Path, PathBuf};

use super::config::{BrokerConfig, SealConfig};
use super::files::{FileError, private_dir, write_private};
use super::init::write_policies;
use super::layout::Layout;
use super::opening::{BrokerStart, StartError};
use crate::authority::AuthorityError;
use crate::decision_log::{Note, RecordError};
use crate::model::SecretValue;
use crate::policy::BundleFiles;
use crate::store::{RedbStore, Store as _, StoreError, Table};
use crate::vault::{
    BackupError, KeyFile, backup_revision, generate_recipient, restore_data, restore_keys,
};

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The broker's directory does not open.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No token.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It could not be recorded.
    #[error("it could not be recorded: {0}")]
    Record(#[from] RecordError),
    /// The backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The new store.
    #[error("the new store can't be made: {0}")]
    Store(#[from] StoreError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file can't be read.
    #[error("can't read `{path}`")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The target is there.
    #[error("`{0}` is there already; restore into a new directory")]
    There(PathBuf),
    /// The backup of the keys lacks a part.
    #[error("the backup of the keys lacks `{0}`")]
    Lacks(&'static str),
}

/// A new operator's token, with the seal opened on the stopped broker's host. Leaves a record.
///
/// # Errors
/// What stood in the way; no token exists then.
pub async fn recover_operator(
    start: BrokerStart,
    name: &str,
) -> Result<SecretValue, RecoveryError> {
    let opened = start.open().await?;
    let token = async {
        let (authority, _) = start.open_authority(&opened).await?;
        let what = "operator recovered on the broker's host";
        opened.log.note(Note::Alarm { what, detail: name.to_owned() }).await?;
        Ok(authority.operator_token(name).await?)
    };
    let token = token.await;
    opened.close().await;
    token
}

/// A recipient's key pair for backups of keys: the public key (base64) and the private one.
///
/// # Errors
/// When no key can be made.
pub fn new_recipient() -> Result<(String, SecretValue), BackupError> {
    generate_recipient()
}

/// What a restore is made of.
#[derive(Debug)]
pub struct Restore<'a> {
    /// The backup of the data.
    pub data: &'a Path,
    /// The backup of the keys.
    pub keys: &'a Path,
    /// The recipient's private key.
    pub recipient_key: &'a SecretValue,
    /// The decision log's directory, as it was kept. Revocations newer than the backup stand in it.
    pub log: &'a Path,
    /// The new broker's directory.
    pub to: &'a Path,
}

/// Makes a broker's directory out of the two backups and the kept log. The new seal is a key file;
/// join tokens are void; revocations out of the log are put in force when it starts.
///
/// # Errors
/// What stood in the way; the target directory is not there then.
pub async fn restore(parts: &Restore<'_>) -> Result<(), RecoveryError> {
    if parts.to.exists() {
        return Err(RecoveryError::There(parts.to.to_owned()));
    }
    let mut name = parts.to.as_os_str().to_owned();
    name.push(format!(".building-{}", std::process::id()));
    let building = PathBuf::from(name);
    private_dir(&building)?;
    let made = build(parts, &Layout::new(&building)).await;
    if let Err(error) = made {
        let _ = std::fs::remove_dir_all(&building);
        return Err(error);
    }
    std::fs::rename(&building, parts.to)
        .map_err(|source| FileError { path: parts.to.to_owned(), source })?;
    Ok(())
}

async fn build(parts: &Restore<'_>, layout: &Layout) -> Result<(), RecoveryError> {
    let (data, keys) = (read(parts.data)?, read(parts.keys)?);
    let restored = restore_keys(&keys, parts.recipient_key)?;
    let seal = KeyFile::create(&layout.seal_key()).map_err(StartError::Seal)?;
    restored.root.seal(layout.root(), &seal).map_err(StartError::Seal)?;
    restored.write_keyring(&layout.keys())?;
    for (path, name) in [
        (layout.ca(), "ca.sealed"),
        (layout.log_key(), "log.sealed"),
        (layout.log_vkey(), "log.vkey"),
        (layout.config(), "broker.toml"),
    ] {
        let held = restored.extra.iter().find(|(extra, _)| extra == name);
        let (_, bytes) = held.ok_or(RecoveryError::Lacks(name))?;
        write_private(&path, bytes.expose())?;
    }
    reseal_config(layout)?;
    let store = RedbStore::create_at(&layout.store(), backup_revision(&data)?)?;
    restore_data(&data, &restored.root, &store).await?;
    for (_, row) in store.scan(Table::Policies, &[], None, 64).await?.iter().rev().take(1) {
        if let Ok(files) = BundleFiles::from_json(&row.value) {
            write_policies(&layout.policies(), &files)?;
        }
    }
    copy_dir(parts.log, &layout.log(), 0)
}

/// The restored broker is sealed by the new key file, whatever the old one was.
fn reseal_config(layout: &Layout) -> Result<(), RecoveryError> {
    let path = layout.config();
    let text = std::fs::read_to_string(&path)
        .map_err(|source| RecoveryError::Read { path: path.clone(), source })?;
    let mut config = BrokerConfig::parse("broker.toml", &text)
        .map_err(|_| RecoveryError::Lacks("a sound broker.toml"))?;
    config.seal = SealConfig::KeyFile("seal.key".into());
    let _ = std::fs::remove_file(&path);
    Ok(write_private(&path, config.render().as_bytes())?)
}

fn read(path: &Path) -> Result<Vec<u8>, RecoveryError> {
    std::fs::read(path).map_err(|source| RecoveryError::Read { path: path.to_owned(), source })
}

/// Copies plain files and directories; anything else in a log's directory is not of the log.
fn copy_dir(from: &Path, to: &Path, depth: usize) -> Result<(), RecoveryError> {
    private_dir(to)?;
    let fault = |source| RecoveryError::Read { path: from.to_owned(), source };
    for entry in std::fs::read_dir(from).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let (kind, target) = (entry.file_type().map_err(fault)?, to.join(entry.file_name()));
        if kind.is_dir() && depth < 8 {
            copy_dir(&entry.path(), &target, depth + 1)?;
        } else if kind.is_file() {
            write_private(&target, &read(&entry.path())?)?;
        }
    }
    Ok(())
}
