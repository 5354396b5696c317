//! The broker's clock: the machine's, but it never goes back, neither behind the last record of the
//! log nor behind what it said itself, and it is watched.
//!
//! A clock that somebody sets back must not revive what has expired; one that jumps makes every
//! verdict unknown until devices have reported again. A jump forward is told as it is (things end
//! early, which is safe), but it is not held on to before it has proved itself: a mistake that is
//! taken back must not leave the broker in the future.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use time::OffsetDateTime;

use crate::model::{Clock, Moment, limits};

/// A clock with a floor.
#[derive(Debug)]
pub struct GuardedClock {
    inner: Arc<dyn Clock>,
    /// Wall time that is never gone below, and the boot time at which it was reached.
    floor: Mutex<Option<Moment>>,
}

impl GuardedClock {
    /// The clock, without a floor yet.
    pub fn new(inner: Arc<dyn Clock>) -> Self {
        Self { inner, floor: Mutex::default() }
    }

    /// From now on the wall clock reads at least this.
    pub fn never_before(&self, wall: OffsetDateTime) {
        let raw = self.inner.now();
        let mut floor = self.floor();
        let known = floor.map_or(raw.wall(), |floor| floor.wall());
        if floor.is_none() || wall > known {
            *floor = Some(Moment::new(known.max(wall), raw.boot()));
        }
    }

    /// The machine's own clocks, for whoever watches them.
    pub fn raw(&self) -> Moment {
        self.inner.now()
    }

    /// How far the raw wall clock stands behind the floor; zero when it does not.
    pub fn behind(&self) -> Duration {
        let raw = self.inner.now();
        let behind = self.floor().map_or(time::Duration::ZERO, |floor| floor.wall() - raw.wall());
        Duration::try_from(behind).unwrap_or_default()
    }

    /// The clocks have agreed long enough since a jump: the time that it led to is held on to.
    pub fn accept_step(&self) {
        let raw = self.inner.now();
        let mut floor = self.floor();
        if floor.is_none_or(|floor| raw.wall() > floor.wall()) {
            *floor = Some(raw);
        }
    }

    fn floor(&self) -> MutexGuard<'_, Option<Moment>> {
        self.floor.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Clock for GuardedClock {
    fn now(&self) -> Moment {
        let raw = self.inner.now();
        let mut guard = self.floor();
        let Some(floor) = *guard else {
            *guard = Some(raw);
            return raw;
        };
        if raw.wall() <= floor.wall() {
            return Moment::new(floor.wall(), raw.boot());
        }
        let believed = raw.since(floor.boot()).saturating_add(limits::CLOCK_STEP);
        if Duration::try_from(raw.wall() - floor.wall()).is_ok_and(|ahead| ahead <= believed) {
            *guard = Some(raw);
        }
        raw
    }
}

/// What one look at the clocks says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// By how much wall and boot clock went apart since the last look, if by too much.
    pub step: Option<Duration>,
    /// They agree, and have done so for a minute since they last did not.
    pub agree: bool,
    /// This very look ends that minute.
    pub settled: bool,
}

/// Looks at both clocks again and again; says when they went apart.
#[derive(Debug)]
pub struct Watch {
    last: Moment,
    /// Boot time of the last look at which they disagreed; none when that is a minute ago.
    apart_at: Option<Duration>,
}

impl Watch {
    /// Begins to watch.
    pub fn new(raw: Moment) -> Self {
        Self { last: raw, apart_at: None }
    }

    /// One look; `behind` is how far the wall clock stands behind its floor.
    pub fn look(&mut self, raw: Moment, behind: Duration) -> Look {
        let wall = raw.wall() - self.last.wall();
        let boot = time::Duration::try_from(raw.since(self.last.boot())).unwrap_or_default();
        self.last = raw;
        let apart: Duration = (wall - boot).unsigned_abs();
        let step = (apart > limits::CLOCK_STEP).then_some(apart);
        if step.is_some() || behind >= limits::CLOCK_STEP {
            self.apart_at = Some(raw.boot());
        }
        let settled = self.apart_at.is_some_and(|at| raw.since(at) >= limits::CLOCK_CALM);
        if settled {
            self.apart_at = None;
        }
        Look { step, agree: self.apart_at.is_none(), settled }
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
    fn a_clock_set_back_while_running_does_not_revive_what_has_expired() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        clock.never_before(datetime!(2026-11-23 11:00 UTC));
        manual.advance(Duration::from_secs(3600));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 13:00 UTC));
        manual.set_wall(datetime!(2026-11-23 12:00 UTC));
        manual.advance(Duration::from_secs(60));
        assert_eq!(
            clock.now().wall(),
            datetime!(2026-11-23 13:00 UTC),
            "never before what it said"
        );
        assert_eq!(clock.behind(), Duration::from_secs(59 * 60));
        manual.advance(Duration::from_secs(3600));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 13:01 UTC), "and then it goes on");
        assert_eq!(clock.behind(), Duration::ZERO);
    }

    #[test]
    fn a_start_long_after_the_last_record_is_no_jump() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        clock.never_before(datetime!(2026-11-01 00:00 UTC));
        manual.set_wall(datetime!(2026-11-02 00:00 UTC));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 12:00 UTC));
    }

    #[test]
    fn a_jump_forward_that_is_taken_back_is_forgotten() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 12:00 UTC));
        manual.set_wall(datetime!(2036-01-01 00:00 UTC));
        for _ in 0..100 {
            manual.advance(Duration::from_secs(1));
            assert!(clock.now().wall() > datetime!(2036-01-01 00:00 UTC), "it is told as it is");
        }
        manual.set_wall(datetime!(2026-11-23 12:02 UTC));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 12:02 UTC));
        assert_eq!(clock.behind(), Duration::ZERO);
    }

    #[test]
    fn a_jump_forward_that_is_accepted_is_the_floor_from_then_on() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 12:00 UTC));
        manual.set_wall(datetime!(2026-11-23 15:00 UTC));
        clock.accept_step();
        manual.set_wall(datetime!(2026-11-23 12:01 UTC));
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 15:00 UTC));
        clock.accept_step();
        assert_eq!(clock.now().wall(), datetime!(2026-11-23 15:00 UTC), "nothing lowers a floor");
    }

    #[test]
    fn after_a_step_the_clocks_must_agree_for_a_minute_in_a_row() {
        let manual = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let clock = GuardedClock::new(manual.clone());
        let mut watch = Watch::new(clock.raw());
        let mut second = |advance: u64| {
            manual.advance(Duration::from_secs(advance));
            let _ = clock.now();
            watch.look(clock.raw(), clock.behind())
        };
        assert!(second(1).agree);
        manual.set_wall(datetime!(2026-11-23 14:00 UTC));
        let look = second(1);
        assert!(look.step.is_some() && !look.agree);
        for _ in 0..59 {
            assert_eq!(second(1), Look { step: None, agree: false, settled: false });
        }
        manual.set_wall(datetime!(2026-11-23 16:00 UTC));
        assert!(second(1).step.is_some(), "the minute begins anew");
        for _ in 0..59 {
            assert!(!second(1).agree);
        }
        assert_eq!(second(1), Look { step: None, agree: true, settled: true });
        assert_eq!(second(1), Look { step: None, agree: true, settled: false });
        // Set back behind the floor: as long as that lasts, and a minute more.
        clock.accept_step();
        manual.set_wall(datetime!(2026-11-23 15:59 UTC));
        assert!(second(1).step.is_some());
        let mut waited = 0;
        while !second(1).agree {
            waited += 1;
            assert!(waited < 300);
        }
        assert!(waited > 60 + 60, "{waited} s");
    }

    #[test]
    fn only_a_step_of_one_clock_is_an_alarm() {
        let manual = ManualClock::at(datetime!(2026-11-23 12:00 UTC));
        let mut watch = Watch::new(manual.now());
        manual.advance(Duration::from_secs(600));
        assert_eq!(
            watch.look(manual.now(), Duration::ZERO).step,
            None,
            "both went on: suspend, not a step"
        );
        manual.set_wall(datetime!(2026-11-24 12:00 UTC));
        assert!(watch.look(manual.now(), Duration::ZERO).step.is_some());
        assert_eq!(watch.look(manual.now(), Duration::ZERO).step, None);
    }
}
