//! SVIDs that are revoked one by one: by an operator, or by the agent whose process is no more.
//!
//! What is kept is whose SVID of which serial number is dead, until that one would have ended by
//! itself. An operator's word counts for the identity that he named, an agent's for its own device:
//! nobody ends by a number what he may not end. It never brings anything back.

use std::collections::BTreeMap;

use super::mirror::{Mirror, Step};
use super::records::{DeniedKey, DeniedOf, DeniedRecord, FORMAT};
use super::room::Authority;
use crate::identity::{Caller, CallerKind};
use crate::model::limits::{
    DENIED_MAX, DENIED_PER_DEVICE, DENIED_SWEPT, RETRACT_MAX, SVID_TTL, SVID_TTL_MAX,
};
use crate::model::{Failure, Moment, Released, RetractedSvid, Serial, SpiffeId};

impl Authority {
    /// Ends one SVID of a workload. Who has it is not known here: any SVID with this serial number
    /// and this identity in it is dead, until the longest-lived one would have ended.
    pub(super) async fn revoke_svid(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        if id.trust_domain() != &self.domain {
            let hint = format!("only identities of {} are revoked here", self.domain);
            return Err(Failure::invalid(hint));
        }
        if id.is_reserved() {
            let hint = "devices and operators end as a whole: leave out the serial number";
            return Err(Failure::invalid(hint));
        }
        let of = DeniedOf::SpiffeId(id.clone());
        self.change_done(under, |mirror| {
            let of_id = mirror.entries_of(id);
            let default = i64::try_from(SVID_TTL.as_secs()).unwrap_or(i64::MAX);
            let ttl = of_id.map(|it| it.entry.draft.ttl_s.map_or(default, i64::from)).max();
            let ttl = ttl.ok_or_else(|| Failure::absent(format!("no entry gives {id}")))?;
            let until = now.unix_s().saturating_add(ttl);
            denying(mirror, &of, [(serial, until)], now)
        })
        .await
    }

    /// Ends SVIDs that were issued to the caller's own device. Those that have ended by themselves
    /// are passed over.
    pub(super) async fn retract(
        &self,
        caller: &Caller,
        svids: &[RetractedSvid],
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let (CallerKind::Agent, Some(device)) = (caller.kind(), caller.device()) else {
            return Err(Failure::invalid("only a device's agent takes back what was issued to it"));
        };
        if svids.is_empty() || svids.len() > RETRACT_MAX {
            return Err(Failure::invalid(format!("`svids` has 1 to {RETRACT_MAX} of them")));
        }
        let of = DeniedOf::Device(*device);
        let longest = i64::try_from(SVID_TTL_MAX.as_secs()).unwrap_or(i64::MAX);
        let last = now.unix_s().saturating_add(longest);
        let ends = || svids.iter().map(|svid| (&svid.serial, svid.until.min(last)));
        self.change_done(under, |mirror| denying(mirror, &of, ends(), now)).await
    }
}

/// The steps that make these SVIDs dead, and that forget some of those that have ended meanwhile.
fn denying<'a>(
    mirror: &Mirror,
    of: &DeniedOf,
    svids: impl IntoIterator<Item = (&'a Serial, i64)>,
    now: Moment,
) -> Result<Vec<Step>, Failure> {
    let mut fresh: BTreeMap<DeniedKey, DeniedRecord> = BTreeMap::new();
    for (serial, until) in svids {
        let record = DeniedRecord { v: FORMAT, serial: serial.clone(), of: of.clone(), until };
        let held = mirror.denied(&record.key()).or_else(|| fresh.get(&record.key()));
        // A later end counts, an earlier one would only shorten what stands.
        if until > now.unix_s() && held.is_none_or(|held| held.until < until) {
            fresh.insert(record.key(), record);
        }
    }
    if fresh.is_empty() {
        return Ok(Vec::new());
    }
    check_room(mirror, of, fresh.len(), now)?;
    let swept = ended(mirror, now).filter(|key| !fresh.contains_key(key)).take(DENIED_SWEPT);
    let mut steps: Vec<_> = swept.map(|key| Step::Denied(key.clone(), None)).collect();
    steps.extend(fresh.into_iter().map(|(key, record)| Step::Denied(key, Some(record))));
    Ok(steps)
}

/// The revoked SVIDs that have ended by themselves.
pub(super) fn ended(mirror: &Mirror, now: Moment) -> impl Iterator<Item = &DeniedKey> {
    let dead = move |record: &DeniedRecord| record.until <= now.unix_s();
    mirror.all_denied().filter(move |(_, record)| dead(record)).map(|(key, _)| key)
}

fn check_room(mirror: &Mirror, of: &DeniedOf, fresh: usize, now: Moment) -> Result<(), Failure> {
    let living = mirror.all_denied().filter(|(_, record)| record.until > now.unix_s());
    let (mut all, mut own) = (0_usize, 0_usize);
    for (_, record) in living {
        all = all.saturating_add(1);
        own = own.saturating_add(usize::from(record.of == *of));
    }
    if all.saturating_add(fresh) > DENIED_MAX {
        return Err(Failure::too_large(format!(
            "{DENIED_MAX} single SVIDs are revoked already: revoke the identity or the device"
        )));
    }
    if own.saturating_add(fresh) > DENIED_PER_DEVICE {
        return Err(Failure::too_large(format!(
            "{DENIED_PER_DEVICE} single SVIDs of one device or identity are revoked already: \
             revoke it as a whole"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::fake_store::{Room, draft, id, nobody};
    use super::super::restore::EpochFloor;
    use super::*;
    use crate::identity::{DeniedFor, Standing, sample};
    use crate::model::{Answer, Ask, Code, DeviceClass, DeviceId, EntryDraft};

    fn serial(n: usize) -> Serial {
        Serial::parse(&format!("01{n:08x}")).unwrap()
    }

    fn agent(device: DeviceId) -> Caller {
        let name = format!("spiffe://corp.example/doorward/agent/{device}");
        let class = DeviceClass::parse("server").unwrap();
        sample::caller(&name, CallerKind::Agent, Standing::Live, Some((class, device)))
    }

    fn denied(room: &Room, n: usize) -> Vec<DeniedFor> {
        room.identity.view().denied.get(&serial(n)).cloned().unwrap_or_default()
    }

    async fn retract(
        room: &Room,
        device: DeviceId,
        numbers: impl IntoIterator<Item = usize>,
        until: i64,
    ) -> Result<(), Failure> {
        let one = |n| RetractedSvid { serial: serial(n), until };
        let svids: Vec<_> = numbers.into_iter().map(one).collect();
        let done = room.authority.retract(&agent(device), &svids, Some(3), room.now()).await?;
        assert!(matches!(done.answer, Answer::Done { .. }));
        Ok(())
    }

    #[tokio::test]
    async fn one_svid_is_dead_for_its_identity_until_it_would_have_ended() {
        let room = Room::new().await;
        let long = EntryDraft { ttl_s: Some(7200), ..draft("/a") };
        room.authority.entry_create(&long, Some(1), room.now()).await.unwrap();
        let revoke = async |path, n| {
            room.authority.revoke_svid(&id(path), &serial(n), Some(2), room.now()).await
        };
        revoke("/a", 1).await.unwrap();
        assert_eq!(denied(&room, 1), [DeniedFor::Identity(id("/a"))]);
        assert_eq!(denied(&room, 2), []);
        let rows = room.store.rows();
        revoke("/a", 1).await.unwrap();
        assert_eq!(room.store.rows(), rows, "twice is once");
        for (path, code) in [("/b", Code::NotFound), ("/doorward/operator/a", Code::Invalid)] {
            assert_eq!(revoke(path, 3).await.unwrap_err().code, code, "{path}");
        }
        let again = room.again().await;
        assert_eq!(denied(&again, 1), [DeniedFor::Identity(id("/a"))], "a restart forgets nothing");

        room.clock.advance(Duration::from_secs(7199));
        revoke("/a", 4).await.unwrap();
        assert_eq!(denied(&room, 1).len(), 1, "not a second too early");
        room.clock.advance(Duration::from_secs(1));
        revoke("/a", 5).await.unwrap();
        assert_eq!(denied(&room, 1), [], "what has ended is forgotten");
        assert_eq!(denied(&room, 4).len(), 1);
    }

    #[tokio::test]
    async fn an_agent_ends_what_was_issued_to_its_own_device_and_nothing_else() {
        let room = Room::new().await;
        let ((one, _), (two, _)) = (room.device("server").await, room.device("server").await);
        let until = room.now().unix_s() + 60;
        retract(&room, one, [1, 2, 2], until).await.unwrap();
        assert_eq!(denied(&room, 1), [DeniedFor::Device(one)]);
        retract(&room, two, [1], until).await.unwrap();
        assert_eq!(denied(&room, 1), [DeniedFor::Device(one), DeniedFor::Device(two)]);

        let rows = room.store.rows();
        retract(&room, one, [7], room.now().unix_s()).await.unwrap();
        assert_eq!(room.store.rows(), rows, "what has ended needs nobody's word");
        let svids = [RetractedSvid { serial: serial(8), until }];
        let refused = room.authority.retract(&nobody(), &svids, None, room.now()).await;
        assert_eq!(refused.unwrap_err().code, Code::Invalid);
        for numbers in [0..0, 0..RETRACT_MAX + 1] {
            let refused = retract(&room, one, numbers, until).await.unwrap_err();
            assert_eq!(refused.code, Code::Invalid);
        }
        retract(&room, one, [9], i64::MAX).await.unwrap();
        let longest = room.authority.mirror().all_denied().map(|(_, it)| it.until).max().unwrap();
        assert_eq!(longest, room.now().unix_s() + 24 * 60 * 60, "no longer than any SVID lives");
    }

    #[tokio::test]
    async fn a_device_has_a_bounded_number_of_them_and_gets_room_again() {
        let room = Room::new().await;
        let ((device, _), (other, _)) = (room.device("server").await, room.device("server").await);
        let until = room.now().unix_s() + 60;
        for from in (0..DENIED_PER_DEVICE).step_by(RETRACT_MAX) {
            retract(&room, device, from..from + RETRACT_MAX, until).await.unwrap();
        }
        let refused = retract(&room, device, [DENIED_PER_DEVICE], until).await.unwrap_err();
        assert_eq!(refused.code, Code::TooLarge);
        retract(&room, other, [1], until).await.unwrap();
        room.clock.advance(Duration::from_secs(60));
        let until = until + 60;
        retract(&room, device, [DENIED_PER_DEVICE], until).await.unwrap();
        let left = room.authority.mirror().all_denied().len();
        assert_eq!(left, DENIED_PER_DEVICE + 2 - DENIED_SWEPT, "swept a bounded number at a time");
    }

    #[tokio::test]
    async fn a_store_that_is_older_than_the_log_learns_of_them_again() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        room.authority.entry_create(&draft("/a"), Some(1), room.now()).await.unwrap();
        let backup = Arc::new(room.store.copy());
        let until = room.now().unix_s() + 60;
        retract(&room, device, [1], until).await.unwrap();
        room.authority.revoke_svid(&id("/a"), &serial(2), Some(2), room.now()).await.unwrap();
        let asks = [
            Ask::Retract { svids: vec![RetractedSvid { serial: serial(1), until }] },
            Ask::RevokeSvid { spiffe_id: id("/a"), serial: serial(2) },
        ];
        let mut floor = EpochFloor::default();
        for ask in &asks {
            let said = room.authority.epochs_after(&agent(device), ask);
            assert!(!said.is_empty(), "{ask:?}");
            floor.merge(serde_json::from_str(&serde_json::to_string(&said).unwrap()).unwrap());
        }
        assert!(!room.authority.raise_epochs(&floor).await.unwrap(), "the store has them");
        let back = Room::over(backup, room.clock.clone(), room.key.clone()).await;
        assert_eq!(denied(&back, 1), []);
        assert!(back.authority.raise_epochs(&floor).await.unwrap());
        assert_eq!(denied(&back, 1), [DeniedFor::Device(device)]);
        assert_eq!(denied(&back, 2), [DeniedFor::Identity(id("/a"))]);

        back.clock.advance(Duration::from_secs(60));
        floor.forget_ended(back.now());
        assert_eq!(floor.svids.len(), 1, "the retracted one has ended by itself");
    }
}
