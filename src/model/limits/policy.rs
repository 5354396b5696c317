//! The bounds of policies and of what is asked of them.

/// Rows of one policy.
pub const POLICY_ROWS_MAX: usize = 200_000;
/// A policy bundle as JSON, in bytes, on a disk, in the store and on the wire: 100,000 rules of some
/// hundred bytes fit, and ten bundles fit a backup.
pub const BUNDLE_MAX: usize = 16 * 1024 * 1024;
/// KiB of policies on their way out at once: four of the largest, thousands of common ones.
pub const POLICY_READS_KIB: usize = 4 * BUNDLE_MAX / 1024 + 16;
/// Bytes of one line of a policy file.
pub const POLICY_LINE_MAX: usize = 8 * 1024;
/// Files of one policy bundle: the two and its tests.
pub const BUNDLE_FILES_MAX: usize = 256;
/// Faults reported at once: more than anybody reads.
pub const DIAGNOSTICS_MAX: usize = 100;
/// Allowed judgements that one bundle remembers.
pub const JUDGEMENTS_MAX: usize = 8192;
/// Groups within groups.
pub const GROUP_DEPTH_MAX: usize = 8;
/// Profiles of one `posture.toml`: they become bits of one word.
pub const PROFILES_MAX: usize = 32;
/// Comparisons that the claims of one policy may cost while it is built: seconds, once.
pub const CLAIM_STEPS: u64 = 5_000_000;
/// … and one question that is asked of files, where only who asks waits.
pub const QUESTION_STEPS: u64 = 2_000_000_000;
/// Parts of one answer about what a policy gives: more than that nobody reads.
pub const REGIONS_MAX: usize = 20_000;
