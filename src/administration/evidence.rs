//! Evidence intake: from a granted report to the device's standing, with the facts in the log.
//!
//! Whatever goes wrong leaves no standing that is better than before; where the log can't take the
//! facts, the device is forgotten, because a verdict may only rest on evidence that is written down.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::time::timeout;

use super::Administration;
use crate::decision_log::{Administration as ForAdministration, Grant, Note};
use crate::model::limits::EVIDENCE_NOTED;
use crate::model::{
    Action, Answer, Code, DeviceId, Digest, Failure, Object, Reason, Released, SecretValue,
};
use crate::posture::{Challenge, Claims, Demand, EvidenceError, Verdict};

/// Why evidence is not in force.
enum Failed {
    /// It came too late for its challenge.
    Late(String),
    /// It speaks against the device.
    Contrary(String),
    /// Our fault.
    Panic,
}

impl Administration {
    /// Verifies the evidence and makes it what the device is judged by.
    pub(super) async fn take_report(
        &self,
        grant: &Grant<ForAdministration>,
        announced: Digest,
        evidence: &SecretValue,
        challenge: Option<&Challenge>,
    ) -> Result<Released, Failure> {
        let caller = grant.caller();
        let (Some(device), Some(spki)) = (caller.device().copied(), caller.spki()) else {
            return Err(Failure::invalid("only an enrolled device can report"));
        };
        let Some(challenge) = challenge else {
            return Err(Failure::invalid("a report answers a nonce; ask for one first"));
        };
        let resident = caller.resident();
        let broker = format!("spiffe://{}/doorward/broker", self.domain);
        let demand = self.policies.policy().current().demand_all();
        let now = self.clock.now();
        let before = self.posture.look(Some(&device), &demand, now);
        let known = self.posture.standing(&device).map(|standing| standing.claims.evidence_digest);
        let pending = self.appraise(|| {
            let evidence = evidence.expose();
            self.posture.verify((&device, resident), spki, &broker, challenge, evidence, now)
        });
        let pending = pending.map_err(|why| self.failed(&device, why))?;
        let claims = pending.claims().clone();
        if claims.facts_digest != announced {
            let why = "the evidence carries other facts than were announced".to_owned();
            return Err(self.failed(&device, Failed::Contrary(why)));
        }
        let after = pending.look(&demand, now);
        let is_news = known != Some(claims.evidence_digest);
        // What raises a verdict counts once it is written down; what lowers one counts at once.
        // Asked of a connection of which nothing is wanting: more may be raised for it.
        let bound = Demand { colocated: true, ..demand.clone() };
        let held = self.posture.look(Some(&device), &bound, now).held();
        let raises = pending.look(&bound, now).held() & !held != 0;
        if is_news && raises {
            self.write_facts_down(&claims, &before, &after).await?;
        }
        let installing = self.appraise(|| self.posture.install(pending, now));
        installing.map_err(|why| self.failed(&device, why))?;
        if is_news && !raises {
            self.write_facts_down(&claims, &before, &after).await?;
        }
        let after = self.posture.look(Some(&device), &demand, self.clock.now());
        Ok(Released::head(Answer::Reported {
            posture: after.label().to_owned(),
            next_ms: period_ms(&self.posture, &demand.profiles),
        }))
    }

    /// One step of taking evidence; a panic in it is its failure and nobody else's.
    fn appraise<T>(&self, step: impl FnOnce() -> Result<T, EvidenceError>) -> Result<T, Failed> {
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) if error.is_contrary() => Err(Failed::Contrary(error.to_string())),
            Ok(Err(error)) => Err(Failed::Late(error.to_string())),
            Err(_) => Err(Failed::Panic),
        }
    }

    /// After a failure the device's verdict is unknown, never the one from before; but for an answer
    /// that only came too late, which says nothing of the device.
    fn failed(&self, device: &DeviceId, why: Failed) -> Failure {
        match why {
            Failed::Late(why) => Failure::invalid(why),
            Failed::Contrary(why) => {
                self.posture.distrust(device);
                tracing::warn!(%device, why, "evidence was refused: the device is unknown");
                Failure::invalid(why)
            }
            Failed::Panic => {
                self.posture.distrust(device);
                tracing::error!(%device, "evidence could not be appraised: the device is unknown");
                Failure::new(Code::Internal, Reason::EngineError)
            }
        }
    }

    async fn write_facts_down(
        &self,
        claims: &Claims,
        before: &Verdict,
        after: &Verdict,
    ) -> Result<(), Failure> {
        let held: Vec<String> = after.held_names().map(str::to_owned).collect();
        let lost =
            before.held_names().filter(|name| !held.iter().any(|h| h == name)).map(str::to_owned);
        let note = Note::Posture {
            device: claims.device,
            evidence: claims.evidence_digest,
            facts: serde_json::to_value(&claims.facts).unwrap_or(serde_json::Value::Null),
            lost: lost.collect(),
            held,
        };
        if !matches!(timeout(EVIDENCE_NOTED, self.log.note(note)).await, Ok(Ok(_))) {
            self.posture.distrust(&claims.device);
            return Err(Failure::new(Code::Unavailable, Reason::LogUnavailable));
        }
        Ok(())
    }

    /// What would be decided for the caller itself; nothing is done.
    pub(super) async fn can_i(
        &self,
        grant: &Grant<ForAdministration>,
        action: Action,
        object: &str,
    ) -> Result<Released, Failure> {
        let object = Object::parse(object, &self.domain)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        let bundle = self.policies.policy().current();
        let now = self.clock.now();
        let caller = grant.caller();
        let demand = bundle.demand_all_of(caller);
        let verdict = self.posture.look(caller.device(), &demand, now);
        let (allowed, reason) = bundle.can(caller, &verdict, action, &object.to_string(), now);
        Ok(Released::head(Answer::Can { allowed, reason }))
    }
}

fn period_ms(posture: &crate::posture::Posture, profiles: &crate::posture::Profiles) -> u64 {
    u64::try_from(posture.period(profiles).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

    use super::*;
    use crate::administration::Policies;
    use crate::decision_log::{DecisionLog, LogKey, LogSettings, Ruling, Writer};
    use crate::identity::{Caller, CallerKind, Standing, sample};
    use crate::model::limits::LOG_SEGMENT_MIN;
    use crate::model::{Ask, Clock, DeviceClass, ManualClock, Target, TrustDomain};
    use crate::policy::{BundleFiles, Decision};
    use crate::posture::{EvidenceKey, FactName, FactValue, Facts, Posture, faults};
    use crate::store::RedbStore;

    const BROKER: &str = "spiffe://d.example/doorward/broker";

    /// The whole room over a log whose writer runs only if it is let, and one device.
    struct Scene {
        room: Administration,
        posture: Arc<Posture>,
        clock: Arc<ManualClock>,
        key: KeyPair,
        session: EvidenceKey,
        caller: Caller,
        writer: Option<Writer>,
        _dir: tempfile::TempDir,
    }

    impl Scene {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(ManualClock::at(time::macros::datetime!(2026-11-23 10:00 UTC)));
            let domain = TrustDomain::parse("d.example").unwrap();
            let store = Arc::new(RedbStore::create(&dir.path().join("store.redb")).unwrap());
            let rows =
                "p, ops, spiffe://d.example/doorward/operator/*, policy, *, any, -, -, allow\n";
            let posture = "[profile.quiet]\nmax_age = \"60s\"\n\
                           require = [{ fact = \"net.listen_any\", eq = false }]\n";
            let files = [("policy.csv", rows), ("posture.toml", posture)];
            let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
            let files = BundleFiles { files: files.into() };
            Policies::create(&*store, &domain, &files).await.unwrap();
            let policies = Policies::open(store.clone(), domain.clone()).await.unwrap();
            let settings = LogSettings {
                dir: dir.path().join("log"),
                origin: "d.example/decisions/0".to_owned(),
                reserve: 0,
                segment_bytes: LOG_SEGMENT_MIN,
            };
            let seed = LogKey::from_seed(&[7; 32]);
            let (log, writer) = DecisionLog::open(settings, seed, clock.clone()).unwrap();
            let posture = Arc::new(Posture::new());
            let (timed, shared) = (clock.clone() as Arc<dyn Clock>, posture.clone());
            let room = Administration::new(domain, timed, shared, policies, log, store);
            let key = KeyPair::generate().unwrap();
            let spki = key.subject_public_key_info();
            let device = DeviceId::of_key(&spki);
            let id = format!("spiffe://d.example/doorward/agent/{device}");
            let place = Some((DeviceClass::parse("server").unwrap(), device));
            let caller = sample::caller(&id, CallerKind::Agent, Standing::Live, place);
            let caller = sample::with_key(caller, &spki);
            let session = EvidenceKey::generate().unwrap();
            Self { room, posture, clock, key, session, caller, writer: Some(writer), _dir: dir }
        }

        /// One report over the room's own way in. Its grant stands on no record, so that it can be
        /// had while the log does not write.
        async fn report(&self, seq: u64, listens: bool) -> Result<Released, Failure> {
            let mut facts = Facts::default();
            facts.state(FactName::NET_LISTEN_ANY, Ok(FactValue::Bool(listens))).unwrap();
            let device = *self.caller.device().unwrap();
            let (spki, now) = (self.key.subject_public_key_info(), self.clock.now());
            let challenge = Challenge::new(now, |_| [7; 32]);
            let nonce = challenge.nonce();
            let endorse = |message: &[u8]| self.key.sign(message).unwrap();
            let signed = self
                .session
                .sign(device, BROKER, nonce, &[7; 32], &spki, &facts, "0-a", seq, now, endorse);
            let ask = Ask::Report { facts: facts.digest() };
            let decision = Decision::sample(self.caller.clone(), ask, true)
                .on(Target::Evidence { unchanged: true });
            let ruled = self.room.log.record(decision).await;
            let Ok(Ruling::Administration(grant)) = ruled else { panic!("no grant") };
            let evidence = SecretValue::new(signed.0.to_vec());
            self.room.carry_out(grant, evidence, Some(&challenge)).await
        }

        fn label(&self) -> String {
            let demand = self.room.policy().current().demand_all();
            let verdict = self.posture.look(self.caller.device(), &demand, self.clock.now());
            verdict.label().to_owned()
        }

        /// A device that holds its profile, with that written down.
        async fn good(&mut self) {
            let writer = self.writer.take().unwrap();
            std::thread::spawn(|| writer.run());
            self.report(1, false).await.unwrap();
            assert_eq!(self.label(), "|quiet=t|");
        }
    }

    #[tokio::test]
    async fn an_appraisal_that_panics_leaves_the_device_unknown() {
        let mut scene = Scene::new().await;
        scene.good().await;
        let armed = faults::Armed::new();
        let failure = scene.report(2, false).await.unwrap_err();
        drop(armed);
        assert_eq!((failure.code, failure.reason), (Code::Internal, Reason::EngineError));
        assert_eq!(scene.label(), "unknown", "never the verdict from before");
        scene.report(3, false).await.unwrap();
        assert_eq!(scene.label(), "|quiet=t|", "it heals with the next report");
    }

    #[tokio::test]
    async fn what_can_not_be_written_down_leaves_the_device_unknown() {
        let mut scene = Scene::new().await;
        scene.good().await;
        scene.report(2, false).await.unwrap();
        assert_eq!(scene.label(), "|quiet=t|", "the same facts need no record");
        // Judged from memory, the grant was there before the log ended.
        let before = scene.posture.standing(scene.caller.device().unwrap()).unwrap();
        let claims = Claims { evidence_digest: Digest::of(b"other"), ..before.claims.clone() };
        scene.room.log.close();
        let verdict = |label| Verdict::sample(label);
        let noted =
            scene.room.write_facts_down(&claims, &verdict("|"), &verdict("|quiet=t|")).await;
        assert_eq!(noted.unwrap_err().reason, Reason::LogUnavailable);
        assert_eq!(scene.label(), "unknown");
    }

    #[tokio::test]
    async fn a_log_that_hangs_raises_nothing_and_lets_nothing_live_on() {
        let scene = Scene::new().await;
        // Its writer does not run: a disk that hangs.
        let began = tokio::time::Instant::now();
        let (reported, seen) = tokio::join!(scene.report(1, false), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            scene.label()
        });
        assert_eq!(seen, "unknown", "a better verdict waits for its record");
        assert_eq!(reported.unwrap_err().reason, Reason::LogUnavailable);
        assert_eq!(scene.label(), "unknown");
        assert!(began.elapsed() < EVIDENCE_NOTED * 4);
    }

    #[tokio::test]
    async fn evidence_that_speaks_against_the_device_ends_its_verdict_and_a_late_one_does_not() {
        let mut scene = Scene::new().await;
        scene.good().await;
        let device = *scene.caller.device().unwrap();
        let late = scene.room.failed(&device, Failed::Late("late".to_owned()));
        assert_eq!((late.code, scene.label().as_str()), (Code::Invalid, "|quiet=t|"));
        let again = scene.report(1, false).await.unwrap_err();
        assert!(again.hint.unwrap().contains("sequence"));
        assert_eq!(scene.label(), "unknown");
        assert!(scene.report(1, false).await.is_err(), "and what was used stays used");
        scene.report(2, true).await.unwrap();
        assert_eq!(scene.label(), "|");
    }
}
