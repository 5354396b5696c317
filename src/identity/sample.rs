//! Callers for the tests of other rooms, which can't make one by themselves.

use std::sync::Arc;

use time::macros::datetime;

use super::caller::{Caller, CallerKind, Epochs, Proof, Standing};
use super::extension::Holder;
use super::peer::{Peer, SvidPeer};
use super::place::Place;
use super::verify::{VerifiedSvid, Window};
use crate::model::{DeviceClass, DeviceId, Digest, EntryId, Serial, SpiffeId};

/// A caller of any kind and standing. Holders of SVIDs come with a serial number, a certificate
/// digest, a key and an end (2030-01-01); everything is derived from the ID, so two calls agree.
///
/// # Panics
/// When `id` is not a SPIFFE ID.
pub(crate) fn caller(
    id: &str,
    kind: CallerKind,
    standing: Standing,
    device: Option<(DeviceClass, DeviceId)>,
) -> Caller {
    let id = Arc::new(SpiffeId::parse(id).expect("a sample's SPIFFE ID"));
    let spki: Arc<[u8]> = format!("key of {id}").into_bytes().into();
    let proof = match kind {
        CallerKind::Applicant => Proof::Key(spki),
        CallerKind::Broker(_) => Proof::Own,
        _ => Proof::Svid(Arc::new(svid(&id, spki))),
    };
    let holder = device.as_ref().map(|_| match kind {
        CallerKind::Agent => Holder::Agent,
        _ => Holder::Workload,
    });
    let epochs = Epochs { device: u64::from(device.is_some()), entry: 0 };
    Caller {
        id,
        kind,
        standing,
        device,
        resident: None,
        entry: None,
        holder,
        epochs,
        proof,
        under: 0,
    }
}

/// A living workload with the peer that it comes as, `foreign` or of our own trust domain.
///
/// # Panics
/// When `id` is not a SPIFFE ID.
pub(crate) fn visitor(id: &str, foreign: bool) -> (Peer, Caller) {
    let id = Arc::new(SpiffeId::parse(id).expect("a sample's SPIFFE ID"));
    let mut svid = svid(&id, format!("key of {id}").into_bytes().into());
    if foreign {
        svid.place = Place::Foreign;
    }
    let svid = Arc::new(svid);
    let (kind, standing) = (CallerKind::Workload, Standing::Live);
    let proof = Proof::Svid(Arc::clone(&svid));
    let epochs = Epochs::default();
    let caller = Caller {
        id,
        kind,
        standing,
        device: None,
        entry: None,
        holder: None,
        resident: None,
        epochs,
        proof,
        under: 0,
    };
    (Peer::Svid(SvidPeer(svid)), caller)
}

/// The same caller, out of this registration entry at this epoch.
pub(crate) fn with_entry(caller: Caller, entry: EntryId, epoch: u64) -> Caller {
    let epochs = Epochs { entry: epoch, ..caller.epochs };
    Caller { entry: Some(entry), epochs, ..caller }
}

/// The same caller with this key.
pub(crate) fn with_key(caller: Caller, spki: &[u8]) -> Caller {
    Caller { proof: Proof::Svid(Arc::new(svid(&caller.id, spki.into()))), ..caller }
}

/// The same caller under other epochs.
pub(crate) fn with_epochs(caller: Caller, epochs: Epochs) -> Caller {
    Caller { epochs, ..caller }
}

/// The same caller with a key held by somebody else.
pub(crate) fn with_holder(caller: Caller, holder: Holder) -> Caller {
    Caller { holder: Some(holder), ..caller }
}

fn svid(id: &Arc<SpiffeId>, spki: Arc<[u8]>) -> VerifiedSvid {
    let digest = Digest::of(id.as_str().as_bytes());
    let until = datetime!(2030-01-01 00:00 UTC);
    VerifiedSvid {
        id: Arc::clone(id),
        place: Place::of(id),
        serial: Serial(digest.0[..16].into()),
        certificate: digest,
        spki,
        not_after: until,
        window: Window { from: datetime!(2020-01-01 00:00 UTC), until },
        issuer: Digest([0; 32]),
        root: Digest([0; 32]),
        extension: None,
    }
}
