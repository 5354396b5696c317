//! The newest changes of entries, by whom they concern, so that an agent is told these and not its
//! whole list. And the agents that wait for one.
//!
//! Bounded in number. What is forgotten, and what another start of the broker or a store that was
//! read anew may have changed, is never guessed at: whoever was behind reads its whole list once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::limits::{CHANGES_MAX, PUSH_MAX, PUSH_PER_DEVICE};
use crate::model::{DeviceClass, DeviceId, EntryId, StartId};

/// Whom an entry is for: a class, or one device of it.
pub(super) type Whom = (DeviceClass, Option<DeviceId>);

/// What one commit means to those that wait.
#[derive(Debug)]
pub(super) enum Touched {
    /// These entries, each with whom it is for.
    Entries(Vec<(Whom, EntryId)>),
    /// Nobody knows.
    All,
}

/// The newest changes.
#[derive(Debug)]
pub(super) struct Recent {
    pub(super) start: StartId,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    /// Revision and entry of each, in order.
    of: HashMap<Whom, Vec<(u64, EntryId)>>,
    count: usize,
    /// Nothing is known of what happened up to here.
    floor: u64,
}

impl Recent {
    /// Knows of nothing that happened up to `revision`.
    pub(super) fn from(revision: u64) -> Self {
        let changes = Changes { of: HashMap::new(), count: 0, floor: revision };
        Self { start: StartId::random(), changes: Mutex::new(changes) }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a commit; before anybody can see the state that it made.
    pub(super) fn note(&self, touched: &Touched, revision: u64) {
        let mut changes = self.changes();
        let news = match touched {
            Touched::Entries(news) => news.as_slice(),
            Touched::All => &[],
        };
        let is_full = changes.count.saturating_add(news.len()) > CHANGES_MAX;
        if is_full || matches!(touched, Touched::All) {
            *changes = Changes { of: HashMap::new(), count: 0, floor: revision };
            return;
        }
        for (whom, entry) in news {
            changes.of.entry(whom.clone()).or_default().push((revision, *entry));
            changes.count += 1;
        }
    }

    /// What concerned a device after `holds` and up to `now`, in order; `None` when that is not known.
    pub(super) fn since(
        &self,
        (class, device): (&DeviceClass, &DeviceId),
        holds: u64,
        now: u64,
    ) -> Option<Vec<(u64, EntryId)>> {
        let changes = self.changes();
        if holds < changes.floor || holds > now {
            return None;
        }
        let mut found = Vec::new();
        for only in [None, Some(*device)] {
            let Some(all) = changes.of.get(&(class.clone(), only)) else { continue };
            let first = all.partition_point(|(revision, _)| *revision <= holds);
            let newer = all.get(first..).unwrap_or_default().iter();
            found.extend(newer.take_while(|(revision, _)| *revision <= now));
        }
        found.sort_unstable();
        Some(found)
    }
}

/// Why nobody may wait any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowded {
    /// Too many of this device.
    Device,
    /// Too many in all.
    All,
}

/// Those that wait, by class and device, so that a change wakes no other.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Seats>);

#[derive(Debug, Default)]
struct Seats {
    of: HashMap<DeviceClass, HashMap<DeviceId, Seat>>,
    count: usize,
}

#[derive(Debug)]
struct Seat {
    bell: watch::Sender<()>,
    count: usize,
}

/// One that waits; dropping it ends that.
#[derive(Debug)]
pub struct Wait {
    class: DeviceClass,
    device: DeviceId,
    bell: watch::Receiver<()>,
    all: Arc<Waiting>,
}

impl Wait {
    /// Resolves when something has changed that concerns this device since the last time.
    pub async fn news(&mut self) {
        if self.bell.changed().await.is_err() {
            std::future::pending::<()>().await; // the seat lives as long as we do
        }
    }
}

impl Waiting {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat. What changes from now on is news.
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn enter(
        self: &Arc<Self>,
        class: &DeviceClass,
        device: &DeviceId,
    ) -> Result<Wait, Crowded> {
        let mut seats = self.seats();
        if seats.count >= PUSH_MAX {
            return Err(Crowded::All);
        }
        let of_class = seats.of.entry(class.clone()).or_default();
        let fresh = || Seat { bell: watch::channel(()).0, count: 0 };
        let seat = of_class.entry(*device).or_insert_with(fresh);
        if seat.count >= PUSH_PER_DEVICE {
            return Err(Crowded::Device);
        }
        seat.count += 1;
        let bell = seat.bell.subscribe();
        seats.count += 1;
        Ok(Wait { class: class.clone(), device: *device, bell, all: Arc::clone(self) })
    }

    /// Wakes those whom it concerns, once the new state can be seen; gives their number.
    pub(super) fn wake(&self, touched: &Touched) -> usize {
        let seats = self.seats();
        let mut woken = 0;
        let mut ring = |seat: &Seat| {
            seat.bell.send_replace(());
            woken += seat.count;
        };
        match touched {
            Touched::All => seats.of.values().flat_map(HashMap::values).for_each(ring),
            Touched::Entries(news) => {
                // One commit speaks of few entries; whoever is rung twice hears it once.
                for ((class, only), _) in news {
                    let Some(of_class) = seats.of.get(class) else { continue };
                    match only {
                        None => of_class.values().for_each(&mut ring),
                        Some(device) => of_class.get(device).into_iter().for_each(&mut ring),
                    }
                }
            }
        }
        woken
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.seats().count
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut seats = self.all.seats();
        seats.count = seats.count.saturating_sub(1);
        let Some(of_class) = seats.of.get_mut(&self.class) else { return };
        if let Some(seat) = of_class.get_mut(&self.device) {
            seat.count = seat.count.saturating_sub(1);
            if seat.count == 0 {
                of_class.remove(&self.device);
            }
        }
        if of_class.is_empty() {
            seats.of.remove(&self.class);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn class(name: &str) -> DeviceClass {
        DeviceClass::parse(name).unwrap()
    }

    fn device(n: u8) -> DeviceId {
        DeviceId(Digest([n; 32]))
    }

    fn touched(class_name: &str, only: Option<u8>) -> (Touched, EntryId) {
        let id = EntryId::random();
        (Touched::Entries(vec![((class(class_name), only.map(device)), id)]), id)
    }

    #[test]
    fn only_what_concerns_a_device_is_told_in_order() {
        let recent = Recent::from(10);
        let mut ids = Vec::new();
        for (revision, (of, only)) in
            [("server", None), ("server", Some(1)), ("laptop", None), ("server", Some(2))]
                .into_iter()
                .enumerate()
        {
            let (touched, id) = touched(of, only);
            recent.note(&touched, 11 + u64::try_from(revision).unwrap());
            ids.push(id);
        }
        let since = |n, holds, now| recent.since((&class("server"), &device(n)), holds, now);
        assert_eq!(since(1, 10, 14).unwrap(), [(11, ids[0]), (12, ids[1])]);
        assert_eq!(since(2, 10, 14).unwrap(), [(11, ids[0]), (14, ids[3])]);
        assert_eq!(since(2, 11, 14).unwrap(), [(14, ids[3])]);
        assert_eq!(since(2, 10, 13).unwrap(), [(11, ids[0])], "what nobody can see yet");
        assert_eq!(since(1, 14, 14).unwrap(), []);
        assert_eq!(since(1, 9, 14), None, "from before it was watched");
        assert_eq!(since(1, 15, 14), None, "a revision that never was");
        recent.note(&Touched::All, 20);
        assert_eq!(since(1, 14, 20), None, "nobody knows what changed");
        assert_eq!(since(1, 20, 20).unwrap(), []);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_never_half_told() {
        let recent = Recent::from(0);
        let last = u64::try_from(CHANGES_MAX).unwrap();
        for revision in 1..=last {
            recent.note(&touched("server", Some(1)).0, revision);
        }
        let since = |holds, now| recent.since((&class("server"), &device(1)), holds, now);
        assert_eq!(since(0, last).unwrap().len(), CHANGES_MAX);
        recent.note(&touched("server", Some(2)).0, last + 1);
        assert_eq!(recent.changes().count, 0);
        assert_eq!(since(last, last + 1), None);
        assert_eq!(since(last + 1, last + 1).unwrap(), []);
    }

    #[tokio::test]
    async fn a_change_wakes_whom_it_concerns_and_nobody_else() {
        use futures_util::FutureExt as _;
        let all = Arc::new(Waiting::default());
        let mut one = all.enter(&class("server"), &device(1)).unwrap();
        let mut two = all.enter(&class("server"), &device(2)).unwrap();
        let mut laptop = all.enter(&class("laptop"), &device(3)).unwrap();
        let mut heard =
            || [&mut one, &mut two, &mut laptop].map(|wait| wait.news().now_or_never().is_some());
        assert_eq!(heard(), [false; 3]);
        assert_eq!(all.wake(&touched("server", Some(2)).0), 1);
        assert_eq!(heard(), [false, true, false]);
        assert_eq!(heard(), [false; 3], "once");
        assert_eq!(all.wake(&touched("laptop", Some(2)).0), 0, "a device of another class");
        assert_eq!(all.wake(&touched("server", None).0), 2);
        assert_eq!(heard(), [true, true, false]);
        assert_eq!(all.wake(&Touched::All), 3);
        assert_eq!(heard(), [true; 3]);
        drop((one, two, laptop));
        assert_eq!((all.count(), all.seats().of.len()), (0, 0), "nothing is left behind");
    }

    #[test]
    fn a_device_takes_no_more_than_its_seats() {
        let all = Arc::new(Waiting::default());
        let enter = |n| all.enter(&class("server"), &device(n));
        let mut held: Vec<_> = (0..PUSH_PER_DEVICE).map(|_| enter(1).unwrap()).collect();
        assert_eq!(enter(1).unwrap_err(), Crowded::Device);
        assert!(enter(2).is_ok());
        held.pop();
        assert!(enter(1).is_ok());
    }
}
