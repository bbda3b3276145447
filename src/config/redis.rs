//! How a Redis server is reached and how it may be dumped.

use std::fmt;

use secrecy::SecretString;

use super::error::{ConfigError, Place};
use super::postgres::{PasswordSource, PostgresHost, parse_host, split_port, url_error};
use super::url::{UrlProblem, bad, percent_decode, percent_encode};

/// Redis' own port.
const DEFAULT_PORT: u16 = 6379;

/// Where a Redis password belongs.
pub(super) const REDIS_SECRET_HINT: &str =
    "put the password into a file named by the source's `password_file`, or into ALTLAS_BACKUP_<NAME>_PASSWORD";

/// A server and the user to log in as. Prints as a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisEndpoint {
    /// A host name or IP address (IPv6 without brackets).
    pub host: String,
    /// The port.
    pub port: u16,
    /// The ACL user; absent: `default`.
    pub user: Option<String>,
}

impl RedisEndpoint {
    /// `redis://[user@]host[:port]`. A database is not part of it: a source is a whole server.
    pub(super) fn parse(text: &str) -> Result<Self, UrlProblem> {
        const FORM: &str = "write redis://host:6379 or redis://user@host:6379";
        let wrong = |problem: &str| Err(UrlProblem::Bad(problem.to_owned(), Some(FORM.to_owned())));
        let rest = match text.split_once("://") {
            Some(("redis", rest)) => rest,
            Some(("rediss", _)) => return bad("TLS to Redis is not supported by this version"),
            _ => return wrong("is not a Redis url"),
        };
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        // A password with a raw `/`, `?` or `#` in it moves the `@` out of the authority.
        if !authority.contains('@') && tail.contains('@') {
            return Err(UrlProblem::Secret);
        }
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, _)) if user.contains([':', '@']) => return Err(UrlProblem::Secret),
            Some((user, place)) => (user, place),
            None => ("", authority),
        };
        match tail {
            "" | "/" => {}
            _ if tail.starts_with('/') => return wrong("names a database; all databases of the server are backed up"),
            _ => return wrong("holds more than user, host and port"),
        }
        let Some(user) = percent_decode(user) else {
            return bad("holds a `%` that does not begin an encoded character (write `%` as %25)");
        };
        let (host, port) = split_port(place)?;
        let host = match parse_host(host)? {
            PostgresHost::Tcp(host) if !host.is_empty() => host,
            PostgresHost::Tcp(_) => return wrong("names no host"),
            PostgresHost::Unix(_) => return wrong("a unix socket cannot be used"),
        };
        let port = match port.map(str::parse::<u16>) {
            None => DEFAULT_PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return bad("the port is not a number from 1 to 65535"),
        };
        Ok(Self { host, port, user: (!user.is_empty()).then_some(user) })
    }

    /// Host and port, as a person writes them.
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for RedisEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis://")?;
        if let Some(user) = &self.user {
            write!(f, "{}@", percent_encode(user, b""))?;
        }
        f.write_str(&self.address())
    }
}

/// A Redis server as a source, or as the target of a restore.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where it is, and the user.
    pub endpoint: RedisEndpoint,
    /// Where the password comes from; read it with [`PasswordSource::read`].
    pub password: PasswordSource,
    /// Take a dump through the server's disk also where that may harm it.
    pub allow_server_dump: bool,
}

impl RedisConfig {
    /// The same source at another address, for `restore --target NAME=URL`. The user is the URL's, else this source's; the
    /// password is the given one, else this source's.
    ///
    /// # Errors
    /// A URL that is none, or one with a password.
    pub fn with_url(&self, url: &str, password: Option<SecretString>) -> Result<Self, ConfigError> {
        let mut endpoint = RedisEndpoint::parse(url)
            .map_err(|problem| url_error(problem, Place::argument("--target"), REDIS_SECRET_HINT))?;
        if endpoint.user.is_none() {
            endpoint.user.clone_from(&self.endpoint.user);
        }
        let mut config = self.clone();
        config.endpoint = endpoint;
        if let Some(password) = password {
            config.password = PasswordSource::Given(password);
        }
        Ok(config)
    }
}
