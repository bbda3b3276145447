//! PostgreSQL and Redis in one backup.

use std::time::Duration;

use super::{DISKLESS, MARGIN, NO_FILES, recorded};
use crate::support::{
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    redis::{Redis, RedisVersion, ms_from_now},
    workspace::Workspace,
};

in_both_modes! {
    both_are_restored,
}

fn both_are_restored(mode: Mode) {
    let (database, cache) = (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, DISKLESS));
    database.create_altlas("altlas", 2000, 1);
    cache.fill("altlas", 2000, 1);
    let workspace = Workspace::folder().mode(mode).postgres(&database, &["altlas"]).redis(&cache);
    workspace.run(&["init"]).ok();
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete");
    let names: Vec<_> =
        report["sources"].as_array().unwrap().iter().map(|source| source["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["database", "cache"], "in the order of the configuration");
    // What refers to PostgreSQL is cut before it.
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let cut = |n: usize| shown["head"]["sources"][n]["cut_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(cut(1) < cut(0), "{shown}");
    workspace.run(&["verify", "latest", "--level", "content"]).ok();

    let (database_target, cache_target) = (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, NO_FILES));
    let (first, second) =
        (format!("database={}", database_target.url("postgres")), format!("cache={}", cache_target.url()));
    workspace
        .run(&["restore", "latest", "--yes", "--target", &first, "--target", &second])
        .env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", database_target.password())
        .env("ALTLAS_BACKUP_TARGET_CACHE_PASSWORD", cache_target.password())
        .ok();
    assert_eq!(database.digests("altlas"), database_target.digests("altlas"));
    let horizon = ms_from_now(MARGIN);
    cache
        .digest_beyond(horizon, RedisVersion::V70)
        .assert_same(&cache_target.digest_beyond(horizon, RedisVersion::V70));
    // The file is of one source.
    let file = workspace.path("dump.rdb");
    let file = file.to_str().unwrap();
    workspace
        .run(&["restore", "latest", "--yes", "--to-rdb", file])
        .output()
        .assert_error(2, &["--to-rdb", "database"]);
    workspace.run(&["restore", "latest", "--yes", "--source", "cache", "--to-rdb", file]).ok();
}

/// Redis sends its dump while PostgreSQL waits for its locks: a dump that nobody reads would be ended by its server.
#[test]
fn a_long_wait_for_locks_does_not_end_the_dump() {
    let (database, cache) =
        (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, &[DISKLESS, &["repl-timeout 5"]].concat()));
    database.create_altlas("altlas", 200, 2);
    // More than the sockets between us hold.
    cache.fill("big", 30, 2);
    let workspace = Workspace::folder().postgres(&database, &["altlas"]).redis(&cache);
    workspace.run(&["init"]).ok();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            database.psql(
                "altlas",
                "BEGIN; LOCK TABLE public.last_files IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(15); COMMIT",
            )
        });
        std::thread::sleep(Duration::from_secs(1));
        workspace.run(&["backup"]).ok();
    });
    workspace.run(&["verify", "latest", "--level", "content"]).ok();
}

/// One of two that cannot be reached: the other is backed up, and the backup says that it is partial.
#[test]
fn one_that_is_down_does_not_take_the_other_with_it() {
    let (database, mut cache) = (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, DISKLESS));
    database.create_altlas("altlas", 200, 3);
    let workspace = Workspace::folder().postgres(&database, &["altlas"]).redis(&cache);
    workspace.run(&["init"]).ok();
    cache.kill();
    let report = workspace.run(&["--json", "backup"]).output().assert_code(5).json();
    assert_eq!(report["state"], "partial");
    assert_eq!(report["sources"][0]["state"], "complete");
    assert_eq!(report["sources"][1]["state"], "failed");
    assert!(report["sources"][1]["error"].as_str().unwrap().contains("127.0.0.1"), "{report}");
    assert_eq!(recorded(&workspace), 1);
    let file = workspace.path("dump.rdb");
    let arguments = ["restore", "latest", "--yes", "--source", "cache", "--to-rdb", file.to_str().unwrap()];
    workspace.run(&arguments).output().assert_error(1, &["no backup that is complete"]);
}
