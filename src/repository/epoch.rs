//! Epochs: a month of backups that share keys and parts (rule R7).

use std::{io::Read, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EpochId, Keys, Locked, RepositoryId, layout};
use crate::crypt::{self, EnvelopeError, Identities, Recipient};

/// How the objects of an epoch are protected. Everything that differs asks this type.
#[derive(Clone, Debug)]
pub enum Protection {
    /// Objects are stored in clear: integrity without authenticity.
    Clear,
    /// Objects are in age.
    Age(Arc<Envelope>),
}

/// To whom the objects of an epoch are encrypted, and what opens them here.
#[derive(Debug)]
pub struct Envelope {
    /// Who reads everything.
    pub(super) recipients: Vec<Recipient>,
    /// Who reads keys and manifests: the recipients and the catalogue's.
    pub(super) readers: Vec<Recipient>,
    /// Is an identity of a recipient held?
    pub(super) opens_parts: bool,
    /// Everything that is held.
    pub(super) identities: Arc<Identities>,
}

impl Protection {
    /// What the keys of protected objects end in.
    pub fn suffix(&self) -> &'static str {
        match self {
            Protection::Clear => "",
            Protection::Age(_) => layout::ENCRYPTED_SUFFIX,
        }
    }

    /// A part as it is stored: for the recipients alone. Blocking.
    ///
    /// # Errors
    /// None that this program does not cause.
    pub fn wrap_part(&self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        match self {
            Protection::Clear => Ok(frame),
            Protection::Age(envelope) => crypt::encrypt(&envelope.recipients, &frame),
        }
    }

    /// Keys, a manifest or details of evidence as they are stored: for the catalogue too. Blocking.
    ///
    /// # Errors
    /// None that this program does not cause.
    pub fn wrap_record(&self, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
        match self {
            Protection::Clear => Ok(bytes),
            Protection::Age(envelope) => crypt::encrypt(&envelope.readers, &bytes),
        }
    }

    /// What [`Protection::wrap_part`] and [`Protection::wrap_record`] take, from what they give. To be read to its end: what
    /// is cut off or appended is found there.
    ///
    /// # Errors
    /// Not for an identity that is here, or damaged.
    pub fn unwrap<'a>(&self, stored: &'a [u8]) -> Result<Box<dyn Read + 'a>, EnvelopeError> {
        match self {
            Protection::Clear => Ok(Box::new(stored)),
            Protection::Age(envelope) => Ok(Box::new(crypt::decrypt(&envelope.identities, stored)?)),
        }
    }

    /// The most bytes that [`Protection::wrap_part`] makes of so many.
    pub fn longest(&self, frame: usize) -> usize {
        match self {
            Protection::Clear => frame,
            Protection::Age(envelope) => crypt::longest(frame, envelope.recipients.len()),
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
    /// The age recipients it was begun with, sorted; none in an unencrypted repository.
    pub recipients: Vec<Recipient>,
    /// The catalogue's recipient, which opens keys and manifests but no part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalog_recipient: Option<Recipient>,
    /// How rows are cut into parts: a note for people, readers do not need it.
    pub cut: String,
    /// SHA-256 of the keys' object, in hex.
    pub keys: String,
    /// In an encrypted repository: who began the epoch, and signed this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_by: Option<Recipient>,
    /// The epochs that whoever began this one believed in: with this record they are believed too, whoever began them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<EarlierEpoch>,
}

/// An epoch that a later one vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierEpoch {
    /// Its id.
    pub epoch: EpochId,
    /// SHA-256 of its `epoch.json`, in hex.
    pub sha256: String,
}

impl EpochRecord {
    /// Who reads keys and manifests.
    pub fn readers(&self) -> impl Iterator<Item = &Recipient> {
        self.recipients.iter().chain(&self.catalog_recipient)
    }
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

    /// Fails where its parts cannot be read with what this machine holds.
    ///
    /// # Errors
    /// [`Locked::NoDataIdentity`].
    pub fn must_open_parts(&self) -> Result<(), Locked> {
        match &self.protection {
            Protection::Age(envelope) if !envelope.opens_parts => Err(Locked::NoDataIdentity {
                object: layout::parts(self.id()),
                recipients: envelope.recipients.clone(),
            }),
            _ => Ok(()),
        }
    }
}
