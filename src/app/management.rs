//! Health, metrics and the public keys of tokens on a loopback TCP port: nothing secret, nothing that
//! changes anything.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::oidc::Published;
use super::supervise::Supervisor;
use crate::broker::Metrics;
use crate::decision_log::DecisionLog;
use crate::model::limits::JWKS_FRESH;
use crate::wire::{OnlyHttp1, SealState};

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;
const SEALED: u8 = 3;

/// What the probes are told.
#[derive(Debug, Default)]
pub struct Health {
    state: AtomicU8,
    log: OnceLock<DecisionLog>,
    published: OnceLock<Published>,
    metrics: Arc<Metrics>,
}

impl Health {
    /// The seal waits for its passphrase.
    pub fn sealed(&self) {
        self.set(SEALED);
    }

    /// The seal is open; the start goes on.
    pub fn starting(&self) {
        self.set(STARTING);
    }

    /// The log that must be writable for the broker to be ready.
    pub fn rests_on(&self, log: DecisionLog) {
        let _ = self.log.set(log);
    }

    /// What is told to everybody from now on.
    pub fn publishes(&self, published: Published) {
        let _ = self.published.set(published);
    }

    /// Requests are answered from now on.
    pub fn ready(&self) {
        self.set(READY);
    }

    /// No new requests from now on.
    pub fn draining(&self) {
        self.set(DRAINING);
    }

    /// The figures of this process.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// How the seal stands.
    pub fn seal(&self) -> SealState {
        match self.state.load(Ordering::Relaxed) {
            SEALED => SealState::Sealed,
            STARTING => SealState::Opening,
            _ => SealState::Open,
        }
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
        self.metrics.sealed.set(i64::from(state == SEALED));
    }

    fn alive(&self) -> &'static str {
        if self.seal() == SealState::Sealed { "sealed\n" } else { "ok\n" }
    }

    fn word(&self) -> (StatusCode, &'static str) {
        let writable = || self.log.get().is_some_and(DecisionLog::is_ready);
        match self.state.load(Ordering::Relaxed) {
            READY if writable() => (StatusCode::OK, "ready\n"),
            READY => (StatusCode::SERVICE_UNAVAILABLE, "the decision log can't be written\n"),
            DRAINING => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            SEALED => (StatusCode::SERVICE_UNAVAILABLE, "sealed\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        }
    }
}

/// Opens the port and serves it until the process stops; gives the address.
///
/// # Errors
/// When the port can't be had.
pub async fn open(
    address: SocketAddr,
    health: Arc<Health>,
    supervisor: &Supervisor,
) -> Result<SocketAddr, std::io::Error> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    supervisor.go_on("management", serve(listener, health, supervisor.stopping()));
    Ok(address)
}

async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), std::io::Error> {
    let router = Router::new()
        .route("/healthz", get(async |State(health): State<Arc<Health>>| health.alive()))
        .route("/readyz", get(async |State(health): State<Arc<Health>>| health.word()))
        .route("/metrics", get(metrics))
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/keys", get(keys))
        .with_state(health);
    axum::serve(Port(listener), router)
        .with_graceful_shutdown(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

/// The port, for HTTP/1.1 alone.
struct Port(TcpListener);

impl Listener for Port {
    type Io = OnlyHttp1<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        (OnlyHttp1::new(stream), address)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn discovery(State(health): State<Arc<Health>>) -> Response {
    let Some(published) = health.published.get() else { return not_yet() };
    match published.discovery() {
        Some(document) => json(document.into_bytes()),
        None => {
            let told = "no issuer: set `oidc_issuer` in `[advertise]` of broker.toml to the https \
                        address that verifiers reach this port by\n";
            (StatusCode::NOT_FOUND, told).into_response()
        }
    }
}

async fn keys(State(health): State<Arc<Health>>) -> Response {
    health.published.get().and_then(Published::keys).map_or_else(not_yet, json)
}

fn not_yet() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
}

fn json(text: Vec<u8>) -> Response {
    let fresh = format!("public, max-age={}", JWKS_FRESH.as_secs());
    let kind = (header::CONTENT_TYPE, "application/json".to_owned());
    ([kind, (header::CACHE_CONTROL, fresh)], text).into_response()
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.render()).into_response()
}
