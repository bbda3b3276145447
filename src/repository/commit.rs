//! The commit of a backup (rule R1): manifests, a look, the head, the same look again.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;

use super::{Epoch, Head, Manifest, ManifestDigest, Repository, RepositoryError, layout, open, seal::Seal};

/// A backup about to be committed.
pub struct Commit<'a> {
    repository: &'a Repository,
    epoch: &'a Epoch,
    /// Every object that the look must show: key to size.
    expected: HashMap<String, u64>,
    /// The bound on a backup's age (R7).
    bound: Duration,
}

/// Whether a committed backup was seen to be whole.
#[derive(Debug, PartialEq, Eq)]
pub enum CommitCheck {
    /// All there.
    Shown,
    /// So many objects were missing or of another size; this is one.
    Missing(usize, String),
}

impl<'a> Commit<'a> {
    /// Begins; `grace` is the sweep's grace period.
    pub fn new(repository: &'a Repository, epoch: &'a Epoch, grace: Duration) -> Self {
        Self { repository, epoch, expected: HashMap::new(), bound: grace / 2 }
    }

    /// Writes one manifest and remembers all that it names.
    ///
    /// # Errors
    /// What the store says.
    pub async fn manifest(&mut self, manifest: &Manifest) -> Result<ManifestDigest, RepositoryError> {
        let key = layout::manifest(&manifest.backup, &manifest.source.name, self.epoch.protection);
        let bytes: Bytes = match manifest.encode() {
            Ok(bytes) => bytes.into(),
            Err(what) => return Err(RepositoryError::Encode { object: key, what }),
        };
        for part in manifest.parts() {
            self.expected.insert(layout::part(self.epoch.id(), &part.name, self.epoch.protection), part.stored);
        }
        let digest = ManifestDigest { bytes: bytes.len() as u64, sha256: open::sha256_hex(&bytes) };
        self.expected.insert(key.clone(), digest.bytes);
        self.repository.store().put(&key, bytes).await?;
        Ok(digest)
    }

    /// Writes the head between two looks. Only after this returned may success be reported.
    ///
    /// # Errors
    /// `TooOld`, `NotShown`, or what the store says; then there is no head, unless the error says that it could not be removed.
    pub async fn finish(self, mut head: Head) -> Result<Head, RepositoryError> {
        if let CommitCheck::Missing(missing, example) = self.look(&head).await? {
            return Err(RepositoryError::NotShown { look: "first", missing, example });
        }
        let store = self.repository.store();
        head.finished = store.now().await?;
        self.young_enough(head.started, head.finished)?;
        let key = layout::head(&head.backup);
        let bytes = open::encode(&key, &head, Seal::Mac(self.epoch.keys.mac_key()))?;
        store.put_new(&key, bytes).await?;
        let failure = match self.look(&head).await {
            // A process that was suspended between its checks and the head (R7) is found by the second look at the clock.
            Ok(CommitCheck::Shown) => match store.now().await {
                Ok(now) => self.young_enough(head.started, now).err(),
                Err(error) => Some(error.into()),
            },
            Ok(CommitCheck::Missing(missing, example)) => Some(RepositoryError::NotShown { look: "second", missing, example }),
            Err(error) => Some(error),
        };
        let Some(failure) = failure else { return Ok(head) };
        if let Err(error) = store.delete(&key).await {
            tracing::error!("{key} is of a failed backup and could not be removed: {error}; remove it by hand");
        }
        Err(failure)
    }

    /// One LIST of the epoch's parts and one of the backup's folder.
    async fn look(&self, head: &Head) -> Result<CommitCheck, RepositoryError> {
        let mut wanted: HashMap<&str, u64> = self.expected.iter().map(|(key, size)| (key.as_str(), *size)).collect();
        for folder in [layout::parts(self.epoch.id()), layout::backup(&head.backup)] {
            self.repository
                .store()
                .list(&folder, &mut |info| {
                    if wanted.get(info.key.as_str()) == Some(&info.size) {
                        wanted.remove(info.key.as_str());
                    }
                })
                .await?;
        }
        Ok(match wanted.keys().min() {
            None => CommitCheck::Shown,
            Some(example) => CommitCheck::Missing(wanted.len(), (*example).to_owned()),
        })
    }

    fn young_enough(&self, started: Timestamp, now: Timestamp) -> Result<(), RepositoryError> {
        // A store's clock that went backwards gives no age at all: as good as too old.
        let age = Duration::try_from(now.duration_since(started)).unwrap_or(Duration::MAX);
        if age <= self.bound {
            return Ok(());
        }
        let text = crate::report::duration;
        Err(RepositoryError::TooOld { took: text(age), bound: text(self.bound) })
    }
}
