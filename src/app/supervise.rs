//! Tasks: the one place that spawns. Each has a name; the end of one that should go on ends all, and
//! a panic is such an end.
//!
//! Stopping has two steps: `stop` is seen by every task, which finishes what it has begun; after the
//! drain's deadline whatever still runs is cut off.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::broker::Spawn;
use crate::identity::{Peer, Task};
use crate::model::limits;

/// The name of a task that ended although it should not have, and why.
pub type Fall = (&'static str, String);

/// The tasks of one process.
pub struct Supervisor {
    stop: watch::Sender<bool>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    falls: (mpsc::Sender<Fall>, mpsc::Receiver<Fall>),
}

impl Default for Supervisor {
    fn default() -> Self {
        Self {
            stop: watch::channel(false).0,
            tasks: Arc::default(),
            // One fall ends everything; a few more may be under way.
            falls: mpsc::channel(16),
        }
    }
}

impl Supervisor {
    /// Turns true when everything shall end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Starts a task that goes on until `stop`; its end before that is a fall.
    pub fn go_on<E: std::fmt::Display>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let (falls, stop) = (self.falls.0.clone(), self.stop.subscribe());
        self.spawn(async move {
            let outcome = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(panic) => Err(words(panic.as_ref())),
            };
            if !*stop.borrow() || outcome.is_err() {
                let why = outcome.err().unwrap_or_else(|| "it ended by itself".to_owned());
                let _ = falls.try_send((name, why));
            }
        });
    }

    /// Starts blocking work on a thread of its own, with the same rule.
    pub fn go_on_thread<E: std::fmt::Display + Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let (falls, stop) = (self.falls.0.clone(), self.stop.subscribe());
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let outcome = match std::panic::catch_unwind(AssertUnwindSafe(work)) {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(panic) => Err(words(panic.as_ref())),
            };
            if !*stop.borrow() || outcome.is_err() {
                let why = outcome.err().unwrap_or_else(|| "it ended by itself".to_owned());
                let _ = falls.try_send((name, why));
            }
        })
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(|broken| broken.into_inner());
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// For rooms that need tasks of their own (one a connection).
    pub fn spawner(&self) -> Spawn {
        let tasks = Arc::clone(&self.tasks);
        Arc::new(move |name, task: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let mut tasks = tasks.lock().unwrap_or_else(|broken| broken.into_inner());
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // One connection's fault ends that connection, and is said.
                if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                    tracing::error!(task = name, why = words(panic.as_ref()), "a task fell");
                }
            });
        })
    }

    /// The broker as its own caller, for a task out of the closed set.
    pub fn broker_peer(task: Task) -> Peer {
        Peer::broker(task)
    }

    /// Waits for the first fall.
    pub async fn fall(&mut self) -> Fall {
        match self.falls.1.recv().await {
            Some(fall) => fall,
            None => std::future::pending().await,
        }
    }

    /// Tells every task to stop, waits for the drain, cuts off the rest.
    pub async fn drain(&self) {
        self.stop.send_replace(true);
        let mut tasks = {
            let mut tasks = self.tasks.lock().unwrap_or_else(|broken| broken.into_inner());
            std::mem::take(&mut *tasks)
        };
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(limits::DRAIN * 2, all).await.is_err() {
            tracing::warn!("some tasks did not end in time and were cut off");
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a word"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    async fn fall(supervisor: &mut Supervisor) -> Fall {
        timeout(limits::DRAIN, supervisor.fall()).await.expect("no fall was told")
    }

    #[tokio::test]
    async fn a_task_that_ends_fails_or_panics_is_a_fall() {
        let mut supervisor = Supervisor::default();
        supervisor.go_on("ends", async { Ok::<(), Infallible>(()) });
        assert_eq!(fall(&mut supervisor).await, ("ends", "it ended by itself".to_owned()));
        supervisor.go_on("fails", async { Err::<(), _>("no disk") });
        assert_eq!(fall(&mut supervisor).await, ("fails", "no disk".to_owned()));
        supervisor.go_on("panics", async { lost("a bug") });
        assert_eq!(fall(&mut supervisor).await, ("panics", "it panicked: a bug".to_owned()));
    }

    fn lost(what: &str) -> Result<(), Infallible> {
        panic!("{what}")
    }

    #[tokio::test]
    async fn a_thread_that_ends_fails_or_panics_is_a_fall() {
        let mut supervisor = Supervisor::default();
        supervisor.go_on_thread("ends", || Ok::<(), Infallible>(())).unwrap();
        assert_eq!(fall(&mut supervisor).await.0, "ends");
        supervisor.go_on_thread("fails", || Err::<(), _>("no disk")).unwrap();
        assert_eq!(fall(&mut supervisor).await, ("fails", "no disk".to_owned()));
        let thread = supervisor.go_on_thread("panics", || lost("a bug")).unwrap();
        assert_eq!(fall(&mut supervisor).await, ("panics", "it panicked: a bug".to_owned()));
        assert!(thread.join().is_ok(), "what was caught does not spread");
    }

    #[tokio::test]
    async fn an_end_after_stop_is_none_and_neither_is_one_connections_panic() {
        let mut supervisor = Supervisor::default();
        (supervisor.spawner())(
            "connection",
            Box::pin(async {
                let _ = lost("one guest");
            }),
        );
        let mut stop = supervisor.stopping();
        supervisor.go_on("stops", async move {
            let _ = stop.wait_for(|stop| *stop).await;
            Ok::<(), Infallible>(())
        });
        supervisor.drain().await;
        assert!(supervisor.falls.1.try_recv().is_err());
    }
}
