//! The form of the write-ahead log: segments of batches.
//!
//! A segment begins with one block that names its format and its first record. Batches follow, each
//! at a multiple of 512 bytes: a header of 64 bytes, then the records as in a bundle. Behind the
//! last batch there are only zeros. Numbers are little-endian.

use super::merkle::{Hash, sha256};

/// Everything begins at a multiple of this.
pub(super) const BLOCK: u64 = 512;
/// Bytes of a batch's header.
pub(super) const HEADER: usize = 64;
const SEALED: usize = 32;
const MAGIC: [u8; 4] = *b"DWB1";
const SEGMENT_MAGIC: [u8; 8] = *b"DOORWAL\0";
const FORMAT: u32 = 1;

/// The next place where a batch may begin.
pub(super) fn align(at: u64) -> u64 {
    at.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// The path of the segment whose first record is this one.
pub(super) fn segment_path(first: u64) -> String {
    format!("wal/{first:020}")
}

/// What the first block of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHead {
    /// Index of the first record.
    pub(super) first: u64,
    /// Number of the first batch.
    pub(super) batch: u64,
}

/// Why a segment's first block is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadFault {
    /// Written by a newer version of the program.
    Newer(u32),
    /// Not a segment, or damaged.
    Damaged,
}

impl SegmentHead {
    /// The block.
    pub(super) fn to_block(self) -> Vec<u8> {
        let mut block = Vec::with_capacity(512);
        block.extend_from_slice(&SEGMENT_MAGIC);
        block.extend_from_slice(&FORMAT.to_le_bytes());
        block.extend_from_slice(&[0; 4]);
        block.extend_from_slice(&self.first.to_le_bytes());
        block.extend_from_slice(&self.batch.to_le_bytes());
        let seal = sha256(&block);
        block.extend_from_slice(&seal);
        block.resize(512, 0);
        block
    }

    /// Reads the block.
    pub(super) fn parse(block: &[u8]) -> Result<Self, HeadFault> {
        let magic = block.get(..8).ok_or(HeadFault::Damaged)?;
        let format = u32_at(block, 8).ok_or(HeadFault::Damaged)?;
        if magic != SEGMENT_MAGIC {
            return Err(HeadFault::Damaged);
        }
        if format > FORMAT {
            return Err(HeadFault::Newer(format));
        }
        let (first, batch) = (u64_at(block, 16), u64_at(block, 24));
        let head = match (first, batch) {
            (Some(first), Some(batch)) => Self { first, batch },
            _ => return Err(HeadFault::Damaged),
        };
        if head.to_block() == block { Ok(head) } else { Err(HeadFault::Damaged) }
    }
}

/// The header of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHead {
    /// Its number; each is one more than the one before.
    pub(super) number: u64,
    /// Index of its first record.
    pub(super) first: u64,
    /// How many records.
    pub(super) count: u32,
    /// Bytes of all records with their lengths.
    pub(super) length: u32,
    seal: Hash,
}

impl BatchHead {
    /// Writes the header into the first 64 bytes of `frame`, over the records behind them. False
    /// when the frame is too short or too long.
    pub(super) fn seal(frame: &mut [u8], number: u64, first: u64, count: u32) -> bool {
        let Some((header, payload)) = frame.split_first_chunk_mut::<HEADER>() else { return false };
        let Ok(length) = u32::try_from(payload.len()) else { return false };
        let plain = plain_header(number, first, count, length);
        let seal = seal_of(&plain, payload);
        for (to, from) in header.iter_mut().zip(plain.iter().chain(&seal)) {
            *to = *from;
        }
        true
    }

    /// Reads a header; `None` when it is none. The seal is not checked yet.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        if header.get(..4)? != MAGIC || header.get(28..32)? != [0; 4] {
            return None;
        }
        let seal = header.get(SEALED..HEADER)?.try_into().ok()?;
        Some(Self {
            count: u32_at(header, 4)?,
            number: u64_at(header, 8)?,
            first: u64_at(header, 16)?,
            length: u32_at(header, 24)?,
            seal,
        })
    }

    /// Whether these are the records that the header was written over.
    pub(super) fn covers(&self, payload: &[u8]) -> bool {
        u32::try_from(payload.len()) == Ok(self.length)
            && seal_of(&plain_header(self.number, self.first, self.count, self.length), payload)
                == self.seal
    }
}

fn plain_header(number: u64, first: u64, count: u32, length: u32) -> [u8; SEALED] {
    let mut out = [0; SEALED];
    let fields = MAGIC
        .into_iter()
        .chain(count.to_le_bytes())
        .chain(number.to_le_bytes())
        .chain(first.to_le_bytes())
        .chain(length.to_le_bytes());
    for (to, from) in out.iter_mut().zip(fields) {
        *to = from;
    }
    out
}

fn seal_of(plain: &[u8], payload: &[u8]) -> Hash {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(plain);
    context.update(payload);
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    out
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_head_is_read_back_and_nothing_else() {
        let head = SegmentHead { first: 70_000, batch: 12 };
        let block = head.to_block();
        assert_eq!(SegmentHead::parse(&block), Ok(head));
        for at in 0..block.len() {
            let mut bad = block.clone();
            bad[at] ^= 0x10;
            assert!(SegmentHead::parse(&bad).is_err(), "byte {at}");
        }
        let mut newer = block;
        newer[8] = 2;
        assert_eq!(SegmentHead::parse(&newer), Err(HeadFault::Newer(2)));
    }

    #[test]
    fn a_batch_is_covered_to_the_last_bit() {
        let mut frame = vec![0; HEADER];
        frame.extend_from_slice(b"\x00\x03abc");
        assert!(BatchHead::seal(&mut frame, 9, 4, 1));
        let whole = |frame: &[u8]| {
            BatchHead::parse(&frame[..HEADER]).is_some_and(|head| head.covers(&frame[HEADER..]))
        };
        assert!(whole(&frame));
        for at in 0..frame.len() {
            let mut bad = frame.clone();
            bad[at] ^= 1;
            assert!(!whole(&bad), "byte {at}");
        }
        assert!(!whole(&frame[..frame.len() - 1]));
    }
}
