//! The authorities of a trust domain as they are asked for and shown: steps of their life, what is
//! trusted, and who still lives by which.

use serde::{Deserialize, Serialize};

use super::device::{DeviceClass, DeviceId, Digest};
use super::object::Action;

/// Where an authority stands. A revoked one is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityState {
    /// Trusted, and signs nothing yet.
    Prepared,
    /// Signs.
    Active,
    /// Trusted for what it has signed; signs no more.
    Old,
    /// As an old one, but whoever lives by it shall renew now.
    Tainted,
}

impl AuthorityState {
    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
        }
    }
}

/// One step in the life of the authorities, or a look at them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CaStep {
    /// Looks.
    Show {},
    /// Makes the next one and publishes it: trusted, signing nothing yet.
    Prepare {},
    /// Lets the prepared one sign. Refused while a living agent does not have it in force.
    Activate {
        /// … unless it was published so many seconds ago.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after_s: Option<u32>,
        /// … or this is said.
        #[serde(default)]
        force: bool,
    },
    /// Tells everyone who lives by an old one to renew now.
    Taint {
        /// SHA-256 of its certificate.
        id: Digest,
    },
    /// Ends trust in one that does not sign. Refused while a device or a workload lives by it.
    Revoke {
        /// SHA-256 of its certificate.
        id: Digest,
        /// … unless this is said.
        #[serde(default)]
        force: bool,
    },
}

impl CaStep {
    /// The verb that policy judges.
    pub fn action(&self) -> Action {
        match self {
            Self::Show {} => Action::Read,
            Self::Prepare {} => Action::Write,
            Self::Activate { .. } => Action::Activate,
            Self::Taint { .. } | Self::Revoke { .. } => Action::Revoke,
        }
    }

    /// The operation's word in the record.
    pub fn op(&self) -> &'static str {
        match self {
            Self::Show {} => "ca_show",
            Self::Prepare {} => "ca_prepare",
            Self::Activate { .. } => "ca_activate",
            Self::Taint { .. } => "ca_taint",
            Self::Revoke { .. } => "ca_revoke",
        }
    }
}

/// What an agent has in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleHeld {
    /// The sequence of the bundle that is on its disk and told to its workloads.
    pub sequence: u64,
    /// Identities that it knows to be alive under a tainted authority, its own included.
    pub tainted: u32,
}

/// One root of the trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRoot {
    /// DER, base64.
    pub certificate: String,
    /// Whoever lives by it shall renew now.
    #[serde(default)]
    pub tainted: bool,
}

/// One authority, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthoritySummary {
    /// SHA-256 of its certificate; join tokens name it so.
    pub id: Digest,
    /// Where it stands.
    pub state: AuthorityState,
    /// When it was published, RFC 3339; like the others.
    pub prepared: String,
    /// When it began to sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activated: Option<String>,
    /// When it signed no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
    /// When it was tainted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tainted: Option<String>,
    /// Its own end.
    pub until: String,
    /// Who stands above it; none for a root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamSummary>,
    /// Devices whose latest certificate is of it and may be alive.
    pub agents: u64,
    /// People, likewise.
    pub operators: u64,
}

/// Who stands above an authority, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamSummary {
    /// The serial number of the authority's certificate, hexadecimal: what whoever signed it revokes.
    pub serial: String,
    /// SHA-256 of each root that is published for it.
    pub roots: Vec<Digest>,
}

/// An agent that must be waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDevice {
    /// Its id.
    pub id: DeviceId,
    /// Its class.
    pub class: DeviceClass,
    /// Its word for people.
    pub name: String,
}

/// All authorities, and who lives by them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaStanding {
    /// Raised by each change.
    pub sequence: u64,
    /// Them, the younger before the older.
    pub authorities: Vec<AuthoritySummary>,
    /// Those that are trusted no more, with the moment.
    pub revoked: Vec<(Digest, String)>,
    /// Agents that may be alive.
    pub live: u64,
    /// Of those, how many have this sequence in force.
    pub acknowledged: u64,
    /// Identities that those agents know to be alive under a tainted authority.
    pub tainted: u64,
    /// The first of those that have not.
    pub pending: Vec<PendingDevice>,
}
