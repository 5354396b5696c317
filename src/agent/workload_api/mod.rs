//! The SPIFFE Workload API, X.509 and JWT profiles, on a Unix socket of its own: what any SPIFFE
//! library asks.
//!
//! Every call must carry the security header; the process is attested as on the local HTTP, and
//! gets exactly the identities that entries give it, each issued, judged and recorded by the broker.
//! Keys are made fresh for each message and are the workload's own from then on: the agent keeps no
//! copy, and never gives out one that it holds itself. The service is the standard's, with nothing
//! added; its methods of the WIT profile answer `Unimplemented`.

mod authority;
mod bundles;
mod connection;
mod descriptors;
mod fault;
mod hints;
mod jwt;
mod jwt_messages;
mod messages;
mod rates;
mod reflection;
mod reply;
mod server;
mod watch;

pub(in crate::agent) use server::WorkloadServer;
pub(in crate::agent) use watch::Ground;
