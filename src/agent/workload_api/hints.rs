//! The hints of one answer: of several identities with the same one, the first is given alone, so
//! that a workload that goes by the hint never picks between two (SPIFFE Workload API §5.2.1).

use std::collections::HashSet;

use crate::model::{Entry, Hint};

/// Those that stand in the answer already.
#[derive(Debug, Default)]
pub(super) struct Hints<'a>(HashSet<&'a Hint>);

impl<'a> Hints<'a> {
    /// Whether the entry's identity may stand in the answer.
    pub(super) fn have_room_for(&self, entry: &Entry) -> bool {
        entry.draft.hint.as_ref().is_none_or(|hint| !self.0.contains(hint))
    }

    /// Notes an identity that stands in it now.
    pub(super) fn note(&mut self, entry: &'a Entry) {
        self.0.extend(&entry.draft.hint);
    }
}

/// An entry's hint as messages have it: empty for none.
pub(super) fn hint_of(entry: &Entry) -> String {
    entry.draft.hint.as_ref().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{DeviceClass, EntryDraft, EntryId, Selector, SpiffeId};

    fn entry(n: u128, hint: Option<&str>) -> Entry {
        let draft = EntryDraft {
            spiffe_id: SpiffeId::parse(&format!("spiffe://corp.example/{n}")).unwrap(),
            class: DeviceClass::parse("server").unwrap(),
            device: None,
            selectors: vec![Selector::Uid(1)],
            ttl_s: None,
            default: false,
            jwt_alg: Default::default(),
            federates_with: Vec::new(),
            hint: hint.map(|text| Hint::parse(text).unwrap()),
        };
        Entry { id: EntryId(Uuid::from_u128(n)), draft, epoch: 1, created: String::new() }
    }

    #[test]
    fn the_first_of_a_hint_stands_alone_and_none_is_no_hint() {
        let all = [
            entry(1, Some("internal")),
            entry(2, None),
            entry(3, Some("internal")),
            entry(4, Some("Internal")),
            entry(5, None),
        ];
        let mut hints = Hints::default();
        let mut given = Vec::new();
        for entry in &all {
            if hints.have_room_for(entry) {
                hints.note(entry);
                given.push((entry.id.0.as_u128(), hint_of(entry)));
            }
        }
        let text = |text: &str| text.to_owned();
        let want = [(1, text("internal")), (2, text("")), (4, text("Internal")), (5, text(""))];
        assert_eq!(given, want);

        // One that the broker refused was not given: it takes no place.
        let hints = Hints::default();
        assert!(hints.have_room_for(&all[0]) && hints.have_room_for(&all[2]));
    }
}
