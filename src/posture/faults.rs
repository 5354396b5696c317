//! Faults on demand, for tests that have an appraisal fail where it can.

use std::cell::Cell;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// From here on, until it is dropped, every appraisal and verification on this thread panics.
pub(crate) struct Armed;

impl Armed {
    pub(crate) fn new() -> Self {
        ARMED.set(true);
        Self
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        ARMED.set(false);
    }
}

/// Where it happens.
pub(crate) fn point() {
    assert!(!ARMED.get(), "a fault was asked for");
}
