//! The messages of the JWT profile (SPIFFE Workload API §6; the tags are the standard's), and the
//! two of Protocol Buffers' own by which claims are told.
//!
//! What carries a token shows nothing of it, and is wiped with the message.

use std::collections::{BTreeMap, HashMap};

use prost::{Message, Oneof};
use serde_json::Value as Json;
use zeroize::Zeroize;

/// Asks for tokens.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtSvidRequest {
    /// Whom they are for.
    #[prost(string, repeated, tag = "1")]
    pub(super) audience: Vec<String>,
    /// Which of the caller's identities; empty for all.
    #[prost(string, tag = "2")]
    pub(super) spiffe_id: String,
}

/// One token.
#[derive(PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct JwtSvid {
    /// `spiffe://…`
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// JWS compact serialisation.
    #[prost(string, tag = "2")]
    pub(super) svid: String,
    /// A word of the operator's that tells several identities apart.
    #[prost(string, tag = "3")]
    pub(super) hint: String,
}

impl std::fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JwtSvid({})", self.spiffe_id)
    }
}

impl Drop for JwtSvid {
    fn drop(&mut self) {
        self.svid.zeroize();
    }
}

/// Tokens, that of the default identity first.
#[derive(PartialEq, Message)]
pub(super) struct JwtSvidResponse {
    /// Them.
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<JwtSvid>,
}

/// The keys that check tokens.
#[derive(PartialEq, Message)]
pub(super) struct JwtBundlesResponse {
    /// JWK Sets, JSON, by `spiffe://<trust domain>`.
    #[prost(map = "string, bytes", tag = "1")]
    pub(super) bundles: HashMap<String, Vec<u8>>,
}

/// A token to be validated.
#[derive(PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct ValidateJwtSvidRequest {
    /// Whom it must be for.
    #[prost(string, tag = "1")]
    pub(super) audience: String,
    /// It.
    #[prost(string, tag = "2")]
    pub(super) svid: String,
}

impl std::fmt::Debug for ValidateJwtSvidRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ValidateJwtSvidRequest(…)")
    }
}

impl Drop for ValidateJwtSvidRequest {
    fn drop(&mut self) {
        self.svid.zeroize();
    }
}

/// What a good token says.
#[derive(PartialEq, Message)]
pub(super) struct ValidateJwtSvidResponse {
    /// Its subject.
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// All that it says.
    #[prost(message, optional, tag = "2")]
    pub(super) claims: Option<Struct>,
}

/// `google.protobuf.Struct`: a JSON object.
#[derive(PartialEq, Message)]
pub(super) struct Struct {
    /// Its members.
    #[prost(btree_map = "string, message", tag = "1")]
    pub(super) fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`: a JSON value.
#[derive(PartialEq, Message)]
pub(super) struct Value {
    /// One of its kinds.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub(super) kind: Option<Kind>,
}

/// `google.protobuf.Value.kind`.
#[derive(PartialEq, Oneof)]
pub(super) enum Kind {
    /// `google.protobuf.NullValue`, of which there is one.
    #[prost(int32, tag = "1")]
    Null(i32),
    /// A number, as a double.
    #[prost(double, tag = "2")]
    Number(f64),
    /// A text.
    #[prost(string, tag = "3")]
    Text(String),
    /// A truth.
    #[prost(bool, tag = "4")]
    Truth(bool),
    /// An object.
    #[prost(message, tag = "5")]
    Object(Struct),
    /// A list.
    #[prost(message, tag = "6")]
    List(ListValue),
}

/// `google.protobuf.ListValue`: a JSON array.
#[derive(PartialEq, Message)]
pub(super) struct ListValue {
    /// Its elements.
    #[prost(message, repeated, tag = "1")]
    pub(super) values: Vec<Value>,
}

impl Struct {
    /// An object out of claims, whose depth is bounded by whoever read them.
    pub(super) fn of<'j>(claims: impl IntoIterator<Item = (&'j String, &'j Json)>) -> Self {
        let one = |(name, value): (&String, &Json)| (name.clone(), Value::of(value));
        Self { fields: claims.into_iter().map(one).collect() }
    }
}

impl Value {
    fn of(json: &Json) -> Self {
        let kind = match json {
            Json::Null => Kind::Null(0),
            Json::Bool(truth) => Kind::Truth(*truth),
            Json::Number(number) => Kind::Number(number.as_f64().unwrap_or_default()),
            Json::String(text) => Kind::Text(text.clone()),
            Json::Array(values) => {
                Kind::List(ListValue { values: values.iter().map(Self::of).collect() })
            }
            Json::Object(members) => Kind::Object(Struct::of(members)),
        };
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::messages::{PREFIX, frame, only_message};
    use super::*;

    fn encoded(message: &impl Message) -> Vec<u8> {
        frame(message).unwrap()[PREFIX..].to_vec()
    }

    #[test]
    fn the_bytes_are_the_standards_own() {
        let request = JwtSvidRequest { audience: vec!["a".into()], spiffe_id: "s".into() };
        assert_eq!(encoded(&request), b"\x0a\x01a\x12\x01s");
        let svid = JwtSvid { spiffe_id: "s".into(), svid: "t".into(), hint: "h".into() };
        assert_eq!(format!("{svid:?}"), "JwtSvid(s)", "a token is not shown");
        let response = JwtSvidResponse { svids: vec![svid] };
        assert_eq!(encoded(&response), b"\x0a\x09\x0a\x01s\x12\x01t\x1a\x01h");
        let bundles = HashMap::from([("d".to_owned(), b"{}".to_vec())]);
        let bundles = JwtBundlesResponse { bundles };
        assert_eq!(encoded(&bundles), b"\x0a\x07\x0a\x01d\x12\x02{}");
        let asked = ValidateJwtSvidRequest { audience: "a".into(), svid: "t".into() };
        assert_eq!(encoded(&asked), b"\x0a\x01a\x12\x01t");
        assert_eq!(format!("{asked:?}"), "ValidateJwtSvidRequest(…)");
    }

    #[test]
    fn claims_of_every_kind_are_told() {
        let claims = json!({"a": null, "b": 1.5, "c": "x", "d": true, "e": {"f": 1}, "g": ["y"]});
        let told = Struct::of(claims.as_object().unwrap());
        let response = ValidateJwtSvidResponse { spiffe_id: "s".into(), claims: Some(told) };
        let want: [&[u8]; 8] = [
            b"\x0a\x01s\x12\x53",
            b"\x0a\x07\x0a\x01a\x12\x02\x08\x00",
            b"\x0a\x0e\x0a\x01b\x12\x09\x11\x00\x00\x00\x00\x00\x00\xf8\x3f",
            b"\x0a\x08\x0a\x01c\x12\x03\x1a\x01x",
            b"\x0a\x07\x0a\x01d\x12\x02\x20\x01",
            b"\x0a\x17\x0a\x01e\x12\x12\x2a\x10\x0a\x0e\x0a\x01f\x12\x09\x11",
            b"\x00\x00\x00\x00\x00\x00\xf0\x3f",
            b"\x0a\x0c\x0a\x01g\x12\x07\x32\x05\x0a\x03\x1a\x01y",
        ];
        assert_eq!(encoded(&response), want.concat());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = only_message::<JwtSvidRequest>(&body);
            let _ = only_message::<ValidateJwtSvidRequest>(&body);
        }
    }
}
