//! Telling an agent what has changed in its duties since the revision that it holds.

use std::collections::HashSet;

use super::mirror::{Mirror, Step};
use super::recent::{Crowded, Touched, Wait, Whom};
use super::room::Authority;
use crate::identity::{Caller, CallerKind, Standing};
use crate::model::limits::{PAGE_BYTES, PAGE_ITEMS};
use crate::model::{
    Answer, DeviceClass, DeviceId, DutyChanges, Entry, EntryId, Failure, Released, Since,
};

/// News that fit one answer.
#[derive(Debug, Default)]
struct News {
    items: Vec<Entry>,
    gone: Vec<EntryId>,
    /// All up to here is in it.
    upto: u64,
}

impl Authority {
    /// A seat for an agent that waits for news; `None` for who is no agent, and so has no duties.
    ///
    /// # Errors
    /// When there are too many.
    pub fn wait(&self, caller: &Caller) -> Result<Option<Wait>, Crowded> {
        let (CallerKind::Agent, Standing::Live, Some(device), Some(class)) =
            (caller.kind(), caller.standing(), caller.device(), caller.class())
        else {
            return Ok(None);
        };
        self.waiting.enter(class, device).map(Some)
    }

    /// How many agents wait for news.
    pub fn waits(&self) -> usize {
        self.waiting.count()
    }

    /// What has changed for the caller's own device since `holds`.
    pub(super) fn changes(
        &self,
        (class, device): (&DeviceClass, &DeviceId),
        holds: Option<u64>,
        since: Since,
    ) -> Result<Released, Failure> {
        let Some(holds) = holds else {
            return Err(Failure::invalid("`since` needs the revision that you hold: `holds`"));
        };
        // First the state, then its changes: what is noted later is left for the next answer.
        let mirror = self.mirror();
        let (now, bundle) = (mirror.entries_revision, mirror.authorities()?.sequence);
        let federated = mirror.federated().changed();
        let changed = (since.start == self.recent.start)
            .then(|| self.recent.since((class, device), holds, now))
            .flatten();
        if changed.is_some() {
            self.confirmed.note(*device, Some(holds), &mirror);
        }
        let news = changed.and_then(|changed| news(&mirror, (class, device), &changed, now));
        let resync = news.is_none();
        let News { items, gone, upto } = news.unwrap_or(News { upto: now, ..News::default() });
        Ok(Released::head(Answer::Changes(DutyChanges {
            items,
            gone,
            revision: upto,
            bundle,
            federated,
            resync,
        })))
    }
}

/// The state of what has changed, as much as one answer holds, all changes of a revision or none;
/// `None` if not even the first revision fits.
fn news(
    mirror: &Mirror,
    (class, device): (&DeviceClass, &DeviceId),
    changed: &[(u64, EntryId)],
    now: u64,
) -> Option<News> {
    let mut news = News { upto: now, ..News::default() };
    let (mut seen, mut bytes) = (HashSet::new(), 0_usize);
    // What fits, up to and with the last whole revision.
    let (mut whole, mut before) = (None, None);
    for (revision, id) in changed {
        if before.is_some_and(|before| before != *revision) {
            whole = before.map(|before| (before, news.items.len(), news.gone.len()));
        }
        before = Some(*revision);
        if !seen.insert(*id) {
            continue;
        }
        let living = mirror.entry(id).filter(|record| !record.suspended);
        match living.filter(|record| record.entry.is_for(class, device)) {
            Some(record) => {
                let length = serde_json::to_vec(&record.entry).map_or(PAGE_BYTES, |it| it.len());
                bytes = bytes.saturating_add(length).saturating_add(1);
                news.items.push(record.entry.clone());
            }
            None => {
                bytes = bytes.saturating_add(40);
                news.gone.push(*id);
            }
        }
        if bytes > PAGE_BYTES || news.items.len() + news.gone.len() > PAGE_ITEMS {
            let (upto, items, gone) = whole?;
            news.items.truncate(items);
            news.gone.truncate(gone);
            return Some(News { upto, ..news });
        }
    }
    Some(news)
}

/// Which entries these steps change, and whom that concerns.
pub(super) fn touched(mirror: &Mirror, steps: &[Step]) -> Touched {
    let whom = |entry: &Entry| -> Whom { (entry.draft.class.clone(), entry.draft.device) };
    let mut all = Vec::new();
    for step in steps {
        match step {
            Step::Entry(id, record) => {
                // Whom it was for and whom it is for now: the same, as entries are made today.
                let (old, new) = (mirror.entry(id), record.as_ref());
                let of = [old, new].into_iter().flatten().map(|record| whom(&record.entry));
                let mut of: Vec<Whom> = of.collect();
                of.dedup();
                all.extend(of.into_iter().map(|whom| (whom, *id)));
            }
            // Other domains' bundles are no entries; whoever is told of them is woken beside.
            Step::Authorities(_)
            | Step::Federation(..)
            | Step::Bound(..)
            | Step::Device(..)
            | Step::Token(..)
            | Step::Denied(..) => {}
        }
    }
    Touched::Entries(all)
}

#[cfg(test)]
mod tests {
    use super::super::fake_store::{Room, draft, id};
    use super::*;
    use crate::identity::sample;
    use crate::model::{Ask, EntryDraft, Selector, StartId};

    fn agent(device: DeviceId, class: &str) -> Caller {
        let name = format!("spiffe://corp.example/doorward/agent/{device}");
        let class = DeviceClass::parse(class).unwrap();
        sample::caller(&name, CallerKind::Agent, Standing::Live, Some((class, device)))
    }

    struct Told {
        items: Vec<String>,
        gone: usize,
        revision: u64,
        resync: bool,
    }

    fn since(room: &Room, device: DeviceId, holds: u64) -> Told {
        let start = room.authority.recent.start;
        since_start(room, device, Some(holds), start).unwrap()
    }

    fn since_start(
        room: &Room,
        device: DeviceId,
        holds: Option<u64>,
        start: StartId,
    ) -> Result<Told, Failure> {
        let since = Since { start, bundle: 0, federated: 0, wait: false };
        let told = room.authority.duties(&agent(device, "server"), None, holds, Some(since))?;
        let Answer::Changes(DutyChanges { items, gone, revision, resync, .. }) = told.answer else {
            panic!("{:?}", told.answer)
        };
        let items = items.iter().map(|it| it.draft.spiffe_id.path().to_owned()).collect();
        Ok(Told { items, gone: gone.len(), revision, resync })
    }

    async fn create(room: &Room, draft: &EntryDraft) -> Entry {
        let made = room.authority.entry_create(draft, None, room.now()).await.unwrap();
        let Answer::Entries { mut items, .. } = made.answer else { panic!("no entry") };
        items.remove(0)
    }

    #[tokio::test]
    async fn an_agent_is_told_what_changed_for_it_and_nothing_else() {
        let room = Room::new().await;
        let ((one, _), (two, _)) = (room.device("server").await, room.device("server").await);
        let first = since(&room, one, room.authority.mirror().entries_revision);
        assert!(!first.resync && first.items.is_empty());
        let all = create(&room, &draft("/all")).await;
        create(&room, &EntryDraft { device: Some(two), ..draft("/two") }).await;
        let laptop = DeviceClass::parse("laptop").unwrap();
        create(&room, &EntryDraft { class: laptop, ..draft("/laptops") }).await;
        let told = since(&room, one, first.revision);
        assert_eq!((told.items.as_slice(), told.gone), (&["/all".to_owned()][..], 0));
        assert_eq!(told.revision, room.authority.mirror().entries_revision);
        assert_eq!(since(&room, two, first.revision).items, ["/all", "/two"]);

        room.authority.revoke(&id("/all"), false, None, room.now()).await.unwrap();
        let revoked = since(&room, one, told.revision);
        assert_eq!((revoked.items.len(), revoked.gone), (0, 1), "a revoked identity is no duty");
        room.authority.revoke(&id("/all"), true, None, room.now()).await.unwrap();
        let resumed = since(&room, one, revoked.revision);
        assert_eq!((resumed.items.len(), resumed.gone), (1, 0));
        let ask = Ask::EntryDelete { spiffe_id: id("/all"), id: all.id };
        let target =
            room.authority.locate(&ask, &super::super::fake_store::nobody()).await.unwrap();
        room.authority.entry_delete(&target, None, room.now()).await.unwrap();
        let deleted = since(&room, one, first.revision);
        assert_eq!(
            (deleted.items.len(), deleted.gone),
            (0, 1),
            "many changes of one are told once"
        );
    }

    #[tokio::test]
    async fn what_can_not_be_known_is_read_anew() {
        let room = Room::new().await;
        let (one, _) = room.device("server").await;
        create(&room, &draft("/a")).await;
        let now = room.authority.mirror().entries_revision;
        let start = room.authority.recent.start;
        assert!(!since(&room, one, now).resync, "the positive control");
        assert!(since(&room, one, 0).resync, "from before this start");
        assert!(since(&room, one, now + 1).resync, "a revision that never was");
        let other = since_start(&room, one, Some(now), StartId::random()).unwrap();
        assert!(other.resync && other.revision == now, "another start");
        assert!(since_start(&room, one, None, start).is_err(), "no revision at all");
        assert!(room.authority.confirmed.of(&one) == Some(now));
        let again = room.again().await;
        assert!(since_start(&again, one, Some(now), start).unwrap().resync, "after a restart");
        assert_eq!(again.authority.confirmed.of(&one), None, "which confirms nothing");
    }

    #[tokio::test]
    async fn a_commit_of_unknown_outcome_makes_everybody_read_anew() {
        let room = Room::new().await;
        let (one, _) = room.device("server").await;
        let before = since(&room, one, room.authority.mirror().entries_revision).revision;
        let mut wait = room.authority.wait(&agent(one, "server")).unwrap().unwrap();
        room.store.loses_next_answer.store(true, std::sync::atomic::Ordering::SeqCst);
        let lost = room.authority.entry_create(&draft("/lost"), None, room.now()).await;
        assert!(lost.is_err());
        create(&room, &draft("/next")).await;
        wait.news().await;
        assert!(since(&room, one, before).resync);
    }

    #[tokio::test]
    async fn more_than_an_answer_holds_comes_in_whole_revisions() {
        let room = Room::new().await;
        let (one, _) = room.device("server").await;
        let path = |n: usize| Selector::Path(format!("/{n}{}", "\u{1}".repeat(1010)));
        let first = room.authority.mirror().entries_revision;
        for n in 0..60 {
            let selectors = (0..3).map(path).chain([Selector::Uid(n)]).collect();
            create(&room, &EntryDraft { selectors, ..draft(&format!("/w{n}")) }).await;
        }
        let (mut holds, mut seen) = (first, Vec::new());
        loop {
            let told = since(&room, one, holds);
            assert!(!told.resync);
            if told.items.is_empty() {
                break;
            }
            assert!(told.items.len() < 60 && told.revision > holds);
            (holds, seen) = (told.revision, [seen, told.items].concat());
        }
        assert_eq!(seen.len(), 60);
        assert_eq!(holds, room.authority.mirror().entries_revision);
    }
}
