//! SPIFFE bundle documents and maps of them: what is accepted is bounded and reads back to the same.
#![no_main]

use doorward::identity::BundleDocument;
use doorward::model::{TrustDomain, limits};
use libfuzzer_sys::fuzz_target;

fn check(document: &BundleDocument) {
    let domain = document.trust_domain().clone();
    let json = document.to_json();
    if json.len() > limits::BUNDLE_DOCUMENT_MAX {
        return; // one of a map, with certificates that are too large to stand alone
    }
    let again = BundleDocument::parse(domain, &json).expect("what is written can be read");
    assert!(again.ignored().is_empty());
    assert_eq!(again.x509_roots(), document.x509_roots());
    assert_eq!(again.jwt_keys(), document.jwt_keys());
    assert_eq!(again.sequence(), document.sequence());
    assert_eq!(again.to_json(), json);
    let keys = document.x509_roots().len() + document.jwt_keys().len();
    assert!(keys + document.ignored().len() <= limits::BUNDLE_KEYS_MAX);
    for key in document.jwt_keys() {
        assert_eq!(document.jwt_key(key.key_id()), Some(key));
    }
}

fuzz_target!(|data: &[u8]| {
    let domain = TrustDomain::parse("corp.example").expect("a good name");
    if let Ok(document) = BundleDocument::parse(domain, data) {
        check(&document);
    }
    if let Ok(map) = BundleDocument::parse_map(data) {
        for (domain, document) in &map {
            assert_eq!(document.trust_domain(), domain);
            check(document);
        }
    }
});
