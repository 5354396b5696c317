//! What policy authors ask of files alone, without a broker: test, lint, who-can, what-can, diff.

use serde_json::{Value, json};

use super::fault::Fault;
use super::output::Output;
use super::policies::built;
use super::policy_options::{PolicyAction, PolicyFiles, PolicyFilesOption};
use crate::model::{Action, Clock as _, SystemClock, did_you_mean};
use crate::policy::{Given, Lint, TooMany};

/// Runs a command that needs no broker; `None` when this one does.
pub fn offline(action: &PolicyAction, output: &Output) -> Option<Result<(), Fault>> {
    Some(match action {
        PolicyAction::Test(files) => test(files, output),
        PolicyAction::Lint(files) => lint(files, output),
        PolicyAction::WhoCan { action, object, files } => who_can(action, object, files, output),
        PolicyAction::WhatCan { subject, files } => what_can(subject, files, output),
        PolicyAction::Diff { before, after, trust_domain, no_new_access } => {
            let build = |dir| built(dir, trust_domain.as_deref(), output);
            build(before).and_then(|before| {
                let after = build(after)?;
                let gained = after.gained_over(&before).map_err(too_many)?;
                let lost = before.gained_over(&after).map_err(too_many)?;
                let requirements = before.profiles_changed(&after);
                diff(&gained, &lost, &requirements, *no_new_access, output)
            })
        }
        _ => return None,
    })
}

fn too_many(error: TooMany) -> Fault {
    Fault::failed(error.to_string())
}

fn test(files: &PolicyFiles, output: &Output) -> Result<(), Fault> {
    let bundle = built(&files.dir, files.trust_domain.as_deref(), output)?;
    let count = bundle.test_count();
    if count == 0 {
        return Err(Fault::failed(format!("{} has no tests", files.dir.display()))
            .hint("write `tests/*.toml` beside policy.csv: docs/POLICY.md shows a case"));
    }
    let plural = if count == 1 { "test passes" } else { "tests pass" };
    output.result(&format!("{count} {plural}"), &json!({ "passed": count }));
    Ok(())
}

fn lint(files: &PolicyFiles, output: &Output) -> Result<(), Fault> {
    let bundle = built(&files.dir, files.trust_domain.as_deref(), output)?;
    let found = bundle.lint(SystemClock.now().wall()).map_err(too_many)?;
    for Lint { rule, row, line, message, example } in &found {
        let mut text = format!("policy.csv:{line}: {row}: {message} [{rule}]");
        if let Some(it) = example {
            text.push_str(&format!("\n  for one: {} {} {}", it.sub, it.act, it.obj));
        }
        let value = json!({
            "rule": rule, "row": row, "line": line, "message": message, "example": example,
        });
        output.result(&text, &value);
    }
    match found.len() {
        0 => {
            output.result("nothing found", &json!({ "found": 0 }));
            Ok(())
        }
        1 => Err(Fault::failed("1 finding")),
        count => Err(Fault::failed(format!("{count} findings"))),
    }
}

fn who_can(
    action: &str,
    object: &str,
    files: &PolicyFilesOption,
    output: &Output,
) -> Result<(), Fault> {
    let bundle = built(&files.dir, files.trust_domain.as_deref(), output)?;
    let action = Action::parse(action).ok_or_else(|| {
        let known = Action::ALL.iter().map(|action| action.as_str());
        let fault = Fault::usage(format!("no action is called `{action}`"));
        match did_you_mean(action, known) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault,
        }
    })?;
    let found = bundle.who_can(action, object).map_err(|error| Fault::usage(error.to_string()))?;
    told(&found, "", "nobody, as far as rows say", output);
    Ok(())
}

fn what_can(subject: &str, files: &PolicyFilesOption, output: &Output) -> Result<(), Fault> {
    let bundle = built(&files.dir, files.trust_domain.as_deref(), output)?;
    let found = bundle.what_can(subject).map_err(|error| Fault::usage(error.to_string()))?;
    told(&found, "", "nothing, as far as rows say", output);
    Ok(())
}

fn diff(
    gained: &[Given],
    lost: &[Given],
    requirements: &[String],
    no_new_access: bool,
    output: &Output,
) -> Result<(), Fault> {
    told(gained, "+ ", "", output);
    told(lost, "- ", "", output);
    for profile in requirements {
        let text =
            format!("! profile {profile} asks for something else now: not in this comparison");
        output.result(&text, &json!({ "profile_changed": profile }));
    }
    if gained.is_empty() && lost.is_empty() && !output.is_json() {
        output.text("the rows give the same");
    }
    let eased = !requirements.is_empty();
    match no_new_access && (!gained.is_empty() || eased) {
        true => Err(Fault::failed("this change gives new access, or may")
            .hint("the lines with `+` and `!` say which")),
        false => Ok(()),
    }
}

fn told(found: &[Given], sign: &str, none: &str, output: &Output) {
    let change = match sign {
        "+ " => Some("gained"),
        "- " => Some("lost"),
        _ => None,
    };
    for part in found {
        let it = &part.example;
        let held = match it.held.is_empty() {
            true => String::new(),
            false => format!(" with {}", it.held.join(", ")),
        };
        let text = format!(
            "{sign}{part}\n    for one: {} {} {}{held} at {}",
            it.sub, it.act, it.obj, it.now
        );
        let mut value = serde_json::to_value(part).unwrap_or(Value::Null);
        if let (Some(change), Some(fields)) = (change, value.as_object_mut()) {
            fields.insert("change".to_owned(), json!(change));
        }
        output.result(&text, &value);
    }
    if found.is_empty() && !none.is_empty() && !output.is_json() {
        output.text(none);
    }
}
