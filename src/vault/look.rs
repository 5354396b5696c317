//! What stands in the store about the secret that a request names, and which target that is.
//!
//! The same two functions serve the locating before the decision and the second look before
//! anything is done, so that «still the same» means the same.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::base::{Act, Vault};
use super::error::{VaultError, changed};
use super::rows::{HeadRow, NameRow, SecretRow, Trust, head_key, name_key};
use crate::model::{Ask, Digest, Failure, SecretName, Target};
use crate::store::Table;

/// A row with the revision that guards its next change.
pub(super) struct Found<T> {
    pub(super) row: T,
    pub(super) revision: u64,
}

/// What stands under a name.
pub(super) struct Seen {
    /// Another secret stands here, whose name differs in case.
    pub(super) other_case: bool,
    /// The secret.
    pub(super) secret: Option<Found<SecretRow>>,
    /// The version that the request means, if it means one.
    pub(super) head: Option<Found<HeadRow>>,
}

/// The secret that a request names, if it names one.
fn name_of(ask: &Ask) -> Option<&SecretName> {
    match ask {
        Ask::Read { name, .. }
        | Ask::Write { name, .. }
        | Ask::Versions { name }
        | Ask::Activate { name, .. }
        | Ask::Delete { name, .. }
        | Ask::Undelete { name, .. }
        | Ask::Label { name, .. } => Some(name),
        _ => None,
    }
}

/// The version that a request means, of a secret as it stands.
fn version_of(ask: &Ask, secret: &SecretRow) -> Option<u64> {
    match ask {
        Ask::Read { version, .. } => version.or(secret.active),
        Ask::Activate { version, .. } => Some(*version),
        Ask::Delete { version, .. } | Ask::Undelete { version, .. } => *version,
        _ => None,
    }
}

/// The target of a request. What a caller could not use is absent: a deleted secret or version,
/// except to those who bring it back, and to a writer, who is told.
pub(super) fn target(ask: &Ask, seen: Option<&Seen>) -> Target {
    let Some(seen) = seen else { return Target::Itself };
    let Some(secret) = seen.secret.as_ref().map(|found| &found.row) else { return Target::Absent };
    let head = seen.head.as_ref().map(|found| &found.row);
    let whole = |usable: bool| match usable {
        true => {
            Target::Secret { uuid: secret.uuid, version: secret.newest, digest: Digest([0; 32]) }
        }
        false => Target::Absent,
    };
    let one = |usable: bool| match head {
        Some(head) if usable => {
            Target::Secret { uuid: secret.uuid, version: head.version, digest: head.digest }
        }
        _ => Target::Absent,
    };
    let living = head.is_some_and(|head| !head.deleted);
    match ask {
        Ask::Write { .. } | Ask::Versions { .. } => whole(true),
        Ask::Label { .. } | Ask::Delete { version: None, .. } => whole(!secret.deleted),
        Ask::Undelete { version: None, .. } => whole(true),
        Ask::Read { .. } | Ask::Delete { .. } => one(!secret.deleted && living),
        Ask::Activate { .. } => one(!secret.deleted),
        Ask::Undelete { .. } => one(true),
        _ => Target::Itself,
    }
}

/// Whether the granted target still is what the request means, and is something at all. Nothing is
/// released or changed before this has said so.
///
/// # Errors
/// `D902` when it is another one now; «not found» when nothing was granted on.
pub(super) fn still(act: &Act<'_>, seen: Option<&Seen>) -> Result<(), Failure> {
    if target(act.ask, seen) != *act.target {
        return Err(changed());
    }
    match act.target {
        Target::Secret { .. } => Ok(()),
        _ => Err(Failure::absent("there is no such secret or version")),
    }
}

impl Vault {
    /// Reads one row.
    pub(super) async fn row<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &[u8],
        trust: Trust,
        object: &(impl fmt::Display + Sync),
    ) -> Result<Option<Found<T>>, VaultError> {
        let Some(found) = self.store.get(table, key).await? else { return Ok(None) };
        let row = self.rows.open(table, key, &found.value, trust);
        let row = row.map_err(|source| VaultError::Row { object: object.to_string(), source })?;
        Ok(Some(Found { row, revision: found.revision }))
    }

    /// The bytes of one row.
    pub(super) fn sealed_row<T: Serialize>(
        &self,
        table: Table,
        key: &[u8],
        row: &T,
        object: &impl fmt::Display,
    ) -> Result<Vec<u8>, VaultError> {
        let sealed = self.rows.seal(table, key, row);
        sealed.map_err(|source| VaultError::Row { object: object.to_string(), source })
    }

    /// What stands under the name of this request; `None` when it names no single secret. The rows
    /// are read from the name downwards; each is written no later than the one above it and never
    /// deleted, so a commit between two reads can't make them look torn.
    pub(super) async fn look(&self, ask: &Ask, trust: Trust) -> Result<Option<Seen>, VaultError> {
        let Some(name) = name_of(ask) else { return Ok(None) };
        let mut seen = self.secret(name, trust).await?;
        let Some(secret) = seen.secret.as_ref().map(|found| &found.row) else {
            return Ok(Some(seen));
        };
        if let Some(version) = version_of(ask, secret) {
            let key = head_key(secret.uuid, version);
            let head = self.row::<HeadRow>(Table::Versions, &key, trust, name).await?;
            // A version newer than the secret's row was written after that look: not there yet.
            let head = head.filter(|_| version <= secret.newest);
            let torn = match &head {
                Some(found) => found.row.version != version,
                None => (1..=secret.newest).contains(&version),
            };
            if torn {
                return Err(VaultError::Torn(format!("version {version} of {name}")));
            }
            seen.head = head;
        }
        Ok(Some(seen))
    }

    /// What stands under one name, without any version.
    pub(super) async fn secret(&self, name: &SecretName, trust: Trust) -> Result<Seen, VaultError> {
        let nothing = |other_case| Seen { other_case, secret: None, head: None };
        let key = name_key(name);
        let Some(entry) = self.row::<NameRow>(Table::Names, &key, trust, name).await? else {
            return Ok(nothing(false));
        };
        if entry.row.name != *name {
            return Ok(nothing(true));
        }
        let uuid = entry.row.uuid;
        let secret = self.row::<SecretRow>(Table::Secrets, uuid.as_bytes(), trust, name).await?;
        let secret = secret.ok_or_else(|| VaultError::Torn(name.to_string()))?;
        let fits = secret.row.uuid == uuid
            && secret.row.name == *name
            && secret.row.active.is_none_or(|active| active <= secret.row.newest);
        if !fits {
            return Err(VaultError::Torn(name.to_string()));
        }
        Ok(Seen { other_case: false, secret: Some(secret), head: None })
    }
}
