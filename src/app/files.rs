//! Private files: never readable by others, whole or not there, and new ones never over an existing
//! one.

use std::io::{ErrorKind, Write as _};
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

/// Writes a new file, 0600, synced: whole, or nothing. An existing one is never overwritten.
///
/// # Errors
/// When it is there already, or the disk refuses.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let beside = beside(path)?;
    let written = write_new(&beside, bytes)
        .and_then(|()| place_new(&beside, path))
        .map_err(|source| FileError { path: path.to_owned(), source });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// Writes a file, 0600, in place of one that may be there already. Whoever reads it sees the old
/// one or the new one, whole; a link there is replaced, not followed.
///
/// # Errors
/// When the disk refuses; an old file is then still there.
pub fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let beside = beside(path)?;
    let written = write_new(&beside, bytes)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|source| FileError { path: path.to_owned(), source });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// A name beside a file, of this process alone; nothing has it.
fn beside(path: &Path) -> Result<PathBuf, FileError> {
    let fault = |source| FileError { path: path.to_owned(), source };
    let name = path.file_name().ok_or_else(|| fault(ErrorKind::InvalidInput.into()))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    let _ = std::fs::remove_file(&beside); // of a process with our number that was killed here
    Ok(beside)
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Gives a file its name, which nothing must have.
fn place_new(from: &Path, to: &Path) -> std::io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // File systems of a network may not know how.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            std::fs::hard_link(from, to).and_then(|()| std::fs::remove_file(from))
        }
        placed => placed.map_err(Into::into),
    }
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
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing stays beside it");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::os::unix::fs::symlink("/nonexistent/x", dir.path().join("link")).unwrap();
        assert!(write_private(&dir.path().join("link"), b"x").is_err(), "a link is something");
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
