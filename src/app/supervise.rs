//! Tasks: the one place that spawns. Each has a name; the end of one that should go on ends all.
//!
//! Stopping has two steps: `stop` is seen by every task, which finishes what it has begun; after the
//! drain's deadline whatever still runs is cut off.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

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
            let outcome = task.await.map_err(|error| error.to_string());
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
            let outcome = work().map_err(|error| error.to_string());
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
        Arc::new(move |_name, task: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let mut tasks = tasks.lock().unwrap_or_else(|broken| broken.into_inner());
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
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
