//! What a server holds: what may not be read, is not there, or cannot be backed up.

use super::{
    Failure, assert_nobody_left, assert_nothing_recorded, before, create_small, initialised, initialised_in, listed,
    through,
};
use crate::support::{
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    workspace::Workspace,
};

in_both_modes! {
    a_server_without_user_tables,
    a_source_that_fails_beside_one_that_does_not_is_a_partial_backup,
}

#[test]
fn a_role_that_may_not_read_everything() {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE ROLE reader LOGIN PASSWORD 'reader-password'");
    server.psql("postgres", "CREATE DATABASE one");
    server.psql(
        "one",
        "CREATE TABLE open AS SELECT 1 AS a; CREATE TABLE secret AS SELECT 2 AS a; CREATE TABLE guarded AS SELECT 3 AS a; \
         CREATE SEQUENCE counter; CREATE SCHEMA closed; CREATE TABLE closed.inside AS SELECT 4 AS a; \
         GRANT SELECT ON open, guarded, closed.inside, counter TO reader; \
         GRANT SELECT (a) ON secret TO reader; \
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON guarded USING (a < 3)",
    );
    let mut workspace = Workspace::folder();
    let password = workspace.secret("reader", "reader-password");
    let url = format!("postgres://reader@127.0.0.1:{}/postgres", server.port());
    workspace = workspace.postgres_as("database", &url, &password, &["one"]);
    workspace.run(&["init"]).ok();
    let unreadable = |words: &[&str]| {
        let words = [&["source `database`", "role `reader`", "database `one`"], words].concat();
        let hint = "GRANT pg_read_all_data TO \"reader\"";
        Failure { code: 1, kind: "source", words: &words, hint }.of(|| workspace.run(&["backup"]));
        assert_nothing_recorded(&workspace);
    };

    unreadable(&["3 objects", "closed.inside", "public.guarded", "public.secret"]);
    server.psql("one", "GRANT USAGE ON SCHEMA closed TO reader; DROP POLICY few ON guarded");
    unreadable(&["2 objects", "public.guarded", "public.secret"]);
    server.psql("one", "ALTER TABLE guarded DISABLE ROW LEVEL SECURITY");
    unreadable(&["1 object ", "public.secret"]);
    server.psql("one", "GRANT SELECT ON secret TO reader; REVOKE SELECT ON counter FROM reader");
    unreadable(&["1 object ", "public.counter"]);
    server.psql("one", "GRANT SELECT ON counter TO reader");
    let done = workspace.run(&["backup"]).ok();
    assert!(done.stdout.contains("not covered: `database`: passwords of roles"), "{}", done.text());
    assert_nobody_left(&server);
}

#[test]
fn databases_that_are_not_there() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    server.psql("postgres", "CREATE DATABASE nobody_in ALLOW_CONNECTIONS false");
    let mut workspace = initialised(&server, &["one"]);
    let place = format!("127.0.0.1:{}", server.port());
    let failure = |words: &[&str], hint: &str, workspace: &Workspace| {
        Failure { code: 1, kind: "source", words, hint }.of(|| workspace.run(&["backup"]));
        assert_nothing_recorded(workspace);
    };

    workspace.set("source.0.databases", vec!["one", "altlas"]);
    failure(&["database `altlas` does not exist", &place], "`databases`", &workspace);
    workspace.set("source.0.databases", vec!["one", "app_*"]);
    failure(&["fits the pattern `app_*`", &place], "`databases`", &workspace);
    workspace.set("source.0.databases", vec!["nobody_in"]);
    failure(&["database `nobody_in`", "does not accept connections"], "ALLOW_CONNECTIONS", &workspace);
    workspace.set("source.0.url", server.url("gone"));
    failure(&["database `gone` does not exist"], "", &workspace);

    // Dropped between the listing, on the first connection, and the second one.
    workspace.set("source.0.databases", vec!["*"]);
    Failure { code: 1, kind: "source", words: &["database `a_short_life` does not exist"], hint: "`databases`" }.of(
        || {
            server.psql("postgres", "CREATE DATABASE a_short_life");
            let proxy = before(&server);
            through(&mut workspace, &proxy);
            let mut drop = server.psql_command("postgres");
            drop.args(["-c", "DROP DATABASE a_short_life"]);
            proxy.before_connection(2, move || assert!(drop.status().unwrap().success()));
            // It must outlive the run, which ends within the test.
            std::mem::forget(proxy);
            workspace.run(&["backup"])
        },
    );
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);
}

fn a_server_without_user_tables(mode: Mode) {
    let server = Postgres::start(Major::V15);
    let mut workspace = initialised_in(mode, &server, &["*"]);
    let failure =
        Failure { code: 1, kind: "empty", words: &["source `database`", "no user table"], hint: "allow_empty" };
    failure.of(|| workspace.run(&["backup"]));
    // Neither do functions and empty schemas make a backup of it.
    server
        .psql("postgres", "CREATE SCHEMA hollow; CREATE FUNCTION hollow.one() RETURNS int LANGUAGE sql AS 'SELECT 1'");
    failure.of(|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    workspace.set("source.0.allow_empty", true);
    let report = workspace.run(&["backup", "--json"]).ok().json();
    assert_eq!(report["sources"][0]["state"], "empty");
    assert_eq!(listed(&workspace)[0]["head"]["sources"][0]["state"], "empty");
}

fn a_source_that_fails_beside_one_that_does_not_is_a_partial_backup(mode: Mode) {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let workspace = initialised_in(mode, &server, &["one"]).postgres_as(
        "other",
        &server.url("postgres"),
        &server.password_file(),
        &["not_there"],
    );
    let report = workspace.run(&["backup", "--json"]).output().assert_code(5).json();
    assert_eq!(report["state"], "partial");
    assert!(report["sources"][1]["error"].as_str().unwrap().contains("`not_there`"), "{report}");
    assert!(report["sources"][1]["hint"].as_str().unwrap().contains("`databases`"), "{report}");
    assert_eq!(listed(&workspace)[0]["head"]["state"], "partial");
    let text = workspace.run(&["backup"]).output().assert_code(5);
    assert!(text.stdout.contains("PARTIAL") && text.stdout.contains("`not_there`"), "{}", text.text());

    // All of them: one error that names each.
    let words = ["no source could be backed up", "source `database`", "source `other`"];
    server.psql("postgres", "DROP DATABASE one");
    Failure { code: 1, kind: "source", words: &words, hint: "`databases`" }.of(|| workspace.run(&["backup"]));
}
