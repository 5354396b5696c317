//! The embedded engine: one redb file on one machine.
//!
//! It must never acknowledge what is not on disk, never open a damaged file as if it were whole,
//! and never go on after a failed write: the engine's handle is then poisoned, and only a restart,
//! which recovers, believes the file again. redb's checksums find accidents; they are no MAC, so
//! what is stored here carries its own seals (see `vault/rows.rs`).
//!
//! Commits are two-phase, at durability `Immediate`, with quick repair. At open every page's
//! checksum is verified, since redb trusts a file that it closed itself and may panic, or even end
//! the process, on one that changed meanwhile. Only a large file skips that, and only when
//! `<file>.clean` says that it was closed in order and is the same file, unchanged. The engine runs
//! under `catch_unwind` all the same; after a panic it is neither used nor closed any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{Builder, Database, Durability, ReadTransaction, ReadableDatabase, StorageBackend};
use redb::{TableDefinition, WriteTransaction};
use tokio::sync::broadcast;

use super::engine::{Store, StoreError};
use super::file;
use super::redb_error::{RedbError, wrong};
use super::row::{Event, Row, Table, Txn, after_key};
use crate::model::limits;

/// The format of the tables below; raised when a release writes them differently.
const FORMAT: u64 = 1;
/// The engine's own books. No transaction of another room can reach them.
const BOOKS: TableDefinition<&str, u64> = TableDefinition::new("doorward.books");
const BOOK_FORMAT: &str = "format";
const BOOK_REVISION: &str = "revision";
const BOOK_LAST_GRANT: &str = "last_grant";

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

fn rows(table: Table) -> Rows {
    TableDefinition::new(table.as_str())
}

/// A redb file. Cheap to share behind an `Arc`; closed in order when the last one is dropped.
#[derive(Debug)]
pub struct RedbStore {
    inner: Arc<Inner>,
    /// One commit at a time, waited for without holding a thread.
    writer: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Inner {
    /// `None` only while it is being closed.
    db: Option<Database>,
    poisoned: AtomicBool,
    /// Commits tried since the store was opened.
    commits: AtomicU64,
    /// The engine panicked: its own destructors can't be trusted either.
    panicked: AtomicBool,
    events: broadcast::Sender<Event>,
    /// The file; `None` for an engine in memory.
    path: Option<PathBuf>,
    reserve: u64,
}

impl RedbStore {
    /// Makes an empty store at `path`, mode 0600. Its directory must exist.
    ///
    /// # Errors
    /// [`StoreError::Exists`] over anything that is there already.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        Self::create_at(path, 0)
    }

    /// Makes an empty store whose revisions go on after `revision`: for a restore, so that nothing
    /// that remembers a revision sees it go backwards.
    ///
    /// # Errors
    /// As [`RedbStore::create`].
    pub fn create_at(path: &Path, revision: u64) -> Result<Self, StoreError> {
        let file = file::make_private(path)?;
        let backend = FileBackend::new(file).map_err(wrong)?;
        let db = start(backend, false, path)?;
        let store = Self::over(db, Some(path.to_owned()));
        store.inner.guarded(|db| lay_out(db, revision))?;
        file::sync_directory(path)?;
        Ok(store)
    }

    /// Opens the store at `path`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a file that is not whole: it is refused, never mended.
    /// [`StoreError::Newer`], [`StoreError::InUse`], [`StoreError::Loose`],
    /// [`StoreError::Absent`] as they say.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = file::open_private(path)?;
        let length = file.metadata().map_err(file::wrong_io)?.len();
        if length == 0 {
            return Err(StoreError::Damaged(format!("{} is empty", path.display())));
        }
        let untouched = file::take_marker(path, &file)?;
        let check = !untouched || length <= limits::STORE_CHECK_ALWAYS;
        let backend = FileBackend::new(file).map_err(wrong)?;
        let db = start(backend, check, path)?;
        let store = Self::over(db, Some(path.to_owned()));
        store.inner.guarded(inspect)?;
        Ok(store)
    }

    fn over(db: Database, path: Option<PathBuf>) -> Self {
        let (events, _) = broadcast::channel(limits::STORE_EVENTS);
        let inner = Inner {
            db: Some(db),
            poisoned: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            panicked: AtomicBool::new(false),
            events,
            path,
            reserve: limits::STORE_RESERVE,
        };
        Self { inner: Arc::new(inner), writer: Arc::default() }
    }
}

/// Opens the engine; a panic inside is a damaged file.
fn start(backend: impl StorageBackend, check: bool, path: &Path) -> Result<Database, StoreError> {
    let opened = catch_unwind(AssertUnwindSafe(move || {
        Builder::new()
            .set_cache_size(limits::STORE_CACHE)
            .set_check_integrity_on_open(check)
            .create_with_backend(backend)
    }));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => {
            Err(StoreError::InUse(path.to_owned()))
        }
        Ok(Err(error)) => Err(wrong(error)),
        Err(_) => Err(StoreError::Damaged("the engine can't read the file".to_owned())),
    }
}

fn lay_out(db: &Database, revision: u64) -> Result<(), StoreError> {
    let txn = begin(db)?;
    {
        let mut books = txn.open_table(BOOKS).map_err(wrong)?;
        books.insert(BOOK_FORMAT, FORMAT).map_err(wrong)?;
        books.insert(BOOK_REVISION, revision).map_err(wrong)?;
        for table in Table::ALL {
            txn.open_table(rows(*table)).map_err(wrong)?;
        }
    }
    txn.commit().map_err(wrong)
}

fn inspect(db: &Database) -> Result<(), StoreError> {
    let txn = db.begin_read().map_err(wrong)?;
    let unfinished = || StoreError::Damaged("it holds no format number".to_owned());
    match book(&txn, BOOK_FORMAT).map_err(|_| unfinished())?.ok_or_else(unfinished)? {
        FORMAT => {}
        found if found > FORMAT => return Err(StoreError::Newer { found, known: FORMAT }),
        _ => return Err(unfinished()),
    }
    for table in Table::ALL {
        let missing = || StoreError::Damaged(format!("table {} is missing", table.as_str()));
        txn.open_table(rows(*table)).map_err(|_| missing())?;
    }
    Ok(())
}

fn book(txn: &ReadTransaction, key: &str) -> Result<Option<u64>, StoreError> {
    let books = txn.open_table(BOOKS).map_err(wrong)?;
    Ok(books.get(key).map_err(wrong)?.map(|value| value.value()))
}

fn begin(db: &Database) -> Result<WriteTransaction, StoreError> {
    let mut txn = db.begin_write().map_err(wrong)?;
    txn.set_two_phase_commit(true);
    txn.set_quick_repair(true);
    txn.set_durability(Durability::Immediate).map_err(wrong)?;
    Ok(txn)
}

impl Inner {
    /// Runs one use of the engine. What fails in the engine poisons it; a refusal does not.
    fn guarded<T>(
        &self,
        run: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let db = match &self.db {
            Some(db) if !self.poisoned.load(Ordering::Acquire) => db,
            _ => return Err(RedbError::Poisoned.into()),
        };
        let result = catch_unwind(AssertUnwindSafe(|| run(db))).unwrap_or_else(|_| {
            self.panicked.store(true, Ordering::Release);
            Err(RedbError::Panicked.into())
        });
        if matches!(result, Err(StoreError::Failed(_) | StoreError::Full)) {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    /// Refuses a commit that might not find room, before the engine is touched.
    fn has_room(&self, txn: &Txn) -> Result<(), StoreError> {
        let Some(path) = &self.path else { return Ok(()) };
        let bytes: usize = txn.writes.iter().filter_map(|w| w.value.as_ref()).map(Vec::len).sum();
        let disk = nix::sys::statvfs::statvfs(path).map_err(|e| file::wrong_io(e.into()))?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        let copies = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(4);
        if free < self.reserve.saturating_add(copies) { Err(StoreError::Full) } else { Ok(()) }
    }

    fn commit(&self, txn: Txn) -> Result<u64, StoreError> {
        self.has_room(&txn)?;
        let written = self.guarded(|db| write(db, &txn));
        // Also when it failed: then it is not known what stands there.
        self.commits.fetch_add(1, Ordering::AcqRel);
        let revision = written?;
        for write in txn.writes {
            // Nobody listening is no fault.
            let _ = self.events.send(Event { revision, table: write.table, key: write.key });
        }
        Ok(revision)
    }
}

fn write(db: &Database, txn: &Txn) -> Result<u64, StoreError> {
    let engine = begin(db)?;
    for expect in &txn.expects {
        let table = engine.open_table(rows(expect.table)).map_err(wrong)?;
        let row = redb::ReadableTable::get(&table, expect.key.as_slice()).map_err(wrong)?;
        let found = match row {
            Some(bytes) => Some(Row::unpack(bytes.value())?.revision),
            None => None,
        };
        if found != expect.revision {
            return Err(StoreError::Conflict); // dropping the transaction undoes it
        }
    }
    let revision = {
        let mut books = engine.open_table(BOOKS).map_err(wrong)?;
        let last = redb::ReadableTable::get(&books, BOOK_REVISION).map_err(wrong)?;
        let last = last.map_or(0, |value| value.value());
        let revision = last.checked_add(1).ok_or(RedbError::Exhausted)?;
        books.insert(BOOK_REVISION, revision).map_err(wrong)?;
        if let Some(index) = txn.under {
            let highest = redb::ReadableTable::get(&books, BOOK_LAST_GRANT).map_err(wrong)?;
            let highest = highest.map_or(index, |value| value.value().max(index));
            books.insert(BOOK_LAST_GRANT, highest).map_err(wrong)?;
        }
        revision
    };
    for write in &txn.writes {
        let mut table = engine.open_table(rows(write.table)).map_err(wrong)?;
        let key = write.key.as_slice();
        match &write.value {
            Some(value) => {
                table.insert(key, Row::pack(revision, value).as_slice()).map_err(wrong)?;
            }
            None => {
                table.remove(key).map_err(wrong)?;
            }
        }
    }
    engine.commit().map_err(wrong)?;
    Ok(revision)
}

#[async_trait::async_trait]
impl Store for RedbStore {
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Row>, StoreError> {
        self.inner.guarded(|db| {
            let txn = db.begin_read().map_err(wrong)?;
            let table = txn.open_table(rows(table)).map_err(wrong)?;
            let row = table.get(key).map_err(wrong)?;
            row.map(|bytes| Row::unpack(bytes.value())).transpose()
        })
    }

    async fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Row)>, StoreError> {
        self.inner.guarded(|db| {
            let txn = db.begin_read().map_err(wrong)?;
            let table = txn.open_table(rows(table)).map_err(wrong)?;
            let from = after_key(prefix, after);
            let from = (from.as_ref().map(Vec::as_slice), std::ops::Bound::Unbounded);
            let mut found = Vec::new();
            for entry in table.range::<&[u8]>(from).map_err(wrong)?.take(limit) {
                let (key, bytes) = entry.map_err(wrong)?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_vec(), Row::unpack(bytes.value())?));
            }
            Ok(found)
        })
    }

    async fn commit(&self, txn: Txn) -> Result<u64, StoreError> {
        let (turn, inner) = (Arc::clone(&self.writer).lock_owned().await, Arc::clone(&self.inner));
        let commit = tokio::task::spawn_blocking(move || {
            let _turn = turn; // kept until the events are out, so that they stay in order
            inner.commit(txn)
        });
        commit.await.map_err(RedbError::Ended)?
    }

    async fn revision(&self) -> Result<u64, StoreError> {
        let read = |db: &Database| book(&db.begin_read().map_err(wrong)?, BOOK_REVISION);
        Ok(self.inner.guarded(read)?.unwrap_or(0))
    }

    fn generation(&self) -> Option<u64> {
        let whole = !self.inner.poisoned.load(Ordering::Acquire);
        whole.then(|| self.inner.commits.load(Ordering::Acquire))
    }

    async fn last_grant(&self) -> Result<Option<u64>, StoreError> {
        self.inner.guarded(|db| book(&db.begin_read().map_err(wrong)?, BOOK_LAST_GRANT))
    }

    fn has_failed(&self) -> bool {
        self.inner.poisoned.load(Ordering::Acquire)
    }

    fn watch(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    async fn snapshot(&self) -> Result<(u64, Vec<(Table, Vec<u8>, Row)>), StoreError> {
        let inner = Arc::clone(&self.inner);
        let copy = tokio::task::spawn_blocking(move || inner.guarded(copy_all));
        copy.await.map_err(RedbError::Ended)?
    }
}

type Snapshot = (u64, Vec<(Table, Vec<u8>, Row)>);

fn copy_all(db: &Database) -> Result<Snapshot, StoreError> {
    let txn = db.begin_read().map_err(wrong)?;
    let revision = book(&txn, BOOK_REVISION)?.unwrap_or(0);
    let mut all = Vec::new();
    let mut room = limits::SNAPSHOT_MAX;
    for table in Table::ALL {
        let open = txn.open_table(rows(*table)).map_err(wrong)?;
        for entry in open.range::<&[u8]>(..).map_err(wrong)? {
            let (key, bytes) = entry.map_err(wrong)?;
            let (key, bytes) = (key.value(), bytes.value());
            room = room
                .checked_sub(key.len() + bytes.len())
                .ok_or(StoreError::TooLarge(limits::SNAPSHOT_MAX))?;
            all.push((*table, key.to_vec(), Row::unpack(bytes)?));
        }
    }
    Ok((revision, all))
}

impl Drop for Inner {
    /// Closes in order and says so beside the file. Whatever goes wrong leaves no marker, and the
    /// next start verifies every page.
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        if *self.panicked.get_mut() {
            std::mem::forget(db); // a second panic while unwinding would end the process
            return;
        }
        let closed = catch_unwind(AssertUnwindSafe(move || db.close().is_ok())).unwrap_or(false);
        if let (true, false, Some(path)) = (closed, *self.poisoned.get_mut(), &self.path)
            && let Err(error) = file::leave_marker(path)
        {
            tracing::warn!(%error, "the store is closed, but its clean marker was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::AtomicU32;

    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::store::{Expect, Write};

    impl RedbStore {
        fn over_backend(
            backend: impl StorageBackend,
            fresh: bool,
            check: bool,
        ) -> Result<Self, StoreError> {
            let db = start(backend, check, Path::new("memory"))?;
            let store = Self::over(db, None);
            store.inner.guarded(|db| if fresh { lay_out(db, 0) } else { inspect(db) })?;
            Ok(store)
        }

        /// An engine over bytes in memory, for tests that damage them; `check` as after an unclean
        /// stop. No bytes are a new store.
        pub(crate) fn over_bytes(bytes: &[u8], check: bool) -> Result<Self, StoreError> {
            let backend = redb::backends::InMemoryBackend::new();
            let length = u64::try_from(bytes.len()).unwrap();
            backend.set_len(length).unwrap();
            backend.write(0, bytes).unwrap();
            Self::over_backend(backend, bytes.is_empty(), check)
        }
    }

    fn fresh() -> (RedbStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (RedbStore::create(&dir.path().join("store")).unwrap(), dir)
    }

    crate::store::conformance::conformance!(fresh());

    fn row(key: &[u8], value: &[u8]) -> Txn {
        let write = Write { table: Table::Meta, key: key.to_vec(), value: Some(value.to_vec()) };
        Txn { writes: vec![write], ..Txn::default() }
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let (store, dir) = fresh();
        let path = dir.path().join("store");
        for n in 0..10u8 {
            store.commit(Txn { under: Some(n.into()), ..row(&[n], &[n]) }).await.unwrap();
        }
        drop(store);
        let store = RedbStore::open(&path).unwrap();
        assert_eq!(store.revision().await.unwrap(), 10);
        assert_eq!(store.last_grant().await.unwrap(), Some(9));
        for n in 0..10u8 {
            assert_eq!(store.get(Table::Meta, &[n]).await.unwrap().unwrap().value, [n]);
        }
    }

    #[tokio::test]
    async fn a_copy_taken_after_the_acknowledgement_holds_the_row() {
        let (store, dir) = fresh();
        for n in 0..5u8 {
            store.commit(row(&[n], b"acknowledged")).await.unwrap();
            // What a crash at this moment leaves behind: the bytes of the file, no orderly close.
            let crashed = dir.path().join(format!("crashed-{n}"));
            std::fs::copy(dir.path().join("store"), &crashed).unwrap();
            let again = RedbStore::open(&crashed).unwrap();
            assert_eq!(again.revision().await.unwrap(), u64::from(n) + 1);
            assert!(again.get(Table::Meta, &[n]).await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn revisions_of_a_restored_store_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::create_at(&dir.path().join("s"), 41).unwrap();
        assert_eq!(store.commit(row(b"k", b"v")).await.unwrap(), 42);
    }

    #[tokio::test]
    async fn the_file_is_private_and_stays_so() {
        let (store, dir) = fresh();
        let path = dir.path().join("store");
        assert_eq!(mode(&path), 0o600);
        assert!(!marker(&path).exists(), "an open store is not marked clean");
        drop(store);
        assert_eq!(mode(&marker(&path)), 0o600);
        drop(RedbStore::open(&path).unwrap());

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(RedbStore::open(&path), Err(StoreError::Loose(_))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(RedbStore::open(&link), Err(StoreError::Loose(_))));
        assert!(matches!(RedbStore::open(dir.path()), Err(StoreError::Loose(_))));
        drop(RedbStore::open(&path).unwrap());
    }

    fn marker(path: &Path) -> PathBuf {
        path.with_extension("clean")
    }

    #[tokio::test]
    async fn the_clean_marker_is_used_up_by_opening() {
        let (store, dir) = fresh();
        let path = dir.path().join("store");
        drop(store);
        assert!(marker(&path).exists());
        let store = RedbStore::open(&path).unwrap();
        assert!(!marker(&path).exists());
        store.commit(row(b"k", b"v")).await.unwrap();
        drop(store);
        assert!(marker(&path).exists());
        std::fs::remove_file(marker(&path)).unwrap();
        let store = RedbStore::open(&path).expect("an unclean stop is checked, and whole");
        assert!(store.get(Table::Meta, b"k").await.unwrap().is_some());
    }

    #[test]
    fn the_clean_marker_speaks_of_one_unchanged_file_only() {
        let (store, dir) = fresh();
        let path = dir.path().join("store");
        let take = |path: &Path| {
            let file = file::open_private(path).unwrap();
            file::take_marker(path, &file).unwrap()
        };
        drop(store);
        assert!(take(&path) && !take(&path), "once");

        file::leave_marker(&path).unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().set_len(1 << 22).unwrap();
        assert!(!take(&path), "another length");

        file::leave_marker(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        private(&dir.path().join("other"), b"takes the old inode");
        private(&path, &bytes);
        assert!(!take(&path), "another file");

        file::leave_marker(&path).unwrap();
        std::fs::write(marker(&path), [0xff; 300]).unwrap();
        assert!(!take(&path), "nonsense");
    }

    #[test]
    fn a_store_is_opened_once_and_made_over_nothing() {
        let (store, dir) = fresh();
        let path = dir.path().join("store");
        assert!(matches!(RedbStore::open(&path), Err(StoreError::InUse(_))));
        assert!(matches!(RedbStore::create(&path), Err(StoreError::Exists(_))));
        drop(store);
        assert!(matches!(RedbStore::create(&path), Err(StoreError::Exists(_))));
        assert!(matches!(RedbStore::open(&dir.path().join("no")), Err(StoreError::Absent(_))));
        drop(RedbStore::open(&path).unwrap());
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let (store, dir) = fresh();
        store
            .inner
            .guarded(|db| {
                let txn = begin(db)?;
                txn.open_table(BOOKS).map_err(wrong)?.insert(BOOK_FORMAT, 2).map_err(wrong)?;
                txn.commit().map_err(wrong)
            })
            .unwrap();
        drop(store);
        let error = RedbStore::open(&dir.path().join("store")).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1 }), "{error}");
        assert!(error.to_string().contains("use a newer release"));
    }

    #[tokio::test]
    async fn a_truncated_or_foreign_file_is_refused_and_left_alone() {
        let (store, dir) = fresh();
        let path = dir.path().join("store");
        for n in 0..20u8 {
            store.commit(row(&[n], &[n; 4000])).await.unwrap();
        }
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        drop(RedbStore::open(&path).unwrap());
        for clean in [true, false] {
            for length in [0, 1, 8, 64, 320, 4095, 4096, 8192, 65_536, whole.len() / 2] {
                let cut = dir.path().join("cut");
                let bytes = whole.get(..length).unwrap();
                private(&cut, bytes);
                let _ = std::fs::remove_file(marker(&cut));
                if clean {
                    std::fs::copy(marker(&path), marker(&cut)).unwrap();
                }
                let error = RedbStore::open(&cut).unwrap_err();
                assert!(matches!(error, StoreError::Damaged(_)), "{length}: {error:?}");
                assert_eq!(std::fs::read(&cut).unwrap(), bytes, "refused, but changed ({length})");
            }
        }
        let foreign = dir.path().join("foreign");
        private(&foreign, &b"SQLite format 3\0".repeat(1000));
        assert!(matches!(RedbStore::open(&foreign), Err(StoreError::Damaged(_))));
    }

    fn private(path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_met_before_the_engine_and_passes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = RedbStore::create(&dir.path().join("store")).unwrap();
        store.commit(row(b"k", b"1")).await.unwrap();
        Arc::get_mut(&mut store.inner).unwrap().reserve = u64::MAX;
        for _ in 0..2 {
            assert!(matches!(store.commit(row(b"k", b"2")).await, Err(StoreError::Full)));
        }
        assert_eq!(store.get(Table::Meta, b"k").await.unwrap().unwrap().value, b"1");
        Arc::get_mut(&mut store.inner).unwrap().reserve = 0;
        assert_eq!(store.commit(row(b"k", b"3")).await.unwrap(), 2);
    }

    /// Fails the writes or the syncs, once told to.
    #[derive(Debug)]
    struct Failing {
        inner: InMemoryBackend,
        /// 0: fine; otherwise the error number of every write …
        write: Arc<AtomicU32>,
        /// … and of every sync.
        sync: Arc<AtomicU32>,
    }

    fn fault(number: &AtomicU32) -> Result<(), std::io::Error> {
        match number.load(Ordering::SeqCst) {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(error.try_into().unwrap())),
        }
    }

    impl StorageBackend for Failing {
        fn len(&self) -> Result<u64, std::io::Error> {
            self.inner.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
            self.inner.read(offset, out)
        }
        fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
            self.inner.set_len(len)
        }
        fn sync_data(&self) -> Result<(), std::io::Error> {
            fault(&self.sync)?;
            self.inner.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
            fault(&self.write)?;
            self.inner.write(offset, data)
        }
    }

    #[tokio::test]
    async fn after_a_failed_write_or_sync_nothing_is_believed() {
        let enospc = u32::try_from(libc::ENOSPC).unwrap();
        let eio = u32::try_from(libc::EIO).unwrap();
        for (number, at_sync) in [(enospc, false), (eio, false), (eio, true)] {
            let (write, sync) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let inner = InMemoryBackend::new();
            let backend = Failing { inner, write: write.clone(), sync: sync.clone() };
            let store = RedbStore::over_backend(backend, true, false).unwrap();
            store.commit(row(b"k", b"1")).await.unwrap();
            assert!(!store.has_failed());

            let switch = if at_sync { &sync } else { &write };
            switch.store(number, Ordering::SeqCst);
            let first = store.commit(row(b"k", b"2")).await.unwrap_err();
            if number == enospc {
                assert!(matches!(first, StoreError::Full), "{first:?}");
            } else {
                assert!(matches!(first, StoreError::Failed(_)), "{first:?}");
            }
            switch.store(0, Ordering::SeqCst);
            let later = store.commit(row(b"k", b"3")).await.unwrap_err();
            assert!(matches!(later, StoreError::Failed(_)), "a retry may lie: {later:?}");
            assert!(store.has_failed(), "whoever supervises it hears so");
            assert!(matches!(store.get(Table::Meta, b"k").await, Err(StoreError::Failed(_))));
            assert!(matches!(store.revision().await, Err(StoreError::Failed(_))));
            assert!(!later.to_string().contains("engine"), "the source is never in Display");
        }
    }

    #[tokio::test]
    async fn a_panic_in_the_engine_is_an_error_and_the_last_word() {
        let (store, _dir) = fresh();
        let result = store.inner.guarded(|_| -> Result<(), StoreError> { panic!("engine fault") });
        assert!(matches!(result, Err(StoreError::Failed(_))));
        assert!(matches!(store.get(Table::Meta, b"k").await, Err(StoreError::Failed(_))));
    }

    #[tokio::test]
    async fn a_row_without_its_revision_is_damage() {
        let (store, _dir) = fresh();
        store
            .inner
            .guarded(|db| {
                let txn = begin(db)?;
                let short: &[u8] = b"short";
                txn.open_table(rows(Table::Meta))
                    .map_err(wrong)?
                    .insert(b"k".as_slice(), short)
                    .map_err(wrong)?;
                txn.commit().map_err(wrong)
            })
            .unwrap();
        assert!(matches!(store.get(Table::Meta, b"k").await, Err(StoreError::Damaged(_))));
        let expects = vec![Expect { table: Table::Meta, key: b"k".to_vec(), revision: None }];
        let commit = store.commit(Txn { expects, ..Txn::default() }).await;
        assert!(matches!(commit, Err(StoreError::Damaged(_))));
        store.commit(row(b"other", b"v")).await.expect("other rows still work");
    }
}
