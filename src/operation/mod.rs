//! What a command does, as a plan and its execution. Knows sources, repository and pipeline; knows nothing of terminals.

mod alerts;
mod backup;
mod browse;
mod context;
mod doctor;
mod error;
mod keygen;
mod open;
mod prune;
mod restore;
mod verify;

pub use self::{
    backup::{BackupReport, SourceOutcome, backup},
    browse::{ListReport, ListedBackup, ShownBackup, ShownEvidence, ShownSource, list, show},
    context::{Context, Environment},
    doctor::{DoctorReport, Section, doctor},
    error::{Error, exit},
    keygen::{KeygenReport, keygen},
    open::{OpenBackup, OpenSnapshot, open_backup},
    prune::{PruneArguments, PruneReport, Refusal, UndoReport, prune, undo_expiry},
    restore::{PlannedRestore, RestoreArguments, RestoreReport, plan_restore},
    verify::{Incomplete, Problem, VerifiedSource, VerifyReport, verify},
};

use crate::repository::{Repository, RepositoryError};

/// What `init` did.
#[derive(Debug, serde::Serialize)]
pub struct InitReport {
    /// The repository's address.
    pub url: String,
    /// Its id.
    pub repository: String,
    /// Made now, or there before (`--if-missing`).
    pub created: bool,
}

/// Creates the repository.
///
/// # Errors
/// Where one is already, unless `if_missing`; what the store says.
pub async fn init(context: &Context, if_missing: bool) -> Result<InitReport, Error> {
    context.create_folder().await?;
    let (store, keyring) = (context.store()?, context.keyring()?);
    let (repository, created) = match Repository::init(store.clone(), keyring.clone()).await {
        Ok(repository) => (repository, true),
        Err(RepositoryError::AlreadyInitialised { .. }) if if_missing => {
            (context.expected(Repository::open(store, keyring).await?)?, false)
        }
        Err(error) => return Err(error.into()),
    };
    Ok(InitReport {
        url: repository.store().url().to_owned(),
        repository: repository.mark().repository.to_string(),
        created,
    })
}
