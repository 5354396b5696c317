//! What a grant did, written down before anybody is told of it: which certificate, which token, which
//! entry, which policy. A decision can only say what was asked for.
//!
//! What was done is in force already when its note is written; without the note it is not answered,
//! so nobody holds an identity that the log does not know. Never a token, key or secret in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::line::Line;
use super::outcome::refusal_of;
use crate::authority::{JoinToken, OwnIdentity};
use crate::decision_log::Note;
use crate::identity::Caller;
use crate::model::{
    Answer, Ask, AuthoritySummary, CaStanding, CaStep, Code, DeviceId, Digest, Entry, Failure,
    FederatedDomain, FederationStep, Reason, Refusal, Released, RequestId, SpiffeId,
};

/// Hexadecimal digits of a token's digest that name it, as in the record of its enrolment.
const TOKEN_DIGITS: usize = 16;

impl Line {
    /// Notes what was done; nothing for what only lets something out.
    ///
    /// # Errors
    /// When it could not be written down: it must not be answered then.
    pub(super) async fn note_outcome(
        &self,
        request: RequestId,
        caller: &Caller,
        ask: &Ask,
        released: &Released,
    ) -> Result<(), Failure> {
        self.note_epochs(request, caller, ask).await?;
        match told(caller, ask, released)? {
            Some((what, detail)) => self.note_identity(request, what, detail).await,
            None => Ok(()),
        }
    }

    /// The same for the broker's own certificate, which is no answer; a failure is noted too.
    pub(super) async fn own_noted(
        &self,
        request: RequestId,
        index: Option<u64>,
        own: Result<OwnIdentity, Failure>,
    ) -> Result<OwnIdentity, Refusal> {
        let noted = async |own: &OwnIdentity| {
            for chain in std::iter::once(&own.chain).chain(&own.others) {
                let leaf = chain.first().map_or(&[][..], |leaf| leaf.as_ref());
                let detail = json!({ "cert": Digest::of(leaf), "serial": serial_of(leaf)? });
                self.note_identity(request, "own", detail).await?;
            }
            Ok(())
        };
        let outcome = match own {
            Ok(own) => noted(&own).await.map(|()| own),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &outcome {
            self.note_failure(request, index, failure).await;
        }
        outcome.map_err(|failure| refusal_of(request, failure))
    }

    /// A revocation stands in the log too, so that no restored store forgets it. It is in force
    /// already; only its acknowledgement waits for this.
    async fn note_epochs(
        &self,
        request: RequestId,
        caller: &Caller,
        ask: &Ask,
    ) -> Result<(), Failure> {
        let floor = self.parts().authority.epochs_after(caller, ask);
        if floor.is_empty() {
            return Ok(());
        }
        let detail = serde_json::to_value(&floor).unwrap_or_default();
        self.note_identity(request, "epochs", detail).await
    }

    async fn note_identity(
        &self,
        request: RequestId,
        what: &'static str,
        detail: Value,
    ) -> Result<(), Failure> {
        let noted = self.parts().log.note(Note::Identity { request, what, detail }).await;
        noted.map(|_| ()).map_err(|_| Failure::new(Code::Unavailable, Reason::LogUnavailable))
    }
}

/// The word and the rest of the note.
fn told(
    caller: &Caller,
    ask: &Ask,
    released: &Released,
) -> Result<Option<(&'static str, Value)>, Failure> {
    let what = match ask {
        Ask::Issue { .. } => "issued",
        Ask::IssueJwt { .. } => "issued_jwt",
        Ask::Renew {} => "renewed",
        Ask::Enroll { token: None, by: None, .. } => "returned",
        Ask::Enroll { .. } => "enrolled",
        Ask::TokenCreate { .. } | Ask::OperatorAdd { .. } => "token",
        Ask::EntryCreate { .. } => "entry",
        Ask::Ca(step) if *step != (CaStep::Show {}) => "authorities",
        Ask::Federation(
            FederationStep::Add { .. }
            | FederationStep::SetBundle { .. }
            | FederationStep::Take { .. },
        ) => "federation",
        Ask::PolicyActivate {} | Ask::PolicyRollback {} => "policy",
        _ => return Ok(None),
    };
    let detail = match &released.answer {
        Answer::Certificate { spiffe_id, chain, until, .. } => {
            certificate(caller, ask, spiffe_id, chain.first(), until)?
        }
        Answer::JwtSvid { spiffe_id, kid, jti, until } => match ask {
            Ask::IssueJwt { audience, entry, .. } => json!({
                "aud": audience, "device": caller.device(), "entry": entry, "jti": jti, "kid": kid,
                "spiffe_id": spiffe_id, "until": until,
            }),
            _ => return Err(unreadable()),
        },
        Answer::Token(head) => {
            json!({ "name": head.name, "token": token_of(released)?, "until": head.until })
        }
        Answer::Entries { items, .. } => items.first().map(entry).ok_or_else(unreadable)?,
        Answer::Authorities(standing) => authorities(standing),
        Answer::Federation { items } => items.first().map(federated).ok_or_else(unreadable)?,
        Answer::Policy { serial, digest } => json!({ "digest": digest, "serial": serial }),
        _ => return Ok(None),
    };
    Ok(Some((what, detail)))
}

/// A certificate, the device that it was issued to and the entry that says so.
fn certificate(
    caller: &Caller,
    ask: &Ask,
    spiffe_id: &SpiffeId,
    leaf: Option<&String>,
    until: &str,
) -> Result<Value, Failure> {
    let leaf = leaf.and_then(|leaf| STANDARD.decode(leaf).ok()).ok_or_else(unreadable)?;
    let mut detail = json!({
        "cert": Digest::of(&leaf),
        "serial": serial_of(&leaf)?,
        "spiffe_id": spiffe_id,
        "until": until,
    });
    // Who enrols is no device yet: it will be known by the key that it shows.
    let device = match ask {
        Ask::Enroll { .. } => caller.spki().map(DeviceId::of_key),
        _ => caller.device().copied(),
    };
    if let (Some(device), Some(map)) = (device, detail.as_object_mut()) {
        map.insert("device".to_owned(), json!(device));
    }
    if let (Ask::Issue { entry, .. }, Some(map)) = (ask, detail.as_object_mut()) {
        map.insert("entry".to_owned(), json!(entry));
    }
    Ok(detail)
}

/// The authorities as they stand after a step: which is trusted, and which of them signs.
fn authorities(standing: &CaStanding) -> Value {
    let state = |it: &AuthoritySummary| (it.id.to_string(), json!(it.state));
    let states: serde_json::Map<_, _> = standing.authorities.iter().map(state).collect();
    json!({ "authorities": states, "sequence": standing.sequence })
}

/// A relationship as it stands after a step.
fn federated(domain: &FederatedDomain) -> Value {
    let endpoint = domain.endpoint.as_ref();
    json!({
        "jwt_keys": domain.jwt_keys,
        "profile": endpoint.map(|it| it.profile.as_str()),
        "roots": domain.roots,
        "sequence": domain.sequence,
        "trust_domain": domain.trust_domain,
        "url": endpoint.map(|it| &it.url),
    })
}

/// An entry as it stands now; its selectors in words.
fn entry(entry: &Entry) -> Value {
    let draft = &entry.draft;
    let selectors: Vec<_> = draft.selectors.iter().map(ToString::to_string).collect();
    json!({
        "class": draft.class,
        "default": draft.default,
        "device": draft.device,
        "epoch": entry.epoch,
        "federates_with": draft.federates_with,
        "hint": draft.hint,
        "jwt_alg": draft.jwt_alg,
        "id": entry.id,
        "selectors": selectors,
        "spiffe_id": draft.spiffe_id,
        "ttl_s": draft.ttl_s,
    })
}

/// The serial number as decisions name it: its magnitude in hexadecimal digits.
fn serial_of(leaf: &[u8]) -> Result<String, Failure> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| unreadable())?;
    let raw = leaf.raw_serial();
    Ok(hex::encode(raw.strip_prefix(&[0]).unwrap_or(raw)))
}

/// A token by a part of its digest: the same that stands in the record of who redeems it.
fn token_of(released: &Released) -> Result<String, Failure> {
    let text = std::str::from_utf8(released.body.expose()).map_err(|_| unreadable())?;
    let token = JoinToken::parse(text).map_err(|_| unreadable())?;
    let digest = token.digest().map_err(|_| unreadable())?.to_string();
    Ok(digest.chars().take(TOKEN_DIGITS).collect())
}

fn unreadable() -> Failure {
    Failure::new(Code::Internal, Reason::Invalid)
}
