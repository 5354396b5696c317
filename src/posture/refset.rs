//! Reference sets: values that are known to be good, each with a label and, mostly, an end.
//!
//! A value counts until its end, not including it, on the broker's wall clock, which never goes below
//! the last record's. Past it the value matches nothing; that it will is told beforehand.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use time::{Date, Month, OffsetDateTime, Time};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::catalog::FactKind;
use super::fact::FactValue;
use super::profile_file::{Faults, Place};
use crate::model::limits::{FACT_TEXT_MAX, SEGMENT_MAX};
use crate::model::rfc3339;

/// Reference sets of one `posture.toml`.
const REFSETS_MAX: usize = 64;
/// Values of one reference set: the images of a fleet, not its machines.
const REFSET_VALUES_MAX: usize = 1024;
const VALUE_KEYS: [&str; 4] = ["value", "sha256", "label", "until"];

/// One value that is known to be good.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RefValue {
    pub(super) value: FactValue,
    pub(super) label: String,
    /// Seconds since 1970 from which on it no longer counts.
    pub(super) until: Option<i64>,
    pub(super) place: Place,
}

impl RefValue {
    /// Whether it counts at that time.
    pub(super) fn counts(&self, now_s: i64) -> bool {
        self.until.is_none_or(|until| now_s < until)
    }
}

/// A named set of them; all values are of one type, in order, each once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RefSet {
    pub(super) name: String,
    pub(super) values: Vec<RefValue>,
    pub(super) place: Place,
}

impl RefSet {
    /// The type of its values.
    pub(super) fn kind(&self) -> Option<FactKind> {
        self.values.first().map(|value| value.value.kind())
    }

    /// That value, if the set has it.
    fn find(&self, have: &FactValue) -> Option<&RefValue> {
        let at = self.values.binary_search_by(|one| one.value.cmp(have)).ok()?;
        self.values.get(at)
    }

    /// Whether a value that still counts is this one.
    pub(super) fn holds(&self, have: &FactValue, now_s: i64) -> bool {
        self.find(have).is_some_and(|one| one.counts(now_s))
    }

    /// Why a value does not match: its end, where it had one.
    pub(super) fn ended(&self, have: &FactValue, now_s: i64) -> Option<String> {
        let one = self.find(have).filter(|one| !one.counts(now_s))?;
        Some(format!("{} ended {}", one.label, one.until.map_or_else(String::new, instant)))
    }
}

impl fmt::Display for RefSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Seconds since 1970 in the form of the files.
pub(super) fn instant(at_s: i64) -> String {
    OffsetDateTime::from_unix_timestamp(at_s).map_or_else(|_| "?".to_owned(), rfc3339)
}

/// All sets of one file, by name.
pub(super) type RefSets = BTreeMap<String, Arc<RefSet>>;

/// Reads `[refset.…]`; faulty ones are reported and left out.
pub(super) fn refsets(table: &DeTable<'_>, faults: &mut Faults<'_>) -> RefSets {
    let mut sets = RefSets::new();
    let Some(value) = table.get("refset") else { return sets };
    let Some(named) = value.get_ref().as_table() else {
        let help = Some("write [refset.<name>]".into());
        faults.add(value.span(), "reference sets are tables", help);
        return sets;
    };
    if named.len() > REFSETS_MAX {
        let message = format!("{} reference sets; {REFSETS_MAX} is the most", named.len());
        faults.add(value.span(), message, None);
        return sets;
    }
    for (name, value) in named {
        let text = name.get_ref().as_ref();
        let plain =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if text.is_empty() || text.len() > SEGMENT_MAX || !text.bytes().all(plain) {
            let help = Some("a name is a-z, 0-9, `-` and `_`, at most 128 characters".into());
            faults.add(name.span(), format!("{text:?} can't be a set's name"), help);
        }
        // A faulty set stands empty, so that those who name it are not told that there is none.
        let values = refset(name.span(), value, faults);
        let set = RefSet { name: text.to_owned(), values, place: name.span() };
        sets.insert(text.to_owned(), Arc::new(set));
    }
    sets
}

fn refset(place: Place, set: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Vec<RefValue> {
    let Some(table) = set.get_ref().as_table() else {
        faults.add(set.span(), "a reference set is a table", Some("write values = [ … ]".into()));
        return Vec::new();
    };
    for key in table.keys().filter(|key| key.get_ref() != "values") {
        faults.unknown_key(key.span(), key.get_ref(), &["values"]);
    }
    let items = table.get("values").and_then(|values| values.get_ref().as_array());
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let help = "write values = [ { value = …, label = \"…\", until = \"2027-03-01\" } ]";
        faults.add(place, "the set has no values, so nothing could match", Some(help.into()));
        return Vec::new();
    };
    if items.len() > REFSET_VALUES_MAX {
        let message = format!("{} values; {REFSET_VALUES_MAX} is the most", items.len());
        faults.add(place, message, None);
        return Vec::new();
    }
    let mut values: Vec<RefValue> = Vec::new();
    for item in items.iter() {
        let Some(one) = ref_value(item, faults) else { continue };
        let place = values.binary_search_by(|other| other.value.cmp(&one.value));
        match place {
            Ok(_) => faults.add(one.place.clone(), "this value stands twice in the set", None),
            Err(_)
                if values.first().is_some_and(|first| first.value.kind() != one.value.kind()) =>
            {
                let message = "the values of a set are of one type; this is another";
                faults.add(one.place.clone(), message, None);
            }
            Err(at) => values.insert(at, one),
        }
    }
    values
}

fn ref_value(item: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<RefValue> {
    let Some(table) = item.get_ref().as_table() else {
        let help = Some("write { value = …, label = \"…\" }".into());
        faults.add(item.span(), "a reference value is a table", help);
        return None;
    };
    for key in table.keys().filter(|key| !VALUE_KEYS.contains(&key.get_ref().as_ref())) {
        faults.unknown_key(key.span(), key.get_ref(), &VALUE_KEYS);
    }
    let (value, place) = match (table.get("value"), table.get("sha256")) {
        (Some(value), None) => (plain_value(value, faults), value.span()),
        (None, Some(value)) => (digest(value, faults), value.span()),
        _ => {
            faults.add(item.span(), "it must be exactly one of value and sha256", None);
            return None;
        }
    };
    let Some(label) = table.get("label") else {
        let help = Some("say what it is, for example label = \"image of March\"".into());
        faults.add(item.span(), "a reference value needs a label", help);
        return None;
    };
    let (label, place_of_label) = (faults.text(label)?.to_owned(), label.span());
    if label.is_empty() || label.len() > SEGMENT_MAX || label.chars().any(char::is_control) {
        let message = "a label is 1 to 128 bytes of text in one line";
        faults.add(place_of_label, message, None);
    }
    let until = match table.get("until") {
        Some(until) => Some(end(until, faults)?),
        None => None,
    };
    Some(RefValue { value: value?, label, until, place })
}

fn plain_value(value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<FactValue> {
    let read = match value.get_ref() {
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(FactValue::Number)
        }
        DeValue::String(text) if text.len() <= FACT_TEXT_MAX => {
            Some(FactValue::Text(text.to_string()))
        }
        _ => None,
    };
    if read.is_none() {
        let message = "a reference value is text of at most 512 bytes, or a whole number";
        faults.add(value.span(), message, None);
    }
    read
}

fn digest(value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<FactValue> {
    let text = faults.text(value)?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 64 || !text.bytes().all(hex) {
        faults.add(value.span(), "a SHA-256 is 64 digits of 0-9 and a-f", None);
        return None;
    }
    Some(FactValue::Text(text.to_owned()))
}

fn end(value: &Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<i64> {
    let read = value.get_ref().as_str().and_then(parse_moment);
    if read.is_none() {
        let help = "write \"2027-03-01\" (its begin, UTC) or \"2027-03-01T12:00:00Z\"";
        faults.add(value.span(), "not a date", Some(help.into()));
    }
    read
}

/// `YYYY-MM-DD`, the begin of that day, or `YYYY-MM-DDTHH:MM:SSZ`; UTC, seconds since 1970.
pub fn parse_moment(text: &str) -> Option<i64> {
    let (day, clock) = match text.split_once('T') {
        Some((day, clock)) => (day, Some(clock.strip_suffix('Z')?)),
        None => (text, None),
    };
    let [year, month, day] = numbers(day, '-', [4, 2, 2])?;
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::from(year), month, u8::try_from(day).ok()?).ok()?;
    let time = match clock {
        None => Time::MIDNIGHT,
        Some(clock) => {
            let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
            let part = |number: u16| u8::try_from(number).ok();
            Time::from_hms(part(hour)?, part(minute)?, part(second)?).ok()?
        }
    };
    Some(OffsetDateTime::new_utc(date, time).unix_timestamp())
}

/// Three numbers of exactly so many digits.
fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[u16; 3]> {
    let mut parts = text.split(between);
    let mut numbers = [0; 3];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        let plain = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
        *number = part.parse().ok().filter(|_| plain)?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_in_two_forms_and_no_other() {
        assert_eq!(parse_moment("1970-01-02"), Some(86_400));
        assert_eq!(parse_moment("1970-01-01T00:01:40Z"), Some(100));
        assert_eq!(
            parse_moment("2027-03-01").map(instant).as_deref(),
            Some("2027-03-01T00:00:00Z")
        );
        for bad in [
            "",
            "2027",
            "2027-3-1",
            "2027-02-30",
            "2027-13-01",
            "2027-03-01T",
            "2027-03-01T00:00:00",
            "2027-03-01T00:00Z",
            "2027-03-01T24:00:00Z",
            "2027-03-01T00:00:60Z",
            "+027-03-01",
            "2027-03-01-01",
            "٢٠٢٧-03-01",
            "2027-03-01t00:00:00z",
        ] {
            assert_eq!(parse_moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_value_counts_until_its_end_and_not_at_it() {
        let text = |text: &str| FactValue::Text(text.to_owned());
        let one = |value: &str, until| RefValue {
            value: text(value),
            label: format!("label {value}"),
            until,
            place: 0..1,
        };
        let values = vec![one("a", Some(100)), one("b", None)];
        let set = RefSet { name: "s".into(), values, place: 0..1 };
        assert!(set.holds(&text("a"), 99) && set.holds(&text("b"), i64::MAX));
        assert!(!set.holds(&text("a"), 100) && !set.holds(&text("c"), 0));
        let ended = set.ended(&text("a"), 100).unwrap();
        assert_eq!(ended, "label a ended 1970-01-01T00:01:40Z");
        assert_eq!(set.ended(&text("c"), 100), None);
    }
}
