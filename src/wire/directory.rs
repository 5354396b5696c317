//! Files that hold an identity: read only where nobody else can read or change them, written whole.
//!
//! Owner and mode are looked at through the open descriptor, so what was checked is what is read; a
//! symbolic link in place of a file is refused.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::model::limits::CREDENTIALS_FILE_MAX;

/// Why a file of an identity can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It belongs to someone else.
    #[error("{} belongs to user {uid}; it must belong to the user who runs this", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Others may read or change it.
    #[error("{0} is open to others (mode {mode:04o}); run `chmod {want:o} {0}`", path.display())]
    Loose {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        want: u32,
    },
    /// A directory where a file should be, or the reverse.
    #[error("{} is not a {want}", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it should be.
        want: &'static str,
    },
    /// It can't be read.
    #[error("{} can't be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Larger than anything honest.
    #[error("{} is larger than {CREDENTIALS_FILE_MAX} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It can't be written.
    #[error("{} can't be written", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only its owner: it holds a key.
    Owner,
    /// Anyone; only its owner may change it.
    Anyone,
}

/// Refuses a directory in which others could replace a file.
///
/// # Errors
/// When it is no directory, someone else's, or open to changes by others.
pub fn check(directory: &Path) -> Result<(), DirectoryError> {
    let metadata = std::fs::metadata(directory)
        .map_err(|source| DirectoryError::Read { path: directory.to_owned(), source })?;
    if !metadata.is_dir() {
        return Err(DirectoryError::Kind { path: directory.to_owned(), want: "directory" });
    }
    check_owner(directory, metadata.uid())?;
    check_mode(directory, metadata.mode(), 0o022, 0o700)
}

/// Reads one file of a checked directory, whole, into a wiped buffer.
///
/// # Errors
/// When it can't be read, or others could have read or changed it.
pub fn read(
    directory: &Path,
    name: &str,
    by: Access,
) -> Result<Zeroizing<Vec<u8>>, DirectoryError> {
    let path = directory.join(name);
    let failed = |source| DirectoryError::Read { path: path.clone(), source };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(DirectoryError::Kind { path, want: "file" });
    }
    check_owner(&path, metadata.uid())?;
    match by {
        Access::Owner => check_mode(&path, metadata.mode(), 0o077, 0o600)?,
        Access::Anyone => check_mode(&path, metadata.mode(), 0o022, 0o600)?,
    }
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if length > CREDENTIALS_FILE_MAX {
        return Err(DirectoryError::TooLarge { path });
    }
    // Filled to its length and no further: a vector that grows leaves an unwiped copy behind.
    let mut bytes = Zeroizing::new(vec![0; length]);
    let mut file = file;
    file.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Makes the directory (0700) if it is not there, and checks it.
///
/// # Errors
/// When it can't be made, or is not ours alone.
pub fn make(directory: &Path) -> Result<(), DirectoryError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(directory)
        .map_err(|source| DirectoryError::Write { path: directory.to_owned(), source })?;
    check(directory)
}

/// Writes one file (0600) so that readers see the old one or the new one, never a part: a new file
/// beside it, synced, renamed over it. The directory's own sync is the caller's last step.
///
/// # Errors
/// When it can't be written; the old file is untouched then.
pub fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), DirectoryError> {
    let path = directory.join(name);
    // A fixed name: what a crash leaves behind is overwritten next time instead of piling up keys.
    let fresh = directory.join(format!(".{name}.new"));
    write_synced(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, &path)).map_err(|source| {
        let _ = std::fs::remove_file(&fresh);
        DirectoryError::Write { path, source }
    })
}

/// Makes renames in the directory durable.
///
/// # Errors
/// When the directory can't be synced.
pub fn sync(directory: &Path) -> Result<(), DirectoryError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|source| DirectoryError::Write { path: directory.to_owned(), source })
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn check_owner(path: &Path, uid: u32) -> Result<(), DirectoryError> {
    // Root could read and change everything anyway.
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(DirectoryError::Foreign { path: path.to_owned(), uid })
}

fn check_mode(path: &Path, mode: u32, forbidden: u32, want: u32) -> Result<(), DirectoryError> {
    if mode & forbidden == 0 {
        return Ok(());
    }
    Err(DirectoryError::Loose { path: path.to_owned(), mode: mode & 0o7777, want })
}
