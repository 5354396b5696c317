//! What runs, and whether more may begin. What only waits is no running request: it is told of a drain.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;

use super::line::Line;

/// The line's running requests, and its end.
#[derive(Debug)]
pub struct Traffic {
    /// No new requests are taken.
    draining: AtomicBool,
    /// The same, for those that wait.
    drained: watch::Sender<bool>,
    /// Requests that have begun and not ended.
    running: AtomicUsize,
}

impl Default for Traffic {
    fn default() -> Self {
        let (draining, running) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { draining, drained: watch::channel(false).0, running }
    }
}

impl Traffic {
    /// Whether requests are refused as `draining`.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// One running request; dropping it ends it.
#[derive(Debug)]
pub struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Line {
    /// From now on, requests are refused as `draining`, and those that wait are ended.
    pub fn drain(&self) {
        self.traffic.draining.store(true, Ordering::Relaxed);
        self.traffic.drained.send_replace(true);
    }

    /// Resolves once requests are refused as `draining`.
    pub async fn drained(&self) {
        let _ = self.traffic.drained.subscribe().wait_for(|drained| *drained).await;
    }

    /// Begins a request; it runs until the guard is dropped, its answer's way out included.
    pub fn begin(&self) -> Running<'_> {
        self.traffic.running.fetch_add(1, Ordering::AcqRel);
        Running(&self.traffic.running)
    }

    /// Requests that have begun and not ended.
    pub fn running(&self) -> usize {
        self.traffic.running.load(Ordering::Acquire)
    }
}
