//! The three keys of an epoch: for naming parts, for MACs, for fingerprints. They never leave their epoch (rule R7).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{EpochId, RepositoryId};

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

    pub(crate) fn to_record(&self, repository: &RepositoryId, epoch: &EpochId, format: u32) -> KeysRecord {
        KeysRecord {
            format,
            repository: repository.clone(),
            epoch: epoch.clone(),
            naming: to_hex(&self.naming),
            mac: to_hex(&self.mac),
            fingerprint: to_hex(&self.fingerprint.to_be_bytes()),
        }
    }

    pub(crate) fn from_record(record: &KeysRecord) -> Option<Self> {
        Some(Self {
            naming: from_hex(&record.naming)?,
            mac: from_hex(&record.mac)?,
            fingerprint: u64::from_be_bytes(from_hex(&record.fingerprint)?),
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// Lower-case hex.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads exactly `N` bytes of lower-case hex.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}
