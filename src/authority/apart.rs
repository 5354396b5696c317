//! What is trusted for one purpose is trusted for no other: roots of device certificates, of other
//! trust domains, and of our own.
//!
//! Under one root that served two of them, whoever may sign for one would speak for the other too: a
//! partner's workload would enrol as a device of ours, a workload of ours as another domain's.

use std::collections::HashSet;

use x509_parser::prelude::{FromDer, X509Certificate};

use super::authorities::Member;
use super::error::AuthorityError;
use super::mirror::Mirror;
use super::room::Authority;
use super::upstream::Above;
use crate::identity::BundleDocument;
use crate::model::{Digest, Failure, TrustDomain};

/// SHA-256 of the SubjectPublicKeyInfo of each root in a document.
fn keys_of(document: &BundleDocument) -> impl Iterator<Item = Digest> {
    document.x509_roots().iter().filter_map(|der| {
        let (_, root) = X509Certificate::from_der(der).ok()?;
        Some(Digest::of(root.public_key().raw))
    })
}

impl Authority {
    /// The federated trust domain that this key (SHA-256 of its SubjectPublicKeyInfo) is a root of.
    pub fn root_of_another(&self, key: &Digest) -> Option<TrustDomain> {
        let mirror = self.mirror();
        let mut all = mirror.federated().all();
        let holds = |document: &BundleDocument| keys_of(document).any(|root| root == *key);
        let found = all.find(|it| it.document.as_deref().is_some_and(holds));
        found.map(|it| it.record.trust_domain.clone())
    }

    /// That no root of another domain is one under which devices enrol here.
    ///
    /// # Errors
    /// The method of enrolment whose root it is.
    pub(super) fn apart_from_methods(&self, document: &BundleDocument) -> Result<(), String> {
        let keys: HashSet<Digest> = keys_of(document).collect();
        match self.methods.x509.iter().find(|(_, roots)| roots.keys().any(|it| keys.contains(it))) {
            Some((admission, _)) => Err(admission.name.clone()),
            None => Ok(()),
        }
    }

    /// That whoever stands above a new authority of ours is neither a root of device certificates nor
    /// one of another domain.
    ///
    /// # Errors
    /// Which it is.
    pub(super) fn apart(&self, mirror: &Mirror, member: &Member) -> Result<(), Failure> {
        let Some(above) = &member.above else { return Ok(()) };
        let over = Above::read(above).map_err(AuthorityError::into_failure)?;
        let keys: HashSet<Digest> = over.keys().collect();
        let own = &self.issuers().own_issuers;
        let revoked = &mirror.authorities().map_err(AuthorityError::into_failure)?.revoked;
        let was_ours = over.roots.iter().chain(&over.chain).any(|der| {
            revoked.contains_key(&Digest::of(der)) // an authority is known by its certificate
        });
        if was_ours || keys.iter().any(|key| own.contains(key)) {
            return Err(Failure::conflict(
                "`[upstream]` holds an authority of this broker's own, or one that was revoked: \
                 name only who stands above, or the old one would be trusted for ever",
            ));
        }
        for (admission, roots) in &self.methods.x509 {
            if roots.keys().any(|key| keys.contains(key)) {
                return Err(Failure::conflict(format!(
                    "the enrolment method `{}` takes certificates under the same authority as \
                     `[upstream]`: every workload would be a device; give it a root of devices only",
                    admission.name
                )));
            }
        }
        for held in mirror.federated().all() {
            let document = held.document.as_deref();
            if document.is_some_and(|it| keys_of(it).any(|key| keys.contains(&key))) {
                return Err(Failure::conflict(format!(
                    "`[upstream]` is trusted for the federated domain {} too; trust domains are \
                     never mixed: each needs a root of its own",
                    held.record.trust_domain
                )));
            }
        }
        Ok(())
    }
}

impl AuthorityError {
    fn into_failure(self) -> Failure {
        self.into()
    }
}
