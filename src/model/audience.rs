//! Whom a token is for, as it is asked for, signed and recorded.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::JWT_AUDIENCE_MAX;

/// Why a text is no audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an audience has 1 to {JWT_AUDIENCE_MAX} bytes of printable ASCII")]
pub struct AudienceError;

/// One audience of a JWT-SVID: printable ASCII, since it stands in the logs of both sides.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Audience(Box<str>);

impl Audience {
    /// Takes the text as it is; two that differ in anything are two.
    ///
    /// # Errors
    /// When it is empty, too long, or holds anything else than printable ASCII.
    pub fn parse(text: &str) -> Result<Self, AudienceError> {
        let is_plain = text.bytes().all(|b| matches!(b, b' '..=b'~'));
        match (1..=JWT_AUDIENCE_MAX).contains(&text.len()) && is_plain {
            true => Ok(Self(text.into())),
            false => Err(AudienceError),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Audience {
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
        for good in ["a", "https://vault.example:8200/v1", "spiffe://d.example/a b", "~"] {
            assert_eq!(Audience::parse(good).unwrap().as_str(), good);
        }
        let longest = "a".repeat(JWT_AUDIENCE_MAX);
        assert!(Audience::parse(&longest).is_ok());
        for bad in ["", "a\nb", "\u{202e}a", "\0", "\u{7f}", &format!("{longest}a")] {
            assert_eq!(Audience::parse(bad), Err(AudienceError), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<Audience>(&json).is_err(), "{bad:?}");
        }
    }
}
