//! What must hold of every profile and every device: knowing less, older or from a weaker voice
//! never makes a profile held that was not.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::catalog::{FactKind, Origin};
use super::fact::{FactName, Facts, Rank};
use super::profile::{Profiles, When};

/// The facts that a device states.
fn stated() -> Vec<FactName> {
    FactName::all().filter(|name| name.row().origin == Origin::Device).collect()
}

/// A value of a small domain, so that profiles meet some and fail others.
fn value(name: FactName, n: u8) -> Value {
    match name.row().kind {
        FactKind::Bool => json!(n.is_multiple_of(2)),
        FactKind::Number => json!(n % 3),
        FactKind::Text => json!(["1.0", "2.0", "integrity"][usize::from(n % 3)]),
    }
}

/// One requirement in the words of the file.
fn requirement(name: FactName, test: u8, n: u8, rank: u8, age: u8) -> String {
    let want = value(name, n).to_string();
    let test = match (name.row().kind, test % 5) {
        (FactKind::Number, 0) => format!("le = {want}"),
        (FactKind::Number, 1) => format!("ge = {want}"),
        (FactKind::Number, 2) if !name.row().bits.is_empty() => {
            "mask_clear = [\"forced_module\"]".to_owned()
        }
        (FactKind::Text, 0) => "version_ge = \"1.5\"".to_owned(),
        (FactKind::Text, 1) => "in_refset = \"set\"".to_owned(),
        (_, 3) => format!("ne = {want}"),
        (_, 4) => format!("in = [{want}]"),
        _ => format!("eq = {want}"),
    };
    let rank = match rank % 4 {
        0 => String::new(),
        1 => ", min_rank = \"agent\"".to_owned(),
        2 => ", min_rank = \"kernel\"".to_owned(),
        _ => ", min_rank = \"external\"".to_owned(),
    };
    let age = if age.is_multiple_of(3) { ", max_age = \"5s\"" } else { "" };
    format!("{{ fact = \"{name}\", {test}{rank}{age} }}")
}

/// A file of four profiles, two of them watching, over these requirements.
fn file(parts: &[(prop::sample::Index, u8, u8, u8, u8)]) -> String {
    let names = stated();
    let all: Vec<String> = parts
        .iter()
        .map(|(at, test, n, rank, age)| requirement(*at.get(&names), *test, *n, *rank, *age))
        .collect();
    let some =
        |from: usize| all.iter().skip(from).step_by(4).cloned().collect::<Vec<_>>().join(", ");
    format!(
        "[refset.set]\nvalues = [ {{ value = \"1.0\", label = \"a\", until = \"1970-01-01T00:00:50Z\" }}, \
         {{ value = \"2.0\", label = \"b\" }} ]\n\
         [profile.a]\nmax_age = \"20s\"\nrequire = [{}]\n\
         [profile.b]\nextends = \"a\"\nmode = \"monitor\"\nrequire = [{}]\n\
         [profile.c]\nextends = \"b\"\nmax_age = \"10s\"\nrequire = [{{ any = [{}] }}]\n\
         [profile.d]\nmode = \"monitor\"\nrequire = [{{ any = [{}, {{ all = [{}] }}] }}]\n",
        some(0),
        some(1),
        some(2),
        some(3),
        some(1)
    )
}

/// What is known of each fact: its value, whether it is hidden, and who vouches.
fn device(values: &[u8], hidden: &[bool], weak: &[bool]) -> Facts {
    let mut facts = Map::new();
    for (((name, n), hidden), weak) in stated().into_iter().zip(values).zip(hidden).zip(weak) {
        let rank = if *weak { Rank::External } else { name.row().rank };
        let why = ["absent", "denied", "error"][usize::from(n % 3)];
        let fact = match *hidden {
            true => json!({ "u": why }),
            false => json!({ "v": value(name, *n), "r": rank.word() }),
        };
        facts.insert(name.as_str().to_owned(), fact);
    }
    serde_json::from_value(Value::Object(facts)).unwrap()
}

fn many<T: Strategy>(one: T) -> impl Strategy<Value = Vec<T::Value>> {
    prop::collection::vec(one, stated().len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn less_knowledge_older_evidence_and_weaker_voices_never_grant(
        parts in prop::collection::vec(any::<(prop::sample::Index, u8, u8, u8, u8)>(), 4..16),
        values in many(any::<u8>()),
        hidden in many(any::<bool>()),
        weak in many(any::<bool>()),
        age in 0u64..30,
        older in 0u64..30,
        now_s in 0i64..100,
    ) {
        let text = file(&parts);
        let profiles = Profiles::parse("posture.toml", &text)
            .map_err(|faults| TestCaseError::fail(faults[0].render()))?;
        let nothing = vec![false; values.len()];
        let at = |age: u64| When { age: Duration::from_secs(age), now_s };
        let full = profiles.evaluate(&device(&values, &nothing, &nothing), at(age));
        for (what, facts, when) in [
            ("fewer facts", device(&values, &hidden, &nothing), at(age)),
            ("weaker ranks", device(&values, &nothing, &weak), at(age)),
            ("age", device(&values, &nothing, &nothing), at(age + older)),
            ("all of it", device(&values, &hidden, &weak), at(age + older)),
            ("silence", Facts::default(), at(age)),
        ] {
            let less = profiles.evaluate(&facts, when);
            prop_assert_eq!(less.held & !full.held, 0, "{} granted under\n{}", what, text);
            prop_assert_eq!(less.held & less.unknown, 0);
        }
    }
}

#[test]
fn each_fact_that_is_not_known_denies_whatever_asks_for_it() {
    for name in stated() {
        let text = format!(
            "[profile.p]\nrequire = [{}]\n[profile.q]\nextends = \"p\"\nmode = \"monitor\"\n",
            requirement(name, 9, 1, 0, 1)
        );
        let profiles = Profiles::parse("posture.toml", &text).unwrap();
        let judge = |facts: Value| {
            let facts: Facts = serde_json::from_value(facts).unwrap();
            let when = When { age: Duration::ZERO, now_s: 0 };
            let outcome = profiles.evaluate(&facts, when);
            profiles.label(outcome.held, outcome.unknown)
        };
        let good = json!({ name.as_str(): { "v": value(name, 1), "r": name.row().rank.word() } });
        assert_eq!(judge(good), "|p=t|q=t|", "the positive control of {name}");
        for why in ["absent", "denied", "error"] {
            assert_eq!(judge(json!({ name.as_str(): { "u": why } })), "|p=u|q=u|", "{name} {why}");
        }
        assert_eq!(judge(json!({})), "|p=u|q=u|", "{name} left out");
        assert_eq!(
            judge(json!({ "x.y": { "v": value(name, 1), "r": "kernel" } })),
            "|p=u|q=u|",
            "{name} under another name"
        );
    }
}
