//! What can go wrong between a client and a broker, told apart by what the user must do next.
//!
//! Texts that came from the other side are cut and cleaned of control characters before they are
//! shown. Nothing here holds a body.

use quinn::{ConnectionError, TransportErrorCode};

use super::close::CloseCode;
use super::credentials::CredentialsError;
use super::frame_error::FrameError;
use super::strict::plain;
use super::tls::TlsError;
use crate::model::limits::{ANSWER_TIMEOUT, CONNECT_TIMEOUT};
use crate::model::{Code, Refusal};

/// TLS alerts (RFC 8446 §6) in QUIC are error codes 0x100 to 0x1ff (RFC 9001 §4.8).
const ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
/// CONNECTION_REFUSED (RFC 9000 §20.1).
const CONNECTION_REFUSED: u64 = 0x2;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address can't be resolved or used.
    #[error("`{address}` can't be resolved")]
    Address {
        /// As it was given.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// QUIC broke down.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// The broker takes no connection now.
    #[error("the broker takes no more connections now")]
    Busy,
    /// The broker closed the connection, for a reason of ours.
    #[error("the broker closed the connection: {}", .0.word())]
    Closed(CloseCode),
    /// This side closed the connection.
    #[error("the connection was closed on this side")]
    ClosedHere,
    /// The credentials can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A frame could not be written or read.
    #[error("the exchange with the broker failed: {0}")]
    Frame(#[source] FrameError),
    /// We refused the broker: it is not who it should be, or it speaks something else.
    #[error("the broker at the other end is not accepted: {reason}")]
    Handshake {
        /// What our side found.
        reason: String,
        /// What to look at.
        hint: &'static str,
    },
    /// No socket on this machine.
    #[error("no udp socket can be opened")]
    Local(#[source] std::io::Error),
    /// The broker refused our certificate.
    #[error("the broker does not accept this identity: {reason}")]
    Rejected {
        /// The TLS alert, in words.
        reason: &'static str,
        /// What to look at.
        hint: &'static str,
    },
    /// The broker judged the request and refused it.
    #[error(transparent)]
    Refused(Refusal),
    /// The broker fell silent.
    #[error("the broker did not answer within {} seconds", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// TLS can't be set up with these credentials.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The broker's answer is not one to this question.
    #[error("the broker's answer does not fit: {0}")]
    Unexpected(&'static str),
    /// Nobody there.
    #[error("no broker answers at {address} within {} seconds", CONNECT_TIMEOUT.as_secs())]
    Unreachable {
        /// As it was given.
        address: String,
    },
}

impl ClientError {
    /// Whether trying again later, or elsewhere, may help: exit code 4 of the command line.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Address { .. } | Self::Broken(_) | Self::Busy | Self::Silent => true,
            Self::Unreachable { .. } | Self::ClosedHere => true,
            Self::Closed(code) => matches!(code, CloseCode::Draining | CloseCode::TooMany),
            Self::Frame(error) => error.code().0 == Code::Unavailable,
            Self::Refused(refusal) => matches!(refusal.code, Code::Unavailable | Code::Limited),
            Self::Credentials(_) | Self::Handshake { .. } | Self::Local(_) => false,
            Self::Rejected { .. } | Self::Tls(_) | Self::Unexpected(_) => false,
        }
    }

    /// Whether the broker said no to who we are or what we want: exit code 3.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Rejected { .. } => true,
            Self::Closed(code) => {
                matches!(code, CloseCode::Posture | CloseCode::Revoked | CloseCode::Expired)
            }
            Self::Refused(refusal) => matches!(refusal.code, Code::Denied | Code::Expired),
            _ => false,
        }
    }

    /// How to mend it, where that can be said.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Address { .. } => Some("write `host:port`, and check the name"),
            Self::Closed(code) => Some(code.hint()),
            Self::Handshake { hint, .. } | Self::Rejected { hint, .. } => Some(hint),
            Self::Refused(refusal) => refusal.hint.as_deref(),
            Self::Unreachable { .. } => {
                Some("is the broker running and unsealed, and is udp let through to that port?")
            }
            Self::Busy | Self::Silent => Some("try again in a moment"),
            _ => None,
        }
    }

    /// The end of a connection in terms of what to do.
    pub(super) fn of_connection(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::VersionMismatch => Self::Handshake {
                reason: "it speaks no version of quic that this client speaks".into(),
                hint: "is this the address of a doorward broker?",
            },
            ConnectionError::TransportError(found) => {
                let code = u64::from(found.code);
                match alert(code) {
                    Some(alert) => Self::Handshake {
                        reason: plain(&found.reason),
                        hint: hint_on_broker(alert),
                    },
                    None => Self::Broken(plain(&error.to_string())),
                }
            }
            ConnectionError::ConnectionClosed(close) => Self::of_close(close.error_code, error),
            ConnectionError::ApplicationClosed(close) => match CloseCode::parse(close.error_code) {
                Some(code) => Self::Closed(code),
                None => Self::Broken("closed by the broker without a reason".into()),
            },
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::TimedOut => Self::Broken("the broker fell silent".into()),
            ConnectionError::Reset => Self::Broken("the broker has restarted".into()),
            ConnectionError::CidsExhausted => Self::Broken("no connection ids are left".into()),
        }
    }

    fn of_close(code: TransportErrorCode, error: &ConnectionError) -> Self {
        let code = u64::from(code);
        if code == CONNECTION_REFUSED {
            return Self::Busy;
        }
        match alert(code) {
            Some(alert) => {
                let (reason, hint) = of_alert(alert);
                Self::Rejected { reason, hint }
            }
            None => Self::Broken(plain(&error.to_string())),
        }
    }
}

fn alert(code: u64) -> Option<u64> {
    ALERTS.contains(&code).then_some(code & 0xff)
}

/// What an alert from the broker says of us.
fn of_alert(alert: u64) -> (&'static str, &'static str) {
    match alert {
        42 => ("its certificate is malformed", "enrol again"),
        43 => ("its certificate is of a kind that is not used", "enrol again"),
        44 => ("its certificate is revoked", "ask an operator, then enrol again"),
        45 => ("its certificate has expired, or has not begun", "renew it; check the clock"),
        46 => ("its certificate is not an svid that counts there", "renew it, or enrol again"),
        48 => ("its trust domain is not known there", "is this the broker that it enrolled with?"),
        49 => ("access denied", "ask an operator"),
        51 => ("its private key does not fit its certificate", "enrol again"),
        112 | 120 => ("this port speaks another protocol", "broker and enrolment have two ports"),
        116 => ("it showed no certificate", "enrol, or name an identity"),
        40 | 47 | 70 | 71 => ("no common version or cipher", "update the older of the two"),
        _ => ("the tls handshake failed there", "the broker's log has the reason"),
    }
}

/// What an alert of our own says of the broker.
fn hint_on_broker(alert: u64) -> &'static str {
    match alert {
        45 => "the broker's certificate has expired, or this machine's clock is wrong",
        48 => "the broker's root is not in the trust bundle: wrong broker, or enrol again",
        112 | 120 => "this port speaks another protocol: broker and enrolment have two ports",
        40 | 70 | 71 => "is this the address of a doorward broker of this trust domain?",
        _ => "is this the broker of this trust domain?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Reason, RequestId};
    use quinn::{ApplicationClose, ConnectionClose, VarInt};

    fn closed_by_peer(code: TransportErrorCode) -> ClientError {
        let close =
            ConnectionClose { error_code: code, frame_type: None, reason: Default::default() };
        ClientError::of_connection(&ConnectionError::ConnectionClosed(close))
    }

    fn closed_with(code: u32) -> ClientError {
        let error_code = VarInt::from_u32(code);
        let reason = (&b"\x1b[2Jx"[..]).into();
        ClientError::of_connection(&ConnectionError::ApplicationClosed(ApplicationClose {
            error_code,
            reason,
        }))
    }

    #[test]
    fn a_refused_certificate_is_a_denial_with_a_hint() {
        for (alert, word) in [(45, "expired"), (48, "trust domain"), (44, "revoked")] {
            let error = closed_by_peer(TransportErrorCode::crypto(alert));
            assert!(matches!(error, ClientError::Rejected { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
            assert!(error.is_denied() && !error.is_unavailable() && error.hint().is_some());
        }
    }

    #[test]
    fn a_broker_that_we_refuse_is_no_denial_of_its() {
        let mut found = quinn_proto_error(48);
        if let ConnectionError::TransportError(error) = &mut found {
            error.reason = "invalid peer certificate: \u{1b}UnknownIssuer".into();
        }
        let error = ClientError::of_connection(&found);
        assert!(matches!(error, ClientError::Handshake { .. }));
        assert!(!error.is_denied() && !error.is_unavailable());
        assert!(error.hint().unwrap().contains("trust bundle"));
        assert!(!error.to_string().contains('\u{1b}'));
    }

    /// quinn does not export the type of its transport errors, but converts codes into it.
    fn quinn_proto_error(alert: u8) -> ConnectionError {
        ConnectionError::TransportError(TransportErrorCode::crypto(alert).into())
    }

    #[test]
    fn what_may_pass_is_unavailable() {
        assert!(matches!(
            closed_by_peer(TransportErrorCode::CONNECTION_REFUSED),
            ClientError::Busy
        ));
        let passing = [
            closed_by_peer(TransportErrorCode::CONNECTION_REFUSED),
            closed_with(0x100),
            closed_with(0x104),
            closed_with(7),
            ClientError::of_connection(&ConnectionError::TimedOut),
            ClientError::of_connection(&ConnectionError::Reset),
            ClientError::Unreachable { address: "b:1".into() },
            ClientError::Silent,
        ];
        for error in passing {
            assert!(error.is_unavailable() && !error.is_denied(), "{error}");
        }
        for code in [0x101, 0x102, 0x103] {
            assert!(closed_with(code).is_denied() && !closed_with(code).is_unavailable());
        }
        assert_eq!(closed_with(0x101).to_string(), "the broker closed the connection: posture");
        assert!(!closed_with(7).to_string().contains('\u{1b}'));
    }

    #[test]
    fn refusals_keep_their_class() {
        let request = RequestId::parse("0198c0de-0000-7000-8000-000000000001").unwrap();
        let refused =
            |code, reason| ClientError::Refused(Refusal { request, code, reason, hint: None });
        assert!(refused(Code::Denied, Reason::NoAllow).is_denied());
        assert!(refused(Code::Unavailable, Reason::Changed).is_unavailable());
        let wrong = refused(Code::Invalid, Reason::Invalid);
        assert!(!wrong.is_denied() && !wrong.is_unavailable());
    }
}
