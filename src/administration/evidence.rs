//! Evidence intake: from a granted report to the device's standing, with the facts in the log.
//!
//! Whatever goes wrong leaves no standing that is better than before; where the log can't take the
//! facts, the device is forgotten, because a verdict may only rest on evidence that is written down.

use super::Administration;
use crate::decision_log::{Administration as ForAdministration, Grant, Note};
use crate::model::{Action, Answer, Digest, Failure, Object, Reason, Released, SecretValue};
use crate::posture::{Challenge, Claims, Verdict};

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
        let claims = self
            .posture
            .take_of((&device, resident), spki, &broker, challenge, evidence.expose(), now)
            .map_err(|error| Failure::invalid(error.to_string()))?;
        if claims.facts_digest != announced {
            self.posture.forget(&device);
            return Err(Failure::invalid("the evidence carries other facts than were announced"));
        }
        let after = self.posture.look(Some(&device), &demand, self.clock.now());
        if known != Some(claims.evidence_digest) {
            self.write_facts_down(&claims, &before, &after).await?;
        }
        Ok(Released::head(Answer::Reported {
            posture: after.label().to_owned(),
            next_ms: period_ms(&self.posture, &demand.profiles),
        }))
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
        if self.log.note(note).await.is_err() {
            self.posture.forget(&claims.device);
            return Err(Failure::new(crate::model::Code::Unavailable, Reason::LogUnavailable));
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
        let verdict = self.posture.look(caller.device(), &bundle.demand_all(), now);
        let (allowed, reason) = bundle.can(caller, &verdict, action, &object.to_string(), now);
        Ok(Released::head(Answer::Can { allowed, reason }))
    }
}

fn period_ms(posture: &crate::posture::Posture, profiles: &crate::posture::Profiles) -> u64 {
    u64::try_from(posture.period(profiles).as_millis()).unwrap_or(u64::MAX)
}
