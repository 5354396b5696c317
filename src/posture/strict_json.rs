//! JSON from strangers, read once for its shape before anything believes its content: no key twice
//! at any level, no deeper than we ever write. It keeps nothing but the keys of the objects it is
//! in.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::model::limits::EVIDENCE_DEPTH;

/// The text is not JSON, holds a key twice, or nests deeper than eight levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not JSON with single keys and at most {EVIDENCE_DEPTH} levels")]
pub(super) struct ShapeError;

/// Reads a whole JSON text into a type, after its shape held.
///
/// # Errors
/// When the shape breaks a rule, or the content is not of that type.
pub(super) fn read<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ShapeError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let shape = Shape { left: EVIDENCE_DEPTH }.deserialize(&mut reader);
    shape.and_then(|()| reader.end()).map_err(|_| ShapeError)?;
    serde_json::from_slice(bytes).map_err(|_| ShapeError)
}

struct Shape {
    left: usize,
}

impl Shape {
    fn below<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.left.checked_sub(1).ok_or_else(|| E::custom("too deep"))
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
                return Err(A::Error::custom("a key stands twice"));
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

    fn holds(text: &str) -> bool {
        read::<serde_json::Value>(text.as_bytes()).is_ok()
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
        assert!(holds(&nested(EVIDENCE_DEPTH)));
        assert!(!holds(&nested(EVIDENCE_DEPTH + 1)));
        assert!(!holds(&nested(30_000)));
    }
}
