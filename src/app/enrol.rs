//! Becoming an operator or a device: a token in, an identity on disk out.

use std::path::Path;
use std::sync::Arc;

use crate::agent::{Agent, AgentError, AgentSettings, DeviceKey, KeyError};
use crate::authority::{JoinToken, TokenError};
use crate::model::{Clock, SpiffeId};
use crate::wire::{self, ClientError, Credentials, CredentialsError};

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
    /// The agent's state.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Redeems an operator's token: makes a key (0600) and writes the identity to `dir`.
///
/// # Errors
/// What stood in the way.
pub async fn login(token: &str, dir: &Path, clock: Arc<dyn Clock>) -> Result<SpiffeId, EnrolError> {
    let token = JoinToken::parse(token)?;
    if !token.class.is_person() {
        let command = "doorward agent join TOKEN";
        return Err(EnrolError::Kind { class: "device", command });
    }
    let key = DeviceKey::load_or_create(dir)?;
    let (chain, private) = key.self_signed()?;
    let name = token.name.clone().unwrap_or_else(|| "person".to_owned());
    let enrolled = wire::enroll(
        &token.enrolment,
        &token.domain,
        token.root,
        chain,
        private.clone_key(),
        &name,
        token.secret,
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
    credentials.save(dir)?;
    Ok(enrolled.spiffe_id)
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
        token.secret,
        socket.to_owned(),
        clock,
    )
    .await?;
    Ok(settings)
}
