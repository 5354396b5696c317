//! The whole log against disks that fail, hands that meddle, and many callers at once.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::begin::take_directory;
use super::faulty::{Fault, Faults, Faulty};
use super::frame::BLOCK;

use super::merkle::{Frontier, leaf};
use super::proof::check_consistency;
use super::queue::{Found, Rank};
use super::sink::Files;
use super::*;
use crate::model::limits::LOG_SEGMENT_MIN;
use crate::model::{Clock, Digest, ManualClock, Reason, RequestId};

const ORIGIN: &str = "corp.example/decisions/0";
const SEED: [u8; 32] = [7; 32];

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(time::macros::datetime!(2026-11-23 10:00 UTC)))
}

fn settings(dir: &Path) -> LogSettings {
    let origin = ORIGIN.to_owned();
    LogSettings { dir: dir.to_owned(), origin, reserve: 0, segment_bytes: LOG_SEGMENT_MIN }
}

fn vkey() -> String {
    LogKey::from_seed(&SEED).vkey(ORIGIN)
}

/// A log driven by hand, one step after the other.
struct Bench {
    log: DecisionLog,
    writer: Writer,
}

impl Bench {
    fn open(dir: &Path) -> Self {
        Self::try_open(dir, clock()).unwrap()
    }

    fn try_open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenLogError> {
        let (log, writer) = DecisionLog::open(settings(dir), LogKey::from_seed(&SEED), clock)?;
        Ok(Self { log, writer })
    }

    fn faulty(dir: &Path, faults: &Arc<Faults>, reserve: u64) -> Result<Self, OpenLogError> {
        Self::faulty_of(dir, faults, LogSettings { reserve, ..settings(dir) })
    }

    fn faulty_of(
        dir: &Path,
        faults: &Arc<Faults>,
        settings: LogSettings,
    ) -> Result<Self, OpenLogError> {
        let lock = take_directory(dir)?;
        let (root, files) = (dir.to_owned(), Files::new(dir));
        let sink = Arc::new(Faulty { root, files, faults: Arc::clone(faults) });
        let key = LogKey::from_seed(&SEED);
        let (log, writer) = DecisionLog::open_with(settings, key, clock(), sink, lock)?;
        Ok(Self { log, writer })
    }

    /// One batch; the outcome of each record.
    fn commit_as(&mut self, rank: Rank, records: &[Vec<u8>]) -> Vec<Result<u64, RecordError>> {
        let submit = |record: &Vec<u8>| self.log.submit(record, None, rank);
        let waits: Vec<_> = records.iter().map(submit).collect();
        let mut load = self.log.shared().queue.spare();
        match self.log.shared().queue.take(&mut load, Duration::ZERO, Duration::ZERO) {
            Found::Records => drop(self.writer.committer.step(&mut load, false)),
            found => assert!(matches!(found, Found::Idle | Found::Broken), "{found:?}"),
        }
        let mut outcomes = Vec::new();
        for wait in waits {
            outcomes.push(match wait {
                Ok(wait) => answered(wait),
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    fn commit(&mut self, records: &[Vec<u8>]) -> Vec<Result<u64, RecordError>> {
        self.commit_as(Rank::Ordinary, records)
    }

    /// Adds so many records, in large batches.
    fn grow(&mut self, to: u64) {
        while self.log.shared().size() < to {
            let from = self.log.shared().size();
            let batch: Vec<_> = (from..to.min(from + 1000)).map(record).collect();
            assert!(self.commit(&batch).iter().all(Result::is_ok));
        }
    }

    fn publish(&mut self) {
        self.writer.publisher.publish().unwrap();
    }
}

/// What a step has answered.
fn answered<T>(wait: impl Future<Output = T>) -> T {
    match std::pin::pin!(wait).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("a step answers everyone"),
    }
}

fn record(i: u64) -> Vec<u8> {
    let verdict = if i.is_multiple_of(7) { "deny" } else { "allow" };
    format!(r#"{{"i": {i}, "d": "{verdict}"}}"#).into_bytes()
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

fn name(dir: &Path, path: &Path) -> String {
    path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned()
}

/// What a run of the script below was promised.
#[derive(Default)]
struct Promised {
    records: Vec<(u64, Vec<u8>)>,
    /// Checkpoints that were read, as clients do.
    heads: Vec<(u64, Digest)>,
}

/// Everything that a log does in its life: small and large batches over the edge of a tile and of a
/// segment, checkpoints in between.
fn live(bench: &mut Bench, promised: &mut Promised) {
    let large = |i: u8| vec![b'a' + i; 60_000];
    let steps: Vec<Vec<Vec<u8>>> = vec![
        vec![record(0)],
        (1..200).map(record).collect(),
        (200..300).map(record).collect(),
        vec![large(0), large(1)],
        vec![large(2), large(3)],
        vec![record(304)],
    ];
    for (turn, batch) in steps.iter().enumerate() {
        for (outcome, bytes) in bench.commit(batch).into_iter().zip(batch) {
            if let Ok(index) = outcome {
                promised.records.push((index, bytes.clone()));
            }
        }
        if turn != 1 && bench.writer.publisher.publish().is_ok() {
            let (size, note) = bench.log.checkpoint();
            let root = bench.log.shared().view().0.edge.root();
            assert!(note.contains(&format!("\n{size}\n")));
            promised.heads.push((size, Digest(root)));
        }
    }
}

/// Opens again, on a sound disk: everything promised is there, the log verifies and goes on.
fn check_kept(dir: &Path, promised: &Promised, what: &str) {
    let mut bench = Bench::try_open(dir, clock()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    for (index, bytes) in &promised.records {
        let found = query::record(bench.log.shared(), *index).unwrap();
        assert_eq!(found.as_ref(), Some(bytes), "{what}: record {index}");
    }
    let outcome = bench.commit(&[b"after".to_vec()]);
    assert!(outcome[0].is_ok(), "{what}: {outcome:?}");
    bench.publish();
    for (size, root) in &promised.heads {
        let (proof, head) = bench.log.prove_consistency(*size, root).expect(what);
        let proof: Vec<_> = proof.iter().map(|hash| hash.0).collect();
        assert!(check_consistency(*size, &root.0, head.size, &head.root.0, &proof), "{what}");
    }
    let head = bench.log.head();
    let verified = verify_dir(dir, &vkey()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!((verified.size, verified.root), (head.size, head.root), "{what}");
    assert_eq!(verified.not_yet_signed, 0, "{what}");
}

#[test]
fn the_head_is_right_whenever_it_is_asked_and_hashes_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    let mut edge = Frontier::default();
    for round in 0..12u8 {
        let records: Vec<Vec<u8>> = (0..100).map(|n| vec![b'a' + round, b'0' + n % 10]).collect();
        assert!(bench.commit(&records).iter().all(Result::is_ok));
        if round % 4 == 3 {
            bench.publish(); // between two looks, past what was looked at
        }
        for record in &records {
            edge.push(leaf(record), |_| Ok::<(), std::convert::Infallible>(())).unwrap();
        }
        if round % 3 != 1 {
            let head = bench.log.head();
            assert_eq!((head.size, head.root.0), (edge.size(), edge.root()), "round {round}");
            assert_eq!(bench.log.head(), head);
            assert_eq!(bench.log.size(), head.size);
        }
    }
}

#[test]
fn power_cut_at_every_operation_loses_nothing_acknowledged() {
    let operations = operations_of_a_life();
    assert!(operations > 40, "{operations}");
    for fault in [Fault::CutBefore, Fault::CutAfter, Fault::CutTorn] {
        for at in 0..operations {
            let dir = tempfile::tempdir().unwrap();
            let faults = Faults::at(at, fault);
            let mut promised = Promised::default();
            if let Ok(mut bench) = Bench::faulty(dir.path(), &faults, 0) {
                live(&mut bench, &mut promised);
            }
            assert!(faults.is_dead(), "operation {at} is one of them");
            check_kept(dir.path(), &promised, &format!("{fault:?} at {at}"));
        }
    }
}

fn operations_of_a_life() -> i64 {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::at(-1, Fault::CutBefore);
    let mut promised = Promised::default();
    live(&mut Bench::faulty(dir.path(), &faults, 0).unwrap(), &mut promised);
    assert_eq!((promised.records.len(), promised.heads.len()), (305, 5));
    check_kept(dir.path(), &promised, "no fault");
    i64::try_from(faults.done.load(std::sync::atomic::Ordering::SeqCst)).unwrap()
}

#[test]
fn power_cut_during_recovery_loses_nothing_either() {
    let source = tempfile::tempdir().unwrap();
    let mut promised = Promised::default();
    let faults = Faults::at(-1, Fault::CutBefore);
    let mut bench = Bench::faulty(source.path(), &faults, 0).unwrap();
    live(&mut bench, &mut promised);
    faults.now(Fault::CutTorn);
    let outcome = bench.commit(&(0..40).map(record).collect::<Vec<_>>());
    assert_eq!(outcome[0], Err(RecordError::Broken));
    drop(bench);
    let mut at = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        let faults = Faults::at(at, Fault::CutTorn);
        let opened = Bench::faulty(dir.path(), &faults, 0).map(drop);
        check_kept(dir.path(), &promised, &format!("recovery cut at {at}"));
        if !faults.is_dead() {
            assert!(opened.is_ok() && at > 3, "recovery takes several operations, not {at}");
            break;
        }
        at += 1;
    }
}

fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

#[test]
fn no_room_at_any_operation_refuses_and_goes_on() {
    for at in 0..operations_of_a_life() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::at(at, Fault::Error(libc::ENOSPC));
        let mut promised = Promised::default();
        let what = format!("no room at {at}");
        if let Ok(mut bench) = Bench::faulty(dir.path(), &faults, 0) {
            live(&mut bench, &mut promised);
            let broken = bench.commit(&[b"x".to_vec()])[0] == Err(RecordError::Broken);
            // Only a failed sync is final; everything else goes on.
            assert!(broken || bench.commit(&[b"y".to_vec()])[0].is_ok(), "{what}");
            assert!(broken || promised.records.len() > 60, "{what}");
        }
        check_kept(dir.path(), &promised, &what);
    }
}

#[test]
fn a_fault_of_the_disk_is_final_and_never_retried() {
    for at in 0..operations_of_a_life() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::at(at, Fault::Error(libc::EIO));
        let mut promised = Promised::default();
        if let Ok(mut bench) = Bench::faulty(dir.path(), &faults, 0) {
            live(&mut bench, &mut promised);
        }
        check_kept(dir.path(), &promised, &format!("fault at {at}"));
    }
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::at(-1, Fault::CutBefore);
    let mut bench = Bench::faulty(dir.path(), &faults, 0).unwrap();
    assert_eq!(bench.commit(&[record(0)]), [Ok(0)]);
    faults.now(Fault::Error(libc::EIO));
    assert_eq!(bench.commit(&[record(1)]), [Err(RecordError::Broken)]);
    let before = faults.done.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(bench.commit(&[record(2)]), [Err(RecordError::Broken)]);
    assert_eq!(faults.done.load(std::sync::atomic::Ordering::SeqCst), before, "nothing is tried");
    assert!(!bench.log.is_ready());
}

#[test]
fn the_writer_ends_with_an_error_when_its_disk_fails() {
    for fail_tiles in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::at(-1, Fault::CutBefore);
        let Bench { log, writer } = Bench::faulty(dir.path(), &faults, 0).unwrap();
        if fail_tiles {
            fs::create_dir_all(dir.path().join("tile/entries/000.p")).unwrap();
            fs::write(dir.path().join("tile/entries/000.p/1"), b"another's").unwrap();
        } else {
            faults.now(Fault::Error(libc::EIO));
        }
        let thread = std::thread::spawn(|| writer.run());
        let first = wait(log.submit(b"x", None, Rank::Ordinary).unwrap());
        assert_eq!(first.is_ok(), fail_tiles);
        assert_eq!(thread.join().unwrap(), Err(RecordError::Broken));
        assert!(log.submit(b"x", None, Rank::Reserved).is_err());
        assert!(!log.is_ready());
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn what_is_kept_for_operators_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::at(-1, Fault::CutBefore);
    faults.set_free(10 << 20);
    let mut bench = Bench::faulty(dir.path(), &faults, 1 << 20).unwrap();
    assert_eq!(bench.commit(&[record(0)]), [Ok(0)]);
    faults.set_free((1 << 20) - 1);
    bench.publish();
    bench.log.shared().measure().unwrap();
    assert_eq!(bench.commit(&[record(1)]), [Err(RecordError::Full)]);
    assert_eq!(bench.commit_as(Rank::Reserved, &[record(1)]), [Ok(1)]);
    faults.set_free(10 << 20);
    assert_eq!(bench.commit(&[record(2)]), [Ok(2)], "space is back");
    // A new segment may not eat the reserve either.
    faults.set_free((1 << 20) + 1000);
    let large = vec![vec![b'x'; 60_000]; 4];
    assert_eq!(bench.commit(&large), [Ok(3), Ok(4), Ok(5), Ok(6)], "this segment is paid for");
    assert!(bench.commit(&large).iter().all(|outcome| *outcome == Err(RecordError::Full)));
    assert_eq!(bench.commit(&[record(3)]), [Err(RecordError::Full)]);
    assert_eq!(bench.commit_as(Rank::Reserved, &large), [Ok(7), Ok(8), Ok(9), Ok(10)]);
    faults.set_free(10 << 20);
    assert_eq!(bench.commit(&large), [Ok(11), Ok(12), Ok(13), Ok(14)]);
    bench.publish();
    assert_eq!(verify_dir(dir.path(), &vkey()).unwrap().size, 15);
}

#[test]
fn on_a_small_disk_the_first_segment_is_small() {
    let (reserve, whole) = (1 << 20, 4 * LOG_SEGMENT_MIN);
    for (free, bytes, ordinary) in [
        (reserve + whole, whole, true),
        (reserve + whole - 1, LOG_SEGMENT_MIN, true),
        (reserve - 1, LOG_SEGMENT_MIN, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::at(-1, Fault::CutBefore);
        faults.set_free(free);
        let settings = LogSettings { reserve, segment_bytes: whole, ..settings(dir.path()) };
        let mut bench = Bench::faulty_of(dir.path(), &faults, settings).unwrap();
        let segment = dir.path().join(frame::segment_path(0));
        assert_eq!(fs::metadata(&segment).unwrap().len(), bytes, "{free} are free");
        assert_eq!(bench.log.shared().admits(Rank::Ordinary), ordinary, "{free} are free");
        assert_eq!(bench.commit_as(Rank::Reserved, &[record(0)]), [Ok(0)], "operators go on");
        bench.publish();
        assert_eq!(verify_dir(dir.path(), &vkey()).unwrap().size, 1);
    }
}

#[test]
fn a_torn_last_batch_is_cut_and_the_gap_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    bench.commit(&[record(0)]);
    bench.publish();
    bench.commit(&[record(1)]);
    bench.commit(&[vec![b'x'; 2000]]);
    drop(bench);
    let segment = dir.path().join(frame::segment_path(0));
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(b"?", 3 * BLOCK + 1000).unwrap();
    assert!(verify_dir(dir.path(), &vkey()).is_err(), "until it is cut");
    let mut bench = Bench::open(dir.path());
    assert_eq!(bench.log.head().size, 3);
    let (records, next) = bench.log.read(0, 10, None).unwrap();
    assert_eq!((records[1].1.as_bytes(), next), (&record(1)[..], 3));
    assert!(records[2].1.contains(r#""cut_bytes":2560,"kind":"gap""#), "{}", records[2].1);
    bench.publish();
    assert_eq!(verify_dir(dir.path(), &vkey()).unwrap().size, 3);
    drop(bench);
    assert_eq!(Bench::open(dir.path()).log.head().size, 3, "one gap is recorded once");
}

#[test]
fn damage_before_a_whole_batch_is_never_opened() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    for i in 0..3 {
        bench.commit(&[record(i)]);
    }
    drop(bench);
    let segment = dir.path().join(frame::segment_path(0));
    let good = fs::read(&segment).unwrap();
    assert_eq!(Bench::open(dir.path()).log.head().size, 3);
    for (at, block) in [(2 * BLOCK + 70, None), (2 * BLOCK, Some(vec![0; 512]))] {
        let mut bad = good.clone();
        match block {
            None => bad[at as usize] ^= 1,
            Some(block) => bad[at as usize..][..512].copy_from_slice(&block),
        }
        fs::write(&segment, &bad).unwrap();
        match Bench::try_open(dir.path(), clock()).err().unwrap() {
            OpenLogError::Corrupt { file, offset, .. } => {
                assert_eq!((file, offset), (frame::segment_path(0), 2 * BLOCK));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(&segment).unwrap(), bad, "nothing was touched");
    }
}

#[test]
fn what_a_checkpoint_covers_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    bench.grow(300);
    bench.publish();
    drop(bench);
    let pristine = tempfile::tempdir().unwrap();
    copy(dir.path(), pristine.path());
    drop(Bench::open(dir.path()));
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damages: [Damage<'_>; 7] = [
        ("wal/00000000000000000000", &|path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&[0; 20_000], BLOCK).unwrap(); // the last batch, acknowledged and signed
        }),
        ("wal/00000000000000000000", &|path| fs::remove_file(path).unwrap()),
        ("checkpoint", &|path| fs::remove_file(path).unwrap()),
        ("tile/0/001.p/44", &|path| flip(path, 5)),
        ("tile/1/000.p/1", &|path| flip(path, 5)),
        ("tile/entries/001.p/44", &|path| flip(path, 5)),
        ("tile/entries/001.p/44", &|path| fs::remove_file(path).unwrap()),
    ];
    for (file, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        copy(pristine.path(), dir.path());
        damage(&dir.path().join(file));
        let error = Bench::try_open(dir.path(), clock()).err().expect(file);
        assert!(matches!(error, OpenLogError::Corrupt { .. }), "{file}: {error:?}");
    }
    let other = LogKey::from_seed(&[8; 32]);
    let error = DecisionLog::open(settings(pristine.path()), other, clock()).err().unwrap();
    assert!(matches!(error, OpenLogError::Foreign(_)), "{error:?}");
    flip(&pristine.path().join("checkpoint"), ORIGIN.len() + 1);
    let error = Bench::try_open(pristine.path(), clock()).err().unwrap();
    assert!(matches!(error, OpenLogError::Foreign(_)), "{error:?}");
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(Bench::open(dir.path()));
    let path = frame::segment_path(0);
    let file = fs::OpenOptions::new().write(true).open(dir.path().join(&path)).unwrap();
    file.write_all_at(&[9], 8).unwrap();
    match Bench::try_open(dir.path(), clock()).err().unwrap() {
        OpenLogError::Newer { file, format } => assert_eq!((file, format), (path, 9)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_flipped_byte_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    bench.grow(3);
    bench.publish();
    bench.grow(258);
    bench.publish();
    bench.commit(&[record(258), record(259)]);
    drop(bench);
    let verified = verify_dir(dir.path(), &vkey()).unwrap();
    assert_eq!((verified.size, verified.not_yet_signed, verified.unchecked_files), (258, 2, 0));
    for path in files(dir.path()) {
        let file = name(dir.path(), &path);
        let bytes = fs::read(&path).unwrap();
        let handle = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let step = |at: usize| if file.starts_with("wal/") && at > 14_000 { 2003 } else { 1 };
        let mut at = 0;
        while at < bytes.len() {
            handle.write_all_at(&[bytes[at] ^ (1 << (at % 8))], at as u64).unwrap();
            let fault = verify_dir(dir.path(), &vkey()).expect_err(&format!("{file} byte {at}"));
            match &fault {
                VerifyFault::Checkpoint(_) => assert_eq!(file, "checkpoint", "byte {at}"),
                VerifyFault::Damaged { file: named, record, .. } => {
                    assert!(record.is_some() || at < 512, "{file} byte {at}: {fault}");
                    let level_0 = ["tile/entries/", "tile/0/"].iter().any(|d| file.starts_with(d));
                    assert!(*named == file || level_0, "{file} byte {at}: {fault}");
                }
                other => panic!("{file} byte {at}: {other}"),
            }
            handle.write_all_at(&bytes[at..=at], at as u64).unwrap();
            at += step(at);
        }
    }
    assert_eq!(verify_dir(dir.path(), &vkey()).unwrap(), verified);
}

#[test]
fn what_does_not_belong_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    bench.grow(600);
    bench.publish();
    drop(bench);
    assert!(verify_dir(dir.path(), &vkey()).is_ok());
    let extra = dir.path().join("tile/0/junk");
    fs::write(&extra, b"x").unwrap();
    assert!(verify_dir(dir.path(), &vkey()).is_err());
    fs::remove_file(extra).unwrap();
    fs::remove_file(dir.path().join("tile/entries/001")).unwrap();
    let fault = verify_dir(dir.path(), &vkey()).unwrap_err();
    assert!(fault.to_string().contains("tile/entries/001"), "{fault}");
    let other = LogKey::from_seed(&[8; 32]).vkey(ORIGIN);
    assert!(matches!(verify_dir(dir.path(), &other), Err(VerifyFault::Checkpoint(_))));
    assert!(matches!(verify_dir(dir.path(), "x+y+z"), Err(VerifyFault::Key)));
}

#[test]
fn the_disk_holds_exactly_the_files_of_the_specification() {
    let roots = [
        (255, "bbGEEKsnQljdKqVGM/sPQd6ZRfSAxzcFAcxQPVRR7ls="),
        (256, "8i5VAZozAcrqIGwDYgQr3JZVhh/N3M9j/KiIjV673d8="),
        (257, "O6w439C3g16mK7rTXeI33ebjF3AmfFCp25jMOpOZAJQ="),
        (70_000, "Zp+jehpsocc9HdcG5x7oWdLZua5zTDrNYgCHGFZ7Hkw="),
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    for (size, root) in roots {
        bench.grow(size);
        bench.publish();
        let checkpoint = fs::read_to_string(dir.path().join("checkpoint")).unwrap();
        assert!(checkpoint.starts_with(&format!("{ORIGIN}\n{size}\n{root}\n")), "{checkpoint}");
        let tiles: Vec<_> =
            files(&dir.path().join("tile")).iter().map(|path| name(dir.path(), path)).collect();
        match size {
            255 => assert_eq!(tiles, ["tile/0/000.p/255", "tile/entries/000.p/255"]),
            256 => assert_eq!(tiles, ["tile/0/000", "tile/1/000.p/1", "tile/entries/000"]),
            257 => assert_eq!(
                tiles,
                [
                    "tile/0/000",
                    "tile/0/001.p/1",
                    "tile/1/000.p/1",
                    "tile/entries/000",
                    "tile/entries/001.p/1",
                ]
            ),
            _ => {
                assert_eq!(tiles.len(), 273 + 1 + 1 + 1 + 1 + 273 + 1);
                for file in ["tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]
                {
                    assert!(tiles.iter().any(|tile| tile == file), "{file}");
                }
            }
        }
        let verified = verify_dir(dir.path(), &vkey()).unwrap();
        assert_eq!((verified.size, verified.unchecked_files), (size, 0));
    }
    let segments: Vec<_> = files(&dir.path().join("wal"));
    assert_eq!(segments.len(), 1, "segments that a checkpoint covers are gone: {segments:?}");
    for index in [0, 255, 256, 65_535, 65_536, 69_999] {
        let receipt = bench.log.prove(index).unwrap();
        assert_eq!(check_receipt(&receipt, &record(index), &vkey()).unwrap(), index);
        assert!(check_receipt(&receipt, &record(index + 1), &vkey()).is_err());
        let moved = receipt.replacen("\nindex ", "\nindex 1", 1);
        assert!(check_receipt(&moved, &record(index), &vkey()).is_err());
    }
    assert!(matches!(bench.log.prove(70_000), Err(ProofError::Beyond(70_000, 70_000))));
    drop(bench);
    assert_eq!(Bench::open(dir.path()).log.head().size, 70_000);
}

#[test]
fn files_are_their_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("log");
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let mut bench = Bench::open(&root);
    bench.grow(300);
    bench.publish();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    for path in files(&root) {
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700), "{path:?}");
    }
}

#[test]
fn a_second_writer_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::open(dir.path());
    let error = Bench::try_open(dir.path(), clock()).err().unwrap();
    assert!(matches!(error, OpenLogError::Locked(_)), "{error:?}");
    drop(bench.log);
    assert!(Bench::try_open(dir.path(), clock()).is_err(), "the writer holds it");
    drop(bench.writer);
    Bench::open(dir.path());
}

#[test]
fn a_deleted_segment_is_a_final_fault() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::open(dir.path());
    assert_eq!(bench.commit(&[record(0)]), [Ok(0)]);
    fs::remove_file(dir.path().join(frame::segment_path(0))).unwrap();
    assert_eq!(bench.commit(&[record(1)]), [Err(RecordError::Broken)]);
    assert_eq!(bench.commit(&[record(2)]), [Err(RecordError::Broken)]);
}

#[test]
fn a_fork_can_not_be_proven_consistent() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut honest, mut forked) = (Bench::open(one.path()), Bench::open(two.path()));
    honest.grow(300);
    honest.publish();
    forked.grow(299);
    forked.commit(&[b"another history".to_vec()]);
    forked.publish();
    let (seen, other) = (honest.log.head(), forked.log.head());
    assert_eq!(seen.size, other.size);
    honest.grow(700);
    honest.publish();
    forked.grow(700);
    forked.publish();
    let (proof, head) = honest.log.prove_consistency(seen.size, &seen.root).unwrap();
    let proof: Vec<_> = proof.iter().map(|hash| hash.0).collect();
    assert!(check_consistency(seen.size, &seen.root.0, head.size, &head.root.0, &proof));
    let fork = forked.log.prove_consistency(seen.size, &seen.root);
    assert!(matches!(fork, Err(ProofError::Mismatch)));
    let now = forked.log.head();
    assert!(!check_consistency(seen.size, &seen.root.0, now.size, &now.root.0, &proof));
}

#[test]
fn records_are_read_and_found_before_and_after_their_tiles() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let id = |clock: &ManualClock| RequestId::new(Clock::now(clock));
    let (first, second) = (id(&clock), id(&clock));
    let open = || {
        let Bench { log, writer } = Bench::try_open(dir.path(), clock.clone()).unwrap();
        (log, std::thread::spawn(|| writer.run()))
    };
    let (log, thread) = open();
    let note = |request| Note::NotReleased { request, index: Some(9), reason: Reason::Changed };
    assert_eq!(
        wait(log.note(Note::Unsealed { seal: "key-file".into(), store_revision: 4 })),
        Ok(0)
    );
    assert_eq!(wait(log.note(note(first))), Ok(1));
    let hostile = "\u{1b}[31m\n\"},{\u{202e}".to_owned();
    assert_eq!(wait(log.note(Note::Alarm { what: "test", detail: hostile })), Ok(2));
    for _ in 0..600 {
        wait(log.submit(b"{}", None, Rank::Ordinary).unwrap()).unwrap();
    }
    assert_eq!(wait(log.note(note(second))), Ok(603));
    let check = |log: &DecisionLog| {
        assert_eq!(log.find(first).unwrap()[0].0, 1);
        assert_eq!(log.find(second).unwrap()[0].0, 603);
        assert!(log.find(id(&clock)).unwrap().is_empty());
        let (records, next) = log.read(0, 3, None).unwrap();
        assert_eq!((records.len(), next), (3, 3));
        for (_, line) in &records {
            assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
            assert!(serde_json::from_str::<serde_json::Value>(line).unwrap()["v"] == 1);
        }
        assert!(records[0].1.contains(r#""kind":"unsealed""#));
        let (records, next) = log.read(0, 10, Some("not_released")).unwrap();
        assert_eq!(records.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 603]);
        assert_eq!(next, log.head().size);
        assert_eq!(log.read(5000, 10, None).unwrap(), (Vec::new(), 5000));
        assert_eq!(log.read(u64::MAX, 10, None).unwrap().0, []);
    };
    check(&log);
    log.close();
    assert_eq!(thread.join().unwrap(), Ok(()));
    assert_eq!(log.checkpoint().0, 604, "the last checkpoint covers everything");
    check(&log);
    drop(log);
    let (log, thread) = open();
    check(&log);
    drop(log);
    assert_eq!(thread.join().unwrap(), Ok(()), "the last handle closes the log");
}

#[test]
fn what_is_counted_is_summed_up_each_minute_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let mut bench = Bench::try_open(dir.path(), clock.clone()).unwrap();
    for _ in 0..3 {
        bench.log.count("10.0.0.0/24", "handshake");
    }
    bench.commit(&[record(0)]);
    assert_eq!(bench.log.head().size, 1, "the minute has not passed");
    clock.advance(Duration::from_secs(60));
    bench.commit(&[record(1)]);
    let (records, _) = bench.log.read(2, 10, None).unwrap();
    assert!(records[0].1.contains(r#""caller":"10.0.0.0/24","count":3,"kind":"summary""#));
    bench.log.count("10.0.0.0/24", "handshake");
    let Bench { log, writer } = bench;
    log.close();
    assert_eq!(writer.run(), Ok(()));
    assert!(log.read(3, 1, None).unwrap().0[0].1.contains(r#""count":1"#));
}

#[test]
fn many_tasks_get_an_index_each_and_all_of_them_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let Bench { log, writer } = Bench::open(dir.path());
    let thread = std::thread::spawn(|| writer.run());
    for workers in [1, 3] {
        let before = log.head().size;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(workers).enable_time().build().unwrap();
        let tasks: Vec<_> = (0..64u64)
            .map(|task| {
                let log = log.clone();
                runtime.spawn(async move {
                    let mut own = Vec::new();
                    for turn in 0..50u64 {
                        let bytes = format!("{task}:{turn}").into_bytes();
                        let wait = log.submit(&bytes, None, Rank::Ordinary).unwrap();
                        if turn % 10 == 9 {
                            // Asked once, then dropped: others must not wait for it.
                            let _ = tokio::time::timeout(Duration::ZERO, wait).await;
                            continue;
                        }
                        own.push((wait.await.unwrap(), bytes));
                    }
                    own
                })
            })
            .collect();
        let mut seen = std::collections::BTreeMap::new();
        for task in tasks {
            for (index, bytes) in runtime.block_on(task).unwrap() {
                assert!(seen.insert(index, bytes).is_none(), "{index} was given twice");
            }
        }
        assert_eq!(seen.len(), 64 * 45);
        for (index, bytes) in seen {
            assert!(index >= before);
            assert_eq!(query::record(log.shared(), index).unwrap(), Some(bytes));
        }
        assert_eq!(log.head().size, before + 64 * 50);
    }
    drop(log);
    assert_eq!(thread.join().unwrap(), Ok(()));
    let verified = verify_dir(dir.path(), &vkey()).unwrap();
    assert_eq!((verified.size, verified.not_yet_signed), (2 * 64 * 50, 0));
}

#[test]
fn a_writer_that_never_runs_refuses_everyone() {
    let dir = tempfile::tempdir().unwrap();
    let Bench { log, writer } = Bench::open(dir.path());
    assert!(!log.is_ready());
    let waiting = log.submit(b"x", None, Rank::Ordinary).unwrap();
    drop(writer);
    assert_eq!(wait(waiting), Err(RecordError::Broken));
    assert!(log.submit(b"x", None, Rank::Ordinary).is_err());
}
