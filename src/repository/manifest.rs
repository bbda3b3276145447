//! Manifests: the complete list of what one source contributed to a backup.
//!
//! A manifest knows artifacts and parts, not what they mean: whatever a source needs to restore itself stands in the `detail`
//! fields, which only that source reads.

use std::{collections::HashSet, io::Read};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{BackupId, EpochId, HeadSource, PartRef, Protection, RepositoryId, Sizes};
use crate::crypt::hex;

/// The longest manifest as JSON that is read, in bytes: about ten million parts.
const MAX_MANIFEST: u64 = 2 * 1024 * 1024 * 1024;
/// Hashes do not compress; a high level costs time and wins nothing.
const MANIFEST_ZSTD_LEVEL: i32 = 3;

/// A source by name and kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// The configured name.
    pub name: String,
    /// `postgres`, and others to come.
    pub kind: String,
}

/// The instant of a snapshot, or the instants, by the clock of the machine that made the backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cut {
    /// When; the last, where there are several.
    pub at: Timestamp,
    /// The first, where there are several: one a database, or a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Timestamp>,
    /// How far off, either way, each may be, in seconds: nobody tells when a server took it, only when it was asked and when the answer
    /// came.
    #[serde(default)]
    pub error_seconds: f64,
    /// What the source says of it (a snapshot id and LSN, a replication offset).
    pub anchor: Value,
}

impl Cut {
    /// An instant between the question and the answer: the middle, and half of the time between as its error.
    pub fn between(asked: Timestamp, answered: Timestamp, anchor: Value) -> Self {
        // A clock that was set back in between says nothing but that it was.
        let half = answered.duration_since(asked).unsigned_abs() / 2;
        let at = asked.min(answered).checked_add(half).unwrap_or(answered);
        Self { at, first: None, error_seconds: half.as_secs_f64(), anchor }
    }

    /// Several as one, from the first to the last, with the largest error; the anchors are listed. `None` of none.
    pub fn of_all(cuts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let cuts: Vec<Self> = cuts.into_iter().collect();
        let at = cuts.iter().map(|cut| cut.at).max()?;
        let first = cuts.iter().map(|cut| cut.first.unwrap_or(cut.at)).min().filter(|first| *first < at);
        let error_seconds = cuts.iter().map(|cut| cut.error_seconds).fold(0.0, f64::max);
        Some(Self { at, first, error_seconds, anchor: cuts.into_iter().map(|cut| cut.anchor).collect() })
    }
}

/// How an artifact's bytes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// SQL text, for `psql`.
    Sql,
    /// Text for people and for comparisons, one thing a line.
    Text,
    /// Rows as `COPY … TO STDOUT` in text format delivers them, one a line.
    CopyText,
    /// Rows in COPY's binary format. Each part is a whole file of it: header, tuples, trailer; of a row that goes on in the next part, the
    /// first has the header and the last the trailer.
    CopyBinary,
    /// A slice of a Redis RDB file; the parts in order are the file.
    Rdb,
    /// A slice of a JetStream archive, decompressed; the parts in order are the archive.
    #[serde(rename = "jetstream")]
    JetStream,
}

/// Order-independent proof of a table's content. Two tables with equal fingerprints under one seed hold the same rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Rows.
    pub rows: u64,
    /// Bytes of all rows without their line ends, headers and trailers.
    pub bytes: u64,
    /// Sum modulo 2^128 of XXH3-128 of each row, seeded with the epoch's fingerprint key.
    #[serde(with = "hex_u128")]
    pub sum: u128,
}

impl Fingerprint {
    /// Adds one row of `bytes` bytes with this hash.
    pub fn add(&mut self, bytes: u64, hash: u128) {
        self.rows += 1;
        self.bytes += bytes;
        self.sum = self.sum.wrapping_add(hash);
    }

    /// Of these rows and those.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let (rows, bytes) = (self.rows.saturating_add(other.rows), self.bytes.saturating_add(other.bytes));
        Self { rows, bytes, sum: self.sum.wrapping_add(other.sum) }
    }
}

mod hex_u128 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::hex;

    pub(super) fn serialize<S: Serializer>(sum: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{sum:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
        let text = String::deserialize(from)?;
        hex::decode(&text).map(u128::from_be_bytes).ok_or_else(|| D::Error::custom("not 32 hex digits"))
    }
}

/// One named byte sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name within the snapshot, such as `globals.sql`.
    pub path: String,
    /// How its bytes read.
    pub format: Format,
    /// Bytes of plaintext.
    pub raw: u64,
    /// For rows: their fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// For SQL and other text: XXH3-128 of its bytes as they were captured, under the epoch's seed, in hex. Parts prove that their bytes
    /// are those that were stored; this, that they are those that were captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What the source needs to know to restore it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
    /// Its parts in order.
    pub parts: Vec<PartRef>,
}

/// The manifest of one snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Repository format version.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The backup it belongs to.
    pub backup: BackupId,
    /// The epoch its parts are in.
    pub epoch: EpochId,
    /// Whose snapshot this is.
    pub source: SourceIdentity,
    /// Program and version that wrote it.
    pub tool: String,
    /// The instant of the snapshot.
    pub cut: Cut,
    /// What was left out, in words.
    pub uncovered: Vec<String>,
    /// What could not be captured, in words with the reason; with any the snapshot is partial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    /// What to know of the snapshot, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What the snapshot is and holds, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub about: Vec<String>,
    /// What tells the server that was captured from others: no proof is made there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub server: Vec<String>,
    /// What the source needs to know to restore itself.
    pub detail: Value,
    /// Everything there is.
    pub artifacts: Vec<Artifact>,
}

impl Manifest {
    /// Every part, in order; one that is used twice comes twice.
    pub fn parts(&self) -> impl Iterator<Item = &PartRef> {
        self.artifacts.iter().flat_map(|artifact| &artifact.parts)
    }

    /// What a head tells of this snapshot. What became of it, what of it is stored and new, and the digest of the manifest's object are
    /// not of the manifest: the state is `Failed`, the others are zero.
    pub fn in_head(&self) -> HeadSource {
        let total = |numbers: &mut dyn Iterator<Item = u64>| numbers.fold(0, u64::saturating_add);
        let parts: HashSet<&[u8; 32]> = self.parts().map(|part| &part.name.content).collect();
        let fingerprints = self.artifacts.iter().filter_map(|artifact| artifact.fingerprint);
        HeadSource {
            cut_at: Some(self.cut.at),
            cut_first: self.cut.first,
            cut_error_seconds: Some(self.cut.error_seconds),
            sizes: Sizes { raw: total(&mut self.artifacts.iter().map(|artifact| artifact.raw)), ..Sizes::default() },
            artifacts: self.artifacts.len() as u64,
            parts: parts.len() as u64,
            rows: total(&mut fingerprints.map(|fingerprint| fingerprint.rows)),
            uncovered: self.uncovered.len() as u64,
            failed: self.failed.len() as u64,
            ..HeadSource::failed(&self.source)
        }
    }

    /// How this is not the manifest that a head of `source` was written for, as a fragment that follows its name: a head tells what its
    /// manifest holds, and one of another backup tells something else, whatever names it bears.
    pub(crate) fn misfit(&self, source: &HeadSource) -> Option<String> {
        let is = self.in_head();
        if is.kind != source.kind {
            return Some(format!("is of kind `{}`; its head says `{}`", is.kind, source.kind));
        }
        let instants = [("cut at", is.cut_at, source.cut_at), ("first cut at", is.cut_first, source.cut_first)];
        let shown = |at: Option<Timestamp>| at.map_or_else(|| "none".to_owned(), |at| at.to_string());
        if let Some((what, is, told)) = instants.into_iter().find(|(_, is, told)| is != told) {
            return Some(format!("was {what} {}; its head says {}", shown(is), shown(told)));
        }
        let numbers = [
            ("artifacts", is.artifacts, source.artifacts),
            ("parts", is.parts, source.parts),
            ("bytes", is.sizes.raw, source.sizes.raw),
            ("rows", is.rows, source.rows),
            ("objects left out", is.uncovered, source.uncovered),
            ("objects that failed", is.failed, source.failed),
        ];
        let number = numbers.into_iter().find(|(_, is, told)| is != told);
        number.map(|(what, is, told)| format!("tells of {is} {what}; its head says {told}"))
    }

    /// JSON in one zstd frame with a checksum, protected as the epoch is.
    pub(crate) fn encode(&self, protection: &Protection) -> Result<Vec<u8>, String> {
        let json = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        let mut compressor = zstd::bulk::Compressor::new(MANIFEST_ZSTD_LEVEL).map_err(|error| error.to_string())?;
        compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).map_err(|error| error.to_string())?;
        let frame = compressor.compress(&json).map_err(|error| error.to_string())?;
        protection.wrap_record(frame).map_err(|error| error.to_string())
    }

    /// Reads what [`Manifest::encode`] wrote.
    pub(crate) fn decode(protection: &Protection, stored: &[u8]) -> Result<Self, String> {
        let frame = protection.unwrap(stored).map_err(|error| error.to_string())?;
        let decoder = zstd::stream::read::Decoder::new(frame).map_err(|error| error.to_string())?;
        let mut json = Vec::new();
        decoder.take(MAX_MANIFEST).read_to_end(&mut json).map_err(|error| format!("does not decompress: {error}"))?;
        serde_json::from_slice(&json).map_err(|error| format!("is not a manifest: {error}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }

    #[test]
    fn an_instant_is_between_question_and_answer() {
        let cut = Cut::between(at(1000), at(1500), json!("x"));
        assert_eq!((cut.at, cut.first, cut.error_seconds, cut.anchor), (at(1250), None, 0.25, json!("x")));
        // A clock that was set back meanwhile.
        let cut = Cut::between(at(1500), at(1000), Value::Null);
        assert_eq!((cut.at, cut.error_seconds), (at(1250), 0.25));
    }

    #[test]
    fn several_instants_are_from_the_first_to_the_last() {
        assert!(Cut::of_all([]).is_none());
        let one = Cut::of_all([Cut::between(at(0), at(20), json!(1))]).unwrap();
        assert_eq!((one.at, one.first, one.error_seconds, one.anchor), (at(10), None, 0.01, json!([1])));
        let several = [(40, 60), (0, 20), (200, 300)].map(|(from, to)| Cut::between(at(from), at(to), json!(from)));
        let several = Cut::of_all(several).unwrap();
        assert_eq!((several.at, several.first, several.error_seconds), (at(250), Some(at(10)), 0.05));
        assert_eq!(several.anchor, json!([40, 0, 200]));
        let nested = Cut::of_all([several, Cut::between(at(30), at(30), Value::Null)]).unwrap();
        assert_eq!((nested.at, nested.first), (at(250), Some(at(10))));
    }

    #[test]
    fn a_manifest_that_is_not_of_its_head_is_told() {
        let source = SourceIdentity { name: "cache".into(), kind: "redis".into() };
        let fingerprint = |rows| Some(Fingerprint { rows, bytes: 0, sum: 0 });
        let artifact = |path: &str, raw, rows| {
            let (path, detail, parts) = (path.to_owned(), Value::Null, Vec::new());
            Artifact { path, format: Format::Text, raw, fingerprint: fingerprint(rows), digest: None, detail, parts }
        };
        let cut = Cut { at: at(5), first: Some(at(2)), error_seconds: 0.1, anchor: Value::Null };
        let manifest = Manifest {
            format: 1,
            repository: RepositoryId::random(),
            backup: BackupId::new(at(0)),
            epoch: EpochId::new(at(0)),
            source: source.clone(),
            tool: "test".into(),
            cut,
            uncovered: vec!["x".into()],
            failed: Vec::new(),
            notes: Vec::new(),
            about: Vec::new(),
            server: Vec::new(),
            detail: Value::Null,
            artifacts: vec![artifact("a", 7, 3), artifact("b", 5, 4)],
        };
        let mut head = HeadSource::failed(&source);
        (head.cut_at, head.cut_first, head.uncovered) = (Some(at(5)), Some(at(2)), 1);
        (head.artifacts, head.rows, head.sizes.raw) = (2, 7, 12);
        assert_eq!(manifest.misfit(&head), None);
        type Change = fn(&mut HeadSource);
        let changes: &[(Change, &str)] = &[
            (
                |head| head.cut_at = Some(at(6)),
                "was cut at 2027-01-15T08:00:00.005Z; its head says 2027-01-15T08:00:00.006Z",
            ),
            (|head| head.cut_first = None, "was first cut at 2027-01-15T08:00:00.002Z; its head says none"),
            (|head| head.artifacts = 3, "tells of 2 artifacts; its head says 3"),
            (|head| head.parts = 1, "tells of 0 parts; its head says 1"),
            (|head| head.sizes.raw = 13, "tells of 12 bytes; its head says 13"),
            (|head| head.rows = 8, "tells of 7 rows; its head says 8"),
            (|head| head.uncovered = 0, "tells of 1 objects left out; its head says 0"),
            (|head| head.failed = 1, "tells of 0 objects that failed; its head says 1"),
            (|head| head.kind = "nats".into(), "is of kind `redis`; its head says `nats`"),
        ];
        for (change, words) in changes {
            let mut head = head.clone();
            change(&mut head);
            assert_eq!(manifest.misfit(&head).as_deref(), Some(*words));
        }
    }

    /// Names that stand in repositories.
    #[test]
    fn formats_keep_their_names() {
        let names = [Format::Sql, Format::Text, Format::CopyText, Format::CopyBinary, Format::Rdb, Format::JetStream]
            .map(|format| json!(format));
        assert_eq!(names, ["sql", "text", "copy-text", "copy-binary", "rdb", "jetstream"]);
    }
}
