//! The roots of the trust domain that this agent has in force, and which identities on this machine
//! live by which authority.
//!
//! An identity is counted as long as the agent holds it, or a stream of the Workload API that it was
//! given on stays open. What a process took away and keeps without a stream, nobody here knows of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::identity::BundleDocument;
use crate::model::limits::{AUTHORITIES_MAX, CERTIFICATE_MAX, ROOTS_MAX};
use crate::model::{BundleRoot, TrustDomain};
use crate::wire::Leaf;

/// The roots in force.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Roots {
    /// As the broker numbers them; 0 before it has told.
    pub(super) sequence: u64,
    /// The authorities that this agent trusts by itself, in the broker's order.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// What workloads are told to trust, where that is something else: a company's roots above those.
    published: Vec<CertificateDer<'static>>,
    /// The keys for JWT-SVIDs, of each trust domain by itself. Empty before the broker has told.
    pub(super) jwt: HashMap<TrustDomain, BundleDocument>,
    /// Names of those whose certificates shall be replaced now.
    tainted: Vec<Vec<u8>>,
}

impl Roots {
    /// Those out of a directory, of which no more is known.
    pub(super) fn kept(certificates: &[CertificateDer<'static>]) -> Self {
        Self { certificates: certificates.to_vec(), ..Self::default() }
    }

    /// The same with the keys for JWT-SVIDs of our own trust domain. One that is of no kind known here
    /// is left out and costs the others nothing; `None` for a set that is none.
    pub(super) fn with_jwt_keys(mut self, domain: &TrustDomain, keys: &[Value]) -> Option<Self> {
        let set = json!({ "keys": keys }).to_string();
        let read = BundleDocument::parse(domain.clone(), set.as_bytes()).ok()?;
        if !read.jwt_keys().is_empty() {
            self.jwt.insert(domain.clone(), read);
        }
        Some(self)
    }

    /// What workloads are told to trust; nothing before the broker has told.
    pub(super) fn published(&self) -> &[CertificateDer<'static>] {
        match (self.sequence, self.published.is_empty()) {
            (0, _) => &[],
            (_, true) => &self.certificates,
            (_, false) => &self.published,
        }
    }

    /// Whether workloads are told the same by both. Of those out of a directory only the authorities are
    /// known, which do as long as they are the same.
    pub(super) fn tell_the_same_as(&self, other: &Self) -> bool {
        match self.sequence == 0 || other.sequence == 0 {
            true => self.certificates == other.certificates,
            false => self.published() == other.published(),
        }
    }

    /// The same with what others trust; `None` for what is none.
    pub(super) fn with_published(mut self, roots: &[String]) -> Option<Self> {
        if !roots.is_empty() {
            self.published = published(roots)?;
        }
        Some(self)
    }

    /// Those that the broker told; `None` for what is none, too many, or other text.
    pub(super) fn told(sequence: u64, roots: &[BundleRoot]) -> Option<Self> {
        if roots.is_empty() || roots.len() > AUTHORITIES_MAX {
            return None;
        }
        let mut told = Self { sequence, ..Self::default() };
        for root in roots {
            let der = STANDARD.decode(&root.certificate).ok()?;
            if der.len() > CERTIFICATE_MAX {
                return None;
            }
            if root.tainted {
                told.tainted.push(Leaf::parse(&der).ok()?.subject);
            }
            told.certificates.push(der.into());
        }
        Some(told)
    }

    /// Whether this certificate shall be replaced now.
    pub(super) fn taints(&self, chain: &[CertificateDer<'_>]) -> bool {
        !self.tainted.is_empty() && self.tainted.contains(&issuer(chain))
    }
}

/// Roots out of an answer; `None` for none, too many, or other text.
pub(super) fn published(texts: &[String]) -> Option<Vec<CertificateDer<'static>>> {
    if texts.is_empty() || texts.len() > ROOTS_MAX {
        return None;
    }
    let one = |text: &String| {
        let der = STANDARD.decode(text).ok()?;
        let fits = !der.is_empty() && der.len() <= CERTIFICATE_MAX;
        fits.then(|| der.into())
    };
    texts.iter().map(one).collect()
}

/// Who signed a chain's leaf; nothing where that can't be read.
fn issuer(chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let leaf = chain.first().and_then(|leaf| Leaf::parse(leaf).ok());
    leaf.map(|leaf| leaf.issuer).unwrap_or_default()
}

type Counts = HashMap<Vec<u8>, u32>;

/// How many identities live by which authority. Bounded by the authorities that there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Counts>>);

/// One identity in the ledger; dropping it takes it out.
#[derive(Debug)]
pub(super) struct Counted {
    issuer: Vec<u8>,
    ledger: Ledger,
}

impl Ledger {
    /// Counts an identity.
    pub(super) fn count(&self, chain: &[CertificateDer<'_>]) -> Counted {
        let issuer = issuer(chain);
        let mut counts = self.counts();
        let count = counts.entry(issuer.clone()).or_default();
        *count = count.saturating_add(1);
        drop(counts);
        Counted { issuer, ledger: self.clone() }
    }

    /// How many shall be replaced now.
    pub(super) fn tainted(&self, roots: &Roots) -> u32 {
        let counts = self.counts();
        let of = |name: &Vec<u8>| counts.get(name).copied().unwrap_or(0);
        roots.tainted.iter().map(of).fold(0, u32::saturating_add)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.ledger.counts();
        let left = counts.get(&self.issuer).copied().unwrap_or(0).saturating_sub(1);
        match left {
            0 => drop(counts.remove(&self.issuer)),
            left => drop(counts.insert(std::mem::take(&mut self.issuer), left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(by: &str) -> (CertificateDer<'static>, CertificateDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, by);
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = rcgen::Issuer::new(params, &key);
        let leaf = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::default().signed_by(&leaf, &issuer).unwrap();
        (root, leaf.der().clone())
    }

    fn told(roots: &[(&CertificateDer<'_>, bool)]) -> Option<Roots> {
        let root = |(der, tainted): &(&CertificateDer<'_>, bool)| BundleRoot {
            certificate: STANDARD.encode(der),
            tainted: *tainted,
        };
        Roots::told(7, &roots.iter().map(root).collect::<Vec<_>>())
    }

    #[test]
    fn only_what_a_tainted_authority_signed_is_counted_and_only_while_it_is_held() {
        let ((old, by_old), (new, by_new)) = (signed("old"), signed("new"));
        let ledger = Ledger::default();
        let (by_old, by_new) = ([by_old], [by_new]);
        let (one, two) = (ledger.count(&by_old), ledger.count(&by_old));
        let _new = ledger.count(&by_new);
        let before = told(&[(&new, false), (&old, false)]).unwrap();
        assert_eq!((ledger.tainted(&before), before.taints(&by_old)), (0, false));
        let roots = told(&[(&new, false), (&old, true)]).unwrap();
        assert_eq!(ledger.tainted(&roots), 2);
        assert!(roots.taints(&by_old) && !roots.taints(&by_new) && !roots.taints(&[]));
        drop(one);
        assert_eq!(ledger.tainted(&roots), 1);
        drop(two);
        assert_eq!(ledger.tainted(&roots), 0);
        assert_eq!(ledger.counts().len(), 1, "nothing stays of what nobody holds");
    }

    #[test]
    fn keys_for_tokens_are_taken_as_far_as_they_are_known_and_only_to_check_tokens() {
        let (root, _) = signed("root");
        let domain = TrustDomain::parse("corp.example").unwrap();
        let roots = || told(&[(&root, false)]).unwrap();
        let point = |seed: u8| {
            let signing = &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
            let pair = aws_lc_rs::signature::EcdsaKeyPair::generate(signing).unwrap();
            let point = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref().to_vec();
            crate::identity::JwtKey::ec(&format!("k{seed}"), &point).unwrap().to_jwk()
        };
        let kids = |keys: &[Value]| {
            let taken = roots().with_jwt_keys(&domain, keys)?;
            let keys = taken.jwt.get(&domain).map(|set| set.jwt_keys().to_vec());
            let keys = keys.unwrap_or_default();
            Some(keys.iter().map(|key| key.key_id().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(kids(&[]), Some(vec![]), "a broker that tells none");
        let (one, two) = (point(1), point(2));
        assert_eq!(kids(&[one.clone(), two.clone()]), Some(vec!["k1".into(), "k2".into()]));
        let mut odd = one.clone();
        odd["kty"] = json!("AKP");
        let mut other = one.clone();
        other["use"] = json!("wit-svid");
        assert_eq!(kids(&[odd, two, other, json!(7)]), Some(vec!["k2".into()]));
        assert_eq!(kids(&[one.clone(), one]), None, "two of one id");
    }

    #[test]
    fn workloads_are_told_the_roots_above_where_there_are_some() {
        let ((own, _), (company, _)) = (signed("own"), signed("company"));
        let roots = || told(&[(&own, false)]).unwrap();
        let with = |texts: &[String]| roots().with_published(texts);
        assert_eq!(with(&[]).unwrap().published(), std::slice::from_ref(&own), "they are the same");
        let text = STANDARD.encode(&company);
        let above = with(std::slice::from_ref(&text)).unwrap();
        assert_eq!(above.published(), std::slice::from_ref(&company));
        assert!(!above.tell_the_same_as(&roots()));
        let kept = Roots::kept(std::slice::from_ref(&own));
        assert!(kept.published().is_empty(), "nobody has said what others trust");
        assert!(kept.tell_the_same_as(&above) && above.tell_the_same_as(&kept));
        assert_eq!(
            above.certificates,
            std::slice::from_ref(&own),
            "the agent itself trusts its own authorities only"
        );
        assert!(with(&vec![text.clone(); ROOTS_MAX + 1]).is_none());
        assert!(with(&[text, "?".into()]).is_none());
        assert!(with(&[String::new()]).is_none());
    }

    #[test]
    fn what_is_no_bundle_is_not_taken() {
        let (root, _) = signed("root");
        assert_eq!(told(&[(&root, false)]).unwrap().certificates, std::slice::from_ref(&root));
        assert!(told(&[]).is_none());
        assert!(told(&[(&root, false); AUTHORITIES_MAX + 1]).is_none());
        let text = |text: &str| BundleRoot { certificate: text.into(), tainted: true };
        assert!(Roots::told(1, &[text("?")]).is_none());
        assert!(Roots::told(1, &[text("AAAA")]).is_none(), "a tainted one that can't be named");
    }
}
