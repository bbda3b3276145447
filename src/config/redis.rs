//! How a Redis server is reached and how it may be dumped.

use secrecy::SecretString;

use super::endpoint::{Endpoint, Form};
use super::error::ConfigError;
use super::postgres::PasswordSource;

/// `redis://[user@]host[:port]`. A database is not part of it: a source is a whole server.
pub(super) const REDIS: Form = Form {
    product: "Redis",
    scheme: "redis",
    tls_scheme: "rediss",
    default_port: 6379,
    example: "redis://host:6379 or redis://user@host:6379",
    path: "names a database; all databases of the server are backed up",
    secret_hint: "put the password into a file named by the source's `password_file`, or into ALTLAS_BACKUP_<NAME>_PASSWORD",
};

/// A Redis server as a source, or as the target of a restore.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where it is, and the ACL user; without one, `default`.
    pub endpoint: Endpoint,
    /// Where the password comes from; read it with [`PasswordSource::read`].
    pub password: PasswordSource,
    /// Take a dump through the server's disk also where that may harm it.
    pub allow_server_dump: bool,
}

impl RedisConfig {
    /// A throwaway server on this machine.
    pub fn local(port: u16, password: PasswordSource) -> Self {
        Self::scratch(Endpoint::local(&REDIS, port, None), password)
    }

    pub(super) fn scratch(endpoint: Endpoint, password: PasswordSource) -> Self {
        Self { endpoint, password, allow_server_dump: true }
    }

    /// The same source at another address, for `restore --target NAME=URL`. The user is the URL's, else this source's; the
    /// password is the given one, else this source's.
    ///
    /// # Errors
    /// A URL that is none, or one with a password.
    pub fn with_url(&self, url: &str, password: Option<SecretString>) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        config.endpoint = self.endpoint.replaced(url)?;
        if let Some(password) = password {
            config.password = PasswordSource::Given(password);
        }
        Ok(config)
    }
}
