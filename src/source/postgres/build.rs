//! A database built under a temporary name and compared with what was captured, before anyone sees it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use futures::{StreamExt, TryStreamExt, future::try_join_all};

use super::{
    capture::{DatabaseDetail, SnapshotDetail},
    catalog::{self, RelationKind, SequencePosition},
    connect::{Server, Session},
    copy::{self, TableDetail},
    error::{PostgresError, query},
    large_objects, load,
    post_data::{self, Done},
    rows, sql,
    swap::Swap,
    tools::Tools,
};
use crate::{
    config::NamePattern,
    pipeline::{Artifact, Fingerprint, Format, PartRef, PipelineError, RowHasher, SnapshotReader},
    report,
    source::{Compared, Difference, RestoredItem, SourceError},
};

/// The longest piece of DDL that is read as a whole, in bytes.
const MOST_TEXT: u64 = 256 * 1024 * 1024;
/// The longest script that is taken apart into its statements, in bytes: each takes some hundred bytes more.
const MOST_STATEMENTS: u64 = 32 * 1024 * 1024;

/// Bytes of rows that are read back by one statement, about.
const READ_BACK: u64 = 64 * 1024 * 1024;

/// One table of a build.
#[derive(Clone)]
pub(super) struct TableBuild {
    artifact: Artifact,
    detail: TableDetail,
    fingerprint: Fingerprint,
}

impl TableBuild {
    /// Of its rows' artifact.
    pub(super) fn path(&self) -> &str {
        &self.artifact.path
    }

    pub(super) fn shown(&self) -> String {
        catalog::shown(&self.detail.schema, &self.detail.table)
    }

    /// Does one of these patterns mean it?
    pub(super) fn fits(&self, patterns: &[NamePattern]) -> bool {
        let name = format!("{}.{}", self.detail.schema, self.detail.table);
        patterns.iter().any(|pattern| pattern.matches(&name))
    }

    /// Is it an extension's configuration table?
    pub(super) fn is_configuration(&self) -> bool {
        self.detail.is_configuration
    }

    /// Schema and name.
    pub(super) fn name(&self) -> (&str, &str) {
        (&self.detail.schema, &self.detail.table)
    }

    pub(super) fn format(&self) -> Format {
        self.artifact.format
    }

    pub(super) fn raw(&self) -> u64 {
        self.artifact.raw
    }

    pub(super) fn rows(&self) -> u64 {
        self.fingerprint.rows
    }

    pub(super) fn parts(&self) -> &[PartRef] {
        &self.artifact.parts
    }

    /// The statement that loads its rows.
    pub(super) fn copy_in(&self) -> &str {
        &self.detail.copy
    }
}

/// One database to be built.
pub(super) struct Build {
    detail: DatabaseDetail,
    /// Major version of the server that the snapshot is of.
    major: u32,
    /// The name it will have.
    pub(super) to: String,
    /// The name it is built under.
    pub(super) temporary: String,
    /// Where the database goes that has the name now.
    pub(super) keep_as: Option<String>,
    pub(super) tables: Vec<TableBuild>,
    /// The bytes of large objects, where there are any.
    large_objects: Option<(Artifact, Fingerprint)>,
    pub(super) rows: u64,
    pub(super) raw: u64,
    /// Tablespaces that the target does not have: what is in them is made in the default one.
    pub(super) missing_tablespaces: Vec<String>,
    /// Tables of the snapshot that were not asked for: they are there without rows.
    pub(super) not_asked_for: Vec<sql::Name>,
}

impl Build {
    /// What the manifest notes of the database.
    pub(super) fn detail(&self) -> &DatabaseDetail {
        &self.detail
    }

    pub(super) fn new(
        snapshot: &SnapshotReader,
        detail: DatabaseDetail,
        to: String,
        temporary: String,
        asked_for: &[NamePattern],
    ) -> Result<Self, SourceError> {
        let bad = |what: String| PostgresError::Detail { detail: what };
        let whole: SnapshotDetail =
            serde_json::from_value(snapshot.detail().clone()).map_err(|error| bad(error.to_string()))?;
        let (mut tables, mut large_objects) = (Vec::new(), None);
        for artifact in snapshot.artifacts() {
            let Some(fingerprint) = artifact.fingerprint else { continue };
            if artifact.path == detail.large_objects_rows() {
                large_objects = Some((artifact.clone(), fingerprint));
            }
            if whole.databases.iter().any(|database| artifact.path == database.large_objects_rows()) {
                continue;
            }
            let table: TableDetail = serde_json::from_value(artifact.detail.clone())
                .map_err(|error| bad(format!("{}: {error}", artifact.path)))?;
            if table.database == detail.name {
                tables.push(TableBuild { artifact: artifact.clone(), detail: table, fingerprint });
            }
        }
        if large_objects.is_none() && detail.large_objects > 0 && asked_for.is_empty() {
            snapshot.artifact(&detail.large_objects_rows())?;
        }
        let mut not_asked_for = Vec::new();
        tables.retain(|table| {
            let is_asked_for = asked_for.is_empty() || table.fits(asked_for);
            if !is_asked_for {
                not_asked_for.push((table.detail.schema.clone(), table.detail.table.clone()));
            }
            is_asked_for
        });
        if !asked_for.is_empty() {
            large_objects = None;
        }
        tables.sort_by_key(|table| std::cmp::Reverse(table.artifact.raw));
        let rows = tables.iter().map(|table| table.fingerprint.rows).sum();
        let raw = tables.iter().map(|table| table.artifact.raw).sum::<u64>()
            + large_objects.as_ref().map_or(0, |(artifact, _)| artifact.raw);
        Ok(Self {
            detail,
            major: whole.major,
            to,
            temporary,
            keep_as: None,
            tables,
            large_objects,
            rows,
            raw,
            missing_tablespaces: Vec::new(),
            not_asked_for,
        })
    }

    /// How many large objects are restored.
    pub(super) fn large_objects(&self) -> u64 {
        if self.large_objects.is_some() { self.detail.large_objects } else { 0 }
    }

    /// Is there a table that this pattern means?
    pub(super) fn has(&self, pattern: &NamePattern) -> bool {
        self.tables.iter().any(|table| table.fits(std::slice::from_ref(pattern)))
    }

    pub(super) fn swap(&self) -> Swap {
        Swap { temporary: self.temporary.clone(), to: self.to.clone(), keep_as: self.keep_as.clone() }
    }
}

/// `CREATE DATABASE`, as `pg_dump` wrote it, under the temporary name.
pub(super) async fn create(session: &Session, snapshot: &SnapshotReader, build: &Build) -> Result<(), SourceError> {
    let text = snapshot.text(snapshot.artifact(&build.detail.properties_sql())?, MOST_TEXT).await?;
    let statements = sql::statements(&text);
    let create = statements.iter().find(|statement| statement.begins(&["create", "database"])).ok_or_else(|| {
        PostgresError::Detail { detail: format!("{} creates no database", build.detail.properties_sql()) }
    })?;
    let mut statement = create.on_database(&build.temporary);
    if let [create, ..] = &sql::statements(&statement)[..] {
        statement = create.without_tablespace(|name| build.missing_tablespaces.iter().any(|one| one == name));
    }
    session.batch_execute(&statement).await.map_err(query(format!("creating database `{}`", build.temporary)))?;
    Ok(())
}

/// Owner, settings, comment, grants: on the temporary name, since they stay with the database when it is renamed, and a failure
/// here must not find the old one renamed already.
pub(super) async fn properties(session: &Session, snapshot: &SnapshotReader, build: &Build) -> Result<(), SourceError> {
    let text = snapshot.text(snapshot.artifact(&build.detail.properties_sql())?, MOST_TEXT).await?;
    for statement in sql::statements(&text).iter().filter(|statement| !statement.begins(&["create", "database"])) {
        let statement = statement.on_database(&build.temporary);
        // A setting may be a secret: only the first words are shown.
        let words: Vec<&str> = statement.split_whitespace().take(2).collect();
        let what = format!("setting up database `{}` ({} …)", build.to, words.join(" "));
        session.batch_execute(&statement).await.map_err(query(what))?;
    }
    Ok(())
}

/// Definitions, rows, definitions, sequences.
pub(super) async fn fill(
    server: &Server,
    snapshot: &SnapshotReader,
    psql: &Tools,
    build: &Build,
) -> Result<Done, SourceError> {
    let progress = snapshot.progress();
    progress.set_phase(format!("definitions of {}", build.to));
    run_sql(server, snapshot, psql, build, &build.detail.pre_data_sql()).await?;
    progress.set_phase(format!("rows of {}", build.to));
    load::all(server, snapshot, build).await?;
    if let Some((rows, _)) = &build.large_objects {
        progress.set_phase(format!("large objects of {}", build.to));
        run_sql(server, snapshot, psql, build, &build.detail.large_objects_sql()).await?;
        let session = server.connect(&build.temporary).await?;
        large_objects::load(&session, snapshot, rows).await?;
    }
    progress.set_phase(format!("indexes and constraints of {}", build.to));
    let done = post_data(server, snapshot, psql, build).await?;
    run_sql(server, snapshot, psql, build, &build.detail.sequences_sql()).await?;
    Ok(done)
}

/// What comes after the rows, by several connections. A script that is not in UTF-8, or that is very long, is `psql`'s alone.
async fn post_data(
    server: &Server,
    snapshot: &SnapshotReader,
    psql: &Tools,
    build: &Build,
) -> Result<Done, SourceError> {
    let artifact = snapshot.artifact(&build.detail.post_data_sql())?;
    let text = match build.detail.encoding.as_str() {
        "UTF8" if artifact.raw <= MOST_STATEMENTS => snapshot.text(artifact, MOST_STATEMENTS).await?,
        _ => {
            run_sql(server, snapshot, psql, build, &artifact.path).await?;
            return Ok(Done::default());
        }
    };
    let text = sql::without_tablespaces(&text, &build.missing_tablespaces);
    let name = |(schema, table): (&str, &str)| (schema.to_owned(), table.to_owned());
    let with_rows = build.tables.iter().map(|table| (name(table.name()), table.raw()));
    let sizes = with_rows.chain(build.not_asked_for.iter().map(|name| (name.clone(), 0))).collect();
    Ok(post_data::run(server, build, sizes, &text).await?)
}

/// Definitions without any rows.
pub(super) async fn define(
    server: &Server,
    snapshot: &SnapshotReader,
    psql: &Tools,
    build: &Build,
) -> Result<(), SourceError> {
    run_sql(server, snapshot, psql, build, &build.detail.pre_data_sql()).await?;
    if build.large_objects.is_some() {
        run_sql(server, snapshot, psql, build, &build.detail.large_objects_sql()).await?;
    }
    post_data(server, snapshot, psql, build).await?;
    Ok(())
}

/// Statistics for the planner, of several tables at a time. Returns what could not be looked at, in words: nothing is lost by that.
pub(super) async fn analyze(
    server: &Server,
    snapshot: &SnapshotReader,
    build: &Build,
) -> Result<Vec<String>, SourceError> {
    snapshot.progress().set_phase(format!("statistics of {}", build.to));
    let session = server.connect(&build.temporary).await?;
    let queue = Mutex::new(VecDeque::from(catalog::analyzable(&session).await?));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = async || {
        let mut notes = Vec::new();
        let session = server.connect(&build.temporary).await?;
        while let Some((schema, table)) = next() {
            let shown = catalog::shown(&schema, &table);
            let done = session.batch_execute(&format!("ANALYZE {}", sql::qualified(&schema, &table))).await;
            match done.map_err(query(format!("ANALYZE {shown} in database `{}`", build.to))) {
                // A table with a partition on another server, for one.
                Err(error @ PostgresError::Query { state: Some(_), .. }) => notes.push(error.to_string()),
                done => done?,
            }
        }
        Ok::<_, SourceError>(notes)
    };
    Ok(try_join_all((0..server.config.workers).map(|_| worker())).await?.into_iter().flatten().collect())
}

/// Every sequence, and the rows of every table, beside what was captured.
pub(super) async fn compare(
    server: &Server,
    snapshot: &SnapshotReader,
    build: &Build,
    target_major: u32,
) -> Result<Comparison, SourceError> {
    snapshot.progress().set_phase(format!("comparing {}", build.to));
    let session = server.connect(&build.temporary).await?;
    let mut comparison = compare_tables(server, snapshot, build, target_major).await?;
    comparison.differences.extend(compare_sequences(&session, snapshot, build).await?);
    Ok(comparison)
}

/// What a comparison found.
#[derive(Default)]
pub(super) struct Comparison {
    /// Tables that are the same, or of which nobody can tell.
    pub(super) items: Vec<RestoredItem>,
    /// What is not the same.
    pub(super) differences: Vec<Difference>,
}

impl Comparison {
    /// The items, unless something differs.
    pub(super) fn same_or_error(self) -> Result<Vec<RestoredItem>, PostgresError> {
        if self.differences.is_empty() {
            return Ok(self.items);
        }
        let differences: Vec<String> =
            self.differences.iter().map(|one| format!("{}: {}", one.object, one.what)).collect();
        Err(PostgresError::Differs { total: differences.len(), differences })
    }
}

/// Feeds an artifact of SQL to `psql`, to the first error. Not in one transaction, whose locks on some thousand tables a server has
/// no room for; a database that is half made is dropped whole.
async fn run_sql(
    server: &Server,
    snapshot: &SnapshotReader,
    psql: &Tools,
    build: &Build,
    path: &str,
) -> Result<(), SourceError> {
    let artifact = snapshot.artifact(path)?;
    if artifact.raw == 0 {
        return Ok(());
    }
    let mut running = psql
        .command("psql", server, &build.temporary)?
        .env("PGOPTIONS", "-c client_min_messages=warning -c client_connection_check_interval=10000 -c statement_timeout=0 -c default_transaction_read_only=off -c synchronous_commit=off")
        .args(["--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose", "--file=-"])
        .feed(&format!("{path} of database `{}`", build.to))?;
    let mut parts = std::pin::pin!(snapshot.open(artifact));
    if !build.missing_tablespaces.is_empty() && path != build.detail.large_objects_sql() && artifact.raw <= MOST_TEXT {
        // Few databases have any, and their definitions are short beside their rows. In whatever encoding: a character for each byte, and back.
        let mut text = String::new();
        while let Some(part) = parts.next().await {
            text.extend(part?.iter().map(|byte| char::from(*byte)));
        }
        let bytes_of = |text: &str| text.bytes().map(char::from).collect::<String>();
        let missing: Vec<String> = build.missing_tablespaces.iter().map(|name| bytes_of(name)).collect();
        let text = sql::without_tablespaces(&text, &missing);
        let bytes: Vec<u8> = text.chars().filter_map(|c| u8::try_from(u32::from(c)).ok()).collect();
        running.write(&bytes).await?;
    }
    while let Some(part) = parts.next().await {
        running.write(&part?).await?;
    }
    match running.finish().await {
        Err(error) => Err(with_object(snapshot, artifact, error).await.into()),
        Ok(()) => Ok(()),
    }
}

/// What `psql` said with the object that the statement was for: it tells a line only.
async fn with_object(snapshot: &SnapshotReader, artifact: &Artifact, mut error: PostgresError) -> PostgresError {
    if let PostgresError::Program { what, stderr, .. } = &mut error
        && let Some(line) = stderr
            .lines()
            .filter(|line| line.contains(": ERROR:"))
            .find_map(|line| line.strip_prefix("psql:<stdin>:")?.split(':').next()?.parse().ok())
        && let Ok(text) = snapshot.text(artifact, MOST_STATEMENTS).await
        && let Some(statement) = sql::statement_at(&text, line)
    {
        *what = format!("{what}, at {}", post_data::shown(&statement));
    }
    error
}

/// A table's fingerprint as it was captured, and as it is now.
struct Pair {
    name: String,
    was: Fingerprint,
    is: Fingerprint,
}

/// The fingerprints of every table, largest first, on several connections: a fingerprint is a sum, so that a large table is read in ranges.
async fn fingerprints(server: &Server, snapshot: &SnapshotReader, build: &Build) -> Result<Vec<Pair>, SourceError> {
    let session = server.connect(&build.temporary).await?;
    let mut queue = VecDeque::new();
    for (n, table) in build.tables.iter().enumerate() {
        queue.extend(read_back(&session, build, table).await?.into_iter().map(|statement| (n, statement)));
    }
    drop(session);
    let queue = Mutex::new(queue);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = async || {
        let mut done = Vec::new();
        let Some((mut n, mut statement)) = next() else { return Ok(done) };
        let session = server.connect_for_rows(&build.temporary, &build.detail.row_settings).await?;
        session.batch_execute(rows::IN_HEAP_ORDER).await.map_err(query("setting up a session that reads back"))?;
        loop {
            let table = &build.tables[n];
            let seed = snapshot.fingerprint_seed();
            let is = fingerprint(&session, seed, table.artifact.format, &statement, table.shown()).await?;
            done.push((n, is));
            match next() {
                Some(following) => (n, statement) = following,
                None => return Ok::<_, SourceError>(done),
            }
        }
    };
    let mut sums = vec![Fingerprint::default(); build.tables.len()];
    for (n, is) in try_join_all((0..server.config.workers).map(|_| worker())).await?.into_iter().flatten() {
        sums[n] = sums[n].with(&is);
    }
    let pairs = build.tables.iter().zip(sums);
    Ok(pairs.map(|(table, is)| Pair { name: table.shown(), was: table.fingerprint, is }).collect())
}

/// The statements that read a table's rows back, each some of them where they are many.
async fn read_back(session: &Session, build: &Build, table: &TableBuild) -> Result<Vec<String>, PostgresError> {
    let (detail, format, encoding) = (&table.detail, table.artifact.format, &build.detail.encoding);
    let ranges = u32::try_from(table.raw() / READ_BACK).unwrap_or(u32::MAX);
    let pages = match ranges >= 2 && detail.condition.is_empty() {
        true => catalog::heap_pages(session, table.name()).await?,
        false => None,
    };
    let Some(pages @ 1..) = pages else { return Ok(vec![detail.copy_out(format, encoding)]) };
    let step = (pages / ranges).max(1);
    let starts: Vec<u32> = (0..pages).step_by(step as usize).collect();
    let ends = starts.iter().skip(1).copied().chain([copy::NO_PAGE]);
    Ok(starts.iter().zip(ends).map(|(from, to)| detail.copy_pages_out(*from, to, format, encoding)).collect())
}

/// The fingerprint of what is there now, read by the statement that it was captured with.
async fn fingerprint(
    session: &Session,
    seed: u64,
    format: Format,
    statement: &str,
    shown: String,
) -> Result<Fingerprint, PostgresError> {
    let failed = |error| query(format!("reading back {shown}"))(error);
    let not_rows = || PostgresError::Detail { detail: format!("{shown} is said to be no rows") };
    let mut hasher = RowHasher::new(copy::rows(format).ok_or_else(not_rows)?, seed);
    let rows = session.copy_out(statement).await.map_err(failed)?;
    let mut rows = std::pin::pin!(rows);
    while let Some(chunk) = rows.try_next().await.map_err(failed)? {
        hasher.update(&chunk);
    }
    hasher.finish().ok_or(PostgresError::TornRows { table: shown })
}

async fn compare_tables(
    server: &Server,
    snapshot: &SnapshotReader,
    build: &Build,
    target_major: u32,
) -> Result<Comparison, SourceError> {
    let mut compared = fingerprints(server, snapshot, build).await?;
    if let Some((_, was)) = build.large_objects {
        let session = server.connect_for_rows(&build.temporary, &build.detail.row_settings).await?;
        // An object is open only within a transaction.
        session.batch_execute("BEGIN READ ONLY").await.map_err(query("beginning to read large objects"))?;
        let (seed, name) = (snapshot.fingerprint_seed(), report::count(build.detail.large_objects, "large object"));
        let is = fingerprint(&session, seed, Format::CopyText, &large_objects::copy_out(), name.clone()).await?;
        compared.push(Pair { name, was, is });
    }
    let mut comparison = Comparison::default();
    for Pair { name, was, is } in compared {
        let verdict = if was == is {
            Compared::Same
        } else if was.rows == is.rows && build.major != target_major {
            // Two majors may print one value differently; fewer or more rows have no such excuse.
            Compared::Inconclusive
        } else {
            let what = if was.rows == is.rows {
                "the same number, other content".to_owned()
            } else {
                format!("captured {}", was.rows)
            };
            let what = format!("{} ({what})", report::count(is.rows, "row"));
            comparison.differences.push(Difference { object: name, what });
            continue;
        };
        comparison.items.push(RestoredItem {
            name: format!("{}: {name}", build.to),
            rows: is.rows,
            bytes: is.bytes,
            compared: verdict,
        });
    }
    comparison.differences.sort_by(|a, b| a.object.cmp(&b.object));
    comparison.items.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(comparison)
}

/// Ahead is allowed, behind never.
async fn compare_sequences(
    session: &Session,
    snapshot: &SnapshotReader,
    build: &Build,
) -> Result<Vec<Difference>, SourceError> {
    let artifact = snapshot.artifact(&build.detail.sequences_sql())?;
    let was: Vec<SequencePosition> = serde_json::from_value(artifact.detail.clone())
        .map_err(|error| PipelineError::from(crate::repository::Trust::damaged(&artifact.path, error)))?;
    let there: HashSet<(String, String)> = catalog::relations(session)
        .await?
        .into_iter()
        .filter(|relation| relation.kind == RelationKind::Sequence)
        .map(|relation| (relation.schema, relation.name))
        .collect();
    let name = |one: &SequencePosition| (one.schema.clone(), one.name.clone());
    let names: Vec<(String, String)> = was.iter().map(name).filter(|name| there.contains(name)).collect();
    let (is, down) =
        (catalog::sequence_positions(session, &names).await?, catalog::descending_sequences(session).await?);
    let is: HashMap<(&str, &str), &SequencePosition> =
        is.iter().map(|one| ((one.schema.as_str(), one.name.as_str()), one)).collect();
    let mut differences = Vec::new();
    for position in &was {
        let what = match is.get(&(position.schema.as_str(), position.name.as_str())) {
            None => "is not there".to_owned(),
            Some(is) if is.is_behind(position, down.contains(&name(position))) => {
                format!("is at {} and was at {}", is.last_value, position.last_value)
            }
            Some(_) => continue,
        };
        let object = format!("sequence {}", catalog::shown(&position.schema, &position.name));
        differences.push(Difference { object, what });
    }
    Ok(differences)
}
