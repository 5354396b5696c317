//! The authorities of the store, opened: keys ready to sign, and the roots that identity trusts.
//!
//! Immutable; a change of the row makes a new one, whose keys that are open already stay so.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;

use super::authorities::{Authorities, Member};
use super::ca::{Ca, ClockTrust, Root};
use super::error::AuthorityError;
use super::jwt_key::{JwtKeyRow, JwtSigner};
use super::key_seal::CaKeys;
use super::upstream::{Above, Over, ReadUpstream, UpstreamError, made};
use crate::identity::{Bundle, BundleDocument};
use crate::model::limits::JWKS_FRESH;
use crate::model::{
    AuthorityState, Digest, Moment, SecretValue, TokenAlgorithm as Algorithm, TrustDomain,
};

/// What opening needs beside the row.
pub(super) struct Opening {
    pub domain: TrustDomain,
    pub keys: CaKeys,
    pub clock: Arc<ClockTrust>,
    /// Reads who stands above the next authority; none if it is a root.
    pub upstream: Option<ReadUpstream>,
}

/// All of them, opened.
pub(super) struct Issuers {
    /// The one that signs.
    pub active: Arc<Ca>,
    /// All that are trusted, in the row's order.
    pub all: Vec<Arc<Ca>>,
    /// The keys for JWT-SVIDs of those that are trusted for what they have signed, in the same order.
    pub signers: Vec<Arc<JwtSigner>>,
    /// Those of them that sign, one for each algorithm.
    pub jwt: Vec<Arc<JwtSigner>>,
    /// When the authority that signs was prepared.
    pub prepared: i64,
    /// What the trust domain publishes of itself.
    pub document: Arc<BundleDocument>,
    /// The authorities themselves by trust domain, for the view: whoever else stands below a company's
    /// root is nobody here.
    pub bundles: Arc<HashMap<TrustDomain, Bundle>>,
    /// Their keys, for the view.
    pub own_issuers: Arc<HashSet<Digest>>,
    /// Those, and the keys of who stands above.
    pub all_keys: HashSet<Digest>,
}

impl Issuers {
    /// Opens the row's authorities, those in `former` excepted.
    pub(super) fn open(
        row: &Authorities,
        former: Option<&Self>,
        opening: &Opening,
        now: Moment,
    ) -> Result<Self, AuthorityError> {
        let mut all = Vec::with_capacity(row.members.len());
        for member in &row.members {
            let held = former.and_then(|former| former.all.iter().find(|ca| ca.id() == member.id));
            all.push(match held {
                Some(held) => Arc::clone(held),
                None => Arc::new(open_one(member, opening, now)?),
            });
        }
        let active = row.members.iter().position(|it| it.state == AuthorityState::Active);
        let active = active.and_then(|at| all.get(at)).cloned();
        let roots: Vec<_> = all.iter().map(|ca| ca.root().clone()).collect();
        let mut published: Vec<CertificateDer<'static>> = Vec::new();
        for root in all.iter().flat_map(|ca| ca.published()) {
            // One of our own that was revoked is trusted no more, whatever a company's file holds.
            let revoked = row.revoked.contains_key(&Digest::of(root));
            if !revoked && !published.contains(root) {
                published.push(root.clone());
            }
        }
        let signers = open_signers(row, former, opening)?;
        let signing = row.active().ok_or(AuthorityError::CaMissing)?;
        let of_it = signers.iter().filter(|signer| *signer.authority() == signing.id);
        let (jwt, prepared) = (of_it.cloned().collect(), signing.prepared);
        let keys = signers.iter().map(|signer| signer.public().clone()).collect();
        let domain = opening.domain.clone();
        let document = BundleDocument::new(domain, published, keys, row.sequence, JWKS_FRESH)
            .map_err(|_| AuthorityError::CaDamaged("two authorities have one key"))?;
        Ok(Self {
            signers,
            jwt,
            prepared,
            document: Arc::new(document),
            active: active.ok_or(AuthorityError::CaMissing)?,
            bundles: Arc::new(HashMap::from([(opening.domain.clone(), Bundle { roots })])),
            own_issuers: Arc::new(all.iter().map(|ca| ca.key()).collect()),
            all_keys: all
                .iter()
                .flat_map(|ca| ca.over().into_iter().flat_map(Over::keys).chain([ca.key()]))
                .collect(),
            all,
        })
    }

    /// Whether the key is that of an authority, or of who stands above one.
    pub(super) fn is_key(&self, key: &Digest) -> bool {
        self.all_keys.contains(key)
    }

    /// What our own verifiers trust (DER, base64).
    pub(super) fn roots(&self) -> Vec<String> {
        self.all.iter().map(|ca| STANDARD.encode(ca.root())).collect()
    }

    /// What others trust (DER, base64), where that is something else: nothing if it is not.
    pub(super) fn published(&self) -> Vec<String> {
        match self.all.iter().any(|ca| ca.over().is_some()) {
            true => self.document.x509_roots().iter().map(|der| STANDARD.encode(der)).collect(),
            false => Vec::new(),
        }
    }
}

/// The keys for JWT-SVIDs. A tainted authority's is not among them: tokens end in minutes and are
/// asked for anew, so nobody need be given time.
fn open_signers(
    row: &Authorities,
    former: Option<&Issuers>,
    opening: &Opening,
) -> Result<Vec<Arc<JwtSigner>>, AuthorityError> {
    let mut signers = Vec::with_capacity(row.members.len());
    for member in row.members.iter().filter(|it| it.state != AuthorityState::Tainted) {
        let keys = [(&member.jwt, Algorithm::Es256), (&member.rs256, Algorithm::Rs256)];
        for (key, algorithm) in keys {
            let Some(key) = key else { continue };
            let of = (&member.id, algorithm);
            let held = former.and_then(|it| it.signers.iter().find(|it| it.is(of, key)));
            signers.push(match held {
                Some(held) => Arc::clone(held),
                None => Arc::new(JwtSigner::open(of, key, opening)?),
            });
        }
    }
    Ok(signers)
}

fn open_one(member: &Member, opening: &Opening, now: Moment) -> Result<Ca, AuthorityError> {
    let root = Root::read(&member.certificate, &opening.domain, member.above.is_some())?;
    let over = member.above.as_ref().map(Above::read).transpose()?;
    let key = match &member.key {
        None => SecretValue::new(opening.keys.first.expose().to_vec()),
        Some(sealed) => {
            let sealed = STANDARD.decode(sealed).map_err(|_| AuthorityError::CaKey)?;
            let opened = opening.keys.seal.open(&label(&member.id), &sealed);
            opened.ok_or(AuthorityError::CaKey)?
        }
    };
    let ca = Ca::open(root, &key, &opening.domain, Arc::clone(&opening.clock), now)?;
    Ok(ca.below(over))
}

/// A fresh authority, its key sealed; active or prepared, as `state` says. A root, or below whoever the
/// configuration names.
pub(super) fn fresh(
    opening: &Opening,
    state: AuthorityState,
    with_rs256: bool,
    now: Moment,
) -> Result<Member, UpstreamError> {
    let (certificate, key, above) = match &opening.upstream {
        None => {
            let (certificate, key) = Ca::create(&opening.domain, now)?;
            (certificate, key, None)
        }
        Some(read) => {
            let made = made(&read()?, &opening.domain, now)?;
            (made.certificate, made.key, Some(made.above))
        }
    };
    let id = Root::read(&certificate, &opening.domain, above.is_some())?.id;
    let sealed = opening.keys.seal.seal(&label(&id), &key);
    let key = |algorithm| JwtKeyRow::fresh((&id, algorithm), opening, now.unix_s());
    let jwt = Some(key(Algorithm::Es256)?);
    let rs256 = with_rs256.then(|| key(Algorithm::Rs256)).transpose()?;
    let is_active = state == AuthorityState::Active;
    Ok(Member {
        id,
        certificate,
        state,
        prepared: now.unix_s(),
        activated: is_active.then(|| now.unix_s()),
        retired: None,
        tainted: None,
        key: Some(STANDARD.encode(sealed)),
        jwt,
        rs256,
        above,
    })
}

/// What a key is sealed under: it opens as this authority's and as no other's.
fn label(id: &Digest) -> String {
    format!("ca/{id}")
}
