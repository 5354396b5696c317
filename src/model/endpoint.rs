//! The address of a bundle endpoint, and by which rules it proves itself (SPIFFE Federation §5).
//!
//! One canonical form, parsed once. Trust domain, address and profile are three things that are
//! given each on its own; nothing here takes one out of another.

use std::fmt;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::limits::ENDPOINT_URL_MAX;
use super::spiffe_id::SpiffeId;

/// Why a text is no address of a bundle endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointUrlError {
    /// Another scheme, or none.
    #[error("it does not begin with `https://`")]
    Scheme,
    /// Too many bytes.
    #[error("it has more than {ENDPOINT_URL_MAX} bytes")]
    TooLong,
    /// A user's name or password stands in it.
    #[error("a user or password stands before the host; none may")]
    UserInfo,
    /// No name or address.
    #[error("the host is not a dns name in lower case, an ipv4 address, or an ipv6 one in `[…]`")]
    Host,
    /// No port number.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// A character that does not stand in addresses, or a fragment.
    #[error("the path holds `#` or a character that is not plain ascii")]
    Path,
}

/// `https://host[:port][/path][?query]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointUrl {
    text: Box<str>,
    /// Where the host begins and ends, brackets of an IPv6 address left out.
    host: (usize, usize),
    port: u16,
    /// Where the path begins.
    path: usize,
}

impl EndpointUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, EndpointUrlError> {
        const SCHEME: &str = "https://";
        if text.len() > ENDPOINT_URL_MAX {
            return Err(EndpointUrlError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(EndpointUrlError::Scheme)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err(EndpointUrlError::UserInfo);
        }
        if !target.bytes().all(|b| matches!(b, b'!'..=b'~') && b != b'#') {
            return Err(EndpointUrlError::Path);
        }
        let (inner, port, bracket) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (inner, port) = inner.split_once(']').ok_or(EndpointUrlError::Host)?;
                inner.parse::<Ipv6Addr>().map_err(|_| EndpointUrlError::Host)?;
                (inner, port, 1)
            }
            None => {
                let end = authority.find(':').unwrap_or(authority.len());
                let (host, port) = authority.split_at(end);
                if !is_dns_name(host) {
                    return Err(EndpointUrlError::Host);
                }
                (host, port, 0)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => 443,
            None => return Err(EndpointUrlError::Host),
            Some(digits)
                if !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) =>
            {
                digits.parse().map_err(|_| EndpointUrlError::Port)?
            }
            Some(_) => return Err(EndpointUrlError::Port),
        };
        let begin = SCHEME.len().saturating_add(bracket);
        Ok(Self {
            host: (begin, begin.saturating_add(inner.len())),
            port,
            path: SCHEME.len().saturating_add(end),
            text: text.into(),
        })
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Name or address of the host, without brackets.
    pub fn host(&self) -> &str {
        self.text.get(self.host.0..self.host.1).unwrap_or_default()
    }

    /// The port; 443 where none is said.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the request asks for: path and query, at least `/`.
    pub fn target(&self) -> String {
        let rest = self.text.get(self.path..).unwrap_or_default();
        match rest.starts_with('/') {
            true => rest.to_owned(),
            false => format!("/{rest}"),
        }
    }

    /// What stands in the request's `Host`.
    pub fn host_header(&self) -> String {
        let host = self.host();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

/// Letters in lower case, digits, hyphens and dots; each part 1 to 63 bytes, 253 in all. IPv4
/// addresses are of this form too.
fn is_dns_name(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    host.len() <= 253
        && host.split('.').all(|part| {
            (1..=63).contains(&part.len())
                && part.bytes().all(plain)
                && !part.starts_with('-')
                && !part.ends_with('-')
        })
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for EndpointUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for EndpointUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// How an endpoint proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EndpointProfile {
    /// With an SVID of exactly this ID.
    HttpsSpiffe {
        /// It.
        endpoint_id: SpiffeId,
    },
    /// With a certificate of the web for its host.
    HttpsWeb {},
}

impl EndpointProfile {
    /// The standard's word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::HttpsSpiffe { .. } => "https_spiffe",
            Self::HttpsWeb {} => "https_web",
        }
    }
}

/// Where a trust domain publishes its bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The address.
    pub url: EndpointUrl,
    /// How it proves itself.
    pub profile: EndpointProfile,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_have_one_form() {
        for (text, host, port, target, header) in [
            ("https://b.example", "b.example", 443, "/", "b.example"),
            ("https://b.example/", "b.example", 443, "/", "b.example"),
            ("https://b.example:8443/x/y?z", "b.example", 8443, "/x/y?z", "b.example:8443"),
            ("https://127.0.0.1:1?z", "127.0.0.1", 1, "/?z", "127.0.0.1:1"),
            ("https://[::1]:65535/a", "::1", 65535, "/a", "[::1]:65535"),
            ("https://[2001:db8::1]", "2001:db8::1", 443, "/", "[2001:db8::1]"),
        ] {
            let url = EndpointUrl::parse(text).unwrap();
            let told = (url.host(), url.port(), url.target(), url.host_header());
            assert_eq!(told, (host, port, target.to_owned(), header.to_owned()), "{text}");
            assert_eq!(url.as_str(), text);
        }
    }

    #[test]
    fn every_other_form_is_refused_with_its_reason() {
        use EndpointUrlError as E;
        for (text, want) in [
            ("http://b.example", E::Scheme),
            ("HTTPS://b.example", E::Scheme),
            ("b.example", E::Scheme),
            ("https://me@b.example", E::UserInfo),
            ("https://me:pw@b.example", E::UserInfo),
            ("https://@b.example", E::UserInfo),
            ("https://", E::Host),
            ("https:///x", E::Host),
            ("https://B.example", E::Host),
            ("https://b..example", E::Host),
            ("https://-b.example", E::Host),
            ("https://b_c.example", E::Host),
            ("https://b.example\\@c", E::UserInfo),
            ("https://b.example\\c", E::Host),
            ("https://[::1", E::Host),
            ("https://[b.example]", E::Host),
            ("https://[::1]x", E::Host),
            ("https://b.example:", E::Port),
            ("https://b.example:0", E::Port),
            ("https://b.example:+443", E::Port),
            ("https://b.example:65536", E::Port),
            ("https://b.example:1:2", E::Port),
            ("https://b.example/a b", E::Path),
            ("https://b.example/a\r\nHost: c", E::Path),
            ("https://b.example/#x", E::Path),
            ("https://b.example/é", E::Path),
        ] {
            assert_eq!(EndpointUrl::parse(text), Err(want), "{text}");
        }
        let long = format!("https://b.example/{}", "x".repeat(ENDPOINT_URL_MAX));
        assert_eq!(EndpointUrl::parse(&long), Err(E::TooLong));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(https://)?.{0,40}") {
            if let Ok(url) = EndpointUrl::parse(&text) {
                prop_assert!(!url.host().is_empty() && url.target().starts_with('/'));
                prop_assert!(!url.host_header().contains(['\r', '\n', ' ']));
            }
        }
    }
}
