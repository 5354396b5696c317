//! The other end of a sealed broker's admin socket: asks how the seal stands, and hands a passphrase
//! over. It is given only to a process of the user that the directory belongs to, or of root.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::dir_lock::{DirLock, LockError};
use super::layout::Layout;
use crate::model::{SecretValue, limits};
use crate::wire::{self, AdminAsk, AdminReply, FrameError, SealState};

/// Why the seal's state is not known, or the seal not open.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// There is no broker.
    #[error("no broker runs in `{0}`")]
    Nobody(PathBuf),
    /// Somebody else listens there, or could.
    #[error("`{path}` is not served by the directory's owner: {why}")]
    Untrusted {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The socket can't be reached.
    #[error("can't reach the broker at `{path}`")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The directory can't be looked at.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What was said is not of the protocol, or the broker went away.
    #[error("the broker did not answer to the end; its own diagnostics say why")]
    Frame(#[from] FrameError),
    /// Nothing came.
    #[error("the broker has not answered in time; `/readyz` on its management port says how it is")]
    Late,
    /// Another passphrase is right.
    #[error("wrong passphrase")]
    WrongPassphrase,
    /// The seal, or the start that followed.
    #[error("{error}")]
    Failed {
        /// What.
        error: String,
        /// What lies behind it.
        cause: Option<String>,
        /// Whether the broker has ended.
        ended: bool,
    },
    /// The broker did not take the ask.
    #[error("the broker refused: {0}")]
    Refused(String),
}

/// The addresses of a broker that a passphrase opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsealed {
    /// UDP address for holders of SVIDs.
    pub broker: String,
    /// UDP address for applicants.
    pub enrolment: String,
    /// TCP address for health and metrics.
    pub management: String,
}

/// How the seal of the broker in this directory stands. A broker without an admin socket that holds
/// its directory was given its key at its start: it is open, or will be.
///
/// # Errors
/// When no broker runs there, or it can't be asked.
pub async fn seal_state(layout: &Layout) -> Result<SealState, UnsealError> {
    let stream = match connect(layout).await {
        Err(UnsealError::Nobody(_)) if DirLock::is_held(layout.root())? => {
            return Ok(SealState::Open);
        }
        other => other?,
    };
    match ask(stream, AdminAsk::Seal {}, &SecretValue::empty(), limits::ANSWER_TIMEOUT).await? {
        AdminReply::Seal { state } => Ok(state),
        other => Err(unexpected(other)),
    }
}

/// Hands the passphrase to the sealed broker in this directory and waits until it answers. `None`
/// when the seal was open already.
///
/// # Errors
/// What was wrong with the passphrase, the seal, or the start that followed.
pub async fn unseal(
    layout: &Layout,
    passphrase: &SecretValue,
) -> Result<Option<Unsealed>, UnsealError> {
    let stream = connect(layout).await?;
    match ask(stream, AdminAsk::Unseal {}, passphrase, limits::UNSEAL_TIMEOUT).await? {
        AdminReply::Opened { broker, enrolment, management } => {
            Ok(Some(Unsealed { broker, enrolment, management }))
        }
        AdminReply::Seal { state: SealState::Opening | SealState::Open } => Ok(None),
        other => Err(unexpected(other)),
    }
}

fn unexpected(reply: AdminReply) -> UnsealError {
    match reply {
        AdminReply::WrongPassphrase {} => UnsealError::WrongPassphrase,
        AdminReply::Failed { error, cause, ended } => UnsealError::Failed { error, cause, ended },
        AdminReply::Refused { why } => UnsealError::Refused(why),
        AdminReply::Seal { .. } => UnsealError::Refused("it is ending".to_owned()),
        AdminReply::Opened { .. } => UnsealError::Refused("it answered something else".to_owned()),
    }
}

async fn connect(layout: &Layout) -> Result<UnixStream, UnsealError> {
    let path = layout.admin_socket();
    let fault = |source| UnsealError::Io { path: path.clone(), source };
    let owner = trusted_owner(layout.root(), &path)?;
    let connected = timeout(limits::CONNECT_TIMEOUT, UnixStream::connect(&path)).await;
    let stream = match connected.map_err(|_| UnsealError::Late)? {
        Ok(stream) => stream,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                return Err(UnsealError::Nobody(layout.root().to_owned()));
            }
            _ => return Err(fault(error)),
        },
    };
    let uid = stream.peer_cred().map_err(fault)?.uid();
    if uid != 0 && uid != owner {
        let why = format!("uid {uid} listens, the directory belongs to uid {owner}");
        return Err(UnsealError::Untrusted { path, why });
    }
    Ok(stream)
}

/// Whom the directory belongs to, if nobody else can put a socket into it and none leads elsewhere.
fn trusted_owner(dir: &Path, path: &Path) -> Result<u32, UnsealError> {
    let fault = |source| UnsealError::Io { path: path.to_owned(), source };
    let found = std::fs::metadata(dir).map_err(fault)?;
    if found.mode() & 0o022 != 0 {
        let why = format!("others can write to `{}`", dir.display());
        return Err(UnsealError::Untrusted { path: path.to_owned(), why });
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_symlink()) {
        let why = "it is a symbolic link".to_owned();
        return Err(UnsealError::Untrusted { path: path.to_owned(), why });
    }
    Ok(found.uid())
}

async fn ask(
    mut stream: UnixStream,
    ask: AdminAsk,
    body: &SecretValue,
    wait: Duration,
) -> Result<AdminReply, UnsealError> {
    let answered = async {
        wire::write_admin_ask(&mut stream, ask, body).await?;
        stream.shutdown().await.map_err(FrameError::Write)?;
        wire::read_admin_reply(&mut stream).await
    };
    Ok(timeout(wait, answered).await.map_err(|_| UnsealError::Late)??)
}
