//! Ended at any instant, `prune` leaves a repository in which every head is good, and the next run completes what it began (R8, R11).
//!
//! With `ALTLAS_TORTURE` set there are more kills.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use altlas_backup::{
    config::RetentionConfig,
    operation::Context,
    repository::{
        Repository, RepositoryError, retention,
        sweep::{self, Survey},
    },
    store::{
        FileBackend, RetryPolicy, Store, StoreErrorKind,
        fault::{Fault, FaultBackend},
    },
};
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use super::{Bench, DISKLESS, LONG, age, change};
use crate::support::{
    library::Library,
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    proxy::{Action, HttpProxy},
    redis::{Redis, RedisVersion},
    s3::{BlockingS3, S3Kind},
    seeded,
    workspace::Workspace,
};

in_both_modes! {
    after_every_single_call,
    killed_at_every_write_of_an_expiry,
}

const GRACE: Duration = Duration::from_secs(72 * 3600);

/// What the operation does, over any store.
async fn prune(context: &Context, store: Store) -> Result<(), RepositoryError> {
    let repository = Repository::open(store, context.keyring().unwrap()).await?;
    let (history, survey) = Survey::take(&repository, GRACE).await?;
    let config: &RetentionConfig = context.config.retention.as_ref().unwrap();
    let retention = retention::plan(&history, config, history.now);
    let sweep = sweep::plan(survey, 30);
    for backup in retention.expired() {
        repository.expire(&backup.backup, GRACE).await?;
    }
    sweep.carry_out(&repository, &AtomicU64::new(0)).await
}

/// Three backups that expired long ago, two that expire now, two that stay; and a run that crashed.
fn bench(mode: Mode) -> Bench {
    let mut bench = Bench::start(mode, 4);
    let dead = bench.backups.remove(1);
    std::fs::remove_file(bench.workspace.repository_folder().join(format!("backups/{dead}/head.json"))).unwrap();
    bench.keep(1);
    bench.workspace.run(&["prune"]).ok();
    bench.back_up();
    bench.back_up();
    bench.keep(2);
    bench
}

/// The keys of a repository, but for the evidence that each verification by a test adds.
fn keys(workspace: &Workspace) -> BTreeSet<String> {
    super::without_evidence(workspace.objects()).into_keys().collect()
}

fn after_every_single_call(mode: Mode) {
    let bench = bench(mode);
    let context = |workspace: &Workspace| super::with_data_identity(workspace, mode);
    let copy = || {
        let copy = bench.workspace.copy();
        age(&copy.repository_folder(), "", LONG);
        copy
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = |workspace: &Workspace, fault: Option<(usize, Fault)>| {
        let backend = Arc::new(FileBackend::open(workspace.repository_folder()).unwrap());
        let faulty = Arc::new(FaultBackend::new(backend));
        if let Some((nth, fault)) = fault {
            faulty.on(None, nth, fault);
        }
        let store = Store::new(faulty.clone(), RetryPolicy { attempts: 1, ..RetryPolicy::default() });
        (runtime.block_on(prune(&context(workspace), store)), faulty.calls(None))
    };
    let whole = copy();
    let before = keys(&whole);
    let (done, calls) = run(&whole, None);
    done.unwrap();
    let wanted = keys(&whole);
    let heads = |keys: &BTreeSet<String>| keys.iter().filter(|key| key.ends_with("/head.json")).count();
    assert!(heads(&before) == 3 && heads(&wanted) == 2 && wanted.len() + 8 == before.len(), "{before:?}\n{wanted:?}");
    println!("{calls} calls");

    for nth in 1..=calls {
        // Ended before the call was done, or when it was done.
        for fault in [Fault::Fail(StoreErrorKind::Denied), Fault::LoseAnswer(StoreErrorKind::Denied)] {
            let workspace = copy();
            let (ended, _) = run(&workspace, Some((nth, fault.clone())));
            ended.unwrap_err();
            let library = Library::new(context(&workspace));
            let heads = library.heads();
            assert!((2..=3).contains(&heads.len()), "call {nth}, {fault:?}");
            for head in heads {
                library.sound(head.backup.as_str());
            }
            run(&workspace, None).0.unwrap();
            assert_eq!(keys(&workspace), wanted, "call {nth}, {fault:?}");
        }
    }
}

/// Ends one process at one of its writes, before the store sees it or when it was done.
fn kill_at(workspace: &mut Workspace, s3: &BlockingS3, nth: u64, before: bool) {
    let proxy = HttpProxy::start(s3.address());
    workspace.set("repository.s3.endpoint", proxy.endpoint());
    let process: Arc<OnceLock<u32>> = Arc::default();
    let known = process.clone();
    let hook = move |write: &crate::support::proxy::Seen| {
        if write.number < nth {
            return Action::Pass;
        }
        if write.number == nth {
            let process = Pid::from_raw(i32::try_from(*known.wait()).unwrap()).unwrap();
            // Nobody has waited for it yet, so the number is still its own.
            let _ = kill_process(process, Signal::KILL);
        }
        // Once it is dead, nothing of it arrives.
        Action::Drop
    };
    match before {
        true => proxy.before_write(hook),
        false => proxy.after_write(hook),
    }
    let running = workspace.run(&["prune"]).spawn();
    process.set(running.id()).unwrap();
    let output = running.wait();
    assert_eq!(output.signal, Some(Signal::KILL.as_raw()), "{}", output.text());
    proxy.settle();
    workspace.set("repository.s3.endpoint", format!("http://{}", s3.address()));
}

/// Two backups expire: a tombstone and the end of a head each. The crash between the two is among these.
fn killed_at_every_write_of_an_expiry(mode: Mode) {
    const BUCKET: &str = "torture";
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    let at = |prefix: &str| {
        let mut workspace = Workspace::s3(&s3.place(BUCKET, prefix)).mode(mode).redis(&source);
        workspace.set("retention.last", 1);
        workspace.set("retention.expire_at_most_percent", 100);
        workspace
    };
    let base = at("base");
    base.run(&["init"]).ok();
    let mut ids = Vec::new();
    for _ in 0..3 {
        change(&source);
        ids.push(base.run(&["--json", "backup"]).ok().json()["backup"].as_str().unwrap().to_owned());
        // S3 servers tell the time in whole seconds.
        std::thread::sleep(Duration::from_millis(1100));
    }
    for nth in 1..=4 {
        for before in [true, false] {
            let prefix = format!("case-{nth}-{before}");
            s3.copy(BUCKET, "base", &prefix);
            let mut workspace = at(&prefix);
            kill_at(&mut workspace, &s3, nth, before);
            let library = Library::new(workspace.context());
            let heads = library.heads();
            // Tombstones are writes 1 and 3, heads go with 2 and 4, the oldest first.
            let done = if before { nth - 1 } else { nth };
            assert_eq!(heads.len() as u64, 3 - done / 2, "{prefix}");
            let objects = s3.list(BUCKET, &prefix);
            let tombstones = objects.keys().filter(|key| key.starts_with("tombstones/")).count() as u64;
            assert_eq!(tombstones, done.div_ceil(2), "{prefix}");
            for head in heads {
                library.sound(head.backup.as_str());
            }
            workspace.run(&["prune"]).ok();
            let heads: Vec<String> = library.heads().into_iter().map(|head| head.backup.to_string()).collect();
            assert_eq!(heads, ids[2..], "{prefix}");
            let objects = s3.list(BUCKET, &prefix);
            for id in &ids[..2] {
                assert!(objects.contains_key(&format!("tombstones/{id}.json")), "{prefix}: {:?}", objects.keys());
                assert!(!objects.contains_key(&format!("tombstones/{id}.2.json")), "{prefix}: one is enough");
            }
            workspace.run(&["prune", "--undo", &ids[0]]).ok();
            library.sound(&ids[0]);
        }
    }
}

/// `kill -9` at random moments of a sweep of hundreds of parts, in a folder.
#[test]
fn killed_at_random_moments_of_a_sweep() {
    let mode = Mode::Encrypted;
    let source = Postgres::start(Major::V15);
    source.psql("postgres", "CREATE DATABASE many");
    let tables = |sql: &str| {
        let each = format!("DO $$ BEGIN FOR n IN 1..150 LOOP EXECUTE format('{sql}', n); END LOOP; END $$");
        source.psql("many", &each);
    };
    tables("CREATE TABLE t%1$s AS SELECT %1$s AS n, 0 AS m");
    let mut workspace = Workspace::folder().mode(mode).postgres(&source, &["many"]);
    workspace.run(&["init"]).ok();
    for _ in 0..2 {
        workspace.run(&["backup"]).ok();
        tables("UPDATE t%1$s SET m = m + 1");
    }
    workspace.run(&["backup"]).ok();
    workspace.set("retention.last", 1);
    workspace.set("retention.expire_at_most_percent", 100);
    workspace.run(&["prune"]).ok();

    let copy = || {
        let copy = workspace.copy();
        age(&copy.repository_folder(), "", LONG);
        copy
    };
    let whole = copy();
    let before = keys(&whole);
    let clock = Instant::now();
    whole.run(&["prune"]).ok();
    let took = clock.elapsed();
    let wanted = keys(&whole);
    assert!(before.len() - wanted.len() > 300, "{} and {}", before.len(), wanted.len());
    println!("a sweep of {} objects takes {took:?}", before.len() - wanted.len());
    let kills = if std::env::var_os("ALTLAS_TORTURE").is_some() { 60 } else { 8 };
    let (mut random, mut in_the_middle) = (seeded(), 0);
    for n in 0..kills {
        let workspace = copy();
        let running = workspace.run(&["prune"]).spawn();
        std::thread::sleep(took.mul_f64((f64::from(n) + random.random::<f64>()) / f64::from(kills)));
        running.kill9();
        let left = keys(&workspace);
        in_the_middle += u32::from(left != before && left != wanted);
        println!("kill {n}: {} of {} removed", before.len() - left.len(), before.len() - wanted.len());
        let library = Library::new(workspace.context());
        assert_eq!(library.heads().len(), 1);
        library.sound("latest");
        workspace.run(&["prune"]).ok();
        assert_eq!(keys(&workspace), wanted);
    }
    println!("{in_the_middle} of {kills} kills came in the middle");
}
