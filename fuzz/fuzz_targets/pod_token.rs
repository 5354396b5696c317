//! Kubernetes tokens and key sets: nothing that the one key of the cluster has not signed is accepted,
//! and its private half is nobody's.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::identity::{Cluster, PodTokenError};
use doorward::model::{Clock, SystemClock};
use libfuzzer_sys::fuzz_target;

/// The example key of RFC 7517 §A.1, without its private half.
const KEYS: &[u8] = br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","use":"sig",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

fn cluster(keys: &[u8]) -> Option<Cluster> {
    let accounts = vec![("doorward".to_owned(), "agent".to_owned())];
    Cluster::read(keys, "https://a.example", "doorward", accounts).ok()
}

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| cluster(KEYS).expect("a good set"));

fn refuse(token: &[u8]) -> PodTokenError {
    CLUSTER.verify(token, SystemClock.now()).expect_err("nobody signed it")
}

fuzz_target!(|data: &[u8]| {
    let _ = cluster(data);
    let _ = refuse(data);
    // The same bytes as header, claims and signature, so that the readers below base64 are reached.
    let mut parts = data.splitn(3, |byte| *byte == b'\n').map(|part| URL_SAFE_NO_PAD.encode(part));
    let mut part = || parts.next().unwrap_or_default();
    let _ = refuse(format!("{}.{}.{}", part(), part(), part()).as_bytes());
});
