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
    /// Some of what was asked for could not be captured; its manifest names it. The rest is there and can be restored.
    Partial,
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
            SnapshotState::Partial => "partial",
            SnapshotState::Failed => "failed",
        })
    }
}

impl SnapshotState {
    /// Is it all that was asked for? Only then `latest` means it.
    pub fn is_usable(self) -> bool {
        matches!(self, SnapshotState::Complete | SnapshotState::Empty)
    }

    /// Is there something to restore, if perhaps not all?
    pub fn is_there(self) -> bool {
        self.is_usable() || self == SnapshotState::Partial
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadSource {
    /// The configured name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// What became of it.
    pub state: SnapshotState,
    /// When its snapshot was cut, by the clock of the machine that made the backup; the last instant, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_at: Option<Timestamp>,
    /// Its first instant, where it has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_first: Option<Timestamp>,
    /// How far off, either way, these instants may be, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_error_seconds: Option<f64>,
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
    /// What was asked for and could not be captured; with any the snapshot is partial.
    #[serde(default)]
    pub failed: u64,
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
            cut_first: None,
            cut_error_seconds: None,
            sizes: Sizes::default(),
            artifacts: 0,
            parts: 0,
            new_parts: 0,
            rows: 0,
            uncovered: 0,
            failed: 0,
            manifest: None,
        }
    }
}

/// The time from the first instant of a backup's snapshots to the last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skew {
    /// In seconds; 0 where there is a single instant.
    pub seconds: f64,
    /// How far off, either way, it may be, in seconds.
    pub error_seconds: f64,
}

impl Skew {
    /// Are there several instants? A single one has no skew to speak of.
    pub fn is_of_several(&self) -> bool {
        self.seconds > 0.0 || self.error_seconds > 0.0
    }

    /// Over all sources that have snapshots.
    pub fn of(sources: &[HeadSource]) -> Option<Self> {
        let mut instants: Vec<(Timestamp, f64)> = Vec::new();
        for source in sources {
            let error = source.cut_error_seconds.unwrap_or(0.0);
            instants.extend(source.cut_first.into_iter().chain(source.cut_at).map(|at| (at, error)));
        }
        let origin = instants.iter().map(|(at, _)| *at).min()?;
        if instants.len() == 1 {
            return Some(Self { seconds: 0.0, error_seconds: 0.0 });
        }
        let instants: Vec<(f64, f64)> =
            instants.iter().map(|(at, error)| (at.duration_since(origin).as_secs_f64(), *error)).collect();
        let most = |of: fn(&(f64, f64)) -> f64| instants.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        let least = |of: fn(&(f64, f64)) -> f64| instants.iter().map(of).fold(f64::INFINITY, f64::min);
        // Each at its latest and earliest: one with a large error may be before the first, or after the last.
        let longest = most(|(at, error)| at + error) - least(|(at, error)| at - error);
        let shortest = most(|(at, error)| at - error) - least(|(at, error)| at + error);
        let seconds = most(|(at, _)| *at);
        Some(Self { seconds, error_seconds: (longest - seconds).max(seconds - shortest) })
    }
}

/// A backup's head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// How far apart the snapshots' instants are; absent where there is no snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew: Option<Skew>,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_from_the_first_instant_to_the_last() {
        let source = |first: Option<i64>, at: Option<i64>, error: f64| {
            let mut source = HeadSource::failed(&SourceIdentity { name: "x".into(), kind: "y".into() });
            let time = |ms| Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap();
            source.cut_at = at.map(time);
            source.cut_first = first.map(time);
            source.cut_error_seconds = at.map(|_| error);
            source
        };
        let failed = || source(None, None, 0.0);
        for (sources, want) in [
            (vec![], None),
            (vec![failed()], None),
            (vec![source(None, Some(700), 0.1), failed()], Some((0.0, 0.0))),
            (vec![source(None, Some(2500), 0.1), source(None, Some(1000), 0.2)], Some((1.5, 0.3))),
            // Several instants of one source.
            (vec![source(Some(0), Some(4000), 0.5)], Some((4.0, 1.0))),
            (vec![source(Some(500), Some(4000), 0.0), source(None, Some(4250), 0.25), failed()], Some((3.75, 0.25))),
            // In the middle, and so uncertain that it may be first or last.
            (
                vec![source(None, Some(0), 0.0), source(None, Some(500), 2.0), source(None, Some(1000), 0.0)],
                Some((1.0, 3.0)),
            ),
        ] {
            let found = Skew::of(&sources).map(|skew| (skew.seconds, skew.error_seconds));
            let near = |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).abs() < 1e-9 && (b - d).abs() < 1e-9;
            assert!(found.is_none() == want.is_none(), "{found:?} {want:?}");
            assert!(found.zip(want).is_none_or(|(found, want)| near(found, want)), "{found:?} {want:?}");
        }
    }
}
