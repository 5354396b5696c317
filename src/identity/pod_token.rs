//! Kubernetes projected service account tokens, verified without asking the cluster.
//!
//! A token counts when a key of the cluster's own set signed it, for us, for a short time, and bound
//! to one pod. What it does not tell is whether the pod is still there: that ends with the token. It
//! is a bearer's: whoever has it can show it, so neither it nor a part of it stands in any error
//! here, and authority takes each for one device key only.

use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::jwk::{JwkError, JwtKey, text};
use super::jwt_svid::{JwtSvidError, Parts, audiences, numeric_date, read_header};
use crate::model::limits::{
    BUNDLE_DEPTH, JWKS_KEYS_MAX, JWKS_MAX, JWT_DEPTH, POD_TOKEN_LIFE, POD_TOKEN_MAX, POD_TOKEN_SKEW,
};
use crate::model::{Digest, Moment, read_strict_json};

/// The claim that says which pod.
const CLAIM: &str = "kubernetes.io";
/// A name of an object in a cluster, in bytes (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// An object's uid, in bytes; a UUID's text has 36.
const UID_MAX: usize = 64;
/// The issuer's and the audience's text, in bytes.
const TEXT_MAX: usize = 512;

/// Why a token is no proof: one variant for each rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PodTokenError {
    /// More bytes than a token may have.
    #[error("the token has more than {POD_TOKEN_MAX} bytes")]
    TooLarge,
    /// Not three parts of base64url with single members in JSON.
    #[error("the token is not a compact jws of json objects with single members")]
    Form,
    /// An algorithm that is not taken: none and MACs among them.
    #[error("the token's alg is none of RS, ES and PS with 256, 384 or 512")]
    Algorithm,
    /// A header that names no key, or holds what it must not.
    #[error("the token's header names no key, or holds more than alg, kid and typ")]
    Header,
    /// Another issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// No key of this id in the cluster's set.
    #[error("the cluster's key set holds no usable key of that id")]
    UnknownKey,
    /// The key is not one for the token's algorithm.
    #[error("the token's alg is not one for the key that it names")]
    KeyMismatch,
    /// The signature does not hold.
    #[error("the token's signature does not verify")]
    Signature,
    /// `exp` or `iat` is missing, or a time is none.
    #[error("the token has no time of issue or of expiry")]
    Times,
    /// It has ended.
    #[error("the token has expired")]
    Expired,
    /// It has not begun.
    #[error("the token is not valid yet")]
    NotYet,
    /// It lives too long.
    #[error("the token lives longer than 24 h; project one with `expirationSeconds`")]
    TooLong,
    /// It is not for us.
    #[error("the token is for another audience")]
    Audience,
    /// It is bound to no pod.
    #[error("the token is bound to no pod")]
    NoPod,
    /// Its claims contradict each other, or can't be.
    #[error("the token's claims about its pod can't be")]
    Claims,
    /// A service account that is not let in.
    #[error("the token's service account is not let in")]
    ServiceAccount,
}

impl PodTokenError {
    /// A stable word for the rule.
    pub fn word(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Form => "form",
            Self::Algorithm => "algorithm",
            Self::Header => "header",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::KeyMismatch => "key_mismatch",
            Self::Signature => "signature",
            Self::Times => "times",
            Self::Expired => "expired",
            Self::NotYet => "not_yet",
            Self::TooLong => "too_long",
            Self::Audience => "audience",
            Self::NoPod => "no_pod",
            Self::Claims => "claims",
            Self::ServiceAccount => "service_account",
        }
    }
}

impl From<JwtSvidError> for PodTokenError {
    fn from(error: JwtSvidError) -> Self {
        match error {
            JwtSvidError::Algorithm => Self::Algorithm,
            JwtSvidError::HeaderParameter | JwtSvidError::Type | JwtSvidError::KeyId => {
                Self::Header
            }
            _ => Self::Form,
        }
    }
}

/// Why a cluster can't be described so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The set is too large, no JSON, or no set.
    #[error(
        "it is not a key set (`keys`) in json with single members, of at most {JWKS_MAX} bytes"
    )]
    Form,
    /// Too many keys.
    #[error("it has more than {JWKS_KEYS_MAX} keys")]
    TooManyKeys,
    /// Two keys of one id.
    #[error("two of its keys have the same id (`kid`)")]
    KeyIdTwice,
    /// A private key was published.
    #[error("its key {0} holds private members; the cluster must replace that key at once")]
    Private(usize),
    /// Nothing in it can be used.
    #[error("none of its keys can be used: {0}")]
    NoKey(String),
}

/// One cluster whose pods may enrol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    keys: Vec<JwtKey>,
    issuer: String,
    audience: String,
    accounts: Vec<(String, String)>,
}

/// What a token that counts says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodToken {
    /// The pod's namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The pod and its uid.
    pub pod: (String, String),
    /// The node and its uid, where the token says so.
    pub node: Option<(String, String)>,
    /// From then on it counts for nothing.
    pub expires_at: OffsetDateTime,
    /// SHA-256 of what is signed. Not of the whole text: an ECDSA signature has two forms.
    pub digest: Digest,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
    node: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

impl Cluster {
    /// A cluster by its key set (as its API server publishes it at `/openid/v1/jwks`), the issuer
    /// and the audience of its tokens, and the service accounts, as namespace and name, that may
    /// enrol. Keys of kinds that are not known here are left out.
    ///
    /// # Errors
    /// When the set can't be read, or nothing in it can be used.
    pub fn read(
        jwks: &[u8],
        issuer: &str,
        audience: &str,
        accounts: Vec<(String, String)>,
    ) -> Result<Self, ClusterError> {
        let set: Option<Value> = match jwks.len() {
            0..=JWKS_MAX => read_strict_json(jwks, BUNDLE_DEPTH).ok(),
            _ => None,
        };
        let set = set.as_ref().and_then(|set| set.get("keys")).and_then(Value::as_array);
        let set = set.ok_or(ClusterError::Form)?;
        if set.len() > JWKS_KEYS_MAX {
            return Err(ClusterError::TooManyKeys);
        }
        let (mut keys, mut last): (Vec<JwtKey>, _) = (Vec::new(), "it holds none".to_owned());
        for (at, element) in set.iter().enumerate() {
            match read_key(element) {
                Ok(key) if keys.iter().any(|known| known.key_id() == key.key_id()) => {
                    return Err(ClusterError::KeyIdTwice);
                }
                Ok(key) => keys.push(key),
                Err(JwkError::Private) => return Err(ClusterError::Private(at + 1)),
                Err(why) => last = why.to_string(),
            }
        }
        if keys.is_empty() {
            return Err(ClusterError::NoKey(last));
        }
        Ok(Self { keys, issuer: issuer.to_owned(), audience: audience.to_owned(), accounts })
    }

    /// Whether a token could be of both: they have a key in common, by whatever id, or the issuer, unless
    /// that is the name that every cluster has of itself.
    pub fn is_also(&self, other: &Self) -> bool {
        let own_name =
            ["https://kubernetes.default.svc", "https://kubernetes.default.svc.cluster.local"];
        let same_issuer = self.issuer == other.issuer && !own_name.contains(&self.issuer.as_str());
        let material = |key: &JwtKey| {
            let jwk = key.to_jwk();
            ["kty", "crv", "x", "y", "n", "e"].map(|name| jwk.get(name).cloned())
        };
        let others: Vec<_> = other.keys.iter().map(material).collect();
        same_issuer || self.keys.iter().any(|key| others.contains(&material(key)))
    }

    /// Verifies a token's text.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn verify(&self, token: &[u8], now: Moment) -> Result<PodToken, PodTokenError> {
        use PodTokenError as E;
        if token.len() > POD_TOKEN_MAX {
            return Err(E::TooLarge);
        }
        let token = std::str::from_utf8(token).map_err(|_| E::Form)?;
        let parts = Parts::split(token)?;
        let (algorithm, kid) = read_header(&parts.header)?;
        let claims: Value = read_strict_json(&parts.claims, JWT_DEPTH).map_err(|_| E::Form)?;
        let Value::Object(claims) = claims else { return Err(E::Form) };
        if text(&claims, "iss") != Some(self.issuer.as_str()) {
            return Err(E::Issuer);
        }
        let key = self.keys.iter().find(|key| key.key_id() == &*kid).ok_or(E::UnknownKey)?;
        if !key.fits(algorithm) {
            return Err(E::KeyMismatch);
        }
        if !key.verifies(algorithm, parts.signed.as_bytes(), &parts.signature) {
            return Err(E::Signature);
        }
        // Nothing but the issuer is looked at before the signature held.
        let expires_at = check_times(&claims, now.wall())?;
        let is_ours = |all: Vec<String>| all.contains(&self.audience);
        if self.audience.is_empty() || !audiences(&claims).is_some_and(is_ours) {
            return Err(E::Audience);
        }
        let read = self.bound(&claims)?;
        Ok(PodToken { expires_at, digest: Digest::of(parts.signed.as_bytes()), ..read })
    }

    fn bound(&self, claims: &Map<String, Value>) -> Result<PodToken, PodTokenError> {
        use PodTokenError as E;
        let claim = claims.get(CLAIM).ok_or(E::NoPod)?;
        let bound = Bound::deserialize(claim).map_err(|_| E::Claims)?;
        let pod = bound.pod.ok_or(E::NoPod)?;
        let (namespace, account) = (bound.namespace, bound.serviceaccount.name);
        let subject = format!("system:serviceaccount:{namespace}:{account}");
        let sound = is_name(&namespace)
            && is_name(&account)
            && is_uid(&bound.serviceaccount.uid)
            && [Some(&pod), bound.node.as_ref()]
                .into_iter()
                .flatten()
                .all(|it| is_name(&it.name) && is_uid(&it.uid));
        if !sound || text(claims, "sub") != Some(subject.as_str()) {
            return Err(E::Claims);
        }
        if !self.accounts.iter().any(|(ns, sa)| *ns == namespace && *sa == account) {
            return Err(E::ServiceAccount);
        }
        Ok(PodToken {
            namespace,
            service_account: account,
            pod: (pod.name, pod.uid),
            node: bound.node.map(|node| (node.name, node.uid)),
            expires_at: OffsetDateTime::UNIX_EPOCH,
            digest: Digest([0; 32]),
        })
    }
}

/// The service account of a text `namespace/name`.
pub fn service_account(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    (is_name(namespace) && is_name(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

/// Whether a text may be the issuer or the audience of tokens: 1 to 512 visible ASCII characters.
pub fn is_token_text(text: &str) -> bool {
    (1..=TEXT_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// An element of the set. API servers write `use` as `sig`.
fn read_key(element: &Value) -> Result<JwtKey, JwkError> {
    let jwk = element.as_object().ok_or(JwkError::NotObject)?;
    match jwk.get("use").map(Value::as_str) {
        None | Some(Some("sig")) => JwtKey::read(jwk),
        Some(_) => Err(JwkError::Purpose),
    }
}

/// When it ends, if it counts now. `exp` is judged exactly; the cluster's clock may be a little ahead
/// of ours.
fn check_times(
    claims: &Map<String, Value>,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, PodTokenError> {
    use PodTokenError as E;
    let time = |claim: &str| claims.get(claim).map(|it| numeric_date(it).ok_or(E::Times));
    let (exp, iat) = (time("exp").ok_or(E::Times)??, time("iat").ok_or(E::Times)??);
    let soon = now.saturating_add(time::Duration::try_from(POD_TOKEN_SKEW).unwrap_or_default());
    if now >= exp {
        return Err(E::Expired);
    }
    if iat > soon || time("nbf").transpose()?.is_some_and(|nbf| nbf > soon) {
        return Err(E::NotYet);
    }
    if exp - iat > time::Duration::try_from(POD_TOKEN_LIFE).unwrap_or_default() {
        return Err(E::TooLong);
    }
    Ok(exp)
}

/// A name of an object in a cluster: lower-case letters, digits, `-` and `.`.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn is_uid(uid: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    (1..=UID_MAX).contains(&uid.len()) && uid.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::JwtAlgorithm;
    use crate::identity::token_draft::{TokenKey, base64url};
    use crate::identity::vectors::NOW;
    use proptest::prelude::*;
    use serde_json::json;
    use std::time::Duration;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn moment(at: OffsetDateTime) -> Moment {
        Moment::new(at, Duration::from_secs(1))
    }

    fn jwk(key: &TokenKey) -> Value {
        let mut jwk = key.jwk();
        jwk["use"] = json!("sig");
        jwk
    }

    fn read(keys: &Value) -> Result<Cluster, ClusterError> {
        let account = service_account("doorward/agent").unwrap();
        Cluster::read(
            json!({ "keys": keys }).to_string().as_bytes(),
            ISSUER,
            "doorward",
            vec![account],
        )
    }

    fn cluster(keys: &[&TokenKey]) -> Cluster {
        let keys: Vec<_> = keys.iter().map(|key| jwk(key)).collect();
        read(&json!(keys)).unwrap()
    }

    fn claims() -> Value {
        let now = NOW.unix_timestamp();
        json!({
            "iss": ISSUER, "sub": "system:serviceaccount:doorward:agent", "aud": ["doorward"],
            "iat": now, "nbf": now, "exp": now + 600, "jti": "5f1c",
            "kubernetes.io": {
                "namespace": "doorward",
                "serviceaccount": { "name": "agent", "uid": "11111111-2222-3333-4444-555555555555" },
                "pod": { "name": "agent-abcde", "uid": "aaaaaaaa-2222-3333-4444-555555555555" },
                "node": { "name": "node-1", "uid": "bbbbbbbb-2222-3333-4444-555555555555" },
                "warnafter": now + 3607,
            },
        })
    }

    fn signed(key: &TokenKey, claims: &Value) -> Vec<u8> {
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, key.kid);
        key.sign("ES256", &header, &claims.to_string()).into_bytes()
    }

    #[test]
    fn a_token_of_a_pod_tells_its_node_whatever_the_algorithm() {
        for algorithm in JwtAlgorithm::ALL.map(JwtAlgorithm::word) {
            let (key, other) = (TokenKey::new("k", algorithm), TokenKey::new("k", algorithm));
            let token = key.sign(algorithm, &key.header(algorithm), &claims().to_string());
            let read = cluster(&[&key]).verify(token.as_bytes(), moment(NOW)).unwrap();
            assert_eq!((&*read.namespace, &*read.service_account), ("doorward", "agent"));
            assert_eq!(read.pod.0, "agent-abcde");
            assert_eq!(read.node.unwrap().1, "bbbbbbbb-2222-3333-4444-555555555555");
            assert_eq!(read.expires_at, NOW + Duration::from_secs(600));
            let forged = cluster(&[&other]).verify(token.as_bytes(), moment(NOW));
            assert_eq!(forged.unwrap_err(), PodTokenError::Signature, "another cluster's key");
        }
        let key = TokenKey::new("k", "ES256");
        let mut bare = claims();
        bare["kubernetes.io"].as_object_mut().unwrap().remove("node");
        let read = cluster(&[&key]).verify(&signed(&key, &bare), moment(NOW)).unwrap();
        assert_eq!(read.node, None, "older clusters name no node");
        // Two signatures of one content are one token.
        let (one, two) = (signed(&key, &claims()), signed(&key, &claims()));
        let digest = |token: &[u8]| cluster(&[&key]).verify(token, moment(NOW)).unwrap().digest;
        assert!(one != two && digest(&one) == digest(&two));
    }

    #[test]
    fn each_rule_refuses_with_its_own_word() {
        use PodTokenError as E;
        let key = TokenKey::new("k", "ES256");
        let (cluster, now) = (cluster(&[&key]), NOW.unix_timestamp());
        let judged = |claims: &Value| cluster.verify(&signed(&key, claims), moment(NOW));
        assert!(judged(&claims()).is_ok(), "control");
        let k8s = "kubernetes.io";
        type Change = (fn(&mut Value, &str, i64), E);
        let cases: [Change; 30] = [
            (|c, _, _| c["iss"] = json!("https://other.example"), E::Issuer),
            (|c, _, _| drop(c.as_object_mut().unwrap().remove("iss")), E::Issuer),
            (|c, _, _| c["aud"] = json!(["api"]), E::Audience),
            (|c, _, _| c["aud"] = json!([]), E::Audience),
            (|c, _, _| c["aud"] = json!(["doorward2", "Doorward"]), E::Audience),
            (|c, _, _| drop(c.as_object_mut().unwrap().remove("aud")), E::Audience),
            (|c, _, now| c["exp"] = json!(now), E::Expired),
            (|c, _, _| drop(c.as_object_mut().unwrap().remove("exp")), E::Times),
            (|c, _, _| drop(c.as_object_mut().unwrap().remove("iat")), E::Times),
            (|c, _, _| c["iat"] = json!("now"), E::Times),
            (|c, _, _| c["nbf"] = json!(null), E::Times),
            (|c, _, now| c["nbf"] = json!(now + 61), E::NotYet),
            (|c, _, now| c["iat"] = json!(now + 61), E::NotYet),
            (|c, _, now| c["exp"] = json!(now + 86_401), E::TooLong),
            (|c, k, _| drop(c.as_object_mut().unwrap().remove(k)), E::NoPod),
            (|c, k, _| drop(c[k].as_object_mut().unwrap().remove("pod")), E::NoPod),
            (|c, k, _| c[k]["pod"] = json!(null), E::NoPod),
            (|c, k, _| c[k]["pod"] = json!({"name": "x"}), E::Claims),
            (|c, k, _| c[k]["pod"]["uid"] = json!(""), E::Claims),
            (|c, k, _| c[k]["pod"]["uid"] = json!("a b"), E::Claims),
            (|c, k, _| c[k]["pod"]["uid"] = json!("a".repeat(65)), E::Claims),
            (|c, k, _| c[k]["pod"]["name"] = json!("Pod"), E::Claims),
            (|c, k, _| c[k]["node"]["uid"] = json!("\u{0}"), E::Claims),
            (|c, k, _| c[k]["node"] = json!("node-1"), E::Claims),
            (|c, k, _| c[k]["serviceaccount"]["uid"] = json!(7), E::Claims),
            (|c, k, _| c[k]["namespace"] = json!("kube-system"), E::Claims),
            (|c, _, _| c["sub"] = json!("system:serviceaccount:doorward:other"), E::Claims),
            (|c, _, _| drop(c.as_object_mut().unwrap().remove("sub")), E::Claims),
            (
                |c, k, _| {
                    c["sub"] = json!("system:serviceaccount:doorward:default");
                    c[k]["serviceaccount"]["name"] = json!("default");
                },
                E::ServiceAccount,
            ),
            (
                |c, k, _| {
                    c["sub"] = json!("system:serviceaccount:other:agent");
                    c[k]["namespace"] = json!("other");
                },
                E::ServiceAccount,
            ),
        ];
        for (at, (change, want)) in cases.into_iter().enumerate() {
            let mut claims = claims();
            change(&mut claims, k8s, now);
            assert_eq!(judged(&claims).unwrap_err(), want, "{at}: {claims}");
        }
        let mut soon = claims();
        soon["nbf"] = json!(now + 60);
        assert!(judged(&soon).is_ok(), "the cluster's clock may be a little ahead");
        let mut day = claims();
        day["exp"] = json!(now + 86_400);
        assert!(judged(&day).is_ok());
    }

    #[test]
    fn headers_and_forms_that_are_none() {
        use PodTokenError as E;
        let (key, rsa) = (TokenKey::new("k", "ES256"), TokenKey::new("r", "RS256"));
        let cluster = cluster(&[&key, &rsa]);
        let text = claims().to_string();
        let verify = |token: &str| cluster.verify(token.as_bytes(), moment(NOW));
        let with = |header: &str| verify(&key.sign("ES256", header, &text)).map(drop);
        assert_eq!(with(r#"{"alg":"ES256","kid":"k"}"#), Ok(()), "control");
        for (header, want) in [
            (r#"{"alg":"none","kid":"k"}"#, E::Algorithm),
            (r#"{"alg":"HS256","kid":"k"}"#, E::Algorithm),
            (r#"{"alg":"EdDSA","kid":"k"}"#, E::Algorithm),
            (r#"{"alg":"ES384","kid":"k"}"#, E::KeyMismatch),
            (r#"{"alg":"RS256","kid":"k"}"#, E::KeyMismatch),
            (r#"{"alg":"RS256","kid":"r"}"#, E::Signature),
            (r#"{"alg":"ES256","kid":"x"}"#, E::UnknownKey),
            (r#"{"alg":"ES256"}"#, E::Header),
            (r#"{"alg":"ES256","kid":"k","jwk":{}}"#, E::Header),
            (r#"{"alg":"ES256","kid":"k","jku":"https://x"}"#, E::Header),
            (r#"{"alg":"ES256","kid":"k","typ":"kb+jwt"}"#, E::Header),
            (r#"{"alg":"none","alg":"ES256","kid":"k"}"#, E::Form),
            ("[]", E::Form),
        ] {
            assert_eq!(with(header), Err(want), "{header}");
        }
        let none = format!("{}.{}.", base64url(r#"{"alg":"none","kid":"k"}"#), base64url(&text));
        assert_eq!(verify(&none).unwrap_err(), E::Algorithm);
        let twice = text.replacen('{', r#"{"aud":["doorward"],"#, 1);
        assert_eq!(verify(&key.sign("ES256", &key.header("ES256"), &twice)).unwrap_err(), E::Form);
        let good = String::from_utf8(signed(&key, &claims())).unwrap();
        let long = format!("{good}{}", "A".repeat(POD_TOKEN_MAX));
        for (bad, want) in [
            (long.as_str(), E::TooLarge),
            ("", E::Form),
            ("..", E::Form),
            (&format!("{good}="), E::Form),
            (&format!(" {good}"), E::Form),
            (&good.replace('.', ","), E::Form),
        ] {
            assert_eq!(verify(bad).unwrap_err(), want);
        }
        assert_eq!(cluster.verify(&[0xff; 40], moment(NOW)).unwrap_err(), E::Form);
        for at in 0..good.len() {
            assert!(verify(&good[..at]).is_err());
        }
        let error = format!("{:?} {}", verify(&format!("{good}A")), E::Form);
        assert!(!error.contains(&good[20..40]));
    }

    #[test]
    fn a_key_set_is_read_strictly_and_keys_of_other_kinds_are_left_out() {
        let key = TokenKey::new("k", "ES256");
        let good = jwk(&key);
        let later = json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA"});
        assert_eq!(read(&json!([later, good])).unwrap().keys.len(), 1);
        let mut private = good.clone();
        private["d"] = json!("AAAA");
        let mut encrypts = good.clone();
        encrypts["use"] = json!("enc");
        use ClusterError as E;
        assert_eq!(read(&json!([good, good])).unwrap_err(), E::KeyIdTwice);
        assert_eq!(read(&json!([good, private])).unwrap_err(), E::Private(2));
        assert!(matches!(read(&json!([encrypts])).unwrap_err(), E::NoKey(_)));
        assert!(matches!(read(&json!([])).unwrap_err(), E::NoKey(_)));
        assert!(matches!(read(&json!([later])).unwrap_err(), E::NoKey(_)));
        assert_eq!(read(&json!("keys")).unwrap_err(), E::Form);
        let many: Vec<_> = (0..=JWKS_KEYS_MAX).map(|_| json!({})).collect();
        assert_eq!(read(&json!(many)).unwrap_err(), E::TooManyKeys);
        let bare = |bytes: &[u8]| Cluster::read(bytes, ISSUER, "doorward", Vec::new()).unwrap_err();
        for bad in [&b""[..], b"[]", b"{}", br#"{"keys":[],"keys":[]}"#, &[b' '; JWKS_MAX + 1]] {
            assert_eq!(bare(bad), E::Form);
        }
        for (text, good) in [
            ("ns/sa", true),
            ("ns", false),
            ("/sa", false),
            ("ns/", false),
            ("ns/sa/x", false),
            ("Ns/sa", false),
            ("ns/s a", false),
            ("*/sa", false),
        ] {
            assert_eq!(service_account(text).is_some(), good, "{text}");
        }
        assert!(is_token_text("https://a.example") && !is_token_text("") && !is_token_text("a b"));
    }

    proptest! {
        #[test]
        fn no_token_makes_it_panic(
            text in "[ -~]{0,200}|[A-Za-z0-9_.-]{0,300}",
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            claims in "\\{(\"iss\":\"[a-z:/.]{0,44}\",?)?(\"exp\":-?[0-9e.]{1,9},?)?(\"kubernetes.io\":[\\[{7])?\\}",
        ) {
            KEY.with(|(key, cluster)| {
                let token = key.sign("ES256", &key.header("ES256"), &claims);
                for token in [text.as_bytes(), &bytes, token.as_bytes()] {
                    prop_assert!(cluster.verify(token, moment(NOW)).is_err());
                }
                let _ = Cluster::read(&bytes, ISSUER, "doorward", Vec::new());
                Ok(())
            })?;
        }

        #[test]
        fn signed_claims_of_any_kind_do_not_make_it_panic(
            exp in any::<f64>(), nbf in any::<i64>(), iat in any::<u64>(), pod in ".{0,40}",
        ) {
            KEY.with(|(key, cluster)| {
                let mut claims = claims();
                claims["exp"] = json!(exp);
                claims["nbf"] = json!(nbf);
                claims["iat"] = json!(iat);
                claims["kubernetes.io"]["pod"] = json!(pod);
                prop_assert!(cluster.verify(&signed(key, &claims), moment(NOW)).is_err());
                Ok(())
            })?;
        }
    }

    thread_local! {
        static KEY: (TokenKey, Cluster) = {
            let key = TokenKey::new("k", "ES256");
            let cluster = cluster(&[&key]);
            (key, cluster)
        };
    }
}
