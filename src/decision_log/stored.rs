//! Reading tiles and bundles back. Files are opened without following links and read with a bound.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::merkle::{Hash, TILE, TILE_WIDTH};
use super::proof::Hashes;
use super::tiles::{Entries, bundle_path, tile_path};

/// The largest bundle: 256 records of 65,535 bytes, each with its length.
const BUNDLE_MAX: usize = TILE * 65_537;

/// The log's directory, for reading.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    root: PathBuf,
}

impl Stored {
    /// In this directory.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// A whole file of at most `max` bytes.
    pub(super) fn file(&self, path: &str, max: usize) -> io::Result<Vec<u8>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(self.root.join(path))?;
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        if bytes.len() > max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any such file"));
        }
        Ok(bytes)
    }

    /// The partial form if it is there, else the full one: a partial form goes once the full one is
    /// durable.
    fn either(&self, partial: &str, full: &str, max: usize) -> io::Result<Vec<u8>> {
        match self.file(partial, max) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.file(full, max),
            other => other,
        }
    }

    /// The bytes of the first `width` records of a bundle.
    pub(super) fn bundle(&self, index: u64, width: usize) -> io::Result<Vec<u8>> {
        let full = bundle_path(index, TILE);
        let mut bytes = self.either(&bundle_path(index, width), &full, BUNDLE_MAX)?;
        let mut entries = Entries::new(&bytes);
        let whole = (0..width).all(|_| matches!(entries.next(), Some(Some(_))));
        let end = entries.position();
        if !whole {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a bundle is cut short"));
        }
        bytes.truncate(end);
        Ok(bytes)
    }

    /// The first `width` hashes of a tile.
    pub(super) fn tile(&self, level: usize, index: u64, width: usize) -> io::Result<Vec<Hash>> {
        let full = tile_path(level, index, TILE);
        let bytes = self.either(&tile_path(level, index, width), &full, TILE * 32)?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        match hashes.get(..width) {
            Some(hashes) if rest.is_empty() => Ok(hashes.to_vec()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a tile is cut short")),
        }
    }
}

/// Hashes out of the tiles of a tree of one size; each tile is read once.
#[derive(Debug)]
pub(super) struct TileHashes<'a> {
    stored: &'a Stored,
    size: u64,
    read: HashMap<(usize, u64), Vec<Hash>>,
}

impl<'a> TileHashes<'a> {
    /// For the tree of `size` records.
    pub(super) fn new(stored: &'a Stored, size: u64) -> Self {
        Self { stored, size, read: HashMap::new() }
    }
}

impl Hashes for TileHashes<'_> {
    fn hashes(&mut self, level: usize, first: u64, count: usize) -> io::Result<Vec<Hash>> {
        let beyond = || io::Error::new(io::ErrorKind::InvalidInput, "beyond the tree");
        let index = first / TILE_WIDTH;
        let below = u32::try_from(level).ok().and_then(|level| TILE_WIDTH.checked_pow(level));
        let hashes = below.map_or(0, |unit| self.size / unit);
        let width = hashes.saturating_sub(index.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH);
        let width = usize::try_from(width).map_err(|_| beyond())?;
        let tile = match self.read.entry((level, index)) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.stored.tile(level, index, width)?)
            }
        };
        let from = usize::try_from(first % TILE_WIDTH).map_err(|_| beyond())?;
        let to = from.checked_add(count).ok_or_else(beyond)?;
        tile.get(from..to).map(<[Hash]>::to_vec).ok_or_else(beyond)
    }
}
