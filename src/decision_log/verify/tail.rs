//! The write-ahead log as the verifier reads it: whole batches without a gap, then zeros.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};

use super::{VerifyFault, damaged, hash};

const BLOCK: usize = 512;
const HEADER: usize = 64;
/// Longer than any batch that is ever written.
const BATCH_MAX: usize = 8 * 1024 * 1024;

/// Checks all segments; the number of records behind `size`. A log without segments (a copy of its
/// tiles) has none.
pub(super) fn check(dir: &Path, size: u64) -> Result<u64, VerifyFault> {
    let mut names = Vec::new();
    match std::fs::read_dir(dir.join("wal")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(VerifyFault::Unreadable { file: "wal".to_owned(), source }),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|source| unreadable("wal", source))?;
                names.push(format!("wal/{}", entry.file_name().to_string_lossy()));
            }
        }
    }
    names.sort_unstable();
    let mut expected: Option<(u64, u64)> = None;
    for name in &names {
        let open = File::open(dir.join(name)).map_err(|source| unreadable(name, source))?;
        let mut segment = Segment { name, input: io::BufReader::with_capacity(1 << 16, open) };
        let head = segment.head()?;
        if expected.is_some_and(|expected| expected != head)
            || (expected.is_none() && head.0 > size)
        {
            return Err(damaged(name, Some(head.0), "records before it are missing"));
        }
        expected = Some(segment.batches(head)?);
    }
    match (expected, names.last()) {
        (Some((end, _)), Some(name)) if end < size => {
            Err(damaged(name, Some(end), "it ends before the signed checkpoint"))
        }
        (Some((end, _)), _) => Ok(end - size),
        (None, _) => Ok(0),
    }
}

fn unreadable(file: &str, source: io::Error) -> VerifyFault {
    VerifyFault::Unreadable { file: file.to_owned(), source }
}

struct Segment<'a> {
    name: &'a str,
    input: io::BufReader<File>,
}

impl Segment<'_> {
    /// Fills the buffer; false at the end of the file.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, VerifyFault> {
        match self.input.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(source) => Err(unreadable(self.name, source)),
        }
    }

    /// Index of the first record and number of the first batch.
    fn head(&mut self) -> Result<(u64, u64), VerifyFault> {
        let mut block = [0; BLOCK];
        let whole = self.fill(&mut block)?;
        let (plain, rest) = block.split_at(32);
        let (seal, padding) = rest.split_at(32);
        let known = plain.starts_with(b"DOORWAL\0\x01\0\0\0\0\0\0\0") && hash(plain) == seal;
        if !whole || !known || padding.iter().any(|byte| *byte != 0) {
            return Err(damaged(self.name, None, "its head is damaged, or of a newer format"));
        }
        let (first, batch) = (word(plain, 16), word(plain, 24));
        if self.name != format!("wal/{first:020}") {
            return Err(damaged(
                self.name,
                Some(first),
                "its name is not that of its first record",
            ));
        }
        Ok((first, batch))
    }

    /// Index and batch number that follow the last whole batch; behind it only zeros may stand.
    fn batches(&mut self, head: (u64, u64)) -> Result<(u64, u64), VerifyFault> {
        let (mut index, mut batch) = head;
        let mut frame = vec![0; BLOCK];
        loop {
            frame.resize(BLOCK, 0);
            if !self.fill(&mut frame)? {
                return Ok((index, batch));
            }
            if frame.iter().all(|byte| *byte == 0) {
                self.zeros(index)?;
                return Ok((index, batch));
            }
            let bad = || damaged(self.name, Some(index), "the batch is damaged");
            let count = u64::from(half(&frame, 4));
            let length = usize::try_from(half(&frame, 24)).map_err(|_| bad())?;
            let known = frame.starts_with(b"DWB1") && half(&frame, 28) == 0 && length <= BATCH_MAX;
            if !known || (word(&frame, 8), word(&frame, 16)) != (batch, index) {
                return Err(bad());
            }
            let end = HEADER + length;
            frame.resize(end.div_ceil(BLOCK) * BLOCK, 0);
            let name = self.name;
            let bad = || damaged(name, Some(index), "the batch is damaged");
            let rest = frame.get_mut(BLOCK..).unwrap_or_default();
            if !self.fill(rest)? {
                return Err(bad());
            }
            if !holds(&frame, end, count) {
                return Err(bad());
            }
            (index, batch) = (index.saturating_add(count), batch.saturating_add(1));
        }
    }

    fn zeros(&mut self, index: u64) -> Result<(), VerifyFault> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) if buffer.iter().take(count).all(|byte| *byte == 0) => {}
                Ok(_) => {
                    let what = "there is something behind the last whole batch";
                    return Err(damaged(self.name, Some(index), what));
                }
                Err(source) => return Err(unreadable(self.name, source)),
            }
        }
    }
}

/// Whether seal, number of records and padding of a batch are right; its records end at `end`.
fn holds(frame: &[u8], end: usize, count: u64) -> bool {
    let (Some(header), Some(payload)) = (frame.get(..HEADER), frame.get(HEADER..end)) else {
        return false;
    };
    let (plain, seal) = header.split_at(32);
    let mut context = Context::new(&SHA256);
    context.update(plain);
    context.update(payload);
    if context.finish().as_ref() != seal {
        return false;
    }
    let (mut rest, mut records) = (payload, 0);
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let Some(next) = behind.get(usize::from(u16::from_be_bytes(*length))..) else {
            return false;
        };
        (rest, records) = (next, records + 1);
    }
    let padding = frame.get(end..).unwrap_or_default();
    rest.is_empty() && records == count && count > 0 && padding.iter().all(|byte| *byte == 0)
}

fn half(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
