//! What can go wrong with NATS, by meaning.

use std::time::Duration;

use super::archive::ArchiveError;
use crate::{pipeline::Reason, report, source::Cause};

/// A failed call on a NATS server, or an archive that is not what it must be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatsError {
    /// No connection.
    #[error("cannot connect to {server}: {detail}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// The system's words.
        detail: String,
    },
    /// The server does not know us.
    #[error("{server} refuses to let us in {login}")]
    Login {
        /// Host and port.
        server: String,
        /// As whom.
        login: String,
    },
    /// The connection broke.
    #[error("{what}: the connection to {server} was lost")]
    Lost {
        /// Host and port.
        server: String,
        /// What was going on.
        what: String,
    },
    /// The server complained, as about a subject that the user may not use.
    #[error("{what}: {server} says: {text}")]
    Denied {
        /// Host and port.
        server: String,
        /// What was going on.
        what: String,
        /// Its words.
        text: String,
    },
    /// Nobody answered.
    #[error("{what}: no answer from {server}")]
    NoAnswer {
        /// Host and port.
        server: String,
        /// What was tried.
        what: String,
    },
    /// Nobody listens on the API's subjects.
    #[error("{server} has no JetStream for this user: it is switched off, or not enabled for the account")]
    NoJetStream {
        /// Host and port.
        server: String,
    },
    /// The API answered with an error.
    #[error("{what}: {server} answered: {text} ({code})")]
    Said {
        /// Host and port.
        server: String,
        /// What was tried.
        what: String,
        /// `err_code` of nats-server's `server/errors.json`.
        code: u64,
        /// Its words.
        text: String,
    },
    /// The server answered something else than the API has there.
    #[error("{what}: {server} does not answer as JetStream does: {text}")]
    Strange {
        /// Host and port.
        server: String,
        /// What was tried.
        what: String,
        /// The beginning of what it sent.
        text: String,
    },
    /// The server has something that it cannot tell of.
    #[error("{server} lists {what}, but cannot tell of it")]
    Silent {
        /// Host and port.
        server: String,
        /// What it is.
        what: String,
    },
    /// A list never was the same twice.
    #[error("the {what} of {server} change faster than they can be listed")]
    Unsteady {
        /// Host and port.
        server: String,
        /// What was listed.
        what: String,
    },
    /// What this version cannot back up or restore into.
    #[error("{server} {what}, which this version does not support")]
    NotSupported {
        /// Host and port.
        server: String,
        /// What it is.
        what: String,
    },
    /// A stream that is configured by its name is not there.
    #[error("{server} has no stream `{stream}`, which the configuration names")]
    NoStream {
        /// Host and port.
        server: String,
        /// The name.
        stream: String,
    },
    /// One that was there when the backup began is not any more.
    #[error("stream `{stream}` of {server}, which the configuration names, was deleted while the backup was made")]
    Deleted {
        /// Host and port.
        server: String,
        /// The name.
        stream: String,
    },
    /// The server stopped sending.
    #[error("the snapshot of stream `{stream}` was given up: {server} sent nothing for {}", report::duration(*.waited))]
    Quiet {
        /// Host and port.
        server: String,
        /// The stream.
        stream: String,
        /// How long.
        waited: Duration,
    },
    /// The server ended a snapshot with an error.
    #[error("the snapshot of stream `{stream}` was ended by {server}: {text}")]
    Ended {
        /// Host and port.
        server: String,
        /// The stream.
        stream: String,
        /// Its words.
        text: String,
    },
    /// The store, or the network to it, was too slow.
    #[error("the snapshot of stream `{stream}` was given up: the repository takes data too slowly, and {server} sends on ({} waited)", report::bytes(*.waiting))]
    TooSlow {
        /// Host and port.
        server: String,
        /// The stream.
        stream: String,
        /// Bytes that wait.
        waiting: u64,
    },
    /// The archive is damaged or incomplete.
    #[error("the archive of stream `{stream}` cannot be used: {error}")]
    Archive {
        /// The stream.
        stream: String,
        /// What is wrong.
        error: ArchiveError,
    },
    /// The archive is whole, and lacks a message that the stream had before and has still.
    #[error("the archive of stream `{stream}` lacks message {sequence}, which the stream holds")]
    Lacks {
        /// The stream.
        stream: String,
        /// The first such message.
        sequence: u64,
    },
    /// A snapshot whose notes cannot be read.
    #[error("the manifest's notes on NATS cannot be read: {detail}")]
    Detail {
        /// Why.
        detail: String,
    },
    /// The stored archive is not the one that was captured.
    #[error("the stored archive of stream `{stream}` is not what was captured: {detail}")]
    NotCaptured {
        /// The stream.
        stream: String,
        /// What differs.
        detail: String,
    },
    /// The target refused an archive.
    #[error("{server} refused stream `{stream}`: {text} ({code})")]
    Refused {
        /// Host and port.
        server: String,
        /// The stream.
        stream: String,
        /// `err_code`.
        code: u64,
        /// The server's words.
        text: String,
    },
    /// The target holds something else than was restored.
    #[error("stream `{stream}` in {server} is not what was captured: {}", report::list(differences, 5))]
    Differs {
        /// Host and port.
        server: String,
        /// The stream.
        stream: String,
        /// Some differences.
        differences: Vec<String>,
    },
}

impl NatsError {
    /// What it says where it ended a proof. A stored archive that is not what was captured is the backup's fault, and one that is, and that a
    /// server of the right version refuses for none of its own reasons; of all else nobody can say more than that the place was not fit.
    pub(crate) fn cause(&self) -> Cause {
        Cause::Place(match self {
            Self::Differs { .. } | Self::NotCaptured { .. } => return Cause::Snapshot(Reason::Differs),
            Self::Detail { .. } => return Cause::Snapshot(Reason::Damaged),
            Self::Refused { code, text, .. } => match of_answer(*code, text) {
                Some(reason) => reason,
                None => return Cause::Snapshot(Reason::NotRestorable),
            },
            Self::Said { code, text, .. } => of_answer(*code, text).unwrap_or(Reason::Environment),
            Self::NotSupported { .. } | Self::NoJetStream { .. } => Reason::NoServer,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::NoAnswer { .. } | Self::Quiet { .. } => {
                Reason::ServerLost
            }
            Self::Ended { text, .. } => of_answer(0, text).unwrap_or(Reason::Environment),
            // Of the throwaway server's own archive.
            Self::Archive { .. }
            | Self::Lacks { .. }
            | Self::Login { .. }
            | Self::Denied { .. }
            | Self::Strange { .. }
            | Self::Silent { .. }
            | Self::Unsteady { .. }
            | Self::NoStream { .. }
            | Self::Deleted { .. }
            | Self::TooSlow { .. } => Reason::Environment,
        })
    }

    /// Is it that a stream or consumer is not there?
    pub(super) fn is_not_found(&self) -> bool {
        // JSStreamNotFoundErr, JSConsumerNotFoundErr.
        matches!(self, Self::Said { code: 10059 | 10014, .. })
    }

    /// Is it that there is such a stream, or no room beside it?
    pub(super) fn is_of_what_is_there(&self) -> bool {
        matches!(
            self,
            Self::Refused { code: 10002 | 10023 | 10026 | 10027 | 10028 | 10047 | 10058 | 10065 | 10077 | 10130, .. }
        )
    }

    /// Is it that the server was removing the folder of its streams, as it does with the last one's, while it made this one's?
    pub(super) fn is_of_a_folder_that_goes(&self) -> bool {
        matches!(self, Self::Refused { text, .. } if text.contains("no such file or directory"))
    }

    /// Will another try end in the same way?
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            // Other complaints may be about anything, such as too many connections.
            Self::Denied { text, .. } => text.starts_with("Permissions Violation"),
            Self::Login { .. } | Self::NoJetStream { .. } | Self::NotSupported { .. } => true,
            _ => false,
        }
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { .. } => {
                "check host and port of the source's `url`, that the server runs, and that a network policy lets this machine through".into()
            }
            Self::Login { .. } => "check the source's `username` and `password_file`, or its `token_file`".into(),
            Self::Lost { .. } | Self::NoAnswer { .. } | Self::Quiet { .. } => {
                "look at the server's log and at the network to it".into()
            }
            Self::Denied { .. } => {
                "give the user the subjects that the README lists under Permissions".into()
            }
            Self::NoJetStream { .. } => {
                "switch JetStream on in the server's configuration, and for the user's account; or check that the source's `url` is the right server".into()
            }
            Self::Said { code, text, .. } | Self::Refused { code, text, .. } => return hint_for(*code, text),
            Self::Strange { .. } => "check that the source's `url` is that of a NATS server".into(),
            Self::Silent { .. } => "the server's log says why; it may have been downgraded".into(),
            Self::Unsteady { .. } => "run it when fewer of them are made and deleted".into(),
            Self::NotSupported { .. } => "back this server up by other means for now".into(),
            Self::NoStream { .. } | Self::Deleted { .. } => "correct `streams` of the source, or look why the stream is gone".into(),
            Self::Ended { .. } => "look at the server's log, then run the backup again".into(),
            Self::TooSlow { .. } => {
                "look at the store and the network to it; a larger `limits.memory_mib` does not help for long".into()
            }
            Self::Archive { .. } | Self::Lacks { .. } => "nothing was kept of it; look at the server's log, then run it again".into(),
            Self::Differs { .. } => "stop whatever else uses the stream and restore again with `--overwrite`".into(),
            Self::Detail { .. } | Self::NotCaptured { .. } => return None,
        })
    }
}

/// An error of the API, by `err_code` of nats-server's `server/errors.json`. 2.15 wraps what went wrong at the end of a restore, its own
/// code in brackets.
fn code_of(code: u64, text: &str) -> u64 {
    let inner = text.rsplit('(').find_map(|part| part.strip_suffix(')')?.parse().ok());
    inner.filter(|_| code == 10062).unwrap_or(code)
}

/// What an answer says of the server that gives it; none where a restore failed for what it was given.
fn of_answer(code: u64, text: &str) -> Option<Reason> {
    let text = text.to_lowercase();
    let no_space = ["no space left", "disk quota exceeded", "insufficient", "resource", "too many open files"];
    Some(match code_of(code, &text) {
        10002 | 10023 | 10028 | 10047 | 10077 => Reason::NoSpace,
        10062 if no_space.iter().any(|words| text.contains(words)) => Reason::NoSpace,
        // Of the files that it keeps.
        10062
            if ["permission denied", "read-only file system", "input/output error"]
                .iter()
                .any(|w| text.contains(w)) =>
        {
            Reason::Environment
        }
        10062 => return None,
        10008 => Reason::ServerLost,
        _ if no_space.iter().any(|words| text.contains(words)) => Reason::NoSpace,
        _ => Reason::Environment,
    })
}

/// The next step after an error of the API.
fn hint_for(code: u64, text: &str) -> Option<String> {
    Some(
        match code_of(code, text) {
            10002 | 10023 | 10028 | 10047 | 10077 => {
                "the target has too little room: raise its JetStream limits, or free some"
            }
            10026 | 10027 => "the account may have no more of them: raise its limit",
            10054 => "a message is larger than the target takes: raise its `max_payload`",
            10062 => "the server's own words say why; `altlas-backup verify BACKUP --level content` tells whether the archive is sound",
            10065 => "another stream listens on the same subjects; delete it or restore into another server",
            10074 => "the stream has several replicas, and the target is one server",
            10058 | 10130 => "something else made a stream of that name meanwhile",
            _ => return None,
        }
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_uncertain_is_the_backups_fault() {
        let (server, stream) = (|| "127.0.0.1:4222".to_owned(), || "JOBS".to_owned());
        let refused =
            |code, text: &str| NatsError::Refused { server: server(), stream: stream(), code, text: text.into() };
        let broken = ArchiveError::Stopped("x".into());
        for (error, cause) in [
            (NatsError::NotCaptured { stream: stream(), detail: "x".into() }, Cause::Snapshot(Reason::Differs)),
            (NatsError::Detail { detail: "x".into() }, Cause::Snapshot(Reason::Damaged)),
            (refused(10062, "restore failed: archive/tar: invalid tar header"), Cause::Snapshot(Reason::NotRestorable)),
            (refused(10062, "restore failed: write x: no space left on device"), Cause::Place(Reason::NoSpace)),
            (refused(10062, "restore failed: open x: permission denied"), Cause::Place(Reason::Environment)),
            (
                refused(10062, "restore failed: insufficient storage resources available (10047)"),
                Cause::Place(Reason::NoSpace),
            ),
            (
                refused(10062, "restore failed: message size exceeds maximum allowed (10054)"),
                Cause::Place(Reason::Environment),
            ),
            (refused(10023, "insufficient resources"), Cause::Place(Reason::NoSpace)),
            (refused(10052, "invalid configuration"), Cause::Place(Reason::Environment)),
            (refused(10130, "stream name already in use"), Cause::Place(Reason::Environment)),
            (refused(0, "it has forgotten the restore"), Cause::Place(Reason::Environment)),
            // What the throwaway server itself sent.
            (NatsError::Archive { stream: stream(), error: broken }, Cause::Place(Reason::Environment)),
            (NatsError::Lost { server: server(), what: "x".into() }, Cause::Place(Reason::ServerLost)),
            (NatsError::NoJetStream { server: server() }, Cause::Place(Reason::NoServer)),
        ] {
            assert_eq!(error.cause(), cause, "{error}");
        }
    }
}
