//! PostgreSQL and Redis in one backup.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::Value;

use super::{DISKLESS, MARGIN, NO_FILES, SOON, before, dumps, in_dump, recorded};
use crate::support::{
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    proxy::{Step, TcpProxy},
    redis::{Redis, RedisVersion, ms_from_now},
    wait_for,
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
    assert_one_recovery_point(&workspace, &report, [1, 0]);
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

/// The newest backup's sources are cut in this order, each with an error, and how far apart they are is told the same everywhere.
#[track_caller]
fn assert_one_recovery_point(workspace: &Workspace, report: &Value, order: [usize; 2]) {
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let source = |n: usize| &shown["head"]["sources"][n];
    let time = |of: &Value| of.as_str().map(|text| text.parse::<Timestamp>().unwrap());
    let cut = order.map(|n| (time(&source(n)["cut_first"]), time(&source(n)["cut_at"]).unwrap()));
    assert!(cut[0].1 < cut[1].0.unwrap_or(cut[1].1), "{shown}");
    let (first, last) = (cut[0].0.unwrap_or(cut[0].1), cut[1].1);
    let started: Timestamp = shown["head"]["started"].as_str().unwrap().parse().unwrap();
    assert!(last.duration_since(started).abs() < jiff::SignedDuration::from_mins(10), "{shown}");
    let mut errors = 0.0;
    for n in order {
        let error = source(n)["cut_error_seconds"].as_f64().unwrap();
        assert!(error > 0.0 && error < 10.0, "{shown}");
        assert_eq!(shown["sources"][n]["cut"]["error_seconds"].as_f64(), Some(error));
        errors += error;
    }
    let skew = &shown["head"]["skew"];
    assert_eq!(*skew, report["skew"]);
    assert!((skew["seconds"].as_f64().unwrap() - last.duration_since(first).as_secs_f64()).abs() < 1e-6, "{shown}");
    assert!((skew["error_seconds"].as_f64().unwrap() - errors).abs() < 1e-6, "{shown}");
    let text = workspace.run(&["show", "latest"]).ok().stdout;
    assert!(text.contains("\nskew ") && text.matches(", cut 20").count() == 2 && text.contains(" ± "), "{text}");
}

/// The order is a setting, also for a backup of some of the sources.
#[test]
fn the_order_of_cuts_is_a_setting() {
    let (database, cache) = (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, DISKLESS));
    database.create_altlas("altlas", 200, 4);
    cache.fill("altlas", 200, 4);
    let other = Redis::start_with(RedisVersion::V70, DISKLESS);
    let mut workspace = Workspace::folder().postgres(&database, &["*"]).redis(&cache);
    workspace = workspace.redis_as("other", &other.url(), &other.password_file());
    workspace.set("backup.cut_order", vec!["other", "database", "cache"]);
    workspace.run(&["init"]).ok();
    let output = workspace.run(&["backup", "--source", "cache", "--source", "database"]).ok();
    assert!(output.stdout.contains("\nskew "), "{}", output.text());
    let report = workspace.run(&["--json", "backup", "--source", "cache", "--source", "database"]).ok().json();
    assert_one_recovery_point(&workspace, &report, [0, 1]);
    // Two databases, each at its instant.
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let database = &shown["head"]["sources"][0];
    let [first, last] =
        ["cut_first", "cut_at"].map(|name| database[name].as_str().unwrap().parse::<Timestamp>().unwrap());
    assert!(first < last, "{shown}");
    assert_eq!(shown["sources"][0]["cut"]["anchor"].as_array().unwrap().len(), 2);
    workspace.set("backup.cut_order", vec!["database", "cache"]);
    workspace.run(&["backup"]).output().assert_error(2, &["backup.cut_order", "`other`"]);
}

/// Dumps are asked for when there is room for them, and PostgreSQL is cut after the last.
#[test]
fn more_servers_than_there_is_room_for() {
    let database = Postgres::start(Major::V15);
    database.create_altlas("altlas", 200, 5);
    let mut workspace = Workspace::folder().postgres(&database, &["altlas"]);
    let (dumping, released) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut caches: Vec<(Redis, TcpProxy)> = Vec::new();
    for n in 0..3 {
        let cache = Redis::start_with(RedisVersion::V70, DISKLESS);
        cache.fill("altlas", 200, n);
        let proxy = before(&cache);
        let (dumping, released) = (Arc::clone(&dumping), Arc::clone(&released));
        proxy.on_bytes(in_dump(move |offset, bytes| {
            if offset > 0 {
                return vec![Step::Send(bytes)];
            }
            dumping.fetch_add(1, Ordering::SeqCst);
            vec![Step::Until(released.clone()), Step::Send(bytes)]
        }));
        let url = format!("redis://127.0.0.1:{}", proxy.port());
        workspace = workspace.redis_as(&format!("cache-{n}"), &url, &cache.password_file());
        caches.push((cache, proxy));
    }
    // Room for two.
    workspace.set("limits.memory_mib", 96);
    workspace.run(&["init"]).ok();
    let running = workspace.run(&["--json", "backup"]).deadline(SOON * 3).spawn();
    wait_for("two dumps", SOON, || (dumping.load(Ordering::SeqCst) == 2).then_some(()));
    // The third has every occasion to be asked now.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let asked: usize = caches.iter().map(|(cache, _)| dumps(cache).1).sum();
        assert_eq!(asked, 2, "a dump for which there is no room");
    }
    released.store(true, Ordering::SeqCst);
    let report = running.wait().assert_code(0).json();
    assert_eq!(report["state"], "complete", "{report}");
    assert_eq!(dumping.load(Ordering::SeqCst), 3);
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let cuts: Vec<Timestamp> =
        (0..4).map(|n| shown["head"]["sources"][n]["cut_at"].as_str().unwrap().parse().unwrap()).collect();
    assert!(cuts[1] < cuts[2] && cuts[2] < cuts[3] && cuts[3] < cuts[0], "{cuts:?}");
    workspace.run(&["verify", "latest", "--level", "content"]).ok();
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
