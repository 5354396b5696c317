//! Join tokens: any text is refused or read, and what is read has exactly one text.
#![no_main]

use doorward::authority::JoinToken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = JoinToken::parse(text) {
        let again = token.text().expect("what was read can be written");
        assert_eq!(again.expose(), text.trim_ascii().as_bytes());
    }
});
