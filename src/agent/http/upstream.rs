//! Where the local HTTP gets its answers: the broker, or in tests a canned one.

use std::sync::Arc;

use super::super::attest::Attested;
use super::super::issued::WorkloadError;
use super::super::workloads::Workloads;
use crate::model::{Ask, Entry, Released, RequestId, SpiffeId};

/// A closed set, so that nothing else can ever be plugged in.
pub(in crate::agent) enum Upstream {
    /// The broker, through the workloads' own connections.
    Broker(Arc<Workloads>),
    /// Answers by a function; identities by the genuine choice among entries.
    #[cfg(test)]
    Canned(Canned),
}

/// An upstream without a broker.
#[cfg(test)]
pub(in crate::agent) struct Canned {
    pub(in crate::agent) duties: super::super::duties::Duties,
    #[allow(clippy::type_complexity)]
    pub(in crate::agent) answer:
        Box<dyn Fn(&Entry, Ask) -> Result<(RequestId, Released), WorkloadError> + Send + Sync>,
}

impl Upstream {
    /// Whether workloads can be served.
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Broker(workloads) => workloads.is_ready(),
            #[cfg(test)]
            Self::Canned(_) => true,
        }
    }

    /// The entry for a process; `wanted` is the one of its identities that it names.
    pub(super) async fn identify(
        &self,
        who: &Attested,
        wanted: Option<&SpiffeId>,
    ) -> Result<Entry, WorkloadError> {
        match self {
            Self::Broker(workloads) => workloads.identify(who.facts(), wanted).await,
            #[cfg(test)]
            Self::Canned(canned) => {
                canned.duties.choose(who.facts(), wanted).cloned().map_err(WorkloadError::Unmatched)
            }
        }
    }

    /// Asks with the identity that the entry gives.
    pub(super) async fn ask(
        &self,
        who: &Arc<Attested>,
        entry: &Entry,
        ask: Ask,
    ) -> Result<(RequestId, Released), WorkloadError> {
        match self {
            Self::Broker(workloads) => workloads.ask(who, entry, ask).await,
            #[cfg(test)]
            Self::Canned(canned) => (canned.answer)(entry, ask),
        }
    }
}
