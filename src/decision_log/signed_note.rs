//! Signed notes (C2SP signed-note) and their keys: a text, a blank line, signature lines.
//!
//! Ed25519 only (type 0x01). A note is read strictly: what is not exactly of the form is refused,
//! unknown keys are passed over, and a known key whose signature fails refuses the whole note.

use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::merkle::sha256;

const ED25519_TYPE: u8 = 0x01;
/// Signature lines that are looked at; the specification asks for at least 16.
const SIGNATURES_MAX: usize = 64;
/// Bytes of a note: a checkpoint with many cosignatures is far below.
pub(super) const NOTE_MAX: usize = 64 * 1024;

/// Why a note or a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not of the form of a signed note.
    #[error("it is not a signed note")]
    Form,
    /// No line was signed by the expected key.
    #[error("it bears no signature by the expected key")]
    Unsigned,
    /// A line that names the expected key does not verify.
    #[error("its signature by the expected key does not verify")]
    Signature,
    /// The key's text is not `name+id+base64`, or its id is not its own.
    #[error("the verifier key is not of the form name+id+base64, or its id does not belong to it")]
    Key,
}

/// The log's Ed25519 key, from a 32-byte seed that the vault seals.
pub struct LogKey {
    pair: Ed25519KeyPair,
}

impl LogKey {
    /// The key of this seed.
    ///
    /// # Panics
    /// Never: every 32 bytes are an Ed25519 seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        match Ed25519KeyPair::from_seed_unchecked(seed) {
            Ok(pair) => Self { pair },
            Err(_) => unreachable!("every 32 bytes are an Ed25519 seed"),
        }
    }

    /// The verifier key `origin+id+base64` that auditors are given (C2SP signed-note).
    pub fn vkey(&self, origin: &str) -> String {
        let key = typed(self.pair.public_key().as_ref());
        format!("{origin}+{}+{}", hex::encode(key_id(origin, &key)), STANDARD.encode(&key))
    }

    /// Signs `text`, which ends in a newline, under `name`.
    pub(super) fn sign(&self, name: &str, text: &str) -> Option<String> {
        let id = key_id(name, &typed(self.pair.public_key().as_ref()));
        let signature = self.pair.try_sign(text.as_bytes()).ok()?;
        let line = [&id[..], signature.as_ref()].concat();
        Some(format!("{text}\n\u{2014} {name} {}\n", STANDARD.encode(line)))
    }
}

/// A verifier key.
#[derive(Debug, Clone)]
pub(super) struct VerifierKey {
    name: String,
    id: [u8; 4],
    public: Vec<u8>,
}

impl VerifierKey {
    /// Parses `name+id+base64`.
    pub(super) fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let key = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let own = key_id(name, &key);
        match key.split_first() {
            Some((&ED25519_TYPE, public)) if public.len() == 32 => {
                if !is_name(name) || hex::encode(own) != id {
                    return Err(NoteError::Key);
                }
                Ok(Self { name: name.to_owned(), id: own, public: public.to_vec() })
            }
            _ => Err(NoteError::Key),
        }
    }

    /// The key's name: the log's origin.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The signed text of a note, final newline included, once this key's signature holds.
    pub(super) fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let well = |c: char| c == '\n' || !c.is_ascii_control();
        if note.len() > NOTE_MAX || !note.chars().all(well) || !note.ends_with('\n') {
            return Err(NoteError::Form);
        }
        let blank = note.rfind("\n\n").ok_or(NoteError::Form)?;
        let (text, lines) = note.split_at(blank + 1);
        let mut signed = false;
        for (count, line) in lines.trim_start_matches('\n').lines().enumerate() {
            let (name, id, signature) = signature_line(line).ok_or(NoteError::Form)?;
            if count >= SIGNATURES_MAX {
                return Err(NoteError::Form);
            }
            if name != self.name || id != self.id {
                continue;
            }
            UnparsedPublicKey::new(&ED25519, &self.public)
                .verify(text.as_bytes(), &signature)
                .map_err(|_| NoteError::Signature)?;
            signed = true;
        }
        if signed { Ok(text) } else { Err(NoteError::Unsigned) }
    }
}

/// Name, key id and signature of one signature line.
fn signature_line(line: &str) -> Option<(&str, [u8; 4], Vec<u8>)> {
    let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    (is_name(name) && !signature.is_empty()).then(|| (name, *id, signature.to_vec()))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c == '+')
}

fn typed(public: &[u8]) -> Vec<u8> {
    [&[ED25519_TYPE], public].concat()
}

fn key_id(name: &str, typed: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[name.as_bytes(), b"\n", typed].concat());
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "broker.example/decisions/0";
    const VKEY: &str =
        "broker.example/decisions/0+79d8ae0a+AepKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs";
    const TEXT: &str =
        "broker.example/decisions/0\n5\nskFryH56ybuG3SkREHynFEu1Yii4fNIe1F4wtQAZuII=\n";
    const LINE: &str = "\u{2014} broker.example/decisions/0 ediuCgaARvhqhWm3k55ks2l6DYckntD5hDee5WR3DPHcRcL+9EICKU+4u6mR7868GROeApnilT2mj+cGXYRJeN5TiwU=\n";
    const WITNESS: &str = "\u{2014} witness.example/w1 /qOxhwAAAABpVbkATmSD0377dmhB/2+kJxTmmGXqx3JYI71jKwDLuPtjsMoWCN92F1Kb9fzujGk9l0n4mOVwIZigmg33JRbQKfetAQ==\n";

    #[test]
    fn signatures_and_keys_are_the_vectors() {
        let key = LogKey::from_seed(&[7; 32]);
        assert_eq!(key.vkey(ORIGIN), VKEY);
        let note = key.sign(ORIGIN, TEXT).unwrap();
        assert_eq!(note, format!("{TEXT}\n{LINE}"));
        let verifier = VerifierKey::parse(VKEY).unwrap();
        assert_eq!(verifier.open(&note).unwrap(), TEXT);
        assert_eq!(verifier.open(&format!("{note}{WITNESS}")).unwrap(), TEXT);
    }

    #[test]
    fn every_other_note_is_refused() {
        let verifier = VerifierKey::parse(VKEY).unwrap();
        let good = format!("{TEXT}\n{LINE}");
        assert!(verifier.open(&good).is_ok());
        assert_eq!(verifier.open(&format!("{TEXT}\n{WITNESS}")).unwrap_err(), NoteError::Unsigned);
        let other = good.replacen("\n5\n", "\n6\n", 1);
        assert_eq!(verifier.open(&other).unwrap_err(), NoteError::Signature);
        for bad in [
            "",
            "\n",
            "\n\n",
            TEXT,
            &good[..good.len() - 1],
            &good.replace('\u{2014}', "-"),
            &good.replace("5\n", "5\r\n"),
            &format!("{good}junk\n"),
            &format!("{good}\n"),
        ] {
            assert!(verifier.open(bad).is_err(), "{bad:?}");
        }
        for i in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[i] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert!(verifier.open(&text).is_err(), "byte {i}");
        }
    }

    #[test]
    fn keys_are_read_strictly() {
        assert!(VerifierKey::parse(VKEY).is_ok());
        for bad in [
            "",
            "a+b",
            &VKEY.replace("79d8ae0a", "79d8ae0b"),
            &VKEY.replace("broker", "bro er"),
            &VKEY.replace("AepK", "BepK"),
            &VKEY[..VKEY.len() - 4],
        ] {
            assert_eq!(VerifierKey::parse(bad).unwrap_err(), NoteError::Key, "{bad:?}");
        }
    }
}
