//! The grammar of `doorward policy`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

/// `doorward policy …`
#[derive(Debug, Subcommand)]
pub enum PolicyAction {
    /// Check a directory of policies; every fault with its place
    Check {
        /// The directory with policy.csv, posture.toml and tests/
        #[arg(default_value = "policies")]
        dir: PathBuf,
        /// The trust domain; without it the one that the rows name
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<String>,
    },
    /// Run the tests of a directory: cases, and claims over all requests
    Test(PolicyFiles),
    /// Rows that may not be meant so: without effect, ended, too wide
    Lint(PolicyFiles),
    /// Who may do something, as far as rows say: exact, over all requests
    WhoCan {
        /// The action
        action: String,
        /// An object, or a pattern such as `secret/pay/**`
        object: String,
        #[command(flatten)]
        files: PolicyFilesOption,
    },
    /// What a caller may do, as far as rows say: exact, over all requests
    WhatCan {
        /// A SPIFFE ID, a pattern of them, or a group
        subject: String,
        #[command(flatten)]
        files: PolicyFilesOption,
    },
    /// What access a change gives and takes, with an example of each
    Diff {
        /// The directory as it is
        before: PathBuf,
        /// The directory as it shall be
        after: PathBuf,
        /// The trust domain; without it the one that the rows name
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<String>,
        /// Fail when anybody gains anything: for continuous integration
        #[arg(long)]
        no_new_access: bool,
    },
    /// Check a directory and put it in force
    Activate {
        /// The directory with policy.csv, posture.toml and tests/
        #[arg(default_value = "policies")]
        dir: PathBuf,
    },
    /// Go back to the policy before
    Rollback,
    /// Print the policy in force
    Show,
}

/// A directory of policies.
#[derive(Debug, ClapArgs)]
pub struct PolicyFiles {
    /// The directory with policy.csv, posture.toml and tests/
    #[arg(default_value = "policies")]
    pub dir: PathBuf,
    /// The trust domain; without it the one that the rows name
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
}

/// A directory of policies, beside other arguments.
#[derive(Debug, ClapArgs)]
pub struct PolicyFilesOption {
    /// The directory with policy.csv, posture.toml and tests/
    #[arg(long, default_value = "policies")]
    pub dir: PathBuf,
    /// The trust domain; without it the one that the rows name
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
}
