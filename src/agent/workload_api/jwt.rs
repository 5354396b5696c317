//! The JWT profile: tokens for a process, the keys that check tokens, and the checking of one.
//!
//! A token is issued anew for each call, judged and recorded by the broker, and not kept: whoever
//! wants to use one twice keeps it for himself. None leaves that the keys told here do not check, so
//! that the next process on this machine takes what this one is given. As with certificates, only
//! processes with an identity are answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::Status;
use tonic::codegen::Bytes;

use super::super::issued::WorkloadError;
use super::fault;
use super::hints::{Hints, hint_of};
use super::jwt_messages::{
    JwtBundlesResponse, JwtSvid, JwtSvidRequest, JwtSvidResponse, Struct, ValidateJwtSvidRequest,
    ValidateJwtSvidResponse,
};
use super::messages::frame;
use super::watch::{Watch, too_large};
use crate::identity::{BundleDocument, JwtSvid as Token, JwtSvidError};
use crate::model::{Audience, Entry, SecretValue, SpiffeId, TrustDomain};

/// How long a token waits for the key that signed it to be heard of.
const NEWS: Duration = Duration::from_secs(5);
/// What of a foreign trust domain's token is passed on: the rest is between its issuer and whoever
/// knows its ways.
const FOREIGN: [&str; 3] = ["sub", "exp", "aud"];

/// Answers `FetchJWTSVID`.
pub(super) async fn fetch(mut watch: Watch, request: JwtSvidRequest) -> Result<Bytes, Status> {
    let audience = one_audience(&request.audience)?;
    let wanted = wanted_id(&request.spiffe_id)?;
    let who = watch.who().await?;
    let mut entries = watch.fitting(&who, true).await?;
    if let Some(wanted) = wanted {
        entries.retain(|entry| entry.draft.spiffe_id == wanted);
    }
    watch.charge_for(&entries)?;
    let (mut response, mut refused) = (JwtSvidResponse::default(), None);
    let mut hints = Hints::default();
    for entry in &entries {
        if !hints.have_room_for(entry) {
            continue;
        }
        match watch.ground().workloads.issue_jwt(&who, entry, &audience).await {
            Ok(token) => {
                response.svids.push(checked(&mut watch, entry, &token, &audience).await?);
                hints.note(entry);
            }
            Err(WorkloadError::Refused(refusal)) if !watch.is_passing(&refusal) => {
                refused = refused.or(Some(refusal));
            }
            Err(why) => return Err(fault::of(&why)),
        }
    }
    if response.svids.is_empty() {
        return Err(refused.map_or_else(fault::nobody, |refusal| fault::refused(&refusal)));
    }
    watch.who().await?; // they were issued for this one, and for no other
    frame(&response).ok_or_else(too_large)
}

/// The token as it is given out, once the keys that are told here check it. A key that was not heard
/// of yet is waited for.
async fn checked(
    watch: &mut Watch,
    entry: &Entry,
    token: &SecretValue,
    audience: &Audience,
) -> Result<JwtSvid, Status> {
    let odd = || Status::internal("the broker issued something else");
    let text = std::str::from_utf8(token.expose()).map_err(|_| odd())?;
    let checking = async {
        loop {
            let roots = watch.roots().borrow_and_update().clone();
            let now = watch.ground().clock.now();
            match Token::validate(text, &roots.jwt, audience.as_str(), now) {
                Ok(svid) if *svid.id() == entry.draft.spiffe_id => return Ok(()),
                Ok(_) => return Err(odd()),
                Err(JwtSvidError::UnknownKey | JwtSvidError::UnknownTrustDomain) => {}
                Err(why) => {
                    let why = format!("the broker's token is not valid here: {why}");
                    return Err(Status::unavailable(why));
                }
            }
            let news = watch.roots().changed().await;
            news.map_err(|_| Status::unavailable("the agent is stopping"))?;
        }
    };
    let late = || Status::unavailable("the key that signs tokens was not heard of yet");
    tokio::time::timeout(NEWS, checking).await.map_err(|_| late())??;
    let spiffe_id = entry.draft.spiffe_id.to_string();
    Ok(JwtSvid { spiffe_id, svid: text.to_owned(), hint: hint_of(entry) })
}

/// Answers `ValidateJWTSVID`.
pub(super) async fn validate(
    watch: &mut Watch,
    request: &ValidateJwtSvidRequest,
) -> Result<Bytes, Status> {
    if request.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if request.svid.is_empty() {
        return Err(Status::invalid_argument("svid must be specified"));
    }
    let who = watch.who().await?;
    let entries = watch.fitting(&who, true).await?;
    let now = watch.ground().clock.now();
    let keys = keys(watch, &entries).ok_or_else(no_keys)?;
    let svid = Token::validate(&request.svid, &keys, &request.audience, now)
        .map_err(|why| Status::invalid_argument(why.to_string()))?;
    let is_own = *svid.id().trust_domain() == watch.ground().domain;
    let is_told = |name: &str| is_own || FOREIGN.contains(&name);
    let claims = Struct::of(svid.claims().iter().filter(|(name, _)| is_told(name)));
    let spiffe_id = svid.id().to_string();
    let response = ValidateJwtSvidResponse { spiffe_id, claims: Some(claims) };
    frame(&response).ok_or_else(too_large)
}

/// The stream of `FetchJWTBundles`: for processes with an identity only.
pub(super) struct JwtBundles {
    watch: Watch,
    given: Option<Keys>,
}

/// Bundles that tokens are checked by, of each trust domain by itself.
type Keys = HashMap<TrustDomain, Arc<BundleDocument>>;

/// What a process with these entries checks tokens by: our own bundle, and those of the domains that
/// its entries name. `None` before the broker has told ours.
fn keys(watch: &mut Watch, entries: &[Entry]) -> Option<Keys> {
    let mut keys = watch.other_keys(entries);
    let roots = watch.roots().borrow_and_update().clone();
    // Ours last: no other domain's can stand in its place.
    let ours = roots.jwt.iter().map(|(domain, it)| (domain.clone(), Arc::new(it.clone())));
    keys.extend(ours);
    (!roots.jwt.is_empty()).then_some(keys)
}

impl JwtBundles {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, given: None }
    }

    /// The next full state, as soon as there is another one than was given last.
    pub(super) async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            let who = self.watch.glance().await?;
            let entries = self.watch.fitting(&who, self.given.is_none()).await?;
            let keys = match (keys(&mut self.watch, &entries), &self.given) {
                (None, None) => return Err(no_keys()),
                (Some(keys), given) if given.as_ref() != Some(&keys) => keys,
                // Roots that came with a certificate alone tell no keys: the former ones stay.
                _ => {
                    self.watch.look().await?;
                    continue;
                }
            };
            self.watch.who().await?;
            let sets = keys.iter();
            let sets = sets.map(|(domain, set)| (format!("spiffe://{domain}"), set.to_jwks()));
            let response = JwtBundlesResponse { bundles: sets.collect() };
            self.given = Some(keys);
            return frame(&response).ok_or_else(too_large);
        }
    }
}

fn no_keys() -> Status {
    Status::unavailable("the broker has not told the keys for JWT-SVIDs yet")
}

/// A token is for one audience: with several, each of them could use it with the others.
fn one_audience(audiences: &[String]) -> Result<Audience, Status> {
    let Some(first) = audiences.first() else {
        return Err(Status::invalid_argument("audience must be specified"));
    };
    if audiences.iter().any(|other| other != first) {
        let told = "a token is for one audience here: ask once for each";
        return Err(Status::invalid_argument(told));
    }
    Audience::parse(first).map_err(|why| Status::invalid_argument(why.to_string()))
}

fn wanted_id(text: &str) -> Result<Option<SpiffeId>, Status> {
    let wanted = (!text.is_empty()).then(|| SpiffeId::parse(text)).transpose();
    wanted.map_err(|why| Status::invalid_argument(format!("spiffe_id: {why}")))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn one_audience_and_one_identity_are_asked_for_or_all() {
        let audience = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
            one_audience(&texts).map(|audience| audience.to_string()).map_err(|why| why.code())
        };
        assert_eq!(audience(&["a"]), Ok("a".into()));
        assert_eq!(audience(&["a", "a"]), Ok("a".into()));
        for bad in [&[][..], &[""], &["a", "b"], &["a\nb"], &["\u{e4}"]] {
            assert_eq!(audience(bad), Err(Code::InvalidArgument), "{bad:?}");
        }
        let wanted = |text| wanted_id(text).map_err(|why| why.code());
        assert_eq!(wanted(""), Ok(None));
        let id = "spiffe://corp.example/api";
        assert_eq!(wanted(id), Ok(Some(SpiffeId::parse(id).unwrap())));
        assert_eq!(wanted("spiffe://Corp/api"), Err(Code::InvalidArgument));
    }
}
