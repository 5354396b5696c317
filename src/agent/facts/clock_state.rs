//! What the kernel says of its own clock. The one unsafe call of fact collection stands here: no
//! safe crate of ours wraps adjtimex(2). It only reads, and needs no privilege.
#![allow(unsafe_code)]

use std::io;

/// The kernel's judgement of its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockState {
    /// Something disciplines it and the kernel does not call it wrong.
    pub(super) synced: bool,
    /// The error that it may have, in milliseconds.
    pub(super) max_error_ms: i64,
}

/// Asks the kernel.
///
/// # Errors
/// What adjtimex(2) reports.
pub(super) fn clock_state() -> io::Result<ClockState> {
    // SAFETY: `timex` is a plain C struct of integers for which all zeros is a valid value, and
    // `modes = 0` makes the call a pure read; the pointer is to a live local for the whole call.
    let (state, answer) = unsafe {
        let mut answer: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut answer), answer)
    };
    if state == -1 {
        return Err(io::Error::last_os_error());
    }
    let synced = state != libc::TIME_ERROR && answer.status & libc::STA_UNSYNC == 0;
    Ok(ClockState { synced, max_error_ms: answer.maxerror / 1000 })
}
