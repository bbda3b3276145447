//! Looking, in the order that the sweep leans on. Decides nothing but what need not be read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use futures::stream::{self, StreamExt, TryStreamExt};

use super::{Ages, Brake, EpochState, Life, OldPart, PartMark, SeenAttempt, SeenBackup, SeenEpoch};
use crate::{
    repository::{
        BackupId, Catalog, CatalogEntry, Epoch, EpochId, Head, HeadSource, History, Manifest, Repository,
        RepositoryError, Trust, catalog::Listed, error::must_exist, layout,
    },
    store::ObjectInfo,
};

/// Manifests read at once; each may be some tens of MiB.
const PARALLEL_READS: usize = 4;

/// All that the sweep needs to know.
#[derive(Debug)]
pub struct Survey {
    pub(super) ages: Ages,
    pub(super) epochs: Vec<SeenEpoch>,
    pub(super) backups: Vec<SeenBackup>,
    pub(super) attempts: Vec<SeenAttempt>,
    /// Records of alerts that say nothing any more.
    pub(super) alerts: Vec<String>,
    /// Epochs whose keys the other records of alerts need.
    pub(super) epochs_of_alerts: BTreeSet<EpochId>,
    /// What heads, young tombstones and young manifests without a head name.
    pub(super) named: HashSet<PartMark>,
    /// What old tombstones name.
    pub(super) explained: HashSet<PartMark>,
    /// What may name parts and cannot be read.
    pub(super) unreadable: Vec<Brake>,
    pub(super) notes: Vec<String>,
}

impl Survey {
    pub(super) fn new(ages: Ages) -> Self {
        Self {
            ages,
            epochs: Vec::new(),
            backups: Vec::new(),
            attempts: Vec::new(),
            alerts: Vec::new(),
            epochs_of_alerts: BTreeSet::new(),
            named: HashSet::new(),
            explained: HashSet::new(),
            unreadable: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Takes one, and gives the history that it saw: what retention decides by. Everything is judged by one look at the store's clock,
    /// before all else.
    ///
    /// # Errors
    /// What the store says. What cannot be read or believed is part of the survey.
    pub async fn take(repository: &Repository, grace: Duration) -> Result<(History, Self), RepositoryError> {
        let now = repository.store().now().await?;
        let mut survey = Self::new(Ages { now, grace });
        survey.epochs = epochs(repository, &survey.ages).await?;
        let (catalog, listed) = Catalog::read_listed(repository).await?;
        let verdicts = repository.verdicts(&catalog).await?;
        survey.notes.extend(verdicts.not_believed.iter().map(|what| format!("evidence is not believed: {what}")));
        let attempts = repository.attempts().await?;
        let of: HashMap<&BackupId, &EpochId> =
            attempts.iter().map(|attempt| (&attempt.backup, &attempt.epoch)).collect();
        for (id, infos) in objects(repository, layout::ATTEMPTS, layout::attempt_of).await? {
            survey.attempts.extend(infos.into_iter().map(|info| (info, of.get(&id).map(|epoch| (*epoch).clone()))));
        }
        let journal = repository.alerts().await?;
        survey.alerts = journal.superseded(survey.ages.old_before());
        survey.epochs_of_alerts = journal.epochs(&survey.alerts);
        let evidence = objects(repository, layout::VERIFICATIONS, layout::verified_backup).await?;
        survey.sort_backups(&catalog, listed, evidence);
        survey.read_names(repository, &catalog).await?;
        Ok((History { now, created: repository.mark().created, catalog, verdicts, attempts }, survey))
    }

    /// Says of each backup how alive it is.
    fn sort_backups(
        &mut self,
        catalog: &Catalog,
        mut listed: Listed,
        mut evidence: BTreeMap<BackupId, Vec<ObjectInfo>>,
    ) {
        let entries: HashMap<&BackupId, &CatalogEntry> =
            catalog.entries.iter().map(|entry| (entry.id(), entry)).collect();
        let ids: BTreeSet<BackupId> = entries.keys().copied().chain(evidence.keys()).cloned().collect();
        for id in ids {
            let tombstones = listed.tombstones.of(&id).to_vec();
            let folder = listed.folders.remove(&id).unwrap_or_default();
            let evidence = evidence.remove(&id).unwrap_or_default();
            let all = folder.manifests.iter().chain(&evidence).map(|info| info.last_modified);
            let written = all.max().unwrap_or(folder.written);
            let expired = tombstones.last().map(|info| info.last_modified);
            let has_head = match entries.get(&id) {
                Some(CatalogEntry::Good(_)) => true,
                Some(CatalogEntry::Damaged { trust, .. }) => {
                    self.unreadable.push(Brake::Unreadable { what: trust.to_string(), hint: None });
                    true
                }
                Some(CatalogEntry::Locked { locked, .. }) => {
                    let (what, hint) = (locked.to_string(), Some(locked.hint()));
                    self.unreadable.push(Brake::Unreadable { what, hint });
                    true
                }
                Some(CatalogEntry::Unfinished { .. } | CatalogEntry::Expired { .. }) | None => false,
            };
            let life = Life::new(has_head, expired, written, &self.ages);
            let since = expired.filter(|_| !has_head).unwrap_or(written);
            let manifests = folder.manifests;
            self.backups.push(SeenBackup { id, life, epoch: None, since, manifests, evidence, tombstones });
        }
    }

    /// Reads what each backup names, the manifests of a few at once.
    async fn read_names(&mut self, repository: &Repository, catalog: &Catalog) -> Result<(), RepositoryError> {
        let heads: HashMap<&BackupId, &Head> = catalog.heads().map(|head| (&head.backup, head)).collect();
        let mut backups = std::mem::take(&mut self.backups);
        for backup in &mut backups {
            let read = match backup.life {
                Life::Head => match heads.get(&backup.id) {
                    Some(head) => names_of_head(repository, head).await,
                    // One that cannot be read: a brake already.
                    None => continue,
                },
                Life::Buried | Life::Gone => names_of_tombstone(repository, backup).await,
                Life::Running => names_of_manifests(repository, backup).await,
                Life::Abandoned => continue,
            };
            match read {
                Ok((epoch, marks)) => {
                    backup.epoch = epoch;
                    self.add_names(backup.life, marks);
                }
                Err(error) => self.not_read(backup, error)?,
            }
        }
        self.backups = backups;
        Ok(())
    }

    /// What a backup names: in use, or the explanation of what goes.
    pub(super) fn add_names(&mut self, life: Life, marks: Vec<PartMark>) {
        if life.protects() { &mut self.named } else { &mut self.explained }.extend(marks);
    }

    /// What is wrong with an object stops the sweep, unless the backup goes anyway: then the parts that it names go as unexplained ones. What
    /// the store says is an error.
    fn not_read(&mut self, backup: &SeenBackup, error: RepositoryError) -> Result<(), RepositoryError> {
        let hint = match &error {
            RepositoryError::Trust(_) => None,
            RepositoryError::Locked(_) | RepositoryError::Newer { .. } => error.hint(),
            _ => return Err(error),
        };
        let what = error.to_string();
        match backup.life.protects() {
            true => self.unreadable.push(Brake::Unreadable { what, hint }),
            false => self
                .notes
                .push(format!("backup {} expired, and it is not known which parts were its: {what}", backup.id)),
        }
        Ok(())
    }
}

/// An epoch, and marks of parts in it.
type Names = (Option<EpochId>, Vec<PartMark>);

fn marks(manifest: &Manifest) -> Vec<PartMark> {
    manifest.parts().map(|part| PartMark::new(&manifest.epoch, &part.name)).collect()
}

async fn names_of_head(repository: &Repository, head: &Head) -> Result<Names, RepositoryError> {
    let epoch = repository.epoch(&head.epoch).await?;
    read_manifests(repository, head, &epoch, false).await
}

async fn names_of_tombstone(repository: &Repository, backup: &SeenBackup) -> Result<Names, RepositoryError> {
    let (_, head, epoch) = repository.newest_tombstone(&backup.id, &backup.tombstones).await?;
    // A sweep that was killed has removed some manifests of this one, and before them all parts that only they named.
    read_manifests(repository, &head, &epoch, backup.life == Life::Gone).await
}

async fn read_manifests(
    repository: &Repository,
    head: &Head,
    epoch: &Epoch,
    some_may_miss: bool,
) -> Result<Names, RepositoryError> {
    let mut reads = Vec::new();
    for source in head.sources.iter().filter(|source| source.manifest.is_some()) {
        reads.push(read_manifest(repository, head, epoch, source, some_may_miss));
    }
    let marks: Vec<Vec<PartMark>> = stream::iter(reads).buffer_unordered(PARALLEL_READS).try_collect().await?;
    Ok((Some(head.epoch.clone()), marks.concat()))
}

async fn read_manifest(
    repository: &Repository,
    head: &Head,
    epoch: &Epoch,
    source: &HeadSource,
    may_miss: bool,
) -> Result<Vec<PartMark>, RepositoryError> {
    match repository.manifest(head, epoch, source).await {
        Ok(manifest) => Ok(marks(&manifest)),
        Err(RepositoryError::Trust(Trust::Missing { .. })) if may_miss => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Manifests without a head that vouches for them: what they name is kept, whoever wrote them.
async fn names_of_manifests(repository: &Repository, backup: &SeenBackup) -> Result<Names, RepositoryError> {
    let (mut epoch, mut all) = (None, Vec::new());
    for info in &backup.manifests {
        let key = &info.key;
        let bytes = repository.store().get(key).await.map_err(must_exist(key))?;
        let protection = repository.keyring().reader(key.ends_with(layout::ENCRYPTED_SUFFIX));
        let decoded = tokio::task::spawn_blocking(move || Manifest::decode(&protection, &bytes)).await;
        let manifest = decoded.unwrap_or_else(|_| Err("was not read to its end".to_owned()));
        let manifest = manifest.map_err(|what| Trust::damaged(key, what))?;
        if manifest.repository != repository.mark().repository || manifest.backup != backup.id {
            return Err(Trust::damaged(key, format!("is a manifest of backup {}", manifest.backup)).into());
        }
        all.extend(marks(&manifest));
        epoch = Some(manifest.epoch);
    }
    Ok((epoch, all))
}

/// One LIST of a folder, by the backup that each object is of.
async fn objects(
    repository: &Repository,
    folder: &str,
    of: fn(&str) -> Option<BackupId>,
) -> Result<BTreeMap<BackupId, Vec<ObjectInfo>>, RepositoryError> {
    let mut found: BTreeMap<BackupId, Vec<ObjectInfo>> = BTreeMap::new();
    let mut add = |info: ObjectInfo| {
        if let Some(id) = of(&info.key) {
            found.entry(id).or_default().push(info);
        }
    };
    repository.store().list(folder, &mut add).await?;
    Ok(found)
}

/// Opens and lists every epoch.
async fn epochs(repository: &Repository, ages: &Ages) -> Result<Vec<SeenEpoch>, RepositoryError> {
    let mut seen = Vec::new();
    for id in repository.store().list_dirs(layout::EPOCHS).await?.iter().filter_map(|name| name.parse().ok()) {
        let state = match repository.epoch(&id).await {
            Ok(epoch) => EpochState::Open(epoch),
            Err(RepositoryError::Trust(Trust::Missing { object })) if object == layout::epoch_record(&id) => {
                EpochState::NoRecord
            }
            Err(error @ (RepositoryError::Trust(_) | RepositoryError::Locked(_) | RepositoryError::Newer { .. })) => {
                EpochState::Closed(error.to_string())
            }
            Err(error) => return Err(error),
        };
        let mut epoch = SeenEpoch::new(id, state);
        let folder = layout::epoch(&epoch.id);
        repository.store().list(&folder, &mut |info| epoch.add(info, ages)).await?;
        // A store may go on to show a folder for a while whose last object was deleted.
        let is_there = epoch.parts.objects + epoch.strangers + epoch.records.len() as u64 > 0;
        seen.extend(is_there.then_some(epoch));
    }
    Ok(seen)
}

impl SeenEpoch {
    pub(super) fn new(id: EpochId, state: EpochState) -> Self {
        let (records, old) = (Vec::new(), Vec::new());
        Self { id, state, records, parts: super::Tally::default(), old, strangers: 0 }
    }

    /// One object of its folder. Those that are too young to go are only counted.
    pub(super) fn add(&mut self, info: ObjectInfo, ages: &Ages) {
        if layout::is_epoch_record(&info.key, &self.id) {
            return self.records.push(info);
        }
        if !info.key.starts_with(&layout::parts(&self.id)) {
            self.strangers += 1;
            return;
        }
        self.parts.add(info.size);
        let EpochState::Open(open) = &self.state else { return };
        let name = layout::part_name(&info.key, &self.id, &open.protection).filter(|name| name.is_of(&open.keys));
        match name {
            None => self.strangers += 1,
            Some(name) if ages.is_old(info.last_modified) => self.old.push(OldPart { name, bytes: info.size }),
            Some(_) => {}
        }
    }
}
