//! Users that may do what the README says they must, and nothing more.

use super::{DISKLESS, MARGIN, SOON, TARGET, back_up, initialised, recorded, restore_at};
use crate::{
    failures::{Failure, assert_nothing_recorded},
    support::{
        mode::Mode,
        redis::{Redis, RedisVersion, ms_from_now},
        workspace::Workspace,
    },
};

/// The rules that the README gives this user, as a server of this version takes them.
fn documented(user: &str, version: RedisVersion) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let start = format!("ACL SETUSER {user} ");
    let line = readme.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("no `{start}`"));
    let rules = line.split_whitespace().filter(|word| *word != "on" && *word != ">…");
    // 6.2 knows no functions.
    rules.filter(|word| version > RedisVersion::V62 || !word.contains("function")).collect::<Vec<_>>().join(" ")
}

/// The same without one of them.
#[track_caller]
fn without(rules: &str, missing: &str) -> String {
    assert!(rules.split(' ').any(|rule| rule == missing), "`{missing}` is not in `{rules}`");
    rules.split(' ').filter(|rule| *rule != missing).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_documented_users_back_up_and_restore() {
    for version in RedisVersion::ALL {
        let source = Redis::start_with(version, DISKLESS);
        source.fill("types", 1, 1);
        source.acl_user("backup", "its-password", &documented("backup", version));
        let mut workspace = Workspace::folder();
        let password = workspace.secret("backup-password", "its-password");
        workspace = workspace.redis_as("cache", &source.url_as("backup"), &password);
        workspace.run(&["init"]).ok();
        back_up(&workspace);
        workspace.run(&["doctor"]).ok();

        // They save in both ways, so that the saves after a restore are tried too; or in none.
        for lines in [&["save 3600 1", "appendonly yes"][..], &["save \"\"", "repl-diskless-sync-delay 0"]] {
            let target = Redis::start_with(version, lines);
            target.acl_user("restore", "another", &documented("restore", version));
            restore_at(&workspace, &target.url_as("restore"), "another", &[]).ok();
            let horizon = ms_from_now(MARGIN);
            source.digest_beyond(horizon, version).assert_same(&target.digest_beyond(horizon, version));
            target.command(&["SET", "another", "key"]);
            restore_at(&workspace, &target.url_as("restore"), "another", &["--overwrite"]).ok();
            let horizon = ms_from_now(MARGIN);
            source.digest_beyond(horizon, version).assert_same(&target.digest_beyond(horizon, version));
        }
    }
}

#[test]
fn a_user_that_may_not_ask_for_a_dump() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("altlas", 50, 2);
    let mut workspace = Workspace::folder();
    let password = workspace.secret("backup-password", "its-password");
    workspace = workspace.redis_as("cache", &server.url_as("backup"), &password);
    workspace.run(&["init"]).ok();
    for missing in ["+psync", "+replconf"] {
        server.acl_user("backup", "its-password", &without(&documented("backup", RedisVersion::V70), missing));
        let command = missing.trim_start_matches('+');
        Failure { code: 1, kind: "source", words: &["source `cache`", "NOPERM", command], hint: "ACL SETUSER" }
            .of(|| workspace.run(&["backup"]).deadline(SOON));
        assert_nothing_recorded(&workspace);
        let told = workspace.run(&["doctor"]).output();
        assert_ne!(told.code, Some(0), "doctor sees it too\n{}", told.text());
        assert!(told.text().to_lowercase().contains(command), "{}", told.text());
    }
}

/// Where nobody may look, nobody knows what a dump does: refused, unless the operator says that it may.
#[test]
fn a_user_that_may_not_look() {
    let server = Redis::start_with(RedisVersion::V70, &["repl-diskless-sync-delay 0"]);
    server.fill("altlas", 50, 3);
    let mut workspace = initialised(Mode::Clear, &server);
    let password = workspace.secret("backup-password", "its-password");
    workspace.set("source.0.password_file", password.display().to_string());
    workspace.set("source.0.username", "backup");
    for missing in ["+info", "+config|get"] {
        server.acl_user("backup", "its-password", &without(&documented("backup", RedisVersion::V70), missing));
        Failure { code: 1, kind: "source", words: &["source `cache`", "INFO", "CONFIG GET"], hint: "`+config|get`" }
            .of(|| workspace.run(&["backup"]).deadline(SOON));
        Failure { code: 1, kind: "source", words: &["source `cache`"], hint: "allow_server_dump = true" }
            .of(|| workspace.run(&["backup"]).deadline(SOON));
    }
    assert_nothing_recorded(&workspace);
    server.acl_user("backup", "its-password", "resetkeys -@all +psync +replconf");
    workspace.set("source.0.allow_server_dump", true);
    back_up(&workspace);
    assert_eq!(recorded(&workspace), 1);
}

/// One that may not write everything: told before, or told what is in the target.
#[test]
fn a_target_user_that_may_not_restore() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("altlas", 50, 4);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let target = Redis::start_with(RedisVersion::V70, TARGET);
    target.acl_user("restore", "another", &without(&documented("restore", RedisVersion::V70), "+restore"));
    restore_at(&workspace, &target.url_as("restore"), "another", &[]).output().assert_error(1, &["NOPERM", "restore"]);
    assert_eq!(target.keys(), 0);
    // One that may not count keys is told so, and not that the databases are missing.
    target.acl_user("restore", "another", &without(&documented("restore", RedisVersion::V70), "+dbsize"));
    let refused = restore_at(&workspace, &target.url_as("restore"), "another", &[]).output();
    let refused = refused.assert_error(1, &["NOPERM", "dbsize"]);
    assert!(refused.stderr.contains("ACL SETUSER"), "{}", refused.text());
    assert_eq!(target.keys(), 0);
    restore_at(&workspace, &target.url_as("restore"), "wrong", &[]).output().assert_error(1, &["WRONGPASS"]);
}
