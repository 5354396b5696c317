//! The agent's keys: the device's own, in a file that only the agent's user can read, and those of
//! workloads, in memory only.
//!
//! A key file with loose modes, of another owner, behind a symlink or with a second link is refused
//! rather than mended: somebody else may have read it already. No key is ever written anywhere but
//! into that one file. Certificates are built here (and in `authority`) only, and only the
//! applicant's self-signed one: nothing of it but its key counts at the other end.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::pair::Pair;
use super::tpm::{TpmError, TpmKey, signing_key};
use crate::model::DeviceId;
use crate::wire::{HeldKey, take_up_held_keys};

/// The device key's file; credentials of the same directory name the same file.
const FILE: &str = "key.pem";
/// A P-256 key in PKCS#8 PEM is about 250 bytes.
const FILE_MAX: usize = 4096;
/// The same, as readers count.
const FILE_MAX_U64: u64 = 4096;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("can't {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Not a plain file or directory: a symlink, a device, a second hard link.
    #[error("{} is not a plain {kind}: replace it by one of your own", path.display())]
    Shape {
        /// Where.
        path: PathBuf,
        /// What was expected.
        kind: &'static str,
    },
    /// Somebody else owns it.
    #[error("{} belongs to uid {owner}, not to the agent's uid: move it away", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// Others may read or write it.
    #[error("{} has mode {mode:04o}: others can read it; make a new key", path.display())]
    Loose {
        /// Where.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error("{} holds no P-256 private key in PKCS#8 PEM", path.display())]
    Content {
        /// Where.
        path: PathBuf,
    },
    /// The TPM that holds the key gave nothing.
    #[error("the device key is in a tpm, and that gave nothing")]
    Tpm(#[from] TpmError),
    /// The crypto library refused; nothing that an operator can mend.
    #[error("the crypto library could not {0}")]
    Crypto(&'static str),
}

impl KeyError {
    /// What to do, where that can be said.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Tpm(error) => error.hint(),
            _ => None,
        }
    }
}

/// Where a device's key is.
enum Inner {
    /// In a file.
    File(Pair),
    /// In a TPM; the file says which.
    Tpm(TpmKey),
}

/// The device's key: what the device *is* to the broker. Lives in one 0600 file, or in a TPM.
pub struct DeviceKey(Inner);

impl DeviceKey {
    /// A fresh key, in memory; whoever keeps the credentials that it gets keeps it too.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn generate() -> Result<Self, KeyError> {
        Pair::generate().map(|pair| Self(Inner::File(pair)))
    }

    /// A key in a TPM.
    pub fn in_tpm(key: TpmKey) -> Self {
        take_up_held_keys(signing_key);
        Self(Inner::Tpm(key))
    }

    /// Whether a TPM holds it.
    pub fn is_in_tpm(&self) -> bool {
        self.tpm().is_some()
    }

    /// The TPM's key, where it is one.
    pub(super) fn tpm(&self) -> Option<&TpmKey> {
        match &self.0 {
            Inner::File(_) => None,
            Inner::Tpm(key) => Some(key),
        }
    }

    /// The key that stands in `dir`.
    ///
    /// # Errors
    /// When directory or file are not what only the agent can read, the file holds something else,
    /// or there is none.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        check_dir(dir)?;
        Self::load(&dir.join(FILE))
    }

    /// A fresh key in a new directory, for tests.
    #[cfg(test)]
    pub(super) fn kept(dir: &Path) -> Self {
        use std::io::Write as _;
        use std::os::unix::fs::DirBuilderExt as _;
        let key = Self::generate().unwrap();
        let Inner::File(made) = &key.0 else { panic!("a key in a file") };
        let der = PrivatePkcs8KeyDer::from(made.pkcs8.as_slice());
        let pair =
            rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256);
        std::fs::DirBuilder::new().mode(0o700).create(dir).unwrap();
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(FILE));
        file.unwrap().write_all(pair.unwrap().serialize_pem().as_bytes()).unwrap();
        key
    }

    /// The key in a file of its own.
    pub(super) fn load(path: &Path) -> Result<Self, KeyError> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ELOOP) => KeyError::Shape { path: path.into(), kind: "file" },
                _ => KeyError::Io { what: "open", path: path.into(), source },
            })?;
        check_own(&file, path, "file")?;
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_MAX));
        Read::take(&mut file, FILE_MAX_U64)
            .read_to_end(&mut text)
            .map_err(|source| KeyError::Io { what: "read", path: path.into(), source })?;
        let content = || KeyError::Content { path: path.into() };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| content())?;
        if let Some(held) = HeldKey::of(&PrivateKeyDer::Pkcs8(der.clone_key())) {
            return Ok(Self::in_tpm(TpmKey::of(&held)?));
        }
        Pair::of_pkcs8(Zeroizing::new(der.secret_pkcs8_der().to_vec()))
            .map(|pair| Self(Inner::File(pair)))
            .ok_or_else(content)
    }

    /// As a key file holds it.
    pub(super) fn pem(&self) -> Zeroizing<String> {
        let key = self.private();
        let text = Zeroizing::new(STANDARD.encode(key.secret_der()));
        // Room for all of it from the start: nothing is moved and left behind.
        let mut pem = Zeroizing::new(String::with_capacity(text.len() + text.len() / 32 + 64));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().copied().map(char::from));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }

    /// The public key as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        match &self.0 {
            Inner::File(pair) => &pair.spki,
            Inner::Tpm(key) => key.spki(),
        }
    }

    /// The device's id: the digest of the public key, or of the TPM's endorsement key.
    pub fn id(&self) -> DeviceId {
        match &self.0 {
            Inner::File(pair) => DeviceId::of_key(&pair.spki),
            Inner::Tpm(key) => key.id(),
        }
    }

    /// Signs with ECDSA P-256 and SHA-256: `r || s`, 64 bytes (the form of JOSE's ES256).
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.0 {
            Inner::File(pair) => pair
                .signer
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| KeyError::Crypto("sign")),
            Inner::Tpm(key) => Ok(key.sign(message)?.to_vec()),
        }
    }

    /// Signs with ECDSA P-256 and SHA-256 in ASN.1 form (X9.62), which is what verifiers that take
    /// a SubjectPublicKeyInfo of any curve expect.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn sign_asn1(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        const FAILED: KeyError = KeyError::Crypto("sign");
        let pair = match &self.0 {
            Inner::File(pair) => pair,
            Inner::Tpm(key) => return Ok(key.sign_asn1(message)?),
        };
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pair.pkcs8)
            .map_err(|_| FAILED)?
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| FAILED)
    }

    /// The private key for a TLS end of the agent's own; of one in a TPM its description, which TLS
    /// takes up by [`crate::wire::take_up_held_keys`].
    pub fn private(&self) -> PrivateKeyDer<'static> {
        match &self.0 {
            Inner::File(pair) => pair.private(),
            // A description that is too long is no key of any kind, and is refused as such.
            Inner::Tpm(key) => {
                key.held().der().unwrap_or_else(|| PrivateKeyDer::Pkcs8(Vec::new().into()))
            }
        }
    }

    /// A self-signed certificate over the key, for the enrolment port, and the key.
    ///
    /// # Errors
    /// When the certificate can't be built.
    #[allow(clippy::type_complexity)]
    pub fn self_signed(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), KeyError> {
        const FAILED: KeyError = KeyError::Crypto("build the applicant's certificate");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "doorward applicant");
        let certificate = match &self.0 {
            Inner::File(pair) => {
                let der = PrivatePkcs8KeyDer::from(pair.pkcs8.as_slice());
                let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
                rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm)
                    .and_then(|signer| params.self_signed(&signer))
            }
            Inner::Tpm(key) => params.self_signed(&Remote(key)),
        };
        let certificate = certificate.map_err(|_| FAILED)?;
        Ok((vec![certificate.der().clone()], self.private()))
    }
}

/// A key in a TPM, as certificates are signed with it.
struct Remote<'a>(&'a TpmKey);

impl rcgen::PublicKeyData for Remote<'_> {
    fn der_bytes(&self) -> &[u8] {
        // The point stands at the end of a SubjectPublicKeyInfo of P-256.
        let spki = self.0.spki();
        spki.get(spki.len().saturating_sub(65)..).unwrap_or_default()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Remote<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign_asn1(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({})", self.id().short())
    }
}

/// A key for one workload's SVID, held by the agent or made for the workload. It exists in memory
/// only.
pub struct WorkloadKey(Pair);

impl WorkloadKey {
    /// A fresh key.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn generate() -> Result<Self, KeyError> {
        Pair::generate().map(Self)
    }

    /// The public key as SubjectPublicKeyInfo (DER).
    pub fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    /// The private key, for the agent's own TLS end.
    pub fn private(&self) -> PrivateKeyDer<'static> {
        self.0.private()
    }

    /// The private key for the workload itself, as PKCS#8 (DER); the agent keeps none of it. Wiping
    /// it is the taker's task.
    pub(super) fn into_pkcs8(mut self) -> Vec<u8> {
        std::mem::take(&mut *self.0.pkcs8)
    }
}

impl fmt::Debug for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadKey(…)")
    }
}

/// Insists on a directory of the agent's own that nobody else can look into.
pub(super) fn check_dir(dir: &Path) -> Result<(), KeyError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY)
        .open(dir)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ELOOP | libc::ENOTDIR) => {
                KeyError::Shape { path: dir.into(), kind: "directory" }
            }
            _ => KeyError::Io { what: "open", path: dir.into(), source },
        })?;
    check_own(&opened, dir, "directory")
}

fn check_own(file: &File, path: &Path, kind: &'static str) -> Result<(), KeyError> {
    let found = file.metadata().map_err(|source| KeyError::Io {
        what: "look at",
        path: path.into(),
        source,
    })?;
    let plain = match kind {
        "file" => found.is_file() && found.nlink() == 1,
        _ => found.is_dir(),
    };
    if !plain {
        return Err(KeyError::Shape { path: path.into(), kind });
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeyError::Foreign { path: path.into(), owner: found.uid() });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Loose { path: path.into(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ParsedPublicKey};

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn loose_linked_and_foreign_content_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("state");
        DeviceKey::kept(&dir);
        DeviceKey::open(&dir).unwrap(); // the positive control
        let path = dir.join(FILE);

        chmod(&path, 0o640);
        assert!(matches!(DeviceKey::open(&dir), Err(KeyError::Loose { mode: 0o640, .. })));
        chmod(&path, 0o600);
        chmod(&dir, 0o755);
        assert!(matches!(DeviceKey::open(&dir), Err(KeyError::Loose { .. })));
        chmod(&dir, 0o700);
        DeviceKey::open(&dir).unwrap();

        std::fs::hard_link(&path, dir.join("second")).unwrap();
        assert!(matches!(DeviceKey::open(&dir), Err(KeyError::Shape { .. })));
        std::fs::remove_file(dir.join("second")).unwrap();

        let moved = above.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        symlink(&moved, &path).unwrap();
        let refused = DeviceKey::open(&dir);
        assert!(matches!(refused, Err(KeyError::Shape { .. })), "{refused:?}");

        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
            .unwrap();
        chmod(&path, 0o600);
        assert!(matches!(DeviceKey::open(&dir), Err(KeyError::Content { .. })));
    }

    #[test]
    fn a_symlinked_directory_is_refused() {
        let above = tempfile::tempdir().unwrap();
        let real = above.path().join("real");
        DeviceKey::kept(&real);
        let link = above.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(matches!(DeviceKey::open(&link), Err(KeyError::Shape { .. })));
    }

    #[test]
    fn a_key_of_another_owner_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return; // only root can give a file away
        }
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("state");
        DeviceKey::kept(&dir);
        std::os::unix::fs::chown(dir.join(FILE), Some(4321), None).unwrap();
        assert!(matches!(DeviceKey::open(&dir), Err(KeyError::Foreign { owner: 4321, .. })));
    }

    #[test]
    fn the_same_key_comes_back_and_its_signatures_hold() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("state");
        let made = DeviceKey::kept(&dir);
        let back = DeviceKey::open(&dir).unwrap();
        assert_eq!(made.id(), back.id());

        let signature = back.sign(b"message").unwrap();
        assert_eq!(signature.len(), 64);
        let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, made.spki()).unwrap();
        public.verify_sig(b"message", &signature).unwrap();
        assert!(public.verify_sig(b"another", &signature).is_err());
        let public = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, made.spki()).unwrap();
        public.verify_sig(b"message", &back.sign_asn1(b"message").unwrap()).unwrap();
    }

    #[test]
    fn the_applicants_certificate_carries_the_device_key() {
        let key = DeviceKey::generate().unwrap();
        let (chain, _) = key.self_signed().unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert_eq!(certificate.public_key().raw, key.spki());
    }

    #[test]
    fn workload_keys_differ_and_show_nothing() {
        let (one, two) = (WorkloadKey::generate().unwrap(), WorkloadKey::generate().unwrap());
        assert_ne!(one.spki(), two.spki());
        assert_eq!(format!("{one:?}"), "WorkloadKey(…)");
    }
}
