//! X.509-SVIDs: the chains that the verifier's own tests draw, each with the clause it is about.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doorward::identity::{BundleDocument, SvidError};
use doorward::model::TrustDomain;
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;

use super::chains::{self, OWN, PARTNER, World};
use super::judge::word;
use super::{Kind, Vector, ids};

/// Longer chains are left to the library's own tests: the rule is a length, and a file of a
/// megabyte tells no more.
const LARGEST: usize = 32 * 1024;

/// All of them, and the map of the bundles that they are judged under.
pub fn all() -> (Vec<Vector>, Vec<u8>) {
    let world = World::new();
    let hint = Duration::from_secs(300);
    let mut domains = Map::new();
    for (domain, bundle) in world.view().bundles.iter() {
        let document = BundleDocument::new(domain.clone(), bundle.roots.clone(), vec![], 1, hint);
        let document: Value = serde_json::from_slice(&document.unwrap().to_json()).unwrap();
        domains.insert(domain.to_string(), document);
    }
    assert!([OWN, PARTNER].iter().all(|name| domains.contains_key(*name)));
    let mut made = Vec::new();
    for chain in chains::all(&world) {
        let is_ours = matches!(&chain.want, Err(SvidError::Extension(_)));
        if is_ours || chain.chain.iter().map(|der| der.len()).sum::<usize>() > LARGEST {
            continue;
        }
        let data: Vec<String> = chain.chain.iter().map(|der| STANDARD.encode(der)).collect();
        let (reason, rule) = match &chain.want {
            Ok(()) => (None, good_rule(&chain.name)),
            Err(SvidError::SpiffeId(inner)) => {
                let reason = format!("spiffe_id.{}", word(inner));
                (Some(reason), id_rule(&chain.name))
            }
            Err(error) => (Some(word(error)), rule(error, &chain.name)),
        };
        let mut vector = Vector::new(Kind::X509Svid, &chain.name, rule, json!(data));
        if let Some(reason) = reason {
            vector = vector.refused(&reason);
        }
        vector.at = Some(chain.at.format(&Rfc3339).unwrap());
        vector.trust = Some("trust/x509.json".into());
        vector.trust_domain = Some(TrustDomain::parse(OWN).unwrap().to_string());
        made.push(vector);
    }
    let map = json!({ "trust_domains": domains });
    (made, map.to_string().into_bytes())
}

fn good_rule(name: &str) -> &'static str {
    match name {
        "a DNS name beside the URI" => {
            "X509-SVID §2: other kinds of names may stand beside the URI"
        }
        "no extendedKeyUsage" => "X509-SVID §4.4: extendedKeyUsage is optional in leaves",
        "one purpose more" => "X509-SVID §4.4: serverAuth and clientAuth, and others beside them",
        "keyAgreement beside digitalSignature" => "X509-SVID §4.3: keyAgreement may be set",
        "an intermediate without URI" => "X509-SVID §3.2: a signing certificate should have an ID",
        "two ways up, one of them ended" => "RFC 5280 §6.1: one valid path is enough",
        name if name.contains("subject") => {
            "RFC 5280 §4.2.1.6: critical where the subject is empty"
        }
        name if name.starts_with("spiffe://partner") || name.starts_with("a visitor") => {
            "Doorward: 60 s of skew for leaves of federated domains"
        }
        name if name.contains("notAfter") => "RFC 5280 §4.1.2.5: the ends of validity belong to it",
        name if name.contains("notBefore") => {
            "RFC 5280 §4.1.2.5: the ends of validity belong to it"
        }
        _ => "X509-SVID §5: path and leaf are valid",
    }
}

fn id_rule(name: &str) -> &'static str {
    match name {
        name if name.contains("Spiffe://") || name.contains("Corp.") => ids::CASE,
        name if name.contains("aaaaaaaa") => {
            "SPIFFE-ID §2.3: bounds of the ID and its trust domain"
        }
        _ => "X509-SVID §2, SPIFFE-ID §2: the URI is a SPIFFE ID",
    }
}

fn rule(error: &SvidError, name: &str) -> &'static str {
    use SvidError as E;
    match error {
        E::ChainTooLong(_) => "Doorward: at most four certificates are looked at",
        E::CertificateTooLarge(_) => "Doorward: at most 16 KiB a certificate are looked at",
        E::Malformed => "RFC 5280 §4.1: certificates are DER",
        E::MalformedExtension(_) => "RFC 5280 §4.2.1: an extension has the form that it is given",
        E::Version => "RFC 5280 §4.1.2.1: extensions need version 3",
        E::DuplicateExtension => "RFC 5280 §4.2: no extension stands twice",
        E::UnknownCriticalExtension => "RFC 5280 §4.2: an unknown critical extension is refused",
        E::SerialNumber => {
            "Doorward: a positive integer of at most 20 octets (RFC 5280 §4.1.2.2 binds issuers)"
        }
        E::NoUri | E::SeveralUris(_) => "X509-SVID §2, §5.2: exactly one URI name",
        E::NoPath => "X509-SVID §5.2: a leaf's ID has a path",
        E::NamesNotCritical => "RFC 5280 §4.2.1.6: critical where the subject is empty",
        E::BasicConstraintsAbsent => "Doorward: cA=false is said (X509-SVID §4.1, §5.2)",
        E::LeafIsAuthority => "X509-SVID §5.2: a leaf is no signing certificate",
        E::KeyUsageAbsent | E::KeyUsageNotCritical => {
            "X509-SVID §4.3: keyUsage is set and critical"
        }
        E::NoDigitalSignature => "X509-SVID §4.3: leaves set digitalSignature",
        E::LeafSignsCertificates | E::LeafSignsRevocations => {
            "X509-SVID §5.2: neither keyCertSign nor cRLSign in a leaf"
        }
        E::ExtendedKeyUsage => "X509-SVID §4.4: if set, serverAuth and clientAuth are both in it",
        E::KeyKind => "Doorward: leaf keys are P-256, P-384 or Ed25519",
        E::Algorithm if name.contains("P-521") => "Doorward: no signatures with P-521 keys",
        E::Algorithm => "Doorward: no RSA signatures in the verifier's own domain",
        E::Expired | E::NotYet | E::IssuerExpired | E::IssuerNotYet => {
            "RFC 5280 §6.1.3: every certificate of the path is valid at the time"
        }
        E::UnknownTrustDomain | E::UnknownIssuer => {
            "X509-SVID §5.1: the path ends at a root of the SVID's own trust domain"
        }
        E::IssuerNotAuthority => "X509-SVID §4.1: signing certificates say cA=true",
        E::IssuerSignsNoCertificates => "X509-SVID §4.3: signing certificates set keyCertSign",
        E::IssuerName | E::IssuerDomain if name.contains("path") => {
            "X509-SVID §3.2: a signing certificate's ID has no path"
        }
        E::IssuerName | E::IssuerDomain => {
            "Doorward: a signing certificate names its own trust domain or nothing"
        }
        E::NameConstraints => "Doorward: name constraints are not supported (X509-SVID §4.2)",
        E::IssuerPurpose => "Doorward: an issuer's extendedKeyUsage holds for its leaves too",
        E::Signature => "RFC 5280 §6.1.3: every signature of the path verifies",
        E::PathLength => "RFC 5280 §4.2.1.9: no more intermediates than an issuer allows",
        other => panic!("{name}: no clause for {other:?}"),
    }
}
