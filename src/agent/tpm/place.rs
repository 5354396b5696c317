//! Where a TPM is spoken to: the kernel's device, or a socket of a TPM in software.
//!
//! One command goes out whole, one response comes back whole. A response's length is compared with
//! its bounds before anything of it is read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::model::limits::TPM_MESSAGE;

/// Making an RSA key takes a chip tens of seconds.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// What the kernel hands over at once.
const DEVICE_RESPONSE_MAX: usize = 4096;
/// The header of commands and responses.
const HEADER: usize = 10;

/// The text names no TPM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no tpm: write /dev/tpmrm0, unix:/PATH or tcp:HOST:PORT")]
pub struct PlaceError(String);

/// Where a TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A character device with the kernel's resource manager behind it: `/dev/tpmrm0`.
    Device(PathBuf),
    /// A TPM in software at a Unix socket.
    Unix(PathBuf),
    /// A TPM in software at a port.
    Tcp(String),
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let wrong = || PlaceError(text.to_owned());
        let plain = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = path.starts_with('/') && plain(path);
            return if fits { Ok(Self::Unix(path.into())) } else { Err(wrong()) };
        }
        if let Some(address) = text.strip_prefix("tcp:") {
            let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
            let fits = plain(host) && port.parse::<u16>().is_ok_and(|port| port != 0);
            return if fits { Ok(Self::Tcp(address.to_owned())) } else { Err(wrong()) };
        }
        let fits = text.starts_with("/dev/") && plain(text);
        if fits { Ok(Self::Device(text.into())) } else { Err(wrong()) }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// An open way to a TPM.
#[derive(Debug)]
pub(super) enum Transport {
    Device(File),
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Transport {
    pub(super) fn open(place: &Place) -> io::Result<Self> {
        match place {
            Place::Device(path) => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW);
                options.open(path).map(Self::Device)
            }
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(ANSWER_MAX))?;
                stream.set_write_timeout(Some(ANSWER_MAX))?;
                Ok(Self::Unix(stream))
            }
            Place::Tcp(address) => {
                let none = io::Error::from(io::ErrorKind::AddrNotAvailable);
                let address = address.to_socket_addrs()?.next().ok_or(none)?;
                let stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_MAX))?;
                stream.set_write_timeout(Some(ANSWER_MAX))?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// Whether nobody else loads anything into this TPM's few slots while it is open here: there is
    /// no resource manager, and what somebody left there can be thrown out.
    pub(super) fn is_bare(&self) -> bool {
        !matches!(self, Self::Device(_))
    }

    /// One command, and its response.
    pub(super) fn exchange(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Device(file) => {
                // The kernel takes one write for one command, and gives one read.
                if file.write(command)? != command.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                let mut response = vec![0; DEVICE_RESPONSE_MAX];
                let length = file.read(&mut response)?;
                response.truncate(length);
                match declared(&response)? == length {
                    true => Ok(response),
                    false => Err(io::ErrorKind::InvalidData.into()),
                }
            }
            Self::Unix(stream) => over(stream, command),
            Self::Tcp(stream) => over(stream, command),
        }
    }
}

fn over<S: Read + Write>(stream: &mut S, command: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(command)?;
    stream.flush()?;
    let mut response = vec![0; HEADER];
    stream.read_exact(&mut response)?;
    let length = declared(&response)?;
    response.resize(length, 0);
    let rest = response.get_mut(HEADER..).unwrap_or_default();
    stream.read_exact(rest)?;
    Ok(response)
}

/// The length that a response says it has, within its bounds.
fn declared(response: &[u8]) -> io::Result<usize> {
    let length = response.get(2..6).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    length
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| TPM_MESSAGE.contains(length))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_one_form() {
        for text in ["/dev/tpmrm0", "unix:/run/x/sock", "tcp:127.0.0.1:2321", "tcp:[::1]:2321"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "tpm",
            "/etc/passwd",
            "unix:",
            "unix:x",
            "unix:/a\n",
            "tcp:",
            "tcp:host",
            "tcp::1",
            "tcp:host:0",
            "tcp:host:x",
            "UNIX:/x",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_are_looked_at_before_anything_is_allocated() {
        let answer = |length: u32, rest: usize| {
            let head = [&[0x80, 1][..], &length.to_be_bytes(), &[0; 4]].concat();
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&[&head[..], &vec![0; rest]].concat()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            over(&mut ours, b"command").map(|response| response.len())
        };
        assert_eq!(answer(10, 0).unwrap(), 10);
        assert_eq!(answer(8192, 8182).unwrap(), 8192);
        for (length, rest) in [(9, 0), (8193, 8183), (u32::MAX, 0), (20, 9)] {
            assert!(answer(length, rest).is_err(), "{length}");
        }
    }
}
