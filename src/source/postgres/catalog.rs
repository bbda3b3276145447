//! What a server and a database hold, as the system catalogs tell it.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{
    connect::{Server, Session},
    error::{PostgresError, query},
    sql,
};
use crate::config::NamePattern;

/// Supported major versions.
const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;
/// Characters of somebody else's statement in a message.
const LONGEST_STATEMENT: usize = 120;

/// `15`, and `15.18 (Debian …)` as the server says it.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) text: String,
}

/// The server's version; an error where it is not supported.
pub(super) async fn version(server: &Server, session: &Session) -> Result<Version, PostgresError> {
    let row = session
        .query_one("SELECT current_setting('server_version_num')::int4, current_setting('server_version')", &[])
        .await
        .map_err(query("reading the server's version"))?;
    let (number, text): (i32, String) = (row.get(0), row.get(1));
    let major = u32::try_from(number / 10_000).unwrap_or(0);
    check_version(server, &text)?;
    Ok(Version { major, text })
}

/// Refuses a server whose version, as it says it itself when a connection begins, is not supported.
pub(super) fn check_version(server: &Server, text: &str) -> Result<(), PostgresError> {
    let digits = text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    if digits.parse().is_ok_and(|major| MAJORS.contains(&major)) {
        return Ok(());
    }
    Err(PostgresError::Version { server: server.name(), version: text.to_owned() })
}

/// The role and what it may do to a whole server.
#[derive(Clone, Debug)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) superuser: bool,
    pub(super) create_database: bool,
    /// May it read `pg_authid`, where passwords are?
    pub(super) reads_passwords: bool,
}

pub(super) async fn role(session: &Session) -> Result<Role, PostgresError> {
    let row = session
        .query_one(
            "SELECT current_user::text, rolsuper, rolcreatedb, pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT') \
             FROM pg_catalog.pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(query("reading the role's rights"))?;
    Ok(Role { name: row.get(0), superuser: row.get(1), create_database: row.get(2), reads_passwords: row.get(3) })
}

/// A database of a server's list.
#[derive(Clone, Debug)]
pub(super) struct ListedDatabase {
    pub(super) name: String,
    pub(super) accepts_connections: bool,
}

/// Every database but `template0` and `template1`.
pub(super) async fn databases(session: &Session) -> Result<Vec<ListedDatabase>, PostgresError> {
    let rows = session
        .query(
            "SELECT datname::text, datallowconn FROM pg_catalog.pg_database \
             WHERE datname NOT IN ('template0', 'template1') ORDER BY 1",
            &[],
        )
        .await
        .map_err(query("listing databases"))?;
    Ok(rows.iter().map(|row| ListedDatabase { name: row.get(0), accepts_connections: row.get(1) }).collect())
}

/// Databases that a configuration means.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    pub(super) names: Vec<String>,
    /// Left out because they take no connections.
    pub(super) closed: Vec<String>,
    /// Left out because they are excluded.
    pub(super) excluded: Vec<String>,
}

/// Which databases the patterns mean.
///
/// Nothing found is not fine: a name that is not there and a pattern that fits none are errors.
pub(super) fn choose(
    listed: &[ListedDatabase],
    patterns: &[NamePattern],
    exclude: &[NamePattern],
    server: &str,
) -> Result<Chosen, PostgresError> {
    let is_excluded = |database: &ListedDatabase| exclude.iter().any(|pattern| pattern.matches(&database.name));
    let (excluded, listed): (Vec<&ListedDatabase>, Vec<&ListedDatabase>) =
        listed.iter().partition(|database| is_excluded(database));
    for pattern in patterns {
        let fits = || listed.iter().filter(|database| pattern.matches(&database.name));
        match fits().next() {
            // Meant and excluded: it is left out, and said to be.
            None if excluded.iter().any(|database| pattern.matches(&database.name)) => {}
            None if pattern.is_literal() => {
                return Err(PostgresError::NoSuchDatabase {
                    database: pattern.as_str().to_owned(),
                    server: server.to_owned(),
                });
            }
            Some(database) if pattern.is_literal() && !database.accepts_connections => {
                return Err(PostgresError::ClosedDatabase {
                    database: database.name.clone(),
                    server: server.to_owned(),
                });
            }
            _ if !fits().any(|database| database.accepts_connections) => {
                return Err(PostgresError::NoMatch { pattern: pattern.as_str().to_owned(), server: server.to_owned() });
            }
            _ => {}
        }
    }
    let is_meant = |database: &&ListedDatabase| patterns.iter().any(|pattern| pattern.matches(&database.name));
    let meant = listed.into_iter().filter(is_meant);
    let (open, closed): (Vec<_>, Vec<_>) = meant.partition(|database| database.accepts_connections);
    let names = |list: Vec<&ListedDatabase>| list.into_iter().map(|database| database.name.clone()).collect();
    let excluded = names(excluded.into_iter().filter(is_meant).collect());
    Ok(Chosen { names: names(open), closed: names(closed), excluded })
}

/// What a relation is, as far as a capture cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RelationKind {
    Table,
    Partitioned,
    Sequence,
    MaterializedView,
    Foreign,
}

/// A relation of the user's: not of the system, not temporary, not a member of an extension, unless one that the extension has declared to hold
/// what users configure.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) kind: RelationKind,
    pub(super) schema: String,
    pub(super) name: String,
    /// Columns that COPY carries: no dropped, no generated ones.
    pub(super) columns: Vec<String>,
    /// Heap, TOAST and maps, in bytes; 0 until [`measure`] was called.
    pub(super) size: u64,
    /// Pages of the heap; 0 until [`measure`] was called.
    pub(super) pages: u32,
    /// Is it stored as a heap, whose pages can be read one after the other?
    pub(super) is_heap: bool,
    /// Is it an extension's, and declared to hold what users configure?
    pub(super) is_configuration: bool,
    /// Of an extension's configuration table: `WHERE …` that tells the user's rows from the extension's own, if there is such a thing.
    pub(super) condition: String,
    /// Unlogged: a standby has none of its rows.
    pub(super) is_unlogged: bool,
    /// Why its rows are not read, in words that follow its name.
    pub(super) left_out: Option<String>,
    /// Has every column a type whose binary form is the same on every server?
    pub(super) is_binary: bool,
    /// May the role read all of it?
    pub(super) readable: bool,
}

impl Relation {
    pub(super) fn sql(&self) -> String {
        sql::qualified(&self.schema, &self.name)
    }

    /// Schema and name.
    pub(super) fn names(&self) -> (String, String) {
        (self.schema.clone(), self.name.clone())
    }

    /// Is anything of it read? Not of a materialized view, which its query makes anew, nor of a foreign table.
    pub(super) fn must_be_readable(&self) -> bool {
        !matches!(self.kind, RelationKind::MaterializedView | RelationKind::Foreign)
    }

    /// For people and paths: quoted only where it must be, so that two relations never read the same.
    pub(super) fn shown(&self) -> String {
        shown(&self.schema, &self.name)
    }
}

/// A name with quotes where PostgreSQL would need them.
pub(super) fn shown_name(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain { name.to_owned() } else { sql::ident(name) }
}

/// `schema.name`, each as [`shown_name`].
pub(super) fn shown(schema: &str, name: &str) -> String {
    format!("{}.{}", shown_name(schema), shown_name(name))
}

/// Which relations are the user's. `$1` is nothing; `c` and `n` are in scope behind it.
const USERS: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
     AND n.nspname !~ '^pg_(temp|toast_temp)_' AND c.relpersistence <> 't' \
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d \
         WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// What extensions have declared to be configuration (PostgreSQL documentation, 38.17.3).
const CONFIGURATION: &str =
    "(c.relkind IN ('r', 'S') AND c.oid IN (SELECT pg_catalog.unnest(x.extconfig) FROM pg_catalog.pg_extension x))";

/// Types of which COPY's binary form is the same on every server: no OIDs in it that another server has given to something else, nothing that
/// depends on a version or a setting. With them, their arrays and ranges of them, whose OIDs are fixed, enumerations (their labels), and domains
/// over any of these. Composite types, arrays of what users have made, `reg*`, `tsvector`, `xml` and all that extensions bring are not.
const BINARY_TYPES: &str = "'bool', 'bytea', 'char', 'name', 'int8', 'int2', 'int4', 'text', 'oid', 'tid', 'xid', 'cid', 'xid8', 'json', 'jsonb', \
     'point', 'lseg', 'path', 'box', 'polygon', 'line', 'circle', 'cidr', 'inet', 'macaddr', 'macaddr8', 'float4', 'float8', 'bpchar', 'varchar', \
     'date', 'time', 'timestamp', 'timestamptz', 'interval', 'timetz', 'bit', 'varbit', 'numeric', 'uuid', 'pg_lsn', \
     'int4range', 'int8range', 'numrange', 'tsrange', 'tstzrange', 'daterange', \
     'int4multirange', 'int8multirange', 'nummultirange', 'tsmultirange', 'tstzmultirange', 'datemultirange'";

/// Every relation of the database that a capture cares for, in the session's snapshot.
pub(super) async fn relations(session: &Session) -> Result<Vec<Relation>, PostgresError> {
    let failed = || query(format!("listing the relations of database `{}`", session.database));
    let columns = session
        .query(
            &format!(
                "WITH RECURSIVE plain AS (SELECT oid FROM pg_catalog.pg_type \
                     WHERE typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND typname IN ({BINARY_TYPES})), \
                 stable AS (SELECT oid FROM plain UNION SELECT typarray FROM pg_catalog.pg_type JOIN plain USING (oid) WHERE typarray <> 0 \
                     UNION SELECT oid FROM pg_catalog.pg_type WHERE typtype = 'e'), \
                 safe AS (SELECT oid FROM stable UNION SELECT t.oid FROM pg_catalog.pg_type t JOIN safe ON t.typbasetype = safe.oid \
                     WHERE t.typtype = 'd') \
                 SELECT a.attrelid, pg_catalog.array_agg(a.attname::text ORDER BY a.attnum), \
                     pg_catalog.bool_and(a.atttypid IN (SELECT oid FROM safe)) \
                 FROM pg_catalog.pg_attribute a WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' GROUP BY 1"
            ),
            &[],
        )
        .await
        .map_err(failed())?;
    let mut columns: HashMap<u32, (Vec<String>, bool)> =
        columns.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let rows = session
        .query(
            &format!(
                "SELECT c.oid, c.relkind::text, n.nspname::text, c.relname::text, \
                 pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') \
                     AND NOT pg_catalog.row_security_active(c.oid), \
                 c.relam IN (SELECT oid FROM pg_catalog.pg_am WHERE amname = 'heap'), c.relpersistence = 'u', \
                 coalesce((SELECT x.extcondition[pg_catalog.array_position(x.extconfig, c.oid)] FROM pg_catalog.pg_extension x \
                     WHERE c.oid = ANY (x.extconfig) LIMIT 1), ''), \
                 {CONFIGURATION} \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p', 'S', 'm', 'f') AND ({CONFIGURATION} OR {USERS}) ORDER BY 3, 4"
            ),
            &[],
        )
        .await
        .map_err(failed())?;
    let mut relations = Vec::with_capacity(rows.len());
    for row in rows {
        let kind: String = row.get(1);
        let oid: u32 = row.get(0);
        // A right that cannot be told, since the relation is gone, is judged when it is locked.
        let readable: Option<bool> = row.get(4);
        let (columns, is_binary) = columns.remove(&oid).unwrap_or_default();
        relations.push(Relation {
            oid,
            kind: match kind.as_str() {
                "r" => RelationKind::Table,
                "p" => RelationKind::Partitioned,
                "S" => RelationKind::Sequence,
                "m" => RelationKind::MaterializedView,
                _ => RelationKind::Foreign,
            },
            schema: row.get(2),
            name: row.get(3),
            columns,
            size: 0,
            pages: 0,
            is_heap: row.get(5),
            is_unlogged: row.get(6),
            condition: row.get(7),
            is_configuration: row.get(8),
            left_out: None,
            is_binary,
            readable: readable.unwrap_or(true),
        });
    }
    Ok(relations)
}

/// Fills in the sizes of tables. Looking at one needs a lock on it, so that this waits, for ever if it may, where somebody
/// else holds an exclusive one.
pub(super) async fn measure(session: &Session, relations: &mut [Relation]) -> Result<(), PostgresError> {
    let rows = session
        .query(
            &format!(
                "SELECT c.oid, coalesce(pg_catalog.pg_table_size(c.oid), 0), coalesce(pg_catalog.pg_relation_size(c.oid), 0) \
                     / pg_catalog.current_setting('block_size')::int8 \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND ({CONFIGURATION} OR {USERS})"
            ),
            &[],
        )
        .await
        .map_err(query(format!("measuring the tables of database `{}`", session.database)))?;
    let sizes: HashMap<u32, (i64, i64)> = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    for relation in relations {
        let (size, pages) = sizes.get(&relation.oid).copied().unwrap_or_default();
        relation.size = u64::try_from(size).unwrap_or(0);
        relation.pages = u32::try_from(pages).unwrap_or(0);
    }
    Ok(())
}

/// Does the name still mean the relation that the snapshot saw? LOCK and COPY go by the names of now: two tables, or their schemas,
/// that changed names meanwhile would be read for each other.
pub(super) async fn still_named(session: &Session, relation: &Relation) -> Result<(), PostgresError> {
    let row = session
        .query_one("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid", &[&relation.sql()])
        .await
        .map_err(query(format!("looking at the name of {}", relation.shown())))?;
    if row.get::<_, Option<u32>>(0) == Some(relation.oid) {
        return Ok(());
    }
    Err(PostgresError::Changed { relation: relation.shown(), database: session.database.clone(), attempts: 1 })
}

/// The first relation that is no longer what the snapshot saw: truncated, rewritten, renamed or dropped since.
///
/// TRUNCATE and rewriting ALTER TABLE are not MVCC-safe (PostgreSQL documentation, 13.6): an older snapshot finds the table empty.
/// `pg_class` is read in the snapshot, `pg_relation_filenode` looks at what is there now.
pub(super) async fn changed_since(session: &Session) -> Result<Option<String>, PostgresError> {
    let row = session
        .query_opt(
            &format!(
                "SELECT n.nspname::text, c.relname::text \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'r' AND ({CONFIGURATION} OR {USERS}) \
                 AND (c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid) \
                      OR pg_catalog.to_regclass(pg_catalog.format('%I.%I', n.nspname, c.relname))::pg_catalog.oid \
                         IS DISTINCT FROM c.oid) LIMIT 1"
            ),
            &[],
        )
        .await
        .map_err(query(format!("looking for rewritten tables in database `{}`", session.database)))?;
    Ok(row.map(|row| shown(row.get(0), row.get(1))))
}

/// Who keeps these tables from being locked: who has them locked against everybody, or waits to. In words, with what each does as far as the
/// server tells us, without values; no failure, since it only explains one. Ends the session's transaction, which has failed already.
pub(super) async fn blockers(session: &Session, tables: &[&Relation]) -> Vec<String> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    if oids.is_empty() || session.batch_execute("ROLLBACK").await.is_err() {
        return Vec::new();
    }
    let rows = session
        .query(
            "WITH held AS ( \
                 SELECT pid, granted FROM pg_catalog.pg_locks \
                 WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND relation = ANY ($1) AND database = \
                     (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())), \
             blocking AS ( \
                 SELECT pid FROM held UNION \
                 SELECT pg_catalog.unnest(pg_catalog.pg_blocking_pids(pid)) FROM held WHERE NOT granted) \
             SELECT pid, COALESCE('role `' || usename || '`', backend_type), application_name, state, \
                    EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() - state_change)::int8, query \
             FROM blocking JOIN pg_catalog.pg_stat_activity USING (pid) ORDER BY xact_start",
            &[&oids],
        )
        .await;
    let shown = |row: &tokio_postgres::Row| {
        // A name may be in another encoding.
        let text = |n: usize| row.try_get::<_, Option<String>>(n).ok().flatten().filter(|text| !text.is_empty());
        let mut told = vec![text(1).unwrap_or_else(|| "a role".to_owned())];
        told.extend(text(2).map(|application| format!("`{application}`")));
        if let (Some(state), Some(seconds)) = (text(3), row.try_get::<_, Option<i64>>(4).ok().flatten()) {
            told.push(format!("{state} for {seconds} s"));
        }
        // A role that may not see it is told so in its place.
        let statement =
            text(5).filter(|query| query != "<insufficient privilege>").map(|query| sql::without_values(&query));
        let statement =
            statement.map(|query| format!(" with `{}`", query.chars().take(LONGEST_STATEMENT).collect::<String>()));
        format!("process {} ({}){}", row.get::<_, i32>(0), told.join(", "), statement.unwrap_or_default())
    };
    rows.unwrap_or_default().iter().map(shown).collect()
}

/// The relations that a view's query looks at, through other views and functions in SQL's own form too. None where there is no such view.
pub(super) async fn used_by_view(
    session: &Session,
    (schema, view): &sql::Name,
) -> Result<HashSet<sql::Name>, PostgresError> {
    let sql = "WITH RECURSIVE used (of, oid) AS ( \
                   SELECT c.tableoid, c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                   WHERE n.nspname = $1 AND c.relname = $2 \
                   UNION SELECT d.refclassid, d.refobjid FROM used \
                   LEFT JOIN pg_catalog.pg_rewrite r ON used.of = 'pg_catalog.pg_class'::pg_catalog.regclass AND r.ev_class = used.oid \
                   JOIN pg_catalog.pg_depend d ON (d.classid = r.tableoid AND d.objid = r.oid) OR (d.classid = used.of AND d.objid = used.oid \
                       AND used.of = 'pg_catalog.pg_proc'::pg_catalog.regclass) \
                   WHERE d.refclassid IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)) \
               SELECT n.nspname, c.relname FROM used JOIN pg_catalog.pg_class c ON c.oid = used.oid AND c.tableoid = used.of \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE NOT (n.nspname = $1 AND c.relname = $2)";
    let rows = session.query(sql, &[schema, view]).await;
    let rows = rows.map_err(query(format!("looking at what {} is of", shown(schema, view))))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// How many pages a table's heap has now; none where it is kept in another way.
pub(super) async fn heap_pages(session: &Session, (schema, table): (&str, &str)) -> Result<Option<u32>, PostgresError> {
    let sql = "SELECT pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int8 \
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               JOIN pg_catalog.pg_am a ON a.oid = c.relam WHERE n.nspname = $1 AND c.relname = $2 AND a.amname = 'heap'";
    let row = session.query_opt(sql, &[&schema, &table]).await;
    let row = row.map_err(query(format!("looking at the size of {}", shown(schema, table))))?;
    Ok(row.map(|row| u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX)))
}

/// The extensions that the server could create.
pub(super) async fn available_extensions(session: &Session) -> Result<HashSet<String>, PostgresError> {
    let rows = session
        .query("SELECT name::text FROM pg_catalog.pg_available_extensions", &[])
        .await
        .map_err(query("listing the server's extensions"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Which of the tables whose rows are left out others refer to, whose rows are not: `a` and `b` where a foreign key leads from `b` to `a`. Without `a`'s
/// rows the key could not be restored.
pub(super) async fn needed_of_left_out(
    session: &Session,
    relations: &[Relation],
) -> Result<Option<(String, String)>, PostgresError> {
    let of = |is_left_out: bool| -> HashMap<u32, &Relation> {
        let tables = relations.iter().filter(|relation| relation.kind == RelationKind::Table);
        tables.filter(|table| table.left_out.is_some() == is_left_out).map(|table| (table.oid, table)).collect()
    };
    let (left_out, read) = (of(true), of(false));
    if left_out.is_empty() {
        return Ok(None);
    }
    let rows = session
        .query("SELECT confrelid, conrelid FROM pg_catalog.pg_constraint WHERE contype = 'f'", &[])
        .await
        .map_err(query(format!("reading foreign keys of database `{}`", session.database)))?;
    let pair = |row: &tokio_postgres::Row| {
        Some((left_out.get(&row.get::<_, u32>(0))?.shown(), read.get(&row.get::<_, u32>(1))?.shown()))
    };
    Ok(rows.iter().find_map(pair))
}

/// The versions that the server makes extensions in, by name.
pub(super) async fn available_versions(session: &Session) -> Result<HashMap<String, String>, PostgresError> {
    let rows = session
        .query("SELECT name::text, coalesce(default_version, '') FROM pg_catalog.pg_available_extensions", &[])
        .await
        .map_err(query("listing the server's extensions"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// What statistics are gathered of, largest first: schema and name.
pub(super) async fn analyzable(session: &Session) -> Result<Vec<(String, String)>, PostgresError> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
             AND n.nspname !~ '^pg_(temp|toast_temp)_' ORDER BY c.relpages DESC, c.reltuples DESC",
            &[],
        )
        .await
        .map_err(query(format!("listing the tables of database `{}`", session.database)))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Is the server a standby?
pub(super) async fn is_standby(session: &Session) -> Result<bool, PostgresError> {
    let row = session.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    Ok(row.map_err(query("asking whether the server is a standby"))?.get(0))
}

/// An extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extension {
    pub(super) name: String,
    pub(super) version: String,
}

/// What a database is, beside its relations.
#[derive(Clone, Debug)]
pub(super) struct Properties {
    pub(super) encoding: String,
    pub(super) extensions: Vec<Extension>,
    /// Tablespaces other than the default ones that it uses.
    pub(super) tablespaces: Vec<String>,
    /// Relations, functions, types and large objects of the user's, and extensions beside `plpgsql`.
    pub(super) objects: u64,
}

pub(super) async fn properties(session: &Session) -> Result<Properties, PostgresError> {
    let failed = || query(format!("reading the properties of database `{}`", session.database));
    let row = session
        .query_one(
            &format!(
                "SELECT pg_catalog.pg_encoding_to_char(encoding)::text, \
                 (SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE {USERS}) \
                 + (SELECT count(*) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.oid >= 16384) \
                 + (SELECT count(*) FROM pg_catalog.pg_type t WHERE t.oid >= 16384) \
                 + (SELECT count(*) FROM pg_catalog.pg_extension WHERE extname <> 'plpgsql') \
                 + (SELECT count(*) FROM pg_catalog.pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_') \
                 + (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata) \
                 FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
            ),
            &[],
        )
        .await
        .map_err(failed())?;
    let extensions = session
        .query("SELECT extname::text, extversion FROM pg_catalog.pg_extension ORDER BY 1", &[])
        .await
        .map_err(failed())?;
    let tablespaces = session
        .query(
            "SELECT spcname::text FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') \
             AND (oid IN (SELECT reltablespace FROM pg_catalog.pg_class) \
                  OR oid = (SELECT dattablespace FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) \
             ORDER BY 1",
            &[],
        )
        .await
        .map_err(failed())?;
    Ok(Properties {
        encoding: row.get(0),
        objects: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0),
        extensions: extensions.iter().map(|row| Extension { name: row.get(0), version: row.get(1) }).collect(),
        tablespaces: tablespaces.iter().map(|row| row.get(0)).collect(),
    })
}

/// How many tables of the user's a database holds, now.
pub(super) async fn table_count(session: &Session) -> Result<u64, PostgresError> {
    let row = session
        .query_one(
            &format!(
                "SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p', 'm', 'f') AND {USERS}"
            ),
            &[],
        )
        .await
        .map_err(query(format!("counting the tables of database `{}`", session.database)))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// A sequence's position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SequencePosition {
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) last_value: i64,
    pub(super) is_called: bool,
}

impl SequencePosition {
    /// Would this sequence give a value again that one at `other` has given? `descending` ones count down.
    pub(super) fn is_behind(&self, other: &Self, descending: bool) -> bool {
        let (is, was) = ((self.last_value, self.is_called), (other.last_value, other.is_called));
        match descending {
            false => is < was,
            true => (is.0 > was.0) || (is.0 == was.0 && !is.1 && was.1),
        }
    }
}

/// The sequences that count down, by schema and name.
pub(super) async fn descending_sequences(session: &Session) -> Result<HashSet<(String, String)>, PostgresError> {
    let rows = session
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_sequence s \
             JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE s.seqincrement < 0",
            &[],
        )
        .await
        .map_err(query(format!("reading sequences of database `{}`", session.database)))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The name of the server's first superuser, who owns what is everybody's.
pub(super) async fn bootstrap_superuser(session: &Session) -> Result<String, PostgresError> {
    let row = session
        .query_one("SELECT rolname::text FROM pg_catalog.pg_roles WHERE oid = 10", &[])
        .await
        .map_err(query("looking for the server's first superuser"))?;
    Ok(row.get(0))
}

/// What tells this server, and its physical replicas, from all others.
pub(super) async fn system_identifier(session: &Session) -> Result<String, PostgresError> {
    let row = session
        .query_one("SELECT system_identifier::text FROM pg_catalog.pg_control_system()", &[])
        .await
        .map_err(query("reading the server's system identifier"))?;
    Ok(row.get(0))
}

/// Positions of sequences, as they are now: sequences are outside of snapshots, so that read after one they are ahead or equal.
pub(super) async fn sequence_positions(
    session: &Session,
    sequences: &[(String, String)],
) -> Result<Vec<SequencePosition>, PostgresError> {
    let mut positions = Vec::with_capacity(sequences.len());
    for group in sequences.chunks(200) {
        let selects: Vec<String> = group
            .iter()
            .map(|(schema, name)| format!("SELECT last_value, is_called FROM {}", sql::qualified(schema, name)))
            .collect();
        // One row each, in the order of the list: UNION ALL of single rows keeps it only with a number of its own.
        let numbered: Vec<String> =
            selects.iter().enumerate().map(|(n, select)| format!("SELECT {n} AS n, s.* FROM ({select}) s")).collect();
        let rows = session
            .query(&format!("{} ORDER BY n", numbered.join(" UNION ALL ")), &[])
            .await
            .map_err(query(format!("reading sequences of database `{}`", session.database)))?;
        for ((schema, name), row) in group.iter().zip(rows) {
            positions.push(SequencePosition {
                schema: schema.clone(),
                name: name.clone(),
                last_value: row.get(1),
                is_called: row.get(2),
            });
        }
    }
    Ok(positions)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_there_is_never_fine() {
        let listed: Vec<_> = [("altlas", true), ("closed", false), ("postgres", true)]
            .map(|(name, accepts_connections)| ListedDatabase { name: name.into(), accepts_connections })
            .into();
        let choose = |patterns: &[&str]| {
            let patterns: Vec<_> = patterns.iter().map(|p| NamePattern::new(p).unwrap()).collect();
            choose(&listed, &patterns, &[], "host:5432")
        };
        let Chosen { names: open, closed, excluded } = choose(&["*"]).unwrap();
        assert!(excluded.is_empty());
        assert_eq!(open, ["altlas", "postgres"]);
        assert_eq!(closed, ["closed"]);
        assert_eq!(choose(&["alt*", "altlas"]).unwrap().names, ["altlas"]);
        let without = |patterns: &[&str], exclude: &str| {
            let patterns: Vec<_> = patterns.iter().map(|p| NamePattern::new(p).unwrap()).collect();
            super::choose(&listed, &patterns, &[NamePattern::new(exclude).unwrap()], "host:5432")
        };
        assert_eq!(without(&["*"], "post*").unwrap().names, ["altlas"]);
        assert_eq!(without(&["alt*", "postgres"], "post*").unwrap().excluded, ["postgres"]);
        assert!(matches!(without(&["nothing"], "post*"), Err(PostgresError::NoSuchDatabase { .. })));
        assert!(matches!(choose(&["altlas_db"]), Err(PostgresError::NoSuchDatabase { .. })));
        assert!(matches!(choose(&["altlas", "app*"]), Err(PostgresError::NoMatch { .. })));
        assert!(matches!(choose(&["closed"]), Err(PostgresError::ClosedDatabase { .. })));
        assert!(matches!(choose(&["clos*"]), Err(PostgresError::NoMatch { .. })));
    }

    #[test]
    fn a_sequence_is_behind_if_it_would_give_a_value_again() {
        let at =
            |last_value, is_called| SequencePosition { schema: "s".into(), name: "n".into(), last_value, is_called };
        for (is, was, descending, behind) in [
            (at(5, true), at(5, true), false, false),
            (at(5, false), at(5, true), false, true),
            (at(5, true), at(5, false), false, false),
            (at(4, true), at(5, false), false, true),
            (at(9, false), at(5, true), false, false),
            (at(-9, false), at(-5, true), true, false),
            (at(-4, true), at(-5, true), true, true),
            (at(-5, false), at(-5, true), true, true),
        ] {
            assert_eq!(is.is_behind(&was, descending), behind, "{is:?} {was:?}");
        }
    }

    #[test]
    fn no_two_relations_read_the_same() {
        assert_eq!(shown("public", "last_files"), "public.last_files");
        assert_eq!(shown("a.b", "c"), "\"a.b\".c");
        assert_eq!(shown("a", "b.c"), "a.\"b.c\"");
        assert_eq!(shown("Public", "x\"y"), "\"Public\".\"x\"\"y\"");
    }
}
