//! Local sockets: taken safely, accepted from with bounds, and each byte's sender compared with the
//! process that connected. What is spoken on them is told elsewhere (`http`, `workload_api`).

mod listener;
mod seldom;
mod stream;

pub use listener::SocketError;
pub(in crate::agent) use listener::{Bounds, LocalListener};
pub(in crate::agent) use stream::{LocalStream, Visitor};
