//! What a client reads out of its own leaf. Nothing is verified here: a peer's certificate is the
//! identity room's business.

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::model::SpiffeId;
use crate::model::limits::CERTIFICATE_MAX;

/// Why a leaf can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not one DER certificate of an honest size.
    #[error("it is not one x.509 certificate in der, of at most {CERTIFICATE_MAX} bytes")]
    Der,
    /// Not an X.509-SVID.
    #[error("it does not hold exactly one uri, and that a spiffe id")]
    NoSpiffeId,
}

/// What a leaf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its one URI, if that is a SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// Its key, as SubjectPublicKeyInfo (DER).
    pub spki: Vec<u8>,
    /// Its end.
    pub not_after: OffsetDateTime,
    /// Who signed it: the subject of that certificate (DER).
    pub issuer: Vec<u8>,
    /// Its own subject (DER).
    pub subject: Vec<u8>,
}

impl Leaf {
    /// Reads one certificate.
    ///
    /// # Errors
    /// When the bytes are anything else.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        if der.len() > CERTIFICATE_MAX {
            return Err(LeafError::Der);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| LeafError::Der)?;
        if !rest.is_empty() {
            return Err(LeafError::Der);
        }
        Ok(Self {
            spiffe_id: spiffe_id(&certificate),
            spki: certificate.public_key().raw.to_vec(),
            not_after: certificate.validity().not_after.to_datetime(),
            issuer: certificate.issuer().as_raw().to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
        })
    }

    /// The SPIFFE ID.
    ///
    /// # Errors
    /// When there is none, or there are several URIs.
    pub fn svid(self) -> Result<SpiffeId, LeafError> {
        self.spiffe_id.ok_or(LeafError::NoSpiffeId)
    }
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Option<SpiffeId> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => SpiffeId::parse(uri).ok(),
        _ => None,
    }
}
