//! What of an ask stands in its record beside action, operation and object: whatever decides what was
//! granted. Names, numbers and digests; never a secret's byte or a token. At most
//! [`RECORD_DETAIL`](crate::model::limits::RECORD_DETAIL) bytes.
//!
//! A text that is long or holds more than plain characters stands as its digest, never cut: a part of
//! a path could be read as another path. Plain reads have no detail.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::line::Line;
use super::merkle::sha256;
use crate::model::{
    Ask, CaStep, Digest, EndpointProfile, EnrolBy, EnrolledBy, EntryDraft, FederationStep, Labels,
    Shown, Target, WorkloadFacts,
};

/// Bytes of a digest that stands for a text or a token: enough to find it again.
const SHORT: usize = 16;
/// The longest text that may stand beside many fields.
const NARROW: usize = 39;
/// The longest text that may stand beside few.
const WIDE: usize = 90;

/// Writes the key `detail`, where there is something to say.
pub(super) fn of(line: &mut Line, ask: &Ask, target: &Target) {
    match ask {
        Ask::Write { cas, labels, staged, .. } if cas.is_some() || labels.is_some() || *staged => {
            line.key("detail").object(|line| write(line, *cas, labels.as_ref(), *staged));
        }
        Ask::Label { labels, .. } => {
            line.key("detail").object(|line| digest_of_labels(line, labels));
        }
        Ask::Activate { version, .. }
        | Ask::Delete { version: Some(version), .. }
        | Ask::Undelete { version: Some(version), .. } => {
            line.key("detail").object(|line| line.key("version").number(*version));
        }
        Ask::Enroll { name, by: Some(by), .. } => {
            line.key("detail").object(|line| applied(line, name, *by, target));
        }
        Ask::Enroll { .. } | Ask::Issue { .. } | Ask::IssueJwt { .. } => identity(line, ask),
        Ask::DeviceRevoke { release: true, .. } => {
            line.key("detail").object(|line| line.key("release").truth(true));
        }
        Ask::TokenCreate { .. } => line.key("detail").object(|line| token(line, ask)),
        Ask::OperatorAdd { name } | Ask::OperatorRemove { name } => {
            line.key("detail").object(|line| text(line, "name", name, 2 * WIDE));
        }
        Ask::Ca(step) => authority(line, step),
        Ask::Federation(step) => federation(line, step),
        Ask::Bundle { holds: Some(_) } | Ask::Duties { since: Some(_), .. } => {
            line.key("detail").object(|line| told(line, ask));
        }
        Ask::EntryCreate { entry } => line.key("detail").object(|line| draft(line, entry)),
        Ask::Revoke { resume, .. } => {
            line.key("detail").object(|line| line.key("resume").truth(*resume));
        }
        Ask::RevokeSvid { serial, .. } => {
            line.key("detail").object(|line| line.key("serial").display(serial));
        }
        Ask::Retract { svids } => {
            let count = u64::try_from(svids.len()).unwrap_or(u64::MAX);
            line.key("detail").object(|line| line.key("svids").number(count));
        }
        Ask::LogRead { from, holding, limit } => {
            line.key("detail").object(|line| pages(line, *from, holding.as_deref(), *limit));
        }
        Ask::Exposure { .. } | Ask::Explain { .. } | Ask::CanI { .. } => {
            line.key("detail").object(|line| asked(line, ask));
        }
        Ask::BackupKeys { recipient } => line.key("detail").object(|line| {
            let key = STANDARD.decode(recipient).unwrap_or_else(|_| recipient.as_bytes().to_vec());
            line.key("recipient_sha256").hex(&sha256(&key));
        }),
        Ask::Write { .. } | Ask::Delete { .. } | Ask::Undelete { .. } => {}
        Ask::Read { .. } | Ask::List { .. } | Ask::Versions { .. } => {}
        Ask::Bundle { holds: None } => {}
        Ask::Whoami {} | Ask::Report { .. } | Ask::Renew {} => {}
        Ask::Duties { since: None, .. } => {}
        Ask::DeviceList { .. } | Ask::DeviceShow { .. } | Ask::DeviceRevoke { .. } => {}
        Ask::EntryList { .. } | Ask::EntryDelete { .. } | Ask::Status {} | Ask::BackupData {} => {}
        Ask::PolicyRead {} | Ask::PolicyActivate {} | Ask::PolicyRollback {} => {}
    }
}

/// What a question was about.
fn asked(line: &mut Line, ask: &Ask) {
    match ask {
        Ask::Exposure { device, from, limit, since } => {
            line.key("device").hex(&device.0.0);
            line.key("from").number(*from);
            line.key("limit").number(u64::from(*limit));
            if let Some(since) = since.and_then(|since| u64::try_from(since).ok()) {
                line.key("since").number(since);
            }
        }
        Ask::Explain { request } => line.key("request").display(request),
        Ask::CanI { action, object } => {
            line.key("act").text(action.as_str());
            text(line, "obj", object, 2 * WIDE);
        }
        _ => {}
    }
}

/// Whom a token shall let in, and for how long.
fn token(line: &mut Line, ask: &Ask) {
    let Ask::TokenCreate { class, ttl_s } = ask else { return };
    text(line, "class", class.as_str(), WIDE);
    line.key("ttl_s").number(u64::from(*ttl_s));
}

/// What an agent says that it holds.
fn told(line: &mut Line, ask: &Ask) {
    match ask {
        Ask::Bundle { holds: Some(holds) } => {
            line.key("sequence").number(holds.sequence);
            line.key("tainted").number(u64::from(holds.tainted));
        }
        Ask::Duties { holds, since: Some(since), .. } => {
            if let Some(holds) = holds {
                line.key("holds").number(*holds);
            }
            line.key("wait").truth(since.wait);
        }
        _ => {}
    }
}

/// Which part of the log.
fn pages(line: &mut Line, from: u64, holding: Option<&str>, limit: u32) {
    line.key("from").number(from);
    if let Some(holding) = holding {
        // Not the text: whoever looks for a leaked secret in the log would put it there.
        let digest = sha256(holding.as_bytes());
        line.key("holding").hex(digest.get(..SHORT).unwrap_or_default());
    }
    line.key("limit").number(u64::from(limit));
}

/// Under which condition, and what beside the value.
fn write(line: &mut Line, cas: Option<u64>, labels: Option<&Labels>, staged: bool) {
    if let Some(cas) = cas {
        line.key("cas").number(cas);
    }
    if let Some(labels) = labels {
        digest_of_labels(line, labels);
    }
    if staged {
        line.key("staged").truth(true);
    }
}

/// Which authority, and whether nobody shall be waited for.
fn authority(line: &mut Line, step: &CaStep) {
    match step {
        CaStep::Show {} | CaStep::Prepare {} => {}
        CaStep::Activate { after_s, force } => line.key("detail").object(|line| {
            if let Some(after_s) = after_s {
                line.key("after_s").number(u64::from(*after_s));
            }
            line.key("force").truth(*force);
        }),
        CaStep::Taint { id } => {
            line.key("detail").object(|line| line.key("authority").hex(&id.0));
        }
        CaStep::Revoke { id, force } => line.key("detail").object(|line| {
            line.key("authority").hex(&id.0);
            line.key("force").truth(*force);
        }),
    }
}

/// Where a bundle is fetched, and by which rules; the domain is the object.
fn federation(line: &mut Line, step: &FederationStep) {
    match step {
        FederationStep::Add { endpoint: Some(endpoint), .. } => {
            line.key("detail").object(|line| {
                if let EndpointProfile::HttpsSpiffe { endpoint_id } = &endpoint.profile {
                    text(line, "endpoint_id", endpoint_id.as_str(), WIDE);
                }
                line.key("profile").text(endpoint.profile.as_str());
                text(line, "url", endpoint.url.as_str(), WIDE);
            });
        }
        FederationStep::SetBundle { force, .. } => {
            line.key("detail").object(|line| line.key("force").truth(*force));
        }
        FederationStep::Add { endpoint: None, .. } | FederationStep::Bundle { .. } => {}
        FederationStep::Duties {} | FederationStep::List {} => {}
        FederationStep::Refresh { .. } => {}
        FederationStep::Remove { .. } | FederationStep::Take { .. } => {}
    }
}

/// Whose identity, and on the strength of what.
fn identity(line: &mut Line, ask: &Ask) {
    match ask {
        Ask::Enroll { name, token, .. } => line.key("detail").object(|line| {
            text(line, "name", name, WIDE);
            if let Some(Digest(token)) = token {
                line.key("token").hex(token.get(..SHORT / 2).unwrap_or_default());
            }
        }),
        Ask::Issue { agent_held, entry, workload, .. } => line.key("detail").object(|line| {
            line.key("agent_held").truth(*agent_held);
            line.key("entry").display(entry);
            process(line, workload);
        }),
        Ask::IssueJwt { audience, entry, workload, .. } => line.key("detail").object(|line| {
            text(line, "aud", audience.as_str(), NARROW);
            line.key("entry").display(entry);
            process(line, workload);
        }),
        _ => {}
    }
}

fn process(line: &mut Line, workload: &WorkloadFacts) {
    if let Some(Digest(exe)) = &workload.exe_sha256 {
        line.key("exe").hex(exe);
    }
    if let Some(path) = &workload.path {
        let room = if workload.pod_uid.is_some() { NARROW } else { WIDE };
        text(line, "path", path, room);
    }
    if let Some(uid) = &workload.pod_uid {
        text(line, "pod", uid, NARROW);
    }
    line.key("uid").number(u64::from(workload.uid));
}

/// What an applicant showed in place of a join token, or what is wrong with it.
fn applied(line: &mut Line, name: &str, by: EnrolBy, target: &Target) {
    let proven = match target {
        Target::Shown(Shown::Proven(proven)) => Some(&proven.by),
        _ => None,
    };
    line.key("by").text(by.word());
    if let Some(EnrolledBy::X509 { certificate, .. }) = proven {
        line.key("certificate").hex(certificate.0.get(..SHORT).unwrap_or_default());
    }
    if let Some(EnrolledBy::Tpm { ek, .. }) = proven {
        line.key("ek").hex(ek.0.get(..SHORT).unwrap_or_default());
    }
    match (target, proven) {
        (Target::Shown(Shown::Fault(_, word)), _) => line.key("fault").text(word),
        (_, Some(EnrolledBy::X509 { key, .. })) => {
            line.key("key").hex(key.0.get(..SHORT).unwrap_or_default());
        }
        _ => {}
    }
    if let Some(proven) = proven {
        text(line, "method", proven.method(), NARROW);
    }
    text(line, "name", name, NARROW);
    if let Some(EnrolledBy::Kubernetes { namespace, service_account, pod_uid, node_uid, .. }) =
        proven
    {
        if let Some(uid) = node_uid {
            text(line, "node", uid, NARROW);
        }
        text(line, "pod", pod_uid, NARROW);
        text(line, "service_account", &format!("{namespace}/{service_account}"), NARROW);
    }
    if let Some(EnrolledBy::Tpm { tier, .. }) = proven {
        line.key("tier").text(tier.word());
    }
}

fn draft(line: &mut Line, entry: &EntryDraft) {
    text(line, "class", entry.class.as_str(), NARROW);
    if entry.default {
        line.key("default").truth(true);
    }
    if let Some(device) = &entry.device {
        line.key("device").hex(&device.0.0);
    }
    line.key("selectors").hex(&sha256(&serde_json::to_vec(&entry.selectors).unwrap_or_default()));
    let room = if entry.device.is_some() { NARROW } else { WIDE };
    text(line, "spiffe_id", entry.spiffe_id.as_str(), room);
    if let Some(ttl_s) = entry.ttl_s {
        line.key("ttl_s").number(u64::from(ttl_s));
    }
}

fn digest_of_labels(line: &mut Line, labels: &Labels) {
    line.key("labels").hex(&sha256(&serde_json::to_vec(labels).unwrap_or_default()));
}

/// A plain text of at most `max` bytes, or its digest.
fn text(line: &mut Line, key: &'static str, text: &str, max: usize) {
    let plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
    let line = line.key(key);
    if text.len() <= max && text.bytes().all(plain) {
        return line.text(text);
    }
    let digest = sha256(text.as_bytes());
    line.text(&format!("sha256:{}", hex::encode(digest.get(..SHORT).unwrap_or_default())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::limits::RECORD_DETAIL;
    use serde_json::{Value, json};

    fn of(ask: Value) -> Value {
        of_target(ask, &Target::Itself)
    }

    fn of_target(ask: Value, target: &Target) -> Value {
        let ask: Ask = serde_json::from_value(ask).unwrap();
        let mut line = Line::default();
        line.object(|line| super::of(line, &ask, target));
        let text = String::from_utf8(line.into_bytes()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), text, "keys are sorted");
        let long = text.len() > RECORD_DETAIL + r#"{"detail":}"#.len();
        assert!(!long, "{} bytes: {text}", text.len());
        value["detail"].clone()
    }

    const ID: &str = "0192a0b0-0000-7000-8000-000000000000";

    #[test]
    fn what_was_granted_is_told_apart() {
        assert_eq!(of(json!({"operator_add": {"name": "mallory"}})), json!({"name": "mallory"}));
        let keys = of(json!({"backup_keys": {"recipient": STANDARD.encode("key")}}));
        assert_eq!(keys, json!({"recipient_sha256": hex::encode(sha256(b"key"))}));
        assert_eq!(of(json!({"backup_data": {}})), Value::Null);
        let staged = of(json!({"write": {"name": "a/b", "cas": 3, "staged": true}}));
        assert_eq!(staged, json!({"cas": 3, "staged": true}));
        assert_eq!(of(json!({"activate": {"name": "a/b", "version": 2}})), json!({"version": 2}));
        assert_eq!(of(json!({"delete": {"name": "a/b"}})), Value::Null);
        let token = "ab".repeat(32);
        let enroll = of(json!({"enroll": {"name": "host-1", "token": token}}));
        assert_eq!(enroll, json!({"name": "host-1", "token": "ab".repeat(8)}));
        let authority = "cd".repeat(32);
        let revoked = of(json!({"ca": {"revoke": {"id": authority, "force": true}}}));
        assert_eq!(revoked, json!({"authority": authority, "force": true}));
        let activated = of(json!({"ca": {"activate": {"after_s": 60}}}));
        assert_eq!(activated, json!({"after_s": 60, "force": false}));
        let held = of(json!({"bundle": {"holds": {"sequence": 7, "tainted": 2}}}));
        assert_eq!(held, json!({"sequence": 7, "tainted": 2}));
        let start = "0198c0de-0000-4000-8000-00000000000a";
        let since = json!({"start": start, "bundle": 1, "wait": true});
        let changes = of(json!({"duties": {"holds": 41, "since": since}}));
        assert_eq!(changes, json!({"holds": 41, "wait": true}));
        assert_eq!(of(json!({"duties": {}})), Value::Null, "a whole list");
        for plain in [
            json!({"read": {"name": "a/b", "version": 3}}),
            json!({"list": {"prefix": "a"}}),
            json!({"versions": {"name": "a/b"}}),
            json!({"whoami": {}}),
        ] {
            assert_eq!(of(plain), Value::Null, "reads stay as small as they were");
        }
    }

    #[test]
    fn an_enrolment_tells_what_was_shown_or_what_is_wrong_with_it() {
        let shown = |by: EnrolledBy| {
            let class = crate::model::DeviceClass::parse("server").unwrap();
            let proven = crate::model::Proven { by, class, ttl_s: None, spends: None };
            Target::Shown(Shown::Proven(std::sync::Arc::new(proven)))
        };
        let ask = |by: &str| json!({"enroll": {"name": "host-1", "by": by}});
        let (certificate, key) = (Digest([0xab; 32]), Digest([0xcd; 32]));
        let x509 = EnrolledBy::X509 { method: "fleet".into(), certificate, key };
        assert_eq!(
            of_target(ask("x509"), &shown(x509)),
            json!({
                "by": "x509", "certificate": "ab".repeat(16), "key": "cd".repeat(16),
                "method": "fleet", "name": "host-1",
            })
        );
        let pod = |long: usize| EnrolledBy::Kubernetes {
            method: "m".repeat(32.min(long)),
            namespace: "n".repeat(long),
            service_account: "s".repeat(long),
            pod: "p".repeat(long),
            pod_uid: "u".repeat(64.min(long)),
            node: Some("d".repeat(long)),
            node_uid: Some("e".repeat(64.min(long))),
        };
        let told = of_target(ask("kubernetes"), &shown(pod(2)));
        assert_eq!(
            told,
            json!({
                "by": "kubernetes", "method": "mm", "name": "host-1", "node": "ee", "pod": "uu",
                "service_account": "nn/ss",
            })
        );
        let long = json!({"enroll": {"name": "h".repeat(64), "by": "kubernetes"}});
        assert!(of_target(long, &shown(pod(253)))["pod"].as_str().unwrap().starts_with("sha256:"));
        let fault = Target::Shown(Shown::Fault(EnrolBy::Kubernetes, "expired"));
        let told = of_target(ask("kubernetes"), &fault);
        assert_eq!(told, json!({"by": "kubernetes", "fault": "expired", "name": "host-1"}));
        let device = "0".repeat(64);
        let revoke = |release: bool| {
            of(json!({"device_revoke": {"class": "server", "id": device, "release": release}}))
        };
        assert_eq!((revoke(false), revoke(true)), (Value::Null, json!({"release": true})));
    }

    #[test]
    fn an_issue_tells_the_process_and_an_entry_its_selectors() {
        let exe = "cd".repeat(32);
        let issue = |path: &str| {
            let workload = json!({
                "pid": 1, "start_ticks": 2, "uid": 1000, "gid": 1000, "path": path,
                "exe_sha256": exe, "unit": null, "pinned": true,
            });
            of(json!({"issue": {
                "entry": ID, "spiffe_id": "spiffe://corp.example/api", "public_key": "AA==",
                "workload": workload, "agent_held": false,
            }}))
        };
        let jwt = of(json!({"issue_jwt": {
            "entry": ID, "spiffe_id": "spiffe://corp.example/api", "audience": "https://a.example",
            "workload": {
                "pid": 1, "start_ticks": 2, "uid": 1000, "gid": 1000, "path": "/usr/bin/api",
                "exe_sha256": exe, "unit": null, "pinned": true,
            },
        }}));
        let want = json!({
            "aud": "https://a.example", "entry": ID, "exe": exe, "path": "/usr/bin/api", "uid": 1000,
        });
        assert_eq!(jwt, want);
        let told = issue("/usr/bin/api");
        let want = json!({
            "agent_held": false, "entry": ID, "exe": exe, "path": "/usr/bin/api", "uid": 1000,
        });
        assert_eq!(told, want);
        let entry = |selector: Value| {
            of(json!({"entry_create": {"entry": {
                "spiffe_id": "spiffe://corp.example/api", "class": "server",
                "selectors": [{"uid": 1000}, selector], "default": true,
            }}}))
        };
        let (one, other) = (entry(json!({"path": "/a"})), entry(json!({"path": "/b"})));
        assert_eq!((&one["class"], &one["default"]), (&json!("server"), &json!(true)));
        assert_ne!(one["selectors"], other["selectors"]);
    }

    #[test]
    fn the_longest_and_the_most_hostile_stay_in_bounds() {
        let (device, long) = ("0".repeat(64), "\u{202e}\n\"".repeat(900));
        let class = "c".repeat(128);
        let id = format!("spiffe://corp.example/{}", "p".repeat(120));
        for ask in [
            json!({"operator_add": {"name": long}}),
            json!({"operator_add": {"name": "n".repeat(180)}}),
            json!({"enroll": {"name": long, "token": device}}),
            json!({"token_create": {"class": class, "ttl_s": u32::MAX}}),
            json!({"can_i": {"action": "activate", "object": long}}),
            json!({"federation": {"add": {
                "trust_domain": "b.example",
                "endpoint": {
                    "url": format!("https://{}", "b".repeat(63)),
                    "profile": {"https_spiffe": {"endpoint_id": id}},
                },
            }}}),
            json!({"can_i": {"action": "activate", "object": "o".repeat(180)}}),
            json!({"log_read": {"from": u64::MAX, "limit": u32::MAX, "holding": long}}),
            json!({"write": {
                "name": "a/b", "cas": u64::MAX, "labels": {"a": "b"}, "staged": true,
            }}),
            json!({"entry_create": {"entry": {
                "spiffe_id": id, "class": class, "device": device, "selectors": [{"path": long}],
                "ttl_s": u32::MAX, "default": true,
            }}}),
            json!({"issue": {
                "entry": ID, "spiffe_id": id, "public_key": long, "agent_held": false,
                "workload": {
                    "pid": 1, "start_ticks": 2, "uid": u32::MAX, "gid": 1, "path": long,
                    "exe_sha256": device, "unit": null, "pinned": true,
                },
            }}),
            json!({"issue_jwt": {
                "entry": ID, "spiffe_id": id, "audience": "\"".repeat(512),
                "workload": {
                    "pid": 1, "start_ticks": 2, "uid": u32::MAX, "gid": 1, "path": long,
                    "exe_sha256": device, "unit": null, "pod_uid": long, "pinned": true,
                },
            }}),
            json!({"issue_jwt": {
                "entry": ID, "spiffe_id": id, "audience": "a".repeat(NARROW),
                "workload": {
                    "pid": 1, "start_ticks": 2, "uid": u32::MAX, "gid": 1, "path": "p".repeat(WIDE),
                    "exe_sha256": device, "unit": null, "pinned": true,
                },
            }}),
        ] {
            let told = of(ask);
            assert!(!told.to_string().contains('\u{202e}'));
        }
        let name = of(json!({"operator_add": {"name": long}}))["name"].clone();
        assert!(name.as_str().unwrap().starts_with("sha256:"));
    }
}
