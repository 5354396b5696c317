//! SPIFFE IDs and trust domains: one canonical, byte-exact form, made at the edge.
//!
//! The check is ours and comes first, because the `spiffe` crate lower-cases hosts and has no length
//! limit; its type stands inside so that other SPIFFE code can be handed the value. Source:
//! SPIFFE-ID §2.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::limits::{SPIFFE_ID_MAX, TRUST_DOMAIN_MAX};

/// Why a text is not a SPIFFE ID or a trust domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than the standard allows.
    #[error("it is {0} bytes long; the limit is {1}")]
    TooLong(usize, usize),
    /// Another scheme, or none; schemes are compared byte for byte.
    #[error("it does not begin with `spiffe://` in lower case")]
    Scheme,
    /// The trust domain is empty.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// A byte that a trust domain can't hold.
    #[error("the trust domain holds {0:?}; allowed are a-z, 0-9, `.`, `-` and `_`")]
    TrustDomainByte(char),
    /// A path segment is empty, `.` or `..`, or the path ends in `/`.
    #[error("a path segment is empty, `.` or `..`")]
    Segment,
    /// A byte that a path can't hold.
    #[error("the path holds {0:?}; allowed are letters, digits, `.`, `-` and `_`")]
    PathByte(char),
    /// The shared SPIFFE type refused what our check let through.
    #[error("the SPIFFE library refuses it")]
    Library,
}

/// A trust domain name, lower case, at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(std::sync::Arc<str>);

impl TrustDomain {
    /// Parses a bare trust domain name such as `corp.example`.
    ///
    /// # Errors
    /// Says which rule of SPIFFE-ID §2.1 the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.is_empty() {
            return Err(SpiffeIdError::EmptyTrustDomain);
        }
        if text.len() > TRUST_DOMAIN_MAX {
            return Err(SpiffeIdError::TooLong(text.len(), TRUST_DOMAIN_MAX));
        }
        let bad = |c: &char| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        match text.chars().find(bad) {
            Some(c) => Err(SpiffeIdError::TrustDomainByte(c)),
            None => Ok(Self(text.into())),
        }
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID of this domain with the given absolute path, e.g. `/doorward/broker`.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`].
    pub fn id(&self, path: &str) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::parse(&format!("spiffe://{}{path}", self.0))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(name: TrustDomain) -> Self {
        name.0.to_string()
    }
}

/// A SPIFFE ID in its one canonical form. The path may be empty (a signing authority's ID).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    inner: std::sync::Arc<spiffe::SpiffeId>,
    text: std::sync::Arc<str>,
    domain: TrustDomain,
}

// The canonical text says all: equality and hash look at nothing else.
impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl SpiffeId {
    /// Parses `spiffe://<trust domain>[/<segment>…]`.
    ///
    /// # Errors
    /// Says which rule of SPIFFE-ID §2 the text breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > SPIFFE_ID_MAX {
            return Err(SpiffeIdError::TooLong(text.len(), SPIFFE_ID_MAX));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let domain = TrustDomain::parse(domain)?;
        check_path(path)?;
        let inner = spiffe::SpiffeId::new(text).map_err(|_| SpiffeIdError::Library)?;
        if inner.to_string() != text {
            return Err(SpiffeIdError::Library);
        }
        Ok(Self { inner: inner.into(), text: text.into(), domain })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path with its leading slash; empty for a domain's own ID.
    pub fn path(&self) -> &str {
        self.text.get("spiffe://".len() + self.domain.as_str().len()..).unwrap_or("")
    }

    /// Whether the path is one of those that only Doorward itself gives out (`/doorward/…`).
    pub fn is_reserved(&self) -> bool {
        self.path() == "/doorward" || self.path().starts_with("/doorward/")
    }

    /// The shared type of the SPIFFE libraries.
    pub fn as_spiffe(&self) -> &spiffe::SpiffeId {
        &self.inner
    }
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let Some(rest) = path.strip_prefix('/') else {
        return Ok(()); // an empty path
    };
    for segment in rest.split('/') {
        if matches!(segment, "" | "." | "..") {
            return Err(SpiffeIdError::Segment);
        }
        let bad = |c: &char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '_');
        if let Some(c) = segment.chars().find(bad) {
            return Err(SpiffeIdError::PathByte(c));
        }
    }
    Ok(())
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_ids_are_taken_and_taken_apart() {
        let id = SpiffeId::parse("spiffe://corp.example/ns/pay/sa/api").unwrap();
        assert_eq!(id.trust_domain().as_str(), "corp.example");
        assert_eq!(id.path(), "/ns/pay/sa/api");
        assert!(!id.is_reserved());
        assert_eq!(SpiffeId::parse("spiffe://corp.example").unwrap().path(), "");
        assert!(SpiffeId::parse("spiffe://corp.example/doorward/broker").unwrap().is_reserved());
        assert!(SpiffeId::parse("spiffe://1.2.3.4/.../.path").is_ok(), "legal, odd as it looks");
    }

    #[test]
    fn every_other_form_is_refused_with_its_reason() {
        use SpiffeIdError as E;
        for (text, want) in [
            ("", E::Scheme),
            ("Spiffe://corp.example/x", E::Scheme),
            ("spiffe:///x", E::EmptyTrustDomain),
            ("spiffe://Corp.example/x", E::TrustDomainByte('C')),
            ("spiffe://user@corp.example/x", E::TrustDomainByte('@')),
            ("spiffe://corp.example:8443/x", E::TrustDomainByte(':')),
            ("spiffe://corp.example/x/", E::Segment),
            ("spiffe://corp.example//x", E::Segment),
            ("spiffe://corp.example/", E::Segment),
            ("spiffe://corp.example/a/../x", E::Segment),
            ("spiffe://corp.example/a/./x", E::Segment),
            ("spiffe://corp.example/%2e%2e", E::PathByte('%')),
            ("spiffe://corp.example/x?q", E::PathByte('?')),
            ("spiffe://corp.example/x#f", E::PathByte('#')),
            ("spiffe://corp.example/\u{0}", E::PathByte('\0')),
            ("spiffe://corp.example/é", E::PathByte('é')),
        ] {
            assert_eq!(SpiffeId::parse(text).unwrap_err(), want, "{text:?}");
        }
    }

    #[test]
    fn the_lengths_are_the_standards() {
        let fill = SPIFFE_ID_MAX - "spiffe://d/".len();
        assert!(SpiffeId::parse(&format!("spiffe://d/{}", "a".repeat(fill))).is_ok());
        assert!(SpiffeId::parse(&format!("spiffe://d/{}", "a".repeat(fill + 1))).is_err());
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert!(TrustDomain::parse(&"a".repeat(256)).is_err());
    }
}
