//! Private files: never readable by others, whole or not there, and new ones never over an existing
//! one.

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

/// Writes a file, 0600, in place of one that may be there already. Whoever reads it sees the old
/// one or the new one, whole; a link there is replaced, not followed.
///
/// # Errors
/// When the disk refuses; an old file is then still there.
pub fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let fault = |source| FileError { path: path.to_owned(), source };
    let name = path.file_name().ok_or_else(|| fault(std::io::ErrorKind::InvalidInput.into()))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    let _ = std::fs::remove_file(&beside); // of a process with our number that was killed here
    let written =
        write_private(&beside, bytes).and_then(|()| std::fs::rename(&beside, path).map_err(fault));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_new_file_is_never_written_over_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        write_private(&path, b"one").unwrap();
        assert!(write_private(&path, b"two").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_file_left_behind_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        for text in ["of a broker that was killed", "of the next one"] {
            replace_private(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = dir.path().join("other");
        std::fs::write(&other, "of somebody else").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        replace_private(&path, b"mine").unwrap();
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "of somebody else");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing stays beside it");
        assert!(replace_private(&dir.path().join("none/ready"), b"x").is_err());
        assert!(replace_private(Path::new("/"), b"x").is_err());
    }
}
