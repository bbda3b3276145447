//! What can be wrong with a repository, by meaning.

use super::{BackupId, SnapshotState, sweep::Brake};
use crate::{
    crypt::{Recipient, listed},
    store::{StoreError, StoreErrorKind},
};

/// Why an object is not to be trusted. Always names the object by its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trust {
    /// It should be there and is not.
    #[error("{object} is missing")]
    Missing {
        /// The object's key.
        object: String,
    },
    /// Its size, digest, seal or content is not what it must be.
    #[error("{object} {what}")]
    Damaged {
        /// The object's key.
        object: String,
        /// What is wrong, as a fragment that follows the object's name.
        what: String,
    },
}

impl Trust {
    /// The key of the object that is not to be trusted.
    pub fn object(&self) -> &str {
        match self {
            Trust::Missing { object } | Trust::Damaged { object, .. } => object,
        }
    }

    /// Damage with its reason.
    pub fn damaged(object: impl Into<String>, what: impl ToString) -> Self {
        Trust::Damaged { object: object.into(), what: what.to_string() }
    }
}

/// Why something that may be whole cannot be opened or believed with what this machine holds. Not a verdict on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Locked {
    /// Neither catalogue nor data identity opens an epoch's keys.
    #[error("{object} is encrypted to {}; none of their identities is configured here", listed(readers))]
    NoIdentity {
        /// The key of the epoch's keys.
        object: String,
        /// Whose identities would do.
        readers: Vec<Recipient>,
    },
    /// No data identity opens an epoch's parts.
    #[error("what is in {object} is encrypted to {}; none of their identities is configured here", listed(recipients))]
    NoDataIdentity {
        /// The folder of the parts.
        object: String,
        /// Whose identities would do.
        recipients: Vec<Recipient>,
    },
    /// No identity here may begin an epoch.
    #[error(
        "a new epoch is begun, and signed, by the holder of {}; that identity is not configured here",
        listed(beginners)
    )]
    NoBeginner {
        /// Whose would do.
        beginners: Vec<Recipient>,
    },
    /// It says that it is of a newer version; nothing proves it yet.
    #[error("{object} says that it is of repository format {found}; this version reads up to {known}")]
    Newer {
        /// The object's key.
        object: String,
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// A backup that is newer than its epoch: made by someone who knows the epoch's keys and not those of the next.
    #[error("{object} says that it was started {started}; its epoch ended {ended}, when the next one began")]
    AfterEnd {
        /// The head's key.
        object: String,
        /// As it says.
        started: jiff::Timestamp,
        /// When the next epoch began.
        ended: jiff::Timestamp,
    },
    /// Nothing that is configured says who makes backups.
    #[error(
        "the backups here were made by the holder of {begun_by}; nothing in the configuration says that this is one of your machines"
    )]
    Unknown {
        /// Who signed the epochs.
        begun_by: Recipient,
    },
    /// The configuration encrypts, and the epoch is in clear: anyone who can write to the store may have made it.
    #[error(
        "{object} is of an epoch in clear, which anyone who can write to the store can make; this configuration encrypts"
    )]
    InClear {
        /// The key of the epoch's record.
        object: String,
    },
    /// The epochs were begun by several keys, and the configuration names none of them.
    #[error(
        "backups here were made by the holders of {}; the configuration does not say which of these are yours",
        listed(beginners)
    )]
    SeveralBeginners {
        /// Who proves to have made some.
        beginners: Vec<Recipient>,
    },
    /// The epoch was begun by a key that the configuration does not name.
    #[error("{object} was made by the holder of {begun_by}, whom this configuration does not name")]
    Stranger {
        /// The key of the epoch's keys.
        object: String,
        /// Who proves to have made it.
        begun_by: Recipient,
    },
}

impl Locked {
    /// The next step.
    pub fn hint(&self) -> String {
        match self {
            Self::NoIdentity { .. } => {
                "set `repository.encryption.catalog_identity_file` (to back up, list and prune) or \
                 `repository.encryption.identity_file` (to verify and restore too) to the identity of one of them"
                    .into()
            }
            Self::NoDataIdentity { .. } => "set `repository.encryption.identity_file` (or the variable \
                 ALTLAS_BACKUP_IDENTITY) to the identity of one of them; a catalogue identity opens no data"
                .into(),
            Self::NoBeginner { .. } => {
                "set `repository.encryption.catalog_identity_file`; `altlas-backup keygen` makes one".into()
            }
            Self::Newer { .. } => "use the version of altlas-backup that made it, or a newer one".into(),
            Self::AfterEnd { .. } => "whoever held the keys of that epoch can have forged it, such as a recipient who \
                 was removed; use another backup"
                .into(),
            Self::Unknown { begun_by } => {
                format!("if it is, set `repository.encryption.catalog_recipients = [\"{begun_by}\"]`")
            }
            Self::InClear { .. } => "a backup from before encryption was switched on is read with a configuration \
                 without `[repository.encryption]`, if you trust everyone who can write to the store"
                .into(),
            Self::SeveralBeginners { .. } => "name the public halves of your catalogue identities, older ones too, in \
                 `repository.encryption.catalog_recipients`; whoever can write to the store can add backups of his own"
                .into(),
            Self::Stranger { begun_by, .. } => format!(
                "where {begun_by} is the public half of one of your catalogue identities, an older one perhaps, add it \
                 to `repository.encryption.catalog_recipients`; else somebody forged the backup"
            ),
        }
    }
}

/// A failed call on a repository.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is reachable and empty at this address.
    #[error("there is no repository at {url}")]
    NotInitialised {
        /// The repository's address.
        url: String,
    },
    /// `init` found one.
    #[error("there is a repository at {url} already, created {created}")]
    AlreadyInitialised {
        /// The repository's address.
        url: String,
        /// When.
        created: jiff::Timestamp,
    },
    /// `init` found something else.
    #[error("{url} is not empty: it holds {found}")]
    NotEmpty {
        /// The repository's address.
        url: String,
        /// A key that is there.
        found: String,
    },
    /// Made by a newer version of this program (rule R10).
    #[error("{object} is of repository format {found}; this version reads up to {known}")]
    Newer {
        /// The object's key.
        object: String,
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// Not to be opened or believed with what is configured.
    #[error(transparent)]
    Locked(#[from] Locked),
    /// The repository is encrypted, and a backup in clear was asked for.
    #[error(
        "epoch {epoch} is encrypted, and this configuration has no `[repository.encryption]`: nothing is written in clear beside it"
    )]
    WouldBeClear {
        /// The epoch.
        epoch: super::EpochId,
    },
    /// Another repository than the configured one.
    #[error("the repository at {url} is {found}; the configuration says {wanted}")]
    Another {
        /// The repository's address.
        url: String,
        /// Its id.
        found: super::RepositoryId,
        /// `repository.id`.
        wanted: String,
    },
    /// An object is missing or damaged.
    #[error(transparent)]
    Trust(#[from] Trust),
    /// No backup of that name.
    #[error("no backup {wanted} in {url}")]
    NoSuchBackup {
        /// What was asked for.
        wanted: String,
        /// The repository's address.
        url: String,
    },
    /// The prefix fits several.
    #[error("{wanted} fits {}: {}", crate::report::count(fits.len() as u64, "backup"), fits.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// What it fits.
        fits: Vec<BackupId>,
    },
    /// Manifests without a head (rule R11).
    #[error("backup {id} is unfinished: {} without a head", crate::report::count(*manifests as u64, "manifest"))]
    Unfinished {
        /// The backup.
        id: BackupId,
        /// How many manifests it has.
        manifests: usize,
    },
    /// Retention let it go (rule R8).
    #[error("backup {id} expired {}", crate::report::time(*at))]
    Expired {
        /// The backup.
        id: BackupId,
        /// When.
        at: jiff::Timestamp,
    },
    /// A backup whose tombstone is so old that its parts may be being deleted.
    #[error("backup {id} expired {}; an expiry can be undone for {bound} only", crate::report::time(*at))]
    TooLate {
        /// The backup.
        id: BackupId,
        /// When.
        at: jiff::Timestamp,
        /// How long, for people.
        bound: String,
    },
    /// A backup that expired and is not whole any more.
    #[error("backup {id} cannot be brought back: it lacks {}, such as {example}", crate::report::count(*missing as u64, "object"))]
    Gone {
        /// The backup.
        id: BackupId,
        /// How many objects are missing or of another size.
        missing: usize,
        /// One of them.
        example: String,
    },
    /// Between a backup's tombstone and the end of its head went so much time that its tombstone could not be believed to be young.
    #[error("expiring backup {id} took {took}, more than {bound}; its head was written again")]
    SlowExpiry {
        /// The backup.
        id: BackupId,
        /// How long, for people.
        took: String,
        /// The bound, for people.
        bound: String,
    },
    /// Nothing was removed (rule R9).
    #[error("nothing was removed: {}", .0.iter().map(Brake::to_string).collect::<Vec<_>>().join("; "))]
    Braked(Vec<Brake>),
    /// The backup has no complete snapshot of that source.
    #[error("backup {id} holds no complete snapshot of source `{name}`{}", match state { Some(state) => format!(" ({state})"), None => String::new() })]
    NoSnapshot {
        /// The backup.
        id: BackupId,
        /// The source.
        name: String,
        /// What it holds instead.
        state: Option<SnapshotState>,
    },
    /// The commit's look did not show what must be there (rule R1).
    #[error("the {look} look before success did not show {}, such as {example}", crate::report::count(*missing as u64, "object"))]
    NotShown {
        /// `first` or `second`.
        look: &'static str,
        /// How many objects were missing or of another size.
        missing: usize,
        /// One of them.
        example: String,
    },
    /// The backup failed, and its head may be there all the same.
    #[error("{failure}; {object} may have been written and could not be removed")]
    HeadRemains {
        /// The head's key.
        object: String,
        /// Why the backup failed.
        failure: Box<RepositoryError>,
    },
    /// The backup took too long for its reused parts to be safe (rule R7).
    #[error("the backup took {took}; one that takes more than {bound}, half the grace period, must not be committed")]
    TooOld {
        /// How long, for people.
        took: String,
        /// The bound, for people.
        bound: String,
    },
    /// A record could not be written as JSON or compressed: a fault of this program.
    #[error("{object} could not be encoded: {what}")]
    Encode {
        /// The object's key.
        object: String,
        /// Why.
        what: String,
    },
}

impl RepositoryError {
    /// The next step.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::NotInitialised { .. } => Some("check repository.url; `altlas-backup init` creates a repository".into()),
            Self::AlreadyInitialised { .. } => Some("`altlas-backup init --if-missing` is content with it".into()),
            Self::NotEmpty { .. } => Some("give the repository a prefix or folder of its own".into()),
            Self::Locked(locked) => Some(locked.hint()),
            Self::Another { .. } => Some("somebody put another repository in its place, or `repository.id` is of another one".into()),
            Self::WouldBeClear { .. } => Some("configure `[repository.encryption]`; for backups in clear, begin another repository".into()),
            Self::Newer { .. } => Some("use the version of altlas-backup that made it, or a newer one".into()),
            Self::Trust(_) => Some("`altlas-backup verify BACKUP --level content` tells what else is damaged; `altlas-backup list` shows the other backups".into()),
            Self::NoSuchBackup { .. } | Self::NoSnapshot { .. } => Some("`altlas-backup list` shows what there is".into()),
            Self::Ambiguous { .. } => Some("give more of the id".into()),
            Self::Unfinished { .. } => Some("the run that wrote it did not finish, or its head was deleted; use another backup".into()),
            Self::Expired { id, .. } => Some(format!("`altlas-backup prune --undo {id}` brings it back while its parts are there")),
            Self::TooLate { .. } | Self::Gone { .. } => Some("`altlas-backup list` shows the other backups".into()),
            Self::Braked(brakes) => {
                let mut hints: Vec<String> = brakes.iter().map(Brake::hint).collect();
                hints.dedup();
                Some(hints.join("; "))
            }
            Self::SlowExpiry { .. } => Some("run `altlas-backup prune` again; find out what made the machine or the store so slow".into()),
            Self::NotShown { .. } => Some("the store lost or hid what it had accepted: check it before the next backup; no backup was recorded".into()),
            Self::TooOld { .. } => Some("raise `repository.grace`, or find out what made the backup so slow".into()),
            Self::HeadRemains { failure, .. } => Some(format!(
                "{}once the store is there again: `altlas-backup list`, and `verify` what it shows as the newest",
                failure.hint().map(|hint| format!("{hint}; ")).unwrap_or_default()
            )),
            Self::Encode { .. } => None,
        }
    }
}

/// Turns "not found" into [`Trust::Missing`], which names the object as one that must be there.
pub(crate) fn must_exist(key: &str) -> impl Fn(StoreError) -> RepositoryError + '_ {
    move |error| match error.kind {
        StoreErrorKind::NotFound => Trust::Missing { object: key.to_owned() }.into(),
        StoreErrorKind::TooLarge => Trust::damaged(key, "is larger than any object of a repository").into(),
        _ => error.into(),
    }
}
