//! The hand-over between those who decide and the one thread that writes.
//!
//! Records are laid one behind the other into the very buffer that goes to the disk. All records of
//! one batch share one outcome.
//!
//! When to sync is decided by those who hand over. A thread that is about to wait ([`before_park`])
//! has nothing more to bring: the writer goes at once. While all of them are busy, more is coming,
//! and the writer lets a gap pass so that it shares one sync, unless enough are there: while those
//! are synced, the next ones are judged.

use std::cell::{Cell, RefCell};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

pub use super::batch::RecordError;
use super::batch::{Batch, Wait};
use super::frame::HEADER;
use super::tiles::push_entry;
use crate::model::RequestId;
use crate::model::limits::{LOG_BATCH_BYTES, LOG_ENOUGH, LOG_QUEUE};

/// How long the writer looks by itself after the last record, before somebody has to wake it: under
/// load nobody ever does.
const DOZE: Duration = Duration::from_millis(2);

/// Bytes of a buffer that is kept for the next batch; a larger one was an exception.
const BUFFER_KEPT: usize = LOG_BATCH_BYTES / 4;

/// Whose record it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// Must leave the reserve alone.
    Ordinary,
    /// An operator's, the broker's own: may use the reserve.
    Reserved,
}

/// Records on their way to the disk.
#[derive(Debug)]
pub(super) struct Load {
    /// Room for the batch's header, then the records with their lengths.
    pub(super) frame: Vec<u8>,
    /// Records in it.
    pub(super) count: u32,
    /// Which requests they belong to, by slot.
    pub(super) requests: Vec<(RequestId, u32)>,
    /// Whether any of them must leave the reserve alone.
    pub(super) ordinary: bool,
    /// Their common fate.
    pub(super) batch: Arc<Batch>,
}

impl Load {
    fn new() -> Self {
        let batch = Arc::default();
        let frame = vec![0; HEADER];
        Self { frame, count: 0, requests: Vec::new(), ordinary: false, batch }
    }

    /// Empties it for the next use; the buffers stay.
    pub(super) fn reset(&mut self) {
        if self.frame.capacity() > BUFFER_KEPT {
            self.frame = Vec::new();
        }
        self.frame.clear();
        self.frame.resize(HEADER, 0);
        let batch = Arc::new(Batch::expecting(self.requests.len()));
        self.requests.clear();
        (self.count, self.ordinary, self.batch) = (0, false, batch);
    }

    /// Adds a record that nobody waits for. False when it is too long.
    pub(super) fn push(&mut self, record: &[u8]) -> bool {
        let fits = push_entry(&mut self.frame, record);
        self.count = self.count.saturating_add(u32::from(fits));
        fits
    }
}

/// A writer that falls leaves nobody waiting.
impl Drop for Load {
    fn drop(&mut self) {
        self.batch.conclude(Err(RecordError::Broken));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing,
    Broken,
}

/// What the writer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    /// Not waiting.
    Awake,
    /// Waiting, but not for long: it looks by itself.
    Dozing,
    /// Waiting until somebody wakes it.
    Asleep,
}

#[derive(Debug)]
struct Inbox {
    load: Load,
    writer: Writing,
    /// Somebody has nothing more to bring.
    hurry: bool,
    state: State,
}

thread_local! {
    /// Whether this thread says when it is about to wait.
    static PARKS: Cell<bool> = const { Cell::new(false) };
    /// The queue that it has handed records to since it last did.
    static HANDED: RefCell<Option<Arc<Queue>>> = const { RefCell::new(None) };
}

/// For a runtime's thread to call whenever it is about to wait for something to happen: whatever it
/// had to hand over is handed over. A thread that never calls this hurries the writer with every
/// record.
pub fn before_park() {
    PARKS.set(true);
    if let Some(queue) = HANDED.take() {
        queue.hurry();
    }
}

/// What the writer finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Records, now in the load.
    Records,
    /// Nothing for a while.
    Idle,
    /// Nothing, and nothing will come any more.
    End,
    /// Somebody else has found a final fault.
    Broken,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    inbox: Mutex<Inbox>,
    filled: Condvar,
    bytes_max: usize,
}

impl Queue {
    /// Takes at most `bytes_max` bytes at once.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (load, writer) = (Load::new(), Writing::Awake);
        let inbox = Inbox { load, writer, hurry: false, state: State::Open };
        Self { inbox: Mutex::new(inbox), filled: Condvar::new(), bytes_max }
    }

    /// An empty load, for the writer to swap.
    pub(super) fn spare(&self) -> Load {
        Load::new()
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Hands a record over.
    ///
    /// # Errors
    /// `Busy` when too many wait; `Broken` when nobody writes any more.
    pub(super) fn submit(
        self: &Arc<Self>,
        record: &[u8],
        request: Option<RequestId>,
        rank: Rank,
    ) -> Result<Wait, RecordError> {
        let mut inbox = self.lock();
        if inbox.state != State::Open {
            return Err(RecordError::Broken);
        }
        let load = &mut inbox.load;
        let slot = load.count;
        let full = usize::try_from(slot).is_ok_and(|count| count >= LOG_QUEUE);
        if full || load.frame.len().saturating_add(record.len() + 2) > self.bytes_max {
            return Err(RecordError::Busy);
        }
        if !load.push(record) {
            return Err(RecordError::Busy);
        }
        load.ordinary |= rank == Rank::Ordinary;
        load.requests.extend(request.map(|id| (id, slot)));
        let batch = Arc::clone(&load.batch);
        let parks = PARKS.get();
        inbox.hurry |= !parks || inbox.load.count >= LOG_ENOUGH;
        self.wake(inbox);
        if parks {
            HANDED.with_borrow_mut(|handed| {
                handed.get_or_insert_with(|| Arc::clone(self));
            });
        }
        Ok(Wait::new(batch, slot))
    }

    /// Whoever handed over has nothing more.
    fn hurry(&self) {
        let mut inbox = self.lock();
        inbox.hurry = inbox.load.count > 0;
        self.wake(inbox);
    }

    /// Wakes the writer if it is to look now.
    fn wake(&self, mut inbox: MutexGuard<'_, Inbox>) {
        let wake = match inbox.writer {
            Writing::Awake => false,
            Writing::Dozing => inbox.hurry,
            Writing::Asleep => true,
        };
        if wake {
            inbox.writer = Writing::Awake;
            drop(inbox);
            self.filled.notify_one();
        }
    }

    /// Swaps the waiting records for the empty `load`. Waits up to `tick` when there are none; when
    /// more are coming, up to `gap`, so that they share one sync.
    pub(super) fn take(&self, load: &mut Load, gap: Duration, tick: Duration) -> Found {
        let mut inbox = self.lock();
        let waits = [(Writing::Dozing, DOZE.min(tick)), (Writing::Asleep, tick)];
        for (writer, time) in waits {
            if inbox.load.count == 0 && inbox.state == State::Open {
                inbox = self.wait(inbox, writer, time);
            }
        }
        if !inbox.hurry && inbox.state == State::Open && !gap.is_zero() && inbox.load.count > 0 {
            inbox = self.wait(inbox, Writing::Dozing, gap);
        }
        match (inbox.state, inbox.load.count) {
            (State::Broken, _) => Found::Broken,
            (State::Open, 0) => Found::Idle,
            (State::Closing, 0) => Found::End,
            _ => {
                inbox.hurry = false;
                mem::swap(&mut inbox.load, load);
                Found::Records
            }
        }
    }

    fn wait<'a>(
        &self,
        mut inbox: MutexGuard<'a, Inbox>,
        writer: Writing,
        time: Duration,
    ) -> MutexGuard<'a, Inbox> {
        inbox.writer = writer;
        let mut inbox = match self.filled.wait_timeout(inbox, time) {
            Ok((inbox, _)) => inbox,
            Err(poisoned) => poisoned.into_inner().0,
        };
        inbox.writer = Writing::Awake;
        inbox
    }

    /// No more records; those that wait are still written.
    pub(super) fn close(&self) {
        let mut inbox = self.lock();
        if inbox.state == State::Open {
            inbox.state = State::Closing;
        }
        drop(inbox);
        self.filled.notify_all();
    }

    /// Final: whoever waits, and whoever comes, is refused.
    pub(super) fn break_down(&self) {
        let mut inbox = self.lock();
        inbox.state = State::Broken;
        let batch = Arc::clone(&inbox.load.batch);
        inbox.load.reset();
        drop(inbox);
        batch.conclude(Err(RecordError::Broken));
        self.filled.notify_all();
    }

    /// Whether records are taken.
    pub(super) fn is_open(&self) -> bool {
        self.lock().state == State::Open
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Outcome;
    use super::*;
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counter() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count(AtomicUsize::new(0)));
        (Arc::clone(&count), Waker::from(count))
    }

    fn poll(wait: &mut Wait, waker: &Waker) -> Poll<Outcome> {
        Pin::new(wait).poll(&mut Context::from_waker(waker))
    }

    #[test]
    fn one_wake_a_thread_and_the_woken_one_wakes_the_rest() {
        let queue = Arc::new(Queue::new(4096));
        let (count, waker) = counter();
        let mut waits: Vec<_> =
            (0..3).map(|_| queue.submit(b"x", None, Rank::Ordinary).unwrap()).collect();
        for wait in &mut waits {
            assert_eq!(poll(wait, &waker), Poll::Pending);
        }
        let mut load = queue.spare();
        assert_eq!(queue.take(&mut load, Duration::ZERO, Duration::ZERO), Found::Records);
        load.batch.conclude(Ok(10));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut waits[0], &waker), Poll::Ready(Ok(10)));
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
        assert_eq!(poll(&mut waits[2], &waker), Poll::Ready(Ok(12)));
        assert_eq!(count.0.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_dropped_waiter_hands_its_duty_on() {
        let queue = Arc::new(Queue::new(4096));
        let (count, waker) = counter();
        let mut first = queue.submit(b"x", None, Rank::Ordinary).unwrap();
        let mut second = queue.submit(b"y", None, Rank::Ordinary).unwrap();
        assert!(poll(&mut first, &waker).is_pending() && poll(&mut second, &waker).is_pending());
        let mut load = queue.spare();
        queue.take(&mut load, Duration::ZERO, Duration::ZERO);
        load.batch.conclude(Err(RecordError::Full));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        drop(first);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert_eq!(poll(&mut second, &waker), Poll::Ready(Err(RecordError::Full)));
    }

    /// How long the writer took to take what `hand_over` handed over.
    fn taken(queue: &Arc<Queue>, gap: Duration, hand_over: impl FnOnce()) -> Duration {
        let began = std::time::Instant::now();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut load = queue.spare();
                assert_eq!(queue.take(&mut load, gap, LONG), Found::Records);
                began.elapsed()
            });
            hand_over();
            writer.join().unwrap()
        })
    }

    /// Nothing here may wait so long.
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn who_is_about_to_wait_hurries_the_writer_and_who_is_busy_lets_it_wait() {
        let queue = Arc::new(Queue::new(4096));
        let submit = || drop(queue.submit(b"x", None, Rank::Ordinary).unwrap());
        assert!(taken(&queue, LONG, submit) < LONG, "a thread that never says when it waits");
        before_park();
        let gap = Duration::from_millis(50);
        let busy = taken(&queue, gap, submit);
        assert!(busy >= gap, "{busy:?}");
        before_park(); // of a batch that is gone: nothing
        let parked = taken(&queue, LONG, || {
            submit();
            before_park();
        });
        assert!(parked < LONG, "{parked:?}");
    }

    #[test]
    fn no_record_is_forgotten_whenever_it_comes() {
        let queue = Arc::new(Queue::new(4096));
        before_park();
        for round in 0..400 {
            let hand_over = || {
                // Somewhere between the writer's first look and long after it fell asleep.
                let until = std::time::Instant::now() + DOZE * (round % 5) / 2;
                while std::time::Instant::now() < until {
                    std::hint::spin_loop();
                }
                drop(queue.submit(b"x", None, Rank::Ordinary).unwrap());
                if round % 2 == 0 {
                    before_park();
                }
            };
            assert!(taken(&queue, Duration::from_micros(100), hand_over) < LONG / 2);
        }
    }

    #[test]
    fn a_writer_that_falls_leaves_nobody_waiting() {
        let queue = Arc::new(Queue::new(4096));
        let (count, waker) = counter();
        let mut wait = queue.submit(b"x", None, Rank::Ordinary).unwrap();
        assert!(poll(&mut wait, &waker).is_pending());
        let fell = std::panic::catch_unwind(|| {
            let mut load = queue.spare();
            queue.take(&mut load, Duration::ZERO, Duration::ZERO);
            panic!("in the middle of a batch");
        });
        assert!(fell.is_err());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(&mut wait, &waker), Poll::Ready(Err(RecordError::Broken)));
    }

    #[test]
    fn the_queue_is_bounded_in_number_and_bytes() {
        let queue = Arc::new(Queue::new(1 << 20));
        for _ in 0..LOG_QUEUE {
            queue.submit(b"", None, Rank::Ordinary).unwrap();
        }
        assert_eq!(queue.submit(b"", None, Rank::Ordinary).unwrap_err(), RecordError::Busy);
        let small = Arc::new(Queue::new(HEADER + 12));
        assert!(small.submit(&[0; 10], None, Rank::Ordinary).is_ok());
        assert_eq!(small.submit(b"", None, Rank::Ordinary).unwrap_err(), RecordError::Busy);
    }

    #[test]
    fn the_end_refuses_everyone() {
        let queue = Arc::new(Queue::new(4096));
        let (_, waker) = counter();
        let mut wait = queue.submit(b"x", None, Rank::Ordinary).unwrap();
        queue.break_down();
        assert_eq!(poll(&mut wait, &waker), Poll::Ready(Err(RecordError::Broken)));
        assert_eq!(queue.submit(b"x", None, Rank::Reserved).unwrap_err(), RecordError::Broken);
        let queue = Arc::new(Queue::new(4096));
        let _wait = queue.submit(b"x", None, Rank::Ordinary).unwrap();
        queue.close();
        let mut load = queue.spare();
        assert_eq!(queue.take(&mut load, Duration::ZERO, Duration::ZERO), Found::Records);
        load.reset();
        assert_eq!(queue.take(&mut load, Duration::ZERO, Duration::ZERO), Found::End);
    }
}
