//! What a machine shows at enrolment by its TPM, and how much of it holds.
//!
//! The attestation key certifies the device key, for one connection, trust domain and endorsement
//! key: so that nobody can show it a second time, or with another machine's endorsement key. That
//! attestation and endorsement key are in one TPM is shown by nothing here: only a credential that
//! is opened shows it ([`super::Credential`]).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::public::Public;
use super::verify::AttestationKey;
use crate::model::limits::{
    EK_CERTIFICATE_MAX, TPM_ATTEST_MAX, TPM_PROOF_MAX, TPM_PUBLIC_MAX, TPM_SIGNATURE_MAX,
};
use crate::model::{Digest, TrustDomain, read_strict_json};

/// What the certified statement's digest begins with.
const LABEL: &[u8] = b"doorward enrolment, tpm certify 1\0";
/// Objects within objects in a body.
const DEPTH: usize = 2;

/// Why a body is no proof: one variant for each rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TpmProofError {
    /// More bytes than a proof may have.
    #[error("the proof has more than {TPM_PROOF_MAX} bytes")]
    TooLarge,
    /// Not the JSON object that is wanted.
    #[error("the proof is not an object of bounded values in base64")]
    Form,
    /// The endorsement key is none.
    #[error("the endorsement key is none that is taken: P-256, P-384 or RSA of 2048 bits")]
    Endorsement,
    /// The attestation key may sign other things than what its TPM says.
    #[error("the attestation key is not a restricted, resident one on P-256")]
    Attestation,
    /// The device key may leave its TPM, or is another than that of the connection.
    #[error("the device key is not a resident one, or not that of this connection")]
    DeviceKey,
    /// The attestation key did not certify the device key for this connection.
    #[error("the attestation key did not certify the device key for this connection")]
    Certified,
}

impl TpmProofError {
    /// A stable word for the rule.
    pub fn word(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Form => "form",
            Self::Endorsement => "endorsement_key",
            Self::Attestation => "attestation_key",
            Self::DeviceKey => "device_key",
            Self::Certified => "certified",
        }
    }
}

/// What the attestation key signs with the device key's name: the exporter's value of the
/// connection, the device key (DER), the trust domain, and the endorsement key (DER).
pub fn tpm_statement(exporter: &[u8; 32], spki: &[u8], domain: &TrustDomain, ek: &[u8]) -> Digest {
    let mut statement = [LABEL, exporter].concat();
    for part in [spki, domain.as_str().as_bytes(), ek] {
        statement.extend_from_slice(&Digest::of(part).0);
    }
    Digest::of(&statement)
}

/// The proof, as it stands in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TpmProof {
    /// Public area of the endorsement key.
    pub ek: Vec<u8>,
    /// Its certificate (DER), where the TPM has one.
    pub certificate: Option<Vec<u8>>,
    /// Public area of the attestation key.
    pub attestation_key: Vec<u8>,
    /// Public area of the device key.
    pub device_key: Vec<u8>,
    /// That the device key is in the same TPM as the attestation key.
    pub attest: Vec<u8>,
    /// The attestation key's signature of that.
    pub signature: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inside {
    ek: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    attestation_key: String,
    device_key: String,
    attest: String,
    signature: String,
}

/// A proof that holds, but for the credential.
#[derive(Debug)]
pub struct Certified {
    /// The endorsement key that it is said to be of.
    pub ek: Public,
    /// The attestation key.
    pub attestation_key: Public,
}

impl TpmProof {
    /// Reads a body.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn read(body: &[u8]) -> Result<Self, TpmProofError> {
        use TpmProofError as E;
        if body.len() > TPM_PROOF_MAX {
            return Err(E::TooLarge);
        }
        let inside: Inside = read_strict_json(body, DEPTH).map_err(|_| E::Form)?;
        let decode = |text: &str, most: usize| {
            let bytes = STANDARD.decode(text).map_err(|_| E::Form)?;
            if bytes.len() > most { Err(E::Form) } else { Ok(bytes) }
        };
        let certificate = inside.certificate.as_deref();
        Ok(Self {
            ek: decode(&inside.ek, TPM_PUBLIC_MAX)?,
            certificate: certificate.map(|text| decode(text, EK_CERTIFICATE_MAX)).transpose()?,
            attestation_key: decode(&inside.attestation_key, TPM_PUBLIC_MAX)?,
            device_key: decode(&inside.device_key, TPM_PUBLIC_MAX)?,
            attest: decode(&inside.attest, TPM_ATTEST_MAX)?,
            signature: decode(&inside.signature, TPM_SIGNATURE_MAX)?,
        })
    }

    /// The body.
    pub fn body(&self) -> Vec<u8> {
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        let inside = Inside {
            ek: text(&self.ek),
            certificate: self.certificate.as_deref().map(text),
            attestation_key: text(&self.attestation_key),
            device_key: text(&self.device_key),
            attest: text(&self.attest),
            signature: text(&self.signature),
        };
        serde_json::to_vec(&inside).unwrap_or_default()
    }

    /// That a resident attestation key vouches for the device key of this connection (`spki`).
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn certified(
        &self,
        exporter: &[u8; 32],
        spki: &[u8],
        domain: &TrustDomain,
    ) -> Result<Certified, TpmProofError> {
        use TpmProofError as E;
        let ek = Public::parse(&self.ek).ok().filter(Public::is_endorsement_key);
        let ek = ek.ok_or(E::Endorsement)?;
        let attestation_key = Public::parse(&self.attestation_key).map_err(|_| E::Attestation)?;
        let vouches = AttestationKey::new(&attestation_key).map_err(|_| E::Attestation)?;
        let device_key = Public::parse(&self.device_key).ok().filter(Public::is_device_key);
        let device_key = device_key.filter(|key| key.spki() == spki).ok_or(E::DeviceKey)?;
        let statement = tpm_statement(exporter, spki, domain, &ek.spki());
        vouches
            .certified(&self.attest, &self.signature, &statement, &device_key)
            .map_err(|_| E::Certified)?;
        Ok(Certified { ek, attestation_key })
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::vector;
    use super::*;

    fn proof() -> TpmProof {
        TpmProof {
            ek: vector("ek_p384"),
            certificate: Some(vector("ek_p384_certificate")),
            attestation_key: vector("ak"),
            device_key: vector("key"),
            attest: vector("certify"),
            signature: vector("certify_sig"),
        }
    }

    #[test]
    fn a_body_reads_back_and_nothing_else_does() {
        for it in [proof(), TpmProof { certificate: None, ..proof() }] {
            assert_eq!(TpmProof::read(&it.body()).unwrap(), it);
        }
        let body = String::from_utf8(proof().body()).unwrap();
        let form = |text: &str| TpmProof::read(text.as_bytes()).unwrap_err();
        assert_eq!(form(&body.replace('{', "{\"x\":1,")), TpmProofError::Form);
        assert_eq!(form(&body.replace("\"ek\":\"", "\"ek\":\"!")), TpmProofError::Form);
        assert_eq!(form(&body[..body.len() - 1]), TpmProofError::Form);
        assert_eq!(form(&" ".repeat(TPM_PROOF_MAX + 1)), TpmProofError::TooLarge);
        let long = TpmProof { attest: vec![0; TPM_ATTEST_MAX + 1], ..proof() };
        assert_eq!(TpmProof::read(&long.body()), Err(TpmProofError::Form));
        let full = TpmProof {
            ek: vec![0; TPM_PUBLIC_MAX],
            certificate: Some(vec![0; EK_CERTIFICATE_MAX]),
            attestation_key: vec![0; TPM_PUBLIC_MAX],
            device_key: vec![0; TPM_PUBLIC_MAX],
            attest: vec![0; TPM_ATTEST_MAX],
            signature: vec![0; TPM_SIGNATURE_MAX],
        };
        assert!(TpmProof::read(&full.body()).is_ok(), "the largest of all fits");
    }

    #[test]
    fn each_key_is_looked_at_and_the_connection_counts() {
        let domain = TrustDomain::parse("corp.example").unwrap();
        let spki = Public::parse(&vector("key")).unwrap().spki();
        let judge = |it: TpmProof| it.certified(&[1; 32], &spki, &domain).unwrap_err();
        // swtpm signed the vector for another question: everything before that holds.
        assert_eq!(judge(proof()), TpmProofError::Certified);
        let ek = TpmProof { ek: vector("ak"), ..proof() };
        assert_eq!(judge(ek), TpmProofError::Endorsement);
        let ak = TpmProof { attestation_key: vector("key"), ..proof() };
        assert_eq!(judge(ak), TpmProofError::Attestation);
        let key = TpmProof { device_key: vector("ak"), ..proof() };
        assert_eq!(judge(key), TpmProofError::DeviceKey);
        let other = proof().certified(&[1; 32], b"another key", &domain).unwrap_err();
        assert_eq!(other, TpmProofError::DeviceKey);
        let of = |exporter: u8, spki: &[u8], domain: &str, ek: &[u8]| {
            tpm_statement(&[exporter; 32], spki, &TrustDomain::parse(domain).unwrap(), ek)
        };
        let all = [
            of(1, b"a", "corp.example", b"b"),
            of(2, b"a", "corp.example", b"b"),
            of(1, b"b", "corp.example", b"b"),
            of(1, b"a", "corp.other", b"b"),
            of(1, b"a", "corp.example", b"a"),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().map(|it| it.0).collect();
        assert_eq!(different.len(), all.len());
    }
}
