//! What a join token's secret is known by: its digest, the same for who shows it and who keeps it.
//!
//! The secret has 256 random bits, so its digest gives nothing of it away; the secret itself never
//! leaves the buffers of whoever holds it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::device::Digest;

/// Random bytes of the secret.
const SECRET: usize = 32;
/// Its text: base64url of 32 bytes.
const SECRET_TEXT: usize = 43;

/// SHA-256 of the 32 bytes behind a secret's text; `None` when the text is not 43 bytes of
/// base64url.
pub fn join_secret_digest(text: &[u8]) -> Option<Digest> {
    if text.len() != SECRET_TEXT {
        return None;
    }
    let mut bytes = Zeroizing::new([0; SECRET]);
    match URL_SAFE_NO_PAD.decode_slice(text, bytes.as_mut_slice()) {
        Ok(SECRET) => Some(Digest::of(bytes.as_slice())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_bytes_and_only_a_whole_secret_has_one() {
        let text = URL_SAFE_NO_PAD.encode([7; SECRET]);
        assert_eq!(join_secret_digest(text.as_bytes()), Some(Digest::of(&[7; SECRET])));
        for bad in [&text.as_bytes()[..42], b"", &[b'!'; 43], format!("{text}A").as_bytes()] {
            assert_eq!(join_secret_digest(bad), None);
        }
    }
}
