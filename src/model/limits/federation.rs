//! The bounds of federation: relationships, bundles, and the two sides of a bundle endpoint.

use std::time::Duration;

use super::CONNECTIONS_MAX;

/// Trust domains that are federated with: each is a root store in memory, and one fetch a hint.
pub const FEDERATIONS_MAX: usize = 64;
/// Bytes of all their bundles together: they must fit one body on the way to an agent.
pub const FEDERATED_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Trust domains that the workloads of one entry are told of.
pub const FEDERATES_WITH_MAX: usize = 16;
/// The address of a bundle endpoint, in bytes.
pub const ENDPOINT_URL_MAX: usize = 1024;
/// One fetch of a bundle, from the look-up of its name to its last byte.
pub const BUNDLE_FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The head of a bundle endpoint's answer, in bytes: a few lines are honest.
pub const BUNDLE_HEAD_MAX: usize = 16 * 1024;
/// Addresses of one bundle endpoint that are tried.
pub const BUNDLE_ADDRESSES_MAX: usize = 4;
/// Fetches at once: one endpoint that hangs holds up no other.
pub const BUNDLE_FETCHES: usize = 8;
/// A bundle whose domain names no refresh hint is fetched this often (Trust Domain and Bundle §4.1) …
pub const BUNDLE_REFRESH: Duration = Duration::from_secs(5 * 60);
/// … one whose hint is shorter, this often: nobody makes us ask all the time …
pub const BUNDLE_REFRESH_MIN: Duration = Duration::from_secs(60);
/// … and one whose hint is longer, this often: a revocation must be heard of.
pub const BUNDLE_REFRESH_MAX: Duration = Duration::from_secs(60 * 60);
/// Between two fetches of one domain's bundle because somebody has shown a key that is not in it.
pub const BUNDLE_REFRESH_AGAIN: Duration = Duration::from_secs(10);
/// A last good bundle whose contents stand has the time of its last fetch written this often.
pub const BUNDLE_FETCHED_STEP: Duration = Duration::from_secs(60 * 60);
/// Connections to our own bundle endpoint at once …
pub const BUNDLE_CONNECTIONS: usize = 64;
/// … and of one network: partners behind one address are few.
pub const BUNDLE_CONNECTIONS_PER_SOURCE: usize = 16;
/// One answer of our own bundle endpoint, from the first byte of the handshake to the last of the body.
pub const BUNDLE_SERVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The head of a request to our own bundle endpoint, in bytes.
pub const BUNDLE_REQUEST_MAX: usize = 8 * 1024;
/// A PEM file of roots for endpoints with web certificates, in bytes: a system's store has 250 KiB.
pub const WEB_ROOTS_MAX: usize = 4 * 1024 * 1024;
/// Roots of such a file.
pub const WEB_ROOTS_COUNT: usize = 1024;
/// Connections of all callers of one other trust domain together: it can mint as many as it likes.
pub const CONNECTIONS_PER_DOMAIN: usize = CONNECTIONS_MAX / 4;
/// Connections of all other trust domains together: the rest is for our own.
pub const CONNECTIONS_FOREIGN: usize = CONNECTIONS_MAX / 2;
/// Requests a second of all callers of one other trust domain together.
pub const DOMAIN_RATE: u32 = 5_000;
