//! PEM (RFC 7468) of certificates and keys.
//!
//! Certificates are read by the common parser. Keys are not: its scratch buffer is freed as it is,
//! while here every buffer that held a key is wiped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// Bytes in one line of base64: 64 characters.
const LINE: usize = 48;

/// Why a text is not the PEM that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// A section that does not decode.
    #[error("a section between BEGIN and END is damaged")]
    Damaged,
    /// Nothing of the wanted kind.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// No key of a kind that is used here.
    #[error("there is no `PRIVATE KEY` or `EC PRIVATE KEY` section in it")]
    NoKey,
    /// No key of a kind that an authority has.
    #[error(
        "there is no `PRIVATE KEY`, `EC PRIVATE KEY` or `RSA PRIVATE KEY` section in it; an encrypted \
         one is not read"
    )]
    NoSigningKey,
    /// More certificates than allowed.
    #[error("there are more than {0} certificates in it")]
    TooMany(usize),
}

/// All certificates of a text, 1 to `max`.
///
/// # Errors
/// When there are none or too many, or one is damaged.
pub fn certificates(text: &[u8], max: usize) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        if certificates.len() == max {
            return Err(PemError::TooMany(max));
        }
        certificates.push(certificate.map_err(|_| PemError::Damaged)?);
    }
    if certificates.is_empty() { Err(PemError::NoCertificate) } else { Ok(certificates) }
}

/// The one private key of a text: PKCS #8 or SEC 1.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let text = std::str::from_utf8(text).map_err(|_| PemError::Damaged)?;
    if let Some(der) = section(text, "PRIVATE KEY")? {
        return Ok(PrivateKeyDer::Pkcs8(der.to_vec().into()));
    }
    match section(text, "EC PRIVATE KEY")? {
        Some(der) => Ok(PrivateKeyDer::Sec1(der.to_vec().into())),
        None => Err(PemError::NoKey),
    }
}

/// The same, also of an RSA authority: PKCS #8, SEC 1 or PKCS #1.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn signing_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    match key(text) {
        Err(PemError::NoKey) => {}
        found => return found,
    }
    let text = std::str::from_utf8(text).map_err(|_| PemError::Damaged)?;
    match section(text, "RSA PRIVATE KEY")? {
        Some(der) => Ok(PrivateKeyDer::Pkcs1(der.to_vec().into())),
        None => Err(PemError::NoSigningKey),
    }
}

/// Certificates as text.
pub fn encode_certificates(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        append(&mut text, "CERTIFICATE", certificate);
    }
    text
}

/// A key as text that is wiped. `None` for a kind of key that is not used here.
pub fn encode_key(key: &PrivateKeyDer<'_>) -> Option<Zeroizing<String>> {
    let label = match key {
        PrivateKeyDer::Pkcs8(_) => "PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => return None,
    };
    // Enough for all of it: a string that grows leaves an unwiped copy behind.
    let mut text = Zeroizing::new(String::with_capacity(key.secret_der().len() * 2 + 128));
    append(&mut text, label, key.secret_der());
    Some(text)
}

fn append(text: &mut String, label: &str, der: &[u8]) {
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    for line in der.chunks(LINE) {
        STANDARD.encode_string(line, text);
        text.push('\n');
    }
    for part in ["-----END ", label, "-----\n"] {
        text.push_str(part);
    }
}

fn section(text: &str, label: &str) -> Result<Option<Zeroizing<Vec<u8>>>, PemError> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let Some((_, rest)) = text.split_once(begin.as_str()) else {
        return Ok(None);
    };
    let (inner, _) = rest.split_once(end.as_str()).ok_or(PemError::Damaged)?;
    let mut digits = Zeroizing::new(Vec::with_capacity(inner.len()));
    digits.extend(inner.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; digits.len()]);
    let length = STANDARD.decode_slice(&digits, &mut der).map_err(|_| PemError::Damaged)?;
    der.truncate(length);
    if der.is_empty() { Err(PemError::Damaged) } else { Ok(Some(der)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_certificates_read_back() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        let chain = [certificate.der().clone(), certificate.der().clone()];
        let text = encode_certificates(&chain);
        assert_eq!(certificates(text.as_bytes(), 2).unwrap(), chain);
        assert_eq!(certificates(text.as_bytes(), 1).unwrap_err(), PemError::TooMany(1));
        let der = PrivateKeyDer::Pkcs8(pair.serialize_der().into());
        let text = encode_key(&der).unwrap();
        assert_eq!(key(text.as_bytes()).unwrap().secret_der(), der.secret_der());
        assert_eq!(text.as_str(), pair.serialize_pem().replace("\r\n", "\n"), "the common form");
    }

    #[test]
    fn other_texts_are_refused() {
        for (text, want) in [
            ("", PemError::NoKey),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----",
                PemError::NoKey,
            ),
            ("-----BEGIN PRIVATE KEY-----\nAA==\n", PemError::Damaged),
            ("-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----", PemError::Damaged),
            ("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----", PemError::Damaged),
        ] {
            assert_eq!(key(text.as_bytes()).unwrap_err(), want, "{text:?}");
        }
        assert_eq!(certificates(b"", 4).unwrap_err(), PemError::NoCertificate);
        assert_eq!(
            certificates(b"-----BEGIN CERTIFICATE-----\n", 4).unwrap_err(),
            PemError::Damaged
        );
    }
}
