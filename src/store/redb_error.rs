//! How the embedded engine fails, in the words of the store.

use super::engine::StoreError;
use super::file;

/// What stands behind [`StoreError::Failed`].
#[derive(Debug, thiserror::Error)]
pub(super) enum RedbError {
    #[error("an earlier failure ended this store; restart to recover")]
    Poisoned,
    #[error("the engine panicked")]
    Panicked,
    #[error("revisions are used up")]
    Exhausted,
    #[error(transparent)]
    Engine(#[from] redb::Error),
    #[error(transparent)]
    Ended(#[from] tokio::task::JoinError),
}

impl From<RedbError> for StoreError {
    fn from(error: RedbError) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// The engine's error in the store's words.
pub(super) fn wrong(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => file::wrong_io(error),
        redb::Error::Corrupted(what) => StoreError::Damaged(what),
        other => RedbError::Engine(other).into(),
    }
}
