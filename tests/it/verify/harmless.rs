//! Differences that are none: a backup that has them is verified.

use super::{back_up, verified};
use crate::support::{
    forge,
    postgres::{Major, Postgres},
    workspace::Workspace,
};

/// Rows in another order and on other pages, other OIDs, new indexes, a sequence that is ahead of what was captured.
#[test]
fn of_postgres() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 300, 7);
    server.psql(
        "altlas",
        "CREATE TABLE moved (id int PRIMARY KEY, v text); INSERT INTO moved SELECT n, 'v' || n FROM generate_series(1, 5000) n;
         CREATE SEQUENCE counter; SELECT setval('counter', 10);
         CREATE SEQUENCE down INCREMENT -1; SELECT setval('down', -10)",
    );
    // What a server prints in other words once it has read its own print, and a child whose columns come out of a reload in another order.
    server.psql(
        "altlas",
        "CREATE TABLE told (id int PRIMARY KEY, state varchar(20) DEFAULT 'new' CHECK (state IN ('new', 'done')),
           is_over boolean GENERATED ALWAYS AS (state IN ('done', 'lost')) STORED);
         INSERT INTO told VALUES (1, 'new'), (2, 'done');
         CREATE DOMAIN word AS varchar(9) CHECK (VALUE NOT IN ('a', 'b'));
         CREATE VIEW told_over AS SELECT * FROM told WHERE state IN ('done', 'lost');
         CREATE MATERIALIZED VIEW kept AS SELECT * FROM told WHERE state IN ('done', 'new');
         CREATE INDEX told_open ON told (id) WHERE state IN ('new', 'lost');
         ALTER TABLE told ENABLE ROW LEVEL SECURITY;
         CREATE POLICY seen ON told USING (state IN ('new', 'done'));
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER looks BEFORE UPDATE ON told FOR EACH ROW WHEN (NEW.state IN ('new', 'done')) EXECUTE FUNCTION nothing();
         CREATE TABLE parent (a int, b int); CREATE TABLE child (b int, a int); ALTER TABLE child INHERIT parent;
         INSERT INTO child VALUES (1, 2);
         SELECT lo_from_bytea(7, 'large'); GRANT SELECT ON LARGE OBJECT 7 TO PUBLIC; COMMENT ON LARGE OBJECT 7 IS 'seven'",
    );
    let workspace = Workspace::folder().postgres(&server, &["altlas"]);
    workspace.run(&["init"]).ok();
    let first = back_up(&workspace);
    server.psql("altlas", "UPDATE moved SET v = v WHERE id % 3 = 0");
    for statement in ["VACUUM FULL", "REINDEX DATABASE altlas", "SELECT nextval('counter')", "SELECT nextval('down')"] {
        server.psql("altlas", statement);
    }
    // The same table, made anew: it and its indexes have other OIDs.
    server.psql(
        "altlas",
        "CREATE TABLE again (LIKE moved INCLUDING ALL); INSERT INTO again SELECT * FROM moved ORDER BY v; DROP TABLE moved; \
         ALTER TABLE again RENAME TO moved; ALTER INDEX again_pkey RENAME TO moved_pkey",
    );
    let second = back_up(&workspace);
    verified(&workspace, &second);
    let copy = workspace.copy();
    for artifact in ["tables/public.moved", "sequences.sql"] {
        forge::graft(&copy, &first, &second, "database", &format!("databases/altlas/{artifact}"));
    }
    let report = verified(&copy, &first);
    let notes = report["sources"][0]["notes"].to_string();
    assert!(notes.contains("are printed in other words by a new server"), "{report}");
}

/// A first superuser who may not log in is one all the same.
#[test]
fn a_first_superuser_who_may_not_log_in() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 10, 8);
    server.psql("postgres", "CREATE ROLE app LOGIN; GRANT pg_monitor TO app");
    let workspace = Workspace::folder().postgres(&server, &["altlas"]);
    server.psql("postgres", &format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{}'", server.password()));
    let mut workspace = workspace;
    let url = server.url("postgres").replace("postgres@", "keeper@");
    workspace.set("source.0.url", url);
    server.psql("postgres", "ALTER ROLE postgres NOLOGIN");
    workspace.run(&["init"]).ok();
    let backup = back_up(&workspace);
    verified(&workspace, &backup);
}
