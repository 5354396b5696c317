//! What goes back: an answer, or a refusal with a closed code.

use serde::{Deserialize, Serialize};

use super::authority::{BundleRoot, CaStanding};
use super::device::{DeviceClass, DeviceId};
use super::device_summary::DeviceSummary;
use super::duty::{DutyChanges, PendingAgent};
use super::entry::Entry;
use super::federation::FederatedDomain;
use super::ids::{RequestId, StartId};
use super::items::{SecretItem, VersionItem};
use super::secret::Labels;
use super::spiffe_id::SpiffeId;

/// The closed set of outcomes that a client can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Judged and refused. The why stands in the decision log.
    Denied,
    /// The request itself is wrong.
    Invalid,
    /// Nothing there; said only to who may list.
    NotFound,
    /// It stands differently from what the request assumes.
    Conflict,
    /// Over a limit of size.
    TooLarge,
    /// The identity has ended.
    Expired,
    /// Too many requests.
    Limited,
    /// Try again later.
    Unavailable,
    /// Our fault.
    Internal,
}

impl Code {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            Self::Expired => "expired",
            Self::Limited => "limited",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal $word:literal),+ $(,)?) => {
        /// Why, in a stable form that is never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant),+ }

        impl Reason {
            /// Every reason, in order of the codes.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),+];

            /// The stable code, e.g. `D201`.
            pub fn code(self) -> &'static str {
                match self { $(Reason::$variant => $code),+ }
            }

            /// The word beside it, e.g. `posture_unmet`.
            pub fn word(self) -> &'static str {
                match self { $(Reason::$variant => $word),+ }
            }

            fn parse(code: &str) -> Option<Self> {
                match code { $($code => Some(Reason::$variant),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// A rule allows it.
    Allow = "A001" "allow",
    /// No rule allows it.
    NoAllow = "D101" "no_allow",
    /// A deny rule forbids it.
    DenyRow = "D102" "deny_row",
    /// A rule would allow it under a profile that the device does not meet.
    PostureUnmet = "D201" "posture_unmet",
    /// Likewise; the evidence is too old.
    PostureStale = "D202" "posture_stale",
    /// Likewise; the device never reported, or a fact is unknown.
    PostureUnknown = "D203" "posture_unknown",
    /// The certificate has ended.
    IdentityExpired = "D301" "identity_expired",
    /// The identity, its entry or its device was revoked.
    Revoked = "D302" "revoked",
    /// Nobody we know, or not of our making where it must be.
    IdentityUnknown = "D303" "identity_unknown",
    /// The certificate has not begun.
    IdentityNotYet = "D304" "identity_not_yet",
    /// This one SVID was revoked, or the process that it was issued for is no more.
    SvidRevoked = "D305" "svid_revoked",
    /// A rule would allow it at another time.
    Window = "D401" "window",
    /// The object does not exist.
    Absent = "D501" "absent",
    /// It stands differently from what the request assumes.
    Conflict = "D502" "conflict",
    /// The request can't be carried out as it is.
    Invalid = "D503" "invalid",
    /// Over a limit of size or number.
    TooLarge = "D504" "too_large",
    /// More requests than one caller may make.
    Limited = "D701" "limited",
    /// The decision could not be written down.
    LogUnavailable = "D801" "log_unavailable",
    /// The store did not answer.
    StoreUnavailable = "D802" "store_unavailable",
    /// The policy engine failed; that is a denial.
    EngineError = "D901" "engine_error",
    /// Something changed between decision and release.
    Changed = "D902" "changed",
    /// What was stored does not open.
    Corrupt = "D903" "corrupt",
    /// The broker's clocks disagree.
    ClockStep = "D904" "clock_step",
    /// The broker is stopping.
    Draining = "D905" "draining",
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&code).ok_or_else(|| serde::de::Error::custom("no such reason code"))
    }
}

/// A refusal as the client sees it. It never says more than the caller may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{} ({} {})", code.as_str(), reason.code(), reason.word())]
pub struct Refusal {
    /// The broker's id of the request: what to quote, and what `explain` takes.
    pub request: RequestId,
    /// The closed code.
    pub code: Code,
    /// The stable reason.
    pub reason: Reason,
    /// What, where and how to mend it, where that gives nothing away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A token for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorToken {
    /// The operator's name.
    pub name: String,
    /// When the token ends, RFC 3339.
    pub until: String,
}

/// An answer's head. What must be wiped travels as the raw body beside it, never in here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A value; it is the body.
    Secret {
        /// Its version.
        version: u64,
        /// Labels.
        #[serde(default, skip_serializing_if = "Labels::is_empty")]
        labels: Labels,
    },
    /// The client has it already.
    NotModified {
        /// The version.
        version: u64,
    },
    /// A version was written.
    Written {
        /// Its number.
        version: u64,
        /// The store's revision.
        revision: u64,
    },
    /// It was done.
    Done {
        /// The store's revision.
        revision: u64,
    },
    /// It was revoked: this broker refuses it from now on, also after a restart, and the log says so.
    Revoked {
        /// The store's revision.
        revision: u64,
        /// Agents that have not confirmed it; at most `PENDING_LISTED` of them.
        #[serde(default)]
        pending: Vec<PendingAgent>,
        /// How many these are in all.
        #[serde(default)]
        count: u64,
    },
    /// Names.
    Names {
        /// Those that the caller may list.
        items: Vec<SecretItem>,
        /// There may be more: after the last one, or from `next` where that is given.
        more: bool,
        /// Where the search ended before the page was full, sealed: it would name what the caller
        /// may not list.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    /// Versions, oldest first.
    Versions {
        /// All of them.
        items: Vec<VersionItem>,
    },
    /// Who the caller is.
    Identity {
        /// Its SPIFFE ID.
        spiffe_id: SpiffeId,
        /// The device that the identity was issued to.
        device: Option<DeviceId>,
        /// That device's class.
        class: Option<DeviceClass>,
        /// End of the certificate, RFC 3339.
        until: String,
        /// Its posture as policy sees it, for every profile.
        posture: String,
    },
    /// What would happen.
    Can {
        /// Whether it would be allowed.
        allowed: bool,
        /// The reason.
        reason: Reason,
    },
    /// A certificate chain (DER, base64, leaf first) and the trust bundle (DER, base64).
    Certificate {
        /// The identity.
        spiffe_id: SpiffeId,
        /// Leaf first, without the root.
        chain: Vec<String>,
        /// The authorities of the trust domain, which Doorward's own verifiers trust.
        bundle: Vec<String>,
        /// The roots that others trust, where they are others: a company's, above those authorities.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        published: Vec<String>,
        /// End, RFC 3339.
        until: String,
    },
    /// A JWT-SVID was made; it is the body.
    JwtSvid {
        /// The identity.
        spiffe_id: SpiffeId,
        /// The key that signed it.
        kid: String,
        /// The token's own id: that of the request that it was issued under.
        jti: RequestId,
        /// End, RFC 3339.
        until: String,
    },
    /// The entries for one device, or all, in the order of their ids.
    Entries {
        /// Them.
        items: Vec<Entry>,
        /// There are more, after the last one.
        #[serde(default)]
        more: bool,
        /// The revision that they stood at.
        revision: u64,
        /// The sequence of the trust bundle now, where an agent asks for its own; else 0.
        #[serde(default, skip_serializing_if = "is_zero")]
        bundle: u64,
        /// The start of the broker that `revision` counts in, where an agent asks for its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<StartId>,
        /// Likewise another number whenever a federated bundle is another.
        #[serde(default, skip_serializing_if = "is_zero")]
        federated: u64,
    },
    /// What has changed in the entries for one device.
    Changes(DutyChanges),
    /// The roots of the trust domain.
    Bundle {
        /// Raised by each change of an authority.
        sequence: u64,
        /// Them, the younger before the older: what Doorward's own verifiers trust.
        roots: Vec<BundleRoot>,
        /// What others trust, where that is something else: a company's roots, above those.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        published: Vec<String>,
        /// The keys for JWT-SVIDs, as RFC 7517 writes keys; a broker from before them tells none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        jwt_keys: Vec<serde_json::Value>,
    },
    /// Relationships with other trust domains, in the order of their names.
    Federation {
        /// Them.
        items: Vec<FederatedDomain>,
    },
    /// The authorities and who lives by them.
    Authorities(CaStanding),
    /// A token was made; its text is the body.
    Token(OperatorToken),
    /// Devices, in the order of their ids.
    Devices {
        /// Them.
        items: Vec<DeviceSummary>,
        /// There are more, after the last one.
        #[serde(default)]
        more: bool,
    },
    /// A report was taken.
    Reported {
        /// The device's posture now, as policy sees it.
        posture: String,
        /// Report again after this many milliseconds.
        next_ms: u64,
    },
    /// The policy; its files are the body.
    Policy {
        /// Its serial number.
        serial: u64,
        /// Its digest, `sha256:…`.
        digest: String,
    },
    /// Records of the log: one JSON object a line in the body.
    Records {
        /// Index of the first record in the body.
        from: u64,
        /// Index to ask for next.
        next: u64,
        /// The log's size.
        size: u64,
    },
    /// Anything that is for people and machines to read, without a secret in it.
    Report {
        /// A JSON object.
        value: serde_json::Value,
    },
    /// A file; it is the body.
    File {
        /// What kind of file.
        kind: String,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_codes_are_single_and_read_back() {
        let mut seen = std::collections::HashSet::new();
        for reason in Reason::ALL {
            assert!(seen.insert(reason.code()), "{} stands twice", reason.code());
            let text = serde_json::to_string(reason).unwrap();
            assert_eq!(serde_json::from_str::<Reason>(&text).unwrap(), *reason);
        }
    }
}
