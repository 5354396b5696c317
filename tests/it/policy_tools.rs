//! `doorward policy test`, `lint`, `who-can`, `what-can` and `diff` as they are typed.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::journey::program;

const READS: &str = "p, pay-api, spiffe://corp.example/ns/pay/sa/api, secret/pay/**, read, managed, -, \
                     2027-01-01T00:00:00Z, allow\n";
const NOT_ROOT: &str =
    "p, no-root, spiffe://corp.example/ns/**, secret/pay/root, *, any, -, -, deny\n";

/// A directory with the default policies and these rows.
fn policies(above: &Path, name: &str, rows: &str) {
    let dir = above.join(name);
    std::fs::create_dir_all(dir.join("tests")).unwrap();
    for file in ["policy.csv", "posture.toml", "tests/basic.toml"] {
        let mut text = std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(file),
        )
        .unwrap();
        if file == "policy.csv" {
            text.push_str(rows);
        }
        std::fs::write(dir.join(file), text).unwrap();
    }
}

fn policy(dir: &Path, args: &[&str]) -> Output {
    Command::new(program()).arg("policy").args(args).current_dir(dir).output().unwrap()
}

/// The objects that a command with `--json` printed.
fn told(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn error(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_change_is_told_by_what_it_gives_and_takes() {
    let dir = tempfile::tempdir().unwrap();
    policies(dir.path(), "before", "");
    policies(dir.path(), "after", &format!("{READS}{NOT_ROOT}"));
    policies(dir.path(), "same", "# another comment\n");

    let diff = policy(dir.path(), &["diff", "before", "after", "--json", "--no-new-access"]);
    assert_eq!(diff.status.code(), Some(1), "{}", error(&diff));
    let gained = told(&diff);
    assert!(!gained.is_empty());
    for part in &gained {
        assert_eq!((&part["change"], &part["row"]), (&"gained".into(), &"pay-api".into()));
        assert_eq!(part["act"], serde_json::json!(["read"]));
        assert_eq!(part["posture"], "managed");
        assert_ne!(part["example"]["obj"], "secret/pay/root", "a deny takes that one away");
    }
    let back = policy(dir.path(), &["diff", "after", "before", "--json", "--no-new-access"]);
    assert!(back.status.success(), "taking away is no new access: {}", error(&back));
    assert!(told(&back).iter().all(|part| part["change"] == "lost"));
    let same = policy(dir.path(), &["diff", "before", "same", "--no-new-access"]);
    assert!(same.status.success());
    assert_eq!(String::from_utf8_lossy(&same.stdout), "the rows give the same\n");

    // A profile that asks for less is new access too, though no row says so.
    let posture = dir.path().join("same/posture.toml");
    let text = std::fs::read_to_string(&posture).unwrap();
    std::fs::write(&posture, text.replace("\"120s\"", "\"121s\"")).unwrap();
    let eased = policy(dir.path(), &["diff", "before", "same", "--no-new-access"]);
    assert_eq!(eased.status.code(), Some(1));
    let said = String::from_utf8_lossy(&eased.stdout).into_owned();
    assert!(said.contains("! profile managed") && said.contains("! profile hardened"), "{said}");
}

#[test]
fn who_can_and_what_can_answer_over_all_requests() {
    let dir = tempfile::tempdir().unwrap();
    policies(dir.path(), "policies", &format!("{READS}{NOT_ROOT}"));
    let who = policy(dir.path(), &["who-can", "read", "secret/pay/db", "--json"]);
    let found = told(&who);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["sub"], "spiffe://corp.example/ns/pay/sa/api");
    assert_eq!(found[0]["window"], "until 2027-01-01T00:00:00Z");
    let nobody = policy(dir.path(), &["who-can", "read", "secret/pay/root"]);
    assert_eq!(String::from_utf8_lossy(&nobody.stdout), "nobody, as far as rows say\n");
    let what = told(&policy(dir.path(), &["what-can", "group:agents", "--json"]));
    assert!(what.iter().all(|part| part["row"] == "agents-issue"), "{what:?}");
    for args in [
        &["who-can", "raed", "secret/pay/db"][..],
        &["who-can", "read", "secrets/pay/db"],
        &["what-can", "group:nobody"],
        &["what-can", "spiffe://*/a"],
    ] {
        assert_eq!(policy(dir.path(), args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn rows_that_may_not_be_meant_so_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let many = "p, again, spiffe://corp.example/ns/pay/sa/api, secret/pay/db, read, managed, -, \
                2027-01-01T00:00:00Z, allow\n\
                p, over, spiffe://corp.example/ns/x, secret/x/a, read, managed, -, \
                2020-01-01T00:00:00Z, allow\n\
                p, anywhere, spiffe://corp.example/**, secret/open/**, read, any, -, -, allow\n\
                p, partner, spiffe://partner.example/ns/a, secret/shared/**, read, managed, -, -, allow\n";
    policies(dir.path(), "policies", &format!("{READS}{many}"));
    let lint = policy(dir.path(), &["lint", "--json"]);
    assert_eq!(lint.status.code(), Some(1));
    let found = told(&lint);
    let mut pairs: Vec<(String, String)> = found
        .iter()
        .filter(|it| it.get("rule").is_some())
        .map(|it| (it["row"].as_str().unwrap().into(), it["rule"].as_str().unwrap().into()))
        .collect();
    pairs.sort();
    let want = [
        ("again", "no_effect"),
        ("anywhere", "any_posture"),
        ("anywhere", "whole_domain"),
        ("over", "ended"),
        ("partner", "other_domain"),
    ];
    assert_eq!(pairs, want.map(|(row, rule)| (row.to_owned(), rule.to_owned())));
    policies(dir.path(), "clean", "");
    assert!(policy(dir.path(), &["lint", "clean"]).status.success());
}

#[test]
fn a_claim_that_does_not_hold_stops_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    policies(dir.path(), "policies", READS);
    let claims = dir.path().join("policies/tests/claims.toml");
    let claim = |sub: &str| {
        format!(
            "[[never]]\nname = \"root is nobody's\"\nsub = {sub:?}\nobj = \"secret/pay/root\"\nact = \"read\"\n"
        )
    };
    std::fs::write(&claims, claim("spiffe://corp.example/ns/shop/**")).unwrap();
    let holds = policy(dir.path(), &["test"]);
    assert!(holds.status.success(), "{}", error(&holds));
    std::fs::write(&claims, claim("spiffe://corp.example/ns/**")).unwrap();
    for verb in ["test", "check"] {
        let broken = policy(dir.path(), &[verb]);
        assert_eq!(broken.status.code(), Some(1));
        let said = error(&broken);
        assert!(said.contains("does not hold") && said.contains("(row pay-api)"), "{said}");
    }
}
