//! Certificates of strangers, `====` on a line of its own between those of a chain: any bytes are
//! refused, or are what our root has signed. Nobody has the keys of root and leaf any more.
#![no_main]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use doorward::identity::{Bundle, Identity, View};
use doorward::model::{Clock as _, ManualClock, Moment, TrustDomain};
use libfuzzer_sys::fuzz_target;
use time::OffsetDateTime;

const ROOT: &[u8] = include_bytes!("../seeds/certificate/root");
const LEAF: &[u8] = include_bytes!("../seeds/certificate/leaf");
/// Six months into the ten years of both.
const NOW: i64 = 1_782_000_000;

static WORLD: LazyLock<(Identity, Moment)> = LazyLock::new(|| {
    let domain = TrustDomain::parse("corp.example").expect("a trust domain");
    let bundle = Bundle { roots: vec![ROOT.to_vec().into()] };
    let identity = Identity::new(View {
        trust_domain: domain.clone(),
        bundles: Arc::new(HashMap::from([(domain, bundle)])),
        own_issuers: Arc::new(HashSet::new()),
        devices: Arc::new(HashMap::new()),
        entries: Arc::new(HashMap::new()),
        denied: Arc::new(HashMap::new()),
    });
    let now = OffsetDateTime::from_unix_timestamp(NOW).expect("a time of this century");
    let now = ManualClock::at(now).now();
    identity.peer(&[LEAF.to_vec().into()], now).expect("the control: the leaf is good");
    (identity, now)
});

fuzz_target!(|bytes: &[u8]| {
    let (identity, now) = &*WORLD;
    let (mut chain, mut rest) = (Vec::new(), bytes);
    let between = b"\n====\n";
    while let Some(at) = rest.windows(between.len()).position(|window| window == between) {
        chain.push(rest[..at].into());
        rest = &rest[at + between.len()..];
    }
    chain.push(rest.into());
    if let Ok(peer) = identity.peer(&chain, *now) {
        let caller = identity.recognise(&peer, *now);
        assert_eq!(caller.id().as_str(), "spiffe://corp.example/api");
    }
    let _ = identity.applicant(&chain);
});
