//! What is wrong, and what is not: a pure function of what the repository says, of the configuration and of the time.
//!
//! Every configured source has every condition, firing or not. Their words leave the house: they name the source, the backup, a code for the
//! reason and the next step, and nothing that is inside of a source.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    config::Config,
    report,
    repository::{
        AlertKey, AlertKind, Attempt, BackupId, CatalogEntry, Head, HeadSource, History, Level, Reason, Said,
        SnapshotState, SourceEvidence, Verdict,
    },
    schedule,
};

/// How often something is to happen to a source, by its name; nothing where no schedule asks for it.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// A backup.
    pub backup: BTreeMap<String, Duration>,
    /// A backup that is proved by a restore.
    pub proof: BTreeMap<String, Duration>,
}

impl Expected {
    /// What the configured schedules promise from `now` on.
    pub fn of(config: &Config, now: Timestamp) -> Self {
        let mut expected = Self::default();
        for name in config.sources.iter().map(|source| &source.name) {
            let (backup, proof) =
                (schedule::expected_interval(config, name, now), schedule::expected_proof_interval(config, name, now));
            expected.backup.extend(backup.map(|interval| (name.to_string(), interval)));
            expected.proof.extend(proof.map(|interval| (name.to_string(), interval)));
        }
        expected
    }
}

/// What a clock that ran ahead has dated further into the future than this is passed over: it would hide all that comes after it.
const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(5);

/// Verifications in a row that could not find it out, until somebody is told.
const INCONCLUSIVE: usize = 2;

/// One thing that is wrong, or is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What, of whom.
    pub key: AlertKey,
    /// Is it so?
    pub firing: bool,
    /// What is to be said of it.
    pub said: Said,
}

/// After so long without one, the expected thing is late: half an interval is for runs that take their time, and for one that is repeated.
pub fn limit(interval: Duration) -> Duration {
    interval.saturating_add(interval / 2)
}

/// Every condition of every configured source at `now`, the store's time.
pub fn conditions(history: &History, config: &Config, expected: &Expected, now: Timestamp) -> Vec<Condition> {
    let mut found = Vec::new();
    for source in &config.sources {
        let of = Of { history, name: source.name.as_str(), now };
        let interval = |of_what: &BTreeMap<String, Duration>| of_what.get(source.name.as_str()).copied();
        found.extend([
            of.backup_failed(),
            of.verification_failed(),
            of.verification_inconclusive(),
            of.late(interval(&expected.backup)),
            of.unverified(interval(&expected.proof)),
        ]);
    }
    found
}

/// What is known of sources that backups hold and that are not configured here: a machine that only verifies may have none.
pub(super) fn of_others(history: &History, config: &Config, now: Timestamp) -> Vec<Condition> {
    let names = history.catalog.heads().flat_map(|head| &head.sources).map(|source| source.name.as_str());
    let is_other = |name: &&str| config.sources.iter().all(|source| source.name.as_str() != *name);
    let others: BTreeSet<&str> = names.filter(is_other).collect();
    let of = |name| {
        let of = Of { history, name, now };
        [of.verification_failed(), of.verification_inconclusive()]
    };
    others.into_iter().flat_map(of).collect()
}

/// Is a backup of this source known to be bad, which no newer one makes up for?
pub fn is_bad(history: &History, name: &str, now: Timestamp) -> bool {
    Of { history, name, now }.verification_failed().firing
}

/// How one attempt at backing a source up ended.
#[derive(Clone, Copy)]
enum Ended<'a> {
    Backup(&'a Head, &'a HeadSource),
    Without(&'a Attempt),
}

impl Ended<'_> {
    fn backup(&self) -> &BackupId {
        match self {
            Self::Backup(head, _) => &head.backup,
            Self::Without(attempt) => &attempt.backup,
        }
    }

    fn started(&self) -> Timestamp {
        match self {
            Self::Backup(head, _) => head.started,
            Self::Without(attempt) => attempt.started,
        }
    }

    fn finished(&self) -> Timestamp {
        match self {
            Self::Backup(head, _) => head.finished,
            Self::Without(attempt) => attempt.finished,
        }
    }

    fn is_success(&self) -> bool {
        matches!(self, Self::Backup(_, source) if source.state.is_usable())
    }
}

/// One source.
struct Of<'a> {
    history: &'a History,
    name: &'a str,
    now: Timestamp,
}

impl<'a> Of<'a> {
    fn condition(&self, alert: AlertKind, firing: bool, said: Said) -> Condition {
        Condition { key: AlertKey::new(alert, self.name), firing, said }
    }

    fn is_past(&self, at: Timestamp) -> bool {
        at.duration_since(self.now) <= CLOCKS_APART
    }

    /// Its snapshots, the newest first, and also those that failed.
    fn in_heads(&self) -> impl Iterator<Item = (&'a Head, &'a HeadSource)> {
        let heads = self.history.catalog.heads().filter(|head| self.is_past(head.started));
        heads.filter_map(|head| Some((head, head.source(self.name)?)))
    }

    /// Its snapshots that are there, if perhaps not whole, the newest first.
    fn snapshots(&self) -> impl Iterator<Item = (&'a Head, &'a HeadSource)> {
        self.in_heads().filter(|(_, source)| source.state.is_there())
    }

    fn last_proved(&self) -> Option<&'a Head> {
        self.snapshots().find(|(head, source)| self.history.verdicts.proves(head, source)).map(|(head, _)| head)
    }

    fn last_success(&self) -> Option<&'a Head> {
        self.snapshots().find(|(_, source)| source.state.is_usable()).map(|(head, _)| head)
    }

    /// Every run that was asked for it, the newest first. Of one that failed and left a head, the failure counts.
    fn runs(&self) -> Vec<Ended<'a>> {
        let asked = |attempt: &&Attempt| {
            attempt.sources.iter().any(|source| source == self.name) && self.is_past(attempt.started)
        };
        let attempts = self.history.attempts.iter().filter(asked).map(Ended::Without);
        let backups = self.in_heads().map(|(head, source)| Ended::Backup(head, source));
        let mut runs: Vec<Ended<'a>> = attempts.chain(backups).collect();
        runs.sort_by_key(|run| (run.started(), matches!(run, Ended::Without(_))));
        runs.reverse();
        runs
    }

    fn backup_failed(&self) -> Condition {
        let (name, runs) = (self.name, self.runs());
        let row = runs.iter().take_while(|run| !run.is_success()).count();
        let (Some(newest), Some(first)) = (runs.first(), row.checked_sub(1).and_then(|first| runs.get(first))) else {
            let (since, backup) = match runs.first() {
                Some(good) => (good.finished(), Some(good.backup().clone())),
                None => (self.history.created, None),
            };
            let description = match &backup {
                Some(id) => format!("Backup {id} holds all that was asked for of source `{name}`."),
                None => format!("No backup of source `{name}` was tried yet."),
            };
            let said = fine(since, backup, format!("source `{name}` is backed up"), description);
            return self.condition(AlertKind::BackupFailed, false, said);
        };
        let id = newest.backup();
        let (reason, what) = match newest {
            Ended::Without(attempt) => {
                let (error, at) = (&attempt.error, report::time(attempt.finished));
                (error.clone(), format!("Run {id} ended at {at} without a backup of source `{name}`: `{error}`."))
            }
            Ended::Backup(head, source) => {
                let (state, at) = (source.state, report::time(head.finished));
                let what = match state {
                    SnapshotState::Partial => "holds only a part of what was asked for of",
                    _ => "holds nothing of",
                };
                (state.to_string(), format!("Backup {id} of {at} {what} source `{name}`."))
            }
        };
        let in_a_row = if row > 1 { format!(" It is the last of {row} failures in a row.") } else { String::new() };
        let last = match self.last_success() {
            Some(head) => {
                format!(" The last whole backup of it is {}, of {}.", head.backup, report::time(head.started))
            }
            None => " There is no whole backup of it.".to_owned(),
        };
        let said = Said {
            since: first.finished(),
            reason: Some(reason),
            backup: Some(id.clone()),
            summary: format!("the backup of source `{name}` failed"),
            description: format!("{what}{in_a_row}{last}"),
            hint: Some(
                "the log of that run says what failed and what to do; `altlas-backup doctor` checks source and repository"
                    .to_owned(),
            ),
        };
        self.condition(AlertKind::BackupFailed, true, said)
    }

    /// All evidence on its snapshot in this backup, the oldest first.
    fn evidence(
        &self,
        head: &'a Head,
        source: &'a HeadSource,
    ) -> impl Iterator<Item = (Timestamp, Level, &'a SourceEvidence)> {
        let all = self.history.verdicts.evidence(&head.backup).iter();
        let on_it = |one: &&SourceEvidence| {
            one.name == source.name && source.manifest.as_ref().is_some_and(|manifest| manifest.sha256 == one.manifest)
        };
        all.flat_map(move |whole| whole.sources.iter().filter(on_it).map(|one| (whole.finished, whole.level, one)))
    }

    /// What is known to be wrong with a snapshot: the deepest verification that failed and that no later proof overruled.
    fn failure(&self, head: &'a Head, source: &'a HeadSource) -> Option<(Timestamp, Level, Reason)> {
        let mut deepest = None;
        for (at, level, one) in self.evidence(head, source) {
            match (one.verdict, level) {
                (Verdict::Verified, Level::Restore) => deepest = None,
                (Verdict::Failed, _) if deepest.is_none_or(|(_, known, _)| level > known) => {
                    deepest = Some((at, level, one.reason.unwrap_or(Reason::Damaged)));
                }
                _ => {}
            }
        }
        deepest
    }

    /// How deep a snapshot was found good, with nothing known that is wrong with it.
    fn found_good(&self, head: &'a Head, source: &'a HeadSource) -> Option<(Timestamp, Level)> {
        let good = |(_, _, one): &(Timestamp, Level, &SourceEvidence)| {
            matches!(one.verdict, Verdict::Sound | Verdict::Verified)
        };
        let seen = self.evidence(head, source).filter(good).map(|(at, level, _)| (at, level));
        // Whoever made it looked twice that every object was there (rule R1).
        let made = source.state.is_usable().then_some((head.finished, Level::Presence));
        made.into_iter().chain(seen).max_by_key(|(_, level)| *level)
    }

    /// Is anything bad that no newer snapshot has made good? A failure is made good by a newer snapshot that went through at least as deep.
    fn verification_failed(&self) -> Condition {
        let name = self.name;
        // The newest snapshot that was found good, and how deep newer ones than the one looked at were.
        let (mut good, mut depth) = (None::<(Timestamp, &BackupId)>, None::<Level>);
        for entry in &self.history.catalog.entries {
            match entry {
                CatalogEntry::Good(head) => {
                    let Some(source) = head.source(name).filter(|source| source.state.is_there()) else { continue };
                    match self.failure(head, source) {
                        Some((since, level, reason)) if Some(level) > depth => {
                            let what = format!("its verification at level {level} found that {}", words_of(reason));
                            return self.bad(&head.backup, since, reason.as_str(), &what);
                        }
                        Some(_) => {}
                        // What a clock that ran ahead has dated makes up for nothing.
                        None if !self.is_past(head.started) => {}
                        None => {
                            let found = self.found_good(head, source);
                            good = good.or(found.map(|(at, _)| (at, &head.backup)));
                            depth = depth.max(found.map(|(_, level)| level));
                        }
                    }
                }
                CatalogEntry::Damaged { id, .. } if depth.is_none() => {
                    let since = self.history.created.max(started(id));
                    return self.bad(id, since, Reason::Damaged.as_str(), "its record cannot be trusted");
                }
                _ => {}
            }
        }
        let (since, backup) = good.map_or((self.history.created, None), |(since, id)| (since, Some(id.clone())));
        let description = match &backup {
            Some(id) => {
                format!("Nothing is known to be wrong with backup {id} of source `{name}`, nor with a newer one.")
            }
            None => format!("Nothing is known to be wrong with a backup of source `{name}`."),
        };
        let said = fine(since, backup, format!("backups of source `{name}` are not known to be bad"), description);
        self.condition(AlertKind::VerificationFailed, false, said)
    }

    fn bad(&self, id: &BackupId, since: Timestamp, reason: &str, what: &str) -> Condition {
        let name = self.name;
        let last = match self.last_proved() {
            Some(head) => {
                format!("The last proved backup of it is {}, of {}.", head.backup, report::time(head.started))
            }
            None => "No backup of it is proved.".to_owned(),
        };
        let said = Said {
            since,
            reason: Some(reason.to_owned()),
            backup: Some(id.clone()),
            summary: format!("a backup of source `{name}` is bad"),
            description: format!("Backup {id} of source `{name}` is not to be relied on: {what}. {last}"),
            hint: Some(hint_of_bad(id, reason)),
        };
        self.condition(AlertKind::VerificationFailed, true, said)
    }

    /// Did the last restores that were to prove a snapshot of it, of whatever backup, all end without an answer?
    fn verification_inconclusive(&self) -> Condition {
        let name = self.name;
        let mut restores: Vec<(Timestamp, &Head, &SourceEvidence)> = self
            .snapshots()
            .flat_map(|(head, source)| self.evidence(head, source).map(move |(at, level, one)| (at, level, head, one)))
            .filter(|(_, level, _, one)| *level == Level::Restore || one.verdict == Verdict::Failed)
            .map(|(at, _, head, one)| (at, head, one))
            .collect();
        restores.sort_by_key(|(at, ..)| *at);
        let row = restores.iter().rev().take_while(|(_, _, one)| one.verdict == Verdict::Inconclusive).count();
        let told = restores.last().zip(restores.get(restores.len().saturating_sub(row)));
        let Some(((_, head, newest), (first, ..))) = told.filter(|_| row >= INCONCLUSIVE) else {
            let (since, backup) =
                restores.last().map_or((self.history.created, None), |(at, head, _)| (*at, Some(head.backup.clone())));
            let summary = format!("verifications of source `{name}` give an answer");
            let description = format!("The last verifications of source `{name}` did not end without an answer.");
            return self.condition(
                AlertKind::VerificationInconclusive,
                false,
                fine(since, backup, summary, description),
            );
        };
        let reason = newest.reason.unwrap_or(Reason::Environment);
        let said = Said {
            since: *first,
            reason: Some(reason.as_str().to_owned()),
            backup: Some(head.backup.clone()),
            summary: format!("backups of source `{name}` could not be verified, {row} times in a row"),
            description: format!(
                "The last {row} verifications of source `{name}` ended without an answer, the last one on backup {}: {}.",
                head.backup,
                words_of(reason)
            ),
            hint: Some(format!(
                "`altlas-backup show {}` says in words what was missing on the machine that verifies",
                head.backup
            )),
        };
        self.condition(AlertKind::VerificationInconclusive, true, said)
    }

    /// Since when it has been too long without what is expected every `interval` and last happened at `last`.
    fn overdue(&self, last: Timestamp, interval: Option<Duration>) -> Option<Timestamp> {
        let limit = SignedDuration::try_from(limit(interval?)).ok()?;
        let due = last.checked_add(limit).ok()?;
        (due < self.now).then_some(due)
    }

    fn late(&self, interval: Option<Duration>) -> Condition {
        let (name, last) = (self.name, self.last_success());
        let at = last.map_or(self.history.created, |head| head.started);
        let backup = last.map(|head| head.backup.clone());
        let (Some(since), Some(interval)) = (self.overdue(at, interval), interval) else {
            let summary = format!("backups of source `{name}` are on time");
            let description = match &backup {
                Some(id) => format!("The last whole backup of source `{name}` is {id}, of {}.", report::time(at)),
                None => format!("No backup of source `{name}` is due yet."),
            };
            return self.condition(AlertKind::Late, false, fine(at, backup, summary, description));
        };
        let known = match last {
            Some(head) => {
                format!("The last whole backup of source `{name}` is {}, of {}", head.backup, report::time(at))
            }
            None => {
                format!("There is no whole backup of source `{name}`; the repository was created {}", report::time(at))
            }
        };
        let said = Said {
            since,
            reason: Some("late".to_owned()),
            backup,
            summary: format!("source `{name}` was not backed up for {}", self.ago(at)),
            description: format!("{known}. One is expected every {}.", report::duration(interval)),
            hint: Some(
                "see whether the scheduled runs start and how they end; `altlas-backup backup` makes a backup now"
                    .to_owned(),
            ),
        };
        self.condition(AlertKind::Late, true, said)
    }

    fn unverified(&self, interval: Option<Duration>) -> Condition {
        let name = self.name;
        let proved = self.last_proved();
        let at = proved.map_or(self.history.created, |head| head.started);
        let backup = proved.map(|head| head.backup.clone());
        let (Some(since), Some(interval)) = (self.overdue(at, interval), interval) else {
            let summary = format!("a recent backup of source `{name}` is proved");
            let description = match &backup {
                Some(id) => format!("The last proved backup of source `{name}` is {id}, of {}.", report::time(at)),
                None => format!("No proof of a backup of source `{name}` is due yet."),
            };
            return self.condition(AlertKind::Unverified, false, fine(at, backup, summary, description));
        };
        let known = match &backup {
            Some(id) => format!("The last proved backup of source `{name}` is {id}, of {}", report::time(at)),
            None => format!("No backup of source `{name}` is proved; the repository was created {}", report::time(at)),
        };
        let said = Said {
            since,
            reason: Some("unverified".to_owned()),
            backup,
            summary: format!(
                "no backup of source `{name}` from the last {} is proved",
                report::duration(limit(interval))
            ),
            description: format!("{known}. A proved one is expected every {}.", report::duration(interval)),
            hint: Some(
                "`altlas-backup verify` proves the newest backup; `altlas-backup list` shows all verdicts".to_owned(),
            ),
        };
        self.condition(AlertKind::Unverified, true, said)
    }

    fn ago(&self, at: Timestamp) -> String {
        report::duration(self.now.duration_since(at).unsigned_abs())
    }
}

fn fine(since: Timestamp, backup: Option<BackupId>, summary: String, description: String) -> Said {
    Said { since, reason: None, backup, summary, description, hint: None }
}

/// When a backup whose record cannot be read says that it began: by its name, which is all there is.
fn started(id: &BackupId) -> Timestamp {
    let time = id.as_str().split('-').next().unwrap_or_default();
    jiff::fmt::strtime::parse("%Y%m%dT%H%M%SZ", time)
        .and_then(|parsed| jiff::tz::TimeZone::UTC.to_timestamp(parsed.to_datetime()?))
        .unwrap_or(Timestamp::MIN)
}

fn hint_of_bad(id: &BackupId, reason: &str) -> String {
    // A part is never written twice: as long as a damaged one is there, new backups may stand on it.
    let first = match reason == Reason::Damaged.as_str() {
        true => {
            "remove a damaged part from the store, so that the next backup stores it again (never keys or the record of an epoch); then"
        }
        false => "then",
    };
    format!("`altlas-backup verify {id}` names what is wrong with it; {first} make a new backup and verify it")
}

/// As a clause.
fn words_of(reason: Reason) -> &'static str {
    match reason {
        Reason::Damaged => "an object of it is missing or damaged",
        Reason::NotRestorable => "a server refuses what it holds",
        Reason::Differs => "what was restored is not what was captured",
        Reason::NoServer => "there was no program for a throwaway server of the right version",
        Reason::Missing => "the throwaway server lacked an extension, a module or a locale",
        Reason::NoSpace => "there was no room for the throwaway server",
        Reason::TimeOut => "it took longer than it may",
        Reason::ServerLost => "the throwaway server ended, or could not be reached",
        Reason::NotComparable => "some of it can be compared by nobody",
        Reason::Environment => "something about the place of the verification was in its way",
    }
}

#[cfg(test)]
mod tests;
