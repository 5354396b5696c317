//! What the engine answers, and how its failures are caught: a verdict with the rows behind it, or
//! an error that denies. Nothing here knows which engine it is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Why Casbin gave no verdict. All of them deny.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EngineError {
    /// Casbin refused the model, a row or the request.
    #[error("the policy engine failed at {0}")]
    Casbin(&'static str),
    /// The pinned text is not the one that was reviewed.
    #[error("the policy engine's model is not the pinned one")]
    Model,
    /// Loading waited for something, though nothing here does I/O.
    #[error("the policy engine waits where nothing should wait")]
    Pending,
    /// A panic inside the engine.
    #[error("the policy engine panicked")]
    Panic,
    /// The rows read back, or the rows judged, are not the rows that were given.
    #[error("the policy engine lost or changed a row")]
    Rows,
    /// A request that is not of the form that the functions are made for.
    #[error("the request is not of a form that rules speak of")]
    Request,
}

/// A rule of Doorward's own that stands in for this one request only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BuiltIn {
    /// Its id, e.g. `self-report`.
    pub(super) id: &'static str,
}

/// A row that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matched {
    /// The built-in rule.
    BuiltIn,
    /// A row of the policy, by position.
    Row(u32),
}

/// Casbin's verdict.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Some row allows and none denies.
    pub(super) allowed: bool,
    /// The rows that matched, in file order.
    pub(super) matched: Vec<Matched>,
}

/// Turns a panic into an error. The enforcer in use is dropped with the panic.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(EngineError::Panic))
}

/// Polls a future that never waits.
pub(super) fn at_once<T>(work: impl Future<Output = T>) -> Result<T, EngineError> {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => Err(EngineError::Pending),
    }
}
