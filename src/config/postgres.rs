//! How a PostgreSQL server is reached and what of it is backed up.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::error::{ConfigError, Place};
use super::secret;
use super::url::{UrlProblem, bad, percent_decode, percent_encode};
use super::{SourceName, keys};

/// PostgreSQL's own port.
const DEFAULT_PORT: u16 = 5432;
/// The database every server has unless someone dropped it; connections that need no certain database go there.
const DEFAULT_DATABASE: &str = "postgres";

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresHost {
    /// A host name or IP address (IPv6 without brackets).
    Tcp(String),
    /// The folder of a unix socket, absolute.
    Unix(PathBuf),
}

impl PostgresHost {
    /// Does the traffic stay on this machine? True for unix sockets, `localhost`, `*.localhost` and loopback addresses.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(host) => match host.parse::<IpAddr>() {
                Ok(address) => address.is_loopback(),
                Err(_) => {
                    let host = host.to_ascii_lowercase();
                    host == "localhost" || host.ends_with(".localhost")
                }
            },
        }
    }
}

/// A server, a role on it and the database to connect to for what belongs to no database. Prints as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresEndpoint {
    /// Where it listens.
    pub host: PostgresHost,
    /// The port; for a unix socket the number in the socket's name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The maintenance database.
    pub database: String,
}

impl fmt::Display for PostgresEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, database) = (percent_encode(&self.user, b""), percent_encode(&self.database, b""));
        match &self.host {
            PostgresHost::Tcp(host) if host.contains(':') => {
                write!(f, "postgres://{user}@[{host}]:{}/{database}", self.port)
            }
            PostgresHost::Tcp(host) => write!(f, "postgres://{user}@{host}:{}/{database}", self.port),
            PostgresHost::Unix(folder) => {
                let folder = percent_encode(&folder.to_string_lossy(), b"/");
                write!(f, "postgres://{user}@/{database}?host={folder}&port={}", self.port)
            }
        }
    }
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// In clear.
    Disable,
    /// Encrypted; whom we speak to is not checked.
    Require,
    /// Encrypted; the certificate must be valid and be the host's.
    VerifyFull,
}

impl TlsMode {
    pub(super) const NAMES: &[&str] = &["disable", "require", "verify-full"];

    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "disable" => Some(Self::Disable),
            "require" => Some(Self::Require),
            "verify-full" => Some(Self::VerifyFull),
            _ => None,
        }
    }

    /// As it is written in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// What a URL says: where, and with `?sslmode=` how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PostgresUrl {
    pub(super) endpoint: PostgresEndpoint,
    pub(super) tls: Option<TlsMode>,
}

impl PostgresUrl {
    /// `postgres://user@host:port/database`, or `postgres://user@/database?host=/socket/folder&port=5432`; the parameters
    /// are libpq's (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS>), of which we take
    /// `host`, `port`, `user`, `dbname` and `sslmode`.
    pub(super) fn parse(text: &str) -> Result<Self, UrlProblem> {
        let rest = match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) => rest,
            _ => {
                return Err(UrlProblem::Bad(
                    "is not a PostgreSQL url".to_owned(),
                    Some("write postgres://user@host:5432/postgres".to_owned()),
                ));
            }
        };
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A password with a raw `/`, `?` or `#` in it moves the `@` out of the authority.
        if authority.contains(':') && !authority.contains('@') && tail.contains('@') {
            return Err(UrlProblem::Secret);
        }
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, _)) if user.contains([':', '@']) => return Err(UrlProblem::Secret),
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let database = path.strip_prefix('/').unwrap_or(path);
        let query = Query::parse(query)?;
        if tail.contains('#') || database.contains('/') {
            return bad("in a database's name, write `#` as %23 and `/` as %2F");
        }

        let (host, port) = split_port(place)?;
        let host = once("host", part(host)?, query.host)?;
        let port = once("port", port.map(str::to_owned), query.port)?;
        let user = once("user", part(user.unwrap_or(""))?, query.user)?;
        let database = once("database", part(database)?, query.dbname)?;

        let Some(host) = host else {
            return bad("names no host (a unix socket's folder is given as ?host=/folder)");
        };
        let Some(user) = user else { return bad("names no user") };
        let port = match port.as_deref().map(str::parse::<u16>) {
            None => DEFAULT_PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return bad("the port is not a number from 1 to 65535"),
        };
        let endpoint = PostgresEndpoint {
            host: parse_host(&host)?,
            port,
            user,
            database: database.unwrap_or_else(|| DEFAULT_DATABASE.to_owned()),
        };
        if query.sslmode.is_some_and(|mode| mode != TlsMode::Disable) && matches!(endpoint.host, PostgresHost::Unix(_))
        {
            return bad("a unix socket has no TLS");
        }
        Ok(Self { endpoint, tls: query.sslmode })
    }
}

#[derive(Default)]
struct Query {
    host: Option<String>,
    port: Option<String>,
    user: Option<String>,
    dbname: Option<String>,
    sslmode: Option<TlsMode>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, UrlProblem> {
        const KNOWN: &[&str] = &["host", "port", "user", "dbname", "sslmode"];
        let mut query = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if matches!(name, "password" | "sslpassword") {
                return Err(UrlProblem::Secret);
            }
            let Some(known) = KNOWN.iter().find(|known| **known == name) else {
                let hint = match keys::nearest_of(name, KNOWN) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it may hold {}; everything else is a key of the configuration", KNOWN.join(", ")),
                };
                return Err(UrlProblem::Bad("holds an unknown parameter".to_owned(), Some(hint)));
            };
            if seen.contains(known) {
                return bad("holds a parameter twice");
            }
            seen.push(known);
            let value = part(value)?;
            match *known {
                "host" => query.host = value,
                "port" => query.port = value,
                "user" => query.user = value,
                "dbname" => query.dbname = value,
                _ => {
                    query.sslmode = value.as_deref().and_then(TlsMode::parse);
                    if query.sslmode.is_none() {
                        return bad("sslmode must be disable, require or verify-full");
                    }
                }
            }
        }
        Ok(query)
    }
}

fn once(what: &str, first: Option<String>, second: Option<String>) -> Result<Option<String>, UrlProblem> {
    if first.is_some() && second.is_some() {
        return Err(UrlProblem::Bad(format!("names the {what} twice"), None));
    }
    Ok(first.or(second))
}

/// A decoded part; none where it is empty.
fn part(text: &str) -> Result<Option<String>, UrlProblem> {
    match percent_decode(text) {
        Some(text) => Ok((!text.is_empty()).then_some(text)),
        None => bad("holds a `%` that does not begin an encoded character (write `%` as %25)"),
    }
}

/// `host:port`, `[::1]:port` or either without the port.
pub(super) fn split_port(place: &str) -> Result<(&str, Option<&str>), UrlProblem> {
    let (host, rest) = if place.starts_with('[') {
        match place.find(']') {
            Some(end) => place.split_at(end + 1),
            None => return bad("the IPv6 address has no closing bracket"),
        }
    } else {
        place.split_at(place.find(':').unwrap_or(place.len()))
    };
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, (!port.is_empty()).then_some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => bad("there is text between the IPv6 address and the port"),
    }
}

pub(super) fn parse_host(host: &str) -> Result<PostgresHost, UrlProblem> {
    if host.starts_with('/') {
        return Ok(PostgresHost::Unix(PathBuf::from(host)));
    }
    if host.contains(',') {
        return bad("names several hosts; a source is one server");
    }
    if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => Ok(PostgresHost::Tcp(address.to_string())),
            Err(_) => bad("the address in brackets is not an IPv6 address"),
        };
    }
    if host.parse::<Ipv6Addr>().is_ok() || host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return Ok(PostgresHost::Tcp(host.to_owned()));
    }
    bad("the host is neither a name, an address nor an absolute folder")
}

/// Names of databases or streams: literal, or with `*` (any text) and `?` (any one character).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// A pattern; `None` for empty text.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Without wildcards it names one, which must exist.
    pub fn is_literal(&self) -> bool {
        !self.0.contains(['*', '?'])
    }
    /// Does it cover this name? Case counts.
    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        let (mut p, mut n) = (0, 0);
        // Where the last `*` was, and how far into the name it reaches so far.
        let mut star: Option<(usize, usize)> = None;
        while let Some(&c) = name.get(n) {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(&want) if want == '?' || want == c => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    Some((at, reach)) => {
                        star = Some((at, reach + 1));
                        p = at + 1;
                        n = reach + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern.iter().skip(p).all(|c| *c == '*')
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a password comes from.
#[derive(Clone, Debug)]
pub enum PasswordSource {
    /// A file, and the key that named it.
    File {
        /// The file.
        path: PathBuf,
        /// The key, for messages.
        key: String,
    },
    /// An environment variable, which may be unset: then there is no password.
    Variable(String),
    /// Already read.
    Given(SecretString),
    /// There is none.
    Nothing,
}

impl PasswordSource {
    /// `ALTLAS_BACKUP_<NAME>_PASSWORD`, where a source names no file.
    pub fn variable_of(name: &SourceName) -> Self {
        Self::Variable(name.password_variable())
    }

    /// Reads the password; `None` where none is configured, for servers that ask for none.
    ///
    /// # Errors
    /// A password file that cannot be read, is empty or is not text.
    pub fn read(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<SecretString>, ConfigError> {
        match self {
            Self::File { path, key } => secret::read_file(path, key).map(Some),
            Self::Variable(variable) => Ok(secret::read_variable(variable, env)),
            Self::Given(password) => Ok(Some(password.clone())),
            Self::Nothing => Ok(None),
        }
    }
}

/// A PostgreSQL server as a source, or as the target of a restore.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Where it is.
    pub endpoint: PostgresEndpoint,
    /// Where the password comes from; read it with [`PasswordSource::read`].
    pub password: PasswordSource,
    /// What was configured for TLS, if anything; [`PostgresConfig::tls_mode`] decides.
    pub tls: Option<TlsMode>,
    /// Certificates (PEM) that are trusted in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Which databases; at least one pattern.
    pub databases: Vec<NamePattern>,
    /// Of these, which are not meant.
    pub exclude_databases: Vec<NamePattern>,
    /// Which tables' rows, as `schema.table`; at least one pattern.
    pub tables: Vec<NamePattern>,
    /// Of these, whose rows are not.
    pub exclude_tables: Vec<NamePattern>,
    /// Where `pg_dump` and its like are looked for, and nowhere else; absent: the usual places.
    pub tools_dir: Option<PathBuf>,
    /// Connections that read rows at once, 1 to 16.
    pub workers: u32,
    /// How long the locks of a capture may take.
    pub lock_timeout: Duration,
    /// Rows in COPY's text format even where the binary one would do.
    pub copy_text: bool,
    /// Was the server started by this program, for one proof? It may then do to its first superuser what it likes.
    pub is_own: bool,
}

impl PostgresConfig {
    /// A throwaway server.
    pub fn scratch(endpoint: PostgresEndpoint, password: PasswordSource) -> Self {
        Self {
            endpoint,
            password,
            tls: None,
            ca_file: None,
            databases: Vec::new(),
            exclude_databases: Vec::new(),
            tables: Vec::new(),
            exclude_tables: Vec::new(),
            tools_dir: None,
            workers: super::file::DEFAULT_WORKERS,
            lock_timeout: super::file::DEFAULT_LOCK_TIMEOUT,
            copy_text: false,
            is_own: false,
        }
    }

    /// How connections are protected: as configured; else `verify-full`, except in the clear on a loopback address without a
    /// `ca_file`. A unix socket has no TLS.
    pub fn tls_mode(&self) -> TlsMode {
        match (&self.endpoint.host, self.tls) {
            (PostgresHost::Unix(_), _) => TlsMode::Disable,
            (_, Some(mode)) => mode,
            (host, None) if host.is_local() && self.ca_file.is_none() => TlsMode::Disable,
            _ => TlsMode::VerifyFull,
        }
    }

    /// The same source at another address, for `restore --target NAME=URL`. TLS is as the URL's `sslmode` says, else as
    /// this source's configuration does; the password is the given one, else this source's.
    ///
    /// # Errors
    /// A URL that is none, or one with a password.
    pub fn with_url(&self, url: &str, password: Option<SecretString>) -> Result<Self, ConfigError> {
        let parsed = PostgresUrl::parse(url)
            .map_err(|problem| url_error(problem, Place::argument("--target"), POSTGRES_SECRET_HINT))?;
        let mut config = self.clone();
        config.endpoint = parsed.endpoint;
        config.tls = parsed.tls.or(self.tls);
        if let Some(password) = password {
            config.password = PasswordSource::Given(password);
        }
        Ok(config)
    }
}

/// Where a PostgreSQL password belongs.
pub(super) const POSTGRES_SECRET_HINT: &str =
    "put the password into a file named by the source's `password_file`, or into ALTLAS_BACKUP_<NAME>_PASSWORD";

pub(super) fn url_error(problem: UrlProblem, at: Place, secret_hint: &str) -> ConfigError {
    let at = Box::new(at);
    match problem {
        UrlProblem::Secret => ConfigError::SecretInUrl { at, hint: secret_hint.to_owned() },
        UrlProblem::Bad(problem, hint) => ConfigError::BadValue { at, problem, hint },
    }
}
