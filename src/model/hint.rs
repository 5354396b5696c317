//! An operator's word on what one of several identities is for (SPIFFE Workload API §5.2.1).

use super::limits::HINT_MAX;
use super::printable::printable;

printable! {
    /// A hint: printable ASCII, since it stands in lists, in the log and in what workloads are told.
    /// It is for a workload that chooses; nothing is decided by it.
    Hint,
    /// Why a text is no hint.
    HintError, HINT_MAX, "a hint"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_taken_and_nothing_else() {
        let longest = "h".repeat(HINT_MAX);
        for good in ["internal", "public face 2", "~", longest.as_str()] {
            assert_eq!(Hint::parse(good).unwrap().as_str(), good);
            let json = serde_json::to_string(good).unwrap();
            assert_eq!(serde_json::from_str::<Hint>(&json).unwrap().to_string(), good);
        }
        let longer = "h".repeat(HINT_MAX + 1);
        for bad in ["", "a\nb", "\u{e4}", "\u{7f}", "\u{202e}x", longer.as_str()] {
            assert_eq!(Hint::parse(bad), Err(HintError), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<Hint>(&json).is_err(), "{bad:?}");
        }
    }
}
