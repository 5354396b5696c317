//! How often the processes of one user may ask: each stream costs the broker decisions, records and
//! signatures, all in the agent's own name.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::model::limits::{WORKLOAD_CALLS_BURST, WORKLOAD_CALLS_RATE};

/// What one user has used: so many calls, as of then (boot time).
#[derive(Debug, Clone, Copy)]
struct Used {
    calls: f64,
    at: Duration,
}

impl Used {
    fn at(self, now: Duration) -> Self {
        let back = now.saturating_sub(self.at).as_secs_f64() * f64::from(WORKLOAD_CALLS_RATE);
        Self { calls: (self.calls - back).max(0.0), at: now }
    }
}

/// The rates of all users. Holds only those who have used something lately.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<u32, Used>>);

impl Rates {
    /// Counts one call of a user; whether it is within the rate.
    pub(super) fn admits(&self, uid: u32, now: Duration) -> bool {
        let mut users = self.0.lock().unwrap_or_else(|broken| broken.into_inner());
        let used = users.get(&uid).copied().unwrap_or(Used { calls: 0.0, at: now }).at(now);
        if used.calls + 1.0 > f64::from(WORKLOAD_CALLS_BURST) {
            return false;
        }
        if !users.contains_key(&uid) {
            users.retain(|_, used| used.at(now).calls > 0.0);
        }
        users.insert(uid, Used { calls: used.calls + 1.0, ..used });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_then_the_rate_and_each_user_has_his_own() {
        let (rates, start) = (Rates::default(), Duration::from_secs(100));
        for _ in 0..WORKLOAD_CALLS_BURST {
            assert!(rates.admits(1, start));
        }
        assert!(!rates.admits(1, start));
        assert!(rates.admits(2, start));
        let second = start + Duration::from_secs(1);
        for _ in 0..WORKLOAD_CALLS_RATE {
            assert!(rates.admits(1, second));
        }
        assert!(!rates.admits(1, second));
        assert!(!rates.admits(1, start), "a clock that goes back gives nothing");
    }

    #[test]
    fn whoever_is_quiet_is_forgotten() {
        let rates = Rates::default();
        for uid in 0..1000 {
            assert!(rates.admits(uid, Duration::from_secs(u64::from(uid))));
        }
        assert!(rates.0.lock().unwrap().len() <= 2);
    }
}
