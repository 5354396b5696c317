//! Counts wrong tokens, one minute at a time.
//!
//! A token has 256 random bits, so no rate of guessing is a danger; what the count bounds is how
//! long a stranger is given a reason. A right token is taken however many wrong ones came before
//! it: a limit that refused right ones would let any stranger stop all enrolment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::Moment;
use crate::model::limits::GUESSES_MAX;

const MINUTE: Duration = Duration::from_secs(60);

/// The count of the running minute.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<(Duration, u32)>);

impl Guesses {
    /// Counts one wrong token; whether it is still told what is wrong.
    pub(super) fn wrong(&self, now: Moment) -> bool {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(minute.0) >= MINUTE {
            *minute = (now.boot(), 0);
        }
        minute.1 = minute.1.saturating_add(1);
        minute.1 <= GUESSES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock, ManualClock};

    #[test]
    fn the_count_ends_with_its_minute() {
        let clock = ManualClock::at(time::macros::datetime!(2026-11-23 00:00 UTC));
        let guesses = Guesses::default();
        for _ in 0..GUESSES_MAX {
            assert!(guesses.wrong(clock.now()));
        }
        assert!(!guesses.wrong(clock.now()));
        clock.advance(MINUTE);
        assert!(guesses.wrong(clock.now()));
    }
}
