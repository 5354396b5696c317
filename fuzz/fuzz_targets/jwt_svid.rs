//! JWT-SVIDs: nothing that the one key of the bundle has not signed is accepted, and its private half
//! is nobody's.
#![no_main]

use std::collections::HashMap;
use std::sync::LazyLock;

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
    let mut parts = text.splitn(3, '\n').map(base64url);
    let mut part = || parts.next().unwrap_or_default();
    let error = refuse(&format!("{}.{}.{}", part(), part(), part()));
    assert!(!matches!(error, JwtSvidError::Compact), "every part is base64url");
});

/// Base64url without padding; written out, so that this target needs no crate for it.
fn base64url(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let word = chunk.iter().fold(0, |word, octet| word << 8 | u32::from(*octet));
        let word = word << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            let digit = word >> (18 - 6 * place) & 0x3f;
            out.push(char::from(ALPHABET[digit as usize]));
        }
    }
    out
}
