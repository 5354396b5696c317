//! The bounds of challenges (when a device is asked for evidence because a request needs it younger)
//! and of the list of what a device has had.

use std::time::Duration;

/// A request waits this long for a challenged device, and is then judged by what there is.
pub const STEP_UP_WAIT: Duration = Duration::from_secs(2);
/// One device is challenged no oftener: half of what its reports may come at.
pub const STEP_UP_GAP: Duration = Duration::from_millis(500);
/// A device that did not answer is left alone for this long; meanwhile nobody waits for it.
pub const STEP_UP_REST: Duration = Duration::from_secs(1);
/// Requests that wait for one device at once: eight connections full of them.
pub const STEP_UP_PER_DEVICE: usize = 1024;
/// … and for all devices: as many as connections. Beyond it nobody waits.
pub const STEP_UP_WAITING: usize = 16 * 1024;
/// Profiles of this `max_age` or less are met by challenges; no device reports the faster for them.
pub const STEP_UP_AGE: Duration = Duration::from_secs(10);
/// Facts of a device must be written down within this, or the device is unknown: a disk that hangs
/// must not keep an older verdict alive.
pub const EVIDENCE_NOTED: Duration = Duration::from_secs(5);
/// What a broker tells an agent unasked, in bytes; a challenge has 24.
pub const NOTICE_MAX: usize = 64;
/// Such notices under way on one connection; those of one kind say the same.
pub const NOTICES: u32 = 1;
/// An agent answers challenges no oftener than this, whatever the broker sends.
pub const CHALLENGE_GAP: Duration = Duration::from_millis(250);

/// Different releases on one page of what a device has had: each is held once, at some 200 bytes.
pub const EXPOSURE_ITEMS: usize = 10_000;
/// Different releases of one device that the command line adds up.
pub const EXPOSURE_SHOWN: usize = 1_000_000;
