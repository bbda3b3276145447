//! One Redis server: address, login, and ordinary commands through the `redis` crate.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, aio::MultiplexedConnection,
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    error::RedisError,
    wire::{ANSWER_TIMEOUT, error_text},
};
use crate::config::RedisConfig;

/// How long a connection may take to be made, login included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// One server, with what is needed to log in.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) config: RedisConfig,
    pub(super) password: Option<SecretString>,
}

/// A connection for ordinary commands.
pub(super) struct Session {
    connection: MultiplexedConnection,
    server: String,
}

impl Server {
    pub(super) fn new(config: RedisConfig, password: Option<SecretString>) -> Self {
        Self { config, password }
    }

    /// Host and port, for messages.
    pub(super) fn name(&self) -> String {
        self.config.endpoint.address()
    }

    /// User and password, where there is something to log in with. A user without a password logs in with an empty one.
    pub(super) fn login(&self) -> Option<(&str, &str)> {
        let user = self.config.endpoint.user.as_deref();
        let password = self.password.as_ref().map(ExposeSecret::expose_secret);
        (user.is_some() || password.is_some()).then(|| (user.unwrap_or("default"), password.unwrap_or_default()))
    }

    /// Opens a connection for ordinary commands.
    pub(super) async fn session(&self) -> Result<Session, RedisError> {
        let failed = |error: &redis::RedisError| failure(&self.name(), "connecting", error, true);
        let endpoint = &self.config.endpoint;
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        if let Some((user, password)) = self.login() {
            login = login.set_username(user).set_password(password);
        }
        let info = ConnectionAddr::Tcp(endpoint.host.clone(), endpoint.port)
            .into_connection_info()
            .map_err(|error| failed(&error))?
            .set_redis_settings(login);
        let client = Client::open(info).map_err(|error| failed(&error))?;
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let connection =
            client.get_multiplexed_async_connection_with_config(&limits).await.map_err(|error| failed(&error))?;
        Ok(Session { connection, server: self.name() })
    }
}

impl Session {
    /// Asks one command, such as `["CONFIG", "GET", "save"]`.
    pub(super) async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> Result<T, RedisError> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(|error| {
            let what: Vec<&str> = words.iter().take(2).copied().collect();
            failure(&self.server, &what.join(" "), &error, false)
        })
    }
}

/// The crate's error in our words.
fn failure(server: &str, what: &str, error: &redis::RedisError, connecting: bool) -> RedisError {
    let (server, what) = (server.to_owned(), what.to_owned());
    let said = error.code().map(|code| match error.detail() {
        Some(detail) => format!("{code} {detail}"),
        None => code.to_owned(),
    });
    match said {
        Some(text) => RedisError::Said { server, what, text: error_text(text.as_bytes()) },
        // The crate has words of its own for a refused login.
        None if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            RedisError::Said { server, what, text: "WRONGPASS it refuses this user with this password".into() }
        }
        None if connecting => RedisError::Unreachable { server, detail: error_text(error.to_string().as_bytes()) },
        None => RedisError::Broken { server, what, detail: error_text(error.to_string().as_bytes()) },
    }
}

impl RedisError {
    /// Did the server say that the user may not?
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Said { text, .. } if text.starts_with("NOPERM"))
    }
}
