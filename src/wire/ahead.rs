//! A stream whose first bytes are taken in one piece: lengths, head and end of a small request come
//! out of one look into the connection instead of one for each.
//!
//! Takes no more ahead than [`AHEAD`] bytes, and holds them in a buffer that is wiped. What is
//! asked for in larger pieces goes straight to where it is wanted.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::model::WipedBytes;

/// Bytes that are taken ahead at most: more than the whole of an ordinary request without a body.
const AHEAD: usize = 512;

/// A stream with the bytes of it that were taken ahead.
#[derive(Debug)]
pub struct Ahead<R> {
    from: R,
    held: WipedBytes,
    /// Bytes of `held` that were given already.
    given: usize,
}

impl<R> Ahead<R> {
    /// Nothing is taken yet.
    pub fn new(from: R) -> Self {
        Self { from, held: WipedBytes::default(), given: 0 }
    }

    /// The stream itself. What was taken ahead of it is not in it any more.
    pub fn stream(&mut self) -> &mut R {
        &mut self.from
    }
}

impl<R: AsyncRead + Unpin> Ahead<R> {
    fn take(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.given = 0;
        self.held.clear();
        self.held.resize(AHEAD, 0);
        let mut into = ReadBuf::new(&mut self.held);
        let taken = Pin::new(&mut self.from).poll_read(context, &mut into);
        let length = if taken.is_ready() { into.filled().len() } else { 0 };
        self.held.truncate(length);
        taken
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Ahead<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given >= self.held.len() {
            if into.remaining() >= AHEAD {
                return Pin::new(&mut self.from).poll_read(context, into);
            }
            if into.remaining() > 0 {
                ready!(self.take(context))?;
            }
        }
        let rest = self.held.get(self.given..).unwrap_or_default();
        let length = rest.len().min(into.remaining());
        into.put_slice(rest.get(..length).unwrap_or_default());
        self.given += length;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::pin::pin;
    use std::task::Waker;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    /// Counts how often it is looked into.
    struct Looks<'a>(&'a [u8], usize);

    impl AsyncRead for Looks<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(context, into)
        }
    }

    #[test]
    fn a_small_request_is_one_look_and_a_large_piece_is_not_taken_ahead() {
        let bytes = [7; 3 * AHEAD];
        let mut ahead = Ahead::new(Looks(&bytes[..100], 0));
        let (mut lengths, mut head) = ([0; 8], [0; 92]);
        run(ahead.read_exact(&mut lengths)).unwrap();
        run(ahead.read_exact(&mut head)).unwrap();
        assert_eq!((ahead.stream().1, head), (1, [7; 92]));

        let mut ahead = Ahead::new(Looks(&bytes, 0));
        let mut whole = [0; 3 * AHEAD];
        assert_eq!(run(ahead.read(&mut whole)).unwrap(), 3 * AHEAD, "straight to where it goes");
        assert_eq!(run(ahead.read(&mut whole[..8])).unwrap(), 0, "the end");
    }

    #[test]
    fn what_is_not_there_yet_is_waited_for_and_nothing_is_lost() {
        run(async {
            let (near, mut far) = tokio::io::duplex(4 * AHEAD);
            let mut ahead = Ahead::new(near);
            let mut into = [0; 4];
            {
                let mut reading = pin!(ahead.read_exact(&mut into));
                let mut context = Context::from_waker(Waker::noop());
                assert!(reading.as_mut().poll(&mut context).is_pending());
                far.write_all(b"ab").await.unwrap();
                assert!(reading.as_mut().poll(&mut context).is_pending());
                far.write_all(b"cdef").await.unwrap();
                reading.await.unwrap();
            }
            drop(far);
            let mut rest = Vec::new();
            ahead.read_to_end(&mut rest).await.unwrap();
            assert_eq!((&into, rest.as_slice()), (b"abcd", b"ef".as_slice()));
        });
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_bytes_in_their_order(
            bytes in vec(any::<u8>(), 0..4 * AHEAD), pieces in vec(1..2 * AHEAD, 1..40)
        ) {
            let mut ahead = Ahead::new(bytes.as_slice());
            let (mut read, mut pieces) = (Vec::new(), pieces.into_iter().cycle());
            loop {
                let mut piece = vec![0; pieces.next().unwrap()];
                let length = run(ahead.read(&mut piece)).unwrap();
                if length == 0 {
                    break;
                }
                read.extend_from_slice(&piece[..length]);
            }
            prop_assert_eq!(read, bytes);
        }
    }
}
