//! What can go wrong with Redis, by meaning.

use std::time::Duration;

use super::{form::NoForm, rdb::RdbError};
use crate::{pipeline::Reason, report, source::Cause};

/// A failed call on a Redis server, or a dump that is not what it must be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// No connection.
    #[error("cannot connect to {server}: {detail}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// The system's words.
        detail: String,
    },
    /// The connection broke, or the server said nothing for too long.
    #[error("{what}: the connection to {server} failed: {detail}")]
    Broken {
        /// Host and port.
        server: String,
        /// What was going on.
        what: String,
        /// The system's words.
        detail: String,
    },
    /// The server answered with an error.
    #[error("{what}: {server} answered: {text}")]
    Said {
        /// Host and port.
        server: String,
        /// What was tried.
        what: String,
        /// Its words, which begin with an upper-case code.
        text: String,
    },
    /// The server answered something else than the protocol has there.
    #[error("{what}: {server} does not answer as Redis does: {text}")]
    Strange {
        /// Host and port.
        server: String,
        /// What was tried.
        what: String,
        /// The beginning of what it sent.
        text: String,
    },
    /// What this version cannot back up or restore into.
    #[error("{server} {what}, which this version does not support")]
    NotSupported {
        /// Host and port.
        server: String,
        /// What it is.
        what: String,
    },
    /// No form of dump leaves the server unharmed.
    #[error("{server} cannot be dumped without risk to it: {reason}")]
    NoForm {
        /// Host and port.
        server: String,
        /// Why.
        reason: NoForm,
    },
    /// A dump failed, and the server refuses writes since.
    #[error("{error}; since its save failed, the server refuses writes (`stop-writes-on-bgsave-error`)")]
    Aftermath {
        /// Why the dump failed.
        error: Box<RedisError>,
    },
    /// The store, or the network to it, was too slow for a dump that a child of the server sends.
    #[error("the repository took no data for {}: longer, and {server} would end the dump by itself (its repl-timeout is {})", report::duration(*.waited), report::duration(*.repl_timeout))]
    TooSlow {
        /// Host and port.
        server: String,
        /// How long.
        waited: Duration,
        /// The server's setting.
        repl_timeout: Duration,
    },
    /// The dump ended before its end.
    #[error("the dump of {server} ended after {received}{}: the server closed the connection", .of.map(|of| format!(" of {}", report::bytes(of))).unwrap_or_default(), received = report::bytes(*.received))]
    CutShort {
        /// Host and port.
        server: String,
        /// Bytes that came.
        received: u64,
        /// Bytes announced.
        of: Option<u64>,
    },
    /// The dump is not an RDB file, or a damaged one.
    #[error("the dump of {server} cannot be used: it {error}")]
    Rdb {
        /// Host and port, or the artifact.
        server: String,
        /// What is wrong.
        error: RdbError,
    },
    /// What follows the dump is not the mark that must.
    #[error("the dump of {server} does not end as announced: {detail}")]
    End {
        /// Host and port.
        server: String,
        /// What is there.
        detail: String,
    },
    /// A snapshot whose notes cannot be read.
    #[error("the manifest's notes on Redis cannot be read: {detail}")]
    Detail {
        /// Why.
        detail: String,
    },
    /// The stored file is not the one that was captured.
    #[error("the stored dump is not what was captured: {detail}")]
    NotCaptured {
        /// What differs.
        detail: String,
    },
    /// The target refused a key or a library.
    #[error("{server} refused {what}: {text}")]
    Refused {
        /// Host and port.
        server: String,
        /// What: a key, with its database, or a function library.
        what: String,
        /// The server's words.
        text: String,
    },
    /// The target holds something else than was restored.
    #[error("{server} does not hold what was captured: {}", report::list(differences, 5))]
    Differs {
        /// Host and port.
        server: String,
        /// Some differences.
        differences: Vec<String>,
    },
    /// A throwaway server did not load a dump that is what was captured.
    #[error("{server} did not load the dump: {detail}")]
    NotLoaded {
        /// Host and port.
        server: String,
        /// What is known of it.
        detail: String,
        /// What that says of the server.
        reason: Reason,
    },
    /// A throwaway server threw keys away.
    #[error("{server} has evicted {} of what it was given: its `maxmemory` is too small", report::count(*.keys, "key"))]
    Evicted {
        /// Host and port.
        server: String,
        /// How many.
        keys: u64,
    },
    /// The target could not write to its disk what was restored.
    #[error("the restored data is in {server}'s memory, but it could not save it: {detail}")]
    NotSaved {
        /// Host and port.
        server: String,
        /// Why.
        detail: String,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {detail}")]
    File {
        /// The file.
        path: String,
        /// The system's words.
        detail: String,
    },
}

impl RedisError {
    /// What it says where it ended a proof. A dump that is not what was captured is the backup's fault; of all else nobody can say more than
    /// that the place was not fit.
    pub(crate) fn cause(&self) -> Cause {
        Cause::Place(match self {
            Self::Differs { .. } | Self::NotCaptured { .. } => return Cause::Snapshot(Reason::Differs),
            Self::Detail { .. } => return Cause::Snapshot(Reason::Damaged),
            Self::NotLoaded { reason, .. } => *reason,
            Self::NotSupported { .. } | Self::NoForm { .. } => Reason::NoServer,
            Self::Evicted { .. } => Reason::NoSpace,
            Self::Said { text, .. } | Self::Refused { text, .. } => of_answer(text),
            Self::NotSaved { detail, .. } | Self::File { detail, .. } if detail.contains("No space left") => {
                Reason::NoSpace
            }
            Self::Aftermath { error } => return error.cause(),
            Self::Unreachable { .. } | Self::Broken { .. } | Self::CutShort { .. } => Reason::ServerLost,
            Self::TooSlow { .. }
            | Self::Strange { .. }
            | Self::Rdb { .. }
            | Self::End { .. }
            | Self::NotSaved { .. }
            | Self::File { .. } => Reason::Environment,
        })
    }

    /// Did the connection, or the server, end?
    pub(super) fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Unreachable { .. } | Self::CutShort { .. })
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { .. } => {
                "check host and port of the source's `url`, that the server runs, and that a network policy lets this machine through".into()
            }
            Self::Said { text, .. } => return hint_for(text),
            Self::NotSupported { .. } => "back this server up by other means for now".into(),
            Self::NoForm { reason, .. } => reason.hint(),
            Self::Aftermath { .. } => {
                "mend the server's folder (see its log); the next save that goes well lets it take writes again".into()
            }
            Self::TooSlow { .. } => {
                "look at the store and the network to it; a larger `repl-timeout` of the server gives it more time".into()
            }
            Self::CutShort { .. } => {
                "look at the server's log: `repl-timeout`, `client-output-buffer-limit replica` and a full disk end dumps".into()
            }
            Self::Broken { .. } => "look at the server's log, and at the network between it and this machine".into(),
            Self::Strange { .. } => "check that the source's `url` is that of a Redis server".into(),
            Self::Rdb { error: RdbError::TooNew { .. }, .. } => {
                "`--to-rdb FILE` writes the file for a server that knows it".into()
            }
            Self::Rdb { .. } | Self::End { .. } => "nothing was kept of it; run the backup again".into(),
            Self::Refused { text, .. } => return hint_for(text),
            Self::Differs { .. } => {
                "stop whatever else writes to the server and restore again with `--overwrite`".into()
            }
            Self::NotSaved { .. } => {
                "see its log; where it may not write its folder, it refuses writes until a save goes well; where the user lacks `+bgsave` or \
                 `+bgrewriteaof`, run them yourself: until then a restart loses the data"
                    .into()
            }
            Self::NotLoaded { reason: Reason::NoSpace, .. } | Self::Evicted { .. } => {
                "give the throwaway server more memory, or none to keep to (`maxmemory 0`)".into()
            }
            Self::NotLoaded { .. } => {
                "look at its log: memory, room in its folder (`dir`) and modules are what a dump needs".into()
            }
            Self::File { .. } => "name a new file in a folder that you may write to and that has room".into(),
            Self::Detail { .. } | Self::NotCaptured { .. } => return None,
        })
    }
}

/// The next step after an error of the server, by its code.
fn hint_for(text: &str) -> Option<String> {
    let code = text.split(' ').next().unwrap_or_default();
    Some(match code {
        "WRONGPASS" | "NOAUTH" => "check the source's `username` and `password_file`".into(),
        "NOPERM" => "give the user the commands that the README lists under Permissions (ACL SETUSER)".into(),
        "LOADING" => "the server reads its data after a start; try again when it is done".into(),
        "NOMASTERLINK" => {
            "the replica has lost its master; back up the master, or wait until they are connected".into()
        }
        "MISCONF" => "the server cannot save to its disk and refuses writes; look at its log".into(),
        "OOM" => "the target's `maxmemory` is too small for the data".into(),
        "READONLY" => "the target is a replica; restore into its master".into(),
        "BUSYKEY" => "something else writes to the target; stop it and restore again with `--overwrite`".into(),
        "ERR" if text.contains("payload version or checksum") => {
            "the target is older than the source; restore into a newer one".into()
        }
        "ERR" if text.contains("Bad data format") => {
            "the target does not know this kind of value: it is older, or lacks a module".into()
        }
        "ERR" if text.contains("without any password") => {
            "the server asks for no password; remove `password_file`".into()
        }
        _ => return None,
    })
}

/// What a server's error says of the place that it is.
fn of_answer(text: &str) -> Reason {
    match text.split(' ').next().unwrap_or_default() {
        "OOM" | "MISCONF" => Reason::NoSpace,
        "LOADING" | "MASTERDOWN" | "BUSY" => Reason::ServerLost,
        _ => Reason::Environment,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_uncertain_is_the_backups_fault() {
        let server = || "127.0.0.1:6379".to_owned();
        let said = |text: &str| RedisError::Said { server: server(), what: "flushing".into(), text: text.into() };
        let rdb = RdbError::Corrupt { offset: 7, what: "x".into() };
        for (error, cause) in [
            (RedisError::NotCaptured { detail: "x".into() }, Cause::Snapshot(Reason::Differs)),
            (RedisError::Detail { detail: "x".into() }, Cause::Snapshot(Reason::Damaged)),
            // What the server itself sent.
            (RedisError::Rdb { server: server(), error: rdb }, Cause::Place(Reason::Environment)),
            (RedisError::Unreachable { server: server(), detail: "x".into() }, Cause::Place(Reason::ServerLost)),
            (said("OOM command not allowed when used memory > 'maxmemory'"), Cause::Place(Reason::NoSpace)),
            (said("MISCONF Redis is configured to save RDB snapshots"), Cause::Place(Reason::NoSpace)),
            (said("LOADING Redis is loading the dataset in memory"), Cause::Place(Reason::ServerLost)),
            (said("NOPERM this user has no permissions"), Cause::Place(Reason::Environment)),
            (RedisError::Evicted { server: server(), keys: 3 }, Cause::Place(Reason::NoSpace)),
        ] {
            assert_eq!(error.cause(), cause, "{error}");
        }
    }
}
