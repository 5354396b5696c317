//! Written down first. The only room that turns a [`Decision`](crate::policy::Decision) into a
//! [`Grant`].
//!
//! The log is a C2SP tlog-tiles tree in a directory: bundles of records, tiles of hashes, a signed
//! checkpoint. In front of it stands a write-ahead log: a request is answered once its batch is
//! synced there, and tiles and checkpoint follow within a second. No room is a refusal that may
//! pass; a failed write or sync is final, and the process must restart and recover.
//!
//! [`verify_dir`] checks a whole log and shares no code with what writes it.

mod batch;
mod begin;
mod checkpoint;
mod counts;
mod detail;
mod frame;
mod grant;
mod line;
mod log;
mod merkle;
mod note;
mod proof;
mod publish;
mod query;
mod queue;
mod record;
mod recover;
mod shared;
mod signed_note;
mod sink;
mod stored;
mod tiles;
mod verify;
mod writer;

#[cfg(test)]
mod decision_tests;
#[cfg(test)]
mod faulty;
#[cfg(test)]
mod log_tests;

pub use grant::{Administration, Authority, Grant, Ruling, Secret};
pub use log::{DecisionLog, Head, LogSettings};
pub use note::Note;
pub use proof::{ProofError, check_consistency, check_inclusion, check_receipt};
pub use queue::{RecordError, before_park};
pub use recover::OpenLogError;
pub use signed_note::{LogKey, NoteError};
pub use verify::{Verified, VerifyFault, verify_dir};
pub use writer::Writer;
