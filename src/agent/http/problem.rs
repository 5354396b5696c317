//! What a process is told when it does not get what it asked for (RFC 9457).
//!
//! Never more than it may know: the why of a denial stands in the decision log, under the request
//! id.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use super::super::attest::AttestError;
use super::super::duties::Unmatched;
use super::super::issued::WorkloadError;
use crate::model::{Code, Refusal, RequestId, SpiffeId};

/// The header that carries the broker's request id.
pub(super) const REQUEST_ID: &str = "doorward-request-id";

/// One refusal.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: Box<str>,
    title: &'static str,
    pub(super) status: u16,
    pub(super) code: Code,
    pub(super) reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<Box<str>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) choices: Box<[SpiffeId]>,
    /// The method that would do, for a 405 (RFC 9110 §15.5.6).
    #[serde(skip)]
    pub(super) allow: Option<&'static str>,
}

/// The HTTP status of a code.
fn status_of(code: Code) -> u16 {
    match code {
        Code::Denied | Code::Expired => 403,
        Code::Invalid => 400,
        Code::NotFound => 404,
        Code::Conflict => 409,
        Code::TooLarge => 413,
        Code::Limited => 429,
        Code::Unavailable => 503,
        Code::Internal => 500,
    }
}

impl Problem {
    /// A refusal of the agent's own, before any broker is asked.
    pub(super) fn own(code: Code, reason: &'static str, title: &'static str) -> Self {
        Self {
            kind: format!("urn:doorward:problem:{}", code.as_str()).into(),
            title,
            status: status_of(code),
            code,
            reason,
            request_id: None,
            hint: None,
            choices: Box::default(),
            allow: None,
        }
    }

    /// With a word on how to mend it.
    pub(super) fn hint(mut self, hint: impl Into<Box<str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With another HTTP status than the code's own.
    pub(super) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// With the method that would do.
    pub(super) fn allow(mut self, only: &'static str) -> Self {
        self.allow = Some(only);
        self
    }

    /// The refusal as a response.
    pub(super) fn response(&self) -> Response {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut response = Response::new(Body::from(text));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == 429 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(id) = self.request_id.and_then(|id| id.to_string().parse().ok()) {
            headers.insert(REQUEST_ID, id);
        }
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let title = refusal.reason.word();
        let mut problem = Self::own(refusal.code, refusal.reason.code(), title);
        problem.request_id = Some(refusal.request);
        problem.hint = refusal.hint.map(Into::into);
        problem
    }
}

impl From<AttestError> for Problem {
    fn from(why: AttestError) -> Self {
        let code = if matches!(why, AttestError::Late) { Code::Unavailable } else { Code::Denied };
        Self::own(code, "not_attested", "the process can't be told for certain")
            .hint(why.to_string())
    }
}

impl From<WorkloadError> for Problem {
    fn from(why: WorkloadError) -> Self {
        match why {
            WorkloadError::Refused(refusal) => refusal.into(),
            WorkloadError::Unavailable(why) => {
                Self::own(Code::Unavailable, "unreachable", "try again later").hint(why)
            }
            WorkloadError::Internal(why) => {
                Self::own(Code::Internal, "internal", "something is wrong with Doorward").hint(why)
            }
            WorkloadError::Unmatched(Unmatched::Nobody { .. }) => {
                Self::own(Code::Denied, "no_identity", "no identity issued").hint(
                    "no registration entry fits this process: the agent's log names the nearest \
                     one; `doorward entry create` makes one",
                )
            }
            WorkloadError::Unmatched(Unmatched::Several { choices }) => {
                let mut problem = Self::own(
                    Code::Conflict,
                    "several_identities",
                    "this process has several identities",
                );
                problem.choices = choices.into();
                problem.hint("name one of the choices: ?as=<its SPIFFE ID>")
            }
        }
    }
}
