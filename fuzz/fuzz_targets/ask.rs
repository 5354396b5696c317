//! Asks: whatever is accepted has a canonical form that means the same, and total properties.
#![no_main]

use doorward::model::{Ask, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(ask) = serde_json::from_slice::<Ask>(bytes) else { return };
    let text = serde_json::to_string(&ask).expect("an ask has a json form");
    let again: Ask = serde_json::from_str(&text).expect("it reads back");
    assert_eq!(again, ask);
    assert_eq!(
        (again.action(), again.kind(), again.is_own()),
        (ask.action(), ask.kind(), ask.is_own())
    );
    assert!(ask.body_max() <= limits::BUNDLE_MAX);
});
