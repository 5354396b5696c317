//! The bounds of what is read from a TPM, or of what somebody says that one has made.

use std::time::Duration;

/// A response of a TPM, in bytes: a header at least; nothing that is asked for here is longer.
pub const TPM_MESSAGE: std::ops::RangeInclusive<usize> = 10..=8192;
/// A TPM's public area, in bytes: an RSA key of 2048 bits has 314.
pub const TPM_PUBLIC_MAX: usize = 512;
/// What a TPM signs about itself, in bytes: a quote has 145.
pub const TPM_ATTEST_MAX: usize = 1024;
/// A signature with its algorithm, in bytes: ECDSA on P-256 has 72.
pub const TPM_SIGNATURE_MAX: usize = 128;
/// Banks of a selection of PCRs.
pub const PCR_BANKS_MAX: usize = 16;
/// A certificate of an endorsement key, in bytes; the space that a TPM has for one.
pub const EK_CERTIFICATE_MAX: usize = 4096;
/// Certificates beside that of the endorsement key: its issuers without the root.
pub const EK_ISSUERS_MAX: usize = 4;
/// What a machine shows at enrolment by its TPM, in bytes: a certificate and five structures, in
/// base64. It must fit the enrolment port's window.
pub const TPM_PROOF_MAX: usize = 16 * 1024;
/// What comes out of a credential, in bytes.
pub const TPM_OPENED_MAX: usize = 64;
/// How long a machine may take to open one: a slow chip makes its key anew before.
pub const TPM_OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// Endorsement keys that one method lets in by name.
pub const EK_LIST_MAX: usize = 65_536;
/// Commands that wait for one TPM: each takes up to a second, and nobody waits for many.
pub const TPM_QUEUE: usize = 16;
