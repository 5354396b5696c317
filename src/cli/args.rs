//! The command line's grammar.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

pub use super::options::*;
pub use super::policy_options::*;

/// A zero-trust secret broker: identified, judged, allowed and written down before anything opens.
#[derive(Debug, Parser)]
#[command(name = "doorward", version, max_term_width = 100)]
pub struct Args {
    /// Directory with an identity (from `doorward login`); else $DOORWARD_IDENTITY; else the agent
    #[arg(long, global = true, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// The agent's Unix socket
    #[arg(long, global = true, value_name = "SOCKET", env = "DOORWARD_SOCKET")]
    pub socket: Option<PathBuf>,
    /// One JSON object a line, for machines
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Everything that can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole path in a minute: broker, agent, workloads, denials, an audited log
    Demo {
        /// Keep the demo's directory and say where it is
        #[arg(long)]
        keep: bool,
    },
    /// Run a broker and an agent on loopback, and print what to type
    Dev {
        /// Where it keeps its files; without it a directory that is removed at the end
        dir: Option<PathBuf>,
    },
    /// Make a new broker's directory
    Init(InitOptions),
    /// Run a broker
    Broker(BrokerOptions),
    /// Hand a sealed broker its passphrase
    Unseal(UnsealOptions),
    /// Run the agent of this machine, or join it to a broker
    Agent {
        /// The agent's state directory
        #[arg(long, value_name = "DIR", default_value = "/var/lib/doorward-agent")]
        dir: PathBuf,
        /// Without an action, the agent runs
        #[command(subcommand)]
        action: Option<AgentAction>,
    },
    /// Become the operator that a token names
    Login {
        /// The single-use token; `-` reads it from standard input
        token: String,
        /// Also in place of another identity that still counts; that one is gone then
        #[arg(long)]
        replace: bool,
    },
    /// Store a value as a new version
    Put(PutOptions),
    /// Get a value
    #[command(disable_version_flag = true)]
    Get(GetOptions),
    /// List names under a prefix
    List {
        /// A namespace or a part of its tree
        prefix: String,
    },
    /// List the versions of a secret
    Versions {
        /// The secret
        name: String,
    },
    /// Make a version the one that is served
    #[command(disable_version_flag = true)]
    Activate {
        /// The secret
        name: String,
        /// Its version
        #[arg(id = "of_version", value_name = "VERSION")]
        version: u64,
    },
    /// Hide a secret, or one version; `undelete` brings it back
    #[command(disable_version_flag = true)]
    Delete {
        /// The secret
        name: String,
        /// One version only
        #[arg(long = "version", id = "of_version", value_name = "VERSION")]
        version: Option<u64>,
    },
    /// Bring back what `delete` hid
    #[command(disable_version_flag = true)]
    Undelete {
        /// The secret
        name: String,
        /// One version only
        #[arg(long = "version", id = "of_version", value_name = "VERSION")]
        version: Option<u64>,
    },
    /// Replace the labels of a secret
    Label {
        /// The secret
        name: String,
        /// Pairs `key=value`; none removes all
        #[arg(value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Store what a .env, JSON or Kubernetes Secret file holds
    Import {
        /// The file; its form is known by its name and content
        file: PathBuf,
        /// Names are put below this prefix
        #[arg(long)]
        prefix: String,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Run a command with secrets in its environment or in memory files
    Run(RunOptions),
    /// Say who the broker sees
    Whoami,
    /// Say whether I may
    CanI {
        /// The action, e.g. read
        action: String,
        /// The object, e.g. secret/pay/db/url
        object: String,
    },
    /// Say how the broker stands
    Status,
    /// Look for what is wrong on this machine
    Doctor {
        /// A broker's or an agent's directory to look at
        dir: Option<PathBuf>,
    },
    /// Join tokens
    Token {
        /// What to do
        #[command(subcommand)]
        action: TokenAction,
    },
    /// Operators
    Operator {
        /// What to do
        #[command(subcommand)]
        action: OperatorAction,
    },
    /// Recover a broker whose operators are all lost
    Recover {
        /// What to do
        #[command(subcommand)]
        action: RecoverAction,
    },
    /// Devices
    Device {
        /// What to do
        #[command(subcommand)]
        action: DeviceAction,
    },
    /// Registration entries: which workload gets which identity
    Entry {
        /// What to do
        #[command(subcommand)]
        action: EntryAction,
    },
    /// Identities
    Identity {
        /// What to do
        #[command(subcommand)]
        action: IdentityAction,
    },
    /// The authorities that sign identities: how they stand, and their rotation
    Ca {
        /// What to do
        #[command(subcommand)]
        action: super::ca::CaAction,
    },
    /// Other trust domains whose identities are known here
    Federation {
        /// What to do
        #[command(subcommand)]
        action: super::federation::FederationAction,
    },
    /// Profiles of devices: check, explain, test
    Posture {
        /// What to do
        #[command(subcommand)]
        action: super::posture::PostureAction,
    },
    /// Policies
    Policy {
        /// What to do
        #[command(subcommand)]
        action: PolicyAction,
    },
    /// The decision log
    Log {
        /// What to do
        #[command(subcommand)]
        action: LogAction,
    },
    /// Say why a request came out as it did
    Explain {
        /// The request's id
        request: String,
    },
    /// Take a backup
    Backup(BackupOptions),
    /// Bring a backup back into a new directory
    Restore(RestoreOptions),
    /// Measure a real broker beside a bare QUIC echo of the same sizes
    Bench {
        /// What: `identity` for SVIDs and the push of entries to a fleet, `posture` for facts and
        /// verdicts, `push` for connections that a worse verdict closes; else requests
        #[arg(value_enum)]
        what: Option<BenchWhat>,
        /// Agents of the fleet; of `push`: connections that are closed at once
        #[arg(long, default_value_t = 1000, requires = "what")]
        agents: usize,
        /// Entries, dealt out to the agents
        #[arg(long, default_value_t = 50_000, requires = "what")]
        entries: usize,
        /// Entries made and taken away again, one after the other
        #[arg(long, default_value_t = 500, requires = "what")]
        changes: usize,
        /// Seconds of one run
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// Runs of each, in turn; the median counts
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Only this shape, connections x in flight, e.g. 128x1
        #[arg(long)]
        shape: Option<String>,
        /// Be the echo, with answers of so many bytes
        #[arg(long, hide = true, requires = "ready_file")]
        echo: Option<usize>,
        /// Where the echo writes its address
        #[arg(long, hide = true)]
        ready_file: Option<PathBuf>,
    },
    /// Check a configuration file
    Config {
        /// What to do
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Print shell completions
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
}

/// The completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "doorward", &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// A bench of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchWhat {
    /// SVIDs issued a second, and how fast a change of an entry reaches the agent that needs it
    Identity,
    /// Facts collected, appraised and looked at again
    Posture,
    /// How fast a worse verdict closes the connections that stood on the better one
    Push,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn values_are_named_in_one_style() {
        fn named(command: &clap::Command, at: &str) -> Vec<String> {
            let at = format!("{at} {}", command.get_name());
            let shown = |arg: &&clap::Arg| arg.get_action().takes_values() && !arg.is_hide_set();
            let of = |arg: &clap::Arg| {
                let names = arg.get_value_names().unwrap_or_default().iter();
                names.map(|name| format!("{at}: {name}")).collect::<Vec<_>>()
            };
            let own = command.get_arguments().filter(shown).flat_map(of);
            own.chain(command.get_subcommands().flat_map(|below| named(below, &at))).collect()
        }
        let names = named(&Args::command(), "");
        assert!(names.len() > 60, "{names:?}");
        for name in names {
            let value = name.rsplit_once(": ").unwrap().1;
            let plain = |c: char| c.is_ascii_uppercase() || matches!(c, '-' | '=' | ':');
            assert!(!value.is_empty() && value.chars().all(plain), "{name}");
        }
    }
}
