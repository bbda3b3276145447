//! From the repository to a source.

use std::sync::Arc;

use bytes::Bytes;
use futures::{
    Stream,
    stream::{self, StreamExt},
};
use serde_json::Value;

use super::{Budget, Lease, PipelineError, Progress, codec};
use crate::{
    repository::{Artifact, Cut, Epoch, Locked, Manifest, PartRef, Trust, part_key},
    store::{Store, StoreErrorKind},
};

/// Parts of one artifact that are fetched ahead.
const AHEAD: usize = 2;

/// Plaintext of one part; its share of the memory budget is given back when this is dropped.
pub struct Plain {
    bytes: Bytes,
    _lease: Lease,
}

impl std::ops::Deref for Plain {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Fetches and checks parts of one epoch. Cheap to clone.
#[derive(Clone)]
pub struct PartReader {
    store: Store,
    epoch: Arc<Epoch>,
    budget: Budget,
    progress: Arc<Progress>,
}

impl PartReader {
    /// A reader of the parts of `epoch`.
    ///
    /// # Errors
    /// `Locked`, where this machine holds no identity that opens them.
    pub fn new(store: Store, epoch: Arc<Epoch>, budget: Budget, progress: Arc<Progress>) -> Result<Self, Locked> {
        epoch.must_open_parts()?;
        Ok(Self { store, epoch, budget, progress })
    }

    /// One part's plaintext, checked: size, SHA-256, zstd's checksum, length, content hash.
    ///
    /// # Errors
    /// `Trust` where the object is missing or not what it must be; else what the store says.
    pub async fn part(&self, part: &PartRef) -> Result<Plain, PipelineError> {
        let key = part_key(&self.epoch, &part.name);
        let most = crate::repository::MAX_PART;
        if part.raw > most || part.stored > crate::store::MAX_OBJECT {
            return Err(Trust::damaged(key, format!("is said to hold more than {most} bytes")).into());
        }
        let mut lease = self.budget.lease(part.raw + part.stored).await?;
        let stored = self.store.get_at_most(&key, part.stored).await.map_err(|error| match error.kind {
            StoreErrorKind::NotFound => Trust::Missing { object: key.clone() }.into(),
            StoreErrorKind::TooLarge => {
                Trust::damaged(&key, format!("is longer than the {} bytes that its manifest says", part.stored)).into()
            }
            _ => PipelineError::from(error),
        })?;
        Progress::add(&self.progress.moved, stored.len() as u64);
        let (epoch, part) = (self.epoch.clone(), part.clone());
        let raw = part.raw;
        let plain =
            tokio::task::spawn_blocking(move || codec::decode(&epoch.keys, &epoch.protection, &part, &key, &stored))
                .await
                .map_err(|_| PipelineError::Stopped)??;
        lease.shrink(raw);
        Ok(Plain { bytes: plain.into(), _lease: lease })
    }
}

/// One snapshot, ready to be read.
#[derive(Clone)]
pub struct SnapshotReader {
    manifest: Arc<Manifest>,
    parts: PartReader,
}

impl SnapshotReader {
    /// Reads the snapshot that `manifest` lists.
    pub fn new(manifest: Manifest, parts: PartReader) -> Self {
        Self { manifest: Arc::new(manifest), parts }
    }

    /// What the source wrote down about the snapshot.
    pub fn detail(&self) -> &Value {
        &self.manifest.detail
    }

    /// What tells the server that was captured from others.
    pub fn server(&self) -> &[String] {
        &self.manifest.server
    }

    /// The instant of the snapshot.
    pub fn cut(&self) -> &Cut {
        &self.manifest.cut
    }

    /// Everything there is, sorted by path.
    pub fn artifacts(&self) -> &[Artifact] {
        &self.manifest.artifacts
    }

    /// The artifact of that path.
    ///
    /// # Errors
    /// `Trust::Damaged`: a manifest that lacks what its source always writes.
    pub fn artifact(&self, path: &str) -> Result<&Artifact, PipelineError> {
        self.manifest.artifacts.iter().find(|artifact| artifact.path == path).ok_or_else(|| {
            Trust::damaged(
                format!("the manifest of `{}` in backup {}", self.manifest.source.name, self.manifest.backup),
                format!("has no {path}"),
            )
            .into()
        })
    }

    /// The seed of row hashes of the snapshot's epoch.
    pub fn fingerprint_seed(&self) -> u64 {
        self.parts.epoch.keys.fingerprint_seed()
    }

    /// The key for `pg_dump --restrict-key` that the snapshot's definitions were written with.
    pub fn restrict_key(&self) -> String {
        self.parts.epoch.keys.restrict_key()
    }

    /// The random tail of the backup's id, for names that a restore makes up.
    pub fn tail(&self) -> String {
        self.manifest.backup.tail().to_string()
    }

    /// Counters for whoever shows them.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.parts.progress
    }

    /// The artifact's parts in order, a few fetched ahead.
    pub fn open(&self, artifact: &Artifact) -> impl Stream<Item = Result<Plain, PipelineError>> + Send + use<> {
        self.open_parts(artifact.parts.clone())
    }

    /// Some of an artifact's parts, a few fetched ahead.
    pub fn open_parts(&self, parts: Vec<PartRef>) -> impl Stream<Item = Result<Plain, PipelineError>> + Send + use<> {
        let reader = self.parts.clone();
        stream::iter(parts)
            .map(move |part| {
                let reader = reader.clone();
                async move { reader.part(&part).await }
            })
            .buffered(AHEAD)
    }

    /// A whole artifact in memory: for DDL and the like, at most `most` bytes.
    ///
    /// # Errors
    /// As [`PartReader::part`]; `Trust::Damaged` where it is longer or not UTF-8.
    pub async fn text(&self, artifact: &Artifact, most: u64) -> Result<String, PipelineError> {
        let damaged = |what: &str| PipelineError::from(Trust::damaged(&artifact.path, what));
        if artifact.raw > most {
            return Err(damaged("is too long to be read at once"));
        }
        let mut bytes = Vec::new();
        let mut parts = std::pin::pin!(self.open(artifact));
        while let Some(part) = parts.next().await {
            bytes.extend_from_slice(&part?);
        }
        String::from_utf8(bytes).map_err(|_| damaged("is not UTF-8"))
    }
}
