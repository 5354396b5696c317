//! The rows of one policy, checked and compact: what the index, Casbin and the tools all read.
//!
//! A [`RuleSet`] is made by the parser only and never changes afterwards. A row keeps its eight
//! columns in one text; a policy of 100,000 rows is some 20 MiB.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::{Action, Digest};

/// Columns of a `p` row after the `p`.
pub(super) const COLUMNS: usize = 8;
/// The row that always stands first, so that the policy Casbin sees is never empty.
const SENTINEL: [&str; COLUMNS] = ["sentinel", "-", "-", "-", "any", "-", "-", "deny"];

/// Whom a row or a membership speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// A group, by its position in [`RuleSet::groups`].
    Group(u32),
    /// A pattern of SPIFFE IDs: the row's own text.
    Pattern,
}

/// One `key=value` of a `#@` line.
pub(super) type Remark = (Box<str>, Box<str>);

/// One `p` row.
#[derive(Debug)]
pub(super) struct Row {
    text: Box<str>,
    ends: [u16; COLUMNS],
    /// Line in `policy.csv`, from 1.
    pub(super) line: u32,
    /// Allow, or else deny.
    pub(super) allow: bool,
    /// The action; `None` for all.
    pub(super) action: Option<Action>,
    /// Whom it speaks of.
    pub(super) subject: Subject,
    /// What its `#@` lines say.
    pub(super) remarks: Option<Box<[Remark]>>,
}

impl Row {
    /// A row of these columns; `None` where they are longer than a line may be.
    pub(super) fn new(columns: [&str; COLUMNS], line: u32, subject: Subject) -> Option<Self> {
        let mut text = String::with_capacity(columns.iter().map(|c| c.len() + 1).sum());
        let mut ends = [0; COLUMNS];
        for (column, end) in columns.iter().zip(ends.iter_mut()) {
            text.push_str(column);
            *end = u16::try_from(text.len()).ok()?;
            text.push(',');
        }
        let [_, _, _, action, .., effect] = columns;
        Some(Self {
            text: text.into(),
            ends,
            line,
            allow: effect == "allow",
            action: Action::parse(action),
            subject,
            remarks: None,
        })
    }

    fn column(&self, at: usize) -> &str {
        let from = at.checked_sub(1).and_then(|before| self.ends.get(before));
        let from = from.map_or(0, |end| usize::from(*end) + 1);
        let to = self.ends.get(at).map_or(0, |end| usize::from(*end));
        self.text.get(from..to).unwrap_or("")
    }

    /// Its unique id.
    pub(super) fn id(&self) -> &str {
        self.column(0)
    }

    /// Subject pattern or `group:…`.
    pub(super) fn sub(&self) -> &str {
        self.column(1)
    }

    /// Object pattern.
    pub(super) fn obj(&self) -> &str {
        self.column(2)
    }

    /// Action word or `*`.
    pub(super) fn act(&self) -> &str {
        self.column(3)
    }

    /// Profile name or `any`.
    pub(super) fn post(&self) -> &str {
        self.column(4)
    }

    /// Begin of its window, or `-`.
    pub(super) fn nbf(&self) -> &str {
        self.column(5)
    }

    /// End of its window, or `-`.
    pub(super) fn exp(&self) -> &str {
        self.column(6)
    }

    /// `allow` or `deny`.
    pub(super) fn eft(&self) -> &str {
        self.column(7)
    }

    /// Everything but the id: two rows of the same text say the same.
    pub(super) fn meaning(&self) -> &str {
        self.text.get(self.id().len()..).unwrap_or("")
    }

    /// The columns as Casbin holds them.
    pub(super) fn columns(&self) -> Vec<String> {
        (0..COLUMNS).map(|at| self.column(at).to_owned()).collect()
    }
}

/// One `g` row.
#[derive(Debug)]
pub(super) struct Membership {
    /// The member as written: a SPIFFE ID, a pattern, or a group.
    pub(super) member: Box<str>,
    /// What the member is.
    pub(super) subject: Subject,
    /// The group that it belongs to.
    pub(super) group: u32,
}

/// All rows of one policy, in file order.
#[derive(Debug)]
pub(super) struct RuleSet {
    /// Process-wide unique: what caches of threads are keyed by.
    pub(super) generation: u64,
    /// `p` rows.
    pub(super) rows: Vec<Row>,
    /// Names of groups, `group:` included.
    pub(super) groups: Vec<Box<str>>,
    /// `g` rows.
    pub(super) members: Vec<Membership>,
}

impl RuleSet {
    /// Seals checked rows into a set with a generation of its own.
    pub(super) fn new(rows: Vec<Row>, groups: Vec<Box<str>>, members: Vec<Membership>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { generation: NEXT.fetch_add(1, Ordering::Relaxed), rows, groups, members }
    }

    /// The row at a position that the index gave.
    pub(super) fn row(&self, at: u32) -> Option<&Row> {
        usize::try_from(at).ok().and_then(|at| self.rows.get(at))
    }

    /// The name of a group.
    pub(super) fn group(&self, at: u32) -> &str {
        usize::try_from(at).ok().and_then(|at| self.groups.get(at)).map_or("", |name| name)
    }
}

/// The sentinel as Casbin holds it.
pub(super) fn sentinel() -> Vec<String> {
    SENTINEL.map(str::to_owned).to_vec()
}

/// SHA-256 over rows, each column with its length before it.
pub(super) fn digest<'r>(rows: impl Iterator<Item = &'r Vec<String>>) -> Digest {
    let mut bytes = Vec::new();
    for row in rows {
        bytes.extend_from_slice(&row.len().to_be_bytes());
        for column in row {
            bytes.extend_from_slice(&column.len().to_be_bytes());
            bytes.extend_from_slice(column.as_bytes());
        }
    }
    Digest::of(&bytes)
}

/// A position as the compact form keeps it; sets are bounded far below 2^32.
pub(super) fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_its_columns_back() {
        let columns = ["a", "group:x", "secret/**", "read", "any", "-", "-", "deny"];
        let row = Row::new(columns, 7, Subject::Group(0)).unwrap();
        assert_eq!(row.columns(), columns);
        assert_eq!((row.id(), row.obj(), row.eft(), row.allow), ("a", "secret/**", "deny", false));
        assert_eq!(row.meaning(), ",group:x,secret/**,read,any,-,-,deny,");
        let long = "x".repeat(70_000);
        let columns = ["a", &long, "b", "read", "any", "-", "-", "deny"];
        assert!(Row::new(columns, 7, Subject::Pattern).is_none());
    }
}
