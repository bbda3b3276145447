//! Someone who can write to the store, reads what is in clear there, knows every public key, and has this program.
//!
//! He backs up a database of his own with it, into a repository that says it is the victim's, and then encrypts everything
//! again to the victim's recipients.

use std::{collections::BTreeMap, fs, io::Read};

use altlas_backup::crypt::{self, Identity, Recipient};
use serde_json::{Value, json};

use super::people::{Given, Key, backup, hex, machine, objects, put, record, sha256};
use crate::support::{postgres::Postgres, workspace::Workspace};

/// Who is said to have begun a forged epoch, and what is to prove it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// The forger, as his signature shows.
    Forger,
    /// Somebody else, with the forger's signature.
    Claims(&'a Recipient),
    /// The record has no such field.
    Absent,
}

/// A forged backup in a victim's repository.
pub(super) struct Forged {
    pub(super) backup: String,
    pub(super) epoch: String,
}

pub(super) struct Forger {
    pub(super) key: Key,
    /// His repository.
    place: Workspace,
    backup: String,
}

impl Forger {
    /// Backs up this server's `altlas` as though into the victim's repository.
    pub(super) fn new(victim: &Workspace, server: &Postgres) -> Self {
        let place = Workspace::folder().postgres(server, &["altlas"]);
        put(&place, "altlas.json", &fs::read(victim.repository_folder().join("altlas.json")).unwrap());
        let key = Key::new();
        let keys = [&key];
        let own = machine(&place, Given { recipients: &keys, data: &keys, ..Given::default() });
        let backup = backup(&own);
        Self { place, backup, key }
    }

    /// An object of his own, in clear.
    pub(super) fn open(&self, stored: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        crypt::decrypt(&self.key.identities(), stored).unwrap().read_to_end(&mut plain).unwrap();
        plain
    }

    /// His manifest, in clear.
    pub(super) fn manifest(&self) -> Value {
        let key = format!("backups/{}/database.manifest.json.zst.age", self.backup);
        let frame = self.open(&objects(&self.place.repository_folder())[&key]);
        serde_json::from_slice(&zstd::decode_all(&frame[..]).unwrap()).unwrap()
    }

    /// Puts his whole backup, with an epoch, keys, a manifest and parts that fit together, into the victim's repository:
    /// encrypted to these recipients and this catalogue's.
    pub(super) fn forge(
        &self,
        victim: &Workspace,
        recipients: &[&Recipient],
        catalog: Option<&Recipient>,
        origin: Origin<'_>,
    ) -> Forged {
        let own = objects(&self.place.repository_folder());
        let head_key = format!("backups/{}/head.json", self.backup);
        let mut head = record(&self.place, &head_key);
        let epoch = head["epoch"].as_str().unwrap().to_owned();
        let mut recipients: Vec<Recipient> = recipients.iter().map(|recipient| (*recipient).clone()).collect();
        recipients.sort();
        let readers: Vec<Recipient> = recipients.iter().chain(catalog).cloned().collect();

        let keys_key = format!("epochs/{epoch}/keys.json.age");
        let keys = self.open(&own[&keys_key]);
        let mac: [u8; 32] = unhex(serde_json::from_slice::<Value>(&keys).unwrap()["mac"].as_str().unwrap());
        let keys_stored = crypt::encrypt(&readers, &keys).unwrap();

        let record_key = format!("epochs/{epoch}/epoch.json");
        let mut epoch_record = record(&self.place, &record_key);
        epoch_record["recipients"] = json!(recipients);
        epoch_record["keys"] = json!(sha256(&keys_stored));
        if let Some(catalog) = catalog {
            epoch_record["catalog_recipient"] = json!(catalog);
        }
        let epoch_json = self.sign(epoch_record, origin);

        // Parts, under the names that their new bytes ask for.
        let mut names: BTreeMap<String, (String, u64)> = BTreeMap::new();
        for (key, stored) in own.iter().filter(|(key, _)| key.contains("/parts/")) {
            let name = key.rsplit('/').next().unwrap().strip_suffix(".zst.age").unwrap();
            let stored = crypt::encrypt(&recipients, &self.open(stored)).unwrap();
            let pieces: Vec<&str> = name.split('.').collect();
            let new = format!("{}.{}.{}", pieces[0], sha256(&stored), pieces[2]);
            let mut tag = blake3::Hasher::new_keyed(&mac);
            let hash: [u8; 32] = unhex(&sha256(&stored));
            tag.update(b"altlas-backup part 1\0").update(&unhex(pieces[0])).update(&hash).update(pieces[2].as_bytes());
            let new = format!("{new}.{}", &tag.finalize().to_hex()[..16]);
            put(victim, &format!("epochs/{epoch}/parts/{}/{new}.zst.age", &new[..2]), &stored);
            names.insert(name.to_owned(), (new, stored.len() as u64));
        }
        let mut manifest = self.manifest();
        for artifact in manifest["artifacts"].as_array_mut().unwrap() {
            for part in artifact["parts"].as_array_mut().unwrap() {
                let (name, stored) = &names[part["name"].as_str().unwrap()];
                part["name"] = json!(name);
                part["stored"] = json!(stored);
            }
        }
        let manifest = sealed_manifest(&manifest, &readers);
        head["anchors"]["epoch"] = json!(sha256(&epoch_json));
        head["anchors"]["keys"] = json!(sha256(&keys_stored));
        head["sources"][0]["manifest"] = json!({"bytes": manifest.len(), "sha256": sha256(&manifest)});

        put(victim, &record_key, &epoch_json);
        put(victim, &keys_key, &keys_stored);
        put(victim, &format!("backups/{}/database.manifest.json.zst.age", self.backup), &manifest);
        put(victim, &head_key, &sealed(head, Seal::Mac(mac)));
        Forged { backup: self.backup.clone(), epoch }
    }

    /// An epoch's record that says who began it.
    pub(super) fn sign(&self, mut record: Value, origin: Origin<'_>) -> Vec<u8> {
        match origin {
            Origin::Forger => record["begun_by"] = json!(self.key.recipient()),
            Origin::Claims(other) => record["begun_by"] = json!(other),
            Origin::Absent => drop(record.as_object_mut().unwrap().remove("begun_by")),
        }
        match origin {
            Origin::Absent => sealed(record, Seal::Digest),
            _ => sealed(record, Seal::Signature(self.key.identity())),
        }
    }
}

/// How a record ends.
#[derive(Clone, Copy)]
pub(super) enum Seal<'a> {
    Digest,
    Mac([u8; 32]),
    Signature(&'a Identity),
}

/// A sealed record, as `src/repository/seal.rs` describes it, in place of whatever seal it has.
pub(super) fn sealed(mut record: Value, seal: Seal<'_>) -> Vec<u8> {
    let field = match seal {
        Seal::Digest => "blake3",
        Seal::Mac(_) => "mac",
        Seal::Signature(_) => "signature",
    };
    let fields = record.as_object_mut().unwrap();
    for old in ["blake3", "mac", "signature"] {
        fields.remove(old);
    }
    let text = serde_json::to_string_pretty(&record).unwrap();
    let covered = format!("{},\n  \"{field}\": \"", text.strip_suffix("\n}").unwrap());
    let message = [b"altlas-backup sealed record 1\0", covered.as_bytes()].concat();
    let hex = match seal {
        Seal::Digest => blake3::hash(&message).to_string(),
        Seal::Mac(key) => blake3::keyed_hash(&key, &message).to_string(),
        Seal::Signature(identity) => crypt::sign(identity, &message).to_string(),
    };
    format!("{covered}{hex}\"\n}}\n").into_bytes()
}

/// A manifest as it is stored.
pub(super) fn sealed_manifest(manifest: &Value, readers: &[Recipient]) -> Vec<u8> {
    let frame = zstd::encode_all(manifest.to_string().as_bytes(), 3).unwrap();
    crypt::encrypt(readers, &frame).unwrap()
}

/// Bytes encrypted to these recipients, of exactly this size: a zstd frame that holds `plain`, and one that is skipped.
pub(super) fn part_of_size(recipients: &[Recipient], plain: &[u8], size: usize) -> Vec<u8> {
    let frame = zstd::encode_all(plain, 3).unwrap();
    let mut padding = size.checked_sub(frame.len() + 1000).expect("room for what is put in its place");
    // The header holds random text of random length: tried until it fits.
    for _ in 0..10_000 {
        let skipped = [&0x184D_2A50_u32.to_le_bytes()[..], &(padding as u32).to_le_bytes(), &vec![0; padding]].concat();
        let stored = crypt::encrypt(recipients, &[&frame[..], &skipped].concat()).unwrap();
        if stored.len() == size {
            return stored;
        }
        padding = (padding + size).saturating_sub(stored.len());
    }
    panic!("no part of {size} bytes came out");
}

fn unhex(text: &str) -> [u8; 32] {
    let bytes = *blake3::Hash::from_hex(text).unwrap().as_bytes();
    assert_eq!(hex(&bytes), text);
    bytes
}
