//! Once a change, whoever sees it.

use std::{fs, path::Path};

use serde_json::json;

use super::{break_again, failing, heal, nowhere, records, short};
use crate::support::{
    binary::Run,
    mode::{Mode, in_both_modes},
    receiver::Receiver,
    wait_for,
    workspace::Workspace,
};

in_both_modes! {
    ten_failures_are_told_once_and_so_is_the_recovery,
    a_bad_backup_is_told_once_and_a_proved_one_resolves_it,
}

fn ten_failures_are_told_once_and_so_is_the_recovery(mode: Mode) {
    let receiver = Receiver::start();
    receiver.ask_for_token("token-of-the-receiver");
    let mut workspace = failing(mode, &receiver);
    workspace
        .set("alerts.webhook.token_file", workspace.secret("token", "token-of-the-receiver").display().to_string());
    workspace.set("alerts.deployment", "alt-las test");
    for _ in 0..10 {
        workspace.run(&["backup"]).output().assert_error(1, &["source `cache`"]);
    }
    let mut attempts = records(&workspace, "attempts/");
    attempts.sort_by_key(|(_, attempt)| attempt["finished"].as_str().map(str::to_owned));
    assert_eq!(attempts.len(), 10);
    for (key, attempt) in &attempts {
        assert_eq!(*key, format!("attempts/{}.json", attempt["backup"].as_str().unwrap()));
        assert_eq!((&attempt["sources"], &attempt["error"]), (&json!(["cache"]), &json!("source")));
    }
    assert!(records(&workspace, "backups/").is_empty(), "no head, no manifest");

    let told = receiver.take();
    assert_eq!(short(&told), ["firing backup-failed cache"]);
    assert_eq!(told[0].path, "/hook");
    let body = &told[0].body;
    let url = format!("file://{}", workspace.repository_folder().display());
    let keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = [
        "version",
        "event",
        "alert",
        "source",
        "run",
        "deployment",
        "severity",
        "summary",
        "description",
        "hint",
        "reason",
        "backup",
        "repository",
        "since",
        "id",
    ];
    wanted.sort_unstable();
    assert_eq!(keys, wanted, "{body:#}");
    let first = &attempts[0].1;
    assert_eq!(
        [&body["version"], &body["severity"], &body["deployment"], &body["reason"], &body["run"], &body["repository"]],
        [&json!(1), &json!("critical"), &json!("alt-las test"), &json!("source"), &json!(null), &json!(url)]
    );
    assert_eq!((&body["backup"], &body["since"]), (&first["backup"], &first["finished"]));
    assert_eq!(body["id"], json!(format!("backup-failed/cache@{url}")));

    let server = heal(&mut workspace);
    workspace.run(&["backup"]).ok();
    let told = receiver.take();
    assert_eq!(short(&told), ["resolved backup-failed cache"]);
    assert_eq!(told[0].body["id"], body["id"], "what belongs together is told by the id");
    workspace.run(&["backup"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0]);
    workspace.run(&["doctor"]).ok();

    break_again(&mut workspace);
    workspace.run(&["backup"]).output().assert_code(1);
    assert_eq!(short(&receiver.take()), ["firing backup-failed cache"], "the next time it is told again");
    // A source that is not configured any more is nobody's worry.
    workspace.set("source.0.name", "another");
    workspace.set("source.0.url", server.url());
    workspace.run(&["backup"]).ok();
    assert_eq!(short(&receiver.take()), ["resolved backup-failed cache"]);
    mode.assert_objects(&workspace.objects());
}

fn a_bad_backup_is_told_once_and_a_proved_one_resolves_it(mode: Mode) {
    let receiver = Receiver::start();
    let mut workspace = failing(mode, &receiver);
    let _server = heal(&mut workspace);
    workspace.run(&["backup"]).ok();
    workspace.run(&["verify"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0], "all is well");
    remove_a_part(&workspace);
    for level in ["restore", "content", "presence"] {
        workspace.run(&["verify", "--level", level]).output().assert_code(3);
    }
    let told = receiver.take();
    assert_eq!(short(&told), ["firing verification-failed cache"]);
    assert_eq!(told[0].body["reason"], "damaged");
    let description = told[0].body["description"].as_str().unwrap();
    assert!(description.contains("level restore") && description.contains("`cache`"), "{description}");
    // A new backup alone proves nothing.
    workspace.run(&["backup"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0]);
    workspace.run(&["verify"]).ok();
    assert_eq!(short(&receiver.take()), ["resolved verification-failed cache"]);

    // A head that cannot be trusted is a bad backup, too, though no evidence of it can be stored.
    let head = heads(&workspace).pop().unwrap();
    let whole = fs::read(&head).unwrap();
    fs::write(&head, &whole[..whole.len() - 9]).unwrap();
    workspace.run(&["verify"]).output().assert_code(3);
    workspace.run(&["verify"]).output().assert_code(3);
    assert_eq!(short(&receiver.take()), ["firing verification-failed cache"]);
    // With it the proof is gone that followed the first failure.
    workspace.run(&["backup"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0]);
    workspace.run(&["verify"]).ok();
    assert_eq!(short(&receiver.take()), ["resolved verification-failed cache"]);
}

fn remove_a_part(workspace: &Workspace) {
    let part = workspace.objects().into_keys().find(|key| key.contains("/parts/")).unwrap();
    fs::remove_file(workspace.repository_folder().join(part)).unwrap();
}

/// The files of the heads, the oldest first.
fn heads(workspace: &Workspace) -> Vec<std::path::PathBuf> {
    let heads = workspace.objects().into_keys().filter(|key| key.ends_with("/head.json"));
    heads.map(|key| workspace.repository_folder().join(key)).collect()
}

/// Six runs that fail at the same time: each finds out, one tells.
#[test]
fn of_several_at_once_one_tells() {
    let receiver = Receiver::start();
    let mut workspace = failing(Mode::Clear, &receiver);
    let all: Vec<_> = (0..6).map(|_| workspace.run(&["backup"]).spawn()).collect();
    all.into_iter().for_each(|one| drop(one.wait().assert_code(1)));
    assert_eq!(short(&receiver.take()), ["firing backup-failed cache"]);
    let _server = heal(&mut workspace);
    let all: Vec<_> = (0..6).map(|_| workspace.run(&["backup"]).spawn()).collect();
    all.into_iter().for_each(|one| drop(one.wait().assert_code(0)));
    assert_eq!(short(&receiver.take()), ["resolved backup-failed cache"]);
}

/// A backup in which one source of two failed is told of that one.
#[test]
fn a_partial_backup_is_told_by_source() {
    let receiver = Receiver::start();
    let mut workspace = failing(Mode::Clear, &receiver);
    let _server = heal(&mut workspace);
    let mut workspace = workspace.redis_as("other", &nowhere(), Path::new("/nonexistent"));
    workspace.set("source.1.password_file", workspace.path("password").display().to_string());
    workspace.run(&["backup"]).output().assert_code(5);
    workspace.run(&["backup"]).output().assert_code(5);
    let told = receiver.take();
    assert_eq!(short(&told), ["firing backup-failed other"]);
    assert_eq!(told[0].body["reason"], "failed");
    // A run for the source that is well says nothing of the other.
    workspace.run(&["backup", "--source", "cache"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0]);
}

/// Errors that no record in the repository tells: of a machine that lacks a key, and of one that lacks the store.
#[test]
fn a_run_that_fails_otherwise_is_told() {
    let receiver = Receiver::start();
    let mut workspace = failing(Mode::Encrypted, &receiver);
    let _server = heal(&mut workspace);
    workspace.run(&["backup"]).ok();
    let identity = workspace.identity_file();
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, fs::read_to_string(workspace.catalog_identity_file()).unwrap()).unwrap();
    for _ in 0..2 {
        workspace.run(&["verify"]).output().assert_code(2);
    }
    let told = receiver.take();
    assert_eq!(short(&told), ["firing run-failed verify"]);
    assert_eq!(told[0].body["reason"], "locked");
    // That backups go well does not make it well.
    workspace.run(&["backup"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0]);
    fs::write(&identity, text).unwrap();
    workspace.run(&["verify"]).ok();
    assert_eq!(short(&receiver.take()), ["resolved run-failed verify"]);

    // A mistake of a person at a terminal wakes nobody.
    workspace.run(&["backup", "--source", "cahce"]).output().assert_code(2);
    workspace.run(&["verify", "29991231"]).output().assert_code(1);
    assert_eq!(short(&receiver.take()), [""; 0]);

    // Without the store there is no memory either: each run tells.
    let folder = workspace.repository_folder();
    fs::rename(&folder, workspace.path("elsewhere")).unwrap();
    for _ in 0..2 {
        workspace.run(&["backup"]).output().assert_error(1, &["repository"]);
    }
    let told = receiver.take();
    assert_eq!(short(&told), ["firing run-failed backup"; 2]);
    assert_eq!(told[0].body["reason"], "store");
    assert!(told[0].body["hint"].as_str().unwrap().contains("repository.url"), "{:#}", told[0].body);
    fs::rename(workspace.path("elsewhere"), &folder).unwrap();
    workspace.run(&["backup"]).ok();
    assert_eq!(short(&receiver.take()), [""; 0]);
}

/// A run that is stopped, as by the deadline of its Kubernetes job, has made no backup, and says so in the time that it has.
#[test]
fn a_run_that_is_stopped_is_told() {
    let receiver = Receiver::start();
    let mut workspace = failing(Mode::Clear, &receiver);
    // A server that accepts, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    workspace.set("source.0.url", format!("redis://127.0.0.1:{}", silent.local_addr().unwrap().port()));
    let running: Run = workspace.run(&["backup"]);
    let running = running.spawn();
    let (held, _) = silent.accept().unwrap();
    running.signal(rustix::process::Signal::TERM);
    running.wait().assert_code(130);
    drop(held);
    let told = wait_for("the alert", std::time::Duration::from_secs(1), || {
        Some(receiver.take()).filter(|told| !told.is_empty())
    });
    assert_eq!(short(&told), ["firing backup-failed cache"]);
    assert_eq!(told[0].body["reason"], "interrupted");
    assert_eq!(records(&workspace, "attempts/").len(), 1);
}
