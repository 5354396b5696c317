//! What carrying out a grant gives.

use super::answer::{Answer, Code, Reason};
use super::secret::SecretValue;

/// An answer with the bytes that go beside it.
#[derive(Debug)]
pub struct Released {
    /// The head.
    pub answer: Answer,
    /// The raw body; empty for most.
    pub body: SecretValue,
}

impl Released {
    /// An answer without a body.
    pub fn head(answer: Answer) -> Self {
        Self { answer, body: SecretValue::empty() }
    }
}

/// A grant that could not be carried out. It was recorded as allowed; the log gets a second record,
/// «not carried out», and the client a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} ({})", code.as_str(), reason.word())]
pub struct Failure {
    /// The closed code.
    pub code: Code,
    /// The stable reason.
    pub reason: Reason,
    /// What the caller, who was allowed, may know: what is wrong and how to mend it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: Code, reason: Reason) -> Self {
        Self { code, reason, hint: None }
    }

    /// The request does not fit what is stored.
    pub fn conflict(hint: impl Into<String>) -> Self {
        Self { code: Code::Conflict, reason: Reason::Conflict, hint: Some(hint.into()) }
    }

    /// The request can't be carried out as it is.
    pub fn invalid(hint: impl Into<String>) -> Self {
        Self { code: Code::Invalid, reason: Reason::Invalid, hint: Some(hint.into()) }
    }

    /// Nothing there.
    pub fn absent(hint: impl Into<String>) -> Self {
        Self { code: Code::NotFound, reason: Reason::Absent, hint: Some(hint.into()) }
    }

    /// Over a limit.
    pub fn too_large(hint: impl Into<String>) -> Self {
        Self { code: Code::TooLarge, reason: Reason::TooLarge, hint: Some(hint.into()) }
    }

    /// The store did not answer.
    pub fn store() -> Self {
        Self::new(Code::Unavailable, Reason::StoreUnavailable)
    }
}
