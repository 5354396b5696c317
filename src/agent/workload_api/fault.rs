//! Why a call gets no answer, in the codes that the standard gives (SPIFFE Workload API §4, §5).
//!
//! A client withdraws what it holds when it is told `PermissionDenied`, and tries again later; the
//! words `no identity issued` are known to clients and must stay. Never more is told than the
//! process may know: the why of a denial stands in the decision log, under the request's id.

use tonic::Status;

use super::super::attest::AttestError;
use super::super::issued::WorkloadError;
use crate::model::{Code, Refusal};

/// Nobody's process.
pub(super) fn nobody() -> Status {
    Status::permission_denied("no identity issued: no entry fits this process")
}

/// The process can't be told for certain, or is another one by now.
pub(super) fn unknown(why: &AttestError) -> Status {
    match why {
        AttestError::Read { .. } | AttestError::Form(_) | AttestError::Late => {
            Status::unavailable(format!("the process can't be looked at: {why}"))
        }
        why => Status::permission_denied(format!("no identity issued: {why}")),
    }
}

/// The broker refused. What may be otherwise in a moment is no denial.
pub(super) fn refused(refusal: &Refusal) -> Status {
    let told = format!("{} (request {})", refusal.reason.word(), refusal.request);
    match is_passing(refusal) {
        true => Status::unavailable(format!("the broker issues nothing now: {told}")),
        false => Status::permission_denied(format!("no identity issued: {told}")),
    }
}

/// Whether the same question may get another answer although nothing is changed by anybody.
pub(super) fn is_passing(refusal: &Refusal) -> bool {
    matches!(refusal.code, Code::Limited | Code::Unavailable | Code::Internal)
}

/// Anything that keeps a workload from its identity.
pub(super) fn of(why: &WorkloadError) -> Status {
    match why {
        WorkloadError::Unmatched(_) => nobody(),
        WorkloadError::Refused(refusal) => refused(refusal),
        WorkloadError::Unavailable(why) => Status::unavailable(*why),
        WorkloadError::Internal(why) => Status::internal(*why),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code as Grpc;

    use super::*;
    use crate::model::{Clock, Reason, RequestId, SystemClock};

    #[test]
    fn a_denial_withdraws_and_a_passing_trouble_does_not() {
        let request = RequestId::new(SystemClock.now());
        let refusal = |code, reason| Refusal { request, code, reason, hint: None };
        let denied = refused(&refusal(Code::Denied, Reason::NoAllow));
        assert_eq!(denied.code(), Grpc::PermissionDenied);
        assert!(denied.message().starts_with("no identity issued"), "{denied:?}");
        assert!(denied.message().contains(&request.to_string()), "{denied:?}");
        for code in [Code::Limited, Code::Unavailable, Code::Internal] {
            let status = refused(&refusal(code, Reason::Limited));
            assert_eq!(status.code(), Grpc::Unavailable, "{code:?}");
        }
        assert_eq!(unknown(&AttestError::Changed).code(), Grpc::PermissionDenied);
        assert_eq!(unknown(&AttestError::Form("stat")).code(), Grpc::Unavailable);
        assert_eq!(unknown(&AttestError::Late).code(), Grpc::Unavailable, "it withdraws nothing");
        assert!(nobody().message().contains("no identity issued"));
    }
}
