//! Everything that the kernel says of one process, each with who vouches and why it is unknown.
//!
//! What entries select by comes from `attest`; the rest is read through the same
//! open `/proc/PID` directory, between two looks that found the same living program. It is a
//! snapshot for people: a process may drop a capability a moment later. Nothing that the process
//! writes itself (name, arguments, environment) is a fact.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::attest::{AttestError, Attested, PeerProcess};
use super::cgroup::sees_host_cgroups;
use super::exe::ExeDigests;
use crate::model::limits::FACT_TEXT_MAX;
use crate::posture::{FactValue, Rank, Unknown};

/// One fact of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessFact {
    /// Its name, `workload.…`.
    pub name: &'static str,
    /// The value, or why there is none.
    pub value: Result<FactValue, Unknown>,
    /// Who vouches.
    pub rank: Rank,
    /// Where it is read.
    pub source: &'static str,
}

type Reading = Result<FactValue, Unknown>;

/// Lines of `/proc/PID/status` that are facts: name, key, how the rest of the line is read.
const STATUS: &[(&str, &str, Form)] = &[
    ("workload.cap_bnd", "CapBnd:", Form::Mask),
    ("workload.cap_eff", "CapEff:", Form::Mask),
    ("workload.cap_prm", "CapPrm:", Form::Mask),
    ("workload.groups", "Groups:", Form::List),
    ("workload.ns_tgid", "NStgid:", Form::List),
    ("workload.seccomp", "Seccomp:", Form::Number),
    ("workload.seccomp_filters", "Seccomp_filters:", Form::Number),
    ("workload.tracer_pid", "TracerPid:", Form::Number),
];

/// Links of `/proc/PID/ns` that are facts.
const NAMESPACES: &[(&str, &str)] = &[
    ("workload.ns_cgroup", "ns/cgroup"),
    ("workload.ns_mnt", "ns/mnt"),
    ("workload.ns_net", "ns/net"),
    ("workload.ns_pid", "ns/pid"),
    ("workload.ns_user", "ns/user"),
];

/// How a line of the status file is read.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// Hexadecimal digits, as the kernel prints capabilities; told as `0x…`.
    Mask,
    /// A whole number.
    Number,
    /// Numbers; told with commas, in the kernel's order.
    List,
}

/// Every fact of a process, in the order of their names. Blocks: the executable is hashed.
///
/// # Errors
/// When the process is gone, or became something else meanwhile.
pub fn process_facts(
    process: PeerProcess,
    digests: &ExeDigests,
) -> Result<Vec<ProcessFact>, AttestError> {
    let attested = process.attest(digests)?;
    let mut facts = known(&attested);
    facts.extend(status(&attested)?);
    for (name, link) in NAMESPACES {
        let value = attested.process().link(link).map_err(reason);
        facts.push(fact(name, value.and_then(|text| namespace(&text)), "/proc/PID/ns"));
    }
    facts.push(fact("workload.cgroup", cgroup(&attested), "/proc/PID/cgroup, version 2"));
    facts.push(fact("workload.lsm_label", label(&attested), "/proc/PID/attr/current"));
    let verity = attested.process().exe().ok_or(Unknown::Denied).and_then(|exe| verity(&exe));
    facts.push(fact("workload.exe_verity", verity, "FS_IOC_MEASURE_VERITY on /proc/PID/exe"));
    attested.still_same()?;
    facts.sort_by_key(|fact| fact.name);
    Ok(facts)
}

/// All of a process are the kernel's word.
fn fact(name: &'static str, value: Reading, source: &'static str) -> ProcessFact {
    ProcessFact { name, value, rank: Rank::Kernel, source }
}

/// What entries select by.
fn known(attested: &Attested) -> Vec<ProcessFact> {
    let facts = attested.facts();
    let number = |id: u64| i64::try_from(id).map(FactValue::Number).map_err(|_| Unknown::Error);
    // Seen from within a cgroup namespace, nobody can say that there is no unit.
    let none = if sees_host_cgroups() { Unknown::Absent } else { Unknown::Error };
    let text = |text: Option<String>| bounded(text.ok_or(none)?);
    // The attestation does not tell why; what it may not open it does not hash.
    let digest = facts.exe_sha256.map(|digest| digest.to_string()).ok_or(Unknown::Denied);
    let path = facts.path.clone().ok_or(Unknown::Denied).and_then(bounded);
    let container = facts.container_id.map(|id| id.to_string());
    vec![
        fact("workload.container_id", text(container), "/proc/PID/cgroup"),
        fact("workload.exe_path", path, "/proc/PID/exe, found there by the agent too"),
        fact("workload.exe_sha256", digest.map(FactValue::Text), "/proc/PID/exe, opened once"),
        fact("workload.gid", number(facts.gid.into()), "/proc/PID/status Gid, the real one"),
        fact("workload.pid", number(facts.pid.into()), "the pidfd"),
        fact("workload.pidfd", Ok(FactValue::Bool(facts.pinned)), "pidfd_open or SO_PEERPIDFD"),
        fact("workload.pod_uid", text(facts.pod_uid.clone()), "/proc/PID/cgroup"),
        fact("workload.start_ticks", number(facts.start_ticks), "/proc/PID/stat"),
        fact("workload.uid", number(facts.uid.into()), "/proc/PID/status Uid, the real one"),
        fact("workload.unit", text(facts.unit.clone()), "/proc/PID/cgroup"),
    ]
}

/// What stands in the status file.
fn status(attested: &Attested) -> Result<Vec<ProcessFact>, AttestError> {
    let text = attested.process().text("status")?;
    // The name stands in the first line with its line breaks escaped: no process writes a line.
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let source = "/proc/PID/status";
    let mut facts: Vec<ProcessFact> = STATUS
        .iter()
        .map(|(name, key, form)| {
            let value = line(key).ok_or(Unknown::Absent).and_then(|rest| read(*form, rest));
            fact(name, value, source)
        })
        .collect();
    let yes = |rest: &str| match rest {
        "0" => Ok(FactValue::Bool(false)),
        "1" => Ok(FactValue::Bool(true)),
        _ => Err(Unknown::Error),
    };
    let no_new_privs = line("NoNewPrivs:").ok_or(Unknown::Absent).and_then(yes);
    facts.push(fact("workload.no_new_privs", no_new_privs, source));
    for (name, key) in [("workload.euid", "Uid:"), ("workload.egid", "Gid:")] {
        let second = line(key).and_then(|rest| rest.split_ascii_whitespace().nth(1));
        let value = second.ok_or(Unknown::Error).and_then(|id| read(Form::Number, id));
        facts.push(fact(name, value, source));
    }
    Ok(facts)
}

fn read(form: Form, rest: &str) -> Reading {
    match form {
        Form::Mask => {
            let mask = u64::from_str_radix(rest, 16).map_err(|_| Unknown::Error)?;
            Ok(FactValue::Text(format!("0x{mask:x}")))
        }
        Form::Number => rest.parse().map(FactValue::Number).map_err(|_| Unknown::Error),
        Form::List => {
            let numbers = rest.split_ascii_whitespace().map(|id| id.parse::<u32>());
            let numbers: Result<Vec<u32>, _> = numbers.collect();
            let words: Vec<String> =
                numbers.map_err(|_| Unknown::Error)?.iter().map(u32::to_string).collect();
            bounded(words.join(","))
        }
    }
}

/// `pid:[4026531836]` → 4026531836.
fn namespace(link: &str) -> Reading {
    let inner = link.split_once(":[").and_then(|(_, rest)| rest.strip_suffix(']'));
    inner.and_then(|id| id.parse().ok()).map(FactValue::Number).ok_or(Unknown::Error)
}

/// The path in the unified hierarchy.
fn cgroup(attested: &Attested) -> Reading {
    if !sees_host_cgroups() {
        return Err(Unknown::Error);
    }
    let text = attested.process().text("cgroup").map_err(|_| Unknown::Error)?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Unknown::Absent)?;
    bounded(path.to_owned())
}

/// The label of the security module in force; without one the kernel answers with an error or with
/// nothing.
fn label(attested: &Attested) -> Reading {
    match attested.process().text("attr/current") {
        Ok(text) => match text.trim_end_matches(['\0', '\n']) {
            "" => Err(Unknown::Absent),
            label => bounded(label.to_owned()),
        },
        Err(AttestError::Read { source, .. }) => match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Err(Unknown::Denied),
            Some(libc::EINVAL) => Err(Unknown::Absent),
            _ => Err(Unknown::Error),
        },
        Err(_) => Err(Unknown::Absent),
    }
}

/// A text that a fact can hold; what is longer or strange is an error, never a shorter one.
fn bounded(text: String) -> Reading {
    if text.len() > FACT_TEXT_MAX || text.chars().any(char::is_control) {
        return Err(Unknown::Error);
    }
    Ok(FactValue::Text(text))
}

fn reason(errno: Errno) -> Unknown {
    match errno {
        Errno::ENOENT => Unknown::Absent,
        Errno::EACCES | Errno::EPERM => Unknown::Denied,
        _ => Unknown::Error,
    }
}

/// `struct fsverity_digest` with room for the largest digest (linux/fsverity.h).
#[repr(C)]
struct Verity {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

/// `_IOWR('f', 134, struct fsverity_digest)`, whose fixed part has four bytes.
const MEASURE_VERITY: libc::Ioctl = 0xc004_6686_u32 as libc::Ioctl;

/// The digest that the kernel itself checks each page of the executable against.
fn verity(exe: &File) -> Reading {
    let mut found = Verity { algorithm: 0, size: 64, digest: [0; 64] };
    // SAFETY: the request reads `size` and writes the header and at most that many bytes of the
    // digest into a structure of exactly this form, which outlives the call; the descriptor is open.
    let result = unsafe { libc::ioctl(exe.as_raw_fd(), MEASURE_VERITY, &raw mut found) };
    if result != 0 {
        return Err(match Errno::last() {
            // No digest, or a file system that has none.
            Errno::ENODATA | Errno::ENOTTY | Errno::EOPNOTSUPP => Unknown::Absent,
            errno => reason(errno),
        });
    }
    let algorithm = match found.algorithm {
        1 => "sha256",
        2 => "sha512",
        _ => return Err(Unknown::Error),
    };
    let digest = found.digest.get(..usize::from(found.size)).ok_or(Unknown::Error)?;
    bounded(format!("{algorithm}:{}", hex::encode(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn of(pid: u32) -> Vec<ProcessFact> {
        process_facts(PeerProcess::of_pid(pid).unwrap(), &ExeDigests::default()).unwrap()
    }

    fn value(facts: &[ProcessFact], name: &str) -> Reading {
        let found = facts.iter().find(|fact| fact.name == name);
        found.unwrap_or_else(|| panic!("{name} is not stated")).value.clone()
    }

    #[test]
    fn this_process_is_told_in_full_and_in_order() {
        let facts = of(std::process::id());
        assert!(facts.len() >= 25, "{}", facts.len());
        assert!(facts.windows(2).all(|pair| pair[0].name < pair[1].name));
        let number = |n: u32| Ok(FactValue::Number(n.into()));
        assert_eq!(value(&facts, "workload.pid"), number(std::process::id()));
        assert_eq!(value(&facts, "workload.uid"), number(nix::unistd::getuid().as_raw()));
        assert_eq!(value(&facts, "workload.egid"), number(nix::unistd::getegid().as_raw()));
        assert_eq!(value(&facts, "workload.tracer_pid"), number(0));
        let exe = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let digest = FactValue::Text(Digest::of(&exe).to_string());
        assert_eq!(value(&facts, "workload.exe_sha256"), Ok(digest));
        let own = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        assert_eq!(value(&facts, "workload.ns_net"), namespace(&own));
        assert!(
            matches!(value(&facts, "workload.cap_eff"), Ok(FactValue::Text(mask)) if mask.starts_with("0x"))
        );
        assert!(value(&facts, "workload.no_new_privs").is_ok());
    }

    #[test]
    fn a_process_with_no_new_privileges_says_so() {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--no-new-privs", "sleep", "600"]);
        let Ok(mut child) = command.spawn() else {
            assert!(std::env::var_os("CI").is_none(), "needs setpriv (Debian: util-linux)");
            eprintln!("SKIPPED: needs setpriv");
            return;
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let held = loop {
            let process = PeerProcess::of_pid(child.id()).unwrap();
            match process_facts(process, &ExeDigests::default()) {
                Ok(facts) => match value(&facts, "workload.no_new_privs") {
                    Ok(FactValue::Bool(true)) => break true,
                    _ if std::time::Instant::now() > deadline => break false,
                    _ => {}
                },
                Err(AttestError::Changed) => {} // it became `sleep` under the look
                Err(other) => panic!("{other}"),
            }
            std::thread::yield_now();
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(held);
        let own = of(std::process::id());
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let bare = status.contains("NoNewPrivs:\t0");
        assert_eq!(value(&own, "workload.no_new_privs"), Ok(FactValue::Bool(!bare)));
    }

    #[test]
    fn strange_lines_are_errors() {
        assert_eq!(read(Form::Mask, "00000000a80425fb"), Ok(FactValue::Text("0xa80425fb".into())));
        assert_eq!(read(Form::List, "0 27 100"), Ok(FactValue::Text("0,27,100".into())));
        assert_eq!(read(Form::List, ""), Ok(FactValue::Text(String::new())));
        for (form, rest) in [(Form::Mask, "xyz"), (Form::Number, "-"), (Form::List, "0 a")] {
            assert_eq!(read(form, rest), Err(Unknown::Error), "{rest}");
        }
        assert_eq!(namespace("pid:[4026531836]"), Ok(FactValue::Number(4_026_531_836)));
        assert_eq!(namespace("pid:4026531836"), Err(Unknown::Error));
        let many = "1 ".repeat(600);
        assert_eq!(read(Form::List, &many), Err(Unknown::Error), "never a shorter list");
    }

    #[test]
    fn a_file_without_verity_has_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(verity(&file), Err(Unknown::Absent));
    }
}
