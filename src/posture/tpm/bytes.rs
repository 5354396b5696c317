//! The TPM's encoding: numbers in network order, and bytes behind their length (TPM 2.0 Part 1 §4,
//! Part 2 §10). Reading is total: what is too short or too long is an error, and nothing is
//! allocated that was not there.

/// Bytes that are not what they should be. Names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tpm structure is malformed at its {0}")]
pub struct Malformed(pub &'static str);

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next bytes, as many as the array has.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        self.take(N, what)?.try_into().map_err(|_| Malformed(what))
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array(what).map(u8::from_be_bytes)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// Bytes behind their length (a TPM2B), at most `most`.
    ///
    /// # Errors
    /// When there are fewer than it says, or it says more than `most`.
    pub fn sized(&mut self, most: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.u16(what)?);
        if length > most {
            return Err(Malformed(what));
        }
        self.take(length, what)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Insists on the end.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed(what)) }
    }
}

/// Writes what [`Reader`] reads.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// One byte.
    #[must_use]
    pub fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    /// Two bytes.
    #[must_use]
    pub fn u16(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes behind their length. All that is written here is short; what were longer than its
    /// length could say would be cut to nothing, and refused by whoever reads it.
    #[must_use]
    pub fn sized(self, bytes: &[u8]) -> Self {
        match u16::try_from(bytes.len()) {
            Ok(length) => self.u16(length).raw(bytes),
            Err(_) => self.u16(0),
        }
    }

    /// All of it.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_is_never_read_past_its_end() {
        let bytes = Writer::default().u8(1).u16(2).u32(3).sized(b"abc").raw(&[0; 8]).done();
        let read = |bytes: &[u8]| {
            let mut reader = Reader::new(bytes);
            let got = (reader.u8("a")?, reader.u16("b")?, reader.u32("c")?);
            let text = reader.sized(3, "d")?.to_vec();
            assert_eq!(reader.u64("e")?, 0);
            reader.end("f")?;
            Ok::<_, Malformed>((got, text))
        };
        assert_eq!(read(&bytes), Ok(((1, 2, 3), b"abc".to_vec())));
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{end}");
        }
        assert_eq!(read(&[&bytes[..], &[0]].concat()), Err(Malformed("f")));
        assert_eq!(Reader::new(&[0, 4, 1, 2, 3, 4]).sized(3, "x"), Err(Malformed("x")));
        assert_eq!(Writer::default().sized(&[1; 70_000]).done(), [0, 0]);
    }
}
