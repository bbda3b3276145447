//! A verification that is killed while it fills a given server: the next one finds what is there, and removes it.

use std::{net::SocketAddr, sync::mpsc, time::Duration};

use super::whole::give;
use crate::support::{
    nats::{Nats, NatsVersion},
    postgres::{Major, Postgres},
    proxy::{Step, TcpProxy, Way},
    redis::{Redis, RedisVersion},
    wait_for,
    workspace::Workspace,
};

const SOON: Duration = Duration::from_secs(60);

/// Verified, by the given server.
#[track_caller]
fn verified(workspace: &Workspace) {
    let report = workspace.run(&["--json", "verify"]).ok().json();
    assert_eq!(report["verdict"], "verified", "{report}");
}

#[test]
fn redis() {
    let source = Redis::start_with(RedisVersion::V70, &["save \"\"", "repl-diskless-sync yes"]);
    source.fill("many", 20_000, 61);
    let mut workspace = Workspace::folder().redis(&source);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    // So slow that there is time for a kill while it loads.
    let slow = ["save \"\"", "key-load-delay 100", "loading-process-events-interval-bytes 1024"];
    let scratch = Redis::start_with(RedisVersion::V70, &slow);
    give(&mut workspace, "redis", &scratch.url(), &scratch.password_file());
    for at in ["while it loads", "when it has loaded"] {
        let running = workspace.run(&["verify"]).spawn();
        match at {
            "while it loads" => {
                wait_for("the server to load", SOON, || (scratch.info("loading") == "1").then_some(()));
            }
            _ => {
                wait_for("the server to have loaded", SOON, || {
                    (scratch.info("loading") == "0" && scratch.keys() == source.keys()).then_some(())
                });
            }
        }
        running.kill9();
        assert!(scratch.setting("masterauth").starts_with("altlas-backup-throwaway-"), "{at}");
        verified(&workspace);
        assert_eq!((scratch.keys(), scratch.info("role").as_str()), (0, "master"), "{at}");
    }
}

#[test]
fn nats() {
    for version in NatsVersion::ENDS {
        let source = Nats::start(version);
        source.fill("large", 200, 62);
        source.fill("altlas", 50, 62);
        let mut workspace = Workspace::folder().nats(&source);
        workspace.run(&["init"]).ok();
        workspace.run(&["backup"]).ok();
        let scratch = Nats::start(version);
        let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], scratch.port())));
        let url = format!("nats://{}@127.0.0.1:{}", scratch.user(), proxy.port());
        give(&mut workspace, "nats", &url, &scratch.password_file());
        // In the middle of an archive, and when a stream is there.
        for place in ["$JS.SNAPSHOT.RESTORE.", "$JS.API.STREAM.SNAPSHOT."] {
            let (told, hears) = mpsc::channel::<()>();
            let mut chunks = 0;
            proxy.on_bytes(move |way, _, bytes| {
                chunks += u32::from(way == Way::Up && memchr::memmem::find(&bytes, place.as_bytes()).is_some());
                let enough = if place.contains("RESTORE") { 20 } else { 1 };
                if chunks < enough {
                    return vec![Step::Send(bytes)];
                }
                let _ = told.send(());
                vec![Step::Wait(Duration::from_secs(3600))]
            });
            let running = workspace.run(&["verify"]).spawn();
            hears.recv_timeout(SOON).unwrap_or_else(|_| panic!("{place} was not seen"));
            running.kill9();
            proxy.reset();
            // Its system closes the connections of one that was killed; the proxy, which waits, has not noticed yet.
            proxy.cut_all();
            verified(&workspace);
            assert_eq!(scratch.streams(), Vec::<String>::new(), "{version:?}, {place}");
        }
    }
}

#[test]
fn postgres() {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 200, 63);
    source.psql("postgres", "CREATE ROLE app LOGIN");
    // An index that takes its time to be made.
    source.psql(
        "altlas",
        "CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN $1; END'; \
         CREATE TABLE waits AS SELECT n FROM generate_series(1, 100) n; CREATE INDEX ON waits (slow(n))",
    );
    let mut workspace = Workspace::folder().postgres(&source, &["altlas"]);
    workspace.run(&["init"]).ok();
    workspace.run(&["backup"]).ok();
    let scratch = Postgres::start_unrelated(Major::V15);
    give(&mut workspace, "postgres", &scratch.url("postgres"), &scratch.password_file());
    let there = |what: &str| scratch.psql("postgres", &format!("SELECT count(*) FROM {what}")) != "0";
    for at in [
        "pg_roles WHERE rolname = 'app'",
        "pg_database WHERE datname = 'altlas_throwaway_0'",
        "pg_stat_activity WHERE query LIKE '%slow(%' AND datname LIKE 'altlas_throwaway%'",
    ] {
        let running = workspace.run(&["verify"]).spawn();
        wait_for(at, SOON, || there(at).then_some(()));
        running.kill9();
        verified(&workspace);
        let left = "pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')";
        assert!(!there(left) && !there("pg_roles WHERE rolname = 'app'"), "{at}");
    }
}
