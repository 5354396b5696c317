//! The binary: hands the command line to `cli` and ends with its exit code.
// One setting of the allocator has no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    safe fn mi_option_get(option: c_int) -> c_long;
    safe fn mi_option_set(option: c_int, value: c_long);
}

/// mimalloc's `purge_delay`: freed memory goes back to the kernel after so many milliseconds.
const PURGE_DELAY: c_int = 15;
/// Its default in the version that is built in. Another value means another option, or that
/// somebody set it in the environment: both are left alone.
const BUILT_IN: c_long = 1_000;
/// Longer than the second between two checkpoints of the decision log, whose buffers would
/// otherwise go back each time and be zeroed anew.
const KEPT: c_long = 5_000;

fn main() -> std::process::ExitCode {
    if mi_option_get(PURGE_DELAY) == BUILT_IN {
        mi_option_set(PURGE_DELAY, KEPT);
    }
    doorward::cli::main()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_where_it_is_expected() {
        assert_eq!(mi_option_get(PURGE_DELAY), BUILT_IN);
        mi_option_set(PURGE_DELAY, KEPT);
        assert_eq!(mi_option_get(PURGE_DELAY), KEPT);
    }
}
