//! A repository in clear whose manifest was changed and everything that depends on it made good again: what nobody but the data itself
//! can contradict.

#[path = "../../tools/forging.rs"]
mod forging;

use serde_json::Value;

use self::forging::Forging;
use super::workspace::Workspace;

fn forging(workspace: &Workspace) -> Forging {
    Forging::new(&workspace.repository_folder(), None)
}

/// The manifest of a source in a backup of a folder in clear.
#[track_caller]
pub fn manifest(workspace: &Workspace, backup: &str, source: &str) -> Value {
    forging(workspace).manifest(backup, source)
}

/// Changes that manifest.
#[track_caller]
pub fn change_manifest(workspace: &Workspace, backup: &str, source: &str, change: impl FnOnce(&mut Value)) {
    let mut changed = manifest(workspace, backup, source);
    let was = changed.clone();
    change(&mut changed);
    assert_ne!(was, changed);
    forging(workspace).put_manifest(backup, source, &changed);
}

/// Puts an artifact's bytes of another backup under the fingerprints that this one captured.
#[track_caller]
pub fn graft(workspace: &Workspace, into: &str, donor: &str, source: &str, artifact: &str) {
    forging(workspace).graft(into, donor, source, artifact);
}

/// Changes an artifact's bytes under the fingerprint that was captured.
#[track_caller]
pub fn rewrite(workspace: &Workspace, backup: &str, source: &str, artifact: &str, change: impl FnOnce(&mut Vec<u8>)) {
    forging(workspace).rewrite(backup, source, artifact, change);
}

/// Puts a whole manifest in place of another one.
#[track_caller]
pub fn put_manifest(workspace: &Workspace, backup: &str, source: &str, manifest: &Value) {
    forging(workspace).put_manifest(backup, source, manifest);
}
