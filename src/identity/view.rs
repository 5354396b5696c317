//! The immutable picture of who counts, and the calls that read it.
//!
//! A view is replaced as a whole and never changed, so each call sees one state. Nothing here reads
//! a store or a clock; who asks says what time it is.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

use super::applicant;
use super::caller::{Caller, CallerKind, Epochs, Proof, Standing};
use super::peer::{Applicant, Peer, SvidPeer};
use super::standing;
use super::svid_error::SvidError;
use super::trust::Trust;
use super::verify::{VerifiedSvid, claimed_domain, verify};
use crate::model::{
    DeviceClass, DeviceId, Digest, EntryId, Moment, Resident, Serial, SpiffeId, TrustDomain,
};

/// The roots of one trust domain; never merged with another's.
#[derive(Debug, Clone, Default)]
pub struct Bundle {
    /// CA certificates (DER).
    pub roots: Vec<CertificateDer<'static>>,
}

/// A device as identity needs it.
#[derive(Debug, Clone)]
pub struct DeviceStatus {
    /// Its class.
    pub class: DeviceClass,
    /// Raised by each revocation.
    pub epoch: u64,
    /// Ended for good.
    pub revoked: bool,
    /// Its key is held by a TPM.
    pub resident: Option<Resident>,
}

/// An entry as identity needs it.
#[derive(Debug, Clone)]
pub struct EntryStatus {
    /// Raised by each revocation.
    pub epoch: u64,
    /// Revoked and not resumed.
    pub suspended: bool,
}

/// Everything that decides who counts. Immutable; authority builds a new one and installs it.
#[derive(Debug, Clone)]
pub struct View {
    /// Ours.
    pub trust_domain: TrustDomain,
    /// Roots by trust domain, ours included.
    pub bundles: Arc<HashMap<TrustDomain, Bundle>>,
    /// SHA-256 of the SubjectPublicKeyInfo of each of our own issuing keys.
    pub own_issuers: Arc<HashSet<Digest>>,
    /// Known devices.
    pub devices: Arc<HashMap<DeviceId, DeviceStatus>>,
    /// Known entries.
    pub entries: Arc<HashMap<EntryId, EntryStatus>>,
    /// SVIDs that are dead whatever else holds: whose, by their serial numbers.
    pub denied: Arc<Denied>,
}

/// Revoked SVIDs, by serial number. One of them is dead for these identities and devices only: who
/// may end the SVIDs of one can't end another's by naming its number.
pub type Denied = HashMap<Serial, Vec<DeniedFor>>;

/// Whose SVID of a serial number is dead.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeniedFor {
    /// The one with this identity in it.
    Identity(SpiffeId),
    /// The one that was issued to this device.
    Device(DeviceId),
}

/// The room's one shared part.
#[derive(Debug)]
pub struct Identity {
    trust: ArcSwap<Trust>,
    changed: tokio::sync::watch::Sender<u64>,
    /// Federated domains whose SVID nobody's key of theirs had signed: no more than there are.
    unknown_keys: Mutex<HashSet<TrustDomain>>,
}

impl Identity {
    /// Starts with a view.
    pub fn new(view: View) -> Self {
        Self {
            trust: ArcSwap::from_pointee(Trust::new(view)),
            changed: tokio::sync::watch::channel(0).0,
            unknown_keys: Mutex::default(),
        }
    }

    /// Puts a new view in force, for the next request on. Roots are read anew only when `bundles`
    /// is another `Arc` than before.
    pub fn install(&self, view: View) {
        let trust = self.trust.load().after(view);
        self.trust.store(Arc::new(trust));
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The view in force.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.trust.load().view)
    }

    /// Counts up whenever a view was installed; live connections are looked at again then.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The roots of the view that are not used because they break a rule, and the rule: to be shown
    /// to operators when bundles are loaded.
    pub fn unusable_roots(&self) -> Vec<(TrustDomain, SvidError)> {
        self.trust.load().faults()
    }

    /// Verifies a chain that a TLS handshake has proven possession of.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn peer(&self, chain: &[CertificateDer<'_>], now: Moment) -> Result<Peer, SvidError> {
        let (leaf, beside) = chain.split_first().ok_or(SvidError::NoCertificate)?;
        let svid = self.verified(leaf, beside, now)?;
        Ok(Peer::Svid(SvidPeer(Arc::new(svid))))
    }

    /// The same without a peer to show for it: for verifiers of servers, whose handshake proves
    /// possession later. A server that we have called and that fails is no reason to look for keys.
    pub(super) fn verified_server(
        &self,
        leaf: &CertificateDer<'_>,
        beside: &[CertificateDer<'_>],
        now: Moment,
    ) -> Result<VerifiedSvid, SvidError> {
        let trust = self.trust.load();
        let svid = verify(&trust, leaf, beside, now)?;
        // Of the rest of its standing the one that calls knows nothing, or it is another's.
        match standing::judge(&trust, &svid, now).standing {
            Standing::Revoked | Standing::SvidRevoked => Err(SvidError::Ended),
            _ => Ok(svid),
        }
    }

    /// The same for whoever comes to us.
    pub(super) fn verified(
        &self,
        leaf: &CertificateDer<'_>,
        beside: &[CertificateDer<'_>],
        now: Moment,
    ) -> Result<VerifiedSvid, SvidError> {
        let trust = self.trust.load();
        let verified = verify(&trust, leaf, beside, now);
        // The new key of an authority often has the name of the old one.
        if matches!(verified, Err(SvidError::UnknownIssuer | SvidError::Signature)) {
            self.note_unknown_key(&trust, leaf);
        }
        verified
    }

    /// Remembers that a federated domain may have a key that we have not fetched yet.
    fn note_unknown_key(&self, trust: &Trust, leaf: &CertificateDer<'_>) {
        let Some(domain) = claimed_domain(leaf) else { return };
        if domain != trust.view.trust_domain && trust.roots(&domain).is_some() {
            let mut all = self.unknown_keys.lock().unwrap_or_else(PoisonError::into_inner);
            all.insert(domain);
        }
    }

    /// The federated domains in whose name somebody has shown an SVID under an unknown key since this
    /// was last asked: worth a look at their bundles. Anybody may have shown it.
    pub fn take_unknown_keys(&self) -> HashSet<TrustDomain> {
        let mut all = self.unknown_keys.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *all)
    }

    /// An applicant out of its self-signed certificate, which the handshake has proven.
    ///
    /// # Errors
    /// When the certificate or its key is not of an allowed form.
    pub fn applicant(&self, chain: &[CertificateDer<'_>]) -> Result<Peer, SvidError> {
        let spki = applicant::key_of(chain)?.into();
        Ok(Peer::Applicant(Applicant { spki }))
    }

    /// The peer as it stands now. Never fails: whoever does not count is a [`Caller`] that says so.
    pub fn recognise(&self, peer: &Peer, now: Moment) -> Caller {
        let trust = self.trust.load();
        match peer {
            Peer::Svid(SvidPeer(svid)) => recognise_svid(&trust, svid, now),
            Peer::Applicant(applicant) => Caller {
                id: Arc::clone(trust.names.applicant()),
                kind: CallerKind::Applicant,
                standing: Standing::Live,
                device: None,
                resident: None,
                entry: None,
                holder: None,
                epochs: Epochs::default(),
                proof: Proof::Key(Arc::clone(&applicant.spki)),
                under: 0,
            },
            Peer::Broker(task) => Caller {
                id: Arc::clone(trust.names.task(task.0)),
                kind: CallerKind::Broker(task.0),
                standing: Standing::Live,
                device: None,
                resident: None,
                entry: None,
                holder: None,
                epochs: Epochs::default(),
                proof: Proof::Own,
                under: 0,
            },
        }
    }

    /// Whether the caller still stands as it was recognised: same kind, device and epochs, and live
    /// then and now.
    pub fn still(&self, caller: &Caller, now: Moment) -> bool {
        let is_same = match &caller.proof {
            Proof::Svid(svid) => {
                let trust = self.trust.load();
                match trust.number == caller.under {
                    // Nothing that it was judged by has changed: time alone can have ended it.
                    true => standing::dates(svid, now) == Standing::Live,
                    false => {
                        let judged = standing::judge(&trust, svid, now);
                        judged.standing == Standing::Live
                            && judged.kind == caller.kind
                            && judged.device == caller.device
                            && judged.epochs == caller.epochs
                    }
                }
            }
            Proof::Key(_) => caller.kind == CallerKind::Applicant,
            Proof::Own => matches!(caller.kind, CallerKind::Broker(_)),
        };
        is_same && caller.standing == Standing::Live
    }
}

fn recognise_svid(trust: &Trust, svid: &Arc<VerifiedSvid>, now: Moment) -> Caller {
    let judged = standing::judge(trust, svid, now);
    Caller {
        id: Arc::clone(&svid.id),
        kind: judged.kind,
        standing: judged.standing,
        device: judged.device,
        resident: judged.resident,
        entry: judged.entry,
        holder: svid.extension.as_ref().map(|ours| ours.held_by),
        epochs: judged.epochs,
        proof: Proof::Svid(Arc::clone(svid)),
        under: trust.number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::extension::{EXTENSION_OID, Holder, SvidExtension};
    use crate::identity::peer::Task;
    use crate::identity::vectors::{Authority, Draft, NOW, OWN, PARTNER, WORKLOAD, World, key};
    use std::time::Duration;
    use time::OffsetDateTime;

    const LAPTOP: &[u8] = b"laptop";
    const ANA: &[u8] = b"ana";
    const LOST: &[u8] = b"a revoked laptop";

    fn moment(at: OffsetDateTime) -> Moment {
        Moment::new(at, Duration::from_secs(1))
    }

    fn entry(n: u128) -> EntryId {
        EntryId(uuid::Uuid::from_u128(n))
    }

    fn ours(device: &[u8], of_entry: Option<EntryId>) -> SvidExtension {
        SvidExtension {
            v: 1,
            device: DeviceId::of_key(device),
            entry: of_entry,
            device_epoch: 7,
            entry_epoch: if of_entry.is_some() { 3 } else { 0 },
            held_by: Holder::Agent,
        }
    }

    /// Entry 1 is in force, entry 2 suspended; laptop and ana are, the lost one is revoked.
    fn view(world: &World) -> View {
        let device = |class: &str, revoked| DeviceStatus {
            class: DeviceClass::parse(class).unwrap(),
            epoch: 7,
            revoked,
            resident: None,
        };
        View {
            devices: Arc::new(HashMap::from([
                (DeviceId::of_key(LAPTOP), device("laptop", false)),
                (DeviceId::of_key(ANA), device("person", false)),
                (DeviceId::of_key(LOST), device("laptop", true)),
            ])),
            entries: Arc::new(HashMap::from([
                (entry(1), EntryStatus { epoch: 3, suspended: false }),
                (entry(2), EntryStatus { epoch: 3, suspended: true }),
            ])),
            ..world.view()
        }
    }

    trait ParseId {
        fn parse_id(&self) -> SpiffeId;
    }

    impl<T: AsRef<str>> ParseId for T {
        fn parse_id(&self) -> SpiffeId {
            SpiffeId::parse(self.as_ref()).unwrap()
        }
    }

    fn deny(view: &mut View, whose: DeniedFor) {
        let serial = Serial(vec![0x5a; 16].into());
        Arc::make_mut(&mut view.denied).entry(serial).or_default().push(whose);
    }

    fn chain(
        id: &str,
        by: &Authority,
        ours: Option<&SvidExtension>,
    ) -> Vec<CertificateDer<'static>> {
        let mut draft = Draft::leaf(id);
        if let Some(ours) = ours {
            draft.more.push((EXTENSION_OID.to_vec(), false, ours.to_der()));
        }
        vec![draft.signed_by(by, &key())]
    }

    fn peer(identity: &Identity, chain: &[CertificateDer<'_>]) -> Peer {
        identity.peer(chain, moment(NOW)).unwrap()
    }

    fn id(path: &str) -> String {
        format!("spiffe://{OWN}{path}")
    }

    #[test]
    fn the_matrix_of_own_identities() {
        use CallerKind::{Agent, Operator, Workload};
        use Standing::{Live, Revoked, Unknown};
        let world = World::new();
        let identity = Identity::new(view(&world));
        let agent = |device: &[u8]| id(&format!("/doorward/agent/{}", DeviceId::of_key(device)));
        let ana = id("/doorward/operator/ana");
        let workload = ours(LAPTOP, Some(entry(1)));
        let at = |device_epoch, entry_epoch| SvidExtension {
            device_epoch,
            entry_epoch,
            ..workload.clone()
        };
        let older = SvidExtension { device_epoch: 6, ..ours(LAPTOP, None) };
        for (name, id, extension, kind, standing) in [
            ("a workload", WORKLOAD, Some(workload.clone()), Workload, Live),
            ("one without extension", WORKLOAD, None, Workload, Unknown),
            ("one without entry", WORKLOAD, Some(ours(LAPTOP, None)), Workload, Unknown),
            (
                "of an unknown entry",
                WORKLOAD,
                Some(ours(LAPTOP, Some(entry(9)))),
                Workload,
                Unknown,
            ),
            ("of a suspended one", WORKLOAD, Some(ours(LAPTOP, Some(entry(2)))), Workload, Revoked),
            ("on an unknown device", WORKLOAD, Some(ours(b"?", Some(entry(1)))), Workload, Unknown),
            ("on a revoked device", WORKLOAD, Some(ours(LOST, Some(entry(1)))), Workload, Revoked),
            ("of an old device epoch", WORKLOAD, Some(at(6, 3)), Workload, Revoked),
            ("of an old entry epoch", WORKLOAD, Some(at(7, 2)), Workload, Revoked),
            ("of a future device epoch", WORKLOAD, Some(at(8, 3)), Workload, Unknown),
            ("of a future entry epoch", WORKLOAD, Some(at(7, 4)), Workload, Unknown),
            ("revoked and unknown", WORKLOAD, Some(at(8, 2)), Workload, Revoked),
            ("an agent", &agent(LAPTOP), Some(ours(LAPTOP, None)), Agent, Live),
            ("an agent's path alone", &agent(LAPTOP), None, Workload, Unknown),
            ("another one's agent", &agent(LAPTOP), Some(ours(LOST, None)), Workload, Unknown),
            ("an agent with an entry", &agent(LAPTOP), Some(workload.clone()), Workload, Unknown),
            ("a revoked agent", &agent(LOST), Some(ours(LOST, None)), Agent, Revoked),
            ("an agent of old", &agent(LAPTOP), Some(older), Agent, Revoked),
            ("an unknown agent", &agent(b"?"), Some(ours(b"?", None)), Agent, Unknown),
            ("a person's agent", &agent(ANA), Some(ours(ANA, None)), Agent, Unknown),
            ("an operator", &ana, Some(ours(ANA, None)), Operator, Live),
            ("an operator's path alone", &ana, None, Workload, Unknown),
            ("an operator on a laptop", &ana, Some(ours(LAPTOP, None)), Operator, Unknown),
            ("an operator with an entry", &ana, Some(ours(ANA, Some(entry(1)))), Workload, Unknown),
            ("the broker", &id("/doorward/broker"), Some(workload.clone()), Workload, Unknown),
            ("a task", &id("/doorward/task/retention"), Some(workload.clone()), Workload, Unknown),
            ("an applicant", &id("/doorward/applicant"), Some(workload.clone()), Workload, Unknown),
        ] {
            let shown = chain(id, &world.root, extension.as_ref());
            let caller = identity.recognise(&peer(&identity, &shown), moment(NOW));
            assert_eq!((caller.kind(), caller.standing()), (kind, standing), "{name}");
            assert_eq!(caller.id().as_str(), id, "{name}");
            assert_eq!(identity.still(&caller, moment(NOW)), standing == Live, "{name}");
        }
    }

    #[test]
    fn a_caller_tells_what_it_was_recognised_by() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let key = key();
        let mut draft = Draft::leaf(WORKLOAD);
        draft.more.push((EXTENSION_OID.to_vec(), false, ours(LAPTOP, Some(entry(1))).to_der()));
        let leaf = draft.signed_by(&world.intermediate, &key);
        let shown = [leaf.clone(), world.intermediate.certificate.clone()];
        let caller = identity.recognise(&peer(&identity, &shown), moment(NOW));
        assert_eq!(caller.standing(), Standing::Live);
        assert_eq!(caller.device(), Some(&DeviceId::of_key(LAPTOP)));
        assert_eq!(caller.class().map(DeviceClass::as_str), Some("laptop"));
        assert_eq!(caller.entry(), Some(entry(1)));
        assert_eq!(caller.holder(), Some(Holder::Agent));
        assert_eq!(caller.epochs(), Epochs { device: 7, entry: 3 });
        assert_eq!(caller.serial(), Some(&Serial(vec![0x5a; 16].into())));
        assert_eq!(caller.certificate(), Some(Digest::of(&leaf)));
        assert_eq!(
            caller.spki(),
            Some(rcgen::PublicKeyData::subject_public_key_info(&key).as_slice())
        );
        assert_eq!(caller.not_after(), Some(draft.not_after));
    }

    #[test]
    fn a_server_that_was_revoked_is_believed_no_more_than_a_caller() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let shows = |identity: &Identity, of: u128, device: &[u8]| {
            let chain = chain(WORKLOAD, &world.root, Some(&ours(device, Some(entry(of)))));
            identity.verified_server(&chain[0], &chain[1..], moment(NOW)).map(|svid| svid.id)
        };
        assert!(shows(&identity, 1, LAPTOP).is_ok(), "control");
        assert_eq!(shows(&identity, 2, LAPTOP).err(), Some(SvidError::Ended), "its entry");
        assert_eq!(shows(&identity, 1, LOST).err(), Some(SvidError::Ended), "its device");
        let mut denied = view(&world);
        deny(&mut denied, DeniedFor::Identity(WORKLOAD.parse_id()));
        identity.install(denied);
        assert_eq!(shows(&identity, 1, LAPTOP).err(), Some(SvidError::Ended), "its certificate");
    }

    #[test]
    fn the_extension_of_any_other_issuer_is_not_believed() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let extension = ours(LAPTOP, Some(entry(1)));
        let standing = |id: &str, by: &Authority| {
            let caller =
                identity.recognise(&peer(&identity, &chain(id, by, Some(&extension))), moment(NOW));
            (caller.standing(), caller.device().is_some(), caller.entry().is_some())
        };
        assert_eq!(standing(WORKLOAD, &world.root), (Standing::Live, true, true), "control");
        let other_root = standing(WORKLOAD, &world.shallow_root);
        assert_eq!(other_root, (Standing::Unknown, false, false), "our domain, not our key");
        let visitor = format!("spiffe://{PARTNER}/web");
        assert_eq!(standing(&visitor, &world.partner), (Standing::Live, false, false));
        // A federated authority with the very key of ours still speaks for its own domain only.
        let mut view = view(&world);
        let twin = Draft::authority("twin root", PARTNER);
        let twin = Authority {
            certificate: twin.self_signed(&world.root.key),
            params: Authority::root(&twin, &rcgen::PKCS_ECDSA_P256_SHA256).params,
            key: rcgen::KeyPair::try_from(world.root.key.serialize_der()).unwrap(),
        };
        let partner = Bundle { roots: vec![twin.certificate.clone()] };
        let own = Bundle { roots: world.own_roots() };
        let domains = [(OWN, own), (PARTNER, partner)];
        let domains = domains.map(|(name, bundle)| (TrustDomain::parse(name).unwrap(), bundle));
        view.bundles = Arc::new(HashMap::from(domains));
        let identity = Identity::new(view);
        let shown = chain(&visitor, &twin, Some(&extension));
        let caller = identity.recognise(&peer(&identity, &shown), moment(NOW));
        assert_eq!((caller.standing(), caller.device()), (Standing::Live, None));
    }

    #[test]
    fn dates_are_judged_at_every_request() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let extension = ours(LAPTOP, Some(entry(1)));
        let own = peer(&identity, &chain(WORKLOAD, &world.root, Some(&extension)));
        let visitor = format!("spiffe://{PARTNER}/web");
        let visitor = peer(&identity, &chain(&visitor, &world.partner, None));
        let draft = Draft::leaf(WORKLOAD);
        let (begin, end) = (draft.not_before, draft.not_after);
        let (ns, minute) = (time::Duration::nanoseconds(1), time::Duration::minutes(1));
        for (peer, at, want) in [
            (&own, begin - ns, Standing::NotYet),
            (&own, begin, Standing::Live),
            (&own, end, Standing::Live),
            (&own, end + ns, Standing::Expired),
            (&visitor, end + minute, Standing::Live),
            (&visitor, end + minute + ns, Standing::Expired),
        ] {
            let caller = identity.recognise(peer, moment(at));
            assert_eq!(caller.standing(), want, "{} at {at}", caller.id());
            let when_live = identity.recognise(peer, moment(NOW));
            assert_eq!(identity.still(&when_live, moment(at)), want == Standing::Live);
        }
    }

    #[test]
    fn a_leaf_ends_with_its_issuer() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let mut short = Draft::authority("short-lived", OWN);
        short.not_after = NOW + time::Duration::minutes(1);
        let issuer = world.root.under(&short);
        let mut shown = chain(&format!("spiffe://{OWN}/x"), &issuer, None);
        shown.push(issuer.certificate);
        let Peer::Svid(svid) = peer(&identity, &shown) else { panic!("not an SVID") };
        assert_eq!(svid.svid().not_after(), short.not_after);
        let later = moment(short.not_after + time::Duration::seconds(1));
        assert_eq!(identity.peer(&shown, later).unwrap_err(), SvidError::IssuerExpired);
        assert_eq!(
            standing::judge(&Trust::new(view(&world)), svid.svid(), later).standing,
            Standing::Unknown,
            "no device: the worst wins"
        );
        let visitor = {
            let mut draft = Draft::authority("short-lived partner", PARTNER);
            draft.not_after = short.not_after;
            let issuer = world.partner.under(&draft);
            let mut shown = chain(&format!("spiffe://{PARTNER}/x"), &issuer, None);
            shown.push(issuer.certificate);
            peer(&identity, &shown)
        };
        assert_eq!(identity.recognise(&visitor, moment(NOW)).standing(), Standing::Live);
        assert_eq!(identity.recognise(&visitor, later).standing(), Standing::Expired);
    }

    #[test]
    fn a_new_view_is_in_force_at_the_next_request() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let extension = ours(LAPTOP, Some(entry(1)));
        let peer = peer(&identity, &chain(WORKLOAD, &world.root, Some(&extension)));
        let before = identity.recognise(&peer, moment(NOW));
        assert_eq!(before.standing(), Standing::Live, "control");
        let laptop = DeviceId::of_key(LAPTOP);
        let own = TrustDomain::parse(OWN).unwrap();
        type Change = fn(&mut View, DeviceId, &TrustDomain);
        let changes: [(&str, Change, Standing); 11] = [
            ("nothing of it", |_, _, _| {}, Standing::Live),
            (
                "another device",
                |v, _, _| {
                    Arc::make_mut(&mut v.devices).remove(&DeviceId::of_key(ANA));
                },
                Standing::Live,
            ),
            (
                "its device's epoch",
                |v, id, _| Arc::make_mut(&mut v.devices).get_mut(&id).unwrap().epoch = 8,
                Standing::Revoked,
            ),
            (
                "its entry's epoch",
                |v, _, _| Arc::make_mut(&mut v.entries).get_mut(&entry(1)).unwrap().epoch = 4,
                Standing::Revoked,
            ),
            (
                "its serial number, for its identity",
                |v, _, _| deny(v, DeniedFor::Identity(WORKLOAD.parse_id())),
                Standing::SvidRevoked,
            ),
            (
                "its serial number, for its device",
                |v, laptop, _| deny(v, DeniedFor::Device(laptop)),
                Standing::SvidRevoked,
            ),
            (
                "its serial number, for another identity",
                |v, _, _| deny(v, DeniedFor::Identity(format!("{WORKLOAD}/x").parse_id())),
                Standing::Live,
            ),
            (
                "its serial number, for another device",
                |v, _, _| deny(v, DeniedFor::Device(DeviceId::of_key(LOST))),
                Standing::Live,
            ),
            (
                "its entry",
                |v, _, _| {
                    Arc::make_mut(&mut v.entries).remove(&entry(1));
                },
                Standing::Unknown,
            ),
            (
                "its issuing key",
                |v, _, _| Arc::make_mut(&mut v.own_issuers).clear(),
                Standing::Unknown,
            ),
            (
                "its root",
                |v, _, own| {
                    Arc::make_mut(&mut v.bundles).get_mut(own).unwrap().roots.remove(0);
                },
                Standing::Unknown,
            ),
        ];
        for (name, change, want) in changes {
            let mut changed = view(&world);
            change(&mut changed, laptop, &own);
            let seen = identity.changes();
            identity.install(changed);
            assert!(seen.has_changed().unwrap(), "{name}");
            assert_eq!(identity.recognise(&peer, moment(NOW)).standing(), want, "{name}");
            assert_eq!(identity.still(&before, moment(NOW)), want == Standing::Live, "{name}");
        }
        identity.install(view(&world));
        assert_eq!(identity.recognise(&peer, moment(NOW)).standing(), Standing::Live, "resumed");
    }

    #[test]
    fn the_worst_standing_is_the_one_that_is_told() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let shown = chain(WORKLOAD, &world.root, Some(&ours(LAPTOP, Some(entry(1)))));
        let peer = peer(&identity, &shown);
        let late = moment(NOW + time::Duration::days(1));
        let standing = |identity: &Identity| identity.recognise(&peer, late).standing();
        assert_eq!(standing(&identity), Standing::Expired);
        let mut denied = view(&world);
        deny(&mut denied, DeniedFor::Device(DeviceId::of_key(LAPTOP)));
        identity.install(denied.clone());
        assert_eq!(standing(&identity), Standing::SvidRevoked, "rather than expired");
        denied.bundles = Arc::default();
        identity.install(denied);
        assert_eq!(standing(&identity), Standing::Unknown, "rather than revoked");
    }

    #[test]
    fn a_root_that_is_certified_anew_keeps_its_callers() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let shown = chain(WORKLOAD, &world.root, Some(&ours(LAPTOP, Some(entry(1)))));
        let peer = peer(&identity, &shown);
        let mut renewed = Draft::authority("own root", OWN);
        renewed.not_after = NOW + time::Duration::days(3650);
        let own = TrustDomain::parse(OWN).unwrap();
        let with = |roots: Vec<CertificateDer<'static>>| {
            let mut changed = view(&world);
            changed.bundles = Arc::new(HashMap::from([(own.clone(), Bundle { roots })]));
            identity.install(changed);
            identity.recognise(&peer, moment(NOW)).standing()
        };
        assert_eq!(with(vec![renewed.self_signed(&world.root.key)]), Standing::Live);
        assert_eq!(with(vec![renewed.self_signed(&key())]), Standing::Unknown, "another key");
        assert_eq!(with(vec![world.root.certificate.clone()]), Standing::Live);
        let mut ended = Draft::authority("own root", OWN);
        ended.not_after = NOW - time::Duration::seconds(1);
        let [old, new] = [ended, renewed].map(|draft| draft.self_signed(&world.root.key));
        for (roots, want) in [
            (vec![old.clone(), new.clone()], None),
            (vec![new, old.clone()], None),
            (vec![old], Some(SvidError::IssuerExpired)),
        ] {
            with(roots);
            assert_eq!(identity.peer(&shown, moment(NOW)).err(), want);
        }
    }

    #[test]
    fn applicants_and_the_broker_itself_have_no_certificate() {
        let world = World::new();
        let identity = Identity::new(view(&world));
        let key = key();
        let shown = [Draft::leaf(WORKLOAD).self_signed(&key)];
        assert_eq!(identity.peer(&shown, moment(NOW)).unwrap_err(), SvidError::UnknownIssuer);
        let applicant = identity.applicant(&shown).unwrap();
        let caller = identity.recognise(&applicant, moment(NOW));
        assert_eq!(caller.kind(), CallerKind::Applicant);
        assert_eq!(caller.id().as_str(), id("/doorward/applicant"), "whatever it calls itself");
        assert_eq!(
            caller.spki(),
            Some(rcgen::PublicKeyData::subject_public_key_info(&key).as_slice())
        );
        assert!(caller.device().is_none() && caller.certificate().is_none());
        assert!(identity.still(&caller, moment(NOW)));
        for task in [Task::Federation, Task::OwnIdentity, Task::Retention, Task::Rotation] {
            let caller = identity.recognise(&Peer::broker(task), moment(NOW));
            assert_eq!(caller.kind(), CallerKind::Broker(task));
            assert_eq!(caller.standing(), Standing::Live);
            assert_eq!(caller.id().as_str(), id(&format!("/doorward/task/{}", task.word())));
            assert!(caller.spki().is_none() && caller.not_after().is_none());
            assert!(identity.still(&caller, moment(NOW)));
        }
        assert_eq!(identity.peer(&[], moment(NOW)).unwrap_err(), SvidError::NoCertificate);
        assert_eq!(identity.applicant(&[]).unwrap_err(), SvidError::NoCertificate);
    }

    #[test]
    fn roots_that_break_a_rule_are_left_out_and_named() {
        let world = World::new();
        let mut view = view(&world);
        let own = TrustDomain::parse(OWN).unwrap();
        assert!(Identity::new(view.clone()).unusable_roots().is_empty(), "control");
        let mut leaf = Draft::authority("not an authority", OWN);
        leaf.constraints = Draft::leaf(WORKLOAD).constraints;
        let roots = vec![
            world.root.certificate.clone(),
            leaf.self_signed(&key()),
            world.partner.certificate.clone(),
            CertificateDer::from(vec![0x30, 0]),
        ];
        view.bundles = Arc::new(HashMap::from([(own.clone(), Bundle { roots })]));
        let identity = Identity::new(view);
        let faults = [SvidError::IssuerNotAuthority, SvidError::IssuerDomain, SvidError::Malformed];
        assert_eq!(identity.unusable_roots(), faults.map(|fault| (own.clone(), fault)));
        let shown = chain(WORKLOAD, &world.root, Some(&ours(LAPTOP, Some(entry(1)))));
        assert!(identity.peer(&shown, moment(NOW)).is_ok(), "the good root still counts");
    }

    #[test]
    fn any_trust_domain_has_its_reserved_names() {
        let world = World::new();
        for name in ["a", "-", ".", "..", "_", "1.2.3.4", &"z".repeat(255)] {
            let trust_domain = TrustDomain::parse(name).unwrap();
            let identity = Identity::new(View { trust_domain, ..world.view() });
            let caller = identity.recognise(&Peer::broker(Task::Retention), moment(NOW));
            assert_eq!(caller.id().trust_domain().as_str(), name);
        }
    }
}
