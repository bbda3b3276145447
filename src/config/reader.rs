//! Reads the tables of a TOML document key by key, and keeps every problem with its place.
//!
//! A getter that finds a problem reports it and answers `None`, so that reading goes on; whoever reads a document must ask
//! [`Document::finish`] before using what was read.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Place};
use super::keys;

/// The text with its name, and what was found wrong with it.
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    problems: RefCell<Vec<ConfigError>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, problems: RefCell::default() }
    }

    pub(super) fn place(&self, offset: Option<usize>, key: String) -> Box<Place> {
        let position = offset.and_then(|offset| self.text.get(..offset)).map(|before| {
            let line = before.rfind('\n').map_or(0, |at| at + 1);
            (before.matches('\n').count() + 1, before.get(line..).map_or(0, |l| l.chars().count()) + 1)
        });
        Box::new(Place { file: Some(self.path.to_owned()), position, key })
    }

    pub(super) fn report(&self, problem: ConfigError) {
        self.problems.borrow_mut().push(problem);
    }

    /// The problems in the order of the file, or `Ok` where there is none.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(ConfigError::position);
        if problems.len() > 1 {
            return Err(ConfigError::Several(problems));
        }
        problems.pop().map_or(Ok(()), Err)
    }

    /// The folder that relative paths start from.
    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

/// One table; a table that is not there reads as an empty one.
pub(super) struct Section<'a> {
    doc: &'a Document<'a>,
    /// Its path in messages: `source[0]`.
    path: String,
    /// Its path in the list of keys: `source`.
    schema: String,
    table: Option<&'a DeTable<'a>>,
    offset: Option<usize>,
    /// Something else than a table is there.
    wrong: bool,
}

impl<'a> Section<'a> {
    pub(super) fn root(doc: &'a Document<'a>, table: &'a DeTable<'a>) -> Self {
        let section =
            Self { doc, path: String::new(), schema: String::new(), table: Some(table), offset: None, wrong: false };
        section.check_keys();
        section
    }

    /// Reports what is not known here, and what is known but cannot be served.
    pub(super) fn check_keys(&self) {
        let known = keys::children(&self.schema);
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let at = self.doc.place(Some(key.span().start), keys::join(&self.path, name));
            self.doc.report(match keys::planned(&keys::join(&self.schema, name)) {
                Some(what) => ConfigError::NotSupported { at, what: what.to_owned() },
                None => ConfigError::UnknownKey { at, nearest: keys::nearest(&self.schema, name) },
            });
        }
    }

    /// The same for a source, whose keys depend on its kind.
    pub(super) fn check_keys_of(&self, kind: &str) {
        self.check_keys();
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            let at = || self.doc.place(Some(key.span().start), keys::join(&self.path, name));
            match keys::of_other_kinds(kind, name) {
                None => {}
                Some(_) if matches!(name, "tls" | "ca_file") => {
                    let what = format!("TLS to a source of kind `{kind}` is not supported by this version");
                    self.doc.report(ConfigError::NotSupported { at: at(), what });
                }
                Some(others) => {
                    let others = others.join("` or `");
                    let problem = format!("is a key of sources of kind `{others}`, this one is of kind `{kind}`");
                    self.doc.report(ConfigError::BadValue { at: at(), problem, hint: Some("remove it".to_owned()) });
                }
            }
        }
    }

    fn value(&self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(keys::children(&self.schema).contains(&name), "{name} is not in the list of keys");
        self.table?.get(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Where the key's value is, or the table that lacks it.
    pub(super) fn at(&self, name: &str) -> Box<Place> {
        let offset = self.value(name).map(|value| value.span().start).or(self.offset);
        self.doc.place(offset, keys::join(&self.path, name))
    }

    pub(super) fn report(&self, problem: ConfigError) {
        self.doc.report(problem);
    }

    pub(super) fn bad(&self, name: &str, problem: impl Into<String>, hint: Option<String>) {
        self.report(ConfigError::BadValue { at: self.at(name), problem: problem.into(), hint });
    }

    fn wrong_type(&self, name: &str, expected: impl Into<String>, value: &DeValue<'_>) {
        self.report(ConfigError::WrongType { at: self.at(name), expected: expected.into(), found: value.type_str() });
    }

    /// A table within this one.
    pub(super) fn section(&self, name: &str) -> Section<'a> {
        let value = self.value(name);
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            self.wrong_type(name, "a table", value.get_ref());
        }
        let section = Section {
            doc: self.doc,
            path: keys::join(&self.path, name),
            schema: keys::join(&self.schema, name),
            table,
            offset: value.map(|value| value.span().start),
            wrong: value.is_some() && table.is_none(),
        };
        section.check_keys();
        section
    }

    /// The tables of a list; their keys are not checked yet, for they may depend on a kind.
    pub(super) fn sections(&self, name: &str) -> Vec<Section<'a>> {
        let Some(value) = self.value(name) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(name, "a list of tables", value.get_ref());
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in list.iter().enumerate() {
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section {
                    doc: self.doc,
                    path: format!("{}[{index}]", keys::join(&self.path, name)),
                    schema: keys::join(&self.schema, name),
                    table: Some(table),
                    offset: Some(item.span().start),
                    wrong: false,
                }),
                None => self.wrong_type(name, "a list of tables", item.get_ref()),
            }
        }
        sections
    }

    /// Text that is not empty.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        let value = self.value(name)?.get_ref();
        match value.as_str() {
            None => self.wrong_type(name, "a string", value),
            Some("") => self.bad(name, "is empty", None),
            Some(text) if text.contains('\0') => self.bad(name, "holds a zero byte", None),
            Some(text) => return Some(text),
        }
        None
    }

    /// Text that must be there.
    pub(super) fn required_text(&self, name: &str) -> Option<&'a str> {
        // A table of another type was reported as that; what it lacks is no second problem.
        if !self.has(name) && !self.wrong {
            self.report(ConfigError::Missing { at: self.at(name) });
        }
        self.text(name)
    }

    pub(super) fn texts(&self, name: &str) -> Option<Vec<&'a str>> {
        let value = self.value(name)?.get_ref();
        let texts = value.as_array().and_then(|list| list.iter().map(|item| item.get_ref().as_str()).collect());
        if texts.is_none() {
            let found = value.as_array().and_then(|list| list.iter().find(|item| !item.get_ref().is_str()));
            self.wrong_type(name, "a list of strings", found.map_or(value, |item| item.get_ref()));
        }
        texts
    }

    pub(super) fn boolean(&self, name: &str) -> Option<bool> {
        let value = self.value(name)?.get_ref();
        let answer = value.as_bool();
        if answer.is_none() {
            self.wrong_type(name, "true or false", value);
        }
        answer
    }

    pub(super) fn integer<T: TryFrom<i64> + std::fmt::Display + PartialOrd>(
        &self,
        name: &str,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let value = self.value(name)?.get_ref();
        let Some(integer) = value.as_integer() else {
            self.wrong_type(name, "an integer", value);
            return None;
        };
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|n| T::try_from(n).ok());
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                self.bad(name, format!("must be from {} to {}", range.start(), range.end()), None);
                None
            }
        }
    }

    /// A span of time such as `72h` or `30s`; `words` names the range.
    pub(super) fn duration(&self, name: &str, range: RangeInclusive<Duration>, words: &str) -> Option<Duration> {
        let value = self.value(name)?.get_ref();
        let Some(text) = value.as_str() else {
            self.wrong_type(name, "a time such as \"72h\" or \"30s\"", value);
            return None;
        };
        let duration = (text.len() <= 64)
            .then(|| text.parse::<jiff::Span>().ok())
            .flatten()
            .and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok())
            .and_then(|duration| Duration::try_from(duration).ok());
        match duration {
            Some(duration) if range.contains(&duration) => return Some(duration),
            Some(_) => self.bad(name, format!("must be from {words}"), None),
            None => self.bad(name, "is not a span of time", Some("write it as \"72h\", \"3d\" or \"30s\"".to_owned())),
        }
        None
    }

    /// A path; a relative one starts at the configuration file's folder.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        let text = self.text(name)?;
        // Paths are repeated in messages.
        if text.to_ascii_uppercase().contains("AGE-SECRET-KEY-") {
            let hint = "put it into a file of its own, mode 0600, and write that file's path here".to_owned();
            self.bad(name, "is a secret; here belongs the path of a file that holds it", Some(hint));
            return None;
        }
        Some(self.doc.folder().join(text))
    }
}
