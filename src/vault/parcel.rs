//! Runs of bytes, each with its length before it: the inside of a backup.

/// Bytes that a run adds to its content.
pub(super) const LENGTH: usize = 4;

/// Appends one run; `None` when it is longer than a length can say.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    let length = u32::try_from(bytes.len()).ok()?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
    Some(())
}

/// Takes one run off the front; `None` when the bytes end before it does.
pub(super) fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = from.split_first_chunk::<LENGTH>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (bytes, rest) = rest.split_at_checked(length)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_taken(
            runs in vec(vec(any::<u8>(), 0..9), 0..9),
        ) {
            let mut bytes = Vec::new();
            for run in &runs {
                put(&mut bytes, run).unwrap();
            }
            let mut rest = bytes.as_slice();
            for run in &runs {
                prop_assert_eq!(take(&mut rest), Some(run.as_slice()));
            }
            prop_assert!(rest.is_empty() && take(&mut rest).is_none());
        }

        #[test]
        fn any_bytes_are_safe(bytes in vec(any::<u8>(), 0..99)) {
            let mut rest = bytes.as_slice();
            while take(&mut rest).is_some() {}
        }
    }
}
