//! What a device has had: the secrets whose values were released to it, out of the decision log, so
//! that they can be rotated when the device is lost.
//!
//! The log alone is asked: it is durable, it has every release, and it says which of them did not
//! leave after all. One page looks at a bounded number of records and holds a bounded number of
//! items. What was decided on one page and taken back on the next is told as withdrawn, so that
//! whoever adds the pages up has exactly what was released.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Administration;
use super::reading::{aside, unavailable};
use crate::decision_log::DecisionLog;
use crate::model::limits::{EXPOSURE_ITEMS, LOG_PAGE_BYTES, LOG_SCAN};
use crate::model::{Answer, DeviceId, Failure, Released, SecretValue, rfc3339_millis};

/// Records are stamped in the order of their decisions, but for those that waited: by no more.
const DISORDER: time::Duration = time::Duration::minutes(2);

/// One kind of release: what is counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Key {
    /// The secret's name.
    name: String,
    /// Of a read; a write makes a version of which its record knows no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// `read` or `write`: whoever writes a value has it too.
    how: &'static str,
    /// Who asked from that device.
    workload: String,
}

/// How often, and from when to when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Times {
    count: u64,
    first: String,
    last: String,
}

#[derive(Serialize)]
struct Item<'a> {
    #[serde(flatten)]
    key: &'a Key,
    #[serde(flatten)]
    times: Option<&'a Times>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    withdrawn: bool,
}

/// What is read of a record.
#[derive(Deserialize)]
struct Record {
    kind: String,
    t: String,
    dec: Option<Verdict>,
    dev: Option<Device>,
    req: Option<Request>,
    sub: Option<Subject>,
    /// Of what was not released: the record of its decision.
    index: Option<u64>,
}

#[derive(Deserialize)]
struct Verdict {
    verdict: String,
}

#[derive(Deserialize)]
struct Device {
    id: Option<String>,
}

#[derive(Deserialize)]
struct Request {
    act: String,
    obj: String,
    op: Option<String>,
    ver: Option<u64>,
}

#[derive(Deserialize)]
struct Subject {
    spiffe: String,
}

/// Whose releases, and from when on.
struct Question {
    device: String,
    since: Option<String>,
}

impl Question {
    /// What a record tells of a release to the device, and when.
    fn release(&self, bytes: &[u8]) -> Option<(Key, String)> {
        let text = std::str::from_utf8(bytes).ok()?;
        if !text.contains(&self.device) {
            return None; // nearly all, without reading them
        }
        let record: Record = serde_json::from_str(text).ok()?;
        let (request, how) = match record.req? {
            request if request.op.is_some() => return None,
            request if request.act == "read" => (request, "read"),
            request if request.act == "write" => (request, "write"),
            _ => return None,
        };
        let ours = record.kind == "decision"
            && record.dec?.verdict == "allow"
            && record.dev?.id.as_deref() == Some(&*self.device)
            && self.since.as_ref().is_none_or(|since| record.t >= *since);
        let name = request.obj.strip_prefix("secret/").filter(|_| ours)?.to_owned();
        let workload = record.sub?.spiffe;
        Some((Key { name, version: request.ver, how, workload }, record.t))
    }
}

/// The record of the decision of which nothing was released.
fn withdrawn(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    if !text.contains("\"kind\":\"not_released\"") {
        return None;
    }
    let record: Record = serde_json::from_str(text).ok()?;
    record.index.filter(|_| record.kind == "not_released")
}

/// One page.
#[derive(Default)]
struct Page {
    items: BTreeMap<Key, Times>,
    withdrawn: Vec<Key>,
}

impl Page {
    fn add(&mut self, key: Key, at: String) {
        let times = self.items.entry(key).or_insert_with(|| Times {
            count: 0,
            first: at.clone(),
            last: at.clone(),
        });
        times.count = times.count.saturating_add(1);
        if at < times.first {
            times.first = at;
        } else if at > times.last {
            times.last = at;
        }
    }

    /// One JSON object a line.
    fn lines(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let known = self.items.iter();
        let items = known.map(|(key, times)| Item { key, times: Some(times), withdrawn: false });
        let gone = self.withdrawn.iter();
        let gone = gone.map(|key| Item { key, times: None, withdrawn: true });
        for item in items.chain(gone) {
            body.extend(serde_json::to_vec(&item).unwrap_or_default());
            body.push(b'\n');
        }
        body
    }
}

impl Administration {
    /// The secrets that a device has had, a page at a time; the answer says where to go on.
    pub(super) async fn exposure(
        &self,
        device: DeviceId,
        from: u64,
        limit: u32,
        since: Option<i64>,
    ) -> Result<Released, Failure> {
        let since = since.map(moment).transpose()?;
        let log = self.log.clone();
        let (body, next) = aside(move || page(&log, device, from, limit, since)).await??;
        let size = self.log.size();
        Ok(Released { answer: Answer::Records { from, next, size }, body: SecretValue::new(body) })
    }
}

/// A time that records can have.
fn moment(since: i64) -> Result<OffsetDateTime, Failure> {
    let at = OffsetDateTime::from_unix_timestamp(since).ok().filter(|_| since >= 0);
    at.ok_or_else(|| Failure::invalid("`since` is no time since 1970"))
}

fn page(
    log: &DecisionLog,
    device: DeviceId,
    from: u64,
    limit: u32,
    since: Option<OffsetDateTime>,
) -> Result<(Vec<u8>, u64), Failure> {
    let from = match since {
        Some(since) => from.max(first_after(log, since.checked_sub(DISORDER).unwrap_or(since))?),
        None => from,
    };
    let question = Question { device: device.to_string(), since: since.map(rfc3339_millis) };
    let mut to = from.saturating_add(u64::from(limit).clamp(1, LOG_SCAN)).min(log.size()).max(from);
    loop {
        let (page, next) = window(log, &question, from, to)?;
        if next >= to {
            return Ok((page.lines(), next));
        }
        // It ends early: what was taken back beyond its end belongs to the next one.
        to = next;
    }
}

/// The releases in `from .. to`; ends before `to` where there are too many different ones.
fn window(
    log: &DecisionLog,
    question: &Question,
    from: u64,
    to: u64,
) -> Result<(Page, u64), Failure> {
    let (mut gone, mut earlier) = (Vec::new(), Vec::new());
    let all = log.walk(from, to, |_, bytes| {
        if let Some(index) = withdrawn(bytes) {
            if index < from { earlier.push(index) } else { gone.push(index) }
        }
        ControlFlow::Continue(())
    });
    all.map_err(|_| unavailable())?;
    gone.sort_unstable();
    let mut page = Page::default();
    for index in earlier {
        let record = log.record_at(index).map_err(|_| unavailable())?;
        page.withdrawn
            .extend(record.and_then(|bytes| question.release(&bytes)).map(|(key, _)| key));
    }
    let (mut next, mut bytes_kept) = (to, 0_usize);
    let all = log.walk(from, to, |index, bytes| {
        let Some((key, at)) = question.release(bytes) else { return ControlFlow::Continue(()) };
        if gone.binary_search(&index).is_ok() {
            return ControlFlow::Continue(());
        }
        if !page.items.contains_key(&key) {
            bytes_kept = bytes_kept.saturating_add(bytes.len());
            let is_full = page.items.len() >= EXPOSURE_ITEMS || bytes_kept > LOG_PAGE_BYTES;
            if is_full && !page.items.is_empty() {
                next = index;
                return ControlFlow::Break(());
            }
        }
        page.add(key, at);
        ControlFlow::Continue(())
    });
    all.map_err(|_| unavailable())?;
    Ok((page, next))
}

/// The first record that is not older than `since`, by halves.
fn first_after(log: &DecisionLog, since: OffsetDateTime) -> Result<u64, Failure> {
    let since = rfc3339_millis(since);
    let (mut low, mut high) = (0, log.size());
    while low < high {
        let middle = low.midpoint(high);
        let record = log.record_at(middle).map_err(|_| unavailable())?;
        let at = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        // One that can't be read is looked at rather than passed over.
        if at.is_some_and(|record| record.t < since) {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DEVICE: &str = "abababababababababababababababababababababababababababababababab";

    fn question(since: Option<&str>) -> Question {
        Question { device: DEVICE.to_owned(), since: since.map(str::to_owned) }
    }

    fn record() -> Value {
        json!({
            "broker": "corp.example", "dec": { "code": "A001", "verdict": "allow" },
            "dev": { "age_ms": 5, "id": DEVICE }, "id": "0192a0b0-0000-7000-8000-000000000000",
            "kind": "decision", "req": { "act": "read", "obj": "secret/pay/db/url", "ver": 7 },
            "sub": { "spiffe": "spiffe://corp.example/api" }, "t": "2026-11-23T10:15:02.113Z", "v": 1,
        })
    }

    fn release(record: &Value, since: Option<&str>) -> Option<(Key, String)> {
        question(since).release(record.to_string().as_bytes())
    }

    #[test]
    fn only_what_was_released_to_the_device_itself_counts() {
        let (key, at) = release(&record(), None).unwrap();
        assert_eq!((key.name.as_str(), key.version, key.how), ("pay/db/url", Some(7), "read"));
        assert_eq!(at, "2026-11-23T10:15:02.113Z");
        for (pointer, value) in [
            ("/dec/verdict", json!("deny")),
            ("/dev/id", json!(format!("cd{}", &DEVICE[2..]))),
            ("/kind", json!("posture")),
            ("/req/act", json!("list")),
            ("/req/obj", json!("log/decisions")),
            ("/req/obj", json!(format!("device/server/{DEVICE}"))),
        ] {
            let mut other = record();
            *other.pointer_mut(pointer).unwrap() = value;
            assert_eq!(release(&other, None), None, "{pointer}");
        }
        let mut labelled = record();
        labelled["req"] = json!({ "act": "write", "obj": "secret/a/b", "op": "label" });
        assert_eq!(release(&labelled, None), None, "a label is no value");
        labelled["req"] = json!({ "act": "write", "obj": "secret/a/b" });
        assert_eq!(release(&labelled, None).unwrap().0.how, "write");
        assert!(release(&record(), Some("2026-11-23T10:15:02.113Z")).is_some());
        assert!(release(&record(), Some("2026-11-23T10:15:02.114Z")).is_none());
        for bytes in [&b""[..], b"{", DEVICE.as_bytes(), b"\xff\xfe", b"[1]"] {
            assert!(question(None).release(bytes).is_none() && withdrawn(bytes).is_none());
        }
    }

    #[test]
    fn no_number_makes_a_time_panic() {
        assert!(moment(0).is_ok() && moment(1_795_401_296).is_ok());
        for bad in [-1, i64::MIN, i64::MAX, -377_705_116_800] {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_not_released_names_its_decision() {
        let note = json!({
            "code": "D902", "id": "0192a0b0-0000-7000-8000-000000000000", "index": 12,
            "kind": "not_released", "t": "2026-11-23T10:15:02.113Z",
        });
        assert_eq!(withdrawn(note.to_string().as_bytes()), Some(12));
        assert_eq!(withdrawn(record().to_string().as_bytes()), None);
        let mut forged = record();
        forged["req"]["client"] = "\"kind\":\"not_released\"".into();
        forged["index"] = 3.into();
        assert_eq!(withdrawn(forged.to_string().as_bytes()), None);
    }

    #[test]
    fn releases_of_one_kind_are_counted_together() {
        let mut page = Page::default();
        let key = release(&record(), None).unwrap().0;
        for at in
            ["2026-11-23T10:00:02.000Z", "2026-11-23T10:00:01.000Z", "2026-11-23T10:00:03.000Z"]
        {
            page.add(key.clone(), at.to_owned());
        }
        page.withdrawn.push(Key { version: Some(8), ..key });
        let lines = String::from_utf8(page.lines()).unwrap();
        let items: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(items[0]["count"], 3);
        assert_eq!(items[0]["first"], "2026-11-23T10:00:01.000Z");
        assert_eq!(items[0]["last"], "2026-11-23T10:00:03.000Z");
        assert_eq!(items[1]["withdrawn"], true);
        assert_eq!((&items[1]["version"], items.len()), (&json!(8), 2));
    }
}
