//! Relationships with other trust domains, over a store in memory: what is taken and what is not, what
//! is fetched when, and what outlives what.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::UnixTime;

use super::fake_store::{Room, domain, nobody};
use super::federated::FederationError;
use super::fetches::DueFetch;
use super::restore::EpochFloor;
use crate::identity::vectors::{Authority as Signer, Draft};
use crate::identity::{BundleDocument, Caller, CallerKind, Standing, SvidVerifier, Task, sample};
use crate::model::limits::{BUNDLE_FETCHED_STEP, BUNDLE_REFRESH, FEDERATIONS_MAX};
use crate::model::{
    Answer, Ask, Code, Endpoint, EndpointProfile, EndpointUrl, Failure, FederatedDomain,
    FederationStep as Step, RelationshipId, SecretValue, SpiffeId, Target, TrustDomain,
};

fn other(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn root(domain: &str) -> Signer {
    Signer::root(&Draft::authority("root", domain), &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn document(domain: &str, roots: &[&Signer], sequence: u64) -> Vec<u8> {
    let roots = roots.iter().map(|root| root.certificate.clone()).collect();
    let hint = Duration::from_secs(120);
    BundleDocument::new(other(domain), roots, Vec::new(), sequence, hint).unwrap().to_json()
}

fn web(host: &str) -> Endpoint {
    let url = EndpointUrl::parse(&format!("https://{host}/")).unwrap();
    Endpoint { url, profile: EndpointProfile::HttpsWeb {} }
}

fn spiffe(id: &str) -> Endpoint {
    let endpoint_id = SpiffeId::parse(id).unwrap();
    Endpoint { profile: EndpointProfile::HttpsSpiffe { endpoint_id }, ..web("b.example") }
}

async fn step(room: &Room, caller: &Caller, step: Step, body: &[u8]) -> Result<Answer, Failure> {
    let body = SecretValue::new(body.to_vec());
    let done = room.authority.federation_step(caller, &step, &body, Some(1), room.now()).await;
    done.map(|released| released.answer)
}

async fn act(room: &Room, what: Step, body: &[u8]) -> Result<FederatedDomain, Failure> {
    match step(room, &nobody(), what, body).await? {
        Answer::Federation { mut items } => Ok(items.remove(0)),
        other => panic!("{other:?}"),
    }
}

async fn add(
    room: &Room,
    name: &str,
    endpoint: Option<Endpoint>,
    body: &[u8],
) -> Result<FederatedDomain, Failure> {
    act(room, Step::Add { trust_domain: other(name), endpoint }, body).await
}

fn set(name: &str, force: bool) -> Step {
    Step::SetBundle { trust_domain: other(name), force }
}

fn trusted(room: &Room, name: &str) -> Option<usize> {
    room.identity.view().bundles.get(&other(name)).map(|bundle| bundle.roots.len())
}

#[tokio::test]
async fn a_bundle_is_in_force_for_its_own_domain_until_the_relationship_ends() {
    let room = Room::new().await;
    let (one, two) = (root("b.example"), root("b.example"));
    let made = add(&room, "b.example", None, &document("b.example", &[&one], 7)).await.unwrap();
    assert_eq!((made.sequence, made.roots, made.age_s), (Some(7), 1, Some(0)));
    assert_eq!((made.endpoint, made.every_s, made.fault), (None, None, None));
    assert_eq!((trusted(&room, "b.example"), trusted(&room, "corp.example")), (Some(1), Some(1)));
    assert_eq!(room.identity.view().trust_domain, domain());

    // The map of all roots stays the same one as long as no root has changed.
    let before = Arc::clone(&room.identity.view().bundles);
    room.device("server").await;
    assert!(Arc::ptr_eq(&before, &room.identity.view().bundles));

    room.clock.advance(Duration::from_secs(60));
    let next = document("b.example", &[&one, &two], 8);
    let set = act(&room, set("b.example", false), &next).await.unwrap();
    assert_eq!((set.sequence, set.roots), (Some(8), 2));
    let again = room.again().await;
    assert_eq!(trusted(&again, "b.example"), Some(2), "a restart keeps it");
    again.clock.advance(Duration::from_secs(30));
    let listed = step(&again, &nobody(), Step::List {}, b"").await.unwrap();
    let Answer::Federation { items } = listed else { panic!() };
    assert_eq!((items.len(), items[0].age_s), (1, Some(30)));

    let gone = Step::Remove { trust_domain: other("b.example"), id: made.id };
    assert_eq!(again.authority.locate_federated(&gone), Target::Itself);
    step(&again, &nobody(), gone.clone(), b"").await.unwrap();
    assert_eq!(trusted(&again, "b.example"), None);
    assert_eq!(again.authority.locate_federated(&gone), Target::Absent);
    assert_eq!(trusted(&again.again().await, "b.example"), None);
}

#[tokio::test]
async fn what_must_not_be_taken_changes_nothing() {
    let room = Room::new().await;
    let (b, c) = (root("b.example"), root("c.example"));
    let good = document("b.example", &[&b], 7);
    add(&room, "b.example", None, &good).await.unwrap();
    let before = room.store.rows();
    let own = room.authority.bundle_document().to_json();
    let unsigned = String::from_utf8(good.clone()).unwrap().replace("\"spiffe_sequence\":7,", "");
    let unsigned = unsigned.replace(",\"spiffe_sequence\":7", "");
    assert!(!unsigned.contains("sequence"));
    let long = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(1024 * 1024));
    for (name, body, want) in [
        ("rubbish", b"<html>".to_vec(), "no bundle document"),
        ("nothing", Vec::new(), "no bundle document"),
        ("too large", long.into_bytes(), "no bundle document"),
        ("keys that nobody can use", b"{\"keys\":[{}]}".to_vec(), "none of its 1 keys"),
        ("our own bundle", own, "a key of our own"),
        ("another's keys", document("b.example", &[&c], 8), "c.example"),
        ("another's keys beside", document("b.example", &[&b, &c], 8), "c.example"),
        ("an older one", document("b.example", &[&b], 6), "older than 7"),
        ("another of the same number", document("b.example", &[], 7), "same sequence"),
        ("one without a number", unsigned.into_bytes(), "no sequence number"),
    ] {
        let refused = act(&room, set("b.example", false), &body).await.unwrap_err();
        let hint = refused.hint.unwrap_or_default();
        assert!(hint.contains(want) && hint.contains("nothing was changed"), "{name}: {hint}");
        assert_eq!(room.store.rows(), before, "{name}");
        assert_eq!(trusted(&room, "b.example"), Some(1), "{name}");
    }
    assert!(act(&room, set("b.example", false), &good).await.is_ok(), "the same once more");
    let older = document("b.example", &[&b], 6);
    let forced = act(&room, set("b.example", true), &older).await.unwrap();
    assert_eq!(forced.sequence, Some(6), "an operator may say so");
    let none = act(&room, set("b.example", false), &document("b.example", &[], 7)).await.unwrap();
    assert_eq!((none.roots, trusted(&room, "b.example")), (0, Some(0)), "an empty one counts");
}

#[tokio::test]
async fn a_relationship_is_whole_or_is_none() {
    let room = Room::new().await;
    let b = root("b.example");
    let good = document("b.example", &[&b], 1);
    let before = room.store.rows();
    let broker = "spiffe://b.example/doorward/broker";
    for (name, endpoint, body, want) in [
        ("corp.example", None, &good[..], "our own trust domain"),
        ("b.example", None, b"", "must be brought"),
        ("b.example", Some(spiffe(broker)), b"", "to begin with"),
        ("b.example", Some(spiffe("spiffe://c.example/x")), &good, "federated with already"),
        ("b.example", Some(spiffe("spiffe://b.example")), &good, "must be one of that domain"),
        ("b.example", Some(web("b.example")), b"{}", "no bundle document"),
    ] {
        let refused = add(&room, name, endpoint, body).await.unwrap_err().hint.unwrap_or_default();
        assert!(refused.contains(want), "{want}: {refused}");
    }
    assert_eq!(room.store.rows(), before);
    add(&room, "b.example", Some(spiffe(broker)), &good).await.unwrap();
    let twice = add(&room, "b.example", Some(web("b.example")), b"").await.unwrap_err();
    assert_eq!(twice.code, Code::Conflict);
    let by_ours = spiffe("spiffe://corp.example/relay");
    add(&room, "c.example", Some(by_ours), b"").await.expect("an endpoint of our own domain");
    add(&room, "d.example", Some(spiffe("spiffe://c.example/x")), b"").await.expect("and of c");
    let refresh = Step::Refresh { trust_domain: other("e.example") };
    assert_eq!(room.authority.locate_federated(&refresh), Target::Absent);
    for number in 3..FEDERATIONS_MAX {
        let name = format!("d{number}.example");
        add(&room, &name, Some(web("b.example")), b"").await.unwrap();
    }
    let many = add(&room, "last.example", Some(web("b.example")), b"").await.unwrap_err();
    assert_eq!(many.code, Code::TooLarge);
}

fn fetched(room: &Room, due: &DueFetch, fault: Option<&str>) -> bool {
    room.authority.fetch_ended(due, fault.map(str::to_owned), 128, room.now())
}

#[tokio::test]
async fn a_bundle_is_fetched_when_its_domain_wishes_or_somebody_has_a_reason() {
    let room = Room::new().await;
    let due = || room.authority.due_fetches(8, room.now());
    add(&room, "b.example", Some(web("b.example")), b"").await.unwrap();
    add(&room, "m.example", None, &document("m.example", &[], 1)).await.unwrap();
    let first = due();
    assert_eq!(first.len(), 1, "at once, and only where there is an endpoint");
    assert!(due().is_empty(), "one at a time");
    assert!(!fetched(&room, &first[0], None));
    assert!(due().is_empty(), "its time has not come");
    room.clock.advance(BUNDLE_REFRESH * 8 / 10);
    assert!(due().is_empty());
    room.clock.advance(BUNDLE_REFRESH * 3 / 10);
    let second = due();
    assert!(fetched(&room, &second[0], Some("it hangs")), "a fault is news");
    assert!(due().is_empty(), "a failure brings the next one no nearer");
    step(&room, &nobody(), Step::Refresh { trust_domain: other("b.example") }, b"").await.unwrap();
    let third = due();
    assert!(!fetched(&room, &third[0], Some("it hangs")), "the same fault is none");
    let Answer::Federation { items } = step(&room, &nobody(), Step::List {}, b"").await.unwrap()
    else {
        panic!()
    };
    assert_eq!((items[0].attempts, items[0].fault.as_deref()), (3, Some("it hangs")));
    let manual = Step::Refresh { trust_domain: other("m.example") };
    assert_eq!(step(&room, &nobody(), manual, b"").await.unwrap_err().code, Code::Conflict);

    // A leaf under a key that is not in the bundle: once, and not more often than the bound.
    let take = |due: &DueFetch, body: Vec<u8>| {
        let task = CallerKind::Broker(Task::Federation);
        let id = "spiffe://corp.example/doorward/task/federation";
        let caller = sample::caller(id, task, Standing::Live, None);
        let take =
            Step::Take { trust_domain: due.trust_domain.clone(), relationship: due.relationship };
        let room = &room;
        async move { step(room, &caller, take, &body).await }
    };
    let (known, unknown) = (root("b.example"), root("b.example"));
    take(&third[0], document("b.example", &[&known], 1)).await.unwrap();
    let show = |by: &Signer| {
        let mut leaf = Draft::leaf("spiffe://b.example/x");
        leaf.not_before = room.now().wall();
        let leaf = leaf.signed_by(by, &rcgen::KeyPair::generate().unwrap());
        room.identity.peer(&[leaf], room.now())
    };
    room.clock.advance(Duration::from_secs(11));
    assert!(show(&known).is_ok() && due().is_empty(), "the control");
    assert!(show(&unknown).is_err());
    let fourth = due();
    assert_eq!(fourth.len(), 1);
    assert!(show(&unknown).is_err() && due().is_empty(), "while one is under way");
    fetched(&room, &fourth[0], None);
    assert!(show(&unknown).is_err() && due().is_empty(), "and not at once again");
    room.clock.advance(Duration::from_secs(11));
    let fifth = due();
    assert_eq!(fifth.len(), 1);
    fetched(&room, &fifth[0], None);

    // An endpoint that can't prove itself by such a key is asked at its own time: it came not to us.
    room.clock.advance(Duration::from_secs(11));
    let id = SpiffeId::parse("spiffe://b.example/x").unwrap();
    let clock = Arc::clone(&room.clock) as Arc<dyn crate::model::Clock>;
    let verifier = SvidVerifier::for_endpoint(Arc::clone(&room.identity), clock, id);
    let leaf = |by: &Signer| {
        let mut leaf = Draft::leaf("spiffe://b.example/x");
        leaf.not_before = room.now().wall();
        let leaf = leaf.signed_by(by, &rcgen::KeyPair::generate().unwrap());
        let (name, now) = ("b.example".try_into().unwrap(), UnixTime::now());
        verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
    };
    assert!(leaf(&known) && !leaf(&unknown));
    assert!(due().is_empty());
}

#[tokio::test]
async fn only_the_brokers_task_takes_and_only_for_the_relationship_that_it_fetched_for() {
    let room = Room::new().await;
    let b = root("b.example");
    let made = add(&room, "b.example", Some(web("b.example")), b"").await.unwrap();
    let due = room.authority.due_fetches(1, room.now()).remove(0);
    let body = document("b.example", &[&b], 3);
    assert_eq!(room.authority.weigh_fetched(&due, &body, room.now()), Ok(true));
    let take = |id| Step::Take { trust_domain: other("b.example"), relationship: id };
    let refused = step(&room, &nobody(), take(made.id), &body).await.unwrap_err();
    assert_eq!(refused.code, Code::Invalid, "an operator brings bundles by another name");
    let id = "spiffe://corp.example/doorward/task/federation";
    let task = sample::caller(id, CallerKind::Broker(Task::Federation), Standing::Live, None);
    let stale = step(&room, &task, take(RelationshipId::random()), &body).await.unwrap_err();
    assert_eq!(stale.code, Code::NotFound);
    assert_eq!(trusted(&room, "b.example"), None);
    step(&room, &task, take(made.id), &body).await.unwrap();
    assert_eq!(trusted(&room, "b.example"), Some(1));

    assert_eq!(room.authority.weigh_fetched(&due, &body, room.now()), Ok(false), "nothing new");
    room.clock.advance(BUNDLE_FETCHED_STEP);
    assert_eq!(room.authority.weigh_fetched(&due, &body, room.now()), Ok(true), "still so");
    let older = document("b.example", &[&b], 2);
    let older = room.authority.weigh_fetched(&due, &older, room.now());
    assert_eq!(older, Err(FederationError::Older { held: 3, next: 2 }));
    assert!(!room.authority.fetch_ended(
        &DueFetch { relationship: RelationshipId::random(), ..due },
        Some("late".into()),
        0,
        room.now()
    ));
}

#[tokio::test]
async fn a_store_that_is_older_than_the_log_does_not_bring_a_relationship_back() {
    let room = Room::new().await;
    let body = document("b.example", &[&root("b.example")], 1);
    let made = add(&room, "b.example", None, &body).await.unwrap();
    let backup = Arc::new(room.store.copy());
    let remove = Step::Remove { trust_domain: other("b.example"), id: made.id };
    let ask = Ask::Federation(remove.clone());
    assert!(room.authority.epochs_after(&nobody(), &ask).is_empty(), "not yet");
    step(&room, &nobody(), remove, b"").await.unwrap();
    let floor = room.authority.epochs_after(&nobody(), &ask);
    let floor: EpochFloor = serde_json::from_str(&serde_json::to_string(&floor).unwrap()).unwrap();
    add(&room, "b.example", None, &body).await.unwrap();
    assert!(!room.authority.raise_epochs(&floor).await.unwrap(), "another one stays");

    let back = Room::over(backup, room.clock.clone(), room.key.clone()).await;
    assert_eq!(trusted(&back, "b.example"), Some(1));
    assert!(back.authority.raise_epochs(&floor).await.unwrap());
    assert_eq!(trusted(&back, "b.example"), None);
}

#[tokio::test]
async fn what_we_publish_changes_its_number_with_its_contents() {
    let room = Room::new().await;
    let before = room.authority.bundle_document();
    assert_eq!((before.x509_roots().len(), before.trust_domain()), (1, &domain()));
    assert_eq!(room.authority.bundle_document().to_json(), before.to_json());
    let prepare = crate::model::CaStep::Prepare {};
    room.authority.ca_step(&prepare, Some(1), room.now()).await.unwrap();
    let after = room.again().await.authority.bundle_document();
    assert_eq!(after.x509_roots().len(), 2, "before it signs anything");
    assert!(after.sequence() > before.sequence());
}

#[tokio::test]
async fn a_bundle_that_is_the_same_is_no_news_to_agents() {
    let room = Room::new().await;
    let (one, two) = (root("b.example"), root("b.example"));
    let first = document("b.example", &[&one], 7);
    let changed = || room.authority.mirror().federated().changed();
    assert_eq!(changed(), 0);
    let made = add(&room, "b.example", None, &first).await.unwrap();
    let told = changed();
    assert!(told > 0);
    room.clock.advance(BUNDLE_FETCHED_STEP * 2);
    let set_again = act(&room, set("b.example", false), &first).await.unwrap();
    assert_eq!(set_again.age_s, Some(0), "that it was looked at is kept");
    room.device("server").await;
    assert_eq!(changed(), told, "and wakes nobody");
    act(&room, set("b.example", false), &document("b.example", &[&two], 8)).await.unwrap();
    let other_root = changed();
    assert!(other_root > told);
    let gone = Step::Remove { trust_domain: other("b.example"), id: made.id };
    step(&room, &nobody(), gone, b"").await.unwrap();
    assert!(changed() > other_root);
}
