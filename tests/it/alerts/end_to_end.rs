//! With Debian's Alertmanager and Prometheus: a corrupted repository makes an alert fire through it, and a good backup resolves it. Once told
//! by the program itself, once by the rules over what `serve --observe-only` exports.

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use super::{failing, heal};
use crate::support::{
    free_port,
    mode::Mode,
    monitoring::{self, Alertmanager, Prometheus},
    receiver::{Receiver, Told},
    wait_for,
    workspace::Workspace,
};

const SOON: Duration = Duration::from_secs(60);
/// The observer looks at the repository once a minute.
const AFTER_A_LOOK: Duration = Duration::from_secs(180);

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
    assert!(hint.contains("remove a damaged part"), "{hint}");

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

#[test]
fn prometheus_fires_for_a_corrupted_repository_and_a_good_backup_resolves_it() {
    let receiver = Receiver::start();
    let manager = Alertmanager::start(&receiver.url("/of-alertmanager"));
    let mut workspace = failing(Mode::Encrypted, &receiver);
    workspace.table.remove("alerts");
    let target = format!("127.0.0.1:{}", free_port());
    workspace.set("server.listen", target.clone());
    let _server = heal(&mut workspace);
    workspace.run(&["backup"]).ok();
    workspace.run(&["verify"]).ok();

    let mut observer = workspace.run(&["--json", "serve", "--observe-only"]).spawn();
    let port = target.rsplit_once(':').unwrap().1.parse().unwrap();
    wait_for("the observer", SOON, || {
        assert!(observer.is_running(), "it has ended");
        monitoring::get(port, "/readyz").filter(|(status, _)| *status == 200)
    });
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/monitoring/altlas-backup.rules.yaml");
    let prometheus = Prometheus::start(&target, &fs::read_to_string(rules).unwrap(), &manager);
    wait_for("the first scrapes", SOON, || {
        (prometheus.value("altlas_backup_repository_readable") == Some(1.0)).then_some(())
    });
    assert_eq!(prometheus.firing(), Vec::<String>::new(), "all is well");

    let part = damage_a_part(&workspace);
    workspace.run(&["verify"]).output().assert_code(3);
    let name = "AltlasBackupVerificationFailed";
    let labels = receiver.wait("the alert", AFTER_A_LOOK, |told| labels_of(told, name, "firing"));
    assert_eq!((&labels["source"], &labels["severity"]), (&"cache".into(), &"critical".into()));
    assert_eq!(prometheus.firing(), [name]);
    assert_eq!(manager.alerts().len(), 1);

    fs::remove_file(part).unwrap();
    workspace.run(&["backup"]).ok();
    workspace.run(&["verify"]).ok();
    receiver.wait("its end", AFTER_A_LOOK, |told| labels_of(told, name, "resolved"));
    assert_eq!(prometheus.firing(), Vec::<String>::new());
    assert!(manager.alerts().is_empty());
    observer.signal(Signal::TERM);
    observer.wait().assert_code(0);
}
