//! `broker.toml`: any text is refused with a reason, or says what is written back of it.
#![no_main]

use doorward::app::{BrokerConfig, SealConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match BrokerConfig::parse("broker.toml", text) {
        Ok(config) => {
            // `init` writes paths that were typed; what can't be typed is not its business.
            let plain = match &config.seal {
                SealConfig::KeyFile(path) => {
                    path.to_str().is_some_and(|path| path.bytes().all(|b| matches!(b, b' '..=b'~')))
                }
                SealConfig::Passphrase => true,
            };
            if plain {
                let again = BrokerConfig::parse("broker.toml", &config.render());
                assert_eq!(again.expect("it reads back"), config);
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "a refusal has a reason");
            for fault in faults {
                assert!(!fault.render().is_empty());
            }
        }
    }
});
