//! One slot of a namespace's key file: 4096 bytes that hold one wrapped key.
//!
//! Form: magic (8) ‖ format (u16) ‖ namespace (16) ‖ epoch (u32) ‖ length (u16) ‖ wrapped key ‖
//! zeros ‖ SHA-256 of all before it (32). The checksum finds accidents; that the key is the right
//! one is shown by its wrap, which is bound to namespace and epoch. Numbers are big-endian.

use uuid::Uuid;

use crate::model::Digest;

/// Bytes of a slot: one page of the disk, so that writing it in place touches nothing else.
pub(super) const SIZE: usize = 4096;
const MAGIC: &[u8; 8] = b"DWKEYSLT";
const FORMAT: u16 = 1;
const CHECKSUM: usize = 32;

/// What a slot holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Zeros: never written, or erased.
    Empty,
    /// A wrapped key.
    Live {
        /// Its epoch.
        epoch: u32,
        /// The wrap.
        wrapped: Vec<u8>,
    },
    /// Not what was written.
    Damaged,
    /// Written by a later release.
    Newer(u16),
}

/// The bytes of a slot; `None` when the wrap does not fit.
pub(super) fn encode(namespace: Uuid, epoch: u32, wrapped: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(wrapped.len()).ok()?;
    let mut bytes = Vec::with_capacity(SIZE);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_be_bytes());
    bytes.extend_from_slice(namespace.as_bytes());
    bytes.extend_from_slice(&epoch.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(wrapped);
    if bytes.len() > SIZE - CHECKSUM {
        return None;
    }
    bytes.resize(SIZE - CHECKSUM, 0);
    let checksum = Digest::of(&bytes);
    bytes.extend_from_slice(&checksum.0);
    Some(bytes)
}

/// Reads one slot of this namespace's file.
pub(super) fn decode(namespace: Uuid, bytes: &[u8]) -> Slot {
    parse(namespace, bytes).unwrap_or(Slot::Damaged)
}

fn parse(namespace: Uuid, bytes: &[u8]) -> Option<Slot> {
    if bytes.len() != SIZE {
        return None;
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(Slot::Empty);
    }
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    if magic != MAGIC || Digest::of(body).0 != *checksum {
        return None;
    }
    let (format, rest) = rest.split_first_chunk::<2>()?;
    match u16::from_be_bytes(*format) {
        FORMAT => {}
        newer if newer > FORMAT => return Some(Slot::Newer(newer)),
        _ => return None,
    }
    let (id, rest) = rest.split_first_chunk::<16>()?;
    if id != namespace.as_bytes() {
        return None;
    }
    let (epoch, rest) = rest.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let wrapped = rest.get(..usize::from(u16::from_be_bytes(*length)))?.to_vec();
    Some(Slot::Live { epoch: u32::from_be_bytes(*epoch), wrapped })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: Uuid = Uuid::from_u128(7);

    #[test]
    fn what_is_written_is_read() {
        let bytes = encode(ID, 3, b"wrapped").unwrap();
        assert_eq!(bytes.len(), SIZE);
        assert_eq!(decode(ID, &bytes), Slot::Live { epoch: 3, wrapped: b"wrapped".to_vec() });
        assert_eq!(decode(ID, &[0; SIZE]), Slot::Empty);
        assert_eq!(encode(ID, 3, &[0; SIZE]), None);
    }

    #[test]
    fn every_flipped_byte_and_foreign_slot_is_damage() {
        let bytes = encode(ID, 3, b"wrapped").unwrap();
        for at in 0..SIZE {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert_eq!(decode(ID, &bad), Slot::Damaged, "byte {at}");
        }
        assert_eq!(decode(Uuid::from_u128(8), &bytes), Slot::Damaged);
        assert_eq!(decode(ID, &bytes[..SIZE - 1]), Slot::Damaged);
        assert_eq!(decode(ID, b""), Slot::Damaged);
    }

    #[test]
    fn a_newer_slot_is_told_from_a_damaged_one() {
        let mut bytes = encode(ID, 3, b"wrapped").unwrap();
        bytes[9] = 2;
        let checksum = Digest::of(&bytes[..SIZE - CHECKSUM]);
        bytes[SIZE - CHECKSUM..].copy_from_slice(&checksum.0);
        assert_eq!(decode(ID, &bytes), Slot::Newer(2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(bytes in proptest::collection::vec(any::<u8>(), 0..SIZE + 2)) {
            let slot = decode(ID, &bytes);
            prop_assert!(matches!(slot, Slot::Damaged | Slot::Empty));
        }
    }
}
