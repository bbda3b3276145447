//! The daemon's runner: what it decides, done by the operations that the commands call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::daemon::{Read, Runner};
use crate::{
    alert::{Run, Watch},
    operation::{self, BackupReport, Context, Error, PruneArguments, PruneReport, VerifyReport},
    pipeline::Progress,
    report,
    repository::{BackupId, BackupState, History, Records, Repository, Selector, Verdict},
    schedule::{Due, Task},
};

/// Everything is read anew after this time, also where a listing shows no change.
const READ_ALL_EVERY: Duration = Duration::from_secs(3600);

/// What was read, and by what it is known that it is so still.
struct Kept {
    /// As it was opened last.
    repository: Arc<Repository>,
    records: Records,
    history: Arc<History>,
    at: Instant,
}

/// The real runner.
pub struct Operations {
    context: Context,
    kept: Mutex<Option<Kept>>,
    watch: Mutex<Watch>,
}

impl Operations {
    /// With what the operations need; the token and the counters of each run are its own.
    pub fn new(context: &Context) -> Self {
        Self { context: context.clone(), kept: Mutex::new(None), watch: Mutex::new(Watch::new()) }
    }

    /// What a look that listed the same saw, at the store's time that it is now.
    async fn kept(&self, repository: &Arc<Repository>, records: &Records) -> Result<Option<Arc<History>>, Error> {
        let mut kept = self.kept.lock().await;
        let fits = |kept: &&mut Kept| {
            kept.repository.mark().repository == repository.mark().repository
                && kept.records == *records
                && kept.at.elapsed() < READ_ALL_EVERY
        };
        let Some(kept) = kept.as_mut().filter(fits) else { return Ok(None) };
        let now = repository.store().now().await?;
        kept.repository = repository.clone();
        kept.history = Arc::new(History { now, ..(*kept.history).clone() });
        Ok(Some(kept.history.clone()))
    }

    async fn carry_out(&self, task: &Task, context: &Context) -> Result<Option<BackupId>, Error> {
        match task {
            Task::Backup { sources, .. } => {
                let made = operation::backup(context, sources).await?;
                say_backup(&made);
                Ok(Some(made.backup))
            }
            Task::Verify { backup, level } => {
                let selector = Selector::Prefix(backup.to_string());
                say_verified(&operation::verify(context, &selector, *level).await?);
                Ok(None)
            }
            Task::Prune => {
                say_pruned(&prune(context).await?);
                Ok(None)
            }
        }
    }
}

#[async_trait]
impl Runner for Operations {
    async fn read(&self) -> Result<Read, Error> {
        let began = tokio::time::Instant::now();
        // Opened each time: credentials may have been renewed, or the repository replaced.
        let repository = Arc::new(self.context.repository().await?);
        let id = repository.mark().repository.clone();
        // Listed before it is read: what comes in between is then seen by the next look.
        let records = Records::list(&repository).await?;
        if let Some(history) = self.kept(&repository, &records).await? {
            return Ok(Read { repository: id, history, began });
        }
        let history = Arc::new(History::read(&repository).await?);
        let kept = Kept { repository, records, history: history.clone(), at: Instant::now() };
        *self.kept.lock().await = Some(kept);
        Ok(Read { repository: id, history, began })
    }

    async fn perform(
        &self,
        due: &Due,
        cancel: &CancellationToken,
        progress: &Arc<Progress>,
    ) -> Result<Option<BackupId>, Error> {
        let began = tokio::time::Instant::now();
        let context = Context { cancel: cancel.clone(), progress: progress.clone(), ..self.context.clone() };
        let done = self.carry_out(&due.task, &context).await;
        if !matches!(done, Err(Error::Interrupted)) {
            let run = match due.task {
                Task::Backup { .. } => Run::Backup,
                Task::Verify { .. } => Run::Verify,
                Task::Prune => Run::Prune,
            };
            self.watch.lock().await.ended(run, began, done.as_ref().err());
        }
        done
    }

    async fn alert(&self, look: Result<&Read, &Error>) -> usize {
        let mut watch = self.watch.lock().await;
        match look {
            Err(error) => watch.unreadable(&self.context, error).await,
            Ok(read) => {
                let repository = self.kept.lock().await.as_ref().map(|kept| kept.repository.clone());
                if let Some(repository) = repository {
                    watch.tick(&self.context, &repository, &read.history, read.began).await;
                }
            }
        }
        watch.undelivered()
    }

    async fn size(&self) -> Result<u64, Error> {
        let store = self.context.store()?;
        let mut bytes = 0;
        store.list("", &mut |info| bytes += info.size).await?;
        Ok(bytes)
    }
}

/// Nothing of it needs cleaning up: what was removed is removed, and the rest is by the next one.
async fn prune(context: &Context) -> Result<PruneReport, Error> {
    let arguments = PruneArguments::default();
    tokio::select! {
        pruned = operation::prune(context, &arguments) => pruned,
        () = context.cancel.cancelled() => Err(Error::Interrupted),
    }
}

fn say_backup(made: &BackupReport) {
    let (id, took) = (&made.backup, report::duration(Duration::from_secs_f64(made.seconds)));
    match made.state {
        BackupState::Complete => tracing::info!("backup {id} is complete, in {took}"),
        BackupState::Partial => tracing::error!("backup {id} is partial, in {took}"),
    }
    for source in &made.sources {
        let name = &source.name;
        if let Some(error) = &source.error {
            let hint = source.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            tracing::error!("backup {id} holds nothing of `{name}`: {error}{hint}");
        }
        source.failed.iter().for_each(|what| tracing::error!("backup {id} lacks this of `{name}`: {what}"));
        source.uncovered.iter().for_each(|what| tracing::warn!("backup {id} leaves this of `{name}` out: {what}"));
        source.notes.iter().for_each(|note| tracing::info!("backup {id}, `{name}`: {note}"));
    }
}

/// At most so many lines for one source: the rest is in the evidence.
const MOST_LINES: usize = 20;

fn say_verified(found: &VerifyReport) {
    let id = found.backup.as_deref().unwrap_or("that was asked for");
    let (level, took) = (found.level, report::duration(Duration::from_secs_f64(found.seconds)));
    match found.verdict {
        Verdict::Verified | Verdict::Sound => {
            tracing::info!("backup {id} is {} at level {level}, in {took}", found.verdict)
        }
        Verdict::Inconclusive => tracing::warn!("backup {id}: it could not be found out at level {level}, in {took}"),
        Verdict::Failed => tracing::error!("backup {id} is BAD, as a verification at level {level} found in {took}"),
    }
    found.problems.iter().take(MOST_LINES).for_each(|problem| tracing::error!("backup {id}: {}", problem.what));
    for source in &found.sources {
        let name = &source.name;
        for differing in source.differences.iter().take(MOST_LINES) {
            tracing::error!("backup {id}, `{name}`: {}: {}", differing.object, differing.what);
        }
        for what in source.inconclusive.iter().take(MOST_LINES) {
            let hint = source.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            tracing::warn!("backup {id}, `{name}`: {what}{hint}");
        }
    }
}

fn say_pruned(done: &PruneReport) {
    let expired = done.retention.iter().flat_map(|plan| plan.expired()).count() as u64;
    let took = report::duration(Duration::from_secs_f64(done.seconds));
    tracing::info!("retention: {} expired, in {took}", report::count(expired, "backup"));
}
