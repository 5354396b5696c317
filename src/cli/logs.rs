//! log tail, show, verify; explain.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::access::{Access, Asking};
use super::args::LogAction;
use super::fault::Fault;
use super::output::{Output, printable};
use super::secrets::unexpected;
use crate::decision_log::verify_dir;
use crate::model::{Answer, Ask, RequestId, SecretValue, Serial, SpiffeId};

/// Requests of a follower's own that are remembered: he has read the older ones long ago.
const OWN_KEPT: usize = 1024;
/// Records that are searched at once for the issue of an SVID, from the newest on.
const ISSUED_STEP: u64 = 100_000;

/// Checks a log's directory with nothing but its public key.
pub fn verify(dir: &Path, key: Option<&str>, output: &Output) -> Result<(), Fault> {
    let beside = dir.parent().unwrap_or(Path::new(".")).join("log.vkey");
    let key = match key {
        Some(text) if text.contains('+') && !Path::new(text).exists() => text.to_owned(),
        other => {
            let path = other.map_or(beside, std::path::PathBuf::from);
            std::fs::read_to_string(&path).map_err(|error| {
                Fault::usage(format!("can't read the log's public key `{}`", path.display()))
                    .cause(error.to_string())
                    .hint("name it with `--key FILE`; `doorward init` wrote it to `log.vkey`")
            })?
        }
    };
    let verified = verify_dir(dir, key.trim()).map_err(|fault| {
        Fault::failed("the decision log does not verify")
            .cause(fault.to_string())
            .hint("keep the directory as it is; compare with an earlier checkpoint or a backup")
    })?;
    output.result(
        &format!(
            "the log is whole: {} records under the signed checkpoint, {} newer ones not yet in one\n\
             root {}",
            verified.size, verified.not_yet_signed, verified.root
        ),
        &json!({
            "whole": true, "size": verified.size, "pending": verified.not_yet_signed,
            "root": verified.root.to_string(),
        }),
    );
    Ok(())
}

/// The log as one command reads it. Its own requests, which stand in the log like anybody's, are
/// known by their ids.
struct Reading<'a> {
    asking: &'a Asking,
    own: BTreeSet<String>,
}

impl<'a> Reading<'a> {
    fn new(asking: &'a Asking) -> Self {
        Self { asking, own: BTreeSet::new() }
    }

    async fn page(
        &mut self,
        from: u64,
        limit: u32,
        holding: Option<String>,
    ) -> Result<(Vec<Value>, u64, u64), Fault> {
        let ask = Ask::LogRead { from, limit, holding };
        let (request, released) = self.asking.ask(ask, SecretValue::empty()).await?;
        self.own.insert(request.to_string());
        if self.own.len() > OWN_KEPT {
            self.own.pop_first(); // the oldest: ids are in the order of time
        }
        let Answer::Records { next, size, .. } = &released.answer else {
            return Err(unexpected(&released));
        };
        let text = String::from_utf8_lossy(released.body.expose()).into_owned();
        let records = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok((records, *next, *size))
    }

    fn is_own(&self, record: &Value) -> bool {
        let id = record.pointer("/record/id").and_then(Value::as_str);
        id.is_some_and(|id| self.own.contains(id))
    }
}

fn show(record: &Value, output: &Output) {
    if output.is_json() {
        output.text(&record.to_string());
        return;
    }
    output.text(&printable(&line(record)));
}

/// One record in one line.
fn line(entry: &Value) -> String {
    let record = entry.get("record").unwrap_or(&Value::Null);
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or("-");
    let index = entry.get("index").and_then(Value::as_u64).unwrap_or(0);
    let head = format!("{index:>8} {}", text("/t"));
    if text("/kind") != "decision" {
        let mut rest = record.clone();
        if let Value::Object(map) = &mut rest {
            for key in ["v", "t", "kind", "broker", "epoch", "seq"] {
                map.remove(key);
            }
        }
        return format!("{head} {:<10} {rest}", text("/kind"));
    }
    let rules: Vec<&str> = record
        .pointer("/pol/rows")
        .and_then(Value::as_array)
        .map(|rows| {
            let name = |row| Value::as_str(row).or_else(|| row.get("id")?.as_str());
            rows.iter().filter_map(name).collect()
        })
        .unwrap_or_default();
    format!(
        "{head} {:<5} {} {:<8} {} {} [{}] {}",
        text("/dec/verdict"),
        text("/dec/code"),
        text(if record.pointer("/req/op").is_some() { "/req/op" } else { "/req/act" }),
        text("/req/obj"),
        text("/sub/spiffe"),
        rules.join(" "),
        text("/id"),
    )
}

pub async fn log(action: LogAction, access: &Access, output: &Output) -> Result<(), Fault> {
    let asking = access.connect().await?;
    match action {
        LogAction::Show { index } => {
            let (records, _, size) = Reading::new(&asking).page(index, 1, None).await?;
            let found =
                records.iter().find(|r| r.get("index").and_then(Value::as_u64) == Some(index));
            let record = found.ok_or_else(|| {
                Fault::failed(format!("there is no record {index}"))
                    .hint(format!("the log holds records 0 to {}", size.saturating_sub(1)))
            })?;
            match output.is_json() {
                true => output.text(&record.to_string()),
                false => output
                    .text(&printable(&serde_json::to_string_pretty(record).unwrap_or_default())),
            }
            Ok(())
        }
        LogAction::Tail { count, holding, follow } => {
            tail(&asking, count, holding, follow, output).await
        }
        LogAction::Verify { dir, key } => verify(&dir, key.as_deref(), output),
    }
}

async fn tail(
    asking: &Asking,
    count: u32,
    holding: Option<String>,
    follow: bool,
    output: &Output,
) -> Result<(), Fault> {
    let mut log = Reading::new(asking);
    let (_, _, size) = log.page(u64::MAX, 1, None).await?;
    let mut newest = Vec::new();
    let least = if holding.is_some() { 10_000 } else { 0 };
    // One more: asking for the size has left a record too.
    let mut from = size.saturating_sub(u64::from(count.max(1)).saturating_add(1).max(least));
    loop {
        let (records, next, size) = log.page(from, 1000, holding.clone()).await?;
        newest.extend(records);
        let ended = next >= size || next <= from;
        from = next.max(from);
        if ended {
            break;
        }
    }
    newest.retain(|record| !log.is_own(record));
    let skip = newest.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
    for record in newest.iter().skip(skip) {
        show(record, output);
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (records, next, _) = log.page(from, 1000, holding.clone()).await?;
        for record in records.iter().filter(|record| !log.is_own(record)) {
            show(record, output);
        }
        from = next.max(from);
    }
}

/// To whom an SVID with this serial number was issued: the newest one first.
pub async fn issued_to(asking: &Asking, serial: &Serial) -> Result<Option<SpiffeId>, Fault> {
    let mut log = Reading::new(asking);
    let text = serial.to_string();
    let (_, _, mut end) = log.page(u64::MAX, 1, None).await?;
    while end > 0 {
        let begin = end.saturating_sub(ISSUED_STEP);
        let mut from = begin;
        while from < end {
            let (records, next, _) = log.page(from, 1000, Some(text.clone())).await?;
            if let Some(id) = records.iter().find_map(|record| issued_with(record, &text)) {
                return Ok(Some(id));
            }
            if next <= from {
                break;
            }
            from = next;
        }
        end = begin;
    }
    Ok(None)
}

/// The identity, if this is the record of the issue of a workload's SVID.
fn issued_with(record: &Value, serial: &str) -> Option<SpiffeId> {
    let word = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let is_it =
        word("/record/what") == Some("issued") && word("/record/detail/serial") == Some(serial);
    is_it
        .then(|| word("/record/detail/spiffe_id"))
        .flatten()
        .and_then(|id| SpiffeId::parse(id).ok())
}

pub async fn explain(request: &str, access: &Access, output: &Output) -> Result<(), Fault> {
    let request = RequestId::parse(request).map_err(|_| {
        Fault::usage(format!("`{request}` is not a request's id"))
            .hint("it stands in the answer, in the error and in `doorward log tail`")
    })?;
    let (_, released) = access.ask(Ask::Explain { request }, SecretValue::empty()).await?;
    let Answer::Report { value } = &released.answer else {
        return Err(unexpected(&released));
    };
    if output.is_json() {
        output.text(&value.to_string());
        return Ok(());
    }
    let mut text = String::new();
    for record in value.get("records").and_then(Value::as_array).into_iter().flatten() {
        text.push_str(&line(record));
        text.push('\n');
    }
    if let Some(why) = value.pointer("/explanation/text").and_then(Value::as_str) {
        text.push('\n');
        text.push_str(why);
        if value.pointer("/explanation/same_policy") == Some(&Value::Bool(false)) {
            text.push_str("\n(the policy has changed since; this is under the one in force now)");
        }
    }
    output.text(&printable(&text));
    Ok(())
}
