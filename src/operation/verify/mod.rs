//! `verify`: is a backup what it was when it was made? At `presence` by listing, at `content` by reading every part, at `restore` by
//! restoring it into throwaway servers and comparing what they hold.
//!
//! What cannot be found out (a store that cannot be reached) is an error, never a verdict. Every verification leaves evidence in the
//! repository; one at a lower level that cannot is said in the log.

mod content;
mod restore;

use std::{collections::HashMap, sync::Arc, time::Instant};

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Serialize;

use self::content::{CheckedArtifact, check_artifact};
use super::{Context, Error, browse};
use crate::{
    pipeline::{PartReader, SnapshotReader},
    repository::{
        Catalog, CatalogEntry, ComparedObject, Differing, EVIDENCE_VERSION, Epoch, Evidence, EvidenceDetail,
        FORMAT_VERSION, Head, HeadSource, Level, Manifest, ManifestDigest, Reason, Repository, RepositoryError,
        Selector, SourceDetail, SourceEvidence, Trust, Verdict, part_key, tool,
    },
};

/// Artifacts that are read at once; the memory budget bounds what that costs.
const PARALLEL_ARTIFACTS: usize = 4;

/// Of what differs, so much is stored; the count is of all.
const MOST_DIFFERENCES: usize = 1000;

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// The object's key.
    pub object: String,
    /// What is wrong with it, a sentence that names it.
    pub what: String,
    /// The source whose snapshot it hurts, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The artifacts it hurts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<String>,
}

/// What was found of one source's snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct VerifiedSource {
    /// The configured name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is not better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The server it was restored into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Everything that is the same.
    pub same: Vec<ComparedObject>,
    /// Everything that is not as it was.
    pub differences: Vec<Differing>,
    /// Why it could not be found out, in words.
    pub inconclusive: Vec<String>,
    /// The next step after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What to know, in words.
    pub notes: Vec<String>,
    /// How long the restore alone took, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_seconds: Option<f64>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// SHA-256 of the manifest, in hex.
    #[serde(skip)]
    manifest: String,
}

impl VerifiedSource {
    fn new(source: &HeadSource, verdict: Verdict) -> Self {
        Self {
            name: source.name.clone(),
            kind: source.kind.clone(),
            verdict,
            reason: None,
            server: None,
            same: Vec::new(),
            differences: Vec::new(),
            inconclusive: Vec::new(),
            hint: None,
            notes: Vec::new(),
            restore_seconds: None,
            seconds: 0.0,
            manifest: source.manifest.as_ref().map(|manifest| manifest.sha256.clone()).unwrap_or_default(),
        }
    }

    /// The snapshot is bad: this is wrong.
    fn fail(&mut self, reason: Reason, differences: impl IntoIterator<Item = Differing>) {
        self.verdict = Verdict::Failed;
        self.reason = Some(reason);
        self.differences.extend(differences);
    }
}

/// What `verify` found.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// The backup; absent where the repository itself cannot be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// How deep.
    pub level: Level,
    /// The worst of the sources' verdicts.
    pub verdict: Verdict,
    /// Parts that were looked at.
    pub parts: u64,
    /// Bytes of plaintext that were read; 0 at `presence`.
    pub raw: u64,
    /// Rows whose fingerprints were computed again; 0 at `presence`.
    pub rows: u64,
    /// Every object of the repository that is not what it must be.
    pub problems: Vec<Problem>,
    /// Every snapshot that the backup holds.
    pub sources: Vec<VerifiedSource>,
    /// Sources that the backup was asked for and does not hold.
    pub not_captured: Vec<String>,
    /// What its snapshots lack, since it could not be captured.
    pub incomplete: Vec<Incomplete>,
    /// When the stored evidence ended, by the store's clock; absent where none was stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Timestamp>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// A partial snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Incomplete {
    /// The source.
    pub source: String,
    /// What is not in it, in words with the reason.
    pub failed: Vec<String>,
}

impl VerifyReport {
    fn new(level: Level, backup: Option<String>) -> Self {
        let verdict = if level == Level::Restore { Verdict::Verified } else { Verdict::Sound };
        Self {
            backup,
            level,
            verdict,
            parts: 0,
            raw: 0,
            rows: 0,
            problems: Vec::new(),
            sources: Vec::new(),
            not_captured: Vec::new(),
            incomplete: Vec::new(),
            evidence: None,
            seconds: 0.0,
        }
    }

    /// What a snapshot with which nothing is wrong gets.
    fn best(&self) -> Verdict {
        if self.level == Level::Restore { Verdict::Verified } else { Verdict::Sound }
    }

    fn failed(level: Level, backup: Option<String>, trust: &Trust) -> Self {
        let mut report = Self::new(level, backup);
        report.add(trust, None, Vec::new());
        report
    }

    fn add(&mut self, trust: &Trust, source: Option<&str>, artifacts: Vec<String>) {
        self.verdict = Verdict::Failed;
        let object = trust.object().to_owned();
        if let Some(hurt) = self.sources.iter_mut().find(|found| Some(found.name.as_str()) == source) {
            hurt.fail(Reason::Damaged, [Differing { object: object.clone(), what: trust.to_string() }]);
        }
        let source = source.map(str::to_owned);
        self.problems.push(Problem { object, what: trust.to_string(), source, artifacts });
    }

    /// The verdict that follows from the sources'.
    fn conclude(&mut self) {
        let worst = Verdict::worst(self.sources.iter().map(|source| source.verdict));
        self.verdict = Verdict::worst(worst.into_iter().chain([self.verdict])).unwrap_or(self.verdict);
    }

    /// As it is stored, for a backup with this head.
    fn evidence(&self, repository: &Repository, head: &Head, started: Timestamp, finished: Timestamp) -> Evidence {
        let of = |source: &VerifiedSource| SourceEvidence {
            name: source.name.clone(),
            kind: source.kind.clone(),
            manifest: source.manifest.clone(),
            verdict: source.verdict,
            reason: source.reason,
            objects: source.same.len() as u64,
            rows: source.same.iter().map(|same| same.rows).sum(),
            bytes: source.same.iter().map(|same| same.bytes).sum(),
            differences: source.differences.len() as u64,
            restore_seconds: source.restore_seconds,
            seconds: source.seconds,
        };
        Evidence {
            format: FORMAT_VERSION,
            repository: repository.mark().repository.clone(),
            backup: head.backup.clone(),
            epoch: head.epoch.clone(),
            tool: tool(),
            level: self.level,
            started,
            finished,
            verdict: self.verdict,
            sources: self.sources.iter().map(of).collect(),
            detail: ManifestDigest { bytes: 0, sha256: String::new() },
        }
    }

    /// What the counts in the evidence stand for.
    fn detail(&self) -> EvidenceDetail {
        let of = |source: &VerifiedSource| SourceDetail {
            name: source.name.clone(),
            server: source.server.clone(),
            differences: source.differences.iter().take(MOST_DIFFERENCES).cloned().collect(),
            inconclusive: source.inconclusive.clone(),
            notes: source.notes.clone(),
            same: source.same.clone(),
        };
        EvidenceDetail { format: EVIDENCE_VERSION, sources: self.sources.iter().map(of).collect() }
    }
}

/// Verifies one backup.
///
/// # Errors
/// What keeps the answer from being found out.
pub async fn verify(context: &Context, selector: &Selector, level: Level) -> Result<VerifyReport, Error> {
    let open = async {
        let repository = context.repository().await?;
        let catalog = Catalog::read(&repository).await?;
        let verdicts = repository.verdicts(&catalog).await?;
        Ok((repository, catalog, verdicts))
    };
    let (repository, catalog, verdicts) = match until_stopped(context, open).await {
        Ok(opened) => opened,
        Err(Error::Repository(RepositoryError::Trust(trust))) => return Ok(VerifyReport::failed(level, None, &trust)),
        Err(error) => return Err(error),
    };
    // The newest backup must not look sound because its head is damaged and an older one stands in for it.
    if *selector == Selector::Latest {
        let is_backup =
            |entry: &&CatalogEntry| !matches!(entry, CatalogEntry::Unfinished { .. } | CatalogEntry::Expired { .. });
        match catalog.entries.iter().find(is_backup) {
            Some(CatalogEntry::Damaged { id, trust }) => {
                return Ok(VerifyReport::failed(level, Some(id.to_string()), trust));
            }
            Some(CatalogEntry::Locked { locked, .. }) => return Err(RepositoryError::from(locked.clone()).into()),
            _ => {}
        }
    }
    let selected = match newest_of_anything(&catalog).filter(|_| *selector == Selector::Latest) {
        Some(head) => Ok(head),
        None => browse::select(&catalog, &verdicts, selector, &[], repository.store().url()),
    };
    let head = match selected {
        Ok(head) => head,
        Err(Error::Repository(RepositoryError::Trust(trust))) => {
            let id = match selector {
                Selector::Prefix(prefix) => {
                    catalog.entries.iter().find(|entry| entry.id().as_str().starts_with(prefix))
                }
                _ => None,
            };
            return Ok(VerifyReport::failed(level, id.map(|entry| entry.id().to_string()), &trust));
        }
        Err(Error::Repository(unfinished @ RepositoryError::Unfinished { .. })) => {
            let RepositoryError::Unfinished { id, .. } = &unfinished else { return Err(unfinished.into()) };
            let trust = Trust::damaged(format!("backups/{id}/head.json"), format!("is missing: {unfinished}"));
            return Ok(VerifyReport::failed(level, Some(id.to_string()), &trust));
        }
        Err(error) => return Err(error),
    };
    let clock = Instant::now();
    let begin = async { Ok((repository.store().now().await?, repository.epoch(&head.epoch).await?)) };
    let (started, epoch) = until_stopped(context, begin).await?;
    let mut report = verify_head(context, &repository, head, &epoch, level).await?;
    report.seconds = clock.elapsed().as_secs_f64();
    match store_evidence(&repository, head, &epoch, &report, started).await {
        Ok(finished) => report.evidence = Some(finished),
        // At lower levels, and of a backup that is bad, it is what was found that counts, and it is told.
        Err(error) if level != Level::Restore || report.verdict == Verdict::Failed => {
            tracing::warn!("no evidence of this was stored: {error}");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(report)
}

/// The newest backup, also one that lacks something: what it holds is worth no less for that.
fn newest_of_anything(catalog: &Catalog) -> Option<&Head> {
    catalog.heads().find(|head| head.sources.iter().any(|source| source.state.is_there()))
}

/// Ends with the answer, or when the run is told to stop. Only for what leaves nothing that must be cleaned up.
async fn until_stopped<T>(context: &Context, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::select! {
        done = work => done,
        () = context.cancel.cancelled() => Err(Error::Interrupted),
    }
}

/// Stores what was found; gives when it ended, by the store's clock.
async fn store_evidence(
    repository: &Repository,
    head: &Head,
    epoch: &Epoch,
    report: &VerifyReport,
    started: Timestamp,
) -> Result<Timestamp, RepositoryError> {
    let finished = repository.store().now().await?;
    let evidence = report.evidence(repository, head, started, finished);
    Ok(repository.write_evidence(epoch, evidence, &report.detail()).await?.finished)
}

/// Everything that is found of one backup.
async fn verify_head(
    context: &Context,
    repository: &Repository,
    head: &Head,
    epoch: &Arc<Epoch>,
    level: Level,
) -> Result<VerifyReport, Error> {
    let mut report = VerifyReport::new(level, Some(head.backup.to_string()));
    let without = head.sources.iter().filter(|source| source.manifest.is_none());
    report.not_captured = without.map(|source| source.name.clone()).collect();
    if level != Level::Presence {
        epoch.must_open_parts().map_err(RepositoryError::from)?;
    }
    let manifests = until_stopped(context, presence(context, repository, head, epoch, &mut report)).await?;
    match level {
        Level::Presence => {}
        Level::Content => {
            until_stopped(context, read_all(context, repository, epoch, manifests, &mut report)).await?;
        }
        Level::Restore => restore::prove_all(context, repository, head, epoch, manifests, &mut report).await?,
    }
    report.problems.sort_by(|a, b| (&a.object, &a.artifacts).cmp(&(&b.object, &b.artifacts)));
    report.conclude();
    Ok(report)
}

/// Reads the manifests and looks for every part that they name.
async fn presence(
    context: &Context,
    repository: &Repository,
    head: &Head,
    epoch: &Epoch,
    report: &mut VerifyReport,
) -> Result<Vec<Manifest>, Error> {
    let mut manifests = Vec::new();
    context.progress.set_phase("manifests");
    for source in head.sources.iter().filter(|source| source.manifest.is_some()) {
        report.sources.push(VerifiedSource::new(source, report.best()));
        match repository.manifest(head, epoch, source).await {
            Ok(manifest) => {
                if !manifest.failed.is_empty() {
                    let failed = manifest.failed.clone();
                    report.incomplete.push(Incomplete { source: source.name.clone(), failed });
                }
                manifests.push(manifest);
            }
            Err(RepositoryError::Trust(trust)) => report.add(&trust, Some(&source.name), Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    context.progress.set_phase("looking for parts");
    let all: Vec<&Manifest> = manifests.iter().collect();
    let missing = repository.missing_parts(epoch, &all).await?;
    for manifest in &manifests {
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for artifact in &manifest.artifacts {
            for part in &artifact.parts {
                let of = users.entry(part_key(epoch, &part.name)).or_default();
                if of.last() != Some(&artifact.path) {
                    of.push(artifact.path.clone());
                }
            }
        }
        report.parts += users.len() as u64;
        for trust in &missing {
            if let Some(artifacts) = users.remove(trust.object()) {
                report.add(trust, Some(&manifest.source.name), artifacts);
            }
        }
    }
    Ok(manifests)
}

/// Reads every part of these snapshots.
async fn read_all(
    context: &Context,
    repository: &Repository,
    epoch: &Arc<Epoch>,
    manifests: Vec<Manifest>,
    report: &mut VerifyReport,
) -> Result<(), Error> {
    context.progress.set_phase("reading");
    let known: Vec<String> = report.problems.iter().map(|problem| problem.object.clone()).collect();
    let total: u64 = manifests.iter().flat_map(|manifest| &manifest.artifacts).map(|artifact| artifact.raw).sum();
    context.progress.total_raw.store(total, std::sync::atomic::Ordering::Relaxed);
    let parts = part_reader(context, repository, epoch)?;
    for manifest in manifests {
        let name = manifest.source.name.clone();
        let reader = SnapshotReader::new(manifest, parts.clone());
        let checks: Vec<_> = reader.artifacts().iter().map(|artifact| check_artifact(&reader, artifact)).collect();
        let checked: Vec<CheckedArtifact> =
            stream::iter(checks).buffer_unordered(PARALLEL_ARTIFACTS).try_collect().await?;
        for artifact in checked {
            report.raw += artifact.raw;
            report.rows += artifact.rows;
            for trust in artifact.problems.iter().filter(|trust| !known.iter().any(|one| one == trust.object())) {
                report.add(trust, Some(&name), vec![artifact.path.clone()]);
            }
        }
    }
    Ok(())
}

fn part_reader(context: &Context, repository: &Repository, epoch: &Arc<Epoch>) -> Result<PartReader, Error> {
    let (store, progress) = (repository.store().clone(), context.progress.clone());
    Ok(PartReader::new(store, epoch.clone(), context.budget(), progress).map_err(RepositoryError::from)?)
}
