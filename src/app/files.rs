//! New private files: never over an existing one, never readable by others, whole or not there.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write `{path}`")]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// The system's word.
    #[source]
    pub source: std::io::Error,
}

/// Writes a new file, 0600, synced. An existing one is never overwritten.
///
/// # Errors
/// When it is there already, or the disk refuses.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| FileError { path: path.to_owned(), source })
}

/// Makes a directory and those above it, 0700.
///
/// # Errors
/// When the system refuses.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError { path: path.to_owned(), source })
}
