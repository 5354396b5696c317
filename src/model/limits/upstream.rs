//! Bounds of authorities that stand below a company's.

use super::{AUTHORITIES_MAX, CHAIN_MAX, ROOTS_MAX};

/// Certificates between an authority of ours and a company's root: with the leaf and ours they make a
/// whole chain.
pub const UPSTREAM_CHAIN_MAX: usize = CHAIN_MAX - 2;
/// Roots that a company has us publish for an authority of ours; those of all authorities are no more
/// than [`ROOTS_MAX`].
pub const UPSTREAM_ROOTS_MAX: usize = ROOTS_MAX / AUTHORITIES_MAX;
/// Days that an authority of ours below a company's root lives unless the configuration says otherwise:
/// a stolen key counts with workloads that ask nobody until then.
pub const UPSTREAM_DAYS: u32 = 90;
