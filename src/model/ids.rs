//! Ids that Doorward gives out itself.

use std::cell::RefCell;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clock::Moment;

/// The id of one request: a UUIDv7 made by the broker, never by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A fresh id, ordered by the given moment.
    pub fn new(now: Moment) -> Self {
        let millis = u64::try_from(now.unix_ms()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random()).into_uuid())
    }

    /// Parses the hyphenated form.
    ///
    /// # Errors
    /// When the text is not a UUID.
    pub fn parse(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

/// Random bytes drawn at once; an id needs ten.
const DRAWN: usize = 1000;

thread_local! {
    /// Random bytes that no id has had yet.
    static UNUSED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Ten random bytes. Ids are told to their clients, so what the next ones will hold is no secret
/// worth wiping; drawing a hundred at once spares a call into the kernel for each request.
fn random() -> [u8; 10] {
    UNUSED.with_borrow_mut(|unused| {
        if unused.len() < 10 {
            unused.resize(DRAWN, 0);
            // Failing randomness ends the process: two requests must never share an id.
            aws_lc_rs::rand::fill(unused).expect("the system's randomness failed");
        }
        let mut ten = [0; 10];
        let rest = unused.len() - ten.len();
        ten.copy_from_slice(&unused[rest..]);
        unused.truncate(rest);
        ten
    })
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The immutable id of a registration entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntryId(pub Uuid);

impl EntryId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses the hyphenated form.
    ///
    /// # Errors
    /// When the text is not a UUID.
    pub fn parse(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A certificate's serial number as its unsigned big-endian bytes, without leading zeros.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub Box<[u8]>);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
