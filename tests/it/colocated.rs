//! `conn.colocated`: an identity whose key could be somewhere else than on its device is worth nothing
//! where a profile asks for this; and the attack of a process that passes its socket on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use doorward::app::Stage;
use doorward::model::Reason;
use doorward::wire::{Client, ClientError};

use super::forge::run;
use super::journey::program;
use super::line::House;
use super::machines::{Machine, activate, nothing, read, write};
use super::scene::{add_rows, outside, random_text, register, until};

const PROFILES: &str = r#"
[profile.managed]
max_age = "120s"
require = [{ fact = "device.enrolled", eq = true }]
[profile.attested]
extends = "managed"
require = [{ fact = "conn.colocated", eq = true }]
"#;

const ROWS: &str =
    "p, bound, spiffe://dev.doorward/app/*, secret/bound/*, read, attested, -, -, allow
p, agents, group:agents, secret/bound/*, read, attested, -, -, allow
p, loose, spiffe://dev.doorward/app/*, secret/loose/*, read, managed, -, -, allow";

async fn reason(client: &Client, what: &str) -> Result<(), Reason> {
    match client.ask(read(what), nothing()).await {
        Ok(_) => Ok(()),
        Err(ClientError::Refused(refusal)) => Err(refusal.reason),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_key_that_was_given_out_is_useless_wherever_it_went() {
    run(async {
        let house = House::new().await;
        let operator = house.client().await;
        activate(&operator, ROWS, PROFILES).await;
        write(&operator, "bound/a").await;
        write(&operator, "loose/a").await;
        let machine = Machine::enrol(&house, &operator).await;
        machine.report().await.unwrap();
        let held = machine.workload_held(&operator, "/app/held", true).await;
        let given = machine.workload_held(&operator, "/app/given", false).await;
        let connect =
            async |credentials| Client::connect(credentials, house.clock()).await.unwrap();
        let (kept, own, copy) =
            (connect(&held).await, connect(&given).await, connect(&given).await);
        assert_eq!(reason(&kept, "bound/a").await, Ok(()));
        // The workload's own connection and a thief's with its key look alike: none of both is taken.
        for (client, whose) in [(&own, "its own"), (&copy, "a copy's")] {
            assert_eq!(reason(client, "loose/a").await, Ok(()), "{whose}");
            assert_eq!(reason(client, "bound/a").await, Err(Reason::PostureUnknown), "{whose}");
        }
        // The device key lies in a file: it proves no place either.
        let device = reason(&machine.client, "bound/a").await;
        assert_eq!(device, Err(Reason::PostureUnknown));
        assert_eq!(reason(&kept, "bound/a").await, Ok(()), "others' judgements are not mixed up");
        house.clock.advance(Duration::from_secs(121));
        assert_eq!(
            reason(&kept, "bound/a").await,
            Err(Reason::PostureStale),
            "and not without a device"
        );
    });
}

/// A child connects and becomes an innocent program; its parent, which has the same socket, asks.
const PASSES: &str = r#"
import os, signal, socket, sys, time
path, victim, sends = sys.argv[1], sys.argv[2], sys.argv[3]
request = (b"GET /v1/secrets/shop/db/password HTTP/1.1\r\nHost: localhost\r\n"
           b"Doorward-Request: true\r\nConnection: close\r\n\r\n")
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
ready, told = os.pipe()
pid = os.fork()
if pid == 0:
    s.connect(path)
    if sends == "child":
        s.sendall(request)
    os.write(told, b"x")
    os.execv(victim, [victim, "60"])
os.read(ready, 1)
while os.path.realpath(f"/proc/{pid}/exe") != victim:
    time.sleep(0.005)
text = b""
try:
    if sends == "parent":
        s.sendall(request)
    while chunk := s.recv(65536):
        text += chunk
except OSError as error:
    text += repr(error).encode()
os.kill(pid, signal.SIGKILL)
sys.stdout.buffer.write(text)
"#;

fn passes(stage: &Stage, python: &Path, victim: &Path, sends: &str) -> String {
    let script = stage.dir().join("passes.py");
    std::fs::write(&script, PASSES).unwrap();
    let ran = Command::new(python)
        .arg("-I")
        .arg(&script)
        .args([stage.socket(), victim.to_owned()])
        .arg(sends)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

#[test]
fn a_socket_that_is_passed_on_before_its_owner_becomes_another_gives_nothing() {
    let Some(python) = outside("python3", "python3") else { return };
    let Some(sleep) = outside("sleep", "coreutils") else { return };
    let (python, sleep): (PathBuf, PathBuf) =
        (std::fs::canonicalize(python).unwrap(), std::fs::canonicalize(sleep).unwrap());
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let posture = stage.broker_dir().join("policies/posture.toml");
    let mut text = std::fs::read_to_string(&posture).unwrap();
    text.push_str("\n[profile.attested]\nextends = \"managed\"\nrequire = [{ fact = \"conn.colocated\", eq = true }]\n");
    std::fs::write(&posture, text).unwrap();
    let secret = random_text();
    stage.operator_must(&["put", "shop/db/password"], Some(secret.as_bytes())).unwrap();
    add_rows(
        &stage,
        "\n#@ owner=test\np, shop, spiffe://dev.doorward/*, secret/shop/**, read, attested, -, -, allow\n",
    );
    // The control: who is that program itself is served, through the agent, under the same profile.
    let own = stage.workload("own").unwrap();
    register(&stage, "own", &own);
    let get = || stage.as_workload(&own, &["get", "shop/db/password"]).unwrap();
    until(Duration::from_secs(40), get, |ran| ran.code == 0 && ran.stdout.contains(&secret));
    register(&stage, "sleeper", &sleep);
    let heard = || passes(&stage, &python, &sleep, "parent");
    // What is refused at first for want of the entry is refused for another reason once it is there.
    for _ in 0..5 {
        let answer = heard();
        assert!(!answer.contains("200 OK") && !answer.contains(&secret), "{answer}");
    }
}
