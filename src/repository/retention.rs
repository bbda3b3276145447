//! What is kept: a pure function of what the repository says (DESIGN.md §4, R9).
//!
//! The rules are applied to each source by itself, and a backup is kept if any of its snapshots is. A snapshot is *good* if it is complete
//! and no verification says otherwise. The rules are applied twice: to the good ones alone, so that what is partial or bad never takes
//! the place of one that can be restored; and to all there are, so that something is kept of a day on which nothing better came about.
//!
//! Order comes from the times in the heads (R6), days from the configured time zone. The clock is asked for one thing only, what is newer
//! than it: a clock that was set forward lets nothing expire.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::{Timestamp, ToSpan, civil::Date};
use serde::Serialize;

use super::{BackupId, CatalogEntry, Head, HeadSource, History, Verdict, Verdicts};
use crate::config::RetentionConfig;

/// Kept or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It stays.
    Kept,
    /// It expires now.
    Expires,
}

/// Why a backup is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Last(u32),
    Daily(Date),
    Weekly(Date),
    Monthly(Date),
    LastVerified,
    NewestComplete,
    Failed,
    Future,
}

impl Rule {
    /// In words, for these sources; `all` says that they are all that the backup holds.
    fn told(&self, sources: &BTreeSet<String>, all: bool) -> String {
        let names: Vec<String> = sources.iter().map(|name| format!("`{name}`")).collect();
        let names = names.join(", ");
        let of = if all { String::new() } else { format!(" of {names}") };
        match self {
            Self::Last(n) => format!("last {n}{of}"),
            Self::Daily(day) => format!("daily {day}{of}"),
            Self::Weekly(monday) => format!("weekly from {monday}{of}"),
            Self::Monthly(first) => format!("monthly {}{of}", first.strftime("%Y-%m")),
            Self::LastVerified => format!("the last verified snapshot of {names}"),
            Self::NewestComplete => format!("the newest complete snapshot of {names}"),
            Self::Failed => format!("the snapshot of {names} failed its verification, and no newer one is verified"),
            Self::Future => "newer than the store's clock".to_owned(),
        }
    }
}

/// What becomes of one backup.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedBackup {
    /// Its id.
    pub backup: BackupId,
    /// When it began, by the store's clock; absent where its head cannot be believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// `complete`, `partial`, `damaged` or `locked`.
    pub state: String,
    /// What is known of it.
    pub verdict: &'static str,
    /// Bytes of objects that its snapshots need, shared ones too.
    pub stored: u64,
    /// What becomes of it.
    pub fate: Fate,
    /// Why, in words.
    pub reasons: Vec<String>,
}

/// A source of which more would expire at once than may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TooMany {
    /// Its name.
    pub source: String,
    /// Snapshots of it that would expire.
    pub expire: u64,
    /// Snapshots of it there are.
    pub of: u64,
    /// The most that may, in percent.
    pub percent: u32,
}

/// What becomes of every backup.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetentionPlan {
    /// The rules, in words.
    pub rules: String,
    /// Every backup with a head, newest first.
    pub backups: Vec<PlannedBackup>,
    /// With any, nothing of the plan is to be carried out (R9).
    pub too_many: Vec<TooMany>,
}

impl RetentionPlan {
    /// What expires, the oldest first.
    pub fn expired(&self) -> impl Iterator<Item = &PlannedBackup> {
        self.backups.iter().rev().filter(|backup| backup.fate == Fate::Expires)
    }
}

/// How much a snapshot is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    Failed,
    Partial,
    Complete,
    Verified,
}

/// One source's snapshot in a backup.
struct Snapshot {
    /// The backup's place in the plan.
    backup: usize,
    started: Timestamp,
    day: Date,
    worth: Worth,
    complete: bool,
}

/// What is kept by each rule in one place of the plan, for which sources.
type Keeps = BTreeMap<Rule, BTreeSet<String>>;

/// Decides on every backup.
pub fn plan(history: &History, config: &RetentionConfig, now: Timestamp) -> RetentionPlan {
    let rules = told(config);
    let mut keeps: Vec<Keeps> = history.catalog.entries.iter().map(|_| Keeps::new()).collect();
    let mut sources: BTreeMap<&str, Vec<Snapshot>> = BTreeMap::new();
    for (place, entry) in history.catalog.entries.iter().enumerate() {
        let CatalogEntry::Good(head) = entry else { continue };
        for source in head.sources.iter().filter(|source| source.state.is_there()) {
            let snapshot = Snapshot::new(place, head, source, &history.verdicts, config);
            sources.entry(&source.name).or_default().push(snapshot);
        }
    }
    for (name, snapshots) in &mut sources {
        snapshots.sort_by_key(|snapshot| std::cmp::Reverse((snapshot.started, std::cmp::Reverse(snapshot.backup))));
        for (rule, place) in keep(snapshots, config, now) {
            keeps[place].entry(rule).or_default().insert((*name).to_owned());
        }
    }
    let planned =
        history.catalog.entries.iter().zip(&keeps).map(|(entry, keeps)| planned(entry, keeps, history, &rules));
    let fates: Vec<Option<PlannedBackup>> = planned.collect();
    let too_many = sources.iter().filter_map(|(name, snapshots)| {
        let expires =
            |snapshot: &&Snapshot| fates[snapshot.backup].as_ref().is_some_and(|backup| backup.fate == Fate::Expires);
        let (expire, of) = (snapshots.iter().filter(expires).count() as u64, snapshots.len() as u64);
        let percent = config.expire_at_most_percent;
        let too_many = expire * 100 > of * u64::from(percent);
        too_many.then(|| TooMany { source: (*name).to_owned(), expire, of, percent })
    });
    let too_many = too_many.collect();
    RetentionPlan { rules, backups: fates.into_iter().flatten().collect(), too_many }
}

/// The rules in words.
fn told(config: &RetentionConfig) -> String {
    let RetentionConfig { last, daily, weekly, monthly, timezone, .. } = config;
    let zone = timezone.iana_name().unwrap_or("UTC");
    format!("last {last}, daily {daily}, weekly {weekly}, monthly {monthly} in {zone}")
}

impl Snapshot {
    fn new(backup: usize, head: &Head, source: &HeadSource, verdicts: &Verdicts, config: &RetentionConfig) -> Self {
        let complete = source.state.is_usable();
        let worth = match verdicts.of(&head.backup, &source.name).verdict {
            Some(Verdict::Failed) => Worth::Failed,
            Some(Verdict::Verified) if complete => Worth::Verified,
            _ if complete => Worth::Complete,
            _ => Worth::Partial,
        };
        let day = config.timezone.to_datetime(head.started).date();
        Self { backup, started: head.started, day, worth, complete }
    }

    fn monday(&self) -> Date {
        let since = i64::from(self.day.weekday().to_monday_zero_offset());
        self.day.checked_sub(since.days()).unwrap_or(Date::MIN)
    }
}

/// What the rules keep of one source's snapshots, which are sorted, newest first.
fn keep(snapshots: &[Snapshot], config: &RetentionConfig, now: Timestamp) -> Vec<(Rule, usize)> {
    let mut kept: Vec<(Rule, usize)> = Vec::new();
    let mut add = |rule: Rule, snapshot: Option<&Snapshot>| {
        kept.extend(snapshot.map(|snapshot| (rule, snapshot.backup)));
    };
    let (future, present): (Vec<&Snapshot>, Vec<&Snapshot>) =
        snapshots.iter().partition(|snapshot| snapshot.started > now);
    future.iter().for_each(|snapshot| add(Rule::Future, Some(snapshot)));
    let good: Vec<&Snapshot> = present.iter().filter(|snapshot| snapshot.worth >= Worth::Complete).copied().collect();
    // What is newer than the clock is kept anyway, and stands in for nothing.
    let verified = |list: &[&Snapshot]| list.iter().position(|snapshot| snapshot.worth == Worth::Verified);
    add(Rule::LastVerified, verified(&present).map(|place| present[place]));
    add(Rule::NewestComplete, present.iter().find(|snapshot| snapshot.complete).copied());
    add(Rule::NewestComplete, good.first().copied());
    for list in [&good, &present] {
        list.iter().take(config.last as usize).for_each(|snapshot| add(Rule::Last(config.last), Some(snapshot)));
        for (many, period, rule) in [
            (config.daily, (|snapshot| snapshot.day) as fn(&Snapshot) -> Date, Rule::Daily as fn(Date) -> Rule),
            (config.weekly, Snapshot::monday, Rule::Weekly),
            (config.monthly, |snapshot| snapshot.day.first_of_month(), Rule::Monthly),
        ] {
            for (start, best) in best_of_each(list, period).into_iter().rev().take(many as usize) {
                add(rule(start), Some(best));
            }
        }
    }
    // Kept until its source is known to be well again, however long that takes.
    let bad = present.iter().take(verified(&present).unwrap_or(present.len()));
    bad.filter(|snapshot| snapshot.worth == Worth::Failed).for_each(|snapshot| add(Rule::Failed, Some(snapshot)));
    kept
}

/// Of each day, week or month the newest of those that are worth most.
fn best_of_each<'a>(list: &[&'a Snapshot], period: fn(&Snapshot) -> Date) -> BTreeMap<Date, &'a Snapshot> {
    let mut best: BTreeMap<Date, &Snapshot> = BTreeMap::new();
    // Newest first: of two that are worth the same the first is taken.
    for snapshot in list {
        let there = best.entry(period(snapshot)).or_insert(snapshot);
        if snapshot.worth > there.worth {
            *there = snapshot;
        }
    }
    best
}

/// One line of the plan; none for what has no head.
fn planned(entry: &CatalogEntry, keeps: &Keeps, history: &History, rules: &str) -> Option<PlannedBackup> {
    let kept = |backup: &BackupId, state: &str, reason: String| {
        Some(PlannedBackup {
            backup: backup.clone(),
            started: None,
            state: state.to_owned(),
            verdict: "unknown",
            stored: 0,
            fate: Fate::Kept,
            reasons: vec![reason],
        })
    };
    let head = match entry {
        CatalogEntry::Good(head) => head,
        CatalogEntry::Damaged { id, trust } => return kept(id, "damaged", format!("it cannot be trusted: {trust}")),
        CatalogEntry::Locked { id, locked } => return kept(id, "locked", format!("not readable here: {locked}")),
        CatalogEntry::Unfinished { .. } | CatalogEntry::Expired { .. } => return None,
    };
    let there = head.sources.iter().filter(|source| source.state.is_there()).count();
    let (fate, reasons) = match keeps.is_empty() {
        false => (Fate::Kept, keeps.iter().map(|(rule, sources)| rule.told(sources, sources.len() == there)).collect()),
        true => (Fate::Expires, vec![format!("none of {rules} keeps it")]),
    };
    Some(PlannedBackup {
        backup: head.backup.clone(),
        started: Some(head.started),
        state: head.state.to_string(),
        verdict: history.verdicts.word(head),
        stored: head.sources.iter().map(|source| source.sizes.stored).sum(),
        fate,
        reasons,
    })
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, expire, of, percent } = self;
        write!(f, "{expire} of the {of} snapshots of `{source}` would expire at once, more than {percent} %")
    }
}

#[cfg(test)]
mod tests;
