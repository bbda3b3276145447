//! The loop with a runner made up for the purpose, and metrics of histories made up for it.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::{Timestamp, ToSpan};
use tokio_util::sync::CancellationToken;

use super::{
    daemon::Daemon,
    metrics::{Exposition, Intervals, facts, text},
    state::{Known, Observed, Shared},
    *,
};
use crate::{
    pipeline::Progress,
    repository::{BackupId, Level, SnapshotState, Verdict},
    schedule::{
        Due, Task,
        tests::records::{Records, config, time},
    },
    store::{StoreError, StoreErrorKind},
};

const NIGHTLY: &str = "[[schedule]]\nname = \"nightly\"\ncron = \"0 1 * * *\"\n[retention]\nlast = 3\n";

/// A repository in memory, and what was done to it.
struct Fake {
    now: Mutex<Timestamp>,
    records: Mutex<Records>,
    done: Mutex<Vec<String>>,
    /// The store does not answer.
    is_down: AtomicBool,
    /// The next backup panics.
    panics: AtomicBool,
    /// The next backup waits until it is told to stop.
    hangs: AtomicBool,
    /// Looks show what was there when they began, so long ago.
    slow_looks: AtomicBool,
    busy: AtomicU32,
    alerts: AtomicU32,
}

impl Fake {
    fn new(now: &str) -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::new(time(now)),
            records: Mutex::new(Records::new()),
            done: Mutex::default(),
            is_down: AtomicBool::default(),
            panics: AtomicBool::default(),
            hangs: AtomicBool::default(),
            slow_looks: AtomicBool::default(),
            busy: AtomicU32::new(0),
            alerts: AtomicU32::new(0),
        })
    }

    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }

    fn note(&self, what: impl Into<String>) {
        self.done.lock().unwrap().push(what.into());
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }
}

fn down() -> Error {
    StoreError::new(StoreErrorKind::Unreachable, "list", "", "made up").into()
}

#[async_trait]
impl Runner for Fake {
    async fn read(&self) -> Result<Read, Error> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(down());
        }
        let records = self.records.lock().unwrap().clone();
        let history = Arc::new(records.history(self.now()));
        if self.slow_looks.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        Ok(Read { repository: records.repository, history, began: tokio::time::Instant::now() })
    }

    async fn perform(
        &self,
        due: &Due,
        cancel: &CancellationToken,
        _: &Arc<Progress>,
    ) -> Result<Option<BackupId>, Error> {
        assert_eq!(self.busy.fetch_add(1, Ordering::SeqCst), 0, "one thing at a time");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (now, mut made) = (self.now(), None);
        let ended = match &due.task {
            Task::Backup { .. } if self.panics.swap(false, Ordering::SeqCst) => {
                self.busy.fetch_sub(1, Ordering::SeqCst);
                panic!("made up");
            }
            Task::Backup { .. } if self.hangs.load(Ordering::SeqCst) => {
                self.note("hangs");
                cancel.cancelled().await;
                // What is being committed is committed.
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.note("stopped");
                Err(Error::Interrupted)
            }
            Task::Backup { sources, attempt, .. } => {
                let names: Vec<&str> = sources.iter().map(String::as_str).collect();
                made = Some(self.records.lock().unwrap().complete(now, now, &names));
                self.note(format!("backup {attempt}"));
                Ok(())
            }
            Task::Verify { backup, level } => {
                self.records.lock().unwrap().evidence(backup, *level, Verdict::Verified, now);
                self.note(format!("verify {level}"));
                Ok(())
            }
            Task::Prune => {
                self.note("prune");
                Ok(())
            }
        };
        self.busy.fetch_sub(1, Ordering::SeqCst);
        ended.map(|()| made)
    }

    async fn alert(&self, look: Result<&Read, &Error>) -> usize {
        self.alerts.fetch_add(1, Ordering::SeqCst);
        usize::from(look.is_err())
    }

    async fn size(&self) -> Result<u64, Error> {
        Ok(4711)
    }
}

/// A running daemon; every 5 ms it looks.
struct Serving {
    fake: Arc<Fake>,
    shared: Arc<Shared>,
    cancel: CancellationToken,
    daemon: tokio::task::JoinHandle<ServeReport>,
}

impl Serving {
    fn start(fake: &Arc<Fake>, observe_only: bool) -> Self {
        let config = Arc::new(config(&["a", "b"], NIGHTLY));
        let (shared, cancel) = (Arc::new(Shared::new(&config)), CancellationToken::new());
        let options = Options { observe_only, tick: Tick::Every(Duration::from_millis(5)), spread: Duration::ZERO };
        let daemon = Daemon::new(config, fake.clone(), cancel.clone(), shared.clone(), options);
        let daemon = tokio::spawn(async move {
            let (ticks, ticking) = mpsc::channel(1);
            let clock = start_clock(options.tick, ticks).await;
            let report = daemon.run(ticking).await;
            clock.stop().await;
            report
        });
        Self { fake: fake.clone(), shared, cancel, daemon }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Observed, &Fake) -> bool) {
        let began = Instant::now();
        while !holds(&self.shared.get(), &self.fake) {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.fake.done());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// For as long as many looks take.
    async fn a_while(&self) {
        let alerts = self.fake.alerts.load(Ordering::SeqCst);
        self.until("looks", |_, fake| fake.alerts.load(Ordering::SeqCst) > alerts + 5).await;
    }

    async fn stop(self) -> ServeReport {
        self.cancel.cancel();
        self.daemon.await.unwrap()
    }
}

const ALL: [&str; 3] = ["backup 1", "verify restore", "prune"];

#[tokio::test]
async fn a_run_is_a_backup_its_verification_and_its_retention_once() {
    let fake = Fake::new("2027-06-10T15:00:00Z");
    let serving = Serving::start(&fake, false);
    serving.until("all of it", |_, fake| fake.done().len() >= 3).await;
    serving.a_while().await;
    assert_eq!(fake.done(), ALL);
    // The next night.
    *fake.now.lock().unwrap() = time("2027-06-11T01:00:00Z");
    serving.until("the next night", |_, fake| fake.done().len() >= 6).await;
    serving.a_while().await;
    assert_eq!(fake.done(), [ALL, ALL].concat());
    serving.until("the size", |observed, _| observed.bytes == Some(4711)).await;
    let report = serving.stop().await;
    assert_eq!(report, ServeReport { backups: 2, verifications: 2, prunes: 2, failures: 0 });
    // Another process: from the repository it knows what was done. What retention did leaves no record, and does no harm twice.
    let serving = Serving::start(&fake, false);
    serving.a_while().await;
    assert_eq!(fake.done(), [&ALL[..], &ALL[..], &["prune"]].concat());
    assert_eq!(serving.stop().await.backups, 0);
}

#[tokio::test]
async fn a_look_that_is_older_than_what_ended_begins_nothing() {
    let fake = Fake::new("2027-06-10T15:00:00Z");
    fake.slow_looks.store(true, Ordering::SeqCst);
    let serving = Serving::start(&fake, false);
    serving.until("all of it", |_, fake| fake.done().len() >= 3).await;
    serving.a_while().await;
    assert_eq!(fake.done(), ALL);
    serving.stop().await;
}

#[tokio::test]
async fn with_observe_only_nothing_is_run() {
    let fake = Fake::new("2027-06-10T15:00:00Z");
    let serving = Serving::start(&fake, true);
    serving.a_while().await;
    let known = serving.shared.get().known.unwrap();
    assert!(known.plan.is_none());
    assert_eq!(known.facts.len(), 2);
    assert_eq!(serving.stop().await, ServeReport::default());
    assert_eq!(fake.done(), [""; 0]);
}

#[tokio::test]
async fn a_panic_is_a_failure_that_is_tried_again() {
    let fake = Fake::new("2027-06-10T15:00:00Z");
    fake.panics.store(true, Ordering::SeqCst);
    let serving = Serving::start(&fake, false);
    serving.until("the panic", |_, fake| !fake.panics.load(Ordering::SeqCst)).await;
    serving.a_while().await;
    assert_eq!(fake.done(), [""; 0], "it is not tried again at once");
    *fake.now.lock().unwrap() = time("2027-06-10T15:15:00Z");
    serving.until("another try", |_, fake| fake.done().len() >= 3).await;
    assert_eq!(fake.done(), ["backup 2", "verify restore", "prune"]);
    assert_eq!(serving.stop().await.failures, 1);
}

#[tokio::test]
async fn a_store_that_is_away_is_asked_again_and_what_was_known_stays() {
    let fake = Fake::new("2027-06-10T15:00:00Z");
    fake.is_down.store(true, Ordering::SeqCst);
    let serving = Serving::start(&fake, false);
    serving.until("the failure", |observed, _| observed.problem.is_some()).await;
    let unready = serving.shared.get().unready().unwrap();
    assert!(unready.contains("not read yet") && unready.contains("made up"), "{unready}");
    assert!(text(&serving.shared.get(), Exposition::Prometheus).contains("altlas_backup_repository_readable 0"));

    fake.is_down.store(false, Ordering::SeqCst);
    serving.until("all of it", |_, fake| fake.done().len() >= 3).await;
    serving.a_while().await;
    assert_eq!(serving.shared.get().unready(), None);
    let of_sources = |text: String| -> Vec<String> {
        let mut lines: Vec<String> = text.lines().filter(|line| line.contains("source=")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = text(&serving.shared.get(), Exposition::Prometheus);
    assert!(before.contains("altlas_backup_repository_readable 1"));

    fake.is_down.store(true, Ordering::SeqCst);
    // A night comes while nobody can tell what was done in it.
    *fake.now.lock().unwrap() = time("2027-06-11T01:00:00Z");
    serving.until("the failure", |observed, _| observed.problem.is_some()).await;
    let after = text(&serving.shared.get(), Exposition::Prometheus);
    assert!(after.contains("altlas_backup_repository_readable 0"));
    assert_eq!(of_sources(after), of_sources(before), "facts stay facts");
    assert_eq!(fake.done(), ALL, "nothing is begun on the word of an old look");
    assert_eq!(serving.shared.get().hangs(), None, "the daemon itself is well");
    serving.until("somebody to be told", |observed, _| observed.undelivered == 1).await;

    fake.is_down.store(false, Ordering::SeqCst);
    serving.until("the night", |_, fake| fake.done().len() >= 6).await;
    serving.stop().await;
}

#[tokio::test]
async fn told_to_stop_it_waits_for_what_runs() {
    let fake = Fake::new("2027-06-10T15:00:00Z");
    fake.hangs.store(true, Ordering::SeqCst);
    let serving = Serving::start(&fake, false);
    serving.until("a backup", |observed, fake| fake.done() == ["hangs"] && observed.doing.is_some()).await;
    let page = status::page(&serving.shared.get());
    assert!(
        page.contains("now, for 0.") && page.contains("the backup of schedule `nightly` for 2027-06-10T01:00:00Z"),
        "{page}"
    );
    // Ticks go on meanwhile.
    serving.a_while().await;
    assert_eq!(serving.stop().await, ServeReport::default(), "stopped is not failed");
    assert_eq!(fake.done(), ["hangs", "stopped"]);
}

#[test]
fn facts_follow_from_the_records() {
    use SnapshotState::{Complete, Empty, Failed, Partial};
    let config = config(&["a", "b", "c"], NIGHTLY);
    let now = time("2027-06-10T15:00:00Z");
    let at = |day: i64| time("2027-06-01T01:00:00Z") + (24 * (day - 1)).hours();
    let of = |records: &Records| facts(&config, &records.history(now), now, &mut Intervals::default());
    let mut records = Records::new();
    let never = of(&records);
    assert_eq!(never.len(), 3);
    for facts in &never {
        assert_eq!((facts.last_success, facts.last_verified, facts.last_attempt), (None, None, None));
        assert_eq!(
            (facts.verdict, facts.verify_seconds, facts.sizes, facts.uncovered),
            ("unverified", None, None, None)
        );
        assert_eq!(facts.expected_interval, Some(Duration::from_secs(24 * 3600)));
    }

    let first = records.head(at(1), at(1), &[("a", Complete), ("b", Empty)]);
    records.evidence(&first, Level::Restore, Verdict::Verified, at(2));
    let second = records.head(at(3), at(3), &[("a", Complete), ("b", Failed)]);
    records.attempt(at(4), at(4), &["b"], "source");
    let [a, b, c] = &of(&records)[..] else { panic!() };
    assert_eq!((a.last_success, a.last_verified, a.last_attempt), (Some(at(3)), Some(at(1)), Some(at(3))));
    assert_eq!((b.last_success, b.last_verified, b.last_attempt), (Some(at(1)), Some(at(1)), Some(at(4))));
    assert_eq!(c.last_attempt, None);
    // Of the newest that was looked at.
    assert_eq!((a.verdict, a.verify_seconds, a.uncovered), ("verified", Some(60.0), Some(2)));
    assert_eq!(a.sizes.unwrap().stored, 200);

    // A failure stays until a later snapshot is looked at as deep; what was proved before is still the last that was.
    records.evidence(&second, Level::Content, Verdict::Failed, at(5));
    let third = records.head(at(6), at(6), &[("a", Partial), ("b", Complete)]);
    assert_eq!(of(&records)[0].verdict, "failed");
    assert_eq!((of(&records)[0].last_success, of(&records)[0].last_verified), (Some(at(3)), Some(at(1))));
    records.evidence(&third, Level::Presence, Verdict::Sound, at(7));
    assert_eq!(of(&records)[0].verdict, "failed", "a look that is less deep says nothing");
    records.evidence(&third, Level::Content, Verdict::Sound, at(7));
    assert_eq!(of(&records)[0].verdict, "unverified");
    records.evidence(&third, Level::Restore, Verdict::Inconclusive, at(8));
    assert_eq!((of(&records)[0].verdict, of(&records)[1].last_verified), ("inconclusive", Some(at(1))));
    records.evidence(&third, Level::Restore, Verdict::Verified, at(9));
    let [a, b, _] = &of(&records)[..] else { panic!() };
    assert_eq!(
        (a.verdict, a.last_verified, a.last_success),
        ("verified", Some(at(1)), Some(at(3))),
        "a part is no proof of all"
    );
    assert_eq!((b.last_verified, b.last_success), (Some(at(6)), Some(at(6))));

    // What is dated into the future silences nothing.
    let before = of(&records);
    let ahead = records.head(now + 6.minutes(), now + 7.minutes(), &[("a", Complete), ("b", Complete)]);
    records.evidence(&ahead, Level::Restore, Verdict::Verified, now);
    records.attempt(now + 6.minutes(), now + 6.minutes(), &["a"], "source");
    assert_eq!(of(&records), before);
    // If it is bad, that is told.
    records.evidence(&ahead, Level::Restore, Verdict::Failed, now + 1.minutes());
    assert_eq!(of(&records)[0].verdict, "failed");
    // But for clocks that are a little apart.
    records.head(now + 4.minutes(), now + 5.minutes(), &[("a", Complete), ("b", Complete)]);
    assert_eq!(of(&records)[0].last_success, Some(now + 4.minutes()));
}

#[test]
fn metrics_have_their_names() {
    let config = config(&["a", "b"], NIGHTLY);
    let shared = Shared::new(&config);
    let first = text(&shared.get(), Exposition::OpenMetrics);
    assert!(!first.contains("source="), "nothing is known yet: {first}");
    let mut records = Records::new();
    let (began, now) = (time("2027-06-10T01:00:00.25Z"), time("2027-06-10T15:00:00Z"));
    let id = records.complete(began, began, &["a"]);
    records.evidence(&id, Level::Restore, Verdict::Verified, began);
    let facts = facts(&config, &records.history(now), now, &mut Intervals::default());
    shared.change(|observed| {
        observed.known = Some(Known { at: Instant::now(), now, facts, plan: None });
        observed.bytes = Some(5_000_000_000);
    });
    let lines = |text: &str| {
        let mut lines: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(|line| line.replace("altlas_backup_", "")).collect();
        lines.sort();
        lines
    };
    let version = env!("CARGO_PKG_VERSION");
    let want = [
        "alerts_undelivered 0",
        &format!("build_info{{version=\"{version}\"}} 1"),
        "expected_interval_seconds{source=\"a\"} 86400",
        "expected_interval_seconds{source=\"b\"} 86400",
        "expected_proof_interval_seconds{source=\"a\"} 86400",
        "expected_proof_interval_seconds{source=\"b\"} 86400",
        "last_attempt_timestamp_seconds{source=\"a\"} 1812589200.25",
        "last_attempt_timestamp_seconds{source=\"b\"} 0",
        "last_success_timestamp_seconds{source=\"a\"} 1812589200.25",
        "last_success_timestamp_seconds{source=\"b\"} 0",
        "last_verified_timestamp_seconds{source=\"a\"} 1812589200.25",
        "last_verified_timestamp_seconds{source=\"b\"} 0",
        "repository_bytes 5000000000",
        "repository_last_read_timestamp_seconds 1812639600",
        "repository_readable 1",
        "snapshot_bytes{source=\"a\",what=\"raw\"} 300",
        "snapshot_bytes{source=\"a\",what=\"stored\"} 200",
        "snapshot_bytes{source=\"a\",what=\"uploaded\"} 100",
        "uncovered_objects{source=\"a\"} 2",
        "verification_verdict{source=\"a\",verdict=\"failed\"} 0",
        "verification_verdict{source=\"a\",verdict=\"inconclusive\"} 0",
        "verification_verdict{source=\"a\",verdict=\"unverified\"} 0",
        "verification_verdict{source=\"a\",verdict=\"verified\"} 1",
        "verification_verdict{source=\"b\",verdict=\"failed\"} 0",
        "verification_verdict{source=\"b\",verdict=\"inconclusive\"} 0",
        "verification_verdict{source=\"b\",verdict=\"unverified\"} 1",
        "verification_verdict{source=\"b\",verdict=\"verified\"} 0",
        "verify_duration_seconds{source=\"a\"} 60",
    ];
    let whole = |line: &String| line.strip_suffix(".0").unwrap_or(line).to_owned();
    for exposition in [Exposition::OpenMetrics, Exposition::Prometheus] {
        let text = text(&shared.get(), exposition);
        assert_eq!(lines(&text).iter().map(whole).collect::<Vec<_>>(), want, "{exposition:?}");
        assert_eq!(text.ends_with("# EOF\n"), exposition == Exposition::OpenMetrics);
        for line in text.lines().filter(|line| line.starts_with("# HELP")) {
            assert!(line.split_whitespace().count() > 4, "{line}");
        }
    }
}
