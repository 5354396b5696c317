//! Validation of one JWT-SVID: every MUST of JWT-SVID, and RFC 7515 and 7519 below it.
//!
//! Bounds come first, then the form, then the one key that the token's own trust domain publishes
//! under the token's key id, then the signature; nothing that a token says of times and audiences
//! is looked at before that held. Whoever holds a token can use it, so neither it nor a part of it
//! stands in any error here.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::bundle::BundleDocument;
use super::jwk::{key_id, text};
use super::jwt_algorithm::JwtAlgorithm;
use crate::model::limits::{JWT_AUDIENCES_MAX, JWT_DEPTH, JWT_ISSUED_SKEW, JWT_MAX};
use crate::model::{Moment, SpiffeId, SpiffeIdError, TrustDomain, read_strict_json};

/// The parameters that a header may have (JWT-SVID §2).
const PARAMETERS: [&str; 3] = ["alg", "kid", "typ"];

/// Why a token is refused: one variant for each rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtSvidError {
    // The form.
    /// More bytes than a token may have.
    #[error("the token has {0} bytes; at most {JWT_MAX} are looked at")]
    TooLarge(usize),
    /// Not three parts of base64url in its one form.
    #[error("the token is not three parts of unpadded base64url with dots between them")]
    Compact,
    /// The header is not one flat JSON object with single members.
    #[error("the token's header is not a json object with single members")]
    Header,
    /// The header holds what a JWT-SVID's must not.
    #[error("the token's header holds a parameter other than alg, kid and typ")]
    HeaderParameter,
    /// Another algorithm than the nine, or none.
    #[error("the token's alg is none of RS, ES and PS with 256, 384 or 512")]
    Algorithm,
    /// Another type.
    #[error("the token's typ is neither JWT nor JOSE")]
    Type,
    /// The header names no key.
    #[error("the token names no key (kid)")]
    KeyId,
    /// The claims are not a JSON object with single members.
    #[error("the token's claims are not a json object with single members")]
    Claims,

    // Who speaks.
    /// `sub` is missing or no text.
    #[error("the token has no subject")]
    NoSubject,
    /// `sub` is no SPIFFE ID.
    #[error("the token's subject is not a SPIFFE ID in canonical form")]
    Subject(#[source] SpiffeIdError),
    /// No bundle for the subject's trust domain.
    #[error("the token's trust domain is not known here; federate with it first")]
    UnknownTrustDomain,
    /// The subject's trust domain publishes no such key.
    #[error("the token's trust domain publishes no usable key of that id")]
    UnknownKey,
    /// The key is not one for the token's algorithm.
    #[error("the token's alg is not one for the key that it names")]
    KeyMismatch,
    /// The signature does not hold.
    #[error("the token's signature does not verify")]
    Signature,

    // For whom, and when.
    /// `exp` is missing or no time.
    #[error("the token has no time of expiry")]
    NoExpiry,
    /// `exp` has passed, or is now.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is no time.
    #[error("the token's nbf is not a time")]
    NotBefore,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYet,
    /// `iat` is no time, or too far in our future.
    #[error("the token's iat is not a time in the past")]
    IssuedAt,
    /// `aud` is missing, empty or not made of texts.
    #[error("the token's audience is not one or more texts")]
    NoAudience,
    /// `aud` does not name the one who validates.
    #[error("the token is for another audience")]
    OtherAudience,
}

impl JwtSvidError {
    /// A stable word for the rule.
    pub fn word(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "too_large",
            Self::Compact => "compact",
            Self::Header => "header",
            Self::HeaderParameter => "header_parameter",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::KeyId => "key_id",
            Self::Claims => "claims",
            Self::NoSubject => "no_subject",
            Self::Subject(_) => "subject",
            Self::UnknownTrustDomain => "unknown_trust_domain",
            Self::UnknownKey => "unknown_key",
            Self::KeyMismatch => "key_mismatch",
            Self::Signature => "signature",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotBefore => "not_before",
            Self::NotYet => "not_yet",
            Self::IssuedAt => "issued_at",
            Self::NoAudience => "no_audience",
            Self::OtherAudience => "other_audience",
        }
    }
}

/// A token that passed every rule at the moment it was shown. The token itself is not kept.
#[derive(Debug, Clone, PartialEq)]
pub struct JwtSvid {
    id: SpiffeId,
    audience: Vec<String>,
    expires_at: OffsetDateTime,
    key_id: Box<str>,
    algorithm: JwtAlgorithm,
    claims: Map<String, Value>,
}

impl JwtSvid {
    /// Validates a token for `audience`, who is the one that asks. The token's subject chooses the
    /// bundle, and only that one is looked into. `exp` and `nbf` are judged without any leeway; a
    /// token whose `exp` is now has expired.
    ///
    /// # Errors
    /// The first rule that the token breaks.
    pub fn validate<B: Borrow<BundleDocument>>(
        token: &str,
        bundles: &HashMap<TrustDomain, B>,
        audience: &str,
        now: Moment,
    ) -> Result<Self, JwtSvidError> {
        if token.len() > JWT_MAX {
            return Err(JwtSvidError::TooLarge(token.len()));
        }
        let parts = Parts::split(token)?;
        let (algorithm, kid) = read_header(&parts.header)?;
        let claims: Value =
            read_strict_json(&parts.claims, JWT_DEPTH).map_err(|_| JwtSvidError::Claims)?;
        let Value::Object(claims) = claims else { return Err(JwtSvidError::Claims) };
        let subject = text(&claims, "sub").ok_or(JwtSvidError::NoSubject)?;
        let id = SpiffeId::parse(subject).map_err(JwtSvidError::Subject)?;

        let domain = id.trust_domain();
        let bundle: &BundleDocument =
            bundles.get(domain).ok_or(JwtSvidError::UnknownTrustDomain)?.borrow();
        if bundle.trust_domain() != domain {
            return Err(JwtSvidError::UnknownTrustDomain);
        }
        let key = bundle.jwt_key(&kid).ok_or(JwtSvidError::UnknownKey)?;
        if !key.fits(algorithm) {
            return Err(JwtSvidError::KeyMismatch);
        }
        if !key.verifies(algorithm, parts.signed.as_bytes(), &parts.signature) {
            return Err(JwtSvidError::Signature);
        }

        let expires_at = check_times(&claims, now.wall())?;
        let all = audiences(&claims).ok_or(JwtSvidError::NoAudience)?;
        if audience.is_empty() || !all.iter().any(|one| one == audience) {
            return Err(JwtSvidError::OtherAudience);
        }
        Ok(Self { id, audience: all, expires_at, key_id: kid, algorithm, claims })
    }

    /// The subject.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// All audiences, the validator's own among them.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// From then on it counts for nothing.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }

    /// The key that signed it.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// How it was signed.
    pub fn algorithm(&self) -> JwtAlgorithm {
        self.algorithm
    }

    /// All claims, those above included.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }
}

/// A token in JWS compact serialisation, taken apart.
pub(super) struct Parts<'t> {
    pub(super) header: Vec<u8>,
    pub(super) claims: Vec<u8>,
    pub(super) signature: Vec<u8>,
    /// What the signature is over: header, dot, claims.
    pub(super) signed: &'t str,
}

impl<'t> Parts<'t> {
    pub(super) fn split(token: &'t str) -> Result<Self, JwtSvidError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtSvidError::Compact)?;
        // A dot too many is no base64url.
        let (header, claims) = signed.split_once('.').ok_or(JwtSvidError::Compact)?;
        let octets = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtSvidError::Compact);
        Ok(Self {
            header: octets(header)?,
            claims: octets(claims)?,
            signature: octets(signature)?,
            signed,
        })
    }
}

/// The algorithm and the id of the key.
pub(super) fn read_header(json: &[u8]) -> Result<(JwtAlgorithm, Box<str>), JwtSvidError> {
    let header: Value = read_strict_json(json, JWT_DEPTH).map_err(|_| JwtSvidError::Header)?;
    let header = header.as_object().ok_or(JwtSvidError::Header)?;
    if header.keys().any(|parameter| !PARAMETERS.contains(&parameter.as_str())) {
        return Err(JwtSvidError::HeaderParameter);
    }
    let algorithm = text(header, "alg").and_then(JwtAlgorithm::parse);
    let algorithm = algorithm.ok_or(JwtSvidError::Algorithm)?;
    match header.get("typ").map(Value::as_str) {
        None | Some(Some("JWT" | "JOSE")) => {}
        Some(_) => return Err(JwtSvidError::Type),
    }
    let kid = text(header, "kid").and_then(|kid| key_id(kid).ok());
    Ok((algorithm, kid.ok_or(JwtSvidError::KeyId)?))
}

/// When the token ends, if it counts now.
fn check_times(
    claims: &Map<String, Value>,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, JwtSvidError> {
    let expires_at = claims.get("exp").and_then(numeric_date).ok_or(JwtSvidError::NoExpiry)?;
    if now >= expires_at {
        return Err(JwtSvidError::Expired);
    }
    if let Some(not_before) = claims.get("nbf") {
        let not_before = numeric_date(not_before).ok_or(JwtSvidError::NotBefore)?;
        if now < not_before {
            return Err(JwtSvidError::NotYet);
        }
    }
    if let Some(issued_at) = claims.get("iat") {
        let issued_at = numeric_date(issued_at).ok_or(JwtSvidError::IssuedAt)?;
        if issued_at
            > now.saturating_add(time::Duration::try_from(JWT_ISSUED_SKEW).unwrap_or_default())
        {
            return Err(JwtSvidError::IssuedAt);
        }
    }
    Ok(expires_at)
}

/// Seconds since 1970, with or without a fraction (RFC 7519 §2); `None` for other types, earlier
/// times, and times after the year 9999.
pub(super) fn numeric_date(value: &Value) -> Option<OffsetDateTime> {
    let since = match value.as_u64() {
        Some(seconds) => Duration::from_secs(seconds),
        None => Duration::try_from_secs_f64(value.as_f64()?).ok()?,
    };
    OffsetDateTime::UNIX_EPOCH.checked_add(time::Duration::try_from(since).ok()?)
}

/// One text, or an array of one or more.
pub(super) fn audiences(claims: &Map<String, Value>) -> Option<Vec<String>> {
    match claims.get("aud")? {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) if (1..=JWT_AUDIENCES_MAX).contains(&all.len()) => {
            all.iter().map(|one| one.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::token_draft::{TokenKey, base64url};
    use crate::identity::vectors::{NOW, OWN, PARTNER, WORKLOAD};
    use proptest::prelude::*;
    use serde_json::json;

    const AUDIENCE: &str = "spiffe://corp.example/db";

    type Bundles = HashMap<TrustDomain, BundleDocument>;

    fn moment(at: OffsetDateTime) -> Moment {
        Moment::new(at, Duration::from_secs(1))
    }

    fn bundle(name: &str, keys: &[&TokenKey]) -> (TrustDomain, BundleDocument) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        let domain = TrustDomain::parse(name).unwrap();
        let json = json!({ "keys": keys }).to_string();
        (domain.clone(), BundleDocument::parse(domain, json.as_bytes()).unwrap())
    }

    fn claims() -> Value {
        let now = NOW.unix_timestamp();
        json!({ "sub": WORKLOAD, "aud": [AUDIENCE], "exp": now + 300, "iat": now, "team": "pay" })
    }

    fn validate(token: &str, bundles: &Bundles) -> Result<JwtSvid, JwtSvidError> {
        JwtSvid::validate(token, bundles, AUDIENCE, moment(NOW))
    }

    #[test]
    fn each_of_the_nine_algorithms_is_accepted_and_its_broken_signature_is_not() {
        for algorithm in JwtAlgorithm::ALL {
            let word = algorithm.word();
            let (key, stranger) = (TokenKey::new("k", word), TokenKey::new("k", word));
            let bundles: Bundles = [bundle(OWN, &[&key]), bundle(PARTNER, &[&stranger])].into();
            let claims = claims().to_string();
            let token = key.sign(word, &key.header(word), &claims);
            let svid = validate(&token, &bundles).unwrap();
            assert_eq!((svid.id().as_str(), svid.key_id()), (WORKLOAD, "k"));
            assert_eq!(
                (svid.audience(), svid.algorithm()),
                (&[AUDIENCE.to_owned()][..], algorithm)
            );
            assert_eq!(svid.expires_at(), NOW + time::Duration::minutes(5));
            assert_eq!(svid.claims()["team"], "pay");

            let forged = stranger.sign(word, &stranger.header(word), &claims);
            assert_eq!(validate(&forged, &bundles).unwrap_err(), JwtSvidError::Signature, "{word}");
            let mut changed = token.split('.').map(str::to_owned).collect::<Vec<_>>();
            changed[1] = base64url(claims.replace("pay", "sre"));
            let changed = changed.join(".");
            assert_eq!(validate(&changed, &bundles).unwrap_err(), JwtSvidError::Signature);
        }
    }

    #[test]
    fn an_algorithm_is_not_chosen_by_the_token_alone() {
        let rsa = TokenKey::new("rsa", "RS256");
        let ec = TokenKey::new("ec", "ES256");
        let bundles: Bundles = [bundle(OWN, &[&rsa, &ec])].into();
        for algorithm in JwtAlgorithm::ALL.map(JwtAlgorithm::word) {
            for key in [&rsa, &ec] {
                let is_kind = (key.kid == "rsa") != algorithm.starts_with("ES");
                let token = key.sign(algorithm, &key.header(algorithm), &claims().to_string());
                match is_kind && (key.kid == "rsa" || algorithm == "ES256") {
                    true => assert!(validate(&token, &bundles).is_ok()),
                    false => assert_eq!(
                        validate(&token, &bundles).unwrap_err(),
                        JwtSvidError::KeyMismatch
                    ),
                }
            }
        }
        // Signed by one scheme of RSA, named by the other.
        let token = rsa.sign("RS256", &rsa.header("PS256"), &claims().to_string());
        assert_eq!(validate(&token, &bundles).unwrap_err(), JwtSvidError::Signature);
    }

    #[test]
    fn a_key_speaks_for_its_own_domain_only() {
        let (own, partner) = (TokenKey::new("k1", "ES256"), TokenKey::new("k2", "ES256"));
        let bundles: Bundles = [bundle(OWN, &[&own]), bundle(PARTNER, &[&partner])].into();
        let token = |key: &TokenKey| key.sign("ES256", &key.header("ES256"), &claims().to_string());
        assert!(validate(&token(&own), &bundles).is_ok());
        assert_eq!(validate(&token(&partner), &bundles).unwrap_err(), JwtSvidError::UnknownKey);
        let only: Bundles = [bundle(PARTNER, &[&own])].into();
        assert_eq!(validate(&token(&own), &only).unwrap_err(), JwtSvidError::UnknownTrustDomain);
        // A bundle that was put under another domain's name.
        let (_, foreign) = bundle(PARTNER, &[&own]);
        let mixed: Bundles = [(TrustDomain::parse(OWN).unwrap(), foreign)].into();
        assert_eq!(validate(&token(&own), &mixed).unwrap_err(), JwtSvidError::UnknownTrustDomain);
        let revoked: Bundles = [bundle(OWN, &[])].into();
        assert_eq!(validate(&token(&own), &revoked).unwrap_err(), JwtSvidError::UnknownKey);
    }

    #[test]
    fn nobody_validates_for_no_audience() {
        let key = TokenKey::new("k", "ES256");
        let bundles: Bundles = [bundle(OWN, &[&key])].into();
        let mut empty = claims();
        empty["aud"] = json!("");
        let token = key.sign("ES256", &key.header("ES256"), &empty.to_string());
        let found = JwtSvid::validate(&token, &bundles, "", moment(NOW));
        assert_eq!(found.unwrap_err(), JwtSvidError::OtherAudience);
    }

    #[test]
    fn errors_hold_nothing_of_a_token() {
        let key = TokenKey::new("k", "ES256");
        let bundles: Bundles = [bundle(OWN, &[&key])].into();
        let mut claims = claims();
        claims["sub"] = json!("hunter2");
        let token = key.sign("ES256", &key.header("ES256"), &claims.to_string());
        let error = validate(&token, &bundles).unwrap_err();
        assert_eq!(error.word(), "subject");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~]{0,200}|[A-Za-z0-9_.-]{0,300}") {
            prop_assert!(validate(&text, &Bundles::new()).is_err());
        }

        #[test]
        fn no_header_and_no_claims_make_it_panic(
            header in "\\{(\"alg\":\"(ES256|none)\",?)?(\"kid\":\"k\",?)?(\"typ\":7)?\\}",
            claims in "\\{(\"sub\":\"spiffe://a/x\",?)?(\"exp\":-?[0-9e.]{1,9},?)?(\"aud\":7)?\\}",
            signature in proptest::collection::vec(any::<u8>(), 0..150),
        ) {
            KEY.with(|key| {
                let bundles: Bundles = [bundle(OWN, &[key])].into();
                let parts = [base64url(header), base64url(claims), base64url(signature)];
                prop_assert!(validate(&parts.join("."), &bundles).is_err());
                Ok(())
            })?;
        }

        #[test]
        fn signed_claims_of_any_kind_do_not_make_it_panic(
            exp in any::<f64>(), nbf in any::<i64>(), aud in ".{0,40}", iat in any::<u64>()
        ) {
            KEY.with(|key| {
                let bundles: Bundles = [bundle(OWN, &[key])].into();
                let times = json!({ "exp": exp, "nbf": nbf, "iat": iat });
                let mut claims = json!({ "sub": WORKLOAD, "aud": aud });
                claims.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
                let token = key.sign("ES256", &key.header("ES256"), &claims.to_string());
                prop_assert!(validate(&token, &bundles).is_err());
                Ok(())
            })?;
        }
    }

    thread_local! {
        static KEY: TokenKey = TokenKey::new("k", "ES256");
    }
}
