//! `verify --level restore`: throwaway servers are filled from the repository alone, and whatever is wrong with a backup is found and named;
//! what is not wrong is not taken for it.

mod harmless;
mod place;
mod sabotage;

use serde_json::Value;

use crate::support::{binary::Output, workspace::Workspace};

/// Backs up; gives the backup's id.
#[track_caller]
fn back_up(workspace: &Workspace) -> String {
    let report = workspace.run(&["--json", "backup"]).ok().json();
    assert_eq!(report["state"], "complete", "{report}");
    report["backup"].as_str().unwrap().to_owned()
}

/// Verifies by restore, with this exit code.
#[track_caller]
fn verify(workspace: &Workspace, backup: &str, code: i32) -> (Value, Output) {
    let output = workspace.run(&["--json", "verify", backup]).output().assert_code(code);
    (output.json(), output)
}

/// A backup that must be verified.
#[track_caller]
fn verified(workspace: &Workspace, backup: &str) -> Value {
    let (report, _) = verify(workspace, backup, 0);
    assert_eq!(report["verdict"], "verified", "{report}");
    report
}

/// What `list` says of a backup.
#[track_caller]
fn listed_verdict(workspace: &Workspace, backup: &str) -> String {
    let listed = workspace.run(&["--json", "list"]).ok().json();
    let found = listed["backups"].as_array().unwrap().iter().find(|one| one["head"]["backup"] == backup);
    found.expect("the backup is listed")["verdict"].as_str().unwrap().to_owned()
}
