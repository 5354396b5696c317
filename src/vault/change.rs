//! What is changed: versions written, activated, hidden and brought back; labels.
//!
//! Every change is one commit that rests on the grant's record and expects each row that it was
//! planned on to stand where it stood. Version numbers are never reused; no value is ever written
//! again. Deleting the active version leaves the secret without one: readers who name no version
//! find nothing until another is activated, since which one to serve is a person's choice.

use uuid::Uuid;

use super::base::{Act, Vault};
use super::envelope::{self, Place};
use super::error::{VaultError, changed};
use super::look::{Found, Seen, still};
use super::rows::{Blob, HeadRow, NameRow, SecretRow, Trust, head_key, name_key, value_key};
use crate::model::limits::{VALUE_MAX, VERSIONS_MAX};
use crate::model::{Answer, Ask, Failure, Labels, Released, SecretName, SecretValue, Target};
use crate::store::{Expect, StoreError, Table, Txn, Write};

/// A planned commit.
struct Change {
    txn: Txn,
    /// The version that it writes, if it writes one.
    written: Option<u64>,
}

impl Change {
    fn under(index: u64) -> Self {
        Self { txn: Txn { under: Some(index), ..Txn::default() }, written: None }
    }

    fn expects(&mut self, table: Table, key: Vec<u8>, revision: Option<u64>) {
        self.txn.expects.push(Expect { table, key, revision });
    }

    fn put(&mut self, table: Table, key: Vec<u8>, value: Vec<u8>) {
        self.txn.writes.push(Write { table, key, value: Some(value) });
    }
}

/// The parts of `Ask::Write`.
struct NewVersion<'a> {
    name: &'a SecretName,
    cas: Option<u64>,
    labels: Option<&'a Labels>,
    staged: bool,
}

impl Vault {
    /// Plans and commits; plans once more when another broker came between.
    pub(super) async fn change(
        &self,
        act: &Act<'_>,
        name: &SecretName,
        body: &SecretValue,
    ) -> Result<Released, Failure> {
        let _turn = self.turn.lock().await;
        for _ in 0..2 {
            let seen = self.look(act.ask, Trust::Checked).await?;
            let Some(seen) = seen else { return Err(changed()) };
            let change = match act.ask {
                Ask::Write { cas, labels, staged, .. } => {
                    let labels = labels.as_ref();
                    let new = NewVersion { name, cas: *cas, labels, staged: *staged };
                    self.plan_write(act, new, seen, body).await?
                }
                _ => self.plan_state(act, name, seen)?,
            };
            let written = change.written;
            match self.store.commit(change.txn).await {
                Ok(revision) => {
                    return Ok(Released::head(match written {
                        Some(version) => Answer::Written { version, revision },
                        None => Answer::Done { revision },
                    }));
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(VaultError::Store(error).into()),
            }
        }
        Err(changed())
    }

    async fn plan_write(
        &self,
        act: &Act<'_>,
        new: NewVersion<'_>,
        seen: Seen,
        body: &SecretValue,
    ) -> Result<Change, Failure> {
        may_write(act.target, &new, &seen, body)?;
        let namespace = self.namespace(&new.name.namespace(), act.index).await?;
        let mut change = Change::under(act.index);
        let (mut secret, revision) = match seen.secret {
            Some(Found { row, revision }) => (row, Some(revision)),
            None => (self.plan_name(act, new.name, namespace.uuid, &mut change)?, None),
        };
        if secret.namespace != namespace.uuid {
            return Err(VaultError::Torn(new.name.to_string()).into());
        }
        let version = secret.newest.saturating_add(1);
        let epoch = namespace.epoch;
        let place = Place { namespace: namespace.uuid, secret: secret.uuid, version, epoch };
        let key = self.keyring.key(namespace.uuid, epoch).map_err(VaultError::Keyring)?;
        let sealed = envelope::seal(&key, place, body.expose());
        let head = HeadRow {
            version,
            deleted: false,
            created: act.now.rfc3339(),
            epoch,
            dek: Blob(sealed.dek),
            digest: sealed.digest,
        };
        change.expects(Table::Versions, head_key(secret.uuid, version), None);
        self.put_head(&mut change, new.name, secret.uuid, &head)?;
        change.put(Table::Versions, value_key(secret.uuid, version), sealed.sealed);
        secret.newest = version;
        if !new.staged {
            secret.active = Some(version);
        }
        if let Some(labels) = new.labels {
            secret.labels = labels.clone();
        }
        self.put_secret(&mut change, &secret, revision)?;
        change.written = Some(version);
        Ok(change)
    }

    /// A new secret under a name that is free.
    fn plan_name(
        &self,
        act: &Act<'_>,
        name: &SecretName,
        namespace: Uuid,
        change: &mut Change,
    ) -> Result<SecretRow, VaultError> {
        let row = NameRow { name: name.clone(), uuid: Uuid::new_v4() };
        let key = name_key(name);
        let bytes = self.sealed_row(Table::Names, &key, &row, name)?;
        change.expects(Table::Names, key.clone(), None);
        change.put(Table::Names, key, bytes);
        Ok(SecretRow {
            name: row.name,
            uuid: row.uuid,
            namespace,
            newest: 0,
            active: None,
            deleted: false,
            labels: Labels::default(),
            created: act.now.rfc3339(),
        })
    }

    fn put_secret(
        &self,
        change: &mut Change,
        secret: &SecretRow,
        revision: Option<u64>,
    ) -> Result<(), VaultError> {
        let key = secret.uuid.as_bytes().to_vec();
        let bytes = self.sealed_row(Table::Secrets, &key, secret, &secret.name)?;
        change.expects(Table::Secrets, key.clone(), revision);
        change.put(Table::Secrets, key, bytes);
        Ok(())
    }

    fn put_head(
        &self,
        change: &mut Change,
        name: &SecretName,
        secret: Uuid,
        head: &HeadRow,
    ) -> Result<(), VaultError> {
        let key = head_key(secret, head.version);
        let bytes = self.sealed_row(Table::Versions, &key, head, name)?;
        change.put(Table::Versions, key, bytes);
        Ok(())
    }

    /// Everything that changes a state and writes no value.
    fn plan_state(&self, act: &Act<'_>, name: &SecretName, seen: Seen) -> Result<Change, Failure> {
        still(act, Some(&seen))?;
        let Some(Found { row: mut secret, revision }) = seen.secret else { return Err(changed()) };
        let mut change = Change::under(act.index);
        match (act.ask, seen.head) {
            (Ask::Label { labels, .. }, _) => secret.labels = labels.clone(),
            (Ask::Delete { version: None, .. }, _) => secret.deleted = true,
            (Ask::Undelete { version: None, .. }, _) if secret.deleted => secret.deleted = false,
            (Ask::Activate { .. }, Some(head)) => {
                if head.row.deleted {
                    return Err(Failure::conflict("this version is deleted; undelete it first"));
                }
                secret.active = Some(head.row.version);
            }
            (Ask::Delete { .. }, Some(mut head)) => {
                head.row.deleted = true;
                if secret.active == Some(head.row.version) {
                    secret.active = None;
                }
                self.change_head(&mut change, name, secret.uuid, &head)?;
            }
            (Ask::Undelete { .. }, Some(_)) if secret.deleted => {
                let hint = "the whole secret is deleted; undelete it first, without a version";
                return Err(Failure::conflict(hint));
            }
            (Ask::Undelete { .. }, Some(mut head)) if head.row.deleted => {
                head.row.deleted = false;
                self.change_head(&mut change, name, secret.uuid, &head)?;
            }
            (Ask::Undelete { .. }, _) => {
                return Err(Failure::conflict("it is not deleted; there is nothing to bring back"));
            }
            _ => return Err(changed()),
        }
        self.put_secret(&mut change, &secret, Some(revision))?;
        Ok(change)
    }

    fn change_head(
        &self,
        change: &mut Change,
        name: &SecretName,
        secret: Uuid,
        head: &Found<HeadRow>,
    ) -> Result<(), VaultError> {
        let key = head_key(secret, head.row.version);
        change.expects(Table::Versions, key, Some(head.revision));
        self.put_head(change, name, secret, &head.row)
    }
}

/// Whether a version may be written on what stands there now.
fn may_write(
    granted: &Target,
    new: &NewVersion<'_>,
    seen: &Seen,
    body: &SecretValue,
) -> Result<(), Failure> {
    if body.len() > VALUE_MAX {
        return Err(Failure::too_large(format!("a value is at most {VALUE_MAX} bytes")));
    }
    if seen.other_case {
        let hint = "a secret exists whose name differs only in case; use that name";
        return Err(Failure::conflict(hint));
    }
    let secret = seen.secret.as_ref().map(|found| &found.row);
    let newest = secret.map_or(0, |secret| secret.newest);
    if let Some(cas) = new.cas.filter(|cas| *cas != newest) {
        return Err(Failure::conflict(match (cas, newest) {
            (0, _) => "the secret exists already".to_owned(),
            (_, 0) => "the secret does not exist".to_owned(),
            _ => format!("the newest version is {newest}, not {cas}"),
        }));
    }
    match (granted, secret) {
        (Target::Absent, None) => {}
        // Without check-and-set a version that came between is no reason to refuse.
        (Target::Secret { uuid, version, .. }, Some(secret))
            if *uuid == secret.uuid && (*version == newest || new.cas.is_none()) => {}
        _ => return Err(changed()),
    }
    if secret.is_some_and(|secret| secret.deleted) {
        return Err(Failure::conflict("the secret is deleted; undelete it first"));
    }
    if usize::try_from(newest).is_ok_and(|newest| newest < VERSIONS_MAX) {
        Ok(())
    } else {
        let hint = format!("a secret has at most {VERSIONS_MAX} versions; write a new secret");
        Err(Failure::too_large(hint))
    }
}
