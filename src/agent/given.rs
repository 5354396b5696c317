//! SVIDs whose keys were given to processes: taken back when the process ends or becomes another.
//!
//! A key that the Workload API gave out lives on after its stream: what is watched here is the
//! process, by its pidfd and by a look each second, until the SVID has ended by itself. An ended one
//! is retracted at the broker, which refuses it from then on and closes its connections; what can't
//! be told to the broker waits, and is told before its end or never. Nothing is given to a process
//! that could not be watched. An agent that starts anew knows nothing of what the one before gave:
//! that ends by expiry.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::attest::{AttestError, Attested, Instance};
use super::issued::WorkloadError;
use super::shared::Shared;
use crate::model::limits::{
    GIVEN_PER_PROCESS, GIVEN_PROCESSES, GIVEN_PROCESSES_PER_UID, GIVEN_QUEUE, RETRACT_MAX,
};
use crate::model::{Ask, Clock, RetractedSvid, SecretValue, Serial};
use crate::wire::ClientError;

/// How often every process is looked at: for what no pidfd tells, above all another program in it.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks in a row that tell nothing count as an end.
const DOUBTS_MAX: u32 = 5;
/// One retraction at the broker.
const RETRACT_WITHIN: Duration = Duration::from_secs(10);
/// And after one that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// A process that holds SVIDs.
struct Process {
    who: Arc<Attested>,
    svids: VecDeque<RetractedSvid>,
    doubts: u32,
    forgotten: Arc<Notify>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.forgotten.notify_one(); // nobody waits for its end any more
    }
}

#[derive(Default)]
struct Held {
    processes: HashMap<Instance, Process>,
    /// Since the watcher last asked.
    fresh: Vec<Instance>,
    /// To be told to the broker, the oldest first.
    ended: VecDeque<RetractedSvid>,
}

/// Everything that was given out and lives.
pub(super) struct Given {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    held: Mutex<Held>,
    /// A process is to be watched.
    came: Notify,
    /// An SVID is to be retracted.
    went: Notify,
}

impl Given {
    pub(super) fn new(shared: Arc<Shared>, clock: Arc<dyn Clock>) -> Self {
        let (held, came, went) = (Mutex::default(), Notify::new(), Notify::new());
        Self { shared, clock, held, came, went }
    }

    /// Whether a process may be given more; asked before anything is issued for it.
    ///
    /// # Errors
    /// When there are too many processes with SVIDs, of one user or of all.
    pub(super) fn has_room(&self, who: &Attested) -> Result<(), WorkloadError> {
        let held = self.held();
        if held.processes.contains_key(&who.instance()) {
            return Ok(());
        }
        let uid = who.facts().uid;
        let own = held.processes.values().filter(|process| process.who.facts().uid == uid).count();
        if held.processes.len() >= GIVEN_PROCESSES || own >= GIVEN_PROCESSES_PER_UID {
            tracing::warn!(uid, "too many processes with SVIDs");
            return Err(WorkloadError::Unavailable("too many processes hold identities here"));
        }
        Ok(())
    }

    /// Remembers what is about to be given to a process. Beyond its share the oldest it has is taken
    /// back.
    pub(super) fn note(&self, who: &Arc<Attested>, serial: Serial, until: i64) {
        let instance = who.instance();
        let mut held = self.held();
        let Held { processes, fresh, ended } = &mut *held;
        let process = processes.entry(instance).or_insert_with(|| {
            fresh.push(instance);
            self.came.notify_one();
            let (who, svids, forgotten) = (who.clone(), VecDeque::new(), Arc::default());
            Process { who, svids, doubts: 0, forgotten }
        });
        let now_s = self.clock.now().unix_s();
        process.svids.retain(|svid| svid.until > now_s);
        process.svids.push_back(RetractedSvid { serial, until });
        if process.svids.len() > GIVEN_PER_PROCESS
            && let Some(oldest) = process.svids.pop_front()
        {
            queue(ended, [oldest]);
            self.went.notify_one();
        }
    }

    /// Watches every process, and tells the broker of those that have ended.
    pub(super) async fn watch(&self) -> Infallible {
        let (seeing, telling) = (self.see(), self.tell());
        tokio::select! {
            never = seeing => never,
            never = telling => never,
        }
    }

    async fn see(&self) -> Infallible {
        let mut ends = FuturesUnordered::new();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.came.notified() => {
                    let fresh = std::mem::take(&mut self.held().fresh);
                    for instance in fresh {
                        if let Some((pidfd, forgotten)) = self.pidfd(&instance) {
                            ends.push(ended(pidfd, forgotten, instance));
                        }
                    }
                }
                Some(instance) = ends.next(), if !ends.is_empty() => {
                    if let Some(instance) = instance {
                        self.end(&instance, "the process ended");
                    }
                }
                _ = looks.tick() => self.look().await,
            }
        }
    }

    fn pidfd(&self, instance: &Instance) -> Option<(AsyncFd<OwnedFd>, Arc<Notify>)> {
        let held = self.held();
        let process = held.processes.get(instance)?;
        Some((process.who.pidfd()?, process.forgotten.clone()))
    }

    /// Looks at all of them once.
    async fn look(&self) {
        let now_s = self.clock.now().unix_s();
        let all: Vec<_> = {
            let mut held = self.held();
            held.processes.retain(|_, process| {
                process.svids.retain(|svid| svid.until > now_s);
                !process.svids.is_empty()
            });
            held.ended.retain(|svid| svid.until > now_s);
            held.processes.iter().map(|(at, process)| (*at, process.who.clone())).collect()
        };
        if all.is_empty() {
            return;
        }
        let looking = tokio::task::spawn_blocking(move || {
            let look = |(at, who): (Instance, Arc<Attested>)| (at, who.still_same());
            all.into_iter().map(look).collect::<Vec<_>>()
        });
        for (instance, seen) in looking.await.unwrap_or_default() {
            match seen {
                Ok(()) => self.doubt(&instance, false),
                Err(AttestError::Gone) => self.end(&instance, "the process ended"),
                Err(AttestError::Changed) => self.end(&instance, "the process became another"),
                Err(_) => self.doubt(&instance, true),
            }
        }
    }

    fn doubt(&self, instance: &Instance, doubted: bool) {
        let mut held = self.held();
        let Some(process) = held.processes.get_mut(instance) else { return };
        process.doubts = if doubted { process.doubts.saturating_add(1) } else { 0 };
        let doubts = process.doubts;
        drop(held);
        if doubts >= DOUBTS_MAX {
            self.end(instance, "the process can't be looked at any more");
        }
    }

    fn end(&self, instance: &Instance, why: &'static str) {
        let mut held = self.held();
        let Some(mut process) = held.processes.remove(instance) else { return };
        let facts = process.who.facts();
        tracing::info!(pid = facts.pid, uid = facts.uid, svids = process.svids.len(), why);
        queue(&mut held.ended, std::mem::take(&mut process.svids));
        self.went.notify_one();
    }

    async fn tell(&self) -> Infallible {
        loop {
            let batch: Vec<_> = self.held().ended.iter().take(RETRACT_MAX).cloned().collect();
            if batch.is_empty() {
                self.went.notified().await;
                continue;
            }
            match self.retract(&batch).await {
                Ok(()) => self.held().ended.retain(|svid| !batch.contains(svid)),
                Err(why) => {
                    tracing::warn!(why, svids = batch.len(), "SVIDs are not retracted yet");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn retract(&self, batch: &[RetractedSvid]) -> Result<(), String> {
        let client = self.shared.client().ok_or("the agent is not connected")?;
        let asking = client.ask(Ask::Retract { svids: batch.to_vec() }, SecretValue::empty());
        match tokio::time::timeout(RETRACT_WITHIN, asking).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ClientError::Refused(refusal))) => Err(refusal.to_string()),
            Ok(Err(other)) => Err(other.to_string()),
            Err(_) => Err("the broker gave no answer in time".to_owned()),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

/// Puts them behind the others. Where there is no room, the one that would have waited longest is
/// left to its expiry.
fn queue(ended: &mut VecDeque<RetractedSvid>, svids: impl IntoIterator<Item = RetractedSvid>) {
    for svid in svids {
        if ended.len() >= GIVEN_QUEUE {
            ended.pop_front();
            tracing::warn!("too many SVIDs wait for the broker: the oldest ends by expiry");
        }
        ended.push_back(svid);
    }
}

/// Resolves when the process has ended; with nothing where nobody cares any more, or where it can't
/// be waited for, so that only the looks tell.
async fn ended(
    pidfd: AsyncFd<OwnedFd>,
    forgotten: Arc<Notify>,
    instance: Instance,
) -> Option<Instance> {
    tokio::select! {
        ready = pidfd.readable() => ready.is_ok().then_some(instance),
        () = forgotten.notified() => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Child, Command, Stdio};

    use time::macros::datetime;

    use super::super::attest::attest;
    use super::super::exe::ExeDigests;
    use super::*;
    use crate::model::{DeviceId, Digest, ManualClock};

    fn given() -> (Arc<ManualClock>, Given) {
        let clock = Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC)));
        let shared = Shared::new(DeviceId(Digest([1; 32])));
        (clock.clone(), Given::new(shared, clock))
    }

    fn serial(n: usize) -> Serial {
        Serial::parse(&format!("01{n:08x}")).unwrap()
    }

    fn myself() -> Arc<Attested> {
        let (one, _other) = UnixStream::pair().unwrap();
        Arc::new(attest(&one, &ExeDigests::default()).unwrap())
    }

    /// Another process, until it is killed: see `workloads::tests`.
    fn another() -> (Child, Arc<Attested>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::workloads::tests::child_that_connects"])
            .env("DOORWARD_TEST_WORKLOADS_SOCKET", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        (child, Arc::new(attest(&stream, &ExeDigests::default()).unwrap()))
    }

    fn waiting(given: &Given) -> Vec<Serial> {
        given.held().ended.iter().map(|svid| svid.serial.clone()).collect()
    }

    /// Sees until something is to be retracted.
    async fn seen(given: &Given) {
        let enough = async {
            while waiting(given).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            never = given.see() => match never {},
            seen = tokio::time::timeout(Duration::from_secs(20), enough) => seen.unwrap(),
        }
    }

    #[tokio::test]
    async fn what_an_ended_process_holds_is_to_be_retracted_and_nothing_else() {
        let (clock, given) = given();
        let until = clock.now().unix_s() + 60;
        let (mut child, who) = another();
        given.has_room(&who).unwrap();
        given.note(&who, serial(1), until);
        given.note(&who, serial(2), until);
        given.note(&myself(), serial(3), until);
        given.look().await;
        assert_eq!(waiting(&given), [], "they live");
        child.kill().unwrap();
        seen(&given).await;
        assert_eq!(waiting(&given), [serial(1), serial(2)]);
        assert_eq!(given.held().processes.len(), 1);
        child.wait().unwrap();

        given.note(&who, serial(4), until);
        given.look().await;
        assert_eq!(waiting(&given).last(), Some(&serial(4)), "a look alone tells too");
        clock.advance(Duration::from_secs(60));
        given.look().await;
        assert_eq!(waiting(&given), [], "what has ended by itself needs no retraction");
        assert!(given.held().processes.is_empty());
    }

    #[tokio::test]
    async fn a_process_holds_a_bounded_number_and_the_oldest_goes_first() {
        let (clock, given) = given();
        let (who, until) = (myself(), clock.now().unix_s() + 60);
        for n in 0..GIVEN_PER_PROCESS + 2 {
            given.note(&who, serial(n), until);
        }
        assert_eq!(waiting(&given), [serial(0), serial(1)]);
        let mut ended = VecDeque::new();
        let svid = |n| RetractedSvid { serial: serial(n), until };
        queue(&mut ended, (0..GIVEN_QUEUE + 3).map(svid));
        assert_eq!(ended.len(), GIVEN_QUEUE);
        assert_eq!(ended[0].serial, serial(3));
    }
}
