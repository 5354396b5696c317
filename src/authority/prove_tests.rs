//! One certificate, node or pod lets in one device, whoever tries, and how often, and where.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fake_store::{Room, fresh_key};
use super::mirror::Step;
use super::records::DeviceRecord;
use super::subject_key::SubjectKey;
use crate::model::limits::{AGENT_TTL, DEVICES_MAX, GUESSES_MAX};
use crate::model::{
    Answer, Code, DeviceClass, DeviceId, Digest, EnrolBy, EnrolledBy, Failure, Proven, Reason,
    Shown, TpmTier,
};
use crate::store::Store as _;

fn by_certificate(key: u8, certificate: u8) -> Proven {
    let (key, certificate) = (Digest([key; 32]), Digest([certificate; 32]));
    let by = EnrolledBy::X509 { method: "fleet".into(), certificate, key };
    Proven { by, class: DeviceClass::parse("laptop").unwrap(), ttl_s: Some(600), spends: None }
}

/// A pod's token that ends in ten minutes.
fn by_pod(room: &Room, node: Option<&str>, pod: &str, token: u8) -> Proven {
    let by = EnrolledBy::Kubernetes {
        method: "prod".into(),
        namespace: "doorward".into(),
        service_account: "agent".into(),
        pod: "agent-x".into(),
        pod_uid: pod.into(),
        node: node.map(str::to_owned),
        node_uid: node.map(str::to_owned),
    };
    let spends = Some((Digest([token; 32]), room.now().unix_s() + 600));
    Proven { by, class: DeviceClass::parse("node").unwrap(), ttl_s: None, spends }
}

async fn admit_key(
    room: &Room,
    key: &SubjectKey,
    proven: &Proven,
) -> Result<(DeviceId, DeviceRecord), Failure> {
    let ca = Arc::clone(&room.authority.issuers().active);
    room.authority.admit(&ca, key, "host-1", proven, Some(8), room.now()).await
}

async fn admit(room: &Room, proven: &Proven) -> Result<DeviceId, Failure> {
    admit_key(room, &fresh_key(), proven).await.map(|(device, _)| device)
}

async fn revoke(room: &Room, class: &str, id: &DeviceId, release: bool) {
    let class = DeviceClass::parse(class).unwrap();
    let done = room.authority.device_revoke(&class, id, release, Some(9), room.now()).await;
    done.unwrap();
}

fn conflict(outcome: Result<DeviceId, Failure>) -> String {
    let failure = outcome.unwrap_err();
    assert_eq!((failure.code, failure.reason), (Code::Conflict, Reason::Conflict));
    failure.hint.unwrap()
}

#[tokio::test]
async fn a_certificate_lets_one_device_in_until_an_operator_releases_it() {
    let room = Room::new().await;
    let proven = by_certificate(1, 1);
    let first = admit(&room, &proven).await.unwrap();
    assert_eq!(room.store.last_grant().await.unwrap(), Some(8), "the commit names its grant");
    assert_eq!(room.identity.view().devices[&first].epoch, 1, "identity knows it at once");
    let before = room.store.rows();
    let told = conflict(admit(&room, &proven).await);
    assert!(told.contains("living device") && told.contains(&first.short()), "{told}");
    // The same key in a certificate that was renewed is the same machine.
    assert!(conflict(admit(&room, &by_certificate(1, 2)).await).contains("living"));
    assert_eq!(room.store.rows(), before, "nothing was overwritten");
    let other = admit(&room, &by_certificate(2, 3)).await.unwrap();

    revoke(&room, "laptop", &first, false).await;
    let told = conflict(admit(&room, &proven).await);
    assert!(told.contains("revoked device") && told.contains("--release"), "{told}");
    let restarted = room.again().await;
    assert!(conflict(admit(&restarted, &proven).await).contains("revoked"), "also after a restart");
    revoke(&room, "laptop", &other, true).await;
    assert!(conflict(admit(&room, &proven).await).contains("revoked"), "another one's release");

    revoke(&room, "laptop", &first, true).await;
    let second = admit(&room, &proven).await.unwrap();
    assert!(room.identity.view().devices[&first].revoked, "the first stays ended");
    revoke(&room, "laptop", &first, true).await;
    assert!(conflict(admit(&room, &proven).await).contains(&second.short()), "it is the second's");
    let again = room.again().await;
    assert!(conflict(admit(&again, &proven).await).contains(&second.short()));
}

#[tokio::test]
async fn the_record_tells_what_let_the_device_in_and_how_long_its_certificates_live() {
    let room = Room::new().await;
    let key = fresh_key();
    let proven = by_certificate(1, 1);
    let (device, record) = admit_key(&room, &key, &proven).await.unwrap();
    let class = DeviceClass::parse("laptop").unwrap();
    let shown = room.authority.device_show(&class, &device).unwrap();
    let Answer::Devices { items, .. } = shown.answer else { panic!("{:?}", shown.answer) };
    assert_eq!(items[0].by.as_ref(), Some(&proven.by));
    let ca = Arc::clone(&room.authority.issuers().active);
    let until = |record: &DeviceRecord| {
        let made =
            room.authority.device_certificate(&ca, device, record, &key, room.now()).unwrap();
        match made.answer {
            Answer::Certificate { until, .. } => until,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(until(&record), "2026-11-23T12:10:00Z");
    let usual = crate::model::rfc3339(room.now().wall() + AGENT_TTL);
    let over = DeviceRecord { ttl_s: Some(u32::MAX), ..record.clone() };
    for record in [DeviceRecord { ttl_s: None, ..record }, over] {
        assert_eq!(until(&record), usual);
    }
}

#[tokio::test]
async fn a_pods_token_is_good_for_one_key_until_it_has_ended() {
    let room = Room::new().await;
    let token = by_pod(&room, None, "p1", 1);
    let first = admit(&room, &token).await.unwrap();
    assert!(conflict(admit(&room, &token).await).contains("this pod has enrolled"));
    revoke(&room, "node", &first, true).await;
    for room in [&room, &room.again().await] {
        assert!(conflict(admit(room, &token).await).contains("used already"), "a replay");
    }
    let second = admit(&room, &by_pod(&room, None, "p1", 2)).await.unwrap();
    assert_eq!(room.authority.mirror().bound().tokens(), 2);

    room.clock.advance(Duration::from_secs(600));
    revoke(&room, "node", &second, true).await;
    let third = by_pod(&room, None, "p1", 3);
    admit(&room, &third).await.unwrap();
    assert_eq!(room.authority.mirror().bound().tokens(), 1, "ended ones are forgotten");
    room.clock.advance(Duration::from_secs(600));
    room.device("server").await; // more rows have ended than there are join tokens
    assert_eq!(room.authority.mirror().bound().tokens(), 0);
    room.authority.forget_ended(Some(11), room.now()).await.unwrap();
    assert_eq!(room.again().await.authority.mirror().bound().tokens(), 0);
    assert!(conflict(admit(&room, &by_pod(&room, None, "p1", 4)).await).contains("living"));
}

#[tokio::test]
async fn conflicts_are_told_in_words_but_not_without_end() {
    let room = Room::new().await;
    let (held, free) = (Arc::new(by_certificate(1, 1)), Arc::new(by_certificate(2, 2)));
    let tempered =
        |of: &Arc<Proven>| room.authority.tempered(Shown::Proven(Arc::clone(of)), room.now());
    let whole = |of: &Arc<Proven>| Shown::Proven(Arc::clone(of));
    admit(&room, &held).await.unwrap();
    for _ in 0..GUESSES_MAX {
        assert_eq!(tempered(&held), whole(&held));
    }
    for _ in 0..3 {
        assert_eq!(tempered(&held), Shown::Fault(EnrolBy::X509, "held"));
        assert_eq!(tempered(&free), whole(&free), "nobody else is kept out");
    }
    room.clock.advance(Duration::from_secs(60));
    assert_eq!(tempered(&held), whole(&held));
    let fault = Shown::Fault(EnrolBy::X509, "form");
    assert_eq!(room.authority.tempered(fault.clone(), room.now()), fault);
}

#[tokio::test]
async fn a_node_holds_one_device_whatever_its_pods_are_called() {
    let room = Room::new().await;
    let first = admit(&room, &by_pod(&room, Some("n1"), "p1", 1)).await.unwrap();
    let told = conflict(admit(&room, &by_pod(&room, Some("n1"), "p2", 2)).await);
    assert!(told.contains("this node has enrolled") && told.contains(&first.short()), "{told}");
    assert_eq!(room.authority.mirror().bound().tokens(), 1, "a refusal spends no token");
    assert!(admit(&room, &by_pod(&room, Some("n2"), "p2", 2)).await.is_ok());
}

#[tokio::test]
async fn a_key_that_serves_already_becomes_nobodys_device() {
    let room = Room::new().await;
    let (_, known) = room.device("server").await;
    let failure = admit_key(&room, &known, &by_certificate(1, 1)).await.unwrap_err();
    assert_eq!(failure.code, Code::Conflict);
    let key = fresh_key();
    let until = room.now().unix_s() + 60;
    assert!(room.authority.living_keys.bind(&key.digest(), "w", until, room.now()));
    let failure = admit_key(&room, &key, &by_certificate(1, 1)).await.unwrap_err();
    assert_eq!(failure.code, Code::Conflict);
    assert!(admit(&room, &by_certificate(1, 1)).await.is_ok(), "neither took the certificate");
}

/// 64 threads, half of them at each of two brokers over one store, all at once.
#[tokio::test]
async fn of_64_racing_enrolments_exactly_one_wins() {
    let one = Room::new().await;
    let two = one.again().await;
    for proven in [by_certificate(1, 1), by_pod(&one, Some("n1"), "p1", 1)] {
        let (before, keys) = (one.again().await, (0..64).map(|_| fresh_key()).collect::<Vec<_>>());
        let before = before.authority.mirror().devices().len();
        let start = Barrier::new(keys.len());
        let race = |(at, key): (usize, &SubjectKey)| {
            let room = if at % 2 == 0 { &one } else { &two };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            start.wait();
            runtime.block_on(admit_key(room, key, &proven))
        };
        let race = &race;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                keys.iter().enumerate().map(|racer| scope.spawn(move || race(racer))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(outcomes.iter().flatten().count(), 1);
        for failure in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert_eq!(failure.code, Code::Conflict, "{failure:?}");
        }
        let after = one.again().await.authority.mirror().devices().len();
        assert_eq!(after, before + 1, "one device in the store");
    }
}

#[tokio::test]
async fn a_commit_that_fails_binds_nothing_and_one_whose_answer_is_lost_is_found_again() {
    let room = Room::new().await;
    let (kept, lost) = (by_certificate(1, 1), by_certificate(2, 2));
    room.store.fails_next.store(true, Ordering::SeqCst);
    assert_eq!(admit(&room, &kept).await.unwrap_err().code, Code::Unavailable);
    assert!(admit(&room, &kept).await.is_ok());
    room.store.loses_next_answer.store(true, Ordering::SeqCst);
    assert_eq!(admit(&room, &lost).await.unwrap_err().code, Code::Unavailable);
    assert!(conflict(admit(&room, &lost).await).contains("living"), "the store was read anew");
}

#[tokio::test]
async fn a_damaged_row_stops_the_start() {
    let room = Room::new().await;
    admit(&room, &by_certificate(1, 1)).await.unwrap();
    let open = async || super::bound::BoundRows::load(room.store.as_ref()).await;
    assert!(open().await.is_ok());
    room.store.tamper(crate::store::Table::Authority, |value| {
        let of = value.windows(6).position(|at| at == b"\"of\":\"");
        if let Some(at) = of {
            value[at + 6] = if value[at + 6] == b'0' { b'1' } else { b'0' };
        }
    });
    assert!(open().await.is_err());
}

/// So many devices, of which nothing is known but that they are there.
async fn crowd(room: &Room, from: usize, many: usize) {
    let class = DeviceClass::parse("server").unwrap();
    let steps: Vec<Step> = (from..from + many)
        .map(|n| {
            let key = Digest::of(&n.to_be_bytes());
            let record = DeviceRecord::new(key, class.clone(), "one-of-many", room.now());
            Step::Device(DeviceId(key), record)
        })
        .collect();
    let plan = |_: &super::mirror::Mirror| Ok((steps.clone(), ()));
    room.authority.change(None, plan).await.unwrap();
}

#[tokio::test]
async fn machines_that_come_by_themselves_leave_places_and_operators_come_in_when_there_are_none() {
    let room = Room::new().await;
    let last = DEVICES_MAX - DEVICES_MAX / 10 - 1;
    crowd(&room, 0, last).await;
    admit(&room, &by_certificate(1, 1)).await.unwrap(); // the last place of theirs
    let refused = admit(&room, &by_certificate(2, 2)).await.unwrap_err();
    assert_eq!(refused.code, Code::TooLarge);
    assert!(refused.hint.is_some_and(|hint| hint.contains("90000 devices")));
    // A token that an operator made still lets a machine in.
    room.device("server").await;
    let there = room.authority.mirror().devices().len();
    let (class, rest) = (DeviceClass::parse("server").unwrap(), DEVICES_MAX - there);
    crowd(&room, last, rest).await;
    assert_eq!(room.authority.mirror().devices().len(), DEVICES_MAX);
    let token = room.authority.token_create(&class, 60, Some(1), room.now()).await.unwrap();
    let full = room.authority.redeem(&fresh_key(), "x", &token.body, Some(2), room.now()).await;
    assert_eq!(full.unwrap_err().code, Code::TooLarge);
    let operator = room.authority.operator_add("al", Some(3), room.now()).await.unwrap();
    let came = room.authority.redeem(&fresh_key(), "x", &operator.body, Some(4), room.now()).await;
    assert_eq!(came.unwrap().1.operator.as_deref(), Some("al"), "they alone can mend it");
}

fn by_tpm(ek: u8) -> Proven {
    let (method, tier) = ("chips".to_owned(), TpmTier::Tpm);
    let by = EnrolledBy::Tpm { method, ek: Digest([ek; 32]), attestation_key: "00".into(), tier };
    Proven { by, class: DeviceClass::parse("server").unwrap(), ttl_s: None, spends: None }
}

#[tokio::test]
async fn a_tpm_is_one_device_under_one_id_whatever_keys_it_makes() {
    let room = Room::new().await;
    let (first_key, second_key) = (fresh_key(), fresh_key());
    let (id, first) = admit_key(&room, &first_key, &by_tpm(1)).await.unwrap();
    assert_eq!((id, first.epoch), (DeviceId(Digest([1; 32])), 1), "the endorsement key's digest");
    let status = |room: &Room| room.identity.view().devices[&id].clone();
    let resident = status(&room).resident.unwrap();
    assert_eq!((resident.key, resident.tier), (first_key.digest(), TpmTier::Tpm));
    // Another key of the same TPM, the same key by another TPM, and the key as a workload's.
    assert!(conflict(admit(&room, &by_tpm(1)).await).contains("this tpm has enrolled the living"));
    let stolen = admit_key(&room, &first_key, &by_tpm(2)).await.map(|(id, _)| id);
    assert!(conflict(stolen).contains("enrolled already"));
    assert_eq!(room.authority.mirror().device_of_key(&first_key.digest()), Some(id));

    revoke(&room, "server", &id, false).await;
    assert!(conflict(admit(&room, &by_tpm(1)).await).contains("revoked"));
    revoke(&room, "server", &id, true).await;
    let revoked = status(&room);
    assert!(revoked.revoked && revoked.epoch == 2);
    for room in [&room, &room.again().await] {
        let old = admit_key(room, &first_key, &by_tpm(1)).await.map(|(id, _)| id);
        assert!(conflict(old).contains("enrolled already"), "its former key is spent");
    }
    let (again, second) = admit_key(&room, &second_key, &by_tpm(1)).await.unwrap();
    assert_eq!((again, second.epoch, second.revoked), (id, 3, false));
    let living = status(&room);
    assert_eq!((living.epoch, living.revoked), (3, false), "what was issued before is dead");
    assert_eq!(living.resident.unwrap().key, second_key.digest());
    let restarted = room.again().await;
    assert_eq!(status(&restarted).epoch, 3);
    assert!(conflict(admit(&restarted, &by_tpm(1)).await).contains("living"));
}
