//! Records that are no decisions.

use crate::model::{DeviceId, Digest, Reason, RequestId};

/// A record that is no decision.
#[derive(Debug)]
pub enum Note {
    /// Something that a person must look at.
    Alarm {
        /// A word for it.
        what: &'static str,
        /// What, where, how to mend it.
        detail: String,
    },
    /// A last batch that was not whole was cut; nobody had been answered on its strength.
    Gap {
        /// Bytes of it.
        cut_bytes: u64,
    },
    /// A change of identities: what a grant for the authority did.
    Identity {
        /// Under which request.
        request: RequestId,
        /// A word for it.
        what: &'static str,
        /// The rest, as JSON.
        detail: serde_json::Value,
    },
    /// A grant was not carried out, or its outcome was not released.
    NotReleased {
        /// Which request.
        request: RequestId,
        /// Index of its record; none where the grant was counted in a summary.
        index: Option<u64>,
        /// Why.
        reason: Reason,
    },
    /// The facts behind an evidence digest.
    Posture {
        /// Whose.
        device: DeviceId,
        /// The digest that decisions name.
        evidence: Digest,
        /// The facts, as JSON.
        facts: serde_json::Value,
        /// Profiles that hold now and did not before.
        held: Vec<String>,
        /// Profiles that held before and do not now.
        lost: Vec<String>,
    },
    /// What was counted instead of being recorded one by one.
    Summary {
        /// Who, or a network prefix.
        caller: String,
        /// What.
        what: &'static str,
        /// How often, in the minute before.
        count: u64,
    },
    /// The first record of every start.
    Unsealed {
        /// Kind of the seal.
        seal: String,
        /// Revision that the store stood at.
        store_revision: u64,
    },
}
