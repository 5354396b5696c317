//! One request, in the five words that the matcher compares.
//!
//! Its parts come from types that can't be wrong; what Casbin is handed is looked at once more all
//! the same, because Casbin would take anything.

use super::pattern::TIME_BYTES;

/// One request in the words of the matcher.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'r> {
    /// SPIFFE ID.
    pub(super) sub: &'r str,
    /// Object.
    pub(super) obj: &'r str,
    /// Action.
    pub(super) act: &'r str,
    /// Posture label.
    pub(super) post: &'r str,
    /// `YYYY-MM-DDTHH:MM:SSZ`.
    pub(super) now: &'r str,
}

impl Request<'_> {
    /// The form that requests have by their types; looked at again because Casbin would not.
    pub(super) fn is_sound(&self) -> bool {
        let path = |text: &str| {
            let rest = text.strip_prefix("spiffe://").unwrap_or(text);
            let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'*' | b'#' | b'"' | b',');
            rest.bytes().all(plain)
                && rest.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        };
        path(self.sub)
            && path(self.obj)
            && !self.act.is_empty()
            && !self.post.is_empty()
            && self.now.len() == TIME_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_text_is_sound_or_not(a in ".{0,40}", b in ".{0,40}", c in ".{0,20}") {
            let request = Request { sub: &a, obj: &b, act: &c, post: &c, now: &a };
            if request.is_sound() {
                proptest::prop_assert!(!a.split('/').any(|part| part == ".."));
                proptest::prop_assert!(!b.contains("//") && b.is_ascii());
            }
        }
    }
}
