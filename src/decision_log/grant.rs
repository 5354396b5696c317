//! What the log says once a decision is written down. Only this folder can say it.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::identity::Caller;
use crate::model::{
    Ask, Code, Failure, Kind, Moment, Reason, Refusal, RequestId, SecretName, Target,
};
use crate::policy::Decision;

/// Marks a grant for the vault.
#[derive(Debug)]
pub enum Secret {}
/// Marks a grant for the authority.
#[derive(Debug)]
pub enum Authority {}
/// Marks a grant for administration.
#[derive(Debug)]
pub enum Administration {}

/// Proof that a decision to allow is durably written down. Who wants to act takes it by value, so
/// it is used once:
///
/// ```
/// use doorward::decision_log::{Grant, Secret};
/// fn carry_out(grant: Grant<Secret>) -> Option<u64> { grant.recorded() }
/// fn once(grant: Grant<Secret>) { carry_out(grant); }
/// ```
///
/// A second use does not compile:
///
/// ```compile_fail,E0382
/// use doorward::decision_log::{Grant, Secret};
/// fn carry_out(grant: Grant<Secret>) -> Option<u64> { grant.recorded() }
/// fn twice(grant: Grant<Secret>) { carry_out(grant); carry_out(grant); }
/// ```
///
/// nor a copy:
///
/// ```compile_fail,E0599
/// use doorward::decision_log::{Grant, Secret};
/// fn copy(grant: &Grant<Secret>) -> Grant<Secret> { Grant::clone(grant) }
/// ```
///
/// nor one kind in place of another:
///
/// ```compile_fail,E0308
/// use doorward::decision_log::{Authority, Grant, Secret};
/// fn swap(grant: Grant<Authority>) -> Grant<Secret> { grant }
/// ```
///
/// nor one made by hand, whole or from another:
///
/// ```compile_fail,E0451
/// use doorward::decision_log::{Grant, Secret};
/// fn forge(other: Grant<Secret>) -> Grant<Secret> { Grant { index: 0, ..other } }
/// ```
///
/// ```compile_fail,E0277
/// use doorward::decision_log::{Grant, Secret};
/// fn forge() -> Grant<Secret> { Grant::from(()) }
/// ```
#[derive(Debug)]
#[must_use = "a grant that is dropped was recorded as allowed and never carried out"]
pub struct Grant<K> {
    decision: Box<Decision>,
    /// None: counted, not recorded one by one.
    index: Option<u64>,
    kind: PhantomData<K>,
}

impl<K> Grant<K> {
    /// The request that it was granted to.
    pub fn id(&self) -> RequestId {
        self.decision.id()
    }

    /// Index of the record that this grant stands on; none where it was counted in a summary.
    pub fn recorded(&self) -> Option<u64> {
        self.index
    }

    /// The record that a commit under this grant must name.
    ///
    /// # Errors
    /// When there is none: what was only counted changes nothing that is stored.
    pub fn under(&self) -> Result<u64, Failure> {
        self.index.ok_or_else(|| Failure::new(Code::Internal, Reason::Invalid))
    }

    /// Who asked.
    pub fn caller(&self) -> &Arc<Caller> {
        self.decision.caller()
    }

    /// For what.
    pub fn ask(&self) -> &Arc<Ask> {
        self.decision.ask()
    }

    /// What its object was at the moment of deciding: this and nothing else is granted.
    pub fn target(&self) -> &Target {
        self.decision.target()
    }

    /// The moment of deciding.
    pub fn now(&self) -> Moment {
        self.decision.now()
    }

    /// Whether one name of a listing may be shown, under the same bundle, caller, verdict and
    /// moment.
    pub fn may_list(&self, name: &SecretName) -> bool {
        self.decision.may_list(name)
    }

    fn on(decision: Box<Decision>, index: Option<u64>) -> Self {
        Self { decision, index, kind: PhantomData }
    }
}

/// What the log says once the decision is written down.
#[derive(Debug)]
#[must_use]
pub enum Ruling {
    /// Carried out by administration.
    Administration(Grant<Administration>),
    /// Carried out by the authority.
    Authority(Grant<Authority>),
    /// Not allowed.
    Refused(Refusal),
    /// Carried out by the vault.
    Secret(Grant<Secret>),
}

impl Ruling {
    /// The ruling on a decision whose record stands, durable, at `index`; without one it was counted.
    pub(super) fn on(decision: Box<Decision>, index: Option<u64>) -> Self {
        if !decision.allowed() {
            let (request, code) = (decision.id(), decision.code());
            let reason = decision.shown_reason();
            return Self::Refused(Refusal { request, code, reason, hint: None });
        }
        match decision.ask().kind() {
            Kind::Administration => Self::Administration(Grant::on(decision, index)),
            Kind::Authority => Self::Authority(Grant::on(decision, index)),
            Kind::Secret => Self::Secret(Grant::on(decision, index)),
        }
    }
}
