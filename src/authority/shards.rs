//! A map that is cheap to copy: readers keep the state that they took, a change copies a small part.
//!
//! Keys are spread over a fixed number of maps by a keyed hash. A copy shares them all; what changes
//! one key copies the one map that it is in, if somebody else still holds it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// Maps of one: at 50,000 keys each has two hundred.
const SHARDS: u64 = 256;

/// The map.
#[derive(Debug, Clone)]
pub(super) struct Shards<K, V> {
    shards: Vec<Arc<HashMap<K, V>>>,
    by: RandomState,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Arc::default()).collect();
        Self { shards, by: RandomState::new(), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        usize::try_from(self.by.hash_one(key) % SHARDS).unwrap_or(0)
    }

    fn shard<Q: Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut HashMap<K, V>> {
        let place = self.place(key);
        self.shards.get_mut(place).map(Arc::make_mut)
    }

    /// How many keys.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What stands under a key.
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards.get(self.place(key))?.get(key)
    }

    /// All of it, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    /// Puts a value under a key; gives the one before.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let former = self.shard(&key)?.insert(key, value);
        self.len += usize::from(former.is_none());
        former
    }

    /// Takes a key out.
    pub(super) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key)?; // nothing is copied for what is not there
        let former = self.shard(key)?.remove(key);
        self.len -= usize::from(former.is_some());
        former
    }

    /// Changes a value in place; an empty one is taken out afterwards.
    pub(super) fn change(
        &mut self,
        key: K,
        change: impl FnOnce(&mut V),
        is_empty: impl FnOnce(&V) -> bool,
    ) where
        V: Default,
    {
        let Some(shard) = self.shard(&key) else { return };
        let before = shard.len();
        let value = shard.entry(key.clone()).or_default();
        change(value);
        if is_empty(value) {
            shard.remove(&key);
        }
        let after = shard.len();
        self.len = (self.len + after).saturating_sub(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_its_state_and_shares_what_did_not_change() {
        let mut map = Shards::<u32, u32>::default();
        for n in 0..10_000 {
            assert_eq!(map.insert(n, n), None);
        }
        let before = map.clone();
        assert_eq!(map.insert(7, 70), Some(7));
        assert_eq!(map.remove(&8), Some(8));
        assert_eq!(map.remove(&8), None);
        map.change(9, |value| *value += 1, |_| false);
        map.change(10, |_| (), |_| true);
        map.change(20_000, |value| *value = 5, |_| false);
        map.change(20_001, |_| (), |_| true);
        assert_eq!(
            [7, 8, 9, 10, 20_000].map(|n| map.get(&n).copied()),
            [Some(70), None, Some(10), None, Some(5)]
        );
        assert_eq!(
            [7, 8, 9, 10, 20_000].map(|n| before.get(&n).copied()),
            [Some(7), Some(8), Some(9), Some(10), None]
        );
        assert_eq!((map.len(), map.values().count()), (9_999, 9_999));
        assert_eq!((before.len(), before.values().count()), (10_000, 10_000));
        let same = map.shards.iter().zip(&before.shards).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert!(same >= 256 - 6, "{same} of 256 are shared");
    }
}
