//! The device key that a TPM holds: what signs the agent's handshakes and endorses its evidence.
//!
//! Of the key nothing is here but where it is and the salt that its TPM makes it from; whoever
//! copies the agent's directory has no key. Signing waits for the TPM.

use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use serde::{Deserialize, Serialize};

use super::error::TpmError;
use super::keys::Prepared;
use super::place::Place;
use super::thread::Tpm;
use crate::model::{DeviceId, Digest, SecretValue, read_strict_json};
use crate::posture::tpm::{Credential, TpmProof};
use crate::wire::{HeldKey, TpmShows};

/// Objects within objects in a description.
const DEPTH: usize = 2;

/// The description of a key, beside its public half.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whereabouts {
    /// Where the TPM is.
    tpm: String,
    /// What tells this key from others of the same TPM.
    salt: Digest,
    /// The device's id: the digest of the endorsement key.
    device: DeviceId,
}

/// A device key in a TPM.
#[derive(Debug, Clone)]
pub struct TpmKey {
    tpm: Tpm,
    salt: [u8; 32],
    spki: Vec<u8>,
    id: DeviceId,
}

impl TpmKey {
    /// A new key, in the TPM at `place`.
    ///
    /// # Errors
    /// When the TPM gives none.
    pub fn generate(place: Place) -> Result<Self, TpmError> {
        let mut salt = [0; 32];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| TpmError::Other("has no random caller"))?;
        let tpm = Tpm::at(&place)?;
        let (spki, ek) = tpm.run(move |link| {
            let endorsement = link.endorsement()?;
            let ek = endorsement.key.public.spki();
            link.let_go(&endorsement)?;
            Ok((link.device_key(&salt)?.public.spki(), ek))
        })?;
        Ok(Self { tpm, salt, spki, id: DeviceId::of_key(&ek) })
    }

    /// The key of a description, without asking its TPM.
    ///
    /// # Errors
    /// When the description is none.
    pub fn of(held: &HeldKey) -> Result<Self, TpmError> {
        let wrong = TpmError::Other("is described in a way that this program does not know");
        let Ok(it) = read_strict_json::<Whereabouts>(&held.whereabouts, DEPTH) else {
            return Err(wrong);
        };
        let Ok(place) = it.tpm.parse() else { return Err(wrong) };
        let (salt, spki) = (it.salt.0, held.spki.clone());
        Ok(Self { tpm: Tpm::at(&place)?, salt, spki, id: it.device })
    }

    /// What stands in the key's file.
    pub fn held(&self) -> HeldKey {
        let (tpm, salt, device) = (self.tpm.place().to_string(), Digest(self.salt), self.id);
        let whereabouts = serde_json::to_vec(&Whereabouts { tpm, salt, device });
        HeldKey { spki: self.spki.clone(), whereabouts: whereabouts.unwrap_or_default() }
    }

    /// The public key as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The device's id: the digest of the endorsement key.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Signs with ECDSA P-256 and SHA-256: r ‖ s.
    ///
    /// # Errors
    /// When the TPM does not, or has another key.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], TpmError> {
        let (salt, digest, spki) = (self.salt, Digest::of(message), self.spki.clone());
        self.tpm.run(move |link| {
            let key = link.device_key(&salt)?;
            match key.public.spki() == spki {
                true => link.sign(key.handle, &digest),
                false => Err(TpmError::Other("is another one than this device enrolled by")),
            }
        })
    }

    /// The same in ASN.1 form (X9.62).
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_asn1(&self, message: &[u8]) -> Result<Vec<u8>, TpmError> {
        Ok(asn1(&self.sign(message)?))
    }
}

/// ECDSA-Sig-Value (RFC 3279 §2.2.3) of r ‖ s.
fn asn1(signature: &[u8; 64]) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    let number = |bytes: &[u8]| {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(31);
        let digits = bytes.get(zeros..).unwrap_or_default();
        // A number whose first bit is set would be negative.
        let sign: &[u8] =
            if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
        let length = u8::try_from(sign.len().saturating_add(digits.len())).unwrap_or(0);
        [&[2, length][..], sign, digits].concat()
    };
    let numbers = [number(r), number(s)].concat();
    [&[0x30, u8::try_from(numbers.len()).unwrap_or(0)][..], &numbers].concat()
}

impl SigningKey for TpmKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let ours = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        ours.then(|| Box::new(Handshake(self.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.spki.as_slice()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

#[derive(Debug)]
struct Handshake(TpmKey);

impl Signer for Handshake {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign_asn1(message).map_err(|error| {
            tracing::error!(error = %chain(&error), "the tpm did not sign a handshake");
            rustls::Error::General("the tpm did not sign".into())
        })
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// Takes up a key that a description in `key.pem` names, for [`crate::wire::take_up_held_keys`].
pub fn signing_key(held: &HeldKey) -> Option<Arc<dyn SigningKey>> {
    let key = TpmKey::of(held).inspect_err(|error| tracing::error!(%error, "no key in the tpm"));
    Some(Arc::new(key.ok()?))
}

impl TpmShows for TpmKey {
    fn proof(&self, statement: &dyn Fn(&[u8]) -> Digest) -> Result<TpmProof, String> {
        let prepared = self.tpm.run(|link| {
            let Prepared { endorsement, attestation } = link.prepare()?;
            link.flush(attestation.handle)?;
            link.let_go(&endorsement)?;
            Ok((endorsement, attestation.public))
        });
        let (endorsement, attestation) = prepared.map_err(|error| chain(&error))?;
        let (salt, extra) = (self.salt, statement(&endorsement.key.public.spki()));
        let signed = self.tpm.run(move |link| link.certify_device_key(&salt, &extra));
        let (signed, public) = signed.map_err(|error| chain(&error))?;
        Ok(TpmProof {
            ek: endorsement.key.public.bytes().to_vec(),
            certificate: endorsement.certificate,
            attestation_key: attestation.bytes().to_vec(),
            device_key: public.bytes().to_vec(),
            attest: signed.attest,
            signature: signed.signature,
        })
    }

    fn open(&self, credential: &Credential) -> Result<SecretValue, String> {
        let credential = credential.clone();
        let opened = self.tpm.run(move |link| link.answer(&credential));
        opened.map(SecretValue::new).map_err(|error| chain(&error))
    }
}

/// An error with what is behind it.
fn chain(error: &TpmError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_written_as_verifiers_read_them() {
        let written = |r: u8, s: u8| {
            let mut signature = [0; 64];
            (signature[0], signature[31], signature[63]) = (r, 1, s);
            asn1(&signature)
        };
        assert_eq!(written(0, 0x7f), [0x30, 6, 2, 1, 1, 2, 1, 0x7f]);
        assert_eq!(written(0, 0x80), [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]);
        assert_eq!(written(0, 0), [0x30, 6, 2, 1, 1, 2, 1, 0]);
        let long = written(0x80, 1);
        assert_eq!((&long[..4], long.len()), (&[0x30, 38, 2, 33][..], 40));
        let full = asn1(&[0xff; 64]);
        assert_eq!((full[1], full.len()), (70, 72));
    }

    #[test]
    fn a_description_names_the_key_and_nothing_secret_of_it() {
        let whereabouts = |tpm: &str| {
            let (salt, device) = (Digest([1; 32]), DeviceId(Digest([2; 32])));
            serde_json::to_vec(&Whereabouts { tpm: tpm.into(), salt, device }).unwrap()
        };
        let held = HeldKey { spki: vec![9; 91], whereabouts: whereabouts("unix:/run/none") };
        let key = TpmKey::of(&held).unwrap();
        assert_eq!((key.held(), key.id()), (held.clone(), DeviceId(Digest([2; 32]))));
        assert!(key.sign(b"x").is_err(), "there is no TPM");
        for whereabouts in [whereabouts("/etc/passwd"), b"{}".to_vec(), Vec::new()] {
            assert!(TpmKey::of(&HeldKey { whereabouts, ..held.clone() }).is_err());
        }
    }
}
