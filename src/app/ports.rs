//! The broker's UDP ports, and the threads that serve them.
//!
//! One thread serves a connection from its handshake to its end, on a runtime of its own: between
//! threads that share one, a request costs twice as much. What they share is read-only or behind
//! short locks; the log wakes each of them once a batch.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::opening::StartError;
use super::supervise::Supervisor;
use crate::broker::{Door, Listener};
use crate::model::limits;
use crate::wire;

/// A port that is about to be opened.
pub(super) struct Opening {
    pub(super) address: SocketAddr,
    pub(super) config: wire::PortConfig,
    pub(super) door: Arc<Door>,
    /// How many threads serve it, the present one among them.
    pub(super) threads: usize,
}

/// Threads that serve connections where the configuration names no number: one a core, and one core
/// left to the log's writer, without which none of them gets on.
pub(super) fn cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(1).clamp(1, limits::SERVING_THREADS)
}

/// The runtime of a thread that serves: one for each, so that nothing wanders between cores.
///
/// # Errors
/// When the system gives no means to wait.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().on_thread_park(crate::decision_log::before_park).build()
}

impl Opening {
    /// Opens it: the first socket is served by the present runtime, each other by a thread of its
    /// own, which is added to `threads`. Gives the address.
    ///
    /// # Errors
    /// When the address can't be had, or no thread.
    pub(super) fn open(
        self,
        name: &'static str,
        supervisor: &Supervisor,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Result<SocketAddr, StartError> {
        let address = self.address;
        let fault = |source| StartError::Listen { address, source };
        let sockets = wire::sockets(address, self.threads).map_err(fault)?;
        let mut bound = address;
        for (number, socket) in sockets.into_iter().enumerate() {
            bound = socket.local_addr().map_err(fault)?;
            let (config, door) = (self.config.clone(), Arc::clone(&self.door));
            let (spawn, stop) = (supervisor.spawner(), supervisor.stopping());
            if number == 0 {
                let listener = Listener::open(socket, config, door).map_err(fault)?;
                supervisor.go_on(name, async move {
                    listener.run(spawn, stop).await;
                    Ok::<_, Infallible>(())
                });
                continue;
            }
            let serve = move || {
                runtime()?.block_on(async {
                    Listener::open(socket, config, door)?.run(spawn, stop).await;
                    Ok::<_, std::io::Error>(())
                })
            };
            threads.push(supervisor.go_on_thread(name, serve).map_err(StartError::Thread)?);
        }
        Ok(bound)
    }
}
