//! A reader for the few DER values that identity looks into by itself: definite, minimal lengths,
//! low tag numbers, nothing copied. It must never guess: whatever is not plain DER is `None`.

/// `BOOLEAN`.
pub(super) const BOOLEAN: u8 = 0x01;
/// `INTEGER`.
pub(super) const INTEGER: u8 = 0x02;
/// `BIT STRING`.
pub(super) const BIT_STRING: u8 = 0x03;
/// `OBJECT IDENTIFIER`.
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
/// `UTF8String`.
pub(super) const UTF8_STRING: u8 = 0x0c;
/// `SEQUENCE`.
pub(super) const SEQUENCE: u8 = 0x30;

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `der` from its beginning.
    pub(super) fn new(der: &'a [u8]) -> Self {
        Self(der)
    }

    /// Whether everything was read.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tag of the next value.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value: its tag and its content.
    pub(super) fn value(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        if tag & 0x1f == 0x1f {
            return None; // a tag number of several bytes: nothing that we read has one
        }
        let (length, rest) = length(rest)?;
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The next value with its tag and length, as it stands.
    pub(super) fn raw(&mut self) -> Option<&'a [u8]> {
        let before = self.0;
        self.value()?;
        before.get(..before.len().checked_sub(self.0.len())?)
    }

    /// The next value, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.value().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

/// The content of the one value that `der` consists of.
pub(super) fn sole(tag: u8, der: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(der);
    let content = reader.expect(tag)?;
    reader.is_empty().then_some(content)
}

/// A value with its tag and length; contents of 64 KiB and more do not occur here and come out
/// empty, which every reader refuses.
pub(super) fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let Ok(length) = u16::try_from(content.len()) else {
        return Vec::new();
    };
    let [high, low] = length.to_be_bytes();
    let mut out = Vec::with_capacity(content.len().saturating_add(4));
    out.push(tag);
    match (high, low) {
        (0, 0..=0x7f) => out.push(low),
        (0, _) => out.extend([0x81, low]),
        _ => out.extend([0x82, high, low]),
    }
    out.extend_from_slice(content);
    out
}

/// The length that stands first in `bytes`, and what follows it.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [short @ 0..=0x7f, rest @ ..] => Some((usize::from(*short), rest)),
        [0x81, one @ 0x80..=0xff, rest @ ..] => Some((usize::from(*one), rest)),
        [0x82, high @ 1..=0xff, low, rest @ ..] => {
            Some((usize::from(u16::from_be_bytes([*high, *low])), rest))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_reads_back_at_every_length_form() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff] {
            let content = vec![7; length];
            let der = wrap(UTF8_STRING, &content);
            assert_eq!(sole(UTF8_STRING, &der), Some(content.as_slice()), "{length}");
        }
        assert!(wrap(UTF8_STRING, &[0; 0x1_0000]).is_empty());
    }

    #[test]
    fn a_raw_value_keeps_its_tag_and_length() {
        let mut reader = Reader::new(&[0x0c, 1, b'a', 0x02, 1, 5]);
        assert_eq!(reader.raw(), Some([0x0c, 1, b'a'].as_slice()));
        assert_eq!(reader.peek(), Some(INTEGER));
        assert_eq!(reader.expect(INTEGER), Some([5].as_slice()));
        assert!(reader.is_empty());
        assert_eq!(reader.raw(), None);
    }

    #[test]
    fn anything_but_plain_der_is_refused() {
        assert_eq!(sole(0x0c, &[0x0c, 1, b'a']), Some(b"a".as_slice()), "control");
        for (der, why) in [
            (&[][..], "nothing"),
            (&[0x0c], "no length"),
            (&[0x0c, 2, b'a'], "cut"),
            (&[0x0c, 1, b'a', 0], "something behind it"),
            (&[0x0d, 1, b'a'], "another tag"),
            (&[0x0c, 0x80, b'a', 0, 0], "indefinite length"),
            (&[0x0c, 0x81, 1, b'a'], "a length longer than it need be"),
            (&[0x0c, 0x82, 0, 1, b'a'], "likewise, of two bytes"),
            (&[0x0c, 0x83, 0, 0, 1, b'a'], "likewise, of three"),
            (&[0x1f, 0x0c, 1, b'a'], "a long tag"),
        ] {
            assert_eq!(sole(0x0c, der), None, "{why}");
        }
    }
}
