//! The steps of an authority's life, and who must be waited for: which agents have the bundle in
//! force, and who still lives by which authority.
//!
//! Agents say what they have in force when they ask for the bundle; that is remembered until the
//! broker ends, and they say it again on each connection. What a device lives by stands in its row.
//! A step is refused rather than taken early; only `force` says otherwise.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authorities::{Authorities, Member};
use super::error::AuthorityError;
use super::issuers::fresh;
use super::mirror::{Mirror, Step};
use super::records::DeviceRecord;
use super::room::Authority;
use super::upstream::Above;
use crate::identity::{Caller, CallerKind, JwtKey};
use crate::model::limits::{
    AGENT_TTL, DEVICES_MAX, JWKS_FRESH, LAST_SEEN_STEP, LEAF_TTL_MAX, OPERATOR_TTL, PENDING_SHOWN,
    REENROLL_WINDOW,
};
use crate::model::{
    Answer, AuthorityState, AuthoritySummary, BundleHeld, BundleRoot, CaStanding, CaStep, Code,
    DeviceId, Digest, Failure, Moment, PendingDevice, Reason, Released, UpstreamSummary, rfc3339,
};

/// What agents say that they have in force.
#[derive(Debug, Default)]
pub(super) struct Acknowledged(Mutex<HashMap<DeviceId, BundleHeld>>);

impl Acknowledged {
    fn say(&self, device: DeviceId, held: BundleHeld) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < DEVICES_MAX || all.contains_key(&device) {
            all.insert(device, held);
        }
    }

    fn of(&self, device: &DeviceId) -> Option<BundleHeld> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(device).copied()
    }
}

impl Authority {
    /// The roots, for whoever was given an identity; an agent says what it has of them.
    pub(super) fn bundle(
        &self,
        caller: &Caller,
        holds: Option<BundleHeld>,
    ) -> Result<Released, Failure> {
        let (mirror, device) = (self.mirror(), caller.device());
        if let (Some(holds), Some(device), CallerKind::Agent) = (holds, device, caller.kind()) {
            self.acknowledged.say(*device, holds);
        }
        let row = mirror.authorities()?;
        let root = |member: &Member| BundleRoot {
            certificate: member.certificate.clone(),
            tainted: member.state == AuthorityState::Tainted,
        };
        let roots = row.members.iter().map(root).collect();
        // Never older than the row: keys are put in force before it.
        let jwt_keys = self.bundle_document().jwt_keys().iter().map(JwtKey::to_jwk).collect();
        let published = self.issuers().published();
        Ok(Released::head(Answer::Bundle { sequence: row.sequence, roots, published, jwt_keys }))
    }

    /// One step; the answer is how all of them stand then.
    pub(super) async fn ca_step(
        &self,
        step: &CaStep,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        if *step != (CaStep::Show {}) {
            let fresh = match step {
                CaStep::Prepare {} => {
                    self.issuers().active.ready(now)?; // by right clocks, or not at all
                    let fresh = fresh(
                        &self.opening,
                        AuthorityState::Prepared,
                        self.mirror().wants_rs256(),
                        now,
                    );
                    Some(fresh.map_err(AuthorityError::from)?)
                }
                _ => None,
            };
            let plan = |mirror: &Mirror| {
                let row = mirror.authorities()?;
                let next = self.stepped(mirror, step, fresh.as_ref(), now)?;
                let steps = (next != **row).then_some(Step::Authorities(next));
                Ok((steps.into_iter().collect(), ()))
            };
            self.change(under, plan).await?;
        }
        Ok(Released::head(Answer::Authorities(self.standing(now)?)))
    }

    fn stepped(
        &self,
        mirror: &Mirror,
        step: &CaStep,
        fresh: Option<&Member>,
        now: Moment,
    ) -> Result<Authorities, Failure> {
        let row = mirror.authorities()?;
        match step {
            CaStep::Show {} => Ok((**row).clone()),
            CaStep::Prepare {} => {
                let fresh = fresh.ok_or_else(|| Failure::invalid("nothing was prepared"))?;
                self.apart(mirror, fresh)?;
                if fresh.rs256.is_none() && mirror.wants_rs256() {
                    return Err(Failure::new(Code::Unavailable, Reason::Changed));
                }
                row.prepare(fresh.clone())
            }
            CaStep::Activate { after_s, force } => {
                if !force && !row.prepared().is_some_and(|it| waited(it, *after_s, now)) {
                    self.all_know(mirror, row, now)?;
                }
                row.activate(now.unix_s())
            }
            CaStep::Taint { id } => row.taint(id, now.unix_s()),
            CaStep::Revoke { id, force } => {
                if self.own_by.load().as_deref() == Some(id) {
                    return Err(Failure::conflict(
                        "the broker's own certificate is of this authority still; try again",
                    ));
                }
                if !force {
                    self.nobody_lives_by(mirror, row, id, now)?;
                }
                row.revoke(id, now.unix_s())
            }
        }
    }

    /// That every living agent has the bundle in force as it is now.
    fn all_know(&self, mirror: &Mirror, row: &Authorities, now: Moment) -> Result<(), Failure> {
        let pending: Vec<_> = self.pending(mirror, row, now).collect();
        if pending.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = pending.iter().take(3).map(|it| it.name.as_str()).collect();
        Err(Failure::conflict(format!(
            "{} living agents have not acknowledged the bundle yet ({}…); `doorward ca show` lists \
             them; wait, or say `--after SECONDS` or `--force`",
            pending.len(),
            names.join(", ")
        )))
    }

    fn pending<'m>(
        &'m self,
        mirror: &'m Mirror,
        row: &Authorities,
        now: Moment,
    ) -> impl Iterator<Item = PendingDevice> + 'm {
        let sequence = row.sequence;
        let waits = move |id: &DeviceId| {
            self.acknowledged.of(id).is_none_or(|held| held.sequence < sequence)
        };
        live(mirror, now).filter(move |(id, _)| waits(id)).map(|(id, record)| PendingDevice {
            id: *id,
            class: record.class.clone(),
            name: record.name.clone(),
        })
    }

    /// That no agent, and no workload that its agent knows of, lives by this authority. Of one that
    /// is not tainted nobody tells who lives by it, so its time must have passed.
    fn nobody_lives_by(
        &self,
        mirror: &Mirror,
        row: &Authorities,
        id: &Digest,
        now: Moment,
    ) -> Result<(), Failure> {
        let Some(member) = row.member(id) else { return Ok(()) };
        if member.state == AuthorityState::Prepared || rests(member, LEAF_TTL_MAX, now) {
            return Ok(());
        }
        if member.state == AuthorityState::Old {
            return Err(Failure::conflict(
                "certificates of this authority may be alive for a day after it has signed; taint \
                 it first, or say `--force`",
            ));
        }
        self.all_know(mirror, row, now)?;
        let agents = living_by(mirror, row, id, now).0;
        let told = self.tainted(mirror, now);
        if agents == 0 && told == 0 {
            return Ok(());
        }
        Err(Failure::conflict(format!(
            "{agents} agents and {told} identities of workloads live by this authority still; wait, \
             or say `--force`"
        )))
    }

    /// Identities that living agents know to be alive under a tainted authority; the broker's own is
    /// one of them.
    fn tainted(&self, mirror: &Mirror, now: Moment) -> u64 {
        let held = live(mirror, now).filter_map(|(id, _)| self.acknowledged.of(id));
        let own = self.own_by.load_full().is_some_and(|id| {
            let row = mirror.authorities();
            let member = row.ok().and_then(|row| row.member(&id).cloned());
            member.is_some_and(|it| it.state == AuthorityState::Tainted)
        });
        held.map(|held| u64::from(held.tainted)).sum::<u64>() + u64::from(own)
    }

    fn standing(&self, now: Moment) -> Result<CaStanding, Failure> {
        let mirror = self.mirror();
        let row = mirror.authorities()?;
        let ends: HashMap<_, _> =
            self.issuers().all.iter().map(|ca| (ca.id(), ca.life().1)).collect();
        let summary = |member: &Member| {
            let (agents, operators) = living_by(&mirror, row, &member.id, now);
            AuthoritySummary {
                id: member.id,
                state: member.state,
                prepared: text(member.prepared),
                activated: member.activated.map(text),
                retired: member.retired.map(text),
                tainted: member.tainted.map(text),
                upstream: member.above.as_ref().and_then(|above| under(member, above)),
                until: ends.get(&member.id).map(|end| rfc3339(*end)).unwrap_or_default(),
                agents,
                operators,
            }
        };
        let pending: Vec<_> = self.pending(&mirror, row, now).collect();
        let live = live(&mirror, now).count();
        Ok(CaStanding {
            sequence: row.sequence,
            authorities: row.members.iter().map(summary).collect(),
            revoked: row.revoked.iter().map(|(id, at)| (*id, text(*at))).collect(),
            live: count(live),
            acknowledged: count(live.saturating_sub(pending.len())),
            tainted: self.tainted(&mirror, now),
            pending: pending.into_iter().take(PENDING_SHOWN).collect(),
        })
    }

    /// The step that the calendar asks for now, if any: the next authority at half of the active
    /// one's life; activation once every living agent knows it, and at a sixth of that life in any
    /// case; the end of an old one when no device that knows no younger root may come back any more.
    /// Nothing while the clocks disagree.
    ///
    /// # Errors
    /// None but a mirror that was never loaded.
    pub fn due(&self, now: Moment) -> Result<Option<CaStep>, Failure> {
        if !self.opening.clock.holds(now) {
            return Ok(None);
        }
        let mirror = self.mirror();
        let row = mirror.authorities()?;
        let (first, last) = self.issuers().active.life();
        let (life, left) = (last - first, last - now.wall());
        // Of one whose own end has come nothing counts any more, and nobody is shown it.
        let ended = |it: &&Member| {
            let all = &self.issuers().all;
            let has_ended = all.iter().any(|ca| ca.id() == it.id && ca.life().1 < now.wall());
            has_ended && rests(it, LEAF_TTL_MAX, now)
        };
        let over = |it: &&Member| rests(it, REENROLL_WINDOW, now) || ended(it);
        if let Some(over) = row.members.iter().find(over) {
            return Ok(Some(CaStep::Revoke { id: over.id, force: false }));
        }
        if left > life / 2 {
            return Ok(None);
        }
        if row.prepared().is_none() {
            return Ok(Some(CaStep::Prepare {}));
        }
        let force = left <= life / 6;
        // Agents are told at once; verifiers that know no SPIFFE keep our keys for a while.
        let told = u32::try_from(2 * JWKS_FRESH.as_secs()).ok();
        let rested = row.prepared().is_some_and(|next| waited(next, told, now));
        let known = rested && self.pending(&mirror, row, now).next().is_none();
        Ok((known || force).then_some(CaStep::Activate { after_s: None, force }))
    }
}

/// Whether this one was published long enough ago.
fn waited(member: &Member, after_s: Option<u32>, now: Moment) -> bool {
    after_s.is_some_and(|after| now.unix_s() - member.prepared >= i64::from(after))
}

/// Whether it has signed nothing for so long: after [`LEAF_TTL_MAX`] nothing of it is alive, and after
/// [`REENROLL_WINDOW`] nobody comes back who was away since.
fn rests(member: &Member, time: Duration, now: Moment) -> bool {
    let signs_no_more = matches!(member.state, AuthorityState::Old | AuthorityState::Tainted);
    let since = member.retired.map(|retired| now.unix_s().saturating_sub(retired));
    signs_no_more && since.is_some_and(|since| since > seconds(time))
}

/// Agents of which a certificate may be alive.
fn live(mirror: &Mirror, now: Moment) -> impl Iterator<Item = (&DeviceId, &DeviceRecord)> {
    mirror.devices().filter(move |(_, record)| !record.class.is_person() && may_live(record, now))
}

/// Whether the device's latest certificate may be alive; when it was seen is kept to the hour.
fn may_live(record: &DeviceRecord, now: Moment) -> bool {
    let ttl = if record.class.is_person() { OPERATOR_TTL } else { AGENT_TTL };
    let since = now.unix_s().saturating_sub(record.last_seen);
    !record.revoked && since <= seconds(ttl) + seconds(LAST_SEEN_STEP)
}

/// Agents and people whose latest certificate is of this authority and may be alive.
fn living_by(mirror: &Mirror, row: &Authorities, id: &Digest, now: Moment) -> (u64, u64) {
    let of = |record: &DeviceRecord| record.issuer.unwrap_or(row.first) == *id;
    let all = mirror.devices().filter(|(_, record)| of(record) && may_live(record, now));
    let (people, agents): (Vec<_>, Vec<_>) = all.partition(|(_, it)| it.class.is_person());
    (count(agents.len()), count(people.len()))
}

/// What people need to know of whoever stands above an authority.
fn under(member: &Member, above: &Above) -> Option<UpstreamSummary> {
    let der = STANDARD.decode(&member.certificate).ok()?;
    let (_, read) = X509Certificate::from_der(&der).ok()?;
    let roots = above.roots.iter().filter_map(|text| STANDARD.decode(text).ok());
    Some(UpstreamSummary {
        serial: hex::encode(read.raw_serial()),
        roots: roots.map(|der| Digest::of(&der)).collect(),
    })
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn text(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds).map(rfc3339).unwrap_or_default()
}
