//! A vault for tests: a store, a keyring in a temporary directory, and asks that go the whole way
//! from locating to carrying out, as they do behind a decision.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use time::macros::datetime;

use super::base::{Act, Vault};
use super::seal::RootKey;
use crate::model::{
    Answer, Ask, Failure, Labels, Moment, Released, SecretName, SecretPrefix, SecretValue, Target,
    VersionState,
};
use crate::store::{RedbStore, Store};

pub(super) const ROOT: [u8; 32] = [42; 32];

pub(super) struct Sample {
    pub(super) vault: Vault,
    pub(super) store: Arc<RedbStore>,
    pub(super) dir: Arc<tempfile::TempDir>,
    index: AtomicU64,
}

pub(super) fn root() -> Arc<RootKey> {
    Arc::new(RootKey::from_bytes(&ROOT))
}

pub(super) fn now() -> Moment {
    Moment::new(datetime!(2026-11-23 04:05:06 UTC), Duration::from_secs(1))
}

pub(super) fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

pub(super) fn labels(text: &str) -> Labels {
    serde_json::from_str(text).unwrap()
}

pub(super) fn read(text: &str) -> Ask {
    Ask::Read { name: name(text), version: None, have: None }
}

pub(super) fn read_version(text: &str, version: u64) -> Ask {
    Ask::Read { name: name(text), version: Some(version), have: None }
}

pub(super) fn write(text: &str) -> Ask {
    Ask::Write { name: name(text), cas: None, labels: None, staged: false }
}

pub(super) fn write_cas(text: &str, cas: u64) -> Ask {
    Ask::Write { name: name(text), cas: Some(cas), labels: None, staged: false }
}

pub(super) fn stage(text: &str) -> Ask {
    Ask::Write { name: name(text), cas: None, labels: None, staged: true }
}

pub(super) fn activate(text: &str, version: u64) -> Ask {
    Ask::Activate { name: name(text), version }
}

pub(super) fn delete(text: &str, version: Option<u64>) -> Ask {
    Ask::Delete { name: name(text), version }
}

pub(super) fn undelete(text: &str, version: Option<u64>) -> Ask {
    Ask::Undelete { name: name(text), version }
}

pub(super) fn label(text: &str, to: &str) -> Ask {
    Ask::Label { name: name(text), labels: labels(to) }
}

pub(super) fn list(prefix: &str, after: Option<&str>) -> Ask {
    Ask::List { prefix: SecretPrefix::parse(prefix).unwrap(), after: after.map(name), from: None }
}

impl Sample {
    /// In memory, so that thousands of commits cost no disk.
    pub(super) async fn in_memory() -> Self {
        let store = Arc::new(RedbStore::over_bytes(&[], false).unwrap());
        Self::over(store, Arc::new(tempfile::tempdir().unwrap())).await
    }

    /// In a file, `store`, beside the directory `keys`.
    pub(super) async fn on_disk() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let store = Arc::new(RedbStore::create(&dir.path().join("store")).unwrap());
        Self::over(store, dir).await
    }

    pub(super) async fn over(store: Arc<RedbStore>, dir: Arc<tempfile::TempDir>) -> Self {
        let vault = Vault::open(store.clone(), &dir.path().join("keys"), root()).await.unwrap();
        Self { vault, store, dir, index: AtomicU64::new(100) }
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    /// Carries out under a target that was found earlier.
    pub(super) async fn act(
        &self,
        ask: &Ask,
        target: &Target,
        body: &[u8],
    ) -> Result<Released, Failure> {
        let index = self.index.fetch_add(1, Ordering::SeqCst);
        let act = Act { ask, target, index, now: now(), may_list: &|_| true };
        self.vault.act(&act, SecretValue::new(body.to_vec())).await
    }

    /// Locates and carries out.
    pub(super) async fn ask(&self, ask: Ask, body: &[u8]) -> Result<Released, Failure> {
        let target = self.vault.locate(&ask).await.map_err(Failure::from)?;
        self.act(&ask, &target, body).await
    }

    /// Writes; the new version's number.
    pub(super) async fn put(&self, ask: Ask, body: &[u8]) -> Result<u64, Failure> {
        match self.ask(ask, body).await?.answer {
            Answer::Written { version, .. } => Ok(version),
            other => panic!("{other:?}"),
        }
    }

    /// Reads; version and value.
    pub(super) async fn value(&self, ask: Ask) -> Result<(u64, Vec<u8>), Failure> {
        let released = self.ask(ask, b"").await?;
        match released.answer {
            Answer::Secret { version, .. } => Ok((version, released.body.expose().to_vec())),
            other => panic!("{other:?}"),
        }
    }

    /// Does something that has no answer of its own.
    pub(super) async fn done(&self, ask: Ask) -> Result<(), Failure> {
        match self.ask(ask, b"").await?.answer {
            Answer::Done { .. } => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    /// The states of all versions, as letters: A(ctive), a(vailable), d(eleted).
    pub(super) async fn states(&self, text: &str) -> String {
        match self.ask(Ask::Versions { name: name(text) }, b"").await.unwrap().answer {
            Answer::Versions { items } => items
                .iter()
                .map(|item| match item.state {
                    VersionState::Active => 'A',
                    VersionState::Available => 'a',
                    VersionState::Deleted => 'd',
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn revision(&self) -> u64 {
        self.store.revision().await.unwrap()
    }
}
