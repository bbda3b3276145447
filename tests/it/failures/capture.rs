//! What happens while a backup reads: locks, names that change, broken connections, signals.

use std::{
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use rustix::process::Signal;

use super::{
    Failure, SOON, assert_nobody_left, assert_nothing_recorded, before, create_small, initialised, initialised_in,
    through, with_a_large_table,
};
use crate::support::{
    binary::Run,
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    proxy::{Step, Way},
    wait_for,
};

in_both_modes! {
    a_connection_that_breaks_in_the_middle_of_rows,
    a_backup_that_is_interrupted,
}

/// A `psql` that runs beside a test and is killed at the end of it.
struct Beside(Child);

impl Beside {
    fn start(server: &Postgres, database: &str, sql: &str) -> Self {
        let mut command = server.psql_command(database);
        // Commands from stdin, which stays open: what they begin is not ended.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), format!("{sql}\n").as_bytes()).unwrap();
        Self(child)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_table_that_is_locked() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    server.psql("one", "CREATE TABLE taken (); CREATE TABLE other ()");
    let mut workspace = initialised(&server, &["one"]);
    workspace.set("source.0.lock_timeout", "1s");
    let of_holder = "BEGIN; LOCK TABLE taken IN ACCESS EXCLUSIVE MODE; SELECT 'hunter2', 4711 AS lucky; /* hunter3 */";
    let holder = Beside::start(&server, "one", of_holder);
    let states = |server: &Postgres, wanted: &str| {
        let states = "SELECT string_agg(state || coalesce(wait_event_type = 'Lock', false), ' ' ORDER BY backend_start) \
                      FROM pg_stat_activity WHERE datname = 'one' AND query ~ 'lucky|waits' AND pid <> pg_backend_pid()";
        wait_for("the locks", SOON, || (server.psql("one", states) == wanted).then_some(()));
    };
    states(&server, "idle in transactionfalse");

    let of_holder = "(role `postgres`, `psql`, idle in transaction for ";
    let words = [
        "source `database`",
        "public.taken",
        "database `one`",
        "lock timeout",
        of_holder,
        "with `SELECT …, … AS lucky",
    ];
    Failure { code: 1, kind: "source", words: &words, hint: "`lock_timeout`" }.of(|| workspace.run(&["backup"]));
    let told = workspace.run(&["backup"]).output().assert_code(1);
    for not_told in ["public.other", "hunter", "4711"] {
        assert!(
            !told.stderr.contains(not_told),
            "only the table that is locked is named, and no values\n{}",
            told.text()
        );
    }
    assert_nothing_recorded(&workspace);
    drop(holder);

    // Whoever waits before us waits for somebody himself.
    let _reader = Beside::start(&server, "one", "BEGIN; SELECT count(*) AS lucky FROM other;");
    states(&server, "idle in transactionfalse");
    let waits = Beside::start(&server, "one", "ALTER TABLE other ADD COLUMN waits int DEFAULT 4711;");
    states(&server, "idle in transactionfalse activetrue");
    let words = [
        "public.other",
        "with `SELECT count(*) AS lucky FROM other",
        "active for ",
        "with `ALTER TABLE other ADD COLUMN waits int DEFAULT …",
    ];
    Failure { code: 1, kind: "source", words: &words, hint: "`lock_timeout`" }.of(|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);
    drop(waits);
    assert_nobody_left(&server);
}

/// Someone who waits for an exclusive lock makes everyone after him wait; the capture's own connections must not.
#[test]
fn someone_who_waits_for_an_exclusive_lock_does_not_stop_a_capture() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 300, 1);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["altlas", "one"]);
    workspace.set("source.0.workers", 1);
    workspace.set("source.0.lock_timeout", "2s");
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    workspace.run(&["backup"]).ok();

    // The last connection but one reads the first database's rows; both databases are locked by then.
    let reader = proxy.connections() * 2 - 1;
    let waiting = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&waiting);
    let psql = |database: &str| {
        let mut command = server.psql_command(database);
        command.args(["-c", "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"]);
        command
    };
    let (started, waiters) = mpsc::channel();
    let mut count = psql("postgres");
    let mut exclusive = [("altlas", "public.last_files"), ("one", "public.small")].map(|(database, table)| {
        let mut command = server.psql_command(database);
        command.args(["-c", &format!("ALTER TABLE {table} ADD COLUMN added int")]).stdin(Stdio::null());
        command
    });
    proxy.before_connection(reader, move || {
        for command in &mut exclusive {
            started.send(command.spawn().unwrap()).unwrap();
        }
        wait_for("both to wait", SOON, || (count.output().unwrap().stdout == b"2\n").then_some(()));
        seen.store(true, Ordering::SeqCst);
    });
    let report = workspace.run(&["backup", "--json"]).deadline(SOON).ok().json();
    assert!(waiting.load(Ordering::SeqCst), "the proxy held the right connection back");
    assert_eq!(report["state"], "complete");
    assert_eq!(report["sources"][0]["reused_parts"], report["sources"][0]["parts"], "the same rows as before");
    workspace.run(&["verify", "--level", "content"]).ok();
    // They got what they waited for.
    for mut waiter in waiters {
        assert!(waiter.wait().unwrap().success());
    }
}

/// `pg_dump` waits behind whoever waits for our locks, and gives up. He has the table once we let go, and then all is well.
#[test]
fn someone_who_waits_before_the_definitions_are_read() {
    let server = Postgres::start(Major::V15);
    create_small(&server, "one");
    let mut workspace = initialised(&server, &["one"]);
    workspace.set("source.0.lock_timeout", "2s");
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    let mut alter = server.psql_command("one");
    alter.args(["-c", "ALTER TABLE small ADD COLUMN added int"]).stdin(Stdio::null());
    let mut count = server.psql_command("postgres");
    count.args(["-c", "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"]);
    let (started, waiter) = mpsc::channel();
    let mut started = Some(started);
    proxy.on_bytes(move |way, _, bytes| {
        // Our own lock is of ONLY "public"."small".
        if way == Way::Up
            && memchr::memmem::find(&bytes, b"LOCK TABLE public.small").is_some()
            && let Some(started) = started.take()
        {
            started.send(alter.spawn().unwrap()).unwrap();
            wait_for("it to wait", SOON, || (count.output().unwrap().stdout == b"1\n").then_some(()));
        }
        vec![Step::Send(bytes)]
    });
    let output = workspace.run(&["--json", "backup"]).deadline(SOON).ok();
    for told in ["pg_dump", "LOCK TABLE public.small", "trying again: attempt 2 of 3"] {
        assert!(output.stderr.contains(told), "{}", output.text());
    }
    assert!(waiter.recv().unwrap().wait().unwrap().success());
    assert!(output.json()["sources"][0]["notes"].to_string().contains("at another try"), "{}", output.text());
    let target = Postgres::start(Major::V15);
    workspace.restore_into(&target, &[]).ok();
    assert_eq!(target.psql("one", "SELECT count(*), count(added) FROM small"), "100|0");
    assert_nobody_left(&server);
}

/// COPY goes by the names of now: tables that changed places after the snapshot must not be read for each other.
#[test]
fn schemas_that_change_names_under_a_capture_fail_it() {
    let server = Postgres::start(Major::V15);
    server.psql("postgres", "CREATE DATABASE one");
    server.psql("one", "CREATE SCHEMA live; CREATE SCHEMA staging; CREATE TABLE live.t AS SELECT 'live'; CREATE TABLE staging.t AS SELECT 'staging'");
    let mut workspace = initialised(&server, &["one"]);
    workspace.set("source.0.workers", 1);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    workspace.run(&["backup"]).ok();

    // The last connection reads the rows; everything is locked by then.
    let mut swap = server.psql_command("one");
    swap.args([
        "-c",
        "ALTER SCHEMA live RENAME TO x; ALTER SCHEMA staging RENAME TO live; ALTER SCHEMA x RENAME TO staging",
    ]);
    proxy.before_connection(proxy.connections() * 2, move || assert!(swap.status().unwrap().success()));
    workspace.run(&["backup"]).output().assert_error(1, &["`one`", ".t", "renamed"]);
    assert_eq!(workspace.run(&["--json", "list"]).ok().json()["backups"].as_array().unwrap().len(), 1);
}

/// The rows of `large` are on their way.
fn wait_for_rows(server: &Postgres) {
    let reading =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'altlas-backup' AND query ~ '^COPY .*large'";
    wait_for("the rows", SOON, || (server.psql("postgres", reading) != "0").then_some(()));
}

fn a_connection_that_breaks_in_the_middle_of_rows(mode: Mode) {
    let mut server = with_a_large_table();
    let mut workspace = initialised_in(mode, &server, &["one"]);
    // One reader, so that it is this table's connection that breaks.
    workspace.set("source.0.workers", 1);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    let words = ["source `database`", "reading public.large of database `one`", "closed"];
    let failure = Failure { code: 1, kind: "source", words: &words, hint: "server's log" };
    let cut = |run: Run| {
        let (_, at) = proxy.bytes();
        let running = run.spawn();
        wait_for("a part of the rows", SOON, || (proxy.bytes().1 > at + 8_000_000).then_some(()));
        proxy.cut_all();
        running.wait()
    };
    failure.check_text(cut(workspace.run(&["backup"])));
    assert_nobody_left(&server);
    failure.check_json(cut(workspace.run(&["backup", "--json"])));
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);

    // The server itself stops.
    let (_, at) = proxy.bytes();
    let running = workspace.run(&["backup"]).spawn();
    wait_for("a part of the rows", SOON, || (proxy.bytes().1 > at + 8_000_000).then_some(()));
    server.stop();
    running.wait().assert_error(1, &["source `database`", "reading public.large of database `one`"]);
    assert_nothing_recorded(&workspace);

    // A session that an administrator ends.
    server.resume();
    through(&mut workspace, &before(&server));
    workspace.set("source.0.url", server.url("postgres"));
    let running = workspace.run(&["backup"]).spawn();
    wait_for_rows(&server);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'altlas-backup' AND query ~ '^COPY'";
    server.psql("postgres", end);
    running.wait().assert_error(1, &["reading public.large"]);
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);

    // The one that holds the snapshot, while nobody waits for its answer.
    let running = workspace.run(&["backup"]).spawn();
    wait_for_rows(&server);
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name = 'altlas-backup' AND state = 'idle in transaction' AND backend_xmin IS NOT NULL";
    assert_eq!(server.psql("postgres", end), "1");
    running.wait().assert_error(1, &["holding the snapshot of database `one`", "administrator command"]);
    assert_nothing_recorded(&workspace);
    assert_nobody_left(&server);
    workspace.run(&["backup"]).ok();
}

fn a_backup_that_is_interrupted(mode: Mode) {
    let server = with_a_large_table();
    let workspace = initialised_in(mode, &server, &["one"]);
    for (signal, json) in [(Signal::TERM, true), (Signal::INT, false)] {
        let run = if json { workspace.run(&["backup", "--json"]) } else { workspace.run(&["backup"]) };
        let running = run.spawn();
        wait_for_rows(&server);
        running.signal(signal);
        let failure = Failure { code: 130, kind: "interrupted", words: &["interrupted"], hint: "" };
        if json {
            failure.check_json(running.wait())
        } else {
            failure.check_text(running.wait())
        }
        assert_nothing_recorded(&workspace);
        assert_nobody_left(&server);
    }
}
