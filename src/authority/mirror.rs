//! What the store holds of this room, in memory: immutable, replaced as a whole after each commit.
//!
//! Readers take the current one without waiting for a writer. Copies share everything that did not
//! change. It must never be ahead of the store: only [`super::room`] replaces it, after the
//! commit.

use std::collections::HashMap;
use std::sync::Arc;

use super::authorities::{Authorities, CA_KEY};
use super::bound::{BoundRecord, BoundRows, row_key};
use super::error::AuthorityError;
use super::federated::{FEDERATION_PREFIX, Federated, FederationRecord, row_of};
use super::recent::Whom;
use super::records::{
    DENIED_PREFIX, DeniedKey, DeniedRecord, DeviceRecord, EntryRecord, TokenKey, TokenRecord,
    damaged, encode,
};
use super::scan::{rows, rows_under};
use super::shards::Shards;
use crate::identity::{Denied, DeviceStatus, EntryStatus};
use crate::model::limits::PAGE_ITEMS;
use crate::model::{DeviceClass, DeviceId, Digest, Entry, EntryId, SpiffeId, TrustDomain};
use crate::store::{Expect, Store, Table, Txn, Write};

/// One row: its record, and the store's revision of its last write.
#[derive(Debug, Clone)]
pub(super) struct Held<T> {
    pub record: Arc<T>,
    pub revision: u64,
}

/// One change of one row; `None` deletes it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Device(DeviceId, DeviceRecord),
    Entry(EntryId, Option<EntryRecord>),
    Token(TokenKey, Option<TokenRecord>),
    Denied(DeniedKey, Option<DeniedRecord>),
    Bound(Digest, Option<BoundRecord>),
    Authorities(Authorities),
    Federation(TrustDomain, Option<FederationRecord>),
}

/// All rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirror {
    authorities: Option<Held<Authorities>>,
    devices: Arc<HashMap<DeviceId, Held<DeviceRecord>>>,
    entries: Shards<EntryId, Held<EntryRecord>>,
    tokens: Arc<HashMap<TokenKey, Held<TokenRecord>>>,
    denied: Arc<HashMap<DeniedKey, Held<DeniedRecord>>>,
    bound: BoundRows,
    federated: Federated,
    /// Entries by whom they are for, in the order of their ids.
    duties: Shards<Whom, Arc<Vec<EntryId>>>,
    /// Entries by the SPIFFE ID that they give, in lower case: no two may differ in that only.
    given: Shards<Box<str>, Vec<EntryId>>,
    device_statuses: Arc<HashMap<DeviceId, DeviceStatus>>,
    entry_statuses: Arc<HashMap<EntryId, EntryStatus>>,
    denied_svids: Arc<Denied>,
    /// Revision of the last commit that this room made or found.
    pub revision: u64,
    /// Revision of the last change of an entry.
    pub entries_revision: u64,
}

impl Mirror {
    /// Reads everything.
    pub(super) async fn load(
        store: &dyn Store,
        domain: &TrustDomain,
    ) -> Result<Self, AuthorityError> {
        let revision = store.revision().await?;
        let mut mirror = Self { revision, entries_revision: revision, ..Self::default() };
        let row = store.get(Table::Authority, CA_KEY).await?.ok_or(AuthorityError::CaMissing)?;
        let record = Arc::new(Authorities::read(&row.value, domain)?);
        mirror.authorities = Some(Held { record, revision: row.revision });
        for (key, record, revision) in rows::<DeviceRecord>(store, Table::Devices).await? {
            let id: [u8; 32] =
                key.as_slice().try_into().map_err(|_| damaged(Table::Devices, &key))?;
            mirror.put_device(DeviceId(Digest(id)), record, revision);
        }
        for (key, record, revision) in rows::<EntryRecord>(store, Table::Entries).await? {
            let id = uuid::Uuid::from_slice(&key).map(EntryId);
            match id {
                Ok(id) if id == record.entry.id => mirror.put_entry(id, record, revision),
                _ => return Err(damaged(Table::Entries, &key)),
            }
        }
        for (key, record, revision) in rows::<TokenRecord>(store, Table::Tokens).await? {
            if record.key().as_slice() != key.as_slice() {
                return Err(damaged(Table::Tokens, &key));
            }
            mirror.put_token(record.key(), record, revision);
        }
        for (key, record, revision) in
            rows_under::<DeniedRecord>(store, Table::Authority, DENIED_PREFIX).await?
        {
            if record.key().row() != key {
                return Err(damaged(Table::Authority, &key));
            }
            mirror.put_denied(record.key(), record, revision);
        }
        mirror.bound = BoundRows::load(store).await?;
        for (key, record, revision) in
            rows_under::<FederationRecord>(store, Table::Authority, FEDERATION_PREFIX).await?
        {
            let bad = || damaged(Table::Authority, &key);
            if row_of(&record.trust_domain) != key || record.trust_domain == *domain {
                return Err(bad());
            }
            mirror.federated.put(record, revision).map_err(|_| bad())?;
        }
        Ok(mirror)
    }

    /// The mirror after these steps were committed at `revision`.
    pub(super) fn with(&self, steps: Vec<Step>, revision: u64) -> Self {
        let mut next = self.clone();
        next.revision = revision;
        for step in steps {
            match step {
                Step::Device(id, record) => next.put_device(id, record, revision),
                Step::Entry(id, record) => {
                    next.entries_revision = revision;
                    match record {
                        Some(record) => next.put_entry(id, record, revision),
                        None => next.drop_entry(&id),
                    }
                }
                Step::Token(key, Some(record)) => next.put_token(key, record, revision),
                Step::Token(key, None) => {
                    Arc::make_mut(&mut next.tokens).remove(&key);
                }
                Step::Denied(key, Some(record)) => next.put_denied(key, record, revision),
                Step::Denied(key, None) => next.drop_denied(&key),
                Step::Bound(of, record) => next.bound.put(of, record, revision),
                Step::Federation(domain, record) => next.federated.step(&domain, record, revision),
                Step::Authorities(row) => {
                    next.authorities = Some(Held { record: Arc::new(row), revision });
                }
            }
        }
        next
    }

    /// The commit that does these steps, all of them or none, if every row still stands as here.
    pub(super) fn txn(&self, steps: &[Step], under: Option<u64>) -> Result<Txn, AuthorityError> {
        let mut txn = Txn { under, ..Txn::default() };
        for step in steps {
            let (table, key, value, revision) = match step {
                Step::Device(id, record) => {
                    let held = self.devices.get(id).map(|held| held.revision);
                    (Table::Devices, id.0.0.to_vec(), Some(encode(record)?), held)
                }
                Step::Entry(id, record) => {
                    let held = self.entries.get(id).map(|held| held.revision);
                    let value = record.as_ref().map(encode).transpose()?;
                    (Table::Entries, id.0.as_bytes().to_vec(), value, held)
                }
                Step::Token(key, record) => {
                    let held = self.tokens.get(key).map(|held| held.revision);
                    let value = record.as_ref().map(encode).transpose()?;
                    (Table::Tokens, key.to_vec(), value, held)
                }
                Step::Denied(key, record) => {
                    let held = self.denied.get(key).map(|held| held.revision);
                    let value = record.as_ref().map(encode).transpose()?;
                    (Table::Authority, key.row(), value, held)
                }
                Step::Bound(of, record) => {
                    let value = record.as_ref().map(encode).transpose()?;
                    (Table::Authority, row_key(of), value, self.bound.revision(of))
                }
                Step::Federation(domain, record) => {
                    let value = record.as_ref().map(encode).transpose()?;
                    (Table::Authority, row_of(domain), value, self.federated.revision(domain))
                }
                Step::Authorities(row) => {
                    let held = self.authorities.as_ref().map(|held| held.revision);
                    (Table::Authority, CA_KEY.to_vec(), Some(encode(row)?), held)
                }
            };
            txn.expects.push(Expect { table, key: key.clone(), revision });
            txn.writes.push(Write { table, key, value });
        }
        Ok(txn)
    }

    /// The authorities; there always are some, in a mirror that was loaded.
    pub(super) fn authorities(&self) -> Result<&Arc<Authorities>, AuthorityError> {
        self.authorities.as_ref().map(|held| &held.record).ok_or(AuthorityError::CaMissing)
    }

    /// The relationships with other trust domains.
    pub(super) fn federated(&self) -> &Federated {
        &self.federated
    }

    /// A device's row.
    pub(super) fn device(&self, id: &DeviceId) -> Option<&DeviceRecord> {
        self.devices.get(id).map(|held| held.record.as_ref())
    }

    /// The device that has, or had, this key (SHA-256 of its SubjectPublicKeyInfo).
    pub(super) fn device_of_key(&self, key: &Digest) -> Option<DeviceId> {
        let soft = DeviceId(*key);
        match self.device(&soft).is_some_and(|record| record.key == *key) {
            true => Some(soft),
            false => self.bound.device_of(key),
        }
    }

    /// All devices, in no order.
    pub(super) fn devices(&self) -> impl ExactSizeIterator<Item = (&DeviceId, &DeviceRecord)> {
        self.devices.iter().map(|(id, held)| (id, held.record.as_ref()))
    }

    /// An entry's row.
    pub(super) fn entry(&self, id: &EntryId) -> Option<&EntryRecord> {
        self.entries.get(id).map(|held| held.record.as_ref())
    }

    /// All entries, in no order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &EntryRecord> {
        self.entries.values().map(|held| held.record.as_ref())
    }

    /// Whether an entry's tokens are signed with RS256.
    pub(super) fn wants_rs256(&self) -> bool {
        self.entries().any(|it| it.entry.draft.jwt_alg == crate::model::TokenAlgorithm::Rs256)
    }

    /// How many entries there are.
    pub(super) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// The entries that give this SPIFFE ID, or one that differs in case only.
    pub(super) fn entries_of_any_case(&self, id: &SpiffeId) -> impl Iterator<Item = &EntryRecord> {
        let ids = self.given.get(&*id.as_str().to_ascii_lowercase());
        ids.into_iter().flatten().filter_map(|id| self.entry(id))
    }

    /// The entries that give this SPIFFE ID.
    pub(super) fn entries_of(&self, id: &SpiffeId) -> impl Iterator<Item = &EntryRecord> {
        self.entries_of_any_case(id).filter(move |record| record.entry.draft.spiffe_id == *id)
    }

    /// The living entries that an agent on this device may ask for, in the order of their ids: at
    /// most one more than a page, after `after`.
    pub(super) fn duties(
        &self,
        class: &DeviceClass,
        device: &DeviceId,
        after: Option<&EntryId>,
    ) -> Vec<Entry> {
        let mut page = Vec::new();
        for only in [None, Some(*device)] {
            let Some(ids) = self.duties.get(&(class.clone(), only)) else { continue };
            let first = after.map_or(0, |after| ids.partition_point(|id| id <= after));
            let ids = ids.get(first..).unwrap_or_default().iter();
            let living = ids.filter_map(|id| self.entry(id)).filter(|record| !record.suspended);
            page.extend(living.take(PAGE_ITEMS + 1));
        }
        page.sort_unstable_by_key(|record| record.entry.id);
        page.truncate(PAGE_ITEMS + 1);
        page.into_iter().map(|record| record.entry.clone()).collect()
    }

    /// A token's row.
    pub(super) fn token(&self, key: &TokenKey) -> Option<&TokenRecord> {
        self.tokens.get(key).map(|held| held.record.as_ref())
    }

    /// All tokens, in no order.
    pub(super) fn tokens(&self) -> impl ExactSizeIterator<Item = (&TokenKey, &TokenRecord)> {
        self.tokens.iter().map(|(key, held)| (key, held.record.as_ref()))
    }

    /// A revoked SVID.
    pub(super) fn denied(&self, key: &DeniedKey) -> Option<&DeniedRecord> {
        self.denied.get(key).map(|held| held.record.as_ref())
    }

    /// All revoked SVIDs, in no order.
    pub(super) fn all_denied(&self) -> impl ExactSizeIterator<Item = (&DeniedKey, &DeniedRecord)> {
        self.denied.iter().map(|(key, held)| (key, held.record.as_ref()))
    }

    /// What devices were enrolled by.
    pub(super) fn bound(&self) -> &BoundRows {
        &self.bound
    }

    /// What identity needs of them.
    pub(super) fn denied_svids(&self) -> &Arc<Denied> {
        &self.denied_svids
    }

    /// What identity needs of the devices.
    pub(super) fn device_statuses(&self) -> &Arc<HashMap<DeviceId, DeviceStatus>> {
        &self.device_statuses
    }

    /// What identity needs of the entries.
    pub(super) fn entry_statuses(&self) -> &Arc<HashMap<EntryId, EntryStatus>> {
        &self.entry_statuses
    }

    /// Whether both give the same view, because nothing that identity needs was touched.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.device_statuses, &other.device_statuses)
            && Arc::ptr_eq(&self.entry_statuses, &other.entry_statuses)
            && Arc::ptr_eq(&self.denied_svids, &other.denied_svids)
            && self.federated.roots_are_those_of(&other.federated)
    }

    fn put_device(&mut self, id: DeviceId, record: DeviceRecord, revision: u64) {
        let same = |status: &DeviceStatus| {
            status.class == record.class
                && status.epoch == record.epoch
                && status.revoked == record.revoked
                && status.resident == record.resident()
        };
        if !self.device_statuses.get(&id).is_some_and(same) {
            let DeviceRecord { class, epoch, revoked, .. } = &record;
            let (class, resident) = (class.clone(), record.resident());
            let status = DeviceStatus { class, epoch: *epoch, revoked: *revoked, resident };
            Arc::make_mut(&mut self.device_statuses).insert(id, status);
        }
        let held = Held { record: Arc::new(record), revision };
        Arc::make_mut(&mut self.devices).insert(id, held);
    }

    fn put_entry(&mut self, id: EntryId, record: EntryRecord, revision: u64) {
        let status = EntryStatus { epoch: record.entry.epoch, suspended: record.suspended };
        Arc::make_mut(&mut self.entry_statuses).insert(id, status);
        let whom = (record.entry.draft.class.clone(), record.entry.draft.device);
        let given = record.entry.draft.spiffe_id.as_str().to_ascii_lowercase().into();
        let held = Held { record: Arc::new(record), revision };
        if self.entries.insert(id, held).is_none() {
            let in_order = |duties: &mut Arc<Vec<EntryId>>| {
                let at = duties.partition_point(|other| *other < id);
                Arc::make_mut(duties).insert(at, id);
            };
            self.duties.change(whom, in_order, |_| false);
            self.given.change(given, |ids| ids.push(id), |_| false);
        }
    }

    fn drop_entry(&mut self, id: &EntryId) {
        Arc::make_mut(&mut self.entry_statuses).remove(id);
        let Some(held) = self.entries.remove(id) else { return };
        let draft = &held.record.entry.draft;
        let whom = (draft.class.clone(), draft.device);
        let without = |duties: &mut Arc<Vec<EntryId>>| {
            if let Ok(at) = duties.binary_search(id) {
                Arc::make_mut(duties).remove(at);
            }
        };
        self.duties.change(whom, without, |duties| duties.is_empty());
        let given = draft.spiffe_id.as_str().to_ascii_lowercase().into();
        self.given.change(given, |ids| ids.retain(|other| other != id), Vec::is_empty);
    }

    fn put_denied(&mut self, key: DeniedKey, record: DeniedRecord, revision: u64) {
        let (serial, whose) = (record.serial.clone(), record.of.clone());
        let held = Held { record: Arc::new(record), revision };
        if Arc::make_mut(&mut self.denied).insert(key, held).is_none() {
            let svids = Arc::make_mut(&mut self.denied_svids);
            svids.entry(serial).or_default().push(whose.into());
        }
    }

    fn drop_denied(&mut self, key: &DeniedKey) {
        let Some(held) = Arc::make_mut(&mut self.denied).remove(key) else { return };
        let svids = Arc::make_mut(&mut self.denied_svids);
        if let Some(all) = svids.get_mut(&held.record.serial) {
            let whose = held.record.of.clone().into();
            all.retain(|other| *other != whose);
            if all.is_empty() {
                svids.remove(&held.record.serial);
            }
        }
    }

    fn put_token(&mut self, key: TokenKey, record: TokenRecord, revision: u64) {
        let held = Held { record: Arc::new(record), revision };
        Arc::make_mut(&mut self.tokens).insert(key, held);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_store::{Room, domain, draft, keys, places};
    use super::super::room::Authority;
    use super::super::scan::PAGE;
    use super::*;
    use crate::model::{DeviceClass, EntryDraft};

    #[tokio::test]
    async fn duties_are_those_of_the_class_and_of_the_device_and_living() {
        let room = Room::new().await;
        let (server, laptop) =
            (DeviceClass::parse("server").unwrap(), DeviceClass::parse("laptop").unwrap());
        let ((one, _), (two, _)) = (room.device("server").await, room.device("server").await);
        let create = async |draft: EntryDraft| {
            room.authority.entry_create(&draft, None, room.now()).await.unwrap();
        };
        create(draft("/all")).await;
        create(EntryDraft { device: Some(one), ..draft("/one") }).await;
        create(EntryDraft { class: laptop.clone(), ..draft("/laptops") }).await;
        let paths = |class: &DeviceClass, device| {
            let duties = room.authority.mirror().duties(class, device, None);
            let paths = duties.iter().map(|entry| entry.draft.spiffe_id.path().to_owned());
            let mut paths: Vec<_> = paths.collect();
            paths.sort();
            paths
        };
        assert_eq!(paths(&server, &one), ["/all", "/one"]);
        assert_eq!(paths(&server, &two), ["/all"]);
        assert_eq!(paths(&laptop, &two), ["/laptops"]);
        let all = domain().id("/all").unwrap();
        room.authority.revoke(&all, false, None, room.now()).await.unwrap();
        assert_eq!(paths(&server, &one), ["/one"], "a revoked identity is no duty");
        room.authority.revoke(&all, true, None, room.now()).await.unwrap();
        assert_eq!(paths(&server, &one), ["/all", "/one"]);
    }

    #[tokio::test]
    async fn more_rows_than_a_page_are_all_read() {
        let room = Room::new().await;
        let with_path = |at: usize| draft(&format!("/w{at}"));
        for at in 0..=PAGE {
            room.authority.entry_create(&with_path(at), None, room.now()).await.unwrap();
        }
        assert_eq!(room.again().await.authority.mirror().entry_count(), PAGE + 1);
    }

    #[tokio::test]
    async fn a_damaged_row_stops_the_start_and_is_named() {
        let room = Room::new().await;
        room.device("server").await;
        let open = async || {
            let keys = keys(&room.key);
            Authority::open(room.store.clone(), domain(), keys, room.clock.clone(), places()).await
        };
        assert!(open().await.is_ok());
        for table in [Table::Devices, Table::Tokens] {
            room.store.tamper(table, |value| value[0] ^= 1);
            let error = open().await.unwrap_err();
            assert!(matches!(error, AuthorityError::Row { .. }), "{error}");
            room.store.tamper(table, |value| value[0] ^= 1);
        }
        room.store.tamper(Table::Tokens, |value| {
            let digest = value.windows(10).position(|at| at == b"\"digest\":\"").unwrap() + 10;
            value[digest] = if value[digest] == b'0' { b'1' } else { b'0' };
        });
        let error = open().await.unwrap_err();
        assert!(matches!(error, AuthorityError::Row { table: "tokens", .. }), "{error}");
    }

    #[tokio::test]
    async fn a_store_has_one_authority() {
        let room = Room::new().await;
        let again = Authority::create(room.store.as_ref(), &domain(), room.clock.as_ref()).await;
        assert!(matches!(again.unwrap_err(), AuthorityError::CaExists));
        let empty: Arc<dyn Store> = Arc::new(super::super::fake_store::FakeStore::default());
        let none =
            Authority::open(empty, domain(), keys(&room.key), room.clock.clone(), places()).await;
        assert!(matches!(none.unwrap_err(), AuthorityError::CaMissing));
    }

    #[tokio::test]
    async fn seeing_a_device_does_not_touch_the_view() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let mirror = room.authority.mirror();
        let seen = DeviceRecord { last_seen: 9, ..mirror.device(&device).unwrap().clone() };
        assert!(mirror.with(vec![Step::Device(device, seen.clone())], 9).looks_like(&mirror));
        let ended = DeviceRecord { revoked: true, ..seen };
        assert!(!mirror.with(vec![Step::Device(device, ended)], 9).looks_like(&mirror));
    }
}
