//! Who asks. The only room that makes a [`Peer`] and a [`Caller`].
//!
//! A `Peer` is what stood on the wire: a verified X.509-SVID, an applicant's self-signed key, or
//! one of the broker's own tasks. A `Caller` is that peer as it stands *now*; an expired, revoked
//! or unknown one is a value, not an error, so that it ends in a recorded denial. This room holds
//! an immutable [`View`] that authority pushes into it; it reads no store.

mod applicant;
mod caller;
mod certificate;
mod der;
#[cfg(test)]
mod draft;
mod extension;
mod key;
mod peer;
mod place;
#[cfg(test)]
pub(crate) mod sample;
mod standing;
mod svid_error;
mod trust;
#[cfg(test)]
pub(crate) mod vectors;
mod verifier;
mod verify;
mod view;

pub use caller::{Caller, CallerKind, Epochs, Standing};
pub use extension::{EXTENSION_OID, ExtensionError, Holder, SvidExtension};
pub use key::KeyKind;
pub use peer::{Applicant, BrokerTask, Peer, SvidPeer, Task};
pub use svid_error::SvidError;
pub use verifier::{ApplicantVerifier, SvidVerifier};
pub use verify::VerifiedSvid;
pub use view::{Bundle, DeviceStatus, EntryStatus, Identity, View};
