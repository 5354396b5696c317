//! What a climb works with beside its steps: bodies, comparisons, refusals.

use std::sync::Arc;

use super::connections::Connection;
use crate::decision_log::{RecordError, Ruling};
use crate::identity::Peer;
use crate::model::{
    Ask, CaStep, ClientRef, Code, Failure, FederationStep, Reason, Refusal, Released, RequestId,
    SecretValue, Shown,
};
use crate::posture::Challenge;
use crate::posture::tpm::Credential;

/// What a request brings beside its head. Read only when a grant stands, or to see who asks.
pub trait Body: Send {
    /// Reads all of it, bounded by what the frame declared.
    fn read(&mut self) -> impl Future<Output = Result<SecretValue, Failure>> + Send;
    /// The nonce that a report answers.
    fn challenge(&self) -> Option<&Challenge> {
        None
    }
    /// The TLS exporter's value that an applicant's proof is bound to.
    fn exporter(&self) -> Option<&[u8; 32]> {
        None
    }
    /// Sends a credential to the applicant, once; what it says was in it.
    fn opened(&mut self, _: &Credential) -> impl Future<Output = Option<SecretValue>> + Send {
        std::future::ready(None)
    }
    /// What an applicant's proof came to in an earlier climb of the same request.
    fn shown(&mut self) -> Option<&mut Option<Shown>> {
        None
    }
}

/// A body that is there already.
pub struct Ready(pub Option<SecretValue>);

impl Body for Ready {
    async fn read(&mut self) -> Result<SecretValue, Failure> {
        Ok(self.0.take().unwrap_or_else(SecretValue::empty))
    }
}

/// One request, as it came.
pub struct Asked<'a> {
    pub id: RequestId,
    pub peer: &'a Peer,
    pub connection: Option<&'a Connection>,
    pub client: Option<ClientRef>,
    pub ask: Arc<Ask>,
}

/// One climb: either its end, or «the policy changed meanwhile, climb once more».
#[allow(clippy::large_enum_variant)] // lives on one stack for the length of one request
pub enum Climb {
    Ended(Result<Released, Refusal>),
    Again,
}

/// How much of what a decision was made under still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Same {
    All,
    PolicyChanged,
    CallerChanged,
}

/// Asks whose answer is held back when something changed while they were carried out: whatever lets
/// a value, a token, a certificate or records out. Others answer with nothing worth holding back.
pub fn releases(ask: &Ask) -> bool {
    let gives_a_credential = matches!(
        ask,
        Ask::TokenCreate { .. }
            | Ask::OperatorAdd { .. }
            | Ask::Issue { .. }
            | Ask::IssueJwt { .. }
            | Ask::Renew {}
            | Ask::Enroll { .. }
    );
    gives_a_credential || is_repeatable(ask)
}

/// Asks for which a device may be challenged. Never its own ones: a report must not wait for a report,
/// and nobody is kept from renewing. A list names no object, but asks for every profile there is: what
/// is too old is left out of it.
pub fn may_step_up(ask: &Ask) -> bool {
    !ask.is_own() && !matches!(ask, Ask::List { .. } | Ask::PolicyRollback {})
}

/// Asks that have something signed, which is never done by wrong clocks.
pub fn signs(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Issue { .. }
            | Ask::IssueJwt { .. }
            | Ask::Renew {}
            | Ask::Enroll { .. }
            | Ask::Ca(CaStep::Prepare {})
    )
}

/// Asks that change nothing, so that they may simply be decided and carried out once more.
pub fn is_repeatable(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Read { .. }
            | Ask::List { .. }
            | Ask::Versions { .. }
            | Ask::LogRead { .. }
            | Ask::Explain { .. }
            | Ask::Exposure { .. }
            | Ask::PolicyRead {}
            | Ask::Bundle { .. }
            | Ask::Ca(CaStep::Show {})
            | Ask::Federation(
                FederationStep::Bundle { .. } | FederationStep::Duties {} | FederationStep::List {}
            )
            | Ask::BackupData {}
            | Ask::BackupKeys { .. }
    )
}

/// The record that a ruling stands on, none for what was only counted; a refusal ends here.
pub fn index_of(ruling: &Ruling) -> Result<Option<u64>, Refusal> {
    match ruling {
        Ruling::Refused(refusal) => Err(refusal.clone()),
        Ruling::Secret(grant) => Ok(grant.recorded()),
        Ruling::Authority(grant) => Ok(grant.recorded()),
        Ruling::Administration(grant) => Ok(grant.recorded()),
    }
}

/// The refusal where the log did not take the decision.
pub fn unrecorded(request: RequestId, error: &RecordError) -> Refusal {
    tracing::warn!(%request, %error, "refused: the decision could not be recorded");
    refuse(request, Code::Unavailable, Reason::LogUnavailable)
}

/// A refusal without a hint.
pub fn refuse(request: RequestId, code: Code, reason: Reason) -> Refusal {
    Refusal { request, code, reason, hint: None }
}

/// The refusal that a failed grant ends in.
pub fn refusal_of(request: RequestId, failure: Failure) -> Refusal {
    Refusal { request, code: failure.code, reason: failure.reason, hint: failure.hint }
}
