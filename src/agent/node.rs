//! The agent as a whole: joining, opening, and the tasks that the supervisor runs.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::exe::ExeDigests;
use super::home::{Home, HomeError, Newcomer, lock};
use super::http::{LocalServer, Upstream};
use super::images::Images;
use super::joining::Joining;
use super::keys::{DeviceKey, KeyError, check_dir};
use super::local::SocketError;
use super::settings::{AgentSettings, FILE, SettingsError};
use super::shared::{AgentHandle, Shared};
use super::tpm::{Place, TpmKey};
use super::uplink::{Uplink, UplinkError, enrol};
use super::workload_api::{Ground, WorkloadServer};
use super::workloads::Workloads;
use crate::model::{Clock, Digest, TrustDomain};
use crate::wire::{ClientError, Credentials, CredentialsError, Shows, settle};

/// Why the agent can't start, join or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The broker, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What the broker gave can't be kept.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The broker did not take the device in.
    #[error("the device was not taken in: {0}")]
    Enrol(String),
    /// The state directory.
    #[error(transparent)]
    Home(#[from] HomeError),
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
        match why {
            UplinkError::Client(why) => Self::Client(why),
            UplinkError::Credentials(why) => Self::Credentials(why),
            UplinkError::Key(why) => Self::Key(why),
            UplinkError::Late | UplinkError::Answer(_) => Self::Enrol(why.to_string()),
        }
    }
}

/// One task with its name, for the supervisor.
pub type AgentTask =
    (&'static str, Pin<Box<dyn Future<Output = Result<(), AgentError>> + Send + 'static>>);

/// What a machine joins by.
#[derive(Debug)]
pub enum JoinBy {
    /// What it shows, with a fresh key in a file.
    Shown(Shows),
    /// Its TPM, with a fresh key in that.
    Tpm(Place),
}

impl From<Shows> for JoinBy {
    fn from(shows: Shows) -> Self {
        Self::Shown(shows)
    }
}

/// An agent that is set up but does nothing until its tasks are run.
pub struct Agent {
    settings: AgentSettings,
    device: Arc<DeviceKey>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    server: LocalServer,
    workload_server: Option<WorkloadServer>,
    shutdown: watch::Receiver<bool>,
    lock: File,
}

impl Agent {
    /// Makes this machine a device: a key of its own, enrolled by what it shows; key,
    /// credentials and `agent.toml` are written to `dir` together. An identity that stands there
    /// and still counts is replaced only if `replace` says so, and then by a new device.
    ///
    /// # Errors
    /// When the directory is not the agent's own, holds what must stay, or the broker refuses.
    #[allow(clippy::too_many_arguments)] // a join token's parts, and where they go
    pub async fn join(
        dir: &Path,
        enrolment: &str,
        broker: &str,
        domain: TrustDomain,
        root: Digest,
        name: &str,
        shows: impl Into<JoinBy>,
        socket: PathBuf,
        replace: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<AgentSettings, AgentError> {
        let shows = shows.into();
        let newcomer = Newcomer { domain: &domain, operator: None, replace };
        let home = Home::take(dir, &newcomer, clock.now().wall())?;
        let settings = AgentSettings::new(
            dir.to_owned(),
            socket,
            enrolment.to_owned(),
            broker.to_owned(),
            domain,
            root,
            name.to_owned(),
        );
        let text = settings.text()?; // before anything is shown
        let (joining, credentials) = match shows {
            JoinBy::Shown(shows) => {
                let joining = Joining::in_dir(dir, &settings.domain, &shows.digest())?;
                let (joining, credentials) = enrolled(&settings, joining, shows, &clock).await?;
                (Some(joining), credentials)
            }
            JoinBy::Tpm(place) => {
                let key = TpmKey::generate(place).map_err(KeyError::from)?;
                let device = DeviceKey::in_tpm(key.clone());
                let shows = Shows::Tpm(Box::new(key));
                let roots = [settings.root];
                (None, enrol(&settings, &roots, &device, shows, &clock).await?)
            }
        };
        home.keep(&credentials, &[(FILE, text.as_bytes())])?;
        joining.into_iter().for_each(Joining::done);
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
        settle(dir).map_err(CredentialsError::Directory)?;
        let settings = AgentSettings::load(dir)?;
        let device = Arc::new(DeviceKey::open(dir)?);
        let images = settings.container_runtime.clone().map(Images::new);
        let server = LocalServer::bind(&settings.socket, settings.socket_mode)?;
        let server = server.told_by(images.clone());
        let workload_server = settings.workload_socket();
        let workload_server = workload_server
            .map(|path| WorkloadServer::bind(&path, settings.socket_mode))
            .transpose()?
            .map(|server| server.told_by(images));
        let shared = Shared::new(device.id());
        Ok(Self { settings, device, clock, shared, server, workload_server, shutdown, lock })
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
        let Self { settings, device, clock, shared, server, workload_server, shutdown, lock } =
            self;
        let (domain, broker) = (settings.domain.clone(), settings.broker.clone());
        let workloads = Workloads::new(shared.clone(), clock.clone(), domain.clone(), broker);
        let digests = Arc::new(ExeDigests::default());
        let ground = Ground {
            workloads: workloads.clone(),
            digests: digests.clone(),
            clock: clock.clone(),
            domain,
            stop: shutdown.clone(),
        };
        let uplink = Uplink { settings, device, clock, shared, shutdown: shutdown.clone() };
        let serving = server.serve(Upstream::Broker(workloads.clone()), digests, shutdown.clone());
        let watching = watch_processes(workloads.clone(), shutdown.clone());
        let sweeping = sweep(workloads, shutdown);
        let mut tasks: Vec<AgentTask> = vec![
            ("agent-local", Box::pin(async move { serving.await.map_err(AgentError::Serve) })),
            (
                "agent-sweep",
                Box::pin(async move {
                    sweeping.await;
                    Ok(())
                }),
            ),
            (
                "agent-watch",
                Box::pin(async move {
                    watching.await;
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
        ];
        if let Some(server) = workload_server {
            let serving = server.serve(ground);
            let serving = async move { serving.await.map_err(AgentError::Serve) };
            tasks.push(("agent-workload-api", Box::pin(serving)));
        }
        tasks
    }
}

/// Enrols with what the machine shows; or, where an earlier try may have been answered without our
/// hearing it, comes back with the key of that try. What is left on the disk by a failure is found by
/// the next try.
async fn enrolled(
    settings: &AgentSettings,
    joining: Joining,
    shows: Shows,
    clock: &Arc<dyn Clock>,
) -> Result<(Joining, Credentials), UplinkError> {
    let (roots, was_there) = ([settings.root], joining.was_there());
    if was_there {
        match enrol(settings, &roots, joining.key(), Shows::Key, clock).await {
            Ok(credentials) => return Ok((joining, credentials)),
            Err(why) if why.is_denied() => {} // it was never bound, or ended since
            Err(why) => return Err(why),
        }
    }
    match enrol(settings, &roots, joining.key(), shows, clock).await {
        Ok(credentials) => Ok((joining, credentials)),
        Err(why) => {
            // A key that is known there and does not come back is of no use: the next try makes a
            // fresh one. After every other failure, a denial too, it may be bound: the client asks
            // twice by itself where something changed meanwhile, and the second time what was
            // shown is spent.
            if was_there && why.is_conflict() {
                joining.give_up();
            }
            Err(why)
        }
    }
}

async fn watch_processes(workloads: Arc<Workloads>, mut shutdown: watch::Receiver<bool>) {
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => {}
        never = workloads.watch() => match never {},
    }
}

async fn sweep(workloads: Arc<Workloads>, mut shutdown: watch::Receiver<bool>) {
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => {}
        never = workloads.sweep() => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SystemClock;

    fn joined(above: &Path) -> PathBuf {
        let dir = above.join("state");
        DeviceKey::kept(&dir);
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
        assert!(matches!(open(&dir), Err(AgentError::Home(HomeError::Busy(_)))));
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
