//! Our own bundle endpoint: one document, to whoever asks, over HTTPS (SPIFFE Federation §5.2).
//!
//! It knows one path and one method, asks for no certificate, reads no body, and closes after one
//! answer. What it serves is public. Connections are bounded in all, by network, and in time.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::federation_config::{EndpointConfig, EndpointProof};
use crate::broker::{Line, Source};
use crate::model::Digest;
use crate::model::limits::{
    BUNDLE_CONNECTIONS, BUNDLE_CONNECTIONS_PER_SOURCE, BUNDLE_REQUEST_MAX, BUNDLE_SERVE_TIMEOUT,
    CREDENTIALS_FILE_MAX,
};
use crate::wire::{HttpsError, HttpsServer, ServerIdentity, TlsStream};

/// How often the files of a certificate of the web are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a failure to accept, e.g. for want of descriptors.
const REST: Duration = Duration::from_millis(100);

/// Why the endpoint can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address.
    #[error("can't listen on {0} for `[federation]`: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// A file.
    #[error("`{0}` of `[federation]` can't be read: {1}")]
    File(String, #[source] io::Error),
    /// A key that others may read.
    #[error("`{0}` of `[federation]` must be closed to others: `chmod 600` it")]
    Loose(String),
    /// The certificate or its key.
    #[error("the certificate of `[federation]` can't be used: {0}")]
    Certificate(#[from] HttpsError),
}

/// The open port.
pub(super) struct Endpoint {
    listener: TcpListener,
    config: EndpointConfig,
    own: Arc<ServerIdentity>,
    line: Arc<Line>,
    server: Arc<HttpsServer>,
    /// Of the files that `server` was made from.
    files: Option<Digest>,
}

impl Endpoint {
    /// Opens the port; gives its address too.
    ///
    /// # Errors
    /// When it can't be had, or the certificate can't be used.
    pub(super) async fn open(
        config: EndpointConfig,
        own: Arc<ServerIdentity>,
        line: Arc<Line>,
    ) -> Result<(Self, SocketAddr), EndpointError> {
        let fault = |source| EndpointError::Listen(config.listen, source);
        let listener = TcpListener::bind(config.listen).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let (server, files) = server(&config, &own, &line)?;
        Ok((Self { listener, config, own, line, server, files }, address))
    }

    /// Serves it until `stop`.
    pub(super) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), std::convert::Infallible> {
        let mut serving = FuturesUnordered::new();
        let mut of_source: HashMap<Source, usize> = HashMap::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                (tcp, from) = accept(&self.listener) => {
                    let source = Source::of(from.ip());
                    let held = of_source.get(&source).copied().unwrap_or(0);
                    if serving.len() >= BUNDLE_CONNECTIONS || held >= BUNDLE_CONNECTIONS_PER_SOURCE {
                        continue; // dropped, and so closed
                    }
                    of_source.insert(source, held.saturating_add(1));
                    let (server, line) = (Arc::clone(&self.server), Arc::clone(&self.line));
                    let path = self.config.path.clone();
                    serving.push(async move {
                        let served = timeout(
                            BUNDLE_SERVE_TIMEOUT,
                            serve(tcp, &server, &line, &path),
                        );
                        // A fault in one answer must not take the broker with it.
                        match AssertUnwindSafe(served).catch_unwind().await {
                            Ok(Ok(Ok(()))) => {}
                            Ok(Ok(Err(error))) => tracing::debug!(%error, "no bundle was served"),
                            Ok(Err(_)) => tracing::debug!("a client of the endpoint is slow"),
                            Err(_) => tracing::error!("an answer of the endpoint ended in a panic"),
                        }
                        source
                    });
                }
                Some(source) = serving.next(), if !serving.is_empty() => {
                    if let Some(held) = of_source.get_mut(&source) {
                        *held = held.saturating_sub(1);
                        if *held == 0 {
                            of_source.remove(&source);
                        }
                    }
                }
                _ = look.tick() => self.look(),
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
        }
    }

    /// Takes over a certificate that was renewed; one that can't be used changes nothing.
    fn look(&mut self) {
        if self.config.proof == EndpointProof::Svid {
            return; // swapped in place
        }
        match server(&self.config, &self.own, &self.line) {
            Ok((server, files)) if files != self.files => {
                (self.server, self.files) = (server, files);
                tracing::info!("the bundle endpoint shows its new certificate");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the bundle endpoint keeps its certificate"),
        }
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection to the bundle endpoint was lost");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

type Made = (Arc<HttpsServer>, Option<Digest>);

fn server(
    config: &EndpointConfig,
    own: &Arc<ServerIdentity>,
    line: &Line,
) -> Result<Made, EndpointError> {
    let clock = Arc::clone(&line.parts().clock);
    match &config.proof {
        EndpointProof::Svid => Ok((Arc::new(HttpsServer::spiffe(Arc::clone(own), clock)?), None)),
        EndpointProof::Web { certificate, key } => {
            let chain = read(certificate, false)?;
            let key = read(key, true)?;
            let server = HttpsServer::web(&chain, &key, clock)?;
            let both = Zeroizing::new([chain.as_slice(), key.as_slice()].concat());
            Ok((Arc::new(server), Some(Digest::of(&both))))
        }
    }
}

fn read(path: &Path, is_key: bool) -> Result<Zeroizing<Vec<u8>>, EndpointError> {
    let name = path.display().to_string();
    let fault = |source| EndpointError::File(path.display().to_string(), source);
    let file = std::fs::File::open(path).map_err(fault)?;
    let mode = file.metadata().map_err(fault)?.permissions().mode();
    if is_key && mode & 0o077 != 0 {
        return Err(EndpointError::Loose(name));
    }
    // Enough for all of it: a buffer that grows leaves an unwiped copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(CREDENTIALS_FILE_MAX.saturating_add(1)));
    let most = u64::try_from(CREDENTIALS_FILE_MAX).unwrap_or(u64::MAX);
    io::Read::read_to_end(&mut io::Read::take(file, most), &mut bytes).map_err(fault)?;
    Ok(bytes)
}

/// One request and its answer.
async fn serve(tcp: TcpStream, server: &HttpsServer, line: &Line, path: &str) -> io::Result<()> {
    let tls = server.begin().map_err(io::Error::other)?;
    let mut stream = TlsStream::shake(tcp, tls).await?;
    let mut head = Vec::new();
    let answer = loop {
        let came = stream.read().await?;
        if came.is_empty() {
            return Ok(());
        }
        head.extend_from_slice(&came);
        if let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") {
            break answer(head.get(..end).unwrap_or_default(), line, path);
        }
        if head.len() > BUNDLE_REQUEST_MAX {
            break plain("431 Request Header Fields Too Large");
        }
    };
    stream.write_all(&answer).await?;
    stream.finish().await
}

fn answer(head: &[u8], line: &Line, path: &str) -> Vec<u8> {
    match asks_for(head, path) {
        Ok(()) => {}
        Err(status) => return plain(status),
    }
    line.parts().metrics.bundles_served.inc();
    let document = line.parts().authority.bundle_document();
    whole("200 OK", "application/json", &document.to_json())
}

/// Whether the document is asked for, else the status.
fn asks_for(head: &[u8], path: &str) -> Result<(), &'static str> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| "400 Bad Request")?;
    let mut words = line.split(' ');
    let all = (words.next(), words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) = all else {
        return Err("400 Bad Request");
    };
    let asked = target.split('?').next().unwrap_or_default();
    match (asked == path, method) {
        (false, _) => Err("404 Not Found"),
        (true, "GET") => Ok(()),
        (true, _) => Err("405 Method Not Allowed"),
    }
}

fn plain(status: &str) -> Vec<u8> {
    whole(status, "text/plain", b"")
}

fn whole(status: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_and_one_method_are_known() {
        let asked = |head: &str| asks_for(head.as_bytes(), "/b");
        for good in ["GET /b HTTP/1.1\r\nHost: x", "GET /b?x HTTP/1.1", "GET /b HTTP/1.0"] {
            assert_eq!(asked(good), Ok(()), "{good}");
        }
        for (bad, status) in [
            ("GET / HTTP/1.1", "404"),
            ("GET /b/ HTTP/1.1", "404"),
            ("GET /b/../b HTTP/1.1", "404"),
            ("POST /b HTTP/1.1", "405"),
            ("HEAD /b HTTP/1.1", "405"),
            ("PRI * HTTP/2.0", "400"),
            ("GET /b HTTP/2.0", "400"),
            ("GET /b", "400"),
            ("GET  /b HTTP/1.1", "400"),
            ("GET /b HTTP/1.1 x", "400"),
            ("", "400"),
        ] {
            assert!(asked(bad).unwrap_err().starts_with(status), "{bad}");
        }
        assert!(asks_for(b"\xff /b HTTP/1.1", "/b").is_err());
    }
}
