//! What a machine holds and believes: to whom new epochs are encrypted, which identities open old ones, and whose epochs are
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
    /// Catalogue identities that are held.
    catalog: Identities,
    /// Identities of recipients that are held.
    data: Arc<Identities>,
    /// All of them.
    all: Arc<Identities>,
}

/// May an epoch of this beginner be believed?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    /// The configuration or an identity that is held names it.
    Known,
    /// Nothing here says who makes backups, so that nobody can be a stranger.
    Unasked,
    /// It is none of those that the configuration names.
    Stranger,
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
        Self { recipients, catalog_recipients, catalog, data: Arc::new(data), all: Arc::new(all) }
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

    /// The identity that begins epochs: the catalogue's, else a recipient's.
    pub(super) fn beginner(&self) -> Result<&Identity, Locked> {
        match self.catalog.first() {
            Some(identity) => Ok(identity),
            None => self
                .data
                .of_any(self.recipients.iter())
                .ok_or_else(|| Locked::NoBeginner { recipients: self.recipients.clone() }),
        }
    }

    /// An identity that opens the keys and manifests of this epoch.
    pub(super) fn opener(&self, record: &EpochRecord) -> Option<&Identity> {
        self.all.of_any(record.readers())
    }

    pub(super) fn belief(&self, beginner: &Recipient) -> Belief {
        let named = self.recipients.iter().chain(&self.catalog_recipients).chain(self.data.recipients());
        if named.into_iter().any(|recipient| recipient == beginner) {
            Belief::Known
        } else if self.catalog_recipients.is_empty() {
            Belief::Unasked
        } else {
            Belief::Stranger
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
            opens_parts: self.data.of_any(record.recipients.iter()).is_some(),
            identities: self.all.clone(),
        }))
    }
}
