//! What is counted instead of recorded one by one, per caller, until a summary takes it down.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::model::limits::{CALLERS_WATCHED, SPIFFE_ID_MAX};

/// The name under which callers are counted that found no room of their own.
const OTHERS: &str = "others";

/// The counters.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<Tally>);

#[derive(Debug, Default)]
struct Tally {
    by_what: HashMap<&'static str, HashMap<Box<str>, u64>>,
    callers: usize,
}

/// One line of a summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    /// Who, or a network prefix.
    pub(super) caller: Box<str>,
    /// What.
    pub(super) what: &'static str,
    /// How often.
    pub(super) count: u64,
}

impl Counts {
    /// One more.
    pub(super) fn add(&self, caller: &str, what: &'static str) {
        self.put_back(caller, what, 1);
    }

    /// So many more.
    pub(super) fn put_back(&self, caller: &str, what: &'static str, count: u64) {
        let mut tally = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let room = tally.callers < CALLERS_WATCHED;
        let counters = tally.by_what.entry(what).or_default();
        if let Some(counter) = counters.get_mut(caller) {
            *counter = counter.saturating_add(count);
            return;
        }
        let name = if room && caller.len() <= SPIFFE_ID_MAX { caller } else { OTHERS };
        let counter = counters.entry(name.into()).or_insert(0);
        let is_new = *counter == 0;
        *counter = counter.saturating_add(count);
        tally.callers += usize::from(is_new && name != OTHERS);
    }

    /// Takes everything.
    pub(super) fn take(&self) -> Vec<Counted> {
        let tally = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        let lines = tally.by_what.into_iter().flat_map(|(what, counters)| {
            counters.into_iter().map(move |(caller, count)| Counted { caller, what, count })
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort_by(|a, b| (a.what, &a.caller).cmp(&(b.what, &b.caller)));
        lines
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).by_what.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_are_taken_once() {
        let counts = Counts::default();
        counts.add("b", "handshake");
        counts.add("a", "handshake");
        counts.add("a", "handshake");
        let taken = counts.take();
        assert_eq!(taken.len(), 2);
        assert_eq!((&*taken[0].caller, taken[0].count), ("a", 2));
        assert!(counts.is_empty() && counts.take().is_empty());
    }

    #[test]
    fn callers_are_bounded_and_none_is_lost() {
        let counts = Counts::default();
        for i in 0..CALLERS_WATCHED + 10 {
            counts.add(&format!("10.0.{i}"), "handshake");
        }
        counts.add(&"x".repeat(SPIFFE_ID_MAX + 1), "handshake");
        let taken = counts.take();
        assert_eq!(taken.len(), CALLERS_WATCHED + 1);
        let others = taken.iter().find(|line| &*line.caller == OTHERS).unwrap();
        assert_eq!(others.count, 11);
    }
}
