//! Evidence: the stored report of one verification, and the verdicts that follow from it (DESIGN.md §4, *Verdicts*).
//!
//! `verifications/<backup>/<time>.json` is clear text with a MAC under the key of the backup's epoch: ids, source names, counts, durations,
//! verdicts and codes of reasons, nothing that names a table, key or stream. Those are in `<time>.detail.json.zst[.age]`, whose digest
//! the first one holds. Evidence is bound to the SHA-256 of each manifest that it speaks of: it proves that snapshot and no other.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    io::Read,
    str::FromStr,
};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    BackupId, Catalog, Epoch, EpochId, Head, HeadSource, ManifestDigest, Repository, RepositoryError, RepositoryId,
    Trust,
    error::must_exist,
    layout, open,
    seal::{Seal, Sealer},
};
use crate::store::StoreErrorKind;

/// The version of the two records of a verification.
pub const EVIDENCE_VERSION: u32 = 1;
/// The longest details that are read, in bytes of JSON.
const MAX_DETAIL: u64 = 256 * 1024 * 1024;
const DETAIL_ZSTD_LEVEL: i32 = 3;
/// Records read at once.
const PARALLEL_READS: usize = 8;

/// How deep a verification goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Head, manifests, and every part there in its size.
    Presence,
    /// Every part read, decompressed and hashed; every fingerprint computed again.
    Content,
    /// Restored into throwaway servers and compared.
    Restore,
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "presence" => Ok(Self::Presence),
            "content" => Ok(Self::Content),
            "restore" => Ok(Self::Restore),
            _ => Err("a level is `presence`, `content` or `restore`".into()),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Presence => "presence",
            Self::Content => "content",
            Self::Restore => "restore",
        })
    }
}

/// What one verification says of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Restored from the repository alone, the data is what was captured.
    Verified,
    /// Nothing is wrong with it as far as this level looks: `presence` or `content`. Never makes a snapshot verified.
    Sound,
    /// It could not be found out.
    Inconclusive,
    /// The backup is bad.
    Failed,
}

impl Verdict {
    /// Of several: the worst.
    pub fn worst(verdicts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let rank = |verdict: &Self| match verdict {
            Self::Verified => 0,
            Self::Sound => 1,
            Self::Inconclusive => 2,
            Self::Failed => 3,
        };
        verdicts.into_iter().max_by_key(rank)
    }

    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Sound => "sound",
            Self::Inconclusive => "inconclusive",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a verdict is not `verified` or `sound`, as a word that says nothing of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// Failed: an object of the backup is missing, or is not what it must be.
    Damaged,
    /// Failed: a server refused what the backup holds.
    NotRestorable,
    /// Failed: what was restored is not what was captured.
    Differs,
    /// Inconclusive: no program for a throwaway server of the right version.
    NoServer,
    /// Inconclusive: the throwaway server lacks an extension, a module or a locale.
    Missing,
    /// Inconclusive: the disk is full, or would be.
    NoSpace,
    /// Inconclusive: it took longer than it may.
    TimeOut,
    /// Inconclusive: the throwaway server ended, or could not be reached.
    ServerLost,
    /// Inconclusive: some of it can be compared by nobody.
    NotComparable,
    /// Inconclusive: anything else about the place of the verification.
    Environment,
}

impl Reason {
    /// In a word, as it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::NotRestorable => "not-restorable",
            Self::Differs => "differs",
            Self::NoServer => "no-server",
            Self::Missing => "missing",
            Self::NoSpace => "no-space",
            Self::TimeOut => "time-out",
            Self::ServerLost => "server-lost",
            Self::NotComparable => "not-comparable",
            Self::Environment => "environment",
        }
    }
}

/// What one verification says of one source's snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceEvidence {
    /// The configured name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// SHA-256 of the manifest that was verified, in hex.
    pub manifest: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is not better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Tables, keys or streams that were compared; at lower levels, parts that were looked at.
    pub objects: u64,
    /// Rows, keys or messages that were compared.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Things that are not as they were.
    pub differences: u64,
    /// How long the throwaway server took to be filled, in seconds: the measured time of a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_seconds: Option<f64>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
}

/// The stored report of one verification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// [`EVIDENCE_VERSION`]; a reader refuses what is newer.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The backup that was verified.
    pub backup: BackupId,
    /// The epoch of its parts, whose key the MAC is under.
    pub epoch: EpochId,
    /// Program and version that verified.
    pub tool: String,
    /// How deep.
    pub level: Level,
    /// When it began, by the store's clock.
    pub started: Timestamp,
    /// When it ended, by the store's clock. Evidence is ordered by it.
    pub finished: Timestamp,
    /// The worst of the sources' verdicts.
    pub verdict: Verdict,
    /// Every snapshot that was looked at.
    pub sources: Vec<SourceEvidence>,
    /// Size and digest of the details' object.
    pub detail: ManifestDigest,
}

/// A thing that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differing {
    /// What: a table, a key, a stream, an object of the repository.
    pub object: String,
    /// How, a sentence that may follow its name.
    pub what: String,
}

/// One compared thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedObject {
    /// Its name.
    pub name: String,
    /// Its rows, keys or messages.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Names behind the counts of one source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceDetail {
    /// The configured name.
    pub name: String,
    /// The server it was restored into, such as `PostgreSQL 15.18`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Everything that is not as it was; at most some thousand, the count is in the evidence.
    pub differences: Vec<Differing>,
    /// Why it could not be found out, in words.
    pub inconclusive: Vec<String>,
    /// What to know, in words.
    pub notes: Vec<String>,
    /// Everything that was compared and is the same.
    pub same: Vec<ComparedObject>,
}

/// Details of a verification: everything that names what is in the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvidenceDetail {
    /// [`EVIDENCE_VERSION`].
    pub format: u32,
    /// Every snapshot that was looked at.
    pub sources: Vec<SourceDetail>,
}

/// What is known of one snapshot from all the evidence on it: a pure function of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// `Verified` or `Failed`; absent: nobody knows yet.
    pub verdict: Option<Verdict>,
    /// The evidence that says so: when it ended.
    pub since: Option<Timestamp>,
    /// The level of that evidence.
    pub level: Option<Level>,
    /// Why it failed.
    pub reason: Option<Reason>,
    /// Verifications at level `restore` in a row that ended inconclusive since the last conclusive one.
    pub inconclusive: u32,
    /// The last of those.
    pub inconclusive_at: Option<Timestamp>,
    /// Its reason.
    pub inconclusive_reason: Option<Reason>,
    /// How long the last verification that ended `Verified` took, in seconds.
    pub verify_seconds: Option<f64>,
    /// How long its restore alone took.
    pub restore_seconds: Option<f64>,
}

impl Standing {
    /// A word for lists: `verified`, `failed`, `inconclusive`, `unverified`.
    pub fn word(&self) -> &'static str {
        match self.verdict {
            Some(verdict) => verdict.as_str(),
            None if self.inconclusive > 0 => Verdict::Inconclusive.as_str(),
            None => "unverified",
        }
    }

    /// Is the snapshot proved, with nothing later that says otherwise?
    pub fn is_verified(&self) -> bool {
        self.verdict == Some(Verdict::Verified)
    }

    /// The newest conclusive evidence at level `restore` counts; a later `failed` at any level overrules it, `inconclusive` and `sound`
    /// never change it. `evidence` is sorted by the time that it ended.
    pub fn of<'a>(evidence: impl IntoIterator<Item = (&'a Evidence, &'a SourceEvidence)>) -> Self {
        let mut standing = Self::default();
        for (whole, source) in evidence {
            match (source.verdict, whole.level) {
                (Verdict::Verified, Level::Restore) | (Verdict::Failed, _) => {
                    let verified = source.verdict == Verdict::Verified;
                    standing = Self {
                        verdict: Some(source.verdict),
                        since: Some(whole.finished),
                        level: Some(whole.level),
                        reason: source.reason,
                        verify_seconds: verified.then_some(source.seconds).or(standing.verify_seconds),
                        restore_seconds: if verified { source.restore_seconds } else { standing.restore_seconds },
                        ..Self::default()
                    };
                }
                (Verdict::Inconclusive, Level::Restore) => {
                    standing.inconclusive += 1;
                    standing.inconclusive_at = Some(whole.finished);
                    standing.inconclusive_reason = source.reason;
                }
                _ => {}
            }
        }
        standing
    }
}

/// All evidence that is believed, and what follows from it.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    evidence: BTreeMap<BackupId, Vec<Evidence>>,
    standings: HashMap<(BackupId, String), Standing>,
    /// What lies among the evidence and is not believed, in words with the object's name.
    pub not_believed: Vec<String>,
}

static NOTHING_KNOWN: std::sync::LazyLock<Standing> = std::sync::LazyLock::new(Standing::default);

impl Verdicts {
    /// What follows for the snapshots of these heads.
    pub fn new(catalog: &Catalog, evidence: Vec<Evidence>) -> Self {
        let mut by_backup: BTreeMap<BackupId, Vec<Evidence>> = BTreeMap::new();
        for one in evidence {
            by_backup.entry(one.backup.clone()).or_default().push(one);
        }
        let mut standings = HashMap::new();
        for (backup, list) in &mut by_backup {
            list.sort_by_key(|one| one.finished);
            let Some(head) = catalog.heads().find(|head| head.backup == *backup) else { continue };
            for source in &head.sources {
                let Some(manifest) = &source.manifest else { continue };
                let on_it = list.iter().flat_map(|whole| {
                    let of = |one: &&SourceEvidence| one.name == source.name && one.manifest == manifest.sha256;
                    whole.sources.iter().filter(of).map(move |one| (whole, one))
                });
                standings.insert((backup.clone(), source.name.clone()), Standing::of(on_it));
            }
        }
        Self { evidence: by_backup, standings, not_believed: Vec::new() }
    }

    /// What is known of one snapshot.
    pub fn of(&self, backup: &BackupId, source: &str) -> &Standing {
        self.standings.get(&(backup.clone(), source.to_owned())).unwrap_or(&NOTHING_KNOWN)
    }

    /// The evidence on a backup, the oldest first.
    pub fn evidence(&self, backup: &BackupId) -> &[Evidence] {
        self.evidence.get(backup).map_or(&[], Vec::as_slice)
    }

    /// The word for a whole backup: `failed` if any snapshot of it did, `verified` if all that it was asked for are, else the least.
    pub fn word(&self, head: &Head) -> &'static str {
        let standings: Vec<&Standing> = head.sources.iter().map(|source| self.of(&head.backup, &source.name)).collect();
        let any = |verdict| standings.iter().any(|standing| standing.word() == verdict);
        match () {
            () if any("failed") => "failed",
            () if !standings.is_empty() && standings.iter().all(|standing| standing.is_verified()) => "verified",
            () if any("inconclusive") => "inconclusive",
            () if any("verified") => "partly verified",
            () => "unverified",
        }
    }

    /// Is this source's snapshot there, whole and verified?
    pub fn proves(&self, head: &Head, source: &HeadSource) -> bool {
        source.state.is_usable() && self.of(&head.backup, &source.name).is_verified()
    }
}

impl Repository {
    /// Reads all evidence on the heads of `catalog`. What is damaged, forged or newer is not believed, and named.
    ///
    /// # Errors
    /// What the store says.
    pub async fn verdicts(&self, catalog: &Catalog) -> Result<Verdicts, RepositoryError> {
        let mut keys: Vec<(BackupId, String)> = Vec::new();
        self.store()
            .list(layout::VERIFICATIONS, &mut |info| {
                keys.extend(layout::evidence_of(&info.key).map(|backup| (backup, info.key.clone())));
            })
            .await?;
        let heads: HashMap<&BackupId, &Head> = catalog.heads().map(|head| (&head.backup, head)).collect();
        let wanted = keys.into_iter().filter_map(|(backup, key)| heads.get(&backup).map(|head| (*head, key)));
        let reads: Vec<_> = wanted
            .map(|(head, key)| async move {
                match self.read_evidence(head, &key).await {
                    Ok(evidence) => Ok(Ok(evidence)),
                    Err(RepositoryError::Trust(trust)) => Ok(Err(trust.to_string())),
                    Err(RepositoryError::Locked(locked)) => Ok(Err(locked.to_string())),
                    Err(error) => Err(error),
                }
            })
            .collect();
        let read: Vec<Result<Evidence, String>> =
            stream::iter(reads).buffer_unordered(PARALLEL_READS).try_collect().await?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for one in read {
            match one {
                Ok(evidence) => good.push(evidence),
                Err(what) => bad.push(what),
            }
        }
        bad.sort();
        bad.iter().for_each(|what| tracing::warn!("evidence is not believed: {what}"));
        Ok(Verdicts { not_believed: bad, ..Verdicts::new(catalog, good) })
    }

    async fn read_evidence(&self, head: &Head, key: &str) -> Result<Evidence, RepositoryError> {
        let epoch = self.epoch(&head.epoch).await?;
        let bytes = self.store().get(key).await.map_err(must_exist(key))?;
        let evidence: Evidence = open::decode(key, &bytes, Seal::Mac(epoch.keys.mac_key()))?;
        if evidence.repository != self.mark().repository || evidence.backup != head.backup {
            return Err(Trust::damaged(key, format!("is evidence on backup {}", evidence.backup)).into());
        }
        Ok(evidence)
    }

    /// Stores the report of a verification: its details first, then itself, each under a key that was never used.
    ///
    /// # Errors
    /// What the store says.
    pub async fn write_evidence(
        &self,
        epoch: &Epoch,
        mut evidence: Evidence,
        detail: &EvidenceDetail,
    ) -> Result<Evidence, RepositoryError> {
        let encode = |what: String| RepositoryError::Encode { object: "the details of a verification".into(), what };
        let json = serde_json::to_vec(detail).map_err(|error| encode(error.to_string()))?;
        let stored = compressed(&json).and_then(|frame| epoch.protection.wrap_record(frame));
        let stored = Bytes::from(stored.map_err(|error| encode(error.to_string()))?);
        evidence.detail = ManifestDigest { bytes: stored.len() as u64, sha256: open::sha256_hex(&stored) };
        loop {
            let key = layout::evidence_detail(&evidence.backup, evidence.finished, &epoch.protection);
            match self.store().put_new(&key, stored.clone()).await {
                Ok(()) => break,
                // Another verification of it ended in the very same millisecond.
                Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                    evidence.finished += SignedDuration::from_millis(1);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let key = layout::evidence(&evidence.backup, evidence.finished);
        let bytes = open::encode(&key, &evidence, Sealer::Mac(epoch.keys.mac_key()))?;
        self.store().put_new(&key, bytes).await?;
        Ok(evidence)
    }

    /// The details of a verification.
    ///
    /// # Errors
    /// What the store says, or what is wrong with them.
    pub async fn evidence_detail(&self, evidence: &Evidence) -> Result<EvidenceDetail, RepositoryError> {
        let epoch = self.epoch(&evidence.epoch).await?;
        let key = layout::evidence_detail(&evidence.backup, evidence.finished, &epoch.protection);
        let bytes = self.store().get_at_most(&key, evidence.detail.bytes).await.map_err(must_exist(&key))?;
        if open::sha256_hex(&bytes) != evidence.detail.sha256 {
            return Err(Trust::damaged(&key, "does not match the SHA-256 in its evidence").into());
        }
        let damaged = |what: String| Trust::damaged(&key, what);
        let frame = epoch.protection.unwrap(&bytes).map_err(|error| damaged(error.to_string()))?;
        let decoder = zstd::stream::read::Decoder::new(frame).map_err(|error| damaged(error.to_string()))?;
        let mut json = Vec::new();
        let read = decoder.take(MAX_DETAIL).read_to_end(&mut json);
        read.map_err(|error| damaged(format!("does not decompress: {error}")))?;
        Ok(serde_json::from_slice(&json).map_err(|error| damaged(format!("is not what it should be: {error}")))?)
    }
}

/// One zstd frame with a checksum.
fn compressed(json: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(DETAIL_ZSTD_LEVEL)?;
    compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
    compressor.compress(json)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_from_the_newest_conclusive_evidence() {
        use Level::{Content, Presence, Restore};
        use Verdict::{Failed, Inconclusive, Sound, Verified};
        for (history, word, inconclusive) in [
            (&[][..], "unverified", 0),
            (&[(Restore, Verified)], "verified", 0),
            (&[(Content, Sound)], "unverified", 0),
            (&[(Restore, Inconclusive)], "inconclusive", 1),
            (&[(Restore, Inconclusive), (Restore, Inconclusive)], "inconclusive", 2),
            // Never changed by what is not conclusive, nor by less than a restore.
            (&[(Restore, Verified), (Restore, Inconclusive)], "verified", 1),
            (&[(Restore, Failed), (Restore, Inconclusive), (Content, Sound)], "failed", 1),
            (&[(Restore, Failed), (Presence, Sound)], "failed", 0),
            // A failure at any level overrules what was proved before.
            (&[(Restore, Verified), (Presence, Failed)], "failed", 0),
            (&[(Restore, Verified), (Content, Failed), (Content, Sound)], "failed", 0),
            // And is overruled by a later proof only.
            (&[(Restore, Failed), (Restore, Verified)], "verified", 0),
            (&[(Content, Failed), (Restore, Inconclusive), (Restore, Verified)], "verified", 0),
            // `verified` is not said of less than a restore.
            (&[(Content, Verified)], "unverified", 0),
        ] {
            let evidence: Vec<(Evidence, SourceEvidence)> =
                history.iter().enumerate().map(|(n, (level, verdict))| one(*level, *verdict, n as i64)).collect();
            let standing = Standing::of(evidence.iter().map(|(whole, source)| (whole, source)));
            assert_eq!((standing.word(), standing.inconclusive), (word, inconclusive), "{history:?}");
        }
    }

    fn one(level: Level, verdict: Verdict, at: i64) -> (Evidence, SourceEvidence) {
        let finished = Timestamp::from_second(1_800_000_000 + at).unwrap();
        let source = SourceEvidence {
            name: "database".into(),
            kind: "postgres".into(),
            manifest: String::new(),
            verdict,
            reason: None,
            objects: 0,
            rows: 0,
            bytes: 0,
            differences: 0,
            restore_seconds: None,
            seconds: 1.0,
        };
        let whole = Evidence {
            format: EVIDENCE_VERSION,
            repository: RepositoryId::random(),
            backup: "20261123T010000Z-k3f9qa".parse().unwrap(),
            epoch: "20261101T010000Z-7h2mxq".parse().unwrap(),
            tool: String::new(),
            level,
            started: finished,
            finished,
            verdict,
            sources: vec![source.clone()],
            detail: ManifestDigest { bytes: 0, sha256: String::new() },
        };
        (whole, source)
    }

    /// Names that stand in repositories.
    #[test]
    fn words_keep_their_names() {
        let words = serde_json::json!([Verdict::Verified, Verdict::Sound, Verdict::Inconclusive, Verdict::Failed]);
        assert_eq!(words, serde_json::json!(["verified", "sound", "inconclusive", "failed"]));
        for reason in [Reason::Damaged, Reason::NotRestorable, Reason::NoServer, Reason::TimeOut, Reason::ServerLost] {
            assert_eq!(serde_json::json!(reason), reason.as_str());
        }
    }
}
