//! Our own verifier, asked about one vector.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doorward::identity::{BundleDocument, BundleError, Identity, JwtSvid, JwtSvidError, Peer};
use doorward::identity::{SvidError, View};
use doorward::model::{Digest, Moment, SpiffeId, TrustDomain};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Kind, Trust, Vector};

/// What the verifier gives, or the word of the rule that was broken.
pub fn ours(vector: &Vector, trust: &Trust) -> Result<Value, String> {
    match vector.kind {
        Kind::SpiffeId => match SpiffeId::parse(vector.text()) {
            Ok(id) => Ok(json!({ "trust_domain": id.trust_domain(), "path": id.path() })),
            Err(error) => Err(word(&error)),
        },
        Kind::X509Svid => chain(vector, trust).map_err(|error| match error {
            SvidError::SpiffeId(inner) => format!("spiffe_id.{}", word(&inner)),
            other => word(&other),
        }),
        Kind::Bundle => {
            let domain = domain(vector.trust_domain.as_deref().unwrap());
            BundleDocument::parse(domain, vector.text().as_bytes())
                .map(|bundle| content(&bundle))
                .map_err(|error| word(&error))
        }
        Kind::BundleMap => match BundleDocument::parse_map(vector.text().as_bytes()) {
            Ok(map) => Ok(map.iter().map(|(name, b)| (name.to_string(), content(b))).collect()),
            Err(BundleError::Of(_, inner)) => Err(format!("of.{}", word(&*inner))),
            Err(other) => Err(word(&other)),
        },
        Kind::JwtSvid => token(vector, trust).map_err(|error| match error {
            JwtSvidError::Subject(inner) => format!("subject.{}", word(&inner)),
            other => {
                assert_eq!(other.word(), word(&other));
                other.word().to_owned()
            }
        }),
    }
}

/// An error's stable word: the name of its variant.
pub fn word(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    let name: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
    let mut word = String::new();
    for (at, c) in name.chars().enumerate() {
        if c.is_ascii_uppercase() && at > 0 {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    word
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn moment(vector: &Vector) -> Moment {
    let at = OffsetDateTime::parse(vector.at.as_deref().unwrap(), &Rfc3339).unwrap();
    Moment::new(at, Duration::from_secs(1))
}

/// The bundles that a vector is judged under.
fn bundles(vector: &Vector, trust: &Trust) -> HashMap<TrustDomain, BundleDocument> {
    let file = &trust[vector.trust.as_deref().unwrap()];
    BundleDocument::parse_map(file).unwrap().into_iter().collect()
}

/// The certificates of a chain.
pub fn certificates(vector: &Vector) -> Vec<CertificateDer<'static>> {
    let texts = vector.data.as_array().unwrap().iter();
    texts.map(|text| STANDARD.decode(text.as_str().unwrap()).unwrap().into()).collect()
}

fn chain(vector: &Vector, trust: &Trust) -> Result<Value, SvidError> {
    let bundles = bundles(vector, trust);
    let roots = bundles.iter().map(|(domain, bundle)| (domain.clone(), bundle.to_roots()));
    let identity = Identity::new(View {
        trust_domain: domain(vector.trust_domain.as_deref().unwrap()),
        bundles: Arc::new(roots.collect()),
        own_issuers: Arc::default(),
        devices: Arc::default(),
        entries: Arc::default(),
        denied: Arc::default(),
    });
    match identity.peer(&certificates(vector), moment(vector))? {
        Peer::Svid(svid) => Ok(json!({ "spiffe_id": svid.svid().id() })),
        other => panic!("a chain became {other:?}"),
    }
}

fn content(bundle: &BundleDocument) -> Value {
    let ignored = bundle.ignored().iter().map(|key| json!([key.index, word(&key.fault)]));
    json!({
        "x509_sha256": bundle.x509_roots().iter().map(|root| Digest::of(root)).collect::<Vec<_>>(),
        "jwt_kids": bundle.jwt_keys().iter().map(|key| key.key_id()).collect::<Vec<_>>(),
        "sequence": bundle.sequence(),
        "refresh_hint_s": bundle.refresh_hint().map(|hint| hint.as_secs()),
        "ignored": ignored.collect::<Vec<_>>(),
    })
}

fn token(vector: &Vector, trust: &Trust) -> Result<Value, JwtSvidError> {
    let audience = vector.audience.as_deref().unwrap();
    let bundles = bundles(vector, trust);
    let svid = JwtSvid::validate(vector.text(), &bundles, audience, moment(vector))?;
    Ok(json!({
        "spiffe_id": svid.id(),
        "audience": svid.audience(),
        "expires_at": svid.expires_at().format(&Rfc3339).unwrap(),
        "key_id": svid.key_id(),
        "algorithm": svid.algorithm().word(),
    }))
}
