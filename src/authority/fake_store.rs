//! For tests: a store in memory that keeps the promises of [`Store`], and an authority on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use time::macros::datetime;

use super::key_seal::{CaKeys, KeySeal};
use super::room::{Authority, Places};
use super::subject_key::SubjectKey;
use crate::identity::{Caller, CallerKind, Identity, Standing, sample};
use crate::model::{
    Clock, DeviceClass, EntryDraft, ManualClock, Moment, Released, SecretValue, Selector, SpiffeId,
    TrustDomain,
};
use crate::store::{Event, Row, Store, StoreError, Table, Txn};
use rcgen::PublicKeyData;

type Rows = BTreeMap<(u8, Vec<u8>), Row>;

/// All rows, the revision, and the highest grant.
#[derive(Debug, Default)]
struct Held {
    rows: Rows,
    revision: u64,
    grant: Option<u64>,
}

/// The store.
#[derive(Debug)]
pub(super) struct FakeStore {
    held: Mutex<Held>,
    /// The next commit is carried out, but its answer is lost.
    pub loses_next_answer: AtomicBool,
    /// The next commit fails.
    pub fails_next: AtomicBool,
    events: tokio::sync::broadcast::Sender<Event>,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            loses_next_answer: AtomicBool::new(false),
            fails_next: AtomicBool::new(false),
            events: tokio::sync::broadcast::channel(16).0,
        }
    }
}

impl FakeStore {
    /// Every row, to see that nothing changed.
    pub(super) fn rows(&self) -> Rows {
        self.held.lock().unwrap().rows.clone()
    }

    /// Puts a row in place of another, as a disk that was tampered with would.
    pub(super) fn tamper(&self, table: Table, change: impl Fn(&mut Vec<u8>)) {
        let mut held = self.held.lock().unwrap();
        let rows = held.rows.iter_mut().filter(|((of, _), _)| *of == table as u8);
        rows.for_each(|(_, row)| change(&mut row.value));
    }

    /// A copy, as a backup would be.
    pub(super) fn copy(&self) -> Self {
        let held = self.held.lock().unwrap();
        let (rows, revision, grant) = (held.rows.clone(), held.revision, held.grant);
        Self { held: Mutex::new(Held { rows, revision, grant }), ..Self::default() }
    }
}

fn failed() -> StoreError {
    StoreError::Failed("as the test wanted".into())
}

#[async_trait::async_trait]
impl Store for FakeStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Row>, StoreError> {
        tokio::task::yield_now().await;
        Ok(self.held.lock().unwrap().rows.get(&(table as u8, key.to_vec())).cloned())
    }

    async fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Row)>, StoreError> {
        tokio::task::yield_now().await;
        let held = self.held.lock().unwrap();
        let rows = held.rows.iter().filter(|((of, key), _)| {
            *of == table as u8
                && key.starts_with(prefix)
                && after.is_none_or(|after| key.as_slice() > after)
        });
        Ok(rows.take(limit).map(|((_, key), row)| (key.clone(), row.clone())).collect())
    }

    async fn commit(&self, txn: Txn) -> Result<u64, StoreError> {
        tokio::task::yield_now().await;
        if self.fails_next.swap(false, Ordering::SeqCst) {
            return Err(failed());
        }
        let mut held = self.held.lock().unwrap();
        for expect in &txn.expects {
            let row = held.rows.get(&(expect.table as u8, expect.key.clone()));
            if row.map(|row| row.revision) != expect.revision {
                return Err(StoreError::Conflict);
            }
        }
        held.revision += 1;
        let revision = held.revision;
        for write in txn.writes {
            let key = (write.table as u8, write.key);
            match write.value {
                Some(value) => held.rows.insert(key, Row { value, revision }),
                None => held.rows.remove(&key),
            };
        }
        held.grant = held.grant.max(txn.under);
        match self.loses_next_answer.swap(false, Ordering::SeqCst) {
            true => Err(failed()),
            false => Ok(revision),
        }
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.held.lock().unwrap().revision)
    }

    fn generation(&self) -> Option<u64> {
        Some(self.held.lock().unwrap().revision)
    }

    async fn last_grant(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.held.lock().unwrap().grant)
    }

    fn watch(&self) -> tokio::sync::broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn snapshot(&self) -> Result<(u64, Vec<(Table, Vec<u8>, Row)>), StoreError> {
        Err(failed())
    }
}

/// An authority over a fake store, and everything that moves it.
pub(super) struct Room {
    pub store: Arc<FakeStore>,
    pub clock: Arc<ManualClock>,
    pub key: Vec<u8>,
    pub authority: Authority,
    pub identity: Arc<Identity>,
}

impl Room {
    /// A fresh one at noon.
    pub(super) async fn new() -> Self {
        let store = Arc::new(FakeStore::default());
        let clock = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let key = Authority::create(store.as_ref(), &domain(), clock.as_ref()).await.unwrap();
        Self::over(store, clock, key.expose().to_vec()).await
    }

    /// Another one on the same store: a second broker, or the same after a restart.
    pub(super) async fn again(&self) -> Self {
        Self::over(self.store.clone(), self.clock.clone(), self.key.clone()).await
    }

    /// One on a store that exists.
    pub(super) async fn over(store: Arc<FakeStore>, clock: Arc<ManualClock>, key: Vec<u8>) -> Self {
        let (authority, identity) =
            Authority::open(store.clone(), domain(), keys(&key), clock.clone(), places())
                .await
                .unwrap();
        Self { store, clock, key, authority, identity }
    }

    /// The same broker, with authorities to come below whoever this reads.
    pub(super) fn below(mut self, upstream: super::upstream::ReadUpstream) -> Self {
        self.authority = self.authority.with_upstream(Some(upstream));
        self
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// A device, enrolled with a token of its own, and its key.
    pub(super) async fn device(&self, class: &str) -> (crate::model::DeviceId, SubjectKey) {
        let class = DeviceClass::parse(class).unwrap();
        let made = self.authority.token_create(&class, 600, Some(1), self.now()).await.unwrap();
        let key = fresh_key();
        let enrolled = self.authority.redeem(&key, "host", &made.body, Some(2), self.now()).await;
        (enrolled.unwrap().0, key)
    }
}

/// The first authority's key, and a seal that opens under the same label only.
pub(super) fn keys(first: &[u8]) -> CaKeys {
    let seal = |label: &str, key: &[u8]| [label.as_bytes(), b" ", key].concat();
    let open = |label: &str, sealed: &[u8]| {
        let key = sealed.strip_prefix(label.as_bytes())?.strip_prefix(b" ")?;
        Some(SecretValue::new(key.to_vec()))
    };
    CaKeys { first: SecretValue::new(first.to_vec()), seal: KeySeal::new(seal, open) }
}

pub(super) fn domain() -> TrustDomain {
    TrustDomain::parse("corp.example").unwrap()
}

pub(super) fn places() -> Places {
    Places { broker: "broker.corp.example:8443".into(), enrolment: "10.0.0.1:8444".into() }
}

/// The public half of a key that nobody has.
pub(super) fn fresh_key() -> SubjectKey {
    let key = rcgen::KeyPair::generate().unwrap();
    SubjectKey::parse(&key.subject_public_key_info()).unwrap()
}

pub(super) fn id(path: &str) -> SpiffeId {
    domain().id(path).unwrap()
}

/// A draft that fits processes of uid 1000 on servers.
pub(super) fn draft(path: &str) -> EntryDraft {
    EntryDraft {
        spiffe_id: id(path),
        class: DeviceClass::parse("server").unwrap(),
        device: None,
        selectors: vec![Selector::Uid(1000)],
        ttl_s: None,
        default: false,
        jwt_alg: Default::default(),
        federates_with: Vec::new(),
        hint: None,
    }
}

/// The body as text.
pub(super) fn text(released: &Released) -> String {
    String::from_utf8(released.body.expose().to_vec()).unwrap()
}

/// The same bytes once more.
pub(super) fn copy(secret: &SecretValue) -> SecretValue {
    SecretValue::new(secret.expose().to_vec())
}

/// A caller for look-ups that do not depend on who asks.
pub(super) fn nobody() -> Caller {
    let id = "spiffe://corp.example/doorward/operator/nobody";
    sample::caller(id, CallerKind::Operator, Standing::Live, None)
}
