//! `agent.toml`: where the agent belongs. Written once by `join`, read at every start.
//!
//! Nothing in it is secret, but whoever could write it could send the agent elsewhere: it lives in
//! the same closed directory as the key. A field that is unknown or missing is an error.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Digest, TrustDomain};

/// Its name in the state directory.
pub(super) const FILE: &str = "agent.toml";
/// An honest file is under 2 KiB.
const FILE_MAX: u64 = 64 * 1024;
/// A host name with its port, in bytes (RFC 1035 and five digits).
const PLACE_MAX: usize = 262;
/// The word for a Workload API that is not served.
const OFF: &str = "off";
/// The longest path of a Unix socket on Linux.
const SOCKET_MAX: usize = 107;

/// Why the settings can't be read, or can't be.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
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
    /// Another form.
    #[error("{}: {text}", path.display())]
    Form {
        /// Where.
        path: PathBuf,
        /// What is wrong, in toml's words.
        text: String,
    },
    /// A field can't be what it says.
    #[error("`{field}` {fault}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        fault: &'static str,
    },
}

/// What a node knows of its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// The state directory; not in the file, which lies in it.
    #[serde(skip)]
    pub dir: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// The SPIFFE Workload API's socket, or `off`. Without it, it stands beside the local socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_api: Option<PathBuf>,
    /// The socket of the node's container runtime (`containerd.sock`, `crio.sock`), which is asked for
    /// the images that containers run. Without it, they are unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<PathBuf>,
    /// Permission bits of both sockets; who asks is told by the kernel, so all may knock by default.
    #[serde(default = "everybody")]
    pub socket_mode: u32,
    /// The enrolment port, `host:port`.
    pub enrolment: String,
    /// The broker, `host:port`.
    pub broker: String,
    /// The trust domain.
    pub domain: TrustDomain,
    /// SHA-256 of the broker's root certificate (DER), out of the join token.
    pub root: Digest,
    /// The word for people that the device enrolled under.
    pub name: String,
}

fn everybody() -> u32 {
    0o666
}

impl AgentSettings {
    /// Settings with the default socket mode.
    pub fn new(
        dir: PathBuf,
        socket: PathBuf,
        enrolment: String,
        broker: String,
        domain: TrustDomain,
        root: Digest,
        name: String,
    ) -> Self {
        Self {
            dir,
            socket,
            workload_api: None,
            container_runtime: None,
            socket_mode: everybody(),
            enrolment,
            broker,
            domain,
            root,
            name,
        }
    }

    /// Where the SPIFFE Workload API is served, if it is.
    pub fn workload_socket(&self) -> Option<PathBuf> {
        match &self.workload_api {
            None => Some(workload_socket_beside(&self.socket)),
            Some(word) if word.as_os_str() == OFF => None,
            Some(path) => Some(path.clone()),
        }
    }

    /// Reads the file in `dir`.
    ///
    /// # Errors
    /// When it can't be read, or says anything that can't be.
    pub fn load(dir: &Path) -> Result<Self, SettingsError> {
        let path = dir.join(FILE);
        let mut text = String::new();
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .and_then(|file| file.take(FILE_MAX).read_to_string(&mut text))
            .map_err(|source| SettingsError::Io { what: "read", path: path.clone(), source })?;
        let mut settings: Self = toml::from_str(&text).map_err(|fault| SettingsError::Form {
            path,
            text: fault.to_string().trim_end().to_owned(),
        })?;
        settings.dir = dir.to_owned();
        settings.check()?;
        Ok(settings)
    }

    /// The file's text.
    ///
    /// # Errors
    /// When a field can't be.
    pub(super) fn text(&self) -> Result<String, SettingsError> {
        self.check()?;
        toml::to_string(self).map_err(|fault| SettingsError::Form {
            path: self.dir.join(FILE),
            text: fault.to_string(),
        })
    }

    /// Writes the file, for tests.
    #[cfg(test)]
    pub(super) fn save(&self) -> Result<(), SettingsError> {
        std::fs::write(self.dir.join(FILE), self.text()?).unwrap();
        Ok(())
    }

    /// Checks every field.
    fn check(&self) -> Result<(), SettingsError> {
        let fault = |field, fault| Err(SettingsError::Field { field, fault });
        if !self.socket.is_absolute() || self.socket.as_os_str().len() > SOCKET_MAX {
            return fault("socket", "is not an absolute path of at most 107 bytes");
        }
        let workload = self.workload_socket();
        if workload.as_ref().is_some_and(|path| {
            !path.is_absolute() || path.as_os_str().len() > SOCKET_MAX || *path == self.socket
        }) {
            return fault(
                "workload_api",
                "is not `off` or an absolute path of at most 107 bytes (without it, that of \
                 `socket` with `-spiffe` in it), or is `socket` itself",
            );
        }
        let runtime = self.container_runtime.as_ref();
        if runtime.is_some_and(|path| !path.is_absolute() || path.as_os_str().len() > SOCKET_MAX) {
            return fault("container_runtime", "is not an absolute path of at most 107 bytes");
        }
        if self.socket_mode & !0o666 != 0 || self.socket_mode & 0o600 != 0o600 {
            return fault("socket_mode", "is not between 0600 and 0666 (decimal 384 and 438)");
        }
        if !is_place(&self.enrolment) {
            return fault("enrolment", "is not `host:port`");
        }
        if !is_place(&self.broker) {
            return fault("broker", "is not `host:port`");
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.bytes().all(plain) {
            return fault("name", "is not 1 to 64 of A-Z a-z 0-9 . _ -");
        }
        Ok(())
    }
}

/// Where the SPIFFE Workload API is served beside a local socket unless it is said otherwise:
/// `/run/doorward/agent.sock` has `/run/doorward/agent-spiffe.sock` beside it.
pub fn workload_socket_beside(socket: &Path) -> PathBuf {
    let mut name = socket.file_stem().unwrap_or_default().to_owned();
    name.push("-spiffe");
    if let Some(ending) = socket.extension() {
        name.push(".");
        name.push(ending);
    }
    socket.with_file_name(name)
}

fn is_place(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b'@' | b'%' | b'?' | b'#');
    text.len() <= PLACE_MAX
        && !host.is_empty()
        && host.bytes().all(plain)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> AgentSettings {
        AgentSettings::new(
            dir.to_owned(),
            dir.join("agent.sock"),
            "broker.corp.example:8444".into(),
            "[::1]:8443".into(),
            TrustDomain::parse("corp.example").unwrap(),
            Digest([7; 32]),
            "web-1".into(),
        )
    }

    #[test]
    fn what_cannot_be_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        settings(dir.path()).save().unwrap(); // the positive control
        type Change = fn(&mut AgentSettings);
        let changes: [(&str, Change); 11] = [
            ("container_runtime", |s| s.container_runtime = Some("containerd.sock".into())),
            ("socket", |s| s.socket = "relative.sock".into()),
            ("socket", |s| s.socket = format!("/{}", "a".repeat(107)).into()),
            ("socket_mode", |s| s.socket_mode = 0o777),
            ("socket_mode", |s| s.socket_mode = 0o066),
            ("workload_api", |s| s.workload_api = Some("spiffe.sock".into())),
            ("workload_api", |s| s.workload_api = Some(s.socket.clone())),
            ("workload_api", |s| s.socket = format!("/{}", "a".repeat(106)).into()),
            ("enrolment", |s| s.enrolment = "broker".into()),
            ("broker", |s| s.broker = "https://broker:1".into()),
            ("name", |s| s.name = "a b".into()),
        ];
        for (want, change) in changes {
            let mut bad = settings(dir.path());
            change(&mut bad);
            match bad.save() {
                Err(SettingsError::Field { field, .. }) => assert_eq!(field, want),
                other => panic!("{want}: {other:?}"),
            }
        }
        assert_eq!(AgentSettings::load(dir.path()).unwrap(), settings(dir.path()));
    }

    #[test]
    fn the_workload_api_stands_beside_the_socket_or_elsewhere_or_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        assert_eq!(settings.workload_socket(), Some(dir.path().join("agent-spiffe.sock")));
        for (word, place) in [("/run/x/spiffe.sock", Some("/run/x/spiffe.sock")), ("off", None)] {
            settings.workload_api = Some(word.into());
            settings.save().unwrap();
            let read = AgentSettings::load(dir.path()).unwrap();
            assert_eq!(read.workload_socket(), place.map(PathBuf::from));
        }
        assert_eq!(workload_socket_beside(Path::new("/run/a")), Path::new("/run/a-spiffe"));
    }

    #[test]
    fn an_unknown_or_missing_field_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        settings(dir.path()).save().unwrap();
        let path = dir.path().join(FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        AgentSettings::load(dir.path()).unwrap();
        std::fs::write(&path, format!("{good}danger = true\n")).unwrap();
        assert!(matches!(AgentSettings::load(dir.path()), Err(SettingsError::Form { .. })));
        let less: String = good.lines().filter(|line| !line.starts_with("root")).collect();
        std::fs::write(&path, less).unwrap();
        assert!(matches!(AgentSettings::load(dir.path()), Err(SettingsError::Form { .. })));
    }
}
