//! Counters of the line, in the OpenMetrics text format. No identity and no name is a label.

use std::sync::OnceLock;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::model::{Action, Reason};

/// What a decision is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decided {
    action: &'static str,
    reason: &'static str,
}

/// The broker's figures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: Family<Decided, Counter>,
    /// The counters of `decisions` that were used, by action and reason: looking one up by its
    /// labels costs more than counting.
    known: Box<[OnceLock<Counter>]>,
    seconds: Histogram,
    /// 1 while the seal is closed.
    pub sealed: Gauge<i64, AtomicI64>,
    /// Living connections.
    pub connections: Gauge<i64, AtomicI64>,
    /// Connections closed by a revocation, an expiry or a posture drop.
    pub closed: Counter,
    /// Handshakes refused.
    pub handshakes_refused: Counter,
    /// Frames that were no request.
    pub frames_refused: Counter,
    /// Agents' questions for changes that wait for their answer.
    pub waits: Gauge<i64, AtomicI64>,
    /// Such questions that were woken.
    pub pushes: Counter,
    /// Requests for which a device was challenged and answered in time.
    pub step_ups: Counter,
    /// … and did not.
    pub step_ups_unanswered: Counter,
    federated_domains: Gauge<i64, AtomicI64>,
    federation_oldest: Gauge<i64, AtomicI64>,
    /// Fetches of federated bundles that gave none.
    pub federation_fetches_failed: Counter,
    /// Answers of our own bundle endpoint.
    pub bundles_served: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("doorward");
        let decisions = Family::<Decided, Counter>::default();
        let seconds = Histogram::new(exponential_buckets(0.000_05, 2.0, 16));
        let (sealed, connections) = (Gauge::default(), Gauge::default());
        let (closed, handshakes_refused, frames_refused) =
            (Counter::default(), Counter::default(), Counter::default());
        let (waits, pushes) = (Gauge::default(), Counter::default());
        registry.register("waits", "Agents that wait for changes of their entries", waits.clone());
        registry.register("pushes", "Waits that were woken", pushes.clone());
        registry.register("decisions", "Requests decided, by action and reason", decisions.clone());
        registry.register("request_seconds", "From head read to outcome", seconds.clone());
        registry.register("sealed", "1 while the seal is closed", sealed.clone());
        registry.register("connections", "Living connections", connections.clone());
        registry.register("connections_closed", "Closed by the broker", closed.clone());
        registry.register("handshakes_refused", "Refused handshakes", handshakes_refused.clone());
        registry.register("frames_refused", "Frames that were no request", frames_refused.clone());
        let count = Action::ALL.len() * Reason::ALL.len();
        let known = std::iter::repeat_with(OnceLock::new).take(count).collect();
        let (federated_domains, federation_oldest) = (Gauge::default(), Gauge::default());
        let (federation_fetches_failed, bundles_served) = (Counter::default(), Counter::default());
        registry.register("federated_domains", "Relationships", federated_domains.clone());
        registry.register(
            "federation_oldest_bundle_seconds",
            "Age of the federated bundle that was fetched longest ago",
            federation_oldest.clone(),
        );
        registry.register(
            "federation_fetches_failed",
            "Fetches of federated bundles that gave none",
            federation_fetches_failed.clone(),
        );
        registry.register("bundles_served", "Our own bundle", bundles_served.clone());
        let (step_ups, step_ups_unanswered) = (Counter::default(), Counter::default());
        registry.register("step_ups", "Requests that waited for evidence", step_ups.clone());
        registry.register(
            "step_ups_unanswered",
            "Requests that waited for evidence in vain",
            step_ups_unanswered.clone(),
        );
        Self {
            registry,
            decisions,
            known,
            seconds,
            sealed,
            connections,
            closed,
            handshakes_refused,
            frames_refused,
            waits,
            pushes,
            step_ups,
            step_ups_unanswered,
            federated_domains,
            federation_oldest,
            federation_fetches_failed,
            bundles_served,
        }
    }
}

impl Metrics {
    /// One request, decided.
    pub fn decided(&self, action: Action, reason: Reason, seconds: f64) {
        let counter = || {
            let decided = Decided { action: action.as_str(), reason: reason.code() };
            self.decisions.get_or_create(&decided).clone()
        };
        let place = action as usize * Reason::ALL.len() + reason as usize;
        match self.known.get(place) {
            Some(known) => known.get_or_init(counter).inc(),
            None => counter().inc(),
        };
        self.seconds.observe(seconds);
    }

    /// How many domains are federated with, and the age of the oldest bundle in seconds.
    pub fn federated(&self, domains: u64, oldest: u64) {
        self.federated_domains.set(i64::try_from(domains).unwrap_or(i64::MAX));
        self.federation_oldest.set(i64::try_from(oldest).unwrap_or(i64::MAX));
    }

    /// The text that a scraper reads.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String can't fail; an empty page would only mean a blind scraper.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
