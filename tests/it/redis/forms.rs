//! Which form of dump a server gets, and that it is as well afterwards as it was before.

use std::{fs, io::Write, net::TcpStream, os::unix::fs::PermissionsExt, time::Duration};

use super::{DISKLESS, TARGET, assert_at_rest, back_up, dumps, initialised, line, recorded, restore, save_once};
use crate::{
    failures::Failure,
    support::{
        mode::Mode,
        redis::{Redis, RedisVersion},
    },
};

/// A server that keeps no files has none afterwards, and starts empty as before.
#[test]
fn a_server_that_keeps_no_files_has_none_afterwards() {
    for version in RedisVersion::ALL {
        let mut server = Redis::start_with(version, DISKLESS);
        server.fill("altlas", 500, 1);
        assert_eq!(server.files(), [""; 0]);
        let workspace = initialised(Mode::Clear, &server);
        back_up(&workspace);
        back_up(&workspace);
        assert_at_rest(&server);
        assert_eq!(server.files(), [""; 0], "{version:?}");
        assert_eq!(dumps(&server), (0, 2), "{version:?}");
        server.command(&["SET", "written", "after"]);
        server.kill();
        server.resume();
        assert_eq!(server.keys(), 0);
    }
}

/// One that keeps an append-only file and no RDB files has the same files as before.
#[test]
fn a_server_with_an_append_only_file_only() {
    let server = Redis::start_with(RedisVersion::V70, &[DISKLESS, &["appendonly yes"]].concat());
    server.fill("altlas", 200, 2);
    let before = server.files();
    let workspace = initialised(Mode::Clear, &server);
    back_up(&workspace);
    assert_at_rest(&server);
    assert_eq!(server.files(), before);
    assert_eq!(dumps(&server), (0, 1));
}

/// One that saves files and can is dumped from its disk, so that its child ends at the disk's speed.
#[test]
fn a_server_that_saves_is_dumped_from_its_disk() {
    for version in RedisVersion::ALL {
        let server = Redis::start(version);
        server.fill("altlas", 500, 3);
        save_once(&server);
        assert_eq!(server.files(), ["dump.rdb"]);
        let workspace = initialised(Mode::Clear, &server);
        back_up(&workspace);
        assert_at_rest(&server);
        assert_eq!(server.files(), ["dump.rdb"]);
        assert_eq!(dumps(&server), (1, 0), "{version:?}");
        assert_eq!(server.info("rdb_last_bgsave_status"), "ok");
    }
}

/// One that cannot write its folder, and does not know it yet, still takes writes afterwards.
#[test]
fn a_server_that_cannot_write_its_folder_still_takes_writes() {
    for version in [RedisVersion::V70, RedisVersion::V82] {
        let server = Redis::start_without_rights(version, &["repl-diskless-sync-delay 0"]);
        server.fill("altlas", 500, 4);
        fs::set_permissions(server.folder(), fs::Permissions::from_mode(0o555)).unwrap();
        assert_eq!(server.info("rdb_last_bgsave_status"), "ok");
        let workspace = initialised(Mode::Clear, &server);
        back_up(&workspace);
        assert_at_rest(&server);
        assert_eq!(dumps(&server), (0, 1), "{version:?}");
        assert_eq!(server.command(&["SET", "written", "after"]), "OK");
        assert_eq!(server.info("rdb_last_bgsave_status"), "ok");
    }
}

/// One whose last save failed is dumped without a file; it refuses writes no more and no less than before.
#[test]
fn a_server_whose_last_save_failed() {
    for (stops, after) in [("yes", "MISCONF"), ("no", "OK")] {
        let stops = format!("stop-writes-on-bgsave-error {stops}");
        let server = Redis::start_without_rights(RedisVersion::V70, &["repl-diskless-sync-delay 0", &stops]);
        server.fill("altlas", 500, 5);
        fs::set_permissions(server.folder(), fs::Permissions::from_mode(0o555)).unwrap();
        server.command(&["BGSAVE"]);
        crate::support::wait_for("the save to fail", super::SOON, || {
            (server.info("rdb_last_bgsave_status") == "err").then_some(())
        });
        let workspace = initialised(Mode::Clear, &server);
        back_up(&workspace);
        assert_eq!(dumps(&server), (0, 1));
        let wrote = server.try_command(&["SET", "written", "after"]);
        let told = wrote.unwrap_or_else(|error| error.code().unwrap_or_default().to_owned());
        assert_eq!(told, after);
    }
}

/// A server that keeps no files and offers no dump without one: refused, unless the operator takes the risk.
#[test]
fn a_server_that_would_be_harmed_is_refused() {
    let server = Redis::start_with(RedisVersion::V62, &["save \"\""]);
    assert_eq!(server.setting("repl-diskless-sync"), "no");
    server.fill("altlas", 100, 6);
    let mut workspace = initialised(Mode::Clear, &server);
    let words = ["source `cache`", &format!("127.0.0.1:{}", server.port()), "save \"\"", "restart"];
    for hint in ["repl-diskless-sync yes", "allow_server_dump = true"] {
        Failure { code: 1, kind: "source", words: &words, hint }.of(|| workspace.run(&["backup"]));
    }
    assert_eq!(recorded(&workspace), 0);
    assert_eq!(dumps(&server), (0, 0));
    assert_eq!(server.files(), [""; 0]);

    // Each of the three ways that the hints and the server's manual name.
    server.command(&["CONFIG", "SET", "rdb-del-sync-files", "yes"]);
    back_up(&workspace);
    assert_at_rest(&server);
    assert_eq!(dumps(&server), (1, 0));
    crate::support::wait_for("the file to be removed", super::SOON, || server.files().is_empty().then_some(()));
    server.command(&["CONFIG", "SET", "rdb-del-sync-files", "no"]);
    server.command(&["CONFIG", "SET", "repl-diskless-sync", "yes"]);
    server.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    back_up(&workspace);
    assert_at_rest(&server);
    assert_eq!(dumps(&server), (1, 1));
    assert_eq!(server.files(), [""; 0]);
    server.command(&["CONFIG", "SET", "repl-diskless-sync", "no"]);
    workspace.set("source.0.allow_server_dump", true);
    back_up(&workspace);
    assert_at_rest(&server);
    assert_eq!(dumps(&server), (2, 1));
    assert_eq!(server.files(), ["dump.rdb"]);
}

/// A dump waits behind a save that is going on, however long, and the server's empty lines meanwhile are no answer.
#[test]
fn a_dump_behind_another_save() {
    for lines in [DISKLESS, &[]] {
        let server = Redis::start_with(RedisVersion::V70, lines);
        server.fill("altlas", 200, 7);
        if lines.is_empty() {
            save_once(&server);
        }
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "15000"]);
        server.command(&["BGSAVE"]);
        assert_eq!(server.info("rdb_bgsave_in_progress"), "1");
        let workspace = initialised(Mode::Clear, &server);
        let report = back_up(&workspace);
        assert_eq!(report["rows"], server.keys());
    }
}

/// A server that saves a file for another client lets us have that one, which lacks what was written since: it is not taken for a backup of
/// now, which is begun when the other is over.
#[test]
fn a_dump_that_was_begun_for_somebody_else() {
    for version in RedisVersion::ALL {
        let server = Redis::start_with(version, &["repl-diskless-sync no"]);
        server.fill("altlas", 200, 7);
        save_once(&server);
        let workspace = initialised(Mode::Clear, &server);
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "15000"]);
        let mut other = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        let password = server.password();
        write!(other, "AUTH {password}\r\nREPLCONF rdb-only 1\r\n").unwrap();
        assert_eq!([line(&mut other), line(&mut other)], ["+OK", "+OK"]);
        write!(other, "PSYNC ? -1\r\n").unwrap();
        assert!(line(&mut other).starts_with("+FULLRESYNC "), "{version:?}");
        let written = server.info("server_time_usec").parse::<i64>().unwrap();
        server.command(&["SET", "written:since", "value"]);
        back_up(&workspace);
        assert_eq!(dumps(&server).0, 2, "{version:?}: one for each\n{}", server.log());
        let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
        let cut: jiff::Timestamp = shown["head"]["sources"][0]["cut_at"].as_str().unwrap().parse().unwrap();
        assert!(cut.as_microsecond() > written, "{shown}");
        let target = Redis::start_with(version, TARGET);
        restore(&workspace, &target, &[]).ok();
        assert_eq!(target.command(&["GET", "written:since"]), "value", "{version:?}");
    }
}

/// Two backups of one server at once: one dump waits for the other, or they share it.
#[test]
fn two_backups_at_once() {
    let server = Redis::start_with(RedisVersion::V70, &[DISKLESS, &["rdb-key-save-delay 1000"]].concat());
    server.fill("altlas", 500, 8);
    let workspace = initialised(Mode::Clear, &server);
    let running: Vec<_> =
        (0..3).map(|_| workspace.run(&["--json", "backup"]).deadline(Duration::from_secs(120)).spawn()).collect();
    for run in running {
        let report = run.wait().assert_code(0).json();
        assert_eq!(report["sources"][0]["rows"], server.keys());
    }
    assert_eq!(recorded(&workspace), 3);
    assert_at_rest(&server);
}

/// A dump without a file proves nothing of the server's folder: the next one is without a file too.
#[test]
fn a_dump_without_a_file_is_no_proof() {
    for version in [RedisVersion::V70, RedisVersion::V82] {
        let server = Redis::start_with(version, &["repl-diskless-sync-delay 0"]);
        server.fill("altlas", 50, 9);
        let workspace = initialised(Mode::Clear, &server);
        back_up(&workspace);
        back_up(&workspace);
        assert_eq!(dumps(&server), (0, 2), "{version:?}");
    }
}
