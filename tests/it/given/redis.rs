//! Redis: sources, their replicas, and servers in use are refused, and nothing is done to them.

use std::time::Duration;

use crate::support::{
    proof::Given,
    redis::{Redis, RedisVersion},
    wait_for,
    workspace::Workspace,
};

const SOON: Duration = Duration::from_secs(60);
const NO_FILES: &[&str] = &["save \"\"", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"];

/// A server that follows another.
fn replica(of: &Redis) -> Redis {
    let auth = format!("masterauth {}", of.password());
    let replica = Redis::start_with(of.version(), &[NO_FILES, &[&auth]].concat());
    replica.command(&["REPLICAOF", "127.0.0.1", &of.port().to_string()]);
    wait_for("the replica to follow", SOON, || (replica.info("master_link_status") == "up").then_some(()));
    replica
}

/// It is refused for this, and nothing of it is another: neither by the claim nor by a release that nobody should have asked for.
#[track_caller]
fn left_alone(server: &Redis, others: &[&Redis], words: &str) {
    let given = Given::redis(server);
    let others: Vec<_> = others.iter().map(|other| Given::redis(other).identity()).collect();
    let state = || {
        let settings = ["masterauth", "replicaof", "save"].map(|name| server.setting(name));
        (server.digest(), server.keys(), server.info("role"), settings)
    };
    let before = state();
    let what = given.refused(&others);
    assert!(what.contains(words), "`{words}` is not in: {what}");
    if !server.setting("masterauth").starts_with("altlas-backup-throwaway") {
        given.release();
    }
    assert_eq!(state(), before);
}

#[test]
fn the_source_by_any_name() {
    for version in RedisVersion::ALL {
        let source = Redis::start_with(version, NO_FILES);
        source.fill("altlas", 100, 41);
        left_alone(&source, &[&source], "is source 127.0.0.1:");
        let identity = Given::redis(&source).identity();
        let url = format!("redis://localhost:{}", source.port());
        let what = Given::at("redis", &url, &source.password_file()).refused(&[identity]);
        assert!(what.contains("localhost:") && what.contains("is source 127.0.0.1:"), "{what}");
        // Also where the source cannot be asked who it is, and where it holds nothing.
        left_alone(&source, &[], "holds keys");
        source.command(&["FLUSHALL"]);
        left_alone(&source, &[&source], "is source");
    }
}

#[test]
fn a_replica_of_the_source() {
    for version in RedisVersion::ALL {
        let source = Redis::start_with(version, NO_FILES);
        source.fill("altlas", 100, 42);
        let replica = replica(&source);
        left_alone(&replica, &[&source], "or a replica of it (replication id");
        left_alone(&replica, &[], "is a replica of 127.0.0.1:");
        left_alone(&source, &[], "has replicas (1)");
        assert_eq!(source.digest(), replica.digest());
        // One that was made a server of its own is a copy of the source's data all the same.
        replica.command(&["REPLICAOF", "NO", "ONE"]);
        replica.command(&["FLUSHALL"]);
        left_alone(&replica, &[&source], "or a replica of it");
        assert_eq!(source.keys(), source.digest_beyond(0, version).keys() as u64);
    }
}

#[test]
fn a_server_in_use() {
    let server = Redis::start_with(RedisVersion::V70, NO_FILES);
    server.command(&["SET", "precious", "value"]);
    left_alone(&server, &[], "holds keys (db0:keys=1");
    server.command(&["FLUSHALL"]);
    server.command(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)"]);
    left_alone(&server, &[], "holds function libraries (1)");
    server.command(&["FUNCTION", "FLUSH"]);
    // An empty cache with an application before it.
    let mut application = server.connection();
    redis::cmd("CLIENT").arg("SETNAME").arg("app").exec(&mut application).unwrap();
    left_alone(&server, &[], "is in use: 1 connection of others (127.0.0.1:");
    drop(application);
    server.command(&["CONFIG", "SET", "masterauth", "of-its-own"]);
    left_alone(&server, &[], "has a `masterauth`");
    server.command(&["CONFIG", "SET", "masterauth", ""]);
    // One that was a throwaway server, and that somebody has taken into use.
    let given = Given::redis(&server);
    given.claim(&[]).unwrap();
    server.command(&["SET", "precious", "value"]);
    left_alone(&server, &[], "holds keys");
    assert_eq!(server.command(&["GET", "precious"]), "value");
    let cluster = Redis::start_with(RedisVersion::V70, &["cluster-enabled yes"]);
    left_alone(&cluster, &[], "is a node of a cluster");
    let limited = Redis::start_with(RedisVersion::V70, &["rename-command CONFIG \"\""]);
    let what = Given::redis(&limited).refused(&[]);
    assert!(what.contains("cannot be set up as a throwaway server"), "{what}");
}

/// Nobody proves anything in a server that was not claimed.
#[test]
fn a_server_that_was_not_claimed() {
    let source = Redis::start_with(RedisVersion::V70, NO_FILES);
    source.fill("altlas", 10, 43);
    let workspace = Workspace::folder().redis(&source);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let before = source.digest();
    let error = Given::redis(&source).prove_backup(&workspace, "latest").unwrap_err().to_string();
    assert!(error.contains("was not claimed"), "{error}");
    assert_eq!((source.digest(), source.info("role").as_str()), (before, "master"));
}

/// What a killed proof left is a replica of nobody, or was one: it goes. While another proof goes on, nobody else's begins.
#[test]
fn what_a_proof_left() {
    let source = Redis::start_with(RedisVersion::V70, NO_FILES);
    // Without any that expires: a master deletes those, and nobody could tell that from a server that is in use.
    for n in 0..100 {
        source.command(&["SET", &format!("key:{n}"), "value"]);
    }
    let workspace = Workspace::folder().redis(&source);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let scratch = Redis::start_with(RedisVersion::V70, NO_FILES);
    let given = Given::redis(&scratch);
    given.proved(&workspace);
    assert!(scratch.keys() > 0, "a proof leaves what it was made with");
    given.claim(&[]).unwrap();
    assert_eq!(scratch.keys(), 0);
    // One that somebody has taken into use since.
    given.proved(&workspace);
    scratch.command(&["FLUSHALL"]);
    scratch.command(&["SET", "precious", "value"]);
    left_alone(&scratch, &[], "holds keys (db0:keys=1");
    assert_eq!(scratch.command(&["GET", "precious"]), "value");
    scratch.command(&["FLUSHALL"]);
    scratch.command(&["REPLICAOF", "127.0.0.1", "1"]);
    given.claim(&[]).unwrap();
    assert_eq!(scratch.info("role"), "master");
    given.proved(&workspace);
    given.release();
    assert_eq!((scratch.keys(), scratch.setting("masterauth").as_str()), (0, ""));
}
