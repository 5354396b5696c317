//! One certificate as it was shown: the parts that the rules speak of, read strictly and judged
//! nowhere in here.
//!
//! `x509-parser` takes the certificate apart; the five extensions are read by [`super::der`], so
//! that a certificate full of names costs no more memory than its own bytes. webpki reads the same
//! bytes once more and must agree.

use std::collections::HashSet;

use time::OffsetDateTime;
use x509_parser::certificate::{TbsCertificate, X509CertificateParser};
use x509_parser::extensions::X509Extension;
use x509_parser::nom::Parser as _;
use x509_parser::x509::X509Version;

use super::der::{self, Reader};
use super::extension::EXTENSION_OID;
use super::svid_error::SvidError;
use crate::model::Serial;
use crate::model::limits::CERTIFICATE_MAX;

/// Content octets of a serial number (RFC 5280 §4.1.2.2).
const SERIAL_MAX: usize = 20;
/// The DER of an empty Name.
const EMPTY_NAME: &[u8] = &[0x30, 0x00];

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const ALT_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// subjectAltName.
#[derive(Debug, Clone, Copy)]
pub(super) struct AltNames<'a> {
    pub(super) critical: bool,
    /// How many names are URIs.
    pub(super) uris: usize,
    /// The last of them.
    pub(super) uri: &'a [u8],
    /// One of them is a SPIFFE ID, well formed or not.
    pub(super) spiffe: bool,
}

/// basicConstraints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Constraints {
    pub(super) authority: bool,
    pub(super) path_length: Option<u8>,
}

/// keyUsage, as far as anybody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyUsage {
    pub(super) critical: bool,
    pub(super) digital_signature: bool,
    pub(super) cert_sign: bool,
    pub(super) crl_sign: bool,
}

/// extendedKeyUsage, as far as anybody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Purposes {
    pub(super) server: bool,
    pub(super) client: bool,
}

/// A certificate of version 3 with no extension twice.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// None where it is no positive integer of at most 20 octets, as some old roots have it.
    pub(super) serial: Option<Serial>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// Names as DER.
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// SubjectPublicKeyInfo (DER).
    pub(super) spki: &'a [u8],
    pub(super) alt_names: Option<AltNames<'a>>,
    pub(super) constraints: Option<Constraints>,
    pub(super) key_usage: Option<KeyUsage>,
    pub(super) purposes: Option<Purposes>,
    pub(super) name_constraints: bool,
    /// A critical extension other than the five.
    pub(super) unknown_critical: bool,
    /// The value of our own extension, unread.
    pub(super) doorward: Option<&'a [u8]>,
}

impl<'a> Certificate<'a> {
    /// Reads one certificate of a stranger.
    ///
    /// # Errors
    /// The first rule of form that it breaks.
    pub(super) fn read(der: &'a [u8]) -> Result<Self, SvidError> {
        if der.len() > CERTIFICATE_MAX {
            return Err(SvidError::CertificateTooLarge(der.len()));
        }
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (behind, parsed) = parser.parse(der).map_err(|_| SvidError::Malformed)?;
        let tbs = parsed.tbs_certificate;
        if !behind.is_empty() {
            return Err(SvidError::Malformed);
        }
        if tbs.version != X509Version::V3 {
            return Err(SvidError::Version);
        }
        let mut certificate = Self {
            serial: serial(tbs.raw_serial()),
            not_before: tbs.validity.not_before.to_datetime(),
            not_after: tbs.validity.not_after.to_datetime(),
            issuer: tbs.issuer.as_raw(),
            subject: tbs.subject.as_raw(),
            spki: tbs.subject_pki.raw,
            alt_names: None,
            constraints: None,
            key_usage: None,
            purposes: None,
            name_constraints: false,
            unknown_critical: false,
            doorward: None,
        };
        certificate.read_extensions(&tbs)?;
        Ok(certificate)
    }

    /// Whether the subject is empty.
    pub(super) fn is_nameless(&self) -> bool {
        self.subject == EMPTY_NAME
    }

    fn read_extensions(&mut self, tbs: &TbsCertificate<'a>) -> Result<(), SvidError> {
        let mut seen = HashSet::new();
        for extension in tbs.extensions() {
            if !seen.insert(extension.oid.as_bytes()) {
                return Err(SvidError::DuplicateExtension);
            }
            self.read_extension(extension)?;
        }
        Ok(())
    }

    fn read_extension(&mut self, extension: &X509Extension<'a>) -> Result<(), SvidError> {
        let (critical, value) = (extension.critical, extension.value);
        let bad = SvidError::MalformedExtension;
        match extension.oid.as_bytes() {
            ALT_NAMES => {
                let names = alt_names(critical, value).ok_or(bad("subjectAltName"))?;
                self.alt_names = Some(names);
            }
            BASIC_CONSTRAINTS => {
                self.constraints = Some(constraints(value).ok_or(bad("basicConstraints"))?);
            }
            KEY_USAGE => {
                self.key_usage = Some(key_usage(critical, value).ok_or(bad("keyUsage"))?);
            }
            EXTENDED_KEY_USAGE => {
                self.purposes = Some(purposes(value).ok_or(bad("extendedKeyUsage"))?);
            }
            NAME_CONSTRAINTS => self.name_constraints = true,
            _ if critical => self.unknown_critical = true,
            _ if is_doorward(extension) => self.doorward = Some(value),
            _ => {}
        }
        Ok(())
    }
}

fn is_doorward(extension: &X509Extension<'_>) -> bool {
    extension.oid.iter().is_some_and(|arcs| arcs.eq(EXTENSION_OID.iter().copied()))
}

/// The content octets of an INTEGER as a serial number.
fn serial(content: &[u8]) -> Option<Serial> {
    let magnitude = match content {
        [0, second, ..] if *second < 0x80 => return None, // a zero that DER does not write
        [0, rest @ ..] => rest,
        [first, ..] if *first >= 0x80 => return None, // negative
        other => other,
    };
    let fits = !magnitude.is_empty() && content.len() <= SERIAL_MAX;
    fits.then(|| Serial(magnitude.into()))
}

/// GeneralNames (RFC 5280 §4.2.1.6).
fn alt_names(critical: bool, value: &[u8]) -> Option<AltNames<'_>> {
    const URI: u8 = 0x86;
    const SPIFFE: &[u8] = b"spiffe:";
    let mut names = Reader::new(der::sole(der::SEQUENCE, value)?);
    let mut read = AltNames { critical, uris: 0, uri: &[], spiffe: false };
    while !names.is_empty() {
        match names.value()? {
            (URI, uri) => {
                let scheme = uri.get(..SPIFFE.len());
                let spiffe = scheme.is_some_and(|start| start.eq_ignore_ascii_case(SPIFFE));
                let uris = read.uris.checked_add(1)?;
                read = AltNames { uris, uri, spiffe: read.spiffe || spiffe, ..read };
            }
            // otherName, x400Address, directoryName, ediPartyName; the others are primitive.
            (0xa0 | 0xa3 | 0xa4 | 0xa5 | 0x81 | 0x82 | 0x87 | 0x88, _) => {}
            _ => return None,
        }
    }
    Some(read)
}

/// BasicConstraints (RFC 5280 §4.2.1.9). A path length is for authorities only.
fn constraints(value: &[u8]) -> Option<Constraints> {
    let mut fields = Reader::new(der::sole(der::SEQUENCE, value)?);
    let authority = match fields.peek() {
        Some(der::BOOLEAN) => match fields.expect(der::BOOLEAN)? {
            [0xff] => true,
            [0x00] => false, // DER leaves a default out; many authorities do not
            _ => return None,
        },
        _ => false,
    };
    let path_length = match fields.is_empty() {
        true => None,
        false => match fields.expect(der::INTEGER)? {
            [length @ 0..=0x7f] | [0, length @ 0x80..=0xff] => Some(*length),
            _ => return None,
        },
    };
    let sound = fields.is_empty() && (authority || path_length.is_none());
    sound.then_some(Constraints { authority, path_length })
}

/// KeyUsage (RFC 5280 §4.2.1.3): a BIT STRING of nine named bits.
fn key_usage(critical: bool, value: &[u8]) -> Option<KeyUsage> {
    let (unused, first, last) = match der::sole(der::BIT_STRING, value)? {
        [0] => (0, 0, 0),
        [unused @ 0..=7, only] => (*unused, *only, *only),
        [unused @ 0..=7, first, last] => (*unused, *first, *last),
        _ => return None,
    };
    if last.trailing_zeros() < u32::from(unused) {
        return None; // bits that are said to be unused are set
    }
    Some(KeyUsage {
        critical,
        digital_signature: first & 0x80 != 0,
        cert_sign: first & 0x04 != 0,
        crl_sign: first & 0x02 != 0,
    })
}

/// ExtKeyUsageSyntax (RFC 5280 §4.2.1.12): one purpose or more.
fn purposes(value: &[u8]) -> Option<Purposes> {
    let mut ids = Reader::new(der::sole(der::SEQUENCE, value)?);
    if ids.is_empty() {
        return None;
    }
    let mut read = Purposes::default();
    while !ids.is_empty() {
        match ids.expect(der::OBJECT_IDENTIFIER)? {
            SERVER_AUTH => read.server = true,
            CLIENT_AUTH => read.client = true,
            _ => {}
        }
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn serial_numbers_are_positive_minimal_and_short() {
        for good in [&[1][..], &[0x7f], &[0, 0x80], &[1; 20]] {
            assert!(serial(good).is_some(), "{good:?}");
        }
        assert_eq!(serial(&[0, 0x80]).unwrap().0.as_ref(), [0x80]);
        for bad in [&[][..], &[0], &[0, 0], &[0, 1], &[0x80], &[0xff, 1], &[1; 21]] {
            assert!(serial(bad).is_none(), "{bad:?}");
        }
        let mut long = [0x80; 21];
        long[0] = 0;
        assert!(serial(&long).is_none(), "20 bytes of magnitude take 21 octets");
    }

    #[test]
    fn constraints_are_read_strictly() {
        let read = |fields: &[u8]| constraints(&der::wrap(der::SEQUENCE, fields));
        let leaf = Constraints { authority: false, path_length: None };
        assert_eq!(read(&[]), Some(leaf));
        assert_eq!(read(&[1, 1, 0]), Some(leaf));
        let ca = |path_length| Some(Constraints { authority: true, path_length });
        assert_eq!(read(&[1, 1, 0xff]), ca(None));
        assert_eq!(read(&[1, 1, 0xff, 2, 1, 3]), ca(Some(3)));
        assert_eq!(read(&[1, 1, 0xff, 2, 2, 0, 0x80]), ca(Some(0x80)));
        for bad in [
            &[1, 1, 1][..],
            &[1, 2, 0xff, 0xff],
            &[2, 1, 0],
            &[1, 1, 0xff, 2, 1, 0x80],
            &[1, 1, 0xff, 2, 2, 0, 1],
            &[1, 1, 0xff, 1, 1, 0xff],
            &[1, 1, 0xff, 2, 1, 0, 5, 0],
        ] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn key_usage_bits_stand_where_the_standard_puts_them() {
        let read = |content: &[u8]| key_usage(true, &der::wrap(der::BIT_STRING, content));
        let usage = read(&[7, 0x80]).unwrap();
        assert!(usage.digital_signature && !usage.cert_sign && !usage.crl_sign);
        let usage = read(&[1, 0x06]).unwrap();
        assert!(!usage.digital_signature && usage.cert_sign && usage.crl_sign);
        assert!(read(&[7, 0x80, 0x80]).unwrap().digital_signature, "decipherOnly beside it");
        assert!(!read(&[0]).unwrap().digital_signature);
        for bad in [&[][..], &[8, 0], &[1], &[7, 0x81], &[7, 0x80, 0x81], &[0, 1, 2, 3]] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_are_counted_not_collected() {
        let read = |names: &[u8]| {
            let der = der::wrap(der::SEQUENCE, names);
            alt_names(false, &der).map(|names| (names.uris, names.uri.to_vec()))
        };
        assert_eq!(read(&[0x86, 1, b'u', 0x82, 1, b'd']), Some((1, b"u".to_vec())));
        assert_eq!(read(&[0x86, 1, b'a', 0x86, 1, b'b']), Some((2, b"b".to_vec())));
        assert_eq!(read(&[0x82, 0]), Some((0, Vec::new())));
        assert_eq!(read(&[0x06, 1, b'u']), None, "not a general name");
        assert_eq!(read(&[0xa6, 1, b'u']), None, "a constructed URI");
        assert_eq!(read(&[0x86, 9, b'u']), None, "cut");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(der in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Certificate::read(&der);
            let _ = (alt_names(true, &der), constraints(&der), key_usage(true, &der));
            let _ = purposes(&der);
        }
    }
}
