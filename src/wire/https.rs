//! TLS of bundle endpoints, on both sides: HTTPS over TCP, nothing but a bundle on it (SPIFFE
//! Federation §5).
//!
//! TLS 1.3 only, no tickets, no resumption, no 0-RTT, as everywhere. A client shows no certificate and
//! a server asks for none. Which of the two profiles counts is said by whoever calls, never found out.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ResolvesServerCert;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConnection, RootCertStore, ServerConnection};

use super::pem::{self, PemError};
use super::tls::{
    ServerIdentity, TlsError, TlsTime, full_handshakes_only, never_resumes, pair, provider,
};
use crate::identity::{Identity, SvidVerifier};
use crate::model::limits::{CHAIN_MAX, WEB_ROOTS_COUNT};
use crate::model::{Clock, SpiffeId};

/// The one protocol on these connections.
const HTTP1: &[u8] = b"http/1.1";

/// Why one side of HTTPS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// The host is no name that a certificate could be for.
    #[error("the host is no name or address that a certificate could be for")]
    Host,
    /// A PEM file is of another form.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// None of the roots can be used.
    #[error("there is no root certificate that can be used")]
    Roots,
    /// The settings.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The roots of the web out of a PEM file, such as a system's store; those that can't be used are
/// left out.
///
/// # Errors
/// When there is none, or too many.
pub fn web_roots(pem: &[u8]) -> Result<Arc<RootCertStore>, HttpsError> {
    let mut roots = RootCertStore::empty();
    for (number, root) in CertificateDer::pem_slice_iter(pem).enumerate() {
        if number >= WEB_ROOTS_COUNT {
            return Err(PemError::TooMany(WEB_ROOTS_COUNT).into());
        }
        let _ = roots.add(root.map_err(|_| PemError::Damaged)?);
    }
    if roots.is_empty() { Err(HttpsError::Roots) } else { Ok(Arc::new(roots)) }
}

/// What a fetch begins its handshake with.
#[derive(Debug)]
pub struct HttpsClient(Arc<rustls::ClientConfig>);

impl HttpsClient {
    /// Profile `https_web`: the server has a certificate of these roots for its host.
    ///
    /// # Errors
    /// When the settings are not usable.
    pub fn web(roots: Arc<RootCertStore>, clock: Arc<dyn Clock>) -> Result<Self, HttpsError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        Self::with(verifier.map_err(|_| HttpsError::Roots)?, clock)
    }

    /// Profile `https_spiffe`: the server has an SVID of exactly this ID, under the roots that
    /// `identity` knows for the ID's trust domain.
    ///
    /// # Errors
    /// When the settings are not usable.
    pub fn spiffe(
        identity: Arc<Identity>,
        endpoint: SpiffeId,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, HttpsError> {
        let verifier = SvidVerifier::for_endpoint(identity, Arc::clone(&clock), endpoint);
        Self::with(verifier, clock)
    }

    fn with(
        verifier: Arc<dyn ServerCertVerifier>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, HttpsError> {
        let time = Arc::new(TlsTime(clock));
        let mut tls = rustls::ClientConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Settings)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        never_resumes(&mut tls, HTTP1);
        tls.enable_sni = true; // a host of the web may be one of many
        Ok(Self(Arc::new(tls)))
    }

    /// The client's side of a handshake with `host`, a DNS name or an address.
    ///
    /// # Errors
    /// When no certificate could be for such a host.
    pub fn begin(&self, host: &str) -> Result<rustls::Connection, HttpsError> {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| HttpsError::Host)?,
        };
        let connection = ClientConnection::new(Arc::clone(&self.0), name);
        Ok(connection.map_err(TlsError::Settings)?.into())
    }
}

/// What our own endpoint begins its handshakes with.
#[derive(Debug)]
pub struct HttpsServer(Arc<rustls::ServerConfig>);

impl HttpsServer {
    /// Profile `https_spiffe`: shows the broker's own SVID.
    ///
    /// # Errors
    /// When the settings are not usable.
    pub fn spiffe(own: Arc<ServerIdentity>, clock: Arc<dyn Clock>) -> Result<Self, HttpsError> {
        Self::with(own, clock)
    }

    /// Profile `https_web`: shows a certificate of the web, both as PEM. The key's text is the
    /// caller's to wipe.
    ///
    /// # Errors
    /// When they are not a pair.
    pub fn web(certificate: &[u8], key: &[u8], clock: Arc<dyn Clock>) -> Result<Self, HttpsError> {
        // A chain of the web is longer than one of ours at times.
        let chain = pem::certificates(certificate, CHAIN_MAX.saturating_mul(2))?;
        let key: PrivateKeyDer<'static> = pem::key(key)?;
        Self::with(Arc::new(SingleCertAndKey::from(pair(chain, key)?)), clock)
    }

    fn with(shown: Arc<dyn ResolvesServerCert>, clock: Arc<dyn Clock>) -> Result<Self, HttpsError> {
        let time = Arc::new(TlsTime(clock));
        let mut tls = rustls::ServerConfig::builder_with_details(provider(), time)
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Settings)?
            .with_no_client_auth()
            .with_cert_resolver(shown);
        full_handshakes_only(&mut tls, HTTP1);
        Ok(Self(Arc::new(tls)))
    }

    /// The server's side of a handshake.
    ///
    /// # Errors
    /// When the settings are not usable.
    pub fn begin(&self) -> Result<rustls::Connection, HttpsError> {
        let connection = ServerConnection::new(Arc::clone(&self.0));
        Ok(connection.map_err(TlsError::Settings)?.into())
    }
}
