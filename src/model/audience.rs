//! Whom a token is for, as it is asked for, signed and recorded.

use super::limits::JWT_AUDIENCE_MAX;
use super::printable::printable;

printable! {
    /// One audience of a JWT-SVID: printable ASCII, since it stands in the logs of both sides.
    Audience,
    /// Why a text is no audience.
    AudienceError, JWT_AUDIENCE_MAX, "an audience"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_taken_and_nothing_else() {
        for good in ["a", "https://vault.example:8200/v1", "spiffe://d.example/a b", "~"] {
            assert_eq!(Audience::parse(good).unwrap().as_str(), good);
        }
        let longest = "a".repeat(JWT_AUDIENCE_MAX);
        assert!(Audience::parse(&longest).is_ok());
        for bad in ["", "a\nb", "\u{202e}a", "\0", "\u{7f}", &format!("{longest}a")] {
            assert_eq!(Audience::parse(bad), Err(AudienceError), "{bad:?}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<Audience>(&json).is_err(), "{bad:?}");
        }
    }
}
