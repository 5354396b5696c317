//! What is printed: text for people, JSON lines for machines; never a control character of others.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::fault::Fault;

/// Where output goes and in which form.
#[derive(Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// `json`: one JSON object a line.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether machines read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Text for people, also with `--json` (completions, help).
    pub fn text(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes());
        if !text.ends_with('\n') {
            let _ = out.write_all(b"\n");
        }
    }

    /// One result: `text` for people or `value` for machines.
    pub fn result(&self, text: &str, value: &Value) {
        if self.json {
            self.text(&value.to_string());
        } else {
            self.text(&printable(text));
        }
    }

    /// Raw bytes to standard output. A terminal gets them only when `show` is given.
    ///
    /// # Errors
    /// When a terminal would show a secret unasked, or nobody reads.
    pub fn secret(&self, bytes: &[u8], show: bool) -> Result<(), Fault> {
        let mut out = std::io::stdout().lock();
        if out.is_terminal() && !show {
            return Err(Fault::usage("standard output is a terminal: the secret would be shown")
                .hint("redirect it, pipe it, or add `--show`"));
        }
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|error| Fault::failed("can't write the value").cause(error.to_string()))
    }

    /// Tells a failure and gives its exit code.
    pub fn fault(&self, fault: &Fault) -> ExitCode {
        let mut err = std::io::stderr().lock();
        if self.json {
            let value = json!({
                "error": fault.error, "cause": fault.cause, "hint": fault.hint,
                "request": fault.request, "exit": fault.exit,
            });
            let _ = writeln!(err, "{value}");
        } else {
            let _ = writeln!(err, "error: {}", printable(&fault.error));
            let lines =
                [("cause", &fault.cause), ("hint", &fault.hint), ("request", &fault.request)];
            for (name, text) in lines {
                if let Some(text) = text {
                    let _ = writeln!(err, "{name}: {}", printable(text));
                }
            }
        }
        ExitCode::from(fault.exit)
    }
}

/// The text without what could move a terminal's cursor or change its colours.
pub fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        '\n' | '\t' => c,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(plain).collect()
}

/// Columns under each other, two spaces apart.
pub fn table(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            let pad = width(column).unwrap_or(0).saturating_sub(cell.chars().count()) + 2;
            line.push_str(&" ".repeat(pad));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_does_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\r\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "b".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), "a    b\nccc  d\n");
    }
}
