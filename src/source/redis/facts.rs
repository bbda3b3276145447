//! What a server says of itself: version, role, databases, and how it keeps its data.

use std::{collections::BTreeMap, time::Duration};

use super::{
    error::RedisError,
    server::{Server, Session},
};

/// The oldest version that is supported, the first with `REPLCONF rdb-only`.
const OLDEST: Version = Version(6, 2, 0);

/// Major, minor and patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| {
            let digits: &str = &part[..part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len())];
            digits.parse().ok()
        });
        Some(Self(parts.next()??, parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0)))
    }

    /// The newest RDB version that a server of this version reads (research A2; `rdb.h` of each release).
    pub(super) fn rdb(self) -> u32 {
        match (self.0, self.1) {
            (..5, _) => 8,
            (5, _) | (6, _) => 9,
            (7, 0..2) => 10,
            (7, 2..4) => 11,
            // A newer server reads at least what those before it did.
            _ => 12,
        }
    }
}

/// How the last save to disk went.
#[derive(Clone, Debug, Default)]
pub(super) struct Saving {
    /// `rdb_last_bgsave_status`, which is `ok` also before the first.
    pub(super) last_ok: bool,
    /// Has one finished since the server started?
    pub(super) saved_since_start: bool,
    /// Is one going on?
    pub(super) in_progress: bool,
}

/// What `CONFIG GET` says.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    /// The save points; empty: it saves no RDB files.
    pub(super) save: String,
    /// `repl-diskless-sync`.
    pub(super) diskless: bool,
    /// `rdb-del-sync-files`.
    pub(super) removes_sync_files: bool,
    /// `appendonly`.
    pub(super) append_only: bool,
    /// `stop-writes-on-bgsave-error`.
    pub(super) stop_writes_on_save_error: bool,
    /// `repl-timeout`.
    pub(super) repl_timeout: Duration,
}

/// Everything that is asked of a server before a backup or a restore.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// As the server writes it; empty where INFO may not be read.
    pub(super) version_text: String,
    /// Its version; of Valkey, the Redis version that it is compatible with.
    pub(super) version: Option<Version>,
    /// `redis` or `valkey`.
    pub(super) product: String,
    /// What tells this run of the server from others.
    pub(super) run_id: String,
    /// `master` or `slave`, as INFO has it.
    pub(super) role: String,
    /// For a replica: is it connected to its master?
    pub(super) master_link: bool,
    /// For a replica: its master.
    pub(super) master: String,
    /// Keys by database, of databases that have any.
    pub(super) keys: BTreeMap<u64, u64>,
    /// `maxmemory`, in bytes; 0: no limit.
    pub(super) max_memory: u64,
    /// `maxmemory_policy`.
    pub(super) eviction: String,
    /// Keys that it has thrown away for that limit since it started.
    pub(super) evicted: u64,
    /// Replicas that follow it.
    pub(super) replicas: u64,
    pub(super) saving: Option<Saving>,
    pub(super) settings: Option<Settings>,
}

/// INFO, by field.
#[derive(Debug, Default)]
pub(super) struct Info(BTreeMap<String, String>);

impl Info {
    fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.trim_end().split_once(':'));
        Self(fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    pub(super) async fn read(session: &Session) -> Result<Self, RedisError> {
        Ok(Self::parse(&session.ask::<String>(&["INFO"]).await?))
    }

    /// The same where the user may read it, else nothing.
    pub(super) async fn allowed(session: &Session) -> Result<Self, RedisError> {
        match Self::read(session).await {
            Err(error) if error.is_denied() => Ok(Self::default()),
            read => read,
        }
    }

    pub(super) fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or(0)
    }

    /// Bytes of the replication stream so far.
    pub(super) fn replication_offset(&self) -> u64 {
        self.number("master_repl_offset")
    }

    /// How the last save went.
    pub(super) fn saving(&self) -> Saving {
        Saving {
            last_ok: self.get("rdb_last_bgsave_status") == "ok",
            saved_since_start: self.saved_since_start(),
            in_progress: self.get("rdb_bgsave_in_progress") != "0",
        }
    }

    /// To its disk: `rdb_last_bgsave_time_sec` also tells of dumps without a file (seen on 7.0).
    fn saved_since_start(&self) -> bool {
        match self.get("rdb_saves").parse::<u64>() {
            // It counts a save when it begins.
            Ok(1) => self.get("rdb_bgsave_in_progress") == "0",
            Ok(saves) => saves > 1,
            // Before 7.0: the time of the last save is that of the start until there was one.
            Err(_) => {
                let started =
                    (self.number("server_time_usec") / 1_000_000).saturating_sub(self.number("uptime_in_seconds"));
                started > 0 && self.number("rdb_last_save_time") > started
            }
        }
    }

    fn keys(&self) -> BTreeMap<u64, u64> {
        let databases = self.0.iter().filter_map(|(name, value)| {
            let db = name.strip_prefix("db")?.parse().ok()?;
            let keys = value.split(',').find_map(|field| field.strip_prefix("keys="))?.parse().ok()?;
            Some((db, keys))
        });
        databases.filter(|(_, keys)| *keys > 0).collect()
    }
}

impl Facts {
    /// Asks the server. What the user may not ask stays unknown.
    pub(super) async fn ask(server: &Server, session: &Session) -> Result<Self, RedisError> {
        let mut facts = Self::default();
        match Info::read(session).await {
            Ok(info) => facts.take(server, &info)?,
            Err(error) if error.is_denied() => {}
            Err(error) => return Err(error),
        }
        facts.settings = Settings::ask(session).await?;
        Ok(facts)
    }

    fn take(&mut self, server: &Server, info: &Info) -> Result<(), RedisError> {
        let not_supported = |what: &str| RedisError::NotSupported { server: server.name(), what: what.to_owned() };
        self.version = Version::parse(info.get("redis_version"));
        self.product = match info.get("server_name") {
            "valkey" => "Valkey".into(),
            _ => "Redis".into(),
        };
        let own_version = info.get("valkey_version");
        self.version_text = match own_version {
            "" => info.get("redis_version").to_owned(),
            _ => own_version.to_owned(),
        };
        match info.get("redis_mode") {
            "sentinel" => return Err(not_supported("is a Sentinel")),
            "cluster" => return Err(not_supported("is a node of a cluster")),
            _ => {}
        }
        if self.version.is_some_and(|version| version < OLDEST) {
            return Err(not_supported(&format!("is {} {}", self.product, self.version_text)));
        }
        self.run_id = info.get("run_id").to_owned();
        self.role = info.get("role").to_owned();
        self.master_link = info.get("master_link_status") == "up";
        self.master = format!("{}:{}", info.get("master_host"), info.get("master_port"));
        self.keys = info.keys();
        self.max_memory = info.number("maxmemory");
        self.eviction = info.get("maxmemory_policy").to_owned();
        self.evicted = info.number("evicted_keys");
        self.replicas = info.number("connected_slaves");
        self.saving = Some(info.saving());
        Ok(())
    }

    /// Product and version, as a person says them.
    pub(super) fn name(&self) -> String {
        match self.version {
            Some(_) => format!("{} {}", self.product, self.version_text),
            None => "Redis of an unknown version".to_owned(),
        }
    }

    /// Does it keep what it holds on disk: as RDB files, as an AOF? Nothing where it may not be asked.
    pub(super) fn keeps(&self) -> Option<(bool, bool)> {
        self.settings.as_ref().map(|settings| (!settings.save.is_empty(), settings.append_only))
    }
}

impl Settings {
    /// Asks for each setting by itself: servers before 7.0 take one name a command.
    async fn ask(session: &Session) -> Result<Option<Self>, RedisError> {
        let mut values = BTreeMap::new();
        for name in [
            "save",
            "repl-diskless-sync",
            "rdb-del-sync-files",
            "appendonly",
            "stop-writes-on-bgsave-error",
            "repl-timeout",
        ] {
            match session.ask::<Vec<String>>(&["CONFIG", "GET", name]).await {
                Ok(pair) => match <[String; 2]>::try_from(pair) {
                    Ok([_, value]) => values.insert(name, value),
                    // A server that hides the setting.
                    Err(_) => return Ok(None),
                },
                Err(RedisError::Said { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        let get = |name: &str| values.get(name).map_or("", String::as_str);
        let yes = |name: &str| get(name) == "yes";
        let Ok(seconds) = get("repl-timeout").parse() else { return Ok(None) };
        Ok(Some(Self {
            save: get("save").to_owned(),
            diskless: yes("repl-diskless-sync"),
            removes_sync_files: yes("rdb-del-sync-files"),
            append_only: yes("appendonly"),
            stop_writes_on_save_error: yes("stop-writes-on-bgsave-error"),
            repl_timeout: Duration::from_secs(seconds),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, version, rdb) in [
            ("6.2.14", Version(6, 2, 14), 9),
            ("7.0.15", Version(7, 0, 15), 10),
            ("7.2.4", Version(7, 2, 4), 11),
            ("7.4.0", Version(7, 4, 0), 12),
            ("8.2.3", Version(8, 2, 3), 12),
            ("9.0.0-rc1", Version(9, 0, 0), 12),
        ] {
            assert_eq!(Version::parse(text), Some(version));
            assert_eq!(version.rdb(), rdb);
        }
        assert_eq!(Version::parse("unstable"), None);
        assert_eq!(Version::parse(""), None);
    }

    #[test]
    fn info_is_read_by_field() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\nrdb_last_bgsave_status:ok\r\nrdb_last_bgsave_time_sec:-1\r\n\
             rdb_bgsave_in_progress:0\r\ndb0:keys=12,expires=3,avg_ttl=0\r\ndb15:keys=1,expires=0\r\ndb3:keys=0\r\n",
        );
        assert_eq!(info.keys(), BTreeMap::from([(0, 12), (15, 1)]));
        let saving = info.saving();
        assert!(saving.last_ok && !saving.saved_since_start && !saving.in_progress);
        for (fields, saved) in [
            ("rdb_saves:0\nrdb_last_bgsave_time_sec:3\nrdb_bgsave_in_progress:0", false),
            ("rdb_saves:1\nrdb_bgsave_in_progress:1", false),
            ("rdb_saves:1\nrdb_bgsave_in_progress:0", true),
            ("rdb_saves:2\nrdb_bgsave_in_progress:1", true),
            ("server_time_usec:1795485765865372\nuptime_in_seconds:60\nrdb_last_save_time:1795485705", false),
            ("server_time_usec:1795485765865372\nuptime_in_seconds:60\nrdb_last_save_time:1795485730", true),
        ] {
            assert_eq!(Info::parse(fields).saving().saved_since_start, saved, "{fields}");
        }
    }
}
