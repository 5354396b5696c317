//! The room's one shared part: the standing of every device that reports.
//!
//! It is fed by `take` alone, and only evidence that held in full changes it. Nothing here keeps a
//! verdict alive: ages are counted anew at each look, on the boot clock, which nobody can set.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::broadcast;

use super::evidence::{Challenge, Claims, EvidenceError, Parties, verify};
use super::profile::{DEFAULT_MAX_AGE, Profiles, bits};
use super::standing::{DeviceStanding, Sessions};
use super::step_up::Challenges;
use super::verdict::{Demand, Verdict};
use crate::model::limits::{POSTURE_CHANGES, STANDINGS_MAX};
use crate::model::{DeviceId, Digest, Moment, Resident};

/// Parts of the map that are locked apart, so that cores seldom meet.
const SHARDS: usize = 64;
/// Reports come no oftener, and no seldomer, than this.
const PERIOD: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// The remembered time is renewed this seldom, so that requests do not fight for it.
const CLOCK_STEP_MS: u64 = 100;

#[derive(Debug, Default)]
struct Device {
    standing: Option<Arc<DeviceStanding>>,
    sessions: Sessions,
}

type Shard = HashMap<DeviceId, Device, ahash::RandomState>;

/// The room's one shared part: standings of devices (sharded map), no store.
#[derive(Debug)]
pub struct Posture {
    shards: Vec<RwLock<Shard>>,
    changes: broadcast::Sender<DeviceId>,
    /// The latest boot time that anybody brought, in milliseconds: what `knows` counts age by.
    latest_ms: AtomicU64,
    challenges: Challenges,
}

impl Default for Posture {
    fn default() -> Self {
        Self::new()
    }
}

impl Posture {
    /// No device has reported yet.
    pub fn new() -> Self {
        let (changes, _) = broadcast::channel(POSTURE_CHANGES);
        let shards = std::iter::repeat_with(RwLock::default).take(SHARDS).collect();
        let (latest_ms, challenges) = (AtomicU64::new(0), Challenges::default());
        Self { shards, changes, latest_ms, challenges }
    }

    /// Judges a device (`None`: no device known) now. Never waits: what could wait comes before,
    /// [`step_up`](Self::step_up).
    pub fn look(&self, device: Option<&DeviceId>, demand: &Demand, now: Moment) -> Verdict {
        self.remember(now);
        match device.and_then(|device| self.standing(device)) {
            Some(standing) => standing.judge(demand, now),
            None => Verdict::unknown(demand),
        }
    }

    /// Names of the profiles that the device's facts meet, whatever their age: what only a change of
    /// them takes away. None for a device that never reported or was forgotten.
    pub fn shown(&self, device: &DeviceId, profiles: &Profiles, now: Moment) -> Vec<String> {
        let Some(standing) = self.standing(device) else { return Vec::new() };
        let met = standing.met(profiles, now);
        let named = profiles.names().zip(bits());
        named.filter(|(_, bit)| met & bit != 0).map(|(name, _)| name.to_owned()).collect()
    }

    /// Whether the device's held facts have exactly this digest, and the evidence is within the
    /// shortest age limit of the profiles in use: whether another report of them changes no
    /// verdict.
    pub fn knows(&self, device: &DeviceId, facts: &Digest) -> bool {
        let Some(standing) = self.standing(device) else {
            return false;
        };
        let latest = Duration::from_millis(self.latest_ms.load(Ordering::Relaxed));
        let limit = standing.shortest_limit().unwrap_or(DEFAULT_MAX_AGE);
        standing.claims.facts_digest == *facts && latest.saturating_sub(standing.issued) <= limit
    }

    /// Verifies evidence against the challenge and the device's key, which a TPM may hold: then the
    /// device's id is another's digest. Nothing is in force by it until [`install`](Self::install);
    /// the challenge is used up either way.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(
        &self,
        (device, resident): (&DeviceId, Option<Resident>),
        device_spki: &[u8],
        broker_id: &str,
        challenge: &Challenge,
        evidence: &[u8],
        now: Moment,
    ) -> Result<Pending, EvidenceError> {
        self.remember(now);
        let parties = Parties { device, device_spki, broker: broker_id, resident };
        let verified = verify(parties, challenge, evidence, now)?;
        let (mut claims, session) = (verified.claims, verified.session);
        let shard = self.read(device);
        let held = shard.get(device);
        let sessions = held.map(|held| held.sessions.clone()).unwrap_or_default();
        sessions.with(session, &claims, now)?;
        let before = held.and_then(|held| held.standing.as_ref());
        if let Some(same) = before.filter(|before| before.says(&claims, now)) {
            claims.evidence_digest = same.claims.evidence_digest;
        }
        drop(shard);
        let standing = Arc::new(DeviceStanding::new(claims, challenge.issued()));
        Ok(Pending { standing, session })
    }

    /// Makes verified evidence the device's standing. Returns its claims, whose `evidence_digest` is
    /// the one that verdicts will show.
    ///
    /// # Errors
    /// When other evidence came first, so that this one's number does not rise any more.
    pub fn install(&self, pending: Pending, now: Moment) -> Result<Claims, EvidenceError> {
        let Pending { standing, session } = pending;
        let (claims, issued) = (standing.claims.clone(), standing.issued);
        let device = claims.device;
        let mut shard = self.write(&device);
        let held = shard.get(&device);
        let sessions = held.map(|held| held.sessions.clone()).unwrap_or_default();
        let sessions = sessions.with(session, &claims, now)?;
        let before = held.and_then(|held| held.standing.as_ref());
        let changed = before.is_none_or(|before| !before.says(&claims, now));
        let evicted = make_room(&mut shard, &device);
        shard.insert(device, Device { standing: Some(standing), sessions });
        drop(shard);
        evicted.into_iter().for_each(|device| self.announce(device));
        if changed {
            self.announce(device);
        }
        self.challenges.answered(&device, issued);
        Ok(claims)
    }

    /// Both at once, for whoever has nothing to write down in between.
    ///
    /// # Errors
    /// As [`verify`](Self::verify) and [`install`](Self::install); then nothing changes.
    pub fn take(
        &self,
        device: &DeviceId,
        device_spki: &[u8],
        broker_id: &str,
        challenge: &Challenge,
        evidence: &[u8],
        now: Moment,
    ) -> Result<Claims, EvidenceError> {
        let parties = (device, None);
        let pending = self.verify(parties, device_spki, broker_id, challenge, evidence, now)?;
        self.install(pending, now)
    }

    /// What failed in appraising this device leaves nothing of it: its verdict is unknown until it
    /// reports anew. The numbers and keys that it used stay used.
    pub fn distrust(&self, device: &DeviceId) {
        if let Some(held) = self.write(device).get_mut(device) {
            held.standing = None;
        }
        self.announce(*device);
    }

    /// Forgets a device (revoked).
    pub fn forget(&self, device: &DeviceId) {
        self.write(device).remove(device);
        self.announce(*device);
    }

    /// The device's standing, for `device show`.
    pub fn standing(&self, device: &DeviceId) -> Option<Arc<DeviceStanding>> {
        self.read(device).get(device)?.standing.clone()
    }

    /// All verdicts become unknown (clock step); devices must report again. Session keys stay
    /// remembered: a number that was used is not used again.
    pub fn forget_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let forgotten =
                shard.iter_mut().filter_map(|(id, held)| held.standing.take().map(|_| *id));
            let forgotten: Vec<DeviceId> = forgotten.collect();
            drop(shard);
            forgotten.into_iter().for_each(|device| self.announce(device));
        }
    }

    /// Sends a device's id whenever its facts changed or it was forgotten. A receiver that lags
    /// must look at every device anew.
    pub fn changes(&self) -> broadcast::Receiver<DeviceId> {
        self.changes.subscribe()
    }

    /// When a device should report again: a third of the shortest age limit, those aside that are
    /// met by challenges; 2 to 60 seconds. The agent adds its own ± 10 %.
    pub fn period(&self, profiles: &Profiles) -> Duration {
        (profiles.shortest_steady() / 3).clamp(PERIOD.0, PERIOD.1)
    }

    pub(super) fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    fn announce(&self, device: DeviceId) {
        // Nobody listening is no fault.
        let _ = self.changes.send(device);
    }

    fn remember(&self, now: Moment) {
        let now_ms = u64::try_from(now.boot().as_millis()).unwrap_or(u64::MAX);
        if now_ms > self.latest_ms.load(Ordering::Relaxed).saturating_add(CLOCK_STEP_MS) {
            self.latest_ms.fetch_max(now_ms, Ordering::Relaxed);
        }
    }

    fn shard(&self, device: &DeviceId) -> &RwLock<Shard> {
        let [first, ..] = device.0.0;
        // There are always 64 of them.
        &self.shards[usize::from(first) % SHARDS]
    }

    fn read(&self, device: &DeviceId) -> RwLockReadGuard<'_, Shard> {
        self.shard(device).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, device: &DeviceId) -> RwLockWriteGuard<'_, Shard> {
        self.shard(device).write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Evidence that holds, and is not in force yet.
#[derive(Debug)]
pub struct Pending {
    standing: Arc<DeviceStanding>,
    session: Digest,
}

impl Pending {
    /// What it says.
    pub fn claims(&self) -> &Claims {
        &self.standing.claims
    }

    /// The verdict that it would make.
    pub fn look(&self, demand: &Demand, now: Moment) -> Verdict {
        Arc::clone(&self.standing).judge(demand, now)
    }
}

/// Before one more device: the one that was silent longest goes if its part of the map is full.
fn make_room(shard: &mut Shard, device: &DeviceId) -> Option<DeviceId> {
    if shard.contains_key(device) || shard.len() < STANDINGS_MAX / SHARDS {
        return None;
    }
    let issued = |held: &Device| held.standing.as_ref().map(|standing| standing.issued);
    let oldest = shard.iter().min_by_key(|(_, held)| issued(held)).map(|(id, _)| *id)?;
    shard.remove(&oldest);
    Some(oldest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock as _, ManualClock};
    use crate::posture::fact::{FactName, FactValue, Facts};
    use crate::posture::requirement::Tri;
    use crate::posture::session_key::EvidenceKey;
    use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};
    use time::macros::datetime;
    use tokio::sync::broadcast::error::TryRecvError;

    const BROKER: &str = "spiffe://corp.example/doorward/broker";
    const FILE: &str = r#"
[profile.booted]
max_age = "60s"
require = [ { fact = "secureboot", eq = true } ]
[profile.managed]
max_age = "120s"
require = [ { fact = "device.enrolled", eq = true } ]
"#;

    struct Agent {
        d: KeyPair,
        s: EvidenceKey,
        device: DeviceId,
        facts: Facts,
    }

    impl Agent {
        fn new() -> Self {
            let d = KeyPair::generate().unwrap();
            let device = DeviceId::of_key(&d.subject_public_key_info());
            let mut agent =
                Self { d, s: EvidenceKey::generate().unwrap(), device, facts: Facts::default() };
            agent.says(FactName::SECUREBOOT, FactValue::Bool(true));
            agent
        }

        fn says(&mut self, name: FactName, value: FactValue) {
            self.facts.state(name, Ok(value)).unwrap();
        }

        fn report(&self, to: &Posture, seq: u64, now: Moment) -> Result<Claims, EvidenceError> {
            let challenge = Challenge::new(now, |_| [7; 32]);
            let spki = self.d.subject_public_key_info();
            let evidence = self.s.sign(
                self.device,
                BROKER,
                challenge.nonce(),
                &[7; 32],
                &spki,
                &self.facts,
                "0-a",
                seq,
                now,
                |message| self.d.sign(message).unwrap(),
            );
            to.take(&self.device, &spki, BROKER, &challenge, &evidence.0, now)
        }
    }

    fn clock() -> ManualClock {
        ManualClock::at(datetime!(2026-11-23 00:00 UTC))
    }

    fn demand() -> Demand {
        let profiles = Arc::new(Profiles::parse("posture.toml", FILE).unwrap());
        Demand { wanted: profiles.every(), profiles, colocated: false }
    }

    fn label(posture: &Posture, agent: &Agent, demand: &Demand, now: Moment) -> String {
        posture.look(Some(&agent.device), demand, now).label().to_owned()
    }

    #[test]
    fn a_verdict_begins_with_a_report_and_ends_by_itself() {
        let (posture, agent, clock, demand) = (Posture::new(), Agent::new(), clock(), demand());
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "unknown");
        assert_eq!(posture.look(None, &demand, clock.now()).label(), "unknown");
        let claims = agent.report(&posture, 1, clock.now()).unwrap();
        assert_eq!(claims.facts_digest, agent.facts.digest());
        let verdict = posture.look(Some(&agent.device), &demand, clock.now());
        assert_eq!(verdict.label(), "|booted=t|managed=t|");
        assert_eq!(verdict.evidence(), Some(claims.evidence_digest));
        assert_eq!(verdict.held_names().collect::<Vec<_>>(), ["booted", "managed"]);
        assert_eq!(verdict.why("booted"), ["secureboot eq true: true; it is true (kernel)"]);
        clock.advance(Duration::from_secs(60));
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=t|managed=t|");
        clock.advance(Duration::from_secs(1));
        let aged = posture.look(Some(&agent.device), &demand, clock.now());
        assert_eq!((aged.label(), aged.is_stale()), ("|booted=u|managed=t|", true));
        assert_eq!(aged.age(), Some(Duration::from_secs(61)));
        clock.advance(Duration::from_secs(60));
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=u|managed=u|");
        agent.report(&posture, 2, clock.now()).unwrap();
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=t|managed=t|");
    }

    #[test]
    fn a_set_wall_clock_changes_nothing() {
        let (posture, agent, clock, demand) = (Posture::new(), Agent::new(), clock(), demand());
        agent.report(&posture, 1, clock.now()).unwrap();
        clock.set_wall(datetime!(2020-01-01 00:00 UTC));
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=t|managed=t|");
        clock.advance(Duration::from_secs(61));
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=u|managed=t|");
        clock.set_wall(datetime!(2036-01-01 00:00 UTC));
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=u|managed=t|");
    }

    #[test]
    fn a_refused_report_changes_nothing() {
        let (posture, mut agent, clock, demand) = (Posture::new(), Agent::new(), clock(), demand());
        agent.report(&posture, 5, clock.now()).unwrap();
        let mut changes = posture.changes();
        clock.advance(Duration::from_secs(50));
        agent.says(FactName::SECUREBOOT, FactValue::Bool(false));
        assert_eq!(agent.report(&posture, 5, clock.now()).unwrap_err(), EvidenceError::Sequence);
        assert_eq!(agent.report(&posture, 4, clock.now()).unwrap_err(), EvidenceError::Sequence);
        let verdict = posture.look(Some(&agent.device), &demand, clock.now());
        assert_eq!(
            (verdict.label(), verdict.age()),
            ("|booted=t|managed=t|", Some(Duration::from_secs(50)))
        );
        assert_eq!(changes.try_recv(), Err(TryRecvError::Empty));
        agent.report(&posture, 6, clock.now()).unwrap();
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|managed=t|");
        assert_eq!(changes.try_recv(), Ok(agent.device));
    }

    #[test]
    fn one_device_can_not_report_for_another() {
        let (posture, agent, other, clock) = (Posture::new(), Agent::new(), Agent::new(), clock());
        assert!(agent.report(&posture, 1, clock.now()).is_ok());
        // The thief signs all with its own keys on its own connection, and names the other device.
        let mut thief = other;
        let own = std::mem::replace(&mut thief.device, agent.device);
        let (challenge, now) = (Challenge::new(clock.now(), |_| [7; 32]), clock.now());
        let spki = thief.d.subject_public_key_info();
        let evidence = thief.s.sign(
            agent.device,
            BROKER,
            challenge.nonce(),
            &[7; 32],
            &spki,
            &thief.facts,
            "0-a",
            2,
            now,
            |message| thief.d.sign(message).unwrap(),
        );
        let taken = posture.take(&own, &spki, BROKER, &challenge, &evidence.0, now);
        assert_eq!(taken.unwrap_err(), EvidenceError::Claim("ueid"));
        assert_eq!(thief.report(&posture, 2, now).unwrap_err(), EvidenceError::DeviceKey);
        assert!(posture.standing(&own).is_none());
    }

    #[test]
    fn a_retired_session_key_does_not_come_back() {
        let (posture, mut agent, clock) = (Posture::new(), Agent::new(), clock());
        agent.report(&posture, 1, clock.now()).unwrap();
        let old = std::mem::replace(&mut agent.s, EvidenceKey::generate().unwrap());
        agent.report(&posture, 0, clock.now()).unwrap();
        agent.s = old;
        assert_eq!(agent.report(&posture, 2, clock.now()).unwrap_err(), EvidenceError::SessionKey);
        posture.forget_all();
        assert_eq!(agent.report(&posture, 3, clock.now()).unwrap_err(), EvidenceError::SessionKey);
    }

    #[test]
    fn only_changes_are_announced_and_the_first_evidence_keeps_its_name() {
        let (posture, mut agent, clock, demand) = (Posture::new(), Agent::new(), clock(), demand());
        let mut changes = posture.changes();
        let first = agent.report(&posture, 1, clock.now()).unwrap();
        assert_eq!(changes.try_recv(), Ok(agent.device), "from unknown to known is a change");
        agent.says(FactName::BOOT_UPTIME_S, FactValue::Number(9));
        let second = agent.report(&posture, 2, clock.now()).unwrap();
        assert_eq!(second.evidence_digest, first.evidence_digest);
        assert_eq!(changes.try_recv(), Err(TryRecvError::Empty), "time passing is none");
        agent.says(FactName::OS_ID, FactValue::Text("debian".into()));
        let third = agent.report(&posture, 3, clock.now()).unwrap();
        assert_ne!(third.evidence_digest, first.evidence_digest);
        assert_eq!(changes.try_recv(), Ok(agent.device));
        posture.forget(&agent.device);
        assert_eq!(changes.try_recv(), Ok(agent.device));
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "unknown");
        agent.report(&posture, 4, clock.now()).unwrap();
        posture.forget_all();
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "unknown");
    }

    #[test]
    fn a_volatile_fact_that_moves_a_verdict_is_a_change() {
        let (posture, mut agent, clock) = (Posture::new(), Agent::new(), clock());
        let text = "[profile.timed]\nrequire = [{ fact = \"time.max_error_ms\", le = 100 }]\n";
        let profiles = Arc::new(Profiles::parse("posture.toml", text).unwrap());
        let demand = Demand { wanted: 1, profiles, colocated: false };
        let mut changes = posture.changes();
        let mut digests = Vec::new();
        for (seq, error, want) in [(1, 9, "|timed=t|"), (2, 99, "|timed=t|"), (3, 101, "|")] {
            agent.says(FactName::TIME_MAX_ERROR_MS, FactValue::Number(error));
            digests.push(agent.report(&posture, seq, clock.now()).unwrap().evidence_digest);
            assert_eq!(label(&posture, &agent, &demand, clock.now()), want);
            assert_eq!(changes.try_recv().is_ok(), seq != 2, "{error} ms");
        }
        assert_eq!(digests[0], digests[1]);
        assert_ne!(digests[1], digests[2], "the log must explain the new verdict");
    }

    #[test]
    fn a_connection_is_judged_by_its_own_key_and_not_by_its_neighbours() {
        let (posture, agent, clock) = (Posture::new(), Agent::new(), clock());
        let text = "[profile.bound]\nmax_age = \"60s\"\n\
                    require = [{ fact = \"conn.colocated\", eq = true }]\n\
                    [profile.never]\nrequire = [{ fact = \"conn.colocated\", eq = false }]\n";
        let profiles = Arc::new(Profiles::parse("posture.toml", text).unwrap());
        let other = Demand { wanted: profiles.every(), profiles, colocated: false };
        let bound = Demand { colocated: true, ..other.clone() };
        assert_eq!(label(&posture, &agent, &bound, clock.now()), "unknown", "no report yet");
        agent.report(&posture, 1, clock.now()).unwrap();
        for _ in 0..2 {
            assert_eq!(label(&posture, &agent, &other, clock.now()), "|bound=u|never=u|");
            assert_eq!(label(&posture, &agent, &bound, clock.now()), "|bound=t|");
        }
        let of = |demand| posture.look(Some(&agent.device), demand, clock.now());
        assert_eq!(of(&bound).evidence(), of(&other).evidence());
        assert!(!of(&other).is_stale(), "no challenge would help");
        clock.advance(Duration::from_secs(61));
        assert_eq!(label(&posture, &agent, &bound, clock.now()), "|bound=u|never=u|");
        let mut facts = Facts::default();
        let stated = facts.state(FactName::CONN_COLOCATED, Ok(FactValue::Bool(true)));
        assert!(stated.is_err(), "no device says it of itself");
    }

    #[test]
    fn a_fault_in_appraising_is_unknown_whatever_was_known_before() {
        let (posture, agent, clock, demand) = (Posture::new(), Agent::new(), clock(), demand());
        agent.report(&posture, 1, clock.now()).unwrap();
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=t|managed=t|");
        let mut changes = posture.changes();
        let challenge = Challenge::new(clock.now(), |_| [7; 32]);
        let spki = agent.d.subject_public_key_info();
        let sign = |message: &[u8]| agent.d.sign(message).unwrap();
        let (nonce, now) = (challenge.nonce(), clock.now());
        let evidence = agent.s.sign(
            agent.device,
            BROKER,
            nonce,
            &[7; 32],
            &spki,
            &agent.facts,
            "0-a",
            2,
            now,
            sign,
        );
        let pending =
            posture.verify((&agent.device, None), &spki, BROKER, &challenge, &evidence.0, now);
        let pending = pending.unwrap();
        let armed = crate::posture::faults::Armed::new();
        posture.install(pending, now).unwrap();
        assert_eq!(
            changes.try_recv(),
            Ok(agent.device),
            "the same facts, but nobody can judge them"
        );
        assert_eq!(label(&posture, &agent, &demand, now), "|booted=u|managed=u|");
        assert!(posture.shown(&agent.device, &demand.profiles, now).is_empty());
        drop(armed);
        agent.report(&posture, 3, clock.now()).unwrap();
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "|booted=t|managed=t|");
        posture.distrust(&agent.device);
        assert_eq!(label(&posture, &agent, &demand, clock.now()), "unknown");
        assert_eq!(agent.report(&posture, 3, clock.now()).unwrap_err(), EvidenceError::Sequence);
    }

    #[test]
    fn known_facts_are_known_until_a_verdict_would_have_ended() {
        let (posture, agent, clock, demand) = (Posture::new(), Agent::new(), clock(), demand());
        let digest = agent.facts.digest();
        assert!(!posture.knows(&agent.device, &digest));
        agent.report(&posture, 1, clock.now()).unwrap();
        assert!(posture.knows(&agent.device, &digest));
        assert!(!posture.knows(&agent.device, &Facts::default().digest()));
        clock.advance(Duration::from_secs(60));
        posture.look(Some(&agent.device), &demand, clock.now());
        assert!(posture.knows(&agent.device, &digest));
        clock.advance(Duration::from_secs(1));
        posture.look(None, &demand, clock.now());
        assert!(!posture.knows(&agent.device, &digest));
    }

    #[test]
    fn a_demand_sees_only_what_it_names_under_its_own_profiles() {
        let (posture, agent, clock, all) = (Posture::new(), Agent::new(), clock(), demand());
        agent.report(&posture, 1, clock.now()).unwrap();
        for wanted in [0b10, 0b01, 0b00, 0b11, 0b10] {
            let demand = Demand { wanted, ..all.clone() };
            let verdict = posture.look(Some(&agent.device), &demand, clock.now());
            let want = ["|", "|booted=t|", "|managed=t|", "|booted=t|managed=t|"];
            assert_eq!(verdict.label(), want[wanted as usize]);
            assert_eq!(verdict.held(), wanted);
            let of = if wanted & 0b01 == 0 { Tri::Unknown } else { Tri::True };
            assert_eq!(verdict.of("booted"), of);
            assert_eq!(verdict.of("nonsense"), Tri::Unknown);
        }
        let text = FILE.replace("eq = true", "eq = false");
        let profiles = Arc::new(Profiles::parse("posture.toml", &text).unwrap());
        let other = Demand { wanted: 0b11, profiles, colocated: false };
        assert_eq!(
            label(&posture, &agent, &other, clock.now()),
            "|",
            "new profiles judge held facts anew"
        );
        assert_eq!(label(&posture, &agent, &all, clock.now()), "|booted=t|managed=t|");
    }

    #[test]
    fn the_period_is_a_third_of_the_shortest_age() {
        let period = |age: &str| {
            let text = FILE.replace("60s", age);
            Posture::new().period(&Profiles::parse("f", &text).unwrap())
        };
        assert_eq!(period("60s"), Duration::from_secs(20));
        assert_eq!(period("12s"), Duration::from_secs(4));
        assert_eq!(period("5s"), Duration::from_secs(40), "that one is met by challenges");
        assert_eq!(period("90s"), Duration::from_secs(30));
        assert_eq!(Posture::new().period(&Profiles::default()), Duration::from_secs(20));
    }

    #[test]
    fn a_full_part_of_the_map_forgets_the_longest_silent() {
        let mut shard = Shard::default();
        let id = |n: usize| DeviceId::of_key(&n.to_be_bytes());
        let full = STANDINGS_MAX / SHARDS;
        for n in 0..full {
            assert_eq!(make_room(&mut shard, &id(n)), None);
            shard.insert(id(n), Device::default());
        }
        assert_eq!(make_room(&mut shard, &id(0)), None, "a known one needs no room");
        assert!(make_room(&mut shard, &id(full)).is_some());
        assert_eq!(shard.len(), full - 1);
    }
}
