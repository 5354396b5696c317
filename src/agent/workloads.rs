//! Asking for workloads: each with an SVID of its own, on a connection of its own.
//!
//! One key per attested process instance, program and entry. It is made here, stays in memory here,
//! and is forgotten when the process dies. The agent's own identity only asks for SVIDs; a secret
//! is never asked for with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::attest::{AttestError, Attested};
use super::duties::{Duties, Unmatched};
use super::given::Given;
use super::issued::{Issued, NO_CONNECTION, NO_UPLINK, WorkloadError, is_about_identity, issued};
use super::keys::WorkloadKey;
use super::roots::{Counted, Roots};
use super::shared::Shared;
use super::uplink::half_way;
use crate::model::{
    Ask, Clock, Digest, Entry, EntryId, Released, RequestId, SecretValue, SpiffeId, TrustDomain,
    WorkloadFacts,
};
use crate::wire::{Client, ClientError, Credentials};

/// Process instances with an identity at once.
const SLOTS_MAX: usize = 1024;
/// Of one user: nobody's processes push out everybody else's.
const SLOTS_PER_UID: usize = 256;
/// One request of a workload, with everything that it needs first.
pub(super) const ASK_MAX: Duration = Duration::from_secs(15);
/// How long a process without an identity waits for fresh entries.
const DUTIES_MAX: Duration = Duration::from_secs(3);
/// How often dead processes are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// A workload's connection that nobody asks on is closed after this; its identity is kept.
const IDLE: Duration = Duration::from_secs(5 * 60);

/// Which process instance, which program in it, by which entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SlotKey {
    pid: u32,
    start_ticks: u64,
    exe: Option<Digest>,
    entry: EntryId,
}

struct Slot {
    who: Arc<Attested>,
    used: AtomicU64,
    /// Boot time of the last use, in seconds.
    used_at_s: AtomicU64,
    live: tokio::sync::Mutex<Option<Live>>,
}

impl Slot {
    /// Closes the connection, unless somebody is just making use of it.
    fn rest(&self) {
        let client = match self.live.try_lock() {
            Ok(mut live) => live.as_mut().and_then(|live| live.client.take()),
            Err(_) => None,
        };
        if let Some(client) = client {
            client.close();
        }
    }

    /// Forgets an identity that shall be replaced; who asks next has another one issued.
    fn forget_tainted(&self, roots: &Roots) {
        if let Ok(mut live) = self.live.try_lock()
            && live.as_ref().is_some_and(|live| roots.taints(&live.chain))
        {
            *live = None;
        }
    }
}

/// An identity that the agent holds for a workload.
struct Live {
    key: WorkloadKey,
    chain: Vec<CertificateDer<'static>>,
    _counted: Counted, // in the ledger for as long as it is held
    until: OffsetDateTime,
    renew_at: OffsetDateTime,
    client: Option<Client>,
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            client.close();
        }
    }
}

/// All workloads of this node.
pub(super) struct Workloads {
    pub(super) shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    domain: TrustDomain,
    broker: String,
    given: Given,
    slots: Mutex<HashMap<SlotKey, Arc<Slot>>>,
    uses: AtomicU64,
}

impl Workloads {
    pub(super) fn new(
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        domain: TrustDomain,
        broker: String,
    ) -> Arc<Self> {
        let (slots, uses) = (Mutex::default(), AtomicU64::new(0));
        let given = Given::new(shared.clone(), clock.clone());
        Arc::new(Self { shared, clock, domain, broker, given, slots, uses })
    }

    /// Whether workloads can be served.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// The entry for an attested process. If none fits, the broker is asked for fresh ones once.
    pub(super) async fn identify(
        &self,
        facts: &WorkloadFacts,
        wanted: Option<&SpiffeId>,
    ) -> Result<Entry, WorkloadError> {
        match self.shared.duties().choose(facts, wanted) {
            Ok(entry) => return Ok(entry.clone()),
            Err(Unmatched::Nobody { .. }) => {}
            Err(several) => return Err(WorkloadError::Unmatched(several)),
        }
        if self.shared.client().is_none() {
            return Err(NO_UPLINK); // a missing entry can't be told from one not heard of yet
        }
        let anew = tokio::time::timeout(DUTIES_MAX, self.shared.duties_anew()).await;
        let duties = anew.unwrap_or_else(|_| self.shared.duties());
        // Of one that ended, the broker tells, and writes down that it was asked for.
        let ended = |why| match why {
            Unmatched::Nobody { .. } => duties.ended(facts, wanted).ok_or(why),
            several => Err(several),
        };
        duties.choose(facts, wanted).or_else(ended).cloned().map_err(|unmatched| {
            if let Unmatched::Nobody { nearest: Some(nearest) } = &unmatched {
                tracing::info!(
                    pid = facts.pid, uid = facts.uid, path = facts.path, unit = facts.unit,
                    nearest = %nearest.spiffe_id, entry = %nearest.entry,
                    missing = nearest.missing.join(" "),
                    "a process matches no entry"
                );
            }
            WorkloadError::Unmatched(unmatched)
        })
    }

    /// Every identity of an attested process, the default one first. If it has none, the broker is
    /// asked for fresh entries once.
    pub(super) async fn fitting(&self, facts: &WorkloadFacts) -> Result<Vec<Entry>, WorkloadError> {
        let fitting = self.fitting_now(facts);
        if !fitting.is_empty() {
            return Ok(fitting);
        }
        // Waits for fresh ones, and tells the operator what was missing. That several fit by then is
        // no fault here.
        match self.identify(facts, None).await {
            Ok(_) | Err(WorkloadError::Unmatched(Unmatched::Several { .. })) => {
                Ok(self.fitting_now(facts))
            }
            Err(why) => Err(why),
        }
    }

    /// The same by the entries as last told.
    pub(super) fn fitting_now(&self, facts: &WorkloadFacts) -> Vec<Entry> {
        self.shared.duties().fitting(facts).into_iter().cloned().collect()
    }

    /// The entries, and each time that they are told again.
    pub(super) fn told(&self) -> watch::Receiver<Arc<Duties>> {
        self.shared.duties_told()
    }

    /// The roots of the trust domain, and each time that they change.
    pub(super) fn roots(&self) -> watch::Receiver<Arc<Roots>> {
        self.shared.roots_told()
    }

    /// Counts an identity under the authority that signed it.
    pub(super) fn count(&self, chain: &[CertificateDer<'_>]) -> Counted {
        self.shared.ledger().count(chain)
    }

    /// Asks with the workload's own identity, on its own connection.
    pub(super) async fn ask(
        &self,
        who: &Arc<Attested>,
        entry: &Entry,
        ask: Ask,
    ) -> Result<(RequestId, Released), WorkloadError> {
        let slot = self.slot(who, entry.id);
        let asking = self.ask_with(&slot, entry, ask);
        let late = WorkloadError::Unavailable("the broker gave no answer in time");
        tokio::time::timeout(ASK_MAX, asking).await.unwrap_or(Err(late))
    }

    async fn ask_with(
        &self,
        slot: &Slot,
        entry: &Entry,
        ask: Ask,
    ) -> Result<(RequestId, Released), WorkloadError> {
        let (client, fresh) = self.client(slot, entry).await?;
        match client.ask(ask.clone(), SecretValue::empty()).await {
            Ok(answered) => return Ok(answered),
            Err(ClientError::Refused(refusal)) if fresh || !is_about_identity(&refusal) => {
                return Err(WorkloadError::Refused(refusal));
            }
            // An identity from before a revocation, or of a clock that jumped: once more, with a
            // new one if the broker gives it. What was asked for has not been done.
            Err(ClientError::Refused(_)) => *slot.live.lock().await = None,
            Err(_) if client.is_closed() && ask.action() == crate::model::Action::Read => {}
            Err(why) => {
                tracing::warn!(error = %why, "a workload's request was not answered");
                return Err(NO_CONNECTION);
            }
        }
        let (client, _) = self.client(slot, entry).await?;
        client.ask(ask, SecretValue::empty()).await.map_err(|why| match why {
            ClientError::Refused(refusal) => WorkloadError::Refused(refusal),
            _ => NO_CONNECTION,
        })
    }

    /// The workload's connection, and whether its SVID was issued for this very request.
    async fn client(&self, slot: &Slot, entry: &Entry) -> Result<(Client, bool), WorkloadError> {
        let mut live = slot.live.lock().await; // one request issues, the others wait for it
        let now = self.clock.now().wall();
        let roots = self.shared.roots();
        let old =
            live.as_ref().is_none_or(|live| now >= live.renew_at || roots.taints(&live.chain));
        let mut fresh = false;
        if old {
            match self.issue(slot.who.facts(), entry, now).await {
                Ok(issued) => {
                    *live = Some(issued);
                    fresh = true;
                }
                // Half of its life is left: use it while the broker can't issue, not if it won't.
                Err(WorkloadError::Unavailable(_))
                    if live.as_ref().is_some_and(|live| now < live.until) => {}
                Err(why) => {
                    *live = None;
                    return Err(why);
                }
            }
        }
        let held = live.as_mut().ok_or(NO_CONNECTION)?;
        if let Some(client) = held.client.as_ref().filter(|client| !client.is_closed()) {
            return Ok((client.clone(), fresh));
        }
        let client = self.connect(held).await?;
        held.client = Some(client.clone());
        Ok((client, fresh))
    }

    async fn issue(
        &self,
        facts: &WorkloadFacts,
        entry: &Entry,
        now: OffsetDateTime,
    ) -> Result<Live, WorkloadError> {
        let key =
            WorkloadKey::generate().map_err(|_| WorkloadError::Internal("no key could be made"))?;
        let Issued { chain, until, .. } =
            issued(&self.shared, facts, entry, key.spki(), true, now).await?;
        let (renew_at, _counted) = (half_way(now, until), self.count(&chain));
        Ok(Live { key, chain, _counted, until, renew_at, client: None })
    }

    /// An SVID over a key that goes to the workload; who opened it is told in the certificate. It is
    /// taken back when the process ends or becomes another.
    pub(super) async fn issue_for(
        &self,
        who: &Arc<Attested>,
        entry: &Entry,
        spki: &[u8],
        now: OffsetDateTime,
    ) -> Result<Issued, WorkloadError> {
        let late = WorkloadError::Unavailable("the broker gave no answer in time");
        self.given.has_room(who)?;
        let issuing = issued(&self.shared, who.facts(), entry, spki, false, now);
        let issued = tokio::time::timeout(ASK_MAX, issuing).await.unwrap_or(Err(late))?;
        self.given.note(who, issued.serial.clone(), issued.until.unix_timestamp());
        Ok(issued)
    }

    /// Watches the processes that hold SVIDs, for ever.
    pub(super) async fn watch(&self) -> std::convert::Infallible {
        self.given.watch().await
    }

    async fn connect(&self, held: &Live) -> Result<Client, WorkloadError> {
        let credentials = Credentials {
            domain: self.domain.clone(),
            broker: self.broker.clone(),
            chain: held.chain.clone(),
            key: held.key.private(),
            bundle: self.shared.roots().certificates.clone(),
        };
        Client::connect(&credentials, self.clock.clone()).await.map_err(|why| match why {
            ClientError::Refused(refusal) => WorkloadError::Refused(refusal),
            why => {
                tracing::warn!(error = %why, "no connection for a workload");
                NO_CONNECTION
            }
        })
    }

    /// Forgets the dead, for ever.
    pub(super) async fn sweep(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.bury().await;
        }
    }

    /// Drops the keys of processes that have ended or are other programs by now, which closes their
    /// connections.
    async fn bury(&self) {
        let all: Vec<_> =
            self.slots().iter().map(|(key, slot)| (key.clone(), slot.who.clone())).collect();
        let looking = tokio::task::spawn_blocking(move || {
            let is_over = |who: &Attested| {
                matches!(who.still_same(), Err(AttestError::Gone | AttestError::Changed))
            };
            all.into_iter().filter(|(_, who)| is_over(who)).map(|(key, _)| key).collect::<Vec<_>>()
        });
        let over = looking.await.unwrap_or_default();
        let (now, roots) = (self.clock.now().boot(), self.shared.roots());
        let mut slots = self.slots();
        for key in &over {
            slots.remove(key);
        }
        for slot in slots.values() {
            slot.forget_tainted(&roots);
            let used_at = Duration::from_secs(slot.used_at_s.load(Ordering::Relaxed));
            if now.saturating_sub(used_at) > IDLE {
                slot.rest();
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SlotKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    fn slot(&self, who: &Arc<Attested>, entry: EntryId) -> Arc<Slot> {
        let facts = who.facts();
        let (pid, start_ticks, exe) = (facts.pid, facts.start_ticks, facts.exe_sha256);
        let key = SlotKey { pid, start_ticks, exe, entry };
        let used = self.uses.fetch_add(1, Ordering::Relaxed);
        let now_s = self.clock.now().boot().as_secs();
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&key) {
            slot.used.store(used, Ordering::Relaxed);
            slot.used_at_s.store(now_s, Ordering::Relaxed);
            return slot.clone();
        }
        make_room(&mut slots, facts.uid);
        let live = tokio::sync::Mutex::new(None);
        let (used, used_at_s) = (AtomicU64::new(used), AtomicU64::new(now_s));
        let slot = Arc::new(Slot { who: who.clone(), used, used_at_s, live });
        slots.insert(key, slot.clone());
        slot
    }
}

/// Lets the least lately used one go: of the same user if that one has its share, else of all.
fn make_room(slots: &mut HashMap<SlotKey, Arc<Slot>>, uid: u32) {
    let own = |slot: &Arc<Slot>| slot.who.facts().uid == uid;
    let full = slots.values().filter(|slot| own(slot)).count() >= SLOTS_PER_UID;
    if !full && slots.len() < SLOTS_MAX {
        return;
    }
    let oldest = slots
        .iter()
        .filter(|(_, slot)| !full || own(slot))
        .min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed))
        .map(|(key, _)| key.clone());
    if let Some(oldest) = oldest {
        slots.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use time::macros::datetime;
    use uuid::Uuid;

    use super::super::attest::attest;
    use super::super::exe::ExeDigests;
    use super::*;
    use crate::model::{DeviceId, ManualClock};

    fn workloads() -> Arc<Workloads> {
        Workloads::new(
            Shared::new(DeviceId(Digest([1; 32]))),
            Arc::new(ManualClock::at(datetime!(2026-11-23 12:00 UTC))),
            TrustDomain::parse("corp.example").unwrap(),
            "127.0.0.1:1".into(),
        )
    }

    fn myself() -> Arc<Attested> {
        let (one, _other) = UnixStream::pair().unwrap();
        Arc::new(attest(&one, &ExeDigests::default()).unwrap())
    }

    fn entry(n: u128) -> EntryId {
        EntryId(Uuid::from_u128(n))
    }

    #[test]
    fn one_slot_for_each_instance_and_entry_and_no_more_than_a_users_share() {
        let (workloads, who) = (workloads(), myself());
        let first = workloads.slot(&who, entry(0));
        assert!(Arc::ptr_eq(&first, &workloads.slot(&who, entry(0))));
        for n in 1..=300 {
            workloads.slot(&who, entry(n));
            workloads.slot(&who, entry(0)); // used all the time
        }
        assert_eq!(workloads.slots().len(), SLOTS_PER_UID);
        assert!(Arc::ptr_eq(&first, &workloads.slot(&who, entry(0))), "the used one stays");
    }

    #[tokio::test]
    async fn the_dead_are_forgotten_and_the_living_kept() {
        let workloads = workloads();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent::workloads::tests::child_that_connects"])
            .env("DOORWARD_TEST_WORKLOADS_SOCKET", &path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let who = Arc::new(attest(&stream, &ExeDigests::default()).unwrap());
        workloads.slot(&who, entry(1));
        workloads.slot(&myself(), entry(1));
        workloads.bury().await;
        assert_eq!(workloads.slots().len(), 2);
        child.kill().unwrap();
        child.wait().unwrap();
        workloads.bury().await;
        let left: Vec<u32> = workloads.slots().keys().map(|key| key.pid).collect();
        assert_eq!(left, [std::process::id()]);
    }

    #[test]
    fn child_that_connects() {
        let Some(path) = std::env::var_os("DOORWARD_TEST_WORKLOADS_SOCKET") else { return };
        let _stream = UnixStream::connect(path).unwrap();
        let _ = std::io::stdin().read_line(&mut String::new()); // until it is killed
    }

    #[tokio::test]
    async fn without_a_connection_nobody_is_told_that_he_has_no_identity() {
        let (workloads, who) = (workloads(), myself());
        let unheard = workloads.identify(who.facts(), None).await;
        assert!(matches!(unheard, Err(WorkloadError::Unavailable(_))), "{unheard:?}");
    }
}
