//! Proofs (RFC 6962 §2.1.1, §2.1.2) and receipts (C2SP tlog-proof).
//!
//! A proof made here is never handed out unchecked: tiles are bytes on a disk, and the signed root
//! is what they are measured by.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::checkpoint::{Checkpoint, decimal};
use super::merkle::{Hash, fold, leaf, node};
use super::signed_note::VerifierKey;

/// Why a proof can't be made or does not hold.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The record is not in the tree, or the older tree is the larger one.
    #[error("index or size {0} is not within a tree of {1} records")]
    Beyond(u64, u64),
    /// A tile that is needed can't be read.
    #[error("a tile of the decision log can't be read")]
    Tiles(#[source] std::io::Error),
    /// The proof does not lead to the root.
    #[error("the proof does not lead to the signed root")]
    Mismatch,
    /// The text is not a receipt, or its checkpoint is not signed by this log.
    #[error("it is not a receipt of this log")]
    Receipt,
}

/// Where the hashes of full tiles' positions come from: level, index in the level.
pub(super) trait Hashes {
    /// `count` hashes of a level from `first` on.
    fn hashes(&mut self, level: usize, first: u64, count: usize) -> std::io::Result<Vec<Hash>>;
}

/// The largest power of two below `n`, for n ≥ 2.
fn split(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// The root over the records `from .. to`; `from` is a multiple of the largest power within.
fn subtree(tiles: &mut impl Hashes, from: u64, to: u64) -> Result<Hash, ProofError> {
    let count = to - from;
    if count.is_power_of_two() && from.is_multiple_of(count) {
        let height = count.trailing_zeros();
        let (level, rest) = (height / 8, height % 8);
        let level = usize::try_from(level).unwrap_or(usize::MAX);
        let read = tiles.hashes(level, (from / count) << rest, 1 << rest);
        return Ok(fold(&read.map_err(ProofError::Tiles)?));
    }
    let middle = from + split(count);
    Ok(node(&subtree(tiles, from, middle)?, &subtree(tiles, middle, to)?))
}

/// PATH(index, size): leaf's sibling first.
pub(super) fn inclusion(
    tiles: &mut impl Hashes,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, ProofError> {
    if index >= size {
        return Err(ProofError::Beyond(index, size));
    }
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(subtree(tiles, middle, to)?);
            to = middle;
        } else {
            proof.push(subtree(tiles, from, middle)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// PROOF(old, new).
pub(super) fn consistency(
    tiles: &mut impl Hashes,
    old: u64,
    new: u64,
) -> Result<Vec<Hash>, ProofError> {
    if old > new {
        return Err(ProofError::Beyond(old, new));
    }
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(proof);
    }
    let (mut from, mut to, mut whole) = (0, new, true);
    while old != to {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(subtree(tiles, middle, to)?);
            to = middle;
        } else {
            proof.push(subtree(tiles, from, middle)?);
            from = middle;
            whole = false;
        }
    }
    if !whole {
        proof.push(subtree(tiles, from, to)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Whether `proof` shows that `leaf` stands at `index` of the tree with this size and root.
pub fn check_inclusion(
    index: u64,
    size: u64,
    leaf: &[u8; 32],
    root: &[u8; 32],
    proof: &[[u8; 32]],
) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if at % 2 == 1 || at == last {
            hash = node(sibling, &hash);
            while at % 2 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node(&hash, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree of size `new` only adds to the tree of size `old`.
pub fn check_consistency(
    old: u64,
    old_root: &[u8; 32],
    new: u64,
    new_root: &[u8; 32],
    proof: &[[u8; 32]],
) -> bool {
    if old > new {
        return false;
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == fold(&[]);
    }
    let own_root = [*old_root];
    let mut hashes = own_root.iter().take(usize::from(old.is_power_of_two())).chain(proof);
    let (mut at, mut last) = (old - 1, new - 1);
    while at % 2 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let Some(first) = hashes.next() else { return false };
    let (mut before, mut after) = (*first, *first);
    for hash in hashes {
        if last == 0 {
            return false;
        }
        if at % 2 == 1 || at == last {
            before = node(hash, &before);
            after = node(hash, &after);
            while at % 2 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            after = node(&after, hash);
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0 && before == *old_root && after == *new_root
}

/// The receipt's text: index, path, checkpoint.
pub(super) fn receipt(index: u64, proof: &[Hash], checkpoint: &str) -> String {
    let mut out = format!("c2sp.org/tlog-proof@v1\nindex {index}\n");
    for hash in proof {
        out.push_str(&STANDARD.encode(hash));
        out.push('\n');
    }
    out.push('\n');
    out.push_str(checkpoint);
    out
}

/// Checks a receipt for one record against the log's verifier key; the record's index when all
/// holds.
///
/// # Errors
/// When the text is no receipt, its checkpoint is not signed by this log, or its path does not lead
/// from the record to the signed root.
pub fn check_receipt(text: &str, record: &[u8], vkey: &str) -> Result<u64, ProofError> {
    let form = || ProofError::Receipt;
    let key = VerifierKey::parse(vkey).map_err(|_| form())?;
    let (head, note) = text.split_once("\n\n").ok_or_else(form)?;
    let mut lines = head.lines();
    if lines.next() != Some("c2sp.org/tlog-proof@v1") {
        return Err(form());
    }
    let mut line = lines.next().ok_or_else(form)?;
    if line.starts_with("extra ") {
        line = lines.next().ok_or_else(form)?;
    }
    let index = line.strip_prefix("index ").and_then(decimal).ok_or_else(form)?;
    let mut proof = Vec::new();
    for line in lines {
        let hash = STANDARD.decode(line).ok().and_then(|bytes| bytes.try_into().ok());
        proof.push(hash.ok_or_else(form)?);
        if proof.len() > 64 {
            return Err(form());
        }
    }
    let Checkpoint { size, root } = Checkpoint::open(note, &key).map_err(|_| form())?;
    match check_inclusion(index, size, &leaf(record), &root, &proof) {
        true => Ok(index),
        false => Err(ProofError::Mismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All leaves of a small tree; higher levels are folded on demand.
    struct Leaves(Vec<Hash>);

    impl Hashes for Leaves {
        fn hashes(&mut self, level: usize, first: u64, count: usize) -> std::io::Result<Vec<Hash>> {
            let unit = 256usize.pow(level as u32);
            let first = first as usize;
            Ok((first..first + count).map(|i| fold(&self.0[i * unit..(i + 1) * unit])).collect())
        }
    }

    fn tree(size: u64) -> Leaves {
        Leaves((0..size).map(|i| leaf(&i.to_be_bytes())).collect())
    }

    #[test]
    fn the_vectors_of_five() {
        let entries = ["", "a", "bc", "def", "ghij"];
        let mut tiles = Leaves(entries.iter().map(|e| leaf(e.as_bytes())).collect());
        let leaves = tiles.0.clone();
        let root2 = fold(&leaves[..2]);
        assert_eq!(inclusion(&mut tiles, 2, 5).unwrap(), [leaves[3], root2, leaves[4]]);
        assert_eq!(
            consistency(&mut tiles, 3, 5).unwrap(),
            [leaves[2], leaves[3], root2, leaves[4]]
        );
    }

    #[test]
    fn every_proof_up_to_ninety_holds_and_no_other() {
        let mut tiles = tree(90);
        let roots: Vec<_> = (0..=90).map(|n| fold(&tiles.0[..n])).collect();
        for new in 0..=90u64 {
            let root = roots[new as usize];
            for index in 0..new {
                let proof = inclusion(&mut tiles, index, new).unwrap();
                let leaf = tiles.0[index as usize];
                assert!(check_inclusion(index, new, &leaf, &root, &proof), "{index} in {new}");
                assert!(!check_inclusion(index, new, &node(&leaf, &leaf), &root, &proof));
                assert!(!check_inclusion(index + 1, new, &leaf, &root, &proof) || new == 1);
            }
            for old in 0..=new {
                let proof = consistency(&mut tiles, old, new).unwrap();
                let before = roots[old as usize];
                assert!(check_consistency(old, &before, new, &root, &proof), "{old} to {new}");
                assert!(!check_consistency(old, &leaf(b"fork"), new, &root, &proof));
                let longer = [proof, vec![root]].concat();
                assert!(!check_consistency(old, &before, new, &root, &longer), "{old} to {new}");
            }
        }
        assert!(inclusion(&mut tiles, 90, 90).is_err());
        assert!(consistency(&mut tiles, 91, 90).is_err());
    }

    #[test]
    fn proofs_cross_tiles() {
        let mut tiles = tree(70_000);
        let root = fold(&tiles.0);
        for index in [0, 255, 256, 65_535, 65_536, 69_887, 69_888, 69_999] {
            let proof = inclusion(&mut tiles, index, 70_000).unwrap();
            assert!(check_inclusion(index, 70_000, &tiles.0[index as usize], &root, &proof));
        }
        for old in [1, 255, 256, 257, 65_536, 66_000, 69_999] {
            let before = fold(&tiles.0[..old as usize]);
            let proof = consistency(&mut tiles, old, 70_000).unwrap();
            assert!(check_consistency(old, &before, 70_000, &root, &proof), "{old}");
        }
    }

    proptest! {
        #[test]
        fn checks_are_total(a: u64, b: u64, proof: Vec<[u8; 32]>, root: [u8; 32]) {
            let _ = check_inclusion(a, b, &root, &root, &proof);
            let _ = check_consistency(a, &root, b, &root, &proof);
        }

        #[test]
        fn receipts_are_read_without_panic(text in "(c2sp.org/tlog-proof@v1\n)?(index [0-9]{1,20}\n)?[A-Za-z=\n ]{0,200}") {
            let vkey = "broker.example/decisions/0+79d8ae0a+AepKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs";
            prop_assert!(check_receipt(&text, b"", vkey).is_err());
        }
    }
}
