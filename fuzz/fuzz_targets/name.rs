//! Names: an accepted one is byte for byte what was given, and can't be walked out of.
#![no_main]

use doorward::model::{SecretName, SecretPrefix, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(prefix) = SecretPrefix::parse(text) {
        assert_eq!(prefix.as_str(), text);
    }
    let Ok(name) = SecretName::parse(text) else { return };
    assert_eq!(name.as_str(), text);
    assert!(text.is_ascii() && text.len() <= limits::NAME_MAX);
    assert!(text.split('/').all(|segment| !matches!(segment, "" | "." | "..")));
    assert!(!text.contains(['%', '\\', '*', '\0', ' ']));
    let namespace =
        SecretPrefix::parse(name.namespace().as_str()).expect("a namespace is a prefix");
    assert!(namespace.covers(&name));
});
