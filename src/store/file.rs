//! The file under an engine: private to its owner, marked when it was closed in order.
//!
//! Nothing here follows a symbolic link or loosens a mode.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::engine::StoreError;

/// What the clean marker begins with.
const CLEAN: &str = "doorward-store closed 1";

/// An I/O error as the store reports it.
pub(super) fn wrong_io(error: std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            StoreError::Damaged("the file is no whole store".to_owned())
        }
        _ => StoreError::Failed(Box::new(error)),
    }
}

/// Makes a new file, mode 0600, over nothing.
pub(super) fn make_private(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => StoreError::Exists(path.to_owned()),
        _ => wrong_io(error),
    })
}

/// Opens a plain file of ours that nobody else may touch.
pub(super) fn open_private(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => StoreError::Absent(path.to_owned()),
        Some(libc::ELOOP | libc::EISDIR) => StoreError::Loose(path.to_owned()),
        _ => wrong_io(error),
    })?;
    let meta = file.metadata().map_err(wrong_io)?;
    let ours = meta.uid() == nix::unistd::geteuid().as_raw();
    if !meta.is_file() || !ours || meta.permissions().mode() & 0o077 != 0 {
        return Err(StoreError::Loose(path.to_owned()));
    }
    Ok(file)
}

fn marker(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".clean");
    PathBuf::from(name)
}

/// What the marker says of a file: any change, copy or exchange of it shows.
fn state_of(meta: &Metadata) -> String {
    let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
    format!("{CLEAN} {} {} {seconds}.{nanos:09}\n", meta.ino(), meta.len())
}

/// Whether the last process closed the store in order and nothing has touched its file since. The
/// marker is used up by asking.
pub(super) fn take_marker(path: &Path, file: &File) -> Result<bool, StoreError> {
    let marker = marker(path);
    let mut said = String::new();
    match File::open(&marker).and_then(|file| file.take(256).read_to_string(&mut said)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == ErrorKind::InvalidData => {} // said nothing that counts
        Err(error) => return Err(wrong_io(error)),
    }
    std::fs::remove_file(&marker).map_err(wrong_io)?;
    sync_directory(path)?;
    Ok(said == state_of(&file.metadata().map_err(wrong_io)?))
}

/// Says that the store was closed in order, and how its file looked then.
pub(super) fn leave_marker(path: &Path) -> std::io::Result<()> {
    let state = state_of(&std::fs::symlink_metadata(path)?);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(marker(path))?;
    file.write_all(state.as_bytes())?;
    file.sync_all()?;
    sync_directory(path).map_err(std::io::Error::other)
}

/// Makes a new or removed name in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(wrong_io)
}
