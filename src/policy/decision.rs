//! One decision, and what it was made under.
//!
//! A [`Decision`] is made by [`Bundle::decide`] only and goes into the log by value; nobody else
//! can make one, change one or use one twice. It holds no secret.

use std::sync::Arc;

use super::bundle::Bundle;
use super::judge::Seen;
use super::scope::Mode;
use crate::identity::{Caller, Epochs};
use crate::model::{
    Action, Ask, ClientRef, Code, Digest, Moment, Reason, RequestId, SecretName, Target,
};
use crate::posture::Verdict;

/// A rule that had a part in a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruled {
    /// The row's id, or the id of a rule of Doorward's own (`self-…`, `task-…`).
    pub id: Arc<str>,
    /// The row's line in `policy.csv`, from 1; 0 for a rule of Doorward's own.
    pub line: usize,
    /// Whether it allows, or denies.
    pub allow: bool,
}

/// One decision. Not `Clone`: it is written down once.
///
/// ```compile_fail
/// fn twice(decision: doorward::policy::Decision) -> [doorward::policy::Decision; 2] {
///     [decision.clone(), decision]
/// }
/// ```
///
/// ```compile_fail
/// use doorward::policy::Decision;
/// fn forged(real: Decision) -> Decision {
///     Decision { allowed: true, ..real }
/// }
/// ```
#[derive(Debug)]
pub struct Decision {
    pub(super) id: RequestId,
    pub(super) caller: Arc<Caller>,
    pub(super) verdict: Verdict,
    pub(super) ask: Arc<Ask>,
    pub(super) client: Option<ClientRef>,
    pub(super) object: String,
    pub(super) target: Target,
    pub(super) now: Moment,
    pub(super) bundle: Arc<Bundle>,
    pub(super) allowed: bool,
    pub(super) code: Code,
    pub(super) reason: Reason,
    pub(super) rules: Vec<Ruled>,
}

impl Decision {
    /// The broker's id of the request.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Who asked.
    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// How the device stood.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// What was asked for.
    pub fn ask(&self) -> &Arc<Ask> {
        &self.ask
    }

    /// The client's own reference; recorded, never believed.
    pub fn client(&self) -> Option<&ClientRef> {
        self.client.as_ref()
    }

    /// The object in policy notation, e.g. `secret/pay/db/url`; `-` where the request names
    /// nothing that a rule could speak of.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// What the name pointed at.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// When.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Allowed, or denied.
    pub fn allowed(&self) -> bool {
        self.allowed
    }

    /// The code for the client where it is not allowed (`denied`, `expired`, `invalid`,
    /// `not_found`).
    pub fn code(&self) -> Code {
        self.code
    }

    /// Why, as it is recorded.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Why, as the client is told: that an object does not exist is said only to who may list it;
    /// to anybody else it looks like any other denial.
    pub fn shown_reason(&self) -> Reason {
        match (self.reason, self.code) {
            (Reason::Absent, Code::Denied) => Reason::NoAllow,
            (reason, _) => reason,
        }
    }

    /// The rules that matched, deciding ones first.
    pub fn rules(&self) -> &[Ruled] {
        &self.rules
    }

    /// Digest of the bundle that decided.
    pub fn bundle_digest(&self) -> Digest {
        self.bundle.digest()
    }

    /// Serial number of the bundle that decided.
    pub fn bundle_serial(&self) -> u64 {
        self.bundle.serial()
    }

    /// What it was made under.
    pub fn generations(&self) -> Generations {
        Generations {
            bundle: self.bundle.generation(),
            epochs: self.caller.epochs(),
            held: self.verdict.held(),
        }
    }

    /// Whether one name of a listing may be shown, under this decision's own bundle, caller,
    /// verdict and moment; an error is no.
    pub fn may_list(&self, name: &SecretName) -> bool {
        let (subject, seen) = (self.caller.id().as_str(), Seen::Verdict(&self.verdict));
        let (object, now) = (format!("secret/{name}"), self.now.rfc3339());
        let rules = self.bundle.rules();
        rules.judge(subject, Action::List, &object, seen, &now, Mode::Ordinary).allowed
    }

    /// A decision for tests of other rooms: of a device that never reported, at a fixed time,
    /// under a bundle with one row.
    #[cfg(test)]
    #[allow(dead_code)]
    pub(crate) fn sample(caller: Caller, ask: Ask, allowed: bool) -> Self {
        let bundle = Bundle::sample(caller.id().trust_domain());
        let wall = time::macros::datetime!(2026-11-23 04:05:06.789 UTC);
        let now = Moment::new(wall, std::time::Duration::from_secs(3600));
        let object = super::scope::object(&super::scope::Asker::of(&caller), &ask, bundle.domain());
        let verdict = crate::posture::Posture::new().look(None, &bundle.demand_all(), now);
        let rule = Ruled { id: "sample".into(), line: 1, allow: true };
        Self {
            id: RequestId::new(now),
            caller: Arc::new(caller),
            verdict,
            ask: Arc::new(ask),
            client: None,
            object: object.unwrap_or_else(|_| "-".to_owned()),
            target: Target::Itself,
            now,
            bundle,
            allowed,
            code: Code::Denied,
            reason: if allowed { Reason::Allow } else { Reason::NoAllow },
            rules: if allowed { vec![rule] } else { Vec::new() },
        }
    }

    /// The same decision on another target, for tests of other rooms.
    #[cfg(test)]
    #[allow(dead_code)]
    pub(crate) fn on(self, target: Target) -> Self {
        Self { target, ..self }
    }
}

/// What a decision was made under; compared once more before release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generations {
    /// [`Bundle::generation`].
    pub bundle: u64,
    /// The caller's device and entry epochs.
    pub epochs: Epochs,
    /// Profiles held, as bits.
    pub held: u32,
}
