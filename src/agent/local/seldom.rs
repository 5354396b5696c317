//! A line of the agent's own log that anybody on the machine can cause: told seldom, with a count.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two lines of one kind.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// How many there were since the last line, this one included; `None` when it is too early.
    pub(super) fn due(&self) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(|broken| broken.into_inner());
        let (last, count) = &mut *told;
        *count = count.saturating_add(1);
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_and_a_count() {
        let seldom = Seldom::default();
        assert_eq!(seldom.due(), Some(1));
        for _ in 0..1000 {
            assert_eq!(seldom.due(), None);
        }
        seldom.0.lock().unwrap().0 = None; // the pause is over
        assert_eq!(seldom.due(), Some(1001));
    }
}
