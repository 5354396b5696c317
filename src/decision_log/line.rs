//! One record as one line of canonical JSON (RFC 8785 in its form), written straight into bytes.
//!
//! Keys are given in order by whoever writes. Whatever is not printable ASCII is escaped, so that
//! no newline, terminal sequence or change of writing direction can come out of a record.

use std::fmt::{self, Write as _};

use time::OffsetDateTime;

/// Levels of nesting that a foreign value may have.
const DEPTH_MAX: usize = 32;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// A line that is being written.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: Vec<u8>,
}

impl Line {
    /// With a buffer from before, emptied.
    pub(super) fn over(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes }
    }

    /// The line.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// An object; its keys are written by `fill`, in their order.
    pub(super) fn object(&mut self, fill: impl FnOnce(&mut Self)) {
        self.bytes.push(b'{');
        fill(self);
        self.bytes.push(b'}');
    }

    /// A list; before each element `fill` calls [`Line::next`].
    pub(super) fn list(&mut self, fill: impl FnOnce(&mut Self)) {
        self.bytes.push(b'[');
        fill(self);
        self.bytes.push(b']');
    }

    /// A comma where one is due. A text always ends in a quote, so the last byte tells.
    pub(super) fn next(&mut self) {
        if !matches!(self.bytes.last(), None | Some(b'{' | b'[' | b':')) {
            self.bytes.push(b',');
        }
    }

    /// A key of ours: plain letters.
    pub(super) fn key(&mut self, key: &'static str) -> &mut Self {
        self.next();
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.extend_from_slice(b"\":");
        self
    }

    /// A text from anywhere.
    pub(super) fn text(&mut self, text: &str) {
        self.bytes.push(b'"');
        self.escaped(text);
        self.bytes.push(b'"');
    }

    /// A text by its Display.
    pub(super) fn display(&mut self, value: impl fmt::Display) {
        self.bytes.push(b'"');
        let _ = write!(Escaped(self), "{value}"); // writing to memory does not fail
        self.bytes.push(b'"');
    }

    /// A number.
    pub(super) fn number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let (mut rest, mut first) = (number, digits.len());
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            (rest, first) = (rest / 10, at);
            if rest == 0 {
                break;
            }
        }
        self.bytes.extend_from_slice(digits.get(first..).unwrap_or_default());
    }

    /// true or false.
    pub(super) fn truth(&mut self, truth: bool) {
        self.bytes.extend_from_slice(if truth { b"true" } else { b"false" });
    }

    /// Bytes as lower-case hexadecimal digits.
    pub(super) fn hex(&mut self, bytes: &[u8]) {
        self.bytes.push(b'"');
        self.bytes.reserve(2 * bytes.len() + 1);
        let digit = |nibble: u8| HEX[usize::from(nibble & 15)]; // 0 to 15 of 16
        self.bytes.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]));
        self.bytes.push(b'"');
    }

    /// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    pub(super) fn time(&mut self, at: OffsetDateTime) {
        let at = if at.offset().is_utc() { at } else { at.to_offset(time::UtcOffset::UTC) };
        let (year, month, day) = at.to_calendar_date();
        self.bytes.push(b'"');
        self.digits(u32::try_from(year).unwrap_or(0), 4, b'-');
        self.digits(u8::from(month).into(), 2, b'-');
        self.digits(day.into(), 2, b'T');
        self.digits(at.hour().into(), 2, b':');
        self.digits(at.minute().into(), 2, b':');
        self.digits(at.second().into(), 2, b'.');
        self.digits(at.millisecond().into(), 3, b'Z');
        self.bytes.push(b'"');
    }

    /// Any JSON value: keys sorted, everything escaped, depth bounded.
    pub(super) fn value(&mut self, value: &serde_json::Value) {
        self.nested(value, 0);
    }

    fn nested(&mut self, value: &serde_json::Value, depth: usize) {
        use serde_json::Value;
        match value {
            _ if depth > DEPTH_MAX => self.text("nested too deep"),
            Value::Null => self.bytes.extend_from_slice(b"null"),
            Value::Bool(truth) => self.truth(*truth),
            Value::Number(number) => {
                let _ = write!(Escaped(self), "{number}");
            }
            Value::String(text) => self.text(text),
            Value::Array(values) => self.list(|line| {
                for value in values {
                    line.next();
                    line.nested(value, depth + 1);
                }
            }),
            Value::Object(fields) => self.object(|line| {
                let mut keys: Vec<_> = fields.iter().collect();
                keys.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
                for (key, value) in keys {
                    line.next();
                    line.text(key);
                    line.bytes.push(b':');
                    line.nested(value, depth + 1);
                }
            }),
        }
    }

    fn digits(&mut self, number: u32, width: u32, then: u8) {
        for place in (0..width).rev() {
            let digit = number / 10u32.pow(place) % 10;
            self.bytes.push(b'0' + u8::try_from(digit).unwrap_or(0));
        }
        self.bytes.push(then);
    }

    fn escaped(&mut self, text: &str) {
        // Every byte is looked at, so that many are at once.
        if text.bytes().fold(true, |plain, byte| plain & is_plain(char::from(byte))) {
            return self.bytes.extend_from_slice(text.as_bytes()); // nearly always
        }
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| !is_plain(c)) {
            let (plain, odd) = rest.split_at(at);
            self.bytes.extend_from_slice(plain.as_bytes());
            let mut chars = odd.chars();
            match chars.next() {
                Some('"') => self.bytes.extend_from_slice(b"\\\""),
                Some('\\') => self.bytes.extend_from_slice(b"\\\\"),
                Some('\n') => self.bytes.extend_from_slice(b"\\n"),
                Some('\r') => self.bytes.extend_from_slice(b"\\r"),
                Some('\t') => self.bytes.extend_from_slice(b"\\t"),
                Some('\u{8}') => self.bytes.extend_from_slice(b"\\b"),
                Some('\u{c}') => self.bytes.extend_from_slice(b"\\f"),
                Some(other) => self.units(other),
                None => {}
            }
            rest = chars.as_str();
        }
        self.bytes.extend_from_slice(rest.as_bytes());
    }

    fn units(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.bytes.extend_from_slice(b"\\u");
            for shift in [12, 8, 4, 0] {
                self.bytes.extend(HEX.get(usize::from(*unit >> shift & 15)));
            }
        }
    }
}

fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~') && c != '"' && c != '\\'
}

struct Escaped<'a>(&'a mut Line);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.escaped(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn written(value: &Value) -> String {
        let mut line = Line::default();
        line.value(value);
        String::from_utf8(line.into_bytes()).unwrap()
    }

    #[test]
    fn lines_are_canonical() {
        let value: Value =
            serde_json::from_str(r#"{"b":[1,-2,true,null,{}],"a":{"z":"x","k":[]}}"#).unwrap();
        assert_eq!(written(&value), r#"{"a":{"k":[],"z":"x"},"b":[1,-2,true,null,{}]}"#);
        let mut line = Line::over(b"old".to_vec());
        line.object(|line| {
            line.key("a").hex(&[0, 0xff]);
            line.key("t").time(time::macros::datetime!(2026-01-02 03:04:05.006 UTC));
            line.key("z").list(|line| {
                line.next();
                line.number(1);
                line.next();
                line.truth(false);
            });
        });
        let text = String::from_utf8(line.into_bytes()).unwrap();
        assert_eq!(text, r#"{"a":"00ff","t":"2026-01-02T03:04:05.006Z","z":[1,false]}"#);
    }

    #[test]
    fn hostile_texts_stay_within_their_quotes() {
        for text in [
            "\n",
            "\r\n{\"kind\":\"x\"}",
            "\u{1b}[2J",
            "\",\"dec\":{\"verdict\":\"allow\"}",
            "\\",
            "\\\"",
            "\u{202e}lru",
            "\u{2028}",
            "\u{0}",
            "\u{7f}",
            "\u{9b}31m",
            "é",
            "\u{1f600}",
            "{",
            "[",
            ":",
        ] {
            let line = written(&Value::String(text.to_owned()));
            assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{text:?}: {line}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), text);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let mut value = Value::Null;
        for _ in 0..1000 {
            value = Value::Array(vec![value]);
        }
        assert!(written(&value).contains("nested too deep"));
        while let Value::Array(mut inner) = value {
            value = inner.pop().unwrap();
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(text: String) {
            let line = written(&serde_json::json!({ &*text: [&text, &text] }));
            prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)));
            let value: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(&value[&text][1], &text);
        }
    }
}
