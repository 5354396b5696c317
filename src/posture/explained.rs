//! Why a profile came out as it did, requirement by requirement, and what would have to change.

use std::time::Duration;

use serde::Serialize;

use super::fact::FactValue;
use super::requirement::Tri;

/// One requirement, judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Asked {
    /// How deep it stands below `any` and `all`.
    pub depth: usize,
    /// What is asked: `kernel.lockdown eq "integrity"`, `any of`, `all of`.
    pub asks: String,
    /// What came of it.
    pub result: Tri,
    /// The fact that it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fact: Option<&'static str>,
    /// The fact's value, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<FactValue>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<&'static str>,
    /// Who vouches for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<&'static str>,
    /// How old the evidence is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// How old it may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// In words, what is there.
    pub found: String,
    /// What would have to change for it to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Asked {
    /// One line for people.
    pub fn line(&self) -> String {
        let indent = self.depth * 2;
        let found = if self.found.is_empty() { "" } else { "; " };
        format!("{:indent$}{}: {}{found}{}", "", self.asks, self.result.word(), self.found)
    }
}

/// One profile, judged on one set of facts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// Its name.
    pub profile: String,
    /// `enforce` or `monitor`.
    pub mode: &'static str,
    /// What its requirements come to, mode aside.
    pub meets: Tri,
    /// What policies see.
    pub result: Tri,
    /// Only its mode makes it hold.
    pub would_deny: bool,
    /// How old its evidence may be.
    pub max_age_s: u64,
    /// How old it is.
    pub age_ms: u64,
    /// Requirement by requirement, inherited ones first.
    pub requirements: Vec<Asked>,
}

impl Explained {
    /// Lines for people: the requirements, and what the mode makes of them.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.requirements.iter().map(Asked::line).collect();
        if self.mode == "monitor" {
            lines.push(
                "the profile is in mode monitor: what it adds is judged and not asked for"
                    .to_owned(),
            );
        }
        lines
    }

    /// What would have to change, each once, in order.
    pub fn mends(&self) -> Vec<&str> {
        let mut mends: Vec<&str> = Vec::new();
        for mend in self.requirements.iter().filter_map(|asked| asked.mend.as_deref()) {
            if !mends.contains(&mend) {
                mends.push(mend);
            }
        }
        mends
    }
}

/// Milliseconds, for reports.
pub(super) fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
