//! A credential on its way to the TPM that can open it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::posture::tpm::Credential;

/// A credential in text: nothing of it is secret but to the TPM that it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedCredential {
    /// Integrity and wrapped secret, base64url without padding.
    pub blob: String,
    /// The seed, likewise.
    pub seed: String,
}

impl From<&Credential> for SealedCredential {
    fn from(credential: &Credential) -> Self {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Self { blob: text(&credential.blob), seed: text(&credential.seed) }
    }
}

impl SealedCredential {
    /// Back again; `None` for anything but the one text form. The TPM looks at the rest.
    pub fn credential(&self) -> Option<Credential> {
        let bytes = |text: &String| URL_SAFE_NO_PAD.decode(text).ok();
        Some(Credential { blob: bytes(&self.blob)?, seed: bytes(&self.seed)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Reply, parse_reply};

    #[test]
    fn a_credential_has_one_text() {
        let made = Credential { blob: vec![1; 68], seed: vec![2; 256] };
        let reply = Reply::Credential(SealedCredential::from(&made));
        let text = serde_json::to_string(&reply).unwrap();
        let Reply::Credential(back) = parse_reply(text.as_bytes()).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(back.credential(), Some(made));
        let broken = SealedCredential { seed: "AA=".into(), ..back };
        assert_eq!(broken.credential(), None);
        assert!(parse_reply(text.replace("blob", "blub").as_bytes()).is_err());
    }
}
