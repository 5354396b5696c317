//! How the keys of authorities are sealed: by the vault, which this room does not know.

use std::fmt;

use crate::model::SecretValue;

/// Seals bytes under a label.
type Seal = Box<dyn Fn(&str, &[u8]) -> Vec<u8> + Send + Sync>;
/// Opens what was sealed under the same label; nothing else opens.
type Open = Box<dyn Fn(&str, &[u8]) -> Option<SecretValue> + Send + Sync>;

/// The seal as this room sees it.
pub struct KeySeal {
    seal: Seal,
    open: Open,
}

impl fmt::Debug for KeySeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySeal(…)")
    }
}

impl KeySeal {
    /// Out of the two halves.
    pub fn new(
        seal: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static,
        open: impl Fn(&str, &[u8]) -> Option<SecretValue> + Send + Sync + 'static,
    ) -> Self {
        Self { seal: Box::new(seal), open: Box::new(open) }
    }

    pub(super) fn seal(&self, label: &str, key: &SecretValue) -> Vec<u8> {
        (self.seal)(label, key.expose())
    }

    pub(super) fn open(&self, label: &str, sealed: &[u8]) -> Option<SecretValue> {
        (self.open)(label, sealed)
    }
}

/// The keys of a trust domain's authorities.
#[derive(Debug)]
pub struct CaKeys {
    /// Of the first authority, PKCS#8, out of `ca.sealed`.
    pub first: SecretValue,
    /// For all others, whose sealed keys stand in the store.
    pub seal: KeySeal,
}
