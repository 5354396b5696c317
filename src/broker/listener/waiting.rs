//! Answers that their clients do not take at once: how much of them may wait in memory.
//!
//! A rate bounds how many answers are made in a second, not how large they are, and a client need
//! not read them. Whatever goes over the bound is dropped, and its stream reset.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::model::limits::{WAITING_KIB, WAITING_KIB_PER_CONNECTION};

/// The room of one port.
pub(super) struct Waiting(Arc<Semaphore>);

/// The room of one connection, within that of its port.
pub(super) struct WaitingHere {
    port: Arc<Semaphore>,
    here: Semaphore,
}

/// Room for one answer, given back on drop.
pub(super) struct Room<'a> {
    _port: SemaphorePermit<'a>,
    _here: SemaphorePermit<'a>,
}

impl Waiting {
    pub(super) fn of_a_port() -> Self {
        Self(Arc::new(Semaphore::new(WAITING_KIB)))
    }

    pub(super) fn of_a_connection(&self) -> WaitingHere {
        let here = Semaphore::new(WAITING_KIB_PER_CONNECTION);
        WaitingHere { port: self.0.clone(), here }
    }
}

impl WaitingHere {
    /// Room for so many bytes, if there is.
    pub(super) fn room(&self, bytes: usize) -> Option<Room<'_>> {
        let kib = bytes.div_ceil(1024).max(1);
        let share = |most: usize| u32::try_from(kib.min(most)).unwrap_or(u32::MAX);
        let port = self.port.try_acquire_many(share(WAITING_KIB)).ok()?;
        let here = self.here.try_acquire_many(share(WAITING_KIB_PER_CONNECTION)).ok()?;
        Some(Room { _port: port, _here: here })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_on_a_connection_and_on_the_port() {
        let port = Waiting::of_a_port();
        let one = port.of_a_connection();
        let kib = 1024;
        let held: Vec<_> = std::iter::from_fn(|| one.room(kib * kib)).collect();
        assert_eq!(held.len(), WAITING_KIB_PER_CONNECTION / kib);
        let two = port.of_a_connection();
        let alone = two.room(2 * WAITING_KIB_PER_CONNECTION * kib).expect("one large answer");
        assert!(two.room(1).is_none(), "and nothing beside it");
        drop((held, alone));
        assert!(one.room(1).is_some() && two.room(1).is_some(), "what was taken makes room");

        let many: Vec<_> = (0..WAITING_KIB).map(|_| port.of_a_connection()).collect();
        let held: Vec<_> = many.iter().map_while(|one| one.room(8 * kib * kib)).collect();
        assert_eq!(held.len(), WAITING_KIB / (8 * kib));
        assert!(many[held.len()].room(1).is_none());
    }
}
