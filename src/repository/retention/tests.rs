#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use jiff::{SignedDuration, civil::Date, tz::TimeZone};
use proptest::prelude::*;

use super::*;
use crate::repository::{
    Anchors, BackupState, Catalog, EVIDENCE_VERSION, Evidence, Level, Locked, ManifestDigest, RepositoryId,
    SnapshotState, SourceEvidence, SourceIdentity, Trust,
};

/// One source in a night's backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Verified,
    Complete,
    Inconclusive,
    /// Complete, and its verification failed.
    Bad,
    Partial,
    PartialBad,
    /// Nothing was captured.
    Failed,
}

use Outcome::{Bad, Complete, Failed, Inconclusive, Partial, PartialBad, Verified};

impl Outcome {
    fn state(self) -> SnapshotState {
        match self {
            Verified | Complete | Inconclusive | Bad => SnapshotState::Complete,
            Partial | PartialBad => SnapshotState::Partial,
            Failed => SnapshotState::Failed,
        }
    }

    fn verdict(self) -> Option<Verdict> {
        match self {
            Verified => Some(Verdict::Verified),
            Inconclusive => Some(Verdict::Inconclusive),
            Bad | PartialBad => Some(Verdict::Failed),
            Complete | Partial | Failed => None,
        }
    }

    fn is_there(self) -> bool {
        self != Failed
    }

    fn is_good(self) -> bool {
        matches!(self, Verified | Complete | Inconclusive)
    }

    /// The better the higher.
    fn worth(self) -> u8 {
        match self {
            Verified => 3,
            Complete | Inconclusive => 2,
            Partial => 1,
            Bad | PartialBad | Failed => 0,
        }
    }
}

/// A backup: the number of its night, when it began, and what became of the sources `a`, `b`, ….
#[derive(Clone, Debug)]
struct Night {
    number: usize,
    started: Timestamp,
    /// The day by which the test means it.
    day: Date,
    outcomes: Vec<Outcome>,
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const EPOCH: &str = "20260101T010000Z-7h2mxq";

impl Night {
    fn id(&self) -> BackupId {
        format!("20260101T010000Z-{:06}", self.number).parse().unwrap()
    }

    fn head(&self, repository: &RepositoryId) -> Head {
        let source = |(name, outcome): (&&str, &Outcome)| {
            let mut source = HeadSource::failed(&SourceIdentity { name: (*name).into(), kind: "postgres".into() });
            source.state = outcome.state();
            source.manifest =
                outcome.is_there().then(|| ManifestDigest { bytes: 1, sha256: format!("{}-{name}", self.number) });
            source
        };
        let complete = self.outcomes.iter().all(|outcome| outcome.state().is_usable());
        Head {
            format: 1,
            repository: repository.clone(),
            backup: self.id(),
            epoch: EPOCH.parse().unwrap(),
            tool: String::new(),
            started: self.started,
            finished: self.started,
            state: if complete { BackupState::Complete } else { BackupState::Partial },
            skew: None,
            anchors: Anchors { install_mark: String::new(), epoch: String::new(), keys: String::new() },
            sources: NAMES.iter().zip(&self.outcomes).map(source).collect(),
        }
    }

    fn evidence(&self, repository: &RepositoryId) -> Option<Evidence> {
        let source = |(name, outcome): (&&str, &Outcome)| {
            outcome.verdict().filter(|_| outcome.is_there()).map(|verdict| SourceEvidence {
                name: (*name).into(),
                kind: "postgres".into(),
                manifest: format!("{}-{name}", self.number),
                verdict,
                reason: None,
                objects: 0,
                rows: 0,
                bytes: 0,
                differences: 0,
                restore_seconds: None,
                seconds: 1.0,
            })
        };
        let sources: Vec<SourceEvidence> = NAMES.iter().zip(&self.outcomes).filter_map(source).collect();
        (!sources.is_empty()).then(|| Evidence {
            format: EVIDENCE_VERSION,
            repository: repository.clone(),
            backup: self.id(),
            epoch: EPOCH.parse().unwrap(),
            tool: String::new(),
            level: Level::Restore,
            started: self.started,
            finished: self.started,
            verdict: Verdict::Sound,
            sources,
            detail: ManifestDigest { bytes: 0, sha256: String::new() },
        })
    }
}

fn history(nights: &[Night], now: Timestamp) -> History {
    let repository = RepositoryId::random();
    let mut entries: Vec<CatalogEntry> =
        nights.iter().map(|night| CatalogEntry::Good(Box::new(night.head(&repository)))).collect();
    entries.sort_by_key(|entry| match entry {
        CatalogEntry::Good(head) => std::cmp::Reverse(head.started),
        _ => unreachable!(),
    });
    let catalog = Catalog { entries, unknown: None, ..Catalog::default() };
    let evidence = nights.iter().filter_map(|night| night.evidence(&repository)).collect();
    let verdicts = Verdicts::new(&catalog, evidence);
    History { now, catalog, verdicts, ..History::default() }
}

fn config(last: u32, daily: u32, weekly: u32, monthly: u32) -> RetentionConfig {
    RetentionConfig { last, daily, weekly, monthly, timezone: TimeZone::UTC, expire_at_most_percent: 100 }
}

/// Nights at 01:00 UTC from 2026-11-01 on, with one source.
fn november(outcomes: &[Outcome]) -> Vec<Night> {
    let night = |(number, outcome): (usize, &Outcome)| {
        let day = Date::constant(2026, 11, 1).checked_add(i64::try_from(number).unwrap().days()).unwrap();
        let started = format!("{day}T01:00:00Z").parse().unwrap();
        Night { number, started, day, outcomes: vec![*outcome] }
    };
    outcomes.iter().enumerate().map(night).collect()
}

fn later(nights: &[Night]) -> Timestamp {
    nights.iter().map(|night| night.started).max().unwrap() + SignedDuration::from_hours(2)
}

/// The numbers of the nights that are kept.
fn kept(plan: &RetentionPlan) -> BTreeSet<usize> {
    let number = |backup: &PlannedBackup| backup.backup.as_str()[17..].parse().unwrap();
    plan.backups.iter().filter(|backup| backup.fate == Fate::Kept).map(number).collect()
}

fn reasons(plan: &RetentionPlan, night: usize) -> Vec<String> {
    let of = |backup: &&PlannedBackup| backup.backup.as_str().ends_with(&format!("-{night:06}"));
    plan.backups.iter().find(of).unwrap().reasons.clone()
}

#[test]
fn each_rule_by_itself() {
    // 2026-11-01 is a Sunday; night 29 is the 30th, a Monday.
    let verified = vec![Verified; 30];
    for (rules, wanted) in [
        (config(1, 0, 0, 0), vec![29]),
        (config(3, 0, 0, 0), vec![27, 28, 29]),
        (config(0, 2, 0, 0), vec![28, 29]),
        (config(0, 0, 3, 0), vec![21, 28, 29]),
        (config(0, 0, 0, 5), vec![29]),
        (config(2, 4, 3, 1), vec![21, 26, 27, 28, 29]),
        (config(100, 0, 0, 0), (0..30).collect()),
    ] {
        let nights = november(&verified);
        let plan = plan(&history(&nights, later(&nights)), &rules, later(&nights));
        assert_eq!(kept(&plan), wanted.into_iter().collect(), "{}", plan.rules);
    }
}

#[test]
fn reasons_are_said_in_words() {
    let mut nights = november(&[Verified, Complete, Verified, Complete, Complete]);
    nights.iter_mut().for_each(|night| night.outcomes.push(Complete));
    nights[4].outcomes[1] = Partial;
    let now = later(&nights);
    let plan = plan(&history(&nights, now), &config(1, 2, 1, 0), now);
    assert_eq!(plan.rules, "last 1, daily 2, weekly 1, monthly 0 in UTC");
    assert_eq!(reasons(&plan, 4), ["last 1", "daily 2026-11-05", "the newest complete snapshot of `a`"]);
    assert_eq!(
        reasons(&plan, 3),
        ["last 1 of `b`", "daily 2026-11-04", "weekly from 2026-11-02 of `b`", "the newest complete snapshot of `b`"]
    );
    assert_eq!(
        reasons(&plan, 2),
        ["daily 2026-11-03 of `b`", "weekly from 2026-11-02 of `a`", "the last verified snapshot of `a`"]
    );
    assert_eq!(reasons(&plan, 0), ["none of last 1, daily 2, weekly 1, monthly 0 in UTC keeps it"]);
    assert_eq!(kept(&plan), BTreeSet::from([2, 3, 4]));
}

#[test]
fn what_is_partial_or_bad_takes_no_place() {
    for (outcomes, rules, wanted) in [
        // Two good ones are kept, and the last two of any kind.
        (vec![Complete, Complete, Complete, Partial, Partial, Partial], config(2, 0, 0, 0), vec![1, 2, 4, 5]),
        (vec![Complete, Complete, Complete, Bad, Bad, Bad], config(2, 0, 0, 0), vec![1, 2, 3, 4, 5]),
        // A week of failures does not push out the days before it.
        (vec![Complete, Complete, Complete, Partial, Partial, Partial, Partial], config(0, 2, 0, 0), vec![1, 2, 5, 6]),
        // The newest verified one of a month, and the newest complete one, which is none of the month's.
        (vec![Complete, Verified, Complete, Complete], config(0, 0, 0, 1), vec![1, 3]),
        // No verification: the newest complete one; not even that: the newest.
        (vec![Complete, Complete, Partial], config(0, 0, 0, 1), vec![1]),
        (vec![Partial, Partial, Partial], config(0, 0, 0, 1), vec![2]),
        // What failed its verification stays until a newer one is verified.
        (vec![Verified, Bad, Complete, Complete], config(1, 0, 0, 0), vec![0, 1, 3]),
        (vec![Verified, Bad, Complete, Verified], config(1, 0, 0, 0), vec![3]),
        (vec![Verified, PartialBad, Inconclusive, Complete], config(1, 0, 0, 0), vec![0, 1, 3]),
        // The newest complete one is bad: it stays, and so does the newest that is good.
        (vec![Verified, Complete, Bad], config(0, 0, 0, 1), vec![0, 1, 2]),
    ] {
        let nights = november(&outcomes);
        let plan = plan(&history(&nights, later(&nights)), &rules, later(&nights));
        assert_eq!(kept(&plan), wanted.into_iter().collect(), "{outcomes:?}: {:#?}", plan.backups);
    }
}

#[test]
fn the_last_verified_and_the_newest_complete_are_never_let_go() {
    let mut outcomes = vec![Complete; 20];
    outcomes[3] = Verified;
    outcomes.extend([Partial, Partial, Partial, Partial, Partial]);
    let nights = november(&outcomes);
    let now = later(&nights);
    let plan = plan(&history(&nights, now), &config(2, 0, 0, 0), now);
    assert_eq!(kept(&plan), BTreeSet::from([3, 18, 19, 23, 24]));
    assert_eq!(reasons(&plan, 3), ["the last verified snapshot of `a`"]);
    assert_eq!(reasons(&plan, 19), ["last 2", "the newest complete snapshot of `a`"]);
}

#[test]
fn what_cannot_be_read_is_kept_and_counts_for_nothing() {
    let nights = november(&[Complete; 6]);
    let now = later(&nights);
    let mut history = history(&nights, now);
    let damaged = "20261130T010000Z-dddddd";
    let locked = "20261130T010000Z-cccccc";
    let trust = Trust::damaged(format!("backups/{damaged}/head.json"), "does not match its own mac");
    history.catalog.entries.insert(0, CatalogEntry::Damaged { id: damaged.parse().unwrap(), trust });
    let why = Locked::Newer { object: format!("backups/{locked}/head.json"), found: 9, known: 1 };
    history.catalog.entries.insert(0, CatalogEntry::Locked { id: locked.parse().unwrap(), locked: why });
    let unfinished =
        CatalogEntry::Unfinished { id: "20261130T010000Z-eeeeee".parse().unwrap(), manifests: 1, written: now };
    history.catalog.entries.insert(0, unfinished);
    let plan = plan(&history, &config(2, 0, 0, 0), now);
    let told: Vec<(&str, Fate, &str)> =
        plan.backups.iter().map(|backup| (backup.state.as_str(), backup.fate, backup.reasons[0].as_str())).collect();
    assert_eq!(told.len(), 8, "the unfinished one is no backup");
    assert_eq!((told[0].0, told[0].1), ("locked", Fate::Kept));
    assert!(told[0].2.starts_with("not readable here: backups/"), "{}", told[0].2);
    assert_eq!((told[1].0, told[1].1), ("damaged", Fate::Kept));
    assert_eq!(told[1].2, format!("it cannot be trusted: backups/{damaged}/head.json does not match its own mac"));
    assert_eq!((told[2].2, told[3].2, told[4].1), ("last 2", "last 2", Fate::Expires));
}

#[test]
fn what_is_newer_than_the_clock_stays_and_stands_in_for_nothing() {
    let nights = november(&[Complete, Complete, Complete, Verified, Verified]);
    let now = nights[2].started + SignedDuration::from_hours(1);
    let plan = plan(&history(&nights, now), &config(1, 0, 0, 0), now);
    assert_eq!(kept(&plan), BTreeSet::from([2, 3, 4]));
    assert_eq!(reasons(&plan, 4), ["newer than the store's clock"]);
    assert_eq!(reasons(&plan, 2), ["last 1", "the newest complete snapshot of `a`"]);
}

#[test]
fn more_than_a_share_of_a_source_is_too_many_at_once() {
    let nights = november(&[Complete; 10]);
    let now = later(&nights);
    let at = |percent: u32, last: u32| {
        let config = RetentionConfig { expire_at_most_percent: percent, ..config(last, 0, 0, 0) };
        plan(&history(&nights, now), &config, now).too_many
    };
    assert_eq!(at(50, 5), []);
    let too_many = TooMany { source: "a".into(), expire: 6, of: 10, percent: 50 };
    assert_eq!(too_many.to_string(), "6 of the 10 snapshots of `a` would expire at once, more than 50 %");
    assert_eq!(at(50, 4), [too_many]);
    assert_eq!(at(60, 4), []);
    assert_eq!(at(100, 1), []);
}

/// What the rules say must be kept, said once more and without any order of steps: by looking at all pairs.
fn expected(nights: &[Night], config: &RetentionConfig, now: Timestamp) -> BTreeSet<usize> {
    let monday = |day: Date| day.checked_sub(i64::from(day.weekday().to_monday_zero_offset()).days()).unwrap();
    let month = |day: Date| Date::new(day.year(), day.month(), 1).unwrap();
    let mut kept: BTreeSet<usize> =
        nights.iter().filter(|night| night.started > now).map(|night| night.number).collect();
    for source in 0..NAMES.len() {
        let of = |night: &Night| night.outcomes.get(source).copied().filter(|outcome| outcome.is_there());
        let present: Vec<(&Night, Outcome)> =
            nights.iter().filter(|night| night.started <= now).filter_map(|night| Some((night, of(night)?))).collect();
        let good: Vec<(&Night, Outcome)> = present.iter().filter(|(_, outcome)| outcome.is_good()).copied().collect();
        for list in [&good, &present] {
            for (night, _) in list {
                if list.iter().filter(|(other, _)| other.started > night.started).count() < config.last as usize {
                    kept.insert(night.number);
                }
            }
            let periods: [(u32, &dyn Fn(Date) -> Date); 3] =
                [(config.daily, &|day| day), (config.weekly, &monday), (config.monthly, &month)];
            for (many, period) in periods {
                let all: BTreeSet<Date> = list.iter().map(|(night, _)| period(night.day)).collect();
                for (night, outcome) in list {
                    let mine = period(night.day);
                    if all.iter().filter(|other| **other > mine).count() >= many as usize {
                        continue;
                    }
                    let beaten = list.iter().any(|(other, its)| {
                        (its.worth(), other.started) > (outcome.worth(), night.started) && period(other.day) == mine
                    });
                    if !beaten {
                        kept.insert(night.number);
                    }
                }
            }
        }
        let last_verified =
            present.iter().filter(|(_, outcome)| *outcome == Verified).map(|(night, _)| night.started).max();
        let newest = |of: &dyn Fn(Outcome) -> bool| {
            present.iter().filter(|(_, outcome)| of(*outcome)).max_by_key(|(night, _)| night.started)
        };
        kept.extend(newest(&|outcome| outcome == Verified).map(|(night, _)| night.number));
        kept.extend(newest(&|outcome| outcome.state().is_usable()).map(|(night, _)| night.number));
        kept.extend(newest(&Outcome::is_good).map(|(night, _)| night.number));
        let bad = present.iter().filter(|(night, outcome)| {
            outcome.verdict() == Some(Verdict::Failed) && last_verified.is_none_or(|at| at < night.started)
        });
        kept.extend(bad.map(|(night, _)| night.number));
    }
    kept
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Verified), 4 => Just(Complete), 1 => Just(Inconclusive), 1 => Just(Bad), 2 => Just(Partial),
        1 => Just(PartialBad), 2 => Just(Failed),
    ]
}

fn zone() -> impl Strategy<Value = TimeZone> {
    let names = ["UTC", "Europe/Istanbul", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Asia/Kolkata"];
    proptest::sample::select(names.to_vec()).prop_map(|name| TimeZone::get(name).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Against what the rules say in other words; and what is promised whatever the rules say.
    #[test]
    fn the_decider_keeps_what_it_must_and_nothing_else(
        times in prop::collection::btree_set(0_i64..24 * 150 * 4, 1..60),
        outcomes in prop::collection::vec(prop::collection::vec(outcome(), 1..4), 60),
        (last, daily, weekly, monthly) in (0_u32..5, 0_u32..8, 0_u32..6, 0_u32..6),
        percent in 1_u32..=100,
        timezone in zone(),
        now in 0_i64..24 * 200 * 4,
    ) {
        let base: Timestamp = "2026-09-20T00:00:00Z".parse().unwrap();
        let at = |quarters: i64| base + SignedDuration::from_mins(quarters * 15);
        let nights: Vec<Night> = times.into_iter().zip(outcomes).enumerate().map(|(number, (time, outcomes))| {
            Night { number, started: at(time), day: timezone.to_datetime(at(time)).date(), outcomes }
        }).collect();
        // A backup of which nothing was captured has no head.
        let nights: Vec<Night> =
            nights.into_iter().filter(|night| night.outcomes.iter().any(|outcome| outcome.is_there())).collect();
        prop_assume!(!nights.is_empty());
        let now = at(now);
        let config =
            RetentionConfig { last, daily, weekly, monthly, timezone, expire_at_most_percent: percent };
        let plan_now = |nights: &[Night]| plan(&history(nights, now), &config, now);
        let first = plan_now(&nights);
        let kept_first = kept(&first);
        prop_assert_eq!(&kept_first, &expected(&nights, &config, now));

        for (source, name) in NAMES.iter().enumerate() {
            let of = |night: &&Night| night.outcomes.get(source).copied().is_some_and(Outcome::is_there);
            let is = |night: &Night, wanted: fn(Outcome) -> bool| night.outcomes.get(source).copied().is_some_and(wanted);
            for wanted in [(|outcome| outcome == Verified) as fn(Outcome) -> bool, |outcome| outcome.state().is_usable()] {
                let newest = nights.iter().filter(|night| is(night, wanted)).max_by_key(|night| night.started);
                prop_assert!(newest.is_none_or(|night| kept_first.contains(&night.number)), "of {}", name);
            }
            let all = nights.iter().filter(of).count() as u64;
            let gone = nights.iter().filter(of).filter(|night| !kept_first.contains(&night.number)).count() as u64;
            let too_many = first.too_many.iter().find(|too_many| too_many.source == *name);
            prop_assert_eq!(too_many.is_some(), gone * 100 > all * u64::from(percent));
        }
        prop_assert!(first.backups.iter().all(|backup| !backup.reasons.is_empty()));

        let left: Vec<Night> = nights.iter().filter(|night| kept_first.contains(&night.number)).cloned().collect();
        let second = plan_now(&left);
        prop_assert_eq!(second.expired().count(), 0, "planned once more, it lets nothing more go");
        prop_assert!(second.too_many.is_empty());
        prop_assert_eq!(kept(&second), kept_first);
    }
}

/// Nights of some years, each at this local time, with all that goes wrong in a year. Each night lets expire what it may.
fn simulate(zone: &str, first: Date, nights: usize, time: (i8, i8)) {
    let timezone = TimeZone::get(zone).unwrap();
    let config = RetentionConfig {
        last: 3,
        daily: 7,
        weekly: 4,
        monthly: 12,
        timezone: timezone.clone(),
        expire_at_most_percent: 50,
    };
    let (mut ever, mut there): (Vec<Night>, Vec<Night>) = (Vec::new(), Vec::new());
    for number in 0..nights {
        let day = first.checked_add(i64::try_from(number).unwrap().days()).unwrap();
        // Down for eleven nights a year.
        if (40..51).contains(&(number % 365)) {
            continue;
        }
        // The store's clock is set back by three days, for two nights; nobody notices until then.
        let set_back = if (200..202).contains(&(number % 365)) { 3 } else { 0 };
        let day = day.checked_sub(set_back.days()).unwrap();
        // In the hour that is left out, or comes twice, jiff takes the later, or the first.
        let started = timezone.to_timestamp(day.at(time.0, time.1, 0, i32::from(set_back > 0))).unwrap();
        // Apia never had 2011-12-30.
        if timezone.to_datetime(started).date() != day {
            assert_eq!(zone, "Pacific/Apia");
            continue;
        }
        let outcome = |salt: usize| match (number * 7 + salt) % 23 {
            0 | 1 => Complete,
            2 => Inconclusive,
            3 => Bad,
            4 => Partial,
            5 => Failed,
            _ => Verified,
        };
        // A second source joins after a hundred nights.
        let outcomes: Vec<Outcome> = (0..=usize::from(number >= 100)).map(|source| outcome(source * 11)).collect();
        if outcomes.iter().all(|outcome| !outcome.is_there()) {
            continue;
        }
        let night = Night { number, started, day, outcomes };
        ever.push(night.clone());
        there.push(night);
        let now = started + SignedDuration::from_hours(1);
        let planned = plan(&history(&there, now), &config, now);
        assert_eq!(planned.too_many, [], "{zone}, night {number}, {day}");
        // Two daemons decide the same, at the same time or one after the other.
        assert_eq!(kept(&planned), kept(&plan(&history(&there, now), &config, now)));
        let kept = kept(&planned);
        let mut future = there.iter().filter(|night| night.started > now);
        assert!(future.all(|night| kept.contains(&night.number)), "{zone}, night {number}, {day}");
        there.retain(|night| kept.contains(&night.number));
        let again = plan(&history(&there, now), &config, now);
        assert_eq!(again.expired().count(), 0, "{zone}, night {number}, {day}");
        let is_whole = ever.iter().all(|night| night.started <= now);
        // Against all nights there ever were; not each night, since that takes long.
        if is_whole && (number % 61 == 0 || number % 365 == 202 || number + 1 == nights) {
            assert_eq!(kept, expected(&ever, &config, now), "{zone}, night {number}, {day}");
        }
        for source in 0..2 {
            let verified = ever.iter().filter(|night| night.outcomes.get(source) == Some(&Verified));
            let last = verified.max_by_key(|night| night.started);
            assert!(last.is_none_or(|night| kept.contains(&night.number)), "{zone}, night {number}, {day}");
        }
    }
    assert!(there.len() < 60 && there.len() > 20, "{zone}: {} are there at the end", there.len());
}

#[test]
fn years_of_nights() {
    // Istanbul changed its clocks on 2015-03-29 and, by decree later than its neighbours, on 2015-11-08.
    simulate("Europe/Istanbul", Date::constant(2015, 1, 1), 400, (3, 30));
    // 2028 is a leap year. At half past two the clocks are put forward, and at half past one back.
    simulate("America/New_York", Date::constant(2027, 6, 1), 800, (2, 30));
    simulate("America/New_York", Date::constant(2027, 6, 1), 800, (1, 30));
    simulate("Europe/Berlin", Date::constant(2027, 12, 1), 500, (2, 30));
    // Backups at midnight, where the day changes.
    simulate("Pacific/Apia", Date::constant(2011, 10, 1), 400, (0, 0));
    simulate("UTC", Date::constant(2026, 1, 1), 1100, (0, 0));
}
