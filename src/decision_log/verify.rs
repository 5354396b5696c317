//! Checks a whole log from its files alone, as an outsider would.
//!
//! It shares no code with what writes the log: own paths, own hashing, own reading of notes,
//! bundles and segments, written from the specifications. It recomputes everything from the records
//! up and names the first file and record that do not fit. It writes nothing and needs no lock.

mod leftovers;
mod signed;
mod tail;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};

use crate::model::Digest;

type Hash = [u8; 32];
const WIDTH: u64 = 256;

/// A log that holds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The log's name.
    pub origin: String,
    /// Records that the signed checkpoint covers.
    pub size: u64,
    /// The signed root over them, recomputed.
    pub root: Digest,
    /// Durable records behind it, which no checkpoint covers yet: whole, but not signed.
    pub not_yet_signed: u64,
    /// Files of tiles that lie beyond the checkpoint and so are not checked: a crash left them, or
    /// the log is being written.
    pub unchecked_files: u64,
}

/// The first thing that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum VerifyFault {
    /// The checkpoint is not of the form, or not signed by this key.
    #[error("checkpoint: {0}")]
    Checkpoint(&'static str),
    /// A file does not fit the rest.
    #[error("{file}{}: {what}", .record.map(|index| format!(", record {index}")).unwrap_or_default())]
    Damaged {
        /// Path under the log's directory.
        file: String,
        /// The record that does not fit, or the first one that the file speaks for.
        record: Option<u64>,
        /// What is wrong.
        what: &'static str,
    },
    /// The verifier key can't be used.
    #[error("the verifier key is not of the form name+id+base64, or its id does not belong to it")]
    Key,
    /// A file can't be read.
    #[error("{file} can't be read")]
    Unreadable {
        /// Path under the log's directory.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn damaged(file: &str, record: Option<u64>, what: &'static str) -> VerifyFault {
    VerifyFault::Damaged { file: file.to_owned(), record, what }
}

/// Checks the log in `dir` against the verifier key that its operators published.
///
/// # Errors
/// The first file and record that do not fit.
pub fn verify_dir(dir: &Path, vkey: &str) -> Result<Verified, VerifyFault> {
    let key = signed::Key::parse(vkey).ok_or(VerifyFault::Key)?;
    let mut files = Files { dir: dir.to_owned() };
    let mut note = Vec::new();
    files.read("checkpoint", &mut note, 64 * 1024)?;
    let signed = key.checkpoint(&note).map_err(VerifyFault::Checkpoint)?;
    let root = Tree::over(&mut files, signed.size)?;
    if root != signed.root {
        return Err(VerifyFault::Checkpoint("its root is not that of the records"));
    }
    let unchecked_files = leftovers::check(&mut files, signed.size)?;
    let not_yet_signed = tail::check(dir, signed.size)?;
    Ok(Verified {
        origin: key.name().to_owned(),
        size: signed.size,
        root: Digest(root),
        not_yet_signed,
        unchecked_files,
    })
}

/// The log's directory.
struct Files {
    dir: PathBuf,
}

impl Files {
    /// A whole file into `buffer`.
    fn read(&mut self, file: &str, buffer: &mut Vec<u8>, max: u64) -> Result<(), VerifyFault> {
        let unreadable = |source| VerifyFault::Unreadable { file: file.to_owned(), source };
        buffer.clear();
        let open = File::open(self.dir.join(file)).map_err(unreadable)?;
        open.take(max + 1).read_to_end(buffer).map_err(unreadable)?;
        if u64::try_from(buffer.len()).is_ok_and(|length| length <= max) {
            Ok(())
        } else {
            Err(damaged(file, None, "it is longer than any such file"))
        }
    }

    /// A tile or bundle of `width` parts: the partial form, or the full one that has replaced it.
    /// Gives the path that was read.
    fn read_either(
        &mut self,
        kind: &str,
        index: u64,
        width: u64,
        buffer: &mut Vec<u8>,
    ) -> Result<String, VerifyFault> {
        let max = if kind == "entries" { WIDTH * 65_537 } else { WIDTH * 32 };
        let full = name_of(kind, index);
        if width < WIDTH {
            let partial = format!("{full}.p/{width}");
            match self.read(&partial, buffer, max) {
                Err(VerifyFault::Unreadable { source, .. })
                    if source.kind() == io::ErrorKind::NotFound
                        && self.dir.join(&full).exists() => {}
                other => return other.map(|()| partial),
            }
        }
        self.read(&full, buffer, max).map(|()| full)
    }
}

/// The path of a full tile or bundle.
fn name_of(kind: &str, index: u64) -> String {
    let mut name = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        name = format!("x{:03}/{name}", rest % 1000);
        rest /= 1000;
    }
    format!("tile/{kind}/{name}")
}

/// The tree, rebuilt from the records; what is full has been compared and folded upward.
struct Tree<'a> {
    files: &'a mut Files,
    /// Hashes of the tile that is being filled, per level, with that tile's index.
    levels: Vec<(u64, Vec<Hash>)>,
    buffer: Vec<u8>,
}

impl<'a> Tree<'a> {
    /// The root over `size` records.
    fn over(files: &'a mut Files, size: u64) -> Result<Hash, VerifyFault> {
        let mut tree = Self { files, levels: Vec::new(), buffer: Vec::new() };
        let mut bundle = Vec::new();
        let mut scratch = Vec::new();
        for index in 0..size.div_ceil(WIDTH) {
            let width = (size - index * WIDTH).min(WIDTH);
            let path = tree.files.read_either("entries", index, width, &mut bundle)?;
            tree.bundle(&path, index * WIDTH, width, &bundle, &mut scratch)?;
        }
        tree.finish()
    }

    fn bundle(
        &mut self,
        path: &str,
        first: u64,
        width: u64,
        bundle: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), VerifyFault> {
        let mut rest = bundle;
        for record in first..first + width {
            let cut = || damaged(path, Some(record), "the record is cut short");
            let (length, behind) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (entry, behind) = behind.split_at_checked(length).ok_or_else(cut)?;
            scratch.clear();
            scratch.push(0x00);
            scratch.extend_from_slice(entry);
            self.add(0, hash(scratch))?;
            rest = behind;
        }
        let is_partial = path.contains(".p/") || width == WIDTH;
        if is_partial && !rest.is_empty() {
            return Err(damaged(path, Some(first + width), "there is more behind the last record"));
        }
        Ok(())
    }

    /// Adds a hash to a level; a tile that is full is compared and folded into the level above.
    fn add(&mut self, level: usize, hash: Hash) -> Result<(), VerifyFault> {
        if self.levels.len() <= level {
            self.levels.push((0, Vec::with_capacity(256)));
        }
        let Some((_, hashes)) = self.levels.get_mut(level) else { return Ok(()) };
        hashes.push(hash);
        if hashes.len() < 256 {
            return Ok(());
        }
        self.compare(level)?;
        let Some((index, hashes)) = self.levels.get_mut(level) else { return Ok(()) };
        let above = root_of(hashes);
        hashes.clear();
        *index += 1;
        self.add(level + 1, above)
    }

    /// Compares the hashes of a level with the tile on the disk.
    fn compare(&mut self, level: usize) -> Result<(), VerifyFault> {
        let Some((index, hashes)) = self.levels.get(level) else { return Ok(()) };
        let width = u64::try_from(hashes.len()).unwrap_or(WIDTH);
        let mut tile = std::mem::take(&mut self.buffer);
        let path = self.files.read_either(&level.to_string(), *index, width, &mut tile)?;
        let exact = path.contains(".p/") || width == WIDTH;
        let span = (0..level).fold(1u64, |span, _| span.saturating_mul(WIDTH));
        let first = index.saturating_mul(WIDTH).saturating_mul(span);
        let (on_disk, rest) = tile.as_chunks::<32>();
        if !rest.is_empty()
            || on_disk.len() < hashes.len()
            || (exact && on_disk.len() > hashes.len())
        {
            return Err(damaged(&path, Some(first), "the tile has another length"));
        }
        for (place, (wanted, found)) in (0u64..).zip(hashes.iter().zip(on_disk)) {
            if wanted != found {
                let record = first.saturating_add(place.saturating_mul(span));
                let what = "the hash is not that of the records: one of the two was changed";
                return Err(damaged(&path, Some(record), what));
            }
        }
        self.buffer = tile;
        Ok(())
    }

    /// Compares the partial tiles; the root.
    fn finish(&mut self) -> Result<Hash, VerifyFault> {
        let mut edge: Option<Hash> = None;
        for level in 0..self.levels.len() {
            let Some((_, hashes)) = self.levels.get(level) else { continue };
            let mut row = hashes.clone();
            if !row.is_empty() {
                self.compare(level)?;
            }
            row.extend(edge);
            if !row.is_empty() {
                edge = Some(root_of(&row));
            }
        }
        Ok(edge.unwrap_or_else(|| hash(&[])))
    }
}

fn hash(bytes: &[u8]) -> Hash {
    let mut out = [0; 32];
    out.iter_mut().zip(digest(&SHA256, bytes).as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// RFC 6962: the root over some hashes, split below at the largest power of two.
fn root_of(hashes: &[Hash]) -> Hash {
    let (left, right) = match hashes {
        [] => return hash(&[]),
        [one] => return *one,
        _ => {
            let mut split = 1;
            while split * 2 < hashes.len() {
                split *= 2;
            }
            hashes.split_at(split)
        }
    };
    let mut both = Vec::with_capacity(65);
    both.push(0x01);
    both.extend_from_slice(&root_of(left));
    both.extend_from_slice(&root_of(right));
    hash(&both)
}
