//! Where the servers' programs are: Debian's PostgreSQL 15, Redis 7.0 and NATS 2.9, and the folder that `scripts/tools` fills.

use std::{path::PathBuf, process::Command};

use super::{nats::NatsVersion, postgres::Major, redis::RedisVersion};

/// Are we root? PostgreSQL refuses to run as root, so its servers then run as the user `postgres`.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The folder that `scripts/tools` fills; the same rule as there.
pub fn folder() -> PathBuf {
    match std::env::var_os("ALTLAS_TOOLS") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ if is_root() => "/var/cache/altlas-backup-tools".into(),
        _ => PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/altlas-backup-tools"),
    }
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run scripts/tools, it installs what the tests need", path.display());
    path
}

/// SeaweedFS.
pub fn weed() -> PathBuf {
    existing(folder().join("bin/weed"))
}

/// MinIO, where it was built (`scripts/tools --minio`).
pub fn minio() -> Option<PathBuf> {
    Some(folder().join("bin/minio")).filter(|path| path.exists())
}

/// A program of a PostgreSQL server: `initdb`, `postgres`.
pub fn server_program(major: Major, name: &str) -> PathBuf {
    existing(match major {
        Major::V13 => folder().join("pg13/bin").join(name),
        Major::V15 => PathBuf::from("/usr/lib/postgresql/15/bin").join(name),
        Major::V18 => folder().join("pg18/bin").join(name),
    })
}

/// The folder with `psql`, `pg_dump`, `pg_dumpall` and `pg_restore` of a major. There are none of 13: 15's serve it.
pub fn client_folder(major: Major) -> PathBuf {
    existing(match major {
        Major::V13 | Major::V15 => PathBuf::from("/usr/lib/postgresql/15/bin"),
        Major::V18 => folder().join("pg18-client/bin"),
    })
}

/// A client program of a major.
pub fn client_program(major: Major, name: &str) -> PathBuf {
    existing(client_folder(major).join(name))
}

/// A Redis server.
pub fn redis_server(version: RedisVersion) -> PathBuf {
    existing(match version {
        RedisVersion::V62 => folder().join("redis62/redis-server"),
        RedisVersion::V70 => "/usr/bin/redis-server".into(),
        RedisVersion::V82 => folder().join("redis82/redis-server"),
    })
}

/// `redis-cli`, of 7.0.
pub fn redis_cli() -> PathBuf {
    existing("/usr/bin/redis-cli".into())
}

/// A NATS server.
pub fn nats_server(version: NatsVersion) -> PathBuf {
    existing(match version {
        NatsVersion::V29 => "/usr/sbin/nats-server".into(),
        newer => folder().join(format!("bin/nats-server-{}", newer.number())),
    })
}

/// Prometheus.
pub fn prometheus() -> PathBuf {
    existing("/usr/bin/prometheus".into())
}

/// What checks Prometheus' files.
pub fn promtool() -> PathBuf {
    existing("/usr/bin/promtool".into())
}

/// Alertmanager.
pub fn alertmanager() -> PathBuf {
    existing("/usr/bin/prometheus-alertmanager".into())
}

/// Debian's Python with the packages that `scripts/tools` keeps for it, redis-py and nats-py among them, and nothing else around.
pub fn python() -> Command {
    let mut command = Command::new(existing("/usr/bin/python3".into()));
    command.env_clear().envs([("PATH", "/usr/bin:/bin"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]);
    command.env("PYTHONPATH", existing(folder().join("python"))).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// `kubectl`, which carries kustomize.
pub fn kubectl() -> PathBuf {
    existing(folder().join("bin/kubectl"))
}

/// `hadolint`, which looks at Dockerfiles.
pub fn hadolint() -> PathBuf {
    existing(folder().join("bin/hadolint"))
}

/// Debian's Python with kubernetes-validate, the schemas of Kubernetes' objects, and nothing else around.
pub fn python_k8s() -> Command {
    let mut command = python();
    command.env("PYTHONPATH", existing(folder().join("python-k8s")));
    command
}
