//! A client's own word for a request of its own: recorded, never believed.

use serde::{Deserialize, Serialize};

use super::limits::CLIENT_REF_MAX;

/// The client's own reference: recorded, never believed. 1 to 64 of `A-Za-z0-9._:-`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientRef(Box<str>);

/// The reference is empty, too long, or holds other characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a client reference is 1 to {CLIENT_REF_MAX} of A-Z a-z 0-9 . _ : -")]
pub struct ClientRefError;

impl ClientRef {
    /// Parses a reference.
    ///
    /// # Errors
    /// When the text is of another form.
    pub fn parse(text: &str) -> Result<Self, ClientRefError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        if text.is_empty() || text.len() > CLIENT_REF_MAX || !text.bytes().all(plain) {
            return Err(ClientRefError);
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClientRef {
    type Error = ClientRefError;
    fn try_from(text: String) -> Result<Self, ClientRefError> {
        Self::parse(&text)
    }
}

impl From<ClientRef> for String {
    fn from(text: ClientRef) -> Self {
        text.0.into()
    }
}
