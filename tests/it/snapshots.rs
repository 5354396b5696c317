//! What people are told, word for word: failures first. Each snapshot is a file of
//! `tests/snapshots`; `UPDATE_SNAPSHOTS=1` writes them anew, and the review of the difference is the
//! review of the words.
//!
//! What differs from run to run (ids, times, ports, digests, paths) is replaced by its kind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use doorward::app::Stage;
use serde_json::Value;

use super::journey::program;
use super::scene::{add_rows, outside, random_text, register, until};

/// One command, told and compared.
struct Told {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Gathers every difference, so that one run shows them all.
struct Book {
    stage: Stage,
    written: BTreeSet<String>,
    wrong: Vec<String>,
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"))
}

/// Whether the text may stay from run to run: what a redaction replaces never is.
fn kind_of(word: &str) -> Option<&'static str> {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let shape: String =
        word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
    let uuid = word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    match word.len() {
        _ if uuid && word.split('-').all(hex) => Some("<id>"),
        20 if shape == "0000-00-00T00:00:00Z" => Some("<time>"),
        24 if shape == "0000-00-00T00:00:00.000Z" => Some("<time>"),
        64 if hex(word) => Some("<digest>"),
        32..=34 if hex(word) => Some("<serial>"),
        8 if hex(word) && !digits(word) && word.bytes().any(|b| b.is_ascii_digit()) => {
            Some("<digest>")
        }
        4 | 5 if digits(word) => Some("<number>"),
        _ => None,
    }
}

/// Replaces what differs from run to run.
fn redact(text: &str, paths: &[(&str, &str)]) -> String {
    let mut text = text.replace('\r', "");
    for (path, name) in paths {
        text = text.replace(path, name);
    }
    // Times hold colons, digests follow one: the parts of a word are tried after the whole of it.
    let mut out = String::new();
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.');
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_word(c) != is_word(first)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        if !is_word(first) {
            out.push_str(run);
            continue;
        }
        let bare = run.trim_end_matches(['.', ':']);
        let tail = &run[bare.len()..];
        match kind_of(bare) {
            Some(kind) => out.push_str(kind),
            None => {
                let parts: Vec<&str> = bare.split(':').collect();
                let parts = parts.iter().map(|part| {
                    let bare = part.trim_end_matches('.');
                    kind_of(bare)
                        .map_or((*part).to_owned(), |kind| kind.to_owned() + &part[bare.len()..])
                });
                out.push_str(&parts.collect::<Vec<_>>().join(":"));
            }
        }
        out.push_str(tail);
    }
    out.lines().map(|line| indexed(line.trim_end()) + "\n").collect()
}

/// How many records stood in the log before depends on what the machine did meanwhile.
fn indexed(line: &str) -> String {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match (
        line.trim_start().split_once(" <time> "),
        line.rsplit_once("the log holds records 0 to "),
    ) {
        (Some((index, rest)), _) if digits(index) => format!("<index> <time> {rest}"),
        (_, Some((before, last))) if digits(last) => {
            format!("{before}the log holds records 0 to <index>")
        }
        _ => line.to_owned(),
    }
}

impl Book {
    fn run(&self, program: &Path, args: &[&str], stdin: Option<&str>) -> Told {
        use std::io::Write as _;
        let mut child = Command::new(program)
            .args(args)
            .current_dir(self.stage.dir())
            .env_remove("DOORWARD_IDENTITY")
            .env_remove("DOORWARD_SOCKET")
            .env_remove("COLUMNS")
            .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            let _ = pipe.write_all(text.as_bytes());
        }
        let output = child.wait_with_output().unwrap();
        Told {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs `doorward` and compares all that it says.
    fn tell(&mut self, name: &str, args: &[&str]) -> Told {
        self.tell_with(name, args, None)
    }

    fn tell_with(&mut self, name: &str, args: &[&str], stdin: Option<&str>) -> Told {
        let told = self.run(&program(), args, stdin);
        self.compare_run(name, args, &told);
        told
    }

    /// The same as the operator.
    fn operator(&mut self, name: &str, args: &[&str]) -> Told {
        self.operator_with(name, args, None)
    }

    fn operator_with(&mut self, name: &str, args: &[&str], stdin: Option<&str>) -> Told {
        let identity = self.stage.operator_dir().display().to_string();
        let all: Vec<&str> =
            ["--identity", &identity].into_iter().chain(args.iter().copied()).collect();
        let told = self.run(&program(), &all, stdin);
        self.compare_run(name, args, &told);
        told
    }

    fn compare_run(&mut self, name: &str, args: &[&str], told: &Told) {
        let mut text = format!("$ doorward {}\nexit {}\n", args.join(" "), told.code);
        for (title, part) in [("stdout", &told.stdout), ("stderr", &told.stderr)] {
            if !part.is_empty() {
                text.push_str(&format!("--- {title}\n{part}"));
            }
        }
        self.compare(name, &text);
    }

    fn compare(&mut self, name: &str, text: &str) {
        let dir = self.stage.dir().display().to_string();
        let exe = program().display().to_string();
        let uid = format!("uid:{} ", nix::unistd::getuid());
        let text = redact(text, &[(&dir, "<stage>"), (&exe, "doorward"), (&uid, "uid:<uid> ")]);
        assert!(self.written.insert(name.to_owned()), "two snapshots are named {name}");
        let path = place(name);
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            return;
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        if want != text {
            self.wrong.push(format!("==== {name}: expected\n{want}---- got\n{text}"));
        }
    }

    /// A failure: its exit code, and the one shape that every failure has.
    fn fails(&mut self, name: &str, told: &Told, code: i32, has_request: bool) {
        let mut faults = Vec::new();
        if told.code != code {
            faults.push(format!("exit {} instead of {code}", told.code));
        }
        let lines: Vec<&str> = told.stderr.lines().collect();
        let begins = |word: &str| lines.iter().any(|line| line.starts_with(word));
        let last = lines.iter().rev().find(|line| line.starts_with("error: "));
        match last {
            None => faults.push("no line `error: …`".to_owned()),
            Some(line) => {
                let said = &line["error: ".len()..];
                if said.ends_with('.') || said.starts_with(|c: char| c.is_ascii_uppercase()) {
                    faults.push(format!("not lower case without a full stop: {said}"));
                }
            }
        }
        if !begins("cause: ") && !begins("hint: ") && lines.len() < 2 {
            faults.push("neither cause nor hint".to_owned());
        }
        if begins("request: ") != has_request {
            faults.push(format!("a request is{} told", if has_request { " not" } else { "" }));
        }
        if told.stderr.contains("panicked") || told.stderr.contains("Error {") {
            faults.push("the inside is shown".to_owned());
        }
        for fault in faults {
            self.wrong.push(format!("==== {name}: {fault}\n{}", told.stderr));
        }
    }

    fn end(mut self) {
        for entry in std::fs::read_dir(place("x").parent().unwrap()).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = name.strip_suffix(".txt").is_some_and(|name| self.written.contains(name));
            if !known && name != "get_to_a_terminal.txt" {
                self.wrong.push(format!("==== tests/snapshots/{name} belongs to no test"));
            }
        }
        assert!(
            self.wrong.is_empty(),
            "{}\n(UPDATE_SNAPSHOTS=1 cargo test --test it snapshots writes the snapshots anew)",
            self.wrong.join("\n")
        );
    }
}

#[test]
fn words_that_people_are_told() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    let mut book = Book { stage, written: BTreeSet::new(), wrong: Vec::new() };
    usage(&mut book);
    files(&mut book);
    enrolment(&mut book);
    refusals(&mut book);
    answers(&mut book);
    workload(&mut book);
    sealed(&mut book);
    unreachable(&mut book);
    book.end();
}

/// Failures that never reach a broker.
fn usage(book: &mut Book) {
    for (name, args) in [
        ("unknown_command", &["frobnicate"][..]),
        ("misspelt_command", &["lits", "shop"]),
        ("missing_command", &[]),
        ("missing_argument", &["put"]),
        ("bad_option_value", &["put", "shop/x", "--cas", "one"]),
        ("missing_identity", &["list", "shop"]),
        ("identity_not_there", &["--identity", "nowhere", "list", "shop"]),
        (
            "init_without_a_port",
            &["init", "new", "--trust-domain", "a.example", "--listen", "0.0.0.0:0"],
        ),
        ("run_without_a_secret", &["--socket", "s", "run", "--env", "PASSWORD", "--", "true"]),
    ] {
        let told = book.tell(name, args);
        book.fails(name, &told, 2, false);
    }
    for (name, args) in [
        ("wrong_name", &["get", "shop/../root"][..]),
        ("wrong_name_percent", &["get", "shop/%2e%2e/root"]),
        ("wrong_prefix", &["list", "shop//db"]),
        ("wrong_action", &["can-i", "raed", "secret/shop/x"]),
        ("wrong_request_id", &["explain", "yesterday"]),
        ("wrong_selector", &["entry", "create", "--id", "x", "--selector", "name:bash"]),
        ("empty_value", &["put", "shop/x"]),
    ] {
        let told = book.operator(name, args);
        book.fails(name, &told, 2, false);
    }
    let told = book.tell("usage_json", &["--json", "frobnicate"]);
    let fault: Value = serde_json::from_str(told.stderr.trim()).unwrap();
    assert_eq!((told.code, &fault["exit"]), (2, &Value::from(2)));
    let told = book.tell("help", &["--help"]);
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
}

/// Profiles with faults, cases that do not come out, explanations.
fn profiles(book: &mut Book) {
    let dir = book.stage.dir().to_owned();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "faulty/posture.toml",
        "[profile.hardened]\nextends = \"managd\"\nmax_age = \"1s\"\nmode = \"watch\"\n\
         require = [{ fact = \"kernel.lockdwn\", eq = \"integrity\" },\n\
         \x20 { fact = \"secureboot\", ge = 1 }, { fact = \"os.version\", in_refset = \"images\" },\n\
         \x20 { fact = \"workload.uid\", eq = 0 }, { not = [] }]\n\
         [profile.managed]\nrequire = []\n",
    );
    let posture = "[profile.managed]\nrequire = [{ fact = \"device.enrolled\", eq = true }]\n\
                   [profile.hardened]\nextends = \"managed\"\nmode = \"monitor\"\n\
                   require = [{ fact = \"net.listen_any\", eq = false }]\n";
    write("tried/posture.toml", posture);
    write(
        "tried/policy.csv",
        "p, read, spiffe://dev.doorward/a, secret/a/**, read, hardened, -, -, allow\n",
    );
    write(
        "tried/tests/posture.toml",
        "[[posture]]\nname = \"open\"\nfacts = { \"net.listen_any\" = true }\nheld = [\"hardened\"]\n\
         [[posture]]\nname = \"idle\"\nfacts = { \"swap.active\" = true }\nheld = [\"managed\"]\n",
    );
    write("tried.json", "{\"net.listen_any\":{\"v\":true,\"r\":\"kernel\"}}");
    for (name, args, code) in [
        ("bad_posture", &["posture", "check", "faulty"][..], 1),
        ("posture_not_there", &["posture", "check", "nowhere"], 1),
        ("posture_cases", &["posture", "test", "tried"], 1),
        (
            "posture_no_profile",
            &["posture", "explain", "hardend", "--policies", "tried", "--facts", "tried.json"],
            2,
        ),
        (
            "posture_no_age",
            &[
                "posture",
                "explain",
                "--policies",
                "tried",
                "--facts",
                "tried.json",
                "--age",
                "soon",
            ],
            2,
        ),
    ] {
        let told = book.tell(name, args);
        book.fails(name, &told, code, false);
    }
    let told = book.tell("posture_monitored", &["posture", "check", "tried"]);
    assert_eq!(told.code, 0);
    let args = ["posture", "explain", "hardened", "--policies", "tried", "--facts", "tried.json"];
    let told = book.tell("posture_explained", &args);
    assert_eq!(told.code, 0, "what only watches is held");
    let args = [&args[..], &["--age", "2m"]].concat();
    let told = book.tell("posture_silent", &args);
    book.fails("posture_silent", &told, 3, false);
    let told = book.operator("posture_of_no_device", &["posture", "explain", "--device", "ffff"]);
    book.fails("posture_of_no_device", &told, 1, false);
}

/// Files with faults: policies, configuration, imports.
fn files(book: &mut Book) {
    let dir = book.stage.dir().to_owned();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "bad/policy.csv",
        "p, one, spiffe://dev.doorward/a, secret/shop/**, raed, any, -, -, allow\n\
         p, two, spiffe://dev.doorward/a, secret/shop/**, read, managd, -, -, allow\n\
         p, two, spiffe://dev.doorward/b, secret/../x, read, any, -, -, Allow\n\
         p, four, group:nobody, secret/shop/**, read, any, 2027-01-01, -, allow\n\
         p, five, spiffe://dev.doorward/a, secret/shop/**\n",
    );
    let posture = "[profile.managed]\nmax_age = \"120s\"\n\
                   require = [{ fact = \"device.enrolled\", eq = true }]\n";
    write("bad/posture.toml", posture);
    write("profiles/policy.csv", "");
    write("profiles/posture.toml", "[profile.managed]\nmax_age = \"soon\"\nrequire = []\n");
    for (name, dir) in [("bad_policy", "bad"), ("bad_profiles", "profiles")] {
        let args = ["policy", "check", dir, "--trust-domain", "dev.doorward"];
        let told = book.tell(name, &args);
        book.fails(name, &told, 1, false);
    }
    let told = book.tell("policy_not_there", &["policy", "check", "nowhere"]);
    book.fails("policy_not_there", &told, 1, false);
    profiles(book);
    let told = book.operator("bad_policy_activated", &["policy", "activate", "bad"]);
    book.fails("bad_policy_activated", &told, 1, false);

    write(
        "bad.toml",
        "trust_domain = \"Corp Example\"\nlogg = true\n\n[listen]\nbroker = \"8443\"\n\
         management = \"0.0.0.0:8081\"\n\n[advertise]\nbroker = \"b.corp.example\"\n\n\
         [seal]\nkind = \"keyfile\"\n\n[limits]\ncaller_rate = \"many\"\n",
    );
    let told = book.tell("bad_config", &["config", "check", "bad.toml"]);
    book.fails("bad_config", &told, 1, false);

    let secret = random_text();
    write("bad.env", &format!("A=1\n{secret}\nB=\"{secret}\nA=2\n"));
    write("bad.yaml", "kind: ConfigMap\ndata: {a: b}\n");
    write("base64.yaml", "kind: Secret\ndata:\n  password: '***'\n");
    for (name, file) in
        [("bad_import", "bad.env"), ("import_kind", "bad.yaml"), ("import_base64", "base64.yaml")]
    {
        let told = book.operator(name, &["import", file, "--prefix", "shop/db"]);
        book.fails(name, &told, 1, false);
        assert!(!told.stderr.contains(&secret), "{}", told.stderr);
    }
}

/// Tokens that are wrong, or used up.
fn enrolment(book: &mut Book) {
    let into = "elsewhere";
    let login = ["login", "-", "--identity", into];
    let told = book.tell_with("wrong_token", &login, Some("hunter2"));
    book.fails("wrong_token", &told, 1, false);
    let used = std::fs::read_to_string(book.stage.dir().join("operator.token")).unwrap();
    let told = book.tell_with("token_reused", &login, Some(&used));
    book.fails("token_reused", &told, 3, true);
    let made = book.stage.operator_must(&["token", "create"], None).unwrap().json();
    let told = book.tell_with("token_of_a_device", &login, made["token"].as_str());
    book.fails("token_of_a_device", &told, 1, false);
    assert!(!book.stage.dir().join(into).join("svid.pem").exists(), "nobody was logged in");
}

/// Refusals by the broker.
fn refusals(book: &mut Book) {
    let stage = &book.stage;
    stage.operator_must(&["put", "shop/db/password"], Some(b"one")).unwrap();
    let told = book.operator("denied", &["get", "shop/db/password"]);
    book.fails("denied", &told, 3, true);
    let request = told.stderr.lines().find_map(|line| line.strip_prefix("request: ")).unwrap();
    let explained = book.operator("explain", &["explain", request]);
    assert_eq!(explained.code, 0);

    let cas = ["put", "shop/db/password", "--cas", "7"];
    let told = book.operator_with("conflict", &cas, Some("two"));
    book.fails("conflict", &told, 1, true);
    for (name, args, code) in [
        ("not_found", &["versions", "shop/db/nothing"][..], 1),
        ("version_not_found", &["activate", "shop/db/password", "9"], 1),
        ("name_equal_but_for_case", &["put", "shop/DB/password", "--generate", "16"], 1),
        ("request_not_found", &["explain", "01890000-0000-7000-8000-000000000000"], 1),
    ] {
        let told = book.operator(name, args);
        book.fails(name, &told, code, true);
    }
    for (name, args, code) in [
        ("device_not_found", &["device", "show", "ffff"][..], 1),
        ("record_not_found", &["log", "show", "99999999"], 1),
    ] {
        let told = book.operator(name, args);
        book.fails(name, &told, code, false);
    }
    let told = book.operator("may_not", &["can-i", "read", "secret/shop/db/password"]);
    book.fails("may_not", &told, 3, false);
}

/// What goes well.
fn answers(book: &mut Book) {
    book.stage
        .operator_must(&["put", "shop/db/password", "--label", "team=shop"], Some(b"two"))
        .unwrap();
    for (name, args) in [
        ("whoami", &["whoami"][..]),
        ("list", &["list", "shop"]),
        ("versions", &["versions", "shop/db/password"]),
        ("may", &["can-i", "write", "secret/shop/db/password"]),
    ] {
        let told = book.operator(name, args);
        assert_eq!((told.code, told.stderr.as_str()), (0, ""), "{name}");
    }
    let identity = book.stage.operator_dir().display().to_string();
    let line = |verdict: &str| -> String {
        let args = ["--identity", &identity, "log", "tail", "-n", "60"];
        let told = book.run(&program(), &args, None);
        let one = |line: &&str| line.contains(verdict) && line.contains("secret/shop/db/password");
        // The index depends on what else was recorded before.
        let line = told.stdout.lines().find(one).unwrap_or_else(|| panic!("{}", told.stdout));
        line.trim_start().split_once(' ').unwrap().1.to_owned() + "\n"
    };
    let text = [line(" allow "), line(" deny ")].concat();
    book.compare("log_lines", &text);

    let dir = book.stage.broker_dir().display().to_string();
    let args = ["--identity", &identity, "doctor", &dir, "--json"];
    let told = book.run(&program(), &args, None);
    let mut text = String::new();
    for line in told.stdout.lines() {
        let finding: Value = serde_json::from_str(line).unwrap();
        let mut keys: Vec<_> = finding.as_object().unwrap().keys().cloned().collect();
        // A remedy stands beside what is not as it should be, and only there.
        let good = finding["grade"] == "ok";
        assert_eq!(good, !keys.contains(&"remedy".to_owned()), "{finding}");
        keys.retain(|key| key != "remedy");
        let grades = ["ok", "warn", "fail"];
        assert!(grades.iter().any(|grade| finding["grade"] == *grade), "{finding}");
        text.push_str(&format!("{}: {}\n", finding["what"].as_str().unwrap(), keys.join(" ")));
    }
    book.compare("doctor_keys", &text);
}

/// What a workload is told, and that no secret goes to a terminal unasked.
fn workload(book: &mut Book) {
    let socket = book.stage.socket().display().to_string();
    let workload = book.stage.workload("shop-api").unwrap();
    let get = ["--socket", &socket, "get", "shop/db/password"];
    let told = book.run(&workload, &get, None);
    book.compare_run("no_identity", &get, &told);
    book.fails("no_identity", &told, 3, false);

    register(&book.stage, "shop-api", &workload);
    let told = until(
        Duration::from_secs(20),
        || {
            let told = book.run(&workload, &get, None);
            (told.code, told.stdout, told.stderr)
        },
        |(_, _, stderr)| stderr.contains("D101"),
    );
    let told = Told { code: told.0, stdout: told.1, stderr: told.2 };
    book.compare_run("denied_by_agent", &get, &told);
    book.fails("denied_by_agent", &told, 3, true);

    let secret = random_text();
    book.stage.operator_must(&["put", "shop/db/password"], Some(secret.as_bytes())).unwrap();
    add_rows(
        &book.stage,
        "\n#@ owner=shop\np, shop-api-reads, spiffe://dev.doorward/shop-api, secret/shop/**, read, \
         any, -, -, allow\n",
    );
    let told = book.run(&workload, &get, None);
    assert_eq!((told.code, told.stdout.as_str()), (0, secret.as_str()), "{}", told.stderr);
    let Some(script) = outside("script", "bsdutils") else { return };
    let line = format!("{} --socket {socket} get shop/db/password", workload.display());
    let shown = |line: &str| book.run(&script, &["-qec", line, "/dev/null"], None);
    let told = shown(&format!("{line} --show"));
    assert!(told.stdout.contains(&secret), "the positive control: {}", told.stdout);
    let mut told = shown(&line);
    assert!(!told.stdout.contains(&secret), "{}", told.stdout);
    // On a terminal both streams are one.
    told.stderr = std::mem::take(&mut told.stdout).replace('\r', "");
    book.compare_run("get_to_a_terminal", &get, &told);
    book.fails("get_to_a_terminal", &told, 2, false);
}

/// A broker that waits for its passphrase.
fn sealed(book: &mut Book) {
    let told = book.tell("unseal_key_file", &["unseal", "broker"]);
    book.fails("unseal_key_file", &told, 1, false);
    let told = book.tell("sealed_key_file", &["broker", "broker", "--sealed"]);
    book.fails("sealed_key_file", &told, 2, false);
    let free = || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().to_string()
    };
    #[rustfmt::skip]
    let args = [
        "init", "waiting", "--trust-domain", "dev.doorward", "--listen", &free(),
        "--listen-enrolment", &free(), "--management", "127.0.0.1:0", "--advertise", "127.0.0.1",
        "--token-file", "waiting.token", "--seal", "passphrase", "--passphrase-file", "-",
    ];
    assert_eq!(book.run(&program(), &args, Some("right")).code, 0);
    let unseal = ["unseal", "waiting", "--passphrase-file", "-"];
    let told = book.tell_with("unseal_nobody", &unseal, Some("right"));
    book.fails("unseal_nobody", &told, 4, false);

    let mut broker = Command::new(program())
        .args(["broker", "waiting"])
        .current_dir(book.stage.dir())
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let socket = book.stage.dir().join("waiting/admin.sock");
    let asked = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
    until(Duration::from_secs(20), asked, |open| *open);
    let told = book.tell("unseal_no_passphrase", &["unseal", "waiting"]);
    book.fails("unseal_no_passphrase", &told, 1, false);
    let told = book.tell_with("unseal_wrong", &unseal, Some("wrong"));
    book.fails("unseal_wrong", &told, 1, false);
    let told = book.tell_with("unsealed", &unseal, Some("right"));
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
    let told = book.tell_with("unsealed_already", &unseal, Some("right"));
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
    let _ = broker.kill();
    let _ = broker.wait();
}

/// Nobody there.
fn unreachable(book: &mut Book) {
    let told = book.tell("no_agent", &["--socket", "nowhere.sock", "get", "shop/db/password"]);
    book.fails("no_agent", &told, 4, false);
    let start = ["broker", "nowhere"];
    let told = book.tell("no_broker_directory", &start);
    book.fails("no_broker_directory", &told, 1, false);
    let told = book.tell("no_log_key", &["log", "verify", "nowhere/log"]);
    book.fails("no_log_key", &told, 2, false);
    book.stage.stop("agent");
    book.stage.stop("broker");
    let told = book.operator("no_broker", &["whoami"]);
    book.fails("no_broker", &told, 4, false);
}

#[test]
fn redaction_replaces_what_differs_and_nothing_else() {
    let digest = "ab".repeat(31) + "12";
    for (text, want) in [
        ("request: 01a20711-54db-7248-aa69-9a49b8052379", "request: <id>"),
        ("until     2026-11-23T18:21:44Z", "until     <time>"),
        ("at 2026-11-23T06:21:45.706Z.", "at <time>."),
        ("127.0.0.1:36511 in 10 seconds", "127.0.0.1:<number> in 10 seconds"),
        (&format!("(sha256:{digest})"), "(sha256:<digest>)"),
        ("bundle 1 (sha256:0217c12a..)", "bundle 1 (sha256:<digest>..)"),
        ("a file.toml:12:4: unknown key", "a file.toml:12:4: unknown key"),
        ("D101 no_allow, version 7, v1", "D101 no_allow, version 7, v1"),
        ("      16 2026-11-23T18:21:44Z deny", "<index> <time> deny"),
        ("hint: the log holds records 0 to 27", "hint: the log holds records 0 to <index>"),
        ("a directory of /x/y/z", "a directory of <there>/z"),
    ] {
        assert_eq!(redact(text, &[("/x/y", "<there>")]), format!("{want}\n"));
    }
}
