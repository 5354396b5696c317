//! A stranger that proved to be a machine of the house becomes a device.
//!
//! What it showed was judged before the decision was written down; here it is taken, in one commit,
//! or not at all. One certificate, node or pod holds one device: another key by the same never takes
//! the place of a device, living or revoked, until an operator releases what it was enrolled by.

use std::sync::Arc;

use super::bound::{BoundRecord, key_row};
use super::ca::Ca;
use super::enroll::check_name;
use super::methods::Brought;
use super::mirror::{Mirror, Step};
use super::records::DeviceRecord;
use super::room::Authority;
use super::subject_key::SubjectKey;
use crate::identity::{Caller, CallerKind};
use crate::model::limits::{DEVICES_MAX, POD_TOKENS_MAX};
use crate::model::{
    Ask, Code, DeviceId, Digest, EnrolBy, EnrolledBy, Failure, Moment, Proven, Reason, Released,
    SecretValue, Shown, Target,
};

impl Authority {
    /// Whether there is a reason to read what an applicant brings.
    pub fn examines(&self, by: EnrolBy, caller: &Caller) -> bool {
        caller.kind() == CallerKind::Applicant && self.methods.take(by)
    }

    /// What an applicant's proof is worth; it is the target of what is decided. `None` for a body
    /// that did not arrive.
    pub fn examine(
        &self,
        ask: &Ask,
        caller: &Caller,
        body: Option<&SecretValue>,
        exporter: Option<&[u8; 32]>,
        now: Moment,
    ) -> Target {
        let Ask::Enroll { token: None, by: Some(by), .. } = ask else { return Target::Absent };
        let (CallerKind::Applicant, Some(spki)) = (caller.kind(), caller.spki()) else {
            return Target::Absent;
        };
        if !self.methods.take(*by) {
            return Target::Shown(Shown::Fault(*by, "no_method"));
        }
        let Some(body) = body else { return Target::Shown(Shown::Fault(*by, "no_body")) };
        let brought = Brought { body, exporter, spki };
        Target::Shown(self.tempered(self.methods.judge(*by, brought, &self.domain, now), now))
    }

    /// The same, but for what another device holds already: whoever shows that is told so in words,
    /// though not without end. What is over the bound is denied like everything that does not hold,
    /// and so at the rate of denials.
    pub(super) fn tempered(&self, shown: Shown, now: Moment) -> Shown {
        let Shown::Proven(proven) = &shown else { return shown };
        let (mirror, token) = (self.mirror(), proven.spends.map(|(token, _)| token));
        let mut held = [Some(proven.by.bound_to()), token].into_iter().flatten();
        let is_held = held.any(|of| mirror.bound().holder(&of, now).is_some());
        match is_held && !self.conflicts.wrong(now) {
            true => Shown::Fault(proven.by.by(), "held"),
            false => shown,
        }
    }

    /// A stranger becomes a device by what it showed.
    pub(super) async fn enroll_by(
        &self,
        caller: &Caller,
        name: &str,
        target: &Target,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let (Target::Shown(Shown::Proven(proven)), Some(spki)) = (target, caller.spki()) else {
            return Err(Failure::new(Code::Denied, Reason::Absent));
        };
        let key = SubjectKey::parse(spki).map_err(|error| Failure::invalid(error.to_string()))?;
        let ca = Arc::clone(&self.issuers().active);
        let (device, record) = self.admit(&ca, &key, name, proven, under, now).await?;
        self.device_certificate(&ca, device, &record, &key, now)
    }

    /// Makes the device: one commit, or nothing.
    pub(super) async fn admit(
        &self,
        ca: &Ca,
        key: &SubjectKey,
        name: &str,
        proven: &Proven,
        under: Option<u64>,
        now: Moment,
    ) -> Result<(DeviceId, DeviceRecord), Failure> {
        check_name(name)?;
        ca.ready(now)?;
        self.is_free(key, now)?;
        let plan = |mirror: &Mirror| {
            let first = mirror.authorities()?.first;
            let issuer = Some(ca.id()).filter(|id| *id != first);
            take(mirror, proven, (key, issuer), name, now)
        };
        let (_, device) = self.change(under, plan).await?;
        Ok(device)
    }
}

/// The rows that make a device of a key, or why there are none.
fn take(
    mirror: &Mirror,
    proven: &Proven,
    (key, issuer): (&SubjectKey, Option<Digest>),
    name: &str,
    now: Moment,
) -> Result<(Vec<Step>, (DeviceId, DeviceRecord)), Failure> {
    let (device, bound) = (device_of(proven, key), proven.by.bound_to());
    let own = DeviceId(key.digest());
    if mirror.device(&own).is_some() || mirror.device_of_key(&key.digest()).is_some() {
        let hint = "this key is enrolled already: come back with it alone, or make a fresh key";
        return Err(Failure::conflict(hint));
    }
    if let Some(holder) = mirror.bound().holder(&bound, now) {
        return Err(held(mirror, &proven.by, &holder));
    }
    let mut steps = mirror.bound().ended(now);
    if let Some((token, until)) = proven.spends {
        if mirror.bound().holder(&token, now).is_some() {
            let hint = "this token was used already; its pod is given another one in time";
            return Err(Failure::conflict(hint));
        }
        if mirror.bound().tokens().saturating_sub(steps.len()) >= POD_TOKENS_MAX {
            return Err(Failure::too_large("too many pods have enrolled within a day"));
        }
        steps.retain(|step| !matches!(step, Step::Bound(of, None) if *of == token));
        steps.push(BoundRecord::new(token, device, Some(until)).step());
    }
    // The rest is for join tokens, which operators make: machines that come by themselves must not
    // keep them out.
    let most = DEVICES_MAX - DEVICES_MAX / 10;
    if mirror.devices().len() >= most {
        return Err(Failure::too_large(format!("there are {most} devices already")));
    }
    // Only what a TPM is bound to gives an id that was there before; an operator has released it.
    let epoch = match mirror.device(&device) {
        Some(before) if !before.revoked => return Err(held(mirror, &proven.by, &device)),
        Some(before) => before.epoch.saturating_add(1),
        None => 1,
    };
    let record = DeviceRecord {
        issuer,
        epoch,
        by: Some(proven.by.clone()),
        ttl_s: proven.ttl_s,
        ..DeviceRecord::new(key.digest(), proven.class.clone(), name, now)
    };
    steps.push(BoundRecord::new(bound, device, None).step());
    if device != own {
        steps.push(BoundRecord::new(key_row(&key.digest()), device, None).step());
    }
    steps.push(Step::Device(device, record.clone()));
    Ok((steps, (device, record)))
}

/// The id of the new device: of a TPM it is its endorsement key's, whatever key it signs with.
fn device_of(proven: &Proven, key: &SubjectKey) -> DeviceId {
    match &proven.by {
        EnrolledBy::Tpm { ek, .. } => DeviceId(*ek),
        _ => DeviceId(key.digest()),
    }
}

/// That a device was enrolled by the same before, in words for whoever proved to have it.
fn held(mirror: &Mirror, by: &EnrolledBy, holder: &DeviceId) -> Failure {
    let what = match by {
        EnrolledBy::X509 { .. } => "certificate's key",
        EnrolledBy::Kubernetes { node_uid: Some(_), .. } => "node",
        EnrolledBy::Kubernetes { .. } => "pod",
        EnrolledBy::Tpm { .. } => "tpm",
    };
    let is_revoked = mirror.device(holder).is_none_or(|record| record.revoked);
    let (state, id) = (if is_revoked { "revoked" } else { "living" }, holder.short());
    Failure::conflict(format!(
        "this {what} has enrolled the {state} device {id} before; an operator ends that one and lets \
         another in with `doorward device revoke {id} --release`"
    ))
}
