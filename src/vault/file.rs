//! Files that hold keys: private to their owner, written whole or not at all, read with a bound.
//!
//! Nothing here follows a symbolic link, loosens a mode or keeps a copy of what it read.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::wrap;

/// Why a file of keys is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not there.
    #[error("{0} does not exist")]
    Absent(PathBuf),
    /// Something is there that must not be written over.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// A link, a device, another's, or open to others.
    #[error("{0} must be a plain file of this user, closed to others: `chmod 600` it")]
    Loose(PathBuf),
    /// A directory that others may enter.
    #[error("{0} must be a directory of this user, closed to others: `chmod 700` it")]
    LooseDirectory(PathBuf),
    /// More bytes than such a file can hold.
    #[error("{0} is over {1} bytes")]
    TooLarge(PathBuf, usize),
    /// The system refused.
    #[error("{0} can't be read or written")]
    Io(PathBuf, #[source] std::io::Error),
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> FileError + '_ {
    move |error| match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) => FileError::Absent(path.to_owned()),
        (ErrorKind::AlreadyExists, _) => FileError::Exists(path.to_owned()),
        (_, Some(libc::ELOOP | libc::EISDIR)) => FileError::Loose(path.to_owned()),
        _ => FileError::Io(path.to_owned(), error),
    }
}

/// Whether this user or root owns it and nobody else may touch it.
fn is_private(meta: &std::fs::Metadata) -> bool {
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    ours && meta.mode() & 0o077 == 0
}

/// Opens a private file to read, or to read and write.
pub(super) fn open(path: &Path, write: bool) -> Result<File, FileError> {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK a named pipe in the file's place would hang us.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = options.read(true).write(write).custom_flags(flags).open(path).map_err(io(path))?;
    let meta = file.metadata().map_err(io(path))?;
    if !meta.is_file() || !is_private(&meta) {
        return Err(FileError::Loose(path.to_owned()));
    }
    Ok(file)
}

/// All bytes of a private file of at most `max` bytes.
pub(super) fn read(path: &Path, max: usize) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = open(path, false)?;
    // Room for all of it from the start: a growing vector would leave key bytes behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max.saturating_add(1)));
    let bound = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(bound).read_to_end(&mut bytes).map_err(io(path))?;
    if bytes.len() > max {
        return Err(FileError::TooLarge(path.to_owned(), max));
    }
    Ok(bytes)
}

/// Makes a new private file over nothing; durable when it returns, its name too.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_new(path, bytes)?;
    sync_directory(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(io(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(path))
}

/// Puts a whole private file in place of what is there: the old one or the new one, never half.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", hex::encode(wrap::random::<8>().as_slice())));
    let fresh = PathBuf::from(name);
    let done =
        write_new(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, path).map_err(io(path)));
    if done.is_err() {
        let _ = std::fs::remove_file(&fresh); // it may not be there; the error above says why
    }
    done?;
    sync_directory(path)
}

/// Makes the directory, mode 0700, unless it is there; then it must be private.
pub(super) fn private_directory(path: &Path) -> Result<(), FileError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let meta = std::fs::symlink_metadata(path).map_err(io(path))?;
            match meta.is_dir() && is_private(&meta) {
                true => Ok(()),
                false => Err(FileError::LooseDirectory(path.to_owned())),
            }
        }
        Err(error) => Err(io(path)(error)),
    }
}

/// Makes a new name in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io(directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_private_plain_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        create(&path, b"bytes").unwrap();
        assert_eq!(read(&path, 5).unwrap().as_slice(), b"bytes");
        assert!(matches!(read(&path, 4), Err(FileError::TooLarge(_, 4))));
        for mode in [0o640, 0o604, 0o610, 0o601, 0o620, 0o602, 0o777] {
            chmod(&path, mode);
            assert!(matches!(read(&path, 5), Err(FileError::Loose(_))), "{mode:o}");
        }
        chmod(&path, 0o400);
        assert!(read(&path, 5).is_ok());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, 5), Err(FileError::Loose(_))));
        assert!(matches!(read(dir.path(), 5), Err(FileError::Loose(_))));
        assert!(matches!(read(Path::new("/dev/zero"), 5), Err(FileError::Loose(_))));
        assert!(matches!(read(&dir.path().join("no"), 5), Err(FileError::Absent(_))));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&pipe, 5), Err(FileError::Loose(_))));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        create(&path, b"bytes").unwrap();
        assert!(is_private(&std::fs::metadata(&path).unwrap()));
        // Only root may give a file away.
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            assert!(matches!(read(&path, 5), Err(FileError::Loose(_))));
        }
    }

    #[test]
    fn a_file_is_made_once_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        create(&path, b"first").unwrap();
        assert!(matches!(create(&path, b"second"), Err(FileError::Exists(_))));
        replace(&path, b"third").unwrap();
        assert_eq!(read(&path, 9).unwrap().as_slice(), b"third");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn directories_are_made_private_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        private_directory(&path).unwrap();
        private_directory(&path).unwrap();
        chmod(&path, 0o750);
        assert!(matches!(private_directory(&path), Err(FileError::LooseDirectory(_))));
        let file = dir.path().join("file");
        create(&file, b"").unwrap();
        assert!(matches!(private_directory(&file), Err(FileError::LooseDirectory(_))));
    }
}
