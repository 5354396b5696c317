//! An operator's word on what one of several identities is for (SPIFFE Workload API §5.2.1).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most bytes of a hint: what every client must be able to take.
pub const HINT_MAX: usize = 1024;

/// Why a text is no hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hint has 1 to {HINT_MAX} bytes of printable ASCII")]
pub struct HintError;

/// A hint: printable ASCII, since it stands in lists, in the log and in what workloads are told.
/// It is for a workload that chooses; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Hint(Box<str>);

impl Hint {
    /// Takes the text as it is; two that differ in anything are two.
    ///
    /// # Errors
    /// When it is empty, too long, or holds anything else than printable ASCII.
    pub fn parse(text: &str) -> Result<Self, HintError> {
        let is_plain = text.bytes().all(|b| matches!(b, b' '..=b'~'));
        match (1..=HINT_MAX).contains(&text.len()) && is_plain {
            true => Ok(Self(text.into())),
            false => Err(HintError),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Hint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_taken_and_nothing_else() {
        let longest = "h".repeat(HINT_MAX);
        for good in ["internal", "public face 2", "~", longest.as_str()] {
            assert_eq!(Hint::parse(good).unwrap().as_str(), good);
            let json = serde_json::to_string(good).unwrap();
            assert_eq!(serde_json::from_str::<Hint>(&json).unwrap().to_string(), good);
        }
        let longer = "h".repeat(HINT_MAX + 1);
        for bad in ["", "a\nb", "\u{e4}", "\u{7f}", "\u{202e}x", longer.as_str()] {
            assert_eq!(Hint::parse(bad), Err(HintError), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<Hint>(&json).is_err(), "{bad:?}");
        }
    }
}
