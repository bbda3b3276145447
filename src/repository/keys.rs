//! The three keys of an epoch: for naming parts, for MACs, for fingerprints. They never leave their epoch (rule R7).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{EpochId, RepositoryId, RunTail};
use crate::crypt::hex;

/// The keys of one epoch. `Debug` shows none of them.
#[derive(Clone)]
pub struct Keys {
    naming: [u8; 32],
    mac: [u8; 32],
    fingerprint: u64,
}

/// `keys.json` as stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct KeysRecord {
    pub(crate) format: u32,
    pub(crate) repository: RepositoryId,
    pub(crate) epoch: EpochId,
    naming: String,
    mac: String,
    fingerprint: String,
}

impl Keys {
    /// New random keys, from the operating system's generator (by way of `rand`'s seeded one).
    pub fn random() -> Self {
        Self { naming: rand::random(), mac: rand::random(), fingerprint: rand::random() }
    }

    /// The content hash of a part: BLAKE3 of its plaintext, keyed, so that a reader of the bucket cannot confirm a guess (R2).
    pub fn content_hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.naming)
    }

    /// Binds the fields of a part's name to each other, in 8 bytes. Whoever writes to the store sees the hashes of contents in the
    /// names of parts; without this he could store something else under one of them, for the next backup to reuse.
    pub(super) fn part_tag(&self, content: &[u8; 32], stored: &[u8; 32], run: &RunTail) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new_keyed(&self.mac);
        hasher.update(b"altlas-backup part 1\0").update(content).update(stored).update(run.as_str().as_bytes());
        let mut tag = [0; 8];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        tag
    }

    pub(crate) fn mac_key(&self) -> &[u8; 32] {
        &self.mac
    }

    /// The seed of the row hash (XXH3): fingerprints and cuts of one epoch share it.
    pub fn fingerprint_seed(&self) -> u64 {
        self.fingerprint
    }

    /// A key for `pg_dump --restrict-key`: the same within an epoch, so that equal schemas give equal bytes, and not to be
    /// guessed by a server that would like to end the restriction from within its own dump (CVE-2025-8714).
    pub fn restrict_key(&self) -> String {
        let hash = self.content_hasher().update(b"altlas-backup restrict key").finalize();
        hash.to_hex().as_str()[..32].to_owned()
    }

    pub(crate) fn to_record(&self, format: u32, repository: &RepositoryId, epoch: &EpochId) -> KeysRecord {
        KeysRecord {
            format,
            repository: repository.clone(),
            epoch: epoch.clone(),
            naming: hex::encode(&self.naming),
            mac: hex::encode(&self.mac),
            fingerprint: hex::encode(&self.fingerprint.to_be_bytes()),
        }
    }

    pub(crate) fn from_record(record: &KeysRecord) -> Option<Self> {
        Some(Self {
            naming: hex::decode(&record.naming)?,
            mac: hex::decode(&record.mac)?,
            fingerprint: u64::from_be_bytes(hex::decode(&record.fingerprint)?),
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}
