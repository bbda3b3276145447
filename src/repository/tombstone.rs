//! Tombstones: what is left of a backup's head once the backup expired (rule R8).
//!
//! A backup expires by two steps: `tombstones/<id>.json` is written, then its head is deleted. While both are there the head counts, so
//! that a crash in between changes nothing. Until the tombstone is older than the grace period all that the backup names stays, for
//! backups under way that began while it had its head and reuse its parts (R7), and to undo the expiry.
//!
//! A tombstone's age is what the sweep goes by, so a backup that begins between the two steps reuses nothing of this one (R7, see
//! [`ReusableParts`](super::ReusableParts)). And the head should be gone soon after the tombstone was written, or little is left of the time in which
//! the expiry can be undone: [`Repository::expire`] looks at the clock once more after the head is gone, and undoes it where more than a
//! third of the grace period went by.
//!
//! No key of a tombstone is used twice, and only the sweep that removes the whole backup deletes one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    BackupId, Epoch, EpochId, FORMAT_VERSION, Head, Repository, RepositoryError, RepositoryId, Trust,
    error::must_exist,
    layout, look, open,
    seal::{self, Seal, Sealer},
    tool,
};
use crate::{
    report,
    store::{ObjectInfo, StoreErrorKind},
};

/// What the clocks of a store's machines may differ.
const TOLERANCE: Duration = Duration::from_secs(60);

/// `tombstones/<id>.json` as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Tombstone {
    /// Repository format version.
    format: u32,
    /// The repository it belongs to.
    repository: RepositoryId,
    /// The backup.
    backup: BackupId,
    /// The epoch whose key the MAC is under: the backup's.
    epoch: EpochId,
    /// Program and version that let it expire.
    tool: String,
    /// When, by the store's clock.
    expired: Timestamp,
    /// The head with its own MAC, byte for byte but for its last line end: undo writes it as it was.
    head: Box<RawValue>,
}

impl Tombstone {
    fn head_bytes(&self) -> Bytes {
        format!("{}\n", self.head.get()).into()
    }
}

/// What became of a backup that was to expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It has.
    Done,
    /// Somebody else was faster: its head was gone.
    WasGone,
}

/// All tombstones, as one LIST showed them.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    by_backup: BTreeMap<BackupId, Vec<ObjectInfo>>,
}

impl Tombstones {
    /// One LIST.
    pub(super) async fn list(repository: &Repository) -> Result<Self, RepositoryError> {
        let mut by_backup: BTreeMap<BackupId, Vec<ObjectInfo>> = BTreeMap::new();
        repository
            .store()
            .list(layout::TOMBSTONES, &mut |info| {
                if let Some(id) = layout::tombstone_of(&info.key) {
                    by_backup.entry(id).or_default().push(info);
                }
            })
            .await?;
        by_backup.values_mut().for_each(|list| list.sort_by_key(|info| info.last_modified));
        Ok(Self { by_backup })
    }

    /// Every backup that has one.
    pub(super) fn ids(&self) -> impl Iterator<Item = &BackupId> {
        self.by_backup.keys()
    }

    /// A backup's, the oldest first.
    pub(super) fn of(&self, id: &BackupId) -> &[ObjectInfo] {
        self.by_backup.get(id).map_or(&[], Vec::as_slice)
    }

    /// When it expired last, by the store's clock.
    pub(super) fn expired(&self, id: &BackupId) -> Option<Timestamp> {
        self.of(id).last().map(|info| info.last_modified)
    }
}

/// How far `from` and `to` are apart, whichever is first: a store's machines do not tell quite the same time.
fn apart(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).unsigned_abs()
}

impl Repository {
    /// Lets a backup expire: tombstone, then the end of its head (R8).
    ///
    /// # Errors
    /// A head that is not to be trusted stays where it is; `SlowExpiry`; what the store says, also of undoing a slow one.
    pub async fn expire(&self, id: &BackupId, grace: Duration) -> Result<Expiry, RepositoryError> {
        let key = layout::head(id);
        let bytes = match self.store().get(&key).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Expiry::WasGone),
            Err(error) => return Err(error.into()),
        };
        let (_, epoch) = self.check_head(key.clone(), id, &bytes).await?;
        let bound = grace / 3;
        let tombstone = self.bury(id, &epoch, &bytes, bound).await?;
        self.store().delete(&key).await?;
        let buried = match self.store().head(&tombstone).await {
            Ok(info) => info.last_modified,
            // So much time went by that a sweep has taken all of it.
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(Expiry::Done),
            Err(error) => return Err(error.into()),
        };
        let now = self.store().now().await?;
        let took = apart(buried, now);
        if took <= bound {
            return Ok(Expiry::Done);
        }
        let (took, bound) = (report::duration(took), report::duration(bound));
        match self.undo_expiry(id, grace).await {
            Ok(_) => Err(RepositoryError::SlowExpiry { id: id.clone(), took, bound }),
            // It has expired, as was meant; a sweep may be at what is left.
            Err(
                RepositoryError::TooLate { .. } | RepositoryError::Gone { .. } | RepositoryError::NoSuchBackup { .. },
            ) => {
                tracing::warn!(
                    "expiring backup {id} took {took}, more than {bound}; there was no time left to undo it"
                );
                Ok(Expiry::Done)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a tombstone under a key that was never used; or finds one that was written just now, by a run that crashed before it
    /// deleted the head or by one that is at it. Gives its key.
    async fn bury(
        &self,
        id: &BackupId,
        epoch: &Epoch,
        head: &Bytes,
        bound: Duration,
    ) -> Result<String, RepositoryError> {
        let encode = |what: String| RepositoryError::Encode { object: layout::tombstone(id, 1), what };
        let text = String::from_utf8(head.to_vec()).map_err(|error| encode(error.to_string()))?;
        let raw = RawValue::from_string(text).map_err(|error| encode(error.to_string()))?;
        let mut nth = 1;
        loop {
            let key = layout::tombstone(id, nth);
            let record = Tombstone {
                format: FORMAT_VERSION,
                repository: self.mark().repository.clone(),
                backup: id.clone(),
                epoch: epoch.id().clone(),
                tool: tool(),
                expired: self.store().now().await?,
                head: raw.clone(),
            };
            let bytes = open::encode(&key, &record, Sealer::Mac(epoch.keys.mac_key()))?;
            match self.store().put_new(&key, bytes).await {
                Ok(()) => return Ok(key),
                Err(error) if error.kind == StoreErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
            let there = self.store().head(&key).await?;
            let is_young = apart(there.last_modified, record.expired) <= bound / 2;
            if is_young && self.tombstone(id, &key).await.is_ok() {
                return Ok(key);
            }
            nth += 1;
        }
    }

    /// Reads and checks a tombstone, with the head in it and everything that stands on.
    pub(super) async fn tombstone(
        &self,
        id: &BackupId,
        key: &str,
    ) -> Result<(Tombstone, Head, Arc<Epoch>), RepositoryError> {
        let bytes = self.store().get(key).await.map_err(must_exist(key))?;
        let told: Tombstone = match seal::peek(&bytes) {
            Ok(told) => told,
            Err(error) => {
                return Err(open::newer_claim(key, &bytes).unwrap_or_else(|| Trust::damaged(key, error).into()));
            }
        };
        let epoch = self.epoch(&told.epoch).await?;
        let tombstone: Tombstone = open::decode(key, &bytes, Seal::Mac(epoch.keys.mac_key()))?;
        self.belongs(key, &tombstone.repository)?;
        let (head, of_head) = self.check_head(key.to_owned(), id, &tombstone.head_bytes()).await?;
        if tombstone.backup != *id || of_head.id() != epoch.id() {
            return Err(Trust::damaged(key, format!("is the tombstone of backup {}", tombstone.backup)).into());
        }
        Ok((tombstone, head, epoch))
    }

    /// The newest good one of a backup's tombstones.
    pub(super) async fn newest_tombstone(
        &self,
        id: &BackupId,
        tombstones: &[ObjectInfo],
    ) -> Result<(Tombstone, Head, Arc<Epoch>), RepositoryError> {
        let mut failure = None;
        for info in tombstones.iter().rev() {
            match self.tombstone(id, &info.key).await {
                Ok(read) => return Ok(read),
                Err(error @ (RepositoryError::Trust(_) | RepositoryError::Locked(_))) => {
                    failure = failure.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| Trust::Missing { object: layout::tombstone(id, 1) }.into()))
    }

    /// The one backup that expired and whose id begins so.
    ///
    /// # Errors
    /// `NoSuchBackup`, `Ambiguous`, or what the store says.
    pub async fn find_expired(&self, prefix: &str) -> Result<BackupId, RepositoryError> {
        let tombstones = Tombstones::list(self).await?;
        let fits: Vec<BackupId> =
            tombstones.ids().filter(|id| !prefix.is_empty() && id.as_str().starts_with(prefix)).cloned().collect();
        let wanted = format!("`{prefix}` that expired");
        match &fits[..] {
            [] => Err(RepositoryError::NoSuchBackup { wanted, url: self.store().url().to_owned() }),
            [id] => Ok(id.clone()),
            _ => Err(RepositoryError::Ambiguous { wanted, fits }),
        }
    }

    /// Undoes an expiry: the head is written again, between two looks as at a commit (R1), while its tombstone is younger than the grace
    /// period. The tombstone stays, and means nothing beside a head. Gives the head, and whether it was gone.
    ///
    /// # Errors
    /// `NoSuchBackup`, `TooLate`, `Gone`, or what the store says; then there is no head, unless the error says that it could not be
    /// removed.
    pub async fn undo_expiry(&self, id: &BackupId, grace: Duration) -> Result<(Head, bool), RepositoryError> {
        let tombstones = Tombstones::list(self).await?;
        let Some(at) = tombstones.expired(id) else {
            let wanted = format!("`{id}` that expired");
            return Err(RepositoryError::NoSuchBackup { wanted, url: self.store().url().to_owned() });
        };
        match self.head(id).await {
            Ok((head, _)) => return Ok((head, false)),
            Err(RepositoryError::Trust(Trust::Missing { object })) if object == layout::head(id) => {}
            Err(error) => return Err(error),
        }
        let (tombstone, head, epoch) = self.newest_tombstone(id, tombstones.of(id)).await?;
        let expected = self.everything_of(&head, &epoch).await?;
        self.may_undo(id, at, grace).await?;
        self.look_for(id, &epoch, &expected).await?;
        let key = layout::head(id);
        let written = match self.store().put_new(&key, tombstone.head_bytes()).await {
            // Somebody else was faster.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => return Ok((self.head(id).await?.0, false)),
            written => written,
        };
        // A sweep that began before the head was there began before this look at the clock: it saw a young tombstone.
        let failure = match written {
            Ok(()) => match self.look_for(id, &epoch, &expected).await {
                Ok(()) => self.may_undo(id, at, grace).await.err(),
                Err(error) => Some(error),
            },
            Err(error) => Some(error.into()),
        };
        let Some(failure) = failure else { return Ok((head, true)) };
        match self.store().delete(&key).await {
            Ok(()) => Err(failure),
            Err(_) => Err(RepositoryError::HeadRemains { object: key, failure: Box::new(failure) }),
        }
    }

    /// Fails where a sweep may have begun to take what the backup names.
    async fn may_undo(&self, id: &BackupId, at: Timestamp, grace: Duration) -> Result<(), RepositoryError> {
        let bound = grace.saturating_sub(TOLERANCE);
        let age = self.store().now().await?.duration_since(at);
        match age < SignedDuration::try_from(bound).unwrap_or(SignedDuration::MAX) {
            true => Ok(()),
            false => Err(RepositoryError::TooLate { id: id.clone(), at, bound: report::duration(bound) }),
        }
    }

    /// Every object that a backup stands on: key to size.
    async fn everything_of(&self, head: &Head, epoch: &Epoch) -> Result<HashMap<String, u64>, RepositoryError> {
        let mut expected = HashMap::new();
        for source in &head.sources {
            let Some(digest) = &source.manifest else { continue };
            expected.insert(layout::manifest(&head.backup, &source.name, &epoch.protection), digest.bytes);
            let manifest = self.manifest(head, epoch, source).await?;
            expected.extend(
                manifest.parts().map(|part| (layout::part(epoch.id(), &part.name, &epoch.protection), part.stored)),
            );
        }
        Ok(expected)
    }

    async fn look_for(
        &self,
        id: &BackupId,
        epoch: &Epoch,
        expected: &HashMap<String, u64>,
    ) -> Result<(), RepositoryError> {
        let wrong = look::look(self, &[layout::parts(epoch.id()), layout::backup(id)], expected).await?;
        match wrong.first() {
            None => Ok(()),
            Some(example) => Err(RepositoryError::Gone {
                id: id.clone(),
                missing: wrong.len(),
                example: example.object().to_owned(),
            }),
        }
    }
}
