//! What the vault is made of: the store, the keyring, the rows' MAC, the root key; how it opens,
//! and how a namespace comes to be.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::error::{VaultError, changed};
use super::file::FileError;
use super::keyring::{FIRST_EPOCH, Keyring, KeyringError};
use super::recent::Recent;
use super::rows::{NAMESPACES, NamespaceRow, Rows, Trust, namespace_key};
use super::seal::RootKey;
use crate::model::{Ask, Failure, Moment, Namespace, SecretName, Target};
use crate::store::{Expect, Store, StoreError, Table, Txn, Write};

/// Secrets and their keys, over a store.
pub struct Vault {
    pub(super) store: Arc<dyn Store>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) rows: Rows,
    pub(super) root: Arc<RootKey>,
    /// Changes take turns, so that on one machine none fails on another. The expectations of each
    /// commit hold where several brokers share a store.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Secrets that were read lately.
    pub(super) recent: Recent,
    /// One backup at a time, until its last byte is sent: each is as large as the store.
    pub(super) backups: Arc<tokio::sync::Semaphore>,
    /// Sealed files of other rooms, which a backup of the keys takes along.
    pub(super) beside: Vec<PathBuf>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(…)")
    }
}

/// What a grant says, taken apart; the only way to what is below.
pub(super) struct Act<'a> {
    pub(super) ask: &'a Ask,
    pub(super) target: &'a Target,
    /// Index of the record that the grant stands on.
    pub(super) index: u64,
    pub(super) now: Moment,
    pub(super) may_list: &'a (dyn Fn(&SecretName) -> bool + Send + Sync),
}

impl Vault {
    /// Opens the vault over a store. `keys_dir` holds the namespaces' keys; it is made when it is
    /// not there and the store has no namespace yet. A namespace whose key is bad is reported and
    /// does not keep the others from being served.
    ///
    /// # Errors
    /// When the store does not answer, a namespace's row is damaged, or the keys' directory is gone
    /// or open to others.
    pub async fn open(
        store: Arc<dyn Store>,
        keys_dir: &Path,
        root: Arc<RootKey>,
    ) -> Result<Self, VaultError> {
        let rows = Rows::new(&root);
        let namespaces = namespaces(store.as_ref(), &rows).await?;
        if !namespaces.is_empty() && !keys_dir.is_dir() {
            let gone = FileError::Absent(keys_dir.to_owned());
            return Err(KeyringError::File(gone).into());
        }
        let keyring = Arc::new(Keyring::open(keys_dir, &root)?);
        for row in &namespaces {
            if let Err(error) = keyring.key(row.uuid, row.epoch) {
                let namespace = row.name.as_str();
                tracing::error!(namespace, %error, "the key of a namespace can't be had");
            }
        }
        let (turn, beside) = (tokio::sync::Mutex::default(), Vec::new());
        let (recent, backups) = (Recent::default(), Arc::new(tokio::sync::Semaphore::new(1)));
        Ok(Self { store, keyring, rows, root, turn, recent, backups, beside })
    }

    /// Names the sealed files of other rooms that a backup of the keys takes along.
    #[must_use]
    pub fn with_beside(mut self, files: Vec<PathBuf>) -> Self {
        self.beside = files;
        self
    }

    /// The namespace's row, made with its first key when the namespace is new. Only while holding
    /// the turn.
    pub(super) async fn namespace(
        &self,
        name: &Namespace,
        index: u64,
    ) -> Result<NamespaceRow, Failure> {
        let key = namespace_key(name);
        let found = self.row::<NamespaceRow>(Table::Names, &key, Trust::Checked, name).await?;
        let row = match found {
            Some(found) => found.row,
            None => self.found_namespace(name, key, index).await?,
        };
        if row.name != *name {
            let hint = "a namespace exists whose name differs only in case; use that one";
            return Err(Failure::conflict(hint));
        }
        Ok(row)
    }

    /// The key is durable before the row that names it; a row without key can't exist.
    async fn found_namespace(
        &self,
        name: &Namespace,
        key: Vec<u8>,
        index: u64,
    ) -> Result<NamespaceRow, Failure> {
        let row = NamespaceRow { name: name.clone(), uuid: Uuid::new_v4(), epoch: FIRST_EPOCH };
        let value = self.sealed_row(Table::Names, &key, &row, name)?;
        let (keyring, uuid) = (Arc::clone(&self.keyring), row.uuid);
        tokio::task::spawn_blocking(move || keyring.create(uuid))
            .await
            .map_err(|_| VaultError::Stopping)?
            .map_err(VaultError::Keyring)?;
        let txn = Txn {
            expects: vec![Expect { table: Table::Names, key: key.clone(), revision: None }],
            writes: vec![Write { table: Table::Names, key, value: Some(value) }],
            under: Some(index),
        };
        match self.store.commit(txn).await {
            Ok(_) => Ok(row),
            Err(error @ (StoreError::Conflict | StoreError::Full)) => {
                self.keyring.abandon(uuid); // surely nothing was written that needs it
                match error {
                    StoreError::Conflict => Err(changed()),
                    _ => Err(VaultError::Store(error).into()),
                }
            }
            Err(error) => Err(VaultError::Store(error).into()),
        }
    }
}

/// Every namespace's row, checked.
pub(super) async fn namespaces(
    store: &dyn Store,
    rows: &Rows,
) -> Result<Vec<NamespaceRow>, VaultError> {
    const PAGE: usize = 256;
    let mut all = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.scan(Table::Names, NAMESPACES, after.as_deref(), PAGE).await?;
        let more = page.len() == PAGE;
        for (key, row) in page {
            let open = rows.open(Table::Names, &key, &row.value, Trust::Checked);
            let object =
                || format!("namespace {}", String::from_utf8_lossy(&key).trim_matches('\0'));
            all.push(open.map_err(|source| VaultError::Row { object: object(), source })?);
            after = Some(key);
        }
        if !more {
            return Ok(all);
        }
    }
}
