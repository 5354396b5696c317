//! Foreign bytes over a real connection: each gets its refusal, and the next good request on the
//! same connection its answer.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use doorward::agent::DeviceKey;
use doorward::app::Stage;
use doorward::authority::JoinToken;
use doorward::model::SystemClock;
use doorward::wire::{self, Credentials, Reply};
use futures_util::future::join_all;
use serde_json::Value;

use super::forge::{Conversation, End, address_of, frame, reason, reply, request, run, until};
use super::journey::program;

const WHOAMI: &str = r#"{"whoami":{}}"#;

async fn conversation(operator: &Credentials) -> Conversation {
    End::with(operator).knock(address_of(operator)).await.unwrap()
}

/// A good request on this connection has its answer.
async fn serves(conversation: &Conversation, after: &str) {
    let reply = conversation.ask(WHOAMI).await;
    assert!(matches!(reply, Ok(Reply::Answer { .. })), "after {after}: {reply:?}");
}

/// The vectors of docs/WIRE.md that a broker must refuse, as (file, bytes, code).
fn vectors() -> Vec<(String, Vec<u8>, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wire");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let about: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let Some(code) = about.pointer("/refuse/code").and_then(Value::as_str) else { continue };
        if about["reader"] == "request" {
            let text = std::fs::read_to_string(path.with_extension("hex")).unwrap();
            let digits: String = text.split_whitespace().collect();
            found.push((name, hex::decode(digits).unwrap(), code.to_owned()));
        }
    }
    found.sort();
    found
}

/// Frames that no vector has.
fn bad_frames() -> Vec<(String, Vec<u8>, &'static str)> {
    let mut all: Vec<(String, Vec<u8>, &'static str)> = Vec::new();
    let head = |text: &str| frame(text.as_bytes(), b"");
    let deep = |open: &str, count: usize, close: &str| {
        head(&format!("{{\"ask\":{}{}}}", open.repeat(count), close.repeat(count)))
    };
    all.push(("10,000 arrays that nobody closes".into(), deep("[", 10_000, ""), "D503"));
    all.push(("7,000 arrays".into(), deep("[", 7_000, "]"), "D503"));
    all.push(("2,000 objects".into(), deep("{\"a\":", 2_000, "}"), "D503"));
    all.push(("a head of 17 KiB".into(), head(&"x".repeat(17 * 1024)), "D504"));
    let lengths = |head: u32, body: u32| [head.to_be_bytes(), body.to_be_bytes()].concat();
    all.push(("two lengths of 4 GiB".into(), lengths(u32::MAX, u32::MAX), "D504"));
    all.push(("a head of 2 GiB".into(), lengths(1 << 31, 0), "D504"));
    let whoami = br#"{"ask":{"whoami":{}}}"#;
    let longer = u32::try_from(whoami.len() + 1).unwrap();
    let text = |length: u32, body: u32, rest: &[u8]| [&lengths(length, body)[..], rest].concat();
    all.push(("a head that is announced longer".into(), text(longer, 0, whoami), "D503"));
    all.push(("a head that is announced shorter".into(), text(longer - 2, 0, whoami), "D503"));
    let write = br#"{"ask":{"write":{"name":"shop/x"}}}"#;
    let length = u32::try_from(write.len()).unwrap();
    let with = |body: u32, bytes: &[u8]| text(length, body, &[&write[..], bytes].concat());
    all.push(("a body that is announced longer".into(), with(9, b"value"), "D503"));
    all.push(("a body that is announced shorter".into(), with(3, b"value"), "D503"));
    all.push(("a body over the limit of values".into(), with(65_537, b"value"), "D504"));
    all.push(("a million bytes of nothing".into(), vec![0; 1 << 20], "D503"));
    for json in [
        r#"{"ask":{"read":{"name":"shop/x"},"whoami":{}}}"#,
        r#"{"ask":{"whoami":{}},"ask":{"whoami":{}}}"#,
        r#"{"ask":{"whoami":{},"whoami":{}}}"#,
        r#"{"ask":{"become_root":{}}}"#,
        r#"{"ask":{"Whoami":{}}}"#,
        r#"{"ask":{"whoami":{"id":"spiffe://dev.doorward/doorward/broker"}}}"#,
        r#"{"ask":{"whoami":{}},"as":"spiffe://dev.doorward/doorward/broker"}"#,
        r#"{"ask":"whoami"}"#,
        r#"{"ask":{"whoami":null}}"#,
        r#"{"ask":null}"#,
        r#"{}"#,
        r#"[{"ask":{"whoami":{}}}]"#,
        r#""ask""#,
        r#"{"client":"","ask":{"whoami":{}}}"#,
        r#"{"client":7,"ask":{"whoami":{}}}"#,
        r#"{"ask":{"read":{"name":"shop/x","version":-1}}}"#,
        r#"{"ask":{"read":{"name":"shop/x","version":1e3}}}"#,
        r#"{"ask":{"read":{"name":"shop/x","version":18446744073709551616}}}"#,
        r#"{"ask":{"log_read":{"from":-1,"limit":1}}}"#,
        r#"{"ask":{"log_read":{"from":0,"limit":4294967296}}}"#,
        r#"{"ask":{"can_i":{"action":"Read","object":"policy"}}}"#,
        r#"{"ask":{"report":{"facts":"00"}}}"#,
        r#"{"ask":{"token_create":{"class":"a/b","ttl_s":60}}}"#,
        r#"{"ask":{"explain":{"request":"nonsense"}}}"#,
    ] {
        all.push((json.to_owned(), head(json), "D503"));
    }
    for name in bad_names() {
        let json = serde_json::json!({ "ask": { "read": { "name": name } } }).to_string();
        let shown: String = name.chars().take(30).collect();
        all.push((format!("read {shown:?}"), head(&json), "D503"));
        let json = serde_json::json!({ "ask": { "write": { "name": name } } }).to_string();
        all.push((format!("write {shown:?}"), frame(json.as_bytes(), b"value"), "D503"));
    }
    all
}

fn bad_names() -> Vec<String> {
    let plain = [
        "",
        "/",
        "shop",
        "shop/",
        "/shop/x",
        "shop//x",
        "shop/x/",
        "shop/../x",
        "shop/./x",
        "../x",
        "shop/..",
        "shop/x/..",
        "shop/%2e%2e/x",
        "shop/%2fx",
        "shop/x%00",
        "shop/x\0",
        "shop/\u{7}",
        "shop/x\n",
        "shop/x\r\ny",
        "shop/\u{1b}[31mx",
        "shop/\u{202e}x",
        "shop/e\u{301}",
        "shop/\u{e9}",
        "shop/x y",
        "shop\\x",
        "shop/x?y",
        "shop/x#y",
        "shop/x,y",
        "shop/x*",
        "shop/\u{ff0e}\u{ff0e}/x",
        " shop/x",
        "shop/x ",
    ];
    let mut all: Vec<String> = plain.iter().map(|&name| name.to_owned()).collect();
    all.push(format!("shop/{}", "a".repeat(4096)));
    all.push(format!("shop/{}", "a".repeat(129)));
    all.push(format!("shop{}", "/a".repeat(16)));
    all.push(["shop".to_owned(), vec!["a".repeat(100); 6].join("/")].join("/"));
    all
}

#[test]
fn every_bad_frame_has_its_refusal_and_the_connection_goes_on() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    let vectors = vectors();
    assert!(vectors.len() >= 15, "{}", vectors.len());
    run(async {
        let conversation = conversation(&operator).await;
        serves(&conversation, "nothing").await;
        let mut wrong = Vec::new();
        for (name, bytes, code) in vectors {
            let reply = conversation.say(&bytes).await;
            let found = match &reply {
                Ok(Reply::Refusal(refusal)) => refusal.code.as_str().to_owned(),
                other => format!("{other:?}"),
            };
            if found != code {
                wrong.push(format!("{name}: {found}, not {code}"));
            }
            serves(&conversation, &name).await;
        }
        for (name, bytes, code) in bad_frames() {
            let found = reason(&conversation.say(&bytes).await);
            if found != code {
                wrong.push(format!("{name}: {found}, not {code}"));
            }
            serves(&conversation, &name).await;
        }
        assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
    });
    let list = stage.operator_must(&["list", "shop"], None).unwrap();
    assert_eq!(list.stdout.trim(), "", "nothing of it was written");
    assert!(stage.metric("doorward_frames_refused_total").unwrap() >= 50.0);
}

/// What a refusal tells never holds what was sent as a value.
#[test]
fn no_refusal_repeats_a_value() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    run(async {
        let conversation = conversation(&operator).await;
        for json in [
            r#"{"ask":{"write":{"name":"shop/x","cas":"hunter2"}}}"#,
            r#"{"ask":{"write":{"name":"shop/x","labels":"hunter2"}}}"#,
            r#"{"ask":{"write":"hunter2"}}"#,
        ] {
            let reply = conversation.say(&frame(json.as_bytes(), b"hunter2")).await;
            assert_eq!(reason(&reply), "D503", "{json}");
            assert!(!format!("{reply:?}").contains("hunter2"), "{reply:?}");
        }
        serves(&conversation, "them").await;
    });
    let said = std::fs::read_to_string(stage.dir().join("broker.log")).unwrap();
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn whoever_never_ends_his_request_is_cut_off_and_holds_up_nobody() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    run(async {
        let conversation = conversation(&operator).await;
        let hang = async |bytes: Vec<u8>, drip: bool| {
            let (mut send, recv) = conversation.connection.open_bi().await.unwrap();
            send.write_all(&bytes).await.unwrap();
            let began = Instant::now();
            let dripping = async {
                // One byte now and then: alive, and never done.
                while drip && send.write_all(b"{").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                std::future::pending::<()>().await;
            };
            let reply = tokio::select! {
                reply = reply(recv) => reply,
                () = dripping => unreachable!(),
                () = tokio::time::sleep(Duration::from_secs(20)) => Err("no end".to_owned()),
            };
            (reply, began.elapsed())
        };
        let write = request(r#"{"write":{"name":"shop/x"}}"#, b"0123456789");
        let hanging = join_all([
            hang(Vec::new(), false),
            hang(vec![0, 0], false),
            hang(vec![0, 0, 0x10, 0, 0, 0, 0, 0], false),
            hang(vec![0, 0, 0x3f, 0, 0, 0, 0, 0, b'{'], true),
            hang(write[..write.len() - 3].to_vec(), false),
            hang(request(WHOAMI, b""), false),
        ]);
        let working = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..100 {
                let began = Instant::now();
                serves(&conversation, "them").await;
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            slowest
        };
        let (ended, slowest) = tokio::join!(hanging, working);
        for (case, (reply, took)) in ended.iter().enumerate() {
            assert_eq!(reason(reply), "D503", "case {case}: {reply:?}");
            assert!(*took >= Duration::from_secs(4), "case {case}: {took:?}");
        }
        assert!(slowest < Duration::from_secs(3), "{slowest:?}: others had to wait");
        serves(&conversation, "them").await;
    });
    let list = stage.operator_must(&["list", "shop"], None).unwrap();
    assert_eq!(list.stdout.trim(), "", "half a body is no value");
}

#[test]
fn two_hundred_streams_at_once_are_all_answered() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    run(async {
        let conversation = conversation(&operator).await;
        // A connection that proved nothing has little credit.
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(conversation.connection.open_bi().await.unwrap());
        }
        let wait = Duration::from_millis(300);
        let more = tokio::time::timeout(wait, conversation.connection.open_bi()).await;
        assert!(more.is_err(), "a seventeenth stream before the first answer");
        drop(held);
        serves(&conversation, "sixteen streams that said nothing").await;
        let replies = join_all((0..200).map(|_| conversation.ask(WHOAMI))).await;
        let bad: Vec<_> =
            replies.iter().filter(|r| !matches!(r, Ok(Reply::Answer { .. }))).collect();
        assert!(bad.is_empty(), "{} of 200, such as {:?}", bad.len(), bad.first());
    });
}

#[test]
fn streams_that_are_reset_leave_nothing_behind() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    run(async {
        let conversation = conversation(&operator).await;
        serves(&conversation, "nothing").await;
        let write = |n: usize| {
            let ask = format!(r#"{{"write":{{"name":"shop/n{n}"}}}}"#);
            request(&ask, b"0123456789")
        };
        for n in 0..300 {
            let (mut send, mut recv) = conversation.connection.open_bi().await.unwrap();
            let bytes = write(n);
            // Cut at every place in turn, the last one excepted.
            send.write_all(&bytes[..n % bytes.len()]).await.unwrap();
            let _ = send.reset(7u32.into());
            let _ = recv.stop(7u32.into());
        }
        serves(&conversation, "300 resets").await;
        // Whole requests whose answer nobody waits for are carried out all the same.
        for n in 1000..1010 {
            let (mut send, mut recv) = conversation.connection.open_bi().await.unwrap();
            send.write_all(&write(n)).await.unwrap();
            send.finish().unwrap();
            send.stopped().await.unwrap();
            let _ = recv.stop(7u32.into());
        }
        serves(&conversation, "answers that nobody wanted").await;
        let names = || {
            let list = stage.operator_must(&["list", "shop"], None).unwrap().stdout;
            list.lines().filter(|line| line.contains("shop/n")).count()
        };
        until("all ten were written", Duration::from_secs(10), || names() == 10).await;
    });
}

/// Children that are ended whatever happens.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn joining(dir: &Path, token: &str) -> Child {
    use std::io::Write as _;
    let mut child = Command::new(program())
        .args(["--json", "agent", "--dir", &dir.display().to_string(), "join", "-"])
        .args(["--listen", &dir.with_extension("sock").display().to_string(), "--name", "racer"])
        .env_remove("DOORWARD_IDENTITY")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    child
}

/// Enrols the key of a directory with a token, as no command does.
async fn enrolled_with(dir: &Path, token: &str) -> Result<wire::Enrolled, wire::ClientError> {
    let token = JoinToken::parse(token).unwrap();
    let (chain, key) = DeviceKey::open(dir).unwrap().self_signed().unwrap();
    let (place, domain, root) = (&token.enrolment, &token.domain, &[token.root]);
    wire::enroll(place, domain, root, chain, key, "thief", token.secret, Arc::new(SystemClock))
        .await
}

fn token(stage: &Stage) -> String {
    let made = stage.operator_must(&["token", "create", "--class", "server"], None).unwrap();
    made.json()["token"].as_str().unwrap().to_owned()
}

fn servers(stage: &Stage) -> usize {
    let listed = stage.operator_must(&["device", "list"], None).unwrap().stdout;
    listed.lines().filter(|line| line.contains("\"server\"")).count()
}

#[test]
fn of_sixteen_processes_with_one_token_exactly_one_joins() {
    let stage = Stage::with_program(program(), None).unwrap();
    for round in 0..2 {
        let token = token(&stage);
        let place = |n: usize| stage.dir().join(format!("racer-{round}-{n}"));
        let mut racers = Children((0..16).map(|n| joining(&place(n), &token)).collect());
        let ended: Vec<_> = racers.0.drain(..).map(|c| c.wait_with_output().unwrap()).collect();
        let won = ended.iter().filter(|output| output.status.success()).count();
        assert_eq!(won, 1, "{ended:?}");
        for (n, output) in ended.iter().enumerate() {
            let said = String::from_utf8_lossy(&output.stderr);
            let lost = !output.status.success();
            // Whoever comes at once finds the token spent while it redeems it; later ones are denied.
            let refused = said.contains("conflict") || said.contains("denied");
            assert!(!lost || refused, "{n}: {said}");
            assert_eq!(place(n).join("agent.toml").exists(), !lost, "{n}");
        }
        assert_eq!(servers(&stage), round + 1);
    }
}

#[test]
fn one_device_key_is_one_device() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    stage.start_agent().unwrap();
    assert_eq!(servers(&stage), 1);
    // A thief has the agent's directory, and even a token.
    let (own, copy) = (stage.dir().join("agent"), stage.dir().join("copy"));
    let copied = Command::new("cp").arg("-a").args([&own, &copy]).status().unwrap();
    assert!(copied.success());
    let token = token(&stage);
    let refused = run(enrolled_with(&copy, &token)).unwrap_err();
    assert!(refused.to_string().contains("conflict"), "{refused}");
    let output = joining(&copy, &token).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--replace"), "{said}");
    assert_eq!(servers(&stage), 1, "no second device of this key");
    // The token was not spent on it.
    let fresh = stage.dir().join("fresh");
    assert!(joining(&fresh, &token).wait_with_output().unwrap().status.success());
    assert_eq!(servers(&stage), 2);

    // Both run with one key: they are one device, and end as one.
    let text = std::fs::read_to_string(own.join("agent.toml")).unwrap();
    let socket = stage.socket().display().to_string();
    let other = stage.dir().join("copy.sock").display().to_string();
    assert!(text.contains(&socket), "{text}");
    std::fs::write(copy.join("agent.toml"), text.replace(&socket, &other)).unwrap();
    let log = std::fs::File::create(stage.dir().join("copy.log")).unwrap();
    let second = Command::new(program())
        .args(["agent", "--dir", &copy.display().to_string()])
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _second = Children(vec![second]);
    let copy_log = || std::fs::read_to_string(stage.dir().join("copy.log")).unwrap_or_default();
    let device = stage.device().unwrap();
    let id = device["id"].as_str().unwrap();
    run(async {
        let asks = |socket: &str| {
            let mut command = Command::new(program());
            command.args(["--json", "--socket", socket, "get", "shop/x"]);
            command.env_remove("DOORWARD_IDENTITY").output().unwrap()
        };
        let up = || Path::new(&other).exists();
        until(&format!("the copy runs: {}", copy_log()), Duration::from_secs(15), up).await;
        assert_eq!(servers(&stage), 2, "still the same devices");
        stage.operator_must(&["device", "revoke", id], None).unwrap();
        for socket in [&socket, &other] {
            let output = asks(socket);
            assert!(!output.status.success(), "{output:?}");
        }
        let shown = stage.operator_must(&["device", "list"], None).unwrap().stdout;
        let of_it = shown.lines().find(|line| line.contains(id)).unwrap();
        assert!(of_it.contains("\"revoked\":true"), "{of_it}");
    });
    let again = joining(&stage.dir().join("copy2"), "dw1.").wait_with_output().unwrap();
    assert!(!again.status.success());
}

/// The enrolment port takes nothing but enrolment.
#[test]
fn the_two_ports_do_not_serve_each_others_guests() {
    let stage = Stage::with_program(program(), None).unwrap();
    let operator = Credentials::load(&stage.operator_dir()).unwrap();
    let config = std::fs::read_to_string(stage.broker_dir().join("broker.toml")).unwrap();
    let config = doorward::app::BrokerConfig::parse("broker.toml", &config).unwrap();
    run(async {
        let applicant = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let chain = vec![super::forge::Draft::leaf("spiffe://x/y").self_signed(&key)];
            End { alpn: vec![wire::ALPN_ENROLL.to_vec()], ..End::of(chain, &key) }
        };
        let conversation = applicant().knock(config.enrolment).await.unwrap();
        for ask in [WHOAMI, r#"{"list":{"prefix":"shop"}}"#, r#"{"policy_rollback":{}}"#] {
            assert_eq!(reason(&conversation.ask(ask).await), "D101", "{ask}");
        }
        let enrol = r#"{"enroll":{"name":"x"}}"#;
        let guess = request(enrol, "A".repeat(43).as_bytes());
        assert_eq!(reason(&conversation.say(&guess).await), "D101", "a guessed secret");
        assert!(applicant().knock(config.listen).await.is_err(), "an applicant at the main port");
        let end = End { alpn: vec![wire::ALPN.to_vec()], ..End::with(&operator) };
        assert!(end.knock(config.enrolment).await.is_err(), "the main protocol at enrolment");
        let conversation = self::conversation(&operator).await;
        assert_eq!(reason(&conversation.ask(enrol).await), "D101", "enrolled already");
    });
}
