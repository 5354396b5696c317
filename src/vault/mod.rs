//! Secrets and the keys that hold them. A value opens here only for a grant, and only the one
//! version that the grant names.
//!
//! seal (passphrase or key file) → root key → one key per namespace and epoch, in files of its own
//! → one data key per version of a secret → the value. Rotation of any of these rewraps what hangs
//! directly on it and never touches a value. Each thing sealed is bound to immutable ids, so
//! nothing in the store can be put in another's place; the rows that say which name is which secret
//! bear a MAC under the root key for the same reason.
//!
//! What the store's owner can still do: delete rows, or put the whole store back to an earlier
//! state. The decision log's index in each commit shows the latter.

mod backup;
mod base;
mod change;
mod envelope;
mod error;
mod file;
mod keyring;
mod look;
mod parcel;
mod provider;
mod recent;
mod release;
mod rows;
#[cfg(test)]
mod sample;
mod seal;
mod secrets;
mod slot;
#[cfg(test)]
mod trials;
mod wrap;

pub use backup::{RestoredKeys, backup_revision, generate_recipient, restore_data, restore_keys};
pub use base::Vault;
pub use error::{BackupError, VaultError};
pub use file::FileError;
pub use keyring::KeyringError;
pub use provider::{KeyFile, KeyProvider, Passphrase};
pub use rows::RowError;
pub use seal::{RootKey, SealError};
pub use wrap::WrapError;
