//! The configuration file, its defaults, its checks, its secrets.
//!
//! [`Config::load`] finds the file, reads it and checks every value, and reports all the problems it saw, each with file,
//! line, column and key. A key this version does not know, or knows only as planned, is an error: a setting is never
//! ignored silently.
//!
//! Secrets are not part of the file: they come from files it names or from the environment, are read when they are needed,
//! and are [`secrecy::SecretString`]s from the first moment on. No message here repeats the text of a URL, for it may hold
//! a password that someone wrote there by mistake.

mod alerts;
mod endpoint;
mod error;
mod file;
mod keys;
mod nats;
mod postgres;
mod reader;
mod redis;
mod retention;
mod schedule;
mod scratch;
mod secret;
mod shapes;
#[cfg(test)]
mod tests;
mod url;

pub use alerts::{AlertsConfig, NotifierAddress, NotifierConfig, ServerConfig};
pub use endpoint::Endpoint;
pub use error::{ConfigError, Place};
pub use file::{CONFIG_VARIABLE, DEFAULT_PATHS};
pub use nats::NatsConfig;
pub use postgres::{NamePattern, PasswordSource, PostgresConfig, PostgresEndpoint, PostgresHost, TlsMode};
pub use redis::RedisConfig;
pub use retention::RetentionConfig;
pub use schedule::{CronPattern, ScheduleConfig};
pub use scratch::{GivenServers, ScratchConfig, ScratchMode};
pub use secret::{CATALOG_IDENTITY_VARIABLE, HeldIdentities, IDENTITY_VARIABLE, S3Credentials};
pub use shapes::{
    BackupConfig, Config, DEFAULT_COMPRESSION_LEVEL, EncryptionConfig, Limits, RepositoryConfig, S3Config,
    SourceConfig, SourceName, SourceSettings,
};
pub use url::RepositoryUrl;
