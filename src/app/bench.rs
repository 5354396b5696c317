//! `doorward bench`: a real broker in a process of its own, driven from this one, beside a bare QUIC
//! echo of the same sizes in the same run. What counts is the ratio; absolute figures drift.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::stage::{DOMAIN, Stage};
use crate::broker::Spawn;
use crate::model::{Ask, Clock, SecretName, SystemClock};
use crate::wire::{self, BareClient, Credentials, Opening};

/// The secret that is read.
const SECRET: &str = "bench/value";
/// Its size, in bytes.
const VALUE: usize = 1024;

/// Shapes: connections × in flight.
pub const SHAPES: &[(usize, usize)] = &[(1, 1), (16, 1), (128, 1), (1, 128)];

/// How long and how often is measured.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Only this shape, e.g. `(128, 1)`; all of them and the rest otherwise.
    pub only: Option<(usize, usize)>,
    /// Length of one run.
    pub run: Duration,
    /// Runs of each, in turn; the median counts.
    pub rounds: usize,
}

/// One side's figures of one run.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    cpu_us: f64,
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Measures every shape; `told` gets one JSON object a line.
///
/// # Errors
/// In words.
pub fn bench(measure: Measure, told: &dyn Fn(&Value)) -> Result<(), String> {
    let mut stage = Stage::new(None)?;
    prepare(&mut stage)?;
    let credentials = Credentials::load(&stage.operator_dir()).map_err(words)?;
    let echo = stage.start_echo(answer_size()?)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(words)?;
    let sides = Sides {
        broker: credentials.broker.parse().map_err(words)?,
        echo,
        pids: (stage.pid("broker")?, stage.pid("echo")?),
        request: request(),
        credentials,
    };
    if let Some((connections, in_flight)) = measure.only {
        told(&runtime.block_on(sides.shape(connections, in_flight, measure))?);
        return Ok(());
    }
    for (connections, in_flight) in SHAPES {
        let line = runtime.block_on(sides.shape(*connections, *in_flight, measure))?;
        told(&line);
    }
    told(&runtime.block_on(sides.handshakes(measure))?);
    super::bench_policy::bench_policy(&sides.credentials, measure.run, told)?;
    told(&super::bench_quotes::bench_quotes(measure.run)?);
    Ok(())
}

/// Has a broker without rate limits.
pub(super) fn lift_rates(stage: &mut Stage) -> Result<(), String> {
    let config = stage.broker_dir().join("broker.toml");
    let text = std::fs::read_to_string(&config).map_err(words)?;
    let text = text.replace("caller_rate = 500", "caller_rate = 1000000");
    std::fs::write(&config, text).map_err(words)?;
    stage.stop("broker");
    stage.start_broker()
}

/// A broker without rate limits, a rule and a secret.
fn prepare(stage: &mut Stage) -> Result<(), String> {
    lift_rates(stage)?;
    let policy = stage.broker_dir().join("policies/policy.csv");
    let mut rows = std::fs::read_to_string(&policy).map_err(words)?;
    rows.push_str(&format!(
        "\np, bench-reads, spiffe://{DOMAIN}/doorward/operator/you, secret/bench/**, read, any, -, -, allow\n"
    ));
    std::fs::write(&policy, rows).map_err(words)?;
    let dir = stage.broker_dir().join("policies").display().to_string();
    stage.operator_must(&["policy", "activate", &dir], None)?;
    stage.operator_must(&["put", SECRET], Some(&[b'v'; VALUE]))?;
    Ok(())
}

/// The prepared bytes of one request.
fn request() -> Vec<u8> {
    let name = SecretName::parse(SECRET).ok();
    let ask = name.map(|name| Ask::Read { name, version: None, have: None });
    let opening = ask.map(|ask| Opening { client: None, ask });
    let head = serde_json::to_vec(&opening).unwrap_or_default();
    let mut frame = Vec::new();
    frame.extend_from_slice(&u32::try_from(head.len()).unwrap_or(0).to_be_bytes());
    frame.extend_from_slice(&0u32.to_be_bytes());
    frame.extend_from_slice(&head);
    frame
}

/// Bytes of an answer as the broker frames it: lengths, head, value.
fn answer_size() -> Result<usize, String> {
    let head = json!({ "answer": {
        "request": "00000000-0000-0000-0000-000000000000",
        "answer": { "secret": { "version": 1 } },
    } });
    Ok(8 + head.to_string().len() + VALUE)
}

struct Sides {
    broker: SocketAddr,
    echo: SocketAddr,
    pids: (u32, u32),
    request: Vec<u8>,
    credentials: Credentials,
}

impl Sides {
    async fn client(&self, bare: bool) -> Result<BareClient, String> {
        if bare {
            return BareClient::to_echo(self.echo, &self.credentials).await.map_err(words);
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let config = wire::client_config(&self.credentials, clock).map_err(words)?;
        BareClient::to_broker(self.broker, config).await.map_err(words)
    }

    async fn shape(
        &self,
        connections: usize,
        in_flight: usize,
        measure: Measure,
    ) -> Result<Value, String> {
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..measure.rounds {
            bare.push(self.run(true, connections, in_flight, measure.run).await?);
            ours.push(self.run(false, connections, in_flight, measure.run).await?);
        }
        let (bare, ours) = (median(&mut bare), median(&mut ours));
        Ok(json!({
            "shape": format!("{connections}x{in_flight}"),
            "bare_rps": bare.rps.round(), "rps": ours.rps.round(),
            "ratio": round(ours.rps / bare.rps),
            "p50_us": ours.p50_us.round(), "p99_us": ours.p99_us.round(),
            "p999_us": ours.p999_us.round(), "bare_p50_us": bare.p50_us.round(),
            "server_cpu_us": round(ours.cpu_us), "bare_cpu_us": round(bare.cpu_us),
        }))
    }

    async fn run(
        &self,
        bare: bool,
        connections: usize,
        in_flight: usize,
        length: Duration,
    ) -> Result<Figures, String> {
        let mut clients = Vec::new();
        for _ in 0..connections {
            let client = self.client(bare).await?;
            // The first request of a connection opens its stream credit.
            self.check(&client, bare).await?;
            clients.push(client);
        }
        let pid = if bare { self.pids.1 } else { self.pids.0 };
        let (began, cpu) = (Instant::now(), cpu_seconds(pid)?);
        let workers = clients.iter().flat_map(|client| std::iter::repeat_n(client, in_flight));
        let runs = join_all(workers.map(|client| self.work(client, began, length))).await;
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu);
        clients.iter().for_each(BareClient::close);
        let mut all = Vec::new();
        for run in runs {
            all.extend(run?);
        }
        all.sort_unstable();
        let count = f64::from(u32::try_from(all.len()).unwrap_or(u32::MAX).max(1));
        Ok(Figures {
            rps: count / took,
            p50_us: at(&all, 0.5),
            p99_us: at(&all, 0.99),
            p999_us: at(&all, 0.999),
            cpu_us: cpu * 1e6 / count,
        })
    }

    async fn check(&self, client: &BareClient, bare: bool) -> Result<(), String> {
        let mut answer = Vec::new();
        client.round_trip(&self.request, &mut answer).await.map_err(words)?;
        if bare || answer.ends_with(&[b'v'; VALUE]) {
            return Ok(());
        }
        Err(format!("the broker answered {:?}", String::from_utf8_lossy(&answer)))
    }

    /// Nanoseconds of each round trip until the time is over.
    async fn work(
        &self,
        client: &BareClient,
        began: Instant,
        length: Duration,
    ) -> Result<Vec<u64>, String> {
        let (mut times, mut answer) = (Vec::new(), Vec::new());
        while began.elapsed() < length {
            let start = Instant::now();
            let len = client.round_trip(&self.request, &mut answer).await.map_err(words)?;
            if len < VALUE {
                return Err(format!("refused: {:?}", String::from_utf8_lossy(&answer)));
            }
            times.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(times)
    }

    /// Full mutual handshakes, one after the other, eight at a time.
    async fn handshakes(&self, measure: Measure) -> Result<Value, String> {
        let (mut bare, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..measure.rounds {
            bare.push(self.shake(true, measure.run).await?);
            ours.push(self.shake(false, measure.run).await?);
        }
        let middle = |all: &mut Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or(0.0)
        };
        let (bare, ours) = (middle(&mut bare), middle(&mut ours));
        Ok(json!({
            "shape": "handshakes", "bare_rps": bare.round(), "rps": ours.round(),
            "ratio": round(ours / bare),
        }))
    }

    async fn shake(&self, bare: bool, length: Duration) -> Result<f64, String> {
        let began = Instant::now();
        let one = async || -> Result<u32, String> {
            let mut done = 0;
            while began.elapsed() < length {
                self.client(bare).await?.close();
                done += 1;
            }
            Ok(done)
        };
        let mut all = 0.0;
        for done in join_all((0..8).map(|_| one())).await {
            all += f64::from(done?);
        }
        Ok(all / began.elapsed().as_secs_f64())
    }
}

/// The value at this part of a sorted list of nanoseconds, in microseconds.
pub(super) fn at(sorted: &[u64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (f64::from(u32::try_from(last).unwrap_or(u32::MAX)) * part).round();
    // The product of a length and a part of one is a small whole number.
    let nanos = sorted.get(index as usize).copied().unwrap_or(0);
    Duration::from_nanos(nanos).as_secs_f64() * 1e6
}

fn median(runs: &mut [Figures]) -> Figures {
    runs.sort_by(|a, b| a.rps.total_cmp(&b.rps));
    let none = Figures { rps: 0.0, p50_us: 0.0, p99_us: 0.0, p999_us: 0.0, cpu_us: 0.0 };
    runs.get(runs.len() / 2).copied().unwrap_or(none)
}

pub(super) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// User and system time of a process, in seconds.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64, String> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .map_err(words)?;
    let after = stat.rsplit(')').next().unwrap_or("");
    let mut fields = after.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    Ok((ticks() + ticks()) / hertz.map_or(100.0, |hertz| hertz as f64))
}

/// The echo's own process: the broker's certificates are not at hand, so it shows the operator's.
///
/// # Errors
/// In words. It does not end otherwise.
pub async fn echo(identity: &Path, answer: usize, ready: &Path) -> Result<(), String> {
    let supervisor = super::supervise::Supervisor::default();
    let mut sockets = wire::sockets(([127, 0, 0, 1], 0).into(), super::ports::cores())
        .map_err(words)?
        .into_iter();
    let first = sockets.next().ok_or("no socket")?;
    let address = first.local_addr().map_err(words)?;
    // As many threads as serve a broker's port.
    for socket in sockets {
        let (identity, spawner) = (identity.to_owned(), supervisor.spawner());
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(words)?.block_on(echo_on(socket, &identity, answer, &spawner))
        };
        supervisor.go_on_thread("echo", serve).map_err(words)?;
    }
    super::files::replace_private(ready, address.to_string().as_bytes()).map_err(words)?;
    echo_on(first, identity, answer, &supervisor.spawner()).await
}

async fn echo_on(
    socket: std::net::UdpSocket,
    identity: &Path,
    answer: usize,
    spawner: &Spawn,
) -> Result<(), String> {
    let own = Credentials::load(identity).map_err(words)?;
    let pair = (own.chain.clone(), own.key.clone_key());
    wire::echo(socket, pair, &own.bundle, answer, &|task| spawner("echo", task))
        .await
        .map_err(words)
}
