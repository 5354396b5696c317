//! The Unix socket of a sealed broker: the one place besides its start where a passphrase is taken.
//!
//! It lies in the broker's directory with mode 0600 from its first instant on, and the kernel's word
//! on who is at the other end counts beside the mode: only the broker's own user and root are
//! listened to. What comes in is bounded in bytes, time and number. Nothing here opens a seal, and
//! no byte of a passphrase is told to anybody.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::dir_lock::DirLock;
use super::management::Health;
use crate::broker::Spawn;
use crate::model::{SecretValue, limits};
use crate::wire::{self, AdminAsk, AdminReply, SealState};

/// Connections that the kernel keeps for us while all places are taken.
const BACKLOG: i32 = 16;
/// Pause when the kernel gives no descriptor: they come back as connections end.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why the admin socket can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum AdminSocketError {
    /// The file system refused.
    #[error("can't {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Others could put something else in its place.
    #[error("others can write to `{0}`: `chmod 700` it")]
    Loose(PathBuf),
    /// Not a socket, not ours, or a symbolic link.
    #[error("`{0}` is there and is not a socket of this user: move it away")]
    Foreign(PathBuf),
    /// The kernel takes 107 bytes.
    #[error("`{0}` is too long for a socket (107 bytes): give the broker a shorter directory")]
    TooLong(PathBuf),
}

/// The path of the socket; removed on drop if it is still this socket.
#[derive(Debug)]
struct OwnPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A passphrase to be tried, and the connection that waits for the outcome.
pub(super) struct Attempt {
    /// What was sent.
    pub passphrase: SecretValue,
    /// Who sent it, for the diagnostics.
    pub pid: Option<i32>,
    /// As which user.
    pub uid: u32,
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

impl Attempt {
    /// The passphrase, and what is left to answer.
    pub fn take(mut self) -> (SecretValue, Self) {
        (std::mem::replace(&mut self.passphrase, SecretValue::empty()), self)
    }

    /// Tells the outcome and closes. Who does not take it in time goes without.
    pub async fn tell(mut self, reply: &AdminReply) {
        tell(&mut self.stream, reply).await;
    }
}

/// The socket, taken; nobody is accepted yet.
pub(super) struct AdminSocket {
    listener: UnixListener,
    _path: OwnPath,
}

impl AdminSocket {
    /// Takes the socket at `path` in the directory that the lock is for. To be called in a runtime.
    ///
    /// # Errors
    /// When the place is not safe, or the system refuses.
    pub fn bind(path: &Path, _held: &DirLock) -> Result<Self, AdminSocketError> {
        let io = |what| move |source| AdminSocketError::Io { what, path: path.into(), source };
        let nix = |what| move |errno: nix::Error| io(what)(errno.into());
        check_place(path)?;
        clear_stale(path)?;
        let address =
            UnixAddr::new(path).map_err(|_| AdminSocketError::TooLong(path.to_owned()))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(nix("make"))?;
        // Linux makes the file with the mode that the socket has by then, less the umask.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(nix("chmod"))?;
        socket::bind(socket.as_raw_fd(), &address).map_err(nix("bind"))?;
        let found = std::fs::symlink_metadata(path).map_err(io("look at"))?;
        let own = OwnPath { path: path.into(), identity: (found.dev(), found.ino()) };
        if found.mode() & 0o777 != 0o600 {
            return Err(AdminSocketError::Foreign(path.into()));
        }
        Backlog::new(BACKLOG)
            .and_then(|backlog| socket::listen(&socket, backlog))
            .map_err(nix("listen at"))?;
        let listener =
            UnixListener::from_std(StdListener::from(socket)).map_err(io("listen at"))?;
        Ok(Self { listener, _path: own })
    }

    /// Serves until `stop` turns true: tells how the seal stands, and hands passphrases on while it
    /// is closed.
    pub async fn serve(
        self,
        desk: Desk,
        spawn: Spawn,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Infallible> {
        let free = Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS));
        let desk = Arc::new(desk);
        loop {
            let (stream, place) = tokio::select! {
                accepted = self.accept(&free) => accepted,
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            };
            let (desk, mut stop) = (Arc::clone(&desk), stop.clone());
            let guest = async move {
                tokio::select! {
                    () = desk.receive(stream, place) => {}
                    _ = stop.wait_for(|stop| *stop) => {}
                }
            };
            spawn("admin connection", Box::pin(guest));
        }
    }

    async fn accept(&self, free: &Arc<Semaphore>) -> (UnixStream, OwnedSemaphorePermit) {
        loop {
            let Ok(place) = Arc::clone(free).acquire_owned().await else {
                std::future::pending::<()>().await; // closed semaphores accept nobody
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(error) => {
                    tracing::warn!(%error, "no connection to the admin socket could be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// Where connections are received.
pub(super) struct Desk {
    health: Arc<Health>,
    /// As many fit as there are connections, so nobody ever waits to hand one in.
    attempts: mpsc::Sender<Attempt>,
}

impl Desk {
    /// A desk, and where the passphrases come out, one after the other.
    pub fn new(health: Arc<Health>) -> (Self, mpsc::Receiver<Attempt>) {
        let (attempts, tried) = mpsc::channel(limits::ADMIN_CONNECTIONS);
        (Self { health, attempts }, tried)
    }

    async fn receive(&self, mut stream: UnixStream, place: OwnedSemaphorePermit) {
        let refused = |why: String| AdminReply::Refused { why };
        let (uid, pid) = match stream.peer_cred() {
            Ok(peer) => (peer.uid(), peer.pid()),
            Err(error) => {
                tracing::warn!(%error, "the kernel does not say who is at the admin socket");
                return;
            }
        };
        if !may_ask(uid) {
            tracing::warn!(uid, pid, "refused at the admin socket");
            let why = "only root and the broker's own user are listened to";
            return tell(&mut stream, &refused(why.to_owned())).await;
        }
        let asked = timeout(limits::HEAD_TIMEOUT, wire::read_admin_ask(&mut stream));
        let reply = match asked.await {
            Err(_) => refused("nothing whole came in time".to_owned()),
            Ok(Err(error)) => refused(error.to_string()),
            Ok(Ok((AdminAsk::Unseal {}, passphrase))) if self.state() == SealState::Sealed => {
                let attempt = Attempt { passphrase, pid, uid, stream, _place: place };
                // It comes back when the seal was opened meanwhile.
                let Err(back) = self.attempts.try_send(attempt) else { return };
                stream = back.into_inner().stream;
                AdminReply::Seal { state: self.state() }
            }
            Ok(Ok(_)) => AdminReply::Seal { state: self.state() },
        };
        tell(&mut stream, &reply).await;
    }

    fn state(&self) -> SealState {
        self.health.seal()
    }
}

/// Root may read the broker's memory anyway.
fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

async fn tell(stream: &mut UnixStream, reply: &AdminReply) {
    let told = async {
        wire::write_admin_reply(stream, reply).await?;
        stream.shutdown().await.map_err(wire::FrameError::Write)
    };
    // Whoever went away does not want to know.
    let _ = timeout(limits::WRITE_TIMEOUT, told).await;
}

/// The directory must be one in which nobody else can replace the socket.
fn check_place(path: &Path) -> Result<(), AdminSocketError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let found = std::fs::metadata(dir).map_err(|source| AdminSocketError::Io {
        what: "look at",
        path: dir.into(),
        source,
    })?;
    let own = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
    if !own || found.mode() & 0o022 != 0 {
        return Err(AdminSocketError::Loose(dir.into()));
    }
    Ok(())
}

/// Removes what a broker that was killed has left behind, and nothing else. The directory's lock is
/// held, so nobody listens there.
fn clear_stale(path: &Path) -> Result<(), AdminSocketError> {
    let io = |what| move |source| AdminSocketError::Io { what, path: path.into(), source };
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at")(error)),
    };
    if !found.file_type().is_socket() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(AdminSocketError::Foreign(path.into()));
    }
    std::fs::remove_file(path).map_err(io("remove"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    async fn bind(path: &Path) -> Result<AdminSocket, AdminSocketError> {
        AdminSocket::bind(path, &DirLock::take(path.parent().unwrap()).await.unwrap())
    }

    #[tokio::test]
    async fn the_socket_is_private_replaces_only_a_stale_one_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(StdListener::bind(&path).unwrap()); // what a killed broker leaves
        assert!(path.exists());
        let socket = bind(&path).await.unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().mode() & 0o7777, 0o600);
        drop(socket);
        assert!(!path.exists(), "nothing is left behind");

        let precious = dir.path().join("precious");
        std::fs::write(&precious, "x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        for place in [&precious, &link] {
            assert!(matches!(bind(place).await, Err(AdminSocketError::Foreign(_))));
        }
        assert_eq!(std::fs::read(&precious).unwrap(), b"x");
        assert!(link.is_symlink());
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(bind(&long).await, Err(AdminSocketError::TooLong(_))));
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        for mode in [0o770, 0o707] {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            assert!(matches!(bind(&path).await, Err(AdminSocketError::Loose(_))));
            assert!(!path.exists());
        }
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_was_replaced_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = bind(&path).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = StdListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn root_and_the_own_user_are_listened_to_and_nobody_else() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(may_ask(0) && may_ask(own));
        for uid in [1, 65_534, u32::MAX] {
            assert_eq!(may_ask(uid), uid == own, "{uid}");
        }
    }
}
