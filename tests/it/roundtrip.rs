//! The whole way: a server, a repository, another server with the same content.

use serde_json::Value;

use crate::support::{
    binary::Run,
    fixture,
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    s3::{BlockingS3, S3Kind},
    workspace::Workspace,
};

in_both_modes! {
    from_15_to_15_by_folder_and_seaweedfs,
    from_18_to_18_by_folder_and_seaweedfs,
    from_15_to_18_by_folder_and_seaweedfs,
    on_minio,
    every_database_of_a_server_and_none_that_was_not_there,
    what_did_not_change_is_not_uploaded_again,
    two_backups_at_once_and_equal_tables_are_all_sound,
    databases_in_other_encodings,
}

/// `pg_dump` of one database.
fn schema(server: &Postgres, database: &str, by: Major) -> String {
    server.dump(by, "pg_dump", &["--schema-only", "--create", database]).join("\n")
}

/// A server with the two databases that are to come back.
fn filled(major: Major) -> Postgres {
    let server = Postgres::start(major);
    server.create_altlas("altlas", 1500, 1);
    server.psql("postgres", "CREATE DATABASE shapes TEMPLATE template0 ENCODING 'UTF8'");
    server.psql_file("shapes", &fixture("shapes.sql"), &[]);
    // One row longer than a part of 32 MiB, not compressible to nothing.
    server.psql(
        "shapes",
        "CREATE TABLE public.long (id int, t text); INSERT INTO public.long VALUES (1, 'before'); \
         INSERT INTO public.long SELECT 2, string_agg(md5(g::text), '') FROM generate_series(1, 1200000) g; \
         INSERT INTO public.long VALUES (3, 'after')",
    );
    server
}

/// Backs up, looks, restores and compares; `by` is a `pg_dump` that reads both servers.
fn round_trip(source: &Postgres, workspace: &Workspace, target: &Postgres, by: Major) {
    workspace.run(&["init"]).ok();
    let backup = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(backup["state"], "complete");
    for level in ["presence", "content"] {
        let verified = workspace.run(&["--json", "verify", "latest", "--level", level]).ok().json();
        assert_eq!(verified["verdict"], "sound");
        assert_eq!(verified["backup"], backup["backup"]);
    }
    let restored = restore(workspace, target, &[]).ok().json();
    let items = restored["sources"][0][1]["items"].as_array().unwrap();
    for database in ["altlas", "shapes"] {
        let (was, is) = (source.digests(database), target.digests(database));
        assert_eq!(was, is, "rows of {database}");
        for (table, (rows, _)) in &was {
            let found = items.iter().filter(|item| item["rows"] == *rows).count();
            assert!(found > 0, "{table} is reported with its {rows} rows");
        }
        let (was, is) = (schema(source, database, by), schema(target, database, by));
        let lost: Vec<&str> = was.lines().filter(|line| !is.lines().any(|other| other == *line)).collect();
        assert!(was == is, "definitions of {database} differ; lost: {lost:#?}");
        let sequences = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2";
        assert_eq!(source.psql(database, sequences), target.psql(database, sequences));
    }
    assert!(items.iter().all(|item| item["compared"] == "same"), "{items:?}");
    let roles = "SELECT rolname, rolpassword, rolsuper, rolcanlogin, r.setconfig FROM pg_authid a \
         LEFT JOIN pg_db_role_setting r ON r.setrole = a.oid AND r.setdatabase = 0 \
         WHERE rolname !~ '^pg_' AND rolname <> 'postgres' ORDER BY 1";
    assert_eq!(source.psql("postgres", roles), target.psql("postgres", roles));
}

/// `restore latest` into another server than the source's.
fn restore(workspace: &Workspace, target: &Postgres, more: &[&str]) -> Run {
    workspace.restore_into(target, &[&["--json"], more].concat())
}

/// A folder, and SeaweedFS, for one pair of versions.
fn both_stores(mode: Mode, from: Major, to: Major, by: Major) {
    let source = filled(from);
    let folder = Workspace::folder().mode(mode).postgres(&source, &["altlas", "shapes"]);
    round_trip(&source, &folder, &Postgres::start(to), by);
    mode.assert_objects(&folder.objects());
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let on_s3 =
        Workspace::s3(&seaweed.place("backups", "alt-las/prod")).mode(mode).postgres(&source, &["altlas", "shapes"]);
    round_trip(&source, &on_s3, &Postgres::start(to), by);
    mode.assert_names(seaweed.list("backups", "alt-las/prod").keys());
}

fn from_15_to_15_by_folder_and_seaweedfs(mode: Mode) {
    both_stores(mode, Major::V15, Major::V15, Major::V15);
}

fn from_18_to_18_by_folder_and_seaweedfs(mode: Mode) {
    both_stores(mode, Major::V18, Major::V18, Major::V18);
}

fn from_15_to_18_by_folder_and_seaweedfs(mode: Mode) {
    both_stores(mode, Major::V15, Major::V18, Major::V18);
}

fn on_minio(mode: Mode) {
    let Some(minio) = BlockingS3::start(S3Kind::Minio) else {
        println!("MinIO is not here: left out (scripts/tools --minio builds it)");
        return;
    };
    let source = filled(Major::V15);
    let workspace =
        Workspace::s3(&minio.place("backups", "alt-las")).mode(mode).postgres(&source, &["altlas", "shapes"]);
    round_trip(&source, &workspace, &Postgres::start(Major::V15), Major::V15);
    mode.assert_names(minio.list("backups", "alt-las").keys());
}

fn every_database_of_a_server_and_none_that_was_not_there(mode: Mode) {
    let source = Postgres::start(Major::V15);
    source.create_altlas("one", 50, 1);
    source.create_altlas("two", 50, 2);
    let workspace = Workspace::folder().mode(mode).postgres(&source, &["*"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let target = Postgres::start(Major::V15);
    restore(&workspace, &target, &[]).ok();
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(target.psql("postgres", databases).trim(), "one,postgres,two");
    assert_eq!(source.digests("one"), target.digests("one"));
    assert_eq!(source.digests("two"), target.digests("two"));

    // Only one of them, under another name, beside what is there.
    restore(&workspace, &target, &["--database", "two=three"]).ok();
    assert_eq!(source.digests("two"), target.digests("three"));
    assert_eq!(target.psql("postgres", databases).trim(), "one,postgres,three,two");
}

/// Line 3: a second backup of an unchanged database uploads no part.
fn what_did_not_change_is_not_uploaded_again(mode: Mode) {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 5000, 1);
    let workspace = Workspace::folder().mode(mode).postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    let first = workspace.run(&["--json", "backup"]).ok().json()["sources"][0].clone();
    assert_eq!(first["reused_parts"], 0);
    assert!(first["uploaded"].as_u64().unwrap() > 100_000, "{first}");
    let parts = || workspace.objects().into_keys().filter(|key| key.contains("/parts/")).count();
    let stored = parts();
    assert_eq!(stored as u64, first["parts"].as_u64().unwrap());

    let second = workspace.run(&["--json", "backup"]).ok().json()["sources"][0].clone();
    assert_eq!(second["new_parts"], 0, "{second}");
    assert_eq!(second["uploaded"], 0, "{second}");
    assert_eq!(second["reused_parts"], second["parts"], "{second}");
    assert_eq!(parts(), stored);
    let told = workspace.run(&["backup"]).ok().stdout;
    for word in ["new", "reused", "stored", "uploaded"] {
        assert!(told.contains(word), "{told}");
    }

    // A changed row uploads its part and no other.
    source.psql("altlas", "UPDATE public.tags SET name = name || '!' WHERE id = (SELECT min(id) FROM public.tags)");
    let third = workspace.run(&["--json", "backup"]).ok().json()["sources"][0].clone();
    assert_eq!(third["new_parts"], 1, "{third}");
    for backup in workspace.run(&["--json", "list"]).ok().json()["backups"].as_array().unwrap() {
        let id = backup["head"]["backup"].as_str().unwrap();
        workspace.run(&["verify", id, "--level", "content"]).ok();
    }
}

/// Line 3: two writers at once, and equal tables in one backup.
fn two_backups_at_once_and_equal_tables_are_all_sound(mode: Mode) {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 5000, 1);
    source.psql(
        "altlas",
        "CREATE SCHEMA twin; CREATE TABLE twin.last_files AS SELECT * FROM public.last_files; \
         CREATE TABLE twin.again AS SELECT * FROM public.last_files",
    );
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let places: [Workspace; 2] = [Workspace::folder(), Workspace::s3(&seaweed.place("backups", "two"))]
        .map(|place| place.mode(mode).postgres(&source, &["altlas"]));
    for workspace in &places {
        workspace.run(&["init"]).ok();
        let config = workspace.config();
        let running: Vec<_> = (0..3).map(|_| Run::new(&["--json", "backup"]).config(&config).spawn()).collect();
        let outputs: Vec<Value> = running.into_iter().map(|run| run.wait().assert_code(0).json()).collect();
        for output in &outputs {
            let id = output["backup"].as_str().unwrap();
            workspace.run(&["verify", id, "--level", "content"]).ok();
            let shown = workspace.run(&["--json", "show", id]).ok().json();
            let artifacts = shown["sources"][0]["artifacts"].as_array().unwrap();
            let parts = |path: &str| {
                artifacts.iter().find(|artifact| artifact["path"] == path).unwrap_or_else(|| panic!("{path}"))["parts"]
                    .clone()
            };
            assert_eq!(
                parts("databases/altlas/tables/public.last_files"),
                parts("databases/altlas/tables/twin.last_files")
            );
            assert_eq!(parts("databases/altlas/tables/public.last_files"), parts("databases/altlas/tables/twin.again"));
        }
        let target = Postgres::start(Major::V15);
        restore(workspace, &target, &[]).ok();
        assert_eq!(source.digests("altlas"), target.digests("altlas"));
    }
}

/// Names and rows of databases that are not in UTF-8: in LATIN1, and in SQL_ASCII, which holds bytes of no encoding at all.
fn databases_in_other_encodings(mode: Mode) {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    source.psql("postgres", "CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'");
    source.psql("latin", "SET client_encoding = 'UTF8'; CREATE TABLE \"tâble\" (\"cölumn\" text, \"nümber\" serial); INSERT INTO \"tâble\" VALUES ('é'), ('ü')");
    source.psql(
        "bytes",
        "CREATE TABLE \"tâble\" (a text); INSERT INTO \"tâble\" VALUES (E'caf\\351'), (E'\\377\\001'), ('plain')",
    );
    let workspace = Workspace::folder().mode(mode).postgres(&source, &["latin", "bytes"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let target = Postgres::start(Major::V15);
    restore(&workspace, &target, &[]).ok();
    for (database, column) in [("latin", "\"cölumn\""), ("bytes", "a")] {
        // Of the bytes as the server holds them: psql could not print all of them.
        let digests = format!("SET client_encoding = 'UTF8'; SELECT md5({column}) FROM \"tâble\" ORDER BY 1");
        assert_eq!(source.psql(database, &digests), target.psql(database, &digests), "{database}");
        assert_ne!(source.psql(database, &digests).trim(), "");
    }
}
