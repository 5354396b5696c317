//! What a caller asks about itself: who it is, its duties, its next certificate; and the broker's
//! own certificate. None of these takes its object from the request.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::ca::{Ca, P256Key};
use super::entries::page_of;
use super::error::AuthorityError;
use super::issue::{Leaf, device_leaf};
use super::mirror::{Mirror, Step};
use super::records::DeviceRecord;
use super::room::Authority;
use super::subject_key::SubjectKey;
use crate::decision_log::{Authority as ForAuthority, Grant};
use crate::identity::{Caller, CallerKind, Task};
use crate::model::limits::{
    AGENT_TTL, LAST_SEEN_STEP, OPERATOR_RENEW, OPERATOR_TTL, REENROLL_WINDOW, SVID_TTL,
};
use crate::model::{
    Answer, Ask, Code, DeviceId, Digest, EntryId, Failure, Moment, Reason, Released, Since,
    SpiffeId, rfc3339,
};
use rcgen::PublicKeyData;

/// A certificate chain with its key, for a TLS end of ours. No `Debug`: it holds a key.
pub struct OwnIdentity {
    /// Leaf first; then the authority, because the enrolment port must show it, and who stands between it
    /// and the roots of others.
    pub chain: Vec<CertificateDer<'static>>,
    /// The same key under each other authority that is trusted, for whoever knows no younger root.
    pub others: Vec<Vec<CertificateDer<'static>>>,
    /// The key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// End of the leaf.
    pub until: OffsetDateTime,
}

impl Authority {
    /// The broker's TLS identity `/doorward/broker`, with a fresh key; only for a grant of
    /// [`Task::OwnIdentity`] (`renew`, asked by the broker).
    ///
    /// # Errors
    /// When the grant is another one, or the authority can't sign now.
    pub fn own_identity(&self, grant: Grant<ForAuthority>) -> Result<OwnIdentity, Failure> {
        match (grant.caller().kind(), grant.ask().as_ref()) {
            (CallerKind::Broker(Task::OwnIdentity), Ask::Renew {}) => self.broker(grant.now()),
            _ => Err(Failure::new(Code::Denied, Reason::Invalid)),
        }
    }

    pub(super) fn broker(&self, now: Moment) -> Result<OwnIdentity, Failure> {
        let key = P256Key::generate()?;
        let spki = key.subject_public_key_info();
        let subject = SubjectKey::parse(&spki)
            .map_err(|_| AuthorityError::Crypto("making the broker's key"))?;
        let leaf = Leaf { id: self.id("/doorward/broker")?, extension: None, ttl: SVID_TTL };
        if !self.bind(&leaf, &subject, now) {
            return Err(AuthorityError::Crypto("making a key that nobody has").into());
        }
        let issuers = self.issuers();
        let minted = self.mint(&issuers.active, &leaf, &subject, now)?;
        let mut others = Vec::new();
        for ca in issuers.all.iter().filter(|ca| ca.id() != issuers.active.id()) {
            // One that has ended, or is revoked this very moment, is shown to nobody.
            if let Ok(other) = self.mint(ca, &leaf, &subject, now) {
                others.push(shown(ca, other.leaf));
            }
        }
        self.own_by.store(Some(Arc::new(issuers.active.id())));
        let pkcs8 = key.pkcs8()?;
        Ok(OwnIdentity {
            chain: shown(&issuers.active, minted.leaf),
            others,
            key: PrivatePkcs8KeyDer::from(pkcs8.expose().to_vec()).into(),
            until: minted.until,
        })
    }

    /// Who the broker sees. The posture is filled in by the line, which judged it.
    pub(super) fn whoami(&self, caller: &Caller) -> Released {
        Released::head(Answer::Identity {
            spiffe_id: caller.id().clone(),
            device: caller.device().copied(),
            class: caller.class().cloned(),
            until: caller.not_after().map(rfc3339).unwrap_or_default(),
            posture: String::new(),
        })
    }

    /// The living entries of the caller's own device: the page after `after`, or what has changed
    /// `since`. `holds` is the revision of those that the caller has already.
    pub(super) fn duties(
        &self,
        caller: &Caller,
        after: Option<&EntryId>,
        holds: Option<u64>,
        since: Option<Since>,
    ) -> Result<Released, Failure> {
        let (CallerKind::Agent, Some(device), Some(class)) =
            (caller.kind(), caller.device(), caller.class())
        else {
            return Err(Failure::invalid("only a device's agent has duties"));
        };
        if let Some(since) = since {
            return self.changes((class, device), holds, since);
        }
        let mirror = self.mirror();
        self.confirmed.note(*device, holds, &mirror);
        let items = mirror.duties(class, device, after);
        let mut page = page_of(items, mirror.entries_revision);
        if let Answer::Entries { bundle, start, federated, .. } = &mut page.answer {
            *bundle = mirror.authorities()?.sequence;
            *start = Some(self.recent.start);
            *federated = mirror.federated().changed();
        }
        Ok(page)
    }

    /// A new certificate for the caller's own identity and the key that its handshake proved.
    pub(super) async fn renew(
        &self,
        caller: &Caller,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        match caller.kind() {
            CallerKind::Agent | CallerKind::Operator => {}
            CallerKind::Broker(Task::Retention) => return self.forget_ended(under, now).await,
            _ => {
                let hint = "a workload's certificate is renewed by its agent, with a fresh key";
                return Err(Failure::invalid(hint));
            }
        }
        let (Some(device), Some(spki)) = (caller.device(), caller.spki()) else {
            return Err(Failure::new(Code::Denied, Reason::IdentityUnknown));
        };
        let key = SubjectKey::parse(spki).map_err(|error| Failure::invalid(error.to_string()))?;
        self.again(device, &key, under, now).await
    }

    /// The next certificate of a device that is known by its key.
    pub(super) async fn again(
        &self,
        device: &DeviceId,
        key: &SubjectKey,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let ca = Arc::clone(&self.issuers().active);
        ca.ready(now)?;
        let plan = |mirror: &Mirror| see(mirror, device, key, &ca.id(), now);
        let (_, record) = self.change(under, plan).await?;
        self.device_certificate(&ca, *device, &record, key, now)
    }

    /// A device's own certificate, at the record's epoch.
    pub(super) fn device_certificate(
        &self,
        ca: &Ca,
        device: DeviceId,
        record: &DeviceRecord,
        key: &SubjectKey,
        now: Moment,
    ) -> Result<Released, Failure> {
        let (id, ttl) = match &record.operator {
            Some(name) => (self.id(&format!("/doorward/operator/{name}"))?, OPERATOR_TTL),
            None => {
                let own = record.ttl_s.map(|ttl_s| Duration::from_secs(u64::from(ttl_s)));
                let ttl = own.unwrap_or(AGENT_TTL).min(AGENT_TTL);
                (self.id(&format!("/doorward/agent/{device}"))?, ttl)
            }
        };
        let leaf = device_leaf(id.clone(), device, record, ttl);
        if !self.bind(&leaf, key, now) {
            return Err(Failure::conflict("this key serves another identity; make a fresh one"));
        }
        let minted = self.mint(ca, &leaf, key, now)?;
        Ok(Released::head(self.certificate(ca, id, &minted)))
    }

    /// An ID of our own domain.
    pub(super) fn id(&self, path: &str) -> Result<SpiffeId, Failure> {
        self.domain.id(path).map_err(|error| Failure::invalid(format!("{path}: {error}")))
    }
}

/// A leaf with its authority, and with who stands above that one.
fn shown(ca: &Ca, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
    let above = ca.over().into_iter().flat_map(|over| over.chain.iter().cloned());
    [leaf, ca.root().clone()].into_iter().chain(above).collect()
}

/// Judges a known device that asks for its next certificate, and notes that it was seen.
fn see(
    mirror: &Mirror,
    device: &DeviceId,
    key: &SubjectKey,
    issuer: &Digest,
    now: Moment,
) -> Result<(Vec<Step>, Arc<DeviceRecord>), Failure> {
    let known = mirror.device(device).filter(|record| record.key == key.digest());
    let Some(record) = known else {
        let hint = "no device has this key; enrol with a join token".to_owned();
        let failure = Failure::new(Code::Denied, Reason::IdentityUnknown);
        return Err(Failure { hint: Some(hint), ..failure });
    };
    if record.revoked {
        let hint = "this device is revoked; enrol it with a fresh key and a new join token";
        let failure = Failure::new(Code::Denied, Reason::Revoked);
        return Err(Failure { hint: Some(hint.to_owned()), ..failure });
    }
    let (since, window, hint) = if record.class.is_person() {
        let hint = "this login has ended; ask for a new token and run `doorward login` again";
        (record.enrolled, OPERATOR_RENEW, hint)
    } else {
        let hint = "this device was away for too long; enrol it again with a new join token";
        (record.last_seen, REENROLL_WINDOW, hint)
    };
    let away = now.unix_s().saturating_sub(since);
    if away > i64::try_from(window.as_secs()).unwrap_or(i64::MAX) {
        return Err(Failure::invalid(hint));
    }
    let mut seen = record.clone();
    let row = mirror.authorities()?;
    let former = record.issuer.unwrap_or(row.first);
    seen.issuer = Some(*issuer).filter(|issuer| *issuer != row.first);
    let unseen = now.unix_s().saturating_sub(record.last_seen);
    if former == *issuer && unseen < i64::try_from(LAST_SEEN_STEP.as_secs()).unwrap_or(i64::MAX) {
        return Ok((Vec::new(), Arc::new(seen)));
    }
    seen.last_seen = now.unix_s();
    Ok((vec![Step::Device(*device, seen.clone())], Arc::new(seen)))
}

#[cfg(test)]
mod tests {
    use super::super::fake_store::{Room, fresh_key};
    use super::*;

    /// A device whose id is not its key's digest, as one with a TPM will be.
    #[tokio::test]
    async fn a_device_is_known_by_the_key_of_its_record_and_not_by_its_id() {
        let room = Room::new().await;
        let (device, key) = room.device("server").await;
        let mirror = room.authority.mirror();
        let ca = room.authority.root_digest();
        assert!(see(&mirror, &device, &key, &ca, room.now()).is_ok());
        let record = mirror.device(&device).unwrap().clone();
        let other = DeviceRecord { key: fresh_key().digest(), ..record };
        let mirror = mirror.with(vec![Step::Device(device, other)], 9);
        let failure = see(&mirror, &device, &key, &ca, room.now()).unwrap_err();
        assert_eq!((failure.code, failure.reason), (Code::Denied, Reason::IdentityUnknown));
    }
}
