//! What is long or was left behind: lists over many pages, a ready file of a broker that was killed.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use doorward::app::Stage;

use crate::journey::program;

/// One `path` selector that JSON writes six times as long as it is.
fn path(n: usize) -> String {
    format!("path:/{n}/{}", "\u{1}".repeat(1000))
}

#[test]
fn entries_of_more_than_one_frame_are_listed_and_reach_the_agent() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    let count = 100; // of 12 KiB each
    for n in 0..count {
        let id = format!("/long/w{n}");
        let (one, two) = (path(2 * n), path(2 * n + 1));
        #[rustfmt::skip]
        let args = [
            "entry", "create", "--id", &id, "--class", "server", "--selector", "uid:4242",
            "--selector", &one, "--selector", &two,
        ];
        stage.operator_must(&args, None).unwrap();
    }
    let list = stage.operator_must(&["entry", "list"], None).unwrap();
    assert_eq!(list.stdout.lines().count(), count);
    let length = list.stdout.len();
    assert!(length > 1024 * 1024, "over one frame: {length} bytes");

    stage.start_agent().unwrap();
    let program = stage.workload("plain").unwrap();
    let id = "/long/plain";
    let selector = format!("path:{}", program.display());
    let uid = format!("uid:{}", nix::unistd::getuid());
    #[rustfmt::skip]
    let args = [
        "entry", "create", "--id", id, "--class", "server", "--selector", &uid,
        "--selector", &selector,
    ];
    stage.operator_must(&args, None).unwrap();
    let began = Instant::now();
    loop {
        // The agent takes new entries within seconds; before that it knows no such workload.
        let ran = stage.as_workload(&program, &["whoami"]).unwrap();
        if ran.code == 0 {
            assert!(ran.stdout.contains("/long/plain"), "{ran:?}");
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{ran:?}");
    }
}

#[test]
fn a_ready_file_left_behind_by_a_kill_keeps_no_broker_from_starting() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.stop("broker");
    let (dir, ready) = (stage.broker_dir(), stage.dir().join("left.ready"));
    std::fs::write(&ready, "left behind").unwrap();
    let mut broker = Command::new(program())
        .arg("broker")
        .arg(&dir)
        .arg("--ready-file")
        .arg(&ready)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let told = loop {
        let text = std::fs::read_to_string(&ready).unwrap();
        if text.contains("management") {
            break true;
        }
        if broker.try_wait().unwrap().is_some() || began.elapsed() > Duration::from_secs(60) {
            break false;
        }
    };
    let _ = broker.kill();
    let _ = broker.wait();
    assert!(told, "the broker did not start over the file that was left behind");
}

/// What passes the check is taken, and comes back whole: 5 MiB, more than any other body.
#[test]
fn a_large_policy_is_put_in_force_and_read_back() {
    let stage = Stage::with_program(program(), None).unwrap();
    let dir = stage.broker_dir().join("policies");
    let text = std::fs::read_to_string(dir.join("policy.csv")).unwrap();
    let remarks = format!("# {}\n", "r".repeat(1000)).repeat(5 * 1024);
    std::fs::write(dir.join("policy.csv"), format!("{text}{remarks}")).unwrap();
    let dir = dir.display().to_string();
    let checked = stage.run(&["policy", "check", &dir], None).unwrap();
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    let active = stage.operator_must(&["policy", "activate", &dir], None).unwrap().json();
    assert_eq!(checked.json()["digest"], active["digest"]);
    let shown = stage.operator_must(&["policy", "show"], None).unwrap().json();
    assert_eq!(shown["files"]["policy.csv"].as_str().unwrap().len(), text.len() + remarks.len());
}
