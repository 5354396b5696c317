//! What an applicant shows beside the device key that its handshake proves.
//!
//! The private key of a certificate that the device has already is used for one signature, over a
//! statement that names this connection, and stays here; a token is wiped like any other body.

use std::fmt;

use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::client_error::ClientError;
use super::leaf::Leaf;
use super::tls::{self, TlsError};
use crate::identity::{DeviceProof, device_statement};
use crate::model::{Ask, Digest, EnrolBy, SecretValue, TrustDomain, join_secret_digest};
use crate::posture::tpm::{Credential, TpmProof, tpm_statement};

/// One signature for each kind of key, as the broker takes it.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// What is shown.
#[derive(Debug)]
pub enum Shows {
    /// The device key alone: a device that was away.
    Key,
    /// The secret part of a join token.
    Token(SecretValue),
    /// A certificate that the device has, and its key.
    Certificate(DeviceCertificate),
    /// The token of a Kubernetes pod.
    PodToken(SecretValue),
    /// A TPM that holds the device key.
    Tpm(Box<dyn TpmShows>),
}

/// What speaks with a TPM for an enrolment. Both calls wait for it; errors are in words.
pub trait TpmShows: fmt::Debug + Send + Sync {
    /// Its keys, and that it certifies the device key for the statement of its endorsement key.
    ///
    /// # Errors
    /// When the TPM gives none.
    fn proof(&self, statement: &dyn Fn(&[u8]) -> Digest) -> Result<TpmProof, String>;
    /// What is in a credential that was made for it.
    ///
    /// # Errors
    /// When it was made for another one.
    fn open(&self, credential: &Credential) -> Result<SecretValue, String>;
}

impl From<SecretValue> for Shows {
    /// A join token's secret; none is a device that comes back.
    fn from(token: SecretValue) -> Self {
        if token.is_empty() { Self::Key } else { Self::Token(token) }
    }
}

/// A certificate that the device has already, with its key.
pub struct DeviceCertificate(CertifiedKey);

impl DeviceCertificate {
    /// From a chain, leaf first, and the leaf's key, whose given copy is wiped.
    ///
    /// # Errors
    /// When the two are not a pair, or no such key is used here.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        tls::pair(chain, key).map(Self)
    }

    /// The body that shows it, on the connection of this exporter value.
    pub(super) fn proof(
        &self,
        exporter: &[u8; 32],
        spki: &[u8],
        domain: &TrustDomain,
    ) -> Result<SecretValue, ClientError> {
        let failed = |what: &str| ClientError::Broken(what.to_owned());
        let chain = self.0.cert.clone();
        let leaf = chain.first().ok_or_else(|| failed("there is no device certificate"))?;
        let signer = self.0.key.choose_scheme(&SCHEMES);
        let signer =
            signer.ok_or_else(|| failed("the device certificate has a key of another kind"))?;
        let signature = signer.sign(&device_statement(exporter, spki, domain, leaf));
        let signature =
            signature.map_err(|_| failed("the device certificate's key did not sign"))?;
        Ok(SecretValue::new(DeviceProof { chain, signature }.body()))
    }
}

impl fmt::Debug for DeviceCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceCertificate(…)")
    }
}

impl Shows {
    /// What tells one proof from another on this machine, in the same words each time: the token, the
    /// certificate's key, or that it is a pod.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Key => Digest::of(b"key"),
            Self::Token(token) => known_by(token),
            Self::Certificate(certificate) => {
                let leaf = certificate.0.cert.first().map(|leaf| Leaf::parse(leaf));
                match leaf {
                    Some(Ok(leaf)) => Digest::of(&leaf.spki),
                    Some(Err(_)) | None => Digest::of(b"certificate"),
                }
            }
            Self::PodToken(_) => Digest::of(b"kubernetes"),
            Self::Tpm(_) => Digest::of(b"tpm"),
        }
    }

    /// The request and its body. `exporter` gives the connection's value where it is asked for.
    pub(super) fn request(
        &mut self,
        name: &str,
        spki: &[u8],
        domain: &TrustDomain,
        exporter: impl FnOnce() -> Result<[u8; 32], ClientError>,
    ) -> Result<(Ask, SecretValue), ClientError> {
        let ask = |token, by| Ask::Enroll { name: name.to_owned(), token, by };
        let taken = |token: &mut SecretValue| std::mem::replace(token, SecretValue::empty());
        Ok(match self {
            Self::Key => (ask(None, None), SecretValue::empty()),
            Self::Token(token) => (ask(Some(known_by(token)), None), taken(token)),
            Self::Certificate(certificate) => {
                let body = certificate.proof(&exporter()?, spki, domain)?;
                (ask(None, Some(EnrolBy::X509)), body)
            }
            Self::PodToken(token) => (ask(None, Some(EnrolBy::Kubernetes)), taken(token)),
            Self::Tpm(tpm) => {
                let exporter = exporter()?;
                let statement = |ek: &[u8]| tpm_statement(&exporter, spki, domain, ek);
                let proof = tpm.proof(&statement).map_err(ClientError::Broken)?;
                (ask(None, Some(EnrolBy::Tpm)), SecretValue::new(proof.body()))
            }
        })
    }
}

/// What the broker knows the token by. A text that is no secret has a digest all the same, of which
/// the broker knows nothing.
fn known_by(token: &SecretValue) -> Digest {
    let text = token.expose();
    join_secret_digest(text).unwrap_or_else(|| Digest::of(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> DeviceCertificate {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let chain = vec![rcgen::CertificateParams::default().self_signed(&key).unwrap().into()];
        DeviceCertificate::new(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
    }

    fn asked(mut shows: Shows) -> (Ask, SecretValue) {
        let domain = TrustDomain::parse("corp.example").unwrap();
        shows.request("host-1", b"spki", &domain, || Ok([7; 32])).unwrap()
    }

    #[test]
    fn what_is_shown_is_what_the_broker_takes() {
        let domain = TrustDomain::parse("corp.example").unwrap();
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let (ask, body) = asked(Shows::Certificate(pair(algorithm)));
            assert!(matches!(ask, Ask::Enroll { token: None, by: Some(EnrolBy::X509), .. }));
            let proof = DeviceProof::read(body.expose()).unwrap();
            assert!(proof.possessed(&[7; 32], b"spki", &domain).is_ok(), "{algorithm:?}");
            assert!(proof.possessed(&[8; 32], b"spki", &domain).is_err());
        }
        let (ask, body) = asked(Shows::PodToken(SecretValue::new(b"a.b.c".to_vec())));
        assert!(matches!(ask, Ask::Enroll { token: None, by: Some(EnrolBy::Kubernetes), .. }));
        assert_eq!(body.expose(), b"a.b.c");
    }

    #[test]
    fn join_tokens_and_keys_alone_are_said_as_ever() {
        let (ask, body) = asked(SecretValue::new(vec![b'A'; 43]).into());
        let digest = join_secret_digest(&[b'A'; 43]);
        assert_eq!(ask, Ask::Enroll { name: "host-1".into(), token: digest, by: None });
        assert_eq!(body.len(), 43);
        let (ask, body) = asked(SecretValue::empty().into());
        assert_eq!(serde_json::to_string(&ask).unwrap(), r#"{"enroll":{"name":"host-1"}}"#);
        assert!(body.is_empty());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_and_nothing_is_shown_of_one() {
        let (one, other) =
            (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let chain = || vec![rcgen::CertificateParams::default().self_signed(&one).unwrap().into()];
        let with = |key: &rcgen::KeyPair| {
            DeviceCertificate::new(chain(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        };
        assert_eq!(format!("{:?}", with(&one).unwrap()), "DeviceCertificate(…)");
        assert!(matches!(with(&other), Err(TlsError::Pair(_))));
    }
}
