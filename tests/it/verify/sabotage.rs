//! Eighteen ways to spoil a backup under the fingerprints that were captured, every digest and MAC made good again: only the data can tell.

use std::{collections::BTreeSet, hash::Hasher as _};

use highway::{HighwayHash, HighwayHasher, Key};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{back_up, listed_verdict, verified, verify};
use crate::support::{
    forge,
    nats::{Nats, NatsVersion},
    postgres::{Major, Postgres},
    redis::{Redis, RedisVersion},
    workspace::Workspace,
};

/// A spoilt copy must be found to be so, with the object named, and leave evidence that overrules what was proved before.
#[track_caller]
fn found(original: &Workspace, backup: &str, what: &str, names: &[&str], spoil: impl FnOnce(&Workspace)) {
    let copy = original.copy();
    spoil(&copy);
    let (report, output) = verify(&copy, backup, 3);
    assert_eq!(report["verdict"], "failed", "{what}: {report}");
    let differences = report["sources"][0]["differences"].as_array().unwrap();
    let told: Vec<String> = differences.iter().map(|one| format!("{}: {}", one["object"], one["what"])).collect();
    for name in names {
        assert!(told.iter().any(|line| line.contains(name)), "{what}: {name} is not in {told:#?}\n{}", output.text());
    }
    assert_eq!(listed_verdict(&copy, backup), "failed", "{what}");
}

#[test]
fn of_postgres() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 300, 7);
    server.psql(
        "altlas",
        "CREATE TABLE million (id int PRIMARY KEY, note text);
         INSERT INTO million SELECT n, md5(n::text) FROM generate_series(1, 1000000) n;
         CREATE TABLE left_twin (id int, v text); CREATE TABLE right_twin (id int, v text);
         INSERT INTO left_twin SELECT n, 'left' || n FROM generate_series(1, 100) n;
         INSERT INTO right_twin SELECT n, 'right' || n FROM generate_series(1, 100) n;
         ALTER TABLE left_twin ADD CONSTRAINT is_positive CHECK (id > 0);
         CREATE ROLE auditor; GRANT SELECT ON right_twin TO auditor;
         CREATE ROLE clerk; GRANT auditor TO clerk; GRANT CONNECT ON DATABASE altlas TO auditor",
    );
    let workspace = Workspace::folder().postgres(&server, &["altlas"]);
    workspace.run(&["init"]).ok();
    let first = back_up(&workspace);
    verified(&workspace, &first);
    assert_eq!(listed_verdict(&workspace, &first), "verified");

    // Each change is made to the server, backed up, and taken back.
    let rows = "databases/altlas/tables/public.million";
    let after = |change: &str, undo: &str| {
        server.psql("altlas", change);
        let backup = back_up(&workspace);
        server.psql("altlas", undo);
        backup
    };
    let graft = |what: &str, names: &[&str], donor: &str, artifact: &str| {
        found(&workspace, &first, what, names, |copy| forge::graft(copy, &first, donor, "database", artifact));
    };
    let changed = after(
        "UPDATE million SET note = overlay(note placing 'x' from 7 for 1) WHERE id = 777777",
        "UPDATE million SET note = md5(id::text) WHERE id = 777777",
    );
    graft("one byte of a row in a million", &["public.million", "other content"], &changed, rows);
    let lost = after("DELETE FROM million WHERE id = 5", "INSERT INTO million VALUES (5, md5('5'))");
    graft("a row lost", &["public.million"], &lost, rows);
    let doubled = after(
        "ALTER TABLE million DROP CONSTRAINT million_pkey; INSERT INTO million VALUES (5, md5('5'))",
        "DELETE FROM million WHERE id = 5; INSERT INTO million VALUES (5, md5('5')); \
         ALTER TABLE million ADD CONSTRAINT million_pkey PRIMARY KEY (id)",
    );
    graft("a row doubled", &["million"], &doubled, rows);
    let unconstrained = after(
        "ALTER TABLE left_twin DROP CONSTRAINT is_positive",
        "ALTER TABLE left_twin ADD CONSTRAINT is_positive CHECK (id > 0)",
    );
    graft(
        "a constraint lost",
        &["is_positive of table public.left_twin"],
        &unconstrained,
        "databases/altlas/pre-data.sql",
    );
    let withdrawn = after("REVOKE SELECT ON right_twin FROM auditor", "GRANT SELECT ON right_twin TO auditor");
    graft("a grant lost", &["grants on table public.right_twin"], &withdrawn, "databases/altlas/pre-data.sql");
    let left_out = after("REVOKE auditor FROM clerk", "GRANT auditor TO clerk");
    graft("a membership lost", &["globals.sql"], &left_out, "globals.sql");
    let shut_out =
        after("REVOKE CONNECT ON DATABASE altlas FROM auditor", "GRANT CONNECT ON DATABASE altlas TO auditor");
    graft("a grant on the database lost", &["properties.sql"], &shut_out, "databases/altlas/properties.sql");
    let widened = after(
        "ALTER TABLE left_twin DROP CONSTRAINT is_positive, ADD CONSTRAINT is_positive CHECK (id >= 0)",
        "ALTER TABLE left_twin DROP CONSTRAINT is_positive, ADD CONSTRAINT is_positive CHECK (id > 0)",
    );
    graft(
        "a constraint changed",
        &["is_positive of table public.left_twin"],
        &widened,
        "databases/altlas/pre-data.sql",
    );
    found(&workspace, &first, "a table's rows forgotten", &["table public.left_twin"], |copy| {
        forge::change_manifest(copy, &first, "database", |manifest| {
            let artifacts = manifest["artifacts"].as_array_mut().unwrap();
            artifacts.retain(|one| !one["path"].as_str().unwrap().ends_with("left_twin"));
        });
    });
    found(&workspace, &first, "a database forgotten", &["databases/altlas/pre-data.sql"], |copy| {
        forge::change_manifest(copy, &first, "database", |manifest| {
            manifest["detail"]["databases"].as_array_mut().unwrap().clear();
        });
    });
    found(&workspace, &first, "parts swapped", &["public.left_twin", "public.right_twin"], |copy| {
        forge::change_manifest(copy, &first, "database", |manifest| {
            let artifacts = manifest["artifacts"].as_array_mut().unwrap();
            let place =
                |name: &str| artifacts.iter().position(|one| one["path"].as_str().unwrap().ends_with(name)).unwrap();
            let (left, right) = (place("left_twin"), place("right_twin"));
            let parts = [artifacts[left]["parts"].clone(), artifacts[right]["parts"].clone()];
            let raw = [artifacts[left]["raw"].clone(), artifacts[right]["raw"].clone()];
            [artifacts[right]["parts"], artifacts[left]["parts"]] = parts;
            [artifacts[right]["raw"], artifacts[left]["raw"]] = raw;
        });
    });
    // What the server holds now is what it held at first, but for its age.
    let last = back_up(&workspace);
    found(&workspace, &last, "an older manifest under the new id", &["database.manifest"], |copy| {
        let mut older = forge::manifest(copy, &first, "database");
        older["backup"] = json!(last);
        forge::put_manifest(copy, &last, "database", &older);
    });
}

#[test]
fn of_redis() {
    let server = Redis::start(RedisVersion::V70);
    server.fill("altlas", 300, 5);
    server.command(&["SET", "session:1", "one"]);
    server.command(&["SET", "session:2", "two"]);
    server.command(&["SET", "session:3", "three"]);
    server.command(&["RPUSH", "queue", "a", "b", "c"]);
    server.command(&["PEXPIREAT", "session:3", "1999999999000"]);
    server.command(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)"]);
    let workspace = Workspace::folder().redis(&server);
    workspace.run(&["init"]).ok();
    let first = back_up(&workspace);
    verified(&workspace, &first);
    let spoilt = |what: &str, names: &[&str], change: &[&str], undo: &[&[&str]]| {
        server.command(change);
        let donor = back_up(&workspace);
        undo.iter().for_each(|words| drop(server.command(words)));
        found(&workspace, &first, what, names, |copy| forge::graft(copy, &first, &donor, "cache", "dump.rdb"));
    };
    spoilt("a value changed", &["session:1"], &["SET", "session:1", "ONE"], &[&["SET", "session:1", "one"]]);
    spoilt("a key lost", &["session:2"], &["DEL", "session:2"], &[&["SET", "session:2", "two"]]);
    spoilt(
        "a time to live changed",
        &["session:3"],
        &["PEXPIREAT", "session:3", "1999999998000"],
        &[&["PEXPIREAT", "session:3", "1999999999000"]],
    );
    spoilt("a key in another database", &["session:1"], &["MOVE", "session:1", "9"], &[&["SET", "session:1", "one"]]);
    spoilt(
        "a list in another order",
        &["queue"],
        &["RPOPLPUSH", "queue", "queue"],
        &[&["LMOVE", "queue", "queue", "LEFT", "RIGHT"]],
    );
    let other = "#!lua name=lib\nredis.register_function('f', function() return 2 end)";
    spoilt("a function changed", &["function"], &["FUNCTION", "LOAD", "REPLACE", other], &[]);
}

/// Changes a byte of a message's payload in an archive of format 1, and its record's hash (nats-server `filestore.go`; the layout is told in
/// `src/source/nats/archive/blocks.rs`). The message has no headers and is in the first block.
fn change_payload(archive: &mut [u8], stream: &str, subject: &str, payload: &[u8]) {
    let text = [subject.as_bytes(), payload].concat();
    let at = archive.windows(text.len()).position(|window| window == text).expect("the message is there");
    let end = at + text.len();
    archive[end - 1] ^= 1;
    let digest: [u8; 32] = Sha256::digest(format!("{stream}-1")).into();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap());
    }
    let mut hasher = HighwayHasher::new(Key(words));
    // Sequence and time are before the subject's length.
    HighwayHash::append(&mut hasher, &archive[at - 18..at - 2]);
    HighwayHash::append(&mut hasher, &archive[at..end]);
    let hash = hasher.finish();
    archive[end..end + 8].copy_from_slice(&hash.to_le_bytes());
}

#[test]
fn of_jetstream() {
    let server = Nats::start(NatsVersion::V29);
    let create = |limit: u64| json!({"name": "JOBS", "subjects": ["jobs.>"], "retention": "limits", "storage": "file", "max_msgs": limit});
    server.ask("STREAM.CREATE.JOBS", &create(1000));
    for n in 1..=20 {
        server.publish("jobs.plain", format!("payload-{n:04}").as_bytes());
    }
    server
        .connection()
        .publish_with_header("jobs.header", b"NATS/1.0\r\nKind: important\r\n\r\n", b"with a header")
        .unwrap();
    server.ask(
        "CONSUMER.DURABLE.CREATE.JOBS.worker",
        &json!({"stream_name": "JOBS", "config": {"durable_name": "worker", "ack_policy": "explicit"}}),
    );
    let workspace = Workspace::folder().nats(&server);
    workspace.run(&["init"]).ok();
    let archive = "streams/JOBS";
    let first = back_up(&workspace);
    verified(&workspace, &first);
    let stream = &["stream `JOBS`"][..];
    found(&workspace, &first, "a byte of a payload", stream, |copy| {
        forge::rewrite(copy, &first, "messages", archive, |bytes| {
            change_payload(bytes, "JOBS", "jobs.plain", b"payload-0007");
        });
    });
    let graft = |what: &str, donor: &str| {
        found(&workspace, &first, what, stream, |copy| forge::graft(copy, &first, donor, "messages", archive));
    };
    server.ask("STREAM.UPDATE.JOBS", &create(2000));
    let limited = back_up(&workspace);
    server.ask("STREAM.UPDATE.JOBS", &create(1000));
    graft("a limit changed", &limited);
    server.ask("CONSUMER.DELETE.JOBS.worker", &json!(null));
    let unconsumed = back_up(&workspace);
    graft("a consumer lost", &unconsumed);
    server.ask("STREAM.MSG.DELETE.JOBS", &json!({"seq": 9}));
    let holed = back_up(&workspace);
    graft("a message lost in the middle", &holed);
    // Of the messages as they were, but without the header.
    server.delete_stream("JOBS");
    server.ask("STREAM.CREATE.JOBS", &create(1000));
    for n in 1..=20 {
        server.publish("jobs.plain", format!("payload-{n:04}").as_bytes());
    }
    server.publish("jobs.header", b"with a header");
    let bare = back_up(&workspace);
    graft("a header lost", &bare);
}

/// The sabotage above leaves everything else as it is: without it the copy is verified.
#[test]
fn a_copy_that_is_not_spoilt_is_verified() {
    let server = Postgres::start(Major::V15);
    server.create_altlas("altlas", 50, 3);
    let workspace = Workspace::folder().postgres(&server, &["altlas"]);
    workspace.run(&["init"]).ok();
    let first = back_up(&workspace);
    let copy = workspace.copy();
    let manifest = forge::manifest(&copy, &first, "database");
    forge::put_manifest(&copy, &first, "database", &manifest);
    let report = verified(&copy, &first);
    let tables: BTreeSet<&str> =
        report["sources"][0]["same"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(tables.contains("altlas: public.last_files"), "{tables:?}");
}
