//! How often one caller may ask. What is over the rate is counted in the log, not recorded one by
//! one, so that no client can fill the disk.
//!
//! Counted is by identity *and* device, so that one stolen or revoked instance does not use up what
//! the others may; strangers count by their network. Whoever does not count has a small bucket of
//! its own, and reports and renewals have one that ordinary requests can't empty.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use crate::identity::{Caller, CallerKind, Standing};
use crate::model::{Ask, DeviceId, Moment, SpiffeId, TrustDomain, limits};

/// A network that packets come from: /24 of IPv4, /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(u64);

impl Source {
    /// The network of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(u64::from(v4.to_bits() >> 8)),
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => Self(u64::from(v4.to_bits() >> 8)),
                // Never equal to a /24: those have no bits above 24.
                None => Self(u64::try_from(v6.to_bits() >> 64).unwrap_or(u64::MAX) | 1 << 63),
            },
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match u32::try_from(self.0) {
            Ok(bits) => write!(f, "{}/24", std::net::Ipv4Addr::from_bits(bits << 8)),
            Err(_) => {
                let bits = u128::from(self.0) << 64;
                write!(f, "{}/64", std::net::Ipv6Addr::from_bits(bits))
            }
        }
    }
}

/// Which bucket of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bucket {
    Requests,
    Own,
    Proofs,
    Reports,
    Denials,
    Dead,
}

/// Whose bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Caller(SpiffeId, Option<DeviceId>, Bucket),
    Network(Option<Source>, Bucket),
    /// All callers of another trust domain.
    Domain(TrustDomain),
}

/// Rates of all callers; the map is bounded.
#[derive(Debug)]
pub struct Rates {
    per_second: u32,
    denials_per_second: u32,
    /// The boot time at which each bucket would be empty of debt.
    full_at: Mutex<HashMap<Key, Duration, ahash::RandomState>>,
}

impl Rates {
    /// Requests and denials a second of one caller; a second's worth may come at once.
    pub fn new(per_second: u32, denials_per_second: u32) -> Self {
        Self { per_second, denials_per_second, full_at: Mutex::default() }
    }

    /// Takes one request out of the caller's bucket; `false` when it is empty.
    pub fn request(&self, caller: &Caller, source: Option<Source>, ask: &Ask, now: Moment) -> bool {
        let (bucket, rate) = match ask {
            _ if caller.standing() != Standing::Live => (Bucket::Dead, self.denials_per_second),
            Ask::Report { .. } => (Bucket::Reports, limits::REPORT_RATE),
            Ask::Enroll { by: Some(_), .. } => (Bucket::Proofs, limits::PROOFS_RATE),
            ask if ask.is_own() => (Bucket::Own, limits::OWN_RATE),
            _ => (Bucket::Requests, self.per_second),
        };
        let own = key(caller, source, bucket);
        if caller.is_foreign() {
            // What its own rate refuses costs its domain nothing; but the domain's comes before a
            // place for it, or whoever mints callers would fill the map with them.
            let domain = Key::Domain(caller.id().trust_domain().clone());
            if self.is_empty(&own, now, rate) || !self.take(domain, now, limits::DOMAIN_RATE) {
                return false;
            }
        }
        self.take(own, now, rate)
    }

    /// Whether a bucket that is known has nothing left.
    fn is_empty(&self, key: &Key, now: Moment, rate: u32) -> bool {
        let buckets = self.full_at.lock().unwrap_or_else(|broken| broken.into_inner());
        buckets.get(key).is_some_and(|full_at| after_one(*full_at, now, rate).is_none())
    }

    /// Takes one denial out of the caller's bucket; `false` when it is empty.
    pub fn denial(&self, caller: &Caller, source: Option<Source>, now: Moment) -> bool {
        self.take(key(caller, source, Bucket::Denials), now, self.denials_per_second)
    }

    fn take(&self, key: Key, now: Moment, rate: u32) -> bool {
        let mut buckets = self.full_at.lock().unwrap_or_else(|broken| broken.into_inner());
        if buckets.len() >= limits::CALLERS_WATCHED && !buckets.contains_key(&key) {
            // Whoever owes nothing any more is forgotten; if all owe, nobody new gets in.
            buckets.retain(|_, full_at| *full_at > now.boot());
            if buckets.len() >= limits::CALLERS_WATCHED {
                return false;
            }
        }
        let full_at = buckets.entry(key).or_default();
        let Some(next) = after_one(*full_at, now, rate) else { return false };
        *full_at = next;
        true
    }
}

/// When a bucket would be empty of debt with one more in it; `None` where that is too far away.
fn after_one(full_at: Duration, now: Moment, rate: u32) -> Option<Duration> {
    let step = Duration::from_secs(1).checked_div(rate).unwrap_or(Duration::MAX);
    let next = full_at.max(now.boot()).saturating_add(step);
    (next.saturating_sub(now.boot()) <= Duration::from_secs(1)).then_some(next)
}

fn key(caller: &Caller, source: Option<Source>, bucket: Bucket) -> Key {
    match caller.kind() {
        CallerKind::Applicant => Key::Network(source, bucket),
        _ => Key::Caller(caller.id().clone(), caller.device().copied(), bucket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::sample;
    use crate::model::{Clock, DeviceClass, Digest, EnrolBy, ManualClock};

    fn api(standing: Standing) -> Caller {
        let device = (DeviceClass::person(), DeviceId(Digest([7; 32])));
        sample::caller("spiffe://corp.example/api", CallerKind::Workload, standing, Some(device))
    }

    #[test]
    fn a_seconds_worth_comes_at_once_and_then_at_the_rate() {
        let clock = ManualClock::at(time::OffsetDateTime::UNIX_EPOCH);
        let (rates, live) = (Rates::new(10, 2), api(Standing::Live));
        let ask = |caller: &Caller| rates.request(caller, None, &Ask::Status {}, clock.now());
        assert_eq!((0..20).filter(|_| ask(&live)).count(), 10);
        assert!(rates.denial(&live, None, clock.now()), "denials are counted apart");
        clock.advance(Duration::from_millis(200));
        assert_eq!((0..20).filter(|_| ask(&live)).count(), 2);
    }

    #[test]
    fn nobody_uses_up_anothers_share() {
        let clock = ManualClock::at(time::OffsetDateTime::UNIX_EPOCH);
        let rates = Rates::new(10, 2);
        let (live, dead) = (api(Standing::Live), api(Standing::Revoked));
        let ask = |caller: &Caller, ask: &Ask| rates.request(caller, None, ask, clock.now());
        assert_eq!((0..20).filter(|_| ask(&dead, &Ask::Status {})).count(), 2, "a small one");
        assert!(ask(&live, &Ask::Status {}), "the dead did not use up what the living may");
        while ask(&live, &Ask::Status {}) {}
        assert!(ask(&live, &Ask::Renew {}), "nobody is locked out of renewing");
        let report = Ask::Report { facts: Digest([0; 32]) };
        let proof = Ask::Enroll { name: "n".into(), token: None, by: Some(EnrolBy::X509) };
        let proofs = (0..100).filter(|_| ask(&live, &proof)).count();
        assert_eq!(
            u32::try_from(proofs),
            Ok(limits::PROOFS_RATE),
            "each costs before it is decided"
        );
        let reports = (0..100).filter(|_| ask(&live, &report)).count();
        assert_eq!(u32::try_from(reports), Ok(limits::REPORT_RATE));
    }

    #[test]
    fn another_trust_domain_has_one_rate_however_many_callers_it_mints() {
        let clock = ManualClock::at(time::OffsetDateTime::UNIX_EPOCH);
        let rates = Rates::new(500, 20);
        let ask = |id: &str, foreign| {
            let (_, caller) = sample::visitor(id, foreign);
            rates.request(&caller, None, &Ask::Status {}, clock.now())
        };
        let minted = (0..2 * limits::DOMAIN_RATE).map(|n| format!("spiffe://partner.example/{n}"));
        let taken = minted.filter(|id| ask(id, true)).count();
        assert_eq!(u32::try_from(taken), Ok(limits::DOMAIN_RATE));
        assert!(ask("spiffe://other.example/a", true), "another domain has its own");
        assert!(ask("spiffe://corp.example/a", false));
        let watched = rates.full_at.lock().unwrap().len();
        assert!(watched < taken + 5, "what was refused takes no place: {watched}");
        let loud = (0..20_000).filter(|_| ask("spiffe://loud.example/a", true)).count();
        assert_eq!(loud, 500);
        assert!(ask("spiffe://loud.example/b", true), "one that is loud starves its domain not");
    }

    #[test]
    fn networks_are_told_apart() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.200"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.9"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.7").to_string(), "192.0.2.0/24");
    }
}
