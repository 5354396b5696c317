//! `policy.csv` into a [`RuleSet`]: all of it, or every reason why not.
//!
//! A policy that fails anything is no policy. Lines are split by `lines`, columns are judged by
//! `values`, and what only the whole file can tell (ids, groups, repetitions) is judged here.

use std::collections::{HashMap, HashSet};

use crate::model::limits::{GROUP_DEPTH_MAX, POLICY_ROWS_MAX};
use crate::model::{Diagnostic, did_you_mean};

use super::lines::{Faults, Field, Line, split};
use super::rows::{COLUMNS, Membership, Remark, Row, RuleSet, Subject, position};
use super::values::{self, Flaw, GROUP};

/// The file's name in messages.
pub(super) const FILE: &str = "policy.csv";
/// What a `#@` line may say; a word that we don't act on must not look as if we did.
const REMARKS: &[&str] = &["owner", "ticket", "review", "reason"];

type Remarks = Vec<Remark>;

/// Reads a whole `policy.csv`; `profiles` are the names that `posture.toml` defines.
///
/// # Errors
/// Every fault, up to the bound, in file order.
pub(super) fn parse(text: &str, profiles: &[String]) -> Result<RuleSet, Vec<Diagnostic>> {
    read(text, Some(profiles))
}

/// The faults of a `policy.csv` whose `posture.toml` is faulty too, so that nobody knows which
/// profiles there are; those that it names are passed over.
pub(super) fn faults(text: &str) -> Vec<Diagnostic> {
    read(text, None).err().unwrap_or_default()
}

fn read(text: &str, profiles: Option<&[String]>) -> Result<RuleSet, Vec<Diagnostic>> {
    let mut reading = Reading {
        faults: Faults::new(FILE, text),
        profiles,
        rows: Vec::new(),
        members: Vec::new(),
        remarks: Vec::new(),
        remarks_at: 0,
    };
    let lines = split(text, &mut reading.faults);
    if lines.len() > POLICY_ROWS_MAX {
        reading.faults.add(0, 1, format!("the policy has over {POLICY_ROWS_MAX} rows"));
        return Err(reading.faults.into_list());
    }
    for line in lines {
        match line {
            Line::Remark(remark, at) => reading.remark(remark, at),
            Line::Row(number, fields) => reading.row(number, &fields),
        }
    }
    if !reading.remarks.is_empty() {
        let at = reading.remarks_at;
        reading.faults.add_with(at, 2, "a remark without a row", "put it above the row it is of");
    }
    reading.finish()
}

/// A `p` row whose columns are sound, with the places that set checks point at.
struct Drawn<'t> {
    columns: [Field<'t>; COLUMNS],
    line: u32,
    remarks: Remarks,
}

struct Reading<'t> {
    faults: Faults<'t>,
    profiles: Option<&'t [String]>,
    rows: Vec<Drawn<'t>>,
    members: Vec<(Field<'t>, Field<'t>)>,
    remarks: Remarks,
    remarks_at: usize,
}

impl<'t> Reading<'t> {
    fn remark(&mut self, text: &'t str, at: usize) {
        self.remarks_at = at.saturating_sub(2);
        let mut found = false;
        for part in text.split(' ').filter(|part| !part.is_empty()) {
            found = true;
            let shift = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if !REMARKS.contains(&key) {
                let near = did_you_mean(key, REMARKS.iter().copied()).unwrap_or("owner");
                let message = format!("no remark is called `{key}`");
                let help = format!("remarks are {}; `{near}`?", REMARKS.join(", "));
                self.faults.add_with(at + shift, key.len().max(1), message, help);
            } else if value.is_empty() {
                self.faults.add(at + shift, part.len(), "a remark is written `key=value`");
            } else if self.remarks.iter().any(|(known, _)| &**known == key) {
                self.faults.add(at + shift, part.len(), format!("`{key}` stands twice"));
            } else {
                self.remarks.push((key.into(), value.into()));
            }
        }
        if !found {
            self.faults.add(self.remarks_at, 2, "an empty remark");
        }
    }

    fn row(&mut self, line: u32, fields: &[Field<'t>]) {
        let remarks = std::mem::take(&mut self.remarks);
        let Some((kind, columns)) = fields.split_first() else {
            return;
        };
        let count = columns.len();
        match &*kind.text {
            "p" => match <&[Field<'t>; COLUMNS]>::try_from(columns) {
                Ok(columns) => self.rule(line, columns, remarks),
                Err(_) => {
                    let help = "id, subject, object, action, posture, begin, end, effect";
                    let message = format!("a `p` row has {COLUMNS} fields after `p`, not {count}");
                    self.faults.add_with(kind.at, kind.bytes, message, help);
                }
            },
            "g" => match columns {
                [member, group] => self.membership(member, group),
                _ => {
                    let message = format!("a `g` row has 2 fields after `g`, not {count}");
                    self.faults.add_with(kind.at, kind.bytes, message, "member, group:name");
                }
            },
            other => {
                let message = format!("`{other}` is no kind of row");
                let help = "rows begin with `p` (a rule) or `g` (a membership), in lower case";
                self.faults.add_with(kind.at, kind.bytes, message, help);
            }
        }
    }

    fn rule(&mut self, line: u32, columns: &[Field<'t>; COLUMNS], remarks: Remarks) {
        let [id, sub, obj, act, post, nbf, exp, eft] = columns;
        let mut sound = true;
        sound &= self.check(id, values::id(&id.text));
        sound &= self.check(sub, values::subject(&sub.text));
        sound &= self.check(obj, values::object(&obj.text));
        sound &= self.check(act, values::action(&act.text));
        sound &= self.check(post, values::profile(&post.text, self.profiles));
        let times =
            self.check(nbf, values::time(&nbf.text)) & self.check(exp, values::time(&exp.text));
        sound &= times && self.check(nbf, values::window(&nbf.text, &exp.text));
        sound &= self.check(eft, values::effect(&eft.text));
        if sound {
            self.rows.push(Drawn { columns: columns.clone(), line, remarks });
        }
    }

    fn membership(&mut self, member: &Field<'t>, group: &Field<'t>) {
        let sound = self.check(member, values::subject(&member.text))
            & self.check(group, values::group(&group.text));
        if sound {
            self.members.push((member.clone(), group.clone()));
        }
    }

    /// Notes what is wrong with a field, if anything is.
    fn check(&mut self, field: &Field<'t>, found: Result<(), Flaw>) -> bool {
        let Err(flaw) = found else {
            return true;
        };
        let at = flaw.at.min(field.bytes.saturating_sub(1));
        let left = field.bytes.saturating_sub(at).max(1);
        let bytes = if flaw.bytes == 0 { left } else { flaw.bytes.min(left) };
        match flaw.help {
            Some(help) => self.faults.add_with(field.at + at, bytes, flaw.message, help),
            None => self.faults.add(field.at + at, bytes, flaw.message),
        }
        false
    }

    /// Checks what only the whole can tell, and seals the set.
    fn finish(mut self) -> Result<RuleSet, Vec<Diagnostic>> {
        let groups = self.groups();
        let members = self.resolve_members(&groups);
        self.check_nesting(&groups.names, &members);
        let rows = self.resolve_rows(&groups);
        if rows.is_empty() && self.faults.is_empty() {
            let help = "an empty policy denies everything, its mending included";
            self.faults.add_with(0, 1, "the policy has no rule", help);
        }
        match self.faults.is_empty() {
            true => Ok(RuleSet::new(rows, groups.names, members)),
            false => Err(self.faults.into_list()),
        }
    }

    fn groups(&self) -> Groups {
        let mut groups = Groups::default();
        for (_, group) in &self.members {
            if !groups.by_name.contains_key(&*group.text) {
                groups.by_name.insert((&*group.text).into(), position(groups.names.len()));
                groups.names.push((&*group.text).into());
            }
        }
        groups
    }

    fn subject(&mut self, field: &Field<'t>, groups: &Groups) -> Option<Subject> {
        if !field.text.starts_with(GROUP) {
            return Some(Subject::Pattern);
        }
        if let Some(at) = groups.by_name.get(&*field.text) {
            return Some(Subject::Group(*at));
        }
        let near = did_you_mean(&field.text, groups.names.iter().map(|name| &**name));
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("give it one: `g, spiffe://…, {}`", field.text),
        };
        let message = format!("`{}` has no member", field.text);
        self.faults.add_with(field.at, field.bytes, message, help);
        None
    }

    fn resolve_members(&mut self, groups: &Groups) -> Vec<Membership> {
        let mut seen = HashSet::new();
        let mut out = Vec::with_capacity(self.members.len());
        for (member, group) in std::mem::take(&mut self.members) {
            let at = groups.by_name.get(&*group.text).copied();
            let (Some(subject), Some(at)) = (self.subject(&member, groups), at) else {
                continue;
            };
            if !seen.insert((member.text.to_string(), at)) {
                self.faults.add(member.at, member.bytes, "this membership stands twice");
            }
            out.push(Membership { member: (&*member.text).into(), subject, group: at });
        }
        out
    }

    fn resolve_rows(&mut self, groups: &Groups) -> Vec<Row> {
        let mut ids: HashMap<Box<str>, u32> = HashMap::new();
        let mut meanings: HashMap<Box<str>, u32> = HashMap::new();
        let mut out = Vec::with_capacity(self.rows.len());
        for drawn in std::mem::take(&mut self.rows) {
            let [id, sub, ..] = &drawn.columns;
            let Some(subject) = self.subject(sub, groups) else {
                continue;
            };
            let texts = std::array::from_fn(|at| drawn.columns.get(at).map_or("", |f| &*f.text));
            let Some(mut row) = Row::new(texts, drawn.line, subject) else {
                self.faults.add(id.at, id.bytes, "the row is too long");
                continue;
            };
            if let Some(line) = ids.insert(row.id().into(), row.line) {
                let message = format!("the id `{}` stands on line {line} already", row.id());
                self.faults.add_with(id.at, id.bytes, message, "give each row its own id");
            } else if let Some(line) = meanings.insert(row.meaning().into(), row.line) {
                let message = format!("this row says the same as line {line}");
                self.faults.add_with(id.at, id.bytes, message, "remove one of them");
            }
            if !drawn.remarks.is_empty() {
                row.remarks = Some(drawn.remarks.into());
            }
            out.push(row);
        }
        out
    }

    /// Refuses circles of groups, and groups in groups beyond the bound. Works inwards from the
    /// groups without groups; what is never reached stands in a circle or above one.
    fn check_nesting(&mut self, names: &[Box<str>], members: &[Membership]) {
        let mut inner = vec![0_usize; names.len()];
        let mut outer: HashMap<u32, Vec<u32>> = HashMap::new();
        for membership in members {
            if let Subject::Group(member) = membership.subject {
                outer.entry(member).or_default().push(membership.group);
                if let Some(count) =
                    usize::try_from(membership.group).ok().and_then(|g| inner.get_mut(g))
                {
                    *count += 1;
                }
            }
        }
        let free = |(at, count): (usize, &usize)| (*count == 0).then(|| position(at));
        let mut ready: Vec<u32> = inner.iter().enumerate().filter_map(free).collect();
        let mut depth: HashMap<u32, usize> = HashMap::new();
        let mut reached = 0;
        while let Some(group) = ready.pop() {
            reached += 1;
            let below = depth.get(&group).copied().unwrap_or(1);
            for above in outer.get(&group).into_iter().flatten() {
                let deepest = depth.entry(*above).or_insert(1);
                *deepest = (*deepest).max(below + 1);
                let Some(count) = usize::try_from(*above).ok().and_then(|g| inner.get_mut(g))
                else {
                    continue;
                };
                *count -= 1;
                if *count == 0 {
                    ready.push(*above);
                }
            }
        }
        let name = |at: u32| usize::try_from(at).ok().and_then(|at| names.get(at));
        if reached < names.len() {
            let circle = inner.iter().position(|count| *count > 0).map(position);
            let circle = circle.map(|from| walk_circle(from, members, &inner)).unwrap_or_default();
            let words: Vec<&str> = circle.iter().filter_map(|at| name(*at)).map(|n| &**n).collect();
            self.faults.add_with(
                0,
                1,
                format!("groups in a circle: {}", words.join(" > ")),
                "cut it",
            );
        }
        if let Some((group, deep)) = depth.iter().find(|(_, deep)| **deep > GROUP_DEPTH_MAX) {
            let word = name(*group).map_or("", |name| name);
            let message =
                format!("`{word}` holds groups {deep} deep; the limit is {GROUP_DEPTH_MAX}");
            self.faults.add_with(0, 1, message, "make the tree of groups flatter");
        }
    }
}

#[derive(Default)]
struct Groups {
    names: Vec<Box<str>>,
    by_name: HashMap<Box<str>, u32>,
}

/// Follows memberships inwards among groups that were never reached, until one comes again.
fn walk_circle(from: u32, members: &[Membership], inner: &[usize]) -> Vec<u32> {
    let stuck =
        |group: u32| usize::try_from(group).ok().and_then(|g| inner.get(g)).is_some_and(|c| *c > 0);
    let mut path = vec![from];
    loop {
        let last = path.last().copied().unwrap_or(from);
        let next = members.iter().find_map(|m| match m.subject {
            Subject::Group(member) if m.group == last && stuck(member) => Some(member),
            _ => None,
        });
        let Some(next) = next else {
            return path;
        };
        if let Some(start) = path.iter().position(|seen| *seen == next) {
            path.drain(..start);
            path.push(next);
            return path;
        }
        path.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "p, a, spiffe://corp.example/ns/pay/sa/api, secret/pay/**, read, managed, -, -, allow\n";

    fn faults_of(text: &str) -> Vec<String> {
        let show = |f: &Diagnostic| format!("{}:{} {}", f.line, f.column, f.message);
        match parse(text, &["managed".to_owned()]) {
            Ok(_) => Vec::new(),
            Err(list) => list.iter().map(show).collect(),
        }
    }

    #[test]
    fn a_sound_policy_is_read_whole() {
        let text = format!(
            "# who\n#@ owner=payments ticket=SEC-412\n{GOOD}\
             p, b, group:ops, policy, *, any, 2026-01-01T00:00:00Z, -, allow\n\
             g, spiffe://corp.example/doorward/operator/*, group:ops\ng, group:ops, group:all\n"
        );
        let set = parse(&text, &["managed".to_owned()]).unwrap();
        assert_eq!((set.rows.len(), set.groups.len(), set.members.len()), (2, 2, 2));
        let row = set.row(0).unwrap();
        assert_eq!((row.id(), row.line), ("a", 3));
        assert_eq!(row.remarks.as_ref().unwrap().len(), 2);
        assert_eq!(set.row(1).unwrap().subject, Subject::Group(0));
    }

    #[test]
    fn every_fault_of_a_file_is_told_at_once() {
        let text =
            "p, A, alice, secrets/x, raed, manged, later, -, Deny\nP, x\np2, x\np, a\ng, x\n";
        let found = faults_of(text);
        assert_eq!(found.len(), 11, "{found:#?}");
        assert!(
            found.iter().any(|f| f == "1:49 `Deny` is no effect; effects are `allow` and `deny`")
        );
        assert!(found.iter().any(|f| f == "2:1 `P` is no kind of row"), "{found:#?}");
    }

    #[test]
    fn what_only_the_whole_file_can_tell() {
        assert_eq!(faults_of(GOOD), [""; 0]);
        for (tail, want) in [
            (GOOD, "2:4 the id `a` stands on line 1 already"),
            (&GOOD.replace("a, s", "b, s"), "2:4 this row says the same as line 1"),
            ("p, b, group:ops, policy, *, any, -, -, allow\n", "2:7 `group:ops` has no member"),
            ("g, group:x, group:y\n", "2:4 `group:x` has no member"),
            ("#@ owner=x\n", "2:1 a remark without a row"),
            (
                "#@ mode=report\np, b, group:ops, policy, *, any, -, -, allow\n",
                "2:4 no remark is called `mode`",
            ),
            (
                "g, spiffe://a/x, group:y\ng, spiffe://a/x, group:y\n",
                "3:4 this membership stands twice",
            ),
            ("g, spiffe://a/x, group:y, expired\n", "2:1 a `g` row has 2 fields after `g`, not 3"),
            ("g2, spiffe://a/x, group:y\n", "2:1 `g2` is no kind of row"),
        ] {
            let found = faults_of(&format!("{GOOD}{tail}"));
            assert_eq!(found.first().map(String::as_str), Some(want), "{tail}");
        }
        assert_eq!(faults_of("# nothing\n"), ["1:1 the policy has no rule"]);
        assert_eq!(faults_of(""), ["1:1 the policy has no rule"]);
    }

    #[test]
    fn groups_in_a_circle_and_too_deep_are_refused() {
        let circle = "g, group:a, group:b\ng, group:b, group:c\ng, group:c, group:a\n";
        let found = faults_of(&format!("{GOOD}{circle}"));
        assert!(found.first().unwrap().contains("groups in a circle: group:"), "{found:?}");
        assert!(!faults_of(&format!("{GOOD}g, group:a, group:a\n")).is_empty());
        let chain = |deep: usize| {
            let link = |n: usize| format!("g, group:l{}, group:l{n}\n", n - 1);
            let links: String = (2..=deep).map(link).collect();
            format!("{GOOD}g, spiffe://a/x, group:l1\n{links}")
        };
        assert_eq!(faults_of(&chain(GROUP_DEPTH_MAX)), [""; 0]);
        assert!(faults_of(&chain(GROUP_DEPTH_MAX + 1)).first().unwrap().contains("deep"));
        assert!(!faults_of(&chain(10)).is_empty(), "where the stock role manager fails silently");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_policy_or_refused(text in "([pg#@, \"a-z:/*.-]|\n){0,200}") {
            let _ = parse(&text, &[]);
        }
    }
}
