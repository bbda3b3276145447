//! Tables of cases for the whole configuration.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod urls;

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use secrecy::{ExposeSecret, SecretString};

use super::postgres::PostgresUrl;
use super::url::{UrlProblem, parse_endpoint, percent_decode};
use super::*;

const EXAMPLE: &str = include_str!("../../../config/altlas-backup.toml");
const FILE: &str = "[repository]\nurl = \"file:///srv/backup\"\n";
const SOURCE: &str = "[[source]]\nname = \"db\"\nkind = \"postgres\"\nurl = \"postgres://u@db.example:5432/app\"\n";

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::from_text(text, Path::new("/etc/t.toml"), None)
}

fn postgres(config: &Config) -> &PostgresConfig {
    match &config.sources.first().unwrap().settings {
        SourceSettings::Postgres(postgres) => postgres,
        other => panic!("{}", other.kind()),
    }
}

/// The source of [`SOURCE`] with more lines, or another URL.
fn source_with(url: &str, lines: &str) -> Result<PostgresConfig, ConfigError> {
    let source = SOURCE.replace("postgres://u@db.example:5432/app", url);
    parse(&format!("{FILE}{source}{lines}\n")).map(|config| postgres(&config).clone())
}

/// The example's recipients are nobody's, so that a copy does not encrypt to a stranger; here they are somebody's.
fn example(text: &str) -> String {
    let mut text = text.to_owned();
    for nobody in ["age1…yours", "age1…an-escrow's", "age1…the-catalogue's"] {
        text = text.replace(nobody, &crate::crypt::Identity::generate().recipient().to_string());
    }
    text
}

#[test]
fn redis_urls() {
    let read = |url: &str, more: &str| {
        let text = format!("{FILE}[[source]]\nname = \"cache\"\nkind = \"redis\"\nurl = \"{url}\"\n{more}\n");
        match &parse(&text).unwrap().sources[0].settings {
            SourceSettings::Redis(redis) => redis.clone(),
            other => panic!("{}", other.kind()),
        }
    };
    for (url, more, want) in [
        ("redis://redis", "", "redis://redis:6379"),
        ("redis://redis:6380/", "", "redis://redis:6380"),
        ("redis://[::1]:7", "", "redis://[::1]:7"),
        ("redis://backup@10.0.0.1", "", "redis://backup@10.0.0.1:6379"),
        ("redis://a%40b@c", "", "redis://a%40b@c:6379"),
        ("redis://c", "username = \"backup\"", "redis://backup@c:6379"),
    ] {
        assert_eq!(read(url, more).endpoint.to_string(), want);
    }
    let config = read("redis://backup@c", "allow_server_dump = true");
    assert!(config.allow_server_dump && !read("redis://c", "").allow_server_dump);
    // A target's user is the source's where its URL names none.
    assert_eq!(config.with_url("redis://new:1", None).unwrap().endpoint.to_string(), "redis://backup@new:1");
    assert_eq!(config.with_url("redis://a@new", None).unwrap().endpoint.to_string(), "redis://a@new:6379");
    let error = config.with_url("redis://a:hunter2@new", None).unwrap_err().to_string();
    assert!(error.contains("--target") && !error.contains("hunter2"), "{error}");
}

#[test]
fn nats_secrets_and_streams() {
    let read = |more: &str| {
        let text = format!("{FILE}[[source]]\nname = \"messages\"\nkind = \"nats\"\nurl = \"nats://nats\"\n{more}\n");
        match &parse(&text).unwrap().sources[0].settings {
            SourceSettings::Nats(nats) => nats.clone(),
            other => panic!("{}", other.kind()),
        }
    };
    let plain = read("");
    assert_eq!(plain.endpoint.to_string(), "nats://nats:4222");
    assert_eq!(plain.streams.iter().map(NamePattern::as_str).collect::<Vec<_>>(), ["*"]);
    let variable = |name: &str| (name == "ALTLAS_BACKUP_MESSAGES_PASSWORD").then(|| "s3cret".to_owned());
    assert_eq!(plain.secret.read(&variable).unwrap().unwrap().expose_secret(), "s3cret");
    let file = |config: &NatsConfig| match &config.secret {
        PasswordSource::File { path, key } => (path.display().to_string(), key.clone()),
        other => panic!("{other:?}"),
    };
    let user = read("username = \"backup\"\npassword_file = \"/p\"\nstreams = [\"A\", \"KV_*\"]");
    assert_eq!(file(&user), ("/p".into(), "source[0].password_file".into()));
    assert_eq!(user.streams.len(), 2);
    assert_eq!(file(&read("token_file = \"/t\"")), ("/t".into(), "source[0].token_file".into()));
    assert_eq!(user.with_url("nats://new:1", None).unwrap().endpoint.to_string(), "nats://backup@new:1");
}

#[test]
fn schedules_retention_and_throwaway_servers() {
    let config = parse(&format!(
        "{FILE}{SOURCE}[[schedule]]\nname = \"nightly\"\ncron = \"0 1 * * *\"\ntimezone = \"Europe/Istanbul\"\njitter = \"10m\"\n\
         [[schedule]]\nname = \"hourly\"\ncron = \"@hourly\"\nverify = \"none\"\nprune = false\n\
         [retention]\nlast = 3\ndaily = 7\n[alerts]\ndeployment = \"alt-las\"\n[alerts.alertmanager]\nurl = \"http://am:9093\"\n\
         [scratch]\nmode = \"given\"\nnats_url = \"nats://u@127.0.0.1:4333\"\ntimeout = \"90s\"\n[server]\nlisten = \"[::]:9187\"\n"
    ))
    .unwrap();
    let [nightly, hourly] = &config.schedules[..] else { panic!() };
    assert_eq!((nightly.cron.as_str(), nightly.timezone.iana_name()), ("0 1 * * *", Some("Europe/Istanbul")));
    assert_eq!((nightly.verify, nightly.prune), (Some(crate::repository::Level::Restore), true));
    assert_eq!((hourly.verify, hourly.prune, hourly.jitter), (None, false, Duration::ZERO));
    assert_eq!(nightly.jitter, Duration::from_secs(600));
    assert_eq!(nightly.chooses(config.sources.iter().map(|source| &source.name)).len(), 1);
    let retention = config.retention.unwrap();
    assert_eq!((retention.last, retention.daily, retention.weekly, retention.monthly), (3, 7, 0, 0));
    assert_eq!(retention.expire_at_most_percent, 50);
    assert!(config.alerts.webhook.is_none() && config.alerts.alertmanager.is_some());
    assert_eq!(config.server.listen.port(), 9187);
    let ScratchMode::Given(servers) = &config.scratch.mode else { panic!() };
    assert!(servers.postgres.is_none() && servers.redis.is_none());
    // The secret of a source is never sent to a server that is given for a proof.
    assert!(matches!(servers.nats.as_ref().unwrap().secret, PasswordSource::Nothing));
    let bare = parse(FILE).unwrap();
    assert!(bare.schedules.is_empty() && bare.retention.is_none() && bare.alerts.webhook.is_none());
    assert!(matches!(bare.scratch.mode, ScratchMode::Local));
    assert_eq!(bare.server.listen.to_string(), "127.0.0.1:9187");
}

#[test]
fn the_example_must_be_edited() {
    let error = parse(EXAMPLE).unwrap_err().to_string();
    assert!(error.contains("`repository.encryption.recipients`: [0] is not an age recipient"), "{error}");
}

/// The settings that the example has commented out are there as `#key = value`, its prose as `# text`.
fn whole_example() -> String {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => setting.to_owned(),
        _ => line.to_owned(),
    };
    example(&EXAMPLE.lines().map(uncomment).collect::<Vec<_>>().join("\n"))
}

fn keys_of(table: &toml::Table, path: &str, out: &mut Vec<String>) {
    for (name, value) in table {
        let path = keys::join(path, name);
        match value {
            toml::Value::Table(inner) => keys_of(inner, &path, out),
            toml::Value::Array(list) if !list.is_empty() && list.iter().all(toml::Value::is_table) => {
                list.iter().filter_map(toml::Value::as_table).for_each(|inner| keys_of(inner, &path, out));
            }
            _ => out.push(path),
        }
    }
}

#[test]
fn the_example_is_valid_and_complete() {
    let config = parse(&example(EXAMPLE)).unwrap();
    assert_eq!(config.sources_matching(&[]).unwrap().len(), 3);
    // A token stands in place of a user and a password.
    let token = "token_file = \"/run/secrets/nats/token\"\n";
    // The address of a webhook is in one place.
    let urls = ["url = \"https://chat.example/hooks/backups\"\n", "url = \"http://alertmanager:9093\"\n"];
    // Throwaway servers are started here, or given.
    let given = "mode = \"local\"";
    for once in [token, urls[0], urls[1], given] {
        assert!(whole_example().contains(once), "{once}");
    }
    let whole = whole_example().replace(token, "").replace(given, "mode = \"given\"");
    parse(&urls.iter().fold(whole, |whole, url| whole.replace(url, ""))).unwrap();
    let mut found = Vec::new();
    keys_of(&whole_example().parse().unwrap(), "", &mut found);
    found.sort();
    found.dedup();
    let mut known: Vec<_> = keys::KEYS.iter().map(|key| (*key).to_owned()).collect();
    known.sort();
    assert_eq!(found, known);
}

#[test]
fn defaults() {
    let config = parse(&format!("{FILE}{SOURCE}")).unwrap();
    let r = &config.repository;
    assert_eq!(r.url, RepositoryUrl::File { path: "/srv/backup".into() });
    assert_eq!((r.compression_level, r.epoch_days, r.grace), (1, 30, Duration::from_secs(72 * 3600)));
    assert_eq!((r.s3.region.as_str(), r.s3.path_style, &r.s3.endpoint), ("us-east-1", false, &None));
    assert_eq!(config.limits, Limits { memory_mib: 128, uploads: 8 });
    let p = postgres(&config);
    assert_eq!((p.workers, p.lock_timeout, p.tls_mode()), (2, Duration::from_secs(30), TlsMode::VerifyFull));
    assert_eq!(p.databases.iter().map(NamePattern::as_str).collect::<Vec<_>>(), ["*"]);
    assert!(!config.sources[0].allow_empty && p.tools_dir.is_none());
    assert_eq!(config.origin, Path::new("/etc/t.toml"));
    let s3 = parse(&format!("{FILE}[repository.s3]\nendpoint = \"http://minio:9000\"\n")).unwrap().repository.s3;
    assert!(s3.path_style);
}

/// Text, what the message must hold, what the hint must hold (empty: no hint).
#[test]
fn problems_are_named() {
    let file = |more: &str| format!("{FILE}{more}");
    let source = |more: &str| format!("{FILE}{SOURCE}{more}");
    let redis = |url: &str, more: &str| {
        format!("{FILE}[[source]]\nname = \"cache\"\nkind = \"redis\"\nurl = \"{url}\"\n{more}\n")
    };
    let nats = |url: &str, more: &str| {
        format!("{FILE}[[source]]\nname = \"messages\"\nkind = \"nats\"\nurl = \"{url}\"\n{more}\n")
    };
    let url = |url: &str| format!("[repository]\nurl = \"{url}\"\n");
    let cases: Vec<(String, &str, &str)> = vec![
        (String::new(), "/etc/t.toml: `repository.url`: is missing", ""),
        ("repository = 3\n".into(), "`repository`: expected a table, found integer", ""),
        ("[repository]\n".into(), "/etc/t.toml:1:1: `repository.url`: is missing", ""),
        ("[repository\n".into(), "/etc/t.toml:1:12: syntax:", ""),
        ("a = 1\na = 2\n".into(), "/etc/t.toml:2:1: syntax: duplicate key", ""),
        ("[repository]\nurl = 3\n".into(), "/etc/t.toml:2:7: `repository.url`: expected a string, found integer", ""),
        (
            file("[repository.s3]\nendpont = \"x\"\n"),
            "/etc/t.toml:4:1: `repository.s3.endpont`: unknown key",
            "did you mean `repository.s3.endpoint`?",
        ),
        (file("[repository.s3]\nsecret_access_key = \"x\"\n"), "unknown key", "repository.s3.secret_access_key_file"),
        (file("[x]\n"), "`x`: unknown key", ""),
        (file("\"\\u001b[31m\" = 1\n"), "`repository.\\u{1b}[31m`: unknown key", ""),
        (file("compression_level = 20\n"), "`repository.compression_level`: must be from 1 to 19", ""),
        (file("compression_level = -1\n"), "must be from 1 to 19", ""),
        (file("compression_level = 99999999999999999999\n"), "must be from 1 to 19", ""),
        (file("epoch_days = 0\n"), "`repository.epoch_days`: must be from 1 to 366", ""),
        (file("epoch_days = 1.5\n"), "`repository.epoch_days`: expected an integer, found float", ""),
        (file("grace = \"59m\"\n"), "`repository.grace`: must be from 1h to 366d", ""),
        (file("grace = \"-72h\"\n"), "`repository.grace`: is not a span of time", "72h"),
        (file("grace = \"soon\"\n"), "is not a span of time", "72h"),
        (file("grace = 72\n"), "expected a time such as", ""),
        (
            file("[repository.encryption]\nrecipients = []\n"),
            "`repository.encryption.recipients`: names nobody",
            "keygen",
        ),
        (file("[repository.encryption]\n"), "`repository.encryption.recipients`: names nobody", "keygen"),
        (
            file("[repository.encryption]\nrecipients = [\"AGE-SECRET-KEY-1XYZ\"]\n"),
            "`repository.encryption.recipients`: [0] is an identity, the secret half",
            "",
        ),
        (
            file("[repository.encryption]\nrecipients = [\"age1nonsense\"]\n"),
            "`repository.encryption.recipients`: [0] is not an age recipient",
            "",
        ),
        (
            file("[repository.s3]\nca_file = \"/x/age-secret-key-1abc\"\n"),
            "`repository.s3.ca_file`: is a secret; here belongs the path",
            "file of its own",
        ),
        (file("[[schedule]]\nname = \"x\"\n"), "`schedule[0].cron`: is missing", ""),
        (
            file("[[schedule]]\nname = \"x\"\ncron = \"0 1 31 2 *\"\n"),
            "`schedule[0].cron`: is no cron pattern: it means no day of any year",
            "five fields",
        ),
        (
            file("[[schedule]]\nname = \"x\"\ncron = \"0 1 * *\"\n"),
            "`schedule[0].cron`: is no cron pattern",
            "five fields",
        ),
        (
            file("[[schedule]]\nname = \"x\"\ncron = \"0 0 1 * * *\"\n"),
            "`schedule[0].cron`: is no cron pattern",
            "five fields",
        ),
        (
            file("[[schedule]]\nname = \"x\"\ncron = \"0 1 * * *\"\ntimezone = \"Europe/Istambul\"\n"),
            "`schedule[0].timezone`: `Europe/Istambul` is no time zone",
            "IANA",
        ),
        (
            source("[[schedule]]\nname = \"x\"\ncron = \"0 1 * * *\"\nsources = [\"dbs\"]\n"),
            "`schedule[0].sources`: `dbs` is no source",
            "",
        ),
        (
            file("[[schedule]]\nname = \"x\"\ncron = \"0 1 * * *\"\nverify = \"restored\"\n"),
            "`schedule[0].verify`: a level is",
            "did you mean \"restore\"?",
        ),
        (file("[retention]\n"), "`retention.last`: nothing would be kept", "last = 3"),
        (file("[retention]\nlast = 0\ndaily = 0\n"), "`retention.last`: nothing would be kept", "last = 3"),
        (file("[retention]\nlast = 1\nyearly = 2\n"), "`retention.yearly`", ""),
        (file("[alerts]\nslack = \"x\"\n"), "`alerts.slack`: this version tells webhooks", "remove it"),
        (file("[alerts.webhook]\n"), "`alerts.webhook.url`: is missing", ""),
        (file("[alerts.webhook]\nurl = \"https://u:hunter2@chat.example/x\"\n"), "`alerts.webhook.url`", "`url_file`"),
        (
            file("[alerts.webhook]\nurl = \"https://chat.example/x\"\nurl_file = \"/x\"\n"),
            "`alerts.webhook.url_file`: there is a url too",
            "keep one",
        ),
        (file("[server]\nlisten = \"localhost\"\n"), "`server.listen`: is no address to listen on", "[::]:9187"),
        (
            file("[scratch]\nmode = \"givn\"\n"),
            "`scratch.mode`: must be \"local\" or \"given\"",
            "did you mean \"given\"?",
        ),
        (file("[scratch]\nmode = \"given\"\n"), "`scratch.mode`: no server is given", "`redis_url`"),
        (
            file("[scratch]\nredis_url = \"redis://x\"\n"),
            "`scratch.redis_url`: is not used where servers are started here",
            "mode = \"given\"",
        ),
        (
            file("[scratch]\nmode = \"given\"\npostgres_url = \"postgres://u:hunter2@x/y\"\n"),
            "`scratch.postgres_url`",
            "`_password_file`",
        ),
        (
            source("[backup]\ncut_order = [\"cach\", \"db\", \"db\"]\n"),
            "/etc/t.toml:8:13: `backup.cut_order`: names `cach`, which is no source; names `db` twice",
            "[\"db\"]",
        ),
        (source("[backup]\ncut_order = []\n"), "`backup.cut_order`: does not name `db`", "name every source once"),
        (source("[backup]\ncut_order = \"db\"\n"), "expected a list of strings, found string", ""),
        (source("[backup]\ncut_oder = []\n"), "`backup.cut_oder`: unknown key", "did you mean `backup.cut_order`?"),
        (file("[limits]\nmemory_mib = 95\n"), "`limits.memory_mib`: must be from 96 to 4096", ""),
        (file("[limits]\nuploads = 65\n"), "`limits.uploads`: must be from 1 to 64", ""),
        (file("[repository.s3]\nregion = \"a b\"\n"), "`repository.s3.region`", ""),
        (file("[repository.s3]\nregion = \"\"\n"), "`repository.s3.region`: is empty", ""),
        (file("[repository.s3]\npath_style = \"yes\"\n"), "expected true or false, found string", ""),
        (file("[repository.s3]\nendpoint = \"minio:9000\"\n"), "begins with http://", "write https://"),
        (file("[repository.s3]\nendpoint = \"http://k:secret@h\"\n"), "holds a secret", "secret_access_key_file"),
        (url("s3://key:secret@bucket/x"), "holds a secret", "AWS_SECRET_ACCESS_KEY"),
        (url("/srv/backup"), "`repository.url`: is not a url", "file:///absolute/path"),
        (file("[source]\nname = \"x\"\n"), "expected a list of tables, found table", "[[source]]"),
        (file("[[source]]\nkind = \"postgres\"\nurl = \"postgres://u@h/\"\n"), "`source[0].name`: is missing", ""),
        (file("[[source]]\nname = \"x\"\n"), "/etc/t.toml:3:1: `source[0].kind`: is missing", ""),
        (file("[[source]]\nname = \"x\"\nkind = \"postgres\"\n"), "`source[0].url`: is missing", ""),
        (source("workers = 17\n"), "`source[0].workers`: must be from 1 to 16", ""),
        (source("lock_timeout = \"0s\"\n"), "`source[0].lock_timeout`: must be from 1s to 1h", ""),
        (source("tls = \"verify\"\n"), "must be one of disable, require, verify-full", "did you mean \"verify-full\"?"),
        (source("tls = \"require\"\nca_file = \"/ca\"\n"), "`source[0].ca_file`: is not used", "verify-full"),
        (source("databases = []\n"), "`source[0].databases`: is empty", "[\"*\"]"),
        (source("databases = [\"a\", \"\"]\n"), "holds an empty name", "[\"*\"]"),
        (source("databases = \"a\"\n"), "expected a list of strings, found string", ""),
        (source("databases = [\"a\", 1]\n"), "expected a list of strings, found integer", ""),
        (source("password = \"hunter2\"\n"), "`source[0].password`: unknown key", "source.password_file"),
        (source("allow_empty = 1\n"), "`source[0].allow_empty`: expected true or false", ""),
        (source(SOURCE), "/etc/t.toml:8:8: `source[1].name`: the name `db` is taken", ""),
        (source("").replace("\"db\"", "\"Db\""), "`Db` cannot be a source's name", "lower-case"),
        (source("").replace("\"postgres\"", "\"redis\""), "`source[0].url`: is not a Redis url", "redis://host:6379"),
        (
            redis("redis://c", "databases = [\"a\"]"),
            "`source[0].databases`: is a key of sources of kind `postgres`",
            "remove",
        ),
        (
            redis("redis://c", "tls = \"disable\""),
            "`source[0].tls`: TLS to a source of kind `redis` is not supp",
            "remove",
        ),
        (
            source("username = \"a\"\n"),
            "`source[0].username`: is a key of sources of kind `redis` or `nats`",
            "remove it",
        ),
        (redis("redis://a@c", "username = \"b\""), "`source[0].username`: the url names a user too", "keep one"),
        (redis("rediss://c", ""), "`source[0].url`: TLS to Redis is not supported by this version", ""),
        (redis("redis://u:hunter2@c", ""), "`source[0].url`: the url holds a secret", "ALTLAS_BACKUP_CACHE_PASSWORD"),
        (redis("redis://:hunter2@c", ""), "`source[0].url`: the url holds a secret", "password_file"),
        (redis("redis://hun/ter2@c", ""), "`source[0].url`: the url holds a secret", "password_file"),
        (redis("redis://c/3", ""), "`source[0].url`: names a database", "redis://host:6379"),
        (redis("redis://c:6379?a=b", ""), "`source[0].url`: holds more than user, host and port", "redis://host:6379"),
        (redis("redis://c:0", ""), "the port is not a number", ""),
        (redis("redis://", ""), "names no host", "redis://host:6379"),
        (redis("redis:///run/redis.sock", ""), "`source[0].url`: names", "redis://host:6379"),
        (source("streams = []\n"), "`source[0].streams`: is a key of sources of kind `nats`", "remove it"),
        (
            nats("nats://n", "streams = []"),
            "`source[0].streams`: is empty or holds an empty name",
            "all streams: [\"*\"]",
        ),
        (nats("nats://u@n", "token_file = \"t\""), "`source[0].token_file`: there is a user too", "password_file"),
        (nats("nats://n", "password_file = \"p\""), "`source[0].password_file`: there is no user", "token_file"),
        (nats("nats://n", "password_file = \"p\"\ntoken_file = \"t\""), "there is a password too", "keep one"),
        (
            nats("nats://n", "creds_file = \"c\""),
            "`source[0].creds_file`: this version logs in to NATS with",
            "remove it",
        ),
        (nats("tls://n", ""), "`source[0].url`: TLS to NATS is not supported by this version", ""),
        (nats("nats://n", "ca_file = \"c\""), "TLS to a source of kind `nats` is not supported", "remove it"),
        (nats("nats://u:hunter2@n", ""), "`source[0].url`: the url holds a secret", "ALTLAS_BACKUP_MESSAGES_PASSWORD"),
        (nats("nats://a,b", ""), "`source[0].url`: names several hosts", ""),
        (nats("nats://n/a", ""), "`source[0].url`: holds a path", "nats://host:4222"),
        (nats("redis://n", ""), "`source[0].url`: is not a NATS url", "nats://host:4222"),
        (
            source("").replace("\"postgres\"", "\"postgresql\""),
            "`postgresql` is not a kind",
            "did you mean `postgres`?",
        ),
        (source("").replace("\"postgres\"", "\"mysql\""), "`mysql` is not a kind", "this version knows: postgres"),
        (
            source("").replace("u@db", "u:hunter2@db"),
            "/etc/t.toml:6:7: `source[0].url`: the url holds a secret",
            "ALTLAS_BACKUP_DB_PASSWORD",
        ),
        (
            source("tls = \"require\"\n").replace("/app", "/app?sslmode=require"),
            "sslmode says it too",
            "one of the two",
        ),
    ];
    for (text, message, hint) in cases {
        let error = parse(&text).expect_err(&text);
        let shown = error.to_string();
        assert!(!matches!(error, ConfigError::Several(_)), "{text}\n{shown}");
        assert!(shown.contains(message), "{text}\n{shown}\nlacks {message}");
        let got = error.hint().unwrap_or_default();
        assert!(got.contains(hint) && got.is_empty() == hint.is_empty(), "{text}\nhint: {got}\nlacks {hint}");
        let all = format!("{shown} {got} {error:?}");
        assert!(!all.contains("hunter2") && !all.contains("secret@"), "{all}");
        assert!(!all.contains('\u{1b}'));
    }
}

#[test]
fn sources_are_cut_in_the_configured_order_or_by_kind() {
    let redis = |name: &str| format!("[[source]]\nname = \"{name}\"\nkind = \"redis\"\nurl = \"redis://c\"\n");
    let sources = format!("{SOURCE}{}{}", redis("second"), redis("first"));
    for (order, want) in [
        ("", ["second", "first", "db"]),
        ("[backup]\n", ["second", "first", "db"]),
        ("[backup]\ncut_order = [\"db\", \"first\", \"second\"]\n", ["db", "first", "second"]),
    ] {
        let config = parse(&format!("{FILE}{order}{sources}")).unwrap();
        let mut found: Vec<&SourceConfig> = config.sources.iter().collect();
        found.sort_by_key(|source| config.cut_rank(source));
        assert_eq!(found.iter().map(|source| source.name.as_str()).collect::<Vec<_>>(), want, "{order}");
    }
}

#[test]
fn all_problems_come_at_once_in_order() {
    let error = parse(&format!("{FILE}grace = \"1m\"\nepoch = 1\n{SOURCE}workers = 0\n")).unwrap_err();
    let ConfigError::Several(all) = &error else { panic!("{error}") };
    assert_eq!(all.len(), 3);
    let shown = error.to_string();
    let at = |what: &str| shown.find(what).expect(&shown);
    assert!(shown.starts_with("3 problems"));
    assert!(at(":3:9:") < at(":4:1:") && at(":4:1:") < at(":9:11:"));
    assert_eq!(error.hint().as_deref(), Some("did you mean `repository.epoch_days`?"));
}

#[test]
fn columns_count_characters() {
    let error = parse("[repository]\nurl = \"file:///x\"\n\"ğü\" = { a = 1 }\ns3 = { \"ü\" = 1, x = 2 }")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(":3:1: `repository.ğü`")
            && error.contains(":4:8: `repository.s3.ü`")
            && error.contains(":4:17: `repository.s3.x`"),
        "{error}"
    );
}

#[test]
fn the_override_takes_the_place_of_the_url() {
    let load = |text, url| Config::from_text(text, Path::new("t.toml"), Some(url));
    let url = load(FILE, "s3://other/x").unwrap().repository.url;
    assert_eq!(url.to_string(), "s3://other/x");
    assert!(load("", "file:///x").is_ok());
    let error = load(FILE, "s3://k:hunter2@other").unwrap_err();
    assert!(error.to_string().starts_with("`--repository`: the url holds a secret"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn tls_of_a_source() {
    for (url, lines, want) in [
        ("postgres://u@db/x", "", TlsMode::VerifyFull),
        ("postgres://u@db/x", "tls = \"disable\"", TlsMode::Disable),
        ("postgres://u@db/x?sslmode=require", "", TlsMode::Require),
        ("postgres://u@localhost/x", "", TlsMode::Disable),
        ("postgres://u@localhost/x", "ca_file = \"/ca\"", TlsMode::VerifyFull),
        ("postgres://u@localhost/x", "tls = \"require\"", TlsMode::Require),
        ("postgres://u@/x?host=/tmp", "", TlsMode::Disable),
    ] {
        assert_eq!(source_with(url, lines).unwrap().tls_mode(), want, "{url} {lines}");
    }
    assert!(source_with("postgres://u@/x?host=/tmp", "tls = \"require\"").is_err());
}

#[test]
fn another_target() {
    let config = source_with("postgres://u@localhost/x", "password_file = \"p\"").unwrap();
    let target = config.with_url("postgres://v@db/y", None).unwrap();
    assert_eq!(
        (target.endpoint.to_string().as_str(), target.tls_mode()),
        ("postgres://v@db:5432/y", TlsMode::VerifyFull)
    );
    assert!(matches!(&target.password, PasswordSource::File { path, .. } if path == Path::new("/etc/p")));
    let given = config.with_url("postgres://v@db/y?sslmode=disable", Some(SecretString::from("hunter2"))).unwrap();
    assert_eq!(given.tls_mode(), TlsMode::Disable);
    assert_eq!(given.password.read(&no_env).unwrap().unwrap().expose_secret(), "hunter2");
    assert!(!format!("{given:?}").contains("hunter2"));
    let error = config.with_url("postgres://v:hunter2@db/y", None).unwrap_err();
    assert!(error.to_string().starts_with("`--target`: the url holds a secret"), "{error}");
    assert!(error.hint().unwrap().contains("password_file"));
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

#[test]
fn source_names() {
    for (text, want) in [
        ("a", true),
        ("0-a", true),
        ("", false),
        ("-a", false),
        ("A", false),
        ("a_b", false),
        ("a/b", false),
        ("ğ", false),
    ] {
        assert_eq!(SourceName::new(text).is_some(), want, "{text}");
    }
    assert!(SourceName::new(&"a".repeat(63)).is_some() && SourceName::new(&"a".repeat(64)).is_none());
    assert_eq!(SourceName::new("a-b0").unwrap().password_variable(), "ALTLAS_BACKUP_A_B0_PASSWORD");
}

#[test]
fn sources_by_name() {
    let config = parse(&format!("{FILE}{SOURCE}{}", SOURCE.replace("\"db\"", "\"two\""))).unwrap();
    let names = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|n| (*n).to_owned()).collect();
        config.sources_matching(&wanted).map(|found| found.iter().map(|s| s.name.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).unwrap(), ["db", "two"]);
    assert_eq!(names(&["two", "db", "two"]).unwrap(), ["db", "two"]);
    let error = names(&["db", "three"]).unwrap_err();
    assert_eq!(error.to_string(), "no source named `three` is configured in /etc/t.toml");
    assert_eq!(error.hint().unwrap(), "the configured sources are: db, two");
    let none = parse(FILE).unwrap();
    let error = none.sources_matching(&[]).unwrap_err();
    assert_eq!(error.to_string(), "no source is configured in /etc/t.toml");
}

#[test]
fn s3_credentials() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("id", &b"FILEID\n"[..]),
        ("key", b"file-hunter2\r\n"),
        ("token", b"tok"),
        ("empty", b"\n"),
        ("two", b"a\n\n"),
        ("bin", b"\xff"),
    ] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let full =
        [("AWS_ACCESS_KEY_ID", "ENVID"), ("AWS_SECRET_ACCESS_KEY", "env-hunter2"), ("AWS_SESSION_TOKEN", "envtok")];
    let run = |lines: &str, variables: &[(&str, &str)]| {
        let text = format!("{FILE}[repository.s3]\n{lines}");
        let config = Config::from_text(&text, &dir.path().join("c.toml"), None).unwrap();
        let env = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        config.repository.s3.credentials(&env)
    };
    let both = "access_key_id_file = \"id\"\nsecret_access_key_file = \"key\"\n";
    let with_token = format!("{both}session_token_file = \"token\"\n");
    for (lines, variables, want) in [
        ("", &full[..], ("ENVID", "env-hunter2", Some("envtok"))),
        ("", &full[..2], ("ENVID", "env-hunter2", None)),
        (both, &full[..], ("FILEID", "file-hunter2", None)),
        (&with_token, &[], ("FILEID", "file-hunter2", Some("tok"))),
        ("secret_access_key_file = \"key\"\n", &full[..1], ("ENVID", "file-hunter2", None)),
    ] {
        let got = run(lines, variables).unwrap();
        let token = got.session_token.as_ref().map(|t| t.expose_secret());
        assert_eq!((got.access_key_id.as_str(), got.secret_access_key.expose_secret(), token), want);
        assert!(!format!("{got:?}").contains("hunter2"));
    }
    for (lines, variables, message, hint) in [
        ("", &[][..], "no S3 credentials: access key id and no secret access key", "AWS_ACCESS_KEY_ID, and "),
        (
            "",
            &[("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "")][..],
            "no S3 credentials: secret access key",
            "AWS_SECRET",
        ),
        ("access_key_id_file = \"id\"\n", &[], "no S3 credentials: secret access key", "secret_access_key_file"),
        (
            "access_key_id_file = \"empty\"\n",
            &full,
            "/empty named by `repository.s3.access_key_id_file`: it is empty",
            "",
        ),
        (
            "secret_access_key_file = \"none\"\n",
            &full,
            "named by `repository.s3.secret_access_key_file`: No such file",
            "",
        ),
        ("secret_access_key_file = \"two\"\n", &full, "a line break", ""),
        ("secret_access_key_file = \"bin\"\n", &full, "not UTF-8", ""),
        ("secret_access_key_file = \".\"\n", &full, "directory", ""),
        ("", &[("AWS_ACCESS_KEY_ID", "hunter2 ")], "variable AWS_ACCESS_KEY_ID: it holds a space", ""),
    ] {
        let error = run(lines, variables).unwrap_err();
        let (shown, got) = (error.to_string(), error.hint().unwrap_or_default());
        assert!(shown.contains(message) && got.contains(hint), "{shown}\n{got}\nlacks {message} / {hint}");
        assert!(!format!("{shown} {got} {error:?}").contains("hunter2"));
    }
}

/// The configuration's lines, variables, and the catalogue's and the data's recipient that are held, or what the message and the hint hold.
#[test]
fn identities() {
    use crate::crypt::Identity;
    let dir = tempfile::tempdir().unwrap();
    let origin = dir.path().join("c.toml");
    let keys: Vec<Identity> = (0..4).map(|_| Identity::generate()).collect();
    let public = |key: usize| keys[key].recipient().to_string();
    let text = |key: usize| keys[key].to_file(jiff::Timestamp::UNIX_EPOCH).expose_secret().to_owned();
    for (name, key) in [("one", 0), ("two", 1)] {
        std::fs::write(dir.path().join(name), text(key)).unwrap();
    }
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (one, two, empty, none) = (path("one"), path("two"), path("empty"), path("none"));
    let (three, four) = (text(2), text(3));
    let recipient = public(0);
    let run = |lines: &str, variables: &[(&str, &str)]| {
        let text = format!("{FILE}[repository.encryption]\nrecipients = [\"{recipient}\"]\n{lines}");
        let config = Config::from_text(&text, &origin, None).unwrap();
        let env = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        config.repository.encryption.unwrap().identities(&env)
    };
    const CATALOG: &str = "ALTLAS_BACKUP_CATALOG_IDENTITY";
    const CATALOG_FILE: &str = "ALTLAS_BACKUP_CATALOG_IDENTITY_FILE";
    const DATA: &str = "ALTLAS_BACKUP_IDENTITY";
    const DATA_FILE: &str = "ALTLAS_BACKUP_IDENTITY_FILE";
    for (lines, variables, want) in [
        ("", &[][..], [None, None]),
        ("catalog_identity_file = \"one\"\nidentity_file = \"two\"\n", &[], [Some(0), Some(1)]),
        ("", &[(CATALOG_FILE, &*one)], [Some(0), None]),
        ("", &[(DATA_FILE, &two)], [None, Some(1)]),
        ("", &[(CATALOG, &three), (DATA, &four)], [Some(2), Some(3)]),
        ("", &[(CATALOG, &three), (CATALOG_FILE, &one), (DATA, &four), (DATA_FILE, &two)], [Some(0), Some(1)]),
        ("", &[(CATALOG, &three), (CATALOG_FILE, "")], [Some(2), None]),
        ("identity_file = \"one\"\n", &[(DATA_FILE, &two)], [None, Some(0)]),
    ] {
        let held = run(lines, variables).unwrap();
        let public_of =
            |held: &crate::crypt::Identities| held.recipients().map(ToString::to_string).collect::<Vec<_>>();
        let want = want.map(|key| key.map(public).into_iter().collect::<Vec<_>>());
        assert_eq!([public_of(&held.catalog), public_of(&held.data)], want, "{lines} {variables:?}");
    }
    for (lines, variables, message, hint) in [
        ("", &[(DATA_FILE, &*none)][..], "/none named by `ALTLAS_BACKUP_IDENTITY_FILE`: No such file", ""),
        ("", &[(CATALOG_FILE, &empty)], "/empty named by `ALTLAS_BACKUP_CATALOG_IDENTITY_FILE`: it is empty", ""),
        (
            "",
            &[(CATALOG, &one)],
            "variable ALTLAS_BACKUP_CATALOG_IDENTITY: ",
            "into ALTLAS_BACKUP_CATALOG_IDENTITY_FILE",
        ),
    ] {
        let error = run(lines, variables).unwrap_err();
        let (shown, got) = (error.to_string(), error.hint().unwrap_or_default());
        assert!(shown.contains(message) && got.contains(hint), "{shown}\n{got}\nlacks {message} / {hint}");
    }
}

#[test]
fn postgres_passwords() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("p"), "hunter2 \n").unwrap();
    let text = format!("{FILE}{SOURCE}");
    let origin = dir.path().join("c.toml");
    let env = |name: &str| (name == "ALTLAS_BACKUP_DB_PASSWORD").then(|| "from-env".to_owned());
    let by_variable = Config::from_text(&text, &origin, None).unwrap();
    assert_eq!(postgres(&by_variable).password.read(&env).unwrap().unwrap().expose_secret(), "from-env");
    assert!(postgres(&by_variable).password.read(&no_env).unwrap().is_none());
    let by_file = Config::from_text(&format!("{text}password_file = \"p\"\n"), &origin, None).unwrap();
    assert_eq!(postgres(&by_file).password.read(&env).unwrap().unwrap().expose_secret(), "hunter2 ");
    std::fs::remove_file(dir.path().join("p")).unwrap();
    let error = postgres(&by_file).password.read(&env).unwrap_err().to_string();
    assert!(error.contains("`source[0].password_file`") && error.contains("No such file"), "{error}");
}

#[test]
fn the_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.toml"), dir.path().join("two.toml"));
    let error = file::find(&[one.clone(), two.clone()]).unwrap_err();
    let shown = error.to_string();
    assert!(shown.contains("one.toml and ") && shown.contains("two.toml"), "{shown}");
    assert!(error.hint().unwrap().contains("--config"));
    std::fs::write(&two, FILE).unwrap();
    assert_eq!(file::find(&[one.clone(), two.clone()]).unwrap(), two);
    std::fs::write(&one, FILE).unwrap();
    assert_eq!(file::find(&[one.clone(), two.clone()]).unwrap(), one);

    assert_eq!(Config::load(Some(&two), None, &no_env).unwrap().origin, two);
    let env = |name: &str| (name == CONFIG_VARIABLE).then(|| one.display().to_string());
    assert_eq!(Config::load(None, None, &env).unwrap().origin, one);
    let error = Config::load(Some(&dir.path().join("no.toml")), None, &env).unwrap_err().to_string();
    assert!(error.contains("no.toml: No such file"), "{error}");
    std::fs::write(&one, [0xff]).unwrap();
    let error = Config::load(Some(&one), None, &no_env).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
    assert_eq!(DEFAULT_PATHS.map(PathBuf::from)[1], Path::new("/etc/altlas-backup/altlas-backup.toml"));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}|(?s).{0,60}") {
        if let Err(error) = parse(&text) {
            let _ = (error.to_string(), error.hint(), format!("{error:?}"));
        }
        let _ = (PostgresUrl::parse(&text), RepositoryUrl::parse(&text), parse_endpoint(&text), percent_decode(&text));
        let _ = PostgresUrl::parse(&format!("postgres://{text}"));
        let _ = RepositoryUrl::parse(&format!("file://{text}"));
    }

    #[test]
    fn a_damaged_example_never_panics(at in 0..EXAMPLE.len(), cut in 0usize..40, put in "[\\[\\]\"=.#\n\\\\a-z0-9é{}, -]{0,8}") {
        let whole = whole_example();
        let mut bytes = whole.into_bytes();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at.min(end)..end, put.bytes());
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = parse(&text) {
            let _ = (error.to_string(), error.hint());
        }
    }

    #[test]
    fn a_password_in_a_url_is_never_shown(user in "[a-z]{0,8}", tail in "[ -~]{0,20}", host in "[a-z]{1,8}") {
        let url = format!("postgres://{user}:Qx7hunter2{tail}@{host}/db");
        let problem = PostgresUrl::parse(&url).unwrap_err();
        prop_assert_eq!(problem, UrlProblem::Secret);
    }
}
