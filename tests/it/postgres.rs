//! A real database: its password comes in from a Kubernetes manifest, goes out to `psql` through
//! `doorward run`, is rotated, and ends for the workload when its identity is revoked.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use doorward::app::{Ran, Stage};
use serde_json::Value;

use super::journey::program;
use super::scene::{add_rows, missing, outside, random_text, register, traces, until};

/// A PostgreSQL server of its own, on a Unix socket only. Gone when dropped.
struct Postgres {
    dir: tempfile::TempDir,
    psql: PathBuf,
    admin: String,
    server: Child,
}

/// The newest `initdb`'s directory.
fn server_programs() -> Option<PathBuf> {
    let all = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let mut all: Vec<(u32, PathBuf)> = all
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, bin)| bin.join("initdb").is_file())
        .collect();
    all.sort();
    all.pop().map(|(_, bin)| bin)
}

/// A command as the user that the server runs under: it refuses root.
fn as_server(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).env("HOME", dir).env("LC_ALL", "C").stdin(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().expect("the user `postgres`");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

impl Postgres {
    fn start(bin: &Path, psql: PathBuf) -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        let admin = random_text();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, &admin).unwrap();
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
            for path in [dir.path(), &password_file] {
                nix::unistd::chown(path, Some(user.uid), Some(user.gid)).unwrap();
            }
        }
        let data = dir.path().join("data");
        let made = as_server(&bin.join("initdb"), dir.path())
            .args(["--auth=scram-sha-256", "--username=postgres", "--no-sync", "--no-locale"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("-D")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let server = as_server(&bin.join("postgres"), dir.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "log_statement=none", "-k"])
            .arg(dir.path())
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut postgres = Self { dir, psql, admin, server };
        until(
            Duration::from_secs(30),
            || {
                let ended = postgres.server.try_wait().unwrap();
                let log = std::fs::read_to_string(postgres.dir.path().join("log")).unwrap();
                assert!(ended.is_none(), "postgres ended: {log}");
                postgres.as_admin("select 1").status.success()
            },
            |ready| *ready,
        );
        postgres
    }

    /// What `psql` is called with, but for the password.
    fn arguments(&self, user: &str) -> Vec<String> {
        let host = self.dir.path().display().to_string();
        ["-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", &host, "-U", user, "-d", "postgres"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Runs SQL from standard input, so that it stands in no command line.
    fn sql(&self, user: &str, password: &str, sql: &str) -> Output {
        let mut child = Command::new(&self.psql)
            .args(self.arguments(user))
            .env("PGPASSWORD", password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A psql that could not log in does not read.
        let _ = child.stdin.take().unwrap().write_all(sql.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn as_admin(&self, sql: &str) -> Output {
        self.sql("postgres", &self.admin, sql)
    }

    fn must(&self, sql: &str) {
        let done = self.as_admin(sql);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn lets_in(&self, password: &str) -> bool {
        self.sql("app", password, "select 1").status.success()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        // Fast, then immediate, then by force: the directory must be nobody's when it goes.
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
            let _ = kill(pid, signal);
            for _ in 0..500 {
                if self.server.try_wait().ok().flatten().is_some() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// `doorward run --env PGPASSWORD=… -- psql`: logs in with what the agent hands out.
fn log_in(stage: &Stage, workload: &Path, postgres: &Postgres) -> Ran {
    let psql = postgres.psql.display().to_string();
    let mut args = vec!["run", "--env", "PGPASSWORD=secret/shop/db/password", "--", &psql];
    let arguments = postgres.arguments("app");
    args.extend(arguments.iter().map(String::as_str));
    args.extend(["-c", "select current_user"]);
    stage.as_workload(workload, &args).unwrap()
}

fn import(stage: &Stage, password: &str) {
    let manifest = stage.dir().join("db.yaml");
    let encoded = base64::engine::general_purpose::STANDARD.encode(password);
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: db\n  namespace: shop\ntype: Opaque\n\
         data:\n  password: {encoded}\nstringData:\n  username: app\n"
    );
    std::fs::write(&manifest, text).unwrap();
    let file = manifest.display().to_string();
    let args = ["import", &file, "--prefix", "shop/db"];
    let dry: Vec<&str> = args.iter().copied().chain(["--dry-run"]).collect();
    let ran = stage.operator_must(&dry, None).unwrap();
    assert_eq!(ran.stdout.lines().count(), 2, "{ran:?}");
    assert!(ran.stdout.contains("shop/db/password") && ran.stdout.contains("\"stored\":false"));
    assert!(!ran.stdout.contains(password) && !ran.stdout.contains(&encoded), "{ran:?}");
    let list = stage.operator_must(&["list", "shop"], None).unwrap();
    assert_eq!(list.stdout, "", "a dry run stores nothing");
    let ran = stage.operator_must(&args, None).unwrap();
    assert!(!ran.stdout.contains(password) && !ran.stdout.contains(&encoded), "{ran:?}");
    let list = stage.operator_must(&["list", "shop"], None).unwrap();
    assert_eq!(list.stdout.lines().count(), 2, "{list:?}");
    std::fs::remove_file(&manifest).unwrap();
}

#[test]
fn a_database_password_from_manifest_to_revocation() {
    let Some(psql) = outside("psql", "postgresql-client") else { return };
    let Some(bin) = server_programs() else {
        return missing("initdb (Debian package postgresql)");
    };
    let postgres = Postgres::start(&bin, psql);
    let (first, second) = (random_text(), random_text());
    postgres.must(&format!("create role app login password '{first}'"));
    assert!(postgres.lets_in(&first), "the positive control");
    assert!(!postgres.lets_in(&second), "scram is asked for");

    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    import(&stage, &first);
    let workload = stage.workload("shop-api").unwrap();
    register(&stage, "shop-api", &workload);
    let ran = log_in(&stage, &workload, &postgres);
    assert_eq!(ran.code, 3, "no row allows it yet: {ran:?}");
    add_rows(
        &stage,
        "\n#@ owner=shop\np, shop-api-reads, spiffe://dev.doorward/shop-api, secret/shop/db/*, \
         read, managed, -, -, allow\n",
    );
    let ran = log_in(&stage, &workload, &postgres);
    assert_eq!((ran.code, ran.stdout.trim()), (0, "app"), "{ran:?}");

    postgres.must(&format!("alter role app password '{second}'"));
    let ran = log_in(&stage, &workload, &postgres);
    assert_ne!(ran.code, 0, "the database is ahead, and psql says so: {ran:?}");
    assert!(ran.stderr.contains("authentication failed"), "{ran:?}");
    let put = stage.operator_must(&["put", "shop/db/password"], Some(second.as_bytes())).unwrap();
    assert_eq!(put.json()["version"], 2);
    let ran = log_in(&stage, &workload, &postgres);
    assert_eq!((ran.code, ran.stdout.trim()), (0, "app"), "{ran:?}");
    assert!(!postgres.lets_in(&first), "the old password is over");
    assert!(postgres.lets_in(&second));

    revoked(&mut stage, &workload, &postgres);
    let found = traces(stage.dir(), &[], &[&first, &second]);
    assert!(found.is_empty(), "a password stands in {found:?}");
}

/// The identity ends; the denial stands in the log, and the log is whole.
fn revoked(stage: &mut Stage, workload: &Path, postgres: &Postgres) {
    stage.operator_must(&["identity", "revoke", "shop-api"], None).unwrap();
    let ran = log_in(stage, workload, postgres);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    assert_eq!(ran.fault()["cause"], "D302 revoked", "{ran:?}");
    let request = ran.fault()["request"].as_str().expect("a request to quote").to_owned();
    let tail = stage.operator_must(&["log", "tail", "-n", "50", "--holding", &request], None);
    let tail = tail.unwrap();
    let records: Vec<Value> =
        tail.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Rules allow the agent to ask for the workload's identity; that it was revoked stands against it.
    let asked = records.iter().find(|entry| entry["record"]["req"]["obj"] == "svid/shop-api");
    let asked = asked.unwrap_or_else(|| panic!("{request} is not told: {}", tail.stdout));
    assert_eq!(asked["record"]["dec"], serde_json::json!({"code": "D302", "verdict": "deny"}));
    let ended = records.iter().any(|entry| entry["record"]["kind"] == "not_released");
    assert!(!ended, "what was denied has no outcome: {}", tail.stdout);
    stage.stop("agent");
    stage.stop("broker");
    let log = stage.broker_dir().join("log").display().to_string();
    let ran = stage.run(&["log", "verify", &log], None).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["pending"], 0, "a clean stop signs everything: {ran:?}");
}
