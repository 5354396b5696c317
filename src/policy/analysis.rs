//! Questions to a whole policy, answered over all requests and not by trying some: who can, what
//! can, what a change gains and loses, which rows could go.

use serde::Serialize;
use time::OffsetDateTime;

use super::access::{Access, Part, Steps, TooMany, about, members};
use super::bundle::Bundle;
use super::files::POSTURE;
use super::pattern::{ANY, UNBOUNDED};
use super::region::{Actions, Region, Witness};
use super::rows::{Row, RuleSet, Subject};
use super::values;
use crate::model::limits::{PROFILES_MAX, QUESTION_STEPS};
use crate::model::{Action, rfc3339};

/// A part of what a policy gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Given {
    /// The row that gives it.
    pub row: String,
    /// Line of the row in `policy.csv`.
    pub line: u32,
    /// Which callers: a pattern, `(* but a, b)` for a segment that is none of these.
    pub sub: String,
    /// Which objects, in the same form.
    pub obj: String,
    /// Actions, in order of their names.
    pub act: Vec<&'static str>,
    /// What must be known of the device; empty where nothing.
    pub posture: String,
    /// When; empty where always.
    pub window: String,
    /// One request of it.
    pub example: Witness,
}

impl std::fmt::Display for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let act = match self.act.len() == Action::ALL.len() {
            true => "*".to_owned(),
            false => self.act.join("|"),
        };
        write!(f, "{} {act} {}", self.sub, self.obj)?;
        if !self.posture.is_empty() {
            write!(f, " if {}", self.posture)?;
        }
        if !self.window.is_empty() {
            write!(f, " {}", self.window)?;
        }
        write!(f, " (row {})", self.row)
    }
}

/// A row that its author may not have meant so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// `no_effect`, `ended`, `any_posture`, `whole_domain`, `other_domain`.
    pub rule: &'static str,
    /// The row's id.
    pub row: String,
    /// Its line in `policy.csv`.
    pub line: u32,
    /// What is the matter.
    pub message: String,
    /// A request that shows it, where one can.
    pub example: Option<Witness>,
}

/// Why a question can't be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskedWrong {
    /// Not a pattern of SPIFFE IDs.
    #[error("`{0}` is no SPIFFE ID and no pattern of them: {1}")]
    Subject(String, String),
    /// Not a pattern of objects.
    #[error("`{0}` is no object and no pattern of them: {1}")]
    Object(String, String),
    /// The answer is too long.
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

impl Bundle {
    /// Who may take this action on an object or a pattern of objects: the parts of the answer, in
    /// order of the rows.
    ///
    /// # Errors
    /// When the object is none, or the answer too long.
    pub fn who_can(&self, action: Action, object: &str) -> Result<Vec<Given>, AskedWrong> {
        self.asked("**", object, Actions::one(action))
    }

    /// What a caller or a pattern of callers may do.
    ///
    /// # Errors
    /// When the subject is none, or the answer too long.
    pub fn what_can(&self, subject: &str) -> Result<Vec<Given>, AskedWrong> {
        self.asked(subject, "**", Actions::all())
    }

    fn asked(&self, sub: &str, obj: &str, act: Actions) -> Result<Vec<Given>, AskedWrong> {
        if sub != "**" {
            let pattern = values::subject(sub).map_err(|flaw| flaw.message);
            pattern.map_err(|why| AskedWrong::Subject(sub.to_owned(), why))?;
        }
        if obj != "**" {
            let pattern = values::object(obj).map_err(|flaw| flaw.message);
            pattern.map_err(|why| AskedWrong::Object(obj.to_owned(), why))?;
        }
        let set = &self.rules().set;
        let subjects = patterns(set, sub).ok_or_else(|| {
            AskedWrong::Subject(sub.to_owned(), "no row and no member has this group".to_owned())
        })?;
        let steps = Steps::new(QUESTION_STEPS);
        let access = Access::new(set, self.names(), &steps);
        let mut out = Vec::new();
        for sub in subjects {
            let parts = access.given(&about(sub, obj, act))?;
            out.extend(parts.iter().map(|part| given(set, part, self.names())));
        }
        Ok(out)
    }

    /// What this policy gives that another does not give. Profiles of one name count as the same,
    /// whatever `posture.toml` asks for them.
    ///
    /// # Errors
    /// When the answer is too long.
    pub fn gained_over(&self, before: &Self) -> Result<Vec<Given>, TooMany> {
        let mut profiles = self.names().to_vec();
        profiles.extend(before.names().iter().filter(|name| !self.names().contains(name)).cloned());
        let steps = Steps::new(QUESTION_STEPS);
        let new = Access::new(&self.rules().set, &profiles, &steps);
        let old = Access::new(&before.rules().set, &profiles, &steps);
        let parts = new.gained(&old)?;
        Ok(parts.iter().map(|part| given(&self.rules().set, part, &profiles)).collect())
    }

    /// Profiles of this policy and another that ask for something else in each, by name.
    pub fn profiles_changed(&self, other: &Self) -> Vec<String> {
        let read = |bundle: &Self| -> toml::Table {
            let text = bundle.files().text(POSTURE).unwrap_or("");
            text.parse().unwrap_or_default() // a bundle's text was read before
        };
        let (one, two) = (read(self), read(other));
        let both = self.names().iter().filter(|name| other.names().contains(name));
        both.filter(|name| lineage(&one, name) != lineage(&two, name)).cloned().collect()
    }

    /// Rows that their author may not have meant so, at this time.
    ///
    /// # Errors
    /// When what a row does has too many parts.
    pub fn lint(&self, now: OffsetDateTime) -> Result<Vec<Lint>, TooMany> {
        let set = &self.rules().set;
        let steps = Steps::new(QUESTION_STEPS);
        let access = Access::new(set, self.names(), &steps);
        let now = rfc3339(now);
        let mut out = Vec::new();
        for (at, row) in set.rows.iter().enumerate() {
            let found = |rule, message: String| Lint {
                rule,
                row: row.id().to_owned(),
                line: row.line,
                message,
                example: None,
            };
            if row.exp() != UNBOUNDED && row.exp() <= now.as_str() {
                out.push(found("ended", format!("its window ended at {}", row.exp())));
            } else if access.effect_of(at)?.is_empty() {
                out.push(found("no_effect", idle(&access, at)?));
            }
            let named = named(row).filter(|_| row.allow);
            out.extend(named.map(|(rule, message)| self.shown(&access, at, found(rule, message))));
            let foreign = row.allow && self.is_of_others(row);
            out.extend(foreign.then(|| {
                let message = "callers of another trust domain, without an end".to_owned();
                self.shown(&access, at, found("other_domain", message))
            }));
        }
        Ok(out)
    }

    /// With a request that the row covers.
    fn shown(&self, access: &Access<'_>, row: usize, lint: Lint) -> Lint {
        let example = access.first_of(row).map(|region| region.witness(self.names()));
        Lint { example, ..lint }
    }

    /// Whether it speaks of another trust domain and never ends.
    fn is_of_others(&self, row: &Row) -> bool {
        let own = format!("spiffe://{}/", self.domain());
        row.subject == Subject::Pattern && row.exp() == UNBOUNDED && !row.sub().starts_with(&own)
    }
}

/// A profile's table and those of what it extends, and all that is no profile.
fn lineage<'t>(file: &'t toml::Table, name: &'t str) -> Vec<Option<&'t toml::Value>> {
    let profiles = file.get("profile").and_then(toml::Value::as_table);
    let mut out: Vec<Option<&toml::Value>> =
        file.iter().filter(|(key, _)| *key != "profile").map(|(_, rest)| Some(rest)).collect();
    let mut next = Some(name);
    while let (Some(name), true) = (next, out.len() <= PROFILES_MAX + file.len()) {
        let profile = profiles.and_then(|all| all.get(name));
        out.push(profile);
        next = profile.and_then(|it| it.get("extends")).and_then(toml::Value::as_str);
    }
    out
}

fn idle(access: &Access<'_>, at: usize) -> Result<String, TooMany> {
    let what = match access.set.rows.get(at).is_some_and(|row| row.allow) {
        true => "gives nothing that other rows do not give or take away",
        false => "takes nothing away that any row gives",
    };
    Ok(match access.shadow_of(at)? {
        Some(by) => format!("{what}: `{}` (line {}) covers it", by.id(), by.line),
        None => what.to_owned(),
    })
}

fn named(row: &Row) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let reads = matches!(row.action, None | Some(Action::Read));
    let values = row.obj().starts_with("secret/") && reads;
    let any = (values && row.post() == ANY)
        .then(|| ("any_posture", "values of secrets go to any device".to_owned()));
    let whole = row.subject == Subject::Pattern
        && row
            .sub()
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(_, path)| path == "**");
    let whole = whole.then(|| ("whole_domain", "every identity of a trust domain".to_owned()));
    any.into_iter().chain(whole)
}

fn given(set: &RuleSet, part: &Part, profiles: &[String]) -> Given {
    let (id, line) = set.rows.get(part.row).map_or(("", 0), |row| (row.id(), row.line));
    let Region { sub, obj, act, .. } = &part.region;
    Given {
        row: id.to_owned(),
        line,
        sub: sub.to_string(),
        obj: obj.to_string(),
        act: act.iter().map(Action::as_str).collect(),
        posture: part.region.posture(profiles),
        window: part.region.window(),
        example: part.region.witness(profiles),
    }
}

/// The patterns that a subject stands for: its own, or those of a group; `None` for an unknown one.
pub(super) fn patterns<'t>(set: &'t RuleSet, subject: &'t str) -> Option<Vec<&'t str>> {
    if !subject.starts_with(values::GROUP) {
        return Some(vec![subject]);
    }
    let at = set.groups.iter().position(|name| **name == *subject)?;
    members(set).into_iter().nth(at)
}

/// What a policy gives to these callers on these objects: the first part of it, in words, with a
/// request. For claims that it gives nothing.
pub(super) fn first_given(
    access: &Access<'_>,
    profiles: &[String],
    sub: &[&str],
    obj: &str,
    act: Actions,
) -> Result<Option<Given>, TooMany> {
    for sub in sub {
        if let Some(part) = access.given(&about(sub, obj, act))?.first() {
            return Ok(Some(given(access.set, part, profiles)));
        }
    }
    Ok(None)
}
