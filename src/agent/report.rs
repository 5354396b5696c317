//! Reporting the device's evidence on the agent's own connection.
//!
//! The agent signs only for a connection that it opened itself: the exporter value comes from the
//! client, never from anybody's request. When to report is a pure question of times and digests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::keys::DeviceKey;
use super::shared::Shared;
use crate::model::limits::CHALLENGE_GAP;
use crate::model::{Answer, Clock, Digest, SpiffeId};
use crate::posture::{EvidenceKey, Facts};
use crate::wire::{Client, ClientError};

/// Facts are collected this often; a change is reported at once.
const LOOK: Duration = Duration::from_secs(1);
/// Collecting takes milliseconds; a hung file system must not end the reports for ever.
const COLLECT_MAX: Duration = Duration::from_secs(10);
/// One report with its challenge.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);
/// A session key signs for so long; the broker stops listening to it after an hour.
const KEY_LIFE: Duration = Duration::from_secs(50 * 60);
/// Bounds of the period that the broker asks for: it can neither flood itself nor fall silent.
const PERIOD: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(600));
/// Waits between failed reports: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Why one report failed. The broker's view of the device runs out by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReportError {
    /// The facts could not be collected.
    #[error("the device's facts could not be collected")]
    Collect,
    /// No session key.
    #[error("no session key for evidence could be made")]
    Key,
    /// The broker did not take it.
    #[error("the broker took no report: {0}")]
    Client(#[from] ClientError),
    /// No answer in time.
    #[error("the broker gave no answer to a report within {} s", EXCHANGE_MAX.as_secs())]
    Late,
    /// Another answer than one to a report.
    #[error("the broker answered a report with something else")]
    Answer,
}

/// When to report next.
#[derive(Debug, Clone, Copy, Default)]
struct Rhythm {
    /// Facts of the last report that was taken.
    digest: Option<Digest>,
    /// Boot time at which the next one is due.
    due: Duration,
    /// Reports that failed since.
    failures: u32,
}

impl Rhythm {
    /// Whether these facts are to be reported at this boot time.
    fn wants(&self, digest: Digest, boot: Duration) -> bool {
        boot >= self.due || (self.failures == 0 && self.digest != Some(digest))
    }

    /// A report was taken; `next` is the broker's wish, `chance` spreads the fleet by ± 10 %.
    fn taken(&mut self, digest: Digest, boot: Duration, next: Duration, chance: u8) {
        let period = next.clamp(PERIOD.0, PERIOD.1);
        let tenth = period / 10;
        let spread = (tenth * 2).mul_f32(f32::from(chance) / 255.0);
        *self = Self { digest: Some(digest), due: boot + period - tenth + spread, failures: 0 };
    }

    /// A report failed: wait twice as long as the last time.
    fn failed(&mut self, boot: Duration) {
        let wait = RETRY.0.saturating_mul(1 << self.failures.min(5)).min(RETRY.1);
        self.failures = self.failures.saturating_add(1);
        self.due = boot + wait;
    }
}

/// Reports for one device; one per connection.
pub(super) struct Reporter {
    device: Arc<DeviceKey>,
    broker: SpiffeId,
    boot_id: String,
    clock: Arc<dyn Clock>,
    key: Option<(EvidenceKey, Duration)>,
    seq: u64,
}

impl Reporter {
    pub(super) fn new(device: Arc<DeviceKey>, broker: SpiffeId, clock: Arc<dyn Clock>) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = boot_id.unwrap_or_default().trim().to_owned();
        Self { device, broker, boot_id, clock, key: None, seq: 0 }
    }

    /// Reports as long as it is let.
    pub(super) async fn run(mut self, client: &Client, shared: &Shared) -> Infallible {
        let mut rhythm = Rhythm::default();
        let (mut challenged, mut rested) = (false, Instant::now());
        // One at a time, over all rounds: what has begun to arrive is not lost.
        let challenge = client.challenged();
        tokio::pin!(challenge);
        loop {
            match self.look(client, &mut rhythm, challenged).await {
                Ok(None) => {}
                Ok(Some(posture)) => shared.reported(posture, self.clock.now().wall()),
                Err(why) => {
                    tracing::warn!(error = %why, "no report");
                    shared.failed(why.to_string());
                    rhythm.failed(self.clock.now().boot());
                }
            }
            if challenged {
                rested = Instant::now() + CHALLENGE_GAP;
                challenge.set(client.challenged());
            }
            let ring = async {
                sleep_until(rested).await;
                challenge.as_mut().await;
            };
            challenged = tokio::time::timeout(LOOK, ring).await.is_ok();
        }
    }

    /// Collects once, and reports if it is time or the broker asks for it. Gives the device's posture if it was reported.
    async fn look(
        &mut self,
        client: &Client,
        rhythm: &mut Rhythm,
        challenged: bool,
    ) -> Result<Option<String>, ReportError> {
        let collecting = tokio::task::spawn_blocking(super::facts::collect);
        let facts = match tokio::time::timeout(COLLECT_MAX, collecting).await {
            Ok(Ok(facts)) => facts,
            _ => return Err(ReportError::Collect),
        };
        let digest = facts.digest();
        if !challenged && !rhythm.wants(digest, self.clock.now().boot()) {
            return Ok(None);
        }
        let (posture, next) = self.report(client, &facts, digest).await?;
        let mut chance = [0];
        let _ = aws_lc_rs::rand::fill(&mut chance); // without randomness merely unspread
        rhythm.taken(digest, self.clock.now().boot(), next, chance[0]);
        Ok(Some(posture))
    }

    async fn report(
        &mut self,
        client: &Client,
        facts: &Facts,
        digest: Digest,
    ) -> Result<(String, Duration), ReportError> {
        let now = self.clock.now();
        let key = match self.key.take() {
            Some((key, made)) if now.since(made) < KEY_LIFE => (key, made),
            _ => (EvidenceKey::generate().map_err(|_| ReportError::Key)?, now.boot()),
        };
        let key = &self.key.insert(key).0;
        self.seq = self.seq.saturating_add(1);
        let (device, broker) = (&self.device, self.broker.as_str());
        let sign = |nonce: &[u8; 32], exporter: &[u8; 32]| {
            // No signature: the broker refuses the report, which is what it should do then.
            let endorse = |message: &[u8]| device.sign_asn1(message).unwrap_or_default();
            let signed = key.sign(
                device.id(),
                broker,
                nonce,
                exporter,
                device.spki(),
                facts,
                &self.boot_id,
                self.seq,
                now,
                endorse,
            );
            signed.0.to_vec()
        };
        let exchange = client.report(digest, sign);
        let taken = tokio::time::timeout(EXCHANGE_MAX, exchange).await;
        let (_, released) = taken.map_err(|_| ReportError::Late)??;
        match released.answer {
            Answer::Reported { posture, next_ms } => Ok((posture, Duration::from_millis(next_ms))),
            _ => Err(ReportError::Answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_change_is_reported_at_once_and_the_rest_in_time() {
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let mut rhythm = Rhythm::default();
        assert!(rhythm.wants(a, 100 * S), "the first look is always reported");
        rhythm.taken(a, 100 * S, 20 * S, 0);
        assert!(!rhythm.wants(a, 117 * S));
        assert!(rhythm.wants(a, 118 * S), "a tenth early at most");
        assert!(rhythm.wants(b, 101 * S));
        rhythm.taken(a, 100 * S, 20 * S, 255);
        assert!(!rhythm.wants(a, 121 * S));
        assert!(rhythm.wants(a, 123 * S), "a tenth late at most");
    }

    #[test]
    fn the_broker_can_neither_flood_nor_silence() {
        let mut rhythm = Rhythm::default();
        rhythm.taken(Digest([1; 32]), S, Duration::ZERO, 128);
        assert!(rhythm.due > S + Duration::from_millis(400));
        rhythm.taken(Digest([1; 32]), S, Duration::from_millis(u64::MAX), 255);
        assert!(rhythm.due <= S + 661 * S);
    }

    #[test]
    fn failures_wait_longer_each_time_even_if_facts_change() {
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let mut rhythm = Rhythm::default();
        rhythm.taken(a, 100 * S, 60 * S, 0);
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            rhythm.failed(200 * S);
            assert_eq!(rhythm.due, (200 + wait) * S);
            assert!(!rhythm.wants(b, rhythm.due - Duration::from_millis(1)));
            assert!(rhythm.wants(a, rhythm.due));
        }
    }
}
