//! posture check, explain, test: profiles as an author sees them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::access::Access;
use super::admin::device_named;
use super::fault::Fault;
use super::output::Output;
use super::policies::{files_of, told, warned};
use super::secrets::unexpected;
use crate::app;
use crate::model::limits::{EVIDENCE_MAX, POSTURE_FILE_MAX};
use crate::model::{Answer, Ask, Clock as _, SecretValue, SystemClock};
use crate::policy::{BundleFiles, ExplainError, check_profiles, explain_profiles, test_profiles};

/// The file of the profiles in a directory of policies.
const POSTURE: &str = "posture.toml";

/// `doorward posture …`
#[derive(Debug, Subcommand)]
pub enum PostureAction {
    /// Check the profiles of a directory of policies; every fault with its place
    Check {
        /// The directory, or its posture.toml
        #[arg(default_value = "policies", value_name = "PATH")]
        path: PathBuf,
    },
    /// Say requirement by requirement why a profile is held or not, and what would have to change
    Explain {
        /// The profile; all of them without it
        profile: Option<String>,
        /// The facts that this device reported last, under the policy in force; else this machine's
        #[arg(long, value_name = "ID", conflicts_with = "facts")]
        device: Option<String>,
        /// The facts of this file: what `device facts --json` printed, or a report; `-` is standard
        /// input
        #[arg(long, value_name = "FILE")]
        facts: Option<PathBuf>,
        /// The profiles of this directory, or of its posture.toml; `policies` where no device is named
        #[arg(long, value_name = "PATH")]
        policies: Option<PathBuf>,
        /// As if the evidence were so old, e.g. 90s
        #[arg(long, value_name = "AGE")]
        age: Option<String>,
    },
    /// Run the [[posture]] cases of a directory's tests
    Test {
        /// The directory with policy.csv, posture.toml and tests/
        #[arg(default_value = "policies")]
        dir: PathBuf,
    },
}

/// Whether it asks a broker.
pub fn asks(action: &PostureAction) -> bool {
    matches!(action, PostureAction::Explain { device: Some(_), .. })
}

/// What asks nobody.
pub fn posture(action: PostureAction, output: &Output) -> Result<(), Fault> {
    match action {
        PostureAction::Check { path } => check(&path, output),
        PostureAction::Test { dir } => test(&dir, output),
        PostureAction::Explain { profile, facts, policies, age, .. } => {
            let file = read_profiles(policies.as_deref().unwrap_or(Path::new("policies")))?;
            let facts = match facts {
                Some(path) => read_text(&path, EVIDENCE_MAX)?,
                None => app::facts_here().to_string(),
            };
            let age = age.as_deref().map_or(Ok(Duration::ZERO), parsed_age)?;
            explain(&file, profile.as_deref(), &facts, age, output)
        }
    }
}

/// The facts of a device, as the broker holds them.
pub async fn explain_device(
    action: PostureAction,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    let PostureAction::Explain { profile, device: Some(id), policies, age, .. } = action else {
        return posture(action, output);
    };
    let file = policies.as_deref().map(read_profiles).transpose()?;
    let asking = access.connect().await?;
    let device = device_named(&asking, &id).await?;
    let ask = Ask::DeviceShow { class: device.class, id: device.id };
    let (_, released) = asking.ask(ask, SecretValue::empty()).await?;
    let Answer::Devices { items, .. } = &released.answer else {
        return Err(unexpected(&released));
    };
    let facts = items.first().and_then(|item| item.facts.as_ref().zip(item.evidence_age_ms));
    let (facts, reported_ms) = facts.ok_or_else(|| {
        Fault::failed("the device has not reported since the broker started")
            .hint("every profile is unknown until its agent reports; `doorward device list`")
    })?;
    let age = match age {
        Some(age) => parsed_age(&age)?,
        None => Duration::from_millis(reported_ms),
    };
    let file = match file {
        Some(file) => file,
        None => {
            let (_, released) = asking.ask(Ask::PolicyRead {}, SecretValue::empty()).await?;
            let files = BundleFiles::from_json(released.body.expose())
                .map_err(|_| Fault::failed("the broker sent a policy that can't be read"))?;
            let text = files.files.get(POSTURE).cloned().unwrap_or_default();
            (format!("{POSTURE} in force"), text)
        }
    };
    explain(&file, profile.as_deref(), &facts.to_string(), age, output)
}

fn parsed_age(text: &str) -> Result<Duration, Fault> {
    app::parse_age(text).ok_or_else(|| {
        Fault::usage(format!("`{text}` is no age"))
            .hint("a whole number with s, m or h, e.g. `90s`")
    })
}

/// A text file of at most so many bytes; `-` is standard input.
fn read_text(path: &Path, limit: usize) -> Result<String, Fault> {
    use std::io::Read as _;
    let failed = |error: &dyn std::fmt::Display| {
        Fault::failed(format!("can't read `{}`", path.display())).cause(error.to_string())
    };
    let mut text = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().take(most).read_to_end(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut text)),
    };
    read.map_err(|error| failed(&error).hint("name a file that is there and may be read"))?;
    if text.len() > limit {
        return Err(failed(&format!("it has over {limit} bytes")));
    }
    String::from_utf8(text).map_err(|_| failed(&"it is not UTF-8"))
}

/// The profiles of a directory or a file: how they are named, and their text.
fn read_profiles(path: &Path) -> Result<(String, String), Fault> {
    let file = if path.is_dir() { path.join(POSTURE) } else { path.to_owned() };
    let text = read_text(&file, POSTURE_FILE_MAX)
        .map_err(|fault| fault.hint("name the directory that holds posture.toml, or the file"))?;
    Ok((file.display().to_string(), text))
}

fn check(path: &Path, output: &Output) -> Result<(), Fault> {
    let (file, text) = read_profiles(path)?;
    let checked = check_profiles(&file, &text, SystemClock.now().unix_s());
    let checked = checked.map_err(|faults| told(&faults, "profiles", output))?;
    warned(&checked.warnings, output);
    let plural = if checked.names.len() == 1 { "profile" } else { "profiles" };
    output.result(
        &format!("{file} is sound: {} {plural}: {}", checked.names.len(), checked.names.join(", ")),
        &json!({ "sound": true, "profiles": checked.names, "warnings": checked.warnings.len() }),
    );
    Ok(())
}

fn test(dir: &Path, output: &Output) -> Result<(), Fault> {
    let files = files_of(dir, output)?;
    let count = test_profiles(&files).map_err(|faults| told(&faults, "profiles", output))?;
    let plural = if count == 1 { "case comes" } else { "cases come" };
    output.result(&format!("{count} {plural} out as told"), &json!({ "passed": count }));
    Ok(())
}

fn explain(
    (file, text): &(String, String),
    profile: Option<&str>,
    facts: &str,
    age: Duration,
    output: &Output,
) -> Result<(), Fault> {
    let now_s = SystemClock.now().unix_s();
    let found = explain_profiles((file, text), profile, facts, age, now_s);
    let found = found.map_err(|error| refused(error, output))?;
    for one in &found {
        let mut text = format!(
            "{} is {}: evidence {}.{} s old, {} s allowed\n",
            one.profile,
            word(one.result.word()),
            one.age_ms / 1000,
            one.age_ms % 1000 / 100,
            one.max_age_s
        );
        for line in one.lines() {
            text.push_str(&format!("  {line}\n"));
        }
        if one.would_deny {
            text.push_str("  as `enforce` it would be refused\n");
        }
        for mend in one.mends() {
            text.push_str(&format!("  change: {mend}\n"));
        }
        output.result(text.trim_end(), &serde_json::to_value(one).unwrap_or_default());
    }
    match found.as_slice() {
        [one] if profile.is_some() && one.result.word() != "true" => {
            let said = format!("profile {} is {}", one.profile, word(one.result.word()));
            Err(Fault { exit: 3, ..Fault::failed(said) }
                .hint("`change:` says what would have to be otherwise"))
        }
        _ => Ok(()),
    }
}

/// How a value of three is told of a profile.
fn word(result: &str) -> &'static str {
    match result {
        "true" => "held",
        "false" => "not held",
        _ => "unknown",
    }
}

fn refused(error: ExplainError, output: &Output) -> Fault {
    match error {
        ExplainError::Faults(faults) => told(&faults, "profiles", output),
        ExplainError::NoProfile { ref near, .. } => {
            let hint = near.as_ref().map_or_else(
                || "`doorward posture check` names the profiles".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            Fault::usage(error.to_string()).hint(hint)
        }
        ExplainError::Facts(_) => Fault::failed(error.to_string())
            .hint("`doorward device facts --json` prints facts in the form that is read here"),
    }
}
