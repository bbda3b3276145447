//! What can go wrong with a source, whatever its kind.

use super::{Refusal, nats::NatsError, postgres::PostgresError, redis::RedisError};
use crate::pipeline::PipelineError;

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

impl SourceError {
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
