//! The snapshots of a backup, opened: chosen, authenticated, and every object of them looked for.

use jiff::Timestamp;

use super::{Context, Error, browse};
use crate::{
    pipeline::{PartReader, SnapshotReader},
    repository::{BackupId, Head, History, Manifest, RepositoryError, Selector},
};

/// One source's snapshot, ready to be read.
pub struct OpenSnapshot {
    /// The configured name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// What it holds.
    pub snapshot: SnapshotReader,
}

/// Some snapshots of one backup.
pub struct OpenBackup {
    /// The backup.
    pub backup: BackupId,
    /// When it was started, by the store's clock.
    pub started: Timestamp,
    /// What to know of this choice: what was passed over, and what is taken without proof.
    pub notes: Vec<String>,
    /// In the order of the request, or of the head.
    pub snapshots: Vec<OpenSnapshot>,
}

/// Opens the snapshots of the named sources, or of all that the backup holds. `fits` may refuse the choice before anything is read.
///
/// # Errors
/// No such backup or snapshot, objects that are missing or cannot be trusted, parts that this machine cannot open.
pub async fn open_backup(
    context: &Context,
    selector: &Selector,
    sources: &[String],
    fits: impl FnOnce(&Head, &[String]) -> Result<(), Error>,
) -> Result<OpenBackup, Error> {
    let repository = context.repository().await?;
    let History { catalog, verdicts, .. } = History::read(&repository).await?;
    let head = browse::select(&catalog, &verdicts, selector, sources, repository.store().url())?;
    let names: Vec<String> = match sources {
        [] => head.sources.iter().filter(|source| source.state.is_there()).map(|source| source.name.clone()).collect(),
        names => names.to_vec(),
    };
    fits(head, &names)?;
    let epoch = repository.epoch(&head.epoch).await?;
    epoch.must_open_parts().map_err(RepositoryError::from)?;
    let mut manifests = Vec::new();
    for name in &names {
        let source = head.source(name).ok_or_else(|| RepositoryError::NoSnapshot {
            id: head.backup.clone(),
            name: name.clone(),
            state: None,
        })?;
        manifests.push(repository.manifest(head, &epoch, source).await?);
    }
    let missing = repository.missing_parts(&epoch, &manifests.iter().collect::<Vec<_>>()).await?;
    if let Some(trust) = missing.into_iter().next() {
        return Err(RepositoryError::from(trust).into());
    }
    let mut notes = browse::passed_over(&catalog, &verdicts, selector, head, sources);
    for name in &names {
        let standing = verdicts.of(&head.backup, name);
        if !standing.is_verified() {
            notes.push(format!(
                "the snapshot of `{name}` is {}: no restore of it has proved that it is whole",
                standing.word()
            ));
        }
    }
    notes.extend(catalog.unknown.as_ref().map(|unknown| format!("{unknown}; {}", unknown.hint())));
    notes.extend(lacking(head, sources, &manifests));
    let parts = PartReader::new(repository.store().clone(), epoch.clone(), context.budget(), context.progress.clone())
        .map_err(RepositoryError::from)?;
    let snapshots = manifests
        .into_iter()
        .map(|manifest| OpenSnapshot {
            name: manifest.source.name.clone(),
            kind: manifest.source.kind.clone(),
            snapshot: SnapshotReader::new(manifest, parts.clone()),
        })
        .collect();
    Ok(OpenBackup { backup: head.backup.clone(), started: head.started, notes, snapshots })
}

/// What was asked of the backup and is not in it, in words; `sources` are those that are asked for now, or none for all.
fn lacking(head: &Head, sources: &[String], manifests: &[Manifest]) -> Vec<String> {
    let failed = head.sources.iter().filter(|source| sources.is_empty() && !source.state.is_there());
    let of_manifest = |manifest: &Manifest| {
        let name = manifest.source.name.clone();
        let told = move |what| format!("the snapshot of `{name}` is partial, this is not in it: {what}");
        manifest.failed.clone().into_iter().map(told)
    };
    failed
        .map(|source| format!("the backup holds nothing of `{}`, which failed", source.name))
        .chain(manifests.iter().flat_map(of_manifest))
        .collect()
}
