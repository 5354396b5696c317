//! What verifiers that know no SPIFFE look for: an OpenID Connect discovery document, and the keys
//! that it points to (OpenID Connect Discovery 1.0 §§3, 4).
//!
//! Both are for everybody: public keys and addresses, nothing else.

use std::fmt;

use serde_json::json;

use crate::model::limits::OIDC_ISSUER_MAX;

/// Why a text is no issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an issuer is `https://host`, with a port and a path if need be, without a slash at its end, \
     a query or a fragment; at most {OIDC_ISSUER_MAX} bytes"
)]
pub struct IssuerError;

/// What verifiers call whoever signs our tokens: they find the discovery document below it, and
/// compare it with the token's `iss` byte by byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer(String);

impl Issuer {
    /// Takes the text as it is.
    ///
    /// # Errors
    /// When it is no such address.
    pub fn parse(text: &str) -> Result<Self, IssuerError> {
        let rest = text.strip_prefix("https://").ok_or(IssuerError)?;
        let (place, path) =
            rest.split_once('/').map_or((rest, None), |(at, path)| (at, Some(path)));
        let (host, port) =
            place.split_once(':').map_or((place, None), |(at, port)| (at, Some(port)));
        let is_host = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b);
        let is_segment = |segment: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
            !matches!(segment, "" | "." | "..") && segment.bytes().all(plain)
        };
        let good = text.len() <= OIDC_ISSUER_MAX
            && !host.is_empty()
            && host.bytes().all(is_host)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
            && path.is_none_or(|path| path.split('/').all(is_segment));
        if good { Ok(Self(text.to_owned())) } else { Err(IssuerError) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The document below `/.well-known/openid-configuration`. Nobody logs in here, so it has no
    /// place for that; the rest is what verifiers of tokens demand.
    fn discovery(&self, algorithms: &[String]) -> String {
        json!({
            "authorization_endpoint": "",
            "id_token_signing_alg_values_supported": algorithms,
            "issuer": self.0,
            "jwks_uri": format!("{}/keys", self.0),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
        })
        .to_string()
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The keys as they stand now; none once the broker has ended.
type Keys = Box<dyn Fn() -> Option<Vec<u8>> + Send + Sync>;

/// What is told to everybody.
pub struct Published {
    issuer: Option<Issuer>,
    keys: Keys,
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Published {
    /// Under this name, these keys.
    pub fn new(
        issuer: Option<Issuer>,
        keys: impl Fn() -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self { issuer, keys: Box::new(keys) }
    }

    /// The discovery document; none where no issuer is set, or once the broker has ended.
    pub fn discovery(&self) -> Option<String> {
        let issuer = self.issuer.as_ref()?;
        Some(issuer.discovery(&algorithms(&self.keys()?)))
    }

    /// The keys as they stand now; none once the broker has ended.
    pub fn keys(&self) -> Option<Vec<u8>> {
        (self.keys)()
    }
}

/// What the keys of this set sign with.
fn algorithms(keys: &[u8]) -> Vec<String> {
    let set: serde_json::Value = serde_json::from_slice(keys).unwrap_or_default();
    let keys = set.get("keys").and_then(serde_json::Value::as_array);
    let of = |key: &serde_json::Value| key.get("alg")?.as_str().map(str::to_owned);
    let mut all: Vec<_> = keys.into_iter().flatten().filter_map(of).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_one_plain_https_address() {
        for good in [
            "https://id.corp.example",
            "https://id.corp.example:8443",
            "https://corp.example/doorward/eu-1",
            "https://10.0.0.1",
        ] {
            assert_eq!(Issuer::parse(good).unwrap().as_str(), good);
        }
        let long = format!("https://corp.example/{}", "a".repeat(OIDC_ISSUER_MAX));
        for bad in [
            "",
            "id.corp.example",
            "http://corp.example",
            "https://",
            "https:///a",
            "https://corp.example/",
            "https://corp.example//a",
            "https://corp.example/../a",
            "https://corp.example?a",
            "https://corp.example/a#b",
            "https://u@corp.example",
            "https://Corp.example",
            "https://corp.example:0",
            "https://corp.example:x",
            "https://corp.example/a b",
            "https://corp.example/%61",
            "https://corp.example/\"",
            &long,
        ] {
            assert_eq!(Issuer::parse(bad), Err(IssuerError), "{bad}");
        }
    }

    #[test]
    fn the_document_names_what_verifiers_demand() {
        let issuer = Issuer::parse("https://id.corp.example/a").unwrap();
        let keys = br#"{"keys":[{"alg":"RS256"},{"alg":"ES256"},{"alg":"ES256"},{}]}"#;
        assert_eq!(algorithms(keys), ["ES256", "RS256"], "what the keys say, once each");
        let told = issuer.discovery(&algorithms(br#"{"keys":[{"alg":"ES256"}]}"#));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["issuer"], "https://id.corp.example/a");
        assert_eq!(told["jwks_uri"], "https://id.corp.example/a/keys");
        assert_eq!(told["id_token_signing_alg_values_supported"], json!(["ES256"]));
    }
}
