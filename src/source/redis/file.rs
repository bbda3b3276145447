//! A restore by file: the RDB file as it was captured, for a server to load when it starts.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    capture::{Detail, PATH},
    error::RedisError,
    plan::detail,
    tally::Tally,
    walk::{FileCopy, walk_artifact},
};
use crate::{
    pipeline::{Progress, SnapshotReader},
    report,
    source::{Compared, Refusal, Restore, RestorePlan, Restored, RestoredItem, SourceError},
};

/// A planned file.
pub(super) struct FileRestore {
    snapshot: SnapshotReader,
    detail: Detail,
    path: PathBuf,
    overwrite: bool,
    plan: RestorePlan,
}

pub(super) fn plan(snapshot: SnapshotReader, path: &Path, overwrite: bool) -> Result<FileRestore, SourceError> {
    let detail = detail(&snapshot)?;
    let artifact = snapshot.artifact(PATH)?;
    let mut plan =
        RestorePlan { target: format!("file {}", path.display()), raw: artifact.raw, ..RestorePlan::default() };
    plan.steps.push(format!("write {} of {} (RDB version {})", report::bytes(artifact.raw), detail.server, detail.rdb));
    plan.notes.extend([
        "put the file in place of the server's `dbfilename` in its `dir` while it is stopped, owned by its user"
            .to_owned(),
        "a server with `appendonly yes` ignores the file: start it with `appendonly no`, look at its keys, then \
         CONFIG SET appendonly yes (which writes a new append-only file), and only then put it into its configuration"
            .to_owned(),
    ]);
    if path.exists() && !overwrite {
        plan.refusals.push(Refusal {
            what: format!("{} exists", path.display()),
            hint: "name another file, or replace it with `--overwrite`".into(),
        });
    }
    Ok(FileRestore { snapshot, detail, path: path.to_owned(), overwrite, plan })
}

#[async_trait]
impl Restore for FileRestore {
    fn plan(&self) -> &RestorePlan {
        &self.plan
    }

    async fn execute(self: Box<Self>, cancel: &CancellationToken) -> Result<Restored, SourceError> {
        tokio::select! {
            written = self.write() => written,
            // The half that was written is under a temporary name, and goes.
            () = cancel.cancelled() => Err(SourceError::Interrupted { left: None }),
        }
    }
}

impl FileRestore {
    async fn write(&self) -> Result<Restored, SourceError> {
        let failed = |error: std::io::Error| RedisError::File {
            path: self.path.display().to_string(),
            detail: error.to_string(),
        };
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // Only its owner may read it until the file is given to the server's user.
        let temporary = tempfile::Builder::new().prefix(".altlas-backup-").tempfile_in(folder).map_err(failed)?;
        let file = tokio::fs::File::from_std(temporary.reopen().map_err(failed)?);
        let mut copy = FileCopy { file, path: self.path.display().to_string() };
        let artifact = self.snapshot.artifact(PATH)?;
        let progress = self.snapshot.progress();
        progress.set_phase("writing the file");
        let parsed = self.detail.contents.as_ref();
        let walked = match parsed {
            Some(_) => {
                let tally = Tally::new(Some(progress.clone()));
                Some(walk_artifact(&self.snapshot, artifact, tally, Some(&mut copy)).await?.visitor.finish().0)
            }
            None => {
                let mut parts = std::pin::pin!(self.snapshot.open(artifact));
                while let Some(part) = parts.next().await {
                    let part = part?;
                    Progress::add(&progress.raw, part.len() as u64);
                    copy.write(&part).await?;
                }
                None
            }
        };
        copy.finish().await?;
        let mut restored = Restored { unit: "file", ..Restored::default() };
        let compared = match (parsed, walked) {
            (Some(captured), Some(found)) => {
                let differences = captured.differences(&found, self.snapshot.fingerprint_seed());
                if !differences.is_empty() {
                    return Err(RedisError::NotCaptured { detail: report::list(&differences.words(), 5) }.into());
                }
                Compared::Same
            }
            _ => {
                restored.notes.push("every byte is what was captured; what they mean was not looked at".into());
                Compared::Inconclusive
            }
        };
        let placed = match self.overwrite {
            true => temporary.persist(&self.path),
            false => temporary.persist_noclobber(&self.path),
        };
        placed.map_err(|error| failed(error.error))?;
        let keys = parsed.map_or(0, |contents| contents.databases().values().sum());
        restored.items.push(RestoredItem {
            name: self.path.display().to_string(),
            rows: keys,
            bytes: artifact.raw,
            compared,
        });
        restored.notes.extend(self.plan.notes.iter().cloned());
        Ok(restored)
    }
}
