//! Reads `posture.toml`. It reports every fault at once, each with its place, and lets nothing
//! through that could mean less than its author believed: an unknown key, fact or unit is an error.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::notice::{self, Notice};
use super::profile::{DEFAULT_MAX_AGE, Mode, Profile};
use super::refset::{RefSets, refsets};
use super::requirement::Requirement;
use super::requirement_file::requirements;
use crate::model::limits::{
    DIAGNOSTICS_MAX, MAX_AGE_MAX, POSTURE_FILE_MAX, PROFILES_MAX, REQUIREMENTS_MAX, SEGMENT_MAX,
};
use crate::model::{Diagnostic, did_you_mean};

/// Reports come every two seconds at most: a shorter age could not be kept up.
const MAX_AGE_MIN: Duration = Duration::from_secs(3);
const PROFILE_KEYS: [&str; 4] = ["extends", "max_age", "mode", "require"];

/// A place in the file.
pub(super) type Place = Range<usize>;

/// The faults of one file so far.
pub(super) struct Faults<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<(usize, Diagnostic)>,
}

impl Faults<'_> {
    /// Notes a fault. Telling the place of one costs a look over the file, so there is a most.
    pub(super) fn add(&mut self, at: Place, message: impl Into<String>, help: Option<String>) {
        if self.found.len() >= DIAGNOSTICS_MAX {
            return;
        }
        let length = at.end.saturating_sub(at.start);
        let fault = Diagnostic::at(self.file, self.text, at.start, length, message);
        let fault = match help {
            Some(help) => fault.help(help),
            None => fault,
        };
        self.found.push((at.start, fault));
    }

    /// Notes a key that nobody knows.
    pub(super) fn unknown_key(&mut self, at: Place, key: &str, known: &[&str]) {
        let help = did_you_mean(key, known.iter().copied()).map_or_else(
            || format!("known are {}", known.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        self.add(at, format!("no such key: {key:?}"), Some(help));
    }

    /// A duration such as `60s`, `2m` or `1h`.
    pub(super) fn duration(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Duration> {
        let read = value.get_ref().as_str().and_then(parse_age);
        let fault = match read {
            None => "a duration is a whole number with s, m or h",
            Some(age) if age < MAX_AGE_MIN => "a device has 2 s to answer: 3 s is the least",
            Some(age) if age > MAX_AGE_MAX => "a week is the most",
            Some(_) => return read,
        };
        self.add(value.span(), fault, Some("for example \"60s\", \"2m\" or \"1h\"".into()));
        None
    }

    /// A text.
    pub(super) fn text<'v>(&mut self, value: &'v Spanned<DeValue<'_>>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.add(
                value.span(),
                format!("{} where text must stand", value.get_ref().type_str()),
                None,
            );
        }
        text
    }
}

/// An age such as `0s`, `90s`, `2m` or `1h`.
pub fn parse_age(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let plain =
        !number.is_empty() && number.len() <= 9 && number.bytes().all(|b| b.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| plain).map(|n| Duration::from_secs(n * unit))
}

/// A profile as it was written.
struct Draft {
    place: Place,
    extends: Option<(String, Place)>,
    max_age: Option<(Duration, Place)>,
    mode: Mode,
    require: Vec<Requirement>,
}

/// The profiles of a file, in order of their names, and what an author should know of them.
///
/// # Errors
/// Every fault up to a bound, in the order of their places.
pub(super) fn parse(
    file: &str,
    text: &str,
) -> Result<(Vec<Profile>, Vec<Notice>), Vec<Diagnostic>> {
    let mut faults = Faults { file, text, found: Vec::new() };
    if text.len() > POSTURE_FILE_MAX {
        let message =
            format!("the file is {} bytes long; the limit is {POSTURE_FILE_MAX}", text.len());
        return Err(vec![Diagnostic::at(file, text, 0, 1, message)]);
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(100) {
        faults.add(error.span().unwrap_or(0..1), error.message().to_owned(), None);
    }
    let read = match errors.is_empty() {
        true => read_file(table.get_ref(), &mut faults),
        false => (vec![], vec![]),
    };
    if faults.found.is_empty() {
        return Ok(read);
    }
    faults.found.sort_by_key(|(at, _)| *at);
    Err(faults.found.into_iter().map(|(_, fault)| fault).collect())
}

fn read_file(table: &DeTable<'_>, faults: &mut Faults<'_>) -> (Vec<Profile>, Vec<Notice>) {
    let mut drafts = BTreeMap::new();
    let sets = refsets(table, faults);
    for (key, value) in table {
        match (key.get_ref().as_ref(), value.get_ref().as_table()) {
            ("profile", Some(profiles)) => {
                for (name, value) in profiles {
                    let draft = read_profile(name, value, &sets, faults);
                    drafts.insert(name.get_ref().to_string(), draft);
                }
            }
            ("profile", None) => {
                faults.add(
                    value.span(),
                    "profiles are tables",
                    Some("write [profile.<name>]".into()),
                );
            }
            ("refset", _) => {} // read already: profiles name them
            (other, _) => faults.unknown_key(key.span(), other, &["profile", "refset"]),
        }
    }
    if let Some(extra) = drafts.values().map(|draft| &draft.place).max_by_key(|place| place.start)
        && drafts.len() > PROFILES_MAX
    {
        faults.add(
            extra.clone(),
            format!("{} profiles; {PROFILES_MAX} is the most", drafts.len()),
            None,
        );
    }
    let profiles = resolve(&drafts, faults);
    let (file, text) = (faults.file, faults.text);
    let mut notices = notice::of_sets(file, text, &sets, &profiles);
    for profile in &profiles {
        let Some(draft) = drafts.get(&profile.name) else { continue };
        let line = ancestry(&profile.name, &drafts).unwrap_or_default();
        let enforced = line.iter().skip(1).find(|draft| draft.mode == Mode::Enforce);
        let above = enforced.and_then(|above| text.get(above.place.clone()));
        notices.extend(notice::of_mode(file, text, profile, above, draft.place.clone()));
    }
    (profiles, notices)
}

fn read_profile(
    name: &Spanned<toml::de::DeString<'_>>,
    value: &Spanned<DeValue<'_>>,
    sets: &RefSets,
    faults: &mut Faults<'_>,
) -> Draft {
    check_name(name, faults);
    let mut draft = Draft {
        place: name.span(),
        extends: None,
        max_age: None,
        mode: Mode::Enforce,
        require: vec![],
    };
    let Some(table) = value.get_ref().as_table() else {
        faults.add(value.span(), "a profile is a table", Some("write [profile.<name>]".into()));
        return draft;
    };
    for (key, value) in table {
        match key.get_ref().as_ref() {
            "extends" => {
                draft.extends = faults.text(value).map(|text| (text.to_owned(), value.span()));
            }
            "max_age" => draft.max_age = faults.duration(value).map(|age| (age, value.span())),
            "mode" => draft.mode = mode(value, faults),
            "require" => draft.require = requirements(value, 0, sets, faults),
            "quote_max_age" => {
                faults.add(
                    key.span(),
                    "quote_max_age is not supported yet: no TPM endorses evidence",
                    None,
                );
            }
            other => faults.unknown_key(key.span(), other, &PROFILE_KEYS),
        }
    }
    if !table.contains_key("require") && draft.extends.is_none() {
        let help = "write at least require = [{ fact = \"device.enrolled\", eq = true }]";
        faults.add(
            name.span(),
            "the profile requires nothing, so every device would hold it",
            Some(help.into()),
        );
    }
    draft
}

fn check_name(name: &Spanned<toml::de::DeString<'_>>, faults: &mut Faults<'_>) {
    let text = name.get_ref();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if text.is_empty()
        || text.len() > SEGMENT_MAX
        || !text.bytes().all(plain)
        || !text.starts_with(|c: char| c.is_ascii_lowercase())
    {
        let help = "a name is a-z, then a-z, 0-9, `-` and `_`, at most 128 characters";
        faults.add(name.span(), format!("{text:?} can't be a profile's name"), Some(help.into()));
    } else if matches!(text.as_ref(), "any" | "unknown") {
        faults.add(name.span(), format!("`{text}` has a meaning of its own in policies"), None);
    }
}

fn mode(value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Mode {
    match value.get_ref().as_str() {
        Some("enforce") => Mode::Enforce,
        Some("monitor") => Mode::Monitor,
        _ => {
            faults.add(value.span(), "a mode is \"enforce\" or \"monitor\"", None);
            Mode::Enforce
        }
    }
}

/// Carries out `extends`.
fn resolve(drafts: &BTreeMap<String, Draft>, faults: &mut Faults<'_>) -> Vec<Profile> {
    let names = || drafts.keys().map(String::as_str);
    for draft in drafts.values() {
        if let Some((parent, place)) = &draft.extends
            && !drafts.contains_key(parent)
        {
            let help = did_you_mean(parent, names()).map(|near| format!("did you mean `{near}`?"));
            faults.add(place.clone(), format!("no such profile: {parent:?}"), help);
        }
    }
    let drafts_in_order = drafts.iter().filter_map(|(name, draft)| {
        let line = ancestry(name, drafts).or_else(|| {
            let place =
                draft.extends.as_ref().map_or(draft.place.clone(), |(_, place)| place.clone());
            faults.add(place, format!("`{name}` extends itself in a circle"), None);
            None
        })?;
        Some(one(name, draft, &line, faults))
    });
    drafts_in_order.collect()
}

/// The profile itself and those that it extends, nearest first; `None` if that goes in a circle.
fn ancestry<'d>(name: &str, drafts: &'d BTreeMap<String, Draft>) -> Option<Vec<&'d Draft>> {
    let mut line = Vec::new();
    let mut next = drafts.get(name);
    while let Some(draft) = next {
        if line.len() >= drafts.len() {
            return None;
        }
        line.push(draft);
        next = draft.extends.as_ref().and_then(|(parent, _)| drafts.get(parent));
    }
    Some(line)
}

fn one(name: &str, draft: &Draft, line: &[&Draft], faults: &mut Faults<'_>) -> Profile {
    let inherited =
        line.iter().skip(1).find_map(|draft| draft.max_age.as_ref().map(|(age, _)| *age));
    if let (Some((own, place)), Some(inherited)) = (&draft.max_age, inherited)
        && *own > inherited
    {
        let message = format!(
            "the profile would be laxer than the one it extends, whose max_age is {} s",
            inherited.as_secs()
        );
        faults.add(place.clone(), message, Some("shorten it, or leave it out".into()));
    }
    let own = draft.max_age.as_ref().map(|(age, _)| *age);
    // From the oldest ancestor down, so that explanations read from the general to the special.
    let requirements: Vec<Requirement> =
        line.iter().rev().flat_map(|draft| draft.require.iter().cloned()).collect();
    let count: usize = requirements.iter().map(Requirement::count).sum();
    if count > REQUIREMENTS_MAX {
        let message =
            format!("{count} requirements; {REQUIREMENTS_MAX} is the most of one profile");
        faults.add(draft.place.clone(), message, None);
    }
    let max_age = own.or(inherited).unwrap_or(DEFAULT_MAX_AGE);
    // What it takes over from a profile that refuses is asked for in mode monitor too.
    let above = line.iter().skip(1).position(|draft| draft.mode == Mode::Enforce);
    let enforced = above.and_then(|above| line.get(above + 1..)).unwrap_or_default();
    let floor = enforced.iter().map(|draft| draft.require.len()).sum();
    Profile { name: name.to_owned(), max_age, mode: draft.mode, floor, requirements }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of a text, as `line:column message (help)`.
    fn faults(text: &str) -> Vec<String> {
        let found = parse("posture.toml", text).expect_err("it must be refused");
        let one = |fault: &Diagnostic| {
            let help = fault.help.as_ref().map_or_else(String::new, |help| format!(" ({help})"));
            format!("{}:{} {}{help}", fault.line, fault.column, fault.message)
        };
        found.iter().map(one).collect()
    }

    fn profile(body: &str) -> String {
        format!("[profile.p]\n{body}\n")
    }

    #[test]
    fn every_fault_is_reported_at_once_with_its_place() {
        let text = r#"[profile.a]
max_age = "60"
require = [ { fact = "kernel.lockdwn", eq = "integrity" }, { fact = "secureboot", eq = "true" } ]
[profile.b]
extends = "aa"
requires = []
[profile.c]
mode = "observe"
require = [ { fact = "secureboot", eq = true, ne = true } ]
[refset.x]
values = []
[profil.d]
"#;
        assert_eq!(
            faults(text),
            [
                r#"2:11 a duration is a whole number with s, m or h (for example "60s", "2m" or "1h")"#,
                r#"3:22 no such fact: "kernel.lockdwn" (did you mean `kernel.lockdown`?)"#,
                "3:88 secureboot is true or false, this is string",
                r#"5:11 no such profile: "aa" (did you mean `a`?)"#,
                r#"6:1 no such key: "requires" (did you mean `require`?)"#,
                r#"8:8 a mode is "enforce" or "monitor""#,
                "9:13 a requirement has exactly one predicate (the predicates are eq, ne, in, le, ge, mask_clear, version_ge, in_refset)",
                r#"10:9 the set has no values, so nothing could match (write values = [ { value = …, label = "…", until = "2027-03-01" } ])"#,
                r#"12:2 no such key: "profil" (did you mean `profile`?)"#,
            ]
        );
    }

    #[test]
    fn circles_are_refused() {
        let circle = |a: &str, b: &str| {
            format!(
                "[profile.a]\nextends = \"{a}\"\n[profile.b]\nextends = \"{b}\"\nrequire = [{{ fact = \"secureboot\", eq = true }}]\n"
            )
        };
        assert!(parse("posture.toml", &circle("b", "c")).is_err());
        assert_eq!(
            faults(&circle("b", "a")),
            ["2:11 `a` extends itself in a circle", "4:11 `b` extends itself in a circle"]
        );
        assert_eq!(
            faults("[profile.a]\nextends = \"a\"\n"),
            ["2:11 `a` extends itself in a circle"]
        );
    }

    #[test]
    fn what_means_less_than_it_says_is_refused() {
        let good = profile(r#"require = [{ fact = "secureboot", eq = true }]"#);
        assert_eq!(parse("posture.toml", &good).unwrap().0.len(), 1);
        for (body, want) in [
            ("", "requires nothing"),
            ("require = []", "an empty list"),
            ("require = [{ any = [] }]", "an empty list"),
            ("require = [{ not = [] }]", "there is no `not`"),
            (r#"require = [{ fact = "secureboot", ge = 1 }]"#, "ge compares a whole number"),
            (r#"require = [{ fact = "kernel.release", le = 6 }]"#, "le compares a whole number"),
            (
                r#"require = [{ fact = "kernel.tainted", version_ge = "1" }]"#,
                "version_ge compares text",
            ),
            (r#"require = [{ fact = "kernel.release", version_ge = "6.x" }]"#, "a dotted number"),
            (r#"require = [{ fact = "kernel.sysrq", mask_clear = ["oops"] }]"#, "no named bits"),
            (r#"require = [{ fact = "kernel.tainted", mask_clear = ["ops"] }]"#, "no bit \"ops\""),
            (r#"require = [{ fact = "kernel.tainted", mask_clear = [] }]"#, "at least one"),
            (r#"require = [{ fact = "kernel.lockdown", in = [] }]"#, "at least one"),
            (r#"require = [{ fact = "kernel.lockdown", in = "none" }]"#, "at least one"),
            (r#"require = [{ fact = "kernel.tainted", eq = 1.0 }]"#, "this is float"),
            (
                r#"require = [{ fact = "kernel.tainted", eq = 9223372036854775808 }]"#,
                "whole number",
            ),
            (
                r#"require = [{ fact = "secureboot", eq = true, min_rank = "root" }]"#,
                "a rank is one of",
            ),
            (
                r#"require = [{ fact = "secureboot", eq = true, max_age = "1s" }]"#,
                "3 s is the least",
            ),
            (
                r#"require = [{ fact = "secureboot", eq = true, source = "external:x" }]"#,
                "not supported yet",
            ),
            (r#"require = [{ fact = "os.version", in_refset = "x" }]"#, "no such reference set"),
            (r#"require = [{ fact = "workload.uid", eq = 0 }]"#, "a fact of a process"),
            (r#"require = [{ fact = "secureboot", any = [] }]"#, "exactly one of fact"),
            ("quote_max_age = \"1h\"", "not supported yet"),
            ("max_age = 60", "a duration is"),
            ("max_age = \"-1s\"", "a duration is"),
            ("max_age = \"1d\"", "a duration is"),
            ("max_age = \"é\"", "a duration is"),
            ("max_age = \"200h\"", "a week is the most"),
            ("max_age = \"1s\"\nmax_age = \"2s\"", "duplicate key"),
            ("require = [", ""),
        ] {
            let found = faults(&profile(body));
            assert!(found.iter().any(|fault| fault.contains(want)), "{body}: {found:?}");
        }
        for name in ["any", "unknown", "A", "\"a|b\"", "\"a=t\"", "\"\"", "1a"] {
            let text = good.replace("profile.p", &format!("profile.{name}"));
            assert!(parse("posture.toml", &text).is_err(), "{name}");
        }
    }

    #[test]
    fn a_child_is_never_laxer() {
        let text = |age: &str| {
            let parent =
                profile("max_age = \"60s\"\nrequire = [{ fact = \"secureboot\", eq = true }]");
            format!("{parent}[profile.q]\nextends = \"p\"\n{age}\n")
        };
        let ages = |text: &str| -> Vec<u64> {
            parse("f", text).unwrap().0.iter().map(|profile| profile.max_age.as_secs()).collect()
        };
        assert_eq!(ages(&text("")), [60, 60]);
        assert_eq!(ages(&text("max_age = \"5s\"")), [60, 5]);
        let found = faults(&text("max_age = \"2m\""));
        assert!(found[0].starts_with("6:11 the profile would be laxer"), "{found:?}");
    }

    #[test]
    fn faults_of_reference_sets_have_their_places() {
        let text = r#"[refset.images]
values = [ { value = "12", label = "bookworm" }, { value = "12", label = "twice" },
  { value = 13, label = "number" }, { value = "14" }, { sha256 = "AB", label = "x" },
  { value = "15", label = "x", until = "2027-02-30" }, { label = "none" }, 7,
  { value = "16", label = "x", end = "2027-01-01" }, { value = true, label = "x" } ]
[refset.Bad]
values = [ { value = "1", label = "x" } ]
extra = 1
[profile.p]
require = [ { fact = "os.version", in_refset = "image" }, { fact = "secureboot", in_refset = "images" } ]
"#;
        assert_eq!(
            faults(text),
            [
                "2:60 this value stands twice in the set",
                "3:13 the values of a set are of one type; this is another",
                "3:37 a reference value needs a label (say what it is, for example label = \"image of March\")",
                "3:66 a SHA-256 is 64 digits of 0-9 and a-f",
                "4:40 not a date (write \"2027-03-01\" (its begin, UTC) or \"2027-03-01T12:00:00Z\")",
                "4:56 it must be exactly one of value and sha256",
                "4:76 a reference value is a table (write { value = …, label = \"…\" })",
                "5:32 no such key: \"end\" (known are value, sha256, label, until)",
                "5:64 a reference value is text of at most 512 bytes, or a whole number",
                "6:9 \"Bad\" can't be a set's name (a name is a-z, 0-9, `-` and `_`, at most 128 characters)",
                "8:1 no such key: \"extra\" (known are values)",
                "10:48 no such reference set: \"image\" (did you mean `images`?)",
                "10:94 secureboot is true or false, the values of images are text",
            ]
        );
    }

    #[test]
    fn faults_are_told_up_to_a_bound() {
        let many = format!("[profile.p]\nrequire = [{}", "{ fact = \"x\", eq = 1 },".repeat(9_000));
        let found = faults(&format!("{many}]\n"));
        assert_eq!(found.len(), DIAGNOSTICS_MAX);
    }

    #[test]
    fn the_file_is_bounded() {
        let many = |n: usize| -> String {
            let one =
                |i| format!("[profile.p{i}]\nrequire = [{{ fact = \"secureboot\", eq = true }}]\n");
            (0..n).map(one).collect()
        };
        assert_eq!(parse("f", &many(PROFILES_MAX)).unwrap().0.len(), PROFILES_MAX);
        assert!(faults(&many(PROFILES_MAX + 1))[0].contains("33 profiles"));
        let facts = |n: usize| {
            let list = "{ fact = \"secureboot\", eq = true },".repeat(n);
            profile(&format!("require = [{list}]"))
        };
        assert!(parse("f", &facts(REQUIREMENTS_MAX)).is_ok());
        assert!(faults(&facts(REQUIREMENTS_MAX + 1))[0].contains("257 requirements"));
        let deep = |n: usize| {
            let (open, close) = ("{ all = [".repeat(n), "] }".repeat(n));
            profile(&format!("require = [{open}{{ fact = \"secureboot\", eq = true }}{close}]"))
        };
        assert!(parse("f", &deep(8)).is_ok());
        assert!(faults(&deep(9))[0].contains("nest at most"));
        assert!(!faults(&deep(5_000)).is_empty());
        assert!(faults(&"#".repeat(POSTURE_FILE_MAX + 1))[0].contains("the limit is"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(\\[profile\\.[a-c]\\]\n|require = |\\[|\\]|\\{|\\}|fact = \"secureboot\"|, eq = true|max_age = \"9s\"|\n|.){0,12}") {
            let _ = parse("posture.toml", &text);
        }
    }
}
