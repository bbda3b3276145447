//! One backup: capture, commit.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use tokio::task::{Id, JoinError, JoinSet};

use super::{Context, Error};
use crate::{
    config::SourceConfig,
    pipeline::{CUT_POLICY, Pipeline, PipelineError, Written},
    repository::{
        Artifact, Attempt, BackupId, BackupState, Catalog, Commit, Epoch, FORMAT_VERSION, Head, HeadSource, Manifest,
        Repository, RepositoryError, ReusableParts, Skew, SnapshotState, SourceIdentity, tool,
    },
    source::{Captured, Fixed, Source},
};

/// How long a run that failed may take to leave a record of it.
const REMEMBER_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of one source.
#[derive(Debug, Serialize)]
pub struct SourceOutcome {
    /// The configured name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// What became of it.
    pub state: SnapshotState,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The next step after a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Named byte sequences.
    pub artifacts: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of plaintext.
    pub raw: u64,
    /// Parts that the snapshot needs.
    pub parts: u64,
    /// Parts that were uploaded.
    pub new_parts: u64,
    /// Parts that were in the repository already.
    pub reused_parts: u64,
    /// Bytes of objects that the snapshot needs.
    pub stored: u64,
    /// Bytes of objects that were uploaded.
    pub uploaded: u64,
    /// What was left out.
    pub uncovered: Vec<String>,
    /// What was asked for and could not be captured, with the reason.
    pub failed: Vec<String>,
    /// What to know of it.
    pub notes: Vec<String>,
}

/// What a backup did.
#[derive(Debug, Serialize)]
pub struct BackupReport {
    /// Its id.
    pub backup: BackupId,
    /// Complete or partial.
    pub state: BackupState,
    /// By the store's clock.
    pub started: Timestamp,
    /// By the store's clock.
    pub finished: Timestamp,
    /// How long it took by our own clock, in seconds.
    pub seconds: f64,
    /// How far apart the snapshots' instants are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew: Option<Skew>,
    /// Every asked source.
    pub sources: Vec<SourceOutcome>,
}

/// A source that was transferred.
struct Transferred {
    captured: Captured,
    artifacts: Vec<Artifact>,
    written: Written,
}

/// Makes one backup of the named sources, or of all.
///
/// # Errors
/// Where no source could be captured, or the commit failed. Where some could not, the backup is partial.
pub async fn backup(context: &Context, names: &[String]) -> Result<BackupReport, Error> {
    let clock = std::time::Instant::now();
    let begun = tokio::select! {
        begun = begin(context, names) => begun?,
        () = context.cancel.cancelled() => return Err(Error::Interrupted),
    };
    match run(context, &begun).await {
        Ok((head, sources)) => Ok(BackupReport {
            backup: head.backup,
            state: head.state,
            started: head.started,
            finished: head.finished,
            seconds: clock.elapsed().as_secs_f64(),
            skew: head.skew,
            sources,
        }),
        Err(error) => {
            begun.remember(&error).await;
            Err(error)
        }
    }
}

/// A backup of which nothing is in the store yet, with an epoch to put it into.
struct Begun<'a> {
    configs: Vec<&'a SourceConfig>,
    repository: Repository,
    catalog: Catalog,
    epoch: Arc<Epoch>,
    id: BackupId,
    started: Timestamp,
}

/// Everything before the sources: the repository is read first, since snapshots are held no longer than they are needed.
async fn begin<'a>(context: &'a Context, names: &[String]) -> Result<Begun<'a>, Error> {
    let configs = context.config.sources_matching(names)?;
    let repository = context.repository().await?;
    let started = repository.store().now().await?;
    let catalog = Catalog::read(&repository).await?;
    let id = BackupId::new(started);
    let epoch = epoch(&repository, started, context.config.repository.epoch_days).await?;
    Ok(Begun { configs, repository, catalog, epoch, id, started })
}

impl Begun<'_> {
    /// Leaves a record of a run that made no backup. The run's own error is what is reported, whatever becomes of this.
    async fn remember(&self, error: &Error) {
        let write = async {
            let attempt = Attempt {
                format: FORMAT_VERSION,
                repository: self.repository.mark().repository.clone(),
                backup: self.id.clone(),
                epoch: self.epoch.id().clone(),
                tool: tool(),
                started: self.started,
                finished: self.repository.store().now().await?,
                sources: self.configs.iter().map(|config| config.name.to_string()).collect(),
                error: error.kind().to_owned(),
            };
            self.repository.write_attempt(&self.epoch, &attempt).await
        };
        match tokio::time::timeout(REMEMBER_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("that backup {} failed could not be recorded: {error}", self.id),
            Err(_) => tracing::warn!(
                "that backup {} failed could not be recorded: the store did not answer within {} s",
                self.id,
                REMEMBER_TIMEOUT.as_secs()
            ),
        }
    }
}

/// Everything after the epoch was opened.
async fn run(context: &Context, begun: &Begun<'_>) -> Result<(Head, Vec<SourceOutcome>), Error> {
    let outcomes = tokio::select! {
        outcomes = gather(context, begun) => outcomes?,
        () = context.cancel.cancelled() => return Err(Error::Interrupted),
    };
    // From here on a signal waits: between the head and its second look nobody could say whether there is a backup (rule R1).
    context.progress.set_phase("committing");
    let Begun { repository, epoch, id, started, .. } = begun;
    commit(repository, epoch, context.config.repository.grace, id.clone(), *started, outcomes).await
}

/// What became of one source on its way into the store.
type Outcome<'a> = (&'a SourceConfig, Result<Transferred, Error>);

/// Everything before the commit: after it all parts are in the store.
async fn gather<'a>(context: &'a Context, begun: &Begun<'a>) -> Result<Vec<Outcome<'a>>, Error> {
    let Begun { configs, repository, catalog, epoch, id, started } = begun;
    let grace = context.config.repository.grace;
    let reusable = ReusableParts::find(repository, epoch, catalog, *started, grace).await?;
    tracing::debug!("backup {id} into epoch {}; {} reusable parts", epoch.id(), reusable.len());
    let pipeline = Pipeline::new(
        repository.store().clone(),
        epoch.clone(),
        id.tail(),
        context.config.repository.compression_level,
        context.budget(),
        context.config.limits.uploads as usize,
        reusable,
        context.progress.clone(),
    );
    context.progress.set_phase("taking snapshots");
    let order = cut_order(context, configs);
    let asked = configs.iter().map(|config| (*config, context.source(config))).collect();
    let outcomes = capture(asked, &order, &pipeline).await;
    if outcomes.iter().all(|(_, outcome)| outcome.is_err()) {
        return Err(all_failed(outcomes.into_iter().filter_map(|(_, outcome)| outcome.err()).collect()));
    }
    Ok(outcomes)
}

/// Places of these sources in the order of their cuts: the configured one, else by their kinds and then as the file has them.
fn cut_order(context: &Context, configs: &[&SourceConfig]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..configs.len()).collect();
    order.sort_by_key(|index| context.config.cut_rank(configs[*index]));
    order
}

/// A source that was asked for, if it can be opened.
type Asked<'a> = (&'a SourceConfig, Result<Arc<dyn Source>, Error>);

/// Captures every source; `order` says when each begins. What refers to PostgreSQL is cut before it (DESIGN.md §5, *One recovery point*):
/// each begins when all instants of the one before are fixed, or never will be. Their transfers run side by side from then on: a
/// dump that nobody reads is ended by its server.
async fn capture<'a>(asked: Vec<Asked<'a>>, order: &[usize], pipeline: &Arc<Pipeline>) -> Vec<Outcome<'a>> {
    let (configs, mut sources): (Vec<_>, Vec<_>) =
        asked.into_iter().map(|(config, source)| (config, Some(source))).unzip();
    let mut outcomes: Vec<Option<Result<Transferred, Error>>> = configs.iter().map(|_| None).collect();
    let mut moving = JoinSet::new();
    let mut tasks = HashMap::new();
    for &index in order {
        match sources[index].take() {
            Some(Ok(source)) => {
                let (config, pipeline) = (configs[index].clone(), pipeline.clone());
                let (fixed, is_fixed) = Fixed::pair();
                let task = moving.spawn(async move { transfer(&config, &*source, &pipeline, fixed).await });
                tasks.insert(task.id(), index);
                // An error says that it ended before, and there is nothing to wait for.
                let _ = is_fixed.await;
            }
            Some(Err(error)) => outcomes[index] = Some(Err(error)),
            None => {}
        }
    }
    while let Some(ended) = moving.join_next_with_id().await {
        settle(&mut outcomes, &tasks, ended);
    }
    // A task that gave nothing has panicked.
    let of = |config: &SourceConfig| named(config, PipelineError::Stopped.into());
    let outcomes =
        outcomes.into_iter().zip(&configs).map(|(outcome, config)| outcome.unwrap_or_else(|| Err(of(config))));
    configs.iter().copied().zip(outcomes.collect::<Vec<_>>()).collect()
}

type Ended = Result<(Id, Result<Transferred, Error>), JoinError>;

fn settle(outcomes: &mut [Option<Result<Transferred, Error>>], tasks: &HashMap<Id, usize>, ended: Ended) {
    match ended {
        Ok((id, outcome)) => {
            if let Some(slot) = tasks.get(&id).and_then(|index| outcomes.get_mut(*index)) {
                *slot = Some(outcome);
            }
        }
        Err(error) => tracing::error!("a task of the backup ended: {error}"),
    }
}

fn named(config: &SourceConfig, error: crate::source::SourceError) -> Error {
    Error::Source { name: config.name.to_string(), error }
}

fn all_failed(mut errors: Vec<Error>) -> Error {
    match errors.len() {
        1 => errors.remove(0),
        _ => Error::AllFailed(errors),
    }
}

/// The newest epoch, where it is whole, young enough and for the configured recipients, or a new one (rule R7). Never an older one:
/// an epoch ends when the next one begins.
async fn epoch(repository: &Repository, now: Timestamp, days: u32) -> Result<Arc<Epoch>, RepositoryError> {
    let keyring = repository.keyring();
    let records = repository.epoch_records().await?;
    if !keyring.encrypts()
        && let Some(epoch) = repository.encrypted_epoch().await?
    {
        return Err(RepositoryError::WouldBeClear { epoch });
    }
    for (id, what) in records.faults() {
        tracing::warn!("epoch {id} is not used: {what}");
    }
    if let Some(unknown) = records.unknown() {
        return Err(unknown.into());
    }
    let young = |began: Timestamp| {
        let age = Duration::try_from(now.duration_since(began)).unwrap_or(Duration::MAX);
        age < Duration::from_secs(u64::from(days) * 24 * 3600)
    };
    if let Some(newest) = records.newest(now).filter(|newest| young(newest.began) && keyring.agrees_with(newest)) {
        match repository.epoch(&newest.epoch).await {
            Ok(epoch) => return Ok(epoch),
            // Nothing new goes into an epoch whose keys are damaged.
            Err(RepositoryError::Trust(trust)) => tracing::warn!("epoch {} is not used: {trust}", newest.epoch),
            Err(error) => return Err(error),
        }
    }
    repository.begin_epoch(CUT_POLICY.to_owned()).await
}

async fn transfer(
    config: &SourceConfig,
    source: &dyn Source,
    pipeline: &Arc<Pipeline>,
    fixed: Fixed,
) -> Result<Transferred, Error> {
    let writer = pipeline.snapshot();
    let captured = match source.capture(&writer, fixed).await {
        Ok(captured) => captured,
        // What the source saw may only be an echo of a part that failed.
        Err(error) => {
            return Err(match writer.failure() {
                Some(cause) => named(config, cause.into()),
                None => named(config, error),
            });
        }
    };
    let (artifacts, written) = writer.finish().await.map_err(|error| named(config, error.into()))?;
    if captured.empty && !captured.failed.is_empty() {
        let Captured { failed, hint, .. } = captured;
        return Err(Error::NothingCaptured { name: config.name.to_string(), failed, hint });
    }
    if captured.empty && !config.allow_empty {
        let what = config.settings.nothing();
        let why =
            captured.uncovered.first().or(captured.notes.first()).map(|note| format!(" ({note})")).unwrap_or_default();
        return Err(Error::Empty { name: config.name.to_string(), what, why });
    }
    Ok(Transferred { captured, artifacts, written })
}

/// Writes manifests and head, and says what became of each source.
async fn commit(
    repository: &Repository,
    epoch: &Epoch,
    grace: Duration,
    id: BackupId,
    started: Timestamp,
    outcomes: Vec<Outcome<'_>>,
) -> Result<(Head, Vec<SourceOutcome>), Error> {
    let mut commit = Commit::new(repository, epoch, grace);
    let mut in_head = Vec::new();
    let mut told = Vec::new();
    for (config, outcome) in outcomes {
        let (name, kind) = (config.name.to_string(), config.settings.kind().to_owned());
        let source = SourceIdentity { name: name.clone(), kind: kind.clone() };
        let mut head = HeadSource::failed(&source);
        let mut outcome_told = SourceOutcome {
            name,
            kind,
            state: SnapshotState::Failed,
            error: None,
            hint: None,
            artifacts: 0,
            rows: 0,
            raw: 0,
            parts: 0,
            new_parts: 0,
            reused_parts: 0,
            stored: 0,
            uploaded: 0,
            uncovered: Vec::new(),
            failed: Vec::new(),
            notes: Vec::new(),
        };
        match outcome {
            Err(error) => {
                outcome_told.error = Some(error.to_string());
                outcome_told.hint = error.hint();
            }
            Ok(Transferred { captured, artifacts, written }) => {
                let manifest = Manifest {
                    format: FORMAT_VERSION,
                    repository: repository.mark().repository.clone(),
                    backup: id.clone(),
                    epoch: epoch.id().clone(),
                    source,
                    tool: tool(),
                    cut: captured.cut,
                    uncovered: captured.uncovered.clone(),
                    failed: captured.failed.clone(),
                    notes: captured.notes.clone(),
                    about: captured.about,
                    server: captured.server,
                    detail: captured.detail,
                    artifacts,
                };
                head = manifest.in_head();
                head.state = match (captured.failed.is_empty(), captured.empty) {
                    (false, _) => SnapshotState::Partial,
                    (true, true) => SnapshotState::Empty,
                    (true, false) => SnapshotState::Complete,
                };
                head.sizes.stored = written.stored;
                head.sizes.uploaded = written.uploaded;
                head.new_parts = written.new_parts;
                head.manifest = Some(commit.manifest(manifest).await?);
                outcome_told.fill(&head);
                outcome_told.uncovered = captured.uncovered;
                outcome_told.failed = captured.failed;
                outcome_told.hint = captured.hint;
                outcome_told.notes = captured.notes;
            }
        }
        in_head.push(head);
        told.push(outcome_told);
    }
    let complete = in_head.iter().all(|source| source.state.is_usable());
    let head = Head {
        format: FORMAT_VERSION,
        repository: repository.mark().repository.clone(),
        backup: id,
        epoch: epoch.id().clone(),
        tool: tool(),
        started,
        finished: started,
        state: if complete { BackupState::Complete } else { BackupState::Partial },
        skew: Skew::of(&in_head),
        anchors: repository.anchors(epoch),
        sources: in_head,
    };
    Ok((commit.finish(head).await?, told))
}

impl SourceOutcome {
    fn fill(&mut self, head: &HeadSource) {
        self.state = head.state;
        self.artifacts = head.artifacts;
        self.rows = head.rows;
        self.raw = head.sizes.raw;
        self.parts = head.parts;
        self.new_parts = head.new_parts;
        self.reused_parts = head.parts.saturating_sub(head.new_parts);
        self.stored = head.sizes.stored;
        self.uploaded = head.sizes.uploaded;
    }
}

#[cfg(test)]
mod tests;
