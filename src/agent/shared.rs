//! What the agent's tasks tell each other, and what others may see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};

use super::duties::Duties;
use super::federated::{Federated, FederatedTold};
use super::roots::{Ledger, Roots};
use crate::model::{DeviceId, SpiffeId};
use crate::wire::Client;

/// How the agent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// The device.
    pub device: DeviceId,
    /// The agent's own identity, once it has one.
    pub spiffe_id: Option<SpiffeId>,
    /// Whether it is connected to the broker.
    pub connected: bool,
    /// The device's posture as the broker sees it: `|name=t|…`, or `unknown`.
    pub posture: String,
    /// When the broker last took a report on this connection.
    pub last_report: Option<OffsetDateTime>,
    /// How many entries are for this device; `None` until the broker has told.
    pub duties: Option<usize>,
    /// What went wrong last, while it lasts.
    pub error: Option<String>,
}

impl AgentStatus {
    /// Connected, its first report taken, its duties known.
    pub fn is_ready(&self) -> bool {
        self.connected && self.last_report.is_some() && self.duties.is_some()
    }
}

/// The tasks' common ground. Everything in it is bounded: one value each.
pub(super) struct Shared {
    client: watch::Sender<Option<Client>>,
    /// The roots of the trust domain; none until the broker was reached.
    roots: watch::Sender<Arc<Roots>>,
    /// The sequence of the bundle as the broker last told; 0 before.
    sequence: watch::Sender<u64>,
    /// Who lives by which authority.
    ledger: Ledger,
    duties: watch::Sender<Arc<Duties>>,
    /// Bundles of other trust domains.
    federated: watch::Sender<Arc<Federated>>,
    status: watch::Sender<AgentStatus>,
    /// The revision of the entries that is held; the entries themselves may stand since before.
    revision: AtomicU64,
    wish: Notify,
    /// Wishes for a look at the broker's entries, by number, and up to which they were answered.
    wishes: AtomicU64,
    heard: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(device: DeviceId) -> Arc<Self> {
        let status = AgentStatus {
            device,
            spiffe_id: None,
            connected: false,
            posture: "unknown".to_owned(),
            last_report: None,
            duties: None,
            error: None,
        };
        Arc::new(Self {
            client: watch::channel(None).0,
            roots: watch::channel(Arc::default()).0,
            sequence: watch::channel(0).0,
            ledger: Ledger::default(),
            duties: watch::channel(Arc::default()).0,
            federated: watch::channel(Arc::default()).0,
            status: watch::channel(status).0,
            revision: AtomicU64::new(0),
            wish: Notify::new(),
            wishes: AtomicU64::new(0),
            heard: watch::channel(0).0,
        })
    }

    /// The agent's own connection, if there is one.
    pub(super) fn client(&self) -> Option<Client> {
        self.client.borrow().clone().filter(|client| !client.is_closed())
    }

    /// A new connection stands.
    pub(super) fn connected(
        &self,
        client: Client,
        spiffe_id: SpiffeId,
        bundle: &[CertificateDer<'static>],
    ) {
        self.roots.send_if_modified(|held| {
            let changed = *held.certificates != *bundle;
            if changed {
                *held = Roots::kept(bundle).into();
            }
            changed
        });
        self.client.send_replace(Some(client));
        self.status.send_modify(|status| {
            status.connected = true;
            status.spiffe_id = Some(spiffe_id);
            status.error = None;
        });
    }

    /// The connection has ended. Posture is unknown until the next report.
    pub(super) fn disconnected(&self, why: String) {
        self.client.send_replace(None);
        self.status.send_modify(|status| {
            status.connected = false;
            status.last_report = None;
            status.posture = "unknown".to_owned();
            status.error = Some(why);
        });
    }

    /// Something failed that the connection survives.
    pub(super) fn failed(&self, why: String) {
        self.status.send_modify(|status| status.error = Some(why));
    }

    /// The broker took a report.
    pub(super) fn reported(&self, posture: String, at: OffsetDateTime) {
        self.status.send_modify(|status| {
            status.posture = posture;
            status.last_report = Some(at);
            status.error = None;
        });
    }

    /// The broker told the entries for this device.
    pub(super) fn told(&self, duties: Duties) {
        let count = duties.entries.len();
        self.revision.store(duties.revision, Ordering::Relaxed);
        self.sequence
            .send_if_modified(|told| std::mem::replace(told, duties.bundle) != duties.bundle);
        self.duties.send_replace(Arc::new(duties));
        self.status.send_modify(|status| status.duties = Some(count));
    }

    /// The entries as last told.
    pub(super) fn duties(&self) -> Arc<Duties> {
        self.duties.borrow().clone()
    }

    /// Nothing has changed up to this revision.
    pub(super) fn confirmed(&self, revision: u64) {
        self.revision.store(revision, Ordering::Relaxed);
    }

    /// The revision of the entries that is held; `None` before they were told.
    pub(super) fn held_revision(&self) -> Option<u64> {
        self.status.borrow().duties.map(|_| self.revision.load(Ordering::Relaxed))
    }

    /// The entries, and each time that they are told again.
    pub(super) fn duties_told(&self) -> watch::Receiver<Arc<Duties>> {
        self.duties.subscribe()
    }

    /// These roots are in force from now on.
    pub(super) fn rooted(&self, roots: Roots) {
        self.roots.send_replace(Arc::new(roots));
    }

    /// The roots in force.
    pub(super) fn roots(&self) -> Arc<Roots> {
        self.roots.borrow().clone()
    }

    /// The roots of the trust domain, and each time that they change.
    pub(super) fn roots_told(&self) -> watch::Receiver<Arc<Roots>> {
        self.roots.subscribe()
    }

    /// These bundles of other trust domains are told from now on.
    pub(super) fn federated(&self, federated: Federated) {
        self.federated.send_if_modified(|held| {
            let changed = **held != federated;
            if changed {
                *held = Arc::new(federated);
            }
            changed
        });
    }

    /// The bundles of other trust domains, and each time that they change.
    pub(super) fn federated_told(&self) -> FederatedTold {
        self.federated.subscribe()
    }

    /// The sequence of the broker's bundle, and each time that it changes.
    pub(super) fn sequence_told(&self) -> watch::Receiver<u64> {
        self.sequence.subscribe()
    }

    /// Who lives by which authority.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The entries as the broker has them now or later: resolves once it was asked.
    pub(super) async fn duties_anew(&self) -> Arc<Duties> {
        let mut heard = self.heard.subscribe();
        let number = self.wishes.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        self.wish.notify_one();
        let _ = heard.wait_for(|heard| *heard >= number).await;
        self.duties()
    }

    /// Resolves when somebody wishes to have the broker asked.
    pub(super) async fn wished(&self) {
        self.wish.notified().await;
    }

    /// How many wishes there were: what is asked from now on answers them.
    pub(super) fn wishes(&self) -> u64 {
        self.wishes.load(Ordering::Acquire)
    }

    /// The broker was asked, and what it said is known here: so many wishes are answered.
    pub(super) fn heard(&self, wishes: u64) {
        self.heard.send_if_modified(|heard| {
            let more = wishes > *heard;
            *heard = wishes.max(*heard);
            more
        });
    }

    /// Whether workloads can be served.
    pub(super) fn is_ready(&self) -> bool {
        self.status.borrow().is_ready()
    }
}

/// A look at the agent from outside. Cheap to clone; holds no key.
#[derive(Clone)]
pub struct AgentHandle {
    shared: Arc<Shared>,
}

impl AgentHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How it stands.
    pub fn status(&self) -> AgentStatus {
        self.shared.status.borrow().clone()
    }

    /// Resolves when the agent is connected, its first report is taken and its duties are known.
    /// Has no deadline of its own.
    pub async fn ready(&self) -> AgentStatus {
        let mut status = self.shared.status.subscribe();
        match status.wait_for(AgentStatus::is_ready).await {
            Ok(status) => status.clone(),
            Err(_closed) => self.status(), // can't be: we hold the sender
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    #[tokio::test]
    async fn a_lost_connection_takes_the_posture_with_it() {
        let shared = Shared::new(DeviceId(Digest([1; 32])));
        let handle = AgentHandle::new(shared.clone());
        shared.reported("|managed=t|".into(), OffsetDateTime::UNIX_EPOCH);
        assert_eq!(handle.status().posture, "|managed=t|");
        shared.disconnected("broker closed".into());
        let status = handle.status();
        assert_eq!((status.posture.as_str(), status.last_report), ("unknown", None));
        assert_eq!(status.error.as_deref(), Some("broker closed"));
    }

    #[tokio::test]
    async fn whoever_wishes_for_duties_gets_the_next_ones() {
        let shared = Shared::new(DeviceId(Digest([1; 32])));
        let teller = async {
            shared.wished().await;
            let wishes = shared.wishes();
            shared.told(Duties { revision: 9, ..Duties::default() });
            shared.heard(wishes);
        };
        let (anew, ()) = tokio::join!(shared.duties_anew(), teller);
        assert_eq!(anew.revision, 9);
        assert!(!shared.is_ready(), "known duties alone are not enough");
    }
}
