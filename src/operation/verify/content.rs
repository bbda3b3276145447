//! Level `content`: every part read, decompressed and hashed; every fingerprint computed again.

use futures::StreamExt;

use crate::{
    pipeline::{Fingerprint, Format, PipelineError, Plain, RowHasher, Rows, SnapshotReader},
    report,
    repository::{Artifact, Trust},
    source::{nats, redis},
};

/// What was found of an artifact.
pub(super) struct CheckedArtifact {
    pub(super) path: String,
    pub(super) raw: u64,
    pub(super) rows: u64,
    pub(super) problems: Vec<Trust>,
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
            (Format::CopyText, _) => Self::Rows(RowHasher::new(Rows::Text, seed)),
            (Format::CopyBinary, _) => Self::Rows(RowHasher::new(Rows::Binary, seed)),
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
pub(super) async fn check_artifact(
    reader: &SnapshotReader,
    artifact: &Artifact,
) -> Result<CheckedArtifact, PipelineError> {
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
