//! The facts of this machine and of its processes, as whoever asks may read them; no broker is asked.

use std::time::Instant;

use serde::Serialize;

use crate::agent::{AttestError, ExeDigests, PeerProcess, facts, process_facts};
use crate::posture::{FactName, FactValue, Origin, Unknown};

/// One fact with everything that its reader needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatedFact {
    /// Its name.
    pub name: &'static str,
    /// Its value, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<serde_json::Value>,
    /// Why it is not: `absent`, `denied`, `error`, or `broker` for what only a broker states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<&'static str>,
    /// Who vouches.
    pub rank: &'static str,
    /// Where it is read.
    pub source: &'static str,
    /// Milliseconds since it was read, at most.
    pub age_ms: u64,
}

/// The reason of facts that only a broker states.
const OF_THE_BROKER: &str = "broker";

fn value_of(value: &FactValue) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Every fact that the table asks of a device, read now.
pub fn device_facts() -> Vec<StatedFact> {
    let began = Instant::now();
    let collected = facts::collect();
    let age_ms = millis(began);
    let one = |name: FactName| {
        let row = name.row();
        let stated = collected.fact(name).map(|fact| &fact.value);
        let (value, unknown) = match stated {
            _ if row.origin == Origin::Broker => (None, Some(OF_THE_BROKER)),
            Some(Ok(value)) => (Some(value_of(value)), None),
            Some(Err(unknown)) => (None, Some(unknown.word())),
            None => (None, Some(Unknown::Absent.word())),
        };
        let (rank, source) = (row.rank.word(), row.source);
        StatedFact { name: name.as_str(), value, unknown, rank, source, age_ms }
    };
    FactName::all().map(one).collect()
}

/// Every fact of one process of this machine.
///
/// # Errors
/// When there is none of that number, or it ended or became another program meanwhile.
pub fn facts_of_process(pid: u32) -> Result<Vec<StatedFact>, AttestError> {
    let began = Instant::now();
    let found = process_facts(PeerProcess::of_pid(pid)?, &ExeDigests::default())?;
    let age_ms = millis(began);
    let one = |fact: crate::agent::ProcessFact| StatedFact {
        name: fact.name,
        value: fact.value.as_ref().ok().map(value_of),
        unknown: fact.value.as_ref().err().map(|unknown| unknown.word()),
        rank: fact.rank.word(),
        source: fact.source,
        age_ms,
    };
    Ok(found.into_iter().map(one).collect())
}

/// This machine's facts in the form that reports carry.
pub fn facts_here() -> serde_json::Value {
    serde_json::to_value(facts::collect()).unwrap_or_default()
}
