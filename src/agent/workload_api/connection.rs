//! One connection to the Workload API: the local stream with `:authority` mended, and with a
//! deadline on whatever was begun, so that nobody holds a place by sending an octet a minute.
//!
//! The process is looked at here too, whatever its streams do: a message may wait for a client that
//! lets nothing in, and must not be taken by what the process has become since.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::super::local::{LocalStream, Visitor};
use super::authority::Mender;
use crate::model::limits::HEAD_TIMEOUT;

/// Octets that are read at once.
const CHUNK: usize = 4 * 1024;
/// Between two looks at the process. Its streams look more often, and end in words.
const LOOK: Duration = Duration::from_secs(3);

/// The stream of one connection, with who is at its other end.
pub(super) struct Connection {
    stream: LocalStream,
    visitor: Visitor,
    mender: Mender,
    /// Mended octets that were not taken yet, from `taken` on.
    mended: Vec<u8>,
    taken: usize,
    /// When the preface, or the frame that has begun, must have ended.
    until: Pin<Box<Sleep>>,
    ended: u64,
    look: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(stream: LocalStream, visitor: Visitor) -> Self {
        let until = Box::pin(tokio::time::sleep(HEAD_TIMEOUT));
        let look = Box::pin(tokio::time::sleep(LOOK));
        let (mender, mended) = (Mender::new(), Vec::new());
        Self { stream, visitor, mender, mended, taken: 0, until, ended: 0, look }
    }

    /// Gives mended octets out; whether there were any.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let left = self.mended.get(self.taken..).unwrap_or_default();
        let some = left.get(..left.len().min(buf.remaining())).unwrap_or_default();
        buf.put_slice(some);
        self.taken = self.taken.saturating_add(some.len());
        let any = !some.is_empty();
        if self.taken >= self.mended.len() {
            self.mended.clear();
            self.mended.shrink_to(CHUNK);
            self.taken = 0;
        }
        any
    }

    /// Begins the time anew once what had begun has ended.
    fn watch(&mut self, was_amid: bool) {
        let ended = self.mender.ended();
        if ended != self.ended || !was_amid {
            self.ended = ended;
            self.until.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Visitor;

    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.look.as_mut().poll(cx).is_ready() {
            if this.visitor.is_over() {
                return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
            }
            this.look.as_mut().reset(Instant::now() + LOOK);
        }
        loop {
            if buf.remaining() == 0 || this.give(buf) {
                return Poll::Ready(Ok(()));
            }
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            match Pin::new(&mut this.stream).poll_read(cx, &mut chunk) {
                Poll::Ready(Ok(())) if chunk.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let was_amid = this.mender.is_amid();
                    this.mender.push(chunk.filled(), &mut this.mended);
                    this.watch(was_amid);
                }
                Poll::Ready(Err(why)) => return Poll::Ready(Err(why)),
                Poll::Pending if this.mender.is_amid() => {
                    ready!(this.until.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
