//! As whom a command asks: `--identity DIR`, else `$DOORWARD_IDENTITY`, else the agent. It never falls
//! from one to the next: a named identity that does not work is a fault.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::Fault;
use crate::app;
use crate::model::{Answer, Ask, Clock, Released, RequestId, SecretValue, SystemClock, limits};
use crate::wire::{Client, Credentials};

/// The variable that names a directory with an identity.
const VARIABLE: &str = "DOORWARD_IDENTITY";
/// Where an agent listens unless it was told otherwise.
const SOCKET: &str = "/run/doorward/agent.sock";

/// How a command reaches a broker.
#[derive(Debug)]
pub struct Access {
    identity: Option<PathBuf>,
    socket: Option<PathBuf>,
    /// Connections of this command; they are closed properly at its end.
    opened: RefCell<Vec<Client>>,
}

/// A broker that answers this command.
pub struct Asking {
    client: Client,
    /// Who asks and of whom.
    pub credentials: Credentials,
}

impl Access {
    /// From the command line.
    pub fn new(identity: Option<PathBuf>, socket: Option<PathBuf>) -> Self {
        let named = identity.or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
        Self { identity: named, socket, opened: RefCell::default() }
    }

    /// The directory of the identity, if one is named.
    pub fn identity(&self) -> Option<&Path> {
        self.identity.as_deref()
    }

    /// Where `login` puts an identity when nothing is named.
    pub fn identity_or_home(&self) -> Result<PathBuf, Fault> {
        if let Some(dir) = &self.identity {
            return Ok(dir.clone());
        }
        let base = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
        base.map(|base| base.join("doorward")).ok_or_else(|| {
            Fault::usage("there is no place for the identity")
                .hint("name a directory with `--identity DIR`")
        })
    }

    /// The agent's socket, if no identity is named.
    pub fn agent(&self) -> Option<PathBuf> {
        match (&self.identity, &self.socket) {
            (None, Some(socket)) => Some(socket.clone()),
            (None, None) => Some(PathBuf::from(SOCKET)),
            (Some(_), _) => None,
        }
    }

    /// Connects with the named identity.
    pub async fn connect(&self) -> Result<Asking, Fault> {
        let Some(dir) = &self.identity else {
            return Err(Fault::usage("this command needs an identity of its own").hint(format!(
                "log in with `doorward login TOKEN`, then name the directory with `--identity DIR` \
                 or `{VARIABLE}`"
            )));
        };
        let credentials = Credentials::load(dir).map_err(|error| {
            Fault { exit: 2, ..Fault::of(&error) }
                .hint(format!("the identity is looked for in `{}`", dir.display()))
        })?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let client = Client::connect(&credentials, Arc::clone(&clock)).await?;
        self.opened.borrow_mut().push(client.clone());
        let mut asking = Asking { client, credentials };
        asking.renew_if_due(dir, clock.as_ref()).await;
        Ok(asking)
    }

    /// Tells the broker that this command is done; it would keep the connection otherwise.
    pub async fn finish(&self) {
        let opened = std::mem::take(&mut *self.opened.borrow_mut());
        for client in opened {
            client.finish().await;
        }
    }

    /// Asks one thing with the named identity.
    pub async fn ask(&self, ask: Ask, body: SecretValue) -> Result<(RequestId, Released), Fault> {
        self.connect().await?.ask(ask, body).await
    }
}

impl Asking {
    /// In the second half of its life the certificate is renewed with the same key. A failure is no
    /// fault of the command: what stands still counts, and the next command tries again.
    async fn renew_if_due(&mut self, dir: &Path, clock: &dyn Clock) {
        let Ok(until) = self.credentials.not_after() else { return };
        if until - clock.now().wall() <= limits::OPERATOR_TTL / 2 {
            self.renew(Some(dir)).await;
        }
    }

    /// Renews the certificate, and takes over the roots that come with it.
    pub async fn renew(&mut self, dir: Option<&Path>) {
        if self.credentials.is_visitor() {
            return; // another domain issues it
        }
        let Ok((_, released)) = self.client.ask(Ask::Renew {}, SecretValue::empty()).await else {
            return;
        };
        if let Answer::Certificate { chain, bundle, .. } = &released.answer
            && let (Some(chain), Some(bundle)) = (certificates(chain), certificates(bundle))
        {
            let former = std::mem::replace(&mut self.credentials.chain, chain);
            self.credentials.bundle = bundle;
            let kept = dir.map(|dir| app::keep_renewed(dir, &former, &self.credentials));
            if let Some(Err(error)) = kept {
                eprintln!("the renewed certificate could not be written: {error}");
            }
        }
    }

    /// Asks one thing.
    pub async fn ask(&self, ask: Ask, body: SecretValue) -> Result<(RequestId, Released), Fault> {
        Ok(self.client.ask(ask, body).await?)
    }
}

/// Certificates out of their base64 form; none if one is not base64.
fn certificates(texts: &[String]) -> Option<Vec<rustls::pki_types::CertificateDer<'static>>> {
    use base64::Engine as _;
    let decode =
        |text: &String| base64::engine::general_purpose::STANDARD.decode(text).ok().map(Into::into);
    texts.iter().map(decode).collect()
}
