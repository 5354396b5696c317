//! Who asks. The only room that makes a [`Peer`] and a [`Caller`].
//!
//! A `Peer` is what stood on the wire: a verified X.509-SVID, an applicant's self-signed key, or
//! one of the broker's own tasks. A `Caller` is that peer as it stands *now*; an expired, revoked
//! or unknown one is a value, not an error, so that it ends in a recorded denial. This room holds
//! an immutable [`View`] that authority pushes into it; it reads no store.
//!
//! Beside them stand the two things that trust domains hand to each other: a [`BundleDocument`],
//! and the [`JwtSvid`]s that are validated against one.

mod applicant;
mod bundle;
mod caller;
mod certificate;
mod der;
mod device_proof;
#[cfg(test)]
mod draft;
mod extension;
mod jwk;
mod jwt_algorithm;
mod jwt_svid;
mod key;
mod peer;
mod place;
mod pod_token;
#[cfg(test)]
pub(crate) mod sample;
mod standing;
mod svid_error;
#[cfg(test)]
mod token_draft;
mod trust;
#[cfg(test)]
pub(crate) mod vectors;
mod verifier;
mod verify;
mod view;

pub use bundle::{BundleDocument, BundleError, IgnoredKey};
pub use caller::{Caller, CallerKind, Epochs, Standing};
pub use device_proof::{
    DeviceProof, DeviceProofError, DeviceRoots, DeviceRootsError, Possessed, device_statement,
};
pub use extension::{EXTENSION_OID, ExtensionError, Holder, SvidExtension};
pub use jwk::{JwkError, JwtKey};
pub use jwt_algorithm::JwtAlgorithm;
pub use jwt_svid::{JwtSvid, JwtSvidError};
pub use key::KeyKind;
pub use peer::{Applicant, BrokerTask, Peer, SvidPeer, Task};
pub use pod_token::{
    Cluster, ClusterError, PodToken, PodTokenError, is_token_text, service_account,
};
pub use svid_error::SvidError;
pub use verifier::{ApplicantVerifier, SvidVerifier, root_hint};
pub use verify::VerifiedSvid;
pub use view::{Bundle, Denied, DeniedFor, DeviceStatus, EntryStatus, Identity, View};
