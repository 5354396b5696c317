//! The agent as a whole: joining, opening, and the tasks that the supervisor runs.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::exe::ExeDigests;
use super::http::{LocalServer, SocketError, Upstream};
use super::keys::{DeviceKey, KeyError, check_dir};
use super::settings::{AgentSettings, SettingsError};
use super::shared::{AgentHandle, Shared};
use super::uplink::{Uplink, UplinkError, enrol};
use super::workloads::Workloads;
use crate::model::{Clock, Digest, SecretValue, TrustDomain};

/// Why the agent can't start, join or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Another agent runs on the same state.
    #[error("{} is in use by another agent: stop that one first", .0.display())]
    Busy(PathBuf),
    /// The broker did not take the device in.
    #[error("the device was not taken in: {text}")]
    Enrol {
        /// Why, in words; what it was made of is the source.
        text: String,
        /// The cause below.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The local socket failed while it was served.
    #[error("the local socket can't be served any more")]
    Serve(#[source] std::io::Error),
    /// `agent.toml`.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The local socket can't be set up.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl From<UplinkError> for AgentError {
    fn from(why: UplinkError) -> Self {
        Self::Enrol { text: why.to_string(), source: Box::new(why) }
    }
}

/// One task with its name, for the supervisor.
pub type AgentTask =
    (&'static str, Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send + 'static>>);

/// An agent that is set up but does nothing until its tasks are run.
pub struct Agent {
    settings: AgentSettings,
    device: Arc<DeviceKey>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    server: LocalServer,
    shutdown: watch::Receiver<bool>,
    lock: File,
}

impl Agent {
    /// Makes this machine a device: a key of its own in `dir`, enrolled with a single-use token,
    /// its credentials and `agent.toml` beside it. Doing it again with a new token is harmless.
    ///
    /// # Errors
    /// When the directory is not the agent's own, or the broker refuses.
    #[allow(clippy::too_many_arguments)] // a join token's parts, and where they go
    pub async fn join(
        dir: &Path,
        enrolment: &str,
        broker: &str,
        domain: TrustDomain,
        root: Digest,
        name: &str,
        token: SecretValue,
        socket: PathBuf,
        clock: Arc<dyn Clock>,
    ) -> Result<AgentSettings, AgentError> {
        let device = DeviceKey::load_or_create(dir)?;
        let _lock = lock(dir)?;
        let settings = AgentSettings::new(
            dir.to_owned(),
            socket,
            enrolment.to_owned(),
            broker.to_owned(),
            domain,
            root,
            name.to_owned(),
        );
        settings.check()?; // before the token is spent
        enrol(&settings, &device, token, &clock).await?;
        settings.save()?;
        Ok(settings)
    }

    /// Opens a joined agent: reads its key and settings, and takes its socket. When `shutdown`
    /// becomes true (or its sender goes), the tasks end by themselves. To be called in a runtime.
    ///
    /// # Errors
    /// When something of it is missing, not the agent's own, or in use.
    pub fn open(
        dir: &Path,
        clock: Arc<dyn Clock>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Self, AgentError> {
        check_dir(dir)?;
        let lock = lock(dir)?;
        let settings = AgentSettings::load(dir)?;
        let device = Arc::new(DeviceKey::open(dir)?);
        let server = LocalServer::bind(&settings.socket, settings.socket_mode)?;
        let shared = Shared::new(device.id());
        Ok(Self { settings, device, clock, shared, server, shutdown, lock })
    }

    /// A look at the agent that outlives it.
    pub fn handle(&self) -> AgentHandle {
        AgentHandle::new(self.shared.clone())
    }

    /// Where it belongs.
    pub fn settings(&self) -> &AgentSettings {
        &self.settings
    }

    /// The tasks, each to be run to its end by the supervisor; the end of one should end all.
    pub fn tasks(self) -> Vec<AgentTask> {
        let Self { settings, device, clock, shared, server, shutdown, lock } = self;
        let (domain, broker) = (settings.domain.clone(), settings.broker.clone());
        let workloads = Workloads::new(shared.clone(), clock.clone(), domain, broker);
        let digests = Arc::new(ExeDigests::default());
        let uplink = Uplink { settings, device, clock, shared, shutdown: shutdown.clone() };
        let serving = server.serve(Upstream::Broker(workloads.clone()), digests, shutdown.clone());
        let sweeping = sweep(workloads, shutdown);
        vec![
            ("agent-local", Box::pin(async move { serving.await.map_err(AgentError::Serve) })),
            (
                "agent-sweep",
                Box::pin(async move {
                    sweeping.await;
                    Ok(())
                }),
            ),
            (
                "agent-uplink",
                Box::pin(async move {
                    let _lock = lock; // the state is ours until the uplink has ended
                    uplink.run().await;
                    Ok(())
                }),
            ),
        ]
    }
}

async fn sweep(workloads: Arc<Workloads>, mut shutdown: watch::Receiver<bool>) {
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => {}
        never = workloads.sweep() => match never {},
    }
}

fn lock(dir: &Path) -> Result<File, AgentError> {
    let busy = || AgentError::Busy(dir.to_owned());
    let opened = File::open(dir).map_err(|_| busy())?;
    opened.try_lock().map_err(|_| busy())?;
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SystemClock;

    fn joined(above: &Path) -> PathBuf {
        let dir = above.join("state");
        DeviceKey::load_or_create(&dir).unwrap();
        AgentSettings::new(
            dir.clone(),
            above.join("agent.sock"),
            "127.0.0.1:1".into(),
            "127.0.0.1:2".into(),
            TrustDomain::parse("corp.example").unwrap(),
            Digest([7; 32]),
            "web-1".into(),
        )
        .save()
        .unwrap();
        dir
    }

    fn open(dir: &Path) -> Result<Agent, AgentError> {
        Agent::open(dir, Arc::new(SystemClock), watch::channel(false).1)
    }

    #[tokio::test]
    async fn two_agents_never_share_their_state() {
        let above = tempfile::tempdir().unwrap();
        let dir = joined(above.path());
        let first = open(&dir).unwrap();
        assert!(matches!(open(&dir), Err(AgentError::Busy(_))));
        assert!(matches!(DeviceKey::load_or_create(&dir), Err(KeyError::Busy { .. })));
        let device = first.handle().status().device;
        drop(first);
        assert_eq!(open(&dir).unwrap().handle().status().device, device);
    }

    #[tokio::test]
    async fn an_agent_that_never_joined_says_so() {
        let above = tempfile::tempdir().unwrap();
        let dir = joined(above.path());
        std::fs::remove_file(dir.join("agent.toml")).unwrap();
        assert!(matches!(open(&dir), Err(AgentError::Settings(_))));
        assert!(matches!(open(&above.path().join("none")), Err(AgentError::Key(_))));
    }
}
