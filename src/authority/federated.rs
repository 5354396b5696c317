//! The relationships with other trust domains as the store keeps them, and which bundle may follow
//! which.
//!
//! One row a domain: nothing of one domain ever stands in the row of another. A bundle is judged as a
//! whole before it takes the place of the one before; what is refused changes nothing, and the last
//! good one stays in force.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::AuthorityError;
use super::records::damaged;
use crate::identity::{Bundle, BundleDocument, BundleError, JwtKey};
use crate::model::limits::{FEDERATED_BYTES_MAX, FEDERATIONS_MAX};
use crate::model::{Digest, Endpoint, Failure, RelationshipId, TrustDomain};
use crate::store::Table;

/// What the rows begin with, beside those of the CA.
pub(super) const FEDERATION_PREFIX: &[u8] = b"federation/";

/// The key of a domain's row.
pub(super) fn row_of(domain: &TrustDomain) -> Vec<u8> {
    [FEDERATION_PREFIX, domain.as_str().as_bytes()].concat()
}

/// One relationship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FederationRecord {
    pub v: u64,
    pub id: RelationshipId,
    pub trust_domain: TrustDomain,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Seconds since 1970.
    pub added: i64,
    /// The document in force, as this program writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// When it was fetched or brought, to the hour; seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<i64>,
}

/// One relationship in memory.
#[derive(Debug, Clone)]
pub(super) struct Relationship {
    pub record: Arc<FederationRecord>,
    pub document: Option<Arc<BundleDocument>>,
    revision: u64,
}

/// All relationships; copies share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Federated {
    all: Arc<BTreeMap<TrustDomain, Relationship>>,
    /// Another one whenever a root in force is another.
    roots: Arc<HashMap<TrustDomain, Bundle>>,
    /// The revision at which a bundle was last another.
    changed: u64,
}

impl Federated {
    /// All, in the order of their domains.
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &Relationship> {
        self.all.values()
    }

    /// The relationship with a domain.
    pub(super) fn of(&self, domain: &TrustDomain) -> Option<&Relationship> {
        self.all.get(domain)
    }

    /// The revision of a domain's row.
    pub(super) fn revision(&self, domain: &TrustDomain) -> Option<u64> {
        self.of(domain).map(|held| held.revision)
    }

    /// The revision at which a bundle was last another: what agents tell news by.
    pub(super) fn changed(&self) -> u64 {
        self.changed
    }

    /// Roots by trust domain, for the view.
    pub(super) fn roots(&self) -> HashMap<TrustDomain, Bundle> {
        (*self.roots).clone()
    }

    /// Whether no root has changed between the two.
    pub(super) fn roots_are_those_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.roots, &other.roots)
    }

    /// What a step leaves.
    pub(super) fn step(
        &mut self,
        domain: &TrustDomain,
        record: Option<FederationRecord>,
        revision: u64,
    ) {
        // A step was planned from a document that had been read.
        let put = record.map(|record| self.put(record, revision));
        if !matches!(put, Some(Ok(()))) {
            self.changed = self.changed.max(revision);
            Arc::make_mut(&mut self.all).remove(domain);
            Arc::make_mut(&mut self.roots).remove(domain);
        }
    }

    /// Takes a row in.
    ///
    /// # Errors
    /// When its bundle does not read back.
    pub(super) fn put(
        &mut self,
        record: FederationRecord,
        revision: u64,
    ) -> Result<(), AuthorityError> {
        let domain = record.trust_domain.clone();
        let former = self.all.get(&domain);
        if former.and_then(|held| held.record.bundle.as_ref()) != record.bundle.as_ref() {
            self.changed = self.changed.max(revision); // a look that found the same is no news
        }
        let document = match (&record.bundle, former) {
            (None, _) => None,
            (Some(text), Some(held)) if held.record.bundle.as_ref() == Some(text) => {
                held.document.clone()
            }
            (Some(text), _) => {
                let read = BundleDocument::parse(domain.clone(), text.as_bytes());
                let bad = |_| damaged(Table::Authority, &row_of(&domain));
                Some(Arc::new(read.map_err(bad)?))
            }
        };
        let roots = document.as_ref().map(|it| it.x509_roots());
        if self.roots.get(&domain).map(|held| held.roots.as_slice()) != roots {
            let all = Arc::make_mut(&mut self.roots);
            match &document {
                Some(document) => drop(all.insert(domain.clone(), document.to_roots())),
                None => drop(all.remove(&domain)),
            }
        }
        let held = Relationship { record: Arc::new(record), document, revision };
        Arc::make_mut(&mut self.all).insert(domain, held);
        Ok(())
    }

    /// That one more relationship, or another bundle of this one, has room.
    ///
    /// # Errors
    /// What is full.
    pub(super) fn check_room(&self, domain: &TrustDomain, bundle: usize) -> Result<(), Failure> {
        let others = || self.all().filter(|it| it.record.trust_domain != *domain);
        if others().count() >= FEDERATIONS_MAX {
            return Err(Failure::too_large(format!(
                "{FEDERATIONS_MAX} trust domains are federated with already; remove one first"
            )));
        }
        let held = others().filter_map(|it| it.record.bundle.as_ref()).map(String::len);
        let bytes = held.fold(bundle, usize::saturating_add);
        match bytes > FEDERATED_BYTES_MAX {
            true => Err(Failure::too_large(format!(
                "all federated bundles together would have {bytes} bytes, more than \
                 {FEDERATED_BYTES_MAX}; remove a relationship first"
            ))),
            false => Ok(()),
        }
    }
}

/// Why a bundle does not take the place of the last good one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FederationError {
    /// It is no bundle document.
    #[error("it is no bundle document: {0}")]
    Document(#[from] BundleError),
    /// What is kept of it would not be read back.
    #[error("as it is kept here, each key with all its members, it is too large: {0} bytes")]
    Kept(usize),
    /// None of its keys can be used.
    #[error(
        "none of its {0} keys can be used; an empty `keys` says that nothing is trusted any more"
    )]
    Nothing(usize),
    /// One of our own keys stands in it.
    #[error("it holds a key of our own trust domain, or of who stands above its authorities")]
    OurKey,
    /// Its workloads would be devices here.
    #[error(
        "it holds a root of the enrolment method `{0}`: each of its workloads could enrol here as a \
         device; give one of the two a root of its own"
    )]
    DeviceRoot(String),
    /// A root in it names another domain as its own.
    #[error("it holds a root of another trust domain: {0:?}")]
    AnothersRoot(Box<str>),
    /// It is older than what is in force.
    #[error("its sequence number is {next}, older than {held}, which is in force")]
    Older {
        /// In force.
        held: u64,
        /// In the document.
        next: u64,
    },
    /// It is another one under the same number.
    #[error("its contents are others than those in force, under the same sequence number {0}")]
    SameSequence(u64),
    /// It has no number, what is in force has one.
    #[error("it has no sequence number, although {0} is in force")]
    NoSequence(u64),
}

/// How a document stands to the one in force.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weighed {
    /// The same.
    Same,
    /// It takes its place.
    Newer,
}

/// Reads a document and judges it for itself: whose keys stand in it.
///
/// # Errors
/// Why it is not taken.
pub(super) fn read(
    domain: &TrustDomain,
    bytes: &[u8],
    own_keys: &HashSet<Digest>,
) -> Result<BundleDocument, FederationError> {
    let document = BundleDocument::parse(domain.clone(), bytes)?;
    let used = document.x509_roots().len().saturating_add(document.jwt_keys().len());
    if used == 0 && !document.ignored().is_empty() {
        return Err(FederationError::Nothing(document.ignored().len()));
    }
    for root in document.x509_roots() {
        check_root(root, domain, own_keys)?;
    }
    // What the store keeps must read back: a row that does not would stop the next start.
    let kept = document.to_json();
    match BundleDocument::parse(domain.clone(), &kept).is_ok_and(|read| read.to_json() == kept) {
        true => Ok(document),
        false => Err(FederationError::Kept(kept.len())),
    }
}

/// Judges a document by the one in force: its number never goes back.
///
/// # Errors
/// Why it is not taken.
pub(super) fn weigh(
    held: Option<&BundleDocument>,
    next: &BundleDocument,
) -> Result<Weighed, FederationError> {
    let Some(held) = held else { return Ok(Weighed::Newer) };
    let same_keys = keys_of(held) == keys_of(next);
    let same = same_keys
        && held.sequence() == next.sequence()
        && held.refresh_hint() == next.refresh_hint();
    match (held.sequence(), next.sequence()) {
        _ if same => Ok(Weighed::Same),
        (Some(held), None) => Err(FederationError::NoSequence(held)),
        (Some(held), Some(next)) if next < held => Err(FederationError::Older { held, next }),
        (Some(held), Some(next)) if next == held && !same_keys => {
            Err(FederationError::SameSequence(held))
        }
        _ => Ok(Weighed::Newer),
    }
}

/// Its keys in one order: issuers that keep theirs in a hash table write them in any.
fn keys_of(document: &BundleDocument) -> (Vec<&[u8]>, Vec<&JwtKey>) {
    let mut roots: Vec<&[u8]> = document.x509_roots().iter().map(AsRef::as_ref).collect();
    let mut keys: Vec<&JwtKey> = document.jwt_keys().iter().collect();
    roots.sort_unstable();
    keys.sort_by(|one, other| one.key_id().cmp(other.key_id()));
    (roots, keys)
}

/// A root that is one of ours, or that says itself whose it is: another's.
fn check_root(
    root: &CertificateDer<'_>,
    domain: &TrustDomain,
    own_keys: &HashSet<Digest>,
) -> Result<(), FederationError> {
    // What does not parse is judged, and left out, by the verifier.
    let Ok((_, read)) = X509Certificate::from_der(root) else { return Ok(()) };
    if own_keys.contains(&Digest::of(read.public_key().raw)) {
        return Err(FederationError::OurKey);
    }
    let Ok(Some(names)) = read.subject_alternative_name() else { return Ok(()) };
    for name in &names.value.general_names {
        let GeneralName::URI(uri) = name else { continue };
        let Some(rest) = uri.strip_prefix("spiffe://") else { continue };
        let named = rest.split('/').next().unwrap_or_default();
        if named != domain.as_str() {
            let named = named.chars().filter(|c| !c.is_control()).take(255).collect::<String>();
            return Err(FederationError::AnothersRoot(named.into()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The members that a root need not have are written out where it is kept.
    #[test]
    fn what_is_taken_reads_back_and_what_would_not_is_refused() {
        use crate::model::limits::BUNDLE_DOCUMENT_MAX;
        use base64::Engine as _;
        const ROOTS: usize = 50;
        let key = rcgen::KeyPair::generate().unwrap();
        let document = |filled: usize| {
            let one = |n: usize| {
                let mut params = rcgen::CertificateParams::default();
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
                let name = format!("{n:04}{}", "x".repeat(filled));
                params.distinguished_name.push(rcgen::DnType::CommonName, name);
                let root = params.self_signed(&key).unwrap();
                let text = base64::engine::general_purpose::STANDARD.encode(root.der());
                format!(r#"{{"kty":"EC","use":"x509-svid","x5c":["{text}"]}}"#)
            };
            let keys: Vec<String> = (0..ROOTS).map(one).collect();
            format!(r#"{{"keys":[{}]}}"#, keys.join(",")).into_bytes()
        };
        let domain = TrustDomain::parse("b.example").unwrap();
        let read = |bytes: &[u8]| super::read(&domain, bytes, &HashSet::new());
        let taken = read(&document(5_000)).unwrap();
        assert_eq!(taken.x509_roots().len(), ROOTS, "control");
        assert!(BundleDocument::parse(domain.clone(), &taken.to_json()).is_ok());
        // As large as may come: subject and issuer, each in base64, in every root.
        let room = BUNDLE_DOCUMENT_MAX - document(5_000).len();
        let full = document(5_000 + room * 3 / (4 * 2 * ROOTS) - 2);
        assert!((BUNDLE_DOCUMENT_MAX - 2_000..=BUNDLE_DOCUMENT_MAX).contains(&full.len()));
        assert!(BundleDocument::parse(domain.clone(), &full).is_ok(), "by itself it is one");
        assert!(matches!(read(&full), Err(FederationError::Kept(_))));
    }

    #[test]
    fn the_order_of_keys_is_no_news() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/svid/bundle");
        let text = std::fs::read(folder.join("001-the-good-document.json")).unwrap();
        let vector: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let mut value: serde_json::Value =
            serde_json::from_str(vector["data"].as_str().unwrap()).unwrap();
        let domain = TrustDomain::parse("b.example").unwrap();
        let parse = |value: &serde_json::Value| {
            BundleDocument::parse(domain.clone(), value.to_string().as_bytes()).unwrap()
        };
        let held = parse(&value);
        let keys = value["keys"].as_array_mut().unwrap();
        assert!(keys.len() > 2);
        keys.reverse();
        let turned = parse(&value);
        assert_eq!(weigh(Some(&held), &turned).unwrap(), Weighed::Same);
        value["keys"].as_array_mut().unwrap().pop();
        assert!(weigh(Some(&held), &parse(&value)).is_err(), "one less is another");
    }
}
