//! A second evaluator of the same rows, without Casbin and without the index.
//!
//! The tools explain with it and the tests hold Casbin against it, so it shares no matching code
//! with the matcher's functions: patterns are compared by recursion over lists of segments, times
//! as numbers, labels as maps. It never decides a request.

use std::collections::{BTreeMap, HashSet};

use super::request::Request;
use super::rows::{Row, RuleSet, Subject};

/// How one row met one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conjuncts {
    pub(super) action: bool,
    pub(super) object: bool,
    pub(super) subject: bool,
    pub(super) window: bool,
    pub(super) posture: bool,
}

impl Conjuncts {
    /// All hold: the row counts.
    pub(super) fn all(self) -> bool {
        self.failures() == 0
    }

    /// How many fail.
    pub(super) fn failures(self) -> usize {
        let each = [self.action, self.object, self.subject, self.window, self.posture];
        each.iter().filter(|holds| !**holds).count()
    }
}

/// The verdict over all rows, and the positions of those that matched: the oracle.
#[cfg(test)]
pub(super) fn evaluate(set: &RuleSet, request: &Request<'_>) -> (bool, Vec<usize>) {
    let groups = groups_of(set, request.sub);
    let matches = |(_, row): &(usize, &Row)| conjuncts(row, request, &groups).all();
    let matched: Vec<(usize, &Row)> = set.rows.iter().enumerate().filter(matches).collect();
    let allowed = !matched.is_empty() && matched.iter().all(|(_, row)| row.allow);
    (allowed, matched.into_iter().map(|(at, _)| at).collect())
}

/// Judges one row on its own.
pub(super) fn conjuncts(row: &Row, request: &Request<'_>, groups: &HashSet<u32>) -> Conjuncts {
    Conjuncts {
        action: !request.act.is_empty() && (row.act() == "*" || row.act() == request.act),
        object: covers(row.obj(), request.obj),
        subject: match row.subject {
            Subject::Group(group) => groups.contains(&group),
            Subject::Pattern => covers(row.sub(), request.sub),
        },
        window: window(row, request.now),
        posture: posture(row, request.post),
    }
}

/// Every group of a subject: memberships are applied until nothing is added.
pub(super) fn groups_of(set: &RuleSet, subject: &str) -> HashSet<u32> {
    let mut held = HashSet::new();
    loop {
        let before = held.len();
        for membership in &set.members {
            let belongs = match membership.subject {
                Subject::Group(member) => held.contains(&member),
                Subject::Pattern => covers(&membership.member, subject),
            };
            if belongs {
                held.insert(membership.group);
            }
        }
        if held.len() == before {
            return held;
        }
    }
}

/// Whether a pattern covers a name.
pub(super) fn covers(pattern: &str, value: &str) -> bool {
    let segments = |text: &'_ str| -> Vec<String> { text.split('/').map(str::to_owned).collect() };
    !pattern.is_empty() && !value.is_empty() && walk(&segments(pattern), &segments(value))
}

fn walk(pattern: &[String], value: &[String]) -> bool {
    match (pattern.split_first(), value.split_first()) {
        (None, None) => true,
        (Some((part, [])), _) if part == "**" => true,
        (Some((part, _)), _) if part == "**" => false,
        (Some((part, more)), Some((segment, rest))) => {
            let fits = (part == "*" && !segment.is_empty()) || part == segment;
            fits && walk(more, rest)
        }
        _ => false,
    }
}

fn window(row: &Row, now: &str) -> bool {
    let Some(now) = stamp(now) else {
        return false;
    };
    let begun = row.nbf() == "-" || stamp(row.nbf()).is_some_and(|begin| begin <= now);
    let ended = row.exp() != "-" && stamp(row.exp()).is_none_or(|end| end <= now);
    begun && !ended
}

/// A time as one number: its digits.
fn stamp(text: &str) -> Option<u64> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if digits.len() == 14 && text.len() == 20 { digits.parse().ok() } else { None }
}

fn posture(row: &Row, label: &str) -> bool {
    if row.post() == "any" {
        return true;
    }
    let held: Option<BTreeMap<&str, &str>> = match label {
        "|" => Some(BTreeMap::new()),
        _ => label
            .strip_prefix('|')
            .and_then(|rest| rest.strip_suffix('|'))
            .and_then(|inner| inner.split('|').map(|part| part.split_once('=')).collect()),
    };
    match (held.as_ref().map(|held| held.get(row.post()).copied()), row.allow) {
        (Some(Some("t")), _) => true,
        (Some(None), _) => false,
        (_, allow) => !allow,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser::parse;
    use super::*;

    #[test]
    fn each_conjunct_is_told_apart() {
        let text = "p, a, spiffe://d/x, secret/n/**, read, m, -, 2027-01-01T00:00:00Z, allow\n";
        let set = parse(text, &["m".to_owned()]).unwrap();
        let good = Request {
            sub: "spiffe://d/x",
            obj: "secret/n/a",
            act: "read",
            post: "|m=t|",
            now: "2026-12-31T23:59:59Z",
        };
        assert_eq!(evaluate(&set, &good), (true, vec![0]));
        for (bad, which) in [
            (Request { sub: "spiffe://d/y", ..good }, "subject"),
            (Request { obj: "secret/m/a", ..good }, "object"),
            (Request { act: "write", ..good }, "action"),
            (Request { post: "|m=u|", ..good }, "posture"),
            (Request { now: "2027-01-01T00:00:00Z", ..good }, "window"),
        ] {
            let row = set.row(0).unwrap();
            let found = conjuncts(row, &bad, &groups_of(&set, bad.sub));
            assert_eq!(found.failures(), 1, "{which}");
            assert!(!evaluate(&set, &bad).0, "{which}");
        }
    }
}
