//! Which rows can matter to a request: a hash index over literal prefixes of object and subject.
//!
//! The answer is never too small: a row that the matcher would match is always among the
//! candidates, because the pinned matcher is a conjunction with one object term and one subject
//! term, and every pattern begins with its literal prefix. What a prefix brings and the pattern
//! does not cover is sifted out, a tenth of the price that Casbin would ask for the same no.
//! Windows, posture and effect are left to Casbin, which judges the rest over again. Nothing has a
//! fixed size here, so nothing is ever cut. Keys are hashed with the process's own random key and
//! compared in full.

use std::collections::HashMap;

use crate::model::Action;

use super::pattern::{literal_prefix, path_match};
use super::rows::{Row, RuleSet, Subject, position};

/// Prefixes deeper than this share one bit of the depth mask.
const DEEPEST: u32 = 63;

/// What a request may be about.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Rows in file order.
    pub(super) rows: Vec<u32>,
    /// Every group that the subject belongs to, directly or not, in ascending order.
    pub(super) groups: Vec<u32>,
}

/// The index of one [`RuleSet`].
#[derive(Debug, Default)]
pub(super) struct Index {
    objects: Prefixes<Vec<(u32, u32)>>, // (subject key, row), sorted
    subjects: Prefixes<u32>,            // prefix -> subject key
    members: Prefixes<Vec<u32>>,        // prefix -> positions in RuleSet::members
    outer: HashMap<u32, Vec<u32>>,      // group -> groups that it is a member of
    keys: u32,
}

/// A map from literal prefixes, those of patterns with and without wildcards kept apart.
#[derive(Debug, Default)]
struct Prefixes<V> {
    exact: HashMap<Box<str>, V>,
    open: HashMap<Box<str>, V>,
    depths: u64, // bit n: some open prefix has n segments
}

impl<V> Prefixes<V> {
    fn slot(&mut self, pattern: &str, fresh: impl FnOnce() -> V) -> &mut V {
        let (prefix, is_exact) = literal_prefix(pattern);
        let map = if is_exact { &mut self.exact } else { &mut self.open };
        if !is_exact {
            self.depths |= 1 << depth_bit(depth(prefix));
        }
        map.entry(prefix.into()).or_insert_with(fresh)
    }

    /// Calls `found` for every key that a pattern matching `value` could stand under.
    fn probe<'v>(&'v self, value: &str, mut found: impl FnMut(&'v V)) {
        if let Some(hit) = self.exact.get(value) {
            found(hit);
        }
        let ends = value.bytes().enumerate().filter(|(_, b)| *b == b'/').map(|(at, _)| at);
        let ends = std::iter::once(0).chain(ends).chain(std::iter::once(value.len()));
        for (depth, end) in (0_u32..).zip(ends) {
            if self.depths & (1 << depth_bit(depth)) == 0 {
                continue;
            }
            if let Some(hit) = value.get(..end).and_then(|prefix| self.open.get(prefix)) {
                found(hit);
            }
        }
    }
}

fn depth(prefix: &str) -> u32 {
    if prefix.is_empty() { 0 } else { position(prefix.split('/').count()) }
}

fn depth_bit(depth: u32) -> u32 {
    depth.min(DEEPEST)
}

impl Index {
    /// Builds the index; linear in the number of rows.
    pub(super) fn new(set: &RuleSet) -> Self {
        let mut index = Self { keys: position(set.groups.len()), ..Self::default() };
        for (at, row) in set.rows.iter().enumerate() {
            let key = match row.subject {
                Subject::Group(group) => group,
                Subject::Pattern => {
                    let next = index.keys;
                    let key = *index.subjects.slot(row.sub(), || next);
                    index.keys += u32::from(key == next);
                    key
                }
            };
            index.objects.slot(row.obj(), Vec::new).push((key, position(at)));
        }
        for bucket in index.objects.exact.values_mut().chain(index.objects.open.values_mut()) {
            bucket.sort_unstable();
            bucket.shrink_to_fit();
        }
        for (at, membership) in set.members.iter().enumerate() {
            match membership.subject {
                Subject::Group(member) => {
                    index.outer.entry(member).or_default().push(membership.group);
                }
                Subject::Pattern => {
                    index.members.slot(&membership.member, Vec::new).push(position(at));
                }
            }
        }
        index
    }

    /// The rows that can match this request, its action included, and the subject's groups.
    pub(super) fn candidates(
        &self,
        set: &RuleSet,
        subject: &str,
        object: &str,
        action: Action,
    ) -> Candidates {
        let groups = self.groups_of(set, subject);
        let mut keys = groups.clone();
        self.subjects.probe(subject, |key| keys.push(*key));
        keys.sort_unstable();
        let mut rows = Vec::new();
        let fits = |row: &Row| {
            row.action.is_none_or(|only| only == action)
                && path_match(object, row.obj())
                && (row.subject != Subject::Pattern || path_match(subject, row.sub()))
        };
        let mut take = |row: u32| {
            if set.row(row).is_some_and(fits) {
                rows.push(row);
            }
        };
        self.objects.probe(object, |bucket| {
            if bucket.len() <= keys.len() {
                let known = bucket.iter().filter(|(key, _)| keys.binary_search(key).is_ok());
                known.for_each(|(_, row)| take(*row));
                return;
            }
            for key in &keys {
                let from = bucket.partition_point(|(other, _)| other < key);
                let same = bucket.iter().skip(from).take_while(|(other, _)| other == key);
                same.for_each(|(_, row)| take(*row));
            }
        });
        rows.sort_unstable();
        Candidates { rows, groups }
    }

    /// The flattened closure of the subject's groups, ascending.
    pub(super) fn groups_of(&self, set: &RuleSet, subject: &str) -> Vec<u32> {
        let mut groups = Vec::new();
        self.members.probe(subject, |bucket| {
            for at in bucket {
                let member = usize::try_from(*at).ok().and_then(|at| set.members.get(at));
                if let Some(m) = member.filter(|m| path_match(subject, &m.member)) {
                    groups.push(m.group);
                }
            }
        });
        groups.sort_unstable();
        groups.dedup();
        if self.outer.is_empty() || groups.is_empty() {
            return groups;
        }
        let mut seen: std::collections::BTreeSet<u32> = groups.iter().copied().collect();
        while let Some(group) = groups.pop() {
            let above = self.outer.get(&group).into_iter().flatten();
            groups.extend(above.filter(|above| seen.insert(**above)));
        }
        seen.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser::parse;
    use super::*;

    fn ids(text: &str, subject: &str, object: &str) -> Vec<String> {
        let set = parse(text, &[]).unwrap();
        let found = Index::new(&set).candidates(&set, subject, object, Action::Read);
        found.rows.iter().map(|row| set.row(*row).unwrap().id().to_owned()).collect()
    }

    const POLICY: &str = "\
p, exact, spiffe://d/a, secret/n/x, read, any, -, -, allow
p, tail, spiffe://d/a, secret/n/**, read, any, -, -, allow
p, star, spiffe://d/*, secret/*/x, *, any, -, -, allow
p, other, spiffe://d/b, secret/n/x, read, any, -, -, allow
p, elsewhere, spiffe://d/a, secret/m/x, read, any, -, -, allow
p, writes, spiffe://d/a, secret/n/x, write, any, -, -, allow
p, mine, group:outer, secret/**, read, any, -, -, deny
p, not-mine, group:strange, secret/**, read, any, -, -, deny
g, spiffe://d/*, group:inner
g, group:inner, group:outer
g, spiffe://d/b, group:strange
";

    #[test]
    fn candidates_come_in_file_order_and_leave_out_what_cannot_match() {
        let found = ids(POLICY, "spiffe://d/a", "secret/n/x");
        assert_eq!(found, ["exact", "tail", "star", "mine"]);
        assert_eq!(ids(POLICY, "spiffe://e/a", "secret/n/x"), [""; 0]);
        assert_eq!(ids(POLICY, "spiffe://d/a", "secret/n"), ["tail", "mine"]);
    }

    #[test]
    fn groups_are_flattened_and_exact() {
        let set = parse(POLICY, &[]).unwrap();
        let index = Index::new(&set);
        let names = |subject| -> Vec<String> {
            let groups = index.groups_of(&set, subject);
            groups.into_iter().map(|g| set.group(g).to_owned()).collect()
        };
        assert_eq!(names("spiffe://d/a"), ["group:inner", "group:outer"]);
        assert_eq!(names("spiffe://d/a/b"), [""; 0], "`*` is one segment");
        assert_eq!(names("spiffe://d/b").len(), 3);
    }
}
