//! The key of an authority that signs JWT-SVIDs: P-256, made with the authority, sealed as its other
//! key is, and living by the same states.
//!
//! It is published before it signs anything, so that whoever has the bundle can check every token.
//! The private half lives inside the cryptographic library from the moment it is opened; its PKCS#8
//! form is in wiped memory only.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::authorities::Authorities;
use super::error::AuthorityError;
use super::issuers::Opening;
use super::mirror::{Mirror, Step};
use super::room::Authority;
use crate::identity::{BundleDocument, JwtAlgorithm, JwtKey};
use crate::model::limits::JWT_KEY_REST;
use crate::model::{AuthorityState as State, Digest, SecretValue};

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
        authority: &Digest,
        opening: &Opening,
        published: i64,
    ) -> Result<Self, AuthorityError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| AuthorityError::Crypto("making a key for tokens"))?;
        let document = pair.to_pkcs8v1().map_err(|_| AuthorityError::Crypto("writing a key"))?;
        let pkcs8 = SecretValue::new(document.as_ref().to_vec());
        let sealed = opening.keys.seal.seal(&label(authority), &pkcs8);
        Ok(Self { key: STANDARD.encode(sealed), published })
    }
}

/// The key, opened.
pub(super) struct JwtSigner {
    authority: Digest,
    row: JwtKeyRow,
    pair: EcdsaKeyPair,
    public: JwtKey,
}

impl JwtSigner {
    /// Opens an authority's key. One that is sealed for another authority does not open.
    pub(super) fn open(
        authority: &Digest,
        row: &JwtKeyRow,
        opening: &Opening,
    ) -> Result<Self, AuthorityError> {
        let sealed = STANDARD.decode(&row.key).map_err(|_| AuthorityError::CaKey)?;
        let opened = opening.keys.seal.open(&label(authority), &sealed);
        let pkcs8 = opened.ok_or(AuthorityError::CaKey)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.expose())
            .map_err(|_| AuthorityError::CaKey)?;
        let public = JwtKey::ec_by_thumbprint(pair.public_key().as_ref())
            .and_then(|key| key.only_for(JwtAlgorithm::Es256))
            .map_err(|_| AuthorityError::CaKey)?;
        Ok(Self { authority: *authority, row: row.clone(), pair, public })
    }

    /// Whether it is this authority's key, opened from this very row.
    pub(super) fn is(&self, authority: &Digest, row: &JwtKeyRow) -> bool {
        self.authority == *authority && self.row == *row
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

    /// A signature as JWS has it (RFC 7518 §3.4).
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AuthorityError> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_| AuthorityError::Crypto("signing a token"))?;
        Ok(signature.as_ref().to_vec())
    }
}

/// What a key is sealed under: it opens as this authority's key for tokens, and as nothing else.
fn label(authority: &Digest) -> String {
    format!("jwt/{authority}")
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
            JwtKeyRow::fresh(&id, &self.opening, published).map(|row| (id, row))
        };
        let lacking = self.lacking_jwt_keys()?.into_iter();
        let made: Vec<_> = lacking.map(fresh).collect::<Result<_, _>>()?;
        let plan = |mirror: &Mirror| {
            let next = mirror.authorities()?.with_jwt_keys(&made);
            Ok((next.map(Step::Authorities).into_iter().collect(), ()))
        };
        self.change(under, plan).await.map(|_| ())
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
