//! Bundles of policies: any rows and profiles are refused with a reason, or make a bundle that
//! judges; and the JSON form of a bundle has one meaning. `====` on a line of its own stands between
//! rows and profiles.
#![no_main]

use doorward::model::{Action, TrustDomain};
use doorward::policy::{Bundle, BundleFiles};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (rows, profiles) = input.split_once("\n====\n").unwrap_or((input, ""));
    if let Ok(files) = BundleFiles::from_json(rows.as_bytes()) {
        let again = BundleFiles::from_json(&files.to_json()).expect("it reads back");
        assert_eq!(again.digest(), files.digest());
    }
    let files = [("policy.csv", rows), ("posture.toml", profiles)];
    let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let domain = TrustDomain::parse("corp.example").expect("a trust domain");
    match Bundle::build(&BundleFiles { files: files.into() }, 1, &domain) {
        Ok(bundle) => {
            let (sub, object) = ("spiffe://corp.example/api", "secret/pay/db/url");
            let now = "2026-06-01T00:00:00Z";
            let why = bundle.explain(sub, Action::Read, object, "unknown", now);
            assert!(!why.allowed || !why.matched.is_empty(), "an allow comes from a row");
        }
        Err(faults) => {
            assert!(!faults.is_empty(), "a refusal has a reason");
            for fault in faults {
                assert!(!fault.render().is_empty());
            }
        }
    }
});
