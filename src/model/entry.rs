//! Registration entries: which workload, on which devices, gets which SPIFFE ID.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::device::{DeviceClass, DeviceId, Digest};
use super::hint::Hint;
use super::ids::{EntryId, Serial};
use super::limits::{FEDERATES_WITH_MAX, SELECTOR_BYTES_MAX, SELECTORS_MAX};
use super::spiffe_id::{SpiffeId, TrustDomain};

/// Why a draft can't become an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// No selector: it would fit every process.
    #[error("an entry needs at least one selector")]
    NoSelector,
    /// Too many selectors.
    #[error("an entry has at most {SELECTORS_MAX} selectors")]
    TooManySelectors,
    /// Too much text in them.
    #[error(
        "the selectors of an entry have at most {SELECTOR_BYTES_MAX} bytes together; make several \
         entries of it"
    )]
    LongSelectors,
    /// The path belongs to Doorward itself.
    #[error("paths under /doorward/ are given out by Doorward only")]
    Reserved,
    /// The ID of a trust domain itself.
    #[error("a workload's SPIFFE ID needs a path")]
    NoPath,
    /// An executable's hash alone says nothing about who runs it.
    #[error(
        "`exe_sha256`, `path` and `image_digest` alone select nobody: add `uid`, `gid`, `unit`, \
         `k8s_pod_uid` or `container_id`"
    )]
    HashAlone,
    /// A life of zero, or over a day.
    #[error("`ttl_s` must be 60 to 86400")]
    Ttl,
    /// An absolute path is needed.
    #[error("`path` must be absolute and at most 1024 bytes")]
    Path,
    /// Not a pod's uid.
    #[error("`k8s_pod_uid` must be a pod's uid as Kubernetes shows it, in lower case")]
    PodUid,
    /// Too many other trust domains, one of them twice, or its own.
    #[error(
        "an entry names at most {FEDERATES_WITH_MAX} other trust domains, each once, and not its own"
    )]
    FederatesWith,
    /// Not a unit's name.
    #[error("`unit` must be a systemd unit's name, such as `api.service`")]
    Unit,
}

/// One kernel-owned fact that a workload must show. All selectors of an entry must hold (AND).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selector {
    /// The real user id.
    Uid(u32),
    /// The real group id.
    Gid(u32),
    /// The executable's path, as the kernel reports it.
    Path(String),
    /// SHA-256 of the opened executable.
    ExeSha256(Digest),
    /// The systemd unit that the process's cgroup names.
    Unit(String),
    /// The uid of the Kubernetes pod that the process's cgroup names.
    K8sPodUid(String),
    /// The id of the container that the process's cgroup names.
    ContainerId(Digest),
    /// SHA-256 of the image that the process's container runs, as the node's runtime says.
    ImageDigest(Digest),
}

impl Selector {
    /// Whether the attested facts show it; an unknown fact shows nothing.
    pub fn matches(&self, facts: &WorkloadFacts) -> bool {
        match self {
            Self::Uid(uid) => facts.uid == *uid,
            Self::Gid(gid) => facts.gid == *gid,
            Self::Path(path) => facts.path.as_ref() == Some(path),
            Self::ExeSha256(digest) => facts.exe_sha256.as_ref() == Some(digest),
            Self::Unit(unit) => facts.unit.as_ref() == Some(unit),
            Self::K8sPodUid(uid) => facts.pod_uid.as_ref() == Some(uid),
            Self::ContainerId(id) => facts.container_id.as_ref() == Some(id),
            Self::ImageDigest(digest) => facts.image_digest.as_ref() == Some(digest),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
            Self::Path(path) => write!(f, "path:{path}"),
            Self::ExeSha256(digest) => write!(f, "exe_sha256:{digest}"),
            Self::Unit(unit) => write!(f, "unit:{unit}"),
            Self::K8sPodUid(uid) => write!(f, "k8s_pod_uid:{uid}"),
            Self::ContainerId(id) => write!(f, "container_id:{id}"),
            Self::ImageDigest(digest) => write!(f, "image_digest:sha256:{digest}"),
        }
    }
}

/// What JWT-SVIDs are signed with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TokenAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// RSA PKCS #1 v1.5 with SHA-256, for verifiers that take nothing else.
    #[serde(rename = "RS256")]
    Rs256,
}

impl TokenAlgorithm {
    /// The word in a token's header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }

    // serde gives a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What the agent's kernel says of one process. `None` is unknown, and unknown matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadFacts {
    /// Process id in the agent's namespace; for people, never for deciding.
    pub pid: u32,
    /// Start time in clock ticks since boot: with the pid it names one process instance.
    pub start_ticks: u64,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Path of the executable.
    pub path: Option<String>,
    /// SHA-256 of the executable, through its open descriptor.
    pub exe_sha256: Option<Digest>,
    /// systemd unit out of the process's cgroup.
    pub unit: Option<String>,
    /// uid of the Kubernetes pod out of the process's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Id of the container out of the process's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<Digest>,
    /// SHA-256 of the image that this container runs: said by the node's runtime, never a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Digest>,
    /// Whether the process was pinned by a pidfd of the socket itself (Linux ≥ 6.5); otherwise the
    /// weaker path (pidfd_open and start time, read twice) was used.
    pub pinned: bool,
}

/// One SVID that its agent takes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetractedSvid {
    /// Its serial number.
    pub serial: Serial,
    /// Its end, in seconds since 1970: from then on nobody need remember it.
    pub until: i64,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryDraft {
    /// The identity to give.
    pub spiffe_id: SpiffeId,
    /// On devices of this class …
    pub class: DeviceClass,
    /// … or on this device of the class only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// What the workload must show; all of it.
    pub selectors: Vec<Selector>,
    /// Life of an SVID in seconds; the default is an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
    /// Given when a process matches several entries and names none.
    #[serde(default)]
    pub default: bool,
    /// What its JWT-SVIDs are signed with.
    #[serde(default, skip_serializing_if = "TokenAlgorithm::is_usual")]
    pub jwt_alg: TokenAlgorithm,
    /// Trust domains whose bundles the workload is told of, for those it speaks with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federates_with: Vec<TrustDomain>,
    /// What the identity is for, told to a workload that is given several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Hint>,
}

impl EntryDraft {
    /// Checks every rule that needs no look at other entries.
    ///
    /// # Errors
    /// The first rule that the draft breaks.
    pub fn check(&self) -> Result<(), EntryError> {
        if self.spiffe_id.path().is_empty() {
            return Err(EntryError::NoPath);
        }
        if self.spiffe_id.is_reserved() {
            return Err(EntryError::Reserved);
        }
        match self.selectors.len() {
            0 => return Err(EntryError::NoSelector),
            n if n > SELECTORS_MAX => return Err(EntryError::TooManySelectors),
            _ => {}
        }
        let names_somebody = |s: &Selector| match s {
            Selector::Uid(_) | Selector::Gid(_) | Selector::Unit(_) => true,
            Selector::K8sPodUid(_) | Selector::ContainerId(_) => true,
            Selector::Path(_) | Selector::ExeSha256(_) | Selector::ImageDigest(_) => false,
        };
        if !self.selectors.iter().any(names_somebody) {
            return Err(EntryError::HashAlone);
        }
        if self.ttl_s.is_some_and(|ttl| !(60..=86_400).contains(&ttl)) {
            return Err(EntryError::Ttl);
        }
        let others = self.federates_with.iter().collect::<HashSet<_>>();
        let is_own = others.contains(self.spiffe_id.trust_domain());
        let is_twice = others.len() != self.federates_with.len();
        if is_own || is_twice || others.len() > FEDERATES_WITH_MAX {
            return Err(EntryError::FederatesWith);
        }
        for selector in &self.selectors {
            match selector {
                Selector::Path(path) if !path.starts_with('/') || path.len() > 1024 => {
                    return Err(EntryError::Path);
                }
                Selector::Unit(unit) if !is_unit(unit) => return Err(EntryError::Unit),
                Selector::K8sPodUid(uid) if !is_pod_uid(uid) => return Err(EntryError::PodUid),
                _ => {}
            }
        }
        let bytes: usize = self.selectors.iter().map(|selector| selector.to_string().len()).sum();
        match bytes > SELECTOR_BYTES_MAX {
            true => Err(EntryError::LongSelectors),
            false => Ok(()),
        }
    }
}

/// Whether a text is a pod's uid: a UUID in lower case, or the 32 digits that the kubelet gives pods
/// out of its own directory.
pub fn is_pod_uid(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    matches!(lengths.as_slice(), [8, 4, 4, 4, 12] | [32])
        && groups.iter().all(|group| group.bytes().all(digit))
}

fn is_unit(text: &str) -> bool {
    let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b':');
    text.len() <= 256 && text.contains('.') && text.bytes().all(byte)
}

/// A registration entry as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Immutable.
    pub id: EntryId,
    /// What was asked for.
    #[serde(flatten)]
    pub draft: EntryDraft,
    /// Raised by each revocation; SVIDs of a lower epoch are dead.
    pub epoch: u64,
    /// When it was made, RFC 3339.
    pub created: String,
}

impl Entry {
    /// Whether an agent on this device may ask for it.
    pub fn is_for(&self, class: &DeviceClass, device: &DeviceId) -> bool {
        self.draft.class == *class && self.draft.device.is_none_or(|only| only == *device)
    }

    /// The selectors that these facts do not show; empty means the entry matches.
    pub fn missing<'a>(&'a self, facts: &WorkloadFacts) -> Vec<&'a Selector> {
        self.draft.selectors.iter().filter(|selector| !selector.matches(facts)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    fn facts(more: &str) -> WorkloadFacts {
        let json = format!(
            r#"{{"pid":7,"start_ticks":1,"uid":5,"gid":6,"path":null,"exe_sha256":null,"unit":null,
                 "pinned":true{more}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    fn draft(selectors: Vec<Selector>) -> EntryDraft {
        EntryDraft {
            spiffe_id: SpiffeId::parse("spiffe://corp.example/a").unwrap(),
            class: DeviceClass::parse("server").unwrap(),
            device: None,
            selectors,
            ttl_s: None,
            default: false,
            jwt_alg: Default::default(),
            federates_with: Vec::new(),
            hint: None,
        }
    }

    #[test]
    fn other_trust_domains_are_others_and_few() {
        let with = |names: &[&str]| EntryDraft {
            jwt_alg: Default::default(),
            federates_with: names.iter().map(|it| TrustDomain::parse(it).unwrap()).collect(),
            ..draft(vec![Selector::Uid(1)])
        };
        assert_eq!(with(&["b.example", "c.example"]).check(), Ok(()));
        let many: Vec<String> = (0..=FEDERATES_WITH_MAX).map(|n| format!("d{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(with(&many[1..]).check(), Ok(()));
        for bad in [&["corp.example"][..], &["b.example", "b.example"], &many] {
            assert_eq!(with(bad).check(), Err(EntryError::FederatesWith), "{bad:?}");
        }
    }

    #[test]
    fn unknown_facts_match_no_selector() {
        let id = Digest([0xab; 32]);
        let (pod, container) = (Selector::K8sPodUid(UID.into()), Selector::ContainerId(id));
        let unknown = facts("");
        assert!(!pod.matches(&unknown) && !container.matches(&unknown));
        let text = serde_json::to_string(&unknown).unwrap();
        assert!(!text.contains("pod_uid"), "an older broker reads it: {text}");
        let known = facts(&format!(r#","pod_uid":"{UID}","container_id":"{id}""#));
        assert!(pod.matches(&known) && container.matches(&known));
        assert!(!Selector::K8sPodUid(UID.replace('0', "1")).matches(&known));
        let text = serde_json::to_string(&[pod, container]).unwrap();
        assert_eq!(text, format!(r#"[{{"k8s_pod_uid":"{UID}"}},{{"container_id":"{id}"}}]"#));
    }

    #[test]
    fn an_image_alone_is_nobody_and_unknown_matches_nothing() {
        let image = Selector::ImageDigest(Digest([0xcd; 32]));
        assert_eq!(draft(vec![image.clone()]).check(), Err(EntryError::HashAlone));
        assert_eq!(draft(vec![image.clone(), Selector::Uid(1)]).check(), Ok(()));
        assert!(!image.matches(&facts("")));
        let known = facts(&format!(r#","image_digest":"{}""#, Digest([0xcd; 32])));
        assert!(image.matches(&known));
        assert!(!Selector::ImageDigest(Digest([0; 32])).matches(&known));
        assert!(image.to_string().starts_with("image_digest:sha256:cdcd"));
        let id = facts(&format!(r#","container_id":"{}""#, Digest([0xcd; 32])));
        assert!(!image.matches(&id), "a container's id is no image");
    }

    #[test]
    fn a_pod_or_a_container_alone_is_somebody_if_it_has_the_right_form() {
        assert_eq!(draft(vec![Selector::K8sPodUid(UID.into())]).check(), Ok(()));
        assert_eq!(draft(vec![Selector::ContainerId(Digest([1; 32]))]).check(), Ok(()));
        let plain = "0123456789abcdef".repeat(2);
        assert_eq!(draft(vec![Selector::K8sPodUid(plain)]).check(), Ok(()));
        for bad in ["", "x", &UID[1..], &UID.to_uppercase(), &UID.replace('-', "_")] {
            let refused = draft(vec![Selector::K8sPodUid(bad.to_owned())]).check();
            assert_eq!(refused, Err(EntryError::PodUid), "{bad:?}");
        }
        let path = draft(vec![Selector::Path("/bin/a".into())]).check();
        assert_eq!(path, Err(EntryError::HashAlone));
    }
}
