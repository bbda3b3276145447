//! Receivers that are down, slow, elsewhere or ask for more than they get.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{failing, heal, records, short};
use crate::support::{
    binary::Output, free_port, mode::Mode, receiver::Receiver, s3::Certificates, workspace::Workspace,
};

/// As long as the rest of the world takes to start one anew; a short one where that is enough.
fn a_moment() -> Duration {
    Duration::from_secs(if std::env::var_os("ALTLAS_TORTURE").is_some() { 60 } else { 4 })
}

#[test]
fn a_receiver_that_is_down_for_a_moment_is_told_by_the_same_run() {
    let port = free_port();
    let mut workspace = failing(Mode::Clear, &Receiver::start());
    workspace.set("alerts.webhook.url", format!("http://127.0.0.1:{port}/hook"));
    let running = workspace.run(&["backup"]).spawn();
    std::thread::sleep(a_moment());
    let receiver = Receiver::start_on(port);
    let output = running.wait().assert_code(1);
    assert_eq!(short(&receiver.take()), ["firing backup-failed cache"]);
    assert!(output.stderr.contains("telling backup-failed/cache"), "{}", output.text());
    assert!(!output.stderr.contains("could not be told"), "{}", output.text());

    // Nor is one given up that has too much to do.
    let _server = heal(&mut workspace);
    receiver.answer(503);
    let running = workspace.run(&["backup"]).spawn();
    crate::support::wait_for("two tries", Duration::from_secs(60), || (receiver.asked() >= 3).then_some(()));
    receiver.answer(200);
    running.wait().assert_code(0);
    assert_eq!(short(&receiver.take()), ["resolved backup-failed cache"]);
}

/// What doctor, `list` and the log say of alerts that nobody was told.
fn assert_seen(workspace: &Workspace, words: &[&str]) {
    let doctor = workspace.run(&["doctor"]).output().assert_code(1);
    let listed = workspace.run(&["list"]).ok();
    for (output, text) in [(&doctor, &doctor.stdout), (&listed, &listed.stderr)] {
        let line = text.lines().find(|line| line.contains("was not told"));
        let line = line.unwrap_or_else(|| panic!("no line says it\n{}", output.text()));
        for word in words {
            assert!(line.contains(word), "`{word}` is not in: {line}");
        }
    }
}

fn quickly(workspace: &Workspace, arguments: &[&str], code: i32) -> Output {
    let start = Instant::now();
    let output = workspace.run(arguments).output().assert_code(code);
    assert!(start.elapsed() < Duration::from_secs(60), "nobody waits for what no waiting mends\n{}", output.text());
    output
}

#[test]
fn what_cannot_be_told_is_seen_and_told_by_the_next_run() {
    let receiver = Receiver::start();
    receiver.ask_for_token("the right one");
    let mut workspace = failing(Mode::Clear, &receiver);
    let token = workspace.secret("token", "the wrong one");
    workspace.set("alerts.webhook.token_file", token.display().to_string());
    let output = quickly(&workspace, &["backup"], 1);
    let words = ["webhook could not be told", "`backup-failed` of source `cache`", "401", "token_file"];
    for word in words {
        assert!(output.stderr.contains(word), "`{word}`\n{}", output.text());
    }
    assert_seen(&workspace, &["webhook", "`backup-failed` of source `cache`", "is firing", "1 try", "401"]);
    quickly(&workspace, &["backup"], 1);
    assert_seen(&workspace, &["2 tries"]);
    assert_eq!((receiver.asked(), short(&receiver.told())), (2, vec![]));

    // Its address is another one: no redirection is followed, for a POST would come out of it as a GET.
    receiver.answer(302);
    fs::write(&token, "the right one").unwrap();
    let output = quickly(&workspace, &["backup"], 1);
    assert!(output.stderr.contains("302") && output.stderr.contains("no redirection is followed"), "{}", output.text());
    // Nor does it matter what becomes of the token's file.
    fs::remove_file(&token).unwrap();
    let output = quickly(&workspace, &["backup"], 1);
    assert!(output.stderr.contains("alerts.webhook.token_file"), "{}", output.text());

    receiver.answer(200);
    fs::write(&token, "the right one").unwrap();
    let _server = heal(&mut workspace);
    quickly(&workspace, &["backup"], 0);
    let both = ["firing backup-failed cache", "resolved backup-failed cache"];
    assert_eq!(short(&receiver.take()), both, "what happened, in its order");
    workspace.run(&["doctor"]).ok();
    assert!(!workspace.run(&["list"]).ok().stderr.contains("was not told"));
    quickly(&workspace, &["backup"], 0);
    assert_eq!(short(&receiver.take()), [""; 0]);
}

/// One receiver that is down keeps nothing from another, and is told later what it missed.
#[test]
fn each_receiver_is_told_by_itself() {
    let (webhook, manager) = (Receiver::start(), Receiver::start());
    let mut workspace = failing(Mode::Clear, &webhook);
    workspace.set("alerts.alertmanager.url", manager.url("/prefix/"));
    webhook.answer(400);
    quickly(&workspace, &["backup"], 1);
    assert_eq!(short(&webhook.take()), [""; 0]);
    // And hears, each time, that no run is failing without a record: it may have been told so while there was no repository.
    let told = manager.take();
    assert_eq!((told.len(), told[0].path.as_str()), (2, "/prefix/api/v2/alerts"));
    webhook.answer(200);
    quickly(&workspace, &["backup"], 1);
    assert_eq!(short(&webhook.take()), ["firing backup-failed cache"]);
    // An Alertmanager forgets what it does not hear of: it is reminded of what it was told.
    let told = manager.take();
    let names: Vec<_> = told[0].body.as_array().unwrap().iter().map(|one| &one["labels"]["alertname"]).collect();
    assert_eq!((told.len(), names), (1, vec![&"AltlasBackupFailed".into(), &"AltlasBackupRunFailed".into()]));
    let left = records(&workspace, "alerts/");
    assert_eq!(left.iter().filter(|(_, record)| record.get("receiver").is_some()).count(), 3, "{left:#?}");
}

#[test]
fn a_receiver_behind_tls_is_told_where_its_certificate_is_trusted() {
    let (certificates, other) = (Certificates::make(), Certificates::make());
    let receiver = Receiver::start_with_tls(&certificates);
    let mut workspace = failing(Mode::Clear, &receiver);
    workspace.set("alerts.webhook.ca_file", workspace.secret("empty", "nothing").display().to_string());
    let output = quickly(&workspace, &["backup"], 1);
    assert!(output.stderr.contains("holds no certificate"), "{}", output.text());
    workspace.set("alerts.webhook.ca_file", certificates.path("ca.crt"));
    quickly(&workspace, &["backup"], 1);
    assert_eq!(short(&receiver.take()), ["firing backup-failed cache"]);
    let _server = heal(&mut workspace);
    workspace.set("alerts.webhook.ca_file", other.path("ca.crt"));
    let running = workspace.run(&["backup"]).spawn();
    // It is tried again for a while, which a signal ends; the backup is made.
    crate::support::wait_for("the backup", Duration::from_secs(60), || {
        (records(&workspace, "alerts/").iter().filter(|(_, record)| record["state"] == "resolved").count() == 1)
            .then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    running.interrupt();
    let output = running.wait().assert_code(0);
    assert!(output.stderr.contains("could not be told") && output.stderr.contains("certificate"), "{}", output.text());
    assert_eq!(short(&receiver.take()), [""; 0]);
}
