//! The shared fate of records that are written together, and those who wait for it.
//!
//! When it is known, one waiter per thread is woken from outside; that one wakes its neighbours on
//! its own thread, where waking is cheap. A waiter that is dropped hands this duty on, so nobody is
//! forgotten.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};

/// Why a record could not be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No room, or only what is kept for operators. It may pass.
    #[error("the decision log's disk is full; make room, or ask an operator to")]
    Full,
    /// A write or sync failed, or the writer has ended. Final: the process must restart.
    #[error("the decision log can't be written any more; the process must restart")]
    Broken,
    /// Too many records wait. It may pass.
    #[error("the decision log's queue is full")]
    Busy,
}

/// How a batch ended: the index of its first record, or why there is none.
pub(super) type Outcome = Result<u64, RecordError>;

/// The shared fate of all records that are written together.
#[derive(Debug, Default)]
pub(super) struct Batch(Mutex<Fate>);

#[derive(Debug, Default)]
struct Fate {
    outcome: Option<Outcome>,
    /// Who waits, by slot, with the thread it was last polled on.
    waiting: Vec<Option<(ThreadId, Waker)>>,
    /// Threads whose waiters have all been woken.
    woken: Vec<ThreadId>,
}

impl Batch {
    /// One that about so many will wait for.
    pub(super) fn expecting(count: usize) -> Self {
        Self(Mutex::new(Fate { waiting: Vec::with_capacity(count), ..Fate::default() }))
    }

    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tells everyone; wakes one waiter of each thread. The first outcome counts.
    pub(super) fn conclude(&self, outcome: Outcome) {
        let mut fate = self.fate();
        fate.outcome.get_or_insert(outcome);
        let mut threads: Vec<ThreadId> = Vec::new();
        let mut first: Vec<Waker> = Vec::new();
        for slot in &mut fate.waiting {
            let is_first = slot.as_ref().is_some_and(|(thread, _)| !threads.contains(thread));
            if let Some((thread, waker)) = slot.take_if(|_| is_first) {
                threads.push(thread);
                first.push(waker);
            }
        }
        drop(fate);
        first.into_iter().for_each(Waker::wake);
    }

    /// The waiters that whoever was polled on `thread` has to wake, once per thread.
    fn neighbours(fate: &mut Fate, thread: ThreadId) -> Vec<Waker> {
        if fate.woken.contains(&thread) {
            return Vec::new();
        }
        fate.woken.push(thread);
        let mine = |slot: &mut Option<(ThreadId, Waker)>| {
            let is_mine = slot.as_ref().is_some_and(|(other, _)| *other == thread);
            if is_mine { slot.take().map(|(_, waker)| waker) } else { None }
        };
        fate.waiting.iter_mut().filter_map(mine).collect()
    }
}

/// Waits for one record to be durable; gives its index.
#[derive(Debug)]
pub(super) struct Wait {
    batch: Arc<Batch>,
    slot: u32,
    polled_on: Option<ThreadId>,
}

impl Wait {
    /// For the record in this slot of the batch.
    pub(super) fn new(batch: Arc<Batch>, slot: u32) -> Self {
        Self { batch, slot, polled_on: None }
    }

    fn place(&self) -> usize {
        usize::try_from(self.slot).unwrap_or(usize::MAX)
    }
}

impl Future for Wait {
    type Output = Result<u64, RecordError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let batch = Arc::clone(&self.batch);
        let mut fate = batch.fate();
        let Some(outcome) = fate.outcome else {
            let thread = thread::current().id();
            let place = self.place();
            if fate.waiting.len() <= place {
                fate.waiting.resize_with(place + 1, || None);
            }
            if let Some(slot) = fate.waiting.get_mut(place) {
                *slot = Some((thread, context.waker().clone()));
            }
            self.polled_on = Some(thread);
            return Poll::Pending;
        };
        let neighbours = match self.polled_on.take() {
            Some(thread) => Batch::neighbours(&mut fate, thread),
            None => Vec::new(), // never asked to be woken, so nobody counts on this one
        };
        drop(fate);
        neighbours.into_iter().for_each(Waker::wake);
        Poll::Ready(outcome.map(|first| first.saturating_add(u64::from(self.slot))))
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(thread) = self.polled_on else { return };
        let mut fate = self.batch.fate();
        let place = self.place();
        if let Some(slot) = fate.waiting.get_mut(place) {
            *slot = None;
        }
        if fate.outcome.is_some() {
            let neighbours = Batch::neighbours(&mut fate, thread);
            drop(fate);
            neighbours.into_iter().for_each(Waker::wake);
        }
    }
}
