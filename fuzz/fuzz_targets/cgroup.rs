//! Any text in `/proc/PID/cgroup` gives one plain unit name or none, and never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(unit) = doorward::agent::unit_of(text) {
        assert!(unit.ends_with(".service") || unit.ends_with(".scope"));
        assert!(unit.len() <= 255 && !unit.contains('/'));
        assert!(text.contains(&unit));
    }
});
