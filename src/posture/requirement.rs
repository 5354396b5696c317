//! What a profile asks of facts, and how it is answered: Kleene's three values, and no `not`.
//!
//! Whatever is missing, too old or vouched for too weakly is unknown, and unknown never becomes
//! true by being combined: each operator here is monotone, so that knowing less can't grant more.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::explained::{Asked, millis};
use super::fact::{Fact, FactName, FactValue, Facts, Rank, Unknown};
use super::refset::RefSet;

/// Kleene's three values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tri {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody can say.
    Unknown,
}

impl Tri {
    /// All of them hold; one that does not decides.
    pub(super) fn all(values: impl Iterator<Item = Self>) -> Self {
        values.fold(Self::True, |sum, value| match (sum, value) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::True, Self::True) => Self::True,
            _ => Self::Unknown,
        })
    }

    /// One of them holds; one that does decides.
    pub(super) fn any(values: impl Iterator<Item = Self>) -> Self {
        values.fold(Self::False, |sum, value| match (sum, value) {
            (Self::True, _) | (_, Self::True) => Self::True,
            (Self::False, Self::False) => Self::False,
            _ => Self::Unknown,
        })
    }

    /// The word in explanations.
    pub fn word(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::False => "false",
            Self::Unknown => "unknown",
        }
    }
}

impl From<bool> for Tri {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A dotted number such as `6.12` in comparable form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    parts: Vec<u64>,
    /// Marked as coming before the version that it names (`-rc1`, `~beta`).
    early: bool,
}

impl Version {
    /// Reads the dotted number that a text begins with; what follows counts only if it says that
    /// the version is not out yet. `None` where no number stands in front.
    pub(super) fn of(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        let number = number.strip_suffix('.').unwrap_or(number);
        let parts = number.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let early =
            ["-rc", "~", "-alpha", "-beta", "-pre"].iter().any(|mark| rest.starts_with(mark));
        Some(Self { parts, early })
    }

    /// Exactly a dotted number, as a profile must write it.
    pub(super) fn exact(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.') && !text.ends_with('.');
        Self::of(text).filter(|_| plain)
    }

    fn at_least(&self, floor: &Self) -> bool {
        let part = |version: &Self, at: usize| version.parts.get(at).copied().unwrap_or(0);
        let length = self.parts.len().max(floor.parts.len());
        for at in 0..length {
            let (have, want) = (part(self, at), part(floor, at));
            if have != want {
                return have > want;
            }
        }
        !self.early
    }
}

/// One closed predicate over one fact. The parser made sure that the types fit.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Test {
    Eq(FactValue),
    Ne(FactValue),
    In(Vec<FactValue>),
    Le(i64),
    Ge(i64),
    /// No bit of the mask is set; the names are for explanations.
    MaskClear(i64, Vec<String>),
    /// The text that the profile wrote is for explanations.
    VersionGe(Version, String),
    /// A value of the set that has not ended.
    InRefset(Arc<RefSet>),
}

impl Test {
    fn judge(&self, have: &FactValue, now_s: i64) -> Tri {
        match (self, have) {
            (Self::Eq(want), have) if want.kind() == have.kind() => (have == want).into(),
            (Self::Ne(want), have) if want.kind() == have.kind() => (have != want).into(),
            (Self::In(wants), have) if wants.iter().all(|want| want.kind() == have.kind()) => {
                wants.contains(have).into()
            }
            (Self::Le(want), FactValue::Number(have)) => (have <= want).into(),
            (Self::Ge(want), FactValue::Number(have)) => (have >= want).into(),
            (Self::MaskClear(mask, _), FactValue::Number(have)) => (have & mask == 0).into(),
            (Self::VersionGe(floor, _), FactValue::Text(have)) => {
                Version::of(have).map_or(Tri::Unknown, |have| have.at_least(floor).into())
            }
            (Self::InRefset(set), have) if set.kind() == Some(have.kind()) => {
                set.holds(have, now_s).into()
            }
            _ => Tri::Unknown, // types that do not meet say nothing
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &[String]| values.join(", ");
        match self {
            Self::Eq(want) => write!(f, "eq {want}"),
            Self::Ne(want) => write!(f, "ne {want}"),
            Self::In(wants) => {
                let wants: Vec<String> = wants.iter().map(ToString::to_string).collect();
                write!(f, "in [{}]", list(&wants))
            }
            Self::Le(want) => write!(f, "le {want}"),
            Self::Ge(want) => write!(f, "ge {want}"),
            Self::MaskClear(_, names) => write!(f, "mask_clear [{}]", list(names)),
            Self::VersionGe(_, text) => write!(f, "version_ge {text:?}"),
            Self::InRefset(set) => write!(f, "in_refset {set}"),
        }
    }
}

/// A requirement, its age resolved.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Requirement {
    /// One fact.
    Fact {
        fact: FactName,
        test: Test,
        min_rank: Rank,
        /// Its own; else the profile's.
        max_age: Option<Duration>,
    },
    Any(Vec<Requirement>),
    All(Vec<Requirement>),
}

/// What requirements are judged on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) facts: &'a Facts,
    /// Age of the evidence; zero to ask what fresh evidence would give.
    pub(super) age: Duration,
    /// The profile's.
    pub(super) max_age: Duration,
    /// Seconds since 1970, by the broker's clock: reference values end.
    pub(super) now_s: i64,
}

impl Ground<'_> {
    /// A fact, those of the broker included. What stands here was endorsed by an enrolled key.
    pub(super) fn fact(&self, name: FactName) -> Result<(FactValue, Rank), Unknown> {
        let own = |value| Ok((value, Rank::Kernel));
        match name {
            FactName::DEVICE_ENROLLED => own(FactValue::Bool(true)),
            // The broker has put it there where a TPM holds the device's key.
            FactName::TPM_TIER if self.facts.fact(name).is_none() => {
                own(FactValue::Text("soft".to_owned()))
            }
            FactName::CONN_COLOCATED if self.facts.is_colocated() => own(FactValue::Bool(true)),
            FactName::CONN_COLOCATED => Err(Unknown::Absent),
            _ => match self.facts.fact(name) {
                Some(Fact { value: Ok(value), rank }) => Ok((value.clone(), *rank)),
                Some(Fact { value: Err(unknown), .. }) => Err(*unknown),
                None => Err(Unknown::Absent),
            },
        }
    }
}

impl Requirement {
    /// How many single facts it asks for.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Fact { .. } => 1,
            Self::Any(parts) | Self::All(parts) => parts.iter().map(Self::count).sum(),
        }
    }

    /// Every age limit of its own.
    pub(super) fn ages(&self, into: &mut Vec<Duration>) {
        match self {
            Self::Fact { max_age, .. } => into.extend(max_age),
            Self::Any(parts) | Self::All(parts) => parts.iter().for_each(|part| part.ages(into)),
        }
    }

    /// Its value on this ground.
    pub(super) fn judge(&self, ground: Ground<'_>) -> Tri {
        match self {
            Self::Any(parts) => Tri::any(parts.iter().map(|part| part.judge(ground))),
            Self::All(parts) => Tri::all(parts.iter().map(|part| part.judge(ground))),
            Self::Fact { fact, test, min_rank, max_age } => {
                if ground.age > max_age.unwrap_or(ground.max_age) {
                    return Tri::Unknown;
                }
                match ground.fact(*fact) {
                    Ok((value, rank)) if rank >= *min_rank => test.judge(&value, ground.now_s),
                    _ => Tri::Unknown,
                }
            }
        }
    }

    /// Every end of a reference value that it rests on.
    pub(super) fn ends(&self, into: &mut Vec<i64>) {
        match self {
            Self::Fact { test: Test::InRefset(set), .. } => {
                into.extend(set.values.iter().filter_map(|value| value.until));
            }
            Self::Fact { .. } => {}
            Self::Any(parts) | Self::All(parts) => parts.iter().for_each(|part| part.ends(into)),
        }
    }

    /// The reference sets that it names.
    pub(super) fn sets(&self, into: &mut BTreeSet<String>) {
        match self {
            Self::Fact { test: Test::InRefset(set), .. } => drop(into.insert(set.name.clone())),
            Self::Fact { .. } => {}
            Self::Any(parts) | Self::All(parts) => parts.iter().for_each(|part| part.sets(into)),
        }
    }

    /// The facts that it asks for.
    pub(super) fn facts(&self, into: &mut BTreeSet<FactName>) {
        match self {
            Self::Fact { fact, .. } => drop(into.insert(*fact)),
            Self::Any(parts) | Self::All(parts) => parts.iter().for_each(|part| part.facts(into)),
        }
    }

    /// The facts that keep it from holding: those below it that do not hold, where the whole does
    /// not either.
    pub(super) fn lacking(&self, ground: Ground<'_>, into: &mut BTreeSet<FactName>) {
        if self.judge(ground) == Tri::True {
            return;
        }
        match self {
            Self::Fact { fact, .. } => drop(into.insert(*fact)),
            Self::Any(parts) | Self::All(parts) => {
                parts.iter().for_each(|part| part.lacking(ground, into));
            }
        }
    }

    /// What was asked, what is there, what came of it, what would have to change: one entry for
    /// each requirement, from the outside in. `needed`: the whole waits for this one.
    pub(super) fn explain(
        &self,
        ground: Ground<'_>,
        depth: usize,
        needed: bool,
        into: &mut Vec<Asked>,
    ) {
        let result = self.judge(ground);
        let needed = needed && result != Tri::True;
        let (word, parts) = match self {
            Self::Any(parts) => ("any of", parts),
            Self::All(parts) => ("all of", parts),
            Self::Fact { fact, test, min_rank, max_age } => {
                let limit = max_age.unwrap_or(ground.max_age);
                let (found, mend) = told(ground, *fact, test, *min_rank, limit);
                let known = ground.fact(*fact);
                into.push(Asked {
                    depth,
                    asks: format!("{fact} {test}"),
                    result,
                    fact: Some(fact.as_str()),
                    value: known.as_ref().ok().map(|(value, _)| value.clone()),
                    unknown: known.as_ref().err().map(|unknown| unknown.word()),
                    rank: known.as_ref().ok().map(|(_, rank)| rank.word()),
                    age_ms: Some(millis(ground.age)),
                    max_age_s: Some(limit.as_secs()),
                    found,
                    mend: needed.then_some(mend),
                });
                return;
            }
        };
        into.push(Asked {
            depth,
            asks: word.to_owned(),
            result,
            fact: None,
            value: None,
            unknown: None,
            rank: None,
            age_ms: None,
            max_age_s: None,
            found: String::new(),
            mend: None,
        });
        for part in parts {
            part.explain(ground, depth + 1, needed, into);
        }
    }
}

/// What is there, and what would have to change, in words.
fn told(
    ground: Ground<'_>,
    fact: FactName,
    test: &Test,
    min_rank: Rank,
    limit: Duration,
) -> (String, String) {
    if ground.age > limit {
        let (age, limit) = (ground.age.as_secs(), limit.as_secs());
        return (
            format!("the evidence is {age} s old, {limit} s allowed"),
            format!("the device must report: evidence of at most {limit} s is needed"),
        );
    }
    match ground.fact(fact) {
        Err(unknown) => {
            let mend = match unknown {
                Unknown::Absent => {
                    format!("{fact} must be there to be read: {}", fact.row().source)
                }
                Unknown::Denied => format!("let the agent read {fact}: {}", fact.row().source),
                Unknown::Error => format!("{fact} must be readable: {}", fact.row().source),
            };
            (format!("unknown ({})", unknown.word()), mend)
        }
        Ok((value, rank)) if rank < min_rank => (
            format!(
                "{value} is only vouched for by {}, {} is needed",
                rank.word(),
                min_rank.word()
            ),
            format!("{fact} must be vouched for by {}", min_rank.word()),
        ),
        Ok((value, rank)) => {
            let ended = match test {
                Test::InRefset(set) => set.ended(&value, ground.now_s),
                _ => None,
            };
            let ended = ended.map_or_else(String::new, |ended| format!("; {ended}"));
            (format!("it is {value} ({}){ended}", rank.word()), format!("{fact} must be {test}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(have: &str, floor: &str) -> Tri {
        let floor_version = Version::exact(floor).unwrap();
        Test::VersionGe(floor_version, floor.into()).judge(&FactValue::Text(have.into()), 0)
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        for (have, floor) in [
            ("6.12", "6.12"),
            ("6.12.0-13-amd64", "6.12"),
            ("6.100", "6.12"),
            ("12", "11.9"),
            ("6.12+deb", "6.12.0"),
        ] {
            assert_eq!(version(have, floor), Tri::True, "{have} >= {floor}");
        }
        for (have, floor) in
            [("6.2", "6.12"), ("6.12-rc3", "6.12"), ("6.12~beta", "6.12"), ("5", "6")]
        {
            assert_eq!(version(have, floor), Tri::False, "{have} >= {floor}");
        }
        for have in ["", "v6", "six", ".6", "6..1", "99999999999999999999999"] {
            assert_eq!(version(have, "6"), Tri::Unknown, "{have}");
        }
        assert!(Version::exact("6.1-x").is_none() && Version::exact("6.").is_none());
    }

    #[test]
    fn kleene_tables() {
        use Tri::{False as F, True as T, Unknown as U};
        for (a, b, all, any) in
            [(T, T, T, T), (T, F, F, T), (T, U, U, T), (F, F, F, F), (F, U, F, U), (U, U, U, U)]
        {
            for pair in [[a, b], [b, a]] {
                assert_eq!(Tri::all(pair.into_iter()), all, "{pair:?}");
                assert_eq!(Tri::any(pair.into_iter()), any, "{pair:?}");
            }
        }
    }

    #[test]
    fn types_that_do_not_meet_are_unknown() {
        let test = Test::Eq(FactValue::Bool(true));
        assert_eq!(test.judge(&FactValue::Bool(true), 0), Tri::True);
        assert_eq!(test.judge(&FactValue::Text("true".into()), 0), Tri::Unknown);
        assert_eq!(Test::Ne(FactValue::Number(1)).judge(&FactValue::Bool(false), 0), Tri::Unknown);
        assert_eq!(Test::Le(3).judge(&FactValue::Text("1".into()), 0), Tri::Unknown);
    }

    const POOL: [FactName; 4] = [
        FactName::SECUREBOOT,
        FactName::KERNEL_TAINTED,
        FactName::KERNEL_LOCKDOWN,
        FactName::KERNEL_RELEASE,
    ];

    fn requirement() -> impl Strategy<Value = Requirement> {
        let fact = (0usize..4, 0i64..4, any::<bool>(), 0u64..3).prop_map(|(at, n, flip, age)| {
            let text = FactValue::Text(if flip { "integrity" } else { "none" }.into());
            let test = match at {
                0 if flip => Test::Ne(FactValue::Bool(n > 1)),
                0 => Test::Eq(FactValue::Bool(n > 1)),
                1 if flip => Test::MaskClear(n, vec![]),
                1 => Test::Ge(n),
                2 if flip => Test::Ne(text),
                2 => Test::In(vec![text]),
                _ => Test::VersionGe(Version::exact("6.1").unwrap(), "6.1".into()),
            };
            let max_age = (age > 0).then_some(Duration::from_secs(age));
            let min_rank = if n == 3 { Rank::Measured } else { Rank::Agent };
            Requirement::Fact { fact: POOL[at], test, min_rank, max_age }
        });
        fact.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(Requirement::Any),
                prop::collection::vec(inner, 1..4).prop_map(Requirement::All),
            ]
        })
    }

    fn facts(values: (bool, i64, bool, bool), hidden: [bool; 4]) -> Facts {
        let mut facts = Facts::default();
        let text = |text: &str| FactValue::Text(text.into());
        let all = [
            FactValue::Bool(values.0),
            FactValue::Number(values.1),
            text(if values.2 { "integrity" } else { "none" }),
            text(if values.3 { "6.12.1" } else { "5.4" }),
        ];
        for ((name, value), hidden) in POOL.into_iter().zip(all).zip(hidden) {
            facts.state(name, if hidden { Err(Unknown::Denied) } else { Ok(value) }).unwrap();
        }
        facts
    }

    proptest! {
        #[test]
        fn knowing_less_or_older_never_makes_it_true(
            requirement in requirement(),
            values in (any::<bool>(), 0i64..4, any::<bool>(), any::<bool>()),
            hidden in any::<[bool; 4]>(),
            age in 0u64..4,
        ) {
            let judge = |hidden, age| {
                let facts = facts(values, hidden);
                let age = Duration::from_secs(age);
                requirement.judge(Ground { facts: &facts, age, max_age: Duration::from_secs(2), now_s: 0 })
            };
            let full = judge([false; 4], 0);
            let less = judge(hidden, age);
            prop_assert!(less == full || less == Tri::Unknown, "{full:?} became {less:?}");
        }
    }
}
