//! An SVID with its key and trust bundle, in memory or in a directory.
//!
//! A directory holds `svid.pem` (leaf first), `key.pem`, `bundle.pem` and `doorward.json` (trust
//! domain and the broker's address). It is read only if nobody else could have read the key or
//! changed any of it, and only if the four fit together. Keys are never shown and are wiped.

use std::fmt;
use std::path::Path;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::{Zeroize as _, Zeroizing};

use super::directory::{self, Access, DirectoryError};
use super::held;
use super::leaf::{Leaf, LeafError};
use super::pem::{self, PemError};
use super::strict::{self, StrictError};
use crate::model::limits::{CHAIN_MAX, ROOTS_MAX};
use crate::model::{SpiffeId, TrustDomain};

/// Version of the directory's form.
const FORMAT: u32 = 1;
/// The longest address: a DNS name of 253 bytes, a colon, a port.
const ADDRESS_MAX: usize = 253 + 1 + 5;

const SVID: &str = "svid.pem";
const KEY: &str = "key.pem";
const BUNDLE: &str = "bundle.pem";
const META: &str = "doorward.json";

/// Why credentials can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Not `host:port`.
    #[error("the broker's address is not `host:port`")]
    Address,
    /// A file's owner, mode or content can't be trusted, or it can't be read or written.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// SVID and trust domain differ.
    #[error("the svid is of trust domain `{svid}`, but doorward.json says `{meta}`; enrol again")]
    Domain {
        /// In the certificate.
        svid: TrustDomain,
        /// In `doorward.json`.
        meta: TrustDomain,
    },
    /// A key of a kind that is not used here.
    #[error("the private key is neither pkcs #8 nor sec 1")]
    KeyKind,
    /// Key and SVID are not of one pair.
    #[error("key.pem is not the key of the certificate in svid.pem; enrol again")]
    KeyOfAnother,
    /// The certificate can't be read.
    #[error("svid.pem: the first certificate is not an svid: {0}")]
    Leaf(#[from] LeafError),
    /// `doorward.json` is of another form.
    #[error("doorward.json: {0}")]
    Meta(StrictError),
    /// Written by a later version.
    #[error("doorward.json is of format {0}, which is newer than this program; update it")]
    Newer(u32),
    /// No certificate at all.
    #[error("there is no certificate in the chain")]
    NoLeaf,
    /// The roots are another domain's.
    #[error(
        "bundle.pem holds a root of `{root}`: it must hold those of the broker's own trust domain, \
         `{broker}`"
    )]
    Roots {
        /// Whom it names.
        root: TrustDomain,
        /// In `doorward.json`.
        broker: TrustDomain,
    },
    /// A PEM file is of another form.
    #[error("{file}: {fault}")]
    Pem {
        /// Which.
        file: &'static str,
        /// What is wrong.
        fault: PemError,
    },
}

/// An identity to ask with.
pub struct Credentials {
    /// The broker's trust domain. The SVID may be of another one, which it federates with.
    pub domain: TrustDomain,
    /// The broker's address, `host:port`.
    pub broker: String,
    /// The SVID, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key; wiped with this value.
    pub key: PrivateKeyDer<'static>,
    /// The roots of the broker's trust domain, and of no other.
    pub bundle: Vec<CertificateDer<'static>>,
}

/// `doorward.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    format: u32,
    /// That of the SVID, and of the broker if no other is named.
    trust_domain: TrustDomain,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    broker_trust_domain: Option<TrustDomain>,
    broker: String,
}

/// The one field of `doorward.json` that every version has.
#[derive(Debug, Serialize, Deserialize)]
struct MetaFormat {
    format: u32,
}

impl Credentials {
    /// Reads a directory. Loose modes and foreign owners are refused, with the command that mends
    /// them.
    ///
    /// # Errors
    /// What is wrong, and in which file.
    pub fn load(dir: &Path) -> Result<Self, CredentialsError> {
        directory::check(dir)?;
        directory::settle(dir)?;
        let meta = parse_meta(&directory::read(dir, META, Access::Anyone)?)?;
        let chain = directory::read(dir, SVID, Access::Anyone)?;
        let bundle = directory::read(dir, BUNDLE, Access::Anyone)?;
        let key = directory::read(dir, KEY, Access::Owner)?;
        let (own, brokers) = (meta.trust_domain, meta.broker_trust_domain);
        let credentials = Self {
            domain: brokers.unwrap_or_else(|| own.clone()),
            broker: meta.broker,
            chain: pem::certificates(&chain, CHAIN_MAX).map_err(in_file(SVID))?,
            key: pem::key(&key).map_err(in_file(KEY))?,
            bundle: pem::certificates(&bundle, ROOTS_MAX).map_err(in_file(BUNDLE))?,
        };
        credentials.fits(&own)?;
        Ok(credentials)
    }

    /// Reads a directory that may hold no identity at all.
    ///
    /// # Errors
    /// As [`Credentials::load`], if there is anything of one but a key.
    pub fn load_if_any(dir: &Path) -> Result<Option<Self>, CredentialsError> {
        directory::check(dir)?;
        directory::settle(dir)?;
        let there = |name: &str| dir.join(name).symlink_metadata().is_ok();
        if !there(META) && !there(SVID) {
            return Ok(None);
        }
        Self::load(dir).map(Some)
    }

    /// Writes a directory: each file whole or not at all, 0600, in a directory made 0700. For an
    /// identity whose key is there already; another key comes by [`Credentials::replace`].
    ///
    /// # Errors
    /// When a file can't be written, or `load` would refuse what is written.
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        let files = self.files()?;
        directory::make(dir)?;
        for (name, text) in &files {
            directory::replace(dir, name, text.as_bytes())?;
        }
        Ok(directory::sync(dir)?)
    }

    /// Writes a directory in place of the identity that it may hold, together with other files that
    /// belong to the new one: all of them, or nothing.
    ///
    /// # Errors
    /// As [`Credentials::save`].
    pub fn replace(&self, dir: &Path, beside: &[(&str, &[u8])]) -> Result<(), CredentialsError> {
        let own = self.files()?;
        let own = own.iter().map(|(name, text)| (*name, text.as_bytes()));
        let files: Vec<_> = own.chain(beside.iter().copied()).collect();
        directory::make(dir)?;
        Ok(directory::replace_all(dir, &files)?)
    }

    /// The four files, in the order in which they are written.
    fn files(&self) -> Result<[(&'static str, Zeroizing<String>); 4], CredentialsError> {
        self.check()?;
        let key = pem::encode_key(&self.key).ok_or(CredentialsError::KeyKind)?;
        let (trust_domain, broker) = (self.domain.clone(), self.broker.clone());
        let meta = Meta { format: FORMAT, trust_domain, broker_trust_domain: None, broker };
        let meta = serde_json::json!(meta);
        Ok([
            (META, format!("{meta:#}\n").into()),
            (BUNDLE, pem::encode_certificates(&self.bundle).into()),
            (KEY, key),
            (SVID, pem::encode_certificates(&self.chain).into()),
        ])
    }

    /// The SPIFFE ID of the leaf.
    ///
    /// # Errors
    /// When the leaf is not an SVID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, CredentialsError> {
        Ok(self.leaf()?.svid()?)
    }

    /// End of the leaf's validity.
    ///
    /// # Errors
    /// When the leaf is not a certificate.
    pub fn not_after(&self) -> Result<OffsetDateTime, CredentialsError> {
        Ok(self.leaf()?.not_after)
    }

    fn leaf(&self) -> Result<Leaf, CredentialsError> {
        Ok(Leaf::parse(self.chain.first().ok_or(CredentialsError::NoLeaf)?)?)
    }

    /// Whether the SVID is of a domain that the broker federates with. Somebody else issues it then,
    /// and puts it here: it is neither renewed nor written by us.
    pub fn is_visitor(&self) -> bool {
        self.spiffe_id().is_ok_and(|id| *id.trust_domain() != self.domain)
    }

    /// What is written is of the broker's own domain.
    fn check(&self) -> Result<(), CredentialsError> {
        self.fits(&self.domain)
    }

    /// That all of it fits together, with an SVID of this domain and roots of the broker's.
    fn fits(&self, own: &TrustDomain) -> Result<(), CredentialsError> {
        check_address(&self.broker)?;
        let id = self.spiffe_id()?;
        if id.trust_domain() != own {
            let svid = id.trust_domain().clone();
            return Err(CredentialsError::Domain { svid, meta: own.clone() });
        }
        for root in self.bundle.iter().filter_map(|root| Leaf::parse(root).ok()?.spiffe_id) {
            // Only what was meant for another broker, or for checking the SVID itself, says so.
            if *own != self.domain && *root.trust_domain() != self.domain {
                let (root, broker) = (root.trust_domain().clone(), self.domain.clone());
                return Err(CredentialsError::Roots { root, broker });
            }
        }
        let key = held::public_key(&self.key).ok_or(CredentialsError::KeyKind)?;
        let fits = key == self.leaf()?.spki;
        if fits { Ok(()) } else { Err(CredentialsError::KeyOfAnother) }
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.spiffe_id().ok();
        let id = id.as_ref().map_or("no svid", SpiffeId::as_str);
        f.debug_struct("Credentials").field("spiffe_id", &id).field("broker", &self.broker).finish()
    }
}

/// Checks the form `host:port`, `[v6]:port` included; nothing is looked up.
pub fn check_address(address: &str) -> Result<(), CredentialsError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    let (host, port) = address.rsplit_once(':').ok_or(CredentialsError::Address)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(':') && host.bytes().all(plain),
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port_fits = digits && port.parse::<u16>().is_ok_and(|port| port != 0);
    if host_fits && port_fits && address.len() <= ADDRESS_MAX {
        return Ok(());
    }
    Err(CredentialsError::Address)
}

fn parse_meta(bytes: &[u8]) -> Result<Meta, CredentialsError> {
    let bytes = bytes.trim_ascii();
    let MetaFormat { format } = strict::from_bytes(bytes).map_err(CredentialsError::Meta)?;
    if format > FORMAT {
        return Err(CredentialsError::Newer(format));
    }
    strict::from_request(bytes).map_err(CredentialsError::Meta)
}

fn in_file(file: &'static str) -> impl Fn(PemError) -> CredentialsError {
    move |fault| CredentialsError::Pem { file, fault }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use time::macros::datetime;

    fn some(id: &str) -> Credentials {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
        params.not_after = datetime!(2027-01-02 03:04:05 UTC);
        let certificate = params.self_signed(&key).unwrap();
        Credentials {
            domain: TrustDomain::parse("corp.example").unwrap(),
            broker: "broker.corp.example:8443".into(),
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            bundle: vec![certificate.der().clone()],
        }
    }

    fn saved() -> (tempfile::TempDir, std::path::PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("identity");
        some("spiffe://corp.example/pay/api").save(&dir).unwrap();
        (place, dir)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_was_saved_is_loaded_and_closed_to_others() {
        let (_place, dir) = saved();
        let loaded = Credentials::load(&dir).unwrap();
        assert_eq!(loaded.spiffe_id().unwrap().as_str(), "spiffe://corp.example/pay/api");
        assert_eq!(loaded.not_after().unwrap(), datetime!(2027-01-02 03:04:05 UTC));
        assert_eq!(loaded.broker, "broker.corp.example:8443");
        assert_eq!(mode(&dir), 0o700);
        let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap()).collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        assert!(names.iter().all(|entry| mode(&entry.path()) == 0o600));
        let names: Vec<_> = names.iter().map(|entry| entry.file_name()).collect();
        assert_eq!(names, [BUNDLE, META, KEY, SVID]);
        let shown = format!("{loaded:?}");
        assert!(
            shown.contains("spiffe://corp.example/pay/api") && !shown.contains("key"),
            "{shown}"
        );
        loaded.save(&dir).unwrap();
        assert!(Credentials::load(&dir).is_ok(), "saved over itself");
        some("spiffe://corp.example/pay/other").replace(&dir, &[("more", b"x")]).unwrap();
        let other = Credentials::load_if_any(&dir).unwrap().unwrap();
        assert_eq!(other.spiffe_id().unwrap().as_str(), "spiffe://corp.example/pay/other");
        assert_ne!(other.chain, loaded.chain);
        assert_eq!(mode(&dir.join("more")), 0o600);
        assert_eq!(mode(&dir.join(KEY)), 0o600);
    }

    #[test]
    fn loose_modes_are_refused_with_the_command_that_mends_them() {
        for (file, loose) in [(KEY, 0o640), (KEY, 0o604), (BUNDLE, 0o620), (META, 0o602)] {
            let (_place, dir) = saved();
            let path = dir.join(file);
            set_permissions(&path, Permissions::from_mode(loose)).unwrap();
            let error = Credentials::load(&dir).unwrap_err().to_string();
            assert!(error.ends_with(&format!("run `chmod 600 {}`", path.display())), "{error}");
            set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            assert!(Credentials::load(&dir).is_ok());
        }
        let (_place, dir) = saved();
        set_permissions(&dir, Permissions::from_mode(0o770)).unwrap();
        let error = Credentials::load(&dir).unwrap_err().to_string();
        assert!(error.ends_with(&format!("run `chmod 700 {}`", dir.display())), "{error}");
        assert!(some("spiffe://corp.example/x").save(&dir).is_err());
    }

    #[test]
    fn a_directory_may_hold_none_or_half_of_one() {
        let (_place, dir) = saved();
        assert!(Credentials::load_if_any(&dir).unwrap().is_some());
        std::fs::remove_file(dir.join(SVID)).unwrap();
        assert!(Credentials::load_if_any(&dir).is_err(), "half of one is a fault");
        std::fs::remove_file(dir.join(META)).unwrap();
        assert!(Credentials::load_if_any(&dir).unwrap().is_none(), "a key alone is nobody");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (_place, dir) = saved();
        let mut other = some("spiffe://corp.example/pay/api");
        other.key = Credentials::load(&dir).unwrap().key.clone_key();
        assert!(matches!(other.save(&dir), Err(CredentialsError::KeyOfAnother)));
        let key = some("spiffe://corp.example/pay/api").key.clone_key();
        directory::replace(&dir, KEY, pem::encode_key(&key).unwrap().as_bytes()).unwrap();
        assert!(matches!(Credentials::load(&dir), Err(CredentialsError::KeyOfAnother)));
    }

    #[test]
    fn a_link_in_place_of_a_file_is_refused() {
        let (_place, dir) = saved();
        std::fs::rename(dir.join(KEY), dir.join("elsewhere.pem")).unwrap();
        std::os::unix::fs::symlink(dir.join("elsewhere.pem"), dir.join(KEY)).unwrap();
        assert!(matches!(
            Credentials::load(&dir),
            Err(CredentialsError::Directory(DirectoryError::Read { .. }))
        ));
    }

    #[test]
    fn doorward_json_is_strict_and_newer_ones_are_named() {
        let (_place, dir) = saved();
        let write = |text: &str| {
            directory::replace(&dir, META, text.as_bytes()).unwrap();
            Credentials::load(&dir)
        };
        let good = r#"{"format":1,"trust_domain":"corp.example","broker":"b:1"}"#;
        assert!(write(good).is_ok());
        assert!(matches!(write(&good.replace(":1,", ":2,")), Err(CredentialsError::Newer(2))));
        let newer = r#"{"format":3,"realm":"corp.example"}"#;
        assert!(matches!(write(newer), Err(CredentialsError::Newer(3))));
        for bad in [
            &good.replace("\"b:1\"", "\"b:1\",\"x\":1"),
            &good.replace("corp.example", "Corp.example"),
            "",
            "[]",
        ] {
            assert!(matches!(write(bad), Err(CredentialsError::Meta(_))), "{bad}");
        }
        let other = good.replace("corp.example", "other.example");
        assert!(matches!(write(&other), Err(CredentialsError::Domain { .. })));
        assert!(matches!(write(&good.replace("b:1", "b")), Err(CredentialsError::Address)));
    }

    #[test]
    fn an_svid_of_another_domain_is_taken_where_the_broker_s_is_named() {
        let (_place, dir) = saved();
        let write = |text: &str| {
            directory::replace(&dir, META, text.as_bytes()).unwrap();
            Credentials::load(&dir)
        };
        let own = r#"{"format":1,"trust_domain":"corp.example","broker":"b:1"}"#;
        assert!(!write(own).unwrap().is_visitor());
        let other = own.replace("\"broker\"", "\"broker_trust_domain\":\"b.example\",\"broker\"");
        // The root that `some` makes names corp.example, and so is none of the broker's.
        assert!(matches!(write(&other), Err(CredentialsError::Roots { .. })));
        let root = some("spiffe://b.example/x").bundle.clone();
        let pem = pem::encode_certificates(&root);
        directory::replace(&dir, BUNDLE, pem.as_bytes()).unwrap();
        let visitor = write(&other).unwrap();
        assert!(visitor.is_visitor());
        assert_eq!(visitor.domain.as_str(), "b.example");
        assert_eq!(visitor.spiffe_id().unwrap().trust_domain().as_str(), "corp.example");
        // It is not ours to write; and the SVID's own domain is never taken from the broker's.
        assert!(matches!(visitor.save(&dir), Err(CredentialsError::Domain { .. })));
        for wrong in
            [other.replace("corp.example", "c.example"), other.replace("corp.example", "b.example")]
        {
            assert!(matches!(write(&wrong), Err(CredentialsError::Domain { .. })), "{wrong}");
        }
        for bad in ["\"\"", "null", "\"B.example\"", "[\"b.example\"]"] {
            let text = other.replace("\"b.example\"", bad);
            let loaded = write(&text);
            let is_null = bad == "null" && loaded.as_ref().is_ok_and(|it| !it.is_visitor());
            assert!(is_null || matches!(loaded, Err(CredentialsError::Meta(_))), "{bad}");
        }
    }

    #[test]
    fn a_leaf_without_one_spiffe_id_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let none = some("https://corp.example/pay/api");
        assert!(matches!(none.save(place.path()), Err(CredentialsError::Leaf(_))));
        assert!(matches!(none.spiffe_id(), Err(CredentialsError::Leaf(LeafError::NoSpiffeId))));
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["a:1", "broker.corp.example:8443", "127.0.0.1:8443", "[::1]:8443"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        let long = format!("{}:8443", "a".repeat(300));
        for bad in
            ["", "a", "a:", ":1", "a:0", "a:65536", "a:+1", "::1:8443", "a b:1", "[a]:1", &long]
        {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
