//! Machines whose agents are this very test: enrolled in the ordinary way, with a connection of their
//! own, that report what they are told to and answer challenges as well or as badly as is wanted.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doorward::agent::{DeviceKey, WorkloadKey};
use doorward::authority::JoinToken;
use doorward::model::{
    Answer, Ask, Clock, DeviceClass, DeviceId, Entry, EntryDraft, SecretName, SecretValue,
    Selector, WorkloadFacts,
};
use doorward::policy::BundleFiles;
use doorward::posture::{EvidenceKey, FactName, FactValue, Facts};
use doorward::wire::{self, Client, ClientError, Credentials};
use serde_json::Value;

use super::forge::domain;
use super::line::House;

/// Profiles with one that is met by challenges.
pub const PROFILES: &str = r#"
[profile.managed]
max_age = "120s"
require = [{ fact = "device.enrolled", eq = true }]
[profile.hardened]
extends = "managed"
max_age = "60s"
require = [{ fact = "net.listen_any", eq = false }]
[profile.fresh5]
extends = "hardened"
max_age = "5s"
"#;

/// One machine.
pub struct Machine {
    pub device: DeviceKey,
    pub credentials: Credentials,
    pub client: Client,
    clock: Arc<dyn Clock>,
    session: EvidenceKey,
    seq: AtomicU64,
    facts: Mutex<Facts>,
    next: AtomicU64,
}

fn class() -> DeviceClass {
    DeviceClass::parse("server").unwrap()
}

pub fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

pub fn read(text: &str) -> Ask {
    Ask::Read { name: name(text), version: None, have: None }
}

pub fn nothing() -> SecretValue {
    SecretValue::empty()
}

/// The default policy with these rows and profiles, without the defaults' own tests.
pub fn files(rows: &str, profiles: &str) -> SecretValue {
    let mut files = BundleFiles::defaults(&domain());
    let csv = files.files.get_mut("policy.csv").unwrap();
    csv.push_str(&format!("\n#@ owner=test\n{rows}\n"));
    files.files.insert("posture.toml".to_owned(), profiles.to_owned());
    files.files.retain(|name, _| !name.starts_with("tests/"));
    SecretValue::new(files.to_json())
}

/// Puts rows and profiles in force.
pub async fn activate(operator: &Client, rows: &str, profiles: &str) {
    operator.ask(Ask::PolicyActivate {}, files(rows, profiles)).await.unwrap();
}

/// Writes a new version of a secret.
pub async fn write(operator: &Client, to: &str) {
    let ask = Ask::Write { name: name(to), cas: None, labels: None, staged: false };
    operator.ask(ask, SecretValue::new(to.as_bytes().to_vec())).await.unwrap();
}

/// Every record of the log.
pub async fn records(operator: &Client) -> Vec<Value> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let ask = Ask::LogRead { from, limit: 10_000, holding: None };
        let (_, released) = operator.ask(ask, nothing()).await.unwrap();
        let Answer::Records { next, size, .. } = released.answer else { panic!("no records") };
        for line in std::str::from_utf8(released.body.expose()).unwrap().lines() {
            all.push(serde_json::from_str::<Value>(line).unwrap()["record"].clone());
        }
        if next >= size || next <= from {
            return all;
        }
        from = next;
    }
}

impl Machine {
    /// A new device with a connection; it has not reported.
    pub async fn enrol(house: &House, operator: &Client) -> Self {
        let ask = Ask::TokenCreate { class: class(), ttl_s: 3600 };
        let (_, made) = operator.ask(ask, nothing()).await.unwrap();
        let token = JoinToken::parse(std::str::from_utf8(made.body.expose()).unwrap()).unwrap();
        let device = DeviceKey::generate().unwrap();
        let (chain, key) = device.self_signed().unwrap();
        let (place, roots, secret) = (&token.enrolment, &[token.root], token.secret);
        let enrolling =
            wire::enroll(place, &token.domain, roots, chain, key, "m", secret, house.clock());
        let enrolled = enrolling.await.unwrap();
        let credentials = Credentials {
            domain: token.domain,
            broker: token.broker,
            chain: enrolled.chain,
            key: device.private(),
            bundle: enrolled.bundle,
        };
        let client = Client::connect(&credentials, house.clock()).await.unwrap();
        let machine = Self {
            device,
            credentials,
            client,
            clock: house.clock(),
            session: EvidenceKey::generate().unwrap(),
            seq: AtomicU64::new(0),
            facts: Mutex::default(),
            next: AtomicU64::new(0),
        };
        machine.listens_anywhere(false);
        machine
    }

    /// What it says of itself from now on.
    pub fn listens_anywhere(&self, yes: bool) {
        let mut facts = self.facts.lock().unwrap();
        facts.state(FactName::NET_LISTEN_ANY, Ok(FactValue::Bool(yes))).unwrap();
    }

    pub fn id(&self) -> DeviceId {
        self.device.id()
    }

    /// One report by the session key `session`.
    async fn report_by(&self, session: &EvidenceKey) -> Result<String, ClientError> {
        let facts = self.facts.lock().unwrap().clone();
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let broker = format!("spiffe://{}/doorward/broker", domain());
        let sign = |nonce: &[u8; 32], exporter: &[u8; 32]| {
            let endorse = |message: &[u8]| self.device.sign_asn1(message).unwrap();
            let (spki, now) = (self.device.spki(), self.clock.now());
            let (id, boot) = (self.id(), "0-a");
            let signed =
                session.sign(id, &broker, nonce, exporter, spki, &facts, boot, seq, now, endorse);
            signed.0.to_vec()
        };
        let (_, released) = self.client.report(facts.digest(), sign).await?;
        match released.answer {
            Answer::Reported { posture, .. } => Ok(posture),
            other => panic!("{other:?}"),
        }
    }

    /// One honest report.
    pub async fn report(&self) -> Result<String, ClientError> {
        self.report_by(&self.session).await
    }

    /// One report of other facts than were announced.
    pub async fn lie(&self) -> Result<String, ClientError> {
        let broker = format!("spiffe://{}/doorward/broker", domain());
        let facts = self.facts.lock().unwrap().clone();
        let sign = |nonce: &[u8; 32], _: &[u8; 32]| {
            // The exporter of no connection.
            let endorse = |message: &[u8]| self.device.sign_asn1(message).unwrap();
            let (spki, now, seq) = (self.device.spki(), self.clock.now(), u64::MAX - 1);
            let signed = self.session.sign(
                self.id(),
                &broker,
                nonce,
                &[7; 32],
                spki,
                &facts,
                "0-a",
                seq,
                now,
                endorse,
            );
            signed.0.to_vec()
        };
        let (_, released) = self.client.report(facts.digest(), sign).await?;
        panic!("taken: {:?}", released.answer);
    }

    /// Registers a workload of this machine and has an SVID issued for it.
    pub async fn workload(&self, operator: &Client, path: &str) -> Credentials {
        self.workload_held(operator, path, false).await
    }

    /// The same; `agent_held` says that the key stays with the agent.
    pub async fn workload_held(
        &self,
        operator: &Client,
        path: &str,
        agent_held: bool,
    ) -> Credentials {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let program = format!("/usr/bin/app{number}");
        let entry = EntryDraft {
            spiffe_id: domain().id(path).unwrap(),
            class: class(),
            device: Some(self.id()),
            selectors: vec![Selector::Uid(4242), Selector::Path(program.clone())],
            ttl_s: None,
            default: false,
            federates_with: Vec::new(),
            hint: None,
            jwt_alg: Default::default(),
        };
        let made = operator.ask(Ask::EntryCreate { entry }, nothing()).await.unwrap().1;
        let Answer::Entries { mut items, .. } = made.answer else { panic!("no entry") };
        self.issue(&items.remove(0), program, agent_held).await
    }

    async fn issue(&self, entry: &Entry, program: String, agent_held: bool) -> Credentials {
        let key = WorkloadKey::generate().unwrap();
        #[rustfmt::skip]
        let workload = WorkloadFacts {
            pid: 1, start_ticks: 1, uid: 4242, gid: 4242, path: Some(program), exe_sha256: None,
            unit: None, pod_uid: None, container_id: None, pinned: true,
            image_digest: None,
        };
        let (spiffe_id, public_key) = (entry.draft.spiffe_id.clone(), STANDARD.encode(key.spki()));
        let ask = Ask::Issue { entry: entry.id, spiffe_id, public_key, workload, agent_held };
        let (_, released) = self.client.ask(ask, nothing()).await.unwrap();
        let Answer::Certificate { chain, bundle, .. } = released.answer else { panic!("no SVID") };
        let der = |all: Vec<String>| {
            all.iter().map(|text| STANDARD.decode(text).unwrap().into()).collect::<Vec<_>>()
        };
        Credentials {
            domain: self.credentials.domain.clone(),
            broker: self.credentials.broker.clone(),
            chain: der(chain),
            key: key.private(),
            bundle: der(bundle),
        }
    }
}
