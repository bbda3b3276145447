//! The loop: ticks, looks, runs. It never waits for anything but the next event; whatever takes time is a task of its own.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use super::{
    NO_TICK, Options, ServeReport,
    metrics::{Intervals, facts},
    state::{Doing, Known, Shared},
};
use crate::{
    config::Config,
    operation::Error,
    pipeline::Progress,
    report,
    repository::{BackupId, History, RepositoryId},
    schedule::{self, Due, Outcome, Own, Plan, RETRY_AFTER, Task, TaskKey, Tried},
};

/// Adding up the sizes of all objects is a listing of everything: not more often than this, but after what changes it.
const MEASURE_EVERY: Duration = Duration::from_secs(3600);

/// What one look at the repository gave.
#[derive(Clone)]
pub struct Read {
    /// Which it is.
    pub repository: RepositoryId,
    /// What was done.
    pub history: Arc<History>,
    /// When the look began, by our own clock: of what ended later it may have seen nothing.
    pub began: tokio::time::Instant,
}

/// Carries out what the daemon decides.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// Looks at the repository.
    async fn read(&self) -> Result<Read, Error>;
    /// Does what is due, and gives the backup that was made; told to stop by `cancel`, it ends in good order, with [`Error::Interrupted`]
    /// where it was not done.
    async fn perform(
        &self,
        due: &Due,
        cancel: &CancellationToken,
        progress: &Arc<Progress>,
    ) -> Result<Option<BackupId>, Error>;
    /// Tells whoever is to be told of what a look showed, or that it showed nothing; gives how much a receiver could not be told yet.
    async fn alert(&self, look: Result<&Read, &Error>) -> usize;
    /// Bytes of all objects of the repository.
    async fn size(&self) -> Result<u64, Error>;
}

/// What a task is for.
enum Kind {
    Look,
    Run(Due),
    Alert,
    Measure,
}

/// What a task gave.
enum Ended {
    Looked(Result<Read, Error>),
    Ran(Result<Option<BackupId>, Error>),
    Alerted(usize),
    Measured(Result<u64, Error>),
}

/// A backup that is due and whose moment has not come.
struct Waiting {
    key: TaskKey,
    until: Instant,
    /// Has the look been asked for that comes right before it?
    looked: bool,
}

pub(super) struct Daemon {
    config: Arc<Config>,
    runner: Arc<dyn Runner>,
    cancel: CancellationToken,
    shared: Arc<Shared>,
    options: Options,
    /// How long this process waits before a backup.
    delay: Duration,
    tasks: JoinSet<Ended>,
    kinds: HashMap<Id, Kind>,
    ticked: Instant,
    /// Something ended while a look was under way, which may not have seen it.
    look_again: bool,
    waiting: Option<Waiting>,
    own: Own,
    /// What ended since the last look, whose time by the store's clock the next one tells.
    ended: Vec<(TaskKey, Outcome)>,
    measured: Option<Instant>,
    intervals: Intervals,
    report: ServeReport,
}

impl Daemon {
    pub(super) fn new(
        config: Arc<Config>,
        runner: Arc<dyn Runner>,
        cancel: CancellationToken,
        shared: Arc<Shared>,
        options: Options,
    ) -> Self {
        Self {
            config,
            runner,
            cancel,
            shared,
            options,
            delay: options.spread.mul_f64(rand::random_range(0.0..1.0)),
            tasks: JoinSet::new(),
            kinds: HashMap::new(),
            ticked: Instant::now(),
            look_again: false,
            waiting: None,
            own: Own::default(),
            ended: Vec::new(),
            measured: None,
            intervals: Intervals::default(),
            report: ServeReport::default(),
        }
    }

    /// Until it is told to stop; then until what runs has ended.
    pub(super) async fn run(mut self, mut ticks: mpsc::Receiver<()>) -> ServeReport {
        self.tick();
        while !self.cancel.is_cancelled() {
            let wake = sleep_until(self.wakes().into());
            tokio::select! {
                () = self.cancel.cancelled() => {}
                Some(()) = ticks.recv() => self.tick(),
                Some(ended) = self.tasks.join_next_with_id() => self.settle(ended),
                () = wake => self.wake(),
            }
        }
        self.stop().await
    }

    /// What runs was told to stop by its token: it ends in good order. Looks are dropped.
    async fn stop(mut self) -> ServeReport {
        while self.kinds.values().any(|kind| matches!(kind, Kind::Run(_))) {
            let Some(ended) = self.tasks.join_next_with_id().await else { break };
            let id = match &ended {
                Ok((id, _)) => *id,
                Err(error) => error.id(),
            };
            match self.kinds.remove(&id) {
                Some(Kind::Run(due)) => self.ran(due, ended.map(|(_, ended)| ended)),
                _ => continue,
            }
        }
        tracing::info!("stopped");
        self.report
    }

    fn tick(&mut self) {
        self.ticked = Instant::now();
        self.shared.ticked();
        if !self.is_doing(|kind| matches!(kind, Kind::Look)) {
            self.look();
        }
    }

    /// When something is to be done though nothing has happened.
    fn wakes(&self) -> Instant {
        let without_tick = self.ticked + NO_TICK;
        match &self.waiting {
            Some(waiting) if !waiting.looked => waiting.until.min(without_tick),
            _ => without_tick,
        }
    }

    fn wake(&mut self) {
        if self.ticked.elapsed() >= NO_TICK {
            tracing::warn!("the clock has not ticked for {} s; a timer stands in for it", NO_TICK.as_secs());
            self.tick();
        } else if let Some(waiting) = &mut self.waiting {
            waiting.looked = true;
            self.look();
        }
    }

    fn spawn(&mut self, kind: Kind, task: impl Future<Output = Ended> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.kinds.insert(id, kind);
    }

    fn is_doing(&self, kind: impl Fn(&Kind) -> bool) -> bool {
        self.kinds.values().any(kind)
    }

    /// Looks now; where a look is under way, which may not see what is there now, once more after it.
    fn look(&mut self) {
        if self.is_doing(|kind| matches!(kind, Kind::Look)) {
            self.look_again = true;
            return;
        }
        let runner = self.runner.clone();
        self.spawn(Kind::Look, async move { Ended::Looked(runner.read().await) });
    }

    fn settle(&mut self, ended: Result<(Id, Ended), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(kind) = self.kinds.remove(&id) else { return };
        match (kind, ended.map(|(_, ended)| ended)) {
            (Kind::Run(due), ended) => {
                self.ran(due, ended);
                self.look();
            }
            (Kind::Look, ended) => {
                let is_old = std::mem::take(&mut self.look_again);
                match ended {
                    Ok(Ended::Looked(Ok(read))) => {
                        self.saw(&read, is_old);
                        self.alert(Ok(read));
                    }
                    Ok(Ended::Looked(Err(error))) => {
                        self.saw_nothing(&with_hint(&error));
                        self.alert(Err(error));
                    }
                    Ok(_) => {}
                    Err(panic) => self.saw_nothing(&format!("the look ended by a panic: {panic}")),
                }
                if is_old {
                    self.look();
                }
            }
            (Kind::Measure, Ok(Ended::Measured(Ok(bytes)))) => {
                self.shared.change(|observed| observed.bytes = Some(bytes))
            }
            (Kind::Measure, Ok(Ended::Measured(Err(error)))) => {
                tracing::warn!("the size of the repository is not known: {error}");
            }
            (Kind::Alert, Ok(Ended::Alerted(undelivered))) => {
                self.shared.change(|observed| observed.undelivered = undelivered);
            }
            (Kind::Alert | Kind::Measure, Err(panic)) => tracing::error!("a task ended by a panic: {panic}"),
            (Kind::Alert | Kind::Measure, Ok(_)) => {}
        }
    }

    fn saw_nothing(&mut self, problem: &str) {
        tracing::warn!("the repository cannot be read, the next look comes with the next tick: {problem}");
        self.shared.change(|observed| observed.problem = Some(problem.to_owned()));
    }

    /// A look; an old one shows the past, and nothing is begun on its word.
    fn saw(&mut self, read: &Read, is_old: bool) {
        let (history, now) = (&read.history, read.history.now);
        if !is_old {
            let seen = self.ended.drain(..).map(|(key, outcome)| Tried { key, ended: now, outcome });
            self.own.tried.extend(seen);
            self.own.since.get_or_insert(now);
        }
        let plan = (!self.options.observe_only)
            .then(|| schedule::plan(&self.config, &read.repository, history, now, &self.own));
        let facts = facts(&self.config, history, now, &mut self.intervals);
        let known = Known { at: Instant::now(), now, facts, plan: plan.clone() };
        self.shared.change(|observed| (observed.known, observed.problem) = (Some(known), None));
        if let Some(plan) = plan.filter(|_| !is_old) {
            self.forget(&plan, history);
            self.begin(&plan);
        }
        if self.measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY)
            && !self.is_doing(|kind| matches!(kind, Kind::Measure))
        {
            self.measured = Some(Instant::now());
            let runner = self.runner.clone();
            self.spawn(Kind::Measure, async move { Ended::Measured(runner.size().await) });
        }
    }

    /// Receivers may take their time; those that are still being told hear of this look by the next one.
    fn alert(&mut self, look: Result<Read, Error>) {
        if !self.is_doing(|kind| matches!(kind, Kind::Alert)) {
            let runner = self.runner.clone();
            self.spawn(Kind::Alert, async move { Ended::Alerted(runner.alert(look.as_ref()).await) });
        }
    }

    /// What the next plans do not ask for any more.
    fn forget(&mut self, plan: &Plan, history: &History) {
        let is_there = |backup: &BackupId| history.catalog.heads().any(|head| head.backup == *backup);
        self.own.made.retain(|backup| is_there(backup));
        self.own.tried.retain(|tried| match &tried.key {
            TaskKey::Backup(name, run) | TaskKey::Prune(name, run) => {
                plan.schedules.iter().any(|schedule| schedule.name == *name && schedule.last == Some(*run))
            }
            TaskKey::Verify(backup, _) => is_there(backup),
        });
    }

    /// Starts what comes first, where nothing runs.
    fn begin(&mut self, plan: &Plan) {
        let is_running = self.is_doing(|kind| matches!(kind, Kind::Run(_)));
        let Some(due) = plan.due.first().filter(|_| !is_running && !self.cancel.is_cancelled()) else {
            if !is_running {
                self.waiting = None;
            }
            return;
        };
        if matches!(due.task, Task::Backup { .. }) && !self.may_begin(&due.key()) {
            return;
        }
        self.waiting = None;
        let what = what(due);
        announce(due, &what);
        let (runner, due, cancel) = (self.runner.clone(), due.clone(), self.cancel.child_token());
        let progress = Arc::new(Progress::default());
        let doing = Doing { what, since: Instant::now(), progress: progress.clone() };
        self.shared.change(|observed| observed.doing = Some(doing));
        let kind = Kind::Run(due.clone());
        self.spawn(kind, async move { Ended::Ran(runner.perform(&due, &cancel, &progress).await) });
    }

    /// A backup begins after this process' own delay, on the word of a look that came after it.
    fn may_begin(&mut self, key: &TaskKey) -> bool {
        match &self.waiting {
            Some(waiting) if waiting.key == *key => Instant::now() >= waiting.until,
            _ => {
                let until = Instant::now() + self.delay;
                self.waiting = Some(Waiting { key: key.clone(), until, looked: false });
                false
            }
        }
    }

    fn ran(&mut self, due: Due, ended: Result<Ended, JoinError>) {
        self.shared.change(|observed| observed.doing = None);
        let what = what(&due);
        let outcome = match ended {
            Ok(Ended::Ran(Err(Error::Interrupted))) if self.cancel.is_cancelled() => {
                tracing::info!("{what} was stopped before it was done");
                return;
            }
            Ok(Ended::Ran(Err(error))) => {
                tracing::error!("{what} failed: {}", with_hint(&error));
                Outcome::Failed
            }
            Ok(ended) => {
                if let Ended::Ran(Ok(made)) = ended {
                    self.own.made.extend(made);
                }
                Outcome::Done
            }
            Err(panic) => {
                tracing::error!("{what} ended by a panic: {panic}");
                Outcome::Failed
            }
        };
        match (outcome, &due.task) {
            (Outcome::Failed, _) => self.report.failures += 1,
            (Outcome::Done, Task::Backup { .. }) => self.report.backups += 1,
            (Outcome::Done, Task::Verify { .. }) => self.report.verifications += 1,
            (Outcome::Done, Task::Prune) => self.report.prunes += 1,
        }
        if !matches!(due.task, Task::Verify { .. }) {
            self.measured = None;
        }
        self.ended.push((due.key(), outcome));
    }
}

fn with_hint(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// What is due, in words that may begin a sentence.
fn what(due: &Due) -> String {
    let (schedule, run) = (&due.schedule, report::time(due.run));
    match &due.task {
        Task::Backup { attempt: 1, .. } => format!("the backup of schedule `{schedule}` for {run}"),
        Task::Backup { attempt, .. } => {
            let tries = RETRY_AFTER.len() + 1;
            format!("the backup of schedule `{schedule}` for {run} (try {attempt} of {tries})")
        }
        Task::Verify { backup, level } => format!("the verification of backup {backup} at level {level}"),
        Task::Prune => format!("the retention of schedule `{schedule}` after {run}"),
    }
}

fn announce(due: &Due, what: &str) {
    if let Task::Backup { missed, .. } = &due.task
        && let (Some(first), Some(last)) = (missed.first(), missed.last())
    {
        let (count, more) = (report::count(missed.len() as u64, "run"), missed.len() == schedule::MOST_MISSED);
        let at_least = if more { "at least " } else { "" };
        let (first, last) = (report::time(*first), report::time(*last));
        tracing::warn!("schedule `{}`: {at_least}{count} missed, from {first} to {last}", due.schedule);
    }
    tracing::info!("{what} begins");
}
