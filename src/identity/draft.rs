//! Certificates before they are signed, every extension spelled out, so that each can be wrong. The
//! tests of this room and those of whole brokers draw the same ones; it leans on nothing but rcgen.

use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

pub const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
pub const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
pub const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0];
pub const URI: u8 = 0x86;
pub const DNS: u8 = 0x82;

/// A certificate.
pub type Der = CertificateDer<'static>;

/// A DER value.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..=0x7f => out.push(length as u8),
        0x80..=0xff => out.extend([0x81, length as u8]),
        0x100..=0xffff => out.extend([0x82, (length >> 8) as u8, length as u8]),
        _ => out.extend([0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(content);
    out
}

/// A certificate before it is signed; every extension is spelled out, so that each can be wrong.
#[derive(Clone)]
pub struct Draft {
    pub subject: Option<String>,
    pub serial: Vec<u8>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub names: Vec<(u8, Vec<u8>)>,
    pub names_critical: bool,
    /// The value of each extension, with its criticality.
    pub constraints: Option<Vec<u8>>,
    pub usage: Option<(bool, Vec<u8>)>,
    pub purposes: Option<Vec<&'static [u8]>>,
    pub more: Vec<(Vec<u64>, bool, Vec<u8>)>,
}

impl Draft {
    /// A leaf that a broker of the ID's domain accepts, if its CA signs it.
    pub fn leaf_at(id: &str, now: OffsetDateTime, serial: [u8; 16]) -> Self {
        Self {
            subject: None,
            serial: serial.to_vec(),
            not_before: now - Duration::seconds(10),
            not_after: now + Duration::hours(1),
            names: vec![(URI, id.as_bytes().to_vec())],
            names_critical: true,
            constraints: Some(tlv(0x30, &[])),
            usage: Some((true, tlv(0x03, &[7, 0x80]))),
            purposes: Some(vec![SERVER_AUTH, CLIENT_AUTH]),
            more: Vec::new(),
        }
    }

    /// A signing certificate of a domain; the rest is that of `leaf`.
    pub fn authority_like(leaf: Self, name: &str, domain: &str, until: OffsetDateTime) -> Self {
        Self {
            subject: Some(name.to_owned()),
            not_after: until,
            names: vec![(URI, format!("spiffe://{domain}").into_bytes())],
            names_critical: false,
            constraints: Some(tlv(0x30, &tlv(0x01, &[0xff]))),
            usage: Some((true, tlv(0x03, &[1, 0x06]))),
            purposes: None,
            ..leaf
        }
    }

    pub fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(subject) = &self.subject {
            params.distinguished_name.push(DnType::CommonName, subject.as_str());
        }
        params.serial_number = Some(SerialNumber::from_slice(&self.serial));
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        params.is_ca = IsCa::NoCa;
        let mut add = |oid: &[u64], critical: bool, value: Vec<u8>| {
            let mut extension = CustomExtension::from_oid_content(oid, value);
            extension.set_criticality(critical);
            params.custom_extensions.push(extension);
        };
        if !self.names.is_empty() {
            let names: Vec<u8> =
                self.names.iter().flat_map(|(tag, name)| tlv(*tag, name)).collect();
            add(&[2, 5, 29, 17], self.names_critical, tlv(0x30, &names));
        }
        if let Some(constraints) = &self.constraints {
            add(&[2, 5, 29, 19], true, constraints.clone());
        }
        if let Some((critical, usage)) = &self.usage {
            add(&[2, 5, 29, 15], *critical, usage.clone());
        }
        if let Some(purposes) = &self.purposes {
            let ids: Vec<u8> = purposes.iter().flat_map(|id| tlv(0x06, id)).collect();
            add(&[2, 5, 29, 37], false, tlv(0x30, &ids));
        }
        for (oid, critical, value) in &self.more {
            add(oid, *critical, value.clone());
        }
        params
    }

    pub fn signed_by(&self, by: &Signer, key: &KeyPair) -> Der {
        let issuer = Issuer::from_params(&by.params, &by.key);
        self.params().signed_by(key, &issuer).unwrap().into()
    }

    pub fn self_signed(&self, key: &KeyPair) -> Der {
        self.params().self_signed(key).unwrap().into()
    }
}

/// A key that signs, with its certificate.
pub struct Signer {
    pub key: KeyPair,
    pub params: CertificateParams,
    pub certificate: Der,
}

impl Signer {
    pub fn root(draft: &Draft, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = draft.self_signed(&key);
        Self { key, params: draft.params(), certificate }
    }

    pub fn under(&self, draft: &Draft) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = draft.signed_by(self, &key);
        Self { key, params: draft.params(), certificate }
    }
}
