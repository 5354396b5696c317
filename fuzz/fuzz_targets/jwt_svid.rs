//! JWT-SVIDs: nothing that the one key of the bundle has not signed is accepted, and its private half
//! is nobody's.
#![no_main]

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::identity::{BundleDocument, JwtSvid, JwtSvidError};
use doorward::model::{Clock, SystemClock, TrustDomain};
use libfuzzer_sys::fuzz_target;

/// The example key of RFC 7517 §A.1, without its private half.
const BUNDLE: &[u8] = br#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","use":"jwt-svid",
    "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

static BUNDLES: LazyLock<HashMap<TrustDomain, BundleDocument>> = LazyLock::new(|| {
    let domain = TrustDomain::parse("corp.example").expect("a good name");
    let bundle = BundleDocument::parse(domain.clone(), BUNDLE).expect("a good bundle");
    assert_eq!(bundle.jwt_keys().len(), 1);
    HashMap::from([(domain, bundle)])
});

fn refuse(token: &str) -> JwtSvidError {
    JwtSvid::validate(token, &*BUNDLES, "db", SystemClock.now()).expect_err("nobody signed it")
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = refuse(text);
    // The same bytes as header, claims and signature, so that the readers below base64 are reached.
    let mut parts = text.splitn(3, '\n').map(|part| URL_SAFE_NO_PAD.encode(part));
    let mut part = || parts.next().unwrap_or_default();
    let error = refuse(&format!("{}.{}.{}", part(), part(), part()));
    assert!(!matches!(error, JwtSvidError::Compact), "every part is base64url");
});
