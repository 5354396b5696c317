//! The life of the policy: the last good bundle in the store, activation, rollback.
//!
//! A bundle is checked whole before anything changes; then it is stored, then put in force. The
//! serial only ever rises: going back activates an older bundle's files under a new serial. A bundle
//! that fails anything leaves the one in force where it is.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};

use crate::model::limits::POLICY_READS_KIB;
use crate::model::{Answer, Code, Diagnostic, Failure, Reason, Released, SecretValue, TrustDomain};
use crate::policy::{Bundle, BundleFiles, Policy};
use crate::store::{Expect, Store, StoreError, Table, Txn, Write};

/// Bundles kept for rollback, the active one included.
const KEPT: usize = 10;

/// Why no policy can be put in force at start.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The store did not answer.
    #[error("the store can't be read")]
    Store(#[from] StoreError),
    /// There is no bundle in the store.
    #[error("the store holds no policy; run `doorward init` or restore a backup")]
    None,
    /// The stored bundle does not pass (any more).
    #[error("the stored policy does not pass:\n{}", render(.0))]
    Faults(Vec<Diagnostic>),
}

/// All faults, as a compiler shows them.
pub(super) fn render(faults: &[Diagnostic]) -> String {
    faults.iter().map(Diagnostic::render).collect::<Vec<_>>().join("\n")
}

/// The stored bundles and the one in force.
#[derive(Debug)]
pub struct Policies {
    domain: TrustDomain,
    store: Arc<dyn Store>,
    policy: Arc<Policy>,
    /// One change at a time.
    turn: Mutex<()>,
    /// KiB of files that are on their way out.
    reads: Arc<Semaphore>,
}

fn key(serial: u64) -> Vec<u8> {
    serial.to_be_bytes().to_vec()
}

impl Policies {
    /// Stores the first bundle, serial 1 (`doorward init`).
    ///
    /// # Errors
    /// Faults of the files, or of the store.
    pub async fn create(
        store: &dyn Store,
        domain: &TrustDomain,
        files: &BundleFiles,
    ) -> Result<(), PolicyError> {
        Bundle::build(files, 1, domain).map_err(PolicyError::Faults)?;
        let write = Write { table: Table::Policies, key: key(1), value: Some(files.to_json()) };
        let expect = Expect { table: Table::Policies, key: key(1), revision: None };
        store.commit(Txn { expects: vec![expect], writes: vec![write], under: None }).await?;
        Ok(())
    }

    /// Puts the newest stored bundle in force.
    ///
    /// # Errors
    /// When there is none, or it does not pass: the broker then refuses to start.
    pub async fn open(store: Arc<dyn Store>, domain: TrustDomain) -> Result<Self, PolicyError> {
        let rows = store.scan(Table::Policies, &[], None, KEPT * 2).await?;
        let (name, row) = rows.last().ok_or(PolicyError::None)?;
        let serial = name.as_slice().try_into().map(u64::from_be_bytes).unwrap_or(0);
        let files = BundleFiles::from_json(&row.value).map_err(PolicyError::Faults)?;
        let bundle = Bundle::build(&files, serial, &domain).map_err(PolicyError::Faults)?;
        let policy = Arc::new(Policy::new(bundle));
        let reads = Arc::new(Semaphore::new(POLICY_READS_KIB));
        Ok(Self { domain, store, policy, turn: Mutex::new(()), reads })
    }

    /// The policy in force.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The files in force.
    ///
    /// # Errors
    /// When too much of them is on its way out already.
    pub(super) async fn read(&self) -> Result<Released, Failure> {
        let bundle = self.policy.current();
        let serial = bundle.serial();
        let digest = format!("sha256:{}", bundle.digest());
        let bytes: usize = bundle.files().files.values().map(String::len).sum();
        let turns = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).saturating_add(1);
        let turn = Arc::clone(&self.reads).try_acquire_many_owned(turns).map_err(|_| Failure {
            code: Code::Unavailable,
            reason: Reason::Limited,
            hint: Some("others are reading the policy; ask again when they are done".into()),
        })?;
        // Up to 16 MiB become one text: not where requests are answered.
        let json = tokio::task::spawn_blocking(move || bundle.files().to_json());
        let json = json.await.map_err(|_| Failure::store())?;
        let body = SecretValue::new(json).holding(turn);
        Ok(Released { answer: Answer::Policy { serial, digest }, body })
    }

    /// Checks, stores, puts in force.
    pub(super) async fn activate(&self, index: u64, json: &[u8]) -> Result<Released, Failure> {
        let json = json.to_vec();
        let read = move || {
            BundleFiles::from_json(&json).map_err(|faults| Failure::invalid(render(&faults)))
        };
        self.put_in_force(index, read).await
    }

    /// The files of the bundle before, under a new serial.
    pub(super) async fn roll_back(&self, index: u64) -> Result<Released, Failure> {
        let active = self.policy.current();
        let rows = self
            .store
            .scan(Table::Policies, &[], None, KEPT * 2)
            .await
            .map_err(|_| Failure::store())?;
        let find = move || {
            let mut older = rows.iter().rev().filter_map(|(_, row)| {
                BundleFiles::from_json(&row.value)
                    .ok()
                    .filter(|files| files.digest() != active.digest())
            });
            older
                .next()
                .ok_or_else(|| Failure::conflict("there is no earlier policy to go back to"))
        };
        self.put_in_force(index, find).await
    }

    /// Up to 16 MiB are read, checked and written anew: not where requests are answered.
    async fn put_in_force(
        &self,
        index: u64,
        files: impl FnOnce() -> Result<BundleFiles, Failure> + Send + 'static,
    ) -> Result<Released, Failure> {
        let _turn = self.turn.lock().await;
        let serial = self.policy.current().serial() + 1;
        let domain = self.domain.clone();
        let built = tokio::task::spawn_blocking(move || {
            let files = files()?;
            let bundle = Bundle::build(&files, serial, &domain);
            let bundle = bundle.map_err(|faults| Failure::invalid(render(&faults)))?;
            Ok::<_, Failure>((bundle, files.to_json()))
        });
        let (bundle, json) =
            built.await.map_err(|_| Failure::invalid("the policy could not be checked"))??;
        let mut writes =
            vec![Write { table: Table::Policies, key: key(serial), value: Some(json) }];
        if let Some(old) = serial.checked_sub(KEPT as u64).filter(|old| *old > 0) {
            writes.push(Write { table: Table::Policies, key: key(old), value: None });
        }
        let expect = Expect { table: Table::Policies, key: key(serial), revision: None };
        self.store
            .commit(Txn { expects: vec![expect], writes, under: Some(index) })
            .await
            .map_err(|_| Failure::store())?;
        let digest = format!("sha256:{}", bundle.digest());
        self.policy.install(bundle);
        Ok(Released::head(Answer::Policy { serial, digest }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RedbStore;

    #[tokio::test]
    async fn what_leaves_at_once_is_bounded_and_the_next_one_waits_for_nobody() {
        let (dir, domain) = (tempfile::tempdir().unwrap(), TrustDomain::parse("d").unwrap());
        let store: Arc<dyn Store> =
            Arc::new(RedbStore::create(&dir.path().join("store.redb")).unwrap());
        let rows = "p, ops, spiffe://d/doorward/operator/*, policy, *, any, -, -, allow\n";
        let remarks = "# a remark\n".repeat(1 << 20);
        let files = [("policy.csv", format!("{rows}{remarks}")), ("posture.toml", String::new())];
        let files = files.map(|(name, text)| (name.to_owned(), text));
        let files = BundleFiles { files: files.into() };
        Policies::create(store.as_ref(), &domain, &files).await.unwrap();
        let policies = Policies::open(store, domain).await.unwrap();
        let most = POLICY_READS_KIB / (11 << 10);
        let mut held = Vec::new();
        while let Ok(read) = policies.read().await {
            assert_eq!(read.body.len(), files.to_json().len());
            held.push(read);
            assert!(held.len() <= most);
        }
        assert_eq!(held.len(), most);
        let refused = policies.read().await.unwrap_err();
        assert_eq!((refused.code, refused.reason), (Code::Unavailable, Reason::Limited));
        drop(held.pop());
        assert!(policies.read().await.is_ok(), "what has left makes room");
    }
}
