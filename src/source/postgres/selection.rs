//! Which tables' rows are read: what the configuration means, and what the server has.
//!
//! Only rows are left out. Definitions are of all tables, or nothing that leans on one could be restored.

use super::{
    catalog::{Relation, RelationKind},
    error::PostgresError,
};
use crate::config::{NamePattern, PostgresConfig};

/// Does one of these patterns mean the table? They are matched against `schema.table`.
fn fits(patterns: &[NamePattern], table: &Relation) -> bool {
    let name = format!("{}.{}", table.schema, table.name);
    patterns.iter().any(|pattern| pattern.matches(&name))
}

/// Marks tables whose rows are not read, with the reason.
pub(super) fn leave_out(config: &PostgresConfig, is_standby: bool, relations: &mut [Relation]) {
    // A sequence of an unlogged table is as unlogged as that, from 15 on.
    let has_rows = |relation: &&mut Relation| matches!(relation.kind, RelationKind::Table | RelationKind::Sequence);
    for table in relations.iter_mut().filter(has_rows) {
        let why = if is_standby && table.is_unlogged {
            "which is unlogged, and a standby has none"
        } else if table.kind == RelationKind::Sequence {
            continue;
        } else if fits(&config.exclude_tables, table) {
            "which `exclude_tables` leaves out"
        } else if !fits(&config.tables, table) {
            "which `tables` does not name"
        } else {
            continue;
        };
        table.left_out = Some(why.to_owned());
    }
}

/// What is not backed up of a database, in words.
pub(super) fn uncovered<'a>(database: &'a str, relations: &'a [Relation]) -> impl Iterator<Item = String> + use<'a> {
    relations.iter().filter_map(move |relation| {
        let why = match relation.kind {
            RelationKind::Foreign => "whose rows another server has",
            _ => relation.left_out.as_deref()?,
        };
        let what = match relation.kind {
            RelationKind::Foreign => "rows of foreign table",
            RelationKind::Sequence => "position of sequence",
            _ => "rows of table",
        };
        Some(format!("{what} {} in database `{database}`, {why}", relation.shown()))
    })
}

/// Nothing found is not fine: a pattern of `tables` that no table of any database fits.
pub(super) fn all_fit<'a>(
    config: &PostgresConfig,
    databases: impl Iterator<Item = &'a [Relation]> + Clone,
) -> Result<(), PostgresError> {
    let is_met = |pattern: &NamePattern| {
        let mut tables = databases.clone().flatten().filter(|relation| relation.kind == RelationKind::Table);
        tables.any(|table| fits(std::slice::from_ref(pattern), table))
    };
    // Where all are meant there may be none, which is told elsewhere. What was to be left out and is not there is there by another name: a
    // partitioned table's rows are its partitions'.
    match config.tables.iter().chain(&config.exclude_tables).find(|pattern| pattern.as_str() != "*" && !is_met(pattern))
    {
        Some(pattern) => Err(PostgresError::NoTable { pattern: pattern.as_str().to_owned() }),
        None => Ok(()),
    }
}
