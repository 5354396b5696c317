//! From a request to a judgement: which rows, what Casbin says of them, and why.

use crate::identity::{CallerKind, Standing};
use crate::model::{Action, Ask, Code, Reason, Target, TrustDomain};
use crate::posture::{Tri, Verdict};

use super::decision::Ruled;
use super::engine::enforce;
use super::index::{Candidates, Index};
use super::memory::Memory;
use super::outcome::{BuiltIn, EngineError, Matched, Outcome};
use super::pattern::{ANY, UNKNOWN, in_window, label_says, path_match, posture_ok};
use super::request::Request;
use super::rows::{Row, RuleSet, Subject};
use super::scope::{self, Asker, Mode, NoObject};

/// The rows of a bundle with their index.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) set: RuleSet,
    pub(super) index: Index,
    pub(super) domain: TrustDomain,
    pub(super) memory: Memory,
}

/// A device's posture, as it was assessed or as a tool names it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen<'a> {
    /// Of a real device, now.
    Verdict(&'a Verdict),
    /// `|name=t|name=u|` or `unknown`.
    Label(&'a str),
}

impl Seen<'_> {
    fn of(&self, profile: &str) -> Tri {
        match self {
            Self::Verdict(verdict) if verdict.label() == UNKNOWN => Tri::Unknown,
            Self::Verdict(verdict) => verdict.of(profile),
            Self::Label(label) => match label_says(label, profile) {
                Some(true) => Tri::True,
                Some(false) => Tri::False,
                None => Tri::Unknown,
            },
        }
    }

    fn is_stale(&self) -> bool {
        matches!(self, Self::Verdict(verdict) if verdict.is_stale())
    }

    /// The label that Casbin is given: the profiles that these rows name, in order. A profile that
    /// was not assessed is unknown in it, never «not held».
    fn label<'r>(&self, rows: impl Iterator<Item = &'r Row>) -> String {
        let mut names: Vec<&str> = rows.map(Row::post).filter(|post| *post != ANY).collect();
        names.sort_unstable();
        names.dedup();
        self.label_of(names.into_iter())
    }

    /// The same for names that are in order already, once each.
    fn label_of<'n>(&self, names: impl Iterator<Item = &'n str>) -> String {
        if let Self::Label(label) = self {
            return (*label).to_owned();
        }
        let mut label = String::from("|");
        for name in names {
            let value = match self.of(name) {
                Tri::True => "=t|",
                Tri::Unknown => "=u|",
                Tri::False => continue,
            };
            label.push_str(name);
            label.push_str(value);
        }
        label
    }
}

/// What was judged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) allowed: bool,
    pub(super) code: Code,
    pub(super) reason: Reason,
    pub(super) rules: Vec<Ruled>,
}

impl Judgement {
    fn denied(reason: Reason) -> Self {
        Self { allowed: false, code: Code::Denied, reason, rules: Vec::new() }
    }

    fn built_in(id: &str) -> Self {
        let rule = Ruled { id: id.into(), line: 0, allow: true };
        Self { allowed: true, code: Code::Denied, reason: Reason::Allow, rules: vec![rule] }
    }
}

impl Rules {
    /// Judges one ask of one caller, from standing to absence. Never fails.
    pub(super) fn judge_ask(
        &self,
        asker: &Asker<'_>,
        seen: Seen<'_>,
        ask: &Ask,
        target: &Target,
        now: &str,
    ) -> (Result<String, NoObject>, Judgement) {
        let object = scope::object(asker, ask, &self.domain);
        let judgement = match (&object, refusal_before_rules(asker, ask)) {
            (_, Some(early)) => early,
            (Err(NoObject::Invalid), None) => {
                Judgement { code: Code::Invalid, ..Judgement::denied(Reason::Invalid) }
            }
            (Err(NoObject::Forbidden), None) => Judgement::denied(Reason::NoAllow),
            (Ok(object), None) => self.judge_object(asker, seen, ask, object, target, now),
        };
        (object, judgement)
    }

    fn judge_object(
        &self,
        asker: &Asker<'_>,
        seen: Seen<'_>,
        ask: &Ask,
        object: &str,
        target: &Target,
        now: &str,
    ) -> Judgement {
        let subject = asker.id.as_str();
        let mode = scope::mode(asker, ask);
        let mut judgement = self.judge(subject, ask.action(), object, seen, now, mode);
        if let (true, Some((action, object))) = (judgement.allowed, scope::also_needs(ask)) {
            let second = self.judge(subject, action, &object, seen, now, Mode::Ordinary);
            judgement = match second.allowed {
                true => {
                    judgement.rules.extend(second.rules);
                    judgement
                }
                false => second,
            };
        }
        let stands_against = match target {
            Target::Unknown => Some((Code::Unavailable, Reason::StoreUnavailable)),
            Target::Revoked => Some((Code::Denied, Reason::Revoked)),
            _ => None,
        };
        if let (true, Some((code, reason))) = (judgement.allowed, stands_against) {
            return Judgement { allowed: false, code, reason, ..judgement };
        }
        if judgement.allowed && target.is_absent() && !scope::creates(ask) {
            let (action, object) = scope::may_know_of(ask, object);
            // Whether a token lives is told to nobody: an applicant is denied, or let in.
            let knows = !matches!(ask, Ask::Enroll { .. })
                && self.judge(subject, action, &object, seen, now, Mode::Ordinary).allowed;
            judgement.allowed = false;
            judgement.code = if knows { Code::NotFound } else { Code::Denied };
            judgement.reason = Reason::Absent;
        }
        judgement
    }

    /// Judges one action on one object by the rows alone. An error is a denial.
    pub(super) fn judge(
        &self,
        subject: &str,
        action: Action,
        object: &str,
        seen: Seen<'_>,
        now: &str,
        mode: Mode,
    ) -> Judgement {
        if mode == Mode::Ordinary {
            let label = |posts: &[Box<str>]| seen.label_of(posts.iter().map(|post| &**post));
            if let Some(rules) = self.memory.recall(subject, action, object, now, label) {
                let (code, reason) = (Code::Denied, Reason::Allow);
                return Judgement { allowed: true, code, reason, rules };
            }
        }
        let found = self.candidates(subject, action, object, mode);
        let label = seen.label(found.rows.iter().filter_map(|row| self.set.row(*row)));
        let request =
            Request { sub: subject, obj: object, act: action.as_str(), post: &label, now };
        let built_in = match mode {
            Mode::Own(id) => Some(BuiltIn { id }),
            Mode::Ordinary | Mode::Rollback => None,
        };
        match enforce(&self.set, &request, built_in, &found.rows, &found.groups) {
            Ok(outcome) => {
                let judged = self.explained(&request, seen, built_in, &found, outcome);
                if judged.allowed && mode == Mode::Ordinary {
                    let rows = found.rows.iter().filter_map(|row| self.set.row(*row));
                    let what = (subject, action, object);
                    self.memory.remember(what, (&label, now), rows, &judged.rules);
                }
                judged
            }
            Err(error) => {
                self.alarm(&error);
                Judgement::denied(Reason::EngineError)
            }
        }
    }

    fn alarm(&self, error: &EngineError) {
        tracing::error!(generation = self.set.generation, %error, "the policy engine failed: denied");
    }

    /// The candidate rows that count in this mode, and the subject's groups.
    fn candidates(&self, subject: &str, action: Action, object: &str, mode: Mode) -> Candidates {
        let mut found = self.index.candidates(&self.set, subject, object, action);
        let counts = |row: &Row| match mode {
            Mode::Ordinary => true,
            Mode::Own(_) => !row.allow && row.post() == ANY,
            Mode::Rollback => row.allow || row.post() == ANY,
        };
        found.rows.retain(|row| self.set.row(*row).is_some_and(counts));
        found
    }

    fn explained(
        &self,
        request: &Request<'_>,
        seen: Seen<'_>,
        built_in: Option<BuiltIn>,
        found: &Candidates,
        outcome: Outcome,
    ) -> Judgement {
        let rule = |matched: &Matched| match matched {
            Matched::BuiltIn => {
                built_in.map(|rule| Ruled { id: rule.id.into(), line: 0, allow: true })
            }
            Matched::Row(at) => self.set.row(*at).map(|row| Ruled {
                id: row.id().into(),
                line: usize::try_from(row.line).unwrap_or(0),
                allow: row.allow,
            }),
        };
        let mut rules: Vec<Ruled> = outcome.matched.iter().filter_map(rule).collect();
        rules.sort_by_key(|rule| rule.allow != outcome.allowed); // deciding ones first
        let reason = match outcome.allowed {
            true => Reason::Allow,
            false if rules.iter().any(|rule| !rule.allow) => Reason::DenyRow,
            false => self.nearest(request, seen, found),
        };
        Judgement { allowed: outcome.allowed, code: Code::Denied, reason, rules }
    }

    /// Why no row allows: the smallest thing that an allow row lacked. Fresher evidence is less
    /// than better knowledge, that is less than another device, and that less than another time.
    fn nearest(&self, request: &Request<'_>, seen: Seen<'_>, found: &Candidates) -> Reason {
        let lacks = |row: &Row| {
            if !row.allow || !self.speaks_of(row, request.sub, request.obj, &found.groups) {
                return None;
            }
            let in_time = in_window(request.now, row.nbf(), row.exp());
            let in_posture = posture_ok(request.post, row.post(), row.eft());
            match (in_time, in_posture, seen.of(row.post())) {
                (true, false, Tri::Unknown) if seen.is_stale() => Some((0, Reason::PostureStale)),
                (true, false, Tri::Unknown) => Some((1, Reason::PostureUnknown)),
                (true, false, _) => Some((2, Reason::PostureUnmet)),
                (false, true, _) => Some((3, Reason::Window)),
                _ => None,
            }
        };
        let rows = found.rows.iter().filter_map(|row| self.set.row(*row));
        rows.filter_map(lacks).min_by_key(|(rank, _)| *rank).map_or(Reason::NoAllow, |(_, r)| r)
    }

    fn speaks_of(&self, row: &Row, subject: &str, object: &str, groups: &[u32]) -> bool {
        let of_subject = match row.subject {
            Subject::Group(group) => groups.binary_search(&group).is_ok(),
            Subject::Pattern => path_match(subject, row.sub()),
        };
        of_subject && path_match(object, row.obj())
    }

    /// Calls `found` with the profile of every row that could count for this request, whatever the
    /// device and the time.
    fn profiles_named(
        &self,
        subject: &str,
        action: Action,
        object: &str,
        mode: Mode,
        found: &mut impl FnMut(u32),
    ) {
        let candidates = self.candidates(subject, action, object, mode);
        for at in &candidates.rows {
            let Some(row) = self.set.row(*at) else {
                continue;
            };
            if row.post() != ANY && self.speaks_of(row, subject, object, &candidates.groups) {
                found(*at);
            }
        }
    }

    /// What `of` makes of the profiles that matter to an ask whose judgement is remembered: of one
    /// action on one object, judged by all rows.
    pub(super) fn remembered_posts<T>(
        &self,
        asker: &Asker<'_>,
        ask: &Ask,
        of: impl FnOnce(&[Box<str>]) -> T,
    ) -> Option<T> {
        let is_one = !matches!(ask, Ask::List { .. } | Ask::CanI { .. })
            && scope::mode(asker, ask) == Mode::Ordinary
            && scope::also_needs(ask).is_none()
            && refusal_before_rules(asker, ask).is_none();
        let object = scope::object(asker, ask, &self.domain).ok().filter(|_| is_one)?;
        self.memory.posts(asker.id.as_str(), ask.action(), &object, of)
    }

    /// The rows whose profiles an ask needs to be assessed. A listing judges every name below its
    /// prefix, which only the store knows, so it says `None`: all profiles.
    pub(super) fn rows_in_demand(&self, asker: &Asker<'_>, ask: &Ask) -> Option<Vec<u32>> {
        let mut rows = Vec::new();
        if refusal_before_rules(asker, ask).is_some() {
            return Some(rows);
        }
        if matches!(ask, Ask::List { .. }) {
            return None;
        }
        let subject = asker.id.as_str();
        let mut take = |row| rows.push(row);
        if let Ok(object) = scope::object(asker, ask, &self.domain) {
            let mode = scope::mode(asker, ask);
            self.profiles_named(subject, ask.action(), &object, mode, &mut take);
        }
        if let Some((action, object)) = scope::also_needs(ask) {
            self.profiles_named(subject, action, &object, Mode::Ordinary, &mut take);
        }
        if let Ask::CanI { action, object } = ask {
            self.profiles_named(subject, *action, object, Mode::Ordinary, &mut take);
        }
        Some(rows)
    }
}

/// What needs no rule: a caller that does not count, a task of the broker, an applicant.
fn refusal_before_rules(asker: &Asker<'_>, ask: &Ask) -> Option<Judgement> {
    match asker.standing {
        Standing::Live => {}
        Standing::Expired => {
            let denied = Judgement::denied(Reason::IdentityExpired);
            return Some(Judgement { code: Code::Expired, ..denied });
        }
        Standing::Revoked => return Some(Judgement::denied(Reason::Revoked)),
        Standing::SvidRevoked => return Some(Judgement::denied(Reason::SvidRevoked)),
        Standing::Unknown => return Some(Judgement::denied(Reason::IdentityUnknown)),
        Standing::NotYet => return Some(Judgement::denied(Reason::IdentityNotYet)),
    }
    if let CallerKind::Broker(task) = asker.kind {
        let rule = scope::task_rule(task, ask);
        return Some(rule.map_or(Judgement::denied(Reason::NoAllow), Judgement::built_in));
    }
    scope::is_out_of_place(asker, ask).then(|| Judgement::denied(Reason::NoAllow))
}
