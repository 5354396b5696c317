//! Cases of profiles in `tests/*.toml`: given these facts, these profiles are held, and the others lack
//! exactly this. They run each time a bundle is built, and by `doorward posture test`.
//!
//! A case judges what a profile means, not its mode: one that only watches is tested as if it refused. A
//! case that can't fail is a fault: a fact that no profile asks for, an outcome that would be
//! the same without any of its facts, a name that nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use toml::Spanned;

use super::cases::fault_at;
use crate::model::limits::DIAGNOSTICS_MAX;
use crate::model::{Diagnostic, did_you_mean};
use crate::posture::{FactName, Facts, Origin, Profiles, parse_age, parse_moment};

/// One `[[posture]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostureCase {
    name: Spanned<String>,
    facts: Spanned<BTreeMap<Spanned<String>, Spanned<Given>>>,
    age: Option<Spanned<String>>,
    now: Option<Spanned<String>>,
    held: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    lacks: BTreeMap<Spanned<String>, Spanned<Vec<Spanned<String>>>>,
}

/// What a case gives of one fact.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Bool(bool),
    Number(i64),
    Text(String),
    Form(Form),
}

/// A fact with more than its value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    value: Option<Plain>,
    rank: Option<String>,
    unknown: Option<String>,
}

#[derive(Deserialize, serde::Serialize)]
#[serde(untagged)]
enum Plain {
    Bool(bool),
    Number(i64),
    Text(String),
}

/// One file under test.
struct Running<'t> {
    file: &'t str,
    text: &'t str,
    profiles: &'t Profiles,
    asked: BTreeSet<FactName>,
    faults: Vec<Diagnostic>,
}

/// Runs the cases of one file.
pub(super) fn run(
    file: &str,
    text: &str,
    cases: &[PostureCase],
    profiles: &Profiles,
) -> Vec<Diagnostic> {
    let asked = profiles.facts();
    let mut running = Running { file, text, profiles, asked, faults: Vec::new() };
    let mut names = BTreeSet::new();
    for case in cases {
        if !names.insert(case.name.get_ref().as_str()) {
            running.fault(&case.name, "two cases have this name", None);
        }
        running.case(case);
        if running.faults.len() >= DIAGNOSTICS_MAX {
            break;
        }
    }
    running.faults
}

fn near<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    did_you_mean(word, known).map(|near| format!("did you mean `{near}`?"))
}

fn list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

impl Running<'_> {
    fn fault<T>(&mut self, at: &Spanned<T>, message: impl Into<String>, help: Option<String>) {
        self.faults.push(fault_at((self.file, self.text), at, message, help));
    }

    fn case(&mut self, case: &PostureCase) {
        let before = self.faults.len();
        if case.name.get_ref().trim().is_empty() {
            self.fault(&case.name, "a case needs a name", None);
        }
        let facts = self.facts(case);
        let age = self.age(case);
        let now_s = self.now(case);
        let held = self.profile_names(case.held.get_ref());
        let lacks = self.lacks(case);
        let (Some(facts), Some(age), Some(now_s)) = (facts, age, now_s) else { return };
        if self.faults.len() > before {
            return;
        }
        self.outcome(case, &facts, (age, now_s), &held, &lacks);
    }

    fn outcome(
        &mut self,
        case: &PostureCase,
        facts: &Facts,
        (age, now_s): (Duration, i64),
        held: &BTreeSet<&str>,
        lacks: &BTreeMap<&str, BTreeSet<FactName>>,
    ) {
        let name = case.name.get_ref();
        let profiles = self.profiles;
        let met = |facts: &Facts, age| -> BTreeMap<&str, BTreeSet<FactName>> {
            let lacking = |name| profiles.lacking(name, facts, age, now_s).unwrap_or_default();
            profiles.names().map(|name| (name, lacking(name))).collect()
        };
        let came = met(facts, age);
        let came_held: BTreeSet<&str> =
            came.iter().filter(|(_, lacking)| lacking.is_empty()).map(|(name, _)| *name).collect();
        if came_held != *held {
            let lacking = came.iter().filter(|(_, lacking)| !lacking.is_empty());
            let why = lacking.map(|(name, lacking)| format!("{name} lacks {}", list(lacking)));
            let message = format!("{name:?} comes out otherwise: {} held", list(&came_held));
            self.fault(&case.held, message, Some(why.collect::<Vec<_>>().join("; ")));
            return;
        }
        for (at, wanted) in &case.lacks {
            let profile = at.get_ref().as_str();
            let came = came.get(profile).cloned().unwrap_or_default();
            if lacks.get(profile) != Some(&came) {
                let message = format!("{name:?}: {profile} lacks {}", list(&came));
                self.fault(wanted, message, None);
            }
        }
        let same = |facts: &Facts, age, now_s| {
            let lacking = |name| profiles.lacking(name, facts, age, now_s).unwrap_or_default();
            let met = profiles.names().filter(|name| lacking(name).is_empty());
            met.collect::<BTreeSet<_>>() == came_held
        };
        let idle = same(&Facts::default(), age, now_s)
            && same(facts, Duration::ZERO, now_s)
            && same(facts, age, 0);
        if case.lacks.is_empty() && idle {
            let message = format!("{name:?} would come out the same without its facts");
            let help = "name what a profile lacks: lacks = { <profile> = [\"<fact>\"] }";
            self.fault(&case.held, message, Some(help.to_owned()));
        }
    }

    /// The facts of the case in the form of a report; `None` with faults.
    fn facts(&mut self, case: &PostureCase) -> Option<Facts> {
        let mut report = serde_json::Map::new();
        let before = self.faults.len();
        for (name, given) in case.facts.get_ref() {
            let text = name.get_ref();
            let Some(fact) = FactName::parse(text) else {
                let help = near(text, FactName::all().map(FactName::as_str));
                self.fault(name, format!("no such fact: {text:?}"), help);
                continue;
            };
            if fact.row().origin == Origin::Broker {
                let message = format!("{fact} is stated by the broker, for every enrolled device");
                self.fault(name, message, None);
            } else if !self.asked.contains(&fact) {
                self.fault(
                    name,
                    format!("no profile asks for {fact}, so it changes nothing"),
                    None,
                );
            } else if let Some(form) = self.given(fact, given) {
                report.insert(text.clone(), form);
            }
        }
        let facts = serde_json::from_value(Value::Object(report));
        let facts = facts.map_err(|error| self.fault(&case.facts, error.to_string(), None)).ok()?;
        (self.faults.len() == before).then_some(facts)
    }

    fn given(&mut self, fact: FactName, given: &Spanned<Given>) -> Option<Value> {
        let row = fact.row();
        let value = match given.get_ref() {
            Given::Bool(value) => Plain::Bool(*value),
            Given::Number(value) => Plain::Number(*value),
            Given::Text(value) => Plain::Text(value.clone()),
            Given::Form(Form { unknown: Some(why), value: None, rank: None }) => {
                let known = ["absent", "denied", "error"];
                if known.contains(&why.as_str()) {
                    return Some(json!({ "u": why }));
                }
                let help = Some(format!("the reasons are {}", known.join(", ")));
                self.fault(given, format!("no such reason: {why:?}"), help);
                return None;
            }
            Given::Form(Form { value: Some(value), rank, unknown: None }) => {
                let form = json!({ "v": value, "r": rank.as_deref().unwrap_or(row.rank.word()) });
                return self.checked(fact, given, form);
            }
            Given::Form(_) => {
                let help = "write { value = …, rank = \"…\" } or { unknown = \"absent\" }";
                self.fault(given, "not a fact", Some(help.to_owned()));
                return None;
            }
        };
        let form = json!({ "v": value, "r": row.rank.word() });
        self.checked(fact, given, form)
    }

    /// The form, if a report could carry it: its type, its size and its rank.
    fn checked(&mut self, fact: FactName, at: &Spanned<Given>, form: Value) -> Option<Value> {
        match serde_json::from_value::<Facts>(json!({ fact.as_str(): form })) {
            Ok(_) => Some(form),
            Err(error) => {
                self.fault(at, error.to_string(), None);
                None
            }
        }
    }

    fn age(&mut self, case: &PostureCase) -> Option<Duration> {
        let Some(age) = &case.age else { return Some(Duration::ZERO) };
        let read = parse_age(age.get_ref());
        if read.is_none() {
            let help = Some("for example age = \"90s\"".to_owned());
            self.fault(age, "an age is a whole number with s, m or h", help);
        }
        read
    }

    /// The time of the case: the begin of 1970 without one, when no reference value has ended.
    fn now(&mut self, case: &PostureCase) -> Option<i64> {
        let Some(now) = &case.now else { return Some(0) };
        let read = parse_moment(now.get_ref());
        if read.is_none() {
            let help = Some("write \"2027-03-01\" or \"2027-03-01T12:00:00Z\"".to_owned());
            self.fault(now, "not a date", help);
        }
        read
    }

    fn known_profile(&mut self, name: &Spanned<String>) {
        if self.profiles.position(name.get_ref()).is_none() {
            let help = near(name.get_ref(), self.profiles.names());
            let message = format!("posture.toml has no profile `{}`", name.get_ref());
            self.fault(name, message, help);
        }
    }

    fn profile_names<'c>(&mut self, names: &'c [Spanned<String>]) -> BTreeSet<&'c str> {
        for name in names {
            self.known_profile(name);
        }
        names.iter().map(|name| name.get_ref().as_str()).collect()
    }

    fn lacks<'c>(&mut self, case: &'c PostureCase) -> BTreeMap<&'c str, BTreeSet<FactName>> {
        let mut lacks = BTreeMap::new();
        for (profile, facts) in &case.lacks {
            self.known_profile(profile);
            if facts.get_ref().is_empty() {
                self.fault(facts, "a profile that lacks nothing is held: name it there", None);
            }
            let mut names = BTreeSet::new();
            for fact in facts.get_ref() {
                match FactName::parse(fact.get_ref()) {
                    Some(name) => drop(names.insert(name)),
                    None => {
                        let help = near(fact.get_ref(), FactName::all().map(FactName::as_str));
                        self.fault(fact, format!("no such fact: {:?}", fact.get_ref()), help);
                    }
                }
            }
            lacks.insert(profile.get_ref().as_str(), names);
        }
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILES: &str = r#"
[profile.managed]
max_age = "120s"
require = [{ fact = "device.enrolled", eq = true }]
[profile.hardened]
extends = "managed"
max_age = "60s"
mode = "monitor"
require = [
  { fact = "net.listen_any", eq = false },
  { any = [{ fact = "selinux.enforce", eq = true }, { fact = "apparmor.enabled", eq = true }] },
  { fact = "os.version", in_refset = "images", min_rank = "agent" },
]
[refset.images]
values = [ { value = "12", label = "bookworm", until = "2027-03-01" } ]
"#;

    const GOOD: &str = r#"
[[posture]]
name = "a"
facts = { "net.listen_any" = false, "apparmor.enabled" = true, "os.version" = "12" }
held = ["hardened", "managed"]
"#;

    fn faults(text: &str) -> Vec<String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct CaseFile {
            posture: Vec<PostureCase>,
        }
        let profiles = Profiles::parse("posture.toml", PROFILES).unwrap();
        let cases: CaseFile = match toml::from_str(text) {
            Ok(cases) => cases,
            Err(error) => return vec![error.message().to_owned()],
        };
        let all = run("tests/t.toml", text, &cases.posture, &profiles).into_iter();
        all.map(|f| format!("{}:{} {}", f.line, f.column, f.message)).collect()
    }

    #[test]
    fn a_sound_case_passes_and_a_wrong_one_says_what_came_out() {
        assert_eq!(faults(GOOD), [""; 0], "also where the profile only watches");
        let open = GOOD.replace("any\" = false", "any\" = true");
        assert_eq!(faults(&open), ["5:8 \"a\" comes out otherwise: managed held"]);
        let lacking = |more: &str| {
            open.replace("held = [\"hardened\", \"managed\"]", "held = [\"managed\"]") + more
        };
        assert_eq!(faults(&lacking("lacks = { hardened = [\"net.listen_any\"] }\n")), [""; 0]);
        assert_eq!(
            faults(&lacking("lacks = { hardened = [\"os.version\"] }\n")),
            ["6:22 \"a\": hardened lacks net.listen_any"]
        );
        let dark = GOOD.replace(
            "\"apparmor.enabled\" = true",
            "\"apparmor.enabled\" = { unknown = \"denied\" }",
        );
        let dark = dark.replace("[\"hardened\", \"managed\"]", "[\"managed\"]");
        let all = "lacks = { hardened = [\"selinux.enforce\", \"apparmor.enabled\"] }\n";
        assert_eq!(faults(&(dark + all)), [""; 0], "each part of an `any` that does not hold");
    }

    #[test]
    fn age_rank_and_time_decide() {
        let with = |more: &str| format!("{GOOD}{more}\n");
        assert_eq!(faults(&with("age = \"60s\"")), [""; 0]);
        assert_eq!(faults(&with("age = \"61s\"")).len(), 1);
        let silent = with("age = \"61s\"").replace("[\"hardened\", \"managed\"]", "[\"managed\"]");
        assert_eq!(faults(&silent), [""; 0], "its age is what it tests");
        let fresh = silent.replace("61s", "60s").replace("any\" = false", "any\" = true");
        assert!(
            faults(&fresh)[0].contains("the same without its facts"),
            "its age changes nothing"
        );
        assert_eq!(faults(&with("now = \"2027-02-28T23:59:59Z\"")), [""; 0]);
        assert_eq!(faults(&with("now = \"2027-03-01\"")).len(), 1);
        let weak = "\"os.version\" = { value = \"12\", rank = \"external\" }";
        assert_eq!(faults(&GOOD.replace("\"os.version\" = \"12\"", weak)).len(), 1);
    }

    #[test]
    fn a_case_that_cannot_fail_is_a_fault() {
        for (from, to) in [
            ("name = \"a\"", "name = \" \""),
            ("\"net.listen_any\"", "\"net.listen_an\""),
            ("\"net.listen_any\" = false", "\"net.listen_any\" = \"false\""),
            ("\"net.listen_any\" = false", "\"net.listen_any\" = 0"),
            (
                "\"net.listen_any\" = false",
                "\"net.listen_any\" = { value = false, rank = \"god\" }",
            ),
            ("\"net.listen_any\" = false", "\"net.listen_any\" = { unknown = \"dunno\" }"),
            (
                "\"net.listen_any\" = false",
                "\"net.listen_any\" = { value = false, unknown = \"error\" }",
            ),
            ("\"net.listen_any\" = false", "\"net.listen_any\" = { }"),
            ("\"net.listen_any\" = false", "\"net.listen_any\" = false, \"swap.active\" = false"),
            (
                "\"net.listen_any\" = false",
                "\"net.listen_any\" = false, \"device.enrolled\" = true",
            ),
            ("[\"hardened\", \"managed\"]", "[\"hardened\", \"manged\"]"),
            ("[\"hardened\", \"managed\"]", "[\"hardened\"]"),
            ("held = [", "holds = ["),
            ("facts = {", "fact = {"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(!faults(&GOOD.replace(from, to)).is_empty(), "{to}");
        }
        for more in [
            "age = \"60\"",
            "now = \"2027\"",
            "lacks = { hardened = [] }",
            "lacks = { hardened = [\"net.listen_any\"] }",
            "lacks = { other = [\"net.listen_any\"] }",
            "lacks = { hardened = [\"net.listen\"] }",
        ] {
            assert!(!faults(&format!("{GOOD}{more}\n")).is_empty(), "{more}");
        }
        assert!(faults(&format!("{GOOD}{GOOD}"))[0].contains("two cases have this name"));
        let same = "[[posture]]\nname = \"b\"\nfacts = { \"net.listen_any\" = true }\nheld = [\"managed\"]\n";
        assert_eq!(faults(same), ["4:8 \"b\" would come out the same without its facts"]);
        let said = format!(
            "{same}lacks = {{ hardened = [\"net.listen_any\", \"selinux.enforce\", \"apparmor.enabled\", \"os.version\"] }}\n"
        );
        assert_eq!(faults(&said), [""; 0]);
    }
}
