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
use crate::model::{Reason, RequestId};

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
    let (mut recalled, mut next, size) = (Recalled::default(), from.unwrap_or(0), log.size());
    while next < size {
        let (records, after) = log.read(next, PAGE, None)?;
        for (index, text) in records {
            recalled.take(index, &text, from);
        }
        recalled.floor.forget_ended(authority.now());
        if after <= next {
            break;
        }
        next = after;
    }
    if !recalled.floor.is_empty() && authority.raise_epochs(&recalled.floor).await? {
        tracing::warn!("the store was older than the log: revocations were put in force again");
    }
    for (request, index) in recalled.open {
        let (index, reason) = (Some(index), Reason::StoreUnavailable);
        log.note(Note::NotReleased { request, index, reason }).await?;
    }
    Ok(())
}

impl Recalled {
    fn take(&mut self, index: u64, text: &str, committed: Option<u64>) {
        let Ok(record) = serde_json::from_str::<Value>(text) else { return };
        let word = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let request = word("/id").and_then(|id| RequestId::parse(id).ok());
        match (word("/kind"), request) {
            (Some("identity"), Some(request)) => {
                let floor = record.get("detail").cloned().unwrap_or_default();
                if let Ok(floor) = serde_json::from_value::<EpochFloor>(floor)
                    && word("/what") == Some("epochs")
                {
                    self.floor.merge(floor);
                }
                // Written only once the thing was done.
                self.open.remove(&request);
            }
            (Some("not_released"), Some(request)) => {
                self.open.remove(&request);
            }
            (Some("decision"), Some(request)) => {
                let granted = word("/dec/verdict") == Some("allow");
                // A store that rests on no record (a restored one) says nothing of what was committed.
                let after_commit = committed.is_some_and(|committed| index > committed);
                if granted
                    && after_commit
                    && word("/req/op").or(word("/req/act")).is_some_and(commits)
                {
                    self.open.insert(request, index);
                }
            }
            _ => {}
        }
    }
}

/// Operations that end in a commit of the store under the index of their own record. A renewal may
/// commit that a device was seen, and nothing hangs on that.
fn commits(op: &str) -> bool {
    matches!(
        op,
        "write"
            | "label"
            | "activate"
            | "delete"
            | "undelete"
            | "enroll"
            | "operator_add"
            | "operator_remove"
            | "token_create"
            | "device_revoke"
            | "entry_create"
            | "entry_delete"
            | "revoke"
            | "revoke_svid"
            | "retract"
            | "ca_prepare"
            | "ca_activate"
            | "ca_taint"
            | "ca_revoke"
            | "federation_add"
            | "federation_remove"
            | "federation_set_bundle"
            | "federation_take"
            | "policy_activate"
            | "policy_rollback"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "0192a0b0-0000-7000-8000-000000000000";

    fn decision(act: &str, op: &str, verdict: &str) -> Value {
        json!({"kind": "decision", "id": ID, "req": {"act": act, "op": op}, "dec": {"verdict": verdict}})
    }

    fn open(records: &[Value], committed: Option<u64>) -> Vec<u64> {
        let mut recalled = Recalled::default();
        for (index, record) in (5..).zip(records) {
            recalled.take(index, &record.to_string(), committed);
        }
        recalled.open.into_values().collect()
    }

    #[test]
    fn a_granted_change_without_an_end_is_open_once_it_is_newer_than_the_store() {
        let write = decision("write", "write", "allow");
        assert_eq!(open(std::slice::from_ref(&write), Some(4)), [5]);
        assert!(
            open(std::slice::from_ref(&write), None).is_empty(),
            "a restored store knows of none"
        );
        assert!(open(std::slice::from_ref(&write), Some(5)).is_empty(), "the store has it");
        assert!(open(&[decision("write", "write", "deny")], Some(4)).is_empty());
        let end = json!({"kind": "not_released", "id": ID, "code": "D502"});
        assert!(open(&[write, end], Some(4)).is_empty());
    }

    #[test]
    fn what_commits_nothing_is_never_said_to_be_not_released() {
        for (act, op) in [
            ("read", "read"),
            ("renew", "renew"),
            ("issue", "issue"),
            ("issue", "issue_jwt"),
            ("report", "report"),
            ("take", "backup_keys"),
        ] {
            assert!(open(&[decision(act, op, "allow")], Some(4)).is_empty(), "{op}");
        }
        let short = |act: &str| json!({"kind": "decision", "id": ID, "req": {"act": act}, "dec": {"verdict": "allow"}});
        assert!(open(&[short("read")], Some(4)).is_empty());
        assert_eq!(open(&[short("write")], Some(4)), [5], "called as its action");
    }

    #[test]
    fn a_note_of_what_was_done_is_the_end_of_its_request() {
        for op in ["enroll", "revoke", "entry_create"] {
            let done = json!({"kind": "identity", "id": ID, "what": "x", "detail": {}});
            assert_eq!(open(&[decision("write", op, "allow")], Some(4)), [5]);
            assert!(open(&[decision("write", op, "allow"), done], Some(4)).is_empty(), "{op}");
        }
    }

    #[test]
    fn only_a_note_of_epochs_raises_them() {
        let device = "0".repeat(64);
        let mut recalled = Recalled::default();
        for (what, merged) in [("issued", false), ("epochs", true)] {
            let detail = json!({"devices": {device.clone(): 3}});
            let note = json!({"kind": "identity", "id": ID, "what": what, "detail": detail});
            recalled.take(1, &note.to_string(), None);
            assert_eq!(!recalled.floor.is_empty(), merged, "{what}");
        }
    }
}
