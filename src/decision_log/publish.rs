//! Puts durable records into tiles, bundles and a signed checkpoint, behind the committer's back.
//!
//! Order: bundles and tiles, their names, then partial forms that a full one replaces go, then the
//! checkpoint, then segments of the write-ahead log that it covers. Nothing here is waited for by a
//! request, and two checkpoints never contradict each other: the tree only grows.

use std::io;
use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::merkle::{Frontier, FullTile, Hash, TILE, TILE_WIDTH, leaf_with};
use super::queue::RecordError;
use super::shared::{Published, Shared};
use super::signed_note::LogKey;
use super::sink::{Put, Sink, is_full};
use super::tiles::{bundle_path, partials_dir, push_entry, tile_path};
use crate::model::limits::LOG_CHECKPOINT;

/// Bytes of full bundles and tiles that are held in memory to be put together.
const TOGETHER_BYTES: usize = 8 * 1024 * 1024;

/// The publisher.
pub(super) struct Publisher {
    shared: Arc<Shared>,
    key: LogKey,
    /// The records of the bundle that is not full yet.
    bundle: Vec<u8>,
}

impl Publisher {
    /// Goes on from what is published; `bundle` holds the records of the partial bundle.
    pub(super) fn new(shared: Arc<Shared>, key: LogKey, bundle: Vec<u8>) -> Self {
        Self { shared, key, bundle }
    }

    /// Publishes until the committer has ended and nothing is left.
    ///
    /// # Errors
    /// `Broken` on a final fault; everything else has been told by then.
    pub(super) fn run(&mut self) -> Result<(), RecordError> {
        loop {
            if self.shared.wait_to_publish(LOG_CHECKPOINT) {
                match self.publish() {
                    Ok(()) => {}
                    Err(error) if is_full(&error) => {
                        tracing::warn!(%error, "the decision log finds no room for its tiles");
                        self.shared.publisher_stuck();
                        if self.shared.has_ended() {
                            return Ok(()); // what is missing stands in the write-ahead log
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "the decision log's tiles can't be written");
                        self.shared.break_down();
                        return Err(RecordError::Broken);
                    }
                }
                if self.shared.measure().is_err() {
                    self.shared.set_low(0);
                }
            } else if self.shared.has_ended() {
                return Ok(());
            }
        }
    }

    /// Publishes everything that is durable now.
    ///
    /// # Errors
    /// The file that could not be written; nothing that was published before is touched.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        let (before, chunks) = self.shared.view();
        let sink = &*self.shared.sink;
        let mut edge = Frontier::clone(&before.edge);
        let mut bundle = self.bundle.clone();
        let mut full = Full::default();
        let mut replaced = Vec::new();
        let mut scratch = Vec::new();
        for entry in chunks.iter().flat_map(|chunk| chunk.entries()).flatten() {
            push_entry(&mut bundle, entry);
            let leaf = leaf_with(&mut scratch, entry);
            edge.push(leaf, |tile: FullTile<'_>| {
                if tile.level == 0 {
                    full.add(sink, bundle_path(tile.index, TILE), std::mem::take(&mut bundle))?;
                    replaced.push(partials_dir(None, tile.index));
                }
                let path = tile_path(tile.level, tile.index, TILE);
                full.add(sink, path, tile.hashes.as_flattened().to_vec())?;
                replaced.push(partials_dir(Some(tile.level), tile.index));
                Ok::<(), io::Error>(())
            })?;
        }
        full.put(sink)?;
        self.put_partials(&before.edge, &edge, &bundle)?;
        sink.sync_names()?;
        for path in first_of_each_level(&before.edge, &replaced) {
            sink.remove(path)?;
        }
        let checkpoint = Checkpoint { size: edge.size(), root: edge.root() };
        let note = checkpoint
            .sign(&self.shared.origin, &self.key)
            .ok_or_else(|| io::Error::other("the checkpoint could not be signed"))?;
        sink.put("checkpoint", note.as_bytes(), Put::Replace)?;
        sink.sync_names()?;
        self.bundle = bundle;
        let size = edge.size();
        self.shared.published(Published { edge: Arc::new(edge), checkpoint: note.into() });
        for path in self.shared.segments_below(size) {
            sink.remove(&path)?;
        }
        Ok(())
    }

    /// The partial bundle and the partial tiles that have grown.
    fn put_partials(&self, before: &Frontier, now: &Frontier, bundle: &[u8]) -> io::Result<()> {
        let sink = &*self.shared.sink;
        let mut index = now.size();
        let mut old_count = before.size();
        for (level, hashes) in now.levels().iter().enumerate() {
            let changed = index != old_count;
            index /= TILE_WIDTH;
            old_count /= TILE_WIDTH;
            if hashes.is_empty() || !changed {
                continue;
            }
            if level == 0 {
                sink.put(&bundle_path(index, hashes.len()), bundle, Put::Once)?;
            }
            let bytes: &[Hash] = hashes;
            sink.put(&tile_path(level, index, hashes.len()), bytes.as_flattened(), Put::Once)?;
        }
        Ok(())
    }
}

/// Full bundles and tiles that are put together.
#[derive(Default)]
struct Full {
    files: Vec<(String, Vec<u8>)>,
    bytes: usize,
}

impl Full {
    fn add(&mut self, sink: &dyn Sink, path: String, bytes: Vec<u8>) -> io::Result<()> {
        self.bytes += bytes.len();
        self.files.push((path, bytes));
        if self.bytes < TOGETHER_BYTES { Ok(()) } else { self.put(sink) }
    }

    fn put(&mut self, sink: &dyn Sink) -> io::Result<()> {
        sink.put_all(&self.files)?;
        *self = Self::default();
        Ok(())
    }
}

/// Of the directories with partial forms that full ones replace, those that can exist: of the tile
/// that was partial at the last checkpoint, in each level.
fn first_of_each_level<'a>(before: &Frontier, replaced: &'a [String]) -> Vec<&'a String> {
    let mut wanted = vec![partials_dir(None, before.size() / TILE_WIDTH)];
    let mut index = before.size();
    for level in 0..8 {
        index /= TILE_WIDTH;
        wanted.push(partials_dir(Some(level), index));
    }
    replaced.iter().filter(|path| wanted.contains(path)).collect()
}
