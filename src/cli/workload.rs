//! `run`, and `get` through the agent: what a workload does.

use std::path::Path;

use super::access::Access;
use super::args::RunOptions;
use super::block_on;
use super::fault::Fault;
use super::output::Output;
use crate::app;
use crate::model::{Reason, SecretName, SecretValue};

/// Fetches values from the agent in one round trip; all or none.
pub(super) async fn fetch(
    socket: &Path,
    names: &[SecretName],
    as_id: Option<&str>,
) -> Result<Vec<(SecretName, SecretValue)>, Fault> {
    app::fetch(socket, names, as_id).await.map_err(of_agent)
}

/// What the agent said, or that nobody is there.
fn of_agent(error: app::RunError) -> Fault {
    match error {
        app::RunError::Refused { name, code, reason, request_id, hint } => {
            let exit = match code.as_str() {
                "denied" | "expired" => 3,
                "limited" | "unavailable" => 4,
                _ => 1,
            };
            let what = name.map(|name| format!(" for secret/{name}")).unwrap_or_default();
            // The agent's own reasons are words; the broker's are codes, told with their word.
            let known = serde_json::from_value::<Reason>(reason.as_str().into());
            let cause =
                Some(known.map_or(reason, |known| format!("{} {}", known.code(), known.word())));
            let hint = hint.or_else(|| why(&code, request_id.as_deref()?));
            Fault {
                cause,
                hint,
                request: request_id,
                exit,
                ..Fault::failed(format!("{code}{what}"))
            }
        }
        app::RunError::Connect { .. } | app::RunError::Late => {
            Fault { exit: 4, ..Fault::of(&error) }
                .hint("start it with `doorward agent`, or name its socket with `--socket SOCKET`")
        }
        other => Fault::of(&other),
    }
}

/// Where the why of a denial stands.
fn why(code: &str, request: &str) -> Option<String> {
    let said = || format!("whoever may read the log sees why with `doorward explain {request}`");
    (code == "denied").then(said)
}

struct Wanted {
    variable: String,
    secret: SecretName,
}

fn wanted(pairs: &[String]) -> Result<Vec<Wanted>, Fault> {
    let one = |pair: &String| {
        let fault = || {
            Fault::usage(format!("`{pair}` names no variable and secret"))
                .hint("write `NAME=secret/<namespace>/<name>`")
        };
        let (variable, secret) = pair.split_once('=').ok_or_else(fault)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let first = variable.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if !first || !variable.bytes().all(plain) {
            return Err(fault());
        }
        Ok(Wanted { variable: variable.to_owned(), secret: super::secrets::name(secret)? })
    };
    pairs.iter().map(one).collect()
}

pub fn run(options: RunOptions, access: &Access, _output: &Output) -> Result<(), Fault> {
    let (env, files) = (wanted(&options.env)?, wanted(&options.file)?);
    let Some(socket) = access.agent() else {
        return Err(Fault::usage("`run` asks the agent, which attests this very process")
            .hint("leave `--identity` and `DOORWARD_IDENTITY` out"));
    };
    let mut names: Vec<SecretName> =
        env.iter().chain(&files).map(|wanted| wanted.secret.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let mut values = match names.is_empty() {
        true => Vec::new(),
        false => block_on(fetch(&socket, &names, options.as_id.as_deref()))?,
    };
    let mut inject = |wanted: Vec<Wanted>| -> Result<Vec<(String, SecretValue)>, Fault> {
        wanted
            .into_iter()
            .map(|wanted| {
                let found = values.iter_mut().find(|(name, _)| *name == wanted.secret);
                let (_, value) = found.ok_or_else(|| {
                    Fault::failed(format!("the agent did not answer for `{}`", wanted.secret))
                })?;
                Ok((wanted.variable, SecretValue::new(value.expose().to_vec())))
            })
            .collect()
    };
    let (env, files) = (inject(env)?, inject(files)?);
    drop(values);
    // Does not come back when it succeeds.
    let error = app::exec(&options.command, env, files);
    Err(Fault::of(&error))
}

/// Who the agent says this process is.
pub(super) async fn identity(socket: &Path) -> Result<(String, serde_json::Value), Fault> {
    let value = app::agent_identity(socket).await.map_err(of_agent)?;
    Ok((serde_json::to_string_pretty(&value).unwrap_or_default(), value))
}
