//! The SPIFFE trust bundle document: what a trust domain publishes of itself, read and written.
//!
//! Source: SPIFFE Trust Domain and Bundle §4, RFC 7517. Which domain a document speaks for is told
//! from outside and never taken out of it. An element that can't be used is left out and named in
//! [`BundleDocument::ignored`]; it never costs the others. What is left out is not trusted, so a
//! document in which nothing is left trusts nobody. Keys of one purpose never leave by the exit of
//! another. Nothing here changes once it was read.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Map, Value, json};

use super::certificate::Certificate;
use super::jwk::{JwkError, JwtKey, members_of, text};
use super::view::Bundle;
use crate::model::limits::{
    BUNDLE_DEPTH, BUNDLE_DOCUMENT_MAX, BUNDLE_KEYS_MAX, BUNDLE_MAP_DOMAINS, BUNDLE_MAP_MAX,
};
use crate::model::{StrictJsonError, TrustDomain, read_strict_json};

/// Why a document is refused as a whole. The last one that was good stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Too many bytes.
    #[error("it has {0} bytes; at most {1} are read")]
    TooLarge(usize, usize),
    /// Not JSON of the strict form.
    #[error("it is not strict json: {0}")]
    Json(StrictJsonError),
    /// Not an object.
    #[error("it is not a json object; a bundle is one with the member `keys`")]
    NotObject,
    /// `keys` is missing or no array.
    #[error("its member `keys` is missing or not an array; an empty one revokes everything")]
    Keys,
    /// Too many elements.
    #[error(
        "`keys` has {0} elements; at most {BUNDLE_KEYS_MAX} are read: publish living keys only"
    )]
    TooManyKeys(usize),
    /// `spiffe_sequence` is no number of 64 bits.
    #[error("`spiffe_sequence` is not an integer from 0 to 2^64-1")]
    Sequence,
    /// `spiffe_refresh_hint` is no number of seconds.
    #[error("`spiffe_refresh_hint` is not a whole number of seconds")]
    RefreshHint,
    /// Two keys that tokens could not tell apart.
    #[error("two jwt-svid keys have the id {0:?}; give each key an id of its own")]
    KeyIdTwice(Box<str>),
    /// A root that can't stand in a document; only when one is made.
    #[error("root {0} can't stand in a bundle: {1}")]
    Root(usize, JwkError),
    /// `trust_domains` of a map is missing or no object.
    #[error("its member `trust_domains` is missing or not an object")]
    TrustDomains,
    /// Too many domains in a map.
    #[error("`trust_domains` has {0} members; at most {BUNDLE_MAP_DOMAINS} are read")]
    TooManyDomains(usize),
    /// A member of a map is not named by a trust domain.
    #[error("`trust_domains` has a member whose name is not a bare trust domain name")]
    DomainName,
    /// A bundle of a map is refused.
    #[error("the bundle of {0}: {1}")]
    Of(TrustDomain, Box<BundleError>),
}

/// An element that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredKey {
    /// Its place in `keys`, from 0.
    pub index: usize,
    /// The rule that it breaks.
    pub fault: JwkError,
}

/// One trust domain's bundle. Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleDocument {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    jwt_keys: Vec<JwtKey>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
    ignored: Vec<IgnoredKey>,
}

impl BundleDocument {
    /// A document of ours.
    ///
    /// # Errors
    /// When it would break a rule that [`BundleDocument::parse`] knows, or hold a root whose key no
    /// JWK can tell.
    pub fn new(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
        jwt_keys: Vec<JwtKey>,
        sequence: u64,
        refresh_hint: Duration,
    ) -> Result<Self, BundleError> {
        let count = roots.len().saturating_add(jwt_keys.len());
        if count > BUNDLE_KEYS_MAX {
            return Err(BundleError::TooManyKeys(count));
        }
        for (index, root) in roots.iter().enumerate() {
            root_members(root).map_err(|fault| BundleError::Root(index, fault))?;
        }
        check_ids(&jwt_keys)?;
        let document = Self {
            trust_domain,
            roots,
            jwt_keys,
            sequence: Some(sequence),
            // Told in whole seconds; what is not read back must not be held either.
            refresh_hint: Some(Duration::from_secs(refresh_hint.as_secs())),
            ignored: Vec::new(),
        };
        match document.to_json().len() {
            size if size > BUNDLE_DOCUMENT_MAX => {
                Err(BundleError::TooLarge(size, BUNDLE_DOCUMENT_MAX))
            }
            _ => Ok(document),
        }
    }

    /// Reads the document that a trust domain publishes.
    ///
    /// # Errors
    /// The first rule that the document as a whole breaks.
    pub fn parse(trust_domain: TrustDomain, bytes: &[u8]) -> Result<Self, BundleError> {
        let value = read(bytes, BUNDLE_DOCUMENT_MAX)?;
        Self::from_value(trust_domain, &value)
    }

    /// Reads a map of bundles (SPIFFE Trust Domain and Bundle §5): all of them or none. Refresh
    /// hints inside a map count for nothing.
    ///
    /// # Errors
    /// The first rule that the map or one of its bundles breaks.
    pub fn parse_map(bytes: &[u8]) -> Result<BTreeMap<TrustDomain, Self>, BundleError> {
        let value = read(bytes, BUNDLE_MAP_MAX)?;
        let map = value.as_object().ok_or(BundleError::NotObject)?;
        let domains = map.get("trust_domains").and_then(Value::as_object);
        let domains = domains.ok_or(BundleError::TrustDomains)?;
        if domains.len() > BUNDLE_MAP_DOMAINS {
            return Err(BundleError::TooManyDomains(domains.len()));
        }
        let one = |(name, value): (&String, &Value)| {
            let domain = TrustDomain::parse(name).map_err(|_| BundleError::DomainName)?;
            let document = Self::from_value(domain.clone(), value)
                .map_err(|error| BundleError::Of(domain.clone(), Box::new(error)))?;
            Ok((domain, Self { refresh_hint: None, ..document }))
        };
        domains.iter().map(one).collect()
    }

    fn from_value(trust_domain: TrustDomain, value: &Value) -> Result<Self, BundleError> {
        let document = value.as_object().ok_or(BundleError::NotObject)?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(BundleError::Keys)?;
        if keys.len() > BUNDLE_KEYS_MAX {
            return Err(BundleError::TooManyKeys(keys.len()));
        }
        let whole = |member: &str, error: BundleError| match document.get(member) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or(error),
        };
        let mut read = Self {
            trust_domain,
            roots: Vec::new(),
            jwt_keys: Vec::new(),
            sequence: whole("spiffe_sequence", BundleError::Sequence)?,
            refresh_hint: whole("spiffe_refresh_hint", BundleError::RefreshHint)?
                .map(Duration::from_secs),
            ignored: Vec::new(),
        };
        for (index, element) in keys.iter().enumerate() {
            if let Err(fault) = read.take(element) {
                read.ignored.push(IgnoredKey { index, fault });
            }
        }
        check_ids(&read.jwt_keys)?;
        Ok(read)
    }

    /// Puts an element where its `use` says.
    fn take(&mut self, element: &Value) -> Result<(), JwkError> {
        let jwk = element.as_object().ok_or(JwkError::NotObject)?;
        let kty = text(jwk, "kty").ok_or(JwkError::KeyType)?;
        match text(jwk, "use").ok_or(JwkError::Purpose)? {
            "x509-svid" if matches!(kty, "EC" | "RSA" | "OKP") => {
                let root = read_root(jwk)?;
                if !self.roots.contains(&root) {
                    self.roots.push(root);
                }
                Ok(())
            }
            "x509-svid" => Err(JwkError::KeyType),
            "jwt-svid" => {
                self.jwt_keys.push(JwtKey::read(jwk)?);
                Ok(())
            }
            _ => Err(JwkError::Purpose),
        }
    }

    /// The trust domain that it speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Counts up with every change of the content; `None` where the domain does not tell.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often the domain wants to be asked; `None` means every five minutes.
    pub fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    /// The signing certificates for X.509-SVIDs, and nothing else.
    pub fn x509_roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The keys for JWT-SVIDs, and nothing else.
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// The key for JWT-SVIDs with this id.
    pub fn jwt_key(&self, kid: &str) -> Option<&JwtKey> {
        self.jwt_keys.iter().find(|key| key.key_id() == kid)
    }

    /// The elements that are not used, and why: to be shown to operators.
    pub fn ignored(&self) -> &[IgnoredKey] {
        &self.ignored
    }

    /// What the verifier of X.509-SVIDs takes.
    pub fn to_roots(&self) -> Bundle {
        Bundle { roots: self.roots.clone() }
    }

    /// The document, without what was ignored. The same content gives the same bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let roots = self.roots.iter().filter_map(|root| {
            let mut jwk = root_members(root).ok()?;
            jwk.insert("use".into(), json!("x509-svid"));
            jwk.insert("x5c".into(), json!([STANDARD.encode(root)]));
            Some(Value::Object(jwk))
        });
        let keys: Vec<Value> = roots.chain(self.jwt_keys.iter().map(JwtKey::to_jwk)).collect();
        let mut document = Map::from_iter([("keys".to_owned(), Value::Array(keys))]);
        if let Some(sequence) = self.sequence {
            document.insert("spiffe_sequence".into(), json!(sequence));
        }
        if let Some(hint) = self.refresh_hint {
            document.insert("spiffe_refresh_hint".into(), json!(hint.as_secs()));
        }
        Value::Object(document).to_string().into_bytes()
    }

    /// The JWK Set for verifiers that know no SPIFFE (OpenID Connect Discovery 1.0 §3): only keys for
    /// JWT-SVIDs, each with `use` as they expect it.
    pub fn to_oidc_jwks(&self) -> Vec<u8> {
        let keys: Vec<Value> = self.jwt_keys.iter().map(|key| key.jwk_for("sig")).collect();
        json!({ "keys": keys }).to_string().into_bytes()
    }

    /// The JWK Set of the Workload API (FetchJWTBundles): only keys for JWT-SVIDs, each with its
    /// `use`, which the standard leaves open there.
    pub fn to_jwks(&self) -> Vec<u8> {
        let keys: Vec<Value> = self.jwt_keys.iter().map(JwtKey::to_jwk).collect();
        json!({ "keys": keys }).to_string().into_bytes()
    }
}

fn read(bytes: &[u8], most: usize) -> Result<Value, BundleError> {
    if bytes.len() > most {
        return Err(BundleError::TooLarge(bytes.len(), most));
    }
    read_strict_json(bytes, BUNDLE_DEPTH).map_err(BundleError::Json)
}

/// The first certificate of `x5c`; one that follows is not looked at. Whether our verifier can use
/// it is judged when it is installed: what we only pass on may be more than we can use.
fn read_root(jwk: &Map<String, Value>) -> Result<CertificateDer<'static>, JwkError> {
    let first = match jwk.get("x5c") {
        None => return Err(JwkError::CertificateAbsent),
        Some(chain) => chain.as_array().ok_or(JwkError::Certificate)?.first(),
    };
    let first = first.ok_or(JwkError::CertificateAbsent)?.as_str();
    let der = first.and_then(|text| STANDARD.decode(text).ok()).ok_or(JwkError::Certificate)?;
    let root = CertificateDer::from(der);
    root_members(&root)?;
    Ok(root)
}

/// The members of a root's key.
fn root_members(root: &CertificateDer<'_>) -> Result<Map<String, Value>, JwkError> {
    let read = Certificate::read(root).map_err(|_| JwkError::Certificate)?;
    if !read.constraints.is_some_and(|constraints| constraints.authority) {
        return Err(JwkError::Certificate);
    }
    members_of(read.spki).ok_or(JwkError::KeyType)
}

fn check_ids(keys: &[JwtKey]) -> Result<(), BundleError> {
    let mut ids: Vec<&str> = keys.iter().map(JwtKey::key_id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(BundleError::KeyIdTwice((*pair.first().unwrap_or(&"")).into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::token_draft::TokenKey;
    use crate::identity::vectors::{OWN, PARTNER, World};
    use proptest::prelude::*;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn keys() -> Vec<JwtKey> {
        ["ES256", "RS256"]
            .map(|algorithm| {
                let jwk = TokenKey::new(algorithm, algorithm).jwk();
                JwtKey::read(jwk.as_object().unwrap()).unwrap()
            })
            .to_vec()
    }

    fn document() -> BundleDocument {
        let roots = World::new().own_roots();
        let hint = Duration::from_secs(300);
        BundleDocument::new(domain(OWN), roots, keys(), u64::MAX, hint).unwrap()
    }

    #[test]
    fn a_document_reads_back_to_the_same() {
        let document = document();
        let json = document.to_json();
        let again = BundleDocument::parse(domain(OWN), &json).unwrap();
        assert_eq!(again, document);
        assert_eq!(again.to_json(), json);
        assert_eq!((again.x509_roots().len(), again.jwt_keys().len()), (4, 2));
        let roots = again.to_roots().roots;
        assert_eq!(roots, document.x509_roots());
        let value: Value = serde_json::from_slice(&json).unwrap();
        for key in value["keys"].as_array().unwrap() {
            match key["use"].as_str().unwrap() {
                "x509-svid" => {
                    assert!(key.get("kid").is_none() && key["x5c"].as_array().unwrap().len() == 1);
                }
                _ => assert!(key.get("x5c").is_none() && key["kid"].is_string()),
            }
        }
    }

    #[test]
    fn each_exit_has_keys_of_one_purpose() {
        let document = document();
        let jwks: Value = serde_json::from_slice(&document.to_jwks()).unwrap();
        let keys = jwks["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        assert!(keys.iter().all(|key| key["use"] == "jwt-svid" && key.get("x5c").is_none()));
        assert!(document.jwt_key("ES256").is_some() && document.jwt_key("PS256").is_none());
    }

    #[test]
    fn what_can_not_be_used_is_left_out_and_named() {
        use JwkError as E;
        let good: Value = serde_json::from_slice(&document().to_json()).unwrap();
        let (x509, jwt) = (&good["keys"][0], &good["keys"][4]);
        let with = |key: &Value, member: &str, value: Value| {
            let mut key = key.clone();
            key[member] = value;
            key
        };
        let without = |key: &Value, member: &str| {
            let mut key = key.clone();
            key.as_object_mut().unwrap().remove(member);
            key
        };
        let leaf = STANDARD.encode(
            crate::identity::vectors::Draft::leaf("spiffe://x/y")
                .self_signed(&crate::identity::vectors::key()),
        );
        for (element, fault) in [
            (json!(7), E::NotObject),
            (without(x509, "use"), E::Purpose),
            (with(x509, "use", json!("sig")), E::Purpose),
            (with(jwt, "use", json!("wit-svid")), E::Purpose),
            (without(x509, "kty"), E::KeyType),
            (with(x509, "kty", json!("AKP")), E::KeyType),
            (without(x509, "x5c"), E::CertificateAbsent),
            (with(x509, "x5c", json!([])), E::CertificateAbsent),
            (with(x509, "x5c", json!("AAAA")), E::Certificate),
            (with(x509, "x5c", json!(["AAAA"])), E::Certificate),
            (with(x509, "x5c", json!([leaf])), E::Certificate),
            (without(jwt, "kid"), E::KeyId),
            (with(jwt, "d", json!("AAAA")), E::Private),
        ] {
            let text = json!({ "keys": [element, x509, jwt] }).to_string();
            let read = BundleDocument::parse(domain(OWN), text.as_bytes()).unwrap();
            assert_eq!(read.ignored(), [IgnoredKey { index: 0, fault }], "{element}");
            assert_eq!((read.x509_roots().len(), read.jwt_keys().len()), (1, 1), "{element}");
        }
        let (one, other) = (&x509["x5c"][0], &good["keys"][1]["x5c"][0]);
        let two = json!({ "keys": [with(x509, "x5c", json!([one, other]))] }).to_string();
        let read = BundleDocument::parse(domain(OWN), two.as_bytes()).unwrap();
        assert_eq!(read.x509_roots(), &document_roots(one)[..]);
    }

    fn document_roots(x5c: &Value) -> Vec<CertificateDer<'static>> {
        vec![STANDARD.decode(x5c.as_str().unwrap()).unwrap().into()]
    }

    #[test]
    fn a_document_that_is_none_is_refused_whole() {
        use BundleError as E;
        let parse = |text: &str| BundleDocument::parse(domain(OWN), text.as_bytes());
        let empty = parse(r#" {"keys":[],"more":{}} "#).unwrap();
        assert_eq!((empty.sequence(), empty.refresh_hint()), (None, None));
        assert!(empty.x509_roots().is_empty() && empty.jwt_keys().is_empty());
        for (text, want) in [
            ("[]", E::NotObject),
            ("{}", E::Keys),
            (r#"{"keys":{}}"#, E::Keys),
            (r#"{"keys":null}"#, E::Keys),
            (r#"{"keys":[],"spiffe_sequence":"1"}"#, E::Sequence),
            (r#"{"keys":[],"spiffe_sequence":-1}"#, E::Sequence),
            (r#"{"keys":[],"spiffe_sequence":1.5}"#, E::Sequence),
            (r#"{"keys":[],"spiffe_sequence":18446744073709551616}"#, E::Sequence),
            (r#"{"keys":[],"spiffe_refresh_hint":-1}"#, E::RefreshHint),
            (&format!(r#"{{"keys":[{}0]}}"#, "0,".repeat(64)), E::TooManyKeys(65)),
        ] {
            assert_eq!(parse(text).unwrap_err(), want, "{text}");
        }
        for text in
            ["", "{", r#"{"keys":[]}x"#, r#"{"keys":[],"keys":[]}"#, r#"{"keys":[{"a":1,"a":1}]}"#]
        {
            assert!(matches!(parse(text), Err(E::Json(_))), "{text}");
        }
        let deep = format!(r#"{{"keys":{}{}}}"#, "[".repeat(8), "]".repeat(8));
        assert!(parse(&deep).unwrap_err().to_string().contains("deeper"));
        let large = " ".repeat(BUNDLE_DOCUMENT_MAX + 1);
        assert!(matches!(parse(&large), Err(E::TooLarge(..))));
        let twice = [keys(), keys()].concat();
        let hint = Duration::ZERO;
        let made = BundleDocument::new(domain(OWN), Vec::new(), twice, 1, hint).unwrap_err();
        assert_eq!(made, E::KeyIdTwice("ES256".into()));
        let nonsense = vec![CertificateDer::from(vec![0x30, 0])];
        let made = BundleDocument::new(domain(OWN), nonsense, Vec::new(), 1, hint).unwrap_err();
        assert_eq!(made, E::Root(0, JwkError::Certificate));
    }

    #[test]
    fn a_map_is_taken_whole_or_not_at_all() {
        let one: Value = serde_json::from_slice(&document().to_json()).unwrap();
        let map = |text: &str| BundleDocument::parse_map(text.as_bytes());
        let good = json!({ "trust_domains": { (OWN): one, (PARTNER): { "keys": [] } } });
        let read = map(&good.to_string()).unwrap();
        assert_eq!(read[&domain(OWN)].x509_roots(), document_like(&one).x509_roots());
        assert_eq!(read[&domain(OWN)].refresh_hint(), None);
        assert_eq!(read[&domain(PARTNER)].trust_domain(), &domain(PARTNER));
        let bad = json!({ "trust_domains": { (OWN): one, (PARTNER): {} } });
        let told = map(&bad.to_string()).unwrap_err();
        assert_eq!(told, BundleError::Of(domain(PARTNER), Box::new(BundleError::Keys)));
        assert_eq!(map("{}").unwrap_err(), BundleError::TrustDomains);
        let named = r#"{"trust_domains":{"spiffe://a":{"keys":[]}}}"#;
        assert_eq!(map(named).unwrap_err(), BundleError::DomainName);
        let twice = r#"{"trust_domains":{"a":{"keys":[]},"a":{"keys":[]}}}"#;
        assert!(matches!(map(twice), Err(BundleError::Json(_))));
    }

    fn document_like(value: &Value) -> BundleDocument {
        BundleDocument::parse(domain(OWN), value.to_string().as_bytes()).unwrap()
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>) {
            let _ = BundleDocument::parse(domain(OWN), &bytes);
            let _ = BundleDocument::parse_map(&bytes);
        }

        #[test]
        fn no_change_of_a_document_makes_it_panic(at: prop::sample::Index, byte: u8) {
            let mut json = GOOD.with(Clone::clone);
            let at = at.index(json.len());
            json[at] = byte;
            if let Ok(read) = BundleDocument::parse(domain(OWN), &json) {
                let again = BundleDocument::parse(domain(OWN), &read.to_json()).unwrap();
                prop_assert_eq!(again.x509_roots(), read.x509_roots());
                prop_assert_eq!(again.jwt_keys(), read.jwt_keys());
            }
        }
    }

    thread_local! {
        static GOOD: Vec<u8> = document().to_json();
    }
}
