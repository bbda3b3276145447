//! Why there is no throwaway server.

use std::path::PathBuf;

use crate::{pipeline::Reason, report};

/// A throwaway server that could not be had. It says nothing of the snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScratchError {
    /// A kind that this version cannot start a server of.
    #[error("this version starts no throwaway server of kind `{kind}`")]
    UnknownKind {
        /// The kind.
        kind: String,
    },
    /// No program of the wanted version.
    #[error("no `{program}` of {wanted} was found ({})", report::list(looked, 8))]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Product and version.
        wanted: String,
        /// Where it was looked for, with what was found there.
        looked: Vec<String>,
    },
    /// The disk is too small.
    #[error("the throwaway server needs about {} in {}, where {} are free", report::bytes(*needed), .folder.display(), report::bytes(*free))]
    NoRoom {
        /// Where.
        folder: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// A folder cannot be made or used.
    #[error("cannot use {} for a throwaway server: {detail}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's words.
        detail: String,
    },
    /// It does not start.
    #[error("the throwaway {program} does not start: {detail}")]
    Start {
        /// Its program.
        program: &'static str,
        /// The system's words, or the end of its log.
        detail: String,
    },
    /// There is no such user.
    #[error("there is no user `{user}` on this machine to run a throwaway PostgreSQL as")]
    NoUser {
        /// The user.
        user: String,
    },
    /// The user of the operating system is not there for this alone.
    #[error(
        "a throwaway PostgreSQL would run as `{user}`, who runs another PostgreSQL (process {process}): what is in a backup runs as that user, and could change its data"
    )]
    SharedUser {
        /// The user.
        user: String,
        /// The process of the other server.
        process: u32,
    },
}

impl ScratchError {
    /// Why there is no verdict; none where the verification is refused for safety.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::UnknownKind { .. } | Self::NoProgram { .. } => Some(Reason::NoServer),
            Self::NoRoom { .. } => Some(Reason::NoSpace),
            Self::Start { detail, .. } | Self::Folder { detail, .. } if is_full(detail) => Some(Reason::NoSpace),
            Self::Folder { .. } | Self::Start { .. } | Self::NoUser { .. } => Some(Reason::Environment),
            Self::SharedUser { .. } => None,
        }
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownKind { .. } => return None,
            Self::NoProgram { program, .. } => match *program {
                "postgres" => "install the server's package of that major version (Debian: postgresql-15), or set `scratch.postgres_bin`".into(),
                "redis-server" => "install a Redis server of that version or newer, or set `scratch.redis_server`".into(),
                _ => "install a NATS server of that version or newer, or set `scratch.nats_server`".into(),
            },
            Self::NoRoom { .. } => "make room, or set `scratch.folder` to a place that has it".into(),
            Self::Folder { .. } => "set `scratch.folder` to a folder that may be written to".into(),
            Self::Start { detail, .. } if is_full(detail) => "make room, or set `scratch.folder` to a place that has it".into(),
            Self::Start { detail, .. } if detail.contains("effective user ID") || detail.contains("could not look up") => {
                "initdb needs the user that it runs as in /etc/passwd".into()
            }
            Self::Start { .. } => "try to start the program by hand".into(),
            Self::NoUser { .. } => "set `scratch.postgres_user` to a user that owns nothing".into(),
            Self::SharedUser { .. } => "set `scratch.postgres_user` to a user that owns nothing, or verify on another machine".into(),
        })
    }
}

fn is_full(words: &str) -> bool {
    words.contains("No space left on device") || words.contains("Disk quota exceeded")
}
