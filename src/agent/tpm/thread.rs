//! The one thread that speaks with a TPM, and the bounded queue before it.
//!
//! Whoever asks waits: a task of a runtime with several workers gives its worker back first, so that
//! nothing else stands still meanwhile. After some seconds without a command the TPM is let go of.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::error::TpmError;
use super::link::Link;
use super::place::Place;
use crate::model::limits::TPM_QUEUE;

/// The longest wait for one piece of work: others may stand before it.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Keys stay loaded for so long after the last command.
const IDLE: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce(&mut Link) + Send>;

/// The threads of this process: a TPM without a resource manager takes one caller at a time.
static THREADS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

struct Inner {
    queue: SyncSender<Work>,
    place: Place,
}

/// A TPM that is asked through its own thread. All that name the same place share it; the thread
/// ends with the last of them.
#[derive(Clone)]
pub struct Tpm(Arc<Inner>);

impl Tpm {
    /// The thread of a place, which is started if there is none. The TPM is not spoken to before
    /// the first piece of work.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn at(place: &Place) -> Result<Self, TpmError> {
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| thread.strong_count() > 0);
        let living = threads.iter().filter_map(Weak::upgrade).find(|it| it.place == *place);
        if let Some(living) = living {
            return Ok(Self(living));
        }
        let (queue, works) = sync_channel(TPM_QUEUE);
        let link = Link::new(place.clone());
        std::thread::Builder::new()
            .name("tpm".to_owned())
            .spawn(move || serve(link, &works))
            .map_err(|_| TpmError::Gone)?;
        let started = Arc::new(Inner { queue, place: place.clone() });
        threads.push(Arc::downgrade(&started));
        Ok(Self(started))
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Has one piece of work done, and waits for it.
    ///
    /// # Errors
    /// What the work says; too many that wait already; no answer in time.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Link) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let (tell, told) = sync_channel(1);
        let work: Work = Box::new(move |link| {
            // Nobody may be waiting any more.
            let _ = tell.send(work(link));
        });
        self.0.queue.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => TpmError::Busy,
            TrySendError::Disconnected(_) => TpmError::Gone,
        })?;
        off_the_worker(|| match told.recv_timeout(WAIT_MAX) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(TpmError::Late),
            Err(RecvTimeoutError::Disconnected) => Err(TpmError::Gone),
        })
    }
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tpm({})", self.0.place)
    }
}

fn serve(mut link: Link, works: &Receiver<Work>) {
    loop {
        match works.recv_timeout(IDLE) {
            Ok(work) => {
                // A panic in one piece of work is its own: the next one finds the TPM opened anew.
                let done = std::panic::AssertUnwindSafe(|| work(&mut link));
                if std::panic::catch_unwind(done).is_err() {
                    link.close();
                }
            }
            Err(RecvTimeoutError::Timeout) => link.close(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Waits without holding up a worker's other tasks. A runtime of one thread has no other worker:
/// there everything waits, so `app` gives an agent with a key in a TPM another one.
fn off_the_worker<T>(wait: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}
