//! Deleting what the plan says, in its order. Decides nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{self, StreamExt, TryStreamExt};

use super::SweepPlan;
use crate::repository::{Repository, RepositoryError, layout};

/// Deletions under way at once.
const PARALLEL_DELETES: usize = 8;

impl SweepPlan {
    /// Carries it out; `done` counts the objects that were deleted.
    ///
    /// # Errors
    /// `Braked`, and then nothing was; what the store says. What was not deleted is found by the next sweep.
    pub async fn carry_out(&self, repository: &Repository, done: &AtomicU64) -> Result<(), RepositoryError> {
        if !self.brakes.is_empty() {
            return Err(RepositoryError::Braked(self.brakes.clone()));
        }
        for (epoch, names) in &self.work.parts {
            let keys = names.iter().map(|name| layout::part(epoch.id(), name, &epoch.protection));
            delete(repository, keys, done).await?;
        }
        for keys in &self.work.then {
            delete(repository, keys.iter().cloned(), done).await?;
        }
        Ok(())
    }
}

async fn delete(
    repository: &Repository,
    keys: impl Iterator<Item = String> + Send,
    done: &AtomicU64,
) -> Result<(), RepositoryError> {
    stream::iter(keys)
        .map(Ok)
        .try_for_each_concurrent(PARALLEL_DELETES, |key| async move {
            repository.store().delete(&key).await?;
            done.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .await
}
