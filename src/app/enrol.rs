//! Becoming an operator or a device: a token in, an identity on disk out.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::proof::ProofError;
use crate::agent::{
    Agent, AgentError, AgentSettings, DeviceKey, Home, HomeError, KeyError, Newcomer,
};
use crate::authority::{JoinToken, TokenError};
use crate::model::{Clock, SpiffeId};
use crate::wire::{self, ClientError, Credentials, CredentialsError, Shows};

/// Why nobody was enrolled. The token is used up only when the broker accepted it.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token.
    #[error("the token is not one that Doorward made")]
    Token(#[from] TokenError),
    /// A token for a person, given to an agent, or the other way round.
    #[error("this token is for a {class}")]
    Kind {
        /// For whom it is.
        class: &'static str,
        /// The command that redeems it.
        command: &'static str,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The broker, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The identity can't be written.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The directory holds what must stay.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// What the machine shows in place of a token.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The agent's state.
    #[error(transparent)]
    Agent(AgentError),
}

impl From<AgentError> for EnrolError {
    fn from(why: AgentError) -> Self {
        match why {
            AgentError::Client(why) => Self::Client(why),
            AgentError::Credentials(why) => Self::Credentials(why),
            AgentError::Home(why) => Self::Home(why),
            AgentError::Key(why) => Self::Key(why),
            why => Self::Agent(why),
        }
    }
}

/// Redeems an operator's token: makes a key and writes the identity to `dir` (0600). The same
/// operator's former one there gives way; another that still counts only if `replace` says so.
///
/// # Errors
/// What stood in the way.
pub async fn login(
    token: &str,
    dir: &Path,
    replace: bool,
    clock: Arc<dyn Clock>,
) -> Result<SpiffeId, EnrolError> {
    let token = JoinToken::parse(token)?;
    if !token.class.is_person() {
        let command = "doorward agent join TOKEN";
        return Err(EnrolError::Kind { class: "device", command });
    }
    let name = token.name.clone().unwrap_or_else(|| "person".to_owned());
    let newcomer = Newcomer { domain: &token.domain, operator: Some(&name), replace };
    let home = Home::take(dir, &newcomer, clock.now().wall())?;
    let (chain, private) = DeviceKey::generate()?.self_signed()?;
    let enrolled = wire::enroll(
        &token.enrolment,
        &token.domain,
        &[token.root],
        chain,
        private.clone_key(),
        &name,
        Shows::Token(token.secret),
        clock,
    )
    .await?;
    let credentials = Credentials {
        domain: token.domain,
        broker: token.broker,
        chain: enrolled.chain,
        key: private,
        bundle: enrolled.bundle,
    };
    home.keep(&credentials, &[])?;
    Ok(enrolled.spiffe_id)
}

/// Writes a renewed identity in the place of the one that it renews, unless a login has put another
/// one there.
///
/// # Errors
/// When it can't be written.
pub fn keep_renewed(
    dir: &Path,
    former: &[CertificateDer<'_>],
    renewed: &Credentials,
) -> Result<(), CredentialsError> {
    Home::renew(dir, former, renewed)
}

/// Redeems a device's token and writes the agent's whole state to `dir`.
///
/// # Errors
/// What stood in the way.
pub async fn join(
    token: &str,
    dir: &Path,
    socket: &Path,
    name: &str,
    replace: bool,
    clock: Arc<dyn Clock>,
) -> Result<AgentSettings, EnrolError> {
    let token = JoinToken::parse(token)?;
    if token.class.is_person() {
        let command = "doorward login TOKEN";
        return Err(EnrolError::Kind { class: "person", command });
    }
    let settings = Agent::join(
        dir,
        &token.enrolment,
        &token.broker,
        token.domain.clone(),
        token.root,
        name,
        Shows::Token(token.secret),
        socket.to_owned(),
        replace,
        clock,
    )
    .await?;
    Ok(settings)
}
