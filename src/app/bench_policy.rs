//! Decisions of one caller under policies of 10 to 100,000 rules, each with equally many candidates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;

use super::stage::DOMAIN;
use crate::identity::{Bundle as Roots, Caller, DeviceStatus, Identity, Peer, Standing, View};
use crate::model::{Action, Clock as _, DeviceClass, Digest, SystemClock, TrustDomain};
use crate::policy::{Bundle, BundleFiles};
use crate::posture::Posture;
use crate::wire::Credentials;

/// Rules of each policy.
pub const RULES: &[usize] = &[10, 100, 1_000, 10_000, 100_000];

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Measures each size; `told` gets one JSON object a line.
///
/// # Errors
/// In words.
pub fn bench_policy(
    credentials: &Credentials,
    length: Duration,
    told: &dyn Fn(&Value),
) -> Result<(), String> {
    let caller = caller(credentials)?;
    for rules in RULES {
        told(&measure(&caller, *rules, length)?);
    }
    Ok(())
}

fn measure(caller: &Caller, rules: usize, length: Duration) -> Result<Value, String> {
    let domain = TrustDomain::parse(DOMAIN).map_err(words)?;
    let files = files(&domain, rules);
    let began = Instant::now();
    let bundle: Arc<Bundle> = Bundle::build(&files, 1, &domain)
        .map_err(|faults| faults.first().map_or_else(String::new, |fault| fault.render()))?;
    let load = began.elapsed();
    let (clock, posture) = (SystemClock, Posture::new());
    let (demand, now) = (bundle.demand_all(), clock.now());
    let verdict = posture.look(caller.device(), &demand, now);
    let (mut times, mut allowed, began) = (Vec::new(), 0_usize, Instant::now());
    let mut at = 0;
    while began.elapsed() < length {
        at = (at + 7919) % rules;
        let object = format!("secret/team{at}/app/db/url");
        let start = Instant::now();
        let (yes, _) = bundle.can(caller, &verdict, Action::Read, &object, now);
        times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        allowed += usize::from(yes);
    }
    if allowed != times.len() {
        return Err(format!("{allowed} of {} decisions came out right", times.len()));
    }
    times.sort_unstable();
    let us = |part: f64| super::bench::at(&times, part);
    Ok(json!({
        "shape": "decisions", "rules": rules, "p50_us": us(0.5), "p99_us": us(0.99),
        "p999_us": us(0.999), "load_ms": load.as_millis(),
    }))
}

/// One rule a team, so that each request has exactly one candidate beside the sentinel.
fn files(domain: &TrustDomain, rules: usize) -> BundleFiles {
    let mut files = BundleFiles::defaults(domain);
    let text = files.files.entry("policy.csv".to_owned()).or_default();
    for team in 0..rules {
        text.push_str(&format!(
            "\np, team-{team}, spiffe://{domain}/doorward/operator/you, secret/team{team}/app/**, read, any, -, -, allow"
        ));
    }
    text.push('\n');
    files
}

fn caller(credentials: &Credentials) -> Result<Caller, String> {
    let (identity, peer) = recognised(credentials)?;
    Ok(identity.recognise(&peer, SystemClock.now()))
}

/// The operator of the stage, and an identity room of this process that recognises it.
pub(super) fn recognised(credentials: &Credentials) -> Result<(Identity, Peer), String> {
    let domain = credentials.domain.clone();
    let root = credentials.bundle.first().ok_or("no root certificate")?;
    let (_, certificate) =
        x509_parser::certificate::X509Certificate::from_der(root).map_err(words)?;
    let issuer = Digest::of(certificate.public_key().raw);
    let roots = Roots { roots: credentials.bundle.clone() };
    let view = |devices| View {
        trust_domain: domain.clone(),
        bundles: Arc::new([(domain.clone(), roots.clone())].into()),
        own_issuers: Arc::new([issuer].into()),
        devices: Arc::new(devices),
        entries: Arc::default(),
        denied: Arc::default(),
    };
    let now = SystemClock.now();
    let identity = Identity::new(view(std::collections::HashMap::new()));
    let peer = identity.peer(&credentials.chain, now).map_err(words)?;
    let extension = match &peer {
        Peer::Svid(peer) => peer.svid().extension().cloned(),
        _ => None,
    };
    let extension = extension.ok_or("the identity names no device")?;
    let status = DeviceStatus {
        class: DeviceClass::person(),
        epoch: extension.device_epoch,
        revoked: false,
        resident: None,
    };
    identity.install(view([(extension.device, status)].into()));
    match identity.recognise(&peer, now).standing() {
        Standing::Live => Ok((identity, peer)),
        other => Err(format!("the operator's identity is {other:?}")),
    }
}
