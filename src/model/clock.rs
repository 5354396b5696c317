//! Time, from one place (invariant I15).
//!
//! `wall` is what people and certificates mean; `boot` (CLOCK_BOOTTIME) is what ages are counted by,
//! because it goes on in suspend and nobody can set it.

use std::sync::Mutex;
use std::time::Duration;

use time::OffsetDateTime;

/// One look at both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    wall: OffsetDateTime,
    boot: Duration,
}

impl Moment {
    /// A moment from its two readings.
    pub fn new(wall: OffsetDateTime, boot: Duration) -> Self {
        Self { wall, boot }
    }

    /// The wall clock, UTC.
    pub fn wall(&self) -> OffsetDateTime {
        self.wall
    }

    /// Time since boot, suspend included; only differences mean anything.
    pub fn boot(&self) -> Duration {
        self.boot
    }

    /// Seconds since 1970, UTC.
    pub fn unix_s(&self) -> i64 {
        self.wall.unix_timestamp()
    }

    /// Milliseconds since 1970, UTC.
    pub fn unix_ms(&self) -> i64 {
        i64::try_from(self.wall.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
    }

    /// Time that has passed since an earlier boot reading; zero if it is later.
    pub fn since(&self, earlier_boot: Duration) -> Duration {
        self.boot.saturating_sub(earlier_boot)
    }

    /// `YYYY-MM-DDTHH:MM:SSZ`, the form that windows of policies are compared in.
    pub fn rfc3339(&self) -> String {
        rfc3339(self.wall)
    }
}

/// `YYYY-MM-DDTHH:MM:SSZ`, always 20 bytes for years 0 to 9999.
pub fn rfc3339(at: OffsetDateTime) -> String {
    let at = if at.offset().is_utc() { at } else { at.to_offset(time::UtcOffset::UTC) };
    let (year, month, day) = at.to_calendar_date();
    let mut text = String::with_capacity(24);
    digits(&mut text, u32::try_from(year).unwrap_or(0), 4, '-');
    digits(&mut text, u8::from(month).into(), 2, '-');
    digits(&mut text, day.into(), 2, 'T');
    digits(&mut text, at.hour().into(), 2, ':');
    digits(&mut text, at.minute().into(), 2, ':');
    digits(&mut text, at.second().into(), 2, 'Z');
    text
}

/// The last `width` digits of a number, and what follows them. By hand: each request needs one.
fn digits(text: &mut String, number: u32, width: u32, then: char) {
    for place in (0..width).rev() {
        let digit = number / 10u32.pow(place) % 10;
        text.push(char::from(b'0' + u8::try_from(digit).unwrap_or(0)));
    }
    text.push(then);
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ`, the form of the decision log.
pub fn rfc3339_millis(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

/// Where time comes from; TLS included.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// Both clocks, now.
    fn now(&self) -> Moment;
}

/// The machine's clocks.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map(Duration::from)
            .unwrap_or_default();
        Moment { wall: OffsetDateTime::now_utc(), boot }
    }
}

/// A clock that a test moves by hand.
#[derive(Debug)]
pub struct ManualClock(Mutex<Moment>);

impl ManualClock {
    /// Starts at this wall time, an hour after boot.
    pub fn at(wall: OffsetDateTime) -> Self {
        Self(Mutex::new(Moment { wall, boot: Duration::from_secs(3600) }))
    }

    /// Both clocks go on.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock().unwrap_or_else(|broken| broken.into_inner());
        now.wall += by;
        now.boot += by;
    }

    /// Somebody sets the wall clock; boot time does not care.
    pub fn set_wall(&self, wall: OffsetDateTime) {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner()).wall = wall;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Moment {
        *self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn windows_compare_as_text() {
        assert_eq!(rfc3339(datetime!(2026-11-23 04:05:06 UTC)), "2026-11-23T04:05:06Z");
        assert_eq!(
            rfc3339_millis(datetime!(2026-01-02 03:04:05.006 UTC)),
            "2026-01-02T03:04:05.006Z"
        );
    }

    #[test]
    fn a_set_back_wall_clock_does_not_touch_boot_time() {
        let clock = ManualClock::at(datetime!(2026-11-23 00:00 UTC));
        let before = clock.now();
        clock.set_wall(datetime!(2020-01-01 00:00 UTC));
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.now().since(before.boot()), Duration::from_secs(5));
    }
}
