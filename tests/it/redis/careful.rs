//! Nothing is flushed that could have been known to be in vain, and nothing is said that was not looked at.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use super::{DISKLESS, SOON, TARGET, back_up, before, in_dump, initialised, restore, restore_at, save_once, through};
use crate::support::{
    binary::Output,
    mode::Mode,
    proxy::{Step, Way},
    redis::{Redis, RedisVersion},
    wait_for,
    workspace::Workspace,
};

/// A backup of 500 keys, and a target that holds one of another kind.
fn backup_and_target(lines: &[&str]) -> (Workspace, Redis) {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 20_000, 1);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let target = Redis::start_with(RedisVersion::V70, &[TARGET, lines].concat());
    target.command(&["SET", "precious", "old"]);
    (workspace, target)
}

/// The old key is still there.
#[track_caller]
fn assert_untouched(target: &Redis, output: &Output) {
    assert_eq!(target.command(&["GET", "precious"]), "old", "{}", output.text());
    assert_eq!(target.keys(), 1, "{}", output.text());
    assert!(!output.stderr.contains("the target took"), "nothing was begun\n{}", output.text());
}

#[test]
fn a_user_that_may_flush_and_not_restore() {
    let (workspace, target) = backup_and_target(&[]);
    for rules in ["~* +@all -restore", "~other:* +@all"] {
        target.acl_user("half", "its-password", rules);
        let output = restore_at(&workspace, &target.url_as("half"), "its-password", &["--overwrite"]).output();
        assert_untouched(&target, &output.assert_error(1, &["NOPERM"]));
    }
}

#[test]
fn a_backup_that_is_damaged() {
    let (workspace, target) = backup_and_target(&[]);
    let parts = workspace.objects().into_iter().filter(|(key, _)| key.contains("/parts/"));
    let (key, mut bytes) = parts.max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let path = workspace.repository_folder().join(key);
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let output = restore(&workspace, &target, &["--overwrite"]).output();
    assert_untouched(&target, &output.assert_error(1, &["/parts/"]));
}

#[test]
fn a_target_without_room() {
    let (workspace, target) = backup_and_target(&["maxmemory 1500kb"]);
    let output = restore(&workspace, &target, &["--overwrite"]).output();
    // Too small for the data as the plan sees it, or full already.
    assert!(matches!(output.code, Some(1 | 6)), "{}", output.text());
    assert!(output.stderr.contains("maxmemory"), "{}", output.text());
    assert_untouched(&target, &output);
}

/// What is there is what is told: nothing, where the time of every key was over.
#[test]
fn a_cache_whose_time_is_over() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    for n in 0..50 {
        source.command(&["SET", &format!("cache:{n}"), "value", "PX", "3000"]);
    }
    source.command(&["SET", "stays", "value"]);
    let workspace = initialised(Mode::Clear, &source);
    assert_eq!(back_up(&workspace)["rows"], 51);
    std::thread::sleep(Duration::from_secs(4));
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    let restored = restore(&workspace, &target, &["--json"]).ok().json();
    let source = &restored["sources"][0][1];
    assert_eq!(source["items"][0]["rows"], 1, "{restored}");
    assert_eq!(source["items"][0]["compared"], "same", "{restored}");
    assert!(source["notes"].to_string().contains("50 of 51 keys are not there"), "{restored}");
}

/// The comparison finds every change that somebody else makes between the last key and the dump that is taken back.
#[test]
fn whatever_is_changed_before_the_comparison_is_found() {
    let source = Redis::start_with(RedisVersion::V82, DISKLESS);
    for (key, fields) in [("small", 4), ("large", 1000)] {
        let pairs: Vec<String> = (0..fields).flat_map(|n| [format!("f{n}"), "value".to_owned()]).collect();
        source.command(&[&["HSET", key][..], &pairs.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        source.command(&["HPEXPIRE", key, "7200000", "FIELDS", "1", "f2"]);
    }
    source.command(&["SET", "lasting", "value"]);
    source.command(&["SET", "expiring", "value", "PX", "7200000"]);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let target = Arc::new(Redis::start_with(RedisVersion::V82, TARGET));
    let proxy = before(&target);
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    for (change, of) in [
        (&["PING"][..], ""),
        (&["SET", "lasting", "other"], "lasting has another value (a string)"),
        (&["SET", "expiring", "other", "KEEPTTL"], "expiring has another value (a string)"),
        (&["PEXPIRE", "expiring", "3600000"], "expiring expires "),
        (&["PERSIST", "expiring"], "expiring never expires, and did "),
        (&["SET", "one", "more"], "one is there and was not captured (a string)"),
        (&["DEL", "small"], "small is not there (a hash)"),
        (&["HSET", "large", "f1", "other"], "large has another value (a hash)"),
        (&["HSETEX", "small", "KEEPTTL", "FIELDS", "1", "f2", "other"], "hashes"),
        (&["HSETEX", "large", "KEEPTTL", "FIELDS", "1", "f2", "other"], "hashes"),
        (&["HPEXPIRE", "small", "3600000", "FIELDS", "1", "f2"], "hashes"),
        (&["HPERSIST", "large", "FIELDS", "1", "f2"], "hashes"),
    ] {
        target.command(&["FLUSHALL"]);
        let changing = Arc::clone(&target);
        proxy.on_bytes(move |way, _, bytes| {
            if way == Way::Up && memchr::memmem::find(&bytes, b"PSYNC").is_some() {
                changing.command(change);
            }
            vec![Step::Send(bytes)]
        });
        let output = restore_at(&workspace, &url, target.password(), &[]).output();
        match of {
            "" => drop(output.assert_code(0)),
            of => drop(output.assert_error(1, &["does not hold what was captured", "db 0: ", of])),
        }
    }
}

/// Where nobody may look, nothing is said of files.
#[test]
fn a_target_that_does_not_tell_its_settings() {
    let (workspace, target) = backup_and_target(&[]);
    target.command(&["FLUSHALL"]);
    target.acl_user("blind", "its-password", "~* +@all -config");
    let output = restore_at(&workspace, &target.url_as("blind"), "its-password", &[]).output().assert_code(4);
    assert!(output.stderr.contains("whether the target keeps its data on disk is not known"), "{}", output.text());
    assert_eq!(target.keys(), 20_000);
}

/// A server whose folder breaks after a save that went well fails the dump, and it is said what that did to it.
#[test]
fn a_failed_dump_says_what_it_did() {
    let server = Redis::start_without_rights(RedisVersion::V70, &["repl-diskless-sync no"]);
    server.fill("altlas", 100, 2);
    save_once(&server);
    let rights = |mode| fs::set_permissions(server.folder(), fs::Permissions::from_mode(mode)).unwrap();
    rights(0o500);
    let workspace = initialised(Mode::Clear, &server);
    let output = workspace.run(&["backup"]).output();
    rights(0o700);
    let output = output.assert_error(1, &["refuses writes", "stop-writes-on-bgsave-error"]);
    assert!(output.stderr.contains("the next save that goes well"), "{}", output.text());
    // As the hint says.
    save_once(&server);
    server.command(&["SET", "written", "again"]);
}

/// The same where the dump breaks off in the middle, after the server's disk did.
#[test]
fn a_dump_that_breaks_off_says_what_it_did() {
    let server = Redis::start_without_rights(RedisVersion::V70, &["repl-diskless-sync no"]);
    server.fill("many", 60_000, 2);
    save_once(&server);
    let mut workspace = initialised(Mode::Clear, &server);
    let proxy = before(&server);
    through(&mut workspace, &proxy);
    let server = Arc::new(server);
    let (folder, at_the_cut) = (server.folder(), Arc::clone(&server));
    proxy.on_bytes(in_dump(move |offset, bytes| {
        if offset < 128 * 1024 {
            return vec![Step::Send(bytes)];
        }
        fs::set_permissions(at_the_cut.folder(), fs::Permissions::from_mode(0o500)).unwrap();
        at_the_cut.command(&["BGSAVE"]);
        wait_for("the failed save", SOON, || (at_the_cut.info("rdb_last_bgsave_status") == "err").then_some(()));
        vec![Step::Cut]
    }));
    let output = workspace.run(&["backup"]).output();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    output.assert_error(1, &["source `cache`", "ended after", "refuses writes", "stop-writes-on-bgsave-error"]);
}

/// What a restore changed before it failed is told, libraries too.
#[test]
fn libraries_that_were_replaced_are_told() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.command(&["SET", "key", "value"]);
    let library = |name: &str, function: &str, result: u32| {
        format!("#!lua name={name}\nredis.register_function('{function}', function() return {result} end)")
    };
    for (name, function) in [("a", "first"), ("b", "second")] {
        source.command(&["FUNCTION", "LOAD", &library(name, function, 1)]);
    }
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let mut all_changed = 0;
    for taken in ["first", "second"] {
        let target = Redis::start_with(RedisVersion::V70, TARGET);
        target.command(&["SET", "precious", "old"]);
        let (kept, replaced) = if taken == "first" { ("second", "b") } else { ("first", "a") };
        target.command(&["FUNCTION", "LOAD", &library(replaced, kept, 2)]);
        target.command(&["FUNCTION", "LOAD", &library("another", taken, 2)]);
        let output = restore(&workspace, &target, &["--overwrite"]).output().assert_error(1, &["already exists"]);
        assert_eq!(target.command(&["GET", "precious"]), "old", "{}", output.text());
        let changed = target.command(&["FCALL", kept, "0"]) == "1";
        assert_eq!(output.stderr.contains("function libraries may have been replaced"), changed, "{}", output.text());
        all_changed += u32::from(changed);
    }
    assert_eq!(all_changed, 1, "one library comes before the other");
}

/// Commands under other names, a library in the way, a server that cannot read the values: all found before anything is flushed.
#[test]
fn a_target_that_cannot_take_it() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.command(&["SET", "key", "value"]);
    let library = |name: &str| format!("#!lua name={name}\nredis.register_function('same', function() return 1 end)");
    source.command(&["FUNCTION", "LOAD", &library("of_the_backup")]);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);

    let renamed = Redis::start_with(RedisVersion::V70, &[TARGET, &["rename-command RESTORE \"\""]].concat());
    renamed.command(&["SET", "precious", "old"]);
    let output = restore(&workspace, &renamed, &["--overwrite"]).output();
    assert_untouched(&renamed, &output.assert_error(1, &["unknown command"]));

    let another = Redis::start_with(RedisVersion::V70, TARGET);
    another.command(&["SET", "precious", "old"]);
    another.command(&["FUNCTION", "LOAD", &library("of_the_target")]);
    let output = restore(&workspace, &another, &["--overwrite"]).output();
    assert_untouched(&another, &output.assert_error(1, &["function library", "already exists"]));

    // Its user may not tell its version.
    let old = Redis::start_with(RedisVersion::V62, TARGET);
    old.command(&["SET", "precious", "old"]);
    old.acl_user("blind", "its-password", "~* +@all -info");
    let output = restore_at(&workspace, &old.url_as("blind"), "its-password", &["--overwrite"]).output();
    assert_untouched(&old, &output.assert_error(1, &["payload version"]));
}

/// What is changed in the target for the comparison is changed back, also where connections do not live long.
#[test]
fn a_setting_that_was_changed_is_changed_back() {
    let source = Redis::start_with(RedisVersion::V62, DISKLESS);
    source.fill("altlas", 50, 3);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let lines = ["save \"\"", "repl-diskless-sync no", "repl-diskless-sync-delay 5", "timeout 2"];
    let target = Redis::start_with(RedisVersion::V62, &lines);
    restore(&workspace, &target, &[]).ok();
    assert_eq!(target.setting("repl-diskless-sync"), "no");
}
