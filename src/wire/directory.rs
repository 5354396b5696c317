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

/// New files that belong together, while they are written, and once they count.
const PART: &str = ".next.part";
const NEXT: &str = ".next";

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

/// Writes several files (0600) that belong together: readers see all of the old ones or all of the
/// new ones, at whatever point this is cut off. They are written into a directory of their own; its
/// one rename decides, and what is left to do then is [`settle`]'s.
///
/// # Errors
/// When they can't be written. The old ones are untouched then, unless they were replaced already.
pub fn replace_all(directory: &Path, files: &[(&str, &[u8])]) -> Result<(), DirectoryError> {
    settle(directory)?;
    let (part, next) = (directory.join(PART), directory.join(NEXT));
    let failed = |source| DirectoryError::Write { path: part.clone(), source };
    let written = forget(&part)
        .and_then(|()| DirBuilder::new().mode(0o700).create(&part))
        .and_then(|()| {
            files.iter().try_for_each(|(name, bytes)| write_synced(&part.join(name), bytes))
        })
        .and_then(|()| File::open(&part)?.sync_all())
        .and_then(|()| std::fs::rename(&part, &next));
    if let Err(source) = written {
        let _ = forget(&part); // it may hold a key
        return Err(failed(source));
    }
    sync(directory)?;
    settle(directory)
}

/// Finishes a `replace_all` that was decided and cut off. Several may do so at once.
///
/// # Errors
/// When the files can't be put in their places.
pub fn settle(directory: &Path) -> Result<(), DirectoryError> {
    let next = directory.join(NEXT);
    let failed = |source| DirectoryError::Write { path: next.clone(), source };
    let entries = match std::fs::read_dir(&next) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        gone_is_done(std::fs::rename(entry.path(), directory.join(entry.file_name())))
            .map_err(failed)?;
    }
    sync(directory)?;
    gone_is_done(std::fs::remove_dir(&next)).map_err(failed)
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
    gone_is_done(std::fs::remove_file(path))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn forget(directory: &Path) -> io::Result<()> {
    gone_is_done(std::fs::remove_dir_all(directory))
}

/// What is not there any more need not be moved or removed.
fn gone_is_done(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [(&str, &[u8]); 2] = [("key", b"old key"), ("svid", b"old svid")];
    const NEW: [(&str, &[u8]); 2] = [("key", b"new key"), ("svid", b"new svid")];

    fn seen(dir: &Path) -> Vec<Vec<u8>> {
        OLD.iter().map(|(name, _)| std::fs::read(dir.join(name)).unwrap()).collect()
    }

    fn with_old() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        replace_all(dir.path(), &OLD).unwrap();
        dir
    }

    #[test]
    fn files_that_belong_together_change_together() {
        let dir = with_old();
        replace_all(dir.path(), &NEW).unwrap();
        assert_eq!(seen(dir.path()), [b"new key".to_vec(), b"new svid".to_vec()]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing stays beside them");
    }

    #[test]
    fn what_was_cut_off_is_undone_before_the_decision_and_finished_after_it() {
        let dir = with_old();
        let (part, next) = (dir.path().join(PART), dir.path().join(NEXT));
        std::fs::create_dir(&part).unwrap();
        std::fs::write(part.join("key"), "half").unwrap();
        settle(dir.path()).unwrap();
        assert_eq!(seen(dir.path()), [b"old key".to_vec(), b"old svid".to_vec()]);

        for moved in 0..=NEW.len() {
            replace_all(dir.path(), &OLD).unwrap(); // a part that was left is no hindrance
            assert!(!part.exists());
            std::fs::create_dir(&next).unwrap();
            for (at, (name, bytes)) in NEW.iter().enumerate() {
                let to = if at < moved { dir.path().join(name) } else { next.join(name) };
                std::fs::write(to, bytes).unwrap();
            }
            settle(dir.path()).unwrap();
            assert_eq!(seen(dir.path()), [b"new key".to_vec(), b"new svid".to_vec()], "{moved}");
            assert!(!next.exists());
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_files_and_no_new_key() {
        let dir = with_old();
        let bad: [(&str, &[u8]); 2] = [("key", b"new key"), ("none/svid", b"new svid")];
        assert!(replace_all(dir.path(), &bad).is_err());
        assert_eq!(seen(dir.path()), [b"old key".to_vec(), b"old svid".to_vec()]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
