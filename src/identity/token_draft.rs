//! Keys that sign tokens, and tokens as JSON text before they are signed, so that each can be
//! wrong. The tests of this room and those of the published vectors draw the same ones.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Base64url without padding.
pub fn base64url(octets: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(octets)
}

/// A key pair for JWT-SVIDs.
pub struct TokenKey {
    pub kid: String,
    pair: Pair,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl TokenKey {
    /// A new key that fits an algorithm.
    pub fn new(kid: &str, algorithm: &str) -> Self {
        let ec = |signing| Pair::Ec(EcdsaKeyPair::generate(signing).unwrap());
        let pair = match algorithm {
            "ES256" => ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
            "ES512" => ec(&ECDSA_P521_SHA512_FIXED_SIGNING),
            _ => Pair::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())),
        };
        Self { kid: kid.to_owned(), pair }
    }

    /// The element of a bundle document.
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Ec(pair) => {
                let (x, y) = self.point()[1..].split_at((pair.public_key().as_ref().len() - 1) / 2);
                let crv = match x.len() {
                    32 => "P-256",
                    48 => "P-384",
                    _ => "P-521",
                };
                json!({ "kty": "EC", "crv": crv, "x": base64url(x), "y": base64url(y) })
            }
            Pair::Rsa(_) => {
                let spki = self.spki();
                let (_, read) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
                let Ok(PublicKey::RSA(key)) = read.parsed() else { panic!("no rsa key") };
                let octets = |of: &[u8]| base64url(of.strip_prefix(&[0]).unwrap_or(of));
                json!({ "kty": "RSA", "n": octets(key.modulus), "e": octets(key.exponent) })
            }
        };
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("jwt-svid");
        jwk
    }

    /// The uncompressed point of a key on a curve.
    pub fn point(&self) -> &[u8] {
        match &self.pair {
            Pair::Ec(pair) => pair.public_key().as_ref(),
            Pair::Rsa(_) => panic!("an rsa key has no point"),
        }
    }

    /// The key as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match &self.pair {
            Pair::Ec(pair) => pair.public_key().as_der().unwrap(),
            Pair::Rsa(pair) => pair.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    /// A compact JWS of exactly this header and these claims. `algorithm` says how an RSA key
    /// signs; the header may say otherwise.
    pub fn sign(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", base64url(header), base64url(claims));
        let signature = self.sign_bytes(algorithm, signed.as_bytes());
        format!("{signed}.{}", base64url(signature))
    }

    /// A signature as JWS has it.
    pub fn sign_bytes(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let encoding = match algorithm {
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// The header that an honest issuer writes.
    pub fn header(&self, algorithm: &str) -> String {
        format!(r#"{{"alg":"{algorithm}","kid":"{}","typ":"JWT"}}"#, self.kid)
    }
}
