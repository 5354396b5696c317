//! The third layer of the strict loader: what may stand in each column.

use crate::model::limits::SEGMENT_MAX;
use crate::model::{Action, TrustDomain, check_segment, did_you_mean};

use super::pattern::{ANY, TIME_BYTES, UNBOUNDED};

/// Kinds of objects that have names below them.
const KINDS: &[&str] = &["secret", "svid", "entry", "device", "bundle", "log"];
/// Kinds of which there is one.
const SINGLE: &[&str] = &["policy", "seal", "backup"];
/// The one thing that stands below a kind of which there is one.
const BACKUP_KEYS: &str = "backup/keys";
/// What a group's name begins with.
pub(super) const GROUP: &str = "group:";

/// What is wrong inside one field: where (bytes from its start), how long, what, how to mend it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Offset in the field, in bytes.
    pub(super) at: usize,
    /// Length in bytes; 0 for the rest of the field.
    pub(super) bytes: usize,
    /// What is wrong.
    pub(super) message: String,
    /// How to mend it.
    pub(super) help: Option<String>,
}

impl Flaw {
    fn new(at: usize, bytes: usize, message: impl Into<String>) -> Self {
        Self { at, bytes, message: message.into(), help: None }
    }

    fn whole(message: impl Into<String>) -> Self {
        Self::new(0, 0, message)
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn near<'a>(mut self, word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        self.help = did_you_mean(word, known).map(|near| format!("did you mean `{near}`?"));
        self
    }
}

/// A row's id: `[a-z0-9-]{1,64}`, none of the reserved ones.
pub(super) fn id(text: &str) -> Result<(), Flaw> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        return Err(Flaw::whole("a row's id is 1 to 64 of a-z, 0-9 and `-`"));
    }
    if text == "sentinel" || text.starts_with("self-") || text.starts_with("task-") {
        let help = "`sentinel`, `self-…` and `task-…` are Doorward's own rules";
        return Err(Flaw::whole(format!("the id `{text}` is reserved")).help(help));
    }
    Ok(())
}

/// A subject: a pattern of SPIFFE IDs, or a group.
pub(super) fn subject(text: &str) -> Result<(), Flaw> {
    if text.starts_with(GROUP) {
        return group(text);
    }
    let Some(rest) = text.strip_prefix("spiffe://") else {
        let help = "write `spiffe://<trust domain>/<path>` or `group:<name>`";
        return Err(Flaw::whole("a subject is a SPIFFE ID pattern or a group").help(help));
    };
    let start = text.len() - rest.len();
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    if domain.contains('*') {
        let help = "name the trust domain; one row a domain";
        return Err(Flaw::new(start, domain.len(), "a wildcard in the trust domain").help(help));
    }
    if let Err(error) = TrustDomain::parse(domain) {
        return Err(Flaw::new(start, domain.len().max(1), error.to_string()));
    }
    if rest.len() == domain.len() {
        let help = "write a path; `/**` for every identity of the domain";
        return Err(Flaw::whole("a subject needs a path").help(help));
    }
    segments(path, start + domain.len() + 1)
}

/// A group's name.
pub(super) fn group(text: &str) -> Result<(), Flaw> {
    let Some(name) = text.strip_prefix(GROUP) else {
        return Err(Flaw::whole("a group is written `group:<name>`"));
    };
    check_segment(1, name).map_err(|error| {
        Flaw::new(GROUP.len(), name.len(), error.to_string()).help("a group's name is one segment")
    })
}

/// An object pattern.
pub(super) fn object(text: &str) -> Result<(), Flaw> {
    let (kind, rest) = text.split_once('/').unwrap_or((text, ""));
    let deep = text.len() > kind.len();
    if SINGLE.contains(&kind) {
        return match deep {
            false => Ok(()),
            true if text == BACKUP_KEYS => Ok(()),
            true if kind == "backup" => {
                let help = format!("write `{kind}` for the data, `{BACKUP_KEYS}` for the keys");
                Err(Flaw::new(kind.len(), 0, "this is no part of a backup").help(help))
            }
            true => Err(Flaw::new(kind.len(), 0, format!("nothing stands below `{kind}`"))),
        };
    }
    if !KINDS.contains(&kind) {
        let known = KINDS.iter().chain(SINGLE).copied();
        let flaw = Flaw::new(0, kind.len().max(1), format!("`{kind}` is no kind of object"));
        let flaw = flaw.near(kind, known.clone());
        let all = || format!("kinds are {}", known.collect::<Vec<_>>().join(", "));
        return Err(match flaw.help {
            Some(_) => flaw,
            None => flaw.help(all()),
        });
    }
    if !deep {
        let help = format!("write `{kind}/**` for all of them");
        return Err(Flaw::whole(format!("`{kind}` alone names nothing")).help(help));
    }
    segments(rest, kind.len() + 1)
}

fn segments(path: &str, start: usize) -> Result<(), Flaw> {
    let mut at = start;
    let count = path.split('/').count();
    for (number, segment) in path.split('/').enumerate() {
        let last = number + 1 == count;
        let flaw = |message: &str| Flaw::new(at, segment.len().max(1), message);
        match segment {
            "*" => {}
            "**" if last => {}
            "**" => return Err(flaw("`**` stands only at the end")),
            part if part.contains('*') => {
                return Err(flaw("`*` stands for a whole segment, never for a part of one"));
            }
            part => {
                if let Err(error) = check_segment(number + 1, part) {
                    return Err(Flaw::new(at, part.len().clamp(1, SEGMENT_MAX), error.to_string()));
                }
            }
        }
        at += segment.len() + 1;
    }
    Ok(())
}

/// An action's word, or `*`.
pub(super) fn action(text: &str) -> Result<(), Flaw> {
    if text == "*" || Action::parse(text).is_some() {
        return Ok(());
    }
    let known = Action::ALL.iter().map(|action| action.as_str());
    Err(Flaw::whole(format!("no action is called `{text}`")).near(text, known))
}

/// A profile of `posture.toml`, or `any`; any word while it is not known which there are.
pub(super) fn profile(text: &str, known: Option<&[String]>) -> Result<(), Flaw> {
    let Some(known) = known else { return Ok(()) };
    if text == ANY || known.iter().any(|name| name == text) {
        return Ok(());
    }
    let words = known.iter().map(String::as_str).chain([ANY]);
    let flaw = Flaw::whole(format!("posture.toml has no profile `{text}`")).near(text, words);
    Err(match flaw.help {
        Some(_) => flaw,
        None => flaw.help("write `any` where the device does not matter"),
    })
}

/// One end of a window.
pub(super) fn time(text: &str) -> Result<(), Flaw> {
    if text == UNBOUNDED || is_time(text) {
        return Ok(());
    }
    Err(Flaw::whole("not a time").help("write `YYYY-MM-DDTHH:MM:SSZ` in UTC, or `-`"))
}

/// Whether a text is a real moment in the one form of windows.
pub(super) fn is_time(text: &str) -> bool {
    let form = time::macros::format_description!(
        version = 2,
        "[year padding:zero repr:full range:standard]-[month]-[day]T[hour]:[minute]:[second]Z"
    );
    text.len() == TIME_BYTES
        && text.is_ascii()
        && text.starts_with(|c: char| c.is_ascii_digit())
        && time::PrimitiveDateTime::parse(text, form).is_ok()
}

/// A window with something in it.
pub(super) fn window(nbf: &str, exp: &str) -> Result<(), Flaw> {
    if nbf != UNBOUNDED && exp != UNBOUNDED && nbf >= exp {
        return Err(Flaw::whole("the window ends before it begins").help("swap the two times"));
    }
    Ok(())
}

/// The effect, byte for byte.
pub(super) fn effect(text: &str) -> Result<(), Flaw> {
    if matches!(text, "allow" | "deny") {
        return Ok(());
    }
    let flaw = Flaw::whole(format!("`{text}` is no effect; effects are `allow` and `deny`"));
    Err(flaw.near(&text.to_ascii_lowercase(), ["allow", "deny"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects() {
        for good in [
            "spiffe://corp.example/ns/pay/sa/api",
            "spiffe://corp.example/ns/*/sa/api",
            "spiffe://corp.example/**",
            "spiffe://corp.example/*",
            "group:ops",
        ] {
            assert_eq!(subject(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "alice",
            "*",
            "**",
            "spiffe://*/x",
            "spiffe://*.example/x",
            "spiffe://**",
            "spiffe://corp.example",
            "spiffe://corp.example/",
            "spiffe://corp.example/a//b",
            "spiffe://corp.example/a/**/b",
            "spiffe://corp.example/a*",
            "spiffe://Corp.example/a",
            "spiffe://corp.example/../x",
            "spiffe://corp.example/a|b",
            "SPIFFE://corp.example/a",
            "group:",
            "group:a/b",
            "group:*",
            "Group:ops",
        ] {
            assert!(subject(bad).is_err(), "{bad}");
        }
        assert_eq!(subject("spiffe://corp.*/x").unwrap_err().at, 9, "the caret is on the domain");
    }

    #[test]
    fn objects() {
        for good in
            ["secret/**", "secret/pay/*/url", "policy", "seal", "backup", "backup/keys", "log/*"]
        {
            assert_eq!(object(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "*",
            "**",
            "secret",
            "secrets/pay/x",
            "secret/",
            "secret/pay/",
            "secret//x",
            "secret/../x",
            "secret/./x",
            "secret/a*",
            "secret/**/x",
            "policy/x",
            "policy/**",
            "secret/[",
            "secret/(a|b)",
            "/secret/x",
            "secret/.*",
        ] {
            assert!(object(bad).is_err(), "{bad}");
        }
        assert_eq!(object("secrets/x").unwrap_err().help.unwrap(), "did you mean `secret`?");
    }

    #[test]
    fn words_times_and_effects() {
        assert_eq!((action("read"), action("*")), (Ok(()), Ok(())));
        assert_eq!(action("raed").unwrap_err().help.unwrap(), "did you mean `read`?");
        assert!(action("Read").is_err() && action("").is_err());
        for bad in ["Allow", "Deny", "deny ", "DENY", "", "indeterminate"] {
            assert!(effect(bad).is_err(), "{bad}");
        }
        for good in ["-", "2026-11-23T00:00:00Z", "2028-02-29T23:59:59Z", "2106-02-07T06:28:16Z"] {
            assert_eq!(time(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "4102444800",
            "2026-11-23",
            "2026-02-29T00:00:00Z",
            "2026-11-23T00:00:00+00:00",
            "2026-11-23t00:00:00z",
            "2026-11-23T24:00:00Z",
            "+026-11-23T00:00:00Z",
            "2026-11-23T00:00:60Z",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert!(window("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z").is_err());
        let known = ["managed".to_owned()];
        assert_eq!(
            (profile("any", Some(&known)), profile("managed", Some(&known))),
            (Ok(()), Ok(()))
        );
        assert!(profile("manged", Some(&known)).unwrap_err().help.unwrap().contains("managed"));
        assert_eq!(profile("manged", None), Ok(()), "while it is not known");
        for bad in ["sentinel", "self-report", "task-x", "A", "a_b", ""] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
