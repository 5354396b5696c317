//! The room as the line uses it: real callers out of real certificates, under the real verifier.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::fake_store::{Room, copy, domain, draft, id, nobody};
use super::token::JoinToken;
use crate::identity::{
    Caller, CallerKind, EXTENSION_OID, Holder, Identity, Peer, Standing, SvidExtension, Task,
};
use crate::model::limits::{
    AGENT_TTL, BACKDATE, CA_TTL, LAST_SEEN_STEP, OPERATOR_RENEW, OPERATOR_TTL, REENROLL_WINDOW,
    SVID_TTL,
};
use crate::model::{
    Answer, Ask, Code, DeviceClass, DeviceId, Digest, Entry, EntryDraft, EntryId, Failure, Reason,
    Released, SecretValue, Selector, Target, WorkloadFacts, join_secret_digest, rfc3339,
};

/// A holder of a key, enrolled or not.
struct Holding {
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
}

impl Holding {
    fn spki(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    fn device(&self) -> DeviceId {
        DeviceId::of_key(&self.spki())
    }

    /// As the broker sees it now; its chain must have been good when it connected.
    fn caller(&self, room: &Room) -> Caller {
        let peer = room.identity.peer(&self.chain, room.now()).unwrap();
        room.identity.recognise(&peer, room.now())
    }
}

fn facts() -> WorkloadFacts {
    WorkloadFacts {
        pid: 4711,
        start_ticks: 99,
        uid: 1000,
        gid: 1000,
        path: Some("/usr/bin/api".into()),
        exe_sha256: None,
        unit: None,
        pod_uid: None,
        container_id: None,
        image_digest: None,
        pinned: true,
    }
}

/// What an applicant says of the token that it brings: a whole one, or its bare secret.
fn shown(body: &SecretValue) -> Option<Digest> {
    let token = JoinToken::parse(std::str::from_utf8(body.expose()).unwrap());
    token.ok().and_then(|token| token.digest().ok()).or_else(|| join_secret_digest(body.expose()))
}

fn applicant(room: &Room, key: &KeyPair) -> Caller {
    let own = CertificateParams::default().self_signed(key).unwrap();
    let peer = room.identity.applicant(&[own.into()]).unwrap();
    room.identity.recognise(&peer, room.now())
}

async fn act(room: &Room, caller: &Caller, ask: Ask) -> Result<Released, Failure> {
    act_with(room, caller, ask, SecretValue::empty()).await
}

async fn act_with(
    room: &Room,
    caller: &Caller,
    ask: Ask,
    body: SecretValue,
) -> Result<Released, Failure> {
    let target = room.authority.locate(&ask, caller).await.unwrap();
    room.authority.act(caller, &ask, &target, 42, room.now(), body).await
}

/// The chain of an answer, and its SPIFFE ID; bundle and end are checked on the way.
fn chain(room: &Room, released: &Released) -> (String, Vec<CertificateDer<'static>>) {
    let Answer::Certificate { spiffe_id, chain, bundle, until, .. } = &released.answer else {
        panic!("{:?}", released.answer)
    };
    let decode = |text: &String| CertificateDer::from(STANDARD.decode(text).unwrap());
    let chain: Vec<_> = chain.iter().map(decode).collect();
    let roots: Vec<_> = bundle.iter().map(decode).collect();
    assert_eq!(Digest::of(&roots[0]), room.authority.root_digest());
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(*until, rfc3339(leaf.validity().not_after.to_datetime()));
    assert!(released.body.is_empty());
    (spiffe_id.to_string(), chain)
}

async fn enroll(room: &Room, key: KeyPair, body: SecretValue) -> Result<Holding, Failure> {
    let caller = applicant(room, &key);
    let ask = Ask::Enroll { name: "host-1".into(), token: shown(&body), by: None };
    let released = act_with(room, &caller, ask, body).await?;
    let (_, chain) = chain(room, &released);
    Ok(Holding { key, chain })
}

async fn agent(room: &Room, class: &str) -> Holding {
    let class = DeviceClass::parse(class).unwrap();
    let made = room.authority.token_create(&class, 600, None, room.now()).await.unwrap();
    enroll(room, KeyPair::generate().unwrap(), made.body).await.unwrap()
}

async fn operator(room: &Room, name: &str) -> Holding {
    let token = room.authority.operator_token(name).await.unwrap();
    enroll(room, KeyPair::generate().unwrap(), token).await.unwrap()
}

async fn entry(room: &Room, draft: EntryDraft) -> Entry {
    let made = room.authority.entry_create(&draft, None, room.now()).await.unwrap();
    match made.answer {
        Answer::Entries { mut items, .. } => items.remove(0),
        other => panic!("{other:?}"),
    }
}

fn issue_of(entry: &Entry, spki: &[u8]) -> Ask {
    Ask::Issue {
        entry: entry.id,
        spiffe_id: entry.draft.spiffe_id.clone(),
        public_key: STANDARD.encode(spki),
        workload: facts(),
        agent_held: true,
    }
}

async fn issue(room: &Room, agent: &Holding, entry: &Entry) -> Result<Holding, Failure> {
    let key = KeyPair::generate().unwrap();
    let ask = issue_of(entry, &key.subject_public_key_info());
    let released = act(room, &agent.caller(room), ask).await?;
    let (_, chain) = chain(room, &released);
    Ok(Holding { key, chain })
}

#[tokio::test]
async fn an_applicant_becomes_an_agent_that_counts() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let caller = host.caller(&room);
    assert_eq!((caller.kind(), caller.standing()), (CallerKind::Agent, Standing::Live));
    assert_eq!(caller.device(), Some(&host.device()));
    assert_eq!(caller.class().unwrap().as_str(), "server");
    assert_eq!(caller.id().path(), format!("/doorward/agent/{}", host.device()));
    assert_eq!(caller.spki(), Some(host.spki().as_slice()));
    assert_eq!(caller.not_after(), Some(room.now().wall() + AGENT_TTL));

    let released = act(&room, &caller, Ask::Whoami {}).await.unwrap();
    let Answer::Identity { spiffe_id, device, class, until, posture } = released.answer else {
        panic!("no identity")
    };
    assert_eq!((&spiffe_id, device), (caller.id(), Some(host.device())));
    assert_eq!((class.unwrap().as_str(), posture.as_str()), ("server", ""));
    assert_eq!(until, "2026-11-23T13:00:00Z");
}

#[tokio::test]
async fn a_person_becomes_an_operator() {
    let room = Room::new().await;
    let alice = operator(&room, "alice").await;
    let caller = alice.caller(&room);
    assert_eq!((caller.kind(), caller.standing()), (CallerKind::Operator, Standing::Live));
    assert_eq!(caller.id(), &id("/doorward/operator/alice"));
    assert_eq!(caller.not_after(), Some(room.now().wall() + OPERATOR_TTL));
    assert!(caller.class().unwrap().is_person());
}

#[tokio::test]
async fn a_certificate_says_what_the_entry_says_and_nothing_else() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let pay = entry(&room, EntryDraft { ttl_s: Some(900), ..draft("/ns/pay/api") }).await;
    let workload = issue(&room, &host, &pay).await.unwrap();
    let (rest, leaf) = X509Certificate::from_der(&workload.chain[0]).unwrap();
    assert!(rest.is_empty() && workload.chain.len() == 1);
    assert_eq!(leaf.version().0, 2);
    assert_eq!(leaf.subject().iter_attributes().count(), 0, "nobody's name but the SPIFFE ID");
    assert_eq!(leaf.public_key().raw, workload.spki());
    let (from, until) =
        (leaf.validity().not_before.to_datetime(), leaf.validity().not_after.to_datetime());
    assert_eq!(from, room.now().wall() - BACKDATE);
    assert_eq!(until, room.now().wall() + Duration::from_secs(900));
    assert_eq!((leaf.raw_serial().len(), leaf.raw_serial()[0]), (17, 1));

    let mut seen = Vec::new();
    for extension in leaf.extensions() {
        let critical = extension.critical;
        seen.push(match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(_) => ("authority key", critical),
            ParsedExtension::BasicConstraints(it) => {
                assert!(!it.ca && it.path_len_constraint.is_none());
                ("constraints", critical)
            }
            ParsedExtension::ExtendedKeyUsage(it) => {
                assert!(it.server_auth && it.client_auth && !it.any && it.other.is_empty());
                assert!(!it.code_signing && !it.email_protection && !it.time_stamping);
                ("extended usage", critical)
            }
            ParsedExtension::KeyUsage(it) => {
                assert_eq!(it.flags, 1, "digitalSignature alone");
                ("usage", critical)
            }
            ParsedExtension::SubjectAlternativeName(it) => {
                let uri = GeneralName::URI("spiffe://corp.example/ns/pay/api");
                assert_eq!(it.general_names, [uri]);
                ("name", critical)
            }
            ParsedExtension::SubjectKeyIdentifier(_) => ("key", critical),
            _ => {
                let oid: Vec<_> = extension.oid.iter().unwrap().collect();
                assert_eq!(oid, EXTENSION_OID);
                let ours = SvidExtension::from_der(extension.value).unwrap();
                let want = SvidExtension {
                    v: 1,
                    device: host.device(),
                    entry: Some(pay.id),
                    device_epoch: 1,
                    entry_epoch: 1,
                    held_by: Holder::Agent,
                };
                assert_eq!(ours, want);
                ("ours", critical)
            }
        });
    }
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            ("authority key", false),
            ("constraints", true),
            ("extended usage", false),
            ("key", false),
            ("name", true),
            ("ours", false),
            ("usage", true),
        ]
    );
    let caller = workload.caller(&room);
    assert_eq!((caller.kind(), caller.standing()), (CallerKind::Workload, Standing::Live));
    assert_eq!((caller.entry(), caller.holder()), (Some(pay.id), Some(Holder::Agent)));
}

#[tokio::test]
async fn every_allowed_kind_of_key_is_issued_for() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let plain = entry(&room, draft("/a")).await;
    for algorithm in
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
    {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let ask = issue_of(&plain, &key.subject_public_key_info());
        let released = act(&room, &host.caller(&room), ask).await.unwrap();
        let (_, chain) = chain(&room, &released);
        let caller = Holding { key, chain }.caller(&room);
        assert_eq!(caller.not_after(), Some(room.now().wall() + SVID_TTL));
    }
}

#[tokio::test]
async fn an_entry_gives_nothing_to_another_device_or_process() {
    let room = Room::new().await;
    let (host, other) = (agent(&room, "server").await, agent(&room, "server").await);
    let laptop = agent(&room, "laptop").await;
    let all = entry(&room, draft("/all")).await;
    let mine = entry(&room, EntryDraft { device: Some(host.device()), ..draft("/mine") }).await;
    assert!(issue(&room, &host, &all).await.is_ok());
    assert!(issue(&room, &host, &mine).await.is_ok());
    assert!(issue(&room, &other, &all).await.is_ok());
    for (holder, entry) in [(&other, &mine), (&laptop, &all), (&laptop, &mine)] {
        let failure = issue(&room, holder, entry).await.err().unwrap();
        assert_eq!((failure.code, failure.reason), (Code::NotFound, Reason::Absent));
    }

    let picky = EntryDraft {
        selectors: vec![Selector::Uid(0), Selector::Unit("api.service".into())],
        ..draft("/picky")
    };
    let picky = entry(&room, picky).await;
    let failure = issue(&room, &host, &picky).await.err().unwrap();
    let hint = failure.hint.unwrap();
    assert!(hint.contains("uid:0") && hint.contains("unit:api.service"), "{hint}");
}

#[tokio::test]
async fn only_agents_ask_for_workloads_and_have_duties() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let plain = entry(&room, draft("/a")).await;
    let workload = issue(&room, &host, &plain).await.unwrap();
    let alice = operator(&room, "alice").await;
    for holder in [&workload, &alice] {
        let failure = issue(&room, holder, &plain).await.err().unwrap();
        assert_eq!(failure.code, Code::Invalid);
        let duties = act(
            &room,
            &holder.caller(&room),
            Ask::Duties { after: None, holds: None, since: None },
        )
        .await;
        assert_eq!(duties.unwrap_err().code, Code::Invalid);
    }
    let duties =
        act(&room, &host.caller(&room), Ask::Duties { after: None, holds: None, since: None })
            .await
            .unwrap();
    let Answer::Entries { items, .. } = duties.answer else { panic!("no duties") };
    assert_eq!(items, [plain]);
}

#[tokio::test]
async fn what_was_decided_on_is_what_is_issued() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let plain = entry(&room, draft("/a")).await;
    let spki = KeyPair::generate().unwrap().subject_public_key_info();
    let ask = issue_of(&plain, &spki);
    let decided = room.authority.locate(&ask, &nobody()).await.unwrap();
    assert_eq!(decided, Target::Entry { id: plain.id, epoch: 1 });
    let carry_out = async |target: &Target| {
        let caller = host.caller(&room);
        room.authority.act(&caller, &ask, target, 1, room.now(), SecretValue::empty()).await
    };
    assert!(carry_out(&decided).await.is_ok());
    room.authority.revoke(&id("/a"), false, None, room.now()).await.unwrap();
    room.authority.revoke(&id("/a"), true, None, room.now()).await.unwrap();
    let failure = carry_out(&decided).await.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Unavailable, Reason::Changed));
    assert!(carry_out(&Target::Absent).await.is_err());
    assert!(carry_out(&Target::Itself).await.is_err());
    assert!(carry_out(&Target::Entry { id: EntryId::random(), epoch: 2 }).await.is_err());
    assert!(carry_out(&Target::Entry { id: plain.id, epoch: 2 }).await.is_ok());

    let other = Ask::Issue {
        entry: plain.id,
        spiffe_id: id("/b"),
        public_key: STANDARD.encode(&spki),
        workload: facts(),
        agent_held: true,
    };
    assert_eq!(room.authority.locate(&other, &nobody()).await.unwrap(), Target::Absent);
    assert!(act(&room, &host.caller(&room), other).await.is_err());
}

#[tokio::test]
async fn one_key_serves_one_identity() {
    let room = Room::new().await;
    let (host, other) = (agent(&room, "server").await, agent(&room, "server").await);
    let (a, b) = (entry(&room, draft("/a")).await, entry(&room, draft("/b")).await);
    let spki = KeyPair::generate().unwrap().subject_public_key_info();
    let ask = async |holder: &Holding, ask| act(&room, &holder.caller(&room), ask).await;
    assert!(ask(&host, issue_of(&a, &spki)).await.is_ok());
    assert!(ask(&host, issue_of(&a, &spki)).await.is_ok(), "it may be renewed");
    let mut given_out = issue_of(&a, &spki);
    if let Ask::Issue { agent_held, .. } = &mut given_out {
        *agent_held = false;
    }
    for (what, holder, ask_) in [
        ("another identity", &host, issue_of(&b, &spki)),
        ("another device", &other, issue_of(&a, &spki)),
        ("the workload instead of the agent", &host, given_out),
        ("the agent's own key", &host, issue_of(&a, &host.spki())),
        ("another device's key", &host, issue_of(&a, &other.spki())),
    ] {
        assert_eq!(ask(holder, ask_).await.unwrap_err().code, Code::Conflict, "{what}");
    }
    let ca = {
        let active = Arc::clone(&room.authority.issuers().active);
        let (_, root) = X509Certificate::from_der(active.root()).unwrap();
        root.public_key().raw.to_vec()
    };
    assert_eq!(ask(&host, issue_of(&a, &ca)).await.unwrap_err().code, Code::Conflict);
    room.clock.advance(SVID_TTL);
    let host = Holding { chain: again(&room, &host).await.unwrap(), key: host.key };
    assert!(act(&room, &host.caller(&room), issue_of(&b, &spki)).await.is_ok(), "it has ended");
}

#[tokio::test]
async fn keys_of_another_form_get_nothing() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let plain = entry(&room, draft("/a")).await;
    let good = KeyPair::generate().unwrap().subject_public_key_info();
    let rsa = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().subject_public_key_info();
    let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap());
    let texts = [
        String::new(),
        "!".into(),
        STANDARD.encode(&good).trim_end_matches('=').to_owned() + "A",
        STANDARD.encode(&rsa),
        STANDARD.encode(csr.unwrap().der()),
        "A".repeat(16_000),
    ];
    assert!(act(&room, &host.caller(&room), issue_of(&plain, &good)).await.is_ok());
    for text in texts {
        let mut ask = issue_of(&plain, &good);
        if let Ask::Issue { public_key, .. } = &mut ask {
            public_key.clone_from(&text);
        }
        let failure = act(&room, &host.caller(&room), ask).await.unwrap_err();
        assert_eq!(failure.code, Code::Invalid, "{text:.80}");
    }
}

#[tokio::test]
async fn revocation_kills_what_was_issued_and_resuming_does_not_revive_it() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let (a, b) = (entry(&room, draft("/a")).await, entry(&room, draft("/b")).await);
    let (one, two) =
        (issue(&room, &host, &a).await.unwrap(), issue(&room, &host, &b).await.unwrap());
    let standing = |holder: &Holding| holder.caller(&room).standing();
    assert_eq!((standing(&one), standing(&two)), (Standing::Live, Standing::Live));

    room.authority.revoke(&id("/a"), false, None, room.now()).await.unwrap();
    assert_eq!((standing(&one), standing(&two)), (Standing::Revoked, Standing::Live));
    let failure = issue(&room, &host, &a).await.err().unwrap();
    assert_eq!((failure.code, failure.reason), (Code::Denied, Reason::Revoked));
    room.authority.revoke(&id("/a"), true, None, room.now()).await.unwrap();
    assert_eq!(standing(&one), Standing::Revoked, "what was revoked stays dead");
    let fresh = issue(&room, &host, &a).await.unwrap();
    assert_eq!(standing(&fresh), Standing::Live);

    let ask = Ask::EntryDelete { spiffe_id: id("/b"), id: b.id };
    let alice = operator(&room, "alice").await;
    act(&room, &alice.caller(&room), ask).await.unwrap();
    assert_eq!(standing(&two), Standing::Unknown);

    let agent = host.caller(&room);
    let ask = Ask::DeviceRevoke { class: a.draft.class.clone(), id: host.device(), release: false };
    act(&room, &alice.caller(&room), ask).await.unwrap();
    assert_eq!((standing(&host), standing(&fresh)), (Standing::Revoked, Standing::Revoked));
    for failure in [
        again(&room, &host).await.unwrap_err(),
        renew(&room, &host).await.unwrap_err(),
        act(&room, &agent, issue_of(&a, &one.spki())).await.unwrap_err(),
    ] {
        assert_eq!((failure.code, failure.reason), (Code::Denied, Reason::Revoked));
    }
}

/// A renewal on the main port.
async fn renew(room: &Room, holder: &Holding) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let released = act(room, &holder.caller(room), Ask::Renew {}).await?;
    Ok(chain(room, &released).1)
}

/// Coming back on the enrolment port, with the key alone.
async fn again(room: &Room, holder: &Holding) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let caller = applicant(room, &holder.key);
    let released =
        act(room, &caller, Ask::Enroll { name: "host-1".into(), token: None, by: None }).await?;
    Ok(chain(room, &released).1)
}

#[tokio::test]
async fn an_agent_renews_its_own_identity_with_its_own_key() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    room.clock.advance(AGENT_TTL / 2);
    let next = renew(&room, &host).await.unwrap();
    assert_ne!(next, host.chain);
    let before = host.caller(&room);
    let renewed = Holding { key: host.key, chain: next };
    let caller = renewed.caller(&room);
    assert_eq!((caller.id(), caller.spki()), (before.id(), before.spki()));
    assert_ne!(caller.serial(), before.serial());
    assert_eq!(caller.not_after(), Some(room.now().wall() + AGENT_TTL));

    let plain = entry(&room, draft("/a")).await;
    let workload = issue(&room, &renewed, &plain).await.unwrap();
    assert_eq!(renew(&room, &workload).await.unwrap_err().code, Code::Invalid);
    let stranger = applicant(&room, &KeyPair::generate().unwrap());
    assert_eq!(act(&room, &stranger, Ask::Renew {}).await.unwrap_err().code, Code::Invalid);
    let enrolled =
        act(&room, &caller, Ask::Enroll { name: "x".into(), token: None, by: None }).await;
    assert_eq!(enrolled.unwrap_err().code, Code::Invalid);
}

#[tokio::test]
async fn when_a_device_was_seen_is_written_once_an_hour() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let seen = |room: &Room| room.authority.mirror().device(&host.device()).unwrap().last_seen;
    let (first, rows) = (seen(&room), room.store.rows());
    room.clock.advance(LAST_SEEN_STEP / 2);
    renew(&room, &host).await.unwrap();
    assert_eq!(room.store.rows(), rows);
    let host = Holding { chain: renew(&room, &host).await.unwrap(), key: host.key };
    room.clock.advance(LAST_SEEN_STEP / 2);
    let changes = *room.identity.changes().borrow();
    renew(&room, &host).await.unwrap();
    let now = room.authority.mirror().device(&host.device()).unwrap().last_seen;
    assert_eq!(now - first, i64::try_from(LAST_SEEN_STEP.as_secs()).unwrap());
    assert_eq!(*room.identity.changes().borrow(), changes, "no connection is looked at for it");
}

#[tokio::test]
async fn a_device_comes_back_with_its_key_within_the_window_only() {
    let room = Room::new().await;
    let (host, gone) = (agent(&room, "server").await, agent(&room, "server").await);
    room.clock.advance(REENROLL_WINDOW);
    let back = Holding { chain: again(&room, &host).await.unwrap(), key: host.key };
    assert_eq!(back.caller(&room).standing(), Standing::Live);
    room.clock.advance(Duration::from_secs(1));
    assert_eq!(again(&room, &gone).await.unwrap_err().code, Code::Invalid);
    assert!(again(&room, &back).await.is_ok(), "it was seen in between");
    let nobody = Holding { key: KeyPair::generate().unwrap(), chain: Vec::new() };
    let failure = again(&room, &nobody).await.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Denied, Reason::IdentityUnknown));
}

#[tokio::test]
async fn a_login_is_renewed_for_seven_days() {
    let room = Room::new().await;
    let alice = operator(&room, "alice").await;
    room.clock.advance(OPERATOR_TTL / 2);
    assert!(renew(&room, &alice).await.is_ok());
    room.clock.advance(OPERATOR_RENEW - OPERATOR_TTL / 2);
    let last = Holding { chain: again(&room, &alice).await.unwrap(), key: alice.key };
    assert!(renew(&room, &last).await.is_ok());
    room.clock.advance(Duration::from_secs(1));
    for failure in [renew(&room, &last).await.unwrap_err(), again(&room, &last).await.unwrap_err()]
    {
        assert_eq!(failure.code, Code::Invalid);
        assert!(failure.hint.unwrap().contains("doorward login"));
    }
}

#[tokio::test]
async fn no_certificate_outlives_the_root() {
    let room = Room::new().await;
    let end = room.authority.root_life().1;
    room.clock.advance(CA_TTL - Duration::from_secs(600));
    let host = agent(&room, "server").await;
    let plain = entry(&room, EntryDraft { ttl_s: Some(86_400), ..draft("/a") }).await;
    let workload = issue(&room, &host, &plain).await.unwrap();
    assert_eq!(workload.caller(&room).not_after(), Some(end));
    assert_eq!(host.caller(&room).not_after(), Some(end));
    assert_eq!(room.authority.broker(room.now()).ok().unwrap().until, end);
    let (caller, spki) = (host.caller(&room), workload.spki());
    room.clock.advance(Duration::from_secs(600));
    let failure = act(&room, &caller, issue_of(&plain, &spki)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Unavailable, Reason::IdentityExpired));
    assert!(room.authority.broker(room.now()).is_err());
}

#[tokio::test]
async fn nothing_is_signed_while_the_clock_is_wrong() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let plain = entry(&room, draft("/a")).await;
    let (caller, right) = (host.caller(&room), room.now().wall());
    let ask = || {
        let spki = KeyPair::generate().unwrap().subject_public_key_info();
        act(&room, &caller, issue_of(&plain, &spki))
    };
    assert!(ask().await.is_ok());
    let year = Duration::from_secs(10 * 365 * 86_400);
    for wrong in [right + year, right - year] {
        room.clock.set_wall(wrong);
        assert_eq!(ask().await.unwrap_err().reason, Reason::ClockStep);
        let renewed = act(&room, &caller, Ask::Renew {}).await;
        assert_eq!(renewed.unwrap_err().reason, Reason::ClockStep);
        assert_eq!(room.authority.broker(room.now()).err().unwrap().reason, Reason::ClockStep);
    }
    room.clock.set_wall(right);
    assert!(ask().await.is_ok());
}

#[tokio::test]
async fn the_broker_has_an_identity_of_its_own() {
    let room = Room::new().await;
    let own = room.authority.broker(room.now()).ok().unwrap();
    assert_eq!(own.chain.len(), 2, "the enrolment port shows the root");
    assert_eq!(Digest::of(&own.chain[1]), room.authority.root_digest());
    let peer = room.identity.peer(&own.chain, room.now()).unwrap();
    let caller = room.identity.recognise(&peer, room.now());
    assert_eq!(caller.id(), &id("/doorward/broker"));
    assert_eq!(caller.device(), None);
    let key = KeyPair::try_from(&own.key).unwrap();
    assert_eq!(caller.spki(), Some(key.subject_public_key_info().as_slice()));
    assert_eq!(own.until, room.now().wall() + SVID_TTL);
    let other = room.authority.broker(room.now()).ok().unwrap();
    assert_ne!(other.chain[0], own.chain[0]);

    let task = Peer::broker(Task::OwnIdentity);
    let task = room.identity.recognise(&task, room.now());
    let answered = act(&room, &task, Ask::Renew {}).await;
    assert!(answered.is_err(), "a key goes out by own_identity only");
    let task = room.identity.recognise(&Peer::broker(Task::Retention), room.now());
    assert!(act(&room, &task, Ask::Renew {}).await.is_ok());
}

#[tokio::test]
async fn a_certificate_that_our_verifier_refuses_does_not_leave() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let plain = entry(&room, draft("/a")).await;
    let caller = host.caller(&room);
    let ask = || {
        let spki = KeyPair::generate().unwrap().subject_public_key_info();
        act(&room, &caller, issue_of(&plain, &spki))
    };
    assert!(ask().await.is_ok());
    let good = Identity::view(&room.identity).as_ref().clone();
    for broken in ["device", "entry", "issuer", "bundle"] {
        let mut view = good.clone();
        match broken {
            "device" => view.devices = Default::default(),
            "entry" => view.entries = Default::default(),
            "issuer" => view.own_issuers = Default::default(),
            _ => view.bundles = Default::default(),
        }
        room.identity.install(view);
        assert_eq!(ask().await.unwrap_err().code, Code::Internal, "{broken}");
    }
    room.identity.install(good);
    assert!(ask().await.is_ok());
}

#[tokio::test]
async fn asks_of_other_rooms_are_not_carried_out_here() {
    let room = Room::new().await;
    let alice = operator(&room, "alice").await;
    let caller = alice.caller(&room);
    assert!(act(&room, &caller, Ask::DeviceList { after: None }).await.is_ok());
    for ask in [Ask::PolicyRead {}, Ask::Status {}] {
        assert_eq!(act(&room, &caller, ask).await.unwrap_err().code, Code::Internal);
    }
}

#[tokio::test]
async fn every_ask_of_this_room_is_carried_out() {
    let room = Room::new().await;
    let host = agent(&room, "server").await;
    let alice = operator(&room, "alice").await;
    let class = DeviceClass::parse("server").unwrap();
    let caller = alice.caller(&room);
    for ask in [
        Ask::Whoami {},
        Ask::Renew {},
        Ask::TokenCreate { class: class.clone(), ttl_s: 60 },
        Ask::OperatorAdd { name: "bob".into() },
        Ask::DeviceList { after: None },
        Ask::DeviceShow { class: class.clone(), id: host.device() },
        Ask::EntryCreate { entry: draft("/a") },
        Ask::EntryList { after: None },
        Ask::Revoke { spiffe_id: id("/a"), resume: false },
        Ask::Revoke { spiffe_id: id("/a"), resume: true },
        Ask::DeviceRevoke { class, id: host.device(), release: false },
        Ask::OperatorRemove { name: "bob".into() },
    ] {
        let text = format!("{ask:?}");
        assert!(act(&room, &caller, ask).await.is_ok(), "{text}");
    }
    assert_eq!(domain().as_str(), "corp.example");
}

/// What decides whether an enrolment is recorded as allowed at all.
#[tokio::test]
async fn an_applicant_without_a_living_token_or_a_known_key_is_absent() {
    let room = Room::new().await;
    let class = DeviceClass::parse("server").unwrap();
    let made = async || room.authority.token_create(&class, 600, None, room.now()).await.unwrap();
    let (first, late) = (made().await.body, made().await.body);
    let key = KeyPair::generate().unwrap();
    let located = async |caller: &Caller, token: Option<Digest>| {
        let ask = Ask::Enroll { name: "host-1".into(), token, by: None };
        room.authority.locate(&ask, caller).await.unwrap()
    };
    let stranger = applicant(&room, &key);
    assert_eq!(located(&stranger, shown(&first)).await, Target::Itself);
    assert_eq!(located(&stranger, None).await, Target::Absent, "nobody knows this key");
    let mut near = shown(&first).unwrap();
    near.0[31] ^= 1; // the row's key is the first half
    assert_eq!(located(&stranger, Some(near)).await, Target::Absent);

    let ask = Ask::Enroll { name: "host-1".into(), token: shown(&late), by: None };
    let mixed = act_with(&room, &stranger, ask, copy(&first)).await;
    assert_eq!(mixed.unwrap_err().code, Code::Invalid, "the digest is not the token");
    let ask = Ask::Enroll { name: "host-1".into(), token: None, by: None };
    assert_eq!(
        act_with(&room, &stranger, ask, copy(&first)).await.unwrap_err().code,
        Code::Invalid
    );

    let host = enroll(&room, key, copy(&first)).await.unwrap();
    assert_eq!(located(&stranger, shown(&first)).await, Target::Absent, "it is spent");
    let back = applicant(&room, &host.key);
    assert_eq!(located(&back, None).await, Target::Itself);
    room.authority.device_revoke(&class, &host.device(), false, None, room.now()).await.unwrap();
    assert_eq!(located(&back, None).await, Target::Absent);
    assert_eq!(located(&back, shown(&late)).await, Target::Itself);
    room.clock.advance(Duration::from_secs(600));
    assert_eq!(located(&back, shown(&late)).await, Target::Absent, "it has ended");
}
