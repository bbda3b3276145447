//! The strictest proof: a throwaway server replicates from the program, and a dump is taken back from it.

use std::time::Duration;

use altlas_backup::{
    config::{PasswordSource, RedisConfig, SourceSettings},
    operation::{Context, OpenBackup, open_backup},
    repository::Selector,
    source::{self, Difference, Proof, SourceError},
};
use tokio_util::sync::CancellationToken;

use super::{DISKLESS, MARGIN, NO_FILES, SOON, back_up, initialised, save_once};
use crate::support::{
    mode::{Mode, in_both_modes},
    redis::{Redis, RedisVersion, ms_from_now},
    wait_for,
    workspace::Workspace,
};

in_both_modes! {
    a_replica_of_6_2,
    a_replica_of_7_0,
    a_replica_of_8_2,
}

fn a_replica_of_6_2(mode: Mode) {
    proven(mode, RedisVersion::V62, RedisVersion::V62);
    proven(mode, RedisVersion::V62, RedisVersion::V70);
}

fn a_replica_of_7_0(mode: Mode) {
    proven(mode, RedisVersion::V70, RedisVersion::V70);
    proven(mode, RedisVersion::V70, RedisVersion::V82);
}

fn a_replica_of_8_2(mode: Mode) {
    proven(mode, RedisVersion::V82, RedisVersion::V82);
}

fn configuration(server: &Redis) -> RedisConfig {
    let context = Workspace::folder().redis(server).context();
    match &context.config.sources[0].settings {
        SourceSettings::Redis(config) => config.clone(),
        other => panic!("{}", other.kind()),
    }
}

/// The newest backup of the workspace, proved by this server.
fn try_proof(workspace: &Workspace, scratch: &Redis) -> Result<Proof, SourceError> {
    let (context, config): (Context, _) = (workspace.context(), configuration(scratch));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let proof = runtime.block_on(async {
        let opened: OpenBackup = open_backup(&context, &Selector::Latest, &[], |_, _| Ok(())).await.unwrap();
        let settings = SourceSettings::Redis(RedisConfig {
            password: PasswordSource::Given(scratch.password().to_owned().into()),
            ..config
        });
        let server = source::open(&settings, &|_| None).unwrap();
        server.claim(&[]).await?;
        server.prove(&opened.snapshots[0].snapshot, &CancellationToken::new()).await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    proof
}

/// Keys of databases that are the same.
fn keys(proof: &Proof) -> u64 {
    proof.same.iter().map(|same| same.rows).sum()
}

fn proven(mode: Mode, from: RedisVersion, to: RedisVersion) {
    let source = Redis::start(from);
    save_once(&source);
    source.fill("types", 2, 21);
    source.fill("altlas", 500, 22);
    let held = source.keys();
    let workspace = initialised(mode, &source);
    back_up(&workspace);
    // Longer than the soonest keys live: they are in the dump, and must be in the replica.
    std::thread::sleep(Duration::from_secs(3));
    let scratch = Redis::start_with(to, NO_FILES);
    let proof = try_proof(&workspace, &scratch).unwrap();
    assert_eq!(proof.differences, Vec::<Difference>::new());
    assert_eq!(keys(&proof), held, "every key, also those whose time is over");
    assert_eq!(proof.notes.is_empty(), from != RedisVersion::V82, "{:?}", proof.notes);
    assert_eq!(scratch.info("role"), "master", "nobody's replica any more");
    let horizon = ms_from_now(MARGIN);
    source.digest_beyond(horizon, from).assert_same(&scratch.digest_beyond(horizon, from));
}

/// The proof can fail: a server that throws keys away does not hold what was captured.
#[test]
fn a_server_that_evicts_is_found_out() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 50_000, 23);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let evicts = ["maxmemory 4mb", "maxmemory-policy allkeys-random", "replica-ignore-maxmemory no"];
    let scratch = Redis::start_with(RedisVersion::V70, &[NO_FILES, &evicts].concat());
    let proof = try_proof(&workspace, &scratch).unwrap();
    assert!(keys(&proof) < 50_000, "{proof:?}");
    assert!(proof.differences.iter().any(|difference| difference.object.starts_with("db 0")), "{proof:?}");
}

#[test]
fn a_server_that_is_too_old_is_refused() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("altlas", 10, 24);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let scratch = Redis::start(RedisVersion::V62);
    let error = try_proof(&workspace, &scratch).unwrap_err().to_string();
    for word in ["6.2.14", "7.0.15", "RDB version 10"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(scratch.info("role"), "master");
}

/// A server that ends in the middle is an error, and no proof.
#[test]
fn a_server_that_ends_is_an_error() {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    source.fill("many", 100_000, 25);
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    let mut scratch = Redis::start_with(
        RedisVersion::V70,
        &[NO_FILES, &["key-load-delay 50", "loading-process-events-interval-bytes 1024"]].concat(),
    );
    let pid = scratch.pid();
    let error = std::thread::scope(|scope| {
        let proving = scope.spawn(|| try_proof(&workspace, &scratch));
        wait_for("the server to load", SOON, || scratch.log().contains("MASTER <-> REPLICA sync").then_some(()));
        std::thread::sleep(Duration::from_millis(300));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        proving.join().unwrap().unwrap_err()
    });
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    scratch.kill();
}
