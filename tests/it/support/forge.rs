//! A repository in clear whose manifest was changed and everything that depends on it made good again: what nobody but the data itself
//! can contradict.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::workspace::Workspace;

/// The manifest of a source in a backup of a folder in clear.
#[track_caller]
pub fn manifest(workspace: &Workspace, backup: &str, source: &str) -> Value {
    let stored = fs::read(workspace.repository_folder().join(manifest_key(backup, source))).unwrap();
    serde_json::from_slice(&zstd::decode_all(&stored[..]).unwrap()).unwrap()
}

/// Changes that manifest.
#[track_caller]
pub fn change_manifest(workspace: &Workspace, backup: &str, source: &str, change: impl FnOnce(&mut Value)) {
    let mut changed = manifest(workspace, backup, source);
    let was = changed.clone();
    change(&mut changed);
    assert_ne!(was, changed);
    put_manifest(workspace, backup, source, &changed);
}

/// Puts another manifest in its place, and a head that vouches for it.
fn put_manifest(workspace: &Workspace, backup: &str, source: &str, manifest: &Value) {
    let root = workspace.repository_folder();
    let stored = zstd::encode_all(manifest.to_string().as_bytes(), 3).unwrap();
    let head_file = root.join(format!("backups/{backup}/head.json"));
    let mut head: Value = serde_json::from_slice(&fs::read(&head_file).unwrap()).unwrap();
    let keys_file = root.join(format!("epochs/{}/keys.json", head["epoch"].as_str().unwrap()));
    let keys: Value = serde_json::from_slice(&fs::read(keys_file).unwrap()).unwrap();
    let mac = *blake3::Hash::from_hex(keys["mac"].as_str().unwrap()).unwrap().as_bytes();
    let of_source = head["sources"].as_array_mut().unwrap().iter_mut().find(|found| found["name"] == source).unwrap();
    let digest: String = Sha256::digest(&stored).iter().map(|byte| format!("{byte:02x}")).collect();
    of_source["manifest"] = json!({"bytes": stored.len(), "sha256": digest});
    fs::write(root.join(manifest_key(backup, source)), stored).unwrap();
    fs::write(head_file, sealed(head, &mac)).unwrap();
}

fn manifest_key(backup: &str, source: &str) -> String {
    format!("backups/{backup}/{source}.manifest.json.zst")
}

/// A head with its MAC, as `src/repository/seal.rs` describes it, in place of the one it has.
fn sealed(mut head: Value, mac: &[u8; 32]) -> Vec<u8> {
    head.as_object_mut().unwrap().remove("mac");
    let text = serde_json::to_string_pretty(&head).unwrap();
    let covered = format!("{},\n  \"mac\": \"", text.strip_suffix("\n}").unwrap());
    let message = [b"altlas-backup sealed record 1\0", covered.as_bytes()].concat();
    format!("{covered}{}\"\n}}\n", blake3::keyed_hash(mac, &message)).into_bytes()
}
