//! With Debian's Alertmanager: a corrupted repository makes an alert fire through it, and a good backup resolves it.

use std::{fs, time::Duration};

use serde_json::Value;

use super::{failing, heal};
use crate::support::{
    mode::Mode,
    monitoring::Alertmanager,
    receiver::{Receiver, Told},
    workspace::Workspace,
};

const SOON: Duration = Duration::from_secs(60);

/// The labels of an alert with this name and status, where this is what an Alertmanager told.
fn labels_of(told: &Told, name: &str, status: &str) -> Option<Value> {
    let alerts = told.body["alerts"].as_array()?;
    let is_it = |alert: &&Value| alert["labels"]["alertname"] == name && alert["status"] == status;
    alerts.iter().find(is_it).map(|alert| alert["labels"].clone())
}

/// Turns a bit of a part; gives its file.
fn damage_a_part(workspace: &Workspace) -> std::path::PathBuf {
    let key = workspace.objects().into_keys().find(|key| key.contains("/parts/")).unwrap();
    let path = workspace.repository_folder().join(key);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_corrupted_repository_fires_through_alertmanager_and_a_good_backup_resolves_it() {
    let receiver = Receiver::start();
    let manager = Alertmanager::start(&receiver.url("/of-alertmanager"));
    let mut workspace = failing(Mode::Encrypted, &receiver);
    workspace.table.remove("alerts");
    workspace.set("alerts.alertmanager.url", manager.url());
    workspace.set("alerts.deployment", "alt-las");
    let _server = heal(&mut workspace);
    workspace.run(&["backup"]).ok();
    workspace.run(&["verify"]).ok();
    assert!(manager.alerts().is_empty(), "all is well");

    let part = damage_a_part(&workspace);
    workspace.run(&["verify"]).output().assert_code(3);
    let labels = receiver.wait("the alert", SOON, |told| labels_of(told, "AltlasBackupBad", "firing"));
    assert_eq!((&labels["source"], &labels["severity"]), (&"cache".into(), &"critical".into()));
    assert_eq!(labels["deployment"], "alt-las");
    let up = manager.alerts();
    assert_eq!(up.len(), 1, "{up:#?}");
    let ends: jiff::Timestamp = up[0]["endsAt"].as_str().unwrap().parse().unwrap();
    let lasts = ends.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((48..=50).contains(&lasts), "it lasts until the next run has told it again: {lasts} h");
    let hint = up[0]["annotations"]["hint"].as_str().unwrap();
    assert!(hint.contains("remove the damaged object"), "{hint}");

    // The next night finds the same, and nobody is told again.
    workspace.run(&["verify"]).output().assert_code(3);
    fs::remove_file(part).unwrap();
    workspace.run(&["backup"]).ok();
    workspace.run(&["verify"]).ok();
    receiver.wait("its end", SOON, |told| labels_of(told, "AltlasBackupBad", "resolved"));
    assert!(manager.alerts().is_empty());
    let count =
        |status: &str| receiver.told().iter().filter_map(|told| labels_of(told, "AltlasBackupBad", status)).count();
    assert_eq!((count("firing"), count("resolved")), (1, 1));
}
