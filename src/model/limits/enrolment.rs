//! The bounds of enrolment beside join tokens.

use std::time::Duration;

/// Certificates in a device's chain at enrolment: its own and four intermediates.
pub const DEVICE_CHAIN_MAX: usize = 5;
/// The proof of possession of a device certificate, in bytes: a chain of ordinary ones in base64,
/// twice over. It must fit the enrolment port's window.
pub const DEVICE_PROOF_MAX: usize = 32 * 1024;
/// Proofs a second of one network: each is judged before anything is decided.
pub const PROOFS_RATE: u32 = 64;
/// A Kubernetes service account token, in bytes; an ordinary one has 1,200.
pub const POD_TOKEN_MAX: usize = 8 * 1024;
/// The longest life of such a token: tokens that a cluster extends live a year, and are no proof.
pub const POD_TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Another organisation's clock may be this much ahead of ours, for `nbf` and `iat` of such a token.
pub const POD_TOKEN_SKEW: Duration = Duration::from_secs(60);
/// The key set of one cluster, in bytes, and the keys that are looked at.
pub const JWKS_MAX: usize = 256 * 1024;
/// Keys of one cluster: old, present and coming ones, several times over.
pub const JWKS_KEYS_MAX: usize = 64;
/// Methods of enrolment of one kind in a broker's configuration.
pub const ENROL_METHODS_MAX: usize = 16;
/// Service accounts that one such method lets in.
pub const SERVICE_ACCOUNTS_MAX: usize = 64;
/// Tokens of pods that were spent and have not ended by themselves: each is a row and a place in
/// memory.
pub const POD_TOKENS_MAX: usize = 16 * 1024;
/// Shortest life of a device's certificate that a method may ask for.
pub const AGENT_TTL_MIN: Duration = Duration::from_secs(5 * 60);
