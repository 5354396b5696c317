//! Opens a broker's directory in the order in which trust grows: its lock, the seal, the log's key,
//! the log, its first record; only then anything else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::admin_socket::AdminSocketError;
use super::clock::GuardedClock;
use super::config::{BrokerConfig, SealConfig};
use super::dir_lock::{DirLock, LockError};
use super::federation_endpoint::EndpointError;
use super::init::{log_origin, places};
use super::layout::Layout;
use super::management::{self, Health};
use super::methods::{MethodError, read_methods};
use super::supervise::{Fall, Supervisor};
use crate::administration::PolicyError;
use crate::authority::{Authority, AuthorityError, CaKeys, KeySeal};
use crate::decision_log::{DecisionLog, LogKey, LogSettings, Note, OpenLogError, RecordError};
use crate::identity::Identity;
use crate::model::{Clock, Refusal, SecretValue, limits};
use crate::store::{RedbStore, Store, StoreError};
use crate::vault::{KeyFile, KeyProvider, RootKey, SealError, VaultError};
use crate::wire::TlsError;

/// Bytes of one segment of the log's journal.
const SEGMENT: u64 = 64 * 1024 * 1024;

/// The largest sealed file, in bytes: a wrapped P-256 key is under 300.
const SEALED_MAX: u64 = 64 * 1024;

/// Why a broker does not start. Each names what is wrong; nothing is repaired silently.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The socket for passphrases.
    #[error(transparent)]
    Admin(#[from] AdminSocketError),
    /// A task ended while the seal was waited for.
    #[error("the task `{}` fell: {}", .0.0, .0.1)]
    Fell(Fall),
    /// The seal does not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A sealed file can't be read.
    #[error("can't read `{path}`")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A sealed file that others may read or change.
    #[error("`{0}` must be a plain file of this user, closed to others: `chmod 600` it")]
    Loose(PathBuf),
    /// A sealed file that does not open.
    #[error("`{path}` is damaged, or of another broker; restore it from a backup")]
    Sealed {
        /// Which.
        path: PathBuf,
        /// What the seal says.
        #[source]
        source: SealError,
    },
    /// A sealed key has another length than Doorward gives it.
    #[error("the sealed key in `{0}` is not of the form that Doorward writes")]
    Key(PathBuf),
    /// The decision log.
    #[error(transparent)]
    Log(#[from] OpenLogError),
    /// The first record could not be written.
    #[error("the start could not be recorded: {0}")]
    Record(#[from] RecordError),
    /// The store.
    #[error("the store `store.redb` does not open: {0}")]
    Store(#[from] StoreError),
    /// Store and log were taken from different times.
    #[error(
        "the store rests on record {grant} of the decision log, which has only {size} records: one \
         of them was rolled back; restore both from the same backup"
    )]
    StoreAhead {
        /// The record that the store's newest commit rests on.
        grant: u64,
        /// The log's size.
        size: u64,
    },
    /// Our own bundle endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Secrets and keys.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Identities.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A method of enrolment.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The broker gives itself no certificate.
    #[error("the broker's own identity was refused: {0}")]
    OwnIdentity(Refusal),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A UDP port.
    #[error("can't listen on {address} (UDP)")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The management port.
    #[error("can't listen on {address} (TCP, management)")]
    Management {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("can't start a thread")]
    Thread(#[source] std::io::Error),
}

/// Everything that a start needs.
pub struct BrokerStart {
    /// Its directory.
    pub layout: Layout,
    /// Its configuration.
    pub config: BrokerConfig,
    /// What opens the seal.
    pub provider: Box<dyn KeyProvider>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// What stands before the seal is open.
pub(super) struct Ground {
    /// The directory, nobody else's.
    pub lock: DirLock,
    /// The tasks of this process.
    pub supervisor: Supervisor,
    /// What the probes are told.
    pub health: Arc<Health>,
    /// The management port, once it is open.
    pub management: Option<SocketAddr>,
}

impl Ground {
    /// Takes the directory.
    pub async fn take(layout: &Layout) -> Result<Self, StartError> {
        Ok(Self {
            lock: DirLock::take(layout.root()).await?,
            supervisor: Supervisor::default(),
            health: Arc::default(),
            management: None,
        })
    }

    /// The address of the management port; it is opened if it was not before.
    pub async fn open_management(&mut self, at: SocketAddr) -> Result<SocketAddr, StartError> {
        if let Some(address) = self.management {
            return Ok(address);
        }
        let address = management::open(at, Arc::clone(&self.health), &self.supervisor)
            .await
            .map_err(|source| StartError::Management { address: at, source })?;
        self.management = Some(address);
        Ok(address)
    }
}

/// What stands once the seal is open and the start is recorded.
pub(super) struct Opened {
    /// What stood before.
    pub ground: Ground,
    /// Time, never before the last record.
    pub clock: Arc<GuardedClock>,
    /// The root key.
    pub root: Arc<RootKey>,
    /// The decision log.
    pub log: DecisionLog,
    /// Its writer.
    pub log_thread: std::thread::JoinHandle<()>,
    /// The store.
    pub store: Arc<dyn Store>,
}

impl BrokerStart {
    /// What opens the seal of a directory whose seal is a key file; a relative path lies in it.
    pub fn key_file(layout: &Layout, config: &BrokerConfig) -> Option<Box<dyn KeyProvider>> {
        match &config.seal {
            SealConfig::KeyFile(path) => Some(Box::new(KeyFile(layout.root().join(path)))),
            SealConfig::Passphrase => None,
        }
    }

    /// Opens seal, log and store, and records the start.
    ///
    /// # Errors
    /// The first thing that does not stand as it should; keys are wiped then.
    pub(super) async fn open(&self) -> Result<Opened, StartError> {
        let ground = Ground::take(&self.layout).await?;
        let root = RootKey::open(self.layout.root(), self.provider.as_ref())?;
        self.open_on(ground, root).await
    }

    /// The same once the seal is open.
    pub(super) async fn open_on(
        &self,
        ground: Ground,
        root: RootKey,
    ) -> Result<Opened, StartError> {
        let root = Arc::new(root);
        let clock = Arc::new(GuardedClock::new(Arc::clone(&self.clock)));
        let (log, log_thread) = self.open_log(&root, &clock, &ground.supervisor)?;
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(&self.layout.store())?);
        let size = log.size();
        if let Some(grant) = store.last_grant().await?.filter(|grant| *grant >= size) {
            return Err(StartError::StoreAhead { grant, size });
        }
        log.note(Note::Unsealed {
            seal: self.provider.kind().to_owned(),
            store_revision: store.revision().await?,
        })
        .await?;
        ground.health.rests_on(log.clone());
        Ok(Opened { ground, clock, root, log, log_thread, store })
    }

    fn open_log(
        &self,
        root: &RootKey,
        clock: &Arc<GuardedClock>,
        supervisor: &Supervisor,
    ) -> Result<(DecisionLog, std::thread::JoinHandle<()>), StartError> {
        let path = self.layout.log_key();
        let seed = unwrap_file(root, "log", &path)?;
        let seed: &[u8; 32] = seed.expose().try_into().map_err(|_| StartError::Key(path))?;
        let settings = LogSettings {
            dir: self.layout.log(),
            origin: log_origin(&self.config.trust_domain),
            reserve: limits::LOG_RESERVE,
            segment_bytes: SEGMENT,
        };
        let (log, writer) = DecisionLog::open(settings, LogKey::from_seed(seed), clock.clone())?;
        if let Some(last) = last_time(&log) {
            clock.never_before(last);
        }
        let thread = supervisor
            .go_on_thread("decision log", move || writer.run())
            .map_err(StartError::Thread)?;
        Ok((log, thread))
    }

    /// The CA, entries and devices.
    pub(super) async fn open_authority(
        &self,
        opened: &Opened,
    ) -> Result<(Authority, Arc<Identity>), StartError> {
        let first = unwrap_file(&opened.root, "ca", &self.layout.ca())?;
        let keys = CaKeys { first, seal: key_seal(&opened.root) };
        let (store, clock) = (Arc::clone(&opened.store), opened.clock.clone());
        let domain = self.config.trust_domain.clone();
        let places = places(&self.config);
        let (authority, identity) = Authority::open(store, domain, keys, clock, places).await?;
        let issuer = self.config.oidc_issuer.as_ref().map(ToString::to_string);
        let is_own = |key: &_| authority.is_issuer(key);
        let of_another = |key: &_| authority.root_of_another(key);
        let methods = read_methods(self.layout.root(), &self.config.methods, is_own, of_another)?;
        let upstream = self.config.upstream.as_ref();
        if let Some(Err(why)) = upstream.map(|upstream| upstream.read(self.layout.root())) {
            // What signs needs none of these files; the next authority does.
            tracing::error!(%why, "no authority can be prepared below `[upstream]` as it is now");
            let detail = format!("no authority can be prepared below `[upstream]`: {why}");
            opened.log.note(Note::Alarm { what: "authorities", detail }).await?;
        }
        let upstream = upstream.map(|upstream| upstream.reader(self.layout.root()));
        let authority = authority.with_token_issuer(issuer).with_upstream(upstream);
        Ok((authority.with_methods(methods), identity))
    }
}

impl Opened {
    /// Ends what was opened without serving: the log is signed and closed.
    pub(super) async fn close(self) {
        drop(self.store);
        drop(self.log);
        let Ground { lock, supervisor, health, .. } = self.ground;
        supervisor.drain().await;
        drop(health);
        let log_thread = self.log_thread;
        let joined = tokio::task::spawn_blocking(move || log_thread.join());
        if tokio::time::timeout(limits::DRAIN, joined).await.is_err() {
            tracing::warn!("the decision log's writer did not end in time");
        }
        drop(lock);
    }
}

/// The vault's seal, as the authority uses it.
pub(super) fn key_seal(root: &Arc<RootKey>) -> KeySeal {
    let (seals, opens) = (Arc::clone(root), Arc::clone(root));
    KeySeal::new(
        move |label, key| seals.wrap(label, key),
        move |label, sealed| opens.unwrap(label, sealed).ok(),
    )
}

fn unwrap_file(root: &RootKey, label: &str, path: &Path) -> Result<SecretValue, StartError> {
    let wrapped = read_private(path)?;
    root.unwrap(label, &wrapped)
        .map_err(|source| StartError::Sealed { path: path.to_owned(), source })
}

/// A plain file of this user that nobody else may touch, with a bound.
fn read_private(path: &Path) -> Result<Vec<u8>, StartError> {
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let failed = |source| StartError::File { path: path.to_owned(), source };
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    if !meta.is_file() || !ours || meta.mode() & 0o077 != 0 {
        return Err(StartError::Loose(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(SEALED_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The time of the newest record.
fn last_time(log: &DecisionLog) -> Option<time::OffsetDateTime> {
    let last = log.size().checked_sub(1)?;
    let (records, _) = log.read(last, 1, None).ok()?;
    let record: serde_json::Value = serde_json::from_str(&records.first()?.1).ok()?;
    let text = record.get("t")?.as_str()?;
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}
