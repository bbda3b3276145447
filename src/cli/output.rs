//! Results on stdout, errors on stderr, or one JSON document.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;
use serde_json::json;

use super::{
    arguments::{Color, Global},
    progress,
};
use crate::{
    operation::{Error, exit},
    report,
};

/// Where and how results are written.
pub(super) struct Output {
    json: bool,
    quiet: bool,
    color: bool,
    color_err: bool,
    /// Why a result could not be written.
    lost: Mutex<Option<io::Error>>,
}

/// Is colour wanted on a stream that is, or is not, a terminal?
pub(super) fn wants_color(when: Color, terminal: bool) -> bool {
    match when {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

/// How a word is painted.
#[derive(Clone, Copy)]
pub(super) enum Paint {
    Good,
    Warn,
    Bad,
    Bold,
}

impl Paint {
    fn code(self) -> &'static str {
        match self {
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31",
            Paint::Bold => "1",
        }
    }
}

impl Output {
    pub(super) fn new(global: &Global) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
            color: wants_color(global.color, io::stdout().is_terminal()),
            color_err: wants_color(global.color, io::stderr().is_terminal()),
            lost: Mutex::default(),
        }
    }

    /// For failures before there are arguments.
    pub(super) fn json() -> Self {
        Self { json: true, quiet: false, color: false, color_err: false, lost: Mutex::default() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A painted word, for stdout.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        painted(self.color, paint, text)
    }

    /// Prints a result: as JSON, or as the text that `text` makes. Names from data cannot steer a terminal.
    pub(super) fn result<T: Serialize>(&self, result: &T, text: impl FnOnce() -> String) {
        if self.json {
            // A report holds text, numbers and lists only: it can always be written.
            let document = serde_json::to_string_pretty(result)
                .unwrap_or_else(|error| json!({"error": error.to_string()}).to_string());
            self.print(&document);
        } else {
            self.print(&text());
        }
    }

    /// Prints on stdout; [`Output::lost`] tells if that failed.
    pub(super) fn print(&self, text: &str) {
        let mut out = io::stdout().lock();
        if let Err(error) = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// The exit code of a command that ended with `code`: a failure where its result could not be written. A reader that has
    /// gone away is no failure, unless the result is `precious`.
    pub(super) fn ended(&self, code: u8, precious: bool) -> u8 {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).take();
        match lost {
            Some(error) if precious || error.kind() != io::ErrorKind::BrokenPipe => {
                eprintln!("{} the result could not be written: {error}", painted(self.color_err, Paint::Bad, "error:"));
                if code == exit::DONE { exit::FAILED } else { code }
            }
            _ => code,
        }
    }

    /// Says something on stderr that is neither result nor log.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            progress::aside(|| eprintln!("{}", report::printable(text.trim_end())));
        }
    }

    /// Reports a failure; the value is the exit code.
    pub(super) fn failed(&self, error: &Error) -> u8 {
        let hint = error.hint();
        if self.json {
            let document = json!({"error": {"kind": error.kind(), "message": error.to_string(), "hint": hint}});
            self.print(&serde_json::to_string_pretty(&document).unwrap_or_default());
        }
        progress::aside(|| {
            let message = report::printable(&error.to_string());
            eprintln!("{} {message}", painted(self.color_err, Paint::Bad, "error:"));
            if let Some(hint) = &hint {
                eprintln!("{} {}", painted(self.color_err, Paint::Bold, "hint:"), report::printable(hint));
            }
        });
        error.exit_code()
    }
}

fn painted(color: bool, paint: Paint, text: &str) -> String {
    if color { format!("\x1b[{}m{text}\x1b[0m", paint.code()) } else { text.to_owned() }
}

/// Columns as wide as their widest cell; cells of `right` columns are set to the right.
pub(super) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| report::printable(&cell.replace('\n', "\\n"))).collect()).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            if right.contains(&column) {
                line.push_str(&format!("{pad}{cell}  "));
            } else {
                line.push_str(&format!("{cell}{pad}  "));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let rows = [vec!["name".into(), "rows".into()], vec!["a\x1b".into(), "12".into()]];
        assert_eq!(table(&rows, &[1]), "name     rows\na\\u{1b}    12\n");
    }
}
