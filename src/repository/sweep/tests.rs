#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::repository::{EpochRecord, Keys, Locked, Protection, RepositoryId};

const GRACE: u64 = 72;

/// What is made up of an epoch: when it began and when each part was written, in hours before now.
#[derive(Clone, Debug)]
struct Era {
    began: u64,
    parts: Vec<u64>,
}

/// What is made up of a backup, in hours before now.
#[derive(Clone, Debug)]
struct Run {
    era: usize,
    head: bool,
    expired: Option<u64>,
    written: u64,
    /// Places of parts in its epoch.
    parts: Vec<usize>,
    evidence: bool,
}

impl Run {
    /// By the letter of R8.
    fn is_needed(&self) -> bool {
        match self.expired {
            _ if self.head => true,
            Some(hours) => hours < GRACE,
            None => self.written < GRACE,
        }
    }
}

#[derive(Clone, Debug)]
struct World {
    now: Timestamp,
    eras: Vec<Era>,
    runs: Vec<Run>,
    epochs: Vec<Arc<Epoch>>,
}

impl World {
    fn new(eras: Vec<Era>, runs: Vec<Run>) -> Self {
        let now: Timestamp = "2026-11-23T01:00:00Z".parse().unwrap();
        let repository = RepositoryId::random();
        let epoch = |(place, era): (usize, &Era)| {
            let id: EpochId = format!("20260101T010000Z-{place:06}").parse().unwrap();
            let record = EpochRecord {
                format: 1,
                repository: repository.clone(),
                epoch: id,
                began: ago(now, era.began),
                recipients: Vec::new(),
                catalog_recipient: None,
                cut: String::new(),
                keys: String::new(),
                begun_by: None,
                earlier: Vec::new(),
            };
            let (record_digest, keys_digest) = (String::new(), String::new());
            let (keys, protection) = (Keys::random(), Protection::Clear);
            Arc::new(Epoch { record, keys, protection, record_digest, keys_digest })
        };
        let epochs = eras.iter().enumerate().map(epoch).collect();
        Self { now, eras, runs, epochs }
    }

    fn name(&self, era: usize, part: usize) -> PartName {
        let (era_byte, part_byte) = (u8::try_from(era).unwrap(), u8::try_from(part).unwrap());
        PartName::new(&self.epochs[era].keys, [era_byte; 32], [part_byte; 32], "k3f9qa".parse().unwrap())
    }

    fn part_key(&self, era: usize, part: usize) -> String {
        let epoch = &self.epochs[era];
        layout::part(epoch.id(), &self.name(era, part), &epoch.protection)
    }

    fn id(run: usize) -> BackupId {
        format!("20260102T010000Z-{run:06}").parse().unwrap()
    }

    fn object(&self, key: String, hours: u64) -> ObjectInfo {
        ObjectInfo { key, size: 10, last_modified: ago(self.now, hours) }
    }

    fn records(&self, run: usize) -> BTreeMap<&'static str, Vec<ObjectInfo>> {
        let (id, it) = (Self::id(run), &self.runs[run]);
        let manifest = layout::manifest(&id, "cache", &Protection::Clear);
        let evidence = it.evidence.then(|| self.object(layout::evidence(&id, ago(self.now, it.written)), it.written));
        BTreeMap::from([
            ("manifests", vec![self.object(manifest, it.written)]),
            ("evidence", evidence.into_iter().collect()),
            ("tombstones", it.expired.map(|hours| self.object(layout::tombstone(&id, 1), hours)).into_iter().collect()),
        ])
    }

    /// As [`Survey::take`] would see it.
    fn survey(&self) -> Survey {
        let ages = Ages { now: self.now, grace: Duration::from_secs(GRACE * 3600) };
        let mut survey = Survey::new(ages);
        for (place, era) in self.eras.iter().enumerate() {
            let epoch = &self.epochs[place];
            let mut seen = SeenEpoch::new(epoch.id().clone(), EpochState::Open(epoch.clone()));
            for key in [layout::epoch_record(epoch.id()), layout::keys(epoch.id(), &Protection::Clear)] {
                seen.add(self.object(key, era.began), &ages);
            }
            for (part, hours) in era.parts.iter().enumerate() {
                // No part is older than its epoch.
                seen.add(self.object(self.part_key(place, part), *hours), &ages);
            }
            survey.epochs.push(seen);
        }
        for (place, run) in self.runs.iter().enumerate() {
            let mut records = self.records(place);
            let expired = run.expired.map(|hours| ago(self.now, hours));
            let life = Life::new(run.head, expired, ago(self.now, run.written), &ages);
            let epoch = &self.epochs[run.era];
            if life != Life::Abandoned {
                let marks = run.parts.iter().map(|part| PartMark::new(epoch.id(), &self.name(run.era, *part)));
                survey.add_names(life, marks.collect());
            }
            survey.backups.push(SeenBackup {
                id: Self::id(place),
                life,
                epoch: (life != Life::Abandoned).then(|| epoch.id().clone()),
                since: expired.unwrap_or(ago(self.now, run.written)),
                manifests: records.remove("manifests").unwrap(),
                evidence: records.remove("evidence").unwrap(),
                tombstones: records.remove("tombstones").unwrap(),
            });
        }
        survey
    }

    fn keys_of_parts(plan: &SweepPlan) -> BTreeSet<String> {
        let of = |(epoch, names): &(Arc<Epoch>, Vec<PartName>)| {
            names.iter().map(|name| layout::part(epoch.id(), name, &epoch.protection)).collect::<Vec<_>>()
        };
        plan.work.parts.iter().flat_map(of).collect()
    }
}

fn ago(now: Timestamp, hours: u64) -> Timestamp {
    now - SignedDuration::from_hours(i64::try_from(hours).unwrap())
}

fn kinds(brakes: &[Brake]) -> Vec<&'static str> {
    let kind = |brake: &Brake| match brake {
        Brake::NoHeads => "no heads",
        Brake::Unreadable { .. } => "unreadable",
        Brake::Unexplained { .. } => "unexplained",
        Brake::TooMany(_) => "too many",
    };
    brakes.iter().map(kind).collect()
}

fn run(era: usize, head: bool, expired: Option<u64>, written: u64, parts: &[usize]) -> Run {
    Run { era, head, expired, written, parts: parts.to_vec(), evidence: true }
}

#[test]
fn what_is_named_or_young_stays() {
    let eras = vec![Era { began: 2000, parts: vec![500, 500, 500, 500, 500, 500, 71, 72, 0] }];
    let runs = vec![
        run(0, true, None, 500, &[0]),
        // Undone: the head wins.
        run(0, true, Some(100), 500, &[1]),
        run(0, false, Some(71), 500, &[2]),
        run(0, false, Some(72), 500, &[0, 3]),
        run(0, false, None, 71, &[4]),
        run(0, false, None, 72, &[5]),
    ];
    let world = World::new(eras, runs);
    let plan = plan(world.survey(), 100);
    let wanted = [3, 5, 7].map(|part| world.part_key(0, part));
    assert_eq!(World::keys_of_parts(&plan), wanted.into_iter().collect());
    assert_eq!((plan.unused.objects, plan.explained.objects, plan.young.objects), (3, 1, 2));
    assert_eq!((plan.parts.objects, plan.parts.bytes, plan.backups), (9, 90, 2));
    // Of what is gone everything goes, its tombstone last.
    let keys =
        |run: usize, kind: &str| world.records(run)[kind].iter().map(|info| info.key.clone()).collect::<Vec<_>>();
    assert_eq!(plan.work.then[0], [keys(5, "manifests"), keys(3, "manifests")].concat());
    assert_eq!(plan.work.then[1], [keys(5, "evidence"), keys(3, "evidence")].concat());
    assert_eq!(plan.work.then[2], keys(3, "tombstones"));
    assert_eq!(plan.work.then.len(), 4, "no epoch");
    let goes: Vec<bool> = plan.expired.iter().map(|backup| backup.goes).collect();
    assert_eq!(goes, [true, false]);
    let goes: Vec<bool> = plan.unfinished.iter().map(|backup| backup.goes).collect();
    assert_eq!(goes, [true, false]);
    assert_eq!(kinds(&plan.brakes), [""; 0]);
}

#[test]
fn brakes_hold() {
    let eras = || vec![Era { began: 2000, parts: vec![500; 10] }];
    let head = |parts: &[usize]| run(0, true, None, 500, parts);
    let gone = |parts: &[usize]| run(0, false, Some(80), 500, parts);
    for (runs, percent, wanted) in [
        (vec![], 100, vec!["no heads"]),
        (vec![gone(&[0, 1])], 100, vec!["no heads"]),
        (vec![head(&[0, 1, 2, 3, 4, 5, 6])], 30, vec![]),
        (vec![head(&[0, 1, 2, 3, 4, 5])], 30, vec!["unexplained"]),
        (vec![head(&[0, 1, 2, 3, 4, 5])], 40, vec![]),
        // What an expired backup explains does not count.
        (vec![head(&[0]), gone(&[1, 2, 3, 4, 5, 6, 7, 8, 9])], 1, vec![]),
        (vec![head(&[0]), gone(&[1, 2, 3, 4, 5])], 30, vec!["unexplained"]),
        (vec![], 30, vec!["no heads", "unexplained"]),
    ] {
        let text = format!("{runs:?}");
        let plan = plan(World::new(eras(), runs).survey(), percent);
        assert_eq!(kinds(&plan.brakes), wanted, "{text}");
        assert!(plan.brakes.iter().all(|brake| !brake.hint().is_empty() && !brake.to_string().contains('\n')));
    }
    let mut survey = World::new(eras(), vec![]).survey();
    let locked = Locked::Newer { object: "backups/x/head.json".into(), found: 2, known: 1 };
    survey.unreadable.push(Brake::Unreadable { what: locked.to_string(), hint: Some(locked.hint()) });
    let plan = plan(survey, 100);
    assert_eq!(kinds(&plan.brakes), ["unreadable"], "there is a head, if one that cannot be read");
    assert_eq!(
        plan.brakes[0].to_string(),
        "backups/x/head.json says that it is of repository format 2; this version reads up to 1, so that what it uses is not known"
    );
}

#[test]
fn epochs_go_with_all_older_ones_and_never_the_newest() {
    let era = |began| Era { began, parts: vec![began; 3] };
    let old = |era| run(era, false, Some(80), 900, &[0, 1, 2]);
    let head = |era| run(era, true, None, 900, &[0, 1, 2]);
    for (begins, runs, wanted) in [
        (vec![1000, 800, 600], vec![old(0), old(1), head(2)], vec![0, 1]),
        (vec![1000, 800, 600], vec![head(0), old(1), head(2)], vec![]),
        (vec![1000, 800, 600], vec![old(0), head(1), old(2)], vec![0]),
        // In the newest nothing is left, and it stays: the next backup goes into it.
        (vec![1000, 800], vec![head(0), old(1)], vec![]),
        // The next one began just now: a backup may be under way in this one.
        (vec![1000, 71], vec![old(0), head(1)], vec![]),
        (vec![1000, 72], vec![old(0), head(1)], vec![0]),
        // Not in the order of their names.
        (vec![600, 1000, 800], vec![head(0), old(1), old(2)], vec![1, 2]),
        // Its tombstone is young.
        (vec![1000, 800], vec![run(0, false, Some(10), 900, &[0]), head(1)], vec![]),
        // A run without a head may be going on in it.
        (vec![1000, 800], vec![run(0, false, None, 10, &[0]), head(1)], vec![]),
    ] {
        let text = format!("{begins:?} {runs:?}");
        let world = World::new(begins.into_iter().map(era).collect(), runs);
        let plan = plan(world.survey(), 100);
        let wanted: Vec<EpochId> = wanted.into_iter().map(|place: usize| world.epochs[place].id().clone()).collect();
        assert_eq!(plan.epochs, wanted, "{text}");
        let last: Vec<Vec<String>> = wanted
            .iter()
            .flat_map(|id| [vec![layout::epoch_record(id)], vec![layout::keys(id, &Protection::Clear)]])
            .collect();
        assert_eq!(plan.work.then[4..], last, "{text}: the record before the keys, after all else");
    }
}

/// Whoever begins an epoch may sleep for weeks before its record is there, and until then others go on with the one before.
#[test]
fn an_epoch_ends_when_the_record_of_the_next_one_is_seen() {
    let eras = vec![Era { began: 1000, parts: vec![1000] }, Era { began: 800, parts: vec![] }];
    let world = World::new(eras, vec![run(0, false, Some(80), 900, &[0]), run(1, true, None, 500, &[])]);
    let ages = Ages { now: world.now, grace: Duration::from_secs(GRACE * 3600) };
    for (seen_for, goes) in [(72, true), (71, false)] {
        let mut survey = world.survey();
        let next = &world.epochs[1];
        let mut late = SeenEpoch::new(next.id().clone(), EpochState::Open(next.clone()));
        late.add(world.object(layout::keys(next.id(), &Protection::Clear), 800), &ages);
        late.add(world.object(layout::epoch_record(next.id()), seen_for), &ages);
        survey.epochs[1] = late;
        assert_eq!(plan(survey, 100).epochs.contains(world.epochs[0].id()), goes, "{seen_for}");
    }
}

#[test]
fn an_epoch_that_a_record_needs_stays() {
    let eras = vec![Era { began: 1000, parts: vec![] }, Era { began: 800, parts: vec![] }];
    let world = World::new(eras, vec![run(1, true, None, 500, &[])]);
    let mut survey = world.survey();
    assert_eq!(plan(world.survey(), 30).epochs.len(), 1);
    let attempt = world.object("attempts/20261101T010000Z-k3f9qa.json".into(), 900);
    survey.attempts.push((attempt, Some(world.epochs[0].id().clone())));
    assert_eq!(plan(survey, 30).epochs, []);
    // So does one that the record of an alert needs: it would not be believed without.
    let mut survey = world.survey();
    survey.epochs_of_alerts.insert(world.epochs[0].id().clone());
    assert_eq!(plan(survey, 30).epochs, []);
}

#[test]
fn old_attempts_go_but_for_the_newest_hundred() {
    let world = World::new(vec![Era { began: 9000, parts: vec![] }], vec![run(0, true, None, 500, &[])]);
    let mut survey = world.survey();
    let attempt = |hours: u64| {
        let key = layout::attempt(&BackupId::new(ago(world.now, hours)));
        (world.object(key, hours), None)
    };
    // One a day for 250 days.
    survey.attempts.extend((0..250).map(|day| attempt(day * 24)));
    let plan_now = plan(survey, 30);
    // 90 days are 90 of them: the newest hundred are more.
    assert_eq!(plan_now.attempts.objects, 150);
    let mut survey = world.survey();
    // One every five hours for 52 days.
    survey.attempts.extend((0..250).map(|n| attempt(n * 5)));
    assert_eq!(plan(survey, 30).attempts.objects, 0, "all are younger than 90 days");
}

#[test]
fn alerts_that_a_later_change_followed_go() {
    let world = World::new(vec![Era { began: 9000, parts: vec![] }], vec![run(0, true, None, 500, &[])]);
    let mut survey = world.survey();
    survey.alerts.push("alerts/late.cache/00000001.json".into());
    let plan = plan(survey, 30);
    assert_eq!((plan.alerts, plan.is_empty()), (1, false));
    assert!(plan.work.then.concat().contains(&"alerts/late.cache/00000001.json".to_owned()));
}

#[test]
fn what_is_none_of_ours_is_left_alone() {
    let world = World::new(
        vec![Era { began: 1000, parts: vec![500] }, Era { began: 800, parts: vec![] }],
        vec![run(1, true, None, 500, &[])],
    );
    let ages = Ages { now: world.now, grace: Duration::from_secs(GRACE * 3600) };
    let epoch = &world.epochs[0];
    let stranger = PartName::new(&Keys::random(), [9; 32], [9; 32], "k3f9qa".parse().unwrap());
    for key in [
        layout::part(epoch.id(), &stranger, &Protection::Clear),
        format!("{}0a/notes.txt", layout::parts(epoch.id())),
        format!("{}README", layout::epoch(epoch.id())),
    ] {
        let mut survey = world.survey();
        survey.epochs[0].add(world.object(key.clone(), 900), &ages);
        let plan = plan(survey, 100);
        assert_eq!(World::keys_of_parts(&plan).into_iter().collect::<Vec<_>>(), [world.part_key(0, 0)], "{key}");
        assert_eq!(plan.epochs, [], "{key}");
        assert_eq!(plan.notes.len(), 1, "{key}: {:?}", plan.notes);
    }
    // Nor is an epoch that cannot be opened here.
    let mut survey = world.survey();
    let mut closed = SeenEpoch::new(epoch.id().clone(), EpochState::Closed("it is locked".into()));
    closed.add(world.object(world.part_key(0, 0), 500), &ages);
    survey.epochs[0] = closed;
    let closed = plan(survey, 100);
    assert_eq!((World::keys_of_parts(&closed).len(), closed.epochs.len(), closed.parts.objects), (0, 0, 1));
    assert_eq!(closed.notes, [format!("epoch {} is left alone: it is locked", epoch.id())]);
}

#[test]
fn keys_without_a_record_go() {
    let world = World::new(vec![Era { began: 1000, parts: vec![] }], vec![run(0, true, None, 500, &[])]);
    let ages = Ages { now: world.now, grace: Duration::from_secs(GRACE * 3600) };
    let id: EpochId = "20260301T010000Z-k3f9qa".parse().unwrap();
    let keys = layout::keys(&id, &Protection::Clear);
    for (hours, more, goes) in [(72, None, true), (71, None, false), (72, Some("parts/0a/x"), false)] {
        let mut survey = world.survey();
        let mut seen = SeenEpoch::new(id.clone(), EpochState::NoRecord);
        seen.add(world.object(keys.clone(), hours), &ages);
        if let Some(more) = more {
            seen.add(world.object(format!("{}{more}", layout::epoch(&id)), hours), &ages);
        }
        survey.epochs.push(seen);
        let plan = plan(survey, 100);
        assert_eq!(plan.epochs.contains(&id), goes, "{hours} {more:?}");
        assert_eq!(plan.work.then.concat().contains(&keys), goes, "{hours} {more:?}");
    }
    // Newer than any epoch, and before the newest has been in use for the grace period: their record may still come.
    for (began, id) in [(1000, ago(world.now, 999)), (1000, ago(world.now, 800)), (71, ago(world.now, 100))] {
        let eras = vec![Era { began, parts: vec![] }];
        let world = World::new(eras, vec![run(0, true, None, 50, &[])]);
        let (mut survey, id) = (world.survey(), EpochId::new(id));
        let mut seen = SeenEpoch::new(id.clone(), EpochState::NoRecord);
        seen.add(world.object(layout::keys(&id, &Protection::Clear), 80), &ages);
        survey.epochs.push(seen);
        assert_eq!(plan(survey, 100).epochs, [], "{began} {id}");
    }
}

#[test]
fn what_is_from_the_future_is_young() {
    let now: Timestamp = "2026-11-23T01:00:00Z".parse().unwrap();
    let ages = Ages { now, grace: Duration::from_secs(3600) };
    for (minutes, old) in [(-600, false), (0, false), (59, false), (60, true), (61, true)] {
        assert_eq!(ages.is_old(now - SignedDuration::from_mins(minutes)), old, "{minutes}");
    }
    assert!(!Ages { now, grace: Duration::MAX }.is_old(Timestamp::MIN));
}

fn world() -> impl Strategy<Value = World> {
    let era = (0_u64..4000, prop::collection::vec(0_u64..150, 0..20));
    let era = era.prop_map(|(began, mut parts)| {
        parts.iter_mut().for_each(|hours| *hours = (*hours).min(began));
        Era { began, parts }
    });
    let run = (
        any::<prop::sample::Index>(),
        prop::bool::weighted(0.4),
        prop::option::of(0_u64..150),
        0_u64..150,
        prop::collection::vec(0_usize..20, 0..10),
        any::<bool>(),
    );
    (prop::collection::vec(era, 1..5), prop::collection::vec(run, 0..12)).prop_map(|(eras, runs)| {
        let runs = runs.into_iter().map(|(era, head, expired, written, mut parts, evidence)| {
            let era = era.index(eras.len());
            parts.retain(|part| *part < eras[era].parts.len());
            Run { era, head, expired, written, parts, evidence }
        });
        let runs = runs.collect();
        World::new(eras, runs)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn nothing_that_is_needed_goes(world in world()) {
        let plan_now = plan(world.survey(), 100);
        let going = World::keys_of_parts(&plan_now);
        let mut needed = BTreeSet::new();
        for run in world.runs.iter().filter(|run| run.is_needed()) {
            needed.extend(run.parts.iter().map(|part| world.part_key(run.era, *part)));
        }
        for (place, era) in world.eras.iter().enumerate() {
            for (part, hours) in era.parts.iter().enumerate() {
                let key = world.part_key(place, part);
                let may_go = !needed.contains(&key) && *hours >= GRACE;
                prop_assert_eq!(going.contains(&key), may_go, "{} hours old", hours);
            }
        }
        let records: BTreeSet<String> = plan_now.work.then.concat().into_iter().collect();
        for (place, run) in world.runs.iter().enumerate() {
            let mut keys = world.records(place).into_values().flatten().map(|info| info.key);
            prop_assert!(keys.all(|key| records.contains(&key) != run.is_needed()));
            let epoch = &world.epochs[run.era];
            prop_assert!(!run.is_needed() || !plan_now.epochs.contains(epoch.id()));
        }
        let newest = world.epochs.iter().max_by_key(|epoch| (epoch.record.began, epoch.id())).unwrap();
        prop_assert!(!plan_now.epochs.contains(newest.id()));
        for (place, era) in world.eras.iter().enumerate() {
            let whole = (0..era.parts.len()).all(|part| going.contains(&world.part_key(place, part)));
            prop_assert!(whole || !plan_now.epochs.contains(world.epochs[place].id()));
        }

        // Once it is done, there is nothing left to do.
        let mut left = world.clone();
        left.runs.retain(Run::is_needed);
        for (place, era) in left.eras.iter_mut().enumerate() {
            let stays = |part: &usize| !going.contains(&world.part_key(place, *part));
            let parts: Vec<usize> = (0..era.parts.len()).filter(stays).collect();
            for run in left.runs.iter_mut().filter(|run| run.era == place) {
                run.parts.iter_mut().for_each(|part| *part = parts.iter().position(|stays| stays == part).unwrap());
            }
            era.parts = parts.into_iter().map(|part| era.parts[part]).collect();
        }
        let gone = |epoch: &Arc<Epoch>| plan_now.epochs.contains(epoch.id());
        let stay: Vec<usize> = (0..left.epochs.len()).filter(|place| !gone(&left.epochs[*place])).collect();
        let eras = stay.iter().map(|place| left.eras[*place].clone()).collect();
        let runs = left.runs.iter().cloned().map(|run| Run {
            era: stay.iter().position(|place| *place == run.era).unwrap(),
            ..run
        });
        let again = plan(World::new(eras, runs.collect()).survey(), 100);
        prop_assert!(again.is_empty(), "{again:?}");
    }
}
