//! Several values in one answer. JSON is needed here, so values are base64 in a buffer that is
//! wiped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::problem::Problem;
use crate::model::{Code, RequestId, SecretName, SecretValue};

/// Names of one batch.
pub(super) const NAMES_MAX: usize = 128;
/// The request's body, in bytes: 128 names of 512 bytes, with room.
pub(super) const BODY_MAX: usize = 96 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    names: Vec<SecretName>,
}

/// The names of a batch: 1 to 128.
pub(super) fn names(body: &[u8]) -> Result<Vec<SecretName>, Problem> {
    let bad = |hint: String| Problem::own(Code::Invalid, "body", "the body is wrong").hint(hint);
    let wanted: Wanted = serde_json::from_slice(body)
        .map_err(|why| bad(format!("{{\"names\":[\"pay/db/url\"]}} is wanted: {why}")))?;
    if wanted.names.is_empty() || wanted.names.len() > NAMES_MAX {
        return Err(bad(format!("1 to {NAMES_MAX} names are wanted")));
    }
    Ok(wanted.names)
}

/// One name's outcome.
pub(super) struct Item {
    pub(super) name: SecretName,
    pub(super) outcome: Result<(RequestId, u64, SecretValue), Problem>,
}

#[derive(Serialize)]
struct Fault<'a> {
    name: &'a SecretName,
    error: &'a Problem,
}

/// `[{"name","version","request_id","value_base64"} | {"name","error"}]`, in the order of asking.
/// Names, versions and ids hold nothing that JSON would escape.
pub(super) fn encode(items: &[Item]) -> Zeroizing<Vec<u8>> {
    let size = |item: &Item| match &item.outcome {
        Ok((_, _, value)) => 256 + item.name.as_str().len() + 4 * (value.len() / 3 + 1),
        Err(_) => 4096,
    };
    // Room for all at once: a buffer that grows would leave copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(2 + items.iter().map(size).sum::<usize>()));
    out.push(b'[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match &item.outcome {
            Ok((request, version, value)) => {
                let head = format!(
                    "{{\"name\":\"{}\",\"version\":{version},\"request_id\":\"{request}\",\
                     \"value_base64\":\"",
                    item.name
                );
                out.extend_from_slice(head.as_bytes());
                append_base64(&mut out, value.expose());
                out.extend_from_slice(b"\"}");
            }
            Err(error) => {
                let fault = Fault { name: &item.name, error };
                out.extend(serde_json::to_vec(&fault).unwrap_or_else(|_| b"null".to_vec()));
            }
        }
    }
    out.push(b']');
    out
}

fn append_base64(out: &mut Vec<u8>, value: &[u8]) {
    let start = out.len();
    out.resize(start + 4 * value.len().div_ceil(3), b'=');
    if let Some(room) = out.get_mut(start..) {
        let _ = STANDARD.encode_slice(value, room); // the room is exactly as large as it must be
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Clock, ManualClock, Moment};

    fn now() -> Moment {
        ManualClock::at(time::macros::datetime!(2026-11-23 12:00 UTC)).now()
    }

    #[test]
    fn values_and_refusals_stand_side_by_side_and_the_buffer_never_grows() {
        let request = RequestId::new(now());
        let name = |text| SecretName::parse(text).unwrap();
        for length in [0, 1, 2, 3, 4, 65_536] {
            let value = vec![0xfb; length];
            let items = [
                Item {
                    name: name("pay/a"),
                    outcome: Ok((request, 7, SecretValue::new(value.clone()))),
                },
                Item {
                    name: name("pay/b"),
                    outcome: Err(Problem::own(Code::Denied, "D101", "no_allow")),
                },
            ];
            let text = encode(&items);
            let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(json[0]["name"], "pay/a");
            assert_eq!(json[0]["version"], 7);
            let back = STANDARD.decode(json[0]["value_base64"].as_str().unwrap()).unwrap();
            assert_eq!(back, value);
            assert_eq!(json[1]["error"]["code"], "denied");
            assert_eq!(json[1]["error"]["reason"], "D101");
            assert!(json[1].get("value_base64").is_none());
        }
    }

    #[test]
    fn names_are_bounded_and_strict() {
        assert_eq!(names(br#"{"names":["pay/a","pay/b"]}"#).unwrap().len(), 2);
        let many = |n| format!("{{\"names\":[{}]}}", vec!["\"pay/a\""; n].join(","));
        assert!(names(many(NAMES_MAX).as_bytes()).is_ok());
        for bad in [
            "",
            "{}",
            r#"{"names":[]}"#,
            r#"{"names":["pay/../a"]}"#,
            r#"{"names":["pay/a"],"as":"spiffe://corp.example/root"}"#,
            &many(NAMES_MAX + 1),
        ] {
            assert_eq!(names(bad.as_bytes()).unwrap_err().status, 400, "{bad:.60}");
        }
    }
}
