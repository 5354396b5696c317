//! TLS over TCP for one exchange: a handshake, bytes in, bytes out, an end.
//!
//! It holds what TLS itself bounds (one record of plaintext, one of ciphertext) and nothing more;
//! how long anything may take is its caller's to say. Cancelled in the middle, it is only dropped.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes that are taken from TCP at once.
const CHUNK: usize = 16 * 1024;

/// One connection.
pub struct TlsStream {
    tcp: TcpStream,
    tls: rustls::Connection,
    /// Decrypted, and not taken yet.
    plain: Vec<u8>,
    chunk: Box<[u8; CHUNK]>,
    ended: bool,
}

impl TlsStream {
    /// Goes through the handshake.
    ///
    /// # Errors
    /// When the other side is refused, refuses, or goes away. A refusal's reason is inside, as
    /// [`rustls::Error`].
    pub async fn shake(tcp: TcpStream, tls: rustls::Connection) -> io::Result<Self> {
        let (plain, chunk) = (Vec::new(), Box::new([0; CHUNK]));
        let mut stream = Self { tcp, tls, plain, chunk, ended: false };
        stream.flush().await?;
        while stream.tls.is_handshaking() {
            if !stream.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            stream.flush().await?;
        }
        Ok(stream)
    }

    /// The next bytes, at least one; empty at an orderly end.
    ///
    /// # Errors
    /// When the connection breaks, an end without goodbye among it.
    pub async fn read(&mut self) -> io::Result<Vec<u8>> {
        while self.plain.is_empty() && !self.ended {
            if !self.fill().await? {
                // Cut off: what came may not be all of it.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.flush().await?;
        }
        Ok(std::mem::take(&mut self.plain))
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = io::Write::write(&mut self.tls.writer(), bytes)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            self.flush().await?;
        }
        Ok(())
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.tls.send_close_notify();
        self.flush().await?;
        self.tcp.shutdown().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            let mut out = Vec::new();
            self.tls.write_tls(&mut out)?;
            self.tcp.write_all(&out).await?;
        }
        Ok(())
    }

    /// Takes in what TCP has; `false` when it has ended.
    async fn fill(&mut self) -> io::Result<bool> {
        let read = self.tcp.read(self.chunk.as_mut_slice()).await?;
        let mut rest = self.chunk.get(..read).unwrap_or_default();
        if rest.is_empty() {
            return Ok(self.ended);
        }
        while !rest.is_empty() && !self.ended {
            self.tls.read_tls(&mut rest)?;
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The alert, as far as it gets.
                    let mut out = Vec::new();
                    if self.tls.write_tls(&mut out).is_ok() {
                        let _ = self.tcp.try_write(&out);
                    }
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            let before = self.plain.len();
            self.plain.resize(before.saturating_add(state.plaintext_bytes_to_read()), 0);
            let room = self.plain.get_mut(before..).unwrap_or_default();
            if !room.is_empty() {
                io::Read::read_exact(&mut self.tls.reader(), room)?;
            }
            self.ended = state.peer_has_closed();
        }
        Ok(true)
    }
}
