//! Users that may do what the README says they must, and nothing more.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{SOON, initialised, restore_at};
use crate::{
    failures::{Failure, assert_nothing_recorded},
    support::{
        mode::Mode,
        nats::{Connection, Nats, NatsVersion, Setup},
        workspace::Workspace,
    },
};

/// What the README gives the user `backup`.
const BACKUP: [&str; 7] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.CONSUMER.LIST.*",
    "$JS.API.CONSUMER.INFO.*.*",
    "$JS.API.STREAM.SNAPSHOT.*",
    "$JS.SNAPSHOT.ACK.>",
];

/// The README's users, beside the one of the test's own who may do everything; without these subjects. Theirs are `reader` and
/// `writer` here, since the test's own has the name that one of theirs has.
fn documented(without: &[&str]) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let block = readme.split("```").find(|block| block.trim_start().starts_with("authorization {")).unwrap();
    for subject in BACKUP {
        assert!(block.contains(&format!("\"{subject}\"")), "`{subject}` is not in the README");
    }
    let mut block = block.replace("user: backup", "user: reader").replace("user: restore", "user: writer");
    for subject in without {
        block = block.replace(&format!("\"{subject}\""), "\"nothing.of.that\"");
    }
    assert_eq!(block.matches("password: \"…\"").count(), 2, "{block}");
    block
        .replace("password: \"…\"", "password: PASSWORD")
        .replace("users: [", "users: [{ user: backup, password: PASSWORD }")
}

fn start(version: NatsVersion, without: &[&str]) -> Nats {
    Nats::start_with(version, &[&documented(without)])
}

fn set_up(server: &mut Nats, without: &[&str]) {
    server.stop();
    server.set_up(Setup::new().lines(&[&documented(without)]));
    server.resume();
}

/// Its address as another user than the test's own.
fn url_as(server: &Nats, user: &str) -> String {
    format!("nats://{user}@127.0.0.1:{}", server.port())
}

fn workspace_as(server: &Nats, user: &str) -> Workspace {
    let workspace = Workspace::folder().nats_as("messages", &url_as(server, user), &server.password_file());
    workspace.run(&["init"]).ok();
    workspace
}

#[test]
fn the_documented_users_back_up_and_restore() {
    for version in NatsVersion::ENDS {
        let (source, target) = (start(version, &[]), start(version, &[]));
        source.fill("altlas", 200, 1);
        // More than is sent without an acknowledgement.
        source.fill("large", 1500, 1);
        // One that archives of files do not hold: it is asked for, and made again.
        let config = json!({ "durable_name": "in-memory", "ack_policy": "explicit", "mem_storage": true });
        source.ask(
            "CONSUMER.DURABLE.CREATE.LAST_FILES.in-memory",
            &json!({ "stream_name": "LAST_FILES", "config": config }),
        );
        let workspace = workspace_as(&source, "reader");
        let doctor = workspace.run(&["doctor"]).ok();
        assert!(doctor.stdout.contains("as user `reader`"), "{}", doctor.text());
        super::back_up(&workspace);
        let restored = restore_at(&workspace, &url_as(&target, "writer"), &target, &[]).ok();
        let made_again = restored.stdout.contains("consumer `in-memory` of stream `LAST_FILES` was made again");
        assert_eq!(made_again, version == NatsVersion::V29, "{}", restored.text());
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
        target.publish("last.files.new", b"another");
        restore_at(&workspace, &url_as(&target, "writer"), &target, &["--overwrite"]).ok();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}

/// Requests by hand, as who has stolen the backup user's password would make them.
#[test]
fn the_backup_user_changes_nothing() {
    for version in NatsVersion::ENDS {
        let server = start(version, &[]);
        server.fill("altlas", 50, 2);
        let before = server.digest(&["--messages"]);
        let as_reader =
            || Connection::open(server.port(), &json!({ "user": "reader", "pass": server.password() })).unwrap();
        let stream = json!({ "name": "MORE", "subjects": ["more"] });
        let consumer =
            json!({ "stream_name": "LAST_FILES", "config": { "durable_name": "more", "ack_policy": "explicit" } });
        for (subject, body) in [
            ("last.files.new", json!("a message")),
            ("$KV.archive-settings.rule.1", json!("a value")),
            ("$JS.API.STREAM.DELETE.LAST_FILES", Value::Null),
            ("$JS.API.STREAM.PURGE.LAST_FILES", Value::Null),
            ("$JS.API.STREAM.MSG.DELETE.LAST_FILES", json!({ "seq": 1 })),
            ("$JS.API.STREAM.CREATE.MORE", stream.clone()),
            ("$JS.API.STREAM.UPDATE.LAST_FILES", json!({ "name": "LAST_FILES", "max_msgs": 1 })),
            ("$JS.API.STREAM.RESTORE.MORE", json!({ "config": stream, "state": {} })),
            ("$JS.API.CONSUMER.DURABLE.CREATE.LAST_FILES.more", consumer),
            ("$JS.API.CONSUMER.DELETE.LAST_FILES.archive-service", Value::Null),
            ("$JS.API.CONSUMER.MSG.NEXT.LAST_FILES.archive-service", Value::Null),
        ] {
            let error = as_reader().request(subject, body.to_string().as_bytes()).unwrap_err().to_string();
            assert!(
                error.contains("Permissions Violation for Publish") && error.contains(subject),
                "{subject}: {error}"
            );
        }
        before.assert_same(&server.digest(&["--messages"]));
        assert!(as_reader().request("$JS.API.INFO", b"").is_ok(), "or it may do nothing at all");
    }
}

/// Each of the subjects is needed, and what is missing is named.
#[test]
fn a_backup_user_that_may_not_do_all_of_it() {
    for version in NatsVersion::ENDS {
        let mut server = start(version, &[]);
        server.fill("large", 1500, 3);
        let workspace = workspace_as(&server, "reader");
        // Without it doctor complains, and a backup needs it for large streams only.
        for missing in
            ["$JS.SNAPSHOT.ACK.>", "$JS.API.STREAM.LIST", "$JS.API.STREAM.SNAPSHOT.*", "$JS.API.CONSUMER.LIST.*"]
        {
            set_up(&mut server, &[missing]);
            let subject = missing.trim_end_matches(['*', '>']);
            Failure { code: 1, kind: "source", words: &["Permissions Violation", subject], hint: "Permissions" }
                .of(|| workspace.run(&["backup"]).deadline(SOON));
            let told = workspace.run(&["doctor"]).output().assert_code(1);
            assert!(told.text().contains(subject), "{}", told.text());
        }
        assert_nothing_recorded(&workspace);
        set_up(&mut server, &[]);
        super::back_up(&workspace);
        workspace.run(&["doctor"]).ok();
    }
}

/// One that may not do everything: told, with the target as it was.
#[test]
fn a_restore_user_that_may_not_do_all_of_it() {
    let source = Nats::start(NatsVersion::V215);
    source.fill("altlas", 50, 4);
    let workspace = initialised(Mode::Clear, &source);
    super::back_up(&workspace);
    let mut target = start(NatsVersion::V215, &[]);
    let streams = |target: &Nats| target.streams();
    for missing in ["$JS.API.STREAM.RESTORE.*", "$JS.SNAPSHOT.RESTORE.>", "$JS.API.STREAM.UPDATE.*"] {
        set_up(&mut target, &[missing]);
        let output = restore_at(&workspace, &url_as(&target, "writer"), &target, &[]).output();
        let output = output.assert_error(1, &["Permissions Violation", missing.trim_end_matches(['*', '>'])]);
        assert!(output.stderr.contains("Permissions"), "{}", output.text());
        assert_eq!(streams(&target), Vec::<String>::new(), "{missing}\n{}", output.text());
    }
    let output = restore_at(&workspace, &url_as(&target, "reader"), &target, &[]).output();
    output.assert_error(1, &["Permissions Violation"]);
    assert_eq!(streams(&target), Vec::<String>::new());
}

/// One that may not restore does not get as far as to delete what is there; and one that may not delete is told at once.
#[test]
fn a_restore_user_that_may_not_replace() {
    for version in NatsVersion::ENDS {
        let source = Nats::start(version);
        source.fill("altlas", 50, 5);
        let workspace = initialised(Mode::Clear, &source);
        super::back_up(&workspace);
        let mut target = start(version, &[]);
        target.fill("altlas", 80, 6);
        let was = target.digest(&["--messages"]);
        for missing in ["$JS.API.STREAM.RESTORE.*", "$JS.SNAPSHOT.RESTORE.>", "$JS.API.STREAM.DELETE.*"] {
            set_up(&mut target, &[missing]);
            let began = Instant::now();
            let output = restore_at(&workspace, &url_as(&target, "writer"), &target, &["--overwrite"]).output();
            let output = output.assert_error(1, &["Permissions Violation", missing.trim_end_matches(['*', '>'])]);
            // Trying to remove what a restore left takes a minute.
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}\n{}", began.elapsed(), output.text());
            was.assert_same(&target.digest(&["--messages"]));
        }
        set_up(&mut target, &[]);
        restore_at(&workspace, &url_as(&target, "writer"), &target, &["--overwrite"]).ok();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}
