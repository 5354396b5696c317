//! Where tiles and bundles lie under the log's root (C2SP tlog-tiles), and the form of a bundle.

use std::ops::Range;

/// `tile/entries/…`: the bundle of records `index·256 …`; `width` 256 means the full one.
pub(super) fn bundle_path(index: u64, width: usize) -> String {
    path("entries", index, width)
}

/// `tile/<level>/…`: the tile at `index` of a level; `width` 256 means the full one.
pub(super) fn tile_path(level: usize, index: u64, width: usize) -> String {
    path(&level.to_string(), index, width)
}

/// The directory of all partial forms of a bundle (`level` none) or tile.
pub(super) fn partials_dir(level: Option<usize>, index: u64) -> String {
    let kind = level.map_or_else(|| "entries".to_owned(), |level| level.to_string());
    format!("{}.p", path(&kind, index, super::merkle::TILE))
}

fn path(kind: &str, index: u64, width: usize) -> String {
    let mut groups = vec![index % 1000];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(rest % 1000);
        rest /= 1000;
    }
    let mut out = format!("tile/{kind}");
    for (at, group) in groups.iter().enumerate().rev() {
        out.push_str(if at == 0 { "/" } else { "/x" });
        out.push_str(&format!("{group:03}"));
    }
    if width != super::merkle::TILE {
        out.push_str(&format!(".p/{width}"));
    }
    out
}

/// Adds one record to a bundle: its length in two bytes, big-endian, then its bytes. False, and
/// nothing added, when it is over 65,535 bytes.
pub(super) fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else { return false };
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    true
}

/// The records of a bundle, one by one; `None` in place of a record that is cut short.
#[derive(Debug, Clone)]
pub(super) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Entries<'a> {
    /// Over the bytes of a bundle.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Option<(&'a [u8], Range<usize>)> {
        let range = self.at..self.at.checked_add(count)?;
        let slice = self.bytes.get(range.clone())?;
        self.at = range.end;
        Some((slice, range))
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let entry = self.take(2).and_then(|(length, _)| {
            let length = u16::from_be_bytes(length.try_into().ok()?);
            self.take(usize::from(length)).map(|(entry, _)| entry)
        });
        if entry.is_none() {
            self.at = self.bytes.len();
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(bundle_path(5, 256), "tile/entries/005");
        assert_eq!(tile_path(0, 1234, 256), "tile/0/x001/234");
        assert_eq!(tile_path(2, 1_234_067, 256), "tile/2/x001/x234/067");
        assert_eq!(bundle_path(273, 112), "tile/entries/273.p/112");
        assert_eq!(partials_dir(Some(1), 1234), "tile/1/x001/234.p");
        assert_eq!(partials_dir(None, 0), "tile/entries/000.p");
        assert_eq!(tile_path(63, 0, 1), "tile/63/000.p/1");
    }

    #[test]
    fn a_bundle_is_lengths_and_bytes() {
        let mut bundle = Vec::new();
        for entry in ["", "a", "bc", "def", "ghij"] {
            assert!(push_entry(&mut bundle, entry.as_bytes()));
        }
        assert_eq!(hex::encode(&bundle), "000000016100026263000364656600046768696a");
        let read: Option<Vec<_>> = Entries::new(&bundle).collect();
        assert_eq!(read.unwrap(), [&b""[..], b"a", b"bc", b"def", b"ghij"]);
        let cut: Option<Vec<_>> = Entries::new(&bundle[..bundle.len() - 1]).collect();
        assert_eq!(cut, None);
        assert!(!push_entry(&mut bundle, &[0; 65_536]));
    }
}
