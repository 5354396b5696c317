//! Who is at the other end of a local socket, as the kernel tells it.
//!
//! The process is pinned by the socket's own pidfd (Linux 6.5) and by one open `/proc/PID`
//! directory, through which everything is read: neither ever points at another process, whatever
//! becomes of the number. On older kernels the directory is opened from the number alone, and the
//! facts say so (`pinned: false`). Nothing that the process itself can write (name, arguments,
//! environment, its own view of `/proc` or of paths) is read.
//!
//! What this can't see: a process that connects, hands the socket to another and then executes
//! something innocent *before* its first request arrives. The sender of each message is compared
//! with the connection's process elsewhere (`http::stream`), which leaves a window within one uid:
//! so `path` and `exe_sha256` never select anybody alone, and processes of one uid count as one
//! trust domain unless an LSM keeps them apart.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, fstatat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::{Container, container_of, sees_host_cgroups, unit_of};
use super::exe::ExeDigests;
use crate::model::{Digest, WorkloadFacts};

/// The largest text read from `/proc/PID`: a cgroup path is at most 4 KiB.
const PROC_MAX: u64 = 16 * 1024;
/// The longest path that an entry can name.
const PATH_MAX: usize = 1024;

/// Why a process could not be attested. Whoever can't is nobody.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process is dead, or another one has its number now.
    #[error("the process that connected is gone")]
    Gone,
    /// The peer lives in a pid namespace that the agent can't see into.
    #[error("the process that connected is not visible to the agent: share the pid namespace")]
    Invisible,
    /// The peer's user has no number in the agent's user namespace.
    #[error("the user of the process has no number in the agent's user namespace")]
    Unmapped,
    /// The credentials of `connect()` are not those that the process runs under.
    #[error("the process connected under other credentials than it runs under now")]
    Credentials,
    /// It became another program after it was attested.
    #[error("the process became another program or user since it connected: connect anew")]
    Changed,
    /// Others of its user are being looked at, or the file system of its program does not answer.
    #[error("the process could not be looked at in time: try again")]
    Late,
    /// The kernel's answer has an unexpected form.
    #[error("/proc/<pid>/{0} is not of the form that Linux writes")]
    Form(&'static str),
    /// The kernel refused.
    #[error("can't read {what} of the process that connected")]
    Read {
        /// What.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Whether this kernel pins a socket's peer (`SO_PEERPIDFD`, Linux 6.5). For diagnosis.
pub fn kernel_pins() -> bool {
    let pair = std::os::unix::net::UnixStream::pair();
    pair.is_ok_and(|(one, _other)| getsockopt(&one, sockopt::PeerPidfd).is_ok())
}

/// The process at the other end of a socket, held so that it can't be mistaken for another.
#[derive(Debug)]
pub struct PeerProcess {
    pid: u32,
    uid: u32,
    gid: u32,
    pidfd: Option<OwnedFd>,
    proc: OwnedFd,
}

/// What a process is at one moment; equal as long as it is the same program of the same user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Standing {
    start_ticks: u64,
    uid: u32,
    gid: u32,
    exe: Option<(u64, u64)>,
}

/// Tells one program in one process from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    pid: u32,
    standing: Standing,
}

/// A process with what the kernel says of it.
#[derive(Debug)]
pub struct Attested {
    process: Arc<PeerProcess>,
    standing: Standing,
    facts: WorkloadFacts,
}

/// Pins and attests the peer of a connection. Blocks: executables are hashed.
///
/// # Errors
/// When the peer can't be told for certain.
pub fn attest(stream: impl AsFd, digests: &ExeDigests) -> Result<Attested, AttestError> {
    PeerProcess::of(stream)?.attest(digests)
}

impl PeerProcess {
    /// Pins the peer of a Unix socket. Cheap; to be called as soon as the connection is accepted.
    ///
    /// # Errors
    /// When the peer is gone, or lives where the agent can't see.
    pub fn of(stream: impl AsFd) -> Result<Self, AttestError> {
        let stream = stream.as_fd();
        let credentials = getsockopt(&stream, sockopt::PeerCredentials)
            .map_err(|errno| AttestError::Read { what: "the credentials", source: errno.into() })?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(AttestError::Invisible);
        }
        let (uid, gid) = (credentials.uid(), credentials.gid());
        if unmapped(uid, "uid") || unmapped(gid, "gid") {
            return Err(AttestError::Unmapped);
        }
        let pidfd = match getsockopt(&stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => None, // before Linux 6.5
            Err(_) => return Err(AttestError::Gone),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = openat(AT_FDCWD, format!("/proc/{pid}").as_str(), flags, Mode::empty())
            .map_err(|errno| gone_or(errno, "/proc"))?;
        let process = Self { pid, uid, gid, pidfd, proc };
        // Alive after the directory was opened: so the number still meant the pinned process then.
        if process.is_alive() { Ok(process) } else { Err(AttestError::Gone) }
    }

    /// Pins a process of this machine by its number, for `entry explain`: a look, never an identity.
    ///
    /// # Errors
    /// When there is none, or the kernel does not show it.
    pub fn of_pid(pid: u32) -> Result<Self, AttestError> {
        use std::os::fd::FromRawFd as _;
        let number = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0);
        let number = number.ok_or(AttestError::Invisible)?;
        // SAFETY: pidfd_open takes two plain numbers and touches no memory of ours; what it returns
        // is a new descriptor that nothing else owns.
        let pidfd = unsafe {
            let raw = libc::syscall(libc::SYS_pidfd_open, number, 0);
            match libc::c_int::try_from(raw) {
                Ok(raw) if raw >= 0 => OwnedFd::from_raw_fd(raw),
                _ => return Err(AttestError::Gone),
            }
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = openat(AT_FDCWD, format!("/proc/{pid}").as_str(), flags, Mode::empty())
            .map_err(|errno| gone_or(errno, "/proc"))?;
        let mut process = Self { pid, uid: 0, gid: 0, pidfd: Some(pidfd), proc };
        let status = process.text("status")?;
        let real = |key| ids_of(&status, key).ok_or(AttestError::Form("status"));
        let ([uid, ..], [gid, ..]) = (real("Uid:")?, real("Gid:")?);
        (process.uid, process.gid) = (uid, gid);
        if process.is_alive() { Ok(process) } else { Err(AttestError::Gone) }
    }

    /// Its number, for people.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its user when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => !has_ended(pidfd.as_fd()),
            None => self.start_ticks().is_ok(),
        }
    }

    /// Reads every fact, then checks that they were all of one living process and one program.
    ///
    /// # Errors
    /// When that can't be told for certain.
    pub fn attest(self, digests: &ExeDigests) -> Result<Attested, AttestError> {
        let before = self.standing()?;
        let exe = self.exe().filter(|exe| before.exe.is_some() && identity(exe) == before.exe);
        let (unit, container) = self.cgroups()?;
        let (container_id, pod_uid) =
            container.map_or((None, None), |container| (Some(container.id), container.pod_uid));
        let facts = WorkloadFacts {
            pid: self.pid,
            start_ticks: before.start_ticks,
            uid: before.uid,
            gid: before.gid,
            path: exe.as_ref().and_then(|exe| self.path_of(exe)),
            exe_sha256: exe.as_ref().and_then(|exe| digests.of(exe, self.uid)),
            unit,
            pod_uid,
            container_id,
            image_digest: None, // the kernel does not know it
            pinned: self.pidfd.is_some(),
        };
        if self.standing()? != before {
            return Err(AttestError::Changed);
        }
        Ok(Attested { process: Arc::new(self), standing: before, facts })
    }

    fn standing(&self) -> Result<Standing, AttestError> {
        let start_ticks = self.start_ticks()?;
        let status = self.text("status")?;
        let real = |key| ids_of(&status, key).ok_or(AttestError::Form("status"));
        let ([uid, ..], [gid, ..]) = (real("Uid:")?, real("Gid:")?);
        if uid != self.uid || gid != self.gid {
            return Err(AttestError::Credentials);
        }
        let exe = fstatat(&self.proc, "exe", AtFlags::empty()).ok();
        let exe = exe.map(|found| (found.st_dev, found.st_ino));
        if !self.is_alive() {
            return Err(AttestError::Gone);
        }
        Ok(Standing { start_ticks, uid, gid, exe })
    }

    fn start_ticks(&self) -> Result<u64, AttestError> {
        let stat = self.text("stat")?;
        let (state, start) = parse_stat(&stat).ok_or(AttestError::Form("stat"))?;
        if matches!(state, 'Z' | 'X' | 'x') { Err(AttestError::Gone) } else { Ok(start) }
    }

    pub(super) fn text(&self, what: &'static str) -> Result<String, AttestError> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file =
            openat(&self.proc, what, flags, Mode::empty()).map_err(|errno| gone_or(errno, what))?;
        let mut bytes = Vec::new();
        File::from(file).take(PROC_MAX).read_to_end(&mut bytes).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::ESRCH) => AttestError::Gone,
                _ => AttestError::Read { what, source },
            }
        })?;
        // A process names itself as it likes, in any bytes; the fields that count are ASCII.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The executable, opened once; `None` where the agent may not.
    pub(super) fn exe(&self) -> Option<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        openat(&self.proc, "exe", flags, Mode::empty()).ok().map(File::from)
    }

    /// The kernel's path of the executable, believed only if the agent finds the same file there:
    /// the process may live among mounts of its own.
    fn path_of(&self, exe: &File) -> Option<String> {
        let path = readlinkat(&self.proc, "exe").ok()?;
        let path = Path::new(&path);
        let found = std::fs::metadata(path).ok()?;
        let same = Some((found.dev(), found.ino())) == identity(exe);
        let text = std::str::from_utf8(path.as_os_str().as_bytes()).ok()?;
        (same && path.is_absolute() && text.len() <= PATH_MAX).then(|| text.to_owned())
    }

    /// Where a link of its directory points, as text.
    pub(super) fn link(&self, what: &str) -> Result<String, Errno> {
        readlinkat(&self.proc, what).map(|link| link.to_string_lossy().into_owned())
    }

    fn cgroups(&self) -> Result<(Option<String>, Option<Container>), AttestError> {
        if !sees_host_cgroups() {
            return Ok((None, None));
        }
        let text = self.text("cgroup")?;
        let whole = u64::try_from(text.len()).is_ok_and(|len| len < PROC_MAX);
        Ok(if whole { (unit_of(&text), container_of(&text)) } else { (None, None) })
    }
}

impl Attested {
    /// What the kernel says.
    pub fn facts(&self) -> &WorkloadFacts {
        &self.facts
    }

    /// The process itself.
    pub(super) fn process(&self) -> &PeerProcess {
        &self.process
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    /// The same process with the image of its container, as the runtime says.
    pub(super) fn with_image(&self, image: Digest) -> Self {
        let facts = WorkloadFacts { image_digest: Some(image), ..self.facts.clone() };
        Self { process: self.process.clone(), standing: self.standing, facts }
    }

    /// Which program in which process it is.
    pub(super) fn instance(&self) -> Instance {
        Instance { pid: self.process.pid, standing: self.standing }
    }

    /// Its pidfd once more, to wait for the end of the process: it is readable from then on. `None`
    /// on older kernels. To be called in a runtime.
    pub(super) fn pidfd(&self) -> Option<AsyncFd<OwnedFd>> {
        let pidfd = self.process.pidfd.as_ref()?.try_clone().ok()?;
        // SAFETY: an OwnedFd is open for as long as it lives, always answers with the same number,
        // and belongs to the AsyncFd alone from here on.
        unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.ok()
    }

    /// Looks again: the same living process, the same user, the same program. To be called on every
    /// request. Blocks for some microseconds.
    ///
    /// # Errors
    /// When it is gone or became something else.
    pub fn still_same(&self) -> Result<(), AttestError> {
        match self.process.standing() {
            Ok(now) if now == self.standing => Ok(()),
            Ok(_) | Err(AttestError::Credentials) => Err(AttestError::Changed),
            Err(other) => Err(other),
        }
    }
}

/// State and start time (ticks since boot) out of `/proc/PID/stat`. The name in the middle can hold
/// anything, `)` and line breaks too: what counts begins after the last `)`.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Real, effective, saved and file system id out of `/proc/PID/status`. The name stands in the
/// first line with its line breaks escaped, so no process can write such a line itself.
fn ids_of(status: &str, key: &str) -> Option<[u32; 4]> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let mut ids = line.split_ascii_whitespace().map(|id| id.parse().ok());
    let four = [ids.next()??, ids.next()??, ids.next()??, ids.next()??];
    ids.next().is_none().then_some(four)
}

fn identity(exe: &File) -> Option<(u64, u64)> {
    exe.metadata().ok().map(|found| (found.dev(), found.ino()))
}

fn gone_or(errno: Errno, what: &'static str) -> AttestError {
    match errno {
        Errno::ENOENT | Errno::ESRCH => AttestError::Gone,
        other => AttestError::Read { what, source: other.into() },
    }
}

/// A pidfd is readable once its process has ended; any doubt counts as ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// Whether the number is the one that the kernel shows for users without a number here.
fn unmapped(id: u32, kind: &str) -> bool {
    static NARROW: OnceLock<bool> = OnceLock::new();
    let narrow = NARROW.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_ascii_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
    });
    let overflow = || {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_534)
    };
    *narrow && id == overflow()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const SOCKET: &str = "DOORWARD_TEST_ATTEST_SOCKET";

    impl Attested {
        /// As if it lived in a container.
        pub(in crate::agent) fn in_container(&self, id: Digest) -> Self {
            let facts = WorkloadFacts { container_id: Some(id), ..self.facts.clone() };
            Self { process: self.process.clone(), standing: self.standing, facts }
        }
    }

    /// The other process of the tests below: connects, waits for one byte, becomes `sleep`. The
    /// socket closes itself at the exec, which tells the test that it has happened.
    #[test]
    fn child_that_connects_and_becomes_another_program() {
        let Some(path) = std::env::var_os(SOCKET) else { return };
        let mut stream = UnixStream::connect(path).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        panic!("{}", Command::new("sleep").arg("600").exec());
    }

    /// Dies with the test, however that ends.
    struct Other(Child);

    impl Other {
        fn end(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn connected_child() -> (Other, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let name = "agent::attest::tests::child_that_connects_and_becomes_another_program";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(SOCKET, &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        (Other(child), stream)
    }

    #[test]
    fn connecting_and_becoming_another_program_is_noticed() {
        let (mut child, mut stream) = connected_child();
        let attested = attest(&stream, &ExeDigests::default()).unwrap();
        assert_eq!(attested.facts().pid, child.0.id());
        let own = std::env::current_exe().unwrap();
        assert_eq!(attested.facts().path.as_deref(), own.to_str());
        attested.still_same().unwrap(); // the positive control

        stream.write_all(b"!").unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed by the exec");
        let refused = attested.still_same();
        assert!(matches!(refused, Err(AttestError::Changed)), "{refused:?}");

        let anew = attest(&stream, &ExeDigests::default()).unwrap();
        assert_ne!(anew.facts().exe_sha256, attested.facts().exe_sha256);
        assert_eq!(anew.facts().start_ticks, attested.facts().start_ticks, "one process all along");

        child.end();
        assert!(!attested.is_alive());
        assert!(matches!(attested.still_same(), Err(AttestError::Gone)));
        assert!(matches!(attest(&stream, &ExeDigests::default()), Err(AttestError::Gone)));
    }

    #[test]
    fn a_dead_process_that_nobody_has_buried_is_gone() {
        let (mut child, stream) = connected_child();
        let attested = attest(&stream, &ExeDigests::default()).unwrap();
        child.0.kill().unwrap();
        let pidfd = attested.process.pidfd.as_ref().unwrap().as_fd();
        let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::NONE), Ok(1));
        assert!(matches!(attested.still_same(), Err(AttestError::Gone)));
    }

    #[test]
    fn the_weaker_path_says_so_and_notices_the_same() {
        let (mut child, stream) = connected_child();
        let mut process = PeerProcess::of(&stream).unwrap();
        process.pidfd = None;
        let attested = process.attest(&ExeDigests::default()).unwrap();
        assert!(!attested.facts().pinned);
        attested.still_same().unwrap();
        child.end();
        assert!(matches!(attested.still_same(), Err(AttestError::Gone)));
    }

    #[test]
    fn this_very_process_is_attested_in_full() {
        let (one, _other) = UnixStream::pair().unwrap();
        let attested = attest(&one, &ExeDigests::default()).unwrap();
        let facts = attested.facts();
        assert_eq!(facts.pid, std::process::id());
        assert_eq!(facts.uid, nix::unistd::getuid().as_raw());
        assert_eq!(facts.gid, nix::unistd::getgid().as_raw());
        let exe = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(facts.exe_sha256, Some(Digest::of(&exe)));
        assert!(facts.start_ticks > 0);
        assert_eq!(facts.pinned, kernel_pins());
        attested.still_same().unwrap();
    }

    #[test]
    fn credentials_of_connect_must_be_those_of_now() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut process = PeerProcess::of(&one).unwrap();
        process.uid = process.uid.wrapping_add(1);
        let refused = process.attest(&ExeDigests::default());
        assert!(matches!(refused, Err(AttestError::Credentials)), "{refused:?}");
    }

    #[test]
    fn a_name_cannot_forge_fields() {
        let tail = "S 1 2 2 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(&format!("7 (sh) {tail}")), Some(('S', 4242)));
        let name = "a) Z 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 (\n";
        assert_eq!(parse_stat(&format!("7 ({name}) {tail}")), Some(('S', 4242)));
        for bad in [
            "",
            "7 sh S 1",
            "7 (sh)",
            "7 (sh) S 1 2",
            "7 (sh) S 1 2 2 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 x",
        ] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
        let status = "Name:\ta\\nUid:\t0\t0\t0\t0\nUid:\t10\t11\t12\t13\nGid:\t1\t2\t3\n";
        assert_eq!(ids_of(status, "Uid:"), Some([10, 11, 12, 13]));
        assert_eq!(ids_of(status, "Gid:"), None, "three of four");
    }
}
