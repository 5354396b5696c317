//! SPIFFE IDs: an accepted one is canonical, in parts and as a whole.
#![no_main]

use doorward::model::{SpiffeId, TrustDomain, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(domain) = TrustDomain::parse(text) {
        assert_eq!(domain.as_str(), text);
    }
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.as_str(), text);
    assert_eq!(id.as_spiffe().to_string(), text);
    assert!(text.len() <= limits::SPIFFE_ID_MAX);
    assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    assert_eq!(id.trust_domain().id(id.path()).expect("the parts make the whole"), id);
    assert!(id.path().is_empty() || id.path().starts_with('/'));
    assert!(!id.path().split('/').skip(1).any(|segment| matches!(segment, "" | "." | "..")));
});
