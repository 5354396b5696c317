//! Younger evidence for a request whose candidate rules need it, before anything is judged.
//!
//! What time passes in waiting is made good: clock, caller and policy are read anew afterwards, once.

use std::sync::Arc;

use super::line::Line;
use super::outcome::{Asked, may_step_up};
use crate::identity::Caller;
use crate::model::{Ask, Moment};
use crate::policy::Bundle;
use crate::posture::{Demand, StepUp};

impl Line {
    /// What a request is judged by; its device was challenged for it where that could help.
    pub(super) async fn freshest(
        &self,
        asked: &Asked<'_>,
        caller: Arc<Caller>,
        now: Moment,
    ) -> (Moment, Arc<Caller>, Arc<Bundle>, Demand) {
        let (bundle, demand) = self.demand(&caller, &asked.ask);
        if !may_step_up(&asked.ask) || !self.step_up(&caller, &demand).await {
            return (now, caller, bundle, demand);
        }
        let now = self.parts().clock.now();
        let caller = Arc::new(self.parts().identity.recognise(asked.peer, now));
        let (bundle, demand) = self.demand(&caller, &asked.ask);
        (now, caller, bundle, demand)
    }

    fn demand(&self, caller: &Caller, ask: &Ask) -> (Arc<Bundle>, Demand) {
        let bundle = self.parts().policy.current();
        let demand = bundle.demand(caller, ask);
        (bundle, demand)
    }

    /// Has the caller's device challenged where its evidence is too old for what the candidate rules
    /// name. Whether anybody waited for it.
    async fn step_up(&self, caller: &Caller, demand: &Demand) -> bool {
        let parts = self.parts();
        let stepped = parts.posture.step_up(caller.device(), demand, &*parts.clock).await;
        match stepped {
            StepUp::Idle => return false,
            StepUp::Answered => parts.metrics.step_ups.inc(),
            StepUp::Unanswered => parts.metrics.step_ups_unanswered.inc(),
        };
        true
    }
}
