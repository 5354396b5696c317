//! A view with its roots read: what verifying and recognising look things up in.
//!
//! Roots are judged when a view is installed, by the same rules as any other issuer; one that
//! breaks a rule is left out and named in [`Trust::faults`]. Domains are never merged (invariant
//! I11).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::{CertificateDer, TrustAnchor};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::peer::Task;
use super::svid_error::SvidError;
use super::view::{Bundle, View};
use crate::model::{Digest, SpiffeId, TrustDomain};

/// What is remembered of a root beside its anchor.
#[derive(Debug)]
pub(super) struct Root {
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(super) key: Digest,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    pub(super) path_length: Option<u8>,
}

/// The usable roots of one trust domain.
#[derive(Debug, Default)]
pub(super) struct Roots {
    /// In the form that webpki takes; one for each of `roots`, in the same order.
    anchors: Vec<TrustAnchor<'static>>,
    roots: Vec<Root>,
    faults: Vec<SvidError>,
}

impl Roots {
    fn read(domain: &TrustDomain, bundle: &Bundle) -> Self {
        let mut read = Self::default();
        for der in &bundle.roots {
            match read_root(domain, der) {
                Ok((anchor, root)) => {
                    read.anchors.push(anchor);
                    read.roots.push(root);
                }
                Err(fault) => read.faults.push(fault),
            }
        }
        read
    }

    /// For webpki.
    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The roots that stand behind an anchor: several when a key was certified anew.
    pub(super) fn behind<'r>(&'r self, anchor: &TrustAnchor<'_>) -> impl Iterator<Item = &'r Root> {
        let same = move |known: &TrustAnchor<'_>| {
            known.subject == anchor.subject
                && known.subject_public_key_info == anchor.subject_public_key_info
        };
        self.anchors.iter().zip(&self.roots).filter(move |(a, _)| same(a)).map(|(_, root)| root)
    }

    /// Whether a root key is (still) among them.
    pub(super) fn hold(&self, key: &Digest) -> bool {
        self.roots.iter().any(|root| root.key == *key)
    }
}

fn read_root(
    domain: &TrustDomain,
    der: &CertificateDer<'static>,
) -> Result<(TrustAnchor<'static>, Root), SvidError> {
    let certificate = Certificate::read(der)?;
    check_issuer(&certificate, domain)?;
    let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_| SvidError::Malformed)?;
    let root = Root {
        key: Digest::of(certificate.spki),
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        path_length: certificate.constraints.and_then(|constraints| constraints.path_length),
    };
    Ok((anchor.to_owned(), root))
}

/// The rules for signing certificates (X509-SVID §4, and our limits on top).
///
/// # Errors
/// The first rule that it breaks.
pub(super) fn check_issuer(
    issuer: &Certificate<'_>,
    domain: &TrustDomain,
) -> Result<(), SvidError> {
    if !issuer.constraints.is_some_and(|constraints| constraints.authority) {
        return Err(SvidError::IssuerNotAuthority);
    }
    if !issuer.key_usage.is_some_and(|usage| usage.cert_sign) {
        return Err(SvidError::IssuerSignsNoCertificates);
    }
    if issuer.name_constraints {
        return Err(SvidError::NameConstraints);
    }
    if issuer.unknown_critical {
        return Err(SvidError::UnknownCriticalExtension);
    }
    if issuer.purposes.is_some_and(|purposes| !purposes.server || !purposes.client) {
        return Err(SvidError::IssuerPurpose);
    }
    match issuer.alt_names.filter(|names| names.uris > 0) {
        None => Ok(()),
        Some(names) if names.uris > 1 => Err(SvidError::IssuerName),
        Some(names) => {
            let text = std::str::from_utf8(names.uri).map_err(|_| SvidError::IssuerName)?;
            let id = SpiffeId::parse(text).map_err(|_| SvidError::IssuerName)?;
            match (id.trust_domain() == domain, id.path().is_empty()) {
                (false, _) => Err(SvidError::IssuerDomain),
                (true, false) => Err(SvidError::IssuerName),
                (true, true) => Ok(()),
            }
        }
    }
}

/// The IDs of those who have no certificate.
#[derive(Debug)]
pub(super) struct Names {
    applicant: Arc<SpiffeId>,
    federation: Arc<SpiffeId>,
    own_identity: Arc<SpiffeId>,
    retention: Arc<SpiffeId>,
    rotation: Arc<SpiffeId>,
}

impl Names {
    fn of(domain: &TrustDomain) -> Self {
        let name = |path: &str| {
            // Any trust domain with one of these short paths is an ID: both are parsed already.
            Arc::new(domain.id(path).expect("a trust domain and a fixed path are an ID"))
        };
        let task = |task: Task| name(&format!("/doorward/task/{}", task.word()));
        Self {
            applicant: name("/doorward/applicant"),
            federation: task(Task::Federation),
            own_identity: task(Task::OwnIdentity),
            retention: task(Task::Retention),
            rotation: task(Task::Rotation),
        }
    }

    /// Of every applicant.
    pub(super) fn applicant(&self) -> &Arc<SpiffeId> {
        &self.applicant
    }

    /// Of the broker's own work.
    pub(super) fn task(&self, task: Task) -> &Arc<SpiffeId> {
        match task {
            Task::Federation => &self.federation,
            Task::OwnIdentity => &self.own_identity,
            Task::Retention => &self.retention,
            Task::Rotation => &self.rotation,
        }
    }
}

/// A view and what was read out of it once.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) view: Arc<View>,
    /// Which one it is: no two of a process have the same.
    pub(super) number: u64,
    roots: Arc<HashMap<TrustDomain, Roots>>,
    pub(super) names: Arc<Names>,
}

impl Trust {
    /// Reads a view's roots.
    pub(super) fn new(view: View) -> Self {
        let roots = read_all(&view);
        let names = Arc::new(Names::of(&view.trust_domain));
        Self { view: Arc::new(view), number: next(), roots, names }
    }

    /// Reads a view's roots, unless they are those of the view before: devices and entries change
    /// far more often than roots do.
    pub(super) fn after(&self, view: View) -> Self {
        let same_roots = Arc::ptr_eq(&self.view.bundles, &view.bundles);
        let same_domain = self.view.trust_domain == view.trust_domain;
        match same_roots && same_domain {
            true => Self {
                view: Arc::new(view),
                number: next(),
                roots: Arc::clone(&self.roots),
                names: Arc::clone(&self.names),
            },
            false => Self::new(view),
        }
    }

    /// The roots of one domain; none of any other.
    pub(super) fn roots(&self, domain: &TrustDomain) -> Option<&Roots> {
        self.roots.get(domain)
    }

    /// The roots that were left out, with the rule that each breaks.
    pub(super) fn faults(&self) -> Vec<(TrustDomain, SvidError)> {
        let of = |(domain, roots): (&TrustDomain, &Roots)| {
            roots.faults.iter().map(|fault| (domain.clone(), fault.clone())).collect::<Vec<_>>()
        };
        self.roots.iter().flat_map(of).collect()
    }
}

/// From 1 on.
fn next() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

fn read_all(view: &View) -> Arc<HashMap<TrustDomain, Roots>> {
    let read =
        |(domain, bundle): (&TrustDomain, &Bundle)| (domain.clone(), Roots::read(domain, bundle));
    Arc::new(view.bundles.iter().map(read).collect())
}
