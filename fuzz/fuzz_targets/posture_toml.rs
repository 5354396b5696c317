//! `posture.toml`: any text is refused with a reason, or gives profiles that are found by name; and any
//! facts behind a NUL are judged without a panic, alike by two ways.
#![no_main]

use std::time::Duration;

use doorward::model::limits;
use doorward::policy::explain_profiles;
use doorward::posture::Profiles;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (text, facts) = text.split_once('\0').unwrap_or((text, "{}"));
    match Profiles::parse("posture.toml", text) {
        Ok(profiles) => {
            assert!(profiles.names().count() <= limits::PROFILES_MAX);
            for (at, name) in profiles.names().enumerate() {
                assert_eq!(profiles.position(name).map(usize::from), Some(at));
            }
            for warning in profiles.warnings(1_800_000_000) {
                assert!(!warning.render_as("warning").is_empty());
            }
            let file = ("posture.toml", text);
            let Ok(all) = explain_profiles(file, None, facts, Duration::from_secs(5), 0) else {
                return;
            };
            let facts = serde_json::from_str(facts).unwrap_or_default();
            for one in all {
                let met = one.meets.word() == "true";
                let lacking = profiles.lacking(&one.profile, &facts, Duration::from_secs(5), 0);
                assert!(!met || one.mends().is_empty(), "what is met needs no change");
                assert!(lacking.is_some());
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "a refusal has a reason");
            assert!(faults.len() <= limits::DIAGNOSTICS_MAX);
            for fault in faults {
                assert!(!fault.render().is_empty());
            }
        }
    }
});
