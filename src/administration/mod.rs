//! Everything that is asked for and is neither a secret nor an identity: evidence intake, the life of
//! the policy, reading the log, status.
//!
//! It acts only for a `Grant<Administration>`, like the other two rooms that act, and pushes what it
//! changed into the snapshots of posture and policy. It decides nothing.

mod evidence;
mod exposure;
mod policies;
mod reading;

pub use policies::{Policies, PolicyError};

use std::sync::Arc;

use crate::decision_log::{Administration as ForAdministration, DecisionLog, Grant};
use crate::model::{Ask, Clock, Failure, Released, SecretValue, TrustDomain};
use crate::policy::Policy;
use crate::posture::{Challenge, Posture};
use crate::store::Store;

/// The room's parts.
#[derive(Debug)]
pub struct Administration {
    /// Whose house this is.
    domain: TrustDomain,
    clock: Arc<dyn Clock>,
    posture: Arc<Posture>,
    policies: Policies,
    log: DecisionLog,
    store: Arc<dyn Store>,
}

impl Administration {
    /// Joins the parts. `policies` has loaded the last good bundle already.
    pub fn new(
        domain: TrustDomain,
        clock: Arc<dyn Clock>,
        posture: Arc<Posture>,
        policies: Policies,
        log: DecisionLog,
        store: Arc<dyn Store>,
    ) -> Self {
        Self { domain, clock, posture, policies, log, store }
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        self.policies.policy()
    }

    /// Carries a grant out. `challenge` is the nonce that a report answers; only reports have one.
    ///
    /// # Errors
    /// What stood in the way; nothing was changed then.
    pub async fn carry_out(
        &self,
        grant: Grant<ForAdministration>,
        body: SecretValue,
        challenge: Option<&Challenge>,
    ) -> Result<Released, Failure> {
        match grant.ask().as_ref() {
            Ask::CanI { action, object } => self.can_i(&grant, *action, object).await,
            Ask::Report { facts } => self.take_report(&grant, *facts, &body, challenge).await,
            Ask::PolicyRead {} => self.policies.read().await,
            Ask::PolicyActivate {} => self.policies.activate(grant.under()?, body.expose()).await,
            Ask::PolicyRollback {} => self.policies.roll_back(grant.under()?).await,
            Ask::LogRead { from, limit, holding } => {
                self.read_log(*from, *limit, holding.as_deref()).await
            }
            Ask::Exposure { device, from, limit, since } => {
                self.exposure(*device, *from, *limit, *since).await
            }
            Ask::Explain { request } => self.explain(*request).await,
            Ask::Status {} => self.status().await,
            other => {
                Err(Failure::invalid(format!("`{}` is not an administrative act", other.action())))
            }
        }
    }
}
