//! Challenging a device over its agent's open connection.
//!
//! What goes out is a notice that asks for a report, and brings nothing in: the agent answers as it
//! always reports, by a request of its own that climbs the line. One notice is under way at a time;
//! an agent that takes none is simply late.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::time::timeout;

use crate::identity::{Caller, CallerKind, Standing};
use crate::model::limits::STEP_UP_WAIT;
use crate::posture::{Posture, Reachable};
use crate::wire;

/// The device of whoever can be challenged: a living agent, for its own device.
pub(super) fn reach(posture: &Arc<Posture>, caller: &Caller) -> Option<Reachable> {
    let is_agent = caller.kind() == CallerKind::Agent && caller.standing() == Standing::Live;
    caller.device().filter(|_| is_agent).map(|device| posture.reachable(*device))
}

/// Passes on every challenge as long as the connection is served.
pub(super) async fn pass_on(
    connection: &quinn::Connection,
    reach: Option<Reachable>,
) -> Infallible {
    let Some(reach) = reach else { return std::future::pending().await };
    loop {
        reach.challenged().await;
        let sending = async {
            let mut send = connection.open_uni().await.ok()?;
            wire::write_challenge(&mut send).await.ok()?;
            send.finish().ok()
        };
        if timeout(STEP_UP_WAIT, sending).await.is_err() {
            tracing::debug!("an agent takes no challenge");
        }
    }
}
