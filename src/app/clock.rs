//! The broker's clock: the machine's, but never before the last record of the log, and watched.
//!
//! A clock that somebody sets back must not revive what has expired; one that jumps makes every
//! verdict unknown until devices have reported again.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;

use crate::model::{Clock, Moment, limits};

/// The floor follows the clock in steps of this.
const FLOOR_STEP_MS: i64 = 1000;

/// A clock with a floor: what it last showed, or the last record if that is later.
#[derive(Debug)]
pub struct GuardedClock {
    inner: Arc<dyn Clock>,
    /// Wall time in milliseconds that is never gone below.
    floor_ms: AtomicI64,
}

impl GuardedClock {
    /// The clock, without a floor yet.
    pub fn new(inner: Arc<dyn Clock>) -> Self {
        Self { inner, floor_ms: AtomicI64::new(i64::MIN) }
    }

    /// From now on the wall clock reads at least this.
    pub fn never_before(&self, wall: OffsetDateTime) {
        let ms = i64::try_from(wall.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MIN);
        self.floor_ms.fetch_max(ms, Ordering::Relaxed);
    }

    /// The machine's own reading, floor or not: what the watch compares.
    pub fn raw(&self) -> Moment {
        self.inner.now()
    }

    /// How far the raw wall clock stands behind the floor; zero when it does not.
    pub fn behind(&self) -> Duration {
        let floor = self.floor_ms.load(Ordering::Relaxed);
        let behind = floor.saturating_sub(self.inner.now().unix_ms());
        Duration::from_millis(u64::try_from(behind).unwrap_or(0))
    }
}

impl Clock for GuardedClock {
    fn now(&self) -> Moment {
        let raw = self.inner.now();
        let (now, floor) = (raw.unix_ms(), self.floor_ms.load(Ordering::Relaxed));
        if now >= floor {
            // What was seen once is never gone below, to a second: that keeps the write rare.
            if now.saturating_sub(floor) >= FLOOR_STEP_MS {
                self.floor_ms.fetch_max(now, Ordering::Relaxed);
            }
            return raw;
        }
        let wall = OffsetDateTime::from_unix_timestamp_nanos(i128::from(floor) * 1_000_000);
        Moment::new(wall.unwrap_or(raw.wall()), raw.boot())
    }
}

/// Looks at both clocks again and again; says when they went apart.
#[derive(Debug)]
pub struct Watch {
    last: Moment,
}

impl Watch {
    /// Begins to watch.
    pub fn new(now: Moment) -> Self {
        Self { last: now }
    }

    /// By how much wall and boot clock went apart since the last look, if by too much.
    pub fn look(&mut self, now: Moment) -> Option<Duration> {
        let wall = now.wall() - self.last.wall();
        let boot = time::Duration::try_from(now.since(self.last.boot())).unwrap_or_default();
        self.last = now;
        let apart: Duration = (wall - boot).unsigned_abs();
        (apart > limits::CLOCK_STEP).then_some(apart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ManualClock;
    use time::macros::datetime;

    #[test]
    fn a_set_back_clock_stays_at_the_last_record() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        clock.never_before(datetime!(2026-11-23 12:00 UTC));
        manual.set_wall(datetime!(2020-01-01 00:00 UTC));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 12:00 UTC));
        assert!(clock.behind() > Duration::from_secs(86_400));
    }

    #[test]
    fn what_has_ended_once_stays_ended() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 12:00 UTC));
        manual.advance(Duration::from_secs(3600));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 13:00 UTC));
        manual.set_wall(datetime!(2026-11-23 12:00 UTC));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 13:00 UTC));
        assert_eq!(clock.behind(), Duration::from_secs(3600));
        assert_eq!(clock.raw().wall(), datetime!(2026-11-23 12:00 UTC), "the watch sees it");
        manual.advance(Duration::from_secs(3601));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 13:00:01 UTC), "it catches up");
    }

    #[test]
    fn only_a_step_of_one_clock_is_an_alarm() {
        let manual = ManualClock::at(datetime!(2026-11-23 12:00 UTC));
        let mut watch = Watch::new(manual.now());
        manual.advance(Duration::from_secs(600));
        assert_eq!(watch.look(manual.now()), None, "both went on: suspend, not a step");
        manual.set_wall(datetime!(2026-11-24 12:00 UTC));
        assert!(watch.look(manual.now()).is_some());
        assert_eq!(watch.look(manual.now()), None);
    }
}
