//! The servers that the tests stand on, and what an independent client sees in them.

use serde_json::{Value, json};

use crate::support::{
    nats::{Connection, Nats, NatsVersion, Setup},
    orders,
    postgres::{Major, Postgres},
    redis::{Redis, RedisVersion},
    wait_for,
};

use super::SOON;

/// Kinds of content, small.
const KINDS: [(&str, u64); 5] = [("altlas", 400), ("types", 300_000), ("many", 3000), ("large", 200), ("streams", 14)];

#[test]
fn every_version_starts_and_asks_who_is_there() {
    for version in NatsVersion::ALL {
        let mut nats = Nats::start(version);
        let said = nats.connection().info["version"].as_str().unwrap().to_owned();
        assert!(said.starts_with(&format!("{}.", version.number())), "{said}");
        assert_eq!(nats.streams(), Vec::<String>::new());
        for credentials in
            [json!({}), json!({ "user": nats.user(), "pass": "wrong" }), json!({ "auth_token": "wrong" })]
        {
            let refused = Connection::open(nats.port(), &credentials).unwrap_err();
            assert_eq!(refused.to_string(), "'Authorization Violation'");
        }
        assert!(nats.is_running());
    }
}

#[test]
fn a_server_is_set_up_differently() {
    for version in NatsVersion::ENDS {
        let nats = Nats::start_as(version, Setup::new().token());
        nats.fill("altlas", 50, 1);
        assert_eq!(nats.messages("LAST_FILES"), 50);
        assert!(Connection::open(nats.port(), &json!({ "user": "backup", "pass": nats.password() })).is_err());

        let users =
            "authorization { users: [{ user: backup, password: PASSWORD }, { user: other, password: PASSWORD }] }";
        let nats = Nats::start_with(version, &[users]);
        assert!(Connection::open(nats.port(), &json!({ "user": "other", "pass": nats.password() })).is_ok());

        let nats = Nats::start_as(version, Setup::new().without_jetstream());
        let answer = nats.connection().request("$JS.API.INFO", b"").unwrap();
        assert_eq!((answer.status, answer.payload.len()), (Some(503), 0));

        let limited = Setup::new().max_file_store(1_000_000).max_memory(500_000).lines(&["max_payload: 4096"]);
        let mut nats = Nats::start_as(version, limited);
        assert_eq!(nats.connection().info["max_payload"], 4096);
        let stream = |storage, bytes| json!({ "name": "S", "storage": storage, "max_bytes": bytes });
        let refused = nats.request("STREAM.CREATE.S", &stream("file", 1_000_001))["error"].clone();
        assert_eq!(refused["err_code"], 10047, "{refused}");
        let refused = nats.request("STREAM.CREATE.S", &stream("memory", 500_001))["error"].clone();
        assert_eq!(refused["err_code"], 10028, "{refused}");
        nats.ask("STREAM.CREATE.S", &stream("file", 1_000_000));
        nats.stop();
        nats.set_up(Setup::new());
        nats.resume();
        assert_eq!(nats.streams(), ["S"]);
        nats.ask("STREAM.CREATE.S", &stream("file", 1_000_000));
    }
}

#[test]
fn content_is_a_function_of_the_seed() {
    for version in NatsVersion::ENDS {
        let (one, other) = (Nats::start(version), Nats::start(version));
        for (kind, size) in KINDS {
            one.fill(kind, size, 7);
            other.fill(kind, size, 7);
        }
        let seen = one.digest(&["--messages", "--without-times"]);
        seen.assert_same(&other.digest(&["--messages", "--without-times"]));
        assert_ne!(one.digest(&[]), other.digest(&[]), "messages came at other times");
        assert_eq!(seen.streams(), one.streams().len());
        assert_eq!(seen.messages(), one.streams().iter().map(|name| one.messages(name)).sum::<u64>());
        let another = Nats::start(version);
        another.fill("many", 3000, 8);
        let many = ["--stream", "MANY", "--without-times"];
        assert_ne!(another.digest(&many), one.digest(&many));
    }
}

#[test]
fn versions_tell_the_same() {
    let servers = NatsVersion::ALL.map(Nats::start);
    for nats in &servers {
        for (kind, size) in [("many", 500), ("large", 30), ("streams", 14)] {
            nats.fill(kind, size, 7);
        }
    }
    let seen = servers.each_ref().map(|nats| nats.digest(&["--messages", "--without-times"]));
    for other in &seen[1..] {
        seen[0].assert_same(other);
    }
}

#[test]
fn content_outlives_a_server() {
    for version in NatsVersion::ALL {
        let mut nats = Nats::start(version);
        nats.fill("types", 300_000, 7);
        if version >= NatsVersion::V215 {
            // What is in memory does not.
            nats.delete_stream("MEMORY");
            nats.ask("CONSUMER.DELETE.LIMITS.in-memory", &Value::Null);
        }
        let before = nats.digest(&[]);
        nats.stop();
        assert!(!nats.is_running());
        nats.resume();
        before.assert_same(&nats.digest(&[]));
        if version > NatsVersion::V29 {
            // 2.9.10 brings back messages that it removed shortly before.
            nats.kill();
            nats.resume();
            before.assert_same(&nats.digest(&[]));
        }
    }
}

#[test]
fn looking_changes_nothing_and_sees_every_change() {
    for version in NatsVersion::ENDS {
        let nats = Nats::start(version);
        nats.fill("types", 300_000, 7);
        let consumers = |nats: &Nats| nats.streams().iter().map(|name| nats.consumers(name)).collect::<Vec<_>>();
        let (names, before) = (consumers(&nats), nats.digest(&[]));
        assert_eq!(names, consumers(&nats));
        before.assert_same(&nats.digest(&[]));

        let work = ["--stream", "WORK"];
        let mut last = nats.digest(&work);
        let mut changed = |what: &str| {
            let now = nats.digest(&work);
            assert_ne!(last, now, "{what}");
            last = now;
        };
        let seq = nats.publish("work.gamma.1", b"more");
        changed("a message was published");
        nats.ask("STREAM.MSG.DELETE.WORK", &json!({ "seq": seq }));
        changed("a message was deleted");
        let taken = nats.connection().request("$JS.API.CONSUMER.MSG.NEXT.WORK.alpha", b"").unwrap();
        assert_eq!(taken.status, None);
        changed("a message was delivered");
        nats.ask("CONSUMER.DELETE.WORK.alpha", &Value::Null);
        changed("a consumer was deleted");
        let mut config = nats.info("WORK")["config"].clone();
        config["max_msgs"] = 99_999.into();
        nats.ask("STREAM.UPDATE.WORK", &config);
        changed("the configuration was changed");
    }
}

#[test]
fn the_writer_counts_what_it_did() {
    for version in NatsVersion::ENDS {
        let nats = Nats::start(version);
        let writer = nats.writer(300);
        // Until everything has happened: both consumers of both streams have acknowledged, and old messages are gone.
        wait_for("the writer", SOON, || {
            let state = |name| nats.info(name)["state"].clone();
            let acknowledged = |stream, name| nats.consumer_info(stream, name)["ack_floor"]["consumer_seq"] != 0;
            let all = state("LOG")["num_deleted"] != Value::Null
                && state("LOG")["last_seq"].as_u64() > Some(400)
                && ["even", "odd"].iter().all(|name| acknowledged("WORK", name))
                && ["first", "second"].iter().all(|name| acknowledged("INTEREST", name));
            all.then_some(())
        });
        let done = writer.finish();
        let of = |stream: &str| done.iter().find(|report| report["stream"] == stream).unwrap();
        let number = |value: &Value| value.as_u64().unwrap();
        let log = of("LOG");
        assert!(number(&log["deleted"]) > 0);
        assert_eq!(log["refused"], 0, "no snapshot runs");
        assert_eq!(nats.messages("LOG"), number(&log["published"]) - number(&log["deleted"]));
        let work = of("WORK");
        let acked = number(&work["acked"]["even"]) + number(&work["acked"]["odd"]);
        assert_eq!(nats.messages("WORK"), number(&work["published"]) - acked);
        let interest = of("INTEREST");
        let both = number(&interest["acked"]["first"]).min(number(&interest["acked"]["second"]));
        assert_eq!(nats.messages("INTEREST"), number(&interest["published"]) - both);
        assert_eq!(nats.info("KV_state")["state"]["last_seq"], of("KV_state")["published"]);
    }
}

#[test]
fn broken_references_are_counted() {
    let (database, cache) = (Postgres::start(Major::V15), Redis::start(RedisVersion::V70));
    let nats = Nats::start(NatsVersion::V215);
    let writer = orders::write(&database, "postgres", &cache, &nats);
    wait_for("orders", SOON, || (nats.messages("ORDERS") >= 100).then_some(()));
    let rounds = writer.finish()[0]["rounds"].as_u64().unwrap();
    let found = orders::broken(&database, "postgres", &cache, &nats);
    let expected = json!({
        "rows": rounds, "redis": rounds, "stream": rounds, "redis_broken": 0, "stream_broken": 0, "examples": [],
    });
    assert_eq!(found, expected);

    // A writer goes on where one was before.
    orders::write(&database, "postgres", &cache, &nats).finish();
    database.psql("postgres", "DELETE FROM orders WHERE id IN (3, 5)");
    cache.command(&["SREM", "orders:ids", "5"]);
    let found = orders::broken(&database, "postgres", &cache, &nats);
    assert_eq!((&found["redis_broken"], &found["stream_broken"]), (&json!(1), &json!(2)), "{found}");
    assert_eq!(found["examples"], json!([3, 3, 5]));
}
