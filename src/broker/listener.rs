//! Endpoints, connections, streams: from the wire to the line and back.
//!
//! One task serves one connection with all its streams. A request that has begun runs to its end even
//! when the client goes away: what is in the log stays true. This file and `wire/` are the only ones
//! that name the transport.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::timeout;

use super::connections::{Connection, Connections, time_left};
use super::half_open::{HalfOpen, Shaking};
use super::line::Line;
use super::outcome::Body;
use super::rates::Source;
use crate::identity::{Peer, Standing};
use crate::model::{Ask, Clock, Code, Failure, Reason, Refusal, RequestId, SecretValue, limits};
use crate::posture::Challenge;
use crate::wire::{self, CloseCode, FrameError, Opening, Reply};

/// How long a connection of somebody who does not count may stay.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);

/// How long the last answers of a drain have to leave.
const FLUSH: std::time::Duration = std::time::Duration::from_millis(100);

/// Starts a named task; the supervisor's, so that nothing here spawns by itself.
pub type Spawn = Arc<dyn Fn(&'static str, Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync>;

/// Which door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Holders of SVIDs.
    Main,
    /// Applicants.
    Enrolment,
}

/// Why a port can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours, or not allowed.
    #[error("can't listen on {address} (UDP)")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
}

/// One open port.
pub struct Listener {
    endpoint: quinn::Endpoint,
    port: Port,
    line: Arc<Line>,
    connections: Arc<Connections>,
    clock: Arc<dyn Clock>,
}

impl Listener {
    /// Opens a UDP port.
    ///
    /// # Errors
    /// When the address can't be had.
    pub fn open(
        address: SocketAddr,
        config: quinn::ServerConfig,
        port: Port,
        line: Arc<Line>,
        connections: Arc<Connections>,
    ) -> Result<Self, ListenError> {
        let fault = |source| ListenError::Bind { address, source };
        let socket = std::net::UdpSocket::bind(address).map_err(fault)?;
        let endpoint = quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            Some(config),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(fault)?;
        let clock = Arc::clone(&line.parts().clock);
        Ok(Self { endpoint, port, line, connections, clock })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Takes connections until `stop` turns true, then refuses new ones and gives those that live
    /// until the drain's deadline.
    pub async fn run(self, spawn: Spawn, mut stop: watch::Receiver<bool>) {
        let half_open = Arc::new(HalfOpen::default());
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                _ = stop.wait_for(|stop| *stop) => None,
            };
            let Some(incoming) = incoming else { break };
            let source = Source::of(incoming.remote_address().ip());
            if self.connections.count() >= limits::CONNECTIONS_MAX {
                incoming.refuse();
                continue;
            }
            if half_open.count() > limits::RETRY_ABOVE && incoming.may_retry() {
                // An address that proves itself costs the stranger a round trip, us nothing.
                let _ = incoming.retry();
                continue;
            }
            let Some(shaking) = half_open.enter(source) else {
                incoming.refuse();
                continue;
            };
            let guest = Guest {
                port: self.port,
                line: Arc::clone(&self.line),
                connections: Arc::clone(&self.connections),
                clock: Arc::clone(&self.clock),
            };
            spawn("connection", Box::pin(guest.serve(incoming, source, shaking)));
        }
        self.drain().await;
    }

    /// New requests are refused as `draining`; what runs has until the deadline; then all is closed.
    async fn drain(self) {
        self.line.drain();
        let ended = async {
            while self.line.running() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        if timeout(limits::DRAIN, ended).await.is_err() {
            tracing::warn!("some requests did not end in time and are cut off");
        }
        // The last answers are on their way.
        tokio::time::sleep(FLUSH).await;
        self.connections.close_all(CloseCode::Draining);
        if timeout(LINGER, self.endpoint.wait_idle()).await.is_err() {
            self.endpoint.close(CloseCode::Draining.varint(), b"draining");
        }
    }
}

/// One connection being served.
struct Guest {
    port: Port,
    line: Arc<Line>,
    connections: Arc<Connections>,
    clock: Arc<dyn Clock>,
}

fn close(connection: &quinn::Connection, reason: CloseCode) {
    connection.close(reason.varint(), reason.word().as_bytes());
}

impl Guest {
    async fn serve(self, incoming: quinn::Incoming, source: Source, shaking: Shaking) {
        let parts = self.line.parts();
        let refused = || {
            parts.metrics.handshakes_refused.inc();
            parts.log.count(&source.to_string(), "refused handshakes");
        };
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => return tracing::debug!(%error, "a handshake could not begin"),
        };
        let connection = match timeout(limits::HEAD_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                refused();
                return tracing::debug!(%error, "a handshake was refused");
            }
            Err(_) => return refused(),
        };
        drop(shaking);
        let Some(peer) = self.peer(&connection) else {
            refused();
            return close(&connection, CloseCode::Protocol);
        };
        let now = self.clock.now();
        let caller = parts.identity.recognise(&peer, now);
        let closer = {
            let connection = connection.clone();
            Box::new(move |reason| close(&connection, reason))
        };
        let entered = self.connections.enter(peer.clone(), &caller, Some(source), closer);
        let Some(place) = entered else {
            return close(&connection, CloseCode::TooMany);
        };
        parts.metrics.connections.inc();
        // Whoever does not count hears so on its first request, and does not stay.
        let until = match self.port {
            Port::Enrolment => Some(now.wall() + limits::APPLICANT_LINGER),
            Port::Main if caller.standing() == Standing::Live => caller.not_after(),
            Port::Main => Some(now.wall() + LINGER),
        };
        self.streams(&connection, &peer, &place.connection, until).await;
        parts.metrics.connections.dec();
    }

    fn peer(&self, connection: &quinn::Connection) -> Option<Peer> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let identity = &self.line.parts().identity;
        let peer = match self.port {
            Port::Main => identity.peer(&chain, self.clock.now()),
            Port::Enrolment => identity.applicant(&chain),
        };
        peer.map_err(|error| tracing::debug!(%error, "a peer without a usable certificate")).ok()
    }

    async fn streams(
        &self,
        connection: &quinn::Connection,
        peer: &Peer,
        registered: &Connection,
        until: Option<time::OffsetDateTime>,
    ) {
        let proven = AtomicBool::new(false);
        let mut running = FuturesUnordered::new();
        let left = until.map_or(limits::DRAIN, |until| time_left(until, self.clock.now()));
        let expiry = tokio::time::sleep(left);
        tokio::pin!(expiry);
        loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let stream = Stream {
                            guest: self, connection, peer, registered, proven: &proven,
                        };
                        // A fault in one request must not take its neighbours with it.
                        let served = std::panic::AssertUnwindSafe(stream.serve(send, recv));
                        running.push(served.catch_unwind());
                    }
                    Err(_) => break,
                },
                Some(ended) = running.next(), if !running.is_empty() => {
                    if ended.is_err() {
                        tracing::error!("a request ended in a panic; nothing was released");
                    }
                }
                () = &mut expiry => {
                    let left = until.map_or(limits::DRAIN, |until| time_left(until, self.clock.now()));
                    if left.is_zero() || until.is_none() {
                        close(connection, CloseCode::Expired);
                        break;
                    }
                    expiry.as_mut().reset(tokio::time::Instant::now() + left);
                }
            }
        }
        while running.next().await.is_some() {}
    }
}

/// One request being served.
struct Stream<'a> {
    guest: &'a Guest,
    connection: &'a quinn::Connection,
    peer: &'a Peer,
    registered: &'a Connection,
    proven: &'a AtomicBool,
}

impl Stream<'_> {
    async fn serve(self, mut send: quinn::SendStream, mut recv: quinn::RecvStream) {
        let opening = match timeout(limits::HEAD_TIMEOUT, wire::read_opening(&mut recv)).await {
            Ok(Ok(opening)) => Ok(opening),
            Ok(Err(error)) => Err(error.code()),
            Err(_) => Err((Code::Invalid, "the request's head did not arrive in time".to_owned())),
        };
        let (Opening { client, ask }, len) = match opening {
            Ok(opening) => opening,
            Err((code, hint)) => {
                self.guest.line.parts().metrics.frames_refused.inc();
                let _ = recv.stop(CloseCode::Protocol.varint());
                return self.refuse(&mut send, code, hint).await;
            }
        };
        let _running = self.guest.line.begin();
        let challenge = match &ask {
            Ask::Report { .. } => match Box::pin(self.challenge(&mut send)).await {
                Some(challenge) => Some(challenge),
                None => return,
            },
            _ => None,
        };
        let body = Incoming { recv, len, challenge };
        let line = &self.guest.line;
        let (request, outcome) =
            line.answer(self.peer, Some(self.registered), client, ask, body).await;
        let (reply, value) = match outcome {
            Ok(released) => {
                if !self.proven.swap(true, Ordering::Relaxed) {
                    self.connection.set_max_concurrent_bi_streams(limits::STREAMS_PROVEN.into());
                }
                (Reply::Answer { request, answer: released.answer }, released.body)
            }
            Err(refusal) => (Reply::Refusal(refusal), SecretValue::empty()),
        };
        self.write(&mut send, &reply, value).await;
    }

    /// The nonce goes out; what comes back is bound to it and to this very connection.
    async fn challenge(&self, send: &mut quinn::SendStream) -> Option<Challenge> {
        let challenge = Challenge::new(self.guest.clock.now(), |nonce| {
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
        let written = wire::write_reply(send, &reply, &[]);
        timeout(limits::WRITE_TIMEOUT, written).await.ok()?.ok()?;
        Some(challenge)
    }

    async fn refuse(&self, send: &mut quinn::SendStream, code: Code, hint: String) {
        let request = RequestId::new(self.guest.clock.now());
        let reason = if code == Code::TooLarge { Reason::TooLarge } else { Reason::Invalid };
        let refusal = Refusal { request, code, reason, hint: Some(hint) };
        self.write(send, &Reply::Refusal(refusal), SecretValue::empty()).await;
    }

    async fn write(&self, send: &mut quinn::SendStream, reply: &Reply, body: SecretValue) {
        let mib = u32::try_from(body.len() >> 20).unwrap_or(u32::MAX);
        let limit = limits::WRITE_TIMEOUT + limits::WRITE_TIMEOUT_MIB.saturating_mul(mib);
        let sent = timeout(limit, send_reply(send, reply, body.expose())).await;
        drop(body); // and with it what it held, before the client can know that it has all
        match sent {
            Ok(Ok(())) => {
                let _ = send.finish();
            }
            // The client went away or does not read: the answer is wiped, the stream is dropped.
            Ok(Err(_)) | Err(_) => {
                let _ = send.reset(CloseCode::Protocol.varint());
            }
        }
    }
}

/// Writes a reply; in place of an answer over a limit, of which nothing was written, a refusal.
async fn send_reply<W: tokio::io::AsyncWrite + Unpin>(
    to: &mut W,
    reply: &Reply,
    body: &[u8],
) -> Result<(), FrameError> {
    let (request, fault) = match (wire::write_reply(to, reply, body).await, reply) {
        (
            Err(fault @ (FrameError::HeadTooLarge { .. } | FrameError::BodyTooLarge { .. })),
            Reply::Answer { request, .. },
        ) => (*request, fault),
        (written, _) => return written,
    };
    tracing::error!(%request, %fault, "an answer was too large and was refused instead");
    let hint = Some("the answer is too large to be sent; ask for less at once".to_owned());
    let (code, reason) = (Code::TooLarge, Reason::TooLarge);
    let refusal = Reply::Refusal(Refusal { request, code, reason, hint });
    wire::write_reply(to, &refusal, &[]).await
}

/// A request's body, still on the wire.
struct Incoming {
    recv: quinn::RecvStream,
    len: usize,
    challenge: Option<Challenge>,
}

impl Body for Incoming {
    async fn read(&mut self) -> Result<SecretValue, Failure> {
        let read = async {
            if self.challenge.is_some() {
                wire::read_evidence(&mut self.recv).await
            } else {
                wire::read_body(&mut self.recv, self.len).await
            }
        };
        match timeout(limits::BODY_TIMEOUT, read).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error)) => Err(fault_of(&error)),
            Err(_) => Err(Failure::invalid("the request's body did not arrive in time")),
        }
    }

    fn challenge(&self) -> Option<&Challenge> {
        self.challenge.as_ref()
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

    #[tokio::test]
    async fn an_answer_over_a_limit_is_refused_in_words() {
        let request = RequestId::parse("0198c0de-0000-7000-8000-000000000001").unwrap();
        let answered = async |length: usize, body: usize| {
            let answer = Answer::Report { value: "a".repeat(length).into() };
            let (mut sent, body) = (Vec::new(), vec![0; body]);
            let reply = Reply::Answer { request, answer };
            send_reply(&mut sent, &reply, &body).await.unwrap();
            let mut sent = sent.as_slice();
            let (reply, _) = wire::read_reply(&mut sent).await.unwrap();
            assert!(sent.is_empty(), "one reply and nothing before it");
            reply
        };
        assert!(matches!(answered(10, 10).await, Reply::Answer { .. }));
        for (length, body) in [(limits::REPLY_HEAD_MAX, 0), (10, limits::BODY_MAX + 1)] {
            match answered(length, body).await {
                Reply::Refusal(refusal) => {
                    assert_eq!(refusal.request, request);
                    assert_eq!((refusal.code, refusal.reason), (Code::TooLarge, Reason::TooLarge));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
