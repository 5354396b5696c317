//! Keeps HTTP/2 out of a port that speaks HTTP/1.1.
//!
//! The HTTP server speaks HTTP/2 to whoever begins with its preface as soon as any part of the
//! program needs that protocol. Its bounds would then be the library's own; a stream in
//! [`OnlyHttp1`] ends at the preface instead. No request of HTTP/1.1 begins so.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the preface of HTTP/2 begins with (RFC 9113 §3.4), and no method does.
const PREFACE: &[u8; 4] = b"PRI ";

/// A stream on which HTTP/2 is an error of the other end.
pub struct OnlyHttp1<S> {
    stream: S,
    /// Octets that came and were the preface's; at another one the looking ends.
    seen: Option<usize>,
}

impl<S> OnlyHttp1<S> {
    /// A stream that nothing was read from yet.
    pub fn new(stream: S) -> Self {
        Self { stream, seen: Some(0) }
    }

    /// Whether the preface goes on or has begun to; looks at each octet once.
    fn is_preface(&mut self, came: &[u8]) -> bool {
        for octet in came {
            let Some(seen) = self.seen else { return false };
            self.seen = (PREFACE.get(seen) == Some(octet)).then(|| seen.saturating_add(1));
            if self.seen == Some(PREFACE.len()) {
                return true;
            }
        }
        false
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for OnlyHttp1<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.seen.is_some() && self.is_preface(buf.filled().get(before..).unwrap_or_default()) {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OnlyHttp1<S> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn read(parts: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut other, ours) = tokio::io::duplex(64);
        let (mut ours, mut out) = (OnlyHttp1::new(ours), Vec::new());
        for part in parts {
            other.write_all(part).await?;
            let mut chunk = [0; 64];
            let read = ours.read(&mut chunk).await?;
            out.extend_from_slice(&chunk[..read]);
        }
        Ok(out)
    }

    #[tokio::test]
    async fn the_preface_is_refused_however_it_is_cut_and_nothing_else_is() {
        for good in [&[&b"GET / HTTP/1.1\r\n"[..]][..], &[b"PR", b"OPFIND"], &[b"x", b"PRI * "]] {
            assert_eq!(read(good).await.unwrap(), good.concat());
        }
        for bad in [&[&b"PRI * HTTP/2.0\r\n"[..]][..], &[b"P", b"R", b"I", b" "]] {
            assert_eq!(read(bad).await.unwrap_err().kind(), io::ErrorKind::Unsupported);
        }
    }
}
