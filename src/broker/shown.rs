//! What a request is about: what its name points at, or what an applicant shows.
//!
//! A proof of who asks is read before the decision, as the handshake was: what does not hold ends in
//! a recorded denial, and never in a grant of which nothing comes. Everything else that a body holds
//! is read only once a grant stands.

use super::line::Line;
use super::outcome::{Asked, Body};
use crate::identity::Caller;
use crate::model::{Ask, Moment, SecretValue, Target};

impl Line {
    /// The target of a request. The body of a proof is read into `read`, once.
    pub(super) async fn find<B: Body>(
        &self,
        asked: &Asked<'_>,
        caller: &Caller,
        body: &mut B,
        read: &mut Option<SecretValue>,
        now: Moment,
    ) -> Target {
        let Ask::Enroll { by: Some(by), .. } = &*asked.ask else {
            return self.locate(&asked.ask, caller).await;
        };
        let authority = &self.parts().authority;
        if read.is_none() && authority.examines(*by, caller) {
            *read = body.read().await.ok();
        }
        let exporter = body.exporter();
        authority.examine(&asked.ask, caller, read.as_ref(), exporter, now)
    }
}
