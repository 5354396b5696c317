//! Doorward: the map of the house. See docs/ARCHITECTURE.md.
pub mod agent;
pub mod authority;
pub mod decision_log;
pub mod identity;
pub mod model;
pub mod policy;
pub mod posture;
pub mod store;
pub mod vault;
pub mod wire;
