//! JSON in one form only.
//!
//! serde's derive refuses unknown and duplicate fields, and serde_json bounds depth and refuses
//! what follows a value. This file closes what is left: bytes that are not text, white space around
//! the object, and the positional form (`["pay/db/url"]` for `{"name":"pay/db/url"}`) that serde takes
//! for every struct. It never quotes a value out of a message: a client that puts a secret into the
//! wrong place must not meet it again in an error or a log.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The longest piece of a parser's message that is passed on, in characters.
const DETAIL_MAX: usize = 160;

/// Why a head is not JSON of the one form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrictError {
    /// A field, a type or the syntax is wrong.
    #[error("{detail} (line {line}, column {column})")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, in bytes from 1; 0 for an empty line.
        column: usize,
        /// What is wrong, without any value of the message.
        detail: String,
    },
    /// Not UTF-8.
    #[error("it is not utf-8 from byte {0} on")]
    NotUtf8(usize),
    /// Something other than one object, or bytes around it.
    #[error("it is not exactly one json object from `{{` to `}}`")]
    NotOneObject,
    /// An array stands where a struct belongs.
    #[error("an array stands where an object belongs")]
    Positional,
}

/// Parses one object and insists that every struct in it is written as an object.
///
/// # Errors
/// The first rule that the bytes break.
pub fn from_request<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, StrictError> {
    let value: T = from_bytes(bytes)?;
    if bytes.contains(&b'[') {
        let received: Value = from_bytes(bytes)?;
        let canonical = serde_json::to_value(&value).map_err(|error| json(&error))?;
        if !same_shape(&received, &canonical) {
            return Err(StrictError::Positional);
        }
    }
    Ok(value)
}

/// Parses one object, from its first byte to its last.
///
/// # Errors
/// The first rule that the bytes break.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StrictError> {
    let text = std::str::from_utf8(bytes).map_err(|e| StrictError::NotUtf8(e.valid_up_to()))?;
    if !text.starts_with('{') {
        return Err(StrictError::NotOneObject);
    }
    let value = serde_json::from_str(text).map_err(|error| json(&error))?;
    if !text.ends_with('}') {
        return Err(StrictError::NotOneObject);
    }
    Ok(value)
}

/// Whether arrays stand only where the canonical form has arrays. The canonical form may lack what
/// was given as its default; an empty list is the only array that can be such a default.
fn same_shape(received: &Value, canonical: &Value) -> bool {
    match (received, canonical) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same_shape(l, r))
        }
        (Value::Array(_), _) => false,
        (Value::Object(left), Value::Object(right)) => {
            left.iter().all(|(key, value)| match (right.get(key), value) {
                (Some(other), _) => same_shape(value, other),
                (None, Value::Array(items)) => items.is_empty(),
                (None, _) => true,
            })
        }
        _ => true,
    }
}

fn json(error: &serde_json::Error) -> StrictError {
    StrictError::Json { line: error.line(), column: error.column(), detail: detail(error) }
}

/// What the parser says, cut down to what holds no value: `invalid type: string "…"` would.
fn detail(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(place.as_str()).unwrap_or(&text);
    let quotes_a_value = text.starts_with("invalid type") || text.starts_with("invalid value");
    if quotes_a_value {
        let wanted = text.rsplit_once(", expected ").map_or("another type", |(_, wanted)| wanted);
        return format!("a value of the wrong type stands where {} belongs", plain(wanted));
    }
    plain(text)
}

/// The text without control characters, cut to a bounded length.
pub fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(DETAIL_MAX).map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Point {
        x: u8,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tags: Vec<String>,
    }

    fn point(text: &str) -> Result<Point, StrictError> {
        from_request(text.as_bytes())
    }

    #[test]
    fn one_form_is_taken_and_every_other_refused() {
        assert_eq!(point(r#"{"x":1,"tags":["a"]}"#).unwrap().tags, ["a"]);
        assert!(point(r#"{"x":1,"tags":[]}"#).is_ok());
        for bad in [r#"[1,["a"]]"#, r#" {"x":1}"#, "{\"x\":1}\n", "\u{feff}{\"x\":1}", "", "7"] {
            assert_eq!(point(bad).unwrap_err(), StrictError::NotOneObject, "{bad:?}");
        }
        for bad in [r#"{"x":1}{}"#, r#"{"x":1}}"#, r#"{"x":1,"x":1}"#, r#"{"x":1,"y":1}"#, "{"] {
            assert!(matches!(point(bad), Err(StrictError::Json { .. })), "{bad:?}");
        }
        assert_eq!(from_bytes::<Point>(b"{\"\xff").unwrap_err(), StrictError::NotUtf8(2));
    }

    #[test]
    fn the_positional_form_is_refused_at_any_depth() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Line {
            from: Point,
            to: Option<Point>,
        }
        let good = r#"{"from":{"x":1,"tags":["a"]},"to":{"x":2}}"#;
        assert!(from_request::<Line>(good.as_bytes()).is_ok());
        for bad in [r#"{"from":[1,["a"]],"to":null}"#, r#"{"from":{"x":1},"to":[2,[]]}"#] {
            let error = from_request::<Line>(bad.as_bytes()).unwrap_err();
            assert_eq!(error, StrictError::Positional, "{bad}");
        }
    }

    #[test]
    fn no_value_of_a_message_comes_back_in_an_error() {
        let named = point(r#"{"y":1}"#).unwrap_err().to_string();
        assert!(named.starts_with("unknown field `y`, expected `x` or `tags`"), "{named}");
        for text in [r#"{"x":"hunter2"}"#, r#"{"x":1,"tags":"hunter2"}"#, r#"{"x":4242}"#] {
            let error = point(text).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && !error.contains("4242"), "{error}");
        }
        let long = point(&format!("{{\"{}\":1}}", "\\u0007é".repeat(5000))).unwrap_err();
        assert!(long.to_string().chars().count() < 220, "{long}");
        assert!(!long.to_string().contains('\u{7}'));
    }
}
