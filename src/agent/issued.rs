//! An SVID for a process and a key, asked for with the agent's own identity.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::duties::Unmatched;
use super::roots::published as roots;
use super::shared::Shared;
use super::uplink::certificates;
use crate::model::{Answer, Ask, Entry, Reason, Refusal, SecretValue, Serial, WorkloadFacts};
use crate::wire::ClientError;

/// Why a workload gets no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkloadError {
    /// It has no identity here, or several.
    #[error("no single identity for this process")]
    Unmatched(Unmatched),
    /// The broker judged and refused.
    #[error("{0}")]
    Refused(Refusal),
    /// Try again later.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Our fault, or the broker's.
    #[error("{0}")]
    Internal(&'static str),
}

pub(super) const NO_UPLINK: WorkloadError =
    WorkloadError::Unavailable("the agent is not connected");
pub(super) const NO_CONNECTION: WorkloadError =
    WorkloadError::Unavailable("the broker can't be reached");

/// What the broker issued for one key.
pub(super) struct Issued {
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// What whoever gets it trusts.
    pub(super) bundle: Vec<CertificateDer<'static>>,
    pub(super) until: OffsetDateTime,
    pub(super) serial: Serial,
}

/// Has it issued. `agent_held` says whether the key stays with the agent.
///
/// # Errors
/// When the broker refuses, can't be reached, or answers with something else.
pub(super) async fn issued(
    shared: &Shared,
    facts: &WorkloadFacts,
    entry: &Entry,
    spki: &[u8],
    agent_held: bool,
    now: OffsetDateTime,
) -> Result<Issued, WorkloadError> {
    let agent = shared.client().ok_or(NO_UPLINK)?;
    let ask = Ask::Issue {
        entry: entry.id,
        spiffe_id: entry.draft.spiffe_id.clone(),
        public_key: STANDARD.encode(spki),
        workload: facts.clone(),
        agent_held,
    };
    let answered = agent.ask(ask, SecretValue::empty()).await;
    let (_, released) = answered.map_err(|why| match why {
        ClientError::Refused(refusal) => WorkloadError::Refused(refusal),
        _ => NO_CONNECTION,
    })?;
    let odd = WorkloadError::Internal("the broker issued something else");
    let Answer::Certificate { spiffe_id, chain, bundle, published, until } = released.answer else {
        return Err(odd);
    };
    let until = OffsetDateTime::parse(&until, &Rfc3339);
    let bundle = if published.is_empty() { certificates(&bundle) } else { roots(&published) };
    let (Some(chain), Some(bundle), Ok(until)) = (certificates(&chain), bundle, until) else {
        return Err(odd);
    };
    if spiffe_id != entry.draft.spiffe_id || until <= now {
        return Err(odd);
    }
    let serial = chain.first().and_then(|leaf| serial_of(leaf)).ok_or(odd)?;
    Ok(Issued { chain, bundle, until, serial })
}

/// The serial number of a certificate.
fn serial_of(leaf: &[u8]) -> Option<Serial> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    let raw = leaf.raw_serial();
    Serial::parse(&hex::encode(raw.strip_prefix(&[0]).unwrap_or(raw))).ok()
}

/// Whether a refusal speaks of the identity itself, so that another one must be asked for.
pub(super) fn is_about_identity(refusal: &Refusal) -> bool {
    use Reason::{IdentityExpired, IdentityUnknown, Revoked, SvidRevoked};
    matches!(refusal.reason, IdentityExpired | IdentityUnknown | Revoked | SvidRevoked)
}
