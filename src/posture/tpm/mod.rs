//! TPM 2.0, the verifier's side: what a TPM says, and how much of it holds.
//!
//! Pure and total: no I/O, no TPM, no clock, nothing foreign is allocated without a bound, and no
//! bytes panic. The agent speaks with its TPM by the same structures (`agent/tpm/`).
#![forbid(unsafe_code)]

mod attest;
mod bytes;
mod credential;
mod ek;
mod proof;
mod public;
#[cfg(test)]
mod vectors;
mod verify;

pub use attest::{Attest, Attested, Counters, Selection, ecdsa_p256};
pub use bytes::{Malformed, Reader, Writer};
pub use credential::{Credential, CredentialError};
pub use ek::{EkError, EkRoots, EkRootsError};
pub use proof::{Certified, TpmProof, TpmProofError, tpm_statement};
pub use public::{NameHash, Public, PublicKey, Template, alg};
pub use verify::{AttestError, AttestationKey, PcrValues};
