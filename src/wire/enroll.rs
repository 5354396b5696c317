//! Becoming a device: a self-signed key and a token, or another proof, go in; an SVID comes out.
//!
//! The applicant knows one thing of the broker, the digest of a root certificate. It talks to
//! nobody who can't show such a root, and takes nothing home that does not fit its own key, its trust
//! domain and that root.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::client::Client;
use super::client_error::ClientError;
use super::credentials::CredentialsError;
use super::dial;
use super::leaf::Leaf;
use super::shows::Shows;
use super::tls;
use crate::model::limits::{CERTIFICATE_MAX, CHAIN_MAX, ROOTS_MAX};
use crate::model::{Answer, Clock, Digest, SpiffeId, TrustDomain};

/// What enrolment gives.
#[derive(Debug)]
pub struct Enrolled {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// The SVID, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots of the trust domain; one of a given digest is among them.
    pub bundle: Vec<CertificateDer<'static>>,
}

/// Enrols at `address` (the enrolment port, `host:port`) with a self-signed certificate (`chain`)
/// over the device key. `shows` is what lets it in; `roots` are SHA-256 of root certificates, one of
/// which the broker must show before anything is sent.
///
/// # Errors
/// The broker's refusal, or what does not fit.
// Each argument is one part of a join token or of the device; a struct would only rename them.
#[allow(clippy::too_many_arguments)]
pub async fn enroll(
    address: &str,
    domain: &TrustDomain,
    roots: &[Digest],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    name: &str,
    shows: impl Into<Shows>,
    clock: Arc<dyn Clock>,
) -> Result<Enrolled, ClientError> {
    let spki = own_key(&chain)?;
    let config = tls::applicant_client(chain, key, domain, roots.to_vec(), clock)?;
    let (endpoint, connection) = dial::dial(address, config).await?;
    let client = Client::over(endpoint, connection);
    let exporter = || client.enrolment_exporter();
    let mut shows = shows.into();
    let (ask, body) = shows.request(name, &spki, domain, exporter)?;
    let asked = match shows {
        Shows::Tpm(tpm) => client.prove(ask, body, |credential| tpm.open(credential)).await,
        _ => client.ask(ask, body).await,
    };
    client.finish().await;
    check(asked?.1.answer, domain, roots, &spki)
}

fn own_key(chain: &[CertificateDer<'_>]) -> Result<Vec<u8>, ClientError> {
    let leaf = chain.first().ok_or(CredentialsError::NoLeaf)?;
    Ok(Leaf::parse(leaf).map_err(CredentialsError::Leaf)?.spki)
}

fn check(
    answer: Answer,
    domain: &TrustDomain,
    roots: &[Digest],
    spki: &[u8],
) -> Result<Enrolled, ClientError> {
    let Answer::Certificate { spiffe_id, chain, bundle, .. } = answer else {
        return Err(ClientError::Unexpected("it holds no certificate"));
    };
    let chain = certificates(&chain, CHAIN_MAX)?;
    let bundle = certificates(&bundle, ROOTS_MAX)?;
    let leaf = chain.first().map(|leaf| Leaf::parse(leaf));
    let Some(Ok(leaf)) = leaf else {
        return Err(ClientError::Unexpected("its leaf can't be read"));
    };
    if leaf.spki != spki {
        return Err(ClientError::Unexpected("its certificate is not over our key"));
    }
    if leaf.spiffe_id.as_ref() != Some(&spiffe_id) {
        return Err(ClientError::Unexpected("its certificate names another identity"));
    }
    if spiffe_id.trust_domain() != domain {
        return Err(ClientError::Unexpected("its identity is of another trust domain"));
    }
    if !bundle.iter().any(|certificate| roots.contains(&Digest::of(certificate))) {
        return Err(ClientError::Unexpected("its trust bundle lacks the root that was asked for"));
    }
    Ok(Enrolled { spiffe_id, chain, bundle })
}

fn certificates(texts: &[String], max: usize) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    if texts.is_empty() || texts.len() > max {
        return Err(ClientError::Unexpected("it holds no certificates, or too many"));
    }
    let decode = |text: &String| match STANDARD.decode(text) {
        Ok(der) if der.len() <= CERTIFICATE_MAX => Ok(CertificateDer::from(der)),
        _ => Err(ClientError::Unexpected("a certificate in it can't be read")),
    };
    texts.iter().map(decode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://corp.example/doorward/agent/x";

    struct Scene {
        answer: Answer,
        domain: TrustDomain,
        root: Digest,
        spki: Vec<u8>,
    }

    fn scene() -> Scene {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(ID.try_into().unwrap())];
        let leaf = params.self_signed(&key).unwrap();
        let root_key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&root_key).unwrap();
        let answer = Answer::Certificate {
            spiffe_id: SpiffeId::parse(ID).unwrap(),
            chain: vec![STANDARD.encode(leaf.der())],
            bundle: vec![STANDARD.encode(root.der())],
            published: Vec::new(),
            until: "2026-11-23T01:00:00Z".into(),
        };
        let domain = TrustDomain::parse("corp.example").unwrap();
        let spki = Leaf::parse(leaf.der()).unwrap().spki;
        Scene { answer, domain, root: Digest::of(root.der()), spki }
    }

    fn verdict(scene: Scene) -> Result<Enrolled, String> {
        check(scene.answer, &scene.domain, &[scene.root], &scene.spki).map_err(|e| e.to_string())
    }

    #[test]
    fn what_fits_is_taken() {
        let enrolled = verdict(scene()).unwrap();
        assert_eq!(enrolled.spiffe_id.as_str(), ID);
        assert_eq!((enrolled.chain.len(), enrolled.bundle.len()), (1, 1));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        let refused = |change: fn(&mut Scene)| {
            let mut scene = scene();
            change(&mut scene);
            verdict(scene).unwrap_err()
        };
        let change_chain = |scene: &mut Scene, with: Vec<String>| {
            if let Answer::Certificate { chain, .. } = &mut scene.answer {
                *chain = with;
            }
        };
        assert!(refused(|s| s.root = Digest([0; 32])).contains("lacks the root"));
        assert!(refused(|s| s.spki = vec![0x30]).contains("not over our key"));
        let other_domain = refused(|s| s.domain = TrustDomain::parse("b.example").unwrap());
        assert!(other_domain.contains("another trust domain"));
        let other_name = refused(|s| {
            if let Answer::Certificate { spiffe_id, .. } = &mut s.answer {
                *spiffe_id = SpiffeId::parse("spiffe://corp.example/doorward/broker").unwrap();
            }
        });
        assert!(other_name.contains("names another identity"));
        assert!(refused(|s| s.answer = Answer::Done { revision: 1 }).contains("no certificate"));
        for bad in [vec![], vec!["AA==".into()], vec!["!".into()], vec!["AA==".into(); 5]] {
            let mut scene = scene();
            change_chain(&mut scene, bad);
            assert!(verdict(scene).is_err());
        }
    }

    #[test]
    fn a_root_that_is_the_leaf_itself_does_not_help() {
        let mut scene = scene();
        if let Answer::Certificate { chain, bundle, .. } = &mut scene.answer {
            *bundle = chain.clone();
        }
        assert!(verdict(scene).unwrap_err().contains("lacks the root"));
    }
}
