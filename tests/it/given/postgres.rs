//! PostgreSQL: sources, their standbys, and servers in use are refused, and nothing is done to them.

use std::{collections::BTreeMap, time::Duration};

use crate::support::{
    postgres::{Major, Postgres, give_to_postgres},
    proof::Given,
    wait_for,
    workspace::Workspace,
};

const SOON: Duration = Duration::from_secs(60);

/// Rows and digests of the tables of each database, and a text of the rest.
type State = (Vec<BTreeMap<String, (u64, String)>>, String);

/// Databases with their tables, roles, and what else a claim or a release could change.
fn state(server: &Postgres) -> State {
    let databases = server.psql("postgres", "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1");
    let digests = databases.lines().map(|name| server.digests(name)).collect();
    let rest = server.psql(
        "postgres",
        "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database UNION ALL SELECT rolname, rolpassword FROM pg_authid \
         UNION ALL SELECT slot_name, plugin FROM pg_replication_slots UNION ALL SELECT gid, database FROM pg_prepared_xacts ORDER BY 1",
    );
    (digests, rest)
}

/// It is refused for this, and nothing of it is another: neither by the claim nor by a release that nobody should have asked for.
#[track_caller]
fn left_alone(server: &Postgres, others: &[&Postgres], words: &str) {
    let given = Given::postgres(server);
    let others: Vec<_> = others.iter().map(|other| Given::postgres(other).identity()).collect();
    let before = state(server);
    let what = given.refused(&others);
    assert!(what.contains(words), "`{words}` is not in: {what}");
    if server.psql("postgres", "SELECT pg_is_in_recovery()") == "f" {
        given.release();
    }
    assert_eq!(state(server), before);
}

#[test]
fn the_source_and_its_standby_by_any_name() {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 50, 41);
    left_alone(&source, &[&source], "is source 127.0.0.1:");
    let identity = Given::postgres(&source).identity();
    let socket = source.socket_folder().display().to_string().replace('/', "%2F");
    for host in ["localhost", &socket] {
        let url = format!("postgres://postgres@{host}:{}/postgres", source.port());
        let what = Given::at("postgres", &url, &source.password_file()).refused(std::slice::from_ref(&identity));
        assert!(what.contains("is source 127.0.0.1:"), "{what}");
    }
    // Also where the source cannot be asked who it is.
    left_alone(&source, &[], "holds database `altlas`");

    let mut standby = source.standby();
    left_alone(&standby, &[&source], "or a replica of it (system identifier");
    left_alone(&standby, &[], "is a replica");
    // Whoever has replicas is somebody's, however empty.
    let empty = Postgres::start(Major::V15);
    let follower = empty.standby();
    wait_for("the standby to follow", SOON, || {
        (empty.psql("postgres", "SELECT count(*) FROM pg_stat_replication") == "1").then_some(())
    });
    left_alone(&empty, &[], "others have 1 session on it (walreceiver");
    drop(follower);
    // One that was made a server of its own is a copy of the source all the same.
    standby.psql("postgres", "SELECT pg_promote()");
    standby.psql("postgres", "DROP DATABASE altlas");
    left_alone(&standby, &[&source], "is source");
    standby.stop();
    assert_eq!(source.psql("altlas", "SELECT count(*) > 0 FROM last_files"), "t");
}

#[test]
fn a_server_in_use() {
    let server = Postgres::start(Major::V15);
    let space = server.socket_folder().parent().unwrap().join("space");
    std::fs::create_dir(&space).unwrap();
    give_to_postgres(&space);
    let in_space = format!("CREATE TABLESPACE space LOCATION '{}'", space.display());
    for (use_it, undo, words) in [
        ("CREATE DATABASE shop", "DROP DATABASE shop", "holds database `shop`: it is in use"),
        ("CREATE ROLE app LOGIN", "DROP ROLE app", "holds role `app`"),
        ("CREATE TABLE precious (id int)", "DROP TABLE precious", "in database `postgres`"),
        ("SELECT lo_create(77)", "SELECT lo_unlink(77)", "holds 1 object in database `postgres`"),
        (
            "SELECT pg_create_logical_replication_slot('slot', 'pgoutput')",
            "SELECT pg_drop_replication_slot('slot')",
            "holds replication slot `slot`",
        ),
        (
            "CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false)",
            "ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub",
            "holds subscription `sub`",
        ),
        (
            "BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'half'",
            "ROLLBACK PREPARED 'half'",
            "holds prepared transaction `half`",
        ),
        (&in_space, "DROP TABLESPACE space", "holds tablespace `space`"),
    ] {
        server.psql("postgres", use_it);
        left_alone(&server, &[], words);
        for statement in undo.split("; ") {
            server.psql("postgres", statement);
        }
    }
    // An application that is connected and has done nothing yet.
    let mut application = server.psql_command("postgres");
    application.args(["-c", "SELECT pg_sleep(600)"]).env("PGAPPNAME", "shop");
    let mut application = application.stdin(std::process::Stdio::null()).spawn().unwrap();
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shop'";
    wait_for("the application", SOON, || (server.psql("postgres", sleeps) == "1").then_some(()));
    left_alone(&server, &[], "others have 1 session on it (shop postgres");
    application.kill().unwrap();
    application.wait().unwrap();
    server.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shop'");
    // A role that is not allowed to do all.
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE ROLE limited LOGIN PASSWORD 'its-password'");
    let password = server.password_file().with_file_name("its-password");
    std::fs::write(&password, "its-password\n").unwrap();
    let url = format!("postgres://limited@127.0.0.1:{}/postgres", server.port());
    let what = Given::at("postgres", &url, &password).refused(&[]);
    assert!(what.contains("does not let `limited` do all"), "{what}");
}

/// A claimed server that somebody takes into use afterwards: only what the proof made goes, and the next one is refused.
#[test]
fn what_others_bring_later_stays() {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 20, 42);
    source.psql(
        "postgres",
        "CREATE ROLE app LOGIN; CREATE ROLE auditor IN ROLE app; GRANT SELECT ON pg_authid TO auditor",
    );
    let workspace = Workspace::folder().postgres(&source, &["*"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let scratch = Postgres::start_unrelated(Major::V15);
    let given = Given::postgres(&scratch);
    // Tools of both majors are looked for in the path of the tests, which has them not.
    let unclaimed = given.prove_backup(&workspace, "latest").unwrap_err().to_string();
    assert!(unclaimed.contains("was not claimed"), "{unclaimed}");
    given.proved(&workspace);
    let roles = "SELECT count(*) FROM pg_roles WHERE rolname IN ('app', 'auditor')";
    assert_eq!(scratch.psql("postgres", roles), "2");
    scratch.psql("postgres", "CREATE DATABASE shop");
    scratch.psql("postgres", "CREATE ROLE clerk; CREATE TABLE precious (id int); ALTER TABLE precious OWNER TO clerk");
    let what = given.refused(&[]);
    for word in ["database `shop`", "role `clerk`", "in database `postgres`"] {
        assert!(what.contains(word), "{what}");
    }
    given.release();
    assert_eq!(scratch.psql("postgres", roles), "0");
    let left = scratch.psql("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1");
    assert_eq!(left, "postgres\nshop");
    assert_eq!(scratch.psql("postgres", "SELECT tableowner FROM pg_tables WHERE tablename = 'precious'"), "clerk");
    scratch.psql("postgres", "DROP DATABASE shop");
    scratch.psql("postgres", "DROP TABLE precious; DROP ROLE clerk");
    given.proved(&workspace);
    given.release();
}
