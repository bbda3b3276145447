//! The rules for Prometheus: they are ones, they fire when they must and are silent when they must.

use std::{path::Path, process::Command};

use crate::support::tools;

#[track_caller]
fn promtool(arguments: &[&str], file: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/monitoring");
    let output = Command::new(tools::promtool()).args(arguments).arg(folder.join(file)).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn rules_are_valid_and_fire_when_they_must() {
    promtool(&["check", "rules", "--lint-fatal"], "altlas-backup.rules.yaml");
    promtool(&["test", "rules"], "altlas-backup.rules.test.yaml");
}
