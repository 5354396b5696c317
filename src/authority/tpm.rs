//! Machines that enrol by their TPM: what they show is weighed, and then a credential decides.
//!
//! A chain to a maker's root, or a name on a list, says that there is such a TPM; what its
//! attestation key certified says that the device key is in some TPM; and only that the applicant
//! opens a credential, made for exactly these two keys, says that all of it is one machine, and this
//! one. Nothing is stored between the two: the secret lives as long as the request.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::methods::{Admission, Brought};
use super::room::Authority;
use crate::identity::{Caller, CallerKind};
use crate::model::{
    Digest, EkKind, EnrolBy, EnrolledBy, Moment, Proven, SecretValue, Shown, TpmTier, TrustDomain,
};
use crate::posture::tpm::{Certified, Credential, EkError, EkRoots, TpmProof};

/// One set of TPMs that are let in.
#[derive(Debug, Clone)]
pub struct TpmMethod {
    /// Those that a maker under these roots has certified, by their keys of one kind: of several
    /// kinds one TPM would be as many devices.
    pub roots: Option<(EkRoots, EkKind)>,
    /// Those of these endorsement keys: SHA-256 of the SubjectPublicKeyInfo.
    pub keys: BTreeSet<Digest>,
    /// What stands behind them.
    pub tier: TpmTier,
}

impl TpmMethod {
    /// Whether one TPM could come in by both, with a key of another kind each.
    pub fn is_two_with(&self, other: &Self) -> bool {
        let (Some((roots, kind)), Some((others, other))) = (&self.roots, &other.roots) else {
            return false;
        };
        kind != other && roots.keys().any(|key| others.keys().any(|it| it == key))
    }

    fn takes(&self, it: &Certified, proof: &TpmProof, now: Moment) -> Result<(), EkError> {
        if self.keys.contains(&Digest::of(&it.ek.spki())) {
            return Ok(());
        }
        let Some((roots, kind)) = &self.roots else { return Err(EkError::Missing) };
        if it.ek.key().kind() != *kind {
            return Err(EkError::Missing);
        }
        let chain: Vec<_> =
            proof.certificate.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        roots.verify(&it.ek, &chain, now)
    }
}

/// A proof that holds if the applicant opens this.
#[derive(Debug)]
pub struct Weighed {
    /// What the applicant must open.
    pub credential: Credential,
    secret: Zeroizing<[u8; 32]>,
    proven: Proven,
}

impl Weighed {
    /// What it came to: `opened` is what the applicant says was in the credential.
    pub fn settle(self, opened: Option<&SecretValue>) -> Shown {
        let Some(opened) = opened else { return fault("no_answer") };
        match verify_slices_are_equal(opened.expose(), self.secret.as_slice()) {
            Ok(()) => Shown::Proven(Arc::new(self.proven)),
            Err(_) => fault("credential"),
        }
    }
}

fn fault(word: &'static str) -> Shown {
    Shown::Fault(EnrolBy::Tpm, word)
}

impl Authority {
    /// Weighs what an applicant shows of its TPM, and makes the credential that decides.
    ///
    /// # Errors
    /// What it showed, where that does not hold already.
    pub fn weigh(
        &self,
        caller: &Caller,
        body: Option<&SecretValue>,
        exporter: Option<&[u8; 32]>,
        now: Moment,
    ) -> Result<Weighed, Shown> {
        let spki = caller.spki().filter(|_| caller.kind() == CallerKind::Applicant);
        let spki = spki.ok_or_else(|| fault("no_key"))?;
        if !self.methods.take(EnrolBy::Tpm) {
            return Err(fault("no_method"));
        }
        let body = body.ok_or_else(|| fault("no_body"))?;
        let brought = Brought { body, exporter, spki };
        weigh(&self.methods.tpm, brought, &self.domain, now).map_err(fault)
    }

    /// What a credential came to, as [`Self::examine`] tells of other proofs.
    pub fn settled(&self, shown: Shown, now: Moment) -> Shown {
        self.tempered(shown, now)
    }
}

fn weigh(
    methods: &[(Admission, TpmMethod)],
    brought: Brought<'_>,
    domain: &TrustDomain,
    now: Moment,
) -> Result<Weighed, &'static str> {
    let exporter = brought.exporter.ok_or("no_exporter")?;
    let proof = TpmProof::read(brought.body.expose()).map_err(|error| error.word())?;
    let certified =
        proof.certified(exporter, brought.spki, domain).map_err(|error| error.word())?;
    let mut worst = EkError::Missing;
    for (admission, method) in methods {
        match method.takes(&certified, &proof, now) {
            Ok(()) => return challenge(admission, method, &certified),
            // Of several methods, the one that has roots to judge by says what is wrong.
            Err(EkError::Missing) => {}
            Err(error) => worst = error,
        }
    }
    Err(match worst {
        EkError::Missing => "unknown_key",
        EkError::TooLarge | EkError::Form => "certificate",
        EkError::KeyOfAnother => "key_of_another",
        EkError::Purpose => "purpose",
        EkError::Chain => "unknown_issuer",
    })
}

fn challenge(
    admission: &Admission,
    method: &TpmMethod,
    certified: &Certified,
) -> Result<Weighed, &'static str> {
    let mut secret = Zeroizing::new([0; 32]);
    rand::fill(secret.as_mut_slice()).map_err(|_| "no_randomness")?;
    let (ek, ak) = (&certified.ek, &certified.attestation_key);
    let credential = Credential::make(ek, &ak.name(), &secret).map_err(|_| "endorsement_key")?;
    let by = EnrolledBy::Tpm {
        method: admission.name.clone(),
        ek: Digest::of(&ek.spki()),
        attestation_key: hex::encode(ak.bytes()),
        tier: method.tier,
    };
    Ok(Weighed { credential, secret, proven: admission.proven(by, None) })
}
