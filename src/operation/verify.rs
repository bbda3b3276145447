//! `verify`: is a backup what it was when it was made? At `presence` by listing, at `content` by reading every part.
//!
//! What cannot be found out (a store that cannot be reached) is an error, never a verdict.

use std::collections::HashMap;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::{Context, Error, browse};
use crate::{
    pipeline::{Fingerprint, Format, PartReader, PipelineError, Plain, RowHasher, SnapshotReader},
    report,
    repository::{
        Artifact, Catalog, CatalogEntry, Head, Level, Manifest, Repository, RepositoryError, Selector, Trust, part_key,
    },
    source::{nats, redis},
};

/// Artifacts that are read at once; the memory budget bounds what that costs.
const PARALLEL_ARTIFACTS: usize = 4;

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

/// What `verify` found.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// The backup; absent where the repository itself cannot be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// How deep.
    pub level: Level,
    /// `sound` or `failed`. Only a restore makes a backup `verified`.
    pub verdict: &'static str,
    /// Parts that were looked at.
    pub parts: u64,
    /// Bytes of plaintext that were read; 0 at `presence`.
    pub raw: u64,
    /// Rows whose fingerprints were computed again; 0 at `presence`.
    pub rows: u64,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Sources that the backup was asked for and does not hold.
    pub not_captured: Vec<String>,
    /// What its snapshots lack, since it could not be captured.
    pub incomplete: Vec<Incomplete>,
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
        Self {
            backup,
            level,
            verdict: "sound",
            parts: 0,
            raw: 0,
            rows: 0,
            problems: Vec::new(),
            not_captured: Vec::new(),
            incomplete: Vec::new(),
        }
    }

    fn failed(level: Level, backup: Option<String>, trust: &Trust) -> Self {
        let mut report = Self::new(level, backup);
        report.add(trust, None, Vec::new());
        report
    }

    fn add(&mut self, trust: &Trust, source: Option<&str>, artifacts: Vec<String>) {
        self.verdict = "failed";
        self.problems.push(Problem {
            object: trust.object().to_owned(),
            what: trust.to_string(),
            source: source.map(str::to_owned),
            artifacts,
        });
    }
}

/// Verifies one backup.
///
/// # Errors
/// What keeps the answer from being found out.
pub async fn verify(context: &Context, selector: &Selector, level: Level) -> Result<VerifyReport, Error> {
    if level == Level::Restore {
        return Err(Error::Usage {
            message: "this version cannot verify by restoring yet".into(),
            hint: Some("use --level content, and try a restore with `restore --database FROM=TO`".into()),
        });
    }
    let repository = match context.repository().await {
        Ok(repository) => repository,
        Err(Error::Repository(RepositoryError::Trust(trust))) => return Ok(VerifyReport::failed(level, None, &trust)),
        Err(error) => return Err(error),
    };
    let catalog = Catalog::read(&repository).await?;
    let verdicts = repository.verdicts(&catalog).await?;
    // The newest backup must not look sound because its head is damaged and an older one stands in for it.
    if *selector == Selector::Latest {
        match catalog.entries.iter().find(|entry| !matches!(entry, CatalogEntry::Unfinished { .. })) {
            Some(CatalogEntry::Damaged { id, trust }) => {
                return Ok(VerifyReport::failed(level, Some(id.to_string()), trust));
            }
            Some(CatalogEntry::Locked { locked, .. }) => return Err(RepositoryError::from(locked.clone()).into()),
            _ => {}
        }
    }
    let head = match browse::select(&catalog, &verdicts, selector, &[], repository.store().url()) {
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
    verify_head(context, &repository, head, level).await
}

async fn verify_head(
    context: &Context,
    repository: &Repository,
    head: &Head,
    level: Level,
) -> Result<VerifyReport, Error> {
    let mut report = VerifyReport::new(level, Some(head.backup.to_string()));
    let without = head.sources.iter().filter(|source| source.manifest.is_none());
    report.not_captured = without.map(|source| source.name.clone()).collect();
    let epoch = repository.epoch(&head.epoch).await?;
    if level != Level::Presence {
        epoch.must_open_parts().map_err(RepositoryError::from)?;
    }
    let mut manifests = Vec::new();
    context.progress.set_phase("manifests");
    for source in head.sources.iter().filter(|source| source.manifest.is_some()) {
        match repository.manifest(head, &epoch, source).await {
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
    let missing = repository.missing_parts(&epoch, &all).await?;
    for manifest in &manifests {
        let mut users: HashMap<String, Vec<String>> = HashMap::new();
        for artifact in &manifest.artifacts {
            for part in &artifact.parts {
                let of = users.entry(part_key(&epoch, &part.name)).or_default();
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
    if level == Level::Presence {
        return Ok(report);
    }
    context.progress.set_phase("reading");
    let known: Vec<&str> = missing.iter().map(Trust::object).collect();
    let total: u64 = manifests.iter().flat_map(|manifest| &manifest.artifacts).map(|artifact| artifact.raw).sum();
    context.progress.total_raw.store(total, std::sync::atomic::Ordering::Relaxed);
    let parts = PartReader::new(repository.store().clone(), epoch, context.budget(), context.progress.clone())
        .map_err(RepositoryError::from)?;
    for manifest in manifests {
        let name = manifest.source.name.clone();
        let reader = SnapshotReader::new(manifest, parts.clone());
        let checked: Vec<CheckedArtifact> = stream::iter(reader.artifacts())
            .map(|artifact| check_artifact(&reader, artifact))
            .buffer_unordered(PARALLEL_ARTIFACTS)
            .try_collect()
            .await?;
        for artifact in checked {
            report.raw += artifact.raw;
            report.rows += artifact.rows;
            for trust in artifact.problems.iter().filter(|trust| !known.contains(&trust.object())) {
                report.add(trust, Some(&name), vec![artifact.path.clone()]);
            }
        }
    }
    report.problems.sort_by(|a, b| (&a.object, &a.artifacts).cmp(&(&b.object, &b.artifacts)));
    Ok(report)
}

struct CheckedArtifact {
    path: String,
    raw: u64,
    rows: u64,
    problems: Vec<Trust>,
}

/// The fingerprint of an artifact, computed again.
enum Count {
    Rows(RowHasher),
    Rdb(redis::Recount),
    JetStream(nats::Recount),
    Nothing,
}

impl Count {
    fn of(artifact: &Artifact, seed: u64) -> Self {
        match (artifact.format, artifact.fingerprint) {
            (_, None) | (Format::Sql | Format::Text, _) => Self::Nothing,
            (Format::CopyText, _) => Self::Rows(RowHasher::new(seed)),
            (Format::Rdb, _) => Self::Rdb(redis::Recount::new(seed)),
            (Format::JetStream, _) => Self::JetStream(nats::Recount::new(seed, &artifact.path)),
        }
    }

    async fn update(&mut self, part: Plain) {
        match self {
            Self::Rows(hasher) => hasher.update(&part),
            Self::Rdb(recount) => recount.update(part).await,
            Self::JetStream(recount) => recount.update(part).await,
            Self::Nothing => {}
        }
    }

    async fn finish(self) -> Result<Option<Fingerprint>, String> {
        match self {
            Self::Rows(hasher) => Ok(hasher.finish()),
            Self::Rdb(recount) => recount.finish().await.map(Some),
            Self::JetStream(recount) => recount.finish().await.map(Some),
            Self::Nothing => Ok(None),
        }
    }
}

/// Reads every part of an artifact and adds up again what the manifest says of it.
async fn check_artifact(reader: &SnapshotReader, artifact: &Artifact) -> Result<CheckedArtifact, PipelineError> {
    let mut checked = CheckedArtifact { path: artifact.path.clone(), raw: 0, rows: 0, problems: Vec::new() };
    let mut count = Count::of(artifact, reader.fingerprint_seed());
    let mut parts = std::pin::pin!(reader.open(artifact));
    while let Some(part) = parts.next().await {
        match part {
            Ok(plain) => {
                checked.raw += plain.len() as u64;
                count.update(plain).await;
            }
            Err(PipelineError::Trust(trust)) => checked.problems.push(trust),
            Err(error) => return Err(error),
        }
    }
    if !checked.problems.is_empty() {
        return Ok(checked);
    }
    let mut wrong = |what: String| checked.problems.push(Trust::damaged(&artifact.path, what));
    if checked.raw != artifact.raw {
        wrong(format!("holds {}; its manifest says {}", report::bytes(checked.raw), report::bytes(artifact.raw)));
    }
    if let Some(told) = artifact.fingerprint {
        match count.finish().await {
            Ok(found) => {
                checked.rows = found.map_or(0, |found| found.rows);
                if found != Some(told) {
                    let rows = report::count(told.rows, "row");
                    wrong(format!("holds rows whose fingerprint is not the manifest's ({rows})"));
                }
            }
            Err(what) => wrong(what),
        }
    }
    Ok(checked)
}
