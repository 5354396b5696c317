//! What an attestation key vouches for: the state of PCRs, and other keys of the same TPM.
//!
//! The key is the one that was enrolled, by its public area: a statement names its signer only by a
//! qualified name, which says less. The signature comes first; then everything that was signed is
//! compared with what was asked for. A TPM in software signs exactly the same: what kind of TPM it
//! is, only the roots of its endorsement certificate tell.

use std::collections::BTreeMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};

use super::attest::{Attest, Attested, Counters, ecdsa_p256};
use super::bytes::Malformed;
use super::public::{Public, alg};
use crate::model::Digest;

/// Why a statement is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The key is not one that may vouch.
    #[error("the key is no attestation key: it must be restricted, resident and on P-256")]
    Key,
    /// The attestation key did not sign this.
    #[error("the attestation key did not sign this")]
    Signature,
    /// The bytes.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A quote where a certified key was wanted, or the other way round.
    #[error("the statement is of another kind than was asked for")]
    Kind,
    /// It answers another question, on another connection, or of another time.
    #[error("the statement is not about what was asked")]
    Extra,
    /// Other PCRs than were asked for, or others beside them.
    #[error("the quote is not about the registers that were asked for")]
    Selection,
    /// The values beside it are not those that were quoted.
    #[error("the values of the registers are not those that were quoted")]
    Values,
    /// Another object was certified.
    #[error("another key was certified")]
    Name,
}

/// An attestation key whose statements are believed.
#[derive(Debug)]
pub struct AttestationKey {
    key: ParsedPublicKey,
    name: Vec<u8>,
}

/// Values of PCRs of the SHA-256 bank.
pub type PcrValues = BTreeMap<u8, [u8; 32]>;

impl AttestationKey {
    /// From the public area that was enrolled.
    ///
    /// # Errors
    /// [`AttestError::Key`] when its TPM would let it sign anything else, or it is no point.
    pub fn new(public: &Public) -> Result<Self, AttestError> {
        if !public.is_attestation_key() {
            return Err(AttestError::Key);
        }
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public.spki());
        Ok(Self { key: key.map_err(|_| AttestError::Key)?, name: public.name() })
    }

    /// Its name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// That the TPM quoted exactly these registers with these values, for this `extra`; what its
    /// counters were then. Whether they may follow those of before is for whoever remembers them.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn quoted(
        &self,
        attest: &[u8],
        signature: &[u8],
        extra: &Digest,
        values: &PcrValues,
    ) -> Result<Counters, AttestError> {
        let statement = self.signed(attest, signature, extra)?;
        let Attested::Quote { selection, digest } = &statement.attested else {
            return Err(AttestError::Kind);
        };
        let bits = values
            .keys()
            .try_fold(0_u32, |bits, pcr| 1_u32.checked_shl(u32::from(*pcr)).map(|bit| bits | bit));
        let asked = bits.filter(|bits| *bits != 0).map(|bits| [(alg::SHA256, bits)]);
        if asked.is_none_or(|asked| selection.as_slice() != asked) {
            return Err(AttestError::Selection);
        }
        let all: Vec<u8> = values.values().flatten().copied().collect();
        match verify_slices_are_equal(digest, &Digest::of(&all).0) {
            Ok(()) => Ok(statement.counters),
            Err(_) => Err(AttestError::Values),
        }
    }

    /// That this key is in the same TPM, for this `extra`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn certified(
        &self,
        attest: &[u8],
        signature: &[u8],
        extra: &Digest,
        key: &Public,
    ) -> Result<Counters, AttestError> {
        let statement = self.signed(attest, signature, extra)?;
        let Attested::Certify { name } = statement.attested else {
            return Err(AttestError::Kind);
        };
        match verify_slices_are_equal(name, &key.name()) {
            Ok(()) => Ok(statement.counters),
            Err(_) => Err(AttestError::Name),
        }
    }

    fn signed<'a>(
        &self,
        attest: &'a [u8],
        signature: &[u8],
        extra: &Digest,
    ) -> Result<Attest<'a>, AttestError> {
        let signature = ecdsa_p256(signature)?;
        self.key.verify_sig(attest, &signature).map_err(|_| AttestError::Signature)?;
        let statement = Attest::parse(attest)?;
        match verify_slices_are_equal(statement.extra, &extra.0) {
            Ok(()) => Ok(statement),
            Err(_) => Err(AttestError::Extra),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::Writer;
    use super::super::vectors::vector;
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    fn ak() -> AttestationKey {
        AttestationKey::new(&Public::parse(&vector("ak")).unwrap()).unwrap()
    }

    fn zeros(pcrs: &[u8]) -> PcrValues {
        pcrs.iter().map(|pcr| (*pcr, [0; 32])).collect()
    }

    fn extra() -> Digest {
        Digest::of(b"extra")
    }

    /// A key of ours that looks like an attestation key: it signs whatever a test wants.
    struct Forger(EcdsaKeyPair, AttestationKey);

    impl Forger {
        fn new() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let mut area = vector("ak");
            let at = area.len() - 68;
            let point = pair.public_key().as_ref();
            area[at + 2..at + 34].copy_from_slice(&point[1..33]);
            area[at + 36..].copy_from_slice(&point[33..]);
            let key = AttestationKey::new(&Public::parse(&area).unwrap()).unwrap();
            Self(pair, key)
        }

        fn sign(&self, attest: &[u8]) -> Vec<u8> {
            let signature = self.0.sign(&SystemRandom::new(), attest).unwrap();
            let (r, s) = signature.as_ref().split_at(32);
            Writer::default().u16(0x18).u16(0x0b).sized(r).sized(s).done()
        }

        fn quoted(&self, attest: &[u8]) -> Result<Counters, AttestError> {
            let values = zeros(&[0, 2, 4, 7, 10]);
            self.1.quoted(attest, &self.sign(attest), &extra(), &values)
        }
    }

    #[test]
    fn a_quote_of_swtpm_holds_for_what_was_asked_and_nothing_else() {
        let (quote, signature) = (vector("quote"), vector("quote_sig"));
        let values = zeros(&[0, 2, 4, 7, 10]);
        let counters = ak().quoted(&quote, &signature, &extra(), &values).unwrap();
        assert_eq!(counters.resets, 2);
        let error = |extra, values: &PcrValues| {
            ak().quoted(&quote, &signature, &extra, values).unwrap_err()
        };
        assert_eq!(error(Digest::of(b"other"), &values), AttestError::Extra);
        for pcrs in [&[0, 2, 4, 7][..], &[0, 2, 4, 7, 10, 11], &[1, 2, 4, 7, 10], &[], &[200]] {
            assert_eq!(error(extra(), &zeros(pcrs)), AttestError::Selection, "{pcrs:?}");
        }
        let mut relabelled = values.clone();
        relabelled.insert(7, [1; 32]);
        assert_eq!(error(extra(), &relabelled), AttestError::Values);
        let certify = vector("certify");
        let key = Public::parse(&vector("key")).unwrap();
        assert_eq!(
            ak().quoted(&certify, &vector("certify_sig"), &extra(), &values).unwrap_err(),
            AttestError::Kind
        );
        assert_eq!(
            ak().certified(&quote, &signature, &extra(), &key).unwrap_err(),
            AttestError::Kind
        );
    }

    #[test]
    fn a_certified_key_is_that_key() {
        let (certify, signature) = (vector("certify"), vector("certify_sig"));
        let key = Public::parse(&vector("key")).unwrap();
        ak().certified(&certify, &signature, &extra(), &key).unwrap();
        let other = Public::parse(&vector("ak")).unwrap();
        let wrong = |key: &Public, extra: &Digest| {
            ak().certified(&certify, &signature, extra, key).unwrap_err()
        };
        assert_eq!(wrong(&other, &extra()), AttestError::Name);
        assert_eq!(wrong(&key, &Digest::of(b"other")), AttestError::Extra);
        // Of the same area but one attribute: the name is another.
        let mut loose = vector("key");
        loose[7] &= !2;
        assert_eq!(wrong(&Public::parse(&loose).unwrap(), &extra()), AttestError::Name);
    }

    #[test]
    fn each_bit_of_what_was_signed_counts() {
        let (quote, signature) = (vector("quote"), vector("quote_sig"));
        let values = zeros(&[0, 2, 4, 7, 10]);
        let key = ak();
        for at in 0..quote.len() {
            let mut bad = quote.clone();
            bad[at] ^= 1;
            let error = key.quoted(&bad, &signature, &extra(), &values).unwrap_err();
            assert_eq!(error, AttestError::Signature, "{at}");
        }
        for end in 0..quote.len() {
            assert!(key.quoted(&quote[..end], &signature, &extra(), &values).is_err());
        }
        for at in 0..signature.len() {
            let mut bad = signature.clone();
            bad[at] ^= 1;
            assert!(key.quoted(&quote, &bad, &extra(), &values).is_err(), "{at}");
        }
        assert_eq!(
            Forger::new().1.quoted(&quote, &signature, &extra(), &values).unwrap_err(),
            AttestError::Signature,
            "another key"
        );
    }

    #[test]
    fn a_signature_alone_is_not_enough() {
        let forger = Forger::new();
        assert!(forger.quoted(&vector("quote")).is_ok(), "control");
        let changed = |at: usize, byte: u8| {
            let mut bad = vector("quote");
            bad[at] = byte;
            forger.quoted(&bad)
        };
        // CVE-2024-29038: a magic that no TPM made; CVE-2024-29039: registers called otherwise.
        assert_eq!(changed(0, 0), Err(AttestError::Malformed(Malformed("magic"))));
        assert_eq!(changed(5, 0x16), Err(AttestError::Malformed(Malformed("type"))));
        let at = vector("quote").len() - 34 - 3;
        assert_eq!(changed(at, 0x96), Err(AttestError::Selection));
        let trailed = [&vector("quote")[..], &[0]].concat();
        assert_eq!(forger.quoted(&trailed), Err(AttestError::Malformed(Malformed("end"))));
        // The same registers in another bank, and in two.
        assert_eq!(changed(at - 2, 0x04), Err(AttestError::Selection));
        let quote = vector("quote");
        let (head, digest) = quote.split_at(at - 3 - 4);
        let twice = [head, &[0, 0, 0, 2], &digest[4..10], &digest[4..10], &digest[10..]].concat();
        assert_eq!(forger.quoted(&twice), Err(AttestError::Selection));
    }

    #[test]
    fn keys_that_sign_anything_vouch_for_nothing() {
        for name in ["key", "ek_p256", "ek_p384", "ek_rsa2048"] {
            let public = Public::parse(&vector(name)).unwrap();
            assert_eq!(AttestationKey::new(&public).unwrap_err(), AttestError::Key, "{name}");
        }
        let mut off_curve = vector("ak");
        *off_curve.last_mut().unwrap() ^= 1;
        let public = Public::parse(&off_curve).unwrap();
        assert_eq!(AttestationKey::new(&public).unwrap_err(), AttestError::Key);
    }
}
