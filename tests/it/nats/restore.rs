//! What a restore does to its target, and what it refuses to do.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{SOON, back_up, before, initialised, proof, restore, restore_at};
use crate::{
    failures::Failure,
    support::{
        library::Library,
        mode::{Mode, in_both_modes},
        nats::{Connection, Nats, NatsVersion, Setup},
        proxy::{Step, TcpProxy, Way},
        wait_for,
        workspace::Workspace,
    },
};

use NatsVersion::{V29, V212, V214, V215};

/// A server logs every request, so that a test sees what it was asked for.
const TRACED: &str = "trace: true";

in_both_modes! {
    a_target_with_streams_of_these_names,
    a_repository_with_a_flipped_byte,
}

/// A server with this content, backed up once.
fn backed_up(mode: Mode, version: NatsVersion, kind: &str, size: u64) -> (Nats, Workspace) {
    let source = Nats::start(version);
    source.fill(kind, size, 41);
    let workspace = initialised(mode, &source);
    back_up(&workspace);
    (source, workspace)
}

/// Requests of the API in a traced server's log that change something.
fn changes(server: &Nats) -> Vec<String> {
    let log = server.log();
    assert!(log.contains("$JS.API.INFO"), "it does not log requests");
    let requests = log.lines().filter_map(|line| line.split("[PUB $JS.API.").nth(1)).filter(|request| {
        [
            "STREAM.CREATE",
            "STREAM.UPDATE",
            "STREAM.DELETE",
            "STREAM.PURGE",
            "STREAM.MSG.DELETE",
            "STREAM.RESTORE",
            "CONSUMER.C",
            "CONSUMER.D",
        ]
        .iter()
        .any(|changes| request.starts_with(changes))
    });
    requests.map(str::to_owned).collect()
}

fn place(server: &Nats) -> String {
    format!("127.0.0.1:{}", server.port())
}

/// A backup of a newer server than the target: found in the plan, both versions named, nothing asked of the target but to look.
#[test]
fn a_target_that_is_older() {
    for (from, to) in [(V215, V29), (V214, V212), (V215, V214)] {
        let (_source, workspace) = backed_up(Mode::Clear, from, "altlas", 50);
        let target = Nats::start_with(to, &[TRACED]);
        let place = place(&target);
        let words = ["source `messages`", &place, from.number(), to.number()];
        for more in [&[][..], &["--overwrite"]] {
            Failure { code: 6, kind: "refused", words: &words, hint: "not older than the source" }
                .of(|| restore(&workspace, &target, more));
        }
        restore(&workspace, &target, &["--dry-run"]).output().assert_error(6, &words);
        assert_eq!(changes(&target), Vec::<String>::new());
        assert_eq!(target.streams(), Vec::<String>::new());
    }
}

/// Refused before anything is touched; with `--overwrite` exactly the streams of the backup are replaced.
fn a_target_with_streams_of_these_names(mode: Mode) {
    for version in NatsVersion::ENDS {
        let (source, workspace) = backed_up(mode, version, "altlas", 200);
        let target = Nats::start_with(version, &[TRACED]);
        target.ask("STREAM.CREATE.LAST_FILES", &json!({ "name": "LAST_FILES", "subjects": ["old.>"] }));
        target.ask("STREAM.CREATE.KEPT", &json!({ "name": "KEPT", "subjects": ["kept.>"] }));
        for subject in ["old.1", "old.2", "kept.1"] {
            target.publish(subject, b"as it was");
        }
        let (was, kept) = (target.digest(&["--messages"]), target.digest(&["--messages", "--stream", "KEPT"]));
        let (made, place) = (changes(&target), place(&target));
        let words = ["source `messages`", &place, "1 stream: `LAST_FILES` (2 messages)"];
        Failure { code: 6, kind: "refused", words: &words, hint: "--overwrite" }
            .of(|| restore(&workspace, &target, &[]));

        // A plan says what would go, and does nothing.
        let plan = restore(&workspace, &target, &["--overwrite", "--dry-run"]).ok();
        assert!(
            plan.stdout.contains("delete 1 stream with their consumers: `LAST_FILES` (2 messages)"),
            "{}",
            plan.text()
        );
        was.assert_same(&target.digest(&["--messages"]));
        assert_eq!(changes(&target), made);

        restore(&workspace, &target, &["--overwrite"]).ok();
        kept.assert_same(&target.digest(&["--messages", "--stream", "KEPT"]));
        target.delete_stream("KEPT");
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));

        // And again, over what a restore has made.
        restore(&workspace, &target, &[]).output().assert_error(6, &["3 streams"]);
        restore(&workspace, &target, &["--overwrite"]).ok();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}

/// An old stream goes only when all that is to replace it was read: with a damaged archive it stays as it is.
fn a_repository_with_a_flipped_byte(mode: Mode) {
    for version in NatsVersion::ENDS {
        let (_source, workspace) = backed_up(mode, version, "altlas", 200);
        let target = Nats::start_with(version, &[TRACED]);
        for name in ["LAST_FILES", "LAST_FILES_DEAD", "KV_archive-settings"] {
            target
                .ask(&format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": [format!("{name}.old.>")] }));
            target.publish(&format!("{name}.old.1"), b"as it was");
        }
        let (was, made) = (target.digest(&["--messages"]), changes(&target));
        for artifact in Library::new(workspace.context()).artifacts("latest") {
            let place = workspace.copy();
            let name = artifact.parts[0].name.to_string();
            let key = place.objects().into_keys().find(|key| key.contains(&name)).unwrap();
            let file = place.repository_folder().join(&key);
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
            restore(&place, &target, &["--overwrite"]).output().assert_error(1, &[&name]);
            was.assert_same(&target.digest(&["--messages"]));
            assert_eq!(changes(&target), made, "{}", artifact.path);
        }
    }
}

/// Two streams cannot listen on one subject: found in the plan, both named.
#[test]
fn subjects_of_another_stream() {
    let (source, workspace) = backed_up(Mode::Clear, V29, "altlas", 50);
    for version in NatsVersion::ENDS {
        let target = Nats::start_with(version, &[TRACED]);
        target.ask("STREAM.CREATE.MINE", &json!({ "name": "MINE", "subjects": ["mine", "last.*.new"] }));
        let (made, place) = (changes(&target), place(&target));
        let words =
            ["source `messages`", &place, "stream `LAST_FILES` listens on `last.files.>`", "`MINE`", "`last.*.new`"];
        for more in [&[][..], &["--overwrite"]] {
            Failure { code: 6, kind: "refused", words: &words, hint: "delete the other stream" }
                .of(|| restore(&workspace, &target, more));
        }
        assert_eq!(changes(&target), made);
        assert_eq!(target.streams(), ["MINE"]);
        target.delete_stream("MINE");
        // Beside each other they may be.
        target.ask("STREAM.CREATE.MINE", &json!({ "name": "MINE", "subjects": ["last.other", "last.filed.>"] }));
        restore(&workspace, &target, &[]).ok();
        target.delete_stream("MINE");
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}

/// A consumer in memory is in no archive of 2.9: it is made again from its acknowledgement floor, and named before and after.
#[test]
fn a_consumer_that_the_archive_lacks() {
    let source = Nats::start(V29);
    source.fill("altlas", 100, 42);
    let config = json!({ "durable_name": "quick", "ack_policy": "explicit", "mem_storage": true, "filter_subject": "last.files.>" });
    source.ask("CONSUMER.DURABLE.CREATE.LAST_FILES.quick", &json!({ "stream_name": "LAST_FILES", "config": config }));
    let mut taken = Vec::new();
    for n in 1..=7 {
        let mut connection = source.connection();
        let message = connection.request("$JS.API.CONSUMER.MSG.NEXT.LAST_FILES.quick", b"").unwrap();
        assert_eq!(message.status, None);
        taken.push(source.consumer_info("LAST_FILES", "quick")["delivered"]["stream_seq"].as_u64().unwrap());
        // All but the fifth and the seventh.
        if n != 5 && n != 7 {
            let seq = taken[n - 1];
            connection.request(&format!("$JS.ACK.LAST_FILES.quick.1.{seq}.{n}.0.0"), b"+ACK").unwrap();
        }
    }
    let floor = source.consumer_info("LAST_FILES", "quick")["ack_floor"]["stream_seq"].as_u64().unwrap();
    assert!(floor >= taken[3] && floor < taken[4], "{floor} {taken:?}");
    let workspace = initialised(Mode::Clear, &source);
    let backup = proof::back_up(&workspace);
    let shown = workspace.run(&["show", "latest"]).ok();
    assert!(shown.stdout.contains("of which the archive lacks quick"), "{}", shown.text());

    for version in NatsVersion::ENDS {
        let target = Nats::start(version);
        let again = "make consumer `quick` of stream `LAST_FILES` again, from its acknowledgement floor";
        let plan = restore(&workspace, &target, &["--dry-run"]).ok();
        assert!(plan.stdout.contains(again), "{}", plan.text());
        let restored = restore(&workspace, &target, &[]).ok();
        let made = format!("consumer `quick` of stream `LAST_FILES` was made again, from message {}", floor + 1);
        assert!(restored.text().contains(&made), "{}", restored.text());
        assert_eq!(target.consumers("LAST_FILES"), ["archive-service", "quick"]);
        assert_eq!(target.consumer_info("LAST_FILES", "quick")["config"]["filter_subject"], "last.files.>");
        // Nothing that was not acknowledged is left out.
        let message = target.connection().request("$JS.API.CONSUMER.MSG.NEXT.LAST_FILES.quick", b"").unwrap();
        assert_eq!(message.status, None);
        assert_eq!(target.consumer_info("LAST_FILES", "quick")["delivered"]["stream_seq"], taken[4]);

        let scratch = Nats::start(version);
        let proofs = proof::try_proof(&workspace, &backup, &scratch, scratch.port()).unwrap().streams;
        let last_files = proofs.iter().find(|proof| proof.stream == "LAST_FILES").unwrap();
        assert_eq!(last_files.notes, ["consumer `quick` is not in the archive; a restore makes it again"]);
        assert!(proofs.iter().all(|proof| proof.differences.is_empty()), "{proofs:?}");
    }
}

/// 2.15 forgets where a consumer of its own archives was that is behind the stream's first message, as one of a work queue often is: that
/// is said, and no message is passed over.
#[test]
fn a_consumer_that_begins_again() {
    let source = Nats::start(V215);
    source.ask("STREAM.CREATE.QUEUE", &json!({ "name": "QUEUE", "subjects": ["queue.*"], "retention": "workqueue" }));
    for name in ["odd", "even"] {
        let config =
            json!({ "durable_name": name, "ack_policy": "explicit", "filter_subject": format!("queue.{name}") });
        source.ask(
            &format!("CONSUMER.DURABLE.CREATE.QUEUE.{name}"),
            &json!({ "stream_name": "QUEUE", "config": config }),
        );
    }
    for n in 1..=10 {
        source.publish(["queue.even", "queue.odd"][n % 2], b"work");
    }
    let take = |server: &Nats, name: &str| {
        let next = server.connection().request(&format!("$JS.API.CONSUMER.MSG.NEXT.QUEUE.{name}"), b"").unwrap();
        assert_eq!(next.status, None);
        server.consumer_info("QUEUE", name)["delivered"]["stream_seq"].as_u64().unwrap()
    };
    assert_eq!((1..=3).map(|_| take(&source, "even")).collect::<Vec<_>>(), [2, 4, 6]);
    for n in 1..=3 {
        let seq = take(&source, "odd");
        source.connection().request(&format!("$JS.ACK.QUEUE.odd.1.{seq}.{n}.0.0"), b"+ACK").unwrap();
    }
    wait_for("what was acknowledged to go", SOON, || (source.info("QUEUE")["state"]["first_seq"] == 2).then_some(()));

    let workspace = initialised(Mode::Clear, &source);
    let backup = proof::back_up(&workspace);
    let target = Nats::start(V215);
    let restored = restore(&workspace, &target, &[]).ok();
    assert!(
        restored.text().contains("stream `QUEUE`: consumer `even` begins again at the first message"),
        "{}",
        restored.text()
    );
    assert!(!restored.text().contains("consumer `odd` begins"), "{}", restored.text());
    let messages = ["--messages", "--stream", "QUEUE"];
    let of = |server: &Nats| {
        let digest = server.digest(&messages).text().to_owned();
        digest.lines().filter(|line| line.starts_with("  message")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of(&source), of(&target));
    assert_eq!((1..=5).map(|_| take(&target, "even")).collect::<Vec<_>>(), [2, 4, 6, 8, 10]);
    assert_eq!(take(&target, "odd"), 7);

    let proofs = proof::proven(&workspace, &backup, &Nats::start(V215));
    assert_eq!(proofs[0].notes.len(), 1, "{proofs:?}");
    assert!(proofs[0].notes[0].starts_with("consumer `even` begins again"), "{proofs:?}");
}

/// A stream that somebody makes after the target was looked at is his: refused, or an error where it comes later still, and left alone.
#[test]
fn a_stream_that_somebody_makes_meanwhile() {
    let (_source, workspace) = backed_up(Mode::Clear, V29, "altlas", 50);
    for version in NatsVersion::ENDS {
        // The plan looks on the first connection; what is done begins with the second.
        for (connection, code, words) in [(2, 6, "since it was looked at"), (3, 1, "`LAST_FILES`")] {
            let target = Nats::start(version);
            let proxy = before(&target);
            let (port, password) = (target.port(), target.password().to_owned());
            proxy.before_connection(connection, move || {
                let mut connection = Connection::open(port, &json!({ "user": "backup", "pass": password })).unwrap();
                let made = connection
                    .request("$JS.API.STREAM.CREATE.LAST_FILES", br#"{"name":"LAST_FILES","subjects":["x"]}"#);
                assert!(made.unwrap().json()["error"].is_null());
                assert_eq!(connection.request("x", b"somebody's").unwrap().json()["seq"], 1);
            });
            let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
            restore_at(&workspace, &url, &target, &[]).output().assert_error(code, &["source `messages`", words]);
            assert_eq!(target.info("LAST_FILES")["config"]["subjects"], json!(["x"]));
            assert_eq!(target.messages("LAST_FILES"), 1);
        }
    }
}

/// Old streams that are to be replaced stand in each other's way as long as they are there: found in the plan too.
#[test]
fn subjects_of_a_stream_that_is_replaced_later() {
    let (source, workspace) = backed_up(Mode::Clear, V29, "altlas", 50);
    for version in NatsVersion::ENDS {
        let target = Nats::start_with(version, &[TRACED]);
        target.ask("STREAM.CREATE.LAST_FILES_DEAD", &json!({ "name": "LAST_FILES_DEAD", "subjects": ["last.>"] }));
        let made = changes(&target);
        let words = ["stream `LAST_FILES` listens on `last.files`", "`LAST_FILES_DEAD`", "`last.>`"];
        Failure { code: 6, kind: "refused", words: &words, hint: "delete the other stream" }
            .of(|| restore(&workspace, &target, &["--overwrite"]));
        assert_eq!(changes(&target), made);
        // One that is replaced before is in nobody's way.
        target.delete_stream("LAST_FILES_DEAD");
        target.ask(
            "STREAM.CREATE.KV_archive-settings",
            &json!({ "name": "KV_archive-settings", "subjects": ["last.>"] }),
        );
        restore(&workspace, &target, &["--overwrite"]).ok();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}

/// What begins by itself, or will be another than one may think, is said beforehand.
#[test]
fn a_plan_says_what_to_know() {
    let (_source, workspace) = backed_up(Mode::Clear, V215, "types", 10_000);
    let target = Nats::start_with(V215, &[TRACED]);
    let plan = restore(&workspace, &target, &["--dry-run"]).ok();
    for words in [
        "stream `LIMITS` has push consumers (push, push-group): they deliver as soon as they are there",
        "stream `MIRROR` copies from other streams",
        "stream `SOURCED` copies from other streams",
        "stream `MEMORY` is in memory: a restart of the target loses it",
        "stream `AGED` keeps messages for",
        "may be delivered again: consumers must bear that",
    ] {
        assert!(plan.stdout.contains(words), "`{words}`\n{}", plan.text());
    }
    assert_eq!(changes(&target), Vec::<String>::new());
    assert_eq!(target.streams(), Vec::<String>::new());
}

/// Killed while it restores, it leaves a stream in a newer server that looks as any other: its mark says what it is, and the next restore
/// puts the whole one in its place without being told to.
#[test]
fn what_a_killed_restore_left() {
    let (source, workspace) = backed_up(Mode::Clear, V215, "many", 40_000);
    let target = Nats::start(V215);
    let proxy = before(&target);
    let some = Arc::new(AtomicBool::new(false));
    let (sent, stop) = (AtomicU64::new(0), some.clone());
    // Half of it passes, and then nothing more.
    proxy.on_bytes(move |way, _, bytes| {
        if way == Way::Up && sent.fetch_add(bytes.len() as u64, Ordering::SeqCst) > 2_000_000 {
            stop.store(true, Ordering::SeqCst);
            return Vec::new();
        }
        vec![Step::Send(bytes)]
    });
    let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
    let running = restore_at(&workspace, &url, &target, &[]).spawn();
    wait_for("half of the stream", SOON, || some.load(Ordering::SeqCst).then_some(()));
    running.kill9();
    let killed = Instant::now();
    wait_for("a stream that is not whole", SOON, || {
        let info = target.request("STREAM.INFO.MANY", &Value::Null);
        let messages = info["state"]["messages"].as_u64()?;
        (messages > 0 && messages < 40_000).then_some(())
    });
    let config = target.info("MANY")["config"].clone();
    assert!(config["metadata"]["altlas-backup.restoring"].is_string(), "{config}");

    let plan = restore(&workspace, &target, &["--dry-run"]).ok();
    assert!(plan.stdout.contains("delete what interrupted restores left: `MANY`"), "{}", plan.text());
    restore(&workspace, &target, &[]).ok();
    assert!(target.info("MANY")["config"]["metadata"]["altlas-backup.restoring"].is_null());
    // Five seconds after its last chunk the server gives the killed one up, silently: that is no harm to the stream any more.
    std::thread::sleep(Duration::from_secs(7).saturating_sub(killed.elapsed()));
    source.digest(&[]).assert_same(&target.digest(&[]));
    assert_eq!(target.publish("many.1", b"more"), 40_001);
    assert_eq!(target.messages("MANY"), 40_001);
}

/// What bears the mark, and was used since, is somebody's: it goes by order only.
#[test]
fn a_marked_stream_that_was_used_since() {
    let (source, workspace) = backed_up(Mode::Clear, V215, "altlas", 50);
    let target = Nats::start(V215);
    restore(&workspace, &target, &[]).ok();
    let mut config = target.info("LAST_FILES")["config"].clone();
    config["metadata"]["altlas-backup.restoring"] = "somewhen".into();
    target.ask("STREAM.UPDATE.LAST_FILES", &config);
    target.delete_stream("LAST_FILES_DEAD");
    target.delete_stream("KV_archive-settings");
    target.publish("last.files", b"somebody's");
    let was = target.digest(&["--messages"]);
    restore(&workspace, &target, &[]).output().assert_error(6, &["`LAST_FILES` (51 messages)", "--overwrite"]);
    was.assert_same(&target.digest(&["--messages"]));
    restore(&workspace, &target, &["--overwrite"]).ok();
    source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
}

/// A half restored stream of a source is no backup of it: the others are captured, and `doctor` says so too.
#[test]
fn a_marked_stream_in_the_source() {
    let source = Nats::start(V215);
    for (name, metadata) in [("WHOLE", json!({})), ("HALF", json!({ "altlas-backup.restoring": "somewhen" }))] {
        source
            .ask(&format!("STREAM.CREATE.{name}"), &json!({ "name": name, "subjects": [name], "metadata": metadata }));
        source.publish(name, b"a message");
    }
    let workspace = initialised(Mode::Clear, &source);
    let told = workspace.run(&["doctor"]).output().assert_code(1);
    assert!(told.text().contains("`HALF` is half restored"), "{}", told.text());
    let report = workspace.run(&["--json", "backup"]).output().assert_code(5).json();
    let failed = &report["sources"][0]["failed"];
    assert!(failed[0].as_str().is_some_and(|text| text.contains("`HALF` is half restored")), "{report}");
    let target = Nats::start(V215);
    workspace
        .run(&[
            "restore",
            report["backup"].as_str().unwrap(),
            "--yes",
            "--target",
            &format!("messages={}", target.url_with_user()),
        ])
        .env("ALTLAS_BACKUP_TARGET_MESSAGES_PASSWORD", target.password())
        .ok();
    assert_eq!(target.streams(), ["WHOLE"]);
}

/// Does this before the target is asked for the stream that was restored into it: what it has deleted, or all of it at once.
fn before_it_is_compared(target: &Nats, stream: &str, meanwhile: impl FnOnce() + Send + 'static) -> TcpProxy {
    let proxy = before(target);
    let (asked, mut meanwhile) = (format!("$JS.API.STREAM.SNAPSHOT.{stream} "), Some(meanwhile));
    proxy.on_bytes(move |way, _, bytes| {
        if way == Way::Up
            && [asked.as_str(), "deleted_details"].iter().any(|asked| String::from_utf8_lossy(&bytes).contains(asked))
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile();
        }
        vec![Step::Send(bytes)]
    });
    proxy
}

/// What a target in use has lost before it was compared is excused only by what may have taken it.
#[test]
fn what_goes_from_a_target_before_it_is_compared() {
    let hour = 3_600_000_000_000_u64;
    for version in NatsVersion::ENDS {
        for (config, meanwhile, code, words) in [
            // No consumer has had them.
            (
                json!({ "retention": "workqueue" }),
                ("STREAM.PURGE.WORK", json!({ "keep": 3 })),
                1,
                "it lacks 7 messages",
            ),
            // Young ones do not go by age.
            (json!({ "max_age": hour }), ("STREAM.MSG.DELETE.WORK", json!({ "seq": 5 })), 1, "it lacks 1 message (5)"),
            // A limit, which nothing has reached.
            (json!({ "max_msgs": 20 }), ("STREAM.PURGE.WORK", json!({ "keep": 9 })), 1, "it lacks 1 message (1)"),
            // One that something may have.
            (json!({ "max_msgs": 10 }), ("work", json!("the eleventh")), 4, "newer ones may have taken their place"),
        ] {
            let source = Nats::start(version);
            let mut create = json!({ "name": "WORK", "subjects": ["work"] });
            create.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
            source.ask("STREAM.CREATE.WORK", &create);
            for n in 0..10 {
                source.publish("work", format!("job {n}").as_bytes());
            }
            let workspace = initialised(Mode::Clear, &source);
            back_up(&workspace);
            let target = Nats::start(version);
            let (port, password) = (target.port(), target.password().to_owned());
            let proxy = before_it_is_compared(&target, "WORK", move || {
                let mut connection = Connection::open(port, &json!({ "user": "backup", "pass": password })).unwrap();
                let (subject, body) = meanwhile;
                let subject = if subject == "work" { subject.to_owned() } else { format!("$JS.API.{subject}") };
                let answer = connection.request(&subject, body.to_string().as_bytes()).unwrap();
                assert!(answer.json()["error"].is_null(), "{}", answer.json());
            });
            let url = format!("nats://{}@127.0.0.1:{}", target.user(), proxy.port());
            let output = restore_at(&workspace, &url, &target, &[]).output().assert_code(code);
            assert!(output.text().contains(words), "{version:?}\n{}", output.text());
            assert_eq!(target.streams(), ["WORK"], "what differs is left to be looked at");
        }
    }
}

/// A consumer that an archive lacks, and that had been given nothing, is made to begin where it stood: not where its `new` would mean now.
#[test]
fn a_consumer_in_memory_that_was_given_nothing() {
    let source = Nats::start(V29);
    source.ask("STREAM.CREATE.JOBS", &json!({ "name": "JOBS", "subjects": ["jobs"] }));
    for (name, policy) in [("new", "new"), ("all", "all"), ("last", "last")] {
        let config =
            json!({ "durable_name": name, "ack_policy": "explicit", "mem_storage": true, "deliver_policy": policy });
        source
            .ask(&format!("CONSUMER.DURABLE.CREATE.JOBS.{name}"), &json!({ "stream_name": "JOBS", "config": config }));
    }
    for _ in 0..5 {
        source.publish("jobs", b"a job");
    }
    let workspace = initialised(Mode::Clear, &source);
    back_up(&workspace);
    for version in NatsVersion::ENDS {
        let target = Nats::start(version);
        restore(&workspace, &target, &[]).ok();
        for name in ["new", "all", "last"] {
            assert_eq!(source.consumer_info("JOBS", name)["num_pending"], 5, "{name}");
            assert_eq!(target.consumer_info("JOBS", name)["num_pending"], 5, "{name} of {version:?}");
        }
    }
}

/// A server with these limits for its one account, traced.
fn limited(version: NatsVersion, limits: &str) -> Nats {
    let account =
        format!("accounts {{ ONE {{ jetstream {{ {limits} }}, users [{{ user: backup, password: PASSWORD }}] }} }}");
    Nats::start_with(version, &["authorization {}", &account, TRACED])
}

/// Limits of the target's account that it is too large for are found in the plan.
#[test]
fn an_account_that_is_too_small() {
    let (source, workspace) = backed_up(Mode::Clear, V29, "altlas", 2000);
    for version in NatsVersion::ENDS {
        for (limits, words, hint) in [
            ("max_file: 300000", ["of file storage are needed", "in use"], "`max_storage`"),
            ("max_streams: 2", ["3 streams", "may have 2"], "`max_streams`"),
        ] {
            let target = limited(version, limits);
            let place = place(&target);
            let words = [&["source `messages`", &place][..], &words].concat();
            Failure { code: 6, kind: "refused", words: &words, hint }.of(|| restore(&workspace, &target, &[]));
            assert_eq!(changes(&target), Vec::<String>::new());
        }
        // Just enough, for what is replaced too.
        let target = limited(version, "max_file: 1500000, max_streams: 3");
        restore(&workspace, &target, &[]).ok();
        restore(&workspace, &target, &["--overwrite"]).ok();
        source.digest(&[]).assert_same(&target.digest(&[]));
    }
}

/// A server with too little room for all its accounts says so only when it is full: an error, and nothing left of that stream. 2.9 takes
/// what is restored however little room it has.
#[test]
fn a_server_that_is_too_small() {
    for from in NatsVersion::ENDS {
        let (_source, workspace) = backed_up(Mode::Clear, from, "large", 400);
        let target = Nats::start_as(V215, Setup::new().max_file_store(1_000_000));
        restore(&workspace, &target, &[]).output().assert_error(1, &["`LARGE`", "hint: ", "room"]);
        assert_eq!(target.streams(), Vec::<String>::new());
    }
}

/// A message that is longer than the target takes is found in the plan.
#[test]
fn a_message_that_is_too_long_for_the_target() {
    let (source, workspace) = backed_up(Mode::Clear, V215, "large", 20);
    let target = Nats::start_with(V215, &["max_payload: 8192", TRACED]);
    let place = place(&target);
    let words = ["source `messages`", &place, "stream `LARGE` holds a message of 8.8 KiB", "8.0 KiB at most"];
    Failure { code: 6, kind: "refused", words: &words, hint: "`max_payload`" }.of(|| restore(&workspace, &target, &[]));
    assert_eq!(changes(&target), Vec::<String>::new());
    let target = Nats::start_with(V215, &["max_payload: 9216"]);
    restore(&workspace, &target, &[]).ok();
    source.digest(&[]).assert_same(&target.digest(&[]));
}

#[test]
fn a_target_without_jetstream() {
    let (_source, workspace) = backed_up(Mode::Clear, V29, "altlas", 20);
    for version in NatsVersion::ENDS {
        let target = Nats::start_as(version, Setup::new().without_jetstream());
        let place = place(&target);
        Failure {
            code: 1,
            kind: "source",
            words: &["source `messages`", &place, "no JetStream"],
            hint: "switch JetStream on",
        }
        .of(|| restore(&workspace, &target, &[]));
    }
}

/// Back into the server that it came from, by order only.
#[test]
fn into_the_source_itself() {
    for version in NatsVersion::ENDS {
        let (source, workspace) = backed_up(Mode::Clear, version, "altlas", 100);
        let was = source.digest(&["--messages"]);
        source.ask("STREAM.PURGE.LAST_FILES", &json!({ "keep": 3 }));
        source.publish("last.files", b"later, and gone with the restore");
        source.ask("CONSUMER.DELETE.LAST_FILES.archive-service", &Value::Null);
        source.delete_stream("LAST_FILES_DEAD");
        let place = place(&source);
        let restore = |more: &[&str]| workspace.run(&[&["restore", "latest", "--yes"], more].concat());
        Failure { code: 6, kind: "refused", words: &["source `messages`", &place, "2 streams"], hint: "--overwrite" }
            .of(|| restore(&[]));
        restore(&["--overwrite"]).ok();
        was.assert_same(&source.digest(&["--messages"]));
    }
}

/// What was restored is in the server's files: killed at once, it comes back with it.
#[test]
fn what_was_restored_outlives_the_server() {
    for (from, to) in [(V29, V29), (V29, V215), (V215, V215)] {
        let (source, workspace) = backed_up(Mode::Clear, from, "altlas", 500);
        let mut target = Nats::start(to);
        restore(&workspace, &target, &[]).ok();
        target.kill();
        target.resume();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}
