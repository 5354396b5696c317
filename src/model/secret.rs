//! A secret's bytes, and the labels beside them.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::limits::{LABEL_KEY_MAX, LABEL_VALUE_MAX, LABELS_MAX};

/// Bytes that are wiped when they are dropped. There is no `Clone`, no comparison, and `Debug` shows
/// nothing: whoever wants the bytes says so with [`SecretValue::expose`].
pub struct SecretValue {
    bytes: WipedBytes,
    /// Dropped after the bytes are wiped.
    held: Option<Box<dyn Any + Send + Sync>>,
}

impl SecretValue {
    /// Takes the bytes over; the vector is wiped with this value.
    pub fn new(bytes: Vec<u8>) -> Self {
        WipedBytes::new(bytes).into()
    }

    /// No bytes.
    pub fn empty() -> Self {
        Self::new(Vec::new())
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps `guard` until the bytes are gone: a permit for something that is large in memory.
    #[must_use]
    pub fn holding(mut self, guard: impl Send + Sync + 'static) -> Self {
        self.held = Some(Box::new(guard));
        self
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl From<WipedBytes> for SecretValue {
    fn from(bytes: WipedBytes) -> Self {
        Self { bytes, held: None }
    }
}

impl From<Zeroizing<Vec<u8>>> for SecretValue {
    fn from(mut bytes: Zeroizing<Vec<u8>>) -> Self {
        WipedBytes::new(std::mem::take(&mut *bytes)).into()
    }
}

/// Bytes that are wiped when they are dropped, what lies behind their end included. Growing leaves
/// a copy behind: give it its capacity first. (`Zeroizing<Vec<u8>>` wipes byte by byte, which costs
/// more than opening a value of 1 KiB.)
#[derive(Default)]
pub struct WipedBytes(Vec<u8>);

impl WipedBytes {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Drop for WipedBytes {
    fn drop(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.spare_capacity_mut().zeroize();
    }
}

impl Deref for WipedBytes {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for WipedBytes {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl AsRef<[u8]> for WipedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WipedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WipedBytes(…)")
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// Why labels are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// Too many.
    #[error("more than {LABELS_MAX} labels")]
    TooMany,
    /// The same name twice.
    #[error("the label {0:?} stands twice")]
    Twice(String),
    /// A name that is empty, too long, or not plain text.
    #[error("the label name {0:?} is not 1 to {LABEL_KEY_MAX} of A-Z a-z 0-9 . _ -")]
    Key(String),
    /// A value that is too long or holds control characters.
    #[error("the value of label {0:?} is over {LABEL_VALUE_MAX} bytes or holds control characters")]
    Value(String),
}

/// Labels of a secret: at most 64, each name once. Public to whoever may list the secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks and takes pairs.
    ///
    /// # Errors
    /// The first pair that breaks a rule.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, LabelsError> {
        let mut labels = Self::default();
        for (key, value) in pairs {
            labels.insert(key, value)?;
        }
        Ok(labels)
    }

    fn insert(&mut self, key: String, value: String) -> Result<(), LabelsError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if key.is_empty() || key.len() > LABEL_KEY_MAX || !key.bytes().all(plain) {
            return Err(LabelsError::Key(key.chars().take(40).collect()));
        }
        if value.len() > LABEL_VALUE_MAX || value.chars().any(char::is_control) {
            return Err(LabelsError::Value(key));
        }
        if self.0.len() == LABELS_MAX {
            return Err(LabelsError::TooMany);
        }
        match self.0.insert(key.clone(), value) {
            Some(_) => Err(LabelsError::Twice(key)),
            None => Ok(()),
        }
    }

    /// The pairs in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// One label's value.
    pub fn of(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of text labels")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = Labels::default();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    labels.insert(key, value).map_err(A::Error::custom)?;
                }
                Ok(labels)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing() {
        assert_eq!(format!("{:?}", SecretValue::new(b"hunter2".to_vec())), "SecretValue(…)");
    }

    #[test]
    fn labels_are_bounded_and_single() {
        let labels: Labels = serde_json::from_str(r#"{"team":"pay","tier":"1"}"#).unwrap();
        assert_eq!(labels.of("team"), Some("pay"));
        for bad in [r#"{"a":"1","a":"2"}"#, r#"{"":"1"}"#, r#"{"a b":"1"}"#, r#"{"a":"\n"}"#] {
            assert!(serde_json::from_str::<Labels>(bad).is_err(), "{bad}");
        }
        let many = (0..65).map(|i| (format!("k{i}"), String::new()));
        assert_eq!(Labels::new(many).unwrap_err(), LabelsError::TooMany);
    }
}
