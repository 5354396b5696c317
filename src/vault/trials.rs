//! Trials of the whole vault: random histories against a model of forty lines, and a database file
//! with every bit wrong in turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::base::Vault;
use super::sample::*;
use crate::model::{Answer, Ask, Code, Failure, Labels, Reason};
use crate::store::{RedbStore, Store as _, Txn, Write};

const NAMES: [&str; 4] = ["pay/a", "pay/A", "pay/b/c", "hr/a"];

#[derive(Debug, Clone)]
enum Step {
    Write { at: usize, cas: Option<u64>, staged: bool, value: u8, label: Option<u8> },
    Read { at: usize, version: Option<u64> },
    Activate { at: usize, version: u64 },
    Delete { at: usize, version: Option<u64> },
    Undelete { at: usize, version: Option<u64> },
    Label { at: usize, label: u8 },
    List,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..NAMES.len();
    let version = || prop_oneof![Just(None), (0..5u64).prop_map(Some)];
    prop_oneof![
        4 => (at.clone(), version(), any::<bool>(), any::<u8>(), proptest::option::of(0..3u8))
            .prop_map(|(at, cas, staged, value, label)| {
                Step::Write { at, cas, staged, value, label }
            }),
        4 => (at.clone(), version()).prop_map(|(at, version)| Step::Read { at, version }),
        2 => (at.clone(), 0..5u64).prop_map(|(at, version)| Step::Activate { at, version }),
        2 => (at.clone(), version()).prop_map(|(at, version)| Step::Delete { at, version }),
        2 => (at.clone(), version()).prop_map(|(at, version)| Step::Undelete { at, version }),
        1 => (at, 0..3u8).prop_map(|(at, label)| Step::Label { at, label }),
        1 => Just(Step::List),
        1 => Just(Step::Restart),
    ]
}

/// What a step gives, in the model and in the vault.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    Value(u64, Vec<u8>, Labels),
    Written(u64),
    Done,
    Names(Vec<(String, Option<u64>, bool)>),
}

#[derive(Debug, Default)]
struct Secret {
    /// Value, and whether it is deleted.
    versions: Vec<(Vec<u8>, bool)>,
    active: Option<u64>,
    deleted: bool,
    labels: Labels,
}

fn labelled(label: u8) -> Labels {
    labels(&format!(r#"{{"tier":"{label}"}}"#))
}

fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap()
}

impl Secret {
    /// The state of one version, of a secret that is not deleted.
    fn at(&mut self, version: u64) -> Result<&mut (Vec<u8>, bool), Reason> {
        let index = usize::try_from(version).unwrap().checked_sub(1).ok_or(Reason::Absent)?;
        self.versions.get_mut(index).ok_or(Reason::Absent)
    }
}

/// What the vault should do, said once more and simply.
#[derive(Debug, Default)]
struct Model(BTreeMap<&'static str, Secret>);

impl Model {
    fn living(&mut self, at: usize) -> Result<&mut Secret, Reason> {
        let secret = self.0.get_mut(NAMES[at]).ok_or(Reason::Absent)?;
        if secret.deleted { Err(Reason::Absent) } else { Ok(secret) }
    }

    fn step(&mut self, step: &Step) -> Result<Given, Reason> {
        match *step {
            Step::Write { at, cas, staged, value, label } => {
                let name = NAMES[at];
                let twin = |other: &&str| *other != name && other.eq_ignore_ascii_case(name);
                let newest = self.0.get(name).map_or(0, |secret| number(secret.versions.len()));
                let deleted = self.0.get(name).is_some_and(|secret| secret.deleted);
                if self.0.keys().any(twin) || cas.is_some_and(|cas| cas != newest) || deleted {
                    return Err(Reason::Conflict);
                }
                let secret = self.0.entry(name).or_default();
                secret.versions.push((vec![value; 3], false));
                if !staged {
                    secret.active = Some(newest + 1);
                }
                if let Some(label) = label {
                    secret.labels = labelled(label);
                }
                Ok(Given::Written(newest + 1))
            }
            Step::Read { at, version } => {
                let secret = self.living(at)?;
                let version = version.or(secret.active).ok_or(Reason::Absent)?;
                let labels = secret.labels.clone();
                match secret.at(version)? {
                    (_, true) => Err(Reason::Absent),
                    (value, false) => Ok(Given::Value(version, value.clone(), labels)),
                }
            }
            Step::Activate { at, version } => {
                let secret = self.living(at)?;
                if secret.at(version)?.1 {
                    return Err(Reason::Conflict);
                }
                secret.active = Some(version);
                Ok(Given::Done)
            }
            Step::Delete { at, version } => {
                let secret = self.living(at)?;
                match version {
                    None => secret.deleted = true,
                    Some(version) => {
                        let state = &mut secret.at(version)?.1;
                        if std::mem::replace(state, true) {
                            return Err(Reason::Absent);
                        }
                        secret.active = secret.active.filter(|active| *active != version);
                    }
                }
                Ok(Given::Done)
            }
            Step::Undelete { at, version } => {
                let secret = self.0.get_mut(NAMES[at]).ok_or(Reason::Absent)?;
                let deleted = secret.deleted;
                let state = match version {
                    None => &mut secret.deleted,
                    Some(version) => {
                        let state = &mut secret.at(version)?.1;
                        if deleted {
                            return Err(Reason::Conflict);
                        }
                        state
                    }
                };
                if std::mem::replace(state, false) {
                    Ok(Given::Done)
                } else {
                    Err(Reason::Conflict)
                }
            }
            Step::Label { at, label } => {
                self.living(at)?.labels = labelled(label);
                Ok(Given::Done)
            }
            Step::List => {
                let mut all: Vec<_> = self
                    .0
                    .iter()
                    .filter(|(name, _)| name.starts_with("pay/"))
                    .map(|(name, s)| (name.to_string(), s.active.filter(|_| !s.deleted), s.deleted))
                    .collect();
                all.sort_by_key(|(name, ..)| name.to_ascii_lowercase());
                Ok(Given::Names(all))
            }
            Step::Restart => Ok(Given::Done),
        }
    }
}

async fn in_vault(it: &mut Sample, step: &Step) -> Result<Given, Failure> {
    let mut body = Vec::new();
    let ask = match *step {
        Step::Write { at, cas, staged, value, label } => {
            body = vec![value; 3];
            Ask::Write { name: name(NAMES[at]), cas, labels: label.map(labelled), staged }
        }
        Step::Read { at, version } => Ask::Read { name: name(NAMES[at]), version, have: None },
        Step::Activate { at, version } => activate(NAMES[at], version),
        Step::Delete { at, version } => delete(NAMES[at], version),
        Step::Undelete { at, version } => undelete(NAMES[at], version),
        Step::Label { at, label } => Ask::Label { name: name(NAMES[at]), labels: labelled(label) },
        Step::List => list("pay", None),
        Step::Restart => {
            *it = Sample::over(it.store.clone(), it.dir.clone()).await;
            return Ok(Given::Done);
        }
    };
    let released = it.ask(ask, &body).await?;
    Ok(match released.answer {
        Answer::Secret { version, labels } => {
            Given::Value(version, released.body.expose().to_vec(), labels)
        }
        Answer::Written { version, .. } => Given::Written(version),
        Answer::Done { .. } => Given::Done,
        Answer::Names { items, more: false, .. } => Given::Names(
            items.into_iter().map(|i| (i.name.to_string(), i.active, i.deleted)).collect(),
        ),
        other => panic!("{other:?}"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_history_goes_as_the_model_says(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::default();
            let mut it = Sample::in_memory().await;
            for step in &steps {
                let before = it.revision().await;
                let given = in_vault(&mut it, step).await;
                let refused = given.is_err();
                let given = given.map_err(|failure| failure.reason);
                assert_eq!(given, model.step(step), "{step:?}");
                let reads = matches!(step, Step::Read { .. } | Step::List | Step::Restart);
                let quiet = refused || reads;
                assert_eq!(quiet, it.revision().await == before, "{step:?}");
            }
        });
    }
}

/// Whether anything in the file's neighbourhood was ever written; the engine makes its file far
/// larger than what a few rows need.
fn is_used(bytes: &[u8], at: usize) -> bool {
    let page = at - at % 4096;
    bytes[page..(page + 4096).min(bytes.len())].iter().any(|byte| *byte != 0)
}

async fn trial(bytes: &[u8], keys: &std::path::Path) -> Result<usize, &'static str> {
    let store = RedbStore::over_bytes(bytes, true).map_err(|_| "not opened")?;
    let vault = Vault::open(Arc::new(store), keys, root()).await.map_err(|_| "no vault")?;
    let mut right = 0;
    for text in ["pay/a", "pay/b", "hr/c"] {
        for version in [1, 2] {
            let ask = read_version(text, version);
            let Ok(target) = vault.locate(&ask).await else { continue };
            let act = super::base::Act {
                ask: &ask,
                target: &target,
                index: 1,
                now: now(),
                may_list: &|_| true,
            };
            match vault.act(&act, crate::model::SecretValue::empty()).await {
                Ok(released) => {
                    let want = format!("the value of {text}, version {version}");
                    assert_eq!(released.body.expose(), want.as_bytes(), "a wrong plaintext");
                    right += 1;
                }
                Err(failure) => assert_ne!(failure.code, Code::Denied),
            }
        }
    }
    Ok(right)
}

#[tokio::test]
async fn a_database_with_any_of_four_wrong_bits_is_refused_or_right() {
    any_wrong_bit([0, 2, 4, 6]).await;
}

#[tokio::test]
async fn a_database_with_any_of_the_other_four_is_refused_or_right() {
    any_wrong_bit([1, 3, 5, 7]).await;
}

/// Flips these bits of every 64th byte, one at a time: never a wrong value, never a panic.
async fn any_wrong_bit(bits: [u8; 4]) {
    let it = Sample::on_disk().await;
    for text in ["pay/a", "pay/b", "hr/c"] {
        for version in [1, 2] {
            let value = format!("the value of {text}, version {version}");
            it.put(write(text), value.as_bytes()).await.unwrap();
        }
    }
    // The same rows in one commit: a file with fewer pages that nothing refers to any more.
    let small = it.dir.path().join("small");
    let copy = RedbStore::create(&small).unwrap();
    let rows = it.store.snapshot().await.unwrap().1.into_iter();
    let writes = rows.map(|(table, key, row)| Write { table, key, value: Some(row.value) });
    copy.commit(Txn { writes: writes.collect(), ..Txn::default() }).await.unwrap();
    drop(copy);
    let keys = it.keys();
    let whole = std::fs::read(small).unwrap();
    assert_eq!(trial(&whole, &keys).await, Ok(6));
    let (mut harmless, mut partly, mut refused) = (0, 0, 0);
    let mut bytes = whole.clone();
    for at in (0..whole.len()).step_by(64).filter(|at| is_used(&whole, *at)) {
        for bit in bits {
            bytes[at] ^= 1 << bit;
            let outcome = trial(&bytes, &keys).await;
            match outcome {
                Ok(6) => harmless += 1,
                Ok(_) => partly += 1,
                Err(_) => refused += 1,
            }
            bytes[at] ^= 1 << bit;
        }
    }
    assert!(harmless > 0 && refused > 0, "{harmless} {partly} {refused}");
}
