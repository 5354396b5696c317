//! The closed table of device facts: name, type, who vouches, and where it is read.
//!
//! Profiles may name nothing else, and evidence that names something else is not judged by it. A
//! row is added here, collected in `agent/facts.rs`, and is then part of every report. Rows stand
//! in the order of their names: positions and serialised reports follow it.

use super::fact::{FactName, Rank};

/// The type of a fact's value. There is no conversion: `"true"` is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactKind {
    /// `true` or `false`.
    Bool,
    /// A signed 64-bit whole number.
    Number,
    /// Text of at most 512 bytes.
    Text,
}

impl FactKind {
    /// The word that diagnostics use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Number => "a whole number",
            Self::Text => "text",
        }
    }
}

/// Who states a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The device, in its evidence.
    Device,
    /// The broker, out of what it verified itself; a report that claims it is refused.
    Broker,
}

/// One row of the table.
#[derive(Debug)]
pub struct FactRow {
    /// The name that profiles and evidence use.
    pub name: &'static str,
    /// Its type.
    pub kind: FactKind,
    /// The highest rank that a claim of it can have.
    pub rank: Rank,
    /// Who states it.
    pub origin: Origin,
    /// It moves by itself all the time: carried in reports, never part of their digest.
    pub volatile: bool,
    /// Names of the bits of a number, lowest first; empty where it is not a mask.
    pub bits: &'static [&'static str],
    /// Where it is read.
    pub source: &'static str,
}

/// Names of the kernel's taint bits, lowest first (Documentation/admin-guide/tainted-kernels).
const TAINT: &[&str] = &[
    "proprietary",
    "forced_module",
    "out_of_spec",
    "forced_unload",
    "machine_check",
    "bad_page",
    "user",
    "oops",
    "acpi_override",
    "warning",
    "staging",
    "firmware_workaround",
    "out_of_tree",
    "unsigned_module",
    "soft_lockup",
    "livepatch",
    "aux",
    "randstruct",
    "test",
];

macro_rules! facts {
    ($(
        $name:ident $text:literal $kind:ident $rank:ident $origin:ident $flow:ident $bits:expr,
        $source:literal;
    )+) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Place { $($name),+ }

        impl FactName {
            $(
                #[doc = concat!("`", $text, "`: ", $source, ".")]
                pub const $name: FactName = FactName(Place::$name as u16);
            )+
        }

        /// Every fact, in the order of the names.
        pub(super) static ROWS: &[FactRow] = &[$(FactRow {
            name: $text,
            kind: FactKind::$kind,
            rank: Rank::$rank,
            origin: Origin::$origin,
            volatile: facts!(@$flow),
            bits: $bits,
            source: $source,
        }),+];
    };
    (@steady) => { false };
    (@volatile) => { true };
}

facts! {
    AGENT_VERSION "agent.version" Text Agent Device steady &[],
        "the agent's own version";
    APPARMOR_ENABLED "apparmor.enabled" Bool Kernel Device steady &[],
        "/sys/module/apparmor/parameters/enabled";
    BOOT_ID "boot.id" Text Kernel Device steady &[],
        "/proc/sys/kernel/random/boot_id";
    BOOT_UEFI "boot.uefi" Bool Kernel Device steady &[],
        "/sys/firmware/efi: the machine was started by UEFI";
    BOOT_UPTIME_S "boot.uptime_s" Number Kernel Device volatile &[],
        "/proc/uptime, whole seconds";
    CONN_COLOCATED "conn.colocated" Bool Kernel Broker steady &[],
        "the broker: the key of this connection was made for an attested process and never left its agent";
    CPU_VULNERABLE "cpu.vulnerable" Number Kernel Device steady &[],
        "/sys/devices/system/cpu/vulnerabilities: flaws that stand as Vulnerable";
    CRYPTO_FIPS "crypto.fips" Bool Kernel Device steady &[],
        "/proc/sys/crypto/fips_enabled";
    DEVICE_ENROLLED "device.enrolled" Bool Kernel Broker steady &[],
        "the broker: the evidence was endorsed by an enrolled key";
    DISK_ROOT_CRYPT "disk.root_crypt" Bool Kernel Device steady &[],
        "device-mapper below `/`: CRYPT-LUKS or CRYPT-PLAIN on every path";
    DISK_ROOT_READONLY "disk.root_readonly" Bool Kernel Device steady &[],
        "statvfs of `/`";
    DISK_ROOT_VERITY "disk.root_verity" Bool Kernel Device steady &[],
        "device-mapper below `/`: CRYPT-VERITY on every path";
    FS_PROTECTED_FIFOS "fs.protected_fifos" Number Kernel Device steady &[],
        "/proc/sys/fs/protected_fifos";
    FS_PROTECTED_HARDLINKS "fs.protected_hardlinks" Number Kernel Device steady &[],
        "/proc/sys/fs/protected_hardlinks";
    FS_PROTECTED_REGULAR "fs.protected_regular" Number Kernel Device steady &[],
        "/proc/sys/fs/protected_regular";
    FS_PROTECTED_SYMLINKS "fs.protected_symlinks" Number Kernel Device steady &[],
        "/proc/sys/fs/protected_symlinks";
    FS_SUID_DUMPABLE "fs.suid_dumpable" Number Kernel Device steady &[],
        "/proc/sys/fs/suid_dumpable";
    IMA_COUNT "ima.count" Number Kernel Device volatile &[],
        "/sys/kernel/security/integrity/ima/runtime_measurements_count";
    KERNEL_CMDLINE_WEAK "kernel.cmdline_weak" Text Kernel Device steady &[],
        "/proc/cmdline: words that take protection away, comma-separated; empty if none";
    KERNEL_CORE_PATTERN "kernel.core_pattern" Text Kernel Device steady &[],
        "/proc/sys/kernel/core_pattern";
    KERNEL_DMESG_RESTRICT "kernel.dmesg_restrict" Number Kernel Device steady &[],
        "/proc/sys/kernel/dmesg_restrict";
    KERNEL_IO_URING_DISABLED "kernel.io_uring_disabled" Number Kernel Device steady &[],
        "/proc/sys/kernel/io_uring_disabled";
    KERNEL_KEXEC_LOAD_DISABLED "kernel.kexec_load_disabled" Bool Kernel Device steady &[],
        "/proc/sys/kernel/kexec_load_disabled";
    KERNEL_KPTR_RESTRICT "kernel.kptr_restrict" Number Kernel Device steady &[],
        "/proc/sys/kernel/kptr_restrict";
    KERNEL_LOCKDOWN "kernel.lockdown" Text Kernel Device steady &[],
        "/sys/kernel/security/lockdown: none, integrity or confidentiality";
    KERNEL_LSM "kernel.lsm" Text Kernel Device steady &[],
        "/sys/kernel/security/lsm, comma-separated in the kernel's order";
    KERNEL_MODULE_SIG_ENFORCE "kernel.module_sig_enforce" Bool Kernel Device steady &[],
        "/sys/module/module/parameters/sig_enforce";
    KERNEL_MODULES_DISABLED "kernel.modules_disabled" Bool Kernel Device steady &[],
        "/proc/sys/kernel/modules_disabled";
    KERNEL_PERF_EVENT_PARANOID "kernel.perf_event_paranoid" Number Kernel Device steady &[],
        "/proc/sys/kernel/perf_event_paranoid";
    KERNEL_RANDOMIZE_VA_SPACE "kernel.randomize_va_space" Number Kernel Device steady &[],
        "/proc/sys/kernel/randomize_va_space";
    KERNEL_RELEASE "kernel.release" Text Kernel Device steady &[],
        "/proc/sys/kernel/osrelease";
    KERNEL_SYSRQ "kernel.sysrq" Number Kernel Device steady &[],
        "/proc/sys/kernel/sysrq";
    KERNEL_TAINTED "kernel.tainted" Number Kernel Device steady TAINT,
        "/proc/sys/kernel/tainted";
    KERNEL_UNPRIVILEGED_BPF_DISABLED "kernel.unprivileged_bpf_disabled" Number Kernel Device steady &[],
        "/proc/sys/kernel/unprivileged_bpf_disabled";
    KERNEL_UNPRIVILEGED_USERNS_CLONE "kernel.unprivileged_userns_clone" Bool Kernel Device steady &[],
        "/proc/sys/kernel/unprivileged_userns_clone, where the distribution has it";
    MACHINE_ID "machine.id" Text Agent Device steady &[],
        "SHA-256 over a label and /etc/machine-id; never the id itself";
    NET_BPF_JIT_HARDEN "net.bpf_jit_harden" Number Kernel Device steady &[],
        "/proc/sys/net/core/bpf_jit_harden";
    NET_IPV4_FORWARD "net.ipv4_forward" Bool Kernel Device steady &[],
        "/proc/sys/net/ipv4/ip_forward";
    NET_LISTEN_ANY "net.listen_any" Bool Kernel Device steady &[],
        "NETLINK_SOCK_DIAG: a TCP socket listens on every address";
    NET_LISTEN_ANY_PORTS "net.listen_any_ports" Text Kernel Device steady &[],
        "the ports of those sockets, ascending, comma-separated";
    NET_NFT_RULES "net.nft_rules" Bool Agent Device steady &[],
        "NETLINK_NETFILTER: the nft ruleset of this network namespace has a rule";
    OS_ID "os.id" Text Agent Device steady &[],
        "/etc/os-release ID";
    OS_PATCH_AGE_DAYS "os.patch_age_days" Number Agent Device steady &[],
        "age of the package database, whole days";
    OS_REBOOT_REQUIRED "os.reboot_required" Bool Agent Device steady &[],
        "/run/reboot-required, where the distribution writes it";
    OS_VERSION "os.version" Text Agent Device steady &[],
        "/etc/os-release VERSION_ID";
    SECUREBOOT "secureboot" Bool Kernel Device steady &[],
        "EFI variable SecureBoot";
    SELINUX_ENFORCE "selinux.enforce" Bool Kernel Device steady &[],
        "/sys/fs/selinux/enforce";
    SWAP_ACTIVE "swap.active" Bool Kernel Device steady &[],
        "/proc/swaps";
    TIME_MAX_ERROR_MS "time.max_error_ms" Number Kernel Device volatile &[],
        "adjtimex maxerror";
    TIME_SYNCED "time.synced" Bool Kernel Device steady &[],
        "adjtimex state and status";
    TPM_PRESENT "tpm.present" Bool Kernel Device steady &[],
        "/sys/class/tpm/tpm0";
    TPM_TIER "tpm.tier" Text Kernel Broker steady &[],
        "the broker: what holds the device key, `soft` (a file), `tpm` or `vtpm`";
    TPM_VERSION "tpm.version" Number Kernel Device steady &[],
        "/sys/class/tpm/tpm0/tpm_version_major";
    USER_MAX_USER_NAMESPACES "user.max_user_namespaces" Number Kernel Device steady &[],
        "/proc/sys/user/max_user_namespaces";
    VM_MMAP_MIN_ADDR "vm.mmap_min_addr" Number Kernel Device steady &[],
        "/proc/sys/vm/mmap_min_addr";
    VM_UNPRIVILEGED_USERFAULTFD "vm.unprivileged_userfaultfd" Bool Kernel Device steady &[],
        "/proc/sys/vm/unprivileged_userfaultfd";
    YAMA_PTRACE_SCOPE "yama.ptrace_scope" Number Kernel Device steady &[],
        "/proc/sys/kernel/yama/ptrace_scope";
}

impl FactName {
    /// The name of that text, if the table has it; byte-exact.
    pub fn parse(text: &str) -> Option<Self> {
        let at = ROWS.binary_search_by(|row| row.name.cmp(text)).ok()?;
        u16::try_from(at).ok().map(Self)
    }

    /// Every name, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0u16..).zip(ROWS).map(|(at, _)| Self(at))
    }

    /// The row of the table.
    pub fn row(self) -> &'static FactRow {
        // Only this file makes positions, and each of them out of the table itself.
        ROWS.get(usize::from(self.0)).unwrap_or(&NOWHERE)
    }

    /// The name's text.
    pub fn as_str(self) -> &'static str {
        self.row().name
    }
}

/// What a position outside the table would be: a fact that nobody can state.
static NOWHERE: FactRow = FactRow {
    name: "",
    kind: FactKind::Bool,
    rank: Rank::External,
    origin: Origin::Broker,
    volatile: true,
    bits: &[],
    source: "nowhere",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_each_name_finds_its_row() {
        assert!(ROWS.len() >= 30 && ROWS.len() <= crate::model::limits::FACTS_MAX);
        assert!(ROWS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for name in FactName::all() {
            assert_eq!(FactName::parse(name.as_str()), Some(name));
        }
        assert_eq!(FactName::KERNEL_TAINTED.as_str(), "kernel.tainted");
        assert_eq!(FactName::YAMA_PTRACE_SCOPE.as_str(), "yama.ptrace_scope");
        assert_eq!(FactName::parse("kernel.Lockdown"), None);
        assert_eq!(FactName::parse(""), None);
    }

    #[test]
    fn nothing_claimed_can_be_measured() {
        assert!(ROWS.iter().all(|row| row.rank < Rank::Measured));
    }

    #[test]
    fn the_taint_bits_stand_where_the_kernel_has_them() {
        let bit = |name: &str| TAINT.iter().position(|bit| *bit == name);
        assert_eq!(bit("forced_module"), Some(1));
        assert_eq!(bit("out_of_tree"), Some(12));
        assert_eq!(bit("unsigned_module"), Some(13));
        assert_eq!(TAINT.len(), 19);
    }
}
