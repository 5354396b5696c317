//! What a request is about: what its name points at, or what an applicant shows.
//!
//! A proof of who asks is read before the decision, as the handshake was: what does not hold ends in
//! a recorded denial, and never in a grant of which nothing comes. Everything else that a body holds
//! is read only once a grant stands.

use super::line::Line;
use super::outcome::{Asked, Body};
use crate::identity::Caller;
use crate::model::{Ask, EnrolBy, Moment, SecretValue, Shown, Target};

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
        if *by == EnrolBy::Tpm {
            return Target::Shown(self.by_tpm(caller, body, read.as_ref(), now).await);
        }
        let exporter = body.exporter();
        authority.examine(&asked.ask, caller, read.as_ref(), exporter, now)
    }

    /// What a TPM shows is decided by a credential that goes out once a request and comes back open.
    async fn by_tpm<B: Body>(
        &self,
        caller: &Caller,
        body: &mut B,
        read: Option<&SecretValue>,
        now: Moment,
    ) -> Shown {
        let authority = &self.parts().authority;
        let before = body.shown().and_then(|shown| shown.clone());
        let shown = match before {
            Some(shown) => shown,
            None => match authority.weigh(caller, read, body.exporter(), now) {
                Err(fault) => fault,
                Ok(weighed) => {
                    let opened = body.opened(&weighed.credential).await;
                    weighed.settle(opened.as_ref())
                }
            },
        };
        if let Some(kept) = body.shown() {
            *kept = Some(shown.clone());
        }
        authority.settled(shown, now)
    }
}
