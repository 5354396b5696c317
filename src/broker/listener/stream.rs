//! One stream: a request's bytes in, an answer's bytes out. What was opened for it is wiped here,
//! whether the client takes it or not.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::error::Elapsed;

use super::hanging::may_wait;
use super::waiting::WaitingHere;
use crate::broker::connections::Connection;
use crate::broker::line::Line;
use crate::broker::outcome::Body;
use crate::identity::Peer;
use crate::model::{
    Ask, ClientRef, Clock, Code, EnrolBy, Failure, Reason, Refusal, Released, RequestId,
    SecretValue, Shown, limits,
};
use crate::posture::Challenge;
use crate::posture::tpm::Credential;
use crate::wire::{self, Ahead, CloseCode, FrameError, Opening, Reply, SealedCredential};

/// One request being served.
pub(super) struct Stream<'a> {
    pub(super) line: &'a Arc<Line>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) connection: &'a quinn::Connection,
    pub(super) peer: &'a Peer,
    /// The connection's entry among the living ones.
    pub(super) registered: &'a Connection,
    /// Something was released on this connection.
    pub(super) proven: &'a AtomicBool,
    /// Room for answers that are not taken at once.
    pub(super) waiting: &'a WaitingHere,
    /// Room for questions that wait for their answer.
    pub(super) hanging: &'a Semaphore,
}

impl Stream<'_> {
    /// Reads, asks the line, answers. Runs to its end whatever the client does.
    pub(super) async fn serve(self, mut send: quinn::SendStream, recv: quinn::RecvStream) {
        let mut recv = Ahead::new(recv);
        let (client, ask, len) = match self.opening(&mut recv).await {
            Ok(opening) => opening,
            Err((code, hint)) => {
                self.line.parts().metrics.frames_refused.inc();
                let _ = recv.stream().stop(CloseCode::Protocol.varint());
                return Box::pin(self.refuse(&mut send, code, hint)).await;
            }
        };
        if may_wait(&ask) {
            return Box::pin(self.hang(send, recv, client, ask)).await;
        }
        let _running = self.line.begin();
        let challenge = match &*ask {
            Ask::Report { .. } => match Box::pin(self.challenge(&mut send)).await {
                Some(challenge) => Some(challenge),
                None => return,
            },
            _ => None,
        };
        let exporter = self.exporter(&ask);
        let is_by_tpm = matches!(*ask, Ask::Enroll { by: Some(EnrolBy::Tpm), .. });
        let (request, outcome) = {
            let send = is_by_tpm.then_some(&mut send);
            let mut body = Incoming { recv, len, challenge, exporter, send, shown: None };
            self.line.answer(self.peer, Some(self.registered), client, ask, &mut body).await
        };
        self.reply(&mut send, request, outcome).await;
    }

    /// Sends what came of a request.
    pub(super) async fn reply(
        &self,
        send: &mut quinn::SendStream,
        request: RequestId,
        outcome: Result<Released, Refusal>,
    ) {
        let (reply, value) = match outcome {
            Ok(released) => {
                self.prove();
                (Reply::Answer { request, answer: released.answer }, released.body)
            }
            Err(refusal) => (Reply::Refusal(refusal), SecretValue::empty()),
        };
        self.write(send, &reply, value).await;
    }

    /// Something was allowed on this connection: it gets its streams.
    pub(super) fn prove(&self) {
        if !self.proven.swap(true, Ordering::Relaxed) {
            self.connection.set_max_concurrent_bi_streams(limits::STREAMS_PROVEN.into());
        }
    }

    /// The head of the request, and the length of the body that follows.
    async fn opening(
        &self,
        recv: &mut Ahead<quinn::RecvStream>,
    ) -> Result<(Option<ClientRef>, Arc<Ask>, usize), (Code, String)> {
        let reading = pin!(wire::read_opening(recv));
        match within(limits::HEAD_TIMEOUT, reading).await {
            Ok(Ok((Opening { client, ask }, len))) => Ok((client, Arc::new(ask), len)),
            Ok(Err(error)) => Err(error.code()),
            Err(_) => Err((Code::Invalid, "the request's head did not arrive in time".to_owned())),
        }
    }

    /// The nonce goes out; what comes back is bound to it and to this very connection.
    async fn challenge(&self, send: &mut quinn::SendStream) -> Option<Challenge> {
        let challenge = Challenge::new(self.clock.now(), |nonce| {
            let mut exporter = [0; 32];
            let label = wire::EXPORTER_LABEL;
            match self.connection.export_keying_material(&mut exporter, label, nonce) {
                Ok(()) => exporter,
                // Random bytes that nobody knows: the evidence then simply does not fit.
                Err(_) => {
                    let _ = aws_lc_rs::rand::fill(&mut exporter);
                    exporter
                }
            }
        });
        let reply = Reply::Nonce(wire::encode_nonce(challenge.nonce()));
        let written = pin!(wire::write_reply(send, &reply, &[]));
        within(limits::WRITE_TIMEOUT, written).await.ok()?.ok()?;
        Some(challenge)
    }

    /// What the proof of an applicant is bound to; without one, no such proof holds.
    fn exporter(&self, ask: &Ask) -> Option<[u8; 32]> {
        if !matches!(ask, Ask::Enroll { by: Some(EnrolBy::X509 | EnrolBy::Tpm), .. }) {
            return None;
        }
        let (mut value, label) = ([0; 32], wire::EXPORTER_ENROLMENT);
        self.connection.export_keying_material(&mut value, label, b"").ok().map(|()| value)
    }

    async fn refuse(&self, send: &mut quinn::SendStream, code: Code, hint: String) {
        let request = RequestId::new(self.clock.now());
        let reason = if code == Code::TooLarge { Reason::TooLarge } else { Reason::Invalid };
        let refusal = Refusal { request, code, reason, hint: Some(hint) };
        self.write(send, &Reply::Refusal(refusal), SecretValue::empty()).await;
    }

    async fn write(&self, send: &mut quinn::SendStream, reply: &Reply, body: SecretValue) {
        let limit = for_body(limits::WRITE_TIMEOUT, body.len());
        let (head, body) = match head_of(reply, body.len()) {
            Ok(head) => (head, body),
            Err(refusal) => (refusal, SecretValue::empty()),
        };
        let sent = {
            let length = head.len() + body.len();
            let mut sending = pin!(wire::send_frame(send, &head, body.expose()));
            match at_once(sending.as_mut()).await {
                Some(sent) => Some(sent),
                None => match self.waiting.room(length) {
                    Some(_room) => tokio::time::timeout(limit, sending).await.ok(),
                    None => None,
                },
            }
        };
        drop(body); // and with it what it held, before the client can know that it has all
        match sent {
            Some(Ok(())) => {
                let _ = send.finish();
            }
            // The client went away or does not read: the answer is wiped, the stream is dropped.
            Some(Err(_)) | None => {
                let _ = send.reset(CloseCode::Protocol.varint());
            }
        }
    }
}

/// How long a body of this length may take, where an empty one may take `least`.
fn for_body(least: Duration, length: usize) -> Duration {
    least + limits::TIMEOUT_MIB.saturating_mul(u32::try_from(length >> 20).unwrap_or(u32::MAX))
}

/// The output of what is ready at once, as nearly everything is.
async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Waits no longer than `limit`. What is ready at once costs no timer.
async fn within<F: Future>(limit: Duration, mut future: Pin<&mut F>) -> Result<F::Output, Elapsed> {
    match at_once(future.as_mut()).await {
        Some(output) => Ok(output),
        None => tokio::time::timeout(limit, future).await,
    }
}

/// The head of a reply; or, of one that is over a limit, that of the refusal in its place.
fn head_of(reply: &Reply, body: usize) -> Result<Vec<u8>, Vec<u8>> {
    let fault = match wire::reply_head(reply, body) {
        Ok(head) => return Ok(head),
        Err(fault) => fault,
    };
    let refusal = match reply {
        Reply::Answer { request, .. } => {
            tracing::error!(%request, %fault, "an answer was too large and was refused instead");
            let hint = Some("the answer is too large to be sent; ask for less at once".to_owned());
            let (code, reason) = (Code::TooLarge, Reason::TooLarge);
            Refusal { request: *request, code, reason, hint }
        }
        // Its words alone can be too many: faults of a whole policy.
        Reply::Refusal(refusal) => Refusal { hint: None, ..refusal.clone() },
        // Of one length, which fits.
        Reply::Nonce(_) | Reply::Credential(_) => return Err(Vec::new()),
    };
    Err(wire::reply_head(&Reply::Refusal(refusal), 0).unwrap_or_default())
}

/// A request's body, still on the wire.
pub(super) struct Incoming<'a> {
    recv: Ahead<quinn::RecvStream>,
    len: usize,
    challenge: Option<Challenge>,
    exporter: Option<[u8; 32]>,
    /// Where a credential goes; only an applicant with a TPM gets one, and only once.
    send: Option<&'a mut quinn::SendStream>,
    /// What its proof came to.
    shown: Option<Shown>,
}

impl Incoming<'_> {
    /// Of an ask that brings nothing; its stream must end all the same.
    pub(super) fn none(recv: Ahead<quinn::RecvStream>) -> Self {
        Self { recv, len: 0, challenge: None, exporter: None, send: None, shown: None }
    }
}

impl Body for Incoming<'_> {
    async fn read(&mut self) -> Result<SecretValue, Failure> {
        let length = self.len;
        let read = pin!(async {
            match (self.challenge.is_some(), self.send.is_some()) {
                (true, _) => Box::pin(wire::read_evidence(&mut self.recv)).await,
                (_, true) => Box::pin(wire::read_part(&mut self.recv, self.len)).await,
                _ => wire::read_body(&mut self.recv, self.len).await,
            }
        });
        match within(for_body(limits::BODY_TIMEOUT, length), read).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error)) => Err(fault_of(&error)),
            Err(_) => Err(Failure::invalid("the request's body did not arrive in time")),
        }
    }

    fn challenge(&self) -> Option<&Challenge> {
        self.challenge.as_ref()
    }

    fn exporter(&self) -> Option<&[u8; 32]> {
        self.exporter.as_ref()
    }

    async fn opened(&mut self, credential: &Credential) -> Option<SecretValue> {
        let send = self.send.take()?;
        let reply = Reply::Credential(SealedCredential::from(credential));
        let exchange = Box::pin(async {
            wire::write_reply(send, &reply, &[]).await.ok()?;
            wire::read_opened(&mut self.recv).await.ok()
        });
        tokio::time::timeout(limits::TPM_OPEN_TIMEOUT, exchange).await.ok()?
    }

    fn shown(&mut self) -> Option<&mut Option<Shown>> {
        Some(&mut self.shown)
    }
}

fn fault_of(error: &FrameError) -> Failure {
    let (code, hint) = error.code();
    Failure { code, reason: error.reason(), hint: Some(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Answer;

    #[test]
    fn an_answer_over_a_limit_is_refused_in_words() {
        let request = RequestId::parse("0198c0de-0000-7000-8000-000000000001").unwrap();
        let answered = |length: usize, body: usize| {
            let answer = Answer::Report { value: "a".repeat(length).into() };
            let head = match head_of(&Reply::Answer { request, answer }, body) {
                Ok(head) | Err(head) => head,
            };
            wire::parse_reply(&head).unwrap()
        };
        assert!(matches!(answered(10, 10), Reply::Answer { .. }));
        for (length, body) in [(limits::REPLY_HEAD_MAX, 0), (10, limits::BODY_MAX + 1)] {
            match answered(length, body) {
                Reply::Refusal(refusal) => {
                    assert_eq!(refusal.request, request);
                    assert_eq!((refusal.code, refusal.reason), (Code::TooLarge, Reason::TooLarge));
                }
                other => panic!("{other:?}"),
            }
        }
        let (code, reason) = (Code::Invalid, Reason::Invalid);
        let hint = Some("a".repeat(limits::REPLY_HEAD_MAX));
        let head = head_of(&Reply::Refusal(Refusal { request, code, reason, hint }), 0);
        let Ok(Reply::Refusal(told)) = wire::parse_reply(&head.unwrap_err()) else {
            panic!("no refusal")
        };
        assert_eq!((told.code, told.reason, told.hint), (code, reason, None));
    }
}
