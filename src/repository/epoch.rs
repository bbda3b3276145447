//! Epochs: a month of backups that share keys and parts (rule R7).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EpochId, Keys, RepositoryId};

/// How the objects of an epoch are protected. Encryption adds a variant here; everything that differs asks this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Objects are stored in clear: integrity without authenticity.
    Clear,
}

impl Protection {
    /// What the keys of protected objects end in.
    pub fn suffix(self) -> &'static str {
        match self {
            Protection::Clear => "",
        }
    }
}

/// `epoch.json` as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Repository format version.
    pub format: u32,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// Its id.
    pub epoch: EpochId,
    /// When it began, by the store's clock.
    pub began: Timestamp,
    /// The age recipients it was begun with; none in an unencrypted repository.
    pub recipients: Vec<String>,
    /// How rows are cut into parts: a note for people, readers do not need it.
    pub cut: String,
}

/// An epoch that was read and checked.
#[derive(Debug)]
pub struct Epoch {
    /// Its record.
    pub record: EpochRecord,
    /// Its keys.
    pub keys: Keys,
    /// How its objects are protected.
    pub protection: Protection,
    /// SHA-256 of `epoch.json` as stored, in hex.
    pub(crate) record_digest: String,
    /// SHA-256 of the keys' object as stored, in hex.
    pub(crate) keys_digest: String,
}

impl Epoch {
    /// Its id.
    pub fn id(&self) -> &EpochId {
        &self.record.epoch
    }
}
