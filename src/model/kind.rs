//! What follows from the operation alone: which room carries it out, whose object it has, how much it
//! may bring.

use super::ask::Ask;
use super::enrolment::EnrolBy;
use super::federation::FederationStep;
use super::limits::{
    BUNDLE_DOCUMENT_MAX, BUNDLE_MAX, DEVICE_PROOF_MAX, EVIDENCE_MAX, POD_TOKEN_MAX, TOKEN_MAX,
    TPM_PROOF_MAX, VALUE_MAX,
};

/// Which room carries an ask out, and so which kind of grant it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Secrets and keys.
    Secret,
    /// Identities.
    Authority,
    /// Everything else: evidence, policy, log, backup.
    Administration,
}

impl Ask {
    /// Which room carries it out.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Read { .. } | Self::Write { .. } | Self::List { .. } | Self::Versions { .. } => {
                Kind::Secret
            }
            Self::Activate { .. } | Self::Delete { .. } | Self::Undelete { .. } => Kind::Secret,
            Self::Label { .. } => Kind::Secret,
            Self::Whoami {} | Self::Renew {} | Self::Duties { .. } | Self::Enroll { .. } => {
                Kind::Authority
            }
            Self::Issue { .. } | Self::TokenCreate { .. } | Self::OperatorAdd { .. } => {
                Kind::Authority
            }
            Self::OperatorRemove { .. } | Self::DeviceList { .. } | Self::DeviceShow { .. } => {
                Kind::Authority
            }
            Self::DeviceRevoke { .. } | Self::EntryCreate { .. } | Self::EntryList { .. } => {
                Kind::Authority
            }
            Self::EntryDelete { .. } | Self::Revoke { .. } => Kind::Authority,
            Self::IssueJwt { .. } => Kind::Authority,
            Self::RevokeSvid { .. } | Self::Retract { .. } => Kind::Authority,
            Self::Bundle { .. } | Self::Ca(_) | Self::Federation(_) => Kind::Authority,
            Self::CanI { .. } | Self::Report { .. } | Self::PolicyRead {} => Kind::Administration,
            Self::PolicyActivate {} | Self::PolicyRollback {} => Kind::Administration,
            Self::LogRead { .. } | Self::Explain { .. } | Self::Status {} => Kind::Administration,
            Self::Exposure { .. } => Kind::Administration,
            Self::BackupData {} | Self::BackupKeys { .. } => Kind::Secret,
        }
    }

    /// Whether the object is the caller itself or its own device, so that no request can name
    /// another's: these can't be locked out by a posture.
    pub fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Whoami {}
                | Self::CanI { .. }
                | Self::Report { .. }
                | Self::Renew {}
                | Self::Duties { .. }
                | Self::Retract { .. }
                | Self::Bundle { .. }
                | Self::Federation(FederationStep::Duties {})
                | Self::Enroll { .. }
        )
    }

    /// The largest body, in bytes, that this ask may bring; 0 for most.
    pub fn body_max(&self) -> usize {
        match self {
            Self::Write { .. } => VALUE_MAX,
            Self::Report { .. } => EVIDENCE_MAX,
            Self::PolicyActivate {} => BUNDLE_MAX,
            Self::Enroll { by: None, .. } => TOKEN_MAX,
            Self::Enroll { by: Some(EnrolBy::X509), .. } => DEVICE_PROOF_MAX,
            Self::Enroll { by: Some(EnrolBy::Kubernetes), .. } => POD_TOKEN_MAX,
            Self::Enroll { by: Some(EnrolBy::Tpm), .. } => TPM_PROOF_MAX,
            Self::Federation(step) if step.brings_bundle() => BUNDLE_DOCUMENT_MAX,
            _ => 0,
        }
    }
}
