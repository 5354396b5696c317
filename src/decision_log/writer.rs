//! The one thread that writes: takes everything that waits, writes one batch, syncs it, and only
//! then answers.
//!
//! A batch is written only after the one before is durable. No room is refused and may pass. A
//! write that fails otherwise, any failed sync and a segment that somebody deleted are final: after
//! such a fault nothing the disk says can be believed, so everyone is refused and the process must
//! restart.

use std::fs::File;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::counts::Counted;
use super::frame::{BLOCK, BatchHead, HEADER, SegmentHead, align, segment_path};
use super::note::Note;
use super::publish::Publisher;
use super::queue::{Found, Load, RecordError};
use super::record::{Around, note};
use super::shared::{Chunk, Shared};
use super::sink::{Segment, is_full};
use crate::model::limits::{LOG_BATCH_BYTES, LOG_GAP, LOG_SEGMENT_MIN, LOG_SUMMARY, RECORD_MAX};

/// The writer looks up this often when nothing comes.
const TICK: Duration = Duration::from_secs(1);
/// Zeros written ahead of the batches: a sync over blocks that were written once needs no journal.
const AHEAD: u64 = 256 * 1024;

static ZEROS: [u8; AHEAD as usize] = [0; AHEAD as usize];

/// The writer: `run` blocks until the log is closed and is given a thread of its own. While it
/// lives it holds the lock on the directory. Dropping it refuses everyone.
pub struct Writer {
    pub(super) committer: Committer,
    pub(super) publisher: Publisher,
    pub(super) lock: File,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes until the log is closed, then finishes tiles and checkpoint. The tiles have a thread
    /// of their own that ends within this call.
    ///
    /// # Errors
    /// `Broken` on a final fault; the process must exit.
    pub fn run(self) -> Result<(), RecordError> {
        let Self { mut committer, mut publisher, lock } = self;
        let shared = Arc::clone(&committer.shared);
        shared.set_running();
        let outcome = thread::scope(|scope| {
            let tiles = thread::Builder::new().name("log-tiles".to_owned());
            let tiles = tiles.spawn_scoped(scope, || publisher.run());
            let Ok(tiles) = tiles else {
                shared.break_down();
                return Err(RecordError::Broken);
            };
            let ending = Ending(&shared);
            let committed = committer.run();
            drop(ending);
            let published = tiles.join().unwrap_or(Err(RecordError::Broken));
            committed.and(published)
        });
        shared.break_down();
        drop(lock);
        outcome
    }
}

/// Lets the publisher end, also when the committer does not return.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.break_down();
        }
        self.0.end();
    }
}

/// Where the next batch goes.
pub(super) struct Place {
    pub(super) segment: Box<dyn Segment>,
    pub(super) path: String,
    /// Offset of the next batch.
    pub(super) at: u64,
    /// Bytes of the segment.
    pub(super) end: u64,
    /// Index of the next record.
    pub(super) index: u64,
    /// Number of the next batch.
    pub(super) batch: u64,
}

/// The part of the writer that requests wait for.
pub(super) struct Committer {
    shared: Arc<Shared>,
    place: Place,
    segment_bytes: u64,
    /// Bytes of the segment that have been written before, if only with zeros.
    written: u64,
    /// Bytes that a write may have left behind which failed for want of room.
    soiled: u64,
    synced: Duration,
    summed: Duration,
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.break_down();
    }
}

impl Committer {
    /// Goes on at `place`.
    pub(super) fn new(shared: Arc<Shared>, place: Place, segment_bytes: u64) -> Self {
        let (written, summed) = (place.at, shared.clock.now().boot());
        let synced = Duration::ZERO;
        Self { shared, place, segment_bytes, written, soiled: 0, synced, summed }
    }

    fn run(&mut self) -> Result<(), RecordError> {
        let mut load = self.shared.queue.spare();
        loop {
            let since = self.shared.clock.now().since(self.synced);
            let gap = LOG_GAP.saturating_sub(since);
            let found = self.shared.queue.take(&mut load, gap, TICK);
            match found {
                Found::Broken => return Err(RecordError::Broken),
                Found::Idle if !self.is_named() => return Err(self.broken("was deleted")),
                Found::Idle | Found::Records | Found::End => {}
            }
            self.step(&mut load, found == Found::End)?;
            if found == Found::End {
                return Ok(());
            }
        }
    }

    /// Writes what is in the load, with the summaries that are due.
    ///
    /// # Errors
    /// Final faults only.
    pub(super) fn step(&mut self, load: &mut Load, last: bool) -> Result<(), RecordError> {
        let counted = self.sum_up(load, last);
        if load.count == 0 {
            return Ok(());
        }
        let outcome = self.write(load);
        if let Ok(first) = outcome {
            // A copy of the exact size: the buffer itself goes back to those who hand over.
            let entries = load.frame.get(HEADER..).unwrap_or_default().to_vec();
            let count = u64::from(load.count);
            self.shared.append(Chunk { first, count, frame: entries, from: 0 });
            self.shared.remember(first, &load.requests);
        } else {
            for line in counted {
                self.shared.counts.put_back(&line.caller, line.what, line.count);
            }
        }
        if outcome == Err(RecordError::Broken) {
            self.shared.break_down();
        }
        load.batch.conclude(outcome);
        load.reset();
        match outcome {
            Err(RecordError::Broken) => Err(RecordError::Broken),
            _ => Ok(()),
        }
    }

    /// Adds one line for each caller that was counted, once a minute and at the end.
    fn sum_up(&mut self, load: &mut Load, last: bool) -> Vec<Counted> {
        let now = self.shared.clock.now();
        if (now.since(self.summed) < LOG_SUMMARY && !last) || self.shared.counts.is_empty() {
            return Vec::new();
        }
        self.summed = now.boot();
        let around = Around { origin: &self.shared.origin, at: now.wall(), head: None };
        let mut taken = Vec::new();
        for line in self.shared.counts.take() {
            if load.frame.len() + RECORD_MAX > self.batch_bytes() {
                self.summed = Duration::ZERO; // go on with the next batch
                self.shared.counts.put_back(&line.caller, line.what, line.count);
                continue;
            }
            let Counted { caller, what, count } = &line;
            let summary = Note::Summary { caller: caller.to_string(), what, count: *count };
            if load.push(&note(&summary, &around)) {
                load.ordinary = true;
                taken.push(line);
            }
        }
        taken
    }

    /// Bytes that one batch may have in this log's segments.
    fn batch_bytes(&self) -> usize {
        batch_bytes(self.segment_bytes)
    }

    /// Makes the load durable; the index of its first record.
    fn write(&mut self, load: &mut Load) -> Result<u64, RecordError> {
        self.shared.wait_for_room()?;
        let payload = load.frame.len();
        let length = align(u64::try_from(payload).unwrap_or(u64::MAX));
        if self.place.at.saturating_add(length) > self.place.end {
            self.rotate(length, load.ordinary)?;
        }
        let (first, number) = (self.place.index, self.place.batch);
        if !BatchHead::seal(&mut load.frame, number, first, load.count) {
            return Err(self.broken("was given a batch of no possible size"));
        }
        let end = self.place.at.saturating_add(length);
        let padded = length.max(self.soiled.saturating_sub(self.place.at));
        load.frame.resize(usize::try_from(padded).unwrap_or(payload), 0);
        let written = self.place.segment.write_at(&load.frame, self.place.at);
        let written = written.and_then(|()| self.write_ahead(end));
        load.frame.truncate(payload);
        if let Err(error) = written {
            if is_full(&error) {
                self.soiled = self.soiled.max(end.saturating_add(AHEAD).min(self.place.end));
                self.shared.set_low(0);
                return Err(RecordError::Full);
            }
            return Err(self.faulty(&error));
        }
        self.sync()?;
        self.soiled = 0;
        self.place.at = end;
        self.place.index = first.saturating_add(u64::from(load.count));
        self.place.batch = number.saturating_add(1);
        Ok(first)
    }

    fn sync(&mut self) -> Result<(), RecordError> {
        self.place.segment.sync().map_err(|error| self.faulty(&error))?;
        self.synced = self.shared.clock.now().boot();
        if self.is_named() { Ok(()) } else { Err(self.broken("was deleted")) }
    }

    /// Writes zeros behind `end` when the next batch would fall on fresh blocks.
    fn write_ahead(&mut self, end: u64) -> std::io::Result<()> {
        if end <= self.written {
            return Ok(());
        }
        let to = end.saturating_add(AHEAD).min(self.place.end);
        let zeros = usize::try_from(to.saturating_sub(end)).ok().and_then(|n| ZEROS.get(..n));
        self.place.segment.write_at(zeros.unwrap_or(&ZEROS), end)?;
        self.written = to;
        Ok(())
    }

    /// Begins a new segment, the reserve untouched unless `ordinary` is false.
    fn rotate(&mut self, length: u64, ordinary: bool) -> Result<(), RecordError> {
        if self.soiled > self.place.at {
            let dirty = self.soiled.saturating_sub(self.place.at);
            let zeros = vec![0; usize::try_from(dirty).unwrap_or(0)];
            let cleaned = self.place.segment.write_at(&zeros, self.place.at);
            cleaned.map_err(|error| self.faulty(&error))?;
            self.sync()?;
        }
        let smallest = LOG_SEGMENT_MIN.max(length.saturating_add(BLOCK)).min(self.segment_bytes);
        let wanted = self.shared.reserve.saturating_add(self.segment_bytes);
        let free = self.shared.sink.free().map_err(|error| self.faulty(&error))?;
        if ordinary && free < wanted {
            self.shared.set_low(self.segment_bytes);
            return Err(RecordError::Full);
        }
        let bytes = if free < wanted { smallest } else { self.segment_bytes };
        let path = segment_path(self.place.index);
        let head = SegmentHead { first: self.place.index, batch: self.place.batch };
        match self.shared.sink.create(&path, bytes, &head.to_block()) {
            Ok(segment) => {
                let old = mem::replace(&mut self.place.path, path);
                if old != self.place.path {
                    self.shared.close_segment(old, self.place.index);
                }
                self.place.segment = segment;
                (self.place.at, self.place.end, self.written) = (BLOCK, bytes, BLOCK);
                self.soiled = 0;
                self.shared.set_roomy();
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.shared.set_low(self.segment_bytes);
                Err(RecordError::Full)
            }
            Err(error) => Err(self.faulty(&error)),
        }
    }

    fn is_named(&self) -> bool {
        self.place.segment.links().is_ok_and(|links| links > 0)
    }

    fn faulty(&self, error: &std::io::Error) -> RecordError {
        tracing::error!(%error, segment = %self.place.path, "the decision log failed for good");
        RecordError::Broken
    }

    fn broken(&self, how: &'static str) -> RecordError {
        tracing::error!(segment = %self.place.path, how, "the decision log failed for good");
        RecordError::Broken
    }
}

/// Bytes that one batch may have where segments have `segment_bytes`.
pub(super) fn batch_bytes(segment_bytes: u64) -> usize {
    let room = segment_bytes.saturating_sub(2 * BLOCK);
    usize::try_from(room).unwrap_or(LOG_BATCH_BYTES).min(LOG_BATCH_BYTES)
}
