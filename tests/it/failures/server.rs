//! Servers that cannot be used, and their programs.

use std::path::Path;

use super::{Failure, assert_nobody_left, assert_nothing_recorded, create_small, initialised};
use crate::support::{
    binary::Run,
    free_port,
    postgres::{Major, Postgres},
    temp_folder, tools,
};

#[test]
fn servers_that_cannot_be_used() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["one"]);
    let source = |code, words: &[&str], hint: &str, run: &dyn Fn() -> Run| {
        Failure { code, kind: "source", words, hint }.of(run);
    };
    let place = format!("127.0.0.1:{}", server.port());

    let wrong = workspace.secret("wrong", "not-the-password");
    let right = workspace.secret("right", server.password());
    workspace.set("source.0.password_file", wrong.display().to_string());
    let words = ["source `database`", &place, "role `postgres`", "password authentication failed"];
    source(1, &words, "`password_file`", &|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    // No password at all, and a role that is not there.
    workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
    source(1, &["source `database`", &place, "password"], "`password_file`", &|| workspace.run(&["backup"]));
    workspace.set("source.0.password_file", right.display().to_string());
    workspace.set("source.0.url", format!("postgres://nobody@{place}/postgres"));
    source(1, &["role `nobody`", "password authentication failed"], "url", &|| workspace.run(&["backup"]));

    let closed = format!("127.0.0.1:{}", free_port());
    workspace.set("source.0.url", format!("postgres://postgres@{closed}/postgres"));
    source(1, &["source `database`", "cannot connect", &closed, "refused"], "port", &|| workspace.run(&["backup"]));
    workspace.set("source.0.url", format!("postgres://postgres@nowhere.invalid:{}/postgres", server.port()));
    workspace.set("source.0.tls", "disable");
    source(1, &["cannot connect", "nowhere.invalid"], "host", &|| workspace.run(&["backup"]));

    // The server offers no TLS, and off loopback it would be asked for.
    workspace.set("source.0.url", server.url("postgres"));
    workspace.set("source.0.tls", "verify-full");
    source(1, &["TLS", &place], "`tls`", &|| workspace.run(&["backup"]));
    workspace.set("source.0.tls", "disable");

    let old = Postgres::start(Major::V13);
    create_small(&old, "one");
    let old_workspace = initialised(&old, &["one"]);
    let words = ["PostgreSQL 13.", "14 to 18"];
    source(1, &words, "version of altlas-backup", &|| old_workspace.run(&["backup"]));
    assert_nothing_recorded(&old_workspace);

    // As a target, too.
    workspace.run(&["backup"]).ok();
    let target = format!("database={}", old.url("postgres"));
    source(1, &words, "version of altlas-backup", &|| {
        let run = workspace.run(&["restore", "latest", "--yes", "--target", &target]);
        run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", old.password())
    });
    let databases = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database WHERE NOT datistemplate";
    assert_eq!(old.psql("postgres", databases), "one,postgres");
    assert_nobody_left(&server);
    assert_nobody_left(&old);
}

#[test]
fn programs_that_are_missing_or_of_another_major() {
    let (server, newer) = (Postgres::start(Major::V15), Postgres::start(Major::V18));
    create_small(&server, "one");
    create_small(&newer, "one");
    let empty = temp_folder();
    let source = |words: &[&str], hint: &str, run: &dyn Fn() -> Run| {
        Failure { code: 1, kind: "source", words, hint }.of(run);
    };

    let mut workspace = initialised(&server, &["one"]);
    let empty_name = empty.path().display().to_string();
    workspace.set("source.0.tools_dir", empty_name.clone());
    let words = ["`pg_dump` of PostgreSQL 15", "not found", empty_name.as_str()];
    source(&words, "postgresql-client-15", &|| workspace.run(&["backup"]));
    // One of the two programs alone is not enough.
    std::os::unix::fs::symlink(tools::client_program(Major::V15, "pg_dump"), empty.path().join("pg_dump")).unwrap();
    source(&["`pg_dumpall`", &empty_name], "`tools_dir`", &|| workspace.run(&["backup"]));

    let other = tools::client_folder(Major::V18).display().to_string();
    workspace.set("source.0.tools_dir", other.clone());
    let words = ["pg_dump", other.as_str(), "PostgreSQL 18", "of 15"];
    source(&words, "programs of PostgreSQL 15", &|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    // By PATH alone: Debian's folder of 18 is not there.
    assert!(!Path::new("/usr/lib/postgresql/18").exists(), "Debian's PostgreSQL 18 would be found beside PATH");
    let workspace = initialised(&newer, &["one"]);
    let nothing = temp_folder();
    let (nothing, fifteen) = (nothing.path(), tools::client_folder(Major::V15));
    source(&["`pg_dump` of PostgreSQL 18", &nothing.display().to_string()], "postgresql-client-18", &|| {
        workspace.run(&["backup"]).path(&[nothing])
    });
    source(&["pg_dump", "PostgreSQL 15", "of 18"], "programs of PostgreSQL 18", &|| {
        workspace.run(&["backup"]).path(&[&fifteen])
    });
    assert_nothing_recorded(&workspace);
    // Behind one of another major, the right one is still found.
    workspace.run(&["backup"]).path(&[&fifteen, &tools::client_folder(Major::V18)]).ok();
}
