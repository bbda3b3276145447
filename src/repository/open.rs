//! A repository as a whole: created, opened, its epochs, heads and manifests read and checked.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Anchors, BackupId, EarlierEpoch, Epoch, EpochId, EpochRecord, Head, HeadSource, Keyring, Keys, Locked, Manifest,
    RepositoryError, RepositoryId, Trust,
    belief::{self, Belief, ReadRecord},
    error::must_exist,
    keys::KeysRecord,
    layout::{self, FORMAT_VERSION},
    seal::{self, Seal, SealError, Sealer},
};
use crate::{
    crypt::hex,
    store::{Store, StoreErrorKind},
};

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

/// Records read at once.
const PARALLEL_READS: usize = 8;

/// What is wrong with an epoch's record.
#[derive(Clone, Debug)]
enum RecordFault {
    Trust(Trust),
    Locked(Locked),
}

/// Every epoch's record, and what to think of each.
#[derive(Debug)]
pub struct EpochRecords {
    good: BTreeMap<EpochId, ReadRecord>,
    beliefs: BTreeMap<EpochId, Belief>,
    faults: BTreeMap<EpochId, RecordFault>,
}

impl EpochRecords {
    fn knows(&self, id: &EpochId) -> bool {
        self.good.contains_key(id) || self.faults.contains_key(id)
    }

    fn believed(&self) -> impl Iterator<Item = &ReadRecord> {
        self.good
            .iter()
            .filter(|(id, _)| matches!(self.beliefs.get(id), Some(Belief::Believed { .. })))
            .map(|(_, read)| read)
    }

    /// The newest that is believed and had begun by `now`.
    pub fn newest(&self, now: Timestamp) -> Option<&EpochRecord> {
        self.believed().map(|read| &read.record).filter(|record| record.began <= now).max_by_key(|record| record.began)
    }

    /// Those that are encrypted, believed or not.
    pub fn encrypted(&self) -> impl Iterator<Item = &EpochRecord> {
        self.good.values().map(|read| &read.record).filter(|record| !record.recipients.is_empty())
    }

    /// What is wrong with the others, by epoch.
    pub fn faults(&self) -> impl Iterator<Item = (&EpochId, String)> {
        let of_records = self.faults.iter().map(|(id, fault)| match fault {
            RecordFault::Trust(trust) => (id, trust.to_string()),
            RecordFault::Locked(locked) => (id, locked.to_string()),
        });
        of_records.chain(self.beliefs.iter().filter_map(|(id, belief)| match belief {
            Belief::Refused(locked) => Some((id, locked.to_string())),
            _ => None,
        }))
    }

    /// Where nothing that is configured says who makes backups: whose there are.
    pub fn unknown(&self) -> Option<Locked> {
        self.beliefs.values().find_map(|belief| match belief {
            Belief::Unknown { begun_by } => Some(Locked::Unknown { begun_by: begun_by.clone() }),
            Belief::Refused(several @ Locked::SeveralBeginners { .. }) => Some(several.clone()),
            _ => None,
        })
    }

    fn get(&self, id: &EpochId) -> Result<&ReadRecord, RepositoryError> {
        match self.faults.get(id) {
            Some(RecordFault::Trust(trust)) => return Err(trust.clone().into()),
            Some(RecordFault::Locked(locked)) => return Err(locked.clone().into()),
            None => {}
        }
        if let Some(Belief::Refused(locked)) = self.beliefs.get(id) {
            return Err(locked.clone().into());
        }
        self.good.get(id).ok_or_else(|| Trust::Missing { object: layout::epoch_record(id) }.into())
    }

    /// When that epoch ended, if it had before a backup in it was started.
    fn ended_before(&self, id: &EpochId, started: Timestamp) -> Option<Timestamp> {
        match self.beliefs.get(id) {
            Some(Belief::Believed { until }) if !belief::in_time(started, *until) => *until,
            _ => None,
        }
    }
}

/// An open repository.
pub struct Repository {
    store: Store,
    keyring: Keyring,
    mark: InstallMark,
    mark_digest: String,
    /// Epochs that were opened.
    epochs: Mutex<HashMap<EpochId, Arc<Epoch>>>,
    /// Every epoch's record, once they were read.
    records: Mutex<Option<Arc<EpochRecords>>>,
}

/// Program and version, as written into records.
pub fn tool() -> String {
    format!("altlas-backup {}", env!("CARGO_PKG_VERSION"))
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
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
        let bytes = encode(layout::INSTALL_MARK, &mark, Sealer::Digest)?;
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
        let mark: InstallMark = match decode(layout::INSTALL_MARK, &bytes, Seal::Digest) {
            // Rule R10: not one object of it is touched.
            Err(RepositoryError::Locked(Locked::Newer { object, found, known })) => {
                return Err(RepositoryError::Newer { object, found, known });
            }
            other => other?,
        };
        Ok(Self {
            store,
            keyring,
            mark,
            mark_digest: sha256_hex(&bytes),
            epochs: Mutex::default(),
            records: Mutex::default(),
        })
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
    pub async fn begin_epoch(&self, cut: String) -> Result<Arc<Epoch>, RepositoryError> {
        let records = self.epoch_records().await?;
        let vouch = |read: &ReadRecord| EarlierEpoch { epoch: read.record.epoch.clone(), sha256: read.digest.clone() };
        let earlier = if self.keyring.encrypts() { records.believed().map(vouch).collect() } else { Vec::new() };
        // Now and not when the run started: backups in an earlier epoch end with this time.
        let began = self.store.now().await?;
        let id = EpochId::new(began);
        let mut record = EpochRecord {
            format: FORMAT_VERSION,
            repository: self.mark.repository.clone(),
            epoch: id.clone(),
            began,
            recipients: self.keyring.recipients().to_vec(),
            catalog_recipient: self.keyring.catalog_recipient().filter(|_| self.keyring.encrypts()).cloned(),
            cut,
            keys: String::new(),
            begun_by: None,
            earlier,
        };
        let protection = self.keyring.protection(&record);
        let keys_key = layout::keys(&id, &protection);
        let keys = Keys::random().to_record(FORMAT_VERSION, &self.mark.repository, &id);
        let keys_bytes = protection
            .wrap_record(encode(&keys_key, &keys, Sealer::Digest)?.into())
            .map_err(|error| RepositoryError::Encode { object: keys_key.clone(), what: error.to_string() })?;
        record.keys = sha256_hex(&keys_bytes);
        let record_key = layout::epoch_record(&id);
        let record_bytes = match self.keyring.encrypts() {
            true => {
                let beginner = self.keyring.beginner()?;
                record.begun_by = Some(beginner.recipient().clone());
                encode(&record_key, &record, Sealer::Identity(beginner))?
            }
            false => encode(&record_key, &record, Sealer::Digest)?,
        };
        self.store.put_new(&keys_key, keys_bytes.into()).await?;
        self.store.put_new(&record_key, record_bytes).await?;
        self.forget_records();
        // Read back, so that what later readers will see is what this run works with.
        self.epoch(&id).await
    }

    fn forget_records(&self) {
        *self.records.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Every epoch's record, and what to think of it; read once.
    ///
    /// # Errors
    /// What the store says. A record that is missing, damaged or newer is part of the answer.
    pub async fn epoch_records(&self) -> Result<Arc<EpochRecords>, RepositoryError> {
        if let Some(records) = &*self.records.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(records.clone());
        }
        let ids: Vec<EpochId> =
            self.store.list_dirs(layout::EPOCHS).await?.iter().filter_map(|name| name.parse().ok()).collect();
        let read: Vec<(EpochId, Result<ReadRecord, RecordFault>)> = stream::iter(ids)
            .map(async |id| match self.read_epoch_record(&id).await {
                Ok(read) => Ok((id, Ok(read))),
                Err(RepositoryError::Trust(trust)) => Ok((id, Err(RecordFault::Trust(trust)))),
                Err(RepositoryError::Locked(locked)) => Ok((id, Err(RecordFault::Locked(locked)))),
                Err(error) => Err(error),
            })
            .buffer_unordered(PARALLEL_READS)
            .try_collect()
            .await?;
        let (mut good, mut faults) = (BTreeMap::new(), BTreeMap::new());
        for (id, read) in read {
            match read {
                Ok(read) => drop(good.insert(id, read)),
                Err(fault) => drop(faults.insert(id, fault)),
            }
        }
        let beliefs = belief::believe(&good, &self.keyring);
        let records = Arc::new(EpochRecords { good, beliefs, faults });
        *self.records.lock().unwrap_or_else(PoisonError::into_inner) = Some(records.clone());
        Ok(records)
    }

    /// An encrypted epoch, if there is one: also one whose record is gone, but for its keys.
    ///
    /// # Errors
    /// What the store says.
    pub async fn encrypted_epoch(&self) -> Result<Option<EpochId>, RepositoryError> {
        let records = self.epoch_records().await?;
        if let Some(record) = records.encrypted().next() {
            return Ok(Some(record.epoch.clone()));
        }
        for id in records.faults.keys() {
            let mut found = false;
            self.store
                .list(&layout::epoch(id), &mut |info| found |= info.key.ends_with(layout::ENCRYPTED_SUFFIX))
                .await?;
            if found {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    }

    /// One record, whose seal holds: a digest, or the signature of whoever it says began the epoch.
    async fn read_epoch_record(&self, id: &EpochId) -> Result<ReadRecord, RepositoryError> {
        let key = layout::epoch_record(id);
        let bytes = self.store.get(&key).await.map_err(must_exist(&key))?;
        let told: EpochRecord = match seal::peek(&bytes) {
            Ok(told) => told,
            Err(error) => return Err(newer_claim(&key, &bytes).unwrap_or_else(|| Trust::damaged(&key, error).into())),
        };
        let how = match (&told.begun_by, told.recipients.is_empty()) {
            (None, true) => Seal::Digest,
            (Some(begun_by), false) => Seal::Signature(begun_by),
            _ => return Err(Trust::damaged(&key, "does not say who began the epoch, or for whom").into()),
        };
        let record: EpochRecord = decode(&key, &bytes, how)?;
        self.belongs(&key, &record.repository)?;
        if record.epoch != *id {
            return Err(Trust::damaged(&key, format!("is the record of epoch {}", record.epoch)).into());
        }
        Ok(ReadRecord { record, digest: sha256_hex(&bytes) })
    }

    /// Opens one epoch that is believed; kept for the life of this value.
    ///
    /// # Errors
    /// What the store says, what is wrong with `epoch.json` or the keys, or why they cannot be opened or believed here.
    pub async fn epoch(&self, id: &EpochId) -> Result<Arc<Epoch>, RepositoryError> {
        if let Some(epoch) = self.epochs.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(epoch.clone());
        }
        let mut records = self.epoch_records().await?;
        if !records.knows(id) {
            // Begun since they were read.
            self.forget_records();
            records = self.epoch_records().await?;
        }
        let read = records.get(id)?;
        let record = read.record.clone();
        let protection = self.keyring.protection(&record);
        let key = layout::keys(id, &protection);
        if !record.recipients.is_empty() && self.keyring.opener(&record).is_none() {
            return Err(Locked::NoIdentity { object: key, readers: record.readers().cloned().collect() }.into());
        }
        let stored = self.store.get(&key).await.map_err(must_exist(&key))?;
        let keys_digest = sha256_hex(&stored);
        if keys_digest != record.keys {
            return Err(Trust::damaged(&key, "does not match the SHA-256 in the epoch's record").into());
        }
        let mut bytes = Vec::new();
        let mut clear = protection.unwrap(&stored).map_err(|error| Trust::damaged(&key, error))?;
        clear.read_to_end(&mut bytes).map_err(|error| Trust::damaged(&key, format!("does not decrypt: {error}")))?;
        drop(clear);
        let keys_record: KeysRecord = decode(&key, &bytes, Seal::Digest)?;
        self.belongs(&key, &keys_record.repository)?;
        if keys_record.epoch != *id {
            return Err(Trust::damaged(&key, format!("holds the keys of epoch {}", keys_record.epoch)).into());
        }
        let keys = Keys::from_record(&keys_record).ok_or_else(|| Trust::damaged(&key, "holds no usable keys"))?;
        let epoch = Arc::new(Epoch { record, keys, protection, record_digest: read.digest.clone(), keys_digest });
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), epoch.clone());
        Ok(epoch)
    }

    /// Reads and checks one head, with everything it stands on.
    ///
    /// # Errors
    /// `Trust::Missing` where there is no head; else what the store says or what is wrong.
    pub async fn head(&self, id: &BackupId) -> Result<(Head, Arc<Epoch>), RepositoryError> {
        let key = layout::head(id);
        let bytes = self.store.get(&key).await.map_err(must_exist(&key))?;
        self.check_head(key, id, &bytes).await
    }

    /// Checks the bytes of the head of backup `id`, wherever they lie: `key` is what errors name.
    pub(super) async fn check_head(
        &self,
        key: String,
        id: &BackupId,
        bytes: &[u8],
    ) -> Result<(Head, Arc<Epoch>), RepositoryError> {
        let told: Head = match seal::peek::<Head>(bytes) {
            Ok(head) => head,
            // A newer version's head may not read as ours; its version still does.
            Err(error) => return Err(newer_claim(&key, bytes).unwrap_or_else(|| Trust::damaged(&key, error).into())),
        };
        let epoch = match self.epoch(&told.epoch).await {
            Ok(epoch) => epoch,
            // The name of the epoch is not to be trusted before the MAC is checked, and the MAC needs the epoch.
            Err(RepositoryError::Trust(Trust::Missing { object })) => {
                let mut anything = false;
                self.store.list(&layout::epoch(&told.epoch), &mut |_| anything = true).await?;
                return Err(match anything {
                    true => Trust::Missing { object },
                    false => Trust::damaged(&key, format!("names epoch {}, of which nothing is there", told.epoch)),
                }
                .into());
            }
            Err(error) => return Err(error),
        };
        seal::check(bytes, Seal::Mac(epoch.keys.mac_key())).map_err(|error| Trust::damaged(&key, error))?;
        if let Some(newer) = newer_claim(&key, bytes) {
            return Err(newer);
        }
        self.belongs(&key, &told.repository)?;
        if let Some(ended) = self.epoch_records().await?.ended_before(&told.epoch, told.started) {
            return Err(Locked::AfterEnd { object: key, started: told.started, ended }.into());
        }
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
        let bytes = match self.store.get_at_most(&key, digest.bytes).await {
            Err(error) if error.kind == StoreErrorKind::TooLarge => {
                let what = format!("is longer than the {} bytes that its head says", digest.bytes);
                return Err(Trust::damaged(&key, what).into());
            }
            other => other.map_err(must_exist(&key))?,
        };
        if bytes.len() as u64 != digest.bytes {
            let what = format!("is {} bytes long; its head says {}", bytes.len(), digest.bytes);
            return Err(Trust::damaged(&key, what).into());
        }
        if sha256_hex(&bytes) != digest.sha256 {
            return Err(Trust::damaged(&key, "does not match the SHA-256 in its head").into());
        }
        let protection = epoch.protection.clone();
        let manifest = tokio::task::spawn_blocking(move || Manifest::decode(&protection, &bytes))
            .await
            .unwrap_or_else(|_| Err("was not read to its end".to_owned()))
            .map_err(|what| Trust::damaged(&key, what))?;
        if manifest.format > FORMAT_VERSION {
            return Err(RepositoryError::Newer { object: key, found: manifest.format, known: FORMAT_VERSION });
        }
        self.belongs(&key, &manifest.repository)?;
        if manifest.backup != head.backup || manifest.source.name != source.name || manifest.epoch != head.epoch {
            let what = format!("is the manifest of `{}` in backup {}", manifest.source.name, manifest.backup);
            return Err(Trust::damaged(&key, what).into());
        }
        match manifest.misfit(source) {
            Some(what) => Err(Trust::damaged(&key, what).into()),
            None => Ok(manifest),
        }
    }

    pub(super) fn belongs(&self, key: &str, repository: &RepositoryId) -> Result<(), Trust> {
        if *repository == self.mark.repository {
            return Ok(());
        }
        Err(Trust::damaged(key, format!("belongs to repository {repository}, this one is {}", self.mark.repository)))
    }
}

/// The error for a record that says it is of a newer version. Nothing proves that it is one: it stops who wants that record, and
/// nobody else.
pub(super) fn newer_claim(key: &str, bytes: &[u8]) -> Option<RepositoryError> {
    let found = seal::peek::<FormatOnly>(bytes).ok()?.format;
    let newer = || Locked::Newer { object: key.to_owned(), found, known: FORMAT_VERSION }.into();
    (found > FORMAT_VERSION).then(newer)
}

/// Seals a record for the store.
pub(crate) fn encode<T: Serialize>(key: &str, record: &T, by: Sealer<'_>) -> Result<Bytes, RepositoryError> {
    match seal::seal(record, by) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(RepositoryError::Encode { object: key.to_owned(), what: error.to_string() }),
    }
}

/// Checks a record's seal, then its version, then reads it. The order matters: a changed digit in `format` is damage, not
/// another version.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    key: &str,
    bytes: &[u8],
    how: Seal<'_>,
) -> Result<T, RepositoryError> {
    let damaged = |error: SealError| Trust::damaged(key, error);
    seal::check(bytes, how).map_err(damaged)?;
    if let Some(newer) = newer_claim(key, bytes) {
        return Err(newer);
    }
    Ok(seal::open(bytes, how).map_err(damaged)?)
}
