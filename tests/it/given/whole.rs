//! `verify` with servers that are given, as the program does it: verified, refused, and left empty.

use crate::support::{
    nats::{Nats, NatsVersion},
    postgres::{Major, Postgres},
    redis::{Redis, RedisVersion},
    workspace::Workspace,
};

/// Three sources with data.
pub(super) struct Sources {
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
    pub(super) nats: Nats,
}

impl Sources {
    pub(super) fn start() -> Self {
        let sources = Self {
            postgres: Postgres::start(Major::V15),
            redis: Redis::start_with(RedisVersion::V70, &["save \"\"", "repl-diskless-sync yes"]),
            nats: Nats::start(NatsVersion::V215),
        };
        sources.postgres.create_altlas("altlas", 100, 51);
        sources.redis.fill("altlas", 200, 52);
        // What is there is looked at again and again, for longer than some keys have to live.
        let longer = "for db = 0, 1 do redis.call('SELECT', db) for _, key in ipairs(redis.call('KEYS', '*')) do \
                      local left = redis.call('PTTL', key) \
                      if left >= 0 and left < 3600000 then redis.call('PEXPIRE', key, 3600000) end end end";
        sources.redis.command(&["EVAL", longer, "0"]);
        sources.nats.fill("altlas", 100, 53);
        sources
    }

    /// A repository with a backup of them.
    pub(super) fn backed_up(&self) -> Workspace {
        let workspace = Workspace::folder().postgres(&self.postgres, &["altlas"]).redis(&self.redis).nats(&self.nats);
        workspace.run(&["init"]).ok();
        workspace.run(&["backup"]).ok();
        workspace
    }

    /// What is in them.
    fn state(&self) -> (String, String, String) {
        let messages = self.nats.digest(&["--messages"]).text().to_owned();
        (format!("{:?}", self.postgres.digests("altlas")), self.redis.digest(), messages)
    }
}

/// Lets this server be used for proofs of its kind.
pub(super) fn give(workspace: &mut Workspace, kind: &str, url: &str, password_file: &std::path::Path) {
    workspace.set("scratch.mode", "given");
    workspace.set(&format!("scratch.{kind}_url"), url);
    workspace.set(&format!("scratch.{kind}_password_file"), password_file.display().to_string());
}

#[test]
fn three_sources_are_proved_and_nothing_is_left() {
    let sources = Sources::start();
    let mut workspace = sources.backed_up();
    let (postgres, redis, nats) =
        (Postgres::start_unrelated(Major::V15), Redis::start(RedisVersion::V82), Nats::start(NatsVersion::V215));
    give(&mut workspace, "postgres", &postgres.url("postgres"), &postgres.password_file());
    give(&mut workspace, "redis", &redis.url(), &redis.password_file());
    give(&mut workspace, "nats", &nats.url_with_user(), &nats.password_file());
    let before = sources.state();
    for _ in 0..2 {
        let report = workspace.run(&["--json", "verify"]).ok().json();
        assert_eq!(report["verdict"], "verified", "{report}");
        assert_eq!(report["sources"].as_array().unwrap().len(), 3);
        let databases = "SELECT count(*) FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')";
        assert_eq!(postgres.psql("postgres", databases), "0");
        assert_eq!((redis.keys(), redis.setting("masterauth").as_str()), (0, ""));
        assert_eq!(nats.streams(), Vec::<String>::new());
    }
    assert_eq!(sources.state(), before);
}

#[test]
fn a_source_is_never_a_throwaway_server() {
    let sources = Sources::start();
    let workspace = sources.backed_up();
    let before = sources.state();
    let standby = sources.postgres.standby();
    let auth = format!("masterauth {}", sources.redis.password());
    let replica = Redis::start_with(RedisVersion::V70, &["save \"\"", &auth]);
    replica.command(&["REPLICAOF", "127.0.0.1", &sources.redis.port().to_string()]);
    let socket = sources.postgres.socket_folder().display().to_string().replace('/', "%2F");
    let (postgres, redis, nats) = (&sources.postgres, &sources.redis, &sources.nats);
    let cases = [
        ("database", "postgres", postgres.url("postgres"), postgres.password_file()),
        (
            "database",
            "postgres",
            format!("postgres://postgres@{socket}:{}/postgres", postgres.port()),
            postgres.password_file(),
        ),
        ("database", "postgres", standby.url("postgres"), standby.password_file()),
        ("cache", "redis", redis.url(), redis.password_file()),
        ("cache", "redis", format!("redis://localhost:{}", redis.port()), redis.password_file()),
        ("cache", "redis", replica.url(), replica.password_file()),
        ("messages", "nats", nats.url_with_user(), nats.password_file()),
        ("messages", "nats", format!("nats://{}@localhost:{}", nats.user(), nats.port()), nats.password_file()),
    ];
    for (source, kind, url, password_file) in cases {
        let mut place = workspace.copy();
        give(&mut place, kind, &url, &password_file);
        // Only the one source, so that its server is what is looked at.
        let output = place.run(&["verify"]).output();
        let wanted = [source, "is source"];
        match kind {
            "postgres" => drop(output.assert_error(6, &wanted)),
            // Sources before it have no throwaway server: nothing can be said of them.
            _ => {
                assert_eq!(output.code, Some(6), "{url}: {}", output.text());
                for word in wanted {
                    assert!(output.stderr.contains(word), "{url}: {}", output.text());
                }
            }
        }
        assert_eq!(sources.state(), before, "{url}");
    }
    assert_eq!(replica.info("role"), "slave");
    assert_eq!(standby.psql("postgres", "SELECT pg_is_in_recovery()"), "t");
}
