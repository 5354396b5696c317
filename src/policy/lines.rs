//! The first two layers of the strict loader: bytes, and rows as text.
//!
//! Stock CSV readers drop what they don't understand, and a dropped deny row opens a secret. Here
//! every byte of the file is either understood or a fault with its place. RFC 4180 quotes are
//! understood so that what is said about them is right.

use std::borrow::Cow;

use crate::model::Diagnostic;
use crate::model::limits::{BUNDLE_MAX, DIAGNOSTICS_MAX, POLICY_LINE_MAX};

/// The faults of one file, at most [`DIAGNOSTICS_MAX`].
#[derive(Debug)]
pub(super) struct Faults<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<Diagnostic>,
}

impl<'t> Faults<'t> {
    /// No faults yet.
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    /// Whether no more will be kept.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= DIAGNOSTICS_MAX
    }

    /// Notes a fault at a byte range of the file.
    pub(super) fn add(&mut self, at: usize, bytes: usize, message: impl Into<String>) {
        if !self.is_full() {
            self.found.push(Diagnostic::at(self.file, self.text, at, bytes, message));
        }
    }

    /// The same with a remedy.
    pub(super) fn add_with(
        &mut self,
        at: usize,
        bytes: usize,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        if !self.is_full() {
            let fault = Diagnostic::at(self.file, self.text, at, bytes, message);
            self.found.push(fault.help(help));
        }
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All of them, in order of their place.
    pub(super) fn into_list(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|fault| (fault.line, fault.column));
        self.found
    }
}

/// One column of a row.
#[derive(Debug, Clone)]
pub(super) struct Field<'t> {
    /// Its text, trimmed of spaces and out of its quotes.
    pub(super) text: Cow<'t, str>,
    /// Where it stands in the file, in bytes.
    pub(super) at: usize,
    /// Its length there, in bytes; at least 1.
    pub(super) bytes: usize,
}

/// One line that is neither empty nor a comment.
#[derive(Debug)]
pub(super) enum Line<'t> {
    /// `#@ key=value …`: the text after the `#@`, and its place.
    Remark(&'t str, usize),
    /// A row: its line number and its columns.
    Row(u32, Vec<Field<'t>>),
}

/// Splits a file into lines; a line with a fault is left out and its faults are noted.
pub(super) fn split<'t>(text: &'t str, faults: &mut Faults<'t>) -> Vec<Line<'t>> {
    let mut lines = Vec::new();
    if text.len() > BUNDLE_MAX {
        faults.add(0, 1, format!("the file is over {BUNDLE_MAX} bytes long"));
        return lines;
    }
    let mut at = 0;
    for (number, raw) in (1u32..).zip(text.split('\n')) {
        let here = at;
        at += raw.len() + 1;
        let line = raw.strip_suffix('\r').unwrap_or(raw);
        if faults.is_full() {
            break;
        }
        if !bytes_are_plain(line, here, faults) {
            continue;
        }
        let shift = line.len() - line.trim_start_matches(' ').len();
        let data = line.trim_matches(' ');
        if let Some(remark) = data.strip_prefix("#@") {
            lines.push(Line::Remark(remark, here + shift + 2));
        } else if !data.is_empty()
            && !data.starts_with('#')
            && let Some(fields) = fields(data, here + shift, faults)
        {
            lines.push(Line::Row(number, fields));
        }
    }
    lines
}

/// Checks the characters of one line. What can't be seen, or looks like something else, is a fault
/// even in a comment: a reviewer must read what the loader reads.
fn bytes_are_plain(line: &str, here: usize, faults: &mut Faults<'_>) -> bool {
    if line.len() > POLICY_LINE_MAX {
        faults.add(here, 1, format!("the line is over {POLICY_LINE_MAX} bytes long"));
        return false;
    }
    let Some((at, c, (message, help))) =
        line.char_indices().find_map(|(at, c)| oddity(c).map(|what| (at, c, what)))
    else {
        return true;
    };
    let message = format!("{message} (U+{:04X})", u32::from(c));
    faults.add_with(here + at, c.len_utf8(), message, help);
    false
}

fn oddity(c: char) -> Option<(&'static str, &'static str)> {
    match c {
        '\u{feff}' => Some(("a byte order mark", "save the file as UTF-8 without BOM")),
        '\r' => Some(("a carriage return inside a line", "end lines with a line feed")),
        '\t' => Some(("a tab", "write spaces")),
        c if c.is_control() => Some(("a control character", "remove it")),
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => {
            Some(("a space that is not the plain one", "write a plain space"))
        }
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => {
            Some(("an invisible character", "remove it"))
        }
        '\u{300}'..='\u{36f}' => {
            Some(("a combining mark: the text is not in form NFC", "write the composed letter"))
        }
        _ => None,
    }
}

/// Takes one row apart at its commas.
fn fields<'t>(data: &'t str, here: usize, faults: &mut Faults<'_>) -> Option<Vec<Field<'t>>> {
    if let Some((at, c)) = data.char_indices().find(|(_, c)| !c.is_ascii()) {
        let help = "names, ids and patterns are plain ASCII";
        faults.add_with(here + at, c.len_utf8(), format!("{c:?} in a row"), help);
        return None;
    }
    let mut fields = Vec::with_capacity(9);
    let mut rest = data;
    let mut at = here;
    loop {
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        let (field, used) = field(rest.get(spaces..)?, at + spaces, faults)?;
        fields.push(field);
        let used = spaces + used;
        match rest.get(used..)?.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
        at += used + 1;
    }
    let last = fields.len();
    let mut sound = true;
    for (number, field) in fields.iter().enumerate() {
        if field.text.is_empty() {
            sound = false;
            let ends_in_comma = number > 0 && number + 1 == last && field.bytes == 1;
            if ends_in_comma {
                let comma = field.at.saturating_sub(1);
                faults.add_with(comma, 1, "a comma at the end of a row", "remove it");
            } else {
                faults.add_with(field.at, 1, "an empty field", "write `-` for an open window");
            }
        }
    }
    sound.then_some(fields)
}

/// Reads one column, which begins at the start of `rest`, and says how many bytes it takes up to
/// the comma or the end.
fn field<'t>(rest: &'t str, at: usize, faults: &mut Faults<'_>) -> Option<(Field<'t>, usize)> {
    if rest.starts_with('"') {
        return quoted(rest, at, faults);
    }
    let used = rest.find(',').unwrap_or(rest.len());
    let text = rest.get(..used)?.trim_end_matches(' ');
    if let Some(hash) = text.find('#') {
        let help = "comments stand on a line of their own";
        faults.add_with(at + hash, 1, "`#` after data", help);
        return None;
    }
    if let Some(quote) = text.find('"') {
        faults.add(at + quote, 1, "a quote inside a field");
        return None;
    }
    Some((Field { text: Cow::Borrowed(text), at, bytes: text.len().max(1) }, used))
}

fn quoted<'t>(rest: &'t str, at: usize, faults: &mut Faults<'_>) -> Option<(Field<'t>, usize)> {
    let mut text = String::new();
    let mut inside = rest.char_indices().skip(1).peekable();
    let end = loop {
        match inside.next() {
            Some((_, '"')) if inside.peek().is_some_and(|(_, c)| *c == '"') => {
                text.push('"');
                inside.next();
            }
            Some((end, '"')) => break end + 1,
            Some((_, c)) => text.push(c),
            None => {
                faults.add(at, rest.len(), "a quote that is not closed on its line");
                return None;
            }
        }
    };
    let after = rest.get(end..)?;
    let gap = after.len() - after.trim_start_matches(' ').len();
    let tail = after.get(gap..)?;
    if !tail.is_empty() && !tail.starts_with(',') {
        faults.add(at + end + gap, 1, "text after a closing quote");
        return None;
    }
    Some((Field { text: Cow::Owned(text), at, bytes: end.max(1) }, end + gap))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(text: &str) -> Vec<String> {
        let mut faults = Faults::new("policy.csv", text);
        split(text, &mut faults);
        let place = |f: Diagnostic| format!("{}:{} {}", f.line, f.column, f.message);
        faults.into_list().into_iter().map(place).collect()
    }

    fn rows_of(text: &str) -> Vec<Vec<String>> {
        let mut faults = Faults::new("policy.csv", text);
        let lines = split(text, &mut faults);
        assert!(faults.is_empty(), "{text:?}: {:?}", faults.into_list());
        let row = |line: Line<'_>| match line {
            Line::Row(_, fields) => fields.iter().map(|f| f.text.to_string()).collect(),
            Line::Remark(text, _) => vec![text.to_owned()],
        };
        lines.into_iter().map(row).collect()
    }

    #[test]
    fn rows_comments_and_remarks_are_told_apart() {
        assert_eq!(
            rows_of("# caf\u{e9}, p, x\n\n #@ a=b\r\n p ,  a,b \r\ng,\"x\"\"y, z\" , c\n"),
            [vec![" a=b"], vec!["p", "a", "b"], vec!["g", "x\"y, z", "c"]]
        );
    }

    #[test]
    fn every_byte_is_understood_or_a_fault() {
        for (text, want) in [
            ("\u{feff}p, a", "1:1 a byte order mark (U+FEFF)"),
            ("p,\ta", "1:3 a tab (U+0009)"),
            ("p,\u{0}a", "1:3 a control character (U+0000)"),
            ("p, a\rb", "1:5 a carriage return inside a line (U+000D)"),
            ("p,\u{a0}a", "1:3 a space that is not the plain one (U+00A0)"),
            ("# \u{202e}x", "1:3 an invisible character (U+202E)"),
            ("# e\u{301}", "1:4 a combining mark: the text is not in form NFC (U+0301)"),
            ("p, s\u{e9}", "1:5 'é' in a row"),
            ("p, a,", "1:5 a comma at the end of a row"),
            ("p,, a", "1:3 an empty field"),
            ("\"\"", "1:1 an empty field"),
            ("p, \"\"", "1:4 an empty field"),
            ("p, a # x", "1:6 `#` after data"),
            ("p, \"a", "1:4 a quote that is not closed on its line"),
            ("p, \"a\" b", "1:8 text after a closing quote"),
            ("p, a\"b\"", "1:5 a quote inside a field"),
        ] {
            assert_eq!(faults_of(text), [want], "{text:?}");
        }
        let long = format!("# {}", "x".repeat(POLICY_LINE_MAX));
        assert_eq!(faults_of(&long).len(), 1);
    }

    #[test]
    fn all_faults_come_at_once_up_to_a_bound() {
        assert_eq!(faults_of("p,\ta\nfine, x\np, a,\n").len(), 2);
        assert_eq!(faults_of(&"p,\ta\n".repeat(500)).len(), DIAGNOSTICS_MAX);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_split_or_refused(text in "(.|\n){0,200}") {
            let mut faults = Faults::new("policy.csv", &text);
            split(&text, &mut faults);
            for fault in faults.into_list() {
                fault.render();
            }
        }
    }
}
