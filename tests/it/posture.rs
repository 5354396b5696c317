//! `device facts` and `doorward posture` as they are typed, and every example of docs/POSTURE.md.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use doorward::app::Stage;
use doorward::model::limits;
use serde_json::Value;

use super::journey::program;
use super::scene::{add_rows, register, until};

const GUIDE: &str = include_str!("../../docs/POSTURE.md");
const TABLE: &str = include_str!("../../docs/POLICY.md");

fn doorward(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(args).current_dir(dir).env_remove("DOORWARD_IDENTITY");
    command.env_remove("DOORWARD_SOCKET").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The facts that a command printed, by name.
fn facts(output: &Output) -> BTreeMap<String, Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let one = |line: &str| -> (String, Value) {
        let fact: Value = serde_json::from_str(line).unwrap();
        (fact["name"].as_str().unwrap().to_owned(), fact)
    };
    lines.lines().map(one).collect()
}

/// Each object has exactly what it must have.
fn well_formed(facts: &BTreeMap<String, Value>) {
    for (name, fact) in facts {
        let keys: Vec<&str> = fact.as_object().unwrap().keys().map(String::as_str).collect();
        let known = ["age_ms", "name", "rank", "source", "value"];
        let unknown = ["age_ms", "name", "rank", "source", "unknown"];
        assert!(keys == known || keys == unknown, "{name}: {keys:?}");
        assert!(fact["age_ms"].as_u64().is_some_and(|age| age < 60_000), "{name}");
        assert!(
            ["external", "agent", "kernel"].contains(&fact["rank"].as_str().unwrap()),
            "{name}"
        );
        assert!(!fact["source"].as_str().unwrap().is_empty(), "{name}");
        if let Some(why) = fact.get("unknown") {
            let reasons = ["absent", "denied", "error", "broker"];
            assert!(reasons.contains(&why.as_str().unwrap()), "{name}: {why}");
        }
    }
}

#[test]
fn facts_of_this_machine_need_no_broker_and_say_why_they_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let told = facts(&doorward(dir.path(), &["--json", "device", "facts"]));
    assert!(told.len() >= 50, "{}", told.len());
    well_formed(&told);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(told["kernel.release"]["value"], release.trim());
    assert_eq!(told["device.enrolled"]["unknown"], "broker");
    let lockdown = std::fs::symlink_metadata("/sys/kernel/security/lockdown");
    if lockdown.is_err() {
        assert_eq!(told["kernel.lockdown"]["unknown"], "absent", "absent is not none");
    }
    let people = text(&doorward(dir.path(), &["device", "facts"]).stdout);
    assert_eq!(people.lines().count(), told.len() + 2, "a heading, and what it comes to");
    assert!(people.starts_with("fact ") && people.contains(" known"), "{people}");
}

#[test]
fn without_rights_more_is_unknown_and_nothing_is_guessed() {
    if !nix::unistd::geteuid().is_root() {
        return; // the test above was without rights
    }
    let dir = tempfile::tempdir().unwrap();
    let all = facts(&doorward(dir.path(), &["--json", "device", "facts"]));
    // The program's own place may be closed to others.
    let copy = dir.path().join("doorward");
    std::fs::copy(program(), &copy).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut command = Command::new(&copy);
    command.args(["--json", "device", "facts"]).current_dir("/").env_clear().uid(65534).gid(65534);
    let told = facts(&command.output().unwrap());
    well_formed(&told);
    assert_eq!(told.len(), all.len());
    let moving = [
        "boot.uptime_s",
        "time.max_error_ms",
        "ima.count",
        "net.listen_any",
        "net.listen_any_ports",
    ];
    for (name, fact) in told.iter().filter(|(name, _)| !moving.contains(&name.as_str())) {
        match fact.get("value") {
            Some(value) => assert_eq!(Some(value), all[name].get("value"), "{name}"),
            None if all[name].get("value").is_some() => {
                assert_eq!(fact["unknown"], "denied", "{name}")
            }
            None => {}
        }
    }
    assert_eq!(told["net.bpf_jit_harden"]["unknown"], "denied");
}

#[test]
fn facts_of_a_process_are_the_kernels_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let told = facts(&doorward(
        dir.path(),
        &["--json", "device", "facts", "--pid", &child.id().to_string()],
    ));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told.len() >= 25, "{}", told.len());
    well_formed(&told);
    assert_eq!(told["workload.pid"]["value"], child.id());
    assert_eq!(told["workload.uid"]["value"], nix::unistd::getuid().as_raw());
    assert!(
        told["workload.exe_path"]["value"].as_str().unwrap().ends_with("sleep")
            || told["workload.exe_path"]["value"].as_str().unwrap().contains("coreutils")
    );
    let gone = doorward(dir.path(), &["device", "facts", "--pid", &child.id().to_string()]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("hint: "), "{}", text(&gone.stderr));
}

#[test]
fn every_fact_stands_in_the_table_with_its_source() {
    for fact in doorward::app::device_facts() {
        let row = format!("| `{}` |", fact.name);
        let line = TABLE.lines().find(|line| line.starts_with(&row));
        let line = line.unwrap_or_else(|| panic!("docs/POLICY.md has no row for {}", fact.name));
        assert!(line.contains(fact.rank) && line.contains(fact.source), "{line}");
    }
}

/// The blocks of the guide: what stands behind the language, and their lines.
fn blocks() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found = Vec::new();
    let mut lines = GUIDE.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            found.push((kind, lines.by_ref().take_while(|line| *line != "```").collect()));
        }
    }
    found
}

#[test]
fn every_example_of_the_guide_runs_and_says_what_the_guide_says() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tests")).unwrap();
    std::fs::write(dir.path().join("policy.csv"), "").unwrap();
    let (mut files, mut commands, mut warned) = (0, 0, String::new());
    for (kind, lines) in blocks() {
        let (language, file) = kind.split_once(' ').unwrap_or((kind, ""));
        match language {
            "toml" | "json" => {
                std::fs::write(dir.path().join(file), lines.join("\n") + "\n").unwrap();
                files += 1;
            }
            "console" => {
                let typed = lines[0].strip_prefix("$ doorward ").unwrap();
                // `facts.json` is no file of a bundle: it waits elsewhere while the bundle is read.
                let hidden = dir.path().join(".facts.json");
                let shown = dir.path().join("facts.json");
                let hide = typed.starts_with("posture test");
                if hide && shown.exists() {
                    std::fs::rename(&shown, &hidden).unwrap();
                }
                let output = doorward(dir.path(), &typed.split(' ').collect::<Vec<_>>());
                if hide && hidden.exists() {
                    std::fs::rename(&hidden, &shown).unwrap();
                }
                let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
                assert_eq!(text(&output.stdout), lines[1..].join("\n") + "\n", "{typed}: {said}");
                warned += &text(&output.stderr);
                commands += 1;
            }
            "" => assert!(warned.contains(&lines.join("\n")), "{lines:#?} in {warned}"),
            other => panic!("nobody runs a block of {other:?}"),
        }
    }
    assert_eq!((files, commands), (3, 4));
}

#[test]
fn an_explanation_says_what_would_have_to_change_and_exits_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let posture = "[profile.booted]\nrequire = [{ fact = \"secureboot\", eq = true, min_rank = \"kernel\" }]\n";
    std::fs::write(dir.path().join("posture.toml"), posture).unwrap();
    let ask = |facts: &str, more: &[&str]| {
        std::fs::write(dir.path().join("facts"), facts).unwrap();
        let args = [
            "--json",
            "posture",
            "explain",
            "booted",
            "--policies",
            "posture.toml",
            "--facts",
            "facts",
        ];
        let output = doorward(dir.path(), &[&args, more].concat());
        let code = output.status.code().unwrap();
        (code, serde_json::from_str::<Value>(&text(&output.stdout)).unwrap_or_default())
    };
    let good = r#"{"secureboot":{"v":true,"r":"kernel"}}"#;
    let (code, one) = ask(good, &[]);
    assert_eq!((code, &one["result"]), (0, &Value::from("true")));
    let (code, one) = ask(good, &["--age", "61s"]);
    assert_eq!((code, &one["result"]), (3, &Value::from("unknown")));
    assert_eq!(one["requirements"][0]["max_age_s"], 60);
    let (code, one) = ask(&good.replace("kernel", "agent"), &[]);
    assert_eq!((code, &one["result"]), (3, &Value::from("unknown")));
    assert_eq!(one["requirements"][0]["mend"], "secureboot must be vouched for by kernel");
    let (code, one) = ask(r#"{"secureboot":{"u":"denied"}}"#, &[]);
    assert_eq!((code, &one["requirements"][0]["unknown"]), (3, &Value::from("denied")));
    let (code, _) = ask("nonsense", &[]);
    assert_eq!(code, 1);
    let told = doorward(dir.path(), &["--json", "device", "facts"]);
    let (code, one) = ask(&text(&told.stdout), &[]);
    assert!(matches!(code, 0 | 3), "what `device facts` prints is read");
    let here =
        doorward(dir.path(), &["--json", "posture", "explain", "--policies", "posture.toml"]);
    assert_eq!(here.status.code(), Some(0), "all profiles are told of, and none is asked for");
    let here: Value = serde_json::from_str(&text(&here.stdout)).unwrap();
    assert_eq!(here["result"], one["result"], "this machine without a file");
}

#[test]
fn a_trial_lets_pass_tells_of_it_and_refuses_once_it_is_enforced() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let api = stage.workload("api").unwrap();
    register(&stage, "api", &api);
    stage.operator_must(&["put", "shop/x"], Some(b"value")).unwrap();
    // No device is of this version, so what the trial adds is met by nobody.
    let trial = |mode: &str| {
        let file = stage.broker_dir().join("policies/posture.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("\n[profile.trial]").next().unwrap().to_owned();
        let profile = format!(
            "{text}\n[profile.trial]\nextends = \"managed\"\nmode = \"{mode}\"\n\
             require = [{{ fact = \"os.version\", in_refset = \"none\" }}]\n\
             [refset.none]\nvalues = [{{ value = \"no such version\", label = \"none\" }}]\n"
        );
        std::fs::write(&file, profile).unwrap();
    };
    trial("monitor");
    add_rows(
        &stage,
        "\np, api-reads, spiffe://dev.doorward/api, secret/shop/x, read, trial, -, -, allow\n",
    );
    let get = || stage.as_workload(&api, &["get", "shop/x"]).unwrap();
    let within = 2 * limits::IDLE_TIMEOUT;
    until(within, get, |ran| ran.code == 0);
    let tail = stage.operator_must(&["log", "tail", "-n", "200"], None).unwrap();
    let would_deny = |line: &&str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let record = record.get("record").cloned().unwrap_or(record);
        let read = record.pointer("/req/obj") == Some(&Value::from("secret/shop/x"));
        read && record.pointer("/dev/would_deny/0") == Some(&Value::from("trial"))
    };
    assert_eq!(tail.stdout.lines().filter(would_deny).count(), 1, "{}", tail.stdout);
    let dir = stage.broker_dir().join("policies").display().to_string();
    let told = stage.operator_must(&["policy", "activate", &dir], None).unwrap();
    assert!(told.stderr.contains("row `api-reads` names `trial`, which only watches"), "{told:?}");

    let device = stage.device().unwrap()["id"].as_str().unwrap().to_owned();
    let why = |code| {
        let args = ["posture", "explain", "trial", "--device", &device];
        let told = stage.operator(&args, None).unwrap();
        assert_eq!(told.code, code, "{told:?}");
        serde_json::from_str::<Value>(&told.stdout).unwrap()
    };
    let held = why(0);
    assert_eq!((&held["would_deny"], &held["meets"]), (&Value::from(true), &Value::from("false")));
    assert!(held["age_ms"].as_u64().is_some_and(|age| age < 120_000));

    trial("enforce");
    stage.operator_must(&["policy", "activate", &dir], None).unwrap();
    let refused = until(within, get, |ran| ran.code != 0);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert_eq!(why(3)["would_deny"], Value::from(false));
}
