//! How a table's rows are stored, and the statements that read and load them.

use serde::{Deserialize, Serialize};

use super::{catalog::Relation, sql};
use crate::pipeline::{Format, Rows};

/// Read a table's rows from its first page to this one: there is no last page.
pub(super) const NO_PAGE: u32 = u32::MAX;

/// What the manifest notes of one table's rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TableDetail {
    pub(super) database: String,
    pub(super) schema: String,
    pub(super) table: String,
    /// Columns whose values the rows hold, in order; none where COPY names the table alone.
    pub(super) columns: Vec<String>,
    /// Is it an extension's configuration table? Then the extension has made it, with its keys and triggers, before its rows come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_configuration: bool,
    /// Of an extension's configuration table: which rows, `WHERE …`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) condition: String,
    /// The statement that loads the rows.
    pub(super) copy: String,
}

/// Rows of a format that COPY writes; `None` for what is none.
pub(super) fn rows(format: Format) -> Option<Rows> {
    match format {
        Format::CopyText => Some(Rows::Text),
        Format::CopyBinary => Some(Rows::Binary),
        Format::Sql | Format::Text | Format::Rdb | Format::JetStream => None,
    }
}

impl TableDetail {
    pub(super) fn new(database: &str, table: &Relation, format: Format, encoding: &str) -> Self {
        let mut detail = Self {
            database: database.to_owned(),
            schema: table.schema.clone(),
            table: table.name.clone(),
            columns: table.columns.clone(),
            is_configuration: table.is_configuration,
            condition: table.condition.clone(),
            copy: String::new(),
        };
        detail.copy =
            format!("COPY {}{} FROM STDIN {}", detail.name(), detail.column_list(), options(format, encoding));
        detail
    }

    fn name(&self) -> String {
        sql::qualified(&self.schema, &self.table)
    }

    fn columns(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|column| sql::ident(column)).collect();
        columns.join(", ")
    }

    fn column_list(&self) -> String {
        if self.columns.is_empty() { String::new() } else { format!(" ({})", self.columns()) }
    }

    /// The statement that reads all rows as they are stored.
    pub(super) fn copy_out(&self, format: Format, encoding: &str) -> String {
        let rows = match self.condition.as_str() {
            "" => format!("{}{}", self.name(), self.column_list()),
            condition => format!("(SELECT {} FROM ONLY {} {condition})", self.columns(), self.name()),
        };
        format!("COPY {rows} TO STDOUT {}", options(format, encoding))
    }

    /// The same, of the rows on pages `from..to` of the heap.
    pub(super) fn copy_pages_out(&self, from: u32, to: u32, format: Format, encoding: &str) -> String {
        let end = if to == NO_PAGE { String::new() } else { format!(" AND ctid < '({to},0)'::pg_catalog.tid") };
        format!(
            "COPY (SELECT {} FROM ONLY {} WHERE ctid >= '({from},0)'::pg_catalog.tid{end}) TO STDOUT {}",
            self.columns(),
            self.name(),
            options(format, encoding)
        )
    }
}

/// Text is in the database's own encoding, since UTF8 cannot say what an SQL_ASCII database holds. Binary has no option for it: its texts are
/// in the session's encoding, which is UTF8, and only databases of that one are read so.
fn options(format: Format, encoding: &str) -> String {
    match format {
        Format::CopyBinary => "WITH (FORMAT binary)".to_owned(),
        _ => format!("WITH (ENCODING {})", sql::literal(encoding)),
    }
}
