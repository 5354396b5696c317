//! What stands in a record: one JSON object with sorted keys (docs/DECISION-LOG.md).
//!
//! Names, digests, codes and ages; never a secret's byte, key, token or exact length. A typical
//! allowed decision takes no more than 700 bytes.

use std::time::Duration;

use time::OffsetDateTime;

use super::detail;
use super::line::Line;
use super::merkle::sha256;
use super::note::Note;
use crate::identity::Epochs;
use crate::model::limits::{RECORD_MAX, RECORD_RULES};
use crate::model::{Ask, DeviceId, Digest, Reason, RequestId, Serial, Target};
use crate::policy::{Decision, Ruled};

/// The version of the record's form.
const VERSION: u64 = 1;
/// Bytes of a certificate's digest that a record repeats: enough to find it again.
const SHORT: usize = 8;

/// Everything of a decision that its record tells.
pub(super) struct Told<'a> {
    pub(super) broker: &'a str,
    pub(super) id: RequestId,
    pub(super) at: OffsetDateTime,
    pub(super) spiffe: &'a str,
    pub(super) serial: Option<&'a Serial>,
    pub(super) certificate: Option<Digest>,
    /// The key of whoever has no certificate yet.
    pub(super) key: Option<&'a [u8]>,
    pub(super) epochs: Epochs,
    pub(super) device: Option<&'a DeviceId>,
    pub(super) evidence: Option<Digest>,
    pub(super) age: Option<Duration>,
    pub(super) ask: &'a Ask,
    pub(super) target: &'a Target,
    pub(super) object: &'a str,
    pub(super) version: Option<u64>,
    pub(super) client: Option<&'a str>,
    pub(super) allowed: bool,
    pub(super) reason: Reason,
    pub(super) bundle: Digest,
    pub(super) bundle_serial: u64,
    pub(super) rules: &'a [Ruled],
}

/// The trust domain out of the log's origin: what epoch it is, the checkpoint says.
fn broker_of(origin: &str) -> &str {
    origin.split_once("/decisions/").map_or(origin, |(domain, _)| domain)
}

/// The record of a decision, into `line`; `origin` is the log's.
pub(super) fn decision(line: &mut Line, origin: &str, decision: &Decision) {
    let (caller, verdict) = (decision.caller(), decision.verdict());
    let version = match decision.target() {
        Target::Secret { version, .. } => Some(*version),
        _ => None,
    };
    let told = Told {
        broker: broker_of(origin),
        id: decision.id(),
        at: decision.now().wall(),
        spiffe: caller.id().as_str(),
        serial: caller.serial(),
        certificate: caller.certificate(),
        key: caller.spki(),
        epochs: caller.epochs(),
        device: caller.device(),
        evidence: verdict.evidence(),
        age: verdict.age(),
        ask: decision.ask(),
        target: decision.target(),
        object: decision.object(),
        version,
        client: decision.client().map(crate::model::ClientRef::as_str),
        allowed: decision.allowed(),
        reason: decision.reason(),
        bundle: decision.bundle_digest(),
        bundle_serial: decision.bundle_serial(),
        rules: decision.rules(),
    };
    told.write(line, &mut verdict.held_names(), &mut verdict.would_deny_names());
}

/// A list of names under that key, left out when there are none.
fn profiles(line: &mut Line, key: &'static str, names: &mut dyn Iterator<Item = &str>) {
    let mut names = names.peekable();
    if names.peek().is_some() {
        line.key(key).list(|line| {
            for name in names {
                line.next();
                line.text(name);
            }
        });
    }
}

impl Told<'_> {
    /// Writes the record; `held` are the profiles that hold, `would_deny` those of them that hold by
    /// their mode alone.
    pub(super) fn write(
        &self,
        line: &mut Line,
        held: &mut dyn Iterator<Item = &str>,
        would_deny: &mut dyn Iterator<Item = &str>,
    ) {
        line.object(|line| {
            line.key("broker").text(self.broker);
            line.key("dec").object(|line| {
                line.key("code").text(self.reason.code());
                line.key("verdict").text(if self.allowed { "allow" } else { "deny" });
            });
            line.key("dev").object(|line| self.device(line, held, would_deny));
            line.key("epochs").object(|line| {
                line.key("device").number(self.epochs.device);
                line.key("entry").number(self.epochs.entry);
            });
            line.key("id").display(self.id);
            line.key("kind").text("decision");
            line.key("pol").object(|line| self.policy(line));
            line.key("req").object(|line| self.request(line));
            line.key("sub").object(|line| self.subject(line));
            line.key("t").time(self.at);
            line.key("v").number(VERSION);
        });
    }

    fn device(
        &self,
        line: &mut Line,
        held: &mut dyn Iterator<Item = &str>,
        would_deny: &mut dyn Iterator<Item = &str>,
    ) {
        if let Some(age) = self.age {
            line.key("age_ms").number(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        }
        if let Some(evidence) = self.evidence {
            line.key("evidence").hex(&evidence.0);
        }
        profiles(line, "held", held);
        if let Some(DeviceId(id)) = self.device {
            line.key("id").hex(&id.0);
        }
        profiles(line, "would_deny", would_deny);
    }

    fn policy(&self, line: &mut Line) {
        line.key("bundle").hex(&self.bundle.0);
        if let Some(more) = self.rules.len().checked_sub(RECORD_RULES + 1) {
            line.key("more").number(u64::try_from(more + 1).unwrap_or(u64::MAX));
        }
        line.key("rows").list(|line| {
            for rule in self.rules.iter().take(RECORD_RULES) {
                line.next();
                line.text(&rule.id);
            }
        });
        line.key("serial").number(self.bundle_serial);
    }

    fn request(&self, line: &mut Line) {
        line.key("act").text(self.ask.action().as_str());
        if let Some(client) = self.client {
            line.key("client").text(client);
        }
        detail::of(line, self.ask, self.target);
        line.key("obj").text(self.object);
        // An operation that is called as its action, such as a read, stands there already.
        if self.ask.op() != self.ask.action().as_str() {
            line.key("op").text(self.ask.op());
        }
        if let Some(version) = self.version {
            line.key("ver").number(version);
        }
    }

    fn subject(&self, line: &mut Line) {
        // A serial number names a certificate of our own issuing keys, which alone name a device.
        let is_named = self.serial.is_some() && self.device.is_some();
        match (&self.certificate, self.key) {
            _ if is_named => {}
            (Some(Digest(digest)), _) => {
                line.key("cert").hex(digest.get(..SHORT).unwrap_or(digest));
            }
            (None, Some(key)) => {
                line.key("key").hex(sha256(key).get(..SHORT).unwrap_or_default());
            }
            (None, None) => {}
        }
        if let Some(serial) = self.serial {
            line.key("serial").hex(&serial.0);
        }
        line.key("spiffe").text(self.spiffe);
    }
}

/// What a note needs beside itself.
pub(super) struct Around<'a> {
    /// The log's origin.
    pub(super) origin: &'a str,
    pub(super) at: OffsetDateTime,
    /// Size and root that the log has already.
    pub(super) head: Option<(u64, [u8; 32])>,
}

/// The record of a note. One that would be over the limit gives its free part as a digest.
pub(super) fn note(note: &Note, around: &Around<'_>) -> Vec<u8> {
    let whole = note_line(note, around, false);
    if whole.len() <= RECORD_MAX { whole } else { note_line(note, around, true) }
}

fn note_line(note: &Note, around: &Around<'_>, short: bool) -> Vec<u8> {
    let mut line = Line::default();
    let end = |line: &mut Line| {
        line.key("t").time(around.at);
        line.key("v").number(VERSION);
    };
    line.object(|line| {
        line.key("broker").text(broker_of(around.origin));
        match note {
            Note::Alarm { what, detail } => {
                line.key("detail").text(&cut(detail));
                line.key("kind").text("alarm");
                end(line);
                line.key("what").text(what);
            }
            Note::Gap { cut_bytes } => {
                line.key("cut_bytes").number(*cut_bytes);
                line.key("kind").text("gap");
                end(line);
            }
            Note::Identity { request, what, detail } => {
                free(line.key("detail"), detail, short);
                line.key("id").display(request);
                line.key("kind").text("identity");
                end(line);
                line.key("what").text(what);
            }
            Note::NotReleased { request, index, reason } => {
                line.key("code").text(reason.code());
                line.key("id").display(request);
                if let Some(index) = index {
                    line.key("index").number(*index);
                }
                line.key("kind").text("not_released");
                end(line);
            }
            Note::Posture { device, evidence, facts, held, lost } => {
                line.key("device").hex(&device.0.0);
                line.key("evidence").hex(&evidence.0);
                free(line.key("facts"), facts, short);
                names(line.key("held"), held);
                line.key("kind").text("posture");
                names(line.key("lost"), lost);
                end(line);
            }
            Note::Summary { caller, what, count } => {
                line.key("caller").text(&cut(caller));
                line.key("count").number(*count);
                line.key("kind").text("summary");
                end(line);
                line.key("what").text(what);
            }
            Note::Unsealed { seal, store_revision } => {
                unsealed(line, around, seal, *store_revision);
                end(line);
            }
        }
    });
    line.into_bytes()
}

fn unsealed(line: &mut Line, around: &Around<'_>, seal: &str, store_revision: u64) {
    if let Some((size, root)) = &around.head {
        line.key("head").object(|line| {
            line.key("root").hex(root);
            line.key("size").number(*size);
        });
    }
    line.key("kind").text("unsealed");
    line.key("seal").text(&cut(seal));
    line.key("store_revision").number(store_revision);
}

/// A free value, or its digest and length where it is too long for a record.
fn free(line: &mut Line, value: &serde_json::Value, short: bool) {
    if !short {
        return line.value(value);
    }
    let mut whole = Line::default();
    whole.value(value);
    let whole = whole.into_bytes();
    line.object(|line| {
        line.key("bytes").number(u64::try_from(whole.len()).unwrap_or(u64::MAX));
        line.key("sha256").hex(&sha256(&whole));
    });
}

fn names(line: &mut Line, names: &[String]) {
    line.list(|line| {
        for name in names.iter().take(crate::model::limits::PROFILES_MAX) {
            line.next();
            line.text(&cut(name));
        }
    });
}

/// A text of our own makes, bounded all the same.
fn cut(text: &str) -> String {
    text.chars().take(1024).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::LazyLock;

    use serde_json::{Value, json};
    use time::macros::datetime;

    const AT: OffsetDateTime = datetime!(2026-11-23 10:15:02.113 UTC);
    static READ: LazyLock<Ask> =
        LazyLock::new(|| serde_json::from_str(r#"{"read":{"name":"pay/db/url"}}"#).unwrap());
    const ID: &str = "0192a0b0-0000-7000-8000-000000000000";

    fn told<'a>(rules: &'a [Ruled], device: &'a DeviceId, serial: &'a Serial) -> Told<'a> {
        Told {
            broker: broker_of("corp.example/decisions/0"),
            id: RequestId::parse(ID).unwrap(),
            at: AT,
            spiffe: "spiffe://corp.example/ns/pay/sa/api",
            serial: Some(serial),
            certificate: Some(Digest([0xab; 32])),
            key: None,
            epochs: Epochs { device: 1, entry: 2 },
            device: Some(device),
            evidence: Some(Digest([2; 32])),
            age: Some(Duration::from_millis(8210)),
            ask: &READ,
            target: &Target::Itself,
            object: "secret/pay/db/url",
            version: Some(7),
            client: Some("job-1234"),
            allowed: true,
            reason: Reason::Allow,
            bundle: Digest([3; 32]),
            bundle_serial: 41,
            rules,
        }
    }

    fn rule(id: &str) -> Ruled {
        Ruled { id: id.into(), line: 1, allow: true }
    }

    fn text(told: &Told<'_>, held: &[&str]) -> String {
        let mut line = Line::default();
        told.write(&mut line, &mut held.iter().copied(), &mut std::iter::empty());
        String::from_utf8(line.into_bytes()).unwrap()
    }

    #[test]
    fn a_typical_record_is_canonical_and_within_its_budget() {
        let (device, serial) = (DeviceId(Digest([1; 32])), Serial([0x5a; 16].into()));
        let rules = [rule("pay-db-read")];
        let line = text(&told(&rules, &device, &serial), &["hardened", "managed"]);
        assert!(line.len() <= 700, "{} bytes: {line}", line.len());
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), line, "keys are sorted");
        assert_eq!(value["dec"], json!({"code": "A001", "verdict": "allow"}));
        assert_eq!(value["req"]["ver"], 7);
        assert_eq!(value["sub"]["serial"], "5a".repeat(16));
        assert_eq!(value["dev"]["held"], json!(["hardened", "managed"]));
        assert_eq!(value["t"], "2026-11-23T10:15:02.113Z");
    }

    #[test]
    fn a_profile_that_only_watches_is_told_beside_those_that_hold() {
        let (device, serial) = (DeviceId(Digest([1; 32])), Serial([0x5a; 16].into()));
        let mut line = Line::default();
        let mut held = ["hardened", "managed"].into_iter();
        told(&[], &device, &serial).write(&mut line, &mut held, &mut ["hardened"].into_iter());
        let line = String::from_utf8(line.into_bytes()).unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), line, "keys are sorted");
        assert_eq!(value["dev"]["would_deny"], json!(["hardened"]));
    }

    #[test]
    fn what_is_not_known_is_not_there() {
        let (device, serial) = (DeviceId(Digest([1; 32])), Serial([1].into()));
        let mut told = told(&[], &device, &serial);
        (told.device, told.serial, told.certificate, told.evidence) = (None, None, None, None);
        (told.age, told.version, told.client, told.key) =
            (None, None, None, Some(b"spki".as_slice()));
        let value: Value = serde_json::from_str(&text(&told, &[])).unwrap();
        assert_eq!(value["dev"], json!({}));
        assert_eq!(value["sub"]["key"].as_str().unwrap().len(), 16);
        assert_eq!(value["req"], json!({"act": "read", "obj": "secret/pay/db/url"}));
        told.certificate = Some(Digest([0xab; 32]));
        let value: Value = serde_json::from_str(&text(&told, &[])).unwrap();
        assert_eq!(value["sub"]["cert"], "abababababababab");
    }

    #[test]
    fn asks_that_share_action_and_object_are_told_apart() {
        let (device, serial) = (DeviceId(Digest([1; 32])), Serial([1].into()));
        let req = |json: &str| {
            let ask: Ask = serde_json::from_str(json).unwrap();
            let told =
                Told { ask: &ask, version: None, client: None, ..told(&[], &device, &serial) };
            serde_json::from_str::<Value>(&text(&told, &[])).unwrap()["req"].clone()
        };
        let add = req(r#"{"operator_add":{"name":"mallory"}}"#);
        assert_eq!((&add["act"], &add["op"]), (&json!("write"), &json!("operator_add")));
        assert_eq!(add["detail"], json!({"name": "mallory"}));
        let token = req(r#"{"token_create":{"class":"person","ttl_s":60}}"#);
        assert_eq!((&token["act"], &token["op"]), (&json!("write"), &json!("token_create")));
        assert_eq!(req(r#"{"backup_data":{}}"#)["op"], "backup_data");
        assert_eq!(req(r#"{"backup_keys":{"recipient":"AA=="}}"#)["op"], "backup_keys");
        assert_eq!(req(r#"{"write":{"name":"a/b"}}"#)["op"], Value::Null, "as the action says");
    }

    #[test]
    fn hostile_names_and_many_rules_stay_in_bounds() {
        let (device, serial) = (DeviceId(Digest([1; 32])), Serial([1].into()));
        let rules: Vec<_> = (0..500).map(|i| rule(&format!("\u{1b}[31m\n\"{i}"))).collect();
        let mut told = told(&rules, &device, &serial);
        told.object = "secret/\u{202e}\",\"dec\":{\"verdict\":\"allow\"}\r\n";
        let line = text(&told, &["\u{0}\n"]);
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["req"]["obj"], told.object);
        assert_eq!(value["pol"]["rows"].as_array().unwrap().len(), RECORD_RULES);
        assert_eq!(value["pol"]["more"], 500 - RECORD_RULES);
    }

    #[test]
    fn every_note_is_one_canonical_line_within_the_limit() {
        let request = RequestId::parse(ID).unwrap();
        let big = json!({"x": "\u{1}".repeat(40_000)});
        let notes = [
            Note::Unsealed { seal: "key-file".into(), store_revision: 3 },
            Note::Gap { cut_bytes: 512 },
            Note::NotReleased { request, index: Some(4), reason: Reason::Changed },
            Note::NotReleased { request, index: None, reason: Reason::Invalid },
            Note::Posture {
                device: DeviceId(Digest([1; 32])),
                evidence: Digest([2; 32]),
                facts: big.clone(),
                held: vec!["a".into()],
                lost: vec!["\n".into()],
            },
            Note::Summary { caller: "10.0.0.0/24\u{1b}".into(), what: "handshake", count: 9 },
            Note::Identity { request, what: "issued", detail: json!({"b": 1, "a": "\u{202e}"}) },
            Note::Identity { request, what: "issued", detail: big },
            Note::Alarm { what: "clock", detail: "x\n".repeat(5000) },
        ];
        let around = Around { origin: "o", at: AT, head: Some((9, [7; 32])) };
        for each in &notes {
            let line = String::from_utf8(note(each, &around)).unwrap();
            assert!(line.len() <= RECORD_MAX);
            assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
            let value: Value = serde_json::from_str(&line).unwrap();
            assert!(value["kind"].is_string() && value["v"] == 1, "{line}");
            let sorted = serde_json::to_string(&value).unwrap();
            assert!(sorted == line || line.contains("\\u"), "{line}");
        }
    }
}
