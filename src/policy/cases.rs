//! The tests that a bundle carries: `tests/*.toml`, run by Casbin each time the bundle is built; those of
//! profiles by `posture_cases`.
//!
//! A case that can't fail is a fault: an unknown field, a word that no policy knows, an allow that
//! names no row. The rows that count must be exactly the rows that the case names.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use serde::Deserialize;
use toml::Spanned;

use crate::model::limits::DIAGNOSTICS_MAX;
use crate::model::{Action, Diagnostic, Object, SpiffeId, did_you_mean};
use crate::posture::Profiles;

use super::access::{Access, Steps};
use super::analysis::{first_given, patterns};
use super::judge::{Rules, Seen};
use super::pattern::UNKNOWN;
use super::posture_cases::{self, PostureCase};
use super::region::Actions;
use super::scope::Mode;
use super::values::{self, is_time};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    #[serde(default)]
    case: Vec<Case>,
    #[serde(default)]
    posture: Vec<PostureCase>,
    #[serde(default)]
    never: Vec<Never>,
}

/// A claim about all requests: nobody of these may ever do that.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Never {
    name: Spanned<String>,
    sub: Spanned<String>,
    obj: Spanned<String>,
    act: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: Spanned<String>,
    sub: Spanned<String>,
    obj: Spanned<String>,
    act: Spanned<String>,
    post: Spanned<Held>,
    now: Spanned<String>,
    want: Spanned<Want>,
    rows: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Held {
    Word(String),
    Profiles(Vec<String>),
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Want {
    Allow,
    Deny,
}

/// What all claims of a bundle share.
pub(super) struct Claims<'r> {
    pub(super) steps: &'r Steps,
    /// What the rows give; only where there is a claim.
    pub(super) access: OnceCell<Access<'r>>,
}

/// One file under test.
struct Running<'t, 'r> {
    file: &'t str,
    text: &'t str,
    rules: &'r Rules,
    profiles: &'t [String],
    claims: &'t Claims<'r>,
    faults: Vec<Diagnostic>,
}

fn parse(file: &str, text: &str) -> Result<CaseFile, Vec<Diagnostic>> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..1);
        let message = error.message().to_owned();
        vec![Diagnostic::at(file, text, span.start, span.len().max(1), message)]
    })
}

/// Runs the cases of one file; how many there were. `names` are those of the profiles.
///
/// # Errors
/// Every case that is not sound, and every one that comes out otherwise.
pub(super) fn run<'r>(
    file: &str,
    text: &str,
    rules: &'r Rules,
    (profiles, names): (&Profiles, &[String]),
    claims: &Claims<'r>,
) -> Result<usize, Vec<Diagnostic>> {
    let parsed = parse(file, text)?;
    let mut running = Running { file, text, rules, profiles: names, claims, faults: Vec::new() };
    let count = parsed.case.len() + parsed.never.len() + parsed.posture.len();
    if count == 0 {
        let message = "no [[case]], no [[never]] and no [[posture]] in this file";
        running.faults.push(Diagnostic::at(file, text, 0, 1, message));
    }
    let mut names = BTreeSet::new();
    let cases = parsed.case.iter().map(|case| (&case.name, Claim::Case(case)));
    let nevers = parsed.never.iter().map(|never| (&never.name, Claim::Never(never)));
    for (name, claim) in cases.chain(nevers) {
        if !names.insert(name.get_ref().as_str()) {
            running.fault(name, "two cases have this name", None);
        }
        match claim {
            Claim::Case(case) => running.case(case),
            Claim::Never(never) => running.never(never),
        }
        if running.faults.len() >= DIAGNOSTICS_MAX {
            break;
        }
    }
    running.faults.extend(posture_cases::run(file, text, &parsed.posture, profiles));
    if running.faults.is_empty() { Ok(count) } else { Err(running.faults) }
}

/// Runs only the cases of profiles; how many there were.
///
/// # Errors
/// As [`run`].
pub(super) fn run_postures(
    file: &str,
    text: &str,
    profiles: &Profiles,
) -> Result<usize, Vec<Diagnostic>> {
    let parsed = parse(file, text)?;
    let faults = posture_cases::run(file, text, &parsed.posture, profiles);
    if faults.is_empty() { Ok(parsed.posture.len()) } else { Err(faults) }
}

/// A fault of what stands at that place of a file.
pub(super) fn fault_at<T>(
    (file, text): (&str, &str),
    at: &Spanned<T>,
    message: impl Into<String>,
    help: Option<String>,
) -> Diagnostic {
    let span = at.span();
    let fault = Diagnostic::at(file, text, span.start, span.len().max(1), message);
    match help {
        Some(help) => fault.help(help),
        None => fault,
    }
}

enum Claim<'c> {
    Case(&'c Case),
    Never(&'c Never),
}

impl Running<'_, '_> {
    fn fault<T>(&mut self, at: &Spanned<T>, message: impl Into<String>, help: Option<String>) {
        self.faults.push(fault_at((self.file, self.text), at, message, help));
    }

    fn case(&mut self, case: &Case) {
        let before = self.faults.len();
        self.check_names(case);
        let label = self.label(&case.post);
        let action = Action::parse(case.act.get_ref());
        let wanted = self.wanted_rows(case);
        let (Some(action), true) = (action, self.faults.len() == before) else {
            return;
        };
        let judged = self.rules.judge(
            case.sub.get_ref(),
            action,
            case.obj.get_ref(),
            Seen::Label(&label),
            case.now.get_ref(),
            Mode::Ordinary,
        );
        let name = case.name.get_ref();
        let ids: Vec<&str> = judged.rules.iter().map(|rule| &*rule.id).collect();
        let came = || match ids.is_empty() {
            true => format!("{} {}; no row counts", judged.reason.code(), judged.reason.word()),
            false => {
                format!("{} {} by {}", judged.reason.code(), judged.reason.word(), ids.join(", "))
            }
        };
        if judged.allowed != (*case.want.get_ref() == Want::Allow) {
            let message = format!("{name:?} comes out otherwise: {}", came());
            self.fault(&case.want, message, None);
        } else if wanted != ids.iter().copied().collect() {
            let message = format!("{name:?} comes out by other rows: {}", came());
            self.fault(&case.rows, message, None);
        }
    }

    fn never(&mut self, never: &Never) {
        let before = self.faults.len();
        self.check_title(&never.name);
        for (text, flaw) in [
            (&never.sub, values::subject(never.sub.get_ref())),
            (&never.obj, values::object(never.obj.get_ref())),
        ] {
            if let Err(flaw) = flaw {
                self.fault(text, flaw.message, flaw.help);
            }
        }
        let act = never.act.as_ref().map(|act| self.action(act));
        let rules = self.rules;
        let subjects = patterns(&rules.set, never.sub.get_ref()).unwrap_or_default();
        if subjects.is_empty() {
            self.fault(&never.sub, "nobody is in this group, so the claim says nothing", None);
        }
        if self.faults.len() > before {
            return;
        }
        let act = act.flatten().map_or_else(Actions::all, Actions::one);
        let obj = never.obj.get_ref();
        let name = never.name.get_ref();
        let Claims { steps, access } = self.claims;
        let access = access.get_or_init(|| Access::new(&rules.set, self.profiles, steps));
        match first_given(access, self.profiles, &subjects, obj, act) {
            Ok(None) => {}
            Ok(Some(given)) => {
                let help = format!("the rows give: {given}");
                self.fault(&never.name, format!("{name:?} does not hold"), Some(help));
            }
            Err(error) => self.fault(&never.name, error.to_string(), None),
        }
    }

    fn check_title(&mut self, name: &Spanned<String>) {
        if name.get_ref().trim().is_empty() {
            self.fault(name, "a case needs a name", None);
        }
    }

    /// The action of that name; a fault where there is none.
    fn action(&mut self, act: &Spanned<String>) -> Option<Action> {
        let text = act.get_ref();
        let found = Action::parse(text);
        if found.is_none() {
            let known = Action::ALL.iter().map(|action| action.as_str());
            let help = did_you_mean(text, known).map(|near| format!("did you mean `{near}`?"));
            self.fault(act, format!("no action is called `{text}`"), help);
        }
        found
    }

    fn check_names(&mut self, case: &Case) {
        self.check_title(&case.name);
        if let Err(error) = SpiffeId::parse(case.sub.get_ref()) {
            self.fault(&case.sub, error.to_string(), None);
        }
        if let Err(error) = Object::parse(case.obj.get_ref(), &self.rules.domain) {
            self.fault(&case.obj, error.to_string(), None);
        }
        self.action(&case.act);
        if !is_time(case.now.get_ref()) {
            let help = "write `YYYY-MM-DDTHH:MM:SSZ` in UTC".to_owned();
            self.fault(&case.now, "not a time", Some(help));
        }
    }

    /// The label that a device with these profiles has.
    fn label(&mut self, post: &Spanned<Held>) -> String {
        let held = match post.get_ref() {
            Held::Word(word) if word == UNKNOWN => return UNKNOWN.to_owned(),
            Held::Word(_) => {
                let help = "write `post = \"unknown\"` or `post = [\"<profile>\", …]`".to_owned();
                self.fault(post, "not a posture", Some(help));
                return UNKNOWN.to_owned();
            }
            Held::Profiles(held) => held,
        };
        let mut label = String::from("|");
        let sorted: BTreeSet<&str> = held.iter().map(String::as_str).collect();
        for name in sorted {
            if !self.profiles.iter().any(|known| known == name) {
                let near = did_you_mean(name, self.profiles.iter().map(String::as_str));
                let help = near.map(|near| format!("did you mean `{near}`?"));
                self.fault(post, format!("posture.toml has no profile `{name}`"), help);
            }
            label.push_str(name);
            label.push_str("=t|");
        }
        label
    }

    fn wanted_rows<'c>(&mut self, case: &'c Case) -> BTreeSet<&'c str> {
        let rows = case.rows.get_ref();
        if rows.is_empty() && *case.want.get_ref() == Want::Allow {
            self.fault(&case.rows, "an allow comes from a row: name it", None);
        }
        for row in rows {
            let id = row.get_ref();
            let known = || self.rules.set.rows.iter().map(|row| row.id());
            if !known().any(|known| known == id) {
                let help = did_you_mean(id, known()).map(|near| format!("did you mean `{near}`?"));
                self.fault(row, format!("no row has the id `{id}`"), help);
            }
        }
        rows.iter().map(|row| row.get_ref().as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::Index;
    use super::super::parser::parse;
    use super::*;
    use crate::model::TrustDomain;

    const GOOD: &str = r#"
[[case]]
name = "a"
sub = "spiffe://d/api"
obj = "secret/pay/x"
act = "read"
post = ["m"]
now = "2026-06-01T00:00:00Z"
want = "allow"
rows = ["pay"]
"#;

    fn faults(text: &str) -> Vec<String> {
        let profiles = ["m".to_owned()];
        let policy = "p, pay, spiffe://d/api, secret/pay/**, read, m, -, -, allow\n\
                      p, no, spiffe://d/**, secret/pay/no, read, any, -, -, deny\n";
        let set = parse(policy, &profiles).unwrap();
        let index = Index::new(&set);
        let rules = Rules {
            set,
            index,
            domain: TrustDomain::parse("d").unwrap(),
            memory: Default::default(),
        };
        let steps = Steps::new(1000);
        let claims = Claims { steps: &steps, access: OnceCell::new() };
        let list = run("tests/t.toml", text, &rules, (&Profiles::default(), &profiles), &claims)
            .err()
            .unwrap_or_default();
        list.into_iter().map(|f| format!("{}:{} {}", f.line, f.column, f.message)).collect()
    }

    #[test]
    fn a_sound_case_passes_and_a_wrong_one_says_what_came_out() {
        assert_eq!(faults(GOOD), [""; 0]);
        let deny = GOOD.replace("\"allow\"", "\"deny\"");
        assert_eq!(faults(&deny), ["9:8 \"a\" comes out otherwise: A001 allow by pay"]);
        let unmet = GOOD.replace("[\"m\"]", "[]");
        assert!(faults(&unmet)[0].contains("D201 posture_unmet; no row counts"));
        let unknown = GOOD.replace("[\"m\"]", "\"unknown\"");
        assert!(faults(&unknown)[0].contains("D203"));
        let other = GOOD.replace("pay/x", "pay/no").replace("\"allow\"", "\"deny\"");
        assert!(faults(&other)[0].contains("comes out by other rows: D102 deny_row by no, pay"));
    }

    #[test]
    fn a_claim_holds_over_all_requests_or_is_answered_with_one() {
        let claim = |sub: &str, obj: &str, act: &str| {
            let act = if act.is_empty() { String::new() } else { format!("act = {act:?}\n") };
            faults(&format!("[[never]]\nname = \"n\"\nsub = {sub:?}\nobj = {obj:?}\n{act}"))
        };
        assert_eq!(claim("spiffe://d/*", "secret/pay/no", ""), [""; 0], "a deny holds it");
        assert_eq!(claim("spiffe://d/other", "secret/**", ""), [""; 0]);
        assert_eq!(claim("spiffe://d/api", "secret/pay/**", "write"), [""; 0]);
        assert_eq!(claim("spiffe://d/**", "secret/pay/**", "read").len(), 1);
        assert_eq!(claim("spiffe://d/api", "secret/*/x", "").len(), 1);
        for (sub, obj, act) in [
            ("group:none", "secret/pay/**", ""),
            ("spiffe://*/api", "secret/pay/**", ""),
            ("api", "secret/pay/**", ""),
            ("spiffe://d/api", "secrets/pay/**", ""),
            ("spiffe://d/api", "secret/pay/**", "raed"),
        ] {
            assert!(!claim(sub, obj, act).is_empty(), "{sub} {obj} {act}");
        }
    }

    #[test]
    fn claims_that_would_take_for_ever_are_refused() {
        let claim = |n: usize| {
            format!("[[never]]\nname = \"{n}\"\nsub = \"spiffe://d/**\"\nobj = \"secret/pay/no\"\n")
        };
        let many: String = (0..2000).map(claim).collect();
        assert!(faults(&many)[0].contains("takes too long"), "a thousand steps are over");
    }

    #[test]
    fn a_case_that_cannot_fail_is_a_fault() {
        assert!(!faults("").is_empty() && !faults("# none\n").is_empty());
        for (from, to) in [
            ("name = \"a\"", "name = \" \""),
            ("rows = [\"pay\"]", "rows = []"),
            ("rows = [\"pay\"]", "rows = [\"payy\"]"),
            ("rows = [\"pay\"]", ""),
            ("want =", "wants ="),
            ("want = \"allow\"", "want = \"Allow\""),
            ("\"read\"", "\"raed\""),
            ("secret/pay/x", "secrets/pay/x"),
            ("secret/pay/x", "secret/pay/*"),
            ("spiffe://d/api", "group:x"),
            ("[\"m\"]", "[\"n\"]"),
            ("[\"m\"]", "\"m\""),
            ("2026-06-01T00:00:00Z", "2026-06-01"),
            ("[[case]]", "[[never]]"), // a claim has no posture, no time and no outcome
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(!faults(&GOOD.replace(from, to)).is_empty(), "{to}");
        }
        assert!(faults(&format!("{GOOD}{GOOD}"))[0].contains("two cases have this name"));
    }
}
