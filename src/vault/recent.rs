//! What was read lately, so that the same secret is not looked up, parsed and checked seven times
//! for each of a thousand reads a second.
//!
//! Kept are rows whose MACs were checked, and ciphertext: never a data key, never a value. An entry
//! counts only while the store says that nothing was committed since it was read; one commit
//! anywhere voids all of them. Bounded in number and in bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::rows::{HeadRow, SecretRow};
use crate::model::limits::{RECENT_BYTES, RECENT_MAX};
use crate::model::{SecretName, Target};

/// A secret's active version as it stands, rows checked.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) secret: SecretRow,
    pub(super) head: HeadRow,
    /// The value's ciphertext.
    pub(super) sealed: Vec<u8>,
}

impl Kept {
    /// What a read of the active version means.
    pub(super) fn target(&self) -> Target {
        Target::Secret {
            uuid: self.secret.uuid,
            version: self.head.version,
            digest: self.head.digest,
        }
    }
}

/// The secrets that were read lately.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    generation: Option<u64>,
    bytes: usize,
    kept: HashMap<SecretName, Arc<Kept>, ahash::RandomState>,
}

impl Held {
    fn void(&mut self, generation: Option<u64>) {
        self.generation = generation;
        self.bytes = 0;
        self.kept.clear();
    }
}

impl Recent {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// The secret as it stands at this generation of the store, if it is kept.
    pub(super) fn find(&self, generation: Option<u64>, name: &SecretName) -> Option<Arc<Kept>> {
        let held = self.held();
        match generation.is_some() && held.generation == generation {
            true => held.kept.get(name).cloned(),
            false => None,
        }
    }

    /// Keeps a secret that was read while the store stood at `before` and still does (`after`).
    pub(super) fn keep(&self, before: Option<u64>, after: Option<u64>, kept: Kept) {
        if before.is_none() || before != after {
            return;
        }
        let mut held = self.held();
        let size = kept.sealed.len();
        let full = held.kept.len() >= RECENT_MAX || held.bytes.saturating_add(size) > RECENT_BYTES;
        if held.generation != before || full {
            held.void(before);
        }
        held.bytes += size;
        held.kept.insert(kept.secret.name.clone(), Arc::new(kept));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, Labels};

    fn kept(name: &str, bytes: usize) -> Kept {
        let secret = SecretRow {
            name: SecretName::parse(name).unwrap(),
            uuid: uuid::Uuid::nil(),
            namespace: uuid::Uuid::nil(),
            newest: 1,
            active: Some(1),
            deleted: false,
            labels: Labels::default(),
            created: String::new(),
        };
        let head = HeadRow {
            version: 1,
            deleted: false,
            created: String::new(),
            epoch: 1,
            dek: super::super::rows::Blob(Vec::new()),
            digest: Digest([0; 32]),
        };
        Kept { secret, head, sealed: vec![0; bytes] }
    }

    #[test]
    fn an_entry_counts_until_the_next_commit() {
        let (recent, name) = (Recent::default(), SecretName::parse("a/b").unwrap());
        recent.keep(Some(1), Some(1), kept("a/b", 10));
        assert!(recent.find(Some(1), &name).is_some());
        assert!(recent.find(Some(2), &name).is_none(), "something was committed");
        assert!(recent.find(None, &name).is_none(), "the store failed");
    }

    #[test]
    fn what_a_commit_overtook_is_not_kept() {
        let (recent, name) = (Recent::default(), SecretName::parse("a/b").unwrap());
        recent.keep(Some(1), Some(2), kept("a/b", 10));
        recent.keep(None, None, kept("a/b", 10));
        assert!((0..4).all(|generation| recent.find(Some(generation), &name).is_none()));
    }

    #[test]
    fn it_is_bounded_in_bytes_and_number() {
        let recent = Recent::default();
        for number in 0..2 * RECENT_MAX {
            recent.keep(Some(1), Some(1), kept(&format!("a/{number}"), 1));
            assert!(recent.held().kept.len() <= RECENT_MAX);
        }
        for number in 0..40 {
            recent.keep(Some(1), Some(1), kept(&format!("b/{number}"), RECENT_BYTES / 8));
            assert!(recent.held().bytes <= RECENT_BYTES);
        }
    }
}
