//! Changes a repository in a folder and makes every digest and MAC good again: what nobody but the data itself can contradict. For tests
//! and the demo, with every key of the repository at hand.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use altlas_backup::crypt::{self, Identities, Recipient};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A repository to be forged.
pub struct Forging {
    folder: PathBuf,
    /// Those of a recipient, where it is encrypted.
    identities: Option<Identities>,
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

impl Forging {
    /// The repository in this folder, which these identities open.
    pub fn new(folder: &Path, identities: Option<Identities>) -> Self {
        Self { folder: folder.to_owned(), identities }
    }

    fn suffix(&self) -> &'static str {
        if self.identities.is_some() { ".age" } else { "" }
    }

    fn open(&self, stored: &[u8]) -> Vec<u8> {
        let Some(identities) = &self.identities else { return stored.to_vec() };
        let mut plain = Vec::new();
        crypt::decrypt(identities, stored).unwrap().read_to_end(&mut plain).unwrap();
        plain
    }

    fn head_file(&self, backup: &str) -> PathBuf {
        self.folder.join(format!("backups/{backup}/head.json"))
    }

    fn manifest_file(&self, backup: &str, source: &str) -> PathBuf {
        self.folder.join(format!("backups/{backup}/{source}.manifest.json.zst{}", self.suffix()))
    }

    /// The manifest of a source in a backup.
    #[track_caller]
    pub fn manifest(&self, backup: &str, source: &str) -> Value {
        let frame = self.open(&fs::read(self.manifest_file(backup, source)).unwrap());
        serde_json::from_slice(&zstd::decode_all(&frame[..]).unwrap()).unwrap()
    }

    /// The object of an artifact's part.
    pub fn part_file(&self, manifest: &Value, artifact: &str, part: usize) -> PathBuf {
        let name = artifact_of(manifest, artifact)["parts"][part]["name"].as_str().unwrap().to_owned();
        let epoch = manifest["epoch"].as_str().unwrap();
        self.folder.join(format!("epochs/{epoch}/parts/{}/{name}.zst{}", &name[..2], self.suffix()))
    }

    /// Puts another manifest in place of a source's, and a head that vouches for it and tells its sizes.
    pub fn put_manifest(&self, backup: &str, source: &str, manifest: &Value) {
        let mut head = json_file(&self.head_file(backup));
        let epoch = head["epoch"].as_str().unwrap().to_owned();
        let keys = fs::read(self.folder.join(format!("epochs/{epoch}/keys.json{}", self.suffix()))).unwrap();
        let keys: Value = serde_json::from_slice(&self.open(&keys)).unwrap();
        let mac = *blake3::Hash::from_hex(keys["mac"].as_str().unwrap()).unwrap().as_bytes();
        let frame = zstd::encode_all(manifest.to_string().as_bytes(), 3).unwrap();
        let stored = match &self.identities {
            None => frame,
            Some(_) => {
                let record = json_file(&self.folder.join(format!("epochs/{epoch}/epoch.json")));
                let listed = record["recipients"].as_array().into_iter().flatten();
                let readers: Vec<Recipient> = listed
                    .chain(record.get("catalog_recipient"))
                    .map(|recipient| recipient.as_str().unwrap().parse().unwrap())
                    .collect();
                crypt::encrypt(&readers, &frame).unwrap()
            }
        };
        let of_source =
            head["sources"].as_array_mut().unwrap().iter_mut().find(|found| found["name"] == source).unwrap();
        let artifacts = manifest["artifacts"].as_array().unwrap();
        let parts: BTreeMap<&str, u64> = artifacts
            .iter()
            .flat_map(|artifact| artifact["parts"].as_array().unwrap())
            .map(|part| (part["name"].as_str().unwrap(), part["stored"].as_u64().unwrap()))
            .collect();
        let rows = artifacts.iter().map(|artifact| artifact["fingerprint"]["rows"].as_u64().unwrap_or(0));
        of_source["rows"] = json!(rows.sum::<u64>());
        of_source["artifacts"] = json!(artifacts.len());
        of_source["parts"] = json!(parts.len());
        of_source["sizes"]["raw"] = json!(artifacts.iter().map(|one| one["raw"].as_u64().unwrap()).sum::<u64>());
        of_source["sizes"]["stored"] = json!(parts.values().sum::<u64>());
        of_source["manifest"] = json!({"bytes": stored.len(), "sha256": sha256(&stored)});
        fs::write(self.manifest_file(backup, source), stored).unwrap();
        fs::write(self.head_file(backup), sealed(head, &mac)).unwrap();
    }

    /// Changes the bytes of an artifact, which is stored as a single part.
    #[track_caller]
    pub fn rewrite(&self, backup: &str, source: &str, artifact: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut manifest = self.manifest(backup, source);
        let stored = fs::read(self.part_file(&manifest, artifact, 0)).unwrap();
        let mut plain = zstd::decode_all(&self.open(&stored)[..]).unwrap();
        let was = plain.clone();
        change(&mut plain);
        assert_ne!(was, plain, "{artifact} is changed");
        let epoch = manifest["epoch"].as_str().unwrap().to_owned();
        let keys = fs::read(self.folder.join(format!("epochs/{epoch}/keys.json{}", self.suffix()))).unwrap();
        let keys: Value = serde_json::from_slice(&self.open(&keys)).unwrap();
        let key = |name: &str| *blake3::Hash::from_hex(keys[name].as_str().unwrap()).unwrap().as_bytes();
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        std::io::Write::write_all(&mut encoder, &plain).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(self.identities.is_none(), "only parts in clear are rewritten");
        let (content, digest) = (blake3::keyed_hash(&key("naming"), &plain), Sha256::digest(&frame));
        let (run, mut tag) = ("zzzzzz", blake3::Hasher::new_keyed(&key("mac")));
        tag.update(b"altlas-backup part 1\0").update(content.as_bytes()).update(&digest).update(run.as_bytes());
        let name = format!("{content}.{}.{run}.{}", sha256(&frame), &tag.finalize().to_hex()[..16]);
        let file = self.folder.join(format!("epochs/{epoch}/parts/{}/{name}.zst", &name[..2]));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, &frame).unwrap();
        let artifacts = manifest["artifacts"].as_array_mut().unwrap();
        let changed = artifacts.iter_mut().find(|one| one["path"] == artifact).unwrap();
        assert_eq!(changed["parts"].as_array().unwrap().len(), 1, "{artifact} is one part");
        changed["raw"] = json!(plain.len());
        let rows = changed["parts"][0]["rows"].clone();
        changed["parts"] = json!([{"name": name, "raw": plain.len(), "stored": frame.len(), "rows": rows}]);
        self.put_manifest(backup, source, &manifest);
    }

    /// Puts an artifact's bytes of another backup of the same epoch under the fingerprints that this one captured.
    #[track_caller]
    pub fn graft(&self, into: &str, donor: &str, source: &str, artifact: &str) {
        let mut manifest = self.manifest(into, source);
        let other = self.manifest(donor, source);
        assert_eq!(manifest["epoch"], other["epoch"], "parts are of one epoch");
        let theirs = artifact_of(&other, artifact);
        let ours = manifest["artifacts"].as_array_mut().unwrap();
        let ours = ours.iter_mut().find(|one| one["path"] == artifact).expect("the artifact is there");
        assert_ne!(ours["parts"], theirs["parts"], "{artifact} is the same in both");
        (ours["parts"], ours["raw"]) = (theirs["parts"].clone(), theirs["raw"].clone());
        self.put_manifest(into, source, &manifest);
    }
}

/// The artifact of that path.
#[track_caller]
fn artifact_of<'a>(manifest: &'a Value, path: &str) -> &'a Value {
    manifest["artifacts"].as_array().unwrap().iter().find(|one| one["path"] == path).expect("the artifact is there")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A record with its MAC, as `src/repository/seal.rs` describes it, in place of the one it has.
fn sealed(mut record: Value, mac: &[u8; 32]) -> Vec<u8> {
    record.as_object_mut().unwrap().remove("mac");
    let text = serde_json::to_string_pretty(&record).unwrap();
    let covered = format!("{},\n  \"mac\": \"", text.strip_suffix("\n}").unwrap());
    let message = [b"altlas-backup sealed record 1\0", covered.as_bytes()].concat();
    format!("{covered}{}\"\n}}\n", blake3::keyed_hash(mac, &message)).into_bytes()
}
