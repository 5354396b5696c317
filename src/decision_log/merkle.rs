//! The tree over the records: hashing as in RFC 6962 §2.1, and its growing right edge.
//!
//! The edge is kept per level of 256, exactly as it lies in the partial tiles on disk. Nothing here
//! reads or writes; a full tile is handed to whoever asked for it.

use aws_lc_rs::digest::{SHA256, digest};

/// One SHA-256 hash of the tree.
pub(super) type Hash = [u8; 32];
/// Hashes of one full tile, entries of one full bundle.
pub(super) const TILE: usize = 256;
/// The same as a number of records.
pub(super) const TILE_WIDTH: u64 = 256;

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> Hash {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
        *to = *from;
    }
    out
}

/// The hash of one record. `scratch` is reused from call to call.
pub(super) fn leaf_with(scratch: &mut Vec<u8>, entry: &[u8]) -> Hash {
    scratch.clear();
    scratch.push(0);
    scratch.extend_from_slice(entry);
    sha256(scratch)
}

/// The hash of one record.
pub(super) fn leaf(entry: &[u8]) -> Hash {
    leaf_with(&mut Vec::with_capacity(entry.len() + 1), entry)
}

/// The hash of two subtrees.
pub(super) fn node(left: &Hash, right: &Hash) -> Hash {
    let mut both = [1; 65];
    for (to, from) in both.iter_mut().skip(1).zip(left.iter().chain(right)) {
        *to = *from;
    }
    sha256(&both)
}

/// The root over some hashes taken as leaves; the empty tree's root for none.
pub(super) fn fold(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => sha256(&[]),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(largest_power_below(many.len()));
            node(&fold(left), &fold(right))
        }
    }
}

/// The largest power of two below `n`, for n ≥ 2.
fn largest_power_below(n: usize) -> usize {
    match n.checked_next_power_of_two() {
        Some(next) => next >> 1,
        None => n / 2,
    }
}

/// A tile that has just become full.
pub(super) struct FullTile<'a> {
    /// Level; 0 holds the records' hashes.
    pub(super) level: usize,
    /// Position in its level.
    pub(super) index: u64,
    /// Its 256 hashes.
    pub(super) hashes: &'a [Hash],
}

/// The right edge of the tree: all that is needed to grow it and to know its root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Frontier {
    size: u64,
    /// Hashes of the partial tile of each level, at most 255.
    levels: Vec<Vec<Hash>>,
}

impl Frontier {
    /// An edge read back from partial tiles; `levels[l]` must hold `(size / 256^l) mod 256` hashes.
    /// `None` when it does not.
    pub(super) fn from_levels(size: u64, levels: Vec<Vec<Hash>>) -> Option<Self> {
        let mut rest = size;
        for hashes in &levels {
            if u64::try_from(hashes.len()).ok()? != rest % TILE_WIDTH {
                return None;
            }
            rest /= TILE_WIDTH;
        }
        (rest == 0).then_some(Self { size, levels })
    }

    /// Records in the tree.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The hashes of the partial tile of each level.
    pub(super) fn levels(&self) -> &[Vec<Hash>] {
        &self.levels
    }

    /// Adds one record's hash; each tile that this completes goes to `full`, lowest level first.
    ///
    /// # Errors
    /// What `full` says; the edge is of no use afterwards.
    pub(super) fn push<E>(
        &mut self,
        leaf: Hash,
        mut full: impl FnMut(FullTile<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.size += 1;
        let mut count = self.size;
        let mut hash = leaf;
        let mut level = 0;
        loop {
            if self.levels.len() <= level {
                self.levels.push(Vec::with_capacity(TILE));
            }
            let Some(hashes) = self.levels.get_mut(level) else { return Ok(()) };
            hashes.push(hash);
            if hashes.len() < TILE {
                return Ok(());
            }
            count /= TILE_WIDTH;
            full(FullTile { level, index: count - 1, hashes })?;
            hash = fold(hashes);
            hashes.clear();
            level += 1;
        }
    }

    /// The root of the whole tree.
    pub(super) fn root(&self) -> Hash {
        let mut carry: Option<Hash> = None;
        for hashes in &self.levels {
            let mut all = hashes.clone();
            all.extend(carry);
            if !all.is_empty() {
                carry = Some(fold(&all));
            }
        }
        carry.unwrap_or_else(|| sha256(&[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use std::convert::Infallible;

    fn grow(frontier: &mut Frontier, entry: &[u8]) {
        frontier.push(leaf(entry), |_| Ok::<(), Infallible>(())).unwrap();
    }

    #[test]
    fn small_roots_are_those_of_the_standard() {
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "688dc6244b041199e7ab4990df6340ce3dc14caa5cd5a0e1131addaa1209e1a6",
            "2e9547978b8da560ecaaf07ab189d6799ecc53cd2f56c2f01866d01f70b78a4f",
            "d0831bfd20a5e0aeddd477d3a1de8cceccbedc95434de76af2c7ddcd02143674",
            "b2416bc87e7ac9bb86dd2911107ca7144bb56228b87cd21ed45e30b50019b882",
        ];
        let mut frontier = Frontier::default();
        assert_eq!(hex::encode(frontier.root()), roots[0]);
        for (entry, root) in ["", "a", "bc", "def", "ghij"].iter().zip(&roots[1..]) {
            grow(&mut frontier, entry.as_bytes());
            assert_eq!(hex::encode(frontier.root()), *root);
        }
    }

    #[test]
    fn large_roots_and_tile_shapes() {
        let wanted = [
            (255, "bbGEEKsnQljdKqVGM/sPQd6ZRfSAxzcFAcxQPVRR7ls="),
            (256, "8i5VAZozAcrqIGwDYgQr3JZVhh/N3M9j/KiIjV673d8="),
            (257, "O6w439C3g16mK7rTXeI33ebjF3AmfFCp25jMOpOZAJQ="),
            (66_000, "RmJ8HlY+Ux6P7kluH+PLBzI2B/o38Nowfvd3LH1T2XQ="),
            (70_000, "Zp+jehpsocc9HdcG5x7oWdLZua5zTDrNYgCHGFZ7Hkw="),
        ];
        let mut frontier = Frontier::default();
        for i in 0..70_000u64 {
            let verdict = if i % 7 == 0 { "deny" } else { "allow" };
            grow(&mut frontier, format!(r#"{{"i": {i}, "d": "{verdict}"}}"#).as_bytes());
            if let Some((_, root)) = wanted.iter().find(|(size, _)| *size == i + 1) {
                let text = base64::engine::general_purpose::STANDARD.encode(frontier.root());
                assert_eq!(text, *root, "size {}", i + 1);
            }
        }
        let widths: Vec<_> = frontier.levels().iter().map(Vec::len).collect();
        assert_eq!(widths, [112, 17, 1]);
        let levels = frontier.levels().to_vec();
        assert_eq!(Frontier::from_levels(70_000, levels.clone()), Some(frontier));
        assert_eq!(Frontier::from_levels(70_001, levels), None);
    }
}
