//! Public keys of strangers: any bytes are refused or taken; nothing else happens.
#![no_main]

use doorward::authority::SubjectKey;
use doorward::model::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(key) = SubjectKey::parse(data) {
        assert_eq!(key.digest(), Digest::of(data));
    }
});
