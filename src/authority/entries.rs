//! Registration entries: making, listing and ending them, and revoking what they gave.
//!
//! Whether a caller may make an entry for a path is judged by the line, which asks for the right to
//! issue that path as well; here stands only what would make an entry wrong for everybody.

use super::devices::ending;
use super::mirror::{Mirror, Step};
use super::records::{EntryRecord, FORMAT};
use super::room::Authority;
use crate::model::limits::{ENTRIES_MAX, ENTRIES_PER_ID};
use crate::model::{
    Answer, Code, DeviceId, Entry, EntryDraft, EntryId, Failure, Moment, Reason, Released,
    SecretPrefix, SpiffeId, Target, TokenAlgorithm, fit_page, next_items, rfc3339,
};

impl Authority {
    /// A new entry, at epoch 1; the answer shows it with its id.
    pub(super) async fn entry_create(
        &self,
        draft: &EntryDraft,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        draft.check().map_err(|error| Failure::invalid(error.to_string()))?;
        if draft.spiffe_id.trust_domain() != &self.domain {
            let hint = format!("entries are for the trust domain {}", self.domain);
            return Err(Failure::invalid(hint));
        }
        // The path is the name of an object of policies, so it keeps the rules of names.
        let path = draft.spiffe_id.path().trim_start_matches('/');
        SecretPrefix::parse(path).map_err(|error| Failure::invalid(format!("path: {error}")))?;
        if draft.class.is_person() {
            return Err(Failure::invalid("people have no agent; entries are for devices"));
        }
        let id = EntryId::random();
        let created = rfc3339(now.wall());
        let entry = Entry { id, draft: draft.clone(), epoch: 1, created };
        let wants_rs256 = draft.jwt_alg == TokenAlgorithm::Rs256;
        fits(&self.mirror(), draft)?; // before a key is made for it
        let keys = if wants_rs256 { self.rs256_keys().await? } else { Vec::new() };
        let (revision, ()) = self
            .change(under, |mirror| {
                fits(mirror, draft)?;
                let record = EntryRecord { v: FORMAT, entry: entry.clone(), suspended: false };
                let mut steps = vec![Step::Entry(id, Some(record))];
                if wants_rs256 {
                    let row = mirror.authorities()?.with_rs256(&keys)?;
                    steps.extend(row.map(Step::Authorities));
                }
                Ok((steps, ()))
            })
            .await?;
        Ok(Released::head(Answer::Entries {
            items: vec![entry],
            more: false,
            revision,
            bundle: 0,
            start: None,
            federated: 0,
        }))
    }

    /// All entries, in the order of their ids: the page after `after`.
    pub(super) fn entry_list(&self, after: Option<&EntryId>) -> Released {
        let mirror = self.mirror();
        let records = next_items(mirror.entries(), after, |record| record.entry.id);
        let items = records.into_iter().map(|record| record.entry.clone()).collect();
        page_of(items, mirror.entries_revision)
    }

    /// Ends the entry that was decided on, and with it every SVID that it gave.
    pub(super) async fn entry_delete(
        &self,
        target: &Target,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let Target::Entry { id, .. } = target else {
            return Err(Failure::absent("there is no such entry"));
        };
        let changed = self.change(under, |mirror| match mirror.entry(id) {
            Some(record) => Ok((vec![Step::Entry(*id, None)], vec![record.entry.clone()])),
            None => Err(Failure::absent("there is no such entry")),
        });
        self.revoked_done(changed.await?, now)
    }

    /// Ends every living SVID of an ID, or lets its entries give new ones again. The ID of an agent
    /// or an operator ends the devices behind it, for good.
    pub(super) async fn revoke(
        &self,
        id: &SpiffeId,
        resume: bool,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        if id.trust_domain() != &self.domain {
            let hint = format!("only identities of {} are revoked here", self.domain);
            return Err(Failure::invalid(hint));
        }
        if id.is_reserved() {
            return self.revoke_reserved(id, resume, under, now).await;
        }
        let changed = self.change(under, |mirror| {
            let records: Vec<_> = mirror.entries_of(id).collect();
            if records.is_empty() {
                return Err(Failure::absent(format!("no entry gives {id}")));
            }
            let entries: Vec<_> = records.iter().map(|record| record.entry.clone()).collect();
            let steps = records.into_iter().filter_map(|record| turned(record, resume));
            Ok((steps.collect(), entries))
        });
        let (revision, entries) = changed.await?;
        match resume {
            true => Ok(Released::head(Answer::Done { revision })),
            false => self.revoked_done((revision, entries), now),
        }
    }

    async fn revoke_reserved(
        &self,
        id: &SpiffeId,
        resume: bool,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        if resume {
            return Err(Failure::invalid("devices and operators end for good; enrol anew"));
        }
        if let Some(name) = id.path().strip_prefix("/doorward/operator/") {
            return self.operator_remove(name, under).await;
        }
        let agent = id.path().strip_prefix("/doorward/agent/");
        let Some(Ok(device)) = agent.map(DeviceId::parse) else {
            return Err(Failure::invalid("of /doorward/ only agents and operators are revoked"));
        };
        let changed = self.change(under, |mirror| match mirror.device(&device) {
            Some(record) if !record.class.is_person() => {
                Ok((ending(device, record).into_iter().collect(), Vec::new()))
            }
            _ => Err(Failure::absent(format!("there is no agent on a device {device}"))),
        });
        self.revoked_done(changed.await?, now)
    }
}

/// One page of entries that are in order.
pub(super) fn page_of(mut items: Vec<Entry>, revision: u64) -> Released {
    let more = fit_page(&mut items);
    let (start, bundle, federated) = (None, 0, 0);
    Released::head(Answer::Entries { items, more, revision, bundle, start, federated })
}

/// The step that revokes or resumes an entry; none when it stands so. Revoking an entry that is
/// suspended already raises its epoch all the same: what was issued in between is dead for sure.
fn turned(record: &EntryRecord, resume: bool) -> Option<Step> {
    let id = record.entry.id;
    let mut next = record.clone();
    next.suspended = !resume;
    if resume {
        return record.suspended.then_some(Step::Entry(id, Some(next)));
    }
    next.entry.epoch = next.entry.epoch.saturating_add(1);
    Some(Step::Entry(id, Some(next)))
}

/// Whether a draft fits beside what is there.
fn fits(mirror: &Mirror, draft: &EntryDraft) -> Result<(), Failure> {
    if mirror.entry_count() >= ENTRIES_MAX {
        return Err(Failure::too_large(format!("there are {ENTRIES_MAX} entries already")));
    }
    if let Some(device) = &draft.device {
        let record = mirror.device(device).filter(|record| record.class == draft.class);
        let record = record.ok_or_else(|| {
            Failure::invalid(format!("there is no device {}/{device}", draft.class))
        })?;
        if record.revoked {
            return Err(Failure::invalid("that device is revoked"));
        }
    }
    let mut same_id = 0;
    for record in mirror.entries_of_any_case(&draft.spiffe_id) {
        let other = &record.entry.draft;
        if other.spiffe_id != draft.spiffe_id {
            let hint = format!("{} differs in case only", other.spiffe_id);
            return Err(Failure::conflict(hint));
        }
        same_id += 1;
        if record.suspended {
            let hint = "this identity is revoked; resume it before giving it again".to_owned();
            let failure = Failure::new(Code::Conflict, Reason::Revoked);
            return Err(Failure { hint: Some(hint), ..failure });
        }
        if other.class == draft.class
            && other.device == draft.device
            && same_set(&other.selectors, &draft.selectors)
        {
            return Err(Failure::conflict(format!("entry {} says the same", record.entry.id)));
        }
    }
    if same_id >= ENTRIES_PER_ID {
        return Err(Failure::too_large(format!("{ENTRIES_PER_ID} entries give this ID already")));
    }
    Ok(())
}

fn same_set<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    a.iter().all(|it| b.contains(it)) && b.iter().all(|it| a.contains(it))
}

#[cfg(test)]
mod tests {
    use super::super::fake_store::{Room, draft, id, nobody};
    use super::*;
    use crate::model::limits::{ENTRIES_PER_ID, REPLY_HEAD_MAX};
    use crate::model::{Ask, Selector, TrustDomain};

    async fn create(room: &Room, draft: &EntryDraft) -> Result<Entry, Failure> {
        let made = room.authority.entry_create(draft, Some(1), room.now()).await?;
        match made.answer {
            Answer::Entries { mut items, .. } if items.len() == 1 => Ok(items.remove(0)),
            other => panic!("{other:?}"),
        }
    }

    fn status(room: &Room, id: &EntryId) -> Option<(u64, bool)> {
        let view = room.identity.view();
        view.entries.get(id).map(|status| (status.epoch, status.suspended))
    }

    #[tokio::test]
    async fn an_entry_is_made_listed_located_and_ended() {
        let room = Room::new().await;
        let entry = create(&room, &draft("/ns/pay/api")).await.unwrap();
        assert_eq!((entry.epoch, entry.created.as_str()), (1, "2026-11-23T12:00:00Z"));
        assert_eq!(status(&room, &entry.id), Some((1, false)));
        let Answer::Entries { items, more: false, revision, .. } =
            room.authority.entry_list(None).answer
        else {
            panic!("no list")
        };
        assert_eq!(items, std::slice::from_ref(&entry));
        assert_eq!(revision, room.authority.mirror().revision);

        let spiffe_id = id("/ns/pay/api");
        let ask = Ask::EntryDelete { spiffe_id: spiffe_id.clone(), id: entry.id };
        let target = room.authority.locate(&ask, &nobody()).await.unwrap();
        assert_eq!(target, Target::Entry { id: entry.id, epoch: 1 });
        let other = Ask::EntryDelete { spiffe_id: id("/ns/pay/other"), id: entry.id };
        assert_eq!(room.authority.locate(&other, &nobody()).await.unwrap(), Target::Absent);
        let own = room.authority.locate(&Ask::Renew {}, &nobody()).await.unwrap();
        assert_eq!(own, Target::Itself);

        assert!(room.authority.entry_delete(&Target::Absent, None, room.now()).await.is_err());
        room.authority.entry_delete(&target, Some(2), room.now()).await.unwrap();
        assert_eq!(status(&room, &entry.id), None);
        assert_eq!(room.authority.locate(&ask, &nobody()).await.unwrap(), Target::Absent);
        let failure = room.authority.entry_delete(&target, Some(3), room.now()).await.unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
        assert_eq!(room.again().await.authority.mirror().entry_count(), 0);
    }

    #[tokio::test]
    async fn drafts_that_are_wrong_for_everybody_are_refused() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let (ended, _) = room.device("server").await;
        let class = draft("/a").class;
        room.authority.device_revoke(&class, &ended, false, None, room.now()).await.unwrap();
        let only = |device| EntryDraft { device: Some(device), ..draft("/one") };
        assert!(create(&room, &only(device)).await.is_ok(), "the positive control");
        assert!(create(&room, &draft("/two")).await.is_ok());

        let elsewhere = TrustDomain::parse("else.example").unwrap();
        let person = crate::model::DeviceClass::person();
        let laptop = crate::model::DeviceClass::parse("laptop").unwrap();
        let deep = format!("/{}", ["a"; 17].join("/"));
        for (what, bad) in [
            ("a reserved path", draft("/doorward/agent/x")),
            ("the domain's own ID", draft("")),
            ("no selector", EntryDraft { selectors: Vec::new(), ..draft("/x") }),
            (
                "another domain",
                EntryDraft { spiffe_id: elsewhere.id("/x").unwrap(), ..draft("/x") },
            ),
            ("people", EntryDraft { class: person, ..draft("/x") }),
            ("an unknown device", only(DeviceId(crate::model::Digest::of(b"nobody")))),
            ("a revoked device", only(ended)),
            ("a device of another class", EntryDraft { class: laptop, ..only(device) }),
            ("a path that is no name", draft(&deep)),
            ("a segment that is no name", draft(&format!("/{}", "a".repeat(129)))),
        ] {
            assert_eq!(create(&room, &bad).await.unwrap_err().code, Code::Invalid, "{what}");
        }
        let selectors = vec![Selector::Uid(1000), Selector::Uid(1000)];
        for (what, bad) in [
            ("the same again", draft("/two")),
            ("the same in other words", EntryDraft { selectors, ..draft("/two") }),
            ("another case", draft("/Two")),
        ] {
            assert_eq!(create(&room, &bad).await.unwrap_err().code, Code::Conflict, "{what}");
        }
        assert_eq!(room.authority.mirror().entry_count(), 2);
    }

    /// Selectors as long as an entry may have them, in text that JSON writes six times as long.
    fn longest(uid: u32) -> Vec<Selector> {
        let path = |n| Selector::Path(format!("/{n}{}", "\u{1}".repeat(1010)));
        (0..4).map(path).chain([Selector::Uid(uid)]).collect()
    }

    #[tokio::test]
    async fn long_entries_of_one_class_leave_every_page_within_a_frame() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let mut wanted = Vec::new();
        for n in 0..85 {
            let path = format!("/w{n}");
            let long = EntryDraft { selectors: longest(n), ..draft(&path) };
            wanted.push(create(&room, &long).await.unwrap().id);
        }
        wanted.sort();
        let class = draft("/a").class;
        let duties = |after: Option<&EntryId>| {
            let mirror = room.authority.mirror();
            page_of(mirror.duties(&class, &device, after), 0)
        };
        let list = |after: Option<&EntryId>| room.authority.entry_list(after);
        type Paged<'a> = &'a dyn Fn(Option<&EntryId>) -> Released;
        let pages: [Paged<'_>; 2] = [&duties, &list];
        for page in pages {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let released = page(after.as_ref());
                let head = serde_json::to_vec(&released.answer).unwrap();
                assert!(head.len() + 1024 < REPLY_HEAD_MAX, "{} bytes", head.len());
                let Answer::Entries { items, more, .. } = released.answer else { panic!("none") };
                seen.extend(items.iter().map(|entry| entry.id));
                after = seen.last().copied();
                if !more {
                    break;
                }
            }
            assert_eq!(seen, wanted);
        }
    }

    #[tokio::test]
    async fn the_text_of_all_selectors_together_is_bounded() {
        let room = Room::new().await;
        let with = |selectors| EntryDraft { selectors, ..draft("/a") };
        assert!(create(&room, &with(longest(1))).await.is_ok());
        let path = |n| Selector::Path(format!("/{n}{}", "a".repeat(1000)));
        let long = (0..15).map(path).chain([Selector::Uid(2)]).collect();
        let failure = create(&room, &with(long)).await.unwrap_err();
        assert!(failure.hint.is_some_and(|hint| hint.contains("4096 bytes together")));
    }

    #[tokio::test]
    async fn one_identity_has_a_bounded_number_of_entries() {
        let room = Room::new().await;
        let with_uid = |uid| EntryDraft { selectors: vec![Selector::Uid(uid)], ..draft("/a") };
        for uid in 0..u32::try_from(ENTRIES_PER_ID).unwrap() {
            create(&room, &with_uid(uid)).await.unwrap();
        }
        let failure = create(&room, &with_uid(u32::MAX)).await.unwrap_err();
        assert_eq!(failure.code, Code::TooLarge);
        room.authority.revoke(&id("/a"), false, Some(5), room.now()).await.unwrap();
        assert!(room.identity.view().entries.values().all(|status| status.suspended));
    }

    #[tokio::test]
    async fn revoking_suspends_at_a_higher_epoch_and_resuming_keeps_it() {
        let room = Room::new().await;
        let entry = create(&room, &draft("/a")).await.unwrap();
        let other = create(&room, &draft("/b")).await.unwrap();
        let revoke =
            async |resume| room.authority.revoke(&id("/a"), resume, Some(3), room.now()).await;
        revoke(false).await.unwrap();
        assert_eq!(status(&room, &entry.id), Some((2, true)));
        assert_eq!(status(&room, &other.id), Some((1, false)), "others stay");
        let again = EntryDraft { selectors: vec![Selector::Gid(5)], ..draft("/a") };
        let failure = create(&room, &again).await.unwrap_err();
        assert_eq!(failure.reason, Reason::Revoked, "a new entry is no way round");
        revoke(true).await.unwrap();
        assert_eq!(status(&room, &entry.id), Some((2, false)));
        revoke(true).await.unwrap();
        assert_eq!(status(&room, &entry.id), Some((2, false)), "resuming twice does nothing");
        revoke(false).await.unwrap();
        revoke(false).await.unwrap();
        assert_eq!(status(&room, &entry.id), Some((4, true)));
        let again = room.again().await;
        assert_eq!(status(&again, &entry.id), Some((4, true)), "a restart changes nothing");
    }

    #[tokio::test]
    async fn what_nobody_has_is_not_revoked() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let foreign = TrustDomain::parse("else.example").unwrap().id("/a").unwrap();
        let revoke = async |id: &SpiffeId| room.authority.revoke(id, false, None, room.now()).await;
        assert_eq!(revoke(&id("/a")).await.unwrap_err().code, Code::NotFound);
        assert_eq!(revoke(&foreign).await.unwrap_err().code, Code::Invalid);
        for path in ["/doorward/broker", "/doorward/applicant", "/doorward/agent/x", "/doorward"] {
            assert_eq!(revoke(&id(path)).await.unwrap_err().code, Code::Invalid, "{path}");
        }
        let nobody = format!("/doorward/agent/{}", "ab".repeat(32));
        assert_eq!(revoke(&id(&nobody)).await.unwrap_err().code, Code::NotFound);
        assert_eq!(revoke(&id("/doorward/operator/al")).await.unwrap_err().code, Code::NotFound);

        let agent = id(&format!("/doorward/agent/{device}"));
        let resumed = room.authority.revoke(&agent, true, None, room.now()).await;
        assert_eq!(resumed.unwrap_err().code, Code::Invalid);
        revoke(&agent).await.unwrap();
        assert!(room.identity.view().devices[&device].revoked);
    }
}
