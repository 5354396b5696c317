//! `device exposure`: the secrets that a device has had, page after page out of the decision log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::access::Asking;
use super::fault::Fault;
use super::output::{Output, printable, table};
use super::secrets::unexpected;
use crate::model::limits::{EXPOSURE_SHOWN, LOG_SCAN};
use crate::model::{Answer, Ask, Clock as _, DeviceId, SecretValue, SystemClock};

/// What is told together: one version of a secret, by whom, and how.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Key {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    how: String,
    workload: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Times {
    count: u64,
    first: String,
    last: String,
}

/// One line of a page.
#[derive(Deserialize)]
struct Item {
    #[serde(flatten)]
    key: Key,
    #[serde(default)]
    count: u64,
    #[serde(default)]
    first: String,
    #[serde(default)]
    last: String,
    #[serde(default)]
    withdrawn: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    key: &'a Key,
    #[serde(flatten)]
    times: &'a Times,
}

/// All pages added up.
#[derive(Default)]
struct Sum(BTreeMap<Key, Times>);

impl Sum {
    fn add(&mut self, item: Item) {
        let Item { key, count, first, last, withdrawn } = item;
        if withdrawn {
            // Decided on an earlier page, and not released after all. The times may then be those
            // of that decision, the set is exact.
            if let Some(times) = self.0.get_mut(&key) {
                times.count = times.count.saturating_sub(1);
                if times.count == 0 {
                    self.0.remove(&key);
                }
            }
            return;
        }
        match self.0.get_mut(&key) {
            Some(times) => {
                times.count = times.count.saturating_add(count);
                if first < times.first {
                    times.first = first;
                }
                if last > times.last {
                    times.last = last;
                }
            }
            None => drop(self.0.insert(key, Times { count, first, last })),
        }
    }

    /// How many secrets these are, whatever the version.
    fn secrets(&self) -> usize {
        let mut names: Vec<&str> = self.0.keys().map(|key| key.name.as_str()).collect();
        names.dedup(); // they stand in the order of the names
        names.len()
    }
}

pub(super) async fn exposure(
    device: DeviceId,
    since: Option<&str>,
    asking: &Asking,
    output: &Output,
) -> Result<(), Fault> {
    let now = SystemClock.now().wall();
    let since = since.map(|text| moment(text, now)).transpose()?;
    let (mut sum, mut from, mut end) = (Sum::default(), 0, None);
    let limit = u32::try_from(LOG_SCAN).unwrap_or(u32::MAX);
    loop {
        let since = since.map(OffsetDateTime::unix_timestamp);
        let ask = Ask::Exposure { device, from, limit, since };
        let (_, released) = asking.ask(ask, SecretValue::empty()).await?;
        let Answer::Records { next, size, .. } = released.answer else {
            return Err(unexpected(&released));
        };
        for line in released.body.expose().split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
            let item = serde_json::from_slice(line);
            sum.add(item.map_err(|_| Fault::failed("the broker answered with another form"))?);
        }
        if sum.0.len() > EXPOSURE_SHOWN {
            return Err(Fault::failed("this device has had more than can be added up here")
                .hint("ask for less at once with `--since`"));
        }
        // What is added to the log meanwhile, by these very requests too, is not waited for.
        let end = *end.get_or_insert(size);
        if next >= end || next <= from && next > 0 {
            break;
        }
        from = next;
    }
    show(&sum, device, output);
    Ok(())
}

fn show(sum: &Sum, device: DeviceId, output: &Output) {
    if output.is_json() {
        for (key, times) in &sum.0 {
            output.text(&serde_json::to_string(&Shown { key, times }).unwrap_or_default());
        }
        return;
    }
    if sum.0.is_empty() {
        return output.text(&format!("the log has no secret that device {} had", device.short()));
    }
    let head = ["SECRET", "VERSION", "HOW", "TIMES", "FIRST", "LAST", "WORKLOAD"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (key, times) in &sum.0 {
        let version = key.version.map_or("-".to_owned(), |version| version.to_string());
        let (name, how, workload) = (key.name.clone(), key.how.clone(), key.workload.clone());
        let Times { count, first, last } = times.clone();
        rows.push(vec![name, version, how, count.to_string(), first, last, workload]);
    }
    output.text(&printable(&table(&rows)));
    output.text(&format!(
        "{} to rotate",
        match sum.secrets() {
            1 => "1 secret".to_owned(),
            many => format!("{many} secrets"),
        }
    ));
}

/// A time, or how long ago.
fn moment(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, Fault> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let ago = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u32 = number.parse().ok()?;
        let unit = match unit {
            "s" => Duration::SECOND,
            "m" => Duration::MINUTE,
            "h" => Duration::HOUR,
            "d" => Duration::DAY,
            _ => return None,
        };
        now.checked_sub(unit.checked_mul(i32::try_from(number).ok()?)?)
    };
    ago().ok_or_else(|| {
        Fault::usage(format!("`{text}` is no time"))
            .hint("for example 2026-11-23T12:00:00Z, or 24h for a day ago")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn times_are_absolute_or_ago() {
        let now = datetime!(2026-11-23 12:00 UTC);
        let is = |text: &str| moment(text, now).ok();
        assert_eq!(is("2026-11-23T10:00:00Z"), Some(datetime!(2026-11-23 10:00 UTC)));
        assert_eq!(is("90m"), Some(datetime!(2026-11-23 10:30 UTC)));
        assert_eq!(is("7d"), Some(datetime!(2026-11-16 12:00 UTC)));
        for bad in ["", "h", "-1h", "1", "1w", "yesterday", "99999999999d", "2147483648d", "é"] {
            assert_eq!(is(bad), None, "{bad}");
        }
    }

    #[test]
    fn pages_add_up_and_what_was_withdrawn_is_gone() {
        let item = |version: u64, count: u64, at: &str, withdrawn: bool| Item {
            key: Key {
                name: "a/b".into(),
                version: Some(version),
                how: "read".into(),
                workload: "spiffe://d.example/w".into(),
            },
            count,
            first: at.into(),
            last: at.into(),
            withdrawn,
        };
        let mut sum = Sum::default();
        for one in [
            item(1, 2, "2026-11-23T12:00:00.000Z", false),
            item(2, 1, "2026-11-23T12:00:00.000Z", false),
            item(1, 1, "2026-11-23T13:00:00.000Z", false),
            item(2, 0, "", true),
            item(1, 0, "", true),
            item(9, 0, "", true),
        ] {
            sum.add(one);
        }
        assert_eq!((sum.0.len(), sum.secrets()), (1, 1));
        let times = sum.0.values().next().unwrap();
        assert_eq!((times.count, times.last.as_str()), (2, "2026-11-23T13:00:00.000Z"));
    }
}
