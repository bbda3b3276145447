//! What can go wrong between a source and a repository.

use std::sync::Arc;

use crate::{
    repository::{Locked, RepositoryError, Trust},
    store::StoreError,
};

/// A failed stage.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A stored object is missing or not what it must be.
    #[error(transparent)]
    Trust(#[from] Trust),
    /// R4: what was compressed did not decompress to what went in. Nothing of it was uploaded.
    #[error("a part of {bytes} bytes did not decompress to what was compressed; it was not uploaded")]
    CompressorFault {
        /// Length of its plaintext.
        bytes: u64,
    },
    /// The compressor refused.
    #[error("a part could not be compressed: {0}")]
    Compressor(String),
    /// age refused.
    #[error("a part could not be encrypted: {0}")]
    Encryption(String),
    /// A fault of this program: a source asks for a larger window than every budget has.
    #[error("a window of {window} bytes was asked for; the largest is {most}")]
    WindowTooLarge {
        /// Bytes asked for.
        window: u64,
        /// Bytes that every budget has.
        most: u64,
    },
    /// This machine cannot read parts.
    #[error(transparent)]
    Locked(#[from] Locked),
    /// The run is over: another part of it failed, which is reported by itself.
    #[error("stopped, since another part of this run failed")]
    Stopped,
}

impl From<StoreError> for PipelineError {
    fn from(error: StoreError) -> Self {
        PipelineError::Store(Arc::new(error))
    }
}

impl From<RepositoryError> for PipelineError {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Trust(trust) => PipelineError::Trust(trust),
            RepositoryError::Store(error) => error.into(),
            RepositoryError::Locked(locked) => PipelineError::Locked(locked),
            other => PipelineError::Trust(Trust::damaged("the repository", other)),
        }
    }
}

/// A semaphore that was closed or a task that was cancelled: the run is over.
impl From<tokio::sync::AcquireError> for PipelineError {
    fn from(_: tokio::sync::AcquireError) -> Self {
        PipelineError::Stopped
    }
}

impl PipelineError {
    /// The next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            PipelineError::Store(error) => error.hint(),
            PipelineError::Trust(_) => {
                Some("`altlas-backup verify BACKUP --level content` tells what else is damaged; `altlas-backup list` shows the other backups".into())
            }
            PipelineError::CompressorFault { .. } => Some("memory or processor may be faulty: run the backup on another machine".into()),
            PipelineError::Locked(locked) => Some(locked.hint()),
            PipelineError::Compressor(_)
            | PipelineError::Encryption(_)
            | PipelineError::WindowTooLarge { .. }
            | PipelineError::Stopped => None,
        }
    }
}
