//! Bare QUIC beside ours, for measuring only: the same certificates, sizes and client, no judging.
//!
//! `doorward bench` runs the bare echo and a real broker in turn and prints the ratio. Nothing here
//! is reachable from a broker or an agent.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::credentials::Credentials;
use super::transport;

/// ALPN of the echo.
const ALPN: &[u8] = b"doorward-bench/1";
/// Largest request and answer, in bytes.
const MOST: usize = 64 * 1024;

/// Why a measurement can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// TLS.
    #[error("bare tls: {0}")]
    Tls(#[from] rustls::Error),
    /// A socket.
    #[error("bare socket: {0}")]
    Socket(#[from] std::io::Error),
    /// A handshake or a stream.
    #[error("bare quic: {0}")]
    Quic(String),
}

fn quic(error: impl std::fmt::Display) -> BareError {
    BareError::Quic(error.to_string())
}

/// Starts a task of the caller's runtime.
pub type SpawnBare<'a> = &'a dyn Fn(Pin<Box<dyn Future<Output = ()> + Send>>);

/// Answers every stream with `answer` bytes, for holders of certificates under `roots`.
///
/// # Errors
/// When the socket can't be used. It does not end otherwise.
pub async fn echo(
    socket: std::net::UdpSocket,
    own: (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    roots: &[CertificateDer<'static>],
    answer: usize,
    spawn: SpawnBare<'_>,
) -> Result<(), BareError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let provider = Arc::new(default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(quic)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(own.0, own.1)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(quic)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport::of_broker()));
    let (settings, runtime) = (quinn::EndpointConfig::default(), Arc::new(quinn::TokioRuntime));
    let endpoint = quinn::Endpoint::new(settings, Some(config), socket, runtime)?;
    let body: Arc<[u8]> = vec![b'x'; answer].into();
    while let Some(incoming) = endpoint.accept().await {
        spawn(Box::pin(serve(incoming, Arc::clone(&body))));
    }
    Ok(())
}

async fn serve(incoming: quinn::Incoming, body: Arc<[u8]>) {
    let Ok(connection) = incoming.await else { return };
    connection.set_max_concurrent_bi_streams(crate::model::limits::STREAMS_PROVEN.into());
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((mut send, mut recv)) => {
                    let body = &body;
                    running.push(async move {
                        if recv.read_to_end(MOST).await.is_ok() && send.write_all(body).await.is_ok() {
                            let _ = send.finish();
                        }
                    });
                }
                Err(_) => return,
            },
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
}

/// A connection to the echo or to a broker, with as little of its own as can be.
#[derive(Debug, Clone)]
pub struct BareClient {
    connection: quinn::Connection,
    /// Kept so that the socket lives as long as the connection.
    _endpoint: quinn::Endpoint,
}

impl BareClient {
    /// Connects to an echo.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn to_echo(address: SocketAddr, own: &Credentials) -> Result<Self, BareError> {
        let provider = Arc::new(default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyChain { roots: own.bundle.clone() }))
            .with_client_auth_cert(own.chain.clone(), own.key.clone_key())?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).map_err(quic)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport::of_client()));
        Self::connect(address, config).await
    }

    /// Connects to a broker with our own configuration.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn to_broker(
        address: SocketAddr,
        config: quinn::ClientConfig,
    ) -> Result<Self, BareError> {
        Self::connect(address, config).await
    }

    async fn connect(address: SocketAddr, config: quinn::ClientConfig) -> Result<Self, BareError> {
        let local: SocketAddr = ([127, 0, 0, 1], 0).into();
        let mut endpoint = quinn::Endpoint::client(local)?;
        endpoint.set_default_client_config(config);
        let connection =
            endpoint.connect(address, "doorward").map_err(quic)?.await.map_err(quic)?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// Sends prepared bytes on a stream of their own and takes the answer; gives its length.
    ///
    /// # Errors
    /// When the stream ends early.
    pub async fn round_trip(
        &self,
        request: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<usize, BareError> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(quic)?;
        send.write_all(request).await.map_err(quic)?;
        send.finish().map_err(quic)?;
        answer.clear();
        while let Some(chunk) = recv.read_chunk(MOST, true).await.map_err(quic)? {
            answer.extend_from_slice(&chunk.bytes);
        }
        Ok(answer.len())
    }

    /// Closes the connection.
    pub fn close(&self) {
        self.connection.close(0u32.into(), b"");
    }
}

/// Verifies a chain of the echo as rustls' own verifier does, without looking at names, which SVIDs
/// do not have.
#[derive(Debug)]
struct AnyChain {
    roots: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for AnyChain {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refused = |_| rustls::Error::General("the echo's chain does not verify".to_owned());
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(refused)?;
        let anchors: Vec<_> = self
            .roots
            .iter()
            .filter_map(|root| webpki::anchor_from_trusted_cert(root).ok())
            .collect();
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            intermediates,
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .map_err(refused)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
