//! Doorward: the map of the house. See docs/ARCHITECTURE.md.
pub mod administration;
pub mod agent;
pub mod app;
pub mod authority;
pub mod broker;
pub mod cli;
pub mod decision_log;
pub mod identity;
pub mod model;
pub mod policy;
pub mod posture;
pub mod store;
pub mod vault;
pub mod wire;
