//! A join whose answer is lost on its way: the device is bound at the broker, and the machine comes
//! back with the key that it wrote down before. Nobody else does.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use doorward::app::{BrokerConfig, Ran, Stage};
use doorward::authority::JoinToken;
use serde_json::Value;

use super::granted::{of_op, records};
use super::journey::program;
use super::scene::until;

const MOST: Duration = Duration::from_secs(60);
/// Datagrams of a request's length: an acknowledgement is shorter, a probe of the path longer.
const REQUEST: std::ops::Range<usize> = 150..1100;

/// A way to the enrolment port on which answers get lost from the first request on.
struct Way {
    place: SocketAddr,
    cut: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Way {
    fn to(broker: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(broker).unwrap();
        let place = front.local_addr().unwrap();
        let (cut, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (client_front, client_back) = (front.try_clone().unwrap(), back.try_clone().unwrap());
        for socket in [&front, &back, &client_front, &client_back] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        }
        let from = Arc::new(std::sync::Mutex::new(None));
        let (known, is_cut, ended) = (from.clone(), cut.clone(), over.clone());
        std::thread::spawn(move || {
            let mut datagram = [0; 65_536];
            while !ended.load(Ordering::SeqCst) {
                let Ok((length, client)) = front.recv_from(&mut datagram) else { continue };
                *known.lock().unwrap() = Some(client);
                // A packet of the finished handshake that is long enough for a request.
                if datagram[0] & 0x80 == 0 && REQUEST.contains(&length) {
                    is_cut.store(true, Ordering::SeqCst);
                }
                let _ = back.send(&datagram[..length]);
            }
        });
        let (is_cut, ended) = (cut.clone(), over.clone());
        std::thread::spawn(move || {
            let mut datagram = [0; 65_536];
            while !ended.load(Ordering::SeqCst) {
                let Ok(length) = client_back.recv(&mut datagram) else { continue };
                let client = *from.lock().unwrap();
                if let Some(client) = client.filter(|_| !is_cut.load(Ordering::SeqCst)) {
                    let _ = client_front.send_to(&datagram[..length], client);
                }
            }
        });
        Self { place, cut, over }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn devices(stage: &Stage) -> Vec<Value> {
    let listed = stage.operator_must(&["device", "list"], None).unwrap().stdout;
    let all = listed.lines().map(|line| serde_json::from_str(line).unwrap());
    all.filter(|device: &Value| device["class"] == "server").collect()
}

struct Scene {
    stage: Stage,
    enrolment: SocketAddr,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::with_program(program(), None).unwrap();
        let text = std::fs::read_to_string(stage.broker_dir().join("broker.toml")).unwrap();
        let enrolment = BrokerConfig::parse("broker.toml", &text).unwrap().enrolment;
        Self { stage, enrolment }
    }

    fn token(&self) -> String {
        let made = self.stage.operator_must(&["token", "create"], None).unwrap().json();
        made["token"].as_str().unwrap().to_owned()
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.stage.dir().join(name)
    }

    fn args(&self, dir: &Path, token: &str) -> Vec<String> {
        let (dir, socket) = (dir.display().to_string(), self.stage.socket());
        let socket = socket.display().to_string();
        ["--json", "agent", "--dir", &dir, "join", token, "--listen", &socket, "--name", "lost"]
            .map(str::to_owned)
            .to_vec()
    }

    fn join(&self, dir: &Path, token: &str) -> Ran {
        let args = self.args(dir, token);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.stage.run(&args[1..], None).unwrap()
    }

    /// A join that hears no answer; ended once the broker knows the device.
    fn lost(&self, dir: &Path, token: &str) -> Value {
        let way = Way::to(self.enrolment);
        let parts = JoinToken::parse(token).unwrap();
        let through = JoinToken { enrolment: way.place.to_string(), ..parts };
        let text = String::from_utf8(through.text().unwrap().expose().to_vec()).unwrap();
        let before = devices(&self.stage).len();
        let mut joining = std::process::Command::new(program())
            .args(self.args(dir, &text))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let bound = until(MOST, || devices(&self.stage), |all| all.len() > before);
        assert!(way.cut.load(Ordering::SeqCst));
        end(&mut joining);
        bound.last().unwrap().clone()
    }
}

fn end(child: &mut Child) {
    assert!(child.try_wait().unwrap().is_none(), "it heard an answer");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn left(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".pem") || name.ends_with(".json"));
    names.sort();
    names
}

#[test]
fn the_same_machine_comes_back_and_nobody_else_does() {
    let scene = Scene::new();
    let (dir, token) = (scene.dir("machine"), scene.token());
    let bound = scene.lost(&dir, &token);
    let [key] = left(&dir).try_into().unwrap();
    assert!(key.starts_with("joining-"), "only the key of the join stands there: {key}");

    // The token is spent for everybody else, and for this machine without that key.
    let other = scene.join(&scene.dir("other"), &token);
    assert_ne!(other.code, 0, "{other:?}");
    let stolen = scene.dir("thief");
    let refused = scene.join(&stolen, &token);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert_eq!(devices(&scene.stage).len(), 1);

    let again = scene.join(&dir, &token);
    assert_eq!(again.code, 0, "{again:?}");
    let all = devices(&scene.stage);
    assert_eq!((all.len(), &all[0]["id"]), (1, &bound["id"]), "the very same device");
    assert_eq!(left(&dir), ["bundle.pem", "doorward.json", "key.pem", "svid.pem"]);
    // Each answer is a decision of its own.
    let records = records(&scene.stage);
    let enrolled = of_op(&records, "enroll");
    let allowed = enrolled.iter().filter(|it| it["dec"]["verdict"] == "allow");
    let servers = allowed.filter(|it| it["req"]["detail"]["name"] == "lost").count();
    assert_eq!(servers, 2, "{enrolled:?}");
    // Spent all the same.
    let third = scene.join(&scene.dir("third"), &token);
    assert_ne!(third.code, 0, "{third:?}");
}

#[test]
fn a_device_that_was_ended_meanwhile_does_not_come_back() {
    let scene = Scene::new();
    let (dir, token) = (scene.dir("machine"), scene.token());
    let bound = scene.lost(&dir, &token);
    let id = bound["id"].as_str().unwrap();
    scene.stage.operator_must(&["device", "revoke", id], None).unwrap();
    let refused = scene.join(&dir, &token);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(!dir.join("svid.pem").exists());
    // With a token of its own it is a new device.
    let fresh = scene.join(&dir, &scene.token());
    assert_eq!(fresh.code, 0, "{fresh:?}");
    assert_eq!(devices(&scene.stage).len(), 2);
    assert_eq!(left(&dir), ["bundle.pem", "doorward.json", "key.pem", "svid.pem"]);
}

#[test]
fn a_wrong_token_leaves_no_identity_and_what_it_leaves_goes_with_the_next_join() {
    let scene = Scene::new();
    let (dir, token) = (scene.dir("machine"), scene.token());
    assert_eq!(scene.join(&scene.dir("first"), &token).code, 0, "the positive control");
    for _ in 0..2 {
        let refused = scene.join(&dir, &token);
        assert_ne!(refused.code, 0, "{refused:?}");
        let [key] = left(&dir).try_into().unwrap();
        assert!(key.starts_with("joining-"), "{key}");
    }
    assert_eq!(scene.join(&dir, &scene.token()).code, 0);
    assert_eq!(left(&dir), ["bundle.pem", "doorward.json", "key.pem", "svid.pem"]);
    assert_eq!(devices(&scene.stage).len(), 2);
}
