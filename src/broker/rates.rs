//! How often one caller may ask. What is over the rate is counted in the log, not recorded one by
//! one, so that no client can fill the disk.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::model::{Moment, SpiffeId, limits};

/// One caller's two token buckets, as the boot time at which each would be empty of debt.
#[derive(Debug, Clone, Copy, Default)]
struct Buckets {
    requests: Duration,
    denials: Duration,
}

/// Rates of all callers; the map is bounded.
#[derive(Debug)]
pub struct Rates {
    per_second: u32,
    denials_per_second: u32,
    callers: Mutex<HashMap<SpiffeId, Buckets>>,
}

impl Rates {
    /// Requests and denials a second of one caller; a second's worth may come at once.
    pub fn new(per_second: u32, denials_per_second: u32) -> Self {
        Self { per_second, denials_per_second, callers: Mutex::default() }
    }

    /// Takes one request out of the caller's bucket; `false` when it is empty.
    pub fn request(&self, caller: &SpiffeId, now: Moment) -> bool {
        self.take(caller, now, self.per_second, |buckets| &mut buckets.requests)
    }

    /// Takes one denial out of the caller's bucket; `false` when it is empty.
    pub fn denial(&self, caller: &SpiffeId, now: Moment) -> bool {
        self.take(caller, now, self.denials_per_second, |buckets| &mut buckets.denials)
    }

    fn take(
        &self,
        caller: &SpiffeId,
        now: Moment,
        rate: u32,
        which: impl Fn(&mut Buckets) -> &mut Duration,
    ) -> bool {
        let step = Duration::from_secs(1).checked_div(rate).unwrap_or(Duration::MAX);
        let mut callers = self.callers.lock().unwrap_or_else(|broken| broken.into_inner());
        if !callers.contains_key(caller) {
            if callers.len() >= limits::CALLERS_WATCHED {
                // Whoever owes nothing any more is forgotten; if all owe, nobody new gets in.
                callers.retain(|_, b| b.requests > now.boot() || b.denials > now.boot());
                if callers.len() >= limits::CALLERS_WATCHED {
                    return false;
                }
            }
            callers.insert(caller.clone(), Buckets::default());
        }
        let Some(buckets) = callers.get_mut(caller) else { return false };
        let full_at = which(buckets);
        let next = (*full_at).max(now.boot()).saturating_add(step);
        if next.saturating_sub(now.boot()) > Duration::from_secs(1) {
            return false;
        }
        *full_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock, ManualClock};

    #[test]
    fn a_seconds_worth_comes_at_once_and_then_at_the_rate() {
        let clock = ManualClock::at(time::OffsetDateTime::UNIX_EPOCH);
        let rates = Rates::new(10, 2);
        let api = SpiffeId::parse("spiffe://corp.example/api").unwrap();
        let web = SpiffeId::parse("spiffe://corp.example/web").unwrap();
        assert_eq!((0..20).filter(|_| rates.request(&api, clock.now())).count(), 10);
        assert!(rates.request(&web, clock.now()), "another caller has its own");
        assert!(rates.denial(&api, clock.now()), "denials are counted apart");
        clock.advance(Duration::from_millis(200));
        assert_eq!((0..20).filter(|_| rates.request(&api, clock.now())).count(), 2);
    }
}
