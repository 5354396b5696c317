//! SPIFFE IDs: what a text must be to be one.

use serde_json::json;

use super::{Kind, Vector};

const DOMAIN: &str = "SPIFFE-ID §2.1: a trust domain is a-z, 0-9, dots, dashes and underscores";
const EMPTY: &str = "SPIFFE-ID §2.1: the trust domain must not be empty";
const AUTHORITY: &str = "SPIFFE-ID §2.1: no user and no port";
const SCHEME: &str = "SPIFFE-ID §2: the scheme is spiffe";
pub const CASE: &str =
    "Doorward: scheme and domain in lower case only (SPIFFE-ID §2.1, but §2.4 is lenient)";
const SEGMENT: &str = "SPIFFE-ID §2.2: no segment is empty or relative, and none trails";
const PATH: &str = "SPIFFE-ID §2.2: a segment is letters, digits, dots, dashes and underscores";
const QUERY: &str = "SPIFFE-ID §2: no query and no fragment";
const LENGTH: &str = "SPIFFE-ID §2.3: 2048 bytes must be supported";
const TOO_LONG: &str =
    "Doorward: no more than 2048 bytes (SPIFFE-ID §2.3 says none should be made)";
const HOST_LENGTH: &str = "SPIFFE-ID §2.3: a trust domain has at most 255 bytes";

pub fn all() -> Vec<Vector> {
    let mut made = Vec::new();
    let path = |length: usize| format!("spiffe://corp.example/{}", "a".repeat(length));
    let host = |length: usize| format!("spiffe://{}/x", "a".repeat(length));
    for (name, text, rule) in [
        ("a workload", "spiffe://corp.example/ns/pay/sa/api", PATH),
        ("a trust domain's own ID", "spiffe://corp.example", "SPIFFE-ID §2: the path is optional"),
        ("a short domain", "spiffe://a/b", DOMAIN),
        ("a domain with dashes and underscores", "spiffe://a-b_c.d/x", DOMAIN),
        ("a domain like an IPv4 address", "spiffe://192.0.2.7/x", DOMAIN),
        ("a domain of dots", "spiffe://../x", DOMAIN),
        ("a domain that begins with a dash", "spiffe://-a.b-/x", DOMAIN),
        ("three dots as a segment", "spiffe://corp.example/...", SEGMENT),
        ("a segment that begins with a dot", "spiffe://corp.example/.well-known", SEGMENT),
        ("an upper-case path", "spiffe://corp.example/NS/Api", PATH),
        ("every byte that a path may have", "spiffe://corp.example/azAZ09.-_", PATH),
        ("2048 bytes", &path(2048 - 22), LENGTH),
        ("a domain of 255 bytes", &host(255), HOST_LENGTH),
    ] {
        made.push(Vector::new(Kind::SpiffeId, name, rule, json!(text)));
    }
    for (name, text, rule, reason) in [
        ("nothing", "", SCHEME, "scheme"),
        ("no scheme", "corp.example/x", SCHEME, "scheme"),
        ("a web address", "https://corp.example/x", SCHEME, "scheme"),
        ("one slash", "spiffe:/corp.example/x", SCHEME, "scheme"),
        ("a longer scheme", "spiffes://corp.example/x", SCHEME, "scheme"),
        ("a space before it", " spiffe://corp.example/x", SCHEME, "scheme"),
        ("a scheme in capitals", "SPIFFE://corp.example/x", CASE, "scheme"),
        ("a scheme in mixed case", "Spiffe://corp.example/x", CASE, "scheme"),
        ("no domain", "spiffe://", EMPTY, "empty_trust_domain"),
        ("no domain before a path", "spiffe:///x", EMPTY, "empty_trust_domain"),
        ("a domain with a capital", "spiffe://Corp.example/x", CASE, "trust_domain_byte"),
        ("a user", "spiffe://ana@corp.example/x", AUTHORITY, "trust_domain_byte"),
        ("an empty user", "spiffe://@corp.example/x", AUTHORITY, "trust_domain_byte"),
        ("a port", "spiffe://corp.example:8443/x", AUTHORITY, "trust_domain_byte"),
        ("an empty port", "spiffe://corp.example:/x", AUTHORITY, "trust_domain_byte"),
        ("an IPv6 address", "spiffe://[2001:db8::1]/x", DOMAIN, "trust_domain_byte"),
        ("a percent sign in a domain", "spiffe://corp%2eexample/x", DOMAIN, "trust_domain_byte"),
        ("a space in a domain", "spiffe://corp example/x", DOMAIN, "trust_domain_byte"),
        ("a letter beyond ASCII", "spiffe://c\u{f6}rp.example/x", DOMAIN, "trust_domain_byte"),
        ("a Cyrillic letter", "spiffe://c\u{43e}rp.example/x", DOMAIN, "trust_domain_byte"),
        ("an asterisk", "spiffe://*.example/x", DOMAIN, "trust_domain_byte"),
        ("a backslash", "spiffe://corp.example\\x", DOMAIN, "trust_domain_byte"),
        ("a query without a path", "spiffe://corp.example?x", QUERY, "trust_domain_byte"),
        ("a slash at the end", "spiffe://corp.example/x/", SEGMENT, "segment"),
        ("a slash as the path", "spiffe://corp.example/", SEGMENT, "segment"),
        ("an empty segment", "spiffe://corp.example//x", SEGMENT, "segment"),
        ("a dot as a segment", "spiffe://corp.example/./x", SEGMENT, "segment"),
        ("two dots as a segment", "spiffe://corp.example/a/../x", SEGMENT, "segment"),
        ("two dots at the end", "spiffe://corp.example/a/..", SEGMENT, "segment"),
        ("dots in percent signs", "spiffe://corp.example/%2e%2e/x", PATH, "path_byte"),
        ("a slash in percent signs", "spiffe://corp.example/a%2fx", PATH, "path_byte"),
        ("a query", "spiffe://corp.example/x?y", QUERY, "path_byte"),
        ("an empty query", "spiffe://corp.example/x?", QUERY, "path_byte"),
        ("a fragment", "spiffe://corp.example/x#y", QUERY, "path_byte"),
        ("an asterisk in a path", "spiffe://corp.example/*", PATH, "path_byte"),
        ("a colon in a path", "spiffe://corp.example/a:b", PATH, "path_byte"),
        ("a space at the end", "spiffe://corp.example/x ", PATH, "path_byte"),
        ("a line feed at the end", "spiffe://corp.example/x\n", PATH, "path_byte"),
        ("a zero byte", "spiffe://corp.example/x\0", PATH, "path_byte"),
        ("a path beyond ASCII", "spiffe://corp.example/\u{e9}", PATH, "path_byte"),
        ("2049 bytes", &path(2049 - 22), TOO_LONG, "too_long"),
        ("a domain of 256 bytes", &host(256), HOST_LENGTH, "too_long"),
    ] {
        let vector = Vector::new(Kind::SpiffeId, name, rule, json!(text));
        made.push(vector.refused(reason));
    }
    made
}
