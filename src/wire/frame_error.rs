//! What can be wrong with a frame, and what its sender is told of it.

use super::strict::StrictError;
use crate::model::{Code, Reason};

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// More body than this message may have.
    #[error("the body is {length} bytes long; the limit here is {limit}")]
    BodyTooLarge {
        /// Declared or given.
        length: usize,
        /// Allowed.
        limit: usize,
    },
    /// The stream ended too early.
    #[error("the stream ended in {part}, after {got} of {want} bytes")]
    Cut {
        /// Which part.
        part: &'static str,
        /// Bytes that came.
        got: usize,
        /// Bytes that were announced.
        want: usize,
    },
    /// The head is not a message.
    #[error("the head is not a message of this protocol: {0}")]
    Head(StrictError),
    /// A message without a head.
    #[error("the head is empty")]
    HeadEmpty,
    /// More head than this message may have.
    #[error("the head is {length} bytes long; the limit here is {limit}")]
    HeadTooLarge {
        /// Declared or given.
        length: usize,
        /// Allowed.
        limit: usize,
    },
    /// A nonce of another form.
    #[error("the nonce is not 32 bytes in base64url without padding")]
    Nonce,
    /// The connection or the stream ended in the middle of reading.
    #[error("the stream could not be read")]
    Read(#[source] std::io::Error),
    /// More bytes where the stream should have ended.
    #[error("bytes follow the end of the message")]
    Trailing,
    /// Evidence has no head.
    #[error("evidence has a head of {0} bytes; it has none")]
    UnexpectedHead(usize),
    /// The message can't be written as JSON.
    #[error("the message has no json form")]
    Unwritable(#[source] serde_json::Error),
    /// The connection or the stream ended in the middle of writing.
    #[error("the stream could not be written")]
    Write(#[source] std::io::Error),
}

impl FrameError {
    /// What the other side is told: the closed code, and what is wrong and how to mend it.
    pub fn code(&self) -> (Code, String) {
        let (code, mend) = match self {
            Self::BodyTooLarge { limit: 0, .. } => (Code::TooLarge, "this message has no body"),
            Self::BodyTooLarge { .. } => (Code::TooLarge, "send a smaller body"),
            Self::Cut { .. } => (Code::Invalid, "send as many bytes as the lengths announce"),
            Self::Head(_) | Self::HeadEmpty => (Code::Invalid, "docs/WIRE.md lists the messages"),
            Self::HeadTooLarge { .. } => (Code::TooLarge, "ask for less at once"),
            Self::Nonce => (Code::Invalid, "send the nonce as it came"),
            Self::Read(_) | Self::Write(_) => (Code::Unavailable, "connect again"),
            Self::Trailing => (Code::Invalid, "end the stream after one message"),
            Self::UnexpectedHead(_) => (Code::Invalid, "send evidence with a head length of 0"),
            Self::Unwritable(_) => (Code::Internal, "report this"),
        };
        (code, format!("{self}; {mend}"))
    }

    /// The stable reason that belongs to [`FrameError::code`].
    pub fn reason(&self) -> Reason {
        match self {
            Self::BodyTooLarge { .. } | Self::HeadTooLarge { .. } => Reason::TooLarge,
            _ => Reason::Invalid,
        }
    }
}
