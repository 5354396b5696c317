//! Taking over the roots of the trust domain as they change.
//!
//! Nothing is acknowledged that is not on disk and in force: other roots are saved first, then told to
//! the workloads, and the broker hears of it on the connection that is made with them.

use super::roots::Roots;
use super::uplink::{DUTIES_AT_MOST, Ended, Held, LOOK, Uplink, UplinkError, ask, credentials};
use crate::model::{Answer, Ask, BundleHeld};
use crate::wire::{Client, Credentials};

impl Uplink {
    /// Takes the roots over as they change, and tells the broker what is in force here. Other roots
    /// are on disk before they are told to anybody, and mean a new connection.
    pub(super) async fn keep_bundle(&self, client: &Client, held: &Held) -> Ended {
        let mut told = self.shared.sequence_told();
        let _counted = self.shared.ledger().count(&held.credentials.chain);
        let mut said = None;
        loop {
            let (sequence, roots) = (*told.borrow_and_update(), self.shared.roots());
            let holds = BundleHeld {
                sequence: roots.sequence,
                tainted: self.shared.ledger().tainted(&roots),
            };
            if sequence != 0 && (sequence != roots.sequence || said != Some(holds)) {
                match self.ask_bundle(client, holds).await {
                    // Numbers of a restored broker may have been given before, to something else.
                    Ok(fresh) if fresh == *roots => said = Some(holds),
                    Ok(fresh) if fresh.certificates == held.credentials.bundle => {
                        self.shared.rooted(fresh);
                        continue;
                    }
                    Ok(fresh) => match self.take_over(held, fresh) {
                        Ok(credentials) => return Ended::Renewed(Box::new(credentials)),
                        Err(why) => self.shared.failed(why.to_string()),
                    },
                    Err(why) => {
                        tracing::warn!(error = %why, "the roots could not be asked for");
                        self.shared.failed(why.to_string());
                    }
                }
            }
            let wait = if holds.tainted == 0 { LOOK } else { DUTIES_AT_MOST };
            let _ = tokio::time::timeout(wait, told.changed()).await;
        }
    }

    async fn ask_bundle(&self, client: &Client, holds: BundleHeld) -> Result<Roots, UplinkError> {
        let holds = (holds.sequence != 0).then_some(holds);
        match ask(client, Ask::Bundle { holds }).await? {
            Answer::Bundle { sequence, roots, published, jwt_keys } => {
                Roots::told(sequence, &roots)
                    .and_then(|told| told.with_published(&published))
                    .and_then(|told| told.with_jwt_keys(&self.settings.domain, &jwt_keys))
                    .ok_or(UplinkError::Answer("readable roots"))
            }
            _ => Err(UplinkError::Answer("roots")),
        }
    }

    fn take_over(&self, held: &Held, fresh: Roots) -> Result<Credentials, UplinkError> {
        let (chain, bundle) = (held.credentials.chain.clone(), fresh.certificates.clone());
        let credentials = credentials(&self.settings, &self.device, chain, bundle);
        credentials.save(&self.settings.dir)?;
        tracing::info!(sequence = fresh.sequence, "the roots of the trust domain have changed");
        self.shared.rooted(fresh);
        Ok(credentials)
    }
}
