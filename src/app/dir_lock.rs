//! One process for one directory: a lock on the broker's directory itself, held from before the
//! seal is asked for until the process ends.
//!
//! The store and the log have locks of their own, but they are taken after the seal is open; a
//! sealed broker would not know of another one until its passphrase came. The kernel lets go of the
//! lock with the process, however it ends, so nothing is ever left behind. Whoever holds it knows
//! that a socket in the directory is nobody's.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::limits;

/// How often a directory is tried that somebody holds.
const AGAIN: Duration = Duration::from_millis(50);

/// Why a directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another process holds `{0}`: another broker runs here; stop it first")]
    Held(PathBuf),
    /// The system refused.
    #[error("can't lock the directory `{path}`")]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
}

/// The broker's directory, locked; dropping it lets go.
#[derive(Debug)]
pub struct DirLock(#[allow(dead_code, reason = "held open, never read")] File);

impl DirLock {
    /// Locks a directory. Somebody who is about to end, or only looks, is waited for.
    ///
    /// # Errors
    /// When another process has it, or the system refuses.
    pub async fn take(dir: &Path) -> Result<Self, LockError> {
        let file = open(dir)?;
        let mut left = limits::LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(file)),
                Err(TryLockError::Error(source)) => return Err(refused(dir, source)),
                Err(TryLockError::WouldBlock) if left.is_zero() => {
                    return Err(LockError::Held(dir.to_owned()));
                }
                Err(TryLockError::WouldBlock) => {
                    tokio::time::sleep(AGAIN).await;
                    left = left.saturating_sub(AGAIN);
                }
            }
        }
    }

    /// Whether a process has the directory now.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn is_held(dir: &Path) -> Result<bool, LockError> {
        match open(dir)?.try_lock_shared() {
            Ok(()) => Ok(false), // given back at once; whoever starts meanwhile tries again
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(refused(dir, source)),
        }
    }
}

fn open(dir: &Path) -> Result<File, LockError> {
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    let file = File::options().read(true).custom_flags(flags).open(dir);
    file.map_err(|source| refused(dir, source))
}

fn refused(dir: &Path, source: std::io::Error) -> LockError {
    LockError::Io { path: dir.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_has_one_holder_and_is_free_again_after_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!DirLock::is_held(dir.path()).unwrap());
        let first = DirLock::take(dir.path()).await.unwrap();
        assert!(DirLock::is_held(dir.path()).unwrap());
        let error = DirLock::take(dir.path()).await.unwrap_err();
        assert!(matches!(error, LockError::Held(_)), "{error}");
        drop(first);
        DirLock::take(dir.path()).await.unwrap();
        assert!(matches!(DirLock::take(&dir.path().join("none")).await, Err(LockError::Io { .. })));
    }
}
