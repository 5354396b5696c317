//! Endpoints, connections, streams: from the wire to the line and back.
//!
//! One task serves one connection with all its streams. A request that has begun runs to its end even
//! when the client goes away: what is in the log stays true. This file and `wire/` are the only ones
//! that name the transport.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::connections::{Connection, Connections, time_left};
use super::half_open::{HalfOpen, Shaking};
use super::line::Line;
use super::rates::Source;
use crate::identity::{Peer, Standing};
use crate::model::{Clock, limits};
use crate::wire::CloseCode;
use stream::Stream;
use waiting::Waiting;

mod challenge;
mod hanging;
mod stream;
mod waiting;

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

/// What all listeners of one port share, each on a thread of its own.
pub struct Door {
    port: Port,
    line: Arc<Line>,
    connections: Arc<Connections>,
    half_open: Arc<HalfOpen>,
    clock: Arc<dyn Clock>,
    waiting: Arc<Waiting>,
}

impl Door {
    /// A door to this line.
    pub fn new(port: Port, line: &Arc<Line>, connections: &Arc<Connections>) -> Arc<Self> {
        let (line, connections) = (Arc::clone(line), Arc::clone(connections));
        let clock = Arc::clone(&line.parts().clock);
        let waiting = Arc::new(Waiting::of_a_port());
        Arc::new(Self { port, line, connections, half_open: Arc::default(), clock, waiting })
    }
}

/// One open socket of a port.
pub struct Listener {
    endpoint: quinn::Endpoint,
    door: Arc<Door>,
}

impl Listener {
    /// Listens on a bound socket, on the runtime that it is called on.
    ///
    /// # Errors
    /// When the socket can't be used.
    pub fn open(
        socket: std::net::UdpSocket,
        config: quinn::ServerConfig,
        door: Arc<Door>,
    ) -> std::io::Result<Self> {
        let (own, runtime) = (quinn::EndpointConfig::default(), Arc::new(quinn::TokioRuntime));
        let endpoint = quinn::Endpoint::new(own, Some(config), socket, runtime)?;
        Ok(Self { endpoint, door })
    }

    /// Takes connections until `stop` turns true, then refuses new ones and gives those that live
    /// until the drain's deadline.
    pub async fn run(self, spawn: Spawn, mut stop: watch::Receiver<bool>) {
        let Door { connections, half_open, .. } = &*self.door;
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                _ = stop.wait_for(|stop| *stop) => None,
            };
            let Some(incoming) = incoming else { break };
            let source = Source::of(incoming.remote_address().ip());
            if connections.count() >= limits::CONNECTIONS_MAX {
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
            let guest = Guest(Arc::clone(&self.door));
            spawn("connection", Box::pin(guest.serve(incoming, source, shaking)));
        }
        self.drain().await;
    }

    /// New requests are refused as `draining`; what runs has until the deadline; then all is closed.
    async fn drain(self) {
        let Door { line, connections, .. } = &*self.door;
        line.drain();
        let ended = async {
            while line.running() > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        if timeout(limits::DRAIN, ended).await.is_err() {
            tracing::warn!("some requests did not end in time and are cut off");
        }
        // The last answers are on their way.
        tokio::time::sleep(FLUSH).await;
        connections.close_all(CloseCode::Draining);
        if timeout(LINGER, self.endpoint.wait_idle()).await.is_err() {
            self.endpoint.close(CloseCode::Draining.varint(), b"draining");
        }
    }
}

/// One connection being served, by the door that it came through.
struct Guest(Arc<Door>);

fn tell(ended: &std::thread::Result<()>) {
    if ended.is_err() {
        tracing::error!("a request ended in a panic; nothing was released");
    }
}

fn close(connection: &quinn::Connection, reason: CloseCode) {
    connection.close(reason.varint(), reason.word().as_bytes());
}

impl Guest {
    async fn serve(self, incoming: quinn::Incoming, source: Source, shaking: Shaking) {
        let door = &*self.0;
        let parts = door.line.parts();
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
        let now = door.clock.now();
        let caller = parts.identity.recognise(&peer, now);
        let closer = {
            let connection = connection.clone();
            Box::new(move |reason| close(&connection, reason))
        };
        let entered = door.connections.enter(peer.clone(), &caller, Some(source), closer);
        let Some(place) = entered else {
            return close(&connection, CloseCode::TooMany);
        };
        parts.metrics.connections.inc();
        // Again: the review after a revocation on another thread closes only who has entered by then.
        let now = door.clock.now();
        let caller = parts.identity.recognise(&peer, now);
        // Whoever does not count hears so on its first request, and does not stay.
        let until = match door.port {
            Port::Enrolment => Some(now.wall() + limits::APPLICANT_LINGER),
            Port::Main if caller.standing() == Standing::Live => caller.not_after(),
            Port::Main => Some(now.wall() + LINGER),
        };
        let reach = challenge::reach(&parts.posture, &caller);
        let challenges = challenge::pass_on(&connection, reach);
        tokio::pin!(challenges);
        let served = self.streams(&connection, &peer, &place.connection, until);
        tokio::select! {
            () = served => {}
            never = &mut challenges => match never {},
        }
        parts.metrics.connections.dec();
    }

    fn peer(&self, connection: &quinn::Connection) -> Option<Peer> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let identity = &self.0.line.parts().identity;
        let peer = match self.0.port {
            Port::Main => identity.peer(&chain, self.0.clock.now()),
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
        let Door { line, clock, .. } = &*self.0;
        let waiting = self.0.waiting.of_a_connection();
        let waiting = &waiting;
        let hanging = Semaphore::new(limits::PUSH_PER_CONNECTION);
        let proven = AtomicBool::new(false);
        let mut running = FuturesUnordered::new();
        let left = until.map_or(limits::DRAIN, |until| time_left(until, clock.now()));
        let expiry = tokio::time::sleep(left);
        let accept = connection.accept_bi();
        tokio::pin!(expiry, accept);
        loop {
            // In this order: those who are here already, those who come, and only when there are none
            // the end of the certificate, of which every request hears in any case.
            tokio::select! {
                biased;
                Some(ended) = running.next(), if !running.is_empty() => tell(&ended),
                stream = &mut accept => match stream {
                    Ok((send, recv)) => {
                        accept.set(connection.accept_bi());
                        let (proven, hanging) = (&proven, &hanging);
                        #[rustfmt::skip]
                        let stream = Stream {
                            line, clock, connection, peer, registered, proven, waiting, hanging,
                        };
                        // A fault in one request must not take its neighbours with it.
                        let served = std::panic::AssertUnwindSafe(stream.serve(send, recv));
                        running.push(served.catch_unwind());
                    }
                    Err(_) => break,
                },
                () = &mut expiry => {
                    let left = until.map_or(limits::DRAIN, |until| time_left(until, clock.now()));
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
