//! What can go wrong with a source, whatever its kind.

use super::{Refusal, nats::NatsError, postgres::PostgresError, redis::RedisError};
use crate::pipeline::{PipelineError, Reason};

/// A failed call on a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// Redis.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The way to or from the repository.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The plan says no.
    #[error("refused: {}", refusals.iter().map(|refusal| refusal.what.as_str()).collect::<Vec<_>>().join("; "))]
    Refused {
        /// Why.
        refusals: Vec<Refusal>,
    },
    /// A person or a supervisor stopped it.
    #[error("interrupted{}", left.as_ref().map(|left| format!("; {left}")).unwrap_or_default())]
    Interrupted {
        /// What is in the target now.
        left: Option<String>,
    },
    /// A restore that failed after it had begun to write.
    #[error("{error}; {left}")]
    HalfRestored {
        /// Why.
        error: Box<SourceError>,
        /// What is in the target now.
        left: String,
    },
}

/// What a failed proof says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The snapshot is bad, for this reason.
    Snapshot(Reason),
    /// The place of the proof was not fit for it, for this reason: nothing is known of the snapshot.
    Place(Reason),
    /// Neither: the store, a signal, a refusal. There is no verdict.
    Neither,
}

impl SourceError {
    /// What it says where it ended a proof. What is not known to be the snapshot's fault is not taken for it, nor for a success.
    pub fn cause(&self) -> Cause {
        match self {
            SourceError::Postgres(error) => error.cause(),
            SourceError::Redis(error) => error.cause(),
            SourceError::Nats(error) => error.cause(),
            SourceError::Pipeline(PipelineError::Trust(_)) => Cause::Snapshot(Reason::Damaged),
            SourceError::Pipeline(_) | SourceError::Refused { .. } | SourceError::Interrupted { .. } => Cause::Neither,
            SourceError::HalfRestored { error, .. } => error.cause(),
        }
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            SourceError::Postgres(error) => error.hint(),
            SourceError::Redis(error) => error.hint(),
            SourceError::Nats(error) => error.hint(),
            SourceError::Pipeline(error) => error.hint(),
            SourceError::Refused { refusals } => {
                Some(refusals.iter().map(|refusal| refusal.hint.as_str()).collect::<Vec<_>>().join("; "))
            }
            SourceError::Interrupted { .. } => None,
            SourceError::HalfRestored { error, .. } => error.hint(),
        }
    }
}
