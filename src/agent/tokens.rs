//! JWT-SVIDs for processes, asked for with the agent's own identity. Nothing of them is kept here: they
//! end by themselves, within minutes.

use super::attest::Attested;
use super::issued::{NO_CONNECTION, NO_UPLINK, WorkloadError};
use super::workloads::{ASK_MAX, Workloads};
use crate::model::{Answer, Ask, Audience, Entry, SecretValue};
use crate::wire::ClientError;

impl Workloads {
    /// A token for a process.
    ///
    /// # Errors
    /// When the broker refuses, can't be reached, or answers with something else.
    pub(super) async fn issue_jwt(
        &self,
        who: &Attested,
        entry: &Entry,
        audience: &Audience,
    ) -> Result<SecretValue, WorkloadError> {
        let agent = self.shared.client().ok_or(NO_UPLINK)?;
        let ask = Ask::IssueJwt {
            entry: entry.id,
            spiffe_id: entry.draft.spiffe_id.clone(),
            audience: audience.clone(),
            workload: who.facts().clone(),
        };
        let late = WorkloadError::Unavailable("the broker gave no answer in time");
        let asking = tokio::time::timeout(ASK_MAX, agent.ask(ask, SecretValue::empty()));
        let (_, released) = asking.await.map_err(|_| late)?.map_err(|why| match why {
            ClientError::Refused(refusal) => WorkloadError::Refused(refusal),
            _ => NO_CONNECTION,
        })?;
        match released.answer {
            Answer::JwtSvid { spiffe_id, .. } if spiffe_id == entry.draft.spiffe_id => {
                Ok(released.body)
            }
            _ => Err(WorkloadError::Internal("the broker issued something else")),
        }
    }
}
