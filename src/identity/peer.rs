//! What stood on the wire. Only this folder can make one.

use std::sync::Arc;

use super::verify::VerifiedSvid;

/// The broker's own work: a closed set, made only by the supervisor, judged by a constant table and
/// recorded like everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Bundles of federated trust domains.
    Federation,
    /// The broker's own certificate.
    OwnIdentity,
    /// Forgetting tokens that have ended.
    Retention,
    /// The calendar of the authorities.
    Rotation,
}

impl Task {
    /// The last segment of its SPIFFE ID, `/doorward/task/<word>`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Federation => "federation",
            Self::OwnIdentity => "own-identity",
            Self::Retention => "retention",
            Self::Rotation => "rotation",
        }
    }
}

/// A peer with a verified SVID.
#[derive(Debug, Clone)]
pub struct SvidPeer(pub(super) Arc<VerifiedSvid>);

impl SvidPeer {
    /// The chain that it showed.
    pub fn svid(&self) -> &VerifiedSvid {
        &self.0
    }
}

/// A stranger on the enrolment port: nothing is known but that it holds this key.
#[derive(Debug, Clone)]
pub struct Applicant {
    pub(super) spki: Arc<[u8]>,
}

impl Applicant {
    /// The key that the TLS handshake proved, as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}

/// Whoever is at the other end.
///
/// ```compile_fail
/// use doorward::identity::{Applicant, Peer};
/// let forged = Peer::Applicant(Applicant { spki: [0_u8; 4].into() });
/// ```
///
/// ```compile_fail
/// fn forge(svid: doorward::identity::VerifiedSvid) -> doorward::identity::Peer {
///     doorward::identity::Peer::Svid(doorward::identity::SvidPeer(std::sync::Arc::new(svid)))
/// }
/// ```
#[derive(Debug, Clone)]
pub enum Peer {
    /// Holder of an X.509-SVID.
    Svid(SvidPeer),
    /// Holder of a key that is nobody yet.
    Applicant(Applicant),
    /// The broker itself.
    Broker(BrokerTask),
}

/// Proof that the supervisor made this peer.
#[derive(Debug, Clone)]
pub struct BrokerTask(pub(super) Task);

impl Peer {
    /// The broker as its own caller. Called by `app/supervise` only; tests/it/tidy.rs holds that.
    pub fn broker(task: Task) -> Self {
        Self::Broker(BrokerTask(task))
    }
}
