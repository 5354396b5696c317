//! Judging a verified SVID as of now: the re-check that every request begins with.
//!
//! A few look-ups and comparisons, no text, no signature, nothing allocated. It never fails and
//! never guesses: what is not known to be good gets a standing that policy denies. The worst
//! standing wins: a lost root before a revocation, a revocation before an expiry, so that the
//! record names it.

use super::caller::{CallerKind, Epochs, Standing};
use super::extension::SvidExtension;
use super::place::Place;
use super::trust::Trust;
use super::verify::VerifiedSvid;
use super::view::{DeniedFor, DeviceStatus, EntryStatus, View};
use crate::model::{DeviceClass, DeviceId, EntryId, Moment, Resident};

/// What recognising finds out about an SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) kind: CallerKind,
    pub(super) standing: Standing,
    pub(super) device: Option<(DeviceClass, DeviceId)>,
    pub(super) resident: Option<Resident>,
    pub(super) entry: Option<EntryId>,
    pub(super) epochs: Epochs,
}

/// Judges an SVID under a view, at a moment.
pub(super) fn judge(trust: &Trust, svid: &VerifiedSvid, now: Moment) -> Judged {
    let view = &*trust.view;
    let extension = svid.extension.as_ref();
    let device = extension.and_then(|ours| view.devices.get(&ours.device));
    let entry_id = extension.and_then(|ours| ours.entry);
    let entry = entry_id.and_then(|id| view.entries.get(&id));
    let found = Found { extension, device, entry };
    let (kind, fits) = found.kind(svid.place);
    let standing = match is_rooted(trust, svid) {
        false => Standing::Unknown,
        true if is_denied(view, svid) => Standing::SvidRevoked,
        true if !fits => Standing::Unknown,
        true => found.standing(kind).unwrap_or_else(|| dates(svid, now)),
    };
    Judged {
        kind,
        standing,
        resident: device.and_then(|known| known.resident),
        device: device.zip(extension).map(|(known, ours)| (known.class.clone(), ours.device)),
        entry: entry_id,
        epochs: Epochs {
            device: device.map_or(0, |known| known.epoch),
            entry: entry.map_or(0, |known| known.epoch),
        },
    }
}

/// Whether the keys behind the leaf are still trusted for its domain.
fn is_rooted(trust: &Trust, svid: &VerifiedSvid) -> bool {
    let by_root = trust.roots(svid.id.trust_domain()).is_some_and(|roots| roots.hold(&svid.root));
    let by_issuer = svid.extension.is_none() || trust.view.own_issuers.contains(&svid.issuer);
    by_root && by_issuer
}

fn is_denied(view: &View, svid: &VerifiedSvid) -> bool {
    let Some(denied) = view.denied.get(&svid.serial) else { return false };
    denied.iter().any(|whose| match whose {
        DeniedFor::Identity(id) => *id == *svid.id,
        DeniedFor::Device(device) => {
            svid.extension.as_ref().is_some_and(|ours| ours.device == *device)
        }
    })
}

/// What time says of an SVID.
pub(super) fn dates(svid: &VerifiedSvid, now: Moment) -> Standing {
    match (now.wall() < svid.window.from, now.wall() > svid.window.until) {
        (true, _) => Standing::NotYet,
        (_, true) => Standing::Expired,
        _ => Standing::Live,
    }
}

/// The extension with what the view knows of its device and entry.
struct Found<'f> {
    extension: Option<&'f SvidExtension>,
    device: Option<&'f DeviceStatus>,
    entry: Option<&'f EntryStatus>,
}

impl Found<'_> {
    /// The kind that the ID's place stands for, and whether the extension has the shape that such a
    /// certificate has. Who does not fit is a workload that nobody knows.
    fn kind(&self, place: Place) -> (CallerKind, bool) {
        let has_entry = self.extension.is_some_and(|ours| ours.entry.is_some());
        let is_person = self.device.map(|known| known.class.is_person());
        match (place, self.extension) {
            (Place::Foreign, _) => (CallerKind::Workload, true),
            (Place::Agent(id), Some(ours)) if ours.device == id && !has_entry => {
                (CallerKind::Agent, is_person != Some(true))
            }
            (Place::Operator, Some(_)) if !has_entry => {
                (CallerKind::Operator, is_person != Some(false))
            }
            (Place::Workload, Some(_)) => (CallerKind::Workload, has_entry),
            _ => (CallerKind::Workload, false),
        }
    }

    /// What device and entry say; `None` where they hold, or where there are none to ask for.
    fn standing(&self, kind: CallerKind) -> Option<Standing> {
        let ours = self.extension?;
        let device = self.device.map(|known| (known.revoked, known.epoch));
        let of_device = one(device, ours.device_epoch);
        let of_entry = match kind {
            CallerKind::Workload => {
                one(self.entry.map(|known| (known.suspended, known.epoch)), ours.entry_epoch)
            }
            _ => None,
        };
        match (of_device, of_entry) {
            (Some(Standing::Revoked), _) | (_, Some(Standing::Revoked)) => Some(Standing::Revoked),
            (one, other) => one.or(other),
        }
    }
}

/// One object: (dead, epoch) as it is known here, and the epoch that the certificate was issued at.
fn one(known: Option<(bool, u64)>, issued: u64) -> Option<Standing> {
    match known {
        None => Some(Standing::Unknown),
        Some((true, _)) => Some(Standing::Revoked),
        Some((false, epoch)) => match issued.cmp(&epoch) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(Standing::Revoked),
            std::cmp::Ordering::Greater => Some(Standing::Unknown), // the view is older than that
        },
    }
}
