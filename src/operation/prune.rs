//! `prune`: retention, then the sweep (rules R8, R9). One plan, shown or carried out.
//!
//! All of it is planned before anything is touched, from one look at the repository; and where a brake holds, nothing is touched at all.
//! What expires now keeps all its objects for the grace period, so that the sweep's plan does not depend on what is expired before it.

use std::{collections::HashSet, sync::atomic::AtomicU64, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{Context, Error};
use crate::{
    config::{RepositoryUrl, RetentionConfig},
    repository::{
        BackupId, Expiry, History, Repository, RepositoryError,
        retention::{self, RetentionPlan},
        sweep::{self, Brake, Survey, SweepPlan, Tally},
    },
    store::{FileBackend, StaleTemporary},
};

/// The most of all parts, in percent, that may go without an expired backup that explains them (R9).
const SWEEP_AT_MOST: u32 = 30;

/// What `prune` is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PruneArguments {
    /// Only show the plan.
    pub dry_run: bool,
    /// In place of the configured `expire_at_most_percent`.
    pub expire_at_most: Option<u32>,
    /// In place of 30 percent.
    pub sweep_at_most: Option<u32>,
}

/// Why nothing is removed.
#[derive(Debug, Serialize)]
pub struct Refusal {
    /// The reason.
    pub message: String,
    /// The next step.
    pub hint: String,
}

/// What `prune` does, or would.
#[derive(Debug, Serialize)]
pub struct PruneReport {
    /// The repository's address.
    pub url: String,
    /// The store's time.
    pub now: Timestamp,
    /// Was the plan only shown?
    pub dry_run: bool,
    /// How old something unused must be before it goes, in seconds.
    pub grace_seconds: u64,
    /// What becomes of each backup; absent where nothing is configured, and all are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionPlan>,
    /// What is removed.
    pub sweep: SweepPlan,
    /// Files of writers to a folder that were killed.
    pub temporaries: Tally,
    /// Why nothing of it would be carried out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refusal>,
    /// How long it took by our own clock, in seconds.
    pub seconds: f64,
}

/// What undoing an expiry did.
#[derive(Debug, Serialize)]
pub struct UndoReport {
    /// The backup.
    pub backup: BackupId,
    /// Was its head gone? Else there was nothing to do.
    pub restored: bool,
}

/// Plans, and unless it is a dry run, lets backups expire and removes what nothing needs.
///
/// # Errors
/// `Braked`, and then nothing was touched; what the store says. A dry run reports brakes.
pub async fn prune(context: &Context, arguments: &PruneArguments) -> Result<PruneReport, Error> {
    let clock = std::time::Instant::now();
    let repository = context.repository().await?;
    let grace = context.config.repository.grace;
    context.progress.set_phase("looking at the repository");
    let (history, survey) = Survey::take(&repository, grace).await?;
    // What was made by nobody knows whom is no ground to delete anything.
    if let Some(unknown) = history.catalog.unknown {
        return Err(RepositoryError::from(unknown).into());
    }
    let now = history.now;
    let config = context.config.retention.clone().map(|config| RetentionConfig {
        expire_at_most_percent: arguments.expire_at_most.unwrap_or(config.expire_at_most_percent),
        ..config
    });
    let retention = config.as_ref().map(|config| retention::plan(&history, config, now));
    let mut sweep = sweep::plan(survey, arguments.sweep_at_most.unwrap_or(SWEEP_AT_MOST));
    let too_many = retention.iter().flat_map(|plan| plan.too_many.clone());
    sweep.brakes.extend(too_many.map(Brake::TooMany));
    let temporaries = temporaries(context, now, grace).await?;
    if !arguments.dry_run {
        if !sweep.brakes.is_empty() {
            return Err(RepositoryError::Braked(sweep.brakes).into());
        }
        let still = expires_still(&repository, config.as_ref(), retention.as_ref()).await?;
        carry_out(context, &repository, &still, &sweep, &temporaries).await?;
    }
    let refused = sweep.brakes.iter().map(|brake| Refusal { message: brake.to_string(), hint: brake.hint() });
    let refused = refused.collect();
    let sizes = temporaries.iter().map(|temporary| Tally { objects: 1, bytes: temporary.size });
    Ok(PruneReport {
        url: repository.store().url().to_owned(),
        now,
        dry_run: arguments.dry_run,
        grace_seconds: grace.as_secs(),
        retention,
        temporaries: Tally::sum(sizes),
        sweep,
        refused,
        seconds: clock.elapsed().as_secs_f64(),
    })
}

/// What is to expire by the plan, and would by a new one too: the survey read every manifest, and while it did a verification may have found
/// that the newest backup is bad.
async fn expires_still(
    repository: &Repository,
    config: Option<&RetentionConfig>,
    planned: Option<&RetentionPlan>,
) -> Result<Vec<BackupId>, RepositoryError> {
    let planned: Vec<&BackupId> =
        planned.into_iter().flat_map(RetentionPlan::expired).map(|backup| &backup.backup).collect();
    let Some(config) = config.filter(|_| !planned.is_empty()) else { return Ok(Vec::new()) };
    let history = History::read(repository).await?;
    let again = retention::plan(&history, config, history.now);
    let again: HashSet<&BackupId> = again.expired().map(|backup| &backup.backup).collect();
    let (still, not_now): (Vec<_>, Vec<_>) = planned.into_iter().partition(|backup| again.contains(backup));
    for backup in not_now {
        tracing::warn!("backup {backup} does not expire now: it is needed since the plan was made");
    }
    Ok(still.into_iter().cloned().collect())
}

async fn carry_out(
    context: &Context,
    repository: &Repository,
    expiring: &[BackupId],
    sweep: &SweepPlan,
    temporaries: &[StaleTemporary],
) -> Result<(), Error> {
    context.progress.set_phase("letting backups expire");
    for backup in expiring {
        match repository.expire(backup, context.config.repository.grace).await? {
            Expiry::Done => tracing::info!("backup {backup} expired"),
            Expiry::WasGone => tracing::info!("backup {backup} has expired meanwhile"),
        }
    }
    context.progress.set_phase("removing what nothing needs");
    let done = AtomicU64::new(0);
    sweep.carry_out(repository, &done).await?;
    if let Some(backend) = folder(context)? {
        for temporary in temporaries {
            backend.remove_temporary(temporary).await?;
        }
    }
    tracing::debug!("{} objects removed", done.into_inner());
    Ok(())
}

/// The folder of a folder store.
fn folder(context: &Context) -> Result<Option<FileBackend>, Error> {
    match &context.config.repository.url {
        RepositoryUrl::File { path } => Ok(Some(FileBackend::open(path)?)),
        RepositoryUrl::S3 { .. } => Ok(None),
    }
}

/// What killed writers left in a folder, older than the grace period. An S3 server has nothing of the kind (R3).
async fn temporaries(context: &Context, now: Timestamp, grace: Duration) -> Result<Vec<StaleTemporary>, Error> {
    let Some(backend) = folder(context)? else { return Ok(Vec::new()) };
    let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
    let mut found = backend.stale_temporaries().await?;
    found.retain(|temporary| now.duration_since(temporary.last_modified) >= grace);
    Ok(found)
}

/// Brings back a backup that expired: the one whose id begins so.
///
/// # Errors
/// No such backup; one that expired too long ago, or is not whole any more; what the store says.
pub async fn undo_expiry(context: &Context, prefix: &str) -> Result<UndoReport, Error> {
    let repository = context.repository().await?;
    let id = repository.find_expired(prefix).await?;
    let (head, restored) = repository.undo_expiry(&id, context.config.repository.grace).await?;
    Ok(UndoReport { backup: head.backup, restored })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: &T) {}

    /// The daemon runs it as a task of its own. That this compiles is the test.
    #[test]
    fn it_can_be_spawned() {
        let check = |context: &Context, arguments: &PruneArguments| {
            is_send(&prune(context, arguments));
            is_send(&undo_expiry(context, "20261123"));
        };
        let _ = check;
    }
}
