//! Decisions through the whole log: what is recorded, and what is minted for it.

use std::sync::Arc;

use super::*;
use crate::identity::{Caller, CallerKind, Standing, sample};
use crate::model::limits::LOG_SEGMENT_MIN;
use crate::model::*;
use crate::policy::Decision;

fn caller() -> Caller {
    let device = (DeviceClass::parse("server").unwrap(), DeviceId::of_key(b"device"));
    let id = "spiffe://corp.example/ns/pay/sa/api";
    sample::caller(id, CallerKind::Workload, Standing::Live, Some(device))
}

fn read() -> Ask {
    Ask::Read { name: SecretName::parse("pay/db/url").unwrap(), version: None, have: None }
}

/// A log whose writer runs on a thread of its own.
fn with_log<T>(test: impl AsyncFnOnce(&DecisionLog) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings {
        dir: dir.path().to_owned(),
        origin: "corp.example/decisions/0".to_owned(),
        reserve: 0,
        segment_bytes: LOG_SEGMENT_MIN,
    };
    let key = LogKey::from_seed(&[7; 32]);
    let clock = ManualClock::at(time::macros::datetime!(2026-11-23 10:00 UTC));
    let (log, writer) = DecisionLog::open(settings, key, Arc::new(clock)).unwrap();
    let thread = std::thread::spawn(|| writer.run());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let out = runtime.block_on(test(&log));
    drop(log);
    assert_eq!(thread.join().unwrap(), Ok(()));
    out
}

#[test]
fn an_allowed_decision_gives_one_grant_of_its_kind_and_one_small_record() {
    with_log(async |log| {
        let decision = Decision::sample(caller(), read(), true);
        let id = decision.id();
        let Ok(Ruling::Secret(grant)) = log.record(decision).await else { panic!("a grant") };
        assert_eq!((grant.id(), grant.recorded(), grant.ask().as_ref()), (id, Some(0), &read()));
        let found = log.find(id).unwrap();
        assert_eq!(found.len(), 1);
        let (index, line) = &found[0];
        assert!(*index == 0 && line.len() <= 700, "{} bytes: {line}", line.len());
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["req"]["obj"], "secret/pay/db/url");
        assert_eq!(value["sub"]["spiffe"], "spiffe://corp.example/ns/pay/sa/api");
        assert_eq!(value["dec"]["verdict"], "allow");
        let decision = Decision::sample(caller(), Ask::Whoami {}, true);
        assert!(matches!(log.record(decision).await, Ok(Ruling::Authority(_))));
        let decision = Decision::sample(caller(), Ask::Status {}, true);
        assert!(matches!(log.record(decision).await, Ok(Ruling::Administration(_))));
    });
}

/// Its grant stands on nobody's record, least of all on the one that happens to come next.
#[test]
fn a_report_that_is_only_counted_has_no_index() {
    with_log(async |log| {
        let report = || {
            let facts = Digest([0; 32]);
            let ask = Ask::Report { facts };
            Decision::sample(caller(), ask, true)
        };
        let Ok(Ruling::Administration(first)) = log.record(report()).await else { panic!("one") };
        assert_eq!((first.recorded(), first.under()), (Some(0), Ok(0)));
        let counted = report().on(Target::Evidence { unchanged: true });
        let id = counted.id();
        let Ok(Ruling::Administration(second)) = log.record(counted).await else { panic!("two") };
        assert_eq!(second.recorded(), None);
        assert!(second.under().is_err(), "nothing is stored under it");
        assert_eq!(log.head().size, 1);
        let reason = Reason::Invalid;
        let note = Note::NotReleased { request: id, index: second.recorded(), reason };
        log.note(note).await.unwrap();
        let noted: serde_json::Value = serde_json::from_str(&log.find(id).unwrap()[0].1).unwrap();
        assert_eq!((&noted["kind"], noted.get("index")), (&"not_released".into(), None));
    });
}

#[test]
fn a_denial_is_recorded_and_mints_nothing() {
    with_log(async |log| {
        let decision = Decision::sample(caller(), read(), false);
        let id = decision.id();
        let Ok(Ruling::Refused(refusal)) = log.record(decision).await else { panic!("refused") };
        assert_eq!((refusal.request, refusal.code), (id, Code::Denied));
        assert!(log.find(id).unwrap()[0].1.contains(r#""verdict":"deny""#));
    });
}

#[test]
fn nothing_is_minted_once_the_log_has_ended() {
    with_log(async |log| {
        assert!(log.record(Decision::sample(caller(), read(), true)).await.is_ok());
        log.close();
        let ruling = log.record(Decision::sample(caller(), read(), true)).await;
        assert!(matches!(ruling, Err(RecordError::Broken)));
    });
}
