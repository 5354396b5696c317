//! Which agents hold the entries as they stand, and which have not said so yet.
//!
//! A revocation is in force at this broker when it is answered, whatever any agent knows. An agent
//! that has not heard of it shows its processes for a while what they were given before; those that
//! may do so are named to whoever revokes. An agent says what it holds with each ask for its duties.
//! Nothing is decided by this: it never lets anybody in and never keeps anybody out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::mirror::Mirror;
use super::room::Authority;
use crate::model::limits::{AGENT_TTL, LAST_SEEN_STEP, PENDING_LISTED};
use crate::model::{Answer, DeviceId, Entry, Failure, Moment, PendingAgent, Released};

/// The revision of the entries that each device's agent holds; bounded by the devices.
#[derive(Debug, Default)]
pub(super) struct Confirmed(Mutex<HashMap<DeviceId, u64>>);

impl Confirmed {
    /// An agent says what it holds. What this store has not reached yet is of another one, and says
    /// nothing.
    pub(super) fn note(&self, device: DeviceId, holds: Option<u64>, mirror: &Mirror) {
        let Some(holds) = holds.filter(|holds| *holds <= mirror.entries_revision) else { return };
        if mirror.device(&device).is_some() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(device, holds);
        }
    }

    /// What an agent said last.
    pub(super) fn of(&self, device: &DeviceId) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(device).copied()
    }
}

impl Authority {
    /// The answer to a revocation of what these entries gave, which stands since `revision`.
    pub(super) fn revoked(&self, entries: &[Entry], revision: u64, now: Moment) -> Answer {
        let mirror = self.mirror();
        // Its certificate has ended by then, and it is nobody's agent until it comes back.
        let window = i64::try_from((AGENT_TTL + LAST_SEEN_STEP).as_secs()).unwrap_or(i64::MAX);
        let since = now.unix_s().saturating_sub(window);
        let concerned = mirror.devices().filter(|(id, device)| {
            !device.revoked
                && !device.class.is_person()
                && device.last_seen >= since
                && entries.iter().any(|entry| entry.is_for(&device.class, id))
                && self.confirmed.of(id).is_none_or(|holds| holds < revision)
        });
        let mut pending: Vec<_> = concerned
            .map(|(id, device)| PendingAgent { device: *id, name: device.name.clone() })
            .collect();
        let count = u64::try_from(pending.len()).unwrap_or(u64::MAX);
        pending.sort_by_key(|agent| agent.device);
        pending.truncate(PENDING_LISTED);
        Answer::Revoked { revision, pending, count }
    }

    /// The same as the outcome of a change.
    pub(super) fn revoked_done(
        &self,
        changed: (u64, Vec<Entry>),
        now: Moment,
    ) -> Result<Released, Failure> {
        let (revision, entries) = changed;
        Ok(Released::head(self.revoked(&entries, revision, now)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::fake_store::{Room, draft, id, nobody};
    use super::*;
    use crate::identity::{Caller, CallerKind, Standing, sample};
    use crate::model::{Ask, DeviceClass, EntryDraft};

    fn agent(device: DeviceId, class: &str) -> Caller {
        let name = format!("spiffe://corp.example/doorward/agent/{device}");
        let class = DeviceClass::parse(class).unwrap();
        sample::caller(&name, CallerKind::Agent, Standing::Live, Some((class, device)))
    }

    async fn revoke(room: &Room, path: &str) -> (u64, Vec<DeviceId>, u64) {
        let asked = room.authority.revoke(&id(path), false, Some(3), room.now()).await.unwrap();
        told(asked.answer)
    }

    fn told(answer: Answer) -> (u64, Vec<DeviceId>, u64) {
        match answer {
            Answer::Revoked { revision, pending, count } => {
                (revision, pending.into_iter().map(|agent| agent.device).collect(), count)
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn agents_are_pending_until_they_say_that_they_hold_it() {
        let room = Room::new().await;
        let (one, _) = room.device("server").await;
        let (two, _) = room.device("server").await;
        let (laptop, _) = room.device("laptop").await;
        room.authority.entry_create(&draft("/all"), None, room.now()).await.unwrap();
        let only = EntryDraft { device: Some(two), ..draft("/one") };
        room.authority.entry_create(&only, None, room.now()).await.unwrap();
        let holds = |device, class: &str, revision| {
            let asked = room.authority.duties(&agent(device, class), None, Some(revision), None);
            assert!(asked.is_ok());
        };
        let both = if one < two { vec![one, two] } else { vec![two, one] };
        let (revision, pending, count) = revoke(&room, "/all").await;
        assert_eq!((pending, count), (both, 2), "a laptop has no such entry");
        assert_eq!(revoke(&room, "/one").await.1, [two], "an entry for one device");

        let before = room.authority.revoked(&[], revision, room.now());
        assert_eq!(told(before).1, [], "nobody is waited for where nothing was ended");
        let entries: Vec<_> = {
            let mirror = room.authority.mirror();
            let all = mirror.entries().filter(|it| it.entry.draft.device.is_none());
            all.map(|it| it.entry.clone()).collect()
        };
        let waiting = || told(room.authority.revoked(&entries, revision, room.now())).1;
        holds(one, "server", revision - 1);
        holds(laptop, "laptop", revision);
        assert_eq!(waiting().len(), 2, "an older state confirms nothing");
        holds(one, "server", revision + 100);
        assert_eq!(waiting().len(), 2, "nor does one that never was");
        holds(one, "server", revision);
        assert_eq!(waiting(), [two]);
        room.clock.advance(AGENT_TTL + LAST_SEEN_STEP + Duration::from_secs(1));
        assert_eq!(waiting(), [], "whoever stays away has no certificate left");
    }

    #[tokio::test]
    async fn the_end_of_an_entry_and_of_a_device_name_whom_they_concern() {
        let room = Room::new().await;
        let (one, _) = room.device("server").await;
        let made = room.authority.entry_create(&draft("/a"), None, room.now()).await.unwrap();
        let Answer::Entries { items, .. } = made.answer else { panic!("{:?}", made.answer) };
        let ask = Ask::EntryDelete { spiffe_id: id("/a"), id: items[0].id };
        let target = room.authority.locate(&ask, &nobody()).await.unwrap();
        let done = room.authority.entry_delete(&target, None, room.now()).await.unwrap();
        assert_eq!(told(done.answer).1, [one]);
        let class = DeviceClass::parse("server").unwrap();
        let done =
            room.authority.device_revoke(&class, &one, false, None, room.now()).await.unwrap();
        assert_eq!(told(done.answer).2, 0, "it is refused already");
    }
}
