//! `doorward demo`: the whole path with real processes, told in a few screens. It ends with a failure
//! if anything came out differently from what is told.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::child::{Ran, full_pipe};
use super::stage::{DOMAIN, Stage};

/// The longest that a change of posture may take to be seen.
const SEEN: Duration = Duration::from_secs(20);

/// The demonstration.
pub struct Demo {
    json: bool,
    keep: bool,
    failed: std::cell::Cell<usize>,
}

/// The processes of the story.
struct Cast {
    stage: Stage,
    payments: PathBuf,
    reports: PathBuf,
}

impl Demo {
    /// `json`: one object a line; `keep`: leave the directory.
    pub fn new(json: bool, keep: bool) -> Self {
        Self { json, keep, failed: std::cell::Cell::new(0) }
    }

    fn say(&self, text: &str) {
        if !self.json {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}");
            let _ = out.flush();
        }
    }

    /// One step: what must come out, and what came out.
    fn step(&self, step: &str, expected: &str, got: &str, ok: bool) {
        if !ok {
            self.failed.set(self.failed.get() + 1);
        }
        if self.json {
            let line = json!({ "step": step, "expected": expected, "got": got, "ok": ok });
            println!("{line}");
        } else {
            let mark = if ok { "✓" } else { "✗" };
            self.say(&format!("  {mark} {step}\n      {got}"));
            if !ok {
                self.say(&format!("      expected: {expected}"));
            }
        }
    }

    /// Plays it.
    ///
    /// # Errors
    /// In words, what did not work or came out differently.
    pub fn run(&self) -> Result<(), String> {
        self.say("Doorward: who asks, from what, may it, written down; only then it opens.\n");
        let mut cast = self.set_up()?;
        if self.keep {
            cast.stage.keep();
        }
        self.allowed(&cast)?;
        self.denied_by_rule(&cast)?;
        self.posture_drops(&cast)?;
        self.revoked(&cast)?;
        self.the_log(&mut cast)?;
        if self.keep {
            self.say(&format!("\nkept: {}", cast.stage.dir().display()));
        }
        drop(cast);
        self.say(
            "\nTry next:\n  doorward dev               the same, and it stays up: type along\n  \
             doorward init DIR …        a real broker; docs/OPERATIONS.md\n  \
             doorward policy check      what policies look like; docs/POLICY.md",
        );
        match self.failed.get() {
            0 => Ok(()),
            n => Err(format!("{n} steps came out differently from what is told")),
        }
    }

    fn set_up(&self) -> Result<Cast, String> {
        self.say("1. A broker, an operator, a device");
        let mut stage = Stage::new(None)?;
        let who = stage.operator_must(&["whoami"], None)?.json();
        let operator = word(&who, "/spiffe_id");
        self.step(
            "`doorward init`, `broker`, `login`: the operator has an SVID of 12 hours",
            &format!("spiffe://{DOMAIN}/doorward/operator/you"),
            &operator,
            operator == format!("spiffe://{DOMAIN}/doorward/operator/you"),
        );
        stage.start_agent()?;
        let device = stage.device()?;
        let id: String = word(&device, "/id").chars().take(8).collect();
        self.step(
            "`token create`, `agent join`: this machine is enrolled and reports signed evidence",
            "a device with evidence",
            &format!(
                "device {id}…, evidence {} ms old",
                device.pointer("/evidence_age_ms").unwrap_or(&Value::Null)
            ),
            device.pointer("/evidence_age_ms").is_some(),
        );
        let (payments, reports) = (stage.workload("payments")?, stage.workload("reports")?);
        let cast = Cast { stage, payments, reports };
        self.policy(&cast)?;
        Ok(cast)
    }

    /// Two workloads, one of which may read; only while this machine listens where it did before.
    fn policy(&self, cast: &Cast) -> Result<(), String> {
        let stage = &cast.stage;
        let uid = format!("uid:{}", nix::unistd::getuid());
        for (name, path) in [("payments", &cast.payments), ("reports", &cast.reports)] {
            let path = format!("path:{}", path.display());
            #[rustfmt::skip]
            let args = ["entry", "create", "--id", name, "--selector", &uid, "--selector", &path];
            stage.operator_must(&args, None)?;
        }
        let id = word(&stage.device()?, "/id");
        let shown = stage.operator_must(&["device", "show", &id], None)?.json();
        let ports = shown.pointer("/facts/net.listen_any_ports/v").cloned().unwrap_or(json!(""));
        let dir = stage.broker_dir().join("policies");
        let rows = format!(
            "\n#@ owner=demo\np, payments-reads-shop, spiffe://{DOMAIN}/payments, secret/shop/**, read, demo, -, -, allow\n"
        );
        let profile = format!(
            "\n[profile.demo]\nextends = \"managed\"\nmax_age = \"30s\"\n\
             require = [{{ fact = \"net.listen_any_ports\", in = [{ports}] }}]\n"
        );
        for (file, text) in [("policy.csv", rows), ("posture.toml", profile)] {
            let path = dir.join(file);
            let mut old = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
            old.push_str(&text);
            std::fs::write(&path, old).map_err(|e| e.to_string())?;
        }
        let dir = dir.display().to_string();
        let ran = stage.operator_must(&["policy", "activate", &dir], None)?.json();
        let secret = "shop/db/password";
        stage.operator_must(&["put", secret, "--generate", "32"], None)?;
        stage
            .operator_must(&["put", "shop/db/url"], Some(b"postgres://db.shop.internal/orders"))?;
        self.step(
            "two registration entries, a policy row and a posture profile, two secrets",
            "policy 2 in force",
            &format!(
                "policy {} in force, {}",
                ran.pointer("/serial").unwrap_or(&Value::Null),
                word(&ran, "/digest")
            ),
            ran.pointer("/serial") == Some(&json!(2)),
        );
        Ok(())
    }

    fn allowed(&self, cast: &Cast) -> Result<(), String> {
        self.say("\n2. A workload asks; the kernel says who it is, policy and posture say yes");
        let ran = cast.payments(&["get", "shop/db/password"])?;
        let length = ran.json().pointer("/value").and_then(Value::as_str).map_or(0, str::len);
        self.step(
            "process `payments` reads secret/shop/db/password",
            "a value of 43 characters",
            &format!("a value of {length} characters (not shown), exit {}", ran.code),
            ran.code == 0 && length == 43,
        );
        Ok(())
    }

    fn denied_by_rule(&self, cast: &Cast) -> Result<(), String> {
        self.say("\n3. Another process of the same user asks for the same; no rule allows it");
        let ran = cast.reports(&["get", "shop/db/password"])?;
        let fault = ran.fault();
        self.step(
            "process `reports` reads secret/shop/db/password",
            "denied, D101 no_allow",
            &told(&ran),
            ran.code == 3 && word(&fault, "/cause").starts_with("D101"),
        );
        let request = word(&fault, "/request");
        let why = cast.stage.operator_must(&["explain", &request], None)?.json();
        let text = word(&why, "/explanation/text");
        self.step(
            "`doorward explain` shows the record, the nearest rule and what it lacked",
            "the row payments-reads-shop",
            &text.lines().take(6).collect::<Vec<_>>().join("\n      "),
            text.contains("payments-reads-shop"),
        );
        Ok(())
    }

    fn posture_drops(&self, cast: &Cast) -> Result<(), String> {
        self.say("\n4. The machine changes under a workload that was allowed");
        // Nobody reads what it writes, so it stays; its connection ends when it does, and no sooner.
        let (_reader, writer) = full_pipe().map_err(|error| format!("no pipe: {error}"))?;
        let args = ["get", "shop/db/password"];
        let mut running = cast.stage.start_workload(&cast.payments, &args, writer)?;
        // Commands have ended and taken their connections with them; that of a process lives as long.
        let connections = |wanted: f64| {
            let settled = || cast.stage.metric("doorward_connections").filter(|n| *n == wanted);
            until_some(SEEN, settled).is_some()
        };
        let alive = connections(2.0);
        let stays = is_running(&mut running);
        let alive = alive && stays;
        self.step(
            "a program that reads the password and stays, and its connection with it",
            "the program runs; the agent's connection and the workload's",
            &self.living(cast, stays),
            alive,
        );
        let closed_before = cast.stage.metric("doorward_connections_closed_total").unwrap_or(0.0);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|e| e.to_string())?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        let began = Instant::now();
        let ran = until(SEEN, || cast.payments(&["get", "shop/db/password"]), |ran| ran.code != 0)?;
        let took = began.elapsed();
        self.step(
            &format!("a process listens on 0.0.0.0:{port}; the profile forbids that"),
            "denied, D201 posture_unmet",
            &format!("after {} ms: {}", took.as_millis(), told(&ran)),
            ran.code == 3 && word(&ran.fault(), "/cause").starts_with("D201"),
        );
        let cut = connections(1.0) && is_running(&mut running);
        let closed = || {
            let closed = cast.stage.metric("doorward_connections_closed_total");
            closed.map(|n| n - closed_before).filter(|n| *n > 0.0)
        };
        let closed = until_some(SEEN, closed).unwrap_or(0.0);
        self.step(
            "the live connection that something was released on is cut",
            "closed by the broker while the program runs on; the agent's own stays",
            &format!("{closed} closed"),
            cut && closed > 0.0,
        );
        let _ = running.kill();
        let _ = running.wait();
        drop(listener);
        let ran = until(SEEN, || cast.payments(&["get", "shop/db/password"]), |ran| ran.code == 0)?;
        self.step(
            "the listener closes; access returns by itself",
            "allowed",
            &told(&ran),
            ran.code == 0,
        );
        Ok(())
    }

    fn living(&self, cast: &Cast, stays: bool) -> String {
        let connections = cast.stage.metric("doorward_connections").unwrap_or(0.0);
        let program = if stays { "runs" } else { "does not run" };
        format!("the program {program}, {connections} connections")
    }

    fn revoked(&self, cast: &Cast) -> Result<(), String> {
        self.say("\n5. An identity is revoked");
        cast.stage.operator_must(&["identity", "revoke", "payments"], None)?;
        let ran = cast.payments(&["get", "shop/db/password"])?;
        self.step(
            "`doorward identity revoke payments`; the very next request",
            "denied",
            &told(&ran),
            ran.code == 3,
        );
        Ok(())
    }

    fn the_log(&self, cast: &mut Cast) -> Result<(), String> {
        self.say(
            "\n6. The decision log: every answer above stands in it, and nobody can change it",
        );
        let tail = cast
            .stage
            .operator_must(&["log", "tail", "-n", "200", "--holding", "shop/db/password"], None)?;
        let records = tail.stdout.lines().count();
        self.step(
            "`doorward log tail`: who asked for the password, and what was decided",
            "at least 5 records",
            &format!("{records} records"),
            records >= 5,
        );
        // The newest second is not under a signed checkpoint yet; a stopped broker has signed all.
        cast.stage.stop("agent");
        cast.stage.stop("broker");
        let log = cast.stage.broker_dir().join("log");
        let dir = log.display().to_string();
        let ran = cast.stage.run(&["log", "verify", &dir], None)?;
        let size = ran.json().pointer("/size").and_then(Value::as_u64).unwrap_or(0);
        self.step(
            "`doorward log verify` with nothing but the public key",
            "whole",
            &format!("{size} records, every byte under the signed checkpoint"),
            ran.code == 0 && size > 0,
        );
        let bundle =
            first_bundle(&log.join("tile/entries")).ok_or("no entry bundle to flip a byte in")?;
        let mut bytes = std::fs::read(&bundle).map_err(|e| e.to_string())?;
        let at = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        std::fs::write(&bundle, &bytes).map_err(|e| e.to_string())?;
        let ran = cast.stage.run(&["log", "verify", &dir], None)?;
        self.step(
            &format!(
                "one bit flipped in the middle of {}",
                bundle.strip_prefix(&log).unwrap_or(&bundle).display()
            ),
            "found and pointed out",
            &word(&ran.fault(), "/cause"),
            ran.code == 1 && word(&ran.fault(), "/cause").contains("record"),
        );
        Ok(())
    }
}

impl Cast {
    fn payments(&self, args: &[&str]) -> Result<Ran, String> {
        self.stage.as_workload(&self.payments, args)
    }

    fn reports(&self, args: &[&str]) -> Result<Ran, String> {
        self.stage.as_workload(&self.reports, args)
    }
}

fn word(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned()
}

/// How a workload's command came out, in a line.
fn told(ran: &Ran) -> String {
    if ran.code == 0 {
        return "allowed".to_owned();
    }
    let fault = ran.fault();
    format!("{}: {} (exit {})", word(&fault, "/error"), word(&fault, "/cause"), ran.code)
}

/// Asks again until it comes out so, or the time is over; the last answer counts.
fn until(
    most: Duration,
    mut ask: impl FnMut() -> Result<Ran, String>,
    enough: impl Fn(&Ran) -> bool,
) -> Result<Ran, String> {
    let began = Instant::now();
    loop {
        let ran = ask()?;
        if enough(&ran) || began.elapsed() > most {
            return Ok(ran);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Looks again until there is something, or the time is over.
fn until_some<T>(most: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        match look() {
            Some(found) => return Some(found),
            None if began.elapsed() > most => return None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn is_running(process: &mut Child) -> bool {
    matches!(process.try_wait(), Ok(None))
}

/// The lowest entry bundle of a log.
fn first_bundle(entries: &std::path::Path) -> Option<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(entries).ok()?.flatten().map(|entry| entry.path()).collect();
    all.sort();
    let first = all.into_iter().next()?;
    if first.is_file() { Some(first) } else { widest(&first) }
}

/// The newest of a bundle's partial files: the one under the checkpoint.
fn widest(partials: &std::path::Path) -> Option<PathBuf> {
    let width = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u16>().ok();
    let all = std::fs::read_dir(partials).ok()?.flatten().map(|entry| entry.path());
    all.max_by_key(|path| width(path))
}
