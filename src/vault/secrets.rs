//! The way in: finds what a request means, and carries out what was granted.
//!
//! Locating uses no key and grants nothing. Carrying out does exactly what the grant says, to the
//! one target that it names: every row is read again, its MAC checked, and if it no longer is what
//! was decided on, nothing happens. Plaintext exists only in a [`SecretValue`], and nothing here
//! keeps one: what is cached are namespace keys.

use super::base::{Act, Vault};
use super::error::VaultError;
use super::look;
use super::rows::Trust;
use crate::decision_log::{Grant, Secret};
use crate::model::{Answer, Ask, Failure, Released, SecretName, SecretValue, Target};

impl Vault {
    /// What the request's object is now: the secret's id, the version that is meant and the digest
    /// of its ciphertext. No key is used.
    ///
    /// # Errors
    /// When the store does not answer or what it holds can't be read.
    pub async fn locate(&self, ask: &Ask) -> Result<Target, VaultError> {
        if let Ask::Read { name, version: None, .. } = ask
            && let Some(kept) = self.recent.find(self.store.generation(), name)
        {
            return Ok(kept.target());
        }
        let seen = Box::pin(self.look(ask, Trust::Unchecked)).await?;
        Ok(look::target(ask, seen.as_ref()))
    }

    /// Carries out the granted action on exactly the granted target and version. `body` is the
    /// value of a write.
    ///
    /// # Errors
    /// A [`Failure`] when the target is no longer what was granted (`D902`), when the request does
    /// not fit what is stored, or when something does not open; nothing was then done or released.
    pub async fn carry_out(
        &self,
        grant: Grant<Secret>,
        body: SecretValue,
    ) -> Result<Released, Failure> {
        let may_list = |name: &SecretName| grant.may_list(name);
        let act = Act {
            ask: grant.ask(),
            target: grant.target(),
            index: grant.under()?,
            now: grant.now(),
            may_list: &may_list,
        };
        self.act(&act, body).await
    }

    pub(super) async fn act(&self, act: &Act<'_>, body: SecretValue) -> Result<Released, Failure> {
        match act.ask {
            Ask::Read { have, .. } => self.read(act, *have).await,
            Ask::List { prefix, after, from } => {
                Box::pin(self.list(act, prefix, after.as_ref(), from.as_deref())).await
            }
            Ask::Versions { .. } => Box::pin(self.versions(act)).await,
            Ask::Write { name, .. }
            | Ask::Activate { name, .. }
            | Ask::Delete { name, .. }
            | Ask::Undelete { name, .. }
            | Ask::Label { name, .. } => Box::pin(self.change(act, name, &body)).await,
            Ask::BackupData {} => {
                let turn = self.backup_turn()?;
                let body = Box::pin(self.backup_data()).await?.holding(turn);
                let kind = "doorward data backup".to_owned();
                Ok(Released { answer: Answer::File { kind }, body })
            }
            Ask::BackupKeys { recipient } => {
                let turn = self.backup_turn()?;
                let keys = self.backup_keys(recipient, self.sealed_beside()?);
                let body = Box::pin(keys).await?.holding(turn);
                let kind = "doorward keys backup".to_owned();
                Ok(Released { answer: Answer::File { kind }, body })
            }
            _ => Err(Failure::invalid("this is nothing that the vault does")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::base::Act;
    use super::super::rows::{
        NameRow, SecretRow, head_key, heads_of, name_key, namespace_key, value_key,
    };
    use super::super::sample::*;
    use super::*;
    use crate::model::limits::{LIST_EXAMINED, LIST_PAGE, REPLY_HEAD_MAX, VALUE_MAX, VERSIONS_MAX};
    use crate::model::{Answer, Code, Labels, Namespace, Reason};
    use crate::store::{RedbStore, Store, Table, Txn, Write};

    fn is<T: std::fmt::Debug>(result: Result<T, Failure>, code: Code, reason: Reason) -> String {
        let failure = result.unwrap_err();
        assert_eq!((failure.code, failure.reason), (code, reason), "{failure:?}");
        failure.hint.unwrap_or_default()
    }

    fn is_conflict<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        is(result, Code::Conflict, Reason::Conflict)
    }

    fn is_changed<T: std::fmt::Debug>(result: Result<T, Failure>) {
        is(result, Code::Unavailable, Reason::Changed);
    }

    fn is_absent<T: std::fmt::Debug>(result: Result<T, Failure>) {
        is(result, Code::NotFound, Reason::Absent);
    }

    #[tokio::test]
    async fn versions_count_from_one_and_the_last_written_is_served() {
        let it = Sample::on_disk().await;
        is_absent(it.value(read("pay/db/url")).await);
        assert_eq!(it.put(write("pay/db/url"), b"one").await, Ok(1));
        assert_eq!(it.value(read("pay/db/url")).await, Ok((1, b"one".to_vec())));
        assert_eq!(it.put(write("pay/db/url"), b"two").await, Ok(2));
        assert_eq!(it.value(read("pay/db/url")).await, Ok((2, b"two".to_vec())));
        assert_eq!(it.value(read_version("pay/db/url", 1)).await, Ok((1, b"one".to_vec())));
        is_absent(it.value(read_version("pay/db/url", 3)).await);
        is_absent(it.value(read_version("pay/db/url", 0)).await);
        assert_eq!(it.states("pay/db/url").await, "aA");
        assert_eq!(it.put(write("pay/empty"), b"").await, Ok(1));
        assert_eq!(it.value(read("pay/empty")).await, Ok((1, Vec::new())));
    }

    #[tokio::test]
    async fn a_staged_version_is_served_once_it_is_activated() {
        let it = Sample::in_memory().await;
        it.put(stage("pay/x"), b"one").await.unwrap();
        is_absent(it.value(read("pay/x")).await);
        assert_eq!(it.value(read_version("pay/x", 1)).await, Ok((1, b"one".to_vec())));
        it.done(activate("pay/x", 1)).await.unwrap();
        it.put(stage("pay/x"), b"two").await.unwrap();
        assert_eq!(it.value(read("pay/x")).await, Ok((1, b"one".to_vec())));
        it.done(activate("pay/x", 2)).await.unwrap();
        assert_eq!(it.value(read("pay/x")).await, Ok((2, b"two".to_vec())));
        it.done(activate("pay/x", 1)).await.unwrap();
        assert_eq!(it.states("pay/x").await, "Aa");
        is_absent(it.done(activate("pay/x", 9)).await);
    }

    #[tokio::test]
    async fn a_client_that_has_the_version_gets_no_value() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        let have = |n| Ask::Read { name: name("pay/x"), version: None, have: Some(n) };
        let released = it.ask(have(1), b"").await.unwrap();
        assert_eq!(released.answer, Answer::NotModified { version: 1 });
        assert!(released.body.is_empty());
        it.put(write("pay/x"), b"two").await.unwrap();
        assert_eq!(it.value(have(1)).await, Ok((2, b"two".to_vec())));
    }

    #[tokio::test]
    async fn check_and_set_holds_the_newest_version() {
        let it = Sample::in_memory().await;
        assert_eq!(
            is_conflict(it.put(write_cas("pay/x", 1), b"v").await),
            "the secret does not exist"
        );
        assert_eq!(it.put(write_cas("pay/x", 0), b"v").await, Ok(1));
        is_conflict(it.put(write_cas("pay/x", 0), b"w").await);
        assert_eq!(it.put(write_cas("pay/x", 1), b"w").await, Ok(2));
        let hint = is_conflict(it.put(write_cas("pay/x", 1), b"late").await);
        assert_eq!(hint, "the newest version is 2, not 1");
        it.put(stage("pay/x"), b"staged").await.unwrap();
        is_conflict(it.put(write_cas("pay/x", 2), b"behind a staged one").await);
        assert_eq!(it.put(write_cas("pay/x", 3), b"v4").await, Ok(4));
        it.done(delete("pay/x", None)).await.unwrap();
        is_conflict(it.put(write_cas("pay/x", 0), b"a deleted one exists").await);
    }

    #[tokio::test]
    async fn labels_stay_until_they_are_replaced() {
        let it = Sample::in_memory().await;
        let with = |to: &str| Ask::Write {
            name: name("pay/x"),
            cas: None,
            labels: Some(labels(to)),
            staged: false,
        };
        it.put(with(r#"{"team":"pay"}"#), b"v").await.unwrap();
        it.put(write("pay/x"), b"w").await.unwrap();
        let of = async || match it.ask(read("pay/x"), b"").await.unwrap().answer {
            Answer::Secret { labels, .. } => labels,
            other => panic!("{other:?}"),
        };
        assert_eq!(of().await, labels(r#"{"team":"pay"}"#));
        it.done(label("pay/x", r#"{"tier":"1"}"#)).await.unwrap();
        assert_eq!(of().await, labels(r#"{"tier":"1"}"#));
        it.put(with("{}"), b"x").await.unwrap();
        assert_eq!(of().await, Labels::default());
        is_absent(it.done(label("pay/none", "{}")).await);
    }

    #[tokio::test]
    async fn a_deleted_version_is_hidden_and_comes_back() {
        let it = Sample::in_memory().await;
        for value in [b"one", b"two"] {
            it.put(write("pay/x"), value).await.unwrap();
        }
        it.done(delete("pay/x", Some(1))).await.unwrap();
        assert_eq!(it.states("pay/x").await, "dA");
        is_absent(it.value(read_version("pay/x", 1)).await);
        is_absent(it.done(delete("pay/x", Some(1))).await);
        is_conflict(it.done(activate("pay/x", 1)).await);
        assert_eq!(it.value(read("pay/x")).await, Ok((2, b"two".to_vec())));
        it.done(undelete("pay/x", Some(1))).await.unwrap();
        assert_eq!(it.value(read_version("pay/x", 1)).await, Ok((1, b"one".to_vec())));
        is_conflict(it.done(undelete("pay/x", Some(1))).await);
        is_absent(it.done(undelete("pay/x", Some(3))).await);
    }

    #[tokio::test]
    async fn deleting_the_active_version_leaves_none_active() {
        let it = Sample::in_memory().await;
        for value in [b"one", b"two"] {
            it.put(write("pay/x"), value).await.unwrap();
        }
        it.done(delete("pay/x", Some(2))).await.unwrap();
        assert_eq!(it.states("pay/x").await, "ad");
        is_absent(it.value(read("pay/x")).await);
        it.done(undelete("pay/x", Some(2))).await.unwrap();
        is_absent(it.value(read("pay/x")).await);
        assert_eq!(it.states("pay/x").await, "aa");
        it.done(activate("pay/x", 1)).await.unwrap();
        assert_eq!(it.value(read("pay/x")).await, Ok((1, b"one".to_vec())));
        it.done(delete("pay/x", Some(1))).await.unwrap();
        assert_eq!(it.put(write("pay/x"), b"three").await, Ok(3), "numbers are not reused");
        assert_eq!(it.states("pay/x").await, "daA");
    }

    #[tokio::test]
    async fn a_deleted_secret_is_hidden_whole_and_comes_back_whole() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        it.put(write("pay/x"), b"two").await.unwrap();
        it.done(delete("pay/x", None)).await.unwrap();
        for ask in [read("pay/x"), read_version("pay/x", 1)] {
            is_absent(it.value(ask).await);
        }
        for ask in [
            delete("pay/x", None),
            delete("pay/x", Some(1)),
            activate("pay/x", 1),
            label("pay/x", "{}"),
        ] {
            is_absent(it.done(ask).await);
        }
        assert_eq!(it.states("pay/x").await, "dd");
        is_conflict(it.done(undelete("pay/x", Some(1))).await);
        let hint = is_conflict(it.put(write("pay/x"), b"three").await);
        assert!(hint.contains("undelete"), "{hint}");
        it.done(undelete("pay/x", None)).await.unwrap();
        assert_eq!(it.states("pay/x").await, "aA");
        assert_eq!(it.value(read("pay/x")).await, Ok((2, b"two".to_vec())));
        is_conflict(it.done(undelete("pay/x", None)).await);
        is_absent(it.done(undelete("pay/none", None)).await);
    }

    #[tokio::test]
    async fn names_that_differ_only_in_case_never_both_exist() {
        let it = Sample::in_memory().await;
        it.put(write("pay/Key"), b"v").await.unwrap();
        is_absent(it.value(read("pay/key")).await);
        let hint = is_conflict(it.put(write("pay/key"), b"w").await);
        assert!(hint.contains("case") && !hint.contains("Key"), "{hint}");
        is_conflict(it.put(write_cas("pay/KEY", 0), b"w").await);
        is_conflict(it.put(write("Pay/other"), b"a namespace, too").await);
        assert_eq!(it.put(write("pay/other"), b"w").await, Ok(1));
        assert_eq!(it.value(read("pay/Key")).await, Ok((1, b"v".to_vec())));
    }

    #[tokio::test]
    async fn limits_are_refused_and_change_nothing() {
        let it = Sample::in_memory().await;
        assert_eq!(it.put(write("pay/x"), &vec![7; VALUE_MAX]).await, Ok(1));
        assert_eq!(it.value(read("pay/x")).await, Ok((1, vec![7; VALUE_MAX])));
        let before = it.revision().await;
        let large = vec![7; VALUE_MAX + 1];
        is(it.put(write("pay/x"), &large).await, Code::TooLarge, Reason::TooLarge);
        is(it.put(write("new/x"), &large).await, Code::TooLarge, Reason::TooLarge);
        assert_eq!(it.revision().await, before, "no namespace is left behind either");
        let max = u64::try_from(VERSIONS_MAX).unwrap();
        let (mut row, key) = secret_row(&it, "pay/x").await;
        row.newest = max - 1;
        plant(&it, Table::Secrets, &key, &row).await;
        assert_eq!(it.put(write("pay/x"), b"last").await, Ok(max));
        is(it.put(write("pay/x"), b"over").await, Code::TooLarge, Reason::TooLarge);
    }

    async fn secret_row(it: &Sample, text: &str) -> (SecretRow, Vec<u8>) {
        let row = it.vault.secret(&name(text), Trust::Checked).await.unwrap().secret.unwrap().row;
        let key = row.uuid.as_bytes().to_vec();
        (row, key)
    }

    async fn plant<T: serde::Serialize>(it: &Sample, table: Table, key: &[u8], row: &T) {
        let bytes = it.vault.rows.seal(table, key, row).unwrap();
        overwrite(it, table, key, Some(bytes)).await;
    }

    async fn overwrite(it: &Sample, table: Table, key: &[u8], value: Option<Vec<u8>>) {
        let writes = vec![Write { table, key: key.to_vec(), value }];
        it.store.commit(Txn { writes, ..Txn::default() }).await.unwrap();
    }

    #[tokio::test]
    async fn what_changed_since_the_decision_is_refused_and_nothing_is_done() {
        let asks = [
            read("pay/x"),
            read_version("pay/x", 1),
            write("pay/x"),
            activate("pay/x", 1),
            delete("pay/x", None),
            delete("pay/x", Some(1)),
            label("pay/x", "{}"),
        ];
        for ask in asks {
            // Granted on what is there, which is then deleted.
            let it = Sample::in_memory().await;
            it.put(write("pay/x"), b"one").await.unwrap();
            let target = it.vault.locate(&ask).await.unwrap();
            assert!(matches!(target, Target::Secret { .. }), "{ask:?}");
            it.done(delete("pay/x", None)).await.unwrap();
            let before = it.revision().await;
            let late = it.act(&ask, &target, b"late").await.unwrap_err();
            let deleted = matches!(ask, Ask::Write { .. });
            let want = if deleted { Reason::Conflict } else { Reason::Changed };
            assert_eq!(late.reason, want, "{ask:?}");
            assert_eq!(it.revision().await, before, "{ask:?}");

            // Granted on one secret, carried out where another stands.
            let other = Sample::in_memory().await;
            other.put(write("pay/x"), b"another").await.unwrap();
            let before = other.revision().await;
            is_changed(other.act(&ask, &target, b"late").await);
            assert_eq!(other.revision().await, before, "{ask:?}");

            // Granted on nothing, carried out on something, and the other way round.
            is_changed(other.act(&ask, &Target::Absent, b"late").await);
            is_changed(other.act(&ask, &Target::Itself, b"late").await);
            let empty = Sample::in_memory().await;
            is_changed(empty.act(&ask, &target, b"late").await);
            assert_eq!(empty.revision().await, 0);
        }
    }

    #[tokio::test]
    async fn a_read_gives_the_granted_version_or_none() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        let target = it.vault.locate(&read("pay/x")).await.unwrap();
        assert_eq!(it.act(&read("pay/x"), &target, b"").await.unwrap().body.expose(), b"one");
        it.put(write("pay/x"), b"two").await.unwrap();
        is_changed(it.act(&read("pay/x"), &target, b"").await);
        it.done(activate("pay/x", 1)).await.unwrap();
        assert_eq!(it.act(&read("pay/x"), &target, b"").await.unwrap().body.expose(), b"one");
        let Target::Secret { uuid, version, digest } = target else { panic!() };
        let wrong = crate::model::Digest([1; 32]);
        assert_ne!(digest, wrong);
        let other = Target::Secret { uuid, version, digest: wrong };
        is_changed(it.act(&read("pay/x"), &other, b"").await);
    }

    #[tokio::test]
    async fn a_write_without_check_and_set_goes_behind_one_that_came_between() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        let plain = it.vault.locate(&write("pay/x")).await.unwrap();
        it.put(write("pay/x"), b"two").await.unwrap();
        let released = it.act(&write("pay/x"), &plain, b"three").await.unwrap();
        assert!(matches!(released.answer, Answer::Written { version: 3, .. }));
        is_conflict(it.act(&write_cas("pay/x", 1), &plain, b"four").await);
        is_changed(it.act(&write_cas("pay/x", 3), &plain, b"four").await);
    }

    #[tokio::test]
    async fn asks_of_other_rooms_are_no_business_of_the_vault() {
        let it = Sample::in_memory().await;
        let ask = Ask::Whoami {};
        assert_eq!(it.vault.locate(&ask).await.unwrap(), Target::Itself);
        is(it.act(&ask, &Target::Itself, b"").await, Code::Invalid, Reason::Invalid);
    }

    #[tokio::test]
    async fn every_commit_rests_on_its_grant() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"v").await.unwrap(); // record 100
        assert_eq!(it.store.last_grant().await.unwrap(), Some(100));
        let asks = [
            write("pay/x"),
            activate("pay/x", 1),
            label("pay/x", "{}"),
            delete("pay/x", Some(1)),
            undelete("pay/x", Some(1)),
            delete("pay/x", None),
            undelete("pay/x", None),
        ];
        for (ask, index) in asks.into_iter().zip(101..) {
            it.ask(ask, b"v").await.unwrap();
            assert_eq!(it.store.last_grant().await.unwrap(), Some(index));
        }
        it.value(read_version("pay/x", 2)).await.unwrap();
        assert_eq!(it.store.last_grant().await.unwrap(), Some(107), "reading commits nothing");
    }

    /// Compiles only while the broker may carry a request out on any of its threads.
    #[allow(dead_code)]
    fn carrying_out_may_move(vault: &super::super::Vault, grant: Grant<Secret>) -> impl Send + '_ {
        vault.carry_out(grant, SecretValue::empty())
    }

    async fn names(
        it: &Sample,
        prefix: &str,
        after: Option<&str>,
        may: impl Fn(&SecretName) -> bool + Send + Sync,
    ) -> (Vec<String>, bool) {
        let ask = list(prefix, after);
        let target = it.vault.locate(&ask).await.unwrap();
        assert_eq!(target, Target::Itself);
        let act = Act { ask: &ask, target: &target, index: 1, now: now(), may_list: &may };
        match it.vault.act(&act, SecretValue::empty()).await.unwrap().answer {
            Answer::Names { items, more, .. } => {
                (items.into_iter().map(|item| item.name.to_string()).collect(), more)
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_listing_holds_what_the_caller_may_list_and_nothing_beside_its_prefix() {
        let it = Sample::in_memory().await;
        for text in ["pay/db", "pay/db/url", "pay/db-2", "pay/db/Pass", "payroll/x", "pay/a"] {
            it.put(write(text), b"v").await.unwrap();
        }
        it.done(delete("pay/a", None)).await.unwrap();
        let all = async |prefix, after| names(&it, prefix, after, |_| true).await.0;
        assert_eq!(all("pay/db", None).await, ["pay/db", "pay/db/Pass", "pay/db/url"]);
        assert_eq!(all("pay/db", Some("pay/db")).await, ["pay/db/Pass", "pay/db/url"]);
        assert_eq!(all("pay/db", Some("pay/db/Pass")).await, ["pay/db/url"]);
        assert_eq!(all("pay", None).await.len(), 5);
        assert!(all("pay/d", None).await.is_empty(), "whole segments only");
        assert!(all("PAY", None).await.is_empty(), "byte-exact");
        assert!(all("none", None).await.is_empty());
        let some = names(&it, "pay", None, |name| name.as_str() == "pay/db/url").await;
        assert_eq!(some, (vec!["pay/db/url".to_owned()], false));
        assert!(names(&it, "pay/db", None, |_| false).await.0.is_empty());
        match it.ask(list("pay/a", None), b"").await.unwrap().answer {
            Answer::Names { items, .. } => {
                assert!(items[0].deleted);
                assert_eq!(items[0].active, None);
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_long_listing_is_read_page_by_page_without_loss() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"v").await.unwrap();
        let (sample, _) = secret_row(&it, "pay/x").await;
        let mut writes = Vec::new();
        for n in 0..2 * LIST_PAGE + 5 {
            let name = name(&format!("many/s{n:05}"));
            let uuid = uuid::Uuid::new_v4();
            let row = NameRow { name: name.clone(), uuid };
            let key = name_key(&name);
            let bytes = it.vault.rows.seal(Table::Names, &key, &row).unwrap();
            writes.push(Write { table: Table::Names, key, value: Some(bytes) });
            let row = SecretRow { name, uuid, ..sample.clone() };
            let key = uuid.as_bytes().to_vec();
            let bytes = it.vault.rows.seal(Table::Secrets, &key, &row).unwrap();
            writes.push(Write { table: Table::Secrets, key, value: Some(bytes) });
        }
        it.store.commit(Txn { writes, ..Txn::default() }).await.unwrap();
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let (page, more) = names(&it, "many", after.as_deref(), |_| true).await;
            pages += 1;
            all.extend(page);
            after = all.last().cloned();
            if !more {
                break;
            }
        }
        let want: Vec<_> = (0..2 * LIST_PAGE + 5).map(|n| format!("many/s{n:05}")).collect();
        assert_eq!((all, pages), (want, 3));
    }

    #[tokio::test]
    async fn a_search_among_names_of_others_ends_and_goes_on_without_naming_them() {
        let it = Sample::in_memory().await;
        let last = LIST_EXAMINED + 600;
        let row = |n: usize| {
            let name = name(&format!("many/s{n:05}"));
            let key = name_key(&name);
            let row = NameRow { name, uuid: uuid::Uuid::new_v4() };
            let value = Some(it.vault.rows.seal(Table::Names, &key, &row).unwrap());
            Write { table: Table::Names, key, value }
        };
        let writes: Vec<_> = (0..last).map(row).collect();
        it.store.commit(Txn { writes, ..Txn::default() }).await.unwrap();
        let mine = format!("many/s{last:05}");
        it.put(write(&mine), b"v").await.unwrap();

        let looked = std::sync::atomic::AtomicUsize::new(0);
        let may = |name: &SecretName| {
            looked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            name.as_str() == mine
        };
        let page = async |prefix: &str, from: Option<String>| {
            let prefix = crate::model::SecretPrefix::parse(prefix).unwrap();
            let (ask, target) = (Ask::List { prefix, after: None, from }, Target::Itself);
            let act = Act { ask: &ask, target: &target, index: 1, now: now(), may_list: &may };
            match it.vault.act(&act, SecretValue::empty()).await?.answer {
                Answer::Names { items, more, next } => Ok((items, more, next)),
                other => panic!("{other:?}"),
            }
        };
        let (items, more, next) = page("many", None).await.unwrap();
        assert!(items.is_empty() && more);
        let looks = looked.load(std::sync::atomic::Ordering::Relaxed);
        assert!((LIST_EXAMINED..LIST_EXAMINED + 300).contains(&looks), "{looks} names");
        let next = next.unwrap();
        assert_eq!(next.len(), 791, "as long as every other");
        let plain = crate::model::SecretPrefix::parse("many").unwrap();
        assert!(it.vault.open_place(&plain, &next).unwrap().starts_with(b"many/s1"));
        let (items, more, end) = page("many", Some(next.clone())).await.unwrap();
        assert_eq!(items.len(), 1);
        assert_eq!((items[0].name.as_str(), more, end), (mine.as_str(), false, None));
        for (prefix, place) in [("other", next.as_str()), ("many", "AAAA"), ("many", "?")] {
            let failure: Failure = page(prefix, Some(place.to_owned())).await.unwrap_err();
            assert_eq!(failure.code, Code::Invalid);
        }
    }

    #[tokio::test]
    async fn no_page_of_names_or_versions_outgrows_a_frame() {
        let it = Sample::in_memory().await;
        it.put(write("pay/x"), b"v").await.unwrap();
        let (sample, _) = secret_row(&it, "pay/x").await;
        let pairs = (0..64).map(|n| (format!("{n:0>128}"), "\"".repeat(512)));
        let labels = Labels::new(pairs).unwrap();
        let mut writes = Vec::new();
        for n in 0..20 {
            let name = name(&format!("many/s{n:05}"));
            let uuid = uuid::Uuid::new_v4();
            let key = name_key(&name);
            let row = NameRow { name: name.clone(), uuid };
            let bytes = it.vault.rows.seal(Table::Names, &key, &row).unwrap();
            writes.push(Write { table: Table::Names, key, value: Some(bytes) });
            let row = SecretRow { name, uuid, labels: labels.clone(), ..sample.clone() };
            let bytes = it.vault.rows.seal(Table::Secrets, uuid.as_bytes(), &row).unwrap();
            let key = uuid.as_bytes().to_vec();
            writes.push(Write { table: Table::Secrets, key, value: Some(bytes) });
        }
        it.store.commit(Txn { writes, ..Txn::default() }).await.unwrap();
        let answer = it.ask(list("many", None), b"").await.unwrap().answer;
        assert!(matches!(answer, Answer::Names { more: true, .. }));
        assert!(serde_json::to_vec(&answer).unwrap().len() + 2048 < REPLY_HEAD_MAX);
        let item = crate::model::VersionItem {
            version: u64::MAX,
            state: crate::model::VersionState::Available,
            created: "2026-11-23T04:05:06Z".into(),
        };
        let answer = Answer::Versions { items: vec![item; VERSIONS_MAX] };
        assert!(serde_json::to_vec(&answer).unwrap().len() + 2048 < REPLY_HEAD_MAX);
    }

    /// The rows of a secret with versions 1 and 2, and of another with version 1.
    async fn with_two() -> Sample {
        let it = Sample::in_memory().await;
        it.put(write("pay/a"), b"value of a, first").await.unwrap();
        it.put(write("pay/a"), b"value of a, second").await.unwrap();
        it.put(write("pay/b"), b"value of b, first").await.unwrap();
        it
    }

    async fn bytes(it: &Sample, table: Table, key: &[u8]) -> Vec<u8> {
        it.store.get(table, key).await.unwrap().unwrap().value
    }

    /// Whoever owns the store puts any row in any other's place: nothing wrong is ever released.
    #[tokio::test]
    async fn no_row_works_in_the_place_of_another() {
        let it = with_two().await;
        let (a, _) = secret_row(&it, "pay/a").await;
        let (b, _) = secret_row(&it, "pay/b").await;
        let keys = [
            (Table::Names, name_key(&name("pay/a"))),
            (Table::Names, name_key(&name("pay/b"))),
            (Table::Secrets, a.uuid.as_bytes().to_vec()),
            (Table::Secrets, b.uuid.as_bytes().to_vec()),
            (Table::Versions, head_key(a.uuid, 1)),
            (Table::Versions, head_key(a.uuid, 2)),
            (Table::Versions, head_key(b.uuid, 1)),
            (Table::Versions, value_key(a.uuid, 1)),
            (Table::Versions, value_key(a.uuid, 2)),
            (Table::Versions, value_key(b.uuid, 1)),
        ];
        let right = [
            (read("pay/a"), b"value of a, second".as_slice()),
            (read_version("pay/a", 1), b"value of a, first"),
            (read("pay/b"), b"value of b, first"),
        ];
        for (table, to) in &keys {
            let original = bytes(&it, *table, to).await;
            for (source, from) in keys.iter().filter(|(_, from)| from != to) {
                let foreign = bytes(&it, *source, from).await;
                overwrite(&it, *table, to, Some(foreign)).await;
                let mut failed = 0;
                for (ask, want) in &right {
                    match it.value(ask.clone()).await {
                        Ok((_, value)) => assert_eq!(value, *want, "{ask:?}"),
                        Err(failure) => {
                            failed += 1;
                            let reason = failure.reason;
                            let known = matches!(reason, Reason::Corrupt | Reason::Changed);
                            assert!(known || reason == Reason::Absent, "{failure:?}");
                        }
                    }
                }
                assert!(failed > 0, "a moved row went unnoticed");
                overwrite(&it, *table, to, Some(original.clone())).await;
            }
            overwrite(&it, *table, to, None).await;
            let mut failed = 0;
            for (ask, want) in &right {
                match it.value(ask.clone()).await {
                    Ok((_, value)) => assert_eq!(value, *want),
                    Err(_) => failed += 1,
                }
            }
            assert!(failed > 0, "a deleted row went unnoticed");
            overwrite(&it, *table, to, Some(original)).await;
        }
        for (ask, want) in right {
            assert_eq!(it.value(ask).await.unwrap().1, want, "all is back in its place");
        }
    }

    #[tokio::test]
    async fn every_changed_byte_of_a_row_is_named_corrupt_and_others_still_work() {
        let it = with_two().await;
        let (a, _) = secret_row(&it, "pay/a").await;
        for (table, key) in [
            (Table::Names, name_key(&name("pay/a"))),
            (Table::Secrets, a.uuid.as_bytes().to_vec()),
            (Table::Versions, head_key(a.uuid, 2)),
            (Table::Versions, value_key(a.uuid, 2)),
        ] {
            let original = bytes(&it, table, &key).await;
            for at in 0..original.len() {
                let mut bad = original.clone();
                bad[at] ^= 1;
                overwrite(&it, table, &key, Some(bad)).await;
                let failure = it.value(read("pay/a")).await.unwrap_err();
                let hint = failure.hint.clone().unwrap_or_default();
                let named = failure.reason == Reason::Corrupt && hint.contains("pay/a");
                // A changed name or digest can look like another target, which is refused as well.
                let other = matches!(failure.reason, Reason::Changed | Reason::Absent);
                assert!(named || other, "{table:?} byte {at}: {failure:?}");
            }
            overwrite(&it, table, &key, Some(original)).await;
            assert!(it.value(read("pay/b")).await.is_ok());
        }
        assert!(it.value(read("pay/a")).await.is_ok());
    }

    #[tokio::test]
    async fn damage_in_a_listing_is_told_to_who_may_list_it_only() {
        let it = with_two().await;
        overwrite(&it, Table::Names, b"pay/b", Some(b"nonsense".to_vec())).await;
        let ask = list("pay", None);
        let hint = is(it.ask(ask, b"").await, Code::Internal, Reason::Corrupt);
        assert!(hint.contains("pay/b"), "{hint}");
        let only_a = names(&it, "pay", None, |name| name.as_str() == "pay/a").await;
        assert_eq!(only_a.0, ["pay/a"]);
    }

    #[tokio::test]
    async fn a_missing_version_in_a_listing_of_versions_is_found() {
        let it = with_two().await;
        let (a, _) = secret_row(&it, "pay/a").await;
        assert_eq!(it.states("pay/a").await, "aA");
        overwrite(&it, Table::Versions, &head_key(a.uuid, 1), None).await;
        let ask = Ask::Versions { name: name("pay/a") };
        is(it.ask(ask, b"").await, Code::Internal, Reason::Corrupt);
        assert_eq!(
            it.store.scan(Table::Versions, &heads_of(a.uuid), None, 9).await.unwrap().len(),
            1
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn racing_writers_each_get_a_version_of_their_own() {
        let it = Arc::new(Sample::on_disk().await);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..24u8 {
            let it = it.clone();
            tasks.spawn(async move { (n, it.put(write("pay/x"), &[n]).await) });
        }
        let (mut won, mut changed) = (Vec::new(), 0);
        while let Some(result) = tasks.join_next().await {
            match result.unwrap() {
                (n, Ok(version)) => won.push((version, n)),
                // Located while the secret did not exist: created meanwhile.
                (_, Err(failure)) => {
                    assert_eq!(failure.reason, Reason::Changed);
                    changed += 1;
                }
            }
        }
        won.sort_unstable();
        assert_eq!(won.len() + changed, 24);
        for ((version, n), want) in won.iter().zip(1..) {
            assert_eq!(*version, want, "numbers are gapless and single");
            assert_eq!(it.value(read_version("pay/x", want)).await, Ok((want, vec![*n])));
        }
        let mut tasks = tokio::task::JoinSet::new();
        let newest = u64::try_from(won.len()).unwrap();
        for n in 0..12u8 {
            let it = it.clone();
            tasks.spawn(async move { it.put(write_cas("pay/x", newest), &[n]).await.is_ok() });
        }
        let winners = tasks.join_all().await.into_iter().filter(|won| *won).count();
        assert_eq!(winners, 1, "check-and-set lets one through");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn two_brokers_on_one_store_never_lose_a_write() {
        let one = Arc::new(Sample::on_disk().await);
        let two = Arc::new(Sample::over(one.store.clone(), one.dir.clone()).await);
        one.put(write("pay/x"), b"0").await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..20u8 {
            let it = if n % 2 == 0 { one.clone() } else { two.clone() };
            tasks.spawn(async move { it.put(write("pay/x"), &[n]).await });
            let it = if n % 2 == 0 { one.clone() } else { two.clone() };
            tasks.spawn(async move { it.put(write(&format!("born{}/x", n / 2)), &[n]).await });
        }
        let results = tasks.join_all().await;
        for result in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!(result.reason, Reason::Changed, "{result:?}");
        }
        let wrote = |states: &str| u64::try_from(states.len()).unwrap();
        let mut total = wrote(&one.states("pay/x").await) - 1;
        for n in 0..10 {
            total += wrote(&two.states(&format!("born{n}/x")).await);
            one.value(read(&format!("born{n}/x"))).await.unwrap();
        }
        let won = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(u64::try_from(won), Ok(total));
    }

    #[tokio::test]
    async fn everything_is_there_after_a_restart() {
        let it = Sample::on_disk().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        it.put(write("hr/y"), b"two").await.unwrap();
        let dir = it.dir.clone();
        drop(it);
        let store = Arc::new(RedbStore::open(&dir.path().join("store")).unwrap());
        let it = Sample::over(store, dir).await;
        assert_eq!(it.value(read("pay/x")).await, Ok((1, b"one".to_vec())));
        assert_eq!(it.value(read("hr/y")).await, Ok((1, b"two".to_vec())));
    }

    #[tokio::test]
    async fn a_lost_or_damaged_key_is_named_and_other_namespaces_go_on() {
        let it = Sample::on_disk().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        it.put(write("hr/y"), b"two").await.unwrap();
        let key = namespace_key(&Namespace::parse("pay").unwrap());
        let row = it.vault.rows.open::<super::super::rows::NamespaceRow>(
            Table::Names,
            &key,
            &bytes(&it, Table::Names, &key).await,
            Trust::Checked,
        );
        let file = it.keys().join(format!("{}.keys", row.unwrap().uuid));
        std::fs::write(&file, vec![1; 8192]).unwrap();
        let again = Sample::over(it.store.clone(), it.dir.clone()).await;
        assert!(again.value(read("hr/y")).await.is_ok());
        let hint = is(again.value(read("pay/x")).await, Code::Internal, Reason::Corrupt);
        assert!(hint.contains("damaged"), "{hint}");
        std::fs::remove_dir_all(it.keys()).unwrap();
        let gone = super::super::Vault::open(it.store.clone(), &it.keys(), root()).await;
        assert!(gone.is_err(), "an empty keyring is not made for a store that has namespaces");
        assert!(!it.keys().exists());
    }

    #[tokio::test]
    async fn another_root_key_reads_nothing() {
        let it = Sample::on_disk().await;
        it.put(write("pay/x"), b"one").await.unwrap();
        let other = Arc::new(crate::vault::RootKey::from_bytes(&[1; 32]));
        let opened = super::super::Vault::open(it.store.clone(), &it.keys(), other).await;
        assert!(matches!(opened, Err(VaultError::Row { .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn no_plaintext_reaches_a_file() {
        let it = Sample::on_disk().await;
        let canary = b"CANARY-7f3a91c2-never-on-disk";
        for n in 0..20 {
            it.put(write(&format!("pay/s{n}")), canary).await.unwrap();
            it.put(stage(&format!("pay/s{n}")), &canary.repeat(40)).await.unwrap();
        }
        it.done(delete("pay/s3", None)).await.unwrap();
        assert_eq!(it.value(read("pay/s4")).await, Ok((1, canary.to_vec())));
        let dir = it.dir.clone();
        drop(it);
        let (mut files, mut found_name) = (0, false);
        let mut rest = vec![dir.path().to_owned()];
        while let Some(path) = rest.pop() {
            if path.is_dir() {
                rest.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            files += 1;
            let bytes = std::fs::read(&path).unwrap();
            let holds = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
            assert!(!holds(canary), "{}", path.display());
            assert!(!holds(&canary[7..23]), "{}", path.display());
            assert!(!holds(&ROOT), "{}", path.display());
            found_name |= holds(b"pay/s4");
        }
        assert!(files >= 3 && found_name, "the search finds what is there");
    }

    #[test]
    fn nothing_shows_a_secret_in_debug() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let it = runtime.block_on(Sample::in_memory());
        assert_eq!(format!("{:?}", it.vault), "Vault(…)");
    }
}
