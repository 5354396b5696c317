//! Any text in `/proc/PID/cgroup` gives one plain unit name or none, one container or none, and never
//! a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(unit) = doorward::agent::unit_of(text) {
        assert!(unit.ends_with(".service") || unit.ends_with(".scope"));
        assert!(unit.len() <= 255 && !unit.contains('/'));
        assert!(text.contains(&unit));
    }
    if let Some(container) = doorward::agent::container_of(text) {
        assert!(text.contains(&container.id.to_string()));
        if let Some(uid) = container.pod_uid {
            assert!(doorward::model::is_pod_uid(&uid));
            assert!(text.contains(&uid) || text.contains(&uid.replace('-', "_")));
        }
    }
});
