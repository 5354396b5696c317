//! bench: of requests, a fleet, posture, closing; and the bare echo beside them.

use std::path::Path;

use super::block_on;

use super::access::Access;
use super::fault::Fault;
use super::output::Output;
use crate::app;

pub fn push(connections: usize, changes: usize, output: &Output) -> Result<(), Fault> {
    let most = crate::model::limits::CONNECTIONS_MAX - 64;
    let push =
        app::Push { connections: connections.clamp(1, most), changes: changes.clamp(1, 10_000) };
    let told = |line: &serde_json::Value| output.result(&cells(line), line);
    app::bench_push(push, &told)
        .map_err(|why| Fault::failed("the measurement did not come to its end").cause(why))
}

pub fn identity(
    (agents, entries, changes): (usize, usize, usize),
    seconds: u64,
    rounds: usize,
    output: &Output,
) -> Result<(), Fault> {
    let fleet = app::Fleet {
        agents: agents.clamp(1, 4000),
        entries: entries.clamp(1, 60_000),
        changes: changes.clamp(1, 100_000),
        run: std::time::Duration::from_secs(seconds.clamp(1, 60)),
        rounds: rounds.clamp(1, 9),
    };
    let told = |line: &serde_json::Value| output.result(&cells(line), line);
    app::bench_identity(fleet, &told)
        .map_err(|why| Fault::failed("the measurement did not come to its end").cause(why))
}

pub fn posture(seconds: u64, output: &Output) -> Result<(), Fault> {
    let told = |line: &serde_json::Value| output.result(&cells(line), line);
    app::bench_posture(std::time::Duration::from_secs(seconds.clamp(1, 60)), &told)
        .map_err(|why| Fault::failed("the measurement did not come to its end").cause(why))
}

/// One line of figures for people.
fn cells(line: &serde_json::Value) -> String {
    let cells = line.as_object().into_iter().flatten();
    let text: Vec<_> = cells.map(|(key, value)| format!("{key} {value}")).collect();
    text.join("  ")
}

pub fn requests(
    seconds: u64,
    rounds: usize,
    shape: Option<&str>,
    output: &Output,
) -> Result<(), Fault> {
    let wanted = |text: &str| {
        let (connections, in_flight) = text.split_once('x')?;
        let number = |text: &str| text.parse().ok().filter(|n| (1..=128).contains(n));
        Some((number(connections)?, number(in_flight)?))
    };
    let only = match shape {
        None => None,
        Some(text) => Some(wanted(text).ok_or_else(|| {
            Fault::usage(format!("`{text}` is no shape")).hint("e.g. `128x1`; both 1 to 128")
        })?),
    };
    let measure = app::Measure {
        only,
        run: std::time::Duration::from_secs(seconds.clamp(1, 60)),
        rounds: rounds.clamp(1, 9),
    };
    let told = |line: &serde_json::Value| {
        let cell = |key: &str| line.get(key).map_or_else(String::new, ToString::to_string);
        let shape = line.get("shape").and_then(serde_json::Value::as_str).unwrap_or("");
        let text = match cell("rules").as_str() {
            "" if shape == "quotes" => format!(
                "quotes of a TPM, verified  p50 {} us  p99 {} us",
                cell("p50_us"),
                cell("p99_us"),
            ),
            "" => format!(
                "{:<12} bare {:>8}/s  ours {:>8}/s  ratio {:<5} p50 {} us  p99 {} us  cpu {} us (bare {})",
                shape,
                cell("bare_rps"),
                cell("rps"),
                cell("ratio"),
                cell("p50_us"),
                cell("p99_us"),
                cell("server_cpu_us"),
                cell("bare_cpu_us"),
            ),
            rules => format!(
                "decisions    {rules:>8} rules  p50 {} us  p99 {} us  p99.9 {} us  loaded in {} ms",
                cell("p50_us"),
                cell("p99_us"),
                cell("p999_us"),
                cell("load_ms"),
            ),
        };
        output.result(&text, line);
    };
    app::bench(measure, &told)
        .map_err(|why| Fault::failed("the measurement did not come to its end").cause(why))
}

pub fn echo(answer: usize, ready: &Path, access: &Access) -> Result<(), Fault> {
    let Some(identity) = access.identity() else {
        return Err(Fault::usage("the echo needs an identity"));
    };
    block_on(async {
        let echo = app::echo(identity, answer.min(65_536), ready);
        echo.await.map_err(|why| Fault::failed("the echo ended").cause(why))
    })
}
