//! Every way a command can fail, and the one table from failure to exit code.

use crate::{
    config::ConfigError,
    pipeline::PipelineError,
    report,
    repository::{Locked, RepositoryError},
    scratch::ScratchError,
    source::SourceError,
    store::StoreError,
};

/// Exit codes (DESIGN.md §7).
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed.
    pub const FAILED: u8 = 1;
    /// Wrong usage or configuration.
    pub const USAGE: u8 = 2;
    /// A verification's verdict is `failed`.
    pub const VERDICT_FAILED: u8 = 3;
    /// A verification or comparison could not be concluded.
    pub const INCONCLUSIVE: u8 = 4;
    /// Partly done: some sources failed.
    pub const PARTLY: u8 = 5;
    /// Refused for safety.
    pub const REFUSED: u8 = 6;
    /// Interrupted by a signal.
    pub const INTERRUPTED: u8 = 130;
}

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Arguments that do not go together.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// `keygen` could not write.
    #[error("no identity was written to {}: {problem}", .path.display())]
    KeyFile {
        /// The file.
        path: std::path::PathBuf,
        /// Is there one already?
        exists: bool,
        /// Why.
        problem: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The way between source and repository.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A source, by name.
    #[error("source `{name}`: {error}")]
    Source {
        /// The configured name.
        name: String,
        /// What went wrong.
        error: SourceError,
    },
    /// A source that held nothing.
    #[error("source `{name}` holds nothing to back up: {what} was found{why}")]
    Empty {
        /// The configured name.
        name: String,
        /// What was not there: `no user table`.
        what: &'static str,
        /// Why, in brackets after a space, where that is known.
        why: String,
    },
    /// A source of which nothing could be captured.
    #[error("source `{name}`: nothing of it could be captured: {}", report::list(.failed, 5))]
    NothingCaptured {
        /// The configured name.
        name: String,
        /// What failed, in words with the reason.
        failed: Vec<String>,
        /// The next step.
        hint: Option<String>,
    },
    /// A throwaway server that must not be started.
    #[error(transparent)]
    Scratch(ScratchError),
    /// Several sources, none of which could be backed up.
    #[error("no source could be backed up: {}", .0.iter().map(Error::to_string).collect::<Vec<_>>().join("; "))]
    AllFailed(Vec<Error>),
    /// `latest-verified`, and there is none.
    #[error("no backup in {url} is verified")]
    NothingVerified {
        /// The repository's address.
        url: String,
    },
    /// The daemon's address.
    #[error("cannot listen on {address}: {problem}")]
    Listen {
        /// Where it was to listen.
        address: std::net::SocketAddr,
        /// Why not.
        problem: String,
    },
    /// A plan was not confirmed.
    #[error("not confirmed; nothing was touched")]
    NotConfirmed,
    /// A signal.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) | Error::Usage { .. } => exit::USAGE,
            Error::Repository(RepositoryError::Locked(locked)) | Error::Pipeline(PipelineError::Locked(locked)) => {
                match locked {
                    Locked::NoIdentity { .. } | Locked::NoDataIdentity { .. } | Locked::NoBeginner { .. } => {
                        exit::USAGE
                    }
                    Locked::InClear { .. }
                    | Locked::Newer { .. }
                    | Locked::AfterEnd { .. }
                    | Locked::Unknown { .. }
                    | Locked::SeveralBeginners { .. }
                    | Locked::Stranger { .. } => exit::REFUSED,
                }
            }
            Error::Repository(
                RepositoryError::Newer { .. }
                | RepositoryError::WouldBeClear { .. }
                | RepositoryError::Another { .. }
                | RepositoryError::Braked(_),
            )
            | Error::NothingVerified { .. }
            | Error::Scratch(_)
            | Error::NotConfirmed
            | Error::KeyFile { exists: true, .. }
            | Error::Source { error: SourceError::Refused { .. }, .. } => exit::REFUSED,
            Error::Interrupted | Error::Source { error: SourceError::Interrupted { .. }, .. } => exit::INTERRUPTED,
            Error::KeyFile { .. }
            | Error::Listen { .. }
            | Error::Store(_)
            | Error::Repository(_)
            | Error::Pipeline(_)
            | Error::Source { .. }
            | Error::Empty { .. }
            | Error::NothingCaptured { .. }
            | Error::AllFailed(_) => exit::FAILED,
        }
    }

    /// A word for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Config(_) => "config",
            Error::Scratch(_) => "refused",
            Error::Usage { .. } => "usage",
            Error::KeyFile { exists: true, .. } => "refused",
            Error::KeyFile { .. } => "file",
            Error::Store(_) | Error::Repository(RepositoryError::Store(_) | RepositoryError::HeadRemains { .. }) => {
                "store"
            }
            Error::Repository(RepositoryError::NotInitialised { .. }) => "not-initialised",
            Error::Repository(RepositoryError::AlreadyInitialised { .. }) => "already-initialised",
            Error::Repository(RepositoryError::Newer { .. } | RepositoryError::Locked(Locked::Newer { .. })) => {
                "newer-format"
            }
            Error::Repository(RepositoryError::Locked(_)) | Error::Pipeline(PipelineError::Locked(_)) => "locked",
            Error::Repository(
                RepositoryError::WouldBeClear { .. } | RepositoryError::Another { .. } | RepositoryError::Braked(_),
            ) => "refused",
            Error::Repository(RepositoryError::Trust(_)) => "damaged",
            Error::Repository(_) => "repository",
            Error::Pipeline(PipelineError::Trust(_)) => "damaged",
            Error::Pipeline(PipelineError::Store(_)) => "store",
            Error::Pipeline(_) => "pipeline",
            Error::Source { error: SourceError::Pipeline(PipelineError::Trust(_)), .. } => "damaged",
            Error::Source { error: SourceError::Pipeline(PipelineError::Store(_)), .. } => "store",
            Error::Source { error: SourceError::Refused { .. }, .. } | Error::NothingVerified { .. } => "refused",
            Error::Source { error: SourceError::Interrupted { .. }, .. } | Error::Interrupted => "interrupted",
            Error::Source { .. } | Error::NothingCaptured { .. } | Error::AllFailed(_) => "source",
            Error::Empty { .. } => "empty",
            Error::Listen { .. } => "listen",
            Error::NotConfirmed => "not-confirmed",
        }
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Config(error) => error.hint(),
            Error::Scratch(error) => error.hint(),
            Error::Usage { hint, .. } => hint.clone(),
            Error::KeyFile { exists, .. } => {
                Some(match exists {
                    true => "name another file: an identity is never overwritten, backups may need it".into(),
                    false => "name a new file in a folder that you may write to".into(),
                })
            }
            Error::Store(error) => error.hint(),
            Error::Repository(error) => error.hint(),
            Error::Pipeline(error) => error.hint(),
            Error::Source { error, .. } => error.hint(),
            Error::Empty { .. } => Some(
                "check that the source's settings name the right server; `allow_empty = true` lets an empty one pass".into(),
            ),
            Error::AllFailed(errors) => {
                let hints: Vec<String> = errors.iter().filter_map(Error::hint).collect();
                (!hints.is_empty()).then(|| hints.join("; "))
            }
            Error::NothingVerified { .. } => Some(
                "`altlas-backup verify` proves the newest one; to restore one unverified, name it (`latest`, or an id of `altlas-backup list`)".into(),
            ),
            Error::Listen { .. } => Some("set `server.listen` to an address of this machine that is free".into()),
            Error::NotConfirmed => Some("`--yes` carries out a plan without asking".into()),
            Error::NothingCaptured { hint, .. } => hint.clone(),
            Error::Interrupted => None,
        }
    }
}
