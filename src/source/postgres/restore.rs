//! Restore: the plan, and the order of its execution. Nothing that exists is touched before everything new was built and compared.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    build::{self, Build},
    capture::{DatabaseDetail, GLOBALS, SnapshotDetail},
    catalog,
    connect::{Server, Session},
    discard,
    error::{PostgresError, query},
    large_objects,
    roles::{self, RolePlan},
    sql,
    swap::{self, Backend, Swap},
    tools::Tools,
};
use crate::{
    pipeline::SnapshotReader,
    report,
    source::{Refusal, Restore, RestorePlan, RestoreRequest, Restored, SourceError},
};

/// The longest globals.sql, in bytes.
const MOST_GLOBALS: u64 = 64 * 1024 * 1024;
/// Bytes in a name (NAMEDATALEN - 1).
const MOST_NAME: usize = 63;

/// How long a server that cannot be reached is asked whether the renaming went through.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// `base` and `suffix` within the length of a name, cut on a character.
fn name_with(base: &str, suffix: &str) -> String {
    let mut room = MOST_NAME.saturating_sub(suffix.len()).min(base.len());
    while !base.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}{suffix}", &base[..room])
}

/// A name that the server does not have yet.
fn free_name(base: &str, what: &str, tail: &str, taken: &HashSet<String>) -> String {
    let first = name_with(base, &format!("_{what}_{tail}"));
    if !taken.contains(&first) {
        return first;
    }
    (2..)
        .map(|n: u32| name_with(base, &format!("_{what}_{tail}_{n}")))
        .find(|name| !taken.contains(name))
        .unwrap_or(first)
}

/// A planned restore of PostgreSQL.
pub(super) struct PostgresRestore {
    server: Server,
    snapshot: SnapshotReader,
    plan: RestorePlan,
    roles: RolePlan,
    builds: Vec<Build>,
    /// The database to connect to for what concerns several: none of those that are renamed.
    maintenance: String,
    psql: Tools,
}

/// Looks at the target and writes the plan.
pub(super) async fn plan(
    server: &Server,
    snapshot: SnapshotReader,
    request: &RestoreRequest,
) -> Result<PostgresRestore, SourceError> {
    let detail: SnapshotDetail = serde_json::from_value(snapshot.detail().clone())
        .map_err(|error| PostgresError::Detail { detail: error.to_string() })?;
    let chosen = choose(&detail, request)?;
    let session = server.connect(server.maintenance()).await?;
    let version = catalog::version(server, &session).await?;
    let psql = Tools::find_psql(server.config.tools_dir.as_deref(), version.major).await?;
    let target = Target::look(&session).await?;
    let mut plan = RestorePlan { target: server.config.endpoint.to_string(), ..RestorePlan::default() };
    let mut refuse = |what: String, hint: &str| plan.refusals.push(Refusal { what, hint: hint.to_owned() });

    if detail.major > version.major {
        refuse(
            format!("the snapshot is of PostgreSQL {}, the target of {}", detail.server_version, version.text),
            "restore into a server of the same or a newer major version",
        );
    }
    let role = catalog::role(&session).await?;
    let has_large_objects = request.tables.is_empty() && chosen.iter().any(|(database, _)| database.large_objects > 0);
    if has_large_objects && !role.superuser {
        let what = format!("role `{}` is no superuser, and the snapshot holds large objects", role.name);
        refuse(what, "restore as a superuser");
    }
    if !(role.superuser || role.create_database) {
        refuse(format!("role `{}` may not create databases", role.name), "give it CREATEDB, or restore as a superuser");
    }
    let existing = roles::existing(&session).await?;
    let globals = snapshot.text(snapshot.artifact(GLOBALS)?, MOST_GLOBALS).await?;
    let roles = roles::plan(&globals, &existing);
    if !roles.create.is_empty() {
        plan.steps.push(format!(
            "create {}: {}",
            report::count(roles.create.len() as u64, "role"),
            report::list(&roles.create, 10)
        ));
    }
    if !roles.kept.is_empty() {
        plan.notes.push(format!("roles that exist are left as they are: {}", report::list(&roles.kept, 10)));
    }

    let mut builds = Vec::new();
    let tail = snapshot.tail();
    let mut taken = target.databases.clone();
    for (database, to) in chosen {
        if database.objects == 0 && database.name == "postgres" && to == "postgres" {
            plan.notes.push("database `postgres` held nothing; the target's is left as it is".to_owned());
            continue;
        }
        for missing in database.extensions.iter().filter(|extension| !target.extensions.contains(&extension.name)) {
            refuse_into(
                &mut plan,
                format!(
                    "database `{}` needs extension `{}`, which the target does not have",
                    database.name, missing.name
                ),
                "install the extension's package on the target server",
            );
        }
        let missing: Vec<String> =
            database.tablespaces.iter().filter(|name| !target.tablespaces.contains(*name)).cloned().collect();
        if !missing.is_empty() {
            plan.notes.push(format!(
                "the target has no {}: what database `{}` has there goes into the default tablespace",
                report::list(&missing.iter().map(|name| format!("tablespace `{name}`")).collect::<Vec<_>>(), 5),
                database.name
            ));
        }
        let mut build =
            plan_database(server, &snapshot, database, to, &target, request, &mut taken, &tail, &mut plan).await?;
        build.missing_tablespaces = missing;
        builds.push(build);
    }
    if builds.is_empty() && plan.refusals.is_empty() {
        plan.notes.push("there is nothing to restore".to_owned());
    }
    let replaced: BTreeSet<&str> = builds.iter().map(|build| build.to.as_str()).collect();
    let maintenance = [server.maintenance(), "postgres", "template1"]
        .into_iter()
        .find(|name| !replaced.contains(name))
        .unwrap_or("template1")
        .to_owned();
    for leftover in target.databases.iter().filter(|name| name.contains("_restoring_")) {
        plan.notes.push(format!(
            "`{leftover}` is the half of a restore that was killed, or of one that still runs; once none does, to remove it: DROP DATABASE {} WITH (FORCE);",
            sql::ident(leftover)
        ));
    }
    if let Some(pattern) = request.tables.iter().find(|pattern| !builds.iter().any(|build| build.has(pattern))) {
        return Err(PostgresError::NoTable { pattern: pattern.as_str().to_owned() }.into());
    }
    plan.raw = builds.iter().map(|build| build.raw).sum();
    Ok(PostgresRestore { server: server.clone(), snapshot, plan, roles, builds, maintenance, psql })
}

fn refuse_into(plan: &mut RestorePlan, what: String, hint: &str) {
    plan.refusals.push(Refusal { what, hint: hint.to_owned() });
}

/// Which databases of the snapshot, and their new names.
fn choose<'a>(
    detail: &'a SnapshotDetail,
    request: &RestoreRequest,
) -> Result<Vec<(&'a DatabaseDetail, String)>, PostgresError> {
    if request.databases.is_empty() {
        return Ok(detail.databases.iter().map(|database| (database, database.name.clone())).collect());
    }
    let mut chosen: Vec<(&DatabaseDetail, String)> = Vec::new();
    for (from, to) in &request.databases {
        let found = detail.databases.iter().find(|database| database.name == *from);
        // The server would cut a longer name short, and restore over another database than the one that was looked at.
        if to.len() > MOST_NAME {
            return Err(PostgresError::NameTooLong { name: to.clone(), most: MOST_NAME });
        }
        if chosen.iter().any(|(_, other)| other == to) {
            return Err(PostgresError::NameTwice { name: to.clone() });
        }
        let database = found.ok_or_else(|| PostgresError::NotInSnapshot {
            database: from.clone(),
            held: detail.databases.iter().map(|database| database.name.clone()).collect(),
        })?;
        chosen.push((database, to.clone()));
    }
    Ok(chosen)
}

/// What the target has.
struct Target {
    databases: HashSet<String>,
    extensions: HashSet<String>,
    tablespaces: HashSet<String>,
    /// Sessions, prepared transactions, subscriptions and logical slots, by database.
    sessions: BTreeMap<String, i64>,
    prepared: BTreeMap<String, i64>,
    subscriptions: BTreeMap<String, i64>,
    slots: BTreeMap<String, i64>,
}

impl Target {
    async fn look(session: &Session) -> Result<Self, PostgresError> {
        let names = async |statement: &str| {
            let rows = session.query(statement, &[]).await.map_err(query("looking at the target"))?;
            Ok::<HashSet<String>, PostgresError>(rows.iter().map(|row| row.get(0)).collect())
        };
        let counts = async |statement: &str| {
            let rows = session.query(statement, &[]).await.map_err(query("looking at the target"))?;
            Ok::<BTreeMap<String, i64>, PostgresError>(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        };
        Ok(Self {
            databases: names("SELECT datname::text FROM pg_catalog.pg_database").await?,
            extensions: names("SELECT name::text FROM pg_catalog.pg_available_extensions").await?,
            tablespaces: names("SELECT spcname::text FROM pg_catalog.pg_tablespace").await?,
            sessions: counts(
                "SELECT datname::text, count(*) FROM pg_catalog.pg_stat_activity \
                 WHERE datname IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() GROUP BY 1",
            )
            .await?,
            prepared: counts("SELECT database::text, count(*) FROM pg_catalog.pg_prepared_xacts GROUP BY 1").await?,
            // Without `subconninfo`, every role may read it.
            subscriptions: counts(
                "SELECT d.datname::text, count(s.subname) FROM pg_catalog.pg_subscription s \
                 JOIN pg_catalog.pg_database d ON d.oid = s.subdbid GROUP BY 1",
            )
            .await?,
            slots: counts(
                "SELECT database::text, count(*) FROM pg_catalog.pg_replication_slots WHERE database IS NOT NULL GROUP BY 1",
            )
            .await?,
        })
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of `plan`, split off to fit a screen")]
async fn plan_database(
    server: &Server,
    snapshot: &SnapshotReader,
    database: &DatabaseDetail,
    to: String,
    target: &Target,
    request: &RestoreRequest,
    taken: &mut HashSet<String>,
    tail: &str,
    plan: &mut RestorePlan,
) -> Result<Build, SourceError> {
    // A name of this run alone: another restore of the same backup must not meet our half, nor we its.
    let run = format!("{tail}_{:04x}", rand::random::<u16>());
    let temporary = free_name(&to, "restoring", &run, taken);
    taken.insert(temporary.clone());
    let mut build = Build::new(snapshot, database.clone(), to.clone(), temporary.clone(), &request.tables)?;
    let from = if database.name == to { String::new() } else { format!(" as `{to}`") };
    plan.steps.push(format!(
        "build database `{}`{from} under the name `{temporary}`: {}, {}, {}{}",
        database.name,
        report::count(build.tables.len() as u64, "table"),
        report::count(build.rows, "row"),
        match build.large_objects() {
            0 => String::new(),
            n => format!("{}, ", report::count(n, "large object")),
        },
        report::bytes(build.raw)
    ));
    if !build.not_asked_for.is_empty() {
        plan.notes.push(format!(
            "of database `{}` only the rows of {} are restored: the other {} will be there, empty, and foreign keys to them not validated",
            database.name,
            report::count(build.tables.len() as u64, "table"),
            build.not_asked_for.len()
        ));
    }
    if !database.left_out.is_empty() {
        let names: Vec<String> =
            database.left_out.iter().map(|(schema, table)| catalog::shown(schema, table)).collect();
        plan.notes.push(format!(
            "database `{}` was backed up without the rows of {}: {}",
            database.name,
            report::count(names.len() as u64, "table"),
            report::list(&names, 10)
        ));
    }
    let compared = if build.large_objects() > 0 { "table's and large objects'" } else { "table's" };
    plan.steps.push(format!("compare every {compared} fingerprint and every sequence with what was captured"));
    if !target.databases.contains(&to) {
        plan.steps.push(format!("rename `{temporary}` to `{to}`"));
        return Ok(build);
    }
    let held = match server.connect(&to).await {
        Ok(session) => Some((catalog::table_count(&session).await?, large_objects::count(&session).await?)),
        Err(error) => {
            tracing::debug!("cannot look into `{to}`: {error}");
            None
        }
    };
    let before = free_name(&to, "before", tail, taken);
    taken.insert(before.clone());
    if held != Some((0, 0)) && !build.not_asked_for.is_empty() {
        refuse_into(
            plan,
            format!("database `{to}` on the target holds something, and only some tables are to be restored"),
            "--database FROM=TO restores them into a database beside it, from which they can be copied",
        );
    } else if held != Some((0, 0)) && !request.overwrite {
        let holds = match held {
            Some((0, objects)) => format!("holds {}", report::count(objects, "large object")),
            Some((tables, _)) => format!("holds {}", report::count(tables, "table")),
            None => "exists and cannot be looked into".to_owned(),
        };
        refuse_into(
            plan,
            format!("database `{to}` on the target {holds}"),
            "--overwrite replaces it and keeps the old one under another name; --database FROM=TO restores beside it",
        );
    }
    for (what, counts) in [
        ("prepared transactions", &target.prepared),
        ("subscriptions", &target.subscriptions),
        ("logical replication slots", &target.slots),
    ] {
        if counts.get(&to).is_some_and(|n| *n > 0) {
            refuse_into(
                plan,
                format!("database `{to}` has {what}, so it cannot be swapped"),
                "end or drop them first, or restore under another name by --database FROM=TO",
            );
        }
    }
    plan.steps.push(format!("rename `{to}` to `{before}` and `{temporary}` to `{to}`, in one transaction"));
    plan.notes.push(format!("the old `{to}` is kept as `{before}`: the target needs room for both"));
    if let Some(n) = target.sessions.get(&to) {
        plan.notes
            .push(format!("{} on `{to}` will be ended", report::count(u64::try_from(*n).unwrap_or(0), "session")));
    }
    build.keep_as = Some(before);
    Ok(build)
}

#[async_trait]
impl Restore for PostgresRestore {
    fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    async fn execute(self: Box<Self>, cancel: &CancellationToken) -> Result<Restored, SourceError> {
        if !self.plan.refusals.is_empty() {
            return Err(SourceError::Refused { refusals: self.plan.refusals.clone() });
        }
        let connected = tokio::select! {
            connected = self.begin() => connected,
            () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
        };
        let (session, backend) = match connected {
            Ok(connected) => connected,
            Err(SourceError::Interrupted { .. }) => {
                return Err(SourceError::Interrupted { left: Some("nothing was touched".to_owned()) });
            }
            Err(error) => return Err(error),
        };
        let built = tokio::select! {
            built = self.build(&session) => built,
            () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
        };
        let swaps: Vec<Swap> = self.builds.iter().map(Build::swap).collect();
        let error = match built {
            Err(error) => error,
            Ok(restored) => {
                self.snapshot.progress().set_phase("renaming");
                let swapped = tokio::select! {
                    swapped = swap::swap(&self.server, &session, &swaps) => swapped.map_err(SourceError::from),
                    () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
                };
                let error = match swapped {
                    Ok(()) => return Ok(with_kept(restored, &swaps)),
                    Err(error) => error,
                };
                // An answer that was lost, or a signal that came too late, is settled by looking, not by guessing.
                match self.settle(&backend, &swaps).await {
                    Ok(true) => return Ok(with_kept(restored, &swaps)),
                    Ok(false) => error,
                    Err(look) => return Err(half(error, unknown(&look, &swaps))),
                }
            }
        };
        let left = self.clean_up(&backend).await;
        Err(half(error, left))
    }
}

/// An error that came after the first write.
fn half(error: SourceError, left: String) -> SourceError {
    match error {
        SourceError::Interrupted { .. } => SourceError::Interrupted { left: Some(left) },
        error => SourceError::HalfRestored { error: Box::new(error), left },
    }
}

/// What is in the target when nobody could find out.
fn unknown(look: &PostgresError, swaps: &[Swap]) -> String {
    let names: Vec<String> = swaps.iter().map(|swap| format!("`{}`", swap.temporary)).collect();
    format!(
        "whether the new databases are in place is unknown, since looking failed ({look}): they are not while there is a \
         database {}, and are when there is none",
        report::list(&names, 5)
    )
}

/// Names the databases that were kept, with the command that drops each.
fn with_kept(mut restored: Restored, swaps: &[Swap]) -> Restored {
    for swap in swaps {
        restored.notes.extend(swap.keep_as.as_ref().map(|kept| {
            format!(
                "the old `{}` is kept as `{kept}` and accepts no connections; to remove it: DROP DATABASE {};",
                swap.to,
                sql::ident(kept)
            )
        }));
    }
    restored
}

impl PostgresRestore {
    /// The one session that changes what belongs to no database.
    async fn begin(&self) -> Result<(Session, Backend), SourceError> {
        let session = self.server.connect(&self.maintenance).await?;
        let backend = Backend::of(&session).await?;
        Ok((session, backend))
    }

    /// Everything new, under temporary names.
    async fn build(&self, session: &Session) -> Result<Restored, SourceError> {
        let has_large_objects = self.builds.iter().any(|build| build.large_objects() > 0);
        let unit = if has_large_objects { "artifact" } else { "table" };
        let mut restored = Restored { unit, ..Restored::default() };
        roles::apply(session, &self.roles.statements).await?;
        let target_major = catalog::version(&self.server, session).await?.major;
        for build in &self.builds {
            build::create(session, &self.snapshot, build).await?;
            restored.notes.extend(build::fill(&self.server, &self.snapshot, &self.psql, build).await?.notes);
            restored.notes.extend(build::analyze(&self.server, &self.snapshot, build).await?);
            let compared = build::compare(&self.server, &self.snapshot, build, target_major).await?;
            restored.items.extend(compared.same_or_error()?);
            build::properties(session, &self.snapshot, build).await?;
        }
        Ok(restored)
    }

    /// [`swap::settle`], again and again while the server cannot be asked.
    async fn settle(&self, backend: &Backend, swaps: &[Swap]) -> Result<bool, PostgresError> {
        let start = tokio::time::Instant::now();
        loop {
            match swap::settle(&self.server, &self.maintenance, backend, swaps).await {
                Err(error) if start.elapsed() < SETTLE_WITHIN => {
                    tracing::warn!("{error}; looking again whether the renaming went through");
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
                settled => return settled,
            }
        }
    }

    /// Removes our own half and says what is in the target now. Never touches anything but the temporary names.
    async fn clean_up(&self, backend: &Backend) -> String {
        let names: Vec<&str> = self.builds.iter().map(|build| build.temporary.as_str()).collect();
        let dropped = async {
            let session = self.server.connect(&self.maintenance).await?;
            // A CREATE DATABASE that nobody waits for any more would still be carried out.
            backend.end(&session).await?;
            for name in &names {
                discard::discard(&self.server, &session, name).await?;
            }
            Ok::<_, PostgresError>(())
        };
        let shown = report::list(&names, 5);
        match tokio::time::timeout(Duration::from_secs(60), dropped).await {
            Ok(Ok(())) => "the target's databases are as they were; what was half restored is dropped".to_owned(),
            Ok(Err(error)) => format!(
                "the target's databases are as they were, but the half that was restored could not be dropped ({error}): drop {shown} by hand"
            ),
            Err(_) => format!(
                "the target's databases are as they were, but the half that was restored could not be dropped in time: drop {shown} by hand"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_fit_and_are_free() {
        let mut taken = HashSet::new();
        let long = "é".repeat(40);
        let name = free_name(&long, "restoring", "k3f9qa", &taken);
        assert!(name.len() <= 63 && name.ends_with("_restoring_k3f9qa"), "{name}");
        taken.insert(free_name("altlas", "before", "k3f9qa", &taken));
        assert_eq!(free_name("altlas", "before", "k3f9qa", &taken), "altlas_before_k3f9qa_2");
    }
}
