//! One public key as RFC 7517 writes it: read strictly, written in one form.
//!
//! A key is unusable as soon as one of its members says something that can't be true or that we do
//! not know; whoever reads a set leaves such an element out and says why. A key whose private half
//! was published is no key: everybody can sign with it.

use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::jwt_algorithm::{Check, Curve, JwtAlgorithm};
use crate::model::Digest;
use crate::model::limits::{KEY_ID_MAX, RSA_BITS_MAX, RSA_BITS_MIN};

/// Members that only a private or a symmetric key has (RFC 7518 §6.2.2, §6.3.2, §6.4).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// Octets of an RSA exponent: what verifiers of the field take.
const EXPONENT_MAX: usize = 4;
/// id-Ed25519 (RFC 8410 §3).
const ED25519: &str = "1.3.101.112";

/// Why an element of a key set is not used. The others of its set are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwkError {
    /// `alg` is none of the nine, or not one for this key.
    #[error("`alg` is not a JWT-SVID algorithm for a key of this kind")]
    Algorithm,
    /// The certificate can't be read, or does not sign certificates.
    #[error("`x5c` does not begin with the base64 of a signing certificate in DER")]
    Certificate,
    /// `x5c` is missing or empty.
    #[error("`x5c` is missing or empty; it holds one certificate")]
    CertificateAbsent,
    /// Coordinates of another length, or no point of the curve.
    #[error("`crv`, `x` and `y` are not a point of P-256, P-384 or P-521 in base64url")]
    Curve,
    /// An RSA key that is no key or too weak or too long.
    #[error(
        "`n` and `e` are not an rsa key of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits in base64url \
         without leading zeros"
    )]
    Rsa,
    /// `kid` is missing, empty or too long.
    #[error("`kid` is missing, empty or longer than {KEY_ID_MAX} bytes")]
    KeyId,
    /// `kty` is missing, or of a kind that is not known here.
    #[error("`kty` is missing or not known here")]
    KeyType,
    /// The element is no object.
    #[error("it is not an object")]
    NotObject,
    /// `key_ops` does not hold `verify`.
    #[error("`key_ops` is not a list with `verify` in it")]
    Operations,
    /// Private members were published.
    #[error("it holds private members; whoever published it must replace the key at once")]
    Private,
    /// `use` is missing, or of a kind that is not known here.
    #[error("`use` is missing or not known here")]
    Purpose,
}

/// A public key that checks JWT-SVIDs, with its id. Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtKey {
    kid: Box<str>,
    material: Material,
    /// The one algorithm that the key's owner restricts it to.
    algorithm: Option<JwtAlgorithm>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    /// An uncompressed point.
    Ec(Curve, Box<[u8]>),
    /// Big-endian, without leading zeros.
    Rsa { modulus: Box<[u8]>, exponent: Box<[u8]> },
}

impl JwtKey {
    /// A key on P-256, P-384 or P-521, by its uncompressed point (`04 x y`).
    ///
    /// # Errors
    /// When the id or the point is none.
    pub fn ec(kid: &str, point: &[u8]) -> Result<Self, JwkError> {
        let curve = Curve::of_point(point).ok_or(JwkError::Curve)?;
        ParsedPublicKey::new(curve.reader(), point).map_err(|_| JwkError::Curve)?;
        Ok(Self { kid: key_id(kid)?, material: Material::Ec(curve, point.into()), algorithm: None })
    }

    /// The same, called by its thumbprint (RFC 7638), which everybody can compute.
    ///
    /// # Errors
    /// When the point is none.
    pub fn ec_by_thumbprint(point: &[u8]) -> Result<Self, JwkError> {
        let members = ec_members(point).ok_or(JwkError::Curve)?;
        let member = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default();
        let text = format!(
            r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#,
            member("crv"),
            member("x"),
            member("y")
        );
        Self::ec(&URL_SAFE_NO_PAD.encode(Digest::of(text.as_bytes()).0), point)
    }

    /// An RSA key of 2048 to 8192 bits, by its big-endian components without leading zeros.
    ///
    /// # Errors
    /// When the id or the key is none.
    pub fn rsa(kid: &str, modulus: &[u8], exponent: &[u8]) -> Result<Self, JwkError> {
        let (first, rest) = modulus.split_first().ok_or(JwkError::Rsa)?;
        let bits = rest.len().saturating_mul(8);
        let bits = u8::BITS
            .checked_sub(first.leading_zeros())
            .map_or(0, |top| bits.saturating_add(usize::try_from(top).unwrap_or(0)));
        let is_odd = |octets: &[u8]| octets.last().is_some_and(|last| last & 1 == 1);
        if *first == 0
            || !(RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits)
            || !is_odd(modulus)
            || !is_odd(exponent)
            || exponent.len() > EXPONENT_MAX
            || exponent.first().is_none_or(|first| *first == 0)
            || exponent == [1]
        {
            return Err(JwkError::Rsa);
        }
        let components = RsaPublicKeyComponents { n: modulus, e: exponent };
        components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).map_err(|_| JwkError::Rsa)?;
        let material = Material::Rsa { modulus: modulus.into(), exponent: exponent.into() };
        Ok(Self { kid: key_id(kid)?, material, algorithm: None })
    }

    /// The same, called by its thumbprint (RFC 7638), which everybody can compute.
    ///
    /// # Errors
    /// When the key is none.
    pub fn rsa_by_thumbprint(modulus: &[u8], exponent: &[u8]) -> Result<Self, JwkError> {
        let (n, e) = (URL_SAFE_NO_PAD.encode(modulus), URL_SAFE_NO_PAD.encode(exponent));
        let text = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(Digest::of(text.as_bytes()).0);
        Self::rsa(&kid, modulus, exponent)
    }

    /// The same key for one algorithm only.
    ///
    /// # Errors
    /// When the algorithm needs another kind of key.
    pub fn only_for(self, algorithm: JwtAlgorithm) -> Result<Self, JwkError> {
        match self.fits(algorithm) {
            true => Ok(Self { algorithm: Some(algorithm), ..self }),
            false => Err(JwkError::Algorithm),
        }
    }

    /// The key's id, which tokens name.
    pub fn key_id(&self) -> &str {
        &self.kid
    }

    /// Reads an element whose `use` is `jwt-svid`.
    pub(super) fn read(jwk: &Map<String, Value>) -> Result<Self, JwkError> {
        if PRIVATE.iter().any(|member| jwk.contains_key(*member)) {
            return Err(JwkError::Private);
        }
        let kid = text(jwk, "kid").ok_or(JwkError::KeyId)?;
        let key = match text(jwk, "kty") {
            Some("EC") => {
                let curve = text(jwk, "crv").and_then(Curve::parse).ok_or(JwkError::Curve)?;
                let coordinate =
                    |name| octets(jwk, name).filter(|octets| octets.len() == curve.width());
                let (x, y) = coordinate("x").zip(coordinate("y")).ok_or(JwkError::Curve)?;
                Self::ec(kid, &[&[4][..], &x, &y].concat())?
            }
            Some("RSA") => {
                let (n, e) = octets(jwk, "n").zip(octets(jwk, "e")).ok_or(JwkError::Rsa)?;
                Self::rsa(kid, &n, &e)?
            }
            _ => return Err(JwkError::KeyType),
        };
        check_operations(jwk.get("key_ops"))?;
        match jwk.get("alg") {
            None => Ok(key),
            Some(word) => {
                let algorithm = word.as_str().and_then(JwtAlgorithm::parse);
                key.only_for(algorithm.ok_or(JwkError::Algorithm)?)
            }
        }
    }

    /// The element of a key set; `use` is always told.
    pub fn to_jwk(&self) -> Value {
        self.jwk_for("jwt-svid")
    }

    /// The same, with another word for what the key is for.
    pub(super) fn jwk_for(&self, purpose: &str) -> Value {
        let mut jwk = match &self.material {
            Material::Ec(_, point) => ec_members(point),
            Material::Rsa { modulus, exponent } => Some(rsa_members(modulus, exponent)),
        }
        .unwrap_or_default();
        jwk.insert("kid".into(), json!(self.kid));
        jwk.insert("use".into(), json!(purpose));
        if let Some(algorithm) = self.algorithm {
            jwk.insert("alg".into(), json!(algorithm.word()));
        }
        Value::Object(jwk)
    }

    /// Whether the key may check signatures of an algorithm: the right kind, the right curve, and
    /// not restricted to another.
    pub(super) fn fits(&self, algorithm: JwtAlgorithm) -> bool {
        let is_kind = match (&self.material, algorithm.check()) {
            (Material::Ec(curve, _), Check::Ec(wanted, _)) => *curve == wanted,
            (Material::Rsa { .. }, Check::Rsa(_)) => true,
            _ => false,
        };
        is_kind && self.algorithm.is_none_or(|only| only == algorithm)
    }

    /// Whether a signature of a message holds under this key.
    pub(super) fn verifies(
        &self,
        algorithm: JwtAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        if !self.fits(algorithm) {
            return false;
        }
        match (&self.material, algorithm.check()) {
            (Material::Ec(_, point), Check::Ec(_, check)) => {
                UnparsedPublicKey::new(check, point).verify(message, signature).is_ok()
            }
            (Material::Rsa { modulus, exponent }, Check::Rsa(check)) => {
                let components = RsaPublicKeyComponents { n: modulus, e: exponent };
                components.verify(check, message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// The members of a certificate's key; `None` where RFC 7518 and RFC 8037 have no words for it.
pub(super) fn members_of(spki: &[u8]) -> Option<Map<String, Value>> {
    let (behind, read) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    if !behind.is_empty() {
        return None;
    }
    match read.parsed().ok()? {
        PublicKey::EC(point) => ec_members(point.data()),
        PublicKey::RSA(key) => Some(rsa_members(trim(key.modulus), trim(key.exponent))),
        PublicKey::Unknown(key) if read.algorithm.algorithm.to_id_string() == ED25519 => {
            let (kty, x) = (json!("OKP"), json!(URL_SAFE_NO_PAD.encode(key)));
            Some(Map::from_iter([
                ("kty".into(), kty),
                ("crv".into(), json!("Ed25519")),
                ("x".into(), x),
            ]))
        }
        _ => None,
    }
}

/// Without the zero octet that keeps a DER integer positive.
fn trim(integer: &[u8]) -> &[u8] {
    integer.strip_prefix(&[0]).unwrap_or(integer)
}

fn ec_members(point: &[u8]) -> Option<Map<String, Value>> {
    let curve = Curve::of_point(point)?;
    let (x, y) = point.get(1..)?.split_at_checked(curve.width())?;
    Some(Map::from_iter([
        ("kty".into(), json!("EC")),
        ("crv".into(), json!(curve.word())),
        ("x".into(), json!(URL_SAFE_NO_PAD.encode(x))),
        ("y".into(), json!(URL_SAFE_NO_PAD.encode(y))),
    ]))
}

fn rsa_members(modulus: &[u8], exponent: &[u8]) -> Map<String, Value> {
    Map::from_iter([
        ("kty".into(), json!("RSA")),
        ("n".into(), json!(URL_SAFE_NO_PAD.encode(modulus))),
        ("e".into(), json!(URL_SAFE_NO_PAD.encode(exponent))),
    ])
}

/// An id that may stand in a key or in a token's header.
pub(super) fn key_id(kid: &str) -> Result<Box<str>, JwkError> {
    match kid.is_empty() || kid.len() > KEY_ID_MAX {
        true => Err(JwkError::KeyId),
        false => Ok(kid.into()),
    }
}

fn check_operations(operations: Option<&Value>) -> Result<(), JwkError> {
    let Some(operations) = operations else { return Ok(()) };
    let operations = operations.as_array().ok_or(JwkError::Operations)?;
    let are_words = operations.iter().all(Value::is_string);
    match are_words && operations.iter().any(|operation| operation == "verify") {
        true => Ok(()),
        false => Err(JwkError::Operations),
    }
}

pub(super) fn text<'j>(jwk: &'j Map<String, Value>, member: &str) -> Option<&'j str> {
    jwk.get(member)?.as_str()
}

fn octets(jwk: &Map<String, Value>, member: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text(jwk, member)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::token_draft::TokenKey;

    fn read(jwk: &Value) -> Result<JwtKey, JwkError> {
        JwtKey::read(jwk.as_object().unwrap())
    }

    #[test]
    fn a_key_is_written_as_it_was_read() {
        for algorithm in JwtAlgorithm::ALL {
            let key = TokenKey::new("one", algorithm.word());
            let mut jwk = key.jwk();
            assert_eq!(read(&jwk).unwrap().to_jwk(), jwk);
            jwk["alg"] = json!(algorithm.word());
            jwk["key_ops"] = json!(["verify"]);
            let only = read(&jwk).unwrap();
            for other in JwtAlgorithm::ALL {
                assert_eq!(only.fits(other), other == algorithm, "{algorithm:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_certificate_s_key_has_the_same_members() {
        for algorithm in ["ES256", "ES384", "ES512", "RS256"] {
            let key = TokenKey::new("one", algorithm);
            let mut jwk = key.jwk();
            let members = jwk.as_object_mut().unwrap();
            members.remove("kid");
            members.remove("use");
            assert_eq!(members_of(&key.spki()).as_ref(), Some(&*members), "{algorithm}");
        }
    }

    #[test]
    fn one_wrong_member_makes_a_key_unusable() {
        use JwkError as E;
        let (ec, rsa) = (TokenKey::new("k", "ES256").jwk(), TokenKey::new("k", "RS256").jwk());
        let other = TokenKey::new("k", "ES256").jwk()["y"].clone();
        assert!(read(&ec).is_ok() && read(&rsa).is_ok());
        let weak = URL_SAFE_NO_PAD.encode([0xff; 255]);
        let long = URL_SAFE_NO_PAD.encode([0xff; 1025]);
        let zero = URL_SAFE_NO_PAD.encode([&[0][..], &[0xff; 256]].concat());
        let even = URL_SAFE_NO_PAD.encode([0xfe; 256]);
        for (good, member, value, want) in [
            (&ec, "kid", json!(""), E::KeyId),
            (&ec, "kid", json!(7), E::KeyId),
            (&ec, "kid", json!("k".repeat(257)), E::KeyId),
            (&ec, "kty", json!("oct"), E::KeyType),
            (&ec, "kty", json!("RSA"), E::Rsa),
            (&rsa, "kty", json!("EC"), E::Curve),
            (&ec, "crv", json!("P-384"), E::Curve),
            (&ec, "crv", json!("secp256k1"), E::Curve),
            (&ec, "x", json!("AAAA"), E::Curve),
            (&ec, "x", json!(format!("{}=", ec["x"].as_str().unwrap())), E::Curve),
            (&ec, "y", other, E::Curve),
            (&rsa, "n", json!(weak), E::Rsa),
            (&rsa, "n", json!(long), E::Rsa),
            (&rsa, "n", json!(zero), E::Rsa),
            (&rsa, "n", json!(even), E::Rsa),
            (&rsa, "n", json!(""), E::Rsa),
            (&rsa, "e", json!("AQ"), E::Rsa),
            (&rsa, "e", json!("Ag"), E::Rsa),
            (&rsa, "e", json!("AAEAAQ"), E::Rsa),
            (&rsa, "e", json!("AQAAAAE"), E::Rsa),
            (&ec, "alg", json!("ES384"), E::Algorithm),
            (&ec, "alg", json!("EdDSA"), E::Algorithm),
            (&ec, "alg", json!(null), E::Algorithm),
            (&rsa, "alg", json!("ES256"), E::Algorithm),
            (&ec, "key_ops", json!(["sign"]), E::Operations),
            (&ec, "key_ops", json!("verify"), E::Operations),
            (&ec, "key_ops", json!(["verify", 7]), E::Operations),
            (&ec, "d", json!("AAAA"), E::Private),
            (&rsa, "p", json!("AAAA"), E::Private),
        ] {
            let mut jwk = good.clone();
            jwk[member] = value;
            assert_eq!(read(&jwk).unwrap_err(), want, "{member} {}", jwk[member]);
        }
    }
}
