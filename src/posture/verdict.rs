//! Verdicts: how a device met the profiles of a demand at one moment.
//!
//! A verdict is a value of that moment only; it is made anew for each request and holds nothing
//! open. Policy sees it as one canonical text, in which false is left out and unknown is said.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::profile::{Outcome, Profiles, When, bits};
use super::requirement::Tri;
use super::standing::DeviceStanding;
use crate::model::Digest;

/// The label of a device that never reported, and of no device at all.
pub(super) static UNKNOWN_LABEL: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());

/// The profiles that candidate rules name, under one set of profiles.
#[derive(Debug, Clone)]
pub struct Demand {
    /// The profiles of the bundle that the request is decided under.
    pub profiles: Arc<Profiles>,
    /// Bit i asks for profile i.
    pub wanted: u32,
    /// Whether the caller's key is known never to have left the agent that attested its process.
    pub colocated: bool,
}

/// How a device met every profile of the demand, at one moment. Made by
/// [`Posture::look`](super::Posture::look) only:
///
/// ```compile_fail,E0624
/// use doorward::posture::{Demand, Verdict};
/// fn forge(demand: &Demand) -> Verdict {
///     Verdict::unknown(demand)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Verdict {
    label: Arc<str>,
    wanted: u32,
    outcome: Outcome,
    /// What is said of profiles that the demand did not name.
    beyond: Tri,
    when: Option<When>,
    standing: Option<Arc<DeviceStanding>>,
    profiles: Arc<Profiles>,
}

impl Verdict {
    /// Nobody ever reported.
    pub(super) fn unknown(demand: &Demand) -> Self {
        Self {
            label: Arc::clone(&UNKNOWN_LABEL),
            wanted: demand.wanted,
            outcome: Outcome::UNKNOWN.only(demand.wanted),
            beyond: Tri::Unknown,
            when: None,
            standing: None,
            profiles: Arc::clone(&demand.profiles),
        }
    }

    /// Of evidence of that age; `outcome` and `label` hold only what was wanted.
    pub(super) fn of_standing(
        demand: &Demand,
        standing: Arc<DeviceStanding>,
        when: When,
        outcome: Outcome,
        label: Arc<str>,
    ) -> Self {
        Self {
            label,
            wanted: demand.wanted,
            outcome,
            beyond: Tri::Unknown,
            when: Some(when),
            standing: Some(standing),
            profiles: Arc::clone(&demand.profiles),
        }
    }

    /// `|hardened=t|managed=u|` in name order, false omitted (`|` when all are false), or `unknown`
    /// where the device never reported (or there is no device). Profiles that the demand does not
    /// name are left out.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Value for one profile by name; unknown where it was not assessed.
    pub fn of(&self, profile: &str) -> Tri {
        let bit = self.profiles.position(profile).and_then(|at| 1u32.checked_shl(u32::from(at)));
        match bit {
            Some(bit) if self.wanted & bit == 0 => self.beyond,
            Some(bit) if self.outcome.held & bit != 0 => Tri::True,
            Some(bit) if self.outcome.unknown & bit != 0 => Tri::Unknown,
            Some(_) => Tri::False,
            None => self.beyond,
        }
    }

    /// Bits of profiles that hold (are `True`).
    pub fn held(&self) -> u32 {
        self.outcome.held
    }

    /// Names of the profiles that hold.
    pub fn held_names(&self) -> impl Iterator<Item = &str> {
        self.names(self.outcome.held)
    }

    /// Names of the profiles that hold only because they are in mode `monitor`.
    pub fn would_deny_names(&self) -> impl Iterator<Item = &str> {
        self.names(self.outcome.would_deny)
    }

    fn names(&self, mask: u32) -> impl Iterator<Item = &str> {
        let named = self.profiles.names().zip(bits());
        named.filter(move |(_, bit)| mask & bit != 0).map(|(name, _)| name)
    }

    /// Digest of the evidence that first showed the facts that were judged.
    pub fn evidence(&self) -> Option<Digest> {
        self.standing.as_ref().map(|standing| standing.claims.evidence_digest)
    }

    /// Time since the nonce of the last evidence was made.
    pub fn age(&self) -> Option<Duration> {
        self.when.map(|when| when.age)
    }

    /// Some profile was unknown only because its evidence was older than its max_age.
    pub fn is_stale(&self) -> bool {
        self.outcome.stale != 0
    }

    /// Whether the device has reported at all since the broker began to listen.
    pub fn is_reported(&self) -> bool {
        &*self.label != "unknown"
    }

    /// Why each requirement of `profile` came out as it did, one line each, for explain.
    pub fn why(&self, profile: &str) -> Vec<String> {
        let Some(profile) = self.profiles.profile(profile) else {
            return vec![format!("there is no profile {profile:?}")];
        };
        match (&self.standing, self.when) {
            (Some(standing), Some(when)) => profile.explain(&standing.claims.facts, when).lines(),
            _ => vec!["the device has not reported".to_owned()],
        }
    }

    /// For tests of other rooms: a verdict with exactly this label. Whatever the label leaves out
    /// is false; under `unknown` everything is unknown.
    ///
    /// # Panics
    /// When the label is not in its canonical form.
    #[cfg(test)]
    pub(crate) fn sample(label: &str) -> Self {
        let known = label != "unknown";
        let inner =
            if known { label.strip_prefix('|').expect("a label starts with |") } else { "" };
        let mut outcome = Outcome { held: 0, unknown: 0, stale: 0, would_deny: 0 };
        let mut names = Vec::new();
        for (part, bit) in inner.split_terminator('|').zip(bits()) {
            match part.split_once('=').expect("name=value") {
                (name, "t") => {
                    (outcome.held, names) = (outcome.held | bit, [names, vec![name]].concat())
                }
                (name, "u") => {
                    (outcome.unknown, names) = (outcome.unknown | bit, [names, vec![name]].concat())
                }
                other => panic!("no such part of a label: {other:?}"),
            }
        }
        let profiles = Profiles::sample(&names);
        assert!(!known || profiles.label(outcome.held, outcome.unknown) == label, "{label:?}");
        Self {
            label: label.into(),
            wanted: u32::MAX,
            outcome,
            beyond: if known { Tri::False } else { Tri::Unknown },
            when: None,
            standing: None,
            profiles: Arc::new(profiles),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_answers_as_its_label_says() {
        let verdict = Verdict::sample("|hardened=u|managed=t|");
        assert_eq!(verdict.label(), "|hardened=u|managed=t|");
        assert_eq!(verdict.of("managed"), Tri::True);
        assert_eq!(verdict.of("hardened"), Tri::Unknown);
        assert_eq!(verdict.of("other"), Tri::False);
        assert_eq!(verdict.held_names().collect::<Vec<_>>(), ["managed"]);
        assert!(verdict.is_reported());
        let none = Verdict::sample("|");
        assert_eq!((none.of("managed"), none.held()), (Tri::False, 0));
        let unknown = Verdict::sample("unknown");
        assert_eq!(unknown.of("managed"), Tri::Unknown);
        assert!(!unknown.is_reported() && unknown.held_names().next().is_none());
    }
}
