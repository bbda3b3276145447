//! What can go wrong with PostgreSQL, by meaning.

use super::{large_objects, words::words};
use crate::{pipeline::Reason, report, source::Cause};

/// A SQLSTATE: five digits and capital letters.
pub(super) type State = [u8; 5];

/// A conflict with what a standby has to apply, among other things that never happen to who only reads.
pub(super) const CONFLICT: &State = b"40001";

/// A failed call on a PostgreSQL server or one of its programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// No connection.
    #[error("cannot connect to {server}: {detail}")]
    Unreachable {
        /// Host, port and database.
        server: String,
        /// The system's words.
        detail: String,
    },
    /// The server does not let this role in.
    #[error("{server} refused the login: {detail}")]
    Login {
        /// Host, port, role and database.
        server: String,
        /// The server's words.
        detail: String,
    },
    /// TLS failed.
    #[error("no trusted TLS connection to {server}: {detail}")]
    Tls {
        /// Host, port and database.
        server: String,
        /// What was wrong.
        detail: String,
    },
    /// Not a server, and not a session of one either.
    #[error("{server} is a pooler that gives every transaction a session of its own choice")]
    Pooler {
        /// Host and port.
        server: String,
    },
    /// The database is not there.
    #[error("database `{database}` does not exist on {server}")]
    NoSuchDatabase {
        /// The database.
        database: String,
        /// Host and port.
        server: String,
    },
    /// A pattern of the configuration fits none.
    #[error("no database of {server} fits the pattern `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Host and port.
        server: String,
    },
    /// A database that takes no connections was asked for by name.
    #[error("database `{database}` on {server} does not accept connections")]
    ClosedDatabase {
        /// The database.
        database: String,
        /// Host and port.
        server: String,
    },
    /// A server of a major version that is not supported.
    #[error("{server} is PostgreSQL {version}; versions 14 to 18 are supported")]
    Version {
        /// Host and port.
        server: String,
        /// Its version.
        version: String,
    },
    /// A program is missing.
    #[error("`{program}` of PostgreSQL {major} was not found (looked in {})", report::list(looked, 8))]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// The wanted major version.
        major: u32,
        /// Folders that were looked in.
        looked: Vec<String>,
    },
    /// A program is there, of another major version.
    #[error("{path} is of PostgreSQL {found}, the server of {wanted}; both must be of the same major version")]
    WrongProgram {
        /// Where.
        path: String,
        /// Its version.
        found: String,
        /// The server's major version.
        wanted: u32,
    },
    /// A program failed.
    #[error("{program} failed for {what} ({status}): {stderr}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it was to do.
        what: String,
        /// Exit status.
        status: String,
        /// The last lines it wrote to stderr.
        stderr: String,
        /// The SQLSTATE of the first error that it told, where it told one.
        state: Option<[u8; 5]>,
    },
    /// A program could not be run or talked to.
    #[error("{program} could not be run: {detail}")]
    Run {
        /// Its name.
        program: &'static str,
        /// The system's words.
        detail: String,
    },
    /// A statement failed.
    #[error("{what}: {detail}")]
    Query {
        /// What was tried.
        what: String,
        /// The server's words.
        detail: String,
        /// Its SQLSTATE, where the server answered.
        state: Option<[u8; 5]>,
    },
    /// The role may not read everything.
    #[error("role `{role}` cannot read {} of database `{database}`: {}", report::count(*total as u64, "object"), report::list(names, 5))]
    Unreadable {
        /// The role.
        role: String,
        /// The database.
        database: String,
        /// Some of them.
        names: Vec<String>,
        /// How many in all.
        total: usize,
    },
    /// The database holds what this version cannot capture.
    #[error("database `{database}` holds {what}, which this version does not back up")]
    NotSupported {
        /// The database.
        database: String,
        /// What.
        what: String,
    },
    /// Rows that are left out are needed by others that are not.
    #[error(
        "the rows of {table} in database `{database}` are left out, and {by}, whose rows are not, refers to them by a foreign key that could not be restored"
    )]
    LeftOut {
        /// The database.
        database: String,
        /// The table that is left out.
        table: String,
        /// The one that needs it.
        by: String,
    },
    /// A pattern of tables fits none.
    #[error("no table fits the pattern `{pattern}`")]
    NoTable {
        /// The pattern.
        pattern: String,
    },
    /// A relation was truncated, rewritten or dropped between the snapshot and its lock, again and again.
    #[error("{relation} in database `{database}` was rewritten, truncated, renamed or dropped while it was captured ({})", report::count(u64::from(*attempts), "attempt"))]
    Changed {
        /// The relation.
        relation: String,
        /// The database.
        database: String,
        /// Attempts.
        attempts: u32,
    },
    /// There is no table at all.
    #[error("{server} holds no user table in {}", report::list(databases, 5))]
    Empty {
        /// Host and port.
        server: String,
        /// The databases that were looked at.
        databases: Vec<String>,
    },
    /// COPY delivered something that is not rows.
    #[error("the rows of {table} did not come whole, each once and from its beginning to its end")]
    TornRows {
        /// The table.
        table: String,
    },
    /// Pieces of large objects were not those that were to come.
    #[error("the large objects of database `{database}` did not come whole, each from its beginning to its end")]
    TornObjects {
        /// The database.
        database: String,
    },
    /// What was restored is not what was captured.
    #[error("{} not what was captured: {}", if *total == 1 { "a restored object is".to_owned() } else { format!("{total} restored objects are") }, report::list(differences, 5))]
    Differs {
        /// Some differences.
        differences: Vec<String>,
        /// How many there are.
        total: usize,
    },
    /// A snapshot that this version cannot read.
    #[error("the manifest's notes on PostgreSQL cannot be read: {detail}")]
    Detail {
        /// Why.
        detail: String,
    },
    /// A throwaway server did not take what the snapshot holds.
    #[error("a throwaway server does not take the backup: {0}")]
    NotRestorable(#[source] Box<PostgresError>),
    /// A throwaway server of another major version than the snapshot's.
    #[error(
        "{server} is PostgreSQL {found}, and the snapshot is of {wanted}: it is proved by its own major version only"
    )]
    OtherMajor {
        /// Host and port.
        server: String,
        /// Its version.
        found: String,
        /// The snapshot's major version.
        wanted: u32,
    },
    /// A throwaway server whose roles cannot be those of the source.
    #[error("{server} has `{found}`, and the source's first superuser is `{wanted}`: its roles cannot be made there")]
    OtherSuperuser {
        /// Host and port.
        server: String,
        /// A role of the server: its first superuser, or whom we are there.
        found: String,
        /// The source's first superuser.
        wanted: String,
    },
    /// What the snapshot needs and the throwaway server lacks.
    #[error("the throwaway server lacks {}", report::list(lacking, 8))]
    Lacking {
        /// Extensions and the like, in words.
        lacking: Vec<String>,
    },
    /// A name that PostgreSQL would cut short.
    #[error("the name `{name}` is too long for a database: PostgreSQL takes {most} bytes")]
    NameTooLong {
        /// The name.
        name: String,
        /// The longest a name may be, in bytes.
        most: usize,
    },
    /// Two databases are to be restored under one name.
    #[error("two databases are to be restored as `{name}`")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// The request names a database that the snapshot does not hold.
    #[error("the snapshot holds no database `{database}`; it holds {}", report::list(held, 8))]
    NotInSnapshot {
        /// The database.
        database: String,
        /// What it holds.
        held: Vec<String>,
    },
}

/// What a SQLSTATE says of a server that was to take a backup (PostgreSQL documentation, appendix A), where it is not the backup's fault.
fn place(state: &State, words: &str) -> Option<Reason> {
    let state = std::str::from_utf8(state).unwrap_or_default();
    let lacks = |what: &str| words.contains(what);
    Some(match state {
        "53100" => Reason::NoSpace,
        "58030" if lacks("No space left") => Reason::NoSpace,
        "53200" | "53000" | "53300" | "53400" | "57014" => Reason::Environment,
        "58P01" | "F0000" => Reason::Missing,
        "42809" if lacks("locale") => Reason::Missing,
        "42704" if lacks("collation") && lacks("does not exist") => Reason::Missing,
        "55000" if lacks("shared_preload_libraries") => Reason::Missing,
        "0A000" if lacks("extension") && lacks("is not available") => Reason::Missing,
        "0A000" if lacks("ICU is not supported") || lacks("unsupported XML feature") => Reason::Missing,
        "22023" if lacks("locale") || lacks("label provider") => Reason::Missing,
        state if state.starts_with("57P") || state.starts_with("08") => Reason::ServerLost,
        _ => return None,
    })
}

impl PostgresError {
    /// What it says where it ended a proof.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Differs { .. } => Cause::Snapshot(Reason::Differs),
            Self::Detail { .. } => Cause::Snapshot(Reason::Damaged),
            Self::NotRestorable(error) => match &**error {
                Self::Query { state, detail: words, .. } | Self::Program { state, stderr: words, .. } => {
                    match state.as_ref() {
                        Some(state) => place(state, words).map_or(Cause::Snapshot(Reason::NotRestorable), Cause::Place),
                        // Nobody answered.
                        None if words.contains("No space left") => Cause::Place(Reason::NoSpace),
                        None => Cause::Place(Reason::ServerLost),
                    }
                }
                other => other.cause(),
            },
            Self::Lacking { .. } => Cause::Place(Reason::Missing),
            Self::NoProgram { .. }
            | Self::WrongProgram { .. }
            | Self::Version { .. }
            | Self::OtherMajor { .. }
            | Self::OtherSuperuser { .. } => Cause::Place(Reason::NoServer),
            Self::Query { state, detail: words, .. } | Self::Program { state, stderr: words, .. } => {
                let reason = state.as_ref().and_then(|state| place(state, words));
                let nobody = if state.is_none() { Reason::ServerLost } else { Reason::Environment };
                Cause::Place(reason.unwrap_or(nobody))
            }
            Self::Unreachable { .. } => Cause::Place(Reason::ServerLost),
            _ => Cause::Place(Reason::Environment),
        }
    }

    /// Did a standby give our snapshot up to apply what came from its primary? `pg_dump` tells no SQLSTATE.
    fn is_conflict(&self) -> bool {
        match self {
            Self::Query { state, .. } => *state == Some(*CONFLICT),
            Self::Program { stderr, .. } => stderr.contains("conflict with recovery"),
            _ => false,
        }
    }

    /// Is it the server's last word to a session: a standby's that gave a snapshot up, or an operator's (class 57P)?
    pub(super) fn is_of_ended_session(&self) -> bool {
        self.is_conflict() || matches!(self, Self::Query { state: Some(state), .. } if state.starts_with(b"57P"))
    }

    /// Can the whole capture be well at another try? A standby gave the snapshot up; or `pg_dump` waited in vain behind somebody who waited
    /// for our locks, and has them once we let go.
    pub(super) fn passes(&self) -> bool {
        // Its time-out for locks is one for statements.
        let behind = matches!(
            self,
            Self::Program { program: "pg_dump", stderr, .. } if stderr.contains("LOCK TABLE") && stderr.contains("timeout")
        );
        behind || self.is_conflict()
    }

    /// Can it be that an extension in another version would have taken it? Something is not there or of another shape (class 42), a value is none of the
    /// type's (22), or an extension says no in its own way (0A, XX). A constraint that does not hold is none of them, nor a missing right.
    pub(super) fn may_be_of_a_version(&self) -> bool {
        let (Self::Query { state, .. } | Self::Program { state, .. }) = self else { return false };
        let classes = [b"42", b"22", b"0A", b"XX"];
        state.is_some_and(|state| state != *b"42501" && classes.iter().any(|class| state.starts_with(*class)))
    }

    /// The same, where it came while the server was given what the backup holds.
    pub(super) fn while_restoring(self) -> Self {
        match self {
            Self::Query { .. } | Self::Program { .. } => Self::NotRestorable(Box::new(self)),
            other => other,
        }
    }

    /// The next step.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { detail, .. } if detail.contains("too many connections") || detail.contains("remaining connection slots") => {
                "raise the role's or the database's CONNECTION LIMIT, or the server's max_connections; or lower `workers`".into()
            }
            Self::Unreachable { .. } => "check host and port of the source's `url`, that the server runs, and that a network policy lets this machine through".into(),
            Self::Login { detail, .. } if detail.contains("CONNECT privilege") => "GRANT CONNECT ON DATABASE … to this role".into(),
            Self::Login { .. } => "check the user in the source's `url`, its `password_file`, and pg_hba.conf".into(),
            Self::Tls { .. } => "set `ca_file` to the certificate authority's PEM file, or `tls` to what the server offers".into(),
            Self::Pooler { .. } => "give the source's `url` the address of PostgreSQL itself: a snapshot, its locks and settings last as long as a session".into(),
            Self::NoSuchDatabase { .. } | Self::NoMatch { .. } => "check `databases` of the source; `psql -l` lists what the server has".into(),
            Self::ClosedDatabase { .. } => "ALTER DATABASE … ALLOW_CONNECTIONS true, or take it out of `databases`".into(),
            Self::Version { .. } => "use a version of altlas-backup that supports this server".into(),
            Self::NoProgram { major, .. } => format!("install the PostgreSQL {major} client programs (Debian: postgresql-client-{major}), or set `tools_dir`"),
            Self::WrongProgram { wanted, .. } => format!("point `tools_dir` at the programs of PostgreSQL {wanted}"),
            Self::Unreadable { role, names, .. } if names.iter().all(|name| name.starts_with(large_objects::SHOWN)) => format!(
                "GRANT SELECT ON LARGE OBJECT … TO \"{role}\" for each, make it a member of their owners, or a superuser; pg_read_all_data does not cover them"
            ),
            Self::Unreadable { role, .. } => format!("GRANT pg_read_all_data TO \"{role}\"; tables with row security need BYPASSRLS too"),
            Self::NotSupported { database, .. } => format!("name the other databases in `databases`, and back `{database}` up by other means"),
            Self::LeftOut { .. } => "leave out the rows of both, or of neither".into(),
            Self::NoTable { .. } => "patterns are of `schema.table`, as in \"public.orders\" or \"audit.*\"".into(),
            Self::Changed { .. } => "run the backup when nothing truncates or rewrites tables".into(),
            Self::Empty { .. } => "check that this is the right server; `allow_empty = true` lets a server without tables pass".into(),
            Self::TornRows { .. } | Self::TornObjects { .. } => "check the connection to the server and its log".into(),
            Self::Differs { .. } => "the backup's rows were all there when they were read: look at the target's log, its collations and its version".into(),
            Self::NameTooLong { .. } | Self::NameTwice { .. } => "give each database a name of its own: --database FROM=TO".into(),
            Self::NotInSnapshot { .. } => "`altlas-backup show BACKUP` lists them".into(),
            _ if self.is_conflict() => {
                "the standby had to apply what the snapshot forbids: raise its `max_standby_streaming_delay`, set `hot_standby_feedback`, or back up the primary".into()
            }
            Self::Program { stderr, .. } | Self::Query { detail: stderr, .. } if stderr.contains("lock timeout") || stderr.contains("LOCK TABLE") => {
                "something holds a lock on that table: see pg_locks, or raise `lock_timeout`".into()
            }
            Self::Query { detail, .. } if detail.contains("connection closed") || detail.contains("administrator command") => {
                "the server, or something between, ended the connection: see the server's log, then try again".into()
            }
            Self::NotRestorable(error) => return error.hint(),
            Self::OtherMajor { wanted, .. } => format!("give the verification a server of PostgreSQL {wanted}"),
            Self::OtherSuperuser { wanted, .. } => {
                format!("make the throwaway server with `initdb --username={wanted}`, and log in as that role")
            }
            Self::Lacking { .. } => "install the packages of these where verifications run".into(),
            Self::Program { .. } | Self::Run { .. } | Self::Query { .. } | Self::Detail { .. } => return None,
        })
    }
}

/// Wraps a failed statement.
pub(super) fn query(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> PostgresError {
    move |error| query_failed(what.into(), &error)
}

/// The same of an error that somebody else keeps.
pub(super) fn query_failed(what: String, error: &tokio_postgres::Error) -> PostgresError {
    let state = error.code().and_then(|state| state.code().as_bytes().try_into().ok());
    PostgresError::Query { what, detail: words(error), state }
}
