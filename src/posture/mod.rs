//! From what: the facts of a device, signed by it, judged by profiles.
//!
//! Facts are three-valued: a value, or unknown with the reason why. Unknown never meets a
//! requirement. A verdict carries its own end and is never kept alive by an error: whatever goes
//! wrong in appraisal is «unknown». This room reads no files and no store.

mod catalog;
mod evidence;
mod explained;
mod fact;
#[cfg(test)]
pub(crate) mod faults;
mod notice;
mod profile;
mod profile_file;
#[cfg(test)]
mod properties;
mod refset;
mod requirement;
mod requirement_file;
mod room;
mod session_key;
mod standing;
mod step_up;
pub mod tpm;
mod verdict;

pub use catalog::{FactKind, FactRow, Origin};
pub use evidence::{Challenge, Claims, EXPORTER_LABEL, EvidenceError};
pub use explained::{Asked, Explained};
pub use fact::{Fact, FactError, FactName, FactValue, Facts, Rank, Unknown};
pub use profile::{Mode, Profile, Profiles};
pub use profile_file::parse_age;
pub use refset::parse_moment;
pub use requirement::Tri;
pub use room::{Pending, Posture};
pub use session_key::{EvidenceKey, EvidenceKeyError, Signed};
pub use standing::DeviceStanding;
pub use step_up::{Reachable, StepUp};
pub use verdict::{Demand, Verdict};
