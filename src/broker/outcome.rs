//! What a climb works with beside its steps: bodies, comparisons, refusals.

use crate::decision_log::Ruling;
use crate::model::{Ask, Code, Failure, Reason, Refusal, RequestId, SecretValue};
use crate::posture::Challenge;

/// What a request brings beside its head. Read only when a grant stands.
pub trait Body: Send {
    /// Reads all of it, bounded by what the frame declared.
    fn read(&mut self) -> impl Future<Output = Result<SecretValue, Failure>> + Send;
    /// The nonce that a report answers.
    fn challenge(&self) -> Option<&Challenge> {
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

/// How much of what a decision was made under still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Same {
    All,
    PolicyChanged,
    CallerChanged,
}

/// Asks that only let something out. A change between decision and release holds these back; an ask
/// that changes something was compared before it was carried out, and what it answers is no secret
/// (a certificate carries its epochs and is dead by itself when they have risen).
pub fn releases(ask: &Ask) -> bool {
    matches!(
        ask,
        Ask::Read { .. }
            | Ask::List { .. }
            | Ask::Versions { .. }
            | Ask::LogRead { .. }
            | Ask::Explain { .. }
            | Ask::PolicyRead {}
            | Ask::BackupData {}
            | Ask::BackupKeys { .. }
    )
}

/// The record that a ruling stands on.
pub fn index_of(ruling: &Ruling) -> u64 {
    match ruling {
        Ruling::Refused(_) => 0,
        Ruling::Secret(grant) => grant.index(),
        Ruling::Authority(grant) => grant.index(),
        Ruling::Administration(grant) => grant.index(),
    }
}

/// A refusal without a hint.
pub fn refuse(request: RequestId, code: Code, reason: Reason) -> Refusal {
    Refusal { request, code, reason, hint: None }
}

/// The refusal that a failed grant ends in.
pub fn refusal_of(request: RequestId, failure: Failure) -> Refusal {
    Refusal { request, code: failure.code, reason: failure.reason, hint: failure.hint }
}
