//! A device as lists and `device show` tell it.

use serde::{Deserialize, Serialize};

use super::device::{DeviceClass, DeviceId};
use super::enrolment::EnrolledBy;

/// One device in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSummary {
    /// Its id.
    pub id: DeviceId,
    /// Its class.
    pub class: DeviceClass,
    /// The word that it gave for people.
    pub name: String,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it enrolled, RFC 3339.
    pub enrolled: String,
    /// What it was enrolled by, where it was no join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<EnrolledBy>,
    /// `|name=t|…` as policy sees its posture now, or `unknown`.
    pub posture: String,
    /// The revision of the entries that its agent holds, as it said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<u64>,
    /// Age of its evidence, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_age_ms: Option<u64>,
    /// Its facts, where one device was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<serde_json::Value>,
}
