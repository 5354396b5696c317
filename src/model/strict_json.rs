//! JSON from strangers, read once for its shape before anything believes its content: no key twice
//! at any level, no deeper than the reader's own writers ever go. Checking the shape keeps nothing
//! but the keys of the objects it is in; whoever calls bounds the bytes first.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Why a text is not taken. Nothing of the text's values stands in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrictJsonError {
    /// Not JSON, a key that stands twice, or too deep.
    #[error("{detail} (line {line}, column {column})")]
    Shape {
        /// Line, from 1.
        line: usize,
        /// Column, in bytes from 1.
        column: usize,
        /// What is wrong there.
        detail: String,
    },
    /// The shape holds, but the content is of another type.
    #[error("a member is missing, unknown or of the wrong type (line {line}, column {column})")]
    Content {
        /// Line, from 1; 0 when the place is not known.
        line: usize,
        /// Column, in bytes from 1; 0 when the place is not known.
        column: usize,
    },
}

/// Reads a whole JSON text of at most `depth` levels into a type, after its shape held.
///
/// # Errors
/// When the shape breaks a rule, or the content is not of that type.
pub fn read_strict_json<'a, T: serde::Deserialize<'a>>(
    bytes: &'a [u8],
    depth: usize,
) -> Result<T, StrictJsonError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let shape = Shape { left: depth }.deserialize(&mut reader);
    shape.and_then(|()| reader.end()).map_err(|error| broken(&error))?;
    serde_json::from_slice(bytes)
        .map_err(|e| StrictJsonError::Content { line: e.line(), column: e.column() })
}

/// The parser's words; at this point it knows no types, so it quotes no value.
fn broken(error: &serde_json::Error) -> StrictJsonError {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let place = format!(" at line {line} column {column}");
    let detail = text.strip_suffix(place.as_str()).unwrap_or(&text).to_owned();
    StrictJsonError::Shape { line, column, detail }
}

struct Shape {
    left: usize,
}

impl Shape {
    fn below<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.left.checked_sub(1).ok_or_else(|| E::custom("it nests deeper than is read here"))
    }
}

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let left = self.below()?;
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("a member stands twice in one object"));
            }
            map.next_value_seed(Shape { left })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let left = self.below()?;
        while items.next_element_seed(Shape { left })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPTH: usize = 8;

    fn holds(text: &str) -> bool {
        read_strict_json::<serde_json::Value>(text.as_bytes(), DEPTH).is_ok()
    }

    #[test]
    fn keys_are_single_at_every_level() {
        assert!(holds(r#"{"a":1,"b":{"a":[1.5,null,true,"x"]}}"#));
        assert!(!holds(r#"{"a":1,"a":1}"#));
        assert!(!holds(r#"{"b":[{"a":1,"\u0061":2}]}"#));
        assert!(!holds(r#"{} {}"#));
        assert!(!holds(""));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(holds(&nested(DEPTH)));
        assert!(!holds(&nested(DEPTH + 1)));
        assert!(!holds(&nested(30_000)));
    }

    #[test]
    fn a_refusal_says_where_and_quotes_nothing() {
        let told = |text: &str| {
            read_strict_json::<Vec<u8>>(text.as_bytes(), DEPTH).unwrap_err().to_string()
        };
        assert_eq!(
            told("{\"a\":1,\n\"a\":2}"),
            "a member stands twice in one object (line 2, column 3)"
        );
        assert!(told("[1").starts_with("EOF while parsing a list (line 1"));
        let typed = told("[\"hunter2\"]");
        assert!(typed.contains("wrong type") && !typed.contains("hunter2"), "{typed}");
    }
}
