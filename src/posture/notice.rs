//! What the author of profiles should know though nothing is wrong: ends of reference values, profiles
//! that only watch, sets that nobody names.

use std::collections::BTreeSet;

use super::profile::{Mode, Profile};
use super::profile_file::Place;
use super::refset::{RefSets, instant};
use crate::model::Diagnostic;

/// Seconds before its end that a value is told of: a month, for who looks once a week.
const TOLD_BEFORE_S: i64 = 30 * 24 * 60 * 60;

/// One thing worth knowing, with its place.
#[derive(Debug)]
pub(super) struct Notice {
    /// When it ends; without an end it is told always.
    ends: Option<i64>,
    told: Diagnostic,
}

impl Notice {
    /// What it says at that time, if anything.
    pub(super) fn at(&self, now_s: i64) -> Option<Diagnostic> {
        let Some(ends) = self.ends else { return Some(self.told.clone()) };
        let mut told = self.told.clone();
        if now_s >= ends {
            told.message += &format!(" ended {}: it matches nothing any more", instant(ends));
        } else if ends.saturating_sub(now_s) <= TOLD_BEFORE_S {
            told.message += &format!(" ends {}", instant(ends));
        } else {
            return None;
        }
        Some(told)
    }
}

fn told(file: &str, text: &str, at: Place, message: String) -> Diagnostic {
    Diagnostic::at(file, text, at.start, at.end.saturating_sub(at.start), message)
}

/// Of values that end, and of sets that nobody names.
pub(super) fn of_sets(file: &str, text: &str, sets: &RefSets, profiles: &[Profile]) -> Vec<Notice> {
    let mut named = BTreeSet::new();
    for requirement in profiles.iter().flat_map(|profile| &profile.requirements) {
        requirement.sets(&mut named);
    }
    let mut notices = Vec::new();
    for set in sets.values() {
        if !named.contains(&set.name) {
            let place = set.place.clone();
            let message = format!("no profile names the reference set `{}`", set.name);
            notices.push(Notice { ends: None, told: told(file, text, place, message) });
        }
        for value in set.values.iter().filter(|value| value.until.is_some()) {
            let message = format!("{} of `{}`", value.label, set.name);
            let told = told(file, text, value.place.clone(), message);
            let told = told.help("put its successor beside it in time, or take it out");
            notices.push(Notice { ends: value.until, told });
        }
    }
    notices
}

/// Of a profile that only watches.
pub(super) fn of_mode(
    file: &str,
    text: &str,
    profile: &Profile,
    above: Option<&str>,
    place: Place,
) -> Option<Notice> {
    if profile.mode == Mode::Enforce {
        return None;
    }
    let whom = match above {
        Some(above) => format!("that meets `{above}`"),
        None => "whose evidence is fresh".to_owned(),
    };
    let message =
        format!("`{}` only watches: rows that name it count for every device {whom}", profile.name);
    let told = told(file, text, place, message);
    let help = "write mode = \"enforce\" once the log tells no more `would_deny`";
    Some(Notice { ends: None, told: told.help(help) })
}
