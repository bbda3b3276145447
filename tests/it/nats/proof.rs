//! The strictest proof: a throwaway server is filled from the repository alone, and what it gives back is compared. It must agree where
//! nothing is wrong, and find whatever is.

use std::{collections::BTreeMap, time::Duration};

use altlas_backup::{
    config::{NatsConfig, PasswordSource, SourceSettings},
    operation::{Context, OpenBackup, open_backup},
    repository::Selector,
    source::{self, SourceError},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{SOON, before, initialised, restore};
use crate::support::{
    forge,
    mode::{Mode, in_both_modes},
    nats::{Nats, NatsVersion},
    proxy::{Step, Way},
    wait_for,
    workspace::Workspace,
};

use NatsVersion::{V29, V210, V211, V212, V214, V215};

/// The stream that is spoilt.
const JOBS: &str = "JOBS";

in_both_modes! {
    every_sort_of_stream,
}

/// The server's source configuration, at this port.
fn configuration(server: &Nats, port: u16) -> NatsConfig {
    let url = format!("nats://{}@127.0.0.1:{port}", server.user());
    let context = Workspace::folder().nats_as("messages", &url, &server.password_file()).context();
    match &context.config.sources[0].settings {
        SourceSettings::Nats(config) => config.clone(),
        other => panic!("{}", other.kind()),
    }
}

/// What a proof says of one stream.
#[derive(Debug, Default)]
pub(super) struct StreamProof {
    pub(super) stream: String,
    pub(super) messages: u64,
    pub(super) consumers: u64,
    pub(super) differences: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// The same by stream.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) streams: Vec<StreamProof>,
}

impl Proof {
    fn of(proof: source::Proof) -> Self {
        let mut streams: BTreeMap<String, StreamProof> = BTreeMap::new();
        let mut of = |name: &str, change: &mut dyn FnMut(&mut StreamProof)| {
            let stream = streams.entry(name.to_owned()).or_default();
            stream.stream = name.to_owned();
            change(stream);
        };
        // ``consumer `A` of stream `B` ``, ``stream `B` `` or `B`.
        let stream_in =
            |text: &str| text.rsplit_once("stream `").map_or(text, |(_, name)| name.trim_end_matches('`')).to_owned();
        for same in proof.same {
            match same.name.starts_with("consumer `") {
                true => of(&stream_in(&same.name), &mut |stream| stream.consumers += 1),
                false => of(&same.name, &mut |stream| stream.messages = same.rows),
            }
        }
        for difference in proof.differences {
            of(&stream_in(&difference.object), &mut |stream| stream.differences.push(difference.what.clone()));
        }
        for note in proof.notes {
            let (name, what) = note.split_once("`: ").unwrap();
            of(&stream_in(name), &mut |stream| stream.notes.push(what.to_owned()));
        }
        Self { streams: streams.into_values().collect() }
    }
}

/// A backup of the workspace, proved by this server, which is reached through this port.
pub(super) fn try_proof(workspace: &Workspace, backup: &str, scratch: &Nats, port: u16) -> Result<Proof, SourceError> {
    let (context, config): (Context, _) = (workspace.context(), configuration(scratch, port));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let proof = runtime.block_on(async {
        let selector: Selector = backup.parse().unwrap();
        let opened: OpenBackup = open_backup(&context, &selector, &[], |_, _| Ok(())).await.unwrap();
        let settings = SourceSettings::Nats(NatsConfig {
            secret: PasswordSource::Given(scratch.password().to_owned().into()),
            ..config
        });
        let server = source::open(&settings, &|_| None).unwrap();
        server.claim(&[]).await?;
        server.prove(&opened.snapshots[0].snapshot, &CancellationToken::new()).await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    proof.map(Proof::of)
}

/// A backup that this server proves to be what was captured. It keeps none of it.
#[track_caller]
pub(super) fn proven(workspace: &Workspace, backup: &str, scratch: &Nats) -> Vec<StreamProof> {
    let proof = try_proof(workspace, backup, scratch, scratch.port()).unwrap();
    for stream in &proof.streams {
        assert_eq!(stream.differences, Vec::<String>::new(), "stream {}", stream.stream);
    }
    assert_eq!(scratch.streams(), Vec::<String>::new());
    proof.streams
}

/// Backs up; gives its id.
#[track_caller]
pub(super) fn back_up(workspace: &Workspace) -> String {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    report["backup"].as_str().unwrap().to_owned()
}

fn every_sort_of_stream(mode: Mode) {
    for (from, scratches) in [(V29, &[V29, V215][..]), (V215, &[V215])] {
        let source = Nats::start(from);
        for (kind, size) in [("altlas", 500), ("types", 3_000_000), ("many", 5000), ("large", 300), ("streams", 14)] {
            source.fill(kind, size, 31);
        }
        let workspace = initialised(mode, &source);
        let backup = back_up(&workspace);
        for scratch in scratches {
            let proofs = proven(&workspace, &backup, &Nats::start(*scratch));
            assert_every_stream(&source, &proofs);
        }
    }
}

#[test]
fn versions_between() {
    let scratch = Nats::start(V215);
    for from in [V210, V211, V212, V214] {
        let source = Nats::start(from);
        source.fill("types", 300_000, 32);
        let workspace = initialised(Mode::Clear, &source);
        let backup = back_up(&workspace);
        assert_every_stream(&source, &proven(&workspace, &backup, &scratch));
    }
}

/// Every stream of the server was compared, with each message and each consumer.
#[track_caller]
fn assert_every_stream(source: &Nats, proofs: &[StreamProof]) {
    let mut names: Vec<&str> = proofs.iter().map(|proof| proof.stream.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, source.streams());
    for proof in proofs {
        assert_eq!(proof.messages, source.messages(&proof.stream), "{proof:?}");
        assert_eq!(proof.consumers, source.consumers(&proof.stream).len() as u64, "{proof:?}");
        assert_eq!(proof.notes, Vec::<String>::new(), "{proof:?}");
    }
}

/// What a throwaway server has made of the stream, and how the proof says it.
type Spoilt = (&'static str, fn(&Nats), &'static [&'static str]);

const SPOILT: &[Spoilt] = &[
    ("a message is lost", |server| delete(server, 7), &["it lacks 1 message (7)"]),
    ("the last message is lost", |server| delete(server, 20), &["it lacks 1 message (20)"]),
    (
        "all messages are lost",
        |server| drop(server.ask("STREAM.PURGE.JOBS", &Value::Null)),
        &["it lacks 20 messages (1, 2, 3, 4, 5, …)", "subject `jobs.even`: 0 messages instead of 10"],
    ),
    (
        "a message is one too many",
        |server| assert_eq!(server.publish("jobs.even", b"more"), 21),
        &["subject `jobs.even`: 11 messages instead of 10"],
    ),
    ("messages are others", refill, &["subject `jobs.even`: some of 10 messages differ"]),
    (
        "a consumer is lost",
        |server| drop(server.ask("CONSUMER.DELETE.JOBS.worker", &Value::Null)),
        &["consumer `worker` is not there"],
    ),
    ("a consumer was given one more", take, &["consumer `worker` was at", "and is at"]),
    ("a consumer's floor has moved", |server| acknowledge(server, 3), &["consumer `worker` was at", "and is at"]),
    ("a consumer has less pending", |server| acknowledge(server, 5), &["consumer `worker` was at", "and is at"]),
    (
        "a consumer is configured differently",
        |server| {
            let mut config = server.consumer_info(JOBS, "worker")["config"].clone();
            config["max_ack_pending"] = 77.into();
            server.ask("CONSUMER.DURABLE.CREATE.JOBS.worker", &json!({ "stream_name": JOBS, "config": config }));
        },
        &["consumer `worker`: `max_ack_pending` was 500 and is 77"],
    ),
    (
        "a consumer is one too many",
        |server| {
            let config = json!({ "durable_name": "more", "ack_policy": "explicit" });
            server.ask("CONSUMER.DURABLE.CREATE.JOBS.more", &json!({ "stream_name": JOBS, "config": config }));
        },
        &["consumer `more` is there and was not captured"],
    ),
    (
        "the stream has another limit",
        |server| change(server, "max_msgs", json!(5000)),
        &["its configuration: `max_msgs` was -1 and is 5000"],
    ),
    (
        "the stream has other subjects",
        |server| change(server, "subjects", json!(["jobs.>", "more.>"])),
        &["its configuration: `subjects` was [\"jobs.>\"] and is [\"jobs.>\",\"more.>\"]"],
    ),
];

fn delete(server: &Nats, seq: u64) {
    server.ask("STREAM.MSG.DELETE.JOBS", &json!({ "seq": seq }));
}

/// Lets the consumer deliver a message.
fn take(server: &Nats) {
    let taken = server.connection().request("$JS.API.CONSUMER.MSG.NEXT.JOBS.worker", b"").unwrap();
    assert_eq!(taken.status, None);
}

/// Acknowledges a message whose first delivery was the consumer's of the same number. The subject is where the server asks for it:
/// stream, consumer, deliveries, both sequences, time and what is pending.
fn acknowledge(server: &Nats, seq: u64) {
    let done = server.connection().request(&format!("$JS.ACK.JOBS.worker.1.{seq}.{seq}.0.0"), b"+ACK").unwrap();
    assert_eq!((done.status, done.payload.len()), (None, 0));
}

fn change(server: &Nats, field: &str, value: Value) {
    let mut config = server.info(JOBS)["config"].clone();
    config[field] = value;
    server.ask("STREAM.UPDATE.JOBS", &config);
}

/// The stream anew, with as many messages on the same subjects.
fn refill(server: &Nats) {
    let config = server.info(JOBS)["config"].clone();
    server.delete_stream(JOBS);
    server.ask("STREAM.CREATE.JOBS", &config);
    for n in 0..20 {
        server.publish(["jobs.odd", "jobs.even"][n % 2], b"another");
    }
}

/// A stream of 20 messages, of which a consumer was given five and has handled three, not in order.
fn with_jobs(version: NatsVersion) -> Nats {
    let source = Nats::start(version);
    source.ask("STREAM.CREATE.JOBS", &json!({ "name": JOBS, "subjects": ["jobs.>"], "max_msgs": 1000 }));
    let worker = json!({
        "durable_name": "worker", "ack_policy": "explicit", "ack_wait": 3_600_000_000_000_u64, "max_ack_pending": 500,
    });
    source.ask("CONSUMER.DURABLE.CREATE.JOBS.worker", &json!({ "stream_name": JOBS, "config": worker }));
    for n in 0..20 {
        source.publish(["jobs.odd", "jobs.even"][n % 2], format!("job {n}").as_bytes());
    }
    (0..5).for_each(|_| take(&source));
    [1, 2, 4].into_iter().for_each(|seq| acknowledge(&source, seq));
    let worker = source.consumer_info(JOBS, "worker");
    assert_eq!((&worker["ack_floor"]["stream_seq"], &worker["num_ack_pending"]), (&json!(2), &json!(2)), "{worker}");
    source
}

/// Between its restore and the comparison something goes wrong in the throwaway server: each is found and named.
#[test]
fn whatever_becomes_different_is_found() {
    for (from, to) in [(V29, V29), (V29, V215), (V215, V215)] {
        let source = with_jobs(from);
        let workspace = initialised(Mode::Clear, &source);
        let backup = back_up(&workspace);
        let scratch = Nats::start(to);
        proven(&workspace, &backup, &scratch);
        for (what, spoil, words) in SPOILT {
            let differences = spoilt(&workspace, &backup, &scratch, *spoil);
            for word in *words {
                let said = differences.iter().any(|difference| difference.contains(word));
                assert!(said, "{what}, {from:?} to {to:?}: `{word}` is not in {differences:?}");
            }
        }
    }
}

/// How a proof finds the stream different that is spoilt as soon as it is restored: when the program first asks for what it holds.
fn spoilt(workspace: &Workspace, backup: &str, scratch: &Nats, spoil: fn(&Nats)) -> Vec<String> {
    let proxy = before(scratch);
    let proof = std::thread::scope(|scope| {
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (answer, spoiled) = std::sync::mpsc::channel::<()>();
        let mut once = Some(());
        proxy.on_bytes(move |way, _, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            let asks = text.contains("deleted_details") || text.contains("$JS.API.STREAM.SNAPSHOT.JOBS");
            if way == Way::Up && asks && once.take().is_some() {
                ask.send(()).unwrap();
                spoiled.recv().unwrap();
            }
            vec![Step::Send(bytes)]
        });
        let spoiling = scope.spawn(move || {
            asked.recv().expect("the program asks for what it has restored");
            spoil(scratch);
            answer.send(()).unwrap();
        });
        let proof = try_proof(workspace, backup, scratch, proxy.port());
        proxy.reset();
        spoiling.join().unwrap();
        proof
    });
    let proof = proof.unwrap();
    let [jobs] = &proof.streams[..] else { panic!("{proof:?}") };
    jobs.differences.clone()
}

/// A stream that is gone again is no proof of anything.
#[test]
fn a_stream_that_is_gone_is_an_error() {
    for version in NatsVersion::ENDS {
        let source = with_jobs(version);
        let workspace = initialised(Mode::Clear, &source);
        let backup = back_up(&workspace);
        let scratch = Nats::start(version);
        let proxy = before(&scratch);
        let delete = format!("PUB $JS.API.STREAM.DELETE.{JOBS} nobody 0\r\n\r\nPUB $JS.API.STREAM.SNAPSHOT.{JOBS} ");
        let mut once = Some(());
        proxy.on_bytes(move |way, _, bytes| {
            let ask = format!("PUB $JS.API.STREAM.SNAPSHOT.{JOBS} ");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            // Everything in these requests is text.
            let spoils = way == Way::Up && text.contains(&ask) && once.take().is_some();
            vec![Step::Send(if spoils { text.replace(&ask, &delete).into_bytes() } else { bytes })]
        });
        let error = try_proof(&workspace, &backup, &scratch, proxy.port()).unwrap_err().to_string();
        assert!(error.contains("JOBS"), "{error}");
        assert_eq!(scratch.streams(), Vec::<String>::new());
    }
}

/// A manifest that vouches for what its archive does not hold: the archive is not what was captured, for whoever reads it, and a restore
/// leaves nothing of it.
#[test]
fn an_archive_with_other_messages() {
    for version in NatsVersion::ENDS {
        for spoil in [|server: &Nats| delete(server, 7), refill] {
            let source = with_jobs(version);
            let workspace = initialised(Mode::Clear, &source);
            let was = forge::manifest(&workspace, &back_up(&workspace), "messages");
            spoil(&source);
            let backup = back_up(&workspace);
            forge::change_manifest(&workspace, &backup, "messages", |manifest| {
                let artifact = &mut manifest["artifacts"][0];
                for field in ["fingerprint", "detail"] {
                    assert_ne!(artifact[field], was["artifacts"][0][field]);
                    artifact[field] = was["artifacts"][0][field].clone();
                }
            });
            workspace.run(&["verify", "latest", "--level", "presence"]).ok();
            let verified = workspace.run(&["verify", "latest", "--level", "content"]).output().assert_code(3);
            assert!(verified.stdout.contains("streams/JOBS"), "{}", verified.text());
            let scratch = Nats::start(V215);
            let proof = try_proof(&workspace, &backup, &scratch, scratch.port()).unwrap();
            let [StreamProof { stream, differences, .. }] = &proof.streams[..] else { panic!("{proof:?}") };
            assert_eq!(stream, JOBS);
            assert!(differences[0].contains("its stored archive is not what was captured"), "{differences:?}");
            assert_eq!(scratch.streams(), Vec::<String>::new());
            let target = Nats::start(V215);
            restore(&workspace, &target, &[]).output().assert_error(1, &["`JOBS` is not what was captured"]);
            assert_eq!(target.streams(), Vec::<String>::new());
        }
    }
}

/// What a manifest says beside the archive is compared with it, or with what a server makes of it.
#[test]
fn an_archive_that_lacks_what_the_manifest_says() {
    type Change = fn(&mut Value);
    let both: &[(Change, &str)] = &[
        (
            |detail| {
                let mut ghost = detail["consumers"][0].clone();
                ghost["name"] = "ghost".into();
                ghost["config"]["durable_name"] = "ghost".into();
                detail["consumers"].as_array_mut().unwrap().push(ghost);
            },
            "consumer `ghost` is not there",
        ),
        (
            |detail| detail["consumers"][0]["config"]["max_ack_pending"] = 501.into(),
            "consumer `worker`: `max_ack_pending` was 501 and is 500",
        ),
        (|detail| detail["state"]["last_seq"] = 30.into(), "its last sequence is 20 and was 30"),
        // What stands nowhere else is known by its fingerprint.
        (
            |detail| detail["config"]["max_msgs"] = 7.into(),
            "its configuration in the manifest is not the one that was captured",
        ),
        (
            |detail| detail["consumers"] = json!([]),
            "consumer `worker` was captured, and the manifest does not tell of it",
        ),
        (
            |detail| {
                detail["consumers"] = json!([]);
                detail["told"]["consumers"] = json!({});
            },
            "consumer `worker` is there and was not captured",
        ),
    ];
    let blocks: &[(Change, &str)] = &[
        (|detail| detail["config"]["max_msgs"] = 7.into(), "its archive's configuration: `max_msgs` was 7 and is 1000"),
        // A message whose record is in the archive, of which the manifest does not say that it was deleted.
        (|detail| detail["deleted"]["within"] = "".into(), "it lacks 1 message (7)"),
    ];
    for version in NatsVersion::ENDS {
        let source = with_jobs(version);
        source.ask("STREAM.MSG.DELETE.JOBS", &json!({ "seq": 7, "no_erase": true }));
        let workspace = initialised(Mode::Clear, &source);
        let backup = back_up(&workspace);
        let scratch = Nats::start(version);
        proven(&workspace, &backup, &scratch);
        for (change, words) in both.iter().chain(if version == V29 { blocks } else { &[] }) {
            let place = workspace.copy();
            forge::change_manifest(&place, &backup, "messages", |manifest| {
                change(&mut manifest["artifacts"][0]["detail"])
            });
            let proof = try_proof(&place, &backup, &scratch, scratch.port()).unwrap();
            let found = &proof.streams[0].differences;
            assert!(found.iter().any(|difference| difference.contains(words)), "`{words}` is not in {found:?}");
        }
    }
}

/// Nothing is sent to a server that cannot take it.
#[test]
fn a_server_that_is_too_old_is_refused() {
    let source = with_jobs(V215);
    let workspace = initialised(Mode::Clear, &source);
    let backup = back_up(&workspace);
    let scratch = Nats::start(V214);
    let error = try_proof(&workspace, &backup, &scratch, scratch.port()).unwrap_err().to_string();
    for word in ["2.14.6", "2.15.1", "127.0.0.1"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(scratch.streams(), Vec::<String>::new(), "nothing was sent");
}

/// Messages whose own time is over do not come back, and that is no difference; a message that has no such time must.
#[test]
fn messages_with_a_time_of_their_own() {
    let source = Nats::start(V215);
    source.ask("STREAM.CREATE.JOBS", &json!({ "name": "JOBS", "subjects": ["jobs"], "allow_msg_ttl": true }));
    for (ttl, payload) in [("never", "stays"), ("15s", "goes"), ("1h", "stays too")] {
        let header = format!("NATS/1.0\r\nNats-TTL: {ttl}\r\n\r\n");
        source.connection().publish_with_header("jobs", header.as_bytes(), payload.as_bytes()).unwrap();
    }
    wait_for("three messages", SOON, || (source.messages(JOBS) == 3).then_some(()));
    let workspace = initialised(Mode::Clear, &source);
    let backup = back_up(&workspace);
    wait_for("one to be over", SOON, || (source.messages(JOBS) == 2).then_some(()));
    let proofs = proven(&workspace, &backup, &Nats::start(V215));
    assert_eq!(proofs[0].notes, ["1 message not there any more: their time is over"], "{proofs:?}");
}

/// A stream that somebody took out of the manifest, with its archive.
#[test]
fn a_stream_of_which_the_manifest_does_not_tell() {
    let source = with_jobs(V215);
    source.ask("STREAM.CREATE.OTHER", &json!({ "name": "OTHER", "subjects": ["other"] }));
    source.publish("other", b"x");
    let workspace = initialised(Mode::Clear, &source);
    let backup = back_up(&workspace);
    let scratch = Nats::start(V215);
    proven(&workspace, &backup, &scratch);
    forge::change_manifest(&workspace, &backup, "messages", |manifest| {
        let artifacts = manifest["artifacts"].as_array_mut().unwrap();
        artifacts.retain(|artifact| artifact["path"] != "streams/OTHER");
    });
    let proof = try_proof(&workspace, &backup, &scratch, scratch.port()).unwrap();
    let told = proof.streams.iter().find(|stream| stream.stream == "OTHER").unwrap();
    assert_eq!(told.differences, ["was captured, and the manifest does not tell of it"]);
}

/// A consumer that a server removes when nobody uses it is no difference, where the archive has it.
#[test]
fn a_consumer_that_goes_by_itself() {
    for version in NatsVersion::ENDS {
        let source = with_jobs(version);
        let config = json!({ "ack_policy": "explicit", "inactive_threshold": 4_000_000_000_u64 });
        let made = source.ask("CONSUMER.CREATE.JOBS", &json!({ "stream_name": JOBS, "config": config }));
        let name = made["name"].as_str().unwrap().to_owned();
        let workspace = initialised(Mode::Clear, &source);
        let backup = back_up(&workspace);
        let scratch = Nats::start(version);
        let differences = spoilt(&workspace, &backup, &scratch, |server| {
            wait_for("the consumer to go", SOON, || (server.consumers(JOBS) == ["worker"]).then_some(()));
        });
        assert_eq!(differences, Vec::<String>::new(), "{name}");
    }
}
