//! Joining by what a machine has already: a device certificate or a pod's token, out of files, or its
//! TPM.
//!
//! Nothing of them leaves before the broker has shown the root that was named, and of a private key
//! nothing but one signature. A key file that others could read is refused like every other.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::enrol::EnrolError;
use crate::agent::{Agent, AgentSettings, JoinBy, TpmPlace};
use crate::model::limits::{CREDENTIALS_FILE_MAX, DEVICE_CHAIN_MAX, POD_TOKEN_MAX};
use crate::model::{Clock, Digest, SecretValue, TrustDomain};
use crate::wire::{DeviceCertificate, PemError, Shows, TlsError, pem_certificates, pem_key};

/// Why there is nothing to show. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// A file can't be read.
    #[error("can't read `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A private key that others may read or change.
    #[error(
        "`{}` must be a plain file of this user or root, closed to others: `chmod 600` it",
        .0.display()
    )]
    Loose(PathBuf),
    /// A file holds something else.
    #[error("`{}` is not what is wanted", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: PemError,
    },
    /// A file with more than anybody writes into one.
    #[error("`{}` is empty, or has more than {most} bytes", path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// What is looked at.
        most: usize,
    },
    /// Certificate and key don't belong together.
    #[error("the certificate and the key are not a pair that can sign")]
    Pair(#[source] TlsError),
}

/// What a machine is told of its broker when no join token says it.
#[derive(Debug, Clone)]
pub struct BrokerPlace {
    /// `host:port` of the enrolment port.
    pub enrolment: String,
    /// `host:port` of the broker.
    pub broker: String,
    /// The trust domain.
    pub domain: TrustDomain,
    /// SHA-256 of the root certificate (DER).
    pub root: Digest,
}

/// What a machine has.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A device certificate with its chain, and its private key, both PEM.
    X509 {
        /// The file of certificates, leaf first.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The file of a pod's projected token.
    Kubernetes(PathBuf),
    /// A TPM.
    Tpm(TpmPlace),
}

impl Proof {
    fn read(&self) -> Result<JoinBy, ProofError> {
        let shows = match self {
            Self::Tpm(place) => return Ok(JoinBy::Tpm(place.clone())),
            Self::X509 { certificate, key } => {
                let text = read(certificate, CREDENTIALS_FILE_MAX, false)?;
                let wrong = |path: &Path| {
                    let path = path.to_owned();
                    |source| ProofError::Pem { path, source }
                };
                let chain = pem_certificates(&text, DEVICE_CHAIN_MAX);
                let chain = chain.map_err(wrong(certificate))?;
                let text = read(key, CREDENTIALS_FILE_MAX, true)?;
                let key = pem_key(&text).map_err(wrong(key))?;
                let pair = DeviceCertificate::new(chain, key).map_err(ProofError::Pair)?;
                Shows::Certificate(pair)
            }
            Self::Kubernetes(path) => {
                let text = read(path, POD_TOKEN_MAX, false)?;
                Shows::PodToken(SecretValue::new(text.trim_ascii().to_vec()))
            }
        };
        Ok(JoinBy::Shown(shows))
    }
}

/// The digest of the one root certificate of a PEM file.
///
/// # Errors
/// When there is none, or more than one.
pub fn root_of(path: &Path) -> Result<Digest, ProofError> {
    let text = read(path, CREDENTIALS_FILE_MAX, false)?;
    let certificates = pem_certificates(&text, 1);
    let certificates =
        certificates.map_err(|source| ProofError::Pem { path: path.to_owned(), source })?;
    Ok(certificates.first().map_or(Digest([0; 32]), |root| Digest::of(root)))
}

/// A whole file. The kubelet's tokens lie behind links; a private key does not.
fn read(path: &Path, most: usize, is_key: bool) -> Result<Zeroizing<Vec<u8>>, ProofError> {
    let failed = |source| ProofError::Io { path: path.to_owned(), source };
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | if is_key { libc::O_NOFOLLOW } else { 0 };
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    if is_key && (!meta.is_file() || !ours || meta.mode() & 0o077 != 0) {
        return Err(ProofError::Loose(path.to_owned()));
    }
    // Of the full size at once: a growing vector would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most.saturating_add(1)));
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() || bytes.len() > most {
        return Err(ProofError::Size { path: path.to_owned(), most });
    }
    Ok(bytes)
}

/// Enrols this machine by what it has, and writes the agent's whole state to `dir`.
///
/// # Errors
/// What stood in the way.
pub async fn join_by(
    place: BrokerPlace,
    proof: &Proof,
    dir: &Path,
    socket: &Path,
    (name, replace): (&str, bool),
    clock: Arc<dyn Clock>,
) -> Result<AgentSettings, EnrolError> {
    let shows = proof.read()?;
    let settings = Agent::join(
        dir,
        &place.enrolment,
        &place.broker,
        place.domain,
        place.root,
        name,
        shows,
        socket.to_owned(),
        replace,
        clock,
    );
    Ok(settings.await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn write(path: &Path, text: &[u8], mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_private_key_is_closed_to_others_and_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
        write(&at("cert"), certificate.pem().as_bytes(), 0o644);
        write(&at("key"), pair.serialize_pem().as_bytes(), 0o600);
        let read =
            |key: &str| Proof::X509 { certificate: at("cert"), key: at(key) }.read().map(drop);
        assert!(read("key").is_ok(), "control");
        for mode in [0o640, 0o604, 0o620, 0o610] {
            write(&at("loose"), pair.serialize_pem().as_bytes(), mode);
            assert!(matches!(read("loose"), Err(ProofError::Loose(_))), "{mode:o}");
        }
        symlink(at("key"), at("link")).unwrap();
        assert!(matches!(read("link"), Err(ProofError::Io { .. })));
        std::fs::create_dir(at("dir")).unwrap();
        assert!(read("dir").is_err() && read("none").is_err());
        let other = rcgen::KeyPair::generate().unwrap();
        write(&at("other"), other.serialize_pem().as_bytes(), 0o600);
        assert!(matches!(read("other"), Err(ProofError::Pair(_))));
        write(&at("text"), b"no key", 0o600);
        assert!(matches!(read("text"), Err(ProofError::Pem { .. })));
        assert_eq!(root_of(&at("cert")).unwrap(), Digest::of(certificate.der()));
        write(&at("two"), certificate.pem().repeat(2).as_bytes(), 0o644);
        assert!(matches!(root_of(&at("two")), Err(ProofError::Pem { .. })));
    }

    #[test]
    fn a_token_is_read_through_links_whole_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("token"));
        symlink(&real, &link).unwrap();
        let read = || Proof::Kubernetes(link.clone()).read();
        assert!(matches!(read(), Err(ProofError::Io { .. })));
        write(&real, b"a.b.c\n", 0o644);
        let Ok(JoinBy::Shown(Shows::PodToken(token))) = read() else { panic!("no token") };
        assert_eq!(token.expose(), b"a.b.c");
        write(&real, &vec![b'a'; POD_TOKEN_MAX], 0o644);
        assert!(read().is_ok());
        for text in [vec![], vec![b'a'; POD_TOKEN_MAX + 1]] {
            write(&real, &text, 0o644);
            assert!(matches!(read(), Err(ProofError::Size { .. })));
        }
    }
}
