//! JWT-SVIDs: what stands in one, and the only place that has one signed (JWT-SVID §§2–4).
//!
//! As with certificates, everything comes from an entry; of the asker there is only the audience. A
//! token ends within minutes, and by its own end only: whom it is shown to asks nobody here. What our
//! own validator would not take does not leave. The token is a credential: it is in the answer's body
//! and nowhere else, and the log knows it by its id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::issue::{agents_device, entitled};
use super::issuers::Issuers;
use super::jwt_key::JwtSigner;
use super::room::Authority;
use crate::identity::{Caller, JwtSvid};
use crate::model::limits::JWT_TTL;
use crate::model::{
    Answer, Ask, Code, Failure, Moment, Reason, Released, RequestId, SecretValue, SpiffeId, Target,
    TokenAlgorithm, rfc3339,
};

/// What a token shall say.
struct Claims<'a> {
    id: &'a SpiffeId,
    audience: &'a str,
    issuer: Option<&'a str>,
    issued: i64,
    until: i64,
    jti: RequestId,
}

impl Authority {
    /// A JWT-SVID for a workload that the caller's agent attests, called by the request's id.
    pub(super) fn issue_jwt(
        &self,
        caller: &Caller,
        ask: &Ask,
        target: &Target,
        jti: RequestId,
        now: Moment,
    ) -> Result<Released, Failure> {
        let Ask::IssueJwt { entry, spiffe_id, audience, workload } = ask else {
            return Err(Failure::new(Code::Internal, Reason::Invalid));
        };
        let (device, mirror) = (agents_device(caller)?, self.mirror());
        let (_, record) = entitled(&mirror, &device, (entry, spiffe_id), workload, target)?;
        let issuers = self.issuers();
        let signer = ready_signer(&issuers, record.entry.draft.jwt_alg, now)?;
        let ttl = record
            .entry
            .draft
            .ttl_s
            .map_or(JWT_TTL, |ttl_s| JWT_TTL.min(Duration::from_secs(u64::from(ttl_s))));
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(0);
        // Like its certificates, nothing that an authority signs outlives it.
        let end = issuers.active.life().1.unix_timestamp();
        let claims = Claims {
            id: spiffe_id,
            audience: audience.as_str(),
            issuer: self.token_issuer.as_deref(),
            issued: now.unix_s(),
            until: now.unix_s().saturating_add(ttl).min(end),
            jti,
        };
        let body = signed(signer, &claims)?;
        if !self.validates(&issuers, &body, &claims, now) {
            tracing::error!(id = %spiffe_id, "our own validator refuses a token of ours");
            return Err(Failure::new(Code::Internal, Reason::Invalid));
        }
        let until = OffsetDateTime::from_unix_timestamp(claims.until).map(rfc3339);
        let answer = Answer::JwtSvid {
            spiffe_id: spiffe_id.clone(),
            kid: signer.public().key_id().to_owned(),
            jti,
            until: until.unwrap_or_default(),
        };
        Ok(Released { answer, body })
    }

    /// Whether whoever has our bundle takes the token for what was meant.
    fn validates(
        &self,
        issuers: &Issuers,
        token: &SecretValue,
        claims: &Claims<'_>,
        now: Moment,
    ) -> bool {
        let Ok(token) = std::str::from_utf8(token.expose()) else { return false };
        let bundles = HashMap::from([(self.domain.clone(), Arc::clone(&issuers.document))]);
        JwtSvid::validate(token, &bundles, claims.audience, now).is_ok_and(|svid| {
            svid.id() == claims.id
                && svid.audience() == [claims.audience]
                && svid.expires_at().unix_timestamp() == claims.until
        })
    }
}

/// The key that signs now, if one may.
fn ready_signer(
    issuers: &Issuers,
    algorithm: TokenAlgorithm,
    now: Moment,
) -> Result<&JwtSigner, Failure> {
    issuers.active.ready(now)?;
    let later = |hint: String| {
        let failure = Failure::new(Code::Unavailable, Reason::Conflict);
        Failure { hint: Some(hint), ..failure }
    };
    let Some(signer) = issuers.jwt.iter().find(|it| it.algorithm() == algorithm) else {
        return Err(later("the authority has no key for tokens; restart the broker".to_owned()));
    };
    let from = signer.signs_from(issuers.prepared);
    if now.unix_s() < from {
        let from = OffsetDateTime::from_unix_timestamp(from).map(rfc3339).unwrap_or_default();
        return Err(later(format!(
            "the key for tokens was published a moment ago; tokens are issued from {from} on"
        )));
    }
    Ok(signer)
}

/// The token in JWS compact serialisation.
fn signed(signer: &JwtSigner, claims: &Claims<'_>) -> Result<SecretValue, Failure> {
    let header = json!({ "alg": signer.algorithm().as_str(), "kid": signer.public().key_id(), "typ": "JWT" });
    let mut said = json!({
        "aud": [claims.audience],
        "exp": claims.until,
        "iat": claims.issued,
        "jti": claims.jti,
        "sub": claims.id,
    });
    if let (Some(issuer), Some(said)) = (claims.issuer, said.as_object_mut()) {
        said.insert("iss".to_owned(), json!(issuer));
    }
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&header), part(&said));
    let signature = Zeroizing::new(URL_SAFE_NO_PAD.encode(signer.sign(message.as_bytes())?));
    Ok(SecretValue::new([message.as_bytes(), b".", signature.as_bytes()].concat()))
}
