//! What a machine holds and is told: to whom new epochs are encrypted, which identities open old ones, and whose epochs are to be
//! believed.

use std::sync::Arc;

use super::{EpochRecord, Locked, Protection, epoch::Envelope};
use crate::crypt::{Identities, Identity, Recipient};

/// The keys of a machine. The default one has none and makes repositories in clear.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    /// Whose identities open everything; none: nothing is encrypted.
    recipients: Vec<Recipient>,
    /// Public halves of catalogue identities, the current one first: those held, then those only known.
    catalog_recipients: Vec<Recipient>,
    /// Every identity that is held.
    all: Arc<Identities>,
}

impl Keyring {
    /// The keys of a machine: `recipients` and `known` catalogue recipients as configured, and the identities it holds.
    pub fn new(recipients: Vec<Recipient>, known: Vec<Recipient>, catalog: Identities, data: Identities) -> Self {
        let mut catalog_recipients: Vec<Recipient> = catalog.recipients().cloned().collect();
        catalog_recipients.extend(known);
        let all = catalog.iter().chain(data.iter()).cloned().collect();
        let mut recipients = recipients;
        recipients.sort();
        recipients.dedup();
        Self { recipients, catalog_recipients, all: Arc::new(all) }
    }

    /// Does it encrypt?
    pub fn encrypts(&self) -> bool {
        !self.recipients.is_empty()
    }

    /// Is no identity held at all?
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The recipients of new epochs, sorted.
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// The catalogue recipient of new epochs. One that is a recipient anyway needs no mention.
    pub fn catalog_recipient(&self) -> Option<&Recipient> {
        self.catalog_recipients.first().filter(|catalog| !self.recipients.contains(catalog))
    }

    /// Would a new epoch be encrypted to the same?
    pub fn agrees_with(&self, record: &EpochRecord) -> bool {
        record.recipients == self.recipients && record.catalog_recipient.as_ref() == self.catalog_recipient()
    }

    /// Whose epochs are believed: the current catalogue key's; where there is no catalogue, any recipient's.
    pub(super) fn current_beginners(&self) -> &[Recipient] {
        match &self.catalog_recipients[..] {
            [] => &self.recipients,
            keys => &keys[..1],
        }
    }

    /// Catalogue keys that were replaced.
    pub(super) fn earlier_beginners(&self) -> &[Recipient] {
        self.catalog_recipients.get(1..).unwrap_or_default()
    }

    /// Does anything say who makes backups?
    pub(super) fn names_catalog(&self) -> bool {
        !self.catalog_recipients.is_empty()
    }

    /// The identity that begins epochs.
    ///
    /// # Errors
    /// `NoBeginner`, where it is not held.
    pub fn beginner(&self) -> Result<&Identity, Locked> {
        let beginners = self.current_beginners();
        self.all.of_any(beginners.iter()).ok_or_else(|| Locked::NoBeginner { beginners: beginners.to_vec() })
    }

    /// An identity that opens the keys and manifests of this epoch.
    pub(super) fn opener(&self, record: &EpochRecord) -> Option<&Identity> {
        self.all.of_any(record.readers())
    }

    /// How an object is read whose epoch is not known yet: with everything that is held. Nothing is written by it.
    pub(super) fn reader(&self, encrypted: bool) -> Protection {
        match encrypted {
            false => Protection::Clear,
            true => Protection::Age(Arc::new(Envelope {
                recipients: Vec::new(),
                readers: Vec::new(),
                opens_parts: false,
                identities: self.all.clone(),
            })),
        }
    }

    /// How the objects of this epoch are protected, and whether we can read them.
    pub(crate) fn protection(&self, record: &EpochRecord) -> Protection {
        if record.recipients.is_empty() {
            return Protection::Clear;
        }
        Protection::Age(Arc::new(Envelope {
            recipients: record.recipients.clone(),
            readers: record.readers().cloned().collect(),
            opens_parts: self.all.of_any(record.recipients.iter()).is_some(),
            identities: self.all.clone(),
        }))
    }
}
