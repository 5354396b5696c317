//! Frames: two lengths, a JSON head, a raw body (docs/WIRE.md).
//!
//! A frame is `u32` head length, `u32` body length (both big-endian), the head, the body. Each
//! length is compared with its limit before anything is allocated. Bodies are secrets: they go
//! straight into a wiped buffer of their exact size and leave from one, whether the call succeeds,
//! fails or is dropped half-way. Nothing here waits by a clock: deadlines are the caller's
//! business. Nothing here may panic, whatever the bytes are.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::frame_error::FrameError;
use super::sealed::SealedCredential;
use super::strict;
use crate::model::limits::{
    BODY_MAX, BUNDLE_MAX, EVIDENCE_MAX, FILE_MAX, HEAD_MAX, REPLY_HEAD_MAX, TPM_OPENED_MAX,
    VALUE_MAX,
};
use crate::model::{Answer, Ask, ClientRef, Refusal, RequestId, SecretValue, WipedBytes};

/// Bytes of the two lengths.
pub(super) const LENGTHS: usize = 8;
/// Bodies up to this leave in one write with their head; larger ones follow it in slices of this
/// size and are never copied whole.
const AT_ONCE: usize = VALUE_MAX;

/// First frame of a stream, from the client: `{"client":"ref","ask":{…}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The client's own reference; recorded, never believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientRef>,
    /// What is asked.
    pub ask: Ask,
}

/// Head of a frame from the broker: `{"answer":{"request":"…","answer":{…}}}`, `{"refusal":{…}}`,
/// `{"nonce":"<32 bytes, base64url>"}` or `{"credential":{"blob":"…","seed":"…"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// It was done; the body is beside it.
    Answer {
        /// The broker's id of the request.
        request: RequestId,
        /// The answer's head.
        answer: Answer,
    },
    /// It was refused.
    Refusal(Refusal),
    /// Evidence is wanted, bound to these bytes (see [`decode_nonce`]).
    Nonce(String),
    /// What is in here is wanted, which only the applicant's own TPM can open.
    Credential(SealedCredential),
}

/// The two lengths that a frame begins with, in bytes. Not yet compared with any limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Of the head.
    pub head: usize,
    /// Of the body.
    pub body: usize,
}

/// Reads the lengths at the beginning of a frame.
///
/// # Errors
/// [`FrameError::Cut`] when there are fewer than eight bytes.
pub fn decode_lengths(bytes: &[u8]) -> Result<Lengths, FrameError> {
    let wide = |length| usize::try_from(length).unwrap_or(usize::MAX);
    match bytes {
        [a, b, c, d, e, f, g, h, ..] => Ok(Lengths {
            head: wide(u32::from_be_bytes([*a, *b, *c, *d])),
            body: wide(u32::from_be_bytes([*e, *f, *g, *h])),
        }),
        _ => Err(FrameError::Cut { part: "the lengths", got: bytes.len(), want: LENGTHS }),
    }
}

/// Parses the head of an opening. Every struct must be an object with known fields, each once.
///
/// # Errors
/// The rule that the head breaks.
pub fn parse_opening(head: &[u8]) -> Result<Opening, FrameError> {
    check_head(head.len(), HEAD_MAX)?;
    strict::from_request(head).map_err(FrameError::Head)
}

/// Parses the head of a reply.
///
/// # Errors
/// The rule that the head breaks.
pub fn parse_reply(head: &[u8]) -> Result<Reply, FrameError> {
    check_head(head.len(), REPLY_HEAD_MAX)?;
    strict::from_bytes(head).map_err(FrameError::Head)
}

/// The text of a nonce, for [`Reply::Nonce`].
pub fn encode_nonce(nonce: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(nonce)
}

/// The bytes of a [`Reply::Nonce`].
///
/// # Errors
/// [`FrameError::Nonce`] for anything but 32 bytes in their one text form.
pub fn decode_nonce(text: &str) -> Result<[u8; 32], FrameError> {
    if text.len() != 43 {
        return Err(FrameError::Nonce);
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| FrameError::Nonce)?;
    bytes.try_into().map_err(|_| FrameError::Nonce)
}

/// Reads the first frame's head; returns it with the declared body length, which is compared with
/// `ask.body_max()` before anything is allocated. The body is still unread. A report's opening has
/// no body: its evidence follows in a frame of its own ([`read_evidence`]).
///
/// # Errors
/// What is wrong with the frame.
pub async fn read_opening<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
) -> Result<(Opening, usize), FrameError> {
    let lengths = read_lengths(from).await?;
    check_head(lengths.head, HEAD_MAX)?;
    check_body(lengths.body, BUNDLE_MAX)?;
    let head = read_exactly(from, lengths.head, "the head").await?;
    let opening = parse_opening(&head)?;
    check_body(lengths.body, opening_body_max(&opening.ask))?;
    Ok((opening, lengths.body))
}

/// Reads exactly `length` body bytes and insists on the end of the stream.
///
/// # Errors
/// When the stream is shorter or longer, or `length` is over the largest body of all.
pub async fn read_body<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
    length: usize,
) -> Result<SecretValue, FrameError> {
    check_body(length, BUNDLE_MAX)?;
    let body = read_exactly(from, length, "the body").await?;
    read_end(from).await?;
    Ok(body.into())
}

/// Reads exactly `length` body bytes of a stream on which another frame follows.
///
/// # Errors
/// When the stream is shorter, or `length` is over the largest body of all.
pub async fn read_part<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
    length: usize,
) -> Result<SecretValue, FrameError> {
    check_body(length, BUNDLE_MAX)?;
    Ok(read_exactly(from, length, "the body").await?.into())
}

/// Reads the evidence frame of a report (head length 0) and insists on the end of the stream.
///
/// # Errors
/// What is wrong with the frame.
pub async fn read_evidence<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
) -> Result<SecretValue, FrameError> {
    read_bare(from, EVIDENCE_MAX).await
}

/// Reads the frame with what was in a credential, likewise.
///
/// # Errors
/// What is wrong with the frame.
pub async fn read_opened<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
) -> Result<SecretValue, FrameError> {
    read_bare(from, TPM_OPENED_MAX).await
}

async fn read_bare<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
    most: usize,
) -> Result<SecretValue, FrameError> {
    let lengths = read_lengths(from).await?;
    if lengths.head != 0 {
        return Err(FrameError::UnexpectedHead(lengths.head));
    }
    check_body(lengths.body, most)?;
    read_body(from, lengths.body).await
}

/// Reads one reply. The stream may go on: after an answer or a refusal, ask [`read_end`].
///
/// # Errors
/// What is wrong with the frame.
pub async fn read_reply<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
) -> Result<(Reply, SecretValue), FrameError> {
    let lengths = read_lengths(from).await?;
    check_head(lengths.head, REPLY_HEAD_MAX)?;
    check_body(lengths.body, FILE_MAX)?;
    let head = read_exactly(from, lengths.head, "the head").await?;
    let reply = parse_reply(&head)?;
    check_body(lengths.body, reply_body_max(&reply))?;
    let body = read_exactly(from, lengths.body, "the body").await?;
    Ok((reply, body.into()))
}

/// Insists on the end of the stream. At most one more byte is taken.
///
/// # Errors
/// [`FrameError::Trailing`] when the stream goes on.
pub async fn read_end<R: AsyncRead + Unpin + ?Sized>(from: &mut R) -> Result<(), FrameError> {
    let mut more = Zeroizing::new([0; 1]);
    match from.read(more.as_mut_slice()).await.map_err(FrameError::Read)? {
        0 => Ok(()),
        _ => Err(FrameError::Trailing),
    }
}

/// Writes the first frame of a stream. A report's has no body.
///
/// # Errors
/// When the ask may not have this body, or the stream can't be written.
pub async fn write_opening<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    opening: &Opening,
    body: &[u8],
) -> Result<(), FrameError> {
    check_body(body.len(), opening_body_max(&opening.ask))?;
    let head = serde_json::to_vec(opening).map_err(FrameError::Unwritable)?;
    check_head(head.len(), HEAD_MAX)?;
    write_frame(to, &head, body).await
}

/// Writes the evidence frame of a report, or the one with what was in a credential.
///
/// # Errors
/// When it is too large, or the stream can't be written.
pub async fn write_evidence<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    evidence: &[u8],
) -> Result<(), FrameError> {
    check_body(evidence.len(), EVIDENCE_MAX)?;
    write_frame(to, &[], evidence).await
}

/// Writes one reply. Head and body leave in one write, from a buffer that is wiped; only a body
/// larger than any value follows its head in slices. Nothing was written when the reply is over a limit, so a refusal can still be sent in its place.
///
/// # Errors
/// When the reply is over a limit, or the stream can't be written.
pub async fn write_reply<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    reply: &Reply,
    body: &[u8],
) -> Result<(), FrameError> {
    write_frame(to, &reply_head(reply, body.len())?, body).await
}

/// The head of a reply that a body of this length follows.
///
/// # Errors
/// When the reply is over a limit.
pub fn reply_head(reply: &Reply, body: usize) -> Result<Vec<u8>, FrameError> {
    check_body(body, reply_body_max(reply))?;
    let head = serde_json::to_vec(reply).map_err(FrameError::Unwritable)?;
    check_head(head.len(), REPLY_HEAD_MAX)?;
    Ok(head)
}

/// The largest body of an opening. Evidence is made only after the broker's nonce has come.
fn opening_body_max(ask: &Ask) -> usize {
    if matches!(ask, Ask::Report { .. }) { 0 } else { ask.body_max() }
}

pub(super) fn check_head(length: usize, limit: usize) -> Result<(), FrameError> {
    match length {
        0 => Err(FrameError::HeadEmpty),
        length if length > limit => Err(FrameError::HeadTooLarge { length, limit }),
        _ => Ok(()),
    }
}

pub(super) fn check_body(length: usize, limit: usize) -> Result<(), FrameError> {
    if length > limit { Err(FrameError::BodyTooLarge { length, limit }) } else { Ok(()) }
}

async fn read_lengths<R: AsyncRead + Unpin + ?Sized>(from: &mut R) -> Result<Lengths, FrameError> {
    let mut lengths = [0; LENGTHS];
    fill(from, &mut lengths, "the lengths").await?;
    decode_lengths(&lengths)
}

/// Heads come here too: whoever sets the lengths wrong puts a body where the head should be.
pub(super) async fn read_exactly<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
    length: usize,
    part: &'static str,
) -> Result<WipedBytes, FrameError> {
    let mut bytes = WipedBytes::new(vec![0; length]);
    fill(from, &mut bytes, part).await?;
    Ok(bytes)
}

async fn fill<R: AsyncRead + Unpin + ?Sized>(
    from: &mut R,
    into: &mut [u8],
    part: &'static str,
) -> Result<(), FrameError> {
    let want = into.len();
    let mut got = 0;
    while let Some(rest) = into.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match from.read(rest).await.map_err(FrameError::Read)? {
            0 => return Err(FrameError::Cut { part, got, want }),
            more => got += more,
        }
    }
    Ok(())
}

/// The largest body that may stand beside this reply.
fn reply_body_max(reply: &Reply) -> usize {
    match reply {
        Reply::Answer { answer: Answer::File { .. }, .. } => FILE_MAX,
        Reply::Answer { answer: Answer::Policy { .. }, .. } => BUNDLE_MAX,
        Reply::Answer { .. } => BODY_MAX,
        Reply::Refusal(_) | Reply::Nonce(_) | Reply::Credential(_) => 0,
    }
}

pub(super) async fn write_frame<W: AsyncWrite + Unpin + ?Sized>(
    to: &mut W,
    head: &[u8],
    body: &[u8],
) -> Result<(), FrameError> {
    let (begin, after) = pieces(head, body)?;
    to.write_all(&begin).await.map_err(FrameError::Write)?;
    for slice in after {
        to.write_all(slice).await.map_err(FrameError::Write)?;
    }
    to.flush().await.map_err(FrameError::Write)
}

/// Hands one frame over to QUIC, which keeps it until the other end has acknowledged it: in the
/// very buffers that it is laid out in here, which are wiped when they are given back.
///
/// # Errors
/// When it is over a limit, or the stream can't be written.
pub async fn send_frame(
    to: &mut quinn::SendStream,
    head: &[u8],
    body: &[u8],
) -> Result<(), FrameError> {
    let broken = |error: quinn::WriteError| FrameError::Write(error.into());
    let (begin, after) = pieces(head, body)?;
    to.write_chunk(Bytes::from_owner(begin)).await.map_err(broken)?;
    for slice in after {
        let slice = Bytes::from_owner(WipedBytes::new(slice.to_vec()));
        to.write_chunk(slice).await.map_err(broken)?;
    }
    Ok(())
}

/// What leaves at once, and the slices that follow it.
fn pieces<'a>(
    head: &[u8],
    body: &'a [u8],
) -> Result<(WipedBytes, impl Iterator<Item = &'a [u8]> + use<'a>), FrameError> {
    let too_large = |length| FrameError::BodyTooLarge { length, limit: FILE_MAX };
    let head_length = u32::try_from(head.len()).map_err(|_| too_large(head.len()))?;
    let body_length = u32::try_from(body.len()).map_err(|_| too_large(body.len()))?;
    let (with_head, after) = if body.len() > AT_ONCE { (&[][..], body) } else { (body, &[][..]) };
    // The exact capacity: a vector that grows leaves an unwiped copy behind.
    let mut begin = WipedBytes::new(Vec::with_capacity(LENGTHS + head.len() + with_head.len()));
    begin.extend_from_slice(&head_length.to_be_bytes());
    begin.extend_from_slice(&body_length.to_be_bytes());
    begin.extend_from_slice(head);
    begin.extend_from_slice(with_head);
    Ok((begin, after.chunks(AT_ONCE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Code, Reason};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};
    use tokio::io::ReadBuf;

    /// Runs a future to its end; everything here is ready at once.
    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    fn frame(head: &[u8], body: &[u8]) -> Vec<u8> {
        let lengths = [head.len(), body.len()].map(|n| u32::try_from(n).unwrap().to_be_bytes());
        [lengths.concat().as_slice(), head, body].concat()
    }

    /// Opening and body, as the broker reads them.
    async fn request(mut bytes: &[u8]) -> Result<(Opening, SecretValue), FrameError> {
        let (opening, length) = read_opening(&mut bytes).await?;
        Ok((opening, read_body(&mut bytes, length).await?))
    }

    const WRITE: &[u8] = br#"{"client":"deploy-7","ask":{"write":{"name":"pay/db/url"}}}"#;
    const WHOAMI: &[u8] = br#"{"ask":{"whoami":{}}}"#;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let (opening, body) = run(request(&frame(WRITE, b"hunter2"))).unwrap();
        assert_eq!(opening.client.as_ref().unwrap().as_str(), "deploy-7");
        assert_eq!(body.expose(), b"hunter2");
        let mut written = Vec::new();
        run(write_opening(&mut written, &opening, body.expose())).unwrap();
        let (again, body) = run(request(&written)).unwrap();
        assert_eq!((again, body.expose()), (opening, b"hunter2".as_slice()));
    }

    #[test]
    fn a_frame_cut_at_any_byte_says_where() {
        let whole = frame(WRITE, b"hunter2");
        assert!(run(request(&whole)).is_ok());
        for end in 0..whole.len() {
            let error = run(request(&whole[..end])).unwrap_err();
            let expected = match end {
                0..8 => ("the lengths", end, 8),
                _ if end < 8 + WRITE.len() => ("the head", end - 8, WRITE.len()),
                _ => ("the body", end - 8 - WRITE.len(), 7),
            };
            match error {
                FrameError::Cut { part, got, want } => assert_eq!((part, got, want), expected),
                other => panic!("cut at {end}: {other}"),
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_found_before_anything_is_allocated() {
        assert!(run(request(&frame(WHOAMI, b""))).is_ok());
        let with = |head: u32, body: u32| {
            [&head.to_be_bytes()[..], &body.to_be_bytes()[..], WHOAMI].concat()
        };
        let exact = u32::try_from(WHOAMI.len()).unwrap();
        let refused = |bytes: &[u8]| run(request(bytes)).unwrap_err();
        assert!(matches!(refused(&with(u32::MAX, 0)), FrameError::HeadTooLarge { .. }));
        assert!(matches!(refused(&with(exact, u32::MAX)), FrameError::BodyTooLarge { .. }));
        assert!(matches!(refused(&with(exact, 1)), FrameError::BodyTooLarge { limit: 0, .. }));
        assert!(matches!(refused(&with(0, 0)), FrameError::HeadEmpty));
        assert!(matches!(refused(&with(exact + 1, 0)), FrameError::Cut { .. }));
        assert!(matches!(refused(&with(exact - 1, 0)), FrameError::Head(_)));
        let body = run(read_body(&mut &*WHOAMI, usize::MAX)).unwrap_err();
        assert!(matches!(body, FrameError::BodyTooLarge { .. }));
    }

    #[test]
    fn the_limits_are_exact() {
        let padded = |length: usize| {
            let space = length - r#"{"ask":{"whoami":{}}}"#.len();
            format!(r#"{{"ask":{{"whoami":{{{}}}}}}}"#, " ".repeat(space)).into_bytes()
        };
        assert!(run(request(&frame(&padded(HEAD_MAX), b""))).is_ok());
        let error = run(request(&frame(&padded(HEAD_MAX + 1), b""))).unwrap_err();
        assert!(matches!(error, FrameError::HeadTooLarge { length: 16_385, limit: HEAD_MAX }));
        assert_eq!(error.code().0, Code::TooLarge);
        assert!(run(request(&frame(WRITE, &vec![7; VALUE_MAX]))).is_ok());
        let error = run(request(&frame(WRITE, &vec![7; VALUE_MAX + 1]))).unwrap_err();
        assert!(matches!(error, FrameError::BodyTooLarge { limit: VALUE_MAX, .. }));
        assert_eq!(error.reason(), Reason::TooLarge);
    }

    #[test]
    fn heads_have_one_form() {
        let deep = format!(r#"{{"ask":{}"#, r#"{"a":"#.repeat(3000));
        let wide = format!(r#"{{"ask":{}"#, "[".repeat(10_000));
        for bad in [
            r#"{"ask":{"whoami":{}},"ask":{"whoami":{}}}"#,
            r#"{"ask":{"read":{"name":"pay/x","name":"pay/x"}}}"#,
            r#"{"ask":{"whoami":{}},"as":"spiffe://corp.example/root"}"#,
            r#"{"ask":{"read":["pay/x",null,null]}}"#,
            r#"[null,{"whoami":{}}]"#,
            r#"{"ask":{"whoami":{}}}{}"#,
            r#"{"ask":{"whoami":{}}} "#,
            r#"{"client":"a b","ask":{"whoami":{}}}"#,
            "{\"ask\":{\"whoami\":{}}}\0",
            &deep,
            &wide,
        ] {
            let error = parse_opening(bad.as_bytes()).unwrap_err();
            assert!(matches!(error, FrameError::Head(_)), "{error}");
            assert_eq!(error.code().0, Code::Invalid);
        }
        assert!(parse_opening(b"{\"client\":\"\xff\",\"ask\":{\"whoami\":{}}}").is_err());
        assert!(parse_opening(WHOAMI).is_ok());
    }

    #[test]
    fn a_depth_bomb_within_an_answers_free_json_is_refused() {
        let reply = |depth: usize| {
            let bomb = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let id = "0198c0de-0000-7000-8000-000000000001";
            let answer = format!(r#"{{"report":{{"value":{bomb}}}}}"#);
            format!(r#"{{"answer":{{"request":"{id}","answer":{answer}}}}}"#).into_bytes()
        };
        assert!(parse_reply(&reply(50)).is_ok());
        assert!(parse_reply(&reply(10_000)).is_err());
    }

    /// Gives bytes for ever, and counts what was taken.
    struct Endless(usize);

    impl AsyncRead for Endless {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            self.0 += into.remaining();
            into.put_slice(&vec![b'{'; into.remaining()]);
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn a_stream_that_never_ends_is_left_after_one_byte_more() {
        let mut endless = Endless(0);
        let error = run(read_body(&mut endless, 100)).unwrap_err();
        assert!(matches!(error, FrameError::Trailing));
        assert_eq!(endless.0, 101);
        let error = run(read_opening(&mut Endless(0))).unwrap_err();
        assert!(matches!(error, FrameError::HeadTooLarge { .. }));
    }

    #[test]
    fn a_stream_that_stops_waits_and_then_ends_in_an_error() {
        run(async {
            let (mut near, mut far) = tokio::io::duplex(1024);
            far.write_all(&frame(WHOAMI, b"")[..12]).await.unwrap();
            let mut reading = pin!(read_opening(&mut near));
            let mut context = Context::from_waker(Waker::noop());
            assert!(reading.as_mut().poll(&mut context).is_pending());
            drop(far);
            let error = reading.await.unwrap_err();
            assert!(matches!(error, FrameError::Cut { part: "the head", got: 4, .. }));
        });
    }

    #[test]
    fn replies_are_read_as_they_were_written() {
        let request = RequestId::parse("0198c0de-0000-7000-8000-000000000001").unwrap();
        let answer = Answer::Secret { version: 3, labels: Default::default() };
        let reply = Reply::Answer { request, answer };
        let mut written = Vec::new();
        run(write_reply(&mut written, &reply, b"hunter2")).unwrap();
        let mut bytes = written.as_slice();
        let (read, body) = run(read_reply(&mut bytes)).unwrap();
        assert_eq!((read, body.expose()), (reply.clone(), b"hunter2".as_slice()));
        assert!(run(read_end(&mut bytes)).is_ok());
        let too_long = run(write_reply(&mut written, &reply, &vec![0; BODY_MAX + 1]));
        assert!(matches!(too_long, Err(FrameError::BodyTooLarge { .. })));
        let nonce = Reply::Nonce(encode_nonce(&[7; 32]));
        assert!(matches!(
            run(write_reply(&mut written, &nonce, b"x")),
            Err(FrameError::BodyTooLarge { limit: 0, .. })
        ));
    }

    #[test]
    fn a_reply_goes_out_in_one_write_and_a_large_body_is_never_copied_whole() {
        struct Count(Vec<usize>);
        impl AsyncWrite for Count {
            fn poll_write(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<std::io::Result<usize>> {
                self.0.push(bytes.len());
                Poll::Ready(Ok(bytes.len()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<std::io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        let request = RequestId::parse("0198c0de-0000-7000-8000-000000000001").unwrap();
        let reply = Reply::Answer { request, answer: Answer::Done { revision: 1 } };
        let mut count = Count(Vec::new());
        run(write_reply(&mut count, &reply, b"body")).unwrap();
        assert_eq!(count.0.len(), 1);
        let mut count = Count(Vec::new());
        run(write_reply(&mut count, &reply, &vec![1; VALUE_MAX])).unwrap();
        assert_eq!(count.0.len(), 1);
        let mut count = Count(Vec::new());
        let body = vec![1; 3 * AT_ONCE + 1];
        run(write_reply(&mut count, &reply, &body)).unwrap();
        assert_eq!(count.0[1..], [AT_ONCE, AT_ONCE, AT_ONCE, 1]);
        let mut written = Vec::new();
        run(write_reply(&mut written, &reply, &body)).unwrap();
        let (read, read_body) = run(read_reply(&mut written.as_slice())).unwrap();
        assert_eq!((read, read_body.expose()), (reply, body.as_slice()));
    }

    #[test]
    fn evidence_comes_in_a_frame_of_its_own() {
        let mut written = Vec::new();
        run(write_evidence(&mut written, b"e30.e30.sig")).unwrap();
        assert_eq!(run(read_evidence(&mut written.as_slice())).unwrap().expose(), b"e30.e30.sig");
        assert!(run(write_evidence(&mut written, &vec![0; EVIDENCE_MAX + 1])).is_err());
        let headed = frame(b"{}", b"x");
        let error = run(read_evidence(&mut headed.as_slice())).unwrap_err();
        assert!(matches!(error, FrameError::UnexpectedHead(2)));
        let report = format!(r#"{{"ask":{{"report":{{"facts":"{}"}}}}}}"#, "0".repeat(64));
        assert!(run(request(&frame(report.as_bytes(), b""))).is_ok());
        let early = run(request(&frame(report.as_bytes(), b"x"))).unwrap_err();
        assert!(matches!(early, FrameError::BodyTooLarge { limit: 0, .. }));
    }

    #[test]
    fn nonces_have_one_text_form() {
        let nonce = [0xfb; 32];
        assert_eq!(decode_nonce(&encode_nonce(&nonce)).unwrap(), nonce);
        let text = encode_nonce(&nonce);
        for bad in [&text[..42], &format!("{text}="), &text.replace('-', "+"), &"é".repeat(21)] {
            assert!(decode_nonce(bad).is_err(), "{bad}");
        }
        assert!(decode_nonce(&format!("{}_", &text[..42])).is_err(), "bits beyond the 32 bytes");
    }

    /// Reads a vector the way its `reader` says; gives heads and bodies in the form of its file.
    async fn read_vector(reader: &str, bytes: &[u8]) -> Result<serde_json::Value, FrameError> {
        let mut from = bytes;
        let (head, body) = match reader {
            "request" => {
                let (opening, length) = read_opening(&mut from).await?;
                (serde_json::to_value(opening), read_body(&mut from, length).await?)
            }
            "reply" => {
                let (reply, body) = read_reply(&mut from).await?;
                read_end(&mut from).await?;
                (serde_json::to_value(reply), body)
            }
            "evidence" => (Ok(serde_json::Value::Null), read_evidence(&mut from).await?),
            other => panic!("no such reader: {other}"),
        };
        let body = hex::encode(body.expose());
        Ok(serde_json::json!({ "head": head.unwrap(), "body": body }))
    }

    /// The column of a fault is our JSON parser's affair; vectors are for other programs too.
    fn without_place(message: &str) -> &str {
        message.rsplit_once(" (line ").map_or(message, |(fault, _)| fault)
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Expected {
        about: String,
        reader: String,
        accept: Option<serde_json::Value>,
        refuse: Option<Refused>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Refused {
        code: Code,
        message: String,
    }

    #[test]
    fn every_vector_comes_out_as_its_file_says() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wire");
        let (mut accepted, mut refused) = (0, 0);
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "hex") {
                continue;
            }
            let text: String = std::fs::read_to_string(&path).unwrap().split_whitespace().collect();
            let bytes = hex::decode(text).unwrap();
            let expected = std::fs::read(path.with_extension("json")).unwrap();
            let expected: Expected = serde_json::from_slice(&expected).unwrap();
            let name = format!("{} ({})", path.display(), expected.about);
            match (run(read_vector(&expected.reader, &bytes)), expected.accept, expected.refuse) {
                (Ok(read), Some(accept), None) => {
                    assert_eq!(read, accept, "{name}");
                    accepted += 1;
                }
                (Err(error), None, Some(refuse)) => {
                    assert_eq!(without_place(&error.to_string()), refuse.message, "{name}");
                    assert_eq!(error.code().0, refuse.code, "{name}");
                    refused += 1;
                }
                (outcome, ..) => panic!("{name}: {outcome:?}"),
            }
        }
        assert!(accepted >= 8 && refused >= 14, "{accepted} accepted, {refused} refused");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in vec(any::<u8>(), 0..600)) {
            let _ = decode_lengths(&bytes);
            let _ = parse_opening(&bytes);
            let _ = parse_reply(&bytes);
            let _ = run(request(&bytes));
            let _ = run(read_reply(&mut bytes.as_slice()));
            let _ = run(read_evidence(&mut bytes.as_slice()));
        }

        #[test]
        fn no_text_near_a_message_makes_the_parsers_panic(
            at in 0..WRITE.len(), with in any::<u8>(), cut in 0..WRITE.len()
        ) {
            let mut head = WRITE.to_vec();
            head[at] = with;
            let _ = parse_opening(&head);
            let _ = parse_opening(&head[..cut]);
            let _ = parse_reply(&head);
        }

        #[test]
        fn any_body_comes_out_as_it_went_in(body in vec(any::<u8>(), 0..2000)) {
            let (_, read) = run(request(&frame(WRITE, &body))).unwrap();
            prop_assert_eq!(read.expose(), body.as_slice());
        }
    }
}
