//! The join token: all that a new device or person needs to find the broker, to know that it is
//! the right one, and to be let in once.
//!
//! `dw1.` and base64url (no padding) of one JSON object, at most 1 KiB. It holds a secret, so it is
//! never shown by `Debug` and its bytes are wiped. Reading is strict and total (fuzz target
//! `token`); one token has one text.

use std::fmt;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::model::limits::TOKEN_MAX;
use crate::model::{
    DeviceClass, Digest, SecretValue, TrustDomain, check_segment, join_secret_digest,
};

/// What every token's text begins with; the figure is the format's version.
const HEAD: &str = "dw1.";
/// The version inside.
const VERSION: u64 = 1;
/// Random bytes of the secret.
const SECRET: usize = 32;
/// The secret's text: base64url of 32 bytes.
const SECRET_TEXT: usize = 43;
/// `host:port`: a DNS name has at most 253 bytes.
const ADDRESS_MAX: usize = 260;

/// Why a text is no join token, or a token can't be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over the limit.
    #[error("a join token has at most {TOKEN_MAX} bytes; use shorter addresses or names")]
    TooLong,
    /// Another beginning.
    #[error("a join token begins with `{HEAD}`; was all of it copied?")]
    Head,
    /// Not base64url without padding.
    #[error("the join token is not base64url; was all of it copied?")]
    Base64,
    /// Not the JSON object that Doorward writes.
    #[error("the join token does not hold what Doorward writes; was all of it copied?")]
    Form,
    /// A version that this program does not know.
    #[error("the join token has another format; use the program's version that made it")]
    Version,
    /// An address is not `host:port`.
    #[error("an address in the join token is not `host:port`")]
    Address,
    /// The operator's name and the class don't go together.
    #[error("a join token names an operator exactly when its class is `person`")]
    Operator,
    /// The secret is not 32 bytes in base64url.
    #[error("the secret of the join token is not of its form; was all of it copied?")]
    Secret,
}

/// A join token, taken apart. There is no `Clone`; `Debug` leaves the secret out.
pub struct JoinToken {
    /// The trust domain to join.
    pub domain: TrustDomain,
    /// `host:port` of the enrolment port (UDP).
    pub enrolment: String,
    /// `host:port` of the broker (UDP).
    pub broker: String,
    /// SHA-256 of the root certificate (DER).
    pub root: Digest,
    /// The class that the new device will have.
    pub class: DeviceClass,
    /// The operator, for the class of people.
    pub name: Option<String>,
    /// The secret's text, 43 bytes of base64url: what goes into the body of `enroll` as it is.
    pub secret: SecretValue,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("domain", &self.domain)
            .field("enrolment", &self.enrolment)
            .field("broker", &self.broker)
            .field("root", &self.root)
            .field("class", &self.class)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The JSON inside; the texts are borrowed so that the secret is in no buffer but the wiped one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inside<'a> {
    v: u64,
    domain: &'a str,
    enrolment: &'a str,
    broker: &'a str,
    root: &'a str,
    class: &'a str,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    secret: &'a str,
}

impl JoinToken {
    /// Reads a token's text; blanks and line ends around it are dropped, as pasting brings them.
    ///
    /// # Errors
    /// The rule that the text breaks; never a part of the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_ascii();
        if text.len() > TOKEN_MAX {
            return Err(TokenError::TooLong);
        }
        let rest = text.strip_prefix(HEAD).ok_or(TokenError::Head)?;
        let mut json = Zeroizing::new(Vec::with_capacity(TOKEN_MAX));
        URL_SAFE_NO_PAD.decode_vec(rest, &mut json).map_err(|_| TokenError::Base64)?;
        let inside: Inside<'_> = serde_json::from_slice(&json).map_err(|_| TokenError::Form)?;
        if inside.v != VERSION {
            return Err(TokenError::Version);
        }
        let token = Self {
            domain: TrustDomain::parse(inside.domain).map_err(|_| TokenError::Form)?,
            enrolment: address(inside.enrolment)?,
            broker: address(inside.broker)?,
            root: Digest::parse(inside.root).map_err(|_| TokenError::Form)?,
            class: DeviceClass::parse(inside.class).map_err(|_| TokenError::Form)?,
            name: inside.name.map(str::to_owned),
            secret: SecretValue::new(inside.secret.as_bytes().to_vec()),
        };
        token.check()?;
        if token.json()?.as_slice() != json.as_slice() {
            return Err(TokenError::Form); // blanks, another order: one token has one text
        }
        Ok(token)
    }

    /// The token's text.
    ///
    /// # Errors
    /// When it would be over 1 KiB, or a part is not of its form.
    pub fn text(&self) -> Result<SecretValue, TokenError> {
        address(&self.enrolment)?;
        address(&self.broker)?;
        self.check()?;
        let json = self.json()?;
        let mut text = Zeroizing::new(vec![0; TOKEN_MAX]);
        let (head, rest) = text.split_at_mut(HEAD.len());
        head.copy_from_slice(HEAD.as_bytes());
        let length =
            URL_SAFE_NO_PAD.encode_slice(json.as_slice(), rest).map_err(|_| TokenError::TooLong)?;
        text.truncate(HEAD.len() + length);
        Ok(SecretValue::from(text))
    }

    /// What the broker knows the token by: SHA-256 of its secret. Records name it by a part of this.
    ///
    /// # Errors
    /// When the secret is not of its form.
    pub fn digest(&self) -> Result<Digest, TokenError> {
        secret_digest(self.secret.expose())
    }

    fn check(&self) -> Result<(), TokenError> {
        match &self.name {
            Some(name) if self.class.is_person() && check_segment(1, name).is_ok() => {}
            None if !self.class.is_person() => {}
            _ => return Err(TokenError::Operator),
        }
        secret_digest(self.secret.expose()).map(drop)
    }

    fn json(&self) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        let secret = std::str::from_utf8(self.secret.expose()).map_err(|_| TokenError::Secret)?;
        let root = self.root.to_string();
        let inside = Inside {
            v: VERSION,
            domain: self.domain.as_str(),
            enrolment: &self.enrolment,
            broker: &self.broker,
            root: &root,
            class: self.class.as_str(),
            name: self.name.as_deref(),
            secret,
        };
        // Of the full size at once: a growing vector would leave copies behind.
        let mut json = Zeroizing::new(vec![0; TOKEN_MAX]);
        let mut rest = json.as_mut_slice();
        serde_json::to_writer(&mut rest, &inside).map_err(|_| TokenError::TooLong)?;
        let left = rest.len();
        json.truncate(TOKEN_MAX - left);
        Ok(json)
    }
}

/// A fresh secret's text.
///
/// # Errors
/// When the system has no randomness.
pub(super) fn fresh_secret() -> Result<SecretValue, aws_lc_rs::error::Unspecified> {
    let mut bytes = Zeroizing::new([0; SECRET]);
    rand::fill(bytes.as_mut_slice())?;
    let mut text = Zeroizing::new(vec![0; SECRET_TEXT]);
    let length = URL_SAFE_NO_PAD.encode_slice(bytes.as_slice(), &mut text);
    debug_assert_eq!(length, Ok(SECRET_TEXT));
    Ok(SecretValue::from(text))
}

/// SHA-256 of the 32 bytes behind a secret's text.
///
/// # Errors
/// When the text is not 43 bytes of base64url.
pub(super) fn secret_digest(text: &[u8]) -> Result<Digest, TokenError> {
    join_secret_digest(text).ok_or(TokenError::Secret)
}

/// `host:port`, with a host of a name, an IPv4 address or an IPv6 address in brackets.
fn address(text: &str) -> Result<String, TokenError> {
    let (host, port) = text.rsplit_once(':').ok_or(TokenError::Address)?;
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let good_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(named),
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let good_port = digits && !port.starts_with('0') && port.parse::<u16>().is_ok();
    if text.len() > ADDRESS_MAX || !good_host || !good_port {
        return Err(TokenError::Address);
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(class: &str, name: Option<&str>) -> JoinToken {
        JoinToken {
            domain: TrustDomain::parse("corp.example").unwrap(),
            enrolment: "broker.corp.example:8444".into(),
            broker: "[2001:db8::1]:8443".into(),
            root: Digest::of(b"root"),
            class: DeviceClass::parse(class).unwrap(),
            name: name.map(str::to_owned),
            secret: fresh_secret().unwrap(),
        }
    }

    fn text(token: &JoinToken) -> String {
        String::from_utf8(token.text().unwrap().expose().to_vec()).unwrap()
    }

    fn wrap(json: &str) -> String {
        format!("{HEAD}{}", URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn a_token_reads_back_and_hides_its_secret() {
        for made in [token("server", None), token("person", Some("alice"))] {
            let read = JoinToken::parse(&format!("  {}\n", text(&made))).unwrap();
            assert_eq!(read.secret.expose(), made.secret.expose());
            assert_eq!((&read.domain, &read.broker), (&made.domain, &made.broker));
            assert_eq!((read.root, &read.class, &read.name), (made.root, &made.class, &made.name));
            let secret = std::str::from_utf8(made.secret.expose()).unwrap();
            assert!(!format!("{read:?}").contains(secret));
            assert!(text(&made).starts_with("dw1.") && text(&made).len() <= TOKEN_MAX);
        }
    }

    #[test]
    fn what_is_not_written_by_us_is_refused_with_its_reason() {
        let good = text(&token("server", None));
        assert!(JoinToken::parse(&good).is_ok());
        let json = String::from_utf8(URL_SAFE_NO_PAD.decode(&good[4..]).unwrap()).unwrap();
        use TokenError as E;
        for (bad, want) in [
            (String::new(), E::Head),
            (good[4..].to_owned(), E::Head),
            (good.replace("dw1.", "dw2."), E::Head),
            (format!("{good}="), E::Base64),
            (format!("dw1.{}", "A".repeat(TOKEN_MAX)), E::TooLong),
            (wrap("{}"), E::Form),
            (wrap(&json.replace("\"v\":1", "\"v\":2")), E::Version),
            (wrap(&json.replace("{", "{\"x\":1,")), E::Form),
            (wrap(&json.replace("\"v\":1", "\"v\":1,\"v\":1")), E::Form),
            (wrap(&json.replace("\"v\":1", "\"v\": 1")), E::Form),
            (wrap(&json.replace("corp.example\",\"enr", "Corp.example\",\"enr")), E::Form),
            (wrap(&json.replace(":8444", ":0")), E::Address),
            (wrap(&json.replace(":8444", ":84440")), E::Address),
            (wrap(&json.replace(":8444", "")), E::Address),
            (wrap(&json.replace("[2001:db8::1]", "[2001:db8::g]")), E::Address),
            (wrap(&json.replace("server", "person")), E::Operator),
            (wrap(&json.replace("\"server\"", "\"server\",\"name\":\"alice\"")), E::Operator),
            (wrap(&json.replace("\"secret\":\"", "\"secret\":\"A")), E::Secret),
            (wrap(&json.replace("\"secret\":\"", "\"secret\":\"\\u0041")), E::Form),
        ] {
            assert_eq!(JoinToken::parse(&bad).unwrap_err(), want, "{bad}");
        }
    }

    #[test]
    fn a_token_over_the_limit_is_not_written() {
        let mut long = token("server", None);
        let label = "a".repeat(250);
        (long.broker, long.enrolment) = (format!("{label}:1"), format!("{label}:2"));
        long.domain = TrustDomain::parse(&label).unwrap();
        assert_eq!(long.text().unwrap_err(), TokenError::TooLong);
    }

    #[test]
    fn secrets_differ_and_have_one_text() {
        let (a, b) = (fresh_secret().unwrap(), fresh_secret().unwrap());
        assert_ne!(a.expose(), b.expose());
        assert!(secret_digest(a.expose()).is_ok());
        let mut other = a.expose().to_vec();
        // The last character carries four bits of the secret: its two low bits must be zero.
        *other.last_mut().unwrap() = b'B';
        assert_eq!(secret_digest(&other).unwrap_err(), TokenError::Secret);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}", json in ".{0,300}") {
            let _ = JoinToken::parse(&text);
            let _ = JoinToken::parse(&wrap(&json));
        }

        #[test]
        fn what_is_read_is_written_the_same(
            host in "[a-z0-9.-]{1,60}", port in 1u16.., class in "[a-z]{1,20}",
        ) {
            let mut made = token("server", None);
            made.broker = format!("{host}:{port}");
            made.class = DeviceClass::parse(&class).unwrap();
            prop_assume!(!made.class.is_person());
            let text = text(&made);
            let read = JoinToken::parse(&text).unwrap();
            let again = read.text().unwrap();
            prop_assert_eq!(again.expose(), text.as_bytes());
        }
    }
}
