//! The keys that this machine's TPM has for the agent: endorsement, attestation, device.
//!
//! Nothing secret is kept outside the TPM: the attestation key is made anew from its template each
//! time, and the device key from its template and a salt. The endorsement key is chosen by the
//! certificate that the TPM's maker put beside it.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::commands::Signed;
use super::error::TpmError;
use super::link::{Link, Loaded};
use crate::model::Digest;
use crate::posture::tpm::{Credential, Public, Template};

/// Where makers put certificates and keys (TCG EK Credential Profile §2.2.1.4, registry of reserved
/// handles): the certificate's index, the key's handle, the key's template. What is cheapest to use
/// comes first.
const KINDS: [(u32, u32, Template<'static>); 3] = [
    (0x01c0_000a, 0x8101_0002, Template::EkP256),
    (0x01c0_0016, 0x8101_0016, Template::EkP384),
    (0x01c0_0002, 0x8101_0001, Template::EkRsa2048),
];

/// The endorsement key, loaded or persistent, with its maker's certificate if there is one.
#[derive(Debug, Clone)]
pub struct Endorsement {
    /// The key.
    pub key: Loaded,
    /// Its certificate (DER).
    pub certificate: Option<Vec<u8>>,
}

/// Everything that an enrolment needs, loaded.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The endorsement key.
    pub endorsement: Endorsement,
    /// The attestation key.
    pub attestation: Loaded,
}

impl Link {
    /// The endorsement key that has a certificate; without any certificate, the one on P-256.
    ///
    /// # Errors
    /// When the TPM fails.
    pub fn endorsement(&mut self) -> Result<Endorsement, TpmError> {
        for (index, handle, template) in KINDS {
            let Some(bytes) = self.nv(index)? else { continue };
            let Some((certificate, spki)) = certificate(&bytes) else { continue };
            if let Ok(public) = self.read_public(handle)
                && public.spki() == spki
            {
                let key = Loaded { handle, public };
                return Ok(Endorsement { key, certificate: Some(certificate) });
            }
            let Ok(key) = self.create_primary(&template.bytes()) else { continue };
            if key.public.spki() == spki {
                return Ok(Endorsement { key, certificate: Some(certificate) });
            }
            self.flush(key.handle)?;
        }
        let key = self.create_primary(&Template::EkP256.bytes())?;
        Ok(Endorsement { key, certificate: None })
    }

    /// Endorsement and attestation key.
    ///
    /// # Errors
    /// When the TPM fails.
    pub fn prepare(&mut self) -> Result<Prepared, TpmError> {
        let endorsement = self.endorsement()?;
        let attestation = self.create_primary(&Template::AttestationKey.bytes())?;
        Ok(Prepared { endorsement, attestation })
    }

    /// The device key of a salt; it stays loaded for the next time.
    ///
    /// # Errors
    /// When the TPM fails.
    pub fn device_key(&mut self, salt: &[u8; 32]) -> Result<Loaded, TpmError> {
        self.primary(&Template::DeviceKey(salt))
    }

    /// That the device key of this salt is in this TPM, by its attestation key.
    ///
    /// # Errors
    /// When the TPM fails.
    pub fn certify_device_key(
        &mut self,
        salt: &[u8; 32],
        extra: &Digest,
    ) -> Result<(Signed, Public), TpmError> {
        let key = self.device_key(salt)?;
        let attestation = self.create_primary(&Template::AttestationKey.bytes())?;
        let signed = self.certify(key.handle, attestation.handle, extra);
        self.flush(attestation.handle)?;
        Ok((signed?, key.public))
    }

    /// Opens a credential for the attestation key.
    ///
    /// # Errors
    /// When the TPM refuses.
    pub fn answer(&mut self, credential: &Credential) -> Result<Vec<u8>, TpmError> {
        let Prepared { endorsement, attestation } = self.prepare()?;
        let opened = self.activate(attestation.handle, &endorsement.key, credential);
        self.flush(attestation.handle)?;
        self.let_go(&endorsement)?;
        opened
    }

    /// Flushes an endorsement key that was made for now.
    ///
    /// # Errors
    /// When the TPM fails.
    pub fn let_go(&mut self, endorsement: &Endorsement) -> Result<(), TpmError> {
        let handle = endorsement.key.handle;
        if handle >> 24 == 0x80 { self.flush(handle) } else { Ok(()) }
    }
}

/// A certificate without what a maker filled the space behind it with, and its key.
fn certificate(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (rest, certificate) = X509Certificate::from_der(bytes).ok()?;
    let length = bytes.len().checked_sub(rest.len())?;
    Some((bytes.get(..length)?.to_vec(), certificate.public_key().raw.to_vec()))
}
