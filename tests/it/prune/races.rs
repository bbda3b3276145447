//! Backups, retention, sweeps and undone expiries at the same time (R7, R8): every head's parts are there at the end.
//!
//! First in a store whose clock the test turns: no server can be made to let processes sleep for days between any two of their calls, which is
//! what the rules are about. The store is real code's only in its contract (`src/store/mod.rs`); all else is the program's own.
//! Then against real stores and the real clock, with a grace period of seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use altlas_backup::{
    config::RetentionConfig,
    operation::PruneArguments,
    pipeline::{Budget, Pipeline, Progress},
    repository::{
        BackupId, BackupState, Catalog, CatalogEntry, Commit, Cut, Epoch, FORMAT_VERSION, Format, Head, Keyring,
        Manifest, Repository, RepositoryError, ReusableParts, SnapshotState, SourceIdentity, retention,
        sweep::{self, Survey},
        tool,
    },
    store::{
        Backend, ObjectBody, ObjectInfo, Page, PutMode, RetryPolicy, SharedBackend, Store, StoreError, StoreErrorKind,
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;

use super::{DISKLESS, change};
use crate::support::{
    library::Library,
    mode::{Mode, in_both_modes},
    redis::{Redis, RedisVersion},
    s3::{BlockingS3, S3Kind},
    workspace::Workspace,
};

const GRACE: Duration = Duration::from_secs(72 * 3600);
const HOUR: i64 = 3600;
/// Who waits for longer waits for ever.
const MOST_YIELDS: u32 = 20_000_000;

/// A store in memory, its clock, and who is asleep.
struct World {
    state: Mutex<State>,
}

struct State {
    random: StdRng,
    now: Timestamp,
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    /// When each backup got its last tombstone.
    expired: BTreeMap<String, Timestamp>,
    /// Who has not ended yet.
    alive: BTreeSet<usize>,
    /// When each wakes; several calls of one may sleep at once.
    asleep: BTreeSet<(Timestamp, usize)>,
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            now: "2026-11-01T01:00:00Z".parse().unwrap(),
            objects: BTreeMap::new(),
            expired: BTreeMap::new(),
            alive: BTreeSet::new(),
            asleep: BTreeSet::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn now(&self) -> Timestamp {
        self.lock().now
    }

    fn random<T>(&self, of: impl FnOnce(&mut StdRng) -> T) -> T {
        of(&mut self.lock().random)
    }

    /// Somebody sleeps so long by the store's clock. Where all who live sleep, the clock goes to the first who wakes.
    async fn sleep(&self, actor: usize, seconds: i64) {
        let mine = {
            let mut state = self.lock();
            let mine = (state.now + SignedDuration::from_secs(seconds), actor);
            state.asleep.insert(mine);
            mine
        };
        for _ in 0..MOST_YIELDS {
            {
                let mut state = self.lock();
                // Those whose time has come, and calls that were given up in their sleep.
                let now = state.now;
                if mine.0 <= now {
                    return;
                }
                state.asleep.retain(|(wakes, _)| *wakes > now);
                let asleep: BTreeSet<usize> = state.asleep.iter().map(|(_, who)| *who).collect();
                if state.alive.is_subset(&asleep) {
                    state.now = state.asleep.first().map_or(mine.0, |(wakes, _)| *wakes);
                }
            }
            tokio::task::yield_now().await;
        }
        panic!("actor {actor} sleeps for ever");
    }
}

/// The store as one run of one actor sees it.
struct View {
    world: Arc<World>,
    actor: usize,
    /// Calls until it crashes: then all fail.
    crash: Option<AtomicU64>,
    /// May it be suspended for days?
    suspends: bool,
    crashed: AtomicBool,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "actor {}", self.actor)
    }
}

impl View {
    /// A run of this actor. One in three crashes, one in three may be suspended. Never both: who is suspended for days between a look at
    /// the clock and the write that it allows, and is killed right after that write and before the next look, is beyond all rules.
    fn of(world: &Arc<World>, actor: usize) -> Arc<Self> {
        let (kind, calls) = world.random(|random| (random.random_range(0..3), random.random_range(1..60)));
        Arc::new(Self {
            world: world.clone(),
            actor,
            crash: (kind == 0).then(|| AtomicU64::new(calls)),
            suspends: kind == 1,
            crashed: AtomicBool::new(false),
        })
    }

    fn store(self: &Arc<Self>) -> Store {
        Store::new(self.clone() as SharedBackend, RetryPolicy { attempts: 1, ..RetryPolicy::default() })
    }

    /// Before each call: others have their turn, time passes, and sometimes a lot of it.
    async fn turn(&self) -> Result<(), StoreError> {
        let dead = || StoreError::new(StoreErrorKind::Denied, "call", "", "this run has crashed");
        if self.crashed.load(Ordering::SeqCst) {
            return Err(dead());
        }
        let (yields, seconds, suspended) = self.world.random(|random| {
            let suspended = random.random_range(0..25) == 0;
            (random.random_range(0..4), random.random_range(0..600), suspended)
        });
        self.world.lock().now += SignedDuration::from_secs(seconds);
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        if self.suspends && suspended {
            let hours = self.world.random(|random| random.random_range(1..120));
            self.world.sleep(self.actor, hours * HOUR).await;
        }
        if self.crash.as_ref().is_some_and(|left| left.fetch_sub(1, Ordering::SeqCst) == 1) {
            self.crashed.store(true, Ordering::SeqCst);
            // Killed before the call is done, or after.
            if self.world.random(|random| random.random()) {
                return Err(dead());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for View {
    fn url(&self) -> &str {
        "memory:"
    }

    async fn put(&self, key: &str, body: Bytes, _mode: PutMode) -> Result<(), StoreError> {
        self.turn().await?;
        let mut state = self.world.lock();
        let now = state.now;
        if state.objects.contains_key(key) {
            return Err(StoreError::new(StoreErrorKind::AlreadyExists, "put", key, "taken"));
        }
        if let Some((id, _)) = key.strip_prefix("tombstones/").and_then(|name| name.split_once('.')) {
            state.expired.insert(id.to_owned(), now);
        }
        state.objects.insert(key.to_owned(), (body, now));
        Ok(())
    }

    async fn get(&self, key: &str, offset: u64) -> Result<ObjectBody, StoreError> {
        self.turn().await?;
        let state = self.world.lock();
        let Some((bytes, _)) = state.objects.get(key) else {
            return Err(StoreError::new(StoreErrorKind::NotFound, "get", key, "no such object"));
        };
        let rest = bytes.slice(usize::try_from(offset).unwrap()..);
        Ok(ObjectBody { size: bytes.len() as u64, tag: String::new(), body: stream::iter([Ok(rest)]).boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo, StoreError> {
        self.turn().await?;
        let state = self.world.lock();
        let Some((bytes, last_modified)) = state.objects.get(key) else {
            return Err(StoreError::new(StoreErrorKind::NotFound, "head", key, "no such object"));
        };
        Ok(ObjectInfo { key: key.to_owned(), size: bytes.len() as u64, last_modified: *last_modified })
    }

    /// A page holds three objects, so that a listing is no instant.
    async fn list_page(&self, prefix: &str, dirs_only: bool, from: Option<&str>) -> Result<Page, StoreError> {
        self.turn().await?;
        let state = self.world.lock();
        let mut page = Page::default();
        let from = from.unwrap_or(prefix).to_owned();
        let below = state.objects.range(from..).take_while(|(key, _)| key.starts_with(prefix));
        for (key, (bytes, last_modified)) in below {
            if dirs_only {
                let folder = key[prefix.len()..].split_once('/').map(|(name, _)| format!("{prefix}{name}"));
                page.dirs.extend(folder.filter(|folder| page.dirs.last() != Some(folder)));
                continue;
            }
            if page.objects.len() == 3 {
                page.next = Some(key.clone());
                break;
            }
            let (key, size) = (key.clone(), bytes.len() as u64);
            page.objects.push(ObjectInfo { key, size, last_modified: *last_modified });
        }
        Ok(page)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.turn().await?;
        self.world.lock().objects.remove(key);
        Ok(())
    }

    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.turn().await?;
        Ok(self.world.now())
    }
}

/// What happened, for the end to be judged by.
#[derive(Clone, Default)]
struct Journal {
    /// Backups that reported success.
    succeeded: Vec<BackupId>,
    expired: usize,
    undone: u64,
    swept: u64,
    reused: u64,
    failed: BTreeMap<&'static str, u64>,
}

type Shared = Arc<Mutex<Journal>>;

/// What `backup` does, of pieces of text.
async fn back_up(view: &Arc<View>, contents: &[u8], journal: &Shared) -> Result<BackupId, RepositoryError> {
    let repository = Repository::open(view.store(), Keyring::default()).await?;
    let started = repository.store().now().await?;
    let catalog = Catalog::read(&repository).await?;
    let id = BackupId::new(started);
    let epoch = epoch(&repository, started).await?;
    let reusable = ReusableParts::find(&repository, &epoch, &catalog, started, GRACE).await?;
    let budget = Budget::new(128 * 1024 * 1024);
    let (store, progress) = (repository.store().clone(), Arc::new(Progress::default()));
    let pipeline = Pipeline::new(store, epoch.clone(), id.tail(), 1, budget, 2, reusable, progress);
    let writer = pipeline.snapshot();
    let lost = |_| RepositoryError::Encode { object: "a part".into(), what: "the store".into() };
    for content in contents {
        let mut artifact = writer.artifact(format!("{content}"), Format::Text).await.map_err(lost)?;
        artifact.write(format!("content {content}\n").as_bytes()).await.map_err(lost)?;
        artifact.finish(Value::Null).await.map_err(lost)?;
    }
    let (artifacts, written) = writer.finish().await.map_err(lost)?;
    let source = SourceIdentity { name: "a".into(), kind: "made-up".into() };
    let mut commit = Commit::new(&repository, &epoch, GRACE);
    let manifest = Manifest {
        format: FORMAT_VERSION,
        repository: repository.mark().repository.clone(),
        backup: id.clone(),
        epoch: epoch.id().clone(),
        source,
        tool: tool(),
        cut: Cut::between(started, started, Value::Null),
        uncovered: Vec::new(),
        failed: Vec::new(),
        notes: Vec::new(),
        about: Vec::new(),
        server: Vec::new(),
        detail: Value::Null,
        artifacts,
    };
    let mut in_head = manifest.in_head();
    in_head.state = SnapshotState::Complete;
    in_head.sizes.stored = written.stored;
    in_head.sizes.uploaded = written.uploaded;
    in_head.manifest = Some(commit.manifest(manifest).await?);
    let head = Head {
        format: FORMAT_VERSION,
        repository: repository.mark().repository.clone(),
        backup: id,
        epoch: epoch.id().clone(),
        tool: tool(),
        started,
        finished: started,
        state: BackupState::Complete,
        skew: None,
        anchors: repository.anchors(&epoch),
        sources: vec![in_head],
    };
    let head = commit.finish(head).await?;
    journal.lock().unwrap().reused += written.parts - written.new_parts;
    Ok(head.backup)
}

/// As `backup` chooses it, with epochs of six days.
async fn epoch(repository: &Repository, now: Timestamp) -> Result<Arc<Epoch>, RepositoryError> {
    let records = repository.epoch_records().await?;
    let young = |began: Timestamp| now.duration_since(began) < SignedDuration::from_hours(6 * 24);
    if let Some(newest) = records.newest(now).filter(|newest| young(newest.began)) {
        return repository.epoch(&newest.epoch).await;
    }
    repository.begin_epoch(String::new()).await
}

/// What `prune` does.
async fn prune(view: &Arc<View>, last: u32, journal: &Shared) -> Result<(), RepositoryError> {
    let repository = Repository::open(view.store(), Keyring::default()).await?;
    let (history, survey) = Survey::take(&repository, GRACE).await?;
    let config =
        RetentionConfig { last, daily: 0, weekly: 0, monthly: 0, timezone: TimeZone::UTC, expire_at_most_percent: 100 };
    let retention = retention::plan(&history, &config, history.now);
    let sweep = sweep::plan(survey, 100);
    if !sweep.brakes.is_empty() {
        return Err(RepositoryError::Braked(sweep.brakes));
    }
    for backup in retention.expired() {
        repository.expire(&backup.backup, GRACE).await?;
    }
    let removed = AtomicU64::new(0);
    let done = sweep.carry_out(&repository, &removed).await;
    journal.lock().unwrap().swept += removed.into_inner();
    done
}

/// Brings back any backup that expired.
async fn undo(view: &Arc<View>, journal: &Shared) -> Result<(), RepositoryError> {
    let repository = Repository::open(view.store(), Keyring::default()).await?;
    let catalog = Catalog::read(&repository).await?;
    let expired: Vec<&BackupId> = catalog
        .entries
        .iter()
        .filter(|entry| matches!(entry, CatalogEntry::Expired { .. }))
        .map(CatalogEntry::id)
        .collect();
    let Some(id) = view.world.random(|random| expired.choose(random).copied()) else { return Ok(()) };
    let (_, restored) = repository.undo_expiry(id, GRACE).await?;
    journal.lock().unwrap().undone += u64::from(restored);
    Ok(())
}

/// Two that back up, two that prune, one that undoes, for some weeks.
async fn act(world: Arc<World>, actor: usize, journal: Shared) {
    let start = world.random(|random| random.random_range(0..24));
    world.sleep(actor, start * HOUR).await;
    for _ in 0..9 {
        let view = View::of(&world, actor);
        let (what, done) = match actor {
            0 | 1 => {
                let contents: Vec<u8> = world.random(|random| (0..6).map(|_| random.random_range(0..14)).collect());
                let done = back_up(&view, &contents, &journal).await;
                ("backup", done.map(|id| journal.lock().unwrap().succeeded.push(id)))
            }
            2 | 3 => ("prune", prune(&view, 2, &journal).await),
            _ => ("undo", undo(&view, &journal).await),
        };
        if done.is_err() {
            *journal.lock().unwrap().failed.entry(what).or_default() += 1;
        }
        let hours = world.random(|random| random.random_range(1..60));
        world.sleep(actor, hours * HOUR).await;
    }
    // Nobody waits for it any more.
    world.lock().alive.remove(&actor);
}

/// Lives through some weeks and judges the end. Gives what happened.
fn live(seed: u64) -> Journal {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (world, journal) = (World::new(seed), Shared::default());
    let calm = |actor| {
        let (crash, crashed) = (None, AtomicBool::new(false));
        Arc::new(View { world: world.clone(), actor, crash, suspends: false, crashed })
    };
    runtime.block_on(async {
        Repository::init(calm(9).store(), Keyring::default()).await.unwrap();
        world.lock().alive.extend(0..5);
        futures::future::join_all((0..5).map(|actor| act(world.clone(), actor, journal.clone()))).await;
        let repository = Repository::open(calm(9).store(), Keyring::default()).await.unwrap();
        let catalog = Catalog::read(&repository).await.unwrap();
        let (mut heads, mut tombstones) = (BTreeSet::new(), BTreeSet::new());
        for entry in &catalog.entries {
            match entry {
                CatalogEntry::Good(head) => {
                    let epoch = repository.epoch(&head.epoch).await.unwrap();
                    for source in &head.sources {
                        let manifest = repository.manifest(head, &epoch, source).await.unwrap();
                        let missing = repository.missing_parts(&epoch, &[&manifest]).await.unwrap();
                        assert!(missing.is_empty(), "seed {seed}, backup {}: {missing:?}", head.backup);
                    }
                    heads.insert(head.backup.clone());
                }
                CatalogEntry::Expired { id, .. } => drop(tombstones.insert(id.clone())),
                CatalogEntry::Unfinished { .. } => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        let (now, expired) = (world.now(), world.lock().expired.clone());
        journal.lock().unwrap().expired = expired.len();
        let journal = journal.lock().unwrap().clone();
        for id in &journal.succeeded {
            let is_known = heads.contains(id) || tombstones.contains(id);
            let long_ago = |at: &Timestamp| now.duration_since(*at) >= SignedDuration::try_from(GRACE).unwrap();
            assert!(
                is_known || expired.get(id.as_str()).is_some_and(long_ago),
                "seed {seed}: backup {id} succeeded, and went before its grace period was over"
            );
        }
        assert!(!heads.is_empty() || journal.succeeded.is_empty(), "seed {seed}");
        // What is left is swept without a brake: at the latest a grace period later, for one who slept between a look at a head and its
        // tombstone may have left the tombstone of a backup that was gone.
        world.lock().now += SignedDuration::try_from(GRACE).unwrap();
        prune(&calm(9), 2, &Shared::default()).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    });
    drop(runtime);
    Arc::try_unwrap(journal).ok().expect("all have ended").into_inner().unwrap()
}

/// With `ALTLAS_SEED` set: that world alone; with `ALTLAS_TORTURE`: many more.
#[test]
fn weeks_in_which_anything_may_sleep_or_crash() {
    let seeds: Vec<u64> = match std::env::var("ALTLAS_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let worlds = if std::env::var_os("ALTLAS_TORTURE").is_some() { 5000 } else { 200 };
            let first: u64 = rand::random_range(0..1 << 40);
            (first..first + worlds).collect()
        }
    };
    let mut all = Journal::default();
    for seed in &seeds {
        let journal = live(*seed);
        all.succeeded.extend(journal.succeeded);
        all.expired += journal.expired;
        all.undone += journal.undone;
        all.swept += journal.swept;
        all.reused += journal.reused;
        for (what, times) in journal.failed {
            *all.failed.entry(what).or_default() += times;
        }
    }
    println!(
        "{} worlds: {} backups, {} parts reused, {} expired, {} brought back, {} objects swept; ended early: {:?}",
        seeds.len(),
        all.succeeded.len(),
        all.reused,
        all.expired,
        all.undone,
        all.swept,
        all.failed
    );
    assert!(seeds.len() == 1 || (all.undone > 20 && all.swept > 200 && all.reused > 200), "something never happened");
}

in_both_modes! {
    prune_beside_backups_in_a_folder,
    prune_beside_backups_on_seaweedfs,
}

fn prune_beside_backups_in_a_folder(mode: Mode) {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    let workspace = Workspace::folder().mode(mode).redis(&source);
    beside_backups(&source, &workspace);
    mode.assert_objects(&workspace.objects());
}

fn prune_beside_backups_on_seaweedfs(mode: Mode) {
    let source = Redis::start_with(RedisVersion::V70, DISKLESS);
    let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    beside_backups(&source, &Workspace::s3(&s3.place("backups", "busy")).mode(mode).redis(&source));
}

/// Backups one after the other, of data that comes back every third time; beside them, without a pause, all but the newest expire and
/// what is older than the grace period goes.
fn beside_backups(source: &Redis, workspace: &Workspace) {
    const GRACE: Duration = Duration::from_secs(8);
    workspace.run(&["init"]).ok();
    let mut context = workspace.context();
    let config = Arc::make_mut(&mut context.config);
    config.repository.grace = GRACE;
    config.retention = Some(RetentionConfig {
        last: 1,
        daily: 0,
        weekly: 0,
        monthly: 0,
        timezone: TimeZone::UTC,
        expire_at_most_percent: 100,
    });
    let texts: Vec<String> = (0..3)
        .map(|_| {
            change(source);
            source.command(&["GET", "text"])
        })
        .collect();
    let library = Library::new(context.clone());
    library.backup().unwrap();
    let stop = AtomicBool::new(false);
    let (mut swept, mut expired) = (0, 0);
    std::thread::scope(|scope| {
        let backups = scope.spawn(|| {
            let library = Library::new(context.clone());
            for n in 0..14 {
                source.command(&["SET", "text", &texts[n % texts.len()]]);
                library.backup().unwrap();
                std::thread::sleep(Duration::from_millis(1000));
            }
            stop.store(true, Ordering::SeqCst);
        });
        let pruner = Library::new(context.clone());
        while !stop.load(Ordering::SeqCst) && !backups.is_finished() {
            let report = pruner.prune(&PruneArguments { sweep_at_most: Some(100), ..PruneArguments::default() });
            let report = report.unwrap();
            swept +=
                report.sweep.unused.objects + report.sweep.expired.iter().filter(|backup| backup.goes).count() as u64;
            expired += report.retention.unwrap().expired().count();
            std::thread::sleep(Duration::from_millis(100));
        }
        backups.join().unwrap();
    });
    let heads = library.heads();
    println!("{expired} expired, {swept} objects swept, {} heads", heads.len());
    assert!(expired >= 10 && swept > 0 && !heads.is_empty());
    for head in &heads {
        library.sound(head.backup.as_str());
    }
}
