//! Why a request came out as it did: every row that counted, every row that nearly did, and what
//! it lacked.
//!
//! For operators and authors only: it names rows, which the caller itself is never told. The rows
//! are taken apart by the native evaluator; the verdict is Casbin's.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::judge::{Rules, Seen};
use super::native::{Conjuncts, conjuncts, groups_of};
use super::parser::FILE;
use super::pattern::{ANY, UNBOUNDED, label_says};
use super::request::Request;
use super::rows::{Row, RuleSet, Subject};
use super::scope::{APPLICANT_OBJECT, Mode};
use super::values::is_time;
use crate::model::{Action, Digest, Object, Reason, SpiffeId};

/// Near misses that are told; the rest is counted.
const NEAR_MAX: usize = 32;

/// How one row met the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowCheck {
    /// The row's id.
    pub id: String,
    /// Its file.
    pub file: &'static str,
    /// Its line, from 1.
    pub line: u32,
    /// Its effect: `allow` or `deny`.
    pub effect: String,
    /// Whether it speaks of the action.
    pub action: bool,
    /// Whether it speaks of the object.
    pub object: bool,
    /// Whether it speaks of the subject.
    pub subject: bool,
    /// Whether the moment lies in its window.
    pub window: bool,
    /// Whether the device's posture makes it count.
    pub posture: bool,
    /// What it lacked, one sentence for each that failed.
    pub lacked: Vec<String>,
    /// What its `#@` lines say, as `key=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// What the policy says of one request, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The stable reason.
    pub reason: Reason,
    /// Serial number of the bundle.
    pub serial: u64,
    /// Digest of the bundle.
    pub bundle: Digest,
    /// The subject that was asked about.
    pub subject: String,
    /// The action.
    pub action: Action,
    /// The object.
    pub object: String,
    /// The posture.
    pub posture: String,
    /// The moment.
    pub now: String,
    /// Rows that counted, in file order.
    pub matched: Vec<RowCheck>,
    /// Rows that speak of this subject and object, or lack one thing only; allows first.
    pub near: Vec<RowCheck>,
    /// Near misses beyond those.
    pub near_more: usize,
    /// Anything else worth knowing, e.g. a rule of Doorward's own.
    pub notes: Vec<String>,
}

/// Explains one request; texts that are not of their form are told, and denied.
pub(super) fn explain(
    rules: &Rules,
    (serial, bundle): (u64, Digest),
    sub: &str,
    action: Action,
    object: &str,
    label: &str,
    now: &str,
) -> Explanation {
    let mut out = Explanation {
        allowed: false,
        reason: Reason::NoAllow,
        serial,
        bundle,
        subject: sub.to_owned(),
        action,
        object: object.to_owned(),
        posture: label.to_owned(),
        now: now.to_owned(),
        matched: Vec::new(),
        near: Vec::new(),
        near_more: 0,
        notes: faults_of(rules, sub, object, now),
    };
    if !out.notes.is_empty() {
        return out;
    }
    let (mode, note) = mode_of(sub, action, object);
    out.notes.extend(note);
    let judged = rules.judge(sub, action, object, Seen::Label(label), now, mode);
    (out.allowed, out.reason) = (judged.allowed, judged.reason);
    let request = Request { sub, obj: object, act: action.as_str(), post: label, now };
    out.take_apart(&rules.set, &request, mode);
    let row_allows = out.matched.iter().any(|row| row.effect == "allow");
    let row_denies = out.matched.iter().any(|row| row.effect == "deny");
    let expected = (row_allows || matches!(mode, Mode::Own(_))) && !row_denies;
    if expected != out.allowed && out.reason != Reason::EngineError {
        out.notes.push("the two evaluators disagree: please report this policy".to_owned());
    }
    out
}

impl Explanation {
    fn take_apart(&mut self, set: &RuleSet, request: &Request<'_>, mode: Mode) {
        let groups = groups_of(set, request.sub);
        let counts = |row: &&Row| match mode {
            Mode::Ordinary => true,
            Mode::Own(_) => !row.allow && row.post() == ANY,
            Mode::Rollback => row.allow || row.post() == ANY,
        };
        let mut near: Vec<(bool, usize, &Row, Conjuncts)> = Vec::new();
        for row in set.rows.iter().filter(counts) {
            let found = conjuncts(row, request, &groups);
            if found.all() {
                self.matched.push(check(set, row, request, found, &groups));
                continue;
            }
            // A row for this very object and action is near also when the subject is another and its
            // posture was never asked for.
            let of_the_object = row.allow && found.action && found.object;
            if of_the_object || (found.subject && found.object) || found.failures() == 1 {
                near.push((!row.allow, found.failures(), row, found));
            }
        }
        near.sort_by_key(|(deny, failures, row, _)| (*deny, *failures, row.line));
        self.near_more = near.len().saturating_sub(NEAR_MAX);
        near.truncate(NEAR_MAX);
        let told =
            near.into_iter().map(|(_, _, row, found)| check(set, row, request, found, &groups));
        self.near = told.collect();
    }

    /// The picture for a terminal.
    pub fn render(&self) -> String {
        let verdict = if self.allowed { "ALLOW" } else { "DENY" };
        let digest = self.bundle.to_string();
        let short = digest.get(..8).unwrap_or("");
        let mut out = format!(
            "{verdict} {} {}   bundle {} (sha256:{short}..)\n",
            self.reason.code(),
            self.reason.word(),
            self.serial
        );
        let _ = writeln!(out, "  {} {} {}", self.subject, self.action, self.object);
        let _ = writeln!(out, "  posture {}   at {}", self.posture, self.now);
        for row in self.matched.iter().chain(&self.near) {
            row.render(&mut out);
        }
        if self.near_more > 0 {
            let _ = writeln!(out, "  and {} more that nearly match", self.near_more);
        }
        let mends = self.near.iter().filter(|row| row.effect == "allow" && row.lacked.len() == 1);
        let denied = self.matched.iter().any(|row| row.effect == "deny");
        for row in mends.filter(|_| !self.allowed && !denied).take(3) {
            let _ =
                writeln!(out, "  {} would allow it, but for: {}", row.id, row.lacked.join("; "));
        }
        for note in &self.notes {
            let _ = writeln!(out, "  note: {note}");
        }
        out
    }
}

impl RowCheck {
    fn render(&self, out: &mut String) {
        let word = |holds: bool| if holds { "ok" } else { "FAIL" };
        let _ = writeln!(
            out,
            "  row {}  {}:{}  {}  action {} | object {} | subject {} | window {} | posture {}",
            self.id,
            self.file,
            self.line,
            self.effect,
            word(self.action),
            word(self.object),
            word(self.subject),
            word(self.window),
            word(self.posture)
        );
        for lacked in &self.lacked {
            let _ = writeln!(out, "      {lacked}");
        }
        if !self.remarks.is_empty() {
            let _ = writeln!(out, "      {}", self.remarks.join(" "));
        }
    }
}

fn check(
    set: &RuleSet,
    row: &Row,
    request: &Request<'_>,
    found: Conjuncts,
    groups: &HashSet<u32>,
) -> RowCheck {
    let mut lacked = Vec::new();
    let mut say = |holds: bool, text: String| {
        if !holds {
            lacked.push(text);
        }
    };
    say(found.action, format!("it is about {}, not {}", row.act(), request.act));
    say(found.object, format!("{} is not in {}", request.obj, row.obj()));
    say(
        found.subject,
        match row.subject {
            Subject::Pattern => format!("{} is not in {}", request.sub, row.sub()),
            Subject::Group(group) => {
                let mut names: Vec<&str> = groups.iter().map(|g| set.group(*g)).collect();
                names.sort_unstable();
                let names = if names.is_empty() { "no group".to_owned() } else { names.join(", ") };
                format!("{} is in {names}, not in {}", request.sub, set.group(group))
            }
        },
    );
    say(
        found.window,
        match row.nbf() != UNBOUNDED && request.now < row.nbf() {
            true => format!("it begins at {}", row.nbf()),
            false => format!("it ended at {}", row.exp()),
        },
    );
    say(
        found.posture,
        match label_says(request.post, row.post()) {
            Some(_) => format!("it wants the profile {}, which is not held", row.post()),
            None => format!("it wants the profile {}, of which nothing is known", row.post()),
        },
    );
    let remark = |(key, value): &(Box<str>, Box<str>)| format!("{key}={value}");
    RowCheck {
        id: row.id().to_owned(),
        file: FILE,
        line: row.line,
        effect: row.eft().to_owned(),
        action: found.action,
        object: found.object,
        subject: found.subject,
        window: found.window,
        posture: found.posture,
        lacked,
        remarks: row.remarks.iter().flatten().map(remark).collect(),
    }
}

fn faults_of(rules: &Rules, sub: &str, object: &str, now: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(error) = SpiffeId::parse(sub) {
        faults.push(format!("the subject is no SPIFFE ID: {error}"));
    }
    if object != APPLICANT_OBJECT
        && let Err(error) = Object::parse(object, &rules.domain)
    {
        faults.push(format!("the object is none: {error}"));
    }
    if !is_time(now) {
        faults.push("the moment is not written YYYY-MM-DDTHH:MM:SSZ".to_owned());
    }
    faults
}

/// Rules of Doorward's own, as far as the words of a request show them: which of an agent's
/// devices is its own stands in its name; of a person it is taken for granted.
fn mode_of(sub: &str, action: Action, object: &str) -> (Mode, Option<String>) {
    let path = SpiffeId::parse(sub).map(|id| id.path().to_owned()).unwrap_or_default();
    let agent = path.strip_prefix("/doorward/agent/");
    let operator = path.starts_with("/doorward/operator/");
    let device = object.strip_prefix("device/").and_then(|rest| rest.split_once('/'));
    let own = agent.is_some_and(|id| device.is_some_and(|(_, device)| device == id));
    let person = operator && device.is_some_and(|(class, _)| class == "person");
    let id = match action {
        Action::Report if own => "self-report",
        Action::Renew if own || person => "self-renew",
        Action::Read if own => "self-duties",
        Action::Read if object == format!("svid{path}") => "self-read",
        Action::Enroll if path == "/doorward/applicant" && object == APPLICANT_OBJECT => {
            "self-enroll"
        }
        Action::Rollback if object == "policy" => {
            let note = "deny rows with a posture do not count against a rollback";
            return (Mode::Rollback, Some(note.to_owned()));
        }
        _ => return (Mode::Ordinary, None),
    };
    let note = format!(
        "{id}, a rule of Doorward's own, allows what is about the caller itself; \
         only deny rows with posture `any` count against it"
    );
    (Mode::Own(id), Some(note))
}

#[cfg(test)]
mod tests {
    use super::super::index::Index;
    use super::super::parser::parse;
    use super::*;
    use crate::model::TrustDomain;

    const POLICY: &str = "\
#@ owner=payments
p, pay, spiffe://d/api, secret/pay/**, read, hardened, -, 2027-01-01T00:00:00Z, allow
p, ops, group:ops, secret/pay/**, read, any, -, -, allow
p, far, spiffe://d/other, secret/x/**, write, any, -, -, allow
p, no, spiffe://d/**, secret/pay/no, *, any, -, -, deny
p, halt, spiffe://d/**, device/**, report, hardened, -, -, deny
g, spiffe://d/op, group:ops
";
    const NOW: &str = "2026-11-23T00:00:00Z";

    fn explained(sub: &str, action: Action, object: &str, label: &str, now: &str) -> Explanation {
        let set = parse(POLICY, &["hardened".to_owned()]).unwrap();
        let rules = Rules {
            index: Index::new(&set),
            set,
            domain: TrustDomain::parse("d").unwrap(),
            memory: Default::default(),
        };
        explain(&rules, (41, Digest([0x9c; 32])), sub, action, object, label, now)
    }

    #[test]
    fn it_says_what_was_lacking() {
        let found = explained("spiffe://d/api", Action::Read, "secret/pay/x", "|", NOW);
        assert_eq!((found.allowed, found.reason), (false, Reason::PostureUnmet));
        let near: Vec<(&str, usize)> =
            found.near.iter().map(|r| (r.id.as_str(), r.lacked.len())).collect();
        assert_eq!(near, [("pay", 1), ("ops", 1), ("no", 1)], "{found:#?}");
        let text = found.render();
        assert!(
            text.starts_with("DENY D201 posture_unmet   bundle 41 (sha256:9c9c9c9c..)\n"),
            "{text}"
        );
        let row = "row pay  policy.csv:2  allow  action ok | object ok | subject ok | window ok";
        assert!(text.contains(&format!("{row} | posture FAIL")), "{text}");
        assert!(text.contains("it wants the profile hardened, which is not held"), "{text}");
        assert!(text.contains("owner=payments"), "{text}");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!((&json["reason"], &json["near"][0]["id"]), (&"D201".into(), &"pay".into()));
    }

    #[test]
    fn each_verdict_names_its_rows() {
        let held = "|hardened=t|";
        let good = explained("spiffe://d/api", Action::Read, "secret/pay/x", held, NOW);
        assert_eq!((good.allowed, good.matched[0].id.as_str()), (true, "pay"));
        let denied = explained("spiffe://d/api", Action::Read, "secret/pay/no", held, NOW);
        assert_eq!(
            (denied.allowed, denied.reason, denied.matched.len()),
            (false, Reason::DenyRow, 2)
        );
        assert!(!denied.render().contains("would allow it"), "a deny is not mended by an allow");
        let late =
            explained("spiffe://d/api", Action::Read, "secret/pay/x", held, "2027-01-01T00:00:00Z");
        assert_eq!(late.reason, Reason::Window);
        assert!(late.render().contains("it ended at 2027-01-01T00:00:00Z"));
        for found in [&good, &denied, &late] {
            assert!(found.notes.is_empty(), "{:?}", found.notes);
        }
    }

    #[test]
    fn rules_of_doorwards_own_are_told() {
        let (me, device) = ("ab".repeat(32), format!("device/server/{}", "ab".repeat(32)));
        let found = explained(
            &format!("spiffe://d/doorward/agent/{me}"),
            Action::Report,
            &device,
            "unknown",
            NOW,
        );
        assert!(found.allowed && found.notes[0].starts_with("self-report"), "{found:#?}");
        let other = format!("device/server/{}", "cd".repeat(32));
        let found = explained(
            &format!("spiffe://d/doorward/agent/{me}"),
            Action::Report,
            &other,
            "unknown",
            NOW,
        );
        assert_eq!((found.allowed, found.reason), (false, Reason::DenyRow));
    }

    #[test]
    fn words_out_of_form_are_told_and_denied() {
        for (sub, object, now) in [
            ("group:ops", "secret/pay/x", NOW),
            ("spiffe://d/op", "secret/pay/../x", NOW),
            ("spiffe://d/op", "secret/pay/*", NOW),
            ("spiffe://d/op", "secret/pay/x", "now"),
        ] {
            let found = explained(sub, Action::Read, object, "unknown", now);
            assert!(!found.allowed && found.notes.len() == 1, "{found:?}");
        }
        assert!(explained("spiffe://d/op", Action::Read, "secret/pay/x", "garbage", NOW).allowed);
    }
}
