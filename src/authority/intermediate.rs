//! The certificate of an authority of ours below another one's: an intermediate, in DER.
//!
//! It is written here and not by rcgen, which knows an issuer's name as a table of attributes: two
//! `DC` or two `OU` in one name, as company directories have them, would come out as one. The
//! issuer's name stands in it byte for byte. What it says is fixed: one path below it at most, signs
//! certificates and revocation lists, one URI name, that of the trust domain.

use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

use super::error::AuthorityError;

const BIT_STRING: u8 = 0x03;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
const SUBJECT_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0f];
const ALT_NAMES: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
const AUTHORITY_KEY_ID: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];
/// `BOOLEAN` true.
const CRITICAL: &[u8] = &[0x01, 0x01, 0xff];
/// Version 3, explicitly tagged.
const V3: &[u8] = &[0xa0, 0x03, 0x02, 0x01, 0x02];
/// cA, and a path length of 0.
const AUTHORITY_OF_LEAVES: &[u8] = &[0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x00];
/// keyCertSign and cRLSign.
const SIGNS: &[u8] = &[0x03, 0x02, 0x01, 0x06];

/// What differs from one to the next.
pub(super) struct Intermediate<'a> {
    /// Positive, without leading zeros.
    pub serial: &'a [u8],
    /// The issuer's subject, as it stands in its certificate.
    pub issuer: &'a [u8],
    /// The issuer's subject key identifier, if it has one.
    pub issuer_key_id: Option<&'a [u8]>,
    /// The AlgorithmIdentifier that the issuer signs with.
    pub algorithm: &'a [u8],
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub common_name: &'a str,
    /// SubjectPublicKeyInfo of the new authority's key.
    pub spki: &'a [u8],
    /// What leaves will call that key by.
    pub key_id: &'a [u8],
    /// The SPIFFE ID of the trust domain.
    pub uri: &'a str,
}

impl Intermediate<'_> {
    /// The part that is signed.
    ///
    /// # Errors
    /// When it can't be written: a date out of range, or names without any measure.
    pub(super) fn to_be_signed(&self) -> Result<Vec<u8>, AuthorityError> {
        let subject = tlv(
            SEQUENCE,
            &[&tlv(
                SET,
                &[&tlv(
                    SEQUENCE,
                    &[COMMON_NAME, &tlv(UTF8_STRING, &[self.common_name.as_bytes()])?],
                )?],
            )?],
        )?;
        let validity = tlv(SEQUENCE, &[&instant(self.not_before)?, &instant(self.not_after)?])?;
        let extensions = tlv(0xa3, &[&tlv(SEQUENCE, &[&self.extensions()?])?])?;
        tlv(
            SEQUENCE,
            &[
                V3,
                &tlv(INTEGER, &[self.serial])?,
                self.algorithm,
                self.issuer,
                &validity,
                &subject,
                self.spki,
                &extensions,
            ],
        )
    }

    fn extensions(&self) -> Result<Vec<u8>, AuthorityError> {
        let names = tlv(SEQUENCE, &[&tlv(0x86, &[self.uri.as_bytes()])?])?;
        let mut all = vec![
            extension(BASIC_CONSTRAINTS, true, AUTHORITY_OF_LEAVES)?,
            extension(KEY_USAGE, true, SIGNS)?,
            extension(ALT_NAMES, false, &names)?,
            extension(SUBJECT_KEY_ID, false, &tlv(OCTET_STRING, &[self.key_id])?)?,
        ];
        if let Some(issuer) = self.issuer_key_id {
            let issuer = tlv(SEQUENCE, &[&tlv(0x80, &[issuer])?])?;
            all.push(extension(AUTHORITY_KEY_ID, false, &issuer)?);
        }
        Ok(all.concat())
    }
}

/// The certificate out of its signed part and the signature on it.
///
/// # Errors
/// When it has no measure.
pub(super) fn certificate(
    signed: &[u8],
    algorithm: &[u8],
    signature: &[u8],
) -> Result<Vec<u8>, AuthorityError> {
    tlv(SEQUENCE, &[signed, algorithm, &tlv(BIT_STRING, &[&[0], signature])?])
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    let critical = if critical { CRITICAL } else { &[] };
    tlv(SEQUENCE, &[oid, critical, &tlv(OCTET_STRING, &[value])?])
}

/// UTCTime to 2049, GeneralizedTime from then on (RFC 5280 §4.1.2.5).
fn instant(at: OffsetDateTime) -> Result<Vec<u8>, AuthorityError> {
    const SHORT: &[FormatItem<'_>] =
        format_description!("[year repr:last_two][month][day][hour][minute][second]Z");
    const LONG: &[FormatItem<'_>] =
        format_description!("[year][month][day][hour][minute][second]Z");
    let at = at.to_offset(time::UtcOffset::UTC);
    let (tag, form) = match at.year() {
        1950..=2049 => (UTC_TIME, SHORT),
        _ => (GENERALIZED_TIME, LONG),
    };
    let text = at.format(form).map_err(|_| unwritable())?;
    tlv(tag, &[text.as_bytes()])
}

/// A value with its tag and its length, out of parts.
fn tlv(tag: u8, parts: &[&[u8]]) -> Result<Vec<u8>, AuthorityError> {
    let length = parts.iter().map(|part| part.len()).fold(0, usize::saturating_add);
    let length = u16::try_from(length).map_err(|_| unwritable())?;
    let mut out = Vec::with_capacity(usize::from(length).saturating_add(4));
    out.push(tag);
    match length.to_be_bytes() {
        [0, low @ 0..=0x7f] => out.push(low),
        [0, low] => out.extend([0x81, low]),
        [high, low] => out.extend([0x82, high, low]),
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(out)
}

fn unwritable() -> AuthorityError {
    AuthorityError::Crypto("writing an intermediate certificate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn lengths_and_dates_have_their_one_form() {
        for (length, head) in [
            (0, vec![0x04, 0]),
            (0x7f, vec![0x04, 0x7f]),
            (0x80, vec![0x04, 0x81, 0x80]),
            (0x100, vec![0x04, 0x82, 1, 0]),
            (0xffff, vec![0x04, 0x82, 0xff, 0xff]),
        ] {
            let content = vec![7; length];
            assert_eq!(tlv(OCTET_STRING, &[&content]).unwrap(), [head, content].concat());
        }
        assert!(tlv(OCTET_STRING, &[&[0; 0xffff], &[0]]).is_err());
        let text = |at| String::from_utf8(instant(at).unwrap()[2..].to_vec()).unwrap();
        assert_eq!(text(datetime!(2026-11-23 12:00:09 UTC)), "261123120009Z");
        assert_eq!(text(datetime!(2049-12-31 23:59:59 UTC)), "491231235959Z");
        assert_eq!(text(datetime!(2050-01-01 1:00:00 +1)), "20500101000000Z");
    }
}
