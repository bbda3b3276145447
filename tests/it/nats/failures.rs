//! Servers that cannot be backed up, and streams of which some cannot: one clear error, a next step, nothing recorded that is not there.

use std::{
    io::Write,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{self, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    SOON, back_up, before, initialised, restore, through,
    wire::{Fate, chunks},
};
use crate::{
    failures::{Failure, assert_nothing_recorded},
    support::{
        binary::Run,
        free_port,
        mode::Mode,
        nats::{Connection, Nats, NatsVersion, Setup},
        proxy::{Step, Way},
        wait_for,
        workspace::Workspace,
    },
};

/// Runs it for people and with `--json`, at once.
#[track_caller]
fn source(words: &[&str], hint: &str, run: impl Fn() -> Run) {
    let run = || run().deadline(SOON * 2);
    Failure { code: 1, kind: "source", words: &[&["source `messages`"], words].concat(), hint }.of_both_at_once(run);
}

/// A stream of a few messages.
fn create(server: &Nats, name: &str, storage: &str) {
    let subject = name.to_lowercase();
    server.ask(&format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": [subject], "storage": storage }));
    for n in 0..5_u8 {
        server.publish(&subject, &[n; 100]);
    }
}

/// A stream of so many megabytes that do not compress, in messages of 100 KB.
fn create_large(server: &Nats, name: &str, megabytes: usize) {
    let subject = name.to_lowercase();
    server.ask(&format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": [subject] }));
    let mut connection = server.connection();
    for _ in 0..megabytes * 10 {
        let payload: Vec<u8> = (0..25_000).flat_map(|_| rand::random::<u32>().to_le_bytes()).collect();
        // Stored when it is answered.
        assert_eq!(connection.request(&subject, &payload).unwrap().status, None);
    }
}

#[test]
fn servers_that_cannot_be_reached_or_do_not_let_us_in() {
    for version in NatsVersion::ENDS {
        let server = Nats::start(version);
        create(&server, "FILES", "file");
        let mut workspace = initialised(Mode::Clear, &server);
        let place = format!("127.0.0.1:{}", server.port());

        let wrong = workspace.secret("wrong", "not-the-password");
        workspace.set("source.0.password_file", wrong.display().to_string());
        source(&[&place, "user `backup`"], "`password_file`", || workspace.run(&["backup"]));
        // A user that is not there, no user, and a token in place of one.
        workspace.set("source.0.password_file", server.password_file().display().to_string());
        workspace.set("source.0.url", format!("nats://nobody@{place}"));
        source(&[&place, "user `nobody`"], "`username`", || workspace.run(&["backup"]));
        workspace.table["source"][0].as_table_mut().unwrap().remove("password_file");
        workspace.set("source.0.url", server.url());
        source(&[&place, "without a login"], "`password_file`", || workspace.run(&["backup"]));
        workspace.set("source.0.token_file", wrong.display().to_string());
        source(&[&place, "with a token"], "`token_file`", || workspace.run(&["backup"]));
        let closed = format!("127.0.0.1:{}", free_port());
        workspace.set("source.0.url", format!("nats://{closed}"));
        source(&["cannot connect", &closed, "refused"], "port", || workspace.run(&["backup"]));
        workspace.set("source.0.url", format!("nats://nowhere.invalid:{}", server.port()));
        source(&["cannot connect", "nowhere.invalid"], "host", || workspace.run(&["backup"]));
        assert_nothing_recorded(&workspace);
    }
}

/// A server that asks for a token.
#[test]
fn tokens() {
    let server = Nats::start_as(NatsVersion::V29, Setup::new().token());
    create(&server, "FILES", "file");
    let mut workspace = Workspace::folder().nats_as("messages", &server.url(), &server.password_file());
    let source_table = workspace.table["source"][0].as_table_mut().unwrap();
    let file = source_table.remove("password_file").unwrap();
    let place = format!("127.0.0.1:{}", server.port());
    let wrong = workspace.secret("wrong", "not-the-token");
    workspace.set("source.0.token_file", wrong.display().to_string());
    workspace.run(&["init"]).ok();
    let output = workspace.run(&["-v", "backup"]).output();
    assert!(!output.text().contains("not-the-token"), "{}", output.text());
    source(&[&place, "with a token"], "`token_file`", || workspace.run(&["backup"]));
    workspace.table["source"][0].as_table_mut().unwrap().remove("token_file");
    source(&[&place, "without a login"], "`token_file`", || workspace.run(&["backup"]));
    assert_nothing_recorded(&workspace);
    workspace.set("source.0.token_file", file);
    back_up(&workspace);
}

/// What listens there is something else: it says something, nothing, or ends at once.
#[test]
fn hosts_that_are_no_nats_server() {
    let listen = |greeting: Option<&'static [u8]>, stay: bool| {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for mut client in listener.incoming().flatten() {
                let _ = client.write_all(greeting.unwrap_or_default());
                if stay {
                    open.push(client);
                }
            }
        });
        port
    };
    let hosts = [
        listen(Some(b"SSH-2.0-OpenSSH_9.2\r\n"), true),
        listen(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), false),
        listen(Some(b"INFO {\"what\": \"is this\"}\r\n"), true),
        listen(Some(&[0xff; 5000]), true),
        listen(None, true),
        listen(None, false),
    ];
    std::thread::scope(|scope| {
        for port in hosts {
            scope.spawn(move || {
                let mut workspace = Workspace::folder();
                let password = workspace.secret("password", "any");
                workspace = workspace.nats_as("messages", &format!("nats://backup@127.0.0.1:{port}"), &password);
                workspace.run(&["init"]).ok();
                source(&[&format!("127.0.0.1:{port}")], "", || workspace.run(&["backup"]));
                assert_nothing_recorded(&workspace);
            });
        }
    });
}

/// JetStream is off: on the server, and for the account. A server of a cluster is refused.
#[test]
fn servers_without_jetstream_and_of_a_cluster() {
    let accounts = "accounts { FIRST: { jetstream: enabled, users: [{ user: backup, password: PASSWORD }] }, \
                    OTHER: { users: [{ user: other, password: PASSWORD }] } }";
    for version in NatsVersion::ENDS {
        let off = Nats::start_as(version, Setup::new().without_jetstream());
        let without = Nats::start_with(version, &["authorization {}", accounts]);
        create(&without, "FILES", "file");
        for (server, url) in
            [(&off, off.url_with_user()), (&without, format!("nats://other@127.0.0.1:{}", without.port()))]
        {
            let mut workspace = Workspace::folder().nats_as("messages", &url, &server.password_file());
            workspace.run(&["init"]).ok();
            let words = ["source `messages`", &format!("127.0.0.1:{}", server.port()), "no JetStream"];
            let failure = Failure { code: 1, kind: "empty", words: &words, hint: "`allow_empty = true`" };
            failure.of(|| workspace.run(&["backup"]));
            assert_nothing_recorded(&workspace);
            let told = workspace.run(&["doctor"]).output().assert_code(1);
            assert!(told.text().contains("no JetStream"), "{}", told.text());
            // A stream that should be there is not.
            workspace.set("source.0.streams", vec!["FILES"]);
            workspace.set("source.0.allow_empty", true);
            workspace.run(&["backup"]).output().assert_error(1, &["source `messages`", "JetStream"]);
            assert_nothing_recorded(&workspace);
        }
        let cluster = format!("cluster {{ name: many, listen: \"127.0.0.1:{}\" }}", free_port());
        let server = Nats::start_as(version, Setup::new().without_jetstream().lines(&["server_name: one", &cluster]));
        let workspace = initialised(Mode::Clear, &server);
        source(&[&format!("127.0.0.1:{}", server.port()), "cluster `many`"], "other means", || {
            workspace.run(&["backup"])
        });
        assert_nothing_recorded(&workspace);
    }
}

/// Nothing found is not fine.
#[test]
fn streams_that_are_not_there() {
    for version in NatsVersion::ENDS {
        let server = Nats::start(version);
        let place = format!("127.0.0.1:{}", server.port());
        let mut workspace = initialised(Mode::Clear, &server);
        let empty = Failure {
            code: 1,
            kind: "empty",
            words: &["source `messages`", "no stream"],
            hint: "`allow_empty = true`",
        };
        empty.of(|| workspace.run(&["backup"]));
        create(&server, "FILES", "file");
        // A pattern that fits none, and a name that is not there beside one that is.
        workspace.set("source.0.streams", vec!["OTHER_*"]);
        empty.of(|| workspace.run(&["backup"]));
        workspace.set("source.0.streams", vec!["FILES", "GONE"]);
        source(&[&place, "no stream `GONE`"], "`streams`", || workspace.run(&["backup"]));
        workspace.set("source.0.allow_empty", true);
        source(&[&place, "no stream `GONE`"], "`streams`", || workspace.run(&["backup"]));
        assert_nothing_recorded(&workspace);

        workspace.set("source.0.streams", vec!["OTHER_*"]);
        let report = workspace.run(&["--json", "backup"]).ok().json();
        assert_eq!(report["sources"][0]["state"], "empty", "{report}");
        assert!(report["sources"][0]["uncovered"][0].as_str().unwrap().contains("`FILES`"), "{report}");
        let target = Nats::start(version);
        restore(&workspace, &target, &[]).ok();
        assert_eq!(target.streams(), Vec::<String>::new());
    }
}

/// Servers before 2.15 take no snapshot of what is in memory: said where it is one of many, failed where it is asked for.
#[test]
fn a_stream_in_memory() {
    let server = Nats::start(NatsVersion::V29);
    create(&server, "FILES", "file");
    create(&server, "FLEETING", "memory");
    let mut workspace = initialised(Mode::Clear, &server);
    let source_report = back_up(&workspace);
    let uncovered = source_report["uncovered"][0].as_str().unwrap().to_owned();
    assert!(uncovered.contains("`FLEETING`") && uncovered.contains("memory"), "{uncovered}");
    let told = workspace.run(&["doctor"]).output();
    assert!(told.text().contains("`FLEETING`"), "{}", told.text());

    workspace.set("source.0.streams", vec!["FILES", "FLEETING"]);
    let report = workspace.run(&["--json", "backup"]).output().assert_code(5).json();
    assert_partial(&report, "FLEETING", "memory");
    workspace.set("source.0.streams", vec!["FLEETING"]);
    source(&["`FLEETING`", "memory", "2.9"], "2.15", || workspace.run(&["backup"]));
    let told = workspace.run(&["doctor"]).output().assert_code(1);
    assert!(told.text().contains("`FLEETING`"), "{}", told.text());
}

/// A backup without this one stream, with the reason and a next step.
#[track_caller]
fn assert_partial(report: &Value, stream: &str, reason: &str) {
    let source = &report["sources"][0];
    assert_eq!((&report["state"], &source["state"]), (&json!("partial"), &json!("partial")), "{report}");
    let failed: Vec<&str> = source["failed"].as_array().unwrap().iter().map(|what| what.as_str().unwrap()).collect();
    assert_eq!(failed.len(), 1, "{report}");
    assert!(failed[0].contains(&format!("`{stream}`")) && failed[0].contains(reason), "{report}");
    assert!(source["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{report}");
}

/// Users who may not do what a backup needs.
#[test]
fn users_without_a_permission() {
    let user = |name: &str, denied: &str| {
        format!("{{ user: {name}, password: PASSWORD, permissions: {{ publish: {{ deny: [\"{denied}\"] }} }} }}")
    };
    let users = format!(
        "authorization {{ users: [{{ user: backup, password: PASSWORD }}, {}, {}, {}, {}] }}",
        user("no-acks", "$JS.SNAPSHOT.ACK.>"),
        user("no-snapshots", "$JS.API.STREAM.SNAPSHOT.>"),
        user("not-this-one", "$JS.API.STREAM.SNAPSHOT.OTHER"),
        user("no-list", "$JS.API.STREAM.LIST"),
    );
    for version in NatsVersion::ENDS {
        let server = Nats::start_with(version, &[&users]);
        let place = format!("127.0.0.1:{}", server.port());
        create(&server, "FILES", "file");
        create(&server, "OTHER", "file");
        let as_user = |name: &str| {
            let url = format!("nats://{name}@{place}");
            let workspace = Workspace::folder().nats_as("messages", &url, &server.password_file());
            workspace.run(&["init"]).ok();
            workspace
        };
        // `doctor` says so before there is a stream for which it matters.
        let workspace = as_user("no-acks");
        let told = workspace.run(&["doctor"]).output().assert_code(1);
        assert!(told.text().contains("$JS.SNAPSHOT.ACK.") && told.text().contains(&place), "{}", told.text());

        let listing = as_user("no-list");
        source(&[&place, "listing", "$JS.API.STREAM.LIST"], "Permissions", || listing.run(&["backup"]));
        let snapshots = as_user("no-snapshots");
        let words = [&place, "`FILES`", "`OTHER`", "$JS.API.STREAM.SNAPSHOT."];
        source(&words, "Permissions", || snapshots.run(&["backup"]));
        assert_nothing_recorded(&snapshots);
        let one = as_user("not-this-one");
        let report = one.run(&["--json", "backup"]).output().assert_code(5).json();
        assert_partial(&report, "OTHER", "$JS.API.STREAM.SNAPSHOT.OTHER");

        server.delete_stream("OTHER");
        create_large(&server, "LARGE", 9);
        server.delete_stream("FILES");
        source(&[&place, "`LARGE`", "$JS.SNAPSHOT.ACK."], "Permissions", || workspace.run(&["backup"]));
        assert_nothing_recorded(&workspace);
    }
}

/// A stream that somebody deletes while it is read.
#[test]
fn a_stream_that_is_deleted_in_the_middle() {
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            for (beside, literal) in [(true, false), (true, true), (false, false)] {
                scope.spawn(move || deleted_in_the_middle(version, beside, literal));
            }
        }
    });
}

fn deleted_in_the_middle(version: NatsVersion, beside: bool, literal: bool) {
    let server = Nats::start(version);
    create_large(&server, "LARGE", 12);
    let mut workspace = initialised(Mode::Clear, &server);
    if beside {
        server.fill("altlas", 100, 1);
    }
    if literal {
        workspace.set("source.0.streams", vec!["LAST_*", "LARGE"]);
    }
    let proxy = before(&server);
    let (port, login) = (server.port(), json!({ "user": server.user(), "pass": server.password() }));
    proxy.on_bytes(chunks(move |chunk| {
        if chunk.stream == "LARGE" && chunk.attempt == 1 && (2_000_000..2_200_000).contains(&chunk.offset) {
            let mut connection = Connection::open(port, &login).unwrap();
            connection.request("$JS.API.STREAM.DELETE.LARGE", b"").unwrap();
        }
        Fate::Pass
    }));
    through(&mut workspace, &server, &proxy);
    let output = workspace.run(&["--json", "backup"]).deadline(SOON * 2).output();
    assert!(!server.streams().contains(&"LARGE".to_owned()));
    let text = output.text();
    match (beside, literal) {
        (false, _) => {
            let output = output.assert_error(1, &["source `messages`"]);
            assert!(output.stderr.contains("LARGE") && output.stderr.contains("deleted"), "{text}");
            assert!(output.json()["error"]["hint"].is_string(), "{text}");
            assert_nothing_recorded(&workspace);
            return;
        }
        // It is configured by its name, and it is gone.
        (true, true) => assert_partial(&output.assert_code(5).json(), "LARGE", "deleted"),
        (true, false) => {
            let report = output.assert_code(0).json();
            let notes = report["sources"][0]["notes"].to_string();
            assert!(notes.contains("stream `LARGE` was deleted"), "{report}");
        }
    }
    let target = Nats::start(version);
    let id =
        workspace.run(&["--json", "list"]).ok().json()["backups"][0]["head"]["backup"].as_str().unwrap().to_owned();
    restore_by_id(&workspace, &id, &target).ok();
    for name in ["LAST_FILES", "LAST_FILES_DEAD"] {
        let one = ["--messages", "--stream", name];
        server.digest(&one).assert_same(&target.digest(&one));
    }
    assert!(!target.streams().contains(&"LARGE".to_owned()));
}

/// A stream that is deleted and made again while its archive is on its way is another one: it is captured anew.
#[test]
fn a_stream_that_is_made_again_in_the_middle() {
    for version in NatsVersion::ENDS {
        let source = Nats::start(version);
        let make = |source: &Nats, word: &str| {
            create(source, "FILES", "file");
            for n in 0..20 {
                source.publish("files", format!("{word} {n}").as_bytes());
            }
        };
        make(&source, "old");
        let proxy = before(&source);
        let mut workspace = initialised(Mode::Clear, &source);
        through(&mut workspace, &source, &proxy);
        let (go, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (asked, done) = (go.clone(), made.clone());
        // What is there no more is asked for when the archive has come.
        proxy.on_bytes(move |way, _, bytes| {
            if way == Way::Up && !done.load(SeqCst) && String::from_utf8_lossy(&bytes).contains("deleted_details") {
                asked.store(true, SeqCst);
                let until = Instant::now() + SOON;
                while !done.load(SeqCst) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            vec![Step::Send(bytes)]
        });
        let running = workspace.run(&["--json", "backup"]).spawn();
        wait_for("the archive to be there", SOON, || go.load(SeqCst).then_some(()));
        source.delete_stream("FILES");
        make(&source, "new");
        for seq in [3, 4, 5] {
            source.ask("STREAM.MSG.DELETE.FILES", &json!({ "seq": seq }));
        }
        made.store(true, SeqCst);
        let report = running.wait().assert_code(0).json();
        assert_eq!(report["state"], "complete", "{report}");
        let target = Nats::start(version);
        super::restore(&workspace, &target, &[]).ok();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}

fn restore_by_id(workspace: &Workspace, id: &str, target: &Nats) -> Run {
    let address = format!("messages={}", target.url_with_user());
    let run = workspace.run(&["restore", id, "--yes", "--source", "messages", "--target", &address]);
    run.env("ALTLAS_BACKUP_TARGET_MESSAGES_PASSWORD", target.password())
}

/// One stream whose snapshot breaks the connection every time, as one does that a server cannot read: it is tried again, then named; the
/// others are in the backup, and `latest` is the one before.
#[test]
fn one_stream_that_keeps_failing() {
    std::thread::scope(|scope| {
        for version in NatsVersion::ENDS {
            scope.spawn(move || one_of_many_keeps_failing(version));
        }
    });
}

fn one_of_many_keeps_failing(version: NatsVersion) {
    let server = Nats::start(version);
    server.fill("altlas", 100, 2);
    create(&server, "BROKEN", "file");
    let mut workspace = initialised(Mode::Clear, &server);
    let first = workspace.run(&["--json", "backup"]).ok().json()["backup"].clone();
    let proxy = before(&server);
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    proxy.on_bytes(chunks(move |chunk| {
        if chunk.stream != "BROKEN" || chunk.way == Way::Up {
            return Fate::Pass;
        }
        seen.store(chunk.attempt, Ordering::SeqCst);
        Fate::Cut
    }));
    through(&mut workspace, &server, &proxy);
    server.publish("last.files", b"newer");
    let output = workspace.run(&["--json", "backup"]).deadline(SOON * 2).output().assert_code(5);
    assert!(!output.stderr.contains("panicked"), "{}", output.text());
    let report = output.json();
    assert_partial(&report, "BROKEN", &format!("127.0.0.1:{}", proxy.port()));
    assert_eq!(attempts.load(Ordering::SeqCst), 3, "tried again, and not for ever");
    // For people too.
    let (begun, text) =
        (std::time::Instant::now(), workspace.run(&["backup"]).deadline(SOON * 2).output().assert_code(5));
    assert!(begun.elapsed() < Duration::from_secs(100) && text.stdout.contains("`BROKEN`"), "{}", text.text());
    assert!(text.stdout.contains("PARTIAL") && text.stdout.contains("\nhint: "), "{}", text.text());

    let latest = workspace.run(&["--json", "show", "latest"]).ok().json();
    assert_eq!(latest["head"]["backup"], first, "what is partial is not the latest");
    let target = Nats::start(version);
    restore_by_id(&workspace, report["backup"].as_str().unwrap(), &target).ok();
    let mut expected = server.streams();
    expected.retain(|name| name != "BROKEN");
    assert_eq!(target.streams(), expected);
    for name in &expected {
        let one = ["--messages", "--stream", name];
        server.digest(&one).assert_same(&target.digest(&one));
    }
}
