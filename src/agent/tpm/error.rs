//! Why a TPM gave nothing.

use std::io;

use crate::posture::tpm::Malformed;

/// Why a TPM gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// Too many commands wait for it already.
    #[error("too many commands wait for the tpm")]
    Busy,
    /// Its thread has ended, or could not be started.
    #[error("the thread that speaks with the tpm is not there")]
    Gone,
    /// It can't be reached, or the way to it broke.
    #[error("the tpm can't be spoken to")]
    Io(#[source] io::Error),
    /// It gave no answer in time.
    #[error("the tpm gave no answer in time")]
    Late,
    /// It answered with something that is no answer.
    #[error("the tpm's answer to {command} can't be read")]
    Malformed {
        /// The command.
        command: &'static str,
        /// Where.
        #[source]
        source: Malformed,
    },
    /// It has no such thing, or makes another one than it was asked for.
    #[error("the tpm {0}")]
    Other(&'static str),
    /// It refused.
    #[error("the tpm refused {command} with response code {code:#05x}")]
    Refused {
        /// The command.
        command: &'static str,
        /// TPM_RC (TPM 2.0 Part 2 §6.6).
        code: u32,
    },
}

impl TpmError {
    /// What to do, where that can be said.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("the agent's user must be in the group of /dev/tpmrm0, often `tss`")
            }
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                Some("is there a TPM? `ls /dev/tpmrm0`; in a firmware's setup it may be off")
            }
            Self::Refused { code: 0x921, .. } => {
                Some("the tpm is locked out; `tpm2_dictionarylockout --clear-lockout` by its owner")
            }
            _ => None,
        }
    }
}
