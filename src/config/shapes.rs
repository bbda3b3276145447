//! What a configuration says once it is read and checked.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::{
    AlertsConfig, ConfigError, NatsConfig, PasswordSource, PostgresConfig, RedisConfig, RepositoryUrl, RetentionConfig,
    ScheduleConfig, ScratchConfig, ServerConfig,
};
use crate::crypt::Recipient;

/// The zstd level of parts where none is configured: level 1 was both faster and smaller than 3 in our measurements.
pub const DEFAULT_COMPRESSION_LEVEL: i32 = 1;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where backups are kept, and how.
    pub repository: RepositoryConfig,
    /// How backups are made.
    pub backup: BackupConfig,
    /// What is backed up, in the file's order; may be empty.
    pub sources: Vec<SourceConfig>,
    /// When backups are made, in the file's order; may be empty.
    pub schedules: Vec<ScheduleConfig>,
    /// What is kept; absent: everything.
    pub retention: Option<RetentionConfig>,
    /// Where backups are proved.
    pub scratch: ScratchConfig,
    /// Who is told when something is wrong.
    pub alerts: AlertsConfig,
    /// The daemon's HTTP server.
    pub server: ServerConfig,
    /// What a run may use.
    pub limits: Limits,
    /// The file all this was read from.
    pub origin: PathBuf,
}

impl Config {
    /// The sources with these names in the file's order, each once; all of them where no name is given.
    ///
    /// # Errors
    /// A name that is not configured; no source at all.
    pub fn sources_matching(&self, names: &[String]) -> Result<Vec<&SourceConfig>, ConfigError> {
        if self.sources.is_empty() {
            return Err(ConfigError::NoSources { file: self.origin.clone() });
        }
        let known = |name: &String| self.sources.iter().any(|source| source.name.as_str() == name);
        if let Some(name) = names.iter().find(|name| !known(name)) {
            return Err(ConfigError::UnknownSource {
                name: name.clone(),
                file: self.origin.clone(),
                known: self.sources.iter().map(|source| source.name.to_string()).collect(),
            });
        }
        let wanted = |source: &&SourceConfig| names.is_empty() || names.iter().any(|n| n == source.name.as_str());
        Ok(self.sources.iter().filter(wanted).collect())
    }

    /// When this source is cut: the lower before the higher, equal ones in the file's order.
    pub fn cut_rank(&self, source: &SourceConfig) -> usize {
        let configured = self.backup.cut_order.iter().position(|name| *name == source.name);
        configured.unwrap_or_else(|| source.settings.cut_rank())
    }
}

/// How backups are made.
#[derive(Clone, Debug, Default)]
pub struct BackupConfig {
    /// The order in which sources are cut, every one of them once; empty: by their kinds.
    pub cut_order: Vec<SourceName>,
}

/// Where backups are kept, and how.
#[derive(Clone, Debug)]
pub struct RepositoryConfig {
    /// Where.
    pub url: RepositoryUrl,
    /// Which repository must be there; absent: any.
    pub id: Option<String>,
    /// How its server is reached; only used with an `s3://` URL.
    pub s3: S3Config,
    /// zstd's level, 1 to 19.
    pub compression_level: i32,
    /// Days an epoch lasts, 1 to 366.
    pub epoch_days: u32,
    /// How old an object must be before it may be swept; at least an hour.
    pub grace: Duration,
    /// To whom its objects are encrypted; absent: they are stored in clear.
    pub encryption: Option<EncryptionConfig>,
}

/// To whom a repository is encrypted, and what this machine holds of it. The identities are read by
/// [`EncryptionConfig::identities`].
#[derive(Clone, Debug)]
pub struct EncryptionConfig {
    /// Whose identities open everything; at least one.
    pub recipients: Vec<Recipient>,
    /// Public halves of catalogue identities that this machine does not hold, the current one first: for machines that restore.
    pub catalog_recipients: Vec<Recipient>,
    /// The file with the catalogue identity, and with older ones after it.
    pub catalog_identity_file: Option<PathBuf>,
    /// The file with identities of recipients.
    pub identity_file: Option<PathBuf>,
}

/// How an S3 server is reached. The credentials are read by [`S3Config::credentials`].
#[derive(Clone, Debug)]
pub struct S3Config {
    /// The server; absent: AWS.
    pub endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// Bucket in the path instead of the host's name.
    pub path_style: bool,
    /// The file with the access key id.
    pub access_key_id_file: Option<PathBuf>,
    /// The file with the secret access key.
    pub secret_access_key_file: Option<PathBuf>,
    /// The file with the session token.
    pub session_token_file: Option<PathBuf>,
    /// Certificates (PEM) that are trusted in place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// One server that is backed up.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Its name in the repository.
    pub name: SourceName,
    /// Is a server or pattern that yields nothing fine?
    pub allow_empty: bool,
    /// What depends on its kind.
    pub settings: SourceSettings,
}

/// What depends on a source's kind.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SourceSettings {
    /// `kind = "postgres"`.
    Postgres(PostgresConfig),
    /// `kind = "redis"`.
    Redis(RedisConfig),
    /// `kind = "nats"`.
    Nats(NatsConfig),
}

impl SourceSettings {
    /// The kind as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Redis(_) => "redis",
            Self::Nats(_) => "nats",
        }
    }

    /// When it is cut, where no order is configured: what refers to another source comes before it. JetStream takes
    /// longest to fix its instants.
    fn cut_rank(&self) -> usize {
        match self {
            Self::Nats(_) => 0,
            Self::Redis(_) => 1,
            Self::Postgres(_) => 2,
        }
    }

    /// What an empty server has, in words.
    pub fn nothing(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "no user table",
            Self::Redis(_) => "no key",
            Self::Nats(_) => "no stream",
        }
    }

    /// The same source at another address, for `restore --target`; the password is the given one, else this source's.
    ///
    /// # Errors
    /// A URL that is none, or one with a password.
    pub fn at(&self, url: &str, password: Option<secrecy::SecretString>) -> Result<Self, ConfigError> {
        match self {
            Self::Postgres(config) => Ok(Self::Postgres(config.with_url(url, password)?)),
            Self::Redis(config) => Ok(Self::Redis(config.with_url(url, password)?)),
            Self::Nats(config) => Ok(Self::Nats(config.with_url(url, password)?)),
        }
    }

    /// Where its password or token comes from.
    pub fn password(&self) -> &PasswordSource {
        match self {
            Self::Postgres(config) => &config.password,
            Self::Redis(config) => &config.password,
            Self::Nats(config) => &config.secret,
        }
    }
}

/// A source's name: `[a-z0-9][a-z0-9-]{0,62}`, for it becomes part of objects' keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(String);

impl SourceName {
    /// A name, where the text is one.
    pub fn new(text: &str) -> Option<Self> {
        let letter = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = (1..=63).contains(&text.len())
            && text.as_bytes().first().is_some_and(letter)
            && text.as_bytes().iter().all(|b| letter(b) || *b == b'-');
        valid.then(|| Self(text.to_owned()))
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// `ALTLAS_BACKUP_<NAME>_PASSWORD`: the name in upper case, `_` for `-`.
    pub fn password_variable(&self) -> String {
        format!("ALTLAS_BACKUP_{}_PASSWORD", self.0.to_ascii_uppercase().replace('-', "_"))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a run may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory for data under way, in MiB, 96 to 4096.
    pub memory_mib: u32,
    /// Uploads at once, 1 to 64.
    pub uploads: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_mib: 128, uploads: 8 }
    }
}
