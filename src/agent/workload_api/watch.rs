//! One open stream: whose it is, and when its full state must be made anew.
//!
//! A process is looked at when the stream opens, each second while it is open, and around every
//! message: one that has ended, or executes another program or runs under another user by now, gets
//! nothing more and its stream ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;
use tonic::Status;
use tonic::codegen::Bytes;

use super::super::attest::Attested;
use super::super::duties::Duties;
use super::super::exe::ExeDigests;
use super::super::federated::FederatedTold;
use super::super::issued::{Issued, WorkloadError};
use super::super::keys::WorkloadKey;
use super::super::local::Visitor;
use super::super::roots::{Counted, Roots};
use super::super::workloads::Workloads;
use super::fault;
use super::hints::{Hints, hint_of};
use super::messages::{X509Svid, X509SvidResponse, frame};
use super::rates::Rates;
use crate::identity::BundleDocument;
use crate::model::{Clock, Entry, EntryId, TrustDomain};

/// How often a process is looked at while its stream is open.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure to issue, the next attempt; what was given lasts meanwhile.
const AGAIN: time::Duration = time::Duration::seconds(5);
/// Where the broker refused some of a process's identities, they are asked for again after this.
const REFUSED_AGAIN: time::Duration = time::Duration::minutes(5);

/// What all streams stand on.
pub(in crate::agent) struct Ground {
    pub(in crate::agent) workloads: Arc<Workloads>,
    pub(in crate::agent) digests: Arc<ExeDigests>,
    pub(in crate::agent) clock: Arc<dyn Clock>,
    pub(in crate::agent) domain: TrustDomain,
    pub(in crate::agent) stop: watch::Receiver<bool>,
}

/// The eyes of one stream.
pub(super) struct Watch {
    ground: Arc<Ground>,
    visitor: Visitor,
    rates: Arc<Rates>,
    told: watch::Receiver<Arc<Duties>>,
    roots: watch::Receiver<Arc<Roots>>,
    federated: FederatedTold,
    /// Who it was at the last look of this stream's own.
    known: Option<Arc<Attested>>,
    /// The entries of the process, with what they were chosen from.
    chosen: Option<(Arc<Duties>, Arc<Attested>, Vec<Entry>)>,
}

impl Watch {
    pub(super) fn new(ground: Arc<Ground>, visitor: Visitor, rates: Arc<Rates>) -> Self {
        let (told, roots) = (ground.workloads.told(), ground.workloads.roots());
        let federated = ground.workloads.federated();
        Self { ground, visitor, rates, told, roots, federated, known: None, chosen: None }
    }

    /// Counts so many units under the process's user.
    pub(super) fn charge(&self, units: usize) -> Result<(), Status> {
        let now = self.ground.clock.now().boot();
        match self.rates.admits(self.visitor.uid(), units, now) {
            true => Ok(()),
            false => Err(Status::unavailable("too many calls of this user: try again later")),
        }
    }

    /// The same for identities that the broker is asked for: the first came with the call.
    pub(super) fn charge_for(&self, entries: &[Entry]) -> Result<(), Status> {
        self.charge(entries.len().saturating_sub(1))
    }

    /// The process, if it is still the one that connected.
    pub(super) async fn who(&self) -> Result<Arc<Attested>, Status> {
        self.visitor.attested(&self.ground.digests).await.map_err(|why| fault::unknown(&why))
    }

    /// Keeps an eye on it: streams of one connection share their looks, so that each connection is
    /// looked at once a second and not each stream. Before anything is made, [`Self::who`] is asked.
    pub(super) async fn glance(&mut self) -> Result<Arc<Attested>, Status> {
        if let Some(known) = self.known.as_ref().filter(|_| self.visitor.seen_within(LOOK)) {
            return Ok(known.clone());
        }
        let who = self.who().await?;
        self.known = Some(who.clone());
        Ok(who)
    }

    /// The entries of the process; `first` waits for fresh ones if none fits.
    pub(super) async fn fitting(
        &mut self,
        who: &Arc<Attested>,
        first: bool,
    ) -> Result<Vec<Entry>, Status> {
        let workloads = &self.ground.workloads;
        if first && !workloads.is_ready() {
            return Err(Status::unavailable("the agent is starting, or has lost its broker"));
        }
        let fitting = match first {
            true => workloads.fitting(who.facts()).await.map_err(|why| fault::of(&why))?,
            false => self.fitting_now(who),
        };
        if fitting.is_empty() { Err(fault::nobody()) } else { Ok(fitting) }
    }

    /// The same by the entries as last told; chosen anew only when they were told anew.
    fn fitting_now(&mut self, who: &Arc<Attested>) -> Vec<Entry> {
        let duties = self.told.borrow().clone();
        if let Some((from, of, entries)) = &self.chosen
            && Arc::ptr_eq(from, &duties)
            && Arc::ptr_eq(of, who)
        {
            return entries.clone();
        }
        let entries: Vec<_> = duties.fitting(who.facts()).into_iter().cloned().collect();
        self.chosen = Some((duties, who.clone(), entries.clone()));
        entries
    }

    /// A refusal that comes of an agent that was not heard of yet is none of the process's.
    pub(super) fn is_passing(&self, refusal: &crate::model::Refusal) -> bool {
        fault::is_passing(refusal) || !self.ground.workloads.is_ready()
    }

    /// What all streams stand on.
    pub(super) fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The roots in force, and each time that they change.
    pub(super) fn roots(&mut self) -> &mut watch::Receiver<Arc<Roots>> {
        &mut self.roots
    }

    /// Waits for the next reason to look.
    pub(super) async fn look(&mut self) -> Result<(), Status> {
        let mut stop = self.ground.stop.clone();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {
                return Err(Status::unavailable("the agent is stopping"));
            }
            told = self.told.changed() => {
                told.map_err(|_| Status::unavailable("the agent is stopping"))?;
            }
            changed = self.roots.changed() => {
                changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
            }
            changed = self.federated.changed() => {
                changed.map_err(|_| Status::unavailable("the agent is stopping"))?;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        Ok(())
    }

    /// What a process with these entries is told of other trust domains.
    pub(super) fn others(&mut self, entries: &[Entry]) -> Others {
        self.federated.borrow_and_update().of(entries)
    }

    /// Those that tokens of other trust domains are checked by.
    pub(super) fn other_keys(
        &mut self,
        entries: &[Entry],
    ) -> HashMap<TrustDomain, Arc<BundleDocument>> {
        self.federated.borrow_and_update().keys_of(entries)
    }

    fn now(&self) -> OffsetDateTime {
        self.ground.clock.now().wall()
    }
}

/// Roots of other trust domains, by `spiffe://<trust domain>`.
pub(super) type Others = HashMap<String, Arc<Vec<u8>>>;

/// As a message holds them, for as long as it is written.
pub(super) fn copied(others: &Others) -> HashMap<String, Vec<u8>> {
    others.iter().map(|(name, roots)| (name.clone(), roots.to_vec())).collect()
}

/// What tells one state of a process's entries from another.
type Marks = Vec<(EntryId, u64)>;

fn marks(entries: &[Entry]) -> Marks {
    entries.iter().map(|entry| (entry.id, entry.epoch)).collect()
}

/// What a stream was given last. The keys are the client's alone.
struct Given {
    marks: Marks,
    until: OffsetDateTime,
    renew_at: OffsetDateTime,
    /// After a failure: nothing is tried before.
    rest_until: Option<OffsetDateTime>,
    /// The roots that were in force then, and who is counted under which of them.
    roots: Arc<Roots>,
    chains: Vec<Vec<CertificateDer<'static>>>,
    /// Roots of other trust domains.
    others: Others,
    _counted: Vec<Counted>,
}

impl Given {
    fn holds(
        &self,
        entries: &[Entry],
        roots: &Roots,
        others: &Others,
        now: OffsetDateTime,
    ) -> bool {
        self.rest_until.is_some_and(|until| now < until)
            || (now < self.renew_at
                && self.marks == marks(entries)
                && self.roots.tell_the_same_as(roots)
                && self.others == *others
                && !self.chains.iter().any(|chain| roots.taints(chain)))
    }
}

/// The stream of `FetchX509SVID`.
pub(super) struct X509Svids {
    watch: Watch,
    given: Option<Given>,
}

impl X509Svids {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, given: None }
    }

    /// The next full state, as soon as there is another one than was given last.
    pub(super) async fn next(&mut self) -> Result<Bytes, Status> {
        loop {
            let who = self.watch.glance().await?;
            let entries = self.watch.fitting(&who, self.given.is_none()).await?;
            let now = self.watch.now();
            let roots = self.watch.roots.borrow().clone();
            let others = self.watch.others(&entries);
            let holds = |given: &Given| given.holds(&entries, &roots, &others, now);
            if self.given.as_ref().is_some_and(holds) {
                self.watch.look().await?;
                continue;
            }
            let who = self.watch.who().await?;
            if self.given.is_none() {
                self.watch.charge_for(&entries)?; // later states are of the agent's own making
            }
            match self.make(&who, &entries, (roots, others), now).await {
                Ok((message, given)) => {
                    self.watch.who().await?; // it was issued for this one, and for no other
                    self.given = Some(given);
                    return Ok(message);
                }
                Err(status) => match &mut self.given {
                    Some(given) if is_passing(&status) && now < given.until => {
                        given.rest_until = Some(now + AGAIN);
                    }
                    _ => return Err(status),
                },
            }
        }
    }

    /// Has everything issued anew, each under a fresh key.
    async fn make(
        &self,
        who: &Arc<Attested>,
        entries: &[Entry],
        (roots, others): (Arc<Roots>, Others),
        now: OffsetDateTime,
    ) -> Result<(Bytes, Given), Status> {
        let mut response =
            X509SvidResponse { federated_bundles: copied(&others), ..X509SvidResponse::default() };
        let (mut until, mut refused) = (None, None);
        let (mut chains, mut hints) = (Vec::new(), Hints::default());
        for entry in entries {
            if !hints.have_room_for(entry) {
                continue;
            }
            match self.one(who, entry, now).await {
                Ok((svid, chain, ends)) => {
                    hints.note(entry);
                    response.svids.push(svid);
                    chains.push(chain);
                    until = Some(until.map_or(ends, |until: OffsetDateTime| until.min(ends)));
                }
                Err(WorkloadError::Refused(refusal)) if !self.watch.is_passing(&refusal) => {
                    refused = refused.or(Some(refusal));
                }
                Err(WorkloadError::Refused(_)) => {
                    return Err(Status::unavailable("the broker issues nothing now"));
                }
                Err(why) => return Err(fault::of(&why)),
            }
        }
        let Some(until) = until else {
            return Err(refused.map_or_else(fault::nobody, |refusal| fault::refused(&refusal)));
        };
        let mut renew_at = scattered_half_way(now, until);
        if refused.is_some() {
            renew_at = renew_at.min(now + REFUSED_AGAIN);
        }
        let message = frame(&response).ok_or_else(too_large)?;
        let _counted = chains.iter().map(|it| self.watch.ground.workloads.count(it)).collect();
        let marks = marks(entries);
        let rest_until = None;
        let given = Given { marks, until, renew_at, rest_until, roots, chains, others, _counted };
        Ok((message, given))
    }

    async fn one(
        &self,
        who: &Arc<Attested>,
        entry: &Entry,
        now: OffsetDateTime,
    ) -> Result<(X509Svid, Vec<CertificateDer<'static>>, OffsetDateTime), WorkloadError> {
        let key =
            WorkloadKey::generate().map_err(|_| WorkloadError::Internal("no key could be made"))?;
        let workloads = &self.watch.ground.workloads;
        let Issued { chain, bundle, until, .. } =
            workloads.issue_for(who, entry, key.spki(), now).await?;
        let svid = X509Svid {
            spiffe_id: entry.draft.spiffe_id.to_string(),
            x509_svid: chain.concat_der(),
            x509_svid_key: key.into_pkcs8(),
            bundle: bundle.concat_der(),
            hint: hint_of(entry),
        };
        Ok((svid, chain, until))
    }
}

/// Certificates one behind the other.
pub(super) trait ConcatDer {
    fn concat_der(&self) -> Vec<u8>;
}

impl ConcatDer for [CertificateDer<'static>] {
    fn concat_der(&self) -> Vec<u8> {
        self.iter().flat_map(|der| der.as_ref().iter().copied()).collect()
    }
}

pub(super) fn too_large() -> Status {
    Status::internal("the answer is too large")
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Internal)
}

/// Between 45 and 55 hundredths of a life: not all of a fleet at once.
fn scattered_half_way(now: OffsetDateTime, until: OffsetDateTime) -> OffsetDateTime {
    let mut chance = [128];
    let _ = aws_lc_rs::rand::fill(&mut chance);
    let [chance] = chance;
    now + (until - now).max(time::Duration::ZERO) * (0.45 + f64::from(chance) / 2550.0)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::model::{DeviceClass, EntryDraft, Selector, SpiffeId};

    fn entry(n: u128, epoch: u64) -> Entry {
        let draft = EntryDraft {
            spiffe_id: SpiffeId::parse("spiffe://corp.example/api").unwrap(),
            class: DeviceClass::parse("server").unwrap(),
            device: None,
            selectors: vec![Selector::Uid(1)],
            ttl_s: None,
            default: false,
            jwt_alg: Default::default(),
            federates_with: Vec::new(),
            hint: None,
        };
        let created = "2026-11-23T00:00:00Z".into();
        Entry { id: EntryId(Uuid::from_u128(n)), draft, epoch, created }
    }

    #[test]
    fn what_was_given_holds_until_half_its_life_or_until_the_entries_change() {
        let now = datetime!(2026-11-23 12:00 UTC);
        let entries = [entry(1, 0), entry(2, 3)];
        let mut given = Given {
            marks: marks(&entries),
            until: now + time::Duration::hours(1),
            renew_at: now + time::Duration::minutes(30),
            rest_until: None,
            roots: Arc::default(),
            chains: Vec::new(),
            others: HashMap::new(),
            _counted: Vec::new(),
        };
        let (roots, none) = (Roots::default(), HashMap::new());
        assert!(given.holds(&entries, &roots, &none, now));
        assert!(!given.holds(&entries, &roots, &none, given.renew_at));
        let others = Roots::kept(&[CertificateDer::from(vec![1])]);
        assert!(!given.holds(&entries, &others, &none, now), "other roots are told at once");
        let told = HashMap::from([("spiffe://b.example".to_owned(), Arc::new(vec![1]))]);
        assert!(!given.holds(&entries, &roots, &told, now), "and so are other domains'");
        for other in [&entries[..1], &[entry(1, 1), entry(2, 3)], &[entry(2, 3), entry(1, 0)]] {
            assert!(!given.holds(other, &roots, &none, now), "{other:?}");
        }
        given.rest_until = Some(now + AGAIN);
        assert!(
            given.holds(&entries[..1], &roots, &none, now),
            "no attempt follows a failure at once"
        );
        assert!(!given.holds(&entries[..1], &roots, &none, now + AGAIN));
    }

    #[test]
    fn half_way_is_scattered_and_never_far_off() {
        let now = datetime!(2026-11-23 12:00 UTC);
        let until = now + time::Duration::seconds(1000);
        let moments: Vec<_> = (0..64).map(|_| scattered_half_way(now, until) - now).collect();
        let within = time::Duration::seconds(450)..=time::Duration::seconds(551);
        assert!(moments.iter().all(|moment| within.contains(moment)), "{moments:?}");
        assert!(moments.iter().any(|moment| *moment != moments[0]), "{moments:?}");
        assert_eq!(scattered_half_way(until, now), until, "what has ended is renewed at once");
    }
}
