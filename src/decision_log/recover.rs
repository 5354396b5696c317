//! What the log was when the process ended, found again from the disk.
//!
//! The signed checkpoint must agree with the tiles' right edge. Behind it the write-ahead log is
//! read to its end: a last batch that is not whole is cut (nobody was answered on its strength), a
//! batch that is not whole with a whole one behind it is corruption, and corruption is never
//! opened.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::frame::{BLOCK, BatchHead, HEADER, HeadFault, SegmentHead, align, segment_path};
use super::merkle::{Frontier, TILE_WIDTH, leaf};
use super::shared::{Chunk, Published};
use super::signed_note::{NOTE_MAX, VerifierKey};
use super::stored::Stored;
use super::tiles::{Entries, bundle_path, tile_path};
use crate::model::limits::{LOG_BATCH_BYTES, RECORD_MAX};

/// Why a log is not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLogError {
    /// What is on the disk contradicts itself; nothing was changed.
    #[error("the decision log is damaged: {file} at byte {offset}: {what}; restore it from a copy")]
    Corrupt {
        /// Path under the log's directory.
        file: String,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The checkpoint was not signed by this key under this origin.
    #[error("the checkpoint in {} is not signed by this log's key under this origin", .0.display())]
    Foreign(PathBuf),
    /// A file can't be read or written.
    #[error("the decision log's {} can't be read or written", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process writes this log.
    #[error("another process holds the decision log in {}; stop it first", .0.display())]
    Locked(PathBuf),
    /// Written by a newer version of the program.
    #[error("{file} of the decision log has format {format}; a newer doorward wrote it")]
    Newer {
        /// Path under the log's directory.
        file: String,
        /// Its format version.
        format: u32,
    },
    /// The origin can't name a log.
    #[error("the origin is not of the form <trust domain>/decisions/<epoch>")]
    Origin,
}

impl OpenLogError {
    /// An error of a file.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

fn corrupt(file: &str, offset: u64, what: &'static str) -> OpenLogError {
    OpenLogError::Corrupt { file: file.to_owned(), offset, what }
}

/// The published part as it lies on the disk.
pub(super) struct Base {
    pub(super) published: Published,
    /// Records of the partial bundle.
    pub(super) bundle: Vec<u8>,
}

/// Reads the checkpoint and the edge that it covers. `None` when there is no checkpoint.
pub(super) fn base(
    stored: &Stored,
    dir: &Path,
    key: &VerifierKey,
) -> Result<Option<Base>, OpenLogError> {
    let note = match stored.file("checkpoint", NOTE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(OpenLogError::io(&dir.join("checkpoint")))?,
    };
    let foreign = || OpenLogError::Foreign(dir.to_owned());
    let note = String::from_utf8(note).map_err(|_| foreign())?;
    let Checkpoint { size, root } = Checkpoint::open(&note, key).map_err(|_| foreign())?;
    let edge = edge(stored, size)?;
    if edge.root() != root {
        return Err(corrupt("checkpoint", 0, "the tiles have another root than was signed"));
    }
    let bundle = partial_bundle(stored, &edge)?;
    Ok(Some(Base {
        published: Published { edge: Arc::new(edge), checkpoint: note.into() },
        bundle,
    }))
}

fn edge(stored: &Stored, size: u64) -> Result<Frontier, OpenLogError> {
    let mut levels = Vec::new();
    let mut rest = size;
    while rest > 0 {
        let (index, level) = (rest / TILE_WIDTH, levels.len());
        let width = usize::try_from(rest % TILE_WIDTH).unwrap_or(0);
        let hashes = match width {
            0 => Vec::new(),
            _ => stored.tile(level, index, width).map_err(|_| {
                corrupt(&tile_path(level, index, width), 0, "it is missing or cut short")
            })?,
        };
        levels.push(hashes);
        rest = index;
    }
    Frontier::from_levels(size, levels)
        .ok_or_else(|| corrupt("checkpoint", 0, "the tiles do not fit its size"))
}

fn partial_bundle(stored: &Stored, edge: &Frontier) -> Result<Vec<u8>, OpenLogError> {
    let leaves = edge.levels().first().map(Vec::as_slice).unwrap_or_default();
    if leaves.is_empty() {
        return Ok(Vec::new());
    }
    let index = edge.size() / TILE_WIDTH;
    let path = bundle_path(index, leaves.len());
    let bundle = stored
        .bundle(index, leaves.len())
        .map_err(|_| corrupt(&path, 0, "it is missing or cut short"))?;
    let mut entries = Entries::new(&bundle);
    for wanted in leaves {
        let at = u64::try_from(entries.position()).unwrap_or(u64::MAX);
        if entries.next().flatten().map(leaf).as_ref() != Some(wanted) {
            return Err(corrupt(&path, at, "a record is not the one in the tree"));
        }
    }
    Ok(bundle)
}

/// The write-ahead log, read to its end.
pub(super) struct Replay {
    /// Records behind the checkpoint.
    pub(super) chunks: Vec<Chunk>,
    /// The last segment.
    pub(super) path: String,
    /// Its length in bytes.
    pub(super) end: u64,
    /// Where the next batch goes.
    pub(super) at: u64,
    /// Index of the next record.
    pub(super) index: u64,
    /// Number of the next batch.
    pub(super) batch: u64,
    /// Segments before the last: path, index behind the last record.
    pub(super) closed: Vec<(String, u64)>,
    /// Offset behind a last batch that is not whole, if there is one: `at .. cut` is to be wiped.
    pub(super) cut: Option<u64>,
}

/// Reads all segments. `None` when there are none.
pub(super) fn replay(dir: &Path, size: u64) -> Result<Option<Replay>, OpenLogError> {
    let firsts = segments(dir)?;
    let mut replay: Option<Replay> = None;
    for (place, first) in firsts.iter().enumerate() {
        let path = segment_path(*first);
        let mut reader = Reader::open(dir, &path)?;
        let head = reader.head()?;
        let expected = replay.as_ref().map_or((head.first, head.batch), |r| (r.index, r.batch));
        if head.first != *first || (head.first, head.batch) != expected {
            return Err(corrupt(&path, 0, "records before it are missing"));
        }
        let mut now = replay.take().unwrap_or_else(|| Replay {
            chunks: Vec::new(),
            path: String::new(),
            end: 0,
            at: 0,
            index: head.first,
            batch: head.batch,
            closed: Vec::new(),
            cut: None,
        });
        if !now.path.is_empty() {
            now.closed.push((std::mem::take(&mut now.path), now.index));
        }
        (now.at, now.end, now.path) = (BLOCK, reader.length, path);
        while let Some(chunk) = reader.batch(now.at, now.batch, now.index)? {
            now.at = align(now.at + reader.taken);
            now.batch += 1;
            now.index = chunk.first + chunk.count;
            keep(&mut now.chunks, chunk, size);
        }
        now.cut = reader.remainder(now.at, now.batch)?;
        if now.cut.is_some() && place + 1 < firsts.len() {
            return Err(corrupt(&now.path, now.at, "a batch is damaged and others follow it"));
        }
        replay = Some(now);
    }
    match &replay {
        Some(found) if firsts.first().is_some_and(|first| *first > size) => {
            Err(corrupt(&found.path, 0, "records between it and the checkpoint are missing"))
        }
        Some(found) if found.index < size => {
            Err(corrupt(&found.path, found.at, "it ends before the signed checkpoint"))
        }
        _ => Ok(replay),
    }
}

/// Keeps what stands behind the checkpoint.
fn keep(chunks: &mut Vec<Chunk>, mut chunk: Chunk, size: u64) {
    if chunk.first.saturating_add(chunk.count) <= size {
        return;
    }
    let covered = size.saturating_sub(chunk.first);
    let mut entries = chunk.entries();
    for _ in 0..covered {
        entries.next();
    }
    let skip = entries.position();
    chunk.from = chunk.from.saturating_add(skip);
    chunk.first = chunk.first.saturating_add(covered);
    chunk.count = chunk.count.saturating_sub(covered);
    chunks.push(chunk);
}

/// First indices of all segments, ascending.
fn segments(dir: &Path) -> Result<Vec<u64>, OpenLogError> {
    let wal = dir.join("wal");
    let names = match std::fs::read_dir(&wal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(OpenLogError::io(&wal))?,
    };
    let mut firsts = Vec::new();
    for name in names {
        let name = name.map_err(OpenLogError::io(&wal))?.file_name();
        let name = name.to_string_lossy();
        let first = name.parse().ok().filter(|first| segment_path(*first) == format!("wal/{name}"));
        match first {
            Some(first) => firsts.push(first),
            None => return Err(corrupt(&format!("wal/{name}"), 0, "it is no segment of this log")),
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

struct Reader {
    file: File,
    path: String,
    full: PathBuf,
    length: u64,
    /// Bytes of the batch read last.
    taken: u64,
}

impl Reader {
    fn open(dir: &Path, path: &str) -> Result<Self, OpenLogError> {
        let full = dir.join(path);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&full)
            .map_err(OpenLogError::io(&full))?;
        let length = file.metadata().map_err(OpenLogError::io(&full))?.len();
        Ok(Self { file, path: path.to_owned(), full, length, taken: 0 })
    }

    fn read(&self, at: u64, count: usize) -> Result<Vec<u8>, OpenLogError> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, at).map_err(OpenLogError::io(&self.full))?;
        Ok(bytes)
    }

    fn head(&self) -> Result<SegmentHead, OpenLogError> {
        let block = if self.length >= BLOCK { self.read(0, 512)? } else { Vec::new() };
        SegmentHead::parse(&block).map_err(|fault| match fault {
            HeadFault::Newer(format) => OpenLogError::Newer { file: self.path.clone(), format },
            HeadFault::Damaged => {
                corrupt(&self.path, 0, "it is no segment, or its head is damaged")
            }
        })
    }

    /// The batch at `at`, if it is whole and the one expected there.
    fn batch(&mut self, at: u64, number: u64, first: u64) -> Result<Option<Chunk>, OpenLogError> {
        let Some((head, frame)) = self.whole(at)? else { return Ok(None) };
        let chunk = Chunk { first, count: u64::from(head.count), frame, from: HEADER };
        let whole = chunk.entries().try_fold(0u64, |count, entry| entry.map(|_| count + 1));
        let expected = head.number == number && head.first == first && head.count > 0;
        if !expected || whole != Some(chunk.count) {
            return Ok(None);
        }
        self.taken = u64::try_from(chunk.frame.len()).unwrap_or(u64::MAX);
        Ok(Some(chunk))
    }

    /// A batch at `at` whose seal holds.
    fn whole(&self, at: u64) -> Result<Option<(BatchHead, Vec<u8>)>, OpenLogError> {
        let header = u64::try_from(HEADER).unwrap_or(u64::MAX);
        let room = self.length.saturating_sub(at);
        if room < header {
            return Ok(None);
        }
        let Some(head) = BatchHead::parse(&self.read(at, HEADER)?) else { return Ok(None) };
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        let possible = length <= LOG_BATCH_BYTES.saturating_add(RECORD_MAX);
        if !possible || u64::from(head.length) > room - header {
            return Ok(None);
        }
        let frame = self.read(at, HEADER + length)?;
        Ok(frame.get(HEADER..).is_some_and(|payload| head.covers(payload)).then_some((head, frame)))
    }

    /// Looks through everything from `at` on: only zeros gives `None`, anything else the offset
    /// behind its last block, and a whole later batch is corruption.
    fn remainder(&self, at: u64, number: u64) -> Result<Option<u64>, OpenLogError> {
        const STEP: usize = 1024 * 1024;
        let mut last = None;
        let mut from = at;
        while let Some(data) = self.next_data(from)? {
            from = data;
            let count = usize::try_from(self.length - from).unwrap_or(STEP).min(STEP);
            let bytes = self.read(from, count)?;
            for (block, place) in bytes.chunks(512).zip((from..).step_by(512)) {
                if block.iter().all(|byte| *byte == 0) {
                    continue;
                }
                last = Some((place + BLOCK).min(self.length));
                if self.whole(place)?.is_some_and(|(head, _)| head.number >= number) {
                    return Err(corrupt(&self.path, at, "a batch is damaged and others follow it"));
                }
            }
            from = from.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(last)
    }

    /// The next block at or behind `from` that the file system does not know to be a hole.
    fn next_data(&self, from: u64) -> Result<Option<u64>, OpenLogError> {
        if from >= self.length {
            return Ok(None);
        }
        let offset = i64::try_from(from).unwrap_or(i64::MAX);
        match nix::unistd::lseek(&self.file, offset, nix::unistd::Whence::SeekData) {
            Ok(data) => {
                let data = u64::try_from(data).unwrap_or(from).max(from);
                Ok(Some(data / BLOCK * BLOCK).map(|data| data.max(from)))
            }
            Err(nix::errno::Errno::ENXIO) => Ok(None),
            Err(_) => Ok(Some(from)), // the file system knows of no holes
        }
    }
}
