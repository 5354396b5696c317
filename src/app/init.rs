//! `doorward init`: a new broker's directory, whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::BrokerConfig;
use super::files::{FileError, private_dir, write_private};
use super::layout::Layout;
use super::opening::key_seal;
use crate::administration::{Policies, PolicyError};
use crate::authority::{Authority, AuthorityError, CaKeys, Places};
use crate::decision_log::LogKey;
use crate::model::{Clock, SecretValue};
use crate::policy::BundleFiles;
use crate::store::{RedbStore, Store, StoreError};
use crate::vault::{KeyProvider, RootKey, SealError};

/// What a new broker shall be.
#[derive(Debug)]
pub struct Wishes {
    /// Its configuration; a key file at its default place is made.
    pub config: BrokerConfig,
    /// Name of the first operator.
    pub operator: String,
}

/// What `init` leaves.
#[derive(Debug)]
pub struct Initialised {
    /// The first operator's single-use token.
    pub operator_token: SecretValue,
    /// The log's public key.
    pub log_vkey: String,
    /// Digest of the root certificate.
    pub root: crate::model::Digest,
}

/// Why no broker was made. The directory is then as it was.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Something is there already.
    #[error("`{0}` is there already and not empty; choose another directory")]
    NotEmpty(PathBuf),
    /// A file can't be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The seal.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store.
    #[error("the store can't be made")]
    Store(#[from] StoreError),
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The default policies.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No randomness.
    #[error("the system gives no random bytes")]
    Random,
}

/// Makes a broker's directory. It is built beside its place and renamed when it is whole.
///
/// # Errors
/// What stood in the way; nothing is left behind.
pub async fn init(
    dir: &Path,
    wishes: &Wishes,
    provider: Option<Box<dyn KeyProvider>>,
    clock: Arc<dyn Clock>,
) -> Result<Initialised, InitError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| FileError { path, source }
    };
    if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(InitError::NotEmpty(dir.to_owned()));
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(file(parent))?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let building = parent.join(format!(".{name}.building-{}", std::process::id()));
    private_dir(&building)?;
    let made = build(&Layout::new(&building), wishes, provider, clock).await;
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&building);
            return Err(error);
        }
    };
    let _ = std::fs::remove_dir(dir);
    std::fs::rename(&building, dir).map_err(file(dir))?;
    std::fs::File::open(parent).and_then(|d| d.sync_all()).map_err(file(parent))?;
    Ok(made)
}

async fn build(
    layout: &Layout,
    wishes: &Wishes,
    provider: Option<Box<dyn KeyProvider>>,
    clock: Arc<dyn Clock>,
) -> Result<Initialised, InitError> {
    let domain = &wishes.config.trust_domain;
    let provider = match provider {
        Some(provider) => provider,
        None => {
            let mut key = zeroize::Zeroizing::new([0; 32]);
            aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| InitError::Random)?;
            write_private(&layout.seal_key(), key.as_slice())?;
            Box::new(crate::vault::KeyFile(layout.seal_key()))
        }
    };
    let root = Arc::new(RootKey::init(layout.root(), provider.as_ref())?);
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(seed.as_mut_slice()).map_err(|_| InitError::Random)?;
    write_private(&layout.log_key(), &root.wrap("log", seed.as_slice()))?;
    let log_vkey = LogKey::from_seed(&seed).vkey(&log_origin(domain));
    write_private(&layout.log_vkey(), format!("{log_vkey}\n").as_bytes())?;
    private_dir(&layout.keys())?;
    private_dir(&layout.log())?;
    let store: Arc<dyn Store> = Arc::new(RedbStore::create(&layout.store())?);
    let ca_key = Authority::create(store.as_ref(), domain, clock.as_ref()).await?;
    write_private(&layout.ca(), &root.wrap("ca", ca_key.expose()))?;
    let files = BundleFiles::defaults(domain);
    Policies::create(store.as_ref(), domain, &files).await?;
    write_policies(&layout.policies(), &files)?;
    let places = places(&wishes.config);
    let keys = CaKeys { first: ca_key, seal: key_seal(&root) };
    let (authority, _) =
        Authority::open(Arc::clone(&store), domain.clone(), keys, clock, places).await?;
    let operator_token = authority.operator_token(&wishes.operator).await?;
    write_private(&layout.config(), wishes.config.render().as_bytes())?;
    Ok(Initialised { operator_token, log_vkey, root: authority.root_digest() })
}

/// The addresses that join tokens carry.
pub(super) fn places(config: &BrokerConfig) -> Places {
    Places { broker: config.advertise.clone(), enrolment: config.advertise_enrolment.clone() }
}

/// The log's origin line.
pub(super) fn log_origin(domain: &crate::model::TrustDomain) -> String {
    format!("{domain}/decisions/0")
}

/// Writes a bundle's files where authors edit them.
pub(super) fn write_policies(dir: &Path, files: &BundleFiles) -> Result<(), FileError> {
    for (name, text) in &files.files {
        let path = dir.join(name);
        private_dir(path.parent().unwrap_or(dir))?;
        write_private(&path, text.as_bytes())?;
    }
    Ok(())
}
