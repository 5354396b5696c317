//! May it. The only room that makes a [`Decision`].
//!
//! A bundle is `policy.csv` + `posture.toml` (+ tests): parsed strictly, immutable, known by its
//! digest. Casbin decides over the candidate rows that an index selects; any error is a denial.
//!
//! From text to verdict: `files` → `lines` → `values` → `parser` → `rows`; `lockout` and `cases`
//! judge the whole; `scope` says what a request is about, `index` which rows can matter, `engine`
//! (Casbin) what they say, `judge` why. `native` and `explain` serve the tools, and so do `names`,
//! `region`, `access` and `analysis`: what a whole policy gives, as sets of requests.

mod access;
mod analysis;
mod bundle;
mod cases;
mod decision;
mod engine;
mod explain;
mod files;
mod index;
mod judge;
mod lines;
mod lockout;
mod memory;
mod names;
mod native;
mod outcome;
mod parser;
mod pattern;
mod posture_cases;
mod profile_tools;
mod region;
mod request;
mod rows;
mod scope;
mod values;

#[cfg(test)]
mod tests;

pub use access::TooMany;
pub use analysis::{AskedWrong, Given, Lint};
pub use bundle::{Bundle, Policy};
pub use decision::{Decision, Generations, Ruled};
pub use explain::{Explanation, RowCheck};
pub use files::BundleFiles;
pub use profile_tools::{
    CheckedProfiles, ExplainError, check_profiles, explain_profiles, test_profiles,
};
pub use region::Witness;
