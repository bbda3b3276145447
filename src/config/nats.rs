//! How a NATS server is reached and which of its streams are backed up.

use secrecy::SecretString;

use super::endpoint::{Endpoint, Form};
use super::error::{ConfigError, Place};
use super::postgres::{NamePattern, PasswordSource};

/// `nats://[user@]host[:port]`. One server: clusters are not supported yet.
pub(super) const NATS: Form = Form {
    product: "NATS",
    scheme: "nats",
    tls_scheme: "tls",
    default_port: 4222,
    example: "nats://host:4222 or nats://user@host:4222",
    path: "holds a path, which a NATS url has not",
    secret_hint: "put the password into a file named by the source's `password_file`, or into ALTLAS_BACKUP_<NAME>_PASSWORD; \
                  a token into one named by `token_file`",
};

/// A NATS server with JetStream as a source, or as the target of a restore.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Where it is, and the user; without one, the secret is a token.
    pub endpoint: Endpoint,
    /// Where the user's password, or the token, comes from; read it with [`PasswordSource::read`].
    pub secret: PasswordSource,
    /// Which streams; at least one pattern.
    pub streams: Vec<NamePattern>,
}

impl NatsConfig {
    /// A throwaway server on this machine.
    pub fn local(port: u16, user: &str, secret: PasswordSource) -> Self {
        Self::scratch(Endpoint::local(&NATS, port, Some(user)), secret)
    }

    pub(super) fn scratch(endpoint: Endpoint, secret: PasswordSource) -> Self {
        Self { endpoint, secret, streams: Vec::new() }
    }

    /// The same source at another address, for `restore --target NAME=URL`. The user is the URL's, else this source's; the
    /// password or token is the given one, else this source's.
    ///
    /// # Errors
    /// A URL that is none, or one with a password.
    pub fn with_url(&self, url: &str, secret: Option<SecretString>) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        config.endpoint = self.endpoint.replaced(url)?;
        match secret {
            Some(secret) => config.secret = PasswordSource::Given(secret),
            // A token is nobody's password.
            None if config.endpoint.user.is_some() != self.endpoint.user.is_some() => {
                return Err(ConfigError::BadValue {
                    at: Box::new(Place::argument("--target")),
                    problem: "names a user, and the source's secret is a token".to_owned(),
                    hint: Some("set ALTLAS_BACKUP_TARGET_<NAME>_PASSWORD to the user's password".to_owned()),
                });
            }
            None => {}
        }
        Ok(config)
    }
}
