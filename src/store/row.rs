//! What goes into a store and comes out of it: tables, rows, transactions, events. Plain values.

use std::ops::Bound;

use super::engine::StoreError;

/// The closed set of tables. A table is a name space of keys; keys are ordered as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// What is there once: the trust domain, the parameters of this installation.
    Meta,
    /// The signing authority's certificates and state.
    Authority,
    /// Devices that enrolled.
    Devices,
    /// Registration entries.
    Entries,
    /// Join tokens, as digests.
    Tokens,
    /// Names of secrets and of namespaces, folded, to their immutable ids.
    Names,
    /// One row a secret: its state.
    Secrets,
    /// Versions of secrets: their heads and their ciphertexts.
    Versions,
    /// Policy bundles.
    Policies,
}

impl Table {
    /// Every table, in the order of a snapshot.
    pub const ALL: &'static [Table] = &[
        Table::Meta,
        Table::Authority,
        Table::Devices,
        Table::Entries,
        Table::Tokens,
        Table::Names,
        Table::Secrets,
        Table::Versions,
        Table::Policies,
    ];

    /// The stable word that files and messages use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Authority => "authority",
            Self::Devices => "devices",
            Self::Entries => "entries",
            Self::Tokens => "tokens",
            Self::Names => "names",
            Self::Secrets => "secrets",
            Self::Versions => "versions",
            Self::Policies => "policies",
        }
    }

    /// The table of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|table| table.as_str() == word)
    }
}

/// One stored row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The bytes, exactly as they were written.
    pub value: Vec<u8>,
    /// The store's revision at this row's last write; what [`Expect`] compares.
    pub revision: u64,
}

impl Row {
    /// A row as one run of bytes: revision, then value.
    pub(super) fn pack(revision: u64, value: &[u8]) -> Vec<u8> {
        [revision.to_be_bytes().as_slice(), value].concat()
    }

    /// The reverse of [`Row::pack`].
    pub(super) fn unpack(bytes: &[u8]) -> Result<Self, StoreError> {
        match bytes.split_first_chunk::<8>() {
            Some((revision, value)) => {
                Ok(Self { value: value.to_vec(), revision: u64::from_be_bytes(*revision) })
            }
            None => Err(StoreError::Damaged("a row is shorter than its revision".to_owned())),
        }
    }
}

/// Where a scan of `prefix` begins that goes on after a key.
pub(super) fn after_key(prefix: &[u8], after: Option<&[u8]>) -> Bound<Vec<u8>> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after.to_vec()),
        _ => Bound::Included(prefix.to_vec()),
    }
}

/// A condition of a commit.
#[derive(Debug, Clone)]
pub struct Expect {
    /// The row's table.
    pub table: Table,
    /// The row's key.
    pub key: Vec<u8>,
    /// The revision that the row must have; `None`: it must not exist.
    pub revision: Option<u64>,
}

/// One change of a commit.
#[derive(Debug, Clone)]
pub struct Write {
    /// The row's table.
    pub table: Table,
    /// The row's key.
    pub key: Vec<u8>,
    /// The new bytes; `None` deletes the row.
    pub value: Option<Vec<u8>>,
}

/// One atomic commit: if every expectation holds, every write is done; else none. If the same key
/// is written twice, the last write stands.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// What must hold.
    pub expects: Vec<Expect>,
    /// What is then done.
    pub writes: Vec<Write>,
    /// Index of the log record (the grant's) that this commit rests on. The highest one ever given
    /// is kept, see [`Store::last_grant`](super::Store::last_grant).
    pub under: Option<u64>,
}

/// A row was written or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The commit's revision.
    pub revision: u64,
    /// The row's table.
    pub table: Table,
    /// The row's key.
    pub key: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_its_own_word() {
        for table in Table::ALL {
            assert_eq!(Table::parse(table.as_str()), Some(*table));
        }
        let words: std::collections::HashSet<_> = Table::ALL.iter().map(|t| t.as_str()).collect();
        assert_eq!(words.len(), Table::ALL.len());
        assert_eq!(Table::parse("Meta"), None);
    }
}
