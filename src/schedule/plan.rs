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

/// What a process did itself. The repository's records come first; this is for what leaves none there, so that it is not tried again
/// every minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What.
    pub key: TaskKey,
    /// When it ended, by the store's clock.
    pub ended: Timestamp,
    /// How.
    pub outcome: Outcome,
}

/// Where a schedule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its last run is done.
    Done,
    /// Its last run is due.
    Due,
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
pub fn plan(config: &Config, repository: &RepositoryId, history: &History, now: Timestamp, tried: &[Tried]) -> Plan {
    let mut plan = Plan::default();
    let names: Vec<&SourceName> = config.sources.iter().map(|source| &source.name).collect();
    for schedule in &config.schedules {
        let times = Times::of(schedule, delay(repository, schedule));
        let (last, next) = (times.last(now), times.after(now).next());
        let mut state = State::Never;
        if let Some(run) = last {
            let sources = schedule.chooses(names.iter().copied()).into_iter().map(SourceName::as_str).collect();
            let prunes = schedule.prune && config.retention.is_some();
            let view = View { schedule, sources, prunes, times, run, next, now, history, tried };
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
    tried: &'a [Tried],
}

impl<'a> View<'a> {
    fn state(&self) -> State {
        if self.heads().any(|head| self.is_whole(head)) {
            return State::Done;
        }
        let (tries, last) = self.tries();
        match again(tries, last) {
            Again::Now => State::Due,
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

    /// Does this count for the run? Not what began in the future, unless in the run's own time.
    fn counts(&self, began: Timestamp) -> bool {
        began >= self.run && (began <= self.now || self.next.is_none_or(|next| began < next))
    }

    /// Was it asked for all sources of the schedule?
    fn asked(&self, sources: &[String]) -> bool {
        self.sources.iter().all(|name| sources.iter().any(|asked| asked == name))
    }

    /// The backups of all sources of the schedule, the newest first.
    fn all_heads(&self) -> impl DoubleEndedIterator<Item = &'a Head> {
        let asked = |head: &&Head| self.sources.iter().all(|name| head.source(name).is_some());
        let heads: Vec<&Head> = self.history.catalog.heads().filter(asked).collect();
        heads.into_iter()
    }

    /// The backups that count for the run, the oldest first.
    fn heads(&self) -> impl Iterator<Item = &'a Head> {
        self.all_heads().filter(|head| self.counts(head.started)).rev()
    }

    fn attempts(&self) -> impl Iterator<Item = &'a Attempt> {
        self.history.attempts.iter().filter(|one| one.error != INTERRUPTED && self.asked(&one.sources))
    }

    fn is_whole(&self, head: &Head) -> bool {
        self.sources.iter().all(|name| head.source(name).is_some_and(|source| source.state.is_usable()))
    }

    /// How often the run was tried, and when the last try ended.
    fn tries(&self) -> (usize, Timestamp) {
        let heads = self.heads().map(|head| head.finished);
        let attempts = self.attempts().filter(|one| self.counts(one.started)).map(|one| one.finished);
        let recorded: Vec<Timestamp> = heads.chain(attempts).collect();
        let own = self.tried(&TaskKey::Backup(self.schedule.name.clone(), self.run));
        // Most of its own tries left a record.
        let last = recorded.iter().chain(&own).max().copied().unwrap_or(self.run);
        (recorded.len().max(own.len()), last)
    }

    fn tried(&self, key: &TaskKey) -> Vec<Timestamp> {
        self.tried.iter().filter(|tried| tried.key == *key).map(|tried| tried.ended).collect()
    }

    fn backup(&self) -> Task {
        let (tries, _) = self.tries();
        let missed = if tries == 0 { self.missed() } else { Vec::new() };
        let attempt = u32::try_from(tries).unwrap_or(u32::MAX).saturating_add(1);
        Task::Backup { sources: self.sources.iter().map(|name| (*name).to_owned()).collect(), attempt, missed }
    }

    /// The runs between the last one that was tried and this one. With no backup at all there is no telling since when.
    fn missed(&self) -> Vec<Timestamp> {
        let began = self.all_heads().map(|head| head.started).chain(self.attempts().map(|one| one.started));
        match began.filter(|began| *began <= self.now).max() {
            Some(last) => self.times.after(last).take_while(|run| *run < self.run).take(MOST_MISSED).collect(),
            None => Vec::new(),
        }
    }

    /// The backup that is to be proved: the first whole one of the run, else its first, else the newest of all.
    fn subject(&self) -> Option<&'a Head> {
        let is_there = |head: &&Head| head.sources.iter().any(|source| source.state.is_there());
        let whole = self.heads().find(|head| self.is_whole(head));
        whole.or_else(|| self.heads().find(is_there)).or_else(|| self.all_heads().find(is_there))
    }

    fn verification(&self) -> Option<Task> {
        let (level, head) = (self.schedule.verify?, self.subject()?);
        if self.is_examined(head, level) {
            return None;
        }
        let key = TaskKey::Verify(head.backup.clone(), level);
        self.may_try(&key).then(|| Task::Verify { backup: head.backup.clone(), level })
    }

    /// Has a verification that is deep enough said something of it, be it that nothing could be found out?
    fn is_examined(&self, head: &Head, level: Level) -> bool {
        let key = TaskKey::Verify(head.backup.clone(), level);
        self.history.verdicts.evidence(&head.backup).iter().any(|evidence| evidence.level >= level)
            || self.tried.iter().any(|tried| tried.key == key && tried.outcome == Outcome::Done)
    }

    fn pruning(&self) -> Option<Task> {
        let key = TaskKey::Prune(self.schedule.name.clone(), self.run);
        let head = self.subject().filter(|head| self.counts(head.started))?;
        let is_proved = self.schedule.verify.is_none_or(|level| self.is_examined(head, level));
        let is_bad = self.history.verdicts.word(head) == "failed";
        let is_done = self.tried.iter().any(|tried| tried.key == key && tried.outcome == Outcome::Done);
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
