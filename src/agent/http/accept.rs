//! What axum must know of the local socket: how it accepts, and who is at the other end.

use std::io;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};

use super::super::local::{LocalListener, LocalStream, Visitor};
use crate::wire::OnlyHttp1;

/// The local socket as axum takes it.
pub(super) struct Accepting(pub(super) LocalListener);

impl Listener for Accepting {
    type Io = OnlyHttp1<LocalStream>;
    type Addr = Caller;

    async fn accept(&mut self) -> (Self::Io, Caller) {
        let (stream, visitor) = self.0.admitted().await;
        (OnlyHttp1::new(stream), Caller(visitor))
    }

    fn local_addr(&self) -> io::Result<Caller> {
        Err(io::ErrorKind::Unsupported.into()) // whoever is at the other end is told by `accept`
    }
}

/// Who is at the other end of the connection that a request came on.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) Visitor);

impl Connected<IncomingStream<'_, Accepting>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Accepting>) -> Self {
        stream.remote_addr().clone()
    }
}
