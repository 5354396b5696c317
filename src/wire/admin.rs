//! The messages of a sealed broker's admin socket: the frames of the network with heads of their own
//! (docs/OPERATIONS.md, "A sealed start").
//!
//! One ask and one reply a connection. Both lengths are compared with their limits before anything
//! is allocated, and the end of the ask must follow it. The passphrase is the body: raw bytes in a
//! wiped buffer, never a part of a JSON text. Deadlines are the caller's business.

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::frame::{
    LENGTHS, Lengths, check_body, check_head, decode_lengths, read_body, read_end, read_exactly,
    write_frame,
};
use super::frame_error::FrameError;
use super::strict;
use crate::model::SecretValue;
use crate::model::limits::{ADMIN_HEAD_MAX, HEAD_MAX, PASSPHRASE_MAX};

/// What a sealed broker can be asked: `{"seal":{}}` or `{"unseal":{}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminAsk {
    /// How the seal stands. No body.
    Seal {},
    /// Open it. The body is the passphrase.
    Unseal {},
}

impl AdminAsk {
    /// The largest body, in bytes.
    pub fn body_max(&self) -> usize {
        match self {
            Self::Seal {} => 0,
            Self::Unseal {} => PASSPHRASE_MAX,
        }
    }
}

/// How the seal of a running broker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealState {
    /// It waits for its passphrase.
    Sealed,
    /// The seal is open; the start goes on.
    Opening,
    /// The broker answers, or drains.
    Open,
}

impl SealState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Opening => "opening",
            Self::Open => "open",
        }
    }
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminReply {
    /// How the seal stands; also to a passphrase that is not needed any more.
    Seal {
        /// How.
        state: SealState,
    },
    /// The seal was opened by this passphrase and the broker answers.
    Opened {
        /// UDP address for holders of SVIDs.
        broker: String,
        /// UDP address for applicants.
        enrolment: String,
        /// TCP address for health and metrics.
        management: String,
    },
    /// Another passphrase; the broker stays sealed.
    WrongPassphrase {},
    /// The passphrase was not tried, or the start that followed failed.
    Failed {
        /// What.
        error: String,
        /// What lies behind it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
        /// Whether the broker ends now; it stays sealed otherwise.
        ended: bool,
    },
    /// The ask was not understood, or comes from somebody who may not ask.
    Refused {
        /// Why.
        why: String,
    },
}

/// Parses the head of an ask.
///
/// # Errors
/// The rule that the head breaks.
pub fn parse_admin_ask(head: &[u8]) -> Result<AdminAsk, FrameError> {
    check_head(head.len(), ADMIN_HEAD_MAX)?;
    strict::from_request(head).map_err(FrameError::Head)
}

/// Parses the head of a reply.
///
/// # Errors
/// The rule that the head breaks.
pub fn parse_admin_reply(head: &[u8]) -> Result<AdminReply, FrameError> {
    check_head(head.len(), HEAD_MAX)?;
    strict::from_request(head).map_err(FrameError::Head)
}

/// Reads an ask with its body and insists on the end of the stream.
///
/// # Errors
/// What is wrong with the frame.
pub async fn read_admin_ask<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
) -> Result<(AdminAsk, SecretValue), FrameError> {
    let lengths = read_lengths(from).await?;
    check_head(lengths.head, ADMIN_HEAD_MAX)?;
    check_body(lengths.body, PASSPHRASE_MAX)?;
    let head = read_exactly(from, lengths.head, "the head").await?;
    let ask = parse_admin_ask(&head)?;
    check_body(lengths.body, ask.body_max())?;
    Ok((ask, read_body(from, lengths.body).await?))
}

/// Writes an ask. The writer must end its side of the stream then.
///
/// # Errors
/// When the ask may not have this body, or the stream can't be written.
pub async fn write_admin_ask<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    ask: AdminAsk,
    body: &SecretValue,
) -> Result<(), FrameError> {
    check_body(body.len(), ask.body_max())?;
    let head = serde_json::to_vec(&ask).map_err(FrameError::Unwritable)?;
    write_frame(to, &head, body.expose()).await
}

/// Reads a reply, which has no body, and insists on the end of the stream.
///
/// # Errors
/// What is wrong with the frame.
pub async fn read_admin_reply<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
) -> Result<AdminReply, FrameError> {
    let lengths = read_lengths(from).await?;
    check_head(lengths.head, HEAD_MAX)?;
    check_body(lengths.body, 0)?;
    let head = read_exactly(from, lengths.head, "the head").await?;
    let reply = parse_admin_reply(&head)?;
    read_end(from).await?;
    Ok(reply)
}

/// Writes a reply.
///
/// # Errors
/// When it is over the limit, or the stream can't be written.
pub async fn write_admin_reply<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    reply: &AdminReply,
) -> Result<(), FrameError> {
    let head = serde_json::to_vec(reply).map_err(FrameError::Unwritable)?;
    check_head(head.len(), HEAD_MAX)?;
    write_frame(to, &head, &[]).await
}

async fn read_lengths<R: AsyncRead + Unpin + ?Sized>(from: &mut R) -> Result<Lengths, FrameError> {
    decode_lengths(&read_exactly(from, LENGTHS, "the lengths").await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a future to its end; everything here is ready at once.
    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    fn read(bytes: &[u8]) -> Result<(AdminAsk, SecretValue), FrameError> {
        run(read_admin_ask(&mut &*bytes))
    }

    fn frame(head: &[u8], body: &[u8]) -> Vec<u8> {
        let lengths = [head.len(), body.len()].map(|n| u32::try_from(n).unwrap().to_be_bytes());
        [lengths.concat().as_slice(), head, body].concat()
    }

    #[test]
    fn an_ask_and_a_reply_come_back_as_they_left() {
        let word = SecretValue::new(b"correct \0 horse".to_vec());
        let mut bytes = Vec::new();
        run(write_admin_ask(&mut bytes, AdminAsk::Unseal {}, &word)).unwrap();
        assert_eq!(bytes, frame(br#"{"unseal":{}}"#, b"correct \0 horse"));
        let (ask, body) = read(&bytes).unwrap();
        assert_eq!((ask, body.expose()), (AdminAsk::Unseal {}, word.expose()));
        assert_eq!(read(&frame(br#"{"seal":{}}"#, b"")).unwrap().0, AdminAsk::Seal {});
        for reply in [
            AdminReply::Seal { state: SealState::Opening },
            AdminReply::WrongPassphrase {},
            AdminReply::Failed { error: "no room".to_owned(), cause: None, ended: true },
            AdminReply::Refused { why: "x".to_owned() },
        ] {
            let mut bytes = Vec::new();
            run(write_admin_reply(&mut bytes, &reply)).unwrap();
            assert_eq!(run(read_admin_reply(&mut bytes.as_slice())).unwrap(), reply);
        }
    }

    #[test]
    fn whatever_is_cut_too_long_or_of_another_form_is_refused() {
        let head = br#"{"unseal":{}}"#;
        read(&frame(head, &[b'x'; PASSPHRASE_MAX])).unwrap();
        let whole = frame(head, b"secret");
        for cut in 0..whole.len() {
            assert!(matches!(read(&whole[..cut]), Err(FrameError::Cut { .. })), "{cut}");
        }
        let error = read(&[whole.as_slice(), b"x"].concat()).unwrap_err();
        assert!(matches!(error, FrameError::Trailing), "{error}");
        let error = read(&frame(head, &[b'x'; PASSPHRASE_MAX + 1])).unwrap_err();
        assert!(matches!(error, FrameError::BodyTooLarge { .. }), "{error}");
        let error = read(&frame(br#"{"seal":{}}"#, b"x")).unwrap_err();
        assert!(matches!(error, FrameError::BodyTooLarge { limit: 0, .. }), "{error}");
        let long = [head.as_slice(), &[b' '; ADMIN_HEAD_MAX]].concat();
        assert!(matches!(read(&frame(&long, b"")), Err(FrameError::HeadTooLarge { .. })));
        // Lengths that lie are found before anything of that length is made.
        let mut lies = whole.clone();
        lies[..8].copy_from_slice(&[0xff; 8]);
        assert!(matches!(read(&lies), Err(FrameError::HeadTooLarge { .. })));
        lies[..4].copy_from_slice(&13_u32.to_be_bytes());
        assert!(matches!(read(&lies), Err(FrameError::BodyTooLarge { .. })));
        for head in [
            &b""[..],
            b"unseal",
            br#""unseal""#,
            br#"{"unseal":[]}"#,
            br#"{"unseal":{"passphrase":"hunter2"}}"#,
            br#"{"unseal":{},"seal":{}}"#,
            br#" {"unseal":{}}"#,
            br#"{"open":{}}"#,
        ] {
            let error = read(&frame(head, b"")).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read(&bytes);
            let _ = read(&frame(&bytes, b"x"));
            let _ = run(read_admin_reply(&mut bytes.as_slice()));
        }
    }
}
