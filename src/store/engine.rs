//! The trait that every engine fulfils, and how an engine fails.
//!
//! The promises stand in `conformance.rs` as tests; an engine is one that passes them all.

use std::fmt;
use std::path::PathBuf;

use super::row::{Event, Row, Table, Txn};

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An expectation does not hold; nothing was written.
    #[error("the row stands at another revision")]
    Conflict,
    /// The engine failed, now or earlier. After a failed write nothing more is believed: the
    /// process must end and recover at its next start.
    #[error("the store failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What is stored is not what was written.
    #[error("the store is damaged: {0}; restore it from a backup")]
    Damaged(String),
    /// No room left; nothing was written. It may pass.
    #[error("the disk is full")]
    Full,
    /// There is no store where one was to be opened.
    #[error("there is no store at {0}; `doorward init` makes one")]
    Absent(PathBuf),
    /// There is something where a store was to be made.
    #[error("{0} exists; a store is never made over a file")]
    Exists(PathBuf),
    /// Another process has it open.
    #[error("another process has {0} open")]
    InUse(PathBuf),
    /// Others than its owner may touch it, or it is no plain file.
    #[error("{0} must be a plain file of this user with mode 0600")]
    Loose(PathBuf),
    /// It was written by a later release.
    #[error("the store has format {found}; this release knows {known}: use a newer release")]
    Newer {
        /// The format in the file.
        found: u64,
        /// The format of this release.
        known: u64,
    },
    /// A whole copy would be larger than what may be held in memory.
    #[error("a snapshot would be over {0} bytes")]
    TooLarge(usize),
}

/// Where sealed bytes live. Every call is one consistent look or one atomic step.
#[async_trait::async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// One row.
    ///
    /// # Errors
    /// When the engine failed or the row is damaged.
    async fn get(&self, table: Table, key: &[u8]) -> Result<Option<Row>, StoreError>;

    /// Rows whose key starts with `prefix` and is greater than `after`, in key order, at most
    /// `limit`.
    ///
    /// # Errors
    /// When the engine failed or a row is damaged.
    async fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Row)>, StoreError>;

    /// All or nothing, durable when it returns; gives the new revision. Once begun it runs to its
    /// end, also when the caller no longer waits. A commit without writes still has a revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an expectation does not hold, [`StoreError::Full`] when there
    /// is no room: nothing was written. After [`StoreError::Failed`] it is unknown until the next
    /// start.
    async fn commit(&self, txn: Txn) -> Result<u64, StoreError>;

    /// Revision of the last commit; 0 before the first.
    ///
    /// # Errors
    /// When the engine failed.
    async fn revision(&self) -> Result<u64, StoreError>;

    /// A number that is another one after every commit, known without waiting: what was read while
    /// it stood at one value still holds while it does. `None` when nothing read may be kept: the
    /// engine failed, or others may commit behind this process's back.
    fn generation(&self) -> Option<u64>;

    /// The highest grant index that a commit rested on.
    ///
    /// # Errors
    /// When the engine failed.
    async fn last_grant(&self) -> Result<Option<u64>, StoreError>;

    /// Whether an earlier failure ended this store: every further call fails, and only a new start
    /// recovers.
    fn has_failed(&self) -> bool {
        false
    }

    /// Events of commits after this call, in order, one for each row written. The channel is
    /// bounded: a reader that falls behind is told `Lagged` and must read anew.
    fn watch(&self) -> tokio::sync::broadcast::Receiver<Event>;

    /// A consistent copy of all rows at one revision, in order of tables and keys.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] above [`limits::SNAPSHOT_MAX`](crate::model::limits::SNAPSHOT_MAX).
    async fn snapshot(&self) -> Result<(u64, Vec<(Table, Vec<u8>, Row)>), StoreError>;
}
