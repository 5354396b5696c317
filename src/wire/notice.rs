//! What a broker tells an agent unasked: «report now». A stream in one direction, with one frame.
//!
//! It carries no nonce and no fact, and is no question: the agent answers by an ordinary report, in
//! which the broker makes its nonce as always. So whoever could forge or repeat it would only have
//! a device report once more.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::model::limits::NOTICE_MAX;

/// A notice that is not whole by then is passed over.
pub(super) const NOTICE_TIMEOUT: Duration = Duration::from_secs(2);

/// Lengths of head and body, as in every frame, and the head.
const CHALLENGE: &[u8] = b"\0\0\0\x10\0\0\0\0{\"challenge\":{}}";

/// Writes a challenge, all of it.
///
/// # Errors
/// When the connection ends before.
pub async fn write_challenge(send: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    send.write_all(CHALLENGE).await?;
    send.flush().await
}

/// Reads one notice to its end; whether it is a challenge. Nothing else is looked into.
pub(super) async fn read_challenge(recv: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut bytes = Vec::with_capacity(NOTICE_MAX);
    let limit = u64::try_from(NOTICE_MAX).unwrap_or(0);
    let read = recv.take(limit).read_to_end(&mut bytes).await;
    read.is_ok() && bytes == CHALLENGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_challenge_is_one_frame_and_anything_else_is_passed_over() {
        let mut written = Vec::new();
        run(write_challenge(&mut written)).unwrap();
        let (lengths, head) = written.split_at(8);
        assert_eq!(u32::from_be_bytes(lengths[..4].try_into().unwrap()) as usize, head.len());
        assert_eq!(head, br#"{"challenge":{}}"#);
        assert!(run(read_challenge(&mut written.as_slice())));
        let longer = [written.as_slice(), b"x"].concat();
        let endless = vec![b'x'; 1 << 20];
        for other in [&written[..23], &longer, b"", &endless, b"{\"challenge\":{}}"] {
            assert!(!run(read_challenge(&mut &*other)), "{} bytes", other.len());
        }
    }
}
