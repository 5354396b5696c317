//! What people do with profiles outside a broker: check, test, and ask why.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::cases;
use super::files::{BundleFiles, POSTURE};
use crate::model::limits::{DIAGNOSTICS_MAX, EVIDENCE_MAX};
use crate::model::{Diagnostic, did_you_mean};
use crate::posture::{Explained, Facts, Profiles};

/// Profiles without a fault.
#[derive(Debug)]
pub struct CheckedProfiles {
    /// Their names, in order.
    pub names: Vec<String>,
    /// What their author should know all the same.
    pub warnings: Vec<Diagnostic>,
}

/// Checks a `posture.toml` by itself, at that time (seconds since 1970).
///
/// # Errors
/// All faults up to a bound, in the order of their places.
pub fn check_profiles(
    file: &str,
    text: &str,
    now_s: i64,
) -> Result<CheckedProfiles, Vec<Diagnostic>> {
    let profiles = Profiles::parse(file, text)?;
    let names = profiles.names().map(str::to_owned).collect();
    Ok(CheckedProfiles { names, warnings: profiles.warnings(now_s) })
}

/// Runs the `[[posture]]` cases of a directory's tests; how many there were.
///
/// # Errors
/// Faults of the profiles, or every case that is not sound or comes out otherwise; that there is
/// no case is one too.
pub fn test_profiles(files: &BundleFiles) -> Result<usize, Vec<Diagnostic>> {
    let profiles = Profiles::parse(POSTURE, files.text(POSTURE).unwrap_or(""))?;
    let (mut faults, mut count) = (Vec::new(), 0);
    for (file, text) in files.tests() {
        match cases::run_postures(file, text, &profiles) {
            Ok(cases) => count += cases,
            Err(found) => faults.extend(found),
        }
    }
    if faults.is_empty() && count == 0 {
        let help = "write [[posture]] with name, facts and held into a file of tests/";
        faults.push(super::files::fault("tests", "no [[posture]] in any file").help(help));
    }
    faults.truncate(DIAGNOSTICS_MAX);
    if faults.is_empty() { Ok(count) } else { Err(faults) }
}

/// Why profiles could not be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The profiles have faults.
    #[error("the profiles have faults")]
    Faults(Vec<Diagnostic>),
    /// There is none of that name.
    #[error("there is no profile `{name}`")]
    NoProfile {
        /// The name.
        name: String,
        /// One that could be meant.
        near: Option<String>,
    },
    /// The facts can't be read.
    #[error("these are no facts: {0}")]
    Facts(String),
}

/// Judges facts by one profile, or by all, and says why.
///
/// `facts` is what `device facts --json` prints, or one object in the form of reports.
///
/// # Errors
/// When the profiles have faults, when there is none of that name, when the facts can't be read.
pub fn explain_profiles(
    (file, text): (&str, &str),
    only: Option<&str>,
    facts: &str,
    age: Duration,
    now_s: i64,
) -> Result<Vec<Explained>, ExplainError> {
    let profiles = Profiles::parse(file, text).map_err(ExplainError::Faults)?;
    let facts = read_facts(facts)?;
    let one = |name: &str| {
        profiles.explain(name, &facts, age, now_s).ok_or_else(|| ExplainError::NoProfile {
            name: name.to_owned(),
            near: did_you_mean(name, profiles.names()).map(str::to_owned),
        })
    };
    match only {
        Some(name) => Ok(vec![one(name)?]),
        None => profiles.names().map(one).collect(),
    }
}

/// One line of `device facts --json`.
#[derive(Deserialize)]
struct Stated {
    name: String,
    value: Option<Value>,
    unknown: Option<String>,
    rank: String,
}

fn read_facts(text: &str) -> Result<Facts, ExplainError> {
    let fault = |why: &dyn std::fmt::Display| ExplainError::Facts(why.to_string());
    if text.len() > EVIDENCE_MAX {
        return Err(fault(&format!("over {EVIDENCE_MAX} bytes")));
    }
    if let Ok(Value::Object(report)) = serde_json::from_str(text)
        && !report.contains_key("name")
    {
        // From the text again, so that a name that stands twice is refused.
        return serde_json::from_str(text).map_err(|error| fault(&error));
    }
    let mut report = Map::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at_line = |why: &dyn std::fmt::Display| fault(&format!("line {}: {why}", at + 1));
        let stated: Stated = serde_json::from_str(line).map_err(|error| at_line(&error))?;
        let form = match (stated.value, stated.unknown) {
            (Some(value), None) => json!({ "v": value, "r": stated.rank }),
            (None, Some(why)) if why == "broker" => continue,
            (None, Some(why)) => json!({ "u": why }),
            _ => return Err(at_line(&"it has one of value and unknown")),
        };
        if report.insert(stated.name, form).is_some() {
            return Err(at_line(&"the fact stands twice"));
        }
    }
    serde_json::from_value(Value::Object(report)).map_err(|error| fault(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::posture::Tri;

    const TEXT: &str = "[profile.booted]\nrequire = [{ fact = \"secureboot\", eq = true }]\n";

    fn result(facts: &str) -> Result<Tri, String> {
        let file = ("posture.toml", TEXT);
        let found = explain_profiles(file, Some("booted"), facts, Duration::ZERO, 0);
        found.map(|found| found[0].result).map_err(|error| error.to_string())
    }

    #[test]
    fn facts_are_read_in_both_forms() {
        let lines = "{\"name\":\"device.enrolled\",\"unknown\":\"broker\",\"rank\":\"kernel\",\"source\":\"\",\"age_ms\":1}\n\
                     {\"name\":\"secureboot\",\"value\":true,\"rank\":\"kernel\",\"source\":\"\",\"age_ms\":1}\n";
        assert_eq!(result(lines), Ok(Tri::True));
        assert_eq!(result(r#"{"secureboot":{"v":true,"r":"kernel"}}"#), Ok(Tri::True));
        assert_eq!(result(r#"{"secureboot":{"u":"absent"}}"#), Ok(Tri::Unknown));
        let one = "{\"name\":\"secureboot\",\"value\":false,\"rank\":\"kernel\"}";
        assert_eq!(result(one), Ok(Tri::False));
        assert_eq!(result("{}"), Ok(Tri::Unknown));
        for bad in [
            "x".to_owned(),
            r#"{"secureboot":{"v":"yes","r":"kernel"}}"#.to_owned(),
            r#"{"secureboot":{"u":"absent"},"secureboot":{"v":true,"r":"kernel"}}"#.to_owned(),
            format!("{one}\n{one}"),
            "{\"name\":\"secureboot\",\"rank\":\"kernel\"}".to_owned(),
            " ".repeat(EVIDENCE_MAX + 1),
        ] {
            assert!(result(&bad).is_err(), "{bad:.80}");
        }
    }

    #[test]
    fn a_profile_that_is_not_there_is_told_with_its_neighbour() {
        let found = explain_profiles(("f", TEXT), Some("boted"), "{}", Duration::ZERO, 0);
        let Err(ExplainError::NoProfile { near, .. }) = found else { panic!("{found:?}") };
        assert_eq!(near.as_deref(), Some("booted"));
    }
}
