//! Enrolment beside join tokens: what an applicant may show, and what a device was let in by.
//!
//! Nothing secret stands in any of these: digests and names, which go into records and device rows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::device::{DeviceClass, Digest};

/// Which proof an applicant brings as the body of `enroll`, where it is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrolBy {
    /// An X.509 certificate that the device has already, with proof of possession of its key.
    X509,
    /// A projected service account token of a Kubernetes cluster.
    Kubernetes,
    /// A TPM 2.0: its endorsement key, and what it certifies of the device key.
    Tpm,
}

impl EnrolBy {
    /// Its word on the wire and in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Kubernetes => "kubernetes",
            Self::Tpm => "tpm",
        }
    }
}

/// What stands behind a TPM, as whoever configured its roots says: evidence itself looks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TpmTier {
    /// A chip, or firmware of the machine.
    Tpm,
    /// A hypervisor, which is trusted with all of it.
    Vtpm,
}

impl TpmTier {
    /// Its word in facts, files and records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tpm => "tpm",
            Self::Vtpm => "vtpm",
        }
    }

    /// The tier of a word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Tpm, Self::Vtpm].into_iter().find(|tier| tier.word() == word)
    }
}

/// The kinds of endorsement keys. A maker may certify several of one TPM, each of which would be a
/// device of its own, so a method takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EkKind {
    /// A point of P-256.
    P256,
    /// A point of P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
}

impl EkKind {
    /// Its word in files.
    pub fn word(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Rsa2048 => "rsa2048",
        }
    }

    /// The kind of a word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::P256, Self::P384, Self::Rsa2048].into_iter().find(|kind| kind.word() == word)
    }
}

/// A device whose key is held by a TPM: its id is not the digest of that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// SHA-256 of the device key's SubjectPublicKeyInfo.
    pub key: Digest,
    /// What stands behind it.
    pub tier: TpmTier,
}

/// What a device was enrolled by; without one it was a join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EnrolledBy {
    /// A device certificate.
    X509 {
        /// The method's name in the broker's configuration.
        method: String,
        /// SHA-256 of the certificate.
        certificate: Digest,
        /// SHA-256 of its SubjectPublicKeyInfo: what the device is bound to.
        key: Digest,
    },
    /// A pod's token.
    Kubernetes {
        /// The method's name in the broker's configuration: the cluster.
        method: String,
        /// The pod's namespace.
        namespace: String,
        /// Its service account.
        service_account: String,
        /// The pod.
        pod: String,
        /// Its uid.
        pod_uid: String,
        /// The node that it runs on, where the token says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// The node's uid: what the device is bound to, else to the pod's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node_uid: Option<String>,
    },
    /// A TPM.
    Tpm {
        /// The method's name in the broker's configuration.
        method: String,
        /// SHA-256 of the endorsement key's SubjectPublicKeyInfo: the device's id.
        ek: Digest,
        /// The public area of the attestation key, hexadecimal: what its quotes are judged by.
        attestation_key: String,
        /// What stands behind it.
        tier: TpmTier,
    },
}

impl EnrolledBy {
    /// The kind of proof.
    pub fn by(&self) -> EnrolBy {
        match self {
            Self::X509 { .. } => EnrolBy::X509,
            Self::Kubernetes { .. } => EnrolBy::Kubernetes,
            Self::Tpm { .. } => EnrolBy::Tpm,
        }
    }

    /// The method's name.
    pub fn method(&self) -> &str {
        match self {
            Self::X509 { method, .. }
            | Self::Kubernetes { method, .. }
            | Self::Tpm { method, .. } => method,
        }
    }

    /// What the device is bound to, as one digest: nothing else may enrol by the same while it is
    /// held. A certificate's key is the same whichever method took it; a uid counts in its cluster.
    pub fn bound_to(&self) -> Digest {
        let (kind, method, what) = match self {
            Self::X509 { key, .. } => ("x509", "", key.to_string()),
            Self::Kubernetes { method, node_uid: Some(uid), .. } => {
                ("node", method.as_str(), uid.clone())
            }
            Self::Kubernetes { method, pod_uid, .. } => ("pod", method.as_str(), pod_uid.clone()),
            Self::Tpm { ek, .. } => ("tpm", "", ek.to_string()),
        };
        // No part can hold a zero byte.
        Digest::of(format!("doorward enrolled by\0{kind}\0{method}\0{what}").as_bytes())
    }
}

/// An applicant's proof that held: everything that a device record takes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// What it was.
    pub by: EnrolledBy,
    /// The class that the new device will have.
    pub class: DeviceClass,
    /// Life of its certificates, in seconds, where the method says so.
    pub ttl_s: Option<u32>,
    /// A proof that is good for one device only: its digest, and when it ends by itself (seconds
    /// since 1970).
    pub spends: Option<(Digest, i64)>,
}

/// What an applicant showed, judged: the proof, or in one stable word why it is none. The word is
/// for the log alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// It holds.
    Proven(Arc<Proven>),
    /// It does not.
    Fault(EnrolBy, &'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(method: &str, node_uid: Option<&str>) -> EnrolledBy {
        EnrolledBy::Kubernetes {
            method: method.into(),
            namespace: "doorward".into(),
            service_account: "agent".into(),
            pod: "agent-x".into(),
            pod_uid: "p1".into(),
            node: node_uid.map(|_| "n".into()),
            node_uid: node_uid.map(str::to_owned),
        }
    }

    #[test]
    fn a_binding_is_of_one_thing_only() {
        let x509 = |method: &str, key: u8| EnrolledBy::X509 {
            method: method.into(),
            certificate: Digest([9; 32]),
            key: Digest([key; 32]),
        };
        assert_eq!(x509("a", 1).bound_to(), x509("b", 1).bound_to());
        let tpm = |method: &str, ek: u8, tier| EnrolledBy::Tpm {
            method: method.into(),
            ek: Digest([ek; 32]),
            attestation_key: "00".into(),
            tier,
        };
        assert_eq!(tpm("a", 1, TpmTier::Tpm).bound_to(), tpm("b", 1, TpmTier::Vtpm).bound_to());
        let all = [
            tpm("a", 1, TpmTier::Tpm),
            tpm("a", 2, TpmTier::Tpm),
            x509("a", 1),
            x509("a", 2),
            pod("a", None),
            pod("b", None),
            pod("a", Some("p1")),
            pod("a", Some("n1")),
            pod("b", Some("n1")),
        ];
        let digests: std::collections::BTreeSet<_> = all.iter().map(|by| by.bound_to().0).collect();
        assert_eq!(digests.len(), all.len());
    }

    #[test]
    fn the_row_and_the_wire_have_one_form() {
        assert_eq!(serde_json::to_string(&EnrolBy::X509).unwrap(), r#""x509""#);
        assert_eq!(serde_json::to_string(&EnrolBy::Kubernetes).unwrap(), r#""kubernetes""#);
        for by in [pod("a", None), pod("a", Some("n1"))] {
            let text = serde_json::to_string(&by).unwrap();
            assert_eq!(serde_json::from_str::<EnrolledBy>(&text).unwrap(), by);
        }
    }
}
