//! Becoming a device by a certificate or a pod's token, over real connections: what holds makes a
//! device that works, once; what does not is denied alike, and told in the log.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doorward::agent::DeviceKey;
use doorward::app::{BrokerConfig, Ran, Stage};
use doorward::identity::{DeviceProof, device_statement};
use doorward::model::{Clock, Code, Digest, SystemClock};
use doorward::wire::{self, ClientError, DeviceCertificate, Reply, Shows};
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::forge::{Conversation, Der, Draft, End, Signer, domain, reason, request, run};
use super::granted::{of_op, records};
use super::journey::program;
use super::scene::{add_rows, register, traces, until};
use super::vectors::token_draft::{TokenKey, base64url};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// An agent that starts beside other tests.
const SLOW: Duration = Duration::from_secs(60);

/// A broker that takes certificates of one fleet and pods of one cluster.
struct Scene {
    stage: Stage,
    fleet: Signer,
    cluster: TokenKey,
    enrolment: SocketAddr,
    broker: String,
    root: Digest,
}

impl Scene {
    fn new() -> Self {
        let mut stage = Stage::with_program(program(), None).unwrap();
        let (fleet, cluster) = (fleet(), TokenKey::new("k1", "RS256"));
        let dir = stage.broker_dir();
        std::fs::write(dir.join("fleet.pem"), pem(std::slice::from_ref(&fleet.certificate)))
            .unwrap();
        let mut jwk = cluster.jwk();
        (jwk["use"], jwk["alg"]) = (json!("sig"), json!("RS256"));
        let later = json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "k2", "pub": "AA"});
        let jwks = json!({ "keys": [later, jwk] }).to_string();
        std::fs::write(dir.join("prod.json"), jwks).unwrap();
        let text = std::fs::read_to_string(dir.join("broker.toml")).unwrap();
        // Every refusal of a test shall have a record of its own.
        let text = text.replace("denial_rate = 20", "denial_rate = 5000");
        let text = format!(
            "{text}\n[[enrolment.x509]]\nname = \"fleet\"\nclass = \"server\"\n\
             roots = \"fleet.pem\"\nttl_s = 1800\n\n[[enrolment.kubernetes]]\nname = \"prod\"\n\
             class = \"server\"\njwks = \"prod.json\"\nissuer = \"{ISSUER}\"\n\
             audience = \"doorward\"\nservice_accounts = [\"doorward/agent\"]\n"
        );
        std::fs::write(dir.join("broker.toml"), &text).unwrap();
        stage.stop("broker");
        stage.start_broker().unwrap();
        let config = BrokerConfig::parse("broker.toml", &text).unwrap();
        let shown = stage.operator_must(&["ca", "show"], None).unwrap().json();
        let root = shown["authorities"][0]["id"].as_str().unwrap();
        let root = Digest::parse(root).unwrap();
        let (enrolment, broker) = (config.enrolment, config.advertise);
        Self { stage, fleet, cluster, enrolment, broker, root }
    }

    /// The command line of a machine that joins into `dir`.
    fn join(&self, dir: &Path, with: &[&str]) -> Ran {
        self.join_at(dir, &self.root.to_string(), with)
    }

    fn join_at(&self, dir: &Path, root: &str, with: &[&str]) -> Ran {
        let (dir, socket) = (text(dir), text(&self.stage.socket()));
        let place = self.enrolment.to_string();
        #[rustfmt::skip]
        let mut args = vec![
            "agent", "--dir", &dir, "join", "--address", &place, "--broker", &self.broker,
            "--trust-domain", "dev.doorward", "--root-digest", root, "--listen", &socket,
            "--name", "this-machine",
        ];
        args.extend_from_slice(with);
        self.stage.run(&args, None).unwrap()
    }

    /// A certificate of the fleet and its key, as files.
    fn identity(&self, name: &str) -> (KeyPair, Der, [PathBuf; 2]) {
        let key = KeyPair::generate().unwrap();
        let leaf = device().signed_by(&self.fleet, &key);
        let files = ["pem", "key"].map(|end| self.stage.dir().join(format!("{name}.{end}")));
        std::fs::write(&files[0], pem(std::slice::from_ref(&leaf))).unwrap();
        private(&files[1], &key.serialize_pem());
        (key, leaf, files)
    }

    fn refusals(&self, op: &str) -> Vec<Value> {
        let records = records(&self.stage);
        let denied = |record: &&&Value| record["dec"]["verdict"] == "deny";
        of_op(&records, op).iter().filter(denied).map(|record| (*record).clone()).collect()
    }

    fn servers(&self) -> usize {
        let listed = self.stage.operator_must(&["device", "list"], None).unwrap().stdout;
        listed.lines().filter(|line| line.contains("\"server\"")).count()
    }

    /// The agent runs, and a workload of its machine reads a secret by policy.
    fn works(&mut self) {
        self.stage.start_agent().unwrap();
        let api = self.stage.workload("api").unwrap();
        register(&self.stage, "api", &api);
        self.stage.operator_must(&["put", "shop/x"], Some(b"value")).unwrap();
        add_rows(
            &self.stage,
            "\n#@ owner=shop\np, api-reads, spiffe://dev.doorward/api, secret/shop/x, read, \
             managed, -, -, allow\n",
        );
        let get = || self.stage.as_workload(&api, &["get", "shop/x"]).unwrap();
        let ran = until(SLOW, get, |ran| ran.code == 0);
        assert!(ran.stdout.contains("value"), "{ran:?}");
        let whoami = self.stage.as_workload(&api, &["whoami"]).unwrap();
        assert!(whoami.stdout.contains("spiffe://dev.doorward/api"), "{whoami:?}");
    }

    /// An applicant of its own, ready to speak in raw frames, and its key.
    async fn applicant(&self) -> (Conversation, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let chain = vec![Draft::leaf("spiffe://x/y").self_signed(&key)];
        let end = End { alpn: vec![wire::ALPN_ENROLL.to_vec()], ..End::of(chain, &key) };
        (end.knock(self.enrolment).await.unwrap(), key.subject_public_key_info())
    }

    /// An agent's own way in, with what it shows.
    async fn enrol(&self, shows: Shows) -> Result<wire::Enrolled, ClientError> {
        let (chain, key) = DeviceKey::generate().unwrap().self_signed().unwrap();
        let (place, roots) = (self.enrolment.to_string(), [self.root]);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        wire::enroll(&place, &domain(), &roots, chain, key, "racer", shows, clock).await
    }

    fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        self.cluster.sign("RS256", r#"{"alg":"RS256","kid":"k1"}"#, &claims.to_string())
    }
}

fn fleet() -> Signer {
    let draft = Draft::authority("fleet root", "fleet.example");
    Signer::root(&draft, &rcgen::PKCS_ECDSA_P384_SHA384)
}

fn device() -> Draft {
    let mut draft = Draft::leaf("urn:device");
    draft.subject = Some("machine-1".to_owned());
    draft
}

fn claims() -> Value {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    json!({
        "iss": ISSUER, "sub": "system:serviceaccount:doorward:agent", "aud": ["doorward"],
        "iat": now, "nbf": now, "exp": now + 3600, "jti": "1",
        "kubernetes.io": {
            "namespace": "doorward",
            "serviceaccount": { "name": "agent", "uid": "5a" },
            "pod": { "name": "agent-x", "uid": "b0d" },
            "node": { "name": "node-1", "uid": "c0de" },
        },
    })
}

fn pem(chain: &[Der]) -> String {
    use base64::Engine as _;
    let one = |der: &Der| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    chain.iter().map(one).collect()
}

fn private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn exporter(conversation: &Conversation) -> [u8; 32] {
    let mut value = [0; 32];
    let label = wire::EXPORTER_ENROLMENT;
    conversation.connection.export_keying_material(&mut value, label, b"").unwrap();
    value
}

fn signature(key: &KeyPair, statement: &[u8]) -> Vec<u8> {
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).unwrap();
    let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256];
    key.choose_scheme(&schemes).unwrap().sign(statement).unwrap()
}

const X509: &str = r#"{"enroll":{"name":"x","by":"x509"}}"#;
const POD: &str = r#"{"enroll":{"name":"x","by":"kubernetes"}}"#;

#[test]
fn a_device_certificate_makes_one_device_that_works() {
    let mut scene = Scene::new();
    let (_, _, [certificate, key]) = scene.identity("machine");
    let with = ["--x509", &text(&certificate), "--key", &text(&key)];
    let home = scene.stage.dir().join("agent");

    // Nothing is shown to a broker of another root, nor with a key that others can read.
    let other = scene.join_at(&home, &"0".repeat(64), &with);
    assert!(other.code == 1 && other.stderr.contains("RootDigest"), "{other:?}");
    let open = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(&key, open).unwrap();
    let loose = scene.join(&home, &with);
    assert!(loose.code == 1 && loose.stderr.contains("closed to others"), "{loose:?}");
    private(&key, &std::fs::read_to_string(&key).unwrap());
    assert_eq!((scene.servers(), scene.refusals("enroll").len()), (0, 0));

    let joined = scene.join(&home, &with);
    assert_eq!(joined.code, 0, "{joined:?}");
    scene.works();
    let device = scene.stage.device().unwrap();
    let id = device["id"].as_str().unwrap().to_owned();
    let shown = scene.stage.operator_must(&["device", "show", &id], None).unwrap().json();
    assert_eq!(shown["by"]["x509"]["method"], "fleet");
    let records = records(&scene.stage);
    let mut enrolled = of_op(&records, "enroll").into_iter().rev();
    let enrolled = enrolled.find(|it| it["req"]["detail"]["by"] == "x509").unwrap().clone();
    assert_eq!(enrolled["dec"]["verdict"], "allow");
    let detail = &enrolled["req"]["detail"];
    assert_eq!((&detail["method"], &detail["name"]), (&json!("fleet"), &json!("this-machine")));
    let certificate = shown["by"]["x509"]["certificate"].as_str().unwrap();
    assert!(certificate.starts_with(detail["certificate"].as_str().unwrap()), "{detail}");
    let note = |it: &&Value| it["id"] == enrolled["id"] && it["what"] == "enrolled";
    assert!(records.iter().any(|it| note(&it)), "what came of it");

    // Whoever has certificate and key does not take the device's place, living or revoked.
    let thief = scene.stage.dir().join("thief");
    let refused = scene.join(&thief, &with);
    assert!(refused.code == 1 && refused.stderr.contains("living device"), "{refused:?}");
    scene.stage.operator_must(&["device", "revoke", &id], None).unwrap();
    let refused = scene.join(&thief, &with);
    assert!(refused.stderr.contains("revoked device"), "{refused:?}");
    scene.stage.stop("broker");
    scene.stage.start_broker().unwrap();
    let refused = scene.join(&thief, &with);
    assert!(refused.stderr.contains("--release"), "also after a restart: {refused:?}");
    assert_eq!(scene.servers(), 1);
    scene.stage.operator_must(&["device", "revoke", &id, "--release"], None).unwrap();
    assert_eq!(scene.join(&thief, &with).code, 0, "an operator let it in again");
    assert_eq!(scene.servers(), 2);
    let held = scene.join(&scene.stage.dir().join("second"), &with);
    assert!(held.stderr.contains("living device"), "{held:?}");
}

#[test]
fn a_pods_token_makes_one_device_that_works() {
    let mut scene = Scene::new();
    let token = scene.token(|_| {});
    let file = scene.stage.dir().join("token");
    // The kubelet's files lie behind links and may be open to a group.
    let real = scene.stage.dir().join("..data");
    std::fs::write(&real, format!("{token}\n")).unwrap();
    std::os::unix::fs::symlink(&real, &file).unwrap();
    let with = ["--kubernetes-token", &text(&file)];
    let joined = scene.join(&scene.stage.dir().join("agent"), &with);
    assert_eq!(joined.code, 0, "{joined:?}");
    scene.works();
    let device = scene.stage.device().unwrap();
    let id = device["id"].as_str().unwrap().to_owned();
    assert_eq!(device["by"]["kubernetes"]["node_uid"], "c0de");
    assert_eq!(device["by"]["kubernetes"]["pod"], "agent-x");

    let again = scene.stage.dir().join("again");
    let refused = scene.join(&again, &with);
    assert!(refused.stderr.contains("this node has enrolled"), "{refused:?}");
    scene.stage.operator_must(&["device", "revoke", &id, "--release"], None).unwrap();
    scene.stage.stop("broker");
    scene.stage.start_broker().unwrap();
    let refused = scene.join(&again, &with);
    assert!(refused.stderr.contains("used already"), "a replay after a restart: {refused:?}");
    std::fs::write(&real, scene.token(|it| it["jti"] = json!("2"))).unwrap();
    assert_eq!(scene.join(&again, &with).code, 0);

    std::fs::write(&real, scene.token(|it| it["aud"] = json!(["api"]))).unwrap();
    let denied = scene.join(&scene.stage.dir().join("other"), &with);
    assert_eq!(denied.code, 3, "{denied:?}");
    assert!(denied.stderr.contains("the broker's log tells"), "{denied:?}");
    let faults = scene.refusals("enroll");
    assert_eq!(faults.last().unwrap()["req"]["detail"]["fault"], "audience");

    // The token is nowhere but in its own file.
    std::fs::remove_file(&real).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    let pids = [scene.stage.pid("broker").unwrap(), scene.stage.pid("agent").unwrap()];
    let found = traces(scene.stage.dir(), &pids, &[signature]);
    assert!(found.is_empty(), "{found:?}");
}

/// Many at once, each with a key of its own.
#[test]
fn of_many_at_once_one_wins() {
    let scene = Scene::new();
    let (key, leaf, _) = scene.identity("machine");
    let token = scene.token(|_| {});
    let certificate = || {
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Shows::Certificate(DeviceCertificate::new(vec![leaf.clone()], key).unwrap())
    };
    let pod = || Shows::PodToken(doorward::model::SecretValue::new(token.clone().into_bytes()));
    let kinds: [&dyn Fn() -> Shows; 2] = [&certificate, &pod];
    run(async {
        for (round, shows) in kinds.into_iter().enumerate() {
            // As many as one network may have connections.
            let racers = (0..24).map(|_| scene.enrol(shows()));
            let ended = futures_util::future::join_all(racers).await;
            let won = ended.iter().filter(|outcome| outcome.is_ok()).count();
            assert_eq!(won, 1, "{ended:?}");
            for lost in ended.iter().filter_map(|outcome| outcome.as_ref().err()) {
                assert!(lost.to_string().contains("conflict"), "{lost}");
            }
            assert_eq!(scene.servers(), round + 1);
        }
    });
}

/// A key of which nobody has the private half.
struct Modulus(Vec<u8>);

impl PublicKeyData for Modulus {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// Chains that do not hold, each with the word of the rule that it breaks.
fn bad_chains(scene: &Scene, key: &KeyPair) -> Vec<(&'static str, Vec<Der>)> {
    use super::forge::{SERVER_AUTH, tlv};
    let signed = |draft: Draft| vec![draft.signed_by(&scene.fleet, key)];
    let hour = time::Duration::hours(1);
    let now = OffsetDateTime::now_utc();
    let mut long = vec![device().signed_by(&scene.fleet, key)];
    long.extend(std::iter::repeat_n(scene.fleet.certificate.clone(), 5));
    let issuer = rcgen::Issuer::from_params(&scene.fleet.params, &scene.fleet.key);
    let modulus = [&[0][..], &[0xff; 2048]].concat();
    let huge = tlv(0x30, &[tlv(0x02, &modulus), tlv(0x02, &[1, 0, 1])].concat());
    let huge: Der = device().params().signed_by(&Modulus(huge), &issuer).unwrap().into();
    let ended = Draft { not_before: now - hour * 2, not_after: now - hour, ..device() };
    vec![
        ("unknown_issuer", vec![device().self_signed(key)]),
        ("expired", signed(ended)),
        ("not_yet", signed(Draft { not_before: now + hour / 2, ..device() })),
        ("purpose", signed(Draft { purposes: Some(vec![SERVER_AUTH]), ..device() })),
        ("authority", signed(Draft::authority("sub", "fleet.example"))),
        ("chain_length", long),
        ("signature", vec![huge]),
        ("certificate", vec![vec![0x30, 0x00].into()]),
    ]
}

#[test]
fn certificates_that_do_not_hold_are_denied_alike_and_told_in_the_log() {
    let scene = Scene::new();
    let key = KeyPair::generate().unwrap();
    let leaf = device().signed_by(&scene.fleet, &key);
    let mut want: Vec<&str> = Vec::new();
    run(async {
        let denied = |reply: Result<Reply, String>, what: &str| match reply {
            Ok(Reply::Refusal(refusal)) => {
                assert_eq!(reason(&Ok(Reply::Refusal(refusal.clone()))), "D101", "{what}");
                assert_eq!((refusal.code, refusal.hint), (Code::Denied, None));
            }
            other => panic!("{what}: {other:?}"),
        };
        let show = |chain: &[Der], signature: Vec<u8>| {
            request(X509, &DeviceProof { chain: chain.to_vec(), signature }.body())
        };
        for (word, chain) in bad_chains(&scene, &key) {
            let (conversation, spki) = scene.applicant().await;
            let statement = device_statement(&exporter(&conversation), &spki, &domain(), &chain[0]);
            let body = show(&chain, signature(&key, &statement));
            denied(conversation.say(&body).await, word);
            want.push(word);
        }
        // The certificate without its key; the signature of another connection; for another key.
        let chain = [leaf.clone()];
        let (one, first) = scene.applicant().await;
        let (two, second) = scene.applicant().await;
        let at = |conversation: &Conversation, spki: &[u8]| {
            device_statement(&exporter(conversation), spki, &domain(), &leaf)
        };
        let thief = KeyPair::generate().unwrap();
        for (what, signature) in [
            ("another key's", signature(&thief, &at(&two, &second))),
            ("another connection's", signature(&key, &at(&one, &first))),
            ("its exporter", signature(&key, &at(&one, &second))),
            ("its device key", signature(&key, &at(&two, &first))),
        ] {
            denied(two.say(&show(&chain, signature)).await, what);
            want.push("signature");
        }
        // Rubbish of all sizes.
        for size in [0, 1, 7, 64, 1024, 8191, 32 * 1024] {
            denied(two.say(&request(X509, &vec![b'{'; size])).await, "rubbish");
            want.push("form");
        }
        let over = two.say(&request(X509, &vec![b' '; 32 * 1024 + 1])).await;
        assert_eq!(reason(&over), "D504", "{over:?}");
        let token =
            format!(r#"{{"enroll":{{"name":"x","by":"x509","token":"{}"}}}}"#, "0".repeat(64));
        denied(two.ask(&token).await, "two proofs at once");
        // And the same connection lets the right one in.
        let good = show(&chain, signature(&key, &at(&two, &second)));
        let reply = two.say(&good).await;
        assert!(matches!(reply, Ok(Reply::Answer { .. })), "{reply:?}");
    });
    let told: Vec<_> = scene.refusals("enroll");
    let told: Vec<_> = told.iter().filter_map(|it| it["req"]["detail"]["fault"].as_str()).collect();
    assert_eq!(told, want);
    assert_eq!(scene.servers(), 1);
}

#[test]
fn tokens_that_do_not_hold_are_denied_alike_and_told_in_the_log() {
    let scene = Scene::new();
    let other = TokenKey::new("k1", "RS256");
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let header = r#"{"alg":"RS256","kid":"k1"}"#;
    let claims = claims().to_string();
    let bare = |header: &str| format!("{}.{}.", base64url(header), base64url(&claims));
    let cases: Vec<(&str, String)> = vec![
        ("audience", scene.token(|it| it["aud"] = json!(["api"]))),
        ("expired", scene.token(|it| it["exp"] = json!(now - 1))),
        ("not_yet", scene.token(|it| it["nbf"] = json!(now + 3600))),
        ("too_long", scene.token(|it| it["exp"] = json!(now + 365 * 86_400))),
        ("issuer", scene.token(|it| it["iss"] = json!("https://other.example"))),
        (
            "no_pod",
            scene.token(|it| drop(it["kubernetes.io"].as_object_mut().unwrap().remove("pod"))),
        ),
        ("no_pod", scene.token(|it| drop(it.as_object_mut().unwrap().remove("kubernetes.io")))),
        (
            "service_account",
            scene.token(|it| {
                it["sub"] = json!("system:serviceaccount:doorward:default");
                it["kubernetes.io"]["serviceaccount"]["name"] = json!("default");
            }),
        ),
        ("signature", other.sign("RS256", header, &claims)),
        ("unknown_key", other.sign("RS256", r#"{"alg":"RS256","kid":"k9"}"#, &claims)),
        ("algorithm", bare(r#"{"alg":"none","kid":"k1"}"#)),
        ("algorithm", scene.cluster.sign("RS256", r#"{"alg":"HS256","kid":"k1"}"#, &claims)),
        ("form", String::new()),
        ("form", "a".into()),
        ("form", "..".into()),
        ("form", "A".repeat(8192)),
    ];
    let want: Vec<&str> = cases.iter().map(|(word, _)| *word).collect();
    run(async {
        let (conversation, _) = scene.applicant().await;
        for (word, token) in &cases {
            let reply = conversation.say(&request(POD, token.as_bytes())).await;
            let Ok(Reply::Refusal(refusal)) = &reply else { panic!("{word}: {reply:?}") };
            assert_eq!((reason(&reply).as_str(), &refusal.hint), ("D101", &None), "{word}");
        }
        let good = conversation.say(&request(POD, scene.token(|_| {}).as_bytes())).await;
        assert!(matches!(good, Ok(Reply::Answer { .. })), "{good:?}");
        let other = r#"{"enroll":{"name":"x","by":"oidc"}}"#;
        assert_eq!(reason(&conversation.ask(other).await), "D503", "a proof of a kind to come");
    });
    let told = scene.refusals("enroll");
    let told: Vec<_> = told.iter().filter_map(|it| it["req"]["detail"]["fault"].as_str()).collect();
    assert_eq!(told, want);
}

#[test]
fn a_broker_without_a_method_takes_nothing_and_a_bad_file_stops_the_start() {
    let mut stage = Stage::with_program(program(), None).unwrap();
    let dir = stage.broker_dir();
    let text = std::fs::read_to_string(dir.join("broker.toml")).unwrap();
    let config = BrokerConfig::parse("broker.toml", &text).unwrap();
    run(async {
        let key = KeyPair::generate().unwrap();
        let chain = vec![Draft::leaf("spiffe://x/y").self_signed(&key)];
        let end = End { alpn: vec![wire::ALPN_ENROLL.to_vec()], ..End::of(chain, &key) };
        let conversation = end.knock(config.enrolment).await.unwrap();
        for ask in [X509, POD] {
            assert_eq!(reason(&conversation.say(&request(ask, b"x")).await), "D101");
        }
    });
    stage.stop("broker");
    // Whoever holds an SVID would be a device.
    let bundle = stage.operator_dir().join("bundle.pem");
    std::fs::copy(bundle, dir.join("own.pem")).unwrap();
    let leaf = device().signed_by(&fleet(), &KeyPair::generate().unwrap());
    std::fs::write(dir.join("leaf.pem"), pem(&[leaf])).unwrap();
    std::fs::write(dir.join("bad.json"), r#"{"keys":[{"kty":"oct","k":"AA"}]}"#).unwrap();
    let x509 = |file: &str| {
        format!("[[enrolment.x509]]\nname = \"fleet\"\nclass = \"server\"\nroots = \"{file}\"\n")
    };
    let pod = format!(
        "[[enrolment.kubernetes]]\nname = \"prod\"\nclass = \"server\"\njwks = \"bad.json\"\n\
         issuer = \"{ISSUER}\"\naudience = \"doorward\"\nservice_accounts = [\"a/b\"]\n"
    );
    for (section, want) in [
        (x509("none.pem"), "none.pem"),
        (x509("broker.toml"), "no certificate"),
        (x509("leaf.pem"), "not an authority"),
        (x509("own.pem"), "a root of this broker"),
        (pod, "private members"),
    ] {
        std::fs::write(dir.join("broker.toml"), format!("{text}\n{section}")).unwrap();
        let fault = stage.start_broker().unwrap_err();
        assert!(fault.contains(want) && fault.contains("enrolment method"), "{want}: {fault}");
        stage.stop("broker");
    }
    std::fs::write(dir.join("broker.toml"), text).unwrap();
    stage.start_broker().unwrap();
}
