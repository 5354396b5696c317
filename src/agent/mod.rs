//! On every node: recognises local processes, reports the device's evidence, asks the broker.
//!
//! The agent never asks for anything in its own name that a workload wants: it attests the process,
//! has *that one's* SVID issued (judged and recorded by the broker), and asks with it on that one's
//! own connection. No request names whom it is for. Keys that the agent makes for workloads never
//! leave it. Whatever can't be told for certain of a process is unknown, and gives nobody anything.

mod attest;
mod cgroup;
mod cri;
mod duties;
mod exe;
pub mod facts;
mod federated;
mod given;
mod home;
mod http;
mod images;
mod issued;
mod joining;
mod keys;
mod local;
mod node;
mod pair;
mod process_facts;
mod pushed;
mod report;
mod rooting;
mod roots;
mod run;
mod settings;
mod shared;
mod tokens;
mod tpm;
mod uplink;
mod workload_api;
mod workloads;

pub use attest::{AttestError, Attested, PeerProcess, attest, kernel_pins};
pub use cgroup::{Container, container_of, unit_of};
pub use cri::{ImageUnknown, image_of};
pub use duties::{Duties, Nearest, Unmatched};
pub use exe::ExeDigests;
pub use facts::time_synced;
pub use home::{Home, HomeError, Newcomer};
pub use keys::{DeviceKey, KeyError, WorkloadKey};
pub use node::{Agent, AgentError, AgentTask, JoinBy};
pub use process_facts::{ProcessFact, process_facts};
pub use run::{RunError, exec, fetch, identity};
pub use settings::{AgentSettings, SettingsError, workload_socket_beside};
pub use shared::{AgentHandle, AgentStatus};

/// A machine's TPM: where it is, what it can be asked, and the key that it holds.
pub use tpm::{
    Link as TpmLink, Place as TpmPlace, PlaceError as TpmPlaceError, Signed as TpmSigned, TpmError,
    TpmKey,
};

/// Attests a process of this machine by its number.
///
/// # Errors
/// When there is none, or the kernel does not show it.
pub fn attest_pid(pid: u32) -> Result<crate::model::WorkloadFacts, AttestError> {
    Ok(PeerProcess::of_pid(pid)?.attest(&ExeDigests::default())?.facts().clone())
}
