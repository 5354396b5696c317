//! The machine's own TPM: commands to it, and the keys that it holds for the agent.
//!
//! Pure Rust over a character device or a socket; no library of the TCG's stack. One thread speaks
//! with one TPM: a chip takes tenths of a second for a signature, and no task of the runtime waits
//! for that on a worker. What comes back is bounded and parsed as strictly as at the broker; a TPM
//! behind a socket may be anybody's.

mod commands;
mod device;
mod error;
mod keys;
mod link;
mod place;
mod thread;

pub use commands::Signed;
pub use device::{TpmKey, signing_key};
pub use error::TpmError;
pub use link::Link;
pub use place::{Place, PlaceError};

#[cfg(test)]
#[allow(dead_code)] // tests of the whole use the rest
mod swtpm;
#[cfg(test)]
mod tests;
