//! The methods of enrolment that a broker's configuration names, and what an applicant shows judged
//! by them.
//!
//! Judging changes nothing and reads no store. What does not hold is told in one word, for the log;
//! the applicant hears the same of every fault.

use std::sync::Arc;

use super::tpm::TpmMethod;
use crate::identity::{
    Cluster, DeviceProof, DeviceProofError, DeviceRoots, PodToken, PodTokenError,
};
use crate::model::{
    DeviceClass, Digest, EnrolBy, EnrolledBy, Moment, Proven, SecretValue, Shown, TrustDomain,
};

/// What every method says of the devices that it lets in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The method's name.
    pub name: String,
    /// The class of its devices.
    pub class: DeviceClass,
    /// Life of their certificates in seconds, if it is not the usual one.
    pub ttl_s: Option<u32>,
}

/// All methods beside join tokens; none unless the configuration names one.
#[derive(Debug, Clone, Default)]
pub struct EnrolMethods {
    /// Device certificates, by the roots that they are of.
    pub x509: Vec<(Admission, DeviceRoots)>,
    /// Pods, by their clusters.
    pub kubernetes: Vec<(Admission, Cluster)>,
    /// Machines, by their TPMs.
    pub tpm: Vec<(Admission, TpmMethod)>,
}

/// What an applicant brings, and where.
#[derive(Debug, Clone, Copy)]
pub struct Brought<'a> {
    /// The request's body.
    pub body: &'a SecretValue,
    /// The TLS exporter's value of the connection, for what is bound to it.
    pub exporter: Option<&'a [u8; 32]>,
    /// The key that the handshake proved, as SubjectPublicKeyInfo (DER).
    pub spki: &'a [u8],
}

impl EnrolMethods {
    /// Whether any method takes such a proof: where none does, its body is not even read.
    pub(super) fn take(&self, by: EnrolBy) -> bool {
        match by {
            EnrolBy::X509 => !self.x509.is_empty(),
            EnrolBy::Kubernetes => !self.kubernetes.is_empty(),
            EnrolBy::Tpm => !self.tpm.is_empty(),
        }
    }

    /// Judges what an applicant shows.
    pub(super) fn judge(
        &self,
        by: EnrolBy,
        brought: Brought<'_>,
        domain: &TrustDomain,
        now: Moment,
    ) -> Shown {
        let judged = match by {
            EnrolBy::X509 => self.certificate(brought, domain, now).map_err(DeviceProofError::word),
            EnrolBy::Kubernetes => self.pod(brought.body, now).map_err(PodTokenError::word),
            // Without a credential no TPM proves anything: see `Authority::weigh`.
            EnrolBy::Tpm => Err("no_credential"),
        };
        match judged {
            Ok(proven) => Shown::Proven(Arc::new(proven)),
            Err(word) => Shown::Fault(by, word),
        }
    }

    fn certificate(
        &self,
        brought: Brought<'_>,
        domain: &TrustDomain,
        now: Moment,
    ) -> Result<Proven, DeviceProofError> {
        let exporter = brought.exporter.ok_or(DeviceProofError::Signature)?;
        let proof = DeviceProof::read(brought.body.expose())?;
        let shown = proof.possessed(exporter, brought.spki, domain)?;
        let mut fault = DeviceProofError::UnknownIssuer;
        for (admission, roots) in &self.x509 {
            match roots.verify(&shown, now) {
                Ok(()) => {
                    let method = admission.name.clone();
                    let (certificate, key) = (shown.certificate(), shown.key());
                    return Ok(
                        admission.proven(EnrolledBy::X509 { method, certificate, key }, None)
                    );
                }
                // Of several methods, the one that knows the issuer says what is wrong.
                Err(DeviceProofError::UnknownIssuer) => {}
                Err(other) => fault = other,
            }
        }
        Err(fault)
    }

    fn pod(&self, body: &SecretValue, now: Moment) -> Result<Proven, PodTokenError> {
        let mut fault = PodTokenError::Issuer;
        for (admission, cluster) in &self.kubernetes {
            match cluster.verify(body.expose(), now) {
                Ok(token) => return Ok(of_pod(admission, token)),
                // Clusters often have the same issuer's name, and then other keys.
                Err(PodTokenError::Issuer | PodTokenError::UnknownKey)
                    if fault != PodTokenError::Issuer => {}
                Err(other) => fault = other,
            }
        }
        Err(fault)
    }
}

impl Admission {
    pub(super) fn proven(&self, by: EnrolledBy, spends: Option<(Digest, i64)>) -> Proven {
        Proven { by, class: self.class.clone(), ttl_s: self.ttl_s, spends }
    }
}

fn of_pod(admission: &Admission, token: PodToken) -> Proven {
    // A token's end may have a fraction: what was spent is remembered until the second after it.
    let until = token.expires_at.unix_timestamp().saturating_add(1);
    let spends = Some((token.digest, until));
    let (node, node_uid) = token.node.unzip();
    let by = EnrolledBy::Kubernetes {
        method: admission.name.clone(),
        namespace: token.namespace,
        service_account: token.service_account,
        pod: token.pod.0,
        pod_uid: token.pod.1,
        node,
        node_uid,
    };
    admission.proven(by, spends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PodTokenError;
    use serde_json::{Value, json};
    use std::time::Duration;
    use time::macros::datetime;

    fn admission(name: &str) -> Admission {
        Admission { name: name.into(), class: DeviceClass::parse("node").unwrap(), ttl_s: None }
    }

    /// A cluster with the example key of RFC 7517 §A.1.
    fn cluster(issuer: &str, kid: &str) -> Cluster {
        let jwks = json!({"keys": [{
            "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        }]});
        let accounts = vec![("doorward".to_owned(), "agent".to_owned())];
        Cluster::read(jwks.to_string().as_bytes(), issuer, "doorward", accounts).unwrap()
    }

    fn token(claims: &Value, kid: &str) -> SecretValue {
        use base64::Engine as _;
        let part = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let header = part(format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#));
        let text = format!("{header}.{}.{}", part(claims.to_string()), part("s".repeat(64)));
        SecretValue::new(text.into_bytes())
    }

    #[test]
    fn the_cluster_that_knows_a_token_says_what_is_wrong_with_it() {
        let now = Moment::new(datetime!(2026-11-23 12:00 UTC), Duration::from_secs(1));
        let domain = TrustDomain::parse("corp.example").unwrap();
        let clusters = [("a", "https://same", "k1"), ("b", "https://same", "k2"), ("c", "x", "k3")];
        let kubernetes = clusters.map(|(name, iss, kid)| (admission(name), cluster(iss, kid)));
        let methods = EnrolMethods { kubernetes: kubernetes.into(), ..EnrolMethods::default() };
        let word = |iss: &str, kid: &str| {
            let body = token(&json!({ "iss": iss }), kid);
            let brought = Brought { body: &body, exporter: None, spki: b"" };
            match methods.judge(EnrolBy::Kubernetes, brought, &domain, now) {
                Shown::Fault(EnrolBy::Kubernetes, word) => word,
                other => panic!("{other:?}"),
            }
        };
        for (iss, kid, want) in [
            ("https://same", "k1", PodTokenError::Signature),
            ("https://same", "k2", PodTokenError::Signature),
            ("https://same", "k3", PodTokenError::UnknownKey),
            ("x", "k1", PodTokenError::UnknownKey),
            ("x", "k3", PodTokenError::Signature),
            ("https://other", "k1", PodTokenError::Issuer),
        ] {
            assert_eq!(word(iss, kid), want.word(), "{iss} {kid}");
        }
        assert!(methods.take(EnrolBy::Kubernetes) && !methods.take(EnrolBy::X509));
    }

    #[test]
    fn a_token_is_remembered_for_as_long_as_it_counts() {
        let read = PodToken {
            namespace: "doorward".into(),
            service_account: "agent".into(),
            pod: ("p".into(), "p1".into()),
            node: None,
            expires_at: datetime!(2026-11-23 12:00:00.9 UTC),
            digest: Digest([1; 32]),
        };
        let end = read.expires_at;
        let (digest, until) = of_pod(&admission("a"), read).spends.unwrap();
        assert_eq!(digest, Digest([1; 32]));
        assert!(until > (end - Duration::from_nanos(1)).unix_timestamp());
    }
}
