//! Client and configurations against a real QUIC endpoint on the loopback. The verifiers here stand
//! in for identity's: they take every certificate, or refuse every one; signatures are checked.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use time::macros::datetime;

use super::client::Client;
use super::client_error::ClientError;
use super::close::CloseCode;
use super::frame::{
    Opening, Reply, encode_nonce, read_body, read_evidence, read_opening, write_reply,
};
use super::tls::{ALPN, ALPN_ENROLL, EXPORTER_LABEL, ServerIdentity};
use super::{dial, tls, transport};
use crate::model::{
    Answer, Ask, Clock, Code, Digest, ManualClock, Reason, Refusal, RequestId, SecretName,
    SecretValue,
};

/// Takes every certificate, or refuses every one for the given reason.
#[derive(Debug)]
struct Verifier(Option<CertificateError>);

impl Verifier {
    fn verdict(&self) -> Result<(), Error> {
        self.0.clone().map_or(Ok(()), |reason| Err(Error::InvalidCertificate(reason)))
    }
}

fn signed(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = default_provider().signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signature, &algorithms)
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("tls 1.2 is off".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verdict().map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verdict().map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::at(datetime!(2026-11-23 00:00 UTC)))
}

fn self_signed() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    let der = key.serialize_der();
    (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(der.into()))
}

fn broker(refusing: Option<CertificateError>) -> Endpoint {
    let (chain, key) = self_signed();
    let own = ServerIdentity::new(chain, key).unwrap();
    let crypto = tls::server(own, Arc::new(Verifier(refusing)), ALPN, clock()).unwrap();
    let crypto = QuicServerConfig::try_from(crypto).unwrap();
    let config = transport::serve(crypto, transport::of_broker(), clock());
    Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
}

async fn connect(
    to: &Endpoint,
    alpn: &[u8],
    refusing: Option<CertificateError>,
) -> Result<Client, ClientError> {
    let (chain, key) = self_signed();
    let pair = tls::pair(chain, key).unwrap();
    let config = tls::client_tls(pair, Arc::new(Verifier(refusing)), alpn, clock()).unwrap();
    let config = tls::quic_client(config).unwrap();
    let address = to.local_addr().unwrap().to_string();
    let (endpoint, connection) = dial::dial(&address, config).await?;
    Ok(Client::over(endpoint, connection))
}

/// A connected pair: the client, and the broker's end of its connection.
async fn connected(broker: &Endpoint) -> (Client, Connection) {
    let accept = async { broker.accept().await.unwrap().await.unwrap() };
    let (client, connection) = tokio::join!(connect(broker, ALPN, None), accept);
    (client.unwrap(), connection)
}

fn run<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // A lost packet of the protocol should fail a test, not hang it.
    let watched = async { tokio::time::timeout(Duration::from_secs(20), future).await };
    builder.enable_all().build().unwrap().block_on(watched).expect("the exchange hangs")
}

fn id() -> RequestId {
    RequestId::parse("0198c0de-0000-7000-8000-000000000001").unwrap()
}

fn refusal(code: Code, reason: Reason) -> Reply {
    Reply::Refusal(Refusal { request: id(), code, reason, hint: None })
}

fn write_ask() -> Ask {
    let name = SecretName::parse("pay/db/url").unwrap();
    Ask::Write { name, cas: None, labels: None, staged: false }
}

async fn answer(connection: &Connection, reply: Reply, body: &[u8]) -> (Opening, SecretValue) {
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    let (opening, length) = read_opening(&mut recv).await.unwrap();
    let brought = read_body(&mut recv, length).await.unwrap();
    write_reply(&mut send, &reply, body).await.unwrap();
    send.finish().unwrap();
    (opening, brought)
}

#[test]
fn a_request_and_its_answer_cross_with_their_bodies() {
    run(async {
        let broker = broker(None);
        let (client, connection) = connected(&broker).await;
        let reply = Reply::Answer { request: id(), answer: Answer::Done { revision: 4 } };
        let body = SecretValue::new(vec![7; 60_000]);
        let (asked, (opening, brought)) =
            tokio::join!(client.ask(write_ask(), body), answer(&connection, reply, &[9; 200_000]));
        let (request, released) = asked.unwrap();
        assert_eq!((request, released.answer), (id(), Answer::Done { revision: 4 }));
        assert_eq!(released.body.expose(), [9; 200_000]);
        assert_eq!((opening.ask, brought.len()), (write_ask(), 60_000));
    });
}

#[test]
fn a_refused_client_is_not_told_that_it_is_connected() {
    run(async {
        for (reason, word) in [
            (CertificateError::Expired, "expired"),
            (CertificateError::Revoked, "revoked"),
            (CertificateError::UnknownIssuer, "trust domain"),
        ] {
            let broker = broker(Some(reason));
            let accept = async { broker.accept().await.unwrap().await };
            let (client, accepted) = tokio::join!(connect(&broker, ALPN, None), accept);
            assert!(accepted.is_err());
            let error = client.unwrap_err();
            assert!(matches!(error, ClientError::Rejected { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    });
}

#[test]
fn a_broker_that_is_not_ours_gets_no_request() {
    run(async {
        let broker = broker(None);
        let accept = async { broker.accept().await.unwrap().await };
        let wrong = Some(CertificateError::UnknownIssuer);
        let (client, _) = tokio::join!(connect(&broker, ALPN, wrong), accept);
        let error = client.unwrap_err();
        assert!(matches!(error, ClientError::Handshake { .. }), "{error}");
    });
}

#[test]
fn another_protocol_is_refused() {
    run(async {
        let broker = broker(None);
        let accept = async { broker.accept().await.unwrap().await };
        let (client, accepted) = tokio::join!(connect(&broker, ALPN_ENROLL, None), accept);
        assert!(accepted.is_err());
        let error = client.unwrap_err();
        assert!(error.to_string().contains("another protocol"), "{error}");
    });
}

#[test]
fn a_change_meanwhile_is_asked_for_once_more_and_not_twice() {
    run(async {
        let broker = broker(None);
        let (client, connection) = connected(&broker).await;
        let changed = || refusal(Code::Unavailable, Reason::Changed);
        let done = Reply::Answer { request: id(), answer: Answer::Done { revision: 4 } };
        let twice = async {
            answer(&connection, changed(), b"").await;
            answer(&connection, done, b"").await
        };
        let body = SecretValue::new(b"hunter2".to_vec());
        let (asked, (_, brought)) = tokio::join!(client.ask(write_ask(), body), twice);
        assert!(asked.is_ok());
        assert_eq!(brought.expose(), b"hunter2", "the body goes along again");
        let twice = async {
            answer(&connection, changed(), b"").await;
            answer(&connection, changed(), b"").await
        };
        let (asked, _) = tokio::join!(client.ask(Ask::Whoami {}, SecretValue::empty()), twice);
        let error = asked.unwrap_err();
        assert!(
            matches!(&error, ClientError::Refused(r) if r.reason == Reason::Changed),
            "{error}"
        );
    });
}

#[test]
fn a_refusal_before_the_body_is_taken_counts() {
    run(async {
        let broker = broker(None);
        let (client, connection) = connected(&broker).await;
        let refuse = async {
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            let (_, length) = read_opening(&mut recv).await.unwrap();
            assert_eq!(length, 4_000_000);
            write_reply(&mut send, &refusal(Code::Denied, Reason::NoAllow), b"").await.unwrap();
            send.finish().unwrap();
            recv.stop(0_u32.into()).unwrap();
            send.stopped().await.unwrap();
        };
        let body = SecretValue::new(vec![7; 4_000_000]);
        let (asked, ()) = tokio::join!(client.ask(Ask::PolicyActivate {}, body), refuse);
        let error = asked.unwrap_err();
        assert!(matches!(&error, ClientError::Refused(r) if r.code == Code::Denied), "{error}");
    });
}

#[test]
fn a_report_is_bound_to_nonce_and_connection() {
    run(async {
        let broker = broker(None);
        let (client, connection) = connected(&broker).await;
        let nonce = [5; 32];
        let take = async {
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            let (opening, length) = read_opening(&mut recv).await.unwrap();
            assert_eq!(length, 0);
            assert_eq!(opening.ask, Ask::Report { facts: Digest([1; 32]) });
            write_reply(&mut send, &Reply::Nonce(encode_nonce(&nonce)), b"").await.unwrap();
            let evidence = read_evidence(&mut recv).await.unwrap();
            let answer = Answer::Reported { posture: "|".into(), next_ms: 20_000 };
            let reply = Reply::Answer { request: id(), answer };
            write_reply(&mut send, &reply, b"").await.unwrap();
            send.finish().unwrap();
            evidence
        };
        let sign = |nonce: &[u8; 32], exporter: &[u8; 32]| [*nonce, *exporter].concat();
        let (reported, evidence) = tokio::join!(client.report(Digest([1; 32]), sign), take);
        assert!(matches!(reported.unwrap().1.answer, Answer::Reported { .. }));
        let mut exporter = [0; 32];
        connection.export_keying_material(&mut exporter, EXPORTER_LABEL, &nonce).unwrap();
        assert_eq!(evidence.expose(), [nonce, exporter].concat());
        assert_ne!(exporter, [0; 32]);
    });
}

#[test]
fn why_the_broker_closed_is_told_to_request_and_watcher() {
    run(async {
        let broker = broker(None);
        let (client, connection) = connected(&broker).await;
        assert!(!client.is_closed());
        let drop_it = async {
            let _stream = connection.accept_bi().await.unwrap();
            let code = CloseCode::Posture;
            connection.close(code.varint(), code.word().as_bytes());
        };
        let (asked, ()) = tokio::join!(client.ask(Ask::Whoami {}, SecretValue::empty()), drop_it);
        let error = asked.unwrap_err();
        assert!(matches!(error, ClientError::Closed(CloseCode::Posture)), "{error}");
        assert_eq!(client.closed().await, "the broker closed the connection: posture");
        assert!(client.is_closed());
    });
}

#[test]
fn a_client_that_ends_says_so_and_later_requests_know_it() {
    run(async {
        let broker = broker(None);
        let (client, connection) = connected(&broker).await;
        let again = client.clone();
        let ((), closed) = tokio::join!(client.finish(), connection.closed());
        assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed}");
        let error = again.ask(Ask::Whoami {}, SecretValue::empty()).await.unwrap_err();
        assert!(matches!(error, ClientError::ClosedHere), "{error}");
    });
}

#[test]
fn a_second_connection_makes_the_whole_handshake_and_gets_no_early_data() {
    run(async {
        let broker = broker(None);
        let (chain, key) = self_signed();
        let pair = tls::pair(chain, key).unwrap();
        let config = tls::client_tls(pair, Arc::new(Verifier(None)), ALPN, clock()).unwrap();
        let config = tls::quic_client(config).unwrap();
        let address = broker.local_addr().unwrap();
        for _ in 0..2 {
            let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let connecting = endpoint.connect_with(config.clone(), address, "doorward").unwrap();
            let connecting = match connecting.into_0rtt() {
                Ok(_) => panic!("a session was resumed"),
                Err(connecting) => connecting,
            };
            let accept = async { broker.accept().await.unwrap().await.unwrap() };
            let (client, server) = tokio::join!(connecting, accept);
            let client = client.unwrap();
            let stats = client.stats().frame_rx;
            assert_eq!(stats.new_token, 0, "no address tokens");
            assert!(server.peer_identity().is_some());
        }
    });
}
