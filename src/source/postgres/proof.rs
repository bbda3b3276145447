//! What a throwaway server makes of a snapshot: every database is built from the repository alone, and compared with what was captured.
//!
//! Compared are each table's rows, bytes and fingerprint; sequences; the inventory (the catalogs as they were when the database was captured);
//! and what `pg_dump` and `pg_dumpall` write of the new server, statement by statement, with what they wrote of the old one. The two
//! are of one major version. Tablespaces are folders of a machine: a throwaway server gets none, and everything goes into its own.

use std::collections::BTreeMap;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    build::{self, Build},
    capture::{GLOBALS, SnapshotDetail, restrict_argument_for},
    catalog,
    connect::{Server, Session},
    error::PostgresError,
    inventory, roles, sql,
    sql::Statement,
    throwaway,
    tools::Tools,
};
use crate::{
    pipeline::{PipelineError, SnapshotReader},
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
    let globals = text(snapshot, GLOBALS).await?;
    // With a password the role that we are must stay as it is: we would be locked out.
    let keep = server.password().is_some();
    let statements = roles::whole(&globals, &detail.bootstrap, keep);
    throwaway::begin(server, &session, &roles::created(&statements)).await?;
    snapshot.progress().set_phase("roles");
    roles::apply(&session, &statements).await.map_err(PostgresError::while_restoring)?;
    let mut builds = Vec::new();
    for (n, database) in detail.databases.iter().enumerate() {
        let mut build = Build::new(snapshot, database.clone(), database.name.clone(), throwaway::built(n))?;
        build.without_tablespaces = true;
        let filled = async {
            build::create(&session, snapshot, &build).await?;
            build::fill(server, snapshot, &psql, &build).await?;
            build::properties(&session, snapshot, &build).await
        };
        filled.await.map_err(while_restoring)?;
        builds.push(build);
    }
    proof.restored = began.elapsed();

    for build in &builds {
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
        proof.differences.extend(definitions(server, &tools, snapshot, build).await?);
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

fn while_restoring(error: SourceError) -> SourceError {
    match error {
        SourceError::Postgres(error) => error.while_restoring().into(),
        other => other,
    }
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

/// A whole artifact as text. Names may be in a database's own encoding: what is not UTF-8 is replaced, on both sides alike.
async fn text(snapshot: &SnapshotReader, path: &str) -> Result<String, PipelineError> {
    let artifact = snapshot.artifact(path)?;
    let mut bytes = Vec::new();
    let mut parts = std::pin::pin!(snapshot.open(artifact));
    while let Some(part) = parts.next().await {
        bytes.extend_from_slice(&part?);
        if bytes.len() as u64 > MOST_TEXT {
            return Err(crate::repository::Trust::damaged(path, "is too long to be read at once").into());
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the catalogs and `pg_dump` tell of a built database, beside what they told of the captured one.
async fn definitions(
    server: &Server,
    tools: &Tools,
    snapshot: &SnapshotReader,
    build: &Build,
) -> Result<Vec<Difference>, SourceError> {
    let database = build.detail();
    let in_database = |mut difference: Difference| {
        difference.object = format!("{} in database `{}`", difference.object, build.to);
        difference
    };
    snapshot.progress().set_phase(format!("comparing definitions of {}", build.to));
    let session = server.connect(&build.temporary).await?;
    let was = text(snapshot, &database.inventory_txt()).await?;
    let mut differences = inventory::differences(&was, &inventory::take(&session).await?);
    let large_objects = catalog::large_objects(&session).await?;
    if large_objects > 0 {
        let what = "are there and were not captured".to_owned();
        differences.push(Difference { object: crate::report::count(large_objects, "large object"), what });
    }
    let restrict = restrict_argument_for(tools, snapshot.restrict_key()).await?;
    let dump = |arguments: Vec<String>| {
        let program = tools.command("pg_dump", server, &build.temporary)?;
        Ok::<_, PostgresError>(program.args(["--no-password"]).args(restrict.clone()).args(arguments))
    };
    let mut sections: Vec<(&str, String, String)> = Vec::new();
    for (section, path) in [("pre-data", database.pre_data_sql()), ("post-data", database.post_data_sql())] {
        let what = format!("the {section} definitions of the throwaway server");
        let printed = dump(vec![format!("--section={section}")])?.output(&what, MOST_TEXT).await?;
        sections.push((section, text(snapshot, &path).await?, String::from_utf8_lossy(&printed).into_owned()));
    }
    for (section, was, is) in &sections {
        differences.extend(placed(was).differences(&placed(is), section));
    }
    let what = "the properties of the throwaway server's database";
    let arguments = ["--create", "--schema-only", "--encoding=UTF8", "--exclude-schema=*"].map(str::to_owned);
    let printed = dump(arguments.into())?.output(what, MOST_TEXT).await?;
    let printed = String::from_utf8_lossy(&printed);
    let properties = |text: &str, name: &str| {
        let own = sql::statements(text);
        let own = own.iter().filter(|statement| statement.is_on_database(name));
        counted(own.map(|statement| ("properties".to_owned(), without_tablespace(&statement.on_database("it")))))
    };
    let was = text(snapshot, &database.properties_sql()).await?;
    differences
        .extend(properties(&was, &database.name).differences(&properties(&printed, &build.temporary), "properties"));
    differences.sort_by(|a, b| (&a.object, &a.what).cmp(&(&b.object, &b.what)));
    differences.dedup();
    Ok(differences.into_iter().map(in_database).collect())
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
    sql::statements(statement).first().map_or_else(|| statement.to_owned(), Statement::without_tablespace)
}

impl Statements {
    fn differences(&self, is: &Self, section: &str) -> Vec<Difference> {
        let lacks = |a: &Self, b: &Self| -> Vec<String> {
            let missing = a.0.iter().filter(|(statement, count)| b.0.get(*statement).copied().unwrap_or(0) < **count);
            missing.map(|((_, text), _)| text.clone()).collect()
        };
        let shown = |text: &str| {
            let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let cut: String = line.chars().take(SHOWN).collect();
            if cut.len() < line.len() { format!("{cut}…") } else { cut }
        };
        let told = |statements: Vec<String>, what: &str| {
            statements
                .into_iter()
                .map(|text| Difference {
                    object: format!("definition `{}`", words(&text, &shown)),
                    what: format!("{what} ({section})"),
                })
                .collect::<Vec<_>>()
        };
        let mut differences = told(lacks(self, is), "is not what the new server has");
        differences.extend(told(lacks(is, self), "is what the new server has, and was not captured"));
        differences
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
