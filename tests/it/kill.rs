//! Killed at any instant, a backup leaves a repository in which every head is good, and the next one goes on where it ended
//! (rules R1, R7, R11).
//!
//! With `ALTLAS_TORTURE` set (`scripts/torture`) the same tests are longer: more data, a slower store, more kills, and a
//! restore after each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    binary::Output,
    library::Library,
    mode::{Mode, in_both_modes},
    postgres::{Major, Postgres},
    proxy::{Action, HttpProxy},
    s3::{BlockingS3, S3Kind},
    seeded, wait_for,
    workspace::Workspace,
};

in_both_modes! {
    right_before_and_right_after_every_write,
    at_random_times_in_a_slow_backup,
    killed_again_and_again_it_still_gets_there,
    init_killed_around_its_one_write,
}

const BUCKET: &str = "torture";
/// A repository without a backup.
const EMPTY: &str = "base/empty";
/// A repository with one backup, of what the source held before [`change`].
const ONE: &str = "base/one";
/// Rows in the largest table of a small backup. Each table is one part then; of more, the cuts, and so the number of parts,
/// depend on the epoch's random key.
const FEW: u64 = 300;
/// Backups that are killed at once.
const AT_ONCE: usize = 3;

type Digests = BTreeMap<String, (u64, String)>;

/// How much is done.
struct Size {
    /// Rows in the largest table of a slowed backup.
    rows: u64,
    /// How long a slowed backup lasts at least.
    slowed: Duration,
    /// Random kills.
    kills: usize,
    /// Restore after each kill, or only after the last one of a test?
    restore_each: bool,
}

fn size() -> Size {
    match std::env::var_os("ALTLAS_TORTURE") {
        Some(_) => Size { rows: 20_000, slowed: Duration::from_secs(20), kills: 30, restore_each: true },
        None => Size { rows: FEW, slowed: Duration::from_secs(3), kills: 4, restore_each: false },
    }
}

/// The servers, and two repositories to begin with.
struct Bench {
    mode: Mode,
    size: Size,
    source: Postgres,
    target: Postgres,
    s3: BlockingS3,
    /// What the source held at the first backup, and what it holds now.
    digests: [Digests; 2],
    /// Makes names.
    made: AtomicUsize,
}

impl Bench {
    fn start(mode: Mode, rows: impl Fn(&Size) -> u64) -> Self {
        let size = size();
        let source = Postgres::start(Major::V15);
        source.create_altlas("altlas", rows(&size), 5);
        let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
        let at = |prefix: &str| Workspace::s3(&s3.place(BUCKET, prefix)).mode(mode).postgres(&source, &["altlas"]);
        at(EMPTY).run(&["init"]).ok();
        at(ONE).run(&["init"]).ok();
        at(ONE).run(&["backup"]).ok();
        let before = source.digests("altlas");
        change(&source);
        let digests = [before, source.digests("altlas")];
        let target = Postgres::start(Major::V15);
        // Restores run at once, and each would create what is not there yet.
        target.psql("postgres", "CREATE ROLE altlas; CREATE ROLE altlas_reader");
        Self { mode, size, source, target, s3, digests, made: AtomicUsize::new(0) }
    }

    fn name(&self, what: &str) -> String {
        format!("{what}_{}", self.made.fetch_add(1, Ordering::SeqCst))
    }
}

/// Changes some tables, so that a second backup has some parts to upload and some to reuse.
fn change(source: &Postgres) {
    source.psql(
        "altlas",
        "UPDATE last_files SET success_rate = 0.5; UPDATE tags SET description = 'changed'; \
         INSERT INTO analytics_daily (day, archives_created) VALUES ('2026-11-23', 23)",
    );
}

/// When a backup is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Right before the store sees its n-th write.
    Before(u64),
    /// Right after the store has done its n-th write, before the answer arrives.
    After(u64),
    /// So long after its start.
    At(Duration),
}

/// One repository of its own, a copy of `EMPTY` or `ONE`.
struct Case<'a> {
    bench: &'a Bench,
    prefix: String,
    workspace: Workspace,
    /// Past all proxies.
    library: Library,
}

impl<'a> Case<'a> {
    fn new(bench: &'a Bench, base: &str) -> Self {
        let prefix = bench.name("case");
        bench.s3.copy(BUCKET, base, &prefix);
        let workspace = Workspace::s3(&bench.s3.place(BUCKET, &prefix)).mode(bench.mode);
        let workspace = workspace.postgres(&bench.source, &["altlas"]);
        let library = Library::new(workspace.context());
        Self { bench, prefix, workspace, library }
    }

    /// One write after the other: their numbers then mean the same in every run.
    fn one_write_at_a_time(mut self) -> Self {
        self.workspace.set("limits.uploads", 1);
        self
    }

    /// A new proxy before the store, for one run.
    fn proxy(&mut self) -> HttpProxy {
        let proxy = HttpProxy::start(self.bench.s3.address());
        self.workspace.set("repository.s3.endpoint", proxy.endpoint());
        proxy
    }

    /// What the store holds: keys and sizes, by its own listing.
    fn objects(&self) -> BTreeMap<String, u64> {
        self.bench.s3.list(BUCKET, &self.prefix)
    }

    /// Waits until another backup is newer than those that are there: S3 servers tell the time in whole seconds.
    fn wait_for_another_second(&self) {
        let Some(newest) = self.library.heads().iter().map(|head| head.started.as_second()).max() else { return };
        wait_for("the next second", Duration::from_secs(5), || (Timestamp::now().as_second() > newest).then_some(()));
    }

    /// Runs a backup whose writes each wait for `delay`, and kills it. Nothing it sent is on its way any more afterwards.
    fn killed(&mut self, moment: Moment, delay: Duration) -> Output {
        self.wait_for_another_second();
        let proxy = self.proxy();
        let killer = Arc::new(Killer::default());
        let (before, after) = (killer.clone(), killer.clone());
        proxy.before_write(move |write| {
            std::thread::sleep(delay);
            if matches!(moment, Moment::Before(n) if n == write.number) {
                before.kill();
            }
            // Once it is dead, nothing of it arrives.
            if before.dead.load(Ordering::SeqCst) { Action::Drop } else { Action::Pass }
        });
        proxy.after_write(move |write| {
            if matches!(moment, Moment::After(n) if n == write.number) {
                after.kill();
            }
            if after.dead.load(Ordering::SeqCst) { Action::Drop } else { Action::Pass }
        });
        let running = self.workspace.run(&["backup"]).spawn();
        killer.process.set(running.id()).unwrap();
        if let Moment::At(time) = moment {
            std::thread::sleep(time);
            killer.kill();
        }
        let output = running.wait();
        proxy.settle();
        output
    }

    /// What must hold after every kill. Gives the number of heads.
    fn check_heads(&self) -> usize {
        let heads = self.library.heads();
        for head in &heads {
            self.library.sound(head.backup.as_str());
        }
        heads.len()
    }

    /// The next backup: complete, sound, and it uploads exactly what is not there yet, by the store's own count.
    fn next_backup(&mut self) {
        let heads = self.check_heads();
        self.wait_for_another_second();
        let before = self.objects();
        let proxy = self.proxy();
        let report = self.workspace.run(&["--json", "backup"]).ok().json();
        let after = self.objects();
        self.bench.mode.assert_names(after.keys());

        let needed: BTreeSet<String> = self
            .library
            .artifacts("latest")
            .iter()
            .flat_map(|artifact| &artifact.parts)
            .map(|part| content(&part.name.to_string()))
            .collect();
        let there = contents(before.keys());
        let put: Vec<String> = proxy
            .requests()
            .iter()
            .filter(|request| request.method == "PUT")
            .filter_map(|request| part_content(request.path.split('?').next().unwrap()))
            .collect();
        let missing: Vec<String> = needed.difference(&there).cloned().collect();
        assert_eq!(sorted(&put), missing, "uploaded is what was needed and not there yet");
        let new: Vec<&String> = after.keys().filter(|key| !before.contains_key(*key)).collect();
        assert_eq!(contents(new.iter().copied()).len(), missing.len(), "by the store's count");
        assert_eq!(report["sources"][0]["new_parts"], missing.len(), "by the report");
        assert_eq!(report["sources"][0]["parts"], needed.len());
        for (key, size) in &before {
            assert_eq!(after.get(key), Some(size), "{key} is as it was");
        }
        assert_eq!(self.check_heads(), heads + 1);
        assert_eq!(self.library.heads()[0].backup.as_str(), report["backup"].as_str().unwrap());
    }

    /// Restores the newest backup by the program under test and compares every row.
    fn restore_newest(&mut self, expected: &Digests) {
        self.workspace.set("repository.s3.endpoint", format!("http://{}", self.bench.s3.address()));
        let (server, database) = (&self.bench.target, self.bench.name("restored"));
        let address = format!("database={}", server.url("postgres"));
        let renamed = format!("altlas={database}");
        let arguments = ["restore", "latest", "--yes", "--target", &address, "--database", &renamed];
        let run = self.workspace.run(&arguments).env("ALTLAS_BACKUP_TARGET_DATABASE_PASSWORD", server.password());
        run.ok();
        assert_eq!(server.digests(&database), *expected);
        server.psql("postgres", &format!("DROP DATABASE {database}"));
    }
}

/// Kills one process, once it is known which.
#[derive(Default)]
struct Killer {
    process: OnceLock<u32>,
    dead: AtomicBool,
}

impl Killer {
    fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let process = i32::try_from(*self.process.wait()).unwrap();
        // Nobody has waited for it yet, so the number is still its own.
        let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::KILL);
    }
}

/// The content hash in a part's name.
fn content(name: &str) -> String {
    name.split('.').next().unwrap().to_owned()
}

fn part_content(key: &str) -> Option<String> {
    let (folder, name) = key.rsplit_once('/')?;
    folder.contains("/parts/").then(|| content(name))
}

/// The contents of the parts among these keys, each of which is stored once only.
fn contents<'a>(keys: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let all: Vec<String> = keys.filter_map(|key| part_content(key)).collect();
    let each: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(all.len(), each.len(), "a content is stored twice");
    each
}

fn sorted(list: &[String]) -> Vec<String> {
    let mut list = list.to_vec();
    list.sort();
    list
}

fn is_killed(output: &Output) -> bool {
    output.signal == Some(Signal::KILL.as_raw())
}

/// Works through a list on a few threads.
fn each<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let queue = Mutex::new(items.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = { queue.lock().unwrap().next() } {
                    work(item);
                }
            });
        }
    });
}

/// Objects that a backup writes, each by one PUT.
fn writes_of_a_backup(bench: &Bench, base: &str) -> u64 {
    let mut case = Case::new(bench, base).one_write_at_a_time();
    let before = case.objects().len();
    let proxy = case.proxy();
    case.workspace.run(&["backup"]).ok();
    assert_eq!(proxy.writes(), (case.objects().len() - before) as u64);
    proxy.writes()
}

fn right_before_and_right_after_every_write(mode: Mode) {
    let bench = Bench::start(mode, |_| FEW);
    let mut kills = Vec::new();
    for base in [EMPTY, ONE] {
        let writes = writes_of_a_backup(&bench, base);
        println!("{base}: a backup does {writes} writes");
        kills.extend((1..=writes).flat_map(|n| [(base, writes, Moment::Before(n)), (base, writes, Moment::After(n))]));
    }
    println!("{} kills", kills.len());
    each(kills, |(base, writes, moment)| {
        println!("{base}: {moment:?} of {writes}");
        let mut case = Case::new(&bench, base).one_write_at_a_time();
        // A verification leaves evidence, so it comes first.
        let heads = case.check_heads();
        let objects = case.objects().len() as u64;
        let output = case.killed(moment, Duration::ZERO);
        assert!(is_killed(&output), "{}", output.text());
        let (done, last) = match moment {
            Moment::Before(n) => (n - 1, false),
            Moment::After(n) => (n, n == writes),
            Moment::At(_) => unreachable!(),
        };
        assert_eq!(case.objects().len() as u64, objects + done, "the kill came when it was meant to");
        // The head is the last write; with it the backup is there, though nobody was told.
        assert_eq!(case.check_heads(), heads + usize::from(last));
        if base == ONE && (bench.size.restore_each || last) {
            case.restore_newest(&bench.digests[usize::from(last)]);
        }
        case.next_backup();
        if bench.size.restore_each || last {
            case.restore_newest(&bench.digests[1]);
        }
    });
}

fn at_random_times_in_a_slow_backup(mode: Mode) {
    let bench = Bench::start(mode, |size| size.rows);
    let uploads = 2_u32;
    let slow = |case: &mut Case<'_>| case.workspace.set("limits.uploads", i64::from(uploads));
    // Parts go two at a time; epoch, keys, manifest and head go alone.
    let mut case = Case::new(&bench, EMPTY);
    slow(&mut case);
    let proxy = case.proxy();
    case.workspace.run(&["backup"]).ok();
    let parts = contents(case.objects().keys()).len() as u64;
    let rounds = parts / u64::from(uploads) + proxy.writes() - parts;
    let mut delay = bench.size.slowed / u32::try_from(rounds).unwrap();
    let whole = loop {
        let mut case = Case::new(&bench, EMPTY);
        slow(&mut case);
        let proxy = case.proxy();
        proxy.before_write(move |_| Action::Delay(delay));
        let clock = Instant::now();
        case.workspace.run(&["backup"]).ok();
        let whole = clock.elapsed();
        if whole >= bench.size.slowed {
            break whole;
        }
        // The cuts, and so the number of parts, depend on the epoch's random key.
        delay = delay.mul_f64(1.2);
    };
    println!("a backup of about {parts} parts, {delay:?} a write, lasts {whole:?}");

    let kills = bench.size.kills;
    let mut random = seeded();
    // One in each of as many equal stretches of the backup's length.
    let times = (0..kills).map(|n| (n, whole.mul_f64((n as f64 + random.random::<f64>()) / kills as f64)));
    let seen = Mutex::new(Vec::new());
    each(times.collect(), |(n, mut time)| {
        let mut case = Case::new(&bench, EMPTY);
        slow(&mut case);
        // Where the machine was faster this time, the last ones come too late.
        while !is_killed(&case.killed(Moment::At(time), delay)) {
            println!("kill {n} after {time:?}: the backup was done already");
            case = Case::new(&bench, EMPTY);
            slow(&mut case);
            time = time.mul_f64(0.9);
        }
        let stored = contents(case.objects().keys()).len();
        println!("kill {n} after {time:?}: {stored} parts stored");
        seen.lock().unwrap().push(stored);
        if case.check_heads() > 0 {
            case.restore_newest(&bench.digests[1]);
        }
        case.next_backup();
        if bench.size.restore_each || n + 1 == kills {
            case.restore_newest(&bench.digests[1]);
        }
    });
    let seen = seen.into_inner().unwrap();
    assert!(seen.iter().any(|stored| *stored > 0), "some kill came after a part was stored: {seen:?}");
}

fn killed_again_and_again_it_still_gets_there(mode: Mode) {
    let bench = Bench::start(mode, |_| FEW);
    let mut case = Case::new(&bench, ONE).one_write_at_a_time();
    let there = contents(case.objects().keys()).len();
    // Two writes further each time. Manifests of dead runs pile up, contents are stored once.
    for crash in 1..=3 {
        let output = case.killed(Moment::After(2), Duration::ZERO);
        assert!(is_killed(&output), "crash {crash}: {}", output.text());
        let stored = contents(case.objects().keys()).len();
        println!("crash {crash}: {} new parts stored", stored - there);
        assert!(stored > there);
        case.check_heads();
    }
    case.next_backup();
    case.restore_newest(&bench.digests[1]);
}

fn init_killed_around_its_one_write(mode: Mode) {
    let source = Postgres::start(Major::V15);
    source.create_altlas("altlas", 10, 5);
    let s3 = BlockingS3::start(S3Kind::SeaweedFs).unwrap();
    for (prefix, before) in [("before", true), ("after", false)] {
        let mut workspace = Workspace::s3(&s3.place(BUCKET, prefix)).mode(mode).postgres(&source, &["altlas"]);
        let proxy = HttpProxy::start(s3.address());
        workspace.set("repository.s3.endpoint", proxy.endpoint());
        let killer = Arc::new(Killer::default());
        let hook = killer.clone();
        let kill = move |_: &_| {
            hook.kill();
            Action::Drop
        };
        if before {
            proxy.before_write(kill)
        } else {
            proxy.after_write(kill)
        }
        let running = workspace.run(&["init"]).spawn();
        killer.process.set(running.id()).unwrap();
        assert!(is_killed(&running.wait()));
        proxy.settle();
        proxy.reset();
        assert_eq!(s3.list(BUCKET, prefix).len(), usize::from(!before));
        workspace.run(&["init"]).output().assert_code(if before { 0 } else { 1 });
        workspace.run(&["init", "--if-missing"]).ok();
        workspace.run(&["backup"]).ok();
        Library::new(workspace.context()).sound("latest");
    }
}
