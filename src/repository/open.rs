//! A repository as a whole: created, opened, its epochs, heads and manifests read and checked.

use std::{
    collections::HashMap,
    io::Read,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Anchors, BackupId, Epoch, EpochId, EpochRecord, Head, HeadSource, Keyring, Keys, Locked, Manifest, RepositoryError,
    RepositoryId, Trust,
    error::must_exist,
    keyring::Belief,
    keys::{KeysRecord, to_hex},
    layout::{self, FORMAT_VERSION},
    seal::{self, Seal, SealError},
};
use crate::store::{Store, StoreErrorKind};

/// `altlas.json`: says that a repository is here, and which.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstallMark {
    /// Repository format version.
    pub format: u32,
    /// The repository's id.
    pub repository: RepositoryId,
    /// When it was created, by the store's clock.
    pub created: Timestamp,
    /// Program and version that created it.
    pub tool: String,
}

/// Only the version: what can be read of any record.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// An open repository.
pub struct Repository {
    store: Store,
    keyring: Keyring,
    mark: InstallMark,
    mark_digest: String,
    epochs: Mutex<HashMap<EpochId, Arc<Epoch>>>,
}

/// Program and version, as written into records.
pub fn tool() -> String {
    format!("altlas-backup {}", env!("CARGO_PKG_VERSION"))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

impl Repository {
    /// Creates a repository in an empty place. Never touches one that is there.
    ///
    /// # Errors
    /// `AlreadyInitialised`, `NotEmpty`, or what the store says.
    pub async fn init(store: Store, keyring: Keyring) -> Result<Self, RepositoryError> {
        match Self::open(store.clone(), keyring.clone()).await {
            Ok(there) => {
                return Err(RepositoryError::AlreadyInitialised {
                    url: store.url().to_owned(),
                    created: there.mark.created,
                });
            }
            Err(RepositoryError::NotInitialised { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut found = None;
        store.list("", &mut |info| found = found.take().or(Some(info.key))).await?;
        if let Some(found) = found {
            return Err(RepositoryError::NotEmpty { url: store.url().to_owned(), found });
        }
        let mark = InstallMark {
            format: FORMAT_VERSION,
            repository: RepositoryId::random(),
            created: store.now().await?,
            tool: tool(),
        };
        let bytes = encode(layout::INSTALL_MARK, &mark, Seal::Digest)?;
        match store.put_new(layout::INSTALL_MARK, bytes).await {
            // Somebody else was faster: theirs counts.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                return Err(RepositoryError::AlreadyInitialised { url: store.url().to_owned(), created: mark.created });
            }
            other => other?,
        }
        Self::open(store, keyring).await
    }

    /// Opens the repository at the store's address, with the keys of this machine.
    ///
    /// # Errors
    /// `NotInitialised` only where the store is reachable and holds nothing of a repository; a missing install mark beside
    /// backups is damage.
    pub async fn open(store: Store, keyring: Keyring) -> Result<Self, RepositoryError> {
        let bytes = match store.get(layout::INSTALL_MARK).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                for folder in [layout::BACKUPS, layout::EPOCHS] {
                    if !store.list_dirs(folder).await?.is_empty() {
                        return Err(Trust::Missing { object: layout::INSTALL_MARK.to_owned() }.into());
                    }
                }
                return Err(RepositoryError::NotInitialised { url: store.url().to_owned() });
            }
            Err(error) => return Err(must_exist(layout::INSTALL_MARK)(error)),
        };
        let mark: InstallMark = decode(layout::INSTALL_MARK, &bytes, Seal::Digest)?;
        Ok(Self { store, keyring, mark, mark_digest: sha256_hex(&bytes), epochs: Mutex::default() })
    }

    /// The store it is in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The keys of this machine.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Its install mark.
    pub fn mark(&self) -> &InstallMark {
        &self.mark
    }

    /// What a head written now under `epoch` stands on.
    pub fn anchors(&self, epoch: &Epoch) -> Anchors {
        Anchors {
            install_mark: self.mark_digest.clone(),
            epoch: epoch.record_digest.clone(),
            keys: epoch.keys_digest.clone(),
        }
    }

    /// Starts a new epoch, for the recipients of this machine's keys. The keys are written first: an epoch without `epoch.json`
    /// does not exist.
    ///
    /// # Errors
    /// `Locked::NoBeginner`, or what the store says.
    pub async fn begin_epoch(&self, now: Timestamp, cut: String) -> Result<Arc<Epoch>, RepositoryError> {
        let id = EpochId::new(now);
        let record = EpochRecord {
            format: FORMAT_VERSION,
            repository: self.mark.repository.clone(),
            epoch: id.clone(),
            began: now,
            recipients: self.keyring.recipients().to_vec(),
            catalog_recipient: self.keyring.catalog_recipient().filter(|_| self.keyring.encrypts()).cloned(),
            cut,
        };
        let protection = self.keyring.protection(&record);
        let (record_key, keys_key) = (layout::epoch_record(&id), layout::keys(&id, &protection));
        let record_bytes = encode(&record_key, &record, Seal::Digest)?;
        let record_digest = sha256_hex(&record_bytes);
        let mut keys = Keys::random().to_record(FORMAT_VERSION, &self.mark.repository, &id, &record_digest);
        if self.keyring.encrypts() {
            keys.prove(self.keyring.beginner()?, record.readers()).map_err(|reader| RepositoryError::Encode {
                object: keys_key.clone(),
                what: format!("{reader} is no key that anyone holds"),
            })?;
        }
        let keys_bytes = protection
            .wrap_record(encode(&keys_key, &keys, Seal::Digest)?.into())
            .map_err(|error| RepositoryError::Encode { object: keys_key.clone(), what: error.to_string() })?;
        self.store.put_new(&keys_key, keys_bytes.into()).await?;
        self.store.put_new(&record_key, record_bytes).await?;
        // Read back, so that what later readers will see is what this run works with.
        self.epoch(&id).await
    }

    /// The epochs that exist, by their folders. Not all need be whole.
    ///
    /// # Errors
    /// What the store says.
    pub async fn epoch_ids(&self) -> Result<Vec<EpochId>, RepositoryError> {
        Ok(self.store.list_dirs(layout::EPOCHS).await?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Reads and checks one epoch; kept for the life of this value.
    ///
    /// # Errors
    /// What the store says, or what is wrong with `epoch.json` or the keys.
    pub async fn epoch(&self, id: &EpochId) -> Result<Arc<Epoch>, RepositoryError> {
        if let Some(epoch) = self.epochs.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(epoch.clone());
        }
        let (record, record_digest) = self.epoch_record(id).await?;
        let record_key = layout::epoch_record(id);
        if record.recipients.is_empty() && self.keyring.encrypts() {
            return Err(Locked::InClear { object: record_key }.into());
        }
        let protection = self.keyring.protection(&record);
        let keys_key = layout::keys(id, &protection);
        let opener = self.keyring.opener(&record);
        if !record.recipients.is_empty() && opener.is_none() {
            return Err(Locked::NoIdentity { object: keys_key, readers: record.readers().cloned().collect() }.into());
        }
        let stored = self.store.get(&keys_key).await.map_err(must_exist(&keys_key))?;
        let mut bytes = Vec::new();
        let mut clear = protection.unwrap(&stored).map_err(|error| Trust::damaged(&keys_key, error))?;
        clear
            .read_to_end(&mut bytes)
            .map_err(|error| Trust::damaged(&keys_key, format!("does not decrypt: {error}")))?;
        drop(clear);
        let keys_record: KeysRecord = decode(&keys_key, &bytes, Seal::Digest)?;
        self.belongs(&keys_key, &keys_record.repository)?;
        if keys_record.epoch != *id {
            return Err(Trust::damaged(&keys_key, format!("holds the keys of epoch {}", keys_record.epoch)).into());
        }
        if keys_record.epoch_record != record_digest {
            return Err(Trust::damaged(&record_key, "is not the record that the epoch's keys were made with").into());
        }
        let mut unknown_beginner = None;
        if let Some(opener) = opener {
            let begun_by = keys_record.proven_beginner(opener).map_err(|what| Trust::damaged(&keys_key, what))?;
            match self.keyring.belief(begun_by) {
                Belief::Known => {}
                Belief::Unasked => unknown_beginner = Some(begun_by.clone()),
                Belief::Stranger => {
                    return Err(Locked::Stranger { object: keys_key, begun_by: begun_by.clone() }.into());
                }
            }
        }
        let keys = Keys::from_record(&keys_record).ok_or_else(|| Trust::damaged(&keys_key, "holds no usable keys"))?;
        let epoch = Arc::new(Epoch {
            record,
            keys,
            protection,
            unknown_beginner,
            record_digest,
            keys_digest: sha256_hex(&stored),
        });
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), epoch.clone());
        Ok(epoch)
    }

    /// Reads one epoch's record, which is in clear, and the SHA-256 of its object. Its digest proves it whole, not true: only
    /// the epoch's keys do that.
    ///
    /// # Errors
    /// What the store says, or what is wrong with `epoch.json`.
    pub async fn epoch_record(&self, id: &EpochId) -> Result<(EpochRecord, String), RepositoryError> {
        let key = layout::epoch_record(id);
        let bytes = self.store.get(&key).await.map_err(must_exist(&key))?;
        let record: EpochRecord = decode(&key, &bytes, Seal::Digest)?;
        self.belongs(&key, &record.repository)?;
        if record.epoch != *id {
            return Err(Trust::damaged(&key, format!("is the record of epoch {}", record.epoch)).into());
        }
        Ok((record, sha256_hex(&bytes)))
    }

    /// Reads and checks one head, with everything it stands on.
    ///
    /// # Errors
    /// `Trust::Missing` where there is no head; else what the store says or what is wrong.
    pub async fn head(&self, id: &BackupId) -> Result<(Head, Arc<Epoch>), RepositoryError> {
        let key = layout::head(id);
        let bytes = self.store.get(&key).await.map_err(must_exist(&key))?;
        let told: Head = match seal::peek::<Head>(&bytes) {
            Ok(head) => head,
            // A newer version's head may not read as ours; its version still does.
            Err(error) => {
                let newer = seal::peek::<FormatOnly>(&bytes).is_ok_and(|record| record.format > FORMAT_VERSION);
                return Err(if newer { newer_than_known(&key, &bytes) } else { Trust::damaged(&key, error).into() });
            }
        };
        let epoch = match self.epoch(&told.epoch).await {
            Ok(epoch) => epoch,
            // The name of the epoch is not to be trusted before the MAC is checked, and the MAC needs the epoch.
            Err(RepositoryError::Trust(Trust::Missing { object })) => {
                let mut anything = false;
                self.store.list(&format!("{}{}/", layout::EPOCHS, told.epoch), &mut |_| anything = true).await?;
                return Err(match anything {
                    true => Trust::Missing { object },
                    false => Trust::damaged(&key, format!("names epoch {}, of which nothing is there", told.epoch)),
                }
                .into());
            }
            Err(error) => return Err(error),
        };
        seal::check(&bytes, Seal::Mac(epoch.keys.mac_key())).map_err(|error| Trust::damaged(&key, error))?;
        if told.format > FORMAT_VERSION {
            return Err(newer_than_known(&key, &bytes));
        }
        self.belongs(&key, &told.repository)?;
        if told.backup != *id {
            return Err(Trust::damaged(&key, format!("is the head of backup {}", told.backup)).into());
        }
        let now = self.anchors(&epoch);
        for (object, was, is) in [
            (layout::INSTALL_MARK.to_owned(), &told.anchors.install_mark, &now.install_mark),
            (layout::epoch_record(epoch.id()), &told.anchors.epoch, &now.epoch),
            (layout::keys(epoch.id(), &epoch.protection), &told.anchors.keys, &now.keys),
        ] {
            if was != is {
                return Err(Trust::damaged(object, format!("is not the one that backup {id} was made under")).into());
            }
        }
        Ok((told, epoch))
    }

    /// Reads and checks the manifest of one source of a checked head.
    ///
    /// # Errors
    /// `NoSnapshot` where the head has none; else what the store says or what is wrong.
    pub async fn manifest(&self, head: &Head, epoch: &Epoch, source: &HeadSource) -> Result<Manifest, RepositoryError> {
        let Some(digest) = &source.manifest else {
            return Err(RepositoryError::NoSnapshot {
                id: head.backup.clone(),
                name: source.name.clone(),
                state: Some(source.state),
            });
        };
        let key = layout::manifest(&head.backup, &source.name, &epoch.protection);
        let bytes = self.store.get(&key).await.map_err(must_exist(&key))?;
        if bytes.len() as u64 != digest.bytes {
            let what = format!("is {} bytes long; its head says {}", bytes.len(), digest.bytes);
            return Err(Trust::damaged(&key, what).into());
        }
        if sha256_hex(&bytes) != digest.sha256 {
            return Err(Trust::damaged(&key, "does not match the SHA-256 in its head").into());
        }
        let manifest = Manifest::decode(&epoch.protection, &bytes).map_err(|what| Trust::damaged(&key, what))?;
        if manifest.format > FORMAT_VERSION {
            return Err(RepositoryError::Newer { object: key, found: manifest.format, known: FORMAT_VERSION });
        }
        self.belongs(&key, &manifest.repository)?;
        if manifest.backup != head.backup || manifest.source.name != source.name || manifest.epoch != head.epoch {
            let what = format!("is the manifest of `{}` in backup {}", manifest.source.name, manifest.backup);
            return Err(Trust::damaged(&key, what).into());
        }
        Ok(manifest)
    }

    fn belongs(&self, key: &str, repository: &RepositoryId) -> Result<(), Trust> {
        if *repository == self.mark.repository {
            return Ok(());
        }
        Err(Trust::damaged(key, format!("belongs to repository {repository}, this one is {}", self.mark.repository)))
    }
}

fn newer_than_known(key: &str, bytes: &[u8]) -> RepositoryError {
    let found = seal::peek::<FormatOnly>(bytes).map_or(0, |record| record.format);
    RepositoryError::Newer { object: key.to_owned(), found, known: FORMAT_VERSION }
}

/// Seals a record for the store.
pub(crate) fn encode<T: Serialize>(key: &str, record: &T, how: Seal<'_>) -> Result<Bytes, RepositoryError> {
    match seal::seal(record, how) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(RepositoryError::Encode { object: key.to_owned(), what: error.to_string() }),
    }
}

/// Checks a record's seal, then its version, then reads it. The order matters: a changed digit in `format` is damage, not
/// another version.
fn decode<T: serde::de::DeserializeOwned>(key: &str, bytes: &[u8], how: Seal<'_>) -> Result<T, RepositoryError> {
    let damaged = |error: SealError| Trust::damaged(key, error);
    seal::check(bytes, how).map_err(damaged)?;
    let record: FormatOnly = seal::peek(bytes).map_err(damaged)?;
    if record.format > FORMAT_VERSION {
        return Err(newer_than_known(key, bytes));
    }
    Ok(seal::open(bytes, how).map_err(damaged)?)
}
