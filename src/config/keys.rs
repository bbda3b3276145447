//! The keys this version knows, and the nearest of them to one it does not.
//!
//! [`KEYS`] is the one list: the reader refuses what is not in it, and the tests hold the example file to it.

/// Every known key by its full path; the tables are the paths' beginnings. `source` is a list of tables.
pub(super) const KEYS: &[&str] = &[
    "repository.url",
    "repository.id",
    "repository.compression_level",
    "repository.epoch_days",
    "repository.grace",
    "repository.s3.endpoint",
    "repository.s3.region",
    "repository.s3.path_style",
    "repository.s3.access_key_id_file",
    "repository.s3.secret_access_key_file",
    "repository.s3.session_token_file",
    "repository.s3.ca_file",
    "repository.encryption.recipients",
    "repository.encryption.catalog_recipients",
    "repository.encryption.catalog_identity_file",
    "repository.encryption.identity_file",
    "backup.cut_order",
    "source.name",
    "source.kind",
    "source.allow_empty",
    "source.url",
    "source.username",
    "source.password_file",
    "source.allow_server_dump",
    "source.tls",
    "source.ca_file",
    "source.token_file",
    "source.streams",
    "source.databases",
    "source.tools_dir",
    "source.workers",
    "source.lock_timeout",
    "source.copy_format",
    "source.exclude_databases",
    "source.exclude_tables",
    "source.tables",
    "schedule.name",
    "schedule.cron",
    "schedule.timezone",
    "schedule.sources",
    "schedule.verify",
    "schedule.prune",
    "schedule.jitter",
    "retention.last",
    "retention.daily",
    "retention.weekly",
    "retention.monthly",
    "retention.timezone",
    "retention.expire_at_most_percent",
    "scratch.mode",
    "scratch.folder",
    "scratch.timeout",
    "scratch.postgres_user",
    "scratch.allow_shared_user",
    "scratch.postgres_bin",
    "scratch.redis_server",
    "scratch.nats_server",
    "scratch.postgres_url",
    "scratch.postgres_password_file",
    "scratch.redis_url",
    "scratch.redis_password_file",
    "scratch.nats_url",
    "scratch.nats_password_file",
    "alerts.deployment",
    "alerts.webhook.url",
    "alerts.webhook.url_file",
    "alerts.webhook.token_file",
    "alerts.webhook.ca_file",
    "alerts.alertmanager.url",
    "alerts.alertmanager.url_file",
    "alerts.alertmanager.token_file",
    "alerts.alertmanager.ca_file",
    "server.listen",
    "limits.memory_mib",
    "limits.uploads",
];

/// Tables of the design that this version cannot serve, with what it cannot do.
pub(super) const PLANNED: &[(&str, &str)] = &[
    ("alerts.slack", "this version tells webhooks and Alertmanager only"),
    ("alerts.smtp", "this version tells webhooks and Alertmanager only"),
    ("alerts.heartbeat", "this version tells webhooks and Alertmanager only"),
    ("source.creds_file", "this version logs in to NATS with a user and password, or a token, only"),
];

/// The kinds of source this version knows.
pub(super) const KINDS: &[&str] = &["postgres", "redis", "nats"];

/// Keys that only sources of some kinds have.
const OF_SOME_KINDS: &[(&[&str], &[&str])] = &[
    (
        &["postgres"],
        &[
            "tls",
            "ca_file",
            "databases",
            "tools_dir",
            "workers",
            "lock_timeout",
            "copy_format",
            "exclude_databases",
            "tables",
            "exclude_tables",
        ],
    ),
    (&["redis"], &["allow_server_dump"]),
    (&["nats"], &["token_file", "streams"]),
    (&["redis", "nats"], &["username"]),
];

/// The kinds that have this key of a source, if `kind` is none of them.
pub(super) fn of_other_kinds(kind: &str, name: &str) -> Option<&'static [&'static str]> {
    let owners = OF_SOME_KINDS.iter().find(|(_, names)| names.contains(&name)).map(|(owners, _)| *owners);
    owners.filter(|owners| !owners.contains(&kind))
}

/// The names directly under a table (`""` is the root), each once.
pub(super) fn children(table: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let rest =
            if table.is_empty() { Some(*key) } else { key.strip_prefix(table).and_then(|r| r.strip_prefix('.')) };
        if let Some(name) = rest.and_then(|r| r.split('.').next())
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// What this version cannot do yet, if the path names that.
pub(super) fn planned(path: &str) -> Option<&'static str> {
    PLANNED.iter().find(|(key, _)| *key == path).map(|(_, what)| *what)
}

/// The full path of the known key nearest to `name` in `table`: one or several of it in the same table, the very name in another one, else
/// by spelling in the same.
pub(super) fn nearest(table: &str, name: &str) -> Option<String> {
    let number = |child: &&str| child.strip_suffix('s') == Some(name) || name.strip_suffix('s') == Some(*child);
    let several = || children(table).into_iter().find(number).map(|found| join(table, found));
    let elsewhere = || {
        let all = KEYS.iter().chain(PLANNED.iter().map(|(key, _)| key));
        all.into_iter().find(|key| key.split('.').any(|part| part == name)).map(|key| {
            match key.split_once(&format!("{name}.")) {
                Some((before, _)) => format!("{before}{name}"),
                None => (*key).to_owned(),
            }
        })
    };
    let alike = || nearest_of(name, &children(table)).map(|found| join(table, found));
    several().or_else(elsewhere).or_else(alike)
}

/// The candidate spelled most like `word`, where one is near enough to be meant.
pub(super) fn nearest_of<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    /// Below this two words are not each other's misspelling; found by trying the table of this module's tests.
    const NEAR: f64 = 0.8;
    // A word of thousands of letters is no misspelling, and the comparison is quadratic.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .iter()
        .map(|candidate| {
            let other = candidate.replace('-', "_");
            let score = strsim::jaro_winkler(&word, &other).max(strsim::normalized_damerau_levenshtein(&word, &other));
            (score, *candidate)
        })
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// A key's full path.
pub(super) fn join(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_keys() {
        for (table, name, want) in [
            ("repository.s3", "endpont", Some("repository.s3.endpoint")),
            ("repository.s3", "pathstyle", Some("repository.s3.path_style")),
            ("repository.s3", "path-style", Some("repository.s3.path_style")),
            ("repository.s3", "access_key_id", Some("repository.s3.access_key_id_file")),
            ("repository.s3", "secret_access_key", Some("repository.s3.secret_access_key_file")),
            ("repository", "endpoint", Some("repository.s3.endpoint")),
            ("repository", "compression", Some("repository.compression_level")),
            ("repository", "URL", Some("repository.url")),
            ("source", "password", Some("source.password_file")),
            ("source", "database", Some("source.databases")),
            ("source", "worker", Some("source.workers")),
            ("", "sources", Some("source")),
            ("", "repositry", Some("repository")),
            ("", "limit", Some("limits")),
            ("", "s3", Some("repository.s3")),
            ("", "encryption", Some("repository.encryption")),
            ("", "memory_mib", Some("limits.memory_mib")),
            ("", "colour", None),
            ("repository", "", None),
        ] {
            assert_eq!(nearest(table, name).as_deref(), want, "{table} {name}");
        }
        assert_eq!(nearest_of("postgresql", KINDS), Some("postgres"));
        assert_eq!(nearest_of("mysql", KINDS), None);
    }

    #[test]
    fn keys_are_once_and_not_planned() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(!KEYS[..i].contains(key), "{key} twice");
            assert!(planned(key).is_none());
        }
        assert_eq!(
            children(""),
            ["repository", "backup", "source", "schedule", "retention", "scratch", "alerts", "server", "limits"]
        );
    }
}
