//! Ids that Doorward gives out itself.

use std::cell::RefCell;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::clock::Moment;
use super::limits::SERIAL_MAX;

/// The text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id has 36 characters: hyphens, digits and a to f in lower case")]
pub struct IdError;

/// A UUID in the form in which it is written; no other text names the same thing.
fn canonical(text: &str) -> Result<Uuid, IdError> {
    let id = Uuid::try_parse(text).map_err(|_| IdError)?;
    let mut form = Uuid::encode_buffer();
    if id.hyphenated().encode_lower(&mut form) == text { Ok(id) } else { Err(IdError) }
}

fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Uuid, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(from)?;
    canonical(&text).map_err(serde::de::Error::custom)
}

/// The id of one request: a UUIDv7 made by the broker, never by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(#[serde(deserialize_with = "read")] Uuid);

impl RequestId {
    /// A fresh id, ordered by the given moment.
    pub fn new(now: Moment) -> Self {
        let millis = u64::try_from(now.unix_ms()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random()).into_uuid())
    }

    /// Parses the one form: 36 characters, hyphenated, lower case.
    ///
    /// # Errors
    /// When the text is anything else, another form of the same UUID included.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        canonical(text).map(Self)
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
pub struct EntryId(#[serde(deserialize_with = "read")] pub Uuid);

impl EntryId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses the one form: 36 characters, hyphenated, lower case.
    ///
    /// # Errors
    /// When the text is anything else, another form of the same UUID included.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        canonical(text).map(Self)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One start of a broker, drawn anew by each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartId(#[serde(deserialize_with = "read")] pub Uuid);

impl StartId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// The immutable id of one relationship with another trust domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RelationshipId(#[serde(deserialize_with = "read")] Uuid);

impl RelationshipId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

/// A certificate's serial number as its unsigned big-endian bytes, without leading zeros.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Serial(pub Box<[u8]>);

/// Why a text is no serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a serial number is 1 to {SERIAL_MAX} bytes as lower-case hexadecimal digits, without leading \
     zero bytes"
)]
pub struct SerialError;

impl Serial {
    /// Parses the one form that is ever written.
    ///
    /// # Errors
    /// When the text is of another form.
    pub fn parse(text: &str) -> Result<Self, SerialError> {
        let plain = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        if text.len() > 2 * SERIAL_MAX || !text.bytes().all(plain) {
            return Err(SerialError);
        }
        let bytes = hex::decode(text).map_err(|_| SerialError)?;
        match bytes.first() {
            None | Some(0) => Err(SerialError),
            Some(_) => Ok(Self(bytes.into())),
        }
    }
}

impl Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_has_one_form() {
        for good in ["01", "5a", "017c2351d48db52f61c4238be2b01256f4", &"ff".repeat(20)] {
            let serial = Serial::parse(good).unwrap();
            assert_eq!(serial.to_string(), good);
            let json = serde_json::to_string(&serial).unwrap();
            assert_eq!(serde_json::from_str::<Serial>(&json).unwrap(), serial);
        }
        for bad in ["", "0", "00", "0001", "5A", "5a5", "0x5a", "5a:5a", " 5a", &"ff".repeat(21)] {
            assert_eq!(Serial::parse(bad), Err(SerialError), "{bad:?}");
        }
    }

    #[test]
    fn an_id_has_one_form() {
        let good = "0192a0b0-0000-7000-8000-00000000abcd";
        assert_eq!(EntryId::parse(good).unwrap().to_string(), good);
        assert_eq!(RequestId::parse(good).unwrap().to_string(), good);
        let json = format!("\"{good}\"");
        let read: EntryId = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        for bad in [
            good.to_uppercase(),
            good.replace('-', ""),
            format!("{{{good}}}"),
            format!("urn:uuid:{good}"),
            format!(" {good}"),
            good[1..].to_owned(),
            String::new(),
        ] {
            assert_eq!(EntryId::parse(&bad), Err(IdError), "{bad}");
            assert_eq!(RequestId::parse(&bad), Err(IdError), "{bad}");
            let json = format!("\"{bad}\"");
            assert!(serde_json::from_str::<EntryId>(&json).is_err(), "{bad}");
            assert!(serde_json::from_str::<RequestId>(&json).is_err(), "{bad}");
        }
    }
}
