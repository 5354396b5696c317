//! A policy that locks its own keepers out is no policy.
//!
//! Judged with witnesses that no row can name: an agent and an operator whose names are digests of
//! the policy itself. In this language a pattern that covers such a witness covers all but the few
//! identities that are named. There is no clock here, so a row counts against the policy whenever
//! it ever counts, and for the policy only if it always does.

use std::collections::HashSet;

use crate::model::{Diagnostic, Digest, TrustDomain};

use super::native::{covers, groups_of};
use super::parser::FILE;
use super::pattern::{ANY, UNBOUNDED};
use super::rows::{Row, RuleSet, Subject};

/// One thing that must stay possible.
struct Need {
    who: String,
    action: &'static str,
    object: String,
    what: &'static str,
}

/// Checks that agents can report and renew, and that operators can renew and mend the policy.
///
/// # Errors
/// One fault for each row that locks somebody out, and one if nobody could activate a policy.
pub(super) fn check(
    set: &RuleSet,
    text: &str,
    domain: &TrustDomain,
) -> Result<(), Vec<Diagnostic>> {
    let fresh = Digest::of(text.as_bytes()).to_string();
    let mut faults = Vec::new();
    for need in needs(domain, &fresh) {
        let groups = groups_of(set, &need.who);
        let stops = |row: &&Row| {
            !row.allow
                && row.post() == ANY
                && speaks(row, &need.who, need.action, &need.object, &groups)
        };
        for row in set.rows.iter().filter(stops) {
            let message = format!("`{}` stops {}", row.id(), need.what);
            let help = "narrow its subject or its object; nobody could mend the policy otherwise";
            faults.push(at_line(text, row.line, message).help(help));
        }
    }
    if faults.is_empty() && !operators(set, domain, &fresh).iter().any(|who| may_activate(set, who))
    {
        let message = "no operator could activate the next policy";
        let help = format!(
            "allow it without posture and window: p, <id>, spiffe://{domain}/doorward/operator/*, \
             policy, activate, any, -, -, allow"
        );
        faults.push(at_line(text, 1, message).help(help));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn needs(domain: &TrustDomain, fresh: &str) -> Vec<Need> {
    let agent = format!("spiffe://{domain}/doorward/agent/{fresh}");
    let operator = format!("spiffe://{domain}/doorward/operator/{fresh}");
    let device = format!("device/{fresh}/{fresh}");
    let person = format!("device/person/{fresh}");
    let need = |who: &str, action, object: &str, what| Need {
        who: who.to_owned(),
        action,
        object: object.to_owned(),
        what,
    };
    vec![
        need(&agent, "report", &device, "all agents from reporting"),
        need(&agent, "renew", &device, "all agents from renewing their identity"),
        need(&operator, "renew", &person, "all operators from renewing their identity"),
        need(&operator, "activate", "policy", "all operators from activating a policy"),
        need(&operator, "rollback", "policy", "all operators from rolling a policy back"),
    ]
}

/// The operators worth asking about: any, and each that a row or a membership names.
fn operators(set: &RuleSet, domain: &TrustDomain, fresh: &str) -> HashSet<String> {
    let start = format!("spiffe://{domain}/doorward/operator/");
    let subjects = set.rows.iter().map(Row::sub).chain(set.members.iter().map(|m| &*m.member));
    let named =
        subjects.filter(|s| s.strip_prefix(&start).is_some_and(|name| !name.contains(['*', '/'])));
    named.map(str::to_owned).chain([format!("{start}{fresh}")]).collect()
}

/// Whether this operator, whose device nothing is known of, is always allowed to.
fn may_activate(set: &RuleSet, who: &str) -> bool {
    let groups = groups_of(set, who);
    let speaking = |row: &&Row| speaks(row, who, "activate", "policy", &groups);
    let mut allowed = false;
    for row in set.rows.iter().filter(speaking) {
        if !row.allow {
            return false; // a deny counts on unknown posture, and at some time
        }
        allowed |= row.post() == ANY && row.nbf() == UNBOUNDED && row.exp() == UNBOUNDED;
    }
    allowed
}

fn speaks(row: &Row, who: &str, action: &str, object: &str, groups: &HashSet<u32>) -> bool {
    let subject = match row.subject {
        Subject::Group(group) => groups.contains(&group),
        Subject::Pattern => covers(row.sub(), who),
    };
    subject && (row.act() == "*" || row.act() == action) && covers(row.obj(), object)
}

fn at_line(text: &str, line: u32, message: impl Into<String>) -> Diagnostic {
    let before = usize::try_from(line).unwrap_or(1).saturating_sub(1);
    let at = text.split_inclusive('\n').take(before).map(str::len).sum();
    let length = text.get(at..).and_then(|rest| rest.lines().next()).map_or(1, str::len);
    Diagnostic::at(FILE, text, at, length, message)
}

#[cfg(test)]
mod tests {
    use super::super::parser::parse;
    use super::*;

    const OPEN: &str = "p, ops, spiffe://d/doorward/operator/*, policy, *, any, -, -, allow\n";

    fn faults(text: &str) -> Vec<String> {
        let set = parse(text, &["m".to_owned()]).unwrap();
        let domain = TrustDomain::parse("d").unwrap();
        let list = check(&set, text, &domain).err().unwrap_or_default();
        list.into_iter().map(|f| format!("{} {}", f.line, f.message)).collect()
    }

    #[test]
    fn a_deny_that_stops_everybody_is_refused_and_a_narrow_one_is_not() {
        assert_eq!(faults(OPEN), [""; 0]);
        for (row, want) in [
            (
                "spiffe://d/doorward/agent/*, device/**, report",
                "2 `x` stops all agents from reporting",
            ),
            (
                "spiffe://d/**, device/*/*, renew",
                "2 `x` stops all agents from renewing their identity",
            ),
            ("group:g, policy, rollback", "2 `x` stops all operators from rolling a policy back"),
            ("spiffe://d/**, policy, *", "2 `x` stops all operators from activating a policy"),
        ] {
            let text =
                format!("{OPEN}p, x, {row}, any, -, -, deny\ng, spiffe://d/doorward/**, group:g\n");
            assert_eq!(faults(&text).first().map(String::as_str), Some(want), "{row}");
        }
        for row in [
            "spiffe://d/doorward/agent/*, device/laptop/*, report, any",
            "spiffe://d/doorward/agent/one, device/**, report, any",
            "spiffe://d/doorward/agent/*, device/**, report, m",
            "spiffe://d/doorward/agent/*, secret/**, *, any",
            "spiffe://e/doorward/agent/*, device/**, *, any",
        ] {
            assert_eq!(faults(&format!("{OPEN}p, x, {row}, -, -, deny\n")), [""; 0], "{row}");
        }
        let ended = "p, x, spiffe://d/**, device/**, *, any, -, 2020-01-01T00:00:00Z, deny\n";
        assert!(!faults(&format!("{OPEN}{ended}")).is_empty(), "there is no clock here");
    }

    #[test]
    fn somebody_must_be_able_to_activate_the_next_policy() {
        let none = "1 no operator could activate the next policy";
        let row = |tail: &str| format!("p, a, {tail}\n");
        for good in [
            "spiffe://d/doorward/operator/ann, policy, activate, any, -, -, allow",
            "spiffe://d/doorward/**, policy, *, any, -, -, allow",
        ] {
            assert_eq!(faults(&row(good)), [""; 0], "{good}");
        }
        for bad in [
            "spiffe://d/ns/x, policy, activate, any, -, -, allow",
            "spiffe://d/doorward/operator/*, policy, read, any, -, -, allow",
            "spiffe://d/doorward/operator/*, policy, activate, m, -, -, allow",
            "spiffe://d/doorward/operator/*, policy, activate, any, -, 2030-01-01T00:00:00Z, allow",
            "spiffe://d/doorward/operator/*, policy, activate, any, 2020-01-01T00:00:00Z, -, allow",
            "spiffe://e/doorward/operator/*, policy, activate, any, -, -, allow",
        ] {
            assert_eq!(faults(&row(bad)), [none], "{bad}");
        }
        let bitten = format!("{OPEN}p, x, spiffe://d/**, policy, activate, m, -, -, deny\n");
        assert_eq!(faults(&bitten), [none], "a deny with a posture counts when nothing is known");
        let but_ann = "p, ann, spiffe://d/doorward/operator/ann, policy, *, any, -, -, allow\n\
                       p, x, spiffe://d/doorward/operator/bob, policy, activate, any, -, -, deny\n";
        assert_eq!(faults(but_ann), [""; 0]);
    }
}
