//! A fault in a file that a person wrote: what, where, and how to mend it.

use std::fmt::Write as _;

use serde::Serialize;

/// One fault. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file's name as the user knows it.
    pub file: String,
    /// Line.
    pub line: usize,
    /// Column of the first character that is wrong.
    pub column: usize,
    /// How many characters are wrong; at least 1.
    pub length: usize,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The text of that line, control characters made visible.
    pub source: String,
}

impl Diagnostic {
    /// A fault in `text` at the byte range `at..at + bytes`.
    pub fn at(file: &str, text: &str, at: usize, bytes: usize, message: impl Into<String>) -> Self {
        let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let (before, after) = text.split_at(at);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = after.find('\n').map_or(text.len(), |newline| at + newline);
        let line = text.get(start..end).unwrap_or("").trim_end_matches('\r');
        let wrong = after.get(..bytes.min(after.len())).map_or(1, |part| part.chars().count());
        let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(start..).unwrap_or("").chars().count() + 1,
            length: wrong.clamp(1, line.chars().count().max(1)),
            message: message.into(),
            help: None,
            source: line.chars().take(200).map(visible).collect(),
        }
    }

    /// The same fault with a remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The compiler's picture: place, line and caret.
    pub fn render(&self) -> String {
        self.render_as("error")
    }

    /// The same of something that is no fault, under another word.
    pub fn render_as(&self, word: &str) -> String {
        let mut out = format!("{word}: {}\n", self.message);
        let number = self.line.to_string();
        let pad = " ".repeat(number.len());
        let _ = writeln!(out, "{pad}--> {}:{}:{}", self.file, self.line, self.column);
        // A caret under nothing shows nothing: the fault is of the whole file, or of what lacks.
        if !self.source.is_empty() {
            let before = " ".repeat(self.column.saturating_sub(1).min(200));
            let carets = "^".repeat(self.length.min(200));
            let _ = writeln!(out, "{pad} |\n{number} | {}\n{pad} | {before}{carets}", self.source);
        }
        if let Some(help) = &self.help {
            let _ = writeln!(out, "{pad} = help: {help}");
        }
        out
    }
}

/// The nearest of the known words, if one is near enough to be what was meant.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.chars().count() > 64 {
        return None;
    }
    let near = |candidate: &str| {
        candidate.chars().count() <= 64 && distance(word, candidate) <= 1 + word.chars().count() / 4
    };
    known.into_iter().filter(|c| near(c)).min_by_key(|c| distance(word, c))
}

fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for ((y, diagonal), above) in b.iter().zip(row.iter()).zip(row.iter().skip(1)) {
            let change = diagonal + usize::from(x != *y);
            left = change.min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_fault() {
        let text = "first\np, a, Deny\nlast\n";
        let fault = Diagnostic::at("policy.csv", text, 12, 4, "no such effect")
            .help("did you mean `deny`?");
        assert_eq!((fault.line, fault.column, fault.length), (2, 7, 4));
        assert_eq!(
            fault.render(),
            "error: no such effect\n --> policy.csv:2:7\n  |\n2 | p, a, Deny\n  |       ^^^^\n  = help: did you mean `deny`?\n"
        );
    }

    #[test]
    fn where_there_is_no_text_there_is_no_caret() {
        let fault = Diagnostic::at("policy.csv", "", 0, 0, "the bundle has no such file");
        let said = "error: the bundle has no such file\n --> policy.csv:1:1\n";
        assert_eq!(fault.clone().render(), said);
        assert_eq!(fault.help("add it").render(), format!("{said}  = help: add it\n"));
    }

    #[test]
    fn any_place_in_any_text_is_safe() {
        for text in ["", "é", "a\u{0}b\r\n", "\n\n"] {
            for at in 0..6 {
                Diagnostic::at("f", text, at, 3, "x").render();
            }
        }
    }

    #[test]
    fn near_words_are_found() {
        assert_eq!(did_you_mean("raed", ["read", "write"]), Some("read"));
        assert_eq!(did_you_mean("zzz", ["read", "write"]), None);
    }
}
