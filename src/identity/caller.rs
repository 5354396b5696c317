//! A peer as it stands now.

use std::sync::Arc;

use time::OffsetDateTime;

use super::extension::Holder;
use super::peer::Task;
use super::verify::VerifiedSvid;
use crate::model::{DeviceClass, DeviceId, Digest, EntryId, Resident, Serial, SpiffeId};

/// Whether the identity counts, at the moment of recognising.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Everything holds.
    Live,
    /// Past its notAfter.
    Expired,
    /// Before its notBefore.
    NotYet,
    /// Its entry or device was revoked, or its epoch is an old one.
    Revoked,
    /// This one certificate was revoked, by its serial number.
    SvidRevoked,
    /// Its trust domain, device or entry is not known here (any more).
    Unknown,
}

/// What sort of caller it is; decided by identity alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    /// `/doorward/agent/<device id>`
    Agent,
    /// On the enrolment port.
    Applicant,
    /// The broker's own work.
    Broker(Task),
    /// `/doorward/operator/<name>`
    Operator,
    /// Anything else with an SVID, ours or of a federated domain.
    Workload,
}

/// The counters that revocation raises, as they stood when the caller was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epochs {
    /// Of the device; 0 where none is known.
    pub device: u64,
    /// Of the registration entry; 0 where there is none.
    pub entry: u64,
}

/// What a caller showed on the wire.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// A self-signed key.
    Key(Arc<[u8]>),
    /// Nothing: the broker itself.
    Own,
    /// An X.509-SVID.
    Svid(Arc<VerifiedSvid>),
}

/// A recognised peer. There is no way to make one but [`super::Identity::recognise`].
///
/// ```compile_fail
/// fn forge(caller: doorward::identity::Caller) -> doorward::identity::Caller {
///     doorward::identity::Caller { standing: doorward::identity::Standing::Live, ..caller }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Caller {
    pub(super) id: Arc<SpiffeId>,
    pub(super) kind: CallerKind,
    pub(super) standing: Standing,
    pub(super) device: Option<(DeviceClass, DeviceId)>,
    /// That device's key is held by a TPM.
    pub(super) resident: Option<Resident>,
    pub(super) entry: Option<EntryId>,
    pub(super) holder: Option<Holder>,
    pub(super) epochs: Epochs,
    pub(super) proof: Proof,
    /// The number of what it was recognised under; 0 where that says nothing.
    pub(super) under: u64,
}

impl Caller {
    /// Its SPIFFE ID: the subject of policy.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What sort of caller.
    pub fn kind(&self) -> CallerKind {
        self.kind
    }

    /// Whether the identity counts.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The device that the identity was issued to, if one of our own certificates says so and the
    /// device is known.
    pub fn device(&self) -> Option<&DeviceId> {
        self.device.as_ref().map(|(_, id)| id)
    }

    /// That device's class.
    pub fn class(&self) -> Option<&DeviceClass> {
        self.device.as_ref().map(|(class, _)| class)
    }

    /// Where the device's key is held by a TPM: that key, and what stands behind it.
    pub fn resident(&self) -> Option<Resident> {
        self.resident
    }

    /// The registration entry that the identity came from.
    pub fn entry(&self) -> Option<EntryId> {
        self.entry
    }

    /// Whether a connection of this caller is known to come from its device: its key was made for a
    /// process that the agent attested, and never left that agent's memory. Not so a key that was
    /// given out, nor the device's own, which lies in a file: both can be copied.
    pub fn is_colocated(&self) -> bool {
        self.kind == CallerKind::Workload
            && self.device.is_some()
            && self.holder == Some(Holder::Agent)
    }

    /// Whether the key is the agent's or the workload's own.
    pub fn holder(&self) -> Option<Holder> {
        self.holder
    }

    /// The epochs that it was recognised under.
    pub fn epochs(&self) -> Epochs {
        self.epochs
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> Option<&Serial> {
        self.svid().map(VerifiedSvid::serial)
    }

    /// SHA-256 of the certificate.
    pub fn certificate(&self) -> Option<Digest> {
        self.svid().map(VerifiedSvid::certificate)
    }

    /// The key that the handshake proved, as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> Option<&[u8]> {
        match &self.proof {
            Proof::Key(spki) => Some(spki),
            Proof::Own => None,
            Proof::Svid(svid) => Some(svid.spki()),
        }
    }

    /// End of the certificate, or of an issuer's if that comes first.
    pub fn not_after(&self) -> Option<OffsetDateTime> {
        self.svid().map(VerifiedSvid::not_after)
    }

    /// Whether another trust domain vouches for it.
    pub fn is_foreign(&self) -> bool {
        self.svid().is_some_and(VerifiedSvid::is_foreign)
    }

    fn svid(&self) -> Option<&VerifiedSvid> {
        match &self.proof {
            Proof::Svid(svid) => Some(svid),
            Proof::Key(_) | Proof::Own => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::sample;

    #[test]
    fn samples_are_what_they_are_asked_to_be() {
        let device = DeviceId::of_key(b"device");
        let class = DeviceClass::parse("server").unwrap();
        let workload = || {
            let device = Some((class.clone(), device));
            let id = "spiffe://corp.example/ns/pay";
            sample::caller(id, CallerKind::Workload, Standing::Live, device)
        };
        assert_eq!(workload().device(), Some(&device));
        assert_eq!(workload().holder(), Some(Holder::Workload));
        assert_eq!(workload().certificate(), workload().certificate());
        assert!(workload().serial().is_some() && workload().not_after().is_some());
        let entry = EntryId::random();
        let entered = sample::with_entry(workload(), entry, 4);
        assert_eq!(
            (entered.entry(), entered.epochs()),
            (Some(entry), Epochs { device: 1, entry: 4 })
        );
        let epochs = Epochs { device: 5, entry: 6 };
        assert_eq!(sample::with_epochs(workload(), epochs).epochs(), epochs);
        let agents = sample::with_holder(workload(), Holder::Agent);
        assert_eq!(agents.holder(), Some(Holder::Agent));
        let task = CallerKind::Broker(Task::Retention);
        let id = "spiffe://corp.example/doorward/task/retention";
        let broker = sample::caller(id, task, Standing::Live, None);
        assert!(broker.spki().is_none() && broker.serial().is_none());
        let id = "spiffe://corp.example/doorward/applicant";
        let applicant = sample::caller(id, CallerKind::Applicant, Standing::Live, None);
        assert!(applicant.spki().is_some() && applicant.serial().is_none());
    }
}
