//! Checkpoints (C2SP tlog-checkpoint): origin, size and root of the log, signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::merkle::Hash;
use super::signed_note::{LogKey, NoteError, VerifierKey};

/// What a signed checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Records in the log.
    pub(super) size: u64,
    /// The root over them.
    pub(super) root: Hash,
}

impl Checkpoint {
    /// The signed note.
    pub(super) fn sign(&self, origin: &str, key: &LogKey) -> Option<String> {
        let text = format!("{origin}\n{}\n{}\n", self.size, STANDARD.encode(self.root));
        key.sign(origin, &text)
    }

    /// Reads a signed note of the log whose key this is; extension lines are passed over.
    ///
    /// # Errors
    /// When the note is of another form, another log, or not signed by the key.
    pub(super) fn open(note: &str, key: &VerifierKey) -> Result<Self, NoteError> {
        let text = key.open(note)?;
        let mut lines = text.lines();
        let (origin, size, root) = (lines.next(), lines.next(), lines.next());
        if origin != Some(key.name()) {
            return Err(NoteError::Form);
        }
        let size = size.and_then(decimal).ok_or(NoteError::Form)?;
        let root = root.and_then(|root| STANDARD.decode(root).ok()).ok_or(NoteError::Form)?;
        let root = root.try_into().map_err(|_| NoteError::Form)?;
        Ok(Self { size, root })
    }
}

/// A number in its one form: digits, no leading zeros.
pub(super) fn decimal(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (plain && (text == "0" || !text.starts_with('0'))).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_read_back_by_its_own_log_only() {
        let key = LogKey::from_seed(&[7; 32]);
        let checkpoint = Checkpoint { size: 5, root: [9; 32] };
        let note = checkpoint.sign("broker.example/decisions/0", &key).unwrap();
        let own = VerifierKey::parse(&key.vkey("broker.example/decisions/0")).unwrap();
        let other = VerifierKey::parse(&key.vkey("broker.example/decisions/1")).unwrap();
        assert_eq!(Checkpoint::open(&note, &own).unwrap(), checkpoint);
        assert!(Checkpoint::open(&note, &other).is_err());
    }

    #[test]
    fn numbers_have_one_form() {
        assert_eq!(decimal("0"), Some(0));
        assert_eq!(decimal("18446744073709551615"), Some(u64::MAX));
        for bad in ["", "00", "01", "+1", "-1", " 1", "1 ", "18446744073709551616", "0x1"] {
            assert_eq!(decimal(bad), None, "{bad:?}");
        }
    }
}
