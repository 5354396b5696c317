//! What the rows of a policy give, exactly: the union of its allows less the union of its denies,
//! as regions. Who may do what, what a change gains and loses, and claims that something is never
//! possible are questions to it.
//!
//! It speaks of the rows. The built-in rules by which everyone renews and reports what is its own
//! are not rows, and profiles count as independent of each other.

use std::cell::Cell;
use std::collections::HashMap;

use super::names::Names;
use super::region::{Actions, Region};
use super::rows::{Row, RuleSet, Subject};
use crate::model::limits::REGIONS_MAX;

/// The answer has more parts than anybody could read, or takes too many steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer has over {REGIONS_MAX} parts or takes too long: ask about less at once")]
pub struct TooMany;

/// Steps that may still be taken: comparisons of two regions.
#[derive(Debug)]
pub struct Steps(Cell<u64>);

impl Steps {
    /// So many.
    pub fn new(most: u64) -> Self {
        Self(Cell::new(most))
    }

    fn take(&self) -> Result<(), TooMany> {
        self.0.set(self.0.get().checked_sub(1).ok_or(TooMany)?);
        Ok(())
    }
}

/// What one row covers for one of its subjects.
#[derive(Debug)]
pub(super) struct Part {
    /// Position of the row.
    pub(super) row: usize,
    pub(super) region: Region,
}

/// The regions of a policy.
#[derive(Debug)]
pub(super) struct Access<'s> {
    pub(super) set: &'s RuleSet,
    allows: Parts,
    denies: Parts,
    steps: &'s Steps,
}

impl<'s> Access<'s> {
    /// Of these rows; `profiles` are the names of the profiles, in order of position.
    pub(super) fn new(set: &'s RuleSet, profiles: &[String], steps: &'s Steps) -> Self {
        let (mut allows, mut denies) = (Parts::default(), Parts::default());
        let members = members(set);
        for (at, row) in set.rows.iter().enumerate() {
            for subject in subjects(row, &members) {
                let Some(region) = Region::of_row(row, subject, profiles) else { continue };
                let parts = if row.allow { &mut allows } else { &mut denies };
                parts.add(Part { row: at, region });
            }
        }
        Self { set, allows, denies, steps }
    }

    /// What is given within a region, by row.
    ///
    /// # Errors
    /// When there are too many parts.
    pub(super) fn given(&self, within: &Region) -> Result<Vec<Part>, TooMany> {
        let mut out = Vec::new();
        for allow in self.allows.near(within) {
            let Some(region) = allow.region.and(within) else { continue };
            let left = self.less(vec![region], &self.denies, None)?;
            out.extend(left.into_iter().map(|region| Part { row: allow.row, region }));
            bounded(out.len())?;
        }
        Ok(out)
    }

    /// What is given here and was not given before, by row. Parts may overlap.
    ///
    /// # Errors
    /// When there are too many parts.
    pub(super) fn gained(&self, before: &Access<'_>) -> Result<Vec<Part>, TooMany> {
        let mut out = Vec::new();
        for allow in &self.allows.all {
            // No allow gave it before, or a deny took it away then; and no deny does so now.
            let mut fresh = self.less(vec![allow.region.clone()], &before.allows, None)?;
            let denied = before.denies.near(&allow.region);
            fresh.extend(denied.filter_map(|deny| deny.region.and(&allow.region)));
            let left = self.less(fresh, &self.denies, None)?;
            out.extend(left.into_iter().map(|region| Part { row: allow.row, region }));
            bounded(out.len())?;
        }
        Ok(out)
    }

    /// What a row still does when all other rows stand: for an allow what it alone gives, for a
    /// deny what it alone takes away. Empty: the row could go and nothing would change.
    ///
    /// # Errors
    /// When there are too many parts.
    pub(super) fn effect_of(&self, row: usize) -> Result<Vec<Region>, TooMany> {
        let allow = self.set.rows.get(row).is_some_and(|row| row.allow);
        let own = if allow { &self.allows } else { &self.denies };
        let mut out = Vec::new();
        for part in own.of_row(row) {
            let mut left = vec![part.region.clone()];
            if !allow {
                let taken = self.allows.near(&part.region);
                left = taken.filter_map(|given| given.region.and(&part.region)).collect();
            }
            for other in [&self.denies, own] {
                left = self.less(left, other, Some(row))?;
            }
            out.extend(left);
            bounded(out.len())?;
        }
        Ok(out)
    }

    /// What a row covers for the first of its subjects.
    pub(super) fn first_of(&self, row: usize) -> Option<&Region> {
        let parts = self.allows.of_row(row).chain(self.denies.of_row(row));
        parts.map(|part| &part.region).next()
    }

    /// One row that alone covers all of another: a deny, or else a row of the same effect.
    ///
    /// # Errors
    /// When that takes too many steps.
    pub(super) fn shadow_of(&self, row: usize) -> Result<Option<&'s Row>, TooMany> {
        let Some(first) = self.first_of(row) else { return Ok(None) };
        let allow = self.set.rows.get(row).is_some_and(|row| row.allow);
        let own = if allow { &self.allows } else { &self.denies };
        let mut seen = None;
        for near in self.denies.near(first).chain(own.near(first)) {
            if near.row == row || seen == Some(near.row) {
                continue;
            }
            seen = Some(near.row);
            if self.covers(near.row, row)? {
                return Ok(self.set.rows.get(near.row));
            }
        }
        Ok(None)
    }

    fn covers(&self, by: usize, row: usize) -> Result<bool, TooMany> {
        for part in self.allows.of_row(row).chain(self.denies.of_row(row)) {
            let mut covered = false;
            for other in self.denies.of_row(by).chain(self.allows.of_row(by)) {
                self.steps.take()?;
                covered |= part.region.less(&other.region).is_empty();
            }
            if !covered {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The regions less all parts but those of one row.
    fn less(
        &self,
        regions: Vec<Region>,
        parts: &Parts,
        but: Option<usize>,
    ) -> Result<Vec<Region>, TooMany> {
        let mut out = Vec::new();
        for region in regions {
            let mut left = vec![region.clone()];
            for part in parts.near(&region).filter(|part| Some(part.row) != but) {
                let mut rest = Vec::with_capacity(left.len());
                for piece in left {
                    self.steps.take()?;
                    match piece.and(&part.region) {
                        None => rest.push(piece),
                        Some(_) => rest.extend(piece.less(&part.region)),
                    }
                }
                left = rest;
                bounded(left.len())?;
                if left.is_empty() {
                    break;
                }
            }
            out.extend(left);
            bounded(out.len())?;
        }
        Ok(out)
    }
}

/// Rows by the first two words of their objects, where these are plain.
#[derive(Debug, Default)]
struct Parts {
    all: Vec<Part>,
    under: HashMap<(String, String), Vec<usize>>,
    anywhere: Vec<usize>,
    rows: HashMap<usize, Vec<usize>>,
}

fn place(region: &Region) -> Option<(String, String)> {
    let word = |at| region.obj.literal(at).map(str::to_owned);
    Some((word(0)?, word(1)?))
}

impl Parts {
    fn add(&mut self, part: Part) {
        let at = self.all.len();
        match place(&part.region) {
            Some(place) => self.under.entry(place).or_default().push(at),
            None => self.anywhere.push(at),
        }
        self.rows.entry(part.row).or_default().push(at);
        self.all.push(part);
    }

    /// Those of one row.
    fn of_row(&self, row: usize) -> impl Iterator<Item = &Part> {
        let at = self.rows.get(&row).into_iter().flatten();
        at.filter_map(|at| self.all.get(*at))
    }

    /// Those that can have something in common with a region, in order of the file.
    fn near(&self, region: &Region) -> impl Iterator<Item = &Part> {
        let mut at: Vec<usize> = match place(region) {
            Some(place) => {
                let under = self.under.get(&place).into_iter().flatten();
                under.chain(&self.anywhere).copied().collect()
            }
            None => (0..self.all.len()).collect(),
        };
        at.sort_unstable();
        at.into_iter().filter_map(|at| self.all.get(at))
    }
}

fn bounded(count: usize) -> Result<(), TooMany> {
    if count > REGIONS_MAX { Err(TooMany) } else { Ok(()) }
}

/// The patterns that belong to each group, through any number of groups.
pub(super) fn members(set: &RuleSet) -> Vec<Vec<&str>> {
    let mut reach: Vec<Vec<u32>> = vec![Vec::new(); set.groups.len()];
    for membership in &set.members {
        if let Subject::Group(inner) = membership.subject
            && let Some(of) =
                usize::try_from(membership.group).ok().and_then(|at| reach.get_mut(at))
        {
            of.push(inner);
        }
    }
    let direct = |group: u32| {
        let own = set.members.iter().filter(move |it| it.group == group);
        own.filter(|it| it.subject == Subject::Pattern).map(|it| &*it.member)
    };
    let all = |start: usize| {
        let mut seen: Vec<u32> = u32::try_from(start).into_iter().collect();
        let mut at = 0;
        while let Some(group) = seen.get(at).copied() {
            let inner = usize::try_from(group).ok().and_then(|group| reach.get(group));
            let new: Vec<u32> =
                inner.into_iter().flatten().filter(|g| !seen.contains(g)).copied().collect();
            seen.extend(new);
            at += 1;
        }
        let mut patterns: Vec<&str> = seen.into_iter().flat_map(direct).collect();
        patterns.sort_unstable();
        patterns.dedup();
        patterns
    };
    (0..set.groups.len()).map(all).collect()
}

fn subjects<'r>(row: &'r Row, members: &[Vec<&'r str>]) -> Vec<&'r str> {
    match row.subject {
        Subject::Pattern => vec![row.sub()],
        Subject::Group(group) => {
            let found = usize::try_from(group).ok().and_then(|group| members.get(group));
            found.cloned().unwrap_or_default()
        }
    }
}

/// A region of plain patterns, for questions.
pub(super) fn about(sub: &str, obj: &str, act: Actions) -> Region {
    Region::whole(Names::of(sub), Names::of(obj), act)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::native::evaluate;
    use super::super::parser::parse;
    use super::super::region::Witness;
    use super::super::request::Request;
    use super::*;

    const PROFILES: [&str; 2] = ["h", "m"];

    fn profiles() -> Vec<String> {
        PROFILES.map(str::to_owned).to_vec()
    }

    fn rows() -> impl Strategy<Value = String> {
        let sub = prop_oneof![
            Just("spiffe://d/a"),
            Just("spiffe://d/*"),
            Just("spiffe://d/a/**"),
            Just("group:g"),
            Just("group:o"),
        ];
        let obj = prop_oneof![
            Just("secret/n/**"),
            Just("secret/n/a"),
            Just("secret/n/*"),
            Just("secret/*/a"),
            Just("secret/**"),
            Just("secret/m/b"),
        ];
        let act = prop_oneof![Just("read"), Just("write"), Just("*")];
        let post = prop_oneof![Just("any"), Just("h"), Just("m")];
        let window = prop_oneof![
            Just("-, -"),
            Just("2026-01-01T00:00:00Z, -"),
            Just("-, 2027-01-01T00:00:00Z"),
            Just("2026-06-01T00:00:00Z, 2026-07-01T00:00:00Z"),
        ];
        let row = (sub, obj, act, post, window, any::<bool>());
        prop::collection::vec(row, 1..7).prop_map(|rows| {
            let mut text = String::from(
                "g, spiffe://d/b, group:g\ng, spiffe://d/*/x, group:g\ng, group:g, group:o\n",
            );
            let mut seen = std::collections::BTreeSet::new();
            for (at, (sub, obj, act, post, window, allow)) in rows.into_iter().enumerate() {
                let effect = if allow { "allow" } else { "deny" };
                let meaning = format!("{sub}, {obj}, {act}, {post}, {window}, {effect}");
                if seen.insert(meaning.clone()) {
                    text.push_str(&format!("p, r{at}, {meaning}\n"));
                }
            }
            text
        })
    }

    fn request() -> impl Strategy<Value = (String, String, &'static str, String, &'static str)> {
        let sub = prop_oneof![
            Just("spiffe://d/a"),
            Just("spiffe://d/b"),
            Just("spiffe://d/a/x"),
            Just("spiffe://d/c/y"),
        ];
        let obj = prop_oneof![
            Just("secret/n"),
            Just("secret/n/a"),
            Just("secret/n/b"),
            Just("secret/m/a"),
            Just("secret/m/b"),
            Just("secret/n/a/c"),
        ];
        let act = prop_oneof![Just("read"), Just("write")];
        let post = prop_oneof![
            Just("|"),
            Just("|h=t|"),
            Just("|m=t|"),
            Just("|h=u|m=t|"),
            Just("|h=t|m=u|"),
            Just("unknown"),
        ];
        let now = prop_oneof![
            Just("2025-12-31T23:59:59Z"),
            Just("2026-01-01T00:00:00Z"),
            Just("2026-06-30T23:59:59Z"),
            Just("2027-01-01T00:00:00Z"),
        ];
        (sub, obj, act, post, now)
            .prop_map(|(sub, obj, act, post, now)| (sub.into(), obj.into(), act, post.into(), now))
    }

    /// The region of just this request.
    fn point(request: &Request<'_>) -> Region {
        let act = crate::model::Action::parse(request.act).unwrap();
        about(request.sub, request.obj, Actions::one(act)).at(
            request.post,
            request.now,
            &profiles(),
        )
    }

    fn label(witness: &Witness) -> String {
        let held = witness.held.iter().map(|name| (name, 't'));
        let unknown = witness.unknown.iter().map(|name| (name, 'u'));
        let mut all: Vec<_> = held.chain(unknown).collect();
        all.sort();
        all.iter().fold("|".to_owned(), |text, (name, state)| format!("{text}{name}={state}|"))
    }

    fn allows(set: &RuleSet, witness: &Witness) -> bool {
        let post = label(witness);
        let request = Request {
            sub: &witness.sub,
            obj: &witness.obj,
            act: witness.act,
            post: &post,
            now: &witness.now,
        };
        evaluate(set, &request).0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn what_is_given_is_what_the_evaluator_allows(
            text in rows(), (sub, obj, act, post, now) in request(),
        ) {
            let set = parse(&text, &profiles()).unwrap();
            let steps = Steps::new(u64::MAX);
            let access = Access::new(&set, &profiles(), &steps);
            let request = Request { sub: &sub, obj: &obj, act, post: &post, now };
            let (allowed, _) = evaluate(&set, &request);
            let given = access.given(&point(&request)).unwrap();
            prop_assert_eq!(!given.is_empty(), allowed, "{}", text);
            let everywhere = about("spiffe://d/**", "secret/**", Actions::all());
            for part in access.given(&everywhere).unwrap() {
                let witness = part.region.witness(&profiles());
                prop_assert!(allows(&set, &witness), "{} {:?}", text, witness);
            }
        }

        #[test]
        fn what_is_gained_is_allowed_now_and_was_not(
            before in rows(), after in rows(), (sub, obj, act, post, now) in request(),
        ) {
            let (before, after) = (
                parse(&before, &profiles()).unwrap(), parse(&after, &profiles()).unwrap(),
            );
            let steps = Steps::new(u64::MAX);
            let old = Access::new(&before, &profiles(), &steps);
            let new = Access::new(&after, &profiles(), &steps);
            let gained = new.gained(&old).unwrap();
            for part in &gained {
                let witness = part.region.witness(&profiles());
                prop_assert!(allows(&after, &witness) && !allows(&before, &witness), "{:?}", witness);
            }
            let request = Request { sub: &sub, obj: &obj, act, post: &post, now };
            let wanted = evaluate(&after, &request).0 && !evaluate(&before, &request).0;
            let here = point(&request);
            let found = gained.iter().any(|part| part.region.and(&here).is_some());
            prop_assert_eq!(found, wanted);
            prop_assert!(new.gained(&new).unwrap().is_empty());
        }

        #[test]
        fn a_row_without_effect_can_go(text in rows(), (sub, obj, act, post, now) in request()) {
            let set = parse(&text, &profiles()).unwrap();
            let steps = Steps::new(u64::MAX);
            let access = Access::new(&set, &profiles(), &steps);
            let request = Request { sub: &sub, obj: &obj, act, post: &post, now };
            for at in 0..set.rows.len() {
                let line = format!("p, {},", set.rows[at].id());
                let without: Vec<&str> = text.lines().filter(|l| !l.starts_with(&line)).collect();
                let without = without.join("\n") + "\n";
                let idle = access.effect_of(at).unwrap().is_empty();
                if let (true, Ok(rest)) = (idle, parse(&without, &profiles())) {
                    prop_assert_eq!(evaluate(&rest, &request).0, evaluate(&set, &request).0);
                }
            }
        }
    }
}
