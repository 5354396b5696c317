//! The verifier's own reading of keys and signed checkpoints (C2SP signed-note, tlog-checkpoint).

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Hash, hash};

/// The log's public key.
pub(super) struct Key {
    name: String,
    id: [u8; 4],
    public: [u8; 32],
}

/// What a checkpoint says.
pub(super) struct Signed {
    pub(super) size: u64,
    pub(super) root: Hash,
}

impl Key {
    /// Reads `name+id+base64`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('+')?;
        let (id, encoded) = rest.split_once('+')?;
        let typed = STANDARD.decode(encoded).ok()?;
        let (kind, public) = typed.split_first()?;
        let public: [u8; 32] = public.try_into().ok()?;
        let mut named = name.as_bytes().to_vec();
        named.push(b'\n');
        named.extend_from_slice(&typed);
        let own = *hash(&named).first_chunk::<4>()?;
        let fits = *kind == 1 && !name.is_empty() && hex::encode(own) == id;
        fits.then(|| Self { name: name.to_owned(), id: own, public })
    }

    /// The log's origin.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Size and root, once the signature holds.
    pub(super) fn checkpoint(&self, note: &[u8]) -> Result<Signed, &'static str> {
        let note = std::str::from_utf8(note).map_err(|_| "it is not UTF-8")?;
        if note.chars().any(|c| c.is_ascii_control() && c != '\n') {
            return Err("it holds control characters");
        }
        let (text, signatures) = note.rsplit_once("\n\n").ok_or("it bears no signature")?;
        let signatures = signatures.strip_suffix('\n').ok_or("its last line has no end")?;
        let text = format!("{text}\n");
        let mut holds = false;
        for line in signatures.split('\n') {
            let (name, id, signature) = parse_line(line).ok_or("a signature line is malformed")?;
            if name == self.name && id == self.id {
                UnparsedPublicKey::new(&ED25519, &self.public)
                    .verify(text.as_bytes(), &signature)
                    .map_err(|_| "its signature does not verify")?;
                holds = true;
            }
        }
        if !holds {
            return Err("it is not signed by this key");
        }
        let mut lines = text.split('\n');
        if lines.next() != Some(&self.name) {
            return Err("it is of another log");
        }
        let size = lines.next().and_then(number).ok_or("its size is malformed")?;
        let root = lines.next().and_then(|line| STANDARD.decode(line).ok());
        let root = root.and_then(|root| root.try_into().ok()).ok_or("its root is malformed")?;
        Ok(Signed { size, root })
    }
}

fn parse_line(line: &str) -> Option<(&str, [u8; 4], Vec<u8>)> {
    let mut words = line.split(' ');
    if words.next() != Some("\u{2014}") {
        return None;
    }
    let (name, encoded) = (words.next()?, words.next()?);
    let bytes = STANDARD.decode(encoded).ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    words.next().is_none().then(|| (name, *id, signature.to_vec()))
}

fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}
