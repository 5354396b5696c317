//! The files that methods of enrolment stand on, read at the start of a broker: one that can't be
//! read, or holds something else, stops the start and is named.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::enrolment_config::{EnrolmentConfig, TpmConfig};
use crate::authority::{Admission, EnrolMethods, TpmMethod};
use crate::identity::{Cluster, ClusterError, DeviceRoots, DeviceRootsError};
use crate::model::limits::{CREDENTIALS_FILE_MAX, EK_LIST_MAX, JWKS_MAX, ROOTS_MAX};
use crate::model::{Digest, TrustDomain};
use crate::posture::tpm::{EkRoots, EkRootsError};
use crate::wire::{PemError, pem_certificates};

/// Why a method of enrolment can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the enrolment method `{method}` can't use `{}`: {fault}", path.display())]
pub struct MethodError {
    /// Its name.
    pub method: String,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub fault: MethodFault,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum MethodFault {
    /// It can't be read.
    #[error("{0}")]
    Io(std::io::Error),
    /// Somebody else could say who becomes a device.
    #[error(
        "it must be a plain file of root's or this user's that nobody else can write (`chmod go-w`)"
    )]
    Loose,
    /// It is no PEM of certificates.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Its certificates are no roots.
    #[error(transparent)]
    Roots(#[from] DeviceRootsError),
    /// One is Doorward's own: every workload would be a device.
    #[error("it holds a root of this broker, under which every workload has a certificate")]
    Own,
    /// One is a root of a federated domain: every workload of that one would be a device.
    #[error(
        "it holds a root of the federated trust domain {0}, whose workloads would all be devices \
         here; give the devices a root of their own, or end the federation"
    )]
    Federated(TrustDomain),
    /// Its certificates are no makers of TPMs.
    #[error(transparent)]
    Makers(#[from] EkRootsError),
    /// One TPM would be two devices.
    #[error(
        "the method `{0}` has one of these roots too, with another `key`: one TPM would be two \
         devices; use one kind"
    )]
    TwoKinds(String),
    /// A line of it is no digest, or there is none, or too many.
    #[error(
        "its line {0} is not one of 1 to {EK_LIST_MAX} SHA-256 digests in lower-case hexadecimal"
    )]
    Digests(usize),
    /// It is no key set.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Another method takes the same pods' tokens.
    #[error(
        "it is the cluster of the method `{0}` once more: they share a key or the issuer, so a token \
         would fit either, and what a pod becomes would hang on their order; name each cluster once, with all \
         its service accounts"
    )]
    SameCluster(String),
}

/// Reads everything; relative paths lie in `dir`. `is_own` tells the keys of this broker's authorities,
/// `of_another` those of federated domains' roots.
///
/// # Errors
/// The first file that can't be used.
pub fn read_methods(
    dir: &Path,
    config: &EnrolmentConfig,
    is_own: impl Fn(&Digest) -> bool,
    of_another: impl Fn(&Digest) -> Option<TrustDomain>,
) -> Result<EnrolMethods, MethodError> {
    let mut methods = EnrolMethods::default();
    for it in &config.x509 {
        let path = dir.join(&it.roots);
        let read = roots(&path).and_then(|roots| {
            let holds_own = roots.keys().any(&is_own);
            if holds_own {
                return Err(MethodFault::Own);
            }
            let another = roots.keys().find_map(&of_another);
            match another {
                Some(domain) => Err(MethodFault::Federated(domain)),
                None => Ok(roots),
            }
        });
        let roots = read.map_err(|fault| failed(&it.name, path, fault))?;
        let (name, class) = (it.name.clone(), it.class.clone());
        methods.x509.push((Admission { name, class, ttl_s: it.ttl_s }, roots));
    }
    for it in &config.kubernetes {
        let path = dir.join(&it.jwks);
        let read = read(&path, JWKS_MAX).and_then(|jwks| {
            let accounts = it.service_accounts.clone();
            let cluster = Cluster::read(&jwks, &it.issuer, &it.audience, accounts)?;
            let mut others = methods.kubernetes.iter();
            match others.find(|(_, other)| other.is_also(&cluster)) {
                Some((admission, _)) => Err(MethodFault::SameCluster(admission.name.clone())),
                None => Ok(cluster),
            }
        });
        let cluster = read.map_err(|fault| failed(&it.name, path, fault))?;
        let (name, class) = (it.name.clone(), it.class.clone());
        methods.kubernetes.push((Admission { name, class, ttl_s: it.ttl_s }, cluster));
    }
    for it in &config.tpm {
        let tpm = tpm(dir, it, &is_own)?;
        let other = methods.tpm.iter().find(|(_, other)| other.is_two_with(&tpm));
        if let Some((other, _)) = other {
            let path = it.roots.clone().unwrap_or_default();
            return Err(failed(&it.name, path, MethodFault::TwoKinds(other.name.clone())));
        }
        let (name, class) = (it.name.clone(), it.class.clone());
        methods.tpm.push((Admission { name, class, ttl_s: it.ttl_s }, tpm));
    }
    Ok(methods)
}

/// What one method for TPMs stands on.
fn tpm(
    dir: &Path,
    config: &TpmConfig,
    is_own: &impl Fn(&Digest) -> bool,
) -> Result<TpmMethod, MethodError> {
    let roots = config.roots.as_ref().map(|path| {
        let path = dir.join(path);
        let read = read(&path, CREDENTIALS_FILE_MAX).and_then(|text| {
            let roots = EkRoots::read(&pem_certificates(&text, ROOTS_MAX)?)?;
            let holds_own = roots.keys().any(is_own);
            if holds_own { Err(MethodFault::Own) } else { Ok(roots) }
        });
        read.map_err(|fault| failed(&config.name, path, fault))
    });
    let keys = config.endorsement_keys.as_ref().map(|path| {
        let path = dir.join(path);
        let read = read(&path, EK_LIST_MAX * 80).and_then(|text| digests(&text));
        read.map_err(|fault| failed(&config.name, path, fault))
    });
    let (roots, keys) = (roots.transpose()?, keys.transpose()?.unwrap_or_default());
    Ok(TpmMethod { roots: roots.zip(config.key), keys, tier: config.tier })
}

/// Digests, one a line; empty lines and what follows `#` say nothing.
fn digests(text: &[u8]) -> Result<BTreeSet<Digest>, MethodFault> {
    let text = std::str::from_utf8(text).map_err(|_| MethodFault::Digests(1))?;
    let mut all = BTreeSet::new();
    for (at, line) in text.lines().enumerate() {
        let wrong = || MethodFault::Digests(at.saturating_add(1));
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        all.insert(Digest::parse(line).map_err(|_| wrong())?);
        if all.len() > EK_LIST_MAX {
            return Err(wrong());
        }
    }
    if all.is_empty() { Err(MethodFault::Digests(1)) } else { Ok(all) }
}

fn failed(method: &str, path: PathBuf, fault: MethodFault) -> MethodError {
    MethodError { method: method.to_owned(), path, fault }
}

fn roots(path: &Path) -> Result<DeviceRoots, MethodFault> {
    let certificates = pem_certificates(&read(path, CREDENTIALS_FILE_MAX)?, ROOTS_MAX)?;
    Ok(DeviceRoots::read(&certificates)?)
}

/// A file that nobody else can write; one byte over the limit is read, so that what reads it sees that it is too long.
pub(super) fn read(path: &Path, most: usize) -> Result<Vec<u8>, MethodFault> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    // A pipe must not hold up the start.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(MethodFault::Io)?;
    let found = file.metadata().map_err(MethodFault::Io)?;
    let ours = [0, nix::unistd::geteuid().as_raw()].contains(&found.uid());
    if !found.is_file() || !ours || found.mode() & 0o022 != 0 {
        return Err(MethodFault::Loose);
    }
    file.take(limit).read_to_end(&mut bytes).map_err(MethodFault::Io)?;
    if bytes.len() > most {
        return Err(MethodFault::Io(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_list_of_endorsement_keys_has_one_form() {
        let (one, two) = ("ab".repeat(32), "cd".repeat(32));
        let text = format!("# the rack\n{one}\n\n  {two} # the spare\n{one}\n");
        assert_eq!(digests(text.as_bytes()).unwrap().len(), 2);
        for bad in ["", "# none\n", &one.to_uppercase(), &one[1..], &format!("{one} {two}")] {
            assert!(matches!(digests(bad.as_bytes()), Err(MethodFault::Digests(1))), "{bad}");
        }
        let late = format!("{one}\nx\n");
        assert!(matches!(digests(late.as_bytes()), Err(MethodFault::Digests(2))));
        assert!(digests(&[0xff, b'\n']).is_err());
    }

    #[test]
    fn a_file_that_others_can_write_and_what_is_no_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        std::fs::write(&path, b"x").unwrap();
        for (mode, good) in [(0o644, true), (0o400, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, 10).is_ok(), good, "{mode:o}");
        }
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        for other in [pipe.as_path(), dir.path()] {
            assert!(matches!(read(other, 10), Err(MethodFault::Loose)), "{}", other.display());
        }
        assert!(matches!(read(&dir.path().join("none"), 10), Err(MethodFault::Io(_))));
    }
}
