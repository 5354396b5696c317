//! The vault's rows in the store: what they say, and the MAC that keeps each in its place.
//!
//! A row is `format:1 ‖ mac:32 ‖ JSON`. The MAC (HMAC-SHA-256 under a key of the root key) covers
//! table, key and JSON, so whoever owns the store can't give a name another secret, nor bring a
//! version's state into another's. Replaying an older row of the same place is not found by it.
//!
//! Locating reads rows without checking, since no key may be used before a decision is written
//! down; what is located grants nothing. Carrying out checks every row again.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::seal::RootKey;
use super::wrap::tuple;
use crate::model::{Digest, Labels, Namespace, SecretName};
use crate::store::Table;

const FORMAT: u8 = 1;
const MAC: usize = 32;

/// Why a row is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// It does not read as what it should be.
    #[error("it is no row of its table")]
    Form,
    /// Written by a later release.
    #[error("it has format {0}; this release knows {FORMAT}")]
    Newer(u8),
    /// Its MAC does not fit.
    #[error("it is not what was written here")]
    Mac,
}

/// Whether a row's MAC must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// No key is used: for finding out what is meant.
    Unchecked,
    /// For everything that is done or released.
    Checked,
}

/// `Names`: a namespace; key [`namespace_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamespaceRow {
    pub(super) name: Namespace,
    pub(super) uuid: Uuid,
    /// The epoch that new versions are sealed under.
    pub(super) epoch: u32,
}

/// `Names`: a secret's name; key [`name_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NameRow {
    pub(super) name: SecretName,
    pub(super) uuid: Uuid,
}

/// `Secrets`: a secret's state; the key is its uuid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretRow {
    pub(super) name: SecretName,
    pub(super) uuid: Uuid,
    pub(super) namespace: Uuid,
    /// The highest version number ever given.
    pub(super) newest: u64,
    pub(super) active: Option<u64>,
    pub(super) deleted: bool,
    pub(super) labels: Labels,
    pub(super) created: String,
}

/// `Versions`: all of a version but its ciphertext; key [`head_key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeadRow {
    pub(super) version: u64,
    pub(super) deleted: bool,
    pub(super) created: String,
    /// The epoch of the namespace key that wraps the data key.
    pub(super) epoch: u32,
    /// The wrapped data key.
    pub(super) dek: Blob,
    /// SHA-256 of the ciphertext.
    pub(super) digest: Digest,
}

/// Bytes, in base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Blob(pub(super) Vec<u8>);

impl TryFrom<String> for Blob {
    type Error = base64::DecodeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        BASE64.decode(text).map(Self)
    }
}

impl From<Blob> for String {
    fn from(blob: Blob) -> Self {
        BASE64.encode(blob.0)
    }
}

/// What the keys of namespaces begin with; no name of a secret does.
pub(super) const NAMESPACES: &[u8] = b"\0";

/// The key of a namespace's row: names that differ in case only share it, so only one can exist.
pub(super) fn namespace_key(name: &Namespace) -> Vec<u8> {
    [NAMESPACES, name.as_str().to_ascii_lowercase().as_bytes()].concat()
}

/// The key of a name's row, likewise.
pub(super) fn name_key(name: &SecretName) -> Vec<u8> {
    name.folded().into_bytes()
}

/// What the keys of all heads of one secret begin with.
pub(super) fn heads_of(uuid: Uuid) -> Vec<u8> {
    [b"h", uuid.as_bytes().as_slice()].concat()
}

/// The key of a version's head.
pub(super) fn head_key(uuid: Uuid, version: u64) -> Vec<u8> {
    [b"h", uuid.as_bytes().as_slice(), &version.to_be_bytes()].concat()
}

/// The key of a version's ciphertext, which needs no MAC: the data key authenticates it.
pub(super) fn value_key(uuid: Uuid, version: u64) -> Vec<u8> {
    [b"v", uuid.as_bytes().as_slice(), &version.to_be_bytes()].concat()
}

/// Writes and reads rows.
pub(super) struct Rows {
    key: hmac::Key,
}

impl Rows {
    /// With the key of this root key.
    pub(super) fn new(root: &RootKey) -> Self {
        Self { key: root.mac_for("rows") }
    }

    fn covered(table: Table, key: &[u8], json: &[u8]) -> Vec<u8> {
        tuple(&[b"doorward", &[FORMAT], table.as_str().as_bytes(), key, json])
    }

    /// The bytes of a row at its place.
    ///
    /// # Errors
    /// When the value has no JSON, which none of ours lacks.
    pub(super) fn seal<T: Serialize>(
        &self,
        table: Table,
        key: &[u8],
        row: &T,
    ) -> Result<Vec<u8>, RowError> {
        let json = serde_json::to_vec(row).map_err(|_| RowError::Form)?;
        let mac = hmac::sign(&self.key, &Self::covered(table, key, &json));
        Ok([&[FORMAT], mac.as_ref(), &json].concat())
    }

    /// Reads a row at its place.
    ///
    /// # Errors
    /// [`RowError`].
    pub(super) fn open<T: DeserializeOwned>(
        &self,
        table: Table,
        key: &[u8],
        bytes: &[u8],
        trust: Trust,
    ) -> Result<T, RowError> {
        let (format, rest) = bytes.split_first().ok_or(RowError::Form)?;
        match *format {
            FORMAT => {}
            newer if newer > FORMAT => return Err(RowError::Newer(newer)),
            _ => return Err(RowError::Form),
        }
        let (mac, json) = rest.split_first_chunk::<MAC>().ok_or(RowError::Form)?;
        if trust == Trust::Checked {
            hmac::verify(&self.key, &Self::covered(table, key, json), mac)
                .map_err(|_| RowError::Mac)?;
        }
        serde_json::from_slice(json).map_err(|_| RowError::Form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows() -> Rows {
        Rows::new(&RootKey::from_bytes(&[1; 32]))
    }

    fn name(text: &str) -> SecretName {
        SecretName::parse(text).unwrap()
    }

    fn sample() -> NameRow {
        NameRow { name: name("pay/db"), uuid: Uuid::from_u128(5) }
    }

    fn open(bytes: &[u8], key: &[u8], table: Table) -> Result<NameRow, RowError> {
        rows().open(table, key, bytes, Trust::Checked)
    }

    #[test]
    fn a_row_is_read_only_where_it_was_written() {
        let bytes = rows().seal(Table::Names, b"pay/db", &sample()).unwrap();
        assert_eq!(open(&bytes, b"pay/db", Table::Names), Ok(sample()));
        assert_eq!(open(&bytes, b"pay/other", Table::Names), Err(RowError::Mac));
        assert_eq!(open(&bytes, b"pay/db", Table::Secrets), Err(RowError::Mac));
        let other = Rows::new(&RootKey::from_bytes(&[2; 32]));
        let foreign = other.open::<NameRow>(Table::Names, b"pay/db", &bytes, Trust::Checked);
        assert_eq!(foreign, Err(RowError::Mac));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = rows().seal(Table::Names, b"k", &sample()).unwrap();
        assert!(open(&bytes, b"k", Table::Names).is_ok());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(open(&bad, b"k", Table::Names).is_err(), "byte {at} bit {bit}");
            }
        }
        for length in 0..bytes.len() {
            assert!(open(&bytes[..length], b"k", Table::Names).is_err());
        }
        let newer = [&[2], &bytes[1..]].concat();
        assert_eq!(open(&newer, b"k", Table::Names), Err(RowError::Newer(2)));
    }

    #[test]
    fn names_that_differ_in_case_share_one_place_and_nothing_else_does() {
        assert_eq!(name_key(&name("Pay/DB")), name_key(&name("pay/db")));
        assert_ne!(name_key(&name("pay/db")), name_key(&name("pay/db.")));
        let namespace = |text| namespace_key(&Namespace::parse(text).unwrap());
        assert_eq!(namespace("Pay"), namespace("pay"));
        assert!(!name_key(&name("pay/db")).starts_with(NAMESPACES));
        let id = Uuid::from_u128(1);
        assert!(head_key(id, 1).starts_with(&heads_of(id)));
        assert!(!value_key(id, 1).starts_with(&heads_of(id)));
        assert!(head_key(id, 255) < head_key(id, 256));
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_never_a_row(bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            prop_assert!(open(&bytes, b"k", Table::Names).is_err());
        }
    }
}
