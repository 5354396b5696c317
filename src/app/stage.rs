//! A broker and an agent on loopback, as processes of this very binary: what `demo` and `dev` stand on.
//!
//! Everything is done as a user would do it, through the command line; nothing here reaches into a
//! broker. Dropping a stage stops its processes and removes its directory unless it shall be kept.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::child::{Ran, end, finish, free_tcp, free_udp, said};
use super::files::private_dir;
use crate::agent::workload_socket_beside;

/// The trust domain of everything that runs on loopback.
pub const DOMAIN: &str = "dev.doorward";
/// How long a process may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// A broker and an agent on loopback.
pub struct Stage {
    dir: PathBuf,
    exe: PathBuf,
    keep: bool,
    children: Vec<(&'static str, Child)>,
    management: u16,
}

impl Stage {
    /// Makes and starts a broker in `dir`, or in a new private directory, and logs an operator in.
    ///
    /// # Errors
    /// In words, what did not work.
    pub fn new(dir: Option<PathBuf>) -> Result<Self, String> {
        let exe = std::env::current_exe().map_err(said("this program's own file is not known"))?;
        Self::with_program(exe, dir)
    }

    /// The same with a named program.
    ///
    /// # Errors
    /// As [`Stage::new`].
    pub fn with_program(exe: PathBuf, dir: Option<PathBuf>) -> Result<Self, String> {
        let keep = dir.is_some();
        let dir = match dir {
            Some(dir) => std::path::absolute(&dir).map_err(said("no such directory"))?,
            None => {
                let mut random = [0; 8];
                aws_lc_rs::rand::fill(&mut random).map_err(said("no random bytes"))?;
                std::env::temp_dir().join(format!("doorward-{}", hex::encode(random)))
            }
        };
        private_dir(&dir).map_err(said("no directory"))?;
        let mut stage = Self { dir, exe, keep, children: Vec::new(), management: 0 };
        if !stage.broker_dir().join("broker.toml").exists() {
            stage.init()?;
        }
        stage.start_broker()?;
        if !stage.operator_dir().join("svid.pem").exists() {
            let token =
                std::fs::read(stage.dir.join("operator.token")).map_err(said("no token"))?;
            let dir = stage.operator_dir();
            stage.must(&["login", "-", "--identity", &text(&dir)], Some(&token))?;
        }
        Ok(stage)
    }

    fn init(&mut self) -> Result<(), String> {
        let listen = |port: u16| format!("127.0.0.1:{port}");
        let (broker, enrolment, management) =
            (listen(free_udp()?), listen(free_udp()?), listen(free_tcp()?));
        let (dir, token) = (text(&self.broker_dir()), text(&self.dir.join("operator.token")));
        #[rustfmt::skip]
        let args = [
            "init", &dir, "--trust-domain", DOMAIN, "--listen", &broker,
            "--listen-enrolment", &enrolment, "--management", &management,
            "--advertise", "127.0.0.1", "--operator", "you", "--token-file", &token,
        ];
        self.must(&args, None)?;
        Ok(())
    }

    /// The stage's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The broker's directory.
    pub fn broker_dir(&self) -> PathBuf {
        self.dir.join("broker")
    }

    /// The operator's identity.
    pub fn operator_dir(&self) -> PathBuf {
        self.dir.join("operator")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// The socket of the agent's SPIFFE Workload API.
    pub fn workload_socket(&self) -> PathBuf {
        workload_socket_beside(&self.socket())
    }

    /// Keeps the directory when the stage ends.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Starts the broker and waits until it answers.
    ///
    /// # Errors
    /// In words, what did not work; the end of its own log stands behind it.
    pub fn start_broker(&mut self) -> Result<(), String> {
        let ready = self.dir.join("broker.ready");
        let _ = std::fs::remove_file(&ready);
        let (dir, file) = (text(&self.broker_dir()), text(&ready));
        self.start("broker", &["broker", &dir, "--ready-file", &file])?;
        let began = Instant::now();
        loop {
            if let Some(value) = std::fs::read_to_string(&ready)
                .ok()
                .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            {
                let address = value.get("management").and_then(Value::as_str).unwrap_or("");
                self.management =
                    address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
                return Ok(());
            }
            self.alive("broker", began)?;
        }
    }

    /// Enrols this machine as a device of class `server` and starts its agent, if there is none.
    ///
    /// # Errors
    /// In words, what did not work.
    pub fn start_agent(&mut self) -> Result<(), String> {
        let dir = text(&self.dir.join("agent"));
        if !self.dir.join("agent/agent.toml").exists() {
            let made = self.operator(&["token", "create", "--class", "server"], None)?;
            let token = made.json().get("token").and_then(Value::as_str).unwrap_or("").to_owned();
            let socket = text(&self.socket());
            #[rustfmt::skip]
            let args = ["agent", "--dir", &dir, "join", "-", "--listen", &socket, "--name", "this-machine"];
            self.must(&args, Some(token.as_bytes()))?;
        }
        self.start("agent", &["agent", "--dir", &dir])?;
        let began = Instant::now();
        loop {
            if self.device().is_ok_and(|device| device.get("evidence_age_ms").is_some()) {
                return Ok(());
            }
            self.alive("agent", began)?;
        }
    }

    /// Starts the bare echo of the measurements; gives its address.
    ///
    /// # Errors
    /// In words.
    pub fn start_echo(&mut self, answer: usize) -> Result<std::net::SocketAddr, String> {
        let ready = self.dir.join("echo.ready");
        let (identity, file) = (text(&self.operator_dir()), text(&ready));
        let answer = answer.to_string();
        self.start(
            "echo",
            &["bench", "--echo", &answer, "--identity", &identity, "--ready-file", &file],
        )?;
        let began = Instant::now();
        loop {
            let address = std::fs::read_to_string(&ready).ok().and_then(|text| text.parse().ok());
            if let Some(address) = address {
                return Ok(address);
            }
            self.alive("echo", began)?;
        }
    }

    /// The process id of one of the stage's processes.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn pid(&self, name: &str) -> Result<u32, String> {
        let found = self.children.iter().find(|(child, _)| *child == name);
        found.map(|(_, child)| child.id()).ok_or_else(|| format!("no process `{name}`"))
    }

    /// The device as the broker sees it.
    ///
    /// # Errors
    /// When there is none yet.
    pub fn device(&self) -> Result<Value, String> {
        let ran = self.operator(&["device", "list"], None)?;
        let mut devices =
            ran.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        devices
            .find(|device| device.get("class").and_then(Value::as_str) == Some("server"))
            .ok_or_else(|| "no device yet".to_owned())
    }

    fn start(&mut self, name: &'static str, args: &[&str]) -> Result<(), String> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{name}.log")))
            .map_err(said("no log file"))?;
        let child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(said("can't start a process"))?;
        self.children.push((name, child));
        Ok(())
    }

    fn alive(&mut self, name: &str, began: Instant) -> Result<(), String> {
        std::thread::sleep(Duration::from_millis(20));
        let ended = self
            .children
            .iter_mut()
            .filter(|(child, _)| *child == name)
            .any(|(_, child)| child.try_wait().ok().flatten().is_some());
        if ended || began.elapsed() > READY {
            let log = std::fs::read_to_string(self.dir.join(format!("{name}.log")));
            let log = log.unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(8).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            let how = if ended { "ended" } else { "is not ready in time" };
            return Err(format!("the {name} {how}; its log says:\n{}", tail.join("\n")));
        }
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(args).env_remove("DOORWARD_IDENTITY").env_remove("DOORWARD_SOCKET");
        command
    }

    /// Runs a command of ours with `--json`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn run(&self, args: &[&str], stdin: Option<&[u8]>) -> Result<Ran, String> {
        let mut command = self.command(args);
        command.arg("--json");
        finish(command, stdin)
    }

    /// The same, as the operator.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn operator(&self, args: &[&str], stdin: Option<&[u8]>) -> Result<Ran, String> {
        let identity = text(&self.operator_dir());
        let mut all = vec!["--identity", &identity];
        all.extend_from_slice(args);
        self.run(&all, stdin)
    }

    /// A copy of this program under another name, for a workload of its own.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn workload(&self, name: &str) -> Result<PathBuf, String> {
        use std::os::unix::fs::PermissionsExt as _;
        let bin = self.dir.join("bin");
        private_dir(&bin).map_err(said("no directory"))?;
        let path = bin.join(name);
        if !path.exists() {
            std::fs::copy(&self.exe, &path).map_err(said("can't copy this program"))?;
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&path, mode).map_err(said("can't copy this program"))?;
        }
        Ok(path)
    }

    /// Runs a workload's own process, which asks the agent.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn as_workload(&self, program: &Path, args: &[&str]) -> Result<Ran, String> {
        let mut command = Command::new(program);
        command
            .args(["--json", "--socket", &text(&self.socket())])
            .args(args)
            .env_remove("DOORWARD_IDENTITY");
        finish(command, None)
    }

    /// Starts a workload's own process, with this as its standard output, and lets it go on.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_workload(
        &self,
        program: &Path,
        args: &[&str],
        stdout: impl Into<Stdio>,
    ) -> Result<Child, String> {
        Command::new(program)
            .args(["--json", "--socket", &text(&self.socket())])
            .args(args)
            .env_remove("DOORWARD_IDENTITY")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .map_err(said("can't start a process"))
    }

    fn must(&self, args: &[&str], stdin: Option<&[u8]>) -> Result<Ran, String> {
        let ran = self.run(args, stdin)?;
        match ran.code {
            0 => Ok(ran),
            code => Err(format!(
                "`doorward {}` ended with {code}: {}",
                args.first().copied().unwrap_or(""),
                ran.stderr.trim()
            )),
        }
    }

    /// As the operator; anything but success is a failure.
    ///
    /// # Errors
    /// In words.
    pub fn operator_must(&self, args: &[&str], stdin: Option<&[u8]>) -> Result<Ran, String> {
        let identity = text(&self.operator_dir());
        let mut all = vec!["--identity", &identity];
        all.extend_from_slice(args);
        self.must(&all, stdin)
    }

    /// The broker's management port, on loopback.
    pub fn management(&self) -> u16 {
        self.management
    }

    /// What stands there: head and body, as HTTP/1.1 has them.
    pub fn page(&self, path: &str) -> Option<String> {
        use std::io::Read as _;
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.management)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut page = String::new();
        stream.take(1 << 20).read_to_string(&mut page).ok()?;
        Some(page)
    }

    /// One figure of the broker's metrics.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let page = self.page("/metrics")?;
        let line = page.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Stops one process and waits for its end.
    pub fn stop(&mut self, name: &str) {
        let (ours, others) = std::mem::take(&mut self.children)
            .into_iter()
            .partition::<Vec<_>, _>(|(child, _)| *child == name);
        self.children = others;
        for (_, child) in ours {
            end(child);
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The agent first: it asks the broker.
        while let Some((_, child)) = self.children.pop() {
            end(child);
        }
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
