//! The house rules that a machine can see: which room may import which, which crate stands in which
//! file, who may spawn, who may make a broker's peer. A new arrow is a change to a table here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The import table of docs/ARCHITECTURE.md: a room, and the rooms that it may name.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("identity", &["model"]),
    ("posture", &["model"]),
    ("policy", &["model", "identity", "posture"]),
    ("wire", &["model", "identity", "posture"]),
    ("decision_log", &["model", "identity", "posture", "policy"]),
    ("store", &["model"]),
    ("vault", &["model", "identity", "store", "decision_log"]),
    ("authority", &["model", "identity", "posture", "policy", "store", "decision_log"]),
    ("administration", &["model", "identity", "posture", "policy", "store", "decision_log"]),
    ("agent", &["model", "identity", "posture", "wire"]),
    (
        "broker",
        &[
            "model",
            "identity",
            "posture",
            "policy",
            "wire",
            "decision_log",
            "store",
            "vault",
            "authority",
            "administration",
        ],
    ),
    (
        "app",
        &[
            "model",
            "identity",
            "posture",
            "policy",
            "wire",
            "decision_log",
            "store",
            "vault",
            "authority",
            "administration",
            "agent",
            "broker",
        ],
    ),
    ("cli", &["app", "wire", "decision_log", "policy", "model"]),
];

/// A crate, and the only places (path prefixes below `src`) that may name it outside tests.
const FENCES: &[(&str, &[&str])] = &[
    ("casbin", &["policy/engine.rs"]),
    ("quinn", &["wire/", "broker/listener.rs", "broker/listener/"]),
    ("rcgen", &["authority/", "agent/keys.rs"]),
    ("redb", &["store/redb_store.rs", "store/redb_error.rs"]),
    ("axum", &["app/management.rs", "agent/http.rs", "agent/http/"]),
    ("tonic", &["agent/workload_api/", "agent/cri.rs"]),
    ("prost", &["agent/workload_api/", "agent/cri.rs"]),
    ("h2", &["agent/cri.rs"]),
    ("http_body", &["agent/workload_api/"]),
    ("clap", &["cli/"]),
    ("clap_complete", &["cli/"]),
    ("prometheus_client", &["broker/metrics.rs"]),
    ("serde_saphyr", &["cli/import.rs"]),
    ("rpassword", &["app/seal_source.rs"]),
];

/// Words that only one place may say.
const WORDS: &[(&str, &[&str])] = &[
    ("tokio::spawn", &["app/supervise.rs"]),
    ("Peer::broker(", &["app/supervise.rs"]),
    ("SystemTime::now", &[]),
    ("now_utc", &["model/clock.rs"]),
    ("ServerConfig::with_single_cert", &[]),
    ("CachedEnforcer", &[]),
    ("FileAdapter", &[]),
    ("StringAdapter", &[]),
    ("openssl", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Files that only tests are built from: declared as `#[cfg(test)] mod name;`.
fn only_for_tests() -> Vec<String> {
    let mut paths = Vec::new();
    sources(&root(), &mut paths);
    let mut found = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let dir = path.strip_prefix(root()).unwrap().parent().unwrap().to_path_buf();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let below = if matches!(stem.as_str(), "mod" | "lib") { dir } else { dir.join(stem) };
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let next = lines.peek().map_or("", |next| next.trim());
            let declared = next.strip_suffix(';').and_then(|next| next.rsplit_once("mod "));
            if line.trim() == "#[cfg(test)]"
                && let Some((_, name)) = declared
            {
                found.push(below.join(format!("{name}.rs")).display().to_string());
            }
        }
    }
    assert!(found.iter().any(|name| name == "identity/vectors.rs"), "{found:?}");
    found
}

/// Every source file: its path below `src`, and its text without comments and test modules.
fn files() -> BTreeMap<String, String> {
    let mut paths = Vec::new();
    sources(&root(), &mut paths);
    let of_tests = only_for_tests();
    let mut files = BTreeMap::new();
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        if of_tests.contains(&name) {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
        let lines = code.lines().map(|line| match line.trim_start().starts_with("//") {
            true => "",
            false => line,
        });
        files.insert(name, lines.collect::<Vec<_>>().join("\n"));
    }
    files
}

fn room_of(name: &str) -> &str {
    name.split('/').next().unwrap_or("")
}

/// Rooms named as `crate::<room>`, also inside `use crate::{…}` of one line.
fn named_rooms(code: &str) -> Vec<String> {
    let mut named = Vec::new();
    for part in code.split("crate::").skip(1) {
        let room: String =
            part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        if ROOMS.iter().any(|(name, _)| *name == room) {
            named.push(room);
        }
    }
    named
}

#[test]
fn rooms_import_only_what_stands_below_them() {
    let mut wrong = Vec::new();
    for (name, code) in files() {
        let room = room_of(&name);
        let Some((_, allowed)) = ROOMS.iter().find(|(known, _)| *known == room) else {
            assert!(matches!(name.as_str(), "main.rs" | "lib.rs"), "{name} is in no known room");
            continue;
        };
        for named in named_rooms(&code) {
            if named != room && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{name} names {named}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the table does not know:\n{}", wrong.join("\n"));
}

#[test]
fn the_import_table_has_no_circle() {
    for (at, (room, allowed)) in ROOMS.iter().enumerate() {
        for below in *allowed {
            let place = ROOMS.iter().position(|(name, _)| name == below);
            // cli names app, which stands just before it; every arrow points up the table.
            assert!(
                place.is_some_and(|place| place < at),
                "{room} -> {below} points down the table"
            );
        }
    }
}

#[test]
fn crates_stay_in_their_files() {
    let mut wrong = Vec::new();
    for (name, code) in files() {
        for (fenced, places) in FENCES {
            let uses = [format!("use {fenced}::"), format!("{fenced}::"), format!("use {fenced};")];
            let names = |line: &str| {
                uses.iter().any(|u| {
                    line.find(u.as_str()).is_some_and(|at| {
                        let before = line[..at].chars().next_back();
                        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                    })
                })
            };
            if code.lines().any(names) && !places.iter().any(|place| name.starts_with(place)) {
                wrong.push(format!("{name} names the crate {fenced}"));
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside their fence:\n{}", wrong.join("\n"));
}

#[test]
fn some_words_have_one_place() {
    let mut wrong = Vec::new();
    for (name, code) in files() {
        for (word, places) in WORDS {
            if code.contains(word) && !places.iter().any(|place| name.starts_with(place)) {
                wrong.push(format!("{name} says {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "words outside their place:\n{}", wrong.join("\n"));
}

#[test]
fn files_open_with_their_purpose_and_stay_readable() {
    let (mut wrong, of_tests) = (Vec::new(), only_for_tests());
    let mut paths = Vec::new();
    sources(&root(), &mut paths);
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if !text.trim_start().starts_with("//!") {
            wrong.push(format!("{name} opens without saying what it is for"));
        }
        let body = text.split("#[cfg(test)]\nmod ").next().unwrap_or("").lines().count();
        if body > 400 && !of_tests.contains(&name) {
            wrong.push(format!("{name} has {body} lines without its tests"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
