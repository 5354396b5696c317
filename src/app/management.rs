//! Health and metrics on a loopback TCP port: nothing secret, nothing that changes anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::broker::Metrics;
use crate::decision_log::DecisionLog;

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// What the probes are told.
#[derive(Debug)]
pub struct Health {
    state: AtomicU8,
    log: DecisionLog,
    metrics: Arc<Metrics>,
}

impl Health {
    /// Not ready yet.
    pub fn new(log: DecisionLog, metrics: Arc<Metrics>) -> Self {
        Self { state: AtomicU8::new(STARTING), log, metrics }
    }

    /// Requests are answered from now on.
    pub fn ready(&self) {
        self.state.store(READY, Ordering::Relaxed);
    }

    /// No new requests from now on.
    pub fn draining(&self) {
        self.state.store(DRAINING, Ordering::Relaxed);
    }

    fn word(&self) -> (StatusCode, &'static str) {
        match self.state.load(Ordering::Relaxed) {
            READY if self.log.is_ready() => (StatusCode::OK, "ready\n"),
            READY => (StatusCode::SERVICE_UNAVAILABLE, "the decision log can't be written\n"),
            DRAINING => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        }
    }
}

/// Serves until `stop` turns true.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), std::io::Error> {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async |State(health): State<Arc<Health>>| health.word()))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.render()).into_response()
}
