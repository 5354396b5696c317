//! The room's one shared part: what it holds, how it changes, and who carries out which ask.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Mutex, watch};

use super::authorities::{Authorities, CA_KEY, OneRecord};
use super::ca::{Ca, ClockTrust};
use super::changes::touched;
use super::error::AuthorityError;
use super::fetches::Fetches;
use super::guesses::Guesses;
use super::issuers::{Issuers, Opening};
use super::key_seal::CaKeys;
use super::living_keys::LivingKeys;
use super::methods::EnrolMethods;
use super::mirror::{Mirror, Step};
use super::pending::Confirmed;
use super::picture::{joined, view};
use super::recent::{Recent, Touched, Waiting};
use super::records::encode;
use super::rotate::Acknowledged;
use crate::decision_log::{Authority as ForAuthority, Grant};
use crate::identity::{Caller, Identity};
use crate::model::{
    Action, Answer, Ask, Clock, Code, Digest, Failure, Moment, Reason, Released, SecretValue,
    Target, TrustDomain, limits,
};
use crate::store::{Expect, Store, StoreError, Table, Txn, Write};

/// Addresses that go into join tokens, each `host:port` as devices reach it.
#[derive(Debug, Clone)]
pub struct Places {
    /// Of the broker.
    pub broker: String,
    /// Of the enrolment port.
    pub enrolment: String,
}

/// Whether the mirror may be behind the store: the outcome of a commit is not known.
#[derive(Debug, Default)]
struct Writing {
    stale: bool,
}

/// The authority of one trust domain.
pub struct Authority {
    pub(super) store: Arc<dyn Store>,
    pub(super) domain: TrustDomain,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) places: Places,
    pub(super) identity: Arc<Identity>,
    pub(super) living_keys: LivingKeys,
    pub(super) guesses: Guesses,
    pub(super) methods: EnrolMethods,
    /// Proofs that held, of what another device holds already.
    pub(super) conflicts: Guesses,
    pub(super) opening: Opening,
    pub(super) acknowledged: Acknowledged,
    pub(super) confirmed: Confirmed,
    pub(super) recent: Recent,
    pub(super) waiting: Arc<Waiting>,
    /// What verifiers that know no SPIFFE call whoever signs our tokens.
    pub(super) token_issuer: Option<String>,
    pub(super) fetches: Fetches,
    /// The authority that the broker's own certificate is of.
    pub(super) own_by: ArcSwapOption<Digest>,
    issuers: ArcSwap<Issuers>,
    rotated: watch::Sender<u64>,
    mirror: ArcSwap<Mirror>,
    writing: Mutex<Writing>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("domain", &self.domain)
            .field("root", &self.root_digest())
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA: a P-256 key and its self-signed root for a year. The root goes into the store;
    /// the key comes back as PKCS#8 (DER) for the caller to seal, and is nowhere else.
    ///
    /// # Errors
    /// When the store holds one already, or fails.
    pub async fn create(
        store: &dyn Store,
        domain: &TrustDomain,
        clock: &dyn Clock,
    ) -> Result<SecretValue, AuthorityError> {
        let (certificate, key) = Ca::create(domain, clock.now())?;
        let record = OneRecord::new(certificate);
        let (table, row) = (Table::Authority, CA_KEY.to_vec());
        let txn = Txn {
            expects: vec![Expect { table, key: row.clone(), revision: None }],
            writes: vec![Write { table, key: row, value: Some(encode(&record)?) }],
            under: None,
        };
        match store.commit(txn).await {
            Ok(_) => Ok(key),
            Err(StoreError::Conflict) => Err(AuthorityError::CaExists),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the authorities of `domain` with their keys, reads all devices, entries and
    /// tokens, and starts a new [`Identity`] with them.
    ///
    /// # Errors
    /// When there is no CA, the key or the domain is another one, or a row does not read back.
    pub async fn open(
        store: Arc<dyn Store>,
        domain: TrustDomain,
        keys: CaKeys,
        clock: Arc<dyn Clock>,
        places: Places,
    ) -> Result<(Self, Arc<Identity>), AuthorityError> {
        let now = clock.now();
        let mirror = Mirror::load(store.as_ref(), &domain).await?;
        let clock_trust = ClockTrust::from(now);
        let opening = Opening { domain: domain.clone(), keys, clock: clock_trust, upstream: None };
        let issuers = Issuers::open(mirror.authorities()?, None, &opening, now)?;
        let bundles = joined(&issuers, &mirror);
        let identity = Arc::new(Identity::new(view(&domain, bundles, &issuers, &mirror)));
        let authority = Self {
            opening,
            acknowledged: Acknowledged::default(),
            own_by: ArcSwapOption::empty(),
            issuers: ArcSwap::from_pointee(issuers),
            rotated: watch::channel(mirror.authorities()?.sequence).0,
            identity: identity.clone(),
            recent: Recent::from(mirror.entries_revision),
            waiting: Arc::default(),
            mirror: ArcSwap::from_pointee(mirror),
            writing: Mutex::default(),
            living_keys: LivingKeys::default(),
            guesses: Guesses::default(),
            methods: EnrolMethods::default(),
            conflicts: Guesses::default(),
            confirmed: Confirmed::default(),
            token_issuer: None,
            fetches: Fetches::default(),
            store,
            domain,
            clock,
            places,
        };
        Ok((authority, identity))
    }

    /// The same, with this issuer in its JWT-SVIDs (`iss`).
    #[must_use]
    pub fn with_token_issuer(self, issuer: Option<String>) -> Self {
        Self { token_issuer: issuer, ..self }
    }

    /// Whether a key (SHA-256 of its SubjectPublicKeyInfo) is one of our own authorities', or of who
    /// stands above one.
    pub fn is_issuer(&self, key: &Digest) -> bool {
        self.issuers().is_key(key)
    }

    /// The same with methods of enrolment beside join tokens.
    #[must_use]
    pub fn with_methods(self, methods: EnrolMethods) -> Self {
        Self { methods, ..self }
    }

    /// What an ask of [`Kind::Authority`](crate::model::Kind) is about, as it stands now. An entry
    /// that gives another SPIFFE ID than the ask says is absent, and so is an applicant that shows
    /// neither a living token nor the key of a device: it is denied like everybody without a rule.
    ///
    /// # Errors
    /// None today; an engine that reads at this point may fail.
    pub async fn locate(&self, ask: &Ask, caller: &Caller) -> Result<Target, AuthorityError> {
        let (id, spiffe_id) = match ask {
            Ask::Enroll { by: Some(_), .. } => return Ok(Target::Absent), // shown to `examine`
            Ask::Enroll { token, .. } => {
                let is_known = self.may_enroll(token.as_ref(), caller);
                return Ok(if is_known { Target::Itself } else { Target::Absent });
            }
            Ask::Federation(step) => return Ok(self.locate_federated(step)),
            Ask::Issue { entry, spiffe_id, .. } | Ask::IssueJwt { entry, spiffe_id, .. } => {
                (entry, spiffe_id)
            }
            Ask::EntryDelete { id, spiffe_id } => (id, spiffe_id),
            _ => return Ok(Target::Itself),
        };
        let mirror = self.mirror();
        let record = mirror.entry(id).filter(|it| it.entry.draft.spiffe_id == *spiffe_id);
        Ok(match record {
            Some(record) if record.suspended && ask.action() == Action::Issue => Target::Revoked,
            Some(record) => Target::Entry { id: *id, epoch: record.entry.epoch },
            None => Target::Absent,
        })
    }

    /// Carries out what was granted. `body` is read for `enroll` only.
    ///
    /// # Errors
    /// What stands in the way, in a form that the caller, who was allowed, may see.
    pub async fn carry_out(
        &self,
        grant: Grant<ForAuthority>,
        body: SecretValue,
    ) -> Result<Released, Failure> {
        let (caller, ask) = (grant.caller().clone(), grant.ask().clone());
        if matches!(*ask, Ask::IssueJwt { .. }) {
            return self.issue_jwt(&caller, &ask, grant.target(), grant.id(), grant.now());
        }
        self.act(&caller, &ask, grant.target(), grant.under()?, grant.now(), body).await
    }

    /// SHA-256 of the certificate (DER) of the authority that signs.
    pub fn root_digest(&self) -> Digest {
        self.issuers().active.id()
    }

    /// The root that signs, its first and last second: what is alarmed about in time.
    pub fn root_life(&self) -> (time::OffsetDateTime, time::OffsetDateTime) {
        self.issuers().active.life()
    }

    /// Counts up whenever an authority changes: the broker's own certificate is renewed then.
    pub fn rotations(&self) -> watch::Receiver<u64> {
        self.rotated.subscribe()
    }

    /// The time by its clock.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// From this moment on, time counts as right: nothing is signed once the wall clock has
    /// stepped by more than 5 minutes against the boot clock, until this is called again.
    pub fn trust_clock(&self, now: Moment) {
        self.opening.clock.trust(now);
    }

    /// Life of a workload's certificate whose entry says nothing.
    pub fn svid_ttl() -> Duration {
        limits::SVID_TTL
    }

    /// The unpacked form of [`Self::carry_out`].
    pub(super) async fn act(
        &self,
        caller: &Caller,
        ask: &Ask,
        target: &Target,
        index: u64,
        now: Moment,
        body: SecretValue,
    ) -> Result<Released, Failure> {
        let under = Some(index);
        match ask {
            Ask::Whoami {} => Ok(self.whoami(caller)),
            Ask::Renew {} => self.renew(caller, under, now).await,
            Ask::Duties { after, holds, since } => {
                self.duties(caller, after.as_ref(), *holds, *since)
            }
            Ask::Bundle { holds } => self.bundle(caller, *holds),
            Ask::Ca(step) => self.ca_step(step, under, now).await,
            Ask::Federation(step) => self.federation_step(caller, step, &body, under, now).await,
            Ask::Enroll { name, by: Some(_), .. } => {
                self.enroll_by(caller, name, target, under, now).await
            }
            Ask::Enroll { name, token, .. } => {
                self.enroll(caller, (name, token.as_ref()), &body, under, now).await
            }
            Ask::Issue { .. } => self.issue(caller, ask, target, now),
            Ask::TokenCreate { class, ttl_s } => self.token_create(class, *ttl_s, under, now).await,
            Ask::OperatorAdd { name } => self.operator_add(name, under, now).await,
            Ask::OperatorRemove { name } => self.operator_remove(name, under).await,
            Ask::DeviceList { after } => Ok(self.device_list(after.as_ref())),
            Ask::DeviceShow { class, id } => self.device_show(class, id),
            Ask::DeviceRevoke { class, id, release } => {
                self.device_revoke(class, id, *release, under, now).await
            }
            Ask::EntryCreate { entry } => self.entry_create(entry, under, now).await,
            Ask::EntryList { after } => Ok(self.entry_list(after.as_ref())),
            Ask::EntryDelete { .. } => self.entry_delete(target, under, now).await,
            Ask::Revoke { spiffe_id, resume } => self.revoke(spiffe_id, *resume, under, now).await,
            Ask::RevokeSvid { spiffe_id, serial } => {
                self.revoke_svid(spiffe_id, serial, under, now).await
            }
            Ask::Retract { svids } => self.retract(caller, svids, under, now).await,
            _ => Err(Failure::new(Code::Internal, Reason::Invalid)),
        }
    }

    /// What the store holds, as of the last commit.
    pub(super) fn mirror(&self) -> Arc<Mirror> {
        self.mirror.load_full()
    }

    /// The authorities, opened.
    pub(super) fn issuers(&self) -> Arc<Issuers> {
        self.issuers.load_full()
    }

    /// Makes a change. `plan` says, from the rows as they stand, which ones to write, or why not;
    /// it may be asked again when another broker was faster. The order is what I4 stands on: the
    /// commit, then the view, then the answer. A commit whose outcome is not known makes the next
    /// change read everything anew.
    pub(super) async fn change<T>(
        &self,
        under: Option<u64>,
        plan: impl Fn(&Mirror) -> Result<(Vec<Step>, T), Failure>,
    ) -> Result<(u64, T), AuthorityError> {
        let mut writing = self.writing.lock().await;
        for _ in 0..2 {
            if writing.stale {
                let loaded = Mirror::load(self.store.as_ref(), &self.domain).await?;
                let opened = self.opened(Some(loaded.authorities()?))?;
                self.publish(loaded, opened, &Touched::All);
                writing.stale = false;
            }
            let mirror = self.mirror();
            let (steps, value) = plan(&mirror)?;
            if steps.is_empty() {
                return Ok((mirror.revision, value));
            }
            let txn = mirror.txn(&steps, under)?;
            let row = steps.iter().find_map(|step| match step {
                Step::Authorities(row) => Some(row),
                _ => None,
            });
            let opened = self.opened(row)?; // a key that does not open stops it before the commit
            writing.stale = true;
            match self.store.commit(txn).await {
                Ok(revision) => {
                    let touched = touched(&mirror, &steps);
                    self.publish(mirror.with(steps, revision), opened, &touched);
                    writing.stale = false;
                    return Ok((revision, value));
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::new(Code::Unavailable, Reason::Changed).into())
    }

    /// As [`Self::change`], answered with the revision.
    pub(super) async fn change_done(
        &self,
        under: Option<u64>,
        plan: impl Fn(&Mirror) -> Result<Vec<Step>, Failure>,
    ) -> Result<Released, Failure> {
        let (revision, ()) = self.change(under, |mirror| Ok((plan(mirror)?, ()))).await?;
        Ok(Released::head(Answer::Done { revision }))
    }

    /// The row's authorities, opened, if they are others than now.
    fn opened(&self, row: Option<&Authorities>) -> Result<Option<Issuers>, AuthorityError> {
        let (mirror, former) = (self.mirror(), self.issuers());
        let Some(row) = row.filter(|row| mirror.authorities().is_ok_and(|held| **held != **row))
        else {
            return Ok(None);
        };
        Issuers::open(row, Some(&former), &self.opening, self.clock.now()).map(Some)
    }

    fn publish(&self, mirror: Mirror, opened: Option<Issuers>, touched: &Touched) {
        let rotated = opened.is_some();
        self.recent.note(touched, mirror.entries_revision);
        let issuers = opened.map_or_else(|| self.issuers(), Arc::new);
        let former = self.mirror();
        let concerns_all = rotated || mirror.federated().changed() != former.federated().changed();
        if rotated || !mirror.looks_like(&former) {
            // The same map as long as no root has changed: roots are read anew for another one.
            let same = !rotated && mirror.federated().roots_are_those_of(former.federated());
            let bundles = match same {
                true => Arc::clone(&self.identity.view().bundles),
                false => joined(&issuers, &mirror),
            };
            self.identity.install(view(&self.domain, bundles, &issuers, &mirror));
        }
        // Nobody signs with what the view does not trust yet.
        self.issuers.store(issuers);
        self.mirror.store(Arc::new(mirror));
        if let (true, Ok(row)) = (rotated, self.mirror().authorities()) {
            self.rotated.send_replace(row.sequence);
        }
        // Other roots are news for everybody, though no entry has changed.
        self.waiting.wake(if concerns_all { &Touched::All } else { touched });
    }
}
