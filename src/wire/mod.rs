//! Bytes: frames, messages, TLS configuration, the one client. Knows nothing of the broker.
//!
//! Everything that crosses the network has one form, written down in docs/WIRE.md and held by the
//! vectors in tests/vectors/wire. What comes in is bounded before it is allocated; what carried a
//! secret is wiped. Configurations of TLS and QUIC are made in `wire/tls.rs` and nowhere else, because a
//! single careless default (tickets, 0-RTT) would let an ended identity in.

mod admin;
mod ahead;
mod bare;
mod client;
mod client_error;
mod close;
mod credentials;
mod dial;
mod directory;
mod enroll;
mod frame;
mod frame_error;
mod held;
mod http1;
mod http_get;
mod https;
mod leaf;
#[cfg(test)]
mod loopback;
mod notice;
mod pem;
mod sealed;
mod shows;
mod sockets;
mod strict;
mod tls;
mod tls_stream;
mod transport;

pub use admin::{
    AdminAsk, AdminReply, SealState, parse_admin_ask, parse_admin_reply, read_admin_ask,
    read_admin_reply, write_admin_ask, write_admin_reply,
};
pub use ahead::Ahead;
pub use bare::{BareClient, BareError, echo};
pub use client::Client;
pub use client_error::ClientError;
pub use close::CloseCode;
pub use credentials::{Credentials, CredentialsError};
pub use directory::{DirectoryError, settle};
pub use enroll::{Enrolled, enroll};
pub use frame::{
    Lengths, Opening, Reply, decode_lengths, decode_nonce, encode_nonce, parse_opening,
    parse_reply, read_body, read_end, read_evidence, read_opened, read_opening, read_part,
    read_reply, reply_head, send_frame, write_evidence, write_opening, write_reply,
};
pub use frame_error::FrameError;
pub use held::{HeldKey, Holder, take_up_held_keys};
pub use http_get::{HttpGetError, HttpResponse};
pub use http1::OnlyHttp1;
pub use https::{HttpsClient, HttpsError, HttpsServer, web_roots};
pub use leaf::{Leaf, LeafError};
pub use notice::write_challenge;
pub use pem::{
    PemError, certificates as pem_certificates, key as pem_key, signing_key as pem_signing_key,
};
/// How a listening port speaks QUIC and TLS.
pub use quinn::ServerConfig as PortConfig;
pub use sealed::SealedCredential;
pub use shows::{DeviceCertificate, Shows, TpmShows};
pub use sockets::sockets;
pub use tls::{
    ALPN, ALPN_ENROLL, EXPORTER_ENROLMENT, EXPORTER_LABEL, ServerIdentity, TlsError,
    applicant_client, applicant_server, broker_server, client as client_config,
};
pub use tls_stream::TlsStream;
