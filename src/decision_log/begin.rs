//! Before anything is recovered: the directory and its lock, and the log that does not exist yet.
//!
//! An empty log is begun only where nothing lies; what is half there is never taken for nothing.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::frame::{BLOCK, SegmentHead, segment_path};
use super::merkle::Frontier;
use super::note::Note;
use super::record::{self, Around};
use super::recover::{Base, OpenLogError, Replay};
use super::shared::{Published, Shared};
use super::signed_note::LogKey;
use super::sink::{Put, Sink};
use super::writer::Committer;
use crate::model::limits::LOG_SEGMENT_MIN;

/// Makes the directory, keeps others out of it, and locks it.
pub(super) fn take_directory(dir: &Path) -> Result<File, OpenLogError> {
    let failed = OpenLogError::io(dir);
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(&failed)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(&failed)?;
        }
    }
    let own = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(dir)
        .map_err(&failed)?;
    let mode = own.metadata().map_err(&failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        own.set_permissions(Permissions::from_mode(0o700)).map_err(&failed)?;
    }
    let lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(dir.join("lock"))
        .map_err(&failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenLogError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// A log that does not exist yet: a signed checkpoint over nothing. Refused where anything is.
pub(super) fn begin(
    sink: &dyn Sink,
    dir: &Path,
    origin: &str,
    key: &LogKey,
) -> Result<Base, OpenLogError> {
    for name in ["tile", "wal"] {
        if std::fs::symlink_metadata(dir.join(name)).is_ok() {
            return Err(OpenLogError::Corrupt {
                file: "checkpoint".to_owned(),
                offset: 0,
                what: "it is missing, but the log is not empty",
            });
        }
    }
    let edge = Frontier::default();
    let checkpoint = Checkpoint { size: 0, root: edge.root() };
    let note = checkpoint.sign(origin, key).ok_or(OpenLogError::Origin)?;
    sink.put("checkpoint", note.as_bytes(), Put::Replace)
        .and_then(|()| sink.sync_names())
        .map_err(OpenLogError::io(&dir.join("checkpoint")))?;
    let published = Published { edge: Arc::new(edge), checkpoint: note.into() };
    Ok(Base { published, bundle: Vec::new() })
}

/// The first segment of a log over which nothing stands yet; the smallest, as at a rotation, where a
/// whole one would eat the reserve. Ordinary records then wait for room, operators can make some.
pub(super) fn first_segment(
    sink: &dyn Sink,
    dir: &Path,
    size: u64,
    (bytes, reserve): (u64, u64),
) -> Result<Replay, OpenLogError> {
    if size > 0 {
        return Err(OpenLogError::Corrupt {
            file: "wal".to_owned(),
            offset: 0,
            what: "every segment of the write-ahead log is missing",
        });
    }
    let free = sink.free().map_err(OpenLogError::io(dir))?;
    let roomy = free >= reserve.saturating_add(bytes);
    let bytes = if roomy { bytes } else { LOG_SEGMENT_MIN.min(bytes) };
    let path = segment_path(0);
    let head = SegmentHead { first: 0, batch: 1 };
    sink.create(&path, bytes, &head.to_block()).map_err(OpenLogError::io(&dir.join(&path)))?;
    Ok(Replay {
        chunks: Vec::new(),
        path,
        end: bytes,
        at: BLOCK,
        index: 0,
        batch: 1,
        closed: Vec::new(),
        cut: None,
    })
}

/// Writes down that something was cut, before anything else is written.
pub(super) fn record_gap(
    shared: &Shared,
    committer: &mut Committer,
    cut_bytes: u64,
    dir: &Path,
) -> Result<(), OpenLogError> {
    let around = Around { origin: &shared.origin, at: shared.clock.now().wall(), head: None };
    let mut load = shared.queue.spare();
    load.push(&record::note(&Note::Gap { cut_bytes }, &around));
    let before = shared.size();
    let written = committer.step(&mut load, false);
    match written {
        Ok(()) if shared.size() > before => Ok(()),
        _ => {
            let full = io::Error::from(io::ErrorKind::StorageFull);
            Err(OpenLogError::io(dir)(full))
        }
    }
}
