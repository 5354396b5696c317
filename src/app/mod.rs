//! The only room that builds parts, reads configuration, spawns and supervises tasks.

mod admin_socket;
mod agent;
mod bench;
mod bench_identity;
mod bench_policy;
mod bench_posture;
mod bench_push;
mod bench_quotes;
mod broker;
mod child;
mod clock;
mod config;
mod demo;
mod dev;
mod dir_lock;
mod doctor;
mod enrol;
mod enrolment_config;
mod federation;
mod federation_config;
mod federation_endpoint;
mod files;
mod init;
mod layout;
mod management;
mod methods;
mod node_facts;
mod oidc;
mod opening;
mod ports;
mod process;
mod proof;
mod recall;
mod recovery;
mod rotation;
mod seal_source;
mod sealed;
mod stage;
mod supervise;
mod unseal;
mod upstream;

pub use crate::agent::TpmPlace;
pub use agent::{
    AgentRunError, ImageUnknown, RunError, agent_identity, agent_runtime, attest_pid, exec, fetch,
    image_of, run_agent, runtime_beside_tpm,
};
pub use bench::{Measure, bench, echo};
pub use bench_identity::{Fleet, bench_identity};
pub use bench_posture::bench_posture;
pub use bench_push::{Push, bench_push};
pub use broker::RunningBroker;
pub use child::Ran;
pub use clock::GuardedClock;
pub use config::{BrokerConfig, SealConfig};
pub use demo::Demo;
pub use dev::dev;
pub use doctor::{Finding, Grade, examine, examine_seal};
pub use enrol::{EnrolError, join, keep_renewed, login};
pub use enrolment_config::{EnrolmentConfig, KubernetesConfig, TpmConfig, X509Config};
pub use federation_config::{EndpointConfig, EndpointProof, FederationConfig};
pub use federation_endpoint::EndpointError;
pub use files::{FileError, replace_private, write_private};
pub use init::{InitError, Initialised, Wishes, init};
pub use layout::Layout;
pub use methods::{MethodError, MethodFault, read_methods};
pub use node_facts::{StatedFact, device_facts, facts_here, facts_of_process};
pub use oidc::{Issuer, IssuerError};
pub use opening::{BrokerStart, StartError};
pub use ports::runtime;
pub use process::{harden, host_name, notify_ready, notify_sealed, raise_files, shutdown_signal};
pub use proof::{BrokerPlace, Proof, ProofError, join_by, root_of};
pub use recovery::{RecoveryError, Restore, new_recipient, recover_operator, restore};
pub use seal_source::{SealSource, SealSourceError};
pub use sealed::SealedBroker;
pub use stage::Stage;
pub use supervise::Supervisor;
pub use unseal::{UnsealError, Unsealed, seal_state, unseal};
pub use upstream::UpstreamConfig;

// What a start opens the seal with; the command line names it through this room.
pub use crate::posture::parse_age;
pub use crate::vault::{KeyFile, KeyProvider, Passphrase};
