//! Handshakes under way: how many in all, and how many of one network. Before a handshake has ended
//! nothing is known of its peer, so nothing else can be counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::rates::Source;
use crate::model::limits;

/// The handshakes of one port.
#[derive(Debug, Default)]
pub struct HalfOpen(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of_source: HashMap<Source, usize>,
}

/// One handshake under way; dropping it takes it out of the count.
#[derive(Debug)]
pub struct Shaking {
    of: Arc<HalfOpen>,
    source: Source,
}

impl HalfOpen {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// How many are under way.
    pub fn count(&self) -> usize {
        self.counts().all
    }

    /// Begins one, unless too many are under way in all or from this network.
    pub fn enter(self: &Arc<Self>, source: Source) -> Option<Shaking> {
        let mut counts = self.counts();
        let held = counts.of_source.get(&source).copied().unwrap_or(0);
        if counts.all >= limits::INCOMING_MAX || held >= limits::HALF_OPEN_PER_SOURCE {
            return None;
        }
        counts.all += 1;
        counts.of_source.insert(source, held + 1);
        Some(Shaking { of: Arc::clone(self), source })
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        let mut counts = self.of.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(held) = counts.of_source.get_mut(&self.source) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                counts.of_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_does_not_fill_the_port() {
        let half_open = Arc::new(HalfOpen::default());
        let (loud, quiet) =
            (Source::of("192.0.2.1".parse().unwrap()), Source::of("198.51.100.1".parse().unwrap()));
        let held: Vec<_> = std::iter::from_fn(|| half_open.enter(loud)).collect();
        assert_eq!(held.len(), limits::HALF_OPEN_PER_SOURCE);
        assert!(half_open.enter(quiet).is_some());
        drop(held);
        assert_eq!(half_open.count(), 0);
        assert!(half_open.enter(loud).is_some());
    }
}
