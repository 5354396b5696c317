//! The line: Peer → Caller → Verdict → Decision → Grant → Answer, for every request.
//!
//! Nothing returns before the log: whoever does not count, whatever is missing and whatever fails in
//! judging is a value that ends in a recorded denial. What is guarded opens only for a `Grant`, and
//! what was opened leaves only if nothing that it was decided under has changed meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::connections::Connection;
use super::metrics::Metrics;
use super::outcome::{
    Asked, Body, Climb, Same, index_of, is_repeatable, refusal_of, refuse, releases, signs,
    unrecorded,
};
use super::rates::Rates;
use super::traffic::Traffic;
use crate::administration::Administration;
use crate::authority::{Authority, OwnIdentity};
use crate::decision_log::{DecisionLog, Note, RecordError, Ruling};
use crate::identity::{Caller, CallerKind, Identity, Peer};
use crate::model::{
    Action, Answer, Ask, ClientRef, Clock, Code, DeviceId, EnrolledBy, Failure, Kind, Moment,
    Object, Reason, Refusal, Released, RequestId, SecretValue, Shown, Target, fit_page,
};
use crate::policy::{Bundle, Generations, Policy};
use crate::posture::{Challenge, Demand, Posture, Verdict};
use crate::vault::Vault;

/// The parts that the line joins.
#[derive(Debug)]
pub struct LineParts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who asks.
    pub identity: Arc<Identity>,
    /// From what.
    pub posture: Arc<Posture>,
    /// May it.
    pub policy: Arc<Policy>,
    /// Written down first.
    pub log: DecisionLog,
    /// Secrets.
    pub vault: Vault,
    /// Identities.
    pub authority: Authority,
    /// The rest.
    pub administration: Administration,
    /// Requests and denials a second.
    pub rates: Rates,
    /// Figures.
    pub metrics: Arc<Metrics>,
}

/// The one way in.
#[derive(Debug)]
pub struct Line {
    parts: LineParts,
    /// The clocks agree; while they do not, nothing is issued.
    clock_agrees: AtomicBool,
    pub(super) traffic: Traffic,
}

impl Line {
    /// Joins the parts.
    pub fn new(parts: LineParts) -> Self {
        Self { parts, clock_agrees: AtomicBool::new(true), traffic: Traffic::default() }
    }

    /// The parts, for whoever supervises them.
    pub fn parts(&self) -> &LineParts {
        &self.parts
    }

    /// Says whether wall and boot clock agree.
    pub fn clock_agrees(&self, agrees: bool) {
        self.clock_agrees.store(agrees, Ordering::Relaxed);
    }

    /// Answers one request, or refuses it. Either way the decision is in the log first.
    ///
    /// # Errors
    /// The refusal, as the client may see it.
    pub async fn answer(
        &self,
        peer: &Peer,
        connection: Option<&Connection>,
        client: Option<ClientRef>,
        ask: Arc<Ask>,
        body: &mut impl Body,
    ) -> (RequestId, Result<Released, Refusal>) {
        let started = self.parts.clock.now();
        let id = RequestId::new(started);
        let asked = Asked { id, peer, connection, client, ask };
        let (ask, mut read) = (&asked.ask, None);
        let mut outcome = self.climb(&asked, started, body, &mut read).await;
        if matches!(outcome, Climb::Again) {
            let again = self.climb(&asked, self.parts.clock.now(), body, &mut read);
            outcome = Box::pin(again).await;
        }
        let outcome = match outcome {
            Climb::Ended(outcome) => outcome,
            Climb::Again => Err(refuse(id, Code::Unavailable, Reason::Changed)),
        };
        let reason = outcome.as_ref().err().map_or(Reason::Allow, |refusal| refusal.reason);
        let took = self.parts.clock.now().since(started.boot());
        self.parts.metrics.decided(ask.action(), reason, took.as_secs_f64());
        (id, outcome)
    }

    /// The broker's own certificate: the same climb, for the one task that needs more than an answer.
    ///
    /// # Errors
    /// As [`Line::answer`].
    pub async fn own_identity(&self, peer: &Peer) -> Result<OwnIdentity, Refusal> {
        let parts = &self.parts;
        let now = parts.clock.now();
        let id = RequestId::new(now);
        let caller = Arc::new(parts.identity.recognise(peer, now));
        let (bundle, ask) = (parts.policy.current(), Arc::new(Ask::Renew {}));
        let demand = bundle.demand(&caller, &ask);
        let verdict = parts.posture.look(caller.device(), &demand, now);
        let decision = bundle.decide(id, caller, verdict, ask, None, Target::Itself, now);
        match parts.log.record(decision).await {
            Ok(Ruling::Authority(grant)) => {
                let index = grant.recorded();
                self.own_noted(id, index, parts.authority.own_identity(grant)).await
            }
            Ok(Ruling::Refused(refusal)) => Err(refusal),
            Ok(_) => Err(refuse(id, Code::Internal, Reason::EngineError)),
            Err(_) => Err(refuse(id, Code::Unavailable, Reason::LogUnavailable)),
        }
    }

    async fn climb<B: Body>(
        &self,
        asked: &Asked<'_>,
        now: Moment,
        body: &mut B,
        read: &mut Option<SecretValue>,
    ) -> Climb {
        let Asked { id, connection, ref ask, .. } = *asked;
        let parts = &self.parts;
        let caller = Arc::new(parts.identity.recognise(asked.peer, now));
        if let Some(refusal) = self.over_rate(asked, &caller, now) {
            return Climb::Ended(Err(refusal));
        }
        let (now, caller, bundle, demand) = self.freshest(asked, caller, now).await;
        let target = self.find(asked, &caller, body, read, now).await;
        let verdict = parts.posture.look(caller.device(), &demand, now);
        let (made_under, ruling) = match self.decide(asked, &caller, &bundle, &verdict, target, now)
        {
            Ok((made_under, recording)) => (made_under, recording.await),
            Err(refusal) => return Climb::Ended(Err(refusal)),
        };
        let ruled = ruling.map_err(|error| unrecorded(id, &error));
        let (index, ruling) = match ruled.and_then(|ruling| Ok((index_of(&ruling)?, ruling))) {
            Ok(ruled) => ruled,
            Err(refusal) => return Climb::Ended(Err(refusal)),
        };
        // The body comes first: a client that withholds it must not carry out tomorrow what was
        // decided today.
        if read.is_none() {
            match body.read().await {
                Ok(value) => *read = Some(value),
                Err(failure) => return Box::pin(self.failed(id, index, failure)).await,
            }
        }
        let still = || self.still(&caller, &bundle, &demand, made_under);
        // What only looks is compared once, before its answer leaves.
        if !is_repeatable(ask) && still() != Same::All {
            return Box::pin(self.not_released(id, index, still(), true)).await;
        }
        if let Err(failure) = self.may_begin(ask, &caller) {
            return Box::pin(self.failed(id, index, failure)).await;
        }
        // Before anything is opened: a profile that drops from now on closes this connection.
        if let Some(connection) = connection {
            connection.rely_on(verdict.held_names());
        }
        let value = read.take().unwrap_or_else(SecretValue::empty);
        match self.carry_out(ruling, value, body.challenge()).await {
            Ok(released) => match releases(ask).then(still) {
                None | Some(Same::All) => Climb::Ended(Ok(released)),
                Some(change) => {
                    drop(released);
                    Box::pin(self.not_released(id, index, change, is_repeatable(ask))).await
                }
            },
            Err(failure) => Box::pin(self.failed(id, index, failure)).await,
        }
    }

    /// Decides and hands the decision to the log; what comes back is waited for. Denials over the
    /// rate are only counted.
    fn decide(
        &self,
        asked: &Asked<'_>,
        caller: &Arc<Caller>,
        bundle: &Arc<Bundle>,
        verdict: &Verdict,
        target: Target,
        now: Moment,
    ) -> Result<(Generations, impl Future<Output = Result<Ruling, RecordError>> + use<>), Refusal>
    {
        let (parts, id, client) = (&self.parts, asked.id, asked.client.clone());
        let (caller, ask) = (Arc::clone(caller), Arc::clone(&asked.ask));
        let decision = bundle.decide(id, caller, verdict.clone(), ask, client, target, now);
        let source = asked.connection.and_then(Connection::source);
        if !decision.allowed() && !parts.rates.denial(decision.caller(), source, now) {
            parts.log.count(decision.caller().id().as_str(), "denied over the rate");
            return Err(refuse(id, Code::Limited, Reason::Limited));
        }
        Ok((decision.generations(), parts.log.record(decision)))
    }

    /// What stands against beginning, beside the decision.
    fn may_begin(&self, ask: &Ask, caller: &Caller) -> Result<(), Failure> {
        if signs(ask) && !self.clock_agrees.load(Ordering::Relaxed) {
            return Err(Failure::new(Code::Unavailable, Reason::ClockStep));
        }
        let Ask::EntryCreate { entry } = ask else { return Ok(()) };
        // Nobody gets an identity out of an entry that he could not have issued himself.
        let bundle = self.parts.policy.current();
        let now = self.parts.clock.now();
        let verdict = self.parts.posture.look(caller.device(), &bundle.demand_all(), now);
        let object = Object::Svid(entry.spiffe_id.clone()).to_string();
        match bundle.can(caller, &verdict, Action::Issue, &object, now).0 {
            true => Ok(()),
            false => Err(Failure {
                code: Code::Denied,
                reason: Reason::NoAllow,
                hint: Some(format!("an entry needs the right to issue on `{object}` too")),
            }),
        }
    }

    fn over_rate(&self, asked: &Asked<'_>, caller: &Caller, now: Moment) -> Option<Refusal> {
        if matches!(caller.kind(), CallerKind::Broker(_)) {
            return None;
        }
        if self.traffic.is_draining() {
            return Some(refuse(asked.id, Code::Unavailable, Reason::Draining));
        }
        let source = asked.connection.and_then(Connection::source);
        if self.parts.rates.request(caller, source, &asked.ask, now) {
            return None;
        }
        self.parts.log.count(caller.id().as_str(), "over the rate");
        Some(refuse(asked.id, Code::Limited, Reason::Limited))
    }

    /// What the object's name points at; no key is used. A store that fails is a value too.
    pub(super) async fn locate(&self, ask: &Ask, caller: &Caller) -> Target {
        if let Ask::Report { facts } = ask {
            let unchanged =
                caller.device().is_some_and(|device| self.parts.posture.knows(device, facts));
            return Target::Evidence { unchanged };
        }
        let failed = |error: &dyn std::error::Error| {
            tracing::error!(%error, "the store did not say what is asked for: denied");
            Target::Unknown
        };
        match ask.kind() {
            Kind::Secret => self.parts.vault.locate(ask).await.unwrap_or_else(|e| failed(&e)),
            Kind::Authority => Box::pin(self.parts.authority.locate(ask, caller))
                .await
                .unwrap_or_else(|e| failed(&e)),
            Kind::Administration => Target::Itself,
        }
    }

    async fn carry_out(
        &self,
        ruling: Ruling,
        value: SecretValue,
        challenge: Option<&Challenge>,
    ) -> Result<Released, Failure> {
        match ruling {
            Ruling::Secret(grant) => self.parts.vault.carry_out(grant, value).await,
            Ruling::Authority(grant) => {
                let (id, caller, ask) = (grant.id(), grant.caller().clone(), grant.ask().clone());
                let came_again = of_tpm(grant.target());
                let released = Box::pin(self.parts.authority.carry_out(grant, value)).await?;
                if let Some(device) = came_again {
                    self.parts.posture.forget(&device);
                }
                Box::pin(self.note_outcome(id, &caller, &ask, &released)).await?;
                Ok(self.with_posture(&caller, released))
            }
            Ruling::Administration(grant) => {
                let (id, caller, ask) = (grant.id(), grant.caller().clone(), grant.ask().clone());
                let carried = self.parts.administration.carry_out(grant, value, challenge);
                let released = Box::pin(carried).await?;
                Box::pin(self.note_outcome(id, &caller, &ask, &released)).await?;
                Ok(released)
            }
            Ruling::Refused(refusal) => {
                Err(Failure { code: refusal.code, reason: refusal.reason, hint: refusal.hint })
            }
        }
    }

    /// Authority knows no posture: where an answer shows one, it is put in here.
    fn with_posture(&self, caller: &Caller, mut released: Released) -> Released {
        let now = self.parts.clock.now();
        let demand = self.parts.policy.current().demand_all();
        match &mut released.answer {
            Answer::Identity { posture, .. } => {
                let demand = self.parts.policy.current().demand_all_of(caller);
                let verdict = self.parts.posture.look(caller.device(), &demand, now);
                *posture = verdict.label().to_owned();
            }
            Answer::Devices { items, more } => {
                let one = items.len() == 1;
                for item in items.iter_mut() {
                    let verdict = self.parts.posture.look(Some(&item.id), &demand, now);
                    item.posture = verdict.label().to_owned();
                    item.evidence_age_ms =
                        verdict.age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
                    if one && let Some(standing) = self.parts.posture.standing(&item.id) {
                        item.facts = serde_json::to_value(&standing.claims.facts).ok();
                    }
                }
                *more |= fit_page(items); // labels of many profiles are long
            }
            _ => {}
        }
        released
    }

    /// Compares what the decision was made under with what stands now.
    fn still(
        &self,
        caller: &Caller,
        bundle: &Arc<Bundle>,
        demand: &Demand,
        made_under: Generations,
    ) -> Same {
        let now = self.parts.clock.now();
        let verdict = self.parts.posture.look(caller.device(), demand, now);
        if !self.parts.identity.still(caller, now) || verdict.held() != made_under.held {
            return Same::CallerChanged;
        }
        if self.parts.policy.current().generation() != bundle.generation() {
            return Same::PolicyChanged;
        }
        Same::All
    }

    /// Records that nothing left, and says whether to climb once more.
    async fn not_released(
        &self,
        id: RequestId,
        index: Option<u64>,
        change: Same,
        again: bool,
    ) -> Climb {
        let note = Note::NotReleased { request: id, index, reason: Reason::Changed };
        if let Err(error) = self.parts.log.note(note).await {
            tracing::warn!(request = %id, %error, "«not released» could not be recorded");
        }
        if change == Same::PolicyChanged && again {
            return Climb::Again;
        }
        Climb::Ended(Err(refuse(id, Code::Unavailable, Reason::Changed)))
    }

    /// Records that nothing came of it, and refuses.
    async fn failed(&self, id: RequestId, index: Option<u64>, failure: Failure) -> Climb {
        self.note_failure(id, index, &failure).await;
        Climb::Ended(Err(refusal_of(id, failure)))
    }

    pub(super) async fn note_failure(&self, id: RequestId, index: Option<u64>, failure: &Failure) {
        let note = Note::NotReleased { request: id, index, reason: failure.reason };
        if let Err(error) = self.parts.log.note(note).await {
            tracing::warn!(request = %id, %error, "«not carried out» could not be recorded");
        }
    }
}

/// The device that a TPM gives: one that was released has the same id again, and inherits no evidence.
fn of_tpm(target: &Target) -> Option<DeviceId> {
    match target {
        Target::Shown(Shown::Proven(proven)) => match &proven.by {
            EnrolledBy::Tpm { ek, .. } => Some(DeviceId(*ek)),
            _ => None,
        },
        _ => None,
    }
}
