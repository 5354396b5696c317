//! The one client: agents, the command line and workloads ask a broker through it.
//!
//! One connection carries any number of requests, each on a stream of its own. Bodies are wiped on
//! both ways. An answer that says "something changed meanwhile" is asked for once more by itself.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use zeroize::Zeroizing;

use super::client_error::ClientError;
use super::credentials::Credentials;
use super::dial;
use super::frame::{
    Opening, Reply, decode_nonce, read_end, read_reply, write_evidence, write_opening,
};
use super::frame_error::FrameError;
use super::notice::{NOTICE_TIMEOUT, read_challenge};
use super::tls::{self, EXPORTER_ENROLMENT, EXPORTER_LABEL};
use crate::model::limits::{
    ANSWER_TIMEOUT, BUNDLE_MAX, CLOSE_TIMEOUT, FILE_MAX, PUSH_WAIT, TIMEOUT_MIB, TPM_OPEN_TIMEOUT,
};
use crate::model::{Ask, Clock, Digest, Reason, Released, RequestId, SecretValue};
use crate::posture::tpm::Credential;

/// A connection to a broker. Cheap to clone; all clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    endpoint: Endpoint,
}

impl Client {
    /// Connects to `credentials.broker` (`host:port`). Returns only once the broker has accepted
    /// us: a refused TLS 1.3 client sees its own handshake succeed.
    ///
    /// # Errors
    /// Why there is no connection; `hint` says what to look at.
    pub async fn connect(
        credentials: &Credentials,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        let config = tls::client(credentials, clock)?;
        let (endpoint, connection) = dial::dial(&credentials.broker, config).await?;
        Ok(Self::over(endpoint, connection))
    }

    /// A client over a connection that the broker has accepted.
    pub(super) fn over(endpoint: Endpoint, connection: Connection) -> Self {
        Self { connection, endpoint }
    }

    /// One request, one answer. Asks once more by itself when the broker says `D902 changed`.
    ///
    /// # Errors
    /// The broker's refusal, or why there is no answer.
    pub async fn ask(
        &self,
        ask: Ask,
        body: SecretValue,
    ) -> Result<(RequestId, Released), ClientError> {
        let opening = Opening { client: None, ask };
        match self.exchange(&opening, &body).await {
            Err(ClientError::Refused(refusal)) if refusal.reason == Reason::Changed => {
                self.exchange(&opening, &body).await
            }
            outcome => outcome,
        }
    }

    /// The report exchange: ask, nonce, evidence, answer. `sign` gets the nonce and the value of
    /// the TLS exporter over it, and gives the evidence that is bound to both.
    ///
    /// # Errors
    /// The broker's refusal, or why there is no answer.
    pub async fn report(
        &self,
        facts: Digest,
        sign: impl FnOnce(&[u8; 32], &[u8; 32]) -> Vec<u8>,
    ) -> Result<(RequestId, Released), ClientError> {
        let opening = Opening { client: None, ask: Ask::Report { facts } };
        let report = async {
            let (mut send, mut recv) = self.open().await?;
            self.told(write_opening(&mut send, &opening, &[]).await)?;
            let nonce = match self.told(read_reply(&mut recv).await)? {
                (Reply::Nonce(text), _) => decode_nonce(&text).map_err(ClientError::Frame)?,
                (Reply::Refusal(refusal), _) => return Err(ClientError::Refused(refusal)),
                (Reply::Answer { .. } | Reply::Credential(_), _) => {
                    return Err(ClientError::Unexpected("it came before the evidence was sent"));
                }
            };
            let evidence = SecretValue::new(sign(&nonce, &*self.exporter(&nonce)?));
            let sending = async {
                write_evidence(&mut send, evidence.expose()).await?;
                end(&mut send);
                Ok(())
            };
            self.settle(sending, &mut recv).await
        };
        within(report).await
    }

    /// Resolves when the broker asks for a report. It never does on a connection that has ended.
    /// What else a broker may come to tell is passed over.
    pub async fn challenged(&self) {
        loop {
            let Ok(mut recv) = self.connection.accept_uni().await else {
                return std::future::pending().await;
            };
            if tokio::time::timeout(NOTICE_TIMEOUT, read_challenge(&mut recv)).await == Ok(true) {
                return;
            }
        }
    }

    /// The exchange of an applicant with a TPM: ask and proof, credential, what was in it, answer.
    /// `open` has the TPM open the credential.
    ///
    /// # Errors
    /// The broker's refusal, why there is no answer, or what `open` says.
    pub(super) async fn prove(
        &self,
        ask: Ask,
        proof: SecretValue,
        open: impl FnOnce(&Credential) -> Result<SecretValue, String>,
    ) -> Result<(RequestId, Released), ClientError> {
        let opening = Opening { client: None, ask };
        let proving = async {
            let (mut send, mut recv) = self.open().await?;
            // A broker may refuse before it has all of it.
            let sent = write_opening(&mut send, &opening, proof.expose()).await;
            let reply = read_reply(&mut recv).await;
            let sealed = match (self.told(reply), sent) {
                (Ok((Reply::Credential(sealed), _)), Ok(())) => sealed,
                (Ok((Reply::Refusal(refusal), _)), _) => return Err(ClientError::Refused(refusal)),
                (Ok(_), Ok(())) => {
                    return Err(ClientError::Unexpected("it came before the tpm was asked"));
                }
                (_, Err(unsent)) => return self.told(Err(unsent)),
                (Err(error), Ok(())) => return Err(error),
            };
            let credential = sealed.credential();
            let credential =
                credential.ok_or(ClientError::Unexpected("its credential can't be read"))?;
            let opened = open(&credential).map_err(ClientError::Broken)?;
            let sending = async {
                write_evidence(&mut send, opened.expose()).await?;
                end(&mut send);
                Ok(())
            };
            self.settle(sending, &mut recv).await
        };
        within_longer(ANSWER_TIMEOUT + TPM_OPEN_TIMEOUT, proving).await
    }

    /// Resolves when the connection has ended, with the reason in words.
    pub async fn closed(&self) -> String {
        ClientError::of_connection(&self.connection.closed().await).to_string()
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Closes the connection for all clones; requests under way fail.
    pub fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }

    /// Closes the connection and waits until the broker can know it: for a program about to end,
    /// which would otherwise leave its connection standing there until the idle timeout.
    pub async fn finish(&self) {
        self.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }

    async fn exchange(
        &self,
        opening: &Opening,
        body: &SecretValue,
    ) -> Result<(RequestId, Released), ClientError> {
        let exchange = async {
            let (mut send, mut recv) = self.open().await?;
            let sending = async {
                write_opening(&mut send, opening, body.expose()).await?;
                end(&mut send);
                Ok(())
            };
            self.settle(sending, &mut recv).await
        };
        within_longer(patience(&opening.ask), exchange).await
    }

    async fn open(&self) -> Result<(SendStream, RecvStream), ClientError> {
        self.connection.open_bi().await.map_err(|error| ClientError::of_connection(&error))
    }

    /// Sends and reads at the same time: a broker may refuse before it has taken the whole body,
    /// and then its refusal counts, not the broken write.
    async fn settle(
        &self,
        sending: impl Future<Output = Result<(), FrameError>>,
        recv: &mut RecvStream,
    ) -> Result<(RequestId, Released), ClientError> {
        let reading = async {
            let reply = read_reply(recv).await?;
            read_end(recv).await?;
            Ok::<_, FrameError>(reply)
        };
        tokio::pin!(sending, reading);
        let reply = tokio::select! {
            reply = &mut reading => reply,
            sent = &mut sending => match (reading.await, sent) {
                (Err(_), Err(unsent)) => Err(unsent),
                (reply, _) => reply,
            },
        };
        match self.told(reply)? {
            (Reply::Answer { request, answer }, body) => Ok((request, Released { answer, body })),
            (Reply::Refusal(refusal), _) => Err(ClientError::Refused(refusal)),
            (Reply::Nonce(_) | Reply::Credential(_), _) => {
                Err(ClientError::Unexpected("it wants evidence"))
            }
        }
    }

    /// A frame's failure; where the whole connection has ended, the reason of that.
    fn told<T>(&self, outcome: Result<T, FrameError>) -> Result<T, ClientError> {
        outcome.map_err(|error| match (&error, self.connection.close_reason()) {
            (FrameError::Read(_) | FrameError::Write(_), Some(closed)) => {
                ClientError::of_connection(&closed)
            }
            _ => ClientError::Frame(error),
        })
    }

    /// What the proof of an applicant is bound to.
    pub(super) fn enrolment_exporter(&self) -> Result<[u8; 32], ClientError> {
        let mut value = [0; 32];
        self.connection
            .export_keying_material(&mut value, EXPORTER_ENROLMENT, b"")
            .map_err(|_| ClientError::Broken("tls gives no exporter value".into()))?;
        Ok(value)
    }

    fn exporter(&self, nonce: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, ClientError> {
        let mut value = Zeroizing::new([0; 32]);
        self.connection
            .export_keying_material(value.as_mut_slice(), EXPORTER_LABEL, nonce)
            .map_err(|_| ClientError::Broken("tls gives no exporter value".into()))?;
        Ok(value)
    }
}

/// Says that nothing more will be sent. A stream that the broker has stopped is not our failure:
/// its reply tells.
fn end(send: &mut SendStream) {
    let _ = send.finish();
}

/// How long the answer to this may take; what is large takes as long as the broker gives it.
fn patience(ask: &Ask) -> Duration {
    let bytes = match ask {
        Ask::BackupData {} | Ask::BackupKeys { .. } => FILE_MAX,
        Ask::PolicyActivate {} | Ask::PolicyRead {} => BUNDLE_MAX,
        _ => 0,
    };
    if let Ask::Duties { since: Some(since), .. } = ask
        && since.wait
    {
        return PUSH_WAIT + ANSWER_TIMEOUT;
    }
    ANSWER_TIMEOUT + TIMEOUT_MIB.saturating_mul(u32::try_from(bytes >> 20).unwrap_or(u32::MAX))
}

async fn within<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    within_longer(ANSWER_TIMEOUT, work).await
}

async fn within_longer<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(limit, work).await.unwrap_or(Err(ClientError::Silent))
}
