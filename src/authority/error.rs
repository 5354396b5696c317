//! Why the authority could not be made, opened or changed outside the line.

use super::token::TokenError;
use super::upstream::UpstreamError;
use crate::model::{Failure, TrustDomain};
use crate::store::StoreError;

/// Why an operation of the authority failed. The source is told apart, never printed within.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// `create` on a store that holds a CA already.
    #[error("the store holds a certificate authority already; use another data directory")]
    CaExists,
    /// `open` on a store without one.
    #[error("the store holds no certificate authority; run `doorward init` first")]
    CaMissing,
    /// The root certificate is not the one that this room writes.
    #[error("the stored root certificate is damaged: {0}; restore a backup")]
    CaDamaged(&'static str),
    /// The unsealed key does not belong to the stored certificate.
    #[error(
        "the CA key does not belong to the stored root certificate; was a foreign key restored?"
    )]
    CaKey,
    /// The store belongs to another trust domain.
    #[error("the store belongs to another trust domain than `{0}`; mend `trust_domain`")]
    Domain(TrustDomain),
    /// A row does not read back.
    #[error("a row of {table} is damaged (key {key}); restore a backup")]
    Row {
        /// The table.
        table: &'static str,
        /// The row's key, hexadecimal.
        key: String,
    },
    /// A row was written by a newer Doorward.
    #[error("a row of {table} has format {version}, this program knows 1; use the newer program")]
    Newer {
        /// The table.
        table: &'static str,
        /// The format that it has.
        version: u64,
    },
    /// The library could not sign or make randomness.
    #[error("the cryptographic library failed while {0}")]
    Crypto(&'static str),
    /// A change was refused, as it would be to a caller.
    #[error("refused: {}", .0.hint.as_deref().unwrap_or("no reason given"))]
    Refused(Failure),
    /// No authority could be made below the company's.
    #[error("no authority can be made below `[upstream]`: {0}")]
    Upstream(String),
    /// The store failed.
    #[error("the store failed while the authority used it")]
    Store(#[source] StoreError),
    /// A token can't be written.
    #[error("the join token can't be written")]
    Token(#[source] TokenError),
}

impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AuthorityError> for Failure {
    /// What a caller may know of it; the rest goes into the program's own diagnostics.
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Refused(failure) => failure,
            AuthorityError::Upstream(why) => {
                tracing::error!(%why, "no authority can be made below `[upstream]`");
                let failure =
                    Failure::new(crate::model::Code::Unavailable, crate::model::Reason::Conflict);
                Failure { hint: Some(format!("below `[upstream]`: {why}")), ..failure }
            }
            AuthorityError::Token(error) => Failure::invalid(error.to_string()),
            AuthorityError::Store(source) => {
                tracing::error!(error = %source, "the authority's store failed");
                Failure::store()
            }
            other => {
                tracing::error!(error = %other, "the authority failed");
                Failure::new(crate::model::Code::Internal, crate::model::Reason::Corrupt)
            }
        }
    }
}

impl From<UpstreamError> for AuthorityError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Own(error) => error,
            other => Self::Upstream(other.to_string()),
        }
    }
}

impl From<Failure> for AuthorityError {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}
