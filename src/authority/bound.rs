//! What devices were enrolled by, where it was no join token: each thing lets in one device.
//!
//! A row says which device a certificate's key, a node or a pod is held by; it stays, also when that
//! device is revoked, until an operator releases it, so that whoever stole a machine does not come
//! back by its certificate. A token that was spent is held in the same way, until its own end. The
//! row is written in the commit that makes the device: of any number of tries, at any number of
//! brokers, one wins.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::AuthorityError;
use super::mirror::{Held, Step};
use super::records::{FORMAT, damaged};
use super::scan::rows_under;
use crate::model::{DeviceId, Digest, Moment};
use crate::store::{Store, Table};

/// What the keys of these rows begin with, beside those of the CA.
const PREFIX: &[u8] = b"bound/";
/// Rows of ended tokens that one change takes away beside its own.
const SWEPT: usize = 256;

/// One thing that a device was enrolled by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BoundRecord {
    pub v: u64,
    /// What it is: [`EnrolledBy::bound_to`](crate::model::EnrolledBy), or a token's digest.
    pub of: Digest,
    /// The device that holds it.
    pub device: DeviceId,
    /// Seconds since 1970: a token's end. None for what does not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

impl BoundRecord {
    pub(super) fn new(of: Digest, device: DeviceId, until: Option<i64>) -> Self {
        Self { v: FORMAT, of, device, until }
    }

    /// The change that writes it.
    pub(super) fn step(self) -> Step {
        Step::Bound(self.of, Some(self))
    }
}

/// All rows, shared with the mirrors before and after.
#[derive(Debug, Clone, Default)]
pub(super) struct BoundRows(Arc<HashMap<Digest, Held<BoundRecord>>>);

impl BoundRows {
    /// Reads all.
    pub(super) async fn load(store: &dyn Store) -> Result<Self, AuthorityError> {
        let mut all = HashMap::new();
        for (key, record, revision) in
            rows_under::<BoundRecord>(store, Table::Authority, PREFIX).await?
        {
            if row_key(&record.of) != key {
                return Err(damaged(Table::Authority, &key));
            }
            all.insert(record.of, Held { record: Arc::new(record), revision });
        }
        Ok(Self(Arc::new(all)))
    }

    /// Takes over a change.
    pub(super) fn put(&mut self, of: Digest, record: Option<BoundRecord>, revision: u64) {
        let all = Arc::make_mut(&mut self.0);
        match record {
            Some(record) => all.insert(of, Held { record: Arc::new(record), revision }),
            None => all.remove(&of),
        };
    }

    /// The revision of a row's last write.
    pub(super) fn revision(&self, of: &Digest) -> Option<u64> {
        self.0.get(of).map(|held| held.revision)
    }

    /// The device that holds this. A token that has ended is held by nobody.
    pub(super) fn holder(&self, of: &Digest, now: Moment) -> Option<DeviceId> {
        let held = self.0.get(of)?;
        let is_over = held.record.until.is_some_and(|until| until <= now.unix_s());
        (!is_over).then_some(held.record.device)
    }

    /// The device whose key a TPM held, or holds: such a key never serves anything else.
    pub(super) fn device_of(&self, key: &Digest) -> Option<DeviceId> {
        Some(self.0.get(&key_row(key))?.record.device)
    }

    /// Spent tokens, ended ones that are not swept yet included.
    pub(super) fn tokens(&self) -> usize {
        self.0.values().filter(|held| held.record.until.is_some()).count()
    }

    /// The deletions of some tokens that have ended.
    pub(super) fn ended(&self, now: Moment) -> Vec<Step> {
        let is_over = |held: &&Held<BoundRecord>| {
            held.record.until.is_some_and(|until| until <= now.unix_s())
        };
        let over = self.0.values().filter(is_over).take(SWEPT);
        over.map(|held| Step::Bound(held.record.of, None)).collect()
    }
}

/// What the row of a device key stands under, where the device's id does not say it.
pub(super) fn key_row(key: &Digest) -> Digest {
    Digest::of(&[b"doorward device key\0".as_slice(), &key.0].concat())
}

/// The key of the row in the store.
pub(super) fn row_key(of: &Digest) -> Vec<u8> {
    [PREFIX, &of.0].concat()
}
