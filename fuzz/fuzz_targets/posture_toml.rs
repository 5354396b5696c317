//! `posture.toml`: any text is refused with a reason, or gives profiles that are found by name.
#![no_main]

use doorward::model::limits;
use doorward::posture::Profiles;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Profiles::parse("posture.toml", text) {
        Ok(profiles) => {
            assert!(profiles.names().count() <= limits::PROFILES_MAX);
            for (at, name) in profiles.names().enumerate() {
                assert_eq!(profiles.position(name).map(usize::from), Some(at));
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
