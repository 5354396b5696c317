//! What every engine promises, as tests that take any engine. An engine's own test module says
//! `conformance!(expression that gives a fresh (store, guard))` and gets them all.

use super::{Event, Expect, Store, StoreError, Table, Txn, Write};

/// Makes one `#[tokio::test]` of each promise for the given engine.
macro_rules! conformance {
    ($fresh:expr) => {
        $crate::store::conformance::conformance!(@each $fresh;
            an_empty_store_is_at_revision_zero
            what_is_written_is_read
            tables_are_apart
            every_byte_is_a_legal_key_and_value
            an_empty_value_is_not_absence
            a_value_of_a_megabyte_fits
            revisions_count_commits
            a_row_bears_the_revision_of_its_last_write
            other_rows_keep_their_revision
            a_deleted_row_is_gone
            deleting_nothing_is_no_fault
            expecting_absence_creates_once
            expecting_a_revision_guards_a_change
            expecting_a_revision_of_an_absent_row_fails
            a_deleted_and_remade_row_is_another
            one_failed_expectation_undoes_all
            expectations_reach_across_tables
            a_refused_commit_takes_no_revision
            the_last_write_of_a_key_stands
            a_scan_is_in_key_order_within_its_prefix
            a_scan_stops_at_its_limit_and_goes_on_after_a_key
            a_scan_may_go_on_after_a_key_that_is_gone
            a_scan_takes_any_cursor
            the_highest_grant_is_kept
            a_refused_commit_leaves_no_grant
            events_come_after_the_commit_in_order
            a_refused_commit_has_no_event
            a_slow_watcher_is_told
            a_snapshot_holds_every_table_at_one_revision
            racing_writers_never_lose_an_update
            a_reader_never_sees_half_a_commit
            a_commit_outlives_who_waits_for_it
        );
    };
    (@each $fresh:expr; $($promise:ident)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let (store, _guard) = $fresh;
            $crate::store::conformance::$promise(std::sync::Arc::new(store)).await;
        })+
    };
}
pub(crate) use conformance;

type Any<S> = std::sync::Arc<S>;

fn put(table: Table, key: &[u8], value: &[u8]) -> Write {
    Write { table, key: key.to_vec(), value: Some(value.to_vec()) }
}

fn expect(table: Table, key: &[u8], revision: Option<u64>) -> Expect {
    Expect { table, key: key.to_vec(), revision }
}

fn writes(writes: impl IntoIterator<Item = Write>) -> Txn {
    Txn { writes: writes.into_iter().collect(), ..Txn::default() }
}

async fn value<S: Store>(store: &Any<S>, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.get(table, key).await.unwrap().map(|row| row.value)
}

async fn set<S: Store>(store: &Any<S>, key: &[u8], value: &[u8]) -> u64 {
    store.commit(writes([put(Table::Meta, key, value)])).await.unwrap()
}

fn is_conflict<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Conflict)), "{result:?}");
}

pub(crate) async fn an_empty_store_is_at_revision_zero<S: Store>(store: Any<S>) {
    assert_eq!(store.revision().await.unwrap(), 0);
    assert_eq!(store.last_grant().await.unwrap(), None);
    for table in Table::ALL {
        assert!(store.scan(*table, b"", None, 10).await.unwrap().is_empty());
        assert_eq!(value(&store, *table, b"x").await, None);
    }
    assert_eq!(store.snapshot().await.unwrap(), (0, Vec::new()));
}

pub(crate) async fn what_is_written_is_read<S: Store>(store: Any<S>) {
    set(&store, b"k", b"one").await;
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), b"one");
    set(&store, b"k", b"two").await;
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), b"two");
}

pub(crate) async fn tables_are_apart<S: Store>(store: Any<S>) {
    let all = Table::ALL.iter().map(|table| put(*table, b"k", table.as_str().as_bytes()));
    store.commit(writes(all)).await.unwrap();
    for table in Table::ALL {
        assert_eq!(value(&store, *table, b"k").await.unwrap(), table.as_str().as_bytes());
    }
    let gone = Write { table: Table::Names, key: b"k".to_vec(), value: None };
    store.commit(writes([gone])).await.unwrap();
    for table in Table::ALL {
        assert_eq!(value(&store, *table, b"k").await.is_none(), *table == Table::Names);
    }
}

pub(crate) async fn every_byte_is_a_legal_key_and_value<S: Store>(store: Any<S>) {
    let all = (0..=255u8).map(|byte| put(Table::Meta, &[byte, 0, byte], &[byte, 255]));
    store.commit(writes(all)).await.unwrap();
    let found = store.scan(Table::Meta, b"", None, 1000).await.unwrap();
    assert_eq!(found.len(), 256);
    for (byte, (key, row)) in (0..=255u8).zip(found) {
        assert_eq!((key, row.value), (vec![byte, 0, byte], vec![byte, 255]));
    }
}

pub(crate) async fn an_empty_value_is_not_absence<S: Store>(store: Any<S>) {
    set(&store, b"k", b"").await;
    assert_eq!(value(&store, Table::Meta, b"k").await, Some(Vec::new()));
    assert_eq!(value(&store, Table::Meta, b"other").await, None);
}

pub(crate) async fn a_value_of_a_megabyte_fits<S: Store>(store: Any<S>) {
    let large: Vec<u8> = (0..1_048_576u32).map(|i| i.to_le_bytes()[1]).collect();
    set(&store, b"k", &large).await;
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), large);
}

pub(crate) async fn revisions_count_commits<S: Store>(store: Any<S>) {
    for n in 1..=5 {
        assert_eq!(set(&store, b"k", b"v").await, n);
        assert_eq!(store.revision().await.unwrap(), n);
    }
    assert_eq!(store.commit(Txn::default()).await.unwrap(), 6, "a commit without writes counts");
}

pub(crate) async fn a_row_bears_the_revision_of_its_last_write<S: Store>(store: Any<S>) {
    for n in 1..=3 {
        set(&store, b"k", b"same bytes").await;
        assert_eq!(store.get(Table::Meta, b"k").await.unwrap().unwrap().revision, n);
    }
}

pub(crate) async fn other_rows_keep_their_revision<S: Store>(store: Any<S>) {
    set(&store, b"a", b"1").await;
    set(&store, b"b", b"2").await;
    assert_eq!(store.get(Table::Meta, b"a").await.unwrap().unwrap().revision, 1);
    assert_eq!(store.get(Table::Meta, b"b").await.unwrap().unwrap().revision, 2);
}

pub(crate) async fn a_deleted_row_is_gone<S: Store>(store: Any<S>) {
    set(&store, b"k", b"v").await;
    assert!(value(&store, Table::Meta, b"k").await.is_some());
    let delete = Write { table: Table::Meta, key: b"k".to_vec(), value: None };
    store.commit(writes([delete])).await.unwrap();
    assert_eq!(value(&store, Table::Meta, b"k").await, None);
    assert!(store.scan(Table::Meta, b"", None, 10).await.unwrap().is_empty());
}

pub(crate) async fn deleting_nothing_is_no_fault<S: Store>(store: Any<S>) {
    let delete = Write { table: Table::Meta, key: b"k".to_vec(), value: None };
    assert_eq!(store.commit(writes([delete])).await.unwrap(), 1);
}

pub(crate) async fn expecting_absence_creates_once<S: Store>(store: Any<S>) {
    let create = |bytes: &[u8]| Txn {
        expects: vec![expect(Table::Meta, b"k", None)],
        writes: vec![put(Table::Meta, b"k", bytes)],
        under: None,
    };
    store.commit(create(b"first")).await.unwrap();
    is_conflict(store.commit(create(b"second")).await);
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), b"first");
}

pub(crate) async fn expecting_a_revision_guards_a_change<S: Store>(store: Any<S>) {
    let first = set(&store, b"k", b"1").await;
    let change = |bytes: &[u8]| Txn {
        expects: vec![expect(Table::Meta, b"k", Some(first))],
        writes: vec![put(Table::Meta, b"k", bytes)],
        under: None,
    };
    store.commit(change(b"2")).await.unwrap();
    is_conflict(store.commit(change(b"3")).await);
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), b"2");
}

pub(crate) async fn expecting_a_revision_of_an_absent_row_fails<S: Store>(store: Any<S>) {
    for revision in [0, 1, u64::MAX] {
        let expects = vec![expect(Table::Meta, b"k", Some(revision))];
        is_conflict(store.commit(Txn { expects, ..Txn::default() }).await);
    }
}

pub(crate) async fn a_deleted_and_remade_row_is_another<S: Store>(store: Any<S>) {
    let first = set(&store, b"k", b"v").await;
    let delete = Write { table: Table::Meta, key: b"k".to_vec(), value: None };
    store.commit(writes([delete])).await.unwrap();
    set(&store, b"k", b"v").await;
    let expects = vec![expect(Table::Meta, b"k", Some(first))];
    is_conflict(store.commit(Txn { expects, ..Txn::default() }).await);
}

pub(crate) async fn one_failed_expectation_undoes_all<S: Store>(store: Any<S>) {
    let first = set(&store, b"a", b"1").await;
    let txn = Txn {
        expects: vec![expect(Table::Meta, b"a", Some(first)), expect(Table::Meta, b"b", Some(9))],
        writes: vec![put(Table::Meta, b"a", b"2"), put(Table::Names, b"n", b"2")],
        under: None,
    };
    is_conflict(store.commit(txn).await);
    assert_eq!(value(&store, Table::Meta, b"a").await.unwrap(), b"1");
    assert_eq!(value(&store, Table::Names, b"n").await, None);
}

pub(crate) async fn expectations_reach_across_tables<S: Store>(store: Any<S>) {
    let first = set(&store, b"k", b"1").await;
    let txn = |revision| Txn {
        expects: vec![expect(Table::Meta, b"k", Some(revision))],
        writes: vec![put(Table::Secrets, b"k", b"2")],
        under: None,
    };
    is_conflict(store.commit(txn(first + 1)).await);
    store.commit(txn(first)).await.unwrap();
    assert_eq!(value(&store, Table::Secrets, b"k").await.unwrap(), b"2");
}

pub(crate) async fn a_refused_commit_takes_no_revision<S: Store>(store: Any<S>) {
    set(&store, b"k", b"1").await;
    let expects = vec![expect(Table::Meta, b"k", None)];
    is_conflict(store.commit(Txn { expects, ..Txn::default() }).await);
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(set(&store, b"k", b"2").await, 2);
}

pub(crate) async fn the_last_write_of_a_key_stands<S: Store>(store: Any<S>) {
    let delete = Write { table: Table::Meta, key: b"gone".to_vec(), value: None };
    let twice = [
        put(Table::Meta, b"k", b"1"),
        put(Table::Meta, b"k", b"2"),
        put(Table::Meta, b"gone", b"1"),
        delete,
    ];
    store.commit(writes(twice)).await.unwrap();
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), b"2");
    assert_eq!(value(&store, Table::Meta, b"gone").await, None);
}

async fn keys<S: Store>(
    store: &Any<S>,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
) -> Vec<String> {
    let found = store.scan(Table::Names, prefix, after, limit).await.unwrap();
    found.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
}

async fn with_names<S: Store>(store: &Any<S>) {
    let names = ["b", "a/2", "a/1", "a", "a/10", "ab/1", "A/1", "a/3"];
    let all = names.into_iter().map(|name| put(Table::Names, name.as_bytes(), b"v"));
    store.commit(writes(all)).await.unwrap();
    set(store, b"a/9", b"of another table").await;
}

pub(crate) async fn a_scan_is_in_key_order_within_its_prefix<S: Store>(store: Any<S>) {
    with_names(&store).await;
    assert_eq!(keys(&store, b"a/", None, 99).await, ["a/1", "a/10", "a/2", "a/3"]);
    assert_eq!(keys(&store, b"", None, 99).await.len(), 8);
    assert!(keys(&store, b"zz", None, 99).await.is_empty());
}

pub(crate) async fn a_scan_stops_at_its_limit_and_goes_on_after_a_key<S: Store>(store: Any<S>) {
    with_names(&store).await;
    assert_eq!(keys(&store, b"a/", None, 2).await, ["a/1", "a/10"]);
    assert_eq!(keys(&store, b"a/", Some(b"a/10"), 2).await, ["a/2", "a/3"]);
    assert!(keys(&store, b"a/", Some(b"a/3"), 2).await.is_empty());
    assert!(keys(&store, b"a/", None, 0).await.is_empty());
}

pub(crate) async fn a_scan_may_go_on_after_a_key_that_is_gone<S: Store>(store: Any<S>) {
    with_names(&store).await;
    let delete = Write { table: Table::Names, key: b"a/10".to_vec(), value: None };
    store.commit(writes([delete])).await.unwrap();
    assert_eq!(keys(&store, b"a/", Some(b"a/10"), 9).await, ["a/2", "a/3"]);
}

pub(crate) async fn a_scan_takes_any_cursor<S: Store>(store: Any<S>) {
    with_names(&store).await;
    assert_eq!(keys(&store, b"a/", Some(b""), 9).await.len(), 4, "before the prefix");
    assert_eq!(keys(&store, b"a/", Some(b"A"), 9).await.len(), 4, "before the prefix");
    assert!(keys(&store, b"a/", Some(b"b"), 9).await.is_empty(), "behind the prefix");
    assert!(keys(&store, b"a/", Some(&[0xff; 64]), 9).await.is_empty());
}

pub(crate) async fn the_highest_grant_is_kept<S: Store>(store: Any<S>) {
    for (under, want) in [(None, None), (Some(7), Some(7)), (Some(3), Some(7)), (None, Some(7))] {
        store.commit(Txn { under, ..Txn::default() }).await.unwrap();
        assert_eq!(store.last_grant().await.unwrap(), want);
    }
    store.commit(Txn { under: Some(8), ..Txn::default() }).await.unwrap();
    assert_eq!(store.last_grant().await.unwrap(), Some(8));
}

pub(crate) async fn a_refused_commit_leaves_no_grant<S: Store>(store: Any<S>) {
    store.commit(Txn { under: Some(1), ..Txn::default() }).await.unwrap();
    let expects = vec![expect(Table::Meta, b"k", Some(1))];
    is_conflict(store.commit(Txn { expects, under: Some(9), ..Txn::default() }).await);
    assert_eq!(store.last_grant().await.unwrap(), Some(1));
}

pub(crate) async fn events_come_after_the_commit_in_order<S: Store>(store: Any<S>) {
    set(&store, b"before", b"unseen").await;
    let mut events = store.watch();
    let two = [put(Table::Meta, b"a", b"1"), put(Table::Names, b"b", b"2")];
    store.commit(writes(two)).await.unwrap();
    set(&store, b"c", b"3").await;
    for (revision, table, key) in
        [(2, Table::Meta, b"a"), (2, Table::Names, b"b"), (3, Table::Meta, b"c")]
    {
        let event = events.try_recv().unwrap();
        assert_eq!(event, Event { revision, table, key: key.to_vec() });
    }
    assert!(events.try_recv().is_err());
}

pub(crate) async fn a_refused_commit_has_no_event<S: Store>(store: Any<S>) {
    let mut events = store.watch();
    let txn = Txn {
        expects: vec![expect(Table::Meta, b"k", Some(1))],
        writes: vec![put(Table::Meta, b"k", b"1")],
        under: None,
    };
    is_conflict(store.commit(txn).await);
    set(&store, b"other", b"1").await;
    assert_eq!(events.try_recv().unwrap().key, b"other");
}

pub(crate) async fn a_slow_watcher_is_told<S: Store>(store: Any<S>) {
    use tokio::sync::broadcast::error::TryRecvError;
    let mut events = store.watch();
    let many = 4 * crate::model::limits::STORE_EVENTS;
    let all = (0..many).map(|i| put(Table::Meta, i.to_string().as_bytes(), b"v"));
    store.commit(writes(all)).await.unwrap();
    assert!(matches!(events.try_recv(), Err(TryRecvError::Lagged(_))));
}

pub(crate) async fn a_snapshot_holds_every_table_at_one_revision<S: Store>(store: Any<S>) {
    let all = Table::ALL.iter().map(|table| put(*table, b"k", table.as_str().as_bytes()));
    store.commit(writes(all)).await.unwrap();
    set(&store, b"j", b"2").await;
    let (revision, rows) = store.snapshot().await.unwrap();
    assert_eq!((revision, rows.len()), (2, Table::ALL.len() + 1));
    for (table, key, row) in rows {
        assert_eq!(store.get(table, &key).await.unwrap(), Some(row));
    }
}

pub(crate) async fn racing_writers_never_lose_an_update<S: Store>(store: Any<S>) {
    set(&store, b"counter", b"0").await;
    let worker = || {
        let store = store.clone();
        async move {
            for _ in 0..5 {
                loop {
                    let row = store.get(Table::Meta, b"counter").await.unwrap().unwrap();
                    let count: u64 = String::from_utf8(row.value).unwrap().parse().unwrap();
                    let txn = Txn {
                        expects: vec![expect(Table::Meta, b"counter", Some(row.revision))],
                        writes: vec![put(
                            Table::Meta,
                            b"counter",
                            (count + 1).to_string().as_bytes(),
                        )],
                        under: None,
                    };
                    match store.commit(txn).await {
                        Ok(_) => break,
                        Err(StoreError::Conflict) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    };
    tokio::join!(worker(), worker(), worker(), worker());
    assert_eq!(value(&store, Table::Meta, b"counter").await.unwrap(), b"20");
}

pub(crate) async fn a_reader_never_sees_half_a_commit<S: Store>(store: Any<S>) {
    let pair = |n: u64| {
        let bytes = n.to_string();
        let rows = [
            put(Table::Meta, b"left", bytes.as_bytes()),
            put(Table::Meta, b"right", bytes.as_bytes()),
        ];
        writes(rows)
    };
    store.commit(pair(0)).await.unwrap();
    let writer = async {
        for n in 1..=20 {
            store.commit(pair(n)).await.unwrap();
        }
    };
    let reader = async {
        for _ in 0..200 {
            let rows = store.scan(Table::Meta, b"", None, 9).await.unwrap();
            assert_eq!(rows[0].1, rows[1].1);
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(writer, reader);
}

pub(crate) async fn a_commit_outlives_who_waits_for_it<S: Store>(store: Any<S>) {
    let mut events = store.watch();
    {
        let mut commit = store.commit(writes([put(Table::Meta, b"k", b"v")]));
        // Polled once, so that it has begun; then nobody waits any more.
        std::future::poll_fn(|context| {
            let _ = commit.as_mut().poll(context);
            std::task::Poll::Ready(())
        })
        .await;
    }
    assert_eq!(events.recv().await.unwrap().key, b"k");
    assert_eq!(value(&store, Table::Meta, b"k").await.unwrap(), b"v");
}
