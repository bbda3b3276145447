//! What a throwaway server makes of a snapshot: every database is built from the repository alone, and compared with what was captured.
//!
//! Compared are each table's rows, bytes and fingerprint; sequences; every text with its digest; the inventory (the catalogs as they were when the
//! database was captured); and what `pg_dump` and `pg_dumpall` write of the new server, statement by statement, with what they wrote of the
//! old one. The two are of one major version. Tablespaces are folders of a machine: a throwaway server gets none, and everything goes into
//! its own.
//!
//! A server does not print every expression as it was printed before: `x IN ('a', 'b')` of a `varchar` comes out of a reload in other words.
//! Such a difference is none ([`reprinted`]) where the very words that were captured are in the script that was run, and a second database
//! made by the same script alone prints what the first one does.

use std::collections::{BTreeMap, HashSet};

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    build::{self, Build},
    capture::{DatabaseDetail, GLOBALS, LEAVE_OUT_LARGE_OBJECTS, SnapshotDetail, restrict_argument_for},
    catalog::{self, Extension, RelationKind},
    connect::{Server, Session},
    discard,
    error::PostgresError,
    inventory, large_objects, roles,
    sql::{self, Name},
    throwaway,
    tools::Tools,
};
use crate::{
    pipeline::{Format, PipelineError, SnapshotReader, TextDigest},
    source::{Compared, Difference, Proof, Same, SourceError},
};

/// The longest text of definitions that is compared, in bytes.
const MOST_TEXT: u64 = 512 * 1024 * 1024;
/// Of a statement that differs, so much is shown.
const SHOWN: usize = 120;

/// Fills and compares. The server must be claimed.
pub(super) async fn prove(
    server: &Server,
    snapshot: &SnapshotReader,
    cancel: &CancellationToken,
) -> Result<Proof, SourceError> {
    tokio::select! {
        proof = fill_and_compare(server, snapshot) => proof,
        () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
    }
}

async fn fill_and_compare(server: &Server, snapshot: &SnapshotReader) -> Result<Proof, SourceError> {
    let detail: SnapshotDetail = serde_json::from_value(snapshot.detail().clone())
        .map_err(|error| PostgresError::Detail { detail: error.to_string() })?;
    let session = server.connect(server.maintenance()).await?;
    let version = catalog::version(server, &session).await?;
    if version.major != detail.major {
        let (server, found) = (server.name(), version.text);
        return Err(PostgresError::OtherMajor { server, found, wanted: detail.major }.into());
    }
    let tools_dir = server.config.tools_dir.as_deref();
    let tools = Tools::find(tools_dir, "pg_dump", version.major).await?;
    Tools::find(tools_dir, "pg_dumpall", version.major).await?;
    let psql = Tools::find_psql(tools_dir, version.major).await?;
    lacking(&session, &detail).await?;

    let mut proof = Proof { server: format!("PostgreSQL {}", version.text), ..Proof::default() };
    let began = tokio::time::Instant::now();
    let globals = read(snapshot, GLOBALS).await?;
    // A given server's own first superuser, which is who we are there, stays as it is.
    let keep = !server.config.is_own;
    let statements = roles::whole(&globals, &detail.bootstrap, keep);
    its_roles_can_be_made(server, &session, &detail, &roles::created(&statements)).await?;
    throwaway::begin(server, &session, &roles::created(&statements)).await?;
    snapshot.progress().set_phase("roles");
    roles::apply(&session, &statements).await.map_err(PostgresError::while_restoring)?;
    let mut builds = Vec::new();
    for (n, database) in detail.databases.iter().enumerate() {
        let mut build = Build::new(snapshot, database.clone(), database.name.clone(), throwaway::built(n), &[])?;
        build.missing_tablespaces = database.tablespaces.clone();
        let filled = async {
            build::create(&session, snapshot, &build).await?;
            let done = build::fill(server, snapshot, &psql, &build).await?;
            build::properties(&session, snapshot, &build).await?;
            Ok(done)
        };
        let done = match filled.await {
            Ok(done) => done,
            Err(error) => return Err(whose_fault(&session, database, error).await),
        };
        proof.notes.extend(done.notes);
        builds.push((build, done.unfilled));
    }
    proof.restored = began.elapsed();

    let (builds, unfilled): (Vec<Build>, Vec<Vec<Name>>) = builds.into_iter().unzip();
    proof.differences.extend(unused(snapshot, &builds));
    let authentic = texts(snapshot, &builds, &mut proof).await?;
    for (build, unfilled) in builds.iter().zip(&unfilled) {
        let comparison = build::compare(server, snapshot, build, version.major).await?;
        proof.differences.extend(comparison.differences);
        for item in comparison.items {
            match item.compared {
                Compared::Same => {
                    proof.same.push(Same { name: item.name, rows: item.rows, bytes: item.bytes });
                }
                Compared::Inconclusive => proof.not_comparable.push(format!("table {}", item.name)),
            }
        }
        proof.differences.extend(unknown_relations(server, build).await?);
        let mut again = Build::new(
            snapshot,
            build.detail().clone(),
            build.to.clone(),
            throwaway::built(detail.databases.len()),
            &[],
        )?;
        let place = Place { server, session: &session, tools: &tools, psql: &psql, snapshot };
        again.missing_tablespaces = build.missing_tablespaces.clone();
        let again = authentic.then_some(again);
        let (differences, notes) = place.definitions(build, unfilled, again).await?;
        proof.differences.extend(differences);
        proof.notes.extend(notes);
    }
    let args = ["--globals-only", "--no-password", "--encoding=UTF8", "--database", server.maintenance()];
    let mut program = tools.command("pg_dumpall", server, server.maintenance())?.args(args);
    if !detail.with_passwords {
        program = program.args(["--no-role-passwords"]);
    }
    let printed = program.output("the roles of the throwaway server", MOST_TEXT).await?;
    let printed = String::from_utf8_lossy(&printed);
    let of = |text: &str| -> Statements {
        let statements = roles::whole(text, &detail.bootstrap, keep);
        counted(statements.iter().map(|one| ("roles".to_owned(), one.clone())))
    };
    proof.differences.extend(of(&globals).differences(&of(&printed), "roles"));
    if keep {
        proof.notes.push(format!("role `{}` was not compared: it is the throwaway server's own", detail.bootstrap));
    }
    if detail.databases.iter().any(|database| !database.tablespaces.is_empty()) {
        proof.notes.push("tablespaces are no part of a proof: everything was restored into the default one".to_owned());
    }
    Ok(proof)
}

/// What a database could not be filled for. Where an extension can be behind it that the server makes in another version than the source had, nobody can tell
/// whether that is why it takes something else.
async fn whose_fault(session: &Session, database: &DatabaseDetail, error: SourceError) -> SourceError {
    let error = match error {
        SourceError::Postgres(error) if error.may_be_of_a_version() => error,
        SourceError::Postgres(error) => return error.while_restoring().into(),
        other => return other,
    };
    let there = match catalog::available_versions(session).await {
        Ok(there) => there,
        Err(error) => return error.into(),
    };
    let other =
        |extension: &&Extension| there.get(&extension.name).is_some_and(|version| *version != extension.version);
    let lacking: Vec<String> = database
        .extensions
        .iter()
        .filter(other)
        .map(|one| format!("extension `{}` in version {} (it makes {})", one.name, one.version, there[&one.name]))
        .collect();
    if lacking.is_empty() {
        return error.while_restoring().into();
    }
    let lacking = [format!("whatever is behind this: {error}")].into_iter().chain(lacking).collect();
    PostgresError::Lacking { lacking }.into()
}

/// Extensions that the server does not have are the server's fault.
async fn lacking(session: &Session, detail: &SnapshotDetail) -> Result<(), PostgresError> {
    let there = catalog::available_extensions(session).await?;
    let mut lacking: Vec<String> = detail
        .databases
        .iter()
        .flat_map(|database| &database.extensions)
        .filter(|extension| !there.contains(&extension.name))
        .map(|extension| format!("extension `{}`", extension.name))
        .collect();
    lacking.sort();
    lacking.dedup();
    if lacking.is_empty() { Ok(()) } else { Err(PostgresError::Lacking { lacking }) }
}

/// The server's own first superuser stands in for the source's, and who we are is none of the roles that are made.
async fn its_roles_can_be_made(
    server: &Server,
    session: &Session,
    detail: &SnapshotDetail,
    created: &[String],
) -> Result<(), PostgresError> {
    let first = catalog::bootstrap_superuser(session).await?;
    let own = &server.config.endpoint.user;
    let in_the_way =
        Some(&first).filter(|first| **first != detail.bootstrap).or(created.iter().find(|role| *role == own));
    match in_the_way {
        None => Ok(()),
        Some(found) => {
            let (server, found, wanted) = (server.name(), found.clone(), detail.bootstrap.clone());
            Err(PostgresError::OtherSuperuser { server, found, wanted })
        }
    }
}

/// A whole artifact as text. Names may be in a database's own encoding: what is not UTF-8 is replaced, on both sides alike.
async fn read(snapshot: &SnapshotReader, path: &str) -> Result<String, PipelineError> {
    let mut bytes = Vec::new();
    let mut parts = std::pin::pin!(snapshot.open(snapshot.artifact(path)?));
    while let Some(part) = parts.next().await {
        bytes.extend_from_slice(&part?);
        if bytes.len() as u64 > MOST_TEXT {
            return Err(crate::repository::Trust::damaged(path, "is too long to be read at once").into());
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The digest of an artifact's bytes.
async fn digest(snapshot: &SnapshotReader, path: &str) -> Result<String, PipelineError> {
    let mut digest = TextDigest::new(snapshot.fingerprint_seed());
    let mut parts = std::pin::pin!(snapshot.open(snapshot.artifact(path)?));
    while let Some(part) = parts.next().await {
        digest.update(&part?);
    }
    Ok(digest.finish())
}

/// Compares every text with the digest that it was captured under. Are all of them what was captured, and known to be? Positions of sequences
/// are compared by themselves: they may be ahead.
async fn texts(snapshot: &SnapshotReader, builds: &[Build], proof: &mut Proof) -> Result<bool, PipelineError> {
    let mut authentic = true;
    let positions: HashSet<String> = builds.iter().map(|build| build.detail().sequences_sql()).collect();
    let texts = snapshot.artifacts().iter().filter(|artifact| matches!(artifact.format, Format::Sql | Format::Text));
    for artifact in texts.filter(|artifact| !positions.contains(&artifact.path)) {
        match &artifact.digest {
            Some(was) if digest(snapshot, &artifact.path).await? == *was => {}
            Some(_) => {
                authentic = false;
                let what = "is not the text that was captured".to_owned();
                proof.differences.push(Difference { object: artifact.path.clone(), what });
            }
            // Of an older version.
            None => authentic = false,
        }
    }
    Ok(authentic)
}

/// What the snapshot holds and no build has taken: a database or a table that its manifest has forgotten.
fn unused(snapshot: &SnapshotReader, builds: &[Build]) -> Vec<Difference> {
    let mut used: HashSet<String> = [GLOBALS.to_owned()].into();
    for build in builds {
        let database = build.detail();
        used.extend([database.pre_data_sql(), database.post_data_sql(), database.properties_sql()]);
        used.extend([database.sequences_sql(), database.inventory_txt()]);
        used.extend(build.tables.iter().map(|table| table.path().to_owned()));
        if database.large_objects > 0 {
            used.extend([database.large_objects_sql(), database.large_objects_rows()]);
        }
    }
    let unused = snapshot.artifacts().iter().filter(|artifact| !used.contains(&artifact.path));
    let what = "is in the snapshot, and of no database and no table that it tells of";
    unused.map(|artifact| Difference { object: artifact.path.clone(), what: what.to_owned() }).collect()
}

/// Tables that are there by the definitions, and of which the snapshot holds no rows.
async fn unknown_relations(server: &Server, build: &Build) -> Result<Vec<Difference>, PostgresError> {
    let session = server.connect(&build.temporary).await?;
    let known: HashSet<String> = build.tables.iter().map(build::TableBuild::shown).collect();
    let relations = catalog::relations(&session).await?;
    let is_known =
        |one: &catalog::Relation| known.contains(&one.shown()) || build.detail().left_out.contains(&one.names());
    let tables = relations.iter().filter(|one| one.kind == RelationKind::Table && !is_known(one));
    let difference = |one: &catalog::Relation| Difference {
        object: format!("table {} in database `{}`", one.shown(), build.to),
        what: "has no rows in the snapshot, not even none".to_owned(),
    };
    Ok(tables.map(difference).collect())
}

/// What is told of a database's definitions: by its catalogs, and by `pg_dump` section by section.
struct Told {
    inventory: String,
    pre_data: String,
    post_data: String,
}

impl Told {
    fn sections<'a>(&'a self, other: &'a Self) -> [(&'static str, &'a str, &'a str); 2] {
        [("pre-data", &self.pre_data, &other.pre_data), ("post-data", &self.post_data, &other.post_data)]
    }

    /// The same, had these materialized views not been filled: a throwaway server cannot reach what they look at.
    fn without_content(mut self, views: &[Name]) -> Self {
        if !views.is_empty() {
            self.inventory = inventory::without_content(&self.inventory, views);
            let is_filled =
                |statement: &sql::Statement<'_>| statement.refreshes().is_none_or(|view| !views.contains(&view));
            let kept = sql::statements(&self.post_data).into_iter().filter(is_filled);
            self.post_data = kept.flat_map(|statement| [statement.text, ";\n"]).collect();
        }
        self
    }

    fn is_the_same(&self, other: &Self) -> bool {
        inventory::differences(&self.inventory, &other.inventory).is_empty()
            && self.sections(other).iter().all(|(_, one, other)| placed(one).is_the_same(&placed(other)))
    }
}

/// Where definitions are compared.
struct Place<'a> {
    server: &'a Server,
    session: &'a Session,
    tools: &'a Tools,
    psql: &'a Tools,
    snapshot: &'a SnapshotReader,
}

impl Place<'_> {
    /// What differs in a built database's definitions from those that were captured, and what is to be said beside that. `again` is a
    /// database that may be made by the same definitions, where these are known to be those that were captured.
    async fn definitions(
        &self,
        build: &Build,
        unfilled: &[Name],
        again: Option<Build>,
    ) -> Result<(Vec<Difference>, Vec<String>), SourceError> {
        let database = build.detail();
        let in_database = |mut difference: Difference| {
            difference.object = format!("{} in database `{}`", difference.object, build.to);
            difference
        };
        self.snapshot.progress().set_phase(format!("comparing definitions of {}", build.to));
        let was = Told {
            inventory: read(self.snapshot, &database.inventory_txt()).await?,
            pre_data: read(self.snapshot, &database.pre_data_sql()).await?,
            post_data: read(self.snapshot, &database.post_data_sql()).await?,
        }
        .without_content(unfilled);
        let is = self.told(&build.temporary).await?;
        let objects = inventory::differences(&was.inventory, &is.inventory);
        let statements: Vec<(&str, Leftover, Leftover)> = was
            .sections(&is)
            .into_iter()
            .map(|(section, was, is)| (section, placed(was).beyond(&placed(is)), placed(is).beyond(&placed(was))))
            .collect();
        let others = objects.len() + statements.iter().map(|(_, was, is)| was.0.len() + is.0.len()).sum::<usize>();
        let mut notes = Vec::new();
        let mut differences: Vec<Difference> = match again {
            Some(again) if others > 0 && self.is_stable(&again, &is).await? => {
                let (none, differ) = reprinted(&was, objects, &statements);
                if none > 0 {
                    let definitions = crate::report::count(none as u64, "definition");
                    notes.push(format!("{definitions} of `{}` are printed in other words by a new server", build.to));
                }
                differ
            }
            _ => objects.into_iter().map(|one| one.difference).chain(statements.iter().flat_map(told)).collect(),
        };
        let session = self.server.connect(&build.temporary).await?;
        let large_objects = large_objects::count(&session).await?;
        if large_objects != database.large_objects {
            let what = format!("captured {}", database.large_objects);
            differences.push(Difference { object: crate::report::count(large_objects, "large object"), what });
        }
        differences.extend(self.properties(build).await?);
        differences.sort_by(|a, b| (&a.object, &a.what).cmp(&(&b.object, &b.what)));
        differences.dedup();
        Ok((differences.into_iter().map(in_database).collect(), notes))
    }

    /// What a database's catalogs and `pg_dump` tell of it.
    async fn told(&self, database: &str) -> Result<Told, SourceError> {
        let session = self.server.connect(database).await?;
        let inventory = inventory::take(&session).await?;
        let (pre_data, post_data) =
            (self.section(database, "pre-data").await?, self.section(database, "post-data").await?);
        Ok(Told { inventory, pre_data, post_data })
    }

    async fn section(&self, database: &str, section: &str) -> Result<String, SourceError> {
        let what = format!("the {section} definitions of the throwaway server");
        self.dump(database, vec![format!("--section={section}")], &what).await
    }

    async fn dump(&self, database: &str, arguments: Vec<String>, what: &str) -> Result<String, SourceError> {
        let restrict = restrict_argument_for(self.tools, self.snapshot.restrict_key()).await?;
        let program = self.tools.command("pg_dump", self.server, database)?;
        let program = program.args(["--no-password", LEAVE_OUT_LARGE_OBJECTS]).args(restrict);
        let printed = program.args(arguments).output(what, MOST_TEXT).await?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    /// Does a database that is made by the same definitions, and by nothing else, tell the same of itself as `is` does?
    async fn is_stable(&self, again: &Build, is: &Told) -> Result<bool, SourceError> {
        let made = async {
            build::create(self.session, self.snapshot, again).await?;
            build::define(self.server, self.snapshot, self.psql, again).await
        };
        // The first one was made by the same script: that this one cannot be made is not the backup's fault.
        made.await?;
        let same = self.told(&again.temporary).await?.is_the_same(is);
        discard::discard(self.server, self.session, &again.temporary).await?;
        Ok(same)
    }

    /// What differs in what `pg_dump` writes of the database itself.
    async fn properties(&self, build: &Build) -> Result<Vec<Difference>, SourceError> {
        let database = build.detail();
        let what = "the properties of the throwaway server's database";
        let arguments = ["--create", "--schema-only", "--encoding=UTF8", "--exclude-schema=*"].map(str::to_owned);
        let printed = self.dump(&build.temporary, arguments.into(), what).await?;
        let properties = |text: &str, name: &str| {
            let own = sql::statements(text);
            let own = own.iter().filter(|statement| statement.is_on_database(name));
            counted(own.map(|statement| ("properties".to_owned(), without_tablespace(&statement.on_database("it")))))
        };
        let was = read(self.snapshot, &database.properties_sql()).await?;
        Ok(properties(&was, &database.name).differences(&properties(&printed, &build.temporary), "properties"))
    }
}

/// How many of what differs are only printed in other words, and the rest. The captured script is known to be authentic, and a server that ran
/// it and nothing else is known to print what the new one does. So an object is the same where all but its definitions is, and those
/// are in the script word for word; and a statement, where one on the same subject is in its place.
fn reprinted(
    was: &Told,
    objects: Vec<inventory::Differing>,
    statements: &[(&str, Leftover, Leftover)],
) -> (usize, Vec<Difference>) {
    // From one token's beginning to another one's end.
    let script = [&was.pre_data, &was.post_data].map(|script| format!(" {}", sql::normal(script)));
    let is_in_script = |definition: &String| {
        let normal = format!(" {}", sql::normal(definition));
        script.iter().any(|script| script.contains(&normal))
    };
    let (mut none, mut differ) = (0, Vec::new());
    for object in objects {
        match object.definitions.is_some_and(|definitions| definitions.iter().all(is_in_script)) {
            true => none += 1,
            false => differ.push(object.difference),
        }
    }
    for pair in statements {
        match pair.1.subjects() == pair.2.subjects() {
            true => none += pair.1.0.len(),
            false => differ.extend(told(pair)),
        }
    }
    (none, differ)
}

/// Statements that one side has and the other has not.
struct Leftover(Vec<String>);

impl Leftover {
    /// What they are on, sorted.
    fn subjects(&self) -> Vec<String> {
        let of = |text: &String| sql::statements(text).first().map(|one| one.subject().to_owned());
        let mut subjects: Vec<String> = self.0.iter().filter_map(of).collect();
        subjects.sort();
        subjects
    }
}

/// Both sides' leftover statements of a section as differences.
fn told((section, was, is): &(&str, Leftover, Leftover)) -> Vec<Difference> {
    let shown = |text: &str| {
        let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let cut: String = line.chars().take(SHOWN).collect();
        if cut.len() < line.len() { format!("{cut}…") } else { cut }
    };
    let differences = |leftover: &Leftover, what: &str| -> Vec<Difference> {
        let of = |text: &String| Difference {
            object: format!("definition `{}`", words(text, &shown)),
            what: format!("{what} ({section})"),
        };
        leftover.0.iter().map(of).collect()
    };
    let mut all = differences(was, "is not what the new server has");
    all.extend(differences(is, "is what the new server has, and was not captured"));
    all
}

/// Statements without an order: `pg_dump` takes it from OIDs where nothing else decides. A table's access method is a setting before it, so
/// each statement is counted with the setting that it stands under.
struct Statements(BTreeMap<(String, String), usize>);

fn counted(statements: impl Iterator<Item = (String, String)>) -> Statements {
    let mut counts = BTreeMap::new();
    for statement in statements {
        *counts.entry(statement).or_insert(0) += 1;
    }
    Statements(counts)
}

fn placed(text: &str) -> Statements {
    let mut access_method = String::new();
    let mut found = Vec::new();
    for statement in sql::statements(text) {
        if statement.begins(&["set", "default_table_access_method"]) {
            access_method = statement.text.to_owned();
        } else if !roles::is_setting(&statement) {
            found.push((access_method.clone(), without_tablespace(statement.text)));
        }
    }
    counted(found.into_iter())
}

/// Without the clause that names a tablespace, as `CREATE DATABASE` and `ALTER … SET TABLESPACE` have it.
fn without_tablespace(statement: &str) -> String {
    sql::statements(statement).first().map_or_else(|| statement.to_owned(), |one| one.without_tablespace(|_| true))
}

impl Statements {
    /// What it has more of than the other.
    fn beyond(&self, other: &Self) -> Leftover {
        let more = self.0.iter().filter(|(statement, count)| other.0.get(*statement).copied().unwrap_or(0) < **count);
        Leftover(more.map(|((_, text), _)| text.clone()).collect())
    }

    fn is_the_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }

    fn differences(&self, is: &Self, section: &str) -> Vec<Difference> {
        told(&(section, self.beyond(is), is.beyond(self)))
    }
}

/// A statement on a role may hold a password's hash: of it only the first words are shown.
fn words(statement: &str, shown: &dyn Fn(&str) -> String) -> String {
    let upper = statement.to_ascii_uppercase();
    if upper.contains("PASSWORD") || upper.contains("USER MAPPING") {
        return statement.split_whitespace().take(3).collect::<Vec<_>>().join(" ") + " …";
    }
    shown(statement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_compared_without_their_order_and_comments() {
        let was =
            "-- by 15.1\nSET default_table_access_method = heap;\nCREATE TABLE a ();\nCREATE TABLE b ();\nSET x = 1;\n";
        let is = "-- by 15.9\nSET default_table_access_method = heap;\nCREATE TABLE b ();\n\nCREATE TABLE a ();\n";
        assert!(placed(was).differences(&placed(is), "pre-data").is_empty());
        let other = "SET default_table_access_method = heap;\nCREATE TABLE a ();\nCREATE TABLE b (c int);\n";
        let told = placed(was).differences(&placed(other), "pre-data");
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].object.contains("CREATE TABLE b ()"), "{told:?}");
        let columnar = was.replace("heap", "columnar");
        assert_eq!(placed(was).differences(&placed(&columnar), "pre-data").len(), 4);
    }

    #[test]
    fn no_password_is_shown() {
        let statement = "ALTER ROLE app WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:secret'";
        assert_eq!(words(statement, &|text| text.to_owned()), "ALTER ROLE app …");
    }
}
