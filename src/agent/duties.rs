//! Which identity an attested process gets: the entries for this device, matched against facts.
//!
//! A pure choice. Several that fit and none marked as the default is an answer of its own: the
//! agent never guesses which one a process means. The broker judges the choice again when it
//! issues.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::limits::IDENTITIES_MAX;
use crate::model::{DutyChanges, Entry, EntryId, SpiffeId, StartId, WorkloadFacts};

/// Entries that are remembered after their end.
const ENDED_MAX: usize = 256;

/// The entries for this device, as the broker last told.
#[derive(Debug, Clone, Default)]
pub struct Duties {
    /// Them, in no order.
    pub entries: Vec<Arc<Entry>>,
    /// The store's revision that they stood at.
    pub revision: u64,
    /// The sequence of the trust bundle then; 0 if the broker does not say.
    pub bundle: u64,
    /// Entries that ended lately, the newest last. They give nobody anything: whoever has none but
    /// these is refused by the broker, which writes it down, and not here.
    pub ended: Vec<Arc<Entry>>,
    /// The start of the broker that told them; `None` before any has.
    pub start: Option<StartId>,
    /// Another number whenever a federated bundle is another.
    pub federated: u64,
}

/// An entry that a process would get but for these selectors. For the operator, never for the
/// process: it would tell how to become another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nearest {
    /// The entry.
    pub entry: EntryId,
    /// What it would give.
    pub spiffe_id: SpiffeId,
    /// The selectors that the process does not show.
    pub missing: Vec<String>,
}

/// Why a process gets no identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmatched {
    /// No entry fits (or none that gives the identity asked for).
    Nobody {
        /// The entry that misses least.
        nearest: Option<Nearest>,
    },
    /// Several fit, and none is the default.
    Several {
        /// The identities that the process may name.
        choices: Vec<SpiffeId>,
    },
}

impl Duties {
    /// The duties after a change.
    pub fn changed(&self, changes: DutyChanges) -> Self {
        let DutyChanges { items, gone, revision, bundle, federated, .. } = changes;
        let ids = items.iter().map(|entry| entry.id).chain(gone.iter().copied());
        let other: HashSet<EntryId> = ids.collect();
        let same = self.entries.iter().filter(|entry| !other.contains(&entry.id)).cloned();
        let entries = same.chain(items.into_iter().map(Arc::new)).collect();
        let mut ended = self.ended.clone();
        ended.retain(|entry| !other.contains(&entry.id));
        let gone: HashSet<EntryId> = gone.into_iter().collect();
        ended.extend(self.entries.iter().filter(|entry| gone.contains(&entry.id)).cloned());
        ended.drain(..ended.len().saturating_sub(ENDED_MAX));
        Self { entries, revision, bundle, federated, ended, start: self.start }
    }

    /// The entry for a process; `wanted` is the identity that it asks for, if it names one.
    ///
    /// # Errors
    /// When none fits, or when several do and none is the default.
    pub fn choose(
        &self,
        facts: &WorkloadFacts,
        wanted: Option<&SpiffeId>,
    ) -> Result<&Entry, Unmatched> {
        let mut fitting: Vec<&Entry> = self
            .sound()
            .filter(|entry| wanted.is_none_or(|id| entry.draft.spiffe_id == *id))
            .filter(|entry| entry.missing(facts).is_empty())
            .collect();
        fitting.sort_by_key(|entry| entry.id);
        if fitting.is_empty() {
            return Err(Unmatched::Nobody { nearest: self.nearest(facts, wanted) });
        }
        let defaults: Vec<&Entry> =
            fitting.iter().copied().filter(|entry| entry.draft.default).collect();
        one_identity(&fitting).or_else(|| one_identity(&defaults)).ok_or_else(|| {
            let among = if defaults.is_empty() { &fitting } else { &defaults };
            let mut choices: Vec<SpiffeId> =
                among.iter().map(|entry| entry.draft.spiffe_id.clone()).collect();
            choices.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            choices.dedup();
            Unmatched::Several { choices }
        })
    }

    /// The entry that a process had until lately, the one that ended last; for who has no other.
    pub fn ended(&self, facts: &WorkloadFacts, wanted: Option<&SpiffeId>) -> Option<&Entry> {
        let fits = |entry: &&Entry| {
            wanted.is_none_or(|id| entry.draft.spiffe_id == *id) && entry.missing(facts).is_empty()
        };
        let sound = self.ended.iter().rev().map(Arc::as_ref);
        sound.filter(|entry| entry.draft.check().is_ok()).find(fits)
    }

    /// Every identity that a process may have, one entry for each: the default ones first, and
    /// then in the order in which the entries were made. At most [`IDENTITIES_MAX`].
    pub fn fitting(&self, facts: &WorkloadFacts) -> Vec<&Entry> {
        let mut fitting: Vec<&Entry> =
            self.sound().filter(|entry| entry.missing(facts).is_empty()).collect();
        let age = |entry: &&Entry| (!entry.draft.default, entry.created.clone(), entry.id);
        fitting.sort_by_cached_key(age);
        let mut seen = HashSet::new();
        fitting.retain(|entry| seen.insert(&entry.draft.spiffe_id));
        fitting.truncate(IDENTITIES_MAX);
        fitting
    }

    /// Entries that keep every rule; one that does not (an executable's hash alone, a path of
    /// Doorward's own) gives nobody anything, whoever wrote it.
    fn sound(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(Arc::as_ref).filter(|entry| entry.draft.check().is_ok())
    }

    fn nearest(&self, facts: &WorkloadFacts, wanted: Option<&SpiffeId>) -> Option<Nearest> {
        self.sound()
            .filter(|entry| wanted.is_none_or(|id| entry.draft.spiffe_id == *id))
            .map(|entry| (entry.missing(facts), entry))
            .filter(|(missing, _)| !missing.is_empty())
            .min_by_key(|(missing, entry)| (missing.len(), entry.id))
            .map(|(missing, entry)| Nearest {
                entry: entry.id,
                spiffe_id: entry.draft.spiffe_id.clone(),
                missing: missing.iter().map(ToString::to_string).collect(),
            })
    }
}

/// The first entry, if all of them give the same identity.
fn one_identity<'a>(entries: &[&'a Entry]) -> Option<&'a Entry> {
    let (first, rest) = entries.split_first()?;
    let same = |entry: &&Entry| entry.draft.spiffe_id == first.draft.spiffe_id;
    rest.iter().all(same).then_some(*first)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{DeviceClass, Digest, EntryDraft, Selector};

    fn facts() -> WorkloadFacts {
        WorkloadFacts {
            pid: 7,
            start_ticks: 99,
            uid: 1000,
            gid: 1000,
            path: Some("/usr/bin/api".into()),
            exe_sha256: None,
            unit: Some("api.service".into()),
            pod_uid: None,
            container_id: None,
            image_digest: None,
            pinned: true,
        }
    }

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://corp.example{path}")).unwrap()
    }

    fn entry(n: u128, path: &str, default: bool, selectors: Vec<Selector>) -> Entry {
        let draft = EntryDraft {
            spiffe_id: id(path),
            class: DeviceClass::parse("server").unwrap(),
            device: None,
            selectors,
            ttl_s: None,
            default,
            jwt_alg: Default::default(),
            federates_with: Vec::new(),
            hint: None,
        };
        let created = "2026-11-23T00:00:00Z".into();
        Entry { id: EntryId(Uuid::from_u128(n)), draft, epoch: 0, created }
    }

    fn duties(entries: Vec<Entry>) -> Duties {
        let entries = entries.into_iter().map(Arc::new).collect();
        Duties { entries, revision: 1, ..Duties::default() }
    }

    #[test]
    fn a_change_is_taken_over_and_the_rest_stands() {
        let uid = |n| vec![Selector::Uid(n)];
        let start = Some(StartId::random());
        let [a, b, c] = [
            entry(1, "/a", false, uid(1)),
            entry(2, "/b", false, uid(1)),
            entry(3, "/c", false, uid(1)),
        ];
        let before = Duties { start, ..duties(vec![a.clone(), b.clone()]) };
        let other = Entry { epoch: 7, ..b.clone() };
        let after = before.changed(DutyChanges {
            items: vec![other, c],
            gone: vec![a.id, EntryId(Uuid::from_u128(9))],
            revision: 5,
            bundle: 2,
            federated: 4,
            resync: false,
        });
        let mut left: Vec<_> =
            after.entries.iter().map(|it| (it.id.0.as_u128(), it.epoch)).collect();
        left.sort_unstable();
        assert_eq!(left, [(2, 7), (3, 0)]);
        assert_eq!((after.revision, after.bundle, after.federated, after.start), (5, 2, 4, start));
        assert_eq!(before.entries.len(), 2, "whoever looks at the former state sees it whole");

        // What ended is remembered by itself, until it is back; and no more than so many.
        let facts = WorkloadFacts { uid: 1, ..facts() };
        assert_eq!(after.ended(&facts, None), Some(&a));
        assert!(after.ended(&facts, Some(&b.draft.spiffe_id)).is_none());
        assert!(after.ended(&super::tests::facts(), None).is_none(), "another process");
        let change = |items: Vec<Entry>, gone: Vec<EntryId>| DutyChanges {
            items,
            gone,
            revision: 6,
            ..DutyChanges::default()
        };
        let back = after.changed(change(vec![a.clone()], Vec::new()));
        assert!(back.ended(&facts, None).is_none());
        let mut storm = back;
        for n in 10..10 + 2 * ENDED_MAX {
            let n = u128::try_from(n).unwrap();
            storm = storm.changed(change(vec![entry(n, "/x", false, uid(1))], Vec::new()));
            storm = storm.changed(change(Vec::new(), vec![EntryId(Uuid::from_u128(n))]));
        }
        assert_eq!(storm.ended.len(), ENDED_MAX);
    }

    #[test]
    fn all_selectors_must_hold_and_unknown_facts_match_nothing() {
        let sha = Selector::ExeSha256(Digest([0; 32]));
        let duties = duties(vec![
            entry(1, "/other", false, vec![Selector::Uid(7), Selector::Gid(8)]),
            entry(2, "/api", false, vec![Selector::Uid(1000), sha.clone()]),
        ]);
        let nearest = Nearest {
            entry: EntryId(Uuid::from_u128(2)),
            spiffe_id: id("/api"),
            missing: vec![sha.to_string()],
        };
        let nobody = Unmatched::Nobody { nearest: Some(nearest) };
        assert_eq!(duties.choose(&facts(), None), Err(nobody));

        let mut known = facts();
        known.exe_sha256 = Some(Digest([0; 32]));
        assert_eq!(duties.choose(&known, None).unwrap().draft.spiffe_id, id("/api"));
    }

    #[test]
    fn several_need_a_name_or_a_default() {
        let uid = || vec![Selector::Uid(1000)];
        let mut all = vec![entry(1, "/b", false, uid()), entry(2, "/a", false, uid())];
        let several = Unmatched::Several { choices: vec![id("/a"), id("/b")] };
        assert_eq!(duties(all.clone()).choose(&facts(), None), Err(several));
        let named = duties(all.clone());
        assert_eq!(named.choose(&facts(), Some(&id("/a"))).unwrap().draft.spiffe_id, id("/a"));
        let stranger = named.choose(&facts(), Some(&id("/c")));
        assert_eq!(stranger, Err(Unmatched::Nobody { nearest: None }));

        all.push(entry(3, "/c", true, uid()));
        assert_eq!(duties(all.clone()).choose(&facts(), None).unwrap().draft.spiffe_id, id("/c"));
        all.push(entry(4, "/d", true, uid()));
        let several = Unmatched::Several { choices: vec![id("/c"), id("/d")] };
        assert_eq!(duties(all).choose(&facts(), None), Err(several));
    }

    #[test]
    fn all_that_fit_are_given_once_each_the_default_first() {
        let uid = || vec![Selector::Uid(1000)];
        let all = vec![
            entry(3, "/b", false, uid()),
            entry(4, "/c", true, uid()),
            entry(1, "/a", false, uid()),
            entry(2, "/a", false, uid()),
            entry(5, "/a", true, vec![Selector::Uid(7)]),
            entry(6, "/doorward/broker", true, uid()),
        ];
        let duties = duties(all);
        let found = duties.fitting(&facts());
        let paths: Vec<_> = found.iter().map(|entry| entry.draft.spiffe_id.path()).collect();
        assert_eq!(paths, ["/c", "/a", "/b"]);
        let ids: Vec<_> = found.iter().map(|entry| entry.id.0.as_u128()).collect();
        assert_eq!(ids, [4, 1, 3]);
        let young =
            Entry { created: "2026-11-24T00:00:00Z".into(), ..entry(1, "/b", false, uid()) };
        let old = super::tests::duties(vec![young, entry(2, "/a", false, uid())]);
        assert_eq!(old.fitting(&facts())[0].draft.spiffe_id.path(), "/a", "age counts, not the id");
        let many = |n: u128| entry(n, &format!("/{n}"), false, uid());
        let many = super::Duties {
            entries: (0..100).map(|n| Arc::new(many(n))).collect(),
            ..super::Duties::default()
        };
        assert_eq!(many.fitting(&facts()).len(), IDENTITIES_MAX);
    }

    #[test]
    fn two_entries_for_one_identity_are_no_question() {
        let both = duties(vec![
            entry(2, "/api", false, vec![Selector::Uid(1000)]),
            entry(1, "/api", false, vec![Selector::Unit("api.service".into())]),
        ]);
        assert_eq!(both.choose(&facts(), None).unwrap().id, EntryId(Uuid::from_u128(1)));
    }

    #[test]
    fn an_unsound_entry_gives_nobody_anything() {
        let path = Selector::Path("/usr/bin/api".into());
        let sound = duties(vec![entry(1, "/api", true, vec![path.clone(), Selector::Uid(1000)])]);
        assert!(sound.choose(&facts(), None).is_ok());
        for unsound in [
            entry(1, "/api", true, vec![]),
            entry(1, "/api", true, vec![path]),
            entry(1, "/doorward/broker", true, vec![Selector::Uid(1000)]),
        ] {
            let duties = duties(vec![unsound]);
            let nobody = Unmatched::Nobody { nearest: None };
            assert_eq!(duties.choose(&facts(), None), Err(nobody));
        }
    }
}
