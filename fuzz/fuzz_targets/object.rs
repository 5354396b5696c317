//! Objects of policies: whatever is accepted has a text that means the same.
#![no_main]

use doorward::model::{Object, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let domain = TrustDomain::parse("corp.example").expect("a trust domain");
    let Ok(object) = Object::parse(text, &domain) else { return };
    let written = object.to_string();
    assert_eq!(Object::parse(&written, &domain).expect("it reads back"), object);
    assert!(written.is_ascii());
});
