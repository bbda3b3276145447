//! Where backups are proved: `[scratch]`, the throwaway servers of a verification.

use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::nats::NATS;
use super::postgres::{PostgresUrl, url_error};
use super::reader::Section;
use super::redis::REDIS;
use super::{NatsConfig, PasswordSource, PostgresConfig, RedisConfig, keys};

const SECOND: Duration = Duration::from_secs(1);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
const SECRET_HINT: &str = "put the password into a file named by the key that ends in `_password_file`";

/// Where throwaway servers come from.
#[derive(Clone, Debug)]
pub enum ScratchMode {
    /// Started from programs of this machine, in a folder of their own, and removed afterwards.
    Local,
    /// Given, as sidecars are: emptied before, and left empty.
    Given(Box<GivenServers>),
}

/// Addresses of throwaway servers. **Whatever they hold is gone.**
#[derive(Clone, Debug, Default)]
pub struct GivenServers {
    /// A PostgreSQL, with a superuser.
    pub postgres: Option<PostgresConfig>,
    /// A Redis.
    pub redis: Option<RedisConfig>,
    /// A NATS with JetStream.
    pub nats: Option<NatsConfig>,
}

/// The throwaway servers of a verification.
#[derive(Clone, Debug)]
pub struct ScratchConfig {
    /// Where they come from.
    pub mode: ScratchMode,
    /// Where the folders of local ones are made; absent: the system's folder for temporary files.
    pub folder: Option<PathBuf>,
    /// The operating system's user that local PostgreSQL servers run as, where we are root; absent: `altlas-scratch`, else `nobody`.
    pub postgres_user: Option<String>,
    /// Run a local PostgreSQL also as a user that runs another one: what is in a backup could then change that one's data.
    pub allow_shared_user: bool,
    /// The folder with PostgreSQL's server programs; absent: the usual places, for the snapshot's major version.
    pub postgres_bin: Option<PathBuf>,
    /// Redis' server program; absent: the usual places.
    pub redis_server: Option<PathBuf>,
    /// NATS' server program; absent: the usual places.
    pub nats_server: Option<PathBuf>,
    /// How long one source's verification may take before it is inconclusive.
    pub timeout: Duration,
}

pub(super) fn read(root: &Section<'_>) -> ScratchConfig {
    let section = root.section("scratch");
    let timeout = section.duration("timeout", SECOND..=WEEK, "1s to 7d").unwrap_or(DEFAULT_TIMEOUT);
    let given = read_given(&section);
    const GIVEN: [&str; 6] = [
        "postgres_url",
        "postgres_password_file",
        "redis_url",
        "redis_password_file",
        "nats_url",
        "nats_password_file",
    ];
    let mode = match section.text("mode").unwrap_or("local") {
        "local" => {
            for name in GIVEN.iter().filter(|name| section.has(name)) {
                let hint = "set `mode = \"given\"`, or remove it".to_owned();
                section.bad(name, "is not used where servers are started here", Some(hint));
            }
            ScratchMode::Local
        }
        "given" => {
            if ["postgres_url", "redis_url", "nats_url"].iter().all(|name| !section.has(name)) {
                section.bad(
                    "mode",
                    "no server is given",
                    Some("set `postgres_url`, `redis_url`, `nats_url`".to_owned()),
                );
            }
            ScratchMode::Given(Box::new(given))
        }
        other => {
            let near = keys::nearest_of(other, &["local", "given"]);
            let hint = near.map(|near| format!("did you mean \"{near}\"?"));
            section.bad("mode", "must be \"local\" or \"given\"", hint);
            ScratchMode::Local
        }
    };
    ScratchConfig {
        mode,
        folder: section.path("folder"),
        postgres_user: section.text("postgres_user").map(str::to_owned),
        allow_shared_user: section.boolean("allow_shared_user").unwrap_or(false),
        postgres_bin: section.path("postgres_bin"),
        redis_server: section.path("redis_server"),
        nats_server: section.path("nats_server"),
        timeout,
    }
}

fn read_given(section: &Section<'_>) -> GivenServers {
    let password = |name: &str| match section.path(name) {
        Some(path) => PasswordSource::File { path, key: section.at(name).key },
        None => PasswordSource::Nothing,
    };
    let endpoint = |name: &str, form| {
        section.text(name).and_then(|text| {
            Endpoint::parse(form, text)
                .map_err(|problem| section.report(url_error(problem, *section.at(name), SECRET_HINT)))
                .ok()
        })
    };
    let postgres = section.text("postgres_url").and_then(|text| {
        PostgresUrl::parse(text)
            .map_err(|problem| section.report(url_error(problem, *section.at("postgres_url"), SECRET_HINT)))
            .ok()
    });
    GivenServers {
        postgres: postgres.map(|url| {
            let mut config = PostgresConfig::scratch(url.endpoint, password("postgres_password_file"));
            config.tls = url.tls;
            config.tools_dir = section.path("postgres_bin");
            config
        }),
        redis: endpoint("redis_url", &REDIS)
            .map(|endpoint| RedisConfig::scratch(endpoint, password("redis_password_file"))),
        nats: endpoint("nats_url", &NATS).map(|endpoint| NatsConfig::scratch(endpoint, password("nats_password_file"))),
    }
}
