//! Becoming a device by a TPM, over real connections and with real TPMs (in software): the device
//! key never leaves it, one TPM is one device, and nothing that only looks like one gets in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doorward::agent::{DeviceKey, TpmKey};
use doorward::app::{BrokerConfig, Ran, Stage};
use doorward::model::{Clock, Digest, SecretValue, SystemClock};
use doorward::posture::tpm::{Credential, Public, TpmProof};
use doorward::wire::{self, ClientError, Shows, TpmShows};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::forge::{domain, run};
use super::granted::{of_op, records};
use super::journey::program;
use super::scene::{add_rows, register, traces, until};

#[path = "../../src/agent/tpm/swtpm.rs"]
#[allow(dead_code)] // the library's own tests use all of it
mod swtpm;
use swtpm::Swtpm;

/// An agent that starts beside other tests.
const SLOW: Duration = Duration::from_secs(90);

/// A broker that takes the TPMs of one maker, and one more by name.
struct Scene {
    stage: Stage,
    _tpms: TempDir,
    enrolment: SocketAddr,
    broker: String,
    root: Digest,
}

impl Scene {
    /// With the maker of `tpm`, and the endorsement keys `named`.
    fn new(tpms: TempDir, tpm: &Swtpm, named: &[Digest]) -> Self {
        let mut stage = Stage::with_program(program(), None).unwrap();
        let dir = stage.broker_dir();
        std::fs::copy(tpm.issuers(), dir.join("makers.pem")).unwrap();
        let text = std::fs::read_to_string(dir.join("broker.toml")).unwrap();
        let text = text.replace("denial_rate = 20", "denial_rate = 5000");
        let mut text = format!(
            "{text}\n[[enrolment.tpm]]\nname = \"chips\"\nclass = \"server\"\nroots = \"makers.pem\"\n\
             key = \"p384\"\n"
        );
        if !named.is_empty() {
            let list: String = named.iter().map(|key| format!("{key}\n")).collect();
            std::fs::write(dir.join("ek.txt"), list).unwrap();
            text += "\n[[enrolment.tpm]]\nname = \"guests\"\nclass = \"server\"\ntier = \"vtpm\"\n\
                     endorsement_keys = \"ek.txt\"\n";
        }
        std::fs::write(dir.join("broker.toml"), &text).unwrap();
        stage.stop("broker");
        stage.start_broker().unwrap();
        let config = BrokerConfig::parse("broker.toml", &text).unwrap();
        let shown = stage.operator_must(&["ca", "show"], None).unwrap().json();
        let root = Digest::parse(shown["authorities"][0]["id"].as_str().unwrap()).unwrap();
        Self { stage, _tpms: tpms, enrolment: config.enrolment, broker: config.advertise, root }
    }

    /// Starts the broker again with another kind of endorsement keys.
    fn take_only(&mut self, kind: &str) {
        let file = self.stage.broker_dir().join("broker.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let key = text.lines().find(|line| line.starts_with("key = ")).unwrap().to_owned();
        std::fs::write(&file, text.replace(&key, &format!("key = {kind:?}"))).unwrap();
        self.stage.stop("broker");
        self.stage.start_broker().unwrap();
    }

    fn join(&self, dir: &Path, tpm: &str) -> Ran {
        let (dir, socket) = (text(dir), text(&self.stage.socket()));
        let (place, root) = (self.enrolment.to_string(), self.root.to_string());
        #[rustfmt::skip]
        let args = [
            "agent", "--dir", &dir, "join", "--address", &place, "--broker", &self.broker,
            "--trust-domain", "dev.doorward", "--root-digest", &root, "--listen", &socket,
            "--name", "this-machine", "--tpm", tpm,
        ];
        self.stage.run(&args, None).unwrap()
    }

    fn home(&self, name: &str) -> PathBuf {
        self.stage.dir().join(name)
    }

    /// Every fault of enrolment that the log tells, oldest first.
    fn faults(&self) -> Vec<String> {
        let records = records(&self.stage);
        let denied = |record: &&&Value| record["dec"]["verdict"] == "deny";
        let fault = |record: &&Value| record["req"]["detail"]["fault"].as_str().map(str::to_owned);
        of_op(&records, "enroll").iter().filter(denied).filter_map(fault).collect()
    }

    fn show(&self, id: &str) -> Value {
        self.stage.operator_must(&["device", "show", id], None).unwrap().json()
    }

    /// Enrols as the agent does, with what it shows.
    async fn enrol(&self, key: &TpmKey, shows: Shows) -> Result<wire::Enrolled, ClientError> {
        let (chain, private) = DeviceKey::in_tpm(key.clone()).self_signed().unwrap();
        let (place, roots) = (self.enrolment.to_string(), [self.root]);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        wire::enroll(&place, &domain(), &roots, chain, private, "twisted", shows, clock).await
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A key in a TPM, which only a runtime with several threads may wait for.
fn key(tpm: &Swtpm) -> TpmKey {
    TpmKey::generate(tpm.place.parse().unwrap()).unwrap()
}

fn endorsement_key(key: &TpmKey) -> Digest {
    let proof = key.proof(&|_| Digest([0; 32])).unwrap();
    Digest::of(&Public::parse(&proof.ek).unwrap().spki())
}

/// A TPM that says something else than it should.
struct Twisted {
    key: TpmKey,
    proof: Box<dyn Fn(TpmProof) -> TpmProof + Send + Sync>,
    /// The endorsement key for which the statement is made, if it is another one.
    ek: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
}

impl std::fmt::Debug for Twisted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Twisted")
    }
}

impl TpmShows for Twisted {
    fn proof(&self, statement: &dyn Fn(&[u8]) -> Digest) -> Result<TpmProof, String> {
        let ek = self.ek.as_deref();
        let proof = self.key.proof(&|own| statement(ek.unwrap_or(own)))?;
        Ok((self.proof)(proof))
    }

    fn open(&self, credential: &Credential) -> Result<SecretValue, String> {
        match &self.answer {
            Some(answer) => Ok(SecretValue::new(answer.clone())),
            None => self.key.open(credential),
        }
    }
}

#[test]
fn a_tpm_makes_one_device_whose_key_it_keeps() {
    if !swtpm::is_here() {
        return;
    }
    let tpms = tempfile::tempdir().unwrap();
    let mut tpm = Swtpm::made(tpms.path(), "one");
    let mut scene = Scene::new(tpms, &tpm, &[]);
    let place = tpm.place.clone();
    let joined = scene.join(&scene.home("agent"), &place);
    assert_eq!(joined.code, 0, "{joined:?}");
    let pem = std::fs::read_to_string(scene.home("agent").join("key.pem")).unwrap();
    let described = wire::HeldKey::of(&wire::pem_key(pem.as_bytes()).unwrap()).unwrap();
    let whereabouts: Value = serde_json::from_slice(&described.whereabouts).unwrap();
    assert_eq!(whereabouts["tpm"], json!(place), "where it is, and nothing of the key");

    // The agent works, a workload reads under a profile that asks for the TPM.
    scene.stage.start_agent().unwrap();
    let api = scene.stage.workload("api").unwrap();
    register(&scene.stage, "api", &api);
    scene.stage.operator_must(&["put", "shop/x"], Some(b"value")).unwrap();
    let profiles = scene.stage.broker_dir().join("policies/posture.toml");
    let mut text = std::fs::read_to_string(&profiles).unwrap();
    text += "\n[profile.chips]\nrequire = [ { fact = \"tpm.tier\", eq = \"tpm\" } ]\n";
    std::fs::write(&profiles, text).unwrap();
    add_rows(
        &scene.stage,
        "\n#@ owner=shop\np, api-reads, spiffe://dev.doorward/api, secret/shop/x, read, chips, -, \
         -, allow\n",
    );
    let get = |scene: &Scene| scene.stage.as_workload(&api, &["get", "shop/x"]).unwrap();
    let ran = until(SLOW, || get(&scene), |ran| ran.code == 0);
    assert!(ran.stdout.contains("value"), "{ran:?}");
    let device = scene.stage.device().unwrap();
    let id = device["id"].as_str().unwrap().to_owned();
    assert_eq!(whereabouts["device"], json!(id));
    assert_eq!(device["by"]["tpm"]["ek"], json!(id), "the id is the endorsement key's digest");
    assert_eq!(device["by"]["tpm"]["method"], "chips");
    assert_eq!(scene.show(&id)["facts"]["tpm.tier"]["v"], "tpm");
    let records = records(&scene.stage);
    let mut enrolled = of_op(&records, "enroll").into_iter().rev();
    let enrolled = enrolled.find(|it| it["req"]["detail"]["by"] == "tpm").unwrap();
    let detail = &enrolled["req"]["detail"];
    assert!(id.starts_with(detail["ek"].as_str().unwrap()), "{detail}");
    assert_eq!((&detail["tier"], &detail["method"]), (&json!("tpm"), &json!("chips")));

    // Off and on again: the same keys, and the agent goes on with them.
    scene.stage.stop("agent");
    tpm.reboot();
    scene.stage.start_agent().unwrap();
    let ran = until(SLOW, || get(&scene), |ran| ran.code == 0);
    assert!(ran.stdout.contains("value"), "after a reboot: {ran:?}");
    scene.stage.stop("agent");

    // Another one by the same TPM takes nobody's place, until an operator says so.
    let refused = scene.join(&scene.home("second"), &place);
    assert!(refused.code == 1 && refused.stderr.contains("living device"), "{refused:?}");
    scene.stage.operator_must(&["device", "revoke", &id], None).unwrap();
    let refused = scene.join(&scene.home("second"), &place);
    assert!(refused.stderr.contains("revoked device"), "{refused:?}");
    scene.stage.operator_must(&["device", "revoke", &id, "--release"], None).unwrap();
    // A key of another kind in the same TPM would be another device: none but the one kind is taken.
    scene.take_only("rsa2048");
    let refused = scene.join(&scene.home("second"), &place);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert_eq!(scene.faults().last().map(String::as_str), Some("unknown_key"));
    scene.take_only("p384");
    let again = scene.join(&scene.home("second"), &place);
    assert_eq!(again.code, 0, "{again:?}");
    let shown = scene.show(&id);
    assert_eq!((&shown["revoked"], &shown["posture"]), (&json!(false), &json!("unknown")));
    // The first one's key and certificate are dead all the same.
    let dead = text_of(&scene.home("agent").join("svid.pem"));
    assert_ne!(dead, text_of(&scene.home("second").join("svid.pem")));
    let pids = [scene.stage.pid("broker").unwrap()];
    let salt = whereabouts["salt"].as_str().unwrap();
    let found = traces(&scene.stage.broker_dir(), &pids, &[salt]);
    assert!(found.is_empty(), "the broker knows no salt: {found:?}");
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn what_is_not_one_tpm_of_a_known_maker_gets_in_nowhere() {
    if !swtpm::is_here() {
        return;
    }
    let tpms = tempfile::tempdir().unwrap();
    let (known, stranger) =
        (Swtpm::made(tpms.path(), "known"), Swtpm::made(tpms.path(), "stranger"));
    let named = Swtpm::fresh(tpms.path(), "named");
    let (of_known, of_stranger, of_named) = (key(&known), key(&stranger), key(&named));
    let scene = Scene::new(tpms, &known, &[endorsement_key(&of_named)]);
    let twisted = |key: &TpmKey, proof: Box<dyn Fn(TpmProof) -> TpmProof + Send + Sync>| Twisted {
        key: key.clone(),
        proof,
        ek: None,
        answer: None,
    };
    let own = of_known.proof(&|_| Digest([0; 32])).unwrap();
    let theirs = of_stranger.proof(&|_| Digest([0; 32])).unwrap();
    let (victim, victims) = (Public::parse(&own.ek).unwrap().spki(), own.clone());
    let strangers_ak = theirs.attestation_key.clone();
    let cases: Vec<(&str, &TpmKey, Twisted)> = vec![
        ("unknown_issuer", &of_stranger, twisted(&of_stranger, Box::new(|it| it))),
        // A stranger that claims the known one's endorsement key, certificate included.
        (
            "credential",
            &of_stranger,
            Twisted {
                ek: Some(victim),
                answer: Some(vec![0; 32]),
                ..twisted(&of_stranger, {
                    let (ek, certificate) = (victims.ek.clone(), victims.certificate.clone());
                    Box::new(move |it| TpmProof {
                        ek: ek.clone(),
                        certificate: certificate.clone(),
                        ..it
                    })
                })
            },
        ),
        // Its key, with a statement that was made for another endorsement key.
        ("certified", &of_stranger, {
            let (ek, certificate) = (victims.ek.clone(), victims.certificate.clone());
            twisted(
                &of_stranger,
                Box::new(move |it| TpmProof {
                    ek: ek.clone(),
                    certificate: certificate.clone(),
                    ..it
                }),
            )
        }),
        ("certified", &of_known, {
            twisted(
                &of_known,
                Box::new(move |it| TpmProof { attestation_key: strangers_ak.clone(), ..it }),
            )
        }),
        (
            "certified",
            &of_known,
            twisted(
                &of_known,
                Box::new(|mut it| {
                    it.attest[0] ^= 1; // the magic
                    it
                }),
            ),
        ),
        (
            "certified",
            &of_known,
            twisted(
                &of_known,
                Box::new(|mut it| {
                    it.attest.pop();
                    it
                }),
            ),
        ),
        (
            "attestation_key",
            &of_known,
            twisted(
                &of_known,
                Box::new(|it| TpmProof { attestation_key: it.device_key.clone(), ..it }),
            ),
        ),
        ("unknown_issuer", &of_known, {
            let other = theirs.certificate.clone();
            let ek = theirs.ek.clone();
            Twisted {
                ek: Some(Public::parse(&theirs.ek).unwrap().spki()),
                ..twisted(
                    &of_known,
                    Box::new(move |it| TpmProof {
                        ek: ek.clone(),
                        certificate: other.clone(),
                        ..it
                    }),
                )
            }
        }),
        ("key_of_another", &of_known, {
            let other = theirs.certificate.clone();
            twisted(&of_known, Box::new(move |it| TpmProof { certificate: other.clone(), ..it }))
        }),
        (
            "credential",
            &of_known,
            Twisted { answer: Some(Vec::new()), ..twisted(&of_known, Box::new(|it| it)) },
        ),
        (
            "no_answer",
            &of_known,
            Twisted { answer: Some(vec![0; 65]), ..twisted(&of_known, Box::new(|it| it)) },
        ),
    ];
    run(async {
        for (at, (word, key, twisted)) in cases.into_iter().enumerate() {
            let refused = scene.enrol(key, Shows::Tpm(Box::new(twisted))).await;
            match (refused, word) {
                (Err(ClientError::Refused(refusal)), _) => {
                    assert_eq!(refusal.code, doorward::model::Code::Denied, "{word}");
                }
                // What is too long is not even sent by our own client.
                (Err(ClientError::Frame(_)), "no_answer") => {}
                (other, _) => panic!("case {at}, {word}: {other:?}"),
            }
            let faults = scene.faults();
            assert_eq!((faults.len(), faults[at].as_str()), (at + 1, word));
        }
        // The control, and one that no maker has certified but an operator has named.
        scene.enrol(&of_known, Shows::Tpm(Box::new(of_known.clone()))).await.unwrap();
        let named = Shows::Tpm(Box::new(of_named.clone()));
        let enrolled = scene.enrol(&of_named, named).await.unwrap();
        let id = enrolled.spiffe_id.path().rsplit('/').next().unwrap().to_owned();
        assert_eq!(id, endorsement_key(&of_named).to_string());
        assert_eq!(scene.show(&id)["by"]["tpm"]["tier"], "vtpm");
        // The living one's endorsement key, with a fresh key of the same TPM.
        let fresh = super::tpm::key(&known);
        let held = scene.enrol(&fresh, Shows::Tpm(Box::new(fresh.clone()))).await.unwrap_err();
        assert!(held.to_string().contains("conflict"), "{held}");
    });
}
