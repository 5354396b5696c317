//! Evidence: claims about a device in a compact JWS (`eat+jwt`, RFC 9711), and their verification.
//!
//! Nothing of the content is looked at before the size, the challenge, the shape, the endorsement
//! by the device key and the signature by the session key held, in that order of cost. The
//! algorithm is pinned; the JOSE header can carry no key. No clock of the device ever extends
//! trust: the age of evidence is counted from the moment the broker made the nonce.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};

use super::fact::Facts;
use super::session_key::{Bond, Endorsement, Envelope, Header, PROFILE, Payload, TYPE, decode};
use crate::model::limits::{CHALLENGE_TTL, EVIDENCE_DEPTH, EVIDENCE_MAX};
use crate::model::{DeviceId, Digest, Moment, Resident, read_strict_json};

/// The label of the TLS exporter that binds evidence to its connection; its context is the nonce,
/// its length 32 bytes (RFC 8446 §7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-doorward-posture-1";

/// A boot id, in bytes: a UUID in text.
const BOOT_ID_MAX: usize = 36;

/// What the broker asked: single use, bound to one connection. Clones share the one use.
#[derive(Clone)]
pub struct Challenge {
    nonce: [u8; 32],
    issued: Duration,
    exporter: [u8; 32],
    used: Arc<AtomicBool>,
}

impl Challenge {
    /// A fresh nonce. `export` computes the connection's exporter value ([`EXPORTER_LABEL`]) with
    /// the nonce as context. Without randomness the challenge is one that nothing can answer.
    pub fn new(now: Moment, export: impl FnOnce(&[u8; 32]) -> [u8; 32]) -> Self {
        let mut nonce = [0; 32];
        let failed = aws_lc_rs::rand::fill(&mut nonce).is_err();
        let exporter = export(&nonce);
        Self { nonce, issued: now.boot(), exporter, used: Arc::new(AtomicBool::new(failed)) }
    }

    /// The nonce that goes to the device.
    pub fn nonce(&self) -> &[u8; 32] {
        &self.nonce
    }

    /// Boot time at which it was made: evidence that answers it is as old as this.
    pub(super) fn issued(&self) -> Duration {
        self.issued
    }

    /// Uses it up; the first caller gets it, good or bad as his evidence may be.
    pub(super) fn spend(&self, now: Moment) -> Result<(), EvidenceError> {
        if self.used.swap(true, Ordering::AcqRel) {
            return Err(EvidenceError::Spent);
        }
        if now.since(self.issued) > CHALLENGE_TTL || now.boot() < self.issued {
            return Err(EvidenceError::Late);
        }
        Ok(())
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenge").field("issued", &self.issued).finish_non_exhaustive()
    }
}

/// The verified content.
#[derive(Debug, Clone)]
pub struct Claims {
    /// What the device says of itself, ranks cut to what a claim may have.
    pub facts: Facts,
    /// The device.
    pub device: DeviceId,
    /// Rises with every report under one session key.
    pub seq: u64,
    /// The kernel's boot id: facts of another boot are other facts.
    pub boot_id: String,
    /// SHA-256 of the JWS that first showed these facts. Reports without a change keep it, so that
    /// one record of the log explains every decision made under them.
    pub evidence_digest: Digest,
    /// SHA-256 of the facts that are not volatile ([`Facts::digest`]).
    pub facts_digest: Digest,
}

/// Why evidence is not taken. None of them tells a stranger more than what he did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The size, before anything is parsed.
    #[error("the evidence is {0} bytes long; the limit is {EVIDENCE_MAX}")]
    TooLarge(usize),
    /// Somebody answered this challenge before.
    #[error("the challenge was answered before; ask for a new one")]
    Spent,
    /// Past its 30 seconds.
    #[error("the challenge was answered too late; ask for a new one")]
    Late,
    /// A part is not in its one written form. Names the part.
    #[error("the {0} is malformed")]
    Malformed(&'static str),
    /// A soft device is the digest of its key; this key is another's.
    #[error("the device's id is not that of its key")]
    DeviceKey,
    /// The header names another algorithm, another type, or more than both.
    #[error("the header must be exactly alg ES256 and typ eat+jwt")]
    Header,
    /// The endorsement is of a kind that this broker does not judge.
    #[error("the endorsement is of an unknown kind; only soft is known")]
    EndorsementKind,
    /// The device key did not sign this session key for this nonce, connection and broker.
    #[error("the endorsement is not this device's for this connection")]
    Endorsement,
    /// The session key did not sign these claims.
    #[error("the signature of the claims does not hold")]
    Signature,
    /// A claim says something else than what the challenge, the connection or the device is.
    #[error("the claim {0} is not what it must be")]
    Claim(&'static str),
    /// Not above the last one.
    #[error("the sequence number does not rise")]
    Sequence,
    /// The device said that it had been restarted since, or its key lives on from before that.
    #[error("the boot is one that was over before")]
    Boot,
    /// It was replaced by another, or its hour is over.
    #[error("the session key is retired; make a new one")]
    SessionKey,
}

impl EvidenceError {
    /// Whether it speaks against the device: everything but an answer that came too late, or to a
    /// challenge that was answered already.
    pub fn is_contrary(&self) -> bool {
        !matches!(self, Self::Late | Self::Spent)
    }
}

/// Evidence that held, and under which session key.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) claims: Claims,
    pub(super) session: Digest,
}

/// The parties that evidence must be between.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parties<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) device_spki: &'a [u8],
    pub(super) broker: &'a str,
    /// The device's key, where a TPM holds it: the device's id is not its digest then.
    pub(super) resident: Option<Resident>,
}

/// Verifies one answer to a challenge, and uses the challenge up.
///
/// # Errors
/// The first thing that does not hold.
pub(super) fn verify(
    parties: Parties<'_>,
    challenge: &Challenge,
    evidence: &[u8],
    now: Moment,
) -> Result<Verified, EvidenceError> {
    challenge.spend(now)?;
    #[cfg(test)]
    super::faults::point();
    if evidence.len() > EVIDENCE_MAX {
        return Err(EvidenceError::TooLarge(evidence.len()));
    }
    let envelope: Envelope = read_strict_json(evidence, EVIDENCE_DEPTH)
        .map_err(|_| EvidenceError::Malformed("envelope"))?;
    let session = envelope.endorse.jwk.thumbprint();
    let point = envelope.endorse.jwk.point().ok_or(EvidenceError::Malformed("session key"))?;
    let bond = Bond {
        nonce: &challenge.nonce,
        exporter: &challenge.exporter,
        broker: parties.broker,
        device_spki: parties.device_spki,
    };
    verify_endorsement(&envelope.endorse, &session, bond)?;
    let key = Digest::of(parties.device_spki);
    if parties.resident.map_or(parties.device.0, |resident| resident.key) != key {
        return Err(EvidenceError::DeviceKey);
    }
    let payload = open(&envelope.jws, &point)?;
    compare(&payload, parties, challenge, &session)?;
    let facts_digest = payload.facts.digest();
    let claims = Claims {
        facts: payload.facts.of_tier(parties.resident.map(|resident| resident.tier)),
        device: *parties.device,
        seq: payload.seq,
        boot_id: payload.boot,
        evidence_digest: Digest::of(envelope.jws.as_bytes()),
        facts_digest,
    };
    Ok(Verified { claims, session })
}

/// D's signature over the binding of S. D is P-256, P-384 (each with its own hash) or Ed25519.
fn verify_endorsement(
    endorse: &Endorsement,
    session: &Digest,
    bond: Bond<'_>,
) -> Result<(), EvidenceError> {
    if endorse.kind != "soft" {
        return Err(EvidenceError::EndorsementKind);
    }
    let signature = decode(&endorse.sig).ok_or(EvidenceError::Malformed("endorsement"))?;
    let message = bond.message(session).ok_or(EvidenceError::Claim("aud"))?;
    let spki = SubjectPublicKeyInfoDer::from(bond.device_spki);
    let key = webpki::RawPublicKeyEntity::try_from(&spki)
        .map_err(|_| EvidenceError::Malformed("device key"))?;
    let algorithms: [&dyn SignatureVerificationAlgorithm; 3] = [
        webpki::aws_lc_rs::ECDSA_P256_SHA256,
        webpki::aws_lc_rs::ECDSA_P384_SHA384,
        webpki::aws_lc_rs::ED25519,
    ];
    // The key's own algorithm identifier admits at most one of them.
    let held = algorithms.iter().any(|a| key.verify_signature(*a, &message, &signature).is_ok());
    if held { Ok(()) } else { Err(EvidenceError::Endorsement) }
}

/// The claims inside a compact JWS, after its signature held.
fn open(jws: &str, point: &[u8; 65]) -> Result<Payload<Facts>, EvidenceError> {
    let (signed, signature) = jws.rsplit_once('.').ok_or(EvidenceError::Malformed("jws"))?;
    let (header, payload) = signed.split_once('.').ok_or(EvidenceError::Malformed("jws"))?;
    let header = decode(header).ok_or(EvidenceError::Malformed("header"))?;
    let header: Header =
        read_strict_json(&header, EVIDENCE_DEPTH).map_err(|_| EvidenceError::Header)?;
    if header.alg != "ES256" || header.typ != TYPE {
        return Err(EvidenceError::Header);
    }
    let payload = decode(payload).ok_or(EvidenceError::Malformed("payload"))?;
    let signature = decode(signature).ok_or(EvidenceError::Malformed("signature"))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &signature)
        .map_err(|_| EvidenceError::Signature)?;
    read_strict_json(&payload, EVIDENCE_DEPTH).map_err(|_| EvidenceError::Malformed("payload"))
}

/// Every claim against what is known without it.
fn compare(
    payload: &Payload<Facts>,
    parties: Parties<'_>,
    challenge: &Challenge,
    session: &Digest,
) -> Result<(), EvidenceError> {
    let is = |text: &str, want: &[u8; 32]| {
        decode(text).is_some_and(|have| verify_slices_are_equal(&have, want).is_ok())
    };
    if payload.eat_profile != PROFILE {
        return Err(EvidenceError::Claim("eat_profile"));
    }
    if DeviceId::parse(&payload.ueid).ok().as_ref() != Some(parties.device) {
        return Err(EvidenceError::Claim("ueid"));
    }
    if !is(&payload.eat_nonce, &challenge.nonce) {
        return Err(EvidenceError::Claim("eat_nonce"));
    }
    if !is(&payload.cnf.jkt, &session.0) {
        return Err(EvidenceError::Claim("cnf"));
    }
    if payload.aud != parties.broker {
        return Err(EvidenceError::Claim("aud"));
    }
    let plain = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    if payload.boot.len() > BOOT_ID_MAX || !payload.boot.bytes().all(plain) {
        return Err(EvidenceError::Claim("boot"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::posture::fact::{FactName, FactValue};
    use crate::posture::session_key::{EvidenceKey, encode};
    use rcgen::{KeyPair, PublicKeyData as _, SigningKey as _};

    const BROKER: &str = "spiffe://corp.example/doorward/broker";
    const HEADER: &str = r#"{"alg":"ES256","typ":"eat+jwt"}"#;

    fn at(s: u64) -> Moment {
        Moment::new(time::OffsetDateTime::UNIX_EPOCH, Duration::from_secs(s))
    }

    /// One device, one connection, one session key.
    struct Scene {
        d: KeyPair,
        spki: Vec<u8>,
        device: DeviceId,
        s: EvidenceKey,
        challenge: Challenge,
    }

    impl Scene {
        fn new() -> Self {
            Self::with(KeyPair::generate().unwrap())
        }

        fn with(d: KeyPair) -> Self {
            let spki = d.subject_public_key_info();
            let device = DeviceId::of_key(&spki);
            let s = EvidenceKey::generate().unwrap();
            Self { d, spki, device, s, challenge: Challenge::new(at(100), |_| [9; 32]) }
        }

        fn bond(&self) -> Bond<'_> {
            Bond {
                nonce: &self.challenge.nonce,
                exporter: &self.challenge.exporter,
                broker: BROKER,
                device_spki: &self.spki,
            }
        }

        fn signed_for(&self, bond: Bond<'_>) -> Vec<u8> {
            let mut facts = Facts::default();
            facts.state(FactName::SECUREBOOT, Ok(FactValue::Bool(true))).unwrap();
            let endorse = |message: &[u8]| self.d.sign(message).unwrap();
            let Bond { nonce, exporter, broker, device_spki } = bond;
            let signed = self.s.sign(
                self.device,
                broker,
                nonce,
                exporter,
                device_spki,
                &facts,
                "0-a",
                1,
                at(100),
                endorse,
            );
            signed.0.to_vec()
        }

        fn payload(&self) -> serde_json::Value {
            serde_json::json!({
                "eat_profile": PROFILE, "ueid": self.device.to_string(),
                "eat_nonce": encode(&self.challenge.nonce), "iat": 0,
                "cnf": {"jkt": encode(&self.s.thumbprint().0)}, "aud": BROKER, "seq": 1,
                "boot": "0-a", "facts": {"secureboot": {"v": true, "r": "kernel"}},
            })
        }

        fn forged(&self, header: &str, payload: &str) -> Vec<u8> {
            let endorse = |message: &[u8]| self.d.sign(message).unwrap();
            self.s.forge(header, payload.as_bytes(), self.bond(), endorse)
        }

        fn verify(&self, evidence: &[u8]) -> Result<Verified, EvidenceError> {
            let parties = Parties {
                device: &self.device,
                device_spki: &self.spki,
                broker: BROKER,
                resident: None,
            };
            // Each try has the same nonce and a use of its own.
            let challenge =
                Challenge { used: Arc::new(AtomicBool::new(false)), ..self.challenge.clone() };
            verify(parties, &challenge, evidence, at(101))
        }

        fn refused(&self, evidence: &[u8]) -> EvidenceError {
            self.verify(evidence).map(|held| held.claims).expect_err("it must be refused")
        }

        fn claim(&self, name: &str, value: serde_json::Value) -> EvidenceError {
            let mut payload = self.payload();
            payload[name] = value;
            self.refused(&self.forged(HEADER, &payload.to_string()))
        }
    }

    #[test]
    fn what_the_agent_signs_is_believed_under_every_kind_of_device_key() {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            let scene = Scene::with(KeyPair::generate_for(algorithm).unwrap());
            let claims = scene.verify(&scene.signed_for(scene.bond())).unwrap().claims;
            assert_eq!((claims.device, claims.seq, &*claims.boot_id), (scene.device, 1, "0-a"));
            assert_eq!(claims.facts_digest, claims.facts.digest());
        }
    }

    #[test]
    fn a_challenge_is_answered_once_and_in_time() {
        let scene = Scene::new();
        let evidence = scene.signed_for(scene.bond());
        let parties = Parties {
            device: &scene.device,
            device_spki: &scene.spki,
            broker: BROKER,
            resident: None,
        };
        let again = scene.challenge.clone();
        assert!(verify(parties, &scene.challenge, &evidence, at(130)).is_ok());
        for spent in [&scene.challenge, &again] {
            assert_eq!(
                verify(parties, spent, &evidence, at(101)).unwrap_err(),
                EvidenceError::Spent
            );
        }
        let late = Scene::new();
        let evidence = late.signed_for(late.bond());
        let parties = Parties {
            device: &late.device,
            device_spki: &late.spki,
            broker: BROKER,
            resident: None,
        };
        let error = verify(parties, &late.challenge, &evidence, at(131)).unwrap_err();
        assert_eq!(error, EvidenceError::Late);
        assert_ne!(scene.challenge.nonce(), late.challenge.nonce());
    }

    #[test]
    fn evidence_is_worth_nothing_elsewhere() {
        let scene = Scene::new();
        assert!(scene.verify(&scene.signed_for(scene.bond())).is_ok());
        let other_nonce = Bond { nonce: &[1; 32], ..scene.bond() };
        let other_connection = Bond { exporter: &[1; 32], ..scene.bond() };
        let other_broker = Bond { broker: "spiffe://evil.example/doorward/broker", ..scene.bond() };
        let other_key = Bond { device_spki: b"another", ..scene.bond() };
        for bond in [other_nonce, other_connection, other_broker, other_key] {
            assert_eq!(scene.refused(&scene.signed_for(bond)), EvidenceError::Endorsement);
        }
        let mut thief = Scene::new();
        thief.challenge = scene.challenge.clone();
        let stolen =
            thief.s.forge(HEADER, scene.payload().to_string().as_bytes(), scene.bond(), |m| {
                thief.d.sign(m).unwrap()
            });
        assert_eq!(scene.refused(&stolen), EvidenceError::Endorsement, "another device's key");
    }

    #[test]
    fn the_algorithm_is_pinned_and_the_header_brings_no_key() {
        let scene = Scene::new();
        let payload = scene.payload().to_string();
        assert!(scene.verify(&scene.forged(HEADER, &payload)).is_ok());
        for header in [
            r#"{"alg":"none","typ":"eat+jwt"}"#,
            r#"{"alg":"HS256","typ":"eat+jwt"}"#,
            r#"{"alg":"ES384","typ":"eat+jwt"}"#,
            r#"{"alg":"es256","typ":"eat+jwt"}"#,
            r#"{"alg":"ES256","typ":"JWT"}"#,
            r#"{"alg":"ES256"}"#,
            r#"{"alg":"ES256","typ":"eat+jwt","jwk":{}}"#,
            r#"{"alg":"ES256","typ":"eat+jwt","jku":"https://evil.example"}"#,
            r#"{"alg":"ES256","typ":"eat+jwt","x5c":[]}"#,
            r#"{"alg":"ES256","typ":"eat+jwt","crit":[]}"#,
            r#"{"alg":"ES256","typ":"eat+jwt","kid":"1"}"#,
            r#"{"alg":"none","alg":"ES256","typ":"eat+jwt"}"#,
        ] {
            assert_eq!(
                scene.refused(&scene.forged(header, &payload)),
                EvidenceError::Header,
                "{header}"
            );
        }
    }

    #[test]
    fn each_claim_must_say_what_is_known_anyway() {
        let scene = Scene::new();
        let evidence = scene.forged(HEADER, &scene.payload().to_string());
        assert!(scene.verify(&evidence).is_ok());
        let other = DeviceId::of_key(b"another").to_string();
        for (name, value) in [
            ("eat_profile", "tag:doorward,2026:posture/2"),
            ("ueid", other.as_str()),
            ("eat_nonce", "AAAA"),
            ("aud", "spiffe://corp.example/doorward/other"),
            ("boot", "../../etc"),
        ] {
            assert_eq!(scene.claim(name, value.into()), EvidenceError::Claim(name));
        }
        let cnf = serde_json::json!({"jkt": encode(&[0; 32])});
        assert_eq!(scene.claim("cnf", cnf), EvidenceError::Claim("cnf"));
        for (name, value) in [
            ("seq", serde_json::json!(-1)),
            ("seq", serde_json::json!(1.5)),
            ("seq", serde_json::json!("1")),
            ("facts", serde_json::json!({"secureboot": {"v": "true", "r": "kernel"}})),
            ("facts", serde_json::json!([])),
        ] {
            assert_eq!(scene.claim(name, value), EvidenceError::Malformed("payload"), "{name}");
        }
        let huge = scene.payload().to_string().replace("\"seq\":1", "\"seq\":18446744073709551616");
        let huge = scene.refused(&scene.forged(HEADER, &huge));
        assert_eq!(huge, EvidenceError::Malformed("payload"));
    }

    #[test]
    fn the_payload_has_single_keys_and_little_depth_even_where_nobody_listens() {
        let scene = Scene::new();
        let payload = scene.payload().to_string();
        let with =
            |more: &str| scene.forged(HEADER, &payload.replacen('{', &format!("{{{more},"), 1));
        let nested = |n: usize| format!(r#""x":{}{}"#, "[".repeat(n), "]".repeat(n));
        assert!(
            scene.verify(&with(r#""x":{"y":1}"#)).is_ok(),
            "an unknown claim is signed, not heard"
        );
        assert!(scene.verify(&with(&nested(EVIDENCE_DEPTH - 1))).is_ok());
        for bad in [r#""seq":0"#, r#""x":1,"x":1"#, r#""x":{"y":1,"y":1}"#, &nested(EVIDENCE_DEPTH)]
        {
            assert_eq!(scene.refused(&with(bad)), EvidenceError::Malformed("payload"), "{bad}");
        }
    }

    #[test]
    fn the_envelope_is_strict_and_its_signatures_are_looked_at() {
        let scene = Scene::new();
        let good = String::from_utf8(scene.signed_for(scene.bond())).unwrap();
        assert!(scene.verify(good.as_bytes()).is_ok());
        let malformed = |text: String| {
            let error = scene.refused(text.as_bytes());
            assert!(matches!(error, EvidenceError::Malformed(_)), "{error:?}: {text}");
        };
        malformed(String::new());
        malformed(good.replacen('{', r#"{"x":1,"#, 1));
        malformed(good.replacen('{', r#"{"jws":"","#, 1));
        malformed(good.replace("\"crv\"", "\"d\":\"AA\",\"crv\""));
        malformed(good.replace("P-256", "P-384"));
        malformed(good.replace("\"jws\":\"", "\"jws\":\"="));
        malformed(good.replace("\"sig\":\"", "\"sig\":\"="));
        let tpm = good.replace("\"soft\"", "\"tpm2-quote\"");
        assert_eq!(scene.refused(tpm.as_bytes()), EvidenceError::EndorsementKind);
        let mut envelope: Envelope = serde_json::from_str(&good).unwrap();
        let whole = envelope.jws.clone();
        let parts: Vec<&str> = whole.split('.').collect();
        let other = encode(scene.payload().to_string().replace("true", "false").as_bytes());
        envelope.jws = format!("{}.{other}.{}", parts[0], parts[2]);
        let swapped = serde_json::to_vec(&envelope).unwrap();
        assert_eq!(scene.refused(&swapped), EvidenceError::Signature);
        envelope.jws = format!("{}.{}.", parts[0], parts[1]);
        let unsigned = serde_json::to_vec(&envelope).unwrap();
        assert_eq!(scene.refused(&unsigned), EvidenceError::Signature);
    }

    #[test]
    fn size_comes_before_parsing() {
        let scene = Scene::new();
        let mut evidence = scene.signed_for(scene.bond());
        evidence.resize(EVIDENCE_MAX, b' ');
        assert!(scene.verify(&evidence).is_ok());
        evidence.push(b' ');
        assert_eq!(scene.refused(&evidence), EvidenceError::TooLarge(EVIDENCE_MAX + 1));
        let ten = vec![b'['; 10 << 20];
        assert_eq!(scene.refused(&ten), EvidenceError::TooLarge(10 << 20));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_and_any_change_are_refused_without_a_panic(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            at in 0usize..1200, flip in 1u8..=255,
        ) {
            let scene = Scene::new();
            proptest::prop_assert!(scene.verify(&bytes).is_err());
            let mut evidence = scene.signed_for(scene.bond());
            let at = at % evidence.len();
            evidence[at] ^= flip;
            proptest::prop_assert!(scene.verify(&evidence).is_err(), "byte {at}");
        }
    }
}
