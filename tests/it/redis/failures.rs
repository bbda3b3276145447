//! Servers that cannot be backed up: one clear error, a next step, nothing recorded.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{DISKLESS, SOON, back_up, initialised, recorded, save_once};
use crate::{
    failures::{Failure, assert_nothing_recorded},
    support::{
        binary::Run,
        free_port,
        mode::{Mode, in_both_modes},
        postgres::{Major, Postgres},
        redis::{Redis, RedisVersion, is_loading},
        wait_for,
        workspace::Workspace,
    },
};

in_both_modes! {
    an_empty_server,
    a_server_that_is_killed_in_the_middle,
    beside_a_database_that_is_fine,
}

#[track_caller]
fn source(words: &[&str], hint: &str, run: impl FnMut() -> Run) {
    Failure { code: 1, kind: "source", words: &[&["source `cache`"], words].concat(), hint }.of(run);
}

#[test]
fn servers_that_cannot_be_reached_or_do_not_let_us_in() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("altlas", 10, 1);
    let mut workspace = initialised(Mode::Clear, &server);
    let place = format!("127.0.0.1:{}", server.port());

    let wrong = workspace.secret("wrong", "not-the-password");
    workspace.set("source.0.password_file", wrong.display().to_string());
    source(&[&place, "WRONGPASS"], "`password_file`", || workspace.run(&["backup"]));
    // No password at all, a user that is not there, and one that is off.
    workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
    source(&[&place, "NOAUTH"], "`password_file`", || workspace.run(&["backup"]));
    workspace.set("source.0.password_file", server.password_file().display().to_string());
    workspace.set("source.0.url", server.url_as("nobody"));
    source(&[&place, "WRONGPASS"], "`username`", || workspace.run(&["backup"]));
    server.acl_user("off", "its-password", "off +@all ~*");
    let off = workspace.secret("off", "its-password");
    workspace.set("source.0.password_file", off.display().to_string());
    workspace.set("source.0.url", server.url());
    workspace.set("source.0.username", "off");
    source(&[&place, "WRONGPASS"], "`username`", || workspace.run(&["backup"]));
    workspace.table["source"][0].as_table_mut().unwrap().remove("username");
    workspace.set("source.0.password_file", server.password_file().display().to_string());
    assert_nothing_recorded(&workspace);

    let closed = format!("127.0.0.1:{}", free_port());
    workspace.set("source.0.url", format!("redis://{closed}"));
    source(&["cannot connect", &closed, "refused"], "port", || workspace.run(&["backup"]));
    workspace.set("source.0.url", format!("redis://nowhere.invalid:{}", server.port()));
    source(&["cannot connect", "nowhere.invalid"], "host", || workspace.run(&["backup"]));
    // Somebody else's port.
    let postgres = Postgres::start(Major::V15);
    workspace.set("source.0.url", format!("redis://127.0.0.1:{}", postgres.port()));
    source(&[&format!("127.0.0.1:{}", postgres.port())], "", || workspace.run(&["backup"]).deadline(SOON * 2));
    assert_nothing_recorded(&workspace);

    // Its password by the environment, and its user by a key or in the url.
    workspace.set("source.0.url", server.url());
    workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
    workspace.run(&["backup"]).env("ALTLAS_BACKUP_CACHE_PASSWORD", server.password()).ok();
    workspace.set("source.0.username", "default");
    workspace.run(&["backup"]).env("ALTLAS_BACKUP_CACHE_PASSWORD", server.password()).ok();
    assert_eq!(recorded(&workspace), 2);
}

/// A server that asks for no password.
#[test]
fn a_server_without_a_password() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("altlas", 10, 1);
    let mut workspace = initialised(Mode::Clear, &server);
    server.command(&["ACL", "SETUSER", "default", "nopass"]);
    // One that needs none takes any.
    back_up(&workspace);
    workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
    back_up(&workspace);
}

#[test]
fn a_server_that_still_loads() {
    // Slowly, and with an ear for clients after each kilobyte.
    let lines = [DISKLESS, &["key-load-delay 20000", "loading-process-events-interval-bytes 1024"]].concat();
    let mut server = Redis::start_with(RedisVersion::V70, &lines);
    server.fill("altlas", 1500, 2);
    server.command(&["SAVE"]);
    let workspace = initialised(Mode::Clear, &server);
    server.kill();
    server.resume_without_waiting();
    wait_for("the server to load", SOON, || {
        server.try_command(&["GET", "a"]).is_err_and(|error| is_loading(&error)).then_some(())
    });
    source(&["LOADING"], "try again", || workspace.run(&["backup"]));
    assert!(server.try_command(&["GET", "a"]).is_err_and(|error| is_loading(&error)), "it loaded all the time");
    assert_nothing_recorded(&workspace);
}

#[test]
fn a_replica_that_has_lost_its_master() {
    let master = Redis::start_with(RedisVersion::V70, DISKLESS);
    master.fill("altlas", 100, 3);
    let (place, password) =
        (format!("replicaof 127.0.0.1 {}", master.port()), format!("masterauth {}", master.password()));
    let replica = Redis::start_with(RedisVersion::V70, &[DISKLESS, &[&place, &password]].concat());
    wait_for("the replica", SOON, || (replica.info("master_link_status") == "up").then_some(()));
    let workspace = initialised(Mode::Clear, &replica);
    back_up(&workspace);
    drop(master);
    wait_for("the master to be missed", SOON, || (replica.info("master_link_status") == "down").then_some(()));
    source(&["NOMASTERLINK"], "master", || workspace.run(&["backup"]));
    assert_eq!(recorded(&workspace), 1);
}

fn an_empty_server(mode: Mode) {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    let mut workspace = initialised(mode, &server);
    let words = ["source `cache`", "no key"];
    Failure { code: 1, kind: "empty", words: &words, hint: "`allow_empty = true`" }.of(|| workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);
    workspace.set("source.0.allow_empty", true);
    workspace.run(&["backup"]).ok();
    assert_eq!(recorded(&workspace), 1);
    let target = Redis::start_with(RedisVersion::V70, super::TARGET);
    super::restore(&workspace, &target, &[]).ok();
    assert_eq!(target.keys(), 0);
}

/// In both forms: while the dump is on its way.
fn a_server_that_is_killed_in_the_middle(mode: Mode) {
    for lines in [DISKLESS, &[]] {
        let mut server = Redis::start_with(RedisVersion::V70, lines);
        server.fill("many", 20_000, 4);
        if lines.is_empty() {
            save_once(&server);
        }
        // Two seconds and more.
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "100"]);
        let workspace = initialised(mode, &server);
        let running = workspace.run(&["backup"]).deadline(SOON * 2).spawn();
        wait_for("the dump", SOON, || (server.children() > 0).then_some(()));
        std::thread::sleep(Duration::from_millis(500));
        server.kill();
        let output = running.wait().assert_error(1, &["source `cache`", &format!("127.0.0.1:{}", server.port())]);
        assert!(output.stderr.contains("hint: "), "{}", output.text());
        assert_nothing_recorded(&workspace);
    }
}

/// A failed source fails itself only: the other one's snapshot is kept, and the exit code says so.
fn beside_a_database_that_is_fine(mode: Mode) {
    let (postgres, server) = (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, DISKLESS));
    postgres.create_altlas("altlas", 50, 1);
    server.fill("altlas", 50, 1);
    let mut workspace = Workspace::folder().mode(mode).postgres(&postgres, &["altlas"]).redis(&server);
    workspace.run(&["init"]).ok();
    let first = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(first["state"], "complete");
    assert_eq!(first["sources"].as_array().unwrap().len(), 2);
    // Redis is cut first: every row that it mentions is in the database's snapshot.
    let shown = workspace.run(&["--json", "show", "latest"]).ok().json();
    let cut = |kind: &str| {
        let source = shown["head"]["sources"].as_array().unwrap().iter().find(|source| source["kind"] == kind).unwrap();
        source["cut_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    };
    assert!(cut("redis") <= cut("postgres"), "{shown}");

    let wrong = workspace.secret("wrong", "not-the-password");
    workspace.set("source.1.password_file", wrong.display().to_string());
    let report = workspace.run(&["--json", "backup"]).output().assert_code(5).json();
    assert_eq!(report["state"], "partial");
    // Both at once, each into its own target; what restores the cache is still the backup before.
    let (database, target) = (Postgres::start(Major::V15), Redis::start_with(RedisVersion::V70, super::TARGET));
    let id = first["backup"].as_str().unwrap();
    let targets = [format!("database={}", database.url("postgres")), format!("cache={}", target.url())];
    let restore = workspace.run(&["restore", id, "--yes", "--target", &targets[0], "--target", &targets[1]]);
    restore
        .env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", database.password())
        .env("ALTLAS_BACKUP_TARGET_CACHE_PASSWORD", target.password())
        .ok();
    assert_eq!(postgres.digests("altlas"), database.digests("altlas"));
    assert!(target.keys() > 50);
    let target = Redis::start_with(RedisVersion::V70, super::TARGET);
    super::restore(&workspace, &target, &[]).ok();
    assert!(target.keys() > 50);
}

/// What this version leaves out is refused with a clear message.
#[test]
fn what_is_not_supported() {
    let cluster = Redis::start_with(RedisVersion::V70, &[DISKLESS, &["cluster-enabled yes"]].concat());
    let workspace = initialised(Mode::Clear, &cluster);
    source(&["cluster"], "", || workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);

    let mut workspace = workspace;
    let place = format!("127.0.0.1:{}", cluster.port());
    for (url, words) in [
        (format!("rediss://{place}"), "TLS"),
        (format!("redis://{place}/3"), "database"),
        (format!("redis://user:hunter-2@{place}"), "password"),
        (format!("redis-sentinel://{place}"), "redis://"),
    ] {
        workspace.set("source.0.url", url.clone());
        let output = workspace.run(&["backup"]).output().assert_error(2, &["`source[0].url`", words]);
        assert!(!output.text().contains("hunter-2"), "{url}");
    }
}

/// Names and passwords of any characters reach the server as they are, and no password reaches the terminal.
#[test]
fn users_and_passwords_of_any_characters() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("altlas", 20, 5);
    let password = "p \"w'\\%40@:/#?ñ$*\u{1}";
    let mut connection = server.connection();
    let mut user = |name: &str| {
        let rules = ["on", &format!(">{password}"), "~*", "+@all"].map(str::to_owned);
        redis::cmd("ACL").arg("SETUSER").arg(name).arg(&rules[..]).exec(&mut connection).unwrap();
    };
    user("üser@host:1/%");
    let mut workspace = initialised(Mode::Clear, &server);
    let file = workspace.secret("odd", password);
    workspace.set("source.0.password_file", file.display().to_string());
    workspace.set("source.0.username", "üser@host:1/%");
    let told = workspace.run(&["-v", "backup"]).ok();
    assert!(!told.text().contains(password), "{}", told.text());
    workspace.table["source"][0].as_table_mut().unwrap().remove("username");
    workspace.set("source.0.url", server.url_as("%C3%BCser%40host%3A1%2F%25"));
    back_up(&workspace);

    let target = Redis::start_with(RedisVersion::V70, super::TARGET);
    let mut connection = target.connection();
    let rules = ["on", &format!(">{password}"), "~*", "+@all"].map(str::to_owned);
    redis::cmd("ACL").arg("SETUSER").arg("a,b").arg(&rules[..]).exec(&mut connection).unwrap();
    super::restore_at(&workspace, &target.url_as("a%2Cb"), password, &[]).ok();
    // Wrong ones are not shown either.
    let wrong = super::restore_at(&workspace, &target.url_as("a%2Cb"), "hunter-2", &["--overwrite", "-v"]).output();
    assert!(!wrong.assert_error(1, &["WRONGPASS"]).text().contains("hunter-2"));
}

/// A server that is there and says nothing, before the dump and in the middle of it.
#[test]
fn a_server_that_stands_still() {
    let server = Redis::start_with(RedisVersion::V70, DISKLESS);
    server.fill("many", 20_000, 6);
    let workspace = initialised(Mode::Clear, &server);
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let output = workspace.run(&["backup"]).deadline(SOON * 2).output();
    kill_process(pid, Signal::CONT).unwrap();
    output.assert_error(1, &["source `cache`", &format!("127.0.0.1:{}", server.port())]);
    assert_nothing_recorded(&workspace);

    server.command(&["CONFIG", "SET", "rdb-key-save-delay", "200"]);
    let running = workspace.run(&["backup"]).deadline(SOON * 3).spawn();
    wait_for("the dump", SOON, || (server.children() > 0).then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    kill_process(pid, Signal::STOP).unwrap();
    let output = running.wait();
    kill_process(pid, Signal::CONT).unwrap();
    let output = output.assert_error(1, &["source `cache`", &format!("127.0.0.1:{}", server.port())]);
    assert!(output.stderr.contains("hint: "), "{}", output.text());
    assert_nothing_recorded(&workspace);
    super::assert_at_rest(&server);
}

/// Interrupted by Ctrl-C while a dump is on its way: nothing recorded, and the server rid of us.
#[test]
fn an_interrupted_backup() {
    for lines in [DISKLESS, &[]] {
        let server = Redis::start_with(RedisVersion::V70, lines);
        server.fill("many", 20_000, 7);
        if lines.is_empty() {
            save_once(&server);
        }
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "200"]);
        let workspace = initialised(Mode::Clear, &server);
        let running = workspace.run(&["backup"]).deadline(SOON).spawn();
        wait_for("the dump", SOON, || (server.children() > 0).then_some(()));
        std::thread::sleep(Duration::from_millis(200));
        running.interrupt();
        running.wait().assert_code(130);
        assert_nothing_recorded(&workspace);
        server.command(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
        super::assert_at_rest(&server);
        back_up(&workspace);
    }
}
