//! Sets of names that are closed under intersection and difference: what patterns mean.
//!
//! A set is a list of segments, each one text or all but a few, and then either nothing or
//! anything. Every pattern of this language is such a set, and the difference of two is a finite
//! union of such sets, so questions about all requests have exact answers.

use std::collections::BTreeSet;
use std::fmt;

/// What one segment may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    /// This text; the empty one stands between the slashes of `spiffe://`.
    Is(Box<str>),
    /// Any text that is not empty and none of these.
    Not(BTreeSet<Box<str>>),
}

impl Segment {
    fn any() -> Self {
        Self::Not(BTreeSet::new())
    }

    fn and(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Is(a), Self::Is(b)) => (a == b).then(|| self.clone()),
            (Self::Is(text), Self::Not(out)) | (Self::Not(out), Self::Is(text)) => {
                let fits = !text.is_empty() && !out.contains(text);
                fits.then(|| Self::Is(text.clone()))
            }
            (Self::Not(a), Self::Not(b)) => Some(Self::Not(a.union(b).cloned().collect())),
        }
    }

    fn less(&self, other: &Self) -> Vec<Self> {
        match (self, other) {
            (_, Self::Is(text)) if self.and(other).is_some() => match self {
                Self::Is(_) => Vec::new(),
                Self::Not(out) => {
                    let mut out = out.clone();
                    out.insert(text.clone());
                    vec![Self::Not(out)]
                }
            },
            (Self::Is(_), Self::Not(_)) if self.and(other).is_some() => Vec::new(),
            (Self::Not(out), Self::Not(others)) => {
                let rest = others.iter().filter(|text| !out.contains(*text));
                rest.map(|text| Self::Is(text.clone())).collect()
            }
            _ => vec![self.clone()],
        }
    }

    /// One text of it.
    fn sample(&self) -> String {
        match self {
            Self::Is(text) => text.to_string(),
            Self::Not(out) => {
                let names =
                    std::iter::once("x".to_owned()).chain((1_u32..).map(|n| format!("x{n}")));
                let mut free = names.filter(|name| !out.contains(name.as_str()));
                free.next().unwrap_or_default()
            }
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(text) => f.write_str(text),
            Self::Not(out) if out.is_empty() => f.write_str("*"),
            Self::Not(out) => {
                let texts: Vec<&str> = out.iter().map(|text| &**text).collect();
                write!(f, "(* but {})", texts.join(", "))
            }
        }
    }
}

/// A set of names, never empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Names {
    segments: Vec<Segment>,
    /// Whether any number of segments may follow.
    open: bool,
}

impl Names {
    /// What a pattern means.
    pub(super) fn of(pattern: &str) -> Self {
        let mut segments = Vec::new();
        let mut open = false;
        for part in pattern.split('/') {
            match part {
                "**" => open = true,
                "*" => segments.push(Segment::any()),
                text => segments.push(Segment::Is(text.into())),
            }
        }
        Self { segments, open }
    }

    /// The names in both.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        let (short, long) = match self.segments.len() <= other.segments.len() {
            true => (self, other),
            false => (other, self),
        };
        if short.segments.len() < long.segments.len() && !short.open {
            return None;
        }
        let both = short.segments.iter().zip(&long.segments);
        let both: Option<Vec<Segment>> = both.map(|(a, b)| a.and(b)).collect();
        let mut segments = both?;
        segments.extend(long.segments.iter().skip(segments.len()).cloned());
        // Of equal length both must be open; the longer one alone says how it ends.
        let open = match short.segments.len() == long.segments.len() {
            true => short.open && long.open,
            false => long.open,
        };
        Some(Self { segments, open })
    }

    /// The names of this set that are not in the other: sets without a common name.
    pub(super) fn less(&self, other: &Self) -> Vec<Self> {
        if self.and(other).is_none() {
            return vec![self.clone()];
        }
        let mut out = Vec::new();
        let mut rest = self.clone();
        for (at, wanted) in other.segments.iter().enumerate() {
            if rest.segments.len() == at {
                // `and` is not empty, so the rest is open: what ends here is too short.
                out.push(Self { segments: rest.segments.clone(), open: false });
                rest.segments.push(Segment::any());
            }
            let Some(have) = rest.segments.get(at).cloned() else { return out };
            for differs in have.less(wanted) {
                let mut piece = rest.clone();
                if let Some(slot) = piece.segments.get_mut(at) {
                    *slot = differs;
                }
                out.push(piece);
            }
            let Some(both) = have.and(wanted) else { return out };
            if let Some(slot) = rest.segments.get_mut(at) {
                *slot = both;
            }
        }
        let equal = rest.segments.len() == other.segments.len();
        match (other.open, equal) {
            (true, _) => {}
            (false, true) if rest.open => {
                rest.segments.push(Segment::any());
                out.push(rest);
            }
            (false, true) => {}
            (false, false) => out.push(rest),
        }
        out
    }

    /// One name of it; what stays open ends, but for a first word alone, which names nothing.
    pub(super) fn sample(&self) -> String {
        let mut texts: Vec<String> = self.segments.iter().map(Segment::sample).collect();
        texts.extend((self.open && texts.len() == 1).then(|| "x".to_owned()));
        texts.join("/")
    }

    /// The text of the segment at this place, where there is just one.
    pub(super) fn literal(&self, at: usize) -> Option<&str> {
        match self.segments.get(at) {
            Some(Segment::Is(text)) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = self.segments.iter().map(Segment::to_string).collect();
        if self.open {
            texts.push("**".to_owned());
        }
        f.write_str(&texts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::path_match;
    use super::*;
    use proptest::prelude::*;

    fn has(names: &Names, value: &str) -> bool {
        let parts: Vec<&str> = value.split('/').collect();
        let long = parts.len() > names.segments.len();
        let fits = |(segment, part): (&Segment, &&str)| match segment {
            Segment::Is(text) => **text == **part,
            Segment::Not(out) => !part.is_empty() && !out.contains(*part),
        };
        parts.len() >= names.segments.len()
            && (names.open || !long)
            && names.segments.iter().zip(&parts).all(fits)
    }

    fn pattern() -> impl Strategy<Value = String> {
        let part = prop_oneof![Just("a"), Just("b"), Just("*")];
        let parts = prop::collection::vec(part, 1..4);
        (parts, any::<bool>()).prop_map(|(mut parts, open)| {
            parts.extend(open.then_some("**"));
            parts.join("/")
        })
    }

    fn value() -> impl Strategy<Value = String> {
        let part = prop_oneof![Just("a"), Just("b"), Just("c")];
        prop::collection::vec(part, 1..6).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn sets_mean_what_the_matcher_does(pattern in pattern(), value in value()) {
            prop_assert_eq!(has(&Names::of(&pattern), &value), path_match(&value, &pattern));
        }

        #[test]
        fn both_and_one_less_the_other_are_exact(
            a in pattern(), b in pattern(), c in pattern(), value in value(),
        ) {
            let (a, b, c) = (Names::of(&a), Names::of(&b), Names::of(&c));
            let in_both = a.and(&b).is_some_and(|both| has(&both, &value));
            prop_assert_eq!(in_both, has(&a, &value) && has(&b, &value));
            let left: Vec<Names> = a.less(&b).iter().flat_map(|piece| piece.less(&c)).collect();
            let times = left.iter().filter(|piece| has(piece, &value)).count();
            let wanted = has(&a, &value) && !has(&b, &value) && !has(&c, &value);
            prop_assert_eq!(times, usize::from(wanted), "{:?}", left);
            for piece in &left {
                let sample = piece.sample();
                prop_assert!(has(piece, &sample) && has(&a, &sample) && !has(&b, &sample));
            }
        }
    }
}
