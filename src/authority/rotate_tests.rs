//! The whole life of authorities over a store in memory: who signs, who is trusted, who is waited for,
//! and what comes back after a restart or a restore.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;

use super::fake_store::{FakeStore, Room, domain, fresh_key, keys, nobody, places};
use super::restore::EpochFloor;
use super::room::Authority;
use super::subject_key::SubjectKey;
use crate::identity::{Caller, CallerKind, Peer, Standing, sample};
use crate::model::limits::{
    AGENT_TTL, AUTHORITIES_MAX, CA_TTL, LAST_SEEN_STEP, LEAF_TTL_MAX, REENROLL_WINDOW,
};
use crate::model::{
    Answer, Ask, AuthorityState as State, BundleHeld, CaStanding, CaStep, Code, DeviceClass,
    DeviceId, Digest, Failure, Released,
};
use crate::store::{Store as _, Table};

const PREPARE: CaStep = CaStep::Prepare {};
const ACTIVATE: CaStep = CaStep::Activate { after_s: None, force: false };
const FORCED: CaStep = CaStep::Activate { after_s: None, force: true };

fn standing(released: Released) -> CaStanding {
    match released.answer {
        Answer::Authorities(standing) => standing,
        other => panic!("{other:?}"),
    }
}

async fn step(room: &Room, step: CaStep) -> Result<CaStanding, Failure> {
    let target = room.authority.locate(&Ask::Ca(step.clone()), &nobody()).await.unwrap();
    let asked = Ask::Ca(step);
    room.authority
        .act(&nobody(), &asked, &target, 7, room.now(), crate::model::SecretValue::empty())
        .await
        .map(standing)
}

fn states(standing: &CaStanding) -> Vec<State> {
    standing.authorities.iter().map(|it| it.state).collect()
}

/// An enrolled agent with its certificate chain.
async fn agent(room: &Room) -> (DeviceId, SubjectKey, Peer) {
    let (device, key) = room.device("server").await;
    let peer = renewed(room, device, &key).await.unwrap();
    (device, key, peer)
}

async fn renewed(room: &Room, device: DeviceId, key: &SubjectKey) -> Result<Peer, Failure> {
    let released = room.authority.again(&device, key, None, room.now()).await?;
    let Answer::Certificate { chain, .. } = released.answer else { panic!("no certificate") };
    let leaf = CertificateDer::from(STANDARD.decode(&chain[0]).unwrap());
    Ok(room.identity.peer(&[leaf], room.now()).unwrap())
}

fn stands(room: &Room, peer: &Peer) -> Standing {
    room.identity.recognise(peer, room.now()).standing()
}

/// As an agent says what it has in force.
fn says(room: &Room, device: DeviceId, sequence: u64, tainted: u32) {
    let id = format!("spiffe://corp.example/doorward/agent/{device}");
    let class = DeviceClass::parse("server").unwrap();
    let caller: Caller =
        sample::caller(&id, CallerKind::Agent, Standing::Live, Some((class, device)));
    room.authority.bundle(&caller, Some(BundleHeld { sequence, tainted })).unwrap();
}

#[tokio::test]
async fn a_drill_moves_everybody_and_ends_the_old_key() {
    let room = Room::new().await;
    let (device, key, before) = agent(&room).await;
    let old = room.authority.root_digest();
    let token = room.authority.operator_token("ann").await.unwrap();

    let prepared = step(&room, PREPARE).await.unwrap();
    assert_eq!(states(&prepared), [State::Prepared, State::Active]);
    assert_eq!(room.authority.root_digest(), old, "it signs nothing yet");
    assert_eq!(room.identity.view().bundles[&domain()].roots.len(), 2, "and is trusted");
    assert_eq!((prepared.live, prepared.acknowledged), (1, 0));

    let refused = step(&room, ACTIVATE).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    says(&room, device, prepared.sequence - 1, 0);
    assert!(step(&room, ACTIVATE).await.is_err(), "an older bundle is not this one");
    says(&room, device, prepared.sequence, 0);
    let active = step(&room, ACTIVATE).await.unwrap();
    let new = room.authority.root_digest();
    assert_ne!(new, old);
    assert_eq!(states(&active), [State::Active, State::Old]);
    assert_eq!(stands(&room, &before), Standing::Live, "what was signed lives on");

    // A token from before is still good, and the device that it makes lives by the new one.
    let made = room.authority.redeem(&fresh_key(), "desk", &token, None, room.now()).await.unwrap();
    assert_eq!(made.1.issuer, Some(new));

    let early = step(&room, CaStep::Revoke { id: old, force: false }).await.unwrap_err();
    assert!(early.hint.unwrap().contains("taint"), "nobody knows who lives by it");
    let tainted = step(&room, CaStep::Taint { id: old }).await.unwrap();
    says(&room, device, tainted.sequence, 2);
    let on_it = step(&room, CaStep::Revoke { id: old, force: false }).await.unwrap_err();
    assert!(on_it.hint.unwrap().starts_with("1 agents and 2 identities"));
    let after = renewed(&room, device, &key).await.unwrap();
    says(&room, device, tainted.sequence, 0);
    let changes = room.identity.changes();
    let revoked = step(&room, CaStep::Revoke { id: old, force: false }).await.unwrap();
    assert!(changes.has_changed().unwrap(), "connections are looked at again");
    assert_eq!(states(&revoked), [State::Active]);
    assert_eq!(
        (stands(&room, &before), stands(&room, &after)),
        (Standing::Unknown, Standing::Live)
    );
    assert_eq!(revoked.authorities[0].agents, 1);
    assert_eq!(revoked.revoked[0].0, old);
    let again = step(&room, CaStep::Revoke { id: old, force: false }).await.unwrap();
    assert_eq!(again.sequence, revoked.sequence, "revoking twice does nothing");
}

#[tokio::test]
async fn every_state_comes_back_after_a_restart_and_only_its_own_keys_open() {
    let mut room = Room::new().await;
    let first = room.authority.root_digest();
    let steps = [PREPARE, FORCED, CaStep::Taint { id: first }];
    for (at, next) in steps.into_iter().enumerate() {
        let before = step(&room, next).await.unwrap();
        room = room.again().await;
        let after = step(&room, CaStep::Show {}).await.unwrap();
        assert_eq!(before, after, "step {at}");
        let (_, _, peer) = agent(&room).await;
        assert_eq!(stands(&room, &peer), Standing::Live);
        room.clock.advance(AGENT_TTL + LAST_SEEN_STEP + Duration::from_secs(1)); // it is gone
        room.authority.trust_clock(room.now());
    }
    let ended = step(&room, CaStep::Revoke { id: first, force: false }).await.unwrap();
    room = room.again().await;
    assert_eq!(step(&room, CaStep::Show {}).await.unwrap(), ended);

    // Whoever puts one authority's sealed key in another's place opens nothing.
    room.store.tamper(Table::Authority, |value| {
        let text = String::from_utf8(value.clone()).unwrap();
        let at = text.find("\"key\":\"").unwrap() + 7;
        value[at] = if value[at] == b'A' { b'B' } else { b'A' };
    });
    let open = Authority::open(
        room.store.clone(),
        domain(),
        keys(&room.key),
        room.clock.clone(),
        places(),
    );
    assert!(matches!(open.await.unwrap_err(), super::AuthorityError::CaKey));
}

#[tokio::test]
async fn a_store_of_one_root_is_read_as_it_was_and_rewritten_by_the_first_step_only() {
    let room = Room::new().await;
    let row = async || room.store.get(Table::Authority, b"ca/1").await.unwrap().unwrap().value;
    let before = row().await;
    assert!(String::from_utf8(before.clone()).unwrap().starts_with("{\"v\":1,"));
    agent(&room).await;
    let shown = step(&room, CaStep::Show {}).await.unwrap();
    assert_eq!((states(&shown), shown.sequence), (vec![State::Active], 1));
    assert_eq!(shown.authorities[0].id, room.authority.root_digest());
    assert_eq!(row().await, before, "looking changes nothing");
    step(&room, PREPARE).await.unwrap();
    let after = String::from_utf8(row().await).unwrap();
    assert!(after.starts_with("{\"v\":4,"), "an older program refuses it by its version: {after}");
    for bad in [
        after.replace("\"prepared\":", "\"x\":"),
        after.replace("\"state\":\"prepared\"", "\"state\":\"active\""),
        after.replace("\"v\":4", "\"v\":5"),
    ] {
        let store = Arc::new(room.store.copy());
        store.tamper(Table::Authority, |value| *value = bad.clone().into_bytes());
        let open = Authority::open(store, domain(), keys(&room.key), room.clock.clone(), places());
        assert!(open.await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_restored_store_trusts_nothing_that_the_log_knows_to_be_revoked() {
    let room = Room::new().await;
    let first = room.authority.root_digest();
    let before_all = Arc::new(room.store.copy());
    step(&room, PREPARE).await.unwrap();
    let before_activation = Arc::new(room.store.copy());
    step(&room, FORCED).await.unwrap();
    let before_end = Arc::new(room.store.copy());
    let second = room.authority.root_digest();
    let revoke = CaStep::Revoke { id: first, force: true };
    assert!(room.authority.epochs_after(&nobody(), &Ask::Ca(revoke.clone())).is_empty(), "not yet");
    step(&room, revoke.clone()).await.unwrap();
    let floor = room.authority.epochs_after(&nobody(), &Ask::Ca(revoke));
    assert_eq!(floor.authorities, BTreeSet::from([first]));
    let text = serde_json::to_string(&floor).unwrap();
    let floor: EpochFloor = serde_json::from_str(&text).unwrap();
    assert!(!room.authority.raise_epochs(&floor).await.unwrap(), "the store has it");

    let over = async |store: Arc<FakeStore>| {
        let room = Room::over(store, room.clock.clone(), room.key.clone()).await;
        let before = stands(&room, &agent(&room).await.2);
        assert_eq!(before, Standing::Live, "the positive control");
        assert!(room.authority.raise_epochs(&floor).await.unwrap());
        assert!(!room.authority.raise_epochs(&floor).await.unwrap(), "once is enough");
        let shown = step(&room, CaStep::Show {}).await.unwrap();
        assert!(shown.authorities.iter().all(|it| it.id != first));
        assert_eq!(states(&shown), [State::Active]);
        room.again().await.authority.root_digest()
    };
    assert_eq!(over(before_end).await, second);
    assert_eq!(over(before_activation).await, second, "agents know it already");
    let fresh = over(before_all).await;
    assert!(fresh != first && fresh != second, "one that nobody ever had signs now");
}

#[tokio::test]
async fn steps_that_must_not_be_are_refused_and_change_nothing() {
    let room = Room::new().await;
    let first = room.authority.root_digest();
    let nobody = Digest::of(b"nobody");
    let refused = async |it: CaStep, code: Code| {
        let before = room.store.rows();
        assert_eq!(step(&room, it.clone()).await.unwrap_err().code, code, "{it:?}");
        assert_eq!(room.store.rows(), before, "{it:?}");
    };
    refused(FORCED, Code::Conflict).await;
    for force in [false, true] {
        refused(CaStep::Revoke { id: first, force }, Code::Conflict).await;
        refused(CaStep::Revoke { id: nobody, force }, Code::NotFound).await;
    }
    refused(CaStep::Taint { id: first }, Code::Conflict).await;
    refused(CaStep::Taint { id: nobody }, Code::NotFound).await;
    let prepared = step(&room, PREPARE).await.unwrap();
    refused(PREPARE, Code::Conflict).await;
    let next = prepared.authorities.iter().find(|it| it.state == State::Prepared).unwrap().id;
    refused(CaStep::Taint { id: next }, Code::Conflict).await;
    step(&room, CaStep::Revoke { id: next, force: false }).await.unwrap();
    assert_eq!(room.identity.view().bundles[&domain()].roots.len(), 1, "withdrawn");

    // As many as are trusted at once, and no more.
    while step(&room, PREPARE).await.is_ok() {
        step(&room, FORCED).await.unwrap();
    }
    let shown = step(&room, CaStep::Show {}).await.unwrap();
    assert_eq!(shown.authorities.len(), AUTHORITIES_MAX);
    refused(PREPARE, Code::Conflict).await;
    // The broker's own certificate is not cut off.
    let own = room.authority.root_digest();
    room.authority.broker(room.now()).unwrap();
    step(&room, CaStep::Revoke { id: first, force: true }).await.unwrap();
    step(&room, PREPARE).await.unwrap();
    step(&room, FORCED).await.unwrap();
    refused(CaStep::Revoke { id: own, force: true }, Code::Conflict).await;
    let renewed = room.authority.broker(room.now()).unwrap();
    assert_eq!(renewed.others.len(), AUTHORITIES_MAX - 1, "shown to whoever knows an older root");
    step(&room, CaStep::Revoke { id: own, force: true }).await.unwrap();
}

#[tokio::test]
async fn a_stated_time_is_enough_and_the_absent_are_not_waited_for() {
    let room = Room::new().await;
    agent(&room).await;
    step(&room, PREPARE).await.unwrap();
    let after = |after_s| CaStep::Activate { after_s: Some(after_s), force: false };
    room.clock.advance(Duration::from_secs(59));
    assert!(step(&room, after(60)).await.is_err());
    room.clock.advance(Duration::from_secs(1));
    step(&room, after(60)).await.unwrap();
    step(&room, PREPARE).await.unwrap();
    assert!(step(&room, ACTIVATE).await.is_err(), "the positive control: it may be alive");
    room.clock.advance(AGENT_TTL + LAST_SEEN_STEP);
    room.authority.trust_clock(room.now());
    let shown = step(&room, ACTIVATE).await.unwrap();
    assert_eq!(shown.live, 0);
}

#[tokio::test]
async fn the_calendar_prepares_waits_and_ends_one_after_the_other() {
    let room = Room::new().await;
    let first = room.authority.root_digest();
    let due = || room.authority.due(room.now()).unwrap();
    let pass = |time: Duration| {
        room.clock.advance(time);
        room.authority.trust_clock(room.now());
    };
    assert_eq!(due(), None);
    pass(CA_TTL / 2);
    assert_eq!(due(), Some(PREPARE));
    step(&room, PREPARE).await.unwrap();
    let (device, ..) = agent(&room).await;
    assert_eq!(due(), None, "an agent has not acknowledged");
    let sequence = step(&room, CaStep::Show {}).await.unwrap().sequence;
    says(&room, device, sequence, 0);
    assert_eq!(due(), None, "verifiers that know no SPIFFE look seldomer");
    pass(2 * crate::model::limits::JWKS_FRESH);
    assert_eq!(due(), Some(ACTIVATE));
    says(&room, device, sequence - 1, 0);
    pass(CA_TTL / 3 + Duration::from_secs(60));
    agent(&room).await;
    assert_eq!(due(), Some(FORCED), "a sixth of its life is left");
    step(&room, FORCED).await.unwrap();
    assert_eq!(due(), None, "what it signed may be alive");
    pass(REENROLL_WINDOW);
    assert_eq!(due(), None, "who was away since may come back by it");
    pass(Duration::from_secs(1));
    assert_eq!(due(), Some(CaStep::Revoke { id: first, force: false }));
    step(&room, due().unwrap()).await.unwrap();
    assert_eq!(due(), None);

    room.clock.set_wall(room.now().wall() + CA_TTL / 2);
    assert_eq!(due(), None, "by a clock that jumped nothing is due");
    assert!(step(&room, PREPARE).await.is_err(), "and nothing is made");
    room.authority.trust_clock(room.now());
    assert_eq!(due(), Some(PREPARE));
}

#[tokio::test]
async fn an_old_one_is_ended_by_hand_after_a_day_or_by_force() {
    let room = Room::new().await;
    let first = room.authority.root_digest();
    step(&room, PREPARE).await.unwrap();
    step(&room, FORCED).await.unwrap();
    let revoke = CaStep::Revoke { id: first, force: false };
    room.clock.advance(LEAF_TTL_MAX);
    room.authority.trust_clock(room.now());
    assert!(step(&room, revoke.clone()).await.is_err(), "its last certificate ends just now");
    room.clock.advance(Duration::from_secs(1));
    step(&room, revoke).await.unwrap();
}

#[tokio::test]
async fn two_brokers_make_one_and_the_same_next_authority() {
    let one = Room::new().await;
    let two = one.again().await;
    step(&one, PREPARE).await.unwrap();
    let late = step(&two, PREPARE).await.unwrap_err();
    assert_eq!(late.code, Code::Conflict, "it has read what the other one wrote");
    step(&two, FORCED).await.unwrap();
    assert!(step(&one, FORCED).await.is_err());
    assert_eq!(one.authority.root_digest(), two.authority.root_digest());

    one.store.fails_next.store(true, std::sync::atomic::Ordering::SeqCst);
    let before = one.authority.root_digest();
    assert!(step(&one, PREPARE).await.is_err());
    assert_eq!(one.identity.view().bundles[&domain()].roots.len(), 2, "not published");
    assert_eq!(one.authority.root_digest(), before);
}

#[tokio::test]
async fn no_key_of_an_authority_becomes_anybodys() {
    let room = Room::new().await;
    let key = KeyPair::generate().unwrap();
    assert!(!room.authority.issuers().is_key(&Digest::of(&key.subject_public_key_info())));
    step(&room, PREPARE).await.unwrap();
    let issuers = room.authority.issuers();
    assert_eq!(issuers.all.len(), 2);
    assert!(issuers.all.iter().all(|ca| issuers.is_key(&ca.key())));
}
