//! What a peer asks for: one closed set, the same for every transport and face.
//!
//! An `Ask` names no one to act for: who asks is known from the connection only. `report`, `renew`,
//! `whoami` and the like take their object from the caller (nobody is locked out of them).

use serde::{Deserialize, Serialize};

use super::audience::Audience;
use super::authority::{BundleHeld, CaStep};
use super::device::{DeviceClass, DeviceId, Digest};
use super::duty::Since;
use super::enrolment::EnrolBy;
use super::entry::{EntryDraft, RetractedSvid, WorkloadFacts};
use super::federation::FederationStep;
use super::ids::{EntryId, RequestId, Serial};
use super::name::{SecretName, SecretPrefix};
use super::object::Action;
use super::secret::Labels;
use super::spiffe_id::SpiffeId;

/// One request. In JSON: one key, the operation, with its fields: `{"read":{"name":"pay/db/url"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// The value of a secret. With `have`, the answer may be «not modified».
    Read {
        /// Which.
        name: SecretName,
        /// A version other than the active one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
        /// The version that the client has already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        have: Option<u64>,
    },
    /// A new version; the value is the request's body.
    Write {
        /// Which.
        name: SecretName,
        /// Check-and-set: the newest version must be this one; 0 means «must not exist».
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cas: Option<u64>,
        /// Replaces the labels when given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        labels: Option<Labels>,
        /// Keep the active version as it is, instead of making the new one active.
        #[serde(default)]
        staged: bool,
    },
    /// The names under a prefix that the caller may list.
    List {
        /// Where.
        prefix: SecretPrefix,
        /// Names after this one (the last of the page before).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<SecretName>,
        /// From where the answer before ended its search (its `next`); then `after` says nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
    },
    /// The versions of a secret, without values.
    Versions {
        /// Which.
        name: SecretName,
    },
    /// Makes a version the active one.
    Activate {
        /// Which.
        name: SecretName,
        /// The version.
        version: u64,
    },
    /// Hides one version, or the whole secret. It can be brought back.
    Delete {
        /// Which.
        name: SecretName,
        /// One version; without it, the whole secret.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    },
    /// Brings back what `delete` hid.
    Undelete {
        /// Which.
        name: SecretName,
        /// One version; without it, the whole secret.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    },
    /// Replaces the labels of a secret.
    Label {
        /// Which.
        name: SecretName,
        /// All labels that it shall have.
        labels: Labels,
    },

    /// Who the broker sees.
    Whoami {},
    /// Whether the caller may, now; nothing is done.
    CanI {
        /// The action.
        action: Action,
        /// The object, in the notation of policies.
        object: String,
    },
    /// Evidence of the caller's own device; the signed evidence is the body.
    Report {
        /// Digest of the facts that the evidence will carry.
        facts: Digest,
    },
    /// A new certificate for the caller's own identity and key.
    Renew {},
    /// The entries that the caller's own device may ask for, a page at a time; with `since`, what
    /// has changed of them.
    Duties {
        /// Entries after this one (the last of the page before).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<EntryId>,
        /// The revision of the entries that the agent holds already: what it confirms.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holds: Option<u64>,
        /// Only what is newer than `holds`; then `after` says nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
    },

    /// The roots of the trust domain; with it the caller says what it has in force of them.
    Bundle {
        /// What an agent has told its workloads.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holds: Option<BundleHeld>,
    },
    /// The authorities that sign: looking at them, and each step of their life.
    Ca(CaStep),
    /// Relationships with other trust domains: looking at them, and each step of their life.
    Federation(FederationStep),

    /// Becoming a device, on the enrolment port. The body is the join token's text, another proof
    /// (`by`), or empty for a device that comes back with its key.
    Enroll {
        /// A word for people: the host's name. 1 to 64 plain characters.
        name: String,
        /// What the broker knows the join token by ([`join_secret_digest`](super::join_secret_digest)):
        /// SHA-256 of its secret. Says nothing of the secret, and redeems nothing. Absent for a
        /// device that comes back with its key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<Digest>,
        /// What the body is, where it is no join token; never beside `token`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<EnrolBy>,
    },
    /// An SVID for a workload that the caller's agent attests.
    Issue {
        /// By which entry.
        entry: EntryId,
        /// The entry's SPIFFE ID, as the agent knows it.
        spiffe_id: SpiffeId,
        /// SubjectPublicKeyInfo (DER, base64) of the key that the agent made.
        public_key: String,
        /// What the kernel says of the process.
        workload: WorkloadFacts,
        /// The key stays with the agent (true) or goes to the workload (false).
        agent_held: bool,
    },
    /// A JWT-SVID for a workload that the caller's agent attests; it is the answer's body.
    IssueJwt {
        /// By which entry.
        entry: EntryId,
        /// The entry's SPIFFE ID, as the agent knows it.
        spiffe_id: SpiffeId,
        /// Whom the token is for.
        audience: Audience,
        /// What the kernel says of the process.
        workload: WorkloadFacts,
    },
    /// A single-use join token for a new device of this class.
    TokenCreate {
        /// The class that the device will have.
        class: DeviceClass,
        /// Life in seconds, 60 to 86400.
        ttl_s: u32,
    },
    /// A single-use token for a new operator.
    OperatorAdd {
        /// One segment.
        name: String,
    },
    /// Ends an operator's identity and forgets the device that it stood on.
    OperatorRemove {
        /// One segment.
        name: String,
    },
    /// All devices, a page at a time.
    DeviceList {
        /// Devices after this one (the last of the page before).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<DeviceId>,
    },
    /// One device with its facts.
    DeviceShow {
        /// Its class.
        class: DeviceClass,
        /// Its id.
        id: DeviceId,
    },
    /// Ends a device: every identity issued to it is dead at once.
    DeviceRevoke {
        /// Its class.
        class: DeviceClass,
        /// Its id.
        id: DeviceId,
        /// What it was enrolled by (a certificate, a node) may enrol another device from now on.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        release: bool,
    },
    /// A new registration entry.
    EntryCreate {
        /// What it shall say.
        entry: EntryDraft,
    },
    /// All entries, a page at a time.
    EntryList {
        /// Entries after this one (the last of the page before).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<EntryId>,
    },
    /// Ends an entry and every SVID that it gave.
    EntryDelete {
        /// The SPIFFE ID that it gives.
        spiffe_id: SpiffeId,
        /// Its id.
        id: EntryId,
    },
    /// Ends every living SVID of this SPIFFE ID; its entries stay, at a higher epoch, suspended
    /// until `resume` is asked for.
    Revoke {
        /// The identity.
        spiffe_id: SpiffeId,
        /// `false` revokes, `true` lets the entries give SVIDs again.
        #[serde(default)]
        resume: bool,
    },
    /// Ends one SVID. Its entry stays in force: the workload's agent may have a new one issued.
    RevokeSvid {
        /// The identity that stands in it.
        spiffe_id: SpiffeId,
        /// Its serial number.
        serial: Serial,
    },
    /// Ends SVIDs of processes that are no more, or that are other programs by now. Only ever those
    /// that were issued to the caller's own device.
    Retract {
        /// Them: 1 to 64.
        svids: Vec<RetractedSvid>,
    },

    /// The policy bundle that is active.
    PolicyRead {},
    /// A new policy bundle; its files are the body.
    PolicyActivate {},
    /// Back to the bundle before.
    PolicyRollback {},
    /// Records of the log, newest last.
    LogRead {
        /// From this index on.
        from: u64,
        /// At most so many.
        limit: u32,
        /// Only records that hold this text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holding: Option<String>,
    },
    /// The secrets whose values were released to one device, out of the log.
    Exposure {
        /// Which device.
        device: DeviceId,
        /// Records from this index on.
        from: u64,
        /// Look at so many at most.
        limit: u32,
        /// Only what was released from this time on; seconds since 1970.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<i64>,
    },
    /// The record of one request, and what was missing in a denial.
    Explain {
        /// The request's id.
        request: RequestId,
    },
    /// What the broker is and how it stands.
    Status {},
    /// A backup of the sealed data, without keys; it is the answer's body.
    BackupData {},
    /// A backup of the keys, encrypted to a recipient; it is the answer's body.
    BackupKeys {
        /// The recipient's public key, base64.
        recipient: String,
    },
}

impl Ask {
    /// The verb that policy judges.
    pub fn action(&self) -> Action {
        match self {
            Self::Read { .. } | Self::Whoami {} | Self::Duties { .. } | Self::PolicyRead {} => {
                Action::Read
            }
            Self::DeviceList { .. } | Self::DeviceShow { .. } | Self::EntryList { .. } => {
                Action::Read
            }
            Self::LogRead { .. } | Self::Status {} | Self::Bundle { .. } => Action::Read,
            Self::Exposure { .. } => Action::Read,
            Self::Ca(step) => step.action(),
            Self::Federation(step) => step.action(),
            Self::Write { .. } | Self::Label { .. } | Self::EntryCreate { .. } => Action::Write,
            Self::TokenCreate { .. } | Self::OperatorAdd { .. } => Action::Write,
            Self::List { .. } | Self::Versions { .. } => Action::List,
            Self::Activate { .. } | Self::PolicyActivate {} => Action::Activate,
            Self::Delete { .. } | Self::Undelete { .. } => Action::Delete,
            Self::CanI { .. } => Action::Read,
            Self::Report { .. } => Action::Report,
            Self::Renew {} => Action::Renew,
            Self::Enroll { .. } => Action::Enroll,
            Self::Issue { .. } | Self::IssueJwt { .. } => Action::Issue,
            Self::OperatorRemove { .. } | Self::DeviceRevoke { .. } => Action::Revoke,
            Self::EntryDelete { .. } | Self::Revoke { .. } => Action::Revoke,
            Self::RevokeSvid { .. } => Action::Revoke,
            Self::Retract { .. } => Action::Report,
            Self::PolicyRollback {} => Action::Rollback,
            Self::Explain { .. } => Action::Explain,
            Self::BackupData {} | Self::BackupKeys { .. } => Action::Take,
        }
    }

    /// The operation's word, as it stands on the wire and in the record: it tells asks apart that
    /// share an action and an object.
    pub fn op(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::List { .. } => "list",
            Self::Versions { .. } => "versions",
            Self::Activate { .. } => "activate",
            Self::Delete { .. } => "delete",
            Self::Undelete { .. } => "undelete",
            Self::Label { .. } => "label",
            Self::Whoami {} => "whoami",
            Self::CanI { .. } => "can_i",
            Self::Report { .. } => "report",
            Self::Renew {} => "renew",
            Self::Duties { .. } => "duties",
            Self::Bundle { .. } => "bundle",
            Self::Ca(step) => step.op(),
            Self::Federation(step) => step.op(),
            Self::Enroll { .. } => "enroll",
            Self::Issue { .. } => "issue",
            Self::IssueJwt { .. } => "issue_jwt",
            Self::TokenCreate { .. } => "token_create",
            Self::OperatorAdd { .. } => "operator_add",
            Self::OperatorRemove { .. } => "operator_remove",
            Self::DeviceList { .. } => "device_list",
            Self::DeviceShow { .. } => "device_show",
            Self::DeviceRevoke { .. } => "device_revoke",
            Self::EntryCreate { .. } => "entry_create",
            Self::EntryList { .. } => "entry_list",
            Self::EntryDelete { .. } => "entry_delete",
            Self::Revoke { .. } => "revoke",
            Self::RevokeSvid { .. } => "revoke_svid",
            Self::Retract { .. } => "retract",
            Self::PolicyRead {} => "policy_read",
            Self::PolicyActivate {} => "policy_activate",
            Self::PolicyRollback {} => "policy_rollback",
            Self::LogRead { .. } => "log_read",
            Self::Exposure { .. } => "exposure",
            Self::Explain { .. } => "explain",
            Self::Status {} => "status",
            Self::BackupData {} => "backup_data",
            Self::BackupKeys { .. } => "backup_keys",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_calls_an_ask_as_the_wire_does() {
        let id = "0192a0b0-0000-7000-8000-000000000000";
        let device = "0".repeat(64);
        for json in [
            r#"{"read":{"name":"a/b"}}"#.to_owned(),
            r#"{"label":{"name":"a/b","labels":{}}}"#.to_owned(),
            r#"{"can_i":{"action":"read","object":"policy"}}"#.to_owned(),
            r#"{"enroll":{"name":"x"}}"#.to_owned(),
            format!(r#"{{"enroll":{{"name":"x","token":"{device}"}}}}"#),
            r#"{"enroll":{"name":"x","by":"x509"}}"#.to_owned(),
            r#"{"enroll":{"name":"x","by":"kubernetes"}}"#.to_owned(),
            r#"{"operator_add":{"name":"ann"}}"#.to_owned(),
            r#"{"operator_remove":{"name":"ann"}}"#.to_owned(),
            r#"{"token_create":{"class":"server","ttl_s":60}}"#.to_owned(),
            format!(r#"{{"device_revoke":{{"class":"server","id":"{device}"}}}}"#),
            r#"{"entry_list":{}}"#.to_owned(),
            format!(r#"{{"entry_delete":{{"spiffe_id":"spiffe://d.example/a","id":"{id}"}}}}"#),
            r#"{"revoke_svid":{"spiffe_id":"spiffe://d.example/a","serial":"5a"}}"#.to_owned(),
            r#"{"retract":{"svids":[{"serial":"5a","until":1}]}}"#.to_owned(),
            r#"{"policy_activate":{}}"#.to_owned(),
            r#"{"policy_rollback":{}}"#.to_owned(),
            r#"{"log_read":{"from":0,"limit":1}}"#.to_owned(),
            format!(r#"{{"exposure":{{"device":"{device}","from":0,"limit":1}}}}"#),
            r#"{"backup_data":{}}"#.to_owned(),
            r#"{"backup_keys":{"recipient":"AA=="}}"#.to_owned(),
        ] {
            let ask: Ask = serde_json::from_str(&json).unwrap();
            let value = serde_json::to_value(&ask).unwrap();
            assert_eq!(value.as_object().unwrap().keys().next().unwrap(), ask.op(), "{json}");
        }
    }

    #[test]
    fn asks_have_one_form_and_nothing_beside_it() {
        let ask: Ask = serde_json::from_str(r#"{"read":{"name":"pay/db/url","have":7}}"#).unwrap();
        assert_eq!(
            serde_json::to_string(&ask).unwrap(),
            r#"{"read":{"name":"pay/db/url","have":7}}"#
        );
        for bad in [
            r#"{"read":{"name":"pay/../x"}}"#,
            r#"{"read":{"name":"pay/x","name":"pay/y"}}"#,
            r#"{"read":{"name":"pay/x","as":"spiffe://corp.example/root"}}"#,
            r#"{"read":{"name":"pay/x","version":-1}}"#,
            r#"{"read":{"name":"pay/x"},"write":{"name":"pay/x"}}"#,
            r#"{"whoami":{"id":"x"}}"#,
            r#"{"enroll":{"name":"x","by":"oidc"}}"#,
            r#"{"enroll":{"name":"x","by":"X509"}}"#,
            r#"{"become_root":{}}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Ask>(bad).is_err(), "{bad}");
        }
    }
}
