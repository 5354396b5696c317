//! MakeCredential (TPM 2.0 Part 1 §24): a secret that only the TPM of an endorsement key can open,
//! and only if a key of a certain name is in that same TPM.
//!
//! It is what ties an attestation key to a certified endorsement key. No TPM is needed for making
//! it.

use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::{digest, hmac, rand};
use zeroize::Zeroizing;

use super::bytes::Writer;
use super::public::{NameHash, Public, PublicKey};

/// What the seed is for.
const IDENTITY: &[u8] = b"IDENTITY\0";

/// No credential could be made for this endorsement key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no credential can be made for this endorsement key")]
pub struct CredentialError;

/// What goes into ActivateCredential, each as the contents of its TPM2B.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// TPM2B_ID_OBJECT: integrity and the wrapped secret.
    pub blob: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET: the seed, for the endorsement key alone.
    pub seed: Vec<u8>,
}

impl Credential {
    /// Wraps `secret` for the TPM of this endorsement key, and for the key of this name in it.
    ///
    /// # Errors
    /// When the key is no endorsement key or no point of its curve, or there is no randomness.
    pub fn make(ek: &Public, name: &[u8], secret: &[u8; 32]) -> Result<Self, CredentialError> {
        if !ek.is_endorsement_key() {
            return Err(CredentialError);
        }
        let hash = ek.hash();
        let (seed, encrypted) = match ek.key() {
            PublicKey::P256 { x, y } => shared(&ECDH_P256, hash, x, y)?,
            PublicKey::P384 { x, y } => shared(&ECDH_P384, hash, x, y)?,
            PublicKey::Rsa2048(_) => wrapped(&ek.spki(), hash)?,
        };
        let cipher = match ek.wraps() {
            Some(128) => &AES_128,
            Some(256) => &AES_256,
            _ => return Err(CredentialError),
        };
        let bits = ek.wraps().map(u32::from).ok_or(CredentialError)?;
        let storage = kdf_a(hash, &seed, b"STORAGE\0", name, bits)?;
        let mut identity = Writer::default().sized(secret).done();
        let failed = |_| CredentialError;
        let key = UnboundCipherKey::new(cipher, &storage).map_err(failed)?;
        let key = EncryptingKey::cfb128(key).map_err(failed)?;
        let zero = EncryptionContext::Iv128(FixedLength::from([0; 16]));
        key.less_safe_encrypt(&mut identity, zero).map_err(failed)?;
        let integrity = kdf_a(hash, &seed, b"INTEGRITY\0", &[], bits_of(hash))?;
        let mut mac = hmac::Context::with_key(&hmac::Key::new(mac_of(hash), &integrity));
        mac.update(&identity);
        mac.update(name);
        let blob = Writer::default().sized(mac.sign().as_ref()).raw(&identity).done();
        Ok(Self { blob, seed: encrypted })
    }
}

/// A seed, and the form in which only the endorsement key gives it back.
type Seed = (Zeroizing<Vec<u8>>, Vec<u8>);

/// For an ECC key: one-pass Diffie-Hellman with a key of this moment (Part 1 §C.6.1).
fn shared(
    curve: &'static agreement::Algorithm,
    hash: NameHash,
    x: &[u8],
    y: &[u8],
) -> Result<Seed, CredentialError> {
    let ours = PrivateKey::generate(curve).map_err(|_| CredentialError)?;
    let public = ours.compute_public_key().map_err(|_| CredentialError)?;
    let (our_x, our_y) = public
        .as_ref()
        .strip_prefix(&[4])
        .and_then(|point| point.split_at_checked(x.len()))
        .ok_or(CredentialError)?;
    let theirs = UnparsedPublicKey::new(curve, [&[4], x, y].concat());
    let seed = agreement::agree(&ours, theirs, CredentialError, |z| {
        // KDFe (Part 1 §11.4.10.3); one block is all that is needed.
        let mut context = digest::Context::new(digest_of(hash));
        for part in [&1_u32.to_be_bytes(), z, IDENTITY, our_x, x] {
            context.update(part);
        }
        Ok(Zeroizing::new(context.finish().as_ref().to_vec()))
    })?;
    Ok((seed, Writer::default().sized(our_x).sized(our_y).done()))
}

/// For an RSA key: OAEP with the hash of its name (Part 1 §B.10.4).
fn wrapped(spki: &[u8], hash: NameHash) -> Result<Seed, CredentialError> {
    if hash != NameHash::Sha256 {
        return Err(CredentialError); // no template for 2048 bits has another one
    }
    let mut seed = Zeroizing::new(vec![0; 32]);
    rand::fill(&mut seed).map_err(|_| CredentialError)?;
    let key = PublicEncryptingKey::from_der(spki).map_err(|_| CredentialError)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| CredentialError)?;
    let mut encrypted = vec![0; key.ciphertext_size()];
    let written = key.encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut encrypted, Some(IDENTITY));
    written.map_err(|_| CredentialError)?;
    Ok((seed, encrypted))
}

/// KDFa (Part 1 §11.4.10.2): SP 800-108 in counter mode. `label` ends in its zero byte.
fn kdf_a(
    hash: NameHash,
    key: &[u8],
    label: &[u8],
    context: &[u8],
    bits: u32,
) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(mac_of(hash), key));
    for part in [&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()] {
        mac.update(part);
    }
    let block = mac.sign();
    let length = usize::try_from(bits / 8).map_err(|_| CredentialError)?;
    let taken = block.as_ref().get(..length).ok_or(CredentialError)?;
    Ok(Zeroizing::new(taken.to_vec()))
}

fn digest_of(hash: NameHash) -> &'static digest::Algorithm {
    match hash {
        NameHash::Sha256 => &digest::SHA256,
        NameHash::Sha384 => &digest::SHA384,
    }
}

fn mac_of(hash: NameHash) -> hmac::Algorithm {
    match hash {
        NameHash::Sha256 => hmac::HMAC_SHA256,
        NameHash::Sha384 => hmac::HMAC_SHA384,
    }
}

fn bits_of(hash: NameHash) -> u32 {
    match hash {
        NameHash::Sha256 => 256,
        NameHash::Sha384 => 384,
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::vector;
    use super::*;

    #[test]
    fn it_is_made_for_endorsement_keys_only() {
        for (name, blob, seed) in [
            ("ek_p256", 2 + 32 + 34, 68),
            ("ek_p384", 2 + 48 + 34, 100),
            ("ek_rsa2048", 2 + 32 + 34, 256),
        ] {
            let ek = Public::parse(&vector(name)).unwrap();
            let one = Credential::make(&ek, &[0; 34], &[7; 32]).unwrap();
            assert_eq!((one.blob.len(), one.seed.len()), (blob, seed), "{name}");
            let two = Credential::make(&ek, &[0; 34], &[7; 32]).unwrap();
            assert!(one.blob != two.blob && one.seed != two.seed, "{name}");
        }
        for name in ["ak", "key"] {
            let key = Public::parse(&vector(name)).unwrap();
            assert_eq!(Credential::make(&key, &[0; 34], &[7; 32]), Err(CredentialError));
        }
        let mut off_curve = vector("ek_p256");
        *off_curve.last_mut().unwrap() ^= 1;
        let ek = Public::parse(&off_curve).unwrap();
        assert_eq!(Credential::make(&ek, &[0; 34], &[7; 32]), Err(CredentialError));
    }
}
