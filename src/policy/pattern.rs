//! The four functions that the matcher is made of, over plain text.
//!
//! Casbin calls them with whatever a row and a request hold, so they are total: no text makes them
//! panic, allocate or take more than linear time. Whatever they do not understand is decided
//! against the caller: it never satisfies an allow and, where posture is concerned, always a deny.
//! No regular expressions, no ranges of characters, no escapes.

/// The profile word of a row that asks nothing of the device.
pub(super) const ANY: &str = "any";
/// The label of a device that never reported.
pub(super) const UNKNOWN: &str = "unknown";
/// An open end of a window.
pub(super) const UNBOUNDED: &str = "-";
/// Bytes of a time in a window: `YYYY-MM-DDTHH:MM:SSZ`.
pub(super) const TIME_BYTES: usize = 20;

/// Whether a name lies in a pattern. Both are split at `/`; `*` stands for exactly one segment,
/// `**` as the last segment for any number of them, zero included; everything else is compared
/// byte by byte. An empty name or pattern matches nothing.
pub(super) fn path_match(value: &str, pattern: &str) -> bool {
    if value.is_empty() || pattern.is_empty() {
        return false;
    }
    let mut have = value.split('/');
    let mut want = pattern.split('/').peekable();
    while let Some(part) = want.next() {
        if part == "**" {
            return want.peek().is_none();
        }
        let Some(segment) = have.next() else {
            return false;
        };
        let fits = if part == "*" { !segment.is_empty() } else { segment == part };
        if !fits {
            return false;
        }
    }
    have.next().is_none()
}

/// Whether an action is the one that a row names; `*` names all.
pub(super) fn act_match(have: &str, want: &str) -> bool {
    !have.is_empty() && (want == "*" || have == want)
}

/// Whether `now` lies in `[nbf, exp)`. Times have one width, so text order is time order; a text
/// of another width is outside of every window.
pub(super) fn in_window(now: &str, nbf: &str, exp: &str) -> bool {
    let bound = |text: &str| text == UNBOUNDED || text.len() == TIME_BYTES;
    now.len() == TIME_BYTES
        && bound(nbf)
        && bound(exp)
        && (nbf == UNBOUNDED || nbf <= now)
        && (exp == UNBOUNDED || now < exp)
}

/// Whether a row of effect `eft` counts for a device of this label. An allow needs the profile to
/// be surely held; a deny counts unless the profile is surely not held.
pub(super) fn posture_ok(have: &str, want: &str, eft: &str) -> bool {
    match (want, eft) {
        ("", "deny") => true,
        ("", _) => false,
        (ANY, "allow" | "deny") => true,
        (_, "allow") => label_says(have, want) == Some(true),
        (_, "deny") => label_says(have, want) != Some(false),
        _ => false,
    }
}

/// What a label says of one profile; `None` where it can't say or is not of the form
/// `|name=t|name=u|`.
pub(super) fn label_says(label: &str, profile: &str) -> Option<bool> {
    let Some(inner) = label.strip_prefix('|') else {
        return None; // `unknown`, or nothing that we wrote
    };
    if inner.is_empty() {
        return Some(false); // `|`: no profile is held
    }
    let inner = inner.strip_suffix('|')?;
    let mut held = false;
    let mut in_doubt = false;
    for part in inner.split('|') {
        let (name, value) = part.split_once('=')?;
        match value {
            "t" => held |= name == profile,
            "u" => in_doubt |= name == profile,
            _ => return None,
        }
    }
    if in_doubt { None } else { Some(held) }
}

/// The part of a pattern before its first wildcard, without the slash after it, and whether there
/// is no wildcard at all.
pub(super) fn literal_prefix(pattern: &str) -> (&str, bool) {
    let mut end = 0_usize;
    for part in pattern.split('/') {
        if part == "*" || part == "**" {
            return (pattern.get(..end.saturating_sub(1)).unwrap_or(""), false);
        }
        end += part.len() + 1;
    }
    (pattern, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_speak_of_whole_segments() {
        for (value, pattern, want) in [
            ("secret/pay/db", "secret/pay/db", true),
            ("secret/pay/db", "secret/pay/*", true),
            ("secret/pay/db/url", "secret/pay/*", false),
            ("secret/pay", "secret/pay/*", false),
            ("secret/pay", "secret/pay/**", true),
            ("secret/pay/a/b/c", "secret/pay/**", true),
            ("secret/payroll", "secret/pay/**", false),
            ("secret/payroll", "secret/pay*", false),
            ("secret/pay/private", "secret/*/public", false),
            ("secret/a/x", "secret/**/x", false),
            ("", "", false),
            ("", "**", false),
            ("x", "", false),
            ("secret//x", "secret/*/x", false),
            ("secret/s\u{e9}", "secret/s/*", false),
            ("secret/s\u{e9}", "secret/*", true),
            ("secret/a", "secret/a|b", false),
            ("secret/a", "secret/(", false),
            ("secret/a", "secret/[a-z]", false),
        ] {
            assert_eq!(path_match(value, pattern), want, "{value:?} in {pattern:?}");
        }
    }

    #[test]
    fn a_dot_in_a_trust_domain_is_a_dot() {
        assert!(path_match("spiffe://corp.example/x", "spiffe://corp.example/*"));
        assert!(!path_match("spiffe://corpXexample/x", "spiffe://corp.example/*"));
        assert!(!path_match("spiffe://corp.example.evil/x", "spiffe://corp.example/*"));
    }

    #[test]
    fn windows_are_half_open_and_of_one_width() {
        let (a, b) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        assert!(in_window(a, a, b), "the first second is inside");
        assert!(!in_window(b, a, b), "the last one is not");
        assert!(in_window(a, "-", "-") && in_window(a, "-", b) && in_window(b, a, "-"));
        assert!(!in_window("", "-", "-"));
        assert!(!in_window("4102444800", "-", "-"), "seconds are no time here");
        assert!(in_window("2106-02-07T06:28:16Z", "-", "-"), "32 bits do not end it");
        assert!(!in_window(a, "2026", "-") && !in_window(a, "-", "later"));
    }

    #[test]
    fn posture_is_pessimistic_on_both_sides() {
        for (have, want, allow, deny) in [
            ("|managed=t|", "managed", true, true),
            ("|hardened=t|managed=u|", "managed", false, true),
            ("|hardened=t|", "managed", false, false),
            ("|", "managed", false, false),
            ("unknown", "managed", false, true),
            ("", "managed", false, true),
            ("managed=t", "managed", false, true),
            ("|managed=t", "managed", false, true),
            ("|managed=T|", "managed", false, true),
            ("|managed=t|managed=u|", "managed", false, true),
            ("|xmanaged=t|managedx=t|", "managed", false, false),
            ("unknown", "any", true, true),
            ("|managed=t|", "", false, true),
        ] {
            assert_eq!(posture_ok(have, want, "allow"), allow, "allow {have:?} {want:?}");
            assert_eq!(posture_ok(have, want, "deny"), deny, "deny {have:?} {want:?}");
        }
        assert!(!posture_ok("|m=t|", "m", "Allow"));
        assert!(!posture_ok("|m=t|", "any", "permit"));
    }

    #[test]
    fn the_literal_part_ends_before_the_first_wildcard() {
        assert_eq!(literal_prefix("secret/pay/db"), ("secret/pay/db", true));
        assert_eq!(literal_prefix("secret/pay/*"), ("secret/pay", false));
        assert_eq!(literal_prefix("secret/pay/**"), ("secret/pay", false));
        assert_eq!(literal_prefix("secret/*/x"), ("secret", false));
        assert_eq!(literal_prefix("**"), ("", false));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(a in ".{0,40}", b in ".{0,40}", c in ".{0,20}") {
            let _ = (path_match(&a, &b), act_match(&a, &b), in_window(&a, &b, &c));
            let _ = (posture_ok(&a, &b, &c), literal_prefix(&a));
            prop_assert!(!posture_ok(&a, "profile", "allow") || a.contains("|profile=t|"));
        }
    }
}
