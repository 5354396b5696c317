//! The picture that identity judges by, out of issuers and rows.

use std::collections::HashMap;
use std::sync::Arc;

use super::issuers::Issuers;
use super::mirror::Mirror;
use crate::identity::{Bundle, View};
use crate::model::TrustDomain;

/// The roots of each trust domain under its own name: side by side, never merged (I11).
pub(super) fn joined(issuers: &Issuers, mirror: &Mirror) -> Arc<HashMap<TrustDomain, Bundle>> {
    let mut all = mirror.federated().roots();
    // Ours last: no row can stand in its place.
    all.extend(issuers.bundles.iter().map(|(domain, bundle)| (domain.clone(), bundle.clone())));
    Arc::new(all)
}

/// The picture that identity judges by.
pub(super) fn view(
    domain: &TrustDomain,
    bundles: Arc<HashMap<TrustDomain, Bundle>>,
    issuers: &Issuers,
    mirror: &Mirror,
) -> View {
    View {
        trust_domain: domain.clone(),
        bundles,
        own_issuers: issuers.own_issuers.clone(),
        devices: mirror.device_statuses().clone(),
        entries: mirror.entry_statuses().clone(),
        denied: mirror.denied_svids().clone(),
    }
}
