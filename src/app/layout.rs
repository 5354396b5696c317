//! Where a broker keeps its files.

use std::path::{Path, PathBuf};

/// The data directory of one broker.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below this directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself; it holds the sealed root key too.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `broker.toml`
    pub fn config(&self) -> PathBuf {
        self.root.join("broker.toml")
    }

    /// `seal.key`, where the seal is a key file and no other place was named.
    pub fn seal_key(&self) -> PathBuf {
        self.root.join("seal.key")
    }

    /// `admin.sock`: where a sealed broker takes its passphrase.
    pub fn admin_socket(&self) -> PathBuf {
        self.root.join("admin.sock")
    }

    /// `keys/`: namespace keys.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// `store.redb`
    pub fn store(&self) -> PathBuf {
        self.root.join("store.redb")
    }

    /// `log/`: the decision log.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// `policies/`: what authors edit; the active bundle stands in the store.
    pub fn policies(&self) -> PathBuf {
        self.root.join("policies")
    }

    /// `ca.sealed`
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca.sealed")
    }

    /// `log.sealed`
    pub fn log_key(&self) -> PathBuf {
        self.root.join("log.sealed")
    }

    /// `log.vkey`: the public key that `log verify` takes.
    pub fn log_vkey(&self) -> PathBuf {
        self.root.join("log.vkey")
    }
}
