//! The systemd unit of a process, out of `/proc/PID/cgroup` alone.
//!
//! The text is the kernel's, but its path is named by whoever may make cgroups: a subtree that was
//! delegated to a user can hold names that look like other units. So a unit counts only where
//! systemd itself puts them, below slices, and only if nothing deeper looks like a unit too. In any
//! doubt there is no unit, and no unit matches nothing.

/// A unit's name, in bytes (systemd's own limit).
const UNIT_MAX: usize = 255;

/// The service or scope that the cgroup-v2 line of this text names, if exactly one does.
///
/// Total: any text at all gives a name of `[A-Za-z0-9._@:-]` ending in `.service` or `.scope`, or
/// nothing.
pub fn unit_of(text: &str) -> Option<String> {
    let mut unified = text.lines().filter_map(|line| line.strip_prefix("0::"));
    let path = unified.next()?;
    if unified.next().is_some() || path.ends_with(" (deleted)") {
        return None;
    }
    let segments = path.strip_prefix('/')?;
    let mut units = segments.split('/').enumerate().filter(|(_, segment)| is_unit(segment));
    let (depth, unit) = units.next()?;
    if units.next().is_some() || !segments.split('/').take(depth).all(is_slice) {
        return None;
    }
    let unit = unit.strip_prefix('_').unwrap_or(unit); // systemd's escape of reserved names
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b':');
    (unit.len() <= UNIT_MAX && unit.bytes().all(plain)).then(|| unit.to_owned())
}

fn is_unit(segment: &str) -> bool {
    [".service", ".scope"].iter().any(|end| segment.ends_with(end) && segment.len() > end.len())
}

fn is_slice(segment: &str) -> bool {
    segment.ends_with(".slice")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unit_counts_where_systemd_puts_it() {
        for (text, want) in [
            ("0::/system.slice/api.service\n", "api.service"),
            ("0::/api.service\n", "api.service"),
            (
                "12:cpu:/x\n0::/system.slice/system-pg.slice/pg@16-main.service\n",
                "pg@16-main.service",
            ),
            ("0::/system.slice/api.service/workers\n", "api.service"),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
            ("0::/init.scope\n", "init.scope"),
            ("0::/system.slice/_cgroup.service\n", "cgroup.service"),
        ] {
            assert_eq!(unit_of(text).as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn look_alikes_and_doubt_give_nothing() {
        for text in [
            "",
            "0::/\n",
            "0::\n",
            "1:name=systemd:/system.slice/api.service\n",
            "0::/system.slice/api.service\n0::/system.slice/b.service\n",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/api.service\n",
            "0::/delegated/system.slice/api.service\n",
            "0::/../system.slice/api.service\n",
            "0::/system.slice/api.service (deleted)\n",
            "0::/system.slice/.service\n",
            "0::/system.slice/a b.service\n",
            "0::/system.slice/dev\\x2dsda.service\n",
            "0::/system.slice\n",
        ] {
            assert_eq!(unit_of(text), None, "{text}");
        }
        assert_eq!(unit_of(&format!("0::/{}.service", "a".repeat(300))), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(0::)?[/a-z.]{0,40}(\\.service|\n|/){0,6}.{0,40}") {
            if let Some(unit) = unit_of(&text) {
                prop_assert!(unit.len() <= UNIT_MAX && !unit.contains(['/', '\n', ' ']));
            }
        }
    }
}
