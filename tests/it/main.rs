//! Tests of the whole: one binary, real handshakes, ports that the system chooses.

mod again;
mod backup;
mod bad_input;
mod between;
mod ca;
mod clients;
mod comeback;
mod enrolment;
mod exposure;
mod federation;
mod flood;
mod forge;
mod granted;
mod handshakes;
mod hidden;
mod hints;
mod http2;
mod journey;
mod jwt;
mod kill;
mod line;
mod lists;
mod local_http;
mod lost_answer;
mod machines;
mod matrix;
mod postgres;
mod posture;
mod push;
mod reflection;
mod rs256;
mod scene;
mod sealed;
mod snapshots;
mod step_up;
mod streams;
mod svids;
mod tidy;
mod upstream;
mod tpm;
mod vectors;
mod visitor;
mod workload_api;
mod workload_rates;

// The chains of the library's own tests name the rooms from the root of their crate.
use doorward::{identity, model};
