//! Tokens and what they are spent on: a stranger's key becomes a device, or a person's.
//!
//! A token is spent in the very commit that makes the device, so that of any number of tries, at
//! any number of brokers, exactly one wins. Of a token only SHA-256 of its secret is kept. A wrong,
//! ended or spent token changes nothing.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::ca::Ca;
use super::error::AuthorityError;
use super::mirror::{Mirror, Step};
use super::records::{DeviceRecord, FORMAT, TokenRecord, token_key};
use super::room::Authority;
use super::subject_key::SubjectKey;
use super::token::{JoinToken, TokenError, fresh_secret, secret_digest};
use crate::identity::{Caller, CallerKind};
use crate::model::limits::{DENIED_SWEPT, DEVICES_MAX, OPERATOR_TOKEN_TTL, TOKENS_MAX};
use crate::model::{
    Answer, Code, DeviceClass, DeviceId, Digest, Failure, Moment, OperatorToken, Reason, Released,
    SecretValue, check_segment, rfc3339,
};

/// Lives of a join token, in seconds: from typing it in to a day.
const TTL_S: std::ops::RangeInclusive<u32> = 60..=86_400;
/// A device's word for people, in bytes.
const NAME_MAX: usize = 64;

impl Authority {
    /// A stranger becomes a device with a token, or a device that was away comes back with its key.
    pub(super) async fn enroll(
        &self,
        caller: &Caller,
        (name, token): (&str, Option<&Digest>),
        body: &SecretValue,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let (CallerKind::Applicant, Some(spki)) = (caller.kind(), caller.spki()) else {
            return Err(Failure::invalid("this key is enrolled already; `renew` is for it"));
        };
        let key = SubjectKey::parse(spki).map_err(|error| Failure::invalid(error.to_string()))?;
        let Some(token) = token else {
            if !body.is_empty() {
                return Err(Failure::invalid("a body without its `token` is taken by nobody"));
            }
            // An unknown key is told so there.
            let device = self.mirror().device_of_key(&key.digest());
            return self.again(&device.unwrap_or(DeviceId(key.digest())), &key, under, now).await;
        };
        let shown = self.secret_of(body).map_err(|failure| self.wrong(failure, now))?;
        if verify_slices_are_equal(&shown.0, &token.0).is_err() {
            return Err(self.wrong(Failure::invalid("`token` is not that of the body"), now));
        }
        let ca = Arc::clone(&self.issuers().active);
        let (device, record) = self.redeem_by(&ca, &key, name, body, under, now).await?;
        self.device_certificate(&ca, device, &record, &key, now)
    }

    /// Whether an applicant shows what may be let in: a token that is neither spent nor ended, or
    /// the key of a device that was not revoked. Found by the digest of 256 random bits, so the time
    /// that it takes tells nothing. Nothing is spent here; the secret itself is looked at later.
    pub(super) fn may_enroll(&self, token: Option<&Digest>, caller: &Caller) -> bool {
        let mirror = self.mirror();
        if let Some(digest) = token {
            let now = self.clock.now().unix_s();
            let living = |it: &TokenRecord| {
                it.spent.is_none()
                    && it.until > now
                    && verify_slices_are_equal(&it.digest.0, &digest.0).is_ok()
            };
            return mirror.token(&token_key(digest)).is_some_and(living);
        }
        let known = |spki: &[u8]| {
            let key = Digest::of(spki);
            let device = mirror.device_of_key(&key).and_then(|device| mirror.device(&device));
            device.is_some_and(|it| it.key == key && !it.revoked)
        };
        caller.spki().is_some_and(known)
    }

    /// As [`Self::redeem_by`], by the authority that signs now.
    #[cfg(test)]
    pub(super) async fn redeem(
        &self,
        key: &SubjectKey,
        name: &str,
        body: &SecretValue,
        under: Option<u64>,
        now: Moment,
    ) -> Result<(DeviceId, DeviceRecord), Failure> {
        let ca = Arc::clone(&self.issuers().active);
        self.redeem_by(&ca, key, name, body, under, now).await
    }

    /// Spends a token on a key: one commit, or nothing.
    async fn redeem_by(
        &self,
        ca: &Ca,
        key: &SubjectKey,
        name: &str,
        body: &SecretValue,
        under: Option<u64>,
        now: Moment,
    ) -> Result<(DeviceId, DeviceRecord), Failure> {
        check_name(name)?;
        ca.ready(now)?;
        let digest = self.secret_of(body).map_err(|failure| self.wrong(failure, now))?;
        self.is_free(key, now)?;
        let plan = |mirror: &Mirror| {
            let first = mirror.authorities()?.first;
            let issuer = Some(ca.id()).filter(|id| *id != first);
            spend(mirror, &digest, (key, issuer), name, now)
        };
        match self.change(under, plan).await {
            Ok((_, device)) => Ok(device),
            Err(AuthorityError::Refused(failure)) if failure.reason == Reason::IdentityUnknown => {
                Err(self.wrong(failure, now))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// That a key serves nobody yet.
    pub(super) fn is_free(&self, key: &SubjectKey, now: Moment) -> Result<(), Failure> {
        if self.living_keys.serves(&key.digest(), now) || self.issuers().is_key(&key.digest()) {
            return Err(Failure::conflict("this key serves another identity; make a fresh one"));
        }
        Ok(())
    }

    /// A single-use token for a new device of a class.
    pub(super) async fn token_create(
        &self,
        class: &DeviceClass,
        ttl_s: u32,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        if class.is_person() {
            return Err(Failure::invalid("people get their token by `doorward operator add`"));
        }
        if !TTL_S.contains(&ttl_s) {
            return Err(Failure::invalid("`ttl_s` must be 60 to 86400"));
        }
        let ttl = Duration::from_secs(u64::from(ttl_s));
        let (text, until) = self.new_token(class.clone(), None, ttl, under, now).await?;
        let head = OperatorToken { name: class.to_string(), until };
        Ok(Released { answer: Answer::Token(head), body: text })
    }

    /// A single-use token for a person, new or back after a login has ended.
    pub(super) async fn operator_add(
        &self,
        name: &str,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let (text, until) = self.person_token(name, under, now).await?;
        let head = OperatorToken { name: name.to_owned(), until };
        Ok(Released { answer: Answer::Token(head), body: text })
    }

    /// A token for an operator, outside the line: for `init`, and for `recover` on the stopped
    /// broker's host. Single use, 24 hours; its text.
    ///
    /// # Errors
    /// When the name is no segment, or the store fails.
    pub async fn operator_token(&self, name: &str) -> Result<SecretValue, AuthorityError> {
        let token = self.person_token(name, None, self.clock.now()).await;
        Ok(token.map(|(text, _)| text)?)
    }

    async fn person_token(
        &self,
        name: &str,
        under: Option<u64>,
        now: Moment,
    ) -> Result<(SecretValue, String), Failure> {
        check_segment(1, name).map_err(|error| Failure::invalid(format!("name: {error}")))?;
        let operator = Some(name.to_owned());
        self.new_token(DeviceClass::person(), operator, OPERATOR_TOKEN_TTL, under, now).await
    }

    /// Stores a token, forgetting those that have ended, and gives its text and end.
    async fn new_token(
        &self,
        class: DeviceClass,
        operator: Option<String>,
        ttl: Duration,
        under: Option<u64>,
        now: Moment,
    ) -> Result<(SecretValue, String), Failure> {
        let made = JoinToken {
            domain: self.domain.clone(),
            enrolment: self.places.enrolment.clone(),
            broker: self.places.broker.clone(),
            root: self.root_digest(),
            class: class.clone(),
            name: operator.clone(),
            secret: fresh_secret().map_err(|_| AuthorityError::Crypto("making randomness"))?,
        };
        let text = made.text().map_err(AuthorityError::Token)?;
        let until = now.wall() + ttl;
        let digest = secret_digest(made.secret.expose()).map_err(AuthorityError::Token)?;
        let until_s = until.unix_timestamp();
        let record =
            TokenRecord { v: FORMAT, digest, class, operator, until: until_s, spent: None };
        self.change(under, |mirror| {
            let mut steps = ended(mirror, now);
            let over = steps.iter().filter(|step| matches!(step, Step::Token(..))).count();
            if mirror.tokens().len().saturating_sub(over) >= TOKENS_MAX {
                return Err(Failure::too_large("too many tokens are open; let some end first"));
            }
            steps.push(Step::Token(record.key(), Some(record.clone())));
            Ok((steps, ()))
        })
        .await?;
        Ok((text, rfc3339(until)))
    }

    /// Forgets the tokens that have ended.
    pub(super) async fn forget_ended(
        &self,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        self.change_done(under, |mirror| Ok(ended(mirror, now))).await
    }

    /// The digest of the secret in the body: its bare text, or a whole token of ours.
    fn secret_of(&self, body: &SecretValue) -> Result<Digest, Failure> {
        let invalid = |error: TokenError| Failure::invalid(error.to_string());
        if !body.expose().starts_with(b"dw1.") {
            return secret_digest(body.expose()).map_err(invalid);
        }
        let text = std::str::from_utf8(body.expose());
        let token = JoinToken::parse(text.unwrap_or_default()).map_err(invalid)?;
        let is_ours = self.issuers().all.iter().any(|ca| ca.id() == token.root);
        if token.domain != self.domain || !is_ours {
            return Err(Failure::invalid("this token is for another trust domain or root"));
        }
        secret_digest(token.secret.expose()).map_err(invalid)
    }

    /// Counts a wrong token; a stranger with too many of them is told nothing more.
    fn wrong(&self, failure: Failure, now: Moment) -> Failure {
        if self.guesses.wrong(now) {
            return failure;
        }
        Failure::new(Code::Limited, Reason::Limited)
    }
}

/// The deletions of all tokens, and of some revoked SVIDs and spent tokens of pods, that have ended.
fn ended(mirror: &Mirror, now: Moment) -> Vec<Step> {
    let tokens = mirror.tokens().filter(|(_, token)| token.until <= now.unix_s());
    let tokens = tokens.map(|(key, _)| Step::Token(*key, None));
    let svids = super::denied::ended(mirror, now).take(DENIED_SWEPT);
    let svids = svids.map(|key| Step::Denied(key.clone(), None));
    tokens.chain(svids).chain(mirror.bound().ended(now)).collect()
}

/// The rows that spend a token on a key, or why it is not taken.
fn spend(
    mirror: &Mirror,
    digest: &Digest,
    (key, issuer): (&SubjectKey, Option<Digest>),
    name: &str,
    now: Moment,
) -> Result<(Vec<Step>, (DeviceId, DeviceRecord)), Failure> {
    let row = token_key(digest);
    let token = mirror
        .token(&row)
        .filter(|token| verify_slices_are_equal(&token.digest.0, &digest.0).is_ok())
        .ok_or_else(|| refused(Code::Denied, Reason::IdentityUnknown, "this token is unknown"))?;
    if token.until <= now.unix_s() {
        let hint = "this token has ended; ask for a new one";
        return Err(refused(Code::Expired, Reason::IdentityExpired, hint));
    }
    let device = DeviceId(key.digest());
    if token.spent.is_some() {
        return Err(Failure::conflict("this token was used already; ask for a new one"));
    }
    if mirror.device(&device).is_some() || mirror.device_of_key(&key.digest()).is_some() {
        let hint = "this key is enrolled already: come back without a token, or make a fresh key";
        return Err(Failure::conflict(hint));
    }
    // Operators come in all the same: they alone can mend it, and only they make their tokens.
    if mirror.devices().len() >= DEVICES_MAX && token.operator.is_none() {
        return Err(Failure::too_large(format!("there are {DEVICES_MAX} devices already")));
    }
    let record = DeviceRecord {
        operator: token.operator.clone(),
        issuer,
        ..DeviceRecord::new(key.digest(), token.class.clone(), name, now)
    };
    let spent = TokenRecord { spent: Some(device), ..token.clone() };
    let steps = vec![Step::Token(row, Some(spent)), Step::Device(device, record.clone())];
    Ok((steps, (device, record)))
}

fn refused(code: Code, reason: Reason, hint: &str) -> Failure {
    Failure { hint: Some(hint.to_owned()), ..Failure::new(code, reason) }
}

/// 1 to 64 plain characters: it is shown in terminals and in the console.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(plain) {
        return Err(Failure::invalid("`name` must be 1 to 64 of A-Z a-z 0-9 . _ -"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::Ordering;

    use super::super::fake_store::{Room, copy, fresh_key, text};
    use super::*;
    use crate::model::limits::GUESSES_MAX;
    use crate::store::{Store, Table};

    async fn token(room: &Room, class: &str) -> SecretValue {
        let class = DeviceClass::parse(class).unwrap();
        let made = room.authority.token_create(&class, 600, Some(7), room.now()).await.unwrap();
        made.body
    }

    async fn redeem(room: &Room, body: &SecretValue) -> Result<DeviceRecord, Failure> {
        let key = fresh_key();
        let device = room.authority.redeem(&key, "host-1", body, Some(8), room.now()).await;
        device.map(|(_, record)| record)
    }

    #[tokio::test]
    async fn a_token_makes_one_device_of_its_class() {
        let room = Room::new().await;
        let body = token(&room, "server").await;
        let key = fresh_key();
        let (device, record) =
            room.authority.redeem(&key, "host-1", &body, Some(8), room.now()).await.unwrap();
        assert_eq!(device, DeviceId(key.digest()));
        assert_eq!((record.class.as_str(), record.name.as_str()), ("server", "host-1"));
        assert_eq!((record.epoch, record.revoked, record.operator), (1, false, None));
        assert_eq!(room.store.last_grant().await.unwrap(), Some(8), "the commit names its grant");
        assert_eq!(room.identity.view().devices[&device].epoch, 1, "identity knows it at once");
        let again = room.again().await;
        assert_eq!(again.authority.mirror().device(&device).unwrap().key, key.digest());
    }

    #[tokio::test]
    async fn the_bare_secret_is_as_good_as_the_whole_token() {
        let room = Room::new().await;
        let body = token(&room, "server").await;
        let text = std::str::from_utf8(body.expose()).unwrap();
        let read = JoinToken::parse(text).unwrap();
        assert_eq!(read.root, room.authority.root_digest());
        assert!(redeem(&room, &read.secret).await.is_ok());
        let error = redeem(&room, &body).await.unwrap_err();
        assert_eq!(error.code, Code::Conflict, "both are the same token");
    }

    #[tokio::test]
    async fn the_store_never_holds_the_secret() {
        let room = Room::new().await;
        let body = token(&room, "server").await;
        let secret = JoinToken::parse(std::str::from_utf8(body.expose()).unwrap()).unwrap().secret;
        let rows = room.store.rows();
        assert_eq!(rows.keys().filter(|(table, _)| *table == Table::Tokens as u8).count(), 1);
        for row in rows.values() {
            let held = String::from_utf8_lossy(&row.value).into_owned();
            assert!(!held.contains(std::str::from_utf8(secret.expose()).unwrap()), "{held}");
        }
    }

    #[tokio::test]
    async fn an_ended_wrong_or_spent_token_is_refused_and_changes_nothing() {
        let room = Room::new().await;
        let (spent, late) = (token(&room, "server").await, token(&room, "server").await);
        assert!(redeem(&room, &spent).await.is_ok());
        let strange = Room::new().await;
        let foreign = token(&strange, "server").await;
        let unknown = fresh_secret().unwrap();
        let before = room.store.rows();
        for (body, code, reason) in [
            (copy(&spent), Code::Conflict, Reason::Conflict),
            (unknown, Code::Denied, Reason::IdentityUnknown),
            (foreign, Code::Invalid, Reason::Invalid),
            (SecretValue::new(b"guess".to_vec()), Code::Invalid, Reason::Invalid),
            (SecretValue::new(vec![0xff; 43]), Code::Invalid, Reason::Invalid),
        ] {
            let failure = redeem(&room, &body).await.unwrap_err();
            assert_eq!((failure.code, failure.reason), (code, reason));
            assert!(failure.hint.is_some());
        }
        room.clock.advance(Duration::from_secs(600));
        let failure = redeem(&room, &late).await.unwrap_err();
        assert_eq!((failure.code, failure.reason), (Code::Expired, Reason::IdentityExpired));
        assert_eq!(room.store.rows(), before);
    }

    #[tokio::test]
    async fn a_known_key_does_not_enrol_twice_and_keeps_the_token_whole() {
        let room = Room::new().await;
        let (_, key) = room.device("server").await;
        let body = token(&room, "laptop").await;
        let enrol = async |key: &SubjectKey| {
            room.authority.redeem(key, "host", &body, None, room.now()).await
        };
        assert_eq!(enrol(&key).await.unwrap_err().code, Code::Conflict);
        assert!(enrol(&fresh_key()).await.is_ok(), "the token was not spent by the refusal");
    }

    #[tokio::test]
    async fn a_key_of_a_living_workload_does_not_become_a_device() {
        let room = Room::new().await;
        let (body, key) = (token(&room, "server").await, fresh_key());
        let until = room.now().unix_s() + 60;
        assert!(room.authority.living_keys.bind(&key.digest(), "w", until, room.now()));
        let enrol = async || room.authority.redeem(&key, "host", &body, None, room.now()).await;
        assert_eq!(enrol().await.unwrap_err().code, Code::Conflict);
        room.clock.advance(Duration::from_secs(60));
        assert!(enrol().await.is_ok());
    }

    #[tokio::test]
    async fn names_that_a_terminal_would_obey_are_refused() {
        let room = Room::new().await;
        let body = token(&room, "server").await;
        let long = "a".repeat(65);
        for name in ["", "a b", "a\u{1b}[2J", "é", "a/b", long.as_str()] {
            let enrolled = room.authority.redeem(&fresh_key(), name, &body, None, room.now()).await;
            assert_eq!(enrolled.unwrap_err().code, Code::Invalid, "{name:?}");
        }
        assert!(redeem(&room, &body).await.is_ok());
    }

    /// 64 threads, half of them at each of two brokers over one store, all at once.
    #[tokio::test]
    async fn of_64_racing_redemptions_exactly_one_wins() {
        let one = Room::new().await;
        let body = token(&one, "server").await;
        let two = one.again().await;
        let keys: Vec<_> = (0..64).map(|_| fresh_key()).collect();
        let start = Barrier::new(keys.len());
        let redeem = |(at, key): (usize, &SubjectKey)| {
            let room = if at % 2 == 0 { &one } else { &two };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            start.wait();
            runtime.block_on(room.authority.redeem(key, "host", &body, None, room.now()))
        };
        let redeem = &redeem;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let race = |racer| scope.spawn(move || redeem(racer));
            let threads: Vec<_> = keys.iter().enumerate().map(race).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won: Vec<_> = outcomes.iter().flatten().collect();
        assert_eq!(won.len(), 1);
        for failure in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert_eq!(failure.code, Code::Conflict, "{failure:?}");
        }
        let devices = one.again().await.authority.mirror().devices().len();
        assert_eq!(devices, 1, "one device in the store");
    }

    #[tokio::test]
    async fn too_many_guesses_are_told_nothing_but_never_lock_a_right_token_out() {
        let room = Room::new().await;
        let body = token(&room, "server").await;
        for _ in 0..GUESSES_MAX {
            let failure = redeem(&room, &fresh_secret().unwrap()).await.unwrap_err();
            assert_eq!(failure.reason, Reason::IdentityUnknown);
        }
        let failure = redeem(&room, &fresh_secret().unwrap()).await.unwrap_err();
        assert_eq!((failure.code, failure.hint), (Code::Limited, None));
        assert!(redeem(&room, &body).await.is_ok());
        room.clock.advance(Duration::from_secs(60));
        let failure = redeem(&room, &fresh_secret().unwrap()).await.unwrap_err();
        assert_eq!(failure.reason, Reason::IdentityUnknown);
    }

    #[tokio::test]
    async fn a_commit_that_fails_spends_nothing_and_one_whose_answer_is_lost_is_found_again() {
        let room = Room::new().await;
        let (kept, lost) = (token(&room, "server").await, token(&room, "server").await);
        room.store.fails_next.store(true, Ordering::SeqCst);
        assert_eq!(redeem(&room, &kept).await.unwrap_err().code, Code::Unavailable);
        assert!(redeem(&room, &kept).await.is_ok());
        room.store.loses_next_answer.store(true, Ordering::SeqCst);
        assert_eq!(redeem(&room, &lost).await.unwrap_err().code, Code::Unavailable);
        let failure = redeem(&room, &lost).await.unwrap_err();
        assert_eq!(failure.code, Code::Conflict, "the store was read anew");
        assert_eq!(room.authority.mirror().devices().len(), 2);
    }

    #[tokio::test]
    async fn tokens_are_bounded_in_life_and_class() {
        let room = Room::new().await;
        let create = async |class: &str, ttl_s| {
            let class = DeviceClass::parse(class).unwrap();
            room.authority.token_create(&class, ttl_s, None, room.now()).await
        };
        let made = create("server", 60).await.unwrap();
        let Answer::Token(head) = &made.answer else { panic!("{:?}", made.answer) };
        assert_eq!(head.until, "2026-11-23T12:01:00Z");
        assert!(create("server", 86_400).await.is_ok());
        for (class, ttl_s) in [("server", 59), ("server", 86_401), ("server", 0), ("person", 600)] {
            assert_eq!(create(class, ttl_s).await.unwrap_err().code, Code::Invalid, "{class}");
        }
    }

    #[tokio::test]
    async fn an_operators_token_makes_a_person() {
        let room = Room::new().await;
        let body = room.authority.operator_token("alice").await.unwrap();
        let read = JoinToken::parse(std::str::from_utf8(body.expose()).unwrap()).unwrap();
        assert_eq!((read.class.as_str(), read.name.as_deref()), ("person", Some("alice")));
        let record = redeem(&room, &body).await.unwrap();
        assert_eq!(record.operator.as_deref(), Some("alice"));
        assert!(record.class.is_person());

        let made = room.authority.operator_add("bob", Some(9), room.now()).await.unwrap();
        assert!(text(&made).starts_with("dw1."));
        room.clock.advance(OPERATOR_TOKEN_TTL);
        assert_eq!(redeem(&room, &made.body).await.unwrap_err().code, Code::Expired);
        for name in ["", "a/b", "..", "a b"] {
            let refused = room.authority.operator_token(name).await.unwrap_err();
            assert!(matches!(refused, AuthorityError::Refused(_)), "{refused}");
        }
    }

    #[tokio::test]
    async fn ended_tokens_are_forgotten() {
        let room = Room::new().await;
        for _ in 0..3 {
            token(&room, "server").await;
        }
        assert_eq!(room.authority.mirror().tokens().len(), 3);
        room.clock.advance(Duration::from_secs(600));
        token(&room, "server").await;
        assert_eq!(room.authority.mirror().tokens().len(), 1);
        room.clock.advance(Duration::from_secs(600));
        room.authority.forget_ended(Some(11), room.now()).await.unwrap();
        assert_eq!(room.authority.mirror().tokens().len(), 0);
        assert_eq!(room.again().await.authority.mirror().tokens().len(), 0);
    }

    #[tokio::test]
    async fn nothing_is_redeemed_while_nothing_could_be_signed() {
        let room = Room::new().await;
        let body = token(&room, "server").await;
        let (before, right) = (room.store.rows(), room.now().wall());
        room.clock.set_wall(right + Duration::from_secs(400));
        assert_eq!(redeem(&room, &body).await.unwrap_err().reason, Reason::ClockStep);
        assert_eq!(room.store.rows(), before);
        room.clock.set_wall(right);
        assert!(redeem(&room, &body).await.is_ok());
    }
}
