//! A sealed start: health on the management port, and an admin socket that waits for a passphrase.
//! No UDP port is open, the log and the store are closed, and no key is in memory.
//!
//! Passphrases are tried one after the other, off the thread that answers health: guessing is as
//! slow as the seal makes it, however many try. The right one makes this a start like any other.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::admin_socket::{AdminSocket, Attempt, Desk};
use super::broker::RunningBroker;
use super::config::BrokerConfig;
use super::layout::Layout;
use super::opening::{BrokerStart, Ground, StartError};
use crate::model::{Clock, SecretValue};
use crate::vault::{KeyProvider as _, Passphrase, RootKey, SealError};
use crate::wire::{AdminReply, SealState};

/// A broker that waits for its passphrase.
pub struct SealedBroker {
    layout: Layout,
    config: BrokerConfig,
    clock: Arc<dyn Clock>,
    ground: Ground,
    attempts: mpsc::Receiver<Attempt>,
}

/// How an attempt came out: the seal is open, or a word for who tried.
type Tried = Result<(RootKey, Passphrase), AdminReply>;

impl SealedBroker {
    /// Locks the directory and opens the management port and the admin socket.
    ///
    /// # Errors
    /// When another process has the directory, its seal needs no passphrase or is damaged, or a port
    /// or the socket can't be had.
    pub async fn open(
        layout: Layout,
        config: BrokerConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let mut ground = Ground::take(&layout).await?;
        let passphrase = Passphrase(SecretValue::empty());
        let needed = RootKey::kind_of(layout.root())?;
        if needed != passphrase.kind() {
            return Err(SealError::Kind { needed, given: passphrase.kind() }.into());
        }
        let socket = AdminSocket::bind(&layout.admin_socket(), &ground.lock)?;
        ground.health.sealed();
        ground.open_management(config.management).await?;
        let (desk, attempts) = Desk::new(Arc::clone(&ground.health));
        let supervisor = &ground.supervisor;
        let served = socket.serve(desk, supervisor.spawner(), supervisor.stopping());
        supervisor.go_on("admin socket", served);
        Ok(Self { layout, config, clock, ground, attempts })
    }

    /// TCP address for health and metrics.
    pub fn management(&self) -> Option<std::net::SocketAddr> {
        self.ground.management
    }

    /// Where passphrases are taken.
    pub fn socket(&self) -> PathBuf {
        self.layout.admin_socket()
    }

    /// Waits for the right passphrase and starts; nothing if `stop` resolves before it comes.
    ///
    /// # Errors
    /// What was wrong with the start that followed, or which task fell. Who sent the passphrase is
    /// told of it too.
    pub async fn run_until(
        mut self,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<RunningBroker>, StartError> {
        let mut stop = std::pin::pin!(stop);
        loop {
            let attempt = tokio::select! {
                () = &mut stop => {
                    self.ground.supervisor.drain().await;
                    return Ok(None);
                }
                fall = self.ground.supervisor.fall() => return Err(StartError::Fell(fall)),
                Some(attempt) = self.attempts.recv() => attempt,
            };
            let (passphrase, asked) = attempt.take();
            match self.try_passphrase(passphrase).await {
                Ok((root, provider)) => return self.go_on(root, provider, asked).await.map(Some),
                Err(reply) => {
                    let why = match &reply {
                        AdminReply::Failed { error, .. } => error.as_str(),
                        _ => "wrong passphrase",
                    };
                    tracing::warn!(
                        pid = asked.pid,
                        uid = asked.uid,
                        why,
                        "the seal was not opened"
                    );
                    asked.tell(&reply).await;
                }
            }
        }
    }

    async fn try_passphrase(&self, passphrase: SecretValue) -> Tried {
        let dir = self.layout.root().to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            let provider = Passphrase(passphrase);
            RootKey::open(&dir, &provider).map(|root| (root, provider))
        });
        match opening.await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(SealError::WrongPassphrase)) => Err(AdminReply::WrongPassphrase {}),
            Ok(Err(error)) => Err(failed(&error, false)),
            Err(_) => Err(AdminReply::Failed {
                error: "the seal could not be tried".to_owned(),
                cause: None,
                ended: false,
            }),
        }
    }

    /// The start itself.
    async fn go_on(
        self,
        root: RootKey,
        provider: Passphrase,
        asked: Attempt,
    ) -> Result<RunningBroker, StartError> {
        let Self { layout, config, clock, ground, mut attempts } = self;
        tracing::info!(pid = asked.pid, uid = asked.uid, "the seal is open");
        ground.health.starting();
        attempts.close();
        while let Ok(late) = attempts.try_recv() {
            late.tell(&AdminReply::Seal { state: SealState::Opening }).await;
        }
        let start = BrokerStart { layout, config, provider: Box::new(provider), clock };
        match start.start_on(ground, root).await {
            Ok(running) => {
                let [broker, enrolment, management] =
                    [running.address, running.enrolment, running.management]
                        .map(|address| address.to_string());
                asked.tell(&AdminReply::Opened { broker, enrolment, management }).await;
                Ok(running)
            }
            Err(error) => {
                asked.tell(&failed(&error, true)).await;
                Err(error)
            }
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static), ended: bool) -> AdminReply {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(source) = next {
        causes.push(source.to_string());
        next = source.source();
    }
    let cause = (!causes.is_empty()).then(|| causes.join(": "));
    AdminReply::Failed { error: error.to_string(), cause, ended }
}
