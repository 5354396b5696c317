//! Certificates: what stands in one, and the only place that has one signed.
//!
//! The profile is one that every verifier of the field takes (X509-SVID §§3–5): an explicit
//! `cA=false`, critical key usage of digitalSignature alone, both extended usages, one URI name,
//! critical because the subject is empty. Everything comes from an entry or a device record; of the
//! asker there is nothing in it but a bare public key (I10). What our own verifier would not take,
//! exactly as it was meant, does not leave.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::ca::{Ca, random_serial};
use super::error::AuthorityError;
use super::mirror::Mirror;
use super::records::{DeviceRecord, EntryRecord};
use super::room::Authority;
use super::subject_key::SubjectKey;
use crate::identity::{Caller, CallerKind, EXTENSION_OID, Holder, Standing, SvidExtension};
use crate::model::limits::{BACKDATE, SVID_TTL};
use crate::model::{
    Answer, Ask, Code, DeviceId, EntryId, Failure, Moment, Reason, Released, SpiffeId, Target,
    WorkloadFacts, rfc3339,
};

/// Base64 of the largest allowed public key is 160 bytes; nothing longer is decoded.
const PUBLIC_KEY_TEXT_MAX: usize = 256;

/// What a certificate shall say.
#[derive(Debug)]
pub(super) struct Leaf {
    pub id: SpiffeId,
    /// None for the broker itself, which is no device.
    pub extension: Option<SvidExtension>,
    pub ttl: Duration,
}

/// A certificate that has passed our own verifier.
#[derive(Debug)]
pub(super) struct Minted {
    pub leaf: CertificateDer<'static>,
    pub until: OffsetDateTime,
}

/// What an `issue` asks for, taken apart.
struct Wish<'a> {
    entry: EntryId,
    spiffe_id: &'a SpiffeId,
    public_key: &'a str,
    workload: &'a WorkloadFacts,
    holder: Holder,
}

impl Authority {
    /// An SVID for a workload that the caller's agent attests.
    pub(super) fn issue(
        &self,
        caller: &Caller,
        ask: &Ask,
        target: &Target,
        now: Moment,
    ) -> Result<Released, Failure> {
        let Ask::Issue { entry, spiffe_id, public_key, workload, agent_held } = ask else {
            return Err(Failure::new(Code::Internal, Reason::Invalid));
        };
        let holder = if *agent_held { Holder::Agent } else { Holder::Workload };
        let wish = Wish { entry: *entry, spiffe_id, public_key, workload, holder };
        let device = agents_device(caller)?;
        let (leaf, key) = self.workload_leaf(&device, &wish, target)?;
        if !self.bind(&leaf, &key, now) {
            return Err(taken());
        }
        let ca = Arc::clone(&self.issuers().active);
        let minted = self.mint(&ca, &leaf, &key, now)?;
        Ok(Released::head(self.certificate(&ca, leaf.id, &minted)))
    }

    /// Everything that must hold for a workload's certificate.
    fn workload_leaf(
        &self,
        device: &DeviceId,
        wish: &Wish<'_>,
        target: &Target,
    ) -> Result<(Leaf, SubjectKey), Failure> {
        let mirror = self.mirror();
        let asked = (&wish.entry, wish.spiffe_id);
        let (host, record) = entitled(&mirror, device, asked, wish.workload, target)?;
        let key = subject_key(wish.public_key)?;
        let is_devices = mirror.device(&DeviceId(key.digest())).is_some()
            || mirror.device_of_key(&key.digest()).is_some();
        if is_devices || self.issuers().is_key(&key.digest()) {
            return Err(taken());
        }
        Ok((workload_leaf(device, host, record, wish.holder), key))
    }

    /// Signs a certificate and has our own verifier look at it.
    pub(super) fn mint(
        &self,
        ca: &Ca,
        leaf: &Leaf,
        key: &SubjectKey,
        now: Moment,
    ) -> Result<Minted, Failure> {
        ca.ready(now)?;
        let (first, last) = ca.life();
        let (params, until) = params(leaf, first, last, now)?;
        let minted = Minted { leaf: ca.sign(&params, key)?, until };
        if !self.verifies(leaf, &minted, key, now) {
            tracing::error!(id = %leaf.id, "our own verifier refuses a certificate of ours");
            return Err(Failure::new(Code::Internal, Reason::Invalid));
        }
        Ok(minted)
    }

    /// Remembers that this key serves this identity, for the certificate's life; false when it
    /// serves another.
    pub(super) fn bind(&self, leaf: &Leaf, key: &SubjectKey, now: Moment) -> bool {
        // Everything that makes the identity, its epochs left out: those change with a revocation.
        let identity = match &leaf.extension {
            Some(it) => format!("{} {} {:?} {:?}", leaf.id, it.device, it.entry, it.held_by),
            None => leaf.id.to_string(),
        };
        let ttl = i64::try_from(leaf.ttl.as_secs()).unwrap_or(i64::MAX);
        let until = now.unix_s().saturating_add(ttl);
        self.living_keys.bind(&key.digest(), &identity, until, now)
    }

    /// The answer that carries a certificate.
    pub(super) fn certificate(&self, ca: &Ca, spiffe_id: SpiffeId, minted: &Minted) -> Answer {
        let issuers = self.issuers();
        let chain = std::iter::once(&minted.leaf).chain(ca.shown());
        Answer::Certificate {
            spiffe_id,
            chain: chain.map(|der| STANDARD.encode(der)).collect(),
            bundle: issuers.roots(),
            published: issuers.published(),
            until: rfc3339(minted.until),
        }
    }

    fn verifies(&self, leaf: &Leaf, minted: &Minted, key: &SubjectKey, now: Moment) -> bool {
        let Ok(peer) = self.identity.peer(std::slice::from_ref(&minted.leaf), now) else {
            return false;
        };
        let caller = self.identity.recognise(&peer, now);
        let same_key =
            caller.spki().is_some_and(|spki| crate::model::Digest::of(spki) == key.digest());
        let same = *caller.id() == leaf.id && caller.not_after() == Some(minted.until) && same_key;
        match &leaf.extension {
            None => same,
            Some(extension) => {
                same && caller.standing() == Standing::Live
                    && caller.device() == Some(&extension.device)
                    && caller.entry() == extension.entry
                    && caller.holder() == Some(extension.held_by)
            }
        }
    }
}

/// The device whose agent asks; nobody else asks for workloads.
pub(super) fn agents_device(caller: &Caller) -> Result<DeviceId, Failure> {
    match (caller.kind(), caller.device()) {
        (CallerKind::Agent, Some(device)) => Ok(*device),
        _ => Err(Failure::invalid("only a device's agent asks for its workloads")),
    }
}

/// The device and the entry by which its workload is given an identity, if everything holds.
pub(super) fn entitled<'m>(
    mirror: &'m Mirror,
    device: &DeviceId,
    (entry, spiffe_id): (&EntryId, &SpiffeId),
    workload: &WorkloadFacts,
    target: &Target,
) -> Result<(&'m DeviceRecord, &'m EntryRecord), Failure> {
    let host = mirror.device(device).filter(|host| !host.revoked);
    let host = host.ok_or(Failure::new(Code::Denied, Reason::Revoked))?;
    let record = mirror
        .entry(entry)
        .filter(|record| record.entry.draft.spiffe_id == *spiffe_id)
        .filter(|record| record.entry.is_for(&host.class, device))
        .ok_or_else(|| Failure::absent("this device has no such entry"))?;
    check_entry(record, workload, target)?;
    Ok((host, record))
}

/// What the entry itself demands.
fn check_entry(
    record: &EntryRecord,
    workload: &WorkloadFacts,
    target: &Target,
) -> Result<(), Failure> {
    if record.suspended {
        let hint = "this identity is revoked until an operator resumes it".to_owned();
        let failure = Failure::new(Code::Denied, Reason::Revoked);
        return Err(Failure { hint: Some(hint), ..failure });
    }
    let decided = Target::Entry { id: record.entry.id, epoch: record.entry.epoch };
    if *target != decided {
        return Err(Failure::new(Code::Unavailable, Reason::Changed));
    }
    let missing = record.entry.missing(workload);
    if !missing.is_empty() {
        let words: Vec<_> = missing.iter().map(ToString::to_string).collect();
        return Err(Failure::invalid(format!("the workload does not show {}", words.join(", "))));
    }
    Ok(())
}

fn workload_leaf(
    device: &DeviceId,
    host: &DeviceRecord,
    record: &EntryRecord,
    held_by: Holder,
) -> Leaf {
    let ttl = record.entry.draft.ttl_s.map(|ttl| Duration::from_secs(u64::from(ttl)));
    Leaf {
        id: record.entry.draft.spiffe_id.clone(),
        extension: Some(SvidExtension {
            v: 1,
            device: *device,
            entry: Some(record.entry.id),
            device_epoch: host.epoch,
            entry_epoch: record.entry.epoch,
            held_by,
        }),
        ttl: ttl.unwrap_or(SVID_TTL),
    }
}

/// The certificate of a device itself: an agent's, or a person's.
pub(super) fn device_leaf(
    id: SpiffeId,
    device: DeviceId,
    record: &DeviceRecord,
    ttl: Duration,
) -> Leaf {
    let held_by = if record.class.is_person() { Holder::Workload } else { Holder::Agent };
    let extension = SvidExtension {
        v: 1,
        device,
        entry: None,
        device_epoch: record.epoch,
        entry_epoch: 0,
        held_by,
    };
    Leaf { id, extension: Some(extension), ttl }
}

/// Reads the base64 of a SubjectPublicKeyInfo.
fn subject_key(text: &str) -> Result<SubjectKey, Failure> {
    let der = match text.len() {
        0..=PUBLIC_KEY_TEXT_MAX => STANDARD.decode(text).ok(),
        _ => None,
    };
    let der = der.ok_or_else(|| Failure::invalid("`public_key` is not base64 of a public key"))?;
    SubjectKey::parse(&der).map_err(|error| Failure::invalid(error.to_string()))
}

fn taken() -> Failure {
    Failure::conflict("this key serves another identity; make a fresh one for each")
}

/// The certificate's content, and its end. Its life stays within the authority's.
pub(super) fn params(
    leaf: &Leaf,
    first: OffsetDateTime,
    last: OffsetDateTime,
    now: Moment,
) -> Result<(CertificateParams, OffsetDateTime), AuthorityError> {
    let wall = now.wall().replace_nanosecond(0).unwrap_or(now.wall());
    let ttl = time::Duration::try_from(leaf.ttl).unwrap_or_default();
    let until = wall.checked_add(ttl).map_or(last, |until| until.min(last));
    let name = leaf.id.as_str().try_into();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(random_serial()?);
    params.not_before = (wall - BACKDATE).max(first);
    params.not_after = until;
    params.subject_alt_names =
        vec![SanType::URI(name.map_err(|_| AuthorityError::Crypto("writing a SPIFFE ID"))?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    if let Some(extension) = &leaf.extension {
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(EXTENSION_OID, extension.to_der())];
    }
    Ok((params, until))
}
