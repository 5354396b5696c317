//! The rows that this room keeps: strict JSON with a format version. A row that does not read back
//! is an error that names it, never a default.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::AuthorityError;
use crate::identity::DeniedFor;
use crate::model::{
    DeviceClass, DeviceId, Digest, EnrolledBy, Entry, Moment, Resident, Serial, SpiffeId,
};
use crate::store::Table;

/// The format that this program writes.
pub(super) const FORMAT: u64 = 1;

/// One device: everything about it in one row, so that no two records can disagree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceRecord {
    pub v: u64,
    pub class: DeviceClass,
    /// The word that it gave for people.
    pub name: String,
    /// From 1; raised by each revocation.
    pub epoch: u64,
    /// Ended for good.
    pub revoked: bool,
    /// Seconds since 1970.
    pub enrolled: i64,
    /// Seconds since 1970, to the hour.
    pub last_seen: i64,
    /// SHA-256 of the device key's SubjectPublicKeyInfo.
    pub key: Digest,
    /// Whose it is, for the class of people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The authority that signed its latest certificate; none for the first that there ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Digest>,
    /// What it was enrolled by; none for a join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<EnrolledBy>,
    /// Life of its certificates in seconds, where what let it in says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

impl DeviceRecord {
    /// Of a device that enrols now, with this key.
    pub(super) fn new(key: Digest, class: DeviceClass, name: &str, now: Moment) -> Self {
        Self {
            v: FORMAT,
            class,
            name: name.to_owned(),
            epoch: 1,
            revoked: false,
            enrolled: now.unix_s(),
            last_seen: now.unix_s(),
            key,
            operator: None,
            issuer: None,
            by: None,
            ttl_s: None,
        }
    }
}

impl DeviceRecord {
    /// Where its key is held by a TPM: which, and what stands behind it.
    pub(super) fn resident(&self) -> Option<Resident> {
        match &self.by {
            Some(EnrolledBy::Tpm { tier, .. }) => Some(Resident { key: self.key, tier: *tier }),
            _ => None,
        }
    }
}

/// One registration entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntryRecord {
    pub v: u64,
    pub entry: Entry,
    /// Revoked and not resumed.
    pub suspended: bool,
}

/// What a token's row is found by: the first half of its secret's digest.
pub(super) type TokenKey = [u8; 16];

/// One token. The secret itself is nowhere but in the token's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenRecord {
    pub v: u64,
    /// SHA-256 of the secret.
    pub digest: Digest,
    pub class: DeviceClass,
    /// Whom it makes an operator, for the class of people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Seconds since 1970; from then on it is dead.
    pub until: i64,
    /// The device that it was spent on. The row stays until the token's end, so that a second try
    /// is told apart from a guess.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<DeviceId>,
}

impl TokenRecord {
    /// The key of the row.
    pub(super) fn key(&self) -> TokenKey {
        token_key(&self.digest)
    }
}

/// What the rows of revoked SVIDs begin with, beside those of the CA.
pub(super) const DENIED_PREFIX: &[u8] = b"denied/";

/// Whose SVID of a serial number is revoked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeniedOf {
    /// The one that was issued to this device.
    Device(DeviceId),
    /// The one with this identity in it.
    SpiffeId(SpiffeId),
}

impl From<DeniedOf> for DeniedFor {
    fn from(of: DeniedOf) -> Self {
        match of {
            DeniedOf::Device(device) => Self::Device(device),
            DeniedOf::SpiffeId(id) => Self::Identity(id),
        }
    }
}

/// One SVID that was revoked before its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeniedRecord {
    pub v: u64,
    pub serial: Serial,
    pub of: DeniedOf,
    /// Seconds since 1970; it has ended by then, and is forgotten.
    pub until: i64,
}

/// What its row is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DeniedKey(TokenKey);

impl DeniedKey {
    /// The key of the row in the store.
    pub(super) fn row(&self) -> Vec<u8> {
        [DENIED_PREFIX, &self.0].concat()
    }
}

impl DeniedRecord {
    /// The key of the row: serial number and whose it is, nothing else.
    pub(super) fn key(&self) -> DeniedKey {
        let of = match &self.of {
            DeniedOf::Device(device) => format!("device {device}"),
            DeniedOf::SpiffeId(id) => format!("spiffe_id {id}"),
        };
        DeniedKey(token_key(&Digest::of(format!("{} {of}", self.serial).as_bytes())))
    }
}

/// The key of the row of the token with this secret's digest.
pub(super) fn token_key(digest: &Digest) -> TokenKey {
    let mut key = TokenKey::default();
    for (to, from) in key.iter_mut().zip(digest.0) {
        *to = from;
    }
    key
}

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Authority => "authority",
        Table::Devices => "devices",
        Table::Entries => "entries",
        Table::Tokens => "tokens",
        _ => "another room",
    }
}

/// The bytes of a record.
pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, AuthorityError> {
    serde_json::to_vec(record).map_err(|_| AuthorityError::Crypto("writing a row"))
}

/// Reads a record back; the format version comes first.
pub(super) fn decode<T: DeserializeOwned>(
    table: Table,
    key: &[u8],
    value: &[u8],
) -> Result<T, AuthorityError> {
    #[derive(Deserialize)]
    struct Format {
        v: u64,
    }
    let damaged = || AuthorityError::Row { table: table_name(table), key: hex::encode(key) };
    let format: Format = serde_json::from_slice(value).map_err(|_| damaged())?;
    if format.v != FORMAT {
        return Err(AuthorityError::Newer { table: table_name(table), version: format.v });
    }
    serde_json::from_slice(value).map_err(|_| damaged())
}

/// That a row of this key does not read back.
pub(super) fn damaged(table: Table, key: &[u8]) -> AuthorityError {
    AuthorityError::Row { table: table_name(table), key: hex::encode(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenRecord {
        TokenRecord {
            v: FORMAT,
            digest: Digest::of(b"x"),
            class: DeviceClass::parse("server").unwrap(),
            operator: None,
            until: 1,
            spent: None,
        }
    }

    #[test]
    fn a_row_reads_back_and_nothing_else_does() {
        let bytes = encode(&token()).unwrap();
        assert_eq!(decode::<TokenRecord>(Table::Tokens, b"k", &bytes).unwrap(), token());

        let newer = String::from_utf8(bytes.clone()).unwrap().replace("\"v\":1", "\"v\":2");
        let error = decode::<TokenRecord>(Table::Tokens, b"k", newer.as_bytes()).unwrap_err();
        assert!(matches!(error, AuthorityError::Newer { table: "tokens", version: 2 }), "{error}");

        let more = String::from_utf8(bytes.clone()).unwrap().replace('{', "{\"x\":1,");
        for bad in [&bytes[..bytes.len() - 1], b"", b"{}", b"null", more.as_bytes()] {
            let error = decode::<TokenRecord>(Table::Tokens, b"k", bad).unwrap_err();
            assert!(matches!(error, AuthorityError::Row { .. }), "{error}");
        }
    }
}
