//! How the vault fails, and what of it a caller who was allowed may know.

use super::keyring::KeyringError;
use super::rows::RowError;
use super::wrap::WrapError;
use crate::model::{Code, Failure, Reason, SecretName};
use crate::store::StoreError;

/// Why the vault can't say or do something.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The store did not answer.
    #[error("the store did not do its part")]
    Store(#[from] StoreError),
    /// A row of the store is not what the vault wrote there.
    #[error("the row of {object} is damaged")]
    Row {
        /// Whose row.
        object: String,
        /// What is wrong with it.
        #[source]
        source: RowError,
    },
    /// Rows that belong together do not fit, or one is missing.
    #[error("what is stored of {0} does not fit together")]
    Torn(String),
    /// A version does not open.
    #[error("version {version} of {name} does not open")]
    Sealed {
        /// The secret.
        name: SecretName,
        /// The version.
        version: u64,
        /// Why.
        #[source]
        source: WrapError,
    },
    /// A namespace's key can't be had.
    #[error("the key of a namespace can't be had")]
    Keyring(#[from] KeyringError),
    /// A backup can't be made.
    #[error("the backup was not made")]
    Backup(#[from] BackupError),
    /// A sealed file of another room can't be read.
    #[error("can't read `{}` for the backup of the keys", path.display())]
    Beside {
        /// Which.
        path: std::path::PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The runtime is ending.
    #[error("the broker is stopping")]
    Stopping,
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        let corrupt =
            |hint: String| Self { code: Code::Internal, reason: Reason::Corrupt, hint: Some(hint) };
        match error {
            VaultError::Store(StoreError::Damaged(_)) => corrupt("the store is damaged".into()),
            VaultError::Keyring(KeyringError::File(_)) => Self::store(),
            VaultError::Backup(error) => Self::invalid(error.to_string()),
            VaultError::Store(_) | VaultError::Beside { .. } => Self::store(),
            VaultError::Stopping => Self::new(Code::Unavailable, Reason::Draining),
            VaultError::Keyring(error) => corrupt(error.to_string()),
            error @ (VaultError::Row { .. } | VaultError::Torn(_) | VaultError::Sealed { .. }) => {
                corrupt(error.to_string())
            }
        }
    }
}

/// What stood at the decision is not what stands now.
pub(super) fn changed() -> Failure {
    Failure {
        code: Code::Unavailable,
        reason: Reason::Changed,
        hint: Some("it changed between the decision and now; ask again".to_owned()),
    }
}

/// Why a backup is not made or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Not a public key of a recipient.
    #[error("the recipient is no X25519 public key in base64")]
    Recipient,
    /// Not a private key of a recipient.
    #[error("the recipient's private key is no X25519 key in base64")]
    PrivateKey,
    /// Another kind of file.
    #[error("this is no {0}")]
    Kind(&'static str),
    /// Written by a later release.
    #[error("the backup has format {0}; this release knows 1: use a newer release")]
    Newer(u16),
    /// It does not open: another key, or damaged.
    #[error("the backup does not open: it is damaged, or was made for another key")]
    Sealed,
    /// It opened, but its inside is not what was written.
    #[error("the inside of the backup is not in order")]
    Inside,
    /// A part is too large to be written.
    #[error("a part is too large for a backup")]
    TooLarge,
    /// The store that it shall go into holds something.
    #[error("the store is not empty; restore into a new one")]
    NotEmpty,
    /// The store did not do its part.
    #[error("the store did not do its part")]
    Store(#[from] StoreError),
    /// The namespaces' keys can't be read or written.
    #[error("the namespaces' keys can't be read or written")]
    Keyring(#[from] KeyringError),
}
