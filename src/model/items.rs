//! What lists of secrets and of versions are made of.

use serde::{Deserialize, Serialize};

use super::name::SecretName;
use super::secret::Labels;

/// One name in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretItem {
    /// The name.
    pub name: SecretName,
    /// The active version; absent when every version is deleted or staged.
    pub active: Option<u64>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whether the whole secret is deleted (and can be brought back).
    #[serde(default)]
    pub deleted: bool,
}

/// The state of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// Served to readers who name no version.
    Active,
    /// Served to readers who name it.
    Available,
    /// Hidden; can be brought back.
    Deleted,
}

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionItem {
    /// Its number, from 1, never reused.
    pub version: u64,
    /// Its state.
    pub state: VersionState,
    /// When it was written, RFC 3339.
    pub created: String,
}
