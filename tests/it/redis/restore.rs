//! What a restore does to its target, and what it refuses to do.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{DISKLESS, MARGIN, SOON, TARGET, back_up, initialised, restore, restore_at, to_rdb};
use crate::{
    failures::Failure,
    support::{
        mode::{Mode, in_both_modes},
        proxy::{Step, Way},
        redis::{Redis, RedisVersion, ms_from_now},
        wait_for,
        workspace::Workspace,
    },
};

in_both_modes! {
    a_target_that_is_not_empty,
    into_a_file,
}

/// A server with this content, backed up once.
fn backed_up(mode: Mode, version: RedisVersion, kind: &str, size: u64) -> (Redis, Workspace) {
    let source = Redis::start_with(version, DISKLESS);
    source.fill(kind, size, 1);
    let workspace = initialised(mode, &source);
    back_up(&workspace);
    (source, workspace)
}

/// Commands of the target that change something, by its own count.
fn writes(target: &Redis) -> String {
    let told = target.command(&["INFO", "commandstats"]);
    let calls =
        |name: &&str| told.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:"))).map(str::to_owned);
    let names = [
        "restore",
        "flushdb",
        "flushall",
        "function|load",
        "function|flush",
        "function|delete",
        "set",
        "del",
        "unlink",
    ];
    names.iter().filter_map(calls).collect::<Vec<_>>().join("\n")
}

/// Refused before anything is touched; with `--overwrite` exactly the databases of the backup are replaced.
fn a_target_that_is_not_empty(mode: Mode) {
    // In databases 0 and 1.
    let (source, workspace) = backed_up(mode, RedisVersion::V70, "altlas", 200);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    let mut connection = target.connection();
    for (db, key) in [(0, "session:old"), (0, "queue:mail"), (1, "feature:flags"), (5, "kept")] {
        redis::cmd("SELECT").arg(db).exec(&mut connection).unwrap();
        redis::cmd("SET").arg(key).arg("as it was").exec(&mut connection).unwrap();
    }
    let (before, written) = (target.digest(), writes(&target));
    let place = format!("127.0.0.1:{}", target.port());
    let failure = Failure {
        code: 6,
        kind: "refused",
        words: &["source `cache`", &place, "2 keys in db 0", "1 key in db 1"],
        hint: "--overwrite",
    };
    failure.of(|| restore(&workspace, &target, &[]));
    assert_eq!(target.digest(), before);
    assert_eq!(writes(&target), written);

    // A plan says what would go, and does nothing.
    let plan = restore(&workspace, &target, &["--overwrite", "--dry-run"]).ok();
    assert!(plan.stdout.contains("db 0") && plan.stdout.contains("db 1"), "{}", plan.text());
    assert_eq!(target.digest(), before);
    assert_eq!(writes(&target), written);

    restore(&workspace, &target, &["--overwrite"]).ok();
    let mut connection = target.connection();
    redis::cmd("SELECT").arg(5).exec(&mut connection).unwrap();
    let kept: String = redis::cmd("GET").arg("kept").query(&mut connection).unwrap();
    assert_eq!(kept, "as it was", "a database that the backup does not hold");
    redis::cmd("DEL").arg("kept").exec(&mut connection).unwrap();
    let horizon = ms_from_now(MARGIN);
    source.digest_beyond(horizon, RedisVersion::V70).assert_same(&target.digest_beyond(horizon, RedisVersion::V70));
}

/// A backup of a newer server than the target: found in the plan, both versions named, nothing written.
#[test]
fn a_target_that_is_older() {
    for (from, to) in [
        (RedisVersion::V82, RedisVersion::V70),
        (RedisVersion::V70, RedisVersion::V62),
        (RedisVersion::V82, RedisVersion::V62),
    ] {
        let (_source, workspace) = backed_up(Mode::Clear, from, "altlas", 50);
        let target = Redis::start_with(to, TARGET);
        let words = ["source `cache`", from.number(), to.number()];
        for more in [&[][..], &["--overwrite"]] {
            Failure { code: 6, kind: "refused", words: &words, hint: "as new as the source" }
                .of(|| restore(&workspace, &target, more));
        }
        restore(&workspace, &target, &["--dry-run"]).output().assert_error(6, &words);
        assert_eq!(writes(&target), "");
        assert_eq!(target.keys(), 0);
    }
}

/// A server that keeps files has what was restored in them: killed at once, it comes back with it.
#[test]
fn what_was_restored_outlives_the_server() {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "types", 1);
    for lines in [&["save 3600 1"][..], &["save \"\"", "appendonly yes"], &["appendonly yes"]] {
        let mut target = Redis::start_with(RedisVersion::V70, lines);
        restore(&workspace, &target, &[]).ok();
        target.kill();
        target.resume();
        let horizon = ms_from_now(MARGIN);
        source.digest_beyond(horizon, RedisVersion::V70).assert_same(&target.digest_beyond(horizon, RedisVersion::V70));
    }
}

/// A server that cannot save is told apart from one that has: the data is in its memory, and it is said.
#[test]
fn a_target_that_cannot_save() {
    use std::os::unix::fs::PermissionsExt;
    let (_source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "altlas", 50);
    let target = Redis::start_without_rights(RedisVersion::V70, &["save 3600 1"]);
    fs::set_permissions(target.folder(), fs::Permissions::from_mode(0o555)).unwrap();
    let place = format!("127.0.0.1:{}", target.port());
    restore(&workspace, &target, &[]).output().assert_error(1, &[&place, "save"]);
    assert!(target.keys() > 0);
}

/// The file is what the server sent: whole, loadable, nobody else's to read, and never in place of another without being asked.
fn into_a_file(mode: Mode) {
    use std::os::unix::fs::MetadataExt;
    let (source, workspace) = backed_up(mode, RedisVersion::V70, "types", 1);
    let file = workspace.path("cache.rdb");
    let told = to_rdb(&workspace, &file, &[]).ok();
    assert!(told.text().contains("appendonly"), "a server with an append-only file ignores it\n{}", told.text());
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"REDIS0010"));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o077, 0, "it holds data");
    let checked = std::process::Command::new("/usr/bin/redis-check-rdb").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));

    // Over a file that is there, by order only, and over something that is no file, never.
    fs::write(&file, "somebody's").unwrap();
    let name = file.display().to_string();
    Failure { code: 6, kind: "refused", words: &[&name, "exists"], hint: "--overwrite" }
        .of(|| to_rdb(&workspace, &file, &[]));
    assert_eq!(fs::read(&file).unwrap(), b"somebody's");
    to_rdb(&workspace, &file, &["--overwrite"]).ok();
    assert_eq!(fs::read(&file).unwrap(), bytes);
    let nowhere = workspace.path("no-folder/cache.rdb");
    to_rdb(&workspace, &nowhere, &[]).output().assert_error(1, &[&nowhere.display().to_string()]);
    let left: Vec<String> = fs::read_dir(file.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("rdb"))
        .collect();
    assert_eq!(left, ["cache.rdb"], "no halves");

    // A server that is started on it, and the one that the caveat speaks of.
    let loaded = Redis::start_on(RedisVersion::V82, &file, TARGET);
    let horizon = ms_from_now(MARGIN);
    source.digest_beyond(horizon, RedisVersion::V70).assert_same(&loaded.digest_beyond(horizon, RedisVersion::V70));
    let ignored = Redis::start_on(RedisVersion::V70, &file, &["save \"\"", "appendonly yes"]);
    assert_eq!(ignored.keys(), 0);
}

/// Keys that are past their time when they are restored are gone, and no reason to fail; those that go meanwhile neither.
#[test]
fn keys_that_expire_on_the_way() {
    for version in RedisVersion::ALL {
        let source = Redis::start_with(version, DISKLESS);
        let mut connection = source.connection();
        for n in 0..3000 {
            // Over the next seconds, a few every ms.
            redis::cmd("SET").arg(n).arg("goes").arg("PX").arg(1 + n * 2).exec(&mut connection).unwrap();
        }
        redis::cmd("SET").arg("stays").arg(1).exec(&mut connection).unwrap();
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        let target = Redis::start_with(version, TARGET);
        let report = restore(&workspace, &target, &["--json"]).ok().json();
        let items = report["sources"][0][1]["items"].as_array().unwrap();
        assert!(items.iter().all(|item| item["compared"] == "same"), "{items:?}");
        std::thread::sleep(Duration::from_secs(7));
        assert_eq!(target.command(&["KEYS", "*"]), "stays");
        // Once more, when all of them are past it.
        restore(&workspace, &target, &["--overwrite"]).ok();
        assert_eq!(target.command(&["KEYS", "*"]), "stays");
    }
}

/// Interrupted, it says what is in the target; a second one finishes it.
#[test]
fn an_interrupted_restore() {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "many", 100_000);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    let proxy = super::before(&target);
    // A few ms for each packet, so that there is time.
    proxy.on_bytes(|_, _, bytes| vec![Step::Wait(Duration::from_millis(3)), Step::Send(bytes)]);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let running = restore_at(&workspace, &url, target.password(), &[]).deadline(SOON * 2).spawn();
    wait_for("the first keys", SOON, || (target.keys() > 1000).then_some(()));
    running.interrupt();
    let output = running.wait().assert_code(130);
    let keys = target.keys();
    assert!(keys < 100_000, "{keys}");
    assert!(output.stderr.contains("key"), "what is in the target\n{}", output.text());
    proxy.reset();
    restore(&workspace, &target, &[]).output().assert_error(6, &["in db 0"]);
    restore(&workspace, &target, &["--overwrite"]).ok();
    assert_eq!(source.digest(), target.digest());
}

/// A target without room, one that only reads, and one that is a cluster.
#[test]
fn targets_that_cannot_take_it() {
    let (_source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "many", 50_000);
    let small = Redis::start_with(RedisVersion::V70, &[TARGET, &["maxmemory 3mb"]].concat());
    let refused = restore(&workspace, &small, &[]).output();
    assert!(matches!(refused.code, Some(1 | 6)), "{}", refused.text());
    assert!(refused.stderr.contains("maxmemory"), "{}", refused.text());

    let master = Redis::start_with(RedisVersion::V70, DISKLESS);
    let (place, password) =
        (format!("replicaof 127.0.0.1 {}", master.port()), format!("masterauth {}", master.password()));
    let replica = Redis::start_with(RedisVersion::V70, &[TARGET, &[&place, &password]].concat());
    wait_for("the replica", SOON, || (replica.info("master_link_status") == "up").then_some(()));
    let refused = restore(&workspace, &replica, &[]).output();
    assert!(matches!(refused.code, Some(1 | 6)), "{}", refused.text());
    assert!(refused.stderr.contains("replica"), "{}", refused.text());
    assert_eq!(master.keys() + replica.keys(), 0);
}

/// Of a snapshot that holds functions into a server that knows none: 6.2 is older and refused; libraries of the same name
/// are replaced by order only.
#[test]
fn functions_come_back() {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "types", 1);
    let target = Redis::start_with(RedisVersion::V82, TARGET);
    restore(&workspace, &target, &[]).ok();
    assert_eq!(target.command(&["FCALL", "first_answer", "0"]), "1");
    assert_eq!(source.command(&["FCALL", "second_answer", "0"]), target.command(&["FCALL", "second_answer", "0"]));
    target.command(&[
        "FUNCTION",
        "LOAD",
        "REPLACE",
        "#!lua name=first\nredis.register_function('first_answer', function() return 9 end)",
    ]);
    restore(&workspace, &target, &["--overwrite"]).ok();
    assert_eq!(target.command(&["FCALL", "first_answer", "0"]), "1");
}

/// A target of 6.2 as it comes, which keeps no files and would save one for a dump that is taken back from it: it has none
/// afterwards, and whether it was compared is said.
#[test]
fn a_target_of_6_2_that_keeps_no_files() {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V62, "types", 1);
    let target = Redis::start_with(RedisVersion::V62, &["save \"\""]);
    let output = restore(&workspace, &target, &[]).output();
    match output.code {
        Some(0) => {}
        Some(4) => assert!(output.text().contains("repl-diskless-sync"), "{}", output.text()),
        _ => panic!("{}", output.text()),
    }
    assert_eq!(target.files(), [""; 0]);
    assert_eq!(target.setting("repl-diskless-sync"), "no", "what was changed for the comparison is as it was");
    let horizon = ms_from_now(MARGIN);
    source.digest_beyond(horizon, RedisVersion::V62).assert_same(&target.digest_beyond(horizon, RedisVersion::V62));
}

/// The connection that waits for the others is not lost.
#[test]
fn a_target_that_closes_idle_connections_while_keys_pass() {
    into_a_target_that_closes_idle_connections("many", 60_000, Duration::from_millis(150));
}

/// Nor are those that wait while a large value passes on one of them.
#[test]
fn a_target_that_closes_idle_connections_while_a_large_value_passes() {
    into_a_target_that_closes_idle_connections("big", 8, Duration::from_millis(60));
}

/// A target that closes connections on which nothing happens for five seconds, with a restore that takes longer, since each
/// packet waits.
fn into_a_target_that_closes_idle_connections(kind: &str, size: u64, wait: Duration) {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, kind, size);
    let target = Redis::start_with(RedisVersion::V70, &[TARGET, &["timeout 5"]].concat());
    let proxy = super::before(&target);
    proxy.on_bytes(move |way, _, bytes| match way {
        Way::Up => vec![Step::Wait(wait), Step::Send(bytes)],
        Way::Down => vec![Step::Send(bytes)],
    });
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let started = Instant::now();
    restore_at(&workspace, &url, target.password(), &[]).deadline(SOON * 3).ok();
    assert!(started.elapsed() > Duration::from_secs(7), "{:?} is too short", started.elapsed());
    assert_eq!(source.digest(), target.digest());
}

/// Fewer databases than the source has: found in the plan.
#[test]
fn a_target_with_fewer_databases() {
    let (_source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "types", 1);
    let target = Redis::start_with(RedisVersion::V70, &[TARGET, &["databases 4"]].concat());
    Failure { code: 6, kind: "refused", words: &["source `cache`", "db 15"], hint: "`databases`" }
        .of(|| restore(&workspace, &target, &[]));
    assert_eq!(target.keys(), 0);
}

/// Back into the server that it came from, by order only.
#[test]
fn into_the_source_itself() {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "altlas", 100);
    let horizon = ms_from_now(MARGIN);
    let was = source.digest_beyond(horizon, RedisVersion::V70);
    source.command(&["DEL", "gateway:stats"]);
    source.command(&["SET", "later", "gone with the restore"]);
    let place = format!("127.0.0.1:{}", source.port());
    let restore = |more: &[&str]| workspace.run(&[&["restore", "latest", "--yes"], more].concat());
    Failure { code: 6, kind: "refused", words: &["source `cache`", &place, "in db 0"], hint: "--overwrite" }
        .of(|| restore(&[]));
    restore(&["--overwrite"]).ok();
    was.assert_same(&source.digest_beyond(horizon, RedisVersion::V70));
}

/// Killed while it is being restored into.
#[test]
fn a_target_that_is_killed_in_the_middle() {
    let (source, workspace) = backed_up(Mode::Clear, RedisVersion::V70, "many", 100_000);
    let mut target = Redis::start_with(RedisVersion::V70, TARGET);
    let proxy = super::before(&target);
    proxy.on_bytes(|_, _, bytes| vec![Step::Wait(Duration::from_millis(3)), Step::Send(bytes)]);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let running = restore_at(&workspace, &url, target.password(), &[]).deadline(SOON * 2).spawn();
    wait_for("the first keys", SOON, || (target.keys() > 1000).then_some(()));
    target.kill();
    let place = format!("127.0.0.1:{}", proxy.port());
    let output = running.wait().assert_error(1, &["source `cache`", &place, "--overwrite"]);
    assert!(!output.stderr.contains("end dumps"), "there was none\n{}", output.text());
    target.resume();
    restore(&workspace, &target, &[]).ok();
    assert_eq!(source.digest(), target.digest());
}
