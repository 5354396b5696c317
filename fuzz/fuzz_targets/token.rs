//! Join tokens: any text is refused or read, and what is read has exactly one text. What does not
//! begin like a token is taken for what stands inside of one: few changes of base64 are JSON.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorward::authority::JoinToken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let wrapped = format!("dw1.{}", URL_SAFE_NO_PAD.encode(text));
    let text = if text.trim_ascii().starts_with("dw1.") { text } else { &wrapped };
    if let Ok(token) = JoinToken::parse(text) {
        let again = token.text().expect("what was read can be written");
        assert_eq!(again.expose(), text.trim_ascii().as_bytes());
    }
});
