//! The whole way: a server, a repository, another server or a file with the same content, as redis-py sees it.

use std::time::Duration;

use super::{DISKLESS, MARGIN, NO_FILES, TARGET, back_up, dumps, initialised, restore, save_once, to_rdb};
use crate::support::{
    mode::{Mode, in_both_modes},
    redis::{Redis, RedisVersion, ms_from_now},
    s3::{BlockingS3, S3Kind},
    workspace::Workspace,
};

in_both_modes! {
    from_6_2_to_6_2,
    from_7_0_to_7_0,
    from_8_2_to_8_2,
    from_6_2_to_7_0,
    from_7_0_to_8_2,
    three_hundred_thousand_keys,
}

fn from_6_2_to_6_2(mode: Mode) {
    both_stores(mode, RedisVersion::V62, RedisVersion::V62);
}

fn from_7_0_to_7_0(mode: Mode) {
    both_stores(mode, RedisVersion::V70, RedisVersion::V70);
}

fn from_8_2_to_8_2(mode: Mode) {
    both_stores(mode, RedisVersion::V82, RedisVersion::V82);
}

fn from_6_2_to_7_0(mode: Mode) {
    both_stores(mode, RedisVersion::V62, RedisVersion::V70);
}

fn from_7_0_to_8_2(mode: Mode) {
    both_stores(mode, RedisVersion::V70, RedisVersion::V82);
}

/// A folder with a server that saves, and SeaweedFS with one that does not: both forms of dump.
fn both_stores(mode: Mode, from: RedisVersion, to: RedisVersion) {
    let source = Redis::start(from);
    save_once(&source);
    let folder = Workspace::folder().mode(mode).redis(&source);
    round_trip(&source, &folder, to);
    mode.assert_objects(&folder.objects());
    assert_eq!(dumps(&source), (1, 0), "a server that saves is dumped from its disk");

    let source = Redis::start_with(from, DISKLESS);
    let seaweed = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let on_s3 = Workspace::s3(&seaweed.place("backups", "alt-las/prod")).mode(mode).redis(&source);
    round_trip(&source, &on_s3, to);
    mode.assert_names(seaweed.list("backups", "alt-las/prod").keys());
    assert_eq!(dumps(&source), (0, 1), "one that does not is dumped without a file");
}

/// Everything that a server can hold, backed up, looked at, and restored in two ways.
fn round_trip(source: &Redis, workspace: &Workspace, to: RedisVersion) {
    source.fill("types", 2, 11);
    source.fill("altlas", 1000, 12);
    // Those that are past their time and still there are in the dump.
    let held = source.keys();
    assert!(held > 1000);
    workspace.run(&["init"]).ok();
    let report = back_up(workspace);
    assert_eq!(report["rows"], held, "{report}");
    for level in ["presence", "content"] {
        let verified = workspace.run(&["--json", "verify", "latest", "--level", level]).ok().json();
        assert_eq!(verified["verdict"], "sound");
    }

    let target = Redis::start_with(to, TARGET);
    let restored = restore(workspace, &target, &["--json"]).ok().json();
    let file = workspace.path("restored.rdb");
    to_rdb(workspace, &file, &[]).ok();
    let from_file = Redis::start_on(to, &file, TARGET);

    let horizon = ms_from_now(MARGIN);
    let was = source.digest_beyond(horizon, source.version());
    assert!(was.keys() > 900, "enough lives on to be compared");
    was.assert_same(&target.digest_beyond(horizon, source.version()));
    was.assert_same(&from_file.digest_beyond(horizon, source.version()));

    let items = restored["sources"][0][1]["items"].as_array().unwrap();
    for db in 0..16 {
        let name = format!("db {db}");
        let item = items.iter().find(|item| item["name"] == *name).unwrap_or_else(|| panic!("{name}: {items:?}"));
        assert_eq!(item["compared"], "same", "{item}");
        assert!(item["rows"].as_u64().unwrap() >= was.keys_in(db) as u64, "{item}");
    }
    assert!(items.iter().all(|item| item["compared"] == "same"), "{items:?}");
}

fn three_hundred_thousand_keys(mode: Mode) {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 300_000, 3);
    let workspace = initialised(mode, &source);
    assert_eq!(back_up(&workspace)["rows"], 300_000);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    restore(&workspace, &target, &[]).ok();
    assert_eq!(target.keys(), 300_000);
    assert_eq!(source.digest(), target.digest());
}

/// A value of 100 MB that nothing compresses, list elements of 64 MB, hashes and sorted sets of 200,000: in bounded memory.
#[test]
fn large_values() {
    for (mode, lines) in [(Mode::Encrypted, DISKLESS), (Mode::Clear, &[][..])] {
        let source = Redis::start_with(RedisVersion::V82, lines);
        source.fill("big", 100, 4);
        if lines.is_empty() {
            save_once(&source);
        }
        let workspace = initialised(mode, &source);
        let backup = workspace.run(&["--json", "backup"]).ok();
        assert_eq!(backup.json()["sources"][0]["rows"], 6);
        let target = Redis::start_with(RedisVersion::V82, TARGET);
        let restored = restore(&workspace, &target, &[]).ok();
        assert_eq!(source.digest(), target.digest());
        for output in [backup, restored] {
            println!("peak memory {} MiB", output.peak_memory >> 20);
        }
        let file = workspace.path("restored.rdb");
        to_rdb(&workspace, &file, &[]).ok();
        assert_eq!(source.digest(), Redis::start_on(RedisVersion::V82, &file, TARGET).digest());
    }
}

/// From a replica that is connected to its master.
#[test]
fn from_a_replica() {
    let master = Redis::start_with(RedisVersion::V70, DISKLESS);
    master.fill("types", 1, 5);
    let (port, password) =
        (format!("replicaof 127.0.0.1 {}", master.port()), format!("masterauth {}", master.password()));
    let lines = [DISKLESS, &[&port, &password]].concat();
    let replica = Redis::start_with(RedisVersion::V70, &lines);
    crate::support::wait_for("the replica", super::SOON, || (replica.info("master_link_status") == "up").then_some(()));
    let workspace = initialised(Mode::Clear, &replica);
    back_up(&workspace);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    restore(&workspace, &target, &[]).ok();
    let horizon = ms_from_now(MARGIN);
    master.digest_beyond(horizon, RedisVersion::V70).assert_same(&target.digest_beyond(horizon, RedisVersion::V70));
}

/// A backup is of one instant, whatever is written meanwhile: two keys that change together are equal in it, and what was
/// written before it began is there. Nothing of what is written later is kept for us, however small the server's buffers.
#[test]
fn of_one_instant_under_writes() {
    let source = Redis::start_with(
        RedisVersion::V70,
        &[DISKLESS, &["rdb-key-save-delay 20", "client-output-buffer-limit replica 64kb 64kb 1"]].concat(),
    );
    source.fill("many", 20_000, 6);
    let workspace = initialised(Mode::Clear, &source);
    let script = "for n = 1, 50 do redis.call('INCR', 'pair:a' .. n); redis.call('INCR', 'pair:z' .. n) end";
    source.command(&["EVAL", script, "0"]);
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::SeqCst) {
                source.command(&["EVAL", script, "0"]);
            }
        });
        std::thread::sleep(Duration::from_millis(100));
        back_up(&workspace);
        ended.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    restore(&workspace, &target, &[]).ok();
    let first = target.command(&["GET", "pair:a1"]);
    assert!(first.parse::<u64>().unwrap() >= 1);
    for n in 1..=50 {
        for side in ["a", "z"] {
            assert_eq!(target.command(&["GET", &format!("pair:{side}{n}")]), first, "{side}{n}");
        }
    }
    assert!(source.command(&["GET", "pair:a1"]).parse::<u64>().unwrap() > first.parse().unwrap());
}

/// Without a checksum at its end a dump is a dump all the same.
#[test]
fn from_a_server_that_writes_no_checksums() {
    for lines in [&[DISKLESS, &["rdbchecksum no"]].concat()[..], &["rdbchecksum no"]] {
        let source = Redis::start_with(RedisVersion::V70, lines);
        source.fill("altlas", 300, 7);
        if lines.len() == 1 {
            save_once(&source);
        }
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        let target = Redis::start_with(RedisVersion::V70, TARGET);
        restore(&workspace, &target, &[]).ok();
        let horizon = ms_from_now(MARGIN);
        source.digest_beyond(horizon, RedisVersion::V70).assert_same(&target.digest_beyond(horizon, RedisVersion::V70));
    }
}

/// What an eviction policy adds to each key is in the way of nothing.
#[test]
fn from_servers_that_evict() {
    for policy in ["allkeys-lru", "allkeys-lfu"] {
        let policy = format!("maxmemory-policy {policy}");
        let source = Redis::start_with(RedisVersion::V82, &[DISKLESS, &[&policy, "maxmemory 1gb"]].concat());
        source.fill("types", 1, 8);
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        let target = Redis::start_with(RedisVersion::V82, TARGET);
        restore(&workspace, &target, &[]).ok();
        let horizon = ms_from_now(MARGIN);
        source.digest_beyond(horizon, RedisVersion::V82).assert_same(&target.digest_beyond(horizon, RedisVersion::V82));
    }
}

/// Fields of hashes whose time comes between the backup and the comparison change their hashes: no difference.
#[test]
fn fields_that_expire_meanwhile() {
    let source = Redis::start_with(RedisVersion::V82, DISKLESS);
    for (key, fields) in [("small", 4), ("large", 2000)] {
        for n in 0..fields {
            source.command(&["HSET", key, &format!("f{n}"), "value"]);
        }
        source.command(&["HPEXPIRE", key, "4000", "FIELDS", "1", "f1"]);
        source.command(&["HPEXPIRE", key, "3600000", "FIELDS", "1", "f2"]);
    }
    source.command(&["HSET", "goes", "only", "value"]);
    source.command(&["HPEXPIRE", "goes", "4000", "FIELDS", "1", "only"]);
    let workspace = initialised(Mode::Clear, &source);
    assert_eq!(back_up(&workspace)["rows"], 3);
    std::thread::sleep(Duration::from_secs(5));
    let target = Redis::start_with(RedisVersion::V82, NO_FILES);
    let restored = restore(&workspace, &target, &["--json"]).ok().json();
    assert_eq!(restored["sources"][0][1]["items"][0]["compared"], "same", "{restored}");
    assert_eq!(target.command(&["HLEN", "small"]), "3");
    assert_eq!(target.command(&["EXISTS", "goes"]), "0");
}
