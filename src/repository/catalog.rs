//! What backups there are: heads only (rule R1), with what lacks a head or cannot be trusted named beside them (R11).

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::{
    BackupId, Head, HeadSource, Locked, Repository, RepositoryError, Trust, Verdicts,
    layout::{self, BackupObject},
    tombstone::Tombstones,
};
use crate::store::ObjectInfo;

/// Heads read at once.
const PARALLEL_READS: usize = 8;

/// One backup's folder.
#[derive(Clone, Debug)]
pub enum CatalogEntry {
    /// A backup.
    Good(Box<Head>),
    /// A head that is not to be trusted, or that stands on something that is not.
    Damaged {
        /// The folder's name.
        id: BackupId,
        /// What is wrong.
        trust: Trust,
    },
    /// A head that may be good, and cannot be believed with what this machine holds.
    Locked {
        /// The folder's name.
        id: BackupId,
        /// Why.
        locked: Locked,
    },
    /// Manifests without a head.
    Unfinished {
        /// The folder's name.
        id: BackupId,
        /// How many.
        manifests: usize,
        /// When the last was written, by the store's clock.
        written: Timestamp,
    },
    /// A backup that expired (rule R8): its head is in a tombstone.
    Expired {
        /// The folder's name.
        id: BackupId,
        /// When, by the store's clock.
        at: Timestamp,
    },
}

impl CatalogEntry {
    /// The backup's id.
    pub fn id(&self) -> &BackupId {
        match self {
            CatalogEntry::Good(head) => &head.backup,
            CatalogEntry::Damaged { id, .. }
            | CatalogEntry::Locked { id, .. }
            | CatalogEntry::Unfinished { id, .. }
            | CatalogEntry::Expired { id, .. } => id,
        }
    }
}

/// Which backup a person means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The newest that holds a complete snapshot of each asked source.
    Latest,
    /// The newest verified one.
    LatestVerified,
    /// An id or the beginning of one.
    Prefix(String),
}

impl FromStr for Selector {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Selector::Latest),
            "latest-verified" => Ok(Selector::LatestVerified),
            "" => Err("a backup is an id, the beginning of one, `latest` or `latest-verified`".into()),
            _ => Ok(Selector::Prefix(text.to_owned())),
        }
    }
}

/// All backups, newest first.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Heads by the time they started, newest first; what has no trustworthy time stands where its id would.
    pub entries: Vec<CatalogEntry>,
    /// Why all of them are taken without proof of who made them, if they are.
    pub unknown: Option<Locked>,
    /// Those with a tombstone beside a head: they are about to expire, or that was undone. They are as good as any, but no new backup
    /// may stand on them (R7): they may lose that head at any moment, and their tombstone may be old then.
    pub expiring: BTreeSet<BackupId>,
}

/// The folder of one backup, as the listing shows it.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// Does it have a head?
    pub(super) head: bool,
    /// Its manifests.
    pub(super) manifests: Vec<ObjectInfo>,
    /// When the last of its objects was written, by the store's clock.
    pub(super) written: Timestamp,
}

/// What the listings showed that a catalogue was made from.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// The folders of backups.
    pub(super) folders: BTreeMap<BackupId, Folder>,
    /// The tombstones.
    pub(super) tombstones: Tombstones,
}

impl Catalog {
    /// Reads every head.
    ///
    /// # Errors
    /// What the store says. A damaged head, and one that cannot be opened or believed here, is an entry, not an error.
    pub async fn read(repository: &Repository) -> Result<Self, RepositoryError> {
        Ok(Self::read_listed(repository).await?.0)
    }

    /// The same, with what the listings showed.
    pub(super) async fn read_listed(repository: &Repository) -> Result<(Self, Listed), RepositoryError> {
        let folders = folders(repository).await?;
        let with_head = folders.iter().filter(|(_, folder)| folder.head).map(|(id, _)| id.clone());
        let reads: Vec<_> = with_head.map(|id| read_head(repository, id)).collect();
        let mut heads: BTreeMap<BackupId, Option<CatalogEntry>> =
            stream::iter(reads).buffer_unordered(PARALLEL_READS).try_collect().await?;
        // After the heads: a backup that expires loses its head only once its tombstone is there (R8), so that it is seen as one of the
        // two.
        let tombstones = Tombstones::list(repository).await?;
        let ids: BTreeSet<&BackupId> = folders.keys().chain(tombstones.ids()).collect();
        let entry = |id: &BackupId| {
            let head = heads.remove(id);
            let had_head = head.is_some();
            head.flatten().unwrap_or_else(|| match (tombstones.expired(id), folders.get(id)) {
                (Some(at), _) => CatalogEntry::Expired { id: id.clone(), at },
                (None, Some(folder)) if !had_head => {
                    let (manifests, written) = (folder.manifests.len(), folder.written);
                    CatalogEntry::Unfinished { id: id.clone(), manifests, written }
                }
                // Gone since the listing.
                _ => CatalogEntry::Damaged { id: id.clone(), trust: Trust::Missing { object: layout::head(id) } },
            })
        };
        let mut entries: Vec<CatalogEntry> = ids.into_iter().map(entry).collect();
        entries.sort_by(|a, b| order(b).cmp(&order(a)));
        let unknown = repository.epoch_records().await?.unknown();
        if let Some(unknown) = &unknown {
            tracing::warn!("{unknown}; {}", unknown.hint());
        }
        let with_head = entries.iter().filter(|entry| matches!(entry, CatalogEntry::Good(_)));
        let expiring = with_head.map(CatalogEntry::id).filter(|id| tombstones.expired(id).is_some()).cloned().collect();
        Ok((Self { entries, unknown, expiring }, Listed { folders, tombstones }))
    }

    /// The heads, newest first.
    pub fn heads(&self) -> impl Iterator<Item = &Head> {
        self.entries.iter().filter_map(|entry| match entry {
            CatalogEntry::Good(head) => Some(&**head),
            _ => None,
        })
    }

    /// What is newer than this backup and was passed over, for one of `sources` (none: all that a backup was asked for): what cannot
    /// be trusted, for it may be the one that is meant, and what lacks a source that it was asked for. An older one must not stand in
    /// for either in silence.
    pub fn passed_over(&self, head: &Head, sources: &[String]) -> Vec<String> {
        let newer = self.entries.iter().take_while(|entry| *entry.id() != head.backup);
        let told = |entry: &CatalogEntry| match entry {
            CatalogEntry::Damaged { id, trust } => Some(format!("backup {id} is passed over: {trust}")),
            CatalogEntry::Locked { id, locked } => Some(format!("backup {id} is passed over: {locked}")),
            CatalogEntry::Unfinished { id, .. } => {
                Some(format!("backup {id} is passed over: it is unfinished, without a head"))
            }
            CatalogEntry::Good(newer) => lacks(newer, sources),
            CatalogEntry::Expired { .. } => None,
        };
        newer.filter_map(told).collect()
    }

    /// What is newer than this backup and was passed over since it is not verified, beside what [`Catalog::passed_over`] names.
    pub fn passed_over_unverified(&self, verdicts: &Verdicts, head: &Head, sources: &[String]) -> Vec<String> {
        let newer = self.heads().take_while(|newer| newer.backup != head.backup).filter(|newer| holds(newer, sources));
        let told = newer
            .map(|newer| format!("backup {} is newer, and passed over: it is {}", newer.backup, verdicts.word(newer)));
        told.chain(self.passed_over(head, sources)).collect()
    }

    /// The one backup that `selector` means, for these sources (none: every source that the backup was asked for).
    ///
    /// # Errors
    /// `NoSuchBackup`, `Ambiguous`, `Unfinished`, or why the one that is meant cannot be trusted.
    pub fn select(
        &self,
        verdicts: &Verdicts,
        selector: &Selector,
        sources: &[String],
        url: &str,
    ) -> Result<&Head, RepositoryError> {
        let none = |wanted: &str| RepositoryError::NoSuchBackup { wanted: wanted.to_owned(), url: url.to_owned() };
        match selector {
            Selector::Latest => {
                let mut passed: Option<&Locked> = None;
                for entry in &self.entries {
                    match entry {
                        CatalogEntry::Good(head) if holds(head, sources) => return Ok(&**head),
                        // One of ours, for which a key is missing: an older one is not what is meant.
                        CatalogEntry::Locked { locked: locked @ Locked::NoIdentity { .. }, .. } => {
                            return Err(locked.clone().into());
                        }
                        CatalogEntry::Locked { locked, .. } => passed = passed.or(Some(locked)),
                        _ => {}
                    }
                }
                // Where all that there is cannot be believed, that is the answer, and not that there is none.
                Err(passed.map_or_else(|| none("that is complete"), |locked| locked.clone().into()))
            }
            Selector::LatestVerified => {
                let proved = |head: &&Head| {
                    asked(head, sources).all(|source| source.is_some_and(|source| verdicts.proves(head, source)))
                };
                self.heads().find(proved).ok_or_else(|| none("that is verified"))
            }
            Selector::Prefix(prefix) => {
                let fits: Vec<_> =
                    self.entries.iter().filter(|entry| entry.id().as_str().starts_with(prefix)).collect();
                match fits[..] {
                    [] => Err(none(&format!("`{prefix}`"))),
                    [CatalogEntry::Good(head)] => Ok(&**head),
                    [CatalogEntry::Damaged { trust, .. }] => Err(trust.clone().into()),
                    [CatalogEntry::Locked { locked, .. }] => Err(locked.clone().into()),
                    [CatalogEntry::Unfinished { id, manifests, .. }] => {
                        Err(RepositoryError::Unfinished { id: id.clone(), manifests: *manifests })
                    }
                    [CatalogEntry::Expired { id, at }] => Err(RepositoryError::Expired { id: id.clone(), at: *at }),
                    _ => Err(RepositoryError::Ambiguous {
                        wanted: format!("`{prefix}`"),
                        fits: fits.iter().map(|entry| entry.id().clone()).collect(),
                    }),
                }
            }
        }
    }
}

/// One LIST of all backups' folders.
async fn folders(repository: &Repository) -> Result<BTreeMap<BackupId, Folder>, RepositoryError> {
    let mut folders: BTreeMap<BackupId, Folder> = BTreeMap::new();
    repository
        .store()
        .list(layout::BACKUPS, &mut |info| {
            let Some((id, object)) = layout::backup_object(&info.key) else { return };
            let folder = folders.entry(id).or_insert(Folder { written: Timestamp::MIN, ..Folder::default() });
            folder.written = folder.written.max(info.last_modified);
            match object {
                BackupObject::Head => folder.head = true,
                BackupObject::Manifest(_) => folder.manifests.push(info),
                BackupObject::Other => {}
            }
        })
        .await?;
    Ok(folders)
}

/// A head that was listed, as an entry; none where it is not there any more.
async fn read_head(repository: &Repository, id: BackupId) -> Result<(BackupId, Option<CatalogEntry>), RepositoryError> {
    let entry = match repository.head(&id).await {
        Ok((head, _)) => Some(CatalogEntry::Good(Box::new(head))),
        Err(RepositoryError::Trust(Trust::Missing { object })) if object == layout::head(&id) => None,
        Err(RepositoryError::Trust(trust)) => Some(CatalogEntry::Damaged { id: id.clone(), trust }),
        Err(RepositoryError::Locked(locked)) => Some(CatalogEntry::Locked { id: id.clone(), locked }),
        Err(error) => return Err(error),
    };
    Ok((id, entry))
}

/// The snapshots that are meant by `sources` (none: every source that the backup was asked for).
fn asked<'a>(head: &'a Head, sources: &'a [String]) -> Box<dyn Iterator<Item = Option<&'a HeadSource>> + 'a> {
    match sources {
        [] => Box::new(head.sources.iter().map(Some)),
        names => Box::new(names.iter().map(|name| head.source(name))),
    }
}

/// Does it hold a usable snapshot of each?
fn holds(head: &Head, sources: &[String]) -> bool {
    asked(head, sources).all(|source| source.is_some_and(|source| source.state.is_usable()))
}

/// Why this one is not `latest` for them, where it was asked for them: which of their snapshots are not whole.
fn lacks(head: &Head, sources: &[String]) -> Option<String> {
    let asked = |name: &String| sources.is_empty() || sources.contains(name);
    let lacking: Vec<String> = head
        .sources
        .iter()
        .filter(|source| asked(&source.name) && !source.state.is_usable())
        .map(|source| format!("`{}` ({})", source.name, source.state))
        .collect();
    let id = &head.backup;
    (!lacking.is_empty()).then(|| format!("backup {id} is newer, and passed over: it lacks {}", lacking.join(", ")))
}

/// R6: heads by their own time. The rest by the time in their id, which is in whole seconds and only places them in a list
/// for people; at the end of its second, so that a damaged head never hides behind an older one of the same second.
fn order(entry: &CatalogEntry) -> (String, &str) {
    let id = entry.id().as_str();
    match entry {
        CatalogEntry::Good(head) => (head.started.strftime("%Y%m%dT%H%M%SZ.%9f").to_string(), id),
        _ => (format!("{}.999999999", &id[..16]), id),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::repository::{Anchors, BackupState, RepositoryId};

    #[test]
    fn a_damaged_head_does_not_hide_behind_a_good_one_of_its_second() {
        let started: Timestamp = "2026-11-23T01:00:00.9Z".parse().unwrap();
        let good = CatalogEntry::Good(Box::new(Head {
            format: 1,
            repository: RepositoryId::random(),
            backup: "20261123T010000Z-zzzzzz".parse().unwrap(),
            epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
            tool: String::new(),
            started,
            finished: started,
            state: BackupState::Complete,
            skew: None,
            anchors: Anchors { install_mark: String::new(), epoch: String::new(), keys: String::new() },
            sources: Vec::new(),
        }));
        let damaged = |id: &str| CatalogEntry::Damaged { id: id.parse().unwrap(), trust: Trust::damaged("x", "y") };
        assert!(order(&damaged("20261123T010000Z-222222")) > order(&good));
        assert!(order(&damaged("20261123T005959Z-222222")) < order(&good));
    }
}
