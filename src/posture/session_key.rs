//! The agent's session key S: what signs reports, and how the device key D vouches for it.
//!
//! S is a P-256 key in memory, replaced at least hourly. D never signs facts; it signs one binding
//! of S to this nonce, this TLS connection, this broker and D itself, so that evidence is worth
//! nothing anywhere else. The agent must sign only for connections that it opened itself.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::fact::Facts;
use crate::model::{DeviceId, Digest, Moment};

/// What the claims follow (RFC 9711 `eat_profile`).
pub(super) const PROFILE: &str = "tag:doorward,2026:posture/1";
/// The JOSE header's type (RFC 9782).
pub(super) const TYPE: &str = "eat+jwt";
/// First bytes of what D signs; nothing else that D ever signs begins like this.
const LABEL: &[u8] = b"doorward-posture-endorsement-1\0";

/// The public half of S as a JWK (RFC 7517): exactly these four members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Jwk {
    pub(super) crv: String,
    pub(super) kty: String,
    pub(super) x: String,
    pub(super) y: String,
}

impl Jwk {
    /// The uncompressed point, `04 ‖ x ‖ y`; `None` unless it is a P-256 key in its one written
    /// form.
    pub(super) fn point(&self) -> Option<[u8; 65]> {
        if self.crv != "P-256" || self.kty != "EC" {
            return None;
        }
        let mut point = [4; 65];
        let (x, y) = point.get_mut(1..)?.split_at_mut(32);
        x.copy_from_slice(decode(&self.x).filter(|x| x.len() == 32)?.as_slice());
        y.copy_from_slice(decode(&self.y).filter(|y| y.len() == 32)?.as_slice());
        Some(point)
    }

    /// RFC 7638: SHA-256 over the members in their order.
    pub(super) fn thumbprint(&self) -> Digest {
        // The struct's fields stand in the order of the standard.
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    fn of_point(point: &[u8]) -> Option<Self> {
        let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
        Some(Self { crv: "P-256".into(), kty: "EC".into(), x: encode(x), y: encode(y) })
    }
}

/// Vouches for S.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Endorsement {
    /// What D is: `soft`, a key in a file.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) jwk: Jwk,
    pub(super) sig: String,
}

/// The frame's body.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Envelope {
    pub(super) jws: String,
    pub(super) endorse: Endorsement,
}

/// The JOSE header: nothing but these two, so that no key and no address can come in by it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) typ: String,
}

/// Confirmation (RFC 7800): whose signature this is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Confirmation {
    pub(super) jkt: String,
}

/// The EAT claims. Others may stand beside them; they are signed and not heard.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Payload<F> {
    pub(super) eat_profile: String,
    pub(super) ueid: String,
    pub(super) eat_nonce: String,
    /// The device's own wall clock; for people, never for trust.
    pub(super) iat: i64,
    pub(super) cnf: Confirmation,
    pub(super) aud: String,
    pub(super) seq: u64,
    pub(super) boot: String,
    pub(super) facts: F,
}

/// What a report is bound to, besides S.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bond<'a> {
    pub(super) nonce: &'a [u8; 32],
    pub(super) exporter: &'a [u8; 32],
    pub(super) broker: &'a str,
    pub(super) device_spki: &'a [u8],
}

impl Bond<'_> {
    /// label ‖ nonce ‖ exporter ‖ u16 length + broker id ‖ SHA-256(SPKI of D) ‖ thumbprint of S.
    /// `None` if the broker's id has no u16 length.
    pub(super) fn message(&self, session: &Digest) -> Option<Vec<u8>> {
        let length = u16::try_from(self.broker.len()).ok()?;
        let mut message = LABEL.to_vec();
        message.extend_from_slice(self.nonce);
        message.extend_from_slice(self.exporter);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(self.broker.as_bytes());
        message.extend_from_slice(&Digest::of(self.device_spki).0);
        message.extend_from_slice(&session.0);
        Some(message)
    }
}

/// Base64url without padding (RFC 7515 §2).
pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The same back; padding, other alphabets and stray trailing bits are refused.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// The system gave no randomness for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no session key could be made: the system's random numbers failed")]
pub struct EvidenceKeyError;

/// The agent's side: the session key S, in memory only. No `Debug`, no `Clone`.
pub struct EvidenceKey {
    pair: EcdsaKeyPair,
    jwk: Jwk,
}

/// Signed evidence, ready to send: `{"jws":"…","endorse":{…}}`.
pub struct Signed(pub Zeroizing<Vec<u8>>);

impl EvidenceKey {
    /// A fresh key. Replace it after [`crate::model::limits::SESSION_KEY_LIFE`]: the broker stops
    /// listening to it soon after. `seq` starts anywhere with a new key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, EvidenceKeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| EvidenceKeyError)?;
        let jwk = Jwk::of_point(pair.public_key().as_ref()).ok_or(EvidenceKeyError)?;
        Ok(Self { pair, jwk })
    }

    /// Signs one report. `nonce` and `exporter` are those of a connection that the agent itself
    /// opened; `endorse` signs the bytes that it is given with the device key (ECDSA in ASN.1 form
    /// with the curve's own hash, or Ed25519). `seq` rises with each report under this key. If
    /// signing fails nothing comes out, and the broker refuses that.
    #[allow(clippy::too_many_arguments)] // each is one bond of the evidence
    pub fn sign(
        &self,
        device: DeviceId,
        broker_id: &str,
        nonce: &[u8; 32],
        exporter: &[u8; 32],
        device_spki: &[u8],
        facts: &Facts,
        boot_id: &str,
        seq: u64,
        now: Moment,
        endorse: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Signed {
        let payload = Payload {
            eat_profile: PROFILE.to_owned(),
            ueid: device.to_string(),
            eat_nonce: encode(nonce),
            iat: now.unix_s(),
            cnf: Confirmation { jkt: encode(&self.jwk.thumbprint().0) },
            aud: broker_id.to_owned(),
            seq,
            boot: boot_id.to_owned(),
            facts,
        };
        let bond = Bond { nonce, exporter, broker: broker_id, device_spki };
        Signed(Zeroizing::new(self.envelope(&payload, bond, endorse).unwrap_or_default()))
    }

    fn envelope(
        &self,
        payload: &Payload<&Facts>,
        bond: Bond<'_>,
        endorse: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Option<Vec<u8>> {
        let header = Header { alg: "ES256".to_owned(), typ: TYPE.to_owned() };
        let jws =
            self.compact(&serde_json::to_vec(&header).ok()?, &serde_json::to_vec(payload).ok()?)?;
        let message = bond.message(&self.jwk.thumbprint())?;
        let endorse = Endorsement {
            kind: "soft".to_owned(),
            jwk: self.jwk.clone(),
            sig: encode(&endorse(&message)),
        };
        serde_json::to_vec(&Envelope { jws, endorse }).ok()
    }

    /// RFC 7515 §7.1.
    fn compact(&self, header: &[u8], payload: &[u8]) -> Option<String> {
        let mut jws = format!("{}.{}", encode(header), encode(payload));
        let signature = self.pair.sign(&SystemRandom::new(), jws.as_bytes()).ok()?;
        jws.push('.');
        jws.push_str(&encode(signature.as_ref()));
        Some(jws)
    }

    /// For tests of refusals: any header and payload under a genuine signature and endorsement.
    #[cfg(test)]
    pub(super) fn forge(
        &self,
        header: &str,
        payload: &[u8],
        bond: Bond<'_>,
        endorse: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Vec<u8> {
        let jws = self.compact(header.as_bytes(), payload).unwrap();
        let message = bond.message(&self.jwk.thumbprint()).unwrap();
        let sig = encode(&endorse(&message));
        let endorse = Endorsement { kind: "soft".into(), jwk: self.jwk.clone(), sig };
        serde_json::to_vec(&Envelope { jws, endorse }).unwrap()
    }

    /// For tests: the thumbprint that `cnf` names.
    #[cfg(test)]
    pub(super) fn thumbprint(&self) -> Digest {
        self.jwk.thumbprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_7638() {
        let jwk = Jwk {
            crv: "P-256".into(),
            kty: "EC".into(),
            x: "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4".into(),
            y: "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM".into(),
        };
        assert!(jwk.point().is_some());
        let text = r#"{"crv":"P-256","kty":"EC","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;
        assert_eq!(jwk.thumbprint(), Digest::of(text.as_bytes()));
        assert!(Jwk { crv: "P-384".into(), ..jwk.clone() }.point().is_none());
        assert!(Jwk { x: jwk.x[1..].into(), ..jwk.clone() }.point().is_none());
        assert!(Jwk { x: format!("{}=", jwk.x), ..jwk.clone() }.point().is_none());
        assert!(
            serde_json::from_str::<Jwk>(&text.replace("{\"crv\"", "{\"d\":\"AA\",\"crv\""))
                .is_err()
        );
    }

    #[test]
    fn base64url_has_one_form() {
        assert_eq!(decode("-_8").as_deref(), Some(&[0xfb, 0xff][..]));
        for bad in ["-_8=", "+/8", "-_9", "-_8\n", " -_8", "a"] {
            assert!(decode(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn the_binding_separates_what_is_not_of_fixed_size() {
        let session = Digest::of(b"s");
        let bond = |broker| Bond { nonce: &[1; 32], exporter: &[2; 32], broker, device_spki: b"d" };
        let message = bond("spiffe://d/doorward/broker").message(&session).unwrap();
        assert_eq!(message.len(), LABEL.len() + 32 + 32 + 2 + 26 + 32 + 32);
        assert_ne!(bond("ab").message(&session), bond("a").message(&session));
        assert!(bond(&"b".repeat(65_536)).message(&session).is_none());
    }
}
