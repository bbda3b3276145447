//! A year of nights, with everything that happens to clocks and to processes in it.
//!
//! Processes that do what the planner tells them, and a store whose clock is set. What is counted in the end comes from a calendar of
//! our own: which nights there were, and when 02:30 was in each.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use jiff::{SignedDuration, Timestamp, ToSpan, civil};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::{Due, Outcome, Own, Plan, Task, Tried, plan},
    records::{Records, config, time},
};
use crate::{
    config::Config,
    repository::{BackupId, Head, History, Level, SnapshotState, Verdict, retention},
};

/// Both changes of a clock, and a leap day: a year from here has them.
const FROM: &str = "2027-07-01T12:00:00Z";
const DAYS: i64 = 366;
const MINUTE: SignedDuration = SignedDuration::from_mins(1);
/// Minutes between two looks: often at night, when everything happens, and now and then by day.
const STEPS: [i64; 2] = [3, 15];

/// What happens to the world.
#[derive(Default)]
struct Story {
    /// When each process is not there.
    down: [Vec<Range<Timestamp>>; 2],
    /// How far off the store's clock is, and when.
    clock: Vec<(Range<Timestamp>, SignedDuration)>,
    /// How many backups in a hundred fail, and how many are partial.
    failing: u32,
    partial: u32,
    /// How long a backup takes.
    backup: SignedDuration,
}

/// A backup that was begun.
#[derive(Debug)]
struct Begun {
    run: Timestamp,
    /// Did it make a whole one?
    whole: bool,
    /// Did it end, be it without success?
    ended: bool,
}

#[derive(Default)]
struct Process {
    own: Own,
    /// What it does, and until when.
    doing: Option<(Timestamp, Change)>,
}

/// What is in the repository once it is done.
enum Change {
    Backup { began: Timestamp, due: Due, whole: bool },
    Attempt { began: Timestamp, due: Due },
    Verified { due: Due },
    Pruned { due: Due },
}

struct World<'a> {
    config: Config,
    story: &'a Story,
    records: Records,
    history: Option<Arc<History>>,
    processes: [Process; 2],
    random: StdRng,
    begun: Vec<Begun>,
    missed: BTreeMap<Timestamp, usize>,
    verified: usize,
}

fn span(from: &str, until: &str) -> Range<Timestamp> {
    time(from)..time(until)
}

impl<'a> World<'a> {
    fn new(story: &'a Story, seed: u64) -> Self {
        let config = config(
            &["a", "b"],
            "[[schedule]]\nname = \"nightly\"\ncron = \"30 2 * * *\"\ntimezone = \"Europe/Berlin\"\n[retention]\nlast = 3\ndaily = 7\nweekly = 4\nmonthly = 12\n",
        );
        Self {
            config,
            story,
            records: Records::new(),
            history: None,
            processes: Default::default(),
            random: StdRng::seed_from_u64(seed),
            begun: Vec::new(),
            missed: BTreeMap::new(),
            verified: 0,
        }
    }

    /// What the store's clock shows.
    fn store(&self, at: Timestamp) -> Timestamp {
        let off = self.story.clock.iter().find(|(span, _)| span.contains(&at));
        at + off.map_or(SignedDuration::ZERO, |(_, off)| *off)
    }

    fn plan(&mut self, process: usize, now: Timestamp) -> Plan {
        let history = self.history.get_or_insert_with(|| Arc::new(self.records.history(now))).clone();
        plan(&self.config, &self.records.repository, &history, now, &self.processes[process].own)
    }

    fn live(&mut self) {
        let from = time(FROM);
        let mut minute = 0;
        while minute < DAYS * 24 * 60 {
            for process in 0..2 {
                // Never at the very same moment.
                let at = from + minute.minutes() + (process as i64 * 7).seconds();
                self.step(process, at);
            }
            // From midnight to four.
            let is_night = (12 * 60..16 * 60).contains(&(minute % (24 * 60)));
            minute += if is_night { STEPS[0] } else { STEPS[1] };
        }
    }

    fn step(&mut self, process: usize, at: Timestamp) {
        let now = self.store(at);
        if self.story.down[process].iter().any(|span| span.contains(&at)) {
            // What it was doing leaves nothing that counts.
            if let Some((_, Change::Backup { due, .. } | Change::Attempt { due, .. })) =
                self.processes[process].doing.take()
            {
                self.begun.push(Begun { run: due.run, whole: false, ended: false });
            }
            self.processes[process].own = Own::default();
            return;
        }
        match self.processes[process].doing.take() {
            Some((until, change)) if until <= at => self.done(process, now, change),
            Some(doing) => {
                self.processes[process].doing = Some(doing);
                return;
            }
            None => {}
        }
        self.processes[process].own.since.get_or_insert(now);
        let plan = self.plan(process, now);
        assert_eq!(plan.schedules.len(), 1);
        if let Some(due) = plan.due.into_iter().next() {
            let (takes, change) = self.begin(now, due);
            self.processes[process].doing = Some((at + takes, change));
        }
    }

    fn begin(&mut self, began: Timestamp, due: Due) -> (SignedDuration, Change) {
        match &due.task {
            Task::Backup { sources, attempt, missed } => {
                assert_eq!(*sources, ["a", "b"]);
                assert!((1..=4).contains(attempt), "{due:?}");
                missed.iter().for_each(|run| *self.missed.entry(*run).or_default() += 1);
                let dice = self.random.random_range(0..100);
                if dice < self.story.failing {
                    (MINUTE * 4, Change::Attempt { began, due })
                } else {
                    let whole = dice >= self.story.failing + self.story.partial;
                    (self.story.backup, Change::Backup { began, due, whole })
                }
            }
            Task::Verify { level, .. } => {
                assert_eq!(*level, Level::Restore);
                (MINUTE * 40, Change::Verified { due })
            }
            Task::Prune => (MINUTE * 2, Change::Pruned { due }),
        }
    }

    fn done(&mut self, process: usize, now: Timestamp, change: Change) {
        use SnapshotState::{Complete, Failed};
        self.history = None;
        match change {
            Change::Backup { began, due, whole } => {
                let b = if whole { Complete } else { Failed };
                // A clock that was set back meanwhile.
                let id = self.records.head(began, now.max(began), &[("a", Complete), ("b", b)]);
                self.processes[process].own.made.push(id);
                self.begun.push(Begun { run: due.run, whole, ended: true });
            }
            Change::Attempt { began, due } => {
                self.records.attempt(began, now.max(began), &["a", "b"], "source");
                self.begun.push(Begun { run: due.run, whole: false, ended: true });
            }
            Change::Verified { due: Due { task: Task::Verify { backup, level }, .. } } => {
                self.records.evidence(&backup, level, Verdict::Verified, now);
                self.verified += 1;
            }
            Change::Verified { .. } => {}
            Change::Pruned { due } => {
                let tried = Tried { key: due.key(), ended: now, outcome: Outcome::Done };
                self.processes[process].own.tried.push(tried);
                self.prune(now);
            }
        }
    }

    /// What retention lets expire goes, and takes no source's last verified snapshot with it.
    fn prune(&mut self, now: Timestamp) {
        let history = self.records.history(now);
        let pruned = retention::plan(&history, self.config.retention.as_ref().unwrap(), now);
        assert_eq!(pruned.too_many, []);
        let expired: Vec<BackupId> = pruned.expired().map(|backup| backup.backup.clone()).collect();
        for source in ["a", "b"] {
            let proves = |head: &&Head| head.source(source).is_some_and(|of| history.verdicts.proves(head, of));
            let last_verified = history.catalog.heads().find(proves).map(|head| &head.backup);
            assert!(last_verified.is_none_or(|id| !expired.contains(id)), "{last_verified:?} of {source}");
        }
        self.records.heads.retain(|head| !expired.contains(&head.backup));
        let heads = &self.records.heads;
        self.records.evidence.retain(|evidence| heads.iter().any(|head| head.backup == evidence.backup));
        let old = now - (24 * 10).hours();
        self.records.attempts.retain(|attempt| attempt.started > old);
    }

    fn of(&self, run: Timestamp) -> Vec<&Begun> {
        self.begun.iter().filter(|begun| begun.run == run).collect()
    }
}

/// The nights of the year: when 02:30 was in Berlin, by the dates on which its clock is set.
fn nights() -> Vec<Timestamp> {
    let summer_ends = civil::date(2027, 10, 31);
    let summer_begins = civil::date(2028, 3, 26);
    let night = |date: civil::Date| {
        let utc = match date {
            // Twice: the first.
            date if date == summer_ends => "00:30",
            // Never: an hour later.
            date if date == summer_begins => "01:30",
            date if date < summer_ends || date > summer_begins => "00:30",
            _ => "01:30",
        };
        time(&format!("{date}T{utc}:00Z"))
    };
    // The last one's backup is done when the year ends.
    civil::date(2027, 7, 2).series(1.day()).take(DAYS as usize).map(night).collect()
}

#[test]
fn the_calendar_has_what_is_to_be_survived() {
    let nights = nights();
    assert_eq!(nights.len(), 366);
    assert!(nights.contains(&time("2028-02-29T01:30:00Z")), "a leap day");
    let apart: Vec<i64> = nights.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_hours()).collect();
    assert_eq!(apart.iter().filter(|hours| **hours == 25).count(), 1, "{apart:?}");
    assert_eq!(apart.iter().filter(|hours| **hours == 23).count(), 1, "{apart:?}");
}

fn story() -> Story {
    // The second process is not there.
    Story {
        down: [vec![], vec![span("2027-01-01T00:00:00Z", "2030-01-01T00:00:00Z")]],
        backup: MINUTE * 20,
        ..Story::default()
    }
}

#[test]
fn every_night_of_a_quiet_year_has_one_backup() {
    let story = story();
    let mut world = World::new(&story, 1);
    world.live();
    for night in nights() {
        assert_eq!(world.of(night).len(), 1, "{night}");
    }
    assert!(world.missed.is_empty());
    // The first one is made up for at once: it was before the year.
    assert_eq!(world.begun.len(), 367);
    assert_eq!(world.verified, 367);
    // The last seven days, four weeks (which begin on Monday) and twelve months, of each the newest.
    let nights = nights();
    let berlin = jiff::tz::TimeZone::get("Europe/Berlin").unwrap();
    let day = |night: &Timestamp| berlin.to_datetime(*night).date();
    let mut kept: Vec<civil::Date> = world.records.heads.iter().map(|head| day(&head.started)).collect();
    kept.sort();
    let mut newest_first: Vec<civil::Date> = nights.iter().map(day).collect();
    newest_first.reverse();
    let monday = |day: &civil::Date| *day - i64::from(day.weekday().to_monday_zero_offset()).days();
    let newest_of = |group: &dyn Fn(&civil::Date) -> civil::Date, most: usize| -> Vec<civil::Date> {
        let mut groups = Vec::new();
        let is_first = |day: &&civil::Date| {
            let is_new = !groups.contains(&group(day));
            groups.push(group(day));
            is_new
        };
        newest_first.iter().filter(is_first).take(most).copied().collect()
    };
    let mut want = newest_of(&|day| *day, 7);
    want.extend(newest_of(&monday, 4));
    want.extend(newest_of(&|day| day.first_of_month(), 12));
    want.sort();
    want.dedup();
    assert_eq!(kept, want);
}

#[test]
fn every_night_of_a_bad_year_is_done_once_or_told_as_missed() {
    let mut story = story();
    story.down[0] = vec![
        // In the middle of a backup, for a moment.
        span("2027-07-10T00:40:00Z", "2027-07-10T00:50:00Z"),
        // In the middle of a verification.
        span("2027-07-12T01:10:00Z", "2027-07-12T01:15:00Z"),
        // Over one run, over several, over both changes of the clock, over the leap day.
        span("2027-08-01T00:00:00Z", "2027-08-01T09:00:00Z"),
        span("2027-08-20T00:00:00Z", "2027-08-27T09:00:00Z"),
        span("2027-10-30T22:00:00Z", "2027-10-31T02:00:00Z"),
        span("2028-02-28T20:00:00Z", "2028-03-02T20:00:00Z"),
        span("2028-03-26T00:30:00Z", "2028-03-26T01:40:00Z"),
    ];
    let mut world = World::new(&story, 2);
    world.live();
    let mut told = Vec::new();
    for night in nights() {
        let whole = world.of(night).iter().filter(|begun| begun.whole).count();
        let missed = world.missed.get(&night).copied().unwrap_or_default();
        assert_eq!(whole + missed, 1, "{night}: {whole} backups, told {missed} times as missed");
        told.extend((missed > 0).then(|| night.to_string()));
    }
    // Of each time that it was away, the last run is made up for.
    assert_eq!(
        told,
        [
            "2027-08-20T00:30:00Z",
            "2027-08-21T00:30:00Z",
            "2027-08-22T00:30:00Z",
            "2027-08-23T00:30:00Z",
            "2027-08-24T00:30:00Z",
            "2027-08-25T00:30:00Z",
            "2027-08-26T00:30:00Z",
            "2028-02-29T01:30:00Z",
            "2028-03-01T01:30:00Z",
        ]
    );
    assert_eq!(world.of(time("2027-07-10T00:30:00Z")).len(), 2, "one that was killed, and one that was not");
    let backups = world.begun.iter().filter(|begun| begun.whole).count();
    assert_eq!(world.verified, backups, "each is verified once");
}

#[test]
fn what_fails_is_tried_four_times_and_never_after_it_went_well() {
    let mut story = story();
    (story.failing, story.partial) = (30, 20);
    let mut world = World::new(&story, 3);
    world.live();
    let mut given_up = 0;
    for night in nights() {
        let begun = world.of(night);
        let whole = begun.iter().filter(|begun| begun.whole).count();
        assert!((1..=4).contains(&begun.len()), "{night}: {begun:?}");
        assert!(begun.iter().all(|begun| begun.ended));
        match whole {
            0 => {
                assert_eq!(begun.len(), 4, "{night}: {begun:?}");
                given_up += 1;
            }
            _ => {
                assert!(begun.iter().rposition(|begun| begun.whole) == Some(begun.len() - 1) && whole == 1, "{begun:?}")
            }
        }
        assert_eq!(world.missed.get(&night), None, "what was tried was not missed");
    }
    // One in sixteen.
    assert!((10..40).contains(&given_up), "{given_up}");
}

#[test]
fn a_clock_that_is_set_repeats_nothing_and_silences_nothing() {
    let mut story = story();
    story.clock = vec![
        // Set back after the run, so that its time comes again.
        (span("2027-09-01T01:00:00Z", "2027-09-01T20:00:00Z"), SignedDuration::from_hours(-3)),
        // Set back in the middle of the backup.
        (span("2027-09-10T00:40:00Z", "2027-09-10T20:00:00Z"), SignedDuration::from_hours(-2)),
        // Back by three days, for a week.
        (span("2027-09-20T12:00:00Z", "2027-09-27T12:00:00Z"), SignedDuration::from_hours(-72)),
        // Ahead by two days, for an hour; ahead by a year and a half, for ten minutes.
        (span("2027-11-10T12:00:00Z", "2027-11-10T13:00:00Z"), SignedDuration::from_hours(48)),
        (span("2028-01-10T12:00:00Z", "2028-01-10T12:10:00Z"), SignedDuration::from_hours(24 * 550)),
    ];
    let mut world = World::new(&story, 4);
    world.live();
    for night in nights() {
        let begun = world.of(night);
        let missed = world.missed.get(&night).copied().unwrap_or_default();
        assert!(begun.len() <= 1, "{night}: {begun:?}");
        assert!(begun.len() + missed >= 1, "{night} has neither a backup nor a word");
        let is_odd = ["2027-09-2", "2027-11-1"].iter().any(|odd| night.to_string().starts_with(odd));
        // A clock that runs ahead says that runs were missed which then have their time after all.
        let is_after = night > time("2028-01-10T00:00:00Z");
        assert!(is_odd || is_after || begun.len() == 1 && missed == 0, "{night}: {begun:?}, {missed}");
        assert!(!is_after || begun.len() == 1, "{night}: nothing is silenced by a backup from the future");
    }
}

#[test]
fn two_processes_share_the_nights() {
    let story = Story {
        down: [
            vec![
                // Gone for good in spring, and in the middle of a backup before.
                span("2027-10-10T00:40:00Z", "2027-10-10T00:46:00Z"),
                span("2028-04-01T12:00:00Z", "2030-01-01T00:00:00Z"),
            ],
            // Comes a little later, and is away for some nights.
            vec![
                span("2027-01-01T00:00:00Z", "2027-07-20T12:00:00Z"),
                span("2027-12-01T00:00:00Z", "2027-12-09T12:00:00Z"),
            ],
        ],
        backup: MINUTE * 20,
        ..Story::default()
    };
    let mut world = World::new(&story, 5);
    world.live();
    let mut twice = Vec::new();
    for night in nights() {
        let whole = world.of(night).iter().filter(|begun| begun.whole).count();
        assert!((1..=2).contains(&whole), "{night}: {whole} backups");
        twice.extend((whole == 2).then(|| night.to_string()));
    }
    // The first time that both are there: neither has seen the other at work.
    assert_eq!(twice, ["2027-07-21T00:30:00Z", "2027-12-10T01:30:00Z"]);
    assert!(world.missed.is_empty(), "{:?}", world.missed);
    println!("{} backups, {} verifications", world.begun.len(), world.verified);
}
