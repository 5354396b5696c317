//! The local socket: taken safely, accepted from with bounds, left behind by nobody.
//!
//! A path that is anything but the agent's own stale socket is not touched. Connections are bounded
//! in all and for each user; a user over his share is turned away at once, so that he can't keep
//! others out.

use std::collections::HashMap;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::attest::PeerProcess;
use super::super::images::Images;
use super::seldom::Seldom;
use super::stream::{LocalStream, Visitor};

/// How many connections a socket takes.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Bounds {
    /// In all: each costs a task, two descriptors and some buffers.
    pub(in crate::agent) all: usize,
    /// Of one user.
    pub(in crate::agent) per_uid: usize,
}

/// First looks at processes of one user at once; each holds a thread, and may hash a whole program.
const LOOKS_PER_UID: usize = 2;
/// Pause when the kernel gives no descriptor: they come back as connections end.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Why the local socket can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
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
    /// Others could put something else in its place.
    #[error("others can write to {}: give the socket a directory with mode 0755", .0.display())]
    Loose(PathBuf),
    /// Not a socket, not ours, or a symlink.
    #[error("{} is there and is not a socket of the agent's own: move it away", .0.display())]
    Foreign(PathBuf),
    /// Somebody listens there.
    #[error("{} is served already: is another agent running?", .0.display())]
    Served(PathBuf),
}

/// The path of a socket; removed on drop if it is still this socket.
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

/// The socket, taken and open for anybody to connect; nobody is accepted yet.
pub(in crate::agent) struct LocalListener {
    listener: UnixListener,
    free: Arc<Semaphore>,
    by_uid: Arc<Mutex<HashMap<u32, Share>>>,
    per_uid: usize,
    images: Option<Arc<Images>>,
    turned_away: Seldom,
    over_the_share: Seldom,
    _path: OwnPath,
}

/// What one user has of a socket.
#[derive(Debug)]
struct Share {
    connections: usize,
    looks: Arc<Semaphore>,
}

/// One connection's share of the bounds, given back on drop.
pub(in crate::agent) struct Place {
    _permit: OwnedSemaphorePermit,
    uid: u32,
    looks: Arc<Semaphore>,
    by_uid: Arc<Mutex<HashMap<u32, Share>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_uid = self.by_uid.lock().unwrap_or_else(|broken| broken.into_inner());
        if let Some(share) = by_uid.get_mut(&self.uid) {
            share.connections = share.connections.saturating_sub(1);
            if share.connections == 0 {
                by_uid.remove(&self.uid);
            }
        }
    }
}

impl Place {
    /// A turn to look at a process of this user, in the order of asking.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.looks.clone().acquire_owned().await.ok()
    }

    #[cfg(test)]
    pub(super) fn of_a_test() -> Self {
        let one = || Arc::new(Semaphore::new(1));
        let permit = one().try_acquire_owned().unwrap();
        Self { _permit: permit, uid: 0, looks: one(), by_uid: Arc::default() }
    }
}

impl LocalListener {
    /// Takes the socket at `path` with the permission bits `mode`. To be called in a runtime.
    ///
    /// # Errors
    /// When the place is not safe, or not free.
    pub(in crate::agent) fn bind(
        path: &Path,
        mode: u32,
        bounds: Bounds,
    ) -> Result<Self, SocketError> {
        let io = |what| move |source| SocketError::Io { what, path: path.into(), source };
        check_place(path)?;
        clear_stale(path)?;
        let listener = StdListener::bind(path).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::Served(path.into()),
            _ => io("listen at")(source),
        })?;
        let found = std::fs::symlink_metadata(path).map_err(io("look at"))?;
        let own = OwnPath { path: path.into(), identity: (found.dev(), found.ino()) };
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io("chmod"))?;
        listener.set_nonblocking(true).map_err(io("listen at"))?;
        // Inherited by each connection, so that no byte comes without its sender.
        setsockopt(&listener, sockopt::PassCred, &true)
            .map_err(|errno| io("ask for senders at")(errno.into()))?;
        let listener = UnixListener::from_std(listener).map_err(io("listen at"))?;
        let (free, by_uid) = (Arc::new(Semaphore::new(bounds.all)), Arc::default());
        let per_uid = bounds.per_uid;
        let (turned_away, over_the_share) = <(Seldom, Seldom)>::default();
        let images = None;
        Ok(Self {
            listener,
            free,
            by_uid,
            per_uid,
            images,
            turned_away,
            over_the_share,
            _path: own,
        })
    }

    /// With the images that the node's runtime tells.
    pub(in crate::agent) fn told_by(self, images: Option<Arc<Images>>) -> Self {
        Self { images, ..self }
    }

    fn place(&self, uid: u32, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut by_uid = self.by_uid.lock().unwrap_or_else(|broken| broken.into_inner());
        let fresh = || Share { connections: 0, looks: Arc::new(Semaphore::new(LOOKS_PER_UID)) };
        let share = by_uid.entry(uid).or_insert_with(fresh);
        if share.connections >= self.per_uid {
            return None;
        }
        share.connections += 1;
        let looks = share.looks.clone();
        drop(by_uid);
        Some(Place { _permit: permit, uid, looks, by_uid: self.by_uid.clone() })
    }

    fn admit(
        &self,
        stream: UnixStream,
        permit: OwnedSemaphorePermit,
    ) -> Option<(LocalStream, Visitor)> {
        setsockopt(&stream, sockopt::PassCred, &true).ok()?;
        let process = match PeerProcess::of(&stream) {
            Ok(process) => process,
            Err(why) => {
                if let Some(count) = self.turned_away.due() {
                    tracing::info!(error = %why, count, "local connections were turned away");
                }
                return None;
            }
        };
        let (pid, uid) = (process.pid(), process.uid());
        let Some(place) = self.place(uid, permit) else {
            if let Some(count) = self.over_the_share.due() {
                tracing::warn!(uid, count, "too many local connections of one user");
            }
            return None;
        };
        let place = Arc::new(place);
        let visitor = Visitor::new(process, place.clone()).told_by(self.images.clone());
        Some((LocalStream::new(stream, pid, uid, place), visitor))
    }

    /// The next connection that has its share, pinned to the process that made it.
    pub(in crate::agent) async fn admitted(&mut self) -> (LocalStream, Visitor) {
        loop {
            let Ok(permit) = self.free.clone().acquire_owned().await else {
                std::future::pending::<()>().await; // closed semaphores accept nobody
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(admitted) = self.admit(stream, permit) {
                        return admitted;
                    }
                }
                Err(why) => {
                    tracing::warn!(error = %why, "no local connection could be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// The directory must be one in which nobody else can replace the socket.
fn check_place(path: &Path) -> Result<(), SocketError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let io = |what| move |source| SocketError::Io { what, path: dir.into(), source };
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(io("make")(why)),
        Ok(()) => {
            std::fs::set_permissions(dir, Permissions::from_mode(0o755)).map_err(io("chmod"))?
        } // whatever the umask
        Err(_) => {}
    }
    let found = std::fs::metadata(dir).map_err(io("look at"))?;
    let own = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
    let (open, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
    if !own || (open && !sticky) {
        return Err(SocketError::Loose(dir.into()));
    }
    Ok(())
}

/// Removes what an agent that was killed has left behind, and nothing else.
fn clear_stale(path: &Path) -> Result<(), SocketError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::Io { what: "look at", path: path.into(), source });
        }
    };
    let own = found.uid() == nix::unistd::geteuid().as_raw();
    if !found.file_type().is_socket() || !own {
        return Err(SocketError::Foreign(path.into()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .map_err(|source| SocketError::Io { what: "remove", path: path.into(), source }),
        _ => Err(SocketError::Served(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 256, per_uid: 64 };

    fn bind(path: &Path, mode: u32) -> Result<LocalListener, SocketError> {
        LocalListener::bind(path, mode, BOUNDS)
    }

    #[tokio::test]
    async fn only_an_own_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let first = bind(&path, 0o666).unwrap();
        assert!(matches!(bind(&path, 0o666), Err(SocketError::Served(_))));
        drop(first);
        assert!(!path.exists(), "nothing is left behind");

        drop(StdListener::bind(&path).unwrap()); // what a killed agent leaves
        assert!(path.exists());
        let _again = bind(&path, 0o666).unwrap();

        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file, 0o666), Err(SocketError::Foreign(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert!(matches!(bind(&link, 0o666), Err(SocketError::Foreign(_))));
    }

    #[tokio::test]
    async fn modes_are_right_and_loose_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("agent.sock");
        let _listener = bind(&path, 0o660).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o755);

        let loose = dir.path().join("loose");
        std::fs::create_dir(&loose).unwrap();
        std::fs::set_permissions(&loose, Permissions::from_mode(0o777)).unwrap();
        let refused = bind(&loose.join("agent.sock"), 0o666);
        assert!(matches!(refused, Err(SocketError::Loose(_))));
    }

    #[tokio::test]
    async fn a_socket_that_was_replaced_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let first = bind(&path, 0o666).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = StdListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn one_user_gets_no_more_than_a_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let mut listener = bind(&path, 0o666).unwrap();
        let mut kept = Vec::new();
        for _ in 0..BOUNDS.per_uid {
            let client = UnixStream::connect(&path).await.unwrap();
            kept.push((client, listener.admitted().await));
        }
        let mut over = UnixStream::connect(&path).await.unwrap();
        let ended = tokio::io::AsyncReadExt::read_u8(&mut over);
        let ended = tokio::select! {
            ended = ended => ended,
            _ = listener.admitted() => panic!("one too many"),
        };
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        kept.pop();
        let _client = UnixStream::connect(&path).await.unwrap();
        kept.push((over, listener.admitted().await)); // room again
        assert_eq!(kept.len(), BOUNDS.per_uid);
    }
}
