//! What `doorward doctor` looks at on a machine: things that make a broker or an agent less than it
//! promises, each with its remedy.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize;

use super::layout::Layout;
use super::unseal::{UnsealError, seal_state};
use crate::model::{Clock, SystemClock};
use crate::wire::{Credentials, SealState};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Works, with less than it could promise.
    Warn,
    /// Does not work, or breaks a promise.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it stands.
    pub grade: Grade,
    /// In words.
    pub said: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

fn ok(what: &'static str, said: impl Into<String>) -> Finding {
    Finding { what, grade: Grade::Ok, said: said.into(), remedy: None }
}

fn bad(what: &'static str, grade: Grade, said: impl Into<String>, remedy: &str) -> Finding {
    Finding { what, grade, said: said.into(), remedy: Some(remedy.to_owned()) }
}

/// Looks at the machine, at a broker's or agent's directory, and at an identity.
pub fn examine(dir: Option<&Path>, identity: Option<&Path>, socket: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![kernel(), pidfd(), clock(), swap(), ptrace()];
    if let Some(dir) = dir {
        findings.extend(directory(dir));
    }
    if let Some(identity) = identity {
        findings.push(certificate(identity));
    }
    if let Some(socket) = socket {
        findings.push(agent_socket(socket));
    }
    findings
}

/// Looks at the seal of a broker that was started sealed; nothing for any other directory.
pub async fn examine_seal(dir: &Path) -> Option<Finding> {
    let layout = Layout::new(dir);
    std::fs::symlink_metadata(layout.admin_socket()).ok()?;
    Some(match seal_state(&layout).await {
        Ok(SealState::Sealed) => bad(
            "seal",
            Grade::Warn,
            "the broker is sealed and waits for its passphrase",
            "`doorward unseal DIR`",
        ),
        Ok(state) => ok("seal", state.as_str()),
        Err(UnsealError::Nobody(_)) => ok(
            "seal",
            "closed; a broker that was killed left its socket, the next start removes it",
        ),
        Err(error) => {
            bad("seal", Grade::Warn, error.to_string(), "run as root or as the directory's owner")
        }
    })
}

fn kernel() -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(text) => ok("kernel", text.trim().to_owned()),
        Err(_) => {
            bad("kernel", Grade::Fail, "no /proc", "Doorward runs on Linux with /proc mounted")
        }
    }
}

fn pidfd() -> Finding {
    if crate::agent::kernel_pins() {
        return ok("attestation", "the kernel pins a socket's process (SO_PEERPIDFD)");
    }
    bad(
        "attestation",
        Grade::Warn,
        "this kernel is older than 6.5: processes are pinned by pid and start time, read twice",
        "use Linux 6.5 or newer; facts are marked `pinned: false` until then",
    )
}

fn clock() -> Finding {
    let year = SystemClock.now().wall().year();
    if !(2024..2100).contains(&year) {
        return bad("clock", Grade::Fail, format!("the year is {year}"), "set the clock; use NTP");
    }
    match crate::agent::time_synced() {
        Some(true) => ok("clock", "synchronised"),
        Some(false) => bad(
            "clock",
            Grade::Warn,
            "the kernel says it is not synchronised",
            "start chrony or systemd-timesyncd",
        ),
        None => bad(
            "clock",
            Grade::Warn,
            "the kernel does not say whether it is synchronised",
            "check NTP",
        ),
    }
}

fn swap() -> Finding {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    match swaps.lines().count() > 1 {
        false => ok("swap", "off"),
        true => bad(
            "swap",
            Grade::Warn,
            "on: memory that held a secret may reach the disk",
            "switch swap off, or encrypt it",
        ),
    }
}

fn ptrace() -> Finding {
    match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(text) if text.trim() != "0" => {
            ok("ptrace", format!("yama.ptrace_scope is {}", text.trim()))
        }
        _ => bad(
            "ptrace",
            Grade::Warn,
            "processes of one user may read each other's memory",
            "set kernel.yama.ptrace_scope=1; until then one user is one trust domain",
        ),
    }
}

fn directory(dir: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    match std::fs::symlink_metadata(dir) {
        Err(error) => {
            findings.push(bad(
                "directory",
                Grade::Fail,
                format!("`{}` can't be looked at: {error}", dir.display()),
                "name the directory of a broker or an agent",
            ));
            return findings;
        }
        Ok(meta) => findings.push(modes(dir, &meta, 0o077)),
    }
    let mut loose = Vec::new();
    loose_files(dir, 0, &mut loose);
    findings.push(match loose.is_empty() {
        true => ok("file modes", "nobody else may read a file"),
        false => bad(
            "file modes",
            Grade::Fail,
            format!("others may read {}", loose.join(", ")),
            "chmod go= them; keys may have been read",
        ),
    });
    findings.push(file_system(dir));
    findings.push(space(dir));
    findings
}

fn modes(path: &Path, meta: &std::fs::Metadata, not: u32) -> Finding {
    let mode = meta.permissions().mode() & 0o7777;
    let owner = nix::unistd::geteuid().as_raw();
    if meta.file_type().is_symlink() {
        return bad("directory", Grade::Fail, "it is a symbolic link", "name the directory itself");
    }
    if meta.uid() != owner {
        let said = format!("it belongs to uid {}, this process is uid {owner}", meta.uid());
        return bad("directory", Grade::Warn, said, "run as its owner");
    }
    match mode & not {
        0 => ok("directory", format!("{} is private ({mode:o})", path.display())),
        _ => bad("directory", Grade::Fail, format!("its mode is {mode:o}"), "chmod 700 it"),
    }
}

fn loose_files(dir: &Path, depth: usize, loose: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten().take(10_000) {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() && depth < 4 {
            loose_files(&entry.path(), depth + 1, loose);
        } else if meta.is_file() && meta.permissions().mode() & 0o077 != 0 && loose.len() < 10 {
            loose.push(entry.path().display().to_string());
        }
    }
}

fn file_system(dir: &Path) -> Finding {
    use nix::sys::statfs;
    let Ok(stat) = statfs::statfs(dir) else {
        return bad("file system", Grade::Warn, "the kernel does not name it", "check the disk");
    };
    let kind = stat.filesystem_type();
    if kind == statfs::NFS_SUPER_MAGIC {
        return bad(
            "file system",
            Grade::Fail,
            "NFS",
            "use a local disk: locks and syncs must hold",
        );
    }
    if kind == statfs::BTRFS_SUPER_MAGIC || kind == statfs::OVERLAYFS_SUPER_MAGIC {
        return bad(
            "file system",
            Grade::Warn,
            "it writes copies: overwriting a key does not erase it",
            "put the directory on ext4 or xfs, on an encrypted volume",
        );
    }
    if kind == statfs::TMPFS_MAGIC {
        return bad(
            "file system",
            Grade::Warn,
            "tmpfs: everything is gone at reboot",
            "use a disk",
        );
    }
    ok("file system", format!("type {:#x}", kind.0))
}

fn space(dir: &Path) -> Finding {
    let Ok(stat) = nix::sys::statvfs::statvfs(dir) else {
        return bad("disk", Grade::Warn, "its space can't be read", "check the disk");
    };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let said = format!("{} MiB free", free / (1024 * 1024));
    if free < 2 * crate::model::limits::LOG_RESERVE {
        return bad("disk", Grade::Fail, said, "make room: a full log refuses every request");
    }
    ok("disk", said)
}

fn certificate(dir: &Path) -> Finding {
    let until = Credentials::load(dir).and_then(|credentials| credentials.not_after());
    match until {
        Err(error) => bad("identity", Grade::Fail, error.to_string(), "`doorward login TOKEN`"),
        Ok(until) => {
            let left = until - SystemClock.now().wall();
            let said = format!("ends {}", crate::model::rfc3339(until));
            if left.is_negative() {
                return bad("identity", Grade::Fail, said, "`doorward login TOKEN`");
            }
            if left < time::Duration::minutes(30) {
                return bad("identity", Grade::Warn, said, "it is renewed at its next use");
            }
            ok("identity", said)
        }
    }
}

fn agent_socket(socket: &Path) -> Finding {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => ok("agent", format!("listens on {}", socket.display())),
        Err(error) => bad(
            "agent",
            Grade::Warn,
            format!("nobody answers on {}: {error}", socket.display()),
            "start it with `doorward agent`",
        ),
    }
}
