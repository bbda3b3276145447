//! Everything that PostgreSQL can hold comes back: `tests/fixtures/fidelity.sql`, and databases beside it, from version to version.

use std::collections::BTreeSet;

use crate::{
    failures::SOON,
    support::{
        fixture,
        postgres::{Major, Postgres},
        tools,
        workspace::Workspace,
    },
};

/// What a dump prints, without what is of the server's own making.
fn definitions(server: &Postgres, by: Major, program: &str, arguments: &[&str]) -> Vec<String> {
    let lines = server.dump(by, program, arguments).into_iter();
    lines.filter(|line| !line.starts_with("ALTER ROLE postgres WITH")).collect()
}

/// What 15 and 18 print differently of the same: columns of a query over one table, which 18 names without it; what a subscription is by default. That
/// the target has no tablespace of that name. Lines are sorted: what comes first where nothing decides is by OID.
fn across_majors(line: &str) -> Option<String> {
    let line = line.replace("; Tablespace: fid_space", "").replace("depth.", "");
    let line = line.split(", streaming = ").next().unwrap_or_default().to_owned();
    (!line.is_empty() && !line.starts_with("SET default_tablespace")).then_some(line)
}

/// Lines on one side and not on the other, so many times.
#[track_caller]
fn assert_same(what: &str, was: &[String], is: &[String]) {
    if was == is {
        return;
    }
    let n = was.iter().zip(is).take_while(|(was, is)| was == is).count();
    println!("first at line {n}: {:?} and {:?}", was.get(n), is.get(n));
    let lines = |one: &[String]| one.iter().cloned().collect::<BTreeSet<String>>();
    let (was_lines, is_lines) = (lines(was), lines(is));
    let lost: Vec<_> = was_lines.difference(&is_lines).collect();
    let new: Vec<_> = is_lines.difference(&was_lines).collect();
    panic!("{what} differ\nlost: {lost:#?}\nnew: {new:#?}");
}

/// An empty folder of the server's user, for a tablespace.
fn space(server: &Postgres) -> String {
    let space = server.socket_folder().join("space").display().to_string();
    server.psql("postgres", &format!("COPY (SELECT 1) TO PROGRAM 'mkdir -p {space} && cat'"));
    space
}

/// `tiny` tables in the second database.
fn filled(major: Major, tiny: u32) -> Postgres {
    // Each of several sessions locks every table.
    let server = Postgres::start_with(major, "max_locks_per_transaction = 600");
    server.psql("postgres", "CREATE DATABASE fidelity TEMPLATE template0 ENCODING 'UTF8'");
    server.psql_file("fidelity", &fixture("fidelity.sql"), &[("space", &space(&server))]);
    server.psql("postgres", "CREATE DATABASE tiny");
    server.psql(
        "tiny",
        &format!(
            "DO $$ begin for n in 1..{tiny} loop \
                 execute format('CREATE TABLE tiny_%s (id int PRIMARY KEY, t text)', n); \
                 if n % 3 = 0 then execute format('INSERT INTO tiny_%s VALUES (%s, ''row''), (0, NULL)', n, n); end if; \
                 if n % 500 = 0 then commit; end if; \
             end loop; end $$"
        ),
    );
    server.psql("postgres", "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'");
    server.psql("ascii", "CREATE TABLE bytes (id int PRIMARY KEY, t text); INSERT INTO bytes VALUES (1, E'\\377\\001caf\\351'), (2, 'plain')");
    server.psql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    server.psql(
        "latin",
        "SET client_encoding = 'UTF8'; CREATE TABLE \"tâble\" (t text UNIQUE); INSERT INTO \"tâble\" VALUES ('é')",
    );
    server.psql("postgres", "CREATE DATABASE limited CONNECTION LIMIT 12");
    server.psql("limited", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)");
    server.psql("postgres", "CREATE DATABASE closed ALLOW_CONNECTIONS false");
    server
}

const DATABASES: [&str; 5] = ["ascii", "fidelity", "latin", "limited", "tiny"];

fn comes_back(from: Major, to: Major, tiny: u32) {
    let source = filled(from, tiny);
    let mut workspace = Workspace::folder().postgres(&source, &["*"]);
    let programs = tools::server_program(from, "postgres");
    workspace.set("scratch.postgres_bin", programs.parent().unwrap().display().to_string());
    workspace.run(&["init"]).ok();
    let backup = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(backup["state"], "complete", "{backup}");
    // Two foreign tables, and the database that takes no connections.
    assert_eq!(backup["sources"][0]["uncovered"].as_array().unwrap().len(), 3, "{backup}");
    let shown = workspace.run(&["show", "latest"]).ok().stdout;
    for told in
        ["rows of foreign table fid.far_away in database `fidelity`", "database `closed`, which accepts no connections"]
    {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    if from == to {
        let verified = workspace.run(&["--json", "verify", "latest"]).output();
        let mut told = verified.json()["sources"][0].clone();
        told["same"].take();
        assert!(verified.code == Some(0), "{told:#}\n{}", verified.stderr);
    }

    let target = Postgres::start_with(to, "max_locks_per_transaction = 600");
    let same_major = from == to;
    if same_major {
        // One of that name; the other pair of versions has none, and everything goes into the default one.
        target.psql("postgres", &format!("CREATE TABLESPACE fid_space LOCATION '{}'", space(&target)));
    }
    let restored = workspace.restore_into(&target, &["--json"]).ok().json();
    let items = restored["sources"][0][1]["items"].as_array().unwrap();
    assert!(items.iter().all(|item| item["compared"] == "same"), "{items:?}");

    let by = if same_major { from } else { to };
    for database in DATABASES {
        let dump = |server| definitions(server, by, "pg_dump", &["--schema-only", "--create", database]);
        let [was, is] = [&source, &target].map(|server| match same_major {
            true => dump(server),
            false => {
                let mut lines: Vec<String> = dump(server).iter().filter_map(|line| across_majors(line)).collect();
                lines.sort();
                lines
            }
        });
        assert_same(&format!("definitions of {database}"), &was, &is);
        let sequences = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2";
        assert_eq!(source.psql(database, sequences), target.psql(database, sequences), "{database}");
    }
    // Tablespaces are the target's own, with whoever owns and may use them. 18 says of a membership what 15 does not know.
    let membership = [", INHERIT TRUE GRANTED BY postgres", " WITH INHERIT TRUE GRANTED BY postgres"];
    let globals = |server| {
        let lines = definitions(server, by, "pg_dumpall", &["--globals-only"]).into_iter();
        let lines = lines.filter(|line| !line.to_uppercase().contains("TABLESPACE"));
        let known = |line: String| match same_major {
            true => line,
            false => membership.iter().fold(line, |line, more| line.replace(more, "")),
        };
        lines.map(known).filter(|line| !line.is_empty() && !line.starts_with("--")).collect::<Vec<_>>()
    };
    assert_same("globals", &globals(&source), &globals(&target));
    // By another way than ours: the text of every row.
    for database in ["fidelity", "limited", "tiny"] {
        assert_eq!(source.digests(database), target.digests(database), "{database}");
    }
    let bytes = "SELECT id, encode(convert_to(t, 'SQL_ASCII'), 'hex') FROM bytes ORDER BY id";
    assert_eq!(source.psql("ascii", bytes), target.psql("ascii", bytes));
    let objects = "SELECT oid, lomowner::regrole, lomacl, md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid";
    assert_eq!(source.psql("fidelity", objects), target.psql("fidelity", objects));
    let marks = "SELECT c.relname, c.relispopulated, i.indisvalid, i.indisclustered, i.indisreplident FROM pg_class c \
         LEFT JOIN pg_index i ON i.indexrelid = c.oid WHERE c.relnamespace = 'fid'::regnamespace AND c.relname <> 'invalid' ORDER BY 1";
    assert_eq!(source.psql("fidelity", marks), target.psql("fidelity", marks));
}

#[test]
fn from_15_to_15() {
    comes_back(Major::V15, Major::V15, 10_000);
}

#[test]
fn from_18_to_18() {
    comes_back(Major::V18, Major::V18, 500);
}

#[test]
fn from_15_to_18() {
    comes_back(Major::V15, Major::V18, 500);
}

/// A row of 600 MB, with `ALTLAS_TORTURE` set; else of 80, which is more than a part holds too.
#[test]
fn one_value_that_is_larger_than_parts_are() {
    let megabytes = if std::env::var_os("ALTLAS_TORTURE").is_some() { 600 } else { 80 };
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE altlas TEMPLATE template0 ENCODING 'UTF8'");
    source.psql(
        "altlas",
        &format!(
            "CREATE TABLE large (id int PRIMARY KEY, value bytea); ALTER TABLE large ALTER value SET STORAGE EXTERNAL; \
             INSERT INTO large VALUES (0, 'before'), (2, NULL); \
             INSERT INTO large SELECT 1, convert_to(repeat(string_agg(md5(g::text), ''), {megabytes}), 'UTF8') FROM generate_series(1, 32768) g"
        ),
    );
    let workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    let backup = workspace.run(&["backup"]).deadline(SOON).ok();
    let target = Postgres::start(Major::V15);
    let restore = workspace.restore_into(&target, &[]).deadline(SOON).ok();
    println!("{megabytes} MB: {} MiB, {} MiB at most", backup.peak_memory >> 20, restore.peak_memory >> 20);
    let rows = "SELECT id, length(value), sha256(value) FROM large ORDER BY id";
    assert_eq!(source.psql("altlas", rows), target.psql("altlas", rows));
}

/// What an extension has declared to be configuration comes back with it, and nothing of what it brings by itself.
#[test]
fn configuration_of_extensions() {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE altlas");
    source.psql(
        "altlas",
        "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
         CREATE TABLE public.measured (id int, at timestamptz NOT NULL) PARTITION BY RANGE (at);
         SELECT partman.create_parent('public.measured', 'at', 'native', 'daily');
         INSERT INTO public.measured SELECT g, now() FROM generate_series(1, 50) g",
    );
    let workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let verified = workspace.run(&["verify", "latest"]).output();
    assert_eq!(verified.code, Some(0), "{}", verified.text());
    let target = Postgres::start(Major::V15);
    workspace.restore_into(&target, &[]).ok();
    let configured = "SELECT * FROM partman.part_config";
    assert_eq!(source.psql("altlas", configured), target.psql("altlas", configured));
    assert!(source.psql("altlas", configured).contains("public.measured"));
    assert_eq!(
        source.psql("altlas", "SELECT count(*) FROM public.measured"),
        target.psql("altlas", "SELECT count(*) FROM public.measured")
    );
    // And it goes on working there.
    target.psql("altlas", "SELECT partman.run_maintenance()");
}

/// Where the verifier makes an extension in another version, what it does not take of the backup is no proof against that.
#[test]
fn an_extension_in_another_version() {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE altlas");
    // As a version would have it that the throwaway server does not have.
    source.psql(
        "altlas",
        "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman; ALTER TABLE partman.part_config ADD COLUMN of_another_version int;
         CREATE TABLE measured (at timestamptz NOT NULL) PARTITION BY RANGE (at); SELECT partman.create_parent('public.measured', 'at', 'native', 'daily')",
    );
    let workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    let verify = || {
        workspace.run(&["backup"]).ok();
        let output = workspace.run(&["--json", "verify", "latest"]).output();
        (output.code, output.json()["sources"][0].to_string())
    };
    let (code, told) = verify();
    assert!(code == Some(3) && told.contains("of_another_version"), "{told}");
    source.psql("altlas", "UPDATE pg_extension SET extversion = '9.9.9' WHERE extname = 'pg_partman'");
    let (code, told) = verify();
    assert!(code == Some(4) && told.contains("extension `pg_partman` in version 9.9.9 (it makes "), "{told}");
}

/// Materialized views over tables on another server, which nobody can reach any more: they stay empty, and say so.
#[test]
fn materialized_views_over_foreign_tables() {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE altlas");
    source.psql("altlas", "CREATE TABLE here AS SELECT generate_series(1, 10) AS n");
    source.psql(
        "altlas",
        &format!(
            "CREATE EXTENSION postgres_fdw;
             CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{}', dbname 'altlas');
             CREATE USER MAPPING FOR postgres SERVER itself OPTIONS (user 'postgres', password '{}');
             CREATE FOREIGN TABLE there (n int) SERVER itself OPTIONS (table_name 'here');
             CREATE MATERIALIZED VIEW \"of there\" AS SELECT t.n FROM there t JOIN here h ON h.n = t.n;
             CREATE MATERIALIZED VIEW of_it AS SELECT count(*) AS n FROM \"of there\" v JOIN here h ON h.n = v.n;
             CREATE MATERIALIZED VIEW of_here AS SELECT count(*) AS n FROM here",
            source.port(),
            source.password()
        ),
    );
    assert_eq!(source.psql("altlas", "SELECT n FROM of_it"), "10");
    source.psql("altlas", "ALTER SERVER itself OPTIONS (SET port '1')");
    let workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let verified = workspace.run(&["--json", "verify", "latest"]).output();
    assert_eq!(verified.code, Some(0), "{}", verified.text());
    let notes = verified.json()["sources"][0]["notes"].to_string();
    assert!(notes.contains("of there") && notes.contains("of_it") && !notes.contains("of_here"), "{notes}");

    let target = Postgres::start(Major::V15);
    let told = workspace.restore_into(&target, &[]).ok().text();
    assert!(told.contains("it stays empty: REFRESH MATERIALIZED VIEW public.of_it"), "{told}");
    let populated = "SELECT relname, relispopulated FROM pg_class WHERE relkind = 'm' ORDER BY 1";
    assert_eq!(target.psql("altlas", populated), "of there|f\nof_here|t\nof_it|f");

    // One that comes after them and cannot be filled for a reason of its own, with the same error.
    source.psql(
        "altlas",
        "CREATE SEQUENCE counted; SELECT nextval('counted'); CREATE MATERIALIZED VIEW wanting AS SELECT currval('counted') AS n",
    );
    workspace.run(&["backup"]).ok();
    let verified = workspace.run(&["--json", "verify", "latest"]).output().assert_code(3);
    assert!(verified.text().contains("REFRESH MATERIALIZED VIEW public.wanting"), "{}", verified.text());
}

/// Definitions in another encoding, of which something is in a tablespace that the throwaway server does not have.
#[test]
fn a_tablespace_of_a_database_in_another_encoding() {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", &format!("CREATE TABLESPACE fast LOCATION '{}'", space(&source)));
    source.psql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    source.psql("latin", "SET client_encoding = 'UTF8'; CREATE TABLE \"tâble\" (t text) TABLESPACE fast; INSERT INTO \"tâble\" VALUES ('é')");
    let workspace = Workspace::folder().postgres(&source, &["latin"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let verified = workspace.run(&["verify", "latest"]).output();
    assert_eq!(verified.code, Some(0), "{}", verified.text());
    let target = Postgres::start(Major::V15);
    let told = workspace.restore_into(&target, &[]).ok().text();
    assert!(told.contains("the target has no tablespace `fast`"), "{told}");
    assert_eq!(
        target.psql("latin", "SET client_encoding = 'UTF8'; SELECT md5(t) FROM \"tâble\""),
        source.psql("latin", "SET client_encoding = 'UTF8'; SELECT md5(t) FROM \"tâble\"")
    );
}
