//! Tokens over a store in memory: what stands in one and who gets one, which key signs when and is
//! told until when, and what becomes of a store from before there were such keys.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::fake_store::{Room, domain, draft, id, keys, nobody, places, text};
use super::room::Authority;
use crate::identity::{Caller, CallerKind, JwtSvid, JwtSvidError, Standing, sample};
use crate::model::limits::{CA_TTL, JWT_KEY_REST, JWT_TTL};
use crate::model::{
    Answer, Ask, Audience, CaStep, Code, DeviceClass, DeviceId, Entry, EntryDraft, Failure, Reason,
    Released, RequestId, SecretValue, WorkloadFacts,
};
use crate::store::{Store as _, Table};

const AUDIENCE: &str = "https://vault.example";
const ACTIVATE: CaStep = CaStep::Activate { after_s: None, force: true };

/// As a broker starts.
async fn started() -> Room {
    let room = Room::new().await;
    room.authority.make_jwt_keys(Some(1)).await.unwrap();
    room
}

async fn step(room: &Room, step: CaStep) {
    let (ask, empty) = (Ask::Ca(step), SecretValue::empty());
    let target = room.authority.locate(&ask, &nobody()).await.unwrap();
    room.authority.act(&nobody(), &ask, &target, 7, room.now(), empty).await.unwrap();
}

fn agent(device: DeviceId, class: &str) -> Caller {
    let spiffe_id = format!("spiffe://corp.example/doorward/agent/{device}");
    let class = DeviceClass::parse(class).unwrap();
    sample::caller(&spiffe_id, CallerKind::Agent, Standing::Live, Some((class, device)))
}

async fn entry(room: &Room, draft: EntryDraft) -> Entry {
    let made = room.authority.entry_create(&draft, None, room.now()).await.unwrap();
    match made.answer {
        Answer::Entries { mut items, .. } => items.remove(0),
        other => panic!("{other:?}"),
    }
}

fn ask_of(entry: &Entry, uid: u32) -> Ask {
    Ask::IssueJwt {
        entry: entry.id,
        spiffe_id: entry.draft.spiffe_id.clone(),
        audience: Audience::parse(AUDIENCE).unwrap(),
        workload: WorkloadFacts {
            pid: 4711,
            start_ticks: 99,
            uid,
            gid: 1000,
            path: None,
            exe_sha256: None,
            unit: None,
            pod_uid: None,
            container_id: None,
            image_digest: None,
            pinned: true,
        },
    }
}

async fn issue(room: &Room, caller: &Caller, ask: &Ask) -> Result<Released, Failure> {
    let target = room.authority.locate(ask, caller).await.unwrap();
    room.authority.issue_jwt(caller, ask, &target, RequestId::new(room.now()), room.now())
}

/// What a verifier makes of a token that has the bundle as it is now.
fn checked(room: &Room, token: &str) -> Result<JwtSvid, JwtSvidError> {
    let bundles = HashMap::from([(domain(), room.authority.bundle_document())]);
    JwtSvid::validate(token, &bundles, AUDIENCE, room.now())
}

fn header(token: &str) -> Value {
    let head = token.split('.').next().unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(head).unwrap()).unwrap()
}

fn kids(room: &Room) -> Vec<String> {
    let document = room.authority.bundle_document();
    document.jwt_keys().iter().map(|key| key.key_id().to_owned()).collect()
}

/// A room with one entry, and the agent of a device that it is for.
async fn served() -> (Room, Caller, Entry) {
    let room = started().await;
    let (device, _) = room.device("server").await;
    let entry = entry(&room, draft("/ns/pay/api")).await;
    (room, agent(device, "server"), entry)
}

#[tokio::test]
async fn a_token_says_what_the_entry_says_and_whom_it_is_for() {
    let (room, caller, entry) = served().await;
    let released = issue(&room, &caller, &ask_of(&entry, 1000)).await.unwrap();
    let token = text(&released);
    let svid = checked(&room, &token).unwrap();
    assert_eq!((svid.id(), svid.audience()), (&id("/ns/pay/api"), &[AUDIENCE.to_owned()][..]));
    assert_eq!(header(&token), json!({"alg": "ES256", "kid": kids(&room)[0], "typ": "JWT"}));
    let Answer::JwtSvid { spiffe_id, kid, jti, until } = released.answer else { panic!() };
    let now = room.now().unix_s();
    let want = json!({
        "sub": spiffe_id, "aud": [AUDIENCE], "jti": jti, "iat": now, "exp": now + 300,
    });
    assert_eq!(Value::Object(svid.claims().clone()), want);
    assert_eq!((kid, until.as_str()), (kids(&room)[0].clone(), "2026-11-23T12:05:00Z"));
    let again = issue(&room, &caller, &ask_of(&entry, 1000)).await.unwrap();
    assert_ne!(text(&again), token, "each has an id of its own");

    room.clock.advance(JWT_TTL);
    assert_eq!(checked(&room, &token), Err(JwtSvidError::Expired));
}

#[tokio::test]
async fn a_short_entry_gives_short_tokens_and_a_long_one_none_longer() {
    let (room, caller, _) = served().await;
    for (path, ttl_s, life) in [("/short", 60, 60), ("/long", 86_400, 300)] {
        let entry = entry(&room, EntryDraft { ttl_s: Some(ttl_s), ..draft(path) }).await;
        let token = text(&issue(&room, &caller, &ask_of(&entry, 1000)).await.unwrap());
        let end = checked(&room, &token).unwrap().expires_at();
        assert_eq!(end.unix_timestamp() - room.now().unix_s(), life, "{path}");
    }
}

#[tokio::test]
async fn an_issuer_stands_in_tokens_where_one_is_set() {
    let Room { store, clock, key, authority, identity } = started().await;
    let authority = authority.with_token_issuer(Some("https://id.corp.example".into()));
    let room = Room { store, clock, key, authority, identity };
    let (device, _) = room.device("server").await;
    let entry = entry(&room, draft("/api")).await;
    let token = issue(&room, &agent(device, "server"), &ask_of(&entry, 1000)).await.unwrap();
    let svid = checked(&room, &text(&token)).unwrap();
    assert_eq!(svid.claims()["iss"], "https://id.corp.example");
}

#[tokio::test]
async fn nobody_else_gets_one() {
    let (room, caller, pay) = served().await;
    let ask = ask_of(&pay, 1000);
    assert!(issue(&room, &caller, &ask).await.is_ok(), "the positive control");
    let code = async |caller: &Caller, ask: &Ask| issue(&room, caller, ask).await.unwrap_err().code;

    let operator = sample::caller(
        "spiffe://corp.example/doorward/operator/ann",
        CallerKind::Operator,
        Standing::Live,
        None,
    );
    assert_eq!(code(&operator, &ask).await, Code::Invalid);
    assert_eq!(code(&caller, &ask_of(&pay, 1001)).await, Code::Invalid, "another user");
    let (laptop, _) = room.device("laptop").await;
    assert_eq!(code(&agent(laptop, "laptop"), &ask).await, Code::NotFound, "another class");
    let unknown = agent(DeviceId::of_key(b"nobody's"), "server");
    assert_eq!(code(&unknown, &ask).await, Code::Denied);
    let mut other = pay.clone();
    other.draft.spiffe_id = id("/ns/pay/other");
    assert_eq!(code(&caller, &ask_of(&other, 1000)).await, Code::NotFound, "another identity");

    // What was decided on is what is signed for.
    let target = room.authority.locate(&ask, &caller).await.unwrap();
    room.authority.revoke(&pay.draft.spiffe_id, false, None, room.now()).await.unwrap();
    let at = RequestId::new(room.now());
    let stale = room.authority.issue_jwt(&caller, &ask, &target, at, room.now()).unwrap_err();
    assert_eq!((stale.code, stale.reason), (Code::Denied, Reason::Revoked));
    assert_eq!(code(&caller, &ask).await, Code::Denied, "revoked");
    room.authority.revoke(&pay.draft.spiffe_id, true, None, room.now()).await.unwrap();
    let stale = room.authority.issue_jwt(&caller, &ask, &target, at, room.now()).unwrap_err();
    assert_eq!(stale.reason, Reason::Changed, "resumed, at another epoch");
    assert!(issue(&room, &caller, &ask).await.is_ok());
}

#[tokio::test]
async fn a_key_is_told_before_it_signs_and_until_its_authority_is_tainted_or_revoked() {
    let (room, caller, entry) = served().await;
    let token = async || text(&issue(&room, &caller, &ask_of(&entry, 1000)).await.unwrap());
    let old = room.authority.root_digest();
    let (first, before) = (kids(&room), token().await);
    assert_eq!(first.len(), 1);

    step(&room, CaStep::Prepare {}).await;
    let both = kids(&room);
    assert_eq!(both.len(), 2);
    assert!(both.contains(&first[0]));
    assert_eq!(header(&token().await)["kid"], first[0].as_str(), "it signs nothing yet");

    step(&room, ACTIVATE).await;
    let after = token().await;
    assert_ne!(header(&after)["kid"], first[0].as_str());
    assert!(both.iter().any(|kid| header(&after)["kid"] == kid.as_str()), "it was told before");
    assert!(checked(&room, &before).is_ok() && checked(&room, &after).is_ok());
    let back = room.again().await;
    assert_eq!(kids(&back), kids(&room), "after a restart");

    step(&room, CaStep::Taint { id: old }).await;
    assert_eq!(checked(&room, &before), Err(JwtSvidError::UnknownKey));
    assert!(checked(&room, &after).is_ok());
    step(&room, CaStep::Revoke { id: old, force: true }).await;
    assert_eq!(kids(&room), [header(&after)["kid"].as_str().unwrap()]);
    let sets = room.authority.bundle_document();
    for (set, purpose) in [(sets.to_jwks(), "jwt-svid"), (sets.to_oidc_jwks(), "sig")] {
        let set: Value = serde_json::from_slice(&set).unwrap();
        let [key] = set["keys"].as_array().unwrap().as_slice() else { panic!("{set}") };
        assert_eq!(
            (&key["use"], &key["alg"], &key["kid"]),
            (&json!(purpose), &json!("ES256"), &header(&after)["kid"])
        );
        assert!(key.get("d").is_none());
    }
}

#[tokio::test]
async fn nothing_is_signed_past_the_keys_end_or_by_wrong_clocks() {
    let (room, caller, entry) = served().await;
    let ask = ask_of(&entry, 1000);
    let end = room.authority.root_life().1;
    room.clock.advance(CA_TTL - Duration::from_secs(100));
    room.authority.trust_clock(room.now());
    let token = text(&issue(&room, &caller, &ask).await.unwrap());
    assert_eq!(checked(&room, &token).unwrap().expires_at(), end, "no longer than its authority");
    room.clock.advance(Duration::from_secs(200));
    let ended = issue(&room, &caller, &ask).await.unwrap_err();
    assert_eq!((ended.code, ended.reason), (Code::Unavailable, Reason::IdentityExpired));
    room.clock.set_wall(room.now().wall() - Duration::from_secs(1000));
    assert_eq!(issue(&room, &caller, &ask).await.unwrap_err().reason, Reason::ClockStep);
}

/// The row of the authorities as it is now.
async fn row(room: &Room) -> Value {
    let row = room.store.get(Table::Authority, b"ca/1").await.unwrap().unwrap();
    serde_json::from_slice(&row.value).unwrap()
}

/// Puts another row in its place, and opens it.
async fn with_row(room: &Room, row: &Value) -> Result<Room, super::AuthorityError> {
    room.store.tamper(Table::Authority, |value| *value = serde_json::to_vec(row).unwrap());
    let opened = Authority::open(
        room.store.clone(),
        domain(),
        keys(&room.key),
        room.clock.clone(),
        places(),
    );
    let (authority, identity) = opened.await?;
    let (store, clock, key) = (room.store.clone(), room.clock.clone(), room.key.clone());
    Ok(Room { store, clock, key, authority, identity })
}

/// The same draft with RSA tokens.
fn with_rs256(path: &str) -> EntryDraft {
    EntryDraft { jwt_alg: crate::model::TokenAlgorithm::Rs256, ..draft(path) }
}

#[tokio::test]
async fn an_entry_that_asks_for_rs256_gets_it_once_its_key_was_told() {
    let (room, caller, usual) = served().await;
    let es256 = kids(&room);
    assert_eq!(es256.len(), 1, "no such key is made before somebody wants it");
    let before = row(&room).await["sequence"].as_u64().unwrap();
    let wants = entry(&room, with_rs256("/ns/pay/old")).await;
    let told = kids(&room);
    assert_eq!(told.len(), 2);
    assert_eq!(row(&room).await["sequence"].as_u64().unwrap(), before + 1, "agents are told");
    let early = issue(&room, &caller, &ask_of(&wants, 1000)).await.unwrap_err();
    assert_eq!(early.code, Code::Unavailable, "it rests: nobody may know it yet");
    assert!(issue(&room, &caller, &ask_of(&usual, 1000)).await.is_ok(), "the other goes on");
    let again = entry(&room, with_rs256("/ns/pay/other")).await;
    assert_eq!(kids(&room), told, "one key for all of them");

    room.clock.advance(JWT_KEY_REST);
    for it in [&wants, &again] {
        let token = text(&issue(&room, &caller, &ask_of(it, 1000)).await.unwrap());
        assert_eq!(header(&token)["alg"], "RS256");
        assert_ne!(header(&token)["kid"], es256[0].as_str());
        assert_eq!(checked(&room, &token).unwrap().id(), &it.draft.spiffe_id);
    }
    let usual_token = text(&issue(&room, &caller, &ask_of(&usual, 1000)).await.unwrap());
    assert_eq!(header(&usual_token)["alg"], "ES256");

    // It lives as its authority does, and its successor is there before it signs.
    let token = text(&issue(&room, &caller, &ask_of(&wants, 1000)).await.unwrap());
    step(&room, CaStep::Prepare {}).await;
    assert_eq!(kids(&room).len(), 4);
    step(&room, ACTIVATE).await;
    let next = text(&issue(&room, &caller, &ask_of(&wants, 1000)).await.unwrap());
    assert_eq!(header(&next)["alg"], "RS256");
    assert_ne!(header(&next)["kid"], header(&token)["kid"]);
    assert!(checked(&room, &token).is_ok() && checked(&room, &next).is_ok());
    let restarted = room.again().await;
    assert_eq!(kids(&restarted), kids(&room));
    assert!(checked(&restarted, &next).is_ok());
    let old = row(&room).await["members"][1]["id"].clone();
    let old = serde_json::from_value(old).unwrap();
    step(&room, CaStep::Taint { id: old }).await;
    assert!(checked(&room, &token).is_err() && checked(&room, &next).is_ok());
}

#[tokio::test]
async fn an_rsa_key_opens_as_its_own_authoritys_only() {
    let (room, _, _) = served().await;
    entry(&room, with_rs256("/ns/pay/old")).await;
    step(&room, CaStep::Prepare {}).await;
    let good = row(&room).await;
    assert!(with_row(&room, &good).await.is_ok(), "control");
    for (from, to) in [("jwt", "rs256"), ("rs256", "jwt")] {
        let mut bad = good.clone();
        bad["members"][0][to] = good["members"][0][from].clone();
        assert!(with_row(&room, &bad).await.is_err(), "{from} is no {to}");
    }
    let mut bad = good.clone();
    bad["members"][0]["rs256"] = good["members"][1]["rs256"].clone();
    assert!(with_row(&room, &bad).await.is_err(), "another authority's");
}

#[tokio::test]
async fn a_store_from_before_is_completed_once_and_its_new_key_rests() {
    let (room, caller, entry) = served().await;
    step(&room, CaStep::Prepare {}).await;
    let whole = row(&room).await;
    assert_eq!(whole["v"], 4);
    let mut former = whole.clone();
    former["v"] = json!(2);
    for member in former["members"].as_array_mut().unwrap() {
        member.as_object_mut().unwrap().remove("jwt");
    }
    let old = with_row(&room, &former).await.unwrap();
    let (ask, now) = (ask_of(&entry, 1000), old.now());
    assert_eq!(old.authority.lacking_jwt_keys().unwrap().len(), 2);
    assert!(kids(&old).is_empty());
    assert_eq!(issue(&old, &caller, &ask).await.unwrap_err().code, Code::Unavailable);

    old.authority.make_jwt_keys(Some(9)).await.unwrap();
    let made = row(&old).await;
    assert_eq!(made["v"], 4);
    assert_eq!(made["sequence"].as_u64(), whole["sequence"].as_u64().map(|it| it + 1));
    assert_eq!(kids(&old).len(), 2, "told at once");
    old.authority.make_jwt_keys(Some(10)).await.unwrap();
    assert_eq!(row(&old).await, made, "once is enough");
    let early = issue(&old, &caller, &ask).await.unwrap_err();
    assert_eq!(early.code, Code::Unavailable);
    assert!(early.hint.unwrap().contains("2026-11-23T12:05:00Z"), "it says from when on");
    old.clock.advance(JWT_KEY_REST);
    assert!(old.now().wall() > now.wall());
    let token = text(&issue(&old, &caller, &ask).await.unwrap());
    assert!(checked(&old, &token).is_ok());
    assert!(checked(&old.again().await, &token).is_ok(), "after a restart");
}

#[tokio::test]
async fn a_key_opens_as_its_own_authoritys_only_and_other_formats_are_refused() {
    let (room, ..) = served().await;
    step(&room, CaStep::Prepare {}).await;
    let good = row(&room).await;
    assert!(with_row(&room, &good).await.is_ok(), "the positive control");
    let mut swapped = good.clone();
    let key = |row: &Value, at: usize| row["members"][at]["jwt"]["key"].clone();
    swapped["members"][0]["jwt"]["key"] = key(&good, 1);
    swapped["members"][1]["jwt"]["key"] = key(&good, 0);
    let refused = with_row(&room, &swapped).await.err().unwrap();
    assert!(matches!(refused, super::AuthorityError::CaKey), "{refused}");
    let mut other = good.clone();
    other["members"][0]["jwt"]["key"] = other["members"][0]["key"].clone();
    assert!(with_row(&room, &other).await.is_err(), "an authority's other key is none");
    for (change, v) in [("newer", 5), ("none", 0)] {
        let mut row = good.clone();
        row["v"] = json!(v);
        let refused = with_row(&room, &row).await.err().unwrap();
        assert!(matches!(refused, super::AuthorityError::Newer { .. }), "{change}: {refused}");
    }
}

#[tokio::test]
async fn a_fresh_store_signs_at_once_and_a_store_without_a_key_says_so() {
    let room = Room::new().await;
    let (device, _) = Room::device(&room, "server").await;
    let entry = entry(&room, draft("/api")).await;
    let caller = agent(device, "server");
    let ask = ask_of(&entry, 1000);
    assert_eq!(issue(&room, &caller, &ask).await.unwrap_err().code, Code::Unavailable);
    let fresh = started().await;
    let first = fresh.authority.bundle_document();
    assert_eq!(first.jwt_keys().len(), 1);
    let (device, _) = fresh.device("server").await;
    let entry = self::entry(&fresh, draft("/api")).await;
    assert!(issue(&fresh, &agent(device, "server"), &ask_of(&entry, 1000)).await.is_ok());
}

#[tokio::test]
async fn nothing_shows_a_key_or_a_token() {
    let (room, caller, entry) = served().await;
    let released = issue(&room, &caller, &ask_of(&entry, 1000)).await.unwrap();
    let token = text(&released);
    let signature = token.rsplit('.').next().unwrap();
    assert!(!format!("{released:?}").contains(signature));
    let sealed = row(&room).await["members"][0]["jwt"]["key"].as_str().unwrap().to_owned();
    assert!(!format!("{:?}", room.authority).contains(&sealed));
}
