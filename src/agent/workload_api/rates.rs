//! How much the processes of one user may ask for: each identity costs the broker a decision, records
//! and a signature, all in the agent's own name. A call is one unit; one that is answered with
//! several identities is as many.

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
    /// Counts so many units of a user, all or none; whether they are within the rate.
    pub(super) fn admits(&self, uid: u32, units: usize, now: Duration) -> bool {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let mut users = self.0.lock().unwrap_or_else(|broken| broken.into_inner());
        let used = users.get(&uid).copied().unwrap_or(Used { calls: 0.0, at: now }).at(now);
        if used.calls + f64::from(units) > f64::from(WORKLOAD_CALLS_BURST) {
            return false;
        }
        if !users.contains_key(&uid) {
            users.retain(|_, used| used.at(now).calls > 0.0);
        }
        users.insert(uid, Used { calls: used.calls + f64::from(units), ..used });
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
            assert!(rates.admits(1, 1, start));
        }
        assert!(!rates.admits(1, 1, start));
        assert!(rates.admits(2, 1, start));
        let second = start + Duration::from_secs(1);
        for _ in 0..WORKLOAD_CALLS_RATE {
            assert!(rates.admits(1, 1, second));
        }
        assert!(!rates.admits(1, 1, second));
        assert!(!rates.admits(1, 1, start), "a clock that goes back gives nothing");
    }

    #[test]
    fn several_units_are_counted_together_or_not_at_all() {
        let (rates, start) = (Rates::default(), Duration::from_secs(100));
        let all = usize::try_from(WORKLOAD_CALLS_BURST).unwrap();
        assert!(!rates.admits(1, all + 1, start) && !rates.admits(1, usize::MAX, start));
        assert!(rates.admits(1, all - 1, start));
        assert!(!rates.admits(1, 2, start));
        assert!(rates.admits(1, 1, start), "what was refused was not counted");
        assert!(rates.admits(1, 0, start) && !rates.admits(1, 1, start));
    }

    #[test]
    fn whoever_is_quiet_is_forgotten() {
        let rates = Rates::default();
        for uid in 0..1000 {
            assert!(rates.admits(uid, 1, Duration::from_secs(u64::from(uid))));
        }
        assert!(rates.0.lock().unwrap().len() <= 2);
    }
}
