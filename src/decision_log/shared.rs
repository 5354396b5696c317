//! What the handle, the committer and the publisher share: records that are durable but not yet in
//! tiles, the last checkpoint, and the flags.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::counts::Counts;
use super::merkle::{Frontier, Hash, leaf_with};
use super::queue::{Queue, Rank, RecordError};
use super::sink::Sink;
use super::stored::Stored;
use super::tiles::Entries;
use crate::model::limits::{LOG_REQUESTS, LOG_TAIL_BYTES, LOG_TAIL_EAGER};
use crate::model::{Clock, RequestId};

/// Records of one batch, as they went to the disk.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Index of the first.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
    /// The frame that held them.
    pub(super) frame: Vec<u8>,
    /// Where in it the records begin.
    pub(super) from: usize,
}

impl Chunk {
    /// The records.
    pub(super) fn entries(&self) -> Entries<'_> {
        Entries::new(self.frame.get(self.from..).unwrap_or_default())
    }
}

/// What tiles and checkpoint cover.
#[derive(Debug, Clone)]
pub(super) struct Published {
    /// The tree's right edge.
    pub(super) edge: Arc<Frontier>,
    /// The signed note.
    pub(super) checkpoint: Arc<str>,
}

/// Durable records behind the last checkpoint.
#[derive(Debug)]
pub(super) struct Tail {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
    /// Durable records of the whole log.
    size: u64,
    published: Published,
    /// The publisher finds no room; it tries again.
    stuck: bool,
    ended: bool,
}

/// Places of the newest requests.
#[derive(Debug, Default)]
struct Places(VecDeque<(RequestId, u64)>);

/// The shared part.
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    pub(super) counts: Counts,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) stored: Stored,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) origin: String,
    pub(super) reserve: u64,
    tail: Mutex<Tail>,
    /// The edge and the root over everything durable, as last asked for.
    whole: Mutex<(Frontier, Hash)>,
    changed: Condvar,
    places: Mutex<Places>,
    low: AtomicBool,
    /// Bytes that must be free before ordinary records are taken.
    needed: AtomicU64,
    running: AtomicBool,
    closed: Mutex<Vec<(String, u64)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// What the shared part is made of.
pub(super) struct Parts {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) stored: Stored,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) origin: String,
    pub(super) reserve: u64,
    pub(super) batch_bytes: usize,
    pub(super) published: Published,
    pub(super) chunks: Vec<Chunk>,
    /// Segments that take no more: path, and the index behind their last record.
    pub(super) closed: Vec<(String, u64)>,
}

impl Shared {
    /// Puts it together; `chunks` follow the published part without a gap.
    pub(super) fn new(parts: Parts) -> Self {
        let chunks: VecDeque<_> = parts.chunks.into_iter().map(Arc::new).collect();
        let start = parts.published.edge.size();
        let size = chunks.back().map_or(start, |last| last.first.saturating_add(last.count));
        let bytes = chunks.iter().map(|chunk| chunk.frame.len()).sum();
        let published = parts.published;
        let tail = Tail { chunks, bytes, size, published, stuck: false, ended: false };
        Self {
            queue: Arc::new(Queue::new(parts.batch_bytes)),
            counts: Counts::default(),
            sink: parts.sink,
            stored: parts.stored,
            clock: parts.clock,
            origin: parts.origin,
            reserve: parts.reserve,
            tail: Mutex::new(tail),
            whole: Mutex::new((Frontier::default(), Frontier::default().root())),
            changed: Condvar::new(),
            places: Mutex::default(),
            low: AtomicBool::new(false),
            needed: AtomicU64::new(parts.reserve),
            closed: Mutex::new(parts.closed),
            running: AtomicBool::new(false),
        }
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Durable records.
    pub(super) fn size(&self) -> u64 {
        self.tail().size
    }

    /// What tiles cover, and the chunks behind it.
    pub(super) fn view(&self) -> (Published, Vec<Arc<Chunk>>) {
        let tail = self.tail();
        (tail.published.clone(), tail.chunks.iter().cloned().collect())
    }

    /// Size and root of everything durable.
    pub(super) fn head(&self) -> (u64, Hash) {
        let (published, chunks) = self.view();
        let mut whole = self.whole.lock().unwrap_or_else(|e| e.into_inner());
        let (edge, root) = &mut *whole;
        let known = edge.size();
        if known < published.edge.size() {
            *edge = Frontier::clone(&published.edge);
        }
        let mut scratch = Vec::new();
        for chunk in &chunks {
            let behind = edge.size().saturating_sub(chunk.first);
            if behind >= chunk.count {
                continue; // what was counted before is not hashed again
            }
            let behind = usize::try_from(behind).unwrap_or(usize::MAX);
            for entry in chunk.entries().flatten().skip(behind) {
                let leaf = leaf_with(&mut scratch, entry);
                let Ok(()) = edge.push(leaf, |_| Ok::<(), std::convert::Infallible>(()));
            }
        }
        if edge.size() != known {
            *root = edge.root();
        }
        (edge.size(), *root)
    }

    /// The committer has made a batch durable.
    pub(super) fn append(&self, chunk: Chunk) {
        let mut tail = self.tail();
        tail.size = chunk.first.saturating_add(chunk.count);
        tail.bytes = tail.bytes.saturating_add(chunk.frame.len());
        let wake = tail.chunks.is_empty() || tail.bytes >= LOG_TAIL_EAGER;
        tail.chunks.push_back(Arc::new(chunk));
        drop(tail);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Waits while the publisher is far behind.
    ///
    /// # Errors
    /// `Full` when it is behind because it finds no room; `Broken` when it has ended.
    pub(super) fn wait_for_room(&self) -> Result<(), RecordError> {
        let mut tail = self.tail();
        while tail.bytes >= LOG_TAIL_BYTES {
            if !self.queue.is_open() || tail.ended {
                return Err(RecordError::Broken);
            }
            if tail.stuck {
                return Err(RecordError::Full);
            }
            tail = match self.changed.wait_timeout(tail, Duration::from_millis(100)) {
                Ok((tail, _)) => tail,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        Ok(())
    }

    /// For the publisher: waits for something to publish, then for the moment to do it. False at
    /// the end, when nothing is left.
    pub(super) fn wait_to_publish(&self, pause: Duration) -> bool {
        let mut tail = self.tail();
        while tail.chunks.is_empty() && !tail.ended {
            tail = self.changed.wait(tail).unwrap_or_else(|e| e.into_inner());
        }
        let early = |tail: &mut Tail| !tail.ended && (tail.stuck || tail.bytes < LOG_TAIL_EAGER);
        let tail = match self.changed.wait_timeout_while(tail, pause, early) {
            Ok((tail, _)) => tail,
            Err(poisoned) => poisoned.into_inner().0,
        };
        !tail.chunks.is_empty()
    }

    /// Whether the committer has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.tail().ended
    }

    /// The publisher has put everything up to this checkpoint into tiles.
    pub(super) fn published(&self, published: Published) {
        let mut tail = self.tail();
        let size = published.edge.size();
        while tail.chunks.front().is_some_and(|chunk| chunk.first + chunk.count <= size) {
            if let Some(chunk) = tail.chunks.pop_front() {
                tail.bytes = tail.bytes.saturating_sub(chunk.frame.len());
            }
        }
        tail.published = published;
        tail.stuck = false;
        drop(tail);
        self.changed.notify_all();
    }

    /// The publisher finds no room.
    pub(super) fn publisher_stuck(&self) {
        self.tail().stuck = true;
        self.changed.notify_all();
    }

    /// The committer has ended: what is left may be published, nothing more comes.
    pub(super) fn end(&self) {
        self.tail().ended = true;
        self.changed.notify_all();
    }

    /// Final fault, or the end: whoever waits is refused.
    pub(super) fn break_down(&self) {
        self.running.store(false, Ordering::Release);
        self.queue.break_down();
        self.end();
    }

    /// The writer runs.
    pub(super) fn set_running(&self) {
        self.running.store(true, Ordering::Release);
    }

    /// Looks at the disk's room.
    ///
    /// # Errors
    /// When the disk does not answer.
    pub(super) fn measure(&self) -> io::Result<u64> {
        let free = self.sink.free()?;
        self.low.store(free < self.needed.load(Ordering::Acquire), Ordering::Release);
        Ok(free)
    }

    /// There is no room for ordinary records until `bytes` are free beside the reserve.
    pub(super) fn set_low(&self, bytes: u64) {
        self.needed.store(self.reserve.saturating_add(bytes), Ordering::Release);
        self.low.store(true, Ordering::Release);
    }

    /// There is room in a segment again.
    pub(super) fn set_roomy(&self) {
        self.needed.store(self.reserve, Ordering::Release);
    }

    /// A segment takes no more records; `end` is the index behind its last.
    pub(super) fn close_segment(&self, path: String, end: u64) {
        self.closed.lock().unwrap_or_else(|e| e.into_inner()).push((path, end));
    }

    /// Segments whose records all stand below `size`; they are forgotten here.
    pub(super) fn segments_below(&self, size: u64) -> Vec<String> {
        let mut closed = self.closed.lock().unwrap_or_else(|e| e.into_inner());
        let (gone, kept) = closed.drain(..).partition(|(_, end)| *end <= size);
        *closed = kept;
        let gone: Vec<(String, u64)> = gone;
        gone.into_iter().map(|(path, _)| path).collect()
    }

    /// Whether a record of this rank may come; looks again once it was refused before.
    pub(super) fn admits(&self, rank: Rank) -> bool {
        if rank == Rank::Reserved || !self.low.load(Ordering::Acquire) {
            return true;
        }
        self.measure().is_ok() && !self.low.load(Ordering::Acquire)
    }

    /// Ready for decisions.
    pub(super) fn is_ready(&self) -> bool {
        self.running.load(Ordering::Acquire)
            && self.queue.is_open()
            && !self.low.load(Ordering::Acquire)
    }

    /// Remembers where requests stand.
    pub(super) fn remember(&self, first: u64, requests: &[(RequestId, u32)]) {
        let mut places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        for (request, slot) in requests {
            if places.0.len() >= LOG_REQUESTS {
                places.0.pop_front();
            }
            places.0.push_back((*request, first.saturating_add(u64::from(*slot))));
        }
    }

    /// Where a request stands, as far as remembered; and from which index on memory is complete.
    pub(super) fn places_of(&self, request: RequestId) -> (Vec<u64>, u64) {
        let places = self.places.lock().unwrap_or_else(|e| e.into_inner());
        let found = places.0.iter().filter(|(id, _)| *id == request).map(|(_, at)| *at);
        (found.collect(), places.0.front().map_or(u64::MAX, |(_, at)| *at))
    }
}
