//! The control: what the `spiffe` crate makes of a vector, through its public functions and with
//! the care that its documentation asks of callers; and, where it differs, who is right and why.

use rcgen::KeyPair;
use serde_json::{Value, json};
use spiffe::bundle::jwt::{JwtBundle, JwtBundleSet};
use spiffe::{JwtSvid, SpiffeId, TrustDomain, X509Svid};

use super::judge::certificates;
use super::{Differs, Kind, Outcome, Right, Trust, Vector};

/// Tokens that turn on a second of 2030; the crate knows no date but today's.
fn needs_its_date(vector: &Vector) -> bool {
    let name = vector.name.as_str();
    matches!(name, "an exp that is now" | "an exp in a second")
        || matches!(name, "an nbf that is now" | "an nbf in a second")
        || (name.starts_with("an iat ") && name.ends_with(" ahead"))
}

/// Accepted, refused, or not asked.
pub fn outcome(vector: &Vector, trust: &Trust) -> Outcome {
    let is_taken = match vector.kind {
        Kind::SpiffeId => SpiffeId::new(vector.text()).is_ok(),
        Kind::X509Svid => {
            let chain: Vec<u8> = certificates(vector).iter().flat_map(|der| der.to_vec()).collect();
            // The crate does not compare the key with the leaf; any one will do.
            let key = KeyPair::generate().unwrap().serialize_der();
            X509Svid::parse_from_der(&chain, &key).is_ok()
        }
        Kind::Bundle => {
            let domain = TrustDomain::new(vector.trust_domain.as_deref().unwrap()).unwrap();
            JwtBundle::from_jwt_authorities(domain, vector.text().as_bytes()).is_ok()
        }
        Kind::BundleMap => return Outcome::NotRun,
        Kind::JwtSvid if needs_its_date(vector) => return Outcome::NotRun,
        Kind::JwtSvid => {
            let bundles = jwt_bundles(&trust[vector.trust.as_deref().unwrap()]);
            let audience = [vector.audience.as_deref().unwrap()];
            JwtSvid::parse_and_validate(vector.text(), &bundles, &audience).is_ok()
        }
    };
    if is_taken { Outcome::Accept } else { Outcome::Reject }
}

/// The map of bundles in the crate's types; `use` is looked at before, as it asks its callers.
fn jwt_bundles(map: &[u8]) -> JwtBundleSet {
    let map: Value = serde_json::from_slice(map).unwrap();
    let mut set = JwtBundleSet::new();
    for (name, document) in map["trust_domains"].as_object().unwrap() {
        let mut keys = document["keys"].as_array().unwrap().clone();
        keys.retain(|key| key["use"] == "jwt-svid" && key["kid"].is_string());
        let jwks = json!({ "keys": keys }).to_string();
        let domain = TrustDomain::new(name).unwrap();
        set.add_bundle(JwtBundle::from_jwt_authorities(domain, jwks.as_bytes()).unwrap());
    }
    set
}

/// Why the crate's answer is another one; `None` where it is the same or was not asked.
pub fn differs(vector: &Vector) -> Option<Differs> {
    let outcome = vector.spiffe_crate.outcome;
    if outcome == Outcome::NotRun || outcome == vector.expected {
        return None;
    }
    let (reason, name) = (vector.reason.as_deref().unwrap_or(""), vector.name.as_str());
    let said = match vector.kind {
        Kind::SpiffeId => of_id(reason),
        Kind::X509Svid => of_chain(reason, name),
        Kind::Bundle => of_bundle(reason, name),
        Kind::BundleMap => None,
        Kind::JwtSvid => of_token(reason, name),
    };
    let (right, why) = said.unwrap_or_else(|| panic!("{name} ({reason}): nobody said why"));
    Some(Differs { right, why: why.to_owned() })
}

const CASE: &str = "SPIFFE-ID §2.1 demands lower case, §2.4 calls scheme and domain \
    case-insensitive: the crate lower-cases them, we take one form only, so that names compare byte for byte";

fn of_id(reason: &str) -> Option<(Right, &'static str)> {
    Some(match reason {
        "scheme" | "trust_domain_byte" => (Right::Both, CASE),
        "too_long" => (
            Right::Both,
            "SPIFFE-ID §2.3 demands that 2048 bytes are supported and sets no end; we bound what \
             strangers send",
        ),
        _ => return None,
    })
}

fn of_chain(reason: &str, name: &str) -> Option<(Right, &'static str)> {
    Some(match reason {
        "expired"
        | "not_yet"
        | "issuer_expired"
        | "issuer_not_yet"
        | "unknown_issuer"
        | "unknown_trust_domain"
        | "signature"
        | "path_length" => (
            Right::Ours,
            "the crate's public functions read a chain and build no path: no roots, no signatures, \
             no dates (X509-SVID §5.1)",
        ),
        "key_usage_not_critical" => (Right::Ours, "keyUsage MUST be critical (X509-SVID §4.3)"),
        "extended_key_usage" => (
            Right::Ours,
            "a leaf's extendedKeyUsage MUST hold serverAuth and clientAuth (X509-SVID §4.4)",
        ),
        "unknown_critical_extension" => {
            (Right::Ours, "an unknown critical extension MUST be refused (RFC 5280 §4.2)")
        }
        "version" => (Right::Ours, "extensions need version 3 (RFC 5280 §4.1.2.1)"),
        "malformed_extension" => {
            (Right::Ours, "the extension has not the form that RFC 5280 §4.2.1 gives it")
        }
        "names_not_critical" => {
            (Right::Ours, "names are critical where the subject is empty (RFC 5280 §4.2.1.6)")
        }
        "issuer_name" if name.contains("path") => {
            (Right::Ours, "a signing certificate's ID has no path (X509-SVID §3.2)")
        }
        "issuer_name" | "issuer_domain" => (
            Right::Both,
            "what else a signing certificate names is left open; we take its own domain or nothing",
        ),
        "spiffe_id.scheme" | "spiffe_id.trust_domain_byte" => (Right::Both, CASE),
        "chain_too_long" | "certificate_too_large" => {
            (Right::Both, "bounds on what strangers show; the crate's are wider")
        }
        "serial_number" => (
            Right::Both,
            "RFC 5280 §4.1.2.2 binds issuers and lets verifiers be lenient; we revoke by serial \
             number",
        ),
        "key_kind" | "algorithm" | "name_constraints" | "issuer_purpose" => {
            (Right::Both, "our verifier takes fewer forms than the standard allows, as documented")
        }
        _ => return None,
    })
}

fn of_bundle(reason: &str, name: &str) -> Option<(Right, &'static str)> {
    Some(match reason {
        "" if name.contains("kid") => {
            (Right::Ours, "one key without a kid costs the crate the whole set, us that key")
        }
        "" => (
            Right::Both,
            "the crate reads the Workload API's key sets, in which every key has a kid; documents \
             with other elements are left to its callers, as it says",
        ),
        "sequence" => (Right::Both, "the crate does not look at the sequence"),
        "key_id_twice" => {
            (Right::Both, "RFC 7517 §4.5 says SHOULD; the crate takes the last one, we take none")
        }
        "json" => (
            Right::Both,
            "RFC 8259 §4 says SHOULD, and sets no depth; the crate takes the last member of a name",
        ),
        _ => return None,
    })
}

fn of_token(reason: &str, name: &str) -> Option<(Right, &'static str)> {
    Some(match (reason, name) {
        ("", "signed by ES512") => {
            (Right::Ours, "ES512 is one of the nine (JWT-SVID §2.1); its backend lacks it")
        }
        ("", "an exp with a fraction") => {
            (Right::Ours, "a NumericDate may have a fraction (RFC 7519 §2)")
        }
        ("issued_at", _) => (Right::Ours, "iat MUST be a number (RFC 7519 §4.1.6)"),
        ("subject.trust_domain_byte", _) => (Right::Both, CASE),
        ("claims", _) if name.contains("twice") => (
            Right::Both,
            "RFC 7519 §4 lets the last claim of a name count; two readers of one token must agree",
        ),
        ("claims" | "too_large", _) => {
            (Right::Both, "bounds on what strangers send; the crate's are wider")
        }
        ("unknown_key", "a key whose private half is known") => {
            (Right::Both, "no standard says what a published private key is worth; we say nothing")
        }
        _ => return None,
    })
}
