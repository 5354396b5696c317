//! `[upstream]` of `broker.toml`: the company's authority that ours stand below, in files.
//!
//! The files are read whenever an authority is prepared, and looked at when the broker starts: one that
//! is missing stops neither, because what signs already needs none of them. The key is read into
//! wiped memory and nowhere else.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;
use zeroize::Zeroizing;

use super::config::Reader;
use super::methods;
use crate::authority::{ReadUpstream, UpstreamError, UpstreamFiles};
use crate::model::limits::{CREDENTIALS_FILE_MAX, ROOTS_MAX, UPSTREAM_DAYS};
use crate::wire::{pem_certificates, pem_signing_key};

/// The section. Relative paths lie in the broker's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// PEM: the company's certificate first, then those between it and a root.
    pub certificate: PathBuf,
    /// PEM, 0600: the first one's key.
    pub key: PathBuf,
    /// PEM: the roots that are published.
    pub roots: PathBuf,
    /// How many days an authority below it lives.
    pub days: u32,
}

impl UpstreamConfig {
    /// The section as text.
    pub(super) fn render(&self) -> String {
        let path = |path: &Path| toml::Value::String(path.to_string_lossy().into_owned());
        format!(
            "\n[upstream]\ncertificate = {}\nkey = {}\nroots = {}\ndays = {}\n",
            path(&self.certificate),
            path(&self.key),
            path(&self.roots),
            self.days
        )
    }

    /// What reads the files, below `dir`.
    pub fn reader(&self, dir: &Path) -> ReadUpstream {
        let (config, dir) = (self.clone(), dir.to_owned());
        Arc::new(move || config.read(&dir))
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first that can't be used.
    pub fn read(&self, dir: &Path) -> Result<UpstreamFiles, UpstreamError> {
        let certificates = |path: &Path, most| {
            let path = dir.join(path);
            let read = methods::read(&path, CREDENTIALS_FILE_MAX).map_err(|why| why.to_string());
            read.and_then(|text| pem_certificates(&text, most).map_err(|why| why.to_string()))
                .map_err(|why| failed(&path, &why))
        };
        let path = dir.join(&self.key);
        let text = private(&path).map_err(|why| failed(&path, &why))?;
        let key = pem_signing_key(&text).map_err(|why| failed(&path, &why.to_string()))?;
        drop(text);
        let mut files = UpstreamFiles {
            certificates: Vec::new(),
            key,
            roots: Vec::new(),
            life: Duration::from_secs(u64::from(self.days) * 24 * 60 * 60),
        };
        // From here on whoever drops it wipes the key.
        files.certificates = certificates(&self.certificate, ROOTS_MAX)?;
        files.roots = certificates(&self.roots, ROOTS_MAX)?;
        Ok(files)
    }
}

fn failed(path: &Path, why: &str) -> UpstreamError {
    UpstreamError::File(format!("can't use `{}`: {why}", path.display()))
}

/// A plain file of root's or this user's, closed to others, in wiped memory.
fn private(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|why| why.to_string())?;
    let meta = file.metadata().map_err(|why| why.to_string())?;
    let ours = [0, nix::unistd::geteuid().as_raw()].contains(&meta.uid());
    if !meta.is_file() || !ours || meta.mode() & 0o077 != 0 {
        return Err("it must be a plain file of root's or this user's, closed to others \
                    (`chmod 600`)"
            .to_owned());
    }
    // As large as it may be: a vector that grows leaves an unwiped copy behind.
    let mut text = Zeroizing::new(Vec::with_capacity(CREDENTIALS_FILE_MAX.saturating_add(2)));
    let limit = u64::try_from(CREDENTIALS_FILE_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut text).map_err(|why| why.to_string())?;
    match text.len() > CREDENTIALS_FILE_MAX {
        true => Err("it is too large to be a key".to_owned()),
        false => Ok(text),
    }
}

impl Reader<'_> {
    /// None in it: the file does not say.
    pub(super) fn upstream(&mut self, table: &DeTable<'_>) -> Option<Option<UpstreamConfig>> {
        const KEYS: &[&str] = &["certificate", "key", "roots", "days"];
        let Some(section) = self.section(table, "upstream", KEYS) else {
            return (!table.contains_key("upstream")).then_some(None);
        };
        let mut path = |name: &'static str| {
            let Some(value) = section.get(name) else {
                let span = table.get("upstream").map_or(0..1, Spanned::span);
                self.fault(span, format!("`upstream.{name}` is missing: a PEM file"), None);
                return None;
            };
            let text = self.text(value, name)?;
            if text.is_empty() {
                self.fault(value.span(), format!("`{name}` is a PEM file"), None);
                return None;
            }
            Some(PathBuf::from(text))
        };
        let (certificate, key, roots) = (path("certificate"), path("key"), path("roots"));
        // An old one is trusted for 30 days, the next comes at half: fewer days would be too many at once.
        let days = self.number(Some(section), "days", &(40..=365), UPSTREAM_DAYS);
        Some(Some(UpstreamConfig {
            certificate: certificate?,
            key: key?,
            roots: roots?,
            days: days?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::config::BrokerConfig;
    use super::*;

    const BASE: &str = "trust_domain = \"corp.example\"\n[advertise]\nbroker = \"b:8443\"\n\
                        enrolment = \"b:8444\"\n[seal]\nkind = \"passphrase\"\n";
    const GOOD: &str = "[upstream]\ncertificate = \"up.pem\"\nkey = \"/k/up.key\"\n\
                        roots = \"root.pem\"\n";

    fn parse(text: &str) -> Result<BrokerConfig, String> {
        BrokerConfig::parse("broker.toml", &format!("{BASE}{text}")).map_err(|faults| {
            let all: Vec<_> = faults.iter().map(|fault| fault.message.clone()).collect();
            all.join("\n")
        })
    }

    #[test]
    fn the_section_is_read_written_and_its_faults_are_named() {
        assert_eq!(parse("").unwrap().upstream, None);
        let read = parse(GOOD).unwrap();
        let upstream = read.upstream.clone().unwrap();
        assert_eq!(upstream.days, UPSTREAM_DAYS);
        assert_eq!(upstream.key, Path::new("/k/up.key"));
        let again = BrokerConfig::parse("broker.toml", &read.render()).unwrap();
        assert_eq!(again, read);
        for (from, to, want) in [
            ("key = ", "kez = ", "unknown key `kez`"),
            ("key = \"/k/up.key\"\n", "", "`upstream.key` is missing"),
            ("\"root.pem\"", "\"\"", "`roots` is a PEM file"),
            ("\"up.pem\"", "7", "`certificate` is text"),
            ("[upstream]\n", "[upstream]\ndays = 39\n", "`days` is a whole number, 40 to 365"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let said = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(said.contains(want), "{to}: {said}");
        }
        assert!(parse("upstream = 7\n").is_err());
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("up.key");
        std::fs::write(&path, b"x").unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(private(&path).is_ok(), good, "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, vec![b'x'; CREDENTIALS_FILE_MAX + 1]).unwrap();
        assert!(private(&path).unwrap_err().contains("too large"));
        assert!(private(dir.path()).is_err());
    }
}
