//! What a local request asks for: parsed once, strictly, before anything else is done with it.
//!
//! Names are decoded never: a path or query with a `%` is refused, so one secret has one URL. Query
//! keys that are unknown or stand twice are refused rather than ignored.

use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};

use super::problem::Problem;
use crate::model::{Code, SecretName, SpiffeId};

/// The header that every request but `health` must carry, with the value `true`.
pub(super) const REQUIRED: &str = "doorward-request";
/// Path and query together, in bytes: a name, a SPIFFE ID and room.
const TARGET_MAX: usize = 4096;
/// All headers together, in bytes. Honest clients send under 1 KiB.
const HEADERS_MAX: usize = 16 * 1024;
const SECRETS: &str = "/v1/secrets/";

/// The closed set of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// Whether the agent can serve; for anybody.
    Health,
    /// Who the process is.
    Identity { wanted: Option<SpiffeId> },
    /// One value.
    Secret { name: SecretName, version: Option<u64>, have: Option<u64>, wanted: Option<SpiffeId> },
    /// Up to 128 values; their names are in the body.
    Batch { wanted: Option<SpiffeId> },
}

/// Parses a request's head.
pub(super) fn parse(parts: &Parts) -> Result<Call, Problem> {
    let path = parts.uri.path();
    if path == "/v1/health" {
        allow(&parts.method, "GET")?;
        return Query::parse(parts.uri.query(), &[]).map(|_| Call::Health);
    }
    check_size(parts)?;
    check_required(&parts.headers)?;
    if path.contains('%') || parts.uri.query().is_some_and(|query| query.contains('%')) {
        let why = Problem::own(Code::Invalid, "percent", "a `%` in the URL");
        return Err(why.hint(
            "names and SPIFFE IDs are written as they are and never decoded: \
             /v1/secrets/pay/db/url?as=spiffe://corp.example/pay",
        ));
    }
    if path == "/v1/identity" {
        allow(&parts.method, "GET")?;
        let query = Query::parse(parts.uri.query(), &["as"])?;
        return Ok(Call::Identity { wanted: query.wanted });
    }
    if path == "/v1/secrets:batch" {
        allow(&parts.method, "POST")?;
        let query = Query::parse(parts.uri.query(), &["as"])?;
        return Ok(Call::Batch { wanted: query.wanted });
    }
    let Some(name) = path.strip_prefix(SECRETS) else {
        return Err(Problem::own(Code::NotFound, "no_such_path", "there is nothing at this path")
            .hint("GET /v1/secrets/<name>, POST /v1/secrets:batch, GET /v1/identity, /v1/health"));
    };
    allow(&parts.method, "GET")?;
    let name = SecretName::parse(name).map_err(|why| {
        Problem::own(Code::Invalid, "name", "not a secret's name").hint(why.to_string())
    })?;
    let Query { version, wanted } = Query::parse(parts.uri.query(), &["version", "as"])?;
    Ok(Call::Secret { name, version, have: have(&parts.headers), wanted })
}

/// `"v7"`: the entity tag of a version.
pub(super) fn tag(version: u64) -> String {
    format!("\"v{version}\"")
}

/// The version that the client has, if it names just one; anything else asks for the value.
fn have(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(header::IF_NONE_MATCH).iter();
    let text = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    number(text.strip_prefix("W/").unwrap_or(text).strip_prefix("\"v")?.strip_suffix('"')?)
}

/// A version as it is written: no sign, no leading zero.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if plain { text.parse().ok() } else { None }
}

fn allow(method: &Method, only: &'static str) -> Result<(), Problem> {
    if method.as_str() == only {
        return Ok(());
    }
    let why = Problem::own(Code::Invalid, "method", "another method is needed here");
    Err(why.status(405).allow(only).hint(format!("use {only}")))
}

fn check_size(parts: &Parts) -> Result<(), Problem> {
    let target = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    let one = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
        name.as_str().len() + value.len()
    };
    let headers: usize = parts.headers.iter().map(one).sum();
    if target > TARGET_MAX || headers > HEADERS_MAX {
        return Err(Problem::own(Code::TooLarge, "head", "URL or headers are too long").status(431));
    }
    Ok(())
}

fn check_required(headers: &HeaderMap) -> Result<(), Problem> {
    let mut values = headers.get_all(REQUIRED).iter();
    match (values.next().map(|value| value.as_bytes()), values.next()) {
        (Some(b"true"), None) => Ok(()),
        _ => Err(Problem::own(Code::Invalid, "header", "a required header is missing").hint(
            "curl --unix-socket <socket> -H 'Doorward-Request: true' \
             http://localhost/v1/secrets/<name>",
        )),
    }
}

#[derive(Debug, Default)]
struct Query {
    version: Option<u64>,
    wanted: Option<SpiffeId>,
}

impl Query {
    fn parse(text: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let bad =
            |hint: String| Problem::own(Code::Invalid, "query", "the query is wrong").hint(hint);
        let mut query = Self::default();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let fresh = match key {
                _ if !known.contains(&key) => {
                    return Err(bad(format!("known keys here: {}", known.join(", "))));
                }
                "version" => {
                    let version = number(value)
                        .ok_or_else(|| bad("`version` is a number from 1".to_owned()))?;
                    query.version.replace(version).is_none()
                }
                _ => {
                    let id = SpiffeId::parse(value)
                        .map_err(|why| bad(format!("`as` is no SPIFFE ID: {why}")))?;
                    query.wanted.replace(id).is_none()
                }
            };
            if !fresh {
                return Err(bad("a key stands twice".to_owned()));
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn get(target: &str) -> Result<Call, Problem> {
        parse(&head("GET", target, &[(REQUIRED, "true")]))
    }

    #[test]
    fn the_calls_are_a_closed_set() {
        let id = SpiffeId::parse("spiffe://corp.example/pay").unwrap();
        let secret = |version, wanted| Call::Secret {
            name: SecretName::parse("pay/db/url").unwrap(),
            version,
            have: None,
            wanted,
        };
        assert_eq!(get("/v1/secrets/pay/db/url").unwrap(), secret(None, None));
        assert_eq!(get("/v1/secrets/pay/db/url?version=7").unwrap(), secret(Some(7), None));
        let both = "/v1/secrets/pay/db/url?as=spiffe://corp.example/pay&version=7";
        assert_eq!(get(both).unwrap(), secret(Some(7), Some(id)));
        assert_eq!(get("/v1/identity").unwrap(), Call::Identity { wanted: None });
        let batch = head("POST", "/v1/secrets:batch", &[(REQUIRED, "true")]);
        assert_eq!(parse(&batch).unwrap(), Call::Batch { wanted: None });
        assert_eq!(parse(&head("GET", "/v1/health", &[])).unwrap(), Call::Health);
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (target, reason) in [
            ("/v1/secrets/pay/%64b", "percent"),
            ("/v1/secrets/pay/db%2furl", "percent"),
            ("/v1/secrets/pay/db?as=spiffe%3A%2F%2Fcorp.example/x", "percent"),
            ("/v1/secrets/pay/../db", "name"),
            ("/v1/secrets//pay/db", "name"),
            ("/v1/secrets/pay", "name"),
            ("/v1/secrets/", "name"),
            ("/v1/secrets", "no_such_path"),
            ("//v1/secrets/pay/db", "no_such_path"),
            ("/v1/secrets/pay/db?Version=7", "query"),
            ("/v1/secrets/pay/db?version=07", "query"),
            ("/v1/secrets/pay/db?version=0", "query"),
            ("/v1/secrets/pay/db?version=-1", "query"),
            ("/v1/secrets/pay/db?version=7&version=8", "query"),
            ("/v1/secrets/pay/db?as=", "query"),
            ("/v1/secrets/pay/db?as=corp.example/x", "query"),
            ("/v1/identity?version=7", "query"),
            ("/v1/health?x", "query"),
            ("/v1/secrets:batch", "method"),
        ] {
            assert_eq!(get(target).unwrap_err().reason, reason, "{target}");
        }
        let long = format!("/v1/secrets/pay/{}", "a".repeat(TARGET_MAX));
        assert_eq!(get(&long).unwrap_err().status, 431);
        let post = parse(&head("POST", "/v1/secrets/pay/db", &[(REQUIRED, "true")])).unwrap_err();
        assert_eq!((post.status, post.allow), (405, Some("GET")));
    }

    #[test]
    fn the_required_header_has_one_value_and_stands_once() {
        let target = "/v1/secrets/pay/db";
        assert!(parse(&head("GET", target, &[("Doorward-Request", "true")])).is_ok());
        for headers in [
            &[][..],
            &[(REQUIRED, "True")],
            &[(REQUIRED, "1")],
            &[(REQUIRED, "true"), (REQUIRED, "true")],
        ] {
            let refused = parse(&head("GET", target, headers)).unwrap_err();
            assert_eq!((refused.status, refused.reason), (400, "header"));
            assert!(refused.hint.unwrap().contains("curl --unix-socket"));
        }
        let fat = "x".repeat(HEADERS_MAX);
        let refused = parse(&head("GET", target, &[(REQUIRED, "true"), ("x", &fat)]));
        assert_eq!(refused.unwrap_err().status, 431);
    }

    #[test]
    fn only_one_plain_tag_asks_for_less_than_the_value() {
        let have = |text: &str| have(&head("GET", "/", &[("if-none-match", text)]).headers);
        assert_eq!(have("\"v7\""), Some(7));
        assert_eq!(have("W/\"v7\""), Some(7));
        assert_eq!(tag(7), "\"v7\"");
        for other in ["*", "v7", "\"7\"", "\"v07\"", "\"v7\", \"v8\"", "\"v-7\"", "\"v\""] {
            assert_eq!(have(other), None, "{other}");
        }
    }
}
