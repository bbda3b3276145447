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
    verified(&copy, &first);
}
