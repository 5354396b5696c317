//! Identities: the CA, issuing, registration entries, devices, tokens and enrolment.
//!
//! The only room that signs a certificate. What it signs is built from a registration entry or a
//! device record, never from anything that the asker says but a bare public key (invariant I10),
//! and every certificate passes our own verifier before it leaves. Changes are committed to the
//! store first, under the index of their grant; then the new [`View`](crate::identity::View) is
//! put in force; then the answer goes out, so that whoever has the answer to a revocation can
//! rely on it (I4). It never decides who may ask: a [`Grant`](crate::decision_log::Grant) says so.

mod apart;
mod authorities;
mod bound;
mod ca;
mod changes;
mod denied;
mod devices;
mod enroll;
mod entries;
mod error;
mod federated;
mod federation;
mod fetches;
mod guesses;
mod intermediate;
mod issue;
mod issuers;
mod jwt;
mod jwt_key;
mod key_seal;
mod living_keys;
mod methods;
mod mirror;
mod own;
mod pending;
mod picture;
mod prove;
mod recent;
mod records;
mod restore;
mod room;
mod rotate;
mod scan;
mod shards;
mod subject_key;
mod token;
mod tpm;
mod upstream;

#[cfg(test)]
mod fake_store;
#[cfg(test)]
mod federation_tests;
#[cfg(test)]
mod jwt_tests;
#[cfg(test)]
mod prove_tests;
#[cfg(test)]
mod rotate_tests;
#[cfg(test)]
mod upstream_tests;
#[cfg(test)]
mod whole_tests;

pub use error::AuthorityError;
pub use federated::FederationError;
pub use fetches::DueFetch;
pub use key_seal::{CaKeys, KeySeal};
pub use methods::{Admission, EnrolMethods};
pub use own::OwnIdentity;
pub use recent::{Crowded, Wait};
pub use records::DeniedOf;
pub use restore::{DeniedSvid, EpochFloor};
pub use room::{Authority, Places};
pub use subject_key::{SubjectKey, SubjectKeyError};
pub use token::{JoinToken, TokenError};
pub use tpm::{TpmMethod, Weighed};
pub use upstream::{ReadUpstream, UpstreamError, UpstreamFiles};
