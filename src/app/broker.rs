//! A broker that answers: its parts joined, its ports open, its chores under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::clock::{GuardedClock, Watch};
use super::federation;
use super::federation_endpoint::Endpoint;
use super::oidc::Published;
use super::opening::{BrokerStart, Ground, Opened, StartError};
use super::ports::{Opening, cores};
use super::recall::recall;
use super::rotation;
use super::supervise::{Fall, Supervisor};
use crate::administration::{Administration, Policies};
use crate::broker::{Connections, Door, Line, LineParts, Port, Rates, Ready};
use crate::decision_log::{Note, RecordError};
use crate::identity::Task;
use crate::model::{Ask, Clock, Moment, limits};
use crate::policy::Bundle;
use crate::posture::Posture;
use crate::store::Store;
use crate::vault::{RootKey, Vault};
use crate::wire::{self, ServerIdentity, TlsError};

/// How often the clocks, the store and the certificates of living connections are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often ended tokens are forgotten.
const RETENTION: Duration = Duration::from_secs(3600);

/// A broker that answers.
pub struct RunningBroker {
    /// UDP address for holders of SVIDs.
    pub address: SocketAddr,
    /// UDP address for applicants.
    pub enrolment: SocketAddr,
    /// TCP address for health and metrics.
    pub management: SocketAddr,
    /// TCP address of our own bundle endpoint, where there is one.
    pub federation: Option<SocketAddr>,
    line: Arc<Line>,
    ground: Ground,
    /// The log's writer and those that serve connections.
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl BrokerStart {
    /// Opens everything and begins to answer.
    ///
    /// # Errors
    /// The first thing that does not stand as it should.
    pub async fn start(self) -> Result<RunningBroker, StartError> {
        let opened = self.open().await?;
        self.serve(opened).await
    }

    /// The same once the seal is open.
    pub(super) async fn start_on(
        self,
        ground: Ground,
        root: RootKey,
    ) -> Result<RunningBroker, StartError> {
        let opened = self.open_on(ground, root).await?;
        self.serve(opened).await
    }

    async fn serve(self, opened: Opened) -> Result<RunningBroker, StartError> {
        let issuer = self.config.oidc_issuer.clone();
        let line = Arc::new(self.join_parts(&opened).await?);
        let (clock, store) = (Arc::clone(&opened.clock), Arc::clone(&opened.store));
        let web_roots = self.config.federation.web_roots.clone();
        let running = self.open_ports(line, opened).await?;
        running.begin_chores(clock);
        running.keep_house();
        let stop = running.ground.supervisor.stopping();
        let calendar = rotation::run(Arc::clone(&running.line), stop);
        running.ground.supervisor.go_on("calendar of authorities", calendar);
        let stop = running.ground.supervisor.stopping();
        let fetching = federation::run(Arc::clone(&running.line), web_roots, stop);
        running.ground.supervisor.go_on("federation", fetching);
        running.watch_store(store);
        let line = Arc::downgrade(&running.line);
        let keys = move || {
            line.upgrade().map(|line| line.parts().authority.bundle_document().to_oidc_jwks())
        };
        running.ground.health.publishes(Published::new(issuer, keys));
        running.ground.health.ready();
        Ok(running)
    }

    async fn join_parts(&self, opened: &Opened) -> Result<Line, StartError> {
        let domain = self.config.trust_domain.clone();
        let clock: Arc<dyn Clock> = opened.clock.clone();
        let (authority, identity) = self.open_authority(opened).await?;
        recall(&opened.log, &authority, opened.store.last_grant().await?).await?;
        rotation::complete(&opened.log, &authority, clock.now()).await?;
        let root = Arc::clone(&opened.root);
        let layout = &self.layout;
        let beside = vec![layout.ca(), layout.log_key(), layout.log_vkey(), layout.config()];
        let vault = Vault::open(Arc::clone(&opened.store), &layout.keys(), root).await?;
        let vault = vault.with_beside(beside);
        let policies = Policies::open(Arc::clone(&opened.store), domain.clone()).await?;
        let policy = Arc::clone(policies.policy());
        let posture = Arc::new(Posture::new());
        let administration = Administration::new(
            domain,
            Arc::clone(&clock),
            Arc::clone(&posture),
            policies,
            opened.log.clone(),
            Arc::clone(&opened.store),
        );
        Ok(Line::new(LineParts {
            clock,
            identity,
            posture,
            policy,
            log: opened.log.clone(),
            vault,
            authority,
            administration,
            rates: Rates::new(self.config.caller_rate, self.config.denial_rate),
            metrics: Arc::clone(opened.ground.health.metrics()),
        }))
    }

    async fn open_ports(
        self,
        line: Arc<Line>,
        mut opened: Opened,
    ) -> Result<RunningBroker, StartError> {
        let peer = Supervisor::broker_peer(Task::OwnIdentity);
        let own = line.own_identity(&peer).await.map_err(StartError::OwnIdentity)?;
        let parts = line.parts();
        let server = ServerIdentity::new(own.chain.clone(), own.key.clone_key())?;
        server.swap(own.chain, own.others, own.key)?;
        let connections = Arc::new(Connections::default());
        let (identity, clock) = (Arc::clone(&parts.identity), Arc::clone(&parts.clock));
        let main = Opening {
            address: self.config.listen,
            config: wire::broker_server(Arc::clone(&server), identity, clock)?,
            door: Door::new(Port::Main, &line, &connections),
            threads: self.config.threads.unwrap_or_else(cores),
        };
        let enrolment = Opening {
            address: self.config.enrolment,
            config: wire::applicant_server(Arc::clone(&server), Arc::clone(&parts.clock))?,
            door: Door::new(Port::Enrolment, &line, &connections),
            threads: 1,
        };
        let mut threads = vec![opened.log_thread];
        let supervisor = &opened.ground.supervisor;
        let address = main.open("broker port", supervisor, &mut threads)?;
        let enrolment = enrolment.open("enrolment port", supervisor, &mut threads)?;
        let federation = match self.config.federation.endpoint {
            None => None,
            Some(config) => {
                let opening = Endpoint::open(config, Arc::clone(&server), Arc::clone(&line));
                let (endpoint, bound) = opening.await?;
                supervisor.go_on("bundle endpoint", endpoint.run(supervisor.stopping()));
                Some(bound)
            }
        };
        let running = RunningBroker {
            address,
            federation,
            enrolment,
            management: opened.ground.open_management(self.config.management).await?,
            line: Arc::clone(&line),
            ground: opened.ground,
            threads,
        };
        running.review_connections(connections);
        running.renew_own(server, own.until);
        Ok(running)
    }
}

impl RunningBroker {
    /// The line itself, for tests and tools in the same process.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Answers until `stop` resolves or a task falls; then drains.
    ///
    /// # Errors
    /// The task that fell: the process must end with a failure.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<(), Fall> {
        let fall = tokio::select! {
            () = stop => None,
            fall = self.ground.supervisor.fall() => Some(fall),
        };
        let Ground { lock, supervisor, health, .. } = self.ground;
        health.draining();
        self.line.drain();
        supervisor.drain().await;
        drop(self.line);
        drop(health);
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            // The log's writer is the first: it ends when the last handle on the log is gone.
            threads.into_iter().rev().for_each(|thread| drop(thread.join()));
        });
        if tokio::time::timeout(limits::DRAIN * 2, joined).await.is_err() {
            tracing::warn!("the decision log's writer did not end in time");
        }
        drop(lock);
        fall.map_or(Ok(()), Err)
    }

    /// Revocations and posture drops close what lives.
    fn review_connections(&self, connections: Arc<Connections>) {
        let parts = self.line.parts();
        let (line, all) = (Arc::clone(&self.line), Arc::clone(&connections));
        let mut changes = parts.identity.changes();
        self.ground.supervisor.go_on("review of identities", {
            let mut stop = self.ground.supervisor.stopping();
            async move {
                loop {
                    let changed = tokio::select! {
                        changed = changes.changed() => match changed {
                            Ok(()) => true,
                            Err(_) => return Ok(()),
                        },
                        () = tokio::time::sleep(LOOK_EVERY) => false,
                        _ = stop.wait_for(|stop| *stop) => return Ok::<_, std::convert::Infallible>(()),
                    };
                    let parts = line.parts();
                    let now = parts.clock.now();
                    let closed = match changed {
                        true => all.review_identities(&parts.identity, now),
                        false => all.review_expiry(&parts.identity, now),
                    };
                    parts.metrics.closed.inc_by(u64::try_from(closed).unwrap_or(0));
                }
            }
        });
        let (line, mut changes) = (Arc::clone(&self.line), parts.posture.changes());
        let mut installed = parts.policy.installed();
        let mut stop = self.ground.supervisor.stopping();
        self.ground.supervisor.go_on("review of posture", async move {
            loop {
                let changed = tokio::select! {
                    changed = changes.recv() => changed,
                    // Other profiles: every device may meet less by them.
                    Ok(()) = installed.changed() => Err(RecvError::Lagged(0)),
                    _ = stop.wait_for(|stop| *stop) => return Ok::<_, std::convert::Infallible>(()),
                };
                let parts = line.parts();
                let bundle = parts.policy.current();
                let devices = match changed {
                    Ok(device) => vec![device],
                    // Too many at once: look at every device that has a connection.
                    Err(RecvError::Lagged(_)) => connections.devices(),
                    Err(RecvError::Closed) => return Ok(()),
                };
                for device in devices {
                    let now = parts.clock.now();
                    let closed = connections.review_posture(&device, &parts.posture, &bundle, now);
                    parts.metrics.closed.inc_by(u64::try_from(closed).unwrap_or(0));
                }
            }
        });
    }

    /// A new certificate of its own at half-life, and whenever an authority changes.
    fn renew_own(&self, server: Arc<ServerIdentity>, mut until: time::OffsetDateTime) {
        let line = Arc::clone(&self.line);
        let mut rotated = line.parts().authority.rotations();
        let mut stop = self.ground.supervisor.stopping();
        self.ground.supervisor.go_on("own certificate", async move {
            let mut failed = false;
            loop {
                let left = crate::broker::time_left(until, line.parts().clock.now());
                let wait = if failed { Duration::ZERO } else { left / 2 };
                tokio::select! {
                    () = tokio::time::sleep(wait.max(LOOK_EVERY)) => {}
                    Ok(()) = rotated.changed() => {}
                    _ = stop.wait_for(|stop| *stop) => return Ok::<_, TlsError>(()),
                }
                match line.own_identity(&Supervisor::broker_peer(Task::OwnIdentity)).await {
                    Ok(own) => {
                        (until, failed) = (own.until, false);
                        server.swap(own.chain, own.others, own.key)?;
                    }
                    Err(refusal) => {
                        failed = true;
                        tracing::error!(%refusal, "no new certificate for the broker");
                    }
                }
            }
        });
    }

    /// A store that failed for good ends the process: only a start believes the file again.
    fn watch_store(&self, store: Arc<dyn Store>) {
        let mut stop = self.ground.supervisor.stopping();
        self.ground.supervisor.go_on("store", async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = stop.wait_for(|stop| *stop) => return Ok(()),
                }
                if store.has_failed() {
                    return Err("`store.redb` could not be written or read; a start recovers it");
                }
            }
        });
    }

    /// Forgets what has ended, hourly: a task of the broker's own, recorded like all others.
    fn keep_house(&self) {
        let line = Arc::clone(&self.line);
        let mut stop = self.ground.supervisor.stopping();
        self.ground.supervisor.go_on("retention", async move {
            let mut told = (0, 0);
            loop {
                told = tell(&line.parts().policy.current(), line.parts().clock.now(), told);
                tokio::select! {
                    () = tokio::time::sleep(RETENTION) => {}
                    _ = stop.wait_for(|stop| *stop) => return Ok::<_, std::convert::Infallible>(()),
                }
                let peer = Supervisor::broker_peer(Task::Retention);
                let asked =
                    line.answer(&peer, None, None, Ask::Renew {}.into(), &mut Ready(None)).await;
                if let Err(refusal) = asked.1 {
                    tracing::warn!(%refusal, "ended tokens were not forgotten");
                }
            }
        });
    }

    /// Watches the clocks.
    fn begin_chores(&self, clock: Arc<GuardedClock>) {
        let line = Arc::clone(&self.line);
        let mut stop = self.ground.supervisor.stopping();
        self.ground.supervisor.go_on("clock", async move {
            // The machine's clocks as they are: the guarded one would hide a step back.
            let mut watch = Watch::new(clock.raw());
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = stop.wait_for(|stop| *stop) => return Ok::<_, RecordError>(()),
                }
                let look = watch.look(clock.raw(), clock.behind());
                if look.settled {
                    clock.accept_step();
                }
                line.clock_agrees(look.agree);
                if let Some(apart) = look.step {
                    tracing::error!(?apart, "the clocks went apart: all verdicts are unknown now");
                    line.parts().posture.forget_all();
                    let detail =
                        format!("wall and boot clock went apart by {} ms", apart.as_millis());
                    let _ = line.parts().log.note(Note::Alarm { what: "clock", detail }).await;
                }
            }
        });
    }
}

/// What the author of the policy should know though nothing is wrong: at the start, after a change,
/// and daily. Takes and gives which bundle was told of, and how many hours ago.
fn tell(bundle: &Bundle, now: Moment, (told, hours): (u64, u32)) -> (u64, u32) {
    if told == bundle.generation() && hours < 23 {
        return (told, hours + 1);
    }
    for warning in bundle.warnings(now.unix_s()) {
        let (file, line) = (warning.file, warning.line);
        tracing::warn!(file, line, "policy: {}", warning.message);
    }
    (bundle.generation(), 0)
}
