//! Tables of cases for the planner.
#![allow(clippy::unwrap_used)]

pub(crate) mod records;
mod times;
mod year;

use std::time::Duration;

use jiff::ToSpan;
use proptest::prelude::*;

use self::records::{Records, config, time};
use super::*;
use crate::{
    config::Config,
    repository::{BackupId, Level, SnapshotState, Verdict},
};

const NIGHTLY: &str = "[[schedule]]\nname = \"nightly\"\ncron = \"0 1 * * *\"\n[retention]\nlast = 3\n";

fn named(text: &str) -> SourceName {
    SourceName::new(text).unwrap()
}

fn nightly() -> Config {
    config(&["a", "b"], NIGHTLY)
}

/// What is due, in words; backups by their place among those that were made, from 0 on.
fn due_with(config: &Config, records: &Records, now: &str, tried: &[Tried]) -> Vec<String> {
    let now = time(now);
    let place = |id: &BackupId| records.heads.iter().position(|head| head.backup == *id).unwrap();
    let told = |due: Due| match &due.task {
        Task::Backup { sources, attempt, missed } => format!(
            "{} {}: backup of {}, try {attempt}, {} missed",
            due.schedule,
            due.run,
            sources.join("+"),
            missed.len()
        ),
        Task::Verify { backup, level } => format!("{}: verify {} at {level}", due.schedule, place(backup)),
        Task::Prune => format!("{}: prune", due.schedule),
    };
    plan(config, &records.repository, &records.history(now), now, &Own { tried: tried.to_vec(), ..Own::default() })
        .due
        .into_iter()
        .map(told)
        .collect()
}

fn due(config: &Config, records: &Records, now: &str) -> Vec<String> {
    due_with(config, records, now, &[])
}

fn state(config: &Config, records: &Records, now: &str) -> State {
    let now = time(now);
    plan(config, &records.repository, &records.history(now), now, &Own::default()).schedules[0].state
}

const FIRST: &str = "nightly 2027-06-10T01:00:00Z: backup of a+b, try 1, 0 missed";

#[test]
fn a_new_repository_gets_its_first_backup_at_once() {
    assert_eq!(due(&nightly(), &Records::new(), "2027-06-10T15:00:00Z"), [FIRST]);
    // Also where nothing but its failures is known, and where a backup was of less.
    let mut records = Records::new();
    records.complete(time("2027-06-10T01:00:01Z"), time("2027-06-10T01:10:00Z"), &["a"]);
    records.attempt(time("2027-06-10T01:00:01Z"), time("2027-06-10T01:10:00Z"), &["b"], "source");
    assert_eq!(due(&nightly(), &records, "2027-06-10T15:00:00Z"), [FIRST]);
    assert_eq!(due(&config(&["a"], ""), &records, "2027-06-10T15:00:00Z"), [""; 0], "without a schedule nothing is");
}

#[test]
fn a_run_is_followed_by_its_verification_and_its_retention() {
    let (config, mut records) = (nightly(), Records::new());
    let ago = records.complete(time("2027-06-09T01:00:01Z"), time("2027-06-09T01:10:00Z"), &["a", "b"]);
    records.evidence(&ago, Level::Restore, Verdict::Verified, time("2027-06-09T01:30:00Z"));
    assert_eq!(due(&config, &records, "2027-06-10T00:59:59Z"), ["nightly: prune"]);
    assert_eq!(due(&config, &records, "2027-06-10T01:00:00Z"), [FIRST]);

    let id = records.complete(time("2027-06-10T01:00:02Z"), time("2027-06-10T01:10:00Z"), &["a", "b"]);
    let now = "2027-06-10T02:00:00Z";
    assert_eq!(state(&config, &records, now), State::Done);
    assert_eq!(due(&config, &records, now), ["nightly: verify 1 at restore"]);
    // Less than what the schedule asks for is no verification of it.
    records.evidence(&id, Level::Content, Verdict::Sound, time("2027-06-10T01:20:00Z"));
    assert_eq!(due(&config, &records, now), ["nightly: verify 1 at restore"]);

    for (verdict, then) in [
        (Verdict::Verified, &["nightly: prune"][..]),
        (Verdict::Inconclusive, &["nightly: prune"]),
        // What is bad may be all that a person has to look at.
        (Verdict::Failed, &[]),
    ] {
        let mut records = records.clone();
        records.evidence(&id, Level::Restore, verdict, time("2027-06-10T01:30:00Z"));
        assert_eq!(due(&config, &records, now), then, "{verdict}");
        let key = TaskKey::Prune(named("nightly"), time("2027-06-10T01:00:00Z"));
        let done = Tried { key, ended: time(now), outcome: Outcome::Done };
        assert_eq!(due_with(&config, &records, now, &[done]), [""; 0]);
    }
}

#[test]
fn what_is_not_asked_for_is_not_due() {
    let mut records = Records::new();
    records.complete(time("2027-06-10T01:00:01Z"), time("2027-06-10T01:10:00Z"), &["a", "b"]);
    let lines = |more: &str, rest: &str| format!("[[schedule]]\nname = \"n\"\ncron = \"0 1 * * *\"\n{more}\n{rest}");
    for (more, rest, want) in [
        ("verify = \"none\"", "[retention]\nlast = 3", &["n: prune"][..]),
        ("verify = \"none\"\nprune = false", "[retention]\nlast = 3", &[]),
        ("verify = \"none\"", "", &[]),
        ("verify = \"presence\"", "[retention]\nlast = 3", &["n: verify 0 at presence"]),
    ] {
        assert_eq!(due(&config(&["a", "b"], &lines(more, rest)), &records, "2027-06-10T02:00:00Z"), want, "{more}");
    }
}

#[test]
fn missed_runs_are_caught_up_once_and_told() {
    let (config, mut records) = (nightly(), Records::new());
    records.complete(time("2027-06-05T01:00:01Z"), time("2027-06-05T01:10:00Z"), &["a", "b"]);
    let now = time("2027-06-10T15:00:00Z");
    let plan = plan(&config, &records.repository, &records.history(now), now, &Own::default());
    let Task::Backup { missed, .. } = &plan.due[0].task else { panic!("{plan:?}") };
    let days = missed.iter().map(|run| run.strftime("%d %H:%M").to_string()).collect::<Vec<_>>();
    assert_eq!(days, ["06 01:00", "07 01:00", "08 01:00", "09 01:00"]);
    // One that was tried was not missed.
    records.attempt(time("2027-06-08T01:00:01Z"), time("2027-06-08T01:10:00Z"), &["a", "b"], "source");
    let one = ["nightly 2027-06-10T01:00:00Z: backup of a+b, try 1, 1 missed"];
    assert_eq!(due(&config, &records, "2027-06-10T15:00:00Z"), one);
    // The list is bounded.
    let often = config_of("* * * * *", "");
    records.attempts.clear();
    let missed = format!("s 2027-06-10T15:00:00Z: backup of a+b, try 1, {MOST_MISSED} missed");
    assert_eq!(due(&often, &records, "2027-06-10T15:00:00Z"), [missed]);
}

fn config_of(cron: &str, more: &str) -> Config {
    config(&["a", "b"], &format!("[[schedule]]\nname = \"s\"\ncron = \"{cron}\"\n{more}\n"))
}

#[test]
fn what_failed_is_tried_again_three_times() {
    let (config, mut records) = (nightly(), Records::new());
    records.complete(time("2027-06-09T01:00:00Z"), time("2027-06-09T01:10:00Z"), &["a", "b"]);
    let id = records.heads[0].backup.clone();
    records.evidence(&id, Level::Restore, Verdict::Failed, time("2027-06-09T01:30:00Z"));
    let mut began = time("2027-06-10T01:00:02Z");
    for (tries, wait) in [(1, 15), (2, 30), (3, 60)] {
        let ended = began + 4.minutes();
        records.attempt(began, ended, &["b", "a"], "source");
        let again = ended + wait.minutes();
        let before = (again - 1.second()).to_string();
        assert_eq!(state(&config, &records, &before), State::Retry(again), "after try {tries}");
        assert_eq!(due(&config, &records, &before), [""; 0]);
        let try_again = format!("nightly 2027-06-10T01:00:00Z: backup of a+b, try {}, 0 missed", tries + 1);
        assert_eq!(due(&config, &records, &again.to_string()), [try_again]);
        began = again;
    }
    records.attempt(began, began + 4.minutes(), &["a", "b"], "source");
    assert_eq!(state(&config, &records, "2027-06-10T23:00:00Z"), State::GivenUp);
    assert_eq!(due(&config, &records, "2027-06-10T23:00:00Z"), [""; 0]);
    let next = ["nightly 2027-06-11T01:00:00Z: backup of a+b, try 1, 0 missed"];
    assert_eq!(due(&config, &records, "2027-06-11T01:00:00Z"), next);
}

#[test]
fn a_run_that_was_told_to_stop_did_not_fail() {
    let (config, mut records) = (nightly(), Records::new());
    records.attempt(time("2027-06-10T01:00:02Z"), time("2027-06-10T01:04:00Z"), &["a", "b"], "interrupted");
    assert_eq!(due(&config, &records, "2027-06-10T01:05:00Z"), [FIRST]);
}

#[test]
fn a_partial_backup_is_verified_and_made_again() {
    use SnapshotState::{Complete, Empty, Failed, Partial};
    for bad in [Failed, Partial] {
        let (config, mut records) = (nightly(), Records::new());
        let began = time("2027-06-10T01:00:02Z");
        let first = records.head(began, began + 4.minutes(), &[("a", Complete), ("b", bad)]);
        let verify = ["nightly: verify 0 at restore"];
        assert_eq!(due(&config, &records, "2027-06-10T01:05:00Z"), verify);
        records.evidence(&first, Level::Restore, Verdict::Verified, time("2027-06-10T01:06:00Z"));
        assert_eq!(due(&config, &records, "2027-06-10T01:07:00Z"), ["nightly: prune"]);
        let again = ["nightly 2027-06-10T01:00:00Z: backup of a+b, try 2, 0 missed"];
        assert_eq!(due(&config, &records, "2027-06-10T01:19:02Z"), again);
        // Another that is no better is not verified: nothing of it is new.
        records.head(time("2027-06-10T01:20:00Z"), time("2027-06-10T01:21:00Z"), &[("a", Complete), ("b", bad)]);
        assert_eq!(due(&config, &records, "2027-06-10T01:22:00Z"), ["nightly: prune"]);
        // A whole one is.
        records.head(time("2027-06-10T01:51:00Z"), time("2027-06-10T01:52:00Z"), &[("a", Complete), ("b", Empty)]);
        assert_eq!(state(&config, &records, "2027-06-10T01:53:00Z"), State::Done);
        assert_eq!(due(&config, &records, "2027-06-10T01:53:00Z"), ["nightly: verify 2 at restore"]);
    }
}

#[test]
fn a_backup_by_whomever_counts() {
    // By a person, of more than the schedule asks for, after the run.
    let (config, mut records) = (nightly(), Records::new());
    records.complete(time("2027-06-10T01:00:00Z"), time("2027-06-10T01:10:00Z"), &["z", "b", "a"]);
    assert_eq!(state(&config, &records, "2027-06-10T02:00:00Z"), State::Done);
    // Not one that began before it, were it by a second.
    let mut records = Records::new();
    records.complete(time("2027-06-10T00:59:59Z"), time("2027-06-10T01:10:00Z"), &["a", "b"]);
    assert_eq!(due(&config, &records, "2027-06-10T02:00:00Z"), [FIRST]);
}

#[test]
fn two_schedules_share_what_fits_both() {
    let config = config(
        &["a", "b"],
        "[[schedule]]\nname = \"nightly\"\ncron = \"0 1 * * *\"\nverify = \"content\"\n\
         [[schedule]]\nname = \"weekly\"\ncron = \"0 1 * * 0\"\n\
         [[schedule]]\nname = \"hourly\"\ncron = \"30 * * * *\"\nsources = [\"a\"]\nverify = \"none\"\n",
    );
    // 2027-06-13 is a Sunday.
    let mut records = Records::new();
    let now = "2027-06-13T01:00:00Z";
    let nothing = due(&config, &records, now);
    assert_eq!(
        nothing,
        [
            "hourly 2027-06-13T00:30:00Z: backup of a, try 1, 0 missed",
            "nightly 2027-06-13T01:00:00Z: backup of a+b, try 1, 0 missed",
            "weekly 2027-06-13T01:00:00Z: backup of a+b, try 1, 0 missed",
        ]
    );
    let sunday = records.complete(time("2027-06-13T01:00:01Z"), time("2027-06-13T01:10:00Z"), &["a", "b"]);
    assert_eq!(due(&config, &records, now), ["nightly: verify 0 at content", "weekly: verify 0 at restore"]);
    // Deep enough for both.
    records.evidence(&sunday, Level::Restore, Verdict::Verified, time("2027-06-13T01:20:00Z"));
    assert_eq!(due(&config, &records, now), [""; 0]);
    // What follows in the week is the nightly one's, and never the weekly one's.
    records.complete(time("2027-06-14T01:00:01Z"), time("2027-06-14T01:10:00Z"), &["a", "b"]);
    assert_eq!(due(&config, &records, "2027-06-14T01:20:00Z"), ["nightly: verify 1 at content"]);
    // The hourly one goes on, before what is only to be proved.
    let hourly = "hourly 2027-06-14T01:30:00Z: backup of a, try 1, 0 missed";
    assert_eq!(due(&config, &records, "2027-06-14T01:30:00Z"), [hourly, "nightly: verify 1 at content"]);
}

#[test]
fn a_verification_that_did_not_end_is_due_again() {
    let (config, mut records) = (nightly(), Records::new());
    let id = records.complete(time("2027-06-10T01:00:02Z"), time("2027-06-10T01:10:00Z"), &["a", "b"]);
    let verify = ["nightly: verify 0 at restore"];
    assert_eq!(due(&config, &records, "2027-06-10T20:00:00Z"), verify);
    // Also while the next run fails.
    records.attempt(time("2027-06-11T01:00:02Z"), time("2027-06-11T01:01:00Z"), &["a", "b"], "source");
    assert_eq!(due(&config, &records, "2027-06-11T01:02:00Z"), verify);
    // What could not be done, and left no record of it, is tried again three times by the process that knows.
    let key = TaskKey::Verify(id, Level::Restore);
    let failed = |at: &str| Tried { key: key.clone(), ended: time(at), outcome: Outcome::Failed };
    let mut tried = vec![failed("2027-06-10T02:00:00Z")];
    assert_eq!(due_with(&config, &records, "2027-06-10T02:14:59Z", &tried), [""; 0]);
    assert_eq!(due_with(&config, &records, "2027-06-10T02:15:00Z", &tried), verify);
    tried.extend(["2027-06-10T02:16:00Z", "2027-06-10T02:47:00Z"].map(failed));
    assert_eq!(due_with(&config, &records, "2027-06-10T03:46:00Z", &tried), [""; 0]);
    assert_eq!(due_with(&config, &records, "2027-06-10T03:47:00Z", &tried), verify);
    tried.push(failed("2027-06-10T03:48:00Z"));
    assert_eq!(due_with(&config, &records, "2027-06-10T23:00:00Z", &tried), [""; 0]);
    // What was done and left no evidence, as a lower level may, is not done again.
    let done = Tried { key, ended: time("2027-06-10T02:00:00Z"), outcome: Outcome::Done };
    assert_eq!(due_with(&config, &records, "2027-06-10T02:01:00Z", &[done]), ["nightly: prune"]);
}

#[test]
fn what_a_process_tried_counts_where_no_record_was_left() {
    let (config, mut records) = (nightly(), Records::new());
    let key = TaskKey::Backup(named("nightly"), time("2027-06-10T01:00:00Z"));
    let failed = |at: &str| Tried { key: key.clone(), ended: time(at), outcome: Outcome::Failed };
    let tried = [failed("2027-06-10T01:05:00Z"), failed("2027-06-10T01:25:00Z")];
    assert_eq!(due_with(&config, &records, "2027-06-10T01:54:59Z", &tried), [""; 0]);
    let third = ["nightly 2027-06-10T01:00:00Z: backup of a+b, try 3, 0 missed"];
    assert_eq!(due_with(&config, &records, "2027-06-10T01:55:00Z", &tried), third);
    // Where they left records, they do not count twice.
    records.attempt(time("2027-06-10T01:00:02Z"), time("2027-06-10T01:04:59Z"), &["a", "b"], "source");
    records.attempt(time("2027-06-10T01:20:02Z"), time("2027-06-10T01:24:59Z"), &["a", "b"], "source");
    assert_eq!(due_with(&config, &records, "2027-06-10T01:55:00Z", &tried), third);
    // The next run is another one.
    let next = ["nightly 2027-06-11T01:00:00Z: backup of a+b, try 1, 0 missed"];
    assert_eq!(due_with(&config, &records, "2027-06-11T01:00:00Z", &tried), next);
}

#[test]
fn a_clock_that_was_wrong_neither_repeats_nor_silences() {
    let (config, mut records) = (config_of("0 1 * * *", "verify = \"none\""), Records::new());
    for day in 8..=10 {
        let began = time(&format!("2027-06-{day:02}T01:00:05Z"));
        records.complete(began, began + 5.minutes(), &["a", "b"]);
    }
    // Set back by an hour, by two days: what was done is not done again when its time comes once more.
    for now in ["2027-06-10T00:30:00Z", "2027-06-10T01:00:00Z", "2027-06-08T12:00:00Z", "2027-06-09T01:00:00Z"] {
        assert_eq!(due(&config, &records, now), [""; 0], "{now}");
    }
    // Ahead by a year for a moment: one run is made up for, and after that every run as before.
    let ahead = "2028-06-10T02:00:00Z";
    let one = ["s 2028-06-10T01:00:00Z: backup of a+b, try 1, 365 missed"];
    assert_eq!(due(&config, &records, ahead), one);
    records.complete(time(ahead), time(ahead) + 5.minutes(), &["a", "b"]);
    assert_eq!(due(&config, &records, "2027-06-10T03:00:00Z"), [""; 0]);
    let next = ["s 2027-06-11T01:00:00Z: backup of a+b, try 1, 0 missed"];
    assert_eq!(due(&config, &records, "2027-06-11T01:00:00Z"), next);
}

#[test]
fn what_another_does_is_left_to_it() {
    let (config, mut records) = (nightly(), Records::new());
    let began = time("2027-06-10T01:00:05Z");
    let theirs = records.complete(began, began + 10.minutes(), &["a", "b"]);
    records.evidence(&theirs, Level::Restore, Verdict::Verified, time("2027-06-10T01:30:00Z"));
    let plan_at = |records: &Records, own: &Own, now: &str| {
        plan(&config, &records.repository, &records.history(time(now)), time(now), own)
    };
    let serving = |since: &str, made: &[&BackupId]| Own {
        since: Some(time(since)),
        made: made.iter().map(|id| (*id).clone()).collect(),
        tried: Vec::new(),
    };
    // One who was there when another made the last backup, for twice as long as that took, and a minute.
    let beside = serving("2027-06-10T00:00:00Z", &[]);
    let left = State::Left(time("2027-06-11T01:21:00Z"));
    assert_eq!(plan_at(&records, &beside, "2027-06-11T01:00:00Z").schedules[0].state, left);
    assert_eq!(plan_at(&records, &beside, "2027-06-11T01:21:00Z").schedules[0].state, State::Due);
    // Not one who came later, nor who made it, nor who was there first when both did.
    let later = serving("2027-06-10T01:00:01Z", &[]);
    assert_eq!(plan_at(&records, &later, "2027-06-11T01:00:00Z").schedules[0].state, State::Due);
    let maker = serving("2027-06-10T00:00:00Z", &[&theirs]);
    assert_eq!(plan_at(&records, &maker, "2027-06-11T01:00:00Z").schedules[0].state, State::Due);
    let mut both = records.clone();
    let second = both.complete(began + 3.seconds(), began + 12.minutes(), &["a", "b"]);
    assert_eq!(plan_at(&both, &maker, "2027-06-11T01:00:00Z").schedules[0].state, State::Due);
    let slower = serving("2027-06-10T00:00:00Z", &[&second]);
    assert_eq!(plan_at(&both, &slower, "2027-06-11T01:00:00Z").schedules[0].state, left);
    // Where the other has stopped, it is left to it once.
    assert_eq!(plan_at(&records, &beside, "2027-06-12T01:00:00Z").schedules[0].state, State::Due);

    // What follows the other's backup, too.
    let next = time("2027-06-11T01:00:05Z");
    records.complete(next, next + 10.minutes(), &["a", "b"]);
    assert_eq!(plan_at(&records, &beside, "2027-06-11T03:10:04Z").due, []);
    assert!(matches!(plan_at(&records, &beside, "2027-06-11T03:10:05Z").due[0].task, Task::Verify { .. }));
    let restarted = serving("2027-06-11T01:15:00Z", &[]);
    assert!(matches!(plan_at(&records, &restarted, "2027-06-11T01:15:00Z").due[0].task, Task::Verify { .. }));
}

#[test]
fn a_delay_is_stable_and_below_the_jitter() {
    let schedule = |name: &str, jitter: &str| {
        let lines = format!("[[schedule]]\nname = \"{name}\"\ncron = \"0 1 * * *\"\njitter = \"{jitter}\"\n");
        config(&["a", "b"], &lines).schedules.remove(0)
    };
    let (one, other) = (RepositoryId::random(), RepositoryId::random());
    let hour = Duration::from_secs(3600);
    let of = |repository: &RepositoryId, name: &str| delay(repository, &schedule(name, "1h"));
    assert_eq!(of(&one, "nightly"), of(&one, "nightly"));
    assert!(delay(&one, &schedule("nightly", "0s")).is_zero());
    // A name more or less, and another repository, have other delays: all over the hour.
    let delays: std::collections::BTreeSet<Duration> =
        (0..200).flat_map(|n| [&one, &other].map(|repository| of(repository, &format!("s{n}")))).collect();
    assert!(delays.len() > 350, "{}", delays.len());
    assert!(delays.iter().all(|delay| *delay < hour));
    assert!(*delays.first().unwrap() < hour / 10 && *delays.last().unwrap() > hour * 9 / 10);
}

#[test]
fn with_a_delay_a_run_is_later_and_counts_from_then_on() {
    let config = config_of("0 * * * *", "jitter = \"3h\"\nverify = \"none\"");
    let mut records = Records::new();
    let delay = delay(&records.repository, &config.schedules[0]);
    assert!(delay > Duration::from_secs(3600), "longer than the time between two runs: {delay:?}");
    let run = time("2027-06-10T07:00:00Z") + delay;
    // A backup of the run before, which began after the pattern's own time, does not stand in for this one.
    records.complete(run - 1.hour(), run - 30.minutes(), &["a", "b"]);
    assert_eq!(due(&config, &records, &(run - 1.second()).to_string()), [""; 0]);
    let backup = format!("s {run}: backup of a+b, try 1, 0 missed");
    assert_eq!(due(&config, &records, &run.to_string()), [backup]);
}

#[test]
fn the_plan_tells_the_next_run() {
    let now = time("2027-06-10T15:00:00Z");
    let records = Records::new();
    for (cron, last, next, state) in [
        ("0 1 * * *", Some("2027-06-10T01:00:00Z"), Some("2027-06-11T01:00:00Z"), State::Due),
        ("0 15 * * *", Some("2027-06-10T15:00:00Z"), Some("2027-06-11T15:00:00Z"), State::Due),
        ("0 0 29 2 *", Some("2024-02-29T00:00:00Z"), Some("2028-02-29T00:00:00Z"), State::Due),
    ] {
        let plan = plan(&config_of(cron, ""), &records.repository, &records.history(now), now, &Own::default());
        let want = Scheduled { name: named("s"), last: last.map(time), next: next.map(time), state };
        assert_eq!(plan.schedules, [want], "{cron}");
        assert_eq!(plan.due.len(), usize::from(state == State::Due));
    }
}

#[test]
fn the_expected_interval_is_the_longest_time_between_runs() {
    const H: u64 = 3600;
    let schedule =
        |name: &str, cron: &str, more: &str| format!("[[schedule]]\nname = \"{name}\"\ncron = \"{cron}\"\n{more}\n");
    let berlin = "timezone = \"Europe/Berlin\"";
    let now = time("2027-06-10T15:00:00Z");
    for (lines, hours) in [
        (String::new(), None),
        (schedule("s", "0 1 * * *", ""), Some(24 * H)),
        // One night is an hour longer.
        (schedule("s", "0 1 * * *", berlin), Some(25 * H)),
        (schedule("s", "0 1 * * *", "jitter = \"2h\""), Some(24 * H)),
        (schedule("s", "* * * * *", ""), Some(60)),
        (schedule("s", "0 8-17 * * 1-5", ""), Some((3 * 24 - 9) * H)),
        (schedule("s", "0 0 1 * *", ""), Some(31 * 24 * H)),
        (schedule("s", "0 0 1 1 *", ""), Some(365 * 24 * H)),
        (schedule("s", "0 0 29 2 *", ""), Some(1461 * 24 * H)),
        (schedule("s", "0 1 * * *", "sources = [\"b\"]"), None),
        (schedule("s", "0 1 * * *", "") + &schedule("t", "0 13 * * *", ""), Some(12 * H)),
        (schedule("s", "0 1 * * *", "") + &schedule("t", "0 13 * * *", "jitter = \"2h\""), Some(14 * H)),
        (schedule("s", "0 1 * * *", "") + &schedule("t", "0 13 * * *", "sources = [\"b\"]"), Some(24 * H)),
    ] {
        let interval = expected_interval(&config(&["a", "b"], &lines), &named("a"), now);
        assert_eq!(interval, hours.map(Duration::from_secs), "{lines}");
    }
}

proptest! {
    /// Whatever there is: nothing is due twice, a backup never where one was made since the run, and a new plan after what is due
    /// asks for something else.
    #[test]
    fn what_is_due_is_not_due_again_once_it_is_done(
        events in proptest::collection::vec((0..20_u8, 0..4 * 1440_i64), 0..20),
        minute in 4 * 1440..6 * 1440_i64,
    ) {
        let config = config(&["a", "b"], &format!("{NIGHTLY}[[schedule]]\nname = \"often\"\ncron = \"*/40 * * * *\"\nsources = [\"a\"]\n"));
        let at = |minute: i64| time("2027-06-10T00:00:00Z") + minute.minutes();
        let mut records = Records::new();
        for (what, minute) in events {
            let (began, ended) = (at(minute), at(minute + 7));
            match what {
                0..6 => drop(records.complete(began, ended, &["a", "b"])),
                6..10 => drop(records.complete(began, ended, &["a"])),
                10..14 => drop(records.head(began, ended, &[("a", SnapshotState::Complete), ("b", SnapshotState::Failed)])),
                14..18 => records.attempt(began, ended, &["a", "b"], "source"),
                _ => {
                    if let Some(head) = records.heads.last() {
                        let (id, ended) = (head.backup.clone(), head.finished + 3.minutes());
                        records.evidence(&id, Level::Restore, Verdict::Verified, ended);
                    }
                }
            }
        }
        let mut tried = Vec::new();
        let mut seen: Vec<TaskKey> = Vec::new();
        let now = at(minute);
        for _ in 0..10 {
            let own = Own { tried: tried.clone(), ..Own::default() };
            let plan = plan(&config, &records.repository, &records.history(now), now, &own);
            let Some(due) = plan.due.first() else { return Ok(()) };
            prop_assert!(!seen.contains(&due.key()), "twice: {due:?}");
            seen.push(due.key());
            match &due.task {
                Task::Backup { sources, .. } => {
                    prop_assert!(due.run <= now);
                    let names: Vec<&str> = sources.iter().map(String::as_str).collect();
                    records.complete(now, now, &names);
                }
                Task::Verify { backup, level } => records.evidence(backup, *level, Verdict::Verified, now),
                Task::Prune => tried.push(Tried { key: due.key(), ended: now, outcome: Outcome::Done }),
            }
        }
        prop_assert!(false, "there is no end of it: {seen:?}");
    }
}
