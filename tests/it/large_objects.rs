//! Large objects: bytes, owners, grants and comments, from server to server.

use serde_json::Value;

use crate::support::{
    forge,
    postgres::{Major, Postgres},
    workspace::Workspace,
};

/// Objects of every sort, among them the smallest and the largest OID.
fn create(server: &Postgres) {
    server.psql("postgres", "CREATE ROLE ann; CREATE ROLE bob; CREATE ROLE carl");
    server.psql("postgres", "CREATE DATABASE altlas");
    server.psql(
        "altlas",
        r"CREATE TABLE files (name text, content oid);
        -- Several pieces, the last of which is short; one that fits exactly.
        INSERT INTO files VALUES ('long', lo_from_bytea(1, decode(repeat('00ff5c0a0d', 60000), 'hex') || 'end')),
            ('exact', lo_from_bytea(4294967295, decode(repeat('ab', 65536), 'hex')));
        -- With a hole, and empty.
        INSERT INTO files VALUES ('hole', lo_create(7)), ('empty', lo_create(8));
        SELECT lo_put(7, 3000000, 'far away');
        INSERT INTO files SELECT 'small ' || n, lo_from_bytea(0, convert_to(repeat('x', n), 'UTF8')) FROM generate_series(1, 2500) n;
        COMMENT ON LARGE OBJECT 1 IS E'it''s\na \\ comment';
        GRANT SELECT ON LARGE OBJECT 1 TO PUBLIC;
        GRANT SELECT, UPDATE ON LARGE OBJECT 7 TO bob WITH GRANT OPTION;
        SET SESSION AUTHORIZATION bob; GRANT UPDATE ON LARGE OBJECT 7 TO carl; RESET SESSION AUTHORIZATION;
        ALTER LARGE OBJECT 7 OWNER TO ann;
        REVOKE ALL ON LARGE OBJECT 8 FROM postgres;",
    );
}

/// What an independent look finds.
fn digest(server: &Postgres, database: &str) -> String {
    server.psql(
        database,
        "SELECT oid, lomowner::regrole, lomacl, obj_description(oid, 'pg_largeobject'), length(lo_get(oid)), md5(lo_get(oid))
         FROM pg_largeobject_metadata ORDER BY oid",
    )
}

fn back_up(workspace: &Workspace) -> String {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    report["backup"].as_str().unwrap().to_owned()
}

#[track_caller]
fn verify(workspace: &Workspace, backup: &str, code: i32) -> Value {
    workspace.run(&["--json", "verify", backup]).output().assert_code(code).json()
}

fn round_trip(from: Major, to: Major) {
    let source = Postgres::start(from);
    create(&source);
    let workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    assert!(workspace.run(&["doctor"]).ok().stdout.contains("2,504 large objects"));
    let backup = back_up(&workspace);
    if from == to {
        assert_eq!(verify(&workspace, &backup, 0)["verdict"], "verified");
    }
    let target = Postgres::start(to);
    let address = format!("database={}", target.url("postgres"));
    let output = workspace
        .run(&["restore", &backup, "--yes", "--target", &address])
        .env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", target.password())
        .ok();
    for told in
        ["1 table, 2,504 rows, 2,504 large objects", "altlas: 2,504 large objects", "2 artifacts: the same as captured"]
    {
        assert!(output.text().contains(told), "{told}: {}", output.text());
    }
    let was = digest(&source, "altlas");
    assert_eq!(was.lines().filter(|line| line.contains('|')).count(), 2504 + 1, "a comment has two lines\n{was}");
    assert_eq!(was, digest(&target, "altlas"));
}

#[test]
fn from_15_to_15() {
    round_trip(Major::V15, Major::V15);
}

#[test]
fn from_15_to_18() {
    round_trip(Major::V15, Major::V18);
}

#[test]
fn from_18_to_18() {
    round_trip(Major::V18, Major::V18);
}

/// Nothing that differs passes for the same. Each backup differs from the one before it by one change.
#[test]
fn what_is_spoilt_is_found() {
    let server = Postgres::start(Major::V15);
    create(&server);
    let workspace = Workspace::folder().postgres(&server, &["altlas"]);
    workspace.run(&["init"]).ok();
    server.psql("altlas", "COMMENT ON LARGE OBJECT 4294967295 IS 'old'");
    for (change, artifact, named) in [
        ("SELECT lo_put(1, 200000, 'x')", "large-objects", "large objects"),
        ("REVOKE SELECT ON LARGE OBJECT 1 FROM PUBLIC", "large-objects.sql", "grants on large object 1"),
        ("REVOKE UPDATE ON LARGE OBJECT 7 FROM bob CASCADE", "large-objects.sql", "grants on large object 7"),
        ("COMMENT ON LARGE OBJECT 4294967295 IS 'another'", "large-objects.sql", "large object 4294967295"),
        ("COMMENT ON LARGE OBJECT 1 IS 'another'", "large-objects.sql", "comment large object 1"),
        ("ALTER LARGE OBJECT 7 OWNER TO carl", "large-objects.sql", "large object 7"),
        ("SELECT lo_unlink(8)", "large-objects.sql", "large object 8"),
    ] {
        let first = back_up(&workspace);
        server.psql("altlas", change);
        let copy = {
            let donor = back_up(&workspace);
            let copy = workspace.copy();
            forge::graft(&copy, &first, &donor, "database", &format!("databases/altlas/{artifact}"));
            copy
        };
        let report = verify(&copy, &first, 3);
        let differences = report["sources"][0]["differences"].to_string();
        assert!(differences.contains(named), "{change}: {report}");
    }
}

/// `pg_read_all_data` is not enough; a grant for each is, and so is being among their owners.
#[test]
fn a_role_that_may_not_read_them_fails() {
    let server = Postgres::start(Major::V15);
    create(&server);
    let password = server.password();
    let role = format!("CREATE ROLE backup LOGIN PASSWORD '{password}'; GRANT pg_read_all_data TO backup");
    server.psql("altlas", &role);
    let mut workspace = Workspace::folder().postgres(&server, &["altlas"]);
    workspace.set("source.0.url", server.url("postgres").replace("postgres@", "backup@"));
    workspace.run(&["init"]).ok();
    let words = ["role `backup` cannot read 2,503 objects of database `altlas`", "large object 7"];
    let output = workspace.run(&["backup"]).output().assert_error(1, &words);
    assert!(output.text().contains("GRANT SELECT ON LARGE OBJECT"), "{}", output.text());
    workspace.run(&["doctor"]).output().assert_code(1);
    server.psql(
        "altlas",
        "GRANT ann TO backup;
         DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata WHERE oid <> 7 LOOP \
         EXECUTE format('GRANT SELECT ON LARGE OBJECT %s TO backup', o); END LOOP; END $$",
    );
    let backup = back_up(&workspace);
    assert_eq!(verify(&workspace, &backup, 0)["verdict"], "verified");
}

/// A database of nothing but large objects is no empty one, here or there.
#[test]
fn alone_they_are_a_backup() {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE DATABASE blobs");
    server.psql("blobs", "SELECT lo_from_bytea(0, 'content')");
    let workspace = Workspace::folder().postgres(&server, &["*"]);
    workspace.run(&["init"]).ok();
    let backup = back_up(&workspace);
    assert_eq!(verify(&workspace, &backup, 0)["verdict"], "verified");
    let address = format!("database={}", server.url("postgres"));
    let restore = |more: &[&str]| {
        let arguments =
            [&["restore", "--yes", "--source", "database", "--database", "blobs=blobs", "--target", &address], more];
        let run = workspace.run(&arguments.concat());
        run.env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", server.password()).output()
    };
    assert!(restore(&[]).assert_code(6).text().contains("holds 1 large object"));
    restore(&["--overwrite"]).assert_code(0);
    assert_eq!(
        server.psql("blobs", "SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata"),
        "content"
    );
}
