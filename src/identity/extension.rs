//! The private, non-critical extension of our own SVIDs: which device and entry they were issued
//! to.
//!
//! It is believed only in a leaf that one of our own issuing keys signed; else the device is
//! unknown. There is one form for each content: what does not come out byte for byte as it would be
//! written is not ours.

use serde::{Deserialize, Serialize};

use super::der;
use crate::model::{DeviceId, EntryId};

/// `2.25.<n>`: an arc that needs no registration (ITU-T X.667). Below 2³¹, since Go's parser refuses a
/// whole certificate for a larger one.
pub const EXTENSION_OID: &[u64] = &[2, 25, 1_597_143_277];

/// The extension's value, in bytes of DER: twice what the longest honest one needs.
const EXTENSION_MAX: usize = 512;
/// The only format version so far.
const VERSION: u8 = 1;

/// Who holds the private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// The agent; it never leaves it.
    Agent,
    /// The workload itself (Workload API, or a person's file).
    Workload,
}

/// Why an extension is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Doorward extension is not of the form that Doorward writes")]
pub struct ExtensionError;

/// What stands in the extension; JSON inside a UTF8String, at most 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SvidExtension {
    /// Format version: 1.
    pub v: u8,
    /// The device.
    pub device: DeviceId,
    /// The registration entry; none for agents, operators and the broker.
    pub entry: Option<EntryId>,
    /// The device's epoch at issue.
    pub device_epoch: u64,
    /// The entry's epoch at issue; 0 without entry.
    pub entry_epoch: u64,
    /// Who holds the key.
    pub held_by: Holder,
}

impl SvidExtension {
    /// The DER of the extension's value.
    pub fn to_der(&self) -> Vec<u8> {
        // Writing plain fields to memory does not fail; were it to, no reader takes an empty text.
        let json = serde_json::to_vec(self).unwrap_or_default();
        der::wrap(der::UTF8_STRING, &json)
    }

    /// Reads the DER of the extension's value; total, at most 512 bytes.
    ///
    /// # Errors
    /// When it is of any other form than [`SvidExtension::to_der`] writes, of another version, or
    /// names an epoch for an entry that it does not name.
    pub fn from_der(der: &[u8]) -> Result<Self, ExtensionError> {
        if der.len() > EXTENSION_MAX {
            return Err(ExtensionError);
        }
        let json = der::sole(der::UTF8_STRING, der).ok_or(ExtensionError)?;
        let read: Self = serde_json::from_slice(json).map_err(|_| ExtensionError)?;
        let entry_fits = read.entry.is_some() || read.entry_epoch == 0;
        if read.v != VERSION || !entry_fits || read.to_der() != der {
            return Err(ExtensionError);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn longest() -> SvidExtension {
        SvidExtension {
            v: 1,
            device: DeviceId::of_key(b"a device"),
            entry: Some(EntryId::random()),
            device_epoch: u64::MAX,
            entry_epoch: u64::MAX,
            held_by: Holder::Workload,
        }
    }

    fn text(json: &str) -> Vec<u8> {
        der::wrap(der::UTF8_STRING, json.as_bytes())
    }

    #[test]
    fn what_is_written_reads_back() {
        let without = SvidExtension { entry: None, entry_epoch: 0, ..longest() };
        for written in [longest(), without] {
            assert_eq!(SvidExtension::from_der(&written.to_der()), Ok(written));
        }
        assert!(longest().to_der().len() <= EXTENSION_MAX / 2);
    }

    #[test]
    fn every_other_form_is_refused() {
        let good = serde_json::to_string(&longest()).unwrap();
        assert!(SvidExtension::from_der(&text(&good)).is_ok(), "control");
        let swapped = |from: &str, to: &str| {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{from}");
            text(&changed)
        };
        let no_entry = SvidExtension { entry: None, ..longest() };
        for (der, why) in [
            (Vec::new(), "nothing"),
            (text(""), "an empty text"),
            (good.clone().into_bytes(), "no DER around it"),
            (der::wrap(0x04, good.as_bytes()), "another string type"),
            (swapped("\"v\":1", "\"v\":2"), "a later version"),
            (swapped("\"v\":1", "\"v\": 1"), "white space"),
            (swapped("\"v\":1", "\"v\":1,\"v\":1"), "a field twice"),
            (swapped("\"v\":1", "\"v\":1,\"x\":1"), "an unknown field"),
            (swapped("\"v\":1,", ""), "a field missing"),
            (swapped("workload", "root"), "an unknown holder"),
            (swapped("18446744073709551615", "-1"), "a negative epoch"),
            (swapped("18446744073709551615", "1e3"), "an epoch that is no integer"),
            (text(&format!("{good} ")), "white space behind"),
            (text(&format!("{good}{}", " ".repeat(600))), "too long"),
            (no_entry.to_der(), "an entry's epoch without entry"),
        ] {
            assert_eq!(SvidExtension::from_der(&der), Err(ExtensionError), "{why}");
        }
        let mut behind = text(&good);
        behind.push(0);
        assert_eq!(SvidExtension::from_der(&behind), Err(ExtensionError));
    }

    proptest! {
        #[test]
        fn the_reader_is_total_and_its_form_is_single(
            at in 0_usize..300, byte: u8, cut in 0_usize..300,
        ) {
            let mut der = longest().to_der();
            if let Some(there) = der.get_mut(at) {
                *there = byte;
            }
            der.truncate(der.len().saturating_sub(cut));
            if let Ok(read) = SvidExtension::from_der(&der) {
                prop_assert_eq!(read.to_der(), der);
            }
        }
    }
}
