//! After a backup was restored, or at any start: what the decision log knows of revocations counts
//! even if the store has forgotten it. It never lowers an epoch and never brings anything back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::authorities::Member;
use super::error::AuthorityError;
use super::issuers::fresh;
use super::mirror::{Mirror, Step};
use super::records::{DeniedOf, DeniedRecord, DeviceRecord, EntryRecord, FORMAT};
use super::room::Authority;
use crate::identity::Caller;
use crate::model::{
    Ask, AuthorityState, CaStep, DeviceId, Digest, EntryId, FederationStep, Moment, RelationshipId,
    Serial, SpiffeId,
};

/// The least that epochs must be. As JSON it stands in the record of each revocation; merged over
/// the log it is what [`Authority::raise_epochs`] takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochFloor {
    /// Devices that were revoked, at the epoch that this gave them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<DeviceId, u64>,
    /// Entries that were revoked or resumed, at their epoch then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: BTreeMap<EntryId, u64>,
    /// Entries that were deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub deleted: BTreeSet<EntryId>,
    /// SVIDs that were revoked one by one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub svids: BTreeSet<DeniedSvid>,
    /// Authorities that were revoked.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub authorities: BTreeSet<Digest>,
    /// Relationships with other trust domains that were ended.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub federations: BTreeSet<RelationshipId>,
}

/// One SVID that was revoked, as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeniedSvid {
    /// Its serial number.
    pub serial: Serial,
    /// Whose it is.
    pub of: DeniedOf,
    /// Its end, in seconds since 1970.
    pub until: i64,
}

impl EpochFloor {
    /// Takes the higher of both for each.
    pub fn merge(&mut self, other: Self) {
        for (id, epoch) in other.devices {
            let held = self.devices.entry(id).or_default();
            *held = epoch.max(*held);
        }
        for (id, epoch) in other.entries {
            let held = self.entries.entry(id).or_default();
            *held = epoch.max(*held);
        }
        self.deleted.extend(other.deleted);
        self.svids.extend(other.svids);
        self.authorities.extend(other.authorities);
        self.federations.extend(other.federations);
    }

    /// Forgets the revoked SVIDs that have ended by themselves.
    pub fn forget_ended(&mut self, now: Moment) {
        self.svids.retain(|svid| svid.until > now.unix_s());
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let of_epochs = self.devices.is_empty() && self.entries.is_empty();
        let of_svids = self.deleted.is_empty() && self.svids.is_empty();
        let of_domains = self.authorities.is_empty() && self.federations.is_empty();
        of_epochs && of_svids && of_domains
    }
}

impl Authority {
    /// The epochs that a revoking ask, just carried out, has left behind: what its record in the
    /// log must carry. Empty for every other ask.
    pub fn epochs_after(&self, caller: &Caller, ask: &Ask) -> EpochFloor {
        let mirror = self.mirror();
        match ask {
            Ask::DeviceRevoke { id, .. } => of_devices(&mirror, |other, _| other == id),
            Ask::OperatorRemove { name } => of_operator(&mirror, name),
            Ask::EntryDelete { id, .. } if mirror.entry(id).is_none() => {
                EpochFloor { deleted: BTreeSet::from([*id]), ..EpochFloor::default() }
            }
            Ask::Revoke { spiffe_id, .. } => of_identity(&mirror, spiffe_id),
            Ask::RevokeSvid { spiffe_id, serial } => {
                of_svids(&mirror, &DeniedOf::SpiffeId(spiffe_id.clone()), [serial])
            }
            Ask::Retract { svids } => caller.device().map_or_else(EpochFloor::default, |device| {
                let serials = svids.iter().map(|svid| &svid.serial);
                of_svids(&mirror, &DeniedOf::Device(*device), serials)
            }),
            Ask::Ca(CaStep::Revoke { id, .. })
                if mirror.authorities().is_ok_and(|row| row.revoked.contains_key(id)) =>
            {
                EpochFloor { authorities: BTreeSet::from([*id]), ..EpochFloor::default() }
            }
            Ask::Federation(FederationStep::Remove { id, .. })
                if mirror.federated().all().all(|it| it.record.id != *id) =>
            {
                EpochFloor { federations: BTreeSet::from([*id]), ..EpochFloor::default() }
            }
            _ => EpochFloor::default(),
        }
    }

    /// Raises whatever stands below the floor: such a device is revoked, such an entry suspended
    /// until an operator resumes it, a deleted one is gone, a revoked authority is trusted no more.
    /// If that one was to sign, the prepared one does, or a fresh one, which nobody knows yet: then
    /// all enrol anew. Called before the line opens; whether anything was raised.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn raise_epochs(&self, floor: &EpochFloor) -> Result<bool, AuthorityError> {
        let now = self.clock.now();
        let is_revoked = |id: &Digest| floor.authorities.contains(id);
        let members = self.mirror().authorities()?.members.clone();
        let coming = |it: &Member| it.state == AuthorityState::Prepared && !is_revoked(&it.id);
        let fresh = match is_revoked(&self.root_digest()) {
            true if members.iter().any(coming) => {
                tracing::error!("the authority that was to sign is revoked: the prepared one does");
                None
            }
            true => {
                tracing::error!("the authority that was to sign is revoked: another one signs now");
                Some(
                    fresh(&self.opening, AuthorityState::Active, self.mirror().wants_rs256(), now)
                        .map_err(AuthorityError::from)?,
                )
            }
            false => None,
        };
        let revoked: Vec<_> = floor.authorities.iter().copied().collect();
        let plan = |mirror: &Mirror| {
            let mut steps = raised(mirror, floor, now);
            let row = mirror.authorities()?.forget(&revoked, fresh.clone(), now.unix_s());
            steps.extend(row.map(Step::Authorities));
            let any = !steps.is_empty();
            Ok((steps, any))
        };
        self.change(None, plan).await.map(|(_, any)| any)
    }

    /// Voids every token: after a restore nobody knows which ones were spent. How many there were.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn void_tokens(&self) -> Result<usize, AuthorityError> {
        let plan = |mirror: &Mirror| {
            let keys = mirror.tokens().map(|(key, _)| Step::Token(*key, None));
            let steps: Vec<_> = keys.collect();
            let count = steps.len();
            Ok((steps, count))
        };
        self.change(None, plan).await.map(|(_, count)| count)
    }
}

fn raised(mirror: &Mirror, floor: &EpochFloor, now: Moment) -> Vec<Step> {
    let mut steps = Vec::new();
    for (id, least) in &floor.devices {
        let Some(record) = mirror.device(id).filter(|it| falls(it, *least)) else {
            continue;
        };
        let epoch = record.epoch.max(*least);
        steps.push(Step::Device(*id, DeviceRecord { epoch, revoked: true, ..record.clone() }));
    }
    for (id, least) in &floor.entries {
        if floor.deleted.contains(id) {
            continue;
        }
        let Some(record) = mirror.entry(id).filter(|it| it.entry.epoch < *least) else { continue };
        let mut next = EntryRecord { suspended: true, ..record.clone() };
        next.entry.epoch = *least;
        steps.push(Step::Entry(*id, Some(next)));
    }
    let ended = mirror.federated().all().filter(|it| floor.federations.contains(&it.record.id));
    steps.extend(ended.map(|it| Step::Federation(it.record.trust_domain.clone(), None)));
    let deleted = floor.deleted.iter().filter(|id| mirror.entry(id).is_some());
    steps.extend(deleted.map(|id| Step::Entry(*id, None)));
    let living = floor.svids.iter().filter(|svid| svid.until > now.unix_s());
    let records = living.map(|DeniedSvid { serial, of, until }| DeniedRecord {
        v: FORMAT,
        serial: serial.clone(),
        of: of.clone(),
        until: *until,
    });
    let missing = records.filter(|record| mirror.denied(&record.key()).is_none());
    steps.extend(missing.map(|record| Step::Denied(record.key(), Some(record))));
    steps
}

fn of_svids<'a>(
    mirror: &Mirror,
    of: &DeniedOf,
    serials: impl IntoIterator<Item = &'a Serial>,
) -> EpochFloor {
    let key = |serial: &Serial| {
        DeniedRecord { v: FORMAT, serial: serial.clone(), of: of.clone(), until: 0 }.key()
    };
    let found = serials.into_iter().filter_map(|serial| mirror.denied(&key(serial)));
    let svids = found.map(|DeniedRecord { serial, of, until, .. }| DeniedSvid {
        serial: serial.clone(),
        of: of.clone(),
        until: *until,
    });
    EpochFloor { svids: svids.collect(), ..EpochFloor::default() }
}

fn of_devices(mirror: &Mirror, which: impl Fn(&DeviceId, &DeviceRecord) -> bool) -> EpochFloor {
    let devices = mirror.devices().filter(|(id, record)| record.revoked && which(id, record));
    let devices = devices.map(|(id, record)| (*id, record.epoch)).collect();
    EpochFloor { devices, ..EpochFloor::default() }
}

fn of_operator(mirror: &Mirror, name: &str) -> EpochFloor {
    of_devices(mirror, |_, record| record.operator.as_deref() == Some(name))
}

fn of_identity(mirror: &Mirror, id: &SpiffeId) -> EpochFloor {
    if let Some(name) = id.path().strip_prefix("/doorward/operator/") {
        return of_operator(mirror, name);
    }
    if let Some(text) = id.path().strip_prefix("/doorward/agent/") {
        return match DeviceId::parse(text) {
            Ok(device) => of_devices(mirror, |other, _| *other == device),
            Err(_) => EpochFloor::default(),
        };
    }
    let entries = mirror.entries_of(id);
    let entries = entries.map(|record| (record.entry.id, record.entry.epoch)).collect();
    EpochFloor { entries, ..EpochFloor::default() }
}

/// Whether a device is to be ended by a revocation that gave it this epoch. One above it that has a TPM
/// came in again since: what was revoked then is dead by its epoch.
fn falls(record: &DeviceRecord, least: u64) -> bool {
    let came_again = record.resident().is_some() && record.epoch > least;
    record.epoch < least || !(record.revoked || came_again)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fake_store::{Room, draft, id, nobody};
    use super::*;
    use crate::model::{Answer, DeviceClass, EntryId};

    async fn entry(room: &Room, path: &str) -> EntryId {
        let made = room.authority.entry_create(&draft(path), Some(1), room.now()).await.unwrap();
        match made.answer {
            Answer::Entries { items, .. } => items[0].id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_came_in_again_by_its_tpm_since_is_not_ended_by_what_ended_it_before() {
        let room = crate::model::ManualClock::at(time::macros::datetime!(2026-11-23 12:00 UTC));
        let record = |epoch, revoked| {
            let class = crate::model::DeviceClass::parse("server").unwrap();
            let now = crate::model::Clock::now(&room);
            let digest = crate::model::Digest([1; 32]);
            let new = DeviceRecord::new(digest, class, "host", now);
            let (method, tier) = ("chips".to_owned(), crate::model::TpmTier::Tpm);
            let attestation_key = "00".to_owned();
            let by = crate::model::EnrolledBy::Tpm { method, ek: digest, attestation_key, tier };
            DeviceRecord { epoch, revoked, by: Some(by), ..new }
        };
        for (epoch, revoked, want) in [
            (1, false, true),
            (1, true, true),
            (2, false, true),
            (2, true, false),
            (3, false, false),
        ] {
            assert_eq!(falls(&record(epoch, revoked), 2), want, "{epoch} {revoked}");
        }
        assert!(falls(&DeviceRecord { by: None, ..record(3, false) }, 2), "no other comes again");
    }

    #[tokio::test]
    async fn what_was_revoked_after_the_backup_stays_revoked() {
        let room = Room::new().await;
        let class = DeviceClass::parse("server").unwrap();
        let ((gone, _), (kept, _)) = (room.device("server").await, room.device("server").await);
        let (a, b, c) =
            (entry(&room, "/a").await, entry(&room, "/b").await, entry(&room, "/c").await);
        let open = room.authority.operator_token("alice").await.unwrap();
        let backup = Arc::new(room.store.copy());

        let asks = [
            Ask::DeviceRevoke { class: class.clone(), id: gone, release: false },
            Ask::Revoke { spiffe_id: id("/a"), resume: false },
            Ask::EntryDelete { spiffe_id: id("/b"), id: b },
        ];
        room.authority.device_revoke(&class, &gone, false, Some(5), room.now()).await.unwrap();
        room.authority.revoke(&id("/a"), false, Some(6), room.now()).await.unwrap();
        let target = room.authority.locate(&asks[2], &nobody()).await.unwrap();
        room.authority.entry_delete(&target, Some(7), room.now()).await.unwrap();
        let mut floor = EpochFloor::default();
        for ask in &asks {
            let said = room.authority.epochs_after(&nobody(), ask);
            assert!(!said.is_empty(), "{ask:?}");
            let text = serde_json::to_string(&said).unwrap();
            floor.merge(serde_json::from_str(&text).unwrap());
        }
        assert!(!room.authority.raise_epochs(&floor).await.unwrap(), "the store has it all");

        let back = Room::over(backup, room.clock.clone(), room.key.clone()).await;
        assert!(!back.identity.view().devices[&gone].revoked, "the backup is older");
        assert!(back.authority.raise_epochs(&floor).await.unwrap());
        let view = back.identity.view();
        assert_eq!((view.devices[&gone].epoch, view.devices[&gone].revoked), (2, true));
        assert!(!view.devices[&kept].revoked);
        assert_eq!((view.entries[&a].epoch, view.entries[&a].suspended), (2, true));
        assert!(!view.entries.contains_key(&b));
        assert_eq!((view.entries[&c].epoch, view.entries[&c].suspended), (1, false));
        assert!(!back.authority.raise_epochs(&floor).await.unwrap(), "once is enough");

        assert_eq!(back.authority.void_tokens().await.unwrap(), 3, "spent ones too");
        assert_eq!(back.authority.void_tokens().await.unwrap(), 0);
        let key = super::super::fake_store::fresh_key();
        let late = back.authority.redeem(&key, "host", &open, None, back.now()).await;
        assert_eq!(late.unwrap_err().code, crate::model::Code::Denied);
    }

    #[tokio::test]
    async fn a_floor_lowers_nothing_and_makes_nothing() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let a = entry(&room, "/a").await;
        for _ in 0..3 {
            room.authority.revoke(&id("/a"), false, None, room.now()).await.unwrap();
        }
        let before = room.store.rows();
        let floor = EpochFloor {
            devices: BTreeMap::from([(DeviceId(crate::model::Digest::of(b"nobody")), 9)]),
            entries: BTreeMap::from([(a, 2), (EntryId::random(), 9)]),
            deleted: BTreeSet::from([EntryId::random()]),
            authorities: BTreeSet::from([crate::model::Digest::of(b"nobody")]),
            ..EpochFloor::default()
        };
        assert!(!room.authority.raise_epochs(&floor).await.unwrap());
        assert_eq!(room.store.rows(), before);
        assert!(!room.identity.view().devices[&device].revoked);
    }

    #[tokio::test]
    async fn a_device_in_the_floor_is_revoked_at_the_higher_of_both_epochs() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let at = |epoch| EpochFloor {
            devices: BTreeMap::from([(device, epoch)]),
            ..EpochFloor::default()
        };
        assert!(room.authority.raise_epochs(&at(0)).await.unwrap());
        let status = room.identity.view().devices[&device].clone();
        assert_eq!((status.epoch, status.revoked), (1, true));
        assert!(room.authority.raise_epochs(&at(7)).await.unwrap());
        assert_eq!(room.identity.view().devices[&device].epoch, 7);
    }

    #[test]
    fn floors_merge_to_the_higher_one() {
        let a = EntryId::random();
        let at = |epoch| EpochFloor { entries: BTreeMap::from([(a, epoch)]), ..Default::default() };
        let mut floor = at(5);
        floor.merge(at(3));
        assert_eq!(floor, at(5));
        floor.merge(at(7));
        assert_eq!(floor, at(7));
    }
}
