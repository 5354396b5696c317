//! The keys of an authority that sign JWT-SVIDs: P-256, made with the authority, and RSA, made when the
//! first entry asks for RS256; sealed as its other key is, and living by the same states.
//!
//! It is published before it signs anything, so that whoever has the bundle can check every token.
//! The private half lives inside the cryptographic library from the moment it is opened; its PKCS#8
//! form is in wiped memory only.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

use super::authorities::Authorities;
use super::error::AuthorityError;
use super::issuers::Opening;
use super::mirror::{Mirror, Step};
use super::room::Authority;
use crate::identity::{BundleDocument, JwtAlgorithm, JwtKey};
use crate::model::limits::JWT_KEY_REST;
use crate::model::{
    AuthorityState as State, Code, Digest, Failure, Reason, SecretValue,
    TokenAlgorithm as Algorithm,
};

/// The key as it stands in the authority's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JwtKeyRow {
    /// PKCS#8 as the vault sealed it, base64.
    pub key: String,
    /// When it was published; seconds since 1970.
    pub published: i64,
}

impl JwtKeyRow {
    /// A fresh key for this authority.
    pub(super) fn fresh(
        of: (&Digest, Algorithm),
        opening: &Opening,
        published: i64,
    ) -> Result<Self, AuthorityError> {
        let making = |_| AuthorityError::Crypto("making a key for tokens");
        let writing = |_| AuthorityError::Crypto("writing a key");
        let pkcs8 = match of.1 {
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
                pair.map_err(making)?.to_pkcs8v1().map_err(writing)?.as_ref().to_vec()
            }
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(making)?;
                let document: Pkcs8V1Der<'_> = pair.as_der().map_err(writing)?;
                document.as_ref().to_vec()
            }
        };
        let pkcs8 = SecretValue::new(pkcs8);
        let sealed = opening.keys.seal.seal(&label(of), &pkcs8);
        Ok(Self { key: STANDARD.encode(sealed), published })
    }
}

/// The key, opened.
pub(super) struct JwtSigner {
    authority: Digest,
    row: JwtKeyRow,
    pair: Pair,
    public: JwtKey,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl JwtSigner {
    /// Opens an authority's key. One that is sealed for another authority does not open.
    pub(super) fn open(
        of: (&Digest, Algorithm),
        row: &JwtKeyRow,
        opening: &Opening,
    ) -> Result<Self, AuthorityError> {
        let sealed = STANDARD.decode(&row.key).map_err(|_| AuthorityError::CaKey)?;
        let pkcs8 = opening.keys.seal.open(&label(of), &sealed).ok_or(AuthorityError::CaKey)?;
        let (pair, public) = match of.1 {
            Algorithm::Es256 => ec(pkcs8.expose())?,
            Algorithm::Rs256 => rsa(pkcs8.expose())?,
        };
        Ok(Self { authority: *of.0, row: row.clone(), pair, public })
    }

    /// Whether it is this authority's key for this algorithm, opened from this very row.
    pub(super) fn is(&self, of: (&Digest, Algorithm), row: &JwtKeyRow) -> bool {
        self.authority == *of.0 && self.algorithm() == of.1 && self.row == *row
    }

    /// What it signs with.
    pub(super) fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Ec(_) => Algorithm::Es256,
            Pair::Rsa(_) => Algorithm::Rs256,
        }
    }

    /// The authority that it is of.
    pub(super) fn authority(&self) -> &Digest {
        &self.authority
    }

    /// The public half, called by its thumbprint (RFC 7638).
    pub(super) fn public(&self) -> &JwtKey {
        &self.public
    }

    /// When it may sign for the first time, given when its authority was prepared: at once if it was
    /// published with that one, whose steps are waited for as they always are; else after a rest.
    pub(super) fn signs_from(&self, prepared: i64) -> i64 {
        let rest = i64::try_from(JWT_KEY_REST.as_secs()).unwrap_or(i64::MAX);
        match self.row.published > prepared {
            true => self.row.published.saturating_add(rest),
            false => prepared,
        }
    }

    /// A signature as JWS has it (RFC 7518 §§3.3 and 3.4).
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let random = SystemRandom::new();
        let failed = |_| AuthorityError::Crypto("signing a token");
        match &self.pair {
            Pair::Ec(pair) => Ok(pair.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

fn ec(pkcs8: &[u8]) -> Result<(Pair, JwtKey), AuthorityError> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
        .map_err(|_| AuthorityError::CaKey)?;
    let public = JwtKey::ec_by_thumbprint(pair.public_key().as_ref())
        .and_then(|key| key.only_for(JwtAlgorithm::Es256))
        .map_err(|_| AuthorityError::CaKey)?;
    Ok((Pair::Ec(pair), public))
}

fn rsa(pkcs8: &[u8]) -> Result<(Pair, JwtKey), AuthorityError> {
    let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| AuthorityError::CaKey)?;
    let (_, public) = RSAPublicKey::from_der(pair.public_key().as_ref())
        .map_err(|_| AuthorityError::Crypto("reading a public key"))?;
    // The sign bit of an INTEGER is no part of the number.
    let plain = |octets: &[u8]| octets.strip_prefix(&[0]).unwrap_or(octets).to_vec();
    let public = JwtKey::rsa_by_thumbprint(&plain(public.modulus), &plain(public.exponent))
        .and_then(|key| key.only_for(JwtAlgorithm::Rs256))
        .map_err(|_| AuthorityError::CaKey)?;
    Ok((Pair::Rsa(pair), public))
}

/// What a key is sealed under: it opens as this authority's key for such tokens, and as nothing else.
fn label((authority, algorithm): (&Digest, Algorithm)) -> String {
    match algorithm {
        Algorithm::Es256 => format!("jwt/{authority}"),
        Algorithm::Rs256 => format!("jwt-rs256/{authority}"),
    }
}

impl Authority {
    /// Authorities that sign, or will, and have no key for JWT-SVIDs, because they were made by a
    /// Doorward that knew none.
    ///
    /// # Errors
    /// None but a mirror that was never loaded.
    pub fn lacking_jwt_keys(&self) -> Result<Vec<Digest>, AuthorityError> {
        Ok(self.mirror().authorities()?.lacking_jwt_keys().collect())
    }

    /// Gives them theirs. Where devices may hold a bundle without the key, it rests for
    /// [`JWT_KEY_REST`] before it signs.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn make_jwt_keys(&self, under: Option<u64>) -> Result<(), AuthorityError> {
        let now = self.clock.now();
        let fresh = |id: Digest| {
            // Nobody can be without what was there before the first device was.
            let is_first = self.mirror().devices().len() == 0;
            let published = if is_first { i64::MIN } else { now.unix_s() };
            JwtKeyRow::fresh((&id, Algorithm::Es256), &self.opening, published).map(|row| (id, row))
        };
        let lacking = self.lacking_jwt_keys()?.into_iter();
        let made: Vec<_> = lacking.map(fresh).collect::<Result<_, _>>()?;
        let plan = |mirror: &Mirror| {
            let next = mirror.authorities()?.with_jwt_keys(&made);
            Ok((next.map(Step::Authorities).into_iter().collect(), ()))
        };
        self.change(under, plan).await.map(|_| ())
    }

    /// Keys for RS256 for those that sign, or will, and have none: made because an entry wants them.
    /// Like any key that comes to an authority that signs already, they rest.
    pub(super) async fn rs256_keys(&self) -> Result<Vec<(Digest, JwtKeyRow)>, AuthorityError> {
        let mirror = self.mirror();
        let lacking: Vec<Digest> = mirror.authorities()?.lacking_rs256().collect();
        let is_first = mirror.devices().len() == 0;
        let published = if is_first { i64::MIN } else { self.clock.now().unix_s() };
        let fresh = |id: Digest| {
            let row = JwtKeyRow::fresh((&id, Algorithm::Rs256), &self.opening, published);
            row.map(|row| (id, row))
        };
        lacking.into_iter().map(fresh).collect()
    }

    /// What the trust domain publishes of itself: everything that is trusted in it, roots and keys for
    /// JWT-SVIDs, of the prepared authority too, so that others know it before it signs.
    pub fn bundle_document(&self) -> Arc<BundleDocument> {
        self.issuers().document.clone()
    }
}

impl Authorities {
    /// Those that sign, or will, and have no key for JWT-SVIDs.
    fn lacking_jwt_keys(&self) -> impl Iterator<Item = Digest> + '_ {
        let lacks = |state| matches!(state, State::Active | State::Prepared);
        let lacking = self.members.iter().filter(move |it| it.jwt.is_none() && lacks(it.state));
        lacking.map(|it| it.id)
    }

    /// Those that sign, or will, and have no key for RS256.
    pub(super) fn lacking_rs256(&self) -> impl Iterator<Item = Digest> + '_ {
        let signs = |state| matches!(state, State::Active | State::Prepared);
        let lacking = self.members.iter().filter(move |it| it.rs256.is_none() && signs(it.state));
        lacking.map(|it| it.id)
    }

    /// The row with these keys for RS256; nothing where none is lacking.
    ///
    /// # Errors
    /// When another one lacks a key than when these were made.
    pub(super) fn with_rs256(&self, made: &[(Digest, JwtKeyRow)]) -> Result<Option<Self>, Failure> {
        if self.lacking_rs256().next().is_none() {
            return Ok(None);
        }
        let mut next = self.next();
        for (id, row) in made {
            let member = next.members.iter_mut().find(|it| it.id == *id && it.rs256.is_none());
            if let Some(member) = member {
                let published = row.published.max(member.prepared);
                member.rs256 = Some(JwtKeyRow { published, ..row.clone() });
            }
        }
        let is_whole = next.lacking_rs256().next().is_none();
        if is_whole {
            Ok(Some(next))
        } else {
            Err(Failure::new(Code::Unavailable, Reason::Changed))
        }
    }

    /// The row with these keys for those that have none; nothing if all have one.
    fn with_jwt_keys(&self, made: &[(Digest, JwtKeyRow)]) -> Option<Self> {
        let mut next = self.next();
        let mut any = false;
        for (id, row) in made {
            if let Some(member) = next.members.iter_mut().find(|it| it.id == *id)
                && member.jwt.is_none()
            {
                let published = row.published.max(member.prepared);
                member.jwt = Some(JwtKeyRow { published, ..row.clone() });
                any = true;
            }
        }
        any.then_some(next)
    }
}
