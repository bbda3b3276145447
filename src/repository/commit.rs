//! The commit of a backup (rule R1): manifests, a look, the head, the same look again.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;

use super::{Epoch, Head, Manifest, ManifestDigest, Repository, RepositoryError, layout, look, open, seal::Sealer};
use crate::store::StoreErrorKind;

/// A backup about to be committed.
pub struct Commit<'a> {
    repository: &'a Repository,
    epoch: &'a Epoch,
    /// Every object that the look must show: key to size.
    expected: HashMap<String, u64>,
    /// The bound on a backup's age (R7).
    bound: Duration,
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
    pub async fn manifest(&mut self, manifest: Manifest) -> Result<ManifestDigest, RepositoryError> {
        let key = layout::manifest(&manifest.backup, &manifest.source.name, &self.epoch.protection);
        let protection = self.epoch.protection.clone();
        let encoded = tokio::task::spawn_blocking(move || (manifest.encode(&protection), manifest)).await;
        let (bytes, manifest) = match encoded {
            Ok((Ok(bytes), manifest)) => (Bytes::from(bytes), manifest),
            Ok((Err(what), _)) => return Err(RepositoryError::Encode { object: key, what }),
            Err(error) => return Err(RepositoryError::Encode { object: key, what: error.to_string() }),
        };
        for part in manifest.parts() {
            self.expected.insert(layout::part(self.epoch.id(), &part.name, &self.epoch.protection), part.stored);
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
        self.look(&head, "first").await?;
        let store = self.repository.store();
        head.finished = store.now().await?;
        self.young_enough(head.started, head.finished)?;
        let key = layout::head(&head.backup);
        let bytes = open::encode(&key, &head, Sealer::Mac(self.epoch.keys.mac_key()))?;
        let looked = match store.put_new(&key, bytes).await {
            Ok(()) => self.look(&head, "second").await,
            // Somebody else's: not ours to remove.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => return Err(error.into()),
            // It may have been written all the same.
            Err(error) => Err(error.into()),
        };
        let failure = match looked {
            // A process that was suspended between its checks and the head (R7) is found by the second look at the clock.
            Ok(()) => match store.now().await {
                Ok(now) => self.young_enough(head.started, now).err(),
                Err(error) => Some(error.into()),
            },
            Err(error) => Some(error),
        };
        let Some(failure) = failure else { return Ok(head) };
        match store.delete(&key).await {
            Ok(()) => Err(failure),
            Err(_) => Err(RepositoryError::HeadRemains { object: key, failure: Box::new(failure) }),
        }
    }

    /// One LIST of the epoch's parts and one of the backup's folder.
    async fn look(&self, head: &Head, look: &'static str) -> Result<(), RepositoryError> {
        let folders = [layout::parts(self.epoch.id()), layout::backup(&head.backup)];
        let wrong = look::look(self.repository, &folders, &self.expected).await?;
        match wrong.first() {
            None => Ok(()),
            Some(example) => {
                Err(RepositoryError::NotShown { look, missing: wrong.len(), example: example.object().to_owned() })
            }
        }
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
