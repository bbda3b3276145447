//! Heads: the small clear-text record whose writing is the commit (rule R1).
//!
//! A head holds ids, configured source names and kinds, times, sizes, counts and digests, and nothing else: it is readable by
//! anyone who can read the bucket.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{BackupId, EpochId, RepositoryId, SourceIdentity};

/// What became of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupState {
    /// Every asked source has a complete snapshot.
    Complete,
    /// Some have.
    Partial,
}

/// What became of one source's snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// All there.
    Complete,
    /// The source held nothing, which `allow_empty` lets pass.
    Empty,
    /// Not captured; the manifest is absent.
    Failed,
}

impl fmt::Display for BackupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackupState::Complete => "complete",
            BackupState::Partial => "partial",
        })
    }
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SnapshotState::Complete => "complete",
            SnapshotState::Empty => "empty",
            SnapshotState::Failed => "failed",
        })
    }
}

impl SnapshotState {
    /// Is there something to restore?
    pub fn is_usable(self) -> bool {
        matches!(self, SnapshotState::Complete | SnapshotState::Empty)
    }
}

/// SHA-256 digests, in hex, of the clear objects that a backup stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchors {
    /// Of `altlas.json`.
    pub install_mark: String,
    /// Of `epoch.json`.
    pub epoch: String,
    /// Of the keys' object.
    pub keys: String,
}

/// A manifest's size and digest: with the head's MAC over it, one MAC covers the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDigest {
    /// Bytes of the object.
    pub bytes: u64,
    /// SHA-256 of the object, in hex.
    pub sha256: String,
}

/// How much data a snapshot is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Plaintext.
    pub raw: u64,
    /// Objects that the snapshot needs, each counted once.
    pub stored: u64,
    /// Objects that this backup wrote for it.
    pub uploaded: u64,
}

/// One source in a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSource {
    /// The configured name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// What became of it.
    pub state: SnapshotState,
    /// When its snapshot was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_at: Option<Timestamp>,
    /// Bytes.
    pub sizes: Sizes,
    /// Named byte sequences.
    pub artifacts: u64,
    /// Parts, each counted once.
    pub parts: u64,
    /// Parts that this backup wrote.
    pub new_parts: u64,
    /// Rows or their like.
    pub rows: u64,
    /// Objects that were left out.
    pub uncovered: u64,
    /// Its manifest, unless it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestDigest>,
}

impl HeadSource {
    /// A source of which nothing was captured.
    pub fn failed(source: &SourceIdentity) -> Self {
        Self {
            name: source.name.clone(),
            kind: source.kind.clone(),
            state: SnapshotState::Failed,
            cut_at: None,
            sizes: Sizes::default(),
            artifacts: 0,
            parts: 0,
            new_parts: 0,
            rows: 0,
            uncovered: 0,
            manifest: None,
        }
    }
}

/// A backup's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Repository format version.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The backup's id, which is also its folder's name.
    pub backup: BackupId,
    /// The epoch of its parts.
    pub epoch: EpochId,
    /// Program and version that wrote it.
    pub tool: String,
    /// When it began, by the store's clock. Order comes from here (rule R6).
    pub started: Timestamp,
    /// When its head was written, by the store's clock.
    pub finished: Timestamp,
    /// What became of it.
    pub state: BackupState,
    /// What it stands on.
    pub anchors: Anchors,
    /// Every asked source.
    pub sources: Vec<HeadSource>,
}

impl Head {
    /// The named source, if it was asked for.
    pub fn source(&self, name: &str) -> Option<&HeadSource> {
        self.sources.iter().find(|source| source.name == name)
    }
}
