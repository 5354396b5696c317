//! policy check, activate, rollback, show; what reads files only is in `policy_tools`.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::access::Access;
use super::fault::Fault;
use super::output::{Output, printable};
use super::policy_options::PolicyAction;
use super::secrets::unexpected;
use crate::model::{Answer, Ask, Clock as _, Diagnostic, SecretValue, SystemClock, TrustDomain};
use crate::policy::{Bundle, BundleFiles};

/// All faults of a directory, as a compiler shows them; `what` has them.
pub(super) fn told(faults: &[Diagnostic], what: &str, output: &Output) -> Fault {
    for fault in faults {
        match output.is_json() {
            true => output.text(&serde_json::to_string(fault).unwrap_or_default()),
            false => eprintln!("{}", printable(&fault.render())),
        }
    }
    let plural = if faults.len() == 1 { "fault" } else { "faults" };
    Fault::failed(format!("{} {plural} in the {what}; nothing was changed", faults.len()))
}

/// What is worth knowing though nothing is wrong: on standard error, so that it fails nothing.
pub(super) fn warned(warnings: &[Diagnostic], output: &Output) {
    for warning in warnings {
        match output.is_json() {
            true => eprintln!("{}", json!({ "warning": warning })),
            false => eprintln!("{}", printable(&warning.render_as("warning"))),
        }
    }
}

/// The trust domain that the first row with a SPIFFE ID names.
fn domain_of(files: &BundleFiles) -> Option<TrustDomain> {
    let text = files.files.get("policy.csv")?;
    let rest = text.split("spiffe://").nth(1)?;
    TrustDomain::parse(rest.split(['/', ',', ' ', '\n']).next()?).ok()
}

/// The files of a directory. That there is none is told as of any other file.
pub(super) fn files_of(dir: &Path, output: &Output) -> Result<BundleFiles, Fault> {
    std::fs::read_dir(dir).map_err(|error| {
        Fault::failed(format!("can't read `{}`", dir.display()))
            .cause(error.to_string())
            .hint("name the directory that holds policy.csv, posture.toml and tests/")
    })?;
    BundleFiles::read_dir(dir).map_err(|faults| told(&faults, "policies", output))
}

/// The bundle that a directory holds, checked and tested.
pub(super) fn built(
    dir: &Path,
    domain: Option<&str>,
    output: &Output,
) -> Result<Arc<Bundle>, Fault> {
    let files = files_of(dir, output)?;
    let domain = match domain {
        Some(text) => TrustDomain::parse(text).map_err(|error| {
            Fault::usage(format!("`{text}` is not a trust domain")).cause(error.to_string())
        })?,
        None => domain_of(&files).ok_or_else(|| {
            Fault::usage("no row names a trust domain").hint("name it with `--trust-domain NAME`")
        })?,
    };
    Bundle::build(&files, 1, &domain).map_err(|faults| told(&faults, "policies", output))
}

pub fn check(dir: &Path, domain: Option<&str>, output: &Output) -> Result<(), Fault> {
    let bundle = built(dir, domain, output)?;
    warned(&bundle.warnings(SystemClock.now().unix_s()), output);
    output.result(
        &format!("{} is sound: sha256:{}", dir.display(), bundle.digest()),
        &json!({ "sound": true, "digest": format!("sha256:{}", bundle.digest()) }),
    );
    Ok(())
}

pub async fn policy(action: PolicyAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let files = match &action {
        PolicyAction::Activate { dir } => Some(files_of(dir, output)?),
        _ => None,
    };
    let asking = access.connect().await?;
    let (ask, body) = match action {
        PolicyAction::Activate { .. } => {
            let files = files.ok_or_else(|| Fault::failed("there is no policy to send"))?;
            // The broker checks all of it again; here each fault is shown in its place.
            let bundle = Bundle::build(&files, 1, &asking.credentials.domain)
                .map_err(|faults| told(&faults, "policies", output))?;
            warned(&bundle.warnings(SystemClock.now().unix_s()), output);
            (Ask::PolicyActivate {}, SecretValue::new(files.to_json()))
        }
        PolicyAction::Rollback => (Ask::PolicyRollback {}, SecretValue::empty()),
        _ => (Ask::PolicyRead {}, SecretValue::empty()),
    };
    let reading = matches!(ask, Ask::PolicyRead {});
    let (_, released) = asking.ask(ask, body).await?;
    let Answer::Policy { serial, digest } = &released.answer else {
        return Err(unexpected(&released));
    };
    if !reading {
        output.result(
            &format!("policy {serial} is in force: {digest}"),
            &json!({ "serial": serial, "digest": digest }),
        );
        return Ok(());
    }
    let files = BundleFiles::from_json(released.body.expose())
        .map_err(|_| Fault::failed("the broker sent a policy that can't be read"))?;
    if output.is_json() {
        output
            .text(&json!({ "serial": serial, "digest": digest, "files": files.files }).to_string());
        return Ok(());
    }
    let mut text = format!("# policy {serial} {digest}\n");
    for (name, content) in &files.files {
        text.push_str(&format!("\n# ---- {name}\n{content}"));
    }
    output.text(&printable(&text));
    Ok(())
}
