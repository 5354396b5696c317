//! The agent as a process, and what a workload's command does with its socket.

use std::path::Path;
use std::sync::Arc;

use super::supervise::Supervisor;
use crate::agent::{Agent, AgentError, DeviceKey};
use crate::model::Clock;

pub use crate::agent::{
    ImageUnknown, RunError, attest_pid, exec, fetch, identity as agent_identity, image_of,
};

/// Why an agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentRunError {
    /// It does not start.
    #[error(transparent)]
    Start(#[from] AgentError),
    /// A task fell.
    #[error("the task `{task}` fell; the agent has stopped: {why}")]
    Fall {
        /// Which.
        task: &'static str,
        /// Why.
        why: String,
    },
}

/// A runtime for whoever has a key in a TPM: a worker that waits for the TPM gives its other tasks to
/// the next one.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime_beside_tpm() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// The runtime for the agent whose state lies in `dir`: one thread, unless a TPM is waited for.
///
/// # Errors
/// As [`runtime_beside_tpm`].
pub fn agent_runtime(dir: &Path) -> std::io::Result<tokio::runtime::Runtime> {
    match DeviceKey::open(dir).is_ok_and(|key| key.is_in_tpm()) {
        true => runtime_beside_tpm(),
        false => super::ports::runtime(),
    }
}

/// Runs the agent whose state lies in `dir` until `stop` resolves.
///
/// # Errors
/// When it can't start, or a task falls.
pub async fn run_agent(
    dir: &Path,
    clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()>,
) -> Result<(), AgentRunError> {
    let mut supervisor = Supervisor::default();
    let agent = Agent::open(dir, clock, supervisor.stopping())?;
    let handle = agent.handle();
    for (name, task) in agent.tasks() {
        supervisor.go_on(name, task);
    }
    let ready = async {
        handle.ready().await;
        tracing::info!("ready");
        super::process::notify_ready();
        std::future::pending::<()>().await;
    };
    let fall = tokio::select! {
        () = stop => None,
        fall = supervisor.fall() => Some(fall),
        () = ready => None,
    };
    supervisor.drain().await;
    match fall {
        None => Ok(()),
        Some((task, why)) => Err(AgentRunError::Fall { task, why }),
    }
}
