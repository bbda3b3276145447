//! A walk through a stored file, on a thread of its own, fed from async code.

use std::io::{self, Read};

use futures::StreamExt;
use tokio::{io::AsyncWriteExt, sync::mpsc, task::JoinHandle};

use super::{
    error::RedisError,
    rdb::{self, RdbError, Visitor, Walked},
};
use crate::{
    pipeline::{Artifact, Plain, Progress, SnapshotReader},
    source::{SourceError, blocking::Received},
};

/// A file that a restore writes.
pub(super) struct FileCopy {
    pub(super) file: tokio::fs::File,
    /// Its name to be, for messages.
    pub(super) path: String,
}

impl FileCopy {
    pub(super) fn failed(&self, error: &io::Error) -> RedisError {
        RedisError::File { path: self.path.clone(), detail: error.to_string() }
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), RedisError> {
        self.file.write_all(bytes).await.map_err(|error| self.failed(&error))
    }

    /// Everything is on the disk.
    pub(super) async fn finish(mut self) -> Result<(), RedisError> {
        let flushed = async {
            self.file.flush().await?;
            self.file.sync_all().await
        };
        flushed.await.map_err(|error| RedisError::File { path: self.path, detail: error.to_string() })
    }
}

/// A walk that waits for bytes.
pub(super) struct Walk<V> {
    parts: mpsc::Sender<Plain>,
    task: JoinHandle<Result<Walked<V>, RdbError>>,
}

impl<V: Visitor + Send + 'static> Walk<V> {
    /// Starts the thread.
    pub(super) fn begin(seed: u64, visitor: V) -> Self {
        let (parts, from) = mpsc::channel(1);
        let task = tokio::task::spawn_blocking(move || {
            let mut parts = Received::new(from);
            let walked = rdb::walk(&mut parts, seed, visitor)?;
            // Whatever is behind the file is counted, so that it is noticed; the other end never waits for us in vain.
            let mut rest = [0; 4096];
            let mut behind = walked.rest.len() as u64;
            while let Ok(n @ 1..) = parts.read(&mut rest) {
                behind += n as u64;
            }
            match behind {
                0 => Ok(walked),
                _ => Err(RdbError::Corrupt { offset: walked.length, what: format!("{behind} bytes follow its end") }),
            }
        });
        Self { parts, task }
    }

    /// Gives the next part; `false` where the walk has ended, which [`Walk::finish`] explains.
    pub(super) async fn feed(&self, part: Plain) -> bool {
        self.parts.send(part).await.is_ok()
    }

    /// There are no more parts.
    pub(super) async fn finish(self) -> Result<Walked<V>, RdbError> {
        drop(self.parts);
        match self.task.await {
            Ok(walked) => walked,
            Err(error) => Err(RdbError::Stopped(error.to_string())),
        }
    }
}

/// Walks through a whole artifact, and copies it where there is a file to copy it to.
pub(super) async fn walk_artifact<V: Visitor + Send + 'static>(
    snapshot: &SnapshotReader,
    artifact: &Artifact,
    visitor: V,
    mut copy: Option<&mut FileCopy>,
) -> Result<Walked<V>, SourceError> {
    let walk = Walk::begin(snapshot.fingerprint_seed(), visitor);
    let mut parts = std::pin::pin!(snapshot.open(artifact));
    while let Some(part) = parts.next().await {
        let part = part?;
        Progress::add(&snapshot.progress().raw, part.len() as u64);
        if let Some(copy) = &mut copy {
            copy.write(&part).await?;
        }
        if !walk.feed(part).await {
            break;
        }
    }
    let walked = walk.finish().await;
    Ok(walked.map_err(|error| RedisError::Rdb { server: "the backup".into(), error })?)
}
