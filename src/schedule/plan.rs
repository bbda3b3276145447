//! The planner.

use std::time::Duration;

use jiff::Timestamp;

use super::{delay, times::Times};
use crate::{
    config::{Config, ScheduleConfig, SourceName},
    repository::{Attempt, BackupId, Head, History, Level, RepositoryId},
};

/// How long after the end of the first, second and third try that failed the next one begins; after the fourth there is none.
pub const RETRY_AFTER: [Duration; 3] =
    [Duration::from_secs(15 * 60), Duration::from_secs(30 * 60), Duration::from_secs(60 * 60)];
/// The most runs that are told as missed at once.
pub const MOST_MISSED: usize = 1000;
/// What [`State::Left`] gives another at least.
const LEFT_AT_LEAST: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// How long the verification of another's backup is left to that one, from the end of the backup on.
const VERIFICATION_LEFT: Duration = Duration::from_secs(2 * 3600);
/// The word for the error of a run that was told to stop: it did not fail, and is due again.
const INTERRUPTED: &str = "interrupted";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// One backup.
    Backup {
        /// Of these sources.
        sources: Vec<String>,
        /// 1 for the first try of this run.
        attempt: u32,
        /// Runs since the last backup that will not be caught up, the oldest first, at most [`MOST_MISSED`]. With a first try only.
        missed: Vec<Timestamp>,
    },
    /// The verification of a backup.
    Verify {
        /// Which.
        backup: BackupId,
        /// How deep.
        level: Level,
    },
    /// Retention and sweep.
    Prune,
}

/// Something that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The schedule that asks for it.
    pub schedule: SourceName,
    /// The run it belongs to.
    pub run: Timestamp,
    /// What it is.
    pub task: Task,
}

/// What tells one thing that is due from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskKey {
    /// The backup of one run.
    Backup(SourceName, Timestamp),
    /// A verification.
    Verify(BackupId, Level),
    /// The retention after one run.
    Prune(SourceName, Timestamp),
}

impl Due {
    /// What tells it from others.
    pub fn key(&self) -> TaskKey {
        match &self.task {
            Task::Backup { .. } => TaskKey::Backup(self.schedule.clone(), self.run),
            Task::Verify { backup, level } => TaskKey::Verify(backup.clone(), *level),
            Task::Prune => TaskKey::Prune(self.schedule.clone(), self.run),
        }
    }

    /// Data that is in no backup comes before proof, and proof before what gives space back.
    fn rank(&self) -> u8 {
        match self.task {
            Task::Backup { .. } => 0,
            Task::Verify { .. } => 1,
            Task::Prune => 2,
        }
    }
}

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, with whatever result.
    Done,
    /// It could not be.
    Failed,
}

/// What a process did itself: for what leaves no record in the repository, so that it is not tried again every minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What.
    pub key: TaskKey,
    /// When it ended, by the store's clock.
    pub ended: Timestamp,
    /// How.
    pub outcome: Outcome,
}

/// What a process knows of itself. The repository's records come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Since when it serves, by the store's clock.
    pub since: Option<Timestamp>,
    /// The backups that it made.
    pub made: Vec<BackupId>,
    /// What it tried.
    pub tried: Vec<Tried>,
}

/// Where a schedule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its last run is done.
    Done,
    /// Its last run is due.
    Due,
    /// Its last run is left to another process until then: the run before was that one's.
    Left(Timestamp),
    /// Its last run failed, and is tried again then.
    Retry(Timestamp),
    /// Its last run failed, and is not tried again.
    GivenUp,
    /// It has had no run in nine years.
    Never,
}

/// One schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// Its name.
    pub name: SourceName,
    /// Its last run.
    pub last: Option<Timestamp>,
    /// Its next run.
    pub next: Option<Timestamp>,
    /// Where it stands.
    pub state: State,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Everything that is due, in the order in which it is to be done: one after the other, with a new plan each time.
    pub due: Vec<Due>,
    /// Every schedule, in the file's order.
    pub schedules: Vec<Scheduled>,
}

/// Decides what is due now.
pub fn plan(config: &Config, repository: &RepositoryId, history: &History, now: Timestamp, own: &Own) -> Plan {
    let mut plan = Plan::default();
    let names: Vec<&SourceName> = config.sources.iter().map(|source| &source.name).collect();
    for schedule in &config.schedules {
        let times = Times::of(schedule, delay(repository, schedule));
        let (last, next) = (times.last(now), times.after(now).next());
        let mut state = State::Never;
        if let Some(run) = last {
            let sources: Vec<&str> =
                schedule.chooses(names.iter().copied()).into_iter().map(SourceName::as_str).collect();
            let prunes = schedule.prune && config.retention.is_some();
            let asked = |head: &&Head| sources.iter().all(|name| head.source(name).is_some());
            let all: Vec<&Head> = history.catalog.heads().filter(asked).collect();
            let heads = all.iter().rev().copied().filter(|head| counts(head.started, run, next, now)).collect();
            let view = View { schedule, sources, prunes, times, run, next, now, history, own, all, heads };
            state = view.state();
            plan.due.extend(view.due(state));
        }
        plan.schedules.push(Scheduled { name: schedule.name.clone(), last, next, state });
    }
    plan.due.sort_by_key(|due| (due.rank(), due.run));
    plan
}

/// The last run of a schedule, and what is known of it.
struct View<'a> {
    schedule: &'a ScheduleConfig,
    sources: Vec<&'a str>,
    prunes: bool,
    times: Times<'a>,
    run: Timestamp,
    next: Option<Timestamp>,
    now: Timestamp,
    history: &'a History,
    own: &'a Own,
    /// The backups that were asked for all sources of the schedule, the newest first.
    all: Vec<&'a Head>,
    /// Those that count for the run, the oldest first.
    heads: Vec<&'a Head>,
}

impl<'a> View<'a> {
    fn state(&self) -> State {
        if self.heads.iter().copied().any(|head| self.is_whole(head)) {
            return State::Done;
        }
        let (tries, last) = self.tries();
        match again(tries, last) {
            Again::Now => self.left_until().filter(|until| *until > self.now).map_or(State::Due, State::Left),
            Again::At(at) if at <= self.now => State::Due,
            Again::At(at) => State::Retry(at),
            Again::Never => State::GivenUp,
        }
    }

    fn due(&self, state: State) -> Option<Due> {
        let task = match state {
            State::Due => Some(self.backup()),
            _ => self.verification().or_else(|| self.pruning()),
        };
        task.map(|task| Due { schedule: self.schedule.name.clone(), run: self.run, task })
    }

    fn counts(&self, began: Timestamp) -> bool {
        counts(began, self.run, self.next, self.now)
    }

    /// Was it asked for all sources of the schedule?
    fn asked(&self, sources: &[String]) -> bool {
        self.sources.iter().all(|name| sources.iter().any(|asked| asked == name))
    }

    fn attempts(&self) -> impl Iterator<Item = &'a Attempt> {
        self.history.attempts.iter().filter(|one| one.error != INTERRUPTED && self.asked(&one.sources))
    }

    fn is_whole(&self, head: &Head) -> bool {
        self.sources.iter().all(|name| head.source(name).is_some_and(|source| source.state.is_usable()))
    }

    /// How often the run was tried, and when the last try ended.
    fn tries(&self) -> (usize, Timestamp) {
        let heads = self.heads.iter().copied().map(|head| head.finished);
        let attempts = self.attempts().filter(|one| self.counts(one.started)).map(|one| one.finished);
        let recorded: Vec<Timestamp> = heads.chain(attempts).collect();
        let own = self.tried(&TaskKey::Backup(self.schedule.name.clone(), self.run));
        // Most of its own tries left a record.
        let last = recorded.iter().chain(&own).max().copied().unwrap_or(self.run);
        (recorded.len().max(own.len()), last)
    }

    fn tried(&self, key: &TaskKey) -> Vec<Timestamp> {
        self.own.tried.iter().filter(|tried| tried.key == *key).map(|tried| tried.ended).collect()
    }

    fn backup(&self) -> Task {
        let (tries, _) = self.tries();
        let missed = if tries == 0 { self.missed() } else { Vec::new() };
        let attempt = u32::try_from(tries).unwrap_or(u32::MAX).saturating_add(1);
        Task::Backup { sources: self.sources.iter().map(|name| (*name).to_owned()).collect(), attempt, missed }
    }

    /// The runs between the last one that was tried and this one. With no backup at all there is no telling since when.
    fn missed(&self) -> Vec<Timestamp> {
        let began = self.all.iter().copied().map(|head| head.started).chain(self.attempts().map(|one| one.started));
        match began.filter(|began| *began <= self.now).max() {
            Some(last) => self.times.after(last).take_while(|run| *run < self.run).take(MOST_MISSED).collect(),
            None => Vec::new(),
        }
    }

    /// Until when the run is left to another process: to whoever made, or began first, the backup of the run before while this one was
    /// there to make it. Two that serve one repository, or one beside a CronJob, so find each other out in the first night, and the one
    /// takes over when the other does nothing any more. Twice as long as the other's backup took, if that is not half of the way to
    /// the next run.
    fn left_until(&self) -> Option<Timestamp> {
        let before = self.times.last(self.run.checked_sub(SECOND).ok()?)?;
        self.own.since.filter(|since| *since <= before)?;
        let heads = || self.all.iter().copied().filter(|head| (before..self.run).contains(&head.started));
        let first = heads().min_by_key(|head| (head.started, &head.backup)).filter(|head| !self.is_own(head))?;
        let took = Duration::try_from(first.finished.duration_since(first.started)).unwrap_or_default();
        let half = self.next.and_then(|next| Duration::try_from(next.duration_since(self.run)).ok()).map(|all| all / 2);
        self.run.checked_add((2 * took + LEFT_AT_LEAST).min(half.unwrap_or(LEFT_AT_LEAST))).ok()
    }

    fn is_own(&self, head: &Head) -> bool {
        self.own.made.contains(&head.backup)
    }

    /// Is what follows this backup left to another process, which made it while this one was there?
    fn is_left(&self, head: &Head) -> bool {
        let is_anothers = !self.is_own(head) && self.own.since.is_some_and(|since| since < head.started);
        let left_until = head.finished.checked_add(VERIFICATION_LEFT);
        is_anothers && left_until.is_ok_and(|until| self.now < until)
    }

    /// The backup that is to be proved: the first whole one of the run, else its first, else the newest of all.
    fn subject(&self) -> Option<&'a Head> {
        let is_there = |head: &&Head| head.sources.iter().any(|source| source.state.is_there());
        let whole = self.heads.iter().copied().find(|head| self.is_whole(head));
        whole.or_else(|| self.heads.iter().copied().find(is_there)).or_else(|| self.all.iter().copied().find(is_there))
    }

    fn verification(&self) -> Option<Task> {
        let (level, head) = (self.schedule.verify?, self.subject()?);
        if self.is_examined(head, level) || self.is_left(head) {
            return None;
        }
        let key = TaskKey::Verify(head.backup.clone(), level);
        self.may_try(&key).then(|| Task::Verify { backup: head.backup.clone(), level })
    }

    /// Has a verification that is deep enough said something of it, be it that nothing could be found out?
    fn is_examined(&self, head: &Head, level: Level) -> bool {
        let key = TaskKey::Verify(head.backup.clone(), level);
        self.history.verdicts.evidence(&head.backup).iter().any(|evidence| evidence.level >= level)
            || self.own.tried.iter().any(|tried| tried.key == key && tried.outcome == Outcome::Done)
    }

    fn pruning(&self) -> Option<Task> {
        let key = TaskKey::Prune(self.schedule.name.clone(), self.run);
        let head = self.subject().filter(|head| self.counts(head.started) && !self.is_left(head))?;
        let is_proved = self.schedule.verify.is_none_or(|level| self.is_examined(head, level));
        let is_bad = self.history.verdicts.word(head) == "failed";
        let is_done = self.own.tried.iter().any(|tried| tried.key == key && tried.outcome == Outcome::Done);
        (self.prunes && is_proved && !is_bad && !is_done && self.may_try(&key)).then_some(Task::Prune)
    }

    /// May what only this process knows of be tried now?
    fn may_try(&self, key: &TaskKey) -> bool {
        let tried = self.tried(key);
        match again(tried.len(), tried.iter().max().copied().unwrap_or(self.now)) {
            Again::Now => true,
            Again::At(at) => at <= self.now,
            Again::Never => false,
        }
    }
}

/// Does what began then count for a run? Not what began in the future, unless in the run's own time.
fn counts(began: Timestamp, run: Timestamp, next: Option<Timestamp>, now: Timestamp) -> bool {
    began >= run && (began <= now || next.is_none_or(|next| began < next))
}

/// When something is tried the next time.
enum Again {
    Now,
    At(Timestamp),
    Never,
}

/// After so many tries, the last of which ended at `last`.
fn again(tries: usize, last: Timestamp) -> Again {
    match tries.checked_sub(1).map(|failed| RETRY_AFTER.get(failed)) {
        None => Again::Now,
        Some(Some(wait)) => last.checked_add(*wait).map_or(Again::Never, Again::At),
        Some(None) => Again::Never,
    }
}
