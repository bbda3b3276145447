//! Finds the configuration file, reads it, and makes a checked [`Config`] of it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use crate::crypt::Recipient;

use super::endpoint::{Endpoint, Form};
use super::error::{ConfigError, Place, shown};
use super::nats::NATS;
use super::postgres::{POSTGRES_SECRET_HINT, PostgresUrl, url_error};
use super::reader::{Document, Section};
use super::redis::REDIS;
use super::url::{RepositoryUrl, parse_endpoint};
use super::{
    BackupConfig, Config, DEFAULT_COMPRESSION_LEVEL, EncryptionConfig, Limits, NamePattern, NatsConfig, PasswordSource,
    PostgresConfig, PostgresHost, RedisConfig, RepositoryConfig, S3Config, SourceConfig, SourceName, SourceSettings,
    TlsMode, alerts, keys, retention, schedule, scratch,
};

/// The environment variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "ALTLAS_BACKUP_CONFIG";
/// Where the file is looked for when nothing names it, in order.
pub const DEFAULT_PATHS: [&str; 2] = ["./altlas-backup.toml", "/etc/altlas-backup/altlas-backup.toml"];

/// A longer file is not ours.
const MOST_BYTES: u64 = 1024 * 1024;
const HOUR: Duration = Duration::from_secs(3600);
const DEFAULT_GRACE: Duration = Duration::from_secs(72 * 3600);
const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);
const DEFAULT_REGION: &str = "us-east-1";
pub(super) const DEFAULT_WORKERS: u32 = 2;
const DEFAULT_EPOCH_DAYS: u32 = 30;
pub(super) const DEFAULT_LOCK_TIMEOUT: Duration = Duration::from_secs(30);

impl Config {
    /// Reads and checks the configuration: of `path`, else of the file that `ALTLAS_BACKUP_CONFIG` names, else of the
    /// first of [`DEFAULT_PATHS`] that is there. `repository_override` (`--repository`) takes the place of
    /// `repository.url`. Secrets are not read yet.
    ///
    /// # Errors
    /// No file, an unreadable one, or whatever is wrong in it: all of that at once, except after a syntax error.
    pub fn load(
        path: Option<&Path>,
        repository_override: Option<&str>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let named = path.map(Path::to_owned);
        let named = named.or_else(|| env(CONFIG_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from));
        let path = match named {
            Some(path) => path,
            None => find(&DEFAULT_PATHS.map(PathBuf::from))?,
        };
        let text = read(&path).map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        Self::from_text(&text, &path, repository_override)
    }

    /// Like [`Config::load`], from text that stands for the file `origin`.
    ///
    /// # Errors
    /// Whatever is wrong in the text.
    pub fn from_text(text: &str, origin: &Path, repository_override: Option<&str>) -> Result<Self, ConfigError> {
        let doc = Document::new(origin, text);
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            at: doc.place(error.span().map(|span| span.start), String::new()),
            problem: shown(error.message()),
        })?;
        let config = read_config(&Section::root(&doc, table.get_ref()), origin, repository_override);
        doc.finish()?;
        // Nothing was reported, so nothing that must be there is absent; the error is for a mistake of ours.
        config.ok_or_else(|| ConfigError::Syntax {
            at: Box::new(Place { file: Some(origin.to_owned()), position: None, key: String::new() }),
            problem: "incomplete, without a known reason (this is a bug)".to_owned(),
        })
    }
}

/// The first that is there, even as a broken link or in a folder we may not look into: reading it says what is wrong.
pub(super) fn find(candidates: &[PathBuf]) -> Result<PathBuf, ConfigError> {
    let there = |path: &&PathBuf| match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory),
    };
    candidates.iter().find(there).cloned().ok_or_else(|| ConfigError::NoFile { looked: candidates.to_vec() })
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    let wrong = |problem| std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong("it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text"))
}

fn read_config(root: &Section<'_>, origin: &Path, repository_override: Option<&str>) -> Option<Config> {
    let repository = read_repository(&root.section("repository"), repository_override);
    let limits = read_limits(&root.section("limits"));
    let mut sources: Vec<SourceConfig> = Vec::new();
    let mut names: Vec<SourceName> = Vec::new();
    for section in root.sections("source") {
        let name = read_name(&section, "a source's name");
        if let Some(name) = &name {
            if names.contains(name) {
                section.report(ConfigError::DuplicateSource { at: section.at("name"), name: name.to_string() });
            }
            names.push(name.clone());
        }
        sources.extend(read_source(&section, name));
    }
    let backup = BackupConfig { cut_order: read_cut_order(&root.section("backup"), &names) };
    let schedules = schedule::read(root, &names);
    let retention = retention::read(root);
    let (alerts, server, scratch) = (alerts::read(root), alerts::read_server(root), scratch::read(root));
    Some(Config {
        repository: repository?,
        backup,
        sources,
        schedules,
        retention,
        scratch,
        alerts,
        server,
        limits,
        origin: origin.to_owned(),
    })
}

/// Every source once, or nothing: one that was forgotten would be cut at a time that nobody chose.
fn read_cut_order(section: &Section<'_>, sources: &[SourceName]) -> Vec<SourceName> {
    let Some(texts) = section.texts("cut_order") else { return Vec::new() };
    let quoted = |name: &str| format!("`{}`", shown(name));
    let mut problems = Vec::new();
    let mut order: Vec<SourceName> = Vec::new();
    for text in texts {
        match sources.iter().find(|source| source.as_str() == text) {
            Some(name) if order.contains(name) => problems.push(format!("names {} twice", quoted(text))),
            Some(name) => order.push(name.clone()),
            None => problems.push(format!("names {}, which is no source", quoted(text))),
        }
    }
    let missing: Vec<String> =
        sources.iter().filter(|name| !order.contains(name)).map(|name| quoted(name.as_str())).collect();
    if !missing.is_empty() {
        problems.push(format!("does not name {}", missing.join(", ")));
    }
    if !problems.is_empty() {
        let all: Vec<String> = sources.iter().map(|name| format!("\"{name}\"")).collect();
        let hint = format!("name every source once, the first to be cut first: [{}]", all.join(", "));
        section.bad("cut_order", problems.join("; "), Some(hint));
    }
    order
}

fn read_repository(section: &Section<'_>, repository_override: Option<&str>) -> Option<RepositoryConfig> {
    let url = match repository_override {
        Some(text) => RepositoryUrl::parse(text).map_err(|problem| (problem, Place::argument("--repository"))),
        None => match section.required_text("url") {
            Some(text) => RepositoryUrl::parse(text).map_err(|problem| (problem, *section.at("url"))),
            None => return read_repository_rest(section, None),
        },
    };
    let url = url.map_err(|(problem, at)| section.report(url_error(problem, at, S3_SECRET_HINT))).ok();
    read_repository_rest(section, url)
}

/// Where S3 credentials belong.
const S3_SECRET_HINT: &str = "name files with `repository.s3.access_key_id_file` and `repository.s3.secret_access_key_file`, \
                              or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";

fn read_repository_rest(section: &Section<'_>, url: Option<RepositoryUrl>) -> Option<RepositoryConfig> {
    let s3 = read_s3(&section.section("s3"));
    let encryption = section.has("encryption").then(|| read_encryption(&section.section("encryption")));
    let compression_level = section.integer("compression_level", 1..=19).unwrap_or(DEFAULT_COMPRESSION_LEVEL);
    let epoch_days = section.integer("epoch_days", 1..=366).unwrap_or(DEFAULT_EPOCH_DAYS);
    let grace = section.duration("grace", HOUR..=YEAR, "1h to 366d").unwrap_or(DEFAULT_GRACE);
    let id = section.text("id").map(str::to_owned);
    Some(RepositoryConfig { url: url?, id, s3, compression_level, epoch_days, grace, encryption })
}

fn read_encryption(section: &Section<'_>) -> EncryptionConfig {
    let recipients = read_recipients(section, "recipients");
    if recipients.is_empty() && section.texts("recipients").is_none_or(|texts| texts.is_empty()) {
        let hint = "`altlas-backup keygen` makes a key; without the section nothing is encrypted".to_owned();
        section.bad("recipients", "names nobody to encrypt to", Some(hint));
    }
    EncryptionConfig {
        recipients,
        catalog_recipients: read_recipients(section, "catalog_recipients"),
        catalog_identity_file: section.path("catalog_identity_file"),
        identity_file: section.path("identity_file"),
    }
}

/// A list of age recipients. What is none is named by its place and not repeated: it may be a secret.
fn read_recipients(section: &Section<'_>, name: &str) -> Vec<Recipient> {
    let mut recipients: Vec<Recipient> = Vec::new();
    for (index, text) in section.texts(name).unwrap_or_default().into_iter().enumerate() {
        match text.parse() {
            Ok(recipient) if recipients.contains(&recipient) => {
                section.bad(name, format!("[{index}] is there twice"), None);
            }
            Ok(recipient) => recipients.push(recipient),
            Err(error) => section.bad(name, format!("[{index}] {error}"), None),
        }
    }
    recipients
}

fn read_s3(section: &Section<'_>) -> S3Config {
    let endpoint = section.text("endpoint").and_then(|text| {
        parse_endpoint(text)
            .map_err(|problem| section.report(url_error(problem, *section.at("endpoint"), S3_SECRET_HINT)))
            .ok()
    });
    let region = section.text("region").unwrap_or(DEFAULT_REGION);
    if !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        section.bad("region", "a region's name has letters, digits, `-` and `_` only", None);
    }
    S3Config {
        path_style: section.boolean("path_style").unwrap_or(endpoint.is_some()),
        endpoint,
        region: region.to_owned(),
        access_key_id_file: section.path("access_key_id_file"),
        secret_access_key_file: section.path("secret_access_key_file"),
        session_token_file: section.path("session_token_file"),
        ca_file: section.path("ca_file"),
    }
}

fn read_limits(section: &Section<'_>) -> Limits {
    let default = Limits::default();
    Limits {
        memory_mib: section.integer("memory_mib", 96..=4096).unwrap_or(default.memory_mib),
        uploads: section.integer("uploads", 1..=64).unwrap_or(default.uploads),
    }
}

/// A name that becomes part of objects' keys; `what` says whose.
pub(super) fn read_name(section: &Section<'_>, what: &str) -> Option<SourceName> {
    let text = section.required_text("name")?;
    let name = SourceName::new(text);
    if name.is_none() {
        let problem = format!("`{}` cannot be {what}", shown(text));
        let hint = "a name has 1 to 63 lower-case letters, digits and hyphens, and begins with a letter or digit";
        section.bad("name", problem, Some(hint.to_owned()));
    }
    name
}

fn read_source(section: &Section<'_>, name: Option<SourceName>) -> Option<SourceConfig> {
    let read: fn(&Section<'_>, Option<&SourceName>) -> Option<SourceSettings> = match section.required_text("kind") {
        Some("postgres") => |section, name| read_postgres(section, name).map(SourceSettings::Postgres),
        Some("redis") => |section, name| read_redis(section, name).map(SourceSettings::Redis),
        Some("nats") => |section, name| read_nats(section, name).map(SourceSettings::Nats),
        Some(kind) => {
            let hint = match keys::nearest_of(kind, keys::KINDS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the kinds this version knows: {}", keys::KINDS.join(", ")),
            };
            section.bad("kind", format!("`{}` is not a kind of source", shown(kind)), Some(hint));
            return None;
        }
        None => {
            section.check_keys();
            return None;
        }
    };
    section.check_keys_of(section.text("kind").unwrap_or_default());
    let allow_empty = section.boolean("allow_empty").unwrap_or(false);
    let settings = read(section, name.as_ref());
    Some(SourceConfig { name: name?, allow_empty, settings: settings? })
}

/// Where this source's password belongs.
fn secret_hint(name: Option<&SourceName>, general: &str) -> String {
    match name {
        Some(name) => format!(
            "put the password into a file named by `password_file`, or into the environment variable {}",
            name.password_variable()
        ),
        None => general.to_owned(),
    }
}

fn read_password(section: &Section<'_>, name: Option<&SourceName>) -> Option<PasswordSource> {
    match (section.path("password_file"), name) {
        (Some(path), _) => Some(PasswordSource::File { path, key: section.at("password_file").key }),
        (None, Some(name)) => Some(PasswordSource::variable_of(name)),
        (None, None) => None,
    }
}

fn read_redis(section: &Section<'_>, name: Option<&SourceName>) -> Option<RedisConfig> {
    let endpoint = read_endpoint(section, name, &REDIS);
    let password = read_password(section, name);
    let allow_server_dump = section.boolean("allow_server_dump").unwrap_or(false);
    Some(RedisConfig { endpoint: endpoint?, password: password?, allow_server_dump })
}

fn read_nats(section: &Section<'_>, name: Option<&SourceName>) -> Option<NatsConfig> {
    let endpoint = read_endpoint(section, name, &NATS);
    let password = read_password(section, name);
    let token = section.path("token_file");
    let has_user = endpoint.as_ref().map(|endpoint| endpoint.user.is_some());
    let secret = match (token, has_user) {
        (Some(_), Some(true)) => {
            let hint = "a user has a password (`password_file`); without a user, a token opens the server".to_owned();
            section.bad("token_file", "there is a user too", Some(hint));
            None
        }
        (Some(_), _) if section.path("password_file").is_some() => {
            section.bad("token_file", "there is a password too", Some("keep one of the two".to_owned()));
            None
        }
        (Some(path), _) => Some(PasswordSource::File { path, key: section.at("token_file").key }),
        (None, Some(false)) if section.path("password_file").is_some() => {
            let hint = "name the user with `username`; a token belongs into a file named by `token_file`".to_owned();
            section.bad("password_file", "there is no user whose password it could be", Some(hint));
            None
        }
        (None, _) => password,
    };
    let streams = read_patterns(section, "streams", "all streams");
    Some(NatsConfig { endpoint: endpoint?, secret: secret?, streams })
}

/// `url` and `username`.
fn read_endpoint(section: &Section<'_>, name: Option<&SourceName>, form: &'static Form) -> Option<Endpoint> {
    let endpoint = section.required_text("url").and_then(|text| {
        let hint = secret_hint(name, form.secret_hint);
        Endpoint::parse(form, text)
            .map_err(|problem| section.report(url_error(problem, *section.at("url"), &hint)))
            .ok()
    });
    let username = section.text("username").map(str::to_owned);
    if username.is_some() && endpoint.as_ref().is_some_and(|endpoint| endpoint.user.is_some()) {
        section.bad("username", "the url names a user too", Some("keep one of the two".to_owned()));
    }
    let mut endpoint = endpoint?;
    endpoint.user = endpoint.user.or(username);
    Some(endpoint)
}

fn read_postgres(section: &Section<'_>, name: Option<&SourceName>) -> Option<PostgresConfig> {
    let url = section.required_text("url").and_then(|text| {
        let hint = secret_hint(name, POSTGRES_SECRET_HINT);
        PostgresUrl::parse(text).map_err(|problem| section.report(url_error(problem, *section.at("url"), &hint))).ok()
    });
    let ca_file = section.path("ca_file");
    let tls = read_tls(section, url.as_ref(), ca_file.is_some());
    let password = read_password(section, name);
    let databases = read_patterns(section, "databases", "all databases");
    let tables = read_patterns(section, "tables", "all tables");
    let excluded = |key: &str| match section.texts(key) {
        Some(texts) if !texts.is_empty() => read_patterns(section, key, "what is left out"),
        _ => Vec::new(),
    };
    let (exclude_databases, exclude_tables) = (excluded("exclude_databases"), excluded("exclude_tables"));
    let tools_dir = section.path("tools_dir");
    let workers = section.integer("workers", 1..=16).unwrap_or(DEFAULT_WORKERS);
    let lock_timeout = section.duration("lock_timeout", Duration::from_secs(1)..=HOUR, "1s to 1h");
    let copy_format = section.text("copy_format").unwrap_or("binary");
    if !["binary", "text"].contains(&copy_format) {
        section.bad("copy_format", "must be one of binary, text", None);
    }
    Some(PostgresConfig {
        endpoint: url?.endpoint,
        password: password?,
        tls,
        ca_file,
        databases,
        exclude_databases,
        tables,
        exclude_tables,
        tools_dir,
        workers,
        lock_timeout: lock_timeout.unwrap_or(DEFAULT_LOCK_TIMEOUT),
        copy_text: copy_format == "text",
        is_own: false,
    })
}

fn read_tls(section: &Section<'_>, url: Option<&PostgresUrl>, has_ca: bool) -> Option<TlsMode> {
    let written = section.text("tls");
    let key = written.and_then(TlsMode::parse);
    if let (Some(text), None) = (written, key) {
        let hint = keys::nearest_of(text, TlsMode::NAMES).map(|near| format!("did you mean \"{near}\"?"));
        section.bad("tls", format!("must be one of {}", TlsMode::NAMES.join(", ")), hint);
    }
    let from_url = url.and_then(|url| url.tls);
    if key.is_some() && from_url.is_some() {
        section.bad("tls", "the url's sslmode says it too", Some("keep one of the two".to_owned()));
    }
    let mode = key.or(from_url);
    if let Some(mode) = mode {
        let unix = url.is_some_and(|url| matches!(url.endpoint.host, PostgresHost::Unix(_)));
        if unix && mode != TlsMode::Disable && key.is_some() {
            section.bad("tls", "a unix socket has no TLS", None);
        }
        if has_ca && mode != TlsMode::VerifyFull {
            let problem = format!("is not used with tls \"{}\", which checks no certificate", mode.as_str());
            section.bad("ca_file", problem, Some("set `tls = \"verify-full\"`, or remove `ca_file`".to_owned()));
        }
    }
    mode
}

/// A list of names with wildcards; everything where there is none.
pub(super) fn read_patterns(section: &Section<'_>, key: &str, all: &str) -> Vec<NamePattern> {
    let texts = section.texts(key).unwrap_or_else(|| vec!["*"]);
    let patterns: Vec<NamePattern> = texts.iter().filter_map(|text| NamePattern::new(text)).collect();
    if patterns.is_empty() || patterns.len() < texts.len() {
        section.bad(key, "is empty or holds an empty name", Some(format!("{all}: [\"*\"]")));
    }
    patterns
}
