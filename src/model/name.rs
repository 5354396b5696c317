//! Names of secrets: `<namespace>/<segment>…`, byte-exact, decoded never.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limits::{NAME_MAX, SEGMENT_MAX, SEGMENTS_MAX};

/// Why a text is not a name. Each message says what is wrong and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No text at all.
    #[error("the name is empty")]
    Empty,
    /// The whole name is too long.
    #[error("the name is {0} bytes long; the limit is {NAME_MAX}")]
    TooLong(usize),
    /// Too deep.
    #[error("the name has {0} segments; the limit is {SEGMENTS_MAX}")]
    TooDeep(usize),
    /// `//`, or a slash at either end.
    #[error("segment {0} is empty: write single slashes, none at either end")]
    EmptySegment(usize),
    /// `.` or `..`.
    #[error("segment {0} is `.` or `..`; names are not paths to walk")]
    Dots(usize),
    /// One segment is too long.
    #[error("segment {0} is {1} bytes long; the limit is {SEGMENT_MAX}")]
    SegmentTooLong(usize, usize),
    /// A character outside the closed set.
    #[error("segment {0} holds {1:?}; allowed are A-Z, a-z, 0-9, `.`, `_` and `-`")]
    Character(usize, char),
    /// Only a namespace, no secret in it.
    #[error("the name is only a namespace; a secret needs `<namespace>/<name>`")]
    NoSecret,
}

/// Checks one segment, the `index`-th (from 1, for the message).
///
/// # Errors
/// The rule that the segment breaks.
pub fn check_segment(index: usize, segment: &str) -> Result<(), NameError> {
    if segment.is_empty() {
        return Err(NameError::EmptySegment(index));
    }
    if matches!(segment, "." | "..") {
        return Err(NameError::Dots(index));
    }
    let bad = |c: &char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-');
    if let Some(c) = segment.chars().find(bad) {
        return Err(NameError::Character(index, c));
    }
    if segment.len() > SEGMENT_MAX {
        return Err(NameError::SegmentTooLong(index, segment.len()));
    }
    Ok(())
}

fn check(text: &str) -> Result<usize, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    let depth = text.split('/').count();
    if depth > SEGMENTS_MAX {
        return Err(NameError::TooDeep(depth));
    }
    for (at, segment) in text.split('/').enumerate() {
        check_segment(at + 1, segment)?;
    }
    Ok(depth)
}

macro_rules! text_value {
    ($name:ident) => {
        impl $name {
            /// The text, exactly as it was parsed.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0.to_string()
            }
        }
    };
}

/// The first segment of a secret's name: what keys and shredding are counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Parses one segment.
    ///
    /// # Errors
    /// The rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_segment(1, text)?;
        Ok(Self(text.into()))
    }
}
text_value!(Namespace);

/// A secret's full name, `<namespace>/<segment>…`: 2 to 16 segments, at most 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(Arc<str>);

impl SecretName {
    /// Parses a name such as `pay/db/url`. A leading `secret/` is taken as the object notation of
    /// policies only by [`crate::model::Object`], never here.
    ///
    /// # Errors
    /// The rule that the text breaks, with the number of the segment.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match check(text)? {
            1 => Err(NameError::NoSecret),
            _ => Ok(Self(text.into())),
        }
    }

    /// The first segment.
    pub fn namespace(&self) -> Namespace {
        Namespace(self.0.split('/').next().unwrap_or_default().into())
    }

    /// The name with ASCII case folded: two names with the same folding may not both exist.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}
text_value!(SecretName);

/// What `list` is asked for: a namespace, or a part of its tree, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretPrefix(Arc<str>);

impl SecretPrefix {
    /// Parses 1 to 16 segments.
    ///
    /// # Errors
    /// The rule that the text breaks, with the number of the segment.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text)?;
        Ok(Self(text.into()))
    }

    /// Whether `name` stands at or below this prefix; whole segments only.
    pub fn covers(&self, name: &SecretName) -> bool {
        match name.as_str().strip_prefix(self.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}
text_value!(SecretPrefix);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_at_their_namespace() {
        let name = SecretName::parse("pay/db/url").unwrap();
        assert_eq!(name.namespace().as_str(), "pay");
        assert!(SecretPrefix::parse("pay/db").unwrap().covers(&name));
        assert!(SecretPrefix::parse("pay").unwrap().covers(&name));
        assert!(!SecretPrefix::parse("pay/d").unwrap().covers(&name), "whole segments only");
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        use NameError as E;
        for (text, want) in [
            ("", E::Empty),
            ("pay", E::NoSecret),
            ("/pay/x", E::EmptySegment(1)),
            ("pay//x", E::EmptySegment(2)),
            ("pay/x/", E::EmptySegment(3)),
            ("pay/../x", E::Dots(2)),
            ("pay/./x", E::Dots(2)),
            ("pay/%2e", E::Character(2, '%')),
            ("pay/a b", E::Character(2, ' ')),
            ("pay/a\n", E::Character(2, '\n')),
            ("pay/a\u{202e}", E::Character(2, '\u{202e}')),
            ("pay/é", E::Character(2, 'é')),
            ("pay/*", E::Character(2, '*')),
        ] {
            assert_eq!(SecretName::parse(text).unwrap_err(), want, "{text:?}");
        }
        assert_eq!(SecretName::parse(&"a".repeat(4096)).unwrap_err(), E::TooLong(4096));
        assert_eq!(SecretName::parse(&["a"; 17].join("/")).unwrap_err(), E::TooDeep(17));
        let long = format!("pay/{}", "a".repeat(129));
        assert_eq!(SecretName::parse(&long).unwrap_err(), E::SegmentTooLong(2, 129));
    }
}
