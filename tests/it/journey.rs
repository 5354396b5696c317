//! The whole path as its users walk it: real processes, real QUIC, real files.

use std::path::PathBuf;
use std::process::Command;

use doorward::app::Stage;
use serde_json::Value;

/// The program under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_doorward"))
}

#[test]
fn the_demo_tells_the_truth() {
    let output = Command::new(program()).args(["demo", "--json"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let steps: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for step in &steps {
        assert_eq!(step["ok"], true, "{step}");
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(steps.len() >= 12, "only {} steps:\n{text}\n{errors}", steps.len());
}

/// One broker and agent; every command that an operator and a workload type, with the failures.
#[test]
fn an_operators_and_a_workloads_day() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    secrets(&stage);
    failures(&stage);
    people(&stage);
    restart(&mut stage);
}

fn secrets(stage: &Stage) {
    let put = stage.operator_must(&["put", "shop/db/password"], Some(b"one\n")).unwrap().json();
    assert_eq!(put["version"], 1);
    let put = stage
        .operator_must(
            &["put", "shop/db/password", "--cas", "1", "--label", "team=shop"],
            Some(b"two"),
        )
        .unwrap();
    assert_eq!(put.json()["version"], 2);
    let ran = stage.operator(&["put", "shop/db/password", "--cas", "1"], Some(b"three")).unwrap();
    assert_eq!(
        (ran.code, ran.fault()["error"].as_str().unwrap()),
        (1, "refused as a conflict by the broker")
    );
    let list = stage.operator_must(&["list", "shop"], None).unwrap().json();
    assert_eq!(list["name"], "shop/db/password");
    assert_eq!(list["active"], 2);
    assert_eq!(list["labels"]["team"], "shop");
    let versions = stage.operator_must(&["versions", "shop/db/password"], None).unwrap();
    assert_eq!(versions.stdout.lines().count(), 2);
    stage.operator_must(&["activate", "shop/db/password", "1"], None).unwrap();
    stage.operator_must(&["delete", "shop/db/password"], None).unwrap();
    stage.operator_must(&["undelete", "shop/db/password"], None).unwrap();
    stage.operator_must(&["label", "shop/db/password", "team=pay"], None).unwrap();
    let ran = stage.operator(&["get", "shop/db/password"], None).unwrap();
    assert_eq!(ran.code, 3, "operators may do everything but read: {ran:?}");
}

fn failures(stage: &Stage) {
    for (args, code) in [
        (vec!["get", "shop/../x"], 2),
        (vec!["put", "shop//x"], 2),
        (vec!["get", "shop/%2e"], 2),
        (vec!["explain", "nonsense"], 2),
        (vec!["explain", "0192a0b0-0000-7000-8000-000000000000"], 1),
        (vec!["entry", "create", "--id", "x", "--selector", "path:/bin/x"], 2),
        (vec!["entry", "create", "--id", "doorward/broker", "--selector", "uid:0"], 2),
        (vec!["can-i", "raed", "secret/shop/x"], 2),
        (vec!["can-i", "read", "secret/shop/x"], 3),
        (vec!["device", "show", "ffffffff"], 1),
    ] {
        let ran = stage.operator(&args, Some(b"x")).unwrap();
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        assert!(ran.fault()["error"].is_string(), "{args:?}: {ran:?}");
    }
    let ran = stage.operator(&["put", "Shop/db/password"], Some(b"x")).unwrap();
    assert_eq!(ran.code, 1, "a namespace equal but for case: {ran:?}");
    let ran = stage.operator(&["put", "shop/DB/password"], Some(b"x")).unwrap();
    assert_eq!(ran.code, 1, "equal but for case: {ran:?}");
    let big = vec![b'x'; 64 * 1024 + 1];
    let ran = stage.operator(&["put", "shop/big"], Some(&big)).unwrap();
    assert_eq!(ran.code, 2, "{ran:?}");
}

fn people(stage: &Stage) {
    let added = stage.operator_must(&["operator", "add", "second"], None).unwrap().json();
    let token = added["token"].as_str().unwrap().to_owned();
    let dir = stage.dir().join("second").display().to_string();
    let login = ["login", "-", "--identity", dir.as_str()];
    let ran = stage.run(&login, Some(token.as_bytes())).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    let again = stage.dir().join("third").display().to_string();
    let ran = stage.run(&["login", "-", "--identity", &again], Some(token.as_bytes())).unwrap();
    assert_ne!(ran.code, 0, "a token is redeemed once: {ran:?}");
    let ran = stage.run(&["--identity", &dir, "whoami"], None).unwrap();
    assert_eq!(ran.json()["spiffe_id"], "spiffe://dev.doorward/doorward/operator/second");
    stage.operator_must(&["operator", "remove", "second"], None).unwrap();
    let ran = stage.run(&["--identity", &dir, "whoami"], None).unwrap();
    assert_ne!(ran.code, 0, "removed operators are nobody: {ran:?}");
}

/// What was acknowledged is there after a stop and a start, and the log is whole.
fn restart(stage: &mut Stage) {
    stage.stop("broker");
    let log = stage.broker_dir().join("log").display().to_string();
    let ran = stage.run(&["log", "verify", &log], None).unwrap();
    assert_eq!(ran.code, 0, "{ran:?}");
    stage.start_broker().unwrap();
    let list = stage.operator_must(&["list", "shop"], None).unwrap();
    assert!(list.stdout.contains("shop/db/password"), "{list:?}");
}
