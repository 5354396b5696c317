//! Sealed bytes, revisions, watch. The store keeps what other rooms hand it, under keys of theirs;
//! it never sees plaintext, never judges, and never guesses: what it can't vouch for it refuses.
//!
//! One commit is one atomic step with one revision. An acknowledged commit is on disk (invariant
//! I12). Whoever writes says on which record of the decision log the commit rests (`Txn::under`),
//! so that a store that is ahead of its log is found at start.

#[cfg(test)]
pub(crate) mod conformance;
mod engine;
mod file;
mod redb_error;
mod redb_store;
mod row;

pub use engine::{Store, StoreError};
pub use redb_store::RedbStore;
pub use row::{Event, Expect, Row, Table, Txn, Write};
