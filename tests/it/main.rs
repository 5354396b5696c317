//! Tests of the whole: one binary, real handshakes, ports that the system chooses.

mod backup;
mod forge;
mod handshakes;
mod journey;
mod kill;
mod local_http;
mod postgres;
mod scene;
mod snapshots;
mod tidy;
