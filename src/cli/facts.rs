//! device facts: what this machine or a process of it says of itself.

use super::fault::Fault;
use super::output::{Output, printable, table};
use crate::app::{self, StatedFact};

/// Prints the facts of this machine, or of a process.
pub fn facts(pid: Option<u32>, output: &Output) -> Result<(), Fault> {
    let facts = match pid {
        None => app::device_facts(),
        Some(pid) => app::facts_of_process(pid).map_err(|error| {
            Fault::of(&error).hint("name a process that runs on this machine; `ps` lists them")
        })?,
    };
    if output.is_json() {
        for fact in &facts {
            output.text(&serde_json::to_string(fact).unwrap_or_default());
        }
        return Ok(());
    }
    let mut rows: Vec<Vec<String>> = vec![
        ["fact", "value", "rank", "age", "source"].iter().map(|word| (*word).to_owned()).collect(),
    ];
    rows.extend(facts.iter().map(row));
    output.text(&printable(&table(&rows)));
    output.text(&printable(&summary(&facts)));
    Ok(())
}

fn row(fact: &StatedFact) -> Vec<String> {
    let value = match (&fact.value, fact.unknown) {
        (Some(value), _) => value.to_string(),
        (None, Some("broker")) => "unknown (the broker states it)".to_owned(),
        (None, why) => format!("unknown ({})", why.unwrap_or("error")),
    };
    let age = format!("{} ms", fact.age_ms);
    vec![fact.name.into(), value, fact.rank.into(), age, fact.source.into()]
}

/// What the table comes to, and what would tell more.
fn summary(facts: &[StatedFact]) -> String {
    let known = facts.iter().filter(|fact| fact.value.is_some()).count();
    let denied = facts.iter().filter(|fact| fact.unknown == Some("denied")).count();
    let mut text = format!("{known} of {} known", facts.len());
    if denied > 0 {
        text.push_str(&format!(
            "; {denied} may not be read by this user: the agent's may read more"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_says_why_and_is_never_a_value() {
        let fact = |value: Option<serde_json::Value>, unknown| StatedFact {
            name: "secureboot",
            value,
            unknown,
            rank: "kernel",
            source: "EFI",
            age_ms: 3,
        };
        let facts = [
            fact(Some(false.into()), None),
            fact(None, Some("denied")),
            fact(None, Some("absent")),
            fact(None, Some("broker")),
        ];
        let cells: Vec<String> = facts.iter().map(|fact| row(fact)[1].clone()).collect();
        assert_eq!(
            cells,
            ["false", "unknown (denied)", "unknown (absent)", "unknown (the broker states it)"]
        );
        assert!(summary(&facts).starts_with("1 of 4 known; 1 may not be read"));
        let line = serde_json::to_string(&facts[1]).unwrap();
        assert_eq!(
            line,
            r#"{"name":"secureboot","unknown":"denied","rank":"kernel","source":"EFI","age_ms":3}"#
        );
    }
}
