//! Between us and the data is not always the primary itself: a standby, or a pooler.

use std::{fs, process::Stdio, sync::Arc};

use super::{Failure, SOON, assert_nobody_left, assert_nothing_recorded, before, create_small, initialised, through};
use crate::support::{
    free_port,
    postgres::{Major, Postgres, give_to_postgres},
    process,
    proxy::{Step, Way},
    temp_folder, wait_for,
};

/// What a standby has to apply may be what the snapshot forbids. It then ends our sessions: those that read, and those that only wait.
#[test]
fn a_standby_that_gives_the_snapshot_up() {
    let source = Arc::new(Postgres::start_with(Major::V15, "max_standby_streaming_delay = 100ms"));
    create_small(&source, "one");
    create_small(&source, "two");
    let standby = Arc::new(source.standby());
    let replayed = |source: &Postgres, standby: &Postgres| {
        // Something that is committed, so that all before it is sent.
        source.psql("postgres", "SELECT pg_logical_emit_message(true, '', '')");
        let written = source.psql("postgres", "SELECT pg_current_wal_lsn()");
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        wait_for("the standby to apply it", SOON, || {
            (standby.try_psql("postgres", &reached).ok()? == "t").then_some(())
        });
    };
    replayed(&source, &standby);
    let mut workspace = initialised(&standby, &["one", "two"]);
    let proxy = before(&standby);
    through(&mut workspace, &proxy);
    // In this database, right before these words, so many times.
    let conflict = |database: &'static str, words: &'static [u8], times: u32| {
        let (source, standby, mut left) = (Arc::clone(&source), Arc::clone(&standby), times);
        proxy.on_bytes(move |way, _, bytes| {
            if left > 0 && way == Way::Up && memchr::memmem::find(&bytes, words).is_some() {
                left -= 1;
                source.psql(database, "UPDATE small SET a = a");
                source.psql(database, "VACUUM small");
                replayed(&source, &standby);
            }
            vec![Step::Send(bytes)]
        });
    };
    let copy = &b"COPY "[..];
    // The session that holds the snapshot of `two` waits while `one` is read.
    let places = [("one", copy), ("one", b"LOCK TABLE public.small"), ("two", copy)];
    for (n, (database, words)) in places.into_iter().enumerate() {
        conflict(database, words, 1);
        let output = workspace.run(&["--json", "backup"]).deadline(SOON).ok();
        for told in ["conflict with recovery", "trying again: attempt 2 of 3"] {
            assert!(output.stderr.contains(told), "{}", output.text());
        }
        let report = output.json();
        assert!(report["sources"][0]["notes"].to_string().contains("at another try"), "{report}");
        assert_eq!((&report["state"], &report["sources"][0]["rows"]), (&"complete".into(), &200.into()), "{report}");
        let target = Postgres::start(Major::V15);
        workspace.restore_into(&target, &[]).ok();
        for database in ["one", "two"] {
            assert_eq!(source.digests(database), target.digests(database));
        }
        conflict(database, words, 6);
        let words = ["source `database`", &format!("`{database}`"), "conflict with recovery"];
        let failure = Failure { code: 1, kind: "source", words: &words, hint: "`hot_standby_feedback`" };
        failure.of(|| workspace.run(&["backup"]));
        let listed = workspace.run(&["--json", "list"]).ok().json();
        assert_eq!(listed["backups"].as_array().unwrap().len(), n + 1, "{listed}");
        assert_nobody_left(&standby);
    }
}

/// In a pool of transactions the snapshot's session would be another one with every statement. In one of sessions all is well.
#[test]
fn a_pooler_between_us_and_the_server() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    // The last one differs by database.
    let modes = [
        ("transaction", "transaction", false),
        ("statement", "statement", false),
        ("session", "session", true),
        ("session", "transaction", false),
    ];
    for (of_maintenance, mode, is_well) in modes {
        let (folder, port) = (temp_folder(), free_port());
        let configuration = folder.path().join("pgbouncer.ini");
        let to = format!("host=127.0.0.1 port={} user=postgres password={}", server.port(), server.password());
        let text = format!(
            "[databases]\npostgres = {to} pool_mode={of_maintenance}\n* = {to}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
        );
        fs::write(&configuration, text).unwrap();
        give_to_postgres(&configuration);
        let mut pooler = process::bound_command("/usr/sbin/pgbouncer".as_ref(), true);
        pooler.arg("-q").arg(&configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pooler = process::spawn(pooler).unwrap();
        wait_for("the pooler", SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        let mut workspace = initialised(&server, &["one"]);
        if is_well {
            workspace.run(&["backup"]).ok();
        }
        workspace.set("source.0.url", format!("postgres://postgres@127.0.0.1:{port}/postgres"));
        if is_well {
            let report = workspace.run(&["--json", "backup"]).deadline(SOON).ok().json();
            assert_eq!(report["state"], "complete", "{report}");
            assert_eq!(report["sources"][0]["reused_parts"], report["sources"][0]["parts"], "{report}");
        } else {
            let place = format!("127.0.0.1:{port}");
            let words = ["source `database`", "pooler", &place];
            let failure = Failure { code: 1, kind: "source", words: &words, hint: "PostgreSQL itself" };
            failure.of(|| workspace.run(&["backup"]));
            let found = workspace.run(&["doctor"]).output();
            assert!(found.code == Some(1) && found.text().contains("pooler"), "{}", found.text());
            assert_nothing_recorded(&workspace);
        }
        pooler.kill().unwrap();
        pooler.wait().unwrap();
    }
    assert_nobody_left(&server);
}
