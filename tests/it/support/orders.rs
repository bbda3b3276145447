//! A writer that uses three stores in one order, and a count of what a recovery point broke: `invariant.py` and
//! `broken.py` of `tests/fixtures/nats`.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{
    fixture,
    nats::{Nats, Writer},
    postgres::Postgres,
    redis::Redis,
    tools,
};

/// Starts the writer: it inserts rows into the table `orders` of this database, and mentions each in Redis and in the
/// stream `ORDERS` once it is committed.
#[track_caller]
pub fn write(postgres: &Postgres, database: &str, redis: &Redis, nats: &Nats) -> Writer {
    Writer::start(script("nats/invariant.py", postgres, database, redis, nats))
}

/// Counts what Redis and the stream mention and the table lacks; the script says what it prints.
#[track_caller]
pub fn broken(postgres: &Postgres, database: &str, redis: &Redis, nats: &Nats) -> Value {
    let output = script("nats/broken.py", postgres, database, redis, nats).output().expect("python3 can be started");
    assert!(output.status.success(), "broken.py: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn script(script: &str, postgres: &Postgres, database: &str, redis: &Redis, nats: &Nats) -> Command {
    let mut command: Command = tools::python();
    command.arg(fixture(script)).stdin(Stdio::null());
    let mut option = |name: &str, value: &str| {
        command.arg(name).arg(value);
    };
    option("--postgres", &postgres.port().to_string());
    option("--postgres-password", postgres.password());
    option("--database", database);
    option("--redis", &redis.port().to_string());
    option("--redis-password", redis.password());
    option("--nats", &nats.port().to_string());
    option("--nats-user", nats.user());
    option("--nats-password", nats.password());
    command
}
