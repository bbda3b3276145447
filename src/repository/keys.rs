//! The three keys of an epoch: for naming parts, for MACs, for fingerprints. They never leave their epoch (rule R7).
//!
//! In an encrypted repository everything that is believed rests on them, and anyone who knows the recipients can encrypt keys
//! of his own to them. So the record says who began the epoch and proves it to each of its readers.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{EpochId, RepositoryId};
use crate::crypt::{self, Identity, Recipient};

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
    /// SHA-256 of the epoch's `epoch.json`, in hex.
    pub(crate) epoch_record: String,
    naming: String,
    mac: String,
    fingerprint: String,
    /// In an encrypted repository: who began the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

/// Who began an epoch, and what proves it.
#[derive(Serialize, Deserialize)]
struct Origin {
    /// The catalogue's recipient, or that of a data identity.
    begun_by: Recipient,
    /// For each reader of the record a proof, in hex, over repository, epoch, record and keys.
    proofs: BTreeMap<Recipient, String>,
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

    pub(crate) fn to_record(
        &self,
        format: u32,
        repository: &RepositoryId,
        epoch: &EpochId,
        record: &str,
    ) -> KeysRecord {
        KeysRecord {
            format,
            repository: repository.clone(),
            epoch: epoch.clone(),
            epoch_record: record.to_owned(),
            naming: to_hex(&self.naming),
            mac: to_hex(&self.mac),
            fingerprint: to_hex(&self.fingerprint.to_be_bytes()),
            origin: None,
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

impl KeysRecord {
    /// Says and proves to each reader that `beginner` began the epoch. A reader whose key is none is the error.
    pub(crate) fn prove<'a>(
        &mut self,
        beginner: &Identity,
        readers: impl Iterator<Item = &'a Recipient>,
    ) -> Result<(), &'a Recipient> {
        let message = self.message();
        let mut proofs = BTreeMap::new();
        for reader in readers {
            let proof = crypt::prove(beginner, reader, &message).ok_or(reader)?;
            proofs.insert(reader.clone(), proof.to_hex().to_string());
        }
        self.origin = Some(Origin { begun_by: beginner.recipient().clone(), proofs });
        Ok(())
    }

    /// Who began the epoch, where the record proves it to `reader`.
    pub(crate) fn proven_beginner(&self, reader: &Identity) -> Result<&Recipient, String> {
        let origin = self.origin.as_ref().ok_or("does not say who began the epoch")?;
        let proof = origin.proofs.get(reader.recipient()).and_then(|hex| blake3::Hash::from_hex(hex).ok());
        if proof.is_some_and(|proof| crypt::proves(reader, &origin.begun_by, &self.message(), &proof)) {
            return Ok(&origin.begun_by);
        }
        Err(format!("does not prove that {} made it: it is forged or damaged", origin.begun_by))
    }

    /// What the proofs cover: all fields but the origin, each of a fixed shape or ended by a zero byte.
    fn message(&self) -> Vec<u8> {
        let format = self.format.to_string();
        let fields = [
            format.as_str(),
            self.repository.as_str(),
            self.epoch.as_str(),
            &self.epoch_record,
            &self.naming,
            &self.mac,
            &self.fingerprint,
        ];
        fields.iter().flat_map(|field| [field.as_bytes(), b"\0"].concat()).collect()
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
