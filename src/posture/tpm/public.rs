//! A TPM's public area (TPMT_PUBLIC, TPM 2.0 Part 2 §12.2.4): what a key is, and what its TPM will
//! do with it.
//!
//! Three kinds of keys only, each in the one form in which it is used here. The name of a key is
//! computed, never believed: it covers every attribute, so that whoever holds the name knows that
//! the key can't leave its TPM.

use aws_lc_rs::digest::{self, digest};

use super::bytes::{Malformed, Reader, Writer};
use crate::model::EkKind;
use crate::model::limits::TPM_PUBLIC_MAX;

/// TPM_ALG_ID of what is used here (TCG Algorithm Registry).
pub mod alg {
    /// RSA.
    pub const RSA: u16 = 0x01;
    /// AES.
    pub const AES: u16 = 0x06;
    /// SHA-256.
    pub const SHA256: u16 = 0x0b;
    /// SHA-384.
    pub const SHA384: u16 = 0x0c;
    /// None.
    pub const NULL: u16 = 0x10;
    /// ECDSA.
    pub const ECDSA: u16 = 0x18;
    /// Elliptic curves.
    pub const ECC: u16 = 0x23;
    /// Cipher feedback.
    pub const CFB: u16 = 0x43;
}

/// The bits of an object's attributes (Part 2 §8.3).
pub mod attribute {
    /// Never leaves its TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// Stays below its parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// The TPM itself made the secret part.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// Used by its authorisation value.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Administered by its policy.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Wrong authorisations don't count towards lockout; nor does a power cut.
    pub const NO_DA: u32 = 1 << 10;
    /// Signs or decrypts only what the TPM itself has made.
    pub const RESTRICTED: u32 = 1 << 16;
    /// Decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// Signs.
    pub const SIGN: u32 = 1 << 18;
}
use attribute::{
    ADMIN_WITH_POLICY, DECRYPT, FIXED_PARENT, FIXED_TPM, NO_DA, RESTRICTED, SENSITIVE_DATA_ORIGIN,
    SIGN, USER_WITH_AUTH,
};

/// A key that was made in its TPM and can't leave it.
const RESIDENT: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN;
/// Of a key for TLS: signs whatever it is given.
const DEVICE_KEY: u32 = RESIDENT | USER_WITH_AUTH | NO_DA | SIGN;
/// Of an attestation key: signs only what begins with the TPM's own mark.
const ATTESTATION_KEY: u32 = DEVICE_KEY | RESTRICTED;
/// Of an endorsement key, which the templates for high ranges also let be used by its (empty)
/// authorisation value.
const ENDORSEMENT_KEY: u32 = RESIDENT | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT;

/// The policy of the endorsement keys of the low range: whoever may use the endorsement hierarchy
/// (TCG EK Credential Profile §B.3, PolicyA for SHA-256).
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// That of the high range, for SHA-384 (PolicyB).
const POLICY_B: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
    0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
    0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// What the fixed `unique` of the attestation key is the digest of: with it, the same TPM makes the
/// same key each time, and nothing of it is stored.
const ATTESTATION_LABEL: &[u8] = b"doorward attestation key 1";
/// The same of device keys, which a salt beside it tells apart.
const DEVICE_LABEL: &[u8] = b"doorward device key 1";

/// SubjectPublicKeyInfo up to the point of P-256 (RFC 5480 §2).
const P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// The same of P-384.
const P384: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04,
];
/// The same up to an RSA modulus of 2048 bits (RFC 3279 §2.3.1).
const RSA_2048: &[u8] = &[
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01,
    0x01, 0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01,
    0x00,
];
/// And behind the modulus: the exponent 65537.
const RSA_EXPONENT: &[u8] = &[0x02, 0x03, 0x01, 0x00, 0x01];

/// The hash of names, and of all that a storage key wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameHash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl NameHash {
    pub(super) fn id(self) -> u16 {
        match self {
            Self::Sha256 => alg::SHA256,
            Self::Sha384 => alg::SHA384,
        }
    }
}

/// The key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// A point of P-256.
    P256 {
        /// First coordinate.
        x: [u8; 32],
        /// Second.
        y: [u8; 32],
    },
    /// A point of P-384.
    P384 {
        /// First coordinate.
        x: [u8; 48],
        /// Second.
        y: [u8; 48],
    },
    /// RSA of 2048 bits with the exponent 65537.
    Rsa2048(Box<[u8; 256]>),
}

impl PublicKey {
    /// Which of the kinds of endorsement keys it is.
    pub fn kind(&self) -> EkKind {
        match self {
            Self::P256 { .. } => EkKind::P256,
            Self::P384 { .. } => EkKind::P384,
            Self::Rsa2048(_) => EkKind::Rsa2048,
        }
    }
}

/// A public area, in the bytes in which the TPM gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Public {
    bytes: Vec<u8>,
    hash: NameHash,
    attributes: u32,
    /// Bits of the AES key for what a storage key wraps; none of a signing key.
    wraps: Option<u16>,
    /// It signs by ECDSA with SHA-256.
    signs: bool,
    key: PublicKey,
}

impl Public {
    /// Reads a whole public area.
    ///
    /// # Errors
    /// Where it ends too early or late, or says something that is not used here.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > TPM_PUBLIC_MAX {
            return Err(Malformed("length"));
        }
        let mut reader = Reader::new(bytes);
        let kind = reader.u16("type")?;
        let hash = match reader.u16("name algorithm")? {
            alg::SHA256 => NameHash::Sha256,
            alg::SHA384 => NameHash::Sha384,
            _ => return Err(Malformed("name algorithm")),
        };
        let attributes = reader.u32("attributes")?;
        reader.sized(64, "policy")?;
        let wraps = symmetric(&mut reader)?;
        let (signs, key) = match kind {
            alg::ECC => ecc(&mut reader)?,
            alg::RSA => (false, rsa(&mut reader)?),
            _ => return Err(Malformed("type")),
        };
        reader.end("end")?;
        Ok(Self { bytes: bytes.to_vec(), hash, attributes, wraps, signs, key })
    }

    /// The area's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The hash of its name.
    pub fn hash(&self) -> NameHash {
        self.hash
    }

    /// Bits of the AES key with which it wraps.
    pub(super) fn wraps(&self) -> Option<u16> {
        self.wraps
    }

    /// Its name: the hash's number, and the hash of the area (Part 1 §16).
    pub fn name(&self) -> Vec<u8> {
        let algorithm = match self.hash {
            NameHash::Sha256 => &digest::SHA256,
            NameHash::Sha384 => &digest::SHA384,
        };
        [&self.hash.id().to_be_bytes()[..], digest(algorithm, &self.bytes).as_ref()].concat()
    }

    /// The key as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> Vec<u8> {
        match &self.key {
            PublicKey::P256 { x, y } => [P256, x, y].concat(),
            PublicKey::P384 { x, y } => [P384, x, y].concat(),
            PublicKey::Rsa2048(modulus) => [RSA_2048, modulus.as_slice(), RSA_EXPONENT].concat(),
        }
    }

    /// Whether it may be used by its authorisation value alone.
    pub fn user_with_auth(&self) -> bool {
        self.attributes & USER_WITH_AUTH != 0
    }

    /// Whether it is an attestation key as this program makes them, and nothing more: resident,
    /// restricted to what its TPM says, P-256.
    pub fn is_attestation_key(&self) -> bool {
        self.attributes == ATTESTATION_KEY && self.signs_p256()
    }

    /// Whether it is a device key as this program makes them: resident, P-256.
    pub fn is_device_key(&self) -> bool {
        self.attributes == DEVICE_KEY && self.signs_p256()
    }

    /// Whether it is an endorsement key: resident, and it opens only what was wrapped for an object
    /// of its own TPM.
    pub fn is_endorsement_key(&self) -> bool {
        self.attributes & !USER_WITH_AUTH == ENDORSEMENT_KEY && self.wraps.is_some() && !self.signs
    }

    fn signs_p256(&self) -> bool {
        let is_p256 = matches!(self.key, PublicKey::P256 { .. });
        is_p256 && self.signs && self.wraps.is_none() && self.hash == NameHash::Sha256
    }
}

/// TPMT_SYM_DEF_OBJECT: none, or AES in CFB.
fn symmetric(reader: &mut Reader<'_>) -> Result<Option<u16>, Malformed> {
    const WHAT: &str = "symmetric algorithm";
    match reader.u16(WHAT)? {
        alg::NULL => Ok(None),
        alg::AES => {
            let bits = reader.u16(WHAT)?;
            let is_known = matches!(bits, 128 | 256) && reader.u16(WHAT)? == alg::CFB;
            if is_known { Ok(Some(bits)) } else { Err(Malformed(WHAT)) }
        }
        _ => Err(Malformed(WHAT)),
    }
}

fn ecc(reader: &mut Reader<'_>) -> Result<(bool, PublicKey), Malformed> {
    let signs = match reader.u16("scheme")? {
        alg::NULL => false,
        alg::ECDSA if reader.u16("scheme")? == alg::SHA256 => true,
        _ => return Err(Malformed("scheme")),
    };
    let curve = reader.u16("curve")?;
    if reader.u16("kdf")? != alg::NULL {
        return Err(Malformed("kdf"));
    }
    let key = match curve {
        3 => PublicKey::P256 { x: coordinate(reader)?, y: coordinate(reader)? },
        4 => PublicKey::P384 { x: coordinate(reader)?, y: coordinate(reader)? },
        _ => return Err(Malformed("curve")),
    };
    Ok((signs, key))
}

/// A coordinate, whose leading zeros a TPM may leave out.
fn coordinate<const N: usize>(reader: &mut Reader<'_>) -> Result<[u8; N], Malformed> {
    padded(reader.sized(N, "coordinate")?).ok_or(Malformed("coordinate"))
}

/// A number in its full width.
pub(super) fn padded<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let mut full = [0; N];
    full.get_mut(N.checked_sub(number.len())?..)?.copy_from_slice(number);
    Some(full)
}

fn rsa(reader: &mut Reader<'_>) -> Result<PublicKey, Malformed> {
    if reader.u16("scheme")? != alg::NULL {
        return Err(Malformed("scheme"));
    }
    if reader.u16("bits")? != 2048 {
        return Err(Malformed("bits"));
    }
    if !matches!(reader.u32("exponent")?, 0 | 65_537) {
        return Err(Malformed("exponent"));
    }
    let modulus: [u8; 256] =
        reader.sized(256, "modulus")?.try_into().map_err(|_| Malformed("modulus"))?;
    match modulus.first() {
        Some(first) if first & 0x80 != 0 => Ok(PublicKey::Rsa2048(Box::new(modulus))),
        _ => Err(Malformed("modulus")),
    }
}

/// What a TPM is told to make a primary key of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template<'a> {
    /// The attestation key: the same for as long as the TPM's endorsement seed is the same.
    AttestationKey,
    /// A device key, told apart by a salt.
    DeviceKey(&'a [u8; 32]),
    /// The endorsement key on P-256 (TCG template L-2).
    EkP256,
    /// That on P-384 (H-3).
    EkP384,
    /// That of RSA with 2048 bits (L-1).
    EkRsa2048,
}

impl Template<'_> {
    /// The public area that goes into CreatePrimary.
    pub fn bytes(&self) -> Vec<u8> {
        let signing = |attributes, unique: &[u8]| {
            head(alg::ECC, alg::SHA256, attributes, &[])
                .u16(alg::NULL)
                .u16(alg::ECDSA)
                .u16(alg::SHA256)
                .u16(3)
                .u16(alg::NULL)
                .sized(digest(&digest::SHA256, unique).as_ref())
                .sized(&[])
        };
        let wrapping =
            |head: Writer, bits| head.u16(alg::AES).u16(bits).u16(alg::CFB).u16(alg::NULL);
        let area = match self {
            Self::AttestationKey => signing(ATTESTATION_KEY, ATTESTATION_LABEL),
            Self::DeviceKey(salt) => signing(DEVICE_KEY, &[DEVICE_LABEL, *salt].concat()),
            Self::EkP256 => {
                let head = head(alg::ECC, alg::SHA256, ENDORSEMENT_KEY, &POLICY_A);
                wrapping(head, 128).u16(3).u16(alg::NULL).sized(&[0; 32]).sized(&[0; 32])
            }
            Self::EkP384 => {
                let attributes = ENDORSEMENT_KEY | USER_WITH_AUTH;
                let head = head(alg::ECC, alg::SHA384, attributes, &POLICY_B);
                wrapping(head, 256).u16(4).u16(alg::NULL).sized(&[]).sized(&[])
            }
            Self::EkRsa2048 => {
                let head = head(alg::RSA, alg::SHA256, ENDORSEMENT_KEY, &POLICY_A);
                wrapping(head, 128).u16(2048).u32(0).sized(&[0; 256])
            }
        };
        area.done()
    }
}

fn head(kind: u16, hash: u16, attributes: u32, policy: &[u8]) -> Writer {
    Writer::default().u16(kind).u16(hash).u32(attributes).sized(policy)
}

#[cfg(test)]
mod tests {
    use super::super::vectors::vector;
    use super::*;
    use crate::model::Digest;
    use proptest::prelude::*;

    fn public(name: &str) -> Public {
        Public::parse(&vector(name)).unwrap()
    }

    #[test]
    fn what_swtpm_made_is_read_for_what_it_is() {
        for (name, is) in [
            ("ak", [true, false, false]),
            ("key", [false, true, false]),
            ("ek_p256", [false, false, true]),
            ("ek_p384", [false, false, true]),
            ("ek_rsa2048", [false, false, true]),
        ] {
            let it = public(name);
            let found = [it.is_attestation_key(), it.is_device_key(), it.is_endorsement_key()];
            assert_eq!(found, is, "{name}");
            assert_eq!(it.bytes(), vector(name));
        }
        assert!(public("ek_p384").user_with_auth() && !public("ek_p256").user_with_auth());
        assert_eq!(public("ek_p384").hash(), NameHash::Sha384);
        assert_eq!(
            (public("ek_p384").wraps(), public("ek_rsa2048").wraps()),
            (Some(256), Some(128))
        );
    }

    #[test]
    fn the_name_is_that_which_the_tpm_certified() {
        let name = public("key").name();
        assert_eq!(name.len(), 34);
        let certified = vector("certify");
        assert!(certified.windows(34).any(|window| window == name));
        assert_eq!(public("ek_p384").name().len(), 50);
    }

    #[test]
    fn keys_are_written_as_certificates_have_them() {
        for name in ["ek_p384", "ek_rsa2048"] {
            let der = vector(&format!("{name}_certificate"));
            let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
            assert_eq!(certificate.public_key().raw, public(name).spki(), "{name}");
        }
        let point = |name: &str| {
            aws_lc_rs::signature::ParsedPublicKey::new(
                &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED,
                public(name).spki(),
            )
        };
        assert!(point("ak").is_ok() && point("key").is_ok());
    }

    #[test]
    fn templates_are_what_tpms_make_of_them() {
        for (name, template) in [
            ("ek_p256", Template::EkP256),
            ("ek_p384", Template::EkP384),
            ("ek_rsa2048", Template::EkRsa2048),
            ("ak", Template::AttestationKey),
            ("key", Template::DeviceKey(&[7; 32])),
        ] {
            let (made, template) = (vector(name), template.bytes());
            // All but the unique field is as it was asked for: what the key is, and may.
            let unique = match name {
                "ek_rsa2048" => 258,
                "ek_p384" => 100,
                _ => 68,
            };
            let fixed = made.len() - unique;
            assert_eq!(made[..fixed], template[..fixed], "{name}");
        }
        let with = |salt: u8| Template::DeviceKey(&[salt; 32]).bytes();
        assert_ne!(with(1), with(2));
        assert_eq!(
            Digest::of(&Template::AttestationKey.bytes()),
            Digest::of(&Template::AttestationKey.bytes())
        );
    }

    #[test]
    fn every_attribute_counts() {
        for (name, at) in [("ak", 4), ("key", 4), ("ek_p256", 4)] {
            let good = vector(name);
            for bit in 0..32 {
                let mut bad = good.clone();
                bad[at + 3 - bit / 8] ^= 1 << (bit % 8);
                let Ok(it) = Public::parse(&bad) else { continue };
                let before = public(name);
                // The one freedom: an endorsement key may be used by its authorisation value.
                if name == "ek_p256" && bit == 6 {
                    assert!(it.is_endorsement_key());
                    continue;
                }
                let is = |it: &Public| match name {
                    "ak" => it.is_attestation_key(),
                    "key" => it.is_device_key(),
                    _ => it.is_endorsement_key(),
                };
                assert!(is(&before) && !is(&it), "{name}, bit {bit}");
                assert_ne!(before.name(), it.name());
            }
        }
    }

    #[test]
    fn nothing_is_cut_or_trailed() {
        for name in ["ak", "key", "ek_p256", "ek_p384", "ek_rsa2048"] {
            let good = vector(name);
            for end in 0..good.len() {
                assert!(Public::parse(&good[..end]).is_err(), "{name} cut at {end}");
            }
            assert_eq!(Public::parse(&[&good[..], &[0]].concat()), Err(Malformed("end")));
        }
        assert_eq!(Public::parse(&[0; TPM_PUBLIC_MAX + 1]), Err(Malformed("length")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Public::parse(&bytes);
        }

        #[test]
        fn what_is_near_a_good_one_panics_nothing(
            at in 0_usize..314, byte in any::<u8>(), name in prop_oneof![Just("ak"), Just("ek_rsa2048"), Just("ek_p384")]
        ) {
            let mut bytes = vector(name);
            if let Some(it) = bytes.get_mut(at) { *it = byte; }
            if let Ok(it) = Public::parse(&bytes) {
                prop_assert!(it.name().len() >= 34 && it.spki().len() > 90);
            }
        }
    }
}
