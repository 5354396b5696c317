//! Allowed judgements that were made lately, remembered under everything that they depend on.
//!
//! A memory belongs to the rules of one bundle, so another policy begins with an empty one. Within it
//! a judgement is found by subject, action and object, compared in full, and counts only under the
//! very posture label that it was made under and within the stretch of time in which no window of a
//! candidate row opens or closes. Only «allowed» is remembered: a denial is made anew, with its
//! reason. Bounded in number.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use ahash::RandomState;

use super::decision::Ruled;
use super::pattern::{ANY, TIME_BYTES, UNBOUNDED};
use super::rows::Row;
use crate::model::Action;
use crate::model::limits::JUDGEMENTS_MAX;

/// One allowed judgement.
#[derive(Debug, Clone)]
struct Remembered {
    subject: Box<str>,
    action: Action,
    object: Box<str>,
    /// The profiles that the candidate rows name, in order, once each.
    posts: Box<[Box<str>]>,
    /// The label that they gave.
    label: Box<str>,
    /// From this moment on, if from any.
    from: Option<Box<str>>,
    /// Until before this moment, if until any.
    until: Option<Box<str>>,
    rules: Box<[Ruled]>,
}

impl Remembered {
    fn is_of(&self, subject: &str, action: Action, object: &str) -> bool {
        *self.subject == *subject && self.action == action && *self.object == *object
    }
}

/// The judgements of one bundle's rules.
#[derive(Debug, Default)]
pub(super) struct Memory {
    hasher: RandomState,
    all: Mutex<HashMap<u64, Remembered, RandomState>>,
}

impl Memory {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, Remembered, RandomState>> {
        self.all.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    fn key(&self, subject: &str, action: Action, object: &str) -> u64 {
        self.hasher.hash_one((subject, action, object))
    }

    /// The profiles that the candidate rows of a remembered judgement name: they depend on nothing
    /// but subject, action and object. Gives what `of` makes of them.
    pub(super) fn posts<T>(
        &self,
        subject: &str,
        action: Action,
        object: &str,
        of: impl FnOnce(&[Box<str>]) -> T,
    ) -> Option<T> {
        let all = self.all();
        let found = all.get(&self.key(subject, action, object))?;
        found.is_of(subject, action, object).then(|| of(&found.posts))
    }

    /// The rules that allowed the same before, if everything is as it was. `label` makes the posture
    /// label out of the names of profiles.
    pub(super) fn recall(
        &self,
        subject: &str,
        action: Action,
        object: &str,
        now: &str,
        label: impl FnOnce(&[Box<str>]) -> String,
    ) -> Option<Vec<Ruled>> {
        let all = self.all();
        let found = all.get(&self.key(subject, action, object))?;
        let same = found.is_of(subject, action, object);
        let begun = found.from.as_ref().is_none_or(|from| now >= &**from);
        let ended = found.until.as_ref().is_some_and(|until| now >= &**until);
        if !same || !begun || ended || now.len() != TIME_BYTES {
            return None;
        }
        (*found.label == *label(&found.posts)).then(|| found.rules.to_vec())
    }

    /// Remembers that these candidate rows allowed it, under this label, at this moment.
    pub(super) fn remember<'r>(
        &self,
        (subject, action, object): (&str, Action, &str),
        (label, now): (&str, &str),
        rows: impl Iterator<Item = &'r Row>,
        rules: &[Ruled],
    ) {
        let (mut posts, mut from, mut until) = (Vec::<Box<str>>::new(), None, None);
        for row in rows {
            if row.post() != ANY {
                posts.push(row.post().into());
            }
            for edge in [row.nbf(), row.exp()].into_iter().filter(|edge| *edge != UNBOUNDED) {
                // Fixed-width UTC text: the order of the text is the order of time.
                if edge <= now {
                    from = from.max(Some(edge));
                } else {
                    until = Some(until.map_or(edge, |until: &str| until.min(edge)));
                }
            }
        }
        posts.sort_unstable();
        posts.dedup();
        let remembered = Remembered {
            subject: subject.into(),
            action,
            object: object.into(),
            posts: posts.into(),
            label: label.into(),
            from: from.map(Into::into),
            until: until.map(Into::into),
            rules: rules.into(),
        };
        let key = self.key(subject, action, object);
        let mut all = self.all();
        if all.len() >= JUDGEMENTS_MAX {
            all.clear();
        }
        all.insert(key, remembered);
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::Index;
    use super::super::judge::{Rules, Seen};
    use super::super::parser::parse;
    use super::super::scope::Mode;
    use super::*;
    use crate::model::TrustDomain;

    const POLICY: &str = "p, pay, spiffe://d/api, secret/pay/**, read, hardened, \
                          2026-01-01T00:00:00Z, 2026-02-01T00:00:00Z, allow\n\
                          p, freeze, spiffe://d/*, secret/**, *, any, 2026-01-20T00:00:00Z, \
                          2026-01-21T00:00:00Z, deny\n";

    fn rules() -> Rules {
        let set = parse(POLICY, &["hardened".to_owned()]).unwrap();
        let domain = TrustDomain::parse("d").unwrap();
        Rules { index: Index::new(&set), set, domain, memory: Memory::default() }
    }

    fn allowed(rules: &Rules, object: &str, label: &str, now: &str) -> bool {
        let seen = Seen::Label(label);
        let judge = || {
            rules.judge("spiffe://d/api", Action::Read, object, seen, now, Mode::Ordinary).allowed
        };
        let first = judge();
        assert_eq!(judge(), first, "remembered or not, it comes out the same");
        first
    }

    #[test]
    fn nothing_stale_is_remembered() {
        let (rules, held) = (rules(), "|hardened=t|");
        let object = "secret/pay/db";
        assert!(allowed(&rules, object, held, "2026-01-10T00:00:00Z"));
        assert_eq!(rules.memory.all().len(), 1);
        assert!(!allowed(&rules, object, "|", "2026-01-10T00:00:01Z"), "another posture");
        assert!(!allowed(&rules, object, "unknown", "2026-01-10T00:00:01Z"));
        assert!(!allowed(&rules, "secret/web/db", held, "2026-01-10T00:00:01Z"), "another object");
        assert!(allowed(&rules, object, held, "2026-01-19T23:59:59Z"), "the last second before");
        assert!(
            !allowed(&rules, object, held, "2026-01-20T00:00:00Z"),
            "a deny row's window opens"
        );
        assert!(allowed(&rules, object, held, "2026-01-21T00:00:00Z"), "and closes");
        assert!(allowed(&rules, object, held, "2026-01-31T23:59:59Z"));
        assert!(!allowed(&rules, object, held, "2026-02-01T00:00:00Z"), "the allow row ends");
        assert!(
            !allowed(&rules, object, held, "2025-12-31T23:59:59Z"),
            "a clock that was set back"
        );
    }

    #[test]
    fn two_keys_with_one_hash_are_told_apart() {
        let rules = rules();
        assert!(allowed(&rules, "secret/pay/db", "|hardened=t|", "2026-01-10T00:00:00Z"));
        let mut all = rules.memory.all();
        let key = rules.memory.key("spiffe://d/api", Action::Read, "secret/web/db");
        let moved = all.values().next().unwrap().clone();
        all.insert(key, moved);
        drop(all);
        assert!(!allowed(&rules, "secret/web/db", "|hardened=t|", "2026-01-10T00:00:00Z"));
    }
}
