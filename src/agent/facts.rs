//! Collects the facts of this machine: one pass over small files of the kernel and a few calls.
//!
//! A fact that can't be read is stated as unknown, with the reason; it is never guessed and never
//! left out. What is absent is absent, not false. A pass takes well under 20 ms and may run each
//! second. It writes nothing, starts nothing, and resolves no name.

mod clock_state;
mod firewall;
mod flaws;
mod listeners;
mod root_disk;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::model::limits::FACT_TEXT_MAX;
use crate::model::{Clock as _, Digest, SystemClock};
use crate::posture::{FactName, FactValue, Facts, Unknown};

use clock_state::clock_state;
use firewall::has_rules;
use flaws::{vulnerable, weak_words};
use listeners::open_ports;
use root_disk::{Layer, covered};

/// The largest file that a fact comes from, in bytes: every one but /proc/swaps is a line.
const FILE_MAX: u64 = 16 * 1024;
/// The efivar of the SecureBoot state (UEFI 3.3, global variable GUID).
const SECUREBOOT: &str =
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Where packages are noted down; the first that exists counts.
const PACKAGES: [&str; 5] = [
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages",
    "/lib/apk/db/installed",
];

type Reading<T> = Result<T, Unknown>;

/// Whether the kernel says that its clock is synchronised; none when it does not say.
pub fn time_synced() -> Option<bool> {
    clock_state().ok().map(|state| state.synced)
}

/// Everything that the table of facts asks of a device, as it is now.
pub fn collect() -> Facts {
    let mut pass = Pass(Facts::default());
    pass.kernel();
    pass.protections();
    pass.disk();
    pass.system();
    pass.time();
    pass.network();
    pass.0
}

struct Pass(Facts);

impl Pass {
    /// States one fact; a value that the table refuses is an error of ours, stated as such.
    fn state(&mut self, name: FactName, value: Reading<FactValue>) {
        if self.0.state(name, value).is_err() {
            let _ = self.0.state(name, Err(Unknown::Error));
        }
    }

    fn bool(&mut self, name: FactName, value: Reading<bool>) {
        self.state(name, value.map(FactValue::Bool));
    }

    fn number(&mut self, name: FactName, value: Reading<i64>) {
        self.state(name, value.map(FactValue::Number));
    }

    fn text(&mut self, name: FactName, value: Reading<String>) {
        let plain = value.and_then(|text| {
            let strange = text.is_empty() || text.chars().any(char::is_control);
            if strange { Err(Unknown::Error) } else { Ok(text) }
        });
        self.state(name, plain.map(FactValue::Text));
    }

    fn kernel(&mut self) {
        self.text(FactName::KERNEL_RELEASE, line("/proc/sys/kernel/osrelease"));
        self.text(FactName::KERNEL_CORE_PATTERN, line("/proc/sys/kernel/core_pattern"));
        self.text(FactName::KERNEL_LSM, line("/sys/kernel/security/lsm"));
        self.text(
            FactName::KERNEL_LOCKDOWN,
            line("/sys/kernel/security/lockdown").and_then(|text| chosen(&text)),
        );
        for (name, file) in [
            (FactName::FS_PROTECTED_FIFOS, "fs/protected_fifos"),
            (FactName::FS_PROTECTED_HARDLINKS, "fs/protected_hardlinks"),
            (FactName::FS_PROTECTED_REGULAR, "fs/protected_regular"),
            (FactName::FS_PROTECTED_SYMLINKS, "fs/protected_symlinks"),
            (FactName::FS_SUID_DUMPABLE, "fs/suid_dumpable"),
            (FactName::KERNEL_DMESG_RESTRICT, "kernel/dmesg_restrict"),
            (FactName::KERNEL_IO_URING_DISABLED, "kernel/io_uring_disabled"),
            (FactName::KERNEL_KPTR_RESTRICT, "kernel/kptr_restrict"),
            (FactName::KERNEL_PERF_EVENT_PARANOID, "kernel/perf_event_paranoid"),
            (FactName::KERNEL_RANDOMIZE_VA_SPACE, "kernel/randomize_va_space"),
            (FactName::KERNEL_SYSRQ, "kernel/sysrq"),
            (FactName::KERNEL_TAINTED, "kernel/tainted"),
            (FactName::KERNEL_UNPRIVILEGED_BPF_DISABLED, "kernel/unprivileged_bpf_disabled"),
            (FactName::NET_BPF_JIT_HARDEN, "net/core/bpf_jit_harden"),
            (FactName::USER_MAX_USER_NAMESPACES, "user/max_user_namespaces"),
            (FactName::VM_MMAP_MIN_ADDR, "vm/mmap_min_addr"),
            (FactName::YAMA_PTRACE_SCOPE, "kernel/yama/ptrace_scope"),
        ] {
            self.number(name, number(&format!("/proc/sys/{file}")));
        }
        for (name, file) in [
            (FactName::CRYPTO_FIPS, "crypto/fips_enabled"),
            (FactName::KERNEL_KEXEC_LOAD_DISABLED, "kernel/kexec_load_disabled"),
            (FactName::KERNEL_MODULES_DISABLED, "kernel/modules_disabled"),
            (FactName::KERNEL_UNPRIVILEGED_USERNS_CLONE, "kernel/unprivileged_userns_clone"),
            (FactName::NET_IPV4_FORWARD, "net/ipv4/ip_forward"),
            (FactName::VM_UNPRIVILEGED_USERFAULTFD, "vm/unprivileged_userfaultfd"),
        ] {
            self.bool(name, flag(&format!("/proc/sys/{file}")));
        }
        let weak = text("/proc/cmdline").map(|text| weak_words(&text));
        self.state(FactName::KERNEL_CMDLINE_WEAK, weak.map(FactValue::Text));
    }

    fn protections(&mut self) {
        self.bool(FactName::APPARMOR_ENABLED, flag("/sys/module/apparmor/parameters/enabled"));
        self.bool(FactName::SELINUX_ENFORCE, flag("/sys/fs/selinux/enforce"));
        let enforced = flag("/sys/module/module/parameters/sig_enforce");
        self.bool(FactName::KERNEL_MODULE_SIG_ENFORCE, enforced);
        self.bool(FactName::SECUREBOOT, secureboot());
        // Without the folder above it nobody can say what is not there.
        let firmware = Path::new("/sys/firmware").symlink_metadata().map_err(|e| reason(&e));
        self.bool(FactName::BOOT_UEFI, firmware.and_then(|_| exists("/sys/firmware/efi")));
        let flaws = Path::new("/sys/devices/system/cpu/vulnerabilities");
        self.number(FactName::CPU_VULNERABLE, vulnerable(flaws));
        let ima = "/sys/kernel/security/integrity/ima/runtime_measurements_count";
        self.number(FactName::IMA_COUNT, number(ima));
        // Without the class no driver has looked for one, so nobody can say.
        let class = Path::new("/sys/class/tpm").symlink_metadata().map_err(|e| reason(&e));
        let tpm = class.and_then(|_| exists("/sys/class/tpm/tpm0"));
        self.bool(FactName::TPM_PRESENT, tpm);
        self.number(FactName::TPM_VERSION, number("/sys/class/tpm/tpm0/tpm_version_major"));
    }

    fn disk(&mut self) {
        let device = std::fs::metadata("/")
            .map(|root| (u64::from(libc::major(root.dev())), u64::from(libc::minor(root.dev()))));
        let device = device.map_err(|error| reason(&error));
        let blocks = Path::new("/sys/dev/block");
        for (name, layer) in
            [(FactName::DISK_ROOT_CRYPT, Layer::Crypt), (FactName::DISK_ROOT_VERITY, Layer::Verity)]
        {
            let is = device.and_then(|d| covered(blocks, d, layer).map_err(|error| reason(&error)));
            self.bool(name, is);
        }
        let root = nix::sys::statvfs::statvfs("/").map_err(|error| reason(&error.into()));
        let readonly = nix::sys::statvfs::FsFlags::ST_RDONLY;
        self.bool(FactName::DISK_ROOT_READONLY, root.map(|root| root.flags().contains(readonly)));
        // The first line is a heading.
        let swaps = text("/proc/swaps").map(|text| text.lines().count() > 1);
        self.bool(FactName::SWAP_ACTIVE, swaps);
    }

    fn system(&mut self) {
        let release = match text("/etc/os-release") {
            Err(Unknown::Absent) => text("/usr/lib/os-release"),
            other => other,
        };
        for (name, key) in [(FactName::OS_ID, "ID"), (FactName::OS_VERSION, "VERSION_ID")] {
            let value = release.as_deref().map_err(|unknown| *unknown);
            self.text(name, value.and_then(|text| os_release(text, key).ok_or(Unknown::Absent)));
        }
        self.number(FactName::OS_PATCH_AGE_DAYS, patch_age_days());
        // Only the Debian family writes the mark: elsewhere its absence means nothing.
        let debian =
            exists("/var/lib/dpkg/status").and_then(|is| is.then_some(()).ok_or(Unknown::Absent));
        let reboot = debian.and_then(|()| exists("/run/reboot-required"));
        self.bool(FactName::OS_REBOOT_REQUIRED, reboot);
        self.text(FactName::AGENT_VERSION, Ok(env!("CARGO_PKG_VERSION").to_owned()));
        self.text(FactName::BOOT_ID, line("/proc/sys/kernel/random/boot_id"));
        let uptime = line("/proc/uptime").and_then(|text| {
            let seconds = text.split('.').next().and_then(|whole| whole.parse().ok());
            seconds.ok_or(Unknown::Error)
        });
        self.number(FactName::BOOT_UPTIME_S, uptime);
        self.text(FactName::MACHINE_ID, line("/etc/machine-id").and_then(|id| machine_digest(&id)));
    }

    fn time(&mut self) {
        let state = clock_state().map_err(|error| reason(&error));
        self.bool(FactName::TIME_SYNCED, state.map(|state| state.synced));
        self.number(FactName::TIME_MAX_ERROR_MS, state.map(|state| state.max_error_ms));
    }

    fn network(&mut self) {
        let ports = open_ports().map_err(|error| reason(&error));
        let any = ports.as_ref().map(|ports| !ports.is_empty()).map_err(|unknown| *unknown);
        self.bool(FactName::NET_LISTEN_ANY, any);
        let list = ports.map(|ports| port_list(ports.into_iter()));
        self.state(FactName::NET_LISTEN_ANY_PORTS, list.map(FactValue::Text));
        let module = Path::new("/sys/module/nf_tables").symlink_metadata();
        let rules = module.map_err(|error| reason(&error));
        let rules = rules.and_then(|_| has_rules().map_err(|error| reason(&error)));
        self.bool(FactName::NET_NFT_RULES, rules);
    }
}

/// Why reading failed, in the terms of facts.
fn reason(error: &io::Error) -> Unknown {
    match error.kind() {
        io::ErrorKind::NotFound => Unknown::Absent,
        io::ErrorKind::PermissionDenied => Unknown::Denied,
        _ => Unknown::Error,
    }
}

/// A whole file of at most `limit` bytes.
fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        return Ok(bytes);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the file is larger than it can be"))
}

fn text(path: &str) -> Reading<String> {
    let bytes = read_bounded(Path::new(path), FILE_MAX).map_err(|error| reason(&error))?;
    String::from_utf8(bytes).map_err(|_| Unknown::Error)
}

/// A file of one line, without blanks around it.
fn line(path: &str) -> Reading<String> {
    text(path).map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Reading<i64> {
    line(path)?.parse().map_err(|_| Unknown::Error)
}

fn flag(path: &str) -> Reading<bool> {
    match line(path)?.as_str() {
        "1" | "Y" => Ok(true),
        "0" | "N" => Ok(false),
        _ => Err(Unknown::Error),
    }
}

fn exists(path: &str) -> Reading<bool> {
    match Path::new(path).symlink_metadata().map_err(|error| reason(&error)) {
        Ok(_) => Ok(true),
        Err(Unknown::Absent) => Ok(false),
        Err(other) => Err(other),
    }
}

/// `none [integrity] confidentiality` → `integrity`.
fn chosen(text: &str) -> Reading<String> {
    let inner = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inner.map(|(word, _)| word.to_owned()).ok_or(Unknown::Error)
}

/// Four bytes of attributes, one of value.
fn secureboot() -> Reading<bool> {
    let bytes = read_bounded(Path::new(SECUREBOOT), 64).map_err(|error| reason(&error))?;
    match bytes.as_slice() {
        [_, _, _, _, 0] => Ok(false),
        [_, _, _, _, 1] => Ok(true),
        _ => Err(Unknown::Error),
    }
}

/// One value of an os-release(5) file, without its quotes; escapes in it are not resolved.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?.trim();
    let bare = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    Some(bare('"').or_else(|| bare('\'')).unwrap_or(value).to_owned())
}

fn patch_age_days() -> Reading<i64> {
    let found = PACKAGES.iter().map(|path| std::fs::metadata(path).map_err(|error| reason(&error)));
    let first = found.into_iter().find(|found| !matches!(found, Err(Unknown::Absent)));
    let changed = first.unwrap_or(Err(Unknown::Absent))?.mtime();
    let age_s = SystemClock.now().unix_s().saturating_sub(changed);
    // A package database out of the future says that a clock is wrong, not that it is fresh.
    if age_s < 0 { Err(Unknown::Error) } else { Ok(age_s / 86_400) }
}

/// machine-id(5) asks that the id itself never leaves the machine.
fn machine_digest(id: &str) -> Reading<String> {
    if id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Unknown::Error); // `uninitialized`, or empty in an image
    }
    Ok(Digest::of(format!("doorward machine-id\0{id}").as_bytes()).to_string())
}

/// `22,443`; what does not fit into a fact is counted: `22,443,+17`.
fn port_list(ports: impl ExactSizeIterator<Item = u16>) -> String {
    let mut list = String::new();
    let mut left = ports.len();
    for port in ports {
        let item = format!("{}{port}", if list.is_empty() { "" } else { "," });
        if list.len() + item.len() > FACT_TEXT_MAX - ",+65536".len() {
            list.push_str(&format!(",+{left}"));
            break;
        }
        list.push_str(&item);
        left -= 1;
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::posture::{Origin, Rank};
    use std::net::TcpListener;

    fn value(facts: &Facts, name: FactName) -> Reading<FactValue> {
        facts.fact(name).expect("every fact is stated").value.clone()
    }

    #[test]
    fn every_fact_of_a_device_is_stated() {
        let facts = collect();
        for name in FactName::all().filter(|name| name.row().origin == Origin::Device) {
            let fact = facts.fact(name).unwrap_or_else(|| panic!("{name} is not collected"));
            assert!(fact.rank < Rank::Measured);
        }
        let Ok(FactValue::Text(release)) = value(&facts, FactName::KERNEL_RELEASE) else {
            panic!("every Linux has a release");
        };
        assert!(release.starts_with(|c: char| c.is_ascii_digit()));
        assert!(value(&facts, FactName::BOOT_ID).is_ok());
        let read: Facts = serde_json::from_slice(&serde_json::to_vec(&facts).unwrap()).unwrap();
        assert_eq!(read.digest(), facts.digest(), "the broker counts the same digest");
        assert_eq!(read, facts);
    }

    #[test]
    fn a_listener_on_every_address_is_seen_while_it_is_there() {
        let ports = |facts: &Facts| match value(facts, FactName::NET_LISTEN_ANY_PORTS) {
            Ok(FactValue::Text(list)) => list.split(',').map(str::to_owned).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        for address in ["0.0.0.0:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert_eq!(address, "[::]:0", "only IPv6 may be missing");
                continue;
            };
            let port = listener.local_addr().unwrap().port().to_string();
            let with = collect();
            assert_eq!(value(&with, FactName::NET_LISTEN_ANY), Ok(FactValue::Bool(true)));
            assert!(ports(&with).contains(&port));
            drop(listener);
            let without = collect();
            assert!(!ports(&without).contains(&port));
            assert_ne!(with.digest(), without.digest());
        }
    }

    #[test]
    fn what_can_not_be_read_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("good"), " 7\n").unwrap();
        std::fs::write(path("large"), vec![b'1'; 20_000]).unwrap();
        std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
        assert_eq!(number(&path("good")), Ok(7));
        assert_eq!(number(&path("none")), Err(Unknown::Absent));
        assert_eq!(number(&path("large")), Err(Unknown::Error));
        assert_eq!(line(&path("binary")), Err(Unknown::Error));
        assert_eq!(flag(&path("good")), Err(Unknown::Error));
        assert_eq!(line(&dir.path().display().to_string()), Err(Unknown::Error));
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EACCES)), Unknown::Denied);
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::EPERM)), Unknown::Denied);
    }

    #[test]
    fn the_small_formats() {
        assert_eq!(chosen("none [integrity] confidentiality").as_deref(), Ok("integrity"));
        assert_eq!(chosen("none"), Err(Unknown::Error));
        let release = "NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\nX='y'\n";
        assert_eq!(os_release(release, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(release, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release(release, "X").as_deref(), Some("y"));
        assert_eq!(os_release(release, "VERSION"), None);
        assert!(machine_digest(&"a".repeat(32)).unwrap() != "a".repeat(32));
        assert_eq!(machine_digest("uninitialized"), Err(Unknown::Error));
        assert_eq!(port_list([22u16, 443].into_iter()), "22,443");
        let many = port_list((10_000u16..10_200).collect::<Vec<_>>().into_iter());
        assert!(many.len() <= FACT_TEXT_MAX && many.contains(",+"), "{many}");
        let shown = many.split(',').count() - 1;
        assert!(many.ends_with(&format!(",+{}", 200 - shown)));
    }
}
