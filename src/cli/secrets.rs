//! put, get, list, versions, activate, delete, undelete, label.

use std::io::Read;
use std::path::Path;

use serde_json::json;
use zeroize::Zeroizing;

use super::access::Access;
use super::args::{GetOptions, PutOptions};
use super::fault::Fault;
use super::output::{Output, table};
use crate::model::{
    Answer, Ask, Labels, Released, SecretName, SecretPrefix, SecretValue, VersionState, limits,
};

/// A secret's name from the command line; the object notation `secret/…` is taken too.
pub(super) fn name(text: &str) -> Result<SecretName, Fault> {
    let bare = text.strip_prefix("secret/").unwrap_or(text);
    SecretName::parse(bare).map_err(|error| {
        Fault::usage(format!("`{text}` is not a secret's name"))
            .cause(error.to_string())
            .hint("a name is `<namespace>/<segment>…`, e.g. `pay/db/url`")
    })
}

/// Pairs `key=value`.
pub(super) fn labels(pairs: &[String]) -> Result<Labels, Fault> {
    let split = |pair: &String| {
        pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).ok_or_else(
            || Fault::usage(format!("`{pair}` is not a label")).hint("write `key=value`"),
        )
    };
    let pairs = pairs.iter().map(split).collect::<Result<Vec<_>, _>>()?;
    Labels::new(pairs)
        .map_err(|error| Fault::usage("the labels are refused").cause(error.to_string()))
}

pub(super) fn unexpected(released: &Released) -> Fault {
    let kind = serde_json::to_value(&released.answer)
        .ok()
        .and_then(|value| value.as_object().and_then(|map| map.keys().next().cloned()))
        .unwrap_or_default();
    Fault::failed("the broker answered something else").cause(format!("an answer of kind `{kind}`"))
}

pub async fn put(options: PutOptions, access: &Access, output: &Output) -> Result<(), Fault> {
    let name = name(&options.name)?;
    let value = match options.generate {
        Some(bytes) => generate(bytes)?,
        None => value_from(options.file.as_deref(), options.keep_newline)?,
    };
    let labels = match options.label.is_empty() {
        true => None,
        false => Some(labels(&options.label)?),
    };
    let ask = Ask::Write { name: name.clone(), cas: options.cas, labels, staged: options.staged };
    let (request, released) = access.ask(ask, value).await?;
    let Answer::Written { version, revision } = released.answer else {
        return Err(unexpected(&released));
    };
    output.result(
        &format!("stored secret/{name} version {version}"),
        &json!({ "name": name, "version": version, "revision": revision, "request": request }),
    );
    Ok(())
}

fn generate(bytes: usize) -> Result<SecretValue, Fault> {
    use base64::Engine as _;
    if !(16..=1024).contains(&bytes) {
        return Err(Fault::usage("`--generate` takes 16 to 1024 bytes"));
    }
    let mut random = Zeroizing::new(vec![0; bytes]);
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| Fault::failed("the system gives no random bytes"))?;
    let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random.as_slice());
    Ok(SecretValue::new(text.into_bytes()))
}

/// The value from a file or standard input, never from argv.
fn value_from(file: Option<&Path>, keep_newline: bool) -> Result<SecretValue, Fault> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(limits::VALUE_MAX + 1));
    let most = u64::try_from(limits::VALUE_MAX + 1).unwrap_or(u64::MAX);
    let read = match file {
        Some(path) => std::fs::File::open(path).and_then(|f| f.take(most).read_to_end(&mut bytes)),
        None => std::io::stdin().lock().take(most).read_to_end(&mut bytes),
    };
    read.map_err(|error| {
        let from = file.map_or("standard input".to_owned(), |path| format!("`{}`", path.display()));
        Fault::failed(format!("can't read the value from {from}")).cause(error.to_string())
    })?;
    if bytes.len() > limits::VALUE_MAX {
        return Err(Fault::usage(format!("the value is over {} bytes", limits::VALUE_MAX))
            .hint("keep large things in object storage, and their key here"));
    }
    if !keep_newline {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return Err(Fault::usage("the value is empty").hint("pipe it in, or name `--file FILE`"));
    }
    Ok(SecretValue::from(bytes))
}

pub async fn get(options: GetOptions, access: &Access, output: &Output) -> Result<(), Fault> {
    let name = name(&options.name)?;
    if let Some(socket) = access.agent() {
        if options.version.is_some() {
            return Err(Fault::usage("`--version` needs an identity of its own")
                .hint("name one with `--identity DIR`"));
        }
        let names = [name.clone()];
        let mut found = super::workload::fetch(&socket, &names, options.as_id.as_deref()).await?;
        let Some((_, value)) = found.pop() else {
            return Err(Fault::failed("the agent answered nothing"));
        };
        return show(output, &name, None, &value, options.show);
    }
    let ask = Ask::Read { name: name.clone(), version: options.version, have: None };
    let (_, released) = access.ask(ask, SecretValue::empty()).await?;
    let Answer::Secret { version, .. } = released.answer else {
        return Err(unexpected(&released));
    };
    show(output, &name, Some(version), &released.body, options.show)
}

fn show(
    output: &Output,
    name: &SecretName,
    version: Option<u64>,
    value: &SecretValue,
    show: bool,
) -> Result<(), Fault> {
    use base64::Engine as _;
    if !output.is_json() {
        return output.secret(value.expose(), show);
    }
    let text = Zeroizing::new(match std::str::from_utf8(value.expose()) {
        Ok(text) => json!({ "name": name, "version": version, "value": text }).to_string(),
        Err(_) => {
            let base64 = base64::engine::general_purpose::STANDARD.encode(value.expose());
            json!({ "name": name, "version": version, "value_base64": base64 }).to_string()
        }
    });
    output.secret(format!("{}\n", text.as_str()).as_bytes(), show)
}

pub async fn list(prefix: &str, access: &Access, output: &Output) -> Result<(), Fault> {
    let bare = prefix.strip_prefix("secret/").unwrap_or(prefix).trim_end_matches('/');
    let prefix = SecretPrefix::parse(bare).map_err(|error| {
        Fault::usage(format!("`{prefix}` is not a prefix")).cause(error.to_string())
    })?;
    let asking = access.connect().await?;
    let (mut after, mut from) = (None, None);
    let mut rows = Vec::new();
    loop {
        let ask = Ask::List { prefix: prefix.clone(), after, from };
        let (_, released) = asking.ask(ask, SecretValue::empty()).await?;
        let Answer::Names { items, more, next } = released.answer else {
            return Err(unexpected(&released));
        };
        after = items.last().map(|item| item.name.clone());
        from = next;
        for item in items {
            if output.is_json() {
                output.text(&serde_json::to_string(&item).unwrap_or_default());
                continue;
            }
            let version = match (item.deleted, item.active) {
                (true, _) => "deleted".to_owned(),
                (false, Some(version)) => format!("v{version}"),
                (false, None) => "none active".to_owned(),
            };
            let labels: Vec<String> = item.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            rows.push(vec![item.name.to_string(), version, labels.join(" ")]);
        }
        if !more || (after.is_none() && from.is_none()) {
            break;
        }
    }
    if !output.is_json() && !rows.is_empty() {
        output.text(&super::output::printable(&table(&rows)));
    }
    Ok(())
}

pub async fn versions(text: &str, access: &Access, output: &Output) -> Result<(), Fault> {
    let ask = Ask::Versions { name: name(text)? };
    let (_, released) = access.ask(ask, SecretValue::empty()).await?;
    let Answer::Versions { items } = released.answer else {
        return Err(unexpected(&released));
    };
    let mut rows = Vec::new();
    for item in items {
        if output.is_json() {
            output.text(&serde_json::to_string(&item).unwrap_or_default());
            continue;
        }
        let state = match item.state {
            VersionState::Active => "active",
            VersionState::Available => "available",
            VersionState::Deleted => "deleted",
        };
        rows.push(vec![format!("v{}", item.version), state.to_owned(), item.created]);
    }
    if !rows.is_empty() {
        output.text(&table(&rows));
    }
    Ok(())
}

async fn done(ask: Ask, text: String, access: &Access, output: &Output) -> Result<(), Fault> {
    let (request, released) = access.ask(ask, SecretValue::empty()).await?;
    let Answer::Done { revision } = released.answer else {
        return Err(unexpected(&released));
    };
    output.result(&text, &json!({ "revision": revision, "request": request }));
    Ok(())
}

/// What is done to a secret that is there.
pub enum Change {
    /// Serve this version.
    Activate(u64),
    /// Hide it, or one version.
    Delete(Option<u64>),
    /// Bring it back, or one version.
    Undelete(Option<u64>),
    /// Replace its labels by these pairs.
    Label(Vec<String>),
}

pub async fn change(
    text: &str,
    change: Change,
    access: &Access,
    output: &Output,
) -> Result<(), Fault> {
    let name = name(text)?;
    let (said, ask) = match change {
        Change::Activate(version) => {
            (format!("secret/{name} serves version {version}"), Ask::Activate { name, version })
        }
        Change::Delete(version) => {
            let what = what(&name, version);
            let said = format!("hid {what}; `doorward undelete` brings it back");
            (said, Ask::Delete { name, version })
        }
        Change::Undelete(version) => {
            (format!("brought back {}", what(&name, version)), Ask::Undelete { name, version })
        }
        Change::Label(pairs) => {
            (format!("labelled secret/{name}"), Ask::Label { name, labels: labels(&pairs)? })
        }
    };
    done(ask, said, access, output).await
}

fn what(name: &SecretName, version: Option<u64>) -> String {
    version.map_or(format!("secret/{name}"), |version| format!("secret/{name} version {version}"))
}
