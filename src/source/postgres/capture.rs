//! Capture: one exported snapshot a database, everything locked before anything is read.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_postgres::error::SqlState;

use super::{
    catalog::{self, Extension, Properties, Relation, RelationKind, Version},
    connect::{self, Server, Session},
    error::{self, PostgresError, query},
    inventory, large_objects,
    rows::{self, Reading},
    selection, sql, throwaway,
    tools::Tools,
};
use crate::{
    pipeline::{Cut, Format, SnapshotWriter},
    source::{Captured, Fixed, SourceError},
};

/// How often a database is tried whose relations are rewritten or dropped before their lock, and all of it where what failed can pass.
const ATTEMPTS: u32 = 3;
/// How long a session is waited for that may be gone.
const ANSWER: Duration = Duration::from_secs(5);
/// Tables in one LOCK statement.
const LOCK_BATCH: usize = 200;
/// The longest DDL of database properties, in bytes.
const MOST_PROPERTIES: u64 = 16 * 1024 * 1024;
pub(super) const GLOBALS: &str = "globals.sql";
/// `--no-blobs` up to PostgreSQL 15, `--no-large-objects` from 16 on.
pub(super) const LEAVE_OUT_LARGE_OBJECTS: &str = "-B";

/// What the manifest notes of the whole snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SnapshotDetail {
    pub(super) server_version: String,
    pub(super) major: u32,
    /// Version of `pg_dump`, which wrote the DDL.
    pub(super) pg_dump: String,
    /// The name of the server's first superuser: grants in globals.sql may be by that one.
    #[serde(default = "postgres")]
    pub(super) bootstrap: String,
    /// Are the passwords of roles in globals.sql?
    #[serde(default)]
    pub(super) with_passwords: bool,
    pub(super) databases: Vec<DatabaseDetail>,
}

fn postgres() -> String {
    "postgres".to_owned()
}

/// What the manifest notes of one database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DatabaseDetail {
    pub(super) name: String,
    /// Where its artifacts are: `databases/<name>`.
    pub(super) folder: String,
    pub(super) encoding: String,
    pub(super) cut_at: Timestamp,
    /// The exported snapshot's id and the write position at its instant.
    pub(super) snapshot: String,
    pub(super) lsn: String,
    pub(super) tables: u64,
    /// All objects of the user's; 0 for a database that was never used.
    pub(super) objects: u64,
    /// How many large objects.
    #[serde(default)]
    pub(super) large_objects: u64,
    /// Tables whose definitions are there and whose rows are not: schema and name.
    #[serde(default)]
    pub(super) left_out: Vec<(String, String)>,
    pub(super) extensions: Vec<Extension>,
    pub(super) tablespaces: Vec<String>,
    /// Settings that the rows were read under, as statements: the same are needed to load them.
    pub(super) row_settings: Vec<String>,
}

impl DatabaseDetail {
    pub(super) fn properties_sql(&self) -> String {
        format!("{}/properties.sql", self.folder)
    }
    pub(super) fn pre_data_sql(&self) -> String {
        format!("{}/pre-data.sql", self.folder)
    }
    pub(super) fn post_data_sql(&self) -> String {
        format!("{}/post-data.sql", self.folder)
    }
    pub(super) fn inventory_txt(&self) -> String {
        format!("{}/inventory.txt", self.folder)
    }
    pub(super) fn large_objects_sql(&self) -> String {
        format!("{}/large-objects.sql", self.folder)
    }
    pub(super) fn large_objects_rows(&self) -> String {
        format!("{}/large-objects", self.folder)
    }
    pub(super) fn sequences_sql(&self) -> String {
        format!("{}/sequences.sql", self.folder)
    }
}

/// One database whose snapshot is held open by `holder`.
struct HeldDatabase {
    detail: DatabaseDetail,
    cut: Cut,
    holder: Session,
    relations: Vec<Relation>,
}

/// All databases of a server, each at its instant.
pub(super) struct PostgresCapture {
    server: Server,
    tools: Tools,
    version: Version,
    /// May `pg_dumpall` read passwords?
    reads_passwords: bool,
    bootstrap: String,
    is_standby: bool,
    marks: Vec<String>,
    databases: Vec<HeldDatabase>,
    uncovered: Vec<String>,
}

/// What keeps an attempt at a snapshot from being used.
enum Attempt {
    Held(Box<HeldDatabase>),
    /// This relation changed between the snapshot and its lock.
    Changed(String),
}

/// Takes a snapshot of the server; once more where what went wrong can pass ([`PostgresError::passes`]).
pub(super) async fn capture(server: &Server, into: &SnapshotWriter, fixed: Fixed) -> Result<Captured, SourceError> {
    let (mut fixed, mut attempt, mut notes) = (Some(fixed), 1, Vec::new());
    loop {
        let error = match PostgresCapture::begin(server, into).await {
            Err(error) => error,
            Ok(held) => {
                match fixed.take() {
                    Some(fixed) => fixed.now(),
                    None => notes.push(
                        "PostgreSQL was captured at another try: what was cut after the first may lack what it mentions".to_owned(),
                    ),
                }
                match held.transfer(into).await {
                    Ok(captured) => return Ok(Captured { notes, ..captured }),
                    Err(SourceError::Postgres(error)) => held.why(error).await,
                    Err(other) => return Err(other),
                }
            }
        };
        if attempt == ATTEMPTS || !error.passes() {
            return Err(error.into());
        }
        (attempt, notes) = (attempt + 1, Vec::new());
        tracing::warn!("{error}; trying again: attempt {attempt} of {ATTEMPTS}");
        into.start_over();
    }
}

impl PostgresCapture {
    /// Cuts every database that the configuration means.
    async fn begin(server: &Server, into: &SnapshotWriter) -> Result<Self, PostgresError> {
        let session = server.connect(server.maintenance()).await?;
        let version = catalog::version(server, &session).await?;
        let tools_dir = server.config.tools_dir.as_deref();
        let tools = Tools::find(tools_dir, "pg_dump", version.major).await?;
        Tools::find(tools_dir, "pg_dumpall", version.major).await?;
        let role = catalog::role(&session).await?;
        let listed = catalog::databases(&session).await?;
        let catalog::Chosen { names, closed, excluded } =
            catalog::choose(&listed, &server.config.databases, &server.config.exclude_databases, &server.name())?;
        let mut uncovered: Vec<String> =
            closed.iter().map(|name| format!("database `{name}`, which accepts no connections")).collect();
        uncovered
            .extend(excluded.iter().map(|name| format!("database `{name}`, which `exclude_databases` leaves out")));
        if !role.reads_passwords {
            uncovered.push(format!("passwords of roles, which role `{}` may not read", role.name));
        }
        let bootstrap = catalog::bootstrap_superuser(&session).await?;
        let is_standby = catalog::is_standby(&session).await?;
        let marks = throwaway::marks(&session).await?;
        let mut databases = Vec::with_capacity(names.len());
        for name in &names {
            databases.push(hold(server, name, &role.name, into).await?);
        }
        selection::all_fit(&server.config, databases.iter().map(|held: &HeldDatabase| &held.relations[..]))?;
        for held in &databases {
            uncovered.extend(selection::uncovered(&held.detail.name, &held.relations));
        }
        let (server, reads_passwords) = (server.clone(), role.reads_passwords);
        Ok(Self { server, tools, version, reads_passwords, bootstrap, is_standby, marks, databases, uncovered })
    }
}

/// Takes one database's snapshot; starts over when a relation changed under it.
async fn hold(server: &Server, name: &str, role: &str, into: &SnapshotWriter) -> Result<HeldDatabase, PostgresError> {
    let mut last = String::new();
    for attempt in 1..=ATTEMPTS {
        match try_hold(server, name, role, into).await? {
            Attempt::Held(held) => return Ok(*held),
            Attempt::Changed(relation) => {
                tracing::info!(
                    "a relation in database `{name}` changed while it was locked; attempt {attempt} of {ATTEMPTS}"
                );
                last = relation;
            }
        }
    }
    Err(PostgresError::Changed { relation: last, database: name.to_owned(), attempts: ATTEMPTS })
}

async fn try_hold(server: &Server, name: &str, role: &str, into: &SnapshotWriter) -> Result<Attempt, PostgresError> {
    let holder = server.connect(name).await?;
    holder
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await
        .map_err(query("beginning the snapshot's transaction"))?;
    let asked = Instant::now();
    let row = holder
        .query_one(
            "SELECT pg_catalog.pg_export_snapshot(), (CASE WHEN pg_catalog.pg_is_in_recovery() \
             THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END)::text",
            &[],
        )
        .await
        .map_err(query(format!("exporting the snapshot of database `{name}`")))?;
    let (asked, answered) = (into.time(asked), into.time(Instant::now()));
    let (snapshot, lsn): (String, String) = (row.get(0), row.get(1));
    let mut cut = Cut::between(asked, answered, serde_json::Value::Null);
    cut.anchor = json!({"database": name, "at": cut.at, "lsn": lsn, "snapshot": snapshot});
    let mut relations = catalog::relations(&holder).await?;
    selection::leave_out(&server.config, catalog::is_standby(&holder).await?, &mut relations);
    if let Some((table, by)) = catalog::needed_of_left_out(&holder, &relations).await? {
        return Err(PostgresError::LeftOut { database: name.to_owned(), table, by });
    }
    // The content of a materialized view is made anew by its query: nothing of it is read.
    let unreadable: Vec<String> = relations
        .iter()
        .filter(|relation| relation.must_be_readable() && !relation.readable)
        .map(Relation::shown)
        .chain(large_objects::unreadable(&holder).await?)
        .collect();
    if !unreadable.is_empty() {
        return Err(PostgresError::Unreadable {
            role: role.to_owned(),
            database: name.to_owned(),
            total: unreadable.len(),
            names: unreadable.into_iter().take(5).collect(),
        });
    }
    let lockable: Vec<&Relation> = relations
        .iter()
        .filter(|relation| matches!(relation.kind, RelationKind::Table | RelationKind::Partitioned))
        .collect();
    if let Some(gone) = lock(&holder, &lockable, server.config.lock_timeout).await? {
        return Ok(Attempt::Changed(gone));
    }
    if let Some(changed) = catalog::changed_since(&holder).await? {
        return Ok(Attempt::Changed(changed));
    }
    let tables = lockable.len() as u64;
    catalog::measure(&holder, &mut relations).await?;
    let Properties { encoding, extensions, tablespaces, objects } = catalog::properties(&holder).await?;
    let large_objects = large_objects::count(&holder).await?;
    let detail = DatabaseDetail {
        name: name.to_owned(),
        folder: format!("databases/{}", catalog::shown_name(name)),
        row_settings: connect::row_settings(),
        encoding,
        cut_at: cut.at,
        snapshot,
        lsn,
        tables,
        objects,
        large_objects,
        left_out: relations
            .iter()
            .filter(|one| one.kind == RelationKind::Table && one.left_out.is_some())
            .map(|one| one.names())
            .collect(),
        extensions,
        tablespaces,
    };
    Ok(Attempt::Held(Box::new(HeldDatabase { detail, cut, holder, relations })))
}

/// ACCESS SHARE on every table, before anything is read. Returns a relation that was dropped meanwhile.
async fn lock(holder: &Session, tables: &[&Relation], timeout: Duration) -> Result<Option<String>, PostgresError> {
    let set = format!("SET LOCAL lock_timeout = '{}ms'", timeout.as_millis());
    holder.batch_execute(&set).await.map_err(query("setting the lock timeout"))?;
    for batch in tables.chunks(LOCK_BATCH) {
        let names: Vec<String> = batch.iter().map(|table| table.sql()).collect();
        let statement = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", names.join(", ONLY "));
        if let Err(error) = holder.batch_execute(&statement).await {
            if matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME)) {
                return Ok(Some(
                    error.as_db_error().map_or_else(|| "a table".to_owned(), |db| db.message().to_owned()),
                ));
            }
            let locked = match error.code() {
                Some(&SqlState::LOCK_NOT_AVAILABLE) => locked_by_others(holder, batch).await,
                _ => Vec::new(),
            };
            let blockers = catalog::blockers(holder, &locked).await;
            let named = if locked.is_empty() { batch } else { &locked };
            let named: Vec<String> = named.iter().map(|table| table.shown()).collect();
            let tables = crate::report::list(&named, 5);
            let mut what = format!("locking {tables} of database `{}` against changes", holder.database);
            if !blockers.is_empty() {
                what.push_str(&format!(", which {} kept us from", crate::report::list(&blockers, 3)));
            }
            return Err(query(what)(error));
        }
    }
    // The timeout stays: later on the holder only waits for sequences, and not for ever either.
    Ok(None)
}

/// Which of these tables cannot be locked now, to name them. Ends the holder's transaction, which has failed already.
async fn locked_by_others<'a>(holder: &Session, tables: &[&'a Relation]) -> Vec<&'a Relation> {
    let mut locked = Vec::new();
    for table in tables {
        let attempt = format!("BEGIN; LOCK TABLE ONLY {} IN ACCESS SHARE MODE NOWAIT", table.sql());
        if holder.batch_execute("ROLLBACK").await.is_ok()
            && let Err(error) = holder.batch_execute(&attempt).await
            && error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
        {
            locked.push(*table);
        }
    }
    locked
}

impl PostgresCapture {
    /// Why something failed: where a session that holds a snapshot is gone, for want of it. What says itself that the server ended a session is
    /// let stand.
    async fn why(&self, error: PostgresError) -> PostgresError {
        if error.passes() || error.is_of_ended_session() {
            return error;
        }
        for held in &self.databases {
            let what = format!("holding the snapshot of database `{}`", held.detail.name);
            // The server's last word may have come before we ask, and is its answer else.
            if let Ok(Err(gone)) = tokio::time::timeout(ANSWER, held.holder.simple_query("SELECT 1")).await {
                let told = held.holder.ended(what.as_str()).into_iter().chain([query(what.as_str())(gone)]);
                if let Some(lost) = told.into_iter().find(PostgresError::is_of_ended_session) {
                    return lost;
                }
                // Its last word may have been the answer to something that nobody waits for any more.
                if self.is_standby && held.holder.is_closed() {
                    let detail = "connection closed, as a standby does in a conflict with recovery".to_owned();
                    return PostgresError::Query { what, detail, state: Some(*error::CONFLICT) };
                }
            }
        }
        error
    }

    /// Sends everything into the pipeline.
    ///
    /// # Errors
    /// Whatever kept it from being complete.
    async fn transfer(&self, into: &SnapshotWriter) -> Result<Captured, SourceError> {
        let cut = Cut::of_all(self.databases.iter().map(|held| held.cut.clone()))
            .ok_or_else(|| PostgresError::Empty { server: self.server.name(), databases: Vec::new() })?;
        into.progress().set_phase("roles");
        self.globals(into).await?;
        // All definitions before any rows: `pg_dump` locks the tables too, and waits in vain behind someone who waits for us.
        // The longer the locks are held before, the likelier there is one.
        for held in &self.databases {
            into.progress().set_phase(format!("definitions of {}", held.detail.name));
            self.definitions(held, into).await?;
        }
        for held in &self.databases {
            into.progress().set_phase(format!("rows of {}", held.detail.name));
            Reading::new(&self.server, &held.detail, &held.relations, into).all(&held.holder).await?;
            if held.detail.large_objects > 0 {
                into.progress().set_phase(format!("large objects of {}", held.detail.name));
                self.large_objects(held, into).await?;
            }
            // Not before the end: sequences may be ahead of the snapshot, never behind.
            sequences(held, into).await?;
            // An error that the server had for the holder all along must not go unnoticed.
            held.holder.batch_execute("COMMIT").await.map_err(query("ending the snapshot's transaction"))?;
        }
        let detail = SnapshotDetail {
            server_version: self.version.text.clone(),
            major: self.version.major,
            pg_dump: self.tools.version.clone(),
            bootstrap: self.bootstrap.clone(),
            with_passwords: self.reads_passwords,
            databases: self.databases.iter().map(|held| held.detail.clone()).collect(),
        };
        let empty = detail.databases.iter().all(|database| database.tables == 0 && database.large_objects == 0);
        let detail =
            serde_json::to_value(detail).map_err(|error| PostgresError::Detail { detail: error.to_string() })?;
        Ok(Captured {
            cut,
            detail,
            uncovered: self.uncovered.clone(),
            failed: Vec::new(),
            hint: None,
            notes: Vec::new(),
            about: Vec::new(),
            server: self.marks.clone(),
            empty,
        })
    }

    async fn globals(&self, into: &SnapshotWriter) -> Result<(), SourceError> {
        let program = self.tools.command("pg_dumpall", &self.server, self.server.maintenance())?;
        let restrict = restrict_argument(&self.tools, into).await?;
        let mut args = vec!["--globals-only", "--no-password", "--encoding=UTF8", "--database"];
        args.push(self.server.maintenance());
        if !self.reads_passwords {
            args.push("--no-role-passwords");
        }
        let mut writer = into.artifact(GLOBALS, Format::Sql).await?;
        program.args(args).args(restrict).run_into("the server's roles", &mut writer).await?;
        writer.finish(serde_json::Value::Null).await?;
        Ok(())
    }

    /// DDL by `pg_dump`, on the exported snapshot.
    async fn definitions(&self, held: &HeldDatabase, into: &SnapshotWriter) -> Result<(), SourceError> {
        let detail = &held.detail;
        let restrict = restrict_argument(&self.tools, into).await?;
        let common = || {
            let snapshot = format!("--snapshot={}", detail.snapshot);
            let timeout = format!("--lock-wait-timeout={}", self.server.config.lock_timeout.as_millis());
            let program = self.tools.command("pg_dump", &self.server, &detail.name)?;
            Ok::<_, PostgresError>(
                program.args(["--no-password", LEAVE_OUT_LARGE_OBJECTS, &snapshot, &timeout]).args(restrict.clone()),
            )
        };
        let section = async |section: &str, path: String| {
            let mut writer = into.artifact(path, Format::Sql).await?;
            let what = format!("the {section} definitions of database `{}`", detail.name);
            common()?.args([format!("--section={section}")]).run_into(&what, &mut writer).await?;
            writer.finish(serde_json::Value::Null).await?;
            Ok::<_, SourceError>(())
        };
        // With every schema left out, `--create` still says all that there is to say of the database itself.
        let properties = async {
            let what = format!("the properties of database `{}`", detail.name);
            let printed = common()?
                .args(["--create", "--schema-only", "--encoding=UTF8", "--exclude-schema=*"])
                .output(&what, MOST_PROPERTIES)
                .await?;
            let printed = String::from_utf8_lossy(&printed);
            let mut properties = String::new();
            for statement in sql::statements(&printed).iter().filter(|statement| statement.is_on_database(&detail.name))
            {
                properties.push_str(statement.text);
                properties.push_str(";\n");
            }
            let mut writer = into.artifact(detail.properties_sql(), Format::Sql).await?;
            writer.write(properties.as_bytes()).await?;
            writer.finish(serde_json::Value::Null).await?;
            Ok::<_, SourceError>(())
        };
        // In the holder's snapshot, as `pg_dump` was.
        let by_the_holder = async {
            let mut writer = into.artifact(detail.inventory_txt(), Format::Text).await?;
            writer.write(inventory::take(&held.holder).await?.as_bytes()).await?;
            writer.finish(serde_json::Value::Null).await?;
            if detail.large_objects > 0 {
                let mut writer = into.artifact(detail.large_objects_sql(), Format::Sql).await?;
                large_objects::statements(&held.holder, &mut writer).await?;
                writer.finish(serde_json::Value::Null).await?;
            }
            Ok::<_, SourceError>(())
        };
        // One after the other: each locks every table, and a server has room for so many locks.
        let sections = async {
            section("pre-data", detail.pre_data_sql()).await?;
            section("post-data", detail.post_data_sql()).await
        };
        tokio::try_join!(sections, properties, by_the_holder)?;
        Ok(())
    }

    /// The bytes of large objects, in the snapshot. Nobody can lock them, and nobody need: nothing but the rows of catalogs is read.
    async fn large_objects(&self, held: &HeldDatabase, into: &SnapshotWriter) -> Result<(), SourceError> {
        let detail = &held.detail;
        let session = rows::worker_session(&self.server, detail).await?;
        let failed = || query(format!("reading the large objects of database `{}`", detail.name));
        let mut writer = into.artifact(detail.large_objects_rows(), Format::CopyText).await?;
        let rows = session.copy_out(&large_objects::copy_out()).await.map_err(failed())?;
        let (mut rows, mut pieces, mut expected) = (std::pin::pin!(rows), large_objects::Pieces::default(), true);
        // The server sends each row as a message of its own.
        while let Some(row) = rows.try_next().await.map_err(failed())? {
            expected &= pieces.take(&row);
            writer.write(&row).await?;
        }
        let (_, fingerprint) = writer.finish(json!({"database": detail.name})).await?;
        if fingerprint.is_none() || !expected || !pieces.are_whole(detail.large_objects) {
            return Err(PostgresError::TornObjects { database: detail.name.clone() }.into());
        }
        session.batch_execute("COMMIT").await.map_err(query("ending a worker's transaction"))?;
        Ok(())
    }
}

async fn restrict_argument(tools: &Tools, into: &SnapshotWriter) -> Result<Option<String>, PostgresError> {
    restrict_argument_for(tools, into.restrict_key()).await
}

/// `--restrict-key`, where this `pg_dump` has it (from 14.19, 15.14, 16.10, 17.6 and 18 on).
pub(super) async fn restrict_argument_for(tools: &Tools, key: String) -> Result<Option<String>, PostgresError> {
    Ok(tools.knows_restrict_key().await?.then(|| format!("--restrict-key={key}")))
}

/// Positions of sequences as statements, so that they can be set by hand, and as values.
async fn sequences(held: &HeldDatabase, into: &SnapshotWriter) -> Result<(), SourceError> {
    let names: Vec<(String, String)> = held
        .relations
        .iter()
        .filter(|relation| relation.kind == RelationKind::Sequence && relation.left_out.is_none())
        .map(|relation| (relation.schema.clone(), relation.name.clone()))
        .collect();
    let positions = catalog::sequence_positions(&held.holder, &names).await?;
    // The names below are UTF-8, whatever the database's own encoding, which psql would take else.
    let mut text = String::from("SET client_encoding = 'UTF8';\n");
    for position in &positions {
        let name = sql::literal(&sql::qualified(&position.schema, &position.name));
        text.push_str(&format!("SELECT pg_catalog.setval({name}, {}, {});\n", position.last_value, position.is_called));
    }
    let mut writer = into.artifact(held.detail.sequences_sql(), Format::Sql).await?;
    writer.write(text.as_bytes()).await?;
    let detail =
        serde_json::to_value(positions).map_err(|error| PostgresError::Detail { detail: error.to_string() })?;
    writer.finish(detail).await?;
    Ok(())
}
