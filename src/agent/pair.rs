//! A key pair in memory, which the keys of devices and of workloads are made of.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::keys::KeyError;

/// One P-256 key pair with its PKCS#8 form, wiped on drop.
pub(super) struct Pair {
    pub(super) signer: EcdsaKeyPair,
    pub(super) pkcs8: Zeroizing<Vec<u8>>,
    pub(super) spki: Box<[u8]>,
}

impl Pair {
    pub(super) fn generate() -> Result<Self, KeyError> {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| KeyError::Crypto("make a key"))?;
        Self::of_pkcs8(Zeroizing::new(document.as_ref().to_vec()))
            .ok_or(KeyError::Crypto("read back its own key"))
    }

    pub(super) fn of_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Option<Self> {
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).ok()?;
        let spki: PublicKeyX509Der<'_> = signer.public_key().as_der().ok()?;
        let spki = Box::from(spki.as_ref());
        Some(Self { signer, pkcs8, spki })
    }

    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }
}
