//! What an object's name points at right now, found without using any key.

use uuid::Uuid;

use super::device::Digest;
use super::enrolment::Shown;
use super::ids::EntryId;

/// What a request's object is at the moment of deciding. Absence is a value, not an error: it ends
/// in a recorded answer like everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The object needs no look-up (policy, log, seal, the caller's own device, …).
    Itself,
    /// Nothing is there under this name.
    Absent,
    /// The store did not say what is there: never allowed, whatever the rules say.
    Unknown,
    /// An entry whose identity was revoked: nothing is issued from it, whatever the rules say.
    Revoked,
    /// One version of a secret.
    Secret {
        /// The secret's immutable id.
        uuid: Uuid,
        /// The version that is meant: the active one unless the request names another.
        version: u64,
        /// SHA-256 of the stored ciphertext; zero where no version is meant.
        digest: Digest,
    },
    /// A registration entry, at its present epoch.
    Entry {
        /// Its id.
        id: EntryId,
        /// Raised by each revocation.
        epoch: u64,
    },
    /// Evidence that a device wants to report.
    Evidence {
        /// Whether the facts are, to the byte, those already held: such a report is counted in a
        /// summary instead of being recorded one by one.
        unchanged: bool,
    },
    /// What an applicant brought in place of a join token. One that does not hold is as nothing.
    Shown(Shown),
}

impl Target {
    /// Whether nothing is there that anybody could be allowed to have.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent | Self::Shown(Shown::Fault(..)))
    }
}
