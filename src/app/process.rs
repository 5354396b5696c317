//! The process itself: no core dumps, nobody of the same user reads its memory, no loose files; how
//! it is told to stop and tells that it is ready.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};

/// Switches core dumps off and makes new files private; `hidden` also keeps other processes of the
/// same user from reading this one's memory.
///
/// # Errors
/// When the kernel refuses; nothing secret may be held then.
pub fn harden(hidden: bool) -> Result<(), nix::Error> {
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(!hidden)
}

/// Raises the number of open files to what the system allows, at most 64 Ki: each workload of an
/// agent holds a socket and two descriptors of its process. A refusal is no fault; fewer then fit.
pub fn raise_files() {
    if let Ok((soft, hard)) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(64 * 1024);
        if wanted > soft {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        }
    }
}

/// Resolves at SIGTERM or SIGINT. The handlers stand once this returns.
///
/// # Errors
/// When no handler can be set.
pub fn shutdown_signal() -> Result<impl Future<Output = ()>, std::io::Error> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Tells systemd that requests are answered (`Type=notify`). Without systemd it does nothing.
pub fn notify_ready() {
    notify("READY=1\nSTATUS=ready");
}

/// Tells systemd that the start has come as far as it can without a person. A unit that waited for
/// the passphrase would be killed at the end of its start's time, and started again, for ever.
pub fn notify_sealed() {
    notify("READY=1\nSTATUS=sealed: `doorward unseal` opens it");
}

fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let text = name.to_string_lossy();
    let address = match text.strip_prefix('@') {
        Some(hidden) => SocketAddr::from_abstract_name(hidden),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// This machine's name, for people.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = name.to_string_lossy().chars().filter(|c| plain(*c)).take(64).collect();
    if name.is_empty() { "device".to_owned() } else { name }
}
