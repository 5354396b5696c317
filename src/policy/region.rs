//! Regions: products of who, what, which actions, which posture and when. A row is one; what a
//! policy gives is a finite union of them, and so is the difference between two policies.

use super::names::Names;
use super::pattern::{ANY, UNBOUNDED};
use super::rows::Row;
use crate::model::Action;
use crate::model::limits::PROFILES_MAX;

/// A profile is surely held.
const HELD: u8 = 1;
/// It is not known whether.
const DOUBT: u8 = 2;
/// It is surely not held.
const NOT: u8 = 4;
const ALL: u8 = HELD | DOUBT | NOT;

/// Profiles of two policies that are compared.
const TWO_POLICIES: usize = 2 * PROFILES_MAX;

/// What may be known of each profile, by its position; the profiles count as independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Postures([u8; TWO_POLICIES]);

impl Postures {
    const ANY: Self = Self([ALL; TWO_POLICIES]);

    /// One profile in one of these states.
    fn one(profile: usize, states: u8) -> Self {
        let mut all = Self::ANY;
        if let Some(slot) = all.0.get_mut(profile) {
            *slot = states;
        }
        all
    }

    fn and(&self, other: &Self) -> Option<Self> {
        let mut both = *self;
        for (slot, states) in both.0.iter_mut().zip(other.0) {
            *slot &= states;
            if *slot == 0 {
                return None;
            }
        }
        Some(both)
    }

    fn less(&self, other: &Self) -> Vec<Self> {
        let (mut out, mut rest) = (Vec::new(), *self);
        for (at, states) in other.0.iter().enumerate() {
            let Some(slot) = rest.0.get_mut(at) else { break };
            let (both, left) = (*slot & states, *slot & !states);
            if left != 0 {
                *slot = left;
                out.push(rest);
            }
            let Some(slot) = rest.0.get_mut(at) else { break };
            *slot = both;
            if both == 0 {
                break;
            }
        }
        out
    }
}

/// Actions, a bit each in the order of [`Action::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Actions(u32);

impl Actions {
    /// All of them.
    pub(super) fn all() -> Self {
        Self(Action::ALL.iter().fold(0, |bits, action| bits | Self::one(*action).0))
    }

    /// One.
    pub(super) fn one(action: Action) -> Self {
        let at = Action::ALL.iter().position(|known| *known == action);
        Self(at.and_then(|at| u32::try_from(at).ok()).map_or(0, |at| 1 << at))
    }

    fn and(self, other: Self) -> Option<Self> {
        let both = self.0 & other.0;
        (both != 0).then_some(Self(both))
    }

    fn less(self, other: Self) -> Option<Self> {
        let left = self.0 & !other.0;
        (left != 0).then_some(Self(left))
    }

    /// The one that people think of first.
    fn plainest(self) -> &'static str {
        let plain = [Action::Read, Action::Write, Action::List];
        let first = plain.into_iter().find(|action| Self::one(*action).and(self).is_some());
        first.or_else(|| self.iter().next()).map_or("", Action::as_str)
    }

    /// Each of them.
    pub(super) fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.iter().copied().filter(move |action| Self::one(*action).0 & self.0 != 0)
    }
}

/// `[from, to)` in the fixed-width texts of windows; text order is time order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Times {
    from: Box<str>,
    to: Box<str>,
}

/// Before and after every time of that width.
const BEGIN: &str = "0000-01-01T00:00:00Z";
const END: &str = "9999-12-31T23:59:59Z";

impl Times {
    fn of(nbf: &str, exp: &str) -> Self {
        let or = |text: &str, open: &str| -> Box<str> {
            if text == UNBOUNDED { open.into() } else { text.into() }
        };
        Self { from: or(nbf, BEGIN), to: or(exp, END) }
    }

    fn and(&self, other: &Self) -> Option<Self> {
        let from = self.from.as_ref().max(&other.from);
        let to = self.to.as_ref().min(&other.to);
        (from < to).then(|| Self { from: from.into(), to: to.into() })
    }

    fn less(&self, other: &Self) -> Vec<Self> {
        let before = Self { from: BEGIN.into(), to: other.from.clone() };
        let after = Self { from: other.to.clone(), to: END.into() };
        [before, after].iter().filter_map(|times| self.and(times)).collect()
    }

    fn begin(&self) -> Option<&str> {
        (&*self.from != BEGIN).then_some(&*self.from)
    }

    fn end(&self) -> Option<&str> {
        (&*self.to != END).then_some(&*self.to)
    }
}

/// One product. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) sub: Names,
    pub(super) obj: Names,
    pub(super) act: Actions,
    pub(super) post: Postures,
    pub(super) when: Times,
}

/// A request of a region, as a test case would write it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Witness {
    /// SPIFFE ID.
    pub sub: String,
    /// Object.
    pub obj: String,
    /// Action.
    pub act: &'static str,
    /// Profiles that are held.
    pub held: Vec<String>,
    /// Profiles of which it is not known.
    pub unknown: Vec<String>,
    /// `YYYY-MM-DDTHH:MM:SSZ`.
    pub now: String,
}

impl Region {
    /// Everything about these names at any time under any posture.
    pub(super) fn whole(sub: Names, obj: Names, act: Actions) -> Self {
        Self { sub, obj, act, post: Postures::ANY, when: Times::of(UNBOUNDED, UNBOUNDED) }
    }

    /// What a row covers for one of its subjects; `None` if its window is empty.
    pub(super) fn of_row(row: &Row, sub: &str, profiles: &[String]) -> Option<Self> {
        let states = if row.allow { HELD } else { HELD | DOUBT };
        let post = match profiles.iter().position(|known| known == row.post()) {
            _ if row.post() == ANY => Postures::ANY,
            Some(at) => Postures::one(at, states),
            None => return None,
        };
        let when = Times::of(row.nbf(), row.exp());
        let mut act = row.action.map_or_else(Actions::all, Actions::one);
        if !row.allow && row.post() != ANY && row.obj() == "policy" {
            // A deny with a posture does not count against a rollback (scope.rs).
            act = act.less(Actions::one(Action::Rollback))?;
        }
        when.and(&Times::of(UNBOUNDED, UNBOUNDED))?;
        Some(Self { sub: Names::of(sub), obj: Names::of(row.obj()), act, post, when })
    }

    /// The same under just this posture label, at just this time.
    #[cfg(test)]
    pub(super) fn at(self, label: &str, now: &str, profiles: &[String]) -> Self {
        let mut post = Postures::ANY;
        for (slot, name) in post.0.iter_mut().zip(profiles) {
            *slot = match super::pattern::label_says(label, name) {
                Some(true) => HELD,
                Some(false) => NOT,
                None => DOUBT,
            };
        }
        let after = format!("{}.", now); // the least text above it
        let when = Times { from: now.into(), to: after.into() };
        Self { post, when, ..self }
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        Some(Self {
            act: self.act.and(other.act)?,
            when: self.when.and(&other.when)?,
            post: self.post.and(&other.post)?,
            obj: self.obj.and(&other.obj)?,
            sub: self.sub.and(&other.sub)?,
        })
    }

    /// What is here and not there: regions without a common request.
    pub(super) fn less(&self, other: &Self) -> Vec<Self> {
        let Some(both) = self.and(other) else { return vec![self.clone()] };
        let mut out = Vec::new();
        let mut rest = self.clone();
        out.extend(rest.obj.less(&other.obj).into_iter().map(|obj| Self { obj, ..rest.clone() }));
        rest.obj = both.obj;
        out.extend(rest.sub.less(&other.sub).into_iter().map(|sub| Self { sub, ..rest.clone() }));
        rest.sub = both.sub;
        out.extend(rest.act.less(other.act).map(|act| Self { act, ..rest.clone() }));
        rest.act = both.act;
        out.extend(
            rest.when.less(&other.when).into_iter().map(|when| Self { when, ..rest.clone() }),
        );
        rest.when = both.when;
        out.extend(
            rest.post.less(&other.post).into_iter().map(|post| Self { post, ..rest.clone() }),
        );
        out
    }

    /// A request of it, with as little held as will do.
    pub(super) fn witness(&self, profiles: &[String]) -> Witness {
        let named = |wanted: fn(u8) -> bool| {
            let states = profiles.iter().zip(self.post.0);
            states.filter(|(_, states)| wanted(*states)).map(|(name, _)| name.clone()).collect()
        };
        Witness {
            sub: self.sub.sample(),
            obj: self.obj.sample(),
            act: self.act.plainest(),
            held: named(|states| states == HELD),
            unknown: named(|states| states & NOT == 0 && states != HELD),
            now: if &*self.when.from == BEGIN {
                self.before_end()
            } else {
                self.when.from.to_string()
            },
        }
    }

    /// A plain time, or else the first one, of a region whose window has no begin.
    fn before_end(&self) -> String {
        const PLAIN: &str = "2026-01-01T00:00:00Z";
        if PLAIN < &*self.when.to { PLAIN.to_owned() } else { BEGIN.to_owned() }
    }

    /// The posture in words: `hardened, not managed`; empty where any will do.
    pub(super) fn posture(&self, profiles: &[String]) -> String {
        let word = |(name, states): (&String, u8)| match states {
            ALL => None,
            HELD => Some(name.clone()),
            NOT => Some(format!("not {name}")),
            DOUBT => Some(format!("{name} unknown")),
            states if states & HELD == 0 => Some(format!("{name} not held or unknown")),
            states if states & NOT == 0 => Some(format!("{name} held or unknown")),
            _ => Some(format!("{name} known")),
        };
        let words: Vec<String> = profiles.iter().zip(self.post.0).filter_map(word).collect();
        words.join(", ")
    }

    /// The window, open ends left out: `from 2026-01-01T00:00:00Z until …`.
    pub(super) fn window(&self) -> String {
        let from = self.when.begin().map(|begin| format!("from {begin}"));
        let to = self.when.end().map(|end| format!("until {end}"));
        [from, to].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}
