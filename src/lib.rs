//! Doorward: the map of the house. See docs/ARCHITECTURE.md.
pub mod model;
