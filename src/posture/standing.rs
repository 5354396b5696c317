//! What is held of one device: its last accepted evidence, how that was appraised, and the session
//! keys that it used.
//!
//! An appraisal is kept for one set of profiles and one stretch of ages; a panic in it is
//! «unknown».

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::evidence::{Claims, EvidenceError};
use super::fact::Facts;
use super::profile::{Outcome, Profiles, Stretch, When};
use super::verdict::{Demand, Verdict};
use crate::model::limits::{SESSION_KEY_LIFE, SESSION_KEYS_KEPT};
use crate::model::{Digest, Moment};

/// Labels of one appraisal that are kept; demands of one device's callers are few.
const LABELS_KEPT: usize = 8;
/// An agent may still use its session key for this long while it makes another.
const SESSION_KEY_GRACE: Duration = Duration::from_secs(5 * 60);

/// The last accepted evidence of one device.
#[derive(Debug)]
pub struct DeviceStanding {
    /// Its content.
    pub claims: Claims,
    /// Boot time at which its nonce was made: its age counts from there.
    pub issued: Duration,
    appraisal: ArcSwapOption<Appraisal>,
    /// The same for connections that are known to come from the device; made when one asks.
    colocated: OnceLock<Arc<DeviceStanding>>,
}

/// What all profiles of one set came to, for one stretch of ages.
#[derive(Debug)]
struct Appraisal {
    profiles: Arc<Profiles>,
    stretch: Stretch,
    outcome: Outcome,
    labels: [OnceLock<(u32, Arc<str>)>; LABELS_KEPT],
}

impl Appraisal {
    fn new(profiles: &Arc<Profiles>, claims: &Claims, when: When) -> Self {
        let outcome = guarded(|| profiles.evaluate(&claims.facts, when));
        let stretch = profiles.stretch(when);
        Self { profiles: Arc::clone(profiles), stretch, outcome, labels: Default::default() }
    }

    fn fits(&self, profiles: &Arc<Profiles>, when: When) -> bool {
        Arc::ptr_eq(&self.profiles, profiles) && self.stretch == profiles.stretch(when)
    }

    fn label(&self, wanted: u32) -> Arc<str> {
        for slot in &self.labels {
            let (mask, label) = slot.get_or_init(|| (wanted, self.text(wanted)));
            if *mask == wanted {
                return Arc::clone(label);
            }
        }
        self.text(wanted)
    }

    fn text(&self, wanted: u32) -> Arc<str> {
        let Outcome { held, unknown, .. } = self.outcome.only(wanted);
        self.profiles.label(held, unknown).into()
    }
}

/// A panic in the appraisal is nobody's good posture.
fn guarded(appraise: impl FnOnce() -> Outcome) -> Outcome {
    let appraise = || {
        #[cfg(test)]
        super::faults::point();
        appraise()
    };
    catch_unwind(AssertUnwindSafe(appraise)).unwrap_or(Outcome::UNKNOWN)
}

impl DeviceStanding {
    pub(super) fn new(claims: Claims, issued: Duration) -> Self {
        Self { claims, issued, appraisal: ArcSwapOption::empty(), colocated: OnceLock::new() }
    }

    fn on_colocated(&self) -> &Arc<Self> {
        self.colocated.get_or_init(|| {
            let facts = self.claims.facts.clone().on_colocated();
            Arc::new(Self::new(Claims { facts, ..self.claims.clone() }, self.issued))
        })
    }

    /// The verdict on this evidence, now.
    pub(super) fn judge(self: Arc<Self>, demand: &Demand, now: Moment) -> Verdict {
        if demand.colocated && !self.claims.facts.is_colocated() {
            return Arc::clone(self.on_colocated()).judge(demand, now);
        }
        let age = now.since(self.issued);
        let when = When { age, now_s: now.unix_s() };
        let kept = self.appraisal.load();
        let (outcome, label) = match kept.as_deref() {
            Some(kept) if kept.fits(&demand.profiles, when) => {
                (kept.outcome.only(demand.wanted), kept.label(demand.wanted))
            }
            _ => {
                let fresh = Arc::new(Appraisal::new(&demand.profiles, &self.claims, when));
                let answer = (fresh.outcome.only(demand.wanted), fresh.label(demand.wanted));
                self.appraisal.store(Some(fresh));
                answer
            }
        };
        drop(kept);
        Verdict::of_standing(demand, self, when, outcome, label)
    }

    /// Bits of the profiles that these facts would meet if they were of this moment, on a connection
    /// of which nothing is wanting.
    pub(super) fn met(&self, profiles: &Profiles, now: Moment) -> u32 {
        let when = When { age: Duration::ZERO, now_s: now.unix_s() };
        let facts = self.claims.facts.clone().on_colocated();
        guarded(|| profiles.evaluate(&facts, when)).held
    }

    /// The shortest age limit of the profiles that it was last appraised by.
    pub(super) fn shortest_limit(&self) -> Option<Duration> {
        self.appraisal.load().as_ref().map(|kept| kept.profiles.shortest_steady())
    }

    /// Whether newer claims say the same: the same steady facts of the same boot, and nothing among
    /// the volatile ones that would move a verdict of the profiles in use.
    pub(super) fn says(&self, claims: &Claims, now: Moment) -> bool {
        let alike = self.claims.facts_digest == claims.facts_digest;
        if !alike || self.claims.boot_id != claims.boot_id {
            return false;
        }
        self.appraisal.load().as_ref().is_none_or(|kept| {
            let when = When { age: Duration::ZERO, now_s: now.unix_s() };
            let fresh = |facts: &Facts| guarded(|| kept.profiles.evaluate(facts, when));
            let same = |before: &Facts, after: &Facts| {
                let (before, after) = (fresh(before), fresh(after));
                // What can't be appraised is never «the same».
                before == after && after != Outcome::UNKNOWN
            };
            let (before, after) = (&self.claims.facts, &claims.facts);
            let bound = |facts: &Facts| facts.clone().on_colocated();
            same(before, after) && same(&bound(before), &bound(after))
        })
    }
}

/// The session keys of one device: the one in use, and those that it replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Sessions {
    current: Option<Session>,
    retired: VecDeque<Digest>,
    /// The boot of the last report, and those before it.
    boot: Option<Digest>,
    past: VecDeque<Digest>,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    key: Digest,
    first: Duration,
    seq: u64,
}

impl Sessions {
    /// The sessions after a report under that key.
    ///
    /// # Errors
    /// When the number does not rise, the key was replaced or is over its hour, or the boot is one
    /// that was over before: a session key lives in memory, so it does not outlive its boot either.
    pub(super) fn with(
        mut self,
        key: Digest,
        claims: &Claims,
        now: Moment,
    ) -> Result<Self, EvidenceError> {
        let (seq, boot) = (claims.seq, Digest::of(claims.boot_id.as_bytes()));
        if self.retired.contains(&key) {
            return Err(EvidenceError::SessionKey);
        }
        let is_other_boot = self.boot.is_some_and(|held| held != boot);
        if self.past.contains(&boot) {
            return Err(EvidenceError::Boot);
        }
        let first = match self.current {
            Some(current) if current.key == key => {
                if is_other_boot {
                    return Err(EvidenceError::Boot);
                }
                if seq <= current.seq {
                    return Err(EvidenceError::Sequence);
                }
                if now.since(current.first) > SESSION_KEY_LIFE + SESSION_KEY_GRACE {
                    return Err(EvidenceError::SessionKey);
                }
                current.first
            }
            other => {
                self.retired.extend(other.map(|replaced| replaced.key));
                now.boot()
            }
        };
        if is_other_boot {
            self.past.extend(self.boot);
        }
        self.boot = Some(boot);
        for kept in [&mut self.retired, &mut self.past] {
            while kept.len() > SESSION_KEYS_KEPT {
                kept.pop_front();
            }
        }
        self.current = Some(Session { key, first, seq });
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DeviceId;
    use crate::posture::fact::Facts;

    #[test]
    fn a_panic_is_unknown() {
        let good = Outcome { held: 1, unknown: 0, stale: 0, would_deny: 0 };
        assert_eq!(guarded(|| good), good);
        let outcome = guarded(|| panic!("a fault in an appraisal"));
        assert_eq!((outcome.held, outcome.unknown), (0, u32::MAX));
    }

    fn said(seq: u64, boot: &str) -> Claims {
        let facts = Facts::default();
        let (facts_digest, device) = (facts.digest(), DeviceId::of_key(b"d"));
        let (boot_id, evidence_digest) = (boot.to_owned(), Digest::of(b"e"));
        Claims { facts, device, seq, boot_id, evidence_digest, facts_digest }
    }

    fn at(s: u64) -> Moment {
        Moment::new(time::OffsetDateTime::UNIX_EPOCH, Duration::from_secs(s))
    }

    #[test]
    fn session_keys_move_on_and_never_come_back() {
        let key = |n: u8| Digest::of(&[n]);
        let with = |all: Sessions, n, seq, s| all.with(key(n), &said(seq, "a"), at(s));
        let one = with(Sessions::default(), 1, 5, 0).unwrap();
        assert_eq!(with(one.clone(), 1, 5, 1).unwrap_err(), EvidenceError::Sequence);
        assert_eq!(with(one.clone(), 1, 4, 1).unwrap_err(), EvidenceError::Sequence);
        let one = with(one, 1, 6, 3_900).unwrap();
        assert_eq!(with(one.clone(), 1, 7, 3_901).unwrap_err(), EvidenceError::SessionKey);
        let two = with(one, 2, 0, 3_901).unwrap();
        assert_eq!(with(two.clone(), 1, 9, 3_902).unwrap_err(), EvidenceError::SessionKey);
        let many = (3..40).try_fold(two, |all, n| with(all, n, 0, 4_000)).unwrap();
        assert_eq!(many.retired.len(), SESSION_KEYS_KEPT);
    }

    #[test]
    fn a_boot_that_is_over_does_not_come_back_and_takes_its_session_key_with_it() {
        let key = |n: u8| Digest::of(&[n]);
        let first = Sessions::default().with(key(1), &said(1, "a"), at(0)).unwrap();
        assert!(first.clone().with(key(1), &said(2, "a"), at(1)).is_ok());
        let survived = first.clone().with(key(1), &said(2, "b"), at(1));
        assert_eq!(survived.unwrap_err(), EvidenceError::Boot);
        let second = first.with(key(2), &said(0, "b"), at(2)).unwrap();
        let back = second.clone().with(key(3), &said(0, "a"), at(3));
        assert_eq!(back.unwrap_err(), EvidenceError::Boot);
        let boots = (0..20).map(|n| format!("c{n}"));
        let many = boots
            .zip(10..)
            .try_fold(second, |all, (boot, n)| all.with(key(n), &said(0, &boot), at(4)));
        assert_eq!(many.unwrap().past.len(), SESSION_KEYS_KEPT);
    }
}
