//! Which bundles are to be fetched and when, and how the latest fetch of each went.
//!
//! The time of a bundle's last fetch is kept to the hour in the store, and exactly in memory: after a
//! restart an age is too high rather than too low.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::federated::{FederationError, FederationRecord, Relationship, Weighed, read, weigh};
use super::room::Authority;
use crate::identity::BundleDocument;
use crate::model::limits::{
    BUNDLE_FETCHED_STEP, BUNDLE_REFRESH, BUNDLE_REFRESH_AGAIN, BUNDLE_REFRESH_MAX,
    BUNDLE_REFRESH_MIN,
};
use crate::model::{Endpoint, Moment, RelationshipId, TrustDomain};

/// What came of the fetches of one relationship, in this process.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    id: RelationshipId,
    pub(super) attempts: u64,
    /// One is under way.
    running: bool,
    /// An operator wants one now.
    pub(super) wanted: bool,
    /// Somebody has shown a key that is not in the bundle.
    suspected: bool,
    /// When the latest one ended, by the boot clock.
    ended: Option<Duration>,
    /// When one last gave the bundle in force; seconds since 1970.
    pub(super) confirmed: Option<i64>,
    pub(super) fault: Option<String>,
    /// Scatters the next one.
    chance: u8,
}

impl Fetched {
    fn of(id: RelationshipId) -> Self {
        Self {
            id,
            attempts: 0,
            running: false,
            wanted: false,
            suspected: false,
            ended: None,
            confirmed: None,
            fault: None,
            chance: 0,
        }
    }
}

/// The same of all; no more than there are relationships.
#[derive(Debug, Default)]
pub(super) struct Fetches(Mutex<HashMap<TrustDomain, Fetched>>);

impl Fetches {
    pub(super) fn all(&self) -> MutexGuard<'_, HashMap<TrustDomain, Fetched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of this relationship, and of none before it with the same domain.
    pub(super) fn with<T>(
        &self,
        domain: &TrustDomain,
        id: RelationshipId,
        act: impl FnOnce(&mut Fetched) -> T,
    ) -> T {
        let mut all = self.all();
        let held = all.entry(domain.clone()).or_insert_with(|| Fetched::of(id));
        if held.id != id {
            *held = Fetched::of(id);
        }
        act(held)
    }
}

/// A bundle that is to be fetched now.
#[derive(Debug, Clone)]
pub struct DueFetch {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// For which relationship.
    pub relationship: RelationshipId,
    /// Where.
    pub endpoint: Endpoint,
}

impl Authority {
    /// What is to be fetched now: whatever is due by its domain's hint or wanted, each at most once
    /// at a time, and marked as being under way.
    pub fn due_fetches(&self, room: usize, now: Moment) -> Vec<DueFetch> {
        let mirror = self.mirror();
        let unknown_keys = self.identity.take_unknown_keys();
        self.fetches.all().retain(|domain, _| mirror.federated().of(domain).is_some());
        let mut due = Vec::new();
        for held in mirror.federated().all() {
            let Some(endpoint) = &held.record.endpoint else { continue };
            let domain = &held.record.trust_domain;
            let every = every(held.document.as_deref());
            let is_due = self.fetches.with(domain, held.record.id, |it| {
                it.suspected |= unknown_keys.contains(domain);
                let rested = |time| it.ended.is_none_or(|ended| now.since(ended) >= time);
                let is_due = it.wanted || rested(scattered(every, it.chance));
                // Anybody can show such a key: that is worth one look now and then, not one each.
                !it.running && (is_due || (it.suspected && rested(BUNDLE_REFRESH_AGAIN)))
            });
            if is_due && due.len() < room {
                self.fetches.with(domain, held.record.id, |it| {
                    (it.running, it.wanted, it.suspected) = (true, false, false);
                });
                due.push(DueFetch {
                    trust_domain: domain.clone(),
                    relationship: held.record.id,
                    endpoint: endpoint.clone(),
                });
            }
        }
        due
    }

    /// Judges what a fetch brought: whether it must be taken, which the line does.
    ///
    /// # Errors
    /// Why it is refused; the last good bundle stays.
    pub fn weigh_fetched(
        &self,
        due: &DueFetch,
        body: &[u8],
        now: Moment,
    ) -> Result<bool, FederationError> {
        let next = read(&due.trust_domain, body, &self.issuers().all_keys)?;
        self.check_apart(&next)?;
        let mirror = self.mirror();
        let Some(held) = mirror.federated().of(&due.trust_domain) else { return Ok(false) };
        let weighed = weigh(held.document.as_deref(), &next)?;
        let since = held.record.fetched.map(|at| now.unix_s().saturating_sub(at));
        let step = i64::try_from(BUNDLE_FETCHED_STEP.as_secs()).unwrap_or(i64::MAX);
        Ok(weighed == Weighed::Newer || since.is_none_or(|since| since >= step))
    }

    /// A fetch has ended; `chance` scatters the next one. Gives whether its fault is another one than
    /// before, so that it is told.
    pub fn fetch_ended(
        &self,
        due: &DueFetch,
        fault: Option<String>,
        chance: u8,
        now: Moment,
    ) -> bool {
        let mirror = self.mirror();
        let held = mirror.federated().of(&due.trust_domain);
        if held.is_none_or(|it| it.record.id != due.relationship) {
            return false; // removed meanwhile
        }
        self.fetches.with(&due.trust_domain, due.relationship, |it| {
            (it.running, it.chance) = (false, chance);
            it.attempts = it.attempts.saturating_add(1);
            it.ended = Some(now.boot());
            if fault.is_none() {
                it.confirmed = Some(now.unix_s());
            }
            let is_news = fault.is_some() && it.fault != fault;
            it.fault = fault;
            is_news
        })
    }

    /// How many domains are federated with, and the age of the oldest bundle in seconds.
    pub fn federation_figures(&self, now: Moment) -> (u64, u64) {
        let mirror = self.mirror();
        let age_of = |held: &Relationship| {
            let record = &held.record;
            let fetched = self.fetches.with(&record.trust_domain, record.id, |it| it.clone());
            age(record, &fetched, now)
        };
        let oldest = mirror.federated().all().filter_map(age_of).max().unwrap_or(0);
        (u64::try_from(mirror.federated().all().len()).unwrap_or(u64::MAX), oldest)
    }
}

/// Seconds since a bundle was last fetched or brought.
pub(super) fn age(record: &FederationRecord, fetched: &Fetched, now: Moment) -> Option<u64> {
    let at = record.fetched.into_iter().chain(fetched.confirmed).max()?;
    u64::try_from(now.unix_s().saturating_sub(at)).ok().or(Some(0))
}

/// Between two fetches: the domain's own wish, within bounds.
pub(super) fn every(document: Option<&BundleDocument>) -> Duration {
    let hint = document.and_then(BundleDocument::refresh_hint).unwrap_or(BUNDLE_REFRESH);
    hint.clamp(BUNDLE_REFRESH_MIN, BUNDLE_REFRESH_MAX)
}

/// Nine to eleven tenths of it.
fn scattered(time: Duration, chance: u8) -> Duration {
    let tenth = time / 10;
    time.saturating_sub(tenth).saturating_add(tenth * 2 * u32::from(chance) / 255)
}
