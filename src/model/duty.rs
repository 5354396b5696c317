//! What an agent says that it holds of its entries, so that it is told their changes only; and who has
//! not said so yet.

use serde::{Deserialize, Serialize};

use super::device::DeviceId;
use super::entry::Entry;
use super::ids::{EntryId, StartId};

/// From where on an agent is told what has changed. The revision stands beside, as `holds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since {
    /// The start of the broker that told that revision: revisions of two of them are not compared.
    pub start: StartId,
    /// The sequence of the trust bundle that the agent was told; another one is news too.
    #[serde(default)]
    pub bundle: u64,
    /// Likewise of the bundles of other trust domains.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub federated: u64,
    /// Whether the answer may wait until there is something to tell.
    #[serde(default)]
    pub wait: bool,
}

/// What has changed in the entries for one device since the revision that its agent holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DutyChanges {
    /// Entries that are new or other than before.
    #[serde(default)]
    pub items: Vec<Entry>,
    /// Entries that are none of its any more.
    #[serde(default)]
    pub gone: Vec<EntryId>,
    /// The revision that the agent holds once it has taken these over.
    pub revision: u64,
    /// The sequence of the trust bundle now.
    pub bundle: u64,
    /// Another number whenever a federated bundle is another.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub federated: u64,
    /// The broker can't tell any more what has changed: read the whole list once.
    #[serde(default)]
    pub resync: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An agent that has not said yet that it knows of a revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingAgent {
    /// Its device.
    pub device: DeviceId,
    /// The word that it gave for people.
    pub name: String,
}
