//! The agent's own connection to the broker: kept up, its certificate renewed, its duties known.
//!
//! A connection ends, a broker restarts, a laptop sleeps: the uplink comes back by itself, with
//! growing and scattered waits. A certificate that ran out meanwhile is replaced through the
//! enrolment port with the device key alone. The uplink never gives up and never ends but by
//! shutdown; what is wrong stands in the agent's status.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::keys::{DeviceKey, KeyError};
use super::report::Reporter;
use super::settings::AgentSettings;
use super::shared::Shared;
use crate::model::limits::{CERTIFICATE_MAX, CHAIN_MAX};
use crate::model::{Answer, Ask, Clock, Code, Digest, SecretValue, SpiffeId};
use crate::wire::{Client, ClientError, Credentials, CredentialsError, Enrolled, Shows, enroll};

/// Waits between attempts to connect: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// One attempt to connect, enrol or ask.
pub(super) const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// How often the certificate's age is looked at, by the wall clock: timers stop in suspend.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Between attempts to renew: a certificate lives an hour, and half of that is left.
const RENEW_AGAIN: Duration = Duration::from_secs(30);
/// Nothing that somebody here wishes for is asked for more often than this.
pub(super) const DUTIES_AT_MOST: Duration = Duration::from_secs(1);

/// Why an attempt failed. The next one follows.
#[derive(Debug, thiserror::Error)]
pub(super) enum UplinkError {
    /// The state directory's credentials can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The device key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The broker or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No answer in time.
    #[error("the broker gave no answer within {} s", ATTEMPT_MAX.as_secs())]
    Late,
    /// Another answer than one to the question, or one of another form.
    #[error("the broker answered with something else than {0}")]
    Answer(&'static str),
}

impl UplinkError {
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Client(why) if why.is_denied())
    }

    /// Whether the broker said that what was shown, or the key, is taken.
    pub(super) fn is_conflict(&self) -> bool {
        let Self::Client(ClientError::Refused(refusal)) = self else { return false };
        refusal.code == Code::Conflict
    }
}

/// Why the attention to one connection ended.
pub(super) enum Ended {
    Closed(String),
    Expired,
    Renewed(Box<Credentials>),
    Shutdown,
}

/// Certificates with the moment from which they should be replaced.
pub(super) struct Held {
    pub(super) credentials: Box<Credentials>,
    spiffe_id: SpiffeId,
    not_after: OffsetDateTime,
    renew_at: OffsetDateTime,
}

impl Held {
    fn new(credentials: Box<Credentials>, now: OffsetDateTime) -> Result<Self, UplinkError> {
        let (spiffe_id, not_after) = (credentials.spiffe_id()?, credentials.not_after()?);
        Ok(Self { credentials, spiffe_id, not_after, renew_at: half_way(now, not_after) })
    }
}

/// Half of what is left of a certificate.
pub(super) fn half_way(now: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    now + (not_after - now).max(time::Duration::ZERO) / 2
}

/// The task's parts.
pub(super) struct Uplink {
    pub(super) settings: AgentSettings,
    pub(super) device: Arc<DeviceKey>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shared: Arc<Shared>,
    pub(super) shutdown: watch::Receiver<bool>,
}

impl Uplink {
    /// Runs until shutdown.
    pub(super) async fn run(mut self) {
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => {}
            () = self.stay_connected() => {}
        }
        if let Some(client) = self.shared.client() {
            client.finish().await; // so that the broker need not wait for our silence
        }
        self.shared.disconnected("the agent is stopping".to_owned());
    }

    async fn stay_connected(&mut self) {
        let mut held = None;
        let mut failures = 0_u32;
        let mut refused = false;
        loop {
            let (client, current) = match self.connect(held.take(), refused).await {
                Ok(connected) => connected,
                Err(why) => {
                    // A certificate that the broker will not have, by its clock or its roots, is
                    // worth one way back through the enrolment port before the next attempt.
                    refused = !refused && why.is_denied();
                    tracing::warn!(error = %why, failures, "no connection to the broker");
                    self.shared.failed(why.to_string());
                    let mut chance = [0];
                    let _ = aws_lc_rs::rand::fill(&mut chance);
                    tokio::time::sleep(pause(failures, chance[0])).await;
                    failures = failures.saturating_add(1);
                    continue;
                }
            };
            (failures, refused) = (0, false);
            // The one before, if any, closes when the last request on it has let it go.
            let roots = &current.credentials.bundle;
            self.shared.connected(client.clone(), current.spiffe_id.clone(), roots);
            match self.attend(&client, &current).await {
                Ended::Shutdown => return,
                Ended::Renewed(credentials) => {
                    held = Held::new(credentials, self.clock.now().wall()).ok();
                }
                Ended::Expired => self.shared.disconnected("the certificate ran out".to_owned()),
                Ended::Closed(why) => {
                    tracing::info!(why, "the connection to the broker ended");
                    self.shared.disconnected(why);
                    held = Some(current);
                }
            }
        }
    }

    /// A connection under a certificate that still counts; one that does not is replaced first.
    async fn connect(
        &self,
        held: Option<Held>,
        refused: bool,
    ) -> Result<(Client, Held), UplinkError> {
        let now = self.clock.now().wall();
        let held = match held {
            Some(held) => held,
            None => Held::new(Box::new(Credentials::load(&self.settings.dir)?), now)?,
        };
        let held =
            if now < held.not_after && !refused { held } else { self.come_back(now).await? };
        let connecting = Client::connect(&held.credentials, self.clock.clone());
        let client = tokio::time::timeout(ATTEMPT_MAX, connecting)
            .await
            .map_err(|_| UplinkError::Late)??;
        Ok((client, held))
    }

    /// Enrols again without a token: the device key says who we are.
    async fn come_back(&self, now: OffsetDateTime) -> Result<Held, UplinkError> {
        tracing::info!("the certificate counts no more: coming back with the device key");
        // By the roots that it knew last: the one of its token may have ended since.
        let kept = Credentials::load(&self.settings.dir).ok();
        let roots = match &kept {
            Some(kept) => kept.bundle.iter().map(|root| Digest::of(root)).collect(),
            None => vec![self.settings.root],
        };
        let (settings, device) = (&self.settings, &self.device);
        let coming = enrol(settings, &roots, device, Shows::Key, &self.clock);
        let credentials = coming.await?;
        credentials.save(&self.settings.dir)?;
        Held::new(Box::new(credentials), now)
    }

    async fn attend(&self, client: &Client, held: &Held) -> Ended {
        let mut shutdown = self.shutdown.clone();
        let Ok(broker) = self.settings.domain.id("/doorward/broker") else {
            return Ended::Closed("the trust domain has no broker's name".to_owned());
        };
        let reporter = Reporter::new(self.device.clone(), broker, self.clock.clone());
        tokio::select! {
            _ = shutdown.wait_for(|stop| *stop) => Ended::Shutdown,
            why = client.closed() => Ended::Closed(why),
            ended = self.keep_certificate(client, held) => ended,
            ended = self.keep_bundle(client, held) => ended,
            never = self.keep_duties(client) => match never {},
            never = self.keep_federated(client) => match never {},
            never = reporter.run(client, &self.shared) => match never {},
        }
    }

    async fn keep_certificate(&self, client: &Client, held: &Held) -> Ended {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.clock.now().wall();
            if now >= held.not_after {
                return Ended::Expired;
            }
            let tainted = self.shared.roots().taints(&held.credentials.chain);
            if now < held.renew_at && !tainted {
                continue;
            }
            match self.renew(client).await {
                Ok(credentials) => return Ended::Renewed(Box::new(credentials)),
                Err(why) => {
                    tracing::warn!(error = %why, "the certificate is not renewed yet");
                    self.shared.failed(why.to_string());
                    tokio::time::sleep(RENEW_AGAIN).await;
                }
            }
        }
    }

    async fn renew(&self, client: &Client) -> Result<Credentials, UplinkError> {
        let answer = ask(client, Ask::Renew {}).await?;
        let Answer::Certificate { chain, bundle, .. } = answer else {
            return Err(UplinkError::Answer("a certificate"));
        };
        let refused = UplinkError::Answer("a readable certificate");
        let (Some(chain), Some(bundle)) = (certificates(&chain), certificates(&bundle)) else {
            return Err(refused);
        };
        let credentials = credentials(&self.settings, &self.device, chain, bundle);
        credentials.save(&self.settings.dir)?;
        Ok(credentials)
    }
}

/// Enrols the device, with what it shows or with its key alone, at a broker that shows one of these roots.
/// Nothing is kept yet.
pub(super) async fn enrol(
    settings: &AgentSettings,
    roots: &[Digest],
    device: &DeviceKey,
    shows: Shows,
    clock: &Arc<dyn Clock>,
) -> Result<Credentials, UplinkError> {
    let (chain, key) = device.self_signed()?;
    // A chip makes three keys for it, and a handshake's signature.
    let limit = if matches!(shows, Shows::Tpm(_)) { 4 * ATTEMPT_MAX } else { ATTEMPT_MAX };
    let enrolling = enroll(
        &settings.enrolment,
        &settings.domain,
        roots,
        chain,
        key,
        &settings.name,
        shows,
        clock.clone(),
    );
    let enrolled = tokio::time::timeout(limit, enrolling).await;
    let Enrolled { chain, bundle, .. } = enrolled.map_err(|_| UplinkError::Late)??;
    Ok(credentials(settings, device, chain, bundle))
}

pub(super) fn credentials(
    settings: &AgentSettings,
    device: &DeviceKey,
    chain: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
) -> Credentials {
    Credentials {
        domain: settings.domain.clone(),
        broker: settings.broker.clone(),
        chain,
        key: device.private(),
        bundle,
    }
}

pub(super) async fn ask(client: &Client, ask: Ask) -> Result<Answer, UplinkError> {
    let asking = client.ask(ask, SecretValue::empty());
    let answered = tokio::time::timeout(ATTEMPT_MAX, asking).await;
    let (_, released) = answered.map_err(|_| UplinkError::Late)??;
    Ok(released.answer)
}

/// The same of a question that may wait: it has the client's own bound.
pub(super) async fn ask_patiently(client: &Client, ask: Ask) -> Result<Answer, UplinkError> {
    let (_, released) = client.ask(ask, SecretValue::empty()).await?;
    Ok(released.answer)
}

/// Certificates in base64, bounded; `None` if there are none, too many, or other text.
pub(super) fn certificates(texts: &[String]) -> Option<Vec<CertificateDer<'static>>> {
    let one = |text: &String| {
        let der = STANDARD.decode(text).ok()?;
        (!der.is_empty() && der.len() <= CERTIFICATE_MAX).then(|| CertificateDer::from(der))
    };
    if texts.is_empty() || texts.len() > CHAIN_MAX {
        return None;
    }
    texts.iter().map(one).collect()
}

/// How long to wait after so many failures; `chance` scatters between half and the whole.
fn pause(failures: u32, chance: u8) -> Duration {
    let whole = RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1);
    whole / 2 + (whole / 2).mul_f32(f32::from(chance) / 255.0)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn waits_grow_scatter_and_stay_under_half_a_minute() {
        assert_eq!(pause(0, 0), Duration::from_millis(125));
        assert_eq!(pause(0, 255), Duration::from_millis(250));
        assert_eq!(pause(3, 255), Duration::from_secs(2));
        assert_eq!(pause(7, 255), Duration::from_secs(30));
        assert_eq!(pause(u32::MAX, 255), Duration::from_secs(30));
        assert_eq!(pause(u32::MAX, 0), Duration::from_secs(15));
    }

    #[test]
    fn certificates_are_bounded_and_whole() {
        let text = STANDARD.encode([1, 2, 3]);
        assert_eq!(certificates(std::slice::from_ref(&text)).unwrap()[0].as_ref(), [1, 2, 3]);
        assert!(certificates(&[]).is_none());
        assert!(certificates(&vec![text.clone(); CHAIN_MAX + 1]).is_none());
        assert!(certificates(&[text, "?".into()]).is_none());
        assert!(certificates(&[String::new()]).is_none());
        assert!(certificates(&[STANDARD.encode(vec![0; CERTIFICATE_MAX + 1])]).is_none());
    }

    #[test]
    fn a_certificate_is_renewed_half_way_and_at_once_if_it_has_ended() {
        let now = datetime!(2026-11-23 12:00 UTC);
        assert_eq!(half_way(now, datetime!(2026-11-23 13:00 UTC)), datetime!(2026-11-23 12:30 UTC));
        assert_eq!(half_way(now, datetime!(2026-11-23 11:00 UTC)), now);
    }
}
