//! What the decision log knows better than the store: revocations, and grants that a crash overtook.
//!
//! The store may be older than the log (a restored backup, a crash between record and commit). Epochs
//! are then raised to what the log says, and every change that was granted but never committed gets
//! its record «not carried out». Runs before any port opens.

use std::collections::BTreeMap;

use serde_json::Value;

use super::opening::StartError;
use crate::authority::{Authority, EpochFloor};
use crate::decision_log::{DecisionLog, Note};
use crate::model::{Action, Reason, RequestId};

/// Records read at once.
const PAGE: u32 = 1000;

/// What the records behind the store's newest commit say.
#[derive(Default)]
struct Recalled {
    floor: EpochFloor,
    /// Granted changes without an end, by request.
    open: BTreeMap<RequestId, u64>,
}

/// Reads the log from `from` (the record that the store's newest commit rests on) to its end and
/// puts in force what the store has missed.
///
/// # Errors
/// When log or store fail; the broker does not start then.
pub async fn recall(
    log: &DecisionLog,
    authority: &Authority,
    from: Option<u64>,
) -> Result<(), StartError> {
    let (mut recalled, mut next, size) = (Recalled::default(), from.unwrap_or(0), log.head().size);
    while next < size {
        let (records, after) = log.read(next, PAGE, None)?;
        for (index, text) in records {
            recalled.take(index, &text, from);
        }
        if after <= next {
            break;
        }
        next = after;
    }
    if !recalled.floor.is_empty() && authority.raise_epochs(&recalled.floor).await? {
        tracing::warn!("the store was older than the log: revocations were put in force again");
    }
    for (request, index) in recalled.open {
        log.note(Note::NotReleased { request, index, reason: Reason::StoreUnavailable }).await?;
    }
    Ok(())
}

impl Recalled {
    fn take(&mut self, index: u64, text: &str, committed: Option<u64>) {
        let Ok(record) = serde_json::from_str::<Value>(text) else { return };
        let word = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let request = word("/id").and_then(|id| RequestId::parse(id).ok());
        match (word("/kind"), request) {
            (Some("identity"), _) => {
                let floor = record.get("detail").cloned().unwrap_or_default();
                if let Ok(floor) = serde_json::from_value::<EpochFloor>(floor) {
                    self.floor.merge(floor);
                }
            }
            (Some("not_released"), Some(request)) => {
                self.open.remove(&request);
            }
            (Some("decision"), Some(request)) => {
                let action = word("/req/act").and_then(Action::parse);
                let granted = word("/dec/verdict") == Some("allow");
                let after_commit = committed.is_none_or(|committed| index > committed);
                if granted && after_commit && action.is_some_and(commits) {
                    self.open.insert(request, index);
                }
            }
            _ => {}
        }
    }
}

/// Actions that end in a commit of the store under the index of their own record.
fn commits(action: Action) -> bool {
    matches!(
        action,
        Action::Write
            | Action::Activate
            | Action::Delete
            | Action::Rollback
            | Action::Revoke
            | Action::Enroll
    )
}
