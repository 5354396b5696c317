//! One key serves one identity: what the keys of living SVIDs were certified for.
//!
//! Held in memory, in two generations of bounded size: when the young one is full it becomes the
//! old one, and the old one is forgotten. So it never scans, never refuses for want of room, and
//! forgets the oldest first. A restart forgets all; device keys are checked against the store's
//! rows instead, exactly. It must never decide that a key is good, only that it is taken.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::model::limits::LIVING_KEYS_MAX;
use crate::model::{Digest, Moment};

/// What a key was certified for: a digest over everything that makes the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    identity: [u8; 16],
    until: i64,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<[u8; 16], Bound>,
    old: HashMap<[u8; 16], Bound>,
}

/// The keys.
#[derive(Debug, Default)]
pub(super) struct LivingKeys(Mutex<Generations>);

impl LivingKeys {
    /// Binds a key to an identity until `until` (seconds since 1970); false when it serves another
    /// living identity. `identity` is any text that is different for different identities.
    #[must_use]
    pub(super) fn bind(&self, key: &Digest, identity: &str, until: i64, now: Moment) -> bool {
        let mut bound = Bound { identity: half(&Digest::of(identity.as_bytes())), until };
        let key = half(key);
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.living(&key, now) {
            Some(other) if other.identity != bound.identity => return false,
            Some(same) => bound.until = bound.until.max(same.until),
            None => {}
        }
        keys.old.remove(&key);
        keys.young.insert(key, bound);
        if keys.young.len() >= LIVING_KEYS_MAX / 2 {
            keys.old = std::mem::take(&mut keys.young);
        }
        true
    }

    /// Whether the key serves a living identity.
    pub(super) fn serves(&self, key: &Digest, now: Moment) -> bool {
        let keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.living(&half(key), now).is_some()
    }
}

impl Generations {
    fn living(&self, key: &[u8; 16], now: Moment) -> Option<Bound> {
        let bound = self.young.get(key).or_else(|| self.old.get(key))?;
        (bound.until > now.unix_s()).then_some(*bound)
    }
}

/// Half a digest: 128 bits are enough to tell keys apart, and half the memory.
fn half(digest: &Digest) -> [u8; 16] {
    super::records::token_key(digest)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Clock, ManualClock};

    #[test]
    fn a_key_serves_one_identity_until_that_one_has_ended() {
        let clock = ManualClock::at(time::macros::datetime!(2026-11-23 00:00 UTC));
        let keys = LivingKeys::default();
        let (key, until) = (Digest::of(b"key"), clock.now().unix_s() + 60);
        assert!(keys.bind(&key, "a", until, clock.now()));
        assert!(keys.bind(&key, "a", until - 30, clock.now()), "the same identity renews");
        clock.advance(Duration::from_secs(40));
        assert!(!keys.bind(&key, "b", until, clock.now()));
        assert!(keys.serves(&key, clock.now()));
        clock.advance(Duration::from_secs(20));
        assert!(!keys.serves(&key, clock.now()));
        assert!(keys.bind(&key, "b", until + 60, clock.now()));
    }

    #[test]
    fn it_stays_bounded_and_forgets_the_oldest() {
        let clock = ManualClock::at(time::macros::datetime!(2026-11-23 00:00 UTC));
        let (keys, now) = (LivingKeys::default(), clock.now());
        let key = |i: usize| Digest::of(&i.to_be_bytes());
        for i in 0..=LIVING_KEYS_MAX {
            assert!(keys.bind(&key(i), "a", now.unix_s() + 60, now));
        }
        let held = keys.0.lock().unwrap();
        assert!(held.young.len() + held.old.len() <= LIVING_KEYS_MAX);
        drop(held);
        assert!(!keys.serves(&key(0), now));
        assert!(keys.serves(&key(LIVING_KEYS_MAX), now));
    }
}
