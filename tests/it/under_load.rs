//! Captures while others write, and change the shape of tables: each ends with an error that names its cause, or restores to something that was once true.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::support::{
    postgres::{Major, Postgres},
    process,
    proxy::{Step, TcpProxy, Way},
    tools,
    workspace::Workspace,
};

/// Rows that `refilled` and `swapped` have whenever one looks.
const ALWAYS: &str = "1000";

/// What changes tables, one statement after the other; each is a transaction, and true before it and after.
fn changes(turn: u64) -> String {
    let n = turn % 7;
    match turn % 6 {
        0 => "BEGIN; TRUNCATE refilled; INSERT INTO refilled SELECT generate_series(1, 1000); COMMIT".into(),
        1 => format!("ALTER TABLE rewritten ALTER n TYPE {}", ["int", "bigint"][usize::from(turn % 4 < 2)]),
        2 => format!(
            "DROP TABLE IF EXISTS passing_{n}; CREATE TABLE passing_{n} (a int); INSERT INTO passing_{n} VALUES ({turn})"
        ),
        3 => format!(
            "BEGIN; CREATE TABLE part_{turn} (LIKE parted); INSERT INTO part_{turn} SELECT {turn}; \
             ALTER TABLE parted ATTACH PARTITION part_{turn} FOR VALUES IN ({turn}); COMMIT"
        ),
        4 => format!(
            "BEGIN; CREATE TABLE swapped_new AS SELECT generate_series(1, 1000) AS n, {turn} AS turn; DROP TABLE swapped; \
             ALTER TABLE swapped_new RENAME TO swapped; COMMIT"
        ),
        _ => format!(
            "ALTER TABLE shaped {} COLUMN extra_{n} int DEFAULT {turn}",
            if turn % 4 < 2 { "ADD" } else { "DROP" }
        )
        .replace(&format!("DROP COLUMN extra_{n} int DEFAULT {turn}"), &format!("DROP COLUMN IF EXISTS extra_{n}")),
    }
}

/// Balances of branches, tellers and accounts agree with the history: pgbench's own invariant.
const BALANCES: &str = "SELECT (SELECT sum(bbalance) FROM pgbench_branches) = coalesce(h, 0) AND (SELECT sum(tbalance) FROM pgbench_tellers) = coalesce(h, 0) \
     AND (SELECT sum(abalance) FROM pgbench_accounts) = coalesce(h, 0) FROM (SELECT sum(delta) AS h FROM pgbench_history) s";

/// Words of which an error of a capture has one: what was done to which table.
const CAUSES: [&str; 5] = [
    "was rewritten, truncated, renamed or dropped",
    "lock timeout",
    "statement timeout",
    "does not exist",
    "cache lookup failed",
];

#[test]
fn captures_under_changes_are_whole_or_fail() {
    let captures = if std::env::var_os("ALTLAS_TORTURE").is_some() { 20 } else { 5 };
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE bench");
    let bench = |arguments: &[&str]| {
        let mut command: Command = process::bound_command(&tools::server_program(Major::V15, "pgbench"), false);
        command.env("PGPASSWORD", source.password()).args(["-h", "127.0.0.1", "-U", "postgres", "-p"]);
        command.arg(source.port().to_string()).args(arguments).arg("bench");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(bench(&["-i", "-s", "3", "-q"]).status().unwrap().success());
    source.psql(
        "bench",
        "CREATE TABLE refilled AS SELECT generate_series(1, 1000) AS n; CREATE TABLE swapped AS SELECT generate_series(1, 1000) AS n, 0 AS turn;
         CREATE TABLE rewritten AS SELECT generate_series(1, 20000) AS n; CREATE TABLE shaped AS SELECT generate_series(1, 500) AS n;
         CREATE TABLE parted (n bigint) PARTITION BY LIST (n)",
    );
    let mut workspace = Workspace::folder().postgres(&source, &["bench"]);
    workspace.set("source.0.lock_timeout", "5s");
    workspace.run(&["init"]).ok();
    let target = Postgres::start(Major::V15);

    let (is_over, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut load = process::spawn(bench(&["-c", "4", "-T", "600", "-n"])).unwrap();
    let mut whole = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let turn = turns.fetch_add(1, Ordering::Relaxed);
                // One that comes to nothing changes nothing.
                let _ = source.try_psql("bench", &changes(turn));
                std::thread::sleep(std::time::Duration::from_millis(400));
            }
        });
        let run = std::panic::AssertUnwindSafe(|| {
            for n in 0..captures {
                let backup = workspace.run(&["--json", "backup"]).output();
                if backup.code != Some(0) {
                    assert!(
                        backup.code == Some(1) && CAUSES.iter().any(|cause| backup.text().contains(cause)),
                        "{}",
                        backup.text()
                    );
                    continue;
                }
                whole += 1;
                let database = format!("bench_{n}");
                let restored = workspace.restore_into(&target, &["--database", &format!("bench={database}")]).output();
                assert_eq!(restored.code, Some(0), "{}", restored.text());
                assert_eq!(target.psql(&database, BALANCES), "t", "balances of capture {n}");
                for (table, rows) in
                    [("refilled", ALWAYS), ("swapped", ALWAYS), ("rewritten", "20000"), ("shaped", "500")]
                {
                    assert_eq!(
                        target.psql(&database, &format!("SELECT count(*) FROM {table}")),
                        rows,
                        "{table} of capture {n}"
                    );
                }
                // Each was attached with a row in it.
                assert_eq!(target.psql(&database, "SELECT count(*) = count(DISTINCT tableoid) FROM parted"), "t");
                let parts = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'parted'::regclass";
                assert_eq!(target.psql(&database, parts), target.psql(&database, "SELECT count(*) FROM parted"));
                target.psql("postgres", &format!("DROP DATABASE {database}"));
            }
        });
        let result = std::panic::catch_unwind(run);
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    let _ = load.kill();
    let _ = load.wait();
    assert!(whole > 0, "no capture of {captures} was whole");
    assert!(turns.into_inner() > 10, "hardly anything was changed");
    println!("{whole} of {captures} captures were whole");
}

/// TRUNCATE is not MVCC-safe: a snapshot that is older than one finds the table empty. Between the snapshot and the lock nobody can be kept from it.
#[test]
fn a_table_that_is_filled_anew_between_snapshot_and_lock() {
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE one");
    source.psql("one", "CREATE TABLE refilled AS SELECT generate_series(1, 1000) AS n");
    let mut workspace = Workspace::folder().postgres(&source, &["one"]);
    let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], source.port())));
    workspace.set("source.0.url", format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port()));
    workspace.run(&["init"]).ok();
    // Right before the capture's own lock, so many times.
    let refill = |times: u32| {
        let mut refill = source.psql_command("one");
        refill.args(["-c", "BEGIN; TRUNCATE refilled; INSERT INTO refilled SELECT generate_series(1, 1000); COMMIT"]);
        let mut left = times;
        proxy.on_bytes(move |way, _, bytes| {
            let is_lock = way == Way::Up && bytes.windows(15).any(|window| window == b"LOCK TABLE ONLY");
            if is_lock && left > 0 {
                left -= 1;
                assert!(refill.status().unwrap().success());
            }
            vec![Step::Send(bytes)]
        });
    };
    refill(1);
    let told = workspace.run(&["-v", "backup"]).ok().text();
    assert!(told.contains("changed while it was locked; attempt 1 of 3"), "{told}");
    let target = Postgres::start(Major::V15);
    workspace.restore_into(&target, &[]).ok();
    assert_eq!(target.psql("one", "SELECT count(*) FROM refilled"), ALWAYS);
    refill(3);
    let words = ["public.refilled in database `one` was rewritten, truncated, renamed or dropped", "3 attempts"];
    workspace.run(&["backup"]).output().assert_error(1, &words);
}
