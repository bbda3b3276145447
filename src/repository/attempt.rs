//! Attempts: runs that ended without a backup. A backup has a head; what has none would leave no trace, and nobody could tell a night
//! that failed from one in which nothing was tried.
//!
//! `attempts/<id>.json` is clear text with a MAC: times, configured source names and the word for the error, nothing of the data. It is
//! written when a run fails after it had opened its epoch and while the store can be reached; nothing depends on it but metrics and alerts.

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    BackupId, Catalog, Epoch, EpochId, Repository, RepositoryError, RepositoryId, Trust, Verdicts,
    error::must_exist,
    layout, open,
    seal::{self, Seal, Sealer},
};
use crate::store::ObjectInfo;

/// Records read at once.
const PARALLEL_READS: usize = 8;

/// A run that ended without a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Repository format version.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The id that its backup would have had.
    pub backup: BackupId,
    /// The epoch whose key the MAC is under.
    pub epoch: EpochId,
    /// Program and version.
    pub tool: String,
    /// When it began, by the store's clock.
    pub started: Timestamp,
    /// When it ended, by the store's clock.
    pub finished: Timestamp,
    /// The sources that were asked for.
    pub sources: Vec<String>,
    /// The word for its error, as `--json` has it.
    pub error: String,
}

impl Repository {
    /// Stores the record of a run that failed.
    ///
    /// # Errors
    /// What the store says.
    pub async fn write_attempt(&self, epoch: &Epoch, attempt: &Attempt) -> Result<(), RepositoryError> {
        let key = layout::attempt(&attempt.backup);
        let bytes = open::encode(&key, attempt, Sealer::Mac(epoch.keys.mac_key()))?;
        Ok(self.store().put_new(&key, bytes).await?)
    }

    /// Every attempt that is believed, the oldest first. What is not is only said in the log: nothing that is kept depends on it.
    ///
    /// # Errors
    /// What the store says.
    pub async fn attempts(&self) -> Result<Vec<Attempt>, RepositoryError> {
        let mut keys = Vec::new();
        self.store().list(layout::ATTEMPTS, &mut |info| keys.push(info.key)).await?;
        let read: Vec<Option<Attempt>> = stream::iter(keys)
            .map(async |key| match self.read_attempt(&key).await {
                Ok(attempt) => Ok(Some(attempt)),
                Err(error @ (RepositoryError::Trust(_) | RepositoryError::Locked(_))) => {
                    tracing::warn!("the record of an attempt is not believed: {error}");
                    Ok(None)
                }
                Err(error) => Err(error),
            })
            .buffer_unordered(PARALLEL_READS)
            .try_collect()
            .await?;
        let mut attempts: Vec<Attempt> = read.into_iter().flatten().collect();
        attempts.sort_by(|a, b| (a.started, &a.backup).cmp(&(b.started, &b.backup)));
        Ok(attempts)
    }

    async fn read_attempt(&self, key: &str) -> Result<Attempt, RepositoryError> {
        let bytes = self.store().get(key).await.map_err(must_exist(key))?;
        let told: Attempt = seal::peek(&bytes).map_err(|error| Trust::damaged(key, error))?;
        let epoch = self.epoch(&told.epoch).await?;
        let attempt: Attempt = open::decode(key, &bytes, Seal::Mac(epoch.keys.mac_key()))?;
        if attempt.repository != self.mark().repository || layout::attempt(&attempt.backup) != key {
            return Err(Trust::damaged(key, format!("is the record of attempt {}", attempt.backup)).into());
        }
        Ok(attempt)
    }
}

/// Everything that a repository says of what was done: for lists, metrics, alerts, retention and whoever decides what is due.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The store's time when it was read.
    pub now: Timestamp,
    /// When the repository was created.
    pub created: Timestamp,
    /// Every backup.
    pub catalog: Catalog,
    /// What is known of their snapshots.
    pub verdicts: Verdicts,
    /// Runs without a backup, the oldest first.
    pub attempts: Vec<Attempt>,
}

impl History {
    /// Reads all of it.
    ///
    /// # Errors
    /// What the store says.
    pub async fn read(repository: &Repository) -> Result<Self, RepositoryError> {
        let now = repository.store().now().await?;
        let catalog = Catalog::read(repository).await?;
        let verdicts = repository.verdicts(&catalog).await?;
        let attempts = repository.attempts().await?;
        Ok(Self { now, created: repository.mark().created, catalog, verdicts, attempts })
    }
}

/// What a listing tells of everything that a [`History`] is read from. Equal ones stand for equal histories, but for what came over an
/// object that its store lists as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    objects: Vec<ObjectInfo>,
    epochs: Vec<String>,
}

impl Records {
    /// Lists them.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(repository: &Repository) -> Result<Self, RepositoryError> {
        let mut objects = Vec::new();
        for folder in [layout::BACKUPS, layout::TOMBSTONES, layout::VERIFICATIONS, layout::ATTEMPTS] {
            repository.store().list(folder, &mut |info| objects.push(info)).await?;
        }
        let epochs = repository.store().list_dirs(layout::EPOCHS).await?;
        Ok(Self { objects, epochs })
    }
}
