//! Reads one `require` list: `{ fact = …, <predicate> = … }`, `{ any = [ … ] }`, `{ all = [ … ] }`.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::catalog::FactKind;
use super::fact::{FactName, FactValue, Rank};
use super::profile_file::{Faults, Place};
use super::refset::RefSets;
use super::requirement::{Requirement, Test, Version};
use crate::model::did_you_mean;
use crate::model::limits::{FACT_TEXT_MAX, REQUIREMENT_DEPTH};

const PREDICATES: [&str; 8] =
    ["eq", "ne", "in", "le", "ge", "mask_clear", "version_ge", "in_refset"];
const KEYS: [&str; 13] = [
    "fact",
    "eq",
    "ne",
    "in",
    "le",
    "ge",
    "mask_clear",
    "version_ge",
    "in_refset",
    "any",
    "all",
    "min_rank",
    "max_age",
];

type Value<'i> = Spanned<DeValue<'i>>;

/// The requirements of a list; faulty ones are reported and left out.
pub(super) fn requirements(
    list: &Value<'_>,
    depth: usize,
    sets: &RefSets,
    faults: &mut Faults<'_>,
) -> Vec<Requirement> {
    let Some(items) = list.get_ref().as_array() else {
        faults.add(
            list.span(),
            "requirements stand in a list",
            Some("write [ { fact = … } ]".into()),
        );
        return Vec::new();
    };
    if items.is_empty() {
        faults.add(list.span(), "an empty list requires nothing", None);
    }
    if depth > REQUIREMENT_DEPTH {
        faults.add(list.span(), format!("any and all nest at most {REQUIREMENT_DEPTH} deep"), None);
        return Vec::new();
    }
    items.iter().filter_map(|item| requirement(item, depth, sets, faults)).collect()
}

fn requirement(
    item: &Value<'_>,
    depth: usize,
    sets: &RefSets,
    faults: &mut Faults<'_>,
) -> Option<Requirement> {
    let Some(table) = item.get_ref().as_table() else {
        faults.add(
            item.span(),
            "a requirement is a table",
            Some("write { fact = …, eq = … }".into()),
        );
        return None;
    };
    if !known_keys(table, faults) {
        return None;
    }
    match (table.get("fact"), table.get("any"), table.get("all")) {
        (Some(fact), None, None) => single(item.span(), table, fact, sets, faults),
        (None, Some(parts), None) if table.len() == 1 => {
            Some(Requirement::Any(requirements(parts, depth + 1, sets, faults)))
        }
        (None, None, Some(parts)) if table.len() == 1 => {
            Some(Requirement::All(requirements(parts, depth + 1, sets, faults)))
        }
        _ => {
            let help = "write { fact = …, <predicate> = … }, { any = [ … ] } or { all = [ … ] }";
            faults.add(
                item.span(),
                "it must be exactly one of fact, any and all",
                Some(help.into()),
            );
            None
        }
    }
}

fn known_keys(table: &DeTable<'_>, faults: &mut Faults<'_>) -> bool {
    let mut good = true;
    for key in table.keys() {
        match key.get_ref().as_ref() {
            known if KEYS.contains(&known) => continue,
            "source" => faults.add(key.span(), "external sources are not supported yet", None),
            "not" => {
                let help = "unknown must never come out as good; say what must hold, or use ne";
                faults.add(key.span(), "there is no `not`", Some(help.into()));
            }
            other => faults.unknown_key(key.span(), other, &KEYS),
        }
        good = false;
    }
    good
}

fn single(
    place: Place,
    table: &DeTable<'_>,
    fact: &Value<'_>,
    sets: &RefSets,
    faults: &mut Faults<'_>,
) -> Option<Requirement> {
    let name = fact_name(fact, faults);
    let min_rank = match table.get("min_rank") {
        Some(value) => rank(value, faults),
        None => Some(Rank::External),
    };
    let max_age = table.get("max_age").map(|value| faults.duration(value));
    let mut tests = PREDICATES.iter().filter_map(|key| Some((*key, table.get(*key)?)));
    let (Some((key, value)), None) = (tests.next(), tests.next()) else {
        let help = format!("the predicates are {}", PREDICATES.join(", "));
        faults.add(place, "a requirement has exactly one predicate", Some(help));
        return None;
    };
    let test = test(name?, key, value, sets, faults)?;
    let max_age = match max_age {
        Some(age) => Some(age?),
        None => None,
    };
    Some(Requirement::Fact { fact: name?, test, min_rank: min_rank?, max_age })
}

fn fact_name(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<FactName> {
    let text = faults.text(value)?;
    let name = FactName::parse(text);
    if text.starts_with("workload.") {
        let help = "profiles judge devices; a workload is told by the selectors of its entry";
        let message = format!("{text:?} is a fact of a process, not of a device");
        faults.add(value.span(), message, Some(help.into()));
    } else if name.is_none() {
        let near = did_you_mean(text, FactName::all().map(FactName::as_str));
        let help = near.map_or_else(
            || "`doorward device facts` lists the facts of a device".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        faults.add(value.span(), format!("no such fact: {text:?}"), Some(help));
    }
    name
}

fn rank(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Rank> {
    let all = [Rank::External, Rank::Agent, Rank::Kernel, Rank::Measured];
    let rank = value.get_ref().as_str().and_then(|text| all.into_iter().find(|r| r.word() == text));
    if rank.is_none() {
        let words = all.map(Rank::word).join(", ");
        faults.add(value.span(), format!("a rank is one of {words}"), None);
    }
    rank
}

fn test(
    name: FactName,
    key: &str,
    value: &Value<'_>,
    sets: &RefSets,
    faults: &mut Faults<'_>,
) -> Option<Test> {
    let kind = name.row().kind;
    let needs = match key {
        "le" | "ge" | "mask_clear" => FactKind::Number,
        "version_ge" => FactKind::Text,
        _ => kind,
    };
    if needs != kind {
        let message = format!("{key} compares {}, but {name} is {}", needs.word(), kind.word());
        faults.add(value.span(), message, None);
        return None;
    }
    match key {
        "eq" => fact_value(name, value, faults).map(Test::Eq),
        "ne" => fact_value(name, value, faults).map(Test::Ne),
        "le" => number(name, value, faults).map(Test::Le),
        "ge" => number(name, value, faults).map(Test::Ge),
        "in" => {
            let each = |item| fact_value(name, item, faults);
            let wants: Option<Vec<_>> = list(value)?.iter().map(each).collect();
            some_of(wants?, value, faults).map(Test::In)
        }
        "mask_clear" => mask(name, value, faults),
        "in_refset" => refset(name, value, sets, faults),
        _ => version(value, faults),
    }
}

/// The items of a list; a single value counts as a list that its own check will refuse.
fn list<'v, 'i>(value: &'v Value<'i>) -> Option<&'v [Value<'i>]> {
    match value.get_ref().as_array() {
        Some(items) => items.get(..),
        None => Some(std::slice::from_ref(value)),
    }
}

fn some_of<T>(wants: Vec<T>, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Vec<T>> {
    let listed = value.get_ref().is_array();
    if wants.is_empty() || !listed {
        faults.add(value.span(), "it needs a list of at least one value", None);
        return None;
    }
    Some(wants)
}

fn fact_value(name: FactName, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<FactValue> {
    let kind = name.row().kind;
    let read = match (kind, value.get_ref()) {
        (FactKind::Bool, DeValue::Boolean(value)) => Some(FactValue::Bool(*value)),
        (FactKind::Number, DeValue::Integer(value)) => {
            i64::from_str_radix(value.as_str(), value.radix()).ok().map(FactValue::Number)
        }
        (FactKind::Text, DeValue::String(text)) if text.len() <= FACT_TEXT_MAX => {
            Some(FactValue::Text(text.to_string()))
        }
        _ => None,
    };
    if read.is_none() {
        let message = format!("{name} is {}, this is {}", kind.word(), value.get_ref().type_str());
        faults.add(value.span(), message, None);
    }
    read
}

fn number(name: FactName, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<i64> {
    match fact_value(name, value, faults)? {
        FactValue::Number(number) => Some(number),
        _ => None,
    }
}

fn mask(name: FactName, value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Test> {
    let bits = name.row().bits;
    if bits.is_empty() {
        faults.add(value.span(), format!("{name} has no named bits"), None);
        return None;
    }
    let mut mask = 0i64;
    let mut names = Vec::new();
    for item in list(value)? {
        let word = faults.text(item)?;
        let Some(at) = bits.iter().position(|bit| *bit == word) else {
            let help = did_you_mean(word, bits.iter().copied()).map_or_else(
                || format!("known are {}", bits.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            faults.add(item.span(), format!("{name} has no bit {word:?}"), Some(help));
            return None;
        };
        mask |= 1 << at;
        names.push(word.to_owned());
    }
    some_of(names, value, faults).map(|names| Test::MaskClear(mask, names))
}

fn version(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<Test> {
    let text = faults.text(value)?;
    let version = Version::exact(text);
    if version.is_none() {
        let help = Some("for example \"6.12\"".into());
        faults.add(value.span(), "a version to compare with is a dotted number", help);
    }
    version.map(|version| Test::VersionGe(version, text.to_owned()))
}

fn refset(
    name: FactName,
    value: &Value<'_>,
    sets: &RefSets,
    faults: &mut Faults<'_>,
) -> Option<Test> {
    let text = faults.text(value)?;
    let Some(set) = sets.get(text) else {
        let help = did_you_mean(text, sets.keys().map(String::as_str)).map_or_else(
            || format!("write [refset.{text}] with its values"),
            |near| format!("did you mean `{near}`?"),
        );
        faults.add(value.span(), format!("no such reference set: {text:?}"), Some(help));
        return None;
    };
    let (kind, own) = (name.row().kind, set.kind()?); // a set without values was told already
    if own != kind {
        let message = format!("{name} is {}, the values of {text} are {}", kind.word(), own.word());
        faults.add(value.span(), message, None);
        return None;
    }
    Some(Test::InRefset(Arc::clone(set)))
}
