//! The agent's local HTTP: secrets for processes that can speak to a Unix socket.
//!
//! Who asks is told by the kernel alone, on every request anew; nothing in a request names anybody
//! but the one of its own identities that the process wants to use. A required header keeps forged
//! requests out that a browser or a confused fetcher might be led to send.

mod accept;
mod batch;
mod call;
mod problem;
mod server;
mod upstream;

pub(in crate::agent) use server::LocalServer;
pub(in crate::agent) use upstream::Upstream;
