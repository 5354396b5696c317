//! The calendar of the authorities: the next one is prepared at half of the signing one's life, and an
//! old one ends when no device that was away since may come back.
//!
//! Each step goes through the line like anybody's, and is recorded. A clock that jumps must not run
//! the whole calendar at once: nothing is due while wall and boot clock disagree, and after one step
//! the next waits for an hour of the boot clock, whatever the wall clock says.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::opening::StartError;
use super::supervise::Supervisor;
use crate::authority::Authority;
use crate::broker::{Line, Ready};
use crate::decision_log::{DecisionLog, Note};
use crate::identity::Task;
use crate::model::{Ask, Moment, RequestId};

/// How often the calendar is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two steps, by the boot clock.
const REST: Duration = Duration::from_secs(3600);

/// Gives authorities out of a time before JWT-SVIDs their keys for them, once; recorded like every
/// other step. Called before the line opens.
///
/// # Errors
/// When log or store fail; the broker does not start then.
pub(super) async fn complete(
    log: &DecisionLog,
    authority: &Authority,
    now: Moment,
) -> Result<(), StartError> {
    let lacking = authority.lacking_jwt_keys()?;
    if lacking.is_empty() {
        return Ok(());
    }
    let detail = serde_json::json!({ "authorities": lacking });
    let note = Note::Identity { request: RequestId::new(now), what: "jwt_keys", detail };
    let index = log.note(note).await?;
    Ok(authority.make_jwt_keys(Some(index)).await?)
}

/// Goes on until `stop`.
pub(super) async fn run(
    line: Arc<Line>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Infallible> {
    let mut last = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
        let now = line.parts().clock.now();
        if !rested(last, now) {
            continue;
        }
        let due = match line.parts().authority.due(now) {
            Ok(Some(step)) => step,
            Ok(None) => continue,
            Err(failure) => {
                tracing::error!(?failure, "the authorities could not be looked at");
                continue;
            }
        };
        last = Some(now);
        let op = due.op();
        let peer = Supervisor::broker_peer(Task::Rotation);
        let asked = line.answer(&peer, None, None, Arc::new(Ask::Ca(due)), &mut Ready(None)).await;
        match asked.1 {
            Ok(_) => tracing::info!(op, "a step in the life of the authorities"),
            Err(refusal) => {
                tracing::error!(op, %refusal, "an authority's step was not taken");
                let hint = refusal.hint.as_deref().unwrap_or_default();
                let detail = format!("{op} was not taken: {refusal} {hint}");
                let _ = line.parts().log.note(Note::Alarm { what: "authorities", detail }).await;
            }
        }
    }
}

/// Whether the last step is long enough ago.
fn rested(last: Option<Moment>, now: Moment) -> bool {
    last.is_none_or(|last| now.since(last.boot()) >= REST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock as _, ManualClock};

    #[test]
    fn a_wall_clock_that_jumps_brings_no_step_forward() {
        let clock = ManualClock::at(time::macros::datetime!(2026-11-23 12:00 UTC));
        let last = clock.now();
        assert!(rested(None, last));
        clock.set_wall(last.wall() + time::Duration::days(300));
        assert!(!rested(Some(last), clock.now()), "boot time has not moved");
        clock.advance(REST - Duration::from_secs(1));
        assert!(!rested(Some(last), clock.now()));
        clock.advance(Duration::from_secs(1));
        assert!(rested(Some(last), clock.now()));
    }
}
