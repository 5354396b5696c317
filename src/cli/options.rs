//! The options and actions of the single commands; the grammar's leaves.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::join::JoinOptions;

/// `doorward init`
#[derive(Debug, ClapArgs)]
pub struct InitOptions {
    /// The new directory
    pub dir: PathBuf,
    /// Whose identities it will issue
    #[arg(long, value_name = "NAME")]
    pub trust_domain: String,
    /// UDP address for holders of identities
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    pub listen: std::net::SocketAddr,
    /// UDP address for devices that enrol
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8444")]
    pub listen_enrolment: std::net::SocketAddr,
    /// Loopback TCP address for health and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    pub management: std::net::SocketAddr,
    /// Host name or address that other machines reach this broker by
    #[arg(long, value_name = "HOST", default_value = "localhost")]
    pub advertise: String,
    /// `key-file` (starts by itself) or `passphrase` (a person at each start: `unseal`, or a systemd credential)
    #[arg(long, default_value = "key-file", value_parser = ["key-file", "passphrase"])]
    pub seal: String,
    /// An existing 32-byte key file; without it one is made in the directory
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Read the passphrase from this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Name of the first operator
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub operator: String,
    /// Write the operator's token to this new file (0600) instead of printing it
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// `doorward broker`
#[derive(Debug, ClapArgs)]
pub struct BrokerOptions {
    /// The broker's directory
    pub dir: PathBuf,
    /// Read the passphrase from this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Wait for `doorward unseal`, also where the passphrase could be had at once
    #[arg(long, conflicts_with = "passphrase_file")]
    pub sealed: bool,
    /// Write the addresses to this file once requests are answered
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
}

/// `doorward unseal`
#[derive(Debug, ClapArgs)]
pub struct UnsealOptions {
    /// The broker's directory
    pub dir: PathBuf,
    /// Read the passphrase from this file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// `doorward agent …`
#[derive(Debug, Subcommand)]
pub enum AgentAction {
    /// Enrol this machine, by a join token, a device certificate or a pod's token, and write the
    /// agent's configuration
    Join(Box<JoinOptions>),
}

/// `doorward put`
#[derive(Debug, ClapArgs)]
pub struct PutOptions {
    /// The secret
    pub name: String,
    /// Read the value from this file instead of standard input
    #[arg(long, value_name = "FILE", conflicts_with = "generate")]
    pub file: Option<PathBuf>,
    /// Let so many random bytes be the value (base64url text)
    #[arg(long, value_name = "BYTES")]
    pub generate: Option<usize>,
    /// Only if the newest version is this one; 0 means «must not exist»
    #[arg(long, value_name = "VERSION")]
    pub cas: Option<u64>,
    /// Labels `key=value`, replacing those that stand
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Do not serve the new version until it is activated
    #[arg(long)]
    pub staged: bool,
    /// Keep a newline at the end of the value
    #[arg(long)]
    pub keep_newline: bool,
}

/// `doorward get`
#[derive(Debug, ClapArgs)]
pub struct GetOptions {
    /// The secret
    pub name: String,
    /// A version other than the active one
    #[arg(long = "version", id = "of_version", value_name = "VERSION")]
    pub version: Option<u64>,
    /// Print the value even to a terminal
    #[arg(long)]
    pub show: bool,
    /// Ask the agent as this SPIFFE ID, where several fit
    #[arg(long = "as", value_name = "SPIFFE-ID")]
    pub as_id: Option<String>,
}

/// `doorward run`
#[derive(Debug, ClapArgs)]
pub struct RunOptions {
    /// `NAME=secret/<name>`: the value goes into this variable
    #[arg(long, value_name = "NAME=SECRET")]
    pub env: Vec<String>,
    /// `NAME=secret/<name>`: the value goes into a memory file; the variable holds its path
    #[arg(long, value_name = "NAME=SECRET")]
    pub file: Vec<String>,
    /// Ask as this SPIFFE ID, where several fit
    #[arg(long = "as", value_name = "SPIFFE-ID")]
    pub as_id: Option<String>,
    /// The command, after `--`
    #[arg(last = true, required = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// `doorward token …`
#[derive(Debug, Subcommand)]
pub enum TokenAction {
    /// Make a single-use join token for a device
    Create {
        /// The class that the device will have
        #[arg(long, default_value = "server")]
        class: String,
        /// Life of the token in seconds, 60 to 86400
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        ttl: u32,
    },
}

/// `doorward operator …`
#[derive(Debug, Subcommand)]
pub enum OperatorAction {
    /// Make a single-use token for a new operator
    Add {
        /// The operator's name
        name: String,
    },
    /// End an operator's identity, now
    Remove {
        /// The operator's name
        name: String,
    },
}

/// `doorward recover …`
#[derive(Debug, Subcommand)]
pub enum RecoverAction {
    /// A new operator's token, on the stopped broker's host; leaves a record
    Operator {
        /// The broker's directory
        dir: PathBuf,
        /// The operator's name
        #[arg(long, default_value = "recovered")]
        name: String,
        /// Read the passphrase from this file; `-` is standard input
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
}

/// `doorward device …`
#[derive(Debug, Subcommand)]
pub enum DeviceAction {
    /// All devices
    List,
    /// The facts of this machine, or of one of its processes, read now; asks no broker
    Facts {
        /// Of this process of this machine
        #[arg(long, value_name = "PID")]
        pid: Option<u32>,
    },
    /// One device with its facts
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// The secrets that a device has had, out of the decision log, so that they can be rotated
    Exposure {
        /// Its id, or the beginning of it
        id: String,
        /// Only what it had since: a time (2026-11-23T12:00:00Z), or how long ago (90m, 24h, 7d)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// End a device: every identity issued to it is dead at once
    Revoke {
        /// Its id, or the beginning of it
        id: String,
        /// Let what it was enrolled by (a certificate, a node) enrol another device
        #[arg(long)]
        release: bool,
    },
}

/// `doorward entry …`
#[derive(Debug, Subcommand)]
pub enum EntryAction {
    /// Make an entry
    Create(NewEntry),
    /// All entries
    List,
    /// One entry with everything about it
    Show {
        /// Its id
        id: String,
    },
    /// End an entry and every identity that it gave
    Delete {
        /// Its id
        id: String,
    },
    /// Say which entry a running process fits, and what the nearest lacks
    Explain {
        /// The process id, on this machine
        pid: u32,
        /// The socket of the node's container runtime, to ask which image it runs
        #[arg(long, value_name = "SOCKET")]
        container_runtime: Option<PathBuf>,
    },
}

/// `doorward entry create`
#[derive(Debug, ClapArgs)]
pub struct NewEntry {
    /// The identity: a SPIFFE ID, or its path
    #[arg(long, value_name = "SPIFFE-ID")]
    pub id: String,
    /// Devices of this class
    #[arg(long, default_value = "server")]
    pub class: String,
    /// Only this device of the class
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// `uid:N`, `gid:N`, `path:/…`, `exe_sha256:…`, `unit:x.service`, `k8s_pod_uid:…`,
    /// `container_id:…`, `image_digest:sha256:…`; all must hold
    #[arg(long, value_name = "KIND:VALUE", required = true)]
    pub selector: Vec<String>,
    /// Life of an SVID in seconds
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u32>,
    /// Given when a process fits several entries and names none
    #[arg(long)]
    pub default: bool,
    /// What its JWT-SVIDs are signed with; RS256 for verifiers that take nothing else
    #[arg(long, value_name = "ALG", value_parser = ["ES256", "RS256"], default_value = "ES256")]
    pub jwt_alg: String,
    /// Tell the workload of this federated trust domain's bundle too; may be given again
    #[arg(long, value_name = "TRUST-DOMAIN")]
    pub federates_with: Vec<String>,
    /// What the identity is for: told to a workload that is given several
    #[arg(long, value_name = "TEXT")]
    pub hint: Option<String>,
}

/// `doorward identity …`
#[derive(Debug, Subcommand)]
pub enum IdentityAction {
    /// End every living SVID of a SPIFFE ID, now; its entries stay suspended. With --serial, end one
    /// SVID: its workload may be given another
    Revoke {
        /// The SPIFFE ID, or its path; with --serial the log knows it
        #[arg(required_unless_present = "serial")]
        id: Option<String>,
        /// Let the entries give SVIDs again
        #[arg(long)]
        resume: bool,
        /// The serial number of the one SVID to end, in hexadecimal digits
        #[arg(long, value_name = "HEX", conflicts_with = "resume")]
        serial: Option<String>,
    },
}

/// `doorward log …`
#[derive(Debug, Subcommand)]
pub enum LogAction {
    /// The newest records, without those of this very reading; `--follow` goes on
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        count: u32,
        /// Only records that hold this text
        #[arg(long, value_name = "TEXT")]
        holding: Option<String>,
        /// Wait for more
        #[arg(short, long)]
        follow: bool,
    },
    /// One record
    Show {
        /// Its index
        index: u64,
    },
    /// Check every byte of a log's directory against its signed checkpoint
    Verify {
        /// The log's directory
        dir: PathBuf,
        /// The log's public key: a file or its text; without it `log.vkey` beside the directory
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
}

/// `doorward backup`
#[derive(Debug, ClapArgs)]
pub struct BackupOptions {
    /// The new file for the sealed data
    pub file: PathBuf,
    /// The new file for the keys, encrypted to the recipient
    #[arg(long, value_name = "FILE", requires = "recipient")]
    pub keys: Option<PathBuf>,
    /// The recipient's public key, base64
    #[arg(long, value_name = "KEY")]
    pub recipient: Option<String>,
    /// Instead: make a recipient's key pair; the private key goes to FILE (0600)
    #[arg(long)]
    pub new_recipient: bool,
}

/// `doorward restore`
#[derive(Debug, ClapArgs)]
pub struct RestoreOptions {
    /// The backup of the data
    pub file: PathBuf,
    /// The backup of the keys
    #[arg(long, value_name = "FILE")]
    pub keys: PathBuf,
    /// The recipient's private key
    #[arg(long, value_name = "FILE")]
    pub recipient_key: PathBuf,
    /// The new broker directory
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// The decision log's directory as it was kept, so that no revocation is forgotten
    #[arg(long, value_name = "DIR")]
    pub log: PathBuf,
}

/// `doorward config …`
#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Name every fault of a broker.toml
    Check {
        /// The file
        file: PathBuf,
    },
}
